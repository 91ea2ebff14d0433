//! A set of packet numbers, which lie close together: a bit each.

use std::collections::VecDeque;

const BITS: u64 = 64;

/// A set of packet numbers.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    /// What the first word starts at, in words.
    first: u64,
    words: VecDeque<u64>,
}

impl Numbers {
    /// Adds a number; whether it is new.
    pub(super) fn insert(&mut self, number: u64) -> bool {
        let word = number / BITS;
        if self.words.is_empty() {
            self.first = word;
        }
        while word < self.first {
            self.words.push_front(0);
            self.first -= 1;
        }
        let index = (word - self.first) as usize;
        if index >= self.words.len() {
            self.words.resize(index + 1, 0);
        }
        let bit = 1 << (number % BITS);
        let is_new = self.words[index] & bit == 0;
        self.words[index] |= bit;
        is_new
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::simulate::dice::Dice;

    #[test]
    fn it_is_a_set() {
        let mut dice = Dice::new(1, 1);
        let (mut numbers, mut model) = (Numbers::default(), HashSet::new());
        for _ in 0..10_000 {
            let number = 1_790_000_000_000_000 + dice.below(6_000);
            assert_eq!(numbers.insert(number), model.insert(number), "{number}");
        }
    }
}
