//! Who is there in a run, and where.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;

use super::{class::Class, dice::Dice, profile::Profile};
use crate::{
    craft::Grant,
    world::{self, Destination, NextHop, Tags, World, address},
};

/// When runs begin, on the lab's clock.
pub(super) const START_NS: u64 = 1_000_000_000;
/// What clients' clocks say then, in microseconds since 1970: where their packet numbers start.
const START_US: u64 = 1_790_000_000_000_000;
/// MAC addresses of the routers that clients' packets come by.
const ROUTERS: [[u8; 6]; 2] = [[0x02, 0, 0, 0, 0, 0xc1], [0x02, 0, 0, 0, 0, 0xc2]];
/// Where destinations' packets come from and go to.
pub(super) const NEXT_HOP: NextHop = NextHop {
    mac: [0x02, 0, 0, 0, 0, 0xd1],
    mtu: 1500,
    interface: 0,
    tags: Tags::NONE,
};
const HEADER_KEY: [u8; 16] = [
    0xf0, 0xf1, 0xf2, 0xf3, 0xf4, 0xf5, 0xf6, 0xf7, 0xf8, 0xf9, 0xfa, 0xfb, 0xfc, 0xfd, 0xfe, 0xff,
];
/// Destinations of each family; the last is that of stranded users.
const DESTINATIONS: u32 = 16;
/// Apart from the chances of actors.
const GRANTS: u64 = 1 << 40;

/// A place that packets come from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Place {
    pub(super) address: SocketAddr,
    pub(super) mac: [u8; 6],
}

/// A user, as it is from the beginning. Its slot is its index.
#[derive(Clone, Copy, Debug)]
pub(super) struct Person {
    pub(super) id: u32,
    pub(super) class: Class,
    pub(super) is_v4: bool,
    pub(super) to: SocketAddr,
    pub(super) listener: SocketAddr,
    pub(super) egress: SocketAddr,
    pub(super) rate: u32,
    pub(super) burst: u32,
    /// The first grant's end.
    pub(super) expires_ns: Option<u64>,
}

/// Everybody.
#[derive(Clone, Debug)]
pub(super) struct Population {
    seed: u64,
    pub(super) people: Vec<Person>,
    pub(super) world: World,
    pub(super) blocklist: Vec<IpNet>,
}

impl Population {
    pub(super) fn new(profile: &Profile) -> Self {
        let classes = profile.users_of_classes();
        let classes = classes
            .iter()
            .flat_map(|&(class, count)| std::iter::repeat_n(class, count as usize));
        let mut world = empty_world(profile);
        let people: Vec<Person> = (0..)
            .zip(classes)
            .map(|(id, class)| person(profile, &world, id, class))
            .collect();
        let mut population = Self {
            seed: profile.seed,
            people,
            world: world.clone(),
            blocklist: vec![address("198.19.0.0/16"), address("2001:db8:bad::/48")],
        };
        world.users = (0..profile.users).map(|id| population.user(id, 0)).collect();
        population.world = world;
        population
    }

    /// A user's `nth` grant, as clients have it.
    pub(super) fn grant(&self, id: u32, nth: u32) -> Grant {
        let mut dice = Dice::new(self.seed, GRANTS + (u64::from(id) << 16) + u64::from(nth));
        let salt = dice.number() as u32;
        let (one, two) = (dice.number().to_le_bytes(), dice.number().to_le_bytes());
        let mut key = [0; 16];
        key[..8].copy_from_slice(&one);
        key[8..].copy_from_slice(&two);
        Grant {
            slot: id,
            salt,
            key,
            header_key: self.world.header_key,
            relay_id: self.world.relay_id,
        }
    }

    /// A user with its `nth` grant, as the relay has it.
    pub(super) fn user(&self, id: u32, nth: u32) -> world::User {
        let person = &self.people[id as usize];
        let grant = self.grant(id, nth);
        world::User {
            slot: id,
            salt: grant.salt,
            key: grant.key,
            to: person.to,
            rate: person.rate,
            burst: person.burst,
            down_limit: None,
            expires_ns: person.expires_ns.filter(|_| nth == 0),
        }
    }

    pub(super) fn listener(&self, is_v4: bool) -> SocketAddr {
        self.world.listeners[usize::from(!is_v4)]
    }

    pub(super) fn is_blocked(&self, source: IpAddr) -> bool {
        self.blocklist.iter().any(|prefix| prefix.contains(&source))
    }
}

/// A relay with room for all users of the run, and all destinations. What is unsolicited is dropped.
fn empty_world(profile: &Profile) -> World {
    let mut world = World::new();
    let addresses = world.egress_of(true).len() as u32;
    world.egress_ports = profile.users.div_ceil(addresses).max(8) as u16;
    world.max_users = u32::from(world.egress_ports) * addresses;
    world.header_key = profile.header_protection.then_some(HEADER_KEY);
    world.drop_unmatched = true;
    let both = [true, false].into_iter();
    let destinations = both.flat_map(|is_v4| (0..DESTINATIONS).map(move |nth| destination(is_v4, nth)));
    world.destinations = destinations
        .map(|to| Destination {
            to,
            next_hop: Some(NEXT_HOP),
        })
        .collect();
    world
}

