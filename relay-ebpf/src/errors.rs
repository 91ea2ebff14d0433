//! ICMP errors: telling the sender of a packet that does not fit how large its packets may be.
//!
//! All of this is rare, and the XDP program keeps it out of the way of what is not.

use crate::{
    admission,
    platform::Platform,
    wire::{
        Address, Frame,
        checksum::Change,
        ethernet,
        icmp::{self, FRAGMENTATION_NEEDED, PACKET_TOO_BIG},
        ip::Ip,
        ipv4::Ipv4,
        ipv6::Ipv6,
    },
};

/// TTL or hop limit of the relay's own messages.
const HOP_LIMIT: u8 = 64;

/// What is quoted is moved in pieces of so many bytes.
const PIECE: usize = size_of::<Piece>();
type Piece = [u32; 4];

/// What an IPv4 message quotes at least: the longest header there is, and 8 bytes of UDP. Senders' systems find the
/// socket by these.
const LEAST_QUOTE: usize = 5 * PIECE;
/// What it quotes where there is enough: RFC 1812, section 4.3.2.3, has such messages grow to 576 bytes, no further.
const QUOTE_V4: usize = 34 * PIECE;
const QUOTE_V6: usize = 77 * PIECE;
/// Bytes of the largest messages.
const MOST_V4: usize = 576;
const MOST_V6: usize = 1280;

/// No smaller MTU is told: hosts need not believe one (RFC 791; RFC 8200, section 5).
pub(crate) const LEAST_MTU_V4: usize = 68;
pub(crate) const LEAST_MTU_V6: usize = 1280;

/// Where the addresses are in an IPv4 header.
pub(crate) const SOURCE_V4: usize = 12;
pub(crate) const DESTINATION_V4: usize = 16;
/// Where they are in an IPv6 header.
pub(crate) const SOURCE_V6: usize = 8;
pub(crate) const DESTINATION_V6: usize = 24;

/// IPv4's precedence of internetwork control, as RFC 1812, section 4.3.2.5, has it for errors.
const CONTROL: u32 = 0xc0;
pub(crate) const DONT_FRAGMENT: u32 = 0x4000;

/// Turns a packet that is too big into the message to its sender that says so: IP packets of `mtu` bytes at most get
/// through. `None` if the sender is told nothing; then the frame is as it was, or must be dropped.
#[inline(always)]
pub fn answer<F: Frame, P: Platform>(frame: &mut F, platform: &P, mtu: usize) -> Option<()> {
    // Who sent it to a group is not told that somebody in it could not take it (RFC 1122, section 3.2.2).
    if ethernet::destination(frame)?.is_group() {
        return None;
    }
    let (ethertype, at) = platform.packet_in(frame)?;
    if ethertype == Ipv4::ETHERTYPE {
        answer_v4(frame, platform, at, mtu)?;
    } else {
        answer_v6(frame, platform, at, mtu)?;
    }
    let interface = platform.interface(platform.number_of_ingress(frame));
    let sender = ethernet::source(frame)?;
    ethernet::readdress(frame, sender, interface.mac)
}

#[inline(always)]
fn answer_v4<F: Frame, P: Platform>(frame: &mut F, platform: &P, at: usize, mtu: usize) -> Option<()> {
    let packet = Ipv4::parse(frame, at)?;
    let mtu = if mtu > LEAST_MTU_V4 { mtu } else { LEAST_MTU_V4 };
    let bytes = packet.total_bytes();
    // Without Don't Fragment the sender has asked for fragments, not for this; but the relay makes none.
    if bytes <= mtu || !packet.dont_fragment() || !is_one_host(packet.source()) {
        return None;
    }
    let quoted = if bytes >= MOST_V4 { QUOTE_V4 } else { LEAST_QUOTE };
    let headers = Ipv4::HEADER_BYTES + icmp::HEADER_BYTES;
    if bytes < headers + quoted {
        return None;
    }
    let _is_in_first_buffer: u8 = frame.read(at + headers + quoted - 1)?;
    if !may_send(platform) {
        return None;
    }
    let quote = quote(frame, at, headers, quoted)?;
    frame.truncate(at + headers + quoted)?;
    let message = icmp::header(FRAGMENTATION_NEEDED, mtu as u32, quote);
    frame.write(at + Ipv4::HEADER_BYTES, message)?;
    // From the quote: what is read again need not be kept meanwhile, where the stack is short.
    let [to, from]: [u32; 2] = frame.read(at + headers + SOURCE_V4)?;
    emit_v4(
        frame,
        at,
        outside_v4(HOP_LIMIT as u32, icmp::HEADER_BYTES + quoted),
        from,
        to,
    )
}

/// The first words of the IPv4 header of a message of so many bytes, in host order and without a checksum.
#[inline(always)]
pub(crate) const fn outside_v4(hop_limit: u32, message_bytes: usize) -> [u32; 3] {
    let total = (Ipv4::HEADER_BYTES + message_bytes) as u32;
    let hop = hop_limit << 24 | (icmp::PROTOCOL_V4 as u32) << 16;
    [0x4500_0000 | CONTROL << 16 | total, DONT_FRAGMENT, hop]
}

