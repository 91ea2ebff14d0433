//! What operators do while packets are relayed: others lose none of theirs.

use std::{
    fmt::Write as _,
    fs,
    io::Write as _,
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    time::Duration,
};

use nix::sys::signal::Signal;
use veth_tests::{
    client::{Client, Grant, PATIENCE},
    echo::EchoServer,
    load::Load,
    namespace::can_run,
    net::{Family, Trio},
    relay::Relay,
    wait,
};

use crate::exchange::wait_until_resolved;

/// More than a client can send here.
const UNLIMITED: [&str; 4] = ["--rate", "10000000", "--burst", "1000000"];

/// Packets of user 1, as fast as they come back.
fn load(net: &Trio, relay: &Relay<'_>, server: &EchoServer) -> Load {
    let mut client = Client::new(&net.client, &relay.add_user(1, server.address, &UNLIMITED));
    wait_until_resolved(&mut client);
    Load::start(client)
}

#[track_caller]
fn expect_none_lost(load: Load) {
    let (_client, report) = load.stop();
    assert!(report.sent > 200, "hardly any load: {report:?}");
    assert_eq!((&report.lost, &report.spurious), (&vec![], &vec![]), "{report:?}");
}

#[test]
fn users_come_and_go_under_load_and_others_lose_nothing() {
    if !can_run("relaying") {
        return;
    }
    let net = Trio::new();
    let relay = Relay::started(&net.relay);
    let server = EchoServer::new(&net.server, Family::V4, 0);
    let load = load(&net, &relay, &server);
    let to = server.address.to_string();
    for round in 0..5 {
        load.wait_for(50);
        let grant = relay.add_user(2, server.address, &[]);
        let mut client = Client::new(&net.client, &grant);
        client.exchange(b"there is room");
        // Again: a new grant for the same user.
        let renewed = relay.add_user(2, server.address, &[]);
        assert_eq!(renewed.slot, grant.slot);
        client.send(b"the old grant");
        Client::new(&net.client, &renewed).exchange(b"the new one");
        relay.cli(&["block", "add", "198.51.100.0/24"]).succeeded();
        relay.cli(&["block", "remove", "198.51.100.0/24"]).succeeded();
        relay.cli(&["user", "remove", "2"]).succeeded();
        let other = (10 + round).to_string();
        relay.cli(&["user", "add", &other, "--to", &to]).succeeded();
    }
    load.wait_for(50);
    assert_eq!(relay.packets("uplink", "unknown_session"), 5);
    expect_none_lost(load);
}

#[test]
fn a_configuration_is_put_in_force_under_load_and_nobody_loses_anything() {
    if !can_run("relaying") {
        return;
    }
    let net = Trio::new();
    for persist in [false, true] {
        let mut relay = Relay::new(&net.relay);
        if persist {
            relay.persist();
        }
        relay.start();
        let server = EchoServer::new(&net.server, Family::V4, 0);
        let load = load(&net, &relay, &server);
        for (key, value) in [("unmatched", "drop"), ("unmatched", "pass")] {
            load.wait_for(100);
            relay.set(key, value);
            relay.cli(&["reload"]).succeeded();
            load.wait_for(100);
            relay.signal(Signal::SIGHUP);
        }
        // One more listener: the old one goes on, the new one serves too.
        relay.set("listen", vec!["192.0.2.1:4500", "192.0.2.1:4501", "[2001:db8::1]:4500"]);
        relay.cli(&["reload"]).succeeded();
        load.wait_for(100);
        let grant = Grant {
            relay: "192.0.2.1:4501".parse().unwrap(),
            ..relay.add_user(2, server.address, &[])
        };
        Client::new(&net.client, &grant).exchange(b"by the new listener");
        expect_none_lost(load);
    }
}

#[test]
fn what_only_a_restart_can_change_is_told_and_the_rest_stays_as_it_was() {
    if !can_run("relaying") {
        return;
    }
    let net = Trio::new();
    let mut relay = Relay::started(&net.relay);
    relay.set("max_users", 2000);
    relay.set("unmatched", "drop");
    relay.cli(&["reload"]).failed(3, &["max_users", "restart"]);
    let server = EchoServer::new(&net.server, Family::V4, 0);
    let mut client = Client::new(&net.client, &relay.add_user(1, server.address, &[]));
    wait_until_resolved(&mut client);
    let status = relay.cli(&["status", "--json"]).json();
    assert_eq!(status["max_users"], 1000, "{status}");
}

