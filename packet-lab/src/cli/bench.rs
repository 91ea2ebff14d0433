//! `bench`: how long the program takes for a packet.

use std::{fs, path::PathBuf};

use anyhow::Context as _;
use clap::value_parser;
use comfy_table::{CellAlignment, Table, presets::NOTHING};
use packet_lab::{
    backend::kernel::missing_capabilities,
    bench::{BenchError, MOST_PACKETS, Options, Report, Worse, run},
    report::{self, Compared},
};

use super::{Ended, Exit, json, line};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "The floor is the least that an XDP program can do to send a packet on: swap the MAC addresses and \
                  return XDP_TX. Times of one machine do not compare with another's, nor with its own of an hour ago: \
                  compare the ratios to the floor, which is measured in the same rounds. The machine should be idle. \
                  Needs root; nothing is attached to any interface.\n\nExamples:\n  \
                  packet-lab bench --json > base.json\n  packet-lab bench --compare base.json --fail-above 10%\n  \
                  packet-lab bench --users 1000 --rounds 20 --report bench.html"
)]
pub struct Args {
    /// Users at random
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = value_parser!(u32).range(1..=1_599_999))]
    users: u32,
    /// Payload of each packet, not counting the token
    #[arg(long, value_name = "BYTES", default_value_t = 64, value_parser = value_parser!(u32).range(54..=1_400))]
    size: u32,
    /// Measure IPv6, not IPv4
    #[arg(long)]
    ipv6: bool,
    /// Measure a listener without header protection
    #[arg(long)]
    no_header_protection: bool,
    /// Packets of each path in each round
    #[arg(long, value_name = "N", default_value_t = MOST_PACKETS, value_parser = value_parser!(u32).range(1..=i64::from(MOST_PACKETS)))]
    packets: u32,
    /// Interleaved rounds; the figures are their medians
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = value_parser!(u32).range(1..=1_000))]
    rounds: u32,
    /// Compare with what --json printed before
    #[arg(long, value_name = "BASE.json")]
    compare: Option<PathBuf>,
    /// Fail if a ratio to the floor, or on the same kernel the program's size, is above the base's by more than this
    #[arg(long, value_name = "PERCENT", requires = "compare", default_value = "10%", value_parser = percent)]
    fail_above: f64,
    /// Write a page of HTML for people: ratios to the floor, and a histogram of single packets' times
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A percentage, with or without its sign.
pub(super) fn percent(text: &str) -> Result<f64, String> {
    let number = text.trim_end_matches('%').trim().parse::<f64>().ok();
    number
        .filter(|percent| percent.is_finite() && *percent >= 0.0)
        .ok_or_else(|| "write a percentage like 10%".to_owned())
}

pub fn execute(args: &Args) -> Ended {
    let base = args.compare.as_ref().map(read_base).transpose();
    let base = base.map_err(|error| (Exit::Usage, error))?;
    let missing = missing_capabilities();
    if !missing.is_empty() {
        let why = anyhow::anyhow!(
            "running programs in the kernel needs {}: run as root",
            missing.join(" and ")
        );
        return Err((Exit::Environment, why));
    }
    let mut shown = super::progress::Progress::new("measuring");
    let options = Options {
        users: args.users,
        payload_bytes: args.size as usize,
        ipv6: args.ipv6,
        header_protection: !args.no_header_protection,
        packets: args.packets,
        rounds: args.rounds as usize,
    };
    let report = run(options, &mut |done, all| {
        let message = format!("{done} of {all} measurements");
        shown.at(done as u64, Some(all as u64), &message);
    });
    shown.finish();
    let report = report.map_err(|error| (exit(&error), error.into()))?;
    if args.json {
        json(&report);
    } else {
        line(&describe(&report));
    }
    let worse = match &base {
        Some(base) => report.worse_than(base, args.fail_above),
        None => Ok(Vec::new()),
    };
    let worse = worse.map_err(|error| (Exit::Usage, error.into()))?;
    if let Some(path) = &args.report {
        let compared = base.as_ref().map(|base| Compared {
            base,
            worse: &worse,
            percent: args.fail_above,
        });
        report::write(path, &report::bench(&report, compared)).map_err(|error| (Exit::Environment, error.into()))?;
    }
    for Worse { what, base, now } in &worse {
        eprintln!(
            "worse than the base by more than {}%: {what}: {now:.2}, before {base:.2}",
            args.fail_above
        );
    }
    Ok(if worse.is_empty() { Exit::Pass } else { Exit::Failure })
}

/// A path that is not the one meant is a fault of the relay or the lab; whatever else fails is the kernel's refusal.
fn exit(error: &BenchError) -> Exit {
    match error {
        BenchError::WrongPath { .. } | BenchError::NoFloor(_) | BenchError::Missing(_) => Exit::Failure,
        _ => Exit::Environment,
    }
}

fn read_base(path: &PathBuf) -> anyhow::Result<Report> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    serde_json::from_str(&text)
        .with_context(|| format!("{} is not what `packet-lab bench --json` prints", path.display()))
}

fn describe(report: &Report) -> String {
    let mut table = Table::new();
    table
        .load_style(NOTHING)
        .set_header(["PATH", "", "NS/PACKET", "RANGE", "× FLOOR"]);
    for row in &report.rows {
        table.add_row([
            row.path.clone(),
            row.description.clone(),
            format!("{:.0}", row.ns),
            format!("{:.0}–{:.0}", row.range_ns[0], row.range_ns[1]),
            format!("{:.2}", row.ratio),
        ]);
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let table = table.to_string();
    let rows: Vec<&str> = table.lines().map(str::trim_end).collect();
    format!(
        "{}\n\n{} users, {} bytes of payload, IPv{}, {} header protection; {} packets of each path in each of {} \
         rounds; Linux {}\nprogram: {} instructions verified, {} bytes of machine code; maps: {:.1} MiB",
        rows.join("\n"),
        report.users,
        report.payload_bytes,
        if report.ipv6 { 6 } else { 4 },
        if report.header_protection { "with" } else { "without" },
        report.packets,
        report.rounds,
        report.kernel,
        report.size.verified_instructions,
        report.size.jited_bytes,
        report.size.map_bytes as f64 / f64::from(1 << 20),
    )
}
