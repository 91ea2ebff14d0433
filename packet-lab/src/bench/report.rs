//! The figures of a bench, and comparing them with earlier ones.

use serde::{Deserialize, Serialize};

/// One row.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Row {
    /// The path, in one word.
    pub path: String,
    /// What happens on it, for people.
    pub description: String,
    /// Nanoseconds a packet: the median of all rounds.
    pub ns: f64,
    /// The least and the most of all rounds.
    pub range_ns: [f64; 2],
    /// Ratio to the floor of the same round: the median.
    pub ratio: f64,
    /// The least and the most of these ratios.
    #[serde(default)]
    pub ratio_range: [f64; 2],
    /// Gigabits of payload that one core relays in a second if it does nothing but run the program; none of paths that
    /// relay nothing.
    #[serde(default)]
    pub gbit_per_second: Option<f64>,
}

impl Row {
    /// Cores that so many gigabits of payload in a second keep busy with the program.
    #[must_use]
    pub fn cores_at(&self, gbit_per_second: f64) -> Option<f64> {
        self.gbit_per_second.map(|one_core| gbit_per_second / one_core)
    }
}

/// How long single packets took, by the program's own clock.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Latency {
    /// The path that they took.
    pub path: String,
    /// Mean, in nanoseconds.
    pub mean_ns: f64,
    /// Packets by time: bucket `i` counts those below 2^i ns and not below 2^(i-1) ns.
    pub buckets: Vec<u64>,
}

/// What does not vary from run to run.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Size {
    /// Instructions that the verifier walked.
    pub verified_instructions: u32,
    /// Bytes of machine code.
    pub jited_bytes: u32,
    /// Bytes of kernel memory that all of the program's maps take.
    pub map_bytes: u64,
}

/// All figures.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Report {
    /// Release of the kernel.
    pub kernel: String,
    /// Users at random.
    pub users: u32,
    /// Bytes of payload.
    pub payload_bytes: usize,
    /// Whether packets were IPv6's.
    pub ipv6: bool,
    /// Whether tokens travelled with header protection.
    pub header_protection: bool,
    /// Rounds.
    pub rounds: usize,
    /// Packets of each path in each round.
    pub packets: u32,
    /// The program.
    pub size: Size,
    /// Single packets of users at random, timed apart from the rounds, since timing takes time.
    #[serde(default)]
    pub latency: Option<Latency>,
    /// The floor first, then the paths.
    pub rows: Vec<Row>,
}

/// A figure that is above what it was.
#[derive(Clone, Debug, PartialEq)]
pub struct Worse {
    /// Which figure.
    pub what: String,
    /// What it was.
    pub base: f64,
    /// What it is.
    pub now: f64,
}

/// Why two reports say nothing about each other.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Incomparable {
    /// Other conditions.
    #[error("the base was measured with {what} {base}, this with {now}: give both runs the same options")]
    Options {
        /// Which option.
        what: &'static str,
        /// Its value then.
        base: String,
        /// Its value now.
        now: String,
    },
    /// A path that the base lacks.
    #[error("the base has no figure for `{0}`: it is from another version; measure it again")]
    NoRow(String),
}

/// The paths that become dearer with more users, in one word and for people.
pub const GROWING: [(&str, &str); 3] = [
    ("relayed_uplink", "uplink"),
    ("relayed_downlink", "downlink"),
    ("unknown_session", "unknown handle"),
];

impl Report {
    /// The row of a path.
    #[must_use]
    pub fn row(&self, path: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.path == path)
    }

    /// Bytes of maps that each user takes whom `fewer` does not have; none if it has as many.
    #[must_use]
    pub fn bytes_per_user(&self, fewer: &Self) -> Option<f64> {
        let users = self.users.checked_sub(fewer.users).filter(|&more| more > 0)?;
        let bytes = self.size.map_bytes.checked_sub(fewer.size.map_bytes)?;
        #[expect(clippy::cast_precision_loss, reason = "a mean of bytes needs no 53 bits")]
        Some(bytes as f64 / f64::from(users))
    }

    /// The figures that are above the base's by more than `percent`: ratios to the floor, and on the same kernel the
    /// program's size too.
    ///
    /// # Errors
    /// If the two were not measured under the same conditions.
    pub fn worse_than(&self, base: &Self, percent: f64) -> Result<Vec<Worse>, Incomparable> {
        self.check_same_options(base)?;
        let mut pairs = Vec::new();
        for row in &self.rows {
            let found = base.row(&row.path);
            let found = found.ok_or_else(|| Incomparable::NoRow(row.path.clone()))?;
            pairs.push((format!("{}, × floor", row.path), found.ratio, row.ratio));
        }
        if self.kernel == base.kernel {
            let (now, base) = (self.size, base.size);
            for (what, base, now) in [
                (
                    "verified instructions",
                    base.verified_instructions,
                    now.verified_instructions,
                ),
                ("bytes of machine code", base.jited_bytes, now.jited_bytes),
            ] {
                pairs.push((what.to_owned(), base.into(), now.into()));
            }
        }
        let above = |(what, base, now): (String, f64, f64)| {
            let worse = now > base * (1.0 + percent / 100.0);
            worse.then_some(Worse { what, base, now })
        };
        Ok(pairs.into_iter().filter_map(above).collect())
    }

    fn check_same_options(&self, base: &Self) -> Result<(), Incomparable> {
        let options = |report: &Self| {
            [
                ("--users", report.users.to_string()),
                ("--size", report.payload_bytes.to_string()),
                ("--ipv6", report.ipv6.to_string()),
                ("--no-header-protection", (!report.header_protection).to_string()),
            ]
        };
        for ((what, base), (_, now)) in options(base).into_iter().zip(options(self)) {
            if base != now {
                return Err(Incomparable::Options { what, base, now });
            }
        }
        Ok(())
    }
}

