//! Many users over virtual time, through a backend: steady and bursty, roaming, behind NATs, over their rates, with
//! grants that end; on a path that loses, reorders and duplicates; under attack. All chance comes from one seed, time
//! is the lab's, and every actor has chances of its own, so that a run is the same on every machine and every backend,
//! and what a user's packets meet does not depend on who else is there, unless the relay makes it so.
//!
//! Every packet is judged; what must hold is in [`Invariant`]. A run with an attack is made twice, first without it:
//! every packet of every user must meet the same both times.

mod attack;
mod class;
mod client;
pub(crate) mod dice;
mod engine;
mod judge;
mod numbers;
mod packet;
mod population;
mod profile;
mod report;
mod subject;
mod violation;

pub use self::{
    class::{Class, UnknownClass},
    profile::{MOST_SECONDS, MOST_USERS, PathProfile, Profile, ProfileError},
    report::{Flow, Report, Row, Slice, Tally, number},
    subject::{Subject, Treated},
    violation::{Invariant, Violation},
};
use self::{engine::Run, population::Population};
use crate::{World, backend::BackendError};

/// The slices of a report's timeline, in virtual milliseconds.
pub const SLICE_MS: u64 = 100;

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SimulateError {
    /// The profile cannot be run.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// The backend cannot do what the run needs.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

/// How far a run is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Progress {
    /// Virtual milliseconds done, of both runs together if there are two.
    pub done_ms: u64,
    /// Virtual milliseconds in all.
    pub all_ms: u64,
    /// Packets so far.
    pub packets: u64,
}

/// Runs a profile through the backends that `make` makes, one for each run; `progress` is told now and then.
///
/// # Errors
/// If the profile makes no sense, or a backend fails. A violation is no error: see [`Report::violations`].
pub fn run(
    profile: &Profile,
    make: &mut dyn FnMut(&World) -> Result<Subject, BackendError>,
    progress: &mut dyn FnMut(Progress),
) -> Result<Report, SimulateError> {
    profile.check()?;
    let population = Population::new(profile);
    let run_ms = profile.end_ns() / 1_000_000;
    let runs = if profile.has_attack() { 2 } else { 1 };
    let (mut done_ms, mut packets) = (0, 0);
    let mut baseline = None;
    if profile.has_attack() {
        let subject = make(&population.world)?;
        let peace = profile.without_attack();
        let mut told = |ms: u64, packets| {
            progress(Progress {
                done_ms: ms.min(run_ms),
                all_ms: run_ms * runs,
                packets,
            });
        };
        let outcome = Run::new(&peace, &population, subject, None).go(&mut told)?;
        (done_ms, packets) = (run_ms, outcome.report.packets);
        if !outcome.report.passed() {
            // What does not hold in peace is not the attack's doing, and shows best without it.
            return Ok(Report {
                stopped_before_attack: true,
                ..outcome.report
            });
        }
        baseline = Some(outcome.met);
    }
    let subject = make(&population.world)?;
    let mut told = |ms: u64, more| {
        progress(Progress {
            done_ms: done_ms + ms.min(run_ms),
            all_ms: run_ms * runs,
            packets: packets + more,
        });
    };
    let outcome = Run::new(profile, &population, subject, baseline).go(&mut told)?;
    Ok(outcome.report)
}
