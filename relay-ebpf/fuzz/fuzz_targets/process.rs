//! Any packets in any order through the data plane's logic: nothing panics, nothing is sent without a right token that
//! was not seen before or from elsewhere than a user's destination, and what is passed to the host is as it came.
//!
//! With `TELL=1` in the environment, each packet's direction and reason go to standard error.

#![no_main]

use std::{
    collections::BTreeSet,
    hash::Hasher as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{LazyLock, atomic::Ordering},
};

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use relay_ebpf::{
    host::{Host, HostFrame, HostMemory},
    layout::{BLOCKED, Interface, Listener, NextHop, PrefixKey, Settings, SlotEntry, User},
    token,
    verdict::{Direction, Reason, Verdict},
    wire::{Address, Be16, Mac},
};
use siphasher::{
    sip::SipHasher24,
    sip128::{Hasher128 as _, SipHasher24 as SipHasher24x128},
};

const USERS: u8 = 4;
const RELAY_ID: u32 = 7;
const HEADER_KEY: [u8; 16] = [0xf0; 16];
const LISTENER_PORT: u16 = 4500;
const FIRST_EGRESS_PORT: u16 = 10_000;
const DESTINATION_PORT: u16 = 5000;
const TOKEN: usize = 24;

static TELL: LazyLock<bool> = LazyLock::new(|| std::env::var_os("TELL").is_some());

/// What happens to a relay.
#[derive(Arbitrary, Debug)]
struct Input {
    protected: bool,
    drop_unmatched: bool,
    events: Vec<Event>,
}

#[derive(Arbitrary, Debug)]
enum Event {
    /// A packet of a user; its number counts from the user's newest.
    Uplink {
        user: u8,
        ahead: i16,
        payload: u8,
        client: u8,
        hop_limit: u8,
        damage: Vec<Damage>,
    },
    /// A packet of a user's destination.
    Downlink {
        user: u8,
        payload: u8,
        hop_limit: u8,
        damage: Vec<Damage>,
    },
    /// Any frame.
    Frame(Vec<u8>),
    /// Time passes, in microseconds.
    Wait(u32),
    Publish {
        user: u8,
        lasts_us: Option<u16>,
    },
    Remove(u8),
    NextHop {
        user: u8,
        mtu: Option<u16>,
    },
    /// Whether a client's address is blocked.
    Block(bool),
}

/// Positions count from the front of the frame and begin again at its end.
#[derive(Arbitrary, Debug)]
enum Damage {
    Byte { at: u8, value: u8 },
    Word { at: u8, value: u16 },
    Cut(u16),
    Append(u8),
}

fn apply(damage: &[Damage], frame: &mut Vec<u8>) {
    for damage in damage {
        match *damage {
            Damage::Byte { at, value } if !frame.is_empty() => {
                let at = usize::from(at) % frame.len();
                frame[at] = value;
            }
            Damage::Word { at, value } if frame.len() > 1 => {
                let at = usize::from(at) % (frame.len() - 1);
                frame[at..at + 2].copy_from_slice(&value.to_be_bytes());
            }
            Damage::Cut(length) => frame.truncate(length.into()),
            Damage::Append(count) => frame.extend(std::iter::repeat_n(0x5a, count.into())),
            _ => {}
        }
    }
}

/// Clients of users with even numbers are IPv4's, the others IPv6's.
fn address(user: u8, host: u8) -> IpAddr {
    if user.is_multiple_of(2) {
        Ipv4Addr::new(192, 0, 2, host).into()
    } else {
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, host.into()).into()
    }
}

const LISTENER_HOST: u8 = 1;

/// The destinations of the first two users are of their clients' family, the others' of the other.
fn far(user: u8, host: u8) -> IpAddr {
    address(user + user / 2, host)
}

fn destination(user: u8) -> IpAddr {
    far(user, 100 + user)
}

