//! The XDP program: the data plane's glue to the kernel. All unsafe code is here.

#![no_std]
#![no_main]
#![feature(core_intrinsics, asm_experimental_arch)]
#![expect(missing_docs, reason = "the xdp macro makes the public functions")]
#![expect(
    clippy::needless_pass_by_value,
    reason = "the xdp macro hands the programs their context by value"
)]
#![expect(
    internal_features,
    reason = "BPF has compare-and-swap, but core::sync::atomic does not offer it there"
)]

use core::{
    arch::asm,
    intrinsics::{AtomicOrdering, atomic_cxchg, atomic_xadd},
    mem::MaybeUninit,
    ptr,
    sync::atomic::AtomicU64,
};

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, xdp_action, xdp_md},
    helpers::{
        bpf_jiffies64, bpf_ktime_get_ns, bpf_xdp_adjust_head, bpf_xdp_adjust_tail, bpf_xdp_get_buff_len,
        bpf_xdp_load_bytes,
    },
    macros::{map, xdp},
    maps::{Array, DevMap, LpmTrie, PerCpuArray, RingBuf, lpm_trie::Key},
    programs::XdpContext,
};
use relay_ebpf::{
    UNRELATED, decide, errors,
    layout::{
        BLOCKED, Control, DestinationEntry, DestinationLimitEntry, DownLimitEntry, DropEvent, EVENT_BYTES,
        LATENCY_BUCKETS, Latency, MAX_INTERFACES, SaltEntry, Settings, SlotEntry,
    },
    path_errors::{self, Sender},
    platform::{Memory, Platform, TRIES},
    verdict::{COUNTERS, Decision, Direction, Reason, Verdict},
    wire::{
        Address, Frame, Word,
        checksum::{self, Change},
    },
};

/// Sizes of maps that the loader sets from the configuration.
const BY_CONFIGURATION: u32 = 1;

#[unsafe(no_mangle)]
static SETTINGS: Settings = Settings {
    tick_ns: 1,
    lab_clock: 0,
    relay_id: 0,
    max_users: 0,
    max_destinations: 0,
    listener_count: 0,
    egress_v4_count: 0,
    egress_v6_count: 0,
    first_egress_port: 0,
    egress_ports: 0,
    drop_unmatched: 0,
    latency_sample: 0,
    event_sample: 0,
    interface_count: 0,
    icmp_interval_ns: 0,
    icmp_burst: 0,
    option_carrier: 0,
    destination_interval_ns: 0,
    destination_burst: 0,
    vlan: 0,
    reserved: 0,
    interfaces: [relay_ebpf::layout::Interface {
        mac: relay_ebpf::wire::Mac::new([0; 6]),
        index: 0,
        mtu: 0,
    }; MAX_INTERFACES],
    listeners: [relay_ebpf::layout::Listener {
        header_key: [0; 2],
        address: Address([0; 4]),
        port: relay_ebpf::wire::Be16::new(0),
        protected: 0,
        reserved: [0; 5],
    }; relay_ebpf::layout::MAX_LISTENERS],
    egress_v4: [Address([0; 4]); relay_ebpf::layout::MAX_EGRESS],
    egress_v6: [Address([0; 4]); relay_ebpf::layout::MAX_EGRESS],
};

