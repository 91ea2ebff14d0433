//! Any frame, layer by layer and field by field, for showing and for comparing.

use std::{fmt, net::IpAddr};

use etherparse::{
    ArpOperation, ArpPacketSlice, EtherType, Icmpv4Type, Icmpv6Type, IpNumber, LaxIpv4Slice, LaxIpv6Slice,
    LaxLinkExtSlice, LaxNetSlice, LaxSlicedPacket, LinkSlice, TcpSlice, TransportSlice, UdpSlice,
    icmpv4::DestUnreachableHeader,
};
use pnet_packet::ipv4::{self, Ipv4Packet};

use super::{Outline, Part, Sum, mac};
use crate::craft::token_in_options;

/// One layer: its name and its fields, in the order in which they are shown.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Layer {
    /// The protocol.
    pub name: &'static str,
    /// Names and values.
    pub fields: Vec<(&'static str, String)>,
}

impl Layer {
    /// A layer without fields.
    #[must_use]
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            fields: Vec::new(),
        }
    }

    /// With this field.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl fmt::Display) -> Self {
        self.fields.push((name, value.to_string()));
        self
    }

    fn with_some(self, name: &'static str, value: Option<impl fmt::Display>) -> Self {
        match value {
            Some(value) => self.with(name, value),
            None => self,
        }
    }

    /// The value of a field.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.fields
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, value)| value.as_str())
    }
}

/// "ipv4 192.0.2.1 > 198.51.100.7, ttl 63, …": senders and receivers as arrows, the other fields with their names.
impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name)?;
        let mut fields = self.fields.iter().peekable();
        let mut separator = " ";
        while let Some((name, value)) = fields.next() {
            match (*name, fields.peek()) {
                ("from", Some(("to", to))) => {
                    write!(f, "{separator}{value} > {to}")?;
                    fields.next();
                }
                ("", _) => write!(f, "{separator}{value}")?,
                (name, _) => write!(f, "{separator}{name} {value}")?,
            }
            separator = ", ";
        }
        Ok(())
    }
}

/// A frame's layers, from the outermost on.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Dissection {
    /// The layers.
    pub layers: Vec<Layer>,
    /// What follows them.
    pub payload: Vec<u8>,
    /// Where that is in the frame.
    pub payload_at: usize,
    /// Bytes behind the IP packet.
    pub trailing: usize,
}

impl Dissection {
    /// Takes a frame apart as far as it goes.
    #[must_use]
    pub fn of(frame: &[u8]) -> Self {
        let Ok(packet) = LaxSlicedPacket::from_ethernet(frame) else {
            let problem = format!("cut short: {} of 14 bytes", frame.len());
            return Self {
                layers: vec![Layer::new("ethernet").with("", problem)],
                payload: frame.to_vec(),
                ..Self::default()
            };
        };
        let mut dissection = Self::default();
        let payload = dissection.take_apart(&packet);
        if let Some((error, layer)) = &packet.stop_err {
            let problem = format!("cut short or wrong: {layer}: {error}");
            dissection.layers.push(Layer::new("problem").with("", problem));
        }
        // A payload of no bytes may be anywhere.
        let offset = (payload.as_ptr() as usize).checked_sub(frame.as_ptr() as usize);
        dissection.payload_at = offset.filter(|at| *at < frame.len()).unwrap_or(frame.len());
        dissection.payload = payload.to_vec();
        dissection.trailing = trailing(frame, &packet);
        dissection
    }

    /// The layer of this name.
    #[must_use]
    pub fn layer(&self, name: &str) -> Option<&Layer> {
        self.layers.iter().find(|layer| layer.name == name)
    }

