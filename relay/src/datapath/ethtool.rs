//! What a driver does to frames before anybody sees them: the generic netlink family `ethtool` (Linux 5.6,
//! Documentation/networking/ethtool-netlink.rst). Asking changes nothing.

use std::io;

use netlink_packet_generic::{GenlFamily, GenlHeader, GenlMessage};
use rtnetlink::{
    packet_core::{DecodeError, DefaultNla, Emitable, Nla as _, NlasIterator, Parseable as _, ParseableParametrized},
    sys::protocols::NETLINK_GENERIC,
};

use super::{netdev::family_id, netlink::ask};

/// `ETHTOOL_MSG_FEATURES_GET`, and the answer's attributes.
const FEATURES_GET: u8 = 11;
/// `ETHTOOL_A_FEATURES_HEADER`, nested: which device.
const HEADER: u16 = 1;
/// `ETHTOOL_A_FEATURES_ACTIVE`, a bit set.
const ACTIVE: u16 = 4;
/// `ETHTOOL_A_HEADER_DEV_INDEX`, a u32.
const DEV_INDEX: u16 = 1;
/// `ETHTOOL_A_BITSET_BITS`, nested: the bits that are set.
const BITS: u16 = 3;
/// `ETHTOOL_A_BITSET_BIT_NAME`, a string.
const BIT_NAME: u16 = 2;
/// `NLA_F_NESTED`.
const NESTED: u16 = 1 << 15;

/// The names of the features that are on, as `ethtool -k` has them in its own words; `None` where the kernel has no such
/// family.
///
/// # Errors
/// What the kernel answers otherwise.
pub fn active_features(ifindex: u32) -> io::Result<Option<Vec<String>>> {
    let Some(family) = family_id(Features::family_name())? else {
        return Ok(None);
    };
    let device = DefaultNla::new(DEV_INDEX, ifindex.to_ne_bytes().to_vec());
    let mut header = vec![0; device.buffer_len()];
    device.emit(&mut header);
    let mut question = GenlMessage::from_payload(Features(vec![DefaultNla::new(HEADER | NESTED, header)]));
    question.set_resolved_family_id(family);
    let answer = ask(NETLINK_GENERIC, question)?;
    let active = find(&answer.payload.0, ACTIVE).map(|set| nested(&set)).transpose()?;
    let bits = active
        .and_then(|set| find(&set, BITS))
        .map(|bits| nested(&bits))
        .transpose()?;
    let mut names = Vec::new();
    for bit in bits.unwrap_or_default() {
        if let Some(name) = find(&nested(&value(&bit))?, BIT_NAME) {
            names.push(String::from_utf8_lossy(&name).trim_end_matches('\0').to_owned());
        }
    }
    Ok(Some(names))
}

fn find(attributes: &[DefaultNla], kind: u16) -> Option<Vec<u8>> {
    attributes
        .iter()
        .find(|found| found.kind() & !NESTED == kind)
        .map(value)
}

fn value(attribute: &DefaultNla) -> Vec<u8> {
    let mut value = vec![0; attribute.value_len()];
    attribute.emit_value(&mut value);
    value
}

fn nested(value: &[u8]) -> io::Result<Vec<DefaultNla>> {
    parse(value).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

fn parse(buffer: &[u8]) -> Result<Vec<DefaultNla>, DecodeError> {
    NlasIterator::new(buffer)
        .map(|attribute| DefaultNla::parse(&attribute?))
        .collect()
}

/// A message about features: its attributes.
#[derive(Clone, Debug)]
struct Features(Vec<DefaultNla>);

impl GenlFamily for Features {
    fn family_name() -> &'static str {
        "ethtool"
    }

    fn command(&self) -> u8 {
        FEATURES_GET
    }

    fn version(&self) -> u8 {
        1
    }
}

impl Emitable for Features {
    fn buffer_len(&self) -> usize {
        self.0.as_slice().buffer_len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        self.0.as_slice().emit(buffer);
    }
}

impl ParseableParametrized<[u8], GenlHeader> for Features {
    fn parse_with_param(buffer: &[u8], _: GenlHeader) -> Result<Self, DecodeError> {
        parse(buffer).map(Self)
    }
}
