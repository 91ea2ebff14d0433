//! Loading the XDP program into the kernel.

use std::path::{Path, PathBuf};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    programs::{ProgramError, Xdp},
};
use relay_ebpf::layout::{self, SaltEntry, Settings, map};
use zerocopy::IntoBytes as _;

use super::{
    maps::{Maps, MapsError},
    preflight, verifier,
};

/// The XDP program, as it was built with this binary.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/relay-xdp"));

/// Every map that is pinned together with the program.
pub const PINNED_MAPS: [&str; 13] = [
    map::USERS,
    map::SALTS,
    map::CLIENT_TAGS,
    map::DESTINATIONS,
    map::DOWN_LIMITS,
    map::DESTINATION_LIMITS,
    map::CONTROL,
    map::BLOCKLIST,
    map::COUNTERS,
    map::LATENCY,
    map::EVENTS,
    map::TX_PORTS,
    map::LAYOUT,
];

/// Why the program could not be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// Capabilities are missing, and the kernel was not even asked.
    #[error(
        "missing: {missing}: run as root, or grant them, for example with \
         `setcap cap_bpf,cap_net_admin,cap_perfmon+ep` on the binary"
    )]
    Capabilities {
        /// Which, and what for.
        missing: String,
    },
    /// EPERM.
    #[error(
        "loading the XDP program needs the capabilities CAP_BPF and CAP_NET_ADMIN (and CAP_PERFMON): run as root, or \
         grant them, for example with `setcap cap_bpf,cap_net_admin,cap_perfmon+ep` on the binary"
    )]
    Permission,
    /// The verifier, or the kernel otherwise, refused the program.
    #[error("the kernel refused the XDP program: {summary}")]
    Refused {
        /// The error and the lines of the verifier's log that matter.
        summary: String,
    },
    /// The object could not be read or its maps not be created.
    #[error("preparing the XDP program: {0}")]
    Object(#[source] EbpfError),
    /// The object lacks something.
    #[error("the XDP object has no program `{name}`: it was not built from this version's sources")]
    NoProgram {
        /// The program.
        name: &'static str,
    },
    /// A map cannot be used.
    #[error(transparent)]
    Maps(#[from] MapsError),
}

/// What to load the program with.
#[derive(Clone, Debug)]
pub struct LoadOptions<'a> {
    /// The load-time globals; `max_users` and `max_destinations` size the maps.
    pub settings: Settings,
    /// The folder on a bpffs whose pinned maps are reused, or in which new ones are pinned.
    pub pins: Option<&'a Path>,
}

/// The program in the kernel, not attached to anything, and its maps.
pub struct Loaded {
    ebpf: Ebpf,
    /// The maps.
    pub maps: Maps,
}

impl Loaded {
    /// Loads the embedded program.
    ///
    /// # Errors
    /// See [`LoadError`]; nothing stays loaded.
    pub fn new(options: &LoadOptions<'_>) -> Result<Self, LoadError> {
        Self::from_object(OBJECT, options)
    }

    /// Loads the program from this ELF object.
    ///
    /// # Errors
    /// See [`LoadError`]; nothing stays loaded.
    pub fn from_object(object: &[u8], options: &LoadOptions<'_>) -> Result<Self, LoadError> {
        require_capabilities()?;
        let settings = &options.settings;
        let mut loader = EbpfLoader::new();
        // The program touches no structure of the kernel's whose layout it would have to be told.
        loader.btf(None);
        loader
            .override_global(layout::SETTINGS_GLOBAL, settings.as_bytes(), true)
            .map_max_entries(map::USERS, settings.max_users)
            .map_max_entries(map::SALTS, SaltEntry::count(settings.max_users))
            .map_max_entries(map::CLIENT_TAGS, settings.max_users)
            .map_max_entries(map::DESTINATIONS, settings.max_destinations)
            .map_max_entries(map::DOWN_LIMITS, settings.max_users)
            .map_max_entries(map::DESTINATION_LIMITS, settings.max_destinations);
        if let Some(pins) = options.pins {
            for name in PINNED_MAPS {
                loader.map_pin_path(name, PathBuf::from(pins).join(name));
            }
        }
        let mut ebpf = loader.load(object).map_err(explain_load)?;
        for name in [layout::CLOCK_PROGRAM, layout::PROGRAM] {
            program(&mut ebpf, name)?.load().map_err(explain_program)?;
        }
        let maps = Maps::take(&mut ebpf, settings.max_users, settings.max_destinations)?;
        Ok(Self { ebpf, maps })
    }

    /// The relay's program.
    ///
    /// # Errors
    /// None once loaded.
    pub fn program(&mut self) -> Result<&mut Xdp, LoadError> {
        program(&mut self.ebpf, layout::PROGRAM)
    }

    /// The program that tells the time: see [`layout::CLOCK_PROGRAM`].
    ///
    /// # Errors
    /// None once loaded.
    pub fn clock(&mut self) -> Result<&mut Xdp, LoadError> {
        program(&mut self.ebpf, layout::CLOCK_PROGRAM)
    }
}

/// What the kernel says without them depends on which one is missing and what was tried, and is no help.
///
/// # Errors
/// [`LoadError::Capabilities`].
pub(super) fn require_capabilities() -> Result<(), LoadError> {
    match preflight::missing_capabilities() {
        Some(missing) => Err(LoadError::Capabilities { missing }),
        None => Ok(()),
    }
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Xdp, LoadError> {
    let program = ebpf.program_mut(name).ok_or(LoadError::NoProgram { name })?;
    program.try_into().map_err(|_| LoadError::NoProgram { name })
}

fn explain_load(error: EbpfError) -> LoadError {
    if is_permission(&error) {
        LoadError::Permission
    } else {
        LoadError::Object(error)
    }
}

fn explain_program(error: ProgramError) -> LoadError {
    match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            let log = verifier_log.to_string();
            // Without privileges the kernel does not even look at the program; EPERM with a log is the verifier's.
            if io_error.raw_os_error() == Some(libc::EPERM) && log.trim().is_empty() {
                return LoadError::Permission;
            }
            LoadError::Refused {
                summary: verifier::explain(&io_error, &log),
            }
        }
        other if is_permission(&other) => LoadError::Permission,
        other => LoadError::Refused {
            summary: other.to_string(),
        },
    }
}

/// Whether the cause of an error, however deep, is EPERM.
fn is_permission(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<std::io::Error>()
            && io.raw_os_error() == Some(libc::EPERM)
        {
            return true;
        }
        cause = error.source();
    }
    false
}
