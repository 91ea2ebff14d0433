//! What `check` finds, against the real kernel in network namespaces of the test's own. Needs root.

mod namespaces;

use lumenlink_relay::{
    config::{Config, XdpMode},
    datapath::{
        Datapath,
        preflight::{Item, Status, check},
    },
};
use namespaces::{Bpffs, Namespace, can_run, config};

fn find<'a>(items: &'a [Item], name: &str) -> &'a Item {
    let found = items.iter().find(|item| item.name == name);
    found.unwrap_or_else(|| panic!("no item `{name}` in {items:#?}"))
}

#[test]
fn a_veth_pair_runs_native_xdp_and_a_bridge_does_not() {
    if !can_run("asking drivers for XDP") {
        return;
    }
    let namespace = Namespace::new();
    namespace.ip("link add bridge0 type bridge");
    namespace.run(|| {
        let items = check(&config(1000));
        for name in [
            "kernel",
            "capabilities",
            "native_xdp",
            "driver",
            "mtu",
            "attached_program",
        ] {
            assert_eq!(find(&items, name).status, Status::Ok, "{:?}", find(&items, name));
        }
        assert_eq!(find(&items, "driver").found, "veth");
        let native = &find(&items, "native_xdp").found;
        assert!(
            native.starts_with("yes (basic, redirect, ") && native.contains("rx-sg"),
            "{native}"
        );
        assert_eq!(find(&items, "headroom").found, "256 bytes");
        let offloads = find(&items, "receive_offloads");
        assert_eq!(
            (offloads.status, offloads.found.as_str()),
            (Status::Ok, "none that puts packets together")
        );

        let on_bridge = |xdp_mode| {
            let items = check(&Config {
                interfaces: vec!["bridge0".into()],
                xdp_mode,
                ..config(1000)
            });
            find(&items, "native_xdp").status
        };
        assert_eq!(on_bridge(XdpMode::Native), Status::Failure);
        assert_eq!(on_bridge(XdpMode::Auto), Status::Warning);
        assert_eq!(on_bridge(XdpMode::Generic), Status::Ok);
    });
}

#[test]
fn an_interface_that_is_missing_down_large_or_without_its_addresses_is_told() {
    if !can_run("looking at interfaces") {
        return;
    }
    let namespace = Namespace::new();
    namespace.run(|| {
        let missing = check(&Config {
            interfaces: vec!["nowhere0".into()],
            ..config(1000)
        });
        let interface = find(&missing, "interface");
        assert_eq!(interface.status, Status::Failure);
        assert!(interface.found.contains("peer0, relay0"), "{}", interface.found);

        let addresses = check(&config(1000));
        let addresses = find(&addresses, "addresses");
        assert_eq!(addresses.status, Status::Warning);
        assert!(addresses.found.starts_with("192.0.2.2 not on"), "{}", addresses.found);

        namespace.ip("addr add 192.0.2.2/24 dev relay0");
        namespace.ip("link add bridge0 mtu 9000 type bridge");
        namespace.ip("link set relay0 mtu 9000");
        namespace.ip("link set peer0 down");
        let items = check(&config(1000));
        assert_eq!(find(&items, "addresses").status, Status::Ok);
        let mtu = find(&items, "mtu");
        assert_eq!(
            (mtu.status, mtu.found.as_str()),
            (Status::Ok, "9000 bytes, in several buffers")
        );
        let bridge = check(&Config {
            interfaces: vec!["bridge0".into()],
            ..config(1000)
        });
        assert_eq!(find(&bridge, "mtu").status, Status::Warning);
        assert_eq!(find(&items, "interface").status, Status::Warning);
    });
}

#[test]
fn an_attached_program_is_in_the_way_unless_it_is_this_relays_own_pinned_one() {
    if !can_run("looking at attached programs") {
        return;
    }
    let namespace = Namespace::new();
    let bpffs = Bpffs::new();
    let persistent = Config {
        xdp_persist: true,
        xdp_pin_dir: bpffs.pins(),
        ..config(1000)
    };
    namespace.run(|| {
        let datapath = Datapath::load(&persistent, None).unwrap();
        datapath.attach().unwrap();
        drop(datapath);
        let own = check(&persistent);
        assert_eq!(find(&own, "bpffs").status, Status::Ok);
        assert_eq!(find(&own, "attached_program").status, Status::Ok);

        let others = check(&config(1000));
        let program = find(&others, "attached_program");
        assert_eq!(program.status, Status::Failure);
        assert!(program.found.starts_with("program `relay`"), "{}", program.found);
        assert!(
            program
                .fix
                .as_ref()
                .is_some_and(|fix| fix.contains("lumenlink-relay detach"))
        );
    });
}
