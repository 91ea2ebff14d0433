//! What lives in the maps and the load-time globals. Every type has one fixed layout, shared by the XDP program and
//! the control process, and a size that is asserted below.
//!
//! Anything that one side writes while the other reads is made of 64-bit words ([`AtomicU64`]): no reader ever sees
//! half of one. Addresses and ports are kept as they stand in packets (network order), so that comparing one with a
//! packet is a comparison of words.

use core::{mem::offset_of, sync::atomic::AtomicU64};

use crate::{
    platform::Memory,
    wire::{Address, Be16, Mac, vlan::Tags},
};

/// Grows when the meaning or size of anything in a pinned map changes.
pub const LAYOUT_VERSION: u32 = 6;

/// The names of the maps, as the kernel and the pin directory know them (at most 15 bytes, or pins are not reused).
pub mod map {
    /// ARRAY of [`SlotEntry`](super::SlotEntry), by slot: users, and what is kept of each.
    pub const USERS: &str = "user_map";
    /// ARRAY of [`SaltEntry`](super::SaltEntry), by slot / [`SaltEntry::SLOTS`](super::SaltEntry::SLOTS); written by the
    /// control process.
    pub const SALTS: &str = "salt_map";
    /// ARRAY of [`Tags`](crate::wire::vlan::Tags) as words, by slot: those of clients that have any.
    pub const CLIENT_TAGS: &str = "client_tags";
    /// ARRAY of [`DestinationEntry`](super::DestinationEntry); written by the control process.
    pub const DESTINATIONS: &str = "dest_map";
    /// ARRAY of [`DownLimitEntry`](super::DownLimitEntry), by slot.
    pub const DOWN_LIMITS: &str = "down_limit_map";
    /// ARRAY of [`DestinationLimitEntry`](super::DestinationLimitEntry), by the destination's index.
    pub const DESTINATION_LIMITS: &str = "dest_limit_map";
    /// LPM_TRIE from [`PrefixKey`](super::PrefixKey) to [`BLOCKED`](super::BLOCKED) or [`SPARED`](super::SPARED):
    /// source prefixes; the longest counts.
    pub const BLOCKLIST: &str = "blocklist";
    /// ARRAY of one [`Control`](super::Control): what changes while the program runs.
    pub const CONTROL: &str = "control";
    /// PERCPU_ARRAY of `[packets, bytes]` as u64, by [`Reason::counter`](crate::verdict::Reason::counter) and
    /// [`Direction::answers`](crate::verdict::Direction::answers).
    pub const COUNTERS: &str = "counters";
    /// PERCPU_ARRAY of one [`Latency`](super::Latency).
    pub const LATENCY: &str = "latency";
    /// RINGBUF of [`DropEvent`](super::DropEvent).
    pub const EVENTS: &str = "events";
    /// DEVMAP of the kernel's indices of the interfaces, by their numbers; written by the control process.
    pub const TX_PORTS: &str = "tx_ports";
    /// ARRAY of one u32: the [`LAYOUT_VERSION`](super::LAYOUT_VERSION) of the pinned maps.
    pub const LAYOUT: &str = "layout";
}

/// The load-time global that holds [`Settings`].
pub const SETTINGS_GLOBAL: &str = "SETTINGS";
/// The XDP program.
pub const PROGRAM: &str = "relay";
/// An XDP program that writes `bpf_jiffies64` into the first 8 bytes of its packet, for the control process to relate
/// the program's clock to its own.
pub const CLOCK_PROGRAM: &str = "relay_clock";

/// Most listeners of one relay.
pub const MAX_LISTENERS: usize = 8;
/// Most egress addresses of one family of one relay.
pub const MAX_EGRESS: usize = 32;
/// Most interfaces of one relay.
pub const MAX_INTERFACES: usize = 8;
/// In the blocklist: packets from this prefix are dropped.
pub const BLOCKED: u32 = 1;
/// In the blocklist: they are not, whatever shorter prefix blocks them. All IPv4 addresses together are a prefix of
/// 96 bits here, and must be no part of an IPv6 prefix that is blocked.
pub const SPARED: u32 = 0;
/// Packet numbers that the replay window tolerates out of order, the newest among them.
pub const REPLAY_WINDOW: u64 = 512;
/// Words of the replay window, of 32 packet numbers each (see `admission`).
pub const WINDOW_WORDS: usize = 16;
/// Buckets of the latency histogram: bucket `i` counts times below `2^i` ns and not below `2^(i-1)` ns.
pub const LATENCY_BUCKETS: usize = 24;
/// Bytes of a dropped packet that an event carries at most.
pub const EVENT_BYTES: usize = 128;

