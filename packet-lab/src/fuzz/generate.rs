//! Making worlds, and what happens in them: mostly what an ordinary relay sees, so that all of its paths are reached,
//! with everything that senders and operators can do wrong in between.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::{
    mutate::mutate,
    sequence::{Action, START_NS, Step},
};
use crate::{
    craft::{self, Checksum, Grant, TOKEN_BYTES, UdpFrame, options_with_token, without_udp},
    simulate::dice::Dice,
    world::{Carrier, Destination, Limit, NextHop, Tags, User, World, address},
};

const SLOTS: u32 = 16;
const ETHERNET_BYTES: usize = 14;
/// So many frames of a sequence may be sent again.
const MOST_KEPT: usize = 32;

const LISTENERS: [&str; 8] = [
    "192.0.2.1:4500",
    "[2001:db8::1]:4500",
    "192.0.2.1:10003",
    "[2001:db8::2]:10001",
    "192.0.2.3:53",
    "192.0.2.1:65535",
    "[2001:db8::3]:1",
    "[2001:db8::1]:4501",
];
const EGRESS: [&str; 6] = [
    "192.0.2.1",
    "2001:db8::1",
    "192.0.2.2",
    "2001:db8::2",
    "192.0.2.254",
    "2001:db8::ffff",
];
const DESTINATIONS: [&str; 6] = [
    "198.51.100.7:5000",
    "[2001:db8:d::7]:5000",
    "198.51.100.7:5001",
    "[2001:db8:d::8]:65535",
    "198.51.100.255:1",
    "[2001:db8:d::7]:5001",
];
const BLOCKLISTS: [&[&str]; 10] = [
    &[],
    &[],
    &[],
    &["203.0.113.6/32"],
    &["203.0.113.2/32", "2001:db8:c::2/128"],
    &["203.0.113.4/30"],
    &["2001:db8:c::4/126", "203.0.113.0/31"],
    &["0.0.0.0/0", "2000::/3"],
    &["::/0"],
    &["::/2", "203.0.113.4/31", "::ffff:0:0/97"],
];
/// One in so many IPv6 packets has an IPv4-mapped address.
const MAPPED_ONE_IN: u64 = 48;
const CLIENT_MACS: [[u8; 6]; 4] = [[0x02, 0, 0, 0, 0, 0xc1], [0x02, 0, 0, 0, 0, 0xc2], [0xff; 6], [0; 6]];

/// An IP protocol for experiments (RFC 3692).
const EXPERIMENTAL: u8 = 253;

/// Moves the token of a sealed payload into an option, with others before it, and perhaps with what is wrong with it.
fn put_into_option(dice: &mut Dice, frame: &mut UdpFrame) {
    let Some((token, payload)) = frame.payload.split_first_chunk::<TOKEN_BYTES>() else {
        return;
    };
    let before = match dice.below(8) {
        0 => vec![1; dice.between(1, 14) as usize],
        1 => vec![0x94, 4, 0, 0],
        2 => vec![0x44, dice.below(6) as u8, 5, 0],
        3 => vec![0x83, 3, 4, 0],
        _ => Vec::new(),
    };
    frame.options = options_with_token(&before, token);
    if one_in(dice, 8) {
        let at = dice.below(frame.options.len() as u64) as usize;
        frame.options[at] = pick(dice, &[0, 1, 2, 25, 26, 27, 0x9e, u8::MAX]);
    }
    if one_in(dice, 8) {
        frame.options.truncate(4 * dice.between(1, 7) as usize);
    }
    frame.payload = payload.to_vec();
}

/// Puts headers between the IPv6 header of a frame and what follows it.
fn put_extension_headers(dice: &mut Dice, frame: &mut Vec<u8>) {
    const NEXT_HEADER: usize = 14 + 6;
    for _ in 0..dice.between(1, 4) {
        let kind = pick(dice, &[0, 43, 44, 50, 51, 59, 60, 60, 135, 139, 140, EXPERIMENTAL]);
        let more = if kind == 44 { 0 } else { dice.below(3) as u8 };
        let mut header = vec![0; 8 * (usize::from(more) + 1)];
        (header[0], header[1]) = (frame[NEXT_HEADER], more);
        if one_in(dice, 8) {
            header[1] = dice.number() as u8;
        }
        frame[NEXT_HEADER] = kind;
        frame.splice(54..54, header);
    }
    let length = (frame.len() - 54) as u16;
    frame[18..20].copy_from_slice(&length.to_be_bytes());
}

