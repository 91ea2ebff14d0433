//! Attaching the program to its interface: modes, the link, and pins that outlive the process.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use aya::{
    maps::{MapData, MapError},
    programs::{
        ProgramError, Xdp, XdpMode as AyaMode,
        links::{FdLink, LinkError, PinnedLink},
        xdp::XdpLink,
    },
};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};
use relay_ebpf::layout::{LAYOUT_VERSION, map};

use super::{interface::Interface, program::PINNED_MAPS};
use crate::config::XdpMode;

/// The pin of the link.
const LINK: &str = "link";

/// Why the program could not be attached, or pins not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    /// Another program is there.
    #[error(
        "another XDP program is attached to {interface}: `ip link show {interface}` names it; detach it with \
         `ip link set {interface} xdp off`, or stop the program that holds it"
    )]
    Busy {
        /// The interface.
        interface: String,
    },
    /// The driver cannot.
    #[error(
        "{interface} cannot run XDP natively ({reason}): set xdp.mode = \"generic\" (slower), lower its MTU if it is \
         above what the driver takes, or use an interface whose driver has native XDP"
    )]
    NotNative {
        /// The interface.
        interface: String,
        /// What the kernel said.
        reason: io::Error,
    },
    /// Anything else.
    #[error("attaching the XDP program to {interface}: {source}")]
    Failed {
        /// The interface.
        interface: String,
        /// What the kernel said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The pin directory is not on a bpffs.
    #[error(
        "{dir} is not on a BPF file system, so nothing can be pinned there: mount one with `mount -t bpf bpf {mount}`, \
         or set xdp.pin_dir to a folder on one"
    )]
    NotBpffs {
        /// The pin directory.
        dir: PathBuf,
        /// Where to mount.
        mount: PathBuf,
    },
    /// A file operation on pins failed.
    #[error("{action} {path}: {source}")]
    Pins {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The pins hold what this build cannot use.
    #[error(
        "{dir} holds the maps of another version or configuration ({found}): run `lumenlink-relay detach` to remove \
         them (relaying stops until the next start, and replay windows and client addresses are forgotten), or set \
         another xdp.pin_dir"
    )]
    StalePins {
        /// The pin directory.
        dir: PathBuf,
        /// What does not fit.
        found: String,
    },
    /// A running relay uses the pins.
    #[error(
        "a running relay uses the pins in {dir}: end it first (SIGTERM, or `systemctl stop`), or set another \
         xdp.pin_dir"
    )]
    PinsInUse {
        /// The pin directory.
        dir: PathBuf,
    },
    /// The pins are somebody else's.
    #[error(
        "{dir} was not made by a relay on this interface ({found}): set another xdp.pin_dir, or remove the folder if \
         nothing uses it"
    )]
    ForeignPins {
        /// The pin directory.
        dir: PathBuf,
        /// What was found.
        found: String,
    },
}

/// A folder of pins, checked to be usable. No other process opens or removes it while this one has it.
#[derive(Debug)]
pub struct Pins {
    dir: PathBuf,
    /// On the folder; goes with the process, however that ends.
    _lock: Flock<File>,
}

impl Pins {
    /// Makes the folder if it is not there, and checks that what it holds is a relay's with this many slots.
    ///
    /// # Errors
    /// See [`AttachError`]; nothing was changed but for the folder having been made.
    pub fn open(dir: &Path, max_users: u32, interface: &Interface) -> Result<Self, AttachError> {
        make_folder(dir)?;
        let pins = Self::lock(dir)?;
        pins.check(max_users, interface)?;
        Ok(pins)
    }

    fn lock(dir: &Path) -> Result<Self, AttachError> {
        let folder = File::open(dir).map_err(pins_error("opening", dir))?;
        let lock = Flock::lock(folder, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| match error {
            Errno::EWOULDBLOCK => AttachError::PinsInUse { dir: dir.to_owned() },
            error => pins_error("locking", dir)(error.into()),
        })?;
        Ok(Self {
            dir: dir.to_owned(),
            _lock: lock,
        })
    }

