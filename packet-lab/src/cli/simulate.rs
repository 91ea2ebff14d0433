//! `simulate`: many users over virtual time.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use clap::ValueEnum;
use packet_lab::{
    World,
    backend::{BackendError, host::HostBackend, kernel::missing_capabilities, oracle::OracleBackend},
    capture::{CaptureError, Packet, Writer},
    report,
    simulate::{Class, Profile, Progress, Report, SimulateError, Subject, number, run},
};

use super::{Ended, Exit, json, line};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Every packet is judged: no packet number is relayed twice, nobody gets more than their rate \
                  and burst in any window of time, the downlink goes to where the newest authentic packet came from, \
                  nothing is relayed for a grant that ended, and users under attack get exactly what they get when \
                  nobody attacks. The same seed and options give the same run, packet by packet, on every backend and \
                  machine.\n\nUsers: steady, bursty, roaming, rebinding, jittery, greedy, expiring, renewed, removed, \
                  blocked, stranded.\nAttacks: random_tokens, forged_tags, replayed_packets, unsolicited, \
                  blocklisted_sources, malformed.\n\nExamples:\n  \
                  packet-lab simulate\n  \
                  packet-lab simulate --users 10000 --seconds 20 --seed 7 --report simulation.html\n  \
                  packet-lab simulate --backend host --loss 5% --reorder 20% --duplicate 2%\n  \
                  packet-lab simulate --mix steady=9,roaming=1 --attack forged_tags=200000\n  \
                  packet-lab simulate --attack none --json\n  \
                  packet-lab simulate --print-profile > lossy.toml; packet-lab simulate --profile lossy.toml"
)]
pub struct Args {
    /// What packets go through; without the capabilities for the kernel, the host
    #[arg(long, value_name = "BACKEND")]
    backend: Option<Kind>,
    /// A profile in TOML, as --print-profile prints; options given besides win
    #[arg(long, value_name = "FILE.toml")]
    profile: Option<PathBuf>,
    /// Users, of all classes together [default: 2000]
    #[arg(long, value_name = "N")]
    users: Option<u32>,
    /// Virtual seconds [default: 5]
    #[arg(long, value_name = "S", allow_negative_numbers = true)]
    seconds: Option<f64>,
    /// What all chance comes from [default: 1]
    #[arg(long, value_name = "SEED")]
    seed: Option<u64>,
    /// Packets a second of an ordinary user [default: 30]
    #[arg(long, value_name = "N")]
    pps: Option<u32>,
    /// How many packets the path loses [default: 1%]
    #[arg(long, value_name = "PERCENT", value_parser = super::bench::percent)]
    loss: Option<f64>,
    /// How many packets are overtaken by later ones [default: 2%]
    #[arg(long, value_name = "PERCENT", value_parser = super::bench::percent)]
    reorder: Option<f64>,
    /// How many packets arrive twice [default: 0.5%]
    #[arg(long, value_name = "PERCENT", value_parser = super::bench::percent)]
    duplicate: Option<f64>,
    /// Classes of users, in proportion to each other
    #[arg(long, value_name = "CLASS=SHARE,…", value_parser = classes)]
    mix: Option<Classes>,
    /// Attacks, in packets a second; `none` for none
    #[arg(long, value_name = "ATTACK=PPS,…", value_parser = classes)]
    attack: Option<Classes>,
    /// Print the profile that these options make, and run nothing
    #[arg(long)]
    print_profile: bool,
    /// Write a page of HTML for people: what held, plots over time, every class
    #[arg(long, value_name = "FILE.html", conflicts_with = "print_profile")]
    report: Option<PathBuf>,
    /// Write the packets that violated an invariant to a pcapng file, before and after, with what was wrong as comments
    #[arg(long, value_name = "OUT.pcapng", conflicts_with = "print_profile")]
    write: Option<PathBuf>,
    /// Print JSON
    #[arg(long, conflicts_with = "print_profile")]
    json: bool,
}

/// The backends that can be simulated through.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    /// The real program, by BPF_PROG_TEST_RUN; needs root
    Kernel,
    /// The program's logic in this process
    Host,
    /// The model written from the protocol document alone
    Oracle,
}

/// Classes and a number for each.
#[derive(Clone, Debug)]
struct Classes(BTreeMap<Class, u32>);

fn classes(text: &str) -> Result<Classes, String> {
    if text == "none" {
        return Ok(Classes(BTreeMap::new()));
    }
    let one = |part: &str| -> Result<(Class, u32), String> {
        let (name, count) = part
            .split_once('=')
            .ok_or_else(|| format!("`{part}` has no number: write {part}=100"))?;
        let class = name.trim().parse::<Class>().map_err(|error| error.to_string())?;
        let count = count.trim().parse();
        let count = count.map_err(|_| format!("`{part}`: write a whole number after the ="))?;
        Ok((class, count))
    };
    text.split(',').map(one).collect::<Result<_, _>>().map(Classes)
}

impl Args {
    fn profile(&self) -> Result<Profile, SimulateError> {
        let mut profile = match &self.profile {
            Some(path) => Profile::load(path)?,
            None => Profile::default(),
        };
        set(&mut profile.users, self.users);
        set(&mut profile.seconds, self.seconds);
        set(&mut profile.seed, self.seed);
        set(&mut profile.pps, self.pps);
        set(&mut profile.path.loss_percent, self.loss);
        set(&mut profile.path.reorder_percent, self.reorder);
        set(&mut profile.path.duplicate_percent, self.duplicate);
        set(&mut profile.mix, self.mix.clone().map(|classes| classes.0));
        set(&mut profile.attack, self.attack.clone().map(|classes| classes.0));
        profile.check()?;
        Ok(profile)
    }
}

