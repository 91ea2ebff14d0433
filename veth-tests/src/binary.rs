//! The program under test, built by cargo as it is for everybody.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

const NAME: &str = "lumenlink-relay";
/// Names the binary to test, where there is no cargo to build it.
const UNDER_TEST: &str = "LUMENLINK_RELAY_UNDER_TEST";

/// The binary `lumenlink-relay`, of the profile that the tests are built in and from the sources as they are now; that
/// which `LUMENLINK_RELAY_UNDER_TEST` names, if it is set.
///
/// # Panics
/// If cargo cannot build it.
#[must_use]
pub fn relay() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| env::var_os(UNDER_TEST).map_or_else(build, PathBuf::from))
}

/// Cargo tells a test where the binaries of its own package are, not those of others: it is asked to build this one,
/// which takes a moment if it is up to date. A program that was installed or built beside it takes its neighbour.
fn build() -> PathBuf {
    let this = env::current_exe().expect("a program knows where it is");
    let mut folders = this.ancestors().skip(1);
    let beside = folders.next().expect("a program is in a folder");
    if !beside.ends_with("deps") {
        return beside.join(NAME);
    }
    // target/PROFILE/deps/TEST
    let folder = folders
        .next()
        .expect("cargo puts tests two folders into its target folder");
    let target = folder.parent().expect("the target folder");
    let profile = match folder.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(profile) => profile,
    };
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml");
    let output = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--quiet", "--workspace", "--bin", NAME, "--profile", profile])
        .arg("--manifest-path")
        .arg(manifest)
        .arg("--target-dir")
        .arg(target)
        .output()
        .expect("cargo can be started");
    assert!(
        output.status.success(),
        "building {NAME}:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    folder.join(NAME)
}
