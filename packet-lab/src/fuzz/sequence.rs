//! What a run is made of: a world, and things that happen in it.

use std::{fmt, net::SocketAddr};

use ipnet::IpNet;

use crate::{
    inspect,
    world::{Limit, NextHop, User, World},
};

/// When sequences begin, on the lab's clock.
pub const START_NS: u64 = 1_000_000_000;

/// Something that happens.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Action {
    /// A frame comes in.
    Send(Vec<u8>),
    /// A slot is given to a user, whoever had it before.
    Publish(User),
    /// A slot is taken from its user.
    Remove(u32),
    /// The next hop of a destination is found, or lost.
    NextHop(SocketAddr, Option<NextHop>),
    /// The blocklist becomes this.
    Blocklist(Vec<IpNet>),
}

/// When it happens.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Step {
    /// On the lab's clock, not before the step before it.
    pub at_ns: u64,
    /// What.
    pub action: Action,
}

/// A world and what happens in it; all that there is to know of a failure.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Sequence {
    /// The world as it is at the start.
    pub world: World,
    /// In order of time.
    pub steps: Vec<Step>,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let after = self.at_ns.saturating_sub(START_NS);
        write!(f, "{after:>12} ns  ")?;
        match &self.action {
            Action::Send(frame) => write!(f, "a frame of {} bytes\n{}", frame.len(), inspect::describe(frame)),
            Action::Publish(user) => {
                let User {
                    slot,
                    salt,
                    to,
                    rate,
                    burst,
                    down_limit,
                    ..
                } = user;
                write!(
                    f,
                    "user in slot {slot}: salt {salt:#010x}, to {to}, rate {rate}, burst {burst}"
                )?;
                if let Some(Limit { rate, burst }) = down_limit {
                    write!(f, ", downlink rate {rate}, burst {burst}")?;
                }
                match user.expires_ns {
                    Some(at_ns) => writeln!(f, ", until {} ns", at_ns.saturating_sub(START_NS)),
                    None => writeln!(f),
                }
            }
            Action::Remove(slot) => writeln!(f, "slot {slot} is taken from its user"),
            Action::NextHop(to, Some(hop)) => {
                writeln!(f, "next hop of {to}: {}, MTU {}", inspect::mac(hop.mac), hop.mtu)
            }
            Action::NextHop(to, None) => writeln!(f, "next hop of {to}: lost"),
            Action::Blocklist(prefixes) if prefixes.is_empty() => writeln!(f, "blocklist: empty"),
            Action::Blocklist(prefixes) => {
                let prefixes: Vec<String> = prefixes.iter().map(ToString::to_string).collect();
                writeln!(f, "blocklist: {}", prefixes.join(" "))
            }
        }
    }
}
