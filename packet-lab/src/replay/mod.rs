//! Replaying captures: what would the relay have done with this?
//!
//! A capture is looked through twice, packet by packet, so that memory does not grow with it: a [`Survey`] first, from
//! which a [`Known`] relay is completed to a [`Cast`], a world; then [`replay`] gives what was sent to the relay to a
//! backend. A [`Resigner`] seals tokens anew where the capture's keys are not at hand.
//!
//! Time is the lab's clock: packets have the distances of the capture, or those that were asked for, and nobody sleeps.

#![expect(
    clippy::cast_precision_loss,
    reason = "packets and bits are far below 2^52, and rates are for people"
)]

pub mod cast;
pub mod outputs;
pub mod record;
mod resign;
pub mod select;
mod summary;
mod survey;

use std::{
    path::Path,
    time::{Duration, Instant},
};

pub use cast::{Cast, CastError, Known};
use relay_ebpf::verdict::{Direction, Reason};
pub use resign::{REMEMBERED_TOKENS, Resigned, Resigner, Tally};
pub use select::{Concern, Selector};
use serde::Serialize;
pub use summary::{Row, Summary, Talker};
pub use survey::{Flow, Survey};

use self::summary::Account;
use crate::{
    backend::{Backend, BackendError, Processed},
    capture::{Capture, CaptureError, Packet},
};

/// When the first packet comes, on the lab's clock.
pub const START_NS: u64 = 1_000_000_000;

/// When packets come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Timing {
    /// As the capture has them. A stamp that goes back counts as the one before it.
    #[default]
    Capture,
    /// So many packets a second.
    PacketsPerSecond(f64),
    /// So many megabits of frames a second, without preamble, frame check sequence and gap.
    MegabitsPerSecond(f64),
    /// All at once, on the lab's clock; as fast as it goes, in real time.
    TopSpeed,
}

/// How to replay.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// When packets come.
    pub timing: Timing,
    /// How often.
    pub loops: u32,
    /// Stop after so many packets were given to the backend.
    pub limit: Option<u64>,
    /// Wait for each packet's time, instead of only setting the lab's clock.
    pub real_time: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            timing: Timing::Capture,
            loops: 1,
            limit: None,
            real_time: false,
        }
    }
}

/// A packet that was given to the backend, and what became of it.
#[derive(Debug)]
pub struct Replayed<'a> {
    /// As it was given: with its token sealed anew, where that was asked for.
    pub input: &'a Packet,
    /// When, on the lab's clock.
    pub now_ns: u64,
    /// What became of it.
    pub processed: &'a Processed,
    /// The direction and reason that were counted for it, if any were.
    pub counted: Option<(Direction, Reason)>,
}

/// How far a replay is.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Bytes of the file read, in all loops.
    pub bytes: u64,
    /// Bytes of the file, times the loops; if known.
    pub of_bytes: Option<u64>,
    /// Packets given to the backend.
    pub packets: u64,
}

/// Why a replay ended early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplayError {
    /// The capture cannot be opened.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// The backend cannot be run.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// Whoever watches had enough.
    #[error(transparent)]
    Watcher(#[from] anyhow::Error),
}

/// Told of every packet, and now and then of the progress.
pub trait Watcher {
    /// A packet was replayed.
    ///
    /// # Errors
    /// Whatever should end the replay.
    fn replayed(&mut self, _packet: &Replayed<'_>) -> anyhow::Result<()> {
        Ok(())
    }

    /// A packet of the capture was sent by the relay, or by its host.
    ///
    /// # Errors
    /// Whatever should end the replay.
    fn relay_sent(&mut self, _packet: &Packet) -> anyhow::Result<()> {
        Ok(())
    }

    /// Some more were.
    fn progress(&mut self, _progress: Progress) {}
}

/// Watches nothing.
impl Watcher for () {}

