//! `replay`, `record`, `show` and `diff` as their users meet them: what they print, what they write, exit codes.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::Path,
    process::{Command, Output, Stdio},
};

use packet_lab::{
    backend::{kernel::missing_capabilities, veth},
    capture::{Capture, Packet, Writer},
    craft::{Checksum, Grant, UdpFrame},
    world::address,
};
use rstest::rstest;
use serde_json::Value;

use super::reading::fixture;

const NOBODY: u32 = 65_534;
/// The grant of docs/protocol.md, whose tokens are in the fixtures.
const GRANT: &str = r#"{"user": 42, "relay": "192.0.2.1:4500", "relay_id": 1, "slot": 7, "salt": 305419896,
 "key": "000102030405060708090a0b0c0d0e0f", "header_key": "f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff", "expires_at": null}"#;

/// A folder for what a test writes, and the binary run in it.
struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("grants.ndjson"), GRANT.replace('\n', "")).unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    /// Runs a command line; `@name` is a fixture.
    fn run(&self, line: &str) -> Output {
        let arguments = line.split_whitespace().map(|word| match word.strip_prefix('@') {
            Some(name) => fixture(name).into_os_string(),
            None => word.into(),
        });
        let mut command = Command::new(env!("CARGO_BIN_EXE_packet-lab"));
        command.args(arguments).current_dir(self.dir.path());
        command.output().expect("the binary was built with this test")
    }

    /// Runs a command line that must end with this code; its standard output.
    fn ends(&self, code: i32, line: &str) -> String {
        let output = self.run(line);
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(
            output.status.code(),
            Some(code),
            "{line}\nstdout:\n{out}\nstderr:\n{err}"
        );
        out
    }

    fn fails(&self, code: i32, line: &str, message: &str) {
        let output = self.run(line);
        let err = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{line}\n{err}");
        assert!(err.contains(message), "{line}: no `{message}` in\n{err}");
        assert!(!err.contains("panicked"), "{err}");
    }

    fn json(&self, line: &str) -> Value {
        serde_json::from_str(&self.ends(0, line)).unwrap()
    }

    fn comments(&self, name: &str) -> Vec<String> {
        packets(&self.path(name))
            .into_iter()
            .map(|packet| packet.comment.unwrap_or_default())
            .collect()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn packets(path: &Path) -> Vec<Packet> {
    Capture::open(path).unwrap().collect::<Result<_, _>>().unwrap()
}

/// Packets of a reason in what `replay --json` printed.
fn of_reason(report: &Value, reason: &str) -> u64 {
    let rows = report["rows"].as_array().expect("a list");
    rows.iter()
        .filter(|row| row["reason"] == reason)
        .map(|row| row["packets"].as_u64().unwrap())
        .sum()
}

fn skip(backend: &str) -> bool {
    let missing = match backend {
        "kernel" => missing_capabilities(),
        "veth" => veth::missing_capabilities(),
        _ => Vec::new(),
    };
    if !missing.is_empty() {
        // Past the capture of test output: a skip is to be seen.
        let _ = writeln!(
            io::stderr(),
            "skipped: the {backend} backend needs {}; run as root",
            missing.join(" and ")
        );
    }
    !missing.is_empty()
}

/// Every beginning of a file that is none of a capture's, by every command that takes one.
#[rstest]
#[case::no_file("nonexistent.pcap", "opening nonexistent.pcap: No such file or directory")]
#[case::a_directory("/", "/ is a directory; name a pcap or pcapng file")]
#[case::empty("/dev/null", "/dev/null is empty")]
#[case::text("@README.md", "it is text, beginning")]
#[case::compressed("@usec.pcap.zst", "zstd -d")]
#[case::another_format("@modified.pcap", "Kuznetzov")]
#[case::a_link_type("@wlan.pcap", "link type IEEE802_11")]
#[case::truncated("@truncated.pcapng", "is truncated: packet")]
fn bad_captures_end_with_2_and_a_message_that_says_why(#[case] file: &str, #[case] message: &str) {
    let bench = Bench::new();
    for command in [
        "replay FILE --listen 192.0.2.1:4500",
        "show FILE",
        "diff FILE @usec.pcap",
    ] {
        bench.fails(2, &command.replace("FILE", file), message);
    }
    if !file.contains("truncated") && !file.contains("wlan") {
        fs::create_dir(bench.path("scenarios")).unwrap();
        bench.fails(2, &format!("record {file} --name a/b --listen 192.0.2.1:4500"), message);
        assert!(
            fs::read_dir(bench.path("scenarios")).unwrap().next().is_none(),
            "something was left behind"
        );
    }
}

/// Where its beginning says nothing yet of the relay, what is wrong with the capture matters more than what it lacks.
#[rstest]
#[case::a_link_type("@wlan.pcap", "link type IEEE802_11")]
#[case::corrupt("corrupt.pcap", "claims 2147483647 bytes")]
fn a_capture_that_ends_before_a_packet_to_the_relay_is_told_by_how_it_ends(#[case] file: &str, #[case] message: &str) {
    let bench = Bench::new();
    let mut corrupt = fs::read(fixture("usec.pcap")).unwrap();
    corrupt[32..36].copy_from_slice(&0x7fff_ffff_u32.to_le_bytes());
    fs::write(bench.path("corrupt.pcap"), corrupt).unwrap();
    fs::create_dir(bench.path("scenarios")).unwrap();
    for command in [
        "replay FILE --resign",
        "record FILE --name a/b",
        "record FILE --name a/b --listen 192.0.2.1:4500",
    ] {
        bench.fails(2, &command.replace("FILE", file), message);
    }
    assert!(
        fs::read_dir(bench.path("scenarios")).unwrap().next().is_none(),
        "something was left behind"
    );
}

#[test]
fn a_recorded_scenario_says_that_its_capture_ended_early() {
    let bench = Bench::new();
    fs::create_dir(bench.path("scenarios")).unwrap();
    let output = bench.run("record @truncated.pcap --name a/b");
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("recorded up to there"));
    let readme = fs::read_to_string(bench.path("scenarios/a/b/README.md")).unwrap();
    assert!(readme.contains("ended early: "), "{readme}");
    assert!(readme.contains("is truncated: packet 4"), "{readme}");
}