    /// Adds the layers; what is left behind them.
    fn take_apart<'a>(&mut self, packet: &LaxSlicedPacket<'a>) -> &'a [u8] {
        let mut rest: &[u8] = &[];
        if let Some(LinkSlice::Ethernet2(ethernet)) = &packet.link {
            let layer = Layer::new("ethernet")
                .with("from", mac(ethernet.source()))
                .with("to", mac(ethernet.destination()));
            self.layers
                .push(layer.with_some("type", unusual(ethernet.ether_type())));
            rest = ethernet.payload_slice();
        }
        for extension in &packet.link_exts {
            if let LaxLinkExtSlice::Vlan(vlan) = extension {
                let layer = Layer::new("vlan").with("id", vlan.vlan_identifier().value());
                let priority = vlan.priority_code_point().value();
                let layer = layer.with_some("priority", (priority != 0).then_some(priority));
                let is_eligible = vlan.drop_eligible_indicator();
                let layer = layer.with_some("drop_eligible", is_eligible.then_some(true));
                self.layers.push(layer.with_some("type", unusual(vlan.ether_type())));
                rest = vlan.payload_slice();
            }
        }
        match &packet.net {
            Some(LaxNetSlice::Arp(arp)) => {
                self.layers.push(of_arp(arp));
                rest = rest.get(arp.slice().len()..).unwrap_or_default();
            }
            Some(LaxNetSlice::Ipv4(ip)) => {
                self.layers.push(of_ipv4(ip));
                rest = ip.payload().payload;
            }
            Some(LaxNetSlice::Ipv6(ip)) => {
                self.layers.push(of_ipv6(ip));
                rest = ip.payload().payload;
            }
            None => {}
        }
        self.add_transport(packet, rest)
    }

    fn add_transport<'a>(&mut self, packet: &LaxSlicedPacket<'a>, rest: &'a [u8]) -> &'a [u8] {
        let addresses = addresses(packet);
        let whole = packet.ip_payload().is_some_and(|payload| !payload.incomplete);
        let (layer, payload) = match &packet.transport {
            Some(TransportSlice::Udp(udp)) => (of_udp(udp, addresses, whole), udp.payload()),
            Some(TransportSlice::Tcp(tcp)) => (of_tcp(tcp, addresses, whole), tcp.payload()),
            Some(TransportSlice::Icmpv4(icmp)) => {
                let header = etherparse::Icmpv4Header::new(icmp.icmp_type());
                let layer = Layer::new("icmp").with("", icmpv4(icmp.type_u8(), icmp.code_u8()));
                let layer = layer.with_some("mtu", mtu_v4(&header.icmp_type));
                let right = header.icmp_type.calc_checksum(icmp.payload());
                (
                    layer.with("checksum", judged(icmp.checksum(), Some(right), whole)),
                    icmp.payload(),
                )
            }
            Some(TransportSlice::Icmpv6(icmp)) => {
                let layer = Layer::new("icmp6").with("", icmpv6(icmp.type_u8(), icmp.code_u8()));
                let layer = layer.with_some("mtu", mtu_v6(&icmp.icmp_type()));
                let right = match addresses {
                    Some((IpAddr::V6(from), IpAddr::V6(to))) => icmp
                        .icmp_type()
                        .calc_checksum(from.octets(), to.octets(), icmp.payload())
                        .ok(),
                    _ => None,
                };
                (
                    layer.with("checksum", judged(icmp.checksum(), right, whole)),
                    icmp.payload(),
                )
            }
            Some(TransportSlice::Igmp(igmp)) => (
                Layer::new("igmp").with("type", format_args!("{:#04x}", igmp.type_u8())),
                igmp.payload(),
            ),
            None => return rest,
        };
        self.layers.push(layer);
        payload
    }
}

