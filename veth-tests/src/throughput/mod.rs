//! What relaying costs on a link: the relay, the lab's reference and what people would run instead, each on a link of its
//! own, all driven by one generator on one CPU and counted by one receiver.
//!
//! The generator sends a batch, and the CPU does all that the batch leads to before it sends the next: what the kernel
//! does, since it does it at once, and what a process does, since it has the higher priority. So nothing overflows, nothing
//! is lost, and the time from the first frame to the last is the time that the CPU worked.

pub mod line;
pub mod systems;
pub mod turn;

use std::{
    collections::BTreeMap,
    fs,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    sys::utsname::uname,
    unistd::{Pid, gettid},
};
use packet_lab::{
    live::{Instruments, Passage},
    throughput::{Overload, Report, Series, Way},
};

use self::{
    line::Line,
    systems::{BareNat, Coturn, LumenLink, Mode, Nftables, Reflector, Socat, System, Traffic},
};

/// Frames that the generator sends at once, as a driver hands them to XDP programs.
const BATCH: u32 = 64;
/// How long nothing has to come until what is missing is taken for lost.
const PATIENCE: Duration = Duration::from_secs(1);
/// The same where most is lost anyhow, and only nothing may be left on the way.
const DRAIN: Duration = Duration::from_millis(50);
/// Real-time priority of the generator. What relays in a process is above it.
const GENERATOR_PRIORITY: &str = "50";
const PROCESS_PRIORITY: &str = "51";

/// What can be measured, in the order of the tables.
pub const SYSTEMS: [&str; 8] = [
    "reflector",
    "bare_nat",
    "relay_native",
    "relay_generic",
    "relay_userspace",
    "nftables",
    "coturn",
    "socat",
];

/// What to measure.
#[derive(Clone, Debug)]
pub struct Options {
    /// Of [`SYSTEMS`].
    pub systems: Vec<String>,
    /// Bytes of payload, at least 54: so long that a head is in each frame.
    pub payload_bytes: Vec<usize>,
    /// Packets of each in each round, 1 to [`packet_lab::live::MOST_FRAMES`].
    pub packets: u32,
    /// Rounds, interleaved.
    pub rounds: usize,
    /// The CPU that everything happens on.
    pub cpu: usize,
    /// Another one, to relay on while the first does nothing but send; without, there is no overload.
    pub overload_cpu: Option<usize>,
    /// Whether nothing else is to have the CPU meanwhile.
    pub realtime: bool,
}

/// Measures; `progress` is told what is done. Ends early, with an error and everything removed, once `stop` is set.
///
/// # Errors
/// If a system cannot be started, if a packet was lost, or if a counter says anything but what was sent.
///
/// # Panics
/// If a namespace or a link cannot be made, with what was tried.
pub fn run(options: &Options, stop: &AtomicBool, progress: &mut dyn FnMut(&str)) -> Result<Report> {
    ensure!(
        options.overload_cpu != Some(options.cpu),
        "overload takes two CPUs: CPU {} cannot both send and relay",
        options.cpu
    );
    let load_before = load();
    let mut instruments = Instruments::load()?;
    progress("making the links");
    let mut lines = BTreeMap::new();
    for name in &options.systems {
        lines.insert(name.as_str(), Line::new(&mut instruments, &name.replace('_', "-"))?);
    }
    let mut subjects = Vec::new();
    for name in &options.systems {
        progress(&format!("starting {name}"));
        let line = &lines[name.as_str()];
        line.wait_until_up();
        let system = start(name, line, &mut instruments, options).with_context(|| format!("starting {name}"))?;
        subjects.push(Subject::new(system, line)?);
    }
    let mut all = Vec::new();
    for &payload_bytes in &options.payload_bytes {
        let mut bench = Bench {
            instruments: &mut instruments,
            options,
            payload_bytes,
        };
        all.extend(bench.measure(&mut subjects, stop, progress)?);
    }
    let mut overload = Vec::new();
    if let Some(cpu) = options.overload_cpu {
        for subject in &mut subjects {
            subject.move_to(cpu, options)?;
        }
        for &payload_bytes in &options.payload_bytes {
            let mut bench = Bench {
                instruments: &mut instruments,
                options,
                payload_bytes,
            };
            overload.extend(bench.overload(&mut subjects, stop, progress)?);
        }
    }
    Ok(Report {
        overload,
        kernel: uname().map_or_else(|_| String::new(), |name| name.release().to_string_lossy().into_owned()),
        processor: processor(),
        load: [load_before, load()],
        packets: options.packets,
        ..Report::new(&all)
    })
}

