//! How long the program takes for a packet, by the path that it takes.
//!
//! Each path gets distinct packets, made as clients would make them: a repeated one would measure the replay check, and
//! one that jumps ahead in its user's packet numbers the emptying of the replay window. A feeder program (`lab-ebpf`)
//! writes each packet anew from a ring and goes on with the relay's program, all within one `BPF_PROG_TEST_RUN`. What the
//! feeder takes is measured in the same round and subtracted: it is what a fed floor takes more than the floor alone.
//! The relay's counters must show that every packet took the path that the row is named for, and none another.

mod frames;
mod report;

use std::fs;

use aya::{
    Ebpf, EbpfError, TestRunOptions,
    maps::{Array, MapData, MapError, MapInfo, ProgramArray, RingBuf},
    programs::{ProgramError, TestRun as _, Xdp},
};
use lab_ebpf::{FEED, FEEDER_PROGRAM, FLOOR_PROGRAM, FRAMES, HEAD_BYTES, TARGETS};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity},
    sys::utsname::uname,
    unistd::Pid,
};
use relay_ebpf::{
    host::HostMemory,
    layout,
    verdict::{Direction, Reason},
};

pub use self::report::{GROWING, Incomparable, Latency, Report, Row, Size, Worse};
pub(crate) use self::report::{median, range};
use self::{
    frames::{Frames, Head},
    report::row,
};
use crate::{
    backend::{Backend as _, BackendError, Counters, Traffic, counter, kernel::KernelBackend},
    lab::moved,
};

/// The lab's programs, as they were built with this crate.
pub(crate) static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lab-xdp"));

/// Most packets of one path in one round: what the feeder's ring holds.
pub const MOST_PACKETS: u32 = lab_ebpf::RING;

const TO_RELAY: u32 = 0;
const TO_FLOOR: u32 = 1;

const XDP_TX: u32 = 3;

/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BenchError {
    /// The relay's program.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The lab's programs cannot be loaded.
    #[error("loading the lab's programs: {0}")]
    Load(#[from] EbpfError),
    /// A program cannot be used.
    #[error("running the lab's programs: {0}")]
    Program(#[from] ProgramError),
    /// A map cannot be used.
    #[error("filling the lab's maps: {0}")]
    Map(#[from] MapError),
    /// The object lacks something.
    #[error("the lab's object has no `{0}`: it was not built from this version's sources")]
    Missing(&'static str),
    /// The feeder did not reach the floor.
    #[error("the feeder ended with action {0} instead of the floor's XDP_TX: what it takes is not known")]
    NoFloor(u32),
    /// Packets took another path than the one to be measured.
    #[error("{packets} packets were made for the path `{path}`, but the relay counted {counted}: not the path meant")]
    WrongPath {
        /// The row.
        path: &'static str,
        /// Packets sent.
        packets: u32,
        /// The counters that moved.
        counted: String,
    },
}

/// What to measure.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Users at random, 1 to 1,599,999.
    pub users: u32,
    /// Bytes of payload, at least 54: so long that all the feeder writes is in the frame.
    pub payload_bytes: usize,
    /// Whether packets are IPv6's.
    pub ipv6: bool,
    /// Whether tokens travel with header protection.
    pub header_protection: bool,
    /// Packets of each path in each round, 1 to [`MOST_PACKETS`].
    pub packets: u32,
    /// Rounds, interleaved.
    pub rounds: usize,
}

/// A path through the program.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Path {
    Hot,
    Uplink,
    DownlinkHot,
    Downlink,
    Unrelated,
    UnknownSession,
    BadToken,
    Expired,
    Replayed,
    RateLimited,
}

impl Path {
    /// In the order of a round: `Replayed` repeats the packets of `Uplink`, when others have had the caches since.
    const ALL: [Self; 10] = [
        Self::Hot,
        Self::Uplink,
        Self::DownlinkHot,
        Self::Downlink,
        Self::Unrelated,
        Self::UnknownSession,
        Self::BadToken,
        Self::Expired,
        Self::Replayed,
        Self::RateLimited,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Hot => "relayed_hot",
            Self::Uplink => "relayed_uplink",
            Self::DownlinkHot => "downlink_hot",
            Self::Downlink => "relayed_downlink",
            Self::Unrelated
            | Self::UnknownSession
            | Self::BadToken
            | Self::Expired
            | Self::Replayed
            | Self::RateLimited => self.counter().1.name(),
        }
    }

    const fn description(self) -> &'static str {
        match self {
            Self::Hot => "relayed uplink, one user",
            Self::Uplink => "relayed uplink, users at random",
            Self::DownlinkHot => "relayed downlink, one user",
            Self::Downlink => "relayed downlink, users at random",
            Self::Unrelated => "passed: not for the relay",
            Self::UnknownSession => "dropped: no user has this handle",
            Self::BadToken => "dropped: sealed with another key",
            Self::Expired => "dropped: grant past its expiry",
            Self::Replayed => "dropped: packet number seen before",
            Self::RateLimited => "dropped: over the user's rate",
        }
    }

    const fn counter(self) -> (Direction, Reason) {
        let reason = match self {
            Self::Downlink | Self::DownlinkHot => return (Direction::Downlink, Reason::Relayed),
            Self::Hot | Self::Uplink => Reason::Relayed,
            Self::Unrelated => Reason::Unrelated,
            Self::UnknownSession => Reason::UnknownSession,
            Self::BadToken => Reason::BadToken,
            Self::Expired => Reason::Expired,
            Self::Replayed => Reason::Replayed,
            Self::RateLimited => Reason::RateLimited,
        };
        (Direction::Uplink, reason)
    }

    /// What a user is like whose valid packets take this path.
    const fn limit(self, user: layout::User) -> layout::User {
        match self {
            Self::Expired => layout::User { expires_ns: 0, ..user },
            Self::RateLimited => layout::User { burst: 0, ..user },
            _ => user,
        }
    }
}