fn key(user: u8) -> [u8; 16] {
    [user; 16]
}

fn salt(user: u8) -> u32 {
    0x1234_5600 | u32::from(user)
}

fn tag(user: u8, clear: &[u8; 16], payload: u16) -> [u8; 8] {
    let mut hasher = SipHasher24::new_with_key(&key(user));
    let context = [&[1, 0][..], &payload.to_be_bytes(), &RELAY_ID.to_be_bytes()].concat();
    hasher.write(&[&clear[..], &context].concat());
    hasher.finish().to_le_bytes()
}

fn masked(clear: [u8; 16], tag: &[u8], protected: bool) -> [u8; 16] {
    let mut hasher = SipHasher24x128::new_with_key(&HEADER_KEY);
    hasher.write(tag);
    let mask = hasher.finish128().as_bytes();
    std::array::from_fn(|i| if protected { clear[i] ^ mask[i] } else { clear[i] })
}

fn sealed(user: u8, pn: u64, payload: u8, protected: bool) -> Vec<u8> {
    let handle = u64::from(user) << 32 | u64::from(salt(user));
    let clear = (u128::from(handle) << 64 | u128::from(pn)).to_be_bytes();
    let tag = tag(user, &clear, payload.into());
    let payload = vec![0xab; payload.into()];
    [&masked(clear, &tag, protected)[..], &tag, &payload].concat()
}

fn frame(from: (IpAddr, u16), to: (IpAddr, u16), hop_limit: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x02; 12];
    let udp = (8 + payload.len() as u16).to_be_bytes();
    match (from.0, to.0) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let total = (28 + payload.len() as u16).to_be_bytes();
            frame.extend([
                0x08, 0x00, 0x45, 0, total[0], total[1], 0, 1, 0x40, 0, hop_limit, 17, 0x12, 0x34,
            ]);
            frame.extend(source.octets());
            frame.extend(destination.octets());
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, udp[0], udp[1], 17, hop_limit]);
            frame.extend(source.octets());
            frame.extend(destination.octets());
        }
        _ => unreachable!("a packet has one family"),
    }
    frame.extend(from.1.to_be_bytes());
    frame.extend(to.1.to_be_bytes());
    frame.extend(udp);
    frame.extend([0xbe, 0xef]);
    frame.extend(payload);
    frame
}

/// The relay, and what must hold of it.
struct Relay {
    host: Host,
    protected: bool,
    drop_unmatched: bool,
    newest: [u64; USERS as usize],
    present: BTreeSet<u8>,
    accepted: BTreeSet<(u8, u64)>,
    /// Those whose client sent an authentic packet that got as far as to be recorded.
    introduced: BTreeSet<u8>,
}

impl Relay {
    fn new(input: &Input) -> Self {
        let listener = |user| Listener {
            header_key: token::key(&HEADER_KEY),
            address: address(user, LISTENER_HOST).into(),
            port: Be16::new(LISTENER_PORT),
            protected: u8::from(input.protected),
            ..Listener::default()
        };
        let mut settings = Settings {
            tick_ns: 1,
            lab_clock: 1,
            relay_id: RELAY_ID,
            max_users: USERS.into(),
            max_destinations: USERS.into(),
            listener_count: 2,
            egress_v4_count: 1,
            egress_v6_count: 1,
            first_egress_port: FIRST_EGRESS_PORT.into(),
            egress_ports: USERS.into(),
            drop_unmatched: u32::from(input.drop_unmatched),
            interface_count: 1,
            // Less at once than a user may send.
            destination_interval_ns: 500,
            destination_burst: 4,
            ..Settings::default().with_icmp_limit(1_000_000)
        };
        settings.interfaces[0] = Interface {
            mac: Mac::new([0x02, 0, 0, 0, 0, 1]),
            mtu: 200,
            ..Interface::default()
        };
        settings.listeners[..2].copy_from_slice(&[listener(0), listener(1)]);
        settings.egress_v4[0] = address(0, LISTENER_HOST).into();
        settings.egress_v6[0] = address(1, LISTENER_HOST).into();
        let mut relay = Self {
            host: Host::new(settings),
            protected: input.protected,
            drop_unmatched: input.drop_unmatched,
            newest: [1_000; USERS as usize],
            present: BTreeSet::new(),
            accepted: BTreeSet::new(),
            introduced: BTreeSet::new(),
        };
        for user in 0..USERS {
            let entry = &relay.host.destinations[usize::from(user)];
            entry.set_endpoint(&HostMemory, destination(user).into(), Be16::new(DESTINATION_PORT));
            relay.next_hop(user, Some(200));
            relay.publish(user, None);
        }
        relay
    }

