//! Limits: those of steps 8 and 13 and of the downlink, the generic cell rate algorithm of ITU-T I.371 in its form with a
//! theoretical arrival time (TAT).

const SECOND_NS: u128 = 1_000_000_000;

/// What is spent of a limit.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Bucket {
    /// When the next packet would arrive if all came evenly at the rate.
    tat_ns: u128,
}

impl Bucket {
    /// Takes one packet from a budget of `burst` packets at once and then `rate` a second, if there is one left.
    pub fn take(&mut self, rate: u32, burst: u32, now_ns: u64) -> bool {
        let interval_ns = (SECOND_NS / u128::from(rate.max(1))).max(1);
        let now_ns = u128::from(now_ns);
        // A packet may come before its theoretical arrival time by as many intervals as packets of the burst can have
        // come before it.
        let Some(others) = u128::from(burst).checked_sub(1) else {
            return false;
        };
        if now_ns + others * interval_ns < self.tat_ns {
            return false;
        }
        self.tat_ns = self.tat_ns.max(now_ns) + interval_ns;
        true
    }

    /// The theoretical arrival time, in nanoseconds on the relay's clock.
    #[must_use]
    pub fn tat_ns(&self) -> u64 {
        self.tat_ns as u64
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::one_at_a_time(1_000, 1)]
    #[case::a_burst(1_000, 10)]
    #[case::an_interval_that_is_no_whole_number(3, 4)]
    #[case::a_nanosecond(1_000_000_000, 5)]
    fn the_burst_passes_at_once_and_then_one_an_interval(#[case] rate: u32, #[case] burst: u32) {
        let interval_ns = 1_000_000_000 / u64::from(rate);
        let start_ns = 5_000_000_000;
        let mut bucket = Bucket::default();
        for _ in 0..burst {
            assert!(bucket.take(rate, burst, start_ns));
        }
        for nth in 1..5 {
            assert!(!bucket.take(rate, burst, start_ns + nth * interval_ns - 1));
            assert!(bucket.take(rate, burst, start_ns + nth * interval_ns));
        }
    }

    #[test]
    fn no_burst_lets_nothing_pass() {
        assert!(!Bucket::default().take(1_000, 0, 1));
    }
}
