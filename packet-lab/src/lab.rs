//! One world in several backends, in step.

use std::{fmt, fs, net::SocketAddr, path::Path};

use ipnet::IpNet;

use crate::{
    backend::{Backend, BackendError, Counters, Traffic, UserState, oracle::OracleBackend},
    capture::{CaptureError, Packet, Writer},
    inspect,
    observe::{self, Observation},
    world::{NextHop, User, World},
};

/// Up to this many slots, all are watched for changes; beyond, only those of the world's users.
const WATCH_ALL: u32 = 64;

/// Why a step of a lab failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LabError {
    /// A backend could not do what it was asked.
    #[error("{backend}: {source}")]
    Backend {
        /// The backend.
        backend: &'static str,
        /// Why.
        source: Box<BackendError>,
    },
    /// Two backends did not do the same.
    #[error("{0}")]
    Disagreement(Box<Disagreement>),
    /// No backend takes such a frame.
    #[error("no backend takes a frame of {0} bytes")]
    NoBackend(usize),
}

/// Two backends that did not do the same with a frame.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Disagreement {
    /// A backend.
    pub first: &'static str,
    /// Another.
    pub second: &'static str,
    /// What the first did.
    pub expected: Observation,
    /// What the second did.
    pub actual: Observation,
}

impl Disagreement {
    /// Leaves `input.pcapng`, `expected.pcapng` and `actual.pcapng` in a folder, which is made: what was sent, and what
    /// came out of each backend, with verdict and reason as comments.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn leave_captures(&self, folder: &Path, now_ns: u64) -> Result<(), CaptureError> {
        fs::create_dir_all(folder).map_err(|error| CaptureError::Write {
            path: folder.to_owned(),
            error,
        })?;
        let write = |name: &str, frame: &[u8], comment: String| {
            let mut writer = Writer::create(folder.join(name))?;
            writer.write(&Packet::new(now_ns, frame.to_vec()).commented(comment))?;
            writer.finish().map(drop)
        };
        let (first, second) = (self.first, self.second);
        write(
            "input.pcapng",
            &self.expected.input,
            format!("{first} and {second} disagree about this"),
        )?;
        write(
            "expected.pcapng",
            &self.expected.output,
            format!("{first}: {}", self.expected.summary()),
        )?;
        write(
            "actual.pcapng",
            &self.actual.output,
            format!("{second}: {}", self.actual.summary()),
        )
    }
}

impl fmt::Display for Disagreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (first, second) = (self.first, self.second);
        writeln!(
            f,
            "{first} and {second} disagree about\n{}",
            inspect::describe(&self.expected.input)
        )?;
        for (field, expected, actual) in observe::differences(&self.expected, &self.actual) {
            writeln!(f, "  {field}:\n    {first}: {expected}\n    {second}: {actual}")?;
        }
        Ok(())
    }
}

/// A world and the backends that it is put into.
pub struct Lab {
    world: World,
    backends: Vec<Box<dyn Backend>>,
    watched: Watched,
}

/// What is looked at before and after each frame.
struct Watched {
    slots: Vec<u32>,
    /// None where destinations have no limit.
    destinations: Vec<SocketAddr>,
}

impl Watched {
    fn of(world: &World) -> Self {
        let slots = if world.max_users <= WATCH_ALL {
            (0..world.max_users).collect()
        } else {
            world.users.iter().map(|user| user.slot).collect()
        };
        let limited = world.destinations.iter().filter(|_| world.destination_limit.is_some());
        Self {
            slots,
            destinations: limited.map(|destination| destination.to).collect(),
        }
    }
}

impl Lab {
    /// A lab of these backends, each made for this world. Where two disagree, the oracle says what was expected; without
    /// it, whichever comes first.
    #[must_use]
    pub fn new(world: World, mut backends: Vec<Box<dyn Backend>>) -> Self {
        backends.sort_by_key(|backend| backend.name() != OracleBackend::NAME);
        Self {
            watched: Watched::of(&world),
            world,
            backends,
        }
    }

    /// The world, as it was at the start.
    #[must_use]
    pub fn world(&self) -> &World {
        &self.world
    }

