//! Sealing the tokens of a capture anew, with keys that the lab has.
//!
//! Each client of a listener, told by its address and port, becomes one of the world's users of that family, in the
//! order in which the clients appear and the users are listed; or a given user, where a mapping says so. What made the
//! capture worth keeping stays: a token that comes twice comes twice afterwards, a token for another payload length
//! stays wrong, and so do checksums that were wrong; lengths and everything else stay as they are.
//!
//! Where the keys of the capture are known, packet numbers are kept, and a wrong tag stays wrong. Elsewhere the tokens
//! of each user are numbered from 1 as they come, and all are taken for right ones.

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
};

use serde::Serialize;

use crate::{
    craft::{Grant, Handle, Keyring, TOKEN_BYTES, token_in_options},
    inspect::{IpHeader, Sum, UdpFrameView},
    world::{Carrier, World},
};

const UDP_HEADER_BYTES: usize = 8;
/// The header checksum of an IPv4 packet in its frame.
const IPV4_CHECKSUM: std::ops::Range<usize> = 24..26;

/// How many tokens back a repeated one is recognized.
pub const REMEMBERED_TOKENS: usize = 1 << 18;

/// What became of a frame.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Resigned {
    /// There is nothing to seal: no whole UDP packet to a listener, or too short for a token.
    NoToken,
    /// Its token is new.
    Sealed,
    /// It repeats a token, which was replaced by the same one as before.
    Repeated,
    /// Its token was wrong, and is wrong now.
    Wrong,
    /// The world has no user left for its sender; the frame is as it was.
    NoUser,
}

/// How many frames became what.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
pub struct Tally {
    /// Tokens sealed.
    pub sealed: u64,
    /// Tokens that repeat an earlier one.
    pub repeated: u64,
    /// Wrong tokens.
    pub wrong: u64,
    /// Frames of clients that no user was left for.
    pub no_user: u64,
    /// Clients that became users.
    pub clients: u64,
}

/// Re-seals tokens.
#[derive(Clone, Debug)]
pub struct Resigner {
    listeners: Vec<SocketAddr>,
    /// Whether tokens may be in options.
    options: bool,
    seats: Vec<Seat>,
    /// Places in `seats`, by slot.
    by_slot: HashMap<u32, usize>,
    by_client: HashMap<SocketAddr, usize>,
    /// Where the search for a free seat goes on, by family.
    next_seat: [usize; 2],
    known: Keyring,
    seen: HashMap<[u8; TOKEN_BYTES], [u8; TOKEN_BYTES]>,
    order: VecDeque<[u8; TOKEN_BYTES]>,
    tally: Tally,
}

/// A user of the world.
#[derive(Clone, Debug)]
struct Seat {
    grant: Grant,
    v4: bool,
    next_pn: u64,
    taken: bool,
    /// Whether a token of its was sealed.
    used: bool,
}

impl Resigner {
    /// For the users of a world.
    #[must_use]
    pub fn new(world: &World) -> Self {
        let seats = world.users.iter().map(|user| Seat {
            grant: Grant {
                slot: user.slot,
                salt: user.salt,
                key: user.key,
                header_key: world.header_key,
                relay_id: world.relay_id,
            },
            v4: user.to.is_ipv4(),
            next_pn: 1,
            taken: false,
            used: false,
        });
        let by_slot = world.users.iter().enumerate().map(|(seat, user)| (user.slot, seat));
        Self {
            listeners: world.listeners.clone(),
            options: world.takes(Carrier::IpOption),
            seats: seats.collect(),
            by_slot: by_slot.collect(),
            by_client: HashMap::new(),
            next_seat: [0; 2],
            known: Keyring::default(),
            seen: HashMap::new(),
            order: VecDeque::new(),
            tally: Tally::default(),
        }
    }

    /// With the grants that tokens of the capture were sealed with, as far as they are known. Their packets become those
    /// of the user in the same slot.
    #[must_use]
    pub fn knowing(mut self, grants: impl IntoIterator<Item = Grant>) -> Self {
        self.known.extend(grants);
        self
    }

