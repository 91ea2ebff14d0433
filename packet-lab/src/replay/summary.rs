//! What a replay did, in numbers.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    time::Duration,
};

use relay_ebpf::verdict::{Direction, Reason};
use serde::Serialize;

use super::{Concern, Tally};
use crate::{
    backend::{Backend, BackendError, Counters, Processed, Traffic, counter},
    capture::{CaptureError, Packet},
    inspect::Outline,
};

/// Senders beyond these are not told apart, so that memory stays bounded.
const MOST_TALKERS: usize = 65_536;
/// So many are reported.
const TOP_TALKERS: usize = 10;

/// Packets of one direction, reason and verdict.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Row {
    /// "uplink" or "downlink"; none if no counter moved.
    pub direction: Option<&'static str>,
    /// The reason's name; none if no counter moved.
    pub reason: Option<&'static str>,
    /// The verdict's name.
    pub verdict: &'static str,
    /// Packets.
    pub packets: u64,
    /// Bytes of the frames as they came.
    pub bytes: u64,
}

/// Somebody who sent much.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Talker {
    /// Whose packets.
    pub address: IpAddr,
    /// Packets.
    pub packets: u64,
    /// Bytes of their frames.
    pub bytes: u64,
}

/// What a replay did.
#[derive(Debug, Default, Serialize)]
pub struct Summary {
    /// Packets that the backend was given.
    pub packets: u64,
    /// Bytes of their frames.
    pub bytes: u64,
    /// Packets that the relay itself had sent.
    pub from_relay: u64,
    /// Packets that were sent to others than the relay.
    pub to_others: u64,
    /// Packets for the relay that the backend cannot be given: too short or too long for it.
    pub not_taken: u64,
    /// Packets that the backend was given, of which the capture held only the beginning.
    pub cut: u64,
    /// By how many packets counters moved beyond one for each packet; anything but 0 is a fault of the backend.
    pub stray_counts: u64,
    /// What became of them.
    pub rows: Vec<Row>,
    /// Who sent most of them.
    pub talkers: Vec<Talker>,
    /// What re-sealing did, if it was asked for.
    pub resigned: Option<Tally>,
    /// How much time passed on the lab's clock, in nanoseconds.
    pub span_ns: u64,
    /// How long it took, in seconds.
    pub elapsed_s: f64,
    /// Packets per second of that.
    pub packets_per_second: f64,
    /// Why not all of the capture was read.
    #[serde(serialize_with = "as_text")]
    pub ended_by: Option<CaptureError>,
}

#[expect(clippy::ref_option, reason = "serde gives it so")]
fn as_text<S: serde::Serializer>(error: &Option<CaptureError>, serializer: S) -> Result<S::Ok, S::Error> {
    error.as_ref().map(ToString::to_string).serialize(serializer)
}

impl Summary {
    /// Packets by reason, of both directions.
    #[must_use]
    pub fn by_reason(&self) -> BTreeMap<&'static str, u64> {
        let mut reasons = BTreeMap::new();
        for row in &self.rows {
            if let Some(reason) = row.reason {
                *reasons.entry(reason).or_default() += row.packets;
            }
        }
        reasons
    }
}

