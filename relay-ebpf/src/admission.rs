//! Which authentic packets are let through: the replay window, the rate limit, and who the client is.
//!
//! **Replay window.** A ring of words, each a generation (32 bits) and 32 packet numbers of it. A packet number is its
//! generation, word and bit, from the top; generations are kept modulo 2^32. The ring spans twice the window, and the
//! window's edge is judged by the newest packet number, which is raised before any word shows it: whoever finds a word
//! of a later generation therefore also finds the number that makes it too old, so a word of another generation is
//! always an earlier one, and starting it afresh forgets nothing that could still be accepted. Test, set and slide are
//! one compare-and-swap on one word, with no lock.
//!
//! **Rate limit.** The generic cell rate algorithm (ITU-T I.371): one theoretical arrival time for each user.

use core::sync::atomic::AtomicU64;

use crate::{
    layout::{REPLAY_WINDOW, StateEntry, WINDOW_WORDS},
    platform::{Memory, TRIES},
    wire::{Address, Be16, Mac},
};

const WORD_BITS: u64 = u32::BITS as u64;
const GENERATION_BITS: u64 = WORD_BITS * WINDOW_WORDS as u64;

/// What the replay window says of a packet number that it accepts.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Admitted {
    /// Whether no later packet number is known.
    pub newest: bool,
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
    let generation = (pn / GENERATION_BITS) as u32;
    let bit = 1_u32 << (pn % WORD_BITS);
    for _ in 0..TRIES {
        let current = memory.load(word);
        let newest = memory.load(&state.newest);
        if newest >= REPLAY_WINDOW && pn <= newest - REPLAY_WINDOW {
            return None;
        }
        let seen = if (current >> 32) as u32 == generation {
            current as u32
        } else {
            0
        };
        if seen & bit != 0 {
            return None;
        }
        let marked = (generation as u64) << 32 | (seen | bit) as u64;
        if memory.compare_exchange(word, current, marked).is_ok() {
            return Some(Admitted { newest: pn >= newest });
        }
    }
    None
}

#[inline(always)]
fn raise_newest<M: Memory>(memory: &M, state: &StateEntry, pn: u64) -> Option<()> {
    for _ in 0..TRIES {
        let newest = memory.load(&state.newest);
        if pn <= newest || memory.compare_exchange(&state.newest, newest, pn).is_ok() {
            return Some(());
        }
    }
    None
}

/// Takes one packet from the user's budget, if it has one left: `burst_ns / interval_ns` at once, then one every
/// `interval_ns`.
#[inline(always)]
pub fn spend<M: Memory>(memory: &M, state: &StateEntry, interval_ns: u32, burst_ns: u64, now_ns: u64) -> bool {
    for _ in 0..TRIES {
        let tat = memory.load(&state.tat_ns);
        let next = if tat > now_ns { tat } else { now_ns }.wrapping_add(interval_ns as u64);
        if next.wrapping_sub(now_ns) > burst_ns {
            return false;
        }
        if memory.compare_exchange(&state.tat_ns, tat, next).is_ok() {
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
}

const WRITING: u64 = 1;
const SEQUENCE: u64 = 0xffff_ffff;

impl Client {
    /// The user's client, if it is known and not just being written.
    #[inline(always)]
    #[must_use]
    pub fn load<M: Memory>(memory: &M, state: &StateEntry) -> Option<Self> {
        for _ in 0..TRIES {
            let guard = memory.load(&state.client_guard);
            let words = [memory.load(&state.client[0]), memory.load(&state.client[1])];
            let hop = memory.load(&state.client_hop);
            if guard & WRITING == 0 && memory.load(&state.client_guard) == guard {
                return (hop != 0).then(|| Self {
                    address: Address::from_words(words),
                    port: Be16::from_raw((hop >> 48) as u16),
                    mac: Mac::from_word(hop),
                    listener: (guard >> 32) as u8,
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
        (self.listener as u64) << 32 | (block_generation as u64) << 48
    }

    /// Whether the state names this client already, and its address was checked against this blocklist.
    #[inline(always)]
    #[must_use]
    pub fn is_current<M: Memory>(&self, memory: &M, state: &StateEntry, block_generation: u16) -> bool {
        let guard = memory.load(&state.client_guard);
        let words = self.address.words();
        guard & WRITING == 0
            && guard & !SEQUENCE == self.guard(block_generation)
            && memory.load(&state.client[0]) == words[0]
            && memory.load(&state.client[1]) == words[1]
            && memory.load(&state.client_hop) == self.hop()
    }

    /// Makes this the user's client, unless a packet newer than `pn` came meanwhile: that one's client counts.
    #[inline(always)]
    pub fn store<M: Memory>(&self, memory: &M, state: &StateEntry, pn: u64, block_generation: u16) {
        for _ in 0..TRIES {
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
                memory.store(&state.client_guard, self.guard(block_generation) | after);
            } else {
                memory.store(&state.client_guard, guard & !SEQUENCE | after);
            }
            return;
        }
    }
}
