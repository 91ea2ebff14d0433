//! Running a scenario: in one backend or in several in step.

use std::{cell::Cell, collections::BTreeMap, path::Path, rc::Rc, time::Instant};

use relay_ebpf::verdict::{Direction, Reason};
use sha2::{Digest as _, Sha256};

use super::{
    expect,
    file::{BackendKind, Replay, Step},
    load::Scenario,
    outcome::{
        BackendOutcome, Counted, DestinationChange, Difference, Failure, Frame, Kept, Outcome, PacketOutcome,
        StepOutcome, Total, UserChange,
    },
    relay::{self, Users},
    send, snapshot,
};
use crate::{
    Lab, Observation, World,
    backend::{
        Backend, BackendError, Counters, Traffic, counter,
        fit::Probe,
        foreign::ForeignBackend,
        host::HostBackend,
        kernel::{self, KernelBackend},
        oracle::OracleBackend,
        userspace::{self, UserspaceBackend},
        veth::{self, VethBackend},
    },
    capture::Capture,
    inspect,
    lab::{Disagreement, LabError},
    observe,
    replay::{Concern, Resigner, Selector},
};

/// Steps with more packets than this are told in totals.
pub const LISTED_PACKETS: usize = 16;

/// What a run does besides running.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options<'a> {
    /// Keep the snapshot that is taken, instead of comparing it.
    pub update: bool,
    /// Where to leave captures of a disagreement: a folder of the scenario's own is made in it.
    pub out: Option<&'a Path>,
}

/// Why this process cannot run a backend, if so.
#[must_use]
pub fn missing(backend: BackendKind) -> Option<String> {
    let missing = match backend {
        BackendKind::Host | BackendKind::Oracle => Vec::new(),
        BackendKind::Kernel => kernel::missing_capabilities(),
        BackendKind::Veth => veth::missing_capabilities(),
        BackendKind::Userspace => userspace::missing_capabilities(),
    };
    (!missing.is_empty()).then(|| format!("needs {}; run as root", missing.join(" and ")))
}

/// Why a backend cannot run a scenario, whatever the process may, if so: what the scenario sends is nothing that comes
/// through a socket, or is in buffers as nothing here can have it.
#[must_use]
pub fn misfit(scenario: &Scenario, backend: BackendKind) -> Option<String> {
    let world = || relay::world(&scenario.file).0;
    match backend {
        BackendKind::Host | BackendKind::Oracle => return None,
        BackendKind::Kernel => return kernel::misfit(&world()),
        BackendKind::Veth => return veth::misfit(&world()).map(str::to_owned),
        BackendKind::Userspace => {}
    }
    let found = Rc::new(Cell::new(None));
    let probe =
        |world: &World| -> Result<Box<dyn Backend>, BackendError> { Ok(Box::new(Probe::new(world, found.clone())?)) };
    match rehearse(scenario, probe) {
        Ok(_) => found.get().map(str::to_owned),
        Err(error) => Some(error.to_string()),
    }
}

/// Runs a scenario in those of its backends that are wanted and can run here.
#[must_use]
pub fn run(scenario: &Scenario, wanted: &[BackendKind], options: Options<'_>) -> Outcome {
    let began = Instant::now();
    let named = scenario.backends();
    let wanted = wanted.iter().copied().filter(|kind| named.contains(kind));
    let backends: Vec<BackendOutcome> = wanted
        .map(|backend| BackendOutcome {
            backend,
            skipped: missing(backend).or_else(|| misfit(scenario, backend)),
        })
        .collect();
    let mut outcome = Outcome {
        id: scenario.id(),
        path: scenario.path.display().to_string(),
        name: scenario.file.name.clone(),
        tags: scenario.file.tags.clone(),
        backends,
        steps: Vec::new(),
        snapshot: None,
        kept: Kept::NotCompared,
        failures: Vec::new(),
        seconds: 0.0,
    };
    if !outcome.skipped() {
        run_steps(scenario, &mut outcome, options);
    }
    outcome.seconds = began.elapsed().as_secs_f64();
    outcome
}

fn run_steps(scenario: &Scenario, outcome: &mut Outcome, options: Options<'_>) {
    let kinds = outcome.backends.iter().filter(|backend| backend.skipped.is_none());
    let kinds: Vec<BackendKind> = kinds.map(|backend| backend.backend).collect();
    let mut run = match Run::new(scenario, &kinds) {
        Ok(run) => run,
        Err(error) => {
            outcome.failures.push(failure(None, &error));
            return;
        }
    };
    for (number, step) in scenario.file.steps.iter().enumerate() {
        let (done, mut failures) = run.step(number, step, options);
        outcome.steps.extend(done);
        let ended = failures.iter().any(|failure| failure.ends);
        outcome.failures.extend(failures.drain(..).map(|failure| failure.what));
        if ended {
            return;
        }
    }
    let text = snapshot::text(scenario, &outcome.steps);
    outcome.kept = compare(scenario, &text, options, &mut outcome.failures);
    outcome.snapshot = Some(text);
}