fn pick<T: Clone>(dice: &mut Dice, from: &[T]) -> T {
    from[dice.below(from.len() as u64) as usize].clone()
}

fn one_in(dice: &mut Dice, often: u64) -> bool {
    dice.below(often) == 0
}

/// Any world. Each has listeners, egress addresses and destinations of both families, and users.
pub(super) fn world(dice: &mut Dice) -> World {
    let mut some = |all: &[&str], least: u64| -> usize { dice.between(least, all.len() as u64) as usize };
    let (listeners, egress, destinations) = (some(&LISTENERS, 2), some(&EGRESS, 2), some(&DESTINATIONS, 2));
    // A relay has at most 32 egress addresses of a family: with fewer ports some slots would have none of them.
    let egress_ports = dice.between(2, 8) as u16;
    let mut world = World {
        relay_id: pick(dice, &[0, 7, u32::MAX]),
        header_key: (!one_in(dice, 3)).then(|| key(dice)),
        listeners: LISTENERS[..listeners].iter().map(|text| address(text)).collect(),
        egress: EGRESS[..egress].iter().map(|text| address(text)).collect(),
        first_egress_port: pick(dice, &[10_000, 10_000, 1, u16::MAX - egress_ports + 1]),
        egress_ports,
        max_users: SLOTS,
        carriers: pick(
            dice,
            &[
                vec![Carrier::Udp],
                vec![Carrier::Udp, Carrier::IpOption],
                vec![Carrier::IpOption],
            ],
        ),
        drop_unmatched: one_in(dice, 2),
        vlan: one_in(dice, 2),
        mtu: pick(dice, &[1_500, 1_500, 1_400, 600, 100]),
        icmp_per_second: pick(dice, &[1_000_000_000, 1_000_000, 1_000, 9, 0]),
        ..World::new()
    };
    world.destinations = DESTINATIONS[..destinations]
        .iter()
        .map(|text| Destination {
            to: address(text),
            next_hop: next_hop(dice),
        })
        .collect();
    // A world lasts long: most have one, and none that lets nothing through.
    world.destination_limit = (!one_in(dice, 8)).then(|| {
        let (rate, burst) = pick(dice, &[(1_000_000, 30), (1_000, 20), (1_000, 10), (50, 5)]);
        Limit { rate, burst }
    });
    for _ in 0..dice.between(1, 6) {
        let user = user(dice, &world, START_NS);
        world.users.retain(|other| other.slot != user.slot);
        world.users.push(user);
    }
    world
}

fn key(dice: &mut Dice) -> [u8; 16] {
    (u128::from(dice.number()) << 64 | u128::from(dice.number())).to_le_bytes()
}

fn next_hop(dice: &mut Dice) -> Option<NextHop> {
    (!one_in(dice, 12)).then(|| NextHop {
        mac: [0x02, 0, 0, 0, 0, pick(dice, &[0xd1, 0xd2])],
        mtu: pick(dice, &[1_500, 1_500, 1_400, 600, 100]),
        interface: 0,
        tags: if one_in(dice, 2) { tags(dice) } else { Tags::NONE },
    })
}

/// One or two, mostly such as others have too.
fn tags(dice: &mut Dice) -> Tags {
    let count = dice.between(1, 2) as usize;
    let mut tag = || {
        let control = pick(dice, &[1, 1, 2, 0, 0xfff]) | pick(dice, &[0, 0, 0, 0xe000, 0x1000]);
        (pick(dice, &[0x8100, 0x8100, 0x88a8]), control)
    };
    Tags::of([tag(), tag()].into_iter().take(count))
}

