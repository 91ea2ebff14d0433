//! Programs that are not the relay's, by test run and on a wire, and objects that cannot be loaded.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

use packet_lab::{
    Backend, Lab, Observation, Verdict, World,
    backend::{BackendError, foreign::ForeignBackend, kernel, veth},
    object::{self, Object, ObjectError},
    scenario::Scenario,
    world::address,
};
use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};
use rstest::rstest;

/// An ICMP echo request of 4 bytes of data, from 192.0.2.2 to 192.0.2.1.
const PING: &str = "0200000000010200000000020800\
    450000200001000040010000c0000202c0000201\
    080000000001000170696e67";

fn example(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("examples/foreign")
        .join(file)
}

/// A program of `pong.o` in all backends that can run here.
fn lab(program: &str) -> Lab {
    let mut backends: Vec<Box<dyn Backend>> = Vec::new();
    let object = example("pong.o");
    if can_run("in the kernel", &kernel::missing_capabilities()) {
        backends.push(Box::new(ForeignBackend::kernel(&object, program).unwrap()));
    }
    if can_run("on a veth pair", &veth::missing_capabilities()) {
        backends.push(Box::new(ForeignBackend::veth(&object, program).unwrap()));
    }
    let mut nobody = World::new();
    nobody.max_users = 0;
    Lab::new(nobody, backends)
}

fn can_run(place: &str, missing: &[&str]) -> bool {
    if missing.is_empty() {
        return true;
    }
    let test = std::thread::current();
    let (name, missing) = (test.name().unwrap_or("a test"), missing.join(" and "));
    // Past the capture of test output: a skip is to be seen.
    let _ = writeln!(
        std::io::stderr(),
        "skipped: {name} {place}, for want of {missing}; run as root"
    );
    false
}

/// What a program of `pong.o` did with a frame; `None` where nothing can run it.
fn observe(program: &str, frame: &[u8]) -> Option<Observation> {
    let missing = kernel::missing_capabilities();
    missing
        .is_empty()
        .then(|| lab(program).step(0, frame).unwrap_or_else(|error| panic!("{error}")))
}

/// A ping with a right checksum of ICMP.
fn ping() -> Vec<u8> {
    let mut frame = hex::decode(PING).unwrap();
    let sum: u32 = frame[34..]
        .chunks(2)
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
        .sum();
    let checksum = !((sum & 0xffff) + (sum >> 16)) as u16;
    frame[36..38].copy_from_slice(&checksum.to_be_bytes());
    frame
}

/// A frame of an experimental type, with a VLAN tag if one is given.
fn frame(tag: Option<[u8; 4]>, payload: usize) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    frame.extend(tag.iter().flatten());
    frame.extend([0x88, 0xb5]);
    frame.extend((0..payload).map(|i| i as u8));
    frame
}

#[test]
fn pong_answers_to_ping() {
    let Some(observed) = observe("pong", &ping()) else {
        return;
    };
    assert_eq!(observed.verdict, Verdict::Tx);
    let answer = &observed.output;
    assert_eq!(answer[..6], ping()[6..12], "to where the request came from");
    assert_eq!(answer[26..30], [192, 0, 2, 1]);
    assert_eq!(answer[30..34], [192, 0, 2, 2]);
    assert_eq!(answer[34], 0, "an echo reply");
    let sum: u32 = answer[34..]
        .chunks(2)
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
        .sum();
    assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff, "with a right checksum");
}

#[test]
fn pong_passes_what_is_no_ping() {
    let frame = frame(None, 50);
    let Some(observed) = observe("pong", &frame) else {
        return;
    };
    assert_eq!((observed.verdict, observed.output), (Verdict::Pass, frame));
}

#[rstest]
#[case::the_type_of_802_1q([0x81, 0, 0xe0, 100])]
#[case::with_the_drop_eligible_bit([0x81, 0, 0x1f, 0xff])]
#[case::of_vlan_0([0x81, 0, 0, 0])]
fn untag_passes_a_frame_without_its_tag(#[case] tag: [u8; 4]) {
    let Some(observed) = observe("untag", &frame(Some(tag), 50)) else {
        return;
    };
    assert_eq!((observed.verdict, observed.output), (Verdict::Pass, frame(None, 50)));
}

#[test]
fn untag_drops_a_frame_without_a_tag() {
    let Some(observed) = observe("untag", &frame(None, 50)) else {
        return;
    };
    assert_eq!((observed.verdict, observed.output), (Verdict::Drop, frame(None, 50)));
}

#[rstest]
#[case::the_least(2)]
#[case::some(50)]
#[case::the_most(3_500 - 14)]
fn tag_sends_a_frame_back_with_its_tag_whole(#[case] payload: usize) {
    let Some(observed) = observe("tag", &frame(None, payload)) else {
        return;
    };
    let tagged = frame(Some([0x81, 0, 0xe0, 100]), payload);
    assert_eq!((observed.verdict, observed.output), (Verdict::Tx, tagged));
}

