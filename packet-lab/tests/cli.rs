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
#[case::no_users(&["bench", "--users", "0"], "0 is not in 1..=1599999")]
#[case::too_many_users(&["bench", "--users", "1600000"], "1600000 is not in 1..=1599999")]
#[case::a_payload_too_short(&["bench", "--size", "53"], "53 is not in 54..=1400")]
#[case::no_rounds(&["bench", "--rounds", "0"], "0 is not in 1..=1000")]
#[case::more_packets_than_the_ring(&["bench", "--packets", "65537"], "65537 is not in 1..=65536")]
#[case::no_percentage(&["bench", "--compare", "x", "--fail-above", "ten"], "write a percentage like 10%")]
#[case::too_many_users_among_several(&["bench", "--users", "1,1600000"], "1600000 is not in 1..=1599999")]
#[case::a_base_for_several(&["bench", "--users", "1,2", "--compare", "/dev/null"], "give --users one")]
#[case::a_page_of_several(&["bench", "--users", "1,2", "--report", "/dev/null"], "give --users one")]
#[case::a_limit_without_a_base(&["bench", "--fail-above", "5%"], "--compare <BASE.json>")]
#[case::no_such_base(&["bench", "--compare", "/nonexistent/base.json"], "reading /nonexistent/base.json")]
#[case::a_base_that_is_none(&["bench", "--compare", "/dev/null"], "/dev/null is not what `packet-lab bench --json` prints")]
#[case::no_simulated_users(&["simulate", "--users", "0"], "users is 0: 1 to 100000")]
#[case::no_virtual_time(&["simulate", "--seconds", "-1"], "seconds is -1: 0.001 to 3600")]
#[case::more_loss_than_everything(&["simulate", "--loss", "101%"], "path.loss_percent is 101: 0 to 100")]
#[case::an_unknown_class(&["simulate", "--mix", "happy=1"], "there is no class `happy`; there are steady, bursty")]
#[case::a_class_without_a_number(&["simulate", "--mix", "steady"], "`steady` has no number: write steady=100")]
#[case::an_attack_among_users(&["simulate", "--mix", "forged_tags=1"], "mix.forged_tags is 1: that is an attack")]
#[case::no_such_profile(&["simulate", "--profile", "/nonexistent"], "reading the profile /nonexistent")]
#[case::a_profile_that_is_none(&["simulate", "--profile", "Cargo.toml"], "the profile Cargo.toml is not one")]
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
    assert_eq!(finding("oracle backend")["ok"], true);
    assert_eq!(finding("veth backend")["ok"], false);
    assert_eq!(finding("veth backend")["fix"], "run as root");
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
    for what in [
        "host backend",
        "oracle backend",
        "kernel backend",
        "veth backend",
        "bench",
        "BPF JIT",
        "CPUs",
        "Linux ",
    ] {
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
fn a_bench_of_several_numbers_of_users_writes_all_its_figures_and_a_plot_and_prints_the_table() {
    if !may_load_programs() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (figures, plot) = (dir.path().join("users.json"), dir.path().join("users.svg"));
    let output = run(packet_lab()
        .args(["bench", "--users=2000,1,2000,1000", "--packets=512", "--rounds=1"])
        .arg(format!("--json={}", figures.display()))
        .arg("--svg")
        .arg(&plot));
    assert_ended(&output, 0);
    let figures: Value = serde_json::from_slice(&fs::read(&figures).unwrap()).unwrap();
    let users: Vec<_> = figures
        .as_array()
        .unwrap()
        .iter()
        .map(|report| &report["users"])
        .collect();
    assert_eq!(users, [1, 1_000, 2_000]);
    let table = text(&output.stdout);
    let last = table.lines().find(|line| line.trim_start().starts_with("2000 "));
    let bytes = last.and_then(|row| row.split(' ').next_back()?.parse::<u32>().ok());
    // A user's entries, 272 bytes, and the rest of the last pages; more than a thousand users share their destinations.
    assert!(bytes.is_some_and(|bytes| (272..288).contains(&bytes)), "{table}");
    let plot = fs::read_to_string(&plot).unwrap();
    for shown in ["uplink, 2,000: ", "unknown handle, 1: ", "all maps, 1,000: "] {
        assert!(plot.contains(shown), "{shown}: {plot}");
    }
}

#[test]
fn a_bench_says_how_much_a_core_relays_on_the_paths_that_relay() {
    if !may_load_programs() {
        return;
    }
    let output = run(packet_lab().args(SMALL));
    assert_ended(&output, 0);
    for row in json(&output)["rows"].as_array().unwrap() {
        let relays = row["description"].as_str().unwrap().starts_with("relayed");
        let gbit = row["gbit_per_second"].as_f64();
        assert_eq!(gbit.is_some(), relays, "{row}");
        let bits = gbit.map(|gbit| gbit * row["ns"].as_f64().unwrap());
        assert!(bits.is_none_or(|bits| (bits - 8.0 * 64.0).abs() < 1e-6), "{row}");
    }
}

#[test]
fn without_capabilities_a_simulation_runs_through_the_host_and_says_so() {
    let small = ["simulate", "--users=20", "--seconds=0.1", "--attack=none"];
    let Some(output) = unprivileged(&small) else {
        return;
    };
    assert_ended(&output, 0);
    assert!(
        text(&output.stderr).contains("through the host backend"),
        "{}",
        text(&output.stderr)
    );
    assert!(
        text(&output.stdout).contains("all invariants hold"),
        "{}",
        text(&output.stdout)
    );
    let Some(output) = unprivileged(&[small.as_slice(), &["--backend=kernel"]].concat()) else {
        return;
    };
    assert_ended(&output, 3);
    assert!(text(&output.stderr).contains("run as root"), "{}", text(&output.stderr));
}

#[rstest]
#[case::host("host")]
#[case::oracle("oracle")]
fn a_printed_profile_gives_the_run_that_its_options_give(#[case] backend: &str) {
    let dir = tempfile::tempdir().unwrap();
    let profile = dir.path().join("profile.toml");
    let options = [
        "--users=40",
        "--seconds=0.2",
        "--loss=5%",
        "--reorder=20%",
        "--seed=9",
        "--mix=steady=3,roaming=1",
    ];
    let backend = format!("--backend={backend}");
    let printed = run(packet_lab().arg("simulate").args(options).arg("--print-profile"));
    assert_ended(&printed, 0);
    fs::write(&profile, &printed.stdout).unwrap();
    let by_options = run(packet_lab().args(["simulate", "--json", &backend]).args(options));
    assert_ended(&by_options, 0);
    let by_profile = run(packet_lab()
        .args(["simulate", "--json", &backend, "--profile"])
        .arg(&profile));
    assert_eq!(json(&by_options), json(&by_profile));
    let rows = json(&by_options)["rows"].clone();
    assert_eq!(rows[0]["class"], "steady");
    assert_eq!(
        (rows[0]["users"].as_u64(), rows[1]["users"].as_u64()),
        (Some(30), Some(10)),
        "{rows:#}"
    );
}

#[test]
fn a_report_that_cannot_be_written_is_an_error_that_names_it() {
    let small = [
        "simulate",
        "--users=5",
        "--seconds=0.1",
        "--attack=none",
        "--backend=host",
    ];
    let output = run(packet_lab().args(small).args(["--report", "/nonexistent/report.html"]));
    assert_ended(&output, 3);
    let message = text(&output.stderr);
    assert!(
        message.contains("writing the report /nonexistent/report.html"),
        "{message}"
    );
}

#[test]
fn completions_know_the_commands() {
    let output = run(packet_lab().args(["completions", "bash"]));
    assert_ended(&output, 0);
    assert!(text(&output.stdout).contains("--fail-above"));
}

#[rstest]
#[case::completions(&["completions", "bash"])]
#[case::schema(&["schema"])]
#[case::a_capture(&["show", "tests/captures/usec.pcap"])]
fn output_that_finds_no_room_ends_with_3_and_is_no_panic(#[case] arguments: &[&str]) {
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = run(packet_lab().args(arguments).stdout(full));
    assert_ended(&output, 3);
    let message = text(&output.stderr);
    assert!(
        message.contains("No space left on device") && !message.contains("panicked"),
        "{message}"
    );
}

#[rstest]
fn every_commands_help_has_examples(
    #[values(
        "bench",
        "completions",
        "diff",
        "doctor",
        "fuzz",
        "record",
        "replay",
        "run",
        "schema",
        "show",
        "simulate"
    )]
    command: &str,
) {
    let output = run(packet_lab().args([command, "--help"]));
    assert_ended(&output, 0);
    let help = text(&output.stdout);
    assert!(help.contains(&format!("\n  packet-lab {command}")), "{help}");
}
