//! ICMP errors from behind the relay, to sockets before it: they learn what happened to their packets.

use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use veth_tests::{
    client::{Client, PATIENCE, TOKEN_BYTES, receive},
    echo::EchoServer,
    namespace::can_run,
    net::{Family, Host, Net, Trio},
    relay::Relay,
    wait,
};

use crate::{
    errors::{discovering, drain, is_too_long, pairs},
    exchange::wait_until_resolved,
};

/// What the link takes behind the router.
const NARROW: usize = 1400;

#[test]
fn a_client_of_either_family_is_told_of_a_closed_port() {
    if !can_run("relaying") {
        return;
    }
    let net = Trio::new();
    let relay = Relay::started(&net.relay);
    for (user, (client, destination)) in (1..).zip(pairs()) {
        // The next hop is known once something has come back from there.
        let server = EchoServer::new(&net.server, destination, 0);
        let mut grant = relay.add_user(user, server.address, &[]);
        grant.relay.set_ip(net.relay.address(client));
        let mut client_end = Client::with_socket(&grant, net.client.udp(client, 0));
        client_end.socket.connect(grant.relay).unwrap();
        wait_until_resolved(&mut client_end);
        drain(&client_end.socket);
        drop(server);

        let before = relay.packets("downlink", "icmp_error");
        client_end
            .socket
            .set_read_timeout(Some(Duration::from_millis(100)))
            .unwrap();
        wait::until(
            "the kernel to tell the client that the port is closed",
            PATIENCE,
            || {
                let packet = client_end.seal(b"anybody there?");
                let sent = client_end.socket.send(&packet).map(drop);
                let heard = sent.and_then(|()| client_end.socket.recv(&mut [0; 64]).map(drop));
                match heard {
                    Err(error) if error.kind() == ErrorKind::ConnectionRefused => Some(()),
                    Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => None,
                    other => panic!("{client:?} to {destination:?}: {other:?}"),
                }
            },
        );
        assert!(relay.packets("downlink", "icmp_error") > before);
        assert!(relay.icmp_messages("uplink") > 0);
    }
}

#[test]
fn a_client_of_either_family_learns_the_path_mtu_behind_a_router() {
    if !can_run("relaying") {
        return;
    }
    for (client, destination) in pairs() {
        let mut net = Trio::new();
        let far = Far::behind_a_router_of(&mut net);
        let relay = Relay::started(&net.relay);
        let socket = far.host.udp_at(SocketAddr::new(far.address(destination), 0));
        let mut grant = relay.add_user(1, socket.local_addr().unwrap(), &[]);
        grant.relay.set_ip(net.relay.address(client));
        let mut client_end = Client::with_socket(&grant, discovering(&net.client, client));
        client_end.socket.connect(grant.relay).unwrap();
        wait::until("the first packet", PATIENCE, || {
            client_end.send(b"hello");
            receive(&socket, Duration::from_millis(50))
        });

        let first = vec![0x5a; 1500 - client.header_bytes().max(destination.header_bytes()) - TOKEN_BYTES];
        wait::until(
            "the kernel to tell the client of a packet that is too big",
            PATIENCE,
            || {
                let packet = client_end.seal(&first);
                is_too_long(client_end.socket.send(&packet)).then_some(())
            },
        );
        assert!(relay.packets("downlink", "icmp_error") > 0);
        assert_eq!(relay.packets("uplink", "too_big"), 0, "the relay's own link is wide");

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
        drain(&socket);
        client_end.send(&vec![2; most]);
        let (arrived, _) = receive(&socket, PATIENCE).expect("what fits arrives");
        assert_eq!(arrived, vec![2; most]);
    }
}

/// A host behind a router with a narrow link, 198.51.100.7 and 2001:db8:d::7.
struct Far {
    host: Host,
    _router: Host,
    _net: Net,
}

impl Far {
    fn behind_a_router_of(trio: &mut Trio) -> Self {
        let mut net = Net::new();
        let router = trio.net.host("router", 4);
        let host = net.host("far", 7);
        host.ip("address flush dev eth0 scope global");
        net.link(&router, "eth1", "router", 4, "");
        for (end, interface, number) in [(&host, "eth0", 7), (&router, "eth1", 1)] {
            end.ip(&format!("address add 198.51.100.{number}/24 dev {interface}"));
            end.ip(&format!("address add 2001:db8:d::{number}/64 dev {interface} nodad"));
        }
        router.ip(&format!("link set eth1 mtu {NARROW}"));
        router.command("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
        host.ip("route add default via 198.51.100.1");
        host.ip("route add default via 2001:db8:d::1");
        trio.relay.ip("route add 198.51.100.0/24 via 192.0.2.4");
        trio.relay.ip("route add 2001:db8:d::/64 via 2001:db8::4");
        host.wait_until_up();
        router.wait_until_up();
        Self {
            host,
            _router: router,
            _net: net,
        }
    }

    fn address(&self, family: Family) -> IpAddr {
        let address = match family {
            Family::V4 => "198.51.100.7",
            Family::V6 => "2001:db8:d::7",
        };
        address.parse().unwrap()
    }
}
