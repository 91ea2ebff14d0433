//! Anybody's XDP program, from its object file: loaded, with its maps as the object says, and attached to nothing.

mod guard;
mod sections;

use std::{
    fs,
    fs::File,
    io::{self, Read as _},
    panic,
    path::{Path, PathBuf},
    thread,
};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    programs::{ProgramError, Xdp},
};
use aya_obj::{Object as Parsed, ParseError, ProgramSection, maps::PinningType};
use lumenlink_relay::datapath::verifier;
use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

use self::{guard::guarded, sections::Hidden};
use crate::backend::kernel::missing_capabilities;

/// More than any object file of a BPF program.
const MAX_FILE_BYTES: u64 = 64 << 20;
/// What is wrong with a file of which no more can be said.
const CORRUPT: &str = "it is corrupt";
/// Where maps are pinned whose object says only that they are.
const BPFFS: &str = "/sys/fs/bpf";

/// Why a program could not be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ObjectError {
    /// The file cannot be read.
    #[error("reading the object file {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file is something else.
    #[error(
        "{path} is no BPF object file ({found}): give the ELF file that `clang -target bpf -c` or bpf-linker writes"
    )]
    NotAnObject {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        found: String,
    },
    /// The object has no such program.
    #[error("{path} has no program `{name}`: {there}")]
    NoProgram {
        /// The file.
        path: PathBuf,
        /// What was asked for.
        name: String,
        /// What the object has instead.
        there: String,
    },
    /// The program is of another kind.
    #[error("`{name}` in {path} is no XDP program but {kind}: {there}")]
    NotXdp {
        /// The file.
        path: PathBuf,
        /// The program.
        name: String,
        /// Its kind, by its section.
        kind: String,
        /// The object's XDP programs.
        there: String,
    },
    /// This process may not load programs.
    #[error("loading XDP programs needs {}: run as root", .0.join(" and "))]
    Capabilities(Vec<&'static str>),
    /// The object's maps cannot be made, or the program not be made ready.
    #[error("preparing {path}: {message}")]
    Prepare {
        /// The file.
        path: PathBuf,
        /// What was tried, and what the kernel said.
        message: String,
    },
    /// A file system for pinned maps could not be made.
    #[error("{path} pins its maps; making a BPF file system for them that goes away again: {source}; run as root")]
    Pins {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: Errno,
    },
    /// The verifier, or the kernel otherwise, refused the program.
    #[error("the kernel refused the program `{name}` of {path}: {reason}")]
    Refused {
        /// The file.
        path: PathBuf,
        /// The program.
        name: String,
        /// The error, and what matters of the verifier's log.
        reason: String,
    },
}

/// A program in the kernel.
#[derive(Debug)]
pub struct Object {
    ebpf: Ebpf,
    path: PathBuf,
    name: String,
}

impl Object {
    /// Loads the XDP program `name` from an object file. Maps are made afresh; pinned ones are too, and what they are
    /// pinned to is seen by nobody else.
    ///
    /// # Errors
    /// See [`ObjectError`]; nothing stays loaded.
    pub fn load(path: &Path, name: &str) -> Result<Self, ObjectError> {
        let (bytes, parsed) = open(path, name)?;
        let missing = missing_capabilities();
        if !missing.is_empty() {
            return Err(ObjectError::Capabilities(missing));
        }
        let mut object = Self {
            ebpf: load(path, &bytes, &parsed)?,
            path: path.to_owned(),
            name: name.to_owned(),
        };
        let loaded = object.program()?.load();
        loaded.map_err(|error| object.refused(error))?;
        Ok(object)
    }

    /// The program.
    ///
    /// # Errors
    /// None once loaded.
    pub fn program(&mut self) -> Result<&mut Xdp, ObjectError> {
        let program = self.ebpf.program_mut(&self.name);
        program
            .and_then(|program| program.try_into().ok())
            .ok_or_else(|| ObjectError::NoProgram {
                path: self.path.clone(),
                name: self.name.clone(),
                there: "it is gone".to_owned(),
            })
    }

    fn refused(&self, error: ProgramError) -> ObjectError {
        let reason = match error {
            ProgramError::LoadError { io_error, verifier_log } => {
                verifier::explain(&io_error, &verifier_log.to_string())
            }
            other => chain(&other),
        };
        ObjectError::Refused {
            path: self.path.clone(),
            name: self.name.clone(),
            reason,
        }
    }
}