#[test]
fn a_capture_that_may_not_be_read_ends_with_2() {
    let bench = Bench::new();
    fs::copy(fixture("usec.pcap"), bench.path("secret.pcap")).unwrap();
    fs::set_permissions(bench.path("secret.pcap"), fs::Permissions::from_mode(0o000)).unwrap();
    fs::set_permissions(bench.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_packet-lab"));
    command.arg("show").arg(bench.path("secret.pcap")).current_dir("/");
    if nix::unistd::geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    match command.output() {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            let _ = writeln!(io::stderr(), "skipped: an ordinary user cannot reach the binary");
        }
        output => {
            let output = output.expect("the binary was built with this test");
            assert_eq!(output.status.code(), Some(2));
            assert!(
                text(&output.stderr).contains("Permission denied"),
                "{}",
                text(&output.stderr)
            );
        }
    }
}

#[rstest]
#[case::two_speeds("replay @usec.pcap --pps 5 --topspeed", "cannot be used with")]
#[case::no_speed("replay @usec.pcap --pps 0", "write a number above 0")]
#[case::a_speed_that_is_none("replay @usec.pcap --mbps fast", "write a number above 0")]
#[case::never("replay @usec.pcap --loop 0", "0 is not in 1..")]
#[case::no_such_backend("replay @usec.pcap --backend moon", "there is no backend `moon`")]
#[case::half_a_mac("replay @usec.pcap --mac 02:00", "write 6 bytes in hex")]
#[case::a_listener_without_port("replay @usec.pcap --listen 192.0.2.1", "invalid value '192.0.2.1'")]
#[case::no_listener("replay @ipv4.pcap --config nonexistent.toml", "nonexistent.toml")]
#[case::standard_input("replay -", "standard input cannot be")]
#[case::no_grants("replay @usec.pcap --grants nonexistent", "reading nonexistent: No such file")]
#[case::grants_that_are_none("replay @usec.pcap --grants /etc/passwd", "/etc/passwd:1: this is no grant")]
#[case::an_output_in_no_folder(
    "replay @usec.pcap --write nowhere/out.pcapng",
    "writing nowhere/out.pcapng: No such file"
)]
#[case::no_such_packet("show @usec.pcap --packet 18", "has no packet 18")]
#[case::a_name_without_area("record @usec.pcap --name case", "`case` is no name of a scenario")]
#[case::a_name_that_leaves("record @usec.pcap --name ../case", "`../case` is no name of a scenario")]
#[case::no_scenarios("record @usec.pcap --name a/b", "there is no folder scenarios")]
#[case::no_such_reason("record @usec.pcap --name a/b --expect lost=1", "there is no reason `lost`")]
#[case::an_expectation_that_is_none("record @usec.pcap --name a/b --expect relayed", "write a reason and a number")]
#[case::one_file("diff @usec.pcap", "<B>")]
fn wrong_usage_ends_with_2_and_says_what_is_wrong(#[case] line: &str, #[case] message: &str) {
    Bench::new().fails(2, line, message);
}

