//! ICMP errors that come back from the path: one about a packet that was relayed uplink becomes one about the packet
//! that its client had sent; where the families differ, after RFC 7915, sections 4.2 and 5.2.
//!
//! All of this is rare, and the XDP program keeps it out of the way of what is not. The message is made anew, no longer
//! than systems need to find the socket: what followed in the client's packet was the token, and that is gone. What the
//! message says that came is read where it is needed: the stack is short, and all places are known.

use crate::{
    admission::Client,
    downlink,
    errors::{self, DESTINATION_V4, DESTINATION_V6, DONT_FRAGMENT, LEAST_MTU_V4, LEAST_MTU_V6, SOURCE_V4, SOURCE_V6},
    layout::{Listener, MAX_LISTENERS, Settings, SlotEntry, option_carrier},
    platform::Platform,
    token::TOKEN_BYTES,
    verdict::Reason,
    wire::{
        Address, Be16, Frame,
        checksum::Change,
        ethernet,
        icmp::{self, FRAGMENTATION_NEEDED, PACKET_TOO_BIG},
        ip::Ip,
        ipv4::Ipv4,
        ipv6::Ipv6,
        udp,
        vlan::Tags,
    },
};

/// In the second word of an IPv4 header: More Fragments and the offset.
const FRAGMENT: u32 = 0x3fff;
const FRAGMENT_OFFSET: u32 = 0x1fff;

/// The flow label, in the first word of an IPv6 header.
const FLOW: u32 = 0xf_ffff;
/// The largest length that an IP header can tell.
const MOST_BYTES: u32 = u16::MAX as u32;

/// Whether a frame carries ICMP right behind its IP header.
#[inline(always)]
pub fn is_icmp<F: Frame>(frame: &F) -> bool {
    let (at, protocol) = match ethernet::ethertype(frame) {
        Some(Ipv4::ETHERTYPE) => (9, icmp::PROTOCOL_V4),
        Some(Ipv6::ETHERTYPE) => (6, icmp::PROTOCOL_V6),
        _ => return false,
    };
    frame.read::<u8>(ethernet::HEADER_BYTES + at) == Some(protocol)
}

/// Whose packet an ICMP error is about: the slot and the salt of its user.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Sender {
    /// The slot.
    pub slot: u32,
    /// The salt of the user that had it.
    pub salt: u32,
}

/// Whose packet a message is about; `None` if it is no error about a packet that may have been relayed uplink.
#[inline(always)]
pub fn sender<F: Frame, P: Platform>(frame: &F, platform: &P) -> Option<Sender> {
    if ethernet::ethertype(frame)? == Ipv4::ETHERTYPE {
        sender_in::<F, P, Ipv4>(frame, platform)
    } else {
        sender_in::<F, P, Ipv6>(frame, platform)
    }
}

#[inline(always)]
fn sender_in<F: Frame, P: Platform, I: Ip>(frame: &F, platform: &P) -> Option<Sender> {
    let bytes = message_bytes::<F, I>(frame)?;
    let sender = quoted::<F, P, I>(frame, platform)?;
    has_right_checksum::<F, I>(frame, bytes)?.then_some(sender)
}

/// Whether an error about a packet of this sender may be passed on to its client; if so, that is taken from the budget of
/// all messages.
#[inline(always)]
pub fn may_pass_on<F: Frame, P: Platform>(frame: &F, platform: &P, sender: Sender) -> bool {
    let is_said = match client(platform, sender) {
        Some(client) => said(frame, platform, &client).is_some(),
        None => false,
    };
    is_said && errors::may_send(platform)
}

/// Passes an error about a packet of this sender on to its client, and returns the number of the interface that it leaves
/// by.
///
/// # Errors
/// Why that cannot be: [`Reason::Unrelated`] if the frame is as it came.
#[inline(always)]
pub fn pass_on<F: Frame, P: Platform>(frame: &mut F, platform: &P, sender: Sender) -> Result<u8, Reason> {
    let (said, is_v4) = {
        let client = client(platform, sender).ok_or(Reason::Unrelated)?;
        let said = said(frame, platform, &client).ok_or(Reason::Unrelated)?;
        (said, client.address.is_v4())
    };
    resize(frame, if is_v4 { end::<Ipv4>() } else { end::<Ipv6>() })?;
    // Loaded again: it is large, and need not be kept until now.
    let client = client(platform, sender).filter(|client| client.address.is_v4() == is_v4);
    client
        .and_then(|client| emit(frame, platform, said, &client))
        .ok_or(Reason::Truncated)
}

