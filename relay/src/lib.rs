//! The LumenLink relay: the control process around the XDP program in `relay-ebpf`.

pub mod config;
pub mod datapath;
