//! What must hold of every packet of a run. The judge knows who sealed what, when and where, and what the operator
//! did, since the run made all of it: it reads no token, and shares nothing with the relay. Of each packet it works out
//! from that alone how the protocol has it treated, and beside it checks what was actually sent on against invariants
//! that hold whatever the judge thinks.

use std::net::SocketAddr;

use crate::Verdict;
use relay_ebpf::verdict::{Direction, Reason};

use super::{
    numbers::Numbers,
    packet::{Downlink, Packet, Shape, Uplink},
    population::{NEXT_HOP, Place, Population},
    subject::Treated,
    violation::{Invariant, Violations},
};
use crate::{
    backend::{Traffic, UserState},
    inspect::{self, UdpFrameView},
};

/// Packet numbers that may still be accepted: the newest, and this many less one before it.
const REPLAY_WINDOW: u64 = 512;
/// TTL or hop limit of a reflected ping.
const PING_HOP_LIMIT: u8 = 64;

/// The rate limit of a user.
#[derive(Clone, Copy, Debug)]
struct Limit {
    interval_ns: u64,
    burst_ns: u64,
}

impl Limit {
    /// Takes a packet at `now_ns` into account, if there is budget for it. `level_ns` is how far the packets so far
    /// reach into the future at one interval each, counted from whichever start of a window makes it the most: more
    /// than `burst_ns` past now are more packets than `burst` and `rate` allow in that window.
    fn spend(self, level_ns: &mut u64, now_ns: u64) -> bool {
        let next = (*level_ns).max(now_ns) + self.interval_ns;
        let fits = next - now_ns <= self.burst_ns;
        if fits {
            *level_ns = next;
        }
        fits
    }
}

/// What is known of a user.
#[derive(Debug)]
struct Track {
    /// The grant that is published: which, and when it ends.
    grant: Option<(u32, Option<u64>)>,
    limit: Limit,
    /// The largest packet number accepted.
    newest: u64,
    /// Packet numbers accepted.
    accepted: Numbers,
    /// Where the budget stands, going by what should be let through.
    budget_ns: u64,
    /// Where the client is.
    client: Option<Place>,
    /// Packet numbers that were seen to be sent on.
    sent_on: Numbers,
    /// Where the budget stands, going by what was seen to be sent on.
    sent_on_ns: u64,
    /// What was seen to be relayed.
    uplink: Traffic,
    downlink: Traffic,
}

/// What should become of a packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Expected {
    direction: Direction,
    reason: Reason,
}

/// The judge of one run.
pub(super) struct Judge<'a> {
    population: &'a Population,
    tracks: Vec<Track>,
    lost_destinations: Vec<SocketAddr>,
    pub(super) violations: Violations,
}

impl<'a> Judge<'a> {
    pub(super) fn new(population: &'a Population) -> Self {
        let mut judge = Self {
            population,
            tracks: Vec::with_capacity(population.people.len()),
            lost_destinations: Vec::new(),
            violations: Violations::default(),
        };
        for person in &population.people {
            let interval_ns = u64::from(1_000_000_000 / person.rate);
            judge.tracks.push(Track {
                grant: Some((0, person.expires_ns)),
                limit: Limit {
                    interval_ns,
                    burst_ns: u64::from(person.burst) * interval_ns,
                },
                newest: 0,
                accepted: Numbers::default(),
                budget_ns: 0,
                client: None,
                sent_on: Numbers::default(),
                sent_on_ns: 0,
                uplink: Traffic::default(),
                downlink: Traffic::default(),
            });
        }
        judge
    }

    /// A user got its `nth` grant: everything starts afresh.
    pub(super) fn renewed(&mut self, user: u32, nth: u32) {
        let track = &mut self.tracks[user as usize];
        *track = Track {
            grant: Some((nth, None)),
            limit: track.limit,
            newest: 0,
            accepted: Numbers::default(),
            budget_ns: 0,
            client: None,
            sent_on: Numbers::default(),
            sent_on_ns: 0,
            uplink: Traffic::default(),
            downlink: Traffic::default(),
        };
    }

