//! Clients of one family and destinations of the other: lengths, checksums, and room in front of the frame.

use aya::{TestRunOptions, programs::TestRun as _};
use packet_lab::{
    Backend as _, Verdict,
    craft::Checksum,
    inspect::{IpHeader, UdpFrameView},
    world::NextHop,
};
use relay_ebpf::verdict::{Direction, Reason};
use rstest::rstest;

use crate::scene::{
    Family::{self, V4, V6},
    NEXT_HOP, Scene,
    Tokens::Protected,
    client, expect_downlink, has_capabilities, kernel, listener,
};

/// A scene with a destination of `far`, whose client is of the other family and known. Its links take what the lab's
/// frames can be.
fn across(far: Family) -> Scene {
    let near = if far == V4 { V6 } else { V4 };
    let mut scene = Scene::with(far, Protected, |world| {
        let mtu = 60_000;
        (world.mtu, world.destinations[1].next_hop) = (mtu, Some(NextHop { mtu, ..NEXT_HOP }));
    });
    (scene.client, scene.listener) = (client(near, 9, 40_000), listener(near));
    scene.introduce();
    scene
}

#[rstest]
fn payload_of_any_length_crosses_with_a_right_checksum(
    #[values(V4, V6)] far: Family,
    #[values(Checksum::Right, Checksum::None)] checksum: Checksum,
) {
    let mut scene = across(far);
    for length in (1..100).chain([511, 512, 1_023, 1_231, 1_232, 1_233, 1_400]) {
        let payload: Vec<u8> = (0..length).map(|i| (i * 7 + length) as u8).collect();
        let up = scene.uplink(100 + length as u64, &payload).checksum(checksum);
        let out = scene.send(&up).expect_relayed();
        let view = UdpFrameView::read(&out.output).unwrap();
        assert!(view.has_right_checksums(), "{length} bytes: {view}");
        assert_eq!(view.payload, payload, "{length} bytes");
        let down = scene.downlink(&payload).checksum(checksum);
        let out = expect_downlink(scene.send(&down));
        let view = UdpFrameView::read(&out.output).unwrap();
        assert!(view.has_right_checksums(), "{length} bytes: {view}");
        assert_eq!(view.payload, payload, "{length} bytes");
    }
}

#[rstest]
fn from_ipv6_to_ipv4_routers_may_fragment_what_is_no_larger_than_1260_bytes(#[values(true, false)] uplink: bool) {
    let mut scene = across(if uplink { V4 } else { V6 });
    for (bytes, fragmentable) in [(1_260, true), (1_261, false)] {
        let payload = vec![0x3c; bytes - 28];
        let out = if uplink {
            let sent = scene.uplink(bytes as u64, &payload);
            scene.send(&sent).expect_relayed()
        } else {
            let sent = scene.downlink(&payload);
            expect_downlink(scene.send(&sent))
        };
        let view = UdpFrameView::read(&out.output).unwrap();
        let IpHeader::V4 { dont_fragment, .. } = view.ip else {
            panic!("not IPv4: {view}");
        };
        assert_eq!(dont_fragment, !fragmentable, "{view}");
    }
}

#[test]
fn a_checksum_is_computed_over_9216_bytes_and_no_more() {
    let mut scene = across(V6);
    let payload = vec![0xff; 9_217];
    let whole = scene.uplink(100, &payload);
    let _ = scene.send(&whole).expect_relayed();
    let most = scene.uplink(101, &payload[1..]).checksum(Checksum::None);
    let out = scene.send(&most).expect_relayed();
    assert!(UdpFrameView::read(&out.output).unwrap().has_right_checksums());
    let more = scene.uplink(102, &payload).checksum(Checksum::None);
    let _ = scene.send(&more).expect_dropped(Reason::TooBig);
}

#[test]
fn an_answer_that_grows_is_dropped_where_the_driver_leaves_no_room() {
    if !has_capabilities() {
        return;
    }
    let scene = across(V4);
    let answer = scene.downlink(b"answer").build();
    let introduction = scene.uplink(1, b"payload").build();
    let mut kernel = kernel(scene.lab.world()).expect("the capabilities are there");
    kernel.process(0, &introduction).unwrap();
    // What drivers leave is 256 bytes, of which the kernel needs some itself; what a program before this one has put in
    // front of the frame moves with it and takes the rest.
    for (taken, room) in [(0, true), (128, true), (208, false)] {
        let data_in = [&vec![0; taken][..], &answer].concat();
        let context: Vec<u8> = [taken as u32, data_in.len() as u32, 0, 0, 0, 0]
            .map(u32::to_ne_bytes)
            .concat();
        let reason = if room { Reason::Relayed } else { Reason::NoHeadroom };
        let before = kernel.counter(Direction::Downlink, reason).unwrap().packets;
        let program = kernel.loaded().program().unwrap();
        let mut data_out = vec![0; 2_048];
        let result = program
            .test_run(TestRunOptions {
                data_in: Some(&data_in),
                data_out: Some(&mut data_out),
                ctx_in: Some(&context),
                ..TestRunOptions::default()
            })
            .unwrap_or_else(|error| panic!("{taken} bytes taken: {error}"));
        let after = kernel.counter(Direction::Downlink, reason).unwrap().packets;
        let verdict = if room { Verdict::Tx } else { Verdict::Drop };
        assert_eq!(
            Verdict::from_action(result.return_value),
            Some(verdict),
            "{taken} bytes taken"
        );
        assert_eq!(after, before + 1, "{taken} bytes taken");
    }
}
