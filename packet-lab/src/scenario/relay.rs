//! The relay of a scenario, its users and destinations, as a [`World`]; with the defaults that a file leaves out.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
};

use relay_ebpf::layout::{MAX_EGRESS, MAX_INTERFACES, MAX_LISTENERS};

use super::file::{Destination, File, Interface, NextHop, Relay, Renew, Unmatched, User, Vlan};
use super::load::Scenario;
use crate::world::{self, Limit, World};

/// MAC address of next hops that nothing else is said of.
pub const NEXT_HOP_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0xd1];
/// Largest IP packet of a link that nothing else is said of, in bytes.
const MTU: u16 = 1500;
/// Bytes that a first buffer can have: at least an Ethernet header, at most what a page of a test run holds.
const FIRST_BUFFER: RangeInclusive<usize> = 14..=3_500;
/// Key of the header protection that nothing else is said of.
const HEADER_KEY: [u8; 16] = [
    0xf0, 0xf1, 0xf2, 0xf3, 0xf4, 0xf5, 0xf6, 0xf7, 0xf8, 0xf9, 0xfa, 0xfb, 0xfc, 0xfd, 0xfe, 0xff,
];
pub(super) const RATE: u32 = 10_000;
pub(super) const BURST: u32 = 1_000;
/// More slots make runs slow and snapshots say nothing more.
const MOST_USERS: u32 = 1 << 20;

/// A relay with nothing left out.
#[derive(Clone, Debug)]
pub(super) struct Setting {
    pub(super) world: World,
    pub(super) max_users: u32,
}

impl Setting {
    pub(super) fn of(relay: Option<&Relay>) -> Self {
        let relay = relay.cloned().unwrap_or_default();
        let base = World::new();
        let listeners = relay.listen.unwrap_or(base.listeners);
        let egress = relay.egress.unwrap_or_else(|| addresses(&listeners));
        let (first, count) = relay
            .egress_ports
            .map_or((base.first_egress_port, base.egress_ports), |ports| {
                (ports.first, (ports.last - ports.first).saturating_add(1))
            });
        let of = |v4: bool| egress.iter().filter(|address| address.is_ipv4() == v4).count() as u32;
        let room = of(true).max(of(false)) * u32::from(count);
        let max_users = relay.max_users.unwrap_or(room);
        let protected = relay.header_protection.unwrap_or(true);
        let mut interfaces = interfaces(&relay.interfaces.unwrap_or_default());
        if interfaces.is_empty() {
            interfaces.push(world::Interface {
                mac: relay.mac.map_or(base.mac, |mac| mac.0),
                mtu: relay.mtu.unwrap_or(MTU),
            });
        }
        let first_interface = interfaces.remove(0);
        let world = World {
            mac: first_interface.mac,
            more_interfaces: interfaces,
            relay_id: relay.relay_id.unwrap_or(base.relay_id),
            header_key: protected.then(|| relay.header_key.map_or(HEADER_KEY, |key| key.0)),
            carriers: relay.carrier.unwrap_or(base.carriers),
            listeners,
            egress,
            first_egress_port: first,
            egress_ports: count,
            max_users,
            drop_unmatched: relay.unmatched == Some(Unmatched::Drop),
            mtu: first_interface.mtu,
            first_buffer: relay.first_buffer,
            icmp_per_second: relay.icmp_per_second.unwrap_or(base.icmp_per_second),
            destination_limit: limit(relay.destination_packets_per_second, relay.destination_burst, None),
            vlan: relay.vlan.unwrap_or(false),
            ..World::new()
        };
        Self { world, max_users }
    }

