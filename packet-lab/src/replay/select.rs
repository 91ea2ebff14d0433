//! Which frames of a capture go to the relay.

use std::net::{IpAddr, SocketAddr};

use crate::{
    capture::{LinkType, Packet},
    inspect::Outline,
    world::World,
};

/// What a captured frame is to a relay.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Concern {
    /// It was sent to the relay: it is input.
    Input,
    /// The relay, or its host, sent it.
    FromRelay,
    /// It was sent to somebody else, or to everybody.
    Others,
}

/// Tells the frames that were sent to a relay from the others.
#[derive(Clone, Debug)]
pub struct Selector {
    mac: [u8; 6],
    addresses: Vec<IpAddr>,
}

impl Selector {
    /// For the relay of this world, whose interface had the MAC address `captured_mac` when the capture was taken.
    #[must_use]
    pub fn new(world: &World, captured_mac: [u8; 6]) -> Self {
        Self {
            mac: captured_mac,
            addresses: addresses_of(&world.listeners, &world.egress),
        }
    }

    /// What a packet is to the relay: by its MAC addresses; where these were not captured or are the same, as on a
    /// loopback interface, by its IP addresses.
    #[must_use]
    pub fn concern(&self, packet: &Packet) -> Concern {
        let to = packet.data.get(0..6);
        let from = packet.data.get(6..12);
        if packet.link != LinkType::Ethernet || to == from {
            return self.concern_by_address(&packet.data);
        }
        if to == Some(&self.mac) {
            Concern::Input
        } else if from == Some(&self.mac) {
            Concern::FromRelay
        } else {
            Concern::Others
        }
    }

    fn concern_by_address(&self, frame: &[u8]) -> Concern {
        match Outline::of(frame).addresses {
            Some((_, to)) if self.addresses.contains(&to) => Concern::Input,
            Some((from, _)) if self.addresses.contains(&from) => Concern::FromRelay,
            _ => Concern::Others,
        }
    }

    /// Whether a frame that is input can be anything but the host's own business: UDP, or a part of it, to an address of
    /// the relay.
    #[must_use]
    pub fn is_for_data_plane(&self, frame: &[u8]) -> bool {
        let outline = Outline::of(frame);
        outline.is_udp() && outline.addresses.is_some_and(|(_, to)| self.addresses.contains(&to))
    }
}

/// All IP addresses of a relay.
#[must_use]
pub fn addresses_of(listeners: &[SocketAddr], egress: &[IpAddr]) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = listeners
        .iter()
        .map(SocketAddr::ip)
        .chain(egress.iter().copied())
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::{craft::UdpFrame, world::address};

    const RELAY: [u8; 6] = [0x02, 0, 0, 0, 0, 0x01];
    const CLIENT: [u8; 6] = [0x02, 0, 0, 0, 0, 0xc1];

    #[rstest]
    #[case::to_the_relay(CLIENT, RELAY, "192.0.2.1:4500", LinkType::Ethernet, Concern::Input)]
    #[case::whatever_it_is(CLIENT, RELAY, "192.0.2.77:22", LinkType::Ethernet, Concern::Input)]
    #[case::by_the_relay(RELAY, CLIENT, "198.51.100.7:5000", LinkType::Ethernet, Concern::FromRelay)]
    #[case::to_everybody(CLIENT, [0xff; 6], "192.0.2.1:4500", LinkType::Ethernet, Concern::Others)]
    #[case::loopback([0; 6], [0; 6], "192.0.2.1:4500", LinkType::Ethernet, Concern::Input)]
    #[case::cooked(CLIENT, [0; 6], "192.0.2.2:10001", LinkType::LinuxSll, Concern::Input)]
    #[case::cooked_elsewhere(CLIENT, RELAY, "192.0.2.77:4500", LinkType::LinuxSll, Concern::Others)]
    fn frames_are_told_apart_by_mac_address_or_where_there_is_none_by_ip_address(
        #[case] from: [u8; 6],
        #[case] to: [u8; 6],
        #[case] receiver: &str,
        #[case] link: LinkType,
        #[case] expected: Concern,
    ) {
        let mut frame = UdpFrame::new(address("203.0.113.9:40000"), address(receiver), *b"payload").from_mac(from);
        frame.to_mac = to;
        let packet = Packet {
            link,
            ..Packet::new(0, frame.build())
        };
        assert_eq!(Selector::new(&World::new(), RELAY).concern(&packet), expected);
    }
}