/// One line, as tcpdump has it: who sends what to whom.
impl fmt::Display for Dissection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for vlan in self.layers.iter().filter(|layer| layer.name == "vlan") {
            write!(f, "vlan {} ", vlan.get("id").unwrap_or_default())?;
        }
        let ip = self.layer("ipv4").or_else(|| self.layer("ipv6"));
        let transport = self.layers.last().filter(|layer| ["udp", "tcp"].contains(&layer.name));
        match (ip, transport, self.layers.last()) {
            (Some(ip), Some(transport), _) => {
                let end = |address: &str, port: &str| {
                    if address.contains(':') {
                        format!("[{address}]:{port}")
                    } else {
                        format!("{address}:{port}")
                    }
                };
                let of = |layer: &Layer, name| layer.get(name).unwrap_or_default().to_owned();
                let from = end(&of(ip, "from"), &of(transport, "from"));
                let to = end(&of(ip, "to"), &of(transport, "to"));
                write!(f, "{from} > {to} {} {}", transport.name, self.payload.len())?;
                if let Some(flags) = transport.get("flags") {
                    write!(f, " [{flags}]")?;
                }
            }
            (Some(ip), None, Some(last)) => {
                let (from, to) = (ip.get("from").unwrap_or_default(), ip.get("to").unwrap_or_default());
                let kind = match last.get("") {
                    Some(kind) if last.name != ip.name => format!("{} {kind}", last.name),
                    _ if last.name != ip.name => last.name.to_owned(),
                    _ => ip.get("protocol").unwrap_or("udp").to_owned(),
                };
                write!(f, "{from} > {to} {kind} {}", self.payload.len())?;
                if let Some(fragment) = ip.get("fragment") {
                    write!(f, ", fragment {fragment}")?;
                }
            }
            (None, _, Some(last)) if last.name == "ethernet" => write!(f, "{last} {}", self.payload.len())?,
            (None, _, Some(last)) => write!(f, "{last}")?,
            (_, _, None) => write!(f, "{} bytes", self.payload.len())?,
        }
        for layer in &self.layers {
            if layer.get("checksum").is_some_and(|sum| sum.contains("WRONG")) {
                write!(f, " ({} checksum WRONG)", layer.name)?;
            }
        }
        Ok(())
    }
}

fn addresses(packet: &LaxSlicedPacket<'_>) -> Option<(IpAddr, IpAddr)> {
    match &packet.net {
        Some(LaxNetSlice::Ipv4(ip)) => Some((ip.header().source_addr().into(), ip.header().destination_addr().into())),
        Some(LaxNetSlice::Ipv6(ip)) => Some((ip.header().source_addr().into(), ip.header().destination_addr().into())),
        _ => None,
    }
}

/// An `EtherType`, unless the next layer says it.
fn unusual(ether_type: EtherType) -> Option<String> {
    let usual = [
        EtherType::IPV4,
        EtherType::IPV6,
        EtherType::ARP,
        EtherType::VLAN_TAGGED_FRAME,
    ];
    (!usual.contains(&ether_type)).then(|| format!("{:#06x}", ether_type.0))
}

/// Bytes of the frame behind what the IP header says, or behind an ARP packet: mostly padding.
fn trailing(frame: &[u8], packet: &LaxSlicedPacket<'_>) -> usize {
    let network: usize = 14 + packet.link_exts.iter().map(LaxLinkExtSlice::header_len).sum::<usize>();
    let length = match &packet.net {
        Some(LaxNetSlice::Ipv4(ip)) => usize::from(ip.header().total_len()),
        Some(LaxNetSlice::Ipv6(ip)) => 40 + usize::from(ip.header().payload_length()),
        Some(LaxNetSlice::Arp(arp)) => arp.slice().len(),
        None => return 0,
    };
    frame.len().saturating_sub(network + length)
}

