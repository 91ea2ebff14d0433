//! The datapath against the real kernel, in network namespaces of the test's own. Needs root.

mod namespaces;

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
};

use lumenlink_relay::{
    config::{Config, XdpMode},
    datapath::{
        Datapath, DatapathError, PublishedUser,
        attach::{AttachError, Attachment, Pins},
        interface::Interface,
        program::{LoadOptions, Loaded, OBJECT},
    },
};
use relay_ebpf::{
    layout::{Settings, option_carrier},
    verdict::{Direction, Reason},
};

use namespaces::{Bpffs, Namespace, can_run, config, wait_for};

fn user(slot: u32) -> PublishedUser {
    PublishedUser {
        slot,
        salt: slot ^ 0x5a5a_5a5a,
        key: [slot as u8; 16],
        to: SocketAddr::new(IpAddr::from([198, 51, 100, (slot % 200) as u8]), 5000),
        rate: 10_000,
        burst: 1000,
        down_limit: None,
        expires_at: None,
    }
}

const KEY: Option<[u8; 16]> = Some([7; 16]);

/// What is off is removed when the program is loaded, so each set of options is another program to the verifier.
#[test]
fn the_program_loads_whatever_is_on_and_off() {
    if !can_run("loading the program") {
        return;
    }
    for bits in 0..64_u8 {
        let [several, protected, sampling, dual, limited, vlan] = [1, 2, 4, 8, 16, 32].map(|bit| bits & bit != 0);
        // With the most of everything else is enough.
        if limited && !dual {
            continue;
        }
        for carrier in [option_carrier::OFF, option_carrier::ALSO, option_carrier::ALONE] {
            let mut settings = Settings {
                tick_ns: 4_000_000,
                max_users: 16,
                max_destinations: 16,
                listener_count: if dual { 8 } else { 1 },
                egress_v4_count: if dual { 32 } else { 1 },
                egress_v6_count: if dual { 32 } else { 0 },
                first_egress_port: 10_000,
                egress_ports: 8,
                drop_unmatched: u32::from(dual),
                latency_sample: if sampling { 1_024 } else { 0 },
                event_sample: if sampling { 64 } else { 0 },
                interface_count: if several { 8 } else { 1 },
                option_carrier: carrier,
                destination_interval_ns: if limited { 1_000 } else { 0 },
                destination_burst: 8,
                vlan: u32::from(vlan),
                ..Settings::default().with_icmp_limit(if sampling { 1_000 } else { 0 })
            };
            for listener in &mut settings.listeners {
                listener.protected = u8::from(protected);
                listener.address = IpAddr::from([192, 0, 2, 1]).into();
            }
            let options = LoadOptions { settings, pins: None };
            if let Err(error) = Loaded::new(&options) {
                panic!("{several} {protected} {sampling} {dual} {limited} {carrier} {vlan}: {error}");
            }
        }
    }
}

#[test]
fn a_hundred_thousand_users_are_published_in_under_100_ms_and_kept_at_the_next_publication() {
    if !can_run("publishing users") {
        return;
    }
    let namespace = Namespace::new();
    namespace.run(|| {
        let datapath = Datapath::load(&config(100_000), KEY).unwrap();
        let users: Vec<_> = (0..100_000).map(user).collect();
        let report = datapath.publish_all(&users).unwrap();
        eprintln!("published {} users in {:?}", report.users, report.took);
        assert_eq!((report.written, report.kept, report.removed), (100_000, 0, 0));
        if !cfg!(debug_assertions) {
            assert!(report.took.as_millis() < 100, "took {:?}", report.took);
        }
        let report = datapath.publish_all(&users[1..]).unwrap();
        assert_eq!((report.written, report.kept, report.removed), (0, 99_999, 1));
        let renewed = PublishedUser { salt: 1, ..user(5) };
        datapath.publish(&[renewed]).unwrap();
        datapath.remove(6).unwrap();
        assert_eq!(datapath.destinations(), (200, 200));
    });
}

#[test]
fn the_program_is_attached_natively_and_goes_with_the_datapath() {
    if !can_run("attaching") {
        return;
    }
    let namespace = Namespace::new();
    namespace.run(|| {
        let datapath = Datapath::load(&config(1000), KEY).unwrap();
        datapath.attach().unwrap();
        assert_eq!(datapath.mode(), Some(XdpMode::Native));
        let attached = Interface::read("relay0").unwrap().program.unwrap();
        assert_eq!(attached.mode, XdpMode::Native);
        let second = Datapath::load(&config(1000), KEY).unwrap();
        let error = second.attach().unwrap_err();
        assert!(
            matches!(error, DatapathError::Attach(AttachError::Busy { .. })),
            "{error}"
        );
        drop(datapath);
        // Commands that other tests start have a copy of the link for a moment, between fork and exec.
        wait_for("the program to be gone", || {
            Interface::read("relay0").unwrap().program.is_none()
        });
        second.attach().unwrap();
    });
}