fn set<T>(value: &mut T, given: Option<T>) {
    if let Some(given) = given {
        *value = given;
    }
}

pub fn execute(args: &Args) -> Ended {
    let profile = args.profile().map_err(|error| (exit(&error), error.into()))?;
    if args.print_profile {
        let text = toml::to_string(&profile).map_err(|error| (Exit::Failure, error.into()))?;
        line(text.trim_end());
        return Ok(Exit::Pass);
    }
    let kind = backend(args.backend)?;
    let report = simulate(&profile, kind).map_err(|error| (exit(&error), error.into()))?;
    if args.json {
        json(&report);
    } else {
        line(&describe(&report));
    }
    if let Some(path) = &args.write {
        write(path, &report).map_err(|error| (Exit::Environment, error.into()))?;
    }
    if let Some(path) = &args.report {
        report::write(path, &report::simulation(&report)).map_err(|error| (Exit::Environment, error.into()))?;
    }
    tell_violations(&report);
    Ok(if report.passed() { Exit::Pass } else { Exit::Failure })
}

/// The first violation with its packet, the others in a line each: they are often the same fault.
fn tell_violations(report: &Report) {
    for (nth, violation) in report.violations.iter().enumerate() {
        let text = violation.to_string();
        let text = if nth == 0 {
            text.as_str()
        } else {
            text.lines().next().unwrap_or_default()
        };
        eprintln!("violation: {text}");
    }
    let untold = report.violation_count - report.violations.len() as u64;
    if untold > 0 {
        eprintln!("and {} more", number(untold));
    }
    if !report.passed() {
        eprintln!("--write OUT.pcapng keeps the packets, --report FILE.html shows them");
    }
}

/// The backend asked for, or the best that runs here.
fn backend(asked: Option<Kind>) -> Result<Kind, (Exit, anyhow::Error)> {
    let missing = missing_capabilities().join(" and ");
    match asked {
        Some(Kind::Kernel) if !missing.is_empty() => Err((
            Exit::Environment,
            anyhow::anyhow!("the kernel backend needs {missing}: run as root, or with --backend host"),
        )),
        Some(kind) => Ok(kind),
        None if missing.is_empty() => Ok(Kind::Kernel),
        None => {
            eprintln!("note: without {missing}, this runs through the host backend; as root, through the kernel");
            Ok(Kind::Host)
        }
    }
}

fn simulate(profile: &Profile, kind: Kind) -> Result<Report, SimulateError> {
    let mut make = |world: &World| -> Result<Subject, BackendError> {
        match kind {
            Kind::Kernel => Subject::kernel(world),
            Kind::Host => Subject::new(Box::new(HostBackend::new(world)?)),
            Kind::Oracle => Subject::new(Box::new(OracleBackend::new(world)?)),
        }
    };
    let mut shown = super::progress::Progress::new("simulating");
    let report = run(profile, &mut make, &mut |progress: Progress| {
        let packets = format!("{} packets", number(progress.packets));
        shown.at(progress.done_ms, Some(progress.all_ms), &packets);
    });
    shown.finish();
    report
}

/// Every violation's packet as it came, and as it was afterwards.
fn write(path: &Path, report: &Report) -> Result<(), CaptureError> {
    let mut writer = Writer::create(path)?;
    for violation in report.violations.iter().filter(|violation| !violation.input.is_empty()) {
        let comment = format!("{}: {}", violation.invariant.name(), violation.what);
        for (frame, when) in [(&violation.input, "input"), (&violation.output, "output")] {
            let packet = Packet::new(violation.at_ns, frame.clone());
            writer.write(&packet.commented(format!("{when}; {comment}")))?;
        }
    }
    writer.finish()
}

fn exit(error: &SimulateError) -> Exit {
    match error {
        SimulateError::Profile(_) => Exit::Usage,
        _ => Exit::Environment,
    }
}

fn describe(report: &Report) -> String {
    format!("{}\nbackend: {}", report.table().trim_end(), report.backend)
}

#[cfg(test)]
mod tests {
    use packet_lab::{
        capture::Capture,
        simulate::{Invariant, Violation},
    };

    use super::*;

    #[test]
    fn the_packets_of_violations_are_kept_before_and_after_with_what_was_wrong() {
        let profile = Profile {
            users: 1,
            seconds: 0.01,
            ..Profile::default().without_attack()
        };
        let mut report = simulate(&profile, Kind::Host).unwrap();
        assert!(report.passed());
        report.violations.push(Violation {
            at_ns: 1_234_567_891,
            invariant: Invariant::OverRate,
            what: "too much".to_owned(),
            class: Some("greedy"),
            input: vec![1; 60],
            output: vec![2; 50],
        });
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("violations.pcapng");
        write(&path, &report).unwrap();
        let packets: Vec<Packet> = Capture::open(&path).unwrap().map(Result::unwrap).collect();
        let comments: Vec<&str> = packets.iter().filter_map(|packet| packet.comment.as_deref()).collect();
        assert_eq!(comments, ["input; over_rate: too much", "output; over_rate: too much"]);
        assert_eq!((packets[0].data.len(), packets[1].data.len()), (60, 50));
        assert_eq!(packets[0].at_ns, 1_234_567_891);
    }

    #[test]
    fn classes_are_read_from_a_list() {
        let read = classes("steady=9, roaming=1").unwrap();
        assert_eq!(read.0, [(Class::Steady, 9), (Class::Roaming, 1)].into());
        assert!(classes("none").unwrap().0.is_empty());
        assert!(classes("steady=many").unwrap_err().contains("whole number"));
    }
}
