//! What does not get through, and is counted: replays, forgeries, the expired, the blocked, the too many; and that a
//! client which moves does.

use std::{
    fs,
    net::SocketAddr,
    time::{Duration, Instant},
};

use rstest::rstest;
use rustix::net::sockopt::{Ipv4PathMtuDiscovery, set_ip_mtu_discover};
use veth_tests::{
    client::{Client, Grant, PATIENCE, is_refused, receive},
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

/// A relay with a user whose destination answers.
fn served<'a>(net: &'a Trio, mode: Mode, family: Family, options: &[&str]) -> (Relay<'a>, EchoServer, Client) {
    let relay = Relay::started_in_mode(&net.relay, mode);
    let server = EchoServer::new(&net.server, family, 0);
    let grant = relay.add_user(1, server.address, options);
    let mut client = Client::new(&net.client, &grant);
    wait_until_resolved(&mut client);
    (relay, server, client)
}

#[rstest]
fn a_replayed_packet_is_dropped_and_counted_also_from_another_address(#[values(Native, Userspace)] mode: Mode) {
    if !can_run("relaying") {
        return;
    }
    let net = Trio::new();
    for family in Family::ALL {
        let (relay, server, mut client) = served(&net, mode, family, &[]);
        let captured = client.send(b"once");
        assert_eq!(client.receive(), b"once");
        let (before, at_server) = (relay.counters(), server.count());

        client.send_raw(&captured);
        let elsewhere = net.client.udp(family, 0);
        elsewhere.send_to(&captured, client.grant.relay).unwrap();
        relay.expect_moved(&before, &[("uplink", "replayed", 2)]);
        client.exchange(b"still here");
        assert_eq!(server.count(), at_server + 1);
    }
}

#[rstest]
fn packets_out_of_order_get_through_once_each_within_the_replay_window(#[values(Native, Userspace)] mode: Mode) {
    if !can_run("relaying") {
        return;
    }
    let net = Trio::new();
    let (relay, _server, mut client) = served(&net, mode, Family::V4, &[]);
    let mut packets: Vec<_> = (0..100u8).map(|number| client.seal(&[number])).collect();
    packets.reverse();
    let before = relay.counters();
    for (packet, number) in packets.iter().zip((0..100u8).rev()) {
        client.send_raw(packet);
        assert_eq!(client.receive(), [number]);
    }
    for packet in &packets {
        client.send_raw(packet);
    }
    relay.expect_moved(
        &before,
        &[
            ("uplink", "relayed", 100),
            ("downlink", "relayed", 100),
            ("uplink", "replayed", 100),
        ],
    );

    // One as old as the window is not taken again, even if it was never seen.
    let unseen = client.seal(b"late");
    client.pn += 2000;
    client.exchange(b"far ahead");
    let before = relay.counters();
    client.send_raw(&unseen);
    relay.expect_moved(&before, &[("uplink", "replayed", 1)]);
}

#[rstest]
fn answers_follow_a_client_that_moves_and_an_old_packet_does_not_move_it(#[values(Native, Userspace)] mode: Mode) {
    if !can_run("relaying") {
        return;
    }
    let net = Trio::new();
    net.client.ip("address add 192.0.2.77/24 dev eth0");
    net.client.ip("address add 2001:db8::77/64 dev eth0 nodad");
    for (family, other_address) in [(Family::V4, "192.0.2.77:0"), (Family::V6, "[2001:db8::77]:0")] {
        let (relay, _server, mut client) = served(&net, mode, family, &[]);
        // Sealed before those that move the client, and kept back by an attacker who sees everything.
        let kept_back = client.seal(b"kept back");
        let captured = client.send(b"from here");
        assert_eq!(client.receive(), b"from here");

        for (place, socket) in [
            ("another port", net.client.udp(family, 0)),
            ("another address", net.client.udp_at(other_address.parse().unwrap())),
        ] {
            let before = std::mem::replace(&mut client.socket, socket);
            client.exchange(place.as_bytes());
            let late = receive(&before, Duration::from_millis(50));
            assert_eq!(late, None, "the answer went to the old place too");
        }

        let attacker = net.client.udp(family, 0);
        let before = relay.counters();
        attacker.send_to(&captured, client.grant.relay).unwrap();
        relay.expect_moved(&before, &[("uplink", "replayed", 1)]);
        // A packet that was never seen gets through from anywhere, but it is not the newest: its answer goes to the
        // client.
        attacker.send_to(&kept_back, client.grant.relay).unwrap();
        assert_eq!(client.receive(), b"kept back");
        assert_eq!(receive(&attacker, Duration::from_millis(50)), None);
        client.exchange(b"still at home");
    }
}

