//! Faulty scenarios: each mistake is told with its file, line and column, nothing is run, and nobody panics.

use std::{
    fs,
    io::Write as _,
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Command, Output},
};

use packet_lab::{
    backend::kernel::missing_capabilities,
    scenario::{Scenario, ScenarioError},
};
use rstest::rstest;

const NOBODY: u32 = 65_534;

/// A scenario without a fault, which each case puts one into.
const RIGHT: &str = r#"schema = 1
name = "a packet is relayed"
tags = ["uplink"]
backends = ["host", "oracle"]

[relay]
listen = ["192.0.2.1:4500"]

[[user]]
id = 42
to = "198.51.100.7:5000"

[[step]]
at = "1ms"
send = { from = "203.0.113.9:40000", to = "192.0.2.1:4500", token = { user = 42, pn = 1 }, payload = "hex:0102" }
expect = { verdict = "TX", reason = "relayed" }

[[step]]
at = "2ms"
repeat_step = 0
expect = { verdict = "DROP", reason = "replayed" }
"#;

const SEND: &str = r#"send = { from = "203.0.113.9:40000", to = "192.0.2.1:4500", token = { user = 42, pn = 1 }, payload = "hex:0102" }"#;

fn faults(text: &str) -> String {
    match Scenario::parse(Path::new("scenario.toml"), text) {
        Ok(_) => panic!("no fault is found in\n{text}"),
        Err(error) => error.to_string(),
    }
}

fn assert_told(name: &str, text: &str) {
    insta::with_settings!({
        snapshot_path => "snapshots/scenario_faults",
        prepend_module_to_snapshot => false,
        omit_expression => true,
    }, {
        insta::assert_snapshot!(name, faults(text));
    });
}

#[test]
fn the_scenario_that_faults_are_put_into_has_none() {
    Scenario::parse(Path::new("scenario.toml"), RIGHT).unwrap();
}

