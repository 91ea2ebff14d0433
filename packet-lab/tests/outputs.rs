//! `outputs = "capture"`: what comes out of a replay is what the relay sent when the capture was taken.

use std::{fs, path::Path, process::Command};

use packet_lab::scenario::{BackendKind, Options, Outcome, Scenario, run};

/// The outcome of the scenario of the captured DNS queries, with one thing in it changed.
fn outcome(from: &str, to: &str) -> Outcome {
    let original = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scenarios/captures/dns");
    let folder = tempfile::tempdir().unwrap();
    fs::copy(original.join("dns.pcapng"), folder.path().join("dns.pcapng")).unwrap();
    let text = fs::read_to_string(original.join("scenario.toml")).unwrap();
    assert!(text.contains(from), "nothing to change in\n{text}");
    fs::write(folder.path().join("scenario.toml"), text.replace(from, to)).unwrap();
    let scenario = Scenario::load(folder.path()).unwrap_or_else(|error| panic!("{error}"));
    run(&scenario, &[BackendKind::Host, BackendKind::Oracle], Options::default())
}

#[test]
fn the_same_packets_pass() {
    let outcome = outcome("02:00:00:00:00:03", "02:00:00:00:00:03");
    assert!(outcome.failures.is_empty(), "{}", outcome.failures_as_text());
}

#[test]
fn packets_to_another_next_hop_fail() {
    let failures = outcome("02:00:00:00:00:03", "02:00:00:00:00:04").failures_as_text();
    assert!(failures.contains("packets to 02:00:00:00:00:03"), "{failures}");
    assert!(failures.contains("packets to 02:00:00:00:00:04"), "{failures}");
}

#[test]
fn packets_from_another_port_fail_with_the_field() {
    let failures = outcome("10000-10007", "10001-10008").failures_as_text();
    assert!(failures.contains("packet 0 to 02:00:00:00:00:03: udp"), "{failures}");
}

#[test]
fn a_capture_without_outputs_proves_nothing() {
    // Of another relay: nothing in the capture was sent by it, nor to it.
    let failures = outcome("mac = \"02:00:00:00:00:01\"", "mac = \"02:00:00:00:00:09\"").failures_as_text();
    assert!(
        failures.contains("packets that the relay sent, in the capture"),
        "{failures}"
    );
}

/// Replays the queries in the world of a scenario; the exit code, and what was said.
fn replay(scenario: &Path) -> (Option<i32>, String) {
    let capture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scenarios/captures/dns/dns.pcapng");
    let output = Command::new(env!("CARGO_BIN_EXE_packet-lab"))
        .args(["replay", "--check-outputs", "--scenario"])
        .args([scenario, &capture])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code(), said)
}

#[test]
fn a_replay_checks_its_outputs() {
    let scenario = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scenarios/captures/dns");
    let (code, said) = replay(&scenario);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("14 packets were sent as the capture has them"), "{said}");
}

#[test]
fn a_replay_whose_outputs_differ_fails_with_the_fields() {
    let folder = tempfile::tempdir().unwrap();
    let original = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scenarios/captures/dns/scenario.toml");
    let text = fs::read_to_string(original).unwrap();
    let text = text.replace("02:00:00:00:00:03", "02:00:00:00:00:04");
    fs::write(folder.path().join("scenario.toml"), text).unwrap();
    let capture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scenarios/captures/dns/dns.pcapng");
    fs::copy(capture, folder.path().join("dns.pcapng")).unwrap();
    let (code, said) = replay(folder.path());
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("02:00:00:00:00:04, not 02:00:00:00:00:03"), "{said}");
    assert!(said.lines().count() < 12, "{said}");
}