    /// With this client as the user in this slot; of no effect if the world has no such user.
    #[must_use]
    pub fn mapping(mut self, client: SocketAddr, slot: u32) -> Self {
        if let Some(seat) = self.seat_of(slot) {
            self.seats[seat].taken = true;
            self.by_client.insert(client, seat);
        }
        self
    }

    /// What was done so far.
    #[must_use]
    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// The slots of the users whose tokens were sealed.
    pub fn used_slots(&self) -> impl Iterator<Item = u32> + '_ {
        self.seats.iter().filter(|seat| seat.used).map(|seat| seat.grant.slot)
    }

    /// Forgets which tokens were seen, so that the same capture can be sent once more without being all replays.
    pub fn forget_tokens(&mut self) {
        self.seen.clear();
        self.order.clear();
    }

    /// Replaces the token of a frame, if it has one.
    pub fn resign(&mut self, frame: &mut [u8]) -> Resigned {
        let resigned = self.replace(frame);
        match resigned {
            Resigned::NoToken => {}
            Resigned::Sealed => self.tally.sealed += 1,
            Resigned::Repeated => self.tally.repeated += 1,
            Resigned::Wrong => self.tally.wrong += 1,
            Resigned::NoUser => self.tally.no_user += 1,
        }
        resigned
    }

    fn replace(&mut self, frame: &mut [u8]) -> Resigned {
        let Ok(view) = UdpFrameView::read(frame) else {
            return Resigned::NoToken;
        };
        if !self.listeners.contains(&view.to) {
            return Resigned::NoToken;
        }
        let Some((at, payload)) = self.token_of(frame, &view) else {
            return Resigned::NoToken;
        };
        let token = &<[u8; TOKEN_BYTES]>::try_from(&frame[at..at + TOKEN_BYTES]).expect("a token's bytes");
        let sealed_payload = [&token[..], payload].concat();
        let (sealed, resigned) = match self.seen.get(token) {
            Some(sealed) => (*sealed, Resigned::Repeated),
            None => match self.seal(view.from, token, &sealed_payload, payload.len() as u16) {
                Some(new) => new,
                None => return Resigned::NoUser,
            },
        };
        self.remember(*token, sealed);
        put(frame, &view, at, &sealed);
        resigned
    }

    /// Where the token of a packet is in its frame, and the payload that it was sealed for.
    fn token_of<'a>(&self, frame: &[u8], view: &'a UdpFrameView) -> Option<(usize, &'a [u8])> {
        let payload_at = frame.len() - view.trailing - view.payload.len();
        let udp_at = payload_at - UDP_HEADER_BYTES;
        if let IpHeader::V4 { option_bytes, .. } = view.ip
            && self.options
            && let Some(token) = token_in_options(&frame[udp_at - option_bytes..udp_at])
        {
            return Some((udp_at - option_bytes + token.start, &view.payload));
        }
        let (_, payload) = view.payload.split_first_chunk::<TOKEN_BYTES>()?;
        Some((payload_at, payload))
    }

    fn seal(
        &mut self,
        from: SocketAddr,
        token: &[u8; TOKEN_BYTES],
        sealed: &[u8],
        payload_len: u16,
    ) -> Option<([u8; TOKEN_BYTES], Resigned)> {
        if let Some((grant, Handle { pn, .. })) = self.known.recognize(token)
            && let Some(seat) = self.seat_of(grant.slot)
        {
            let seat = &mut self.seats[seat];
            seat.used = true;
            if grant.open(sealed).is_none() {
                return Some((seat.grant.wrong_token(pn, payload_len), Resigned::Wrong));
            }
            seat.next_pn = seat.next_pn.max(pn.saturating_add(1));
            return Some((seat.grant.token(pn, payload_len), Resigned::Sealed));
        }
        let seat = self.seat_for(from)?;
        let seat = &mut self.seats[seat];
        seat.used = true;
        let pn = seat.next_pn;
        seat.next_pn = pn.saturating_add(1);
        Some((seat.grant.token(pn, payload_len), Resigned::Sealed))
    }

    fn seat_of(&self, slot: u32) -> Option<usize> {
        self.by_slot.get(&slot).copied()
    }

    /// The user that a client is. Clients that there is no user for are not remembered: there may be any number.
    fn seat_for(&mut self, client: SocketAddr) -> Option<usize> {
        if let Some(seat) = self.by_client.get(&client) {
            return Some(*seat);
        }
        let v4 = client.is_ipv4();
        let next = &mut self.next_seat[usize::from(v4)];
        let free = (*next..self.seats.len()).find(|&seat| !self.seats[seat].taken && self.seats[seat].v4 == v4);
        *next = free.map_or(self.seats.len(), |seat| seat + 1);
        let seat = free?;
        self.seats[seat].taken = true;
        self.tally.clients += 1;
        self.by_client.insert(client, seat);
        Some(seat)
    }

    fn remember(&mut self, token: [u8; TOKEN_BYTES], sealed: [u8; TOKEN_BYTES]) {
        if self.seen.insert(token, sealed).is_some() {
            return;
        }
        self.order.push_back(token);
        if self.order.len() > REMEMBERED_TOKENS
            && let Some(oldest) = self.order.pop_front()
        {
            self.seen.remove(&oldest);
        }
    }
}