    /// The folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn link_path(&self) -> PathBuf {
        self.dir.join(LINK)
    }

    fn check(&self, max_users: u32, interface: &Interface) -> Result<(), AttachError> {
        let found = self.names()?;
        let foreign = |found: String| AttachError::ForeignPins {
            dir: self.dir.clone(),
            found,
        };
        let stale = |found: String| AttachError::StalePins {
            dir: self.dir.clone(),
            found,
        };
        // First, since another layout may have other maps.
        if found.iter().any(|name| name == map::LAYOUT) {
            let layout = self.layout().map_err(|error| foreign(error.to_string()))?;
            if layout != LAYOUT_VERSION {
                return Err(stale(format!("layout {layout}, this build has {LAYOUT_VERSION}")));
            }
        }
        if let Some(name) = found
            .iter()
            .find(|name| *name != LINK && !PINNED_MAPS.contains(&name.as_str()))
        {
            return Err(foreign(format!("it holds `{name}`")));
        }
        if found.iter().any(|name| name == LINK) {
            self.check_link(interface).map_err(foreign)?;
        }
        for name in found.iter().filter(|name| *name != LINK) {
            let data = MapData::from_pin(self.dir.join(name)).map_err(|error| foreign(error.to_string()))?;
            let info = data.info().map_err(|error| foreign(error.to_string()))?;
            let sized = [map::USERS, map::DESTINATIONS].contains(&name.as_str());
            if sized && info.max_entries() != max_users {
                return Err(stale(format!("max_users was {}, is {max_users}", info.max_entries())));
            }
        }
        Ok(())
    }

    /// The layout that the pinned maps have.
    fn layout(&self) -> Result<u32, MapError> {
        let data = MapData::from_pin(self.dir.join(map::LAYOUT))?;
        aya::maps::Array::<_, u32>::try_from(aya::maps::Map::Array(data))?.get(&0, 0)
    }

    /// Whether the pinned link is on this interface, or on one that is gone; says what it is otherwise.
    fn check_link(&self, interface: &Interface) -> Result<(), String> {
        let pinned = PinnedLink::from_pin(self.link_path()).map_err(|error| error.to_string())?;
        let link = FdLink::from(pinned);
        match link_ifindex(&link).map_err(|error| error.to_string())? {
            Some(0) => Ok(()),
            Some(target) if target != interface.index => {
                Err(format!("its link is on the interface with index {target}"))
            }
            Some(_) => {
                // Indexes repeat across network namespaces; numbers of programs do not.
                let linked = link.info().map_err(|error| error.to_string())?.program_id();
                match interface.program {
                    Some(attached) if attached.id == linked => Ok(()),
                    _ => Err("its link is on an interface of another network namespace".to_owned()),
                }
            }
            None => Err("its link is not an XDP link".to_owned()),
        }
    }

    fn names(&self) -> Result<Vec<String>, AttachError> {
        let entries = fs::read_dir(&self.dir).map_err(pins_error("reading", &self.dir))?;
        entries
            .map(|entry| {
                Ok(entry
                    .map_err(pins_error("reading", &self.dir))?
                    .file_name()
                    .to_string_lossy()
                    .into_owned())
            })
            .collect()
    }

    /// Removes the pins that no running relay uses, and so detaches the program that only they hold. Returns whether
    /// there was anything.
    ///
    /// # Errors
    /// If a pin cannot be removed, the folder holds what is not a relay's, or a running relay uses it.
    pub fn remove_unused(dir: &Path) -> Result<bool, AttachError> {
        if !dir.exists() {
            return Ok(false);
        }
        Self::lock(dir)?.remove()
    }

    /// Removes these pins; the program stays attached while something else holds it. Returns whether there were any.
    ///
    /// # Errors
    /// If a pin cannot be removed, or the folder holds what is not a relay's.
    pub fn remove(&self) -> Result<bool, AttachError> {
        let mut names = self.names()?;
        if let Some(name) = names
            .iter()
            .find(|name| *name != LINK && !PINNED_MAPS.contains(&name.as_str()))
        {
            return Err(AttachError::ForeignPins {
                dir: self.dir.clone(),
                found: format!("it holds `{name}`"),
            });
        }
        // The link first: without it nothing is attached, whatever happens to the rest.
        names.sort_by_key(|name| name != LINK);
        for name in &names {
            let path = self.dir.join(name);
            fs::remove_file(&path).map_err(pins_error("removing", &path))?;
        }
        fs::remove_dir(&self.dir).map_err(pins_error("removing", &self.dir))?;
        Ok(!names.is_empty())
    }
}

