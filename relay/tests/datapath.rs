//! The datapath against the real kernel, in network namespaces of the test's own. Needs root.

use std::{
    fs::File,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use lumenlink_relay::{
    config::{Config, XdpMode},
    datapath::{
        Datapath, DatapathError, PublishedUser,
        attach::{AttachError, Pins},
        interface::Interface,
    },
};
use nix::{
    sched::{CloneFlags, setns},
    unistd::geteuid,
};
use relay_ebpf::verdict::{Direction, Reason};

/// Whether the test can run; says why not otherwise.
fn can_run(test: &str) -> bool {
    let root = geteuid().is_root();
    if !root {
        eprintln!("skipped: {test} needs root, for network namespaces and XDP");
    }
    // RUST_LOG shows what the datapath does.
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    let _already = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .try_init();
    root
}

fn command(line: &str) {
    let mut words = line.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(
        output.status.success(),
        "`{line}`: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A namespace, removed when dropped.
struct Namespace {
    name: String,
}

impl Namespace {
    fn empty() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "lumen-dp-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        command(&format!("ip netns add {name}"));
        Self { name }
    }

    /// With a veth pair: `relay0`, which has addresses, and its peer `peer0`.
    fn new() -> Self {
        let namespace = Self::empty();
        namespace.ip("link add relay0 address 02:00:00:00:00:01 type veth peer name peer0");
        namespace.ip("link set relay0 up");
        namespace.ip("link set peer0 up");
        namespace.ip("addr add 192.0.2.1/24 dev relay0");
        namespace.ip("addr add 2001:db8::1/64 dev relay0 nodad");
        namespace
    }

    fn ip(&self, arguments: &str) {
        command(&format!("ip -n {} {arguments}", self.name));
    }

    /// Runs `work` in a thread inside the namespace.
    fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let path = Path::new("/run/netns").join(&self.name);
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(File::open(path).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        command(&format!("ip netns del {}", self.name));
    }
}

/// A folder with a bpffs of its own, unmounted when dropped.
struct Bpffs {
    folder: tempfile::TempDir,
}

impl Bpffs {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        command(&format!("mount -t bpf bpf {}", folder.path().display()));
        Self { folder }
    }

    fn pins(&self) -> PathBuf {
        self.folder.path().join("pins")
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        command(&format!("umount {}", self.folder.path().display()));
    }
}

fn config(max_users: u32) -> Config {
    Config {
        interface: "relay0".into(),
        listen: vec!["192.0.2.1:4500".parse().unwrap(), "[2001:db8::1]:4500".parse().unwrap()],
        egress: vec![
            "192.0.2.1".parse().unwrap(),
            "192.0.2.2".parse().unwrap(),
            "2001:db8::1".parse().unwrap(),
        ],
        first_egress_port: 10000,
        last_egress_port: 59999,
        relay_id: 1,
        max_users,
        http: "127.0.0.1:9090".parse().unwrap(),
        admin: "/nonexistent".into(),
        state_dir: "/nonexistent".into(),
        drop_unmatched: false,
        header_protection: true,
        packets_per_second: 10_000,
        burst: 1000,
        xdp_mode: XdpMode::Native,
        xdp_persist: false,
        xdp_pin_dir: "/nonexistent".into(),
        latency_sample: 1024,
        drop_sample: 64,
    }
}

fn user(slot: u32) -> PublishedUser {
    PublishedUser {
        slot,
        salt: slot ^ 0x5a5a_5a5a,
        key: [slot as u8; 16],
        to: SocketAddr::new(IpAddr::from([198, 51, 100, (slot % 200) as u8]), 5000),
        rate: 10_000,
        burst: 1000,
        expires_at: None,
    }
}

const KEY: Option<[u8; 16]> = Some([7; 16]);

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
        assert_eq!(datapath.attach().unwrap(), XdpMode::Native);
        let attached = Interface::read("relay0").unwrap().program.unwrap();
        assert_eq!(attached.mode, XdpMode::Native);
        let second = Datapath::load(&config(1000), KEY).unwrap();
        let error = second.attach().unwrap_err();
        assert!(
            matches!(error, DatapathError::Attach(AttachError::Busy { .. })),
            "{error}"
        );
        drop(datapath);
        assert_eq!(Interface::read("relay0").unwrap().program, None);
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
        assert_eq!(next.attach().unwrap(), XdpMode::Native);
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
        assert!(Pins::remove(&config.xdp_pin_dir).unwrap());
        assert_eq!(Interface::read("relay0").unwrap().program, None);
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
        let error = Pins::remove(&persistent.xdp_pin_dir).unwrap_err();
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
                let resolved = || datapath.is_resolved(on_link) && datapath.is_resolved(user(3).to);
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
