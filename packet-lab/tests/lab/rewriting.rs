//! What is rewritten and what is kept: checksums, hop limits, sizes, options.

use packet_lab::Verdict;
use packet_lab::{
    craft::{Checksum, UdpFrame},
    inspect::{IpHeader, Sum, UdpFrameView},
    world::NextHop,
};
use relay_ebpf::verdict::{Direction, Reason};
use rstest::rstest;

use crate::scene::{
    Family::{self, V4, V6},
    NEXT_HOP, START_NS, Scene,
    Tokens::{Plain, Protected},
    expect_downlink,
};

#[derive(Clone, Copy, Debug)]
enum Way {
    Up,
    Down,
}
use Way::{Down, Up};

impl Scene {
    /// A packet of a known client on its way up or down, with this payload apart from any token.
    fn packet(&self, way: Way, payload: &[u8]) -> UdpFrame {
        match way {
            Up => self.uplink(100, payload),
            Down => self.downlink(payload),
        }
    }

    /// Sends it, and reads what came out.
    fn through(&mut self, way: Way, sent: &UdpFrame) -> UdpFrameView {
        let observed = self.send(sent);
        let observed = match way {
            Up => observed.expect_relayed(),
            Down => expect_downlink(observed),
        };
        UdpFrameView::read(&observed.output).unwrap_or_else(|error| panic!("{error}:\n{observed}"))
    }
}

fn introduced(family: Family) -> Scene {
    let mut scene = Scene::new(family, Protected);
    scene.introduce();
    scene
}

#[rstest]
fn right_checksums_of_any_payload_stay_right(#[values(V4, V6)] family: Family, #[values(Up, Down)] way: Way) {
    let mut scene = Scene::new(family, Protected);
    scene.introduce();
    for length in (1..64).chain([255, 256, 1_000, 1_399, 1_400]) {
        let payload: Vec<u8> = (0..length).map(|i| (i * 7 + length) as u8).collect();
        let sent = match way {
            Up => scene.uplink(100 + length as u64, &payload),
            Down => scene.downlink(&payload),
        };
        let view = scene.through(way, &sent);
        assert!(view.has_right_checksums(), "{length} bytes: {view}");
        assert_eq!(view.payload, payload, "{length} bytes");
    }
}

#[rstest]
fn a_udp_checksum_of_zero_stays_zero(#[values(V4, V6)] family: Family, #[values(Up, Down)] way: Way) {
    let mut scene = introduced(family);
    let sent = scene.packet(way, b"payload").checksum(Checksum::None);
    assert_eq!(scene.through(way, &sent).checksum, Sum::None);
}

#[rstest]
fn a_wrong_udp_checksum_stays_wrong(
    #[values(V4, V6)] family: Family,
    #[values(Up, Down)] way: Way,
    #[values(1, 0x0100, 0x7fff, 0xfffe)] by: u16,
) {
    let mut scene = introduced(family);
    let sent = scene.packet(way, b"payload").checksum(Checksum::Wrong(by));
    let view = scene.through(way, &sent);
    let Sum::Wrong { found, right } = view.checksum else {
        panic!("a wrong checksum came out as {}", view.checksum);
    };
    let difference = (u32::from(found) + 0xffff - u32::from(right)) % 0xffff;
    assert_eq!(difference, u32::from(by), "wrong by another amount: {view}");
}

/// The checksum that a relayed packet with this payload has.
fn checksum_after(scene: &Scene, way: Way, payload: &[u8]) -> u16 {
    let (from, to) = match way {
        Up => (scene.egress, scene.destination),
        Down => (scene.listener, scene.client),
    };
    let expected = UdpFrameView::read(&UdpFrame::new(from, to, payload).build()).unwrap();
    let Sum::Right(sum) = expected.checksum else {
        panic!("etherparse and pnet disagree: {expected}");
    };
    sum
}

