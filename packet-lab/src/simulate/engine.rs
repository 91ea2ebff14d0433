//! Virtual time: what happens next, and what follows from it.

use std::{
    cmp::{Ordering, Reverse},
    collections::{BTreeMap, BinaryHeap},
    hash::{DefaultHasher, Hasher as _},
};

use relay_ebpf::verdict::{Direction, Reason};

use super::{
    SLICE_MS,
    attack::{Attacker, Recording},
    class::Class,
    client::{Arrivals, Client, Turn},
    judge::{Judge, Seen},
    packet::{Downlink, Packet, Uplink},
    population::{NEXT_HOP, Population, START_NS, stranded},
    profile::Profile,
    report::{Flow, Report, Row, Slice},
    subject::{Subject, Treated},
    violation::Invariant,
};
use crate::{
    backend::{BackendError, Counters, counter},
    inspect::UdpFrameView,
    lab::moved,
};

const SLICE_NS: u64 = SLICE_MS * 1_000_000;
/// How long the client of a renewed grant goes on with the old one.
const ADOPT_NS: u64 = 200_000_000;
/// How long a stranded user's destination is without a next hop.
const STRANDED_NS: u64 = 500_000_000;

/// Something that happens.
#[derive(Debug)]
enum Event {
    /// A client's turn to send.
    Send(u32),
    /// A client moves, or its NAT does.
    Move(u32),
    /// A client learns of its new grant.
    Adopt(u32),
    /// A packet arrives at the relay.
    Arrive(Packet),
    /// An attacker's turn to send.
    Attack(usize),
    /// The operator renews a user's grant.
    Renew(u32),
    /// The operator removes a user.
    Remove(u32),
    /// The next hop of a destination is lost, or found again.
    NextHop { is_v4: bool, known: bool },
    /// The operator sets the blocklist: every client's address is checked anew.
    Block,
}

/// An event at its time. Ties are broken by who it is about and then by its order there, so that nobody's depend on
/// who else is there.
#[derive(Debug)]
struct Timed {
    at_ns: u64,
    actor: u64,
    nth: u64,
    event: Event,
}

impl Timed {
    const fn key(&self) -> (u64, u64, u64) {
        (self.at_ns, self.actor, self.nth)
    }
}

impl PartialEq for Timed {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Timed {}

impl PartialOrd for Timed {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Timed {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key().cmp(&other.key())
    }
}

const OPERATOR: u64 = 0;
const FIRST_USER: u64 = 1;
const FIRST_ATTACKER: u64 = 1 << 32;

/// What is to happen.
#[derive(Debug, Default)]
struct Queue {
    heap: BinaryHeap<Reverse<Timed>>,
    /// Events so far, by actor.
    nth: BTreeMap<u64, u64>,
    of_users: Vec<u64>,
}

impl Queue {
    fn push(&mut self, at_ns: u64, actor: u64, event: Event) {
        let nth = match actor
            .checked_sub(FIRST_USER)
            .and_then(|user| self.of_users.get_mut(user as usize))
        {
            Some(nth) => nth,
            None => self.nth.entry(actor).or_default(),
        };
        *nth += 1;
        self.heap.push(Reverse(Timed {
            at_ns,
            actor,
            nth: *nth,
            event,
        }));
    }

    fn push_for(&mut self, at_ns: u64, user: u32, event: Event) {
        self.push(at_ns, FIRST_USER + u64::from(user), event);
    }

    fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }

    fn pop(&mut self) -> Option<(u64, Event)> {
        self.heap.pop().map(|Reverse(timed)| (timed.at_ns, timed.event))
    }
}

/// What each user's packets met, in their order: reason, direction, and a digest of what came out.
pub(super) type Met = Vec<Vec<u32>>;

/// What a run gives.
pub(super) struct Outcome {
    pub(super) report: Report,
    pub(super) met: Met,
}

/// A run.
pub(super) struct Run<'a> {
    profile: &'a Profile,
    population: &'a Population,
    subject: Subject,
    judge: Judge<'a>,
    queue: Queue,
    clients: Vec<Client>,
    attackers: Vec<Attacker>,
    recording: Recording,
    rows: BTreeMap<Class, Row>,
    timeline: Vec<Slice>,
    met: Met,
    baseline: Option<Met>,
    /// What the backend's counters must be.
    counted: Counters,
    packets: u64,
    compared: u64,
    end_ns: u64,
}

