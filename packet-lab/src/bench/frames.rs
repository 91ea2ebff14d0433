//! The packets of each path: whose they are, and what is wrong with them.

use std::net::{IpAddr, SocketAddr};

use lab_ebpf::HEAD_BYTES;
use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};

use super::{Options, Path};
use crate::{
    craft::{Grant, TOKEN_BYTES, UdpFrame},
    world::{Destination, NextHop, Tags, User, World, address},
};

/// Ports of each egress address; there are as many addresses as the users need.
const EGRESS_PORTS: u16 = 50_000;
/// Destinations that the users share, each with an entry of its own.
const DESTINATIONS: u32 = 1_000;
/// Clients number their first packet by the clock: this is one of 2026, in microseconds since 1970.
const FIRST_PN: u64 = 1_767_225_600_000_000;
/// What production samples by default: one packet in this many is timed, one drop in this many is told.
const LATENCY_SAMPLE: u32 = 1_024;
const EVENT_SAMPLE: u32 = 64;

/// The start of a frame, as the feeder takes it.
pub(super) type Head = [u8; HEAD_BYTES];

/// Makes packets. Each user numbers its own, one after the other, as clients do.
pub(super) struct Frames {
    world: World,
    options: Options,
    payload: Vec<u8>,
    random: SmallRng,
    /// By slot.
    next_pn: Vec<u64>,
}

impl Frames {
    /// The users of `options`, and one more who is alone on the path of the one user.
    pub(super) fn new(options: Options) -> Self {
        let world = world(options);
        Self {
            next_pn: vec![FIRST_PN; world.users.len()],
            payload: vec![0x5a; options.payload_bytes],
            random: SmallRng::seed_from_u64(u64::from(options.users)),
            world,
            options,
        }
    }

    pub(super) const fn world(&self) -> &World {
        &self.world
    }

    /// Length of an uplink frame.
    pub(super) const fn uplink_bytes(&self) -> usize {
        self.downlink_bytes() + TOKEN_BYTES
    }

    const fn downlink_bytes(&self) -> usize {
        let ip = if self.options.ipv6 { 40 } else { 20 };
        14 + ip + 8 + self.options.payload_bytes
    }

    /// Length of the frames of a path.
    pub(super) const fn bytes(&self, path: Path) -> usize {
        match path {
            Path::Downlink | Path::DownlinkHot => self.downlink_bytes(),
            _ => self.uplink_bytes(),
        }
    }

    /// Valid packets of one user after the other, from `first` on.
    pub(super) fn of_users_from(&mut self, first: u32) -> Vec<Head> {
        let Options { users, packets, .. } = self.options;
        (0..packets).map(|i| self.uplink((first + i) % users, |_| {})).collect()
    }

    /// Packets that take this path.
    pub(super) fn of(&mut self, path: Path) -> Vec<Head> {
        (0..self.options.packets).map(|_| self.frame(path)).collect()
    }

    fn frame(&mut self, path: Path) -> Head {
        let slot = self.random.random_range(0..self.options.users);
        match path {
            Path::Hot => self.uplink(self.options.users, |_| {}),
            Path::Uplink | Path::Replayed | Path::Expired | Path::RateLimited => self.uplink(slot, |_| {}),
            Path::DownlinkHot => self.downlink(self.options.users),
            Path::Downlink => self.downlink(slot),
            Path::UnknownSession => {
                let wrong = self.random.random_range(1..=u32::MAX);
                self.uplink(slot, |grant| grant.salt ^= wrong)
            }
            Path::BadToken => self.uplink(slot, |grant| grant.key[0] ^= 1),
            Path::Unrelated => {
                let mut to = self.world.listeners[0];
                to.set_port(9);
                head(client(slot, self.options.ipv6), to, self.uplink_payload())
            }
        }
    }

