//! What the decisions need of the machine that they run on: the maps, the clock, and atomic operations, which BPF has
//! but `core` does not offer there.

use core::sync::atomic::AtomicU64;

use crate::{
    layout::{
        DestinationEntry, DestinationLimitEntry, DownLimitEntry, Interface, MAX_INTERFACES, SaltEntry, Settings,
        SlotEntry, option_carrier,
    },
    wire::{
        Address, Be16, Frame, ethernet,
        vlan::{self, Tags},
    },
};

/// How often a compare-and-swap is tried again before a packet is given up: each try fails only when another CPU
/// changed the same user's word in between.
pub const TRIES: usize = 16;

/// Memory shared between CPUs and with the control process. BPF has these operations (ordered loads and stores only
/// since Linux 6.15), but not as `core::sync::atomic`.
///
/// Loads and stores happen in the order they are written. The compiler keeps to it everywhere; x86-64 does too. On
/// arm64 a CPU may see another's plain stores in another order: what must hold there holds by compare-and-swap, or
/// because the writer waits until no packet is in flight.
pub trait Memory {
    /// Reads the word.
    fn load(&self, cell: &AtomicU64) -> u64;

    /// Writes the word.
    fn store(&self, cell: &AtomicU64, word: u64);

    /// Brings the word's cache line on its way without waiting for it.
    fn touch(&self, cell: &AtomicU64);

    /// Sets the word to `new` if it is `current`; otherwise returns what it is.
    fn compare_exchange(&self, cell: &AtomicU64, current: u64, new: u64) -> Result<(), u64>;

    /// Adds to the word.
    fn add(&self, cell: &AtomicU64, amount: u64);

    /// [`TRIES`], possibly hidden from the compiler, so that it does not write each try out.
    #[inline(always)]
    fn tries(&self) -> usize {
        TRIES
    }
}

/// The machine: the kernel for the XDP program, vectors for the host.
pub trait Platform: Memory {
    /// Whether there is one interface, no token travels in an IPv4 option, destinations have no limit, and frames no VLAN
    /// tags: known when the program is compiled, so that what most relays have no use for is not in the way of their
    /// packets. Only with settings that are [plain](Settings::is_plain).
    const PLAIN: bool = false;

    /// The load-time settings.
    fn settings(&self) -> &Settings;

    /// Nanoseconds on the program's clock.
    fn now_ns(&self) -> u64;

    /// A slot: its user and what is kept of it, `None` past the end of the map.
    fn slot(&self, slot: u32) -> Option<&SlotEntry>;

    /// Salts of slots, `None` past the end of the map.
    fn salts(&self, index: u32) -> Option<&SaltEntry>;
    /// Where the VLAN tags of a slot's client are, if it has any; `None` past the end of the map. Ask by
    /// [`Self::tags_of_client`].
    fn client_tags(&self, slot: u32) -> Option<&AtomicU64>;

    /// A destination, `None` past the end of the map.
    fn destination(&self, index: u32) -> Option<&DestinationEntry>;

    /// The limit of a slot's downlink, `None` past the end of the map.
    fn down_limit(&self, slot: u32) -> Option<&DownLimitEntry>;

    /// What is spent of a destination's limit, `None` past the end of the map.
    fn destination_limit(&self, index: u32) -> Option<&DestinationLimitEntry>;

    /// The limit of ICMP messages: [`Control::icmp_tat_ns`](crate::layout::Control::icmp_tat_ns).
    fn icmp_tat(&self) -> Option<&AtomicU64>;

    /// 0 while the blocklist is empty, else a number that changes with it.
    fn block_generation(&self) -> u16;

    /// Whether a prefix of the blocklist covers this address.
    fn is_blocked(&self, address: Address) -> bool;

    /// Whether there are several interfaces.
    #[inline(always)]
    fn has_several_interfaces(&self) -> bool {
        !Self::PLAIN && self.settings().interface_count > 1
    }

    /// The interface with this number.
    #[inline(always)]
    fn interface(&self, number: u8) -> &Interface {
        let interfaces = &self.settings().interfaces;
        if self.has_several_interfaces() {
            // Masked, not compared: the verifier follows the mask.
            &interfaces[number as usize % MAX_INTERFACES]
        } else {
            &interfaces[0]
        }
    }

    /// The number of the interface that a frame came in by; that of the first if it is none of them.
    #[inline(always)]
    fn number_of_ingress<F: Frame>(&self, frame: &F) -> u8 {
        if !self.has_several_interfaces() {
            return 0;
        }
        let settings = self.settings();
        let index = frame.interface_index();
        let mut found = 0;
        for (number, interface) in settings.interfaces.iter().enumerate().skip(1) {
            if number >= settings.interface_count as usize {
                break;
            }
            if interface.index == index {
                found = number;
                break;
            }
        }
        frame.forgotten::<{ MAX_INTERFACES.ilog2() }>(found as u32) as u8
    }

    /// Whether all users of a destination together have a limit.
    #[inline(always)]
    fn has_destination_limit(&self) -> bool {
        !Self::PLAIN && self.settings().destination_interval_ns != 0
    }

    /// Whether tokens may travel in an IPv4 option: see [`option_carrier`].
    #[inline(always)]
    fn has_option_carrier(&self) -> bool {
        !Self::PLAIN && self.settings().option_carrier != option_carrier::OFF
    }

    /// Whether frames may have VLAN tags.
    #[inline(always)]
    fn has_tags(&self) -> bool {
        !Self::PLAIN && self.settings().vlan != 0
    }

    /// The EtherType of the packet in a frame, and where the packet starts; `None` if that cannot be told.
    #[inline(always)]
    fn packet_in<F: Frame>(&self, frame: &F) -> Option<(Be16, usize)> {
        if self.has_tags() {
            vlan::packet(frame)
        } else {
            Some((ethernet::ethertype(frame)?, ethernet::HEADER_BYTES))
        }
    }

    /// The VLAN tags of a frame whose packet starts at `packet`.
    #[inline(always)]
    fn tags_of<F: Frame>(&self, frame: &F, packet: usize) -> Tags {
        if self.has_tags() {
            vlan::read(frame, packet)
        } else {
            Tags::NONE
        }
    }

    /// Where the VLAN tags of a slot's client are, if it has any; `None` where no frames have tags.
    #[inline(always)]
    fn tags_of_client(&self, slot: u32) -> Option<&AtomicU64> {
        if self.has_tags() { self.client_tags(slot) } else { None }
    }
}
