//! Reading a scenario, and finding everything that is wrong with it at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use super::{
    error::{Fault, Place, ScenarioError, Source, helpful},
    file::{BackendKind, File, Replay, SCHEMA, Send, Step, Token, User},
    relay::Setting,
};
use crate::{
    Verdict,
    capture::{Capture, CaptureError},
    object::{self, ObjectError},
    world::Carrier,
};

/// The file in a scenario's folder.
pub const FILE_NAME: &str = "scenario.toml";

/// A scenario that was read and found right in itself.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// The file.
    pub path: PathBuf,
    /// Its folder: captures and snapshots are there.
    pub folder: PathBuf,
    /// What stands in it.
    pub file: File,
    /// The line of each step in it, from 1.
    pub lines: Vec<usize>,
}

impl Scenario {
    /// Reads a scenario from its folder or its file.
    ///
    /// # Errors
    /// If it cannot be read, or is faulty: then with every fault that can be told.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, ScenarioError> {
        let path = path.as_ref();
        let path = if path.is_dir() {
            path.join(FILE_NAME)
        } else {
            path.to_owned()
        };
        let text = fs::read_to_string(&path).map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound if path.ends_with(FILE_NAME) => {
                ScenarioError::None(path.parent().unwrap_or(&path).to_owned())
            }
            _ => ScenarioError::Read {
                path: path.clone(),
                source,
            },
        })?;
        Self::parse(&path, &text)
    }

    /// Reads a scenario from the text of its file.
    ///
    /// # Errors
    /// If it is faulty.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ScenarioError> {
        let source = Source::new(path, text);
        let file: File = toml::from_str(text).map_err(|error| {
            let span = error.span().unwrap_or(0..0);
            ScenarioError::Faulty(vec![source.fault_at(span, helpful(error.message()))])
        })?;
        let folder = path.parent().unwrap_or(Path::new("")).to_owned();
        let mut check = Check {
            source: &source,
            folder: &folder,
            file: &file,
            faults: Vec::new(),
        };
        check.everything();
        if !check.faults.is_empty() {
            check.faults.sort_by_key(|fault| (fault.line, fault.column));
            return Err(ScenarioError::Faulty(check.faults));
        }
        let steps = 0..file.steps.len();
        let lines = steps.map(|step| source.fault(&["step".into(), step.into()], "").line);
        Ok(Self {
            path: path.to_owned(),
            lines: lines.collect(),
            folder,
            file,
        })
    }

    /// The two last parts of the folder's path, which name the scenario: `area/name`.
    #[must_use]
    pub fn id(&self) -> String {
        let folder = self.folder.canonicalize().unwrap_or_else(|_| self.folder.clone());
        let parts: Vec<_> = folder.components().rev().take(2).collect();
        let parts = parts.iter().rev().map(|part| part.as_os_str().to_string_lossy());
        parts.collect::<Vec<_>>().join("/")
    }

    /// Where it runs.
    #[must_use]
    pub fn backends(&self) -> Vec<BackendKind> {
        match &self.file.backends {
            Some(named) => named.clone(),
            None if self.file.program.is_some() => vec![BackendKind::Kernel, BackendKind::Veth],
            None => BackendKind::ALL.to_vec(),
        }
    }
}

/// Scenarios that were read, and why others could not be.
#[derive(Debug, Default)]
pub struct LoadedScenarios {
    /// In the order of the paths, those of one path sorted.
    pub scenarios: Vec<Scenario>,
    /// Of the others.
    pub faults: Vec<ScenarioError>,
}

impl LoadedScenarios {
    /// Reads all scenarios in these folders, or that these files are; each once.
    ///
    /// # Errors
    /// If there is none in one of the paths, or a folder cannot be read.
    pub fn load(paths: &[PathBuf]) -> Result<Self, ScenarioError> {
        let mut loaded = Self::default();
        let mut seen = BTreeSet::new();
        for path in paths {
            for file in discover(path)? {
                let same = file.canonicalize().unwrap_or_else(|_| file.clone());
                if !seen.insert(same) {
                    continue;
                }
                match Scenario::load(&file) {
                    Ok(scenario) => loaded.scenarios.push(scenario),
                    Err(error) => loaded.faults.push(error),
                }
            }
        }
        Ok(loaded)
    }
}