/// Compares with the snapshot that is kept, or keeps this one; a run that failed otherwise is not kept.
fn compare(scenario: &Scenario, text: &str, options: Options<'_>, failures: &mut Vec<Failure>) -> Kept {
    let kept = match snapshot::read(&scenario.folder) {
        Ok(kept) => kept,
        Err(error) => {
            failures.push(failure(None, &format!("reading the snapshot: {error}")));
            return Kept::NotCompared;
        }
    };
    match kept {
        Some(kept) if snapshot::same(&kept, text) => Kept::Same,
        _ if options.update && failures.is_empty() => match snapshot::write(&scenario.folder, text) {
            Ok(()) => Kept::Written,
            Err(error) => {
                failures.push(failure(None, &format!("writing the snapshot: {error}")));
                Kept::NotCompared
            }
        },
        Some(expected) => Kept::Differs { expected },
        None => Kept::Missing,
    }
}

fn failure(at: Option<(usize, usize)>, message: &dyn ToString) -> Failure {
    Failure {
        step: at.map(|(step, _)| step),
        line: at.map(|(_, line)| line),
        message: message.to_string(),
        differences: Vec::new(),
        details: None,
    }
}

/// A failure of a step, and whether what follows would mean nothing.
struct Failed {
    what: Failure,
    ends: bool,
}

/// A backend in this world.
///
/// # Errors
/// If the kernel refuses, or the world is larger than a relay.
pub fn backend(kind: BackendKind, world: &World) -> Result<Box<dyn Backend>, BackendError> {
    Ok(match kind {
        BackendKind::Host => Box::new(HostBackend::new(world)?),
        BackendKind::Oracle => Box::new(OracleBackend::new(world)?),
        BackendKind::Kernel => Box::new(KernelBackend::new(world)?),
        BackendKind::Veth => Box::new(VethBackend::new(world)?),
        BackendKind::Userspace => Box::new(UserspaceBackend::new(world)?),
    })
}

fn foreign(
    kind: BackendKind,
    scenario: &Scenario,
    object: &Path,
    name: &str,
) -> Result<Box<dyn Backend>, BackendError> {
    let object = scenario.folder.join(object);
    Ok(match kind {
        BackendKind::Veth => Box::new(ForeignBackend::veth(&object, name)?),
        _ => Box::new(ForeignBackend::kernel(&object, name)?),
    })
}

/// Runs a scenario in a backend of the caller's, whatever it expects, and gives its world as it is at the start.
///
/// # Errors
/// If the backend cannot be made.
pub(crate) fn rehearse(
    scenario: &Scenario,
    make: impl FnOnce(&World) -> Result<Box<dyn Backend>, BackendError>,
) -> Result<World, BackendError> {
    let (world, users) = relay::world(&scenario.file);
    let lab = Lab::new(world.clone(), vec![make(&world)?]);
    // What the backend refuses, the scenario refused already.
    let Ok(mut run) = Run::with(scenario, lab, users) else {
        return Ok(world);
    };
    for (number, step) in scenario.file.steps.iter().enumerate() {
        let _ = run.step(number, step, Options::default());
    }
    Ok(world)
}

struct Run<'a> {
    scenario: &'a Scenario,
    lab: Lab,
    world: World,
    users: Users,
    now_ns: u64,
    /// The first frame of each step that sent one, and the interface that it came in by.
    sent: BTreeMap<usize, (u8, Vec<u8>)>,
}

/// What the frames of a step did, together.
#[derive(Default)]
pub(super) struct Seen {
    pub(super) observations: Vec<Observation>,
    /// What a replayed capture holds of what the relay sent then, in its order.
    pub(super) captured_outputs: Vec<Vec<u8>>,
}

impl<'a> Run<'a> {
    fn new(scenario: &'a Scenario, kinds: &[BackendKind]) -> Result<Self, String> {
        let (world, users) = relay::world(&scenario.file);
        let mut backends = Vec::new();
        for &kind in kinds {
            let made = match &scenario.file.program {
                Some(program) => foreign(kind, scenario, &program.object, &program.name),
                None => backend(kind, &world),
            };
            backends.push(made.map_err(|error| format!("{}: {error}", kind.name()))?);
        }
        Self::with(scenario, Lab::new(world, backends), users)
    }

