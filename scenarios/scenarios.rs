//! Every scenario, in every backend: a test each, named by the scenario's path.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
};

use packet_lab::scenario::{
    BackendKind::{self, Host, Kernel, Oracle, Userspace, Veth},
    Kept, Options, Outcome, Scenario, misfit, missing, run, snapshot,
};
use rstest::rstest;

/// What a failed scenario leaves, for Wireshark.
const OUT: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/scenarios");

#[rstest]
fn scenario(
    #[files("../scenarios/**/scenario.toml")] path: PathBuf,
    #[values(Host, Oracle, Kernel, Veth, Userspace)] backend: BackendKind,
) {
    let scenario = Scenario::load(&path).unwrap_or_else(|error| panic!("{error}"));
    if !scenario.backends().contains(&backend) {
        return;
    }
    if let Some(why) = missing(backend).or_else(|| misfit(&scenario, backend)) {
        // Past the capture of test output: a skip is to be seen.
        let _ = writeln!(
            std::io::stderr(),
            "skipped: {} in {}: {why}",
            scenario.id(),
            backend.name()
        );
        return;
    }
    let options = Options {
        out: Some(Path::new(OUT)),
        ..Options::default()
    };
    let outcome = run(&scenario, &[backend], options);
    assert!(outcome.failures.is_empty(), "{}", outcome.failures_as_text());
    assert_snapshot(&scenario, &outcome);
}

/// By insta, so that `cargo insta review` shows what differs.
fn assert_snapshot(scenario: &Scenario, outcome: &Outcome) {
    if matches!(outcome.kept, Kept::Same) {
        return;
    }
    let text = outcome.snapshot.as_deref().unwrap_or_default();
    let folder = scenario.folder.canonicalize().expect("the scenario's folder is there");
    insta::with_settings!({
        snapshot_path => folder,
        prepend_module_to_snapshot => false,
        omit_expression => true,
        description => outcome.name.clone(),
    }, {
        insta::assert_snapshot!(snapshot::NAME, text);
    });
}

/// `cargo insta review` looks for them in the folders of packages and of their targets' sources.
#[test]
fn this_file_is_where_the_snapshots_are() {
    let folder = Path::new(file!()).parent();
    assert!(folder.is_some_and(|folder| folder.ends_with("scenarios")), "{folder:?}");
}
