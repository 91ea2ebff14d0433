//! What surrounds a relay changes or is unusual: next hops that move, NAT that rebinds, two relays on one machine,
//! several queues.

use std::{net::SocketAddr, time::Duration};

use veth_tests::{
    client::{Client, PATIENCE},
    echo::EchoServer,
    namespace::{Namespace, can_run},
    net::{Family, Net, Trio},
    raw,
    relay::Relay,
    wait,
};

use crate::exchange::wait_until_resolved;

#[test]
fn traffic_resumes_when_the_next_hop_gets_another_mac_address() {
    if !can_run("relaying") {
        return;
    }
    let net = Trio::new();
    let relay = Relay::started(&net.relay);
    let servers = Family::ALL.map(|family| EchoServer::new(&net.server, family, 0));
    let mut clients: Vec<_> = (0..2)
        .map(|id| Client::new(&net.client, &relay.add_user(id, servers[id as usize].address, &[])))
        .collect();
    clients.iter_mut().for_each(wait_until_resolved);

    // As a host does that takes over the address of another one: it announces itself.
    net.server.command("sysctl -qw net.ipv4.conf.eth0.arp_notify=1");
    net.server.command("sysctl -qw net.ipv6.conf.eth0.ndisc_notify=1");
    net.server.ip("link set eth0 address 02:00:00:00:ff:03");
    for client in &mut clients {
        wait_until_resolved(client);
        client.exchange(b"at the new place");
    }
}

#[test]
fn traffic_resumes_when_a_next_hop_that_was_away_comes_back() {
    if !can_run("relaying") {
        return;
    }
    let net = Trio::new();
    // Nobody has the destination's address yet.
    let relay = Relay::started(&net.relay);
    let to: SocketAddr = "192.0.2.200:7".parse().unwrap();
    let mut client = Client::new(&net.client, &relay.add_user(1, to, &[]));
    let before = relay.counters();
    client.send(b"anybody?");
    relay.expect_moved(&before, &[("uplink", "destination_unresolved", 1)]);

    net.server.ip("address add 192.0.2.200/24 dev eth0");
    let _server = EchoServer::inside(&net.server, to);
    wait_until_resolved(&mut client);
    client.exchange(b"here it is");
}

#[test]
fn a_destination_behind_a_router_is_reached_and_followed_to_another_router() {
    if !can_run("relaying") {
        return;
    }
    let mut net = Trio::new();
    let routers = [("router-a", 11), ("router-b", 12)].map(|(name, number)| net.net.host(name, number));
    // One far server, behind both of them.
    let far = Namespace::new("far");
    far.ip("link add bridge type bridge");
    far.ip("link set bridge up");
    far.ip("address add 198.51.100.9/24 dev bridge");
    for (router, number) in routers.iter().zip([1, 2]) {
        far.ip(&format!(
            "link add port{number} type veth peer name far0 netns {}",
            router.name
        ));
        far.ip(&format!("link set port{number} up master bridge"));
        router.command("ethtool -K far0 tx off");
        router.ip(&format!("address add 198.51.100.{number}/24 dev far0"));
        router.ip("link set far0 up");
        router.command("sysctl -qw net.ipv4.ip_forward=1");
        router.wait_until_up();
    }
    far.command("ethtool -K bridge tx off");
    far.ip("route add 192.0.2.0/24 via 198.51.100.1");
    net.relay.ip("route add 198.51.100.0/24 via 192.0.2.11");

    let relay = Relay::started(&net.relay);
    let server = EchoServer::inside(&far, "198.51.100.9:7".parse().unwrap());
    let mut client = Client::new(&net.client, &relay.add_user(1, server.address, &[]));
    wait_until_resolved(&mut client);
    let through = |router: usize| {
        let text = routers[router].ip("-s -j link show far0");
        let links: serde_json::Value = serde_json::from_str(&text).unwrap();
        links[0]["stats64"]["tx"]["packets"].as_u64().unwrap()
    };
    net.relay.ip("route replace 198.51.100.0/24 via 192.0.2.12");
    wait::until("the packets to take the other router", 2 * PATIENCE, || {
        let before = through(1);
        for _ in 0..10 {
            client.exchange(b"which way?");
        }
        (through(1) >= before + 10).then_some(())
    });
}

