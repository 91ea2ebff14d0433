//! What the kernel knows of a network interface, asked once.

use std::{fs, io};

use nix::net::if_::if_nametoindex;
use relay_ebpf::wire::Mac;
use rtnetlink::{
    packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
    packet_route::{
        RouteNetlinkMessage,
        link::{LinkAttribute, LinkFlags, LinkMessage, LinkXdp, XdpAttached},
    },
    sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE},
};

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
        for attribute in &link.attributes {
            match attribute {
                LinkAttribute::Address(bytes) => mac = <[u8; 6]>::try_from(bytes.as_slice()).ok(),
                LinkAttribute::Mtu(bytes) => mtu = *bytes,
                LinkAttribute::Xdp(xdp) => program = attached(xdp),
                _ => {}
            }
        }
        let mac = mac.filter(|mac| *mac != [0; 6]);
        let mac = mac.ok_or_else(|| InterfaceError::NotEthernet { name: name.to_owned() })?;
        let up = link.header.flags.contains(LinkFlags::Up | LinkFlags::LowerUp);
        Ok(Self {
            name: name.to_owned(),
            index,
            mac: Mac::new(mac),
            mtu,
            up,
            program,
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
    let Ok(entries) = fs::read_dir("/sys/class/net") else {
        return "(unknown)".to_owned();
    };
    let mut names: Vec<_> = entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names.join(", ")
}

fn query(index: u32) -> io::Result<LinkMessage> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut link = LinkMessage::default();
    link.header.index = index;
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetLink(link));
    request.header.flags = NLM_F_REQUEST;
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer).map_err(io::Error::other)?;
    match answer.payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => Ok(link),
        NetlinkPayload::Error(error) => Err(error.to_io()),
        _ => Err(io::Error::other("not an answer to RTM_GETLINK")),
    }
}
