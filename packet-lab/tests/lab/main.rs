//! What the relay does with each packet: every reason of the protocol, in both families, with and without header
//! protection, in this process and in the kernel.

mod bench;
mod buffers;
mod concurrency;
mod downlink;
mod errors;
mod families;
mod fuzzing;
mod lengths;
mod limits;
mod property;
mod reasons;
mod reporting;
mod rewriting;
mod roaming;
mod scene;
mod tokens;
mod unrelated;
mod window;