impl<'a> Run<'a> {
    pub(super) fn new(
        profile: &'a Profile,
        population: &'a Population,
        subject: Subject,
        baseline: Option<Met>,
    ) -> Self {
        let users = population.people.len();
        let clients = population.people.iter().map(|person| Client::new(profile, person));
        let attacks = profile.attack.iter().filter(|(_, pps)| **pps > 0);
        let mut run = Self {
            profile,
            population,
            subject,
            judge: Judge::new(population),
            queue: Queue {
                of_users: vec![0; users],
                ..Queue::default()
            },
            clients: clients.collect(),
            attackers: attacks
                .map(|(class, pps)| Attacker::new(profile.seed, *class, *pps))
                .collect(),
            recording: Recording::default(),
            rows: BTreeMap::new(),
            timeline: Vec::new(),
            met: vec![Vec::new(); users],
            baseline,
            counted: Counters::new(),
            packets: 0,
            compared: 0,
            end_ns: START_NS + profile.end_ns(),
        };
        run.prepare();
        run
    }

    fn prepare(&mut self) {
        let length_ns = self.profile.end_ns();
        for person in &self.population.people {
            self.rows
                .entry(person.class)
                .or_insert_with(|| empty_row(person.class))
                .users += 1;
            let client = &mut self.clients[person.id as usize];
            self.queue
                .push_for(START_NS + client.start_ns(length_ns), person.id, Event::Send(person.id));
            if let Some(at_ns) = client.next_move_ns(START_NS, length_ns) {
                self.queue.push_for(at_ns, person.id, Event::Move(person.id));
            }
            let change_ns = START_NS + client.dice.between(length_ns / 10 * 3, length_ns / 10 * 7);
            match person.class {
                Class::Renewed => self.queue.push(change_ns, OPERATOR, Event::Renew(person.id)),
                Class::Removed => self.queue.push(change_ns, OPERATOR, Event::Remove(person.id)),
                _ => {}
            }
        }
        for is_v4 in [true, false] {
            let at_ns = START_NS + length_ns / 2;
            for (at_ns, known) in [(at_ns, false), (at_ns + STRANDED_NS.min(length_ns / 4), true)] {
                self.queue.push(at_ns, OPERATOR, Event::NextHop { is_v4, known });
            }
        }
        self.queue.push(START_NS, OPERATOR, Event::Block);
        self.queue.push(START_NS + length_ns / 10 * 6, OPERATOR, Event::Block);
        for (nth, attacker) in self.attackers.iter_mut().enumerate() {
            self.rows.insert(attacker.class, empty_row(attacker.class));
            let actor = FIRST_ATTACKER + attacker.class as u64;
            let first_ns = START_NS + attacker.pause_ns();
            if first_ns < self.end_ns {
                self.queue.push(first_ns, actor, Event::Attack(nth));
            }
        }
    }

    /// Runs to the end, when the last packet has arrived; `progress` is told virtual milliseconds and packets.
    pub(super) fn go(mut self, progress: &mut dyn FnMut(u64, u64)) -> Result<Outcome, BackendError> {
        let mut slice_end_ns = START_NS;
        let mut now_ns = START_NS;
        while let Some((at_ns, event)) = self.next_event(now_ns) {
            now_ns = at_ns;
            while now_ns >= slice_end_ns {
                self.check_counters(slice_end_ns)?;
                let at_ms = (slice_end_ns - START_NS) / 1_000_000;
                self.timeline.push(Slice {
                    at_ms,
                    ..Slice::default()
                });
                slice_end_ns += SLICE_NS;
                progress(at_ms, self.packets);
            }
            self.happen(now_ns, event)?;
        }
        self.check_counters(now_ns)?;
        for person in &self.population.people {
            let state = self.subject.backend().user(person.id);
            self.judge.check_state(now_ns, person.id, &state);
        }
        let end = (self.profile.end_ns() / 1_000_000, self.packets);
        progress(end.0, end.1);
        Ok(self.outcome())
    }

    /// What happens next. When nothing more does, what the path still holds back arrives.
    fn next_event(&mut self, now_ns: u64) -> Option<(u64, Event)> {
        if self.queue.is_empty() {
            for user in 0..self.clients.len() as u32 {
                self.release(now_ns, user, u64::MAX);
            }
        }
        self.queue.pop()
    }

    /// Lets go what the path held back until this packet number arrived.
    fn release(&mut self, now_ns: u64, user: u32, pn: u64) {
        for uplink in self.clients[user as usize].released(pn) {
            self.queue
                .push_for(now_ns + 1, user, Event::Arrive(Packet::Uplink(uplink)));
        }
    }

    fn outcome(self) -> Outcome {
        let mut timeline = self.timeline;
        while timeline
            .last()
            .is_some_and(|last| last.uplink.all() + last.downlink.all() + last.attack.all() == 0)
        {
            timeline.pop();
        }
        Outcome {
            met: self.met,
            report: Report {
                profile: self.profile.clone(),
                stopped_before_attack: false,
                backend: self.subject.name().to_owned(),
                packets: self.packets,
                compared: self.compared,
                rows: self.rows.into_values().collect(),
                timeline,
                violation_count: self.judge.violations.count,
                violations: self.judge.violations.first,
            },
        }
    }

