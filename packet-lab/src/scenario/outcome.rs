//! What came of a scenario: plain data, for terminals, reports and machines.

use std::{fmt::Write as _, net::SocketAddr};

use serde::Serialize;

use super::file::BackendKind;

/// What came of a scenario.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// `area/name`.
    pub id: String,
    /// The file.
    pub path: String,
    /// The sentence.
    pub name: String,
    /// Its tags.
    pub tags: Vec<String>,
    /// What ran it, and what did not.
    pub backends: Vec<BackendOutcome>,
    /// What each step did, as far as it got; the same in every backend, or there are failures.
    pub steps: Vec<StepOutcome>,
    /// The snapshot that was taken; none if there were no steps to take it of.
    pub snapshot: Option<String>,
    /// How that compares with the one that is kept.
    pub kept: Kept,
    /// What is wrong.
    pub failures: Vec<Failure>,
    /// How long it took, in seconds.
    pub seconds: f64,
}

impl Outcome {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.failures.is_empty() && !matches!(self.kept, Kept::Differs { .. } | Kept::Missing)
    }

    /// Whether no backend ran it.
    #[must_use]
    pub fn skipped(&self) -> bool {
        self.backends.iter().all(|backend| backend.skipped.is_some())
    }
}

/// What a backend did.
#[derive(Clone, Debug, Serialize)]
pub struct BackendOutcome {
    /// Which.
    pub backend: BackendKind,
    /// Why it did not run.
    pub skipped: Option<String>,
}

/// How a snapshot compares with the one that is kept.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "snake_case", tag = "is")]
pub enum Kept {
    /// It is the same.
    Same,
    /// Another is kept.
    Differs {
        /// That one.
        expected: String,
    },
    /// None is kept.
    Missing,
    /// It was written just now.
    Written,
    /// It was not compared: the run did not get to the end, or nothing ran.
    NotCompared,
}

/// What a step did.
#[derive(Clone, Debug, Serialize)]
pub struct StepOutcome {
    /// Its number, from 0.
    pub number: usize,
    /// Its line in the file.
    pub line: usize,
    /// When, on the lab's clock, in nanoseconds.
    pub at_ns: u64,
    /// What it does, in words.
    pub heading: String,
    /// What it is for.
    pub note: Option<String>,
    /// Its packets, if they are few.
    pub packets: Vec<PacketOutcome>,
    /// Its packets by what became of them; empty for a step that sends nothing.
    pub totals: Vec<Total>,
    /// SHA-256 of all verdicts and outputs, where the packets are too many to be listed.
    pub digest: Option<String>,
    /// What changed of what is kept of users.
    pub users: Vec<UserChange>,
    /// Destinations of whose limit was spent.
    pub destinations: Vec<DestinationChange>,
    /// Counters that moved.
    pub counters: Vec<Counted>,
    /// ICMP messages that the relay counts as sent.
    pub answers: u64,
    /// What was said of a capture that was replayed.
    pub remarks: Vec<String>,
}

/// A packet, and what became of it.
#[derive(Clone, Debug, Serialize)]
pub struct PacketOutcome {
    /// As it was sent.
    pub input: Frame,
    /// What the kernel was told.
    pub verdict: String,
    /// The direction and reason that were counted: "uplink relayed".
    pub reason: Option<String>,
    /// As it came out; none if it is as it was.
    pub output: Option<Frame>,
}

/// A frame.
#[derive(Clone, Debug, Serialize)]
pub struct Frame {
    /// Its headers, a line each.
    pub decoded: Vec<String>,
    /// Its bytes, in hexadecimal.
    pub hex: String,
}

/// Packets that had the same done to them.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Total {
    /// The direction and reason that were counted.
    pub reason: Option<String>,
    /// What the kernel was told.
    pub verdict: String,
    /// How many.
    pub packets: u64,
}

/// What changed of what is kept of a user.
#[derive(Clone, Debug, Serialize)]
pub struct UserChange {
    /// The user's id; none for a slot that nobody has.
    pub user: Option<u64>,
    /// The slot.
    pub slot: u32,
    /// Field, before, after.
    pub fields: Vec<(String, String, String)>,
}

/// What was spent of the limit of a destination.
#[derive(Clone, Debug, Serialize)]
pub struct DestinationChange {
    /// The destination.
    pub to: SocketAddr,
    /// Theoretical arrival time of the limit, before and after.
    pub tat_ns: (u64, u64),
}

/// A counter that moved.
#[derive(Clone, Debug, Serialize)]
pub struct Counted {
    /// The direction and reason: "uplink relayed".
    pub counter: String,
    /// By how many packets.
    pub packets: u64,
    /// By how many bytes of frames.
    pub bytes: u64,
}

/// Something wrong.
#[derive(Clone, Debug, Serialize)]
pub struct Failure {
    /// In which step.
    pub step: Option<usize>,
    /// In which line of the file.
    pub line: Option<usize>,
    /// What.
    pub message: String,
    /// What was to be and what was, field by field.
    pub differences: Vec<Difference>,
    /// Anything longer.
    pub details: Option<String>,
}

/// What was to be, and what was.
#[derive(Clone, Debug, Serialize)]
pub struct Difference {
    /// Of what.
    pub field: String,
    /// What was to be: or what the first backend did.
    pub expected: String,
    /// What was: or what the other backend did.
    pub actual: String,
}

impl Outcome {
    /// All that is wrong, for people; empty if nothing is.
    #[must_use]
    pub fn failures_as_text(&self) -> String {
        let mut text = String::new();
        for failure in &self.failures {
            let place = match failure.line {
                Some(line) => format!("{}:{line}", self.path),
                None => self.path.clone(),
            };
            let step = failure.step.map(|step| format!("step {step}: ")).unwrap_or_default();
            let _ = writeln!(text, "{place}: {step}{}", failure.message);
            for difference in &failure.differences {
                let Difference {
                    field,
                    expected,
                    actual,
                } = difference;
                let _ = writeln!(text, "  {field}\n    expected  {expected}\n    actual    {actual}");
            }
            if let Some(details) = &failure.details {
                let _ = writeln!(text, "{}", details.trim_end());
            }
        }
        text
    }
}
