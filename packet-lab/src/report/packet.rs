//! Packets, decoded and byte by byte, with what changed between two of them marked.

use std::{fmt::Write as _, ops::Range};

use maud::{Markup, html};

use crate::inspect::{Dissection, Layer};

const ETHERNET_BYTES: usize = 14;
const UDP_BYTES: usize = 8;
/// Bytes that are shown of a packet.
const SHOWN: usize = 512;
const ROW: usize = 16;

/// Two packets side by side, under these headings: what they are, and their bytes. If they are the same, one.
pub(super) fn pair(headings: [&str; 2], left: &[u8], right: &[u8]) -> Markup {
    if left == right {
        return html! {
            (fields(&[(headings[0], left)]))
            (hex(left, &vec![Change::None; left.len()]))
        };
    }
    let (of_left, of_right) = changes(left, right);
    html! {
        (fields(&[(headings[0], left), (headings[1], right)]))
        .pair {
            div { h4 { (headings[0]) ", " (left.len()) " bytes" } (hex(left, &of_left)) }
            div { h4 { (headings[1]) ", " (right.len()) " bytes" } (hex(right, &of_right)) }
        }
    }
}

/// The fields of packets in a table, those that differ marked.
fn fields(packets: &[(&str, &[u8])]) -> Markup {
    let read: Vec<Vec<(String, String)>> = packets.iter().map(|(_, frame)| decode(frame)).collect();
    let names: Vec<&str> = {
        let mut names: Vec<&str> = Vec::new();
        for (name, _) in read.iter().flatten() {
            if !names.contains(&name.as_str()) {
                names.push(name);
            }
        }
        names
    };
    let value = |of: &[(String, String)], name: &str| {
        of.iter()
            .find(|(known, _)| *known == name)
            .map(|(_, value)| value.clone())
    };
    html! {
        .wide tabindex="0" {
            table.fields {
                thead { tr { th scope="col" { "Field" } @for (heading, _) in packets { th scope="col" { (heading) } } } }
                tbody {
                    @for name in names {
                        @let values: Vec<Option<String>> = read.iter().map(|of| value(of, name)).collect();
                        @let differ = values.iter().any(|value| *value != values[0]);
                        tr {
                            th scope="row" { (name) }
                            @for value in &values {
                                td.mono {
                                    @match value {
                                        Some(value) if differ => mark { (value) },
                                        Some(value) => (value),
                                        None => span.zero { "none" },
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// A frame's fields, by layer and name.
fn decode(frame: &[u8]) -> Vec<(String, String)> {
    let dissection = Dissection::of(frame);
    let named = |layer: &Layer| {
        let name = layer.name;
        let fields = layer.fields.iter();
        let fields = fields.map(move |(field, value)| (format!("{name} {field}").trim_end().to_owned(), value.clone()));
        fields.collect::<Vec<_>>()
    };
    let mut fields = vec![("frame".to_owned(), format!("{} bytes", frame.len()))];
    fields.extend(dissection.layers.iter().flat_map(named));
    fields.push(("payload".to_owned(), format!("{} bytes", dissection.payload.len())));
    if dissection.trailing > 0 {
        fields.push(("behind the packet".to_owned(), format!("{} bytes", dissection.trailing)));
    }
    fields
}

/// What became of a byte.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Change {
    None,
    /// It is another.
    Other,
    /// The other packet has no such byte.
    Gone,
}

/// What differs between two frames, byte by byte. Headers are compared with headers; of two payloads of different
/// lengths the ends belong together, since a token is taken off the start.
fn changes(left: &[u8], right: &[u8]) -> (Vec<Change>, Vec<Change>) {
    let mut of_left = vec![Change::None; left.len()];
    let mut of_right = vec![Change::None; right.len()];
    for ((a, b), at_end) in parts(left)
        .into_iter()
        .zip(parts(right))
        .zip([false, false, false, true])
    {
        let common = a.len().min(b.len());
        let from = |range: &Range<usize>| if at_end { range.end - common } else { range.start };
        let (start_a, start_b) = (from(&a), from(&b));
        let whole = [(&mut of_left, &a, start_a), (&mut of_right, &b, start_b)];
        for (changes, range, start) in whole {
            for i in range.clone() {
                if !(start..start + common).contains(&i) {
                    changes[i] = Change::Gone;
                }
            }
        }
        for i in 0..common {
            if left[start_a + i] != right[start_b + i] {
                of_left[start_a + i] = Change::Other;
                of_right[start_b + i] = Change::Other;
            }
        }
    }
    (of_left, of_right)
}

/// Where Ethernet header, IP header, UDP header and the rest are; of what is no UDP packet, all is the first.
fn parts(frame: &[u8]) -> [Range<usize>; 4] {
    let all = frame.len();
    let dissection = Dissection::of(frame);
    let payload = dissection.payload_at;
    match payload.checked_sub(UDP_BYTES).filter(|udp| *udp >= ETHERNET_BYTES) {
        Some(udp) if dissection.layer("udp").is_some() => {
            [0..ETHERNET_BYTES, ETHERNET_BYTES..udp, udp..payload, payload..all]
        }
        _ => [0..all, all..all, all..all, all..all],
    }
}

fn hex(frame: &[u8], changes: &[Change]) -> Markup {
    let shown = frame.len().min(SHOWN);
    html! {
        pre.hex tabindex="0" {
            @for (row, bytes) in frame[..shown].chunks(ROW).enumerate() {
                span.o { (format!("{:04x}  ", row * ROW)) }
                (row_of(bytes, &changes[row * ROW..]))
                "\n"
            }
            @if shown < frame.len() {
                span.o { "and " (frame.len() - shown) " bytes more" }
            } @else if frame.is_empty() {
                span.o { "no bytes" }
            }
        }
    }
}

/// Bytes of one row, runs of one kind of change together.
fn row_of(bytes: &[u8], changes: &[Change]) -> Markup {
    let mut runs: Vec<(Change, String)> = Vec::new();
    for (i, (byte, change)) in bytes.iter().zip(changes).enumerate() {
        let space = match i {
            0 => "",
            8 => "  ",
            _ => " ",
        };
        match runs.last_mut() {
            Some((last, text)) if last == change => _ = write!(text, "{space}{byte:02x}"),
            _ => {
                if let Some((_, text)) = runs.last_mut().filter(|(last, _)| *last == Change::None) {
                    text.push_str(space);
                } else if !space.is_empty() {
                    runs.push((Change::None, space.to_owned()));
                }
                runs.push((*change, format!("{byte:02x}")));
            }
        }
    }
    html! {
        @for (change, text) in runs {
            @match change {
                Change::None => (text),
                Change::Other => mark { (text) },
                Change::Gone => mark.gone { (text) },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::craft::UdpFrame;

    fn frame(to: &str, payload: &[u8]) -> Vec<u8> {
        UdpFrame::new("203.0.113.9:40000".parse().unwrap(), to.parse().unwrap(), payload).build()
    }

    #[test]
    fn a_token_that_was_taken_off_is_gone_and_the_payload_behind_it_is_the_same() {
        let before = frame("192.0.2.1:4500", &[[7; 24].as_slice(), b"payload"].concat());
        let after = frame("192.0.2.1:4500", b"payload");
        let (of_before, of_after) = changes(&before, &after);
        assert!(of_before[42..66].iter().all(|change| *change == Change::Gone));
        assert!(of_before[66..].iter().all(|change| *change == Change::None));
        assert!(of_after[42..].iter().all(|change| *change == Change::None));
    }

    #[test]
    fn a_changed_address_is_marked_where_it_is() {
        let (before, after) = (frame("192.0.2.1:4500", b"x"), frame("192.0.2.9:4500", b"x"));
        let (of_before, of_after) = changes(&before, &after);
        assert_eq!(of_before, of_after);
        let changed: Vec<usize> = (0..before.len()).filter(|&i| of_before[i] != Change::None).collect();
        // The last byte of the address, and the low bytes of both checksums.
        assert_eq!(changed, [25, 33, 41]);
    }

    #[test]
    fn bytes_of_hostile_frames_are_shown_and_never_panic() {
        let whole = frame("192.0.2.1:4500", b"payload");
        for length in 0..whole.len() {
            for (a, b) in [(&whole[..length], &whole[..]), (&whole[..], &whole[..length])] {
                let page = pair(["input", "output"], a, b).into_string();
                assert!(page.contains("bytes"), "{page}");
            }
        }
    }

    #[test]
    fn changes_next_to_each_other_are_one_mark() {
        let markup = row_of(
            &[1, 2, 3, 4],
            &[Change::None, Change::Other, Change::Other, Change::None],
        );
        assert_eq!(markup.into_string(), "01 <mark>02 03</mark> 04");
    }
}
