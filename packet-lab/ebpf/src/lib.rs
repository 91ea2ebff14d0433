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
