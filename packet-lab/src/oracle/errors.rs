//! What the relay says in ICMP: "Errors" of the document. Messages are etherparse's.

use std::net::IpAddr;

use etherparse::{
    Icmpv4Type, Icmpv6Type, IpHeaders, Ipv4Header, Ipv6Header, PacketBuilder, icmpv4::DestUnreachableHeader,
};

use super::packet::{Ip, Packet};

/// TTL or hop limit of a message.
const HOP_LIMIT: u8 = 64;
/// DSCP CS6, the precedence of internetwork control.
pub(super) const CONTROL: u8 = 48;
/// Bytes of an ICMP header.
const ICMP_BYTES: usize = 8;

/// The message to the sender of a packet that is too big: packets of `mtu` bytes get through. None if the document has
/// none for it.
#[must_use]
pub fn too_big(packet: &Packet, relay_mac: [u8; 6], mtu: usize) -> Option<Vec<u8>> {
    let original = packet.ip_packet()?;
    let is_to_group = packet.destination_mac()[0] & 1 == 1;
    if is_to_group || !is_one_host(packet.source().ip()) {
        return None;
    }
    let builder = PacketBuilder::ethernet2(relay_mac, packet.source_mac());
    let mut message = Vec::new();
    match &packet.ip {
        Ip::V4(header) => {
            let mtu = mtu.max(68);
            let quoted = if original.len() >= 576 { 544 } else { 80 };
            let bytes = Ipv4Header::MIN_LEN + ICMP_BYTES + quoted;
            if !header.dont_fragment() || original.len() <= mtu || original.len() < bytes {
                return None;
            }
            let outside = Ipv4Header {
                dscp: CONTROL.try_into().ok()?,
                dont_fragment: true,
                time_to_live: HOP_LIMIT,
                source: header.destination(),
                destination: header.source(),
                ..Ipv4Header::default()
            };
            let next_hop_mtu = mtu as u16;
            let error = DestUnreachableHeader::FragmentationNeeded { next_hop_mtu };
            builder
                .ip(IpHeaders::Ipv4(outside, etherparse::Ipv4Extensions::default()))
                .icmpv4(Icmpv4Type::DestinationUnreachable(error))
                .write(&mut message, &original[..quoted])
                .ok()?;
        }
        Ip::V6(header, _) => {
            let mtu = mtu.max(1280);
            if original.len() <= mtu {
                return None;
            }
            let outside = Ipv6Header {
                hop_limit: HOP_LIMIT,
                source: header.destination(),
                destination: header.source(),
                ..Ipv6Header::default()
            };
            let quoted = 1280 - Ipv6Header::LEN - ICMP_BYTES;
            builder
                .ip(IpHeaders::Ipv6(outside, etherparse::Ipv6Extensions::default()))
                .icmpv6(Icmpv6Type::PacketTooBig { mtu: mtu as u32 })
                .write(&mut message, &original[..quoted])
                .ok()?;
        }
    }
    Some(message)
}

fn is_one_host(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.octets()[0] != 0 && !v4.is_loopback() && v4.octets()[0] < 224,
        IpAddr::V6(v6) => !v6.is_unspecified() && !v6.is_loopback() && !v6.is_multicast(),
    }
}