/// A counter, and the verdict of the packets that it was moved by.
type Key = (Option<(u8, Reason)>, &'static str);

/// Counts during a replay.
#[derive(Debug, Default)]
pub(super) struct Account {
    summary: Summary,
    rows: BTreeMap<Key, Traffic>,
    talkers: HashMap<IpAddr, Traffic>,
    /// Counters as they were when last read.
    counters: Counters,
    /// For each verdict the counters that moved with it, the latest last: the next packet's is most likely there.
    likely: BTreeMap<&'static str, Vec<(Direction, Reason)>>,
    /// By how many packets counters moved besides the one that each packet was attributed to.
    stray: u64,
}

impl Account {
    pub(super) fn begin(&mut self, backend: &dyn Backend) -> Result<(), BackendError> {
        self.counters = backend.counters()?;
        Ok(())
    }

    pub(super) fn packets(&self) -> u64 {
        self.summary.packets
    }

    /// Counts a packet of the capture; whether it is input.
    pub(super) fn concern(&mut self, concern: Concern) -> bool {
        match concern {
            Concern::Input => return true,
            Concern::FromRelay => self.summary.from_relay += 1,
            Concern::Others => self.summary.to_others += 1,
        }
        false
    }

    pub(super) fn not_taken(&mut self) {
        self.summary.not_taken += 1;
    }

    /// Counts a packet that the backend was given; which counter it moved.
    pub(super) fn processed(
        &mut self,
        backend: &dyn Backend,
        packet: &Packet,
        processed: &Processed,
    ) -> Result<Option<(Direction, Reason)>, BackendError> {
        let bytes = packet.data.len() as u64;
        self.summary.packets += 1;
        self.summary.bytes += bytes;
        self.summary.cut += u64::from(packet.is_cut());
        self.talk(&packet.data);
        let verdict = processed.verdict.name();
        let counted = match self.guess(backend, verdict)? {
            Some(counted) => Some(counted),
            None => self.search(backend, verdict)?,
        };
        let key = counted.map(|(direction, reason)| counter(direction, reason));
        let row = self.rows.entry((key, verdict)).or_default();
        row.packets += 1;
        row.bytes += bytes;
        Ok(counted)
    }

    /// Looks at the counters that moved lately with this verdict: reading all of the kernel's for each packet takes
    /// longer than the packet.
    fn guess(&mut self, backend: &dyn Backend, verdict: &str) -> Result<Option<(Direction, Reason)>, BackendError> {
        for &(direction, reason) in self.likely.get(verdict).into_iter().flatten().rev().take(3) {
            let now = backend.counter(direction, reason)?;
            let before = self.counters.entry(counter(direction, reason)).or_default();
            if now.packets == before.packets + 1 {
                *before = now;
                return Ok(Some((direction, reason)));
            }
        }
        Ok(None)
    }

    fn search(
        &mut self,
        backend: &dyn Backend,
        verdict: &'static str,
    ) -> Result<Option<(Direction, Reason)>, BackendError> {
        let now = backend.counters()?;
        let moved = moved(&self.counters, &now);
        self.counters = now;
        let all: u64 = moved.iter().map(|(_, packets)| packets).sum();
        self.stray += all.saturating_sub(1);
        let Some(&(counted, _)) = moved.first() else {
            return Ok(None);
        };
        let likely = self.likely.entry(verdict).or_default();
        likely.retain(|known| *known != counted);
        likely.push(counted);
        Ok(Some(counted))
    }

    fn talk(&mut self, frame: &[u8]) {
        let Some((from, _)) = Outline::of(frame).addresses else {
            return;
        };
        if self.talkers.len() < MOST_TALKERS || self.talkers.contains_key(&from) {
            let sent = self.talkers.entry(from).or_default();
            sent.packets += 1;
            sent.bytes += frame.len() as u64;
        }
    }

    /// The numbers at the end.
    pub(super) fn close(
        mut self,
        backend: &dyn Backend,
        elapsed: Duration,
        span_ns: u64,
        resigned: Option<Tally>,
        ended_by: Option<CaptureError>,
    ) -> Result<Summary, BackendError> {
        let unnoticed = moved(&self.counters, &backend.counters()?);
        self.stray += unnoticed.iter().map(|(_, packets)| packets).sum::<u64>();
        let elapsed_s = elapsed.as_secs_f64();
        Ok(Summary {
            rows: self.rows.iter().map(row).collect(),
            talkers: top(&self.talkers),
            stray_counts: self.stray,
            resigned,
            span_ns,
            elapsed_s,
            packets_per_second: self.summary.packets as f64 / elapsed_s.max(1e-9),
            ended_by,
            ..self.summary
        })
    }
}

/// The counters that moved, and by how many packets.
fn moved(before: &Counters, now: &Counters) -> Vec<((Direction, Reason), u64)> {
    let mut moved = Vec::new();
    for direction in Direction::ALL {
        for reason in Reason::ALL {
            let packets = |counters: &Counters| counters.get(&counter(direction, reason)).map_or(0, |t| t.packets);
            let by = packets(now).saturating_sub(packets(before));
            if by > 0 {
                moved.push(((direction, reason), by));
            }
        }
    }
    moved
}

fn row((&(key, verdict), traffic): (&Key, &Traffic)) -> Row {
    let direction = key.and_then(|(direction, _)| Direction::ALL.into_iter().find(|known| *known as u8 == direction));
    Row {
        direction: direction.map(Direction::name),
        reason: key.map(|(_, reason)| reason.name()),
        verdict,
        packets: traffic.packets,
        bytes: traffic.bytes,
    }
}

fn top(talkers: &HashMap<IpAddr, Traffic>) -> Vec<Talker> {
    let mut talkers: Vec<Talker> = talkers
        .iter()
        .map(|(&address, sent)| Talker {
            address,
            packets: sent.packets,
            bytes: sent.bytes,
        })
        .collect();
    talkers.sort_unstable_by_key(|talker| (std::cmp::Reverse(talker.packets), talker.address));
    talkers.truncate(TOP_TALKERS);
    talkers
}
