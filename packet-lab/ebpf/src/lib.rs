//! What the lab's XDP programs and the bench share.

#![no_std]

/// Bytes at the start of a frame that the feeder writes anew: all headers and the token. The rest of the frame stays as
/// it is.
pub const HEAD_BYTES: usize = 96;

/// Frames in the ring, a power of two.
pub const RING: u32 = 1 << 16;

/// Map of the frames' heads, `[u8; HEAD_BYTES]` each.
pub const FRAMES: &str = "frames";
/// Map of one `[u32; 3]`: the next frame, the length of all frames in bytes, and which program they go to.
pub const FEED: &str = "feed";
/// Map of the programs that frames may go to.
pub const TARGETS: &str = "targets";

/// Program that writes a fresh frame and goes on with the chosen program; drops where there is none.
pub const FEEDER_PROGRAM: &str = "feeder";
/// Program that swaps the MAC addresses and transmits: the least that forwards.
pub const FLOOR_PROGRAM: &str = "floor";

/// Program for live frames: writes a fresh frame from [`FRAMES`] and sends it out of the interface that the test run
/// names, or drops it, where the generator alone is to be measured.
pub const GENERATOR_PROGRAM: &str = "generator";
/// Map of one `[u64; 3]`, what the generator does: see [`generator`].
pub const GENERATOR: &str = "generator_state";
/// Places in the generator's state.
pub mod generator {
    /// The next frame.
    pub const NEXT: usize = 0;
    /// The XDP action that frames are given.
    pub const ACTION: usize = 1;
    /// When the first frame was made, by the monotonic clock; 0 before.
    pub const STARTED_NS: usize = 2;
}

/// Program for the other end: counts the frames that it waits for and drops them, and passes any other.
pub const RECEIVER_PROGRAM: &str = "receiver";
/// Map of one `[u64; 7]`, what the receiver waits for and what it saw: see [`receiver`].
pub const RECEIVER: &str = "receiver_state";
/// Places in the receiver's state.
pub mod receiver {
    /// Source and destination address, as the eight bytes stand in the packet.
    pub const ADDRESSES: usize = 0;
    /// Source and destination port, as the four bytes stand in the packet.
    pub const PORTS: usize = 1;
    /// Length of the frame in bytes.
    pub const FRAME_BYTES: usize = 2;
    /// How many are to come.
    pub const WANTED: usize = 3;
    /// How many have come.
    pub const DELIVERED: usize = 4;
    /// UDP packets over IPv4 that were passed, being others.
    pub const OTHERS: usize = 5;
    /// When the last of those wanted came, by the monotonic clock.
    pub const ENDED_NS: usize = 6;
}

/// The reference program: a NAT between listener ports and egress ports, of a flow each, that authenticates nobody.
pub const NAT_PROGRAM: &str = "nat";
/// Map of the NAT's flows, `[u32; 8]` each: see [`flow`].
pub const FLOWS: &str = "flows";
/// Map of what the NAT sent, for each CPU: `[u64; 2]`, packets and bytes, of flow `n` uplink at `2n` and downlink at
/// `2n + 1`.
pub const FLOW_COUNTERS: &str = "flow_counters";
/// Flows that the NAT has room for.
pub const MAX_FLOWS: u32 = 4_096;
/// Listener port of flow 0; the next flow's is the next.
pub const LISTENER_PORT: u16 = 4_500;
/// Egress port of flow 0; the next flow's is the next.
pub const EGRESS_PORT: u16 = 10_000;
/// Words of a flow, the bytes of each as they stand in a packet.
pub mod flow {
    /// The relay's address; 0 where there is no flow.
    pub const RELAY: usize = 0;
    /// The client's address.
    pub const CLIENT: usize = 1;
    /// The server's address.
    pub const SERVER: usize = 2;
    /// The client's port, then the server's.
    pub const PORTS: usize = 3;
    /// The first four bytes of the MAC address of the next hop towards the client.
    pub const CLIENT_MAC: usize = 4;
    /// The same of the server.
    pub const SERVER_MAC: usize = 5;
    /// The last two bytes of both.
    pub const MAC_ENDS: usize = 6;
}
