//! An independent model of the relay, written from the protocol document alone. It is meant to be read beside it: the
//! functions `uplink` and `downlink` follow the document's steps in its order and words. It is slow and plain: users are
//! a list, the replay window is a set of numbers, addresses are std's, headers are etherparse's, tags are the siphasher
//! crate's, and a packet that is sent is built from what was read. Nothing of it is shared with the data plane but the
//! names of reasons and directions.
//!
//! Where the document could be read in two ways, this is the reading; the document says the same under "Frames and
//! headers":
//!
//! - A frame is Ethernet II, with at most two VLAN tags where the operator has them read [`vlan`]. Its destination MAC address
//!   is not looked at. Whatever cannot be read up to and including a UDP header (another `EtherType` or protocol, a version
//!   that is not the `EtherType`'s, an IPv4 header length below 20 bytes, a frame that ends before) is not known to be for
//!   anybody: `unrelated`; nor is an IPv6 packet from or to an IPv4-mapped address. [`packet`]
//! - Of a frame in several buffers the same holds of the first: what of the UDP header is not in it cannot be read. A token
//!   that is not whole in it is `truncated`, and an ICMP message that is larger than it is not sent.
//! - The header checksum of IPv4 is not verified, nor is UDP's. [`rewrite`]
//! - A fragment is an IPv4 packet with More Fragments set, or an IPv6 packet with a Fragment header, even where that is
//!   the only fragment. One with an offset is `unrelated`. [`packet`]
//! - Headers claim more than came if the UDP datagram ends behind the IP packet, the IP packet behind the frame, or the
//!   UDP length is below 8. [`packet::Packet::payload`]
//! - A grant is good up to and including the nanosecond of its expiry.
//! - The interval between packets at a user's rate is a whole number of nanoseconds, rounded down. [`rate`]
//! - Numbers count as accepted from step 6 on, whatever becomes of the packet after it. [`window`]
//! - A user whose slot has no egress address of the destination's family is `destination_unresolved`.
//! - Options and extension headers are not forwarded in either direction, nor reflected. Bytes of the frame behind the
//!   UDP datagram stay in the frame, behind the IP packet. [`rewrite`]
//! - A client that sends from MAC address 00:00:00:00:00:00 and port 0 is not known afterwards.

pub mod errors;
pub mod packet;
pub mod path_errors;
pub mod rate;
pub mod rewrite;
pub mod token;
pub mod vlan;
pub mod window;

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use relay_ebpf::verdict::{Direction, Reason};

use self::{
    packet::{Packet, sent_bytes},
    path_errors::{PathError, Receiver},
    rate::Bucket,
    rewrite::Outside,
    window::Window,
};
use crate::{
    Verdict,
    world::{Carrier, Destination, Interface, NextHop, Tags, User, World},
};

/// Most bytes of payload that a UDP checksum is computed over.
const MAX_SUMMED_BYTES: usize = 9216;
/// TTL or hop limit of a reflected ping.
const PING_HOP_LIMIT: u8 = 64;

/// What becomes of a frame.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Judgement {
    /// Which way it was going; uplink where that is not known.
    pub direction: Direction,
    /// Why it is treated so.
    pub reason: Reason,
    /// What the kernel is told: to transmit it, if anything is sent.
    pub verdict: Verdict,
    /// The number of the interface that it is sent out of, if it is.
    pub egress: Option<u8>,
    /// The frame afterwards.
    pub frame: Vec<u8>,
    /// Bytes of the frame that are counted.
    pub counted_bytes: u64,
    /// Whether that is an ICMP message: to its sender, or to the client whose packet it was about.
    pub answered: bool,
    /// The slot whose memory may have changed.
    pub slot: Option<u32>,
}

/// Where a user's client is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Client {
    /// Its address and port.
    pub address: SocketAddr,
    /// The MAC address that it was last heard from.
    pub mac: [u8; 6],
    /// The listener that it spoke to.
    pub listener: SocketAddr,
    /// The number of the interface that it was last heard by.
    pub interface: u8,
    /// The VLAN tags that its frame had.
    pub tags: Tags,
    /// The blocklist that its address was checked against, by the number that [`Oracle::set_blocklist`] gave it.
    pub blocklist_generation: u16,
}