fn user(dice: &mut Dice, world: &World, now_ns: u64) -> User {
    // Most slots have an egress port in both families.
    let slots = u64::from(world.egress_ports) * (world.egress.len() as u64 / 2);
    let slots = if one_in(dice, 8) {
        u64::from(world.max_users)
    } else {
        slots.clamp(1, world.max_users.into())
    };
    let limits = [
        (10_000, 1_000),
        (10_000, 1_000),
        (1_000_000, 500),
        (1_000_000_000, u32::MAX),
        (u32::MAX, 10),
        (1_000, 2),
        (3, 1),
        (1, 5),
        (7, 1),
    ];
    let likely = if one_in(dice, 3) { limits.len() } else { 4 };
    let (rate, burst) = pick(dice, &limits[..likely]);
    let down_limit = one_in(dice, 3).then(|| {
        let (rate, burst) = pick(dice, &limits);
        Limit { rate, burst }
    });
    User {
        slot: dice.below(slots) as u32,
        salt: dice.number() as u32,
        key: key(dice),
        to: pick(dice, &world.destinations).to,
        rate,
        burst,
        down_limit,
        expires_ns: one_in(dice, 6).then(|| now_ns + dice.below(3_000_000_000)),
    }
}

/// A user, and the largest packet number that was sent for it.
#[derive(Clone, Debug)]
struct Known {
    user: User,
    pn: u64,
}

/// Writes sequences for a world.
pub(super) struct Author<'a> {
    dice: Dice,
    world: &'a World,
    corpus: &'a [Vec<u8>],
    now_ns: u64,
    users: Vec<Known>,
    /// Users that were: renewed, replaced or removed.
    past: Vec<Known>,
    sent: Vec<Vec<u8>>,
}

impl<'a> Author<'a> {
    /// Frames of the corpus are sent now and then, as they are, damaged, or for one of the world's users.
    pub(super) fn new(mut dice: Dice, world: &'a World, corpus: &'a [Vec<u8>]) -> Self {
        let known = |&user| Known {
            user,
            pn: pick(&mut dice, &[0, 0, 1_000_000, u64::MAX - 600, 1 << 42]),
        };
        Self {
            users: world.users.iter().map(known).collect(),
            dice,
            world,
            corpus,
            now_ns: START_NS,
            past: Vec::new(),
            sent: Vec::new(),
        }
    }

    /// So many steps.
    pub(super) fn steps(&mut self, count: usize) -> Vec<Step> {
        (0..count).map(|_| self.step()).collect()
    }

    /// These steps, with some left out, doubled, in another order or with damaged frames, and others between them.
    pub(super) fn vary(&mut self, base: &[Step]) -> Vec<Step> {
        let mut steps = Vec::new();
        let mut base_ns = base.first().map_or(0, |step| step.at_ns);
        self.now_ns = base_ns;
        let mut left = base.to_vec();
        if one_in(&mut self.dice, 4) && left.len() > 1 {
            let at = self.dice.below(left.len() as u64 - 1) as usize;
            let (one, other) = (left[at].action.clone(), left[at + 1].action.clone());
            (left[at].action, left[at + 1].action) = (other, one);
        }
        for step in left {
            while one_in(&mut self.dice, 6) {
                steps.push(self.step());
            }
            self.now_ns += step.at_ns.saturating_sub(base_ns);
            base_ns = step.at_ns;
            if one_in(&mut self.dice, 24) {
                continue;
            }
            let copies = if one_in(&mut self.dice, 16) { 2 } else { 1 };
            for _ in 0..copies {
                steps.push(self.varied(step.action.clone()));
            }
        }
        steps
    }

    fn varied(&mut self, mut action: Action) -> Step {
        match &mut action {
            Action::Send(frame) if one_in(&mut self.dice, 6) => mutate(&mut self.dice, frame),
            Action::Publish(user) => {
                let user = *user;
                self.forget(user.slot);
                self.users.push(Known { user, pn: 0 });
            }
            Action::Remove(slot) => {
                let slot = *slot;
                self.forget(slot);
            }
            _ => {}
        }
        Step {
            at_ns: self.now_ns,
            action,
        }
    }

    fn step(&mut self) -> Step {
        self.now_ns += self.pause();
        let action = if self.users.is_empty() {
            self.publish()
        } else if one_in(&mut self.dice, 24) {
            self.change()
        } else {
            let frame = self.frame();
            if self.sent.len() < MOST_KEPT {
                self.sent.push(frame.clone());
            } else {
                let at = self.dice.below(MOST_KEPT as u64) as usize;
                self.sent[at].clone_from(&frame);
            }
            Action::Send(frame)
        };
        Step {
            at_ns: self.now_ns,
            action,
        }
    }

