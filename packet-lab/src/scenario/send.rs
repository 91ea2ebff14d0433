//! Frames as steps describe them, byte by byte.

use std::net::SocketAddr;

use pnet_packet::{
    MutablePacket as _,
    ipv4::{self, MutableIpv4Packet},
};

use super::{
    file::{Checksum, Send, Token, Vlan},
    relay::{NEXT_HOP_MAC, Users},
};
use crate::{
    craft::{self, Grant, UdpFrame, flip_bit, options_with_token},
    world::{Carrier, Destination, World},
};

const ETHERNET_BYTES: usize = 14;
const ADDRESSES_BYTES: usize = 12;
const DOT1Q: u16 = 0x8100;
const UDP_PROTOCOL: u16 = 17;

/// The frame of a step; `nth` is added to its packet number. `None` if it names a user that there is not.
pub(super) fn frame(send: &Send, nth: u64, world: &World, users: &Users) -> Option<Vec<u8>> {
    let mut bytes = match &send.frame {
        Some(frame) => frame.to_vec(),
        None => udp(send, nth, world, users)?,
    };
    if let Some(cut) = send.cut {
        bytes.truncate(cut);
    }
    if let Some(bit) = send.flip_bit.filter(|bit| bit / 8 < bytes.len()) {
        flip_bit(&mut bytes, bit);
    }
    Some(bytes)
}

/// The number of the interface that the frame of a step comes in by.
pub(super) fn interface(send: &Send, world: &World) -> u8 {
    let by_default = || {
        let destination = send.from.and_then(|from| destination_at(from, world));
        let hop = destination.and_then(|known| known.next_hop);
        hop.map_or(0, |hop| hop.interface)
    };
    send.interface.unwrap_or_else(by_default)
}

impl Vlan {
    /// The tag's kind and control information.
    pub(super) fn kind_and_control(self) -> (u16, u16) {
        (self.kind.unwrap_or(DOT1Q), u16::from(self.priority) << 13 | self.id)
    }
}

fn udp(send: &Send, nth: u64, world: &World, users: &Users) -> Option<Vec<u8>> {
    let (from, to) = (send.from?, send.to?);
    let payload = send
        .payload
        .as_ref()
        .map(super::value::Bytes::to_vec)
        .unwrap_or_default();
    let mut options = send
        .options
        .as_ref()
        .map(super::value::Bytes::to_vec)
        .unwrap_or_default();
    let sealed = match &send.token {
        Some(token) => {
            let sealed = seal(token, nth, &payload, world, users)?;
            match token.carrier {
                Some(Carrier::IpOption) => {
                    options = options_with_token(&options, &sealed);
                    payload
                }
                Some(Carrier::Udp) | None if token.cut.is_some() => sealed,
                Some(Carrier::Udp) | None => [sealed, payload].concat(),
            }
        }
        None => payload,
    };
    let mut shape = UdpFrame::new(from, to, sealed);
    shape.from_mac = send.from_mac.map_or_else(|| sender_mac(from, world), |mac| mac.0);
    shape.to_mac = send.to_mac.map_or_else(|| receiver_mac(send, world), |mac| mac.0);
    shape.hop_limit = send.ttl.unwrap_or(shape.hop_limit);
    shape.tos = send.tos.unwrap_or(shape.tos);
    shape.identification = send.id.unwrap_or(shape.identification);
    shape.flow_label = send.flow_label.unwrap_or(shape.flow_label);
    shape.options = options;
    if let Some(fragment) = send.fragment {
        shape = shape.fragment(fragment.offset, fragment.more);
    }
    shape.dont_fragment = send.df.unwrap_or(shape.dont_fragment);
    shape.checksum = match send.checksum {
        Some(Checksum::Zero) => craft::Checksum::None,
        Some(Checksum::Wrong) => craft::Checksum::Wrong(1),
        Some(Checksum::Right | Checksum::Partial) | None => craft::Checksum::Right,
    };
    let mut bytes = shape.build();
    let has_udp = send.fragment.is_none_or(|fragment| fragment.offset == 0);
    if has_udp {
        let at = shape.udp_offset();
        if send.checksum == Some(Checksum::Partial) {
            let length = u16::from_be_bytes([bytes[at + 4], bytes[at + 5]]);
            bytes[at + 6..at + 8].copy_from_slice(&pseudo_header_sum(from, to, length).to_be_bytes());
        }
        if let Some(length) = send.udp_length {
            bytes[at + 4..at + 6].copy_from_slice(&length.to_be_bytes());
        }
    }
    if let Some(length) = send.ip_length {
        claim_length(&mut bytes, from.is_ipv4(), length);
    }
    bytes.extend(
        send.trailing
            .as_ref()
            .map(super::value::Bytes::to_vec)
            .unwrap_or_default(),
    );
    Some(tagged(bytes, &send.vlan))
}

