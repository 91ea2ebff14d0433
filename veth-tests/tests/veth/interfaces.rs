//! A relay between two networks: clients on one interface, destinations behind another.

use std::{net::SocketAddr, path::Path};

use veth_tests::{
    client::{Client, PATIENCE},
    echo::EchoServer,
    load::Load,
    namespace::{Namespace, can_run},
    net::{Family, Host, Net},
    relay::Relay,
    wait,
};

use crate::exchange::wait_until_resolved;

/// More than a client can send here.
const UNLIMITED: [&str; 4] = ["--rate", "10000000", "--burst", "1000000"];

/// A client and a relay on one network, the relay and a server on another. The relay's egress addresses are those of
/// the first, which the server reaches by way of the relay.
struct Between {
    client: Host,
    relay: Host,
    server: Namespace,
    // Behind the hosts: dropped after them.
    _near: Net,
    _far: Net,
}

impl Between {
    fn new() -> Self {
        let (mut near, mut far) = (Net::new(), Net::new());
        let client = near.host("client", 2);
        let relay = near.host("relay", 1);
        far.link(&relay, "eth1", "relay", 0x11, "");
        relay.ip("address add 198.51.100.1/24 dev eth1");
        relay.ip("address add 2001:db8:d::1/64 dev eth1 nodad");
        let server = Namespace::new("server");
        far.link(&server, "eth0", "server", 0x13, "");
        server.ip("address add 198.51.100.3/24 dev eth0");
        server.ip("address add 2001:db8:d::3/64 dev eth0 nodad");
        server.ip("route add 192.0.2.0/24 via 198.51.100.1");
        server.ip("route add 2001:db8::/64 via 2001:db8:d::1");
        client.wait_until_up();
        relay.wait_until_up();
        wait::until("the far links", PATIENCE, || {
            let up = |host: &Namespace, name: &str| host.ip(&format!("-br link show {name}")).contains(" UP ");
            (up(&relay, "eth1") && up(&server, "eth0")).then_some(())
        });
        Self {
            client,
            relay,
            server,
            _near: near,
            _far: far,
        }
    }

    fn servers(&self) -> [EchoServer; 2] {
        ["198.51.100.3:0", "[2001:db8:d::3]:0"].map(|address| {
            let address: SocketAddr = address.parse().expect("an address");
            EchoServer::inside(&self.server, address)
        })
    }
}

fn is_attached(relay: &Namespace, interface: &str) -> bool {
    relay.ip(&format!("link show {interface}")).contains("xdp")
}

#[test]
fn packets_cross_from_one_interface_to_another_and_back_also_through_crashes_and_upgrades() {
    if !can_run("relaying between two networks") {
        return;
    }
    let net = Between::new();
    let mut relay = Relay::new(&net.relay);
    relay.set("interface", vec!["eth0", "eth1"]);
    relay.persist();
    relay.start();
    let servers = net.servers();
    let mut clients: Vec<_> = (1..)
        .zip(&servers)
        .map(|(id, server)| Client::new(&net.client, &relay.add_user(id, server.address, &UNLIMITED)))
        .collect();
    clients.iter_mut().for_each(wait_until_resolved);
    for (client, server) in clients.iter_mut().zip(&servers) {
        client.exchange(b"across");
        let from = server.received().last().expect("it got it").from;
        assert_eq!(
            from.ip(),
            net.relay.address(if from.is_ipv4() { Family::V4 } else { Family::V6 })
        );
    }
    let status = relay.cli(&["status", "--json"]).json();
    assert_eq!(status["interface"], "eth0,eth1");
    assert_eq!(status["interfaces"][1]["name"], "eth1");
    assert_eq!(status["interfaces"][1]["mode"], "native");

    let loads: Vec<_> = clients.into_iter().map(Load::start).collect();
    let more = || loads.iter().for_each(|load| load.wait_for(100));
    more();
    relay.crash();
    more();
    relay.use_copy_of_binary();
    relay.start();
    more();
    assert!(relay.stop().success(), "{}", relay.log());
    more();
    relay.start();
    more();
    for load in loads {
        let (_client, report) = load.stop();
        assert!(report.sent >= 500, "hardly any load: {report:?}");
        assert_eq!(report.lost, [0; 0], "{report:?}");
        assert_eq!(report.spurious, [0; 0], "{report:?}");
    }
    relay.stop();
    assert!(is_attached(&net.relay, "eth0") && is_attached(&net.relay, "eth1"));
    relay.cli(&["detach"]).succeeded();
    assert!(!is_attached(&net.relay, "eth0") && !is_attached(&net.relay, "eth1"));
}

