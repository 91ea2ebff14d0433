//! With `xdp.persist`, packets are relayed whatever becomes of the process; without, they end with it.

use std::{
    fs,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
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

#[test]
fn a_crash_an_upgrade_and_a_stop_under_load_lose_no_packet() {
    if !can_run("relaying") {
        return;
    }
    let net = Trio::new();
    let mut relay = Relay::new(&net.relay);
    relay.persist();
    relay.start();
    let servers = Family::ALL.map(|family| EchoServer::new(&net.server, family, 0));
    let mut clients: Vec<_> = servers
        .iter()
        .enumerate()
        .map(|(id, server)| {
            let grant = relay.add_user(id as u64, server.address, &UNLIMITED);
            Client::new(&net.client, &grant)
        })
        .collect();
    clients.iter_mut().for_each(wait_until_resolved);
    let before: Vec<_> = servers.iter().map(EchoServer::count).collect();

    let loads: Vec<_> = clients.into_iter().map(Load::start).collect();
    let more = || loads.iter().for_each(|load| load.wait_for(200));
    more();
    relay.crash();
    more();
    relay.start();
    more();
    relay.crash();
    relay.use_copy_of_binary();
    more();
    relay.start();
    more();
    assert!(relay.stop().success(), "SIGTERM is not a failure: {}", relay.log());
    more();
    relay.start();
    more();

    for ((load, server), before) in loads.into_iter().zip(&servers).zip(before) {
        let (_client, report) = load.stop();
        assert!(report.sent >= 1400, "hardly any load: {report:?}");
        assert_eq!(report.lost, [0; 0], "{report:?}");
        assert_eq!(report.spurious, [0; 0], "{report:?}");
        assert_eq!((server.count() - before) as u64, report.sent);
    }
}

#[test]
fn replay_windows_client_addresses_and_counts_outlive_the_process() {
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
    let captured = client.send(b"seen");
    assert_eq!(client.receive(), b"seen");
    let egress = server.received()[0].from;
    let before = relay.counters();

    for restart in ["crash", "stop"] {
        match restart {
            "crash" => relay.crash(),
            _ => drop(relay.stop()),
        }
        relay.start();
        let counters = relay.counters();
        for (key, packets) in &before {
            assert!(counters.get(key) >= Some(packets), "{key:?} after a {restart}");
        }
        client.send_raw(&captured);
        relay.expect_moved(&counters, &[("uplink", "replayed", 1)]);
        // The client need not send anything for its destination to reach it: its address is still known.
        let from_server = relay.packets("downlink", "relayed");
        server.send(egress, b"are you there?");
        assert_eq!(client.receive(), b"are you there?", "after a {restart}");
        assert_eq!(relay.packets("downlink", "relayed"), from_server + 1);
    }
}

#[test]
fn a_spent_rate_is_still_spent_after_a_crash() {
    if !can_run("relaying") {
        return;
    }
    let net = Trio::new();
    let mut relay = Relay::new(&net.relay);
    relay.persist();
    relay.start();
    let server = EchoServer::new(&net.server, Family::V4, 0);
    // One packet a second and 200 at once: what is spent does not come back during a restart.
    let options = ["--rate", "1", "--burst", "200"];
    let mut client = Client::new(&net.client, &relay.add_user(1, server.address, &options));
    for _ in 0..300 {
        client.send(b"");
    }
    let pings = wait::until("the burst to be spent", PATIENCE, || {
        let counters = relay.counters();
        let count = |reason: &str| counters.get(&("uplink".into(), reason.into())).copied().unwrap_or(0);
        (count("rate_limited") + count("ping") == 300).then(|| count("ping"))
    });
    assert!((200..=203).contains(&pings), "{pings} pings passed");

    relay.crash();
    relay.start();
    let before = relay.counters();
    for _ in 0..100 {
        client.send(b"");
    }
    wait::until("100 more packets to be counted", PATIENCE, || {
        let moved = |reason: &str| {
            let key = ("uplink".to_owned(), reason.to_owned());
            relay.packets("uplink", reason) - before.get(&key).copied().unwrap_or(0)
        };
        (moved("rate_limited") + moved("ping") == 100).then(|| {
            assert!(
                moved("ping") < 30,
                "a crash gave the budget back: {} pings",
                moved("ping")
            );
        })
    });
}

#[test]
fn without_persistence_a_stop_detaches_the_program_and_users_are_there_at_the_next_start() {
    if !can_run("relaying") {
        return;
    }
    let net = Trio::new();
    let mut relay = Relay::started(&net.relay);
    let server = EchoServer::new(&net.server, Family::V4, 0);
    let mut client = Client::new(&net.client, &relay.add_user(1, server.address, &[]));
    wait_until_resolved(&mut client);
    assert!(has_program(&net));
    assert!(relay.stop().success(), "{}", relay.log());
    assert!(!has_program(&net), "the program is still attached");
    let at_server = server.count();
    client.send(b"anybody?");
    assert_eq!(client.receive_within(Duration::from_millis(100)), None);
    assert_eq!(server.count(), at_server);

    relay.start();
    wait_until_resolved(&mut client);
    client.exchange(b"welcome back");
}

#[test]
fn with_persistence_only_detach_ends_the_service() {
    if !can_run("relaying") {
        return;
    }
    let net = Trio::new();
    let mut relay = Relay::new(&net.relay);
    relay.persist();
    relay.start();
    let server = EchoServer::new(&net.server, Family::V6, 0);
    let mut client = Client::new(&net.client, &relay.add_user(1, server.address, &[]));
    wait_until_resolved(&mut client);
    relay.stop();
    client.exchange(b"without a process");
    relay.cli(&["detach"]).succeeded();
    assert!(!has_program(&net), "the program is still attached");
    assert!(!relay.path("bpf/pins").exists(), "the pins are still there");
}

#[test]
fn a_grant_that_was_replaced_ends_at_once_and_the_new_one_works() {
    if !can_run("relaying") {
        return;
    }
    let net = Trio::new();
    let relay = Relay::started(&net.relay);
    let server = EchoServer::new(&net.server, Family::V4, 0);
    let mut client = Client::new(&net.client, &relay.add_user(1, server.address, &[]));
    wait_until_resolved(&mut client);
    relay.cli(&["user", "remove", "1"]).succeeded();
    let before = relay.counters();
    client.send(b"still me");
    relay.expect_moved(&before, &[("uplink", "unknown_session", 1)]);
    let grant: Grant = relay.add_user(1, server.address, &[]);
    assert_ne!((grant.salt, grant.key), (client.grant.salt, client.grant.key));
    client.send(b"still me");
    relay.expect_moved(&before, &[("uplink", "unknown_session", 2)]);
    wait_until_resolved(&mut Client::new(&net.client, &grant));
}

/// Whether any XDP program is on the relay's interface.
fn has_program(net: &Trio) -> bool {
    net.relay.ip("link show eth0").contains("xdp")
}

#[test]
fn a_user_whose_addition_was_confirmed_is_there_after_a_crash_at_any_time() {
    if !can_run("starting a relay") {
        return;
    }
    let net = Trio::new();
    let mut relay = Relay::started(&net.relay);
    let mut next = 0_u64;
    let mut confirmed = Vec::new();
    for round in 0..5_usize {
        let wanted = confirmed.len() + 3 + round;
        let progress = AtomicUsize::new(confirmed.len());
        let added = thread::scope(|scope| {
            let (operator, progress) = (&relay, &progress);
            let adding = scope.spawn(move || {
                let mut added = Vec::new();
                for id in next.. {
                    let ran = operator.cli(&["user", "add", &id.to_string(), "--to", "192.0.2.3:7"]);
                    if ran.code != 0 {
                        return (added, id);
                    }
                    added.push(id);
                    progress.fetch_add(1, Ordering::Relaxed);
                }
                unreachable!("the numbers do not end")
            });
            wait::until("some users to be added", 2 * PATIENCE, || {
                (progress.load(Ordering::Relaxed) >= wanted).then_some(())
            });
            relay.signal(Signal::SIGKILL);
            adding.join().unwrap()
        });
        relay.wait_for_end();
        let unconfirmed = added.1;
        confirmed.extend(added.0);
        next = unconfirmed + 1;
        relay.start();
        let users = relay.cli(&["user", "list", "--json"]).json();
        let mut ids: Vec<_> = users
            .as_array()
            .unwrap()
            .iter()
            .map(|user| user["id"].as_u64().unwrap())
            .collect();
        // The one during whose addition the relay crashed may be there or not; from now on it counts as it is.
        if ids.contains(&unconfirmed) {
            confirmed.push(unconfirmed);
        }
        ids.sort_unstable();
        assert_eq!(ids, confirmed);
    }
}

#[test]
fn an_import_during_which_the_relay_crashes_is_there_as_a_whole_or_not_at_all() {
    if !can_run("starting a relay") {
        return;
    }
    let users = 20_000;
    let net = Trio::new();
    let mut relay = Relay::new(&net.relay);
    relay.set("max_users", users);
    relay.start();
    let file = relay.path("users.ndjson");
    let lines: String = (0..users)
        .map(|id| format!("{{\"id\": {id}, \"to\": \"192.0.2.3:7\"}}\n"))
        .collect();
    fs::write(&file, lines).unwrap();
    let store = relay.path("state/users.redb");
    let size = || fs::metadata(&store).unwrap().len();
    let before = size();
    let ran = thread::scope(|scope| {
        let importing = scope.spawn(|| relay.cli(&["user", "import", file.to_str().unwrap()]));
        wait::until("the store to be written", 2 * PATIENCE, || {
            (size() != before || importing.is_finished()).then_some(())
        });
        relay.signal(Signal::SIGKILL);
        importing.join().unwrap()
    });
    relay.wait_for_end();
    relay.start();
    let found = relay.cli(&["status", "--json"]).json()["users"].as_i64().unwrap();
    let expected: &[i64] = if ran.code == 0 { &[users] } else { &[0, users] };
    assert!(expected.contains(&found), "{found} users after {ran:#?}");
}
