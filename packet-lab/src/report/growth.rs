//! The plot of what more users cost.

use super::chart::{self, Line, Lines, Point};
use crate::bench::{GROWING, Report};

/// What a packet costs as users grow, and the memory that they take, as an SVG file; `reports` of one user number after
/// the other.
#[must_use]
pub fn growth(reports: &[Report]) -> String {
    let costs = Lines {
        title: "What a packet costs, by number of users",
        note: "as a multiple of the floor, users at random; the upright lines are the range of all rounds",
        series: GROWING
            .into_iter()
            .zip(COLOURS)
            .map(|((path, name), colour)| cost(reports, path, name, colour))
            .collect(),
        decades: false,
    };
    let memory = Lines {
        title: "Kernel memory, by number of users",
        note: "MiB of all maps",
        series: vec![Line {
            name: "all maps",
            colour: 7,
            points: reports.iter().map(maps).collect(),
        }],
        decades: true,
    };
    chart::image("What a packet and a user cost, by number of users", [costs, memory]).into_string()
}

/// Of [`GROWING`]: told apart from each other beyond doubt.
const COLOURS: [usize; GROWING.len()] = [0, 2, 4];

fn cost<'a>(reports: &[Report], path: &str, name: &'a str, colour: usize) -> Line<'a> {
    let points = reports.iter().filter_map(|report| {
        let row = report.row(path)?;
        Some(Point {
            x: report.users.into(),
            y: row.ratio,
            range: Some(row.ratio_range),
            text: format!("{:.1} × floor, {:.0} ns", row.ratio, row.ns),
        })
    });
    Line {
        name,
        colour,
        points: points.collect(),
    }
}

fn maps(report: &Report) -> Point {
    let mib = report.size.map_bytes as f64 / f64::from(1 << 20);
    Point {
        x: report.users.into(),
        y: mib,
        range: None,
        text: format!("{mib:.1}"),
    }
}
