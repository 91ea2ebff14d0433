//! Payload and pings, both ways, in both families.

use std::{net::SocketAddr, time::Duration};

use packet_lab::craft::{Checksum, UdpFrame, options_with_token};
use rstest::rstest;
use veth_tests::{
    client::{Client, PATIENCE, TOKEN_BYTES},
    echo::EchoServer,
    namespace::can_run,
    net::{Family, Trio},
    raw::FrameSocket,
    relay::{
        Mode::{self, Native, Userspace},
        Relay,
    },
    wait,
};

/// Where egress ports start when nothing else is configured.
const FIRST_EGRESS_PORT: u16 = 10_000;
/// What the links carry.
const MTU: usize = 1500;

#[rstest]
fn payload_of_every_size_goes_both_ways_in_both_families_and_leaves_from_the_slots_egress_port(
    #[values(Native, Userspace)] mode: Mode,
) {
    if !can_run("relaying") {
        return;
    }
    let net = Trio::new();
    let relay = Relay::started_in_mode(&net.relay, mode);
    for (id, family) in [(1, Family::V4), (2, Family::V6)] {
        let server = EchoServer::new(&net.server, family, 0);
        let grant = relay.add_user(id, server.address, &[]);
        assert_eq!(grant.user, id);
        assert_eq!(
            grant.relay,
            SocketAddr::new(net.relay.address(family), 4500),
            "the listener of the destination's family"
        );
        let mut client = Client::new(&net.client, &grant);
        wait_until_resolved(&mut client);
        let before = (relay.counters(), server.count());

        let most = MTU - family.header_bytes() - TOKEN_BYTES;
        let sizes = [1, 2, 3, 7, 8, 63, 64, 65, 500, 1000, most - 1, most];
        for (number, size) in sizes.into_iter().enumerate() {
            client.exchange(&vec![number as u8 + 1; size]);
        }
        let packets = sizes.len() as u64;
        relay.expect_moved(
            &before.0,
            &[("uplink", "relayed", packets), ("downlink", "relayed", packets)],
        );

        let egress_port = FIRST_EGRESS_PORT + u16::try_from(grant.slot).unwrap();
        let egress = SocketAddr::new(net.relay.address(family), egress_port);
        for received in &server.received()[before.1..] {
            assert_eq!(received.from, egress);
        }
    }
}

#[rstest]
fn ipv4_and_ipv6_clients_are_served_at_once(#[values(Native, Userspace)] mode: Mode) {
    if !can_run("relaying") {
        return;
    }
    let net = Trio::new();
    let relay = Relay::started_in_mode(&net.relay, mode);
    let servers = Family::ALL.map(|family| EchoServer::new(&net.server, family, 7));
    let mut clients: Vec<_> = (0..6)
        .map(|id| {
            let to = servers[id as usize % 2].address;
            Client::new(&net.client, &relay.add_user(id, to, &[]))
        })
        .collect();
    clients.iter_mut().for_each(wait_until_resolved);
    for round in 0..50 {
        for (number, client) in clients.iter_mut().enumerate() {
            client.send(&[number as u8, round]);
        }
        for (number, client) in clients.iter().enumerate() {
            assert_eq!(client.receive(), [number as u8, round]);
        }
    }
}

#[rstest]
fn clients_of_one_family_reach_destinations_of_the_other(#[values(Native, Userspace)] mode: Mode) {
    if !can_run("relaying") {
        return;
    }
    let net = Trio::new();
    let relay = Relay::started_in_mode(&net.relay, mode);
    for (id, (near, far)) in [(1, (Family::V4, Family::V6)), (2, (Family::V6, Family::V4))] {
        let server = EchoServer::new(&net.server, far, 0);
        let mut grant = relay.add_user(id, server.address, &[]);
        grant.relay = SocketAddr::new(net.relay.address(near), 4500);
        let mut client = Client::new(&net.client, &grant);
        wait_until_resolved(&mut client);
        let before = (relay.counters(), server.count());

        // Within 1,260 bytes of IPv4 and beyond, and as much as the links carry.
        let most = MTU - near.header_bytes() - TOKEN_BYTES;
        let sizes = [1, 2, 3, 8, 64, 65, 500, 1232, 1233, most - 1, most];
        for (number, size) in sizes.into_iter().enumerate() {
            client.exchange(&vec![number as u8 + 1; size]);
        }
        let packets = sizes.len() as u64;
        relay.expect_moved(
            &before.0,
            &[("uplink", "relayed", packets), ("downlink", "relayed", packets)],
        );
        let egress_port = FIRST_EGRESS_PORT + u16::try_from(grant.slot).unwrap();
        let egress = SocketAddr::new(net.relay.address(far), egress_port);
        for received in &server.received()[before.1..] {
            assert_eq!(received.from, egress);
        }
        // What the relay reflects stays in the client's family.
        let ping = client.send(b"");
        assert_eq!(client.receive(), ping);
    }
}