    fn with(scenario: &'a Scenario, mut lab: Lab, users: Users) -> Result<Self, String> {
        let blocklist = scenario.file.relay.as_ref().map(|relay| &relay.blocklist);
        if let Some(prefixes) = blocklist.filter(|prefixes| !prefixes.is_empty()) {
            lab.set_blocklist(prefixes).map_err(|error| error.to_string())?;
        }
        Ok(Self {
            scenario,
            world: lab.world().clone(),
            lab,
            users,
            now_ns: 0,
            sent: BTreeMap::new(),
        })
    }

    fn step(&mut self, number: usize, step: &Step, options: Options<'_>) -> (Option<StepOutcome>, Vec<Failed>) {
        let line = self.scenario.lines[number];
        self.now_ns = step.at.map_or(self.now_ns, |at| at.0.max(self.now_ns));
        let at_ns = self.now_ns;
        let heading = heading(step, self.scenario);
        let mut remarks = Vec::new();
        let done = match &step.replay {
            Some(replay) => self.replay(replay, &mut remarks),
            None => self.change(step).and_then(|()| self.send(number, step)),
        };
        let seen = match done {
            Ok(seen) => seen,
            Err(error) => return (None, vec![self.broken(number, line, &error, options)]),
        };
        let mut outcome = StepOutcome {
            number,
            line,
            at_ns,
            heading,
            note: step.note.clone(),
            packets: Vec::new(),
            totals: totals(&seen),
            digest: None,
            users: self.user_changes(&seen),
            destinations: destination_changes(&seen),
            counters: counters(&seen),
            answers: seen.observations.iter().map(|observed| observed.answers).sum(),
            remarks,
        };
        if seen.observations.len() > LISTED_PACKETS {
            outcome.digest = Some(digest(&seen));
        } else {
            outcome.packets = seen.observations.iter().map(packet).collect();
        }
        let mut failures = Vec::new();
        if let Some(expected) = &step.expect {
            let subject = self.subject(step, &seen);
            let differences = expect::unmet(expected, &seen, subject);
            if !differences.is_empty() {
                let mut what = failure(Some((number, line)), &"not as expected");
                what.differences = differences;
                failures.push(Failed { what, ends: false });
            }
        }
        (Some(outcome), failures)
    }

    fn broken(&self, number: usize, line: usize, error: &StepError, options: Options<'_>) -> Failed {
        let mut what = failure(Some((number, line)), &error);
        if let StepError::Lab(LabError::Disagreement(disagreement)) = error {
            what = self.disagreement((number, line), disagreement, options);
        }
        Failed { what, ends: true }
    }

    /// Both sides field by field, and as captures.
    fn disagreement(&self, at: (usize, usize), found: &Disagreement, options: Options<'_>) -> Failure {
        let mut what = failure(Some(at), &format!("{} and {} disagree", found.first, found.second));
        what.differences = observe::differences(&found.expected, &found.actual)
            .into_iter()
            .map(|(field, expected, actual)| Difference {
                field,
                expected: format!("{}: {expected}", found.first),
                actual: format!("{}: {actual}", found.second),
            })
            .collect();
        let mut details = format!("the frame:\n{}", inspect::describe(&found.expected.input));
        if let Some(out) = options.out {
            let folder = out.join(self.scenario.id());
            let left = found.leave_captures(&folder, self.now_ns);
            details = match left {
                Ok(()) => format!(
                    "{details}input.pcapng, expected.pcapng and actual.pcapng are in {}",
                    folder.display()
                ),
                Err(error) => format!("{details}no captures of it: {error}"),
            };
        }
        what.details = Some(details);
        what
    }

    fn change(&mut self, step: &Step) -> Result<(), StepError> {
        if let Some(user) = &step.add_user {
            let added = self.users.add(user);
            self.lab.publish(&added)?;
        }
        if let Some(renew) = &step.renew
            && let Some(renewed) = self.users.renew(renew)
        {
            self.lab.publish(&renewed)?;
        }
        if let Some(id) = step.remove_user
            && let Some(removed) = self.users.remove(id)
        {
            self.lab.remove(removed.slot)?;
        }
        if let Some(hop) = &step.next_hop {
            self.lab.set_next_hop(hop.to, relay::next_hop(hop))?;
        }
        if let Some(prefixes) = &step.blocklist {
            self.lab.set_blocklist(prefixes)?;
        }
        Ok(())
    }

