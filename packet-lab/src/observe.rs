//! What a frame did, in a form to compare and to keep: small, sorted, the same on every run.

use std::{
    collections::BTreeSet,
    fmt::{self, Display},
    net::SocketAddr,
    str::FromStr,
};

use relay_ebpf::verdict::{self, Direction, Reason};
use serde::{Deserialize, Serialize};

use crate::{
    backend::{Counters, Traffic, UserState, counter},
    inspect,
};

/// What an XDP program tells the kernel to do with a frame.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Verdict {
    /// Discard it, and tell of a fault of the program's.
    Aborted,
    /// Discard it.
    Drop,
    /// Give it to the host's network stack.
    Pass,
    /// Send it out of the interface that it came in by.
    Tx,
    /// Send it out of another interface, or give it to another CPU or a socket.
    Redirect,
}

impl Verdict {
    /// All, in the order of the kernel's numbers for them (`enum xdp_action` in `linux/bpf.h`).
    pub const ALL: [Self; 5] = [Self::Aborted, Self::Drop, Self::Pass, Self::Tx, Self::Redirect];

    /// The name: `ABORTED`, `DROP`, `PASS`, `TX` or `REDIRECT`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Aborted => "ABORTED",
            Self::Drop => "DROP",
            Self::Pass => "PASS",
            Self::Tx => "TX",
            Self::Redirect => "REDIRECT",
        }
    }

    /// The verdict that a program means by a number; `None` if it is no XDP action.
    #[must_use]
    pub fn from_action(number: u32) -> Option<Self> {
        Self::ALL.get(number as usize).copied()
    }
}

impl Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that is none of a verdict.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("`{0}` is no verdict: use one of ABORTED, DROP, PASS, TX, REDIRECT")]
pub struct UnknownVerdict(pub String);

impl FromStr for Verdict {
    type Err = UnknownVerdict;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let known = Self::ALL.into_iter().find(|verdict| verdict.name() == name);
        known.ok_or_else(|| UnknownVerdict(name.to_owned()))
    }
}

impl From<verdict::Verdict> for Verdict {
    fn from(relays: verdict::Verdict) -> Self {
        match relays {
            verdict::Verdict::Pass => Self::Pass,
            verdict::Verdict::Drop => Self::Drop,
            verdict::Verdict::Tx => Self::Tx,
            verdict::Verdict::Redirect => Self::Redirect,
        }
    }
}

/// Everything that one frame did.
#[derive(Clone, Debug, Eq, PartialEq)]
#[must_use = "an observation that nobody looks at shows nothing"]
pub struct Observation {
    /// What the kernel was told.
    pub verdict: Verdict,
    /// The number of the interface that it came in by.
    pub ingress: u8,
    /// The number of the interface that it is sent out of, where it is.
    pub egress: Option<u8>,
    /// The frame as it was.
    pub input: Vec<u8>,
    /// The frame afterwards.
    pub output: Vec<u8>,
    /// Users of whom something changed, by slot: before and after.
    pub users: Vec<(u32, UserState, UserState)>,
    /// Destinations of whose limit was spent: its theoretical arrival time, before and after.
    pub destinations: Vec<(SocketAddr, u64, u64)>,
    /// Every counter that moved, and by how much.
    pub counters: Counters,
    /// ICMP messages that the relay counts as sent.
    pub answers: u64,
}

impl Observation {
    /// The direction and reason that were counted, if that was exactly this frame, once.
    #[must_use]
    pub fn reason(&self) -> Option<(Direction, Reason)> {
        let mut moved = self.counters.iter();
        let (&(direction, reason), traffic) = moved.next()?;
        let once = Traffic {
            packets: 1,
            bytes: self.input.len() as u64,
        };
        let direction = Direction::ALL.into_iter().find(|known| *known as u8 == direction)?;
        (moved.next().is_none() && *traffic == once).then_some((direction, reason))
    }

    /// Verdict and reason in a line: "TX uplink relayed".
    #[must_use]
    pub fn summary(&self) -> String {
        match self.reason() {
            Some((direction, reason)) => format!("{} {} {}", self.verdict, direction.name(), reason.name()),
            None => self.verdict.to_string(),
        }
    }

    /// Fails unless the verdict is this, and exactly this counter moved, by this frame.
    ///
    /// # Panics
    /// If it was otherwise; with everything that was observed.
    pub fn expect(self, verdict: Verdict, direction: Direction, reason: Reason) -> Self {
        let expected = (verdict, Some((direction, reason)));
        assert!(
            (self.verdict, self.reason()) == expected,
            "expected {} and {} {} as the only counter that moves, by one packet of {} bytes; observed\n{self}",
            verdict.name(),
            direction.name(),
            reason.name(),
            self.input.len(),
        );
        self
    }

    /// Fails unless the packet was relayed uplink.
    ///
    /// # Panics
    /// If it was not.
    pub fn expect_relayed(self) -> Self {
        self.expect(Verdict::Tx, Direction::Uplink, Reason::Relayed)
    }

    /// Fails unless the packet was dropped on its way uplink, for this reason, unchanged.
    ///
    /// # Panics
    /// If it was not.
    pub fn expect_dropped(self, reason: Reason) -> Self {
        let observed = self.expect(Verdict::Drop, Direction::Uplink, reason);
        assert!(
            observed.output == observed.input,
            "dropped, but changed before:\n{observed}"
        );
        observed
    }