fn start<'a>(
    name: &str,
    line: &'a Line,
    instruments: &mut Instruments,
    options: &Options,
) -> Result<Box<dyn System + 'a>> {
    let cpu = options.cpu.to_string();
    let pinned = ["taskset", "--cpu-list", &cpu];
    let first = ["chrt", "--fifo", PROCESS_PRIORITY];
    let prefix: Vec<&str> = if options.realtime {
        [pinned, first].concat()
    } else {
        pinned.to_vec()
    };
    Ok(match name {
        "reflector" => Box::new(Reflector::start(line, instruments)?),
        "bare_nat" => Box::new(BareNat::start(line, instruments)?),
        "relay_native" => Box::new(LumenLink::start(line, Mode::Native, &prefix)?),
        "relay_generic" => Box::new(LumenLink::start(line, Mode::Generic, &prefix)?),
        "relay_userspace" => Box::new(LumenLink::start(line, Mode::Userspace, &prefix)?),
        "nftables" => Box::new(Nftables::start(line)),
        "coturn" => Box::new(Coturn::start(line, &prefix)?),
        "socat" => Box::new(Socat::start(line, &prefix)?),
        other => bail!("there is no {other}; there are {}", SYSTEMS.join(", ")),
    })
}

/// A system on its link.
struct Subject<'a> {
    system: Box<dyn System + 'a>,
    line: &'a Line,
    near_index: u32,
}

impl<'a> Subject<'a> {
    fn new(system: Box<dyn System + 'a>, line: &'a Line) -> Result<Self> {
        Ok(Self {
            system,
            line,
            near_index: line.near_index()?,
        })
    }

    /// Has it relay on another CPU than the generator's: its process, or the kernel's thread for its end of the link.
    fn move_to(&self, cpu: usize, options: &Options) -> Result<()> {
        let cpu = cpu.to_string();
        let id = match self.system.process() {
            Some(id) => id,
            None => self.line.receive_in_thread()?,
        }
        .to_string();
        let arguments = ["--all-tasks", "--cpu-list", "--pid", &cpu, &id];
        let moved = Command::new("taskset").args(arguments).output()?;
        ensure!(moved.status.success(), "taskset {}: {moved:?}", arguments.join(" "));
        if options.realtime {
            prefer(&id, PROCESS_PRIORITY)?;
        }
        Ok(())
    }
}

/// The measurements of one size.
struct Bench<'a> {
    instruments: &'a mut Instruments,
    options: &'a Options,
    payload_bytes: usize,
}