#[rstest]
fn a_checksum_that_comes_to_zero_leaves_as_all_ones(#[values(V4, V6)] family: Family, #[values(Up, Down)] way: Way) {
    let mut scene = introduced(family);
    // A word equal to the checksum of the rest completes the sum to all ones.
    let payload = checksum_after(&scene, way, &[0, 0]).to_be_bytes();
    assert_eq!(
        checksum_after(&scene, way, &payload),
        0xffff,
        "the payload was meant to do this"
    );
    let sent = scene.packet(way, &payload);
    assert_eq!(scene.through(way, &sent).checksum, Sum::Right(0xffff));
}

#[rstest]
fn a_checksum_that_came_as_all_ones_is_right_afterwards(
    #[values(V4, V6)] family: Family,
    #[values(Up, Down)] way: Way,
) {
    let mut scene = introduced(family);
    let sum_of = |scene: &Scene, payload: &[u8]| match UdpFrameView::read(&scene.packet(way, payload).build())
        .unwrap()
        .checksum
    {
        Sum::Right(sum) => sum,
        other => panic!("etherparse and pnet disagree: {other}"),
    };
    let payload = sum_of(&scene, &[0, 0]).to_be_bytes();
    // The token of an uplink packet covers the payload's length alone, so it is the same for both payloads.
    assert_eq!(sum_of(&scene, &payload), 0xffff, "the payload was meant to do this");
    let sent = scene.packet(way, &payload);
    let view = scene.through(way, &sent);
    assert!(view.has_right_checksums(), "{view}");
}

#[rstest]
fn the_ipv4_header_checksum_is_right_at_every_edge_of_its_sum(#[values(Up, Down)] way: Way) {
    for target in [0x0000_u16, 0x0001, 0x00ff, 0x0100, 0x7fff, 0x8000, 0xff00, 0xfffe] {
        let mut scene = introduced(V4);
        let mut probe = scene.packet(way, b"payload");
        probe.identification = 0;
        let (from, to) = match way {
            Up => (scene.egress, scene.destination),
            Down => (scene.listener, scene.client),
        };
        let mut expected = UdpFrame::new(from, to, *b"payload").hop_limit(63);
        expected.identification = 0;
        let sum = header_checksum(&expected.build());
        // Adding `sum - target` in one's complement moves the header's checksum to `target`.
        probe.identification = ((u32::from(sum) + 0xffff - u32::from(target)) % 0xffff) as u16;
        let view = scene.through(way, &probe);
        assert!(view.has_right_checksums(), "{view}");
        let IpHeader::V4 { checksum, .. } = view.ip else {
            panic!("not IPv4: {view}");
        };
        assert_eq!(checksum, Sum::Right(target), "{view}");
    }
}

fn header_checksum(frame: &[u8]) -> u16 {
    match UdpFrameView::read(frame).unwrap().ip {
        IpHeader::V4 {
            checksum: Sum::Right(sum),
            ..
        } => sum,
        other => panic!("etherparse and pnet disagree: {other:?}"),
    }
}

#[rstest]
fn a_wrong_ipv4_header_checksum_stays_wrong(#[values(Up, Down)] way: Way) {
    let mut scene = introduced(V4);
    let mut frame = scene.packet(way, b"payload").build();
    frame[14 + 10] ^= 0x55;
    let observed = scene.send_at(START_NS, &frame);
    let view = UdpFrameView::read(&observed.output).unwrap();
    assert!(
        matches!(
            view.ip,
            IpHeader::V4 {
                checksum: Sum::Wrong { .. },
                ..
            }
        ),
        "a damaged header was made to look right:\n{observed}"
    );
}

#[rstest]
#[case::zero(0, false)]
#[case::one(1, false)]
#[case::two(2, true)]
#[case::the_largest(255, true)]
fn a_hop_limit_is_lowered_and_ends_at_one(
    #[values(V4, V6)] family: Family,
    #[values(Up, Down)] way: Way,
    #[case] hop_limit: u8,
    #[case] relayed: bool,
) {
    let mut scene = introduced(family);
    let sent = scene.packet(way, b"payload").hop_limit(hop_limit);
    if relayed {
        assert_eq!(scene.through(way, &sent).hop_limit, hop_limit - 1);
        return;
    }
    let direction = match way {
        Up => Direction::Uplink,
        Down => Direction::Downlink,
    };
    let _ = scene.send(&sent).expect(Verdict::Drop, direction, Reason::TtlExpired);
}

