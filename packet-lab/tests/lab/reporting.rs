//! What the program tells the control process besides counters: sampled drops and the latency histogram.

use packet_lab::Verdict;
use packet_lab::{Backend as _, craft::UdpFrame};
use relay_ebpf::{
    layout::{DropEvent, EVENT_BYTES},
    verdict::{Direction, Reason},
};

use crate::scene::{Family::V4, SLOT, START_NS, Tokens::Plain, client, kernel, listener, world};

#[test]
fn one_drop_in_so_many_of_each_reason_becomes_an_event_with_the_start_of_the_packet() {
    let mut world = world(V4, Plain);
    world.event_sample = 4;
    let Some(mut kernel) = kernel(&world) else {
        return;
    };
    let mut events = kernel.loaded().maps.take_events().expect("nobody took the ring before");
    let short = UdpFrame::new(client(V4, 9, 1), listener(V4), *b"short").build();
    let forged = UdpFrame::new(client(V4, 9, 1), listener(V4), [0xff; 500]).build();
    for nth in 0..8 {
        assert_eq!(kernel.process(START_NS + nth, &short).unwrap().verdict, Verdict::Drop);
    }
    assert_eq!(kernel.process(START_NS + 99, &forged).unwrap().verdict, Verdict::Drop);

    let mut seen = Vec::new();
    while let Some(item) = events.next() {
        seen.push(event(&item));
    }
    let truncated = Reason::Truncated as u8;
    let expected = [
        (START_NS, truncated, &short),
        (START_NS + 4, truncated, &short),
        (START_NS + 99, Reason::UnknownSession as u8, &forged),
    ];
    assert_eq!(seen.len(), expected.len(), "{seen:?}");
    for (event, (now_ns, reason, frame)) in seen.iter().zip(expected) {
        let captured = frame.len().min(EVENT_BYTES);
        assert_eq!(
            (event.now_ns, event.reason, event.direction),
            (now_ns, reason, Direction::Uplink as u8)
        );
        assert_eq!(
            (event.length as usize, usize::from(event.captured)),
            (frame.len(), captured)
        );
        assert_eq!(event.bytes[..captured], frame[..captured]);
        assert!(
            event.bytes[captured..].iter().all(|&byte| byte == 0),
            "old bytes of the ring show"
        );
    }
}

/// An event from its bytes.
fn event(bytes: &[u8]) -> DropEvent {
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    let second = word(8);
    DropEvent {
        now_ns: word(0),
        reason: second as u8,
        direction: (second >> 8) as u8,
        captured: (second >> 16) as u16,
        length: (second >> 32) as u32,
        bytes: bytes[16..16 + EVENT_BYTES].try_into().unwrap(),
    }
}

#[test]
fn a_relay_that_samples_nothing_makes_no_events() {
    let world = world(V4, Plain);
    let Some(mut kernel) = kernel(&world) else {
        return;
    };
    let mut events = kernel.loaded().maps.take_events().expect("nobody took the ring before");
    let short = UdpFrame::new(client(V4, 9, 1), listener(V4), *b"short").build();
    assert_eq!(kernel.process(START_NS, &short).unwrap().verdict, Verdict::Drop);
    assert!(events.next().is_none());
    let latency = kernel.maps().latency().unwrap();
    assert_eq!((latency.packets, latency.sum_ns), (0, 0));
}

#[test]
fn one_packet_in_so_many_is_timed() {
    let mut world = world(V4, Plain);
    world.latency_sample = 8;
    let Some(mut kernel) = kernel(&world) else {
        return;
    };
    let grant = world.grant(SLOT).unwrap();
    // The histogram is per CPU, and so is which packet is sampled.
    let packets = 800;
    for pn in 1..=packets {
        let frame = UdpFrame::new(client(V4, 9, 1), listener(V4), grant.seal(pn, b"payload")).build();
        assert_eq!(kernel.process(START_NS, &frame).unwrap().verdict, Verdict::Tx);
    }
    let latency = kernel.maps().latency().unwrap();
    let samples: u64 = latency.buckets.iter().sum();
    let cpus = std::thread::available_parallelism().unwrap().get() as u64;
    assert_eq!(latency.packets, packets);
    assert!(
        samples <= packets / 8 && samples + cpus > packets / 8,
        "{samples} samples of {packets} packets"
    );
    assert!(latency.sum_ns >= samples, "a packet takes time");
    assert!(latency.buckets[0] == 0, "no packet takes less than a nanosecond");
}
