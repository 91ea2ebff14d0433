//! The data plane in this process: the same decisions as the XDP program's, on what UDP sockets receive. It needs no
//! privileges and no interface, and is far slower; the kernel routes, reassembles and checks checksums.
//!
//! There is a socket for each listener and thread, and one for the egress port of each user that there is. A thread
//! waits for its listeners and its share of the users, makes of each datagram the frame that it came in (its headers
//! from what the socket tells, its payload where it was received), has [`relay_ebpf::process`] decide about it, and
//! sends what it became from the socket whose address it then bears.

mod batch;
mod counts;
mod engine;
mod frame;
mod prefixes;
mod socket;
mod worker;

use std::{
    collections::{HashMap, HashSet},
    io,
    net::SocketAddr,
    os::fd::AsFd,
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
        eventfd::{EfdFlags, EventFd},
    },
};
use relay_ebpf::{
    layout::{
        Control, DestinationEntry, DestinationLimitEntry, DownLimitEntry, DropEvent, Interface, Latency, NextHop,
        SaltEntry, Settings, SlotEntry,
    },
    verdict::Direction,
    wire::{Address, Mac, vlan::Tags},
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::mpsc;

pub use self::worker::{Station, Turn, Worker};
use self::{counts::Counts, engine::Engine, prefixes::Prefixes, socket::Socket, worker::Source};
use super::{
    Counter, DatapathError, InterfaceStatus, PublishedUser, blocklist,
    clock::Clock,
    events::Drops,
    numbers::Numbered,
    plane::{Plane, Tables},
    publish::Numbering,
};
use crate::config::{ANY_INTERFACE, Config, XdpMode};

/// No limit of the relay's own: the kernel knows what fits.
const MTU: u32 = u16::MAX as u32;
/// The MAC address of everybody: there are none between sockets. Not zero, which would be nobody's.
const MAC: Mac = Mac::new([2, 0, 0, 0, 0, 0]);

/// How much may wait in a listener, either way, if net.core.rmem_max and wmem_max allow it.
pub const LISTENER_BYTES: usize = 4 << 20;

/// Files that a relay has open besides its users' sockets, with room to spare: listeners, the store, the admin API.
const OTHER_FILES: u64 = 512;
/// Most threads; each has a buffer of 2 MiB.
const MOST_THREADS: usize = 16;
/// Sampled drops that may wait to be read.
const EVENTS: usize = 1024;
/// What is wrong with a port is said of this many users at most in a row.
const WARNINGS: usize = 8;

/// Why packets cannot be relayed by sockets.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UserspaceError {
    /// A listener's address or port cannot be had.
    #[error("listening on {address}: {source}{} (`listen` in relay.toml)", explanation(source))]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// More users than there can be sockets.
    #[error(
        "max_users is {max_users}, and in userspace mode each user takes a socket, but this process may have {files} \
         files open (RLIMIT_NOFILE): set max_users to at most {}, or raise the limit: LimitNOFILE= of a systemd unit, \
         `--ulimit nofile=` of a container, `ulimit -Hn`",
        files.saturating_sub(OTHER_FILES)
    )]
    Files {
        /// Slots.
        max_users: u32,
        /// The limit.
        files: u64,
    },
    /// The kernel refused something that it gives everybody.
    #[error("{action}: {source}")]
    System {
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

fn explanation(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => ": another process, perhaps another relay, has it",
        io::ErrorKind::AddrNotAvailable => ": this host has no such address",
        io::ErrorKind::PermissionDenied => ": a port below 1024 takes CAP_NET_BIND_SERVICE",
        _ => "",
    }
}

fn system(action: &'static str) -> impl FnOnce(Errno) -> UserspaceError {
    move |error| UserspaceError::System {
        action,
        source: error.into(),
    }
}

/// How many threads relay: one for each CPU.
#[must_use]
pub fn threads() -> usize {
    thread::available_parallelism().map_or(1, usize::from).min(MOST_THREADS)
}

/// How many users there can be sockets for, as far as this process's limit of open files may be raised.
#[must_use]
pub fn room() -> u32 {
    let most = files().maximum.unwrap_or(u64::MAX).saturating_sub(OTHER_FILES);
    u32::try_from(most).unwrap_or(u32::MAX)
}

fn files() -> Rlimit {
    getrlimit(Resource::Nofile)
}

/// Sockets, threads, and what they decide by.
pub struct UserspacePlane {
    engine: Arc<Engine>,
    epolls: Vec<Arc<Epoll>>,
    counts: Vec<Arc<Counts>>,
    stop: EventFd,
    segmentation: bool,
    threads: Vec<JoinHandle<()>>,
    events: mpsc::Sender<DropEvent>,
    drops: Option<mpsc::Receiver<DropEvent>>,
    /// Where users are whose egress sockets could not be opened, by slot.
    missing: HashMap<u32, SocketAddr>,
    /// None.
    interfaces: Numbered,
}

