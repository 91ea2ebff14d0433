//! Values as people write them in a scenario: times, addresses of a link, keys, bytes.

use std::{borrow::Cow, fmt, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, Error as _},
};

/// Why a value could not be read.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{found:?} is no {what}; write {example}")]
pub struct ValueError {
    found: String,
    what: &'static str,
    example: &'static str,
}

/// Serde and schema by way of [`FromStr`] and [`fmt::Display`].
macro_rules! as_text {
    ($type:ty, $name:literal, $description:literal, $pattern:literal, $($example:literal),+) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
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
                $name.into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({
                    "type": "string",
                    "description": $description,
                    "pattern": $pattern,
                    "examples": [$($example),+],
                })
            }
        }
    };
}

const UNITS: [(&str, u64); 6] = [
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
];

/// A time on the lab's clock, from the scenario's start, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub struct Time(pub u64);

impl FromStr for Time {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let bad = || ValueError {
            found: text.to_owned(),
            what: "time",
            example: "\"250us\", \"1.5s\" or \"5s+1ns\"",
        };
        let mut total: i128 = 0;
        let mut rest = text.trim();
        let mut sign = 1;
        loop {
            let end = rest.find(['+', '-']).unwrap_or(rest.len());
            total += sign * i128::from(term(rest[..end].trim()).ok_or_else(bad)?);
            let Some(operator) = rest[end..].chars().next() else {
                break;
            };
            sign = if operator == '+' { 1 } else { -1 };
            rest = &rest[end + 1..];
        }
        u64::try_from(total).map(Self).map_err(|_| bad())
    }
}

/// A number and a unit, in nanoseconds.
fn term(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.' && c != '_')?;
    let (number, unit) = text.split_at(digits);
    let (_, scale) = UNITS.iter().find(|(name, _)| *name == unit.trim())?;
    let number = number.replace('_', "");
    let (whole, fraction) = number.split_once('.').unwrap_or((&number, ""));
    let mut ns = whole.parse::<u64>().ok()?.checked_mul(*scale)?;
    let mut place = *scale;
    for digit in fraction.chars() {
        if place % 10 != 0 {
            return None;
        }
        place /= 10;
        ns = ns.checked_add(u64::from(digit.to_digit(10)?) * place)?;
    }
    Some(ns)
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return f.write_str("0s");
        }
        let mut rest = self.0;
        let mut first = true;
        for (name, scale) in UNITS.iter().skip(2) {
            if rest >= *scale {
                write!(f, "{}{}{name}", if first { "" } else { "+" }, rest / scale)?;
                rest %= scale;
                first = false;
            }
        }
        Ok(())
    }
}

as_text!(
    Time,
    "Time",
    "A time on the lab's clock from the scenario's start: numbers with units ns, us, ms, s, m, h, added or subtracted",
    r"^[0-9][0-9_.]*(ns|us|ms|s|m|h)([+-][0-9][0-9_.]*(ns|us|ms|s|m|h))*$",
    "250us",
    "1.5s",
    "5s+1ns"
);

/// A MAC address.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Mac(pub [u8; 6]);

impl FromStr for Mac {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let bytes: Option<Vec<u8>> = text
            .split(':')
            .map(|part| (part.len() == 2).then(|| u8::from_str_radix(part, 16).ok()).flatten())
            .collect();
        let bad = || ValueError {
            found: text.to_owned(),
            what: "MAC address",
            example: "\"02:00:00:00:00:01\"",
        };
        bytes.and_then(|bytes| bytes.try_into().ok()).map(Self).ok_or_else(bad)
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&crate::inspect::mac(self.0))
    }
}

as_text!(
    Mac,
    "Mac",
    "A MAC address",
    "^[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}$",
    "02:00:00:00:00:01"
);

/// A key of 16 bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Key(pub [u8; 16]);

impl FromStr for Key {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let mut key = [0; 16];
        let read = hex::decode_to_slice(text, &mut key);
        read.map(|()| Self(key)).map_err(|_| ValueError {
            found: text.to_owned(),
            what: "key",
            example: "32 hexadecimal digits, such as \"000102030405060708090a0b0c0d0e0f\"",
        })
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

as_text!(
    Key,
    "Key",
    "A key of 16 bytes",
    "^[0-9a-fA-F]{32}$",
    "000102030405060708090a0b0c0d0e0f"
);

/// Most bytes that `bytes:N` makes: what an IP packet can hold.
const MOST_BYTES: usize = 65_535;

/// Bytes of a packet: `hex:0102`, `text:hello`, or `bytes:1400` for that many that count up from 0.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Bytes {
    /// These.
    Hex(Vec<u8>),
    /// The UTF-8 of this text.
    Text(String),
    /// 0, 1, … 255, 0, …: so many.
    Count(usize),
}

impl Bytes {
    /// The bytes.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        match self {
            Self::Hex(bytes) => bytes.clone(),
            Self::Text(text) => text.clone().into_bytes(),
            Self::Count(count) => (0..=255).cycle().take(*count).collect(),
        }
    }
}