#[test]
fn a_reload_replaces_the_program_and_keeps_users_and_counters() {
    if !can_run("reloading") {
        return;
    }
    let namespace = Namespace::new();
    namespace.run(|| {
        let datapath = Datapath::load(&config(1000), KEY).unwrap();
        datapath.publish_all(&[user(3)]).unwrap();
        datapath.attach().unwrap();
        let before = Interface::read("relay0").unwrap().program.unwrap();
        let changed = Config {
            drop_unmatched: true,
            ..config(1000)
        };
        datapath.reload(&changed, KEY).unwrap();
        let after = Interface::read("relay0").unwrap().program.unwrap();
        assert_ne!(before.id, after.id);
        let report = datapath.publish_all(&[user(3)]).unwrap();
        assert_eq!((report.written, report.kept), (0, 1));
        assert!(!Path::new(&format!("/sys/fs/bpf/lumenlink-reload-{}", std::process::id())).exists());
    });
}

#[test]
fn pins_keep_program_and_maps_until_they_are_removed() {
    if !can_run("pinning") {
        return;
    }
    let namespace = Namespace::new();
    let bpffs = Bpffs::new();
    let config = Config {
        xdp_persist: true,
        xdp_pin_dir: bpffs.pins(),
        ..config(1000)
    };
    namespace.run(|| {
        let datapath = Datapath::load(&config, KEY).unwrap();
        datapath.publish_all(&[user(3), user(4)]).unwrap();
        datapath.attach().unwrap();
        let before = Interface::read("relay0").unwrap().program.unwrap();
        drop(datapath);
        assert_eq!(
            Interface::read("relay0").unwrap().program,
            Some(before),
            "it stays without its process"
        );

        let next = Datapath::load(&config, KEY).unwrap();
        let report = next.publish_all(&[user(3)]).unwrap();
        assert_eq!((report.written, report.kept, report.removed), (0, 1, 1));
        next.attach().unwrap();
        assert_eq!(next.mode(), Some(XdpMode::Native));
        let after = Interface::read("relay0").unwrap().program.unwrap();
        assert_ne!(before.id, after.id, "the program was replaced");
        drop(next);

        let other = Config {
            max_users: 2000,
            ..config.clone()
        };
        let error = Datapath::load(&other, KEY).err().unwrap();
        assert!(
            matches!(error, DatapathError::Attach(AttachError::StalePins { .. })),
            "{error}"
        );
        assert!(Pins::remove_unused(&config.xdp_pin_dir).unwrap());
        wait_for("the program to be gone", || {
            Interface::read("relay0").unwrap().program.is_none()
        });
    });
}

/// The program as it would be without frames in several buffers: another section says so.
fn without_buffers() -> Vec<u8> {
    let mut object = OBJECT.to_vec();
    let section = b"xdp.frags\0";
    let places: Vec<_> = (0..object.len())
        .filter(|at| object[*at..].starts_with(section))
        .collect();
    assert!(!places.is_empty(), "the program takes frames in several buffers");
    for at in places {
        object[at + b"xdp".len()] = 0;
    }
    object
}

#[test]
fn a_program_that_takes_jumbo_frames_takes_the_place_of_one_that_does_not() {
    if !can_run("replacing programs") {
        return;
    }
    let namespace = Namespace::new();
    let bpffs = Bpffs::new();
    let config = Config {
        xdp_persist: true,
        xdp_pin_dir: bpffs.pins(),
        ..config(1000)
    };
    namespace.run(|| {
        // A relay of this version made the pins, and one whose program takes no jumbo frames runs on them.
        let datapath = Datapath::load(&config, KEY).unwrap();
        datapath.publish_all(&[user(3)]).unwrap();
        datapath.attach().unwrap();
        drop(datapath);
        let interface = Interface::read("relay0").unwrap();
        let settings = Settings {
            tick_ns: 4_000_000,
            max_users: 1000,
            max_destinations: 1000,
            ..Settings::default()
        };
        let mut former = Loaded::from_object(&without_buffers(), &LoadOptions { settings, pins: None }).unwrap();
        let pins = Pins::open(&config.xdp_pin_dir, 1000, std::slice::from_ref(&interface)).unwrap();
        let attachment = Attachment::new(former.program().unwrap(), &interface, XdpMode::Native, Some(&pins)).unwrap();
        assert_eq!(attachment.mode(), XdpMode::Native);
        drop((attachment, pins));
        let before = Interface::read("relay0").unwrap().program.unwrap();
        assert_ne!(Some(before), interface.program, "the former program is on the link");

        let next = Datapath::load(&config, KEY).unwrap();
        let report = next.publish_all(&[user(3)]).unwrap();
        assert_eq!((report.written, report.kept), (0, 1));
        next.attach().unwrap();
        assert_eq!(next.mode(), Some(XdpMode::Native));
        assert_ne!(Interface::read("relay0").unwrap().program, Some(before));
        namespace.ip("link set peer0 mtu 9000");
        namespace.ip("link set relay0 mtu 9000");

        // The way back is closed while the link is that large, and what runs stays.
        let running = Interface::read("relay0").unwrap();
        drop(next);
        let pins = Pins::open(&config.xdp_pin_dir, 1000, std::slice::from_ref(&running)).unwrap();
        let error = Attachment::new(former.program().unwrap(), &running, XdpMode::Native, Some(&pins)).unwrap_err();
        assert!(error.to_string().contains("MTU"), "{error}");
        assert_eq!(Interface::read("relay0").unwrap().program, running.program);
    });
}