    fn happen(&mut self, now_ns: u64, event: Event) -> Result<(), BackendError> {
        match event {
            Event::Send(user) => self.send(now_ns, user),
            Event::Move(user) => self.move_client(now_ns, user),
            Event::Adopt(user) => self.clients[user as usize].adopt(now_ns),
            Event::Arrive(packet) => self.arrive(now_ns, &packet)?,
            Event::Attack(nth) => self.attack(now_ns, nth)?,
            Event::Renew(user) => {
                self.subject.backend().publish(&self.population.user(user, 1))?;
                self.judge.renewed(user, 1);
                self.queue.push_for(now_ns + ADOPT_NS, user, Event::Adopt(user));
            }
            Event::Remove(user) => {
                self.subject.backend().remove(user);
                self.judge.removed(user);
            }
            Event::NextHop { is_v4, known } => {
                let to = stranded(is_v4);
                self.subject.backend().set_next_hop(to, known.then_some(NEXT_HOP))?;
                if known {
                    self.judge.found(to);
                } else {
                    self.judge.lost(to);
                }
            }
            Event::Block => self.subject.backend().set_blocklist(&self.population.blocklist)?,
        }
        Ok(())
    }

    fn send(&mut self, now_ns: u64, user: u32) {
        let person = &self.population.people[user as usize];
        let flow = &mut flows(&mut self.rows, person.class).uplink;
        let Turn {
            uplink,
            arrivals,
            next_ns,
        } = self.clients[user as usize].send(now_ns, person);
        flow.offered += 1;
        let arrivals_ns: &[u64] = match &arrivals {
            Arrivals::Never => {
                flow.lost += 1;
                &[]
            }
            Arrivals::Once(at_ns) => std::slice::from_ref(at_ns),
            Arrivals::Twice(both) => {
                flow.duplicated += 1;
                both
            }
            Arrivals::Held => &[],
        };
        for &at_ns in arrivals_ns {
            self.queue.push_for(at_ns, user, Event::Arrive(Packet::Uplink(uplink)));
        }
        if next_ns < self.end_ns {
            self.queue.push_for(next_ns, user, Event::Send(user));
        }
    }

    fn move_client(&mut self, now_ns: u64, user: u32) {
        let client = &mut self.clients[user as usize];
        client.relocate(&self.population.people[user as usize]);
        if let Some(at_ns) = client
            .next_move_ns(now_ns, self.profile.end_ns())
            .filter(|at_ns| *at_ns < self.end_ns)
        {
            self.queue.push_for(at_ns, user, Event::Move(user));
        }
    }

    fn attack(&mut self, now_ns: u64, nth: usize) -> Result<(), BackendError> {
        let attacker = &mut self.attackers[nth];
        let packet = attacker.packet(self.population, &self.recording);
        let actor = FIRST_ATTACKER + attacker.class as u64;
        let next_ns = now_ns + attacker.pause_ns();
        if next_ns < self.end_ns {
            self.queue.push(next_ns, actor, Event::Attack(nth));
        }
        let Some(packet) = packet else { return Ok(()) };
        let row = flows(&mut self.rows, packet.class());
        if packet.is_downlink() {
            row.downlink.offered += 1;
        } else {
            row.uplink.offered += 1;
        }
        // Attackers are close by: their packets are not lost.
        self.arrive(now_ns, &packet)
    }

    fn arrive(&mut self, now_ns: u64, packet: &Packet) -> Result<(), BackendError> {
        let frame = packet.build(self.population);
        let treated = self.subject.treat(now_ns, &frame)?;
        self.judge.judge(now_ns, packet, &frame, &treated);
        self.packets += 1;
        let seen = Seen {
            now_ns,
            packet,
            frame: &frame,
            treated: &treated,
        };
        self.compare(&seen);
        let Some((direction, reason)) = treated.counted else {
            return Ok(());
        };
        self.count(packet, (direction, reason), frame.len());
        if let (Packet::Uplink(uplink), false) = (packet, packet.class().is_attack()) {
            if !self.attackers.is_empty() {
                self.recording.see(uplink);
            }
            self.release(now_ns, uplink.user, uplink.pn);
            if reason == Reason::Relayed {
                self.answer(now_ns, uplink);
            }
        }
        if let (Packet::Downlink(downlink), Reason::Relayed) = (packet, reason) {
            self.deliver(downlink, &treated);
        }
        Ok(())
    }

