//! IPv6 headers (RFC 8200).

use super::{
    Address, Be16, Frame,
    ip::{Ip, Rewrite, Search, Translated},
    ipv4::Ipv4,
    udp::{self, Udp},
};

const WORDS: usize = 10;
const HEADER: usize = 4 * WORDS;
/// Where the field with the length of what follows the header is.
const PAYLOAD_BYTES: usize = 4;
/// The Fragment header: its next header is the first byte, its offset the upper 13 bits of the second 16.
const FRAGMENT: u8 = 44;
const FRAGMENT_HEADER: usize = 8;
const FRAGMENT_OFFSET: u32 = 0xfff8;

/// An IPv6 header that carries UDP, directly or behind one Fragment header. Packets with other extension headers are
/// not read: the relay leaves them to the host.
#[derive(Clone, Copy, Debug)]
pub struct Ipv6 {
    /// The 40 bytes as they stand in memory.
    words: [u32; WORDS],
    fragment: bool,
}

impl Ip for Ipv6 {
    type Other = Ipv4;
    const IS_V4: bool = false;
    const ETHERTYPE: Be16 = Be16::new(0x86dd);
    const HEADER_BYTES: usize = HEADER;

    #[inline(always)]
    fn claimed_end<F: Frame>(frame: &F, offset: usize) -> usize {
        frame
            .read(offset + PAYLOAD_BYTES)
            .map_or(0, |bytes| offset + HEADER + Be16::from_raw(bytes).get() as usize)
    }

    #[inline(always)]
    fn parse<F: Frame>(frame: &F, offset: usize) -> Option<Self> {
        let words: [u32; WORDS] = frame.read(offset)?;
        if u32::from_be(words[0]) >> 28 != 6 {
            return None;
        }
        let header = Self { words, fragment: false };
        // IPv4-mapped addresses have no place on a wire (RFC 4291, 2.5.5.2), and here they are IPv4 addresses.
        if header.source().is_v4() || header.destination().is_v4() {
            return None;
        }
        match (u32::from_be(words[1]) >> 8) as u8 {
            udp::PROTOCOL => Some(header),
            FRAGMENT => {
                let fragment = u32::from_be(frame.read(offset + HEADER)?);
                let first_with_udp = (fragment >> 24) as u8 == udp::PROTOCOL && fragment & FRAGMENT_OFFSET == 0;
                first_with_udp.then_some(Self { words, fragment: true })
            }
            _ => None,
        }
    }

    #[inline(always)]
    fn source(&self) -> Address {
        Address([self.words[2], self.words[3], self.words[4], self.words[5]])
    }

    #[inline(always)]
    fn destination(&self) -> Address {
        Address([self.words[6], self.words[7], self.words[8], self.words[9]])
    }

    #[inline(always)]
    fn transport_offset(&self) -> usize {
        if self.fragment {
            HEADER + FRAGMENT_HEADER
        } else {
            HEADER
        }
    }

    #[inline(always)]
    fn total_bytes(&self) -> usize {
        HEADER + (u32::from_be(self.words[1]) >> 16) as usize
    }

    #[inline(always)]
    fn is_fragment(&self) -> bool {
        self.fragment
    }

    #[inline(always)]
    fn hop_limit(&self) -> u8 {
        u32::from_be(self.words[1]) as u8
    }

    #[inline(always)]
    fn service(&self) -> u8 {
        (u32::from_be(self.words[0]) >> 20) as u8
    }

    #[inline(always)]
    fn option<F: Frame>(&self, _frame: &F, _offset: usize, _kind: u8, _length: u8) -> Search {
        Search::Absent
    }

    #[inline(always)]
    fn readdress<F: Frame>(&self, frame: &mut F, offset: usize, new: &Rewrite) -> Option<()> {
        let lengths = u32::from_be(self.words[1]) & 0xffff_ff00;
        let [s0, s1, s2, s3] = new.source.0;
        let [d0, d1, d2, d3] = new.destination.0;
        let second = (lengths | new.hop_limit as u32).to_be();
        frame.write(offset, [self.words[0], second, s0, s1, s2, s3, d0, d1, d2, d3])
    }

    #[inline(always)]
    fn emit<F: Frame>(&self, frame: &mut F, offset: usize, new: &Rewrite) -> Option<()> {
        let rest = (new.transport_bytes as u32) << 16 | (udp::PROTOCOL as u32) << 8 | new.hop_limit as u32;
        let [s0, s1, s2, s3] = new.source.0;
        let [d0, d1, d2, d3] = new.destination.0;
        frame.write(offset, [self.words[0], rest.to_be(), s0, s1, s2, s3, d0, d1, d2, d3])
    }
}

impl Translated<Ipv4> for Ipv6 {
    /// RFC 7915, section 4.1.
    #[inline(always)]
    fn translated(old: &Ipv4, _new: &Rewrite, _udp: &Udp) -> Self {
        let first = 0x6000_0000 | (old.service() as u32) << 20;
        let mut words = [0; WORDS];
        words[0] = first.to_be();
        Self { words, fragment: false }
    }
}
