//! The real XDP program in the kernel, one frame at a time by `BPF_PROG_TEST_RUN`, on the lab's clock. Nothing is
//! attached to any interface, unless there are several: these must be there for the program to tell them apart, in a
//! network namespace of the backend's own.

use std::{
    fs,
    net::SocketAddr,
    ops::RangeInclusive,
    sync::atomic::{AtomicU64, Ordering},
};

use aya::{
    TestRunOptions,
    programs::{TestRun as _, Xdp},
    util::KernelVersion,
};
use ipnet::IpNet;
use lumenlink_relay::datapath::{
    blocklist, clock,
    maps::Maps,
    program::{LoadOptions, Loaded},
};
use relay_ebpf::{
    layout::{Control, DestinationEntry, DestinationLimitEntry, DownLimitEntry, SaltEntry, SlotEntry},
    verdict::{Direction, Reason},
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{
    Backend, BackendError, Counters, Processed, Traffic, UserState, counter,
    tables::{self, Tables},
};
use crate::{
    observe::Verdict,
    veth::{Ends, Wire},
    world::{NextHop, User, World},
};

/// Frames that a test run takes: at least an Ethernet header (else EINVAL), at most what 18 pages hold beside the head and
/// tail room.
pub(super) const FRAME_BYTES: RangeInclusive<usize> = 14..=65_549;

/// Those that one page holds, beside the head and tail room: of a larger one the rest is in other buffers.
pub(super) const PAGE_BYTES: RangeInclusive<usize> = 14..=3_500;

/// Since when a test run takes a frame whose first buffer holds less than that (`data_end` of the context).
const SPLITS: (u8, u8) = (6, 18);

/// How much longer a program may make a frame: what the kernel leaves in front of one and behind it.
const ROOM_BYTES: usize = 1024;

/// The bytes of a frame with its sender's MAC address.
const SOURCE_MAC: std::ops::Range<usize> = 6..12;

pub(super) const CAP_NET_ADMIN: u32 = 12;
pub(super) const CAP_NET_RAW: u32 = 13;
pub(super) const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

/// The XDP program and its maps.
pub struct KernelBackend {
    world: World,
    loaded: Loaded,
    /// The interfaces, if there are several.
    wire: Option<Wire>,
    block_generation: u16,
}

impl KernelBackend {
    /// Loads the program embedded in the relay, and fills its maps.
    ///
    /// # Errors
    /// If the kernel refuses, or the world is larger than a relay.
    pub fn new(world: &World) -> Result<Self, BackendError> {
        let tick_ns = if world.lab_clock {
            1
        } else {
            clock::tick()?.as_nanos() as u64
        };
        let count = world.interfaces().len();
        let load = |indices: &[u32]| {
            let settings = tables::settings(world, tick_ns, indices)?;
            Ok::<_, BackendError>(Loaded::new(&LoadOptions { settings, pins: None })?)
        };
        let (loaded, wire) = if count == 1 {
            (load(&[0])?, None)
        } else {
            let ends = Ends::take(count)?;
            let mut loaded = load(&ends.indices())?;
            ends.inside(|| {
                let mut numbered = (0..).zip(ends.indices());
                numbered.try_for_each(|(number, index)| loaded.maps.set_port(number, index))
            })??;
            let wire = Wire::with(ends, loaded.program()?)?;
            (loaded, Some(wire))
        };
        let backend = Self {
            world: world.clone(),
            loaded,
            wire,
            block_generation: 0,
        };
        tables::populate(&backend, world)?;
        Ok(backend)
    }

    /// The interfaces with the program on them, if there are several: for another use, after which this backend runs
    /// nothing itself.
    pub(super) fn take_wire(&mut self) -> Option<Wire> {
        self.wire.take()
    }

    /// The loaded program and its maps.
    pub fn loaded(&mut self) -> &mut Loaded {
        &mut self.loaded
    }

    /// The maps.
    #[must_use]
    pub fn maps(&self) -> &Maps {
        &self.loaded.maps
    }

    /// Sets the lab's clock.
    pub fn set_clock(&self, now_ns: u64) {
        self.control().lab_now_ns.store(now_ns, Ordering::Release);
    }
}

/// Gives one frame to a program, as if it came in by the loopback interface.
///
/// # Errors
/// If the kernel cannot run it, or it returns what is no XDP action.
pub fn run_once(program: &Xdp, frame: &[u8]) -> Result<Processed, BackendError> {
    run_on(program, 0, frame, frame.len())
}

/// Why this kernel cannot run the program in a world; none if it can.
#[must_use]
pub fn misfit(world: &World) -> Option<String> {
    let (major, minor) = SPLITS;
    let is_older = KernelVersion::current().is_ok_and(|version| version < KernelVersion::new(major, minor, 0));
    let why = format!("test runs divide frames between buffers as told since Linux {major}.{minor}");
    (world.first_buffer.is_some() && is_older).then_some(why)
}

/// Gives one frame to a program, as if it came in by the interface of this network namespace with this index, 0 for
/// the loopback interface, with so many bytes in its first buffer.
fn run_on(program: &Xdp, ingress_ifindex: u32, frame: &[u8], first: usize) -> Result<Processed, BackendError> {
    let mut output = vec![0; frame.len() + ROOM_BYTES];
    let context = Context {
        data_end: first as u32,
        ingress_ifindex,
        ..Context::default()
    };
    let mut context_after = Context::default();
    let result = program
        .test_run(TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut output),
            ctx_in: Some(context.as_bytes()),
            ctx_out: Some(context_after.as_mut_bytes()),
            ..TestRunOptions::default()
        })
        .map_err(|source| BackendError::Run {
            bytes: frame.len(),
            source,
        })?;
    output.truncate(result.data_size_out as usize);
    // What a program writes in front of the frame for programs after it is no part of the frame.
    output.drain(..(context_after.data as usize).min(output.len()));
    let verdict = Verdict::from_action(result.return_value).ok_or(BackendError::Action(result.return_value))?;
    Ok(Processed {
        verdict,
        egress: (verdict == Verdict::Tx).then_some(0),
        frame: output,
    })
}