    /// How long nothing happens: often not at all, and often up to where something ends.
    fn pause(&mut self) -> u64 {
        let known = self.dice.below(self.users.len().max(1) as u64) as usize;
        let user = self.users.get(known).map(|known| known.user);
        let of_user = user.map(|user| user.rate);
        let of_downlink = user.and_then(|user| user.down_limit).map(|limit| limit.rate);
        let of_destination = self.world.destination_limit.map(|limit| limit.rate);
        let rates: Vec<u32> = [of_user, of_downlink, of_destination].into_iter().flatten().collect();
        let rate = pick(&mut self.dice, if rates.is_empty() { &[1] } else { &rates });
        let interval_ns = 1_000_000_000 / u64::from(rate.max(1));
        match self.dice.below(32) {
            0 => 1,
            1 => interval_ns,
            2 => interval_ns.saturating_sub(1),
            3 => interval_ns + 1,
            4 => self.dice.below(1_000_000),
            5 => {
                let end = user.and_then(|user| user.expires_ns).unwrap_or(0);
                let left = end.saturating_sub(self.now_ns);
                (left + self.dice.below(3)).saturating_sub(1)
            }
            6 if one_in(&mut self.dice, 4) => self.dice.below(10_000_000_000),
            _ => 0,
        }
    }

    /// Something that the operator or the network does.
    fn change(&mut self) -> Action {
        match self.dice.below(8) {
            0..=2 => self.publish(),
            3 => self.remove(),
            4 | 5 => {
                let to = pick(&mut self.dice, &self.world.destinations).to;
                Action::NextHop(to, next_hop(&mut self.dice))
            }
            _ => {
                let prefixes = pick(&mut self.dice, &BLOCKLISTS);
                Action::Blocklist(prefixes.iter().map(|text| address::<IpNet>(text)).collect())
            }
        }
    }

    /// A new user, or another grant for one.
    fn publish(&mut self) -> Action {
        let mut user = user(&mut self.dice, self.world, self.now_ns);
        if one_in(&mut self.dice, 2)
            && let Some(renewed) = self.any_user()
        {
            user = User {
                salt: user.salt,
                key: user.key,
                expires_ns: user.expires_ns,
                ..renewed.user
            };
        }
        self.forget(user.slot);
        self.users.push(Known { user, pn: 0 });
        Action::Publish(user)
    }

    fn remove(&mut self) -> Action {
        let slot = match self.any_user() {
            Some(known) => known.user.slot,
            None => self.dice.below(self.world.max_users.into()) as u32,
        };
        self.forget(slot);
        Action::Remove(slot)
    }

    fn forget(&mut self, slot: u32) {
        let gone = self.users.iter().filter(|known| known.user.slot == slot).cloned();
        self.past.extend(gone);
        self.users.retain(|known| known.user.slot != slot);
    }

    fn any_user(&mut self) -> Option<Known> {
        let at = self.dice.below(self.users.len() as u64) as usize;
        self.users.get(at).cloned()
    }

    fn frame(&mut self) -> Vec<u8> {
        let mut frame = match self.dice.below(100) {
            0..=19 => self.downlink(),
            20..=24 if !self.sent.is_empty() => pick(&mut self.dice, &self.sent),
            25..=32 if !self.corpus.is_empty() => self.corpus_frame(),
            33..=34 => self.noise(),
            35 => self.another_protocol(),
            36..=41 => self.path_error(),
            _ => self.uplink(),
        };
        if one_in(&mut self.dice, 6) {
            mutate(&mut self.dice, &mut frame);
        }
        frame
    }

    /// A packet of a user, or of somebody who would like to be one.
    fn uplink(&mut self) -> Vec<u8> {
        let Some(user) = self.sender() else {
            return self.noise();
        };
        let payload = self.payload(user.user.to);
        let sealed = self.seal(&user, &payload);
        let of_the_other_family = one_in(&mut self.dice, 3);
        let to = self.listener(user.user.to.is_ipv4() != of_the_other_family);
        let from = self.client(to.is_ipv4());
        let mut frame = UdpFrame::new(from, to, sealed);
        // As the relay takes it, mostly.
        let likely = self.world.takes(Carrier::IpOption);
        let in_option = if likely {
            !one_in(&mut self.dice, 3)
        } else {
            one_in(&mut self.dice, 24)
        };
        if in_option && to.is_ipv4() {
            put_into_option(&mut self.dice, &mut frame);
        }
        self.dressed(frame)
    }

