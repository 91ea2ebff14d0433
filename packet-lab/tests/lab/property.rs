//! Any bytes, any token, any damage: nothing crashes, nothing is sent without a right token or a right answer, what is
//! passed is unchanged, and the kernel does what the host does.

use std::cell::RefCell;

use packet_lab::Verdict;
use packet_lab::{
    Observation,
    craft::{Checksum, TOKEN_BYTES, UdpFrame, flip_bit},
    inspect::UdpFrameView,
};
use proptest::{prelude::*, test_runner::FileFailurePersistence};

use crate::scene::{
    Family::{self, V4, V6},
    START_NS, Scene,
    Tokens::{self, Plain, Protected},
};

/// Where failing inputs are kept, to be tried first from then on; to be committed.
const REGRESSIONS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lab/property.regressions");

/// One scene for all inputs of a property, since loading a program takes longer than a thousand packets; with budget
/// enough that the rate hides nothing.
fn scenes() -> RefCell<Vec<Scene>> {
    let scenes = [(V4, Plain), (V4, Protected), (V6, Plain), (V6, Protected)].map(|(family, tokens)| {
        let mut scene = Scene::with(family, tokens, |world| {
            world.users[1].rate = 1_000_000_000;
            world.users[1].burst = u32::MAX;
        });
        scene.introduce();
        scene
    });
    RefCell::new(scenes.into())
}

fn index(family: Family, tokens: Tokens) -> usize {
    2 * usize::from(family == V6) + usize::from(tokens == Protected)
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(REGRESSIONS))),
        ..ProptestConfig::default()
    }
}

/// Whether this frame may be sent on, judged without the relay's code.
fn may_be_sent(scene: &Scene, frame: &[u8]) -> bool {
    let Ok(view) = UdpFrameView::read(frame) else {
        return false;
    };
    if scene.lab.world().listeners.contains(&view.to) {
        return scene.grant.open(&view.payload).is_some();
    }
    (view.from, view.to) == (scene.destination, scene.egress)
}

/// Sends any frame and checks what must hold of any.
fn check(scene: &mut Scene, frame: &[u8]) -> Observation {
    let allowed = may_be_sent(scene, frame);
    let observed = scene.send_at(START_NS, frame);
    match observed.verdict {
        Verdict::Tx => assert!(allowed, "sent without a right token or a right answer:\n{observed}"),
        Verdict::Pass => assert_eq!(observed.output, frame, "passed, but changed"),
        Verdict::Drop => {}
        other @ (Verdict::Aborted | Verdict::Redirect) => panic!("the relay never returns {other}:\n{observed}"),
    }
    assert!(
        observed.reason().is_some(),
        "a packet is counted once, with its bytes:\n{observed}"
    );
    observed
}

/// Positions count from the front of the frame and begin again at its end.
#[derive(Clone, Debug)]
enum Damage {
    FlipBit(usize),
    SetByte(usize, u8),
    SetWord(usize, u16),
    CutTo(usize),
    Append(Vec<u8>),
    Remove(usize, usize),
    Insert(usize, Vec<u8>),
}

impl Damage {
    fn apply(&self, frame: &mut Vec<u8>) {
        match self {
            Self::FlipBit(at) => {
                let at = at % (8 * frame.len());
                flip_bit(frame, at);
            }
            Self::SetByte(at, byte) => {
                let at = at % frame.len();
                frame[at] = *byte;
            }
            Self::SetWord(at, word) => {
                let at = at % (frame.len() - 1);
                frame[at..at + 2].copy_from_slice(&word.to_be_bytes());
            }
            Self::CutTo(length) => frame.truncate(14 + length % (frame.len() - 13)),
            Self::Append(bytes) => frame.extend(bytes),
            Self::Remove(at, bytes) => {
                let at = at % frame.len();
                let end = (at + bytes).min(frame.len());
                if frame.len() - (end - at) >= 14 {
                    frame.drain(at..end);
                }
            }
            Self::Insert(at, bytes) => {
                let at = at % frame.len();
                frame.splice(at..at, bytes.iter().copied());
            }
        }
    }
}

fn any_place() -> impl Strategy<Value = usize> {
    0_usize..20_000
}

fn damage() -> impl Strategy<Value = Damage> {
    let bytes = || prop::collection::vec(any::<u8>(), 1..64);
    prop_oneof![
        3 => any_place().prop_map(Damage::FlipBit),
        // Headers are where damage matters most.
        3 => (0_usize..90, any::<u8>()).prop_map(|(at, byte)| Damage::SetByte(at, byte)),
        2 => (any_place(), prop_oneof![Just(0), Just(0xffff), any::<u16>()]).prop_map(|(at, word)| Damage::SetWord(at, word)),
        1 => any_place().prop_map(Damage::CutTo),
        1 => bytes().prop_map(Damage::Append),
        1 => (any_place(), 1_usize..48).prop_map(|(at, bytes)| Damage::Remove(at, bytes)),
        1 => (any_place(), bytes()).prop_map(|(at, bytes)| Damage::Insert(at, bytes)),
    ]
}

