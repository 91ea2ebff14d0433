//! Which authentic packets are let through: the replay window, the rate limit, and who the client is.
//!
//! **Replay window.** A ring of words, just as large as the window. A packet number is its lap around the ring, word and
//! position in the word, from the top. A word has a bit for each position, its lap, and its top: the highest position
//! that was reached in this lap. Bits up to the top are of this lap, those above it of the lap before, so a word forgets
//! number by number, and the ring needs no room for more than the window. Test, set and slide are one compare-and-swap on
//! one word. The newest packet number is raised before any word shows it: whoever finds a word that is ahead therefore
//! also finds the number that makes theirs too old, so no word is ever set back. Laps are kept modulo 2^27; so that none
//! is taken for another, a jump past the whole ring empties it, which is the one thing done under a lock.
//!
//! **Rate limit.** The generic cell rate algorithm (ITU-T I.371): one theoretical arrival time for each user.

use core::sync::atomic::AtomicU64;

use crate::{
    layout::{MAX_INTERFACES, REPLAY_WINDOW, StateEntry, WINDOW_WORDS},
    platform::Memory,
    wire::{Address, Be16, Mac, vlan::Tags},
};

const WORD_BITS: u64 = u32::BITS as u64;

/// In the client guard: somebody writes the client.
const WRITING: u64 = 1;
/// In the client guard, with [`WRITING`]: somebody empties the replay window instead.
const RESTARTING: u64 = 1 << 40;
/// Where in the client guard the number of the interface starts.
const INTERFACE: u32 = 41;
/// In the client guard: the client has VLAN tags.
const TAGGED: u64 = 1 << 44;
/// In the client guard: what changes with each write.
const SEQUENCE: u64 = 0xffff_ffff;

/// What the replay window says of a packet number that it accepts.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Admitted {
    /// Whether no later packet number is known.
    pub newest: bool,
}

/// One word of the window: bits 0..32 a packet number each, 32..37 the top, 37..64 the lap.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct WindowWord(u64);

impl WindowWord {
    const TOP_SHIFT: u32 = 32;
    const LAP_SHIFT: u32 = 37;
    const LAPS: u64 = u64::MAX >> Self::LAP_SHIFT;

    #[inline(always)]
    const fn new(lap: u64, top: u64, bits: u32) -> Self {
        Self(lap << Self::LAP_SHIFT | top << Self::TOP_SHIFT | bits as u64)
    }

    /// A word without a bit that no word was before, for a ring in which `lap` is the newest: a CPU that read the word
    /// earlier must not find it as it was. The lap is too old for anything to be taken for it; 0 is a word's first value.
    #[inline(always)]
    const fn emptied(lap: u64, sequence: u64) -> Self {
        Self::new(lap.wrapping_sub(2), 1 + sequence % (WORD_BITS - 1), 0)
    }

    #[inline(always)]
    const fn top(self) -> u64 {
        self.0 >> Self::TOP_SHIFT & (WORD_BITS - 1)
    }

    /// Laps that `pn`, which belongs into this word, is ahead of it, modulo [`Self::LAPS`].
    #[inline(always)]
    const fn behind(self, pn: u64) -> u64 {
        (pn / REPLAY_WINDOW).wrapping_sub(self.0 >> Self::LAP_SHIFT) & Self::LAPS
    }

    /// Whether it says that `pn`, which is inside the window, was accepted.
    #[inline(always)]
    const fn has(self, pn: u64) -> bool {
        let position = pn % WORD_BITS;
        let of_this_lap = position <= self.top();
        let behind = self.behind(pn);
        let is_known = (behind == 0 && of_this_lap) || (behind == Self::LAPS && !of_this_lap);
        is_known && self.0 >> position & 1 != 0
    }

    /// With `pn`, which is inside the window and not in it yet.
    #[inline(always)]
    const fn with(self, pn: u64) -> Self {
        let (position, top) = (pn % WORD_BITS, self.top());
        let bit = 1_u32 << position;
        let (bits, up_to_top, above) = (self.0 as u32, u32::MAX >> (31 - top), !(u32::MAX >> (31 - position)));
        match self.behind(pn) {
            0 if position > top => Self::new(pn / REPLAY_WINDOW, position, bits & (up_to_top | above) | bit),
            0 | Self::LAPS => Self(self.0 | bit as u64),
            1 => Self::new(pn / REPLAY_WINDOW, position, bits & up_to_top & above | bit),
            _ => Self::new(pn / REPLAY_WINDOW, position, bit),
        }
    }
}