fn of_arp(arp: &ArpPacketSlice<'_>) -> Layer {
    let operation = match arp.operation() {
        ArpOperation::REQUEST => "request".to_owned(),
        ArpOperation::REPLY => "reply".to_owned(),
        other => format!("operation {}", other.0),
    };
    let hardware = |bytes: &[u8]| {
        bytes
            .first_chunk::<6>()
            .map_or_else(|| hex::encode(bytes), |bytes| mac(*bytes))
    };
    let protocol = |bytes: &[u8]| {
        let v4 = bytes.first_chunk::<4>().map(|bytes| IpAddr::from(*bytes).to_string());
        v4.unwrap_or_else(|| hex::encode(bytes))
    };
    Layer::new("arp")
        .with("", operation)
        .with("sender", protocol(arp.sender_protocol_addr()))
        .with("at", hardware(arp.sender_hw_addr()))
        .with("target", protocol(arp.target_protocol_addr()))
        .with("target at", hardware(arp.target_hw_addr()))
}

fn of_ipv4(ip: &LaxIpv4Slice<'_>) -> Layer {
    let header = ip.header();
    // Over the bytes: etherparse's own sum leaves the reserved flag out.
    let right = Ipv4Packet::new(header.slice()).map_or(0, |packet| ipv4::checksum(&packet));
    let part = Part {
        offset: u32::from(header.fragments_offset().byte_offset()),
        more: header.more_fragments(),
        identification: header.identification().into(),
    };
    let options = header.options();
    let layer = Layer::new("ipv4")
        .with("from", header.source_addr())
        .with("to", header.destination_addr())
        .with("ttl", header.ttl())
        .with(
            "tos",
            format_args!("{:#04x}", header.dcp().value() << 2 | header.ecn().value()),
        )
        .with("id", format_args!("{:#06x}", header.identification()))
        .with_some("", header.dont_fragment().then_some("df"))
        .with_some("fragment", fragment(part))
        .with_some("options", (!options.is_empty()).then(|| hex::encode(options)))
        .with_some(
            "token",
            token_in_options(options).map(|token| format!("at {} of the options", token.start)),
        )
        .with_some("protocol", other_protocol(ip.payload_ip_number()))
        .with("length", header.total_len());
    layer.with("checksum", Sum::judge(header.header_checksum(), right))
}

fn of_ipv6(ip: &LaxIpv6Slice<'_>) -> Layer {
    let header = ip.header();
    let outline = Outline::of_ipv6(ip);
    let extensions = ip.extensions().slice().len();
    Layer::new("ipv6")
        .with("from", header.source_addr())
        .with("to", header.destination_addr())
        .with("hop limit", header.hop_limit())
        .with("class", format_args!("{:#04x}", header.traffic_class()))
        .with("flow label", format_args!("{:#07x}", header.flow_label().value()))
        .with_some(
            "extension headers",
            (extensions != 0).then(|| format!("{extensions} bytes")),
        )
        .with_some("fragment", outline.part.and_then(fragment))
        .with_some("id", outline.part.map(|part| format!("{:#010x}", part.identification)))
        .with_some("protocol", other_protocol(ip.payload().ip_number))
        .with("length", header.payload_length())
}

fn fragment(part: Part) -> Option<String> {
    let more = if part.more { ", more follow" } else { ", last" };
    (part.offset != 0 || part.more).then(|| format!("at {}{more}", part.offset))
}

/// An IP protocol, unless the next layer says it.
fn other_protocol(number: IpNumber) -> Option<String> {
    let usual = [IpNumber::UDP, IpNumber::TCP, IpNumber::ICMP, IpNumber::IPV6_ICMP];
    let name = || number.keyword_str().map_or(String::new(), |name| format!(" ({name})"));
    (!usual.contains(&number)).then(|| format!("{}{}", number.0, name()))
}

fn of_udp(udp: &UdpSlice<'_>, addresses: Option<(IpAddr, IpAddr)>, whole: bool) -> Layer {
    let (header, payload) = (udp.to_header(), udp.payload());
    let right = match addresses {
        Some((IpAddr::V4(from), IpAddr::V4(to))) => {
            header.calc_checksum_ipv4_raw(from.octets(), to.octets(), payload).ok()
        }
        Some((IpAddr::V6(from), IpAddr::V6(to))) => {
            header.calc_checksum_ipv6_raw(from.octets(), to.octets(), payload).ok()
        }
        _ => None,
    };
    let length = usize::from(udp.length());
    let cut = length > 8 + payload.len();
    let sum = match udp.checksum() {
        0 => Sum::None.to_string(),
        found => judged(found, right, whole && !cut),
    };
    Layer::new("udp")
        .with("from", udp.source_port())
        .with("to", udp.destination_port())
        .with("length", length)
        .with("checksum", sum)
}