    /// Whose grant is used: seldom one that is no more.
    fn sender(&mut self) -> Option<Known> {
        if one_in(&mut self.dice, 40) && !self.past.is_empty() {
            return Some(pick(&mut self.dice, &self.past));
        }
        self.any_user()
    }

    /// Seals a payload, mostly as the relay expects it.
    fn seal(&mut self, known: &Known, payload: &[u8]) -> Vec<u8> {
        let pn = self.packet_number(known);
        let mut grant = Grant {
            slot: known.user.slot,
            salt: known.user.salt,
            key: known.user.key,
            header_key: self.world.header_key,
            relay_id: self.world.relay_id,
        };
        let dice = &mut self.dice;
        match dice.below(80) {
            0 => grant.slot = pick(dice, &[0, self.world.max_users - 1, self.world.max_users, u32::MAX]),
            1 => grant.salt ^= 1 << dice.below(32),
            2 => grant.key[dice.below(16) as usize] ^= 1,
            3 => grant.relay_id ^= 1 << dice.below(32),
            4 => {
                grant.header_key = if grant.header_key.is_some() {
                    None
                } else {
                    Some(key(dice))
                }
            }
            5 => {
                let said = (payload.len() as u16).wrapping_add(pick(dice, &[1, u16::MAX, 256, 24]));
                let mut sealed = grant.token(pn, said).to_vec();
                sealed.extend(payload);
                return sealed;
            }
            6 => {
                let mut sealed = grant.seal(pn, payload);
                sealed.truncate(dice.below(26) as usize);
                return sealed;
            }
            _ => {}
        }
        grant.seal(pn, payload)
    }

    /// The next number of a user, mostly; else one near an edge of the window, or far ahead.
    fn packet_number(&mut self, known: &Known) -> u64 {
        let dice = &mut self.dice;
        let pn = match dice.below(40) {
            0..=2 => known.pn,
            3..=5 => known.pn.saturating_sub(dice.between(1, 40)),
            6..=8 => known.pn.saturating_sub(dice.between(505, 515)),
            9 => known.pn.saturating_sub(dice.below(1_030)),
            10 | 11 => known.pn.saturating_add(dice.between(2, 40)),
            12 => known
                .pn
                .saturating_add(pick(dice, &[511, 512, 513, 1_023, 1_024, 1_025, 2_048])),
            13 if one_in(dice, 8) => known
                .pn
                .saturating_add(pick(dice, &[1 << 32, 1 << 42, (1 << 42) - 1_024])),
            14 if one_in(dice, 40) => u64::MAX - dice.below(600),
            _ => known.pn.saturating_add(1),
        };
        let user = self.users.iter_mut().find(|user| user.user == known.user);
        if let Some(user) = user {
            user.pn = user.pn.max(pn);
        }
        pn
    }

    /// A packet from a destination to an egress address and port, mostly to those of one of its users.
    fn downlink(&mut self) -> Vec<u8> {
        let Some(Known { user, .. }) = self.any_user() else {
            return self.noise();
        };
        let slot = if one_in(&mut self.dice, 12) {
            self.dice.below(u64::from(self.world.max_users) + 2) as u32
        } else {
            user.slot
        };
        let Some(mut to) = self.world.egress_endpoint(slot, user.to.is_ipv4()) else {
            return self.noise();
        };
        let mut from = user.to;
        let dice = &mut self.dice;
        match dice.below(40) {
            0 => from.set_port(from.port() ^ 1),
            1 => to.set_port(
                to.port()
                    .wrapping_add(pick(dice, &[1, u16::MAX, self.world.egress_ports])),
            ),
            2 => from = self.client(user.to.is_ipv4()),
            _ => {}
        }
        let payload = self.payload(to);
        self.dressed(UdpFrame::new(from, to, payload).from_mac([0x02, 0, 0, 0, 0, 0xd1]))
    }