#[map(name = "user_map")]
static USERS: Array<SlotEntry> = Array::with_max_entries(BY_CONFIGURATION, BPF_F_MMAPABLE);
#[map(name = "salt_map")]
static SALTS: Array<SaltEntry> = Array::with_max_entries(BY_CONFIGURATION, BPF_F_MMAPABLE);
#[map(name = "client_tags")]
static CLIENT_TAGS: Array<AtomicU64> = Array::with_max_entries(BY_CONFIGURATION, BPF_F_MMAPABLE);
#[map(name = "dest_map")]
static DESTINATIONS: Array<DestinationEntry> = Array::with_max_entries(BY_CONFIGURATION, BPF_F_MMAPABLE);
#[map(name = "down_limit_map")]
static DOWN_LIMITS: Array<DownLimitEntry> = Array::with_max_entries(BY_CONFIGURATION, BPF_F_MMAPABLE);
#[map(name = "dest_limit_map")]
static DESTINATION_LIMITS: Array<DestinationLimitEntry> = Array::with_max_entries(BY_CONFIGURATION, BPF_F_MMAPABLE);
#[map(name = "control")]
static CONTROL: Array<Control> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map(name = "blocklist")]
static BLOCKLIST: LpmTrie<[u32; 4], u32> = LpmTrie::with_max_entries(65_536, BPF_F_NO_PREALLOC);
#[map(name = "counters")]
static COUNTS: PerCpuArray<[u64; 2]> = PerCpuArray::with_max_entries(COUNTERS, 0);
#[map(name = "latency")]
static LATENCY: PerCpuArray<Latency> = PerCpuArray::with_max_entries(1, 0);
#[map(name = "events")]
static EVENTS: RingBuf = RingBuf::with_byte_size(1 << 18, 0);
#[map(name = "tx_ports")]
static TX_PORTS: DevMap = DevMap::with_max_entries(MAX_INTERFACES as u32, 0);
#[map(name = "layout")]
static LAYOUT: Array<u32> = Array::with_max_entries(1, 0);

/// The relay.
#[xdp(frags)]
#[inline(always)]
pub fn relay(ctx: XdpContext) -> u32 {
    // One of the two is gone once the program is loaded.
    if settings().is_plain() {
        run(&ctx, &Kernel::<true>::new())
    } else {
        run(&ctx, &Kernel::<false>::new())
    }
}

#[inline(always)]
fn run<const PLAIN: bool>(ctx: &XdpContext, platform: &Kernel<PLAIN>) -> u32 {
    let timer = Timer::start(platform.settings);
    let mut frame = PacketFrame::new(ctx);
    // Opaque, or the compiler keeps what follows from each decision in further words.
    let decided = decide(&mut frame, platform);
    let decision = Decision::from_word(frame.unknown(decided.word()));
    let bytes = frame.bytes() as u64;
    if decision == UNRELATED && path_errors::is_icmp(&frame) {
        let sender = icmp_sender(ctx.ctx);
        if sender != NOBODY && may_pass_on(ctx.ctx, sender) {
            let action = pass_on(ctx.ctx, sender);
            timer.stop(platform.settings);
            return action;
        }
    }
    let (reason, direction, port) = (decision.reason(), decision.direction(), decision.redirect());
    let nth = count(reason.counter(direction), bytes);
    let mut verdict = reason.verdict(platform.settings.drop_unmatched != 0, port.is_some());
    if let Verdict::Drop = verdict {
        report(ctx, platform, reason as u8, direction as u8, bytes, nth);
    }
    if let Some(mtu) = decision.told_mtu()
        && answer(ctx.ctx, mtu)
    {
        count(direction.answers(), PacketFrame::new(ctx).bytes() as u64);
        verdict = Verdict::Tx;
    }
    timer.stop(platform.settings);
    action(verdict, port)
}

#[inline(always)]
fn action(verdict: Verdict, port: Option<u8>) -> u32 {
    match verdict {
        Verdict::Pass => xdp_action::XDP_PASS,
        Verdict::Drop => xdp_action::XDP_DROP,
        Verdict::Tx => xdp_action::XDP_TX,
        Verdict::Redirect => redirect(port),
    }
}

/// Has the kernel send the packet out of another interface. One that it cannot be sent out of is told by the tracepoint
/// `xdp:xdp_exception`.
#[inline(always)]
fn redirect(port: Option<u8>) -> u32 {
    TX_PORTS
        .redirect(port.unwrap_or_default() as u32, 0)
        .unwrap_or(xdp_action::XDP_ABORTED)
}

