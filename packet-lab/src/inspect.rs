//! Reading frames with pnet's packet views, which share no code with the relay or with what made the frames, and
//! checking their checksums anew.

mod compare;
mod dissect;
mod outline;

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use pnet_packet::{
    Packet as _,
    ethernet::{EtherTypes, EthernetPacket},
    ip::IpNextHeaderProtocols,
    ipv4::{self, Ipv4Flags, Ipv4Packet},
    ipv6::Ipv6Packet,
    udp::{self, UdpPacket},
};

pub use compare::{Difference, compare};
pub use dissect::{Dissection, Layer};
pub use outline::{Outline, Part};

/// Why a frame is not one whole UDP packet.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Unreadable {
    /// Too short for its headers, or shorter than they say.
    #[error("cut short: the {0} needs more bytes than there are")]
    CutShort(&'static str),
    /// Neither IPv4 nor IPv6.
    #[error("EtherType {0:#06x}")]
    NotIp(u16),
    /// Another protocol than UDP.
    #[error("IP protocol {0}")]
    NotUdp(u8),
    /// A part of a packet.
    #[error("a fragment")]
    Fragment,
}

/// What a checksum field says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Sum {
    /// The checksum of what it covers.
    Right(u16),
    /// Zero: none was computed.
    None,
    /// Something else.
    Wrong {
        /// What the field says.
        found: u16,
        /// What it should say.
        right: u16,
    },
}

impl Sum {
    fn judge(found: u16, right: u16) -> Self {
        if found == right {
            Self::Right(found)
        } else {
            Self::Wrong { found, right }
        }
    }
}

impl fmt::Display for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Right(sum) => write!(f, "{sum:#06x} right"),
            Self::None => write!(f, "none"),
            Self::Wrong { found, right } => write!(f, "{found:#06x} WRONG, right is {right:#06x}"),
        }
    }
}

/// The IP header, apart from addresses and hop limit.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum IpHeader {
    /// IPv4.
    V4 {
        /// Identification.
        identification: u16,
        /// "Don't fragment".
        dont_fragment: bool,
        /// Bytes of options.
        option_bytes: usize,
        /// The header's checksum.
        checksum: Sum,
    },
    /// IPv6.
    V6 {
        /// Flow label.
        flow_label: u32,
    },
}

/// A frame that is one whole UDP packet.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct UdpFrameView {
    /// MAC address of the sender.
    pub from_mac: [u8; 6],
    /// MAC address of the receiver.
    pub to_mac: [u8; 6],
    /// Address and port of the sender.
    pub from: SocketAddr,
    /// Address and port of the receiver.
    pub to: SocketAddr,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// Type of service or traffic class.
    pub tos: u8,
    /// The rest of the IP header.
    pub ip: IpHeader,
    /// The UDP checksum.
    pub checksum: Sum,
    /// The UDP payload.
    pub payload: Vec<u8>,
    /// Bytes of the frame after the IP packet.
    pub trailing: usize,
}

impl UdpFrameView {
    /// Reads a frame.
    ///
    /// # Errors
    /// If it is not one whole UDP packet.
    pub fn read(frame: &[u8]) -> Result<Self, Unreadable> {
        let ethernet = EthernetPacket::new(frame).ok_or(Unreadable::CutShort("Ethernet header"))?;
        match ethernet.get_ethertype() {
            EtherTypes::Ipv4 => Self::read_ipv4(&ethernet),
            EtherTypes::Ipv6 => Self::read_ipv6(&ethernet),
            other => Err(Unreadable::NotIp(other.0)),
        }
    }

    fn read_ipv4(ethernet: &EthernetPacket<'_>) -> Result<Self, Unreadable> {
        let bytes = ethernet.payload();
        let packet = Ipv4Packet::new(bytes).ok_or(Unreadable::CutShort("IPv4 header"))?;
        let header_bytes = usize::from(packet.get_header_length()) * 4;
        let total = usize::from(packet.get_total_length());
        if header_bytes < 20 {
            return Err(Unreadable::CutShort("IPv4 header"));
        }
        let transport = bytes
            .get(header_bytes..total)
            .ok_or(Unreadable::CutShort("IPv4 packet"))?;
        if packet.get_next_level_protocol() != IpNextHeaderProtocols::Udp {
            return Err(Unreadable::NotUdp(packet.get_next_level_protocol().0));
        }
        if packet.get_fragment_offset() != 0 || packet.get_flags() & Ipv4Flags::MoreFragments != 0 {
            return Err(Unreadable::Fragment);
        }
        let (source, destination) = (packet.get_source(), packet.get_destination());
        let ip = IpHeader::V4 {
            identification: packet.get_identification(),
            dont_fragment: packet.get_flags() & Ipv4Flags::DontFragment != 0,
            option_bytes: header_bytes - 20,
            checksum: Sum::judge(packet.get_checksum(), ipv4::checksum(&packet)),
        };
        let around = Around {
            source: source.into(),
            destination: destination.into(),
            hop_limit: packet.get_ttl(),
            tos: packet.get_dscp() << 2 | packet.get_ecn(),
            ip,
            trailing: bytes.len() - total,
        };
        around.read_udp(ethernet, transport, |udp| {
            udp::ipv4_checksum(udp, &source, &destination)
        })
    }

