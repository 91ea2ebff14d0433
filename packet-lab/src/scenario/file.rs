//! What stands in a `scenario.toml`: the types that it is read into, and that its JSON schema is made from. Keys that
//! are not here are refused.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    names::{DirectionName, ReasonName, VerdictName},
    value::{Bytes, Key, Mac, Number, Ports, Time},
};
use crate::world::Carrier;

/// The only version of the format.
pub const SCHEMA: u32 = 1;

/// A scenario: who is there, what is sent and what must become of it.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
#[schemars(title = "packet-lab scenario")]
pub struct File {
    /// The version of this format.
    #[schemars(range(min = 1, max = 1))]
    pub schema: u32,
    /// A sentence that says what is promised.
    #[schemars(length(min = 1), example = &"a replayed token is dropped, and the user's budget is not touched")]
    pub name: String,
    /// Words to choose scenarios by: `packet-lab run --tag replay`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Where it runs; all by default, and `kernel` and `veth` for a program of one's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backends: Option<Vec<BackendKind>>,
    /// The relay; a default one if there is no `program` either.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relay: Option<Relay>,
    /// An XDP program of one's own, instead of the relay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<Program>,
    /// Destinations that are out of the ordinary; those that only users name have a next hop with MAC address
    /// 02:00:00:00:00:d1 and an MTU of 1500.
    #[serde(default, rename = "destination", skip_serializing_if = "Vec::is_empty")]
    pub destinations: Vec<Destination>,
    /// The users.
    #[serde(default, rename = "user", skip_serializing_if = "Vec::is_empty")]
    pub users: Vec<User>,
    /// What happens, in this order.
    #[serde(rename = "step")]
    #[schemars(length(min = 1))]
    pub steps: Vec<Step>,
    /// What the snapshot holds.
    #[serde(default, skip_serializing_if = "Snapshot::is_default")]
    pub snapshot: Snapshot,
}

/// What runs a scenario.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendKind {
    /// The relay's logic in this process.
    Host,
    /// An independent model of the protocol.
    Oracle,
    /// The XDP program in the kernel, one frame at a time.
    Kernel,
    /// The XDP program attached to a wire.
    Veth,
    /// The relay's userspace mode: its sockets in a host of their own.
    Userspace,
}

impl BackendKind {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Host, Self::Oracle, Self::Kernel, Self::Veth, Self::Userspace];

    /// The name in files, flags and reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Oracle => "oracle",
            Self::Kernel => "kernel",
            Self::Veth => "veth",
            Self::Userspace => "userspace",
        }
    }
}

/// The relay, in the terms of its configuration.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Relay {
    /// Where clients send to; `192.0.2.1:4500` and `[2001:db8::1]:4500` by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<Vec<SocketAddr>>,
    /// Where relayed packets come from; the listeners' addresses by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress: Option<Vec<IpAddr>>,
    /// Egress ports of each egress address; 10000-10007 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress_ports: Option<Ports>,
    /// Part of every token; 7 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub relay_id: Option<u32>,
    /// Slots; as many as the egress addresses of one family have ports by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_users: Option<u32>,
    /// Whether tokens are masked; they are by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub header_protection: Option<bool>,
    /// Key of the header protection; f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub header_key: Option<Key>,
    /// How tokens travel: `udp`, `ip-option`, or both; `udp` by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub carrier: Option<Vec<Carrier>>,
    /// What becomes of packets to an egress port that no user expects; passed to the host by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unmatched: Option<Unmatched>,
    /// Largest IP packet, in bytes, that fits the link to the clients; 1500 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// How many bytes of each frame the driver puts in its first buffer, the rest in others; all by default. Only the
    /// backends `host`, `oracle` and (Linux 6.18) `kernel` can have it so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_buffer: Option<usize>,
    /// ICMP messages that the relay sends per second, to all together, and a tenth of that at once; 0 for none; 1000 by
    /// default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icmp_per_second: Option<u32>,
    /// Packets per second that all users of a destination may send to it together; as many as they may by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination_packets_per_second: Option<u32>,
    /// Packets that they may send at once, where that is limited; 1000 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination_burst: Option<u32>,
    /// The interface's MAC address; 02:00:00:00:00:01 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
    /// Its interfaces, where it has several; numbered from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interfaces: Option<Vec<Interface>>,
    /// Whether VLAN tags are read and kept; they are not by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vlan: Option<bool>,
    /// Source prefixes whose packets are dropped.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<String>")]
    pub blocklist: Vec<IpNet>,
}