    pub(super) fn removed(&mut self, user: u32) {
        self.tracks[user as usize].grant = None;
    }

    pub(super) fn lost(&mut self, destination: SocketAddr) {
        self.lost_destinations.push(destination);
    }

    pub(super) fn found(&mut self, destination: SocketAddr) {
        self.lost_destinations.retain(|lost| *lost != destination);
    }

    /// Judges one packet.
    pub(super) fn judge(&mut self, now_ns: u64, packet: &Packet, frame: &[u8], treated: &Treated) {
        let seen = Seen {
            now_ns,
            packet,
            frame,
            treated,
        };
        // Before the expectation is: it changes what is known.
        self.check_invariants(&seen);
        let expected = self.expect(now_ns, packet);
        self.check_treatment(&seen, expected);
    }

    /// What the protocol has done with a packet, in its order.
    fn expect(&mut self, now_ns: u64, packet: &Packet) -> Expected {
        let (direction, reason) = match packet {
            Packet::Uplink(uplink) => (Direction::Uplink, self.expect_uplink(now_ns, uplink)),
            Packet::Downlink(downlink) => (Direction::Downlink, self.expect_downlink(downlink)),
            Packet::Other(other) => {
                let reason = match other.shape {
                    Shape::RandomToken => Reason::UnknownSession,
                    Shape::Truncated => Reason::Truncated,
                    Shape::Fragment => Reason::Fragment,
                    Shape::Unrelated => Reason::Unrelated,
                };
                (Direction::Uplink, reason)
            }
        };
        Expected { direction, reason }
    }

    fn expect_uplink(&mut self, now_ns: u64, uplink: &Uplink) -> Reason {
        let person = &self.population.people[uplink.user as usize];
        let track = &mut self.tracks[uplink.user as usize];
        let Some((_, expires_ns)) = track.grant.filter(|(nth, _)| *nth == uplink.grant) else {
            return Reason::UnknownSession;
        };
        if uplink.forged {
            return Reason::BadToken;
        }
        if expires_ns.is_some_and(|end| now_ns > end) {
            return Reason::Expired;
        }
        let too_old = track.newest >= REPLAY_WINDOW && uplink.pn <= track.newest - REPLAY_WINDOW;
        if too_old || !track.accepted.insert(uplink.pn) {
            return Reason::Replayed;
        }
        let is_newest = uplink.pn > track.newest;
        track.newest = track.newest.max(uplink.pn);
        if self.population.is_blocked(uplink.from.address.ip()) {
            return Reason::BlockedSource;
        }
        if !track.limit.spend(&mut track.budget_ns, now_ns) {
            return Reason::RateLimited;
        }
        if is_newest {
            track.client = Some(uplink.from);
        }
        if uplink.bytes == 0 {
            return Reason::Ping;
        }
        if self.lost_destinations.contains(&person.to) {
            return Reason::DestinationUnresolved;
        }
        Reason::Relayed
    }

    fn expect_downlink(&self, downlink: &Downlink) -> Reason {
        let track = &self.tracks[downlink.user as usize];
        let genuine = downlink.pretender.is_none();
        if genuine && track.grant.is_some() && track.client.is_some() {
            Reason::Relayed
        } else {
            Reason::Unsolicited
        }
    }

    /// What holds of everything that was sent on, whatever else.
    fn check_invariants(&mut self, seen: &Seen<'_>) {
        if seen.treated.processed.verdict != Verdict::Tx {
            return;
        }
        match seen.packet {
            Packet::Uplink(uplink) => self.check_sent_uplink(seen, uplink),
            Packet::Downlink(downlink) => self.check_sent_downlink(seen, downlink),
            Packet::Other(_) => {}
        }
    }

