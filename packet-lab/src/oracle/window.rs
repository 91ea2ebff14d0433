//! The replay window: step 6 of the document.

use std::{collections::BTreeSet, ops::RangeInclusive};

/// Numbers below the newest that may still come.
const LATE: u64 = 511;

/// The packet numbers that were accepted.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Window {
    newest: u64,
    /// Those that are not too old to be asked for.
    seen: BTreeSet<u64>,
}

impl Window {
    /// Accepts a number once, if it is larger than the newest or one of newest − 511 … newest; then says whether it is
    /// the newest now.
    pub fn accept(&mut self, pn: u64) -> Option<bool> {
        if pn < self.oldest() || !self.seen.insert(pn) {
            return None;
        }
        self.newest = self.newest.max(pn);
        self.seen = self.seen.split_off(&self.oldest());
        Some(pn == self.newest)
    }

    fn oldest(&self) -> u64 {
        self.newest.saturating_sub(LATE)
    }

    /// The largest number that was accepted; 0 before the first.
    #[must_use]
    pub fn newest(&self) -> u64 {
        self.newest
    }

    /// What was accepted of newest − 511 … newest, as ranges.
    #[must_use]
    pub fn accepted(&self) -> Vec<RangeInclusive<u64>> {
        let mut ranges: Vec<RangeInclusive<u64>> = Vec::new();
        for &pn in &self.seen {
            match ranges.last_mut() {
                Some(last) if *last.end() + 1 == pn => *last = *last.start()..=pn,
                _ => ranges.push(pn..=pn),
            }
        }
        ranges
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::the_first(&[], 0, Some(true))]
    #[case::the_same_again(&[5], 5, None)]
    #[case::one_late(&[5], 4, Some(false))]
    #[case::the_oldest(&[1_000], 489, Some(false))]
    #[case::too_old(&[1_000], 488, None)]
    #[case::zero_as_the_oldest(&[511], 0, Some(false))]
    #[case::zero_too_old(&[512], 0, None)]
    #[case::the_largest(&[0], u64::MAX, Some(true))]
    #[case::late_after_the_largest(&[u64::MAX], u64::MAX - 511, Some(false))]
    #[case::too_old_after_the_largest(&[u64::MAX], u64::MAX - 512, None)]
    fn a_number_is(#[case] before: &[u64], #[case] pn: u64, #[case] accepted: Option<bool>) {
        let mut window = Window::default();
        for &pn in before {
            assert_eq!(window.accept(pn), Some(true));
        }
        assert_eq!(window.accept(pn), accepted);
        assert_eq!(window.accept(pn), None, "twice");
    }

    #[test]
    fn what_was_accepted_is_told_as_ranges_within_the_window() {
        let mut window = Window::default();
        for pn in [1, 600, 601, 603, 90, 89] {
            window.accept(pn);
        }
        assert_eq!(window.accepted(), [600..=601, 603..=603]);
        assert_eq!(window.newest(), 603);
    }
}
