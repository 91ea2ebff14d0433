//! Every reason once, with everything that the packet did: verdict, output, map entries, counters.

use packet_lab::Verdict;
use packet_lab::{
    Observation,
    craft::UdpFrame,
    world::{Limit, User, address},
};
use relay_ebpf::verdict::{Direction, Reason};
use rstest::rstest;

use crate::scene::{
    Family::{self, V4, V6},
    SLOT, START_NS, Scene,
    Tokens::{self, Plain, Protected},
    expect_downlink, user,
};

const PAYLOAD: &[u8] = b"an uplink payload";

/// A packet that would be relayed.
fn good(scene: &Scene) -> UdpFrame {
    scene.uplink(5, PAYLOAD)
}

fn snapshot(scene: &Scene, name: &str, observed: &Observation) {
    scene.snapshot(name, observed);
}

#[rstest]
fn a_packet_with_a_right_token_is_relayed(
    #[values(V4, V6)] family: Family,
    #[values(Plain, Protected)] tokens: Tokens,
) {
    let mut scene = Scene::new(family, tokens);
    let sent = good(&scene).tos(0xb8).hop_limit(17);
    let observed = scene.send(&sent).expect_relayed();
    scene.check_uplink(&sent, PAYLOAD, &observed);
    snapshot(&scene, "relayed_uplink", &observed);
}

#[rstest]
fn what_the_destination_answers_is_relayed_to_the_client(
    #[values(V4, V6)] family: Family,
    #[values(Plain, Protected)] tokens: Tokens,
) {
    let mut scene = Scene::new(family, tokens);
    scene.introduce();
    let sent = scene.downlink(b"a downlink payload").tos(0x2e).hop_limit(2);
    let observed = expect_downlink(scene.send(&sent));
    scene.check_downlink(&sent, &observed);
    snapshot(&scene, "relayed_downlink", &observed);
}

#[rstest]
fn a_token_without_payload_comes_back_as_it_went(
    #[values(V4, V6)] family: Family,
    #[values(Plain, Protected)] tokens: Tokens,
) {
    let mut scene = Scene::new(family, tokens);
    let sent = scene.uplink(5, b"");
    let observed = scene.send(&sent).expect(Verdict::Tx, Direction::Uplink, Reason::Ping);
    let view = packet_lab::inspect::UdpFrameView::read(&observed.output).unwrap();
    assert_eq!((view.from, view.to), (sent.to, sent.from));
    assert_eq!((view.from_mac, view.to_mac), (sent.to_mac, sent.from_mac));
    assert_eq!(view.payload, sent.payload);
    assert_eq!(observed.output.len(), observed.input.len());
    assert!(view.has_right_checksums(), "{view}");
    let name = if tokens == Protected { "ping_protected" } else { "ping" };
    snapshot(&scene, name, &observed);
}

#[rstest]
fn a_first_fragment_is_dropped(#[values(V4, V6)] family: Family, #[values(Plain, Protected)] tokens: Tokens) {
    let mut scene = Scene::new(family, tokens);
    let sent = good(&scene).fragment(0, true);
    let observed = scene
        .send(&sent)
        .expect_dropped(Reason::Fragment)
        .expect_no_state_change();
    snapshot(&scene, "fragment", &observed);
}

#[rstest]
fn a_packet_too_short_for_a_token_is_dropped(
    #[values(V4, V6)] family: Family,
    #[values(Plain, Protected)] tokens: Tokens,
) {
    let mut scene = Scene::new(family, tokens);
    let mut sent = scene.uplink(5, b"");
    sent.payload.pop();
    let observed = scene
        .send(&sent)
        .expect_dropped(Reason::Truncated)
        .expect_no_state_change();
    snapshot(&scene, "truncated", &observed);
}

#[rstest]
fn a_token_of_nobody_is_dropped(#[values(V4, V6)] family: Family, #[values(Plain, Protected)] tokens: Tokens) {
    let mut scene = Scene::new(family, tokens);
    scene.grant.salt ^= 1;
    let sent = good(&scene);
    let observed = scene
        .send(&sent)
        .expect_dropped(Reason::UnknownSession)
        .expect_no_state_change();
    snapshot(&scene, "unknown_session", &observed);
}

#[rstest]
fn a_token_sealed_with_another_key_is_dropped(
    #[values(V4, V6)] family: Family,
    #[values(Plain, Protected)] tokens: Tokens,
) {
    let mut scene = Scene::new(family, tokens);
    scene.grant.key[15] ^= 1;
    let sent = good(&scene);
    let observed = scene
        .send(&sent)
        .expect_dropped(Reason::BadToken)
        .expect_no_state_change();
    snapshot(&scene, "bad_token", &observed);
}

