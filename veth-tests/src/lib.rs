//! Tests of the real binary in network namespaces, and what they are built from.
//!
//! A test makes a [`net::Net`] with hosts on it, starts a [`relay::Relay`] on one of them, adds users by its command
//! line, and talks through it with a [`client::Client`], which knows the protocol from its document alone. Everything
//! that a test makes is removed when it is dropped, also when the test fails; what the relay wrote to its log is then
//! printed.
//!
//! What is here is for tests: it panics, with what was tried, where something does not work.

pub mod binary;
pub mod client;
pub mod echo;
pub mod http;
pub mod load;
pub mod namespace;
pub mod net;
pub mod raw;
pub mod relay;
pub mod throughput;
pub mod wait;
