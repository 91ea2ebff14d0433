//! A laboratory for the relay's XDP program. It makes packets, gives them to the program and judges what came out, by
//! routes of its own: frames are built by etherparse and read by pnet, tokens are sealed by the siphasher crate, and
//! none of these shares code with the program.
//!
//! A [`World`] says who is there: listeners, egress addresses, users, destinations. A [`Lab`] puts that world
//! into one or more [`Backend`]s, gives each the same frames at the same times, and fails where they disagree. What a
//! frame did is an [`Observation`]: verdict, reason, the bytes afterwards, which entries of the maps changed, and every
//! counter that moved.

#![warn(clippy::pedantic)]
#![expect(clippy::cast_possible_truncation, reason = "fields of packets are narrow")]
#![expect(
    clippy::missing_panics_doc,
    reason = "panics here are faults of the lab itself; each expect says which"
)]

pub mod backend;
pub mod bench;
pub mod capture;
pub mod craft;
pub mod fuzz;
pub mod inspect;
pub mod lab;
pub mod live;
pub mod object;
pub mod observe;
pub mod oracle;
pub mod pass;
pub mod replay;
pub mod report;
pub mod scenario;
pub mod simulate;
pub mod throughput;
pub mod veth;
pub mod world;

pub use backend::Backend;
pub use lab::Lab;
pub use observe::{Observation, Verdict};
pub use world::World;
