//! Userspace mode, where it is not the same as the XDP program: sockets for users, what the kernel does on the way, and
//! what can go wrong. What is the same is tested in both modes elsewhere.

use std::{
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use veth_tests::{
    client::{Client, PATIENCE},
    echo::EchoServer,
    http,
    namespace::{Namespace, can_run},
    net::{Family, Trio},
    relay::{Mode::Userspace, Relay},
    wait,
};

/// Where egress ports start when nothing else is configured.
const FIRST_EGRESS_PORT: u16 = 10_000;

/// A host that has nothing but loopback.
fn laptop() -> Namespace {
    Namespace::new("laptop")
}

/// A relay on it, not started.
fn on_laptop(laptop: &Namespace) -> Relay<'_> {
    let mut relay = Relay::in_mode(laptop, Userspace);
    relay.set("listen", vec!["127.0.0.1:4500", "[::1]:4500"]);
    relay
}

fn client_on<'a>(laptop: &Namespace, relay: &Relay<'a>, id: u64, server: &EchoServer) -> Client {
    let grant = relay.add_user(id, server.address, &[]);
    let local = SocketAddr::new(server.address.ip(), 0);
    let socket = laptop.run(|| UdpSocket::bind(local)).expect("a socket on loopback");
    Client::with_socket(&grant, socket)
}

