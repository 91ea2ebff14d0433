//! Limits of packets, kept over seconds: of a user's downlink, and of what all users of a destination send to it.

use std::{
    thread,
    time::{Duration, Instant},
};

use rstest::rstest;
use veth_tests::{
    client::{Client, PATIENCE},
    echo::EchoServer,
    namespace::can_run,
    net::{Family, Trio},
    relay::{
        Mode::{self, Native, Userspace},
        Relay,
    },
    wait,
};

use crate::exchange::wait_until_resolved;

const RATE: u32 = 2_000;
/// A second's worth, so that a sender that gets no CPU for less than that loses nothing of the budget.
const BURST: u32 = RATE;
const UNLIMITED: [&str; 4] = ["--rate", "1000000", "--burst", "1000000"];
/// Long enough for a tick of the kernel's clock, and for what a look at the counters takes, to be small beside it.
const LASTS: Duration = Duration::from_secs(4);
/// What is sent between two looks at the time is five times the rate.
const PAUSE: Duration = Duration::from_millis(10);
/// How long no packet comes when none comes any more.
const QUIET: Duration = Duration::from_millis(200);
const AT_ONCE: u32 = 5 * RATE / 100;

/// Sends more than the limit takes until there has been time for `LASTS`, and the limit has just been met: then what
/// passed is the burst, and the rate for as long as it lasted. Returns how many that should be.
fn overrun(mut send: impl FnMut(), limited: impl Fn() -> u64) -> f64 {
    let began = Instant::now();
    let mut dropped = 0;
    loop {
        for _ in 0..AT_ONCE {
            send();
        }
        thread::sleep(PAUSE);
        if began.elapsed() >= LASTS {
            let before = std::mem::replace(&mut dropped, limited());
            if before != 0 && dropped > before {
                return f64::from(BURST) + began.elapsed().as_secs_f64() * f64::from(RATE);
            }
        }
    }
}

/// What is counted once nothing more comes: a busy machine's sockets may have lost some on the way to it.
fn settled<const N: usize>(count: impl Fn() -> [u64; N]) -> [u64; N] {
    let mut last = count();
    let mut since = Instant::now();
    wait::until("no packets to come any more", PATIENCE, || {
        let now = count();
        if now != last {
            (last, since) = (now, Instant::now());
        }
        (since.elapsed() > QUIET).then_some(now)
    })
}

fn assert_within_one_percent(passed: u64, due: f64) {
    let off_percent = 100.0 * (passed as f64 - due) / (due - f64::from(BURST));
    let told = format!("{passed} packets passed where {due:.0} should have: {off_percent:.2} % off");
    eprintln!("{told}");
    assert!(off_percent.abs() < 1.0, "{told}");
}

#[rstest]
fn a_users_downlink_keeps_its_rate_within_one_percent(#[values(Native, Userspace)] mode: Mode) {
    if !can_run("relaying") {
        return;
    }
    let net = Trio::new();
    let relay = Relay::started_in_mode(&net.relay, mode);
    let server = EchoServer::new(&net.server, Family::V4, 0);
    let mut other = Client::new(&net.client, &relay.add_user(1, server.address, &[]));
    wait_until_resolved(&mut other);
    let (rate, burst) = (RATE.to_string(), BURST.to_string());
    let options = [&UNLIMITED[..], &["--down-rate", &rate, "--down-burst", &burst]].concat();
    let mut client = Client::new(&net.client, &relay.add_user(2, server.address, &options));

    let before = relay.packets("downlink", "relayed");
    let due = overrun(
        || drop(client.send(b"payload")),
        || relay.packets("downlink", "rate_limited"),
    );
    let [passed, dropped] = settled(|| {
        let all = ["relayed", "rate_limited"];
        all.map(|reason| relay.packets("downlink", reason))
    });
    let passed = passed - before;
    assert_within_one_percent(passed, due);
    assert!(dropped > passed, "{dropped} dropped, {passed} passed");
    assert_eq!(relay.packets("uplink", "rate_limited"), 0);
    let user = relay.cli(&["user", "show", "2", "--json"]).json();
    assert_eq!(
        (user["down_rate"].as_u64(), user["down_burst"].as_u64()),
        (Some(RATE.into()), Some(BURST.into()))
    );
    assert_eq!(user["downlink"]["packets"].as_u64(), Some(passed));
    other.exchange(b"no limit of mine");
}

#[rstest]
fn two_users_of_a_destination_together_keep_its_rate_within_one_percent(#[values(Native, Userspace)] mode: Mode) {
    if !can_run("relaying") {
        return;
    }
    let net = Trio::new();
    let mut relay = Relay::started_in_mode(&net.relay, mode);
    let server = EchoServer::new(&net.server, Family::V4, 0);
    let unlimited = EchoServer::new(&net.server, Family::V4, 0);
    let mut clients = [1, 2].map(|id| {
        let mut client = Client::new(&net.client, &relay.add_user(id, server.address, &UNLIMITED));
        wait_until_resolved(&mut client);
        client
    });
    // In force from the next packet on, with the users and whatever they have spent as they are.
    relay.set("limits.destination_packets_per_second", i64::from(RATE));
    relay.set("limits.destination_burst", i64::from(BURST));
    assert_eq!(relay.cli(&["reload", "--json"]).json()["changed"], true);

    let before = relay.packets("uplink", "relayed");
    let mut turn = 0;
    let due = overrun(
        || {
            turn = 1 - turn;
            clients[turn].send(b"payload");
        },
        || relay.packets("uplink", "destination_limited"),
    );
    let [passed, dropped] = settled(|| {
        let all = ["relayed", "destination_limited"];
        all.map(|reason| relay.packets("uplink", reason))
    });
    let passed = passed - before;
    assert_within_one_percent(passed, due);
    assert!(dropped > passed, "{dropped} dropped, {passed} passed");
    assert_eq!(relay.packets("uplink", "rate_limited"), 0);

    let elsewhere = relay.add_user(3, unlimited.address, &UNLIMITED);
    wait_until_resolved(&mut Client::new(&net.client, &elsewhere));
    relay.set("limits.destination_packets_per_second", 0_i64);
    assert_eq!(relay.cli(&["reload", "--json"]).json()["changed"], true);
    let limited = relay.packets("uplink", "destination_limited");
    let relayed = relay.packets("uplink", "relayed");
    for _ in 0..10 {
        clients[0].send(b"payload");
    }
    wait::until("all of them to be relayed", PATIENCE, || {
        (relay.packets("uplink", "relayed") == relayed + 10).then_some(())
    });
    assert_eq!(relay.packets("uplink", "destination_limited"), limited);
}
