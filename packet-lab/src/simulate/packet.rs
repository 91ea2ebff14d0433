//! The packets of a run: what each is, which the judge knows, and the frame that shows it to the relay.

use std::net::SocketAddr;

use super::{
    class::Class,
    population::{NEXT_HOP, Place, Population},
};
use crate::craft::{Grant, UdpFrame};

/// A packet on its way to the relay.
#[derive(Clone, Debug)]
pub(super) enum Packet {
    /// Sealed, by a client or by somebody who pretends.
    Uplink(Uplink),
    /// From a destination, or somebody who pretends, to a user's egress address and port.
    Downlink(Downlink),
    /// Anything else.
    Other(Other),
}

/// A packet with a token.
#[derive(Clone, Copy, Debug)]
pub(super) struct Uplink {
    /// Who sent it.
    pub(super) class: Class,
    /// Whose handle it has.
    pub(super) user: u32,
    /// Which of the user's grants.
    pub(super) grant: u32,
    /// Its packet number.
    pub(super) pn: u64,
    /// Bytes of payload.
    pub(super) bytes: u16,
    /// Where it comes from.
    pub(super) from: Place,
    /// Whether it is sealed with another key than the grant's.
    pub(super) forged: bool,
}

/// A packet to an egress address and port.
#[derive(Clone, Copy, Debug)]
pub(super) struct Downlink {
    /// Who sent it.
    pub(super) class: Class,
    /// Whose egress port it is for.
    pub(super) user: u32,
    /// Where it comes from, if not from the user's destination.
    pub(super) pretender: Option<SocketAddr>,
    /// What its payload starts with.
    pub(super) number: u64,
    /// Bytes of payload.
    pub(super) bytes: u16,
}

/// A packet that is neither.
#[derive(Clone, Copy, Debug)]
pub(super) struct Other {
    /// Who sent it.
    pub(super) class: Class,
    /// What it is.
    pub(super) shape: Shape,
    /// Where it comes from.
    pub(super) from: Place,
    /// What its bytes are made from.
    pub(super) number: u64,
}

/// What is wrong with a packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Shape {
    /// A token of random bytes, and some payload.
    RandomToken,
    /// Fewer bytes than a token.
    Truncated,
    /// The first fragment of a larger packet.
    Fragment,
    /// For another port than a listener's.
    Unrelated,
}

impl Packet {
    pub(super) const fn class(&self) -> Class {
        match self {
            Self::Uplink(uplink) => uplink.class,
            Self::Downlink(downlink) => downlink.class,
            Self::Other(other) => other.class,
        }
    }

    pub(super) const fn is_downlink(&self) -> bool {
        matches!(self, Self::Downlink(_))
    }

    /// The user who it is about, unless an attacker sent it.
    pub(super) const fn owner(&self) -> Option<u32> {
        match self {
            Self::Uplink(uplink) if !uplink.class.is_attack() => Some(uplink.user),
            Self::Downlink(downlink) if !downlink.class.is_attack() => Some(downlink.user),
            _ => None,
        }
    }

    /// The frame that arrives at the relay.
    pub(super) fn build(&self, population: &Population) -> Vec<u8> {
        match self {
            Self::Uplink(uplink) => uplink.build(population),
            Self::Downlink(downlink) => downlink.build(population),
            Self::Other(other) => other.build(population),
        }
    }
}

impl Uplink {
    fn build(&self, population: &Population) -> Vec<u8> {
        let mut grant = population.grant(self.user, self.grant);
        if self.forged {
            grant = Grant {
                key: grant.key.map(|byte| !byte),
                ..grant
            };
        }
        let sealed = grant.seal(self.pn, &payload(self.pn, self.bytes));
        let listener = population.people[self.user as usize].listener;
        UdpFrame::new(self.from.address, listener, sealed)
            .from_mac(self.from.mac)
            .build()
    }
}

impl Downlink {
    fn build(&self, population: &Population) -> Vec<u8> {
        let person = &population.people[self.user as usize];
        let from = self.pretender.unwrap_or(person.to);
        UdpFrame::new(from, person.egress, payload(self.number, self.bytes))
            .from_mac(NEXT_HOP.mac)
            .build()
    }
}

impl Other {
    fn build(&self, population: &Population) -> Vec<u8> {
        let mut to = population.listener(self.from.address.is_ipv4());
        let bytes = match self.shape {
            Shape::RandomToken => 24 + self.number as u16 % 200,
            Shape::Truncated => self.number as u16 % 24,
            Shape::Fragment | Shape::Unrelated => 64,
        };
        if self.shape == Shape::Unrelated {
            to.set_port(53);
        }
        let words =
            (1..=u64::from(bytes.div_ceil(8))).map(|nth| self.number.wrapping_mul(nth | 1).rotate_left(nth as u32));
        let mut noise: Vec<u8> = words.flat_map(u64::to_be_bytes).collect();
        noise.truncate(bytes.into());
        let mut frame = UdpFrame::new(self.from.address, to, noise).from_mac(self.from.mac);
        if self.shape == Shape::Fragment {
            frame = frame.fragment(0, true);
        }
        frame.build()
    }
}

/// Payload that shows which packet it is of.
fn payload(number: u64, bytes: u16) -> Vec<u8> {
    let mut payload = vec![number as u8; bytes.into()];
    for (byte, of_number) in payload.iter_mut().zip(number.to_be_bytes()) {
        *byte = of_number;
    }
    payload
}
