//! Reading a frame: Ethernet, IPv4 or IPv6, UDP. Headers are etherparse's; lengths are believed only as far as the
//! document says.

use std::net::{IpAddr, SocketAddr};

use super::token::TOKEN_BYTES;
use etherparse::{
    EtherType, Ethernet2Header, Ethernet2HeaderSlice, IpNumber, Ipv4Header, Ipv4HeaderSlice, Ipv6FragmentHeader,
    Ipv6FragmentHeaderSlice, Ipv6Header, Ipv6HeaderSlice, UdpHeader, UdpHeaderSlice,
};

const END_OF_OPTIONS: u8 = 0;
const NO_OPERATION: u8 = 1;
const TOKEN_OPTION: u8 = 0x9e;

/// An option that should carry a token, but has not the length for it, or not in the header.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct NotWhole;

/// An IP header.
#[derive(Clone, Debug)]
pub enum Ip<'a> {
    /// IPv4, with its options.
    V4(Ipv4HeaderSlice<'a>),
    /// IPv6, and whether a Fragment header is between it and UDP.
    V6(Ipv6HeaderSlice<'a>, bool),
}

/// A frame that was found to carry a UDP header.
#[derive(Clone, Debug)]
pub struct Packet<'a> {
    frame: &'a [u8],
    ethernet: Ethernet2HeaderSlice<'a>,
    /// The IP header.
    pub ip: Ip<'a>,
    /// The UDP header.
    pub udp: UdpHeaderSlice<'a>,
    udp_at: usize,
}

impl<'a> Packet<'a> {
    /// Reads a frame up to its UDP header; `None` if there is none, or it belongs to a later fragment.
    #[must_use]
    pub fn read(frame: &'a [u8]) -> Option<Self> {
        let ethernet = Ethernet2HeaderSlice::from_slice(frame).ok()?;
        let after = &frame[Ethernet2Header::LEN..];
        let (ip, ip_bytes) = match ethernet.ether_type() {
            EtherType::IPV4 => read_ipv4(after),
            EtherType::IPV6 => read_ipv6(after),
            _ => None,
        }?;
        Some(Self {
            frame,
            ethernet,
            ip,
            udp: UdpHeaderSlice::from_slice(&after[ip_bytes..]).ok()?,
            udp_at: Ethernet2Header::LEN + ip_bytes,
        })
    }

    /// The whole frame.
    #[must_use]
    pub fn frame(&self) -> &'a [u8] {
        self.frame
    }

    /// Where the UDP payload starts.
    #[must_use]
    pub fn payload_at(&self) -> usize {
        self.udp_at + UdpHeader::LEN
    }

    /// The MAC address that it came from.
    #[must_use]
    pub fn source_mac(&self) -> [u8; 6] {
        self.ethernet.source()
    }

    /// The MAC address that it went to.
    #[must_use]
    pub fn destination_mac(&self) -> [u8; 6] {
        self.ethernet.destination()
    }

    /// Address and port of the sender.
    #[must_use]
    pub fn source(&self) -> SocketAddr {
        let address: IpAddr = match &self.ip {
            Ip::V4(header) => header.source_addr().into(),
            Ip::V6(header, _) => header.source_addr().into(),
        };
        SocketAddr::new(address, self.udp.source_port())
    }

    /// Address and port of the receiver.
    #[must_use]
    pub fn destination(&self) -> SocketAddr {
        let address: IpAddr = match &self.ip {
            Ip::V4(header) => header.destination_addr().into(),
            Ip::V6(header, _) => header.destination_addr().into(),
        };
        SocketAddr::new(address, self.udp.destination_port())
    }

    /// TTL or hop limit.
    #[must_use]
    pub fn hop_limit(&self) -> u8 {
        match &self.ip {
            Ip::V4(header) => header.ttl(),
            Ip::V6(header, _) => header.hop_limit(),
        }
    }

    /// Whether it is the first of several fragments, or may be.
    #[must_use]
    pub fn is_fragment(&self) -> bool {
        match &self.ip {
            Ip::V4(header) => header.more_fragments(),
            Ip::V6(_, has_fragment_header) => *has_fragment_header,
        }
    }

    /// The data of the IPv4 option with a token: `None` if there is none, the error if it is not 26 bytes in the header.
    #[must_use]
    pub fn token_option(&self) -> Option<Result<&'a [u8; TOKEN_BYTES], NotWhole>> {
        let Ip::V4(header) = &self.ip else { return None };
        let mut options = header.options();
        loop {
            match options {
                [TOKEN_OPTION, rest @ ..] => {
                    let token = rest.split_first().and_then(|(length, data)| {
                        let is_right = usize::from(*length) == 2 + TOKEN_BYTES;
                        data.first_chunk().filter(|_| is_right)
                    });
                    return Some(token.ok_or(NotWhole));
                }
                [NO_OPERATION, rest @ ..] => options = rest,
                // What follows cannot be told apart from here on.
                [] | [END_OF_OPTIONS, ..] | [_] | [_, 0 | 1, ..] => return None,
                [_, length, ..] => options = options.get(usize::from(*length)..).unwrap_or_default(),
            }
        }
    }

    /// The UDP payload; `None` if the headers claim more bytes than came, or contradict each other.
    #[must_use]
    pub fn payload(&self) -> Option<&'a [u8]> {
        let ip_end = Ethernet2Header::LEN + self.ip_packet()?.len();
        if self.udp_end() > ip_end {
            return None;
        }
        self.frame.get(self.udp_at + UdpHeader::LEN..self.udp_end())
    }

    /// The IP packet, from its header on, without what is behind it in the frame; `None` if the header claims more bytes
    /// than came.
    #[must_use]
    pub fn ip_packet(&self) -> Option<&'a [u8]> {
        let bytes = match &self.ip {
            Ip::V4(header) => usize::from(header.total_len()),
            Ip::V6(header, _) => Ipv6Header::LEN + usize::from(header.payload_length()),
        };
        self.frame.get(Ethernet2Header::LEN..)?.get(..bytes)
    }

    /// The frame from its IP header on.
    #[must_use]
    pub fn from_ip(&self) -> &'a [u8] {
        &self.frame[Ethernet2Header::LEN..]
    }

    /// The bytes of the frame behind the UDP datagram, if its payload is whole.
    #[must_use]
    pub fn behind(&self) -> &'a [u8] {
        self.frame.get(self.udp_end()..).unwrap_or_default()
    }

    fn udp_end(&self) -> usize {
        self.udp_at + usize::from(self.udp.length())
    }
}