fn family() -> impl Strategy<Value = Family> {
    prop_oneof![Just(V4), Just(V6)]
}

fn tokens() -> impl Strategy<Value = Tokens> {
    prop_oneof![Just(Plain), Just(Protected)]
}

#[test]
fn any_bytes_are_passed_or_dropped() {
    let scenes = scenes();
    proptest!(config(512), |(family in family(), tokens in tokens(), frame in prop::collection::vec(any::<u8>(), 0..2000))| {
        let _ = check(&mut scenes.borrow_mut()[index(family, tokens)], &frame);
    });
}

#[test]
fn any_bytes_to_a_listener_or_an_egress_port_are_dropped_or_passed() {
    let scenes = scenes();
    proptest!(config(512), |(
        family in family(),
        tokens in tokens(),
        to_listener: bool,
        payload in prop::collection::vec(any::<u8>(), 0..2000),
    )| {
        let scene = &mut scenes.borrow_mut()[index(family, tokens)];
        let to = if to_listener { scene.listener } else { scene.egress };
        let frame = UdpFrame::new(scene.client, to, payload).build();
        let observed = check(scene, &frame);
        prop_assert_ne!(observed.verdict, Verdict::Tx);
    });
}

#[test]
fn a_token_with_any_fields_and_any_tag_is_dropped() {
    let scenes = scenes();
    proptest!(config(512), |(
        family in family(),
        tokens in tokens(),
        own_handle: bool,
        slot in prop_oneof![0_u32..20, any::<u32>()],
        salt: u32,
        pn: u64,
        tag: [u8; 8],
        payload in prop::collection::vec(any::<u8>(), 0..200),
    )| {
        let scene = &mut scenes.borrow_mut()[index(family, tokens)];
        let mut grant = scene.grant;
        if !own_handle {
            (grant.slot, grant.salt) = (slot, salt);
        }
        // Sealed with a wrong key, so that the fields travel as they must; then with any tag at all.
        grant.key = [0xee; 16];
        let mut sealed = grant.seal(pn, &payload);
        let frame = UdpFrame::new(scene.client, scene.listener, sealed.clone()).build();
        prop_assert_eq!(check(scene, &frame).verdict, Verdict::Drop);
        sealed[16..TOKEN_BYTES].copy_from_slice(&tag);
        let frame = UdpFrame::new(scene.client, scene.listener, sealed).build();
        prop_assert_eq!(check(scene, &frame).verdict, Verdict::Drop);
    });
}

#[test]
fn a_damaged_packet_is_sent_only_if_what_counts_is_undamaged() {
    let scenes = scenes();
    let pn = std::cell::Cell::new(1_000_u64);
    proptest!(config(2048), |(
        family in family(),
        tokens in tokens(),
        uplink: bool,
        options in prop_oneof![Just(0_usize), Just(4), Just(40)],
        payload in prop::collection::vec(any::<u8>(), 0..100),
        damages in prop::collection::vec(damage(), 1..4),
    )| {
        let scene = &mut scenes.borrow_mut()[index(family, tokens)];
        pn.set(pn.get() + 1);
        let mut frame = if uplink { scene.uplink(pn.get(), &payload) } else { scene.downlink(&payload) };
        if family == V4 {
            frame = frame.options(vec![1; options]);
        }
        let mut frame = frame.build();
        for damage in &damages {
            damage.apply(&mut frame);
        }
        let _ = check(scene, &frame);
    });
}

#[test]
fn any_right_packet_is_relayed_with_its_payload_and_right_checksums() {
    let scenes = scenes();
    let pn = std::cell::Cell::new(1_000_u64);
    proptest!(config(512), |(
        family in family(),
        tokens in tokens(),
        uplink: bool,
        payload in prop::collection::vec(any::<u8>(), 1..1400),
        hop_limit in 2_u8..,
        tos: u8,
        identification: u16,
        client_port in 1_u16..,
        no_checksum: bool,
        options in 0_usize..=10,
    )| {
        let scene = &mut scenes.borrow_mut()[index(family, tokens)];
        pn.set(pn.get() + 1);
        let mut sent = if uplink {
            scene.client.set_port(client_port);
            scene.uplink(pn.get(), &payload)
        } else {
            scene.downlink(&payload)
        };
        sent = sent.hop_limit(hop_limit).tos(tos);
        sent.identification = identification;
        if family == V4 {
            sent = sent.options(vec![1; 4 * options]);
            if no_checksum {
                sent = sent.checksum(Checksum::None);
            }
        }
        let observed = check(scene, &sent.build());
        if uplink {
            scene.check_uplink(&sent, &payload, &observed);
        } else {
            scene.client = observed.users[0].1.client.unwrap().address;
            scene.check_downlink(&sent, &observed);
        }
    });
}
