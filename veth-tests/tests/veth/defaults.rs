//! `RELAY_INTERFACE=… lumenlink-relay`, and nothing else configured.

use std::{
    fs::{self, File},
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Command, Output},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use veth_tests::{
    binary,
    client::{Client, Grant},
    echo::EchoServer,
    http,
    namespace::{Namespace, can_run, succeed},
    net::{Family, Trio},
    wait,
};

use crate::exchange::wait_until_resolved;

/// Such a relay, with a /run, a /var/lib and an /etc/lumenlink of its own, which are the defaults.
struct Unconfigured<'a> {
    namespace: &'a Namespace,
    process: Child,
    folder: tempfile::TempDir,
}

impl<'a> Unconfigured<'a> {
    fn start(namespace: &'a Namespace, log_level: Option<&str>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let log = File::create(folder.path().join("log")).unwrap();
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "sh", "-c"])
            .arg("mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs /var/lib && exec \"$0\"")
            .arg(binary::relay())
            .env("RELAY_INTERFACE", "eth0")
            .env_remove("RUST_LOG")
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        if let Some(level) = log_level {
            command.env("RUST_LOG", level);
        }
        let process = namespace.run(|| command.spawn()).unwrap();
        let mut relay = Self {
            namespace,
            process,
            folder,
        };
        let server: SocketAddr = "127.0.0.1:9090".parse().unwrap();
        wait::until("the relay to be ready", Duration::from_secs(30), || {
            assert_eq!(relay.process.try_wait().unwrap(), None, "the relay ended");
            (http::get(namespace, server, "/ready")?.0 == 200).then_some(())
        });
        relay
    }

    fn log_path(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap()
    }

    /// The relay's command line where its operator is: on the same machine.
    fn cli(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new("nsenter");
        command
            .args(["--mount", "--target", &self.process.id().to_string()])
            .arg(binary::relay())
            .args(arguments);
        self.namespace.run(|| command.output()).unwrap()
    }
}

impl Drop for Unconfigured<'_> {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            eprintln!("── the relay's log\n{}──", self.log());
        }
    }
}

#[test]
fn an_interface_in_the_environment_is_all_that_it_takes() {
    if !can_run("relaying") {
        return;
    }
    let net = Trio::new();
    let mut relay = Unconfigured::start(&net.relay, None);
    for (path, expected) in [
        ("health", ""),
        ("ready", ""),
        ("metrics", "lumenlink_relay_packets_total{"),
    ] {
        let url = format!("localhost:9090/{path}");
        let body = net
            .relay
            .command(&format!("curl --silent --show-error --fail --max-time 10 {url}"));
        assert!(body.contains(expected), "{url}: {body}");
    }

    for (id, family) in [("1", Family::V4), ("2", Family::V6)] {
        let server = EchoServer::new(&net.server, family, 0);
        let added = relay.cli(&["user", "add", id, "--to", &server.address.to_string(), "--json"]);
        let grant = succeed("user add", Ok(added));
        let grant = Grant::from_json(&serde_json::from_str(&grant).unwrap());
        assert_eq!(grant.relay, SocketAddr::new(net.relay.address(family), 4500));
        let mut client = Client::new(&net.client, &grant);
        wait_until_resolved(&mut client);
        client.exchange(b"nothing else was configured");
    }

    kill(Pid::from_raw(relay.process.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    let status = wait::until("the relay to end", Duration::from_secs(10), || {
        relay.process.try_wait().unwrap()
    });
    assert!(status.success(), "{status}");
    assert!(!net.relay.ip("link show eth0").contains("xdp"), "still attached");
}

#[test]
fn rust_log_decides_how_much_is_logged() {
    if !can_run("relaying") {
        return;
    }
    let net = Trio::new();
    let lines = |level: Option<&str>| {
        let relay = Unconfigured::start(&net.relay, level);
        relay.log().lines().count()
    };
    let (quiet, usual, detailed) = (lines(Some("error")), lines(None), lines(Some("debug")));
    assert!(
        quiet < usual && usual < detailed,
        "lines of log: {quiet} at error, {usual} by default, {detailed} at debug"
    );
}
