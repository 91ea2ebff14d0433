//! What a packet becomes when it is sent: built anew from the fields that the relay keeps and those that it sets.
//!
//! Checksums are adjusted, not computed: what was wrong with one when it came is wrong with it afterwards, by the same
//! amount. Two are computed: that of an IPv4 header that is made for a packet from IPv6, and that of a UDP datagram that
//! had none in IPv4 and goes to IPv6. A checksum is the sum of the 16-bit words that it covers, negated, in ones' complement, which is arithmetic
//! modulo 65,535; so the new one is the old one, plus the sum of all words before, minus that of all words after.

use std::net::{IpAddr, SocketAddr};

use etherparse::{
    EtherType, Ethernet2Header, IpNumber, Ipv4Header, Ipv4HeaderSlice, Ipv4Options, Ipv6FlowLabel, Ipv6Header,
    Ipv6HeaderSlice, UdpHeader,
};

use super::packet::{Ip, Packet};

const MODULUS: u64 = 0xffff;

/// Largest packet from IPv6 that IPv4 routers may fragment.
const MAX_FRAGMENTABLE_BYTES: u16 = 1260;

/// The first of IPv4's three flags has no meaning and travels as it came.
const RESERVED_FLAG: u8 = 0x80;
/// The byte of the IPv4 header with the flags.
const FLAGS: usize = 6;
const TTL: usize = 8;
const SOURCE: std::ops::Range<usize> = 12..16;
const DESTINATION: std::ops::Range<usize> = 16..20;
/// The bytes of the IPv4 header with its checksum.
const CHECKSUM: std::ops::Range<usize> = 10..12;

/// What the relay sets.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Outside {
    /// MAC address of the sender: the relay.
    pub from_mac: [u8; 6],
    /// MAC address of the receiver.
    pub to_mac: [u8; 6],
    /// Address and port of the sender.
    pub from: SocketAddr,
    /// Address and port of the receiver, of the same family as the sender's, which need not be the packet's.
    pub to: SocketAddr,
    /// TTL or hop limit.
    pub hop_limit: u8,
}

/// The frame that is sent for `packet`, with this payload and this outside. What was behind the UDP datagram in the
/// frame stays behind it.
#[must_use]
pub fn rewrite(packet: &Packet, new: &Outside, payload: &[u8]) -> Vec<u8> {
    let ethernet = Ethernet2Header {
        source: new.from_mac,
        destination: new.to_mac,
        ether_type: match new.to {
            SocketAddr::V4(_) => EtherType::IPV4,
            SocketAddr::V6(_) => EtherType::IPV6,
        },
    };
    let mut frame = ethernet.to_bytes().to_vec();
    let udp = udp(packet, new, payload);
    match (&packet.ip, new.from.ip(), new.to.ip()) {
        (Ip::V4(old), IpAddr::V4(from), IpAddr::V4(to)) => {
            frame.extend(ipv4(old, from.octets(), to.octets(), new.hop_limit, udp.length));
        }
        (Ip::V6(old, _), IpAddr::V6(from), IpAddr::V6(to)) => {
            frame.extend(ipv6(old, from.octets(), to.octets(), new.hop_limit, udp.length));
        }
        (Ip::V4(old), IpAddr::V6(from), IpAddr::V6(to)) => {
            frame.extend(ipv6_from_ipv4(
                old,
                from.octets(),
                to.octets(),
                new.hop_limit,
                udp.length,
            ));
        }
        (Ip::V6(old, _), IpAddr::V4(from), IpAddr::V4(to)) => {
            frame.extend(ipv4_from_ipv6(old, from.octets(), to.octets(), new.hop_limit, &udp));
        }
        _ => unreachable!("a packet has one family"),
    }
    frame.extend(udp.to_bytes());
    frame.extend(payload);
    frame.extend(packet.behind());
    frame
}

