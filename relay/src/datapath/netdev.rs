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
/// `NETDEV_XDP_ACT_RX_SG`: programs get frames in several buffers.
const RX_SG: u64 = 1 << 5;
/// `NETDEV_XDP_ACT_NDO_XMIT_SG`: it sends such frames that are redirected to it.
const XMIT_SG: u64 = 1 << 6;
/// The flags, by their names in the specification.
const NAMES: [(u64, &str); 7] = [
    (BASIC, "basic"),
    (1 << 1, "redirect"),
    (XMIT, "ndo-xmit"),
    (1 << 3, "xsk-zerocopy"),
    (1 << 4, "hw-offload"),
    (RX_SG, "rx-sg"),
    (XMIT_SG, "ndo-xmit-sg"),
];

/// What a driver can do, now: some of it depends on how the interface is set up.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Features(u64);

impl Features {
    /// It runs XDP natively.
    #[must_use]
    pub const fn runs_xdp(self) -> bool {
        self.0 & BASIC != 0
    }

    /// It hands frames over to programs in several buffers.
    #[must_use]
    pub const fn takes_buffers(self) -> bool {
        self.0 & RX_SG != 0
    }

    /// It sends what a program on another interface redirects to it.
    #[must_use]
    pub const fn takes_redirects(self) -> bool {
        self.0 & XMIT != 0
    }

    /// It sends that also if it is in several buffers.
    #[must_use]
    pub const fn takes_redirected_buffers(self) -> bool {
        self.0 & XMIT_SG != 0
    }

    /// As the kernel names them, for people.
    #[must_use]
    pub fn names(self) -> Vec<&'static str> {
        let named = NAMES.iter().filter(|(flag, _)| self.0 & flag != 0);
        named.map(|(_, name)| *name).collect()
    }
}

/// What the driver of the interface with this index can do; `None` where the kernel cannot tell (before 6.3).
///
/// # Errors
/// What the kernel answers otherwise.
pub fn features(ifindex: u32) -> io::Result<Option<Features>> {
    let Some(family) = family_id(Device::family_name())? else {
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
    Ok(Some(Features(u64::from_ne_bytes(value))))
}

/// The number that this kernel gave the generic netlink family with this name, if it has it.
pub(super) fn family_id(name: &str) -> io::Result<Option<u16>> {
    let question = GenlMessage::from_payload(GenlCtrl {
        cmd: GenlCtrlCmd::GetFamily,
        nlas: vec![GenlCtrlAttrs::FamilyName(name.to_owned())],
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