#[test]
fn a_capture_is_not_overwritten_by_its_own_replay() {
    let bench = Bench::new();
    fs::copy(fixture("usec.pcap"), bench.path("in.pcap")).unwrap();
    let before = fs::read(bench.path("in.pcap")).unwrap();
    bench.fails(2, "replay in.pcap --write ./in.pcap", "is the capture itself");
    assert_eq!(fs::read(bench.path("in.pcap")).unwrap(), before);
}

/// The fixture's traffic with its grant: the example is relayed, the ping answered, and what is no token, a replay over
/// IPv6 and two fragments are treated as the protocol says.
#[rstest]
fn a_capture_is_replayed_with_its_grants(#[values("host", "oracle", "kernel", "veth")] backend: &str) {
    if skip(backend) {
        return;
    }
    let bench = Bench::new();
    let line = format!("replay @nsec.pcap --grants grants.ndjson --backend {backend} --write out.pcapng --json");
    let report = bench.json(&line);
    for (reason, packets) in [
        ("relayed", 1),
        ("ping", 1),
        ("truncated", 1),
        ("replayed", 1),
        ("fragment", 1),
        ("unrelated", 2),
    ] {
        assert_eq!(of_reason(&report, reason), packets, "{reason}: {report:#}");
    }
    assert_eq!(
        (&report["packets"], &report["from_relay"]),
        (&7.into(), &5.into()),
        "{report:#}"
    );
    let comments = bench.comments("out.pcapng");
    assert_eq!(comments[0], "TX uplink relayed");
    assert_eq!(comments[1], "TX uplink ping");
    assert_eq!(comments[2], "DROP uplink truncated");
    assert_eq!(comments.len(), 7);
}

#[rstest]
#[case::cooked("sll.pcap")]
#[case::cooked_2("sll2.pcap")]
#[case::raw_ip("raw.pcap")]
#[case::ethernet("usec.pcap")]
#[case::pcapng("dumpcap.pcapng")]
fn every_link_type_is_replayed_alike(#[case] file: &str) {
    let report = Bench::new().json(&format!("replay @{file} --resign --json"));
    for reason in ["relayed", "ping", "truncated", "replayed", "fragment"] {
        assert_eq!(of_reason(&report, reason), 1, "{reason}: {report:#}");
    }
    assert_eq!(report["resigned"]["repeated"], 1);
}