/// `struct xdp_md` of `linux/bpf.h`: what a test run says of a frame besides its bytes, as offsets.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes)]
#[repr(C)]
struct Context {
    data: u32,
    data_end: u32,
    data_meta: u32,
    ingress_ifindex: u32,
    rx_queue_index: u32,
    egress_ifindex: u32,
}

/// The capabilities that this process lacks for loading and running XDP programs, by name; none if it has all.
#[must_use]
pub fn missing_capabilities() -> Vec<&'static str> {
    missing(&[
        ("CAP_BPF", CAP_BPF),
        ("CAP_NET_ADMIN", CAP_NET_ADMIN),
        ("CAP_PERFMON", CAP_PERFMON),
    ])
}

/// Those of `needed`, names and numbers, that this process lacks.
pub(super) fn missing(needed: &[(&'static str, u32)]) -> Vec<&'static str> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0);
    let has = |capability: u32| effective >> capability & 1 == 1;
    // CAP_SYS_ADMIN stands for both that were split from it in Linux 5.8.
    let stands_in = |capability| matches!(capability, CAP_BPF | CAP_PERFMON) && has(CAP_SYS_ADMIN);
    needed
        .iter()
        .filter(|(_, capability)| !has(*capability) && !stands_in(*capability))
        .map(|(name, _)| *name)
        .collect()
}

impl Tables for KernelBackend {
    fn slots(&self) -> &[SlotEntry] {
        self.loaded.maps.slots()
    }

    fn salts(&self) -> &[SaltEntry] {
        self.loaded.maps.salts()
    }

    fn destinations(&self) -> &[DestinationEntry] {
        self.loaded.maps.destinations()
    }

    fn down_limits(&self) -> &[DownLimitEntry] {
        self.loaded.maps.down_limits()
    }

    fn destination_limits(&self) -> &[DestinationLimitEntry] {
        self.loaded.maps.destination_limits()
    }

    fn client_tags(&self) -> &[AtomicU64] {
        self.loaded.maps.client_tags()
    }

    fn control(&self) -> &Control {
        self.loaded.maps.control()
    }
}

impl Backend for KernelBackend {
    fn name(&self) -> &'static str {
        "kernel"
    }

    fn takes(&self, frame: &[u8]) -> bool {
        FRAME_BYTES.contains(&frame.len())
    }

    /// What interface a frame is redirected to, a test run does not say; its source address is that interface's.
    fn process_on(&mut self, now_ns: u64, interface: u8, frame: &[u8]) -> Result<Processed, BackendError> {
        self.set_clock(now_ns);
        let program = self.loaded.program()?;
        let first = self.world.in_first_buffer(frame);
        let Some(wire) = &self.wire else {
            return run_on(program, 0, frame, first);
        };
        let ends = wire.ends();
        let index = ends.indices()[usize::from(interface)];
        let mut processed = ends.inside(|| run_on(program, index, frame, first))??;
        processed.egress = match processed.verdict {
            Verdict::Tx => Some(interface),
            Verdict::Redirect => {
                let mac = processed.frame.get(SOURCE_MAC);
                let interfaces = self.world.interfaces();
                let number = interfaces.iter().position(|interface| Some(&interface.mac[..]) == mac);
                number.map(|number| number as u8)
            }
            _ => None,
        };
        Ok(processed)
    }

    fn counters(&self) -> Result<Counters, BackendError> {
        let all = self.loaded.maps.counters()?;
        let nonzero = all.iter().filter(|found| found.packets != 0 || found.bytes != 0);
        let traffic = nonzero.map(|found| {
            let (packets, bytes) = (found.packets, found.bytes);
            (counter(found.direction, found.reason), Traffic { packets, bytes })
        });
        Ok(traffic.collect())
    }

    fn counter(&self, direction: Direction, reason: Reason) -> Result<Traffic, BackendError> {
        let found = self.loaded.maps.counter(direction, reason)?;
        let (packets, bytes) = (found.packets, found.bytes);
        Ok(Traffic { packets, bytes })
    }

    fn answers(&self) -> Result<u64, BackendError> {
        let maps = &self.loaded.maps;
        Ok(maps.answers(Direction::Uplink)? + maps.answers(Direction::Downlink)?)
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
        let maps = &mut self.loaded.maps;
        for (address, length) in maps.blocked()?.into_keys() {
            maps.unblock(address, length)?;
        }
        for ((address, length), value) in blocklist::entries(prefixes) {
            maps.block(address, length, value)?;
        }
        tables::renew_block_generation(maps.control(), prefixes.is_empty(), &mut self.block_generation);
        Ok(())
    }
}
