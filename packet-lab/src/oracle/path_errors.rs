//! ICMP errors about relayed packets: "Errors from the path" of the document. Headers are etherparse's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use etherparse::{
    EtherType, Ethernet2Header, Ethernet2HeaderSlice, Icmpv4Type, Icmpv6Type, IpHeaders, IpNumber, Ipv4Header,
    Ipv4HeaderSlice, Ipv6FlowLabel, Ipv6Header, Ipv6HeaderSlice, PacketBuilder, UdpHeader, UdpHeaderSlice,
};

use super::{errors::CONTROL, rewrite::sum};

const ICMP_BYTES: usize = 8;
/// Most bytes of a message that is passed on.
const MAX_BYTES: usize = 9216;
/// Reserved and Don't Fragment, of the byte of an IPv4 header that has the flags.
const KEPT_FLAGS: u8 = 0xc0;
const DONT_FRAGMENT: u8 = 0x40;
const FLAGS: usize = 6;
const CHECKSUM: std::ops::Range<usize> = 10..12;
/// A right checksum makes what it covers sum up to this.
const RIGHT: u64 = 0;

/// An ICMP error that quotes a UDP packet.
#[derive(Clone, Debug)]
pub struct PathError<'a> {
    hop_limit: u8,
    kind: u8,
    code: u8,
    /// The second word of the ICMP header.
    rest: u32,
    quote: Quote<'a>,
    udp: UdpHeaderSlice<'a>,
}

