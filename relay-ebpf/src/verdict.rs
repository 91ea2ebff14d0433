//! What becomes of a packet, and why: the one list of reasons that counters, metrics, documentation and tests are
//! made from, and the only place where a reason becomes an action.

/// What the program tells the kernel to do with a packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// Give it to the host's network stack, untouched.
    Pass,
    /// Discard it.
    Drop,
    /// Send it out of the interface that it came in by.
    Tx,
    /// Send it out of another interface.
    Redirect,
}

impl Verdict {
    /// The name of the verdict: `PASS`, `DROP`, `TX` or `REDIRECT`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pass => "PASS",
            Self::Drop => "DROP",
            Self::Tx => "TX",
            Self::Redirect => "REDIRECT",
        }
    }
}

/// Which way a packet crosses the relay.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum Direction {
    /// From a client to its destination.
    Uplink = 0,
    /// From a destination to its client.
    Downlink = 1,
}

impl Direction {
    /// Both directions, in the order of their numbers.
    pub const ALL: [Self; 2] = [Self::Uplink, Self::Downlink];

    /// The name in metrics, JSON and snapshots: `uplink` or `downlink`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Uplink => "uplink",
            Self::Downlink => "downlink",
        }
    }

    /// Where ICMP messages to the senders of packets of this direction are counted, in `counters`.
    #[inline(always)]
    #[must_use]
    pub const fn answers(self) -> u32 {
        (Reason::ALL.len() * Self::ALL.len()) as u32 + self as u32
    }
}

/// How many counters there are, in `counters`.
pub const COUNTERS: u32 = ((Reason::ALL.len() + 1) * Direction::ALL.len()) as u32;

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident => $name:literal,)+) => {
        /// Why a packet was treated as it was.
        #[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
        #[repr(u8)]
        pub enum Reason {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Reason {
            /// Every reason, in the order of their numbers.
            pub const ALL: [Self; [$($name),+].len()] = [$(Self::$variant),+];

            #[inline(always)]
            const fn of(number: u8) -> Option<Self> {
                match number {
                    $(number if number == Self::$variant as u8 => Some(Self::$variant),)+
                    _ => None,
                }
            }

            /// The name in metrics, JSON, events and snapshots.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }

            /// One sentence for people.
            #[must_use]
            pub const fn description(self) -> &'static str {
                match self {
                    $(Self::$variant => concat!($($doc),+),)+
                }
            }
        }
    };
}

reasons! {
    /// Neither for a listener nor for an egress port: the host's own traffic.
    Unrelated => "unrelated",
    /// Forwarded to its destination or its client.
    Relayed => "relayed",
    /// A token without payload, reflected to its sender.
    Ping => "ping",
    /// A fragment: its token or its end is in another packet.
    Fragment => "fragment",
    /// Too short for a token, or shorter than its headers say.
    Truncated => "truncated",
    /// No user has this slot and salt.
    UnknownSession => "unknown_session",
    /// The tag does not match the token, the payload's length or this relay.
    BadToken => "bad_token",
    /// The grant is past its expiry.
    Expired => "expired",
    /// The packet number was seen before, or is older than the replay window.
    Replayed => "replayed",
    /// The sender's address is on the blocklist.
    BlockedSource => "blocked_source",
    /// The user is over its rate and burst, those of this direction.
    RateLimited => "rate_limited",
    /// The destination's next hop is not known, or not yet.
    DestinationUnresolved => "destination_unresolved",
    /// The TTL or hop limit is exhausted.
    TtlExpired => "ttl_expired",
    /// Larger than the link that it would leave by.
    TooBig => "too_big",
    /// All users of the destination together are over the limit of destinations.
    DestinationLimited => "destination_limited",
    /// It would grow, and the driver leaves no room in front of it.
    NoHeadroom => "no_headroom",
    /// For an egress port, but not from the destination of a user whose address is known.
    Unsolicited => "unsolicited",
    /// An ICMP error about a relayed packet, passed on to the client that had sent it.
    IcmpError => "icmp_error",
}

/// What is decided about a packet, in one word: apart, the compiled program would write each field anew before every
/// branch that may be the last.
///
/// Bits 0..8 the reason, 8 the direction, 16..24 the number of the interface that the packet leaves by, 24 set if it is
/// rewritten to be sent, 25 set if it leaves by another interface than it came in by, 26 set if its sender may be told
/// how large packets may be, 32..64 that size.
#[derive(Clone, Copy, Eq, PartialEq)]
pub struct Decision(u64);

impl Decision {
    const DIRECTION: u32 = 8;
    const INTERFACE: u32 = 16;
    const SENT: u64 = 1 << 24;
    const REDIRECTED: u64 = 1 << 25;
    const TOO_BIG: u64 = 1 << 26;
    const MTU: u32 = 32;

    /// It is treated so, and nothing is left to do: it is not sent.
    #[inline(always)]
    #[must_use]
    pub const fn settled(reason: Reason) -> Self {
        Self(reason as u64)
    }