/// Whether the window holds `pn`, which is not older than [`REPLAY_WINDOW`], as accepted.
#[must_use]
pub fn has_accepted<M: Memory>(memory: &M, state: &StateEntry, pn: u64) -> bool {
    WindowWord(memory.load(window_word(state, pn))).has(pn)
}

/// The word of the window that holds this packet number.
#[inline(always)]
#[must_use]
pub fn window_word(state: &StateEntry, pn: u64) -> &AtomicU64 {
    &state.window[(pn / WORD_BITS) as usize % WINDOW_WORDS]
}

/// Accepts a packet number once: `None` if it was accepted before or is older than the window.
#[inline(always)]
pub fn admit<M: Memory>(memory: &M, state: &StateEntry, pn: u64) -> Option<Admitted> {
    raise_newest(memory, state, pn)?;
    let word = window_word(state, pn);
    for _ in 0..memory.tries() {
        // In this order: see the module's text, and `restart`.
        let current = WindowWord(memory.load(word));
        let newest = memory.load(&state.newest);
        let restarting = memory.load(&state.client_guard) & RESTARTING != 0;
        if newest >= REPLAY_WINDOW && pn <= newest - REPLAY_WINDOW {
            return None;
        }
        if restarting {
            continue;
        }
        if current.has(pn) {
            return None;
        }
        if memory.compare_exchange(word, current.0, current.with(pn).0).is_ok() {
            return Some(Admitted { newest: pn >= newest });
        }
    }
    None
}

#[inline(always)]
fn raise_newest<M: Memory>(memory: &M, state: &StateEntry, pn: u64) -> Option<()> {
    for _ in 0..memory.tries() {
        let newest = memory.load(&state.newest);
        if pn <= newest {
            return Some(());
        }
        let raised = if pn - newest < REPLAY_WINDOW {
            memory.compare_exchange(&state.newest, newest, pn).is_ok()
        } else {
            restart(memory, state, newest, pn)
        };
        if raised {
            return Some(());
        }
    }
    None
}

/// Raises the newest number past the whole ring, and empties the ring. Numbers from before are too old once the newest
/// is raised; whoever comes with a later one sees the newest raised, and then that the ring is being emptied.
#[inline(always)]
fn restart<M: Memory>(memory: &M, state: &StateEntry, newest: u64, pn: u64) -> bool {
    let guard = memory.load(&state.client_guard);
    if guard & WRITING != 0
        || memory
            .compare_exchange(&state.client_guard, guard, guard | WRITING | RESTARTING)
            .is_err()
    {
        return false;
    }
    let raised = memory.compare_exchange(&state.newest, newest, pn).is_ok();
    let sequence = guard.wrapping_add(2) & SEQUENCE;
    if raised {
        for word in &state.window {
            memory.store(word, WindowWord::emptied(pn / REPLAY_WINDOW, sequence).0);
        }
    }
    memory.store(&state.client_guard, guard & !SEQUENCE | sequence);
    raised
}

/// Takes one packet from the budget whose TAT this is, if it has one left: `burst` at once, then one every
/// `interval_ns`.
#[inline(always)]
pub fn spend<M: Memory>(memory: &M, tat_ns: &AtomicU64, interval_ns: u32, burst: u32, now_ns: u64) -> bool {
    let burst_ns = burst as u64 * interval_ns as u64;
    for _ in 0..memory.tries() {
        let tat = memory.load(tat_ns);
        let next = if tat > now_ns { tat } else { now_ns }.wrapping_add(interval_ns as u64);
        if next.wrapping_sub(now_ns) > burst_ns {
            return false;
        }
        if memory.compare_exchange(tat_ns, tat, next).is_ok() {
            return true;
        }
    }
    false
}

/// Where a client is: what the downlink needs to reach it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Client {
    /// Its address.
    pub address: Address,
    /// Its UDP port.
    pub port: Be16,
    /// The MAC address that its packets come from.
    pub mac: Mac,
    /// Index of the listener that it speaks to.
    pub listener: u8,
    /// Number of the interface that its packets come in by.
    pub interface: u8,
    /// The VLAN tags of its frames.
    pub tags: Tags,
}