    fn send(&mut self, number: usize, step: &Step) -> Result<Seen, StepError> {
        let mut seen = Seen::default();
        for nth in 0..step.count.unwrap_or(1) {
            if nth > 0 {
                self.now_ns += step.every.map_or(0, |every| every.0);
            }
            let (interface, frame) = match (&step.send, step.repeat_step) {
                (Some(described), _) => {
                    let frame = send::frame(described, u64::from(nth), &self.world, &self.users);
                    (send::interface(described, &self.world), frame.ok_or(StepError::NoUser)?)
                }
                // The very bytes that were sent, whatever became of the user since.
                (None, Some(earlier)) => self.sent.get(&earlier).cloned().ok_or(StepError::NotSent(earlier))?,
                (None, None) => return Ok(seen),
            };
            self.give(interface, &frame, &mut seen)?;
            self.sent.entry(number).or_insert((interface, frame));
        }
        Ok(seen)
    }

    fn give(&mut self, interface: u8, frame: &[u8], seen: &mut Seen) -> Result<(), StepError> {
        let unable = self.lab.not_taking(frame);
        if !unable.is_empty() {
            let (bytes, unable) = (frame.len(), unable.join(" and "));
            return Err(StepError::NotTaken { bytes, unable });
        }
        seen.observations.push(self.lab.step_on(self.now_ns, interface, frame)?);
        Ok(())
    }

    fn replay(&mut self, replay: &Replay, remarks: &mut Vec<String>) -> Result<Seen, StepError> {
        let path = self.scenario.folder.join(&replay.pcap);
        let selector = Selector::new(&self.world, self.world.mac);
        let mut world = self.world.clone();
        world.users = self.users.all().copied().collect();
        // Where the capture was sealed with these very grants, packet numbers and wrong tags stay.
        let grants: Vec<_> = world.users.iter().filter_map(|user| world.grant(user.slot)).collect();
        let mut resigner = Resigner::new(&world).knowing(grants);
        for (client, id) in &replay.clients {
            if let Some(user) = self.users.get(*id) {
                resigner = resigner.mapping(*client, user.slot);
            }
        }
        let mut seen = Seen::default();
        let (mut first_at_ns, began_ns) = (None, self.now_ns);
        let (mut by_relay, mut others) = (0_u64, 0_u64);
        for packet in Capture::open(&path)? {
            let mut packet = packet?;
            // Another program than the relay gets all there is.
            let concern = match self.scenario.file.program {
                Some(_) => Concern::Input,
                None => selector.concern(&packet),
            };
            match concern {
                Concern::Input => {}
                Concern::FromRelay => {
                    by_relay += 1;
                    seen.captured_outputs.push(packet.data.clone());
                    continue;
                }
                Concern::Others => {
                    others += 1;
                    continue;
                }
            }
            let first = *first_at_ns.get_or_insert(packet.at_ns);
            self.now_ns = self.now_ns.max(began_ns + packet.at_ns.saturating_sub(first));
            if replay.resign {
                resigner.resign(&mut packet.data);
            }
            self.give(0, &packet.data, &mut seen)?;
            if replay
                .limit
                .is_some_and(|limit| seen.observations.len() as u64 >= limit)
            {
                break;
            }
        }
        remarks.push(format!(
            "{} replayed; {by_relay} were the relay's own, {others} others'",
            seen.observations.len()
        ));
        Ok(seen)
    }

    /// The user that a step is about: who sealed its token, or whose egress port it is.
    fn subject(&self, step: &Step, seen: &Seen) -> Option<crate::backend::UserState> {
        let earlier = step.repeat_step.and_then(|number| self.scenario.file.steps.get(number));
        let described = step
            .send
            .as_ref()
            .or_else(|| earlier.and_then(|earlier| earlier.send.as_ref()))?;
        let slot = if let Some(token) = &described.token {
            self.users.get(token.user)?.slot
        } else {
            let to = described.to?;
            (0..self.world.max_users).find(|slot| self.world.egress_endpoint(*slot, to.is_ipv4()) == Some(to))?
        };
        let changed = seen.observations.iter().rev().flat_map(|observed| &observed.users);
        let after = changed
            .filter(|(of, _, _)| *of == slot)
            .map(|(_, _, after)| after.clone());
        after.into_iter().next().or_else(|| self.lab.user(slot))
    }