/// A row of one path, from the figures of all rounds; `ns` must not be empty.
pub(super) fn row(path: &str, description: &str, ns: &[f64], ratios: &[f64]) -> Row {
    Row {
        path: path.to_owned(),
        description: description.to_owned(),
        ns: median(ns),
        range_ns: range(ns),
        ratio: median(ratios),
        ratio_range: range(ratios),
        gbit_per_second: None,
    }
}

/// The least and the most.
pub(crate) fn range(values: &[f64]) -> [f64; 2] {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    [least, values.iter().copied().fold(0.0, f64::max)]
}

/// The middle one, or the mean of the two in the middle; NaN of none.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(ratio: f64) -> Report {
        Report {
            kernel: "6.1".to_owned(),
            users: 1,
            payload_bytes: 64,
            ipv6: false,
            header_protection: true,
            rounds: 1,
            packets: 1,
            size: Size {
                verified_instructions: 100,
                jited_bytes: 100,
                map_bytes: 1,
            },
            latency: None,
            rows: vec![row("a_path", "a path", &[ratio], &[ratio])],
        }
    }

    #[test]
    fn the_median_of_an_even_number_is_between_the_middle_two() {
        assert!((median(&[4.0, 1.0, 3.0, 2.0]) - 2.5).abs() < 1e-9);
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
    }

    #[test]
    fn a_ratio_is_worse_only_beyond_the_percentage() {
        assert_eq!(report(1.09).worse_than(&report(1.0), 10.0), Ok(Vec::new()));
        let worse = report(1.11).worse_than(&report(1.0), 10.0).unwrap();
        assert_eq!(worse.len(), 1);
        assert_eq!(worse[0].what, "a_path, × floor");
    }

    #[test]
    fn a_larger_program_is_worse_on_the_same_kernel_only() {
        let mut larger = report(1.0);
        larger.size.verified_instructions = 111;
        assert_eq!(
            larger.worse_than(&report(1.0), 10.0).unwrap()[0].what,
            "verified instructions"
        );
        larger.kernel = "6.2".to_owned();
        assert_eq!(larger.worse_than(&report(1.0), 10.0), Ok(Vec::new()));
    }

    #[test]
    fn reports_of_other_options_or_paths_are_not_compared() {
        let mut base = report(1.0);
        base.users = 2;
        let error = report(1.0).worse_than(&base, 10.0).unwrap_err();
        assert!(error.to_string().contains("--users 2, this with 1"), "{error}");
        let mut base = report(1.0);
        base.rows.clear();
        assert_eq!(
            report(1.0).worse_than(&base, 10.0),
            Err(Incomparable::NoRow("a_path".to_owned()))
        );
    }

    #[test]
    fn what_a_core_relays_says_how_many_cores_a_rate_takes() {
        let mut row = row("a_path", "a path", &[112.0], &[4.0]);
        assert_eq!(row.cores_at(40.0), None);
        row.gbit_per_second = Some(100.0);
        assert_eq!(row.cores_at(40.0), Some(0.4));
    }

    #[test]
    fn what_a_user_takes_is_what_more_users_take_more() {
        let (few, mut many) = (report(1.0), report(1.0));
        (many.users, many.size.map_bytes) = (101, 25_601);
        assert_eq!(many.bytes_per_user(&few), Some(256.0));
        assert_eq!(few.bytes_per_user(&few), None);
        assert_eq!(few.bytes_per_user(&many), None);
    }

    #[test]
    fn a_report_survives_json() {
        let report = report(1.25);
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
    }
}