impl Client {
    /// The user's client, if it is known and not just being written. `tags` is where its tags are, as in all of these;
    /// without, it has none.
    #[inline(always)]
    #[must_use]
    pub fn load<M: Memory>(memory: &M, state: &StateEntry, tags: Option<&AtomicU64>) -> Option<Self> {
        for _ in 0..memory.tries() {
            let guard = memory.load(&state.client_guard);
            let words = [memory.load(&state.client[0]), memory.load(&state.client[1])];
            let hop = memory.load(&state.client_hop);
            let tags = match tags {
                Some(tags) if guard & TAGGED != 0 => memory.load(tags),
                _ => 0,
            };
            if guard & WRITING == 0 && memory.load(&state.client_guard) == guard {
                return (hop != 0).then(|| Self {
                    address: Address::from_words(words),
                    port: Be16::from_raw((hop >> 48) as u16),
                    mac: Mac::from_word(hop),
                    listener: (guard >> 32) as u8,
                    interface: (guard >> INTERFACE) as u8 % MAX_INTERFACES as u8,
                    tags: Tags::from_word(tags),
                });
            }
        }
        None
    }

    #[inline(always)]
    fn hop(&self) -> u64 {
        self.mac.word() | (self.port.raw() as u64) << 48
    }

    #[inline(always)]
    fn guard(&self, block_generation: u16) -> u64 {
        let interface = self.interface as u64 % MAX_INTERFACES as u64;
        let tagged = if self.tags.is_none() { 0 } else { TAGGED };
        (self.listener as u64) << 32 | interface << INTERFACE | tagged | (block_generation as u64) << 48
    }

    /// Whether the state names this client already, and its address was checked against this blocklist.
    #[inline(always)]
    #[must_use]
    pub fn is_current<M: Memory>(
        &self,
        memory: &M,
        state: &StateEntry,
        tags: Option<&AtomicU64>,
        block_generation: u16,
    ) -> bool {
        let guard = memory.load(&state.client_guard);
        let words = self.address.words();
        guard & WRITING == 0
            && guard & !SEQUENCE == self.guard(block_generation)
            && memory.load(&state.client[0]) == words[0]
            && memory.load(&state.client[1]) == words[1]
            && memory.load(&state.client_hop) == self.hop()
            && (self.tags.is_none() || tags.is_some_and(|tags| memory.load(tags) == self.tags.word()))
    }

    /// Makes this the user's client, unless a packet newer than `pn` came meanwhile: that one's client counts.
    #[inline(always)]
    pub fn store<M: Memory>(
        &self,
        memory: &M,
        state: &StateEntry,
        tags: Option<&AtomicU64>,
        pn: u64,
        block_generation: u16,
    ) {
        for _ in 0..memory.tries() {
            let guard = memory.load(&state.client_guard);
            if memory.load(&state.newest) > pn {
                return;
            }
            if guard & WRITING != 0
                || memory
                    .compare_exchange(&state.client_guard, guard, guard | WRITING)
                    .is_err()
            {
                continue;
            }
            let newest = memory.load(&state.newest) <= pn;
            let after = guard.wrapping_add(2) & SEQUENCE;
            if newest {
                let words = self.address.words();
                memory.store(&state.client[0], words[0]);
                memory.store(&state.client[1], words[1]);
                memory.store(&state.client_hop, self.hop());
                if let Some(tags) = tags.filter(|_| !self.tags.is_none()) {
                    memory.store(tags, self.tags.word());
                }
                memory.store(&state.client_guard, self.guard(block_generation) | after);
            } else {
                memory.store(&state.client_guard, guard & !SEQUENCE | after);
            }
            return;
        }
    }

