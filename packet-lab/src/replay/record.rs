//! Making a scenario of a capture: a folder with the frames that concern the relay, the world that they need, and what
//! is known of where they came from.

use std::{
    collections::{BTreeMap, HashSet},
    fmt::Write as _,
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use relay_ebpf::verdict::Reason;
use sha2::{Digest as _, Sha256};

use super::{
    Cast, CastError, Concern, Known, Resigner, Selector, Survey,
    cast::{HEADER_KEY, NEXT_HOP, lab_grants},
};
use crate::{
    capture::{Capture, CaptureError, Writer},
    inspect::{self, Outline},
    scenario::{self, SCHEMA, Scenario, ScenarioError},
    world::{Carrier, User, World},
};

/// The capture in a scenario's folder.
pub const CAPTURE_FILE: &str = "capture.pcapng";

/// What to record, and where.
#[derive(Clone, Debug)]
pub struct Order {
    /// The capture.
    pub file: PathBuf,
    /// The folder of all scenarios, which exists.
    pub scenarios: PathBuf,
    /// `area/case`.
    pub name: String,
    /// What its packets are expected to become, by reason; if empty, what the comments of the capture say, where each
    /// packet has one of the lab's.
    pub expect: BTreeMap<String, u64>,
    /// Keep so many packets.
    pub limit: Option<u64>,
}

/// A scenario that was recorded.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// Its folder.
    pub folder: PathBuf,
    /// Packets kept.
    pub kept: u64,
    /// Packets of the capture.
    pub of: u64,
    /// Kept packets of which the capture holds only the beginning.
    pub cut: u64,
    /// The expectation that the scenario has.
    pub expect: BTreeMap<String, u64>,
    /// What had to be assumed, for people.
    pub assumed: Vec<String>,
    /// Why not all of the capture was read.
    pub ended_by: Option<String>,
}

