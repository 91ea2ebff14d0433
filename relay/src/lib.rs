//! The LumenLink relay: the control process around the XDP program in `relay-ebpf`.

pub mod admin;
pub mod cli;
pub mod client;
pub mod config;
pub mod datapath;
pub mod grant;
pub mod http;
pub mod relay;
pub mod users;