impl UserspacePlane {
    /// A data plane of so many threads with these settings, without users, that does not listen yet. Raises the limit of
    /// open files.
    ///
    /// # Errors
    /// See [`UserspaceError`].
    pub fn new(settings: Settings, threads: usize) -> Result<Self, UserspaceError> {
        raise_file_limit(settings.max_users)?;
        let stop = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(system("making an event descriptor"))?;
        let epoll = |_| {
            let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(system("making an epoll"))?;
            watch(&epoll, &stop, Source::Stop).map_err(system("watching an event descriptor"))?;
            Ok(Arc::new(epoll))
        };
        let epolls: Vec<_> = (0..threads).map(epoll).collect::<Result<_, _>>()?;
        let (events, drops) = mpsc::channel(EVENTS);
        Ok(Self {
            engine: Arc::new(Engine::new(without_icmp(settings))),
            counts: epolls.iter().map(|_| Arc::new(Counts::new())).collect(),
            epolls,
            stop,
            segmentation: true,
            threads: Vec::new(),
            events,
            drops: Some(drops),
            missing: HashMap::new(),
            interfaces: Numbered::default(),
        })
    }

    /// Makes it send each datagram as a message of its own.
    #[must_use]
    pub fn without_segmentation(mut self) -> Self {
        self.segmentation = false;
        self
    }

    /// Opens the listeners.
    ///
    /// # Errors
    /// If one of the addresses cannot be had; then none is open.
    pub fn listen(&mut self) -> Result<(), UserspaceError> {
        let addresses = listeners(&self.engine.live().settings);
        let opened = self.open_listeners(&addresses.into_iter().enumerate().collect::<Vec<_>>())?;
        self.engine.change().listeners = opened;
        Ok(())
    }

    /// What each of the threads is given.
    #[must_use]
    pub fn stations(&self) -> Vec<Station> {
        let parts = self.epolls.iter().zip(&self.counts).enumerate();
        parts
            .map(|(index, (epoll, counts))| Station {
                engine: self.engine.clone(),
                index,
                epoll: epoll.clone(),
                counts: counts.clone(),
                events: self.events.clone(),
                segmentation: self.segmentation,
            })
            .collect()
    }

    /// Where packets of the user in a slot leave from; none while its socket is not open.
    #[must_use]
    pub fn egress_address(&self, slot: u32) -> Option<SocketAddr> {
        self.engine.live().egress(slot).map(|socket| socket.address)
    }

    /// Sockets at the addresses of the listeners with these numbers, by thread.
    fn open_listeners(&self, wanted: &[(usize, SocketAddr)]) -> Result<Vec<Vec<Socket>>, UserspaceError> {
        let mut by_thread: Vec<Vec<Socket>> = self.epolls.iter().map(|_| Vec::new()).collect();
        for &(index, address) in wanted {
            let failed = |source| UserspaceError::Listen { address, source };
            let sockets = Socket::listeners(address, self.epolls.len()).map_err(failed)?;
            for ((socket, epoll), sockets) in sockets.into_iter().zip(&self.epolls).zip(&mut by_thread) {
                let source = Source::Listener(index as u32);
                watch(epoll, &socket, source).map_err(|error| failed(error.into()))?;
                sockets.push(socket);
            }
        }
        Ok(by_thread)
    }

    /// Opens egress sockets, and remembers those that could not be opened.
    fn open_egress(&mut self, wanted: Vec<(u32, SocketAddr)>) {
        let mut opened = Vec::with_capacity(wanted.len());
        let mut failed = 0;
        for (slot, address) in wanted {
            let epoll = &self.epolls[slot as usize % self.epolls.len()];
            let socket = Socket::egress(address).and_then(|socket| {
                watch(epoll, &socket, Source::Egress(slot))?;
                Ok(socket)
            });
            match socket {
                Ok(socket) => {
                    if self.missing.remove(&slot).is_some() {
                        tracing::info!(slot, %address, "egress port opened");
                    }
                    opened.push((slot, socket));
                }
                Err(error) => {
                    if self.missing.insert(slot, address) != Some(address) {
                        failed += 1;
                        warn(failed, slot, address, &error);
                    }
                }
            }
        }
        if failed > WARNINGS {
            tracing::warn!("and {} egress ports more", failed - WARNINGS);
        }
        let egress = &mut self.engine.change().egress;
        for (slot, socket) in opened {
            let slot = slot as usize;
            if egress.len() <= slot {
                egress.resize_with(slot + 1, || None);
            }
            egress[slot] = Some(socket);
        }
    }

    /// Closes the egress sockets of these slots.
    fn close_egress(&mut self, slots: impl IntoIterator<Item = u32>) {
        let mut live = self.engine.change();
        for slot in slots {
            self.missing.remove(&slot);
            if let Some(socket) = live.egress.get_mut(slot as usize) {
                *socket = None;
            }
        }
    }
}

