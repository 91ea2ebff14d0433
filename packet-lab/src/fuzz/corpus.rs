//! What a run begins with besides what it makes itself: frames of captures, and scenarios.

use std::{
    cell::RefCell,
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    rc::Rc,
};

use ipnet::IpNet;

use super::sequence::{Action, Sequence, Step};
use crate::{
    backend::{Backend, BackendError, Counters, Processed, UserState, oracle::OracleBackend},
    capture::{Capture, CaptureError},
    scenario::{FILE_NAME, Scenario, ScenarioError, rehearse},
    world::{NextHop, User},
};

/// Frames taken of captures at most.
const MOST_FRAMES: usize = 10_000;
/// Steps taken of a scenario at most.
const MOST_STEPS: usize = 300;
/// Scenarios with more slots are left out: what is kept of all users is compared.
const MOST_SLOTS: u32 = 64;

/// Why a corpus cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CorpusError {
    /// There is nothing in it.
    #[error("{0} holds neither scenarios nor captures: name a capture, a scenario, or a folder with some")]
    Empty(PathBuf),
    /// A folder cannot be read.
    #[error("reading {path}: {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A capture cannot be read.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// A scenario cannot be read.
    #[error(transparent)]
    Scenario(#[from] ScenarioError),
}

/// Frames and sequences.
#[derive(Clone, Debug, Default)]
pub struct Corpus {
    /// Sent now and then, as they are, damaged, or under a user's token.
    pub frames: Vec<Vec<u8>>,
    /// Some worlds are theirs; what happens in them is varied.
    pub sequences: Vec<Sequence>,
}

impl Corpus {
    /// Adds what is in a file or folder: scenarios of the relay, and captures.
    ///
    /// # Errors
    /// If something there cannot be read, or there is nothing.
    pub fn add(&mut self, path: &Path) -> Result<(), CorpusError> {
        let files = files(path).map_err(|source| CorpusError::Read {
            path: path.to_owned(),
            source,
        })?;
        if files.is_empty() {
            return Err(CorpusError::Empty(path.to_owned()));
        }
        for file in files {
            if file.file_name().is_some_and(|name| name == FILE_NAME) {
                self.add_scenario(&Scenario::load(&file)?);
            } else {
                self.add_capture(&file)?;
            }
        }
        Ok(())
    }

    fn add_capture(&mut self, path: &Path) -> Result<(), CorpusError> {
        let room = MOST_FRAMES.saturating_sub(self.frames.len());
        for packet in Capture::open(path)?.take(room) {
            self.frames.push(packet?.data);
        }
        Ok(())
    }

    /// What happens in a scenario, as the backends see it. Those of other programs, without destinations or with very
    /// many slots are left out.
    fn add_scenario(&mut self, scenario: &Scenario) {
        if scenario.file.program.is_some() {
            return;
        }
        let steps = Rc::new(RefCell::new(Vec::new()));
        let written = Rc::clone(&steps);
        let world = rehearse(scenario, move |world| {
            let oracle = OracleBackend::new(world)?;
            Ok(Box::new(Recorder {
                oracle,
                now_ns: 0,
                steps: written,
            }))
        });
        let Ok(world) = world else { return };
        let steps = steps.take();
        if world.destinations.is_empty() || world.max_users > MOST_SLOTS || world.egress_ports == 0 {
            return;
        }
        self.sequences.push(Sequence { world, steps });
    }
}

/// All captures and scenarios in a folder and those below it, in order of path; a file is taken as it is.
fn files(path: &Path) -> io::Result<Vec<PathBuf>> {
    if fs::metadata(path)?.is_file() {
        return Ok(vec![path.to_owned()]);
    }
    let mut entries = fs::read_dir(path)?
        .map(|entry| Ok(entry?.path()))
        .collect::<io::Result<Vec<_>>>()?;
    entries.sort();
    let mut found = Vec::new();
    for entry in entries {
        let extension = entry.extension().and_then(|extension| extension.to_str());
        if entry.is_dir() {
            found.extend(files(&entry)?);
        } else if matches!(extension, Some("pcap" | "pcapng")) || entry.ends_with(FILE_NAME) {
            found.push(entry);
        }
    }
    Ok(found)
}

/// Writes down all that a backend is asked to do.
struct Recorder {
    oracle: OracleBackend,
    now_ns: u64,
    steps: Rc<RefCell<Vec<Step>>>,
}

impl Recorder {
    fn record(&mut self, action: Action) {
        let mut steps = self.steps.borrow_mut();
        if steps.len() < MOST_STEPS {
            steps.push(Step {
                at_ns: self.now_ns,
                action,
            });
        }
    }
}

impl Backend for Recorder {
    fn name(&self) -> &'static str {
        "recorder"
    }

    fn takes(&self, _frame: &[u8]) -> bool {
        true
    }

    fn process_on(&mut self, now_ns: u64, interface: u8, frame: &[u8]) -> Result<Processed, BackendError> {
        self.now_ns = now_ns;
        self.record(Action::Send(frame.to_vec()));
        self.oracle.process_on(now_ns, interface, frame)
    }

    fn counters(&self) -> Result<Counters, BackendError> {
        self.oracle.counters()
    }

    fn answers(&self) -> Result<u64, BackendError> {
        self.oracle.answers()
    }

    fn user(&self, slot: u32) -> UserState {
        self.oracle.user(slot)
    }

    fn destination_tat(&self, to: SocketAddr) -> u64 {
        self.oracle.destination_tat(to)
    }

    fn forget_shared_limits(&mut self) {
        self.oracle.forget_shared_limits();
    }

    fn publish(&mut self, user: &User) -> Result<(), BackendError> {
        self.record(Action::Publish(*user));
        self.oracle.publish(user)
    }

    fn remove(&mut self, slot: u32) {
        self.record(Action::Remove(slot));
        self.oracle.remove(slot);
    }

    fn set_next_hop(&mut self, to: SocketAddr, next_hop: Option<NextHop>) -> Result<(), BackendError> {
        self.record(Action::NextHop(to, next_hop));
        self.oracle.set_next_hop(to, next_hop)
    }

    fn set_blocklist(&mut self, prefixes: &[IpNet]) -> Result<(), BackendError> {
        self.record(Action::Blocklist(prefixes.to_vec()));
        self.oracle.set_blocklist(prefixes)
    }
}