#[rstest]
#[case("schema_of_the_future", "schema = 1", "schema = 2")]
#[case("no_schema", "schema = 1\n", "")]
#[case("no_name", "name = \"a packet is relayed\"\n", "")]
#[case("empty_name", "a packet is relayed", " ")]
#[case("unknown_key", "tags =", "tag =")]
#[case("unknown_key_in_a_table", "listen =", "listens =")]
#[case("unknown_backend", "\"oracle\"", "\"orakle\"")]
#[case("no_backend", "\"host\", \"oracle\"", "")]
#[case("no_toml", "tags = [\"uplink\"]", "tags = [\"uplink\"")]
#[case("another_type", "id = 42", "id = \"42\"")]
#[case("negative_id", "id = 42", "id = -1")]
#[case("no_address", "192.0.2.1:4500\"]", "192.0.2.1\"]")]
#[case("no_listener", "[\"192.0.2.1:4500\"]", "[]")]
#[case("ports_backwards", "[relay]", "[relay]\negress_ports = \"10007-10000\"")]
#[case("ports_that_are_none", "[relay]", "[relay]\negress_ports = \"many\"")]
#[case("egress_ports_too_few", "id = 42", "id = 42\nslot = 8")]
#[case("key_too_short", "id = 42", "id = 42\nkey = \"0001\"")]
#[case("mac_that_is_none", "[relay]", "[relay]\nmac = \"02:00:00:00:00\"")]
#[case("prefix_that_is_none", "[relay]", "[relay]\nblocklist = [\"203.0.113.0/33\"]")]
#[case("rate_of_zero", "id = 42", "id = 42\nrate = 0")]
#[case("burst_of_zero", "id = 42", "id = 42\nburst = 0")]
#[case(
    "user_twice",
    "[[user]]",
    "[[user]]\nid = 42\nto = \"198.51.100.7:5000\"\n\n[[user]]"
)]
#[case(
    "slot_twice",
    "[[user]]",
    "[[user]]\nid = 41\nto = \"198.51.100.7:5000\"\nslot = 0\n\n[[user]]\nslot = 0"
)]
#[case("no_step", "[[step]]", "[[stop]]")]
#[case("time_without_a_unit", "\"1ms\"", "\"1\"")]
#[case("time_that_goes_back", "\"1ms\"", "\"3ms\"")]
#[case("unknown_user", "user = 42", "user = 43")]
#[case("no_packet_number", ", pn = 1", "")]
#[case(
    "addresses_of_two_families",
    "192.0.2.1:4500\", token",
    "[2001:db8::1]:4500\", token"
)]
#[case("no_receiver", "to = \"192.0.2.1:4500\", token", "token")]
#[case("bytes_of_no_kind", "hex:0102", "0102")]
#[case("half_a_byte", "hex:0102", "hex:010")]
#[case("token_cut_to_more_than_it_is", "pn = 1", "pn = 1, cut = 24")]
#[case("bit_that_a_token_does_not_have", "pn = 1", "pn = 1, flip_bit = 192")]
#[case("options_of_three_bytes", "payload =", "options = \"hex:010101\", payload =")]
#[case("flow_label_in_ipv4", "payload =", "flow_label = 1, payload =")]
#[case("frame_and_more", "send = {", "send = { frame = \"hex:00\",")]
#[case("repeat_of_a_later_step", "repeat_step = 0", "repeat_step = 1")]
#[case("repeat_of_no_step", "repeat_step = 0", "repeat_step = 7")]
#[case("two_actions", "repeat_step = 0", "repeat_step = 0\nremove_user = 42")]
#[case("no_action", "repeat_step = 0\n", "")]
#[case("expectation_of_nothing_sent", "repeat_step = 0", "remove_user = 42")]
#[case("count_of_zero", "repeat_step = 0", "repeat_step = 0\ncount = 0")]
#[case("every_without_count", "repeat_step = 0", "repeat_step = 0\nevery = \"1ms\"")]
#[case("unknown_reason", "\"replayed\"", "\"replaied\"")]
#[case("unknown_reason_counted", "reason = \"replayed\"", "reasons = { replaied = 1 }")]
#[case("unknown_verdict", "\"DROP\"", "\"drop\"")]
#[case(
    "reason_and_reasons",
    "reason = \"replayed\"",
    "reason = \"replayed\", reasons = { replayed = 1 }"
)]
#[case("missing_capture", "repeat_step = 0", "replay = { pcap = \"incident.pcapng\" }")]
#[case(
    "clients_without_resign",
    "repeat_step = 0",
    "replay = { pcap = \"Cargo.toml\", clients = { \"203.0.113.9:1\" = 42 } }"
)]
#[case(
    "missing_object",
    "[relay]\nlisten = [\"192.0.2.1:4500\"]",
    "[program]\nobject = \"x.o\"\nname = \"xdp_main\""
)]
#[case(
    "unknown_part_of_the_snapshot",
    "[relay]",
    "[snapshot]\ninclude = [\"packet\"]\n\n[relay]"
)]
#[case("empty_snapshot", "[relay]", "[snapshot]\ninclude = []\n\n[relay]")]
fn a_mistake_is_told_with_its_place(#[case] name: &str, #[case] right: &str, #[case] wrong: &str) {
    assert!(RIGHT.contains(right), "there is no {right}");
    assert_told(name, &RIGHT.replacen(right, wrong, 1));
}

#[test]
fn several_mistakes_are_told_at_once() {
    let text = RIGHT
        .replace("schema = 1", "schema = 2")
        .replace("id = 42", "id = 42\nrate = 0")
        .replace("user = 42", "user = 7")
        .replace("repeat_step = 0", "repeat_step = 5");
    assert_told("several", &text);
}

#[test]
fn columns_count_characters() {
    let text = RIGHT.replace(
        SEND,
        &SEND.replace(
            "payload = \"hex:0102\"",
            "payload = \"text:grüße\", udp_length = 99_999",
        ),
    );
    assert_told("behind_letters_of_two_bytes", &text);
}