    fn read_ipv6(ethernet: &EthernetPacket<'_>) -> Result<Self, Unreadable> {
        let bytes = ethernet.payload();
        let packet = Ipv6Packet::new(bytes).ok_or(Unreadable::CutShort("IPv6 header"))?;
        let total = Ipv6Packet::minimum_packet_size() + usize::from(packet.get_payload_length());
        let transport = bytes
            .get(Ipv6Packet::minimum_packet_size()..total)
            .ok_or(Unreadable::CutShort("IPv6 packet"))?;
        match packet.get_next_header() {
            IpNextHeaderProtocols::Udp => {}
            IpNextHeaderProtocols::Ipv6Frag => return Err(Unreadable::Fragment),
            other => return Err(Unreadable::NotUdp(other.0)),
        }
        let (source, destination) = (packet.get_source(), packet.get_destination());
        let around = Around {
            source: source.into(),
            destination: destination.into(),
            hop_limit: packet.get_hop_limit(),
            tos: packet.get_traffic_class(),
            ip: IpHeader::V6 {
                flow_label: packet.get_flow_label(),
            },
            trailing: bytes.len() - total,
        };
        around.read_udp(ethernet, transport, |udp| {
            udp::ipv6_checksum(udp, &source, &destination)
        })
    }

    /// Whether every checksum is right, or none where that is allowed: a zero UDP checksum over IPv4.
    #[must_use]
    pub fn has_right_checksums(&self) -> bool {
        match self.ip {
            IpHeader::V4 { checksum, .. } => {
                matches!(checksum, Sum::Right(_)) && matches!(self.checksum, Sum::Right(_) | Sum::None)
            }
            IpHeader::V6 { .. } => matches!(self.checksum, Sum::Right(_)),
        }
    }
}

/// What surrounds a UDP datagram.
struct Around {
    source: IpAddr,
    destination: IpAddr,
    hop_limit: u8,
    tos: u8,
    ip: IpHeader,
    trailing: usize,
}

impl Around {
    fn read_udp(
        self,
        ethernet: &EthernetPacket<'_>,
        transport: &[u8],
        checksum: impl Fn(&UdpPacket<'_>) -> u16,
    ) -> Result<UdpFrameView, Unreadable> {
        let cut_short = Unreadable::CutShort("UDP datagram");
        let length = usize::from(UdpPacket::new(transport).ok_or(cut_short.clone())?.get_length());
        let datagram = transport.get(..length).ok_or(cut_short.clone())?;
        let udp = UdpPacket::new(datagram).ok_or(cut_short)?;
        let sum = match (udp.get_checksum(), checksum(&udp)) {
            (0, _) => Sum::None,
            // RFC 768: a checksum that comes to zero travels as all ones.
            (found, 0) => Sum::judge(found, 0xffff),
            (found, right) => Sum::judge(found, right),
        };
        Ok(UdpFrameView {
            from_mac: ethernet.get_source().octets(),
            to_mac: ethernet.get_destination().octets(),
            from: SocketAddr::new(self.source, udp.get_source()),
            to: SocketAddr::new(self.destination, udp.get_destination()),
            hop_limit: self.hop_limit,
            tos: self.tos,
            ip: self.ip,
            checksum: sum,
            payload: udp.payload().to_vec(),
            trailing: self.trailing,
        })
    }
}

impl fmt::Display for UdpFrameView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "ethernet {} > {}", mac(self.from_mac), mac(self.to_mac))?;
        match self.ip {
            IpHeader::V4 {
                identification,
                dont_fragment,
                option_bytes,
                checksum,
            } => {
                write!(
                    f,
                    "ipv4 {} > {}, ttl {}, tos {:#04x}",
                    self.from.ip(),
                    self.to.ip(),
                    self.hop_limit,
                    self.tos
                )?;
                write!(
                    f,
                    ", id {identification:#06x}{}",
                    if dont_fragment { " df" } else { "" }
                )?;
                writeln!(f, ", {option_bytes} bytes of options, checksum {checksum}")?;
            }
            IpHeader::V6 { flow_label } => {
                write!(
                    f,
                    "ipv6 {} > {}, hop limit {}",
                    self.from.ip(),
                    self.to.ip(),
                    self.hop_limit
                )?;
                writeln!(f, ", class {:#04x}, flow label {flow_label:#07x}", self.tos)?;
            }
        }
        let (from, to, bytes) = (self.from.port(), self.to.port(), self.payload.len());
        write!(
            f,
            "udp {from} > {to}, {bytes} bytes of payload, checksum {}",
            self.checksum
        )?;
        if self.trailing != 0 {
            write!(f, "\n{} bytes after the packet", self.trailing)?;
        }
        Ok(())
    }
}

