//! What the relay needs of an IP header of either family.

use super::{Address, Be16, Frame, checksum::Change, udp::Udp};

/// An IP header that carries UDP, as it was read from a frame.
pub trait Ip: Copy {
    /// The other family.
    type Other: Translated<Self>;
    /// Whether the family is IPv4.
    const IS_V4: bool;
    /// EtherType of the family.
    const ETHERTYPE: Be16;
    /// Bytes of a header that the relay writes.
    const HEADER_BYTES: usize;

    /// Where a packet whose header is at `offset` ends by its length field, in bytes from the start of the frame; 0 if
    /// there is no such field.
    fn claimed_end<F: Frame>(frame: &F, offset: usize) -> usize;

    /// Reads the header at `offset`. `None` if it is not this family's, does not carry UDP, or is a fragment other
    /// than the first, which has no ports to go by.
    fn parse<F: Frame>(frame: &F, offset: usize) -> Option<Self>;

    /// Where the packet comes from.
    fn source(&self) -> Address;

    /// Where it goes to.
    fn destination(&self) -> Address;

    /// Bytes from the start of this header to the UDP header.
    fn transport_offset(&self) -> usize;

    /// Bytes from the start of this header to the end of the packet.
    fn total_bytes(&self) -> usize;

    /// Whether the packet is the first of several fragments.
    fn is_fragment(&self) -> bool;

    /// TTL or hop limit.
    fn hop_limit(&self) -> u8;

    /// Type of service or traffic class.
    fn service(&self) -> u8;

    /// Looks for an IPv4 option of this type and length in the header at `offset`; IPv6 has none.
    fn option<F: Frame>(&self, frame: &F, offset: usize, kind: u8, length: u8) -> Search;

    /// Writes the addresses and the hop limit at `offset` and leaves the rest of the header as it came.
    fn readdress<F: Frame>(&self, frame: &mut F, offset: usize, new: &Rewrite) -> Option<()>;

    /// Writes this header anew at `offset` with other addresses, `hop_limit`, and `transport_bytes` after it; options
    /// and extension headers are not kept. `frame` is the rewritten one.
    fn emit<F: Frame>(&self, frame: &mut F, offset: usize, new: &Rewrite) -> Option<()>;
}

/// A header for a packet that came with one of family `I`, which may be the same.
pub trait Translated<I>: Ip {
    /// The header, of which [`Ip::emit`] then writes what `new` does not set; the datagram begins with `udp` from now on.
    fn translated(old: &I, new: &Rewrite, udp: &Udp) -> Self;
}

impl<I: Ip> Translated<I> for I {
    #[inline(always)]
    fn translated(old: &I, _new: &Rewrite, _udp: &Udp) -> Self {
        *old
    }
}

/// What a search for an option found.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Search {
    /// The option's data is here, in bytes from the start of the frame.
    Found(usize),
    /// An option of this type that has another length, or ends behind the header.
    Malformed,
    /// No option of this type, as far as the options can be told apart.
    Absent,
}

/// What changes in an IP header.
#[derive(Clone, Copy, Debug)]
pub struct Rewrite {
    /// The new source.
    pub source: Address,
    /// The new destination.
    pub destination: Address,
    /// The new TTL or hop limit.
    pub hop_limit: u8,
    /// Bytes of the UDP header and payload.
    pub transport_bytes: u16,
}

impl Rewrite {
    /// What replacing the addresses of `old` by these, of family `O`, does to a checksum that covers them.
    #[inline(always)]
    pub fn addresses<I: Ip, O: Ip>(&self, old: &I) -> Change {
        let (source, destination) = (old.source(), old.destination());
        let words = counted::<I>(&source).iter().chain(counted::<I>(&destination));
        words
            .fold(Change::default(), |change, &word| change.without(word))
            .and(self.added::<O>())
    }

    /// What adding the new addresses, of family `O`, does to it.
    #[inline(always)]
    pub fn added<O: Ip>(&self) -> Change {
        let words = counted::<O>(&self.source).iter().chain(counted::<O>(&self.destination));
        words.fold(Change::default(), |change, &word| change.with(word))
    }
}

/// The words of an address of family `I` that count in a checksum: those that are the same in all IPv4 addresses do not.
#[inline(always)]
fn counted<I: Ip>(address: &Address) -> &[u32] {
    if I::IS_V4 { &address.0[3..] } else { &address.0 }
}
