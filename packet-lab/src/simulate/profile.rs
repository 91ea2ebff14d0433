//! What a run is made of: how many, how long, what the path does to packets, who attacks.

use std::{collections::BTreeMap, fs, io, path::Path, time::Duration};

use serde::{Deserialize, Serialize};

use super::{class::Class, dice::Ppm};

/// Most users of a run: as many as have an egress port of their own.
pub const MOST_USERS: u32 = 100_000;
/// Longest run, in virtual seconds.
pub const MOST_SECONDS: f64 = 3_600.0;
/// Most packets a second of one attack.
const MOST_ATTACK: u32 = 10_000_000;
/// Most packets a second of one user: a user takes one tenth of a rate at most.
const MOST_PPS: u32 = 5_000;

/// A profile that cannot be run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProfileError {
    /// The file cannot be read.
    #[error("reading the profile {path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// It is no profile.
    #[error("the profile {path} is not one: {source}")]
    Syntax {
        /// The file.
        path: String,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// A value that makes no sense.
    #[error("{key} is {value}: {allowed}")]
    Value {
        /// The key in a profile.
        key: String,
        /// What it says.
        value: String,
        /// What it may say.
        allowed: String,
    },
}

/// What the network between clients and relay does to a packet.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct PathProfile {
    /// Time on the way, in milliseconds.
    pub delay_ms: f64,
    /// How much longer at most, in milliseconds; packets of one client stay in order.
    pub jitter_ms: f64,
    /// How many are lost, in percent.
    pub loss_percent: f64,
    /// How many are overtaken by later ones, in percent.
    pub reorder_percent: f64,
    /// By how much at most, in milliseconds.
    pub reorder_ms: f64,
    /// How many arrive twice, in percent.
    pub duplicate_percent: f64,
    /// How many of a jittery client's packets come very late, in percent.
    pub late_percent: f64,
    /// How late at most, in milliseconds.
    pub late_ms: f64,
}

impl Default for PathProfile {
    fn default() -> Self {
        Self {
            delay_ms: 20.0,
            jitter_ms: 2.0,
            loss_percent: 1.0,
            reorder_percent: 2.0,
            reorder_ms: 30.0,
            duplicate_percent: 0.5,
            late_percent: 2.0,
            late_ms: 800.0,
        }
    }
}

/// A run. The same profile gives the same run, to the byte, on every machine and backend.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Profile {
    /// What all chance comes from.
    pub seed: u64,
    /// Users, of all classes together.
    pub users: u32,
    /// Virtual seconds.
    pub seconds: f64,
    /// Packets a second of an ordinary user.
    pub pps: u32,
    /// Whether listeners protect headers.
    pub header_protection: bool,
    /// The path between clients and relay.
    pub path: PathProfile,
    /// Users of each class, in proportion to each other. What is not named is not there.
    pub mix: BTreeMap<Class, u32>,
    /// Packets a second of each attack. What is not named is not there.
    pub attack: BTreeMap<Class, u32>,
}

impl Default for Profile {
    fn default() -> Self {
        let mix = [
            (Class::Steady, 400),
            (Class::Bursty, 250),
            (Class::Roaming, 100),
            (Class::Rebinding, 100),
            (Class::Jittery, 5),
            (Class::Greedy, 20),
            (Class::Expiring, 30),
            (Class::Renewed, 40),
            (Class::Removed, 30),
            (Class::Blocked, 15),
            (Class::Stranded, 10),
        ];
        let attack = [
            (Class::RandomTokens, 20_000),
            (Class::ForgedTags, 20_000),
            (Class::ReplayedPackets, 20_000),
            (Class::Unsolicited, 10_000),
            (Class::BlocklistedSources, 5_000),
            (Class::Malformed, 5_000),
        ];
        Self {
            seed: 1,
            users: 2_000,
            seconds: 5.0,
            pps: 30,
            header_protection: true,
            path: PathProfile::default(),
            mix: mix.into(),
            attack: attack.into(),
        }
    }
}

impl Profile {
    /// Reads a profile from a TOML file. What the file does not say is as in [`Profile::default`].
    ///
    /// # Errors
    /// If the file cannot be read, or is no profile; it is not checked yet, see [`Profile::check`].
    pub fn load(path: &Path) -> Result<Self, ProfileError> {
        let name = path.display().to_string();
        let text = fs::read_to_string(path).map_err(|source| ProfileError::Read {
            path: name.clone(),
            source,
        })?;
        toml::from_str(&text).map_err(|source| ProfileError::Syntax {
            path: name,
            source: Box::new(source),
        })
    }