/// What the relay remembers of the packets of one slot's user.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    /// The packet numbers that were accepted.
    pub window: Window,
    /// What is spent of the rate.
    pub bucket: Bucket,
    /// What is spent of the downlink's rate, if that has one.
    pub down_bucket: Bucket,
    /// Where the client is, once that is known.
    pub client: Option<Client>,
    /// Lengths of the payloads that were relayed uplink.
    pub uplink: Relayed,
    /// Lengths of the payloads that were relayed downlink.
    pub downlink: Relayed,
}

/// How much was relayed.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Relayed {
    /// Packets.
    pub packets: u64,
    /// Bytes of payload.
    pub bytes: u64,
}

impl Relayed {
    fn add(&mut self, payload: &[u8]) {
        self.packets += 1;
        self.bytes += payload.len() as u64;
    }
}

/// A model of one relay.
#[derive(Clone, Debug)]
pub struct Oracle {
    /// Its configuration. Users and destinations are as they were at the start.
    world: World,
    users: Vec<Option<User>>,
    memories: Vec<Memory>,
    destinations: Vec<Destination>,
    blocklist: Vec<IpNet>,
    blocklist_generation: u16,
    /// What is spent of the limit of ICMP messages.
    messages: Bucket,
    /// What the users of each destination have spent of its limit, by their order in `destinations`.
    sent_to: Vec<Bucket>,
    /// The slot whose memory the frame at hand may have changed.
    touched: Option<u32>,
}

/// A frame that is sent, by which interface, and why.
#[derive(Debug)]
struct Sent {
    reason: Reason,
    interface: u8,
    frame: Vec<u8>,
}

impl Oracle {
    /// A relay with the configuration and the destinations of this world, and no users.
    #[must_use]
    pub fn new(world: &World) -> Self {
        let slots = world.max_users as usize;
        Self {
            world: world.clone(),
            users: vec![None; slots],
            memories: vec![Memory::default(); slots],
            destinations: world.destinations.clone(),
            blocklist: Vec::new(),
            blocklist_generation: 0,
            messages: Bucket::default(),
            sent_to: vec![Bucket::default(); world.destinations.len()],
            touched: None,
        }
    }

    /// What becomes of a frame that comes in at this time by the interface with this number.
    pub fn judge(&mut self, now_ns: u64, interface: u8, frame: &[u8]) -> Judgement {
        self.touched = None;
        let (direction, outcome) = self.direct(now_ns, interface, frame);
        let counted_bytes = self.counted_bytes(frame) as u64;
        let (reason, egress, frame) = match outcome {
            Ok(sent) => (sent.reason, Some(sent.interface), sent.frame),
            Err(reason) => (reason, None, frame.to_vec()),
        };
        let verdict = match reason {
            _ if egress == Some(interface) => Verdict::Tx,
            _ if egress.is_some() => Verdict::Redirect,
            Reason::Unrelated => Verdict::Pass,
            Reason::Unsolicited if !self.world.drop_unmatched => Verdict::Pass,
            _ => Verdict::Drop,
        };
        Judgement {
            direction,
            reason,
            verdict,
            egress,
            frame,
            counted_bytes,
            answered: egress.is_some() && matches!(reason, Reason::TooBig | Reason::IcmpError),
            slot: self.touched,
        }
    }

    /// The tags of a frame, where frames have tags, and the frame without them.
    fn untagged(&self, frame: &[u8]) -> (Tags, Vec<u8>) {
        if self.world.vlan {
            vlan::split(frame)
        } else {
            (Tags::NONE, frame.to_vec())
        }
    }

