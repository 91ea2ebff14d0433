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
pub mod path_errors;
pub mod platform;
pub mod token;
pub mod translate;
pub mod uplink;
pub mod verdict;
pub mod wire;

use layout::{MAX_LISTENERS, Settings};
use path_errors::Sender;
use platform::Platform;
use translate::Packet;
use verdict::{Decision, Direction, Reason, Verdict};
use wire::{Frame, ip::Ip, ipv4::Ipv4, ipv6::Ipv6};

/// What became of a packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Outcome {
    /// Which way it was going; uplink for unrelated traffic.
    pub direction: Direction,
    /// Why it was treated so.
    pub reason: Reason,
    /// Whether the frame has become an ICMP message to the sender of what is wrong: of itself, or of what it was about.
    pub answered: bool,
    /// The number of the interface that it is to be sent out of, if that is another than it came in by.
    pub redirect: Option<u8>,
}

impl Outcome {
    /// What the kernel is told; `drop_unmatched` is the operator's choice for unsolicited packets.
    #[inline(always)]
    #[must_use]
    pub const fn verdict(self, drop_unmatched: bool) -> Verdict {
        if self.answered {
            Reason::IcmpError.verdict(drop_unmatched, self.redirect.is_some())
        } else {
            self.reason.verdict(drop_unmatched, self.redirect.is_some())
        }
    }
}

/// About what is neither for a listener nor for an egress port.
pub const UNRELATED: Decision = Decision::settled(Reason::Unrelated);

/// Decides about a frame, rewrites it if it is to be transmitted, and answers it if it is to be answered. A frame that is
/// to be passed is not changed.
pub fn process<F: Frame, P: Platform>(frame: &mut F, platform: &P) -> Outcome {
    let mut decision = decide(frame, platform);
    if decision == UNRELATED && path_errors::is_icmp(frame) {
        decision = match path_errors::sender(frame, platform) {
            Some(sender) if path_errors::may_pass_on(frame, platform, sender) => pass_on(frame, platform, sender),
            _ => UNRELATED,
        };
    }
    let mtu = decision.told_mtu();
    let is_passed_on = decision.reason() == Reason::IcmpError;
    Outcome {
        direction: decision.direction(),
        reason: decision.reason(),
        answered: is_passed_on || mtu.is_some_and(|mtu| errors::answer(frame, platform, mtu).is_some()),
        redirect: decision.redirect(),
    }
}

/// Decides about an ICMP error that [may be passed on](path_errors::may_pass_on) to the client of this sender, and rewrites
/// it to be transmitted.
#[inline(always)]
pub fn pass_on<F: Frame, P: Platform>(frame: &mut F, platform: &P, sender: Sender) -> Decision {
    let interface = match path_errors::pass_on(frame, platform, sender) {
        Ok(interface) => interface,
        Err(Reason::Unrelated) => return UNRELATED,
        Err(reason) => return Decision::settled(reason).going(Direction::Downlink),
    };
    let decision = Decision::sent(Reason::IcmpError, interface).going(Direction::Downlink);
    if interface == platform.number_of_ingress(frame) {
        decision
    } else {
        decision.redirected()
    }
}

/// Decides about a frame and, if it is to be transmitted, rewrites it: all of [`process`] that is not rare.
#[inline(always)]
pub fn decide<F: Frame, P: Platform>(frame: &mut F, platform: &P) -> Decision {
    match platform.packet_in(frame) {
        Some((Ipv4::ETHERTYPE, at)) => process_ip::<F, P, Ipv4>(frame, platform, at),
        Some((Ipv6::ETHERTYPE, at)) => process_ip::<F, P, Ipv6>(frame, platform, at),
        _ => UNRELATED,
    }
}

#[inline(always)]
fn process_ip<F: Frame, P: Platform, I: Ip>(frame: &mut F, platform: &P, at: usize) -> Decision {
    // Before anything else is known of it, which would have to be kept meanwhile.
    frame.measure(I::claimed_end(frame, at));
    let Some(packet) = Packet::<I>::parse(frame, at) else {
        return UNRELATED;
    };
    let settings = platform.settings();
    let interface = platform.number_of_ingress(frame);
    let decision = if let Some(index) = listener(settings, &packet) {
        let (listener, index) = if settings.listener_count > 1 {
            // Masked, not compared: the verifier follows the mask.
            let index = frame.forgotten::<{ MAX_LISTENERS.ilog2() }>(index) as usize % MAX_LISTENERS;
            (&settings.listeners[index], index as u8)
        } else {
            (&settings.listeners[0], 0)
        };
        uplink::process(frame, platform, &packet, listener, index, interface)
    } else if let Some(slot) = downlink::slot(settings, packet.ip.destination(), packet.udp.destination) {
        let slot = frame.forgotten::<32>(slot);
        downlink::process(frame, platform, &packet, slot).going(Direction::Downlink)
    } else {
        return UNRELATED;
    };
    match decision.interface() {
        Some(egress) if platform.has_several_interfaces() && egress != interface => decision.redirected(),
        _ => decision,
    }
}

#[inline(always)]
fn listener<I: Ip>(settings: &Settings, packet: &Packet<I>) -> Option<u32> {
    for (index, listener) in settings.listeners.iter().enumerate() {
        if index >= settings.listener_count as usize {
            break;
        }
        if listener.port == packet.udp.destination && listener.address == packet.ip.destination() {
            return Some(index as u32);
        }
    }
    None
}