    /// Checks that it can be run.
    ///
    /// # Errors
    /// If a value makes no sense; which, and what it may be.
    pub fn check(&self) -> Result<(), ProfileError> {
        let fits = self.seconds >= 0.001 && self.seconds <= MOST_SECONDS;
        require(fits, "seconds", self.seconds, || format!("0.001 to {MOST_SECONDS}"))?;
        let users = self.users >= 1 && self.users <= MOST_USERS;
        require(users, "users", self.users, || format!("1 to {MOST_USERS}"))?;
        let pps = self.pps >= 1 && self.pps <= MOST_PPS;
        require(pps, "pps", self.pps, || format!("1 to {MOST_PPS}"))?;
        self.check_path()?;
        self.check_classes()
    }

    fn check_path(&self) -> Result<(), ProfileError> {
        let path = &self.path;
        for (key, value) in [
            ("loss_percent", path.loss_percent),
            ("reorder_percent", path.reorder_percent),
            ("duplicate_percent", path.duplicate_percent),
            ("late_percent", path.late_percent),
        ] {
            let fits = (0.0..=100.0).contains(&value);
            require(fits, &format!("path.{key}"), value, || "0 to 100".to_owned())?;
        }
        for (key, value) in [
            ("delay_ms", path.delay_ms),
            ("jitter_ms", path.jitter_ms),
            ("reorder_ms", path.reorder_ms),
            ("late_ms", path.late_ms),
        ] {
            let fits = (0.0..=60_000.0).contains(&value);
            require(fits, &format!("path.{key}"), value, || {
                "0 to 60000 milliseconds".to_owned()
            })?;
        }
        Ok(())
    }

    fn check_classes(&self) -> Result<(), ProfileError> {
        let kinds: Vec<&str> = Class::of_users().map(Class::name).collect();
        for (class, share) in &self.mix {
            require(!class.is_attack(), &format!("mix.{class}"), share, || {
                format!(
                    "that is an attack, its packets a second belong into [attack]; users are {}",
                    kinds.join(", ")
                )
            })?;
            let most = 1_000_000;
            require(*share <= most, &format!("mix.{class}"), share, || {
                format!("0 to {most}")
            })?;
        }
        let any = self.mix.values().any(|&share| share > 0);
        require(any, "mix", "without users", || {
            format!("name at least one of {}", kinds.join(", "))
        })?;
        let kinds: Vec<&str> = Class::of_attacks().map(Class::name).collect();
        for (class, pps) in &self.attack {
            require(class.is_attack(), &format!("attack.{class}"), pps, || {
                format!("that is no attack; attacks are {}", kinds.join(", "))
            })?;
            require(*pps <= MOST_ATTACK, &format!("attack.{class}"), pps, || {
                format!("0 to {MOST_ATTACK} packets a second")
            })?;
        }
        Ok(())
    }

    /// The same users on the same path, left in peace.
    #[must_use]
    pub fn without_attack(&self) -> Self {
        Self {
            attack: BTreeMap::new(),
            ..self.clone()
        }
    }

    /// Whether anybody attacks.
    #[must_use]
    pub fn has_attack(&self) -> bool {
        self.attack.values().any(|&pps| pps > 0)
    }

    /// How many users each class has: in proportion, and at least one of each while there are enough.
    pub(super) fn users_of_classes(&self) -> Vec<(Class, u32)> {
        let named: Vec<(Class, u64)> = self
            .mix
            .iter()
            .filter(|(_, share)| **share > 0)
            .map(|(class, share)| (*class, u64::from(*share)))
            .collect();
        let whole: u64 = named.iter().map(|(_, share)| share).sum();
        // One of each first, or the smallest shares would be left with nobody.
        let shared = self.users.saturating_sub(named.len() as u32);
        let mut left = self.users;
        let mut classes = Vec::with_capacity(named.len());
        for (class, share) in &named {
            let fair = u64::from(shared) * share / whole + 1;
            let count = left.min(fair as u32);
            left -= count;
            classes.push((*class, count));
        }
        // What rounding left over.
        classes[0].1 += left;
        classes
    }

    pub(super) fn end_ns(&self) -> u64 {
        Duration::from_secs_f64(self.seconds).as_nanos() as u64
    }
}

