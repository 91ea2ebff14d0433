//! The data plane in a process: maps as vectors, frames as byte vectors. The same decisions as in the kernel, without
//! it.

extern crate std;

use core::sync::atomic::{AtomicU64, Ordering};
use std::{boxed::Box, vec::Vec};

use crate::{
    layout::{
        BLOCKED, Control, DestinationEntry, DestinationLimitEntry, DownLimitEntry, PrefixKey, SaltEntry, Settings,
        SlotEntry,
    },
    platform::{Memory, Platform},
    wire::{Address, Frame, Word, checksum::Change},
};

/// The maps and settings of one relay.
#[derive(Debug)]
pub struct Host {
    /// Load-time settings. `max_users` and `max_destinations` size the maps at creation.
    pub settings: Settings,
    /// Users and their states, by slot.
    pub slots: Box<[SlotEntry]>,
    /// By slot / [`SaltEntry::SLOTS`].
    pub salts: Box<[SaltEntry]>,
    /// VLAN tags of clients that have any, by slot.
    pub client_tags: Box<[AtomicU64]>,
    /// By index.
    pub destinations: Box<[DestinationEntry]>,
    /// By slot.
    pub down_limits: Box<[DownLimitEntry]>,
    /// By the destination's index.
    pub destination_limits: Box<[DestinationLimitEntry]>,
    /// The clock and the blocklist's generation.
    pub control: Control,
    /// The blocklist: prefixes, and whether they are [`BLOCKED`] or [`SPARED`](crate::layout::SPARED).
    pub blocklist: Vec<(PrefixKey, u32)>,
}

impl Host {
    /// Empty maps, sized as `settings` says.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            slots: entries(settings.max_users),
            salts: entries(SaltEntry::count(settings.max_users)),
            client_tags: entries(settings.max_users),
            destinations: entries(settings.max_destinations),
            down_limits: entries(settings.max_users),
            destination_limits: entries(settings.max_destinations),
            control: Control::default(),
            blocklist: Vec::new(),
        }
    }
}

/// So many empty map entries.
#[must_use]
pub fn entries<E: Default>(count: u32) -> Box<[E]> {
    (0..count).map(|_| E::default()).collect()
}

impl HostAtomics for Host {}

impl Platform for Host {
    fn settings(&self) -> &Settings {
        &self.settings
    }

    fn now_ns(&self) -> u64 {
        self.control.lab_now_ns.load(Ordering::Relaxed)
    }

    fn slot(&self, slot: u32) -> Option<&SlotEntry> {
        self.slots.get(slot as usize)
    }

    fn salts(&self, index: u32) -> Option<&SaltEntry> {
        self.salts.get(index as usize)
    }

    fn client_tags(&self, slot: u32) -> Option<&AtomicU64> {
        self.client_tags.get(slot as usize)
    }

    fn destination(&self, index: u32) -> Option<&DestinationEntry> {
        self.destinations.get(index as usize)
    }

    fn down_limit(&self, slot: u32) -> Option<&DownLimitEntry> {
        self.down_limits.get(slot as usize)
    }

    fn destination_limit(&self, index: u32) -> Option<&DestinationLimitEntry> {
        self.destination_limits.get(index as usize)
    }

    fn icmp_tat(&self) -> Option<&AtomicU64> {
        Some(&self.control.icmp_tat_ns)
    }

    fn block_generation(&self) -> u16 {
        self.control.block_generation.load(Ordering::Relaxed) as u16
    }

    fn is_blocked(&self, address: Address) -> bool {
        let bits = |words: [u32; 4]| {
            words
                .iter()
                .fold(0_u128, |bits, &word| bits << 32 | u32::from_be(word) as u128)
        };
        let covers = |prefix: &PrefixKey| {
            let differing = bits(prefix.address) ^ bits(address.0);
            differing.leading_zeros() >= prefix.length
        };
        let covering = self.blocklist.iter().filter(|(prefix, _)| covers(prefix));
        let longest = covering.max_by_key(|(prefix, _)| prefix.length);
        longest.is_some_and(|(_, found)| *found == BLOCKED)
    }
}

/// What reads and writes map entries from a process: its [`Memory`] is the atomics of the host.
pub trait HostAtomics {}

/// The atomics of the host, and nothing else.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostMemory;

impl HostAtomics for HostMemory {}

impl<T: HostAtomics> Memory for T {
    fn load(&self, cell: &AtomicU64) -> u64 {
        cell.load(Ordering::Acquire)
    }

    fn store(&self, cell: &AtomicU64, word: u64) {
        cell.store(word, Ordering::Release);
    }

    fn touch(&self, _cell: &AtomicU64) {}

    fn compare_exchange(&self, cell: &AtomicU64, current: u64, new: u64) -> Result<(), u64> {
        cell.compare_exchange(current, new, Ordering::SeqCst, Ordering::SeqCst)
            .map(|_| ())
    }

    fn add(&self, cell: &AtomicU64, amount: u64) {
        cell.fetch_add(amount, Ordering::Relaxed);
    }
}

/// A frame as a byte vector.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HostFrame {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// The kernel's index of the interface that it came in by.
    pub interface_index: u32,
    /// How many of the bytes are in its first buffer: all, if it has but one.
    pub first_buffer: usize,
    /// How many bytes it is known to have: see [`Frame::measure`].
    pub measured: usize,
}

impl HostFrame {
    /// A frame that came in by an interface whose index does not matter.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self {
            first_buffer: bytes.len(),
            measured: bytes.len(),
            bytes,
            interface_index: 0,
        }
    }
}

impl Frame for HostFrame {
    fn bytes(&self) -> usize {
        self.measured
    }

    fn measure(&mut self, claimed: usize) {
        if claimed > self.measured {
            self.measured = self.bytes.len();
        }
    }

    fn interface_index(&self) -> u32 {
        self.interface_index
    }

    fn read<W: Word>(&self, offset: usize) -> Option<W> {
        let end = offset.checked_add(size_of::<W>())?;
        W::read_from_bytes(self.bytes[..self.first_buffer].get(offset..end)?).ok()
    }

    fn write<W: Word>(&mut self, offset: usize, words: W) -> Option<()> {
        let end = offset.checked_add(size_of::<W>())?;
        let first = &mut self.bytes[..self.first_buffer];
        first.get_mut(offset..end)?.copy_from_slice(words.as_bytes());
        Some(())
    }

    fn add_to(&self, change: Change, offset: usize, bytes: usize) -> Option<Change> {
        change.adding(&Self::new(self.bytes.clone()), offset, bytes)
    }

    fn move_start(&mut self, bytes: isize) -> Option<()> {
        let Ok(removed) = usize::try_from(bytes) else {
            self.bytes.splice(..0, core::iter::repeat_n(0, bytes.unsigned_abs()));
            self.first_buffer += bytes.unsigned_abs();
            return Some(());
        };
        if removed + crate::wire::ethernet::HEADER_BYTES > self.first_buffer {
            return None;
        }
        self.bytes.drain(..removed);
        self.first_buffer -= removed;
        Some(())
    }

    fn truncate(&mut self, bytes: usize) -> Option<()> {
        if bytes < crate::wire::ethernet::HEADER_BYTES || bytes > self.bytes.len() {
            return None;
        }
        self.bytes.truncate(bytes);
        self.first_buffer = self.first_buffer.min(bytes);
        Some(())
    }
}