/// An interface of the relay.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Interface {
    /// Its MAC address; 02:00:00:00:00:01 of the first by default, and so on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
    /// Largest IP packet, in bytes, that fits its link; 1500 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
}

/// What becomes of unsolicited packets.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Unmatched {
    /// They go to the host.
    Pass,
    /// They go nowhere.
    Drop,
}

/// An XDP program of one's own.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Program {
    /// Its object file, from the scenario's folder.
    pub object: PathBuf,
    /// The name of the program in it.
    pub name: String,
}

/// A destination.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Destination {
    /// Address and port.
    pub to: SocketAddr,
    /// MAC address of the next hop; 02:00:00:00:00:d1 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
    /// Largest IP packet, in bytes, that fits the link to the next hop; 1500 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// Number of the interface that leads to it; 0 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<u8>,
    /// VLAN tags of frames to it, the outer one first, at most two; none by default.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vlan: Vec<Vlan>,
    /// Whether the next hop is known; it is by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolved: Option<bool>,
}

/// A user.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct User {
    /// The operator's number for it.
    pub id: u64,
    /// Its destination.
    pub to: SocketAddr,
    /// Packets per second; 10000 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<u32>,
    /// Packets at once; 1000 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<u32>,
    /// Packets per second from the destination; as many as come by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub down_rate: Option<u32>,
    /// Packets from there at once, where that is limited; 1000 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub down_burst: Option<u32>,
    /// The last time at which the grant is good; never ends by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Time>,
    /// Index of the user's entry; the first free one by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<u32>,
    /// The random part of the handle; derived from the id by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub salt: Option<u32>,
    /// Key of the tag; derived from the id by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Key>,
}

/// Something that happens, at a time, and what must become of it. Exactly one of `send`, `repeat_step`, `replay`,
/// `add_user`, `renew`, `remove_user`, `next_hop` and `blocklist` says what.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Step {
    /// When, on the lab's clock from the scenario's start; with the step before by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<Time>,
    /// What this step is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// A frame that the relay receives.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub send: Option<Send>,
    /// The frame of the step with this number, from 0, once more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repeat_step: Option<usize>,
    /// How often to send; of a token's frame each next one has the next packet number.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub count: Option<u32>,
    /// Time from one to the next of `count`; none by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub every: Option<Time>,
    /// The packets of a capture.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replay: Option<Replay>,
    /// A new user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub add_user: Option<User>,
    /// A user's grant is renewed: another salt and key in the same slot, everything else forgotten.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub renew: Option<Renew>,
    /// The user with this id is removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remove_user: Option<u64>,
    /// A destination's next hop changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_hop: Option<NextHop>,
    /// The blocklist becomes this.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Vec<String>>")]
    pub blocklist: Option<Vec<IpNet>>,
    /// What must become of what is sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expect: Option<Expect>,
}