#[test]
fn a_second_start_beside_a_running_relay_is_refused_and_harms_nobody() {
    if !can_run("relaying") {
        return;
    }
    let net = Trio::new();
    let mut relay = Relay::new(&net.relay);
    relay.persist();
    relay.start();
    let server = EchoServer::new(&net.server, Family::V4, 0);
    let load = load(&net, &relay, &server);
    load.wait_for(50);
    // The same configuration; then one that has nothing in common with it but the interface.
    let same = relay.cli(&["run"]);
    same.failed(8, &[]);
    let mut other = Relay::new(&net.relay);
    other.set("http", "127.0.0.1:9091");
    other.run_to_end(&[]).failed(5, &["another XDP program"]);
    load.wait_for(50);
    expect_none_lost(load);
    relay.cli(&["status"]).succeeded();
}

#[test]
fn a_next_hop_that_moves_while_no_process_runs_is_found_at_the_next_start() {
    if !can_run("relaying") {
        return;
    }
    let net = Trio::new();
    let mut relay = Relay::new(&net.relay);
    relay.persist();
    relay.start();
    let server = EchoServer::new(&net.server, Family::V4, 0);
    let mut client = Client::new(&net.client, &relay.add_user(1, server.address, &[]));
    wait_until_resolved(&mut client);
    relay.crash();
    net.server.command("sysctl -qw net.ipv4.conf.eth0.arp_notify=1");
    net.server.ip("link set eth0 address 02:00:00:00:ff:03");
    client.send(b"to the old place");
    relay.start();
    wait_until_resolved(&mut client);
}

#[test]
fn a_restart_with_another_configuration_replaces_the_program_that_went_on() {
    if !can_run("relaying") {
        return;
    }
    let net = Trio::new();
    let mut relay = Relay::new(&net.relay);
    relay.persist();
    relay.start();
    let server = EchoServer::new(&net.server, Family::V4, 0);
    let mut client = Client::new(&net.client, &relay.add_user(1, server.address, &[]));
    wait_until_resolved(&mut client);
    relay.stop();
    relay.set("listen", vec!["192.0.2.1:5500"]);
    relay.set("egress_ports", "20000-29999");
    relay.set("header_protection", false);
    relay.start();
    let before = relay.counters();
    client.send(b"to the old listener");
    relay.expect_moved(&before, &[]);
    let grant = relay.cli(&["user", "show", "1", "--grant", "--json"]).json();
    let grant = Grant::from_json(&grant);
    assert_eq!(
        (grant.relay.to_string().as_str(), grant.header_key, grant.key),
        ("192.0.2.1:5500", None, client.grant.key)
    );
    client.grant = grant;
    client.exchange(b"to the new listener");
    let last = server.received().pop().unwrap();
    assert_eq!(
        last.from.to_string(),
        format!("192.0.2.1:{}", 20_000 + client.grant.slot)
    );
}

#[test]
fn a_grant_expires_while_no_process_runs() {
    if !can_run("relaying") {
        return;
    }
    let net = Trio::new();
    let mut relay = Relay::new(&net.relay);
    relay.persist();
    relay.start();
    let server = EchoServer::new(&net.server, Family::V4, 0);
    let mut client = Client::new(&net.client, &relay.add_user(1, server.address, &["--expires-in", "2s"]));
    wait_until_resolved(&mut client);
    relay.crash();
    client.exchange(b"not yet");
    wait::until("the end of the grant", PATIENCE, || {
        client.send(b"are you there?");
        client
            .receive_within(Duration::from_millis(100))
            .is_none()
            .then_some(())
    });
    relay.start();
    let before = relay.counters();
    client.send(b"anybody?");
    relay.expect_moved(&before, &[("uplink", "expired", 1)]);
    let user = relay.cli(&["user", "show", "1", "--json"]).json();
    assert_eq!(user["expired"], true, "{user}");
}

#[test]
fn generic_mode_relays_too_and_outlives_the_process() {
    if !can_run("relaying") {
        return;
    }
    let net = Trio::new();
    let mut relay = Relay::new(&net.relay);
    relay.set("xdp.mode", "generic");
    relay.persist();
    relay.start();
    for (id, family) in [(1, Family::V4), (2, Family::V6)] {
        let server = EchoServer::new(&net.server, family, 0);
        let mut client = Client::new(&net.client, &relay.add_user(id, server.address, &[]));
        wait_until_resolved(&mut client);
        for size in [1, 100, 1400] {
            client.exchange(&vec![0x5a; size]);
        }
        let ping = client.send(b"");
        assert_eq!(client.receive(), ping);
    }
    let server = EchoServer::new(&net.server, Family::V4, 0);
    let load = load(&net, &relay, &server);
    load.wait_for(100);
    relay.crash();
    load.wait_for(100);
    relay.start();
    load.wait_for(100);
    assert_eq!(relay.cli(&["status", "--json"]).json()["mode"], "generic");
    expect_none_lost(load);
}