fn warn(failed: usize, slot: u32, address: SocketAddr, error: &io::Error) {
    if failed > WARNINGS {
        return;
    }
    tracing::warn!(
        slot,
        %address,
        %error,
        "the user's egress port cannot be opened; its packets are dropped (destination_unresolved) until it can{}",
        match error.kind() {
            io::ErrorKind::AddrInUse =>
                ": another process has it; `sysctl net.ipv4.ip_local_reserved_ports=FIRST-LAST` keeps the kernel from \
                 giving away egress_ports",
            io::ErrorKind::AddrNotAvailable => ": this host has no such address (`egress` in relay.toml)",
            _ => "",
        }
    );
}

/// The listeners' addresses.
fn listeners(settings: &Settings) -> Vec<SocketAddr> {
    settings.listeners[..settings.listener_count as usize]
        .iter()
        .map(|listener| SocketAddr::new(listener.address.into(), listener.port.get()))
        .collect()
}

/// These settings where the kernel routes: by what looks like one interface.
#[must_use]
pub fn of_host(mut settings: Settings) -> Settings {
    settings.interface_count = 1;
    settings.interfaces[0] = Interface {
        mac: MAC,
        index: 0,
        mtu: MTU,
    };
    settings
}

fn without_icmp(mut settings: Settings) -> Settings {
    settings.icmp_interval_ns = 0;
    settings
}

fn watch(epoll: &Epoll, what: &impl AsFd, source: Source) -> Result<(), Errno> {
    epoll.add(what.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, source.word()))
}

fn renumber(epoll: &Epoll, socket: &Socket, source: Source) -> Result<(), Errno> {
    epoll.modify(socket.as_fd(), &mut EpollEvent::new(EpollFlags::EPOLLIN, source.word()))
}

fn raise_file_limit(max_users: u32) -> Result<(), UserspaceError> {
    let limit = files();
    let most = limit.maximum.unwrap_or(u64::MAX);
    let needed = u64::from(max_users) + OTHER_FILES;
    if needed > most {
        return Err(UserspaceError::Files { max_users, files: most });
    }
    if limit.current.is_some_and(|current| current < needed) {
        let raised = Rlimit {
            current: Some(needed),
            ..limit
        };
        setrlimit(Resource::Nofile, raised).map_err(|error| UserspaceError::System {
            action: "raising the limit of open files (RLIMIT_NOFILE)",
            source: error.into(),
        })?;
    }
    Ok(())
}

impl Tables for UserspacePlane {
    fn slots(&self) -> &[SlotEntry] {
        &self.engine.slots
    }

    fn salts(&self) -> &[SaltEntry] {
        &self.engine.salts
    }

    fn destinations(&self) -> &[DestinationEntry] {
        &self.engine.destinations
    }

    fn down_limits(&self) -> &[DownLimitEntry] {
        &self.engine.down_limits
    }

    fn destination_limits(&self) -> &[DestinationLimitEntry] {
        &self.engine.destination_limits
    }

    fn control(&self) -> &Control {
        &self.engine.control
    }

    fn known_next_hop(&self) -> Option<NextHop> {
        Some(NextHop {
            mac: MAC,
            mtu: MTU as u16,
            interface: 0,
            tags: Tags::NONE,
        })
    }

    fn wait_for_packets_in_flight(&self) -> Result<(), rustix::io::Errno> {
        drop(self.engine.change());
        Ok(())
    }
}

impl Plane for UserspacePlane {
    fn clock(&mut self, _tick: Duration) -> Result<Clock, DatapathError> {
        Ok(Clock::monotonic())
    }

    fn start(&mut self) -> Result<(), DatapathError> {
        self.listen()?;
        for station in self.stations() {
            let run = move || {
                let mut worker = station.begin();
                loop {
                    match worker.turn(EpollTimeout::NONE) {
                        Ok(Turn::Again) => {}
                        Ok(Turn::Stop) => return,
                        Err(error) => return tracing::error!(%error, "a thread cannot wait for packets any more"),
                    }
                }
            };
            let thread = thread::Builder::new().name("datagrams".to_owned()).spawn(run);
            let thread = thread.map_err(|source| UserspaceError::System {
                action: "starting a thread",
                source,
            });
            self.threads.push(thread?);
        }
        Ok(())
    }

