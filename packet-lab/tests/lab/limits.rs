//! Expiry and rate, to the nanosecond.

use relay_ebpf::verdict::Reason;
use rstest::rstest;

use crate::scene::{
    Family::{self, V4, V6},
    START_NS, Scene,
    Tokens::Plain,
};

fn at(scene: &mut Scene, now_ns: u64, pn: u64) -> packet_lab::Observation {
    let frame = scene.uplink(pn, b"payload").build();
    scene.send_at(now_ns, &frame)
}

#[rstest]
fn a_grant_ends_to_the_nanosecond(#[values(V4, V6)] family: Family) {
    let end = START_NS + 123_456_789;
    let mut scene = Scene::with(family, Plain, |world| world.users[1].expires_ns = Some(end));
    let _ = at(&mut scene, end - 1, 1).expect_relayed();
    let _ = at(&mut scene, end, 2).expect_relayed();
    let _ = at(&mut scene, end + 1, 3)
        .expect_dropped(Reason::Expired)
        .expect_no_state_change();
    let _ = at(&mut scene, u64::MAX, 3).expect_dropped(Reason::Expired);
}

#[test]
fn a_grant_without_end_lasts() {
    let mut scene = Scene::new(V4, Plain);
    let _ = at(&mut scene, u64::MAX / 2, 1).expect_relayed();
}

#[rstest]
#[case::ten_thousand_a_second(10_000, 1_000)]
#[case::one_a_second(1, 1)]
#[case::a_burst_of_two(1_000, 2)]
#[case::a_billion_a_second(1_000_000_000, 5)]
fn a_burst_is_let_through_and_then_one_packet_each_interval(#[case] rate: u32, #[case] burst: u32) {
    let interval = u64::from(1_000_000_000 / rate);
    let mut scene = Scene::with(V4, Plain, |world| {
        (world.users[1].rate, world.users[1].burst) = (rate, burst);
    });
    let mut pn = 0;
    let mut next = || {
        pn += 1;
        pn
    };
    for _ in 0..burst {
        let _ = at(&mut scene, START_NS, next()).expect_relayed();
    }
    let _ = at(&mut scene, START_NS, next()).expect_dropped(Reason::RateLimited);
    for nth in 1..4 {
        let due = START_NS + nth * interval;
        let _ = at(&mut scene, due - 1, next()).expect_dropped(Reason::RateLimited);
        let _ = at(&mut scene, due, next()).expect_relayed();
        let _ = at(&mut scene, due, next()).expect_dropped(Reason::RateLimited);
    }
}

#[test]
fn a_budget_refills_to_the_burst_and_not_beyond() {
    let (interval, burst) = (100_000, 3);
    let mut scene = Scene::with(V4, Plain, |world| world.users[1].burst = burst);
    let mut pn = 0;
    for start in [
        START_NS,
        START_NS + interval * u64::from(burst),
        START_NS + 1_000 * interval,
    ] {
        for _ in 0..burst {
            pn += 1;
            let _ = at(&mut scene, start, pn).expect_relayed();
        }
        pn += 1;
        let _ = at(&mut scene, start, pn).expect_dropped(Reason::RateLimited);
    }
}

#[test]
fn the_rates_of_two_users_do_not_touch() {
    let mut scene = Scene::with(V4, Plain, |world| {
        let second = packet_lab::world::User {
            slot: 10,
            salt: 77,
            ..world.users[1]
        };
        world.users.push(second);
        world.users[1].burst = 1;
    });
    let _ = at(&mut scene, START_NS, 1).expect_relayed();
    let _ = at(&mut scene, START_NS, 2).expect_dropped(Reason::RateLimited);
    scene.grant = scene.lab.world().grant(10).unwrap();
    let _ = at(&mut scene, START_NS, 1).expect_relayed();
    let _ = at(&mut scene, START_NS, 2).expect_relayed();
}
