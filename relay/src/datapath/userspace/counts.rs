//! What one thread counts, for others to read.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use relay_ebpf::{
    Outcome,
    layout::{LATENCY_BUCKETS, Latency},
    verdict::{Direction, Reason},
};

use crate::datapath::Counter;

const COUNTERS: usize = Direction::ALL.len() * Reason::ALL.len();

/// Counters and latency histogram. Only one thread changes them.
#[derive(Debug)]
pub(super) struct Counts {
    /// Packets and bytes of frames, by [`Reason::counter`].
    counters: [[AtomicU64; 2]; COUNTERS],
    timed: [AtomicU64; 2],
    buckets: [AtomicU64; LATENCY_BUCKETS],
}

impl Counts {
    pub(super) fn new() -> Self {
        Self {
            counters: std::array::from_fn(|_| Default::default()),
            timed: Default::default(),
            buckets: std::array::from_fn(|_| AtomicU64::default()),
        }
    }

    /// Counts a packet in a frame of so many bytes, and returns how many like it were counted before.
    pub(super) fn count(&self, outcome: Outcome, bytes: usize) -> u64 {
        let [packets, sum] = &self.counters[outcome.reason.counter(outcome.direction) as usize];
        add(sum, bytes as u64);
        add(packets, 1)
    }

    /// When the next packet's time starts, if it is the one in `sample` that is timed.
    pub(super) fn start_timer(&self, sample: u32) -> Option<Instant> {
        if sample == 0 {
            return None;
        }
        let nth = add(&self.timed[0], 1) + 1;
        (nth & (u64::from(sample) - 1) == 0).then(Instant::now)
    }

    /// Records what a packet took.
    pub(super) fn stop_timer(&self, started: Instant) {
        let took_ns = started.elapsed().as_nanos() as u64;
        let bits = (u64::BITS - took_ns.leading_zeros()) as usize;
        add(&self.timed[1], took_ns);
        add(&self.buckets[bits.min(LATENCY_BUCKETS - 1)], 1);
    }
}

/// Adds, and returns what was there: cheaper than a word that several threads may change.
fn add(word: &AtomicU64, amount: u64) -> u64 {
    let before = word.load(Relaxed);
    word.store(before.wrapping_add(amount), Relaxed);
    before
}

/// All counters, summed over threads, in the order of directions and reasons.
pub(super) fn counters(all: &[Arc<Counts>]) -> Vec<Counter> {
    let pairs = Direction::ALL
        .into_iter()
        .flat_map(|direction| Reason::ALL.map(|reason| (direction, reason)));
    let counter = |(direction, reason): (Direction, Reason)| {
        let sum = |i: usize| {
            let words = all
                .iter()
                .map(|counts| &counts.counters[reason.counter(direction) as usize][i]);
            words.map(|word| word.load(Relaxed)).sum()
        };
        Counter {
            direction,
            reason,
            packets: sum(0),
            bytes: sum(1),
        }
    };
    pairs.map(counter).collect()
}

/// The latency histogram, summed over threads.
pub(super) fn latency(all: &[Arc<Counts>]) -> Latency {
    let mut sum = Latency::default();
    for counts in all {
        sum.packets += counts.timed[0].load(Relaxed);
        sum.sum_ns += counts.timed[1].load(Relaxed);
        for (total, samples) in sum.buckets.iter_mut().zip(&counts.buckets) {
            *total += samples.load(Relaxed);
        }
    }
    sum
}
