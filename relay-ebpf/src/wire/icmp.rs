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

/// Types of IPv4's errors (RFC 792).
const UNREACHABLE_V4: u16 = 3;
const TIME_EXCEEDED_V4: u16 = 11;
const PARAMETER_V4: u16 = 12;
/// Types of IPv6's (RFC 4443).
const UNREACHABLE_V6: u16 = 1;
const TIME_EXCEEDED_V6: u16 = 3;
const PARAMETER_V6: u16 = 4;
/// Bytes of IP and UDP headers, which is what parameter problems can be about.
const QUOTED_V4: u32 = 28;
const QUOTED_V6: u32 = 48;
/// Where the next header is in an IPv6 header.
const NEXT_HEADER: u32 = 6;

/// The header of a message, as it stands in memory: type and code, `rest` in host order, and the checksum of it all,
/// where `covered` is what it covers besides: what is quoted and, in IPv6, the pseudo-header.
#[inline(always)]
#[must_use]
pub const fn header(type_and_code: u16, rest: u32, covered: Change) -> [u32; 2] {
    let first = (type_and_code as u32) << 16;
    let checksum = covered.with(first.to_be()).with(rest.to_be()).checksum();
    [(first | Be16::from_raw(checksum).get() as u32).to_be(), rest.to_be()]
}

/// Type and code, and the second word of the header in host order, of an error of IPv4 as another system of IPv4 is told.
/// `None` for what is no error, or not for hosts elsewhere. The word may have told of more that is not quoted.
#[inline(always)]
#[must_use]
pub const fn kept_v4(kind: u16, rest: u32) -> Option<(u16, u32)> {
    match kind >> 8 {
        UNREACHABLE_V4 | TIME_EXCEEDED_V4 => Some((kind, 0)),
        PARAMETER_V4 if rest >> 24 < QUOTED_V4 => Some((kind, rest & 0xff00_0000)),
        _ => None,
    }
}

/// The same of IPv6.
#[inline(always)]
#[must_use]
pub const fn kept_v6(kind: u16, rest: u32) -> Option<(u16, u32)> {
    match kind >> 8 {
        UNREACHABLE_V6 | TIME_EXCEEDED_V6 => Some((kind, 0)),
        PARAMETER_V6 if rest < QUOTED_V6 => Some((kind, rest)),
        _ => None,
    }
}

/// The same of IPv4, as a system of IPv6 is told: RFC 7915, section 4.2. What does not fit is not for this.
#[inline(always)]
#[must_use]
pub const fn v4_to_v6(kind: u16, rest: u32) -> Option<(u16, u32)> {
    let code = kind & 0xff;
    match (kind >> 8, code) {
        (UNREACHABLE_V4, 0 | 1 | 5..=8 | 11 | 12) => Some((UNREACHABLE_V6 << 8, 0)),
        (UNREACHABLE_V4, 2) => Some((PARAMETER_V6 << 8 | 1, NEXT_HEADER)),
        (UNREACHABLE_V4, 3) => Some((UNREACHABLE_V6 << 8 | 4, 0)),
        (UNREACHABLE_V4, 9 | 10 | 13 | 15) => Some((UNREACHABLE_V6 << 8 | 1, 0)),
        (TIME_EXCEEDED_V4, _) => Some((TIME_EXCEEDED_V6 << 8 | code, 0)),
        (PARAMETER_V4, 0 | 2) => match rest >> 24 {
            pointer @ 0..=1 => Some((PARAMETER_V6 << 8, pointer)),
            2 | 3 => Some((PARAMETER_V6 << 8, 4)),
            8 => Some((PARAMETER_V6 << 8, 7)),
            9 => Some((PARAMETER_V6 << 8, NEXT_HEADER)),
            12..=15 => Some((PARAMETER_V6 << 8, 8)),
            16..=19 => Some((PARAMETER_V6 << 8, 24)),
            _ => None,
        },
        _ => None,
    }
}

/// The same of IPv6, as a system of IPv4 is told: RFC 7915, section 5.2.
#[inline(always)]
#[must_use]
pub const fn v6_to_v4(kind: u16, rest: u32) -> Option<(u16, u32)> {
    let code = kind & 0xff;
    match (kind >> 8, code) {
        (UNREACHABLE_V6, 0 | 2 | 3) => Some((UNREACHABLE_V4 << 8 | 1, 0)),
        (UNREACHABLE_V6, 1) => Some((UNREACHABLE_V4 << 8 | 10, 0)),
        (UNREACHABLE_V6, 4) => Some((UNREACHABLE_V4 << 8 | 3, 0)),
        (TIME_EXCEEDED_V6, _) => Some((TIME_EXCEEDED_V4 << 8 | code, 0)),
        (PARAMETER_V6, 1) => Some((UNREACHABLE_V4 << 8 | 2, 0)),
        (PARAMETER_V6, 0) => {
            let pointer = match rest {
                0 | 1 => rest,
                4 | 5 => 2,
                6 => 9,
                7 => 8,
                8..=23 => 12,
                24..=39 => 16,
                _ => return None,
            };
            Some((PARAMETER_V4 << 8, pointer << 24))
        }
        _ => None,
    }
}
