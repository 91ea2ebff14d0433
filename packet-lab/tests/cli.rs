//! The command line as its users meet it: exit codes, messages, JSON.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Command, Output},
};

use packet_lab::backend::kernel::missing_capabilities;
use rstest::rstest;
use serde_json::Value;

const NOBODY: u32 = 65_534;
const SMALL: [&str; 7] = [
    "bench",
    "--users=100",
    "--packets=512",
    "--rounds=1",
    "--size",
    "64",
    "--json",
];

fn packet_lab() -> Command {
    Command::new(env!("CARGO_BIN_EXE_packet-lab"))
}

fn run(command: &mut Command) -> Output {
    command.output().expect("the binary was built with this test")
}

fn assert_ended(output: &Output, code: i32) {
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "stdout:\n{out}\nstderr:\n{err}");
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", text(&output.stdout)))
}

/// Whether this process may load programs; if not, says that the test is skipped, and why.
fn may_load_programs() -> bool {
    let missing = missing_capabilities();
    if !missing.is_empty() {
        // Past the capture of test output: a skip is to be seen.
        let _ = writeln!(
            io::stderr(),
            "skipped: a bench needs {}; run as root",
            missing.join(" and ")
        );
    }
    missing.is_empty()
}

/// The binary, run by somebody without privileges; none if such a one cannot reach it.
fn unprivileged(arguments: &[&str]) -> Option<Output> {
    let mut command = packet_lab();
    command.args(arguments).current_dir("/");
    if missing_capabilities().is_empty() {
        command.uid(NOBODY).gid(NOBODY);
    }
    match command.output() {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            let path = env!("CARGO_BIN_EXE_packet-lab");
            let _ = writeln!(io::stderr(), "skipped: an ordinary user cannot reach {path}");
            None
        }
        output => Some(output.expect("the binary was built with this test")),
    }
}

#[rstest]
#[case::no_command(&[], "Usage: packet-lab")]
#[case::an_unknown_command(&["bunch"], "unrecognized subcommand 'bunch'")]
#[case::no_users(&["bench", "--users", "0"], "0 is not in 1..=149000")]
#[case::too_many_users(&["bench", "--users", "149001"], "149001 is not in 1..=149000")]
#[case::a_payload_too_short(&["bench", "--size", "53"], "53 is not in 54..=1400")]
#[case::no_rounds(&["bench", "--rounds", "0"], "0 is not in 1..=1000")]
#[case::more_packets_than_the_ring(&["bench", "--packets", "65537"], "65537 is not in 1..=65536")]
#[case::no_percentage(&["bench", "--compare", "x", "--fail-above", "ten"], "write a percentage like 10%")]
#[case::a_limit_without_a_base(&["bench", "--fail-above", "5%"], "--compare <BASE.json>")]
#[case::no_such_base(&["bench", "--compare", "/nonexistent/base.json"], "reading /nonexistent/base.json")]
#[case::a_base_that_is_none(&["bench", "--compare", "/dev/null"], "/dev/null is not what `packet-lab bench --json` prints")]
fn wrong_usage_ends_with_2_and_says_what_is_wrong(#[case] arguments: &[&str], #[case] message: &str) {
    let output = run(packet_lab().args(arguments));
    assert_ended(&output, 2);
    assert!(text(&output.stderr).contains(message), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "");
}

#[test]
fn without_capabilities_a_bench_ends_with_3_and_says_how_to_mend_it() {
    let Some(output) = unprivileged(&["bench"]) else {
        return;
    };
    assert_ended(&output, 3);
    let message = text(&output.stderr);
    assert!(
        message.contains("CAP_BPF") && message.contains("run as root"),
        "{message}"
    );
}

#[test]
fn without_capabilities_the_doctor_says_that_the_host_backend_runs_and_the_kernels_does_not() {
    let Some(output) = unprivileged(&["doctor", "--json"]) else {
        return;
    };
    assert_ended(&output, 3);
    let findings = json(&output);
    let finding = |what: &str| {
        let all = findings.as_array().expect("a list");
        all.iter()
            .find(|finding| finding["what"] == what)
            .unwrap_or_else(|| panic!("no `{what}` in {findings:#}"))
            .clone()
    };
    assert_eq!(finding("host backend")["ok"], true);
    for what in ["capabilities", "kernel backend", "bench"] {
        assert_eq!(finding(what)["ok"], false, "{findings:#}");
        assert!(finding(what)["fix"].is_string(), "{findings:#}");
    }
}

#[test]
fn the_doctor_finds_nothing_amiss_where_these_tests_run_in_the_kernel() {
    if !may_load_programs() {
        return;
    }
    let output = run(packet_lab().arg("doctor"));
    assert_ended(&output, 0);
    let found = text(&output.stdout);
    for what in ["kernel backend", "host backend", "bench", "BPF JIT", "CPUs", "Linux "] {
        assert!(found.contains(what), "nothing about {what}:\n{found}");
    }
}

#[test]
fn a_bench_passes_against_a_base_that_was_worse_and_fails_against_one_that_was_better() {
    if !may_load_programs() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base.json");
    let measured = run(packet_lab().args(SMALL));
    assert_ended(&measured, 0);
    // So few packets are measured badly: the bases are far from anything that they could show.
    let mut slow = json(&measured);
    for row in slow["rows"].as_array_mut().unwrap() {
        row["ratio"] = 1e9.into();
    }
    fs::write(&base, slow.to_string()).unwrap();
    let compare = |base: &Path, limit: &str| {
        let output = packet_lab()
            .args(SMALL)
            .arg("--compare")
            .arg(base)
            .args(["--fail-above", limit])
            .output();
        output.expect("the binary was built with this test")
    };
    assert_ended(&compare(&base, "10%"), 0);

    let mut better = slow;
    better["rows"][1]["ratio"] = (-1e9).into();
    fs::write(&base, better.to_string()).unwrap();
    let output = compare(&base, "10%");
    assert_ended(&output, 1);
    let message = text(&output.stderr);
    assert!(
        message.contains("relayed_hot") && !message.contains("relayed_uplink"),
        "{message}"
    );

    better["users"] = 99.into();
    fs::write(&base, better.to_string()).unwrap();
    let output = compare(&base, "10%");
    assert_ended(&output, 2);
    assert!(
        text(&output.stderr).contains("--users 99, this with 100"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn completions_know_the_commands() {
    let output = run(packet_lab().args(["completions", "bash"]));
    assert_ended(&output, 0);
    assert!(text(&output.stdout).contains("--fail-above"));
}
