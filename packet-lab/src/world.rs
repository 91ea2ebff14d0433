//! Who is there: one relay, its users and their destinations, in the terms of its configuration.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use lumenlink_relay::config;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::craft::Grant;

/// Where a next hop is reached.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct NextHop {
    /// Its MAC address.
    pub mac: [u8; 6],
    /// Largest IP packet that fits the link to it, in bytes.
    pub mtu: u16,
    /// Number of the relay's interface that leads to it.
    pub interface: u8,
    /// The VLAN tags of frames to it.
    pub tags: Tags,
}

/// Up to two VLAN tags, outer first.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Tags(pub [Option<Tag>; 2]);

/// A VLAN tag.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Tag {
    /// Its kind: 0x8100 (802.1Q) or 0x88a8 (802.1ad).
    pub kind: u16,
    /// Priority (3 bits), drop eligible indicator, VLAN identifier (12 bits).
    pub control: u16,
}

impl Tags {
    /// No tags.
    pub const NONE: Self = Self([None; 2]);

    /// These tags, kinds and control information; those past the second are left out.
    #[must_use]
    pub fn of(tags: impl IntoIterator<Item = (u16, u16)>) -> Self {
        let mut tags = tags.into_iter().map(|(kind, control)| Tag { kind, control });
        Self(std::array::from_fn(|_| tags.next()))
    }

    /// The tags, outer first.
    pub fn iter(self) -> impl Iterator<Item = Tag> {
        self.0.into_iter().flatten()
    }

    /// Their bytes, as they stand in a frame.
    #[must_use]
    pub fn bytes(self) -> Vec<u8> {
        let bytes = |tag: Tag| [tag.kind.to_be_bytes(), tag.control.to_be_bytes()].concat();
        self.iter().flat_map(bytes).collect()
    }
}

impl fmt::Display for Tags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::NONE {
            return f.write_str("none");
        }
        for (nth, Tag { kind, control }) in self.iter().enumerate() {
            let separator = if nth == 0 { "" } else { ", " };
            let (vlan, priority) = (control & 0xfff, control >> 13);
            write!(f, "{separator}{kind:#06x} VLAN {vlan}")?;
            if priority > 0 {
                write!(f, " priority {priority}")?;
            }
            if control & 0x1000 != 0 {
                write!(f, " drop eligible")?;
            }
        }
        Ok(())
    }
}

/// An interface of the relay.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Interface {
    /// Its MAC address; each interface has another.
    pub mac: [u8; 6],
    /// Largest IP packet that fits its link, in bytes.
    pub mtu: u16,
}

/// A destination that users may have.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Destination {
    /// Address and port.
    pub to: SocketAddr,
    /// The next hop; `None` while it is not known.
    pub next_hop: Option<NextHop>,
}

/// So many packets per second, and so many at once.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limit {
    /// Packets per second.
    pub rate: u32,
    /// Packets at once.
    pub burst: u32,
}

/// A user.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct User {
    /// Index of the user's entry; fixes egress address and port.
    pub slot: u32,
    /// The random part of the handle.
    pub salt: u32,
    /// Key of the tag.
    pub key: [u8; 16],
    /// The user's destination, one of the world's.
    pub to: SocketAddr,
    /// Packets per second.
    pub rate: u32,
    /// Packets at once.
    pub burst: u32,
    /// Of its downlink packets; `None` for as many as come.
    pub down_limit: Option<Limit>,
    /// When the grant ends, in nanoseconds on the lab's clock.
    pub expires_ns: Option<u64>,
}

/// How a token travels.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Carrier {
    /// At the front of the UDP payload.
    Udp,
    /// In an IPv4 option.
    IpOption,
}

impl From<config::Carrier> for Carrier {
    fn from(carrier: config::Carrier) -> Self {
        match carrier {
            config::Carrier::Udp => Self::Udp,
            config::Carrier::IpOption => Self::IpOption,
        }
    }
}