#[test]
fn without_keys_nothing_in_a_capture_is_authentic() {
    let report = Bench::new().json("replay @usec.pcap --json");
    assert_eq!(
        (of_reason(&report, "unknown_session"), of_reason(&report, "relayed")),
        (3, 0),
        "{report:#}"
    );
}

#[test]
fn what_the_snapshot_length_cut_is_counted_and_dropped_as_truncated() {
    let report = Bench::new().json("replay @cut.pcap --resign --json");
    assert_eq!(report["cut"].as_u64(), Some(6), "{report:#}");
    assert_eq!(of_reason(&report, "relayed"), 0, "{report:#}");
}

#[test]
fn a_truncated_capture_is_replayed_up_to_there_and_ends_with_2() {
    let bench = Bench::new();
    let output = bench.run("replay @truncated.pcap --resign --json");
    assert_eq!(output.status.code(), Some(2));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(of_reason(&report, "relayed"), 1, "{report:#}");
    assert!(
        report["ended_by"].as_str().unwrap().contains("is truncated: packet 4"),
        "{report:#}"
    );
    assert!(
        text(&output.stderr).contains("is truncated: packet 4"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn loops_and_limits_count_packets_to_the_backend() {
    let bench = Bench::new();
    let report = bench.json("replay @nsec.pcap --resign --loop 3 --json");
    assert_eq!(
        (of_reason(&report, "relayed"), &report["packets"]),
        (3, &21.into()),
        "{report:#}"
    );
    let report = bench.json("replay @nsec.pcap --grants grants.ndjson --loop 3 --json");
    assert_eq!(
        (of_reason(&report, "relayed"), of_reason(&report, "replayed")),
        (1, 7),
        "{report:#}"
    );
    let report = bench.json("replay @nsec.pcap --resign --loop 3 --limit 9 --json");
    assert_eq!(report["packets"], 9, "{report:#}");
}

/// 3,000 packets of one client, whose burst is 1,000 and rate 10,000 a second.
fn burst(path: &Path, gap_ns: u64) {
    let grant = Grant {
        slot: 1,
        salt: 2,
        key: [3; 16],
        header_key: None,
        relay_id: 4,
    };
    let mut writer = Writer::create(path).unwrap();
    for pn in 0..3_000 {
        let frame = UdpFrame::new(
            address("203.0.113.9:40000"),
            address("192.0.2.1:4500"),
            grant.seal(pn, b"x"),
        );
        writer
            .write(&Packet::new(1_700_000_000_000_000_000 + pn * gap_ns, frame.build()))
            .unwrap();
    }
    writer.finish().unwrap();
}

#[rstest]
#[case::the_captures_own_timing("", 3_000)]
#[case::at_its_rate("--pps 10000", 3_000)]
#[case::all_at_once("--topspeed", 1_000)]
// 3,000 frames of 67 bytes in 0.1 s: the burst, and 1,000 more.
#[case::by_megabits("--mbps 16.08", 2_000)]
fn the_speed_decides_how_many_are_over_the_rate(#[case] speed: &str, #[case] relayed: u64) {
    let bench = Bench::new();
    burst(&bench.path("burst.pcapng"), 1_000_000);
    let report = bench.json(&format!("replay burst.pcapng --resign --json {speed}"));
    let limited = of_reason(&report, "rate_limited");
    assert_eq!(of_reason(&report, "relayed") + limited, 3_000);
    assert!(of_reason(&report, "relayed").abs_diff(relayed) <= 1, "{report:#}");
}

#[test]
fn a_relays_own_configuration_says_where_it_listens_and_what_the_limits_are() {
    let bench = Bench::new();
    burst(&bench.path("burst.pcapng"), 1);
    let config = "interface = \"lo\"\nlisten = [\"192.0.2.1:4500\"]\n[limits]\nburst = 5\n";
    fs::write(bench.path("relay.toml"), config).unwrap();
    let report = bench.json("replay burst.pcapng --config relay.toml --resign --json");
    assert_eq!(of_reason(&report, "rate_limited"), 2_995, "{report:#}");
    fs::write(bench.path("relay.toml"), "listen = [\"192.0.2.1\"]\n").unwrap();
    bench.fails(2, "replay burst.pcapng --config relay.toml", "relay.toml:1:");
}

#[test]
fn a_million_packets_need_little_memory_and_progress_is_told() {
    let bench = Bench::new();
    let million = bench.path("million.pcapng");
    let mut packet = Packet::new(
        0,
        UdpFrame::new(address("203.0.113.9:40000"), address("192.0.2.1:4500"), [0; 124])
            .checksum(Checksum::None)
            .build(),
    );
    let mut writer = Writer::create(&million).unwrap();
    for number in 0..1_000_000_u64 {
        packet.at_ns = 1_700_000_000_000_000_000 + number * 200_000;
        packet.data[42..50].copy_from_slice(&number.to_be_bytes());
        writer.write(&packet).unwrap();
    }
    writer.finish().unwrap();
    // Less than the file has; the limit is on addresses, which are more than memory.
    let limit_kib = 160 << 10;
    assert!(fs::metadata(&million).unwrap().len() > limit_kib << 10);
    let line = format!(
        "ulimit -v {limit_kib}; exec {} replay {} --resign --json",
        env!("CARGO_BIN_EXE_packet-lab"),
        million.display()
    );
    let output = Command::new("sh").args(["-c", &line]).output().unwrap();
    let err = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{err}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(of_reason(&report, "relayed"), 1_000_000, "{report:#}");
    if report["elapsed_s"].as_f64().unwrap() > 10.0 {
        assert!(
            err.contains("replaying: ") && err.contains(" packets"),
            "no progress in\n{err}"
        );
    }
}

#[test]
fn a_packet_is_shown_with_layers_token_checksums_and_bytes() {
    let bench = Bench::new();
    let shown = bench.ends(0, "show @comments.pcapng --packet 1 --grants grants.ndjson");
    for part in [
        "packet 1  2026-",
        "# the example of the protocol",
        "ethernet 02:00:00:00:00:c1 > 02:00:00:00:00:01",
        "ipv4 203.0.113.9 > 192.0.2.1, ttl 64",
        "udp 40000 > 4500, length 37, checksum 0x2673 right",
        "token slot 7, salt 0x12345678, pn 1795408200000000, tag right, 5 bytes of payload",
        "0040: 6c19 6865 6c6c 6f                        l.hello",
    ] {
        assert!(shown.contains(part), "no `{part}` in\n{shown}");
    }
    assert!(!shown.contains('\x1b'), "colour without a terminal:\n{shown}");
}

#[test]
fn briefly_each_packet_is_a_line() {
    let shown = Bench::new().ends(0, "show --brief @usec.pcap");
    let lines: Vec<&str> = shown.lines().collect();
    assert_eq!(lines.len(), packets(&fixture("usec.pcap")).len());
    assert!(lines[0].contains("arp request, sender 203.0.113.9"), "{shown}");
    assert!(
        lines[2].contains("203.0.113.9:40000 > 192.0.2.1:4500 udp 29"),
        "{shown}"
    );
    assert!(shown.contains("icmp echo request 56"), "{shown}");
    assert!(shown.contains("udp 1480, fragment at 0, more follow"), "{shown}");
    assert!(shown.contains("icmp6 neighbour solicitation"), "{shown}");
}

#[test]
fn a_capture_may_come_by_a_pipe_and_the_reader_may_leave() {
    let bench = Bench::new();
    let binary = env!("CARGO_BIN_EXE_packet-lab");
    let capture = fixture("usec.pcap");
    let line = format!(
        "{binary} show --brief - < {} | head -n 1; echo ${{PIPESTATUS[0]}}",
        capture.display()
    );
    let output = Command::new("bash")
        .args(["-c", &line])
        .current_dir(bench.dir.path())
        .output()
        .unwrap();
    let shown = text(&output.stdout);
    assert!(
        shown.lines().count() == 2 && shown.ends_with("\n0\n"),
        "{shown}{}",
        text(&output.stderr)
    );
    // The reader is gone before there is anything to read.
    burst(&bench.path("burst.pcapng"), 1);
    let mut child = Command::new(binary)
        .arg("show")
        .arg(bench.path("burst.pcapng"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()));
}

#[test]
fn the_same_capture_does_not_differ_in_whatever_format() {
    let bench = Bench::new();
    assert_eq!(bench.ends(0, "diff @usec.pcap @usec.pcap"), "");
    assert_eq!(bench.ends(0, "diff @nsec.pcap @nsec.pcapng"), "");
    let differs = bench.ends(1, "diff @nsec.pcap @comments.pcapng");
    assert!(
        differs.contains("comment") && differs.contains("(none) -> the example of the protocol"),
        "{differs}"
    );
    assert!(differs.contains("\n2 changed, 0 only in "), "{differs}");
}

#[test]
fn what_differs_is_told_by_field_and_what_is_missing_by_packet() {
    let bench = Bench::new();
    let frame = |pn: u8, hop_limit: u8| {
        let frame = UdpFrame::new(address("203.0.113.9:40000"), address("192.0.2.1:4500"), vec![pn; 30]);
        Packet::new(u64::from(pn), frame.hop_limit(hop_limit).build())
    };
    let write = |name: &str, packets: &[Packet]| {
        let mut writer = Writer::create(bench.path(name)).unwrap();
        packets.iter().for_each(|packet| writer.write(packet).unwrap());
        writer.finish().unwrap();
    };
    let all: Vec<Packet> = (1..9).map(|pn| frame(pn, 64)).collect();
    write("a.pcapng", &all);
    let mut some = all.clone();
    some[4] = frame(5, 63);
    some.remove(1);
    write("b.pcapng", &some);
    let differs = bench.ends(1, "diff a.pcapng b.pcapng");
    for part in [
        "--- a.pcapng\n+++ b.pcapng\n",
        "- packet 2  203.0.113.9:40000 > 192.0.2.1:4500 udp 30\n",
        "@@ packet 5, 4 @@ 203.0.113.9:40000 > 192.0.2.1:4500 udp 30\n    ipv4 ttl                 64 -> 63\n",
        "1 changed, 1 only in a.pcapng, 0 only in b.pcapng, 6 the same\n",
    ] {
        assert!(differs.contains(part), "no `{part}` in\n{differs}");
    }
    assert_eq!(
        differs.lines().filter(|line| line.starts_with("    ")).count(),
        2,
        "{differs}"
    );
    let brief = bench.ends(1, "diff --brief a.pcapng b.pcapng");
    assert_eq!(brief.lines().count(), 1, "{brief}");
}

#[test]
fn texts_are_compared_by_line() {
    let bench = Bench::new();
    fs::write(bench.path("a.txt"), "one\ntwo\nthree\n").unwrap();
    fs::write(bench.path("b.txt"), "one\nTWO\nthree\n").unwrap();
    assert_eq!(bench.ends(0, "diff a.txt a.txt"), "");
    let differs = bench.ends(1, "diff a.txt b.txt");
    assert!(differs.contains("-two\n+TWO\n"), "{differs}");
    bench.fails(
        2,
        "diff a.txt @usec.pcap",
        "a.txt is not a pcap or pcapng capture: it is text",
    );
}

#[test]
fn the_backends_outputs_are_the_same_by_diff() {
    let bench = Bench::new();
    bench.ends(0, "replay @usec.pcap --resign --backend host --write host.pcapng");
    bench.ends(0, "replay @usec.pcap --resign --backend oracle --write oracle.pcapng");
    assert_eq!(bench.ends(0, "diff host.pcapng oracle.pcapng --times"), "");
}

#[test]
fn a_capture_becomes_a_scenario_with_what_concerns_the_relay_and_its_provenance() {
    let bench = Bench::new();
    fs::create_dir(bench.path("scenarios")).unwrap();
    let said = bench.ends(
        0,
        "record @usec.pcap --name incidents/first --expect relayed=1,ping=1 --to 198.51.100.53:53",
    );
    assert!(said.contains("scenarios/incidents/first: 6 of 17 packets"), "{said}");
    let toml = fs::read_to_string(bench.path("scenarios/incidents/first/scenario.toml")).unwrap();
    for part in [
        "listen = [\"192.0.2.1:4500\", \"[2001:db8::1]:4500\"]",
        "to = \"198.51.100.53:53\"",
        "replay = { pcap = \"capture.pcapng\", resign = true }",
        "expect = { reasons = { ping = 1, relayed = 1 } }",
    ] {
        assert!(toml.contains(part), "no `{part}` in\n{toml}");
    }
    let readme = fs::read_to_string(bench.path("scenarios/incidents/first/README.md")).unwrap();
    assert!(
        readme.contains("TODO: which host and interface") && readme.contains("SHA-256"),
        "{readme}"
    );
    let kept = packets(&bench.path("scenarios/incidents/first/capture.pcapng"));
    let whole = packets(&fixture("usec.pcap"));
    assert!(kept.iter().all(|packet| whole.contains(packet)));
    assert_eq!(kept.len(), 6);
    bench.fails(2, "record @usec.pcap --name incidents/first", "is there already");
}

#[test]
fn a_recording_with_grants_has_none_of_their_keys_and_the_packet_numbers_of_the_capture() {
    let bench = Bench::new();
    fs::create_dir(bench.path("scenarios")).unwrap();
    bench.ends(0, "record @usec.pcap --name incidents/sealed --grants grants.ndjson");
    let toml = fs::read_to_string(bench.path("scenarios/incidents/sealed/scenario.toml")).unwrap();
    assert!(!toml.contains("000102030405") && !toml.contains("305419896"), "{toml}");
    assert!(toml.contains("replay = { pcap = \"capture.pcapng\" }"), "{toml}");
    let kept = packets(&bench.path("scenarios/incidents/sealed/capture.pcapng"));
    let number = |name: &str| {
        toml.lines()
            .find_map(|line| line.strip_prefix(&format!("{name} = ")))
            .unwrap()
            .to_owned()
    };
    let grant = Grant {
        slot: number("slot").parse().unwrap(),
        salt: number("salt").parse().unwrap(),
        key: hex::decode(number("key").trim_matches('"'))
            .unwrap()
            .try_into()
            .unwrap(),
        header_key: Some(std::array::from_fn(|i| 0xf0 + i as u8)),
        relay_id: 1,
    };
    let view = packet_lab::inspect::UdpFrameView::read(&kept[0].data).unwrap();
    assert_eq!(grant.open(&view.payload), Some(0x0006_60ea_0bfc_e200));
    assert!(view.has_right_checksums());
}

#[test]
fn the_labs_own_comments_become_the_expectation() {
    let bench = Bench::new();
    fs::create_dir(bench.path("scenarios")).unwrap();
    bench.ends(0, "replay @usec.pcap --resign --write-inputs inputs.pcapng");
    bench.ends(0, "record inputs.pcapng --name incidents/commented");
    let toml = fs::read_to_string(bench.path("scenarios/incidents/commented/scenario.toml")).unwrap();
    let expected = "reasons = { fragment = 1, ping = 1, relayed = 1, replayed = 1, truncated = 1, unrelated = 1 }";
    assert!(toml.contains(expected), "{toml}");
}

#[test]
fn a_capture_without_anything_for_the_relay_leaves_nothing_behind() {
    let bench = Bench::new();
    fs::create_dir(bench.path("scenarios")).unwrap();
    bench.fails(
        2,
        "record @usec.pcap --name a/b --listen 198.51.100.99:4500",
        "is UDP to the relay",
    );
    assert!(
        fs::read_dir(bench.path("scenarios")).unwrap().next().is_none(),
        "something was left behind"
    );
}

#[test]
fn a_capture_that_somebody_sent_is_a_failing_scenario_within_two_commands() {
    let bench = Bench::new();
    fs::create_dir(bench.path("scenarios")).unwrap();
    let expect = "relayed=1,ping=1,truncated=1,replayed=1,fragment=1,unrelated=1";
    bench.ends(
        0,
        &format!("record @usec.pcap --name incidents/first --expect {expect}"),
    );
    let run = "run scenarios/incidents/first --backend host --backend oracle";
    let failed = bench.ends(1, run);
    assert!(failed.contains("no snapshot yet"), "{failed}");

    bench.ends(0, &format!("{run} --update"));
    bench.ends(0, run);
    let shown = bench.ends(0, "show scenarios/incidents/first");
    for part in [
        "user 1 for 198.51.100.7:5000",
        "replay of capture.pcapng",
        "1 relayed",
        "packet 0: TX uplink relayed",
    ] {
        assert!(shown.contains(part), "no `{part}` in\n{shown}");
    }

    bench.ends(0, "record @usec.pcap --name incidents/second --expect relayed=2");
    let failed = bench.ends(1, "run scenarios/incidents/second --backend host --update");
    assert!(failed.contains("reasons.relayed"), "{failed}");
}

#[test]
fn a_scenarios_world_is_replayed_in_with_its_own_keys() {
    let bench = Bench::new();
    fs::create_dir(bench.path("scenarios")).unwrap();
    bench.ends(0, "record @usec.pcap --name incidents/sealed --grants grants.ndjson");
    let folder = bench.path("scenarios/incidents/sealed");
    let line = format!(
        "replay {}/capture.pcapng --scenario {} --json",
        folder.display(),
        folder.display()
    );
    let report = bench.json(&line);
    assert_eq!(
        (of_reason(&report, "relayed"), of_reason(&report, "ping")),
        (1, 1),
        "{report:#}"
    );
    bench.fails(2, "replay @usec.pcap --scenario nowhere", "nowhere");
    bench.fails(
        2,
        "replay @usec.pcap --scenario nowhere --grants grants.ndjson",
        "cannot be used with",
    );
}

/// The captures of real programs show both sides of the relay; their grants are in their scenarios.
#[test]
fn what_is_sent_is_checked_against_what_the_captures_relay_sent() {
    let bench = Bench::new();
    let scenario = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scenarios/captures/dns");
    let scenario = scenario.display();
    let check = format!("replay {scenario}/dns.pcapng --scenario {scenario} --check-outputs");
    let output = bench.run(&check);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(
        text(&output.stderr).contains("14 packets were sent as the capture has them"),
        "{}",
        text(&output.stderr)
    );

    // One of the relay's packets is another.
    let mut all = packets(Path::new(&format!("{scenario}/dns.pcapng")));
    let sent = all
        .iter()
        .position(|packet| packet.data[6..12] == [0x02, 0, 0, 0, 0, 0x01])
        .unwrap();
    *all[sent].data.last_mut().unwrap() ^= 1;
    let mut writer = Writer::create(bench.path("changed.pcapng")).unwrap();
    all.iter().for_each(|packet| writer.write(packet).unwrap());
    writer.finish().unwrap();
    let check = format!("replay changed.pcapng --scenario {scenario} --check-outputs");
    bench.fails(1, &check, "the relay sent, as the capture has it");
    bench.fails(
        1,
        "replay @usec.pcap --grants grants.ndjson --check-outputs",
        "the capture",
    );
}
