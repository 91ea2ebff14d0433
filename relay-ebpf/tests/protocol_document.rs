//! `docs/protocol.md` is what other people write clients from: its test vectors are read from its text.

use relay_ebpf::token;

const DOCUMENT: &str = include_str!("../../docs/protocol.md");
const TABLE: &str = "| slot | salt | pn | payload_len | relay_id | token without header protection | token with it |";

fn number(cell: &str) -> u64 {
    let parsed = match cell.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => cell.parse(),
    };
    parsed.unwrap_or_else(|error| panic!("`{cell}` in the table of test vectors: {error}"))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn the_test_vectors_of_the_protocol_document_hold() {
    let user_key = std::array::from_fn(|i| i as u8);
    let header_key = std::array::from_fn(|i| 0xf0 + i as u8);
    let rows: Vec<&str> = DOCUMENT
        .lines()
        .skip_while(|line| *line != TABLE)
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .collect();
    assert_eq!(rows.len(), 5, "docs/protocol.md has lost test vectors");
    for row in rows {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [slot, salt, pn, payload_len, relay_id, plain, masked] = cells[..] else {
            panic!("a row of seven cells, not {row}");
        };
        let seal = |header_key: Option<&[u8; 16]>| {
            let token = token::seal(
                &user_key,
                header_key,
                number(slot) as u32,
                number(salt) as u32,
                number(pn),
                number(payload_len) as u16,
                number(relay_id) as u32,
            );
            format!("`{}`", hex(&token))
        };
        assert_eq!(seal(None), plain, "without header protection: {row}");
        assert_eq!(seal(Some(&header_key)), masked, "with header protection: {row}");
    }
}

#[test]
fn the_worked_example_of_the_protocol_document_is_what_a_client_sends() {
    let user_key = std::array::from_fn(|i| i as u8);
    let header_key = std::array::from_fn(|i| 0xf0 + i as u8);
    let payload = b"hello";
    let mut datagram = token::seal(
        &user_key,
        Some(&header_key),
        7,
        0x1234_5678,
        0x0006_60ea_0bfc_e200,
        5,
        1,
    )
    .to_vec();
    datagram.extend(payload);
    let shown = DOCUMENT
        .lines()
        .find(|line| line.ends_with(&format!(" {}", hex(payload))))
        .expect("docs/protocol.md shows the datagram of its example");
    assert_eq!(hex(&datagram), shown.replace(' ', ""));
}
