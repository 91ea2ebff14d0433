//! Packet headers: one file a protocol, each a set of offsets and a plain representation with `parse` and `emit` over
//! a [`Frame`]. Nothing here panics: a read or write past the end of the frame is `None`.

pub mod checksum;
pub mod ethernet;
pub mod icmp;
pub mod ip;
pub mod ipv4;
pub mod ipv6;
pub mod udp;
pub mod vlan;

#[cfg(not(target_arch = "bpf"))]
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use self::checksum::Change;

/// A 16-bit number in network order.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
#[cfg_attr(not(target_arch = "bpf"), derive(FromBytes, Immutable, IntoBytes, KnownLayout))]
#[repr(transparent)]
pub struct Be16(u16);

impl Be16 {
    /// From a number in host order.
    #[inline(always)]
    #[must_use]
    pub const fn new(value: u16) -> Self {
        Self(value.to_be())
    }

    /// The number in host order.
    #[inline(always)]
    #[must_use]
    pub const fn get(self) -> u16 {
        u16::from_be(self.0)
    }

    /// From the two bytes as they stand in memory.
    #[inline(always)]
    #[must_use]
    pub const fn from_raw(raw: u16) -> Self {
        Self(raw)
    }

    /// The two bytes as they stand in memory.
    #[inline(always)]
    #[must_use]
    pub const fn raw(self) -> u16 {
        self.0
    }
}

/// A MAC address, as the low 48 bits of the little-endian number of its bytes.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
#[cfg_attr(not(target_arch = "bpf"), derive(FromBytes, Immutable, IntoBytes, KnownLayout))]
#[repr(transparent)]
pub struct Mac(u64);

impl Mac {
    const BITS: u64 = (1 << 48) - 1;

    /// From its six bytes.
    #[inline(always)]
    #[must_use]
    pub const fn new(bytes: [u8; 6]) -> Self {
        let [a, b, c, d, e, f] = bytes;
        Self(u64::from_le_bytes([a, b, c, d, e, f, 0, 0]))
    }

    /// Its six bytes.
    #[must_use]
    pub const fn bytes(self) -> [u8; 6] {
        let [a, b, c, d, e, f, _, _] = self.0.to_le_bytes();
        [a, b, c, d, e, f]
    }

    /// From the low 48 bits of a word; the rest is ignored.
    #[inline(always)]
    #[must_use]
    pub const fn from_word(word: u64) -> Self {
        Self(word & Self::BITS)
    }

    /// As the low 48 bits of a word.
    #[inline(always)]
    #[must_use]
    pub const fn word(self) -> u64 {
        self.0
    }

    /// Whether it is a group's: multicast or broadcast.
    #[inline(always)]
    #[must_use]
    pub const fn is_group(self) -> bool {
        self.0 & 1 != 0
    }
}

/// An IP address of either family: IPv6 as it is, IPv4 as `::ffff:a.b.c.d`; in network order.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
#[cfg_attr(not(target_arch = "bpf"), derive(FromBytes, Immutable, IntoBytes, KnownLayout))]
#[repr(transparent)]
pub struct Address(pub [u32; 4]);

impl Address {
    const V4_PREFIX: u32 = 0xffff_u32.to_be();

    /// An IPv4 address from its four bytes as they stand in memory.
    #[inline(always)]
    #[must_use]
    pub const fn v4(raw: u32) -> Self {
        Self([0, 0, Self::V4_PREFIX, raw])
    }

    /// Whether it is an IPv4 address.
    #[inline(always)]
    #[must_use]
    pub const fn is_v4(self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == Self::V4_PREFIX
    }

    /// The four bytes of an IPv4 address as they stand in memory, if it is one.
    #[inline(always)]
    #[must_use]
    pub const fn as_v4(self) -> Option<u32> {
        if self.is_v4() { Some(self.0[3]) } else { None }
    }

    /// From two words in memory order.
    #[inline(always)]
    #[must_use]
    pub const fn from_words(words: [u64; 2]) -> Self {
        Self([
            words[0] as u32,
            (words[0] >> 32) as u32,
            words[1] as u32,
            (words[1] >> 32) as u32,
        ])
    }

    /// As two words in memory order (of a little-endian machine).
    #[inline(always)]
    #[must_use]
    pub const fn words(self) -> [u64; 2] {
        let [a, b, c, d] = self.0;
        [a as u64 | (b as u64) << 32, c as u64 | (d as u64) << 32]
    }
}

