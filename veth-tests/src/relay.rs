//! The relay as its operator has it: a binary, a configuration file, a command line, a log, and HTTP.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    binary,
    client::Grant,
    http,
    namespace::{Namespace, succeed},
    wait,
};

/// How long a start may take on a busy machine, in a debug build.
const START: Duration = Duration::from_secs(30);
/// How long a stop may take.
const STOP: Duration = Duration::from_secs(15);
/// Where the relay serves HTTP when nothing else is configured.
const HTTP: ([u8; 4], u16) = ([127, 0, 0, 1], 9090);

/// What runs a command as somebody without any privilege.
const UNPRIVILEGED: [&str; 6] = [
    "setpriv",
    "--reuid=65534",
    "--regid=65534",
    "--clear-groups",
    "--bounding-set=-all",
    "--no-new-privs",
];
/// Who that is.
const NOBODY: u32 = 65534;

/// How a relay relays.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mode {
    /// By the XDP program in the driver; its process is root's.
    Native,
    /// By sockets of its process, which has no privileges at all.
    Userspace,
}

/// Packets by direction and reason.
pub type Counters = BTreeMap<(String, String), u64>;

/// A relay with folders of its own, and its process while it runs. Stopped and removed when dropped.
#[derive(Debug)]
pub struct Relay<'a> {
    namespace: &'a Namespace,
    folder: TempDir,
    config: toml::Table,
    binary: PathBuf,
    environment: Vec<(String, String)>,
    process: Option<Child>,
    bpffs: bool,
    mode: Mode,
}

/// What a command of the relay's command line did.
#[derive(Debug)]
pub struct Ran {
    /// The command line, for messages.
    pub line: String,
    /// Its exit code, -1 if a signal ended it.
    pub code: i32,
    /// What it printed.
    pub stdout: String,
    /// What it complained of.
    pub stderr: String,
}

impl Ran {
    fn new(line: String, output: &Output) -> Self {
        Self {
            line,
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// What it printed, if it succeeded.
    ///
    /// # Panics
    /// If it did not.
    #[track_caller]
    pub fn succeeded(self) -> String {
        assert_eq!(self.code, 0, "{self:#?}");
        self.stdout
    }

    /// What it printed, as JSON.
    ///
    /// # Panics
    /// If it did not succeed, or that is not JSON.
    #[track_caller]
    pub fn json(self) -> Value {
        assert_eq!(self.code, 0, "{self:#?}");
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("not JSON: {error}: {self:#?}"))
    }

    /// Expects that it failed with this exit code and said all of `words`, in one message and without a panic.
    #[track_caller]
    pub fn failed(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, code, "{self:#?}");
        assert!(!self.stderr.contains("panicked"), "{self:#?}");
        for word in words {
            assert!(self.stderr.contains(word), "it does not say `{word}`: {self:#?}");
        }
    }
}

impl<'a> Relay<'a> {
    /// A relay on `eth0` of the namespace with listeners on its two usual addresses, in native mode, not started.
    #[must_use]
    #[track_caller]
    pub fn new(namespace: &'a Namespace) -> Self {
        Self::in_mode(namespace, Mode::Native)
    }

    /// A relay with listeners on its two usual addresses, not started.
    #[must_use]
    #[track_caller]
    pub fn in_mode(namespace: &'a Namespace, mode: Mode) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("lumen-veth-")
            .tempdir()
            .expect("a folder for the relay");
        let mut relay = Self {
            namespace,
            folder,
            config: toml::Table::new(),
            binary: binary::relay().to_owned(),
            environment: vec![("RUST_LOG".to_owned(), "info".to_owned())],
            process: None,
            bpffs: false,
            mode,
        };
        if mode == Mode::Native {
            relay.set("interface", "eth0");
            relay.set("xdp.mode", "native");
        } else {
            relay.set("xdp.mode", "userspace");
            std::os::unix::fs::chown(relay.folder.path(), Some(NOBODY), Some(NOBODY)).expect("root gives away folders");
        }
        relay.set("listen", vec!["192.0.2.1:4500", "[2001:db8::1]:4500"]);
        relay.set("relay_id", 7);
        relay.set("max_users", 1000);
        relay.set_path("admin", "relay.sock");
        relay.set_path("state_dir", "state");
        relay
    }

