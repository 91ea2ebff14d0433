//! Who sends what to whom: as much of any frame as can be told, cheaply, for choosing among many.

use std::net::{IpAddr, SocketAddr};

use etherparse::{
    IpNumber, Ipv6ExtensionSlice, LaxIpv4Slice, LaxIpv6Slice, LaxNetSlice, LaxSlicedPacket, TransportSlice,
};

/// Which part of a packet a fragment is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Part {
    /// Where it belongs in the payload of the whole, in bytes.
    pub offset: u32,
    /// Whether more follow.
    pub more: bool,
    /// What its siblings have too.
    pub identification: u32,
}

/// Addresses, protocol and ports of a frame, as far as it has them.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Outline {
    /// Source and destination of the IP packet.
    pub addresses: Option<(IpAddr, IpAddr)>,
    /// The IP protocol, past IPv6's extension headers.
    pub protocol: Option<u8>,
    /// Source and destination port of UDP or TCP.
    pub ports: Option<(u16, u16)>,
    /// Set for a fragment.
    pub part: Option<Part>,
    /// Whether there is a VLAN tag before the packet.
    pub tagged: bool,
}

impl Outline {
    /// Reads a frame, be it whole or not.
    #[must_use]
    pub fn of(frame: &[u8]) -> Self {
        let Ok(packet) = LaxSlicedPacket::from_ethernet(frame) else {
            return Self::default();
        };
        let mut outline = match &packet.net {
            Some(LaxNetSlice::Ipv4(ip)) => Self::of_ipv4(ip),
            Some(LaxNetSlice::Ipv6(ip)) => Self::of_ipv6(ip),
            _ => Self::default(),
        };
        outline.tagged = !packet.link_exts.is_empty();
        outline.ports = match &packet.transport {
            Some(TransportSlice::Udp(udp)) => Some((udp.source_port(), udp.destination_port())),
            Some(TransportSlice::Tcp(tcp)) => Some((tcp.source_port(), tcp.destination_port())),
            Some(_) => None,
            // The reader leaves fragments alone; the first has the ports all the same.
            None => packet
                .ip_payload()
                .and_then(|payload| outline.ports_of_first(payload.payload)),
        };
        outline
    }

    fn of_ipv4(ip: &LaxIpv4Slice<'_>) -> Self {
        let header = ip.header();
        let part = Part {
            offset: u32::from(header.fragments_offset().byte_offset()),
            more: header.more_fragments(),
            identification: header.identification().into(),
        };
        Self {
            addresses: Some((header.source_addr().into(), header.destination_addr().into())),
            protocol: Some(ip.payload_ip_number().0),
            part: (part.offset != 0 || part.more).then_some(part),
            ..Self::default()
        }
    }

    pub(super) fn of_ipv6(ip: &LaxIpv6Slice<'_>) -> Self {
        let header = ip.header();
        Self {
            addresses: Some((header.source_addr().into(), header.destination_addr().into())),
            protocol: Some(ip.payload().ip_number.0),
            part: part_of_ipv6(ip),
            ..Self::default()
        }
    }

    fn ports_of_first(&self, payload: &[u8]) -> Option<(u16, u16)> {
        let has_ports = [IpNumber::UDP.0, IpNumber::TCP.0].contains(&self.protocol?);
        let &[a, b, c, d] = payload.first_chunk()?;
        (has_ports && self.part?.offset == 0).then(|| (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])))
    }

    /// Whether it is UDP, or a part of a UDP packet.
    #[must_use]
    pub fn is_udp(&self) -> bool {
        self.protocol == Some(IpNumber::UDP.0)
    }

    /// Sender and receiver of a UDP packet, or of the first part of one.
    #[must_use]
    pub fn udp_endpoints(&self) -> Option<(SocketAddr, SocketAddr)> {
        let ((from, to), (from_port, to_port)) = (self.addresses?, self.ports?);
        self.is_udp()
            .then(|| (SocketAddr::new(from, from_port), SocketAddr::new(to, to_port)))
    }
}

fn part_of_ipv6(ip: &LaxIpv6Slice<'_>) -> Option<Part> {
    let mut left = ip.extensions().slice().len();
    let mut extensions = ip.extensions().clone().into_iter();
    // Not up to the iterator's end: of a chain that is cut short it reads headers that are not there.
    while left > 0 {
        left -= match extensions.next()? {
            Ipv6ExtensionSlice::Fragment(fragment) => {
                return Some(Part {
                    offset: u32::from(fragment.fragment_offset().byte_offset()),
                    more: fragment.more_fragments(),
                    identification: fragment.identification(),
                });
            }
            Ipv6ExtensionSlice::HopByHop(header)
            | Ipv6ExtensionSlice::Routing(header)
            | Ipv6ExtensionSlice::DestinationOptions(header) => header.slice().len(),
            Ipv6ExtensionSlice::Authentication(header) => header.slice().len(),
        };
    }
    None
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::{craft::UdpFrame, world::address};

    #[rstest]
    #[case::ipv4("203.0.113.9:40000", "192.0.2.1:4500")]
    #[case::ipv6("[2001:db8:9::9]:40000", "[2001:db8::1]:4500")]
    fn addresses_and_ports_are_told_of_whole_packets_and_first_fragments(#[case] from: &str, #[case] to: &str) {
        let frame = UdpFrame::new(address(from), address(to), [0; 64]);
        let endpoints = Some((frame.from, frame.to));
        assert_eq!(Outline::of(&frame.build()).udp_endpoints(), endpoints);
        let first = Outline::of(&frame.clone().fragment(0, true).build());
        assert_eq!(first.udp_endpoints(), endpoints);
        assert!(first.part.is_some_and(|part| part.more && part.offset == 0));
        let later = Outline::of(&frame.fragment(2, false).build());
        assert_eq!((later.udp_endpoints(), later.is_udp()), (None, true));
        assert!(later.part.is_some_and(|part| !part.more && part.offset == 16));
    }

    #[test]
    fn a_chain_of_extension_headers_that_is_cut_short_is_read_as_far_as_it_goes() {
        let mut frame = UdpFrame::new(address("[2001:db8:9::9]:1"), address("[2001:db8::1]:2"), [0; 64]).build();
        let next_header = 14 + 6;
        for (kind, name) in [
            (60, "destination options"),
            (43, "routing"),
            (44, "fragment"),
            (51, "authentication"),
        ] {
            // A header of destination options that says that this one follows, where the frame ends.
            frame[next_header] = 60;
            frame.truncate(14 + 40);
            frame.extend([kind, 0, 1, 4, 0, 0, 0, 0]);
            for more in 0..8 {
                assert_eq!(Outline::of(&frame).part, None, "{name}, {more} bytes of it");
                frame.push(0);
            }
        }
    }

    #[test]
    fn a_frame_cut_anywhere_is_told_as_far_as_it_goes() {
        let frame = UdpFrame::new(address("203.0.113.9:40000"), address("192.0.2.1:4500"), [0; 64]).build();
        for length in 0..frame.len() {
            let outline = Outline::of(&frame[..length]);
            assert_eq!(outline.addresses.is_some(), length >= 34, "{length} bytes");
            assert_eq!(outline.udp_endpoints().is_some(), length >= 42, "{length} bytes");
        }
    }
}
