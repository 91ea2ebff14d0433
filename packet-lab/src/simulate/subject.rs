//! The backend that a run goes through, made to say of each packet what became of it and why, as cheaply as it can.

use aya::maps::{MapData, RingBuf};
use relay_ebpf::{
    layout::DropEvent,
    verdict::{Direction, Reason},
};

use crate::{
    Verdict,
    backend::{Backend, BackendError, Counters, Processed, Traffic, counter, kernel::KernelBackend},
    inspect::UdpFrameView,
    lab::moved,
    world::World,
};

/// What became of one packet.
#[derive(Clone, Debug)]
pub struct Treated {
    /// What the kernel was told, and the frame afterwards.
    pub processed: Processed,
    /// What was counted; `None` if that was not exactly this packet, once.
    pub counted: Option<(Direction, Reason)>,
}

/// A backend under simulation.
pub struct Subject {
    backend: Box<dyn Backend>,
    reasons: Reasons,
}

/// Where the reason of a packet is read.
enum Reasons {
    /// In the counters: what moved since the last packet.
    Counters(Counters),
    /// In the program's ring of drop events, without a system call; what is not dropped shows its reason itself.
    Events(RingBuf<MapData>),
}

impl Subject {
    /// Any backend: its counters are read after each packet.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn new(backend: Box<dyn Backend>) -> Result<Self, BackendError> {
        let reasons = Reasons::Counters(backend.counters()?);
        Ok(Self { backend, reasons })
    }

    /// The kernel: one system call a packet. Reading its counters would take one for each reason, so that every drop
    /// is made an event instead.
    ///
    /// # Errors
    /// As [`KernelBackend::new`].
    pub fn kernel(world: &World) -> Result<Self, BackendError> {
        let world = World {
            event_sample: 1,
            ..world.clone()
        };
        let mut kernel = KernelBackend::new(&world)?;
        let events = kernel.loaded().maps.take_events();
        let events = events.expect("nobody else takes the events of a program just loaded");
        Ok(Self {
            backend: Box::new(kernel),
            reasons: Reasons::Events(events),
        })
    }

    /// The backend.
    pub fn backend(&mut self) -> &mut dyn Backend {
        self.backend.as_mut()
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.backend.name()
    }

    /// All counters.
    pub(super) fn counters(&self) -> Result<Counters, BackendError> {
        self.backend.counters()
    }

    /// Gives the backend a frame at a time on the lab's clock.
    pub(super) fn treat(&mut self, now_ns: u64, frame: &[u8]) -> Result<Treated, BackendError> {
        let processed = self.backend.process(now_ns, frame)?;
        let counted = match &mut self.reasons {
            Reasons::Counters(last) => {
                let now = self.backend.counters()?;
                let counted = only_moved(last, &now, frame);
                *last = now;
                counted
            }
            Reasons::Events(events) => match processed.verdict {
                Verdict::Drop => event(events),
                _ => sent_or_passed(frame, &processed),
            },
        };
        Ok(Treated { processed, counted })
    }
}

/// The counter that moved, if it was one, by this frame.
fn only_moved(before: &Counters, after: &Counters, frame: &[u8]) -> Option<(Direction, Reason)> {
    let moved = moved(before, after);
    let once = Traffic {
        packets: 1,
        bytes: frame.len() as u64,
    };
    let mut found = Direction::ALL
        .into_iter()
        .flat_map(|direction| Reason::ALL.into_iter().map(move |reason| (direction, reason)))
        .filter(|&(direction, reason)| moved.get(&counter(direction, reason)) == Some(&once));
    let first = found.next()?;
    (moved.len() == 1).then_some(first)
}

/// The event of the drop that just was.
fn event(events: &mut RingBuf<MapData>) -> Option<(Direction, Reason)> {
    const REASON: usize = std::mem::offset_of!(DropEvent, reason);
    const DIRECTION: usize = std::mem::offset_of!(DropEvent, direction);

    let item = events.next()?;
    let (reason, direction) = (*item.get(REASON)?, *item.get(DIRECTION)?);
    let direction = Direction::ALL.get(usize::from(direction))?;
    Some((*direction, *Reason::ALL.get(usize::from(reason))?))
}

/// The reason of what was not dropped, which shows in what became of it: a reflected packet goes where it came from,
/// and what is for a listener goes uplink. A run's world drops what is unsolicited, so that only what is unrelated
/// passes. The counters, read now and then, must agree.
fn sent_or_passed(frame: &[u8], processed: &Processed) -> Option<(Direction, Reason)> {
    if processed.verdict == Verdict::Pass {
        return Some((Direction::Uplink, Reason::Unrelated));
    }
    let (before, after) = (
        UdpFrameView::read(frame).ok()?,
        UdpFrameView::read(&processed.frame).ok()?,
    );
    Some(if (before.from, before.to) == (after.to, after.from) {
        (Direction::Uplink, Reason::Ping)
    } else if after.payload.len() == before.payload.len() {
        (Direction::Downlink, Reason::Relayed)
    } else {
        (Direction::Uplink, Reason::Relayed)
    })
}