#[cfg(not(target_arch = "bpf"))]
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// One listener: where clients send to, and the key of its header protection.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[cfg_attr(not(target_arch = "bpf"), derive(FromBytes, Immutable, IntoBytes, KnownLayout))]
#[repr(C, align(8))]
pub struct Listener {
    /// SipHash key of the header protection, as two little-endian words; unused without it.
    pub header_key: [u64; 2],
    /// The address.
    pub address: Address,
    /// The UDP port.
    pub port: Be16,
    /// 1 with header protection, 0 without.
    pub protected: u8,
    /// Zero.
    pub reserved: [u8; 5],
}

/// Values of [`Settings::option_carrier`].
pub mod option_carrier {
    /// Tokens travel in UDP payloads; IPv4 options are not looked at.
    pub const OFF: u32 = 0;
    /// They also travel in an IPv4 option: where that is, it counts.
    pub const ALSO: u32 = 1;
    /// Over IPv4 they travel in an option alone.
    pub const ALONE: u32 = 2;
}

/// One interface: what the program must know of it to send frames out of it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[cfg_attr(not(target_arch = "bpf"), derive(FromBytes, Immutable, IntoBytes, KnownLayout))]
#[repr(C)]
pub struct Interface {
    /// Its own MAC address.
    pub mac: Mac,
    /// The kernel's index of it; 0 where the number has no interface.
    pub index: u32,
    /// Largest IP packet that fits it, in bytes.
    pub mtu: u32,
}

/// What is fixed while one load of the program lives: read-only to it, so the verifier removes what is switched off.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[cfg_attr(not(target_arch = "bpf"), derive(FromBytes, Immutable, IntoBytes, KnownLayout))]
#[repr(C, align(8))]
pub struct Settings {
    /// Nanoseconds of one `bpf_jiffies64` tick.
    pub tick_ns: u64,
    /// Not 0: time is [`Control::lab_now_ns`], not the kernel's.
    pub lab_clock: u32,
    /// The relay's id, part of every token's context.
    pub relay_id: u32,
    /// Slots in `user_map`.
    pub max_users: u32,
    /// Entries in `dest_map`.
    pub max_destinations: u32,
    /// Listeners in use, from the front of `listeners`.
    pub listener_count: u32,
    /// IPv4 egress addresses in use.
    pub egress_v4_count: u32,
    /// IPv6 egress addresses in use.
    pub egress_v6_count: u32,
    /// First egress port.
    pub first_egress_port: u32,
    /// Egress ports of each egress address.
    pub egress_ports: u32,
    /// Not 0: packets to an egress port that no user expects are dropped instead of passed to the host.
    pub drop_unmatched: u32,
    /// One packet in this many is timed (a power of two), 0 for none.
    pub latency_sample: u32,
    /// One drop in this many of each reason becomes an event (a power of two), 0 for none.
    pub event_sample: u32,
    /// Numbers of interfaces in use: the largest and one. With 1, whatever comes in and goes out does so by the first.
    pub interface_count: u32,
    /// Nanoseconds that one ICMP message spends of the limit of all: `1e9 / rate`; 0: none is sent.
    pub icmp_interval_ns: u32,
    /// ICMP messages that may be sent at once.
    pub icmp_burst: u32,
    /// Whether tokens travel in an IPv4 option: see [`option_carrier`].
    pub option_carrier: u32,
    /// Nanoseconds that one uplink packet spends of the limit of all users of its destination; 0: there is none.
    pub destination_interval_ns: u32,
    /// Packets that may be sent to a destination at once.
    pub destination_burst: u32,
    /// Not 0: frames may have VLAN tags.
    pub vlan: u32,
    /// Zero.
    pub reserved: u32,
    /// The interfaces, by number. A number stays its interface's as long as the maps live: they hold it.
    pub interfaces: [Interface; MAX_INTERFACES],
    /// The listeners.
    pub listeners: [Listener; MAX_LISTENERS],
    /// The IPv4 egress addresses.
    pub egress_v4: [Address; MAX_EGRESS],
    /// The IPv6 egress addresses.
    pub egress_v6: [Address; MAX_EGRESS],
}