    fn not_running(&mut self) -> Option<&'static str> {
        let runs = !self.threads.is_empty() && !self.threads.iter().any(JoinHandle::is_finished);
        (!runs).then_some("the threads that relay do not run")
    }

    fn mode(&self) -> Option<XdpMode> {
        (!self.threads.is_empty()).then_some(XdpMode::Userspace)
    }

    fn interfaces(&self) -> &Numbered {
        &self.interfaces
    }

    fn interface_status(&mut self) -> Vec<InterfaceStatus> {
        vec![InterfaceStatus {
            name: ANY_INTERFACE.to_owned(),
            mode: self.mode(),
        }]
    }

    /// Opens new listeners before anything changes; those that stay keep their sockets. Egress sockets follow when users
    /// are published.
    fn reload(&mut self, _config: &Config, settings: Settings) -> Result<(), DatapathError> {
        let former = listeners(&self.engine.live().settings);
        let wanted = listeners(&settings);
        let new = wanted
            .iter()
            .enumerate()
            .filter(|(_, address)| !former.contains(address));
        let new: Vec<_> = new.map(|(index, address)| (index, *address)).collect();
        let mut opened = match self.threads.is_empty() {
            true => Vec::new(),
            false => self.open_listeners(&new)?,
        };
        let live = &mut *self.engine.change();
        live.settings = without_icmp(of_host(settings));
        for ((sockets, new), epoll) in live.listeners.iter_mut().zip(&mut opened).zip(&self.epolls) {
            let mut all = std::mem::take(sockets);
            all.append(new);
            for (index, address) in wanted.iter().enumerate() {
                let Some(at) = all.iter().position(|socket| socket.address == *address) else {
                    continue;
                };
                let socket = all.swap_remove(at);
                let source = Source::Listener(index as u32);
                renumber(epoll, &socket, source).map_err(system("watching a listener"))?;
                sockets.push(socket);
            }
        }
        Ok(())
    }

    fn retire_interfaces(&mut self) -> Result<(), DatapathError> {
        Ok(())
    }

    fn set_blocklist(&mut self, wanted: &HashMap<(Address, u32), u32>) -> Result<(), DatapathError> {
        let mut live = self.engine.change();
        live.blocklist = Prefixes::new(wanted);
        blocklist::renew_generation(&self.engine.control, wanted.is_empty());
        Ok(())
    }

    fn open(&mut self, users: &[PublishedUser], numbering: &Numbering) {
        let mut wanted = Vec::new();
        let mut moved = Vec::new();
        {
            let live = self.engine.live();
            for user in users {
                let (index, port) = numbering.egress(user.slot);
                let address = live.egress_address(user.to.is_ipv4(), index, port);
                let open = live.egress(user.slot).map(|socket| socket.address);
                if open.is_some() && open != address {
                    moved.push(user.slot);
                }
                if let Some(address) = address.filter(|address| open != Some(*address)) {
                    wanted.push((user.slot, address));
                }
            }
        }
        // All first: one may be where another was.
        self.close_egress(moved);
        self.open_egress(wanted);
    }

    fn close_others(&mut self, users: &[PublishedUser]) {
        let count = self.engine.live().egress.len();
        let mut unused = vec![true; count];
        for user in users {
            if let Some(unused) = unused.get_mut(user.slot as usize) {
                *unused = false;
            }
        }
        let slots = unused.into_iter().enumerate();
        let slots: Vec<u32> = slots
            .filter(|(_, unused)| *unused)
            .map(|(slot, _)| slot as u32)
            .collect();
        self.close_egress(slots);
        if !self.missing.is_empty() {
            let used: HashSet<u32> = users.iter().map(|user| user.slot).collect();
            self.missing.retain(|slot, _| used.contains(slot));
        }
    }

    fn close(&mut self, slot: u32) {
        self.close_egress([slot]);
    }

    fn retry(&mut self) {
        if !self.missing.is_empty() {
            self.open_egress(self.missing.iter().map(|(slot, address)| (*slot, *address)).collect());
        }
    }

    fn is_open(&self, slot: u32) -> bool {
        self.engine.live().egress(slot).is_some()
    }

    /// Whoever was sent a packet finds it counted.
    fn counters(&self) -> Result<Vec<Counter>, DatapathError> {
        drop(self.engine.change());
        Ok(counts::counters(&self.counts))
    }

    /// Sockets send no ICMP.
    fn answers(&self, _direction: Direction) -> Result<u64, DatapathError> {
        Ok(0)
    }

    fn latency(&self) -> Result<Latency, DatapathError> {
        Ok(counts::latency(&self.counts))
    }

    fn take_drops(&mut self) -> Option<Drops> {
        self.drops.take().map(Drops::of_channel)
    }

    fn stop(&mut self) -> Result<(), DatapathError> {
        // Level-triggered and never read: all threads see it.
        self.stop.write(1).map_err(system("waking the threads"))?;
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread that relays had panicked");
            }
        }
        let mut live = self.engine.change();
        live.listeners.clear();
        live.egress.clear();
        Ok(())
    }
}

impl Drop for UserspacePlane {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            tracing::warn!(%error, "the threads that relay could not be stopped");
        }
    }
}
