//! XDP programs for measuring. A test run does not restore a frame that a program has rewritten, so the feeder writes
//! each one anew before the program to be measured gets it. `live` has those for measuring on a wire, and `nat` what
//! the relay is compared with there.

#![no_std]
#![no_main]
#![expect(missing_docs, reason = "the xdp macro makes the public functions")]
#![expect(
    clippy::needless_pass_by_value,
    reason = "the xdp macro hands the programs their context by value"
)]

mod live;
mod nat;

use aya_ebpf::{
    bindings::xdp_action,
    helpers::bpf_xdp_adjust_head,
    macros::{map, xdp},
    maps::{Array, ProgramArray},
    programs::XdpContext,
};
use lab_ebpf::{HEAD_BYTES, RING};

const WORDS: usize = HEAD_BYTES / 8;

#[map(name = "frames")]
static FRAMES: Array<[u64; WORDS]> = Array::with_max_entries(RING, 0);
#[map(name = "feed")]
static FEED: Array<[u32; 3]> = Array::with_max_entries(1, 0);
#[map(name = "targets")]
static TARGETS: ProgramArray = ProgramArray::with_max_entries(2, 0);

#[xdp(frags)]
pub fn feeder(ctx: XdpContext) -> u32 {
    match feed(&ctx) {
        Some(never) => never,
        None => xdp_action::XDP_ABORTED,
    }
}

#[inline(always)]
fn feed(ctx: &XdpContext) -> Option<u32> {
    let state = FEED.get_ptr_mut(0)?;
    // SAFETY: the pointer is to the only element, which only this program changes while a test run lasts.
    let [next, bytes, target] = unsafe { *state };
    // SAFETY: as above.
    unsafe { (*state)[0] = next.wrapping_add(1) };
    let found = (ctx.data_end() - ctx.data()) as i32;
    // SAFETY: the context is this program's own; pointers into the packet are made after the call.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, found - bytes as i32) } != 0 {
        return None;
    }
    let frame = FRAMES.get_ptr(next & (RING - 1))?;
    let head = ctx.data();
    if head + HEAD_BYTES > ctx.data_end() {
        return None;
    }
    for word in 0..WORDS {
        // SAFETY: the element has WORDS words, and the packet so many bytes, as was just checked; BPF takes unaligned
        // stores.
        unsafe { (head as *mut u64).add(word).write_unaligned((*frame)[word]) };
    }
    // SAFETY: the context is this program's own, and every program in the map is an XDP program.
    unsafe { TARGETS.tail_call(ctx, target) };
    Some(xdp_action::XDP_DROP)
}

#[xdp(frags)]
pub fn floor(ctx: XdpContext) -> u32 {
    let head = ctx.data();
    if head + 14 > ctx.data_end() {
        return xdp_action::XDP_ABORTED;
    }
    let words = head as *mut [u16; 6];
    // SAFETY: 12 bytes are there, as was just checked; BPF takes unaligned access.
    unsafe {
        let [a, b, c, d, e, f] = words.read_unaligned();
        words.write_unaligned([d, e, f, a, b, c]);
    }
    xdp_action::XDP_TX
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