    fn check_sent_uplink(&mut self, seen: &Seen<'_>, uplink: &Uplink) {
        let track = &mut self.tracks[uplink.user as usize];
        match track.grant {
            Some((nth, None)) if nth == uplink.grant => {}
            Some((nth, Some(end))) if nth == uplink.grant && seen.now_ns <= end => {}
            Some((nth, Some(end))) if nth == uplink.grant => {
                let late = seen.now_ns - end;
                let what = format!("sent on {late} ns after the grant of user {} expired", uplink.user);
                self.violations.add(Invariant::GoneUser, seen, what);
                return;
            }
            _ => {
                let what = format!("sent on for user {}, whose grant was renewed or removed", uplink.user);
                self.violations.add(Invariant::GoneUser, seen, what);
                return;
            }
        }
        if !uplink.forged && !track.sent_on.insert(uplink.pn) {
            let what = format!("packet number {} of user {} was sent on before", uplink.pn, uplink.user);
            self.violations.add(Invariant::RelayedTwice, seen, what);
        }
        if !track.limit.spend(&mut track.sent_on_ns, seen.now_ns) {
            let person = &self.population.people[uplink.user as usize];
            let (user, rate, burst) = (uplink.user, person.rate, person.burst);
            let what = format!("user {user} got more than {burst} packets at once and {rate} a second");
            self.violations.add(Invariant::OverRate, seen, what);
        }
        track.uplink.packets += u64::from(uplink.bytes != 0);
        track.uplink.bytes += u64::from(uplink.bytes);
    }

    fn check_sent_downlink(&mut self, seen: &Seen<'_>, downlink: &Downlink) {
        let track = &mut self.tracks[downlink.user as usize];
        if track.grant.is_none() {
            let what = format!("sent to the client of user {}, who was removed", downlink.user);
            self.violations.add(Invariant::GoneUser, seen, what);
            return;
        }
        let to = UdpFrameView::read(&seen.treated.processed.frame)
            .ok()
            .map(|view| view.to);
        let client = track.client.map(|client| client.address);
        if to != client {
            let name =
                |address: Option<SocketAddr>| address.map_or("nowhere".to_owned(), |address| address.to_string());
            let (user, to, client) = (downlink.user, name(to), name(client));
            let what = format!("sent to {to}, but the newest authentic packet of user {user} came from {client}");
            self.violations.add(Invariant::WrongClient, seen, what);
        }
        track.downlink.packets += 1;
        track.downlink.bytes += u64::from(downlink.bytes);
    }

    fn check_treatment(&mut self, seen: &Seen<'_>, expected: Expected) {
        let Some((direction, reason)) = seen.treated.counted else {
            let what = format!("not counted once, as {}", expected.reason.name());
            self.violations.add(Invariant::Counters, seen, what);
            return;
        };
        if reason == Reason::RateLimited && expected.reason != Reason::RateLimited {
            let what = format!("rate_limited within the budget; expected {}", expected.reason.name());
            self.violations.add(Invariant::WithinRate, seen, what);
        } else if (direction, reason) != (expected.direction, expected.reason) {
            let what = format!(
                "{} {}, expected {} {}",
                direction.name(),
                reason.name(),
                expected.direction.name(),
                expected.reason.name()
            );
            self.violations.add(Invariant::Treatment, seen, what);
        } else if let Err(what) = self.check_output(seen, expected) {
            self.violations.add(Invariant::Output, seen, what);
        }
    }

    /// Whether the frame afterwards is what it should be.
    fn check_output(&self, seen: &Seen<'_>, expected: Expected) -> Result<(), String> {
        let processed = &seen.treated.processed;
        if processed.verdict != expected.reason.verdict(true, false).into() {
            return Err(format!("{} for {}", processed.verdict.name(), expected.reason.name()));
        }
        if processed.verdict != Verdict::Tx {
            return if processed.frame == seen.frame {
                Ok(())
            } else {
                Err("not sent on, but changed".to_owned())
            };
        }
        let read = |frame| UdpFrameView::read(frame).map_err(|error| error.to_string());
        let (before, after) = (read(seen.frame)?, read(&processed.frame)?);
        if !after.has_right_checksums() {
            return Err(format!("a checksum is wrong:\n{after}"));
        }
        let (from, to, to_mac, hop_limit, skipped) = self.route(seen.packet, expected, &before);
        let found = (after.from, after.to, after.to_mac, after.hop_limit);
        if found != (from, to, to_mac, hop_limit) || after.from_mac != self.population.world.mac {
            let mac = inspect::mac(to_mac);
            return Err(format!(
                "expected {from} > {to} via {mac} with hop limit {hop_limit}, found\n{after}"
            ));
        }
        if after.payload != before.payload[skipped..] {
            return Err("the payload is another".to_owned());
        }
        Ok(())
    }