#[rstest]
#[case::empty("")]
#[case::one_brace("{")]
#[case::not_text("\u{0}\u{1}\u{2}")]
#[case::deep(&"[".repeat(10_000))]
#[case::a_long_line(&format!("name = \"{}", "x".repeat(1_000_000)))]
fn what_is_no_toml_is_an_error(#[case] text: &str) {
    let error = Scenario::parse(Path::new("scenario.toml"), text).unwrap_err();
    assert!(error.to_string().starts_with("scenario.toml:1:"), "{error}");
}

#[test]
fn a_scenario_with_any_byte_changed_or_cut_off_is_read_or_refused() {
    let text = RIGHT.as_bytes();
    for at in 0..text.len() {
        for byte in [b'"', b'0', b'[', b'\n', b'=', b'}', b'9'] {
            let mut changed = text.to_vec();
            changed[at] = byte;
            if let Ok(changed) = str::from_utf8(&changed) {
                let _ = Scenario::parse(Path::new("scenario.toml"), changed);
            }
        }
        if let Ok(cut) = str::from_utf8(&text[..at]) {
            let _ = Scenario::parse(Path::new("scenario.toml"), cut);
        }
    }
}

#[test]
fn a_folder_without_a_scenario_says_what_one_is() {
    let folder = tempfile::tempdir().unwrap();
    let error = Scenario::load(folder.path()).unwrap_err();
    assert!(matches!(error, ScenarioError::None(_)), "{error:?}");
    assert!(error.to_string().contains("scenario.toml"), "{error}");
}

fn packet_lab(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_packet-lab"));
    command.current_dir(folder).arg("run").args(arguments);
    command.output().expect("the binary was built with this test")
}

fn said(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    format!("{}{}", String::from_utf8_lossy(out), String::from_utf8_lossy(err))
}

fn assert_ended(output: &Output, code: i32, words: &[&str]) {
    let said = said(output);
    assert_eq!(output.status.code(), Some(code), "{said}");
    for word in words {
        assert!(said.contains(word), "nothing of {word:?} in\n{said}");
    }
}

/// Past the capture of test output: a skip is to be seen.
fn skipped(why: &str) {
    let _ = writeln!(std::io::stderr(), "skipped: {why}; run as root");
}

/// A folder of scenarios with one in it.
fn folder_with(text: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let scenario = folder.path().join("scenarios/area/case");
    fs::create_dir_all(&scenario).unwrap();
    fs::write(scenario.join("scenario.toml"), text).unwrap();
    folder
}

fn replaying(pcap: &str) -> String {
    RIGHT.replace("repeat_step = 0", &format!("replay = {{ pcap = \"{pcap}\" }}"))
}

#[rstest]
#[case::a_faulty_scenario(&RIGHT.replace("user = 42", "user = 43"), &[], "scenario.toml:15:")]
#[case::no_such_path(RIGHT, &["nowhere"], "nowhere")]
#[case::no_such_tag(RIGHT, &["--tag", "downlink"], "downlink")]
#[case::no_such_backend(RIGHT, &["--backend", "kernle"], "kernel")]
#[case::a_capture_that_is_text(&replaying("scenario.toml"), &["--update"], "scenario.toml:20:")]
#[case::a_capture_that_is_cut(&replaying(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/captures/truncated.pcapng")), &[], "truncated")]
fn what_cannot_be_run_changes_nothing(#[case] text: &str, #[case] arguments: &[&str], #[case] word: &str) {
    let folder = folder_with(text);
    let output = packet_lab(folder.path(), arguments);
    assert_ended(&output, 2, &[word]);
    let files = fs::read_dir(folder.path().join("scenarios/area/case")).unwrap();
    assert_eq!(files.count(), 1, "something was left there");
}

