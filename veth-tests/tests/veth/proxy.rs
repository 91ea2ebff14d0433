//! `lumenlink-relay connect` and `ping`: what a user has who runs no client of its own.

use std::{
    io::{BufRead as _, BufReader},
    net::{SocketAddr, UdpSocket},
    process::{Child, ChildStdout, Command, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use veth_tests::{
    binary,
    client::{PATIENCE, receive},
    echo::EchoServer,
    namespace::{Namespace, can_run},
    net::{Family, Trio},
    relay::Relay,
    wait,
};

/// A running `connect`, ended when dropped.
struct Connect {
    process: Child,
    output: BufReader<ChildStdout>,
    listen: SocketAddr,
}

impl Connect {
    fn start(namespace: &Namespace, grant: &str) -> Self {
        let mut command = Command::new(binary::relay());
        command
            .args(["connect", "--json", "--listen", "127.0.0.1:0", "--grant", grant])
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut process = namespace.run(|| command.spawn()).unwrap();
        let mut output = BufReader::new(process.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        let ready: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("`{line}`: {error}"));
        Self {
            process,
            output,
            listen: ready["listen"].as_str().unwrap().parse().unwrap(),
        }
    }

    /// Ends it as Ctrl-C does; returns the totals that it prints.
    fn end(mut self) -> Value {
        kill(Pid::from_raw(self.process.id().try_into().unwrap()), Signal::SIGINT).unwrap();
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        assert!(self.process.wait().unwrap().success());
        let ended: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("`{line}`: {error}"));
        ended["totals"].clone()
    }
}

impl Drop for Connect {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A program that knows nothing of the relay: it sends to a port of its own host.
struct Program {
    socket: UdpSocket,
    number: u64,
}

impl Program {
    fn new(namespace: &Namespace, connect: &Connect) -> Self {
        let socket = namespace.run(|| UdpSocket::bind("127.0.0.1:0")).unwrap();
        socket.connect(connect.listen).unwrap();
        Self { socket, number: 0 }
    }

    /// Sends a datagram of `size` bytes, again and again until its answer comes.
    #[track_caller]
    fn exchange(&mut self, size: usize) {
        self.number += 1;
        let mut payload = vec![0x5a; size];
        payload[..8].copy_from_slice(&self.number.to_be_bytes());
        wait::until("an answer through `connect`", 3 * PATIENCE, || {
            // What is refused now may get through when the network is there again.
            let _ = self.socket.send(&payload);
            let answer = receive(&self.socket, Duration::from_millis(100))?.0;
            (answer == payload).then_some(())
        });
    }
}

fn add_user(relay: &Relay<'_>, id: &str, to: SocketAddr) -> String {
    let grant = relay.cli(&["user", "add", id, "--to", &to.to_string()]).succeeded();
    grant.trim().to_owned()
}

#[test]
fn a_program_talks_to_its_destination_through_connect_in_both_families() {
    if !can_run("relaying") {
        return;
    }
    let net = Trio::new();
    let relay = Relay::started(&net.relay);
    for (id, family) in [("1", Family::V4), ("2", Family::V6)] {
        let server = EchoServer::new(&net.server, family, 0);
        let connect = Connect::start(&net.client, &add_user(&relay, id, server.address));
        let mut program = Program::new(&net.client, &connect);
        program.exchange(8);
        let before = server.count();
        for size in [9, 100, 1400] {
            program.exchange(size);
        }
        assert!(server.count() >= before + 3);
        let totals = connect.end();
        assert!(totals["uplink_packets"].as_u64() >= Some(4), "{totals}");
        assert!(totals["downlink_packets"].as_u64() >= Some(4), "{totals}");
    }
}

#[test]
fn connect_started_again_goes_on_where_the_replay_window_is() {
    if !can_run("relaying") {
        return;
    }
    let net = Trio::new();
    let mut relay = Relay::new(&net.relay);
    relay.persist();
    relay.start();
    let server = EchoServer::new(&net.server, Family::V4, 0);
    let grant = add_user(&relay, "1", server.address);
    for _ in 0..3 {
        let connect = Connect::start(&net.client, &grant);
        Program::new(&net.client, &connect).exchange(20);
    }
    relay.crash();
    relay.start();
    let connect = Connect::start(&net.client, &grant);
    Program::new(&net.client, &connect).exchange(20);
    assert_eq!(relay.packets("uplink", "replayed"), 0);
}

#[test]
fn connect_outlives_a_restart_of_the_relay_and_another_address_of_its_host() {
    if !can_run("relaying") {
        return;
    }
    let net = Trio::new();
    let mut relay = Relay::started(&net.relay);
    let server = EchoServer::new(&net.server, Family::V4, 0);
    let connect = Connect::start(&net.client, &add_user(&relay, "1", server.address));
    let mut program = Program::new(&net.client, &connect);
    program.exchange(20);

    relay.stop();
    // Without a relay, its host says that the port is closed.
    let _ = program.socket.send(b"anybody?");
    relay.start();
    program.exchange(20);

    net.client.ip("address del 192.0.2.2/24 dev eth0");
    let _ = program.socket.send(b"no way");
    net.client.ip("address add 192.0.2.66/24 dev eth0");
    program.exchange(20);
    let user = relay.cli(&["user", "show", "1", "--json"]).json();
    let client: SocketAddr = user["client"].as_str().unwrap().parse().unwrap();
    assert_eq!(client.ip().to_string(), "192.0.2.66");
}

#[test]
fn ping_tells_whether_the_relay_answers() {
    if !can_run("relaying") {
        return;
    }
    let net = Trio::new();
    let mut relay = Relay::started(&net.relay);
    let grant = add_user(&relay, "1", "192.0.2.3:7".parse().unwrap());
    let ping = |namespace: &Namespace| {
        let mut command = Command::new(binary::relay());
        command.args([
            "ping",
            "--count",
            "3",
            "--interval",
            "10ms",
            "--timeout",
            "2s",
            "--grant",
            &grant,
        ]);
        namespace.run(|| command.output()).unwrap()
    };
    let answered = ping(&net.client);
    assert!(answered.status.success(), "{answered:?}");
    assert_eq!(relay.packets("uplink", "ping"), 3);

    relay.cli(&["user", "remove", "1"]).succeeded();
    assert_eq!(ping(&net.client).status.code(), Some(1), "the grant is no more");
    relay.stop();
    assert_eq!(ping(&net.client).status.code(), Some(1), "the relay is no more");
}

#[test]
fn what_is_no_grant_or_an_expired_one_is_told() {
    if !can_run("relaying") {
        return;
    }
    let net = Trio::new();
    let relay = Relay::started(&net.relay);
    let grant = relay.cli(&["user", "add", "1", "--to", "192.0.2.3:7", "--expires-in", "1s"]);
    let grant = grant.succeeded();
    let expired = wait::until("the grant to expire", PATIENCE, || {
        let ran = connect_to_end(&net.client, grant.trim())?;
        (ran.0 != 0).then_some(ran)
    });
    assert!(expired.1.contains("expired at"), "{expired:?}");
    for (bad, complaint) in [
        ("lumen1:%%%", "not base64url"),
        ("lumen1:e30", "no grant: missing field"),
        ("{\"user\": 1}", "no grant: missing field"),
        ("/nonexistent/grant", "reading the grant from /nonexistent/grant"),
    ] {
        let (code, told) = connect_to_end(&net.client, bad).expect("it ends by itself");
        assert_ne!(code, 0, "{bad}");
        assert!(told.contains(complaint) && !told.contains("panicked"), "{bad}: {told}");
    }
}

/// Exit code and complaint of a `connect` that ends by itself; `None` if it is about to serve.
fn connect_to_end(namespace: &Namespace, grant: &str) -> Option<(i32, String)> {
    let mut command = Command::new(binary::relay());
    command
        .args(["connect", "--json", "--listen", "127.0.0.1:0", "--grant", grant])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut process = namespace.run(|| command.spawn()).unwrap();
    let mut line = String::new();
    BufReader::new(process.stdout.as_mut().unwrap())
        .read_line(&mut line)
        .unwrap();
    if !line.is_empty() {
        let _ = process.kill();
        process.wait().unwrap();
        return None;
    }
    let output = process.wait_with_output().unwrap();
    Some((
        output.status.code().unwrap_or(-1),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    ))
}
