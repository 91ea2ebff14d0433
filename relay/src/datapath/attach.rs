//! Attaching the program to an interface: modes, the link, and pins that outlive the process.

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

/// How the pins of links begin; behind it is the kernel's index of the interface, since a name may have a dot, which
/// the BPF file system does not take.
const LINK: &str = "link-";
/// The pin of the only link, as it was called when there was one.
const FORMER_LINK: &str = "link";

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
        "{dir} was not made by a relay on {interfaces} ({found}): set another xdp.pin_dir, or remove the folder if \
         nothing uses it"
    )]
    ForeignPins {
        /// The pin directory.
        dir: PathBuf,
        /// What the relay is on.
        interfaces: String,
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
    pub fn open(dir: &Path, max_users: u32, interfaces: &[Interface]) -> Result<Self, AttachError> {
        make_folder(dir)?;
        let pins = Self::lock(dir)?;
        pins.check(max_users, interfaces)?;
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

    fn link_path(&self, ifindex: u32) -> PathBuf {
        link_pin(&self.dir, ifindex)
    }

    fn check(&self, max_users: u32, interfaces: &[Interface]) -> Result<(), AttachError> {
        let found = self.names()?;
        let names: Vec<_> = interfaces.iter().map(|interface| interface.name.as_str()).collect();
        let foreign = |found: String| AttachError::ForeignPins {
            dir: self.dir.clone(),
            interfaces: names.join(", "),
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
        if let Some(name) = found.iter().find(|name| !is_ours(name)) {
            return Err(foreign(format!("it holds `{name}`")));
        }
        self.check_links(&found, interfaces).map_err(foreign)?;
        for name in found.iter().filter(|name| !is_link(name)) {
            let data = MapData::from_pin(self.dir.join(name)).map_err(|error| foreign(error.to_string()))?;
            let info = data.info().map_err(|error| foreign(error.to_string()))?;
            let sized = [map::USERS, map::CLIENT_TAGS, map::DESTINATIONS].contains(&name.as_str());
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

    /// Whether one of the pinned links at least is on one of these interfaces, or all are on interfaces that are gone;
    /// says what they are otherwise.
    fn check_links(&self, names: &[String], interfaces: &[Interface]) -> Result<(), String> {
        let mut elsewhere = None;
        let mut is_own = false;
        for name in names.iter().filter(|name| is_link(name)) {
            let pinned = PinnedLink::from_pin(self.dir.join(name)).map_err(|error| error.to_string())?;
            let link = FdLink::from(pinned);
            let target = link_ifindex(&link).map_err(|error| error.to_string())?;
            let target = target.ok_or("its link is not an XDP link")?;
            let Some(interface) = interfaces.iter().find(|interface| interface.index == target) else {
                elsewhere = elsewhere.or((target != 0).then_some(target));
                continue;
            };
            // Indexes repeat across network namespaces; numbers of programs do not.
            let linked = link.info().map_err(|error| error.to_string())?.program_id();
            if interface.program.is_none_or(|attached| attached.id != linked) {
                return Err("its link is on an interface of another network namespace".to_owned());
            }
            is_own = true;
        }
        match elsewhere {
            Some(target) if !is_own => Err(format!("its link is on the interface with index {target}")),
            _ => Ok(()),
        }
    }

    /// Removes the pins of links to other interfaces than those with these indices, and so detaches the program from
    /// them.
    ///
    /// # Errors
    /// If a pin cannot be removed.
    pub fn keep_links(&self, indices: &[u32]) -> Result<(), AttachError> {
        let kept: Vec<_> = indices.iter().map(|index| self.link_path(*index)).collect();
        for name in self.names()?.iter().filter(|name| is_link(name)) {
            let path = self.dir.join(name);
            if !kept.contains(&path) {
                fs::remove_file(&path).map_err(pins_error("removing", &path))?;
            }
        }
        Ok(())
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
        if let Some(name) = names.iter().find(|name| !is_ours(name)) {
            return Err(AttachError::ForeignPins {
                dir: self.dir.clone(),
                interfaces: "an interface".to_owned(),
                found: format!("it holds `{name}`"),
            });
        }
        // The links first: without them nothing is attached, whatever happens to the rest.
        names.sort_by_key(|name| !is_link(name));
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

fn link_pin(dir: &Path, ifindex: u32) -> PathBuf {
    dir.join(format!("{LINK}{ifindex}"))
}

fn is_link(name: &str) -> bool {
    name == FORMER_LINK || name.starts_with(LINK)
}

fn is_ours(name: &str) -> bool {
    is_link(name) || PINNED_MAPS.contains(&name)
}

/// The kernel's number of the program that a relay left attached to the interface with this index by the pins in `dir`,
/// if there is one.
#[must_use]
pub fn pinned_program(dir: &Path, ifindex: u32) -> Option<u32> {
    let link = FdLink::from(PinnedLink::from_pin(link_pin(dir, ifindex)).ok()?);
    Some(link.info().ok()?.program_id())
}

/// Whether a folder is on a BPF file system.
#[must_use]
pub fn is_bpffs(dir: &Path) -> bool {
    statfs(dir).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC)
}

/// The program on one interface.
#[derive(Debug)]
pub struct Attachment {
    /// Holds the program on the interface; dropped, it detaches, unless the link is pinned.
    link: Option<XdpLink>,
    mode: XdpMode,
    interface: Interface,
    /// Where the link is pinned.
    pin: Option<PathBuf>,
    /// Whether the pinned link was there before.
    is_adopted: bool,
}

impl Attachment {
    /// The mode in force: native or generic.
    #[must_use]
    pub fn mode(&self) -> XdpMode {
        self.mode
    }

    /// What it is on, as it was when the program came there.
    #[must_use]
    pub fn interface(&self) -> &Interface {
        &self.interface
    }

    /// Takes the program off, unless it took the place of one that was there before: to undo a start that failed.
    pub fn undo(self) {
        if !self.is_adopted
            && let Err(error) = self.detach()
        {
            tracing::warn!("{error}");
        }
    }

    /// Takes the program off the interface.
    ///
    /// # Errors
    /// If the pin cannot be removed.
    pub fn detach(self) -> Result<(), AttachError> {
        match &self.pin {
            Some(pin) => fs::remove_file(pin).map_err(pins_error("removing", pin)),
            None => Ok(()),
        }
    }

    /// Attaches the program, or puts it on the pinned link in place of the one that is there, between two packets.
    ///
    /// # Errors
    /// See [`AttachError`]; what was attached before still is.
    pub fn new(
        program: &mut Xdp,
        interface: &Interface,
        mode: XdpMode,
        pins: Option<&Pins>,
    ) -> Result<Self, AttachError> {
        let name = interface.name.as_str();
        let pin = pins.map(|pins| pins.link_path(interface.index));
        if let Some(pin) = pin.as_ref().filter(|pin| pin.exists())
            && let Some((link, mode)) = adopt(program, interface, pin)?
        {
            return Ok(Self {
                link: Some(link),
                mode,
                interface: interface.clone(),
                pin: Some(pin.clone()),
                is_adopted: true,
            });
        }
        let (mut link, mode) = attach(program, name, interface.index, mode)?;
        if let Some(pin) = &pin {
            let unpinned = FdLink::try_from(link).map_err(link_failed(name))?;
            let pinned = unpinned.pin(pin).map_err(|error| AttachError::Pins {
                action: "pinning the link at",
                path: pin.clone(),
                source: io::Error::other(error),
            })?;
            link = XdpLink::try_from(FdLink::from(pinned)).map_err(link_failed(name))?;
        }
        Ok(Self {
            link: Some(link),
            mode,
            interface: interface.clone(),
            pin,
            is_adopted: false,
        })
    }

    /// Puts another program in place of the one that is attached, between two packets.
    ///
    /// # Errors
    /// If the kernel refuses; then the old one stays attached only if the link is pinned.
    pub fn replace(&mut self, program: &mut Xdp) -> Result<(), AttachError> {
        if let Some(link) = self.link.take() {
            self.link = Some(replace(program, link).map_err(program_failed(&self.interface.name, self.mode))?);
        }
        Ok(())
    }
}

/// Puts the program on a pinned link; `None`, and the pin removed, if the link's interface is gone.
fn adopt(program: &mut Xdp, interface: &Interface, pin: &Path) -> Result<Option<(XdpLink, XdpMode)>, AttachError> {
    let name = interface.name.as_str();
    let pinned = PinnedLink::from_pin(pin).map_err(link_failed(name))?;
    let link = FdLink::from(pinned);
    if link_ifindex(&link).map_err(pins_error("reading", pin))? != Some(interface.index) {
        fs::remove_file(pin).map_err(pins_error("removing", pin))?;
        return Ok(None);
    }
    let link = XdpLink::try_from(link).map_err(link_failed(name))?;
    let attached = Interface::read(name).ok().and_then(|interface| interface.program);
    let mode = attached.map_or(XdpMode::Native, |program| program.mode);
    let link = replace(program, link).map_err(program_failed(name, mode))?;
    Ok(Some((link, mode)))
}

fn program_failed(interface: &str, mode: XdpMode) -> impl FnOnce(ProgramError) -> AttachError + use<> {
    let interface = interface.to_owned();
    move |error| match os_error(&error) {
        Some(libc::ERANGE) => explain(&interface, mode, error),
        _ => AttachError::Failed {
            interface,
            source: error.into(),
        },
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
        // Nobody attaches a program for it.
        XdpMode::Userspace => &[],
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