/// Measures all paths; `progress` is told how many of how many steps are done. The thread stays on one CPU meanwhile.
///
/// # Errors
/// See [`BenchError`].
pub fn run(options: Options, progress: &mut dyn FnMut(usize, usize)) -> Result<Report, BenchError> {
    let _pinned = Pinned::here();
    let mut bench = Bench::new(options)?;
    bench.introduce()?;
    let steps = options.rounds * Path::ALL.len();
    let mut samples: Vec<Vec<Sample>> = Path::ALL.iter().map(|_| Vec::new()).collect();
    for round in 0..options.rounds {
        for (i, path) in Path::ALL.into_iter().enumerate() {
            samples[i].push(bench.measure(path)?);
            progress(round * Path::ALL.len() + i + 1, steps);
        }
    }
    let floors: Vec<f64> = samples.iter().flatten().map(|sample| sample.floor_ns).collect();
    let mut rows = vec![row("floor", "MAC addresses swapped, XDP_TX", &floors, &[1.0])];
    for (path, samples) in Path::ALL.into_iter().zip(&samples) {
        let ns: Vec<f64> = samples.iter().map(|sample| sample.path_ns).collect();
        let ratios: Vec<f64> = samples.iter().map(|sample| sample.path_ns / sample.floor_ns).collect();
        let mut row = row(path.name(), path.description(), &ns, &ratios);
        if path.counter().1 == Reason::Relayed {
            row.gbit_per_second = Some(f64::from(8 * options.payload_bytes as u32) / row.ns);
        }
        rows.push(row);
    }
    Ok(Report {
        kernel: uname().map_or_else(|_| String::new(), |name| name.release().to_string_lossy().into_owned()),
        users: options.users,
        payload_bytes: options.payload_bytes,
        ipv6: options.ipv6,
        header_protection: options.header_protection,
        rounds: options.rounds,
        packets: options.packets,
        size: bench.size()?,
        latency: Some(latency(options)?),
        rows,
    })
}

/// What does not vary from run to run, without measuring anything else. `packets` and `rounds` do not matter.
///
/// # Errors
/// See [`BenchError`].
pub fn size(options: Options) -> Result<Size, BenchError> {
    Bench::new(options)?.size()
}

/// Times single packets, in a program loaded for that: one round, every packet.
fn latency(options: Options) -> Result<Latency, BenchError> {
    let path = Path::Uplink;
    let mut bench = Bench::timed(options)?;
    bench.introduce()?;
    let before = bench.latency()?;
    bench.measure(path)?;
    let after = bench.latency()?;
    let pairs = after.buckets.iter().zip(&before.buckets);
    let buckets: Vec<u64> = pairs.map(|(after, before)| after - before).collect();
    let samples: u64 = buckets.iter().sum();
    #[expect(clippy::cast_precision_loss, reason = "a mean of times needs no 53 bits")]
    let mean_ns = (after.sum_ns - before.sum_ns) as f64 / samples.max(1) as f64;
    Ok(Latency {
        path: path.name().to_owned(),
        mean_ns,
        buckets,
    })
}