#[test]
fn a_hundred_thousand_users_are_imported_and_all_there_after_a_restart() {
    if !can_run("relaying") {
        return;
    }
    let users: u64 = 100_000;
    let net = Trio::new();
    let mut relay = Relay::new(&net.relay);
    relay.set(
        "egress",
        vec![
            "192.0.2.1",
            "192.0.2.101",
            "192.0.2.102",
            "2001:db8::1",
            "2001:db8::101",
        ],
    );
    net.relay.ip("address add 192.0.2.101/24 dev eth0");
    net.relay.ip("address add 192.0.2.102/24 dev eth0");
    relay.set("egress_ports", "10000-59999");
    relay.set("max_users", i64::try_from(users).unwrap());
    relay.start();
    let server = EchoServer::new(&net.server, Family::V4, 0);
    let mut lines = String::new();
    for id in 0..users {
        writeln!(lines, "{{\"id\": {id}, \"to\": \"{}\"}}", server.address).unwrap();
    }
    let file = relay.path("users.ndjson");
    fs::write(&file, lines).unwrap();
    let grants = relay
        .cli(&["user", "import", file.to_str().unwrap(), "--json"])
        .succeeded();
    let grants: Vec<_> = grants
        .lines()
        .map(|line| Grant::from_json(&serde_json::from_str(line).unwrap()))
        .collect();
    assert_eq!(grants.len() as u64, users);

    let serve_some = |relay: &Relay<'_>| {
        for grant in [&grants[0], &grants[49_999], &grants[50_000], &grants[99_999]] {
            let mut client = Client::new(&net.client, grant);
            wait_until_resolved(&mut client);
            let egress = server.received().pop().unwrap().from;
            let address = if grant.slot < 50_000 {
                "192.0.2.1"
            } else {
                "192.0.2.101"
            };
            let port = 10_000 + u16::try_from(grant.slot % 50_000).unwrap();
            assert_eq!(
                egress,
                SocketAddr::new(address.parse().unwrap(), port),
                "slot {}",
                grant.slot
            );
        }
        relay
            .cli(&["user", "add", "100000", "--to", "192.0.2.3:7"])
            .failed(10, &["full"]);
    };
    serve_some(&relay);
    relay.stop();
    relay.start();
    serve_some(&relay);
    let log = relay.log();
    let published = log.lines().find(|line| line.contains("users published users=100000"));
    let published = published.unwrap_or_else(|| panic!("how long did it take to publish them? {log}"));
    println!("{published}");
}

#[test]
fn many_operators_at_once_leave_the_users_that_they_say() {
    if !can_run("relaying") {
        return;
    }
    let net = Trio::new();
    let relay = Relay::started(&net.relay);
    let server = EchoServer::new(&net.server, Family::V4, 0);
    let to = server.address.to_string();
    std::thread::scope(|scope| {
        for operator in 0..4_u64 {
            let (relay, to) = (&relay, &to);
            scope.spawn(move || {
                for round in 0..10 {
                    let id = (operator * 100 + round).to_string();
                    relay.cli(&["user", "add", &id, "--to", to]).succeeded();
                    if round % 2 == 0 {
                        relay.cli(&["user", "remove", &id]).succeeded();
                    }
                }
            });
        }
    });
    let users = relay.cli(&["user", "list", "--json"]).json();
    let users = users.as_array().unwrap();
    assert_eq!(users.len(), 20);
    for user in users {
        let id = user["id"].to_string();
        let grant = relay.cli(&["user", "show", &id, "--grant", "--json"]).json();
        let mut client = Client::new(&net.client, &Grant::from_json(&grant));
        wait_until_resolved(&mut client);
    }
}

#[test]
fn a_process_that_is_stopped_delays_no_packet_and_goes_on_when_it_may() {
    if !can_run("relaying") {
        return;
    }
    let net = Trio::new();
    let relay = Relay::started(&net.relay);
    let server = EchoServer::new(&net.server, Family::V4, 0);
    let load = load(&net, &relay, &server);
    relay.signal(Signal::SIGSTOP);
    load.wait_for(300);
    relay.signal(Signal::SIGCONT);
    relay.add_user(2, server.address, &[]);
    load.wait_for(300);
    expect_none_lost(load);
}

