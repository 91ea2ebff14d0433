//! The bench of relays on links, in small: what it measures is what it says. Its times are for `ci/bench`.

use std::sync::atomic::AtomicBool;

use packet_lab::{
    report,
    throughput::{Report, Way},
};
use veth_tests::{
    namespace::can_run,
    throughput::{Options, run},
};

fn options(systems: &[&str]) -> Options {
    Options {
        systems: systems.iter().map(|&name| name.to_owned()).collect(),
        payload_bytes: vec![64, 1_400],
        packets: 500,
        rounds: 2,
        cpu: 0,
        overload_cpu: None,
        realtime: false,
    }
}

fn rows(report: &Report) -> Vec<(&str, Way, usize)> {
    report
        .rows
        .iter()
        .map(|row| (row.system.as_str(), row.way, row.payload_bytes))
        .collect()
}

#[test]
fn the_bench_relays_every_packet_through_the_relay_and_the_reference_and_both_counted_it() {
    if !can_run("the bench of relays") {
        return;
    }
    let mut steps = Vec::new();
    let report = run(
        &options(&["bare_nat", "relay_native"]),
        &AtomicBool::new(false),
        &mut |step| {
            steps.push(step.to_owned());
        },
    );
    let report = report.unwrap_or_else(|error| panic!("{error:#}"));
    let expected: Vec<_> = [64, 1_400]
        .into_iter()
        .flat_map(|bytes| {
            ["bare_nat", "relay_native"]
                .into_iter()
                .flat_map(move |system| [Way::Uplink, Way::Downlink].map(|way| (system, way, bytes)))
        })
        .collect();
    assert_eq!(rows(&report), expected);
    for row in &report.rows {
        assert!(
            row.ns.is_finite() && row.relay.is_some() && row.bare_nat.is_some(),
            "{row:?}"
        );
    }
    assert_eq!(report.bars.len(), 4, "a bar for each size and way: {:?}", report.bars);
    let (text, plot) = (report.text(), report::throughput(&report));
    for shown in ["bare XDP NAT", "LumenLink relay, downlink", "1400 bytes of payload"] {
        assert!(text.contains(shown) && plot.contains(shown), "{shown}: {text}\n{plot}");
    }
    assert!(
        steps.iter().any(|step| step == "64 bytes of payload, round 2 of 2"),
        "{steps:?}"
    );
}

#[test]
fn the_bench_relays_every_packet_through_sockets_of_the_userspace_mode_and_they_were_counted() {
    if !can_run("the bench of relays") {
        return;
    }
    let report = run(&options(&["relay_userspace"]), &AtomicBool::new(false), &mut |_| {});
    let report = report.unwrap_or_else(|error| panic!("{error:#}"));
    let expected = [64, 1_400].map(|bytes| ("relay_userspace", Way::Uplink, bytes));
    assert_eq!(rows(&report), expected);
    let text = report.text();
    assert!(text.contains("the relay, userspace mode"), "{text}");
}

#[test]
fn a_bench_that_is_interrupted_ends_with_an_error() {
    if !can_run("the bench of relays") {
        return;
    }
    let ended = run(&options(&["bare_nat"]), &AtomicBool::new(true), &mut |_| {});
    assert_eq!(ended.expect_err("it was to stop").to_string(), "interrupted");
}

#[test]
fn a_bench_in_overload_says_what_was_sent_and_what_arrived() {
    if !can_run("the bench of relays") {
        return;
    }
    let two = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)).expect("this process has CPUs");
    if !(two.is_set(0).unwrap_or(false) && two.is_set(1).unwrap_or(false)) {
        eprintln!("skipped: overload takes two CPUs");
        return;
    }
    let mut options = options(&["bare_nat"]);
    options.payload_bytes = vec![64];
    options.overload_cpu = Some(1);
    let report = run(&options, &AtomicBool::new(false), &mut |_| {}).unwrap_or_else(|error| panic!("{error:#}"));
    let [row] = &report.overload[..] else {
        panic!("{report:?}")
    };
    assert_eq!((row.system.as_str(), row.payload_bytes), ("bare_nat", 64));
    assert!(
        row.sent_per_second > 0.0 && row.delivered_per_second <= row.sent_per_second,
        "{row:?}"
    );
    assert!(report.text().contains("two cores"), "{}", report.text());
    options.overload_cpu = Some(options.cpu);
    let error = run(&options, &AtomicBool::new(false), &mut |_| {}).expect_err("one CPU cannot be two");
    assert!(
        error.to_string().contains("CPU 0 cannot both send and relay"),
        "{error}"
    );
}

/// A packet that the reference does not relay is a loss that the bench does not overlook.
#[test]
fn a_bench_in_which_packets_are_lost_fails_and_says_how_many_arrived() {
    if !can_run("the bench of relays") {
        return;
    }
    let mut lossy = options(&["nftables"]);
    // More than the link takes: the rest is dropped at the entrance.
    lossy.payload_bytes = vec![1_473];
    let error = run(&lossy, &AtomicBool::new(false), &mut |_| {}).expect_err("nothing that large arrives");
    let text = format!("{error:#}");
    assert!(text.contains("of 2 packets 0 arrived"), "{text}");
}
