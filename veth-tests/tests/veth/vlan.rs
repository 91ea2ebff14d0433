//! Frames with VLAN tags, made and read by packet sockets: no host here has a VLAN device.

use std::{net::SocketAddr, time::Duration};

use packet_lab::{craft::UdpFrame, inspect::UdpFrameView, veth::PacketSocket};
use veth_tests::{
    client::PATIENCE,
    namespace::can_run,
    net::{Host, Trio},
    relay::Relay,
    wait,
};

const CLIENT: &str = "203.0.113.9:40000";
const LISTENER: &str = "192.0.2.1:4500";
const DESTINATION: &str = "198.51.100.7:5000";
/// Of the first user.
const EGRESS: &str = "192.0.2.1:10000";

const CLIENTS_TAG: [u8; 4] = [0x81, 0x00, 0x60, 42];
const DESTINATIONS_TAGS: [u8; 8] = [0x88, 0xa8, 0, 200, 0x81, 0x00, 0x01, 0x2c];

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

/// A packet socket of a host's.
struct Wire<'a> {
    host: &'a Host,
    socket: PacketSocket,
}

impl<'a> Wire<'a> {
    fn new(host: &'a Host) -> Self {
        let socket = host.run(|| PacketSocket::new("eth0"));
        let socket = socket.unwrap_or_else(|error| panic!("a packet socket in {}: {error}", host.name));
        Self { host, socket }
    }

    fn send(&self, relay: &Host, from: &str, to: &str, tags: &[u8], payload: &[u8]) {
        let mut frame = UdpFrame::new(address(from), address(to), payload);
        (frame.from_mac, frame.to_mac) = (self.host.mac(), relay.mac());
        let mut bytes = frame.build();
        bytes.splice(12..12, tags.iter().copied());
        self.socket.send(&bytes).expect("the link takes frames");
    }

    /// The next frame with these tags and this payload.
    fn receive(&mut self, tags: &[u8], payload: &[u8]) -> UdpFrameView {
        let what = format!("a frame with tags {tags:02x?} at {}", self.host.name);
        let received = self.receive_within(PATIENCE, tags, payload);
        received.unwrap_or_else(|| panic!("not within {PATIENCE:?}: {what}"))
    }

    fn receive_within(&mut self, patience: Duration, tags: &[u8], payload: &[u8]) -> Option<UdpFrameView> {
        wait::within(patience, || {
            let mut frame = self.socket.receive().expect("the link gives frames")?;
            let end = 12 + tags.len();
            if frame.get(12..end) != Some(tags) {
                return None;
            }
            frame.drain(12..end);
            UdpFrameView::read(&frame).ok().filter(|seen| seen.payload == payload)
        })
    }
}

#[test]
fn each_side_has_its_own_tags_behind_a_trunk_without_vlan_devices() {
    if !can_run("relaying frames with VLAN tags") {
        return;
    }
    let net = Trio::new();
    let mut relay = Relay::new(&net.relay);
    relay.set("vlan", true);
    let next_hop = toml::toml! {
        to = "198.51.100.0/24"
        mac = "02:00:00:00:00:03"
        vlan = ["802.1ad:200", 300]
    };
    relay.set("next_hop", vec![toml::Value::Table(next_hop)]);
    relay.start();
    let grant = relay.add_user(1, address(DESTINATION), &[]);
    let (mut client, mut server) = (Wire::new(&net.client), Wire::new(&net.server));

    client.send(&net.relay, CLIENT, LISTENER, &CLIENTS_TAG, &grant.seal(1, b""));
    let pong = client.receive(&CLIENTS_TAG, &grant.seal(1, b""));
    assert_eq!((pong.from, pong.to), (address(LISTENER), address(CLIENT)));

    client.send(&net.relay, CLIENT, LISTENER, &CLIENTS_TAG, &grant.seal(2, b"there"));
    let there = server.receive(&DESTINATIONS_TAGS, b"there");
    assert_eq!((there.from, there.to), (address(EGRESS), address(DESTINATION)));
    assert_eq!((there.from_mac, there.to_mac), (net.relay.mac(), net.server.mac()));
    assert!(there.has_right_checksums(), "{there}");

    server.send(&net.relay, DESTINATION, EGRESS, &DESTINATIONS_TAGS, b"and back");
    let back = client.receive(&CLIENTS_TAG, b"and back");
    assert_eq!((back.from, back.to), (address(LISTENER), address(CLIENT)));
    assert!(back.has_right_checksums(), "{back}");

    // The client goes on without a tag, and the next hop in another VLAN.
    relay.set(
        "next_hop",
        vec![toml::Value::Table(toml::toml! {
            to = "198.51.100.7"
            mac = "02:00:00:00:00:03"
            vlan = 42
        })],
    );
    relay.cli(&["reload"]).succeeded();
    let mut number = 2;
    wait::until("the tag of the other next hop", PATIENCE, || {
        number += 1;
        client.send(&net.relay, CLIENT, LISTENER, &[], &grant.seal(number, b"again"));
        server.receive_within(Duration::from_millis(200), &[0x81, 0x00, 0, 42], b"again")
    });
    server.send(&net.relay, DESTINATION, EGRESS, &[], b"and back again");
    client.receive(&[], b"and back again");
    assert_eq!(relay.packets("uplink", "relayed"), number - 1);
    assert_eq!(relay.packets("downlink", "relayed"), 2);
}

#[test]
fn check_tells_that_the_network_card_takes_tags_off_and_what_to_do() {
    if !can_run("checking an interface") {
        return;
    }
    let net = Trio::new();
    let mut relay = Relay::new(&net.relay);
    let vlan = |relay: &Relay<'_>| {
        let checked = relay.cli(&["check", "--json"]).json();
        let items = checked
            .as_array()
            .or_else(|| checked["items"].as_array())
            .expect("a list")
            .clone();
        items.into_iter().find(|item| item["name"] == "vlan")
    };
    net.relay.command("ethtool -K eth0 rxvlan on");
    assert_eq!(vlan(&relay), None, "tags are not looked at");
    relay.set("vlan", true);
    let told = vlan(&relay).expect("an item");
    assert_eq!(told["status"], "warning");
    assert!(
        told["found"]
            .as_str()
            .is_some_and(|found| found.contains("rx-vlan-hw-parse")),
        "{told}"
    );
    assert!(
        told["fix"]
            .as_str()
            .is_some_and(|fix| fix.contains("ethtool -K eth0 rxvlan off")),
        "{told}"
    );
    net.relay
        .command("ethtool -K eth0 rxvlan off rx-vlan-stag-hw-parse off");
    assert_eq!(vlan(&relay).expect("an item")["status"], "ok");
}