#[test]
fn the_first_packet_to_a_relay_that_is_ready_gets_through() {
    if !can_run("relaying") {
        return;
    }
    let net = Trio::new();
    let mut relay = Relay::started(&net.relay);
    let servers = Family::ALL.map(|family| EchoServer::new(&net.server, family, 0));
    let mut clients: Vec<_> = (0..2)
        .map(|id| Client::new(&net.client, &relay.add_user(id, servers[id as usize].address, &[])))
        .collect();
    for _ in 0..4 {
        relay.stop();
        net.relay.ip("neighbour flush dev eth0");
        relay.start();
        for client in &mut clients {
            client.exchange(b"the first packet");
        }
    }
}

#[test]
fn users_share_a_destination_and_one_that_goes_or_moves_takes_nothing_from_the_others() {
    if !can_run("relaying") {
        return;
    }
    let net = Trio::new();
    let relay = Relay::started(&net.relay);
    let [one, other] = [(); 2].map(|()| EchoServer::new(&net.server, Family::V4, 0));
    let mut clients: Vec<_> = (0..3)
        .map(|id| Client::new(&net.client, &relay.add_user(id, one.address, &[])))
        .collect();
    clients.iter_mut().for_each(wait_until_resolved);

    // The first goes, the second moves to another destination.
    relay.cli(&["user", "remove", "0"]).succeeded();
    let before = (one.count(), other.count());
    clients[1].grant = relay.add_user(1, other.address, &[]);
    wait_until_resolved(&mut clients[1]);
    clients[2].exchange(b"as before");
    assert_eq!(one.count(), before.0 + 1);
    assert!(other.count() > before.1);
    // What the former destination still says is not for the one that has moved.
    let egress = other.received().pop().unwrap().from;
    let counters = relay.counters();
    one.send(egress, b"where are you?");
    relay.expect_moved(&counters, &[("downlink", "unsolicited", 1)]);

    // A new user in the place of the first, with a destination of its own.
    let third = EchoServer::new(&net.server, Family::V4, 0);
    let grant = relay.add_user(9, third.address, &[]);
    assert_eq!(grant.slot, clients[0].grant.slot);
    clients[0].grant = grant;
    wait_until_resolved(&mut clients[0]);
    for client in &mut clients {
        client.exchange(b"each to its own");
    }
    let heard = [&third, &other, &one].map(|server| server.received().pop().unwrap());
    for (received, client) in heard.iter().zip(&clients) {
        assert_eq!(received.payload, b"each to its own");
        assert_eq!(u32::from(received.from.port()), 10_000 + client.grant.slot);
    }
}

#[test]
fn answers_come_from_the_listener_that_the_client_sent_to_last() {
    if !can_run("relaying") {
        return;
    }
    let net = Trio::new();
    net.relay.ip("address add 192.0.2.111/24 dev eth0");
    let listeners = ["192.0.2.1:4500", "192.0.2.1:4501", "192.0.2.111:4500"];
    let mut relay = Relay::new(&net.relay);
    relay.set("listen", listeners.to_vec());
    relay.set("egress", vec!["192.0.2.1"]);
    relay.start();
    let server = EchoServer::new(&net.server, Family::V4, 0);
    let mut client = Client::new(&net.client, &relay.add_user(1, server.address, &[]));
    wait_until_resolved(&mut client);
    for listener in listeners.into_iter().rev() {
        // The client panics when an answer comes from anywhere else.
        client.grant.relay = listener.parse().unwrap();
        client.exchange(b"by this listener");
        let ping = client.send(b"");
        assert_eq!(client.receive(), ping);
    }
}

#[test]
fn connections_that_say_nothing_do_not_keep_the_relay_from_ending() {
    if !can_run("starting a relay") {
        return;
    }
    let net = Trio::new();
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut relay = Relay::started(&net.relay);
        let http = net.relay.run(|| TcpStream::connect("127.0.0.1:9090")).unwrap();
        let mut half = net.relay.run(|| TcpStream::connect("127.0.0.1:9090")).unwrap();
        half.write_all(b"GET /metrics HT").unwrap();
        let admin = UnixStream::connect(relay.path("relay.sock")).unwrap();
        relay.signal(signal);
        let status = relay.wait_for_end();
        assert!(status.success(), "{status}: {}", relay.log());
        assert!(!net.relay.ip("link show eth0").contains("xdp"));
        drop((http, half, admin));
    }
}

#[test]
fn check_says_whether_a_relay_would_start() {
    if !can_run("looking at the machine") {
        return;
    }
    let net = Trio::new();
    let mut relay = Relay::new(&net.relay);
    let items = relay.cli(&["check", "--json"]).json();
    assert!(items.to_string().contains("native_xdp"), "{items}");
    relay.start();
    // Now there is a program in the way of another relay.
    relay.cli(&["check"]).failed(5, &[]);
    relay.stop();
    relay.set("interface", "nowhere0");
    relay.cli(&["check"]).failed(5, &[]);
}