fn pins_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> AttachError + use<> {
    let path = path.to_owned();
    move |source| AttachError::Pins { action, path, source }
}

/// A folder on a bpffs of this process alone, to hand maps from one load of the program to the next.
///
/// # Errors
/// If there is no bpffs and none can be mounted.
pub fn passing_folder() -> Result<PathBuf, AttachError> {
    let dir = PathBuf::from(format!("/sys/fs/bpf/lumenlink-reload-{}", std::process::id()));
    make_folder(&dir)?;
    Ok(dir)
}

/// Makes the pin folder. Where its default parent `/sys/fs/bpf` has no bpffs yet, mounts it.
fn make_folder(dir: &Path) -> Result<(), AttachError> {
    const DEFAULT: &str = "/sys/fs/bpf";
    if dir.starts_with(DEFAULT) && !is_bpffs(Path::new(DEFAULT)) {
        let flags = nix::mount::MsFlags::MS_NOSUID | nix::mount::MsFlags::MS_NODEV | nix::mount::MsFlags::MS_NOEXEC;
        if let Err(error) = nix::mount::mount(Some("bpf"), DEFAULT, Some("bpf"), flags, Some("mode=700")) {
            tracing::warn!(%error, "mounting a BPF file system on {DEFAULT}");
        }
    }
    let existing = dir.ancestors().find(|folder| folder.exists()).unwrap_or(dir);
    if !is_bpffs(existing) {
        let mount = if dir.starts_with(DEFAULT) {
            Path::new(DEFAULT)
        } else {
            existing
        };
        return Err(AttachError::NotBpffs {
            dir: dir.to_owned(),
            mount: mount.to_owned(),
        });
    }
    fs::create_dir_all(dir).map_err(pins_error("making", dir))
}

/// The kernel's number of the program that a relay left attached by the pins in `dir`, if there is one.
#[must_use]
pub fn pinned_program(dir: &Path) -> Option<u32> {
    let link = FdLink::from(PinnedLink::from_pin(dir.join(LINK)).ok()?);
    Some(link.info().ok()?.program_id())
}

/// Whether a folder is on a BPF file system.
#[must_use]
pub fn is_bpffs(dir: &Path) -> bool {
    statfs(dir).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC)
}

/// The attached program.
#[derive(Debug)]
pub struct Attachment {
    /// Holds the program on the interface; dropped, it detaches, unless the link is pinned.
    link: Option<XdpLink>,
    mode: XdpMode,
}

impl Attachment {
    /// The mode in force: native or generic.
    #[must_use]
    pub fn mode(&self) -> XdpMode {
        self.mode
    }

    /// Attaches the program, or puts it on the pinned link in place of the one that is there, between two packets.
    ///
    /// # Errors
    /// See [`AttachError`]; what was attached before still is.
    pub fn new(
        program: &mut Xdp,
        interface: &str,
        ifindex: u32,
        mode: XdpMode,
        pins: Option<&Pins>,
    ) -> Result<Self, AttachError> {
        let failed = |error: ProgramError| AttachError::Failed {
            interface: interface.to_owned(),
            source: error.into(),
        };
        if let Some(pins) = pins
            && pins.link_path().exists()
        {
            let pinned = PinnedLink::from_pin(pins.link_path()).map_err(link_failed(interface))?;
            let link = FdLink::from(pinned);
            if link_ifindex(&link).map_err(pins_error("reading", &pins.link_path()))? == Some(ifindex) {
                let link = XdpLink::try_from(link).map_err(link_failed(interface))?;
                let link = replace(program, link).map_err(failed)?;
                let program = Interface::read(interface).ok().and_then(|interface| interface.program);
                let mode = program.map_or(XdpMode::Native, |program| program.mode);
                return Ok(Self { link: Some(link), mode });
            }
            // Its interface is gone, so the link holds nothing any more.
            fs::remove_file(pins.link_path()).map_err(pins_error("removing", &pins.link_path()))?;
        }
        let (link, mode) = attach(program, interface, ifindex, mode)?;
        let Some(pins) = pins else {
            return Ok(Self { link: Some(link), mode });
        };
        let link = FdLink::try_from(link).map_err(link_failed(interface))?;
        let pinned = link.pin(pins.link_path()).map_err(|error| AttachError::Pins {
            action: "pinning the link at",
            path: pins.link_path(),
            source: io::Error::other(error),
        })?;
        let link = XdpLink::try_from(FdLink::from(pinned)).map_err(link_failed(interface))?;
        Ok(Self { link: Some(link), mode })
    }

