//! The kernel's side of the relay: loading, attaching, pinning and upgrading the XDP program, typed handles on its
//! maps, and the next hops of the destinations.

pub mod maps;
pub mod mmap;
pub mod program;

use std::{net::SocketAddr, time::Duration};

use ipnet::IpNet;
use relay_ebpf::verdict::{Direction, Reason};

use crate::config::{Config, XdpMode};

/// Why the datapath could not start or change. Each variant's message says what was tried and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DatapathError {}

/// A user as the program knows it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PublishedUser {
    /// Index of the user's entry; also fixes its egress address and port.
    pub slot: u32,
    /// The random part of the handle.
    pub salt: u32,
    /// SipHash key of the tag.
    pub key: [u8; 16],
    /// Destination.
    pub to: SocketAddr,
    /// Packets per second.
    pub rate: u32,
    /// Packets that may come at once.
    pub burst: u32,
    /// End of the grant.
    pub expires_at: Option<jiff::Timestamp>,
}

/// What the program recorded of a user.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct UserState {
    /// The client's current address, once it has sent a valid packet.
    pub client: Option<SocketAddr>,
    /// The newest packet number.
    pub newest: u64,
    /// Packets and bytes of payload relayed.
    pub uplink_packets: u64,
    /// Bytes of payload relayed uplink.
    pub uplink_bytes: u64,
    /// Packets relayed downlink.
    pub downlink_packets: u64,
    /// Bytes of payload relayed downlink.
    pub downlink_bytes: u64,
}

/// One counter, summed over CPUs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Counter {
    /// Direction of the packets.
    pub direction: Direction,
    /// Why they were treated so.
    pub reason: Reason,
    /// Packets.
    pub packets: u64,
    /// Bytes of the frames.
    pub bytes: u64,
}

/// What a full publication did.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct PublishReport {
    /// Users in the list.
    pub users: usize,
    /// Entries written because they were new or had another salt or key: their state was reset.
    pub written: usize,
    /// Entries whose state was kept.
    pub kept: usize,
    /// Entries cleared because their user is gone.
    pub removed: usize,
    /// How long it took.
    pub took: Duration,
}

/// The loaded and attached data plane of one relay. All methods take `&self`: it is shared by the admin API, the
/// metrics and the neighbour task.
#[derive(Debug)]
pub struct Datapath {}

impl Datapath {
    /// Loads the program with this configuration, adopts or creates the maps, and resolves the interface. Nothing is
    /// attached yet: publish the users first, then [`attach`](Self::attach).
    pub fn load(_config: &Config, _header_key: Option<[u8; 16]>) -> Result<Self, DatapathError> {
        todo!()
    }

    /// Attaches the program, or replaces the one on the pinned link; packets are relayed from here on. Returns the
    /// mode in force.
    pub fn attach(&self) -> Result<XdpMode, DatapathError> {
        todo!()
    }

    /// Makes exactly `users` the published ones. State of users whose salt and key are unchanged is kept.
    pub fn publish_all(&self, _users: &[PublishedUser]) -> Result<PublishReport, DatapathError> {
        todo!()
    }

    /// Publishes one user, replacing whoever had the slot.
    pub fn publish(&self, _user: &PublishedUser) -> Result<(), DatapathError> {
        todo!()
    }

    /// Takes a user out: no packet finds it from now on.
    pub fn remove(&self, _slot: u32) {
        todo!()
    }

    /// The recorded state of a slot.
    pub fn user_state(&self, _slot: u32) -> UserState {
        todo!()
    }

    /// Whether the next hop towards `destination` is known.
    pub fn is_resolved(&self, _destination: SocketAddr) -> bool {
        todo!()
    }

    /// Replaces the blocklist.
    pub fn set_blocklist(&self, _prefixes: &[IpNet]) -> Result<(), DatapathError> {
        todo!()
    }

    /// All counters, every direction and reason.
    pub fn counters(&self) -> Result<Vec<Counter>, DatapathError> {
        todo!()
    }

    /// Follows routes and neighbours until the future is dropped: resolves the destinations of published users, asks
    /// for unresolved ones, writes moved next hops.
    pub async fn follow_next_hops(&self) -> Result<(), DatapathError> {
        todo!()
    }

    /// Detaches the program and removes the pins.
    pub fn detach(&self) -> Result<(), DatapathError> {
        todo!()
    }
}