/// The frame that is sent for an IPv4 packet with this outside and everything else, options too, as it came.
#[must_use]
pub fn readdress(packet: &Packet, new: &Outside) -> Vec<u8> {
    let (Ip::V4(old), IpAddr::V4(from), IpAddr::V4(to)) = (&packet.ip, new.from.ip(), new.to.ip()) else {
        unreachable!("a token in an option is reflected in the family that it came in");
    };
    let ethernet = Ethernet2Header {
        source: new.from_mac,
        destination: new.to_mac,
        ether_type: EtherType::IPV4,
    };
    let mut header = old.slice().to_vec();
    header[TTL] = new.hop_limit;
    header[SOURCE].copy_from_slice(&from.octets());
    header[DESTINATION].copy_from_slice(&to.octets());
    header[CHECKSUM].fill(0);
    let checksum = (sum(old.slice()) + MODULUS - sum(&header)) % MODULUS;
    header[CHECKSUM].copy_from_slice(&(checksum as u16).to_be_bytes());
    let payload = packet.payload().unwrap_or_default();
    let udp = udp(packet, new, payload);
    [
        &ethernet.to_bytes()[..],
        &header,
        &udp.to_bytes(),
        &packet.from_ip()[header.len() + UdpHeader::LEN..],
    ]
    .concat()
}

fn ipv4(old: &Ipv4HeaderSlice, source: [u8; 4], destination: [u8; 4], hop_limit: u8, udp_bytes: u16) -> Vec<u8> {
    let header = Ipv4Header {
        source,
        destination,
        time_to_live: hop_limit,
        total_len: Ipv4Header::MIN_LEN_U16 + udp_bytes,
        options: Ipv4Options::new(),
        header_checksum: 0,
        ..old.to_header()
    };
    let mut bytes = header.to_bytes().to_vec();
    bytes[FLAGS] |= old.slice()[FLAGS] & RESERVED_FLAG;
    // The sum before is taken with the checksum, which is thereby the amount by which that is wrong, or 0.
    let wrong_by = sum(old.slice());
    let checksum = (wrong_by + MODULUS - sum(&bytes)) % MODULUS;
    bytes[CHECKSUM].copy_from_slice(&(checksum as u16).to_be_bytes());
    bytes
}

fn ipv6(old: &Ipv6HeaderSlice, source: [u8; 16], destination: [u8; 16], hop_limit: u8, udp_bytes: u16) -> Vec<u8> {
    let header = Ipv6Header {
        source,
        destination,
        hop_limit,
        payload_length: udp_bytes,
        next_header: IpNumber::UDP,
        ..old.to_header()
    };
    header.to_bytes().to_vec()
}

fn ipv6_from_ipv4(
    old: &Ipv4HeaderSlice,
    source: [u8; 16],
    destination: [u8; 16],
    hop_limit: u8,
    udp_bytes: u16,
) -> Vec<u8> {
    let header = Ipv6Header {
        source,
        destination,
        hop_limit,
        payload_length: udp_bytes,
        next_header: IpNumber::UDP,
        traffic_class: old.dcp().value() << 2 | old.ecn().value(),
        flow_label: Ipv6FlowLabel::ZERO,
    };
    header.to_bytes().to_vec()
}

fn ipv4_from_ipv6(
    old: &Ipv6HeaderSlice,
    source: [u8; 4],
    destination: [u8; 4],
    hop_limit: u8,
    udp: &UdpHeader,
) -> Vec<u8> {
    let total_len = Ipv4Header::MIN_LEN_U16 + udp.length;
    let mut header = Ipv4Header {
        source,
        destination,
        time_to_live: hop_limit,
        total_len,
        protocol: IpNumber::UDP,
        dscp: old.dscp(),
        ecn: old.ecn(),
        dont_fragment: total_len > MAX_FRAGMENTABLE_BYTES,
        identification: udp.checksum,
        ..Ipv4Header::default()
    };
    header.header_checksum = header.calc_header_checksum();
    header.to_bytes().to_vec()
}