    /// It is rewritten, to be sent out of the interface with this number.
    #[inline(always)]
    #[must_use]
    pub const fn sent(reason: Reason, interface: u8) -> Self {
        Self(reason as u64 | (interface as u64) << Self::INTERFACE | Self::SENT)
    }

    /// It is [`Reason::TooBig`], and its sender may be told that IP packets of `mtu` bytes get through.
    #[inline(always)]
    #[must_use]
    pub const fn too_big(mtu: usize) -> Self {
        Self(Reason::TooBig as u64 | Self::TOO_BIG | (mtu as u64) << Self::MTU)
    }

    /// The same about a packet that goes this way.
    #[inline(always)]
    #[must_use]
    pub const fn going(self, direction: Direction) -> Self {
        Self(self.0 | (direction as u64) << Self::DIRECTION)
    }

    /// The same about a packet that leaves by another interface than it came in by.
    #[inline(always)]
    #[must_use]
    pub const fn redirected(self) -> Self {
        Self(self.0 | Self::REDIRECTED)
    }

    /// The word.
    #[inline(always)]
    #[must_use]
    pub const fn word(self) -> usize {
        self.0 as usize
    }

    /// The decision that this is the [word](Self::word) of.
    #[inline(always)]
    #[must_use]
    pub const fn from_word(word: usize) -> Self {
        Self(word as u64)
    }

    /// Why the packet is treated so.
    #[inline(always)]
    #[must_use]
    pub const fn reason(self) -> Reason {
        match Reason::of(self.0 as u8) {
            Some(reason) => reason,
            None => Reason::Unrelated,
        }
    }

    /// Which way it was going; uplink for unrelated traffic.
    #[inline(always)]
    #[must_use]
    pub const fn direction(self) -> Direction {
        if self.0 >> Self::DIRECTION & 1 == 0 {
            Direction::Uplink
        } else {
            Direction::Downlink
        }
    }

    /// The number of the interface that it leaves by, if it is sent.
    #[inline(always)]
    #[must_use]
    pub const fn interface(self) -> Option<u8> {
        if self.0 & Self::SENT == 0 {
            return None;
        }
        Some((self.0 >> Self::INTERFACE) as u8)
    }

    /// The number of the interface that it leaves by, if it is sent and that is another than it came in by.
    #[inline(always)]
    #[must_use]
    pub const fn redirect(self) -> Option<u8> {
        if self.0 & Self::REDIRECTED == 0 {
            return None;
        }
        self.interface()
    }

    /// The largest packet that its sender may send, if the sender may be told.
    #[inline(always)]
    #[must_use]
    pub const fn told_mtu(self) -> Option<usize> {
        if self.0 & Self::TOO_BIG == 0 {
            return None;
        }
        Some((self.0 >> Self::MTU) as usize)
    }
}

impl Reason {
    /// The verdict that this reason leads to; `drop_unmatched` is the operator's choice for unsolicited packets, and
    /// `is_redirected` says that a packet to be sent leaves by another interface than it came in by.
    #[inline(always)]
    #[must_use]
    pub const fn verdict(self, drop_unmatched: bool, is_redirected: bool) -> Verdict {
        match self {
            Self::Unrelated => Verdict::Pass,
            Self::Relayed | Self::Ping | Self::IcmpError if is_redirected => Verdict::Redirect,
            Self::Relayed | Self::Ping | Self::IcmpError => Verdict::Tx,
            Self::Unsolicited if !drop_unmatched => Verdict::Pass,
            Self::Fragment
            | Self::Truncated
            | Self::UnknownSession
            | Self::BadToken
            | Self::Expired
            | Self::Replayed
            | Self::BlockedSource
            | Self::RateLimited
            | Self::DestinationUnresolved
            | Self::TtlExpired
            | Self::TooBig
            | Self::DestinationLimited
            | Self::NoHeadroom
            | Self::Unsolicited => Verdict::Drop,
        }
    }

    /// Where this reason is counted for `direction`, in `counters`.
    #[inline(always)]
    #[must_use]
    pub const fn counter(self, direction: Direction) -> u32 {
        direction as u32 * Self::ALL.len() as u32 + self as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_distinct_and_counters_do_not_overlap() {
        let mut counters = [false; COUNTERS as usize];
        for (i, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, i);
            assert!(Reason::ALL[..i].iter().all(|other| other.name() != reason.name()));
            for direction in Direction::ALL {
                let seen = &mut counters[reason.counter(direction) as usize];
                assert!(!*seen, "{reason:?} {direction:?} shares a counter");
                *seen = true;
            }
        }
        for direction in Direction::ALL {
            let seen = &mut counters[direction.answers() as usize];
            assert!(!*seen, "answers {direction:?} share a counter");
            *seen = true;
        }
        assert!(counters.iter().all(|&seen| seen));
    }
}
