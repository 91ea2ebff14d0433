//! IPv4 headers (RFC 791).

use super::{
    Address, Be16, Frame,
    checksum::Change,
    ip::{Ip, Rewrite, Search, Translated},
    ipv6::Ipv6,
    udp::{self, Udp},
};

const WORDS: usize = 5;
/// Where the field with the length of the packet is.
const TOTAL_BYTES: usize = 2;
const DONT_FRAGMENT: u32 = 0x4000;
const MORE_FRAGMENTS: u32 = 0x2000;
const FRAGMENT_OFFSET: u32 = 0x1fff;
const MAX_HEADER_BYTES: usize = 60;
const END_OF_OPTIONS: usize = 0;
const NO_OPERATION: usize = 1;

/// How the search for an option gets from one to the next: by `own` bytes and those of the length byte that `mask` lets
/// through, unless that byte is below `least`, which ends it.
#[derive(Clone, Copy)]
struct Step {
    least: u16,
    own: u8,
    mask: u8,
}

/// By type. A table, since branches would have the verifier follow each way through the options by itself, with all
/// that comes after it.
static STEPS: [Step; 256] = {
    let by_length = Step {
        least: 2,
        own: 0,
        mask: 0xff,
    };
    let mut steps = [by_length; 256];
    steps[END_OF_OPTIONS] = Step {
        least: 0x100,
        own: 0,
        mask: 0,
    };
    steps[NO_OPERATION] = Step {
        least: 0,
        own: 1,
        mask: 0,
    };
    steps
};

/// Largest packet from IPv6 that routers may fragment (RFC 7915, section 5.1): its sender cannot be told to send smaller
/// ones, since IPv6 has no smaller MTU than 1,280.
const MAX_FRAGMENTABLE_BYTES: usize = 1260;

/// An IPv4 header that carries UDP.
#[derive(Clone, Copy, Debug)]
pub struct Ipv4 {
    /// The 20 bytes without options, as they stand in memory.
    words: [u32; WORDS],
    /// What removing the options does to the header's checksum.
    options: Change,
}

impl Ipv4 {
    #[inline(always)]
    const fn header_words(self) -> usize {
        (u32::from_be(self.words[0]) >> 24 & 0xf) as usize
    }

    #[inline(always)]
    const fn fragment(self) -> u32 {
        u32::from_be(self.words[1])
    }

    /// Whether the sender forbids that the packet is fragmented.
    #[inline(always)]
    #[must_use]
    pub const fn dont_fragment(self) -> bool {
        self.fragment() & DONT_FRAGMENT != 0
    }
}

impl Ip for Ipv4 {
    type Other = Ipv6;
    const IS_V4: bool = true;
    const ETHERTYPE: Be16 = Be16::new(0x0800);
    const HEADER_BYTES: usize = 4 * WORDS;

    #[inline(always)]
    fn claimed_end<F: Frame>(frame: &F, offset: usize) -> usize {
        frame
            .read(offset + TOTAL_BYTES)
            .map_or(0, |bytes| offset + Be16::from_raw(bytes).get() as usize)
    }

    #[inline(always)]
    fn parse<F: Frame>(frame: &F, offset: usize) -> Option<Self> {
        let mut header = Self {
            words: frame.read(offset)?,
            options: Change::default(),
        };
        let version = u32::from_be(header.words[0]) >> 28;
        let protocol = (u32::from_be(header.words[2]) >> 16) as u8;
        if version != 4 || header.header_words() < WORDS || protocol != udp::PROTOCOL {
            return None;
        }
        if header.fragment() & FRAGMENT_OFFSET != 0 {
            return None;
        }
        for word in WORDS..header.header_words() {
            header.options = header.options.without(frame.read(offset + 4 * word)?);
        }
        Some(header)
    }

    #[inline(always)]
    fn source(&self) -> Address {
        Address::v4(self.words[3])
    }

    #[inline(always)]
    fn destination(&self) -> Address {
        Address::v4(self.words[4])
    }

    #[inline(always)]
    fn transport_offset(&self) -> usize {
        4 * self.header_words()
    }

    #[inline(always)]
    fn total_bytes(&self) -> usize {
        (u32::from_be(self.words[0]) & 0xffff) as usize
    }

    #[inline(always)]
    fn is_fragment(&self) -> bool {
        self.fragment() & MORE_FRAGMENTS != 0
    }

