//! The program's clock, `bpf_jiffies64` in nanoseconds, against the wall clock.

use std::time::Duration;

use aya::programs::{TestRun as _, TestRunOptions, Xdp};
use jiff::Timestamp;
use nix::time::{ClockId, clock_getres, clock_gettime};

/// A wall clock that moved by more than this against the program's makes expiries be published again.
pub const STEP: Duration = Duration::from_millis(100);

/// Why the program's clock could not be read.
#[derive(Debug, thiserror::Error)]
#[error("reading the program's clock (BPF_PROG_TEST_RUN of relay_clock, or clock_gettime): {0}")]
pub struct ClockError(String);

/// Length of the kernel's tick: the resolution of the program's clock.
///
/// # Errors
/// If the kernel has no coarse clock.
pub fn tick() -> Result<Duration, ClockError> {
    // The coarse clock is advanced by the tick, so its resolution is the tick's length (kernel/time/posix-timers.c).
    let tick = clock_getres(ClockId::CLOCK_MONOTONIC_COARSE).map_err(|error| ClockError(error.to_string()))?;
    Ok(Duration::from(tick))
}

/// How the program's clock relates to this machine's.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Clock {
    /// Program time minus CLOCK_MONOTONIC, constant while the machine runs, in nanoseconds.
    ahead_ns: i128,
}

impl Clock {
    /// Reads the program's clock once.
    ///
    /// # Errors
    /// If the program cannot be run.
    pub fn read(program: &Xdp, tick: Duration) -> Result<Self, ClockError> {
        let failed = |error: &dyn std::error::Error| ClockError(error.to_string());
        let packet = [0_u8; 64];
        let mut out = [0_u8; 64];
        let options = TestRunOptions {
            data_in: Some(&packet),
            data_out: Some(&mut out),
            ..TestRunOptions::default()
        };
        program.test_run(options).map_err(|error| failed(&error))?;
        let monotonic_ns = now_ns(ClockId::CLOCK_MONOTONIC)?;
        let [a, b, c, d, e, f, g, h, ..] = out;
        let jiffies = u64::from_ne_bytes([a, b, c, d, e, f, g, h]);
        Ok(Self {
            ahead_ns: i128::from(jiffies) * tick.as_nanos() as i128 - monotonic_ns,
        })
    }

    /// The clock of a data plane that reads CLOCK_MONOTONIC itself.
    #[must_use]
    pub const fn monotonic() -> Self {
        Self { ahead_ns: 0 }
    }

    /// When an expiry comes on the program's clock: `u64::MAX` for never, 0 for long ago.
    ///
    /// # Errors
    /// If the machine's clocks cannot be read.
    pub fn expiry_ns(&self, expires_at: Option<Timestamp>) -> Result<u64, ClockError> {
        let Some(expires_at) = expires_at else {
            return Ok(u64::MAX);
        };
        let expiry_ns = expires_at.as_nanosecond() - wall_ahead_ns()? + self.ahead_ns;
        Ok(u64::try_from(expiry_ns.max(0)).unwrap_or(u64::MAX))
    }
}

/// Wall clock minus CLOCK_MONOTONIC in nanoseconds: changes only when somebody sets the wall clock.
///
/// # Errors
/// If the machine's clocks cannot be read.
pub fn wall_ahead_ns() -> Result<i128, ClockError> {
    Ok(now_ns(ClockId::CLOCK_REALTIME)? - now_ns(ClockId::CLOCK_MONOTONIC)?)
}

fn now_ns(clock: ClockId) -> Result<i128, ClockError> {
    let now = clock_gettime(clock).map_err(|error| ClockError(error.to_string()))?;
    Ok(i128::from(now.tv_sec()) * 1_000_000_000 + i128::from(now.tv_nsec()))
}
