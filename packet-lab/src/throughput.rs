//! What relaying a packet costs, by relay: the figures of a bench on a link.
//!
//! A cost is the CPU time of one packet on one core, from the moment that it is on the sender's link to the moment that it
//! is off the receiver's, without what the generator takes to make it. Costs of one round are compared with each other,
//! and the median of these ratios counts.

#![expect(clippy::cast_precision_loss, reason = "rates are for people")]

use std::fmt::Write as _;

use comfy_table::{CellAlignment, Table, presets::NOTHING};
use serde::{Deserialize, Serialize};

use crate::bench::{median, range};

/// Which way packets go.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// From the client to the server.
    Uplink,
    /// Back.
    Downlink,
}

impl Way {
    /// As counters are labelled.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Uplink => "uplink",
            Self::Downlink => "downlink",
        }
    }
}

/// One measurement, repeated: a system, a way, a size.
#[derive(Clone, Debug)]
pub struct Series {
    /// What relayed, in one word.
    pub system: &'static str,
    /// The same for people.
    pub description: &'static str,
    /// Which way.
    pub way: Way,
    /// Bytes of payload, without token or channel header.
    pub payload_bytes: usize,
    /// Packets that were sent before the system got the CPU.
    pub batch: u32,
    /// Nanoseconds of a packet, the generator's included, one for each round.
    pub whole_ns: Vec<f64>,
    /// Nanoseconds of the generator alone, in the same round.
    pub generator_ns: Vec<f64>,
}

impl Series {
    fn costs(&self) -> Vec<f64> {
        let pairs = self.whole_ns.iter().zip(&self.generator_ns);
        pairs.map(|(whole, generator)| whole - generator).collect()
    }
}

/// The figures of one system, way and size.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Row {
    /// What relayed, in one word.
    pub system: String,
    /// The same for people.
    pub description: String,
    /// Which way.
    pub way: Way,
    /// Bytes of payload.
    pub payload_bytes: usize,
    /// Packets that were sent before the system got the CPU.
    pub batch: u32,
    /// Nanoseconds of CPU time for a packet: the median of all rounds.
    pub ns: f64,
    /// The least and the most of all rounds.
    pub range_ns: [f64; 2],
    /// The same with what the generator takes.
    pub whole_ns: f64,
    /// Cost as a multiple of the bare NAT's, the same way and in the same round: the median.
    pub bare_nat: Option<f64>,
    /// Cost as a multiple of the relay's in native mode, likewise.
    pub relay: Option<f64>,
    /// Both multiples with what the generator takes on both sides.
    pub whole: [Option<f64>; 2],
}

impl Row {
    /// What a reader calls it.
    #[must_use]
    pub fn name(&self) -> String {
        match self.way {
            Way::Uplink => self.description.clone(),
            Way::Downlink => format!("{}, downlink", self.description),
        }
    }

    /// Packets that one core relays in a second.
    #[must_use]
    pub fn packets_per_second(&self) -> f64 {
        1e9 / self.ns
    }

    /// Gigabits of payload that one core relays in a second.
    #[must_use]
    pub fn gbit_per_second(&self) -> f64 {
        8.0 * self.payload_bytes as f64 / self.ns
    }
}

/// A ratio that the relay is to keep, and what it is.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Bar {
    /// Whose cost.
    pub system: String,
    /// As a multiple of whose.
    pub of: String,
    /// Which way.
    pub way: Way,
    /// Bytes of payload.
    pub payload_bytes: usize,
    /// What it is to be at most.
    pub at_most: Option<f64>,
    /// What it is to be at least.
    pub at_least: Option<f64>,
    /// What it is.
    pub ratio: f64,
    /// What it would be with the generator's time on both sides.
    pub whole_ratio: Option<f64>,
    /// Whether it is what it is to be.
    pub met: bool,
}

/// Two cores, one of which sends as much as it can.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Overload {
    /// What relayed, in one word.
    pub system: String,
    /// The same for people.
    pub description: String,
    /// Bytes of payload.
    pub payload_bytes: usize,
    /// Packets sent in a second: the median of all rounds.
    pub sent_per_second: f64,
    /// Packets delivered in a second, likewise.
    pub delivered_per_second: f64,
}

impl Overload {
    /// From pairs of packets sent and delivered in a second, one for each round.
    #[must_use]
    pub fn new(system: &str, description: &str, payload_bytes: usize, rounds: &[[f64; 2]]) -> Self {
        let [sent_per_second, delivered_per_second] =
            [0, 1].map(|which| median(&rounds.iter().map(|round| round[which]).collect::<Vec<_>>()));
        Self {
            system: system.to_owned(),
            description: description.to_owned(),
            payload_bytes,
            sent_per_second,
            delivered_per_second,
        }
    }
}

