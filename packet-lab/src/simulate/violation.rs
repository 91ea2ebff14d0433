//! What must hold, and where it did not.

use std::fmt;

use serde::Serialize;

use super::judge::Seen;
use crate::inspect;

/// Most violations that are kept; all are counted.
const KEPT: usize = 20;

/// What must hold.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Invariant {
    /// No packet number of a grant is sent on twice.
    RelayedTwice,
    /// In no window of time is more of a user's sent on than its burst and its rate allow.
    OverRate,
    /// What a user's budget allows is not refused for its rate.
    WithinRate,
    /// What a user's packet meets is what it meets when nobody attacks.
    Harmed,
    /// The downlink goes to where the user's newest authentic packet came from.
    WrongClient,
    /// Nothing is sent on for a grant that has expired, or was renewed or removed.
    GoneUser,
    /// The counters are the sum of what was seen.
    Counters,
    /// Every packet is treated as the protocol says.
    Treatment,
    /// What is sent on has the right addresses, checksums and payload; what is not, is not changed.
    Output,
    /// What is kept of a user at the end is what its packets make it.
    State,
}

impl Invariant {
    /// The name in tables and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::RelayedTwice => "relayed_twice",
            Self::OverRate => "over_rate",
            Self::WithinRate => "within_rate",
            Self::Harmed => "harmed",
            Self::WrongClient => "wrong_client",
            Self::GoneUser => "gone_user",
            Self::Counters => "counters",
            Self::Treatment => "treatment",
            Self::Output => "output",
            Self::State => "state",
        }
    }
}

/// Something that should not have happened.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Violation {
    /// When, in nanoseconds on the lab's clock.
    pub at_ns: u64,
    /// What does not hold.
    pub invariant: Invariant,
    /// What happened.
    pub what: String,
    /// The class of the packet.
    pub class: Option<&'static str>,
    /// The packet as the relay got it, in JSON as hexadecimal digits; empty if it is not about one.
    #[serde(with = "hex::serde")]
    pub input: Vec<u8>,
    /// The packet afterwards.
    #[serde(with = "hex::serde")]
    pub output: Vec<u8>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let class = self.class.unwrap_or("all");
        write!(
            f,
            "{} at {} ns, {class}: {}",
            self.invariant.name(),
            self.at_ns,
            self.what
        )?;
        if self.input.is_empty() {
            return Ok(());
        }
        write!(f, "\n{}", inspect::describe(&self.input).trim_end())?;
        if self.output != self.input {
            write!(f, "\n  afterwards\n{}", inspect::describe(&self.output).trim_end())?;
        }
        Ok(())
    }
}

/// All violations of a run: the first of them, and how many.
#[derive(Debug, Default)]
pub(super) struct Violations {
    pub(super) first: Vec<Violation>,
    pub(super) count: u64,
}

impl Violations {
    pub(super) fn add(&mut self, invariant: Invariant, seen: &Seen<'_>, what: String) {
        self.keep(|| Violation {
            at_ns: seen.now_ns,
            invariant,
            what,
            class: Some(seen.packet.class().name()),
            input: seen.frame.to_vec(),
            output: seen.treated.processed.frame.clone(),
        });
    }

    pub(super) fn add_without_packet(&mut self, invariant: Invariant, at_ns: u64, what: String) {
        self.keep(|| Violation {
            at_ns,
            invariant,
            what,
            class: None,
            input: Vec::new(),
            output: Vec::new(),
        });
    }

    fn keep(&mut self, violation: impl FnOnce() -> Violation) {
        self.count += 1;
        if self.first.len() < KEPT {
            self.first.push(violation());
        }
    }
}
