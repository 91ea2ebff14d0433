//! What the backends share that keep users in the relay's own map entries, be they in the kernel or in this process.

use std::{
    net::SocketAddr,
    ops::RangeInclusive,
    sync::atomic::{AtomicU64, Ordering},
};

use relay_ebpf::{
    admission,
    host::HostMemory,
    layout::{
        self, Control, DestinationEntry, DestinationLimitEntry, DownLimitEntry, Listener, REPLAY_WINDOW, SaltEntry,
        Settings, SlotEntry, StateEntry, option_carrier,
    },
    token,
    wire::{Address, Be16, Mac, vlan},
};

use super::{BackendError, Client, Traffic, UserState};
use crate::world::{Carrier, Limit, NextHop, Tags, User, World};

/// The maps as slices of entries.
pub(super) trait Tables {
    fn slots(&self) -> &[SlotEntry];
    fn salts(&self) -> &[SaltEntry];
    fn client_tags(&self) -> &[AtomicU64];
    fn destinations(&self) -> &[DestinationEntry];
    fn down_limits(&self) -> &[DownLimitEntry];
    fn destination_limits(&self) -> &[DestinationLimitEntry];
    fn control(&self) -> &Control;
}

/// The load-time settings of a world. Time is the lab's unless the world says otherwise.
/// `indices` are the kernel's of the interfaces.
pub(super) fn settings(world: &World, tick_ns: u64, indices: &[u32]) -> Result<Settings, BackendError> {
    let (v4, v6) = (world.egress_of(true), world.egress_of(false));
    let (destination_interval_ns, destination_burst) = world.destination_limit.map_or((0, 0), interval_and_burst);
    let mut settings = Settings {
        tick_ns,
        lab_clock: u32::from(world.lab_clock),
        relay_id: world.relay_id,
        max_users: world.max_users,
        max_destinations: world.destinations.len().max(1) as u32,
        listener_count: world.listeners.len() as u32,
        egress_v4_count: v4.len() as u32,
        egress_v6_count: v6.len() as u32,
        first_egress_port: world.first_egress_port.into(),
        egress_ports: world.egress_ports.into(),
        drop_unmatched: u32::from(world.drop_unmatched),
        latency_sample: world.latency_sample,
        event_sample: world.event_sample,
        interface_count: world.interfaces().len() as u32,
        option_carrier: match (world.takes(Carrier::Udp), world.takes(Carrier::IpOption)) {
            (_, false) => option_carrier::OFF,
            (true, true) => option_carrier::ALSO,
            (false, true) => option_carrier::ALONE,
        },
        destination_interval_ns,
        destination_burst,
        vlan: u32::from(world.vlan),
        ..Settings::default().with_icmp_limit(world.icmp_per_second)
    };
    let interfaces = world.interfaces().into_iter().zip(indices);
    fill(
        &mut settings.interfaces,
        interfaces.map(|(interface, index)| layout::Interface {
            mac: Mac::new(interface.mac),
            index: *index,
            mtu: interface.mtu.into(),
        }),
        "interfaces",
    )?;
    fill(
        &mut settings.listeners,
        world.listeners.iter().map(|&at| listener(world, at)),
        "listeners",
    )?;
    fill(
        &mut settings.egress_v4,
        v4.into_iter().map(Address::from),
        "IPv4 egress addresses",
    )?;
    fill(
        &mut settings.egress_v6,
        v6.into_iter().map(Address::from),
        "IPv6 egress addresses",
    )?;
    Ok(settings)
}

/// A limit as the program has it.
fn interval_and_burst(Limit { rate, burst }: Limit) -> (u32, u32) {
    ((1_000_000_000 / rate.max(1)).max(1), burst)
}

fn listener(world: &World, at: SocketAddr) -> Listener {
    Listener {
        header_key: world.header_key.map_or([0; 2], |key| token::key(&key)),
        address: at.ip().into(),
        port: Be16::new(at.port()),
        protected: u8::from(world.header_key.is_some()),
        ..Listener::default()
    }
}

fn fill<T>(places: &mut [T], values: impl ExactSizeIterator<Item = T>, what: &str) -> Result<(), BackendError> {
    if values.len() > places.len() {
        let (count, most) = (values.len(), places.len());
        return Err(BackendError::World(format!(
            "the world has {count} {what}; the relay takes {most}"
        )));
    }
    for (place, value) in places.iter_mut().zip(values) {
        *place = value;
    }
    Ok(())
}

/// Puts all users and destinations of a world into the maps.
pub(super) fn populate<T: Tables>(tables: &T, world: &World) -> Result<(), BackendError> {
    for (entry, destination) in tables.destinations().iter().zip(&world.destinations) {
        let (address, port) = (destination.to.ip().into(), Be16::new(destination.to.port()));
        entry.set_endpoint(&HostMemory, address, port);
        entry.set_next_hop(&HostMemory, destination.next_hop.map(next_hop));
    }
    world.users.iter().try_for_each(|user| publish(tables, world, user))
}