    /// As many as the relay knows the frame to have.
    fn counted_bytes(&self, frame: &[u8]) -> usize {
        let (tags, untagged) = self.untagged(frame);
        let tagged = tags.bytes().len();
        let first_buffer = self.world.in_first_buffer(frame);
        match first_buffer.checked_sub(tagged) {
            Some(untagged_bytes) => packet::counted_bytes(&untagged, untagged_bytes) + tagged,
            None => first_buffer,
        }
    }

    /// Is it for a listener, an egress address and port, or neither?
    fn direct(&mut self, now_ns: u64, interface: u8, frame: &[u8]) -> (Direction, Result<Sent, Reason>) {
        // Where frames have no tags, a tag's kind is an EtherType like others that are nobody's.
        let (tags, untagged) = self.untagged(frame);
        let unrelated = (Direction::Uplink, Err(Reason::Unrelated));
        let Some(packet) = Packet::read(&untagged) else {
            let error = if tags == Tags::NONE {
                self.path_error(now_ns, frame)
            } else {
                None
            };
            return error.map_or(unrelated, |sent| (Direction::Downlink, Ok(sent)));
        };
        let ingress = Ingress {
            interface,
            tags,
            first_buffer: self.world.in_first_buffer(frame).saturating_sub(tags.bytes().len()),
        };
        if packet.payload_at() > ingress.first_buffer {
            return unrelated;
        }
        if self.world.listeners.contains(&packet.destination()) {
            return (Direction::Uplink, self.uplink(now_ns, ingress, &packet));
        }
        if let Some(slot) = self.slot_of_egress(packet.destination()) {
            return (Direction::Downlink, self.downlink(now_ns, ingress, &packet, slot));
        }
        unrelated
    }

    /// "What the relay does: uplink". The numbers are the document's.
    ///
    /// # Errors
    /// The reason why it is not sent.
    fn uplink(&mut self, now_ns: u64, ingress: Ingress, packet: &Packet) -> Result<Sent, Reason> {
        let listener = packet.destination();

        // 2. Is it whole?
        if packet.is_fragment() {
            return Err(Reason::Fragment);
        }
        let datagram = packet.payload().ok_or(Reason::Truncated)?;
        let (carrier, sealed, payload) = self
            .token_of(packet, ingress.first_buffer, datagram)
            .ok_or(Reason::Truncated)?;

        // 3. Does the handle exist?
        let token = token::read(sealed, self.world.header_key.as_ref());
        let slot = token.slot as usize;
        let user = self.users.get(slot).copied().flatten();
        let user = user
            .filter(|user| user.salt == token.salt)
            .ok_or(Reason::UnknownSession)?;

        // 4. Is the tag right?
        if token.tag != token.right_tag(&user.key, payload.len() as u16, self.world.relay_id) {
            return Err(Reason::BadToken);
        }

        // 5. Has the grant expired?
        if user.expires_ns.is_some_and(|expires_ns| now_ns > expires_ns) {
            return Err(Reason::Expired);
        }

        // 6. Is the packet number new?
        self.touched = Some(token.slot);
        let memory = &mut self.memories[slot];
        let is_newest = memory.window.accept(token.pn).ok_or(Reason::Replayed)?;

        // 7. Is the source blocked? The document looks it up only where the answer may differ from the last one.
        let source = packet.source();
        if self.blocklist.iter().any(|prefix| prefix.contains(&source.ip())) {
            return Err(Reason::BlockedSource);
        }

        // 8. Is there budget left?
        if !memory.bucket.take(user.rate, user.burst, now_ns) {
            return Err(Reason::RateLimited);
        }

        // 9. Roaming.
        if is_newest {
            let client = Client {
                address: source,
                mac: packet.source_mac(),
                listener,
                interface: ingress.interface,
                tags: ingress.tags,
                blocklist_generation: self.blocklist_generation,
            };
            let nobody = client.mac == [0; 6] && client.address.port() == 0;
            memory.client = (!nobody).then_some(client);
        }

        // 10. Is it a ping?
        if payload.is_empty() {
            return Ok(Sent {
                reason: Reason::Ping,
                interface: ingress.interface,
                frame: vlan::join(
                    ingress.tags,
                    self.reflected(ingress.interface, packet, datagram, carrier),
                ),
            });
        }

        // 11. Where to?
        let unresolved = Reason::DestinationUnresolved;
        let egress = self.egress_of_slot(token.slot, user.to).ok_or(unresolved)?;
        let destination = self.destinations.iter().position(|known| known.to == user.to);
        let destination = destination.ok_or(unresolved)?;
        let next_hop = self.destinations[destination].next_hop.ok_or(unresolved)?;

        // 12. May it travel on?
        if packet.hop_limit() <= 1 {
            return Err(Reason::TtlExpired);
        }
        if sent_bytes(user.to.ip(), payload) > usize::from(next_hop.mtu) {
            return self.too_big(
                now_ns,
                ingress,
                packet,
                user.to,
                next_hop.mtu,
                datagram.len() - payload.len(),
            );
        }

        // 13. May the destination get more?
        if let Some(limit) = self.world.destination_limit
            && !self.sent_to[destination].take(limit.rate, limit.burst, now_ns)
        {
            return Err(Reason::DestinationLimited);
        }

        // 14. Relay it.
        if is_too_long_to_sum(packet, user.to, payload) {
            return Err(Reason::TooBig);
        }
        let memory = &mut self.memories[slot];
        memory.uplink.add(payload);
        let outside = Outside {
            from_mac: self.interface(next_hop.interface).mac,
            to_mac: next_hop.mac,
            from: egress,
            to: user.to,
            hop_limit: packet.hop_limit() - 1,
        };
        Ok(Sent {
            reason: Reason::Relayed,
            interface: next_hop.interface,
            frame: vlan::join(self.known(next_hop.tags), rewrite::rewrite(packet, &outside, payload)),
        })
    }