#[test]
fn a_reload_adds_and_removes_an_interface_and_a_destination_behind_none_of_them_is_told() {
    if !can_run("reloading with other interfaces") {
        return;
    }
    let net = Between::new();
    let mut relay = Relay::new(&net.relay);
    relay.start();
    let [server, _] = net.servers();
    let mut client = Client::new(&net.client, &relay.add_user(1, server.address, &[]));
    let before = relay.counters();
    client.send(b"nowhere");
    relay.expect_moved(&before, &[("uplink", "destination_unresolved", 1)]);
    wait::until("a word about the route", PATIENCE, || {
        let log = relay.log();
        (log.contains("leaves by eth1, not by eth0") && log.contains("`interface`")).then_some(())
    });

    relay.set("interface", vec!["eth0", "eth1"]);
    relay.cli(&["reload"]).succeeded();
    assert!(is_attached(&net.relay, "eth1"));
    wait_until_resolved(&mut client);
    client.exchange(b"across");

    relay.set("interface", vec!["eth0", "nowhere0"]);
    relay.cli(&["reload"]).failed(3, &["nowhere0"]);
    client.exchange(b"as before");

    relay.set("interface", "eth0");
    relay.cli(&["reload"]).succeeded();
    assert!(is_attached(&net.relay, "eth0") && !is_attached(&net.relay, "eth1"));
    let before = relay.counters();
    client.send(b"nowhere again");
    relay.expect_moved(&before, &[("uplink", "destination_unresolved", 1)]);
    relay.stop();
    assert!(!is_attached(&net.relay, "eth0"));
}

#[test]
fn a_start_with_fewer_interfaces_takes_the_program_off_the_others() {
    if !can_run("starting with fewer interfaces") {
        return;
    }
    let net = Between::new();
    let mut relay = Relay::new(&net.relay);
    relay.set("interface", vec!["eth0", "eth1"]);
    relay.persist();
    relay.start();
    relay.stop();
    let pins = relay.path("bpf/pins");
    let links = |folder: &Path| {
        let names = std::fs::read_dir(folder).expect("pins").flatten();
        names
            .filter(|entry| entry.file_name().to_string_lossy().starts_with("link-"))
            .count()
    };
    assert_eq!(links(&pins), 2);
    relay.set("interface", "eth1");
    relay.start();
    assert!(!is_attached(&net.relay, "eth0") && is_attached(&net.relay, "eth1"));
    assert_eq!(links(&pins), 1);
    relay.stop();
    relay.cli(&["detach"]).succeeded();
}

#[test]
fn a_start_that_cannot_have_one_of_its_interfaces_has_none() {
    if !can_run("starting on an interface that is taken") {
        return;
    }
    let net = Between::new();
    let taken = net
        .relay
        .run(|| packet_lab::pass::PassProgram::attach("eth1"))
        .expect("it is free");
    let mut relay = Relay::new(&net.relay);
    relay.set("interface", vec!["eth0", "eth1"]);
    let check = relay.cli(&["check", "--json"]);
    assert_eq!(check.code, 5, "{check:#?}");
    assert!(check.stdout.contains("eth1: program"), "{check:#?}");
    relay.run_to_end(&[]).failed(5, &["eth1"]);
    assert!(!is_attached(&net.relay, "eth0"));
    drop(taken);
    relay.start();
    assert!(is_attached(&net.relay, "eth0") && is_attached(&net.relay, "eth1"));
}