#[rstest]
fn a_packet_as_large_as_the_link_is_relayed_and_one_byte_more_is_not(
    #[values(V4, V6)] family: Family,
    #[values(Up, Down)] way: Way,
    #[values(576, 1_280, 1_500)] mtu: u16,
) {
    let mut scene = Scene::with(family, Plain, |world| {
        // Each way has its own link: the other one is no limit.
        (world.mtu, world.destinations[1].next_hop) = match way {
            Up => (60, Some(NextHop { mtu, ..NEXT_HOP })),
            Down => (mtu, Some(NextHop { mtu: 60, ..NEXT_HOP })),
        };
    });
    scene.introduce();
    let headers = if family == V4 { 28 } else { 48 };
    let fits = vec![0x11; usize::from(mtu) - headers];
    let sent = scene.packet(way, &fits);
    assert_eq!(scene.through(way, &sent).payload, fits);
    let more = [&fits[..], &[0x11]].concat();
    let (sent, direction) = match way {
        Up => (scene.uplink(101, &more), Direction::Uplink),
        Down => (scene.downlink(&more), Direction::Downlink),
    };
    let _ = scene.send(&sent).expect(Verdict::Drop, direction, Reason::TooBig);
}

#[rstest]
fn ipv4_options_are_removed_and_the_checksums_stay_right(
    #[values(Up, Down)] way: Way,
    #[values(4, 8, 20, 36, 40)] option_bytes: usize,
) {
    let mut scene = introduced(V4);
    // No-operation options, with a router alert at the end.
    let mut options = vec![1; option_bytes];
    options[option_bytes - 4..].copy_from_slice(&[0x94, 4, 0, 0]);
    let sent = scene.packet(way, b"payload").options(options);
    let view = scene.through(way, &sent);
    assert!(view.has_right_checksums(), "{view}");
    assert!(matches!(view.ip, IpHeader::V4 { option_bytes: 0, .. }), "{view}");
    assert_eq!(view.payload, b"payload");
}

#[rstest]
fn what_the_sender_set_is_kept(#[values(V4, V6)] family: Family, #[values(Up, Down)] way: Way) {
    for (tos, dont_fragment, label) in [(0, true, 0), (0xff, false, 0xf_ffff), (0xb8, true, 0x1_2345)] {
        let mut scene = introduced(family);
        let mut sent = scene.packet(way, b"payload").tos(tos);
        (sent.dont_fragment, sent.flow_label, sent.identification) = (dont_fragment, label, 0xbeef);
        let view = scene.through(way, &sent);
        assert_eq!(view.tos, tos);
        match view.ip {
            IpHeader::V4 {
                identification,
                dont_fragment: kept,
                ..
            } => assert_eq!((identification, kept), (0xbeef, dont_fragment)),
            IpHeader::V6 { flow_label } => assert_eq!(flow_label, label),
        }
    }
}

#[rstest]
fn a_moved_next_hop_takes_effect_with_the_next_packet(#[values(V4, V6)] family: Family) {
    let mut scene = introduced(family);
    let moved = NextHop {
        mac: [0x06, 1, 2, 3, 4, 5],
        mtu: 9_000,
        interface: 0,
        tags: packet_lab::world::Tags::NONE,
    };
    scene.lab.set_next_hop(scene.destination, Some(moved)).unwrap();
    let sent = scene.packet(Up, b"payload");
    assert_eq!(scene.through(Up, &sent).to_mac, moved.mac);
    scene.lab.set_next_hop(scene.destination, None).unwrap();
    let _ = scene.send_pn(101).expect_dropped(Reason::DestinationUnresolved);
}