    fn now_ns(&self) -> u64 {
        self.host.control.lab_now_ns.load(Ordering::Relaxed)
    }

    fn publish(&mut self, user: u8, lasts_us: Option<u16>) {
        let interval_ns = 1_000;
        let fields = User {
            salt: salt(user),
            key: token::key(&key(user)),
            expires_ns: lasts_us.map_or(u64::MAX, |us| self.now_ns() + 1_000 * u64::from(us)),
            interval_ns,
            burst: 8,
            destination: user.into(),
            has_down_limit: user % 2 == 1,
            egress: 0,
            egress_port: Be16::new(FIRST_EGRESS_PORT + u16::from(user)),
        };
        let SlotEntry { user: entry, state } = &self.host.slots[usize::from(user)];
        entry.clear(&HostMemory);
        let down_limit = &self.host.down_limits[usize::from(user)];
        down_limit.clear(&HostMemory);
        down_limit.set_limit(&HostMemory, interval_ns, 4);
        entry.write_fields(&HostMemory, &fields);
        state.clear(&HostMemory);
        entry.publish(&HostMemory, fields.salt);
        self.present.insert(user);
        // The same grant again, as after a restart: numbers that were used are new.
        self.accepted.retain(|(of, _)| *of != user);
        self.introduced.remove(&user);
    }

    fn next_hop(&self, user: u8, mtu: Option<u16>) {
        let hop = mtu.map(|mtu| NextHop {
            mac: Mac::new([0x02, 0, 0, 0, 0, 0xd1]),
            mtu,
            ..NextHop::default()
        });
        self.host.destinations[usize::from(user)].set_next_hop(&HostMemory, hop);
    }

    fn block(&mut self, blocked: bool) {
        let prefix = PrefixKey {
            length: 128,
            address: Address::from(address(0, 20)).0,
        };
        self.host.blocklist = if blocked { vec![(prefix, BLOCKED)] } else { Vec::new() };
        self.host
            .control
            .block_generation
            .store(u64::from(blocked), Ordering::Relaxed);
    }

    fn send(&mut self, frame: Vec<u8>) {
        let mut after = HostFrame::new(frame.clone());
        let outcome = relay_ebpf::process(&mut after, &self.host);
        let verdict = outcome.verdict(self.drop_unmatched);
        if outcome.answered {
            assert_eq!(outcome.reason, Reason::TooBig, "answered");
            assert!(after.bytes.len() <= frame.len(), "answered by more than was sent");
        }
        if *TELL {
            eprintln!("{} {}", outcome.direction.name(), outcome.reason.name());
        }
        if is_past_roaming(outcome.reason)
            && let Some((user, _)) = self.opened(&frame).filter(|_| outcome.direction == Direction::Uplink)
        {
            self.introduced.insert(user);
        }
        match verdict {
            Verdict::Pass => assert_eq!(after.bytes, frame, "passed, but changed"),
            Verdict::Drop => {}
            Verdict::Redirect => panic!("sent by another interface, where there is one"),
            Verdict::Tx if outcome.direction == Direction::Uplink => {
                let (user, pn) = self.opened(&frame).expect("sent without a right token");
                assert!(self.present.contains(&user), "sent for a user who is not there");
                assert!(self.accepted.insert((user, pn)), "{pn} was sent twice");
                self.newest[usize::from(user)] = self.newest[usize::from(user)].max(pn);
            }
            Verdict::Tx => {
                let known = |user: &u8| self.introduced.contains(user) && is_from(&frame, *user);
                assert!(
                    self.present.iter().any(known),
                    "sent from elsewhere than a user's destination"
                );
            }
        }
    }