impl Bench<'_> {
    /// Measures all systems in turn, round after round.
    fn measure(
        &mut self,
        subjects: &mut [Subject<'_>],
        stop: &AtomicBool,
        progress: &mut dyn FnMut(&str),
    ) -> Result<Vec<Series>> {
        let mut all = Vec::new();
        for subject in &mut *subjects {
            for &way in subject.system.ways() {
                all.push(self.warm_up(subject, way)?);
            }
        }
        for round in 1..=self.options.rounds {
            progress(&format!(
                "{} bytes of payload, round {round} of {}",
                self.payload_bytes, self.options.rounds
            ));
            let generator_ns = self.generate(subjects)?;
            let mut series = all.iter_mut();
            for subject in &mut *subjects {
                for &way in subject.system.ways() {
                    ensure!(!stop.load(Ordering::Relaxed), "interrupted");
                    let series = series.next().context("a series of each system and way")?;
                    let ns = self.pass(subject, way, series.batch, self.options.packets)?;
                    series.whole_ns.push(ns);
                    series.generator_ns.push(generator_ns);
                }
            }
        }
        Ok(all)
    }

    /// Has a system relay once, and finds the largest batch of which it loses nothing: a process loses what its socket
    /// has no room for, before it gets the CPU.
    fn warm_up(&mut self, subject: &mut Subject<'_>, way: Way) -> Result<Series> {
        let packets = self.options.packets;
        // The first packet alone: some make a connection of it.
        self.pass(subject, way, 1, 2)?;
        let mut batch = BATCH;
        while let Err(error) = self.pass(subject, way, batch, packets) {
            let is_loss = error.downcast_ref::<Lost>().is_some();
            ensure!(is_loss && batch > 1 && subject.system.may_lose(), error);
            batch /= 2;
        }
        Ok(Series {
            system: subject.system.name(),
            description: subject.system.description(),
            way,
            payload_bytes: self.payload_bytes,
            batch,
            whole_ns: Vec::new(),
            generator_ns: Vec::new(),
        })
    }

    /// The generator alone, on the first system's link and with its frames.
    fn generate(&mut self, subjects: &mut [Subject<'_>]) -> Result<f64> {
        let subject = subjects.first_mut().context("no system to measure")?;
        let traffic = subject
            .system
            .traffic(Way::Uplink, self.payload_bytes, self.options.packets)?;
        self.instruments.fill(&traffic.frames)?;
        let Self {
            instruments, options, ..
        } = self;
        let index = subject.near_index;
        subject.line.near.run(|| {
            settle(options)?;
            Ok(instruments.generate(index, &traffic.frames, BATCH)?)
        })
    }

    /// Sends to all systems in turn as fast as one CPU can, round after round, while they are on another.
    fn overload(
        &mut self,
        subjects: &mut [Subject<'_>],
        stop: &AtomicBool,
        progress: &mut dyn FnMut(&str),
    ) -> Result<Vec<Overload>> {
        let mut all = vec![Vec::new(); subjects.len()];
        for round in 1..=self.options.rounds {
            progress(&format!(
                "{} bytes of payload, overload, round {round} of {}",
                self.payload_bytes, self.options.rounds
            ));
            for (subject, rates) in subjects.iter_mut().zip(&mut all) {
                ensure!(!stop.load(Ordering::Relaxed), "interrupted");
                rates.push(self.rates(subject)?);
            }
        }
        let rows = subjects.iter().zip(&all).map(|(subject, rates)| {
            let system = &subject.system;
            Overload::new(system.name(), system.description(), self.payload_bytes, rates)
        });
        Ok(rows.collect())
    }

    /// Packets sent and delivered in a second, while they are being sent.
    fn rates(&mut self, subject: &mut Subject<'_>) -> Result<[f64; 2]> {
        let packets = self.options.packets;
        let traffic = subject.system.traffic(Way::Uplink, self.payload_bytes, packets)?;
        self.instruments.fill(&traffic.frames)?;
        let (ns, passage) = self.send(subject, &traffic, BATCH)?;
        self.settled(passage, DRAIN)?;
        #[expect(clippy::cast_precision_loss, reason = "rates need no 53 bits")]
        let delivered = passage.delivered as f64 / f64::from(packets);
        Ok([1e9 / ns, delivered * 1e9 / ns])
    }

    /// Has a system relay packets; nanoseconds for each.
    fn pass(&mut self, subject: &mut Subject<'_>, way: Way, batch: u32, packets: u32) -> Result<f64> {
        let name = subject.system.name();
        let traffic = subject.system.traffic(way, self.payload_bytes, packets)?;
        self.instruments.fill(&traffic.frames)?;
        let (_, passage) = self.send(subject, &traffic, batch)?;
        let passage = self.settled(passage, PATIENCE)?;
        let (wanted, sent) = (u64::from(packets), passage.sent);
        ensure!(
            sent == wanted,
            "{name}: the generator made {sent} packets instead of {wanted}"
        );
        let Some(span_ns) = passage.span_ns.filter(|_| passage.delivered == wanted) else {
            return Err(Lost {
                name,
                way,
                payload_bytes: self.payload_bytes,
                passage,
            }
            .into());
        };
        let frame_bytes = traffic.expected.frame_bytes;
        subject.system.check(self.instruments, way, packets, frame_bytes)?;
        #[expect(clippy::cast_precision_loss, reason = "times need no 53 bits")]
        Ok(span_ns as f64 / f64::from(packets))
    }

    /// Sends everything; the mean nanoseconds that took for each, and what has come by then.
    fn send(&mut self, subject: &Subject<'_>, traffic: &Traffic, batch: u32) -> Result<(f64, Passage)> {
        let Self {
            instruments, options, ..
        } = self;
        let index = subject.near_index;
        subject.line.near.run(|| {
            settle(options)?;
            let ns = instruments.send(index, &traffic.frames, batch, &traffic.expected)?;
            Ok((ns, instruments.passage()?))
        })
    }

    /// What has come when nothing more does for so long, or nothing more can.
    fn settled(&self, mut passage: Passage, patience: Duration) -> Result<Passage> {
        let mut last_came = Instant::now();
        while passage.delivered < passage.sent && last_came.elapsed() < patience {
            thread::sleep(Duration::from_millis(1));
            let now = self.instruments.passage()?;
            if now != passage {
                last_came = Instant::now();
            }
            passage = now;
        }
        Ok(passage)
    }
}

/// Packets that did not arrive.
#[derive(Debug)]
struct Lost {
    name: &'static str,
    way: Way,
    payload_bytes: usize,
    passage: Passage,
}

impl std::fmt::Display for Lost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Passage {
            sent,
            delivered,
            others,
            ..
        } = self.passage;
        write!(
            f,
            "{}, {}, {} bytes of payload: of {sent} packets {delivered} arrived as they should, and {others} others; this \
             measurement is worth nothing",
            self.name,
            self.way.name(),
            self.payload_bytes
        )
    }
}

impl std::error::Error for Lost {}

/// Puts this thread where everything is to happen, and before everything else that wants to be there.
fn settle(options: &Options) -> Result<()> {
    let mut cpu = CpuSet::new();
    cpu.set(options.cpu)?;
    sched_setaffinity(Pid::from_raw(0), &cpu).with_context(|| format!("moving to CPU {}", options.cpu))?;
    if options.realtime {
        prefer(&gettid().to_string(), GENERATOR_PRIORITY)?;
    }
    Ok(())
}

/// Gives a thread a real-time priority.
fn prefer(thread: &str, priority: &str) -> Result<()> {
    let given = Command::new("chrt")
        .args(["--fifo", "--pid", priority, thread])
        .output()?;
    ensure!(
        given.status.success(),
        "no real-time priority here, which takes CAP_SYS_NICE: {}",
        String::from_utf8_lossy(&given.stderr)
    );
    Ok(())
}

fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let mean = text.split(' ').next().and_then(|mean| mean.parse().ok());
    mean.unwrap_or(f64::NAN)
}

fn processor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    name.map_or_else(|| "an unnamed processor".to_owned(), |(_, name)| name.to_owned())
}