/// Scenarios in a folder and the folders in it, or the one that a file is, sorted by path.
///
/// # Errors
/// If there is none, or a folder cannot be read.
pub fn discover(path: &Path) -> Result<Vec<PathBuf>, ScenarioError> {
    if path.is_file() {
        return Ok(vec![path.to_owned()]);
    }
    let mut found = Vec::new();
    walk(path, &mut found)?;
    found.sort();
    if found.is_empty() {
        return Err(ScenarioError::None(path.to_owned()));
    }
    Ok(found)
}

fn walk(folder: &Path, found: &mut Vec<PathBuf>) -> Result<(), ScenarioError> {
    let failed = |source| ScenarioError::Read {
        path: folder.to_owned(),
        source,
    };
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.file_type().map_err(failed)?.is_dir() {
            walk(&entry.path(), found)?;
        } else if entry.file_name() == FILE_NAME {
            found.push(entry.path());
        }
    }
    Ok(())
}

struct Check<'a> {
    source: &'a Source<'a>,
    folder: &'a Path,
    file: &'a File,
    faults: Vec<Fault>,
}

/// The users at some step: id to slot.
type Present = BTreeMap<u64, u32>;

impl Check<'_> {
    fn fault(&mut self, at: &[Place<'_>], message: impl std::fmt::Display) {
        self.faults.push(self.source.fault(at, message));
    }

    fn everything(&mut self) {
        let file = self.file;
        if file.schema != SCHEMA {
            self.fault(
                &["schema".into()],
                format!("schema {} is not known; this is version {SCHEMA}", file.schema),
            );
        }
        if file.name.trim().is_empty() {
            self.fault(
                &["name".into()],
                "the name is empty: say in a sentence what is promised",
            );
        }
        if file.backends.as_ref().is_some_and(Vec::is_empty) {
            self.fault(
                &["backends".into()],
                "no backend: leave the key out for all that there are",
            );
        }
        if file.steps.is_empty() {
            self.fault(&["step".into()], "there is no step: nothing would happen");
        }
        if file.snapshot.include.is_empty() {
            self.fault(
                &["snapshot".into(), "include".into()],
                "an empty snapshot shows nothing",
            );
        }
        if file.program.is_some() {
            self.foreign();
        } else {
            self.relay();
        }
        self.times();
        for (number, step) in file.steps.iter().enumerate() {
            self.step(number, step);
        }
    }

    /// What comes out of a wire shows neither of two verdicts.
    fn foreign_verdicts(&mut self) {
        let file = self.file;
        if file
            .backends
            .as_ref()
            .is_some_and(|named| !named.contains(&BackendKind::Veth))
        {
            return;
        }
        for (number, step) in file.steps.iter().enumerate() {
            let expected = step.expect.as_ref().and_then(|expect| expect.verdict);
            if let Some(verdict) = expected.map(|verdict| verdict.0)
                && matches!(verdict, Verdict::Aborted | Verdict::Redirect)
            {
                let at = ["step".into(), number.into(), "expect".into(), "verdict".into()];
                let message = "does not come out of a wire, as with DROP: say `backends = [\"kernel\"]`";
                self.fault(&at, format!("what is {verdict} {message}"));
            }
        }
    }

    /// A program of one's own has no relay around it.
    fn foreign(&mut self) {
        let file = self.file;
        for (key, given) in [
            ("relay", file.relay.is_some()),
            ("destination", !file.destinations.is_empty()),
            ("user", !file.users.is_empty()),
        ] {
            if given {
                self.fault(
                    &[key.into()],
                    format!("`{key}` is the relay's: `program` runs another program instead"),
                );
            }
        }
        for backend in file.backends.iter().flatten() {
            if matches!(
                backend,
                BackendKind::Host | BackendKind::Oracle | BackendKind::Userspace
            ) {
                let name = backend.name();
                self.fault(
                    &["backends".into()],
                    format!("`{name}` has the relay only: a program runs in kernel and veth"),
                );
            }
        }
        if let Some(program) = &file.program
            && let Err(error) = object::check(&self.folder.join(&program.object), &program.name)
        {
            let key = match error {
                ObjectError::NoProgram { .. } | ObjectError::NotXdp { .. } => "name",
                _ => "object",
            };
            self.fault(&["program".into(), key.into()], error);
        }
        self.foreign_verdicts();
        for (number, step) in file.steps.iter().enumerate() {
            let key = if step.send.as_ref().is_some_and(|send| send.token.is_some()) {
                "send"
            } else if step.replay.as_ref().is_some_and(|replay| replay.resign) {
                "replay"
            } else if let Some(key) = change_of(step) {
                key
            } else {
                continue;
            };
            self.fault(
                &["step".into(), number.into(), key.into()],
                "users, tokens, next hops and the blocklist are the relay's, and `program` runs another program",
            );
        }
    }

    fn relay(&mut self) {
        let setting = Setting::of(self.file.relay.as_ref());
        for (key, message) in setting.faults() {
            self.fault(&["relay".into(), key.into()], message);
        }
        let mut slots: BTreeMap<u32, u64> = BTreeMap::new();
        let mut present = Present::new();
        // Slots that are given are taken before free ones are looked for.
        let mut order: Vec<(usize, &User)> = self.file.users.iter().enumerate().collect();
        order.sort_by_key(|(_, user)| user.slot.is_none());
        for (number, user) in order {
            let at = ["user".into(), number.into()];
            self.user(&at, user);
            if present.contains_key(&user.id) {
                self.fault(
                    &[at[0], at[1], "id".into()],
                    format!("user {} is there already", user.id),
                );
            }
            let slot = user.slot.unwrap_or_else(|| first_free(&slots));
            if let Some(other) = slots.insert(slot, user.id) {
                self.fault(&[at[0], at[1], "slot".into()], format!("slot {slot} is user {other}'s"));
            }
            self.slot(&at, slot, &setting);
            present.insert(user.id, slot);
        }
        self.users_over_time(present, &setting);
        self.interfaces(&setting);
    }

    /// Whether every number of an interface is one's.
    fn interfaces(&mut self, setting: &Setting) {
        let relay = self.file.relay.as_ref();
        if let Some(interfaces) = relay.and_then(|relay| relay.interfaces.as_ref()) {
            if interfaces.is_empty() {
                self.fault(
                    &["relay".into(), "interfaces".into()],
                    "no interface: leave the key out",
                );
            }
            for key in ["mac", "mtu"] {
                let given = relay.is_some_and(|relay| {
                    if key == "mac" {
                        relay.mac.is_some()
                    } else {
                        relay.mtu.is_some()
                    }
                });
                if given {
                    self.fault(
                        &["relay".into(), key.into()],
                        format!("`interfaces` has the {key} of each: leave this one out"),
                    );
                }
            }
        }
        let count = setting.world.interfaces().len();
        let mut named: Vec<(Vec<Place<'_>>, Option<u8>)> = Vec::new();
        for (number, destination) in self.file.destinations.iter().enumerate() {
            named.push((vec!["destination".into(), number.into()], destination.interface));
        }
        for (number, step) in self.file.steps.iter().enumerate() {
            let at = |keys: &[&'static str]| -> Vec<Place<'_>> {
                let keys = keys.iter().map(|key| Place::Key(key));
                ["step".into(), number.into()].into_iter().chain(keys).collect()
            };
            let of_send = step.send.as_ref().and_then(|send| send.interface);
            let of_hop = step.next_hop.as_ref().and_then(|hop| hop.interface);
            let expected = step.expect.as_ref().and_then(|expect| expect.out.as_ref());
            named.push((at(&["send"]), of_send));
            named.push((at(&["next_hop"]), of_hop));
            named.push((at(&["expect", "out"]), expected.and_then(|out| out.interface)));
        }
        for (mut at, interface) in named {
            let Some(number) = interface.filter(|number| usize::from(*number) >= count) else {
                continue;
            };
            at.push("interface".into());
            self.fault(
                &at,
                format!("there is no interface {number}; there are {count}, numbered from 0 (`relay.interfaces`)"),
            );
        }
    }

    fn slot(&mut self, at: &[Place<'_>], slot: u32, setting: &Setting) {
        if slot >= setting.max_users {
            let most = setting.max_users;
            self.fault(
                at,
                format!("slot {slot} is too large: the relay has {most} slots; raise relay.max_users"),
            );
        }
    }

    fn user(&mut self, at: &[Place<'_>], user: &User) {
        let limits = [
            ("rate", user.rate),
            ("burst", user.burst),
            ("down_rate", user.down_rate),
            ("down_burst", user.down_burst),
        ];
        for (key, value) in limits {
            if value == Some(0) {
                let at: Vec<Place<'_>> = at.iter().copied().chain([key.into()]).collect();
                self.fault(&at, format!("a {key} of 0 lets nothing through; it is at least 1"));
            }
        }
    }

    /// Which users there are at each step, and whether steps name others.
    fn users_over_time(&mut self, mut present: Present, setting: &Setting) {
        for (number, step) in self.file.steps.iter().enumerate() {
            let at = ["step".into(), number.into()];
            let missing = |check: &mut Self, keys: &[Place<'_>], id: u64| {
                if !present.contains_key(&id) {
                    let at: Vec<Place<'_>> = at.iter().chain(keys).copied().collect();
                    let there: Vec<String> = present.keys().map(ToString::to_string).collect();
                    let there = if there.is_empty() {
                        "none".into()
                    } else {
                        there.join(", ")
                    };
                    check.fault(&at, format!("there is no user {id} at this step; there is {there}"));
                }
            };
            if let Some(token) = step.send.as_ref().and_then(|send| send.token.as_ref()) {
                missing(self, &["send".into(), "token".into(), "user".into()], token.user);
            }
            if let Some(renew) = &step.renew {
                missing(self, &["renew".into(), "user".into()], renew.user);
            }
            for id in step.replay.iter().flat_map(|replay| replay.clients.values()) {
                missing(self, &["replay".into(), "clients".into()], *id);
            }
            if let Some(id) = step.remove_user {
                missing(self, &["remove_user".into()], id);
                present.remove(&id);
            }
            if let Some(user) = &step.add_user {
                self.added(number, user, &mut present, setting);
            }
        }
    }

    fn added(&mut self, number: usize, user: &User, present: &mut Present, setting: &Setting) {
        let at = ["step".into(), number.into(), "add_user".into()];
        self.user(&at, user);
        if present.contains_key(&user.id) {
            self.fault(
                &at,
                format!("user {} is there already; `renew` gives another grant", user.id),
            );
        }
        let taken: BTreeMap<u32, u64> = present.iter().map(|(id, slot)| (*slot, *id)).collect();
        let slot = user.slot.unwrap_or_else(|| first_free(&taken));
        if let Some(other) = taken.get(&slot) {
            self.fault(&at, format!("slot {slot} is user {other}'s"));
        }
        self.slot(&at, slot, setting);
        present.insert(user.id, slot);
    }

    fn times(&mut self) {
        let mut last = super::value::Time::default();
        for (number, step) in self.file.steps.iter().enumerate() {
            let Some(at) = step.at else { continue };
            if at < last {
                self.fault(
                    &["step".into(), number.into(), "at".into()],
                    format!("time goes back: the step before is at {last}"),
                );
            }
            last = last.max(at);
        }
    }

    fn step(&mut self, number: usize, step: &Step) {
        let here: [Place<'_>; 2] = ["step".into(), number.into()];
        let actions = actions_of(step);
        match actions[..] {
            [_] => {}
            [] => self.fault(&here, "nothing happens: give one of send, repeat_step, replay, add_user, renew, remove_user, next_hop, blocklist"),
            [_, second, ..] => {
                let message = format!("{} in one step; give each a step of its own", actions.join(" and "));
                self.fault(&[here[0], here[1], second.into()], message);
            }
        }
        let sends = step.send.is_some() || step.repeat_step.is_some() || step.replay.is_some();
        if step.expect.is_some() && !sends {
            self.fault(
                &[here[0], here[1], "expect".into()],
                "nothing is sent that something could be expected of",
            );
        }
        if let Some(repeated) = step.repeat_step {
            let earlier = self.file.steps.get(repeated).filter(|_| repeated < number);
            if earlier.is_none_or(|earlier| earlier.send.is_none()) {
                let message = format!(
                    "step {repeated} is no earlier step that sends; steps are numbered from 0, this is {number}"
                );
                self.fault(&[here[0], here[1], "repeat_step".into()], message);
            }
        }
        self.counted(here, step);
        if let Some(send) = &step.send {
            self.send(here, send);
        }
        if let Some(replay) = &step.replay {
            self.replay(here, replay);
        }
        if let Some(expect) = &step.expect
            && expect.reason.is_some()
            && expect.reasons.is_some()
        {
            let message = "`reason` is every packet's; with `reasons`, which counts them, leave it out";
            self.fault(&[here[0], here[1], "expect".into(), "reason".into()], message);
        }
    }

    fn counted(&mut self, here: [Place<'_>; 2], step: &Step) {
        if step.count == Some(0) {
            self.fault(
                &[here[0], here[1], "count".into()],
                "nothing is sent: the count is at least 1",
            );
        }
        if step.count.is_some() && step.send.is_none() && step.repeat_step.is_none() {
            self.fault(
                &[here[0], here[1], "count".into()],
                "`count` goes with `send` or `repeat_step`",
            );
        }
        if step.every.is_some() && step.count.is_none() {
            self.fault(&[here[0], here[1], "every".into()], "`every` goes with `count`");
        }
    }

    fn send(&mut self, here: [Place<'_>; 2], send: &Send) {
        let at = |key| [here[0], here[1], "send".into(), Place::Key(key)];
        if let Some(frame) = &send.frame {
            let alone = Send {
                frame: Some(frame.clone()),
                interface: send.interface,
                cut: send.cut,
                flip_bit: send.flip_bit,
                ..Send::default()
            };
            if *send != alone {
                self.fault(
                    &at("frame"),
                    "`frame` is the whole frame: besides it there can be `interface`, `cut` and `flip_bit` only",
                );
            }
            return;
        }
        let (Some(from), Some(to)) = (send.from, send.to) else {
            let message =
                "`from` and `to` are missing: addresses and ports of the sender and the receiver; or give `frame`";
            self.fault(&[here[0], here[1], "send".into()], message);
            return;
        };
        if from.is_ipv4() != to.is_ipv4() {
            self.fault(
                &at("to"),
                format!("{from} and {to} are of two families: a packet has one"),
            );
        }
        for (key, message) in wrong_fields(send, from) {
            self.fault(&at(key), message);
        }
        if let Some(token) = &send.token {
            self.token(here, token);
        }
    }

    fn token(&mut self, here: [Place<'_>; 2], token: &Token) {
        let at = |key| [here[0], here[1], "send".into(), "token".into(), Place::Key(key)];
        if token.flip_bit.is_some_and(|bit| bit >= 192) {
            self.fault(&at("flip_bit"), "a token has 192 bits, from 0 to 191");
        }
        if token.cut.is_some_and(|bytes| bytes >= 24) {
            self.fault(&at("cut"), "a token has 24 bytes: cut it to at most 23");
        }
        if token.protected == Some(false) && token.header_key.is_some() {
            self.fault(&at("header_key"), "a token that is not protected is masked with no key");
        }
    }

    fn replay(&mut self, here: [Place<'_>; 2], replay: &Replay) {
        let path = self.folder.join(&replay.pcap);
        let at = [here[0], here[1], "replay".into(), "pcap".into()];
        if !path.is_file() {
            self.fault(&at, format!("there is no file {}", path.display()));
        } else if let Err(error) = read_through(&path) {
            self.fault(&at, error);
        }
        if !replay.clients.is_empty() && !replay.resign {
            self.fault(
                &[here[0], here[1], "replay".into(), "clients".into()],
                "`clients` goes with `resign = true`",
            );
        }
    }
}

/// Whether all of a capture can be read: what is found only half-way would make half a run.
fn read_through(path: &Path) -> Result<(), CaptureError> {
    Capture::open(path)?.try_for_each(|packet| packet.map(drop))
}

/// The keys of a step that say what happens.
fn actions_of(step: &Step) -> Vec<&'static str> {
    let sending = [
        ("send", step.send.is_some()),
        ("repeat_step", step.repeat_step.is_some()),
        ("replay", step.replay.is_some()),
    ];
    let given = sending.into_iter().filter(|(_, given)| *given).map(|(key, _)| key);
    given.chain(changes_of(step)).collect()
}

fn change_of(step: &Step) -> Option<&'static str> {
    changes_of(step).next()
}

fn changes_of(step: &Step) -> impl Iterator<Item = &'static str> {
    let changes = [
        ("add_user", step.add_user.is_some()),
        ("renew", step.renew.is_some()),
        ("remove_user", step.remove_user.is_some()),
        ("next_hop", step.next_hop.is_some()),
        ("blocklist", step.blocklist.is_some()),
    ];
    changes.into_iter().filter(|(_, given)| *given).map(|(key, _)| key)
}

fn first_free(slots: &BTreeMap<u32, u64>) -> u32 {
    (0..u32::MAX).find(|slot| !slots.contains_key(slot)).unwrap_or(u32::MAX)
}

fn is_in_option(token: Option<&Token>) -> bool {
    token.is_some_and(|token| token.carrier == Some(Carrier::IpOption))
}

/// Fields of a packet that cannot be.
fn wrong_fields(send: &Send, from: SocketAddr) -> Vec<(&'static str, String)> {
    let mut wrong = Vec::new();
    let v4 = from.is_ipv4();
    let mut only = |key, given: bool, of_v4: bool| {
        if given && of_v4 != v4 {
            wrong.push((
                key,
                format!("`{key}` is in IPv{} headers only", if of_v4 { 4 } else { 6 }),
            ));
        }
    };
    only("options", send.options.is_some(), true);
    only("token", is_in_option(send.token.as_ref()), true);
    only("df", send.df.is_some(), true);
    only("flow_label", send.flow_label.is_some(), false);
    if let Some(options) = &send.options {
        let bytes = options.to_vec().len();
        let before_token = is_in_option(send.token.as_ref());
        if before_token && bytes > 14 {
            wrong.push((
                "options",
                format!("{bytes} bytes of options before a token: a header has room for 14 besides it"),
            ));
        }
        if !before_token && (bytes > 40 || bytes % 4 != 0) {
            wrong.push((
                "options",
                format!("{bytes} bytes of options: they are a multiple of 4, at most 40"),
            ));
        }
    }
    if send.flow_label.is_some_and(|label| label > 0xf_ffff) {
        wrong.push(("flow_label", "a flow label has 20 bits, up to 0xfffff".to_owned()));
    }
    if send.fragment.is_some_and(|fragment| fragment.offset > 0x1fff) {
        wrong.push((
            "fragment",
            "an offset has 13 bits, up to 8191 (times 8 bytes)".to_owned(),
        ));
    }
    if send.vlan.iter().any(|tag| tag.id > 4095 || tag.priority > 7) {
        wrong.push(("vlan", "a VLAN's id goes up to 4095, its priority up to 7".to_owned()));
    }
    let payload = send.payload.as_ref().map_or(0, |payload| payload.to_vec().len());
    if payload > 65_000 {
        wrong.push(("payload", format!("{payload} bytes do not fit a packet: at most 65000")));
    }
    wrong
}
