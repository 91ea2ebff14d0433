//! What of a scenario can come through sockets: a rule for frames, and a backend that only applies it.

use std::{
    cell::Cell,
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    rc::Rc,
};

use ipnet::IpNet;

use super::{Backend, BackendError, Counters, Processed, UserState, host::HostBackend};
use crate::{
    inspect::{IpHeader, UdpFrameView, Unreadable},
    observe::Verdict,
    world::{Carrier, NextHop, User, World},
};

/// Which frames are datagrams that a relay's sockets receive, and no more and no less than what the frames are.
#[derive(Clone, Debug)]
pub struct Fit {
    world: World,
    /// Where there are egress sockets, by slot.
    egress: HashMap<u32, SocketAddr>,
    /// The MAC address that each sender's packets came from.
    macs: HashMap<SocketAddr, [u8; 6]>,
}

impl Fit {
    /// What fits the relay of this world, as it is at the start.
    #[must_use]
    pub fn new(world: &World) -> Self {
        let mut fit = Self {
            world: world.clone(),
            egress: HashMap::new(),
            macs: HashMap::new(),
        };
        world.users.iter().for_each(|user| fit.open(user));
        fit
    }

    /// The world, with its next hops as they are now.
    pub(super) fn world(&self) -> &World {
        &self.world
    }

    /// There is a user.
    pub fn open(&mut self, user: &User) {
        match self.world.egress_endpoint(user.slot, user.to.is_ipv4()) {
            Some(address) => self.egress.insert(user.slot, address),
            None => self.egress.remove(&user.slot),
        };
    }

    /// There is no user any more.
    pub fn close(&mut self, slot: u32) {
        self.egress.remove(&slot);
    }

    /// A frame was sent.
    pub fn see(&mut self, input: &UdpFrameView) {
        self.macs.entry(input.from).or_insert(input.from_mac);
    }

    pub(super) fn set_next_hop(&mut self, to: SocketAddr, next_hop: Option<NextHop>) {
        for destination in self.world.destinations.iter_mut().filter(|known| known.to == to) {
            destination.next_hop = next_hop;
        }
    }

    /// The MAC address of a destination's next hop, or of a client's.
    pub(super) fn mac_of(&self, to: SocketAddr) -> Option<[u8; 6]> {
        let mut destinations = self.world.destinations.iter();
        let next_hop = destinations
            .find(|destination| destination.to == to)
            .and_then(|known| known.next_hop);
        self.macs.get(&to).copied().or(next_hop.map(|hop| hop.mac))
    }

    /// Why a frame is nothing that comes through a socket as it is; none if it does.
    #[must_use]
    pub fn misfit(&self, frame: &[u8]) -> Option<&'static str> {
        let input = match UdpFrameView::read(frame) {
            Ok(input) => input,
            Err(Unreadable::Fragment) => return Some("the kernel keeps fragments until the packet is whole"),
            Err(_) => return Some("a frame that is not one whole UDP packet reaches no socket"),
        };
        let ip_bytes = if input.from.is_ipv4() { 20 } else { 40 };
        let is_own = |address: IpAddr| own_addresses(&self.world).any(|own| own == address);
        let has_options = matches!(input.ip, IpHeader::V4 { option_bytes: 1.., .. });
        let has_reserved_flag = input.from.is_ipv4() && frame.get(20).is_some_and(|flags| flags & 0x80 != 0);
        let is_of_frame = frame.len() == 14 + ip_bytes + 8 + input.payload.len();
        let is_heard = self.world.listeners.contains(&input.to) || self.egress.values().any(|own| *own == input.to);
        let is_sender = is_sender(input.from) && !is_own(input.from.ip());
        let moved = self.macs.get(&input.from).is_some_and(|mac| *mac != input.from_mac);
        let rules = [
            (
                self.world.interfaces().len() > 1,
                "a socket does not tell of interfaces, nor chooses among them",
            ),
            (
                self.world.first_buffer.is_some(),
                "a socket does not tell of buffers: a datagram is in one",
            ),
            (
                self.world.takes(Carrier::IpOption),
                "tokens in IP options do not come through sockets",
            ),
            (self.world.vlan, "a socket does not tell of VLAN tags"),
            (
                input.to_mac != self.world.mac,
                "a frame for another MAC address is not the host's",
            ),
            (has_options, "a socket does not tell of IP options"),
            (has_reserved_flag, "a socket does not tell of IPv4's reserved flag"),
            (!is_of_frame, "a socket does not tell of bytes behind the datagram"),
            (
                !input.has_right_checksums(),
                "the kernel drops what has a wrong checksum",
            ),
            (
                !is_heard,
                "a packet that is for none of the relay's sockets is never seen",
            ),
            (
                !is_sender,
                "the kernel drops what comes from an address that is no other host's",
            ),
            (moved, "a socket does not tell that a sender has another MAC address"),
        ];
        rules.into_iter().find_map(|(applies, why)| applies.then_some(why))
    }
}

