//! The relay's decisions in this process, without a kernel.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering},
};

use ipnet::IpNet;
use lumenlink_relay::datapath::blocklist;
use relay_ebpf::{
    host::{Host, HostFrame},
    layout::{Control, DestinationEntry, DestinationLimitEntry, DownLimitEntry, PrefixKey, SaltEntry, SlotEntry},
    verdict::{Direction, Reason},
    wire::Address,
};

use super::{
    Backend, BackendError, Counters, Processed, Traffic, UserState, counter,
    tables::{self, Tables},
};
use crate::{
    observe::Verdict,
    world::{NextHop, User, World},
};

/// The same source as the XDP program, compiled for the host.
#[derive(Debug)]
pub struct HostBackend {
    world: World,
    host: Host,
    counters: Counters,
    answers: u64,
    block_generation: u16,
}

impl HostBackend {
    /// A relay in this world.
    ///
    /// # Errors
    /// If the world is larger than a relay.
    pub fn new(world: &World) -> Result<Self, BackendError> {
        let indices: Vec<u32> = (0..world.interfaces().len() as u8).map(index).collect();
        let backend = Self {
            world: world.clone(),
            host: Host::new(tables::settings(world, 1, &indices)?),
            counters: Counters::new(),
            answers: 0,
            block_generation: 0,
        };
        tables::populate(&backend, world)?;
        Ok(backend)
    }
}

/// An index of the interface with this number, as a kernel might give it.
fn index(number: u8) -> u32 {
    100 + u32::from(number)
}

impl Tables for HostBackend {
    fn slots(&self) -> &[SlotEntry] {
        &self.host.slots
    }

    fn salts(&self) -> &[SaltEntry] {
        &self.host.salts
    }

    fn destinations(&self) -> &[DestinationEntry] {
        &self.host.destinations
    }

    fn down_limits(&self) -> &[DownLimitEntry] {
        &self.host.down_limits
    }

    fn destination_limits(&self) -> &[DestinationLimitEntry] {
        &self.host.destination_limits
    }

    fn client_tags(&self) -> &[AtomicU64] {
        &self.host.client_tags
    }

    fn control(&self) -> &Control {
        &self.host.control
    }
}

impl Backend for HostBackend {
    fn name(&self) -> &'static str {
        "host"
    }

    fn takes(&self, _frame: &[u8]) -> bool {
        true
    }

    fn process_on(&mut self, now_ns: u64, interface: u8, frame: &[u8]) -> Result<Processed, BackendError> {
        self.control().lab_now_ns.store(now_ns, Ordering::Release);
        let mut host_frame = HostFrame {
            bytes: frame.to_vec(),
            interface_index: index(interface),
            first_buffer: self.world.in_first_buffer(frame),
            measured: self.world.in_first_buffer(frame),
        };
        let outcome = relay_ebpf::process(&mut host_frame, &self.host);
        let moved = self
            .counters
            .entry(counter(outcome.direction, outcome.reason))
            .or_default();
        moved.packets += 1;
        moved.bytes += host_frame.measured as u64;
        self.answers += u64::from(outcome.answered);
        let verdict = outcome.verdict(self.world.drop_unmatched).into();
        let is_sent = matches!(verdict, Verdict::Tx | Verdict::Redirect);
        Ok(Processed {
            verdict,
            egress: is_sent.then(|| outcome.redirect.unwrap_or(interface)),
            frame: host_frame.bytes,
        })
    }

    fn counters(&self) -> Result<Counters, BackendError> {
        Ok(self.counters.clone())
    }

    fn counter(&self, direction: Direction, reason: Reason) -> Result<Traffic, BackendError> {
        let counter = self.counters.get(&counter(direction, reason));
        Ok(counter.copied().unwrap_or_default())
    }

    fn answers(&self) -> Result<u64, BackendError> {
        Ok(self.answers)
    }

    fn user(&self, slot: u32) -> UserState {
        tables::user_state(self, &self.world, slot)
    }

    fn destination_tat(&self, to: SocketAddr) -> u64 {
        tables::destination_tat(self, &self.world, to)
    }

    fn forget_shared_limits(&mut self) {
        tables::forget_shared_limits(self);
    }

    fn publish(&mut self, user: &User) -> Result<(), BackendError> {
        tables::publish(self, &self.world, user)
    }

    fn remove(&mut self, slot: u32) {
        tables::remove(self, slot);
    }

    fn set_next_hop(&mut self, to: SocketAddr, next_hop: Option<NextHop>) -> Result<(), BackendError> {
        tables::set_next_hop(self, &self.world, to, next_hop)
    }

    fn set_blocklist(&mut self, prefixes: &[IpNet]) -> Result<(), BackendError> {
        let entries = blocklist::entries(prefixes).into_iter();
        let entries = entries.map(|((Address(address), length), value)| (PrefixKey { length, address }, value));
        self.host.blocklist = entries.collect();
        tables::renew_block_generation(&self.host.control, prefixes.is_empty(), &mut self.block_generation);
        Ok(())
    }
}
