//! Making frames: every field of a UDP packet within reach, right by default, wrong on request.

mod frame;
mod keyring;
mod token;

pub use frame::{Checksum, Fragment, UdpFrame, flip_bit, icmp, without_udp};
pub use keyring::Keyring;
pub use token::{Grant, Handle, TOKEN_BYTES, options_with_token, token_in_options};
