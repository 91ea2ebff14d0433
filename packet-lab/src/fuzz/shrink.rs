//! Making a failure small: first fewer steps, then plainer ones, as long as the backends still disagree about the same.

use super::{
    pair::{About, Mismatch, Pair, Reached},
    sequence::{Action, Sequence},
};
use crate::{
    backend::BackendError,
    craft::{Grant, UdpFrame},
    inspect::UdpFrameView,
};

/// So many runs are tried at most; a failure that is still large then is shown as it is.
const MOST_RUNS: usize = 5_000;

const ETHERNET_BYTES: usize = 14;

/// What is left of a sequence that fails.
pub(super) struct Shrinker<'a> {
    pair: &'a mut Pair,
    mismatch: Mismatch,
    best: Sequence,
    runs: usize,
}

impl<'a> Shrinker<'a> {
    /// Gives the smallest sequence found that fails as `sequence` does, and what it fails about; nothing if this does
    /// not fail again.
    ///
    /// # Errors
    /// If a backend cannot be run.
    pub(super) fn shrink(pair: &'a mut Pair, sequence: &Sequence) -> Result<Option<(Sequence, About)>, BackendError> {
        let Some(mismatch) = pair.run(sequence, true, &mut Reached::new())? else {
            return Ok(None);
        };
        let mut best = sequence.clone();
        best.steps.truncate(mismatch.step + 1);
        let mut shrinker = Self {
            pair,
            mismatch,
            best,
            runs: 0,
        };
        loop {
            let before = shrinker.best.clone();
            shrinker.fewer_steps()?;
            shrinker.fewer_users()?;
            shrinker.less_time()?;
            shrinker.plainer_steps()?;
            if shrinker.best == before || shrinker.runs >= MOST_RUNS {
                return Ok(Some((shrinker.best, mismatch.about)));
            }
        }
    }

    /// Keeps a candidate that still fails, about the same; whether it did.
    fn keep(&mut self, candidate: Sequence) -> Result<bool, BackendError> {
        if self.runs >= MOST_RUNS || candidate == self.best {
            return Ok(false);
        }
        self.runs += 1;
        let mismatch = self.pair.run(&candidate, true, &mut Reached::new())?;
        // About the same: a plainer frame that fails for another reason may show another fault.
        let fails = mismatch
            .is_some_and(|mismatch| (mismatch.about, mismatch.counted) == (self.mismatch.about, self.mismatch.counted));
        if fails {
            self.best = candidate;
        }
        Ok(fails)
    }

    /// Leaves out stretches of steps, halves first, single steps last (delta debugging).
    fn fewer_steps(&mut self) -> Result<(), BackendError> {
        let mut stretch = self.best.steps.len().div_ceil(2);
        while stretch >= 1 {
            let mut at = 0;
            while at < self.best.steps.len() {
                let mut candidate = self.best.clone();
                let end = (at + stretch).min(candidate.steps.len());
                candidate.steps.drain(at..end);
                if !self.keep(candidate)? {
                    at += stretch;
                }
            }
            stretch /= 2;
        }
        Ok(())
    }

    fn fewer_users(&mut self) -> Result<(), BackendError> {
        for at in (0..self.best.world.users.len()).rev() {
            let mut candidate = self.best.clone();
            candidate.world.users.remove(at);
            self.keep(candidate)?;
        }
        Ok(())
    }

    /// Lets steps come at the same time as the ones before them, all later ones that much earlier.
    fn less_time(&mut self) -> Result<(), BackendError> {
        for at in 1..self.best.steps.len() {
            let mut candidate = self.best.clone();
            let pause = candidate.steps[at].at_ns - candidate.steps[at - 1].at_ns;
            for step in &mut candidate.steps[at..] {
                step.at_ns -= pause;
            }
            self.keep(candidate)?;
        }
        Ok(())
    }

    fn plainer_steps(&mut self) -> Result<(), BackendError> {
        for at in 0..self.best.steps.len() {
            match self.best.steps[at].action.clone() {
                Action::Send(frame) => self.plainer_frame(at, frame)?,
                Action::Blocklist(prefixes) => {
                    for gone in 0..prefixes.len() {
                        let mut fewer = prefixes.clone();
                        fewer.remove(gone);
                        self.with_action(at, Action::Blocklist(fewer))?;
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn with_action(&mut self, at: usize, action: Action) -> Result<bool, BackendError> {
        let mut candidate = self.best.clone();
        candidate.steps[at].action = action;
        self.keep(candidate)
    }

    fn plainer_frame(&mut self, at: usize, mut frame: Vec<u8>) -> Result<(), BackendError> {
        for plain in self.plain_forms(&frame) {
            if self.with_action(at, Action::Send(plain.clone()))? {
                frame = plain;
                break;
            }
        }
        for stretch in [64, 16, 4, 1] {
            frame = self.cut(at, frame, stretch)?;
        }
        for stretch in [64, 16, 4, 1] {
            frame = self.zeroed(at, frame, stretch)?;
        }
        Ok(())
    }

    /// The same datagram as an ordinary sender would send it, first with the shortest payload that it can have.
    fn plain_forms(&self, frame: &[u8]) -> Vec<Vec<u8>> {
        let Ok(view) = UdpFrameView::read(frame) else {
            return Vec::new();
        };
        let plain = |payload: &[u8]| UdpFrame::new(view.from, view.to, payload).build();
        let grants = self.grants();
        let opened = grants
            .iter()
            .find_map(|grant| Some((grant, grant.open(&view.payload)?)));
        let mut forms = Vec::new();
        if let Some((grant, pn)) = opened {
            forms.push(plain(&grant.seal(pn, &[])));
            forms.push(plain(&grant.seal(pn, &[0])));
        }
        forms.push(plain(&view.payload));
        // Those are forms of this frame only if they are not larger.
        forms.retain(|form| form.len() <= frame.len() && form != frame);
        forms
    }

    /// The grants of all users that there are in the sequence at some time.
    fn grants(&self) -> Vec<Grant> {
        let world = &self.best.world;
        let published = self.best.steps.iter().filter_map(|step| match step.action {
            Action::Publish(user) => Some(user),
            _ => None,
        });
        let grant = |user: crate::world::User| Grant {
            slot: user.slot,
            salt: user.salt,
            key: user.key,
            header_key: world.header_key,
            relay_id: world.relay_id,
        };
        world.users.iter().copied().chain(published).map(grant).collect()
    }

    fn cut(&mut self, at: usize, mut frame: Vec<u8>, stretch: usize) -> Result<Vec<u8>, BackendError> {
        while frame.len() >= ETHERNET_BYTES + stretch {
            let shorter = frame[..frame.len() - stretch].to_vec();
            if !self.with_action(at, Action::Send(shorter.clone()))? {
                break;
            }
            frame = shorter;
        }
        Ok(frame)
    }

    fn zeroed(&mut self, at: usize, mut frame: Vec<u8>, stretch: usize) -> Result<Vec<u8>, BackendError> {
        for start in (0..frame.len()).step_by(stretch) {
            let end = (start + stretch).min(frame.len());
            if frame[start..end].iter().all(|&byte| byte == 0) {
                continue;
            }
            let mut zeroed = frame.clone();
            zeroed[start..end].fill(0);
            if self.with_action(at, Action::Send(zeroed.clone()))? {
                frame = zeroed;
            }
        }
        Ok(frame)
    }
}
