//! From a client to its destination. The steps and their order are the protocol's.

use crate::{
    admission::{self, Client},
    layout::{Listener, MAX_EGRESS, NextHop, SaltEntry, Settings, SlotEntry, User, option_carrier},
    platform::Platform,
    token::{self, TOKEN_BYTES, Token},
    translate::{Envelope, Packet},
    verdict::{Decision, Reason},
    wire::{
        Address, Frame, Mac,
        checksum::Change,
        ethernet,
        ip::{Ip, Rewrite, Search},
        udp,
        vlan::Tags,
    },
};

/// TTL of a reflected ping: it starts anew at the relay.
const PING_HOP_LIMIT: u8 = 64;

/// Decides about a packet for `listener`, the one with this index, that came in by the interface with this number, and
/// rewrites it if it is to be transmitted.
#[inline(always)]
pub fn process<F: Frame, P: Platform, I: Ip>(
    frame: &mut F,
    platform: &P,
    packet: &Packet<I>,
    listener: &Listener,
    listener_index: u8,
    interface: u8,
) -> Decision {
    relay(frame, platform, packet, listener, listener_index, interface).unwrap_or_else(Decision::settled)
}

#[inline(always)]
fn relay<F: Frame, P: Platform, I: Ip>(
    frame: &mut F,
    platform: &P,
    packet: &Packet<I>,
    listener: &Listener,
    listener_index: u8,
    interface: u8,
) -> Result<Decision, Reason> {
    let settings = platform.settings();
    if packet.ip.is_fragment() {
        return Err(Reason::Fragment);
    }
    let bytes = packet.payload_bytes(frame).ok_or(Reason::Truncated)?;
    let carrier = Carrier::find(frame, platform, packet)?;
    let payload = bytes.checked_sub(carrier.taken()).ok_or(Reason::Truncated)?;
    let travelled: [u64; 3] = frame.read(carrier.token_at(packet)).ok_or(Reason::Truncated)?;
    let token = open(travelled, listener);

    let slot = token.slot();
    if slot >= settings.max_users {
        return Err(Reason::UnknownSession);
    }
    let salts = platform.salts(slot / SaltEntry::SLOTS).ok_or(Reason::UnknownSession)?;
    if !salts.admits(platform, slot, token.salt()) {
        return Err(Reason::UnknownSession);
    }
    let SlotEntry { user: entry, state } = platform.slot(slot).ok_or(Reason::UnknownSession)?;
    if !entry.has_handle(platform, token.salt()) {
        return Err(Reason::UnknownSession);
    }
    // What the packet will need is on its way before the tag is computed: the misses overlap it. The processor guesses
    // that the handle is right and does not wait for it either, until a flood of wrong ones teaches it otherwise.
    platform.touch(&state.tat_ns);
    platform.touch(admission::window_word(state, token.pn()));
    let user = entry.load(platform, token.salt());
    if !token.is_authentic(user.key, token::context(payload, settings.relay_id)) {
        return Err(Reason::BadToken);
    }
    // The slot may have passed to another user while its fields were read.
    if !entry.has_handle(platform, user.salt) {
        return Err(Reason::UnknownSession);
    }
    let now_ns = platform.now_ns();
    if now_ns > user.expires_ns {
        return Err(Reason::Expired);
    }
    let admitted = admission::admit(platform, state, token.pn()).ok_or(Reason::Replayed)?;

    let mac = ethernet::source(frame).ok_or(Reason::Truncated)?;
    let client = Client {
        address: packet.ip.source(),
        port: packet.udp.source,
        mac,
        listener: listener_index,
        interface,
        tags: platform.tags_of(frame, packet.ip_offset),
    };
    let tags = platform.tags_of_client(slot);
    let generation = platform.block_generation();
    let moved = !client.is_current(platform, state, tags, generation);
    if moved && generation != 0 && platform.is_blocked(client.address) {
        return Err(Reason::BlockedSource);
    }
    if !admission::spend(platform, &state.tat_ns, user.interval_ns, user.burst, now_ns) {
        return Err(Reason::RateLimited);
    }
    if moved && admitted.newest {
        client.store(platform, state, tags, token.pn(), generation);
    }
    if payload == 0 {
        let reason = reflect(frame, packet, &client, platform.interface(interface).mac, carrier)?;
        return Ok(Decision::sent(reason, interface));
    }
    let (envelope, next_hop) = address(platform, packet, &user, payload, carrier, travelled)?;
    if let Some(too_big) = envelope.check_size::<I>(next_hop.mtu as usize) {
        return Ok(too_big);
    }
    if platform.has_destination_limit() && !spend_of_destination(platform, user.destination, now_ns) {
        return Err(Reason::DestinationLimited);
    }
    envelope.apply(frame, packet)?;
    platform.add(&state.uplink_packets, 1);
    platform.add(&state.uplink_bytes, payload as u64);
    Ok(Decision::sent(Reason::Relayed, next_hop.interface))
}

/// Where a token travels.
#[derive(Clone, Copy)]
enum Carrier {
    /// At the front of the UDP payload.
    Udp,
    /// In an IPv4 option, its data at this offset in the frame.
    Option(usize),
}

