//! The packets of each path: whose they are, and what is wrong with them.

use std::net::SocketAddr;

use lab_ebpf::{HEAD_BYTES, RING};
use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};

use super::Path;
use crate::{
    craft::{Grant, TOKEN_BYTES, UdpFrame},
    world::{Destination, NextHop, User, World, address},
};

/// Ports of each egress address, so that three addresses have room for 100,000 users and more.
const EGRESS_PORTS: u16 = 50_000;
/// Destinations that the users share, each with an entry of its own.
const DESTINATIONS: u32 = 1_000;
/// No user is held back, but the one that is to be.
const NO_LIMIT: u32 = 1_000_000_000;

/// Users that are not among those at random.
#[derive(Clone, Copy)]
enum Special {
    Hot,
    Expired,
    Limited,
}

/// Makes packets, each with a packet number of its own.
pub(super) struct Frames {
    world: World,
    users: u32,
    payload: Vec<u8>,
    random: SmallRng,
    next_pn: u64,
}

impl Frames {
    /// Of so many users; payloads are at least so long that all the feeder writes is in the frame.
    pub(super) fn new(users: u32, payload_bytes: usize) -> Self {
        let mut world = World::new();
        world.lab_clock = false;
        world.egress = ["192.0.2.1", "192.0.2.2", "192.0.2.3"].map(address).to_vec();
        world.egress_ports = EGRESS_PORTS;
        world.max_users = users + 3;
        world.header_key = Some([0xf0; 16]);
        let shared = DESTINATIONS.min(users);
        world.destinations = (0..shared).map(destination).collect();
        world.users = (0..world.max_users).map(|slot| user(slot, users)).collect();
        Self {
            world,
            users,
            payload: vec![0x5a; payload_bytes],
            random: SmallRng::seed_from_u64(u64::from(users)),
            next_pn: 1 << 50,
        }
    }

    pub(super) const fn world(&self) -> &World {
        &self.world
    }

    pub(super) const fn users(&self) -> u32 {
        self.users
    }

    /// Length of an uplink frame over IPv4.
    pub(super) fn uplink_bytes(&self) -> usize {
        self.downlink_bytes() + TOKEN_BYTES
    }

    fn downlink_bytes(&self) -> usize {
        14 + 20 + 8 + self.payload.len()
    }

    /// Length of the frames of a path.
    pub(super) fn bytes(&self, path: Path) -> usize {
        match path {
            Path::Downlink => self.downlink_bytes(),
            _ => self.uplink_bytes(),
        }
    }

    /// A ring of valid packets, of one user after the other, from `first` on.
    pub(super) fn of_users_from(&mut self, first: u32) -> Vec<[u8; HEAD_BYTES]> {
        (0..RING)
            .map(|i| self.uplink((first + i) % self.users, |_| {}))
            .collect()
    }

    /// A ring of packets that take this path.
    pub(super) fn of(&mut self, path: Path) -> Vec<[u8; HEAD_BYTES]> {
        (0..RING).map(|_| self.frame(path)).collect()
    }

    fn frame(&mut self, path: Path) -> [u8; HEAD_BYTES] {
        let slot = self.random.random_range(0..self.users);
        match path {
            Path::Hot => self.uplink(self.special(Special::Hot), |_| {}),
            Path::Uplink | Path::Replayed => self.uplink(slot, |_| {}),
            Path::Downlink => self.downlink(slot),
            Path::UnknownSession => self.uplink(slot, |grant| grant.salt ^= 1),
            Path::BadToken => self.uplink(slot, |grant| grant.key[0] ^= 1),
            Path::Expired => self.uplink(self.special(Special::Expired), |_| {}),
            Path::RateLimited => self.uplink(self.special(Special::Limited), |_| {}),
            Path::Unrelated => {
                let mut to = self.world.listeners[0];
                to.set_port(9);
                head(&UdpFrame::new(
                    client(slot),
                    to,
                    vec![0; self.payload.len() + TOKEN_BYTES],
                ))
            }
        }
    }

    const fn special(&self, special: Special) -> u32 {
        self.users + special as u32
    }

    fn uplink(&mut self, slot: u32, change: impl FnOnce(&mut Grant)) -> [u8; HEAD_BYTES] {
        let user = &self.world.users[slot as usize];
        let mut grant = Grant {
            slot,
            salt: user.salt,
            key: user.key,
            header_key: self.world.header_key,
            relay_id: self.world.relay_id,
        };
        change(&mut grant);
        self.next_pn += 1;
        let sealed = grant.seal(self.next_pn, &self.payload);
        head(&UdpFrame::new(client(slot), self.world.listeners[0], sealed))
    }

    fn downlink(&self, slot: u32) -> [u8; HEAD_BYTES] {
        let from = self.world.users[slot as usize].to;
        let ports = u32::from(EGRESS_PORTS);
        let egress = self.world.egress[(slot / ports) as usize];
        let port = self.world.first_egress_port + (slot % ports) as u16;
        head(&UdpFrame::new(
            from,
            SocketAddr::new(egress, port),
            self.payload.clone(),
        ))
    }
}

fn head(frame: &UdpFrame) -> [u8; HEAD_BYTES] {
    let bytes = frame.build();
    std::array::from_fn(|i| bytes[i])
}

fn client(slot: u32) -> SocketAddr {
    SocketAddr::from(([203, 0, (slot >> 8) as u8, slot as u8], 40_000))
}

fn destination(index: u32) -> Destination {
    let [_, _, high, low] = index.to_be_bytes();
    Destination {
        to: SocketAddr::from(([198, 51, high, low], 5_000)),
        next_hop: Some(NextHop {
            mac: [0x02, 0, 0, 0, high, low],
            mtu: 1_500,
        }),
    }
}

fn user(slot: u32, users: u32) -> User {
    let special = |special: Special| slot == users + special as u32;
    User {
        slot,
        salt: slot.wrapping_mul(0x9e37_79b9) | 1,
        key: u128::from(slot)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)
            .to_le_bytes(),
        to: destination(slot % DESTINATIONS.min(users)).to,
        rate: if special(Special::Limited) { 1 } else { NO_LIMIT },
        burst: if special(Special::Limited) { 1 } else { u32::MAX },
        expires_ns: special(Special::Expired).then_some(1),
    }
}