    /// What cannot be, by key.
    pub(super) fn faults(&self) -> Vec<(&'static str, String)> {
        let World { listeners, egress, .. } = &self.world;
        let mut faults = Vec::new();
        if listeners.is_empty() || listeners.len() > MAX_LISTENERS {
            let count = listeners.len();
            faults.push(("listen", format!("{count} listeners; a relay has 1 to {MAX_LISTENERS}")));
        }
        for v4 in [true, false] {
            let count = egress.iter().filter(|address| address.is_ipv4() == v4).count();
            if count > MAX_EGRESS {
                let family = if v4 { 4 } else { 6 };
                faults.push((
                    "egress",
                    format!("{count} IPv{family} addresses; a relay has at most {MAX_EGRESS}"),
                ));
            }
        }
        if let Some(bytes) = self.world.first_buffer.filter(|bytes| !FIRST_BUFFER.contains(bytes)) {
            let (least, most) = FIRST_BUFFER.into_inner();
            let message = format!("{bytes} bytes; a first buffer has {least} (an Ethernet header) to {most}");
            faults.push(("first_buffer", message));
        }
        let interfaces = self.world.interfaces();
        if interfaces.len() > MAX_INTERFACES {
            let count = interfaces.len();
            let message = format!("{count} interfaces; a relay has at most {MAX_INTERFACES}");
            faults.push(("interfaces", message));
        }
        let is_twice = |at: usize| interfaces[..at].iter().any(|other| other.mac == interfaces[at].mac);
        if (0..interfaces.len()).any(is_twice) {
            faults.push(("interfaces", "two interfaces with one MAC address".to_owned()));
        }
        if self.world.carriers.is_empty() {
            faults.push(("carrier", "no carrier: no token could travel".to_owned()));
        }
        if egress.is_empty() {
            faults.push(("egress", "no egress address: nothing could be relayed".to_owned()));
        }
        if self.max_users == 0 || self.max_users > MOST_USERS {
            let message = format!("{} slots; a scenario's relay has 1 to {MOST_USERS}", self.max_users);
            faults.push(("max_users", message));
        }
        faults
    }
}

/// Interfaces whose MAC addresses, if not given, are 02:00:00:00:00:01 and the next ones.
fn interfaces(given: &[Interface]) -> Vec<world::Interface> {
    let given = given.iter().enumerate();
    given
        .map(|(number, interface)| world::Interface {
            mac: interface
                .mac
                .map_or([0x02, 0, 0, 0, 0, (number as u8).wrapping_add(1)], |mac| mac.0),
            mtu: interface.mtu.unwrap_or(MTU),
        })
        .collect()
}

fn addresses(listeners: &[SocketAddr]) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = Vec::new();
    for listener in listeners {
        if !addresses.contains(&listener.ip()) {
            addresses.push(listener.ip());
        }
    }
    addresses
}

/// The users that there are, by id, with how often their grants were renewed.
#[derive(Clone, Debug, Default)]
pub(super) struct Users {
    present: BTreeMap<u64, (world::User, u32)>,
    names: BTreeMap<u32, u64>,
}

impl Users {
    /// The user with an id.
    pub(super) fn get(&self, id: u64) -> Option<&world::User> {
        self.present.get(&id).map(|(user, _)| user)
    }