    fn uplink(&mut self, slot: u32, change: impl FnOnce(&mut Grant)) -> Head {
        let user = &self.world.users[slot as usize];
        let mut grant = Grant {
            slot,
            salt: user.salt,
            key: user.key,
            header_key: self.world.header_key,
            relay_id: self.world.relay_id,
        };
        change(&mut grant);
        let pn = &mut self.next_pn[slot as usize];
        *pn += 1;
        let sealed = grant.seal(*pn, &self.payload);
        head(client(slot, self.options.ipv6), self.world.listeners[0], sealed)
    }

    fn uplink_payload(&self) -> Vec<u8> {
        vec![0; TOKEN_BYTES + self.payload.len()]
    }

    fn downlink(&self, slot: u32) -> Head {
        let from = self.world.users[slot as usize].to;
        let egress = self.world.egress_endpoint(slot, !self.options.ipv6);
        let egress = egress.expect("there are egress ports for all users");
        head(from, egress, self.payload.clone())
    }
}

fn head(from: SocketAddr, to: SocketAddr, payload: Vec<u8>) -> Head {
    let bytes = UdpFrame::new(from, to, payload).build();
    std::array::from_fn(|i| bytes[i])
}

fn world(options: Options) -> World {
    let mut world = World::new();
    let (listener, first_egress): (_, IpAddr) = if options.ipv6 {
        ("[2001:db8::1]:4500", address("2001:db8::1"))
    } else {
        ("192.0.2.1:4500", address("192.0.2.1"))
    };
    let slots = options.users + 1;
    world.lab_clock = false;
    world.latency_sample = LATENCY_SAMPLE;
    world.event_sample = EVENT_SAMPLE;
    world.listeners = vec![address(listener)];
    world.egress = egress(first_egress, slots.div_ceil(EGRESS_PORTS.into()));
    world.egress_ports = EGRESS_PORTS;
    world.header_key = options.header_protection.then_some([0xf0; 16]);
    world.max_users = slots;
    let shared = DESTINATIONS.min(options.users);
    world.destinations = (0..shared).map(|index| destination(index, options.ipv6)).collect();
    world.users = (0..world.max_users)
        .map(|slot| user(slot, world.destinations[(slot % shared) as usize].to))
        .collect();
    world
}

/// So many addresses, one after the other.
fn egress(first: IpAddr, count: u32) -> Vec<IpAddr> {
    let addresses = |nth: u32| match first {
        IpAddr::V4(v4) => IpAddr::from((v4.to_bits() + nth).to_be_bytes()),
        IpAddr::V6(v6) => IpAddr::from((v6.to_bits() + u128::from(nth)).to_be_bytes()),
    };
    (0..count).map(addresses).collect()
}

fn client(slot: u32, ipv6: bool) -> SocketAddr {
    let [_, high, middle, low] = slot.to_be_bytes();
    let ip = if ipv6 {
        IpAddr::from([0x20, 1, 0x0d, 0xb8, 0, 0xc, 0, 0, 0, 0, 0, 0, 0, high, middle, low])
    } else {
        IpAddr::from([10, high, middle, low])
    };
    SocketAddr::new(ip, 40_000)
}

fn destination(index: u32, ipv6: bool) -> Destination {
    let [_, _, high, low] = index.to_be_bytes();
    let ip = if ipv6 {
        IpAddr::from([0x20, 1, 0x0d, 0xb8, 0, 0xd, 0, 0, 0, 0, 0, 0, 0, 0, high, low])
    } else {
        IpAddr::from([198, 51, high, low])
    };
    Destination {
        to: SocketAddr::new(ip, 5_000),
        next_hop: Some(NextHop {
            mac: [0x02, 0, 0, 0, high, low],
            mtu: 1_500,
            interface: 0,
            tags: Tags::NONE,
        }),
    }
}

/// A user whom no rate holds back.
fn user(slot: u32, to: SocketAddr) -> User {
    User {
        slot,
        salt: slot.wrapping_mul(0x9e37_79b9) | 1,
        key: u128::from(slot)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)
            .to_le_bytes(),
        to,
        rate: 1_000_000_000,
        burst: u32::MAX,
        down_limit: None,
        expires_ns: None,
    }
}
