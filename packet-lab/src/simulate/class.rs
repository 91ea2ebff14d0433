//! The kinds of traffic that are mixed.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

macro_rules! classes {
    ($($(#[doc = $doc:literal])+ $variant:ident => $name:literal,)+) => {
        /// A kind of traffic: of users, or of somebody who attacks the relay.
        #[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
        #[serde(rename_all = "snake_case")]
        pub enum Class {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Class {
            /// Every class, users first.
            pub const ALL: [Self; [$($name),+].len()] = [$(Self::$variant),+];

            /// The name in profiles, tables and JSON.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }

            /// One sentence for people.
            #[must_use]
            pub const fn description(self) -> &'static str {
                match self {
                    $(Self::$variant => concat!($($doc),+),)+
                }
            }
        }
    };
}

classes! {
    /// Users who send at an even pace.
    Steady => "steady",
    /// Users who send bursts, well within their budget, and are silent between.
    Bursty => "bursty",
    /// Users whose client moves to another address now and then, and to another router with it.
    Roaming => "roaming",
    /// Users behind a NAT that gives them another port now and then.
    Rebinding => "rebinding",
    /// Users whose packets come late, some later than the replay window is long.
    Jittery => "jittery",
    /// Users who send more than their rate.
    Greedy => "greedy",
    /// Users whose grant expires during the run, and who go on.
    Expiring => "expiring",
    /// Users whose grant is renewed during the run.
    Renewed => "renewed",
    /// Users who are removed during the run, and go on.
    Removed => "removed",
    /// Users whose client moves behind addresses that are on the blocklist, and back.
    Blocked => "blocked",
    /// Users whose destination's next hop is lost for a while.
    Stranded => "stranded",
    /// Random tokens from random addresses.
    RandomTokens => "random_tokens",
    /// Tokens with the handle of a user, sealed with another key.
    ForgedTags => "forged_tags",
    /// Recorded packets of users, from other addresses.
    ReplayedPackets => "replayed_packets",
    /// Packets to egress ports that are not from the user's destination.
    Unsolicited => "unsolicited",
    /// Forged and recorded packets from sources that are on the blocklist.
    BlocklistedSources => "blocklisted_sources",
    /// Packets too short for a token, fragments, and packets that are not for the relay.
    Malformed => "malformed",
}

impl Class {
    /// Whether it is an attacker's.
    #[must_use]
    pub const fn is_attack(self) -> bool {
        matches!(
            self,
            Self::RandomTokens
                | Self::ForgedTags
                | Self::ReplayedPackets
                | Self::Unsolicited
                | Self::BlocklistedSources
                | Self::Malformed
        )
    }

    /// The classes of users.
    pub fn of_users() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|class| !class.is_attack())
    }

    /// The classes of attacks.
    pub fn of_attacks() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|class| class.is_attack())
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// No class has this name.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("there is no class `{0}`; there are {names}", names = names())]
pub struct UnknownClass(pub String);

fn names() -> String {
    Class::ALL.map(Class::name).join(", ")
}

impl FromStr for Class {
    type Err = UnknownClass;

    fn from_str(name: &str) -> Result<Self, UnknownClass> {
        let found = Self::ALL.into_iter().find(|class| class.name() == name);
        found.ok_or_else(|| UnknownClass(name.to_owned()))
    }
}
