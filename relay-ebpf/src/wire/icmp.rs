//! ICMP (RFC 792) and ICMPv6 (RFC 4443) error messages: a header of 8 bytes, and what they quote.

use super::{Be16, checksum::Change};

/// The protocol number in IPv4.
pub const PROTOCOL_V4: u8 = 1;
/// The next header in IPv6.
pub const PROTOCOL_V6: u8 = 58;
/// Bytes of the header, before what is quoted.
pub const HEADER_BYTES: usize = 8;

/// Fragmentation needed and Don't Fragment set: type 3, code 4 (RFC 792), with the next hop's MTU (RFC 1191).
pub const FRAGMENTATION_NEEDED: u16 = 0x0304;
/// Packet too big: type 2, code 0 (RFC 4443, section 3.2).
pub const PACKET_TOO_BIG: u16 = 0x0200;

/// The header of a message, as it stands in memory: type and code, `rest` in host order, and the checksum of it all,
/// where `covered` is what it covers besides: what is quoted and, in IPv6, the pseudo-header.
#[inline(always)]
#[must_use]
pub const fn header(type_and_code: u16, rest: u32, covered: Change) -> [u32; 2] {
    let first = (type_and_code as u32) << 16;
    let checksum = covered.with(first.to_be()).with(rest.to_be()).checksum();
    [(first | Be16::from_raw(checksum).get() as u32).to_be(), rest.to_be()]
}
