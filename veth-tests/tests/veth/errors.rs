//! What the relay says in ICMP, to sockets that listen: they learn how large their packets may be.

use std::{
    io,
    net::UdpSocket,
    time::{Duration, Instant},
};

use nix::errno::Errno;
use rustix::net::sockopt::{Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, set_ip_mtu_discover, set_ipv6_mtu_discover};
use veth_tests::{
    client::{Client, PATIENCE, TOKEN_BYTES, receive},
    echo::EchoServer,
    namespace::can_run,
    net::{Family, Host, Trio},
    relay::Relay,
    wait,
};

use crate::exchange::wait_until_resolved;

/// What the link takes between the relay and the host that cannot be sent much.
const NARROW: usize = 1400;

#[test]
fn a_client_learns_the_path_mtu_towards_a_destination_of_either_family() {
    if !can_run("relaying") {
        return;
    }
    for (client, destination) in pairs() {
        let net = Trio::new();
        let to = net.server.address(destination);
        let relay = Relay::started(&net.relay);
        net.relay.ip(&format!("route add {to} dev eth0 mtu {NARROW}"));
        let server = EchoServer::new(&net.server, destination, 0);
        let mut grant = relay.add_user(1, server.address, &[]);
        grant.relay.set_ip(net.relay.address(client));
        let mut client_end = Client::with_socket(&grant, discovering(&net.client, client));
        client_end.socket.connect(grant.relay).unwrap();
        wait_until_resolved(&mut client_end);

        let before = relay.packets("uplink", "too_big");
        let first = vec![0x5a; 1500 - client.header_bytes() - TOKEN_BYTES];
        wait::until(
            "the kernel to tell the client of a packet that is too big",
            PATIENCE,
            || {
                let packet = client_end.seal(&first);
                is_too_long(client_end.socket.send(&packet)).then_some(())
            },
        );
        assert!(relay.packets("uplink", "too_big") > before);
        assert!(relay.icmp_messages("uplink") > 0);

        // Exactly what passes: neither a packet that would, nor one that would not, is judged otherwise.
        let told = NARROW - destination.header_bytes() + client.header_bytes() + TOKEN_BYTES;
        let most = told - client.header_bytes() - TOKEN_BYTES;
        drain(&client_end.socket);
        let path = net.client.ip(&format!("route get {}", grant.relay.ip()));
        assert!(
            path.contains(&format!("mtu {told}")),
            "{client:?} to {destination:?}: not {told}: {path}"
        );
        let packet = client_end.seal(&vec![1; most + 1]);
        assert!(
            is_too_long(client_end.socket.send(&packet)),
            "{client:?} to {destination:?}"
        );
        client_end.exchange(&vec![2; most]);
    }
}

#[test]
fn a_destination_learns_the_path_mtu_towards_a_client_of_either_family() {
    if !can_run("relaying") {
        return;
    }
    for (client, destination) in pairs() {
        // What comes by a link is no larger than what goes by it, and IPv6's header is the longer one.
        if (client, destination) == (Family::V4, Family::V6) {
            continue;
        }
        let net = Trio::new();
        net.relay.ip(&format!("link set eth0 mtu {NARROW}"));
        let relay = Relay::started(&net.relay);
        let server = discovering(&net.server, destination);
        let mut grant = relay.add_user(1, server.local_addr().unwrap(), &[]);
        grant.relay.set_ip(net.relay.address(client));
        let mut client_end = Client::with_socket(&grant, net.client.udp(client, 0));
        let egress = wait::until("the first packet", PATIENCE, || {
            client_end.send(b"hello");
            receive(&server, Duration::from_millis(50)).map(|(_, from)| from)
        });
        server.connect(egress).unwrap();

        // The kernel lets the room of a tag pass, so that the relay gets what it cannot send on.
        let first = vec![0x5a; NARROW + 4 - destination.header_bytes()];
        wait::until(
            "the kernel to tell the destination of a packet that is too big",
            PATIENCE,
            || is_too_long(server.send(&first)).then_some(()),
        );
        assert!(relay.packets("downlink", "too_big") > 0);
        assert!(relay.icmp_messages("downlink") > 0);

        let told = NARROW - client.header_bytes() + destination.header_bytes();
        let most = told - destination.header_bytes();
        drain(&server);
        let path = net.server.ip(&format!("route get {}", egress.ip()));
        assert!(
            path.contains(&format!("mtu {told}")),
            "{destination:?} to {client:?}: not {told}: {path}"
        );
        assert!(
            is_too_long(server.send(&vec![1; most + 1])),
            "{destination:?} to {client:?}"
        );
        server.send(&vec![2; most]).unwrap();
        assert_eq!(client_end.receive(), vec![2; most]);
    }
}

#[test]
fn a_relay_whose_icmp_is_off_tells_nobody() {
    if !can_run("relaying") {
        return;
    }
    let net = Trio::new();
    let mut relay = Relay::new(&net.relay);
    relay.set("limits.icmp_per_second", 0);
    relay.start();
    net.relay.ip(&format!("route add 192.0.2.3/32 dev eth0 mtu {NARROW}"));
    let server = EchoServer::new(&net.server, Family::V4, 0);
    let grant = relay.add_user(1, server.address, &[]);
    let mut client = Client::with_socket(&grant, discovering(&net.client, Family::V4));
    wait_until_resolved(&mut client);
    let before = relay.counters();
    for _ in 0..5 {
        client.send(&[0x5a; 1448]);
    }
    relay.expect_moved(&before, &[("uplink", "too_big", 5)]);
    assert_eq!(relay.icmp_messages("uplink"), 0);
    client.exchange(b"as before");
}

pub fn pairs() -> impl Iterator<Item = (Family, Family)> {
    Family::ALL
        .into_iter()
        .flat_map(|client| Family::ALL.map(|destination| (client, destination)))
}

/// A socket that has nothing fragmented, and is told what the path takes.
pub fn discovering(host: &Host, family: Family) -> UdpSocket {
    let socket = host.udp(family, 0);
    match family {
        Family::V4 => set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::DO),
        Family::V6 => set_ipv6_mtu_discover(&socket, Ipv6PathMtuDiscovery::DO),
    }
    .unwrap();
    socket
}

/// Whether the kernel says that a packet does not fit the path; then nothing was sent.
pub fn is_too_long(sent: io::Result<usize>) -> bool {
    match sent {
        Ok(_) => false,
        Err(error) if error.raw_os_error() == Some(Errno::EMSGSIZE as i32) => true,
        Err(error) => panic!("sending: {error}"),
    }
}

/// Takes what has arrived, and errors that are left, until nothing comes for a moment.
pub fn drain(socket: &UdpSocket) {
    let end = Instant::now() + PATIENCE;
    socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    while Instant::now() < end {
        match socket.recv(&mut [0; 2048]) {
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => return,
            _ => {}
        }
    }
    panic!("packets without end");
}