#[rstest]
#[case("passes", Verdict::Pass)]
#[case("drops", Verdict::Drop)]
fn a_program_in_a_section_named_as_of_old_runs(#[case] program: &str, #[case] verdict: Verdict) {
    if !can_run("in the kernel", &kernel::missing_capabilities()) {
        return;
    }
    let mut backend = ForeignBackend::kernel(&example("old.o"), program).unwrap();
    let processed = backend.process(0, &frame(None, 50)).unwrap();
    assert_eq!((processed.verdict, processed.frame), (verdict, frame(None, 50)));
}

#[test]
fn a_frame_that_comes_back_unseen_is_no_drop() {
    if !can_run("on a veth pair", &veth::missing_capabilities()) {
        return;
    }
    let mut backend = ForeignBackend::veth(&example("pong.o"), "tag").unwrap();
    let error = backend.process(0, &frame(None, 0)).unwrap_err().to_string();
    assert!(error.contains("threw it away before it could be seen"), "{error}");
}

/// The kernel takes out the outer one.
#[test]
fn tags_within_tags_are_whole() {
    let mut inner = frame(Some([0x81, 0, 0, 5]), 50);
    inner.splice(12..12, [0x88, 0xa8, 0, 6]);
    let Some(observed) = observe("pong", &inner) else {
        return;
    };
    assert_eq!((observed.verdict, observed.output), (Verdict::Pass, inner));
}

#[test]
fn a_note_in_front_of_a_frame_is_no_part_of_it() {
    let Some(observed) = observe("annotate", &frame(None, 50)) else {
        return;
    };
    assert_eq!((observed.verdict, observed.output), (Verdict::Pass, frame(None, 50)));
}

#[test]
fn a_frame_that_was_aborted_is_told_from_a_dropped_one_by_a_test_run() {
    if !can_run("in the kernel", &kernel::missing_capabilities()) {
        return;
    }
    let mut backend = ForeignBackend::kernel(&example("pong.o"), "give_up").unwrap();
    let processed = backend.process(0, &frame(None, 50)).unwrap();
    assert_eq!(
        (processed.verdict, processed.frame),
        (Verdict::Aborted, frame(None, 50))
    );
}

#[test]
fn maps_that_an_object_pins_are_left_nowhere() {
    if !can_run("in the kernel", &veth::missing_capabilities()) {
        return;
    }
    let _loaded = ForeignBackend::kernel(&example("pong.o"), "pong").unwrap();
    assert!(!Path::new("/sys/fs/bpf/actions").exists());
}

#[test]
fn a_foreign_program_has_no_users() {
    if !can_run("in the kernel", &kernel::missing_capabilities()) {
        return;
    }
    let mut backend = ForeignBackend::kernel(&example("pong.o"), "pong").unwrap();
    let error = backend.set_next_hop(address("192.0.2.1:1"), None).unwrap_err();
    assert_eq!(
        error.to_string(),
        "a foreign program has no next hops: only the relay has"
    );
}

fn error(path: &Path, name: &str) -> ObjectError {
    Object::load(path, name).expect_err("it should not load")
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = error(Path::new("/nowhere/x.o"), "pong").to_string();
    assert!(error.contains("/nowhere/x.o: No such file or directory"), "{error}");
}

#[test]
fn a_folder_is_no_object() {
    let error = error(Path::new("/"), "pong").to_string();
    assert!(error.ends_with("not a regular file"), "{error}");
}

#[rstest]
#[case::empty(b"", "it is empty")]
#[case::text(b"[relay]\nlisten = []\n", "it does not begin as an ELF file does")]
#[case::half_an_object(include_bytes!("../examples/foreign/pong.o").first_chunk::<1000>().unwrap(), "Invalid ELF section header")]
#[case::this_machines_program(&fs::read("/proc/self/exe").unwrap(), "not for BPF")]
fn a_file_that_is_no_object_is_told(#[case] bytes: &[u8], #[case] found: &str) {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), bytes).unwrap();
    let error = error(file.path(), "pong").to_string();
    assert!(error.contains("is no BPF object file ("), "{error}");
    assert!(error.contains(found), "{error}");
}

/// Bytes changed here and there, mostly among the tables at the end, and sometimes the end cut off.
fn damage(object: &[u8], rng: &mut SmallRng) -> Vec<u8> {
    let mut bytes = object.to_vec();
    for _ in 0..rng.random_range(1..8) {
        let from = if rng.random_bool(0.6) { bytes.len() * 3 / 4 } else { 0 };
        let at = rng.random_range(from..bytes.len());
        bytes[at] = [0, 0xff, rng.random()][rng.random_range(0..3)];
    }
    if rng.random_bool(0.1) {
        bytes.truncate(rng.random_range(0..bytes.len()));
    }
    bytes
}

