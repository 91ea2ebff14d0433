//! Ethernet frames that carry UDP over IPv4 or IPv6.

use std::net::{IpAddr, SocketAddr};

use etherparse::{
    Icmpv4Type, Icmpv6Type, IpFragOffset, IpHeaders, IpNumber, Ipv4Header, Ipv4Options, Ipv6Extensions,
    Ipv6FragmentHeader, Ipv6Header, PacketBuilder, PacketBuilderStep,
};

const ETHERNET_BYTES: usize = 14;
const FRAGMENT_HEADER_BYTES: usize = 8;

/// What the UDP checksum says.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Checksum {
    /// What it should.
    #[default]
    Right,
    /// Nothing: zero.
    None,
    /// The right one, changed by adding this (not 0) to it.
    Wrong(u16),
}

/// Which part of a larger packet this is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Fragment {
    /// Where it belongs, in units of 8 bytes. A fragment with an offset carries no UDP header.
    pub offset: u16,
    /// Whether more follow.
    pub more: bool,
}

/// A frame to be built. Everything that is not set is what an ordinary sender would send.
#[derive(Clone, Debug)]
pub struct UdpFrame {
    /// MAC address of the sender.
    pub from_mac: [u8; 6],
    /// MAC address of the receiver.
    pub to_mac: [u8; 6],
    /// Address and port of the sender.
    pub from: SocketAddr,
    /// Address and port of the receiver, of the same family.
    pub to: SocketAddr,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// Type of service or traffic class.
    pub tos: u8,
    /// Identification of the IPv4 packet, or of the IPv6 fragment.
    pub identification: u16,
    /// IPv4's "don't fragment".
    pub dont_fragment: bool,
    /// IPv4 options, padded by the caller to a multiple of 4 bytes, at most 40.
    pub options: Vec<u8>,
    /// IPv6 flow label.
    pub flow_label: u32,
    /// Set for a fragment.
    pub fragment: Option<Fragment>,
    /// The UDP checksum.
    pub checksum: Checksum,
    /// The UDP payload; for a fragment with an offset, the IP payload.
    pub payload: Vec<u8>,
}

impl UdpFrame {
    /// An ordinary frame.
    ///
    /// # Panics
    /// If the addresses are of two families.
    #[must_use]
    pub fn new(from: SocketAddr, to: SocketAddr, payload: impl Into<Vec<u8>>) -> Self {
        assert_eq!(from.is_ipv4(), to.is_ipv4(), "a packet has one family: {from}, {to}");
        Self {
            from_mac: [0x02, 0, 0, 0, 0, 0xc1],
            to_mac: [0x02, 0, 0, 0, 0, 0x01],
            from,
            to,
            hop_limit: 64,
            tos: 0,
            identification: 0x1d0c,
            dont_fragment: true,
            options: Vec::new(),
            flow_label: 0,
            fragment: None,
            checksum: Checksum::Right,
            payload: payload.into(),
        }
    }

    /// With another MAC address of the sender.
    #[must_use]
    pub const fn from_mac(mut self, mac: [u8; 6]) -> Self {
        self.from_mac = mac;
        self
    }

    /// With this TTL or hop limit.
    #[must_use]
    pub const fn hop_limit(mut self, hop_limit: u8) -> Self {
        self.hop_limit = hop_limit;
        self
    }

    /// With this type of service or traffic class.
    #[must_use]
    pub const fn tos(mut self, tos: u8) -> Self {
        self.tos = tos;
        self
    }

    /// With these IPv4 options.
    #[must_use]
    pub fn options(mut self, options: impl Into<Vec<u8>>) -> Self {
        self.options = options.into();
        self
    }

    /// With this UDP checksum.
    #[must_use]
    pub const fn checksum(mut self, checksum: Checksum) -> Self {
        self.checksum = checksum;
        self
    }

    /// As a fragment.
    #[must_use]
    pub const fn fragment(mut self, offset: u16, more: bool) -> Self {
        self.fragment = Some(Fragment { offset, more });
        self.dont_fragment = false;
        self
    }

    /// Where the UDP header starts in the frame.
    #[must_use]
    pub fn udp_offset(&self) -> usize {
        let ip = if self.from.is_ipv4() {
            Ipv4Header::MIN_LEN + self.options.len()
        } else if self.fragment.is_some() {
            Ipv6Header::LEN + FRAGMENT_HEADER_BYTES
        } else {
            Ipv6Header::LEN
        };
        ETHERNET_BYTES + ip
    }

