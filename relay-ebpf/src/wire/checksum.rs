//! The Internet checksum (RFC 1071), changed incrementally (RFC 1624, equation 3).
//!
//! The one's complement sum does not depend on byte order, so fields are added as they stand in memory, and 32-bit
//! words count as two 16-bit ones. For the same reason an IPv4-mapped address counts as the IPv4 address: the rest of it
//! is 0 and 0xffff, which is another 0.

use super::{Frame, Word};

/// The change that a rewrite makes to a checksum: what was removed and what was added.
#[derive(Clone, Copy, Debug, Default)]
pub struct Change(u64);

impl Change {
    /// Counts a field of the old packet as removed.
    #[inline(always)]
    #[must_use]
    pub const fn without(self, old: u32) -> Self {
        Self(self.0 + !old as u64)
    }

    /// Counts a field of the new packet as added.
    #[inline(always)]
    #[must_use]
    pub const fn with(self, new: u32) -> Self {
        Self(self.0 + new as u64)
    }

    /// Counts 32-bit words of the new packet as added, of which this is the sum.
    #[inline(always)]
    #[must_use]
    pub const fn with_sum(self, sum: u64) -> Self {
        Self(self.0 + sum)
    }

    /// Counts all that another change does.
    #[inline(always)]
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// The checksum field after this change, as it stands in memory. A right checksum stays right and a wrong one
    /// stays wrong by the same difference.
    #[inline(always)]
    #[must_use]
    pub const fn apply(self, checksum: u16) -> u16 {
        !fold(self.0 + (!checksum) as u64)
    }

    /// The checksum of all that was added, as it stands in memory.
    #[inline(always)]
    #[must_use]
    pub const fn checksum(self) -> u16 {
        self.apply(0xffff)
    }
}

/// Most bytes that [`Change::adding`] adds.
pub const MAX_ADDED_BYTES: usize = 9216;

/// Where the last of them may be: behind more headers than there can be.
const MAX_END: usize = MAX_ADDED_BYTES + 1024;

/// Bytes that it adds at a time.
const CHUNK: usize = 32;

impl Change {
    /// Counts `bytes` of the frame from `offset` on as added, as if they began a 16-bit word. `None` if they are not all
    /// in the frame, or more than [`MAX_ADDED_BYTES`].
    #[inline(always)]
    #[must_use]
    pub fn adding<F: Frame>(self, frame: &F, offset: usize, bytes: usize) -> Option<Self> {
        if bytes > MAX_ADDED_BYTES {
            return None;
        }
        // What is left over by the chunks comes first: the verifier then finds nothing but the sum after the loop,
        // wherever that ended, and looks at what follows once.
        let end = offset + bytes / CHUNK * CHUNK;
        let mut sum = self;
        let mut rest = end;
        if bytes & 16 != 0 {
            sum = sum.adding_words::<F, 4>(frame, &mut rest)?;
        }
        if bytes & 8 != 0 {
            sum = sum.adding_words::<F, 2>(frame, &mut rest)?;
        }
        if bytes & 4 != 0 {
            sum = sum.adding_words::<F, 1>(frame, &mut rest)?;
        }
        if bytes & 2 != 0 {
            sum = sum.with(next::<F, u16>(frame, &mut rest)? as u32);
        }
        if bytes & 1 != 0 {
            sum = sum.with(u16::from_ne_bytes([next(frame, &mut rest)?, 0]) as u32);
        }
        let mut at = offset;
        while at < end {
            // The verifier of Linux 6.1 compares numbers with constants alone, and would not see the loop end.
            if frame.unknown(at) >= MAX_END {
                return None;
            }
            sum = sum.adding_words::<F, { CHUNK / 4 }>(frame, &mut at)?;
        }
        Some(sum)
    }

    #[inline(always)]
    fn adding_words<F: Frame, const N: usize>(self, frame: &F, at: &mut usize) -> Option<Self>
    where
        [u32; N]: Word,
    {
        let words: [u32; N] = next(frame, at)?;
        Some(words.iter().fold(self, |sum, &word| sum.with(word)))
    }
}

#[inline(always)]
fn next<F: Frame, W: Word>(frame: &F, at: &mut usize) -> Option<W> {
    let word = frame.read(*at);
    *at += size_of::<W>();
    word
}

