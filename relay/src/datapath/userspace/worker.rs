//! One thread: waits for sockets, decides about what they receive, sends what it became.

use std::{net::SocketAddr, sync::Arc};

use nix::{
    errno::Errno,
    sys::epoll::{Epoll, EpollEvent, EpollTimeout},
};
use relay_ebpf::{
    Outcome, downlink,
    host::HostMemory,
    layout::{DropEvent, SlotEntry},
    platform::{Memory as _, Platform as _},
    verdict::{Direction, Reason, Verdict},
    wire::Frame as _,
};
use tokio::sync::mpsc;

use super::{
    batch::{Batch, Departing, Exit, Message},
    counts::Counts,
    engine::{Engine, Live, View},
    frame::{Arrival, DatagramFrame},
    socket::Socket,
};

/// Sockets that one wait tells of.
const READY: usize = 64;

/// What an event of epoll is about, in its 64 bits.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Source {
    /// The listener with this index.
    Listener(u32),
    /// The egress socket of this slot.
    Egress(u32),
    /// The relay is to stop.
    Stop,
}

impl Source {
    const LISTENER: u64 = 1 << 32;
    const STOP: u64 = 2 << 32;

    /// As the 64 bits.
    pub(super) const fn word(self) -> u64 {
        match self {
            Self::Listener(index) => Self::LISTENER | index as u64,
            Self::Egress(slot) => slot as u64,
            Self::Stop => Self::STOP,
        }
    }

    const fn from_word(word: u64) -> Self {
        match word & !0xffff_ffff {
            0 => Self::Egress(word as u32),
            Self::LISTENER => Self::Listener(word as u32),
            _ => Self::Stop,
        }
    }
}

/// Whether a thread goes on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Turn {
    /// There may be more.
    Again,
    /// The relay is to stop.
    Stop,
}

/// What a thread is given.
pub struct Station {
    pub(super) engine: Arc<Engine>,
    pub(super) index: usize,
    pub(super) epoll: Arc<Epoll>,
    pub(super) counts: Arc<Counts>,
    pub(super) events: mpsc::Sender<DropEvent>,
    pub(super) segmentation: bool,
}

impl Station {
    /// Begins to work, in the thread that does.
    #[must_use]
    pub fn begin(self) -> Worker {
        Worker {
            batch: Batch::new(self.segmentation),
            ready: vec![EpollEvent::empty(); READY],
            station: self,
        }
    }
}

/// A thread's work. It stays in its thread.
pub struct Worker {
    station: Station,
    batch: Batch,
    ready: Vec<EpollEvent>,
}

impl Worker {
    /// Waits for datagrams, and relays those that there are.
    ///
    /// # Errors
    /// If the kernel cannot be waited for.
    pub fn turn(&mut self, patience: EpollTimeout) -> Result<Turn, Errno> {
        let count = match self.station.epoll.wait(&mut self.ready, patience) {
            Err(Errno::EINTR) => return Ok(Turn::Again),
            waited => waited?,
        };
        let Self { station, batch, ready } = self;
        let live = station.engine.live();
        let desk = Desk {
            view: View::now(&station.engine, &live)?,
            listeners: live.listeners.get(station.index).map_or(&[], Vec::as_slice),
            counts: &station.counts,
            events: &station.events,
        };
        let mut turn = Turn::Again;
        for event in &ready[..count] {
            let source = Source::from_word(event.data());
            if source == Source::Stop {
                turn = Turn::Stop;
                continue;
            }
            // Gone, if it was closed since.
            let Some(socket) = desk.socket(source) else { continue };
            match batch.receive(socket) {
                Ok(numbers) => batch.decide(numbers, |message, payload, start| {
                    desk.decide(source, socket.address, message, payload, start)
                }),
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(error) => tracing::debug!(%error, address = %socket.address, "receiving"),
            }
            if batch.is_full() {
                desk.send(batch);
            }
        }
        desk.send(batch);
        Ok(turn)
    }
}

/// Where packets are decided about during one turn.
struct Desk<'a> {
    view: View<'a>,
    listeners: &'a [Socket],
    counts: &'a Counts,
    events: &'a mpsc::Sender<DropEvent>,
}