    /// An ICMP error about a packet that was relayed uplink, or might have been.
    fn path_error(&mut self) -> Vec<u8> {
        let Some(Known { user, .. }) = self.any_user() else {
            return self.noise();
        };
        let Some(mut from) = self.world.egress_endpoint(user.slot, user.to.is_ipv4()) else {
            return self.noise();
        };
        let mut to = user.to;
        match self.dice.below(40) {
            0 => from.set_port(from.port() ^ 1),
            1 => to.set_port(to.port() ^ 1),
            2 => std::mem::swap(&mut from, &mut to),
            _ => {}
        }
        let payload = self.payload(to);
        let mut relayed = self.dressed(UdpFrame::new(from, to, payload));
        if one_in(&mut self.dice, 8) {
            mutate(&mut self.dice, &mut relayed);
        }
        let packet = relayed.get(ETHERNET_BYTES..).unwrap_or_default();
        let v4 = user.to.is_ipv4();
        let dice = &mut self.dice;
        let headers = if v4 { 28 } else { 48 };
        let quoted = pick(
            dice,
            &[headers, headers, headers + 100, headers + 1_180, headers - 1, 0],
        );
        let quote = &packet[..packet.len().min(quoted)];
        let kind = kind_of_error(dice, v4, packet.len() as u32);
        let router = self.client(v4).ip();
        let dice = &mut self.dice;
        let target = if one_in(dice, 40) { router } else { from.ip() };
        let hop_limit = pick(dice, &[64, 64, 64, 2, 1, 0]);
        let mut frame = craft::icmp(router, target, hop_limit, kind, quote);
        if one_in(dice, 16) {
            let behind = dice.between(1, 30) as usize;
            frame.extend(vec![dice.number() as u8; behind]);
        }
        frame
    }

    /// A payload, often of a length where something begins or ends.
    fn payload(&mut self, to: SocketAddr) -> Vec<u8> {
        let headers = if to.is_ipv4() { 28 } else { 48 };
        let dice = &mut self.dice;
        let length = match dice.below(16) {
            0 | 1 => 0,
            2 => 1,
            3 => dice.between(22, 26),
            4 => dice.between(1_498, 1_502) - headers,
            5 => dice.between(598, 602) - headers,
            6 | 7 => dice.between(98, 102) - headers,
            8 => dice.below(1_400),
            _ => dice.below(64),
        };
        let fill = dice.number().to_le_bytes();
        (0..length as usize).map(|at| fill[at % 8]).collect()
    }

    fn client(&mut self, v4: bool) -> SocketAddr {
        let host = self.dice.between(1, 6);
        let port = pick(&mut self.dice, &[40_000, 40_000, 40_000, 40_001, 4500, 0, u16::MAX]);
        let ip = if v4 {
            format!("203.0.113.{host}")
        } else if one_in(&mut self.dice, MAPPED_ONE_IN) {
            format!("::ffff:203.0.113.{host}")
        } else {
            format!("2001:db8:c::{host}")
        };
        SocketAddr::new(address(&ip), port)
    }

    /// A listener of this family, if there is one.
    fn listener(&mut self, v4: bool) -> SocketAddr {
        let all = &self.world.listeners;
        if !v4 && one_in(&mut self.dice, MAPPED_ONE_IN) {
            let mapped = |at: &SocketAddr| match at.ip() {
                IpAddr::V4(v4) => Some(SocketAddr::new(v4.to_ipv6_mapped().into(), at.port())),
                IpAddr::V6(_) => None,
            };
            if let Some(listener) = all.iter().find_map(mapped) {
                return listener;
            }
        }
        let mut of_family: Vec<SocketAddr> = all.iter().copied().filter(|at| at.is_ipv4() == v4).collect();
        if of_family.is_empty() {
            of_family.clone_from(all);
        }
        if one_in(&mut self.dice, 3) {
            return pick(&mut self.dice, &of_family);
        }
        of_family[0]
    }