    /// Fails if any user's state changed.
    ///
    /// # Panics
    /// If it did.
    pub fn expect_no_state_change(self) -> Self {
        assert!(self.users.is_empty(), "no user's state should change; observed\n{self}");
        self
    }
}

impl Display for Observation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "verdict: {}", self.verdict.name())?;
        if let Some(egress) = self.egress.filter(|egress| *egress != self.ingress) {
            writeln!(f, "interface: {} to {egress}", self.ingress)?;
        }
        if self.output == self.input {
            writeln!(f, "output: the input, unchanged")?;
        } else {
            writeln!(
                f,
                "output: {} bytes\n{}",
                self.output.len(),
                inspect::describe(&self.output).trim_end()
            )?;
        }
        for (slot, before, after) in &self.users {
            writeln!(f, "user in slot {slot}:")?;
            for (field, before, after) in changes(before, after) {
                writeln!(f, "  {field}: {before} -> {after}")?;
            }
        }
        for (to, before, after) in &self.destinations {
            writeln!(f, "destination {to}: tat_ns {before} -> {after}")?;
        }
        for direction in Direction::ALL {
            for reason in Reason::ALL {
                if let Some(moved) = self.counters.get(&counter(direction, reason)) {
                    writeln!(f, "counted: {} {}: {moved}", direction.name(), reason.name())?;
                }
            }
        }
        if self.answers > 0 {
            writeln!(f, "ICMP messages: {}", self.answers)?;
        }
        Ok(())
    }
}

/// What two observations of one frame do not have in common: field, what the first has and what the second.
#[must_use]
pub fn differences(first: &Observation, second: &Observation) -> Vec<(String, String, String)> {
    let mut differences = Vec::new();
    let mut compare = |field: String, first: String, second: String| {
        if first != second {
            differences.push((field, first, second));
        }
    };
    compare("verdict".into(), first.verdict.to_string(), second.verdict.to_string());
    let egress = |observed: &Observation| {
        observed
            .egress
            .map_or_else(|| "none".to_owned(), |number| number.to_string())
    };
    compare("out of interface".into(), egress(first), egress(second));
    compare("counted".into(), counted(first), counted(second));
    compare(
        "ICMP messages".into(),
        first.answers.to_string(),
        second.answers.to_string(),
    );
    for difference in inspect::compare(&first.output, &second.output) {
        let value = |side: Option<String>| side.unwrap_or_else(|| "none".to_owned());
        compare(
            format!("output {}", difference.what),
            value(difference.first),
            value(difference.second),
        );
    }
    let spent = |observed: &Observation| {
        let all = observed.destinations.iter();
        let told = all.map(|(to, before, after)| format!("{to}: {before} -> {after}"));
        told.collect::<Vec<_>>().join("; ")
    };
    compare("tat_ns of destinations".into(), spent(first), spent(second));
    let slots: BTreeSet<u32> = first
        .users
        .iter()
        .chain(&second.users)
        .map(|(slot, _, _)| *slot)
        .collect();
    for slot in slots {
        let of = |observed: &Observation| {
            let change = observed.users.iter().find(|(changed, _, _)| *changed == slot);
            change.map(|(_, before, after)| (before.clone(), after.clone()))
        };
        let unchanged = of(first)
            .or_else(|| of(second))
            .map(|(before, _)| (before.clone(), before));
        let [first, second] = [of(first), of(second)].map(|change| change.or_else(|| unchanged.clone()));
        if let (Some(first), Some(second)) = (first, second) {
            for (moment, first, second) in [("before", first.0, second.0), ("after", first.1, second.1)] {
                for (field, first, second) in changes(&first, &second) {
                    compare(format!("slot {slot} {field} {moment}"), first, second);
                }
            }
        }
    }
    differences
}

fn counted(observed: &Observation) -> String {
    let counted = observed.counters.iter().map(|(&(direction, reason), moved)| {
        let direction = Direction::ALL.into_iter().find(|known| *known as u8 == direction);
        format!("{} {}: {moved}", direction.map_or("", Direction::name), reason.name())
    });
    let counted: Vec<String> = counted.collect();
    if counted.is_empty() {
        "nothing".to_owned()
    } else {
        counted.join("; ")
    }
}

/// What changed of what is kept of a user: field, before and after.
#[must_use]
pub fn changes(before: &UserState, after: &UserState) -> Vec<(&'static str, String, String)> {
    type Field = (&'static str, fn(&UserState) -> String);
    let fields: [Field; 7] = [
        ("newest", |state| state.newest.to_string()),
        ("accepted", ranges),
        ("tat_ns", |state| state.tat_ns.to_string()),
        ("down_tat_ns", |state| state.down_tat_ns.to_string()),
        ("client", client),
        ("uplink", |state| state.uplink.to_string()),
        ("downlink", |state| state.downlink.to_string()),
    ];
    let values = fields.into_iter().map(|(name, of)| (name, of(before), of(after)));
    values.filter(|(_, before, after)| before != after).collect()
}

fn ranges(state: &UserState) -> String {
    if state.accepted.is_empty() {
        return "none".to_owned();
    }
    let ranges = state.accepted.iter().map(|range| match (range.start(), range.end()) {
        (start, end) if start == end => start.to_string(),
        (start, end) => format!("{start}..={end}"),
    });
    ranges.collect::<Vec<_>>().join(" ")
}

fn client(state: &UserState) -> String {
    state.client.map_or("unknown".to_owned(), |client| client.to_string())
}
