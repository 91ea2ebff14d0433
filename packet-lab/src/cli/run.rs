//! `run`: scenarios.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use console::style;
use packet_lab::{
    report,
    scenario::{
        BackendKind, Kept, LoadedScenarios, Options, Outcome, Scenario, ScenarioError, UnknownName, find_name, junit,
        missing, run,
    },
};
use similar::TextDiff;

use super::{Ended, Exit, json, line, progress::Progress};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "A scenario is a folder with a scenario.toml: who is there, what is sent, what must become of it. It runs \
                  in all of its backends in step; where two do not do the same with a packet, that is a failure, told \
                  field by field, with captures of both sides in --out. What every packet did is compared with \
                  expected.snap beside the file; --update keeps it as it is now. `cargo test` runs the same scenarios.\n\n\
                  Without privileges the backends kernel, veth and userspace are skipped, unless they are asked for by name. \
                  What sends frames that no socket receives as they are is skipped in userspace.\n\n\
                  Examples:\n  \
                  packet-lab run                                  all in scenarios/\n  \
                  packet-lab run scenarios/window                 an area\n  \
                  packet-lab run --tag replay --backend oracle    some, in one backend\n  \
                  packet-lab run --update scenarios/window/mine   look at what it does, and keep that\n  \
                  packet-lab run --junit lab.xml --report lab.html"
)]
pub struct Args {
    /// Scenarios: folders of them, or single ones
    #[arg(value_name = "PATH", default_value = "scenarios")]
    paths: Vec<PathBuf>,
    /// Only in this backend: host, oracle, kernel or veth; may be given several times
    #[arg(long = "backend", value_name = "BACKEND", value_parser = backend)]
    backends: Vec<BackendKind>,
    /// Only scenarios with this tag; may be given several times for those with any of them
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,
    /// Keep the snapshots as they are now
    #[arg(long)]
    update: bool,
    /// Leave captures of what backends disagree about here
    #[arg(long, value_name = "DIR", default_value = "out")]
    out: PathBuf,
    /// Write the results as JUnit XML
    #[arg(long, value_name = "FILE.xml")]
    junit: Option<PathBuf>,
    /// Write the results as a page of HTML: every step, packet and difference
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
    /// Print the results as JSON
    #[arg(long)]
    json: bool,
}

pub fn backend(name: &str) -> Result<BackendKind, UnknownName> {
    find_name("backend", name, &BackendKind::ALL, BackendKind::name)
}

pub fn execute(args: &Args) -> Ended {
    let scenarios = load(args)?;
    for &kind in &args.backends {
        if let Some(why) = missing(kind) {
            return Err((Exit::Environment, anyhow::anyhow!("the backend {} {why}", kind.name())));
        }
    }
    let wanted = if args.backends.is_empty() {
        &BackendKind::ALL[..]
    } else {
        &args.backends
    };
    let began = Instant::now();
    let outcomes = run_all(args, &scenarios, wanted);
    let took = began.elapsed();
    if args.json {
        json(&outcomes);
    } else {
        failures(&outcomes);
        line(&summary(&outcomes, took));
    }
    write_reports(args, &outcomes, took)?;
    let failed = outcomes.iter().any(|outcome| !outcome.passed());
    Ok(if failed { Exit::Failure } else { Exit::Pass })
}

/// Reads all, and tells everything that is wrong with any.
fn load(args: &Args) -> Result<Vec<Scenario>, (Exit, anyhow::Error)> {
    let usage = |error: ScenarioError| (Exit::Usage, error.into());
    let LoadedScenarios { mut scenarios, faults } = LoadedScenarios::load(&args.paths).map_err(usage)?;
    if !faults.is_empty() {
        let count = faults.len();
        for error in faults {
            eprintln!("{:#}\n", anyhow::Error::from(error));
        }
        return Err((
            Exit::Usage,
            anyhow::anyhow!(
                "{count} faulty {}; nothing was run",
                if count == 1 { "scenario" } else { "scenarios" }
            ),
        ));
    }
    let has_tag = |scenario: &Scenario| args.tags.iter().any(|tag| scenario.file.tags.contains(tag));
    if !args.tags.is_empty() {
        scenarios.retain(has_tag);
    }
    if scenarios.is_empty() {
        let tags = args.tags.join(", ");
        return Err((Exit::Usage, anyhow::anyhow!("no scenario has the tag {tags}")));
    }
    Ok(scenarios)
}

