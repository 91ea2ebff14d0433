//! Embeds a BPF object in a crate, from its build script.
//!
//! Where the BPF toolchain is, the object is built from source by aya-build. Where it is not, the object that is
//! committed beside the crate is taken, if its sidecar says that it was built from exactly these sources; if they
//! differ, the build fails with the command that mends it. `LUMENLINK_BPF` chooses:
//!
//! | value | meaning |
//! |---|---|
//! | unset | from source if the toolchain is there, else the committed object |
//! | `source` | from source or fail; and fail if the committed object is stale |
//! | `prebuilt` | the committed object or fail |
//! | `update` | from source, and renew the committed object and its sidecar |
//!
//! The toolchain is `bpf-linker` and a Rust compiler with its library's source: the rustup toolchain named by
//! `LUMENLINK_BPF_TOOLCHAIN` or, unset, `lumenlink-bpf`, then `nightly`; without rustup, `rustc` itself.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{bail, ensure, Context as _, Result};
use aya_build::Toolchain;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

const MODE: &str = "LUMENLINK_BPF";
const TOOLCHAIN: &str = "LUMENLINK_BPF_TOOLCHAIN";
const TOOLCHAINS: [&str; 2] = ["lumenlink-bpf", "nightly"];
const FIX: &str =
    "run `ci/prebuilt` on a machine with the BPF toolchain (`ci/setup` installs it) and commit the result";

/// An object to embed. Paths are relative to the crate whose build script this is.
#[derive(Clone, Copy, Debug)]
pub struct Object<'a> {
    /// The package that holds the program.
    pub package: &'a str,
    /// Its folder.
    pub dir: &'a str,
    /// The binary in it, which is also the name of the object: `$OUT_DIR/<bin>`, `prebuilt/<bin>.o`.
    pub bin: &'a str,
    /// Features to build it with.
    pub features: &'a [&'a str],
    /// Folders of all packages whose sources go into it.
    pub sources: &'a [&'a str],
}

/// What the sidecar of a committed object says.
#[derive(Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
struct Sidecar {
    /// SHA-256 of the sources, names and contents.
    sources: String,
    /// SHA-256 of the object.
    object: String,
    /// `rustc --version` of the compiler.
    compiler: String,
    /// `bpf-linker --version`.
    linker: String,
}

