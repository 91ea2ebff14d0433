//! Damaging frames where it matters: in their headers, and in their token.

use std::ops::Range;

use crate::{craft::flip_bit, simulate::dice::Dice};

const ETHERNET: usize = 14;
const LEAST: usize = ETHERNET;
const MOST: usize = 3_400;

/// Damages a frame in one to three places.
pub(super) fn mutate(dice: &mut Dice, frame: &mut Vec<u8>) {
    for _ in 0..dice.between(1, 3) {
        if frame.len() <= LEAST {
            return;
        }
        match dice.below(16) {
            0 | 1 => {
                let bit = dice.below(8 * frame.len() as u64) as usize;
                flip_bit(frame, bit);
            }
            2 => cut(dice, frame),
            3 => {
                let more = dice.between(1, 40);
                frame.extend((0..more).map(|_| dice.number() as u8));
            }
            4 => resize_somewhere(dice, frame),
            5 => tag(dice, frame),
            _ => change_field(dice, frame),
        }
    }
    frame.truncate(MOST);
}

fn cut(dice: &mut Dice, frame: &mut Vec<u8>) {
    let length = match dice.below(2) {
        0 => frame.len() as u64 - dice.between(1, 32.min(frame.len() as u64 - LEAST as u64)),
        _ => dice.between(LEAST as u64, frame.len() as u64),
    };
    frame.truncate(length as usize);
}

/// Removes or inserts a few bytes, so that all after them is elsewhere.
fn resize_somewhere(dice: &mut Dice, frame: &mut Vec<u8>) {
    let at = dice.below(frame.len() as u64) as usize;
    let count = dice.between(1, 8) as usize;
    if dice.below(2) == 0 {
        frame.splice(at..at, std::iter::repeat_n(0, count));
    } else if frame.len() >= LEAST + count {
        let end = (at + count).min(frame.len());
        frame.drain(at..end);
    }
}

/// Puts a VLAN tag in front of the `EtherType`.
fn tag(dice: &mut Dice, frame: &mut Vec<u8>) {
    let kind = [[0x81, 0x00], [0x88, 0xa8], [0x91, 0x00]][dice.below(3) as usize];
    let vlan = dice.number().to_be_bytes();
    frame.splice(12..12, [kind[0], kind[1], vlan[0], vlan[1]]);
}

/// Sets a field of a header to something that is likely to matter.
fn change_field(dice: &mut Dice, frame: &mut [u8]) {
    let fields = fields(frame);
    let Some(field) = fields.get(dice.below(fields.len() as u64) as usize) else {
        return;
    };
    let width = 8 * field.len().min(16) as u32;
    let most = u128::MAX >> (128 - width);
    let read = |bytes: &[u8]| {
        bytes
            .iter()
            .fold(0_u128, |number, &byte| number << 8 | u128::from(byte))
    };
    let old = read(&frame[field.clone()]);
    let by = [1, 2, 4, 8, 20, 24, 40, 256][dice.below(8) as usize];
    let new = match dice.below(8) {
        0 => 0,
        1 => most,
        2 | 3 => old.wrapping_add(by),
        4 | 5 => old.wrapping_sub(by),
        6 => old ^ 1 << dice.below(width.into()),
        _ => u128::from(dice.number()) << 64 | u128::from(dice.number()),
    };
    let bytes = (new & most).to_be_bytes();
    frame[field.clone()].copy_from_slice(&bytes[16 - field.len()..]);
}

/// Where the fields of the headers and of the token are, as far as the frame has them.
fn fields(frame: &[u8]) -> Vec<Range<usize>> {
    let mut fields = vec![6..12, 12..14];
    let word = |at: usize| frame.get(at).copied().unwrap_or_default();
    let (ip, udp): (&[(usize, usize)], usize) = match word(13) {
        0x00 => (
            &[
                (0, 1),
                (1, 1),
                (2, 2),
                (4, 2),
                (6, 2),
                (8, 1),
                (9, 1),
                (10, 2),
                (12, 4),
                (16, 4),
            ],
            4 * usize::from(word(ETHERNET) & 0xf),
        ),
        _ if word(ETHERNET + 6) == 44 => (
            &[
                (0, 4),
                (4, 2),
                (6, 1),
                (7, 1),
                (8, 16),
                (24, 16),
                (40, 1),
                (42, 2),
                (44, 4),
            ],
            48,
        ),
        _ => (&[(0, 4), (4, 2), (6, 1), (7, 1), (8, 16), (24, 16)], 40),
    };
    // Ports, length, checksum; slot, salt, packet number, tag.
    let after = [(0, 2), (2, 2), (4, 2), (6, 2), (8, 4), (12, 4), (16, 8), (24, 8)];
    fields.extend(ip.iter().map(|&(at, bytes)| ETHERNET + at..ETHERNET + at + bytes));
    fields.extend(after.map(|(at, bytes)| ETHERNET + udp + at..ETHERNET + udp + at + bytes));
    fields.retain(|field| field.end <= frame.len());
    fields
}