#[inline(always)]
fn emit<F: Frame, P: Platform>(frame: &mut F, platform: &P, said: Said, client: &Client) -> Option<u8> {
    let listener = &platform.settings().listeners[client.listener as usize % MAX_LISTENERS];
    let ethertype = if client.address.is_v4() {
        emit_v4(frame, said, client, listener)?;
        Ipv4::ETHERTYPE
    } else {
        emit_v6(frame, said, client, listener)?;
        Ipv6::ETHERTYPE
    };
    let interface = platform.interface(client.interface);
    ethernet::emit(frame, client.mac, interface.mac, Tags::NONE, ethertype)?;
    Some(client.interface)
}

/// The sender's client; `None` if the slot has passed to another user meanwhile, or the client has VLAN tags: where there
/// are any, errors are left to the host.
#[inline(always)]
fn client<P: Platform>(platform: &P, sender: Sender) -> Option<Client> {
    let SlotEntry { user, state } = platform.slot(sender.slot)?;
    let client = Client::load(platform, state, platform.tags_of_client(sender.slot))?;
    (user.has_handle(platform, sender.salt) && client.tags.is_none()).then_some(client)
}

/// Where the ICMP header is: IP headers with options or extension headers are not read.
#[inline(always)]
const fn icmp_at<I: Ip>() -> usize {
    ethernet::HEADER_BYTES + I::HEADER_BYTES
}

/// Where the IP header is that is quoted.
#[inline(always)]
const fn quote_at<I: Ip>() -> usize {
    icmp_at::<I>() + icmp::HEADER_BYTES
}

/// Where the UDP header is that is quoted.
#[inline(always)]
const fn udp_at<I: Ip>() -> usize {
    quote_at::<I>() + I::HEADER_BYTES
}

/// Bytes of the frame of a message that is passed on: what follows the UDP header is not quoted.
#[inline(always)]
const fn end<O: Ip>() -> usize {
    udp_at::<O>() + udp::HEADER_BYTES
}

/// Bytes of the ICMP message, from its header on. `None` if there is something between it and its IP header, it is a
/// fragment, it is too short to quote UDP, or it is not all in the frame.
#[inline(always)]
fn message_bytes<F: Frame, I: Ip>(frame: &F) -> Option<usize> {
    let at = ethernet::HEADER_BYTES;
    let [first, second]: [u32; 2] = frame.read(at)?;
    let (first, second) = (u32::from_be(first), u32::from_be(second));
    let bytes = if I::IS_V4 {
        if first >> 24 != 0x45 || second & FRAGMENT != 0 {
            return None;
        }
        (first as u16 as usize).checked_sub(Ipv4::HEADER_BYTES)?
    } else {
        if first >> 28 != 6 {
            return None;
        }
        (second >> 16) as usize
    };
    let least = icmp::HEADER_BYTES + I::HEADER_BYTES + udp::HEADER_BYTES;
    (bytes >= least && icmp_at::<I>() + bytes <= frame.bytes()).then_some(bytes)
}

/// Whose packet is quoted: one from the user's egress address and port, whither the message came, to its destination.
#[inline(always)]
fn quoted<F: Frame, P: Platform, I: Ip>(frame: &F, platform: &P) -> Option<Sender> {
    let quote = quote_at::<I>();
    // The relay sends no options, no extension headers, and later fragments have no ports.
    let [first, second, third]: [u32; 3] = frame.read(quote)?;
    let [first, second, third] = [first, second, third].map(u32::from_be);
    let is_udp = if I::IS_V4 {
        first >> 24 == 0x45 && second & FRAGMENT_OFFSET == 0 && (third >> 16) as u8 == udp::PROTOCOL
    } else {
        first >> 28 == 6 && (second >> 8) as u8 == udp::PROTOCOL
    };
    if !is_udp {
        return None;
    }
    let [from_port, to_port]: [u16; 2] = frame.read(udp_at::<I>())?;
    let from = source::<F, I>(frame, quote)?;
    if destination::<F, I>(frame, ethernet::HEADER_BYTES)? != from {
        return None;
    }
    let slot = downlink::slot(platform.settings(), from, Be16::from_raw(from_port))?;
    if slot >= platform.settings().max_users {
        return None;
    }
    let user = platform.slot(slot)?.user.get(platform)?;
    let endpoint = platform.destination(user.destination)?.endpoint(platform);
    let to = destination::<F, I>(frame, quote)?;
    (endpoint == (to, Be16::from_raw(to_port))).then_some(Sender { slot, salt: user.salt })
}