#[rstest]
fn a_grant_ends_when_it_expires(#[values(Native, Userspace)] mode: Mode) {
    if !can_run("relaying") {
        return;
    }
    let net = Trio::new();
    let began = Instant::now();
    let (relay, server, mut client) = served(&net, mode, Family::V4, &["--expires-in", "2s"]);
    let before = relay.counters();
    let last = wait::until("the end of the grant", PATIENCE, || {
        let sent = Instant::now();
        client.send(b"are you there?");
        client
            .receive_within(Duration::from_millis(100))
            .is_none()
            .then_some(sent)
    });
    let lasted = last - began;
    assert!(
        (Duration::from_millis(1900)..Duration::from_millis(4500)).contains(&lasted),
        "a grant of 2 s lasted {lasted:?}"
    );
    let expired = |relay: &Relay<'_>| relay.packets("uplink", "expired");
    assert!(
        expired(&relay) > before.get(&("uplink".into(), "expired".into())).copied().unwrap_or(0),
        "{:?}",
        relay.counters()
    );
    let at_server = server.count();
    let before = relay.counters();
    client.send(b"anybody?");
    relay.expect_moved(&before, &[("uplink", "expired", 1)]);
    assert_eq!(server.count(), at_server);
}

#[rstest]
fn a_user_sends_its_burst_at_once_and_its_rate_after_that(#[values(Native, Userspace)] mode: Mode) {
    if !can_run("relaying") {
        return;
    }
    let (rate, burst, sent) = (100, 50, 400);
    let net = Trio::new();
    let relay = Relay::started_in_mode(&net.relay, mode);
    let server = EchoServer::new(&net.server, Family::V4, 0);
    // The neighbour of its own is found by the packets of another user, so that this one's budget is whole.
    let mut other = Client::new(&net.client, &relay.add_user(1, server.address, &[]));
    wait_until_resolved(&mut other);
    let options = ["--rate", &rate.to_string(), "--burst", &burst.to_string()];
    let mut client = Client::new(&net.client, &relay.add_user(2, server.address, &options));

    let at_server = server.count();
    let before = relay.counters();
    let began = Instant::now();
    for number in 0..sent {
        client.send(&u32::to_be_bytes(number));
    }
    let took = began.elapsed();
    let dropped = wait::until("all packets to be counted", PATIENCE, || {
        let passed = server.count() - at_server;
        let dropped = relay.packets("uplink", "rate_limited");
        (passed as u64 + dropped == u64::from(sent)).then_some(dropped)
    });
    let passed = u64::from(sent) - dropped;
    // A tick of the kernel's clock is at most 10 ms.
    let refilled = (took + Duration::from_millis(20)).as_secs_f64() * f64::from(rate);
    let bounds = burst..=burst + refilled as u64 + 1;
    assert!(
        bounds.contains(&passed),
        "{passed} of {sent} packets passed in {took:?}, not {bounds:?}"
    );
    relay.expect_moved(
        &before,
        &[
            ("uplink", "relayed", passed),
            ("uplink", "rate_limited", dropped),
            ("downlink", "relayed", passed),
        ],
    );

    // A replay spends nothing of it, and the budget comes back.
    wait::until("the budget to come back", PATIENCE, || {
        client.send(b"again");
        let answer = client.receive_within(Duration::from_millis(20))?;
        (answer == b"again").then_some(())
    });
}

