//! The data plane of the LumenLink relay. Everything that decides about a packet is plain `no_std` Rust without unsafe
//! code, compiled for the host (tests, fuzzing) and for BPF (the product); `main.rs` is the XDP program around it.

#![no_std]
#![forbid(unsafe_code)]

pub mod layout;
pub mod verdict;
pub mod wire;
