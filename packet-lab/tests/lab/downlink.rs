//! Packets for egress ports.

use packet_lab::Verdict;
use packet_lab::{craft::UdpFrame, world::address};
use relay_ebpf::verdict::{Direction, Reason};
use rstest::rstest;

use crate::scene::{
    Family::{self, V4, V6},
    SLOT, START_NS, Scene,
    Tokens::Plain,
    expect_downlink,
};

#[derive(Clone, Copy, Debug)]
enum Wrong {
    SourceAddress,
    SourcePort,
    PortOfAnEmptySlot,
    PortOfAnotherUser,
    OtherEgressAddress,
    PortPastAllSlots,
}

/// A packet that differs from what the user's destination would send in one thing.
fn unsolicited(scene: &Scene, wrong: Wrong) -> UdpFrame {
    let mut frame = scene.downlink(b"answer");
    let is_v4 = scene.family == V4;
    let world = scene.lab.world();
    match wrong {
        Wrong::SourceAddress => {
            frame.from = if is_v4 {
                address("198.51.100.8:5000")
            } else {
                address("[2001:db8:d::8]:5000")
            };
        }
        Wrong::SourcePort => frame.from.set_port(5_001),
        Wrong::PortOfAnEmptySlot => frame.to = world.egress_endpoint(SLOT + 1, is_v4).unwrap(),
        Wrong::PortOfAnotherUser => frame.to = world.egress_endpoint(2, is_v4).unwrap(),
        Wrong::OtherEgressAddress => frame.to = world.egress_endpoint(SLOT - 8, is_v4).unwrap(),
        Wrong::PortPastAllSlots => frame.to = world.egress_endpoint(15, is_v4).unwrap(),
    }
    frame
}

#[rstest]
fn what_no_user_expects_is_left_to_the_host_or_dropped_as_the_operator_says(
    #[values(V4, V6)] family: Family,
    #[values(false, true)] drop_unmatched: bool,
    #[values(
        Wrong::SourceAddress,
        Wrong::SourcePort,
        Wrong::PortOfAnEmptySlot,
        Wrong::PortOfAnotherUser,
        Wrong::OtherEgressAddress,
        Wrong::PortPastAllSlots
    )]
    wrong: Wrong,
) {
    let mut scene = Scene::with(family, Plain, |world| {
        world.drop_unmatched = drop_unmatched;
        if matches!(wrong, Wrong::PortPastAllSlots) {
            // Slot 15 has an egress port, but no entry.
            world.max_users = 15;
        }
    });
    scene.introduce();
    let frame = unsolicited(&scene, wrong);
    let verdict = if drop_unmatched { Verdict::Drop } else { Verdict::Pass };
    let observed = scene
        .send(&frame)
        .expect(verdict, Direction::Downlink, Reason::Unsolicited);
    let observed = observed.expect_no_state_change();
    assert_eq!(observed.output, observed.input);
}

#[rstest]
fn before_the_client_is_known_nothing_is_relayed_to_it(
    #[values(V4, V6)] family: Family,
    #[values(false, true)] drop_unmatched: bool,
) {
    let mut scene = Scene::with(family, Plain, |world| world.drop_unmatched = drop_unmatched);
    let frame = scene.downlink(b"answer");
    let verdict = if drop_unmatched { Verdict::Drop } else { Verdict::Pass };
    let _ = scene
        .send(&frame)
        .expect(verdict, Direction::Downlink, Reason::Unsolicited);
    scene.introduce();
    let _ = expect_downlink(scene.send(&frame));
}

#[rstest]
fn a_user_who_is_gone_gets_nothing_more(#[values(V4, V6)] family: Family) {
    let mut scene = Scene::new(family, Plain);
    scene.introduce();
    let frame = scene.downlink(b"answer");
    let _ = expect_downlink(scene.send(&frame));
    scene.lab.remove(SLOT).unwrap();
    let _ = scene
        .send(&frame)
        .expect(Verdict::Pass, Direction::Downlink, Reason::Unsolicited)
        .expect_no_state_change();
}

#[rstest]
fn the_next_user_of_a_slot_does_not_inherit_the_client(#[values(V4, V6)] family: Family) {
    let mut scene = Scene::new(family, Plain);
    scene.introduce();
    let next = packet_lab::world::User {
        salt: 0x0f0f_0f0f,
        key: [7; 16],
        ..crate::scene::user(family)
    };
    scene.lab.publish(&next).unwrap();
    let frame = scene.downlink(b"answer");
    let _ = scene
        .send(&frame)
        .expect(Verdict::Pass, Direction::Downlink, Reason::Unsolicited);
}

#[rstest]
fn an_empty_answer_is_relayed(#[values(V4, V6)] family: Family) {
    let mut scene = Scene::new(family, Plain);
    scene.introduce();
    let frame = scene.downlink(b"");
    let observed = expect_downlink(scene.send(&frame));
    scene.check_downlink(&frame, &observed);
}

#[rstest]
fn a_fragment_or_a_cut_packet_from_the_destination_is_dropped(#[values(V4, V6)] family: Family) {
    let mut scene = Scene::new(family, Plain);
    scene.introduce();
    let whole = scene.downlink(b"answer");
    let fragment = whole.clone().fragment(0, true);
    let _ = scene
        .send(&fragment)
        .expect(Verdict::Drop, Direction::Downlink, Reason::Fragment)
        .expect_no_state_change();
    let bytes = whole.build();
    for length in whole.udp_offset() + 8..bytes.len() {
        let observed = scene.send_at(START_NS, &bytes[..length]);
        let _ = observed
            .expect(Verdict::Drop, Direction::Downlink, Reason::Truncated)
            .expect_no_state_change();
    }
}

#[rstest]
fn every_slot_has_its_own_egress_address_and_port(#[values(V4, V6)] family: Family) {
    let mut scene = Scene::with(family, Plain, |world| {
        let template = world.users[1];
        world.users = (0..16)
            .map(|slot| packet_lab::world::User { slot, ..template })
            .collect();
    });
    let ports = ["10000", "10001", "10002", "10003", "10004", "10005", "10006", "10007"];
    let addresses = if family == V4 {
        ["192.0.2.1", "192.0.2.2"]
    } else {
        ["[2001:db8::1]", "[2001:db8::2]"]
    };
    let endpoints = addresses
        .iter()
        .flat_map(|address| ports.map(|port| format!("{address}:{port}")));
    for (slot, endpoint) in (0..16).zip(endpoints) {
        (scene.grant.slot, scene.egress) = (slot, address(&endpoint));
        let sent = scene.uplink(1, b"payload");
        let observed = scene.send(&sent).expect_relayed();
        scene.check_uplink(&sent, b"payload", &observed);
        let answer = scene.downlink(b"answer");
        let observed = expect_downlink(scene.send(&answer));
        scene.check_downlink(&answer, &observed);
        assert_eq!(observed.users[0].0, slot);
    }
}
