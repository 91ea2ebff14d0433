//! `replay`: what the relay does with a capture.

use std::path::PathBuf;

use comfy_table::{CellAlignment, Table, presets::NOTHING};
use packet_lab::{
    Backend, World,
    backend::BackendError,
    capture::{Packet, Writer},
    craft::Grant,
    replay::{
        Cast, Options, Progress, ReplayError, Replayed, Resigner, Selector, Summary, Timing, Watcher,
        cast::lab_grants,
        outputs::{Outputs, OutputsError},
        replay,
    },
    scenario::{self, BackendKind, Scenario},
    simulate::number,
};
use serde::Serialize;

use super::{
    Ended, Exit, json, line,
    relay::{RelayArgs, say_assumed, survey},
};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Replayed is what the capture shows being sent to the relay; what the relay sent itself, and what is \
                  for others, is counted and left out. Time is the lab's clock, which passes as the capture's stamps \
                  or the flags say: nothing waits, whatever the rate. Only the veth backend, which has a wire, is \
                  given each packet at its time. At --topspeed all packets come at one instant of the lab's clock, so \
                  that users are over their rate after a burst.\n\n\
                  A capture of a relay whose keys are at hand is replayed with --grants. Without them nothing in it is \
                  authentic: --resign makes each client a user and seals its tokens anew, packets that repeat a token \
                  staying replays. With both, packet numbers and wrong tags are kept.\n\n\
                  A capture that is cut short or corrupt is replayed up to there; the exit code is then 2.\n\n\
                  Examples:\n  \
                  packet-lab replay incident.pcap --config relay.toml --grants grants.ndjson\n  \
                  packet-lab replay incident.pcap --resign --backend kernel\n  \
                  packet-lab replay incident.pcapng --resign --write out.pcapng && wireshark out.pcapng\n  \
                  packet-lab replay incident.pcap --resign --scenario scenarios/incidents/first\n  \
                  packet-lab replay incident.pcap --resign --pps 100000 --loop 10 --limit 500000\n  \
                  packet-lab replay incident.pcap --resign --backend veth --mbps 5 --json"
)]
pub struct Args {
    /// A pcap or pcapng file
    file: PathBuf,
    /// The world of a scenario, its users and their keys, instead
    #[arg(long, value_name = "FOLDER", conflicts_with_all = ["config", "grants", "listen", "to"])]
    scenario: Option<PathBuf>,
    /// What packets go through: host, oracle, kernel or veth
    #[arg(long, value_name = "BACKEND", default_value = "host", value_parser = super::run::backend)]
    backend: BackendKind,
    /// Packets per second, instead of the capture's own timing
    #[arg(long, value_name = "N", group = "speed", value_parser = positive)]
    pps: Option<f64>,
    /// Megabits per second
    #[arg(long, value_name = "N", group = "speed", value_parser = positive)]
    mbps: Option<f64>,
    /// As fast as it goes
    #[arg(long, group = "speed")]
    topspeed: bool,
    /// How often; with --resign each time with new packet numbers
    #[arg(long = "loop", value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    loops: u32,
    /// Stop after so many packets
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Seal the tokens anew, for users of this lab
    #[arg(long)]
    resign: bool,
    /// Fail unless what is sent is what the capture shows its relay sending, byte for byte
    #[arg(long, conflicts_with = "resign")]
    check_outputs: bool,
    /// Write each packet as it is afterwards, with verdict and reason as its comment
    #[arg(long, value_name = "OUT.pcapng")]
    write: Option<PathBuf>,
    /// Write each packet as it was given, with verdict and reason as its comment
    #[arg(long, value_name = "IN.pcapng")]
    write_inputs: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    relay: RelayArgs,
}

fn positive(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok();
    number
        .filter(|number| number.is_finite() && *number > 0.0)
        .ok_or_else(|| "write a number above 0".to_owned())
}

/// What is printed as JSON.
#[derive(Serialize)]
struct Report<'a> {
    capture: &'a PathBuf,
    backend: &'static str,
    timing: Timing,
    loops: u32,
    assumed: &'a [String],
    #[serde(flatten)]
    summary: &'a Summary,
}