/// Tells the control process what this program's clock says: writes the jiffies into the first 8 bytes of the packet.
#[xdp(frags)]
pub fn relay_clock(ctx: XdpContext) -> u32 {
    // SAFETY: the helper takes no arguments and only reads kernel state.
    let jiffies = unsafe { bpf_jiffies64() };
    match PacketFrame::new(&ctx).write(0, jiffies) {
        Some(()) => xdp_action::XDP_PASS,
        None => xdp_action::XDP_ABORTED,
    }
}

/// [`errors::answer`]. A function of its own in the program, too: what packets that need no answer take is not more for it.
#[inline(never)]
fn answer(ctx: *mut xdp_md, mtu: usize) -> bool {
    let ctx = XdpContext::new(ctx);
    errors::answer(&mut PacketFrame::new(&ctx), &Kernel::<false>::new(), mtu).is_some()
}

/// What sums of buffers are never: [`checksum::MAX_ADDED_BYTES`] have far smaller ones.
const NO_SUM: u64 = u64::MAX;
/// Bytes that they are read at a time.
const LOADED_BYTES: usize = 32;

/// The sum of `bytes` of the frame from `offset` on, whatever buffers they are in, as 32-bit words; [`NO_SUM`] if they are
/// not all in the frame, or too many. A function of its own in the program, for the reasons of [`answer`].
#[inline(never)]
fn sum_of_buffers(ctx: *mut xdp_md, offset: usize, bytes: usize) -> u64 {
    let rest = bytes % LOADED_BYTES;
    let end = bytes - rest;
    let mut sum = 0;
    // The rest first, for the reason that `Change::adding` has.
    if rest != 0 {
        match load(ctx, offset + end, within::<LOADED_BYTES>(rest as u64)) {
            Some(loaded) => sum = loaded,
            None => return NO_SUM,
        }
    }
    let mut at = 0;
    while at < end {
        // The verifier of Linux 6.1 compares numbers with constants alone, and would not see the loop end.
        if opaque(at as *mut u8) as usize >= checksum::MAX_ADDED_BYTES {
            return NO_SUM;
        }
        match load(ctx, offset + at, LOADED_BYTES as u32) {
            Some(loaded) => sum += loaded,
            None => return NO_SUM,
        }
        at += LOADED_BYTES;
    }
    // The verifier follows how large a sum can be, and would look at what comes after it for each number of rounds. It knows
    // nothing of a number whose bytes were swapped.
    // SAFETY: arithmetic in a register; swapped twice, the number is what it was.
    unsafe { asm!("{0} = be64 {0}", "{0} = be64 {0}", inout(reg) sum, options(pure, nomem, nostack, preserves_flags)) };
    sum
}

/// The sum of `wanted` bytes of the frame from `offset` on, at most [`LOADED_BYTES`].
#[inline(always)]
fn load(ctx: *mut xdp_md, offset: usize, wanted: u32) -> Option<u64> {
    let mut words = MaybeUninit::<[u64; LOADED_BYTES / 8]>::uninit();
    let target = words.as_mut_ptr().cast::<u64>();
    // SAFETY: all words are written, those behind the last bytes as 0, and the helper writes `wanted` bytes of so many as
    // there are. Word by word, as in `report`.
    let words = unsafe {
        for word in 0..LOADED_BYTES / 8 {
            target.add(word).write_volatile(0);
        }
        if bpf_xdp_load_bytes(ctx, offset as u32, target.cast(), wanted) != 0 {
            return None;
        }
        words.assume_init()
    };
    Some(
        words
            .iter()
            .fold(0, |sum, &word| sum + (word & 0xffff_ffff) + (word >> 32)),
    )
}

/// A length, not 0, as the length of an array of `MOST` bytes at most. Helpers take no 0, and the verifier has to see that
/// this is none. By a mask that the compiler cannot take away: where it compares, the verifier of Linux 6.1 loses track of
/// a copy.
#[inline(always)]
fn within<const MOST: usize>(bytes: u64) -> u32 {
    const { assert!(MOST.is_power_of_two()) };
    let mut last = bytes.min(MOST as u64).wrapping_sub(1);
    // SAFETY: arithmetic in a register.
    unsafe {
        asm!("{0} &= {1}", inout(reg) last, const MOST - 1, options(pure, nomem, nostack, preserves_flags));
    }
    last as u32 + 1
}

