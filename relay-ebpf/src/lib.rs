//! The data plane of the LumenLink relay. Everything that decides about a packet is plain `no_std` Rust without unsafe
//! code, compiled for the host (tests, fuzzing) and for BPF (the product); `main.rs` is the XDP program around it.

#![no_std]
#![forbid(unsafe_code)]
#![expect(
    clippy::inline_always,
    reason = "the program is one BPF function: each call would cost it about 10 ns"
)]

pub mod admission;
pub mod downlink;
pub mod errors;
#[cfg(not(target_arch = "bpf"))]
pub mod host;
pub mod layout;
pub mod platform;
pub mod token;
pub mod translate;
pub mod uplink;
pub mod verdict;
pub mod wire;

use layout::{Listener, Settings};
use platform::Platform;
use translate::Packet;
use verdict::{Direction, Fate, Reason, Verdict};
use wire::{Frame, ethernet, ip::Ip, ipv4::Ipv4, ipv6::Ipv6};

/// What became of a packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Outcome {
    /// Which way it was going; uplink for unrelated traffic.
    pub direction: Direction,
    /// Why it was treated so.
    pub reason: Reason,
    /// Whether the frame has become an ICMP message to its sender.
    pub answered: bool,
}

impl Outcome {
    /// What the kernel is told; `drop_unmatched` is the operator's choice for unsolicited packets.
    #[inline(always)]
    #[must_use]
    pub const fn verdict(self, drop_unmatched: bool) -> Verdict {
        if self.answered {
            Verdict::Tx
        } else {
            self.reason.verdict(drop_unmatched)
        }
    }
}

/// What is decided about a packet. All of it is done but what is rare.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Decision {
    /// Which way it was going; uplink for unrelated traffic.
    pub direction: Direction,
    /// What becomes of it.
    pub fate: Fate,
}

const UNRELATED: Decision = Decision {
    direction: Direction::Uplink,
    fate: Fate::Settled(Reason::Unrelated),
};

/// Decides about a frame, rewrites it if it is to be transmitted, and answers it if it is to be answered. A frame that is
/// to be passed is not changed.
pub fn process<F: Frame, P: Platform>(frame: &mut F, platform: &P) -> Outcome {
    let Decision { direction, fate } = decide(frame, platform);
    let answered = match fate {
        Fate::TooBig { mtu } => errors::answer(frame, platform, mtu).is_some(),
        Fate::Settled(_) => false,
    };
    Outcome {
        direction,
        reason: fate.reason(),
        answered,
    }
}

/// Decides about a frame and, if it is to be transmitted, rewrites it: all of [`process`] that is not rare.
#[inline(always)]
pub fn decide<F: Frame, P: Platform>(frame: &mut F, platform: &P) -> Decision {
    match ethernet::ethertype(frame) {
        Some(Ipv4::ETHERTYPE) => process_ip::<F, P, Ipv4>(frame, platform),
        Some(Ipv6::ETHERTYPE) => process_ip::<F, P, Ipv6>(frame, platform),
        _ => UNRELATED,
    }
}

#[inline(always)]
fn process_ip<F: Frame, P: Platform, I: Ip>(frame: &mut F, platform: &P) -> Decision {
    let Some(packet) = Packet::<I>::parse(frame, ethernet::HEADER_BYTES) else {
        return UNRELATED;
    };
    let settings = platform.settings();
    if let Some((listener, index)) = listener(settings, &packet) {
        return Decision {
            direction: Direction::Uplink,
            fate: uplink::process(frame, platform, &packet, listener, index),
        };
    }
    if let Some(slot) = downlink::slot(settings, packet.ip.destination(), packet.udp.destination) {
        return Decision {
            direction: Direction::Downlink,
            fate: downlink::process(frame, platform, &packet, slot),
        };
    }
    UNRELATED
}

#[inline(always)]
fn listener<'a, I: Ip>(settings: &'a Settings, packet: &Packet<I>) -> Option<(&'a Listener, u8)> {
    for (index, listener) in settings.listeners.iter().enumerate() {
        if index >= settings.listener_count as usize {
            break;
        }
        if listener.port == packet.udp.destination && listener.address == packet.ip.destination() {
            return Some((listener, index as u8));
        }
    }
    None
}