/// Publishes a user the way the relay does: handle cleared first and written last, state zeroed.
pub(super) fn publish<T: Tables>(tables: &T, world: &World, user: &User) -> Result<(), BackendError> {
    let SlotEntry { user: entry, state } = slot(tables, user.slot)?;
    let ports = u32::from(world.egress_ports);
    let (interval_ns, burst) = interval_and_burst(Limit {
        rate: user.rate,
        burst: user.burst,
    });
    entry.clear(&HostMemory);
    let fields = layout::User {
        salt: user.salt,
        key: token::key(&user.key),
        expires_ns: user.expires_ns.unwrap_or(u64::MAX),
        interval_ns,
        burst,
        destination: destination(world, user.to)? as u32,
        has_down_limit: user.down_limit.is_some(),
        egress: (user.slot / ports) as u16,
        egress_port: Be16::new(world.first_egress_port + (user.slot % ports) as u16),
    };
    let down_limit = &tables.down_limits()[user.slot as usize];
    down_limit.clear(&HostMemory);
    if let Some((interval_ns, burst)) = user.down_limit.map(interval_and_burst) {
        down_limit.set_limit(&HostMemory, interval_ns, burst);
    }
    entry.write_fields(&HostMemory, &fields);
    state.clear(&HostMemory);
    entry.publish(&HostMemory, user.salt);
    tables.salts()[(user.slot / SaltEntry::SLOTS) as usize].note(&HostMemory, user.slot, user.salt);
    Ok(())
}

fn slot<T: Tables>(tables: &T, slot: u32) -> Result<&SlotEntry, BackendError> {
    let missing = || BackendError::World(format!("the world has no slot {slot}: raise max_users"));
    tables.slots().get(slot as usize).ok_or_else(missing)
}

fn destination(world: &World, to: SocketAddr) -> Result<usize, BackendError> {
    let missing = || BackendError::World(format!("the world has no destination {to}"));
    world
        .destinations
        .iter()
        .position(|known| known.to == to)
        .ok_or_else(missing)
}

pub(super) fn remove<T: Tables>(tables: &T, slot: u32) {
    tables.slots()[slot as usize].user.clear(&HostMemory);
}

pub(super) fn set_next_hop<T: Tables>(
    tables: &T,
    world: &World,
    to: SocketAddr,
    hop: Option<NextHop>,
) -> Result<(), BackendError> {
    let entry = &tables.destinations()[destination(world, to)?];
    entry.set_next_hop(&HostMemory, hop.map(next_hop));
    Ok(())
}

fn next_hop(hop: NextHop) -> layout::NextHop {
    layout::NextHop {
        mac: Mac::new(hop.mac),
        mtu: hop.mtu,
        interface: hop.interface,
        tags: tags(hop.tags),
    }
}

/// Forgets what was spent of limits that are no user's own.
pub(super) fn forget_shared_limits<T: Tables>(tables: &T) {
    tables.control().icmp_tat_ns.store(0, Ordering::Release);
    for entry in tables.destination_limits() {
        entry.tat_ns.store(0, Ordering::Release);
    }
}

/// The theoretical arrival time of the limit of a destination of the world.
pub(super) fn destination_tat<T: Tables>(tables: &T, world: &World, to: SocketAddr) -> u64 {
    let index = destination(world, to).ok();
    let entry = index.and_then(|index| tables.destination_limits().get(index));
    entry.map_or(0, |entry| entry.tat_ns.load(Ordering::Acquire))
}

/// Tells the program that the blocklist changed: another generation, 0 while it is empty.
pub(super) fn renew_block_generation(control: &Control, is_empty: bool, last: &mut u16) {
    *last = (*last % u16::MAX) + 1;
    let generation = if is_empty { 0 } else { u64::from(*last) };
    control.block_generation.store(generation, Ordering::Release);
}

fn tags(tags: Tags) -> vlan::Tags {
    let tags: Vec<_> = tags.iter().map(|tag| (Be16::new(tag.kind), tag.control)).collect();
    vlan::Tags::new(&tags)
}

/// What is kept of a user.
pub(super) fn user_state<T: Tables>(tables: &T, world: &World, slot: u32) -> UserState {
    let state = &tables.slots()[slot as usize].state;
    let read = |word: &AtomicU64| word.load(Ordering::Acquire);
    let newest = read(&state.newest);
    let client =
        admission::Client::load(&HostMemory, state, tables.client_tags().get(slot as usize)).map(|client| Client {
            address: SocketAddr::new(client.address.into(), client.port.get()),
            mac: client.mac.bytes(),
            listener: world.listeners[usize::from(client.listener)],
            interface: client.interface,
            tags: Tags::of(client.tags.iter().map(|(kind, control)| (kind.get(), control))),
            block_generation: (read(&state.client_guard) >> 48) as u16,
        });
    UserState {
        newest,
        accepted: accepted(state, newest),
        tat_ns: read(&state.tat_ns),
        down_tat_ns: read(&tables.down_limits()[slot as usize].tat_ns),
        client,
        uplink: Traffic {
            packets: read(&state.uplink_packets),
            bytes: read(&state.uplink_bytes),
        },
        downlink: Traffic {
            packets: read(&state.downlink_packets),
            bytes: read(&state.downlink_bytes),
        },
    }
}

/// The packet numbers in the window whose bits are set, as ranges.
fn accepted(state: &StateEntry, newest: u64) -> Vec<RangeInclusive<u64>> {
    let mut ranges: Vec<RangeInclusive<u64>> = Vec::new();
    if state.window.iter().all(|word| word.load(Ordering::Acquire) == 0) {
        return ranges;
    }
    for pn in newest.saturating_sub(REPLAY_WINDOW - 1)..=newest {
        let seen = admission::has_accepted(&HostMemory, state, pn);
        match ranges.last_mut() {
            Some(last) if seen && last.end() + 1 == pn => *last = *last.start()..=pn,
            _ if seen => ranges.push(pn..=pn),
            _ => {}
        }
    }
    ranges
}
