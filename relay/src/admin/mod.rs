//! The admin API: JSON over HTTP on a Unix socket, for its owner alone.

pub mod api;
pub mod client;
pub mod server;
