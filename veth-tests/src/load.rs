//! Continuous traffic of which every packet is accounted for.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::{
    client::{Client, PATIENCE},
    wait,
};

/// Packets on the way at once: more than a few, so that both CPUs have work, and far less than any queue on the way
/// holds, so that a packet which does not come back was lost by the relay.
const ON_THE_WAY: u64 = 32;

/// A thread in which a client sends numbered packets through the relay to an echo server, as fast as they come back.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    thread: JoinHandle<(Client, Report)>,
}

/// What became of the packets.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Report {
    /// Packets that were sent.
    pub sent: u64,
    /// Packets that did not come back.
    pub lost: Vec<u64>,
    /// Packets that came back more than once, or were never sent.
    pub spurious: Vec<u64>,
    /// The longest time without an answer.
    pub longest_silence: Duration,
}

impl Load {
    /// Starts; nothing may be on the way to the client from before.
    #[must_use]
    pub fn start(mut client: Client) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicU64::new(0));
        let thread = thread::spawn({
            let (stop, answered) = (stop.clone(), answered.clone());
            move || {
                let report = drive(&mut client, &stop, &answered);
                (client, report)
            }
        });
        Self { stop, answered, thread }
    }

    /// Waits until this many more packets came back.
    #[track_caller]
    pub fn wait_for(&self, more: u64) {
        let wanted = self.answered.load(Ordering::Relaxed) + more;
        wait::until(&format!("{more} more packets to come back"), 2 * PATIENCE, || {
            (self.answered.load(Ordering::Relaxed) >= wanted || self.thread.is_finished()).then_some(())
        });
    }

    /// Stops sending, waits for what is on the way, and returns what became of the packets.
    ///
    /// # Panics
    /// As the client did.
    #[must_use]
    pub fn stop(self) -> (Client, Report) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

/// Sends and receives until told to stop; then receives until nothing is missing, or nothing more comes.
fn drive(client: &mut Client, stop: &AtomicBool, answered: &AtomicU64) -> Report {
    let mut report = Report::default();
    let mut missing = std::collections::BTreeSet::new();
    let mut last_answer = Instant::now();
    loop {
        let stopping = stop.load(Ordering::Relaxed);
        while !stopping && missing.len() < ON_THE_WAY as usize {
            client.send(&report.sent.to_be_bytes());
            missing.insert(report.sent);
            report.sent += 1;
        }
        if missing.is_empty() {
            return report;
        }
        let Some(payload) = client.receive_within(Duration::from_millis(20)) else {
            // What is lost makes room for others, so that one loss does not hide the next.
            if last_answer.elapsed() > PATIENCE {
                report.lost.extend(std::mem::take(&mut missing));
                report.longest_silence = last_answer.elapsed();
                last_answer = Instant::now();
            }
            continue;
        };
        report.longest_silence = report.longest_silence.max(last_answer.elapsed());
        last_answer = Instant::now();
        answered.fetch_add(1, Ordering::Relaxed);
        let number = <[u8; 8]>::try_from(&payload[..]).map_or(u64::MAX, u64::from_be_bytes);
        if !missing.remove(&number) {
            report.spurious.push(number);
        }
        // One that is missing while hundreds sent after it came back is lost, or as good as.
        while let Some(oldest) = missing
            .first()
            .copied()
            .filter(|oldest| oldest + 20 * ON_THE_WAY < number)
        {
            missing.remove(&oldest);
            report.lost.push(oldest);
        }
    }
}