pub fn execute(args: &Args) -> Ended {
    check_outputs(args)?;
    let (cast, known) = args.cast()?;
    say_assumed(&cast);
    if cast.world.users.is_empty() {
        eprintln!("note: there are no users, so that no token is good: give --grants, --scenario or --resign");
    }
    let mut backend = make(args.backend, &cast.world)?;
    let mut resigner = args.resign.then(|| Resigner::new(&cast.world).knowing(known));
    let mut tools = Tools::new(args)?;
    let options = Options {
        timing: args.timing(),
        loops: args.loops,
        limit: args.limit,
        real_time: args.backend == BackendKind::Veth,
    };
    let selector = Selector::new(&cast.world, cast.captured_mac);
    let summary = replay(
        &args.file,
        &selector,
        resigner.as_mut(),
        backend.as_mut(),
        &options,
        &mut tools,
    );
    let summary = tools.finish(summary)?;
    let report = Report {
        capture: &args.file,
        backend: backend.name(),
        timing: options.timing,
        loops: args.loops,
        assumed: &cast.assumed,
        summary: &summary,
    };
    if args.json {
        json(&report);
    } else {
        line(&describe(&report));
    }
    judge(summary)
}

fn judge(summary: Summary) -> Ended {
    if let Some(error) = summary.ended_by {
        return Err((Exit::Usage, error.into()));
    }
    if summary.stray_counts > 0 {
        let strays = summary.stray_counts;
        let why = anyhow::anyhow!("counters moved by {strays} packets more than there were: each moves one counter");
        return Err((Exit::Failure, why));
    }
    if summary.packets == 0 {
        eprintln!("note: nothing in the capture was sent to the relay; --listen and --mac say which one it is");
    }
    Ok(Exit::Pass)
}

/// The outputs must not be the capture, which would be emptied before it is read.
fn check_outputs(args: &Args) -> Result<(), (Exit, anyhow::Error)> {
    let capture = args.file.canonicalize().ok();
    for output in [&args.write, &args.write_inputs].into_iter().flatten() {
        if capture.is_some() && output.canonicalize().ok() == capture {
            let why = anyhow::anyhow!("{} is the capture itself: write to another file", output.display());
            return Err((Exit::Usage, why));
        }
    }
    if args.write.is_some() && args.write == args.write_inputs {
        return Err((
            Exit::Usage,
            anyhow::anyhow!("--write and --write-inputs name the same file"),
        ));
    }
    Ok(())
}

impl Args {
    /// The world, and the grants that the capture's tokens may have been sealed with.
    fn cast(&self) -> Result<(Cast, Vec<Grant>), (Exit, anyhow::Error)> {
        let Some(folder) = &self.scenario else {
            let (_, cast, known) = self.relay.cast(&self.file, self.resign)?;
            return Ok((cast, lab_grants(&known.grants)));
        };
        let scenario = Scenario::load(folder).map_err(|error| (Exit::Usage, error.into()))?;
        let world = scenario.world().ok_or_else(|| {
            let why = anyhow::anyhow!("{} is about another program than the relay", scenario.path.display());
            (Exit::Usage, why)
        })?;
        let (survey, _) = survey(&self.file)?;
        let grants = world.users.iter().filter_map(|user| world.grant(user.slot)).collect();
        Ok((self.relay.in_world(world, &survey), grants))
    }

    fn timing(&self) -> Timing {
        match (self.pps, self.mbps, self.topspeed) {
            (Some(pps), ..) => Timing::PacketsPerSecond(pps),
            (_, Some(mbps), _) => Timing::MegabitsPerSecond(mbps),
            (.., true) => Timing::TopSpeed,
            _ => Timing::Capture,
        }
    }
}

fn make(kind: BackendKind, world: &World) -> Result<Box<dyn Backend>, (Exit, anyhow::Error)> {
    if let Some(missing) = scenario::missing(kind) {
        let why = anyhow::anyhow!("the {} backend {missing}, or with --backend host", kind.name());
        return Err((Exit::Environment, why));
    }
    scenario::backend(kind, world).map_err(|error| match error {
        BackendError::World(_) => (Exit::Usage, error.into()),
        error => (Exit::Environment, error.into()),
    })
}

/// What goes on beside a replay: progress, and files that are written.
struct Tools {
    progress: super::progress::Progress,
    outputs: Option<Writer>,
    inputs: Option<Writer>,
    check: Option<Outputs>,
}

impl Tools {
    fn new(args: &Args) -> Result<Self, (Exit, anyhow::Error)> {
        let create = |path: &Option<PathBuf>| path.as_ref().map(Writer::create).transpose();
        let usage = |error: packet_lab::capture::CaptureError| (Exit::Usage, error.into());
        Ok(Self {
            progress: super::progress::Progress::new("replaying"),
            outputs: create(&args.write).map_err(usage)?,
            inputs: create(&args.write_inputs).map_err(usage)?,
            check: args.check_outputs.then(Outputs::default),
        })
    }