    /// Such a relay, started and ready.
    #[must_use]
    #[track_caller]
    pub fn started(namespace: &'a Namespace) -> Self {
        let mut relay = Self::new(namespace);
        relay.start();
        relay
    }

    /// A relay in this mode, started and ready.
    #[must_use]
    #[track_caller]
    pub fn started_in_mode(namespace: &'a Namespace, mode: Mode) -> Self {
        let mut relay = Self::in_mode(namespace, mode);
        relay.start();
        relay
    }

    /// Sets a key of its configuration, `section.name`.
    pub fn set(&mut self, key: &str, value: impl Into<toml::Value>) {
        let (table, name) = match key.split_once('.') {
            Some((section, name)) => {
                let section = self.config.entry(section).or_insert_with(|| toml::Table::new().into());
                (section.as_table_mut().expect("a section is a table"), name)
            }
            None => (&mut self.config, key),
        };
        table.insert(name.to_owned(), value.into());
        fs::write(self.config_path(), self.config.to_string()).expect("relay.toml can be written");
    }

    /// Sets a key to the path of a file in its folder.
    pub fn set_path(&mut self, key: &str, file: &str) {
        let path = self.path(file);
        self.set(key, path.to_str().expect("a temporary folder has a plain name"));
    }

    /// Removes a key of its configuration.
    pub fn unset(&mut self, key: &str) {
        self.config.remove(key);
        fs::write(self.config_path(), self.config.to_string()).expect("relay.toml can be written");
    }

    /// Sets a variable of its environment.
    pub fn set_environment(&mut self, name: &str, value: &str) {
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// Makes it keep forwarding without its process: `xdp.persist`, with the pins in a BPF file system of its own.
    pub fn persist(&mut self) {
        if !self.bpffs {
            let mount = self.path("bpf");
            fs::create_dir(&mount).expect("a folder for pins");
            let line = format!("mount -t bpf bpf {}", mount.display());
            succeed(
                &line,
                Command::new("mount").args(["-t", "bpf", "bpf"]).arg(&mount).output(),
            );
            self.bpffs = true;
        }
        self.set("xdp.persist", true);
        self.set_path("xdp.pin_dir", "bpf/pins");
    }

    /// A file in its folder.
    #[must_use]
    pub fn path(&self, file: &str) -> PathBuf {
        self.folder.path().join(file)
    }

    /// Its relay.toml.
    #[must_use]
    pub fn config_path(&self) -> PathBuf {
        self.path("relay.toml")
    }

    /// From now on it is started from a copy of the binary, as after an upgrade.
    #[track_caller]
    pub fn use_copy_of_binary(&mut self) {
        let copy = self.path("lumenlink-relay-upgraded");
        fs::copy(&self.binary, &copy).expect("the binary can be copied");
        self.binary = copy;
    }

    /// Starts it and waits until it is ready.
    ///
    /// # Panics
    /// If it ends, or is not ready in time, with its log.
    #[track_caller]
    pub fn start(&mut self) {
        self.spawn(&[]);
        self.wait_until_ready();
    }

    /// Starts the process, with a prefix before its command line (`setpriv …`), and does not wait for anything.
    #[track_caller]
    pub fn spawn(&mut self, prefix: &[&str]) {
        assert!(self.process.is_none(), "the relay runs already");
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_path())
            .expect("a log");
        let prefix = match self.mode {
            Mode::Userspace if prefix.is_empty() => UNPRIVILEGED.as_slice(),
            _ => prefix,
        };
        let mut command = self.command(prefix, &["run"]);
        command
            .stdin(std::process::Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log);
        let process = self.namespace.run(|| command.spawn());
        self.process = Some(process.expect("the binary can be started"));
    }

    /// Starts it where it must not come up; waits until it ends, and returns what it said.
    ///
    /// # Panics
    /// If it does not end by itself.
    #[track_caller]
    pub fn run_to_end(&mut self, prefix: &[&str]) -> Ran {
        // Not the log of an earlier start.
        let _none = fs::remove_file(self.log_path());
        self.spawn(prefix);
        let end = Instant::now() + START;
        let status = loop {
            if let Some(status) = self.ended() {
                break status;
            }
            assert!(Instant::now() < end, "the relay runs, though it cannot: {}", self.log());
            thread::sleep(Duration::from_millis(5));
        };
        self.process = None;
        Ran {
            line: "lumenlink-relay run".to_owned(),
            code: status.code().unwrap_or(-1),
            stdout: String::new(),
            stderr: self.log(),
        }
    }

