//! Link types: what the packets of a capture start with, and how those that are not Ethernet become it.
//!
//! Whatever carries IP is given an Ethernet header: from the sender's address where the capture knows it (Linux cooked
//! captures do, for Ethernet devices) and else from [`MADE_UP_SOURCE`], to [`MADE_UP_DESTINATION`]. A packet of these
//! that is not IP keeps its `EtherType` where it has one, and is [`NO_ETHERTYPE`] otherwise.

use serde::{Deserialize, Serialize};

/// The sender of a frame whose link layer was not captured.
pub const MADE_UP_SOURCE: [u8; 6] = [0x02, 0, 0, 0, 0, 0xc1];
/// The receiver of a frame whose link layer was not captured: the MAC address that a relay of the lab has by default.
pub const MADE_UP_DESTINATION: [u8; 6] = [0x02, 0, 0, 0, 0, 0x01];
/// The `EtherType` of a packet that has none: the reserved one.
pub const NO_ETHERTYPE: u16 = 0xffff;

/// What can be read, for messages.
pub(super) const READABLE: &str = "read are ETHERNET, LINUX_SLL, LINUX_SLL2, RAW, IPV4, IPV6, NULL and LOOP; capture \
                                   on an Ethernet interface or on `any`";

const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;

/// The link types that are read.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkType {
    /// Ethernet: taken as it is.
    #[default]
    Ethernet,
    /// Linux cooked capture, as of `-i any`.
    LinuxSll,
    /// Linux cooked capture, version 2.
    LinuxSll2,
    /// A bare IP packet of either family, as of TUN devices.
    Raw,
    /// A bare IPv4 packet.
    Ipv4,
    /// A bare IPv6 packet.
    Ipv6,
    /// BSD loopback, the address family in the byte order of the machine that captured.
    Null,
    /// OpenBSD loopback, the address family in network order.
    Loop,
}

impl LinkType {
    /// The link type of a number.
    ///
    /// # Errors
    /// The name of a link type that is not read.
    pub(super) fn from_number(number: u16) -> Result<Self, &'static str> {
        Ok(match number {
            0 => Self::Null,
            1 => Self::Ethernet,
            // LINKTYPE_RAW, and the values of DLT_RAW that older programs wrote in its place.
            12 | 14 | 101 => Self::Raw,
            108 => Self::Loop,
            113 => Self::LinuxSll,
            228 => Self::Ipv4,
            229 => Self::Ipv6,
            276 => Self::LinuxSll2,
            other => return Err(name(other)),
        })
    }

    /// What the capture called it, as tcpdump does.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ethernet => "ETHERNET",
            Self::LinuxSll => "LINUX_SLL",
            Self::LinuxSll2 => "LINUX_SLL2",
            Self::Raw => "RAW",
            Self::Ipv4 => "IPV4",
            Self::Ipv6 => "IPV6",
            Self::Null => "NULL",
            Self::Loop => "LOOP",
        }
    }

    /// How long a packet of this many bytes is as an Ethernet frame.
    pub(super) const fn ethernet_length(self, bytes: u32) -> u32 {
        let header = match self {
            Self::Ethernet => 14,
            Self::LinuxSll => 16,
            Self::LinuxSll2 => 20,
            Self::Raw | Self::Ipv4 | Self::Ipv6 => 0,
            Self::Null | Self::Loop => 4,
        };
        bytes.saturating_add(14).saturating_sub(header)
    }

    /// The packet as an Ethernet frame; `None` if it is too short for the header of its link type.
    pub(super) fn to_ethernet(self, packet: &[u8]) -> Option<Vec<u8>> {
        let (source, ethertype, rest) = match self {
            Self::Ethernet => return Some(packet.to_vec()),
            Self::LinuxSll => {
                let (header, rest) = packet.split_first_chunk::<16>()?;
                let length = u16::from_be_bytes([header[4], header[5]]);
                let protocol = u16::from_be_bytes([header[14], header[15]]);
                (sender(length, &header[6..14]), ethertype(protocol), rest)
            }
            Self::LinuxSll2 => {
                let (header, rest) = packet.split_first_chunk::<20>()?;
                let protocol = u16::from_be_bytes([header[0], header[1]]);
                (sender(header[11].into(), &header[12..20]), ethertype(protocol), rest)
            }
            Self::Raw => {
                let version = packet.first()? >> 4;
                let ethertype = match version {
                    4 => IPV4,
                    6 => IPV6,
                    _ => NO_ETHERTYPE,
                };
                (MADE_UP_SOURCE, ethertype, packet)
            }
            Self::Ipv4 => (MADE_UP_SOURCE, IPV4, packet),
            Self::Ipv6 => (MADE_UP_SOURCE, IPV6, packet),
            Self::Null | Self::Loop => {
                let (family, rest) = packet.split_first_chunk::<4>()?;
                (MADE_UP_SOURCE, address_family(*family), rest)
            }
        };
        let mut frame = Vec::with_capacity(14 + rest.len());
        frame.extend_from_slice(&MADE_UP_DESTINATION);
        frame.extend_from_slice(&source);
        frame.extend_from_slice(&ethertype.to_be_bytes());
        frame.extend_from_slice(rest);
        Some(frame)
    }
}