/// Puts a token into the frame that `view` was read from, at `at`. A checksum that was right is right afterwards; others
/// stay.
fn put(frame: &mut [u8], view: &UdpFrameView, at: usize, token: &[u8; TOKEN_BYTES]) {
    frame[at..at + TOKEN_BYTES].copy_from_slice(token);
    let payload_at = frame.len() - view.trailing - view.payload.len();
    if at < payload_at {
        // In the IP header, of which the UDP checksum covers the addresses alone.
        if let IpHeader::V4 {
            checksum: Sum::Right(_),
            ..
        } = view.ip
            && let Ok(IpHeader::V4 {
                checksum: Sum::Wrong { right, .. },
                ..
            }) = UdpFrameView::read(frame).map(|view| view.ip)
        {
            frame[IPV4_CHECKSUM].copy_from_slice(&right.to_be_bytes());
        }
        return;
    }
    let field = at - 2..at;
    match (view.checksum, UdpFrameView::read(frame).map(|view| view.checksum)) {
        (Sum::Right(_), Ok(Sum::Wrong { right, .. })) => frame[field].copy_from_slice(&right.to_be_bytes()),
        (Sum::Wrong { found, .. }, Ok(Sum::Right(_))) => {
            // By chance the wrong one would have become right. Neither value here means "none".
            let other = if found == 1 { 2_u16 } else { found - 1 };
            frame[field].copy_from_slice(&other.to_be_bytes());
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::{
        craft::{Checksum, UdpFrame, options_with_token},
        world::{Destination, NextHop, Tags, User, address},
    };

    const FROM: [&str; 3] = ["203.0.113.9:40000", "203.0.113.10:40000", "[2001:db8:c::9]:40000"];

    fn user(slot: u32, to: &str) -> User {
        User {
            slot,
            salt: 0x1000 + slot,
            key: [slot as u8; 16],
            to: address(to),
            rate: 1_000,
            burst: 100,
            down_limit: None,
            expires_ns: None,
        }
    }

    fn world() -> World {
        let mut world = World::new()
            .with_user(user(3, "198.51.100.7:5000"))
            .with_user(user(1, "[2001:db8:d::7]:5000"))
            .with_user(user(5, "198.51.100.7:5000"));
        let destination = |to| Destination {
            to: address(to),
            next_hop: Some(NextHop {
                mac: [2; 6],
                mtu: 1500,
                interface: 0,
                tags: Tags::NONE,
            }),
        };
        world.destinations = vec![destination("198.51.100.7:5000"), destination("[2001:db8:d::7]:5000")];
        world.header_key = Some([0xf0; 16]);
        world
    }

    /// Of a production relay: nobody here knows its keys.
    fn production(slot: u32) -> Grant {
        Grant {
            slot,
            salt: 0xdead,
            key: [0x77; 16],
            header_key: Some([0x88; 16]),
            relay_id: 99,
        }
    }

    fn uplink(from: &str, sealed: Vec<u8>) -> UdpFrame {
        let to = if from.starts_with('[') {
            "[2001:db8::1]:4500"
        } else {
            "192.0.2.1:4500"
        };
        UdpFrame::new(address(from), address(to), sealed)
    }

    #[test]
    fn a_token_in_an_option_is_sealed_anew_where_the_relay_takes_it_there() {
        let mut world = world();
        world.carriers.push(Carrier::IpOption);
        let token = production(8).token(77, 7);
        let frame = uplink(FROM[0], b"payload".to_vec())
            .options(options_with_token(&[1, 1], &token))
            .build();
        let mut anew = frame.clone();
        assert_eq!(Resigner::new(&world).resign(&mut anew), Resigned::Sealed);
        let view = UdpFrameView::read(&anew).unwrap();
        assert!(view.has_right_checksums(), "{view}");
        assert_eq!(view.payload, b"payload");
        let options = &anew[34..34 + 28];
        let sealed = [&options[token_in_options(options).unwrap()], b"payload"].concat();
        assert_eq!(world.grant(3).unwrap().open(&sealed), Some(1));

        let mut left = frame.clone();
        let mut elsewhere = world.clone();
        elsewhere.carriers = vec![Carrier::Udp];
        assert_eq!(Resigner::new(&elsewhere).resign(&mut left), Resigned::NoToken);
        assert_eq!(left, frame);
    }

    fn pn_of(slot: u32, frame: &[u8]) -> Option<u64> {
        let grant = world().grant(slot).unwrap();
        grant.open(&UdpFrameView::read(frame).unwrap().payload)
    }

    #[test]
    fn clients_become_users_of_their_family_in_order_of_appearance() {
        let mut resigner = Resigner::new(&world());
        let mut sealed = |from, pn| {
            let mut frame = uplink(from, production(0).seal(pn, b"payload")).build();
            assert_eq!(resigner.resign(&mut frame), Resigned::Sealed);
            assert!(UdpFrameView::read(&frame).unwrap().has_right_checksums());
            frame
        };
        assert_eq!(pn_of(3, &sealed(FROM[0], 700)), Some(1));
        assert_eq!(pn_of(1, &sealed(FROM[2], 701)), Some(1));
        assert_eq!(pn_of(5, &sealed(FROM[1], 702)), Some(1));
        assert_eq!(pn_of(3, &sealed(FROM[0], 703)), Some(2));
        assert_eq!(
            resigner.tally(),
            Tally {
                sealed: 4,
                clients: 3,
                ..Tally::default()
            }
        );
    }

    #[test]
    fn nothing_but_the_token_and_the_checksum_changes() {
        let frame = uplink(FROM[0], production(0).seal(1, b"payload"))
            .options([1, 1, 1, 1])
            .tos(0xb8);
        let mut before = frame.build();
        before.extend_from_slice(&[0; 7]);
        let mut after = before.clone();
        assert_eq!(Resigner::new(&world()).resign(&mut after), Resigned::Sealed);
        let (token, checksum) = (14 + 24 + 8, 14 + 24 + 6);
        assert_eq!(before[..checksum], after[..checksum]);
        assert_eq!(before[token + TOKEN_BYTES..], after[token + TOKEN_BYTES..]);
        assert_ne!(before[token..token + TOKEN_BYTES], after[token..token + TOKEN_BYTES]);
    }

    #[test]
    fn a_token_that_comes_again_comes_again_whoever_sends_it() {
        let mut resigner = Resigner::new(&world());
        let sealed = production(0).seal(1, b"payload");
        let mut first = uplink(FROM[0], sealed.clone()).build();
        let mut second = uplink(FROM[1], sealed).build();
        assert_eq!(resigner.resign(&mut first), Resigned::Sealed);
        assert_eq!(resigner.resign(&mut second), Resigned::Repeated);
        let token = |frame: &[u8]| UdpFrameView::read(frame).unwrap().payload;
        assert_eq!(token(&first), token(&second));
        resigner.forget_tokens();
        let mut third = uplink(FROM[0], production(0).seal(1, b"payload")).build();
        assert_eq!(resigner.resign(&mut third), Resigned::Sealed);
    }

    #[test]
    fn a_token_for_another_payload_length_stays_wrong() {
        let mut resigner = Resigner::new(&world());
        let sealed = production(0).seal(1, b"payload");
        let longer = [&sealed[..], b"more"].concat();
        let mut first = uplink(FROM[0], sealed).build();
        let mut second = uplink(FROM[0], longer).build();
        resigner.resign(&mut first);
        assert_eq!(resigner.resign(&mut second), Resigned::Repeated);
        assert_eq!((pn_of(3, &first), pn_of(3, &second)), (Some(1), None));
    }

    #[test]
    fn known_keys_keep_packet_numbers_and_wrong_tags() {
        let known = production(5);
        let mut resigner = Resigner::new(&world()).knowing([known]);
        let mut right = uplink(FROM[0], known.seal(4_711, b"payload")).build();
        assert_eq!(resigner.resign(&mut right), Resigned::Sealed);
        assert_eq!(pn_of(5, &right), Some(4_711));

        let wrong = [&known.wrong_token(4_712, 7)[..], b"payload"].concat();
        let mut wrong = uplink(FROM[0], wrong).build();
        assert_eq!(resigner.resign(&mut wrong), Resigned::Wrong);
        assert_eq!(pn_of(5, &wrong), None);
        let payload = UdpFrameView::read(&wrong).unwrap().payload;
        let handle = Handle::of(&payload, Some(&[0xf0; 16])).unwrap();
        assert_eq!((handle.slot, handle.salt, handle.pn), (5, 0x1005, 4_712));
    }

    #[test]
    fn a_mapping_goes_before_the_order_of_appearance() {
        let mut resigner = Resigner::new(&world()).mapping(address(FROM[0]), 5);
        let mut frame = uplink(FROM[0], production(0).seal(1, b"")).build();
        resigner.resign(&mut frame);
        assert_eq!(pn_of(5, &frame), Some(1));
        let mut other = uplink(FROM[1], production(0).seal(2, b"")).build();
        resigner.resign(&mut other);
        assert_eq!(pn_of(3, &other), Some(1));
    }

    #[test]
    fn a_client_without_a_user_is_left_as_it_is() {
        let mut resigner = Resigner::new(&world());
        for (host, expected) in [(9, Resigned::Sealed), (10, Resigned::Sealed), (11, Resigned::NoUser)] {
            let from = format!("203.0.113.{host}:40000");
            let before = uplink(&from, production(0).seal(host, b"payload")).build();
            let mut after = before.clone();
            assert_eq!(resigner.resign(&mut after), expected, "{from}");
            assert_eq!(before == after, expected == Resigned::NoUser);
        }
    }

    #[rstest]
    #[case::none(Checksum::None)]
    #[case::wrong(Checksum::Wrong(1))]
    fn checksums_stay_what_they_were(#[case] checksum: Checksum) {
        let mut frame = uplink(FROM[0], production(0).seal(1, b"payload"))
            .checksum(checksum)
            .build();
        let before = UdpFrameView::read(&frame).unwrap().checksum;
        assert_eq!(Resigner::new(&world()).resign(&mut frame), Resigned::Sealed);
        let after = UdpFrameView::read(&frame).unwrap().checksum;
        assert_eq!(
            std::mem::discriminant(&before),
            std::mem::discriminant(&after),
            "{before} became {after}"
        );
        assert!(pn_of(3, &frame).is_some());
    }

    #[rstest]
    #[case::elsewhere("203.0.113.9:40000", "192.0.2.1:4501", 24)]
    #[case::too_short("203.0.113.9:40000", "192.0.2.1:4500", 23)]
    fn what_is_no_token_stays(#[case] from: &str, #[case] to: &str, #[case] bytes: usize) {
        let before = UdpFrame::new(address(from), address(to), vec![7; bytes]).build();
        let mut after = before.clone();
        assert_eq!(Resigner::new(&world()).resign(&mut after), Resigned::NoToken);
        assert_eq!(before, after);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut resigner = Resigner::new(&world());
        for pn in 0..REMEMBERED_TOKENS as u64 + 10 {
            let mut token = [0; TOKEN_BYTES];
            token[..8].copy_from_slice(&pn.to_be_bytes());
            resigner.remember(token, token);
        }
        assert_eq!(
            (resigner.seen.len(), resigner.order.len()),
            (REMEMBERED_TOKENS, REMEMBERED_TOKENS)
        );
    }
}