/// Puts the object at `$OUT_DIR/<bin>`.
///
/// # Errors
/// If it cannot be built, or may not be taken from `prebuilt`; the message says what to do.
pub fn embed(object: Object<'_>) -> Result<()> {
    for name in [MODE, TOOLCHAIN, "PATH"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    println!("cargo:rerun-if-changed=prebuilt");
    for dir in object.sources {
        println!("cargo:rerun-if-changed={dir}");
    }
    let mode = env::var(MODE).unwrap_or_default();
    match mode.as_str() {
        "" => match find_toolchain() {
            Ok(toolchain) => build(object, &toolchain).map(|_| ()),
            Err(missing) => {
                println!(
                    "cargo:warning=embedding the committed {}: it cannot be built from source here ({missing:#})",
                    object.bin
                );
                take_prebuilt(object)
            }
        },
        "source" => {
            check_sources(object)?;
            build(object, &find_toolchain()?).map(|_| ())
        }
        "prebuilt" => take_prebuilt(object),
        "update" => update(object, &find_toolchain()?),
        other => bail!("{MODE}={other}: expected `source`, `prebuilt` or `update`, or unset it"),
    }
}

/// A compiler that can build for BPF; the name is rustup's, empty without rustup.
struct BpfToolchain {
    rustup: String,
    compiler: String,
    linker: String,
}

fn find_toolchain() -> Result<BpfToolchain> {
    let linker = output(Command::new("bpf-linker").arg("--version"))
        .context("no bpf-linker on PATH; `ci/setup` installs it, or see CONTRIBUTING.md")?;
    let named = env::var(TOOLCHAIN).ok();
    let names = named.as_deref().map_or(TOOLCHAINS.to_vec(), |name| vec![name]);
    if output(Command::new("rustup").arg("--version")).is_err() {
        let compiler = compiler_with_source(Command::new("rustc"))?;
        return Ok(BpfToolchain {
            rustup: String::new(),
            compiler,
            linker,
        });
    }
    let mut missing = None;
    for name in names {
        let mut rustc = Command::new("rustup");
        rustc.args(["run", name, "rustc"]);
        match compiler_with_source(rustc) {
            Ok(compiler) => {
                return Ok(BpfToolchain {
                    rustup: name.to_owned(),
                    compiler,
                    linker,
                })
            }
            Err(error) => missing = missing.or(Some(error)),
        }
    }
    Err(missing.unwrap_or_else(|| anyhow::anyhow!("no toolchain to try")))
}

/// The version of a compiler whose library source is installed, which `-Z build-std` needs.
fn compiler_with_source(mut rustc: Command) -> Result<String> {
    let described = format!("{rustc:?}").replace('"', "");
    // One call answers both: the version, and where the library would be.
    let sysroot = output(rustc.args(["--print", "sysroot"])).with_context(|| format!("no compiler `{described}`"))?;
    let library = Path::new(&sysroot).join("lib/rustlib/src/rust/library/core/Cargo.toml");
    ensure!(
        library.exists(),
        "`{described}` has no library source (no {})",
        library.display()
    );
    let mut version = Command::new(rustc.get_program());
    version.args(
        rustc
            .get_args()
            .filter(|argument| *argument != "--print" && *argument != "sysroot"),
    );
    output(version.arg("--version"))
}

fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

fn build(object: Object<'_>, toolchain: &BpfToolchain) -> Result<PathBuf> {
    // Names what build-std needs, and keeps the paths of this machine out of the object's debug information.
    env::set_var("RUSTC_BOOTSTRAP", "1");
    env::set_var("CARGO_UNSTABLE_TRIM_PATHS", "true");
    env::set_var("CARGO_PROFILE_RELEASE_TRIM_PATHS", "all");
    // aya-build turns every line that cargo prints into a warning.
    env::set_var("CARGO_TERM_QUIET", "true");
    let package = aya_build::Package {
        name: object.package,
        root_dir: object.dir,
        features: object.features,
        ..Default::default()
    };
    aya_build::build_ebpf([package], Toolchain::Custom(&toolchain.rustup))
        .with_context(|| format!("building {} with {}", object.bin, toolchain.compiler))?;
    let path = embedded(object);
    let stripped = strip(&fs::read(&path)?).with_context(|| format!("stripping {}", path.display()))?;
    fs::write(&path, stripped)?;
    Ok(path)
}

/// Leaves out DWARF, three quarters of the object, which the kernel does not read; what it shows comes from BTF.
fn strip(object: &[u8]) -> Result<Vec<u8>> {
    let mut builder = object::build::elf::Builder::read(object)?;
    for section in &mut builder.sections {
        let name = section.name.to_vec();
        section.delete = name.starts_with(b".debug") || name.starts_with(b".rel.debug");
    }
    builder.delete_orphans();
    // LLVM keeps the sections' names with the symbols'; the writer wants them by themselves.
    let names = builder.sections.add();
    names.name = b".shstrtab"[..].into();
    names.sh_type = object::elf::SHT_STRTAB;
    names.data = object::build::elf::SectionData::SectionString;
    let mut stripped = Vec::new();
    builder.write(&mut stripped)?;
    Ok(stripped)
}

fn take_prebuilt(object: Object<'_>) -> Result<()> {
    let sidecar = check_sources(object)?;
    let bytes = fs::read(prebuilt(object, "o")).context("reading the committed object")?;
    ensure!(
        hash(&bytes) == sidecar.object,
        "{} is not the object that its sidecar describes; {FIX}",
        prebuilt(object, "o").display()
    );
    fs::write(embedded(object), bytes).context("embedding the committed object")
}

/// Whether the committed object was built from the sources that are here.
fn check_sources(object: Object<'_>) -> Result<Sidecar> {
    let path = prebuilt(object, "toml");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}; {FIX}", path.display()))?;
    let sidecar: Sidecar = toml::from_str(&text).with_context(|| format!("in {}; {FIX}", path.display()))?;
    ensure!(
        sidecar.sources == hash_sources(object)?,
        "the committed {}.o was built from other sources than these; {FIX}",
        object.bin
    );
    Ok(sidecar)
}

fn update(object: Object<'_>, toolchain: &BpfToolchain) -> Result<()> {
    let bytes = fs::read(build(object, toolchain)?)?;
    let sidecar = Sidecar {
        sources: hash_sources(object)?,
        object: hash(&bytes),
        compiler: toolchain.compiler.clone(),
        linker: toolchain.linker.clone(),
    };
    fs::create_dir_all("prebuilt")?;
    fs::write(prebuilt(object, "o"), bytes)?;
    fs::write(prebuilt(object, "toml"), toml::to_string(&sidecar)?)?;
    Ok(())
}

fn embedded(object: Object<'_>) -> PathBuf {
    PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()).join(object.bin)
}

fn prebuilt(object: Object<'_>, extension: &str) -> PathBuf {
    Path::new("prebuilt").join(object.bin).with_extension(extension)
}

fn hash(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// A hash of everything in `sources` that the object depends on: manifests, build scripts and Rust files.
fn hash_sources(object: Object<'_>) -> Result<String> {
    let mut hasher = Sha256::new();
    for dir in object.sources {
        let mut files = vec![PathBuf::from("Cargo.toml"), PathBuf::from("build.rs")];
        list(Path::new(dir), Path::new("src"), &mut files)?;
        files.sort();
        for file in files {
            let text = fs::read(Path::new(dir).join(&file)).with_context(|| format!("reading {}", file.display()))?;
            hasher.update(file.to_string_lossy().as_bytes());
            hasher.update((text.len() as u64).to_le_bytes());
            hasher.update(&text);
        }
    }
    Ok(hex::encode(hasher.finalize()))
}

fn list(root: &Path, dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(root.join(dir)).with_context(|| format!("reading {}", root.join(dir).display()))? {
        let entry = entry?;
        let path = dir.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            list(root, &path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(())
}