#[cfg(not(target_arch = "bpf"))]
mod std_addresses {
    use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use super::Address;

    impl From<IpAddr> for Address {
        fn from(address: IpAddr) -> Self {
            let bytes = match address {
                IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
                IpAddr::V6(v6) => v6.octets(),
            };
            Self(core::array::from_fn(|i| {
                u32::from_ne_bytes([bytes[4 * i], bytes[4 * i + 1], bytes[4 * i + 2], bytes[4 * i + 3]])
            }))
        }
    }

    impl From<Address> for IpAddr {
        fn from(address: Address) -> Self {
            if let Some(raw) = address.as_v4() {
                return Self::V4(Ipv4Addr::from(raw.to_ne_bytes()));
            }
            let mut bytes = [0; 16];
            for (chunk, word) in bytes.chunks_exact_mut(4).zip(address.0) {
                chunk.copy_from_slice(&word.to_ne_bytes());
            }
            Self::V6(Ipv6Addr::from(bytes))
        }
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for u8 {}
    impl Sealed for u16 {}
    impl Sealed for u32 {}
    impl Sealed for u64 {}
    impl<W: Sealed, const N: usize> Sealed for [W; N] {}
}

/// What a [`Frame`] reads and writes whole: integers as they stand in memory, and arrays of them.
#[cfg(target_arch = "bpf")]
pub trait Word: sealed::Sealed + Copy {}
#[cfg(target_arch = "bpf")]
impl<W: sealed::Sealed + Copy> Word for W {}

/// What a [`Frame`] reads and writes whole: integers as they stand in memory, and arrays of them.
#[cfg(not(target_arch = "bpf"))]
pub trait Word: sealed::Sealed + Copy + FromBytes + IntoBytes + Immutable {}
#[cfg(not(target_arch = "bpf"))]
impl<W: sealed::Sealed + Copy + FromBytes + IntoBytes + Immutable> Word for W {}

/// One Ethernet frame. Offsets count bytes from its start. It may lie in several buffers, as the driver received it:
/// what is read and written has to be in the first one.
pub trait Frame: Sized {
    /// Bytes of the frame as it came in: of its first buffer at least, of all once it was [measured](Self::measure) for want
    /// of more. Not to be asked once its start was moved or its end cut off.
    fn bytes(&self) -> usize;

    /// Looks whether there are more buffers, if so many bytes are more than the frame is known to have.
    fn measure(&mut self, claimed: usize);

    /// The kernel's index of the interface that it came in by.
    fn interface_index(&self) -> u32;

    /// The same number, of which the compiler knows nothing: a check of it then stays in the program, where the kernel's
    /// verifier sees it.
    #[inline(always)]
    #[must_use]
    fn unknown(&self, number: usize) -> usize {
        number
    }

    /// The same number, of which neither the compiler nor the kernel's verifier knows more than that it has `BITS` bits at
    /// most: one that the verifier knows has it walk the rest of the program once for each value. An index has to be
    /// masked, which the compiler would leave out if it knew as much.
    #[inline(always)]
    #[must_use]
    fn forgotten<const BITS: u32>(&self, number: u32) -> u32 {
        // No frame is so long that anything is left of its length here, but the verifier does not know that.
        let nothing = (self.bytes() as u64 >> (u64::BITS - BITS)) as u32;
        self.unknown((number ^ nothing) as usize) as u32
    }

    /// Reads the words at `offset`, `None` if any of them is past the end.
    fn read<W: Word>(&self, offset: usize) -> Option<W>;

    /// Overwrites the words at `offset`, `None` if any of them is past the end; then nothing is written.
    fn write<W: Word>(&mut self, offset: usize, words: W) -> Option<()>;

    /// Counts bytes of the frame as added, as [`Change::adding`] does, whatever buffers they are in.
    #[inline(always)]
    fn add_to(&self, change: Change, offset: usize, bytes: usize) -> Option<Change> {
        change.adding(self, offset, bytes)
    }

    /// Moves the start of the frame: removes `bytes` from the front or, if negative, puts as many there, which are to be
    /// written. `None` if the frame is too short or has no room in front of it; then nothing is changed.
    fn move_start(&mut self, bytes: isize) -> Option<()>;

    /// Cuts what is behind the first `bytes`, `None` if the frame is shorter or cannot be cut so; then nothing is
    /// changed.
    fn truncate(&mut self, bytes: usize) -> Option<()>;
}
