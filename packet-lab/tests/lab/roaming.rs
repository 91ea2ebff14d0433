//! Where a user's client is: where its newest packet came from.

use packet_lab::Verdict;
use packet_lab::{backend::Client, world::address};
use relay_ebpf::verdict::{Direction, Reason};
use rstest::rstest;

use crate::scene::{
    Family::{self, V4, V6},
    Scene,
    Tokens::{Plain, Protected},
    client, expect_downlink,
};

/// Fails unless the downlink reaches the client that the scene has.
fn assert_reached(scene: &mut Scene) {
    let answer = scene.downlink(b"answer");
    let observed = expect_downlink(scene.send(&answer));
    scene.check_downlink(&answer, &observed);
}

#[rstest]
#[case::to_another_address(10, 40_000)]
#[case::to_another_port(9, 40_001)]
fn the_newest_packet_moves_the_client(#[values(V4, V6)] family: Family, #[case] host: u8, #[case] port: u16) {
    let mut scene = Scene::new(family, Protected);
    scene.introduce();
    assert_reached(&mut scene);
    scene.client = client(family, host, port);
    let _ = scene.send_pn(2).expect_relayed();
    assert_reached(&mut scene);
}

#[rstest]
fn an_older_packet_from_elsewhere_is_relayed_but_does_not_move_the_client(#[values(V4, V6)] family: Family) {
    let mut scene = Scene::new(family, Plain);
    let _ = scene.send_pn(10).expect_relayed();
    let home = scene.client;
    scene.client = client(family, 66, 6_666);
    let observed = scene.send_pn(9).expect_relayed();
    let (_, before, after) = &observed.users[0];
    assert_eq!(before.client, after.client);
    scene.client = home;
    assert_reached(&mut scene);
}

#[rstest]
#[case::a_replay(5, Reason::Replayed)]
#[case::a_forgery(6, Reason::BadToken)]
fn what_is_dropped_does_not_move_the_client(#[case] pn: u64, #[case] reason: Reason) {
    let mut scene = Scene::new(V4, Plain);
    let _ = scene.send_pn(5).expect_relayed();
    let mut elsewhere = scene.uplink(pn, b"payload");
    elsewhere.from = client(V4, 66, 6_666);
    if reason == Reason::BadToken {
        elsewhere.payload[16] ^= 1;
    }
    let _ = scene.send(&elsewhere).expect_dropped(reason).expect_no_state_change();
    assert_reached(&mut scene);
}

#[test]
fn a_packet_over_the_rate_does_not_move_the_client() {
    let mut scene = Scene::with(V4, Plain, |world| world.users[1].burst = 1);
    scene.introduce();
    let home = scene.client;
    scene.client = client(V4, 66, 6_666);
    let _ = scene.send_pn(2).expect_dropped(Reason::RateLimited);
    scene.client = home;
    assert_reached(&mut scene);
}

#[test]
fn a_ping_moves_the_client() {
    let mut scene = Scene::new(V4, Protected);
    scene.introduce();
    scene.client = client(V4, 10, 1);
    let ping = scene.uplink(2, b"");
    let _ = scene.send(&ping).expect(Verdict::Tx, Direction::Uplink, Reason::Ping);
    assert_reached(&mut scene);
}

#[test]
fn the_downlink_follows_the_mac_address_that_the_client_comes_by() {
    let mut scene = Scene::new(V4, Plain);
    scene.introduce();
    let other_gateway = [0x02, 0, 0, 0, 0, 0xc2];
    let moved = scene.uplink(2, b"payload").from_mac(other_gateway);
    let _ = scene.send(&moved).expect_relayed();
    let answer = scene.downlink(b"answer");
    let observed = expect_downlink(scene.send(&answer));
    let view = packet_lab::inspect::UdpFrameView::read(&observed.output).unwrap();
    assert_eq!(view.to_mac, other_gateway, "{observed}");
}

#[test]
fn the_downlink_leaves_from_the_listener_that_the_client_spoke_to_last() {
    let mut scene = Scene::with(V4, Plain, |world| world.listeners.push(address("192.0.2.9:9999")));
    scene.introduce();
    scene.listener = address("192.0.2.9:9999");
    let _ = scene.send_pn(2).expect_relayed();
    assert_reached(&mut scene);
}

#[test]
fn a_client_that_comes_by_the_other_family_is_answered_there() {
    let mut scene = Scene::new(V4, Plain);
    scene.introduce();
    (scene.client, scene.listener) = (client(V6, 9, 40_000), crate::scene::listener(V6));
    let sent = scene.uplink(2, b"payload");
    let observed = scene.send(&sent).expect_relayed();
    let after = observed.users[0].2.client;
    assert!(
        matches!(after, Some(Client { address, .. }) if address == scene.client),
        "{observed}"
    );
    scene.check_uplink(&sent, b"payload", &observed);
    let answer = scene.downlink(b"answer");
    let observed = expect_downlink(scene.send(&answer));
    scene.check_downlink(&answer, &observed);
}

#[rstest]
#[case::the_host("203.0.113.9/32", "2001:db8:c::9/128")]
#[case::its_network("203.0.113.0/24", "2001:db8:c::/48")]
#[case::everything("0.0.0.0/0", "::/0")]
fn a_blocked_source_is_dropped_even_if_it_is_the_users_current_address(
    #[values(V4, V6)] family: Family,
    #[case] v4: &str,
    #[case] v6: &str,
) {
    let mut scene = Scene::new(family, Protected);
    scene.introduce();
    let prefix = if family == V4 { v4 } else { v6 };
    scene.lab.set_blocklist(&[address(prefix)]).unwrap();
    let _ = scene.send_pn(2).expect_dropped(Reason::BlockedSource);
    let _ = scene.send_pn(3).expect_dropped(Reason::BlockedSource);
    scene.lab.set_blocklist(&[]).unwrap();
    let _ = scene.send_pn(4).expect_relayed();
}

#[rstest]
#[case::the_neighbour("203.0.113.8/32", "2001:db8:c::8/128")]
#[case::the_other_half("203.0.113.128/25", "2001:db8:c:8000::/49")]
#[case::the_other_family("2001:db8:c::/48", "203.0.113.0/24")]
#[case::ipv4_as_ipv6("::ffff:0:0/97", "0.0.0.0/0")]
fn a_source_beside_the_blocklist_is_relayed(#[values(V4, V6)] family: Family, #[case] v4: &str, #[case] v6: &str) {
    let mut scene = Scene::new(family, Protected);
    let prefix = if family == V4 { v4 } else { v6 };
    scene.lab.set_blocklist(&[address(prefix)]).unwrap();
    let _ = scene.send_pn(1).expect_relayed();
    // Checked against this blocklist, it is not looked up again, and relayed all the same.
    let observed = scene.send_pn(2).expect_relayed();
    assert_eq!(observed.users[0].1.client, observed.users[0].2.client);
    scene
        .lab
        .set_blocklist(&[address(prefix), address("192.88.99.0/24")])
        .unwrap();
    let observed = scene.send_pn(3).expect_relayed();
    assert_ne!(
        observed.users[0].1.client, observed.users[0].2.client,
        "a changed blocklist is looked up again"
    );
}
