//! Fuzzing: any frames, in any order, at any time, to users that come and go, through the [oracle](crate::oracle) and
//! another backend. Whatever the two do not do alike is a fault of one of them.
//!
//! Everything comes from one seed. A run is made of worlds, and each world of sequences, each with chances of its own:
//! the same seed and number of packets give the same run on every machine. A sequence that fails is made as small as
//! it can be made before it is shown.

mod corpus;
mod export;
mod generate;
mod mutate;
mod pair;
mod sequence;
mod shrink;

use std::fmt;

use relay_ebpf::verdict::{Direction, Reason};

pub use self::{
    corpus::{Corpus, CorpusError},
    export::LeaveError,
    pair::{About, Mismatch, Pair, Reached},
    sequence::{Action, START_NS, Sequence, Step},
};
use self::{generate::Author, shrink::Shrinker};
use crate::{
    Lab, Verdict, World,
    backend::{Backend, BackendError, oracle::OracleBackend},
    lab::{Disagreement, LabError},
    simulate::dice::Dice,
};

/// Steps of a sequence.
const STEPS: usize = 250;
/// Sequences in one world: loading a program takes longer than some thousand packets.
const SEQUENCES: u64 = 400;

/// Variations of a scenario, before it is the next one's turn.
const VARIATIONS: u64 = 100;

/// What is fuzzed.
#[derive(Clone, Debug)]
pub struct Options {
    /// What all chance comes from.
    pub seed: u64,
    /// At least so many frames are sent.
    pub packets: u64,
    /// What is sent besides what is made.
    pub corpus: Corpus,
}

/// How far a run is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Progress {
    /// Frames sent.
    pub packets: u64,
    /// Whether a failure is being made small.
    pub shrinking: bool,
}

/// What a run found.
#[derive(Debug)]
pub struct Outcome {
    /// Frames sent.
    pub packets: u64,
    /// Sequences begun.
    pub sequences: u64,
    /// Worlds made.
    pub worlds: u64,
    /// How often each direction, reason and verdict was reached, by the oracle's count.
    pub reached: Reached,
    /// The first disagreement; the run ends with it.
    pub failure: Option<Box<Failure>>,
}

impl Outcome {
    /// The directions and reasons that were never reached, of those that there are.
    #[must_use]
    pub fn missed(&self) -> Vec<(Direction, Reason)> {
        let pairs = Direction::ALL
            .into_iter()
            .flat_map(|direction| Reason::ALL.map(|reason| (direction, reason)));
        let reached = |direction, reason| {
            let mut all = self.reached.keys();
            all.any(|&(known, of, _)| (known, of) == (direction as u8, reason))
        };
        pairs
            .filter(|&(direction, reason)| is_possible(direction, reason) && !reached(direction, reason))
            .collect()
    }
}

/// Whether a packet of this direction can be counted for this reason.
fn is_possible(direction: Direction, reason: Reason) -> bool {
    match direction {
        // The lab's frames always have room in front of them.
        Direction::Uplink => !matches!(reason, Reason::NoHeadroom | Reason::Unsolicited | Reason::IcmpError),
        Direction::Downlink => matches!(
            reason,
            Reason::Relayed
                | Reason::Fragment
                | Reason::Truncated
                | Reason::RateLimited
                | Reason::TtlExpired
                | Reason::TooBig
                | Reason::Unsolicited
                | Reason::IcmpError
        ),
    }
}

/// A disagreement.
#[derive(Debug)]
pub struct Failure {
    /// Where it was found: the number of the world, and of the sequence in it.
    pub found: (u64, u64),
    /// Steps up to it, as found.
    pub steps_found: usize,
    /// The smallest sequence found that shows it.
    pub sequence: Sequence,
    /// What the backends disagree about.
    pub about: About,
    /// Both sides, after the last step; `None` if the sequence does not fail again in backends that are made anew.
    pub sides: Option<Box<Disagreement>>,
}

/// Makes a backend for a world.
pub type Make<'a> = dyn FnMut(&World) -> Result<Box<dyn Backend>, BackendError> + 'a;

/// Fuzzes the backends that `make` makes, until so many packets were sent or a disagreement is found.
///
/// # Errors
/// If a backend cannot be made or run.
pub fn run(
    options: &Options,
    make: &mut Make<'_>,
    progress: &mut dyn FnMut(Progress),
) -> Result<Outcome, BackendError> {
    let mut outcome = Outcome {
        packets: 0,
        sequences: 0,
        worlds: 0,
        reached: Reached::new(),
        failure: None,
    };
    while outcome.packets < options.packets && outcome.failure.is_none() {
        explore(options, make, progress, &mut outcome)?;
        outcome.worlds += 1;
    }
    Ok(outcome)
}