    fn count(&mut self, packet: &Packet, (direction, reason): (Direction, Reason), bytes: usize) {
        let counted = self.counted.entry(counter(direction, reason)).or_default();
        counted.packets += 1;
        counted.bytes += bytes as u64;
        let row = flows(&mut self.rows, packet.class());
        let flow = if packet.is_downlink() {
            &mut row.downlink
        } else {
            &mut row.uplink
        };
        flow.relay.add(reason);
        if let Some(slice) = self.timeline.last_mut() {
            let tally = match (packet.class().is_attack(), packet.is_downlink()) {
                (true, _) => &mut slice.attack,
                (false, false) => &mut slice.uplink,
                (false, true) => &mut slice.downlink,
            };
            tally.add(reason);
        }
    }

    /// Whether a user's packet met what it met when nobody attacked.
    fn compare(&mut self, seen: &Seen<'_>) {
        let Some(user) = seen.packet.owner() else { return };
        let met = digest(seen.treated);
        let so_far = &mut self.met[user as usize];
        if let Some(baseline) = &self.baseline {
            let in_peace = baseline[user as usize].get(so_far.len()).copied();
            if in_peace == Some(met) {
                self.compared += 1;
            } else {
                let nth = so_far.len() + 1;
                let what = format!(
                    "packet {nth} of user {user}: {} under attack, but {} when nobody attacks",
                    name(met),
                    in_peace.map_or("not there", name)
                );
                self.judge.violations.add(Invariant::Harmed, seen, what);
            }
        }
        so_far.push(met);
    }

    /// The destination answers a packet that it got.
    fn answer(&mut self, now_ns: u64, uplink: &Uplink) {
        let row = flows(&mut self.rows, uplink.class);
        for (at_ns, number, bytes) in self.clients[uplink.user as usize].answers(now_ns, uplink) {
            row.downlink.offered += 1;
            let answer = Downlink {
                class: uplink.class,
                user: uplink.user,
                pretender: None,
                number,
                bytes,
            };
            self.queue
                .push_for(at_ns, uplink.user, Event::Arrive(Packet::Downlink(answer)));
        }
    }

    /// A packet goes from the relay to the client.
    fn deliver(&mut self, downlink: &Downlink, treated: &Treated) {
        let row = flows(&mut self.rows, downlink.class);
        let client = &mut self.clients[downlink.user as usize];
        let to = UdpFrameView::read(&treated.processed.frame).ok().map(|view| view.to);
        if client.loses() {
            row.downlink.lost += 1;
        } else if to == Some(client.place(&self.population.people[downlink.user as usize]).address) {
            row.reached += 1;
        } else {
            row.missed += 1;
        }
    }

    /// Whether the backend's counters are the sum of what was seen.
    fn check_counters(&mut self, now_ns: u64) -> Result<(), BackendError> {
        let counters = self.subject.counters()?;
        let differences = moved(&self.counted, &counters);
        for (direction, reason) in differences.keys() {
            let of = |counters: &Counters| counters.get(&(*direction, *reason)).copied().unwrap_or_default();
            let direction = Direction::ALL.into_iter().find(|known| *known as u8 == *direction);
            let what = format!(
                "{} {}: counted {}, seen {}",
                direction.map_or("?", Direction::name),
                reason.name(),
                of(&counters),
                of(&self.counted)
            );
            self.judge
                .violations
                .add_without_packet(Invariant::Counters, now_ns, what);
        }
        if !differences.is_empty() {
            // Told once; what goes wrong later is told again.
            self.counted = counters;
        }
        Ok(())
    }
}

fn empty_row(class: Class) -> Row {
    Row {
        class,
        attack: class.is_attack(),
        users: 0,
        uplink: Flow::default(),
        downlink: Flow::default(),
        reached: 0,
        missed: 0,
    }
}

fn flows(rows: &mut BTreeMap<Class, Row>, class: Class) -> &mut Row {
    rows.get_mut(&class).expect("every class of a run has a row")
}

/// Bytes of the output that a digest covers: all headers, and the number at the start of the payload.
const DIGESTED: usize = 96;

/// What a packet met, in few bits.
fn digest(treated: &Treated) -> u32 {
    let output = &treated.processed.frame;
    let mut hasher = DefaultHasher::new();
    hasher.write(&output[..output.len().min(DIGESTED)]);
    hasher.write_usize(output.len());
    let (direction, reason) = treated
        .counted
        .map_or((2, u8::MAX), |(direction, reason)| (direction as u32, reason as u8));
    (hasher.finish() as u32) << 10 | direction << 8 | u32::from(reason)
}

fn name(met: u32) -> &'static str {
    Reason::ALL
        .get((met & 0xff) as usize)
        .map_or("not counted", |reason| reason.name())
}
