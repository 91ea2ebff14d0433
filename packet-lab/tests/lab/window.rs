//! The replay window: each packet number once, 512 of them out of order.

use relay_ebpf::verdict::Reason;
use rstest::rstest;

use crate::scene::{
    Family::V4,
    START_NS, Scene,
    Tokens::{self, Plain, Protected},
};

#[derive(Clone, Copy, Debug)]
enum Then {
    Accepted,
    Replayed,
}
use Then::{Accepted, Replayed};

fn send(scene: &mut Scene, pn: u64, then: Then) {
    let observed = scene.send_pn(pn);
    let _ = match then {
        Accepted => observed.expect_relayed(),
        Replayed => observed.expect_dropped(Reason::Replayed).expect_no_state_change(),
    };
}

#[rstest]
#[case::the_oldest_in_the_window(1_000, 489, Accepted)]
#[case::the_one_before_it(1_000, 488, Replayed)]
#[case::the_newest_again(1_000, 1_000, Replayed)]
#[case::the_next(1_000, 1_001, Accepted)]
#[case::zero_first_and_again(0, 0, Replayed)]
#[case::zero_after_511(511, 0, Accepted)]
#[case::zero_after_512(512, 0, Replayed)]
#[case::the_window_below_the_largest(u64::MAX, u64::MAX - 511, Accepted)]
#[case::below_the_window_of_the_largest(u64::MAX, u64::MAX - 512, Replayed)]
fn after_one_packet_number_another_is(
    #[values(Plain, Protected)] tokens: Tokens,
    #[case] first: u64,
    #[case] second: u64,
    #[case] then: Then,
) {
    let mut scene = Scene::new(V4, tokens);
    send(&mut scene, first, Accepted);
    send(&mut scene, second, then);
}

#[rstest]
fn after_a_jump_the_window_is_exact(
    #[values(1, 31, 32, 33, 511, 512, 513, 1_023, 1_024, 1_025, 1 << 32, 1 << 42, u64::MAX - 1_000)] jump: u64,
) {
    let mut scene = Scene::new(V4, Plain);
    let old = 1_000;
    let new = old + jump;
    send(&mut scene, old, Accepted);
    send(&mut scene, new, Accepted);
    send(&mut scene, new, Replayed);
    send(&mut scene, old, Replayed);
    let oldest = new - 511;
    send(&mut scene, oldest - 1, Replayed);
    if oldest != old {
        send(&mut scene, oldest, Accepted);
    }
    send(&mut scene, oldest, Replayed);
    for pn in [new - 1, new - 31, new - 32] {
        if pn != old {
            send(&mut scene, pn, Accepted);
        }
        send(&mut scene, pn, Replayed);
    }
}

#[test]
fn a_whole_window_in_any_order_is_accepted_once_each() {
    let mut scene = Scene::new(V4, Protected);
    let newest = 5_000;
    send(&mut scene, newest, Accepted);
    // 211 and 511 have no common factor, so this visits each of the 511 older numbers once, out of order.
    for step in 0..511 {
        send(&mut scene, newest - 1 - step * 211 % 511, Accepted);
    }
    for pn in [newest, newest - 1, newest - 200, newest - 511] {
        send(&mut scene, pn, Replayed);
    }
    let late = scene.uplink(newest - 512, b"payload");
    let _ = scene.send(&late).expect_dropped(Reason::Replayed);
}

#[test]
fn a_packet_that_is_dropped_for_its_token_does_not_take_its_number() {
    let mut scene = Scene::new(V4, Plain);
    let mut forged = scene.uplink(10, b"payload");
    forged.payload[23] ^= 1;
    let _ = scene
        .send(&forged)
        .expect_dropped(Reason::BadToken)
        .expect_no_state_change();
    send(&mut scene, 10, Accepted);
}

#[test]
fn replays_do_not_spend_the_users_budget() {
    let mut scene = Scene::with(V4, Plain, |world| world.users[1].burst = 3);
    send(&mut scene, 1, Accepted);
    for _ in 0..50 {
        send(&mut scene, 1, Replayed);
    }
    send(&mut scene, 2, Accepted);
    send(&mut scene, 3, Accepted);
    let _ = scene.send_pn(4).expect_dropped(Reason::RateLimited);
    let again = scene.uplink(4, b"payload").build();
    let _ = scene.send_at(START_NS, &again).expect_dropped(Reason::Replayed);
}