/// A MAC address as people write it.
#[must_use]
pub fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}

/// The headers of a frame, a line each, as far as they can be read.
#[must_use]
pub fn headers(frame: &[u8]) -> Vec<String> {
    let dissection = Dissection::of(frame);
    let mut lines: Vec<String> = dissection.layers.iter().map(ToString::to_string).collect();
    if dissection.trailing > 0 {
        lines.push(format!("{} bytes behind the packet", dissection.trailing));
    }
    lines
}

/// A frame for people: its headers, or why they cannot be read, and all of its bytes, each line indented.
#[must_use]
pub fn describe(frame: &[u8]) -> String {
    let headers = match UdpFrameView::read(frame) {
        Ok(view) => view.to_string(),
        Err(unreadable) => unreadable.to_string(),
    };
    let headers = headers.lines().map(|line| format!("  {line}\n"));
    let bytes = frame.chunks(16).enumerate().map(|(row, chunk)| {
        let hex: Vec<String> = chunk.chunks(2).map(hex::encode).collect();
        format!("  {:04x}: {}\n", 16 * row, hex.join(" "))
    });
    headers.chain(bytes).collect()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::craft::{Checksum, UdpFrame, flip_bit};

    fn frame(from: &str, to: &str) -> UdpFrame {
        UdpFrame::new(from.parse().unwrap(), to.parse().unwrap(), *b"payload")
    }

    #[rstest]
    #[case::ipv4("203.0.113.9:40000", "192.0.2.1:4500")]
    #[case::ipv6("[2001:db8:9::9]:40000", "[2001:db8::1]:4500")]
    fn what_etherparse_writes_pnet_reads(#[case] from: &str, #[case] to: &str) {
        let mut crafted = frame(from, to).hop_limit(9).tos(0xb9);
        crafted.flow_label = 0x12345;
        let view = UdpFrameView::read(&crafted.build()).unwrap();
        assert_eq!((view.from, view.to), (crafted.from, crafted.to));
        assert_eq!((view.from_mac, view.to_mac), (crafted.from_mac, crafted.to_mac));
        assert_eq!((view.hop_limit, view.tos), (9, 0xb9));
        assert_eq!(view.payload, crafted.payload);
        assert!(view.has_right_checksums(), "{view}");
    }

    #[rstest]
    #[case::ipv4("203.0.113.9:40000", "192.0.2.1:4500")]
    #[case::ipv6("[2001:db8:9::9]:40000", "[2001:db8::1]:4500")]
    fn a_wrong_checksum_and_none_are_told_apart(#[case] from: &str, #[case] to: &str) {
        let wrong = frame(from, to).checksum(Checksum::Wrong(1)).build();
        let view = UdpFrameView::read(&wrong).unwrap();
        assert!(matches!(view.checksum, Sum::Wrong { .. }), "{view}");
        let none = UdpFrameView::read(&frame(from, to).checksum(Checksum::None).build()).unwrap();
        assert_eq!(none.checksum, Sum::None);
        assert_eq!(none.has_right_checksums(), none.from.is_ipv4(), "IPv6 needs a checksum");
    }

    #[test]
    fn every_flipped_bit_of_an_ipv4_packet_is_noticed() {
        let right = frame("203.0.113.9:40000", "192.0.2.1:4500").build();
        for bit in 8 * 14..8 * right.len() {
            let mut flipped = right.clone();
            flip_bit(&mut flipped, bit);
            let noticed = UdpFrameView::read(&flipped).is_ok_and(|view| !view.has_right_checksums());
            let unreadable = UdpFrameView::read(&flipped).is_err();
            assert!(noticed || unreadable, "bit {bit}");
        }
    }

    #[test]
    fn fragments_and_packets_cut_short_are_not_read() {
        let whole = frame("203.0.113.9:40000", "192.0.2.1:4500");
        let bytes = whole.build();
        for length in 0..bytes.len() {
            assert!(UdpFrameView::read(&bytes[..length]).is_err(), "{length} bytes");
        }
        assert_eq!(
            UdpFrameView::read(&whole.clone().fragment(0, true).build()),
            Err(Unreadable::Fragment)
        );
        assert_eq!(
            UdpFrameView::read(&whole.fragment(8, false).build()),
            Err(Unreadable::Fragment)
        );
    }
}
