//! Network namespaces of a test's own.

use std::{
    fs::File,
    io::Write as _,
    path::PathBuf,
    process::{Command, Output},
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use nix::{
    sched::{CloneFlags, setns},
    unistd::geteuid,
};

/// Whether the test can run: it needs root. Says so otherwise.
#[must_use]
pub fn can_run(test: &str) -> bool {
    let root = geteuid().is_root();
    if !root {
        // Past the capture of test output: a skip is to be seen.
        let _ = writeln!(
            std::io::stderr(),
            "skipped: {test} needs root, for network namespaces and XDP"
        );
    }
    root
}

/// Runs a command and returns what it printed.
///
/// # Panics
/// If it fails, with what it said.
#[track_caller]
pub fn succeed(line: &str, output: std::io::Result<Output>) -> String {
    let output = output.unwrap_or_else(|error| panic!("`{line}`: {error}"));
    assert!(
        output.status.success(),
        "`{line}`: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A network namespace, removed when dropped.
#[derive(Debug)]
pub struct Namespace {
    /// As `ip netns` knows it.
    pub name: String,
}

impl Namespace {
    /// One with nothing but its loopback interface, up. Its name ends in `role`.
    #[must_use]
    #[track_caller]
    pub fn new(role: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("lumen-veth-{}-{number}-{role}", std::process::id());
        succeed(
            "ip netns add",
            Command::new("ip").args(["netns", "add", &name]).output(),
        );
        let namespace = Self { name };
        // Nobody else has its addresses: they need not be tried out for a second first.
        namespace.command("sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0");
        namespace.ip("link set lo up");
        namespace
    }

    /// Where the kernel shows it.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// Runs `work` in a thread inside the namespace. The sockets that it makes and the processes that it starts stay
    /// there. The file systems are those of the test: not as with `ip netns exec`, which hides /sys/fs/bpf.
    ///
    /// # Panics
    /// As `work` does, or if the namespace cannot be entered.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                let namespace = File::open(self.path()).expect("the namespace exists");
                setns(namespace, CloneFlags::CLONE_NEWNET).expect("root may enter a network namespace");
                work()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// `ip` with these arguments, for the namespace; what it printed.
    #[track_caller]
    pub fn ip(&self, arguments: &str) -> String {
        let mut command = Command::new("ip");
        command.args(["-n", &self.name]).args(arguments.split_whitespace());
        succeed(&format!("ip -n {} {arguments}", self.name), command.output())
    }

    /// Runs a command inside the namespace, whatever becomes of it.
    #[track_caller]
    pub fn try_command(&self, words: &[&str]) -> Output {
        let output = self.run(|| Command::new(words[0]).args(&words[1..]).output());
        output.unwrap_or_else(|error| panic!("`{}`: {error}", words.join(" ")))
    }

    /// Runs a command inside the namespace, which must succeed; what it printed.
    #[track_caller]
    pub fn command(&self, line: &str) -> String {
        let words: Vec<_> = line.split_whitespace().collect();
        succeed(line, Ok(self.try_command(&words)))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let removed = Command::new("ip").args(["netns", "del", &self.name]).status();
        if !removed.is_ok_and(|status| status.success()) {
            eprintln!("the namespace {} could not be removed", self.name);
        }
    }
}