/// Keeps this thread on the CPU that it is on, until dropped: another one's caches are cold.
struct Pinned(Option<CpuSet>);

impl Pinned {
    /// Where the system does not let it, the thread moves and the figures vary more.
    fn here() -> Self {
        let this = Pid::from_raw(0);
        let pin = || -> nix::Result<CpuSet> {
            let before = sched_getaffinity(this)?;
            let mut here = CpuSet::new();
            here.set(sched_getcpu()?)?;
            sched_setaffinity(this, &here)?;
            Ok(before)
        };
        Self(pin().ok())
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // The CPUs were allowed before; if they are no more, the thread may stay where it is.
            let _ = sched_setaffinity(Pid::from_raw(0), before);
        }
    }
}

struct Sample {
    floor_ns: f64,
    path_ns: f64,
}

/// How one program fared.
struct Timed {
    /// Mean time of one run.
    ns: f64,
    /// What the last run ended with.
    action: u32,
}

struct Bench {
    relay: KernelBackend,
    events: Option<RingBuf<MapData>>,
    frames: Frames,
    packets: u32,
    /// What the users were relayed with last: to be replayed.
    relayed: Vec<Head>,
    /// The users as they were published, by slot.
    users: Vec<layout::User>,
    /// Keeps the lab's programs loaded.
    lab: Ebpf,
    ring: Array<MapData, [u8; HEAD_BYTES]>,
    feed: Array<MapData, [u32; 3]>,
    _targets: ProgramArray<MapData>,
}

impl Bench {
    fn new(options: Options) -> Result<Self, BenchError> {
        Self::with(options, 0)
    }

    /// A program that times every packet.
    fn timed(options: Options) -> Result<Self, BenchError> {
        Self::with(options, 1)
    }

    fn with(options: Options, latency_sample: u32) -> Result<Self, BenchError> {
        let frames = Frames::new(options);
        let mut world = frames.world().clone();
        world.latency_sample = latency_sample;
        let mut relay = KernelBackend::new(&world)?;
        let mut lab = aya::EbpfLoader::new().load(OBJECT)?;
        for name in [FEEDER_PROGRAM, FLOOR_PROGRAM] {
            program(&mut lab, name)?.load()?;
        }
        let mut take = |name| lab.take_map(name).ok_or(BenchError::Missing(name));
        let ring = Array::try_from(take(FRAMES)?)?;
        let feed = Array::try_from(take(FEED)?)?;
        let mut targets = ProgramArray::try_from(take(TARGETS)?)?;
        targets.set(TO_RELAY, relay.loaded().program().map_err(BackendError::from)?.fd()?, 0)?;
        targets.set(TO_FLOOR, program(&mut lab, FLOOR_PROGRAM)?.fd()?, 0)?;
        let users = relay
            .maps()
            .slots()
            .iter()
            .filter_map(|slot| slot.user.get(&HostMemory));
        Ok(Self {
            users: users.collect(),
            events: relay.loaded().maps.take_events(),
            packets: options.packets,
            relayed: Vec::new(),
            relay,
            frames,
            lab,
            ring,
            feed,
            _targets: targets,
        })
    }

    /// Has every user seen once, as the downlink needs.
    fn introduce(&mut self) -> Result<(), BenchError> {
        let users = self.users.len() as u32 - 1;
        for first in (0..users).step_by(self.packets as usize) {
            let heads = self.frames.of_users_from(first);
            self.fill(&heads)?;
            let before = self.relay.counters()?;
            self.run(TO_RELAY, self.frames.uplink_bytes())?;
            self.check(Path::Uplink, &before)?;
        }
        Ok(())
    }

    fn measure(&mut self, path: Path) -> Result<Sample, BenchError> {
        self.prepare(path)?;
        let bytes = self.frames.bytes(path);
        let floor = self.time(FLOOR_PROGRAM, bytes)?;
        let fed_floor = self.run(TO_FLOOR, bytes)?;
        if fed_floor.action != XDP_TX {
            return Err(BenchError::NoFloor(fed_floor.action));
        }
        let before = self.relay.counters()?;
        let fed_relay = self.run(TO_RELAY, bytes)?;
        self.check(path, &before)?;
        Ok(Sample {
            floor_ns: floor.ns,
            path_ns: fed_relay.ns - (fed_floor.ns - floor.ns),
        })
    }