#[test]
fn without_a_snapshot_a_scenario_fails_until_one_is_kept() {
    let folder = folder_with(RIGHT);
    assert_ended(&packet_lab(folder.path(), &[]), 1, &["--update", "TX uplink relayed"]);
    assert_ended(&packet_lab(folder.path(), &["--update"]), 0, &["area/case"]);
    assert_ended(&packet_lab(folder.path(), &[]), 0, &["1 passed"]);
}

#[test]
fn a_snapshot_that_differs_is_a_failure_that_shows_the_lines() {
    let folder = folder_with(RIGHT);
    let _ = packet_lab(folder.path(), &["--update"]);
    let snapshot = folder.path().join("scenarios/area/case/expected.snap");
    let kept = fs::read_to_string(&snapshot).unwrap().replace("ttl 63", "ttl 62");
    fs::write(&snapshot, kept).unwrap();
    assert_ended(
        &packet_lab(folder.path(), &[]),
        1,
        &["-    ipv4", "+    ipv4", "ttl 62", "ttl 63"],
    );
}

#[test]
fn an_expectation_that_is_not_met_is_told_with_its_step_and_is_not_kept() {
    let folder = folder_with(&RIGHT.replace("\"replayed\"", "\"bad_token\""));
    let output = packet_lab(folder.path(), &["--update"]);
    assert_ended(&output, 1, &["scenario.toml:18", "step 1", "bad_token", "replayed"]);
    assert!(!folder.path().join("scenarios/area/case/expected.snap").exists());
}

#[test]
fn a_frame_that_a_named_backend_cannot_take_is_told_before_it_is_sent() {
    if !missing_capabilities().is_empty() {
        skipped("a frame that the kernel backend cannot take needs that backend");
        return;
    }
    let runt = RIGHT
        .replace(SEND, "send = { frame = \"hex:00\" }")
        .replace("\"oracle\"", "\"kernel\"");
    let output = packet_lab(folder_with(&runt).path(), &[]);
    assert_ended(&output, 1, &["1 bytes", "kernel", "backends"]);
}

#[test]
fn an_object_that_is_none_is_told_by_its_path() {
    let program = "[program]\nobject = \"scenario.toml\"\nname = \"xdp_main\"";
    let text = RIGHT.replace("[relay]\nlisten = [\"192.0.2.1:4500\"]", program);
    let text = text.replace("\"host\", \"oracle\"", "\"kernel\"");
    let start = text.find("[[user]]").unwrap();
    let end = text.find("[[step]]").unwrap();
    let text = format!("{}{}", &text[..start], &text[end..]).replace("token = { user = 42, pn = 1 }, ", "");
    let text = text
        .replace(", reason = \"relayed\"", "")
        .replace(", reason = \"replayed\"", "");
    let output = packet_lab(folder_with(&text).path(), &[]);
    assert_ended(&output, 2, &["scenario.toml:7:", "no BPF object file"]);
}

/// As another user, so that the privileges are gone.
#[test]
fn without_privileges_a_backend_that_was_named_is_the_environments_fault_and_others_are_skipped() {
    if !nix::unistd::Uid::effective().is_root() {
        skipped("giving up privileges needs some");
        return;
    }
    let folder = folder_with(&RIGHT.replace("\"oracle\"", "\"kernel\""));
    let _ = packet_lab(folder.path(), &["--update", "--backend", "host"]);
    let readable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(folder.path(), readable).unwrap();
    let binary = folder.path().join("packet-lab");
    fs::copy(env!("CARGO_BIN_EXE_packet-lab"), &binary).unwrap();
    let run = |arguments: &[&str]| {
        let mut command = Command::new(&binary);
        command
            .current_dir(folder.path())
            .arg("run")
            .args(arguments)
            .uid(NOBODY)
            .gid(NOBODY);
        command.output().expect("nobody may run a copy of it")
    };
    assert_ended(&run(&["--backend", "kernel"]), 3, &["CAP_BPF", "root"]);
    assert_ended(&run(&[]), 0, &["kernel", "CAP_BPF"]);
}
