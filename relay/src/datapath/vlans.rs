//! VLAN devices on top of the relay's interfaces: what the kernel sends by one of them leaves by the interface below,
//! with the tag that the device stands for.

use std::collections::HashMap;

use relay_ebpf::wire::{
    Be16,
    vlan::{DOT1AD, DOT1Q, MAX_TAGS, Tags},
};
use rtnetlink::packet_route::link::{
    InfoData, InfoKind, InfoVlan, LinkAttribute, LinkInfo, LinkMessage, VlanProtocol, VlanQosMapping,
};

use super::numbers::Numbered;

/// The VLAN devices of the network namespace, by their indices.
#[derive(Debug, Default, Eq, PartialEq)]
pub(super) struct Vlans(HashMap<u32, Device>);

#[derive(Debug, Eq, PartialEq)]
struct Device {
    /// The index of the interface below.
    below: u32,
    kind: Be16,
    control: u16,
    mtu: u32,
}

/// A link that frames are sent by.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Link {
    /// The number of the relay's interface.
    pub interface: u8,
    /// The VLAN tags of frames.
    pub tags: Tags,
    /// The largest IP packet, in bytes.
    pub mtu: u32,
}

impl Vlans {
    /// Takes in what the kernel says of an interface, if that is a VLAN device.
    pub(super) fn take(&mut self, link: &LinkMessage) {
        if let Some(device) = Device::of(link) {
            self.0.insert(link.header.index, device);
        }
    }

    /// The link that the interface with this index is: one of the relay's, or a VLAN device on top of one, perhaps by
    /// way of another.
    pub(super) fn link(&self, index: u32, interfaces: &Numbered) -> Option<Link> {
        let (mut index, mut tags, mut mtu) = (index, Vec::new(), u32::MAX);
        loop {
            if let Some((number, interface)) = interfaces.iter().find(|(_, interface)| interface.index == index) {
                return Some(Link {
                    interface: number,
                    tags: Tags::new(&tags),
                    mtu: mtu.min(interface.mtu),
                });
            }
            let device = self.0.get(&index).filter(|_| tags.len() < MAX_TAGS)?;
            tags.insert(0, (device.kind, device.control));
            mtu = mtu.min(device.mtu);
            index = device.below;
        }
    }
}

impl Device {
    fn of(link: &LinkMessage) -> Option<Self> {
        let (mut below, mut mtu, mut vlan) = (None, u32::MAX, None);
        for attribute in &link.attributes {
            match attribute {
                LinkAttribute::Link(index) => below = Some(*index),
                LinkAttribute::Mtu(bytes) => mtu = *bytes,
                LinkAttribute::LinkInfo(infos) if infos.contains(&LinkInfo::Kind(InfoKind::Vlan)) => vlan = Some(infos),
                // What is below is in another network namespace, and its index means something there.
                LinkAttribute::LinkNetNsId(_) => return None,
                _ => {}
            }
        }
        let (mut kind, mut id, mut priority) = (DOT1Q, None, 0);
        for info in vlan? {
            let LinkInfo::Data(InfoData::Vlan(infos)) = info else {
                continue;
            };
            for info in infos {
                match info {
                    InfoVlan::Id(number) => id = Some(*number),
                    InfoVlan::Protocol(VlanProtocol::Ieee8021Ad) => kind = DOT1AD,
                    InfoVlan::EgressQos(mappings) => priority = priority_of_most(mappings),
                    _ => {}
                }
            }
        }
        Some(Self {
            below: below?,
            kind,
            control: priority << 13 | id?,
            mtu,
        })
    }
}

/// The priority in the tags of packets that have none of their own in the kernel (0), as all of the relay's.
fn priority_of_most(mappings: &[VlanQosMapping]) -> u16 {
    let of_most = mappings.iter().find_map(|mapping| match mapping {
        VlanQosMapping::Mapping(0, priority) => Some(*priority),
        _ => None,
    });
    of_most.map_or(0, |priority| (priority & 7) as u16)
}