/// A frame: `frame` alone, or a UDP packet in whose description everything that is not given is what an ordinary sender
/// would send.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Send {
    /// The whole frame, from its Ethernet header. Nothing else is given then but `interface`, `cut` and
    /// `flip_bit`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frame: Option<Bytes>,
    /// Address and port of the sender.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<SocketAddr>,
    /// Address and port of the receiver.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<SocketAddr>,
    /// Number of the interface that it comes in by; of a destination the one that leads to it, of anybody else 0 by
    /// default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface: Option<u8>,
    /// MAC address of the sender; of a destination that of its next hop, of anybody else 02:00:00:00:00:c1 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from_mac: Option<Mac>,
    /// MAC address of the receiver; the relay's by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to_mac: Option<Mac>,
    /// VLAN tags, the outer one first: `{ type = 0x8100, id = 5 }`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub vlan: Vec<Vlan>,
    /// TTL or hop limit; 64 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl: Option<u8>,
    /// Type of service or traffic class; 0 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tos: Option<u8>,
    /// Identification of the IPv4 packet, or of the IPv6 fragment; 0x1d0c by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<u16>,
    /// IPv4's "don't fragment"; set by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub df: Option<bool>,
    /// IPv6 flow label; 0 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flow_label: Option<u32>,
    /// IPv4 options, a multiple of 4 bytes, at most 40; with a token in an option those before it, at most 14 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub options: Option<Bytes>,
    /// Which part of a larger packet this is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fragment: Option<Fragment>,
    /// The UDP checksum; right by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checksum: Option<Checksum>,
    /// The token in front of the payload; without it there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<Token>,
    /// What follows the token, or all of the UDP payload; empty by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload: Option<Bytes>,
    /// The length that the IP header claims (IPv4's total length, IPv6's payload length), if not the right one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip_length: Option<u16>,
    /// The length that the UDP header claims, if not the right one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub udp_length: Option<u16>,
    /// What follows the IP packet in the frame.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trailing: Option<Bytes>,
    /// Only so many bytes of the frame.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cut: Option<usize>,
    /// The bit of the frame to be changed at last, from 0, the most significant bit of the first byte.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flip_bit: Option<usize>,
}

/// A VLAN tag.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Vlan {
    /// VLAN identifier, 0 to 4095.
    #[schemars(range(max = 4095))]
    pub id: u16,
    /// Priority, 0 to 7.
    #[serde(default)]
    #[schemars(range(max = 7))]
    pub priority: u8,
    /// The `EtherType` of the tag: 0x8100 (IEEE 802.1Q) by default, or 0x88a8 (802.1ad).
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<u16>,
}

/// Which part of a larger packet a fragment is.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Fragment {
    /// Where it belongs, in units of 8 bytes. A fragment with an offset carries no UDP header.
    #[schemars(range(max = 8191))]
    pub offset: u16,
    /// Whether more follow.
    pub more: bool,
}

/// What a UDP checksum says.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Checksum {
    /// What it should.
    Right,
    /// Nothing: zero.
    Zero,
    /// Something else: the right one and 1.
    Wrong,
    /// The sum of the pseudo-header alone, as a sender leaves it that has the network card compute the rest.
    Partial,
}

/// A token, sealed for a user, and what is wrong with it.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Token {
    /// The user whose grant seals it: the grant that the user has by then.
    pub user: u64,
    /// The packet number.
    pub pn: Number,
    /// How it travels; in UDP by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub carrier: Option<Carrier>,
    /// Another slot than the user's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<u32>,
    /// Another salt than the grant's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub salt: Option<u32>,
    /// Another key than the grant's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Key>,
    /// For another relay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relay_id: Option<u32>,
    /// Masked with another key than the listeners'.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header_key: Option<Key>,
    /// Masked, or not; as the listeners want it by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protected: Option<bool>,
    /// For a payload of another length.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload_len: Option<u16>,
    /// The bit of the token to be changed, 0 to 191, the most significant bit of the first byte first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 191))]
    pub flip_bit: Option<usize>,
    /// Only so many bytes of it, and no payload behind them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 23))]
    pub cut: Option<usize>,
}

/// A capture to be replayed: the frames in it that were sent to the relay, at the capture's own times from the step's
/// on.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Replay {
    /// The file (pcap or pcapng), from the scenario's folder.
    pub pcap: PathBuf,
    /// Whether tokens are sealed anew, with the scenario's users: each client (source address and port) becomes the
    /// next user by id, tokens that are alike stay alike.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub resign: bool,
    /// Which client is which user, by source address and port, instead.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub clients: BTreeMap<SocketAddr, u64>,
    /// At most so many packets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
}