    /// The bytes of the frame.
    ///
    /// # Panics
    /// If a field is larger than its place in the packet.
    #[must_use]
    pub fn build(&self) -> Vec<u8> {
        let builder = self.ip_step();
        let mut frame = Vec::new();
        if self.fragment.is_some_and(|fragment| fragment.offset != 0) {
            builder
                .write(&mut frame, IpNumber::UDP, &self.payload)
                .expect("the payload fits a packet");
            return frame;
        }
        builder
            .udp(self.from.port(), self.to.port())
            .write(&mut frame, &self.payload)
            .expect("the payload fits a packet");
        self.set_checksum(&mut frame);
        frame
    }

    fn ip_step(&self) -> PacketBuilderStep<IpHeaders> {
        let ip = match (self.from.ip(), self.to.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => self.ipv4(source.octets(), destination.octets()),
            (IpAddr::V6(source), IpAddr::V6(destination)) => self.ipv6(source.octets(), destination.octets()),
            _ => unreachable!("a packet has one family"),
        };
        PacketBuilder::ethernet2(self.from_mac, self.to_mac).ip(ip)
    }

    fn ipv4(&self, source: [u8; 4], destination: [u8; 4]) -> IpHeaders {
        let fragment = self.fragment.unwrap_or(Fragment { offset: 0, more: false });
        let header = Ipv4Header {
            dscp: (self.tos >> 2).try_into().expect("6 bits"),
            ecn: (self.tos & 3).try_into().expect("2 bits"),
            identification: self.identification,
            dont_fragment: self.dont_fragment,
            more_fragments: fragment.more,
            fragment_offset: offset(fragment),
            time_to_live: self.hop_limit,
            source,
            destination,
            options: Ipv4Options::try_from(&self.options[..]).expect("options of a multiple of 4, at most 40 bytes"),
            ..Ipv4Header::default()
        };
        IpHeaders::Ipv4(header, etherparse::Ipv4Extensions::default())
    }

    fn ipv6(&self, source: [u8; 16], destination: [u8; 16]) -> IpHeaders {
        let header = Ipv6Header {
            traffic_class: self.tos,
            flow_label: self.flow_label.try_into().expect("20 bits of flow label"),
            hop_limit: self.hop_limit,
            source,
            destination,
            ..Ipv6Header::default()
        };
        let fragment = self.fragment.map(|fragment| {
            let identification = u32::from(self.identification);
            Ipv6FragmentHeader::new(IpNumber::UDP, offset(fragment), fragment.more, identification)
        });
        let extensions = Ipv6Extensions {
            fragment,
            ..Ipv6Extensions::default()
        };
        IpHeaders::Ipv6(header, extensions)
    }

    fn set_checksum(&self, frame: &mut [u8]) {
        let at = self.udp_offset() + 6;
        let right = u16::from_be_bytes([frame[at], frame[at + 1]]);
        let checksum = match self.checksum {
            Checksum::Right => right,
            Checksum::None => 0,
            // Never the zero that means "none".
            Checksum::Wrong(by) => (u32::from(right - 1) + u32::from(by)).rem_euclid(0xffff) as u16 + 1,
        };
        frame[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
    }
}

fn offset(fragment: Fragment) -> IpFragOffset {
    IpFragOffset::try_new(fragment.offset).expect("13 bits of fragment offset")
}

/// A frame with an IP packet of another protocol, right in everything else.
#[must_use]
pub fn without_udp(from: IpAddr, to: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let shape = UdpFrame::new(SocketAddr::new(from, 0), SocketAddr::new(to, 0), []);
    let mut frame = Vec::new();
    shape
        .ip_step()
        .write(&mut frame, IpNumber(protocol), payload)
        .expect("the payload fits a packet");
    frame
}

/// A frame with an ICMP message, of the addresses' family: type, code, the second word of its header, and what it quotes.
/// All of it is right.
#[must_use]
pub fn icmp(from: IpAddr, to: IpAddr, hop_limit: u8, (type_u8, code_u8, rest): (u8, u8, u32), quote: &[u8]) -> Vec<u8> {
    let mut shape = UdpFrame::new(SocketAddr::new(from, 0), SocketAddr::new(to, 0), []);
    shape.hop_limit = hop_limit;
    let bytes5to8 = rest.to_be_bytes();
    let mut frame = Vec::new();
    let step = shape.ip_step();
    let written = if from.is_ipv4() {
        let kind = Icmpv4Type::Unknown {
            type_u8,
            code_u8,
            bytes5to8,
        };
        step.icmpv4(kind).write(&mut frame, quote)
    } else {
        let kind = Icmpv6Type::Unknown {
            type_u8,
            code_u8,
            bytes5to8,
        };
        step.icmpv6(kind).write(&mut frame, quote)
    };
    written.expect("the quote fits a packet");
    frame
}

/// Inverts one bit, counted from the first bit of the first byte.
pub fn flip_bit(bytes: &mut [u8], bit: usize) {
    bytes[bit / 8] ^= 0x80 >> (bit % 8);
}