/// Folds a sum of up to 2^16 words of 32 bits to 16 bits.
#[inline(always)]
const fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;
    use crate::host::HostFrame;

    fn checksum(words: &[u32]) -> u16 {
        let mut sum: u32 = words.iter().map(|word| (word >> 16) + (word & 0xffff)).sum();
        while sum > 0xffff {
            sum = (sum >> 16) + (sum & 0xffff);
        }
        !(sum as u16)
    }

    proptest! {
        #[test]
        fn bytes_of_a_frame_are_added_like_the_words_that_they_are(
            bytes in prop::collection::vec(any::<u8>(), 1..200),
            offset in 0_usize..7,
        ) {
            let mut padded = bytes.clone();
            padded.resize(bytes.len().next_multiple_of(4), 0);
            let words: Vec<u32> = padded
                .chunks_exact(4)
                .map(|word| u32::from_ne_bytes([word[0], word[1], word[2], word[3]]))
                .collect();
            let frame = HostFrame::new([&[0xa5; 7][..offset], &bytes].concat());
            let added = Change::default().with(1).adding(&frame, offset, bytes.len());
            let expected = words.iter().fold(Change::default().with(1), |change, &word| change.with(word));
            prop_assert_eq!(added.map(|change| change.apply(0xffff)), Some(expected.apply(0xffff)));
            prop_assert!(Change::default().adding(&frame, offset + 1, bytes.len()).is_none());
        }

        #[test]
        fn an_incremental_change_gives_the_checksum_of_the_new_words(
            kept in prop::collection::vec(1_u32.., 1..8),
            old in prop::collection::vec(any::<u32>(), 0..12),
            new in prop::collection::vec(any::<u32>(), 0..12),
        ) {
            let before = checksum(&[kept.clone(), old.clone()].concat());
            let after = checksum(&[kept, new.clone()].concat());
            let change = old.iter().fold(Change::default(), |change, &word| change.without(word));
            let change = new.iter().fold(change, |change, &word| change.with(word));
            prop_assert_eq!(change.apply(before), after);
        }

        #[test]
        fn a_wrong_checksum_stays_wrong(word in 1_u32.., new: u32, error in 1_u16..0xffff) {
            let right = checksum(&[word]);
            let wrong = right.wrapping_add(error);
            prop_assume!(!wrong % 0xffff != !right % 0xffff);
            let change = Change::default().without(word).with(new);
            prop_assert_ne!(change.apply(wrong) % 0xffff, change.apply(right) % 0xffff);
        }
    }

    #[test]
    fn more_bytes_than_the_most_are_not_added() {
        let frame = HostFrame::new(std::vec![0xff; MAX_ADDED_BYTES + 1]);
        assert!(Change::default().adding(&frame, 0, MAX_ADDED_BYTES).is_some());
        assert!(Change::default().adding(&frame, 0, MAX_ADDED_BYTES + 1).is_none());
    }

    /// RFC 1624, equation 3, in 128 bits and by division: no folding to get wrong.
    fn adjusted(checksum: u16, old: &[u32], new: &[u32]) -> u16 {
        let words = |words: &[u32]| {
            words
                .iter()
                .flat_map(|word| [word >> 16, word & 0xffff])
                .collect::<Vec<u32>>()
        };
        let sum = u128::from(!checksum)
            + words(old).iter().map(|word| u128::from(0xffff - word)).sum::<u128>()
            + words(new).iter().map(|&word| u128::from(word)).sum::<u128>();
        // A sum of ones' complement is never 0 unless all its terms are.
        let sum = if sum == 0 { 0 } else { (sum - 1) % 0xffff + 1 };
        !(sum as u16)
    }

    #[test]
    fn every_checksum_comes_out_right_whatever_carries() {
        let edges = [
            0,
            1,
            0xffff,
            0x1_0000,
            0xfffe_ffff,
            0xffff_0001,
            0xffff_fffe,
            0xffff_ffff,
        ];
        for checksum in 0..=u16::MAX {
            for (old, new) in edges.iter().flat_map(|old| edges.map(|new| ([*old; 3], [new; 5]))) {
                let change = old.iter().fold(Change::default(), |change, &word| change.without(word));
                let change = new.iter().fold(change, |change, &word| change.with(word));
                assert_eq!(
                    change.apply(checksum),
                    adjusted(checksum, &old, &new),
                    "{checksum:#x} {old:x?} {new:x?}"
                );
            }
        }
    }
}