    /// The datagram goes back to its sender as it came, by the interface that it came by.
    fn reflected(&self, interface: u8, packet: &Packet, datagram: &[u8], carrier: Carrier) -> Vec<u8> {
        let outside = Outside {
            from_mac: self.interface(interface).mac,
            to_mac: packet.source_mac(),
            from: packet.destination(),
            to: packet.source(),
            hop_limit: PING_HOP_LIMIT,
        };
        match carrier {
            Carrier::Udp => rewrite::rewrite(packet, &outside, datagram),
            Carrier::IpOption => rewrite::readdress(packet, &outside),
        }
    }

    /// "Carriers": how the token travels, the token, and the payload; `None` if there is no whole token.
    fn token_of<'a>(
        &self,
        packet: &Packet<'a>,
        first_buffer: usize,
        datagram: &'a [u8],
    ) -> Option<(Carrier, &'a [u8; token::TOKEN_BYTES], &'a [u8])> {
        let is_v4 = packet.source().is_ipv4();
        if is_v4 && self.world.takes(Carrier::IpOption) {
            match packet.token_option() {
                Some(token) => return Some((Carrier::IpOption, token.ok()?, datagram)),
                None if self.world.takes(Carrier::Udp) => {}
                None => return None,
            }
        }
        let (token, payload) = datagram.split_first_chunk()?;
        let is_in_first_buffer = packet.payload_at() + token::TOKEN_BYTES <= first_buffer;
        is_in_first_buffer.then_some((Carrier::Udp, token, payload))
    }

    /// "What the relay does: downlink".
    ///
    /// # Errors
    /// The reason why it is not sent.
    fn downlink(&mut self, now_ns: u64, ingress: Ingress, packet: &Packet, slot: u32) -> Result<Sent, Reason> {
        let unsolicited = Reason::Unsolicited;

        // A user has the slot, and the packet comes from exactly the user's destination address and port.
        let user = self.users.get(slot as usize).copied().flatten().ok_or(unsolicited)?;
        if packet.source() != user.to {
            return Err(unsolicited);
        }

        // The client's address is known.
        let client = self.memories[slot as usize].client.ok_or(unsolicited)?;

        if packet.is_fragment() {
            return Err(Reason::Fragment);
        }
        let payload = packet.payload().ok_or(Reason::Truncated)?;

        // Over the limit of the user's downlink, where it has one.
        let memory = &mut self.memories[slot as usize];
        self.touched = Some(slot);
        if let Some(limit) = user.down_limit
            && !memory.down_bucket.take(limit.rate, limit.burst, now_ns)
        {
            return Err(Reason::RateLimited);
        }

        if packet.hop_limit() <= 1 {
            return Err(Reason::TtlExpired);
        }
        let interface = self.interface(client.interface);
        if sent_bytes(client.address.ip(), payload) > usize::from(interface.mtu) {
            return self.too_big(now_ns, ingress, packet, client.address, interface.mtu, 0);
        }
        if is_too_long_to_sum(packet, client.address, payload) {
            return Err(Reason::TooBig);
        }

        self.memories[slot as usize].downlink.add(payload);
        let outside = Outside {
            from_mac: interface.mac,
            to_mac: client.mac,
            from: client.listener,
            to: client.address,
            hop_limit: packet.hop_limit() - 1,
        };
        Ok(Sent {
            reason: Reason::Relayed,
            interface: client.interface,
            frame: vlan::join(client.tags, rewrite::rewrite(packet, &outside, payload)),
        })
    }

    /// The tags that a next hop has, where frames have any.
    fn known(&self, tags: Tags) -> Tags {
        if self.world.vlan { tags } else { Tags::NONE }
    }

    fn interface(&self, number: u8) -> Interface {
        self.world.interfaces()[usize::from(number)]
    }

    /// "Errors": the packet, which goes to `to` without `taken_off` bytes of it, is dropped, and its sender told how large
    /// it may be, if that is to be said and the limit lets it.
    ///
    /// # Errors
    /// That it is too big, where nothing is said.
    fn too_big(
        &mut self,
        now_ns: u64,
        ingress: Ingress,
        packet: &Packet,
        to: SocketAddr,
        mtu: u16,
        taken_off: usize,
    ) -> Result<Sent, Reason> {
        // What a header of the sender's family takes, and one of the receiver's.
        let (outside, inside) = (sent_bytes(packet.source().ip(), &[]), sent_bytes(to.ip(), &[]));
        let mtu = (usize::from(mtu) + taken_off + outside).saturating_sub(inside);
        let message = errors::too_big(packet, self.interface(ingress.interface).mac, mtu).ok_or(Reason::TooBig)?;
        if message.len() > ingress.first_buffer {
            return Err(Reason::TooBig);
        }
        if !self.may_send(now_ns) {
            return Err(Reason::TooBig);
        }
        Ok(Sent {
            reason: Reason::TooBig,
            interface: ingress.interface,
            frame: vlan::join(ingress.tags, message),
        })
    }

    /// "Errors from the path": the message to the client, if this is one about a packet of it, and is to be passed on.
    fn path_error(&mut self, now_ns: u64, frame: &[u8]) -> Option<Sent> {
        let error = PathError::read(frame, self.world.in_first_buffer(frame))?;
        let slot = self.slot_of_egress(error.quoted_source())? as usize;
        let user = self.users.get(slot).copied().flatten()?;
        if error.quoted_destination() != user.to {
            return None;
        }
        // Where there are tags, errors are the host's.
        let client = self.memories[slot].client.filter(|client| client.tags == Tags::NONE)?;
        let is_unknown = client.address.is_ipv4() && self.world.takes(Carrier::IpOption);
        let receiver = Receiver {
            from_mac: self.interface(client.interface).mac,
            to_mac: client.mac,
            listener: client.listener,
            client: client.address,
            taken_off: if is_unknown { 0 } else { token::TOKEN_BYTES as u16 },
        };
        let frame = error.passed_on(&receiver)?;
        self.may_send(now_ns).then_some(Sent {
            reason: Reason::IcmpError,
            interface: client.interface,
            frame,
        })
    }

    /// Takes a message from the limit of all.
    fn may_send(&mut self, now_ns: u64) -> bool {
        let rate = self.world.icmp_per_second;
        rate != 0 && self.messages.take(rate, rate.div_ceil(10), now_ns)
    }

    /// `slot = port − first egress port + ports per address × index of the egress address`, if this is an egress
    /// address and port.
    fn slot_of_egress(&self, at: SocketAddr) -> Option<u32> {
        let ports = u32::from(self.world.egress_ports);
        let index = self
            .egress_addresses(at.is_ipv4())
            .position(|address| address == at.ip())?;
        let nth = u32::from(at.port()).checked_sub(u32::from(self.world.first_egress_port))?;
        (nth < ports).then_some(nth + ports * index as u32)
    }

    /// The same the other way round: the egress address, of the family of `to`, and the port of a slot.
    fn egress_of_slot(&self, slot: u32, to: SocketAddr) -> Option<SocketAddr> {
        let ports = u32::from(self.world.egress_ports);
        let address = self.egress_addresses(to.is_ipv4()).nth((slot / ports) as usize)?;
        let port = self.world.first_egress_port + (slot % ports) as u16;
        Some(SocketAddr::new(address, port))
    }

    fn egress_addresses(&self, v4: bool) -> impl Iterator<Item = IpAddr> {
        let addresses = self.world.egress.iter().copied();
        addresses.filter(move |address| address.is_ipv4() == v4)
    }

    /// Gives a slot, which exists, to a user, with nothing remembered.
    pub fn publish(&mut self, user: User) {
        self.users[user.slot as usize] = Some(user);
        self.memories[user.slot as usize] = Memory::default();
    }

    /// Takes a slot, which exists, from its user. What is remembered of the user stays until the next one comes.
    pub fn remove(&mut self, slot: u32) {
        self.users[slot as usize] = None;
    }

    /// Whether users may have this destination.
    #[must_use]
    pub fn has_destination(&self, to: SocketAddr) -> bool {
        self.destinations.iter().any(|known| known.to == to)
    }

    /// Sets or clears the next hop of a destination; whether there is such a destination.
    pub fn set_next_hop(&mut self, to: SocketAddr, next_hop: Option<NextHop>) -> bool {
        let known = self.destinations.iter_mut().find(|known| known.to == to);
        known.map(|destination| destination.next_hop = next_hop).is_some()
    }

    /// The theoretical arrival time of a destination's limit.
    #[must_use]
    pub fn destination_tat_ns(&self, to: SocketAddr) -> u64 {
        let all = self.destinations.iter().zip(&self.sent_to);
        let mut of_it = all.filter(|(known, _)| known.to == to);
        of_it.next().map_or(0, |(_, sent)| sent.tat_ns())
    }

    /// Forgets what was spent of limits that are no user's own.
    pub fn forget_shared_limits(&mut self) {
        self.messages = Bucket::default();
        self.sent_to.fill(Bucket::default());
    }

    /// Replaces the blocklist; this one is known by the number `generation`.
    pub fn set_blocklist(&mut self, prefixes: &[IpNet], generation: u16) {
        self.blocklist = prefixes.to_vec();
        self.blocklist_generation = generation;
    }

    /// What is remembered of a slot, which exists.
    #[must_use]
    pub fn memory(&self, slot: u32) -> &Memory {
        &self.memories[slot as usize]
    }
}

/// How a packet came.
#[derive(Clone, Copy, Debug)]
struct Ingress {
    interface: u8,
    tags: Tags,
    /// Bytes of its first buffer, without the tags.
    first_buffer: usize,
}

/// Whether it needs a checksum, of too many bytes.
fn is_too_long_to_sum(packet: &Packet, to: SocketAddr, payload: &[u8]) -> bool {
    let gets_a_checksum = packet.source().is_ipv4() && to.is_ipv6() && packet.udp.checksum() == 0;
    gets_a_checksum && payload.len() > MAX_SUMMED_BYTES
}