fn sender_mac(from: SocketAddr, world: &World) -> [u8; 6] {
    match destination_at(from, world) {
        Some(known) => known.next_hop.map_or(NEXT_HOP_MAC, |hop| hop.mac),
        None => [0x02, 0, 0, 0, 0, 0xc1],
    }
}

fn destination_at(from: SocketAddr, world: &World) -> Option<&Destination> {
    world.destinations.iter().find(|known| known.to.ip() == from.ip())
}

fn receiver_mac(send: &Send, world: &World) -> [u8; 6] {
    let interfaces = world.interfaces();
    let interface = interfaces.get(usize::from(interface(send, world)));
    interface.map_or(world.mac, |interface| interface.mac)
}

fn seal(token: &Token, nth: u64, payload: &[u8], world: &World, users: &Users) -> Option<Vec<u8>> {
    let user = users.get(token.user)?;
    let key = token.header_key.map(|key| key.0);
    let header_key = match token.protected {
        Some(false) => None,
        Some(true) => key.or(world.header_key).or(Some([0xff; 16])),
        None => world.header_key.map(|usual| key.unwrap_or(usual)),
    };
    let grant = Grant {
        slot: token.slot.unwrap_or(user.slot),
        salt: token.salt.unwrap_or(user.salt),
        key: token.key.map_or(user.key, |key| key.0),
        header_key,
        relay_id: token.relay_id.unwrap_or(world.relay_id),
    };
    let length = token.payload_len.unwrap_or(payload.len() as u16);
    let mut sealed = grant.token(token.pn.0.wrapping_add(nth), length).to_vec();
    if let Some(bit) = token.flip_bit {
        flip_bit(&mut sealed, bit);
    }
    sealed.truncate(token.cut.unwrap_or(sealed.len()));
    Some(sealed)
}

/// What a sender leaves in the checksum that has the network card add the rest.
fn pseudo_header_sum(from: SocketAddr, to: SocketAddr, length: u16) -> u16 {
    let octets = |address: SocketAddr| match address.ip() {
        std::net::IpAddr::V4(v4) => v4.octets().to_vec(),
        std::net::IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let words = [octets(from), octets(to)].concat();
    let words = words
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let mut sum = words.sum::<u32>() + u32::from(UDP_PROTOCOL) + u32::from(length);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Writes another length into the IP header; IPv4's header checksum stays right.
fn claim_length(bytes: &mut [u8], v4: bool, length: u16) {
    let ip = &mut bytes[ETHERNET_BYTES..];
    if !v4 {
        ip[4..6].copy_from_slice(&length.to_be_bytes());
        return;
    }
    ip[2..4].copy_from_slice(&length.to_be_bytes());
    let header_bytes = usize::from(ip[0] & 0xf) * 4;
    if let Some(mut header) = MutableIpv4Packet::new(&mut ip[..header_bytes]) {
        let checksum = ipv4::checksum(&header.to_immutable());
        header.set_checksum(checksum);
        let _ = header.packet_mut();
    }
}

fn tagged(mut bytes: Vec<u8>, tags: &[Vlan]) -> Vec<u8> {
    let headers = tags.iter().flat_map(|tag| {
        let (kind, control) = tag.kind_and_control();
        [kind.to_be_bytes(), control.to_be_bytes()].concat()
    });
    let headers: Vec<u8> = headers.collect();
    bytes.splice(ADDRESSES_BYTES..ADDRESSES_BYTES, headers);
    bytes
}