#[test]
fn two_relays_on_one_machine_know_nothing_of_each_other() {
    if !can_run("relaying") {
        return;
    }
    let nets = [Trio::new(), Trio::new()];
    let relays: Vec<_> = nets.iter().map(|net| Relay::started(&net.relay)).collect();
    let servers: Vec<_> = nets
        .iter()
        .map(|net| EchoServer::new(&net.server, Family::V4, 7))
        .collect();
    let mut clients: Vec<_> = (0..2)
        .map(|i| Client::new(&nets[i].client, &relays[i].add_user(1, servers[i].address, &[])))
        .collect();
    assert_eq!(clients[0].grant.slot, clients[1].grant.slot);
    clients.iter_mut().for_each(wait_until_resolved);

    let before: Vec<_> = relays.iter().map(Relay::counters).collect();
    let grants = [clients[1].grant.clone(), clients[0].grant.clone()];
    for (client, other) in clients.iter_mut().zip(grants) {
        client.exchange(b"hello");
        // The grant of the other relay's user is nothing here.
        client.send_raw(&other.seal(client.pn, b"hello"));
    }
    for (relay, before) in relays.iter().zip(&before) {
        relay.expect_moved(
            before,
            &[
                ("uplink", "relayed", 1),
                ("downlink", "relayed", 1),
                ("uplink", "unknown_session", 1),
            ],
        );
    }
    drop(clients);
    // One ends; the other goes on.
    let mut relays = relays.into_iter();
    let (first, second) = (relays.next().unwrap(), relays.next().unwrap());
    drop(first);
    let grant = second.add_user(2, servers[1].address, &[]);
    let mut client = Client::new(&nets[1].client, &grant);
    wait_until_resolved(&mut client);
}

#[test]
fn answers_follow_a_client_behind_a_nat_that_rebinds() {
    if !can_run("relaying") {
        return;
    }
    let mut net = Net::new();
    let [nat, relay_host, server_host] = [("nat", 5), ("relay", 1), ("server", 3)].map(|(name, n)| net.host(name, n));
    // The client's own network, behind the NAT.
    let home = Namespace::new("home");
    home.ip(&format!("link add eth0 type veth peer name home0 netns {}", nat.name));
    home.command("ethtool -K eth0 tx off");
    nat.command("ethtool -K home0 tx off");
    home.ip("address add 10.0.0.2/24 dev eth0");
    home.ip("link set eth0 up");
    nat.ip("address add 10.0.0.1/24 dev home0");
    nat.ip("link set home0 up");
    home.ip("route add default via 10.0.0.1");
    nat.command("sysctl -qw net.ipv4.ip_forward=1");
    for host in [&nat, &relay_host, &server_host] {
        host.wait_until_up();
    }
    masquerade(&nat, "20000-20999");

    let relay = Relay::started(&relay_host);
    let server = EchoServer::new(&server_host, Family::V4, 0);
    let grant = relay.add_user(1, server.address, &[]);
    let socket = home.run(|| std::net::UdpSocket::bind("10.0.0.2:0")).unwrap();
    let mut client = Client::with_socket(&grant, socket);
    wait_until_resolved(&mut client);
    let seen = client_address(&relay);
    assert_eq!(seen.ip(), nat.address(Family::V4));
    assert!((20000..=20999).contains(&seen.port()), "{seen}");

    // The provider gives the NAT another address, and with the old one all its mappings are gone.
    masquerade(&nat, "30000-30999");
    nat.ip("address del 192.0.2.5/24 dev eth0");
    nat.ip("address add 192.0.2.50/24 dev eth0");
    wait_until_resolved(&mut client);
    client.exchange(b"from behind another address");
    let seen = client_address(&relay);
    assert_eq!(seen.ip().to_string(), "192.0.2.50");
    assert!((30000..=30999).contains(&seen.port()), "{seen}");
    // What the destination says now arrives without the client having to speak first.
    let egress = server.received()[0].from;
    server.send(egress, b"hello there");
    assert_eq!(client.receive(), b"hello there");
}

/// Lets all that leave the NAT have its address and a port of this range.
fn masquerade(nat: &Namespace, ports: &str) {
    let rules = format!(
        "table ip nat; flush table ip nat; table ip nat {{ chain post {{ \
         type nat hook postrouting priority srcnat; oifname \"eth0\" udp dport 4500 masquerade to :{ports}; }}; }}"
    );
    let output = nat.try_command(&["nft", &rules]);
    assert!(output.status.success(), "{output:?}");
}

/// Where the relay thinks that user 1 is.
fn client_address(relay: &Relay<'_>) -> SocketAddr {
    let user = relay.cli(&["user", "show", "1", "--json"]).json();
    let address = user["client"].as_str().unwrap_or_else(|| panic!("no client: {user}"));
    address.parse().unwrap()
}

