//! What a client needs of a relay: one JSON object, or the same on one line.

use std::{
    fmt, fs,
    io::{self, Read as _},
    net::SocketAddr,
    path::{Path, PathBuf},
    str::FromStr,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// What a grant on one line begins with.
const PREFIX: &str = "lumen1:";
/// Bytes of text that a grant may have; a real one has about 300.
const MOST_BYTES: u64 = 64 << 10;

/// A SipHash key, 16 bytes. Written as 32 hexadecimal digits where a client needs it, and never in logs.
#[derive(Clone, Copy, Eq, PartialEq)]
pub struct Secret([u8; 16]);

impl Secret {
    /// This key.
    #[must_use]
    pub const fn new(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// A fresh one, from the system's generator.
    #[must_use]
    pub fn random() -> Self {
        Self(rand::random())
    }

    /// The bytes.
    #[must_use]
    pub const fn bytes(self) -> [u8; 16] {
        self.0
    }

    /// 32 hexadecimal digits.
    #[must_use]
    pub fn to_hex(self) -> String {
        hex::encode(self.0)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl FromStr for Secret {
    type Err = hex::FromHexError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut bytes = [0; 16];
        hex::decode_to_slice(text, &mut bytes)?;
        Ok(Self(bytes))
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.to_hex())
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse()
            .map_err(|_| de::Error::custom("a key is 32 hexadecimal digits"))
    }
}

/// What a client needs; the fields are described in `docs/protocol.md`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Grant {
    /// The operator's name for the user; does not travel in packets.
    pub user: u64,
    /// The listener.
    pub relay: SocketAddr,
    /// The relay's id in tokens.
    pub relay_id: u32,
    /// Index of the user's entry at the relay.
    pub slot: u32,
    /// The random part of the handle.
    pub salt: u32,
    /// SipHash key of the tag.
    pub key: Secret,
    /// The listener's header key; none without header protection.
    pub header_key: Option<Secret>,
    /// When the relay stops accepting tokens; none for never.
    pub expires_at: Option<Timestamp>,
}

/// Why there is no grant.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GrantError {
    /// It begins as a grant on one line, but goes on otherwise.
    #[error("the text after `{PREFIX}` is not base64url: is the line complete?")]
    Base64,
    /// The JSON is not that of a grant.
    #[error("this is no grant: {0}")]
    Json(#[from] serde_json::Error),
    /// There is nothing.
    #[error("the grant is empty: give its line, which begins with `{PREFIX}`, its JSON, a file with either, or `-`")]
    Empty,
    /// It is longer than any grant.
    #[error("this is no grant: it is longer than {MOST_BYTES} bytes")]
    TooLong,
    /// A file, or standard input, cannot be read.
    #[error(
        "reading the grant from {path}: {source} (a grant is a line that begins with `{PREFIX}`, its JSON, a file with \
         either, or `-` for standard input)"
    )]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl Grant {
    /// On one line: `lumen1:` and base64url, without padding, of the JSON.
    #[must_use]
    pub fn to_line(&self) -> String {
        // Nothing in a grant can fail to be JSON.
        let json = serde_json::to_vec(self).unwrap_or_default();
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(json))
    }

    /// Reads the line or the JSON.
    ///
    /// # Errors
    /// See [`GrantError`].
    pub fn parse(text: &str) -> Result<Self, GrantError> {
        let text = text.trim();
        if text.len() as u64 > MOST_BYTES {
            return Err(GrantError::TooLong);
        }
        let grant = match text.strip_prefix(PREFIX) {
            Some(encoded) => {
                let json = URL_SAFE_NO_PAD.decode(encoded).map_err(|_| GrantError::Base64)?;
                serde_json::from_slice(&json)?
            }
            None => serde_json::from_str(text)?,
        };
        Ok(grant)
    }

    /// Reads what a person gives: the line, the JSON, a file with either, or `-` for standard input.
    ///
    /// # Errors
    /// See [`GrantError`].
    pub fn read(argument: &str) -> Result<Self, GrantError> {
        let trimmed = argument.trim_start();
        if trimmed.is_empty() {
            return Err(GrantError::Empty);
        }
        if trimmed.starts_with(PREFIX) || trimmed.starts_with('{') {
            return Self::parse(argument);
        }
        let path = Path::new(if argument == "-" { "/dev/stdin" } else { argument });
        let unreadable = |source| GrantError::Unreadable {
            path: path.to_owned(),
            source,
        };
        let file = fs::File::open(path).map_err(unreadable)?;
        let mut text = String::new();
        file.take(MOST_BYTES + 1)
            .read_to_string(&mut text)
            .map_err(unreadable)?;
        Self::parse(&text)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DOCUMENT: &str = include_str!("../../docs/protocol.md");

    fn documented() -> Grant {
        let line = DOCUMENT.lines().find(|line| line.starts_with(PREFIX)).unwrap();
        Grant::parse(line).unwrap()
    }

    #[test]
    fn the_documented_line_is_the_documented_json_and_is_written_so() {
        let start = DOCUMENT.find("{\"user\": 42").unwrap();
        let end = start + DOCUMENT[start..].find('}').unwrap() + 1;
        let grant = Grant::parse(&DOCUMENT[start..end]).unwrap();
        assert_eq!(grant, documented());
        assert!(DOCUMENT.contains(&grant.to_line()), "{}", grant.to_line());
    }

    #[test]
    fn a_client_ignores_fields_that_it_does_not_know() {
        let mut json = serde_json::to_value(documented()).unwrap();
        json["colour"] = "blue".into();
        assert_eq!(Grant::parse(&json.to_string()).unwrap(), documented());
    }

    #[test]
    fn keys_are_not_shown() {
        let shown = format!("{:?}", documented());
        assert!(!shown.contains("0001020304"), "{shown}");
        assert!(!shown.contains("240"), "{shown}");
    }

    #[test]
    fn a_file_or_a_text_that_is_no_grant_is_told() {
        let missing = Grant::read("/nonexistent/grant").unwrap_err().to_string();
        assert!(missing.contains("/nonexistent/grant"), "{missing}");
        assert!(matches!(Grant::parse("lumen1:%%%"), Err(GrantError::Base64)));
        let error = Grant::parse("{\"user\": 1}").unwrap_err().to_string();
        assert!(error.contains("missing field `relay`"), "{error}");
    }

    proptest! {
        #[test]
        fn every_grant_survives_line_and_json(
            user: u64, port: u16, slot: u32, salt: u32, key: [u8; 16], header: Option<[u8; 16]>, seconds in prop::option::of(0_i64..1 << 35),
        ) {
            let grant = Grant {
                user,
                relay: SocketAddr::from(([192, 0, 2, 1], port)),
                relay_id: 7,
                slot,
                salt,
                key: Secret::new(key),
                header_key: header.map(Secret::new),
                expires_at: seconds.map(|seconds| Timestamp::from_second(seconds).unwrap()),
            };
            prop_assert_eq!(&Grant::parse(&grant.to_line()).unwrap(), &grant);
            prop_assert_eq!(&Grant::parse(&serde_json::to_string(&grant).unwrap()).unwrap(), &grant);
        }

        #[test]
        fn no_text_makes_it_panic(text: String) {
            let _either = (Grant::parse(&text), Grant::parse(&format!("lumen1:{text}")));
        }
    }
}
