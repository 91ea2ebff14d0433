//! Packet headers: one file a protocol, each a set of offsets and a plain representation with `parse` and `emit` over
//! a [`Frame`]. Nothing here panics: a read or write past the end of the frame is `None`.

pub mod checksum;
pub mod ethernet;
pub mod ipv4;
pub mod ipv6;
pub mod udp;

#[cfg(not(target_arch = "bpf"))]
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

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

/// A MAC address.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
#[cfg_attr(not(target_arch = "bpf"), derive(FromBytes, Immutable, IntoBytes, KnownLayout))]
#[repr(transparent)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// From bits 0..48 of a word in memory order; the rest is ignored.
    #[inline(always)]
    #[must_use]
    pub const fn from_word(word: u64) -> Self {
        let [a, b, c, d, e, f, _, _] = word.to_le_bytes();
        Self([a, b, c, d, e, f])
    }

    /// As bits 0..48 of a word.
    #[inline(always)]
    #[must_use]
    pub const fn word(self) -> u64 {
        let [a, b, c, d, e, f] = self.0;
        u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
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

    /// The four bytes of an IPv4 address as they stand in memory, if it is one.
    #[inline(always)]
    #[must_use]
    pub const fn as_v4(self) -> Option<u32> {
        let [a, b, c, raw] = self.0;
        if a == 0 && b == 0 && c == Self::V4_PREFIX { Some(raw) } else { None }
    }

    /// From two words in memory order.
    #[inline(always)]
    #[must_use]
    pub const fn from_words(words: [u64; 2]) -> Self {
        Self([words[0] as u32, (words[0] >> 32) as u32, words[1] as u32, (words[1] >> 32) as u32])
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
}

/// An integer that a [`Frame`] reads and writes as it stands in memory.
pub trait Word: sealed::Sealed + Copy {}
impl Word for u8 {}
impl Word for u16 {}
impl Word for u32 {}
impl Word for u64 {}

/// One Ethernet frame. Offsets count bytes from its start; integers are as they stand in memory.
pub trait Frame {
    /// Bytes of the frame.
    fn len(&self) -> usize;

    /// Reads the integer at `offset`, `None` if any of it is past the end.
    fn read<W: Word>(&self, offset: usize) -> Option<W>;

    /// Overwrites the integer at `offset`, `None` if any of it is past the end; then nothing is written.
    fn write<W: Word>(&mut self, offset: usize, value: W) -> Option<()>;

    /// Removes `bytes` from the front; `None` if the frame cannot be cut so.
    fn strip(&mut self, bytes: usize) -> Option<()>;
}