/// The source address of the header at `at`. An IPv4-mapped one has no place in IPv6.
#[inline(always)]
fn source<F: Frame, I: Ip>(frame: &F, at: usize) -> Option<Address> {
    address::<F, I>(frame, at + if I::IS_V4 { SOURCE_V4 } else { SOURCE_V6 })
}

#[inline(always)]
fn destination<F: Frame, I: Ip>(frame: &F, at: usize) -> Option<Address> {
    address::<F, I>(frame, at + if I::IS_V4 { DESTINATION_V4 } else { DESTINATION_V6 })
}

#[inline(always)]
fn address<F: Frame, I: Ip>(frame: &F, at: usize) -> Option<Address> {
    if I::IS_V4 {
        frame.read(at).map(Address::v4)
    } else {
        frame.read(at).map(Address).filter(|address| !address.is_v4())
    }
}

#[inline(always)]
fn hop_limit<F: Frame, I: Ip>(frame: &F, at: usize) -> Option<u8> {
    frame.read(at + if I::IS_V4 { 8 } else { 7 })
}

/// Whether the message has the checksum that it must have: it is made anew, and a broken one must not come out whole.
/// `None` if it is too long to tell.
#[inline(always)]
fn has_right_checksum<F: Frame, I: Ip>(frame: &F, bytes: usize) -> Option<bool> {
    let mut sum = Change::default();
    if !I::IS_V4 {
        sum = pseudo_header(frame, bytes)?;
    }
    Some(sum.adding(frame, icmp_at::<I>(), bytes)?.checksum() == 0)
}

/// What the checksum of an ICMPv6 message of so many bytes covers besides the message.
#[inline(always)]
fn pseudo_header<F: Frame>(frame: &F, bytes: usize) -> Option<Change> {
    let sum = Change::default().with((bytes as u32).to_be());
    let sum = sum.with((icmp::PROTOCOL_V6 as u32).to_be());
    sum.adding(frame, ethernet::HEADER_BYTES + SOURCE_V6, 2 * size_of::<Address>())
}

/// Bytes of the UDP payload of clients of family `O` that are taken off. Where tokens may travel in an option nobody
/// knows any more where this one's was: an MTU that is told is then none that is too large.
#[inline(always)]
fn taken_off<O: Ip>(settings: &Settings) -> u32 {
    if O::IS_V4 && settings.option_carrier != option_carrier::OFF {
        0
    } else {
        TOKEN_BYTES as u32
    }
}

/// What a client of family `O` is told: type and code, and the second word of the header. `None` if there is nothing to be
/// told of the kind, or the message contradicts itself.
#[inline(always)]
fn told<F: Frame, I: Ip, O: Ip>(frame: &F, taken: u32) -> Option<(u16, u32)> {
    let [first, rest]: [u32; 2] = frame.read(icmp_at::<I>())?;
    let (kind, rest) = ((u32::from_be(first) >> 16) as u16, u32::from_be(rest));
    if I::IS_V4 && kind == FRAGMENTATION_NEEDED {
        return told_mtu::<F, I, O>(frame, rest & 0xffff, taken);
    }
    if !I::IS_V4 && kind == PACKET_TOO_BIG {
        return told_mtu::<F, I, O>(frame, rest, taken);
    }
    match (I::IS_V4, O::IS_V4) {
        (true, true) => icmp::kept_v4(kind, rest),
        (true, false) => icmp::v4_to_v6(kind, rest),
        (false, true) => icmp::v6_to_v4(kind, rest),
        (false, false) => icmp::kept_v6(kind, rest),
    }
}

/// IP packets of up to `mtu` bytes of family `I` get through: as many more or fewer of family `O` as what is taken off and
/// the headers differ by.
#[inline(always)]
fn told_mtu<F: Frame, I: Ip, O: Ip>(frame: &F, mtu: u32, taken: u32) -> Option<(u16, u32)> {
    let relayed = relayed_bytes::<F, I>(frame)? + I::HEADER_BYTES as u32;
    if mtu >= relayed || (!I::IS_V4 && mtu < LEAST_MTU_V6 as u32) {
        return None;
    }
    let told = mtu + taken + O::HEADER_BYTES as u32 - I::HEADER_BYTES as u32;
    let (kind, least) = if O::IS_V4 {
        (FRAGMENTATION_NEEDED, LEAST_MTU_V4 as u32)
    } else {
        (PACKET_TOO_BIG, LEAST_MTU_V6 as u32)
    };
    Some((kind, if told > least { told } else { least }))
}