impl Settings {
    /// Limits ICMP messages to so many a second, 0 for none, and a tenth of that at once, but at least one.
    #[cfg(not(target_arch = "bpf"))]
    #[must_use]
    pub const fn with_icmp_limit(mut self, per_second: u32) -> Self {
        if let Some(interval_ns) = 1_000_000_000_u32.checked_div(per_second) {
            self.icmp_interval_ns = interval_ns;
            self.icmp_burst = per_second.div_ceil(10);
        }
        self
    }

    /// Whether a [`Platform`](crate::platform::Platform) that is `PLAIN` decides the same.
    #[inline(always)]
    #[must_use]
    pub const fn is_plain(&self) -> bool {
        self.interface_count <= 1
            && self.option_carrier == option_carrier::OFF
            && self.destination_interval_ns == 0
            && self.vlan == 0
    }
}

/// What the control process (or the lab) changes while the program runs.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Control {
    /// The lab's clock, in nanoseconds; only read with [`Settings::lab_clock`].
    pub lab_now_ns: AtomicU64,
    /// 0 while the blocklist is empty, else a number (1 to 65535) that changes whenever the blocklist does.
    pub block_generation: AtomicU64,
    /// Theoretical arrival time of the limit of ICMP messages (GCRA), on the program's clock; the program's own.
    pub icmp_tat_ns: AtomicU64,
}

/// One user, as the control process publishes it (a plain value; the map holds [`UserEntry`]).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct User {
    /// The random part of the handle.
    pub salt: u32,
    /// SipHash key of the tag, as two little-endian words.
    pub key: [u64; 2],
    /// When the grant ends, on the program's clock; `u64::MAX` for never.
    pub expires_ns: u64,
    /// Nanoseconds that one packet spends of the rate limit: `1e9 / rate`, at least 1.
    pub interval_ns: u32,
    /// Packets that may be sent at once: the rate limit lets `burst × interval_ns` be spent ahead of time.
    pub burst: u32,
    /// Index into `dest_map`, below 2^31.
    pub destination: u32,
    /// Whether there is a limit for its downlink packets, in `down_limit_map`.
    pub has_down_limit: bool,
    /// Index of the egress address in its family's list, derived from the slot.
    pub egress: u16,
    /// Egress port, derived from the slot.
    pub egress_port: Be16,
}

/// One slot of `user_map`: the user, and right behind it what the program keeps of it, so that both are on one page and
/// a packet whose slot is in no cache waits for one address translation, not two. Four cache lines.
#[derive(Debug, Default)]
#[repr(C, align(256))]
pub struct SlotEntry {
    /// The user; written by the control process.
    pub user: UserEntry,
    /// Its state; written by the XDP program.
    pub state: StateEntry,
}

/// One user in `user_map`: the larger part of a cache line.
#[derive(Debug, Default)]
#[repr(C)]
pub struct UserEntry {
    /// [`UserEntry::PRESENT`] and the salt, or 0 where the slot has no user. Cleared first, written last.
    handle: AtomicU64,
    key: [AtomicU64; 2],
    expires_ns: AtomicU64,
    /// `interval_ns`, then `destination` in the upper half, whose highest bit is [`UserEntry::DOWN_LIMIT`].
    rate: AtomicU64,
    /// `egress`, `egress_port` (network order), then `burst` in the upper half.
    egress: AtomicU64,
}

impl UserEntry {
    const PRESENT: u64 = 1 << 32;
    /// In the word of the destination, which the downlink reads anyway.
    const DOWN_LIMIT: u64 = 1 << 63;

    /// Whether the slot belongs to the user with this salt.
    #[inline(always)]
    #[must_use]
    pub fn has_handle<M: Memory>(&self, memory: &M, salt: u32) -> bool {
        memory.load(&self.handle) == Self::PRESENT | salt as u64
    }

    /// The user in this slot, if there is one. A reader that must not mix two users checks [`Self::has_handle`]
    /// before and after.
    #[inline(always)]
    #[must_use]
    pub fn get<M: Memory>(&self, memory: &M) -> Option<User> {
        let handle = memory.load(&self.handle);
        if handle & Self::PRESENT == 0 {
            return None;
        }
        Some(self.load(memory, handle as u32))
    }

    /// The fields of the user, whose salt the caller knows.
    #[inline(always)]
    #[must_use]
    pub fn load<M: Memory>(&self, memory: &M, salt: u32) -> User {
        let rate = memory.load(&self.rate);
        let egress = memory.load(&self.egress);
        User {
            salt,
            key: [memory.load(&self.key[0]), memory.load(&self.key[1])],
            expires_ns: memory.load(&self.expires_ns),
            interval_ns: rate as u32,
            burst: (egress >> 32) as u32,
            destination: ((rate & !Self::DOWN_LIMIT) >> 32) as u32,
            has_down_limit: rate & Self::DOWN_LIMIT != 0,
            egress: egress as u16,
            egress_port: Be16::from_raw((egress >> 16) as u16),
        }
    }

