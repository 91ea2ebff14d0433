//! `bench`: how long the program takes for a packet.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::value_parser;
use comfy_table::{CellAlignment, Table, presets::NOTHING};
use packet_lab::{
    backend::kernel::missing_capabilities,
    bench::{BenchError, GROWING, MOST_PACKETS, Options, Report, Worse, run},
    report::{self, Compared},
};
use serde::Serialize;

use super::{Ended, Exit, json, line};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "The floor is the least that an XDP program can do to send a packet on: swap the MAC addresses and \
                  return XDP_TX. Times of one machine do not compare with another's, nor with its own of an hour ago: \
                  compare the ratios to the floor, which is measured in the same rounds. The machine should be idle. \
                  Needs root; nothing is attached to any interface.\n\n\
                  GBIT/S is the payload that one core relays if it does nothing but run the program, and 40 GBIT/S \
                  how many cores that keeps busy with it.\n\nExamples:\n  \
                  packet-lab bench --json > base.json\n  packet-lab bench --compare base.json --fail-above 10%\n  \
                  packet-lab bench --users 1000 --rounds 20 --report bench.html\n  \
                  packet-lab bench --users 1,1000,1000000 --svg users.svg --json=users.json"
)]
pub struct Args {
    /// Users at random; several numbers, with commas, to see what more users cost
    #[arg(long, value_name = "N", value_delimiter = ',', default_values = ["100000"], value_parser = value_parser!(u32).range(1..=1_599_999))]
    users: Vec<u32>,
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
    /// Write a plot of what more users cost
    #[arg(long, value_name = "FILE.svg")]
    svg: Option<PathBuf>,
    /// Print JSON; or write it to a file, and print the table. Of several numbers of users it is a list
    #[arg(long, value_name = "FILE.json", num_args = 0..=1, require_equals = true, default_missing_value = STDOUT)]
    json: Option<PathBuf>,
}

/// Instead of a file.
const STDOUT: &str = "-";
/// Gigabits in a second that the tables say the share of a core of.
const LINE_RATE: f64 = 40.0;

/// A percentage, with or without its sign.
pub(super) fn percent(text: &str) -> Result<f64, String> {
    let number = text.trim_end_matches('%').trim().parse::<f64>().ok();
    number
        .filter(|percent| percent.is_finite() && *percent >= 0.0)
        .ok_or_else(|| "write a percentage like 10%".to_owned())
}

pub fn execute(args: &Args) -> Ended {
    let mut users = args.users.clone();
    users.sort_unstable();
    users.dedup();
    if users.len() > 1 && (args.compare.is_some() || args.report.is_some()) {
        let why = anyhow::anyhow!("--compare and --report are for one number of users: give --users one");
        return Err((Exit::Usage, why));
    }
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
    let reports = users.into_iter().map(|users| measure(args, users));
    let reports: Vec<Report> = reports
        .collect::<Result<_, _>>()
        .map_err(|error| (exit(&error), error.into()))?;
    let figures = match &reports[..] {
        [report] => Figures::One(report),
        several => Figures::Growth(several),
    };
    show(args, &figures).map_err(|error| (Exit::Environment, error))?;
    if let Some(path) = &args.svg {
        report::write(path, &report::growth(&reports)).map_err(|error| (Exit::Environment, error.into()))?;
    }
    match figures {
        Figures::One(report) => judge(args, report, base.as_ref()),
        Figures::Growth(_) => Ok(Exit::Pass),
    }
}

fn measure(args: &Args, users: u32) -> Result<Report, BenchError> {
    let mut shown = super::progress::Progress::new("measuring");
    let options = Options {
        users,
        payload_bytes: args.size as usize,
        ipv6: args.ipv6,
        header_protection: !args.no_header_protection,
        packets: args.packets,
        rounds: args.rounds as usize,
    };
    let report = run(options, &mut |done, all| {
        let message = format!("{done} of {all} measurements, {users} users");
        shown.at(done as u64, Some(all as u64), &message);
    });
    shown.finish();
    report
}

