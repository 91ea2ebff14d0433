//! The token: sealing, opening and header protection, by SipHash-2-4 (Aumasson and Bernstein, 2012).
//!
//! A token is 24 bytes: slot and salt (u32 each, big-endian; together the handle), packet number (u64, big-endian)
//! and tag (64 bits as SipHash emits them). The tag is computed over the first 16 bytes and a context of 8 bytes.
//! Header protection masks the first 16 bytes with the 128-bit SipHash of the tag.
//!
//! In here a token is three 64-bit words, each the little-endian number of its 8 bytes, which is what SipHash works on.

/// Bytes of a token.
pub const TOKEN_BYTES: usize = 24;
/// Type of the IPv4 option that carries a token.
pub const OPTION_TYPE: u8 = 0x9e;
/// Length of that option: type, length, token.
pub const OPTION_BYTES: u8 = 2 + TOKEN_BYTES as u8;

/// A SipHash key as two little-endian words.
pub type Key = [u64; 2];

const VERSION: u64 = 1;
const DIRECTION_UPLINK: u64 = 0;

/// A key from its 16 bytes.
#[inline(always)]
#[must_use]
pub const fn key(bytes: &[u8; 16]) -> Key {
    let whole = u128::from_le_bytes(*bytes);
    [whole as u64, (whole >> 64) as u64]
}

/// A token without header protection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Token {
    /// Slot and salt, as they travel.
    pub handle: u64,
    /// Packet number, as it travels.
    pub number: u64,
    /// The tag.
    pub tag: u64,
}

impl Token {
    /// A token for the user with this slot and salt.
    #[must_use]
    pub const fn new(key: Key, slot: u32, salt: u32, pn: u64, context: u64) -> Self {
        let handle = slot.swap_bytes() as u64 | (salt.swap_bytes() as u64) << 32;
        let number = pn.swap_bytes();
        Self {
            handle,
            number,
            tag: siphash_64(key, [handle, number, context]),
        }
    }

    /// Applies header protection, or removes it: the mask depends on the tag alone.
    #[inline(always)]
    #[must_use]
    pub const fn masked(self, header_key: Key) -> Self {
        let mask = siphash_128(header_key, self.tag);
        Self {
            handle: self.handle ^ mask[0],
            number: self.number ^ mask[1],
            tag: self.tag,
        }
    }

    /// Index of the user's entry.
    #[inline(always)]
    #[must_use]
    pub const fn slot(self) -> u32 {
        (self.handle as u32).swap_bytes()
    }

    /// The random part of the handle.
    #[inline(always)]
    #[must_use]
    pub const fn salt(self) -> u32 {
        ((self.handle >> 32) as u32).swap_bytes()
    }

    /// The packet number.
    #[inline(always)]
    #[must_use]
    pub const fn pn(self) -> u64 {
        self.number.swap_bytes()
    }

    /// Whether the tag is right for this key and context.
    #[inline(always)]
    #[must_use]
    pub const fn is_authentic(self, key: Key, context: u64) -> bool {
        siphash_64(key, [self.handle, self.number, context]) == self.tag
    }

    /// The 24 bytes.
    #[must_use]
    pub fn to_bytes(self) -> [u8; TOKEN_BYTES] {
        let mut bytes = [0; TOKEN_BYTES];
        for (chunk, word) in bytes.chunks_exact_mut(8).zip([self.handle, self.number, self.tag]) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }
}

/// The context of an uplink token: version 1, direction 0, the payload's length in bytes (big-endian) and the relay's
/// id (big-endian).
#[inline(always)]
#[must_use]
pub const fn context(payload_len: u16, relay_id: u32) -> u64 {
    VERSION | DIRECTION_UPLINK << 8 | (payload_len.swap_bytes() as u64) << 16 | (relay_id.swap_bytes() as u64) << 32
}

/// The 24 bytes that a client puts in front of a payload of `payload_len` bytes.
#[must_use]
pub fn seal(
    user_key: &[u8; 16],
    header_key: Option<&[u8; 16]>,
    slot: u32,
    salt: u32,
    pn: u64,
    payload_len: u16,
    relay_id: u32,
) -> [u8; TOKEN_BYTES] {
    let token = Token::new(key(user_key), slot, salt, pn, context(payload_len, relay_id));
    header_key
        .map_or(token, |header_key| token.masked(key(header_key)))
        .to_bytes()
}

/// SipHash-2-4 with 64 bits of output of a message of 24 bytes.
#[inline(always)]
const fn siphash_64(key: Key, message: [u64; 3]) -> u64 {
    let mut state = State::new(key);
    state.absorb(message[0]);
    state.absorb(message[1]);
    state.absorb(message[2]);
    state.absorb(24 << 56);
    state.v2 ^= 0xff;
    state.finish()
}

/// SipHash-2-4 with 128 bits of output of a message of 8 bytes.
#[inline(always)]
const fn siphash_128(key: Key, message: u64) -> [u64; 2] {
    let mut state = State::new(key);
    state.v1 ^= 0xee;
    state.absorb(message);
    state.absorb(8 << 56);
    state.v2 ^= 0xee;
    let first = state.finish();
    state.v1 ^= 0xdd;
    [first, state.finish()]
}

struct State {
    v0: u64,
    v1: u64,
    v2: u64,
    v3: u64,
}