/// Bytes of a frame that are counted, with so many in its first buffer: the others only where the length of the IP packet,
/// in the first, says that there are some.
#[must_use]
pub fn counted_bytes(frame: &[u8], first_buffer: usize) -> usize {
    let first = &frame[..first_buffer];
    let number = |at: usize| {
        let bytes = first.get(at..at + 2)?.try_into().ok()?;
        Some(usize::from(u16::from_be_bytes(bytes)))
    };
    let ip_at = Ethernet2Header::LEN;
    let end = match number(ip_at - 2).map(|kind| EtherType(kind as u16)) {
        Some(EtherType::IPV4) => number(ip_at + 2).map(|length| ip_at + length),
        Some(EtherType::IPV6) => number(ip_at + 4).map(|length| ip_at + Ipv6Header::LEN + length),
        _ => None,
    };
    if end.is_some_and(|end| end > first_buffer) {
        frame.len()
    } else {
        first_buffer
    }
}

/// Bytes of the IP packet that is sent with this payload to this address: without options and extension headers.
#[must_use]
pub fn sent_bytes(to: IpAddr, payload: &[u8]) -> usize {
    let header = match to {
        IpAddr::V4(_) => Ipv4Header::MIN_LEN,
        IpAddr::V6(_) => Ipv6Header::LEN,
    };
    header + UdpHeader::LEN + payload.len()
}

/// An IPv4 header that UDP follows, and its length.
fn read_ipv4(bytes: &[u8]) -> Option<(Ip<'_>, usize)> {
    let header = Ipv4HeaderSlice::from_slice(bytes).ok()?;
    let has_ports = header.protocol() == IpNumber::UDP && header.fragments_offset().value() == 0;
    let length = header.slice().len();
    has_ports.then_some((Ip::V4(header), length))
}

/// An IPv6 header that UDP follows, perhaps behind a Fragment header, and the length of both; none with an
/// IPv4-mapped address in it.
fn read_ipv6(bytes: &[u8]) -> Option<(Ip<'_>, usize)> {
    let header = Ipv6HeaderSlice::from_slice(bytes).ok()?;
    let addresses = [header.source_addr(), header.destination_addr()];
    if addresses.iter().any(|address| address.to_ipv4_mapped().is_some()) {
        return None;
    }
    match header.next_header() {
        IpNumber::UDP => Some((Ip::V6(header, false), Ipv6Header::LEN)),
        IpNumber::IPV6_FRAGMENTATION_HEADER => {
            let fragment = Ipv6FragmentHeaderSlice::from_slice(&bytes[Ipv6Header::LEN..]).ok()?;
            let has_ports = fragment.next_header() == IpNumber::UDP && fragment.fragment_offset().value() == 0;
            has_ports.then_some((Ip::V6(header, true), Ipv6Header::LEN + Ipv6FragmentHeader::LEN))
        }
        _ => None,
    }
}