/// Gives a backend what a capture has for the relay.
///
/// # Errors
/// If the capture cannot be opened or the backend cannot be run. A capture that turns out truncated or corrupt later
/// is no error: see [`Summary::ended_by`].
pub fn replay(
    path: &Path,
    selector: &Selector,
    resigner: Option<&mut Resigner>,
    backend: &mut dyn Backend,
    options: &Options,
    watcher: &mut dyn Watcher,
) -> Result<Summary, ReplayError> {
    let mut run = Run {
        selector,
        resigner,
        backend,
        options,
        watcher,
        clock: Clock::new(options.timing),
        account: Account::default(),
        started: Instant::now(),
    };
    run.account.begin(run.backend)?;
    let mut ended_by = None;
    for number in 0..options.loops {
        let more = run.once(path, number, &mut ended_by)?;
        if !more || ended_by.is_some() {
            break;
        }
    }
    let elapsed = run.started.elapsed();
    let tally = run.resigner.as_ref().map(|resigner| resigner.tally());
    let span_ns = run.clock.span_ns();
    Ok(run.account.close(run.backend, elapsed, span_ns, tally, ended_by)?)
}

/// How many packets are between two reports of progress.
const PROGRESS_EVERY: u64 = 1 << 12;

struct Run<'a> {
    selector: &'a Selector,
    resigner: Option<&'a mut Resigner>,
    backend: &'a mut dyn Backend,
    options: &'a Options,
    watcher: &'a mut dyn Watcher,
    clock: Clock,
    account: Account,
    started: Instant,
}

impl Replayed<'_> {
    /// "TX uplink relayed": the verdict and what was counted, as comments of captures have it.
    #[must_use]
    pub fn comment(&self) -> String {
        let verdict = self.processed.verdict.name();
        match self.counted {
            Some((direction, reason)) => format!("{verdict} {} {}", direction.name(), reason.name()),
            None => verdict.to_owned(),
        }
    }
}

impl Run<'_> {
    /// Replays the capture once; whether there may be a next time.
    fn once(&mut self, path: &Path, number: u32, ended_by: &mut Option<CaptureError>) -> Result<bool, ReplayError> {
        let mut capture = Capture::open(path)?;
        self.clock.restart();
        if let Some(resigner) = &mut self.resigner {
            resigner.forget_tokens();
        }
        let mut read = 0_u64;
        while let Some(packet) = capture.next() {
            let packet = match packet {
                Ok(packet) => packet,
                Err(error) => {
                    *ended_by = Some(error);
                    return Ok(false);
                }
            };
            read += 1;
            if read.is_multiple_of(PROGRESS_EVERY) {
                self.report(&capture, number);
            }
            let concern = self.selector.concern(&packet);
            if concern == Concern::FromRelay {
                self.watcher.relay_sent(&packet)?;
            }
            if !self.account.concern(concern) {
                continue;
            }
            self.give(packet)?;
            if self.options.limit.is_some_and(|limit| self.account.packets() >= limit) {
                return Ok(false);
            }
        }
        self.report(&capture, number);
        Ok(read > 0)
    }

    fn report(&mut self, capture: &Capture, number: u32) {
        let size = capture.size();
        self.watcher.progress(Progress {
            bytes: capture.position() + u64::from(number) * size.unwrap_or(0),
            of_bytes: size.map(|size| size * u64::from(self.options.loops)),
            packets: self.account.packets(),
        });
    }

    fn give(&mut self, mut packet: Packet) -> Result<(), ReplayError> {
        let now_ns = self.clock.time_of(&packet);
        if !self.backend.takes(&packet.data) {
            self.account.not_taken();
            return Ok(());
        }
        if let Some(resigner) = &mut self.resigner {
            resigner.resign(&mut packet.data);
        }
        if self.options.real_time && self.options.timing != Timing::TopSpeed {
            wait_until(self.started + Duration::from_nanos(now_ns - START_NS));
        }
        let processed = self.backend.process(now_ns, &packet.data)?;
        let counted = self.account.processed(self.backend, &packet, &processed)?;
        self.watcher.replayed(&Replayed {
            input: &packet,
            now_ns,
            processed: &processed,
            counted,
        })?;
        Ok(())
    }
}

