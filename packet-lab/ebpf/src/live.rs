//! Sending and receiving on a wire. A live test run gives the same pages to the generator again and again, as the last
//! program left them, so it writes each frame's head anew; what is behind the head nobody changes.

use aya_ebpf::{
    bindings::xdp_action,
    helpers::bpf_ktime_get_ns,
    macros::{map, xdp},
    maps::Array,
    programs::XdpContext,
};
use lab_ebpf::{HEAD_BYTES, RING, generator as sent, receiver as seen};

use crate::{FRAMES, WORDS, nat::Headers};

#[map(name = "generator_state")]
static GENERATOR: Array<[u64; 3]> = Array::with_max_entries(1, 0);
#[map(name = "receiver_state")]
static RECEIVER: Array<[u64; 7]> = Array::with_max_entries(1, 0);

#[xdp(frags)]
pub fn generator(ctx: XdpContext) -> u32 {
    generate(&ctx).unwrap_or(xdp_action::XDP_ABORTED)
}

#[inline(always)]
fn generate(ctx: &XdpContext) -> Option<u32> {
    let state = GENERATOR.get_ptr_mut(0)?;
    // SAFETY: the pointer is to the only element, which only this program changes while a test run lasts.
    let next = unsafe { (*state)[sent::NEXT] };
    if next == 0 {
        // SAFETY: as above; the helper takes no arguments and only reads kernel state.
        unsafe { (*state)[sent::STARTED_NS] = bpf_ktime_get_ns() };
    }
    let frame = FRAMES.get_ptr(next as u32 & (RING - 1))?;
    let head = ctx.data();
    if head + HEAD_BYTES > ctx.data_end() {
        return None;
    }
    for word in 0..WORDS {
        // SAFETY: the element has WORDS words, and the packet so many bytes, as was just checked; BPF takes unaligned
        // stores.
        unsafe { (head as *mut u64).add(word).write_unaligned((*frame)[word]) };
    }
    // SAFETY: as above.
    unsafe {
        (*state)[sent::NEXT] = next + 1;
        Some((*state)[sent::ACTION] as u32)
    }
}

#[xdp(frags)]
pub fn receiver(ctx: XdpContext) -> u32 {
    receive(&ctx).unwrap_or(xdp_action::XDP_PASS)
}

#[inline(always)]
fn receive(ctx: &XdpContext) -> Option<u32> {
    let state = RECEIVER.get_ptr_mut(0)?;
    let headers = Headers::of(ctx)?;
    // SAFETY: `of` checked that the headers are inside the packet.
    let headers = unsafe { &*headers };
    if !headers.is_plain_udp() {
        return None;
    }
    let bytes = (ctx.data_end() - ctx.data()) as u64;
    let [from, to] = [headers.from, headers.to].map(u64::from);
    let addresses = if cfg!(target_endian = "little") {
        to << 32 | from
    } else {
        from << 32 | to
    };
    // SAFETY: the pointer is to the only element; the frames of one queue are received one after the other.
    let state = unsafe { &mut *state };
    if addresses != state[seen::ADDRESSES]
        || u64::from(headers.ports()) != state[seen::PORTS]
        || bytes != state[seen::FRAME_BYTES]
    {
        state[seen::OTHERS] += 1;
        return None;
    }
    state[seen::DELIVERED] += 1;
    if state[seen::DELIVERED] == state[seen::WANTED] {
        // SAFETY: the helper takes no arguments and only reads kernel state.
        state[seen::ENDED_NS] = unsafe { bpf_ktime_get_ns() };
    }
    Some(xdp_action::XDP_DROP)
}