    /// Puts another program in place of the one that is attached, between two packets.
    ///
    /// # Errors
    /// If the kernel refuses; then the old one stays attached only if the link is pinned.
    pub fn replace(&mut self, program: &mut Xdp, interface: &str) -> Result<(), AttachError> {
        if let Some(link) = self.link.take() {
            let failed = |error: ProgramError| AttachError::Failed {
                interface: interface.to_owned(),
                source: error.into(),
            };
            self.link = Some(replace(program, link).map_err(failed)?);
        }
        Ok(())
    }
}

fn replace(program: &mut Xdp, link: XdpLink) -> Result<XdpLink, ProgramError> {
    let id = program.attach_to_link(link)?;
    program.take_link(id)
}

fn link_failed(interface: &str) -> impl FnOnce(LinkError) -> AttachError + use<> {
    let interface = interface.to_owned();
    move |error| AttachError::Failed {
        interface,
        source: error.into(),
    }
}

fn attach(program: &mut Xdp, interface: &str, ifindex: u32, mode: XdpMode) -> Result<(XdpLink, XdpMode), AttachError> {
    let modes: &[XdpMode] = match mode {
        XdpMode::Auto => &[XdpMode::Native, XdpMode::Generic],
        XdpMode::Native => &[XdpMode::Native],
        XdpMode::Generic => &[XdpMode::Generic],
    };
    let mut last = None;
    for mode in modes {
        let flags = if *mode == XdpMode::Generic {
            AyaMode::Skb
        } else {
            AyaMode::Driver
        };
        match program
            .attach_to_if_index(ifindex, flags)
            .and_then(|id| program.take_link(id))
        {
            Ok(link) => {
                if let Some(reason) = last {
                    tracing::warn!(interface, reason = %reason, "native XDP is not possible here: using generic mode, which is slower");
                }
                return Ok((link, *mode));
            }
            Err(source) => last = Some(explain(interface, *mode, source)),
        }
        if !matches!(last, Some(AttachError::NotNative { .. })) {
            break;
        }
    }
    Err(last.unwrap_or_else(|| AttachError::Busy {
        interface: interface.to_owned(),
    }))
}

fn explain(interface: &str, mode: XdpMode, source: ProgramError) -> AttachError {
    let interface = interface.to_owned();
    match os_error(&source) {
        Some(libc::EBUSY | libc::EEXIST) => AttachError::Busy { interface },
        Some(code) if mode == XdpMode::Native && is_unsupported(code) => AttachError::NotNative {
            interface,
            reason: io::Error::from_raw_os_error(code),
        },
        _ => AttachError::Failed {
            interface,
            source: source.into(),
        },
    }
}

/// What drivers answer that cannot, or not with this MTU, these queues or these features.
fn is_unsupported(code: i32) -> bool {
    [
        libc::EOPNOTSUPP,
        libc::ERANGE,
        libc::EINVAL,
        libc::ENOSPC,
        libc::E2BIG,
        libc::ENOSYS,
    ]
    .contains(&code)
}

fn os_error(error: &(dyn std::error::Error + 'static)) -> Option<i32> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(code) = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) {
            return Some(code);
        }
        cause = error.source();
    }
    None
}

/// The interface that an XDP link is on: 0 if it is gone, `None` if it is not an XDP link.
fn link_ifindex(link: &FdLink) -> io::Result<Option<u32>> {
    let id = link.info().map_err(io::Error::other)?.id();
    // The kernel tells it in the link's fdinfo (net/core/dev.c, bpf_xdp_link_show_fdinfo).
    for entry in fs::read_dir("/proc/self/fdinfo")? {
        let Ok(text) = fs::read_to_string(entry?.path()) else {
            continue;
        };
        let field = |name: &str| {
            text.lines().find_map(|line| {
                line.strip_prefix(name)?
                    .trim_start_matches(':')
                    .trim()
                    .parse::<u32>()
                    .ok()
            })
        };
        if field("link_id") == Some(id) {
            return Ok(field("ifindex"));
        }
    }
    Ok(None)
}
