//! What runs a scenario. Every backend takes the same world, frames and times, and tells the same of them; whatever
//! differs between two is a fault of one.

pub mod fit;
pub mod foreign;
pub mod host;
pub mod kernel;
pub mod oracle;
mod tables;
pub mod userspace;
pub mod veth;

use std::{collections::BTreeMap, fmt, net::SocketAddr, ops::RangeInclusive};

use ipnet::IpNet;
use lumenlink_relay::datapath::{
    DatapathError, clock::ClockError, maps::MapsError, program::LoadError, userspace::UserspaceError,
};
use relay_ebpf::verdict::{Direction, Reason};

use crate::{
    inspect,
    object::ObjectError,
    observe::Verdict,
    veth::VethError,
    world::{NextHop, Tags, User},
};

/// Why a backend could not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// The program cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A map cannot be used.
    #[error(transparent)]
    Maps(#[from] MapsError),
    /// The length of the kernel's tick is not known.
    #[error(transparent)]
    Clock(#[from] ClockError),
    /// A test run failed.
    #[error("running the program on a frame of {bytes} bytes: {source}")]
    Run {
        /// Length of the frame.
        bytes: usize,
        /// What the kernel said.
        source: aya::programs::ProgramError,
    },
    /// The program returned something that is no XDP action.
    #[error("the program returned {0}, which is no XDP action: they are 0 (ABORTED) to 4 (REDIRECT)")]
    Action(u32),
    /// The wire cannot be made or used.
    #[error(transparent)]
    Veth(#[from] VethError),
    /// The relay's sockets cannot be made.
    #[error(transparent)]
    Userspace(#[from] UserspaceError),
    /// The relay's userspace mode failed.
    #[error(transparent)]
    Datapath(#[from] DatapathError),
    /// A program cannot be loaded from its object file.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// Something that only the relay has.
    #[error("a foreign program has no {0}: only the relay has")]
    Foreign(&'static str),
    /// A user or destination that the world does not have room for.
    #[error("{0}")]
    World(String),
}

/// What was done with a frame.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Processed {
    /// What the kernel is told.
    pub verdict: Verdict,
    /// The number of the interface that it is sent out of, where it is and that can be told.
    pub egress: Option<u8>,
    /// The frame afterwards.
    pub frame: Vec<u8>,
}

/// Packets and their bytes.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Traffic {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "packets {}, bytes {}", self.packets, self.bytes)
    }
}

/// All counters; those that are zero may be missing.
pub type Counters = BTreeMap<(u8, Reason), Traffic>;

/// The key of a counter.
#[must_use]
pub const fn counter(direction: Direction, reason: Reason) -> (u8, Reason) {
    (direction as u8, reason)
}

/// Where a user's client is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Client {
    /// Its address and port.
    pub address: SocketAddr,
    /// The MAC address that its packets come from.
    pub mac: [u8; 6],
    /// The listener that it speaks to.
    pub listener: SocketAddr,
    /// The number of the interface that its packets come in by.
    pub interface: u8,
    /// The VLAN tags of its frames.
    pub tags: Tags,
    /// The generation of the blocklist that its address was checked against, 0 for none.
    pub block_generation: u16,
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (address, mac, listener) = (self.address, inspect::mac(self.mac), self.listener);
        write!(
            f,
            "{address} via {mac} to {listener}, checked against blocklist {}",
            self.block_generation
        )?;
        if self.interface != 0 {
            write!(f, ", by interface {}", self.interface)?;
        }
        if self.tags != Tags::NONE {
            write!(f, ", tags {}", self.tags)?;
        }
        Ok(())
    }
}

/// What the relay keeps of a user, in terms that do not depend on how it is kept.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct UserState {
    /// The newest packet number.
    pub newest: u64,
    /// The packet numbers in the replay window that were accepted.
    pub accepted: Vec<RangeInclusive<u64>>,
    /// Theoretical arrival time of the rate limit.
    pub tat_ns: u64,
    /// The same of the downlink's limit; 0 without one.
    pub down_tat_ns: u64,
    /// Where the client is, once that is known.
    pub client: Option<Client>,
    /// What was relayed uplink, in bytes of payload.
    pub uplink: Traffic,
    /// What was relayed downlink, in bytes of payload.
    pub downlink: Traffic,
}

/// One way to run the relay's decisions.
pub trait Backend {
    /// The name in reports.
    fn name(&self) -> &'static str;

    /// Whether a frame like this can be given to it at all.
    fn takes(&self, frame: &[u8]) -> bool;

    /// Gives it a frame at a time on the lab's clock, by the interface with this number, which exists.
    ///
    /// # Errors
    /// If it could not be run; what becomes of the frame is no error.
    fn process_on(&mut self, now_ns: u64, interface: u8, frame: &[u8]) -> Result<Processed, BackendError>;

    /// Gives it a frame at a time on the lab's clock, by the first interface.
    ///
    /// # Errors
    /// As [`process_on`](Self::process_on).
    fn process(&mut self, now_ns: u64, frame: &[u8]) -> Result<Processed, BackendError> {
        self.process_on(now_ns, 0, frame)
    }

    /// All counters.
    ///
    /// # Errors
    /// If they cannot be read.
    fn counters(&self) -> Result<Counters, BackendError>;

    /// One of the counters.
    ///
    /// # Errors
    /// If it cannot be read.
    fn counter(&self, direction: Direction, reason: Reason) -> Result<Traffic, BackendError> {
        let all = self.counters()?;
        Ok(all.get(&counter(direction, reason)).copied().unwrap_or_default())
    }

    /// The ICMP messages that were sent.
    ///
    /// # Errors
    /// If their number cannot be read.
    fn answers(&self) -> Result<u64, BackendError>;

    /// What is kept of the user in `slot`, which exists.
    fn user(&self, slot: u32) -> UserState;

    /// Theoretical arrival time of the limit of all users of a destination of the world; 0 without one.
    fn destination_tat(&self, to: SocketAddr) -> u64;

    /// Forgets what was spent of limits that are no user's own: of ICMP messages, and of destinations.
    fn forget_shared_limits(&mut self);

    /// Publishes a user, replacing whoever has the slot.
    ///
    /// # Errors
    /// If the world has no such slot or destination.
    fn publish(&mut self, user: &User) -> Result<(), BackendError>;

    /// Takes the user out of a slot, which exists.
    fn remove(&mut self, slot: u32);

    /// Sets or clears the next hop of a destination of the world.
    ///
    /// # Errors
    /// If the world has no such destination.
    fn set_next_hop(&mut self, to: SocketAddr, next_hop: Option<NextHop>) -> Result<(), BackendError>;

    /// Replaces the blocklist.
    ///
    /// # Errors
    /// If it does not fit.
    fn set_blocklist(&mut self, prefixes: &[IpNet]) -> Result<(), BackendError>;
}