fn of_tcp(tcp: &TcpSlice<'_>, addresses: Option<(IpAddr, IpAddr)>, whole: bool) -> Layer {
    let right = match addresses {
        Some((IpAddr::V4(from), IpAddr::V4(to))) => tcp.calc_checksum_ipv4(from.octets(), to.octets()).ok(),
        Some((IpAddr::V6(from), IpAddr::V6(to))) => tcp.calc_checksum_ipv6(from.octets(), to.octets()).ok(),
        _ => None,
    };
    let flags = [
        (tcp.syn(), 'S'),
        (tcp.fin(), 'F'),
        (tcp.rst(), 'R'),
        (tcp.psh(), 'P'),
        (tcp.urg(), 'U'),
        (tcp.ack(), '.'),
    ];
    let flags: String = flags.iter().filter(|(set, _)| *set).map(|(_, flag)| *flag).collect();
    Layer::new("tcp")
        .with("from", tcp.source_port())
        .with("to", tcp.destination_port())
        .with("flags", flags)
        .with("seq", tcp.sequence_number())
        .with("ack", tcp.acknowledgment_number())
        .with("window", tcp.window_size())
        .with("checksum", judged(tcp.checksum(), right, whole))
}

/// The MTU that fragmentation is needed for.
fn mtu_v4(kind: &Icmpv4Type) -> Option<u16> {
    match kind {
        Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::FragmentationNeeded { next_hop_mtu }) => {
            Some(*next_hop_mtu)
        }
        _ => None,
    }
}

/// The MTU that a packet is too big for.
fn mtu_v6(kind: &Icmpv6Type) -> Option<u32> {
    match kind {
        Icmpv6Type::PacketTooBig { mtu } => Some(*mtu),
        _ => None,
    }
}

/// A checksum next to what it should be, if all that it covers is there.
fn judged(found: u16, right: Option<u16>, whole: bool) -> String {
    match right {
        Some(right) if whole => Sum::judge(found, right).to_string(),
        _ => format!("{found:#06x}, of more than there is"),
    }
}

/// ICMP's types that people meet, as of RFC 792.
fn icmpv4(kind: u8, code: u8) -> String {
    match (kind, code) {
        (0, _) => "echo reply".to_owned(),
        (3, 3) => "port unreachable".to_owned(),
        (3, 4) => "fragmentation needed".to_owned(),
        (3, code) => format!("destination unreachable, code {code}"),
        (5, _) => "redirect".to_owned(),
        (8, _) => "echo request".to_owned(),
        (11, _) => "time exceeded".to_owned(),
        _ => format!("type {kind}, code {code}"),
    }
}