impl Carrier {
    #[inline(always)]
    fn find<F: Frame, P: Platform, I: Ip>(frame: &F, platform: &P, packet: &Packet<I>) -> Result<Self, Reason> {
        if !I::IS_V4 || !platform.has_option_carrier() {
            return Ok(Self::Udp);
        }
        let found = packet
            .ip
            .option(frame, packet.ip_offset, token::OPTION_TYPE, token::OPTION_BYTES);
        match found {
            Search::Found(at) => Ok(Self::Option(at)),
            Search::Absent if platform.settings().option_carrier == option_carrier::ALSO => Ok(Self::Udp),
            Search::Absent | Search::Malformed => Err(Reason::Truncated),
        }
    }

    #[inline(always)]
    fn token_at<I: Ip>(self, packet: &Packet<I>) -> usize {
        match self {
            Self::Udp => packet.payload_offset(),
            Self::Option(at) => at,
        }
    }

    /// Bytes of the UDP payload that are the token's.
    #[inline(always)]
    const fn taken(self) -> u16 {
        match self {
            Self::Udp => TOKEN_BYTES as u16,
            Self::Option(_) => 0,
        }
    }

    /// What taking it off does to the UDP checksum.
    #[inline(always)]
    fn change(self, travelled: [u64; 3]) -> Change {
        match self {
            Self::Udp => strip(travelled),
            Self::Option(_) => Change::default(),
        }
    }
}

#[inline(always)]
fn open(travelled: [u64; 3], listener: &Listener) -> Token {
    let [handle, number, tag] = travelled.map(u64::from_le);
    let token = Token { handle, number, tag };
    if listener.protected != 0 {
        token.masked(listener.header_key)
    } else {
        token
    }
}

/// What removing the token does to the UDP checksum.
#[inline(always)]
fn strip(travelled: [u64; 3]) -> Change {
    travelled.iter().fold(Change::default(), |change, &word| {
        change.without(word as u32).without((word >> 32) as u32)
    })
}

/// Finds where the packet goes, what its headers become, and the next hop that it is sent to.
#[inline(always)]
fn address<P: Platform, I: Ip>(
    platform: &P,
    packet: &Packet<I>,
    user: &User,
    payload: u16,
    carrier: Carrier,
    travelled: [u64; 3],
) -> Result<(Envelope, NextHop), Reason> {
    let settings = platform.settings();
    let unresolved = Reason::DestinationUnresolved;
    let destination = platform.destination(user.destination).ok_or(unresolved)?;
    let (address, port) = destination.endpoint(platform);
    let source = egress(settings, user, address).ok_or(unresolved)?;
    let next_hop = if platform.has_several_interfaces() || platform.has_tags() {
        destination.next_hop(platform)
    } else {
        destination.plain_next_hop(platform)
    };
    let next_hop = next_hop.ok_or(unresolved)?;
    if packet.ip.hop_limit() <= 1 {
        return Err(Reason::TtlExpired);
    }
    let envelope = Envelope {
        ip: Rewrite {
            source,
            destination: address,
            hop_limit: packet.ip.hop_limit() - 1,
            transport_bytes: payload + udp::HEADER_BYTES as u16,
        },
        source_port: user.egress_port,
        destination_port: port,
        next_hop: next_hop.mac,
        mac: platform.interface(next_hop.interface).mac,
        tags: if platform.has_tags() { next_hop.tags } else { Tags::NONE },
        strip: carrier.taken() as usize,
        stripped: carrier.change(travelled),
    };
    Ok((envelope, next_hop))
}

#[inline(always)]
fn egress(settings: &Settings, user: &User, destination: Address) -> Option<Address> {
    // Masked, not compared: the verifier follows the mask.
    let index = user.egress as usize % MAX_EGRESS;
    let (addresses, count) = if destination.is_v4() {
        (&settings.egress_v4, settings.egress_v4_count)
    } else {
        (&settings.egress_v6, settings.egress_v6_count)
    };
    if index >= count as usize {
        return None;
    }
    Some(addresses[index])
}

/// Takes one packet from what all users of a destination may send to it together, if there is one left.
#[inline(always)]
fn spend_of_destination<P: Platform>(platform: &P, index: u32, now_ns: u64) -> bool {
    let Some(entry) = platform.destination_limit(index) else {
        return false;
    };
    let settings = platform.settings();
    let (interval_ns, burst) = (settings.destination_interval_ns, settings.destination_burst);
    admission::spend(platform, &entry.tat_ns, interval_ns, burst, now_ns)
}

/// Sends the packet back to where it came from, token and all.
#[inline(always)]
fn reflect<F: Frame, I: Ip>(
    frame: &mut F,
    packet: &Packet<I>,
    sender: &Client,
    mac: Mac,
    carrier: Carrier,
) -> Result<Reason, Reason> {
    let envelope = Envelope {
        ip: Rewrite {
            source: packet.ip.destination(),
            destination: packet.ip.source(),
            hop_limit: PING_HOP_LIMIT,
            transport_bytes: packet.udp.length,
        },
        source_port: packet.udp.destination,
        destination_port: packet.udp.source,
        next_hop: sender.mac,
        mac,
        tags: sender.tags,
        strip: 0,
        stripped: Change::default(),
    };
    match carrier {
        Carrier::Udp => envelope.apply_as::<F, I, I>(frame, packet)?,
        Carrier::Option(_) => envelope.readdress(frame, packet).ok_or(Reason::Truncated)?,
    }
    Ok(Reason::Ping)
}
