//! UDP headers (RFC 768).

use super::{Be16, Frame, checksum::Change};

/// Bytes of the header.
pub const HEADER_BYTES: usize = 8;

/// Where the length is in it.
pub const LENGTH: usize = 4;

/// The protocol number in IPv4 and the next header in IPv6.
pub const PROTOCOL: u8 = 17;

/// A UDP header.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Udp {
    /// Source port.
    pub source: Be16,
    /// Destination port.
    pub destination: Be16,
    /// Bytes of header and payload, as the header says.
    pub length: u16,
    /// The checksum as it stands in memory; 0 for none.
    pub checksum: u16,
}

/// The same checksum, not written as the 0 that means "none".
#[inline(always)]
const fn never_none(checksum: u16) -> u16 {
    if checksum == 0 { 0xffff } else { checksum }
}

impl Udp {
    /// Reads the header at `offset`.
    #[inline(always)]
    pub fn parse<F: Frame>(frame: &F, offset: usize) -> Option<Self> {
        let [ports, rest]: [u32; 2] = frame.read(offset)?;
        let (ports, length) = (u32::from_be(ports), u32::from_be(rest));
        Some(Self {
            source: Be16::new((ports >> 16) as u16),
            destination: Be16::new(ports as u16),
            length: (length >> 16) as u16,
            checksum: (length as u16).to_be(),
        })
    }

    /// Writes the header at `offset`.
    #[inline(always)]
    pub fn emit<F: Frame>(&self, frame: &mut F, offset: usize) -> Option<()> {
        let ports = (self.source.get() as u32) << 16 | self.destination.get() as u32;
        let rest = (self.length as u32) << 16 | u16::from_be(self.checksum) as u32;
        frame.write(offset, [ports.to_be(), rest.to_be()])
    }

    /// This header with other ports, `length` bytes, and the checksum changed for these and for all that `change`
    /// says of the pseudo-header's addresses and of the payload. No checksum stays no checksum.
    #[inline(always)]
    #[must_use]
    pub fn rewritten(&self, source: Be16, destination: Be16, length: u16, change: Change) -> Self {
        let checksum = if self.checksum == 0 {
            0
        } else {
            let (old, new) = (Be16::new(self.length).raw() as u32, Be16::new(length).raw() as u32);
            // The length counts twice: in the pseudo-header and in the header.
            let change = change
                .without(self.source.raw() as u32)
                .without(self.destination.raw() as u32)
                .without(old)
                .without(old)
                .with(source.raw() as u32)
                .with(destination.raw() as u32)
                .with(new)
                .with(new);
            never_none(change.apply(self.checksum))
        };
        Self {
            source,
            destination,
            length,
            checksum,
        }
    }

    /// This header with the checksum that it must have, where `change` adds the pseudo-header's addresses and the
    /// payload.
    #[inline(always)]
    #[must_use]
    pub fn summed(&self, change: Change) -> Self {
        let length = Be16::new(self.length).raw() as u32;
        let change = change
            .with(self.source.raw() as u32)
            .with(self.destination.raw() as u32)
            .with(length)
            .with(length)
            .with(Be16::new(PROTOCOL as u16).raw() as u32);
        Self {
            checksum: never_none(change.apply(0xffff)),
            ..*self
        }
    }
}
