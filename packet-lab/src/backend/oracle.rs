//! The independent model as a backend.

use std::net::SocketAddr;

use ipnet::IpNet;
use relay_ebpf::verdict::{Direction, Reason};

use super::{Backend, BackendError, Client, Counters, Processed, Traffic, UserState, counter};
use crate::{
    oracle::{Oracle, Relayed},
    world::{NextHop, User, World},
};

/// The [`Oracle`], with counters around it.
#[derive(Debug)]
pub struct OracleBackend {
    oracle: Oracle,
    max_users: u32,
    counters: Counters,
    answers: u64,
    last: Option<(Direction, Reason)>,
    last_slot: Option<u32>,
    block_generation: u16,
}

impl OracleBackend {
    /// Its name.
    pub const NAME: &'static str = "oracle";

    /// A relay in this world.
    ///
    /// # Errors
    /// If a user has no slot or destination in it.
    pub fn new(world: &World) -> Result<Self, BackendError> {
        let mut backend = Self {
            oracle: Oracle::new(world),
            max_users: world.max_users,
            counters: Counters::new(),
            answers: 0,
            last: None,
            last_slot: None,
            block_generation: 0,
        };
        world.users.iter().try_for_each(|user| backend.publish(user))?;
        Ok(backend)
    }

    /// Direction and reason of the last frame; `None` before the first.
    #[must_use]
    pub fn last(&self) -> Option<(Direction, Reason)> {
        self.last
    }

    /// The slot whose state the last frame may have changed; `None` if no slot's.
    #[must_use]
    pub fn last_slot(&self) -> Option<u32> {
        self.last_slot
    }
}

fn traffic(relayed: Relayed) -> Traffic {
    Traffic {
        packets: relayed.packets,
        bytes: relayed.bytes,
    }
}

impl Backend for OracleBackend {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn takes(&self, _frame: &[u8]) -> bool {
        true
    }

    fn process_on(&mut self, now_ns: u64, interface: u8, frame: &[u8]) -> Result<Processed, BackendError> {
        let judgement = self.oracle.judge(now_ns, interface, frame);
        let moved = self
            .counters
            .entry(counter(judgement.direction, judgement.reason))
            .or_default();
        moved.packets += 1;
        moved.bytes += judgement.counted_bytes;
        self.last = Some((judgement.direction, judgement.reason));
        self.last_slot = judgement.slot;
        self.answers += u64::from(judgement.answered);
        Ok(Processed {
            verdict: judgement.verdict,
            egress: judgement.egress,
            frame: judgement.frame,
        })
    }

    fn counters(&self) -> Result<Counters, BackendError> {
        Ok(self.counters.clone())
    }

    fn answers(&self) -> Result<u64, BackendError> {
        Ok(self.answers)
    }

    fn user(&self, slot: u32) -> UserState {
        let memory = self.oracle.memory(slot);
        UserState {
            newest: memory.window.newest(),
            accepted: memory.window.accepted(),
            tat_ns: memory.bucket.tat_ns(),
            down_tat_ns: memory.down_bucket.tat_ns(),
            client: memory.client.map(|client| Client {
                address: client.address,
                mac: client.mac,
                listener: client.listener,
                interface: client.interface,
                tags: client.tags,
                block_generation: client.blocklist_generation,
            }),
            uplink: traffic(memory.uplink),
            downlink: traffic(memory.downlink),
        }
    }

    fn destination_tat(&self, to: SocketAddr) -> u64 {
        self.oracle.destination_tat_ns(to)
    }

    fn forget_shared_limits(&mut self) {
        self.oracle.forget_shared_limits();
    }

    fn publish(&mut self, user: &User) -> Result<(), BackendError> {
        let (slot, to) = (user.slot, user.to);
        if slot >= self.max_users {
            return Err(BackendError::World(format!(
                "the world has no slot {slot}: raise max_users"
            )));
        }
        if !self.oracle.has_destination(to) {
            return Err(BackendError::World(format!("the world has no destination {to}")));
        }
        self.oracle.publish(*user);
        Ok(())
    }

    fn remove(&mut self, slot: u32) {
        self.oracle.remove(slot);
    }

    fn set_next_hop(&mut self, to: SocketAddr, next_hop: Option<NextHop>) -> Result<(), BackendError> {
        if !self.oracle.set_next_hop(to, next_hop) {
            return Err(BackendError::World(format!("the world has no destination {to}")));
        }
        Ok(())
    }

    fn set_blocklist(&mut self, prefixes: &[IpNet]) -> Result<(), BackendError> {
        // Each list has a number of its own, from 1 to 65,535 and round again; an empty one is list 0.
        self.block_generation = self.block_generation % u16::MAX + 1;
        let generation = if prefixes.is_empty() { 0 } else { self.block_generation };
        self.oracle.set_blocklist(prefixes, generation);
        Ok(())
    }
}