/// All figures.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Report {
    /// Release of the kernel.
    pub kernel: String,
    /// The processor, as it calls itself.
    pub processor: String,
    /// Processes that were running or waiting for a CPU before and after, the mean of a minute.
    pub load: [f64; 2],
    /// Rounds, interleaved.
    pub rounds: usize,
    /// Packets of each row in each round.
    pub packets: u32,
    /// Nanoseconds of the generator alone: the median.
    pub generator_ns: f64,
    /// The figures.
    pub rows: Vec<Row>,
    /// Ratios to be kept.
    pub bars: Vec<Bar>,
    /// What happens on two cores when more is sent than is relayed.
    pub overload: Vec<Overload>,
}

/// The reference's name.
pub const BARE_NAT: &str = "bare_nat";
/// The relay's name, in native mode.
pub const RELAY: &str = "relay_native";

/// What the relay may cost as a multiple of the bare NAT.
const RELAY_AT_MOST: f64 = 1.35;
/// What others cost at least, as multiples of the relay.
const OTHERS_AT_LEAST: [(&str, f64); 4] = [
    ("nftables", 4.5),
    ("relay_userspace", 8.0),
    ("coturn", 8.0),
    ("socat", 20.0),
];

impl Report {
    /// The rows and bars of what was measured; the rest is left empty.
    #[must_use]
    pub fn new(all: &[Series]) -> Self {
        let rows: Vec<Row> = all.iter().map(|series| row(series, all)).collect();
        let generator: Vec<f64> = all
            .iter()
            .flat_map(|series| series.generator_ns.iter().copied())
            .collect();
        Self {
            kernel: String::new(),
            processor: String::new(),
            load: [0.0; 2],
            rounds: all.first().map_or(0, |series| series.whole_ns.len()),
            packets: 0,
            generator_ns: median(&generator),
            bars: rows.iter().filter_map(bar).collect(),
            overload: Vec::new(),
            rows,
        }
    }

    /// Sizes of payload, in order.
    #[must_use]
    pub fn sizes(&self) -> Vec<usize> {
        let mut sizes: Vec<usize> = self.rows.iter().map(|row| row.payload_bytes).collect();
        sizes.sort_unstable();
        sizes.dedup();
        sizes
    }

    /// The figures as text.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        for bytes in self.sizes() {
            let _ = writeln!(text, "{bytes} bytes of payload\n{}\n", self.table(bytes));
        }
        for bar in &self.bars {
            let _ = writeln!(text, "{}", bar.text());
        }
        if !self.overload.is_empty() {
            let _ = writeln!(
                text,
                "\ntwo cores, one sending as much as it can\n{}",
                self.overload_table()
            );
        }
        let _ = write!(
            text,
            "\none core of {}; Linux {}; {} packets of each in each of {} rounds, none lost; the generator's {:.0} ns a \
             packet subtracted; load {:.1} before, {:.1} after",
            self.processor, self.kernel, self.packets, self.rounds, self.generator_ns, self.load[0], self.load[1]
        );
        text
    }

    fn table(&self, payload_bytes: usize) -> String {
        let mut table = Table::new();
        table.load_style(NOTHING).set_header([
            "RELAY",
            "NS/PACKET",
            "RANGE",
            "MPACKETS/S",
            "GBIT/S",
            "× BARE NAT",
            "× RELAY",
            "BATCH",
        ]);
        let ratio = |ratio: Option<f64>| ratio.map_or_else(|| "–".to_owned(), |ratio| format!("{ratio:.2}"));
        for row in self.rows.iter().filter(|row| row.payload_bytes == payload_bytes) {
            table.add_row([
                row.name(),
                format!("{:.0}", row.ns),
                format!("{:.0}–{:.0}", row.range_ns[0], row.range_ns[1]),
                format!("{:.3}", row.packets_per_second() / 1e6),
                format!("{:.2}", row.gbit_per_second()),
                ratio(row.bare_nat),
                ratio(row.relay),
                row.batch.to_string(),
            ]);
        }
        printed(table)
    }

    fn overload_table(&self) -> String {
        let mut table = Table::new();
        table
            .load_style(NOTHING)
            .set_header(["RELAY", "BYTES", "MPACKETS/S SENT", "DELIVERED", "LOST"]);
        for row in &self.overload {
            table.add_row([
                row.description.clone(),
                row.payload_bytes.to_string(),
                format!("{:.3}", row.sent_per_second / 1e6),
                format!("{:.3}", row.delivered_per_second / 1e6),
                format!("{:.0}%", 100.0 * (1.0 - row.delivered_per_second / row.sent_per_second)),
            ]);
        }
        printed(table)
    }
}

fn printed(mut table: Table) -> String {
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let table = table.to_string();
    let lines: Vec<&str> = table.lines().map(str::trim_end).collect();
    lines.join("\n")
}

impl Bar {
    fn text(&self) -> String {
        let (word, limit) = match (self.at_most, self.at_least) {
            (Some(most), _) => ("at most", most),
            (None, least) => ("at least", least.unwrap_or_default()),
        };
        let whole = self.whole_ratio.unwrap_or(f64::NAN);
        format!(
            "{}  {} bytes, {}: {} costs {:.2} × {}, to be {word} {limit} ({whole:.2} with the generator)",
            if self.met { "met     " } else { "NOT MET " },
            self.payload_bytes,
            self.way.name(),
            self.system,
            self.ratio,
            self.of
        )
    }
}

