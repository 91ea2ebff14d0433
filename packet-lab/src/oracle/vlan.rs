//! VLAN tags: the document's "VLAN tags".

use crate::world::Tags;

/// Where tags are in a frame: behind the two MAC addresses.
const TAGS_AT: usize = 12;
const TAG_BYTES: usize = 4;
const KINDS: [u16; 2] = [0x8100, 0x88a8];
const MOST: usize = 2;

/// The tags of a frame, and the frame without them. A frame whose tags cannot be read is given back whole.
#[must_use]
pub fn split(frame: &[u8]) -> (Tags, Vec<u8>) {
    let mut tags = Vec::new();
    let mut rest = frame.get(TAGS_AT..).unwrap_or_default();
    while let [k0, k1, c0, c1, behind @ ..] = rest {
        let kind = u16::from_be_bytes([*k0, *k1]);
        if !KINDS.contains(&kind) {
            break;
        }
        tags.push((kind, u16::from_be_bytes([*c0, *c1])));
        rest = behind;
    }
    if tags.is_empty() || tags.len() > MOST {
        return (Tags::NONE, frame.to_vec());
    }
    let bytes = TAG_BYTES * tags.len();
    let without = [&frame[..TAGS_AT], &frame[TAGS_AT + bytes..]].concat();
    (Tags::of(tags), without)
}

/// A frame with these tags.
#[must_use]
pub fn join(tags: Tags, mut frame: Vec<u8>) -> Vec<u8> {
    frame.splice(TAGS_AT..TAGS_AT, tags.bytes());
    frame
}
