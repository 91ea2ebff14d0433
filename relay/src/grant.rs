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
/// Bytes of the longest file name (`NAME_MAX` of Linux).
const MOST_NAME_BYTES: usize = 255;

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
    #[error("this is no grant: {0} (expected is the line or the JSON that `lumenlink-relay user add` printed)")]
    Json(#[from] serde_json::Error),
    /// It does not even begin as a grant. It may still hold most of a key, so it is not repeated.
    #[error("this is no grant: expected is its line, which begins with `{PREFIX}`, or its JSON, a single object")]
    Neither,
    /// Nothing can be sent to the relay's address.
    #[error("this is no grant: its relay is {0}; expected is an address and port, such as 192.0.2.1:4500")]
    Relay(SocketAddr),
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
        let grant: Self = if let Some(encoded) = text.strip_prefix(PREFIX) {
            let json = URL_SAFE_NO_PAD.decode(encoded).map_err(|_| GrantError::Base64)?;
            serde_json::from_slice(&json)?
        } else if text.starts_with('{') {
            serde_json::from_str(text)?
        } else if text.is_empty() {
            return Err(GrantError::Empty);
        } else {
            return Err(GrantError::Neither);
        };
        let ip = grant.relay.ip();
        if grant.relay.port() == 0 || ip.is_unspecified() || ip.is_multicast() {
            return Err(GrantError::Relay(grant.relay));
        }
        Ok(grant)
    }

    /// Reads what a person gives: the line, the JSON, a file with either, or `-` for standard input.
    ///
    /// # Errors
    /// See [`GrantError`].
    pub fn read(argument: &str) -> Result<Self, GrantError> {
        let text = argument.trim();
        if text == "-" {
            return Self::parse(&read_text(io::stdin().lock(), Path::new("standard input"))?);
        }
        // A grant that lost its beginning is no file's name, and must not be printed as one.
        let no_name = text.len() > MOST_NAME_BYTES && !text.contains('/');
        if text.is_empty() || text.starts_with(PREFIX) || text.starts_with('{') || no_name {
            return Self::parse(text);
        }
        let path = Path::new(argument);
        let file = fs::File::open(path).map_err(|source| GrantError::Unreadable {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&read_text(file, path)?)
    }

    /// Whether the relay no longer accepts its tokens at this time.
    #[must_use]
    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.expires_at.is_some_and(|end| end <= now)
    }
}

