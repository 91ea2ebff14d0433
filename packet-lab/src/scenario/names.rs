//! Names of the relay's vocabulary, as scenarios have them. A name that does not exist is refused with the one that was
//! probably meant.

use std::{borrow::Cow, fmt, str::FromStr};

use relay_ebpf::verdict::{Direction, Reason};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use crate::Verdict;

/// How alike two names must be for one to be suggested for the other.
pub(super) const ALIKE: f64 = 0.7;

/// A name that does not exist.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("there is no {what} `{found}`{}; there are {all}", .meant.as_ref().map(|meant| format!("; did you mean `{meant}`?")).unwrap_or_default())]
pub struct UnknownName {
    what: &'static str,
    found: String,
    meant: Option<&'static str>,
    all: String,
}

/// Finds a name among those that there are.
///
/// # Errors
/// If it is none of them.
pub fn find<T: Copy>(
    what: &'static str,
    found: &str,
    all: &[T],
    name: impl Fn(T) -> &'static str,
) -> Result<T, UnknownName> {
    if let Some(known) = all.iter().copied().find(|&known| name(known) == found) {
        return Ok(known);
    }
    let likeness = |known: &str| strsim::jaro_winkler(&found.to_lowercase(), &known.to_lowercase());
    let alike = all.iter().map(|&known| (name(known), likeness(name(known))));
    let best = alike.max_by(|a, b| a.1.total_cmp(&b.1));
    let names: Vec<&str> = all.iter().map(|&known| name(known)).collect();
    Err(UnknownName {
        what,
        found: found.to_owned(),
        meant: best.filter(|(_, likeness)| *likeness > ALIKE).map(|(name, _)| name),
        all: names.join(", "),
    })
}

macro_rules! name {
    ($(#[doc = $doc:literal])+ $type:ident of $value:ty, $what:literal, $all:expr) => {
        $(#[doc = $doc])+
        #[derive(Clone, Copy, Debug, Eq, PartialEq)]
        pub struct $type(pub $value);

        impl FromStr for $type {
            type Err = UnknownName;

            fn from_str(text: &str) -> Result<Self, UnknownName> {
                find($what, text, &$all, <$value>::name).map(Self)
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.0.name())
            }
        }

        impl Ord for $type {
            fn cmp(&self, other: &Self) -> std::cmp::Ordering {
                (self.0 as u8).cmp(&(other.0 as u8))
            }
        }

        impl PartialOrd for $type {
            fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
                Some(self.cmp(other))
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.0.name())
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(D::Error::custom)
            }
        }

        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                let names: Vec<&str> = $all.iter().map(|known| known.name()).collect();
                json_schema!({ "type": "string", "enum": names })
            }
        }
    };
}

name!(
    /// Why a packet was treated as it was.
    ReasonName of Reason, "reason", Reason::ALL
);
name!(
    /// Which way a packet goes.
    DirectionName of Direction, "direction", Direction::ALL
);
name!(
    /// What the kernel is told.
    VerdictName of Verdict, "verdict", Verdict::ALL
);