fn udp(packet: &Packet, new: &Outside, payload: &[u8]) -> UdpHeader {
    let mut header = UdpHeader {
        source_port: new.from.port(),
        destination_port: new.to.port(),
        length: (UdpHeader::LEN + payload.len()) as u16,
        checksum: 0,
    };
    let (from, to) = (new.from.ip(), new.to.ip());
    // None stays none, but where IPv4 did without and IPv6 does not.
    if packet.udp.checksum() != 0 {
        let old = packet.udp.to_header();
        let old_payload = packet.payload().unwrap_or_default();
        let wrong_by = udp_sum(packet.source().ip(), packet.destination().ip(), &old, old_payload);
        let checksum = (wrong_by + MODULUS - udp_sum(from, to, &header, payload)) % MODULUS;
        // Zero would say that there is none; 65,535 is the same number.
        header.checksum = if checksum == 0 { 0xffff } else { checksum as u16 };
    } else if packet.source().is_ipv4() && to.is_ipv6() {
        let checksum = MODULUS - udp_sum(from, to, &header, payload);
        header.checksum = if checksum == 0 { 0xffff } else { checksum as u16 };
    }
    header
}

/// The sum that a UDP checksum covers (RFC 768; RFC 8200, section 8.1): pseudo-header, header, payload.
fn udp_sum(source: IpAddr, destination: IpAddr, header: &UdpHeader, payload: &[u8]) -> u64 {
    let address = |address| match address {
        IpAddr::V4(v4) => sum(&v4.octets()),
        IpAddr::V6(v6) => sum(&v6.octets()),
    };
    let pseudo_header = address(source) + address(destination) + u64::from(header.length) + u64::from(IpNumber::UDP.0);
    (pseudo_header + sum(&header.to_bytes()) + sum(payload)) % MODULUS
}

/// The sum of 16-bit words, the last one filled up with zero.
pub(super) fn sum(bytes: &[u8]) -> u64 {
    let words = bytes.chunks(2).map(|word| match *word {
        [high, low] => u64::from(u16::from_be_bytes([high, low])),
        [high] => u64::from(u16::from_be_bytes([high, 0])),
        _ => unreachable!("chunks of at most 2"),
    });
    words.sum::<u64>() % MODULUS
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::{
        craft::{Checksum, UdpFrame},
        inspect::UdpFrameView,
        world::address,
    };

    fn rewritten(frame: &[u8]) -> Vec<u8> {
        let packet = Packet::read(frame).unwrap();
        let v4 = packet.source().is_ipv4();
        let outside = Outside {
            from_mac: [2; 6],
            to_mac: [4; 6],
            from: address(if v4 { "192.0.2.2:10001" } else { "[2001:db8::2]:10001" }),
            to: address(if v4 {
                "198.51.100.7:5000"
            } else {
                "[2001:db8:d::7]:5000"
            }),
            hop_limit: 63,
        };
        rewrite(&packet, &outside, &packet.payload().unwrap()[4..])
    }

    #[rstest]
    #[case::ipv4("203.0.113.9:40000", "192.0.2.1:4500")]
    #[case::ipv6("[2001:db8:9::9]:40000", "[2001:db8::1]:4500")]
    fn a_right_checksum_stays_right_a_wrong_one_wrong_and_none_none(#[case] from: &str, #[case] to: &str) {
        let crafted = UdpFrame::new(address(from), address(to), *b"tokenpayload!");
        let right = rewritten(&crafted.build());
        let view = UdpFrameView::read(&right).unwrap();
        assert!(view.has_right_checksums(), "{view}");
        assert_eq!(view.payload, b"npayload!");
        for by in [1, 2, 0x1234, 0xfffe] {
            let wrong = rewritten(&crafted.clone().checksum(Checksum::Wrong(by)).build());
            let view = UdpFrameView::read(&wrong).unwrap();
            assert!(!view.has_right_checksums(), "wrong by {by}: {view}");
        }
        let none = rewritten(&crafted.checksum(Checksum::None).build());
        let packet = Packet::read(&none).unwrap();
        assert_eq!(packet.udp.checksum(), 0);
    }
}