    /// Empties the slot: from now on no packet finds the user.
    pub fn clear<M: Memory>(&self, memory: &M) {
        memory.store(&self.handle, 0);
    }

    /// Writes everything but the handle. Only for a slot that is [cleared](Self::clear), or whose user keeps its salt
    /// and key.
    pub fn write_fields<M: Memory>(&self, memory: &M, user: &User) {
        memory.store(&self.key[0], user.key[0]);
        memory.store(&self.key[1], user.key[1]);
        memory.store(&self.expires_ns, user.expires_ns);
        let down_limit = if user.has_down_limit { Self::DOWN_LIMIT } else { 0 };
        let rate = user.interval_ns as u64 | (user.destination as u64) << 32 | down_limit;
        memory.store(&self.rate, rate);
        let egress = user.egress as u64 | (user.egress_port.raw() as u64) << 16 | (user.burst as u64) << 32;
        memory.store(&self.egress, egress);
    }

    /// Publishes the user whose fields are in place.
    pub fn publish<M: Memory>(&self, memory: &M, salt: u32) {
        memory.store(&self.handle, Self::PRESENT | salt as u64);
    }
}

/// One byte of the salt of each of so many slots, which a packet's salt is compared with before anything of its slot is
/// read. A byte a user stays in the processor's caches, where all of `user_map` does not: of packets with made-up
/// handles, one in 256 waits for memory.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct SaltEntry {
    /// The slot with the lowest number in the lowest byte of the first.
    words: [AtomicU64; 8],
}

impl SaltEntry {
    /// Slots of one entry: a cache line.
    pub const SLOTS: u32 = 64;

    /// How many entries there are for so many slots.
    #[must_use]
    pub const fn count(max_users: u32) -> u32 {
        max_users.div_ceil(Self::SLOTS)
    }

    /// Whether the user in this slot may have this salt.
    #[inline(always)]
    #[must_use]
    pub fn admits<M: Memory>(&self, memory: &M, slot: u32, salt: u32) -> bool {
        let (word, shift) = self.place(slot);
        (memory.load(word) >> shift) as u8 == salt as u8
    }

    /// Notes the salt of the user that is published in this slot; that one is taken out need not be noted. There is one
    /// writer at a time.
    pub fn note<M: Memory>(&self, memory: &M, slot: u32, salt: u32) {
        let (word, shift) = self.place(slot);
        let others = memory.load(word) & !(0xff << shift);
        memory.store(word, others | (salt as u8 as u64) << shift);
    }

    #[inline(always)]
    fn place(&self, slot: u32) -> (&AtomicU64, u32) {
        (&self.words[(slot / 8) as usize % 8], slot % 8 * 8)
    }
}

/// One user's state, shared by all CPUs: changed by compare-and-swap and atomic addition only. All zero for a new user.
/// A packet touches the user's line, the next one, and uplink one word of the window.
#[derive(Debug, Default)]
#[repr(C)]
pub struct StateEntry {
    /// Packets relayed downlink. With the bytes, the end of the user's cache line.
    pub downlink_packets: AtomicU64,
    /// Bytes of the UDP payloads relayed downlink.
    pub downlink_bytes: AtomicU64,
    /// Theoretical arrival time of the rate limit (GCRA), on the program's clock.
    pub tat_ns: AtomicU64,
    /// The newest packet number so far.
    pub newest: AtomicU64,
    /// Guards `client` and `client_hop`: bits 0..32 a sequence number, odd while they are being written; 32..40 the
    /// listener's index; 40 set while the window is being emptied; 41..44 the number of the interface that its packets
    /// come in by; 44 set if they have VLAN tags, which are in `client_tags`; 48..64 the [`Control::block_generation`] that
    /// the address was checked against.
    pub client_guard: AtomicU64,
    /// The client's address, as [`Address::words`].
    pub client: [AtomicU64; 2],
    /// The client's port (network order, bits 48..64) and the MAC address that its packets come from (bits 0..48).
    /// 0 until the client is known.
    pub client_hop: AtomicU64,
    /// Packets relayed uplink.
    pub uplink_packets: AtomicU64,
    /// Bytes of the UDP payloads relayed uplink, tokens not counted.
    pub uplink_bytes: AtomicU64,
    /// The replay window (see `admission`).
    pub window: [AtomicU64; WINDOW_WORDS],
}