    /// Ends what went on beside, whether the replay did well or not.
    fn finish(self, summary: Result<Summary, ReplayError>) -> Result<Summary, (Exit, anyhow::Error)> {
        self.progress.finish();
        let summary = summary.map_err(|error| match error {
            ReplayError::Backend(_) => (Exit::Environment, error.into()),
            ReplayError::Watcher(error) if error.is::<OutputsError>() => (Exit::Failure, error),
            error => (Exit::Usage, error.into()),
        })?;
        for writer in [self.outputs, self.inputs].into_iter().flatten() {
            writer.finish().map_err(|error| (Exit::Usage, error.into()))?;
        }
        if let Some(check) = self.check {
            check.finish().map_err(|error| (Exit::Failure, error.into()))?;
            eprintln!("{} packets were sent as the capture has them", number(check.matched()));
        }
        Ok(summary)
    }
}

impl Watcher for Tools {
    fn replayed(&mut self, packet: &Replayed<'_>) -> anyhow::Result<()> {
        if let Some(writer) = &mut self.outputs {
            let frame = packet.processed.frame.clone();
            let output = if frame == packet.input.data {
                packet.input.clone()
            } else {
                Packet::new(packet.input.at_ns, frame)
            };
            writer.write(&output.commented(packet.comment()))?;
        }
        if let Some(writer) = &mut self.inputs {
            writer.write(&packet.input.clone().commented(packet.comment()))?;
        }
        if let Some(check) = &mut self.check {
            check.replayed(packet)?;
        }
        Ok(())
    }

    fn relay_sent(&mut self, packet: &Packet) -> anyhow::Result<()> {
        match &mut self.check {
            Some(check) => check.relay_sent(packet),
            None => Ok(()),
        }
    }

    fn progress(&mut self, progress: Progress) {
        let packets = format!("{} packets", number(progress.packets));
        self.progress.at(progress.bytes, progress.of_bytes, &packets);
    }
}

fn describe(report: &Report<'_>) -> String {
    let summary = report.summary;
    let mut parts = Vec::new();
    if !summary.rows.is_empty() {
        parts.push(rows(summary));
    }
    if summary.talkers.len() > 1 {
        parts.push(talkers(summary));
    }
    let left_out = [
        (summary.from_relay, "sent by the relay itself"),
        (summary.to_others, "not for the relay"),
        (summary.not_taken, "too short or too long for the backend"),
    ];
    let left_out: Vec<String> = left_out
        .iter()
        .filter(|(packets, _)| *packets > 0)
        .map(|(packets, what)| format!("{} {what}", number(*packets)))
        .collect();
    let mut notes = Vec::new();
    if !left_out.is_empty() {
        notes.push(format!("not replayed: {}", left_out.join(", ")));
    }
    if summary.cut > 0 {
        notes.push(format!("cut by the capture's snapshot length: {}", number(summary.cut)));
    }
    if let Some(tally) = summary.resigned {
        notes.push(format!(
            "re-sealed: {} tokens of {} clients; {} repeated, {} kept wrong, {} of clients beyond the users",
            number(tally.sealed),
            number(tally.clients),
            number(tally.repeated),
            number(tally.wrong),
            number(tally.no_user)
        ));
    }
    notes.push(format!(
        "{} packets, {} bytes on {} in {:.2} s: {} packets/s; {:.3} s on the lab's clock",
        number(summary.packets),
        number(summary.bytes),
        report.backend,
        summary.elapsed_s,
        number(summary.packets_per_second as u64),
        summary.span_ns as f64 / 1e9,
    ));
    parts.push(notes.join("\n"));
    parts.join("\n\n")
}

fn rows(summary: &Summary) -> String {
    let mut table = Table::new();
    table
        .load_style(NOTHING)
        .set_header(["DIRECTION", "REASON", "VERDICT", "PACKETS", "BYTES"]);
    for row in &summary.rows {
        table.add_row([
            row.direction.unwrap_or("-").to_owned(),
            row.reason.unwrap_or("(no counter moved)").to_owned(),
            row.verdict.to_owned(),
            number(row.packets),
            number(row.bytes),
        ]);
    }
    text(&mut table, 3)
}

fn talkers(summary: &Summary) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(["SENDER", "PACKETS", "BYTES"]);
    for talker in &summary.talkers {
        table.add_row([talker.address.to_string(), number(talker.packets), number(talker.bytes)]);
    }
    text(&mut table, 1)
}

/// A table with its columns from `numbers` on aligned right.
fn text(table: &mut Table, numbers: usize) -> String {
    for column in table.column_iter_mut().skip(numbers) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let table = table.to_string();
    table.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}