fn row(series: &Series, all: &[Series]) -> Row {
    let costs = series.costs();
    Row {
        system: series.system.to_owned(),
        description: series.description.to_owned(),
        way: series.way,
        payload_bytes: series.payload_bytes,
        batch: series.batch,
        ns: median(&costs),
        range_ns: range(&costs),
        whole_ns: median(&series.whole_ns),
        bare_nat: ratio(series, BARE_NAT, all, Series::costs),
        relay: ratio(series, RELAY, all, Series::costs),
        whole: [BARE_NAT, RELAY].map(|to| ratio(series, to, all, |series| series.whole_ns.clone())),
    }
}

/// The median of the ratios to another system's figures, the same way, with the same size and in the same round.
fn ratio(series: &Series, to: &str, all: &[Series], figures: impl Fn(&Series) -> Vec<f64>) -> Option<f64> {
    let is_like =
        |other: &&Series| other.system == to && other.way == series.way && other.payload_bytes == series.payload_bytes;
    let others = figures(all.iter().find(is_like)?);
    let ratios: Vec<f64> = figures(series)
        .iter()
        .zip(others)
        .map(|(this, other)| this / other)
        .collect();
    Some(median(&ratios))
}

fn bar(row: &Row) -> Option<Bar> {
    let [nat, relay] = row.whole;
    let (of, ratio, whole_ratio, at_most, at_least) = if row.system == RELAY {
        (BARE_NAT, row.bare_nat?, nat, Some(RELAY_AT_MOST), None)
    } else {
        let (_, least) = OTHERS_AT_LEAST.iter().find(|(system, _)| *system == row.system)?;
        (RELAY, row.relay?, relay, None, Some(*least))
    };
    Some(Bar {
        system: row.system.clone(),
        of: of.to_owned(),
        way: row.way,
        payload_bytes: row.payload_bytes,
        at_most,
        at_least,
        ratio,
        whole_ratio,
        met: at_most.is_none_or(|most| ratio <= most) && at_least.is_none_or(|least| ratio >= least),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(system: &'static str, way: Way, whole_ns: [f64; 3], generator_ns: [f64; 3]) -> Series {
        Series {
            system,
            description: system,
            way,
            payload_bytes: 64,
            batch: 64,
            whole_ns: whole_ns.to_vec(),
            generator_ns: generator_ns.to_vec(),
        }
    }

    #[test]
    fn costs_are_without_the_generator_and_compared_round_by_round() {
        // The second round was twice as slow for everybody: it must not show in the ratios.
        let generator = [50.0, 100.0, 50.0];
        let nat = series(BARE_NAT, Way::Uplink, [150.0, 300.0, 150.0], generator);
        let relay = series(RELAY, Way::Uplink, [170.0, 340.0, 175.0], generator);
        let report = Report::new(&[nat, relay]);
        assert_eq!((report.generator_ns, report.rounds), (50.0, 3));
        let [nat, relay] = &report.rows[..] else {
            panic!("{report:?}")
        };
        assert_eq!((nat.ns, nat.range_ns, nat.whole_ns), (100.0, [100.0, 200.0], 150.0));
        assert_eq!((nat.bare_nat, relay.relay), (Some(1.0), Some(1.0)));
        assert_eq!((relay.bare_nat, relay.whole[0]), (Some(1.2), Some(340.0 / 300.0)));
        assert_eq!(nat.relay.map(|ratio| (ratio * 120.0).round()), Some(100.0));
        assert_eq!((nat.packets_per_second(), nat.gbit_per_second()), (1e7, 5.12));
    }

    #[test]
    fn a_bar_is_met_on_the_right_side_of_it_only() {
        let of = |system, ns: f64| series(system, Way::Uplink, [ns; 3], [0.0; 3]);
        let report = Report::new(&[
            of(BARE_NAT, 100.0),
            of(RELAY, 135.0),
            of("nftables", 607.0),
            of("coturn", 1_080.0),
            of("socat", 2_699.0),
        ]);
        let met: Vec<(&str, bool)> = report.bars.iter().map(|bar| (bar.system.as_str(), bar.met)).collect();
        assert_eq!(
            met,
            [(RELAY, true), ("nftables", false), ("coturn", true), ("socat", false)]
        );
        assert!(!Report::new(&[of(BARE_NAT, 100.0), of(RELAY, 135.1)]).bars[0].met);
        assert!(
            report
                .text()
                .contains("NOT MET   64 bytes, uplink: socat costs 19.99 × relay_native")
        );
    }

    #[test]
    fn what_has_nothing_to_be_compared_with_is_not() {
        let down = series(RELAY, Way::Downlink, [2.0; 3], [1.0; 3]);
        let up = series(BARE_NAT, Way::Uplink, [2.0; 3], [1.0; 3]);
        let report = Report::new(&[down, up]);
        assert_eq!((report.rows[0].bare_nat, report.rows[1].relay), (None, None));
        assert!(report.bars.is_empty());
    }
}