#[rstest]
fn a_grant_past_its_expiry_is_dropped(#[values(V4, V6)] family: Family, #[values(Plain, Protected)] tokens: Tokens) {
    let mut scene = Scene::with(family, tokens, |world| {
        world.users[1].expires_ns = Some(START_NS - 1);
    });
    let sent = good(&scene);
    let observed = scene
        .send(&sent)
        .expect_dropped(Reason::Expired)
        .expect_no_state_change();
    snapshot(&scene, "expired", &observed);
}

#[rstest]
fn a_packet_number_seen_before_is_dropped_and_spends_no_budget(
    #[values(V4, V6)] family: Family,
    #[values(Plain, Protected)] tokens: Tokens,
) {
    let mut scene = Scene::new(family, tokens);
    let sent = good(&scene);
    let _ = scene.send(&sent).expect_relayed();
    let observed = scene
        .send(&sent)
        .expect_dropped(Reason::Replayed)
        .expect_no_state_change();
    snapshot(&scene, "replayed", &observed);
}

#[rstest]
fn a_sender_on_the_blocklist_is_dropped_and_spends_no_budget(
    #[values(V4, V6)] family: Family,
    #[values(Plain, Protected)] tokens: Tokens,
) {
    let mut scene = Scene::new(family, tokens);
    let prefixes = ["203.0.113.0/28", "2001:db8:c::/124"].map(address);
    scene.lab.set_blocklist(&prefixes).unwrap();
    let sent = good(&scene);
    let observed = scene.send(&sent).expect_dropped(Reason::BlockedSource);
    snapshot(&scene, "blocked_source", &observed);
}

#[rstest]
fn a_user_over_its_rate_is_dropped(#[values(V4, V6)] family: Family, #[values(Plain, Protected)] tokens: Tokens) {
    let mut scene = Scene::with(family, tokens, |world| world.users[1].burst = 1);
    scene.introduce();
    let sent = good(&scene);
    let observed = scene.send(&sent).expect_dropped(Reason::RateLimited);
    snapshot(&scene, "rate_limited", &observed);
}

#[rstest]
fn an_answer_over_the_limit_of_its_users_downlink_is_dropped(
    #[values(V4, V6)] family: Family,
    #[values(Plain, Protected)] tokens: Tokens,
) {
    let limit = Limit { rate: 100, burst: 1 };
    let mut scene = Scene::with(family, tokens, |world| world.users[1].down_limit = Some(limit));
    scene.introduce();
    let sent = scene.downlink(b"answer");
    let observed = expect_downlink(scene.send(&sent));
    snapshot(&scene, "relayed_downlink_limited", &observed);
    let observed = scene
        .send(&sent)
        .expect(Verdict::Drop, Direction::Downlink, Reason::RateLimited);
    snapshot(&scene, "rate_limited_downlink", &observed.expect_no_state_change());
}

#[rstest]
fn a_packet_over_the_limit_of_its_destination_is_dropped(
    #[values(V4, V6)] family: Family,
    #[values(Plain, Protected)] tokens: Tokens,
) {
    let limit = Limit { rate: 100, burst: 1 };
    let mut scene = Scene::with(family, tokens, |world| world.destination_limit = Some(limit));
    scene.introduce();
    let sent = good(&scene);
    let observed = scene.send(&sent).expect_dropped(Reason::DestinationLimited);
    snapshot(&scene, "destination_limited", &observed);
}

#[rstest]
fn a_destination_without_a_known_next_hop_is_dropped(
    #[values(V4, V6)] family: Family,
    #[values(Plain, Protected)] tokens: Tokens,
) {
    let mut scene = Scene::new(family, tokens);
    scene.lab.set_next_hop(scene.destination, None).unwrap();
    let sent = good(&scene);
    let observed = scene.send(&sent).expect_dropped(Reason::DestinationUnresolved);
    snapshot(&scene, "destination_unresolved", &observed);
}

#[rstest]
fn an_exhausted_hop_limit_is_dropped(#[values(V4, V6)] family: Family, #[values(Plain, Protected)] tokens: Tokens) {
    let mut scene = Scene::new(family, tokens);
    let sent = good(&scene).hop_limit(1);
    let observed = scene.send(&sent).expect_dropped(Reason::TtlExpired);
    snapshot(&scene, "ttl_expired_uplink", &observed);

    let _ = scene.send_pn(6).expect_relayed();
    let sent = scene.downlink(b"answer").hop_limit(1);
    let observed = scene
        .send(&sent)
        .expect(Verdict::Drop, Direction::Downlink, Reason::TtlExpired);
    snapshot(&scene, "ttl_expired_downlink", &observed.expect_no_state_change());
}