impl<'a> Desk<'a> {
    fn live(&self) -> &'a Live {
        self.view.live
    }

    fn socket(&self, source: Source) -> Option<&'a Socket> {
        match source {
            Source::Listener(index) => self.listeners.get(index as usize),
            Source::Egress(slot) => self.live().egress(slot),
            Source::Stop => None,
        }
    }

    /// Decides about a datagram. Returns it if it is to be sent; one that is not is done with.
    fn decide(
        &self,
        source: Source,
        address: SocketAddr,
        message: &Message,
        payload: &mut [u8],
        start: usize,
    ) -> Option<Departing> {
        let arrival = Arrival {
            from: message.from?,
            to: address,
            hop_limit: message.hop_limit,
            class: message.class,
        };
        let end = start + payload.len();
        let settings = self.view.settings();
        let timer = self.counts.start_timer(settings.latency_sample);
        let mut frame = DatagramFrame::new(&arrival, payload);
        let frame_bytes = frame.bytes();
        let outcome = relay_ebpf::process(&mut frame, &self.view);
        if let Some(started) = timer {
            self.counts.stop_timer(started);
        }
        if outcome.verdict(settings.drop_unmatched != 0) != Verdict::Tx {
            self.end(outcome, &frame, frame_bytes);
            return None;
        }
        let departure = frame.departure()?;
        let (exit, slot) = match (outcome.direction, outcome.reason, source) {
            (Direction::Uplink, Reason::Ping, Source::Listener(index)) => (Exit::Listener(index), None),
            (Direction::Uplink, ..) => {
                let slot = downlink::slot(settings, departure.from.0, departure.from.1)?;
                (Exit::Egress(slot), Some(slot))
            }
            (Direction::Downlink, _, Source::Egress(slot)) => {
                (Exit::Listener(self.view.live.listener(departure.from)?), Some(slot))
            }
            (Direction::Downlink, ..) => return None,
        };
        Some(Departing {
            exit,
            to: departure.to,
            hop_limit: departure.hop_limit,
            class: message.class,
            payload: start + departure.payload..end,
            outcome,
            slot,
            frame_bytes,
        })
    }

    /// Counts a packet that is not sent, and reports a sample of those that are dropped.
    fn end(&self, outcome: Outcome, frame: &DatagramFrame<'_>, frame_bytes: usize) {
        let nth = self.counts.count(outcome, frame_bytes);
        let settings = self.view.settings();
        let sample = u64::from(settings.event_sample);
        let is_dropped = outcome.verdict(settings.drop_unmatched != 0) == Verdict::Drop;
        if !is_dropped || sample == 0 || nth & (sample - 1) != 0 {
            return;
        }
        let (bytes, captured) = frame.excerpt();
        // A full channel loses it: drops are counted, events are samples.
        let _ = self.events.try_send(DropEvent {
            now_ns: self.view.now_ns(),
            reason: outcome.reason as u8,
            direction: outcome.direction as u8,
            captured: captured as u16,
            length: frame_bytes as u32,
            bytes,
        });
    }

    /// Sends what is to be sent, and counts it: only the kernel knows in the end what fits and whether there is a way.
    fn send(&self, batch: &mut Batch) {
        let by = |exit| match exit {
            Exit::Listener(index) => self.socket(Source::Listener(index)),
            Exit::Egress(slot) => self.socket(Source::Egress(slot)),
        };
        batch.send(by, |departing, sent| {
            let mut outcome = departing.outcome;
            if let Err(error) = sent {
                outcome.reason = match error {
                    Errno::EMSGSIZE => Reason::TooBig,
                    _ => Reason::DestinationUnresolved,
                };
                self.take_back(departing);
            }
            self.counts.count(outcome, departing.frame_bytes);
        });
    }

    /// What was counted as relayed for the user was not.
    fn take_back(&self, departing: &Departing) {
        let Some(SlotEntry { state, .. }) = departing.slot.and_then(|slot| self.view.slot(slot)) else {
            return;
        };
        let (packets, bytes) = match departing.outcome.direction {
            Direction::Uplink => (&state.uplink_packets, &state.uplink_bytes),
            Direction::Downlink => (&state.downlink_packets, &state.downlink_bytes),
        };
        HostMemory.add(packets, 1_u64.wrapping_neg());
        HostMemory.add(bytes, (departing.payload.len() as u64).wrapping_neg());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_told_apart_by_their_word() {
        for source in [
            Source::Listener(7),
            Source::Egress(u32::MAX),
            Source::Egress(0),
            Source::Stop,
        ] {
            assert_eq!(Source::from_word(source.word()), source);
        }
    }
}
