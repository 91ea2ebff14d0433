//! What the kernel knows of a network interface, asked once.

use std::{fs, io, path::Path};

use nix::net::if_::{if_nameindex, if_nametoindex};
use relay_ebpf::wire::Mac;
use rtnetlink::{
    packet_route::{
        RouteNetlinkMessage,
        link::{LinkAttribute, LinkFlags, LinkInfo, LinkMessage, LinkXdp, XdpAttached},
    },
    sys::protocols::NETLINK_ROUTE,
};

use super::netlink::ask;
use crate::config::XdpMode;

/// Why an interface could not be looked at.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InterfaceError {
    /// It does not exist.
    #[error("there is no interface `{name}` here; there are: {others} (`interface` in relay.toml, or RELAY_INTERFACE)")]
    Missing {
        /// The name.
        name: String,
        /// The names of those that exist.
        others: String,
    },
    /// It has no MAC address.
    #[error("{name} is not an Ethernet interface: it has no MAC address, which the relay needs to send frames")]
    NotEthernet {
        /// The name.
        name: String,
    },
    /// netlink failed.
    #[error("asking the kernel about {name} (netlink): {source}")]
    Netlink {
        /// The name.
        name: String,
        /// What went wrong.
        source: io::Error,
    },
}

/// A program that is attached to an interface.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct AttachedProgram {
    /// Native or generic.
    pub mode: XdpMode,
    /// The kernel's id of it.
    pub id: u32,
}

/// An Ethernet interface.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// Its MAC address.
    pub mac: Mac,
    /// Its MTU in bytes: the largest IP packet.
    pub mtu: u32,
    /// Whether it is up and has a carrier.
    pub up: bool,
    /// The XDP program on it.
    pub program: Option<AttachedProgram>,
    /// Its driver, if known: of a virtual device its kind, such as `veth`.
    pub driver: Option<String>,
    /// Queues that it receives by.
    pub rx_queues: u32,
    /// Queues that it sends by.
    pub tx_queues: u32,
}

impl Interface {
    /// Looks at the interface with this name.
    ///
    /// # Errors
    /// See [`InterfaceError`].
    pub fn read(name: &str) -> Result<Self, InterfaceError> {
        let index = if_nametoindex(name).map_err(|_| InterfaceError::Missing {
            name: name.to_owned(),
            others: names(),
        })?;
        let link = query(index).map_err(|source| InterfaceError::Netlink {
            name: name.to_owned(),
            source,
        })?;
        let mut mac = None;
        let mut mtu = 0;
        let mut program = None;
        let (mut rx_queues, mut tx_queues) = (1, 1);
        for attribute in &link.attributes {
            match attribute {
                LinkAttribute::Address(bytes) => mac = <[u8; 6]>::try_from(bytes.as_slice()).ok(),
                LinkAttribute::Mtu(bytes) => mtu = *bytes,
                LinkAttribute::Xdp(xdp) => program = attached(xdp),
                LinkAttribute::NumRxQueues(queues) => rx_queues = *queues,
                LinkAttribute::NumTxQueues(queues) => tx_queues = *queues,
                _ => {}
            }
        }
        let mac = mac.filter(|mac| *mac != [0; 6]);
        let mac = mac.ok_or_else(|| InterfaceError::NotEthernet { name: name.to_owned() })?;
        // What netlink tells is how many there can be.
        let (rx_queues, tx_queues) = queues_in_use(name, index).unwrap_or((rx_queues, tx_queues));
        let up = link.header.flags.contains(LinkFlags::Up | LinkFlags::LowerUp);
        Ok(Self {
            name: name.to_owned(),
            index,
            mac: Mac::new(mac),
            mtu,
            up,
            program,
            driver: driver(&link.attributes),
            rx_queues,
            tx_queues,
        })
    }
}

fn attached(xdp: &[LinkXdp]) -> Option<AttachedProgram> {
    let mut mode = None;
    let mut id = 0;
    for attribute in xdp {
        match attribute {
            LinkXdp::Attached(XdpAttached::Driver | XdpAttached::Hardware) => mode = Some(XdpMode::Native),
            LinkXdp::Attached(XdpAttached::SocketBuffer) => mode = Some(XdpMode::Generic),
            LinkXdp::ProgId(program) => id = *program,
            _ => {}
        }
    }
    mode.map(|mode| AttachedProgram { mode, id })
}

/// The interfaces there are, as a list for a message.
fn names() -> String {
    let Ok(found) = if_nameindex() else {
        return "(unknown)".to_owned();
    };
    let mut names: Vec<_> = found
        .iter()
        .map(|interface| interface.name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names.join(", ")
}

fn query(index: u32) -> io::Result<LinkMessage> {
    let mut link = LinkMessage::default();
    link.header.index = index;
    match ask(NETLINK_ROUTE, RouteNetlinkMessage::GetLink(link))? {
        RouteNetlinkMessage::NewLink(link) => Ok(link),
        other => Err(io::Error::other(format!("not an answer to RTM_GETLINK: {other:?}"))),
    }
}

/// The driver: what a virtual device is, else whatever drives the device behind it.
fn driver(attributes: &[LinkAttribute]) -> Option<String> {
    let kind = attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => infos.iter().find_map(|info| match info {
            LinkInfo::Kind(kind) => Some(kind.to_string()),
            _ => None,
        }),
        _ => None,
    });
    kind.or_else(|| {
        let device = attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::ParentDevName(name) => Some(name),
            _ => None,
        })?;
        let bus = attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::ParentDevBusName(name) => Some(name),
            _ => None,
        })?;
        // By the bus, since /sys/class/net shows the network namespace that /sys was mounted in.
        let driver = fs::read_link(format!("/sys/bus/{bus}/devices/{device}/driver")).ok()?;
        Some(driver.file_name()?.to_string_lossy().into_owned())
    })
}

/// Queues in use, receiving and sending, if /sys shows this namespace's interfaces.
fn queues_in_use(name: &str, index: u32) -> Option<(u32, u32)> {
    let folder = Path::new("/sys/class/net").join(name);
    let shown: u32 = fs::read_to_string(folder.join("ifindex")).ok()?.trim().parse().ok()?;
    if shown != index {
        return None;
    }
    let queues = fs::read_dir(folder.join("queues")).ok()?;
    let names: Vec<_> = queues
        .flatten()
        .map(|queue| queue.file_name().to_string_lossy().into_owned())
        .collect();
    let count = |start: &str| names.iter().filter(|name| name.starts_with(start)).count() as u32;
    Some((count("rx-"), count("tx-")))
}
