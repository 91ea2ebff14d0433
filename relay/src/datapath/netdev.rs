//! What a network driver says of its XDP: the generic netlink family `netdev` (Linux 6.3, Documentation/netlink/specs/
//! netdev.yaml). Asking attaches nothing.

use std::io;

use netlink_packet_generic::{
    GenlFamily, GenlHeader, GenlMessage,
    ctrl::{GenlCtrl, GenlCtrlCmd, nlas::GenlCtrlAttrs},
};
use rtnetlink::{
    packet_core::{DecodeError, DefaultNla, Emitable, Nla as _, NlasIterator, Parseable as _, ParseableParametrized},
    sys::protocols::NETLINK_GENERIC,
};

use super::netlink::ask;

/// `NETDEV_CMD_DEV_GET`.
const DEV_GET: u8 = 1;
/// `NETDEV_A_DEV_IFINDEX`, a u32.
const IFINDEX: u16 = 1;
/// `NETDEV_A_DEV_XDP_FEATURES`, a u64 of flags.
const XDP_FEATURES: u16 = 3;
/// `NETDEV_XDP_ACT_BASIC`: XDP_PASS, XDP_DROP, XDP_TX and XDP_ABORTED work.
const BASIC: u64 = 1;
/// `NETDEV_XDP_ACT_NDO_XMIT`: it sends what programs on other interfaces redirect to it.
const XMIT: u64 = 1 << 2;

/// Whether the driver of the interface with this index runs XDP natively; `None` where the kernel cannot tell (before
/// 6.3).
///
/// # Errors
/// What the kernel answers otherwise.
pub fn runs_xdp(ifindex: u32) -> io::Result<Option<bool>> {
    Ok(features(ifindex)?.map(|features| features & BASIC != 0))
}

/// Whether the driver of the interface with this index sends what a program on another interface redirects to it, now;
/// `None` where the kernel cannot tell (before 6.3).
///
/// # Errors
/// What the kernel answers otherwise.
pub fn takes_redirects(ifindex: u32) -> io::Result<Option<bool>> {
    Ok(features(ifindex)?.map(|features| features & XMIT != 0))
}

fn features(ifindex: u32) -> io::Result<Option<u64>> {
    let Some(family) = family_id()? else {
        return Ok(None);
    };
    let mut question =
        GenlMessage::from_payload(Device(vec![DefaultNla::new(IFINDEX, ifindex.to_ne_bytes().to_vec())]));
    question.set_resolved_family_id(family);
    let answer = ask(NETLINK_GENERIC, question)?;
    let features = answer
        .payload
        .0
        .iter()
        .find(|attribute| attribute.kind() == XDP_FEATURES);
    let Some(features) = features else {
        return Ok(None);
    };
    let mut value = vec![0; features.value_len()];
    features.emit_value(&mut value);
    let value = value
        .try_into()
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "the driver's XDP features are no 64 bits"))?;
    Ok(Some(u64::from_ne_bytes(value)))
}

/// The number that this kernel gave the family, if it has it.
fn family_id() -> io::Result<Option<u16>> {
    let question = GenlMessage::from_payload(GenlCtrl {
        cmd: GenlCtrlCmd::GetFamily,
        nlas: vec![GenlCtrlAttrs::FamilyName(Device::family_name().to_owned())],
    });
    match ask(NETLINK_GENERIC, question) {
        Ok(answer) => Ok(answer.payload.nlas.iter().find_map(|attribute| match attribute {
            GenlCtrlAttrs::FamilyId(id) => Some(*id),
            _ => None,
        })),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A message about a device: its attributes.
#[derive(Clone, Debug)]
struct Device(Vec<DefaultNla>);

impl GenlFamily for Device {
    fn family_name() -> &'static str {
        "netdev"
    }

    fn command(&self) -> u8 {
        DEV_GET
    }

    fn version(&self) -> u8 {
        1
    }
}

impl Emitable for Device {
    fn buffer_len(&self) -> usize {
        self.0.as_slice().buffer_len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        self.0.as_slice().emit(buffer);
    }
}

impl ParseableParametrized<[u8], GenlHeader> for Device {
    fn parse_with_param(buffer: &[u8], _: GenlHeader) -> Result<Self, DecodeError> {
        let attributes = NlasIterator::new(buffer).map(|attribute| DefaultNla::parse(&attribute?));
        attributes.collect::<Result<_, _>>().map(Self)
    }
}
