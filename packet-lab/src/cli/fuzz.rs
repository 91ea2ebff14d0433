//! `fuzz`: any frames in any order through the oracle and another backend.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use clap::ValueEnum;
use comfy_table::{CellAlignment, Table, presets::NOTHING};
use packet_lab::{
    Backend, World,
    backend::{
        BackendError,
        host::HostBackend,
        kernel::{KernelBackend, missing_capabilities},
    },
    fuzz::{Corpus, CorpusError, Options, Outcome, rows, run},
    simulate::number,
};
use serde::Serialize;

use super::{Ended, Exit, json, line, progress::Progress};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Worlds, users, frames and times are made at random, mostly as a real relay meets them, with all that \
                  senders and operators can do wrong in between; verdict, output, state of users and counters are \
                  compared after each packet. The first disagreement is made as small as it can be, and shown field by \
                  field. The same seed, corpus and number of packets give the same run.\n\nExamples:\n  \
                  packet-lab fuzz\n  \
                  packet-lab fuzz --packets 10000000 --seed 7\n  \
                  packet-lab fuzz --against host                     no privileges needed\n  \
                  packet-lab fuzz --corpus incident.pcapng --out scenarios/regressions"
)]
pub struct Args {
    /// What is compared with the oracle; without the capabilities for the kernel, the host
    #[arg(long, value_name = "BACKEND")]
    against: Option<Kind>,
    /// Packets to send, at least
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    packets: u64,
    /// What all chance comes from [default: the clock; it is printed]
    #[arg(long, value_name = "SEED")]
    seed: Option<u64>,
    /// Scenarios to vary, and captures whose frames to send too: files or folders [default: scenarios, if it is there]
    #[arg(long, value_name = "PATH")]
    corpus: Vec<PathBuf>,
    /// Where to leave a failure, as a scenario with captures of both sides
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The backends that can be compared with the oracle.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    Kernel,
    Host,
}

impl Kind {
    fn make(self, world: &World) -> Result<Box<dyn Backend>, BackendError> {
        Ok(match self {
            Self::Kernel => Box::new(KernelBackend::new(world)?),
            Self::Host => Box::new(HostBackend::new(world)?),
        })
    }
}

pub fn execute(args: &Args) -> Ended {
    let corpus = corpus(&args.corpus).map_err(|error| (Exit::Usage, error.into()))?;
    let kind = kind(args.against)?;
    let seed = args.seed.unwrap_or_else(clock);
    let options = Options {
        seed,
        packets: args.packets,
        corpus,
    };
    let mut progress = Progress::new("fuzz");
    let begun = Instant::now();
    let outcome = run(&options, &mut |world| kind.make(world), &mut |now| {
        let what = if now.shrinking {
            "a failure is being made small"
        } else {
            "alike so far"
        };
        let message = format!("{} packets, {what}", number(now.packets));
        progress.at(now.packets, Some(options.packets), &message);
    });
    progress.finish();
    let took = begun.elapsed();
    let outcome = outcome.map_err(|error| (Exit::Environment, error.into()))?;
    if args.json {
        json(&Summary::new(&outcome, seed, took));
    } else {
        line(&describe(&outcome, &options, kind, took));
    }
    let Some(failure) = &outcome.failure else {
        return Ok(Exit::Pass);
    };
    eprintln!("failure: {failure}");
    if let Some(out) = &args.out {
        let left = failure.leave(seed, out);
        let folder = left.map_err(|error| (Exit::Environment, error.into()))?;
        eprintln!("left in {}", folder.display());
    }
    Ok(Exit::Failure)
}

/// A seed that nobody used before.
fn clock() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_micros() as u64
}

/// The backend asked for, or the best that runs here.
fn kind(asked: Option<Kind>) -> Result<Kind, (Exit, anyhow::Error)> {
    let missing = missing_capabilities().join(" and ");
    match asked {
        Some(Kind::Kernel) if !missing.is_empty() => Err((
            Exit::Environment,
            anyhow::anyhow!("the kernel backend needs {missing}: run as root, or with --against host"),
        )),
        Some(kind) => Ok(kind),
        None if missing.is_empty() => Ok(Kind::Kernel),
        None => {
            eprintln!("note: without {missing}, this compares the host backend; as root, the kernel");
            Ok(Kind::Host)
        }
    }
}

/// All that is in these places.
fn corpus(paths: &[PathBuf]) -> Result<Corpus, CorpusError> {
    let usual = Path::new("scenarios");
    let mut corpus = Corpus::default();
    if paths.is_empty() && usual.is_dir() {
        corpus.add(usual)?;
    }
    for path in paths {
        corpus.add(path)?;
    }
    Ok(corpus)
}

/// What --json prints.
#[derive(Serialize)]
struct Summary {
    seed: u64,
    packets: u64,
    sequences: u64,
    worlds: u64,
    seconds: f64,
    packets_per_second: f64,
    reached: Vec<Reached>,
    missed: Vec<String>,
    failure: Option<String>,
}

#[derive(Serialize)]
struct Reached {
    direction: &'static str,
    reason: &'static str,
    verdict: packet_lab::Verdict,
    packets: u64,
}

impl Summary {
    fn new(outcome: &Outcome, seed: u64, took: Duration) -> Self {
        let reached = rows(&outcome.reached).into_iter();
        Self {
            seed,
            packets: outcome.packets,
            sequences: outcome.sequences,
            worlds: outcome.worlds,
            seconds: took.as_secs_f64(),
            packets_per_second: rate(outcome, took),
            reached: reached
                .map(|(direction, reason, verdict, packets)| Reached {
                    direction,
                    reason,
                    verdict,
                    packets,
                })
                .collect(),
            missed: missed(outcome),
            failure: outcome.failure.as_ref().map(ToString::to_string),
        }
    }
}

fn rate(outcome: &Outcome, took: Duration) -> f64 {
    outcome.packets as f64 / took.as_secs_f64().max(1e-9)
}

fn missed(outcome: &Outcome) -> Vec<String> {
    let missed = outcome.missed().into_iter();
    missed
        .map(|(direction, reason)| format!("{} {}", direction.name(), reason.name()))
        .collect()
}

fn describe(outcome: &Outcome, options: &Options, kind: Kind, took: Duration) -> String {
    let mut table = Table::new();
    table
        .load_style(NOTHING)
        .set_header(["DIRECTION", "REASON", "VERDICT", "PACKETS", "SHARE"]);
    for (direction, reason, verdict, packets) in rows(&outcome.reached) {
        let share = 100.0 * packets as f64 / outcome.packets.max(1) as f64;
        table.add_row([
            direction.to_owned(),
            reason.to_owned(),
            verdict.to_string(),
            number(packets),
            format!("{share:.2}%"),
        ]);
    }
    for column in table.column_iter_mut().skip(3) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let table = table.to_string();
    let rows: Vec<&str> = table.lines().map(str::trim_end).collect();
    let missed = missed(outcome);
    let missed = match missed.len() {
        0 => String::new(),
        _ => format!("\nnever reached: {}", missed.join(", ")),
    };
    format!(
        "{}{missed}\n\nseed {}: {} packets in {} sequences in {} worlds, oracle against {}, {:.1} s, {} packets/s",
        rows.join("\n"),
        options.seed,
        number(outcome.packets),
        number(outcome.sequences),
        number(outcome.worlds),
        match kind {
            Kind::Kernel => "kernel",
            Kind::Host => "host",
        },
        took.as_secs_f64(),
        number(rate(outcome, took) as u64),
    )
}