#[rstest]
fn a_packet_with_anything_changed_is_dropped_and_a_valid_one_gets_through(#[values(Native, Userspace)] mode: Mode) {
    if !can_run("relaying") {
        return;
    }
    let net = Trio::new();
    for family in Family::ALL {
        let (relay, _server, mut client) = served(&net, mode, family, &[]);
        let before = relay.counters();
        let longer = [client.seal(b"payload"), vec![0]].concat();
        client.send_raw(&longer);
        let mut shorter = client.seal(b"payload");
        shorter.pop();
        client.send_raw(&shorter);
        let of_another_key = Grant {
            key: [0x5a; 16],
            ..client.grant.clone()
        };
        client.send_raw(&of_another_key.seal(client.pn, b"payload"));
        let for_another_relay = Grant {
            relay_id: client.grant.relay_id + 1,
            ..client.grant.clone()
        };
        client.send_raw(&for_another_relay.seal(client.pn, b"payload"));
        let of_nobody = Grant {
            slot: client.grant.slot + 1,
            ..client.grant.clone()
        };
        client.send_raw(&of_nobody.seal(client.pn, b"payload"));
        let of_the_one_before = Grant {
            salt: client.grant.salt ^ 1,
            ..client.grant.clone()
        };
        client.send_raw(&of_the_one_before.seal(client.pn, b"payload"));
        let unprotected = Grant {
            header_key: None,
            ..client.grant.clone()
        };
        client.send_raw(&unprotected.seal(client.pn, b"payload"));
        client.send_raw(&client.grant.seal(client.pn, b"")[..23]);
        relay.expect_moved(
            &before,
            &[
                ("uplink", "bad_token", 4),
                ("uplink", "unknown_session", 3),
                ("uplink", "truncated", 1),
            ],
        );
        client.exchange(b"as it should be");
    }
}

#[rstest]
fn the_blocklist_ends_and_unblocking_resumes_the_service_of_a_source(#[values(Native, Userspace)] mode: Mode) {
    if !can_run("relaying") {
        return;
    }
    let net = Trio::new();
    net.client.ip("address add 192.0.2.99/24 dev eth0");
    net.client.ip("address add 2001:db8::99/64 dev eth0 nodad");
    for (family, prefix, elsewhere) in [
        (Family::V4, "192.0.2.2/32", "192.0.2.99:0"),
        (Family::V6, "2001:db8::2/127", "[2001:db8::99]:0"),
    ] {
        let (relay, _server, mut client) = served(&net, mode, family, &[]);
        relay.cli(&["block", "add", prefix]).succeeded();
        let list = relay.cli(&["block", "list", "--json"]).json();
        assert!(list.to_string().contains(prefix), "{list}");
        let before = relay.counters();
        client.send(b"blocked");
        relay.expect_moved(&before, &[("uplink", "blocked_source", 1)]);

        let home = std::mem::replace(&mut client.socket, net.client.udp_at(elsewhere.parse().unwrap()));
        client.exchange(b"from a place that is not blocked");

        client.socket = home;
        relay.cli(&["block", "remove", prefix]).succeeded();
        client.exchange(b"unblocked");
    }
}

