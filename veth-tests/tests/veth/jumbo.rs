//! Jumbo frames, which drivers receive in several buffers.

use std::net::SocketAddr;

use rstest::rstest;
use veth_tests::{
    client::{Client, PATIENCE, TOKEN_BYTES},
    echo::EchoServer,
    namespace::can_run,
    net::{Family, Trio},
    relay::Relay,
    wait,
};

use crate::{
    errors::{discovering, drain, is_too_long},
    exchange::wait_until_resolved,
};

/// What the links take.
const MTU: usize = 9000;
/// What a narrower link takes.
const ORDINARY_MTU: usize = 1500;
/// Fits the links in either family, with a token.
const PAYLOAD_BYTES: usize = 8_900;
const PACKETS: u64 = 100;

#[rstest]
fn jumbo_datagrams_cross_natively_without_loss(
    #[values(Family::V4, Family::V6)] near: Family,
    #[values(Family::V4, Family::V6)] far: Family,
) {
    if !can_run("relaying jumbo frames") {
        return;
    }
    let net = Trio::with_mtu(MTU);
    let relay = Relay::started(&net.relay);
    let server = EchoServer::new(&net.server, far, 0);
    let mut grant = relay.add_user(1, server.address, &[]);
    grant.relay = SocketAddr::new(net.relay.address(near), grant.relay.port());
    let mut client = Client::with_socket(&grant, discovering(&net.client, near));
    wait_until_resolved(&mut client);

    let (before, bytes) = (relay.counters(), relay.bytes("uplink", "relayed"));
    for nth in 0..PACKETS {
        let payload: Vec<u8> = (0..PAYLOAD_BYTES as u64).map(|i| (i * 7 + nth) as u8).collect();
        client.exchange(&payload);
    }
    relay.expect_moved(
        &before,
        &[("uplink", "relayed", PACKETS), ("downlink", "relayed", PACKETS)],
    );
    let frame = 14 + near.header_bytes() + TOKEN_BYTES + PAYLOAD_BYTES;
    assert_eq!(relay.bytes("uplink", "relayed") - bytes, PACKETS * frame as u64);
}

#[rstest]
fn a_client_on_a_jumbo_link_learns_what_an_ordinary_one_takes(
    #[values(Family::V4, Family::V6)] near: Family,
    #[values(Family::V4, Family::V6)] far: Family,
) {
    if !can_run("relaying jumbo frames") {
        return;
    }
    let net = Trio::with_mtu(MTU);
    let relay = Relay::started(&net.relay);
    let to = net.server.address(far);
    net.relay.ip(&format!("route add {to} dev eth0 mtu {ORDINARY_MTU}"));
    let server = EchoServer::new(&net.server, far, 0);
    let mut grant = relay.add_user(1, server.address, &[]);
    grant.relay = SocketAddr::new(net.relay.address(near), grant.relay.port());
    let mut client = Client::with_socket(&grant, discovering(&net.client, near));
    client.socket.connect(grant.relay).unwrap();
    wait_until_resolved(&mut client);

    let large = vec![0x5a; PAYLOAD_BYTES];
    wait::until("the kernel to tell the client what fits", PATIENCE, || {
        let packet = client.seal(&large);
        is_too_long(client.socket.send(&packet)).then_some(())
    });
    let told = ORDINARY_MTU - far.header_bytes() + near.header_bytes() + TOKEN_BYTES;
    let path = net.client.ip(&format!("route get {}", grant.relay.ip()));
    assert!(
        path.contains(&format!("mtu {told}")),
        "{near:?} to {far:?}: not {told}: {path}"
    );
    drain(&client.socket);
    client.exchange(&vec![2; ORDINARY_MTU - far.header_bytes()]);
}
