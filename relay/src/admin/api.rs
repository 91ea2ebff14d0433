//! What travels over the admin socket, and what the commands print with `--json`.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    datapath::{Counter, InterfaceStatus},
    grant::Grant,
};

/// Packets and bytes of payload.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Traffic {
    /// Packets relayed.
    pub packets: u64,
    /// Bytes of their payloads.
    pub bytes: u64,
}

/// A user: what its operator said, and what the program has seen.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct UserView {
    /// The operator's name for it.
    pub id: u64,
    /// Where its packets go.
    pub to: SocketAddr,
    /// Packets per second.
    pub rate: u32,
    /// Packets that may come at once.
    pub burst: u32,
    /// Packets per second from the destination; none for as many as come.
    pub down_rate: Option<u32>,
    /// Packets that may come from there at once.
    pub down_burst: Option<u32>,
    /// End of the grant.
    pub expires_at: Option<Timestamp>,
    /// Whether that is past.
    pub expired: bool,
    /// Index of its entry.
    pub slot: u32,
    /// Where its packets come from, as the destination sees them.
    pub egress: Option<SocketAddr>,
    /// Its client's current address, once that has sent a valid packet.
    pub client: Option<SocketAddr>,
    /// Whether the next hop towards its destination is known.
    pub resolved: bool,
    /// The newest packet number.
    pub newest: u64,
    /// From client to destination.
    pub uplink: Traffic,
    /// From destination to client.
    pub downlink: Traffic,
}

/// One counter.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct CounterView {
    /// `uplink` or `downlink`.
    pub direction: String,
    /// Why packets were treated so.
    pub reason: String,
    /// Packets.
    pub packets: u64,
    /// Bytes of their frames.
    pub bytes: u64,
}

impl From<Counter> for CounterView {
    fn from(counter: Counter) -> Self {
        Self {
            direction: counter.direction.name().to_owned(),
            reason: counter.reason.name().to_owned(),
            packets: counter.packets,
            bytes: counter.bytes,
        }
    }
}

/// An interface of the relay.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct InterfaceView {
    /// Its name.
    pub name: String,
    /// `native` or `generic`; none while this relay's program is not attached to it.
    pub mode: Option<String>,
}

impl From<InterfaceStatus> for InterfaceView {
    fn from(status: InterfaceStatus) -> Self {
        Self {
            name: status.name,
            mode: status.mode.map(|mode| mode.name().to_owned()),
        }
    }
}

/// The relay as a whole.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Status {
    /// Of the running binary.
    pub version: String,
    /// The relay's id in tokens.
    pub relay_id: u32,
    /// Where packets arrive and leave; several with commas between them.
    pub interface: String,
    /// Each of them.
    pub interfaces: Vec<InterfaceView>,
    /// `native`, or `generic` if it is on any of them; none while nothing is attached.
    pub mode: Option<String>,
    /// Whether forwarding goes on without the process.
    pub persist: bool,
    /// Where clients send to.
    pub listen: Vec<SocketAddr>,
    /// Where relayed packets come from.
    pub egress: Vec<IpAddr>,
    /// `FIRST-LAST`.
    pub egress_ports: String,
    /// Users there are.
    pub users: usize,
    /// Users there can be.
    pub max_users: u32,
    /// Destinations of all users.
    pub destinations: usize,
    /// Those whose next hop is not known.
    pub unresolved_destinations: usize,
    /// Blocked prefixes.
    pub blocked: usize,
    /// Since the process started, in seconds.
    pub uptime_seconds: u64,
    /// Whether it serves.
    pub ready: bool,
    /// Why not.
    pub reason: Option<String>,
    /// Every direction and reason, but the host's own traffic.
    pub counters: Vec<CounterView>,
}

/// A user was added, or its grant renewed.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Added {
    /// What the client needs.
    pub grant: Grant,
    /// Whether the user was there before; its former grant has stopped.
    pub renewed: bool,
}

/// A blocked prefix.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Block {
    /// In CIDR notation; an address alone is a prefix of its whole length.
    pub prefix: IpNet,
}

/// The configuration was read again.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Reloaded {
    /// Whether it differs from what was in force.
    pub changed: bool,
    /// Not wrong, but worth knowing.
    pub warnings: Vec<String>,
}

/// How an import treats users that there are already.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct ImportOptions {
    /// Renew their grants, instead of refusing the import.
    #[serde(default)]
    pub renew: bool,
}

/// Why a request was not done.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Problem {
    /// What kind of problem, for programs.
    pub kind: ProblemKind,
    /// What is wrong and what to do, for people.
    pub error: String,
}

/// Kinds of problems.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ProblemKind {
    /// The request makes no sense. 400.
    Invalid,
    /// What it is about is not there. 404.
    NotFound,
    /// No slot is left. 409.
    Full,
    /// The configuration has faults. 422.
    Configuration,
    /// The store failed. 500.
    Store,
    /// The kernel or the relay failed. 500.
    Internal,
}
