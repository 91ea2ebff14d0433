//! Anybody's XDP program, by `BPF_PROG_TEST_RUN` or on a wire: verdict and bytes, and nothing that only the relay has.

use std::{net::SocketAddr, path::Path};

use ipnet::IpNet;

use super::{
    Backend, BackendError, Counters, Processed, UserState,
    kernel::{self, run_once},
};
use crate::{
    object::Object,
    observe::Verdict,
    veth::Wire,
    world::{NextHop, User},
};

/// A program from an object file, and what runs it.
///
/// Of a frame that does not come out again, dropped or aborted, the bytes are told as they went in: what a program did
/// to them is seen by nobody. On a wire, a frame that was aborted or redirected does not come out either, and shows as
/// DROP; the kernel backend tells these apart.
#[derive(Debug)]
pub struct ForeignBackend {
    object: Object,
    wire: Option<Wire>,
}

impl ForeignBackend {
    /// The program `name` of an object file, run by `BPF_PROG_TEST_RUN`: as if the frame came in by the loopback
    /// interface.
    ///
    /// # Errors
    /// As [`Object::load`].
    pub fn kernel(object: &Path, name: &str) -> Result<Self, BackendError> {
        let object = Object::load(object, name)?;
        Ok(Self { object, wire: None })
    }

    /// The program `name` of an object file, attached to a veth interface.
    ///
    /// # Errors
    /// As [`Object::load`] and [`Wire::new`].
    pub fn veth(object: &Path, name: &str) -> Result<Self, BackendError> {
        let mut object = Object::load(object, name)?;
        let wire = Wire::new(object.program()?)?;
        let wire = Some(wire);
        Ok(Self { object, wire })
    }
}

impl Backend for ForeignBackend {
    fn name(&self) -> &'static str {
        if self.wire.is_some() { "veth" } else { "kernel" }
    }

    fn takes(&self, frame: &[u8]) -> bool {
        match self.wire {
            Some(_) => Wire::takes(frame),
            None => kernel::PAGE_BYTES.contains(&frame.len()),
        }
    }

    /// A program of somebody's has one interface.
    fn process_on(&mut self, _now_ns: u64, _interface: u8, frame: &[u8]) -> Result<Processed, BackendError> {
        let Some(wire) = &mut self.wire else {
            let mut processed = run_once(self.object.program()?, frame)?;
            if matches!(processed.verdict, Verdict::Drop | Verdict::Aborted) {
                frame.clone_into(&mut processed.frame);
            }
            return Ok(processed);
        };
        let passage = wire.exchange(0, frame)?;
        Ok(Processed {
            verdict: passage.verdict,
            egress: passage.egress,
            frame: passage.frame,
        })
    }

    fn counters(&self) -> Result<Counters, BackendError> {
        Ok(Counters::new())
    }

    fn answers(&self) -> Result<u64, BackendError> {
        Ok(0)
    }

    fn user(&self, _slot: u32) -> UserState {
        UserState::default()
    }

    fn destination_tat(&self, _to: SocketAddr) -> u64 {
        0
    }

    fn forget_shared_limits(&mut self) {}

    fn publish(&mut self, _user: &User) -> Result<(), BackendError> {
        Err(BackendError::Foreign("users"))
    }

    fn remove(&mut self, _slot: u32) {}

    fn set_next_hop(&mut self, _to: SocketAddr, _next_hop: Option<NextHop>) -> Result<(), BackendError> {
        Err(BackendError::Foreign("next hops"))
    }

    fn set_blocklist(&mut self, _prefixes: &[IpNet]) -> Result<(), BackendError> {
        Err(BackendError::Foreign("a blocklist"))
    }
}
