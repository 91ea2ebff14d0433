//! `relay.toml`, the environment and the flags, validated as a whole.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

/// How the program is attached.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum XdpMode {
    /// Native if the driver can, else generic.
    Auto,
    /// By the network driver.
    Native,
    /// By the kernel's network stack.
    Generic,
}

/// A configuration in which every value is valid and fits the others.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Config {
    /// The interface that packets arrive and leave by.
    pub interface: String,
    /// Where clients send to.
    pub listen: Vec<SocketAddr>,
    /// Where relayed packets come from.
    pub egress: Vec<IpAddr>,
    /// First egress port.
    pub first_egress_port: u16,
    /// Last egress port.
    pub last_egress_port: u16,
    /// The relay's id in tokens.
    pub relay_id: u32,
    /// Slots.
    pub max_users: u32,
    /// Where health and metrics are served.
    pub http: SocketAddr,
    /// The admin API's Unix socket.
    pub admin: PathBuf,
    /// Where the store and the header key are kept.
    pub state_dir: PathBuf,
    /// Drop packets to an egress port that no user expects, instead of passing them to the host.
    pub drop_unmatched: bool,
    /// Whether tokens are masked.
    pub header_protection: bool,
    /// A user's rate when it has none of its own, packets per second.
    pub packets_per_second: u32,
    /// A user's burst when it has none of its own, packets.
    pub burst: u32,
    /// How the program is attached.
    pub xdp_mode: XdpMode,
    /// Keep forwarding without the process.
    pub xdp_persist: bool,
    /// Where maps, program and link are pinned with `xdp_persist`; on a bpffs.
    pub xdp_pin_dir: PathBuf,
    /// One packet in this many is timed (a power of two), 0 for none.
    pub latency_sample: u32,
    /// One drop in this many of each reason is reported (a power of two), 0 for none.
    pub drop_sample: u32,
}