fn run_all(args: &Args, scenarios: &[Scenario], wanted: &[BackendKind]) -> Vec<Outcome> {
    let options = Options {
        update: args.update,
        out: Some(&args.out),
    };
    let mut progress = args.json.then(|| Progress::new("running"));
    let width = scenarios.iter().map(|scenario| scenario.id().len()).max().unwrap_or(0);
    let mut outcomes = Vec::new();
    for (nth, scenario) in scenarios.iter().enumerate() {
        let outcome = run(scenario, wanted, options);
        match &mut progress {
            Some(progress) => progress.at(nth as u64, Some(scenarios.len() as u64), &outcome.id),
            None => line(&status_line(&outcome, width)),
        }
        outcomes.push(outcome);
    }
    if let Some(progress) = progress {
        progress.finish();
    }
    outcomes
}

fn status_line(outcome: &Outcome, width: usize) -> String {
    let word = match (outcome.passed(), outcome.skipped(), &outcome.kept) {
        (false, _, _) => style("FAILED ").red().bold(),
        (true, true, _) => style("skipped").yellow(),
        (true, false, Kept::Written) => style("kept   ").cyan(),
        (true, false, _) => style("ok     ").green(),
    };
    let ran = outcome.backends.iter().filter(|backend| backend.skipped.is_none());
    let ran: Vec<&str> = ran.map(|backend| backend.backend.name()).collect();
    let skipped = outcome.backends.iter().filter(|backend| backend.skipped.is_some());
    let skipped: Vec<&str> = skipped.map(|backend| backend.backend.name()).collect();
    let mut backends = ran.join(" ");
    if !skipped.is_empty() {
        backends += &format!(
            "{}skipped: {}",
            if ran.is_empty() { "" } else { "; " },
            skipped.join(" ")
        );
    }
    let milliseconds = outcome.seconds * 1e3;
    format!("{word} {:width$}  {backends:<24} {milliseconds:>6.0} ms", outcome.id)
}

/// Everything that failed, in full.
fn failures(outcomes: &[Outcome]) {
    for outcome in outcomes.iter().filter(|outcome| !outcome.passed()) {
        line(&format!("\n{} {}", style(&outcome.id).bold(), outcome.name));
        let text = outcome.failures_as_text();
        if !text.is_empty() {
            line(text.trim_end());
        }
        match (&outcome.kept, &outcome.snapshot) {
            (Kept::Differs { expected }, Some(actual)) => {
                line("the snapshot differs (kept: -, now: +); `--update` keeps what is now:");
                line(&difference(expected, actual));
            }
            (Kept::Missing, Some(actual)) => {
                line("there is no snapshot yet. If this is what it should do, `--update` keeps it:\n");
                line(actual.trim_end());
            }
            _ => {}
        }
    }
}

fn difference(expected: &str, actual: &str) -> String {
    let diff = TextDiff::from_lines(expected.trim(), actual.trim());
    let text = diff
        .unified_diff()
        .context_radius(3)
        .missing_newline_hint(false)
        .to_string();
    let lines = text.lines().map(|line| match line.as_bytes().first() {
        Some(b'+') => style(line).green().to_string(),
        Some(b'-') => style(line).red().to_string(),
        Some(b'@') => style(line).cyan().to_string(),
        _ => line.to_owned(),
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn summary(outcomes: &[Outcome], took: Duration) -> String {
    let failed = outcomes.iter().filter(|outcome| !outcome.passed()).count();
    let skipped = outcomes.iter().filter(|outcome| outcome.skipped()).count();
    let passed = outcomes.len() - failed - skipped;
    let mut text = format!(
        "\n{}: {passed} passed, {failed} failed, {skipped} skipped; {:.1} s",
        counted(outcomes.len(), "scenario"),
        took.as_secs_f64()
    );
    let mut reasons: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for backend in outcomes.iter().flat_map(|outcome| &outcome.backends) {
        if let Some(why) = &backend.skipped {
            *reasons.entry((backend.backend.name(), why)).or_default() += 1;
        }
    }
    for ((backend, why), scenarios) in reasons {
        text += &format!("\nskipped in {backend}: {}: {why}", counted(scenarios, "scenario"));
    }
    text
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn write_reports(args: &Args, outcomes: &[Outcome], took: Duration) -> Result<(), (Exit, anyhow::Error)> {
    let environment = |error: anyhow::Error| (Exit::Environment, error);
    if let Some(path) = &args.junit {
        let xml = junit(outcomes, took).map_err(environment)?;
        write(path, &xml).map_err(environment)?;
    }
    if let Some(path) = &args.report {
        let page = report::run(outcomes, took);
        report::write(path, &page).map_err(|error| environment(error.into()))?;
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}
