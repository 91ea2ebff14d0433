//! Tokens, from the protocol document by way of the siphasher crate: no code in common with the relay.

use std::{hash::Hasher as _, ops::Range};

use siphasher::{
    sip::SipHasher24,
    sip128::{Hasher128 as _, SipHasher24 as SipHasher24x128},
};

/// Bytes of a token.
pub const TOKEN_BYTES: usize = 24;

/// Type of the IPv4 option that carries one.
const OPTION_TYPE: u8 = 0x9e;
/// Bytes of the option.
const OPTION_BYTES: usize = 2 + TOKEN_BYTES;

/// IPv4 options with a token behind `before`, padded to a multiple of 4 bytes.
#[must_use]
pub fn options_with_token(before: &[u8], token: &[u8]) -> Vec<u8> {
    let mut options = [before, &[OPTION_TYPE, (2 + token.len()) as u8], token].concat();
    options.resize(options.len().next_multiple_of(4), 0);
    options
}

/// Where the token is in IPv4 options, if a whole one is.
#[must_use]
pub fn token_in_options(options: &[u8]) -> Option<Range<usize>> {
    let mut at = 0;
    loop {
        at += match *options.get(at..)? {
            [OPTION_TYPE, length, ..] => {
                let whole = usize::from(length) == OPTION_BYTES && at + OPTION_BYTES <= options.len();
                return whole.then_some(at + 2..at + OPTION_BYTES);
            }
            [1, ..] => 1,
            [0, ..] | [_, 0 | 1, ..] | [_] | [] => return None,
            [_, length, ..] => usize::from(length),
        };
    }
}

const VERSION: u8 = 1;
const UPLINK: u8 = 0;

/// What a client needs to seal tokens.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Grant {
    /// Index of the user's entry.
    pub slot: u32,
    /// The random part of the handle.
    pub salt: u32,
    /// Key of the tag.
    pub key: [u8; 16],
    /// Key of the header protection; `None` where the listener has none.
    pub header_key: Option<[u8; 16]>,
    /// The relay that the tokens are for.
    pub relay_id: u32,
}

/// What a token says in the clear, once header protection is off.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Handle {
    /// Index of the user's entry.
    pub slot: u32,
    /// The random part of the handle.
    pub salt: u32,
    /// The packet number.
    pub pn: u64,
}

impl Handle {
    /// Reads the beginning of a UDP payload; `None` if it is too short for a token. Without the right header key it
    /// is noise.
    #[must_use]
    pub fn of(sealed: &[u8], header_key: Option<&[u8; 16]>) -> Option<Self> {
        let mut token: [u8; TOKEN_BYTES] = *sealed.first_chunk()?;
        if let Some(key) = header_key {
            protect(&mut token, key);
        }
        let [slot, salt, pn_high, pn_low] =
            [0, 4, 8, 12].map(|at| u32::from_be_bytes([token[at], token[at + 1], token[at + 2], token[at + 3]]));
        Some(Self {
            slot,
            salt,
            pn: u64::from(pn_high) << 32 | u64::from(pn_low),
        })
    }
}

impl Grant {
    /// The token for packet number `pn` with `payload_len` bytes after it.
    #[must_use]
    pub fn token(&self, pn: u64, payload_len: u16) -> [u8; TOKEN_BYTES] {
        let mut message = [0; TOKEN_BYTES];
        message[0..4].copy_from_slice(&self.slot.to_be_bytes());
        message[4..8].copy_from_slice(&self.salt.to_be_bytes());
        message[8..16].copy_from_slice(&pn.to_be_bytes());
        message[16] = VERSION;
        message[17] = UPLINK;
        message[18..20].copy_from_slice(&payload_len.to_be_bytes());
        message[20..24].copy_from_slice(&self.relay_id.to_be_bytes());
        let mut hasher = SipHasher24::new_with_key(&self.key);
        hasher.write(&message);
        let mut token = message;
        token[16..].copy_from_slice(&hasher.finish().to_le_bytes());
        if let Some(key) = &self.header_key {
            protect(&mut token, key);
        }
        token
    }

    /// The token with one bit of its tag wrong; the handle is right, under header protection too.
    #[must_use]
    pub fn wrong_token(&self, pn: u64, payload_len: u16) -> [u8; TOKEN_BYTES] {
        let bare = Self {
            header_key: None,
            ..*self
        };
        let mut token = bare.token(pn, payload_len);
        token[TOKEN_BYTES - 1] ^= 1;
        if let Some(key) = &self.header_key {
            protect(&mut token, key);
        }
        token
    }

    /// A UDP payload: the token, then `payload`.
    #[must_use]
    pub fn seal(&self, pn: u64, payload: &[u8]) -> Vec<u8> {
        let mut sealed = self.token(pn, payload.len() as u16).to_vec();
        sealed.extend_from_slice(payload);
        sealed
    }

    /// The packet number of a UDP payload that was sealed with this grant and not changed since; `None` for any other.
    #[must_use]
    pub fn open(&self, sealed: &[u8]) -> Option<u64> {
        let (travelled, payload) = sealed.split_first_chunk::<TOKEN_BYTES>()?;
        let mut token = *travelled;
        if let Some(key) = &self.header_key {
            protect(&mut token, key);
        }
        let pn = u64::from_be_bytes(*token[8..].first_chunk()?);
        (self.token(pn, payload.len() as u16) == *travelled).then_some(pn)
    }
}

/// Applies header protection to a token, or removes it.
fn protect(token: &mut [u8; TOKEN_BYTES], key: &[u8; 16]) {
    let mut hasher = SipHasher24x128::new_with_key(key);
    hasher.write(&token[16..]);
    for (byte, mask) in token.iter_mut().zip(hasher.finish128().as_bytes()) {
        *byte ^= mask;
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::alone(&[], Some(2))]
    #[case::behind_padding(&[1, 1, 1], Some(5))]
    #[case::behind_another_option(&[0x94, 4, 0, 0], Some(6))]
    #[case::behind_the_end_of_options(&[0], None)]
    #[case::behind_a_length_of_0(&[7, 0], None)]
    #[case::behind_a_length_of_1(&[7, 1], None)]
    #[case::inside_another_option(&[7, 6, 4, 0], None)]
    fn a_token_in_options_is_found(#[case] before: &[u8], #[case] at: Option<usize>) {
        let options = options_with_token(before, &[0xa5; TOKEN_BYTES]);
        assert_eq!(options.len() % 4, 0);
        assert_eq!(token_in_options(&options), at.map(|at| at..at + TOKEN_BYTES));
    }

    #[test]
    fn no_part_of_an_option_is_a_token() {
        let options = options_with_token(&[], &[0xa5; TOKEN_BYTES]);
        for length in 0..2 + TOKEN_BYTES {
            assert_eq!(token_in_options(&options[..length]), None, "{length} bytes");
        }
    }
}