#[test]
fn without_frames_in_several_buffers_a_large_mtu_is_told_and_auto_falls_back_to_generic() {
    if !can_run("attaching to a jumbo link") {
        return;
    }
    let namespace = Namespace::new();
    namespace.ip("link set peer0 mtu 9000");
    namespace.ip("link set relay0 mtu 9000");
    namespace.run(|| {
        let settings = Settings {
            tick_ns: 4_000_000,
            max_users: 16,
            max_destinations: 16,
            ..Settings::default()
        };
        let options = LoadOptions { settings, pins: None };
        let interface = Interface::read("relay0").unwrap();
        let mut without = Loaded::from_object(&without_buffers(), &options).unwrap();
        let program = without.program().unwrap();
        let error = Attachment::new(program, &interface, XdpMode::Native, None).unwrap_err();
        assert!(matches!(error, AttachError::NotNative { .. }), "{error}");
        assert!(error.to_string().contains("MTU"), "{error}");
        let attachment = Attachment::new(program, &interface, XdpMode::Auto, None).unwrap();
        assert_eq!(attachment.mode(), XdpMode::Generic);
        attachment.detach().unwrap();

        let mut with = Loaded::new(&options).unwrap();
        let attachment = Attachment::new(with.program().unwrap(), &interface, XdpMode::Native, None).unwrap();
        assert_eq!(attachment.mode(), XdpMode::Native);
    });
}

#[test]
fn a_pin_directory_that_is_no_relays_is_left_alone() {
    if !can_run("foreign pins") {
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
        std::fs::create_dir_all(persistent.xdp_pin_dir.join("somebody-elses")).unwrap();
        let error = Datapath::load(&persistent, KEY).err().unwrap();
        assert!(
            matches!(error, DatapathError::Attach(AttachError::ForeignPins { .. })),
            "{error}"
        );
        let error = Pins::remove_unused(&persistent.xdp_pin_dir).unwrap_err();
        assert!(matches!(error, AttachError::ForeignPins { .. }), "{error}");

        let plain = tempfile::tempdir().unwrap();
        let not_bpffs = Config {
            xdp_pin_dir: plain.path().join("pins"),
            ..persistent.clone()
        };
        let error = Datapath::load(&not_bpffs, KEY).err().unwrap();
        assert!(
            matches!(error, DatapathError::Attach(AttachError::NotBpffs { .. })),
            "{error}"
        );
    });
}

#[test]
fn unrelated_traffic_is_counted_and_next_hops_are_found_asked_for_and_followed() {
    if !can_run("next hops") {
        return;
    }
    let (relay, peer) = (Namespace::new(), Namespace::empty());
    relay.ip(&format!("link set peer0 netns {} name wire0", peer.name));
    peer.ip("link set wire0 up");
    peer.ip("addr add 192.0.2.9/24 dev wire0");
    relay.ip("route add 198.51.100.0/24 via 192.0.2.9");
    relay.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let datapath = Datapath::load(&config(1000), KEY).unwrap();
            datapath.attach().unwrap();
            let on_link = SocketAddr::new(IpAddr::from([192, 0, 2, 9]), 7);
            datapath
                .publish_all(&[user(3), PublishedUser { to: on_link, ..user(4) }])
                .unwrap();
            let follow = datapath.follow_next_hops();
            let check = async {
                let resolved = || datapath.is_resolved(4, on_link) && datapath.is_resolved(3, user(3).to);
                eventually("both destinations are resolved", resolved).await;
                peer.ip("link set wire0 down");
                peer.ip("addr flush dev wire0");
                relay.ip("neigh flush dev relay0");
                eventually("a destination whose next hop is gone is unresolved", || !resolved()).await;
                peer.ip("link set wire0 address 02:00:00:00:00:77 up");
                peer.ip("addr add 192.0.2.9/24 dev wire0");
                eventually("it is asked for until it is back", resolved).await;
                let unrelated = || {
                    let counters = datapath.counters().unwrap();
                    let counted = counters
                        .iter()
                        .find(|counter| (counter.direction, counter.reason) == (Direction::Uplink, Reason::Unrelated));
                    counted.unwrap().packets > 0
                };
                eventually("ARP and the like are counted", unrelated).await;
            };
            tokio::select! {
                ended = follow => panic!("following ended: {ended:?}"),
                () = check => {}
            }
        });
    });
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..1500 {
        if holds() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("not within 15 s: {what}");
}