/// What was measured, with one number of users or several.
#[derive(Serialize)]
#[serde(untagged)]
enum Figures<'a> {
    One(&'a Report),
    Growth(&'a [Report]),
}

/// Prints the figures, and writes them where they are to be written.
fn show(args: &Args, figures: &Figures<'_>) -> anyhow::Result<()> {
    let file = args.json.as_deref().filter(|file| *file != Path::new(STDOUT));
    if args.json.is_some() && file.is_none() {
        json(figures);
    } else {
        line(&match figures {
            Figures::One(report) => describe(report),
            Figures::Growth(reports) => describe_growth(reports),
        });
    }
    if let Some(path) = file {
        let text = serde_json::to_string_pretty(figures)? + "\n";
        fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

/// Compares with the base, and writes the page.
fn judge(args: &Args, report: &Report, base: Option<&Report>) -> Ended {
    let worse = match base {
        Some(base) => report.worse_than(base, args.fail_above),
        None => Ok(Vec::new()),
    };
    let worse = worse.map_err(|error| (Exit::Usage, error.into()))?;
    if let Some(path) = &args.report {
        let compared = base.map(|base| Compared {
            base,
            worse: &worse,
            percent: args.fail_above,
        });
        report::write(path, &report::bench(report, compared)).map_err(|error| (Exit::Environment, error.into()))?;
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
        .set_header(["PATH", "", "NS/PACKET", "RANGE", "× FLOOR", "GBIT/S", "40 GBIT/S"]);
    for row in &report.rows {
        let relayed = |text: Option<String>| text.unwrap_or_default();
        table.add_row([
            row.path.clone(),
            row.description.clone(),
            format!("{:.0}", row.ns),
            format!("{:.0}–{:.0}", row.range_ns[0], row.range_ns[1]),
            format!("{:.2}", row.ratio),
            relayed(row.gbit_per_second.map(|gbit| format!("{gbit:.1}"))),
            relayed(row.cores_at(LINE_RATE).map(|cores| format!("{cores:.2} cores"))),
        ]);
    }
    format!(
        "{}\n\n{} users, {}\nprogram: {} instructions verified, {} bytes of machine code; maps: {:.1} MiB",
        printed(table, 2),
        report.users,
        conditions(report),
        report.size.verified_instructions,
        report.size.jited_bytes,
        mib(report),
    )
}

/// Of at least one report, of the fewest users first.
fn describe_growth(reports: &[Report]) -> String {
    let mut table = Table::new();
    let costs = GROWING
        .iter()
        .flat_map(|(_, name)| [name.to_uppercase(), "× FLOOR".to_owned()]);
    let header = ["USERS".to_owned()].into_iter().chain(costs);
    table
        .load_style(NOTHING)
        .set_header(header.chain(["MAPS".to_owned(), "BYTES/USER".to_owned()]));
    let mut fewer: Option<&Report> = None;
    for report in reports {
        let mut cells = vec![report.users.to_string()];
        for (path, _) in GROWING {
            let row = report.row(path);
            cells.push(row.map_or_else(String::new, |row| format!("{:.0}", row.ns)));
            cells.push(row.map_or_else(String::new, |row| format!("{:.2}", row.ratio)));
        }
        cells.push(format!("{:.1} MiB", mib(report)));
        let bytes = fewer.and_then(|fewer| report.bytes_per_user(fewer));
        cells.push(bytes.map_or_else(String::new, |bytes| format!("{bytes:.0}")));
        table.add_row(cells);
        fewer = Some(report);
    }
    let conditions = reports.first().map(conditions).unwrap_or_default();
    format!(
        "{}\n\nnanoseconds a packet, users at random; {conditions}\nbytes that each user takes whom the row above does not have",
        printed(table, 0)
    )
}

/// What does not depend on how many users there are.
fn conditions(report: &Report) -> String {
    format!(
        "{} bytes of payload, IPv{}, {} header protection; {} packets of each path in each of {} rounds; Linux {}",
        report.payload_bytes,
        if report.ipv6 { 6 } else { 4 },
        if report.header_protection { "with" } else { "without" },
        report.packets,
        report.rounds,
        report.kernel,
    )
}

fn mib(report: &Report) -> f64 {
    report.size.map_bytes as f64 / f64::from(1 << 20)
}

/// The table, with its columns from this one on to the right.
fn printed(mut table: Table, first_number: usize) -> String {
    for column in table.column_iter_mut().skip(first_number) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let table = table.to_string();
    let lines: Vec<&str> = table.lines().map(str::trim_end).collect();
    lines.join("\n")
}
