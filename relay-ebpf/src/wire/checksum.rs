//! The Internet checksum (RFC 1071), changed incrementally (RFC 1624, equation 3).
//!
//! The one's complement sum does not depend on byte order, so fields are added as they stand in memory, and 32-bit
//! words count as two 16-bit ones.

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
}

/// Folds a sum of up to 2^16 words of 32 bits to 16 bits.
#[inline(always)]
const fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
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

    fn checksum(words: &[u32]) -> u16 {
        let mut sum: u32 = words.iter().map(|word| (word >> 16) + (word & 0xffff)).sum();
        while sum > 0xffff {
            sum = (sum >> 16) + (sum & 0xffff);
        }
        !(sum as u16)
    }

    proptest! {
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
