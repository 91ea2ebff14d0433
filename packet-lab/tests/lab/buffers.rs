//! Frames in several buffers: what has to be in the first one, and what the relay makes of the rest.

use packet_lab::{Verdict, craft::Checksum, inspect::UdpFrameView, world::NextHop};
use relay_ebpf::verdict::{Direction, Reason};
use rstest::rstest;

use crate::scene::{
    Family::{self, V4, V6},
    NEXT_HOP, Scene,
    Tokens::Protected,
    client, expect_downlink, listener,
};

const TOKEN_BYTES: usize = 24;
/// Of the IP packet: what fits an MTU of 9,000 in either family, token and all.
const JUMBO_PAYLOAD: usize = 8_900;

/// A scene with links for jumbo frames, whose frames have `first_buffer` bytes in their first buffer. The client is of
/// `near`, the destination of `far`.
fn scene(near: Family, far: Family, first_buffer: Option<usize>) -> Scene {
    let mut scene = Scene::with(far, Protected, |world| {
        let mtu = 9_000;
        (world.mtu, world.destinations[1].next_hop) = (mtu, Some(NextHop { mtu, ..NEXT_HOP }));
        world.first_buffer = first_buffer;
    });
    (scene.client, scene.listener) = (client(near, 9, 40_000), listener(near));
    scene
}

/// Bytes of a frame of `family` before its UDP payload.
const fn payload_at(family: Family) -> usize {
    match family {
        V4 => 14 + 20 + 8,
        V6 => 14 + 40 + 8,
    }
}

#[rstest]
fn a_token_is_taken_if_it_is_whole_in_the_first_buffer(#[values(V4, V6)] family: Family) {
    let payload = b"payload";
    let at = payload_at(family);
    for first in at - 1..=at + TOKEN_BYTES + 1 {
        let mut scene = scene(family, family, Some(first));
        let sent = scene.uplink(1, payload);
        let observed = scene.send(&sent);
        if first < at {
            let _ = observed.expect(Verdict::Pass, Direction::Uplink, Reason::Unrelated);
        } else if first < at + TOKEN_BYTES {
            let _ = observed.expect_dropped(Reason::Truncated);
        } else {
            scene.check_uplink(&sent, payload, &observed.expect_relayed());
        }
    }
}

#[rstest]
fn an_answer_needs_its_headers_alone_in_the_first_buffer(
    #[values(V4, V6)] near: Family,
    #[values(V4, V6)] far: Family,
) {
    // The client's packets have to be known.
    let least = payload_at(far).max(payload_at(near) + TOKEN_BYTES);
    for first in [least, least + 1] {
        let mut scene = scene(near, far, Some(first));
        scene.introduce();
        let answer = scene.downlink(&[0x5a; 200]);
        let out = expect_downlink(scene.send(&answer));
        assert_eq!(UdpFrameView::read(&out.output).unwrap().payload, answer.payload);
    }
}

#[rstest]
fn jumbo_frames_are_relayed_both_ways_and_counted_whole(
    #[values(V4, V6)] near: Family,
    #[values(V4, V6)] far: Family,
    #[values(Checksum::Right, Checksum::None)] checksum: Checksum,
    #[values(None, Some(1_000))] first_buffer: Option<usize>,
) {
    let mut scene = scene(near, far, first_buffer);
    scene.introduce();
    let payload: Vec<u8> = (0..JUMBO_PAYLOAD).map(|i| (i * 7) as u8).collect();
    let up = scene.uplink(100, &payload).checksum(checksum);
    let out = scene.send(&up).expect_relayed();
    assert_crossed(&payload, &out.output, near, far, checksum);
    assert_counted(&up.build(), &out);
    let down = scene.downlink(&payload).checksum(checksum);
    let out = expect_downlink(scene.send(&down));
    assert_crossed(&payload, &out.output, far, near, checksum);
    assert_counted(&down.build(), &out);
}

fn assert_crossed(payload: &[u8], output: &[u8], from: Family, to: Family, checksum: Checksum) {
    let view = UdpFrameView::read(output).unwrap();
    // What had none goes on without where nothing else is legal at either end.
    let is_right = view.has_right_checksums() || (from, to, checksum) == (V6, V6, Checksum::None);
    assert!(is_right, "{view}");
    assert_eq!(view.payload, payload);
}

fn assert_counted(sent: &[u8], observed: &packet_lab::Observation) {
    let bytes: Vec<u64> = observed.counters.values().map(|traffic| traffic.bytes).collect();
    assert_eq!(bytes, [sent.len() as u64]);
}

#[test]
fn a_checksum_is_computed_over_any_payload_whatever_buffers_it_is_in() {
    for first in [66, 67, 80, 99, 131] {
        let mut scene = scene(V4, V6, Some(first));
        for length in (1..140).chain([255, 256, 257, 9_215, 9_216]) {
            let payload: Vec<u8> = (0..length).map(|i| (i * 7 + length) as u8).collect();
            let sent = scene.uplink(length as u64, &payload).checksum(Checksum::None);
            if length > 8_912 {
                let _ = scene.send(&sent).expect_dropped(Reason::TooBig);
                continue;
            }
            let out = scene.send(&sent).expect_relayed();
            assert_crossed(&payload, &out.output, V4, V6, Checksum::None);
        }
    }
}

#[rstest]
fn what_claims_more_than_all_its_buffers_have_is_truncated(#[values(V4, V6)] family: Family) {
    let mut scene = scene(family, family, Some(100));
    let whole = scene.uplink(1, &[7; 400]).build();
    for cut in [1, 300, 399] {
        let _ = scene
            .send_at(crate::scene::START_NS, &whole[..whole.len() - cut])
            .expect_dropped(Reason::Truncated);
    }
    let _ = scene.send_at(crate::scene::START_NS, &whole).expect_relayed();
}
