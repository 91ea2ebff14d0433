//! The oracle and the backend that is judged by it, in step.

use std::collections::BTreeMap;

use relay_ebpf::verdict::{Direction, Reason};

use super::sequence::{Action, Sequence, Step};
use crate::{
    Verdict,
    backend::{Backend, BackendError, Counters, counter, oracle::OracleBackend},
    lab::moved,
    world::World,
};

/// How often each outcome was reached.
pub type Reached = BTreeMap<(u8, Reason, Verdict), u64>;

/// What two backends do not agree about, first seen after this step.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Mismatch {
    /// Index of the step.
    pub step: usize,
    /// What.
    pub about: About,
    /// What the oracle counts the last frame as.
    pub counted: Option<(Direction, Reason)>,
}

/// What two backends can disagree about.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum About {
    /// The verdict.
    Verdict,
    /// The frame afterwards.
    Frame,
    /// A user's state.
    User,
    /// What is spent of a destination's limit.
    Destination,
    /// The counters, and so the reason.
    Counters,
}

/// The oracle and another backend in one world. Starting over costs little: programs stay loaded.
pub struct Pair {
    world: World,
    oracle: OracleBackend,
    subject: Box<dyn Backend>,
    before: [Counters; 2],
    /// ICMP messages sent before the sequence.
    answers: [u64; 2],
    blocked: bool,
}

impl Pair {
    /// Both in this world.
    ///
    /// # Errors
    /// If the world does not suit the oracle.
    pub fn new(world: &World, subject: Box<dyn Backend>) -> Result<Self, BackendError> {
        Ok(Self {
            oracle: OracleBackend::new(world)?,
            before: [Counters::new(), subject.counters()?],
            answers: [0, subject.answers()?],
            subject,
            world: world.clone(),
            blocked: false,
        })
    }

    /// Runs a sequence from its start: only users and steps may differ from the last one's. Everything is compared
    /// after each step if `closely`; else what a packet touches after each, and everything at the end. Gives the first
    /// mismatch.
    ///
    /// # Errors
    /// If a backend cannot be run.
    pub fn run(
        &mut self,
        sequence: &Sequence,
        closely: bool,
        reached: &mut Reached,
    ) -> Result<Option<Mismatch>, BackendError> {
        self.restart(sequence)?;
        let last = sequence.steps.len().saturating_sub(1);
        for (index, step) in sequence.steps.iter().enumerate() {
            let mut about = self.step(step, reached)?;
            if about.is_none() && (closely || index == last) {
                about = self.compare_everything()?;
            }
            if let Some(about) = about {
                return Ok(Some(Mismatch {
                    step: index,
                    about,
                    counted: self.oracle.last(),
                }));
            }
        }
        Ok(None)
    }

    /// Makes the world what it is at the start of the sequence.
    fn restart(&mut self, sequence: &Sequence) -> Result<(), BackendError> {
        let Some(anywhere) = self.world.destinations.first().map(|destination| destination.to) else {
            return Ok(());
        };
        for slot in 0..self.world.max_users {
            // Nothing is remembered of a user who was just published.
            let nobody = crate::world::User {
                slot,
                salt: 0,
                key: [0; 16],
                to: anywhere,
                rate: 1,
                burst: 1,
                down_limit: None,
                expires_ns: None,
            };
            self.act(&Action::Publish(nobody))?;
            self.act(&Action::Remove(slot))?;
        }
        for destination in self.world.destinations.clone() {
            self.act(&Action::NextHop(destination.to, destination.next_hop))?;
        }
        self.oracle.forget_shared_limits();
        self.subject.forget_shared_limits();
        if self.blocked {
            self.act(&Action::Blocklist(Vec::new()))?;
        }
        for user in &sequence.world.users {
            self.act(&Action::Publish(*user))?;
        }
        self.before = [self.oracle.counters()?, self.subject.counters()?];
        self.answers = [self.oracle.answers()?, self.subject.answers()?];
        Ok(())
    }

    /// One step; what of it can be compared at little cost is.
    fn step(&mut self, step: &Step, reached: &mut Reached) -> Result<Option<About>, BackendError> {
        let Action::Send(frame) = &step.action else {
            self.act(&step.action)?;
            return Ok(None);
        };
        if !self.subject.takes(frame) {
            return Ok(None);
        }
        let expected = self.oracle.process(step.at_ns, frame)?;
        let actual = self.subject.process(step.at_ns, frame)?;
        let (direction, reason) = self.oracle.last().unwrap_or((Direction::Uplink, Reason::Unrelated));
        *reached.entry((direction as u8, reason, expected.verdict)).or_default() += 1;
        if expected.verdict != actual.verdict {
            return Ok(Some(About::Verdict));
        }
        if expected.frame != actual.frame {
            return Ok(Some(About::Frame));
        }
        if let Some(slot) = self.oracle.last_slot()
            && self.oracle.user(slot) != self.subject.user(slot)
        {
            return Ok(Some(About::User));
        }
        let counted = |backend: &dyn Backend, before: &Counters| -> Result<u64, BackendError> {
            let before = before
                .get(&counter(direction, reason))
                .map_or(0, |traffic| traffic.packets);
            Ok(backend.counter(direction, reason)?.packets.wrapping_sub(before))
        };
        let [oracle, subject] = &self.before;
        let alike = counted(&self.oracle, oracle)? == counted(self.subject.as_ref(), subject)?;
        Ok((!alike).then_some(About::Counters))
    }

    fn act(&mut self, action: &Action) -> Result<(), BackendError> {
        let both: [&mut dyn Backend; 2] = [&mut self.oracle, self.subject.as_mut()];
        for backend in both {
            match action {
                Action::Send(_) => {}
                Action::Publish(user) => backend.publish(user)?,
                Action::Remove(slot) => backend.remove(*slot),
                Action::NextHop(to, hop) => backend.set_next_hop(*to, *hop)?,
                Action::Blocklist(prefixes) => backend.set_blocklist(prefixes)?,
            }
        }
        if let Action::Blocklist(prefixes) = action {
            self.blocked = !prefixes.is_empty();
        }
        Ok(())
    }

    fn compare_everything(&mut self) -> Result<Option<About>, BackendError> {
        if (0..self.world.max_users).any(|slot| self.oracle.user(slot) != self.subject.user(slot)) {
            return Ok(Some(About::User));
        }
        let mut destinations = self.world.destinations.iter().map(|destination| destination.to);
        if destinations.any(|to| self.oracle.destination_tat(to) != self.subject.destination_tat(to)) {
            return Ok(Some(About::Destination));
        }
        let [oracle, subject] = &self.before;
        let expected = moved(oracle, &self.oracle.counters()?);
        let actual = moved(subject, &self.subject.counters()?);
        let [oracle, subject] = self.answers;
        let answers = self.oracle.answers()?.wrapping_sub(oracle) != self.subject.answers()?.wrapping_sub(subject);
        Ok((expected != actual || answers).then_some(About::Counters))
    }
}