    /// The backends that cannot be given such a frame.
    #[must_use]
    pub fn not_taking(&self, frame: &[u8]) -> Vec<&'static str> {
        let unable = self.backends.iter().filter(|backend| !backend.takes(frame));
        unable.map(|backend| backend.name()).collect()
    }

    /// What is kept of the user in a slot, which exists, in the first backend.
    #[must_use]
    pub fn user(&self, slot: u32) -> Option<UserState> {
        self.backends.first().map(|backend| backend.user(slot))
    }

    /// Gives every backend this frame at this time on the lab's clock, by the first interface.
    ///
    /// # Errors
    /// If a backend cannot be run, or two do not do the same.
    pub fn step(&mut self, now_ns: u64, frame: &[u8]) -> Result<Observation, LabError> {
        self.step_on(now_ns, 0, frame)
    }

    /// Gives every backend this frame at this time on the lab's clock, by the interface with this number, which exists.
    ///
    /// # Errors
    /// If a backend cannot be run, or two do not do the same.
    pub fn step_on(&mut self, now_ns: u64, interface: u8, frame: &[u8]) -> Result<Observation, LabError> {
        let watched = &self.watched;
        let mut first: Option<(&'static str, Observation)> = None;
        for backend in self.backends.iter_mut().filter(|backend| backend.takes(frame)) {
            let name = backend.name();
            let observed = observe(backend.as_mut(), watched, now_ns, interface, frame).map_err(failed(name))?;
            match &first {
                None => first = Some((name, observed)),
                Some((_, expected)) if *expected == observed => {}
                Some((other, expected)) => {
                    return Err(LabError::Disagreement(Box::new(Disagreement {
                        first: other,
                        second: name,
                        expected: expected.clone(),
                        actual: observed,
                    })));
                }
            }
        }
        first
            .map(|(_, observed)| observed)
            .ok_or(LabError::NoBackend(frame.len()))
    }

    /// Publishes a user, replacing whoever has the slot.
    ///
    /// # Errors
    /// As [`Backend::publish`].
    pub fn publish(&mut self, user: &User) -> Result<(), LabError> {
        self.each(|backend| backend.publish(user))
    }

    /// Takes the user out of a slot.
    ///
    /// # Errors
    /// None.
    pub fn remove(&mut self, slot: u32) -> Result<(), LabError> {
        self.each(|backend| {
            backend.remove(slot);
            Ok(())
        })
    }

    /// Sets or clears the next hop of a destination.
    ///
    /// # Errors
    /// As [`Backend::set_next_hop`].
    pub fn set_next_hop(&mut self, to: SocketAddr, next_hop: Option<NextHop>) -> Result<(), LabError> {
        self.each(|backend| backend.set_next_hop(to, next_hop))
    }

    /// Replaces the blocklist.
    ///
    /// # Errors
    /// As [`Backend::set_blocklist`].
    pub fn set_blocklist(&mut self, prefixes: &[IpNet]) -> Result<(), LabError> {
        self.each(|backend| backend.set_blocklist(prefixes))
    }

    fn each(&mut self, change: impl Fn(&mut dyn Backend) -> Result<(), BackendError>) -> Result<(), LabError> {
        self.backends.iter_mut().try_for_each(|backend| {
            let name = backend.name();
            change(backend.as_mut()).map_err(failed(name))
        })
    }
}

fn failed(backend: &'static str) -> impl FnOnce(BackendError) -> LabError {
    move |source| LabError::Backend {
        backend,
        source: Box::new(source),
    }
}

fn observe(
    backend: &mut dyn Backend,
    watched: &Watched,
    now_ns: u64,
    interface: u8,
    frame: &[u8],
) -> Result<Observation, BackendError> {
    let Watched { slots, destinations } = watched;
    let users = |backend: &dyn Backend| -> Vec<UserState> { slots.iter().map(|&slot| backend.user(slot)).collect() };
    let tats =
        |backend: &dyn Backend| -> Vec<u64> { destinations.iter().map(|&to| backend.destination_tat(to)).collect() };
    let tats_before = tats(backend);
    let (users_before, counters_before, answers_before) = (users(backend), backend.counters()?, backend.answers()?);
    let processed = backend.process_on(now_ns, interface, frame)?;
    let (users_after, counters_after) = (users(backend), backend.counters()?);
    let changed = slots.iter().copied().zip(users_before.into_iter().zip(users_after));
    let spent = destinations.iter().zip(tats_before.into_iter().zip(tats(backend)));
    Ok(Observation {
        verdict: processed.verdict,
        ingress: interface,
        egress: processed.egress,
        input: frame.to_vec(),
        output: processed.frame,
        users: changed
            .filter(|(_, (before, after))| before != after)
            .map(|(slot, (before, after))| (slot, before, after))
            .collect(),
        destinations: spent
            .filter(|(_, (before, after))| before != after)
            .map(|(to, (before, after))| (*to, before, after))
            .collect(),
        counters: moved(&counters_before, &counters_after),
        answers: backend.answers()?.wrapping_sub(answers_before),
    })
}

/// The counters that are not what they were. One that fell shows as a number beyond any real one.
pub(crate) fn moved(before: &Counters, after: &Counters) -> Counters {
    let keys = before.keys().chain(after.keys()).copied();
    let value = |counters: &Counters, key| counters.get(&key).copied().unwrap_or_default();
    let difference = |key| {
        let (old, new) = (value(before, key), value(after, key));
        let traffic = Traffic {
            packets: new.packets.wrapping_sub(old.packets),
            bytes: new.bytes.wrapping_sub(old.bytes),
        };
        (key, traffic)
    };
    keys.map(difference)
        .filter(|(_, traffic)| *traffic != Traffic::default())
        .collect()
}