impl Default for Bytes {
    fn default() -> Self {
        Self::Hex(Vec::new())
    }
}

impl FromStr for Bytes {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let value = match text.split_once(':') {
            Some(("hex", digits)) => {
                let digits: String = digits.split_ascii_whitespace().collect();
                hex::decode(digits).ok().map(Self::Hex)
            }
            Some(("text", text)) => Some(Self::Text(text.to_owned())),
            Some(("bytes", count)) => {
                let count = count.replace('_', "").parse().ok();
                count.filter(|&count| count <= MOST_BYTES).map(Self::Count)
            }
            _ => None,
        };
        value.ok_or_else(|| ValueError {
            found: text.to_owned(),
            what: "sequence of bytes",
            example: "\"hex:0102\", \"text:hello\" or \"bytes:1400\" (so many that count up; at most 65535)",
        })
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hex(bytes) => write!(f, "hex:{}", hex::encode(bytes)),
            Self::Text(text) => write!(f, "text:{text}"),
            Self::Count(count) => write!(f, "bytes:{count}"),
        }
    }
}

as_text!(
    Bytes,
    "Bytes",
    "Bytes: in hexadecimal, as text, or so many that count up from 0",
    r"^(hex:[0-9a-fA-F\s]*|text:[\s\S]*|bytes:[0-9_]+)$",
    "hex:0102",
    "text:hello",
    "bytes:1400"
);

/// A range of ports, both ends included: `10000-10007`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Ports {
    /// The first.
    pub first: u16,
    /// The last, not below the first.
    pub last: u16,
}

impl FromStr for Ports {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let ports = text
            .split_once('-')
            .and_then(|(first, last)| Some((first.trim().parse().ok()?, last.trim().parse().ok()?)));
        ports
            .filter(|(first, last)| 0 < *first && first <= last)
            .map(|(first, last)| Self { first, last })
            .ok_or_else(|| ValueError {
                found: text.to_owned(),
                what: "range of ports",
                example: "\"10000-10007\"",
            })
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

as_text!(
    Ports,
    "Ports",
    "A range of ports, both ends included",
    "^[0-9]+-[0-9]+$",
    "10000-10007"
);

/// A number of 64 bits. TOML's integers end at 2^63 - 1: larger ones are written as text, `"0xffff_ffff_ffff_ffff"`.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub struct Number(pub u64);

impl FromStr for Number {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let digits = text.replace('_', "");
        let number = match digits.strip_prefix("0x") {
            Some(hexadecimal) => u64::from_str_radix(hexadecimal, 16),
            None => digits.parse(),
        };
        number.map(Self).map_err(|_| ValueError {
            found: text.to_owned(),
            what: "number of 64 bits",
            example: "1, or for more than 2^63 - 1 \"0xffff_ffff_ffff_ffff\"",
        })
    }
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for Number {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match i64::try_from(self.0) {
            Ok(number) => serializer.serialize_i64(number),
            Err(_) => serializer.collect_str(&format_args!("{:#x}", self.0)),
        }
    }
}

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = Number;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number from 0 to 2^64 - 1")
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Number, E> {
                Ok(Number(number))
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Number, E> {
                let unexpected = || E::invalid_value(de::Unexpected::Signed(number), &self);
                u64::try_from(number).map(Number).map_err(|_| unexpected())
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Number, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for Number {
    fn schema_name() -> Cow<'static, str> {
        "Number".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": ["integer", "string"],
            "minimum": 0,
            "description": "A number of 64 bits; as text where it is larger than 2^63 - 1",
            "examples": [1, "0xffff_ffff_ffff_ffff"],
        })
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("0ms", 0)]
    #[case("1.5us", 1_500)]
    #[case("5s+1ns", 5_000_000_001)]
    #[case("5s-1ns", 4_999_999_999)]
    #[case("1_000us", 1_000_000)]
    #[case("1h+1m", 3_660_000_000_000)]
    fn a_time_is_a_sum_of_numbers_with_units(#[case] text: &str, #[case] ns: u64) {
        let time: Time = text.parse().unwrap();
        assert_eq!(time.0, ns);
        assert_eq!(time.to_string().parse::<Time>().unwrap(), time, "{time}");
    }

    #[rstest]
    fn what_is_no_time_is_refused(
        #[values("", "5", "s", "1.5ns", "1x", "1s+", "1ns-1s", "-1s", "1..5s", "999999999999h")] text: &str,
    ) {
        assert!(text.parse::<Time>().is_err());
    }

    #[rstest]
    #[case("hex:01 02", &[1, 2])]
    #[case("text:hi: you", b"hi: you")]
    #[case("bytes:3", &[0, 1, 2])]
    fn bytes_are_hexadecimal_text_or_counted(#[case] text: &str, #[case] bytes: &[u8]) {
        assert_eq!(text.parse::<Bytes>().unwrap().to_vec(), bytes);
    }

    #[rstest]
    fn what_are_no_bytes_is_refused(#[values("", "0102", "hex:0", "hex:zz", "bytes:65536", "bytes:-1")] text: &str) {
        assert!(text.parse::<Bytes>().is_err());
    }
}
