//! The real XDP program, attached to an interface in native mode, on the lab's clock: frames come over a wire, and what
//! comes out of the interfaces is what is observed.

use std::net::SocketAddr;

use ipnet::IpNet;

use super::{
    Backend, BackendError, Counters, Processed, UserState,
    kernel::{self, CAP_NET_RAW, CAP_SYS_ADMIN, KernelBackend},
};
use crate::{
    veth::Wire,
    world::{NextHop, User, World},
};

/// The XDP program with its maps, and the wire that it is attached to.
pub struct VethBackend {
    wire: Wire,
    relay: KernelBackend,
}

impl VethBackend {
    /// Loads the program embedded in the relay, fills its maps, and attaches it.
    ///
    /// # Errors
    /// If the kernel refuses, the process may not make network namespaces, or the world is larger than a relay.
    pub fn new(world: &World) -> Result<Self, BackendError> {
        let mut relay = KernelBackend::new(world)?;
        let wire = match relay.take_wire() {
            Some(wire) => wire,
            None => Wire::new(relay.loaded().program()?)?,
        };
        Ok(Self { wire, relay })
    }
}

/// The capabilities that this process lacks for this backend, by name; none if it has all.
#[must_use]
pub fn missing_capabilities() -> Vec<&'static str> {
    let mut missing = kernel::missing_capabilities();
    missing.extend(kernel::missing(&[
        ("CAP_NET_RAW", CAP_NET_RAW),
        ("CAP_SYS_ADMIN", CAP_SYS_ADMIN),
    ]));
    missing
}

/// Why frames cannot be had on a wire as this world has them, if so.
#[must_use]
pub fn misfit(world: &World) -> Option<&'static str> {
    let why = "on a wire it is the driver that divides frames between buffers";
    world.first_buffer.is_some().then_some(why)
}

impl Backend for VethBackend {
    fn name(&self) -> &'static str {
        "veth"
    }

    fn takes(&self, frame: &[u8]) -> bool {
        Wire::takes(frame)
    }

    /// As every program's on a wire, a dropped frame's bytes afterwards are nobody's: they are those that went in.
    fn process_on(&mut self, now_ns: u64, interface: u8, frame: &[u8]) -> Result<Processed, BackendError> {
        self.relay.set_clock(now_ns);
        let passage = self.wire.exchange(interface, frame)?;
        Ok(Processed {
            verdict: passage.verdict,
            egress: passage.egress,
            frame: passage.frame,
        })
    }

    fn counters(&self) -> Result<Counters, BackendError> {
        self.relay.counters()
    }

    fn answers(&self) -> Result<u64, BackendError> {
        self.relay.answers()
    }

    fn user(&self, slot: u32) -> UserState {
        self.relay.user(slot)
    }

    fn destination_tat(&self, to: SocketAddr) -> u64 {
        self.relay.destination_tat(to)
    }

    fn forget_shared_limits(&mut self) {
        self.relay.forget_shared_limits();
    }

    fn publish(&mut self, user: &User) -> Result<(), BackendError> {
        self.relay.publish(user)
    }

    fn remove(&mut self, slot: u32) {
        self.relay.remove(slot);
    }

    fn set_next_hop(&mut self, to: SocketAddr, next_hop: Option<NextHop>) -> Result<(), BackendError> {
        self.relay.set_next_hop(to, next_hop)
    }

    fn set_blocklist(&mut self, prefixes: &[IpNet]) -> Result<(), BackendError> {
        self.relay.set_blocklist(prefixes)
    }
}