#[rstest]
fn of_ten_thousand_blocked_prefixes_each_is_dropped_and_nobody_else(#[values(Native, Userspace)] mode: Mode) {
    if !can_run("relaying") {
        return;
    }
    let net = Trio::new();
    let (mut relay, _server, mut client) = served(&net, mode, Family::V4, &[]);
    // Every other /24 of 10.0.0.0/8, and as many of IPv6.
    let prefixes = |nth: u32| {
        let [_, _, middle, low] = (2 * nth).to_be_bytes();
        let v4 = format!("10.{middle}.{low}.0/24");
        let v6 = format!("2001:db8:{:x}::/48", 0x1000 + nth);
        [v4, v6]
    };
    let text: Vec<String> = (0..5_000).flat_map(prefixes).collect();
    let file = relay.path("blocked.txt");
    fs::write(&file, text.join("\n")).unwrap();
    let said = relay
        .cli(&["block", "import", file.to_str().unwrap(), "--json"])
        .succeeded();
    assert_eq!(said.trim(), "10000");
    net.relay.ip("route add 10.0.0.0/8 via 192.0.2.2");
    net.client.ip("route add 192.0.2.3/32 dev eth0");

    let check = |relay: &Relay<'_>, client: &mut Client| {
        for nth in [0, 1, 777, 2_500, 4_999] {
            let [_, _, middle, low] = (2 * nth as u32).to_be_bytes();
            let (inside, outside) = (format!("10.{middle}.{low}.255"), format!("10.{middle}.{}.0", low + 1));
            for (address, blocked) in [(inside, true), (outside, false)] {
                net.client.ip(&format!("address replace {address}/32 dev eth0"));
                client.socket = net.client.udp_at(SocketAddr::new(address.parse().unwrap(), 0));
                if blocked {
                    let before = relay.counters();
                    client.send(b"blocked");
                    relay.expect_moved(&before, &[("uplink", "blocked_source", 1)]);
                } else {
                    client.exchange(b"next door");
                }
            }
        }
    };
    check(&relay, &mut client);
    relay.stop();
    relay.start();
    client.socket = net.client.udp(Family::V4, 0);
    wait_until_resolved(&mut client);
    check(&relay, &mut client);
}

#[rstest]
fn unsolicited_packets_to_an_egress_port_reach_no_client(#[values(Native, Userspace)] mode: Mode) {
    if !can_run("relaying") {
        return;
    }
    let net = Trio::new();
    for family in Family::ALL {
        for unmatched in ["pass", "drop"] {
            let mut relay = Relay::in_mode(&net.relay, mode);
            relay.set("unmatched", unmatched);
            relay.start();
            let server = EchoServer::new(&net.server, family, 0);
            let mut client = Client::new(&net.client, &relay.add_user(1, server.address, &[]));
            wait_until_resolved(&mut client);
            let egress = server.received()[0].from;
            let before = relay.counters();
            let stranger = net.server.udp(family, 0);
            stranger.send_to(b"let me in", egress).unwrap();
            relay.expect_moved(&before, &[("downlink", "unsolicited", 1)]);
            assert_eq!(client.receive_within(Duration::from_millis(50)), None);
            // Passed to the host, which has no such port and says so, unless the relay has it; dropped, nobody hears
            // anything.
            let answer = stranger.connect(egress).and_then(|()| stranger.send(b"let me in"));
            answer.unwrap();
            let refused = is_refused(&stranger, Duration::from_millis(300));
            let expected = unmatched == "pass" && mode == Native;
            assert_eq!(refused, expected, "with unmatched = {unmatched:?}");
            client.exchange(b"as before");
        }
    }
}

#[rstest]
fn a_packet_without_hops_left_or_too_big_for_the_route_is_dropped(#[values(Native, Userspace)] mode: Mode) {
    if !can_run("relaying") {
        return;
    }
    let net = Trio::new();
    let (relay, _server, mut client) = served(&net, mode, Family::V4, &[]);
    client.socket.set_ttl(1).unwrap();
    let before = relay.counters();
    client.send(b"one hop left");
    relay.expect_moved(&before, &[("uplink", "ttl_expired", 1)]);
    client.socket.set_ttl(2).unwrap();
    client.exchange(b"two hops left");

    client.socket.set_ttl(64).unwrap();
    // What the relay says of it is not to make the kernel send fragments.
    set_ip_mtu_discover(&client.socket, Ipv4PathMtuDiscovery::PROBE).unwrap();
    net.relay.ip("route add 192.0.2.3/32 dev eth0 mtu 1000");
    let before = wait::until("the relay to follow the route", PATIENCE, || {
        let before = relay.counters();
        client.send(&[0x5a; 1200]);
        client
            .receive_within(Duration::from_millis(50))
            .is_none()
            .then_some(before)
    });
    relay.expect_moved(&before, &[("uplink", "too_big", 1)]);
    let most = 1000 - Family::V4.header_bytes();
    client.exchange(&vec![0x5a; most]);
    let before = relay.counters();
    client.send(&vec![0x5a; most + 1]);
    relay.expect_moved(&before, &[("uplink", "too_big", 1)]);
}