/// [`path_errors::sender`] as one word, or [`NOBODY`]. Three functions one after the other do what is done about ICMP:
/// each has all that is left of the stack.
#[inline(never)]
fn icmp_sender(ctx: *mut xdp_md) -> u64 {
    let ctx = XdpContext::new(ctx);
    let sender = path_errors::sender(&PacketFrame::new(&ctx), &Kernel::<false>::new());
    sender.map_or(NOBODY, |Sender { slot, salt }| slot as u64 | (salt as u64) << 32)
}

/// No slot is so large.
const NOBODY: u64 = u64::MAX;

const fn sender(word: u64) -> Sender {
    Sender {
        slot: word as u32,
        salt: (word >> 32) as u32,
    }
}

/// [`path_errors::may_pass_on`].
#[inline(never)]
fn may_pass_on(ctx: *mut xdp_md, word: u64) -> bool {
    let ctx = XdpContext::new(ctx);
    path_errors::may_pass_on(&PacketFrame::new(&ctx), &Kernel::<false>::new(), sender(word))
}

/// [`relay_ebpf::pass_on`], the counting, and what the kernel is told.
#[inline(never)]
fn pass_on(ctx: *mut xdp_md, word: u64) -> u32 {
    let ctx = XdpContext::new(ctx);
    let platform = Kernel::<false>::new();
    let mut frame = PacketFrame::new(&ctx);
    let bytes = frame.bytes() as u64;
    let decision = relay_ebpf::pass_on(&mut frame, &platform, sender(word));
    let (reason, port) = (decision.reason(), decision.redirect());
    count(reason.counter(decision.direction()), bytes);
    if let Reason::IcmpError = reason {
        count(Direction::Uplink.answers(), frame.bytes() as u64);
    }
    action(
        reason.verdict(platform.settings.drop_unmatched != 0, port.is_some()),
        port,
    )
}

/// Counts the packet, and returns how many like it this CPU counted before.
#[inline(always)]
fn count(counter: u32, bytes: u64) -> u64 {
    let Some(counter) = COUNTS.get_ptr_mut(counter) else {
        return 0;
    };
    // SAFETY: the pointer is to this CPU's element, which nothing else writes while the program runs.
    unsafe {
        let before = (*counter)[0];
        (*counter)[0] = before + 1;
        (*counter)[1] += bytes;
        before
    }
}

/// Sends a sampled drop to the control process. A full ring loses it: drops are counted, events are samples.
#[inline(always)]
fn report(ctx: &XdpContext, platform: &impl Platform, reason: u8, direction: u8, bytes: u64, nth: u64) {
    let sample = platform.settings().event_sample as u64;
    if sample == 0 || nth & (sample - 1) != 0 {
        return;
    }
    // No frame is empty.
    let captured = within::<EVENT_BYTES>(bytes);
    let Some(mut entry) = EVENTS.reserve::<DropEvent>(0) else {
        return;
    };
    let event: *mut DropEvent = MaybeUninit::as_mut_ptr(&mut entry);
    // SAFETY: the entry is reserved, 8-byte aligned and as large as the event; the helper writes `captured` bytes of
    // `bytes`. Every field is set: the ring's memory holds old events. Word by word, since a call of memset would have
    // the verifier walk it byte by byte.
    let loaded = unsafe {
        (&raw mut (*event).now_ns).write(platform.now_ns());
        (&raw mut (*event).reason).write(reason);
        (&raw mut (*event).direction).write(direction);
        (&raw mut (*event).captured).write(captured as u16);
        (&raw mut (*event).length).write(bytes as u32);
        let target = (&raw mut (*event).bytes).cast::<u64>();
        for word in 0..EVENT_BYTES / 8 {
            target.add(word).write_volatile(0);
        }
        bpf_xdp_load_bytes(ctx.ctx, 0, target.cast(), captured)
    };
    if loaded == 0 {
        entry.submit(0);
    } else {
        entry.discard(0);
    }
}

