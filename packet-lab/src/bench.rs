//! How long the program takes for a packet, by the path that it takes.
//!
//! Each path gets distinct packets, made as a client would make them: a repeated one would measure the replay check.
//! A feeder program (`lab-ebpf`) writes each packet anew from a ring and goes on with the relay's program, all within
//! one `BPF_PROG_TEST_RUN`. What the feeder takes is measured in the same round and subtracted. The relay's counters
//! must show that every packet took the path that the row is named for.

mod frames;

use std::time::Duration;

use aya::{
    Ebpf, EbpfError, TestRunOptions,
    maps::{Array, MapData, MapError, ProgramArray},
    programs::{ProgramError, TestRun as _, Xdp},
};
use lab_ebpf::{FEED, FEEDER_PROGRAM, FLOOR_PROGRAM, FRAMES, HEAD_BYTES, RING, TARGETS};
use relay_ebpf::verdict::{Direction, Reason};
use serde::{Deserialize, Serialize};

use self::frames::Frames;
use crate::backend::{Backend as _, BackendError, counter, kernel::KernelBackend};

/// The feeder and the floor, as they were built with this crate.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lab-xdp"));

const TO_RELAY: u32 = 0;
const TO_FLOOR: u32 = 1;

/// Of each path's packets, so many may have taken another one: the first of a user that is over its rate.
const STRAYS: u64 = 16;

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
    /// Packets took another path than the one to be measured.
    #[error("of {packets} packets of `{path}`, {counted} were counted as {direction} {reason}: not the path meant")]
    WrongPath {
        /// The row.
        path: &'static str,
        /// Packets sent.
        packets: u64,
        /// Packets counted.
        counted: u64,
        /// The counter's direction.
        direction: &'static str,
        /// The counter's reason.
        reason: &'static str,
    },
}

/// What to measure.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Users at random.
    pub users: u32,
    /// Bytes of payload.
    pub payload_bytes: usize,
    /// Rounds, interleaved.
    pub rounds: usize,
}

/// A path through the program.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Path {
    Hot,
    Uplink,
    Downlink,
    Unrelated,
    UnknownSession,
    BadToken,
    Expired,
    Replayed,
    RateLimited,
}

impl Path {
    const ALL: [Self; 9] = [
        Self::Hot,
        Self::Uplink,
        // After `Uplink`, whose packets it repeats.
        Self::Replayed,
        Self::Downlink,
        Self::UnknownSession,
        Self::BadToken,
        Self::Expired,
        Self::RateLimited,
        Self::Unrelated,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Hot => "relayed uplink, one user",
            Self::Uplink => "relayed uplink, users at random",
            Self::Downlink => "relayed downlink, users at random",
            Self::Unrelated => "unrelated",
            Self::UnknownSession => "unknown_session, users at random",
            Self::BadToken => "bad_token, users at random",
            Self::Expired => "expired, one user",
            Self::Replayed => "replayed, users at random",
            Self::RateLimited => "rate_limited, one user",
        }
    }

    const fn counter(self) -> (Direction, Reason) {
        let reason = match self {
            Self::Downlink => return (Direction::Downlink, Reason::Relayed),
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
}

/// One row.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Row {
    /// The path.
    pub path: String,
    /// Nanoseconds a packet: the median of all rounds.
    pub ns: f64,
    /// The least and the most of all rounds.
    pub range_ns: [f64; 2],
    /// Ratio to the floor of the same round: the median.
    pub ratio: f64,
}

/// What does not vary from run to run.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Size {
    /// Instructions that the verifier walked.
    pub verified_instructions: u32,
    /// Bytes of machine code.
    pub jited_bytes: u32,
    /// Bytes that the slots' maps take: users, states and destinations.
    pub slot_map_bytes: u64,
}

/// All figures.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Report {
    /// Users at random.
    pub users: u32,
    /// Bytes of payload.
    pub payload_bytes: usize,
    /// Rounds.
    pub rounds: usize,
    /// Packets of each path in each round.
    pub packets: u32,
    /// The program.
    pub size: Size,
    /// The floor first, then the paths.
    pub rows: Vec<Row>,
}

impl Report {
    /// The rows whose ratio is above that of the same row in `base` by more than `percent`, with both ratios.
    #[must_use]
    pub fn slower_than(&self, base: &Self, percent: f64) -> Vec<(String, f64, f64)> {
        let pairs = self
            .rows
            .iter()
            .filter_map(|row| Some((row, base.rows.iter().find(|other| other.path == row.path)?)));
        pairs
            .filter(|(row, base)| row.ratio > base.ratio * (1.0 + percent / 100.0))
            .map(|(row, base)| (row.path.clone(), base.ratio, row.ratio))
            .collect()
    }
}

/// Measures all paths; `progress` is told how many of how many steps are done.
///
/// # Errors
/// See [`BenchError`].
pub fn run(options: Options, progress: &mut dyn FnMut(usize, usize)) -> Result<Report, BenchError> {
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
    let mut rows = vec![row("floor: XDP_TX with swapped MAC addresses", &floors, &[1.0])];
    for (path, samples) in Path::ALL.into_iter().zip(&samples) {
        let ns: Vec<f64> = samples.iter().map(|sample| sample.path_ns).collect();
        let ratios: Vec<f64> = samples.iter().map(|sample| sample.path_ns / sample.floor_ns).collect();
        rows.push(row(path.name(), &ns, &ratios));
    }
    Ok(Report {
        users: options.users,
        payload_bytes: options.payload_bytes,
        rounds: options.rounds,
        packets: RING,
        size: bench.size()?,
        rows,
    })
}