impl State {
    #[inline(always)]
    const fn new(key: Key) -> Self {
        Self {
            v0: key[0] ^ 0x736f_6d65_7073_6575,
            v1: key[1] ^ 0x646f_7261_6e64_6f6d,
            v2: key[0] ^ 0x6c79_6765_6e65_7261,
            v3: key[1] ^ 0x7465_6462_7974_6573,
        }
    }

    #[inline(always)]
    const fn round(&mut self) {
        self.v0 = self.v0.wrapping_add(self.v1);
        self.v2 = self.v2.wrapping_add(self.v3);
        self.v1 = self.v1.rotate_left(13) ^ self.v0;
        self.v3 = self.v3.rotate_left(16) ^ self.v2;
        self.v0 = self.v0.rotate_left(32);
        self.v2 = self.v2.wrapping_add(self.v1);
        self.v0 = self.v0.wrapping_add(self.v3);
        self.v1 = self.v1.rotate_left(17) ^ self.v2;
        self.v3 = self.v3.rotate_left(21) ^ self.v0;
        self.v2 = self.v2.rotate_left(32);
    }

    #[inline(always)]
    const fn absorb(&mut self, word: u64) {
        self.v3 ^= word;
        self.round();
        self.round();
        self.v0 ^= word;
    }

    #[inline(always)]
    const fn finish(&mut self) -> u64 {
        self.round();
        self.round();
        self.round();
        self.round();
        self.v0 ^ self.v1 ^ self.v2 ^ self.v3
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use core::hash::Hasher;
    use std::vec::Vec;

    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn keys() -> ([u8; 16], [u8; 16]) {
        (
            core::array::from_fn(|i| i as u8),
            core::array::from_fn(|i| 0xf0 + i as u8),
        )
    }

    fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len())
            .step_by(2)
            .map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap())
            .collect()
    }

    #[rstest]
    #[case::all_zero(
        0,
        0,
        0,
        0,
        0,
        "00000000000000000000000000000000e45a5b387f442465",
        "4d28b447b96668bb3f1afcf0c383903ee45a5b387f442465"
    )]
    #[case::small(
        1,
        0xdead_beef,
        1,
        5,
        7,
        "00000001deadbeef0000000000000001f0af76d80cf137f6",
        "e8a24627893ac2e836420b0f14fcba3ff0af76d80cf137f6"
    )]
    #[case::large(
        99999,
        0x0102_0304,
        0x0006_4000_0000_0001,
        1400,
        0xffff_ffff,
        "0001869f010203040006400000000001ffc27433786c7a5a",
        "90479fc10b0ae06cfa3ea2326bdcc17cffc27433786c7a5a"
    )]
    fn the_protocols_vectors_hold(
        #[case] slot: u32,
        #[case] salt: u32,
        #[case] pn: u64,
        #[case] payload_len: u16,
        #[case] relay_id: u32,
        #[case] plain: &str,
        #[case] masked: &str,
    ) {
        let (user, header) = keys();
        assert_eq!(
            seal(&user, None, slot, salt, pn, payload_len, relay_id)[..],
            bytes(plain)
        );
        assert_eq!(
            seal(&user, Some(&header), slot, salt, pn, payload_len, relay_id)[..],
            bytes(masked)
        );
    }

    proptest! {
        #[test]
        fn tags_and_masks_are_those_of_an_independent_siphash(
            user: [u8; 16], header: [u8; 16], slot: u32, salt: u32, pn: u64, payload_len: u16, relay_id: u32,
        ) {
            let token = seal(&user, None, slot, salt, pn, payload_len, relay_id);
            let mut message = token[..16].to_vec();
            message.extend([1, 0]);
            message.extend(payload_len.to_be_bytes());
            message.extend(relay_id.to_be_bytes());
            let mut hasher = siphasher::sip::SipHasher24::new_with_key(&user);
            hasher.write(&message);
            prop_assert_eq!(&token[16..], &hasher.finish().to_le_bytes());

            let mut hasher = siphasher::sip128::SipHasher24::new_with_key(&header);
            hasher.write(&token[16..]);
            let mask = siphasher::sip128::Hasher128::finish128(&hasher).as_bytes();
            let masked = seal(&user, Some(&header), slot, salt, pn, payload_len, relay_id);
            let expected: Vec<u8> = token[..16].iter().zip(mask).map(|(byte, mask)| byte ^ mask).collect();
            prop_assert_eq!(&masked[..16], &expected);
            prop_assert_eq!(&masked[16..], &token[16..]);
        }

        #[test]
        fn a_token_opens_with_what_sealed_it_and_with_nothing_else(
            user: Key, header: Key, slot: u32, salt: u32, pn: u64, payload_len: u16, relay_id: u32, bit in 0_u32..64,
        ) {
            let context = context(payload_len, relay_id);
            let token = Token::new(user, slot, salt, pn, context);
            let opened = token.masked(header).masked(header);
            prop_assert_eq!((opened.slot(), opened.salt(), opened.pn()), (slot, salt, pn));
            prop_assert!(opened.is_authentic(user, context));
            prop_assert!(!opened.is_authentic(user, context ^ 1 << bit));
            let other_number = Token { number: token.number ^ 1 << bit, ..token };
            let other_handle = Token { handle: token.handle ^ 1 << bit, ..token };
            prop_assert!(!other_number.is_authentic(user, context));
            prop_assert!(!other_handle.is_authentic(user, context));
        }
    }
}