#[rstest]
fn a_datagram_without_checksum_gets_one_on_its_way_to_ipv6(#[values(Native, Userspace)] mode: Mode) {
    if !can_run("relaying") {
        return;
    }
    let net = Trio::new();
    let relay = Relay::started_in_mode(&net.relay, mode);
    let server = EchoServer::new(&net.server, Family::V6, 0);
    let mut grant = relay.add_user(1, server.address, &[]);
    grant.relay = SocketAddr::new(net.relay.address(Family::V4), 4500);
    let mut client = Client::new(&net.client, &grant);
    wait_until_resolved(&mut client);
    let wire = FrameSocket::new(&net.client, "eth0");
    let from = client.socket.local_addr().unwrap();
    // The server's kernel drops datagrams over IPv6 that have no right one.
    for size in [
        1,
        2,
        3,
        15,
        16,
        31,
        32,
        33,
        500,
        MTU - Family::V4.header_bytes() - TOKEN_BYTES,
    ] {
        let payload = vec![0xa5; size];
        let mut frame = UdpFrame::new(from, grant.relay, client.seal(&payload)).checksum(Checksum::None);
        (frame.from_mac, frame.to_mac) = (net.client.mac(), net.relay.mac());
        wire.send(&frame.build());
        assert_eq!(client.receive(), payload);
    }
}

#[test]
fn a_token_in_an_ip_option_is_as_good_as_one_in_udp() {
    if !can_run("relaying") {
        return;
    }
    let net = Trio::new();
    let mut relay = Relay::new(&net.relay);
    relay.set("carrier", vec!["udp", "ip-option"]);
    relay.start();
    let wire = FrameSocket::new(&net.client, "eth0");
    for (id, family) in [(1, Family::V4), (2, Family::V6)] {
        let server = EchoServer::new(&net.server, family, 0);
        let mut grant = relay.add_user(id, server.address, &[]);
        grant.relay = SocketAddr::new(net.relay.address(Family::V4), 4500);
        let mut client = Client::new(&net.client, &grant);
        wait_until_resolved(&mut client);
        let before = relay.counters();
        let from = client.socket.local_addr().unwrap();
        let sizes = [0, 1, 2, 23, 24, 25, 500, MTU - 48 - 8];
        for size in sizes {
            let payload = vec![0x3c; size];
            let token = grant.token(client.pn, size);
            client.pn += 1;
            let mut frame = UdpFrame::new(from, grant.relay, payload.clone()).options(options_with_token(&[], &token));
            (frame.from_mac, frame.to_mac) = (net.client.mac(), net.relay.mac());
            wire.send(&frame.build());
            // Empty, it is a ping: what the relay reflects has no payload either.
            assert_eq!(client.receive(), payload);
        }
        let packets = sizes.len() as u64 - 1;
        relay.expect_moved(
            &before,
            &[
                ("uplink", "relayed", packets),
                ("downlink", "relayed", packets),
                ("uplink", "ping", 1),
            ],
        );
        client.exchange(b"in UDP");
    }
}

#[test]
fn where_tokens_travel_in_options_alone_those_in_udp_are_dropped() {
    if !can_run("relaying") {
        return;
    }
    let net = Trio::new();
    let mut relay = Relay::new(&net.relay);
    relay.set("listen", vec!["192.0.2.1:4500"]);
    relay.set("carrier", vec!["ip-option"]);
    relay.start();
    let server = EchoServer::new(&net.server, Family::V4, 0);
    let mut client = Client::new(&net.client, &relay.add_user(1, server.address, &[]));
    let before = relay.counters();
    client.send(b"payload");
    relay.expect_moved(&before, &[("uplink", "truncated", 1)]);
}

#[rstest]
fn a_ping_comes_back_byte_for_byte_and_reaches_no_destination(#[values(Native, Userspace)] mode: Mode) {
    if !can_run("relaying") {
        return;
    }
    let net = Trio::new();
    for protection in [true, false] {
        let mut relay = Relay::in_mode(&net.relay, mode);
        relay.set("header_protection", protection);
        relay.start();
        for (id, family) in [(1, Family::V4), (2, Family::V6)] {
            let server = EchoServer::new(&net.server, family, 0);
            let grant = relay.add_user(id, server.address, &[]);
            assert_eq!(grant.header_key.is_some(), protection);
            let mut client = Client::new(&net.client, &grant);
            let before = relay.counters();
            let ping = client.send(b"");
            assert_eq!(client.receive(), ping);
            relay.expect_moved(&before, &[("uplink", "ping", 1)]);
            assert_eq!(server.count(), 0);
        }
    }
}

#[test]
fn a_packet_in_fragments_is_dropped_and_whole_ones_go_on() {
    if !can_run("relaying") {
        return;
    }
    let net = Trio::new();
    let relay = Relay::started(&net.relay);
    let server = EchoServer::new(&net.server, Family::V4, 0);
    let mut client = Client::new(&net.client, &relay.add_user(1, server.address, &[]));
    wait_until_resolved(&mut client);
    // The client's kernel cuts it into fragments. Only the first has a UDP header and so is the relay's; the others are
    // the host's, which gets no whole packet of them.
    let before = relay.counters();
    client.send(&[1; 3000]);
    relay.expect_moved(&before, &[("uplink", "fragment", 1)]);
    client.exchange(b"small");
}

/// Sends until the relay has found the way to the destination, and nothing is on the way any more.
pub fn wait_until_resolved(client: &mut Client) {
    wait::until("the way to the destination", 2 * PATIENCE, || {
        let number = client.pn.to_be_bytes();
        client.send(&number);
        // Answers to those sent before may come late.
        let answer = |patience| client.receive_within(patience).map(|answer| answer == number);
        let mut last = answer(Duration::from_millis(50))?;
        while !last {
            last = answer(Duration::from_millis(50))?;
        }
        Some(())
    });
}
