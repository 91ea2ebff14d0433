//! One user's packets on several CPUs at once.

use std::{
    collections::HashMap,
    sync::Barrier,
    thread::{self, available_parallelism},
};

use aya::programs::Xdp;
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use packet_lab::Verdict;
use packet_lab::{
    Backend as _,
    backend::{Counters, Traffic, counter, kernel::run_once},
    craft::{Grant, UdpFrame},
    world::Limit,
};
use relay_ebpf::verdict::{Direction, Reason};
use rstest::rstest;

use crate::scene::{
    Family::V4,
    SLOT, START_NS,
    Tokens::{Plain, Protected},
    client, kernel, listener, world,
};

/// Packets that the CPUs send before they wait for each other: less than a replay window, so that none falls behind.
const STRIDE: u64 = 64;

fn pin_to(cpu: usize) {
    let mut cpus = CpuSet::new();
    cpus.set(cpu).expect("a CPU number is small");
    sched_setaffinity(Pid::from_raw(0), &cpus).expect("a thread may run on a CPU that there is");
}

fn cpus() -> Vec<usize> {
    let allowed = nix::sched::sched_getaffinity(Pid::from_raw(0)).expect("own affinity");
    let cpus: Vec<usize> = (0..CpuSet::count())
        .filter(|&cpu| allowed.is_set(cpu) == Ok(true))
        .collect();
    cpus.into_iter().take(4).collect()
}

/// Sends the same packet numbers from every CPU at once; how often each was sent on.
fn storm(program: &Xdp, grant: Grant, packets: u64) -> (HashMap<u64, u32>, u64) {
    let cpus = cpus();
    let barrier = Barrier::new(cpus.len());
    let accepted = thread::scope(|scope| {
        let barrier = &barrier;
        let threads: Vec<_> = cpus
            .iter()
            .map(|&cpu| scope.spawn(move || one_cpu(program, grant, packets, cpu, barrier)))
            .collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap())
            .collect::<Vec<u64>>()
    });
    let mut times = HashMap::new();
    for pn in accepted {
        *times.entry(pn).or_insert(0) += 1;
    }
    (times, cpus.len() as u64)
}

fn one_cpu(program: &Xdp, grant: Grant, packets: u64, cpu: usize, barrier: &Barrier) -> Vec<u64> {
    pin_to(cpu);
    let from = client(V4, cpu as u8 + 1, 40_000);
    let mut accepted = Vec::new();
    for first in (1..=packets).step_by(STRIDE as usize) {
        let last = (first + STRIDE).min(packets + 1);
        let frames: Vec<_> = (first..last)
            .map(|pn| {
                (
                    pn,
                    UdpFrame::new(from, listener(V4), grant.seal(pn, b"payload")).build(),
                )
            })
            .collect();
        barrier.wait();
        for (pn, frame) in frames {
            match run_once(program, &frame).unwrap().verdict {
                Verdict::Tx => accepted.push(pn),
                Verdict::Drop => {}
                other => panic!("packet {pn}: {other}"),
            }
        }
    }
    accepted
}

fn counted(reason: Reason, packets: u64, frame_bytes: u64) -> ((u8, Reason), Traffic) {
    let traffic = Traffic {
        packets,
        bytes: packets * frame_bytes,
    };
    (counter(Direction::Uplink, reason), traffic)
}

const FRAME_BYTES: u64 = 14 + 20 + 8 + 24 + 7;

#[rstest]
fn a_packet_number_that_comes_on_all_cpus_at_once_is_accepted_once(
    #[values(Plain, Protected)] tokens: crate::scene::Tokens,
) {
    let mut world = world(V4, tokens);
    (world.users[1].rate, world.users[1].burst) = (1_000_000_000, u32::MAX);
    let Some(mut kernel) = kernel(&world) else {
        return;
    };
    kernel.set_clock(START_NS);
    let packets = 20_000;
    let (times, cpus) = storm(kernel.loaded().program().unwrap(), world.grant(SLOT).unwrap(), packets);
    assert_eq!(
        cpus > 1,
        available_parallelism().unwrap().get() > 1,
        "one CPU is no crowd"
    );
    let wrong: Vec<_> = (1..=packets)
        .filter(|pn| times.get(pn) != Some(&1))
        .map(|pn| (pn, times.get(&pn)))
        .collect();
    assert!(
        wrong.is_empty(),
        "of {packets} packet numbers, each sent by {cpus} CPUs, not once: {wrong:?}"
    );

    let expected: Counters = [
        counted(Reason::Relayed, packets, FRAME_BYTES),
        counted(Reason::Replayed, packets * (cpus - 1), FRAME_BYTES),
    ]
    .into();
    let state = kernel.user(SLOT);
    assert_eq!(kernel.counters().unwrap(), expected);
    assert_eq!((state.newest, state.accepted), (packets, vec![packets - 511..=packets]));
    assert_eq!((state.uplink.packets, state.uplink.bytes), (packets, packets * 7));
    assert_eq!(
        state.tat_ns,
        START_NS + packets,
        "each accepted packet spends one interval of the budget, once"
    );
    let client = state.client.expect("the client is known");
    assert!(
        client.address.port() == 40_000 && client.listener == listener(V4),
        "half of a client: {client}"
    );
}

#[test]
fn a_burst_that_comes_on_all_cpus_at_once_is_let_through_exactly() {
    let world = world(V4, Plain);
    let Some(mut kernel) = kernel(&world) else {
        return;
    };
    kernel.set_clock(START_NS);
    let packets = 5_000;
    let (times, cpus) = storm(kernel.loaded().program().unwrap(), world.grant(SLOT).unwrap(), packets);
    assert!(
        times.values().all(|&count| count == 1),
        "a packet number was sent on twice"
    );
    assert_eq!(
        times.len(),
        world.users[1].burst as usize,
        "sent on at one moment, by {cpus} CPUs"
    );
    let state = kernel.user(SLOT);
    assert_eq!(state.tat_ns, START_NS + 1_000 * 100_000);
}

#[test]
fn the_burst_of_a_destination_is_let_through_exactly_on_all_cpus_at_once() {
    let mut world = world(V4, Plain);
    let limit = Limit {
        rate: 10_000,
        burst: 700,
    };
    world.destination_limit = Some(limit);
    let Some(mut kernel) = kernel(&world) else {
        return;
    };
    kernel.set_clock(START_NS);
    let packets = 5_000;
    let (times, cpus) = storm(kernel.loaded().program().unwrap(), world.grant(SLOT).unwrap(), packets);
    assert_eq!(
        times.len(),
        limit.burst as usize,
        "sent on at one moment, by {cpus} CPUs"
    );
    let refused = kernel.counter(Direction::Uplink, Reason::DestinationLimited).unwrap();
    assert_eq!(refused.packets, u64::from(world.users[1].burst - limit.burst));
    assert_eq!(kernel.destination_tat(world.users[1].to), START_NS + 700 * 100_000);
}