/// All of a text that may be a grant, and a little of one that is too long.
fn read_text(from: impl io::Read, path: &Path) -> Result<String, GrantError> {
    let mut bytes = Vec::new();
    from.take(MOST_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(|source| GrantError::Unreadable {
            path: path.to_owned(),
            source,
        })?;
    if bytes.len() as u64 > MOST_BYTES {
        return Err(GrantError::TooLong);
    }
    String::from_utf8(bytes).map_err(|_| GrantError::Neither)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use proptest::prelude::*;
    use rstest::rstest;

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

    fn bare() -> Grant {
        Grant {
            header_key: None,
            expires_at: None,
            ..documented()
        }
    }

    fn json(grant: &Grant) -> String {
        serde_json::to_string(grant).unwrap()
    }

    #[test]
    fn json_names_every_field_and_says_null_where_there_is_none() {
        assert_eq!(
            json(&bare()),
            "{\"user\":42,\"relay\":\"192.0.2.1:4500\",\"relay_id\":1,\"slot\":7,\"salt\":305419896,\
             \"key\":\"000102030405060708090a0b0c0d0e0f\",\"header_key\":null,\"expires_at\":null}"
        );
    }

    #[test]
    fn white_space_around_a_grant_does_not_matter() {
        let pretty = serde_json::to_string_pretty(&documented()).unwrap();
        for text in [documented().to_line(), pretty] {
            for spaced in [format!(" \t{text}"), format!("{text}\r\n\n")] {
                assert_eq!(Grant::parse(&spaced).unwrap(), documented(), "{spaced:?}");
                assert_eq!(Grant::read(&spaced).unwrap(), documented(), "{spaced:?}");
            }
        }
    }

    #[test]
    fn an_argument_may_be_the_path_of_a_file_with_a_grant() {
        for text in [documented().to_line(), json(&documented())] {
            let mut file = tempfile::NamedTempFile::new().unwrap();
            writeln!(file, "{text}").unwrap();
            assert_eq!(Grant::read(file.path().to_str().unwrap()).unwrap(), documented());
        }
    }

    #[test]
    fn a_file_that_is_too_long_or_no_text_is_no_grant() {
        let mut long = tempfile::NamedTempFile::new().unwrap();
        long.write_all(&vec![b' '; MOST_BYTES as usize + 1]).unwrap();
        let error = Grant::read(long.path().to_str().unwrap()).unwrap_err();
        assert!(matches!(error, GrantError::TooLong), "{error}");
        let mut binary = tempfile::NamedTempFile::new().unwrap();
        binary.write_all(&[0xff, 0xfe]).unwrap();
        let error = Grant::read(binary.path().to_str().unwrap()).unwrap_err();
        assert!(matches!(error, GrantError::Neither), "{error}");
    }

    #[rstest]
    #[case::nothing("", "the grant is empty")]
    #[case::white_space(" \n", "the grant is empty")]
    #[case::words("hello", "expected is its line")]
    #[case::another_version("lumen2:e30", "expected is its line")]
    #[case::no_base64("lumen1:%%%", "not base64url")]
    #[case::padding("lumen1:e30=", "not base64url")]
    #[case::half_a_line("lumen1:eyJ1c2VyIjo0Miwi", "expected is the line or the JSON")]
    #[case::no_json("lumen1:aGVsbG8", "expected is the line or the JSON")]
    #[case::no_fields("{}", "missing field `user`")]
    fn what_is_no_grant_is_refused_with_what_was_expected(#[case] text: &str, #[case] says: &str) {
        let message = Grant::parse(text).unwrap_err().to_string();
        assert!(message.contains(says), "{message}");
    }

    #[rstest]
    #[case::a_digit_less("0e0f\"", "0e0\"", "32 hexadecimal digits")]
    #[case::a_letter_too_far("0e0f\"", "0e0g\"", "32 hexadecimal digits")]
    #[case::large_slot("\"slot\":7", "\"slot\":4294967296", "u32")]
    #[case::negative_user("\"user\":42", "\"user\":-1", "u64")]
    #[case::a_name("192.0.2.1:4500", "relay.example:4500", "socket address")]
    #[case::no_port("192.0.2.1:4500", "192.0.2.1", "socket address")]
    #[case::port_zero("192.0.2.1:4500", "192.0.2.1:0", "expected is an address and port")]
    #[case::any_address("192.0.2.1:4500", "[::]:4500", "expected is an address and port")]
    #[case::a_group("192.0.2.1:4500", "224.0.0.1:4500", "expected is an address and port")]
    #[case::no_time("\"expires_at\":null", "\"expires_at\":\"tomorrow\"", "year")]
    #[case::more_behind("\"expires_at\":null}", "\"expires_at\":null}}", "trailing")]
    fn a_bad_field_is_told_and_no_key_is_shown(#[case] good: &str, #[case] bad: &str, #[case] says: &str) {
        assert!(json(&bare()).contains(good), "the case changes something");
        let message = Grant::parse(&json(&bare()).replace(good, bad)).unwrap_err().to_string();
        assert!(message.contains(says), "{message}");
        assert!(!message.contains("00010203"), "{message}");
    }

    #[test]
    fn a_grant_without_its_beginning_is_not_printed() {
        let line = documented().to_line().replace(PREFIX, "");
        let message = Grant::read(&line).unwrap_err().to_string();
        assert!(
            message.contains("expected is its line") && !message.contains(&line[..20]),
            "{message}"
        );
    }

    #[test]
    fn a_grant_expires_at_its_time_and_not_before() {
        let end = documented().expires_at.unwrap();
        assert!(!documented().is_expired(end - jiff::SignedDuration::from_nanos(1)));
        assert!(documented().is_expired(end));
        assert!(!bare().is_expired(Timestamp::MAX));
    }

    #[test]
    fn random_secrets_differ() {
        assert_ne!(Secret::random(), Secret::random());
    }

    #[test]
    fn a_missing_file_is_named() {
        let message = Grant::read("/nonexistent/grant").unwrap_err().to_string();
        assert!(
            message.contains("/nonexistent/grant") && message.contains("No such file"),
            "{message}"
        );
    }

    fn any_grant() -> impl Strategy<Value = Grant> {
        let relay = any::<SocketAddr>().prop_filter("something can be sent there", |relay| {
            relay.port() != 0 && !relay.ip().is_unspecified() && !relay.ip().is_multicast()
        });
        // Flow label and zone are no part of a listener's address.
        let relay = relay.prop_map(|relay| SocketAddr::new(relay.ip(), relay.port()));
        let times = Timestamp::MIN.as_second()..=Timestamp::MAX.as_second();
        let expires_at = prop::option::of(times.prop_map(|second| Timestamp::from_second(second).unwrap()));
        let keys = any::<([u8; 16], Option<[u8; 16]>)>();
        (any::<(u64, u32, u32, u32)>(), relay, keys, expires_at).prop_map(
            |((user, relay_id, slot, salt), relay, (key, header_key), expires_at)| Grant {
                user,
                relay,
                relay_id,
                slot,
                salt,
                key: Secret::new(key),
                header_key: header_key.map(Secret::new),
                expires_at,
            },
        )
    }

    proptest! {
        #[test]
        fn every_grant_survives_line_and_json(grant in any_grant()) {
            prop_assert_eq!(&Grant::parse(&grant.to_line()).unwrap(), &grant);
            prop_assert_eq!(&Grant::parse(&json(&grant)).unwrap(), &grant);
        }

        #[test]
        fn a_part_of_a_line_is_no_grant(grant in any_grant(), part in 0.0..1.0_f64) {
            let line = grant.to_line();
            prop_assert!(Grant::parse(&line[..(line.len() as f64 * part) as usize]).is_err());
        }

        #[test]
        fn keys_are_not_shown(grant in any_grant()) {
            let shown = format!("{grant:?}");
            for key in [Some(grant.key), grant.header_key].into_iter().flatten() {
                prop_assert!(!shown.contains(&key.to_hex()), "{}", shown);
                prop_assert!(!shown.contains(&format!("{:?}", key.bytes())), "{}", shown);
            }
            prop_assert!(shown.contains("key: Secret(…)"), "{}", shown);
        }

        #[test]
        fn no_text_makes_it_panic(text: String, start in "(lumen1:|\\{)?") {
            let encoded = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(&text));
            for text in [format!("{start}{text}"), text, encoded] {
                let _any = Grant::parse(&text);
            }
        }
    }
}