    /// With headers that are mostly ordinary.
    fn dressed(&mut self, mut frame: UdpFrame) -> Vec<u8> {
        let dice = &mut self.dice;
        if one_in(dice, 8) {
            frame.from_mac = pick(dice, &CLIENT_MACS);
        }
        if one_in(dice, 8) {
            frame.hop_limit = pick(dice, &[0, 1, 1, 2, 255]);
        }
        if one_in(dice, 8) {
            frame.tos = dice.number() as u8;
            frame.identification = dice.number() as u16;
            frame.flow_label = dice.number() as u32 & 0xf_ffff;
            frame.dont_fragment = one_in(dice, 2);
        }
        if one_in(dice, 8) {
            let by = pick(dice, &[1, 0x100, 0x7fff, 0xfffe]);
            frame.checksum = pick(dice, &[Checksum::None, Checksum::Wrong(by)]);
        }
        if frame.options.is_empty() && one_in(dice, 16) {
            frame.options = vec![1; 4 * dice.between(1, 10) as usize];
        }
        if one_in(dice, 24) {
            frame = frame.fragment(pick(dice, &[0, 0, 0, 1, 185]), one_in(dice, 2));
        }
        let mut bytes = frame.build();
        if frame.from.is_ipv6() && one_in(dice, 24) {
            put_extension_headers(dice, &mut bytes);
        }
        if one_in(dice, 16) {
            let behind = dice.between(1, 30) as usize;
            bytes.extend(vec![dice.number() as u8; behind]);
        }
        if self.world.vlan && one_in(dice, 2) {
            bytes.splice(12..12, tags(dice).bytes());
        }
        bytes
    }

    /// A frame of the corpus, sometimes under a user's token.
    fn corpus_frame(&mut self) -> Vec<u8> {
        let frame = pick(&mut self.dice, self.corpus);
        if one_in(&mut self.dice, 2) {
            return frame;
        }
        let payload = frame.get(42..).unwrap_or_default().to_vec();
        let Some(user) = self.any_user() else { return frame };
        let sealed = self.seal(&user, &payload);
        let to = self.listener(user.user.to.is_ipv4());
        let from = self.client(to.is_ipv4());
        self.dressed(UdpFrame::new(from, to, sealed))
    }

    /// Bytes without sense, some of them behind headers that make some.
    fn noise(&mut self) -> Vec<u8> {
        let length = self.dice.between(14, 140) as usize;
        let mut bytes: Vec<u8> = (0..length).map(|_| self.dice.number() as u8).collect();
        let v4 = one_in(&mut self.dice, 2);
        if one_in(&mut self.dice, 4) {
            return bytes;
        }
        let to = self.listener(v4);
        let headers = UdpFrame::new(self.client(to.is_ipv4()), to, Vec::new()).build();
        let kept = self.dice.between(14, headers.len() as u64) as usize;
        let kept = kept.min(bytes.len());
        bytes[..kept].copy_from_slice(&headers[..kept]);
        bytes
    }

    fn another_protocol(&mut self) -> Vec<u8> {
        let v4 = one_in(&mut self.dice, 2);
        let to = self.listener(v4).ip();
        let (v4, from) = (to.is_ipv4(), self.client(to.is_ipv4()).ip());
        let protocol = pick(&mut self.dice, &[1, 6, 0, 43, 44, 58, 60, 136, 255]);
        let length = self.dice.below(64) as usize;
        let mut frame = without_udp(from, to, EXPERIMENTAL, &vec![17; length]);
        // Written over: the builder makes no headers that others must follow.
        frame[if v4 { 23 } else { 20 }] = protocol;
        frame
    }
}

/// Type, code and second word of an ICMP error about a packet of so many bytes: mostly one that there is.
fn kind_of_error(dice: &mut Dice, v4: bool, bytes: u32) -> (u8, u8, u32) {
    let kinds: &[u8] = if v4 {
        &[3, 3, 3, 11, 12, 4, 5]
    } else {
        &[1, 1, 2, 2, 3, 4, 137]
    };
    let kind = if one_in(dice, 24) {
        dice.number() as u8
    } else {
        pick(dice, kinds)
    };
    let code = dice.below(18) as u8;
    let code = if kind == 2 && !one_in(dice, 8) { 0 } else { code };
    let is_too_big = if v4 { kind == 3 && code == 4 } else { kind == 2 };
    let rest = if is_too_big {
        let mtus = [0, 68, 576, 1_260, 1_280, 1_281, 1_400, 1_500, 65_535, u32::MAX];
        let near = [bytes.saturating_sub(1), bytes, bytes + 1];
        if one_in(dice, 2) {
            pick(dice, &mtus)
        } else {
            pick(dice, &near)
        }
    } else {
        let pointer = dice.below(52) as u32;
        if v4 { pointer << 24 } else { pointer }
    };
    let rest = if one_in(dice, 16) {
        rest ^ 1 << dice.below(32)
    } else {
        rest
    };
    let code = if matches!((v4, kind), (true, 12) | (false, 4)) && !one_in(dice, 3) {
        0
    } else {
        code
    };
    (kind, code, rest)
}