impl StateEntry {
    /// Forgets everything, for another user or a renewed grant.
    pub fn clear<M: Memory>(&self, memory: &M) {
        let StateEntry {
            tat_ns,
            newest,
            client_guard,
            client,
            client_hop,
            uplink_packets,
            uplink_bytes,
            window,
            downlink_packets,
            downlink_bytes,
        } = self;
        let single = [
            tat_ns,
            newest,
            client_guard,
            client_hop,
            uplink_packets,
            uplink_bytes,
            downlink_packets,
            downlink_bytes,
        ];
        for word in single.into_iter().chain(client).chain(window) {
            memory.store(word, 0);
        }
    }
}

/// The limit of one user's downlink packets, in `down_limit_map`, and what is spent of it. Nothing reads it but for a user
/// that [has one](User::has_down_limit).
#[derive(Debug, Default)]
#[repr(C, align(16))]
pub struct DownLimitEntry {
    /// As in [`User`]: `interval_ns`, then `burst` in the upper half, so that a change is one write.
    limit: AtomicU64,
    /// Theoretical arrival time (GCRA), on the program's clock; the program's own.
    pub tat_ns: AtomicU64,
}

impl DownLimitEntry {
    /// `interval_ns` and `burst`.
    #[inline(always)]
    #[must_use]
    pub fn limit<M: Memory>(&self, memory: &M) -> (u32, u32) {
        let limit = memory.load(&self.limit);
        (limit as u32, (limit >> 32) as u32)
    }

    /// Sets the limit, before a user is published that has it; what is spent stays spent.
    pub fn set_limit<M: Memory>(&self, memory: &M, interval_ns: u32, burst: u32) {
        memory.store(&self.limit, interval_ns as u64 | (burst as u64) << 32);
    }

    /// Forgets what is spent, for another user or a renewed grant.
    pub fn clear<M: Memory>(&self, memory: &M) {
        memory.store(&self.tat_ns, 0);
    }
}

/// What all users of one destination together have spent of its limit ([`Settings::destination_interval_ns`]).
#[derive(Debug, Default)]
#[repr(C)]
pub struct DestinationLimitEntry {
    /// Theoretical arrival time (GCRA), on the program's clock; the program's own.
    pub tat_ns: AtomicU64,
}

/// Where a next hop is reached (a plain value).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct NextHop {
    /// MAC address of the next hop.
    pub mac: Mac,
    /// Largest IP packet that fits, in bytes.
    pub mtu: u16,
    /// Number of the interface that leads to it.
    pub interface: u8,
    /// The VLAN tags of frames to it.
    pub tags: Tags,
}

impl NextHop {
    #[inline(always)]
    fn of_words([hop, link]: [u64; 2]) -> Option<Self> {
        if hop == 0 {
            return None;
        }
        Some(Self {
            mac: Mac::from_word(hop),
            mtu: (hop >> 48) as u16,
            interface: link as u8,
            tags: Tags::from_word(link >> 8),
        })
    }

    fn words(self) -> [u64; 2] {
        [
            self.mac.word() | (self.mtu as u64) << 48,
            self.interface as u64 | self.tags.word() << 8,
        ]
    }
}

/// One destination in `dest_map`, shared by its users.
///
/// The next hop takes two words, and there are two places for it: the one that `turn` says is in force, the other one
/// is where the next change is written before `turn` says so. So a reader gets either all of the old one or all of the
/// new one, and waits for nobody, even if the writer stops half-way for good.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct DestinationEntry {
    /// As [`Address::words`]; all zero in an unused entry.
    address: [AtomicU64; 2],
    /// Port in network order, bits 0..16.
    port: AtomicU64,
    /// How often the next hop has changed; the lowest bit chooses one of `next_hops`.
    turn: AtomicU64,
    /// Each the MAC address (bits 0..48) and MTU (bits 48..64) of the next hop, 0 while unresolved; then the number of
    /// the interface (bits 0..8) and the VLAN tags (bits 8..44, as [`Tags::word`]).
    next_hops: [[AtomicU64; 2]; 2],
}

impl DestinationEntry {
    /// Destination address and port.
    #[inline(always)]
    #[must_use]
    pub fn endpoint<M: Memory>(&self, memory: &M) -> (Address, Be16) {
        let words = [memory.load(&self.address[0]), memory.load(&self.address[1])];
        (
            Address::from_words(words),
            Be16::from_raw(memory.load(&self.port) as u16),
        )
    }