/// Why nothing was recorded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// The capture cannot be read, or the scenario's not written.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// There is no world for it.
    #[error(transparent)]
    Cast(#[from] CastError),
    /// The name is none.
    #[error(
        "`{0}` is no name of a scenario: write area/case in lower-case letters, digits, `-` and `_`, like uplink/lost-burst"
    )]
    Name(String),
    /// A reason that does not exist.
    #[error("there is no reason `{reason}`; there are {}", reasons())]
    Reason {
        /// The reason.
        reason: String,
    },
    /// The folder of all scenarios is not there.
    #[error("there is no folder {}: run this where the scenarios are, or name their folder with --scenarios", .0.display())]
    NoFolder(PathBuf),
    /// The scenario's folder is there already.
    #[error("{} is there already: choose another name, or remove it first", .0.display())]
    Exists(PathBuf),
    /// Nothing in the capture concerns the relay.
    #[error(
        "none of the {packets} packets of {} is UDP to the relay ({relay}): --listen and --mac say which relay it is",
        file.display()
    )]
    Nothing {
        /// The capture.
        file: PathBuf,
        /// Its packets.
        packets: u64,
        /// What was taken for the relay.
        relay: String,
    },
    /// The capture ended before anything was found that a scenario could be made of.
    #[error("{ended_by}; up to there {error}")]
    Ended {
        /// How it ended.
        ended_by: CaptureError,
        /// What was not found.
        error: Box<RecordError>,
    },
    /// What was made is no scenario: a fault of the lab.
    #[error("the scenario that was made does not load, which is a fault of packet-lab: {0}")]
    Scenario(#[from] ScenarioError),
    /// A file cannot be written.
    #[error("writing {}: {error}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

fn reasons() -> String {
    Reason::ALL.map(Reason::name).join(", ")
}

/// Records a scenario. Nothing is left behind if that fails.
///
/// # Errors
/// If the order makes no sense, the capture has nothing for the relay, or a file cannot be read or written.
pub fn record(
    order: &Order,
    known: &Known,
    progress: &mut dyn FnMut(u64, Option<u64>),
) -> Result<Recorded, RecordError> {
    let folder = order.folder()?;
    let (survey, ended_by) = Survey::of(&order.file, progress)?;
    let early = ended_by.as_ref().map(ToString::to_string);
    match make(order, known, &folder, &survey, early, progress) {
        Err(error @ (RecordError::Cast(CastError::NoListener) | RecordError::Nothing { .. })) => Err(match ended_by {
            Some(ended_by) => RecordError::Ended {
                ended_by,
                error: Box::new(error),
            },
            None => error,
        }),
        made => made,
    }
}

fn make(
    order: &Order,
    known: &Known,
    folder: &Path,
    survey: &Survey,
    ended_by: Option<String>,
    progress: &mut dyn FnMut(u64, Option<u64>),
) -> Result<Recorded, RecordError> {
    let cast = known.cast(survey)?;
    let draft = Draft::new(folder)?;
    let kept = keep(order, known, &cast, &draft, progress)?;
    if kept.packets == 0 {
        return Err(RecordError::Nothing {
            file: order.file.clone(),
            packets: survey.packets,
            relay: format!("{} at {}", list(&cast.world.listeners), inspect::mac(cast.captured_mac)),
        });
    }
    let world = kept.world_of(&cast.world);
    let expect = if order.expect.is_empty() {
        kept.commented()
    } else {
        order.expect.clone()
    };
    let sealed = !known.grants.is_empty();
    draft.write(
        scenario::FILE_NAME,
        &scenario_text(order, &world, &kept, &expect, sealed),
    )?;
    draft.write(
        "README.md",
        &readme(order, survey, &kept, &cast, sealed, ended_by.as_deref())?,
    )?;
    // Whatever the capture holds, the file must be one that loads.
    Scenario::load(&draft.0)?;
    draft.publish(folder)?;
    Ok(Recorded {
        folder: folder.to_owned(),
        kept: kept.packets,
        of: survey.packets,
        cut: kept.cut,
        expect,
        assumed: cast.assumed,
        ended_by,
    })
}

impl Order {
    /// The scenario's folder, if it can be made.
    fn folder(&self) -> Result<PathBuf, RecordError> {
        let is_word = |word: &str| {
            let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
            word.starts_with(|c: char| c.is_ascii_alphanumeric()) && word.chars().all(allowed)
        };
        match self.name.split_once('/') {
            Some((area, case)) if is_word(area) && is_word(case) => {}
            _ => return Err(RecordError::Name(self.name.clone())),
        }
        for reason in self.expect.keys() {
            if !Reason::ALL.iter().any(|known| known.name() == reason) {
                let reason = reason.clone();
                return Err(RecordError::Reason { reason });
            }
        }
        if !self.scenarios.is_dir() {
            return Err(RecordError::NoFolder(self.scenarios.clone()));
        }
        let folder = self.scenarios.join(&self.name);
        if folder.exists() {
            return Err(RecordError::Exists(folder));
        }
        Ok(folder)
    }
}

/// A folder that is only there in the end, when it is complete.
struct Draft(PathBuf);

impl Draft {
    fn new(folder: &Path) -> Result<Self, RecordError> {
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        let draft = folder.with_file_name(format!(".{name}.recording-{}", std::process::id()));
        fs::create_dir_all(&draft).map_err(|error| RecordError::Write {
            path: draft.clone(),
            error,
        })?;
        Ok(Self(draft))
    }

    fn write(&self, name: &str, text: &str) -> Result<(), RecordError> {
        let path = self.0.join(name);
        fs::write(&path, text).map_err(|error| RecordError::Write { path, error })
    }

    fn publish(&self, folder: &Path) -> Result<(), RecordError> {
        fs::rename(&self.0, folder).map_err(|error| RecordError::Write {
            path: folder.to_owned(),
            error,
        })
    }
}

impl Drop for Draft {
    /// Of no effect once it was published. The area is removed too, if this made it: only an empty one goes.
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
        if let Some(area) = self.0.parent() {
            let _ = fs::remove_dir(area);
        }
    }
}

/// What was kept of a capture.
#[derive(Default)]
struct Kept {
    packets: u64,
    cut: u64,
    first_ns: u64,
    last_ns: u64,
    link: &'static str,
    /// Users whose tokens there are.
    slots: HashSet<u32>,
    /// Where the downlink comes in.
    egress: HashSet<SocketAddr>,
    /// Reasons in the lab's comments.
    reasons: BTreeMap<String, u64>,
}

impl Kept {
    /// What the comments say, if every packet has one.
    fn commented(&self) -> BTreeMap<String, u64> {
        if self.reasons.values().sum::<u64>() == self.packets {
            self.reasons.clone()
        } else {
            BTreeMap::new()
        }
    }

    /// The world with those users only that have anything to do with what was kept.
    fn world_of(&self, world: &World) -> World {
        let concerned = |user: &User| {
            let downlink = world.egress_endpoint(user.slot, user.to.is_ipv4());
            self.slots.contains(&user.slot) || downlink.is_some_and(|at| self.egress.contains(&at))
        };
        World {
            users: world.users.iter().copied().filter(concerned).collect(),
            ..world.clone()
        }
    }
}