/// Every other world is a scenario's, if there are any.
fn base(options: &Options, nth_world: u64) -> Option<&Sequence> {
    let scenarios = &options.corpus.sequences;
    if nth_world.is_multiple_of(2) || scenarios.is_empty() {
        return None;
    }
    scenarios.get((nth_world / 2) as usize % scenarios.len())
}

/// All sequences of the next world.
fn explore(
    options: &Options,
    make: &mut Make<'_>,
    progress: &mut dyn FnMut(Progress),
    outcome: &mut Outcome,
) -> Result<(), BackendError> {
    let nth_world = outcome.worlds;
    let base = base(options, nth_world);
    let world = match base {
        Some(sequence) => sequence.world.clone(),
        None => generate::world(&mut Dice::new(options.seed, nth_world << 32)),
    };
    let mut pair = Pair::new(&world, make(&world)?)?;
    let sequences = if base.is_some() { VARIATIONS } else { SEQUENCES };
    for nth in 0..sequences {
        if outcome.packets >= options.packets {
            break;
        }
        let dice = Dice::new(options.seed, nth_world << 32 | (nth + 1));
        let mut author = Author::new(dice, &world, &options.corpus.frames);
        let steps = match base {
            Some(sequence) => author.vary(&sequence.steps),
            None => author.steps(STEPS),
        };
        let sequence = Sequence {
            world: world.clone(),
            steps,
        };
        outcome.sequences += 1;
        let mismatch = pair.run(&sequence, false, &mut outcome.reached)?;
        outcome.packets = outcome.reached.values().sum();
        progress(Progress {
            packets: outcome.packets,
            shrinking: mismatch.is_some(),
        });
        if let Some(mismatch) = mismatch {
            let failure = explain(&mut pair, sequence, mismatch, make)?;
            outcome.failure = Some(Box::new(Failure {
                found: (nth_world, nth),
                ..failure
            }));
            break;
        }
    }
    Ok(())
}

/// Makes a failing sequence small, and runs what is left in backends that are made anew.
fn explain(
    pair: &mut Pair,
    sequence: Sequence,
    mismatch: Mismatch,
    make: &mut Make<'_>,
) -> Result<Failure, BackendError> {
    let shrunk = Shrinker::shrink(pair, &sequence)?;
    let (sequence, about) = shrunk.unwrap_or((sequence, mismatch.about));
    let sides = sides(&sequence, make)?;
    Ok(Failure {
        found: (0, 0),
        steps_found: mismatch.step + 1,
        sequence,
        about,
        sides,
    })
}

/// What both sides do with the first frame of a sequence that they do not agree about.
///
/// # Errors
/// If a backend cannot be made or run.
pub fn sides(sequence: &Sequence, make: &mut Make<'_>) -> Result<Option<Box<Disagreement>>, BackendError> {
    let world = &sequence.world;
    let oracle: Box<dyn Backend> = Box::new(OracleBackend::new(world)?);
    let mut lab = Lab::new(world.clone(), vec![oracle, make(world)?]);
    for step in &sequence.steps {
        match take(&mut lab, step) {
            Ok(()) | Err(LabError::NoBackend(_)) => {}
            Err(LabError::Disagreement(sides)) => return Ok(Some(sides)),
            Err(LabError::Backend { source, .. }) => return Err(*source),
        }
    }
    Ok(None)
}

fn take(lab: &mut Lab, step: &Step) -> Result<(), LabError> {
    match &step.action {
        Action::Send(frame) => lab.step(step.at_ns, frame).map(|_| ()),
        Action::Publish(user) => lab.publish(user),
        Action::Remove(slot) => lab.remove(*slot),
        Action::NextHop(to, hop) => lab.set_next_hop(*to, *hop),
        Action::Blocklist(prefixes) => lab.set_blocklist(prefixes),
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (world, sequence) = self.found;
        writeln!(
            f,
            "found in sequence {sequence} of world {world}, after {} steps; these are what is left:",
            self.steps_found
        )?;
        let World { users, .. } = &self.sequence.world;
        for user in users {
            write!(
                f,
                "{}",
                Step {
                    at_ns: START_NS,
                    action: Action::Publish(*user),
                }
            )?;
        }
        for step in &self.sequence.steps {
            write!(f, "{step}")?;
        }
        match &self.sides {
            Some(sides) => write!(f, "\n{sides}"),
            None => writeln!(
                f,
                "In backends that are made anew, they agree: what one of them remembers of earlier sequences matters."
            ),
        }
    }
}

/// The outcomes of a run as rows: direction, reason, verdict, packets.
#[must_use]
pub fn rows(reached: &Reached) -> Vec<(&'static str, &'static str, Verdict, u64)> {
    let name = |number| {
        if number == Direction::Uplink as u8 {
            Direction::Uplink
        } else {
            Direction::Downlink
        }
        .name()
    };
    let rows = reached.iter();
    rows.map(|(&(direction, reason, verdict), &packets)| (name(direction), reason.name(), verdict, packets))
        .collect()
}
