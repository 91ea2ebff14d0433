//! A user's client, its path to the relay, and its destination.

use super::{
    class::Class,
    dice::Dice,
    packet::Uplink,
    population::{Person, Place, START_NS, blocked_place, client_place, first_packet_number},
    profile::{PathModel, Profile},
};

/// Packets a second of users over their rate, whose rate is half of it.
const GREEDY_PPS: u32 = 400;
/// Packets a second of jittery users: so many that a late packet falls out of the replay window.
const JITTERY_PPS: u32 = 1_500;
/// One packet in so many is a ping, the first among them.
const PING_EACH: u64 = 64;
/// Packets of a burst.
const BURST: (u64, u64) = (8, 64);
/// Between the packets of a burst.
const BURST_GAP_NS: u64 = 20_000;
/// How long clients stay where they are.
const STAY_NS: u64 = 1_000_000_000;
/// How long after the first a duplicate arrives at most.
const DUPLICATE_NS: u64 = 5_000_000;
/// From relay to destination and back.
const ANSWER_NS: (u64, u64) = (2_000_000, 12_000_000);

/// By how many packet numbers a packet that is held back is behind the newest when it arrives: around the edge of the
/// replay window, which is 511.
const HELD_BACK: (u64, u64) = (508, 515);

/// A client.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) dice: Dice,
    class: Class,
    path: PathModel,
    interval_ns: u64,
    grant: u32,
    next_pn: u64,
    sent: u64,
    /// Packets left of the burst under way.
    burst_left: u64,
    /// How often it moved, and how often its NAT gave it another port.
    moves: u32,
    ports: u32,
    blocked: bool,
    /// When its last packet that was not overtaken arrives.
    last_arrival_ns: u64,
    /// Packets that the path holds back until one of this number has arrived.
    held: Vec<(u64, Uplink)>,
}

/// What a client did when it was its turn.
pub(super) struct Turn {
    pub(super) uplink: Uplink,
    pub(super) arrivals: Arrivals,
    /// When it is its turn again.
    pub(super) next_ns: u64,
}

/// When a packet arrives at the relay.
pub(super) enum Arrivals {
    Never,
    Once(u64),
    Twice([u64; 2]),
    /// Once a later one has: see [`Client::released`].
    Held,
}

impl Client {
    pub(super) fn new(profile: &Profile, person: &Person) -> Self {
        let pps = match person.class {
            Class::Greedy => GREEDY_PPS,
            Class::Jittery => JITTERY_PPS,
            _ => profile.pps,
        };
        Self {
            dice: Dice::new(profile.seed, person.id.into()),
            class: person.class,
            path: PathModel::from(&profile.path),
            interval_ns: u64::from(1_000_000_000 / pps),
            grant: 0,
            next_pn: first_packet_number(START_NS),
            sent: 0,
            burst_left: 0,
            moves: 0,
            ports: 0,
            blocked: false,
            last_arrival_ns: 0,
            held: Vec::new(),
        }
    }

    /// When it sends first, after the start of a run of this length.
    pub(super) fn start_ns(&mut self, length_ns: u64) -> u64 {
        let start_ns = self.dice.below((length_ns / 10).min(STAY_NS));
        self.next_pn = first_packet_number(START_NS + start_ns);
        start_ns
    }

    /// When it moves next; never if it stays.
    pub(super) fn next_move_ns(&mut self, now_ns: u64, length_ns: u64) -> Option<u64> {
        match self.class {
            Class::Roaming | Class::Rebinding => Some(now_ns + self.dice.around(STAY_NS.min(length_ns / 4)).max(1)),
            // There, and back.
            Class::Blocked if self.moves < 2 => Some(now_ns + self.dice.around(length_ns / 3).max(1)),
            _ => None,
        }
    }

    pub(super) fn relocate(&mut self, person: &Person) {
        match person.class {
            Class::Rebinding => self.ports += 1,
            Class::Blocked => {
                self.blocked = !self.blocked;
                self.moves += 1;
            }
            _ => {
                self.moves += 1;
                self.ports += 1;
            }
        }
    }

