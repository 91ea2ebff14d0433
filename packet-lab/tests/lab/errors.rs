//! What senders of packets that are too big are told, whatever is in these.

use std::cell::RefCell;

use packet_lab::{Observation, Verdict, inspect::Dissection, world::NextHop};
use proptest::prelude::*;
use relay_ebpf::verdict::{Direction, Reason};

use crate::scene::{
    Family::{self, V4, V6},
    NEXT_HOP, Scene,
    Tokens::Plain,
};

/// Largest packet towards clients.
const MTU: u16 = 300;

fn scene(family: Family) -> Scene {
    let mut scene = Scene::with(family, Plain, |world| {
        world.mtu = MTU;
        world.icmp_per_second = 1_000_000_000;
        world.users[1].rate = 1_000_000_000;
        world.users[1].burst = u32::MAX;
    });
    scene.introduce();
    scene
}

/// Fails unless a packet that is too big became a message about it, or is one of which nothing is said.
fn check(family: Family, direction: Direction, told: usize, observed: &Observation) -> Result<(), TestCaseError> {
    prop_assert_eq!(observed.reason(), Some((direction, Reason::TooBig)));
    let packet = &observed.input[14..];
    let (least_mtu, header, most, least_packet) = match family {
        V4 => (68, 20, 576, 108),
        V6 => (1280, 40, 1280, 0),
    };
    let told = told.max(least_mtu);
    if packet.len() <= told || packet.len() < least_packet {
        prop_assert_eq!((observed.verdict, observed.answers), (Verdict::Drop, 0));
        return Ok(());
    }
    prop_assert_eq!((observed.verdict, observed.answers), (Verdict::Tx, 1));
    let message = &observed.output[14..];
    prop_assert!(message.len() <= packet.len() && message.len() <= most);
    let quote = &message[header + 8..];
    prop_assert_eq!(quote, &packet[..quote.len()]);
    let dissection = Dissection::of(&observed.output);
    let layer = dissection.layer("icmp").or_else(|| dissection.layer("icmp6"));
    let field = |name| layer.and_then(|layer| layer.get(name)).unwrap_or_default().to_owned();
    prop_assert_eq!(field("mtu"), told.to_string());
    prop_assert!(field("checksum").ends_with("right"), "{}", observed);
    if let Some(ipv4) = dissection.layer("ipv4") {
        prop_assert!(
            ipv4.get("checksum").is_some_and(|sum| sum.ends_with("right")),
            "{}",
            observed
        );
    }
    Ok(())
}

#[test]
fn a_message_is_right_for_any_packet_and_never_larger_than_it() {
    let scenes = RefCell::new([V4, V6].map(|family| (scene(family), 1)));
    let config = ProptestConfig {
        cases: 400,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let payload = prop::collection::vec(any::<u8>(), 20..2_500);
    let inputs = (any::<bool>(), any::<bool>(), 40_u16..1_600, payload, 0_usize..=10);
    proptest!(config, |((v4, uplink, mtu, payload, options) in inputs)| {
        let (scene, pn) = &mut scenes.borrow_mut()[usize::from(!v4)];
        let family = scene.family;
        let headers = if family == V4 { 28 } else { 48 };
        let (frame, direction, mtu, told) = if uplink {
            let hop = NextHop { mtu, ..NEXT_HOP };
            scene.lab.set_next_hop(scene.destination, Some(hop)).unwrap();
            *pn += 1;
            (scene.uplink(*pn, &payload), Direction::Uplink, mtu, usize::from(mtu) + 24)
        } else {
            (scene.downlink(&payload), Direction::Downlink, MTU, MTU.into())
        };
        let frame = if family == V4 { frame.options(vec![1; 4 * options]) } else { frame };
        let observed = scene.send(&frame);
        if payload.len() + headers > usize::from(mtu) {
            check(family, direction, told, &observed)?;
        } else {
            prop_assert_eq!(observed.reason(), Some((direction, Reason::Relayed)));
        }
    });
}
