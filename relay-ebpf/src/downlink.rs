//! From a destination to its client.

use crate::{
    admission::{self, Client},
    layout::{MAX_LISTENERS, Settings, SlotEntry},
    platform::Platform,
    translate::{Envelope, Packet},
    verdict::{Decision, Reason},
    wire::{
        Address, Be16, Frame,
        checksum::Change,
        ip::{Ip, Rewrite},
        udp,
    },
};

/// The slot that an egress address and port belong to; `None` if they are no egress address and port.
#[inline(always)]
pub fn slot(settings: &Settings, address: Address, port: Be16) -> Option<u32> {
    let offset = (port.get() as u32).wrapping_sub(settings.first_egress_port);
    if offset >= settings.egress_ports {
        return None;
    }
    let (addresses, count) = if address.is_v4() {
        (&settings.egress_v4, settings.egress_v4_count)
    } else {
        (&settings.egress_v6, settings.egress_v6_count)
    };
    for (index, candidate) in addresses.iter().enumerate() {
        if index >= count as usize {
            break;
        }
        if *candidate == address {
            return Some(index as u32 * settings.egress_ports + offset);
        }
    }
    None
}

/// Decides about a packet for the egress address and port of `slot`, and rewrites it if it is to be transmitted.
#[inline(always)]
pub fn process<F: Frame, P: Platform, I: Ip>(frame: &mut F, platform: &P, packet: &Packet<I>, slot: u32) -> Decision {
    relay(frame, platform, packet, slot).unwrap_or_else(Decision::settled)
}

#[inline(always)]
fn relay<F: Frame, P: Platform, I: Ip>(
    frame: &mut F,
    platform: &P,
    packet: &Packet<I>,
    slot: u32,
) -> Result<Decision, Reason> {
    let settings = platform.settings();
    let unsolicited = Reason::Unsolicited;
    if slot >= settings.max_users {
        return Err(unsolicited);
    }
    let SlotEntry { user: entry, state } = platform.slot(slot).ok_or(unsolicited)?;
    platform.touch(&state.client_guard);
    let user = entry.get(platform).ok_or(unsolicited)?;
    let destination = platform.destination(user.destination).ok_or(unsolicited)?;
    if destination.endpoint(platform) != (packet.ip.source(), packet.udp.source) {
        return Err(unsolicited);
    }
    let client = Client::load(platform, state, platform.tags_of_client(slot)).ok_or(unsolicited)?;
    if !entry.has_handle(platform, user.salt) {
        return Err(unsolicited);
    }
    let listener = &settings.listeners[client.listener as usize % MAX_LISTENERS];

    if packet.ip.is_fragment() {
        return Err(Reason::Fragment);
    }
    let payload = packet.payload_bytes(frame).ok_or(Reason::Truncated)?;
    if user.has_down_limit && !spend(platform, slot) {
        return Err(Reason::RateLimited);
    }
    if packet.ip.hop_limit() <= 1 {
        return Err(Reason::TtlExpired);
    }
    let interface = platform.interface(client.interface);
    let envelope = Envelope {
        ip: Rewrite {
            source: listener.address,
            destination: client.address,
            hop_limit: packet.ip.hop_limit() - 1,
            transport_bytes: payload + udp::HEADER_BYTES as u16,
        },
        source_port: listener.port,
        destination_port: client.port,
        next_hop: client.mac,
        mac: interface.mac,
        tags: client.tags,
        strip: 0,
        stripped: Change::default(),
    };
    if let Some(too_big) = envelope.check_size::<I>(interface.mtu as usize) {
        return Ok(too_big);
    }
    envelope.apply(frame, packet)?;
    platform.add(&state.downlink_packets, 1);
    platform.add(&state.downlink_bytes, payload as u64);
    Ok(Decision::sent(Reason::Relayed, client.interface))
}

/// Takes one packet from the budget of a slot whose user has a limit, if there is one left.
#[inline(always)]
fn spend<P: Platform>(platform: &P, slot: u32) -> bool {
    let Some(entry) = platform.down_limit(slot) else {
        return false;
    };
    let (interval_ns, burst) = entry.limit(platform);
    admission::spend(platform, &entry.tat_ns, interval_ns, burst, platform.now_ns())
}