/// What is said to a client, and about what; in two words, since the stack is short.
#[derive(Clone, Copy)]
struct Said {
    /// Bits 0..32 the second word of the ICMP header, 32..48 type and code, 48..56 the TTL or hop limit of the message,
    /// 56..64 that of the packet that is quoted.
    error: u64,
    /// The first two words of the IP header of what the client had sent, as far as it is known. With IPv6 that is all but
    /// the addresses, with IPv4 all but these, the hop limit and the checksum.
    sent: u64,
}

impl Said {
    #[inline(always)]
    const fn new((kind, rest): (u16, u32), hop_limits: [u8; 2], [first, second]: [u32; 2]) -> Self {
        let [own, quoted] = hop_limits;
        let hop_limits = (own as u64) << 48 | (quoted as u64) << 56;
        Self {
            error: rest as u64 | (kind as u64) << 32 | hop_limits,
            sent: first as u64 | (second as u64) << 32,
        }
    }

    /// The ICMP header, where the checksum covers this besides.
    #[inline(always)]
    const fn header(self, covered: Change) -> [u32; 2] {
        icmp::header((self.error >> 32) as u16, self.error as u32, covered)
    }

    /// TTL or hop limit of the message.
    #[inline(always)]
    const fn hop_limit(self) -> u32 {
        (self.error >> 48) as u8 as u32
    }

    /// The first words of the IPv4 header of what the client had sent, in host order and without a checksum.
    #[inline(always)]
    const fn sent_v4(self) -> [u32; 3] {
        let hop = (self.error >> 56) as u32;
        let [first, second] = self.sent_v6();
        [first, second, hop << 24 | (udp::PROTOCOL as u32) << 16]
    }

    /// The same of IPv6.
    #[inline(always)]
    const fn sent_v6(self) -> [u32; 2] {
        [self.sent as u32, (self.sent >> 32) as u32]
    }
}

#[inline(always)]
fn said<F: Frame, P: Platform>(frame: &F, platform: &P, client: &Client) -> Option<Said> {
    let is_v4 = ethernet::ethertype(frame)? == Ipv4::ETHERTYPE;
    let settings = platform.settings();
    match (is_v4, client.address.is_v4()) {
        (true, true) => said_as::<F, Ipv4, Ipv4>(frame, settings),
        (true, false) => said_as::<F, Ipv4, Ipv6>(frame, settings),
        (false, true) => said_as::<F, Ipv6, Ipv4>(frame, settings),
        (false, false) => said_as::<F, Ipv6, Ipv6>(frame, settings),
    }
}

/// `None` if the client is told nothing: of this kind, by a message that has come too far or contradicts itself, or of a
/// packet that is none that is relayed.
#[inline(always)]
fn said_as<F: Frame, I: Ip, O: Ip>(frame: &F, settings: &Settings) -> Option<Said> {
    let taken = taken_off::<O>(settings);
    let error = told::<F, I, O>(frame, taken)?;
    let own = hop_limit::<F, I>(frame, ethernet::HEADER_BYTES)?;
    let quoted = hop_limit::<F, I>(frame, quote_at::<I>())?;
    let relayed = relayed_bytes::<F, I>(frame)?;
    let bytes = relayed + taken;
    let (sent, most) = if O::IS_V4 {
        (sent_v4::<F, I>(frame, bytes)?, MOST_BYTES - Ipv4::HEADER_BYTES as u32)
    } else {
        (sent_v6::<F, I>(frame, bytes)?, MOST_BYTES)
    };
    // An empty one would have been a ping.
    if own <= 1 || relayed <= udp::HEADER_BYTES as u32 || bytes > most {
        return None;
    }
    Some(Said::new(error, [own - 1, quoted], sent))
}

/// Bytes of UDP header and payload that the quoted packet had.
#[inline(always)]
fn relayed_bytes<F: Frame, I: Ip>(frame: &F) -> Option<u32> {
    let length: u16 = frame.read(udp_at::<I>() + udp::LENGTH)?;
    Some(u16::from_be(length) as u32)
}

/// The first words of the IPv4 header of what a client had sent. What was relayed as IPv6 tells nothing of its
/// identification. The client did not cut it, whatever was done to it on the path.
#[inline(always)]
fn sent_v4<F: Frame, I: Ip>(frame: &F, transport_bytes: u32) -> Option<[u32; 2]> {
    let [_, second]: [u32; 2] = frame.read(quote_at::<I>())?;
    let identification = if I::IS_V4 {
        u32::from_be(second) & !FRAGMENT
    } else {
        DONT_FRAGMENT
    };
    let total = Ipv4::HEADER_BYTES as u32 + transport_bytes;
    Some([0x4500_0000 | service::<F, I>(frame)? << 16 | total, identification])
}