/// Below this it is not worth while to sleep: a timer may be as late.
const SHORTEST_SLEEP: Duration = Duration::from_micros(200);

fn wait_until(then: Instant) {
    loop {
        let left = then.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        match left.checked_sub(SHORTEST_SLEEP) {
            Some(sleep) if !sleep.is_zero() => std::thread::sleep(sleep),
            _ => std::hint::spin_loop(),
        }
    }
}

/// The lab's clock during a replay; it never goes back.
#[derive(Debug)]
struct Clock {
    timing: Timing,
    /// The capture's stamp that `base_ns` stands for, in this loop.
    first_at_ns: Option<u64>,
    base_ns: u64,
    now_ns: u64,
    packets: u64,
    bits: f64,
}

impl Clock {
    fn new(timing: Timing) -> Self {
        Self {
            timing,
            first_at_ns: None,
            base_ns: START_NS,
            now_ns: START_NS,
            packets: 0,
            bits: 0.0,
        }
    }

    /// Starts the next loop: its first packet follows as the packets did on average.
    fn restart(&mut self) {
        self.first_at_ns = None;
        let gap_ns = match self.packets {
            0 | 1 => 0,
            packets => self.span_ns() / (packets - 1),
        };
        self.base_ns = self.now_ns + gap_ns;
    }

    fn span_ns(&self) -> u64 {
        self.now_ns - START_NS
    }

    fn time_of(&mut self, packet: &Packet) -> u64 {
        let then_ns = match self.timing {
            Timing::Capture => {
                let first_at_ns = *self.first_at_ns.get_or_insert(packet.at_ns);
                self.base_ns.saturating_add(packet.at_ns.saturating_sub(first_at_ns))
            }
            Timing::PacketsPerSecond(pps) => after(self.packets as f64 / pps),
            Timing::MegabitsPerSecond(mbps) => after(self.bits / (mbps * 1e6)),
            Timing::TopSpeed => START_NS,
        };
        self.packets += 1;
        self.bits += 8.0 * f64::from(packet.original_length);
        self.now_ns = self.now_ns.max(then_ns);
        self.now_ns
    }
}

/// So many seconds after the first packet, on the lab's clock.
fn after(seconds: f64) -> u64 {
    let since_start = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
    START_NS.saturating_add(u64::try_from(since_start.as_nanos()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(timing: Timing, stamps: &[u64]) -> Vec<u64> {
        let mut clock = Clock::new(timing);
        let packet = |at_ns| Packet::new(at_ns, vec![0; 125]);
        stamps
            .iter()
            .map(|at_ns| clock.time_of(&packet(*at_ns)) - START_NS)
            .collect()
    }

    #[test]
    fn the_lab_clock_has_the_distances_of_the_capture_and_never_goes_back() {
        assert_eq!(times(Timing::Capture, &[500, 700, 600, 1_700]), [0, 200, 200, 1_200]);
    }

    #[test]
    fn packets_and_megabits_per_second_set_the_distances() {
        assert_eq!(
            times(Timing::PacketsPerSecond(4.0), &[9, 9, 9]),
            [0, 250_000_000, 500_000_000]
        );
        assert_eq!(
            times(Timing::MegabitsPerSecond(1.0), &[9, 8, 7]),
            [0, 1_000_000, 2_000_000]
        );
        assert_eq!(times(Timing::TopSpeed, &[1, 2, 3]), [0, 0, 0]);
    }

    #[test]
    fn the_next_loop_follows_at_the_mean_distance() {
        let mut clock = Clock::new(Timing::Capture);
        for at_ns in [100, 150, 300] {
            clock.time_of(&Packet::new(at_ns, Vec::new()));
        }
        clock.restart();
        assert_eq!(clock.time_of(&Packet::new(100, Vec::new())) - START_NS, 300);
    }
}