/// Writes what concerns the relay to the draft.
fn keep(
    order: &Order,
    known: &Known,
    cast: &Cast,
    draft: &Draft,
    progress: &mut dyn FnMut(u64, Option<u64>),
) -> Result<Kept, RecordError> {
    let selector = Selector::new(&cast.world, cast.captured_mac);
    // Where the keys are at hand they are used now, so that none of them gets into the scenario. Elsewhere the replay
    // will do this; here it shows which users it will need.
    let sealed = !known.grants.is_empty();
    let mut tokens = Resigner::new(&anonymous(&cast.world)).knowing(lab_grants(&known.grants));
    let mut writer = Writer::create(draft.0.join(CAPTURE_FILE))?;
    let mut kept = Kept::default();
    let mut capture = Capture::open(&order.file)?;
    while let Some(packet) = capture.next() {
        // How the capture ends was told by the first look.
        let Ok(mut packet) = packet else { break };
        if selector.concern(&packet) != Concern::Input || !selector.is_for_data_plane(&packet.data) {
            continue;
        }
        let mut anew = packet.data.clone();
        tokens.resign(&mut anew);
        if sealed {
            packet.data = anew;
        }
        packet.interface = 0;
        kept.add(&packet, &cast.world);
        writer.write(&packet)?;
        if kept.packets.is_multiple_of(1 << 12) {
            progress(capture.position(), capture.size());
        }
        if order.limit == Some(kept.packets) {
            break;
        }
    }
    writer.finish()?;
    kept.slots = tokens.used_slots().collect();
    Ok(kept)
}

impl Kept {
    fn add(&mut self, packet: &crate::capture::Packet, world: &World) {
        if self.packets == 0 {
            (self.first_ns, self.link) = (packet.at_ns, packet.link.name());
        }
        self.packets += 1;
        self.cut += u64::from(packet.is_cut());
        self.first_ns = self.first_ns.min(packet.at_ns);
        self.last_ns = self.last_ns.max(packet.at_ns);
        let to = Outline::of(&packet.data).udp_endpoints().map(|(_, to)| to);
        self.egress.extend(to.filter(|to| !world.listeners.contains(to)));
        // "TX uplink relayed"
        let reason = packet.comment.as_deref().and_then(|comment| comment.split(' ').nth(2));
        if let Some(reason) = reason.filter(|reason| Reason::ALL.iter().any(|known| known.name() == *reason)) {
            *self.reasons.entry(reason.to_owned()).or_default() += 1;
        }
    }
}

/// The world with keys of the lab's own.
fn anonymous(world: &World) -> World {
    let mut world = world.clone();
    world.header_key = world.header_key.map(|_| HEADER_KEY);
    for user in &mut world.users {
        (user.salt, user.key) = (
            super::cast::made_up_salt(user.slot),
            super::cast::made_up_key(user.slot),
        );
    }
    world
}