fn require(
    fits: bool,
    key: &str,
    value: impl std::fmt::Display,
    allowed: impl FnOnce() -> String,
) -> Result<(), ProfileError> {
    if fits {
        return Ok(());
    }
    Err(ProfileError::Value {
        key: key.to_owned(),
        value: value.to_string(),
        allowed: allowed(),
    })
}

/// The path in whole numbers, which give the same run everywhere.
#[derive(Clone, Copy, Debug)]
pub(super) struct PathModel {
    pub(super) delay_ns: u64,
    pub(super) jitter_ns: u64,
    pub(super) loss: Ppm,
    pub(super) reorder: Ppm,
    pub(super) reorder_ns: u64,
    pub(super) duplicate: Ppm,
    pub(super) late: Ppm,
    pub(super) late_ns: u64,
}

impl From<&PathProfile> for PathModel {
    fn from(path: &PathProfile) -> Self {
        #[expect(clippy::cast_sign_loss, reason = "a profile that was checked has nothing below zero")]
        let ppm = |percent: f64| (percent * 1e4).round() as Ppm;
        let ns = |ms: f64| Duration::from_secs_f64(ms / 1e3).as_nanos() as u64;
        Self {
            delay_ns: ns(path.delay_ms),
            jitter_ns: ns(path.jitter_ms),
            loss: ppm(path.loss_percent),
            reorder: ppm(path.reorder_percent),
            reorder_ns: ns(path.reorder_ms),
            duplicate: ppm(path.duplicate_percent),
            late: ppm(path.late_percent),
            late_ns: ns(path.late_ms),
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[test]
    fn the_default_profile_can_be_run_and_survives_toml() {
        let profile = Profile::default();
        profile.check().unwrap();
        let text = toml::to_string(&profile).unwrap();
        assert_eq!(toml::from_str::<Profile>(&text).unwrap(), profile);
        assert_eq!(toml::from_str::<Profile>("").unwrap(), profile);
    }

    #[rstest]
    #[case(1)]
    #[case(5)]
    #[case(11)]
    #[case(12)]
    #[case(2_000)]
    #[case(99_999)]
    fn all_users_have_a_class_and_all_classes_users_while_there_are_enough(#[case] users: u32) {
        let profile = Profile {
            users,
            ..Profile::default()
        };
        let classes = profile.users_of_classes();
        assert_eq!(classes.iter().map(|(_, count)| count).sum::<u32>(), users);
        let without = classes.iter().filter(|(_, count)| *count == 0).count();
        assert_eq!(without, 11_usize.saturating_sub(users as usize), "{classes:?}");
    }

    #[rstest]
    #[case::no_users("users = 0", "users is 0: 1 to 100000")]
    #[case::no_time("seconds = 0", "seconds is 0: 0.001 to 3600")]
    #[case::no_number("seconds = nan", "seconds is NaN")]
    #[case::more_than_everything("[path]\nloss_percent = 101", "path.loss_percent is 101: 0 to 100")]
    #[case::back_in_time("[path]\ndelay_ms = -1", "path.delay_ms is -1: 0 to 60000 milliseconds")]
    #[case::an_attack_among_users("[mix]\nforged_tags = 1", "mix.forged_tags is 1: that is an attack")]
    #[case::a_user_among_attacks(
        "[attack]\nsteady = 1",
        "attack.steady is 1: that is no attack; attacks are random_tokens"
    )]
    #[case::nobody("[mix]\nsteady = 0", "mix is without users: name at least one of steady")]
    fn a_profile_that_makes_no_sense_says_which_value_and_what_it_may_be(#[case] text: &str, #[case] message: &str) {
        let error = toml::from_str::<Profile>(text).unwrap().check().unwrap_err();
        assert!(error.to_string().contains(message), "{error}");
    }

    #[rstest]
    #[case::an_unknown_key("usres = 5", "unknown field `usres`")]
    #[case::an_unknown_class("[mix]\nhappy = 5", "unknown variant `happy`")]
    #[case::a_word_for_a_number("users = \"many\"", "invalid type")]
    fn a_file_that_is_no_profile_says_where(#[case] text: &str, #[case] message: &str) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("profile.toml");
        fs::write(&path, text).unwrap();
        let error = Profile::load(&path).unwrap_err().to_string();
        assert!(error.contains(message) && error.contains("line"), "{error}");
    }
}