/// The types of ICMP for IPv6 that people meet, as of RFC 4443 and 4861.
fn icmpv6(kind: u8, code: u8) -> String {
    match (kind, code) {
        (1, 4) => "port unreachable".to_owned(),
        (1, code) => format!("destination unreachable, code {code}"),
        (2, _) => "packet too big".to_owned(),
        (3, _) => "time exceeded".to_owned(),
        (128, _) => "echo request".to_owned(),
        (129, _) => "echo reply".to_owned(),
        (133, _) => "router solicitation".to_owned(),
        (134, _) => "router advertisement".to_owned(),
        (135, _) => "neighbour solicitation".to_owned(),
        (136, _) => "neighbour advertisement".to_owned(),
        (143, _) => "multicast listener report".to_owned(),
        _ => format!("type {kind}, code {code}"),
    }
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

    fn udp(from: &str, to: &str) -> UdpFrame {
        UdpFrame::new(address(from), address(to), *b"payload")
    }

    #[rstest]
    #[case::ipv4("203.0.113.9:40000", "192.0.2.1:4500", "203.0.113.9:40000 > 192.0.2.1:4500 udp 7")]
    #[case::ipv6(
        "[2001:db8:9::9]:40000",
        "[2001:db8::1]:4500",
        "[2001:db8:9::9]:40000 > [2001:db8::1]:4500 udp 7"
    )]
    fn a_udp_packet_is_one_line_or_its_layers(#[case] from: &str, #[case] to: &str, #[case] line: &str) {
        let dissection = Dissection::of(&udp(from, to).build());
        assert_eq!(dissection.to_string(), line);
        assert_eq!(dissection.payload, b"payload");
        let names: Vec<_> = dissection.layers.iter().map(|layer| layer.name).collect();
        assert_eq!(
            names,
            ["ethernet", if from.starts_with('[') { "ipv6" } else { "ipv4" }, "udp"]
        );
        assert!(
            dissection
                .layer("udp")
                .unwrap()
                .get("checksum")
                .unwrap()
                .ends_with(" right")
        );
    }

    #[rstest]
    #[case::ipv4("203.0.113.9:40000", "192.0.2.1:4500")]
    #[case::ipv6("[2001:db8:9::9]:40000", "[2001:db8::1]:4500")]
    fn both_readers_judge_a_checksum_alike(
        #[case] from: &str,
        #[case] to: &str,
        #[values(Checksum::Right, Checksum::None, Checksum::Wrong(1), Checksum::Wrong(0xfffe))] checksum: Checksum,
    ) {
        let frame = udp(from, to).checksum(checksum).build();
        let other = UdpFrameView::read(&frame).unwrap().checksum.to_string();
        assert_eq!(
            Dissection::of(&frame).layer("udp").unwrap().get("checksum"),
            Some(other.as_str())
        );
    }

    #[test]
    fn a_vlan_tag_a_fragment_and_trailing_bytes_are_told() {
        let mut tagged = udp("203.0.113.9:40000", "192.0.2.1:4500").build();
        tagged.splice(12..12, [0x81, 0x00, 0x00, 0x64]);
        tagged.extend_from_slice(&[0; 3]);
        let dissection = Dissection::of(&tagged);
        assert_eq!(
            dissection.to_string(),
            "vlan 100 203.0.113.9:40000 > 192.0.2.1:4500 udp 7"
        );
        assert_eq!(dissection.trailing, 3);
        let fragment = udp("203.0.113.9:40000", "192.0.2.1:4500").fragment(2, false).build();
        assert_eq!(
            Dissection::of(&fragment).to_string(),
            "203.0.113.9 > 192.0.2.1 udp 7, fragment at 16, last"
        );
    }

    #[test]
    fn every_beginning_of_a_frame_can_be_taken_apart() {
        for frame in [
            udp("203.0.113.9:40000", "192.0.2.1:4500").options([1, 1, 1, 1]).build(),
            udp("[2001:db8:9::9]:40000", "[2001:db8::1]:4500")
                .fragment(0, true)
                .build(),
        ] {
            for length in 0..=frame.len() {
                let dissection = Dissection::of(&frame[..length]);
                assert!(!dissection.to_string().is_empty(), "{length} bytes");
                assert!(!dissection.layers.is_empty(), "{length} bytes");
            }
        }
    }

    #[test]
    fn a_packet_that_is_cut_has_no_wrong_checksum() {
        let frame = udp("203.0.113.9:40000", "192.0.2.1:4500").build();
        let line = Dissection::of(&frame[..45]).to_string();
        assert_eq!(line, "203.0.113.9:40000 > 192.0.2.1:4500 udp 3");
    }
}