#[test]
fn everything_runs_on_the_loopback_interface_without_any_privilege() {
    if !can_run("namespaces") {
        return;
    }
    let laptop = laptop();
    let mut relay = on_laptop(&laptop);
    relay.start();
    let (_, metrics) = relay.get("/metrics").expect("/metrics answers");
    assert!(
        metrics.contains(r#"build_info{interface="any",mode="userspace""#),
        "{metrics}"
    );
    for (id, address) in [(1, "127.0.0.1:0"), (2, "[::1]:0")] {
        let server = EchoServer::inside(&laptop, address.parse().unwrap());
        let mut client = client_on(&laptop, &relay, id, &server);
        let before = relay.counters();
        // Far larger than what one buffer of the kernel's usually holds, and empty answers too.
        for size in [1, 1200, 9000, 65_000] {
            client.exchange(&vec![7; size]);
        }
        server.send(client_egress(&server), b"");
        assert_eq!(client.receive(), b"");
        relay.expect_moved(&before, &[("uplink", "relayed", 4), ("downlink", "relayed", 5)]);
    }
    let status = relay.cli(&["status", "--json"]).json();
    assert_eq!(status["mode"], "userspace");
    assert!(relay.stop().success());
}

fn client_egress(server: &EchoServer) -> SocketAddr {
    server.received()[0].from
}

#[test]
fn a_thousand_users_have_their_own_ports_and_each_gets_its_own_answers() {
    if !can_run("namespaces") {
        return;
    }
    let laptop = laptop();
    let mut relay = on_laptop(&laptop);
    relay.start();
    let server = EchoServer::inside(&laptop, "127.0.0.1:0".parse().unwrap());
    let users: Vec<String> = (0..1000)
        .map(|id| format!(r#"{{"id": {id}, "to": "{}"}}"#, server.address))
        .collect();
    let file = relay.path("users.ndjson");
    let grants = relay.path("grants.ndjson");
    veth_tests::relay::write_file(&file, users.join("\n").as_bytes());
    let _imported = relay
        .cli(&[
            "user",
            "import",
            file.to_str().unwrap(),
            "--grants",
            grants.to_str().unwrap(),
        ])
        .succeeded();
    let grants = std::fs::read_to_string(grants).expect("grants were written");
    let socket = laptop.run(|| UdpSocket::bind("127.0.0.1:0")).unwrap();
    let before = relay.counters();
    for line in grants.lines() {
        let grant = veth_tests::client::Grant::from_json(&serde_json::from_str(line).unwrap());
        let socket = socket.try_clone().unwrap();
        Client::with_socket(&grant, socket).exchange(&grant.user.to_be_bytes());
    }
    relay.expect_moved(&before, &[("uplink", "relayed", 1000), ("downlink", "relayed", 1000)]);
    let mut ports: Vec<u16> = server.received().iter().map(|received| received.from.port()).collect();
    ports.sort_unstable();
    assert_eq!(ports, (FIRST_EGRESS_PORT..FIRST_EGRESS_PORT + 1000).collect::<Vec<_>>());
}

#[test]
fn a_reload_moves_listeners_and_egress_ports_and_users_go_on() {
    if !can_run("namespaces") {
        return;
    }
    let laptop = laptop();
    let mut relay = on_laptop(&laptop);
    relay.start();
    let server = EchoServer::inside(&laptop, "127.0.0.1:0".parse().unwrap());
    let mut client = client_on(&laptop, &relay, 1, &server);
    client.exchange(b"before");

    relay.set("listen", vec!["127.0.0.1:4501", "127.0.0.1:4500"]);
    relay.set("egress_ports", "20000-20999");
    let _reloaded = relay.cli(&["reload"]).succeeded();
    client.exchange(b"by the listener that stayed");
    client.grant.relay.set_port(4501);
    client.exchange(b"by the new one");
    assert_eq!(server.received().last().unwrap().from.port(), 20_000);

    // A listener that cannot be had changes nothing.
    let _other = laptop.run(|| UdpSocket::bind("127.0.0.1:4502")).unwrap();
    relay.set("listen", vec!["127.0.0.1:4502"]);
    relay.cli(&["reload"]).failed(1, &["127.0.0.1:4502", "another process"]);
    client.exchange(b"as before");
}

#[test]
fn a_user_that_is_removed_leaves_its_port_and_one_that_is_renewed_keeps_it() {
    if !can_run("namespaces") {
        return;
    }
    let laptop = laptop();
    let mut relay = on_laptop(&laptop);
    relay.start();
    let server = EchoServer::inside(&laptop, "127.0.0.1:0".parse().unwrap());
    let mut old = client_on(&laptop, &relay, 1, &server);
    old.exchange(b"first");
    let mut new = client_on(&laptop, &relay, 1, &server);
    new.exchange(b"renewed");
    let before = relay.counters();
    old.send(b"too late");
    relay.expect_moved(&before, &[("uplink", "unknown_session", 1)]);
    assert!(
        server
            .received()
            .iter()
            .all(|received| received.from.port() == FIRST_EGRESS_PORT)
    );

    let _removed = relay.cli(&["user", "remove", "1"]).succeeded();
    let port = laptop.run(|| UdpSocket::bind(("127.0.0.1", FIRST_EGRESS_PORT)));
    assert!(port.is_ok(), "the port is still in use: {port:?}");
    let before = relay.counters();
    new.send(b"gone");
    relay.expect_moved(&before, &[("uplink", "unknown_session", 1)]);
}

#[test]
fn a_user_whose_port_another_process_has_waits_for_it_and_the_log_says_so() {
    if !can_run("namespaces") {
        return;
    }
    let laptop = laptop();
    let mut relay = on_laptop(&laptop);
    relay.start();
    let taken = laptop
        .run(|| UdpSocket::bind(("127.0.0.1", FIRST_EGRESS_PORT)))
        .unwrap();
    let server = EchoServer::inside(&laptop, "127.0.0.1:0".parse().unwrap());
    let mut client = client_on(&laptop, &relay, 1, &server);
    assert_eq!(relay.cli(&["user", "show", "1", "--json"]).json()["resolved"], false);
    let before = relay.counters();
    client.send(b"no way out");
    relay.expect_moved(&before, &[("uplink", "destination_unresolved", 1)]);
    assert_eq!(
        relay.cli(&["user", "show", "1", "--json"]).json()["uplink"]["packets"],
        0
    );
    let log = relay.log();
    assert!(
        log.contains("127.0.0.1:10000") && log.contains("ip_local_reserved_ports"),
        "{log}"
    );

    drop(taken);
    wait::until("the port to be opened", PATIENCE, || {
        let user = relay.cli(&["user", "show", "1", "--json"]).json();
        (user["resolved"] == true).then_some(())
    });
    client.exchange(b"out");
}

#[test]
fn what_is_too_big_or_has_no_way_is_dropped_and_not_counted_as_relayed() {
    if !can_run("namespaces") {
        return;
    }
    let net = Trio::new();
    let relay = Relay::started_in_mode(&net.relay, Userspace);
    for (id, family) in [(1, Family::V4), (2, Family::V6)] {
        let server = EchoServer::new(&net.server, family, 0);
        let mut client = Client::new(&net.client, &relay.add_user(id, server.address, &[]));
        client.exchange(b"small");
        // The kernel puts fragments together: what fits without the token leaves in one packet, what does not is dropped.
        let most = 1500 - family.header_bytes();
        client.exchange(&vec![1; most]);
        let before = relay.counters();
        client.send(&vec![1; most + 1]);
        relay.expect_moved(&before, &[("uplink", "too_big", 1)]);
        let before = relay.counters();
        server.send(client_egress(&server), &vec![1; most + 1]);
        relay.expect_moved(&before, &[("downlink", "too_big", 1)]);
        let user = relay.cli(&["user", "show", &id.to_string(), "--json"]).json();
        assert_eq!(
            (&user["uplink"]["packets"], &user["downlink"]["packets"]),
            (&2.into(), &2.into())
        );
    }
    let far: SocketAddr = "198.51.100.7:5000".parse().unwrap();
    let mut client = Client::new(&net.client, &relay.add_user(3, far, &[]));
    let before = relay.counters();
    client.send(b"there is no route");
    relay.expect_moved(&before, &[("uplink", "destination_unresolved", 1)]);
}

#[test]
fn what_makes_no_sense_in_userspace_mode_is_told() {
    if !can_run("namespaces") {
        return;
    }
    let laptop = laptop();
    let mut relay = on_laptop(&laptop);
    relay.set("xdp.persist", true);
    relay
        .cli(&["config", "validate"])
        .failed(3, &["xdp.persist", "userspace"]);
    relay.unset("xdp");
    relay.set("xdp.mode", "userspace");

    relay.unset("listen");
    relay.cli(&["config", "validate"]).failed(5, &["listen", "interface"]);

    relay.set("listen", vec!["192.0.2.77:4500"]);
    let checked = relay.cli(&["check"]);
    assert!(
        checked.code == 5 && checked.stdout.contains("192.0.2.77 not on this host"),
        "{checked:#?}"
    );
    relay.run_to_end(&[]).failed(8, &["192.0.2.77:4500", "no such address"]);

    relay.set("listen", vec!["127.0.0.1:4500"]);
    let other = laptop.run(|| UdpSocket::bind("127.0.0.1:4500")).unwrap();
    relay.run_to_end(&[]).failed(8, &["127.0.0.1:4500", "another process"]);
    drop(other);

    let few_files = ["prlimit", "--nofile=600:600"];
    relay
        .run_to_end(&few_files)
        .failed(3, &["max_users is 1000", "RLIMIT_NOFILE", "at most 88"]);
}

#[test]
fn check_names_what_userspace_mode_needs() {
    if !can_run("namespaces") {
        return;
    }
    let laptop = laptop();
    let mut relay = on_laptop(&laptop);
    let checked = relay.cli(&["check", "--json"]).json();
    let item = |name: &str| {
        let items = checked.as_array().unwrap();
        items
            .iter()
            .find(|item| item["name"] == name)
            .unwrap_or_else(|| panic!("no {name}: {checked}"))
            .clone()
    };
    assert_eq!(item("sockets")["status"], "ok");
    assert_eq!(item("addresses")["status"], "ok");
    // 10000-59999 and the kernel's own range have ports in common.
    assert_eq!(item("egress_ports")["status"], "warning");
    assert!(
        item("egress_ports")["fix"]
            .as_str()
            .unwrap()
            .contains("ip_local_reserved_ports=32768-59999")
    );
    relay.set("egress_ports", "10000-11999");
    let checked = relay.cli(&["check", "--json"]).json();
    let quiet = checked
        .as_array()
        .unwrap()
        .iter()
        .find(|item| item["name"] == "egress_ports")
        .unwrap();
    assert_eq!(quiet["status"], "ok");
}

#[test]
fn drops_are_logged_and_a_stopped_relay_answers_nobody() {
    if !can_run("namespaces") {
        return;
    }
    let laptop = laptop();
    let mut relay = on_laptop(&laptop);
    relay.set("drop_sample", 1);
    relay.set_environment("RUST_LOG", "info,drops=debug");
    relay.start();
    let server = EchoServer::inside(&laptop, "127.0.0.1:0".parse().unwrap());
    let mut client = client_on(&laptop, &relay, 1, &server);
    // The tag is for another length.
    let sealed = client.seal(b"forged");
    client.send_raw(&sealed[..sealed.len() - 1]);
    wait::until("the drop in the log", PATIENCE, || {
        let log = relay.log();
        (log.contains("uplink bad_token, 71 bytes") && log.contains("→ 127.0.0.1:4500")).then_some(())
    });
    client.exchange(b"true");
    assert!(relay.stop().success());
    assert_eq!(client.receive_within(Duration::from_millis(20)), None);
    let rebound = laptop.run(|| UdpSocket::bind("127.0.0.1:4500"));
    assert!(rebound.is_ok(), "{rebound:?}");
    assert!(http::get(&laptop, "127.0.0.1:9090".parse().unwrap(), "/health").is_none());
}
