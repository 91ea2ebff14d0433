//! Two frames, field by field.

use super::{Dissection, Layer};

/// A field, or a stretch of bytes, that two frames do not have in common.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Difference {
    /// Which: "ipv4 ttl", "payload at 0x12".
    pub what: String,
    /// What the first has; none if it has no such field.
    pub first: Option<String>,
    /// What the second has.
    pub second: Option<String>,
}

/// So many bytes of a stretch are shown.
const SHOWN_BYTES: usize = 16;

/// Everything that differs between two frames; empty exactly if they are the same.
#[must_use]
pub fn compare(first: &[u8], second: &[u8]) -> Vec<Difference> {
    if first == second {
        return Vec::new();
    }
    let (a, b) = (Dissection::of(first), Dissection::of(second));
    let mut differences = Vec::new();
    let places = a.layers.len().max(b.layers.len());
    for place in 0..places {
        match (a.layers.get(place), b.layers.get(place)) {
            (Some(one), Some(other)) if one.name == other.name => fields(one, other, &mut differences),
            (one, other) => differences.push(Difference {
                what: "layer".to_owned(),
                first: one.map(ToString::to_string),
                second: other.map(ToString::to_string),
            }),
        }
    }
    bytes("payload", &a.payload, &b.payload, &mut differences);
    if a.trailing != b.trailing {
        push(&mut differences, "bytes behind the packet", &a.trailing, &b.trailing);
    }
    if differences.is_empty() {
        // Something that no field shows, such as what is behind the packet.
        bytes("frame", first, second, &mut differences);
    }
    differences
}

fn push(differences: &mut Vec<Difference>, what: impl Into<String>, first: &impl ToString, second: &impl ToString) {
    differences.push(Difference {
        what: what.into(),
        first: Some(first.to_string()),
        second: Some(second.to_string()),
    });
}

fn fields(one: &Layer, other: &Layer, differences: &mut Vec<Difference>) {
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in one.fields.iter().chain(&other.fields) {
        if !names.contains(name) {
            names.push(name);
        }
    }
    for name in names {
        let (first, second) = (one.get(name), other.get(name));
        if first != second {
            differences.push(Difference {
                what: format!("{} {name}", one.name).trim_end().to_owned(),
                first: first.map(str::to_owned),
                second: second.map(str::to_owned),
            });
        }
    }
}

/// Stretches of bytes that differ, those with fewer than 4 equal bytes between them joined.
fn bytes(what: &str, first: &[u8], second: &[u8], differences: &mut Vec<Difference>) {
    let common = first.len().min(second.len());
    let mut stretches: Vec<std::ops::Range<usize>> = Vec::new();
    for at in (0..common).filter(|at| first[*at] != second[*at]) {
        match stretches.last_mut() {
            Some(last) if at < last.end + 4 => last.end = at + 1,
            _ => stretches.push(at..at + 1),
        }
    }
    for stretch in stretches {
        let part = |bytes: &[u8]| some_hex(&bytes[stretch.clone()]);
        push(
            differences,
            format!("{what} at {:#x}", stretch.start),
            &part(first),
            &part(second),
        );
    }
    if first.len() != second.len() {
        push(differences, format!("{what} bytes"), &first.len(), &second.len());
    }
}

fn some_hex(bytes: &[u8]) -> String {
    match bytes.get(..SHOWN_BYTES) {
        Some(beginning) if bytes.len() > SHOWN_BYTES => format!("{}… ({} bytes)", hex::encode(beginning), bytes.len()),
        _ => hex::encode(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        craft::{Checksum, UdpFrame, flip_bit},
        world::address,
    };

    fn frame() -> UdpFrame {
        UdpFrame::new(address("203.0.113.9:40000"), address("192.0.2.1:4500"), *b"payload")
    }

    fn whats(first: &UdpFrame, second: &UdpFrame) -> Vec<String> {
        compare(&first.build(), &second.build())
            .into_iter()
            .map(|difference| difference.what)
            .collect()
    }

    #[test]
    fn only_what_differs_is_told_by_field() {
        assert_eq!(whats(&frame(), &frame()), [""; 0]);
        assert_eq!(whats(&frame(), &frame().hop_limit(63)), ["ipv4 ttl", "ipv4 checksum"]);
        assert_eq!(whats(&frame(), &frame().checksum(Checksum::Wrong(1))), ["udp checksum"]);
        let mut other = frame();
        other.payload = b"paXload".to_vec();
        assert_eq!(whats(&frame(), &other), ["udp checksum", "payload at 0x2"]);
        other.from = address("203.0.113.9:40001");
        assert!(whats(&frame(), &other).contains(&"udp from".to_owned()));
    }

    #[test]
    fn every_flipped_bit_is_told() {
        for crafted in [
            frame().build(),
            UdpFrame::new(address("[2001:db8::9]:1"), address("[2001:db8::1]:2"), *b"x").build(),
        ] {
            for bit in 0..8 * crafted.len() {
                let mut flipped = crafted.clone();
                flip_bit(&mut flipped, bit);
                assert!(!compare(&crafted, &flipped).is_empty(), "bit {bit}");
            }
        }
    }
}