    /// The next hop, if it is known.
    #[inline(always)]
    #[must_use]
    pub fn next_hop<M: Memory>(&self, memory: &M) -> Option<NextHop> {
        for _ in 0..memory.tries() {
            let turn = memory.load(&self.turn);
            let [hop, link] = &self.next_hops[turn as usize % 2];
            let words = [memory.load(hop), memory.load(link)];
            // Two changes later this place is written again.
            if memory.load(&self.turn) == turn {
                return NextHop::of_words(words);
            }
        }
        None
    }

    /// The next hop, where there are one interface and no tags: in one word, which nobody writes half of.
    #[inline(always)]
    #[must_use]
    pub fn plain_next_hop<M: Memory>(&self, memory: &M) -> Option<NextHop> {
        let turn = memory.load(&self.turn);
        NextHop::of_words([memory.load(&self.next_hops[turn as usize % 2][0]), 0])
    }

    /// Sets the endpoint. Only while no published user refers to this entry.
    pub fn set_endpoint<M: Memory>(&self, memory: &M, address: Address, port: Be16) {
        let words = address.words();
        memory.store(&self.address[0], words[0]);
        memory.store(&self.address[1], words[1]);
        memory.store(&self.port, port.raw() as u64);
    }

    /// Sets or clears the next hop of all users of this destination at once. There is one writer at a time.
    pub fn set_next_hop<M: Memory>(&self, memory: &M, hop: Option<NextHop>) {
        let next = memory.load(&self.turn).wrapping_add(1);
        let place = &self.next_hops[next as usize % 2];
        for (word, value) in place.iter().zip(hop.map_or([0; 2], NextHop::words)) {
            memory.store(word, value);
        }
        memory.store(&self.turn, next);
    }
}

/// A key of `blocklist`: the prefix length counts from the front of the 128-bit address, IPv4 as `::ffff:a.b.c.d`, so
/// an IPv4 prefix is 96 bits longer than written.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[cfg_attr(not(target_arch = "bpf"), derive(FromBytes, Immutable, IntoBytes, KnownLayout))]
#[repr(C)]
pub struct PrefixKey {
    /// Bits of the prefix, 0 to 128.
    pub length: u32,
    /// The address.
    pub address: [u32; 4],
}

/// The latency histogram of one CPU.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[cfg_attr(not(target_arch = "bpf"), derive(FromBytes, Immutable, IntoBytes, KnownLayout))]
#[repr(C)]
pub struct Latency {
    /// Packets seen, sampled or not; only with sampling on.
    pub packets: u64,
    /// Sum of all sampled times, in nanoseconds.
    pub sum_ns: u64,
    /// Samples by time: see [`LATENCY_BUCKETS`].
    pub buckets: [u64; LATENCY_BUCKETS],
}

/// A sampled drop.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[cfg_attr(not(target_arch = "bpf"), derive(FromBytes, Immutable, IntoBytes, KnownLayout))]
#[repr(C)]
pub struct DropEvent {
    /// The program's clock.
    pub now_ns: u64,
    /// Number of the [`Reason`](crate::verdict::Reason).
    pub reason: u8,
    /// Number of the [`Direction`](crate::verdict::Direction).
    pub direction: u8,
    /// How many of `bytes` are the packet's.
    pub captured: u16,
    /// Length of the packet.
    pub length: u32,
    /// The start of the packet, from its Ethernet header.
    pub bytes: [u8; EVENT_BYTES],
}

const _: () = {
    assert!(size_of::<Listener>() == 40);
    assert!(size_of::<Settings>() == 88 + 16 * MAX_INTERFACES + 40 * MAX_LISTENERS + 32 * MAX_EGRESS);
    assert!(size_of::<Control>() == 24);
    assert!(size_of::<SlotEntry>() == 256);
    assert!(offset_of!(SlotEntry, state.tat_ns) == 64 && offset_of!(SlotEntry, state.window) == 128);
    assert!(size_of::<SaltEntry>() == 64);
    assert!(size_of::<DestinationEntry>() == 64);
    assert!(size_of::<DownLimitEntry>() == 16);
    assert!(size_of::<DestinationLimitEntry>() == 8);
    assert!(size_of::<PrefixKey>() == 20);
    assert!(size_of::<Latency>() == 16 + 8 * LATENCY_BUCKETS);
    assert!(size_of::<DropEvent>() == 16 + EVENT_BYTES);
    assert!(WINDOW_WORDS * 32 == REPLAY_WINDOW as usize);
};