    /// Fills the ring with packets that take this path, and has the users as they must be for it.
    fn prepare(&mut self, path: Path) -> Result<(), BenchError> {
        for (slot, user) in self.relay.maps().slots().iter().zip(&self.users) {
            slot.user.write_fields(&HostMemory, &path.limit(*user));
        }
        // As the control process does, or the ring of events fills up and the program saves the work of writing them.
        if let Some(events) = &mut self.events {
            while events.next().is_some() {}
        }
        if path == Path::Replayed {
            return self.fill(&self.relayed.clone());
        }
        let heads = self.frames.of(path);
        self.fill(&heads)?;
        if path == Path::Uplink {
            self.relayed = heads;
        }
        Ok(())
    }

    fn fill(&mut self, heads: &[Head]) -> Result<(), BenchError> {
        for (i, head) in heads.iter().enumerate() {
            self.ring.set(i as u32, head, 0)?;
        }
        Ok(())
    }

    /// Sends all packets of the ring through the feeder once.
    fn run(&mut self, target: u32, frame_bytes: usize) -> Result<Timed, BenchError> {
        self.feed.set(0, [0, frame_bytes as u32, target], 0)?;
        self.time(FEEDER_PROGRAM, frame_bytes)
    }

    /// Runs a program once for each packet.
    fn time(&mut self, name: &'static str, frame_bytes: usize) -> Result<Timed, BenchError> {
        let frame = vec![0; frame_bytes];
        let result = program(&mut self.lab, name)?.test_run(TestRunOptions {
            data_in: Some(&frame),
            repeat: self.packets,
            ..TestRunOptions::default()
        })?;
        Ok(Timed {
            // The kernel cuts the mean to whole nanoseconds: half of one is missing on average.
            ns: result.duration.as_secs_f64() * 1e9 + 0.5,
            action: result.return_value,
        })
    }

    /// Fails unless all packets since `before`, and nothing else, were counted as this path's.
    fn check(&self, path: Path, before: &Counters) -> Result<(), BenchError> {
        let counted = moved(before, &self.relay.counters()?);
        let (direction, reason) = path.counter();
        let packets = u64::from(self.packets);
        let traffic = Traffic {
            packets,
            bytes: packets * self.frames.bytes(path) as u64,
        };
        if counted == Counters::from([(counter(direction, reason), traffic)]) {
            return Ok(());
        }
        let describe = |((direction, reason), traffic): (&(u8, Reason), &Traffic)| {
            let direction = Direction::ALL.into_iter().find(|known| *known as u8 == *direction);
            let direction = direction.map_or("?", Direction::name);
            format!("{direction} {} ({traffic})", reason.name())
        };
        Err(BenchError::WrongPath {
            path: path.name(),
            packets: self.packets,
            counted: counted.iter().map(describe).collect::<Vec<_>>().join(", "),
        })
    }

    fn latency(&self) -> Result<layout::Latency, BenchError> {
        Ok(self.relay.maps().latency().map_err(BackendError::from)?)
    }

    fn size(&mut self) -> Result<Size, BenchError> {
        let program = self.relay.loaded().program().map_err(BackendError::from)?;
        let info = program.info()?;
        let maps = info.map_ids()?.unwrap_or_default();
        Ok(Size {
            verified_instructions: info.verified_instruction_count().unwrap_or(0),
            jited_bytes: info.size_jitted(),
            map_bytes: maps.into_iter().map(map_bytes).sum::<Result<u64, MapError>>()?,
        })
    }
}

/// Memory that the kernel accounts to a map.
fn map_bytes(id: u32) -> Result<u64, MapError> {
    use std::os::fd::{AsFd as _, AsRawFd as _};

    let map = MapInfo::from_id(id)?.fd()?;
    let path = format!("/proc/self/fdinfo/{}", map.as_fd().as_raw_fd());
    let text = fs::read_to_string(path).unwrap_or_default();
    let bytes = text.lines().find_map(|line| line.strip_prefix("memlock:"));
    Ok(bytes.and_then(|bytes| bytes.trim().parse().ok()).unwrap_or(0))
}

fn program<'a>(lab: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Xdp, BenchError> {
    let program = lab.program_mut(name).ok_or(BenchError::Missing(name))?;
    Ok(program.try_into()?)
}
