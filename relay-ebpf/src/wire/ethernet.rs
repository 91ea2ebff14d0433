//! Ethernet II headers (IEEE 802.3): destination, source, type.

use super::{
    Be16, Frame, Mac,
    vlan::{self, Tags},
};

/// Bytes of the header without tags.
pub const HEADER_BYTES: usize = 14;

const SOURCE: usize = 6;
const TYPE: usize = 12;

/// The EtherType of the frame.
#[inline(always)]
pub fn ethertype<F: Frame>(frame: &F) -> Option<Be16> {
    frame.read(TYPE).map(Be16::from_raw)
}

/// The receiver's address.
#[inline(always)]
pub fn destination<F: Frame>(frame: &F) -> Option<Mac> {
    mac(frame, 0)
}

/// The sender's address.
#[inline(always)]
pub fn source<F: Frame>(frame: &F) -> Option<Mac> {
    mac(frame, SOURCE)
}

#[inline(always)]
fn mac<F: Frame>(frame: &F, at: usize) -> Option<Mac> {
    let low: u32 = frame.read(at)?;
    let high: u16 = frame.read(at + 4)?;
    Some(Mac::from_word(
        u32::from_le(low) as u64 | (u16::from_le(high) as u64) << 32,
    ))
}

/// Writes the header at the front of the frame: both addresses, `tags`, the EtherType of the packet behind them.
#[inline(always)]
pub fn emit<F: Frame>(frame: &mut F, destination: Mac, source: Mac, tags: Tags, ethertype: Be16) -> Option<()> {
    frame.write(TYPE + tags.bytes(), ethertype.raw())?;
    vlan::emit(frame, tags)?;
    readdress(frame, destination, source)
}

/// Writes both addresses and leaves what is behind them as it came.
#[inline(always)]
pub fn readdress<F: Frame>(frame: &mut F, destination: Mac, source: Mac) -> Option<()> {
    let first = destination.word() | source.word() << 48;
    let last = (source.word() >> 16) as u32;
    frame.write(0, [first.to_le() as u32, (first.to_le() >> 32) as u32, last.to_le()])
}