/// The first words of the IPv6 header of what a client had sent.
#[inline(always)]
fn sent_v6<F: Frame, I: Ip>(frame: &F, transport_bytes: u32) -> Option<[u32; 2]> {
    let first: u32 = frame.read(quote_at::<I>())?;
    let flow = if I::IS_V4 { 0 } else { u32::from_be(first) & FLOW };
    let lengths = transport_bytes << 16 | (udp::PROTOCOL as u32) << 8;
    let hop_limit = hop_limit::<F, I>(frame, quote_at::<I>())? as u32;
    Some([0x6000_0000 | service::<F, I>(frame)? << 20 | flow, lengths | hop_limit])
}

/// Type of service or traffic class of the quoted packet.
#[inline(always)]
fn service<F: Frame, I: Ip>(frame: &F) -> Option<u32> {
    let first: u32 = frame.read(quote_at::<I>())?;
    Some(u32::from_be(first) >> if I::IS_V4 { 16 } else { 20 } & 0xff)
}

/// A UDP header as the client had sent it. Its checksum covered the token: nobody knows it any more, and nobody asks for it.
#[inline(always)]
fn sent_udp(client: &Client, listener: &Listener, bytes: u32) -> [u32; 2] {
    let ports = (client.port.get() as u32) << 16 | listener.port.get() as u32;
    [ports.to_be(), (bytes << 16).to_be()]
}

/// Gives the frame so many bytes, at its front where it has fewer. Drivers give room there, and the few that do not lose an
/// error in which little is quoted. What is left in other buffers goes with the rest.
#[inline(always)]
fn resize<F: Frame>(frame: &mut F, bytes: usize) -> Result<(), Reason> {
    let now = frame.bytes();
    if now >= bytes {
        return frame.truncate(bytes).ok_or(Reason::Unrelated);
    }
    frame
        .move_start(now as isize - bytes as isize)
        .ok_or(Reason::Unrelated)?;
    frame.truncate(bytes).ok_or(Reason::Truncated)
}

#[inline(always)]
fn emit_v4<F: Frame>(frame: &mut F, said: Said, client: &Client, listener: &Listener) -> Option<()> {
    let (from, to) = (listener.address.0[3], client.address.0[3]);
    let sent = said.sent_v4();
    let udp = sent_udp(client, listener, (sent[0] & MOST_BYTES) - Ipv4::HEADER_BYTES as u32);
    frame.write(udp_at::<Ipv4>(), udp)?;
    errors::emit_v4(frame, quote_at::<Ipv4>(), sent, to, from)?;
    // A header with its checksum adds nothing to the sum.
    let covered = Change::default().with(udp[0]).with(udp[1]);
    frame.write(icmp_at::<Ipv4>(), said.header(covered))?;
    let words = errors::outside_v4(said.hop_limit(), end::<Ipv4>() - icmp_at::<Ipv4>());
    errors::emit_v4(frame, ethernet::HEADER_BYTES, words, from, to)
}

#[inline(always)]
fn emit_v6<F: Frame>(frame: &mut F, said: Said, client: &Client, listener: &Listener) -> Option<()> {
    let (outside, quote) = (ethernet::HEADER_BYTES, quote_at::<Ipv6>());
    let udp = sent_udp(client, listener, said.sent_v6()[1] >> 16);
    let (from, to) = (listener.address.words(), client.address.words());
    frame.write(quote + SOURCE_V6, to)?;
    frame.write(quote + DESTINATION_V6, from)?;
    frame.write(outside + SOURCE_V6, from)?;
    frame.write(outside + DESTINATION_V6, to)?;
    let [first, second] = said.sent_v6().map(u32::to_be);
    frame.write(quote, [first, second])?;
    frame.write(udp_at::<Ipv6>(), udp)?;
    let bytes = (end::<Ipv6>() - icmp_at::<Ipv6>()) as u32;
    let lengths = bytes << 16 | (icmp::PROTOCOL_V6 as u32) << 8 | said.hop_limit();
    frame.write(outside, [0x6000_0000_u32.to_be(), lengths.to_be()])?;
    // The addresses are in the quote and in the pseudo-header.
    let covered = Change::default()
        .with(bytes.to_be())
        .with((icmp::PROTOCOL_V6 as u32).to_be());
    let covered = covered.with(first).with(second).with(udp[0]).with(udp[1]);
    let covered = [from, to, from, to]
        .iter()
        .flatten()
        .fold(covered, |sum, &word| sum.with(word as u32).with((word >> 32) as u32));
    frame.write(icmp_at::<Ipv6>(), said.header(covered))
}