fn list(addresses: &[SocketAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn quoted(text: impl Into<String>) -> String {
    toml::Value::String(text.into()).to_string()
}

fn strings(values: impl IntoIterator<Item = impl ToString>) -> String {
    let quoted: Vec<String> = values.into_iter().map(|value| quoted(value.to_string())).collect();
    format!("[{}]", quoted.join(", "))
}

/// The scenario, as people would write it.
fn scenario_text(order: &Order, world: &World, kept: &Kept, expect: &BTreeMap<String, u64>, sealed: bool) -> String {
    let mut text = format!(
        "#:schema ../../schema.json\nschema = {SCHEMA}\nname = {}\n",
        quoted(title(order, kept))
    );
    let (area, _) = order.name.split_once('/').unwrap_or_default();
    let _ = writeln!(text, "tags = {}\n", strings(["capture", area]));
    relay(world, &mut text);
    destinations(world, &mut text);
    for (number, user) in world.users.iter().enumerate() {
        let anonymous = sealed.then(|| {
            (
                super::cast::made_up_salt(user.slot),
                super::cast::made_up_key(user.slot),
            )
        });
        let _ = write!(
            text,
            "\n[[user]]\nid = {}\nslot = {}\nto = {}\nrate = {}\nburst = {}\n",
            number + 1,
            user.slot,
            quoted(user.to.to_string()),
            user.rate,
            user.burst
        );
        if let Some((salt, key)) = anonymous {
            let _ = writeln!(text, "salt = {salt}\nkey = {}", quoted(hex::encode(key)));
        }
    }
    let resign = if sealed { "" } else { ", resign = true" };
    let _ = write!(
        text,
        "\n[[step]]\nreplay = {{ pcap = {}{resign} }}\n",
        quoted(CAPTURE_FILE)
    );
    if !expect.is_empty() {
        let reasons: Vec<String> = expect
            .iter()
            .map(|(reason, packets)| format!("{reason} = {packets}"))
            .collect();
        let _ = writeln!(text, "expect = {{ reasons = {{ {} }} }}", reasons.join(", "));
    }
    text
}

fn title(order: &Order, kept: &Kept) -> String {
    let file = order
        .file
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    format!("what the relay does with {} packets of {file}", kept.packets)
}

fn relay(world: &World, text: &mut String) {
    let last = u32::from(world.first_egress_port) + u32::from(world.egress_ports) - 1;
    let _ = write!(
        text,
        "[relay]\nlisten = {}\negress = {}\negress_ports = \"{}-{last}\"\nrelay_id = {}\nmax_users = {}\nmac = \"{}\"\n",
        strings(&world.listeners),
        strings(&world.egress),
        world.first_egress_port,
        world.relay_id,
        // As few slots as there are users: snapshots and maps stay small.
        world.users.iter().map(|user| user.slot + 1).max().unwrap_or(1).max(16),
        inspect::mac(world.mac),
    );
    if world.header_key.is_none() {
        text.push_str("header_protection = false\n");
    }
    if world.takes(Carrier::IpOption) {
        let udp = if world.takes(Carrier::Udp) { "\"udp\", " } else { "" };
        let _ = writeln!(text, "carrier = [{udp}\"ip-option\"]");
    }
    if world.drop_unmatched {
        text.push_str("unmatched = \"drop\"\n");
    }
}

/// The destinations whose next hop is not what a scenario gives them by itself.
fn destinations(world: &World, text: &mut String) {
    for destination in &world.destinations {
        let is_used = world.users.iter().any(|user| user.to == destination.to);
        if let Some(hop) = destination.next_hop.filter(|hop| is_used && *hop != NEXT_HOP) {
            let (to, mac) = (destination.to, inspect::mac(hop.mac));
            let _ = write!(text, "\n[[destination]]\nto = \"{to}\"\nmac = \"{mac}\"\n");
        }
    }
}

/// What is known of the capture, and what only people know.
fn readme(
    order: &Order,
    survey: &Survey,
    kept: &Kept,
    cast: &Cast,
    sealed: bool,
    ended_by: Option<&str>,
) -> Result<String, RecordError> {
    let seconds = kept.last_ns.saturating_sub(kept.first_ns) as f64 / 1e9;
    let when =
        Timestamp::from_nanosecond(kept.first_ns.into()).map_or_else(|_| "unknown".to_owned(), |at| at.to_string());
    let tokens = if sealed {
        "sealed anew with keys of this scenario when it was recorded; packet numbers and wrong tags are the capture's"
    } else {
        "as captured; the replay seals them anew (`resign`)"
    };
    let mut text = format!(
        "# {}\n\nTODO: what was seen, what was expected, and who reported it.\n\n\
         | | |\n|---|---|\n\
         | where from | TODO: which host and interface, by whom, with which program and options |\n\
         | file | `{}`, {} packets, link type {} |\n\
         | SHA-256 | `{}` |\n\
         | kept | {} packets to the relay, over {seconds:.6} s from {when} |\n\
         | cut by the snapshot length | {} |\n\
         | relay | {} at {} |\n\
         | tokens | {tokens} |\n\
         | recorded by | packet-lab {} |\n",
        order.name,
        order.file.file_name().unwrap_or_default().to_string_lossy(),
        survey.packets,
        kept.link,
        digest(&order.file)?,
        kept.packets,
        kept.cut,
        list(&cast.world.listeners),
        inspect::mac(cast.captured_mac),
        env!("CARGO_PKG_VERSION"),
    );
    if let Some(why) = ended_by {
        let _ = writeln!(text, "\nThe capture was read up to where it ended early: {why}.");
    }
    if !cast.assumed.is_empty() {
        text.push_str("\nAssumed, since neither the capture nor the command line said it:\n\n");
        for assumed in &cast.assumed {
            let _ = writeln!(text, "- {assumed}");
        }
    }
    text.push_str("\nThe payloads are those of the capture: see that nothing in them is private.\n");
    Ok(text)
}

fn digest(path: &Path) -> Result<String, RecordError> {
    let failed = |error| CaptureError::Open {
        path: path.to_owned(),
        error,
    };
    let mut file = fs::File::open(path).map_err(failed)?;
    let mut digest = Digest256(Sha256::new());
    io::copy(&mut file, &mut digest).map_err(failed)?;
    Ok(hex::encode(digest.0.finalize()))
}

/// Hashes what is written to it.
struct Digest256(Sha256);

impl io::Write for Digest256 {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