/// Times one packet in so many. All of it is gone where sampling is off.
///
/// Two numbers of which the verifier knows nothing, whether the packet is timed or not: from a null pointer or a 0 it
/// would tell the two apart, and walk the whole program for each.
struct Timer {
    /// How many packets this CPU has had.
    nth: u64,
    /// When it began, of a packet that is timed.
    start_ns: u64,
}

impl Timer {
    #[inline(always)]
    fn start(settings: &Settings) -> Self {
        let mut timer = Self { nth: 1, start_ns: 1 };
        if settings.latency_sample == 0 {
            return timer;
        }
        if let Some(latency) = LATENCY.get_ptr_mut(0) {
            // SAFETY: the pointer is to this CPU's element, which nothing else writes while the program runs.
            unsafe {
                (*latency).packets += 1;
                timer.nth = (*latency).packets;
            }
        }
        timer.start_ns = if timer.is_running(settings) {
            // SAFETY: the helper takes no arguments and only reads kernel state.
            unsafe { bpf_ktime_get_ns() }
        } else {
            timer.nth
        };
        timer
    }

    #[inline(always)]
    fn is_running(&self, settings: &Settings) -> bool {
        self.nth & (settings.latency_sample as u64).wrapping_sub(1) == 0
    }

    #[inline(always)]
    fn stop(self, settings: &Settings) {
        if settings.latency_sample == 0 || !self.is_running(settings) {
            return;
        }
        let Some(latency) = LATENCY.get_ptr_mut(0) else {
            return;
        };
        // SAFETY: as in `start`; the bucket's index is kept below the number of buckets.
        unsafe {
            let took = bpf_ktime_get_ns() - self.start_ns;
            let bucket = bucket(took);
            (*latency).sum_ns += took;
            if bucket < LATENCY_BUCKETS {
                (*latency).buckets[bucket] += 1;
            }
        }
    }
}

/// The number of bits of the time, at most the last bucket; by halving, since BPF cannot count zeros before v4.
#[inline(always)]
fn bucket(took: u64) -> usize {
    let mut rest = took;
    let mut bits = 0;
    let mut half = 16;
    while half > 0 {
        if rest >> half != 0 {
            rest >>= half;
            bits += half;
        }
        half /= 2;
    }
    let bits = if rest != 0 { bits + 1 } else { bits };
    if bits < LATENCY_BUCKETS {
        bits
    } else {
        LATENCY_BUCKETS - 1
    }
}

#[inline(always)]
fn settings() -> &'static Settings {
    // Opaque, or the compiler takes the zeros above for granted; the loader replaces them.
    let settings = opaque((&raw const SETTINGS).cast_mut());
    // SAFETY: points to SETTINGS, which is not written while the program is loaded.
    unsafe { &*settings }
}

/// The maps, the clock and the atomics of the kernel.
struct Kernel<const PLAIN: bool> {
    settings: &'static Settings,
}

impl<const PLAIN: bool> Kernel<PLAIN> {
    #[inline(always)]
    fn new() -> Self {
        Self { settings: settings() }
    }

    #[inline(always)]
    fn control(&self) -> Option<&Control> {
        CONTROL.get(0)
    }
}

impl<const PLAIN: bool> Platform for Kernel<PLAIN> {
    const PLAIN: bool = PLAIN;

    #[inline(always)]
    fn settings(&self) -> &Settings {
        self.settings
    }

    #[inline(always)]
    fn now_ns(&self) -> u64 {
        if self.settings.lab_clock != 0 {
            return self.control().map_or(0, |control| self.load(&control.lab_now_ns));
        }
        // SAFETY: the helper takes no arguments and only reads kernel state.
        unsafe { bpf_jiffies64() }.wrapping_mul(self.settings.tick_ns)
    }