/// The sender's address in a cooked header, if it is as long as Ethernet's and set.
fn sender(length: u16, address: &[u8]) -> [u8; 6] {
    match address.first_chunk::<6>() {
        Some(mac) if length == 6 && *mac != [0; 6] => *mac,
        _ => MADE_UP_SOURCE,
    }
}

/// A cooked header's protocol: an `EtherType`, or one of Linux's small numbers for frames without.
fn ethertype(protocol: u16) -> u16 {
    if protocol >= 0x0600 { protocol } else { NO_ETHERTYPE }
}

/// The `EtherType` of an address family in either byte order: no family is larger than 255.
fn address_family(bytes: [u8; 4]) -> u16 {
    let family = match bytes {
        [family, 0, 0, 0] | [0, 0, 0, family] => family,
        _ => 0,
    };
    match family {
        2 => IPV4,
        // Linux, NetBSD and OpenBSD, FreeBSD, macOS.
        10 | 24 | 28 | 30 => IPV6,
        _ => NO_ETHERTYPE,
    }
}

/// The names of link types that are not read, as of tcpdump's registry; those that people meet.
fn name(number: u16) -> &'static str {
    match number {
        6 => "IEEE802_5",
        7 => "ARCNET_BSD",
        8 => "SLIP",
        9 => "PPP",
        10 => "FDDI",
        50 => "PPP_HDLC",
        51 => "PPP_ETHER",
        104 => "C_HDLC",
        105 => "IEEE802_11",
        107 => "FRELAY",
        114 => "LTALK",
        117 => "PFLOG",
        119 => "IEEE802_11_PRISM",
        122 => "IP_OVER_FC",
        123 => "SUNATM",
        127 => "IEEE802_11_RADIOTAP",
        129 => "ARCNET_LINUX",
        143 => "DOCSIS",
        144 => "LINUX_IRDA",
        147..=162 => "USER0 to USER15",
        163 => "IEEE802_11_AVS",
        166 => "PPP_PPPD",
        187 => "BLUETOOTH_HCI_H4",
        189 => "USB_LINUX",
        192 => "PPI",
        195 => "IEEE802_15_4_WITHFCS",
        201 => "BLUETOOTH_HCI_H4_WITH_PHDR",
        203 => "LAPD",
        220 => "USB_LINUX_MMAPPED",
        226 => "IPNET",
        227 => "CAN_SOCKETCAN",
        230 => "IEEE802_15_4_NOFCS",
        231 => "DBUS",
        239 => "NFLOG",
        240 => "NETANALYZER",
        242 => "IPOIB",
        249 => "USBPCAP",
        251 => "BLUETOOTH_LE_LL",
        252 => "WIRESHARK_UPPER_PDU",
        253 => "NETLINK",
        254 => "BLUETOOTH_LINUX_MONITOR",
        256 => "BLUETOOTH_LE_LL_WITH_PHDR",
        258 => "PKTAP",
        271 => "VSOCK",
        272 => "NORDIC_BLE",
        274 => "ETHERNET_MPACKET",
        _ => "unknown to this lab",
    }
}