#[test]
fn a_corrupt_object_is_an_error_or_none_the_worse_but_no_panic() {
    let (folder, mut rng) = (tempfile::tempdir().unwrap(), SmallRng::seed_from_u64(3));
    let original = fs::read(example("pong.o")).unwrap();
    let file = folder.path().join("pong.o");
    for _ in 0..1_000 {
        fs::write(&file, damage(&original, &mut rng)).unwrap();
        if let Err(error) = object::check(&file, "pong") {
            assert!(error.to_string().contains("pong.o"), "{error}");
        }
    }
}

#[test]
fn a_program_that_is_not_there_is_told_with_those_that_are() {
    let error = error(&example("pong.o"), "ping").to_string();
    let there = "has no program `ping`: its XDP programs are `annotate`, `give_up`, `pong`, `tag`, `untag`";
    assert!(error.ends_with(there), "{error}");
}

#[test]
fn a_program_that_is_not_for_xdp_is_told() {
    let error = error(&example("pong.o"), "of_another_kind").to_string();
    assert!(
        error.contains("`of_another_kind` in") && error.contains("is no XDP program but one for `tc`"),
        "{error}"
    );
}

#[test]
fn of_a_program_that_the_verifier_refuses_the_line_that_matters_is_told() {
    if !can_run("in the kernel", &kernel::missing_capabilities()) {
        return;
    }
    let loaded = ForeignBackend::kernel(&example("refused.o"), "reads_too_far");
    let Err(BackendError::Object(error @ ObjectError::Refused { .. })) = loaded else {
        panic!("the verifier should refuse it: {loaded:?}");
    };
    let error = error.to_string();
    assert!(error.contains("invalid access to packet, off=13 size=1"), "{error}");
    assert!(error.contains("instruction 1: (71) r1 = *(u8 *)(r1 +13)"), "{error}");
    assert!(error.contains("source code return data[13] == 0"), "{error}");
    assert!(error.lines().count() < 8, "{error}");
}

/// What is wrong with a scenario of the program `name` in `object`, which is in the examples.
fn faults(object: &str, name: &str, verdict: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let object = example(object).display().to_string();
    let text = format!(
        "schema = 1\nname = \"a case\"\n[program]\nobject = \"{object}\"\nname = \"{name}\"\n\
         [[step]]\nsend = {{ frame = \"hex:{PING}\" }}\nexpect = {{ verdict = \"{verdict}\" }}\n"
    );
    fs::write(folder.path().join("scenario.toml"), text).unwrap();
    match Scenario::load(folder.path()) {
        Ok(_) => String::new(),
        Err(error) => error.to_string(),
    }
}

#[rstest]
#[case::nothing("pong.o", "pong", "TX", "", "")]
#[case::no_such_file("nowhere.o", "pong", "TX", "scenario.toml:4:10: ", "No such file or directory")]
#[case::no_object("pong.c", "pong", "TX", "scenario.toml:4:10: ", "does not begin as an ELF file does")]
#[case::no_such_program(
    "pong.o",
    "ping",
    "TX",
    "scenario.toml:5:8: ",
    "has no program `ping`: its XDP programs are"
)]
#[case::not_for_xdp("pong.o", "of_another_kind", "TX", "scenario.toml:5:8: ", "is no XDP program")]
#[case::aborted("pong.o", "give_up", "ABORTED", "scenario.toml:8:", "say `backends = [\"kernel\"]`")]
#[case::redirect("pong.o", "pong", "REDIRECT", "scenario.toml:8:", "say `backends = [\"kernel\"]`")]
fn what_is_wrong_with_a_scenario_of_a_program_is_told_with_its_place(
    #[case] object: &str,
    #[case] name: &str,
    #[case] verdict: &str,
    #[case] place: &str,
    #[case] message: &str,
) {
    let faults = faults(object, name, verdict);
    assert!(faults.contains(place) && faults.contains(message), "{faults}");
    assert_eq!(faults.is_empty(), message.is_empty(), "{faults}");
}

#[test]
fn the_whole_log_of_a_refusal_goes_to_the_file_that_is_named() {
    if !can_run("in the kernel", &kernel::missing_capabilities()) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (scenario, log) = (folder.path().join("scenario.toml"), folder.path().join("log"));
    let object = example("refused.o").display().to_string();
    let text = format!(
        "schema = 1\nname = \"a case\"\nbackends = [\"kernel\"]\n[program]\nobject = \"{object}\"\n\
         name = \"reads_too_far\"\n[[step]]\nsend = {{ frame = \"hex:{PING}\" }}\n"
    );
    fs::write(&scenario, text).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_packet-lab"))
        .arg("run")
        .arg(&scenario)
        .env("LUMENLINK_VERIFIER_LOG", &log)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("source code return data[13] == 0"), "{said}");
    assert!(said.contains(&format!("log are in {}", log.display())), "{said}");
    assert!(fs::read_to_string(&log).unwrap().contains("processed 2 insns"));
}