/// Whether the kernel takes packets from this address and port, and sends any there.
fn is_sender(address: SocketAddr) -> bool {
    let is_host = match address.ip() {
        IpAddr::V4(v4) => !(v4.is_loopback() || v4.is_multicast() || v4.is_broadcast() || v4.octets()[0] == 0),
        IpAddr::V6(v6) => {
            let is_local = v6.is_loopback() || v6.is_unspecified() || v6.is_unicast_link_local();
            !(is_local || v6.is_multicast() || v6.to_ipv4_mapped().is_some())
        }
    };
    is_host && address.port() != 0
}

/// The addresses that are the relay's.
pub(super) fn own_addresses(world: &World) -> impl Iterator<Item = IpAddr> {
    let listeners = world.listeners.iter().map(SocketAddr::ip);
    listeners.chain(world.egress.iter().copied())
}

/// A backend that looks for a frame which no socket receives as it is.
pub struct Probe {
    host: HostBackend,
    fit: Fit,
    found: Rc<Cell<Option<&'static str>>>,
}

impl Probe {
    /// For this world; the reason why the first such frame is one will be in `found`.
    ///
    /// # Errors
    /// If the world is larger than a relay.
    pub fn new(world: &World, found: Rc<Cell<Option<&'static str>>>) -> Result<Self, BackendError> {
        Ok(Self {
            host: HostBackend::new(world)?,
            fit: Fit::new(world),
            found,
        })
    }
}

impl Backend for Probe {
    fn name(&self) -> &'static str {
        self.host.name()
    }

    fn takes(&self, frame: &[u8]) -> bool {
        self.host.takes(frame)
    }

    fn process_on(&mut self, now_ns: u64, interface: u8, frame: &[u8]) -> Result<Processed, BackendError> {
        let misfit = self.fit.misfit(frame);
        self.found.set(self.found.get().or(misfit));
        if let Ok(input) = UdpFrameView::read(frame) {
            self.fit.see(&input);
        }
        let processed = self.host.process_on(now_ns, interface, frame)?;
        if processed.verdict == Verdict::Tx && UdpFrameView::read(&processed.frame).is_err() {
            let why = "sockets send no ICMP";
            self.found.set(self.found.get().or(Some(why)));
        }
        Ok(processed)
    }

    fn counters(&self) -> Result<Counters, BackendError> {
        self.host.counters()
    }

    fn answers(&self) -> Result<u64, BackendError> {
        self.host.answers()
    }

    fn destination_tat(&self, to: SocketAddr) -> u64 {
        self.host.destination_tat(to)
    }

    fn forget_shared_limits(&mut self) {
        self.host.forget_shared_limits();
    }

    fn user(&self, slot: u32) -> UserState {
        self.host.user(slot)
    }

    fn publish(&mut self, user: &User) -> Result<(), BackendError> {
        self.fit.open(user);
        self.host.publish(user)
    }

    fn remove(&mut self, slot: u32) {
        self.fit.close(slot);
        self.host.remove(slot);
    }

    fn set_next_hop(&mut self, to: SocketAddr, next_hop: Option<NextHop>) -> Result<(), BackendError> {
        self.host.set_next_hop(to, next_hop)
    }

    fn set_blocklist(&mut self, prefixes: &[IpNet]) -> Result<(), BackendError> {
        self.host.set_blocklist(prefixes)
    }
}