    #[inline(always)]
    fn slot(&self, slot: u32) -> Option<&SlotEntry> {
        USERS.get(slot)
    }

    #[inline(always)]
    fn salts(&self, index: u32) -> Option<&SaltEntry> {
        SALTS.get(index)
    }

    #[inline(always)]
    fn client_tags(&self, slot: u32) -> Option<&AtomicU64> {
        CLIENT_TAGS.get(slot)
    }

    #[inline(always)]
    fn destination(&self, index: u32) -> Option<&DestinationEntry> {
        DESTINATIONS.get(index)
    }

    #[inline(always)]
    fn down_limit(&self, slot: u32) -> Option<&DownLimitEntry> {
        DOWN_LIMITS.get(slot)
    }

    #[inline(always)]
    fn destination_limit(&self, index: u32) -> Option<&DestinationLimitEntry> {
        DESTINATION_LIMITS.get(index)
    }

    #[inline(always)]
    fn icmp_tat(&self) -> Option<&AtomicU64> {
        self.control().map(|control| &control.icmp_tat_ns)
    }

    #[inline(always)]
    fn block_generation(&self) -> u16 {
        self.control()
            .map_or(0, |control| self.load(&control.block_generation) as u16)
    }

    #[inline(always)]
    fn is_blocked(&self, address: Address) -> bool {
        let key = AlignedKey {
            reserved: 0,
            length: 128,
            address: address.words(),
        };
        // SAFETY: `length` and `address` lie one after the other, as in `Key`, and `key` outlives the call.
        let key = unsafe { &*(&raw const key.length).cast::<Key<[u32; 4]>>() };
        BLOCKLIST.get(key).is_some_and(|&found| found == BLOCKED)
    }
}

/// A key of the blocklist whose address is aligned: the compiler writes it in 64-bit words, which the stack only takes
/// aligned.
#[repr(C)]
struct AlignedKey {
    reserved: u32,
    length: u32,
    address: [u64; 2],
}

impl<const PLAIN: bool> Memory for Kernel<PLAIN> {
    #[inline(always)]
    fn load(&self, cell: &AtomicU64) -> u64 {
        // SAFETY: the word lives as long as its map; a read of 64 aligned bits is never torn.
        unsafe { ptr::read_volatile(cell.as_ptr()) }
    }

    #[inline(always)]
    fn store(&self, cell: &AtomicU64, word: u64) {
        // SAFETY: as in `load`.
        unsafe { ptr::write_volatile(cell.as_ptr(), word) };
    }

    #[inline(always)]
    fn touch(&self, cell: &AtomicU64) {
        // SAFETY: a read of a live word; volatile, so that it happens here although nothing uses it.
        unsafe { ptr::read_volatile(cell.as_ptr()) };
    }

    #[inline(always)]
    fn compare_exchange(&self, cell: &AtomicU64, current: u64, new: u64) -> Result<(), u64> {
        // SAFETY: the word lives as long as its map; all its changes are atomic.
        let (found, _) = unsafe {
            atomic_cxchg::<u64, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(cell.as_ptr(), current, new)
        };
        if found == current { Ok(()) } else { Err(found) }
    }

    #[inline(always)]
    fn tries(&self) -> usize {
        let tries: usize;
        // SAFETY: loads a number into a register.
        unsafe { asm!("{0} = {1}", out(reg) tries, const TRIES, options(pure, nomem, nostack, preserves_flags)) };
        tries
    }

    #[inline(always)]
    fn add(&self, cell: &AtomicU64, amount: u64) {
        // SAFETY: the word lives as long as its map; all its changes are atomic.
        unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(cell.as_ptr(), amount) };
    }
}