#[derive(Clone, Debug)]
enum Quote<'a> {
    V4(Ipv4HeaderSlice<'a>),
    V6(Ipv6HeaderSlice<'a>),
}

/// To whom an error is passed on.
#[derive(Clone, Copy, Debug)]
pub struct Receiver {
    /// MAC address of the relay.
    pub from_mac: [u8; 6],
    /// MAC address of the client.
    pub to_mac: [u8; 6],
    /// The listener that it speaks to.
    pub listener: SocketAddr,
    /// The client.
    pub client: SocketAddr,
    /// Bytes of its payloads that are taken off.
    pub taken_off: u16,
}

impl<'a> PathError<'a> {
    /// Reads a frame; `None` if it is no such error, or one of those that are left to the host. What is behind the first
    /// buffer is not read.
    #[must_use]
    pub fn read(frame: &'a [u8], first_buffer: usize) -> Option<Self> {
        let frame = &frame[..first_buffer];
        let ethernet = Ethernet2HeaderSlice::from_slice(frame).ok()?;
        let packet = &frame[Ethernet2Header::LEN..];
        match ethernet.ether_type() {
            EtherType::IPV4 => Self::read_v4(packet),
            EtherType::IPV6 => Self::read_v6(packet),
            _ => None,
        }
    }

    fn read_v4(packet: &'a [u8]) -> Option<Self> {
        let header = Ipv4HeaderSlice::from_slice(packet).ok()?;
        let is_fragment = header.more_fragments() || header.fragments_offset().value() != 0;
        if header.protocol() != IpNumber::ICMP || !header.options().is_empty() || is_fragment {
            return None;
        }
        let message = packet.get(Ipv4Header::MIN_LEN..usize::from(header.total_len()))?;
        if message.len() > MAX_BYTES || sum(message) != RIGHT {
            return None;
        }
        let (icmp, quoted) = message.split_first_chunk::<ICMP_BYTES>()?;
        let quote = Ipv4HeaderSlice::from_slice(quoted).ok()?;
        let has_ports = quote.protocol() == IpNumber::UDP && quote.fragments_offset().value() == 0;
        if !has_ports || !quote.options().is_empty() || quote.source() != header.destination() {
            return None;
        }
        let udp = UdpHeaderSlice::from_slice(&quoted[Ipv4Header::MIN_LEN..]).ok()?;
        Some(Self::new(header.ttl(), *icmp, Quote::V4(quote), udp))
    }

    fn read_v6(packet: &'a [u8]) -> Option<Self> {
        let header = Ipv6HeaderSlice::from_slice(packet).ok()?;
        if header.next_header() != IpNumber::IPV6_ICMP {
            return None;
        }
        let end = Ipv6Header::LEN + usize::from(header.payload_length());
        let message = packet.get(Ipv6Header::LEN..end)?;
        let addresses = sum(&header.source()) + sum(&header.destination());
        let pseudo_header = addresses + message.len() as u64 + u64::from(IpNumber::IPV6_ICMP.0);
        if message.len() > MAX_BYTES || (pseudo_header + sum(message)) % 0xffff != RIGHT {
            return None;
        }
        let (icmp, quoted) = message.split_first_chunk::<ICMP_BYTES>()?;
        let quote = Ipv6HeaderSlice::from_slice(quoted).ok()?;
        let ends = [quote.source_addr(), quote.destination_addr()];
        let is_mapped = ends.iter().any(|end| end.to_ipv4_mapped().is_some());
        if quote.next_header() != IpNumber::UDP || is_mapped || quote.source() != header.destination() {
            return None;
        }
        let udp = UdpHeaderSlice::from_slice(&quoted[Ipv6Header::LEN..]).ok()?;
        Some(Self::new(header.hop_limit(), *icmp, Quote::V6(quote), udp))
    }

    fn new(hop_limit: u8, icmp: [u8; ICMP_BYTES], quote: Quote<'a>, udp: UdpHeaderSlice<'a>) -> Self {
        let [kind, code, _, _, rest @ ..] = icmp;
        Self {
            hop_limit,
            kind,
            code,
            rest: u32::from_be_bytes(rest),
            quote,
            udp,
        }
    }

    /// Where the packet that it is about came from.
    #[must_use]
    pub fn quoted_source(&self) -> SocketAddr {
        let address: IpAddr = match &self.quote {
            Quote::V4(header) => header.source_addr().into(),
            Quote::V6(header) => header.source_addr().into(),
        };
        SocketAddr::new(address, self.udp.source_port())
    }

    /// Where that was to go.
    #[must_use]
    pub fn quoted_destination(&self) -> SocketAddr {
        let address: IpAddr = match &self.quote {
            Quote::V4(header) => header.destination_addr().into(),
            Quote::V6(header) => header.destination_addr().into(),
        };
        SocketAddr::new(address, self.udp.destination_port())
    }

    /// The frame with the message to a client; `None` if there is none for it.
    #[must_use]
    pub fn passed_on(&self, to: &Receiver) -> Option<Vec<u8>> {
        let hop_limit = self.hop_limit.checked_sub(1).filter(|&left| left > 0)?;
        if self.udp.length() <= 8 {
            return None;
        }
        let udp = UdpHeader {
            source_port: to.client.port(),
            destination_port: to.listener.port(),
            length: self.udp.length().checked_add(to.taken_off)?,
            checksum: 0,
        };
        let builder = PacketBuilder::ethernet2(to.from_mac, to.to_mac);
        let mut frame = Vec::new();
        match (to.listener.ip(), to.client.ip()) {
            (IpAddr::V4(listener), IpAddr::V4(client)) => {
                let (type_u8, code_u8, rest) = self.told_v4(to.taken_off)?;
                let outside = Ipv4Header {
                    dscp: CONTROL.try_into().ok()?,
                    dont_fragment: true,
                    time_to_live: hop_limit,
                    source: listener.octets(),
                    destination: client.octets(),
                    ..Ipv4Header::default()
                };
                let bytes5to8 = rest.to_be_bytes();
                let quote = [self.sent_v4(client, listener, udp.length)?, udp.to_bytes().to_vec()];
                builder
                    .ip(IpHeaders::Ipv4(outside, etherparse::Ipv4Extensions::default()))
                    .icmpv4(Icmpv4Type::Unknown {
                        type_u8,
                        code_u8,
                        bytes5to8,
                    })
                    .write(&mut frame, &quote.concat())
                    .ok()?;
            }
            (IpAddr::V6(listener), IpAddr::V6(client)) => {
                let (type_u8, code_u8, rest) = self.told_v6(to.taken_off)?;
                let outside = Ipv6Header {
                    hop_limit,
                    source: listener.octets(),
                    destination: client.octets(),
                    ..Ipv6Header::default()
                };
                let bytes5to8 = rest.to_be_bytes();
                let quote = [self.sent_v6(client, listener, udp.length), udp.to_bytes().to_vec()];
                builder
                    .ip(IpHeaders::Ipv6(outside, etherparse::Ipv6Extensions::default()))
                    .icmpv6(Icmpv6Type::Unknown {
                        type_u8,
                        code_u8,
                        bytes5to8,
                    })
                    .write(&mut frame, &quote.concat())
                    .ok()?;
            }
            _ => unreachable!("a client speaks to a listener of its family"),
        }
        Some(frame)
    }

    /// The IPv4 header of what the client had sent.
    fn sent_v4(&self, from: Ipv4Addr, to: Ipv4Addr, udp_bytes: u16) -> Option<Vec<u8>> {
        let mut header = Ipv4Header {
            source: from.octets(),
            destination: to.octets(),
            protocol: IpNumber::UDP,
            total_len: Ipv4Header::MIN_LEN_U16.checked_add(udp_bytes)?,
            dont_fragment: true,
            ..Ipv4Header::default()
        };
        let mut flags = DONT_FRAGMENT;
        match &self.quote {
            Quote::V4(quote) => {
                header.dscp = quote.dcp();
                header.ecn = quote.ecn();
                header.time_to_live = quote.ttl();
                header.identification = quote.identification();
                flags = quote.slice()[FLAGS] & KEPT_FLAGS;
            }
            Quote::V6(quote) => {
                header.dscp = quote.dscp();
                header.ecn = quote.ecn();
                header.time_to_live = quote.hop_limit();
            }
        }
        let mut bytes = header.to_bytes().to_vec();
        bytes[FLAGS] = flags;
        bytes[CHECKSUM].fill(0);
        let checksum = (0xffff - sum(&bytes)) % 0xffff;
        bytes[CHECKSUM].copy_from_slice(&(checksum as u16).to_be_bytes());
        Some(bytes)
    }

    /// The same of IPv6.
    fn sent_v6(&self, from: Ipv6Addr, to: Ipv6Addr, udp_bytes: u16) -> Vec<u8> {
        let (traffic_class, flow_label, hop_limit) = match &self.quote {
            Quote::V4(quote) => {
                let service = quote.dcp().value() << 2 | quote.ecn().value();
                (service, Ipv6FlowLabel::ZERO, quote.ttl())
            }
            Quote::V6(quote) => (quote.traffic_class(), quote.flow_label(), quote.hop_limit()),
        };
        let header = Ipv6Header {
            traffic_class,
            flow_label,
            payload_length: udp_bytes,
            next_header: IpNumber::UDP,
            hop_limit,
            source: from.octets(),
            destination: to.octets(),
        };
        header.to_bytes().to_vec()
    }

    /// Type, code and second word for a client of IPv4: the table's first and third column.
    fn told_v4(&self, taken_off: u16) -> Option<(u8, u8, u32)> {
        if self.tells_mtu() {
            let mtu = self.mtu_of_client(Ipv4Header::MIN_LEN, taken_off)?;
            return Some((3, 4, mtu.max(68)));
        }
        let is_v4 = matches!(self.quote, Quote::V4(_));
        match (is_v4, self.kind, self.code) {
            (true, 3 | 11, code) => Some((self.kind, code, 0)),
            (true, 12, code) if self.rest >> 24 < 28 => Some((12, code, self.rest & 0xff00_0000)),
            (false, 1, 0 | 2 | 3) => Some((3, 1, 0)),
            (false, 1, 1) => Some((3, 10, 0)),
            (false, 1, 4) => Some((3, 3, 0)),
            (false, 3, code) => Some((11, code, 0)),
            (false, 4, 1) => Some((3, 2, 0)),
            (false, 4, 0) => {
                let pointer = match self.rest {
                    0 => 0,
                    1 => 1,
                    4 | 5 => 2,
                    6 => 9,
                    7 => 8,
                    8..=23 => 12,
                    24..=39 => 16,
                    _ => return None,
                };
                Some((12, 0, pointer << 24))
            }
            _ => None,
        }
    }

    /// The same for a client of IPv6: the table's first and second column.
    fn told_v6(&self, taken_off: u16) -> Option<(u8, u8, u32)> {
        if self.tells_mtu() {
            let mtu = self.mtu_of_client(Ipv6Header::LEN, taken_off)?;
            return Some((2, 0, mtu.max(1280)));
        }
        let is_v6 = matches!(self.quote, Quote::V6(_));
        match (is_v6, self.kind, self.code) {
            (true, 1 | 3, code) => Some((self.kind, code, 0)),
            (true, 4, code) if self.rest < 48 => Some((4, code, self.rest)),
            (false, 3, 0 | 1 | 5..=8 | 11 | 12) => Some((1, 0, 0)),
            (false, 3, 9 | 10 | 13 | 15) => Some((1, 1, 0)),
            (false, 3, 3) => Some((1, 4, 0)),
            (false, 3, 2) => Some((4, 1, 6)),
            (false, 11, code) => Some((3, code, 0)),
            (false, 12, 0 | 2) => {
                let pointer = match self.rest >> 24 {
                    0 => 0,
                    1 => 1,
                    2 | 3 => 4,
                    8 => 7,
                    9 => 6,
                    12..=15 => 8,
                    16..=19 => 24,
                    _ => return None,
                };
                Some((4, 0, pointer))
            }
            _ => None,
        }
    }

    /// Whether it is about a packet that is too big.
    const fn tells_mtu(&self) -> bool {
        match &self.quote {
            Quote::V4(_) => self.kind == 3 && self.code == 4,
            Quote::V6(_) => self.kind == 2 && self.code == 0,
        }
    }

    /// The MTU to be told to a client whose headers have so many bytes, without the least; `None` if the message, which
    /// [tells one](Self::tells_mtu), contradicts itself.
    fn mtu_of_client(&self, header: usize, taken_off: u16) -> Option<u32> {
        let (mtu, own_header, least) = match &self.quote {
            Quote::V4(_) => (self.rest & 0xffff, Ipv4Header::MIN_LEN, 0),
            Quote::V6(_) => (self.rest, Ipv6Header::LEN, 1280),
        };
        let is_smaller = u64::from(mtu) < own_header as u64 + u64::from(self.udp.length());
        if mtu < least || !is_smaller {
            return None;
        }
        Some(mtu + u32::from(taken_off) + header as u32 - own_header as u32)
    }
}
