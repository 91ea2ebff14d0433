//! Tokens: the protocol's vectors, and every way to get one wrong.

use packet_lab::{
    Verdict, World,
    craft::{Grant, TOKEN_BYTES, UdpFrame, flip_bit},
    world::{Destination, User, address},
};
use relay_ebpf::{
    token,
    verdict::{Direction, Reason},
};
use rstest::rstest;

use crate::scene::{
    Family::{self, V4, V6},
    HEADER_KEY, NEXT_HOP, SLOT, START_NS, Scene,
    Tokens::{self, Plain, Protected},
    client, destination, lab, user,
};

const USER_KEY: [u8; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

struct Vector {
    slot: u32,
    salt: u32,
    pn: u64,
    payload_len: u16,
    relay_id: u32,
    plain: &'static str,
    protected: &'static str,
}

const VECTORS: [Vector; 3] = [
    Vector {
        slot: 0,
        salt: 0,
        pn: 0,
        payload_len: 0,
        relay_id: 0,
        plain: "00000000000000000000000000000000e45a5b387f442465",
        protected: "4d28b447b96668bb3f1afcf0c383903ee45a5b387f442465",
    },
    Vector {
        slot: 1,
        salt: 0xdead_beef,
        pn: 1,
        payload_len: 5,
        relay_id: 7,
        plain: "00000001deadbeef0000000000000001f0af76d80cf137f6",
        protected: "e8a24627893ac2e836420b0f14fcba3ff0af76d80cf137f6",
    },
    Vector {
        slot: 99_999,
        salt: 0x0102_0304,
        pn: 0x0006_4000_0000_0001,
        payload_len: 1_400,
        relay_id: 0xffff_ffff,
        plain: "0001869f010203040006400000000001ffc27433786c7a5a",
        protected: "90479fc10b0ae06cfa3ea2326bdcc17cffc27433786c7a5a",
    },
];

#[rstest]
fn the_protocols_vectors_hold_for_two_implementations(#[values(0, 1, 2)] index: usize) {
    let vector = &VECTORS[index];
    for (header_key, expected) in [(None, vector.plain), (Some(HEADER_KEY), vector.protected)] {
        let grant = Grant {
            slot: vector.slot,
            salt: vector.salt,
            key: USER_KEY,
            header_key,
            relay_id: vector.relay_id,
        };
        let by_siphasher = grant.token(vector.pn, vector.payload_len);
        assert_eq!(hex::encode(by_siphasher), expected, "by the siphasher crate");
        let by_relay = token::seal(
            &USER_KEY,
            header_key.as_ref(),
            vector.slot,
            vector.salt,
            vector.pn,
            vector.payload_len,
            vector.relay_id,
        );
        assert_eq!(hex::encode(by_relay), expected, "by the relay's own code");
    }
}

#[rstest]
fn the_program_accepts_the_protocols_vectors(
    #[values(0, 1, 2)] index: usize,
    #[values(V4, V6)] family: Family,
    #[values(Plain, Protected)] tokens: Tokens,
) {
    let vector = &VECTORS[index];
    let mut world = World::new()
        .with_destination(Destination {
            to: destination(family),
            next_hop: Some(NEXT_HOP),
        })
        .with_user(User {
            slot: vector.slot,
            salt: vector.salt,
            key: USER_KEY,
            ..user(family)
        });
    world.relay_id = vector.relay_id;
    (world.max_users, world.egress_ports) = (100_000, 50_000);
    let text = match tokens {
        Plain => vector.plain,
        Protected => {
            world.header_key = Some(HEADER_KEY);
            vector.protected
        }
    };
    let mut payload = hex::decode(text).unwrap();
    payload.resize(TOKEN_BYTES + usize::from(vector.payload_len), 0x5a);
    let frame = UdpFrame::new(client(family, 1, 1), crate::scene::listener(family), payload).build();
    let reason = if vector.payload_len == 0 {
        Reason::Ping
    } else {
        Reason::Relayed
    };

    let mut lab = lab(world);
    let _ = lab
        .step(START_NS, &frame)
        .unwrap()
        .expect(Verdict::Tx, Direction::Uplink, reason);
    let _ = lab.step(START_NS, &frame).unwrap().expect_dropped(Reason::Replayed);
}

#[rstest]
fn a_payload_of_each_length_below_a_token_is_truncated(
    #[values(V4, V6)] family: Family,
    #[values(Plain, Protected)] tokens: Tokens,
) {
    let mut scene = Scene::new(family, tokens);
    let token = scene.grant.seal(1, b"");
    for length in 0..TOKEN_BYTES {
        let frame = UdpFrame::new(scene.client, scene.listener, &token[..length]);
        let _ = scene
            .send(&frame)
            .expect_dropped(Reason::Truncated)
            .expect_no_state_change();
    }
    let whole = UdpFrame::new(scene.client, scene.listener, token);
    let _ = scene.send(&whole).expect(Verdict::Tx, Direction::Uplink, Reason::Ping);
}

#[rstest]
fn a_frame_cut_anywhere_is_never_sent(#[values(V4, V6)] family: Family, #[values(Plain, Protected)] tokens: Tokens) {
    let mut scene = Scene::new(family, tokens);
    let shape = scene.uplink(1, b"payload");
    let (whole, udp_end) = (shape.build(), shape.udp_offset() + 8);
    for length in 14..whole.len() {
        let observed = scene.send_at(START_NS, &whole[..length]);
        let _ = if length < udp_end {
            // Without ports it is nobody's packet.
            observed.expect(Verdict::Pass, Direction::Uplink, Reason::Unrelated)
        } else {
            observed.expect_dropped(Reason::Truncated)
        }
        .expect_no_state_change();
    }
    let _ = scene.send_at(START_NS, &whole).expect_relayed();
}

#[rstest]
#[case::the_udp_header_alone_is_longer(7)]
#[case::nothing_at_all(0)]
#[case::no_room_for_the_token(8 + 23)]
#[case::one_byte_more_than_there_is(8 + 24 + 7 + 1)]
#[case::the_most(0xffff)]
fn a_udp_length_that_cannot_be_is_truncated(#[values(V4, V6)] family: Family, #[case] length: u16) {
    let mut scene = Scene::new(family, Plain);
    let shape = scene.uplink(1, b"payload");
    let mut frame = shape.build();
    let at = shape.udp_offset() + 4;
    frame[at..at + 2].copy_from_slice(&length.to_be_bytes());
    let _ = scene
        .send_at(START_NS, &frame)
        .expect_dropped(Reason::Truncated)
        .expect_no_state_change();
}

#[rstest]
fn a_packet_with_bytes_after_it_is_relayed_without_them(#[values(V4, V6)] family: Family) {
    let mut scene = Scene::new(family, Plain);
    let sent = scene.uplink(1, b"payload");
    let mut frame = sent.build();
    frame.extend([0; 11]);
    let observed = scene.send_at(START_NS, &frame).expect_relayed();
    scene.check_uplink(&sent, b"payload", &observed);
}

#[rstest]
fn any_flipped_bit_of_the_token_is_noticed(
    #[values(V4, V6)] family: Family,
    #[values(Plain, Protected)] tokens: Tokens,
) {
    let mut scene = Scene::new(family, tokens);
    let good = scene.uplink(1, b"payload");
    for bit in 0..8 * TOKEN_BYTES {
        let mut frame = good.clone();
        flip_bit(&mut frame.payload, bit);
        // The tag makes the mask: under header protection one bit of it garbles the handle too.
        let garbles_handle = bit < 64 || (tokens == Protected && bit >= 128);
        let reason = if garbles_handle {
            Reason::UnknownSession
        } else {
            Reason::BadToken
        };
        let _ = scene.send(&frame).expect_dropped(reason).expect_no_state_change();
    }
    let _ = scene.send(&good).expect_relayed();
}

#[rstest]
fn a_token_for_another_payload_length_is_bad(
    #[values(V4, V6)] family: Family,
    #[values(Plain, Protected)] tokens: Tokens,
) {
    let mut scene = Scene::new(family, tokens);
    for (sealed, sent) in [(7, 6), (7, 8), (0, 1), (1, 0)] {
        let mut payload = scene.grant.token(1, sealed).to_vec();
        payload.resize(TOKEN_BYTES + sent, b'x');
        let frame = UdpFrame::new(scene.client, scene.listener, payload);
        let _ = scene
            .send(&frame)
            .expect_dropped(Reason::BadToken)
            .expect_no_state_change();
    }
}

#[rstest]
fn a_token_for_another_relay_is_bad(#[values(V4, V6)] family: Family, #[values(Plain, Protected)] tokens: Tokens) {
    let mut scene = Scene::new(family, tokens);
    let own = scene.grant.relay_id;
    for bit in 0..32 {
        scene.grant.relay_id = own ^ 1 << bit;
        let _ = scene
            .send_pn(1)
            .expect_dropped(Reason::BadToken)
            .expect_no_state_change();
    }
}

#[rstest]
#[case::the_slot_before(SLOT - 1)]
#[case::the_last_slot(15)]
#[case::just_past_the_last(16)]
#[case::far_past_the_last(0x8000_0000)]
#[case::the_largest(u32::MAX)]
fn a_slot_without_this_user_is_unknown(
    #[values(V4, V6)] family: Family,
    #[values(Plain, Protected)] tokens: Tokens,
    #[case] slot: u32,
) {
    let mut scene = Scene::new(family, tokens);
    scene.grant.slot = slot;
    let _ = scene
        .send_pn(1)
        .expect_dropped(Reason::UnknownSession)
        .expect_no_state_change();
}

#[rstest]
fn the_salt_zero_does_not_open_an_empty_slot(#[values(Plain, Protected)] tokens: Tokens) {
    let mut scene = Scene::new(V4, tokens);
    (scene.grant.slot, scene.grant.salt, scene.grant.key) = (5, 0, [0; 16]);
    let _ = scene
        .send_pn(1)
        .expect_dropped(Reason::UnknownSession)
        .expect_no_state_change();
}

#[test]
fn a_plain_token_does_not_open_a_listener_with_header_protection_nor_the_other_way_round() {
    let mut protected = Scene::new(V4, Protected);
    protected.grant.header_key = None;
    let _ = protected.send_pn(1).expect_dropped(Reason::UnknownSession);
    let mut plain = Scene::new(V4, Plain);
    plain.grant.header_key = Some(HEADER_KEY);
    let _ = plain.send_pn(1).expect_dropped(Reason::UnknownSession);
}

#[test]
fn every_listener_of_the_relay_takes_tokens() {
    let more = [
        "192.0.2.3:4500",
        "192.0.2.1:4501",
        "192.0.2.4:53",
        "192.0.2.5:1",
        "192.0.2.6:65535",
        "192.0.2.7:7",
    ];
    let mut scene = Scene::with(V4, Plain, |world| {
        world.listeners.extend(more.map(address::<std::net::SocketAddr>));
    });
    for (pn, listener) in (1..).zip(more) {
        scene.listener = address(listener);
        let sent = scene.uplink(pn, b"payload");
        let observed = scene.send(&sent).expect_relayed();
        scene.check_uplink(&sent, b"payload", &observed);
        let answer = scene.downlink(b"answer");
        let observed = crate::scene::expect_downlink(scene.send(&answer));
        scene.check_downlink(&answer, &observed);
    }
}