/// A relay and everybody around it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct World {
    /// MAC address of the relay's first interface.
    pub mac: [u8; 6],
    /// The interfaces after the first one.
    pub more_interfaces: Vec<Interface>,
    /// The relay's id.
    pub relay_id: u32,
    /// Key of the header protection; `None` without.
    pub header_key: Option<[u8; 16]>,
    /// How tokens travel.
    pub carriers: Vec<Carrier>,
    /// Where clients send to.
    pub listeners: Vec<SocketAddr>,
    /// Where relayed packets come from.
    pub egress: Vec<IpAddr>,
    /// First egress port.
    pub first_egress_port: u16,
    /// Egress ports of each egress address.
    pub egress_ports: u16,
    /// Slots.
    pub max_users: u32,
    /// Whether unsolicited packets are dropped.
    pub drop_unmatched: bool,
    /// Largest IP packet that fits the link of the first interface, in bytes.
    pub mtu: u16,
    /// How many bytes of a frame are in its first buffer, the rest being in others; `None` for frames in one buffer.
    pub first_buffer: Option<usize>,
    /// ICMP messages that the relay sends per second, to all together; 0 for none.
    pub icmp_per_second: u32,
    /// Of the packets of all users of a destination together; `None` for as many as they may send.
    pub destination_limit: Option<Limit>,
    /// Whether VLAN tags are read and kept.
    pub vlan: bool,
    /// Whether time is the lab's; otherwise it is the kernel's, as in production.
    pub lab_clock: bool,
    /// One drop in this many of each reason becomes an event (a power of two), 0 for none.
    pub event_sample: u32,
    /// One packet in this many is timed (a power of two), 0 for none.
    pub latency_sample: u32,
    /// Destinations.
    pub destinations: Vec<Destination>,
    /// Users.
    pub users: Vec<User>,
}

impl World {
    /// A relay without users or destinations, with addresses from the documentation ranges: two egress addresses of
    /// each family with 8 ports each, the first of them the listener's too.
    #[must_use]
    pub fn new() -> Self {
        Self {
            mac: [0x02, 0, 0, 0, 0, 0x01],
            more_interfaces: Vec::new(),
            relay_id: 7,
            header_key: None,
            carriers: vec![Carrier::Udp],
            listeners: ["192.0.2.1:4500", "[2001:db8::1]:4500"].map(address).to_vec(),
            egress: ["192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2"]
                .map(address)
                .to_vec(),
            first_egress_port: 10_000,
            egress_ports: 8,
            max_users: 16,
            drop_unmatched: false,
            mtu: 1500,
            first_buffer: None,
            icmp_per_second: 1_000,
            destination_limit: None,
            vlan: false,
            lab_clock: true,
            event_sample: 0,
            latency_sample: 0,
            destinations: Vec::new(),
            users: Vec::new(),
        }
    }

    /// With this destination.
    #[must_use]
    pub fn with_destination(mut self, destination: Destination) -> Self {
        self.destinations.push(destination);
        self
    }

    /// With this user.
    #[must_use]
    pub fn with_user(mut self, user: User) -> Self {
        self.users.push(user);
        self
    }

    /// How many bytes of a frame are in its first buffer.
    #[must_use]
    pub fn in_first_buffer(&self, frame: &[u8]) -> usize {
        self.first_buffer.map_or(frame.len(), |bytes| bytes.min(frame.len()))
    }

    /// All interfaces, by number.
    #[must_use]
    pub fn interfaces(&self) -> Vec<Interface> {
        let first = Interface {
            mac: self.mac,
            mtu: self.mtu,
        };
        let mut all = vec![first];
        all.extend(&self.more_interfaces);
        all
    }

    /// Whether tokens travel so.
    #[must_use]
    pub fn takes(&self, carrier: Carrier) -> bool {
        self.carriers.contains(&carrier)
    }

    /// The grant of the user in a slot.
    #[must_use]
    pub fn grant(&self, slot: u32) -> Option<Grant> {
        let user = self.users.iter().find(|user| user.slot == slot)?;
        Some(Grant {
            slot,
            salt: user.salt,
            key: user.key,
            header_key: self.header_key,
            relay_id: self.relay_id,
        })
    }

    /// The egress addresses of one family.
    #[must_use]
    pub fn egress_of(&self, v4: bool) -> Vec<IpAddr> {
        self.egress
            .iter()
            .copied()
            .filter(|address| address.is_ipv4() == v4)
            .collect()
    }

    /// The egress address and port of a slot, towards a destination of this family; `None` past the last one.
    #[must_use]
    pub fn egress_endpoint(&self, slot: u32, v4: bool) -> Option<SocketAddr> {
        let ports = u32::from(self.egress_ports);
        let address = *self.egress_of(v4).get((slot / ports) as usize)?;
        Some(SocketAddr::new(address, self.first_egress_port + (slot % ports) as u16))
    }
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

/// An address that is written in the source.
///
/// # Panics
/// If it is none.
#[must_use]
pub fn address<A: std::str::FromStr>(text: &str) -> A {
    text.parse().ok().unwrap_or_else(|| panic!("not an address: {text}"))
}