#[rstest]
fn a_packet_larger_than_the_link_is_dropped(
    #[values(V4, V6)] family: Family,
    #[values(Plain, Protected)] tokens: Tokens,
) {
    let mut scene = Scene::with(family, tokens, |world| {
        world.mtu = 100;
        world.destinations[1].next_hop = Some(packet_lab::world::NextHop {
            mtu: 100,
            ..crate::scene::NEXT_HOP
        });
    });
    let headers = if family == V4 { 28 } else { 48 };
    let too_big = vec![b'x'; 101 - headers];
    let sent = scene.uplink(5, &too_big);
    let observed = scene.send(&sent).expect_dropped(Reason::TooBig);
    snapshot(&scene, "too_big_uplink", &observed);

    let _ = scene.send_pn(6).expect_relayed();
    let sent = scene.downlink(&too_big);
    let observed = scene
        .send(&sent)
        .expect(Verdict::Drop, Direction::Downlink, Reason::TooBig);
    snapshot(&scene, "too_big_downlink", &observed.expect_no_state_change());
}

#[rstest]
fn a_packet_for_an_egress_port_from_elsewhere_is_left_to_the_host(
    #[values(V4, V6)] family: Family,
    #[values(Plain, Protected)] tokens: Tokens,
) {
    let mut scene = Scene::new(family, tokens);
    scene.introduce();
    let mut sent = scene.downlink(b"who are you?");
    sent.from.set_port(5001);
    let observed = scene
        .send(&sent)
        .expect(Verdict::Pass, Direction::Downlink, Reason::Unsolicited);
    snapshot(&scene, "unsolicited_pass", &observed.expect_no_state_change());
}

#[rstest]
fn a_packet_for_an_egress_port_from_elsewhere_is_dropped_where_the_operator_says_so(
    #[values(V4, V6)] family: Family,
    #[values(Plain, Protected)] tokens: Tokens,
) {
    let mut scene = Scene::with(family, tokens, |world| world.drop_unmatched = true);
    let sent = scene.downlink(b"who are you?");
    let observed = scene
        .send(&sent)
        .expect(Verdict::Drop, Direction::Downlink, Reason::Unsolicited);
    snapshot(&scene, "unsolicited_drop", &observed.expect_no_state_change());
}

#[rstest]
fn a_packet_for_nobody_here_is_left_to_the_host(
    #[values(V4, V6)] family: Family,
    #[values(Plain, Protected)] tokens: Tokens,
) {
    let mut scene = Scene::new(family, tokens);
    let mut sent = good(&scene);
    sent.to.set_port(53);
    let observed = scene
        .send(&sent)
        .expect(Verdict::Pass, Direction::Uplink, Reason::Unrelated);
    snapshot(&scene, "unrelated", &observed.expect_no_state_change());
}

#[rstest]
fn a_renewed_grant_starts_afresh_and_ends_the_old_one(
    #[values(V4, V6)] family: Family,
    #[values(Plain, Protected)] tokens: Tokens,
) {
    let mut scene = Scene::new(family, tokens);
    let old = good(&scene);
    let _ = scene.send(&old).expect_relayed();
    let renewed = User {
        salt: 0x8765_4321,
        key: [0xa5; 16],
        ..user(family)
    };
    scene.lab.publish(&renewed).unwrap();
    let _ = scene
        .send(&old)
        .expect_dropped(Reason::UnknownSession)
        .expect_no_state_change();
    (scene.grant.salt, scene.grant.key) = (renewed.salt, renewed.key);
    let new = good(&scene);
    let _ = scene.send(&new).expect_relayed();
    scene.lab.remove(SLOT).unwrap();
    let later = scene.uplink(6, PAYLOAD);
    let _ = scene
        .send(&later)
        .expect_dropped(Reason::UnknownSession)
        .expect_no_state_change();
}

#[test]
fn every_reason_of_the_program_has_a_snapshot_here() {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lab/snapshots");
    let names: Vec<String> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    // What the drivers leave no room for is shown beside what needs room, see `families`, and what is said in ICMP in
    // scenarios.
    let elsewhere = [Reason::NoHeadroom, Reason::IcmpError];
    for reason in Reason::ALL.into_iter().filter(|reason| !elsewhere.contains(reason)) {
        for family in ["v4", "v6"] {
            let found = names
                .iter()
                .any(|name| name.starts_with(reason.name()) && name.ends_with(&format!(".{family}.snap")));
            assert!(found, "no case shows {} over IP{family}", reason.name());
        }
    }
}
