//! What a run showed: a table by class, what happened over time, and what did not hold.

use std::fmt::Write as _;

use comfy_table::{CellAlignment, Table, presets::NOTHING};
use relay_ebpf::verdict::{Direction, Reason};
use serde::{Serialize, Serializer, ser::SerializeMap as _};

use super::{class::Class, profile::Profile, violation::Violation};

/// Packets by reason.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Tally([u64; Reason::ALL.len()]);

impl Tally {
    /// Counts a packet.
    pub(super) fn add(&mut self, reason: Reason) {
        self.0[reason as usize] += 1;
    }

    /// Packets of this reason.
    #[must_use]
    pub const fn of(&self, reason: Reason) -> u64 {
        self.0[reason as usize]
    }

    /// Packets of any reason.
    #[must_use]
    pub fn all(&self) -> u64 {
        self.0.iter().sum()
    }

    /// Every reason that there were packets of.
    pub fn iter(&self) -> impl Iterator<Item = (Reason, u64)> {
        let counts = Reason::ALL.into_iter().zip(self.0);
        counts.filter(|(_, packets)| *packets != 0)
    }

    fn plus(mut self, other: &Self) -> Self {
        for (sum, more) in self.0.iter_mut().zip(other.0) {
            *sum += more;
        }
        self
    }
}

impl Serialize for Tally {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (reason, packets) in self.iter() {
            map.serialize_entry(reason.name(), &packets)?;
        }
        map.end()
    }
}

/// The packets of a class in one direction.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
pub struct Flow {
    /// Packets that were sent.
    pub offered: u64,
    /// Lost on the path between client and relay: uplink before the relay, downlink behind it.
    pub lost: u64,
    /// Packets that the path made two of.
    pub duplicated: u64,
    /// What the relay did with those that it got.
    pub relay: Tally,
}

impl Flow {
    fn plus(&self, other: &Self) -> Self {
        Self {
            offered: self.offered + other.offered,
            lost: self.lost + other.lost,
            duplicated: self.duplicated + other.duplicated,
            relay: self.relay.plus(&other.relay),
        }
    }
}

/// What became of a class.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Row {
    /// The class.
    pub class: Class,
    /// Whether it is an attacker's.
    pub attack: bool,
    /// Users; 0 for an attack.
    pub users: u32,
    /// From clients, or whoever pretends to be one.
    pub uplink: Flow,
    /// From destinations, or whoever pretends to be one.
    pub downlink: Flow,
    /// Downlink packets that were relayed to where the client is, and not lost behind the relay.
    pub reached: u64,
    /// Downlink packets that were relayed to where the client had been: it moved, and the relay could not know yet.
    pub missed: u64,
}

/// A stretch of virtual time.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
pub struct Slice {
    /// When it begins, in milliseconds since the run did.
    pub at_ms: u64,
    /// Uplink packets of users.
    pub uplink: Tally,
    /// Downlink packets of users.
    pub downlink: Tally,
    /// Packets of attackers.
    pub attack: Tally,
}

/// What a run showed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// What was run.
    pub profile: Profile,
    /// Whether an attack was to follow, and did not, since something did not hold without it.
    pub stopped_before_attack: bool,
    /// The backend.
    pub backend: String,
    /// Packets that the backend got in the run with the attack.
    pub packets: u64,
    /// Of these, packets of users that were compared with the run without the attack.
    pub compared: u64,
    /// Every class that was there.
    pub rows: Vec<Row>,
    /// Slices of [`SLICE_MS`](super::SLICE_MS), the first first.
    pub timeline: Vec<Slice>,
    /// How often something did not hold.
    pub violation_count: u64,
    /// The first violations.
    pub violations: Vec<Violation>,
}

impl Report {
    /// Whether everything held that must.
    #[must_use]
    pub const fn passed(&self) -> bool {
        self.violation_count == 0
    }

    /// All packets in one direction.
    #[must_use]
    pub fn total(&self, direction: Direction) -> Flow {
        let flows = self.rows.iter().map(|row| match direction {
            Direction::Uplink => &row.uplink,
            Direction::Downlink => &row.downlink,
        });
        flows.fold(Flow::default(), |sum, flow| sum.plus(flow))
    }

    /// The table by class, for people and snapshots: the same on every backend.
    #[must_use]
    pub fn table(&self) -> String {
        let mut text = String::new();
        let up = |row: &Row| (row.uplink.offered != 0).then_some(row.uplink);
        let down = |row: &Row| (row.downlink.offered != 0).then_some(row.downlink);
        let _ = writeln!(text, "UPLINK\n{}", self.flows(up, false));
        let _ = writeln!(text, "DOWNLINK\n{}", self.flows(down, true));
        let _ = write!(text, "{}", self.summary());
        text
    }

    fn flows(&self, flow: impl Fn(&Row) -> Option<Flow>, downlink: bool) -> String {
        let mut table = Table::new();
        let mut header = vec!["CLASS", "USERS", "OFFERED", "LOST"];
        header.extend(if downlink {
            ["RELAYED", "REACHED", "MISSED"]
        } else {
            ["TWICE", "RELAYED", "PING"]
        });
        header.push("DROPPED OR PASSED");
        let columns = header.len();
        table.load_style(NOTHING).set_header(header);
        for row in &self.rows {
            let Some(flow) = flow(row) else { continue };
            let mut cells = vec![row.class.name().to_owned(), number(row.users.into())];
            cells.extend([flow.offered, flow.lost].map(number));
            let relayed = flow.relay.of(Reason::Relayed);
            cells.extend(if downlink {
                [relayed, row.reached, row.missed].map(number)
            } else {
                [flow.duplicated, relayed, flow.relay.of(Reason::Ping)].map(number)
            });
            cells.push(rest(&flow.relay));
            table.add_row(cells);
        }
        for column in table.column_iter_mut().skip(1).take(columns - 2) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let text = table.to_string();
        let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
        lines.join("\n") + "\n"
    }

    fn summary(&self) -> String {
        let mut text = format!(
            "{} packets in {} s of virtual time, seed {}",
            number(self.packets),
            self.profile.seconds,
            self.profile.seed
        );
        if self.profile.has_attack() {
            let _ = write!(
                text,
                "; {} of users met what they meet when nobody attacks",
                number(self.compared)
            );
        }
        match self.violation_count {
            0 => text.push_str("\nall invariants hold\n"),
            1 => text.push_str("\n1 violation of an invariant\n"),
            count => _ = writeln!(text, "\n{} violations of invariants", number(count)),
        }
        if self.stopped_before_attack {
            text.push_str("that was without the attack; with it nothing was run\n");
        }
        text
    }
}

/// The reasons besides those that have columns.
fn rest(tally: &Tally) -> String {
    let others = tally
        .iter()
        .filter(|(reason, _)| !matches!(reason, Reason::Relayed | Reason::Ping));
    let others = others.map(|(reason, packets)| format!("{} {}", reason.name(), number(packets)));
    others.collect::<Vec<_>>().join(", ")
}

/// A number with its thousands apart.
#[must_use]
pub fn number(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i != 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
