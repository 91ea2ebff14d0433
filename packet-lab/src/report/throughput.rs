//! The plot of what relays cost.

use super::chart::{self, Bar, Bars};
use crate::throughput::{Report, Row};

/// Colours: the relay's rows, what it is measured against, everything else.
const RELAY: usize = 0;
const REFERENCE: usize = 2;
const OTHER: usize = 7;

/// Packets a second of one core, by size of payload, as an SVG file.
#[must_use]
pub fn throughput(report: &Report) -> String {
    let titles: Vec<(usize, String)> = report
        .sizes()
        .into_iter()
        .map(|bytes| (bytes, format!("{bytes} bytes of payload")))
        .collect();
    let panels = titles.iter().map(|(bytes, title)| panel(report, *bytes, title));
    let label = "Packets a second that one core relays, by relay and size of payload";
    chart::image(label, panels).into_string()
}

fn panel<'a>(report: &'a Report, payload_bytes: usize, title: &'a str) -> Bars<'a> {
    let rows = report.rows.iter().filter(|row| row.payload_bytes == payload_bytes);
    Bars {
        title,
        note: "packets a second, one core; the line is the range of all rounds",
        rows: rows.map(bar).collect(),
    }
}

fn bar(row: &Row) -> Bar {
    let [least_ns, most_ns] = row.range_ns;
    let colour = match row.system.as_str() {
        system if system.starts_with("relay") => RELAY,
        "bare_nat" => REFERENCE,
        _ => OTHER,
    };
    Bar {
        name: row.name(),
        value: row.packets_per_second(),
        range: Some([1e9 / most_ns, 1e9 / least_ns]),
        base: None,
        text: format!("{:.2} M", row.packets_per_second() / 1e6),
        colour,
    }
}