    fn user_changes(&self, seen: &Seen) -> Vec<UserChange> {
        let mut first_and_last = BTreeMap::new();
        for (slot, before, after) in seen.observations.iter().flat_map(|observed| &observed.users) {
            first_and_last.entry(*slot).or_insert((before, after)).1 = after;
        }
        let changes = first_and_last.into_iter().map(|(slot, (before, after))| UserChange {
            user: self.users.id_of(slot),
            slot,
            fields: observe::changes(before, after)
                .into_iter()
                .map(|(field, before, after)| (field.to_owned(), before, after))
                .collect(),
        });
        changes.filter(|change| !change.fields.is_empty()).collect()
    }
}

fn destination_changes(seen: &Seen) -> Vec<DestinationChange> {
    let mut first_and_last = BTreeMap::new();
    for (to, before, after) in seen.observations.iter().flat_map(|observed| &observed.destinations) {
        first_and_last.entry(*to).or_insert((*before, *after)).1 = *after;
    }
    let changes = first_and_last.into_iter();
    changes.map(|(to, tat_ns)| DestinationChange { to, tat_ns }).collect()
}

#[derive(Debug, thiserror::Error)]
enum StepError {
    #[error(transparent)]
    Lab(#[from] LabError),
    #[error(transparent)]
    Capture(#[from] crate::capture::CaptureError),
    #[error("the user whose token it is is not there")]
    NoUser,
    #[error("step {0} sent nothing that could be repeated")]
    NotSent(usize),
    #[error(
        "a frame of {bytes} bytes cannot be given to {unable}: leave it out of `backends`, or make the frame one that a \
         link carries (at least 14 bytes, at most 3500)"
    )]
    NotTaken { bytes: usize, unable: String },
}

/// What a step does, in words.
fn heading(step: &Step, scenario: &Scenario) -> String {
    let what = if let Some(repeated) = step.repeat_step {
        let earlier = scenario
            .file
            .steps
            .get(repeated)
            .and_then(|earlier| earlier.send.as_ref());
        let again = earlier.map(super::words::send).unwrap_or_default();
        format!("step {repeated} again: {again}")
    } else {
        super::words::action(step)
    };
    match (step.count, step.every) {
        (Some(count), Some(every)) => format!("{what}; {count} times, every {every}"),
        (Some(count), None) => format!("{what}; {count} times"),
        _ => what,
    }
}

/// The name of a counted reason: "uplink relayed".
pub(super) fn reason_name((direction, reason): (Direction, Reason)) -> String {
    format!("{} {}", direction.name(), reason.name())
}

fn packet(observed: &Observation) -> PacketOutcome {
    PacketOutcome {
        input: frame(&observed.input),
        verdict: verdict(observed),
        reason: observed.reason().map(reason_name),
        output: (observed.output != observed.input).then(|| frame(&observed.output)),
    }
}

/// What the kernel was told; with the interface that the packet leaves by, if that is another than it came in by.
fn verdict(observed: &Observation) -> String {
    let name = observed.verdict.name();
    match observed.egress {
        Some(egress) if egress != observed.ingress => format!("{name} (interface {egress})"),
        _ => name.to_owned(),
    }
}

fn frame(bytes: &[u8]) -> Frame {
    Frame {
        decoded: inspect::headers(bytes),
        hex: hex::encode(bytes),
    }
}

fn totals(seen: &Seen) -> Vec<Total> {
    let mut totals = BTreeMap::new();
    for observed in &seen.observations {
        let reason = observed.reason().map(reason_name);
        *totals.entry((reason, verdict(observed))).or_default() += 1;
    }
    let totals = totals.into_iter();
    totals
        .map(|((reason, verdict), packets)| Total {
            reason,
            verdict,
            packets,
        })
        .collect()
}

fn counters(seen: &Seen) -> Vec<Counted> {
    let mut sums = Counters::new();
    for (key, traffic) in seen.observations.iter().flat_map(|observed| &observed.counters) {
        let sum = sums.entry(*key).or_default();
        sum.packets = sum.packets.wrapping_add(traffic.packets);
        sum.bytes = sum.bytes.wrapping_add(traffic.bytes);
    }
    let all = Direction::ALL
        .into_iter()
        .flat_map(|direction| Reason::ALL.map(|reason| (direction, reason)));
    let moved = all.filter_map(|(direction, reason)| {
        let &Traffic { packets, bytes } = sums.get(&counter(direction, reason))?;
        Some(Counted {
            counter: reason_name((direction, reason)),
            packets,
            bytes,
        })
    });
    moved.collect()
}

fn digest(seen: &Seen) -> String {
    let mut hasher = Sha256::new();
    for observed in &seen.observations {
        hasher.update(verdict(observed));
        hasher.update((observed.output.len() as u64).to_be_bytes());
        hasher.update(&observed.output);
    }
    hex::encode(hasher.finalize())
}