/// Says whether an object file has an XDP program `name`, without the kernel.
///
/// # Errors
/// If it has not, or is no object file; see [`ObjectError`].
pub fn check(path: &Path, name: &str) -> Result<(), ObjectError> {
    open(path, name).map(drop)
}

/// The file, as the loader takes it.
fn open(path: &Path, name: &str) -> Result<(Vec<u8>, Parsed), ObjectError> {
    let mut bytes = read(path)?;
    let hidden = sections::adapt(&mut bytes).map_err(|found| not_an_object(path, found))?;
    let parsed = parse(path, &bytes)?;
    find(path, &parsed, &hidden, name)?;
    Ok((bytes, parsed))
}

fn read(path: &Path) -> Result<Vec<u8>, ObjectError> {
    let failed = |source| ObjectError::Read {
        path: path.to_owned(),
        source,
    };
    // A pipe or a device would keep its reader waiting.
    let kind = fs::metadata(path).map_err(failed)?;
    if !kind.is_file() {
        return Err(failed(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a regular file",
        )));
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(not_an_object(path, format!("more than {} MiB", MAX_FILE_BYTES >> 20)));
    }
    Ok(bytes)
}

fn parse(path: &Path, bytes: &[u8]) -> Result<Parsed, ObjectError> {
    let parsed = guarded(|| Parsed::parse(bytes)).ok_or_else(|| not_an_object(path, CORRUPT.to_owned()))?;
    parsed.map_err(|error| match error {
        ParseError::ElfError(error) => not_an_object(path, error.to_string()),
        other => not_an_object(path, chain(&other)),
    })
}

fn not_an_object(path: &Path, found: String) -> ObjectError {
    let path = path.to_owned();
    ObjectError::NotAnObject { path, found }
}

/// Fails unless the object has an XDP program of this name.
fn find(path: &Path, parsed: &Parsed, hidden: &[Hidden], name: &str) -> Result<(), ObjectError> {
    let (path, name, there) = (path.to_owned(), name.to_owned(), xdp_programs(parsed));
    let hidden = hidden.iter().find(|hidden| hidden.program == name);
    let kind = match parsed.programs.get(&name).map(|program| &program.section) {
        Some(ProgramSection::Xdp { .. }) => return Ok(()),
        Some(other) => Some(kind(other)),
        None => hidden.map(|hidden| format!("one for `{}`", hidden.section)),
    };
    Err(match kind {
        None => ObjectError::NoProgram { path, name, there },
        Some(kind) => ObjectError::NotXdp {
            path,
            name,
            kind,
            there,
        },
    })
}

fn xdp_programs(parsed: &Parsed) -> String {
    let programs = parsed.programs.iter();
    let mut names: Vec<String> = programs
        .filter(|(_, program)| matches!(program.section, ProgramSection::Xdp { .. }))
        .map(|(name, _)| format!("`{name}`"))
        .collect();
    names.sort();
    match names.as_slice() {
        [] => "it has no XDP program (one in a section called `xdp`)".to_owned(),
        [one] => format!("its XDP program is {one}"),
        several => format!("its XDP programs are {}", several.join(", ")),
    }
}

/// What kind of program a section makes, as its name in aya has it: `SchedClassifier`.
fn kind(section: &ProgramSection) -> String {
    let text = format!("{section:?}");
    let name = text.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
    format!("a {name}")
}

fn load(path: &Path, bytes: &[u8], parsed: &Parsed) -> Result<Ebpf, ObjectError> {
    let prepare = || {
        EbpfLoader::new()
            .load(bytes)
            .map_err(|error: EbpfError| ObjectError::Prepare {
                path: path.to_owned(),
                message: chain(&error),
            })
    };
    if parsed.maps.values().all(|map| map.pinning() == PinningType::None) {
        return prepare();
    }
    // A file system belongs to a thread's view of them, and is unmounted with the last such view.
    thread::scope(|scope| {
        let inside = scope.spawn(|| {
            private_bpffs().map_err(|source| ObjectError::Pins {
                path: path.to_owned(),
                source,
            })?;
            prepare()
        });
        inside.join().unwrap_or_else(|panicked| panic::resume_unwind(panicked))
    })
}

/// A BPF file system that only this thread sees.
fn private_bpffs() -> Result<(), Errno> {
    const NONE: Option<&str> = None;
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)?;
    mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), NONE)
}

/// An error with its causes. Some of aya's say nothing without them.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.ends_with(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    text
}