    /// Forgets the user's client if its packets came in by this interface, which the relay has no more. For the control
    /// process, once no packet comes in by it.
    pub fn forget<M: Memory>(memory: &M, state: &StateEntry, interface: u8) {
        loop {
            let guard = memory.load(&state.client_guard);
            let hop = memory.load(&state.client_hop);
            if hop == 0 || (guard >> INTERFACE) as u8 % MAX_INTERFACES as u8 != interface {
                return;
            }
            // Whoever writes is a packet's: it is through in a moment.
            if guard & WRITING == 0
                && memory
                    .compare_exchange(&state.client_guard, guard, guard | WRITING)
                    .is_ok()
            {
                memory.store(&state.client_hop, 0);
                let after = guard.wrapping_add(2) & SEQUENCE;
                memory.store(&state.client_guard, guard & !SEQUENCE | after);
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use core::{net::IpAddr, sync::atomic::AtomicUsize};
    use std::{collections::HashSet, thread, vec::Vec};

    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;
    use crate::{host::HostMemory as M, wire::vlan};

    fn admits(state: &StateEntry, pn: u64) -> bool {
        admit(&M, state, pn).is_some()
    }

    #[rstest]
    #[case::the_newest_again(1000, 1000, false)]
    #[case::one_older(1000, 999, true)]
    #[case::the_oldest_in_the_window(1000, 489, true)]
    #[case::just_too_old(1000, 488, false)]
    #[case::zero_just_inside(511, 0, true)]
    #[case::zero_just_outside(512, 0, false)]
    #[case::one_word_on(1000, 1032, true)]
    #[case::one_lap_on(1000, 1512, true)]
    #[case::two_laps_on(1000, 2024, true)]
    #[case::a_lap_that_looks_the_same_modulo_2_to_the_27(1000, 1000 + (1 << 36), true)]
    #[case::the_largest(1000, u64::MAX, true)]
    #[case::just_inside_below_the_largest(u64::MAX, u64::MAX - 511, true)]
    #[case::just_outside_below_the_largest(u64::MAX, u64::MAX - 512, false)]
    fn after_the_first_packet_number_the_second_is(#[case] first: u64, #[case] second: u64, #[case] admitted: bool) {
        let state = StateEntry::default();
        assert!(admits(&state, first));
        assert_eq!(admits(&state, second), admitted);
        assert!(!admits(&state, second), "twice");
    }

    /// Packet numbers that wander: mostly forward, sometimes far, often back.
    fn wandering() -> impl Strategy<Value = Vec<u64>> {
        let step = prop_oneof![
            8 => -600_i64..64,
            8 => 1_i64..4,
            2 => 400_i64..1100,
            1 => Just(1_i64 << 36),
            1 => Just((1_i64 << 36) - 512),
        ];
        (0_u64..1 << 50, prop::collection::vec(step, 1..400)).prop_map(|(start, steps)| {
            let mut newest = start;
            let mut numbers = Vec::new();
            for step in steps {
                let pn = newest.saturating_add_signed(step);
                newest = newest.max(pn);
                numbers.push(pn);
            }
            numbers
        })
    }

    proptest! {
        #[test]
        fn the_window_accepts_each_number_once_and_none_older_than_512(numbers in wandering()) {
            let state = StateEntry::default();
            let (mut seen, mut newest) = (HashSet::new(), 0);
            for pn in numbers {
                let fresh = pn.saturating_add(512) > newest && !seen.contains(&pn);
                let admitted = admit(&M, &state, pn);
                newest = newest.max(pn);
                prop_assert_eq!(admitted, fresh.then_some(Admitted { newest: pn == newest }), "{} {}", pn, newest);
                seen.insert(pn);
            }
        }

        #[test]
        fn the_rate_limit_admits_the_burst_at_once_and_then_the_rate(
            interval in 100_u32..1_000_000, burst in 1_u32..50, start in 0_u64..1 << 60,
        ) {
            let state = StateEntry::default();
            for _ in 0..burst {
                prop_assert!(spend(&M, &state.tat_ns, interval, burst, start));
            }
            prop_assert!(!spend(&M, &state.tat_ns, interval, burst, start));
            prop_assert!(!spend(&M, &state.tat_ns, interval, burst, start + interval as u64 - 1));
            prop_assert!(spend(&M, &state.tat_ns, interval, burst, start + interval as u64));
            prop_assert!(!spend(&M, &state.tat_ns, interval, burst, start + interval as u64));
        }
    }

    #[rstest]
    #[case::that_follow_each_other(1)]
    #[case::that_jump_within_the_ring(300)]
    #[case::that_jump_past_the_ring(700)]
    #[case::that_jump_to_look_alike(1 << 36)]
    fn cpus_that_offer_the_same_numbers_at_once_get_each_accepted_once(#[case] stride: u64) {
        const NUMBERS: usize = 50_000;
        let state = StateEntry::default();
        let accepted: Vec<AtomicUsize> = (0..NUMBERS).map(|_| AtomicUsize::new(0)).collect();
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for (nth, accepted) in accepted.iter().enumerate() {
                        if admits(&state, nth as u64 * stride) {
                            accepted.fetch_add(1, core::sync::atomic::Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        for (nth, count) in accepted.iter().enumerate() {
            // A thread may be overtaken by more than the window: then nobody accepts, but never do two.
            assert!(
                count.load(core::sync::atomic::Ordering::Relaxed) <= 1,
                "number {nth} was accepted twice"
            );
        }
        assert!(
            accepted
                .iter()
                .any(|count| count.load(core::sync::atomic::Ordering::Relaxed) == 1)
        );
    }

    #[test]
    fn cpus_that_spend_at_once_spend_the_burst_exactly() {
        let state = StateEntry::default();
        let spent = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..20_000 {
                        if spend(&M, &state.tat_ns, 1000, 5_000, 7) {
                            spent.fetch_add(1, core::sync::atomic::Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        assert_eq!(spent.into_inner(), 5000);
    }

    fn client(host: u8) -> Client {
        let address: IpAddr = [203, 0, 113, host].into();
        Client {
            address: address.into(),
            port: Be16::new(40000),
            mac: Mac::new([2, 0, 0, 0, 0, host]),
            listener: 3,
            interface: host % MAX_INTERFACES as u8,
            tags: Tags::new(&[(vlan::DOT1AD, host.into()), (vlan::DOT1Q, host.into())][..usize::from(host) % 3]),
        }
    }

    #[test]
    fn a_client_is_forgotten_with_its_interface() {
        let (state, tags) = (StateEntry::default(), AtomicU64::new(0));
        admit(&M, &state, 10);
        client(1).store(&M, &state, Some(&tags), 10, 7);
        Client::forget(&M, &state, 0);
        assert_eq!(
            Client::load(&M, &state, Some(&tags)),
            Some(client(1)),
            "it came by another"
        );
        Client::forget(&M, &state, 1);
        assert_eq!(Client::load(&M, &state, Some(&tags)), None);
        admit(&M, &state, 11);
        client(1).store(&M, &state, Some(&tags), 11, 7);
        assert_eq!(Client::load(&M, &state, Some(&tags)), Some(client(1)));
    }

    #[test]
    fn the_client_of_the_newest_packet_is_kept() {
        let (state, tags) = (StateEntry::default(), AtomicU64::new(0));
        assert_eq!(Client::load(&M, &state, Some(&tags)), None);
        admit(&M, &state, 10);
        client(1).store(&M, &state, Some(&tags), 10, 7);
        assert_eq!(Client::load(&M, &state, Some(&tags)), Some(client(1)));
        assert!(client(1).is_current(&M, &state, Some(&tags), 7));
        assert!(
            !client(1).is_current(&M, &state, Some(&tags), 8),
            "checked against another blocklist"
        );
        assert!(!client(2).is_current(&M, &state, Some(&tags), 7));
        client(2).store(&M, &state, Some(&tags), 9, 7);
        assert_eq!(
            Client::load(&M, &state, Some(&tags)),
            Some(client(1)),
            "an older packet moved the client"
        );
        admit(&M, &state, 11);
        client(2).store(&M, &state, Some(&tags), 11, 7);
        assert_eq!(Client::load(&M, &state, Some(&tags)), Some(client(2)));
    }

    #[test]
    fn no_reader_sees_half_of_a_client() {
        let (state, tags) = (StateEntry::default(), AtomicU64::new(0));
        thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for pn in 1..100_000 {
                    admit(&M, &state, pn);
                    client(pn as u8).store(&M, &state, Some(&tags), pn, 0);
                }
            });
            while !writer.is_finished() {
                if let Some(seen) = Client::load(&M, &state, Some(&tags)) {
                    let host = seen.mac.bytes()[5];
                    assert_eq!(seen, client(host));
                }
            }
        });
    }
}
