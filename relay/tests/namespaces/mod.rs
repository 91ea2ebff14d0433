//! Network namespaces, BPF file systems and configurations for tests against the real kernel.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::{
    fs::File,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use lumenlink_relay::config::{Carrier, Config, XdpMode};
use nix::{
    sched::{CloneFlags, setns},
    unistd::geteuid,
};

/// Whether the test can run; says why not otherwise.
pub fn can_run(test: &str) -> bool {
    let root = geteuid().is_root();
    if !root {
        // Past the capture of test output: a skip is to be seen.
        let _ = writeln!(
            io::stderr(),
            "skipped: {test} needs root, for network namespaces and XDP"
        );
    }
    // RUST_LOG shows what the datapath does.
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    let _already = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .try_init();
    root
}

/// Runs a command, which must succeed.
pub fn command(line: &str) {
    let mut words = line.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(
        output.status.success(),
        "`{line}`: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Waits until something is so, for five seconds at most.
pub fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !is_so() {
        assert!(Instant::now() < deadline, "waited 5 s for {what}, in vain");
        thread::sleep(Duration::from_millis(10));
    }
}

/// A namespace, removed when dropped.
pub struct Namespace {
    /// As `ip netns` knows it.
    pub name: String,
}

impl Namespace {
    /// One without links.
    pub fn empty() -> Self {
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
    pub fn new() -> Self {
        let namespace = Self::empty();
        namespace.ip("link add relay0 address 02:00:00:00:00:01 type veth peer name peer0");
        namespace.ip("link set relay0 up");
        namespace.ip("link set peer0 up");
        namespace.ip("addr add 192.0.2.1/24 dev relay0");
        namespace.ip("addr add 2001:db8::1/64 dev relay0 nodad");
        namespace
    }

    /// `ip` with these arguments, in the namespace.
    pub fn ip(&self, arguments: &str) {
        command(&format!("ip -n {} {arguments}", self.name));
    }

    /// Runs `work` in a thread inside the namespace.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
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
pub struct Bpffs {
    folder: tempfile::TempDir,
}

impl Bpffs {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        command(&format!("mount -t bpf bpf {}", folder.path().display()));
        Self { folder }
    }

    /// Where a relay may make its pins.
    pub fn pins(&self) -> PathBuf {
        self.folder.path().join("pins")
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        command(&format!("umount {}", self.folder.path().display()));
    }
}

/// A configuration for [`Namespace`].
pub fn config(max_users: u32) -> Config {
    Config {
        interfaces: vec!["relay0".into()],
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
        carriers: vec![Carrier::Udp],
        packets_per_second: 10_000,
        burst: 1000,
        icmp_per_second: 1000,
        destination_limit: None,
        xdp_mode: XdpMode::Native,
        xdp_persist: false,
        xdp_pin_dir: "/nonexistent".into(),
        vlan: false,
        next_hops: Vec::new(),
        latency_sample: 1024,
        drop_sample: 64,
    }
}