/// The same pointer, of which the compiler knows nothing: it can then neither fold what it points to, nor replace a
/// check of it against the packet's end by one that the verifier does not follow.
#[inline(always)]
#[expect(
    clippy::pointers_in_nomem_asm_block,
    reason = "the pointer is moved, nothing is read or written through it"
)]
fn opaque<T>(pointer: *mut T) -> *mut T {
    let same: *mut T;
    // SAFETY: a move between registers. (No instruction at all would give two source lines one place in the program,
    // which the kernel refuses.)
    unsafe { asm!("{0} = {1}", out(reg) same, in(reg) pointer, options(pure, nomem, nostack, preserves_flags)) };
    same
}

/// The packet: its first buffer is between `data` and `data_end`.
struct PacketFrame<'a> {
    ctx: &'a XdpContext,
    /// As far as it was measured.
    bytes: usize,
}

impl<'a> PacketFrame<'a> {
    #[inline(always)]
    fn new(ctx: &'a XdpContext) -> Self {
        let bytes = ctx.data_end() - ctx.data();
        Self { ctx, bytes }
    }

    /// Bytes in all buffers.
    #[inline(always)]
    fn whole_bytes(&self) -> usize {
        // SAFETY: the context is the program's own; the helper only reads it.
        unsafe { bpf_xdp_get_buff_len(self.ctx.ctx) as usize }
    }

    /// A pointer to `W` at `offset`, checked the way the verifier follows: pointer against end.
    #[inline(always)]
    fn at<W>(&self, offset: usize) -> Option<*mut W> {
        let start = opaque((self.ctx.data() + offset) as *mut W);
        (start as usize + size_of::<W>() <= self.ctx.data_end()).then_some(start)
    }
}

impl Frame for PacketFrame<'_> {
    #[inline(always)]
    fn bytes(&self) -> usize {
        self.bytes
    }

    /// Calls of helpers are dear, and most frames are in one buffer.
    #[inline(always)]
    fn measure(&mut self, claimed: usize) {
        if claimed > self.bytes {
            self.bytes = self.whole_bytes();
        }
    }

    #[inline(always)]
    fn interface_index(&self) -> u32 {
        self.ctx.ingress_ifindex() as u32
    }

    #[inline(always)]
    fn read<W: Word>(&self, offset: usize) -> Option<W> {
        // SAFETY: `at` checked that the words are inside the packet; `Word` has no invalid values.
        self.at::<W>(offset).map(|words| unsafe { words.read_unaligned() })
    }

    #[inline(always)]
    fn write<W: Word>(&mut self, offset: usize, words: W) -> Option<()> {
        // SAFETY: `at` checked that the words are inside the packet, which the program may change.
        self.at::<W>(offset)
            .map(|target| unsafe { target.write_unaligned(words) })
    }

    #[inline(always)]
    fn unknown(&self, number: usize) -> usize {
        opaque(number as *mut u8) as usize
    }

    #[inline(always)]
    fn add_to(&self, change: Change, offset: usize, bytes: usize) -> Option<Change> {
        if offset + bytes <= self.ctx.data_end() - self.ctx.data() {
            return change.adding(self, offset, bytes);
        }
        let sum = sum_of_buffers(self.ctx.ctx, offset, bytes);
        (sum != NO_SUM).then(|| change.with_sum(sum))
    }

    #[inline(always)]
    fn move_start(&mut self, bytes: isize) -> Option<()> {
        // SAFETY: the context is the program's own. All pointers into the packet are derived anew afterwards.
        let result = unsafe { bpf_xdp_adjust_head(self.ctx.ctx, bytes as i32) };
        (result == 0).then_some(())
    }

    #[inline(always)]
    fn truncate(&mut self, bytes: usize) -> Option<()> {
        let surplus = self.whole_bytes() as i32 - bytes as i32;
        if surplus < 0 {
            return None;
        }
        // SAFETY: as in `move_start`.
        let result = unsafe { bpf_xdp_adjust_tail(self.ctx.ctx, -surplus) };
        (result == 0).then_some(())
    }
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
