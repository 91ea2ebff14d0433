//! The token: "Token" and "Header protection" of the document.

use std::hash::Hasher as _;

use siphasher::{
    sip::SipHasher24,
    sip128::{Hasher128 as _, SipHasher24 as SipHasher24x128},
};

/// Bytes of a token.
pub const TOKEN_BYTES: usize = 24;

const MASKED_BYTES: usize = 16;
const VERSION: u8 = 1;
const UPLINK: u8 = 0;

/// A token whose header protection, if any, was taken off.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Token {
    /// Index of the user's entry.
    pub slot: u32,
    /// The other half of the handle.
    pub salt: u32,
    /// The packet number.
    pub pn: u64,
    /// The tag, as its bytes travel.
    pub tag: [u8; 8],
}

/// Reads a token as it travelled, with the listener's header key if that has one.
#[must_use]
pub fn read(travelled: &[u8; TOKEN_BYTES], header_key: Option<&[u8; 16]>) -> Token {
    let [.., t0, t1, t2, t3, t4, t5, t6, t7] = *travelled;
    let tag = [t0, t1, t2, t3, t4, t5, t6, t7];
    let mask = header_key.map_or([0; MASKED_BYTES], |key| mask(key, tag));
    let clear: [u8; MASKED_BYTES] = std::array::from_fn(|i| travelled[i] ^ mask[i]);
    // slot ‖ salt ‖ pn as one number of 128 bits, big-endian.
    let number = u128::from_be_bytes(clear);
    Token {
        slot: (number >> 96) as u32,
        salt: (number >> 64) as u32,
        pn: number as u64,
        tag,
    }
}

/// `mask = SipHash-2-4-128(header key, tag)`
fn mask(header_key: &[u8; 16], tag: [u8; 8]) -> [u8; MASKED_BYTES] {
    let mut hasher = SipHasher24x128::new_with_key(header_key);
    hasher.write(&tag);
    hasher.finish128().as_bytes()
}

impl Token {
    /// `tag = SipHash-2-4(key, slot ‖ salt ‖ pn ‖ context)`, as its bytes travel.
    #[must_use]
    pub fn right_tag(&self, key: &[u8; 16], payload_len: u16, relay_id: u32) -> [u8; 8] {
        let mut message = Vec::with_capacity(TOKEN_BYTES);
        message.extend(self.slot.to_be_bytes());
        message.extend(self.salt.to_be_bytes());
        message.extend(self.pn.to_be_bytes());
        message.extend([VERSION, UPLINK]);
        message.extend(payload_len.to_be_bytes());
        message.extend(relay_id.to_be_bytes());
        let mut hasher = SipHasher24::new_with_key(key);
        hasher.write(&message);
        hasher.finish().to_le_bytes()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A row of the document's table of test vectors: slot, salt, pn, `payload_len`, `relay_id`, and the token in
    /// both forms.
    type Vector = (u32, u32, u64, u16, u32, [u8; TOKEN_BYTES], [u8; TOKEN_BYTES]);

    fn vectors() -> Vec<Vector> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/protocol.md");
        let text = fs::read_to_string(path).unwrap();
        let cells = |line: &str| -> Vec<String> {
            let cells = line.split('|').map(|cell| cell.trim().trim_matches('`').to_owned());
            cells.filter(|cell| !cell.is_empty()).collect()
        };
        let number = |text: &str| match text.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16).unwrap(),
            None => text.parse().unwrap(),
        };
        let token = |text: &str| <[u8; TOKEN_BYTES]>::try_from(hex::decode(text).unwrap()).unwrap();
        text.lines()
            .skip_while(|line| !line.starts_with("| slot | salt | pn |"))
            .skip(2)
            .map_while(|line| line.starts_with('|').then(|| cells(line)))
            .map(|row| {
                let [slot, salt, pn, length, relay] = std::array::from_fn(|i| number(&row[i]));
                let (slot, salt, relay) = (slot as u32, salt as u32, relay as u32);
                (slot, salt, pn, length as u16, relay, token(&row[5]), token(&row[6]))
            })
            .collect()
    }

    #[test]
    fn the_documents_test_vectors_are_read_in_both_forms() {
        let key = std::array::from_fn(|i| i as u8);
        let header_key = std::array::from_fn(|i| 0xf0 + i as u8);
        let vectors = vectors();
        assert!(vectors.len() >= 5, "the document's table is not where it was");
        for (slot, salt, pn, payload_len, relay_id, plain, protected) in vectors {
            let token = read(&plain, None);
            assert_eq!((token.slot, token.salt, token.pn), (slot, salt, pn));
            assert_eq!(read(&protected, Some(&header_key)), token);
            assert_eq!(token.right_tag(&key, payload_len, relay_id), token.tag);
            assert_ne!(token.right_tag(&key, payload_len ^ 1, relay_id), token.tag);
            assert_ne!(token.right_tag(&key, payload_len, relay_id ^ 1), token.tag);
        }
    }
}
