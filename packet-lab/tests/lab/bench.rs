//! The bench measures the paths that its rows are named for; it fails by itself where a counter says otherwise.

use std::{
    env,
    fmt::Write as _,
    io::{self, Write as _},
    path::Path,
};

use lumenlink_relay::datapath::program::OBJECT;
use nix::sys::utsname::uname;
use packet_lab::bench::{Options, Report, run, size};
use relay_ebpf::verdict::Reason;
use rstest::rstest;

use crate::scene::has_capabilities;

#[rstest]
fn every_path_is_the_one_that_its_row_is_named_for(#[values(false, true)] ipv6: bool) {
    if !has_capabilities() {
        return;
    }
    let options = Options {
        users: 1_000,
        payload_bytes: 64,
        ipv6,
        header_protection: true,
        packets: 2_048,
        rounds: 1,
    };
    let mut steps = Vec::new();
    let report = run(options, &mut |done, all| steps.push((done, all))).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(steps.last(), Some(&(10, 10)));
    let rejections = [
        Reason::Unrelated,
        Reason::UnknownSession,
        Reason::BadToken,
        Reason::Expired,
        Reason::Replayed,
        Reason::RateLimited,
    ];
    let relayed = [
        "floor",
        "relayed_hot",
        "relayed_uplink",
        "downlink_hot",
        "relayed_downlink",
    ];
    let expected: Vec<&str> = relayed.into_iter().chain(rejections.map(Reason::name)).collect();
    let paths: Vec<&str> = report.rows.iter().map(|row| row.path.as_str()).collect();
    assert_eq!(paths, expected);
    for row in &report.rows {
        assert!(row.ns.is_finite() && row.ratio.is_finite(), "{row:?}");
    }
    assert!(report.size.verified_instructions > 0 && report.size.jited_bytes > 0);
    assert!(
        report.size.map_bytes > 256 * u64::from(options.users),
        "maps of {} bytes have no room for {} users",
        report.size.map_bytes,
        options.users
    );
}

/// Everything that the figures of a program's size depend on besides its source: the kernel that verifies it and makes
/// machine code of it, the machine, and the compiler that made it.
fn built_and_run_by() -> String {
    let name = uname().expect("a kernel has a name");
    let release = name.release().to_string_lossy().into_owned();
    let series: Vec<&str> = release.split('.').take(2).collect();
    format!("linux-{}.{}.rustc-{}", series.join("."), env::consts::ARCH, compiler())
}

/// The commit of the compiler that made the relay's program, from the paths in the program's debug information.
fn compiler() -> String {
    const PATH: &[u8] = b"/rustc/";
    let found = OBJECT.windows(PATH.len()).position(|window| window == PATH);
    let commit = found.map(|at| &OBJECT[at + PATH.len()..][..8]);
    commit.map_or("unknown".to_owned(), |commit| {
        String::from_utf8_lossy(commit).into_owned()
    })
}

/// What does not vary is compared exactly, with values for this kernel, machine and compiler. Where there are none yet,
/// `INSTA_UPDATE=always cargo test -p packet-lab --test lab does_not_vary` accepts what it finds: a file more to commit.
#[test]
fn what_does_not_vary_is_what_it_was() {
    if !has_capabilities() {
        return;
    }
    let of = |users, ipv6| {
        let options = Options {
            users,
            payload_bytes: 64,
            ipv6,
            header_protection: true,
            packets: 1,
            rounds: 1,
        };
        size(options).unwrap_or_else(|error| panic!("{error}"))
    };
    let mut text = String::new();
    for (family, ipv6) in [("IPv4", false), ("IPv6", true)] {
        let (few, many) = (of(1_000, ipv6), of(100_000, ipv6));
        // Maps that have an element for each CPU take more where there are more CPUs; the same with few users, though.
        let users = many.map_bytes - few.map_bytes;
        let (verified, machine) = (many.verified_instructions, many.jited_bytes);
        let _ = writeln!(
            text,
            "{family}: {verified} instructions verified, {machine} bytes of machine code"
        );
        let _ = writeln!(text, "{family}: {users} bytes of maps for 99,000 users more");
    }
    let name = format!("size.{}", built_and_run_by());
    let file = format!("tests/lab/snapshots/{name}.snap");
    let is_known = Path::new(env!("CARGO_MANIFEST_DIR")).join(&file).exists();
    let accepts = env::var("INSTA_UPDATE").is_ok_and(|how| how == "always");
    if !is_known && !accepts {
        let _ = writeln!(
            io::stderr(),
            "skipped: no values to compare with for this kernel, machine and compiler; found\n{text}to accept them, \
             run this test with INSTA_UPDATE=always and commit packet-lab/{file}"
        );
        return;
    }
    insta::with_settings!({ prepend_module_to_snapshot => false, omit_expression => true }, {
        insta::assert_snapshot!(name, text);
    });
}