fn row(path: &str, ns: &[f64], ratios: &[f64]) -> Row {
    let least = ns.iter().copied().fold(f64::INFINITY, f64::min);
    let most = ns.iter().copied().fold(0.0, f64::max);
    Row {
        path: path.to_owned(),
        ns: median(ns),
        range_ns: [least, most],
        ratio: median(ratios),
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

struct Sample {
    floor_ns: f64,
    path_ns: f64,
}

struct Bench {
    relay: KernelBackend,
    frames: Frames,
    /// Keeps the lab's programs loaded.
    lab: Ebpf,
    ring: Array<MapData, [u8; HEAD_BYTES]>,
    feed: Array<MapData, [u32; 3]>,
    _targets: ProgramArray<MapData>,
}

impl Bench {
    fn new(options: Options) -> Result<Self, BenchError> {
        let frames = Frames::new(options.users, options.payload_bytes);
        let mut relay = KernelBackend::new(frames.world())?;
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
        Ok(Self {
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
        let mut first = 0;
        while first < self.frames.users() {
            let heads = self.frames.of_users_from(first);
            self.fill(&heads)?;
            self.run(TO_RELAY, self.frames.uplink_bytes())?;
            first += RING;
        }
        Ok(())
    }

    fn fill(&mut self, heads: &[[u8; HEAD_BYTES]]) -> Result<(), BenchError> {
        for (i, head) in heads.iter().enumerate() {
            self.ring.set(i as u32, head, 0)?;
        }
        Ok(())
    }

    /// Sends the ring through the feeder once.
    fn run(&mut self, target: u32, frame_bytes: usize) -> Result<Duration, BenchError> {
        self.feed.set(0, [0, frame_bytes as u32, target], 0)?;
        time(program(&mut self.lab, FEEDER_PROGRAM)?, frame_bytes)
    }

    fn measure(&mut self, path: Path) -> Result<Sample, BenchError> {
        if path != Path::Replayed {
            let heads = self.frames.of(path);
            self.fill(&heads)?;
        }
        let bytes = self.frames.bytes(path);
        let (direction, reason) = path.counter();
        let counted = |relay: &KernelBackend| -> Result<u64, BackendError> {
            let traffic = relay.counters()?.get(&counter(direction, reason)).copied();
            Ok(traffic.unwrap_or_default().packets)
        };
        let before = counted(&self.relay)?;
        let relay = self.run(TO_RELAY, bytes)?;
        let counted = counted(&self.relay)? - before;
        if counted + STRAYS < u64::from(RING) {
            return Err(BenchError::WrongPath {
                path: path.name(),
                packets: RING.into(),
                counted,
                direction: direction.name(),
                reason: reason.name(),
            });
        }
        let fed_floor = self.run(TO_FLOOR, bytes)?;
        let floor = time(program(&mut self.lab, FLOOR_PROGRAM)?, bytes)?;
        let ns = |duration: Duration| duration.as_secs_f64() * 1e9;
        Ok(Sample {
            floor_ns: ns(floor),
            path_ns: ns(relay) - (ns(fed_floor) - ns(floor)),
        })
    }

    fn size(&mut self) -> Result<Size, BenchError> {
        let program = self.relay.loaded().program().map_err(BackendError::from)?;
        let info = program.info()?;
        let maps = self.relay.maps();
        let slots = size_of_val(maps.users()) + size_of_val(maps.states()) + size_of_val(maps.destinations());
        Ok(Size {
            verified_instructions: info.verified_instruction_count().unwrap_or(0),
            jited_bytes: info.size_jitted(),
            slot_map_bytes: slots as u64,
        })
    }
}

fn program<'a>(lab: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Xdp, BenchError> {
    let program = lab.program_mut(name).ok_or(BenchError::Missing(name))?;
    Ok(program.try_into()?)
}

/// Mean time of one of as many runs as the ring has frames.
fn time(program: &Xdp, frame_bytes: usize) -> Result<Duration, BenchError> {
    let frame = vec![0; frame_bytes];
    let result = program.test_run(TestRunOptions {
        data_in: Some(&frame),
        repeat: RING,
        ..TestRunOptions::default()
    })?;
    Ok(result.duration)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(ratio: f64) -> Report {
        Report {
            users: 1,
            payload_bytes: 64,
            rounds: 1,
            packets: RING,
            size: Size {
                verified_instructions: 1,
                jited_bytes: 1,
                slot_map_bytes: 1,
            },
            rows: vec![row("a path", &[ratio], &[ratio])],
        }
    }

    #[test]
    fn the_median_of_an_even_number_is_between_the_middle_two() {
        assert!((median(&[4.0, 1.0, 3.0, 2.0]) - 2.5).abs() < 1e-9);
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
    }

    #[test]
    fn a_row_is_slower_only_beyond_the_percentage() {
        assert!(report(1.09).slower_than(&report(1.0), 10.0).is_empty());
        assert_eq!(report(1.11).slower_than(&report(1.0), 10.0).len(), 1);
    }
}