fn person(profile: &Profile, world: &World, id: u32, class: Class) -> Person {
    let is_v4 = id.is_multiple_of(2);
    let nth = if class == Class::Stranded {
        DESTINATIONS - 1
    } else {
        id / 2 % (DESTINATIONS - 1)
    };
    let (rate, burst) = if class == Class::Greedy {
        (200, 20)
    } else {
        (10_000, 1_000)
    };
    let mut dice = Dice::new(profile.seed, GRANTS + (u64::from(id) << 16) + 0xffff);
    let end_ns = profile.end_ns();
    let expires_ns = START_NS + dice.between(end_ns / 10 * 3, end_ns / 10 * 7);
    Person {
        id,
        class,
        is_v4,
        to: destination(is_v4, nth),
        listener: world.listeners[usize::from(!is_v4)],
        egress: world
            .egress_endpoint(id, is_v4)
            .expect("the world has an egress port for every user"),
        rate,
        burst,
        expires_ns: (class == Class::Expiring).then_some(expires_ns),
    }
}

/// A destination: an address of the documentation ranges.
pub(super) fn destination(is_v4: bool, nth: u32) -> SocketAddr {
    let ip: IpAddr = if is_v4 {
        Ipv4Addr::new(198, 51, 100, 1 + nth as u8).into()
    } else {
        Ipv6Addr::new(0x2001, 0xdb8, 0xd, 0, 0, 0, 0, 1 + nth as u16).into()
    };
    SocketAddr::new(ip, 5_000 + nth as u16)
}

/// The destination that is lost for a while.
pub(super) fn stranded(is_v4: bool) -> SocketAddr {
    destination(is_v4, DESTINATIONS - 1)
}

/// Where a user's client is after it moved `moves` times and its NAT gave it `ports` other ports.
pub(super) fn client_place(person: &Person, moves: u32, ports: u32) -> Place {
    let (id, moves16) = (person.id, moves as u16);
    let ip: IpAddr = if person.is_v4 {
        // The shared address space of RFC 6598: users share addresses there, as behind a carrier's NAT.
        let host = id.wrapping_mul(2_654_435_761).wrapping_add(moves.wrapping_mul(40_503)) % (1 << 22);
        Ipv4Addr::from_bits(Ipv4Addr::new(100, 64, 0, 0).to_bits() + host).into()
    } else {
        Ipv6Addr::new(0x2001, 0xdb8, 0xc, (id >> 16) as u16, id as u16, moves16, 0, 1).into()
    };
    let port = 1_024 + (id.wrapping_mul(31).wrapping_add(ports.wrapping_mul(7_919)) % 64_000) as u16;
    Place {
        address: SocketAddr::new(ip, port),
        mac: ROUTERS[moves as usize % ROUTERS.len()],
    }
}

/// Behind which blocklisted address a user's client is while it is blocked.
pub(super) fn blocked_place(person: &Person) -> Place {
    let ip: IpAddr = if person.is_v4 {
        Ipv4Addr::from_bits(Ipv4Addr::new(198, 19, 0, 0).to_bits() + person.id % (1 << 16)).into()
    } else {
        Ipv6Addr::new(
            0x2001,
            0xdb8,
            0xbad,
            1,
            (person.id >> 16) as u16,
            person.id as u16,
            0,
            1,
        )
        .into()
    };
    Place {
        address: SocketAddr::new(ip, 40_000),
        mac: ROUTERS[0],
    }
}

/// Somewhere that an attacker claims to send from.
pub(super) fn attacker_place(dice: &mut Dice, is_v4: bool, blocklisted: bool) -> Place {
    let host = dice.number();
    let ip: IpAddr = if is_v4 {
        let network = Ipv4Addr::new(198, if blocklisted { 19 } else { 18 }, 0, 0);
        Ipv4Addr::from_bits(network.to_bits() + u32::from(host as u16)).into()
    } else {
        let third = if blocklisted { 0xbad } else { 0xa77 };
        let [a, b, c] = [host, host >> 16, host >> 32].map(|part| part as u16);
        Ipv6Addr::new(0x2001, 0xdb8, third, 2, 0, a, b, c).into()
    };
    Place {
        address: SocketAddr::new(ip, dice.between(1_024, 65_535) as u16),
        mac: ROUTERS[1],
    }
}

/// What a client starts its packet numbers at: its clock, in microseconds since 1970.
pub(super) fn first_packet_number(now_ns: u64) -> u64 {
    START_US + (now_ns - START_NS) / 1_000
}
