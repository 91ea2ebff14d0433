//! The host's own traffic passes untouched.

use std::net::{IpAddr, SocketAddr};

use etherparse::{
    ArpEthIpv4Packet, ArpOperation, EtherType, Icmpv4Type, Icmpv6Type, IpHeaders, Ipv6Extensions, Ipv6Header,
    Ipv6RawExtHeader, PacketBuilder, UdpHeader, VlanId,
};
use packet_lab::Verdict;
use packet_lab::craft::{UdpFrame, without_udp};
use relay_ebpf::verdict::{Direction, Reason};
use rstest::rstest;

use crate::scene::{
    Family::{self, V4, V6},
    START_NS, Scene,
    Tokens::{self, Plain, Protected},
};

const CLIENT_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0xc1];
const RELAY_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x01];

fn octets_v4(address: IpAddr) -> [u8; 4] {
    match address {
        IpAddr::V4(v4) => v4.octets(),
        IpAddr::V6(_) => [192, 0, 2, 1],
    }
}

fn octets_v6(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

fn arp(scene: &Scene) -> Vec<u8> {
    let packet = ArpEthIpv4Packet {
        operation: ArpOperation::REQUEST,
        sender_mac: CLIENT_MAC,
        sender_ipv4: octets_v4(scene.client.ip()),
        target_mac: [0; 6],
        target_ipv4: octets_v4(scene.listener.ip()),
    };
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(CLIENT_MAC, [0xff; 6])
        .arp(packet.into())
        .write(&mut frame)
        .unwrap();
    frame
}

fn tcp(scene: &Scene) -> Vec<u8> {
    let tcp = etherparse::TcpHeader::new(scene.client.port(), scene.listener.port(), 1, 65_535);
    let bytes = [&tcp.to_bytes()[..], &scene.grant.seal(1, b"payload")].concat();
    without_udp(scene.client.ip(), scene.listener.ip(), 6, &bytes)
}

fn icmp(scene: &Scene) -> Vec<u8> {
    let echo = etherparse::IcmpEchoHeader { id: 1, seq: 1 };
    let ethernet = PacketBuilder::ethernet2(CLIENT_MAC, RELAY_MAC);
    let mut frame = Vec::new();
    if scene.family == V4 {
        ethernet
            .ipv4(octets_v4(scene.client.ip()), octets_v4(scene.listener.ip()), 64)
            .icmpv4(Icmpv4Type::EchoRequest(echo))
            .write(&mut frame, b"ping")
    } else {
        ethernet
            .ipv6(octets_v6(scene.client.ip()), octets_v6(scene.listener.ip()), 64)
            .icmpv6(Icmpv6Type::EchoRequest(echo))
            .write(&mut frame, b"ping")
    }
    .unwrap();
    frame
}

fn another_port(scene: &Scene) -> Vec<u8> {
    let mut frame = scene.uplink(1, b"payload");
    frame.to.set_port(4_501);
    frame.build()
}

fn another_address(scene: &Scene) -> Vec<u8> {
    let mut frame = scene.uplink(1, b"payload");
    // The second egress address listens nowhere.
    let address = scene.lab.world().egress_of(scene.family == V4)[1];
    frame.to = SocketAddr::new(address, frame.to.port());
    frame.build()
}

fn an_egress_address_below_its_ports(scene: &Scene) -> Vec<u8> {
    let mut frame = scene.downlink(b"answer");
    frame.to.set_port(9_999);
    frame.build()
}

fn an_egress_address_above_its_ports(scene: &Scene) -> Vec<u8> {
    let mut frame = scene.downlink(b"answer");
    frame.to.set_port(10_008);
    frame.build()
}

fn from_the_listener(scene: &Scene) -> Vec<u8> {
    UdpFrame::new(scene.listener, scene.client, scene.grant.seal(1, b"payload")).build()
}

fn a_later_fragment(scene: &Scene) -> Vec<u8> {
    // What looks like ports in it is payload.
    let mut frame = scene.uplink(1, b"payload").fragment(64, true);
    let looks_like_udp = UdpHeader::without_ipv4_checksum(scene.client.port(), scene.listener.port(), 40).unwrap();
    frame.payload = [&looks_like_udp.to_bytes()[..], &frame.payload].concat();
    frame.build()
}

fn tagged_with_a_vlan(scene: &Scene) -> Vec<u8> {
    let ip = PacketBuilder::ethernet2(CLIENT_MAC, RELAY_MAC).single_vlan(VlanId::try_new(42).unwrap());
    let sealed = scene.grant.seal(1, b"payload");
    let (from, to) = (scene.client, scene.listener);
    let step = if scene.family == V4 {
        ip.ipv4(octets_v4(from.ip()), octets_v4(to.ip()), 64)
    } else {
        ip.ipv6(octets_v6(from.ip()), octets_v6(to.ip()), 64)
    };
    let mut frame = Vec::new();
    step.udp(from.port(), to.port()).write(&mut frame, &sealed).unwrap();
    frame
}

fn behind_hop_by_hop_options(scene: &Scene) -> Vec<u8> {
    with_extensions(
        scene,
        Ipv6Extensions {
            hop_by_hop_options: Some(Ipv6RawExtHeader::new_raw(17.into(), &[5, 2, 0, 0, 1, 0]).unwrap()),
            ..Ipv6Extensions::default()
        },
    )
}

fn behind_destination_options(scene: &Scene) -> Vec<u8> {
    with_extensions(
        scene,
        Ipv6Extensions {
            destination_options: Some(Ipv6RawExtHeader::new_raw(17.into(), &[1, 4, 0, 0, 0, 0]).unwrap()),
            ..Ipv6Extensions::default()
        },
    )
}

fn with_extensions(scene: &Scene, extensions: Ipv6Extensions) -> Vec<u8> {
    let header = Ipv6Header {
        hop_limit: 64,
        source: octets_v6(scene.client.ip()),
        destination: octets_v6(scene.listener.ip()),
        ..Ipv6Header::default()
    };
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(CLIENT_MAC, RELAY_MAC)
        .ip(IpHeaders::Ipv6(header, extensions))
        .udp(scene.client.port(), scene.listener.port())
        .write(&mut frame, &scene.grant.seal(1, b"payload"))
        .unwrap();
    frame
}

fn of_the_wrong_version(scene: &Scene) -> Vec<u8> {
    let mut frame = scene.uplink(1, b"payload").build();
    frame[14] ^= 0xf0;
    frame
}

fn with_a_header_too_short_for_ipv4(scene: &Scene) -> Vec<u8> {
    let mut frame = scene.uplink(1, b"payload").build();
    if scene.family == V4 {
        frame[14] = 0x44;
    } else {
        frame.truncate(14 + 39);
    }
    frame
}

fn of_another_ethertype(scene: &Scene) -> Vec<u8> {
    let mut frame = scene.uplink(1, b"payload").build();
    frame[12..14].copy_from_slice(&EtherType::WAKE_ON_LAN.0.to_be_bytes());
    frame
}

fn an_ethernet_header_alone(scene: &Scene) -> Vec<u8> {
    scene.uplink(1, b"payload").build()[..14].to_vec()
}

#[rstest]
#[case::arp(arp)]
#[case::tcp_to_the_listeners_port(tcp)]
#[case::icmp(icmp)]
#[case::another_port(another_port)]
#[case::another_address(another_address)]
#[case::an_egress_address_below_its_ports(an_egress_address_below_its_ports)]
#[case::an_egress_address_above_its_ports(an_egress_address_above_its_ports)]
#[case::from_the_listener(from_the_listener)]
#[case::a_later_fragment(a_later_fragment)]
#[case::tagged_with_a_vlan(tagged_with_a_vlan)]
#[case::behind_hop_by_hop_options(behind_hop_by_hop_options)]
#[case::behind_destination_options(behind_destination_options)]
#[case::of_the_wrong_version(of_the_wrong_version)]
#[case::with_a_header_too_short(with_a_header_too_short_for_ipv4)]
#[case::of_another_ethertype(of_another_ethertype)]
#[case::an_ethernet_header_alone(an_ethernet_header_alone)]
fn a_packet_that_is_not_the_relays_passes_untouched(
    #[values(V4, V6)] family: Family,
    #[values(Plain, Protected)] tokens: Tokens,
    #[case] frame: fn(&Scene) -> Vec<u8>,
) {
    let mut scene = Scene::with(family, tokens, |world| world.drop_unmatched = true);
    let frame = frame(&scene);
    let observed = scene
        .send_at(START_NS, &frame)
        .expect(Verdict::Pass, Direction::Uplink, Reason::Unrelated);
    assert_eq!(observed.expect_no_state_change().output, frame);
}

#[rstest]
fn an_ipv6_fragment_that_is_the_whole_packet_is_dropped_as_one() {
    let mut scene = Scene::new(V6, Plain);
    let atomic = scene.uplink(1, b"payload").fragment(0, false);
    let _ = scene.send(&atomic).expect_dropped(Reason::Fragment);
}
