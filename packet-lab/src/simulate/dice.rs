//! Chance that is the same on every machine and in every version: a named generator, and integers only.

use rand::{Rng as _, SeedableRng as _};
use rand_pcg::Pcg64;

/// One part in a million.
pub(crate) type Ppm = u32;

/// One part in one.
pub(crate) const ALWAYS: Ppm = 1_000_000;

/// A source of chance. Each actor has one of its own, so that nobody's luck depends on who else is there.
#[derive(Clone, Debug)]
pub(crate) struct Dice(Pcg64);

impl Dice {
    /// Those of one actor in the runs of one seed.
    pub(crate) fn new(seed: u64, actor: u64) -> Self {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        bytes[8..16].copy_from_slice(&actor.to_le_bytes());
        // The generator's second half chooses its stream: one for each actor.
        bytes[16..24].copy_from_slice(&actor.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
        let mut dice = Self(Pcg64::from_seed(bytes));
        // Seeds that differ in few bits show it in the first numbers.
        (0..8).for_each(|_| _ = dice.number());
        dice
    }

    /// Any number.
    pub(crate) fn number(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// One of `0..end`; 0 if there is none.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.number()) * u128::from(end)) >> 64) as u64
    }

    /// One of `from..=to`.
    pub(crate) fn between(&mut self, from: u64, to: u64) -> u64 {
        from + self.below(to.saturating_sub(from) + 1)
    }

    /// Whether something happens that does so this often.
    pub(crate) fn hits(&mut self, often: Ppm) -> bool {
        self.below(ALWAYS.into()) < u64::from(often)
    }

    /// Somewhere around `mean`: from half of it to one and a half.
    pub(crate) fn around(&mut self, mean: u64) -> u64 {
        self.between(mean / 2, mean + mean / 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_those_of_every_machine() {
        let mut dice = Dice::new(1, 2);
        let numbers: Vec<u64> = (0..4).map(|_| dice.below(1000)).collect();
        assert_eq!(numbers, [832, 537, 559, 753]);
    }

    #[test]
    fn what_is_said_to_happen_so_often_does() {
        let mut dice = Dice::new(7, 0);
        let hits = (0..100_000).filter(|_| dice.hits(250_000)).count();
        assert!((24_000..26_000).contains(&hits), "{hits} of 25,000");
        assert!(!(0..1000).any(|_| dice.hits(0)));
        assert!((0..1000).all(|_| dice.hits(ALWAYS)));
    }

    #[test]
    fn actors_have_chances_of_their_own() {
        let rolls = |actor| {
            let mut dice = Dice::new(1, actor);
            (0..64).map(|_| dice.below(2)).sum::<u64>()
        };
        let heads: Vec<u64> = (0..50).map(rolls).collect();
        assert!(heads.iter().all(|heads| (12..=52).contains(heads)), "{heads:?}");
        assert!(heads.iter().any(|other| *other != heads[0]));
    }
}