    /// The user and the number of a frame's token, if that is right.
    fn opened(&self, frame: &[u8]) -> Option<(u8, u64)> {
        let udp = match frame.get(12..14)? {
            [0x08, 0x00] => 14 + 4 * usize::from(frame[14] & 0xf),
            _ => 54,
        };
        let length = u16::from_be_bytes(*frame.get(udp + 4..)?.first_chunk()?);
        let payload = length.checked_sub(8 + TOKEN as u16)?;
        let token: &[u8; TOKEN] = frame.get(udp + 8..)?.first_chunk()?;
        let clear = masked(*token.first_chunk()?, &token[16..], self.protected);
        let number = u128::from_be_bytes(clear);
        let user = u8::try_from(number >> 96).ok().filter(|user| *user < USERS)?;
        let right = (number >> 64) as u32 == salt(user) && tag(user, &clear, payload) == token[16..];
        right.then_some((user, number as u64))
    }
}

/// Whether an uplink packet that ends so got past the step that records the client.
fn is_past_roaming(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::Relayed
            | Reason::Ping
            | Reason::DestinationUnresolved
            | Reason::TtlExpired
            | Reason::TooBig
            | Reason::DestinationLimited
    )
}

/// Whether a frame's source address is that of a user's destination.
fn is_from(frame: &[u8], user: u8) -> bool {
    match destination(user) {
        IpAddr::V4(v4) => frame.get(26..30) == Some(&v4.octets()),
        IpAddr::V6(v6) => frame.get(22..38) == Some(&v6.octets()),
    }
}

fuzz_target!(|input: Input| {
    let mut relay = Relay::new(&input);
    for event in &input.events {
        match event {
            Event::Uplink {
                user,
                ahead,
                payload,
                client,
                hop_limit,
                damage,
            } => {
                let user = user % USERS;
                let pn = relay.newest[usize::from(user)].saturating_add_signed((*ahead).into());
                let from = (address(user, 20 + client % 4), 40_000);
                let to = (address(user, LISTENER_HOST), LISTENER_PORT);
                let mut bytes = frame(from, to, *hop_limit, &sealed(user, pn, *payload, relay.protected));
                apply(damage, &mut bytes);
                relay.send(bytes);
            }
            Event::Downlink {
                user,
                payload,
                hop_limit,
                damage,
            } => {
                let user = user % USERS;
                let to = (far(user, LISTENER_HOST), FIRST_EGRESS_PORT + u16::from(user));
                let from = (destination(user), DESTINATION_PORT);
                let mut bytes = frame(from, to, *hop_limit, &vec![0xcd; (*payload).into()]);
                apply(damage, &mut bytes);
                relay.send(bytes);
            }
            Event::Frame(bytes) => relay.send(bytes.clone()),
            Event::Wait(us) => {
                let later = relay.now_ns() + 1_000 * u64::from(*us);
                relay.host.control.lab_now_ns.store(later, Ordering::Relaxed);
            }
            Event::Publish { user, lasts_us } => relay.publish(user % USERS, *lasts_us),
            Event::Remove(user) => {
                let user = user % USERS;
                relay.host.slots[usize::from(user)].user.clear(&HostMemory);
                relay.present.remove(&user);
            }
            Event::NextHop { user, mtu } => relay.next_hop(user % USERS, *mtu),
            Event::Block(blocked) => relay.block(*blocked),
        }
    }
});
