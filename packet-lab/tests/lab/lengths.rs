//! Packets of every length: right ones are relayed whole, hostile ones never sent.

use packet_lab::Verdict;
use packet_lab::craft::UdpFrame;
use relay_ebpf::verdict::{Direction, Reason};
use rstest::rstest;

use crate::scene::{
    Family::{self, V4, V6},
    START_NS, Scene,
    Tokens::{self, Plain, Protected},
    expect_downlink,
};

/// What the kernel's test run takes at most.
const LONGEST_FRAME: usize = 3_500;
const ETHERNET_BYTES: usize = 14;
const UDP_HEADER_BYTES: usize = 8;
const MTU: usize = 1_500;

/// A scene whose user no rate holds back.
fn scene(family: Family, tokens: Tokens) -> Scene {
    Scene::with(family, tokens, |world| {
        (world.users[1].rate, world.users[1].burst) = (1_000_000_000, u32::MAX);
    })
}

#[rstest]
fn every_payload_that_fits_the_link_is_relayed_whole_and_one_byte_more_is_not(
    #[values(V4, V6)] family: Family,
    #[values(Plain, Protected)] tokens: Tokens,
) {
    let mut scene = scene(family, tokens);
    let headers = scene.downlink(b"").udp_offset() - ETHERNET_BYTES + UDP_HEADER_BYTES;
    let most = MTU - headers;
    let payload: Vec<u8> = (0..=most).map(|i| (i * 31) as u8).collect();
    for length in 1..=most {
        let sent = scene.uplink(length as u64, &payload[..length]);
        let relayed = scene.send(&sent).expect_relayed();
        scene.check_uplink(&sent, &payload[..length], &relayed);
        let answer = scene.downlink(&payload[..length]);
        let relayed = expect_downlink(scene.send(&answer));
        scene.check_downlink(&answer, &relayed);
    }
    let sent = scene.uplink(1 + most as u64, &payload);
    let _ = scene.send(&sent).expect_dropped(Reason::TooBig);
    let answer = scene.downlink(&payload);
    let _ = scene
        .send(&answer)
        .expect(Verdict::Drop, Direction::Downlink, Reason::TooBig);
}

/// What the lengths in the IP and UDP headers of a hostile frame say.
#[derive(Clone, Copy, Debug)]
enum Claim {
    Truth,
    Nothing,
    Everything,
}

impl Claim {
    fn word(self, truth: usize) -> [u8; 2] {
        let claimed = match self {
            Self::Truth => truth as u16,
            Self::Nothing => 0,
            Self::Everything => u16::MAX,
        };
        claimed.to_be_bytes()
    }
}

/// A frame of `length` bytes for the listener: as much of right headers as fits, then `filler`, with lengths as claimed.
fn hostile(scene: &Scene, length: usize, filler: u8, in_ip: Claim, in_udp: Claim) -> Vec<u8> {
    let shape = UdpFrame::new(scene.client, scene.listener, []);
    let udp = shape.udp_offset();
    let mut frame = shape.build();
    let ip_bytes = length.saturating_sub(ETHERNET_BYTES);
    let (at, truth) = match scene.family {
        V4 => (ETHERNET_BYTES + 2, ip_bytes),
        V6 => (ETHERNET_BYTES + 4, ip_bytes.saturating_sub(40)),
    };
    frame[at..at + 2].copy_from_slice(&in_ip.word(truth));
    frame[udp + 4..udp + 6].copy_from_slice(&in_udp.word(length.saturating_sub(udp)));
    frame.resize(length, filler);
    frame
}

#[rstest]
fn a_hostile_frame_of_any_length_is_dropped_or_left_alone(
    #[values(V4, V6)] family: Family,
    #[values(Claim::Truth, Claim::Nothing, Claim::Everything)] in_ip: Claim,
    #[values(Claim::Truth, Claim::Nothing, Claim::Everything)] in_udp: Claim,
) {
    let mut scene = scene(family, Plain);
    for length in ETHERNET_BYTES..=LONGEST_FRAME {
        // Zeros are the handle of an empty slot, ones a slot far out of range.
        let filler = if length % 2 == 0 { 0 } else { 0xff };
        let frame = hostile(&scene, length, filler, in_ip, in_udp);
        let observed = scene.send_at(START_NS, &frame).expect_no_state_change();
        assert!(
            observed.verdict != Verdict::Tx && observed.output == frame && observed.reason().is_some(),
            "a hostile frame of {length} bytes is sent, changed, or not counted once:\n{observed}"
        );
    }
}