    pub(super) fn place(&self, person: &Person) -> Place {
        if self.blocked {
            blocked_place(person)
        } else {
            client_place(person, self.moves, self.ports)
        }
    }

    /// Goes on with the new grant.
    pub(super) fn adopt(&mut self, now_ns: u64) {
        self.grant += 1;
        self.next_pn = first_packet_number(now_ns);
    }

    /// Its turn to send.
    pub(super) fn send(&mut self, now_ns: u64, person: &Person) -> Turn {
        let is_ping = self.sent.is_multiple_of(PING_EACH);
        let uplink = Uplink {
            class: self.class,
            user: person.id,
            grant: self.grant,
            pn: self.next_pn,
            bytes: if is_ping { 0 } else { self.payload_bytes() },
            from: self.place(person),
            forged: false,
        };
        self.sent += 1;
        self.next_pn += 1;
        let arrivals = self.travel(now_ns, &uplink);
        Turn {
            uplink,
            arrivals,
            next_ns: now_ns + self.pause_ns(),
        }
    }

    /// What the path held back until this packet number arrived.
    pub(super) fn released(&mut self, pn: u64) -> Vec<Uplink> {
        let mut released = Vec::new();
        self.held.retain(|(until, uplink)| {
            let stays = *until > pn;
            if !stays {
                released.push(*uplink);
            }
            stays
        });
        released
    }

    /// Voice and answers are small, the rest is as large as fits.
    fn payload_bytes(&mut self) -> u16 {
        let bytes = if self.dice.hits(700_000) {
            self.dice.between(20, 200)
        } else {
            self.dice.between(200, 1_200)
        };
        bytes as u16
    }

    fn pause_ns(&mut self) -> u64 {
        if self.class != Class::Bursty {
            return self.dice.around(self.interval_ns).max(1);
        }
        if self.burst_left > 0 {
            self.burst_left -= 1;
            return BURST_GAP_NS;
        }
        self.burst_left = self.dice.between(BURST.0, BURST.1) - 1;
        self.dice.around(self.interval_ns * (self.burst_left + 1))
    }

    fn travel(&mut self, now_ns: u64, uplink: &Uplink) -> Arrivals {
        let path = self.path;
        if self.loses() {
            return Arrivals::Never;
        }
        let is_late = self.class == Class::Jittery && self.dice.hits(path.late);
        if is_late && self.dice.hits(500_000) {
            let until = uplink.pn + self.dice.between(HELD_BACK.0, HELD_BACK.1);
            self.held.push((until, *uplink));
            return Arrivals::Held;
        }
        let mut at_ns = now_ns + path.delay_ns + self.dice.below(path.jitter_ns + 1);
        if is_late {
            at_ns += self.dice.between(path.late_ns / 4, path.late_ns);
        } else if self.dice.hits(path.reorder) {
            at_ns += self.dice.between(0, path.reorder_ns);
        } else {
            at_ns = at_ns.max(self.last_arrival_ns + 1);
            self.last_arrival_ns = at_ns;
        }
        if self.dice.hits(path.duplicate) {
            return Arrivals::Twice([at_ns, at_ns + self.dice.between(1, DUPLICATE_NS)]);
        }
        Arrivals::Once(at_ns)
    }

    /// Whether the path loses a packet.
    pub(super) fn loses(&mut self) -> bool {
        self.dice.hits(self.path.loss)
    }

    /// What its destination answers to a packet: when it arrives at the relay, its number and its bytes of payload.
    pub(super) fn answers(&mut self, now_ns: u64, uplink: &Uplink) -> Vec<(u64, u64, u16)> {
        let count = match self.class {
            Class::Bursty => self.dice.between(0, 2),
            _ => u64::from(self.dice.hits(800_000)),
        };
        let answer = |nth| {
            let at_ns = now_ns + self.dice.between(ANSWER_NS.0, ANSWER_NS.1);
            (at_ns, uplink.pn << 2 | nth, self.payload_bytes())
        };
        (0..count).map(answer).collect()
    }
}