#[test]
fn one_users_packets_on_several_queues_are_all_relayed_and_replays_all_dropped() {
    if !can_run("relaying") {
        return;
    }
    let mut net = Net::new();
    let relay_host = net.host_with_queues("relay", 1, 2);
    let [client_host, server_host] = [("client", 2), ("server", 3)].map(|(name, n)| net.host(name, n));
    for host in [&relay_host, &client_host, &server_host] {
        host.wait_until_up();
    }
    let relay = Relay::started(&relay_host);
    let server = EchoServer::new(&server_host, Family::V4, 0);
    let grant = relay.add_user(1, server.address, &["--rate", "1000000", "--burst", "100000"]);
    wait_until_resolved(&mut Client::new(&client_host, &grant));

    let before = (relay.counters(), server.count());
    // The switch spreads flows over queues: many sockets, one grant, one sequence of packet numbers between them, and
    // each packet twice, from two sockets.
    let mut client = Client::new(&client_host, &grant);
    let sockets: Vec<_> = (0..16).map(|_| client_host.udp(Family::V4, 0)).collect();
    let rounds = 50;
    for round in 0..rounds {
        let first = server.count();
        for i in 0..sockets.len() {
            let packet = client.seal(&[round as u8; 100]);
            sockets[i].send_to(&packet, grant.relay).unwrap();
            sockets[(i + 7) % sockets.len()].send_to(&packet, grant.relay).unwrap();
        }
        server.wait_for(first + sockets.len());
    }
    let packets = (rounds * sockets.len()) as u64;
    relay.expect_moved(
        &before.0,
        &[
            ("uplink", "relayed", packets),
            ("uplink", "replayed", packets),
            ("downlink", "relayed", packets),
        ],
    );
    assert_eq!((server.count() - before.1) as u64, packets);
    let statistics = relay_host.command("ethtool -S eth0");
    for queue in 0..2 {
        let name = format!("rx_queue_{queue}_xdp_packets: ");
        let value = statistics.lines().find_map(|line| line.trim().strip_prefix(&name));
        let packets: u64 = value.unwrap_or_else(|| panic!("{statistics}")).parse().unwrap();
        assert!(packets > 100, "queue {queue} has seen {packets} packets");
    }
}

#[test]
fn the_hosts_own_traffic_and_a_users_are_both_served() {
    if !can_run("relaying") {
        return;
    }
    let net = Trio::new();
    let relay = Relay::started(&net.relay);
    let server = EchoServer::new(&net.server, Family::V4, 0);
    let mut client = Client::new(&net.client, &relay.add_user(1, server.address, &[]));
    wait_until_resolved(&mut client);
    // A service of the relay's host, on a port that is neither the listener's nor an egress port.
    let _own = EchoServer::new(&net.relay, Family::V4, 9000);
    let visitor = net.client.udp(Family::V4, 0);
    visitor.send_to(b"host?", "192.0.2.1:9000").unwrap();
    let (answer, _) = veth_tests::client::receive(&visitor, PATIENCE).expect("the host answers");
    assert_eq!(answer, b"host?");
    for family in Family::ALL {
        raw::ping(&net.client, net.relay.address(family));
    }
    client.exchange(b"relay?");
    assert_eq!(client.receive_within(Duration::from_millis(20)), None);
}

#[test]
fn traffic_resumes_when_the_relays_link_was_down() {
    if !can_run("relaying") {
        return;
    }
    let net = Trio::new();
    let relay = Relay::started(&net.relay);
    let servers = Family::ALL.map(|family| EchoServer::new(&net.server, family, 0));
    let mut clients: Vec<_> = (0..2)
        .map(|id| Client::new(&net.client, &relay.add_user(id, servers[id as usize].address, &[])))
        .collect();
    clients.iter_mut().for_each(wait_until_resolved);
    net.relay.ip("link set eth0 down");
    clients[0].send(b"anybody?");
    net.relay.ip("link set eth0 up");
    // The kernel has forgotten the IPv6 address with the link.
    net.relay.ip("address replace 2001:db8::1/64 dev eth0 nodad");
    clients.iter_mut().for_each(wait_until_resolved);
}

#[test]
fn a_relay_whose_interface_is_gone_does_not_say_that_it_is_ready() {
    if !can_run("relaying") {
        return;
    }
    let net = Trio::new();
    let mut relay = Relay::started(&net.relay);
    net.relay.ip("link del eth0");
    wait::until("the relay to notice", 2 * PATIENCE, || {
        let ready = relay.get("/ready").is_some_and(|(status, _)| status == 200);
        (!relay.is_running() || !ready).then_some(())
    });
}