    fn command(&self, prefix: &[&str], arguments: &[&str]) -> Command {
        let mut words = prefix.to_vec();
        words.push(self.binary.to_str().expect("a plain path"));
        words.extend(arguments);
        let mut command = Command::new(words[0]);
        command
            .args(&words[1..])
            .arg("--config")
            .arg(self.config_path())
            .envs(self.environment.iter().cloned());
        command
    }

    fn ended(&mut self) -> Option<ExitStatus> {
        let process = self.process.as_mut()?;
        process.try_wait().expect("the process is this one's child")
    }

    /// Waits until /ready says so.
    #[track_caller]
    pub fn wait_until_ready(&mut self) {
        let end = Instant::now() + START;
        loop {
            let answer = self.get("/ready");
            if answer.as_ref().is_some_and(|(status, _)| *status == 200) {
                return;
            }
            if let Some(status) = self.ended() {
                self.process = None;
                panic!("the relay ended ({status}) instead of becoming ready");
            }
            assert!(
                Instant::now() < end,
                "the relay is not ready after {START:?}: {answer:?}"
            );
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends the process at once, as a crash does.
    #[track_caller]
    pub fn crash(&mut self) {
        self.signal(Signal::SIGKILL);
        self.wait_for_end();
    }

    /// Asks the process to end, and waits until it has.
    #[track_caller]
    pub fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.wait_for_end()
    }

    /// Sends the process a signal.
    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.process_id().try_into().expect("a process id"));
        kill(pid, signal).expect("the process is this one's child");
    }

    /// The id of its process.
    ///
    /// # Panics
    /// If it does not run.
    #[must_use]
    #[track_caller]
    pub fn process_id(&self) -> u32 {
        self.process.as_ref().expect("the relay runs").id()
    }

    /// Waits until the process has ended.
    #[track_caller]
    pub fn wait_for_end(&mut self) -> ExitStatus {
        let status = wait::until("the relay to end", STOP, || self.ended());
        self.process = None;
        status
    }

    /// Whether its process runs.
    #[must_use]
    pub fn is_running(&mut self) -> bool {
        self.process.is_some() && self.ended().is_none()
    }

    fn log_path(&self) -> PathBuf {
        self.path("relay.log")
    }

    /// What it wrote so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    // ── Command line ─────────────────────────────────────────────────────────────────────────────────────────────────

    /// Runs a command of its command line, with its configuration.
    #[track_caller]
    pub fn cli(&self, arguments: &[&str]) -> Ran {
        self.cli_with(&[], arguments)
    }

    /// Runs a command of its command line, with a prefix before it (`setpriv …`).
    #[track_caller]
    pub fn cli_with(&self, prefix: &[&str], arguments: &[&str]) -> Ran {
        let line = format!("{} lumenlink-relay {}", prefix.join(" "), arguments.join(" "));
        let mut command = self.command(prefix, arguments);
        let output = self.namespace.run(|| command.output());
        Ran::new(line, &output.expect("the binary can be started"))
    }

    /// Adds a user; `options` as on the command line. Returns its grant.
    #[track_caller]
    pub fn add_user(&self, id: u64, to: SocketAddr, options: &[&str]) -> Grant {
        let (id, to) = (id.to_string(), to.to_string());
        let mut arguments = vec!["user", "add", &id, "--to", &to, "--json"];
        arguments.extend(options);
        Grant::from_json(&self.cli(&arguments).json())
    }

    // ── HTTP ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    /// Status code and body of a GET from inside its namespace; `None` if nobody answers.
    #[must_use]
    pub fn get(&self, path: &str) -> Option<(u16, String)> {
        let server = self.config.get("http").and_then(toml::Value::as_str);
        let server = server.map_or(SocketAddr::from(HTTP), |text| text.parse().expect("an address"));
        http::get(self.namespace, server, path)
    }

    /// The counters of packets that are not zero.
    ///
    /// # Panics
    /// If /metrics does not answer, or not in this form.
    #[must_use]
    #[track_caller]
    pub fn counters(&self) -> Counters {
        let (status, text) = self.get("/metrics").expect("/metrics answers");
        assert_eq!(status, 200, "{text}");
        let lines = text
            .lines()
            .filter_map(|line| line.strip_prefix("lumenlink_relay_packets_total{"));
        let mut counters = Counters::new();
        for line in lines {
            let (labels, value) = line.split_once("} ").unwrap_or_else(|| panic!("metric `{line}`"));
            let label = |name: &str| {
                let label = labels
                    .split(',')
                    .find_map(|label| label.strip_prefix(name)?.strip_prefix("=\""));
                let label = label.and_then(|label| label.strip_suffix('"'));
                label
                    .unwrap_or_else(|| panic!("no label {name} in `{line}`"))
                    .to_owned()
            };
            let value: f64 = value.parse().unwrap_or_else(|error| panic!("metric `{line}`: {error}"));
            if value > 0.0 {
                counters.insert((label("direction"), label("reason")), value as u64);
            }
        }
        counters
    }

    /// How many packets of this direction were treated so.
    #[must_use]
    #[track_caller]
    pub fn packets(&self, direction: &str, reason: &str) -> u64 {
        let key = (direction.to_owned(), reason.to_owned());
        self.counters().get(&key).copied().unwrap_or(0)
    }

    /// How many packets of this direction were answered by ICMP messages.
    ///
    /// # Panics
    /// If /metrics does not answer, or does not say so.
    #[must_use]
    #[track_caller]
    pub fn icmp_messages(&self, direction: &str) -> u64 {
        self.metric(&format!(
            "lumenlink_relay_icmp_messages_total{{direction=\"{direction}\"}} "
        ))
    }

    /// How many bytes the frames of this direction had that were treated so.
    ///
    /// # Panics
    /// If /metrics does not answer, or does not say so.
    #[must_use]
    #[track_caller]
    pub fn bytes(&self, direction: &str, reason: &str) -> u64 {
        let labels = format!("direction=\"{direction}\",reason=\"{reason}\"");
        self.metric(&format!("lumenlink_relay_bytes_total{{{labels}}} "))
    }

    /// The value behind a metric's name and labels.
    #[track_caller]
    fn metric(&self, name: &str) -> u64 {
        let (_, text) = self.get("/metrics").expect("/metrics answers");
        let value = text.lines().find_map(|line| line.strip_prefix(name));
        let value = value.unwrap_or_else(|| panic!("no {name}in\n{text}"));
        value.parse::<f64>().expect("a number") as u64
    }

    /// Waits until the counters have moved since `before` by exactly these, given as direction, reason and packets.
    /// The host's own traffic does not count.
    #[track_caller]
    pub fn expect_moved(&self, before: &Counters, expected: &[(&str, &str, u64)]) {
        let expected: Counters = expected
            .iter()
            .map(|(direction, reason, packets)| (((*direction).to_owned(), (*reason).to_owned()), *packets))
            .collect();
        let end = Instant::now() + Duration::from_secs(5);
        loop {
            let moved = moved(before, &self.counters());
            if moved == expected {
                return;
            }
            assert!(
                Instant::now() < end,
                "counters moved by\n{moved:?}, not by\n{expected:?}"
            );
            thread::sleep(Duration::from_millis(10));
        }
    }
}

fn moved(before: &Counters, after: &Counters) -> Counters {
    after
        .iter()
        .filter(|((_, reason), _)| reason != "unrelated")
        .map(|(key, value)| (key.clone(), value - before.get(key).copied().unwrap_or(0)))
        .filter(|(_, moved)| *moved > 0)
        .collect()
}

impl Drop for Relay<'_> {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
        if thread::panicking() {
            eprintln!("── the relay's log\n{}──", self.log());
        }
        if self.bpffs {
            unmount(&self.path("bpf"));
        }
    }
}

/// Removes a BPF file system, and so everything that is pinned there.
fn unmount(path: &Path) {
    let unmounted = Command::new("umount").arg(path).status();
    if !unmounted.is_ok_and(|status| status.success()) {
        eprintln!("{} could not be unmounted", path.display());
    }
}

/// Writes a file into a folder of the test's own.
///
/// # Panics
/// If it cannot be written.
#[track_caller]
pub fn write_file(path: &Path, contents: &[u8]) {
    use std::io::Write as _;
    let mut file = File::create(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    file.write_all(contents)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}