/// Writes an IPv4 header of these first words, in host order, and addresses, with its checksum.
#[inline(always)]
pub(crate) fn emit_v4<F: Frame>(frame: &mut F, at: usize, words: [u32; 3], from: u32, to: u32) -> Option<()> {
    let [first, second, hop] = words.map(u32::to_be);
    let sum = Change::default().with(first).with(second).with(hop);
    let checksum = sum.with(from).with(to).checksum();
    let hop = hop | (u16::from_be(checksum) as u32).to_be();
    frame.write(at, [first, second, hop, from, to])
}

#[inline(always)]
fn answer_v6<F: Frame, P: Platform>(frame: &mut F, platform: &P, at: usize, mtu: usize) -> Option<()> {
    let packet = Ipv6::parse(frame, at)?;
    let mtu = if mtu > LEAST_MTU_V6 { mtu } else { LEAST_MTU_V6 };
    // What is larger than any MTU that is told is larger than the message, too.
    if packet.total_bytes() <= mtu || !is_one_host(packet.source()) {
        return None;
    }
    let headers = Ipv6::HEADER_BYTES + icmp::HEADER_BYTES;
    let _is_in_first_buffer: u8 = frame.read(at + headers + QUOTE_V6 - 1)?;
    if !may_send(platform) {
        return None;
    }
    let quote = quote(frame, at, headers, QUOTE_V6)?;
    frame.truncate(at + headers + QUOTE_V6)?;
    let length = (icmp::HEADER_BYTES + QUOTE_V6) as u32;
    let mut covered = quote.with(length.to_be()).with((icmp::PROTOCOL_V6 as u32).to_be());
    for (old, new) in [(SOURCE_V6, DESTINATION_V6), (DESTINATION_V6, SOURCE_V6)] {
        let address: Piece = frame.read(at + headers + old)?;
        covered = address.iter().fold(covered, |sum, &word| sum.with(word));
        frame.write(at + new, address)?;
    }
    let message = icmp::header(PACKET_TOO_BIG, mtu as u32, covered);
    frame.write(at + Ipv6::HEADER_BYTES, message)?;
    let rest = length << 16 | (icmp::PROTOCOL_V6 as u32) << 8 | HOP_LIMIT as u32;
    frame.write(at, [0x6000_0000_u32.to_be(), rest.to_be()])
}

/// Moves the beginning of the packet at `from` towards the end, by as many bytes as the headers of the message take,
/// and returns its sum. So no room is needed in front of the frame, which some drivers do not leave.
#[inline(always)]
fn quote<F: Frame>(frame: &mut F, from: usize, by: usize, bytes: usize) -> Option<Change> {
    let mut sum = Change::default();
    let mut left = bytes;
    while left > 0 {
        left -= PIECE;
        // Of the compiler's sums, the verifier does not follow those that go beyond this and back.
        let at = frame.unknown(from + left);
        let piece: Piece = frame.read(at)?;
        frame.write(at + by, piece)?;
        sum = piece.iter().fold(sum, |sum, &word| sum.with(word));
    }
    Some(sum)
}

/// Whether an address names one host that could be answered: not unspecified, loopback, a group or reserved.
#[inline(always)]
fn is_one_host(address: Address) -> bool {
    if let Some(v4) = address.as_v4() {
        let first = u32::from_be(v4) >> 24;
        return first != 0 && first != 127 && first < 224;
    }
    let [a, b, c, d] = address.0;
    let is_group = u32::from_be(a) >> 24 == 0xff;
    let is_unspecified_or_loopback = a == 0 && b == 0 && c == 0 && u32::from_be(d) <= 1;
    !is_group && !is_unspecified_or_loopback
}

/// Takes one message from the budget of all, if there is one left.
#[inline(always)]
pub(crate) fn may_send<P: Platform>(platform: &P) -> bool {
    let settings = platform.settings();
    if settings.icmp_interval_ns == 0 {
        return false;
    }
    let Some(tat_ns) = platform.icmp_tat() else {
        return false;
    };
    let (interval_ns, burst) = (settings.icmp_interval_ns, settings.icmp_burst);
    admission::spend(platform, tat_ns, interval_ns, burst, platform.now_ns())
}

const _: () = {
    assert!(LEAST_QUOTE >= 60 + 8, "Linux asks for the whole header and 8 bytes");
    assert!(Ipv4::HEADER_BYTES + icmp::HEADER_BYTES + QUOTE_V4 <= MOST_V4);
    assert!(Ipv6::HEADER_BYTES + icmp::HEADER_BYTES + QUOTE_V6 <= MOST_V6);
    assert!(
        Ipv4::HEADER_BYTES + icmp::HEADER_BYTES >= PIECE,
        "pieces are moved over what is quoted already"
    );
};
