//! Those who attack the relay. They know what attackers may know: the header key, which every client has; users'
//! handles; and packets that they recorded on the way.

use super::{
    class::Class,
    dice::Dice,
    packet::{Downlink, Other, Packet, Shape, Uplink},
    population::{Population, attacker_place, destination},
};

/// Recorded packets that are kept.
const RECORDED: usize = 4_096;
/// One packet in so many is recorded.
const RECORD_EACH: u64 = 5;

/// What was recorded of the users' packets on their way to the relay.
#[derive(Debug, Default)]
pub(super) struct Recording {
    packets: Vec<Uplink>,
    seen: u64,
}

impl Recording {
    /// Sees a packet that a user's client sent arrive at the relay.
    pub(super) fn see(&mut self, uplink: &Uplink) {
        self.seen += 1;
        if !self.seen.is_multiple_of(RECORD_EACH) {
            return;
        }
        if self.packets.len() < RECORDED {
            self.packets.push(*uplink);
        } else {
            let oldest = (self.seen / RECORD_EACH) as usize % RECORDED;
            self.packets[oldest] = *uplink;
        }
    }

    fn any(&self, dice: &mut Dice) -> Option<Uplink> {
        let nth = dice.below(self.packets.len() as u64) as usize;
        self.packets.get(nth).copied()
    }
}

/// One attack.
#[derive(Debug)]
pub(super) struct Attacker {
    pub(super) class: Class,
    interval_ns: u64,
    dice: Dice,
}

impl Attacker {
    pub(super) fn new(seed: u64, class: Class, pps: u32) -> Self {
        Self {
            class,
            interval_ns: (1_000_000_000 / u64::from(pps)).max(1),
            dice: Dice::new(seed, (1 << 32) + class as u64),
        }
    }

    /// How long until it sends again.
    pub(super) fn pause_ns(&mut self) -> u64 {
        self.dice.around(self.interval_ns).max(1)
    }

    /// The next packet; none while there is nothing to replay yet.
    pub(super) fn packet(&mut self, population: &Population, recording: &Recording) -> Option<Packet> {
        match self.class {
            Class::RandomTokens => Some(self.other(Shape::RandomToken)),
            Class::ForgedTags => Some(self.forged(population, false)),
            Class::ReplayedPackets => self.replayed(recording, false),
            Class::Unsolicited => Some(self.unsolicited(population)),
            Class::BlocklistedSources if self.dice.hits(500_000) => Some(self.forged(population, true)),
            Class::BlocklistedSources => self.replayed(recording, true),
            Class::Malformed => {
                let shapes = [Shape::Truncated, Shape::Fragment, Shape::Unrelated];
                let nth = self.dice.below(shapes.len() as u64) as usize;
                Some(self.other(shapes[nth]))
            }
            // Users are no attackers.
            _ => None,
        }
    }

    fn other(&mut self, shape: Shape) -> Packet {
        let is_v4 = self.dice.hits(500_000);
        Packet::Other(Other {
            class: self.class,
            shape,
            from: attacker_place(&mut self.dice, is_v4, false),
            number: self.dice.number(),
        })
    }

    fn forged(&mut self, population: &Population, blocklisted: bool) -> Packet {
        let user = self.dice.below(population.people.len() as u64) as u32;
        let is_v4 = population.people[user as usize].is_v4;
        Packet::Uplink(Uplink {
            class: self.class,
            user,
            grant: 0,
            // Beyond all that the user sent: were the tag not checked, the window would move there.
            pn: u64::MAX - self.dice.below(1 << 20),
            bytes: self.dice.between(0, 200) as u16,
            from: attacker_place(&mut self.dice, is_v4, blocklisted),
            forged: true,
        })
    }

    fn replayed(&mut self, recording: &Recording, blocklisted: bool) -> Option<Packet> {
        let original = recording.any(&mut self.dice)?;
        let is_v4 = original.from.address.is_ipv4();
        Some(Packet::Uplink(Uplink {
            class: self.class,
            from: attacker_place(&mut self.dice, is_v4, blocklisted),
            ..original
        }))
    }

    fn unsolicited(&mut self, population: &Population) -> Packet {
        let user = self.dice.below(population.people.len() as u64) as u32;
        let person = &population.people[user as usize];
        let mut pretender = match self.dice.below(3) {
            0 => attacker_place(&mut self.dice, person.is_v4, false).address,
            // Another user's destination.
            1 => destination(person.is_v4, self.dice.below(16) as u32),
            // The user's own, from another port.
            _ => person.to,
        };
        if pretender == person.to {
            pretender.set_port(person.to.port() + 1_000);
        }
        Packet::Downlink(Downlink {
            class: self.class,
            user,
            pretender: Some(pretender),
            number: self.dice.number(),
            bytes: self.dice.between(1, 1_200) as u16,
        })
    }
}