/// A renewed grant. What is not given stays, apart from salt and key, which are then derived from the id and how often
/// it was renewed.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Renew {
    /// The user's id.
    pub user: u64,
    /// Another destination.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<SocketAddr>,
    /// Packets per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<u32>,
    /// Packets at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<u32>,
    /// Packets per second from the destination.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub down_rate: Option<u32>,
    /// Packets from there at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub down_burst: Option<u32>,
    /// The last time at which the grant is good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Time>,
    /// The random part of the handle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub salt: Option<u32>,
    /// Key of the tag.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Key>,
}

/// A change of a destination's next hop: lost, or found with these.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct NextHop {
    /// The destination.
    pub to: SocketAddr,
    /// Whether it is not known any more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub lost: bool,
    /// Its MAC address; 02:00:00:00:00:d1 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
    /// Largest IP packet, in bytes, that fits the link to it; 1500 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// Number of the interface that leads to it; 0 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<u8>,
    /// VLAN tags of frames to it, the outer one first, at most two; none by default.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vlan: Vec<Vlan>,
}

/// What must become of what a step sends. What is not given may be anything; the snapshot has it all the same.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Expect {
    /// What the kernel is told, of every packet of the step: `ABORTED`, `DROP`, `PASS`, `TX` or `REDIRECT`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdict: Option<VerdictName>,
    /// Why, for every packet of the step: a reason of the relay's metrics, such as `relayed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<ReasonName>,
    /// Which way every packet of the step goes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direction: Option<DirectionName>,
    /// How many packets of the step have each reason; all of them, so that none is left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasons: Option<BTreeMap<ReasonName, u64>>,
    /// What comes out; of several packets, of each.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub out: Option<Out>,
    /// Whether the frame is as it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unchanged: Option<bool>,
    /// `capture` if what comes out of a replay must be what the capture holds of what the relay sent then, byte for byte
    /// and, for each receiver, in the same order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outputs: Option<OutputsName>,
    /// Where the client of the user is afterwards who sent the token, or whose egress port it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<SocketAddr>,
    /// The newest packet number of that user afterwards.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub newest: Option<Number>,
    /// `unchanged` if nothing of what is kept of any user may change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<StateName>,
}

/// What a packet that comes out must be. What is not given may be anything.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Out {
    /// Number of the interface that it leaves by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface: Option<u8>,
    /// Its VLAN tags, the outer one first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vlan: Option<Vec<Vlan>>,
    /// Address and port of the sender.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<SocketAddr>,
    /// Address and port of the receiver.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<SocketAddr>,
    /// MAC address of the sender.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from_mac: Option<Mac>,
    /// MAC address of the receiver.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to_mac: Option<Mac>,
    /// TTL or hop limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl: Option<u8>,
    /// Type of service or traffic class.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tos: Option<u8>,
    /// The UDP payload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload: Option<Bytes>,
    /// The MTU that an ICMP message tells, with a right checksum.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Bytes of the frame.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<usize>,
    /// What its UDP checksum says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checksum: Option<SumName>,
    /// The whole frame.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frame: Option<Bytes>,
}

/// What a checksum is.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SumName {
    /// That of what it covers.
    Right,
    /// None: zero.
    Zero,
    /// Something else.
    Wrong,
}

/// `capture`.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OutputsName {
    /// What the capture holds.
    Capture,
}

/// `unchanged`.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StateName {
    /// Nothing that is kept of any user changes.
    Unchanged,
}

/// What the snapshot of a scenario holds.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Snapshot {
    /// All of it by default.
    pub include: Vec<Part>,
}

impl Snapshot {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl Default for Snapshot {
    fn default() -> Self {
        Self {
            include: vec![Part::Verdicts, Part::Packets, Part::Maps, Part::Counters],
        }
    }
}

/// A part of a snapshot.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// Verdicts and reasons.
    Verdicts,
    /// What comes out, decoded and in hexadecimal.
    Packets,
    /// What changes of what is kept of users.
    Maps,
    /// The counters that move.
    Counters,
}