    /// Who has a slot, or had it last.
    pub(super) fn id_of(&self, slot: u32) -> Option<u64> {
        self.names.get(&slot).copied()
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &world::User> {
        self.present.values().map(|(user, _)| user)
    }

    pub(super) fn add(&mut self, user: &User) -> world::User {
        let free = (0..u32::MAX).find(|slot| !self.present.values().any(|(other, _)| other.slot == *slot));
        let slot = user.slot.or(free).unwrap_or(u32::MAX);
        let (salt, key) = derived(user.id, 0);
        let added = world::User {
            slot,
            salt: user.salt.unwrap_or(salt),
            key: user.key.map_or(key, |key| key.0),
            to: user.to,
            rate: user.rate.unwrap_or(RATE),
            burst: user.burst.unwrap_or(BURST),
            down_limit: limit(user.down_rate, user.down_burst, None),
            expires_ns: user.expires_at.map(|at| at.0),
        };
        self.present.insert(user.id, (added, 0));
        self.names.insert(slot, user.id);
        added
    }

    pub(super) fn renew(&mut self, renew: &Renew) -> Option<world::User> {
        let (user, renewals) = self.present.get_mut(&renew.user)?;
        *renewals += 1;
        let (salt, key) = derived(renew.user, *renewals);
        user.salt = renew.salt.unwrap_or(salt);
        user.key = renew.key.map_or(key, |key| key.0);
        user.to = renew.to.unwrap_or(user.to);
        user.rate = renew.rate.unwrap_or(user.rate);
        user.burst = renew.burst.unwrap_or(user.burst);
        user.down_limit = limit(renew.down_rate, renew.down_burst, user.down_limit);
        user.expires_ns = renew.expires_at.map(|at| at.0).or(user.expires_ns);
        Some(*user)
    }

    pub(super) fn remove(&mut self, id: u64) -> Option<world::User> {
        self.present.remove(&id).map(|(user, _)| user)
    }
}

/// A limit of which the file says this, and that was this before. Without a rate there is none.
fn limit(rate: Option<u32>, burst: Option<u32>, former: Option<Limit>) -> Option<Limit> {
    Some(Limit {
        rate: rate.or(former.map(|limit| limit.rate))?,
        burst: burst.or(former.map(|limit| limit.burst)).unwrap_or(BURST),
    })
}

/// Salt and key of a user's grant, where the file does not say: different for each user and each renewal.
fn derived(id: u64, renewals: u32) -> (u32, [u8; 16]) {
    let salt = (id as u32).wrapping_add(0x1000_0000_u32.wrapping_mul(renewals + 1));
    let mut key = [0; 16];
    key[..8].copy_from_slice(&id.to_be_bytes());
    key[8..].copy_from_slice(&u64::from(renewals).to_be_bytes());
    (salt, key)
}

impl Scenario {
    /// The world at the start; none if it is about another program than the relay.
    #[must_use]
    pub fn world(&self) -> Option<World> {
        self.file.program.is_none().then(|| world(&self.file).0)
    }
}

/// The world at the start, and its users.
pub(super) fn world(file: &File) -> (World, Users) {
    let mut world = Setting::of(file.relay.as_ref()).world;
    let mut users = Users::default();
    // Slots that are given are taken before free ones are looked for.
    let mut order: Vec<&User> = file.users.iter().collect();
    order.sort_by_key(|user| user.slot.is_none());
    for user in order {
        users.add(user);
    }
    world.users = users.all().copied().collect();
    world.destinations = destinations(file);
    (world, users)
}

/// All that are named anywhere, those that are described first.
fn destinations(file: &File) -> Vec<world::Destination> {
    let mut all: Vec<world::Destination> = file.destinations.iter().map(destination).collect();
    let named = file.users.iter().map(|user| user.to);
    let later = file.steps.iter().flat_map(|step| {
        let added = step.add_user.as_ref().map(|user| user.to);
        let renewed = step.renew.as_ref().and_then(|renew| renew.to);
        let hop = step.next_hop.as_ref().map(|hop| hop.to);
        [added, renewed, hop].into_iter().flatten()
    });
    for to in named.chain(later) {
        if !all.iter().any(|known| known.to == to) {
            let next_hop = Some(world::NextHop {
                mac: NEXT_HOP_MAC,
                mtu: MTU,
                interface: 0,
                tags: world::Tags::NONE,
            });
            all.push(world::Destination { to, next_hop });
        }
    }
    all
}

/// Tags as a world has them.
pub(super) fn tags(given: &[Vlan]) -> world::Tags {
    world::Tags::of(given.iter().map(|tag| tag.kind_and_control()))
}

fn destination(given: &Destination) -> world::Destination {
    let next_hop = world::NextHop {
        mac: given.mac.map_or(NEXT_HOP_MAC, |mac| mac.0),
        mtu: given.mtu.unwrap_or(MTU),
        interface: given.interface.unwrap_or(0),
        tags: tags(&given.vlan),
    };
    world::Destination {
        to: given.to,
        next_hop: given.resolved.unwrap_or(true).then_some(next_hop),
    }
}

/// What a next hop becomes; `None` if it is lost.
pub(super) fn next_hop(change: &NextHop) -> Option<world::NextHop> {
    let found = world::NextHop {
        mac: change.mac.map_or(NEXT_HOP_MAC, |mac| mac.0),
        mtu: change.mtu.unwrap_or(MTU),
        interface: change.interface.unwrap_or(0),
        tags: tags(&change.vlan),
    };
    (!change.lost).then_some(found)
}