#[cfg(test)]
mod tests {
    use relay_ebpf::wire::Mac;
    use rtnetlink::packet_route::link::LinkHeader;

    use super::*;
    use crate::datapath::{interface::Interface, maps::Ports};

    /// A message as `ip link add link BELOW type vlan proto KIND id ID` makes the kernel send.
    fn device(index: u32, below: u32, kind: VlanProtocol, id: u16, more: Vec<InfoVlan>) -> LinkMessage {
        let mut data = vec![InfoVlan::Id(id), InfoVlan::Protocol(kind)];
        data.extend(more);
        let mut message = LinkMessage::default();
        message.header = LinkHeader {
            index,
            ..LinkHeader::default()
        };
        message.attributes = vec![
            LinkAttribute::Mtu(1496),
            LinkAttribute::Link(below),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Vlan),
                LinkInfo::Data(InfoData::Vlan(data)),
            ]),
        ];
        message
    }

    fn interfaces() -> Numbered {
        let interface = |index: u32| Interface {
            name: format!("eth{index}"),
            index,
            mac: Mac::new([2, 0, 0, 0, 0, index as u8]),
            mtu: 1500,
            up: true,
            program: None,
            driver: None,
            rx_queues: 1,
            tx_queues: 1,
        };
        Numbered::new(vec![interface(4), interface(5)], &Ports::default())
    }

    /// The interface's number, the tags from the outside in, and the MTU.
    type Link = (u8, Vec<(Be16, u16)>, u32);

    fn link(messages: &[LinkMessage], index: u32) -> Option<Link> {
        let mut vlans = Vlans::default();
        messages.iter().for_each(|message| vlans.take(message));
        let link = vlans.link(index, &interfaces())?;
        Some((link.interface, link.tags.iter().collect(), link.mtu))
    }

    #[test]
    fn a_device_stands_for_a_tag_on_the_interface_below() {
        let plain = device(20, 5, VlanProtocol::Ieee8021Q, 100, Vec::new());
        assert_eq!(link(&[], 4), Some((0, vec![], 1500)));
        assert_eq!(link(&[plain], 20), Some((1, vec![(DOT1Q, 100)], 1496)));
    }

    #[test]
    fn a_device_on_top_of_another_adds_the_inner_tag() {
        let outer = device(20, 4, VlanProtocol::Ieee8021Ad, 200, Vec::new());
        let inner = device(21, 20, VlanProtocol::Ieee8021Q, 300, Vec::new());
        let third = device(22, 21, VlanProtocol::Ieee8021Q, 400, Vec::new());
        let all = [third, inner, outer];
        assert_eq!(link(&all, 21), Some((0, vec![(DOT1AD, 200), (DOT1Q, 300)], 1496)));
        assert_eq!(link(&all, 22), None, "three tags");
    }

    #[test]
    fn a_device_gives_the_priority_that_it_maps_ordinary_packets_to() {
        let mappings = vec![VlanQosMapping::Mapping(6, 7), VlanQosMapping::Mapping(0, 5)];
        let mapped = device(20, 4, VlanProtocol::Ieee8021Q, 1, vec![InfoVlan::EgressQos(mappings)]);
        assert_eq!(link(&[mapped], 20), Some((0, vec![(DOT1Q, 5 << 13 | 1)], 1496)));
    }

    #[test]
    fn what_leads_elsewhere_is_no_link() {
        let elsewhere = device(20, 9, VlanProtocol::Ieee8021Q, 100, Vec::new());
        let around = device(21, 21, VlanProtocol::Ieee8021Q, 100, Vec::new());
        let mut foreign = device(22, 4, VlanProtocol::Ieee8021Q, 100, Vec::new());
        foreign.attributes.push(LinkAttribute::LinkNetNsId(0));
        let all = [elsewhere, around, foreign];
        for index in [9, 20, 21, 22] {
            assert_eq!(link(&all, index), None, "{index}");
        }
    }
}