    /// What a packet that is sent on must show: source, destination, next hop, hop limit; and how many bytes are taken
    /// off its payload.
    fn route(
        &self,
        packet: &Packet,
        expected: Expected,
        before: &UdpFrameView,
    ) -> (SocketAddr, SocketAddr, [u8; 6], u8, usize) {
        let hop_limit = before.hop_limit - 1;
        match packet {
            Packet::Uplink(uplink) if expected.reason == Reason::Relayed => {
                let person = &self.population.people[uplink.user as usize];
                (person.egress, person.to, NEXT_HOP.mac, hop_limit, 24)
            }
            Packet::Downlink(downlink) => {
                let person = &self.population.people[downlink.user as usize];
                let client = self.tracks[downlink.user as usize].client;
                let client = client.expect("what is relayed downlink has a client");
                (person.listener, client.address, client.mac, hop_limit, 0)
            }
            _ => (before.to, before.from, before.from_mac, PING_HOP_LIMIT, 0),
        }
    }

    /// Checks what a backend keeps of a user against what was seen of its packets.
    pub(super) fn check_state(&mut self, now_ns: u64, user: u32, state: &UserState) {
        let track = &self.tracks[user as usize];
        if track.grant.is_none() {
            return;
        }
        let person = &self.population.people[user as usize];
        let place = state.client.map(|client| (client.address, client.mac, client.listener));
        let expected = track.client.map(|place| (place.address, place.mac, person.listener));
        let mut wrong = Vec::new();
        let mut compare = |what: &str, found: String, expected: String| {
            if found != expected {
                wrong.push(format!("{what} is {found}, expected {expected}"));
            }
        };
        compare("newest", state.newest.to_string(), track.newest.to_string());
        compare("tat_ns", state.tat_ns.to_string(), track.budget_ns.to_string());
        compare("client", format!("{place:?}"), format!("{expected:?}"));
        compare("uplink", state.uplink.to_string(), track.uplink.to_string());
        compare("downlink", state.downlink.to_string(), track.downlink.to_string());
        if !wrong.is_empty() {
            let what = format!("what is kept of user {user}: {}", wrong.join("; "));
            self.violations.add_without_packet(Invariant::State, now_ns, what);
        }
    }
}

/// One packet, and what became of it.
pub(super) struct Seen<'a> {
    pub(super) now_ns: u64,
    pub(super) packet: &'a Packet,
    pub(super) frame: &'a [u8],
    pub(super) treated: &'a Treated,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However packets that were let through are cut into windows: none holds more than the burst and the rate allow.
    #[test]
    fn the_budget_is_the_exact_bound_of_every_window() {
        let limit = Limit {
            interval_ns: 10,
            burst_ns: 50,
        };
        let mut dice = super::super::dice::Dice::new(3, 3);
        let (mut level_ns, mut now_ns) = (0, 1_000);
        let (mut let_through, mut refused) = (Vec::new(), Vec::new());
        for _ in 0..2_000 {
            now_ns += dice.below(12);
            if limit.spend(&mut level_ns, now_ns) {
                let_through.push(now_ns);
            } else {
                refused.push(now_ns);
            }
        }
        let bound = |from: u64, to: u64| (to - from + limit.burst_ns) / limit.interval_ns;
        for (i, from) in let_through.iter().enumerate() {
            for (j, to) in let_through.iter().enumerate().skip(i) {
                assert!((j - i + 1) as u64 <= bound(*from, *to), "{from}..={to}");
            }
        }
        assert!(!refused.is_empty());
        for to in refused {
            let before = let_through.iter().filter(|at| **at <= to);
            let starts: Vec<u64> = before.copied().collect();
            let full = starts
                .iter()
                .enumerate()
                .any(|(i, from)| (starts.len() - i + 1) as u64 > bound(*from, to));
            assert!(full, "the packet at {to} had budget");
        }
    }
}