/// Times that a packet may take, as multiples of the floor's, with 1,000 users: twice what they are (the numbers behind;
/// medians of eight rounds on a machine with two CPUs, under loads of 2 to 6), since machines differ. A path that does
/// its work twice, or another's, is beyond them.
const MOST: [(&str, f64); 10] = [
    ("relayed_hot", 8.0),      // 2.8 to 4.2
    ("relayed_uplink", 11.0),  // 4.9 to 5.4
    ("downlink_hot", 4.0),     // 1.7 to 1.9
    ("relayed_downlink", 6.5), // 2.6 to 3.1
    ("unrelated", 2.5),        // 1.2
    ("unknown_session", 5.5),  // 2.3 to 2.7
    ("bad_token", 7.5),        // 3.5 to 3.8
    ("expired", 7.5),          // 3.7 to 3.9
    ("replayed", 10.0),        // 3.5 to 5.1
    ("rate_limited", 8.5),     // 3.9 to 4.2
];

/// The paths that take more than they may.
fn too_slow(report: &Report) -> Vec<String> {
    let most = |path: &str| MOST.iter().find(|(known, _)| *known == path).map(|(_, most)| *most);
    let rows = report.rows.iter().filter(|row| row.path != "floor");
    let slow = rows.filter(|row| row.ratio > most(&row.path).expect("every path has a bound"));
    slow.map(|row| row.path.clone()).collect()
}

/// Rounds are interleaved and each ratio is of one round, so that what slows the machine slows both sides; what slows it
/// for a moment only is gone when it is measured again.
#[test]
fn no_path_takes_more_than_its_multiple_of_the_floor() {
    if !has_capabilities() {
        return;
    }
    let measure = || {
        let options = Options {
            users: 1_000,
            payload_bytes: 64,
            ipv6: false,
            header_protection: true,
            packets: 8_192,
            rounds: 8,
        };
        run(options, &mut |_, _| {}).unwrap_or_else(|error| panic!("{error}"))
    };
    let first = too_slow(&measure());
    if first.is_empty() {
        return;
    }
    let again = measure();
    let still: Vec<String> = too_slow(&again)
        .into_iter()
        .filter(|path| first.contains(path))
        .collect();
    assert!(still.is_empty(), "too slow, twice: {}\n{again:#?}", still.join(", "));
}

#[test]
fn a_path_beyond_its_multiple_is_too_slow() {
    if !has_capabilities() {
        return;
    }
    let options = Options {
        users: 100,
        payload_bytes: 64,
        ipv6: false,
        header_protection: true,
        packets: 512,
        rounds: 1,
    };
    let mut report = run(options, &mut |_, _| {}).unwrap_or_else(|error| panic!("{error}"));
    for row in &mut report.rows {
        row.ratio = 1.0;
    }
    assert!(too_slow(&report).is_empty());
    report.rows[2].ratio = 11.1;
    assert_eq!(too_slow(&report), ["relayed_uplink"]);
}

#[test]
fn every_timed_packet_is_in_the_latency_histogram() {
    if !has_capabilities() {
        return;
    }
    let options = Options {
        users: 100,
        payload_bytes: 64,
        ipv6: false,
        header_protection: true,
        packets: 1_024,
        rounds: 1,
    };
    let report = run(options, &mut |_, _| {}).unwrap_or_else(|error| panic!("{error}"));
    let latency = report.latency.expect("single packets are timed");
    assert_eq!(latency.buckets.iter().sum::<u64>(), 1_024);
    assert_eq!(latency.path, "relayed_uplink");
    assert!(latency.mean_ns > 1.0, "{latency:?}");
}