    #[inline(always)]
    fn hop_limit(&self) -> u8 {
        (u32::from_be(self.words[2]) >> 24) as u8
    }

    #[inline(always)]
    fn service(&self) -> u8 {
        (u32::from_be(self.words[0]) >> 16) as u8
    }

    #[inline(always)]
    fn option<F: Frame>(&self, frame: &F, offset: usize, kind: u8, length: u8) -> Search {
        let end = self.transport_offset();
        let mut at = Self::HEADER_BYTES;
        // Each option takes a byte at least.
        for _ in Self::HEADER_BYTES..MAX_HEADER_BYTES {
            if at >= end {
                return Search::Absent;
            }
            // Behind the header's last byte are UDP's; a length read there leads out of the header as well.
            let Some([found, said]) = frame.read::<[u8; 2]>(offset + at) else {
                return Search::Absent;
            };
            if found == kind {
                let fits = at + length as usize <= end && said == length;
                return if fits {
                    Search::Found(offset + at + 2)
                } else {
                    Search::Malformed
                };
            }
            let step = STEPS[found as usize];
            if (said as u16) < step.least {
                return Search::Absent;
            }
            at += step.own as usize + (said & step.mask) as usize;
        }
        Search::Absent
    }

    #[inline(always)]
    fn readdress<F: Frame>(&self, frame: &mut F, offset: usize, new: &Rewrite) -> Option<()> {
        let [first, identification, hop, ..] = self.words;
        let rest = u32::from_be(hop);
        let protocol = rest & 0x00ff_0000;
        let new_hop = protocol | (new.hop_limit as u32) << 24;
        let change = new
            .addresses::<Self, Self>(self)
            .without((rest & 0xffff_0000).to_be())
            .with(new_hop.to_be());
        let checksum = change.apply((rest as u16).to_be());
        let new_hop = (new_hop | u16::from_be(checksum) as u32).to_be();
        frame.write(
            offset,
            [first, identification, new_hop, new.source.0[3], new.destination.0[3]],
        )
    }

    #[inline(always)]
    fn emit<F: Frame>(&self, frame: &mut F, offset: usize, new: &Rewrite) -> Option<()> {
        let [first, identification, old_hop, _, _] = self.words;
        let service = u32::from_be(first) & 0x00ff_0000;
        let total = new.transport_bytes as u32 + Self::HEADER_BYTES as u32;
        let new_first = (0x4500_0000 | service | total).to_be();
        let without_hop = u32::from_be(old_hop) & 0x00ff_0000;
        let new_hop = (without_hop | (new.hop_limit as u32) << 24).to_be();
        let checksum = u32::from_be(old_hop) as u16;
        let change = self
            .options
            .and(new.addresses::<Self, Self>(self))
            .without(first)
            .with(new_first)
            .without((without_hop | (self.hop_limit() as u32) << 24).to_be())
            .with(new_hop);
        let checksum = change.apply(checksum.to_be());
        let new_hop = new_hop | (u16::from_be(checksum) as u32).to_be();
        frame.write(
            offset,
            [
                new_first,
                identification,
                new_hop,
                new.source.0[3],
                new.destination.0[3],
            ],
        )
    }
}

impl Translated<Ipv6> for Ipv4 {
    /// RFC 7915, section 5.1. The identification is the UDP checksum: it differs between packets that differ, without
    /// a counter that all CPUs share.
    #[inline(always)]
    fn translated(old: &Ipv6, new: &Rewrite, udp: &Udp) -> Self {
        let fragmentable = Self::HEADER_BYTES + new.transport_bytes as usize <= MAX_FRAGMENTABLE_BYTES;
        let first = 0x4500_0000 | (old.service() as u32) << 16;
        let identification = (u16::from_be(udp.checksum) as u32) << 16;
        let second = identification | if fragmentable { 0 } else { DONT_FRAGMENT };
        let third = (old.hop_limit() as u32) << 24 | (udp::PROTOCOL as u32) << 16;
        let [first, second, third] = [first, second, third].map(u32::to_be);
        let checksum = Change::default().with(first).with(second).with(third).apply(0xffff);
        Self {
            words: [first, second, third | (u16::from_be(checksum) as u32).to_be(), 0, 0],
            options: Change::default(),
        }
    }
}
