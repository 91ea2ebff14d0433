//! The kernel's side of the relay: loading, attaching, pinning and upgrading the XDP program, typed handles on its
//! maps, and the next hops of the destinations.

pub mod attach;
pub mod blocklist;
pub mod clock;
pub mod events;
pub mod interface;
pub mod maps;
pub mod mmap;
mod netdev;
mod netlink;
pub mod next_hops;
pub mod numbers;
pub mod preflight;
pub mod program;
pub mod publish;
pub mod verifier;

use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ipnet::IpNet;
use relay_ebpf::{
    admission::Client,
    host::HostMemory,
    layout::{Latency, Listener, NextHop, Settings, SlotEntry, option_carrier},
    platform::Memory as _,
    token,
    verdict::{Direction, Reason},
    wire::{Address, Be16},
};
use tokio::sync::Notify;

use self::{
    attach::{AttachError, Attachment, Pins},
    clock::{Clock, ClockError},
    events::Drops,
    interface::{Interface, InterfaceError},
    maps::{MapsError, Ports},
    next_hops::{NextHopError, NextHops, Targets},
    numbers::Numbered,
    program::{LoadError, LoadOptions, Loaded},
    publish::{Numbering, PublishError, Publisher},
};
use crate::config::{Carrier, Config, XdpMode};

/// Why the datapath could not start or change. Each message says what was tried and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DatapathError {
    /// The interface.
    #[error(transparent)]
    Interface(#[from] InterfaceError),
    /// Loading.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Attaching and pins.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// The clock.
    #[error(transparent)]
    Clock(#[from] ClockError),
    /// Publishing.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// The maps.
    #[error(transparent)]
    Maps(#[from] MapsError),
    /// Next hops.
    #[error(transparent)]
    NextHops(#[from] NextHopError),
}

/// A user as the program knows it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PublishedUser {
    /// Index of the user's entry; also fixes its egress address and port.
    pub slot: u32,
    /// The random part of the handle.
    pub salt: u32,
    /// SipHash key of the tag.
    pub key: [u8; 16],
    /// Destination.
    pub to: SocketAddr,
    /// Packets per second.
    pub rate: u32,
    /// Packets that may come at once.
    pub burst: u32,
    /// End of the grant.
    pub expires_at: Option<jiff::Timestamp>,
}

/// What the program recorded of a user.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct UserState {
    /// The client's current address, once it has sent a valid packet.
    pub client: Option<SocketAddr>,
    /// The newest packet number.
    pub newest: u64,
    /// Packets and bytes of payload relayed.
    pub uplink_packets: u64,
    /// Bytes of payload relayed uplink.
    pub uplink_bytes: u64,
    /// Packets relayed downlink.
    pub downlink_packets: u64,
    /// Bytes of payload relayed downlink.
    pub downlink_bytes: u64,
}

/// One counter, summed over CPUs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Counter {
    /// Direction of the packets.
    pub direction: Direction,
    /// Why they were treated so.
    pub reason: Reason,
    /// Packets.
    pub packets: u64,
    /// Bytes of the frames.
    pub bytes: u64,
}

/// What a full publication did.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct PublishReport {
    /// Users in the list.
    pub users: usize,
    /// Entries written because they were new or had another salt or key: their state was reset.
    pub written: usize,
    /// Entries whose state was kept.
    pub kept: usize,
    /// Entries cleared because their user is gone.
    pub removed: usize,
    /// How long it took.
    pub took: Duration,
}

/// The loaded and attached data plane of one relay. All methods take `&self`: it is shared by the admin API, the
/// metrics and the next-hop task.
pub struct Datapath {
    pins: Option<Pins>,
    published: Notify,
    interfaces_changed: Notify,
    inner: Mutex<Inner>,
}

struct Inner {
    loaded: Loaded,
    publisher: Publisher,
    interfaces: Numbered,
    /// One for each interface, once attached.
    attachments: Vec<Attachment>,
    wanted_mode: XdpMode,
}

/// An interface of the relay, and how it is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct InterfaceStatus {
    /// Its name.
    pub name: String,
    /// The mode in force; none while nothing of this relay's is attached to it.
    pub mode: Option<XdpMode>,
}

impl Datapath {
    /// Loads the program with this configuration, and adopts pinned maps or makes new ones. Nothing is attached yet:
    /// publish the users first, then [`attach`](Self::attach).
    ///
    /// # Errors
    /// See [`DatapathError`]; what another process attached or pinned is as it was.
    pub fn load(config: &Config, header_key: Option<[u8; 16]>) -> Result<Self, DatapathError> {
        let interfaces = read_interfaces(config)?;
        let tick = clock::tick()?;
        let pins = match config.xdp_persist {
            true => Some(Pins::open(&config.xdp_pin_dir, config.max_users, &interfaces)?),
            false => None,
        };
        let ports = match &pins {
            Some(pins) => maps::pinned_ports(pins.dir())?,
            None => Ports::default(),
        };
        let interfaces = Numbered::new(interfaces, &ports);
        let mut loaded = Loaded::new(&LoadOptions {
            settings: settings(config, &interfaces, header_key, tick),
            pins: pins.as_ref().map(Pins::dir),
        })?;
        add_ports(&mut loaded, &interfaces)?;
        let clock = Clock::read(loaded.clock()?, tick)?;
        let publisher = Publisher::adopt(&loaded.maps, numbering(config, tick), clock);
        let inner = Inner {
            loaded,
            publisher,
            interfaces,
            attachments: Vec::new(),
            wanted_mode: config.xdp_mode,
        };
        Ok(Self {
            pins,
            published: Notify::new(),
            interfaces_changed: Notify::new(),
            inner: Mutex::new(inner),
        })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // A panic elsewhere leaves the maps as they are, which every method copes with.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Attaches the program to every interface, or replaces the one on the pinned link; packets are relayed from here
    /// on.
    ///
    /// # Errors
    /// See [`AttachError`]; then it is on no interface that it was not on before.
    pub fn attach(&self) -> Result<(), DatapathError> {
        let inner = &mut *self.inner();
        let interfaces = inner.interfaces.clone();
        let mode = inner.wanted_mode;
        inner.attachments = attach_to(&mut inner.loaded, interfaces.iter(), mode, self.pins.as_ref())?;
        if let Some(pins) = &self.pins {
            let indices: Vec<_> = interfaces.iter().map(|(_, interface)| interface.index).collect();
            pins.keep_links(&indices)?;
        }
        inner.retire_ports()
    }

    /// The interfaces, in the order of their numbers, and whether the program that was attached to each still is: an
    /// interface may be gone, or somebody else have taken it off.
    #[must_use]
    pub fn interfaces(&self) -> Vec<InterfaceStatus> {
        let inner = &mut *self.inner();
        let program = inner.loaded.program().ok().and_then(|program| program.info().ok());
        let id = program.map(|program| program.id());
        let status = |interface: &Interface| {
            let found = Interface::read(&interface.name).ok().and_then(|found| found.program);
            let is_own = found.is_some_and(|attached| Some(attached.id) == id);
            let mut attachments = inner.attachments.iter();
            let attachment = attachments.find(|attachment| attachment.interface().index == interface.index);
            InterfaceStatus {
                name: interface.name.clone(),
                mode: attachment.filter(|_| is_own).map(Attachment::mode),
            }
        };
        inner
            .interfaces
            .iter()
            .map(|(_, interface)| status(interface))
            .collect()
    }

    /// Whether the program is attached to every interface.
    #[must_use]
    pub fn is_attached(&self) -> bool {
        self.interfaces().iter().all(|interface| interface.mode.is_some())
    }

    /// The mode in force, once attached; generic if it is on any of the interfaces.
    #[must_use]
    pub fn mode(&self) -> Option<XdpMode> {
        let inner = self.inner();
        let mut modes = inner.attachments.iter().map(Attachment::mode);
        let first = modes.next()?;
        Some(modes.find(|mode| *mode == XdpMode::Generic).unwrap_or(first))
    }

    /// Puts the program with another configuration in place of the running one, between two packets, on the same maps;
    /// attaches it to interfaces that are new, and takes it off those that the configuration has no more. `max_users`
    /// and `xdp` stay as they were at [`load`](Self::load). Publish all users afterwards.
    ///
    /// # Errors
    /// See [`DatapathError`]; then the running program goes on as it was.
    pub fn reload(&self, config: &Config, header_key: Option<[u8; 16]>) -> Result<(), DatapathError> {
        let tick = clock::tick()?;
        let found = read_interfaces(config)?;
        let inner = &mut *self.inner();
        let interfaces = Numbered::new(found, &inner.loaded.maps.ports()?);
        let settings = settings(config, &interfaces, header_key, tick);
        let mut loaded = inner.load_again(settings, self.pins.as_ref())?;
        if !inner.attachments.is_empty() {
            inner.move_to(&mut loaded, &interfaces, self.pins.as_ref())?;
        }
        inner.loaded = loaded;
        inner.publisher.renumber(numbering(config, tick));
        let changed = inner.interfaces.settings() != interfaces.settings();
        inner.interfaces = interfaces;
        if changed {
            self.interfaces_changed.notify_one();
        }
        inner.retire_ports()
    }

    /// Makes exactly `users` the published ones. State of users whose salt and key are unchanged is kept.
    ///
    /// # Errors
    /// See [`PublishError`].
    pub fn publish_all(&self, users: &[PublishedUser]) -> Result<PublishReport, DatapathError> {
        let Inner { loaded, publisher, .. } = &mut *self.inner();
        let report = publisher.publish_all(&loaded.maps, users)?;
        self.published.notify_one();
        Ok(report)
    }

    /// Publishes these users, replacing whoever had their slots.
    ///
    /// # Errors
    /// See [`PublishError`].
    pub fn publish(&self, users: &[PublishedUser]) -> Result<(), DatapathError> {
        let Inner { loaded, publisher, .. } = &mut *self.inner();
        publisher.publish(&loaded.maps, users)?;
        self.published.notify_one();
        Ok(())
    }

    /// Takes a user out: no packet finds it from now on.
    ///
    /// # Errors
    /// See [`PublishError`].
    pub fn remove(&self, slot: u32) -> Result<(), DatapathError> {
        let Inner { loaded, publisher, .. } = &mut *self.inner();
        Ok(publisher.remove(&loaded.maps, slot)?)
    }

    /// Publishes expiries again whenever the wall clock was set, until the future is dropped.
    ///
    /// # Errors
    /// If the clocks cannot be read.
    pub async fn follow_wall_clock(&self) -> Result<(), DatapathError> {
        let mut ahead_ns = clock::wall_ahead_ns()?;
        let mut ticks = tokio::time::interval(Duration::from_secs(1));
        loop {
            ticks.tick().await;
            let now_ahead_ns = clock::wall_ahead_ns()?;
            if (now_ahead_ns - ahead_ns).unsigned_abs() > clock::STEP.as_nanos() {
                tracing::info!("the wall clock was set: publishing expiries again");
                let Inner { loaded, publisher, .. } = &mut *self.inner();
                publisher.republish_expiries(&loaded.maps)?;
                ahead_ns = now_ahead_ns;
            }
        }
    }

    /// The recorded state of a slot; all zero for one that does not exist.
    #[must_use]
    pub fn user_state(&self, slot: u32) -> UserState {
        let inner = self.inner();
        let Some(SlotEntry { state, .. }) = inner.loaded.maps.slots().get(slot as usize) else {
            return UserState::default();
        };
        let client = Client::load(&HostMemory, state);
        UserState {
            client: client.map(|client| SocketAddr::new(client.address.into(), client.port.get())),
            newest: HostMemory.load(&state.newest),
            uplink_packets: HostMemory.load(&state.uplink_packets),
            uplink_bytes: HostMemory.load(&state.uplink_bytes),
            downlink_packets: HostMemory.load(&state.downlink_packets),
            downlink_bytes: HostMemory.load(&state.downlink_bytes),
        }
    }

    /// Whether the next hop towards `destination` is known.
    #[must_use]
    pub fn is_resolved(&self, destination: SocketAddr) -> bool {
        let inner = self.inner();
        let index = inner.publisher.destination(destination);
        let entry = index.and_then(|index| inner.loaded.maps.destinations().get(index as usize));
        entry.is_some_and(|entry| entry.next_hop(&HostMemory).is_some())
    }

    /// Destinations in use: how many there are, and how many of them are unresolved.
    #[must_use]
    pub fn destinations(&self) -> (usize, usize) {
        let inner = self.inner();
        let entries = inner.loaded.maps.destinations();
        inner
            .publisher
            .destinations()
            .fold((0, 0), |(all, unresolved), (_, index)| {
                let resolved = entries[index as usize].next_hop(&HostMemory).is_some();
                (all + 1, unresolved + usize::from(!resolved))
            })
    }

    /// Makes exactly `prefixes` the blocklist.
    ///
    /// # Errors
    /// If it is full; then part of the new prefixes are on it.
    pub fn set_blocklist(&self, prefixes: &[IpNet]) -> Result<(), DatapathError> {
        let wanted = blocklist::entries(prefixes);
        let maps = &mut self.inner().loaded.maps;
        let found = maps.blocked()?;
        if wanted == found && (wanted.is_empty() == (HostMemory.load(&maps.control().block_generation) == 0)) {
            return Ok(());
        }
        // What is spared first: an IPv6 prefix around it must not be there without it.
        let mut changed: Vec<_> = wanted
            .iter()
            .filter(|(key, value)| found.get(key) != Some(value))
            .collect();
        changed.sort_by_key(|(_, value)| **value);
        for ((address, length), value) in changed {
            maps.block(*address, *length, *value)?;
        }
        for (address, length) in found.keys().filter(|key| !wanted.contains_key(key)) {
            maps.unblock(*address, *length)?;
        }
        let generation = &maps.control().block_generation;
        let next = match wanted.is_empty() {
            true => 0,
            false => HostMemory.load(generation) % u64::from(u16::MAX) + 1,
        };
        HostMemory.store(generation, next);
        Ok(())
    }

    /// All counters, every direction and reason.
    ///
    /// # Errors
    /// If the kernel refuses to read the map.
    pub fn counters(&self) -> Result<Vec<Counter>, DatapathError> {
        Ok(self.inner().loaded.maps.counters()?)
    }

    /// ICMP messages that answered packets of this direction.
    ///
    /// # Errors
    /// If the kernel refuses to read the map.
    pub fn answers(&self, direction: Direction) -> Result<u64, DatapathError> {
        Ok(self.inner().loaded.maps.answers(direction)?)
    }

    /// The latency histogram.
    ///
    /// # Errors
    /// If the kernel refuses to read the map.
    pub fn latency(&self) -> Result<Latency, DatapathError> {
        Ok(self.inner().loaded.maps.latency()?)
    }

    /// The stream of sampled drops, once.
    #[must_use]
    pub fn drops(&self) -> Option<Drops> {
        let ring = self.inner().loaded.maps.take_events()?;
        Drops::new(ring)
            .inspect_err(|error| tracing::warn!(%error, "sampled drops cannot be read"))
            .ok()
    }

    /// Follows routes and neighbours until the future is dropped: resolves the destinations of published users, asks
    /// for unresolved ones, writes moved next hops.
    ///
    /// # Errors
    /// If the kernel ends the subscription.
    pub async fn follow_next_hops(&self) -> Result<(), DatapathError> {
        Ok(NextHops::follow(self).await?)
    }

    /// Detaches the program and removes the pins.
    ///
    /// # Errors
    /// If a pin cannot be removed.
    pub fn detach(&self) -> Result<(), DatapathError> {
        self.inner().attachments.clear();
        if let Some(pins) = &self.pins {
            pins.remove()?;
        }
        Ok(())
    }
}

impl Targets for Datapath {
    fn addresses(&self) -> HashSet<IpAddr> {
        self.inner().publisher.destinations().map(|(to, _)| to.ip()).collect()
    }

    fn set_next_hop(&self, address: IpAddr, hop: Option<NextHop>) {
        let inner = self.inner();
        let entries = inner.loaded.maps.destinations();
        for index in inner.publisher.entries(address) {
            entries[*index as usize].set_next_hop(&HostMemory, hop);
        }
    }

    fn published(&self) -> &Notify {
        &self.published
    }

    fn interfaces(&self) -> Numbered {
        self.inner().interfaces.clone()
    }

    fn interfaces_changed(&self) -> &Notify {
        &self.interfaces_changed
    }
}

impl Inner {
    /// Loads the program with other settings on the maps of the running one.
    fn load_again(&self, settings: Settings, pins: Option<&Pins>) -> Result<Loaded, DatapathError> {
        let load = |pins| {
            Loaded::new(&LoadOptions {
                settings,
                pins: Some(pins),
            })
            .map_err(DatapathError::from)
        };
        if let Some(pins) = pins {
            return load(pins.dir());
        }
        let dir = attach::passing_folder()?;
        let pinned = self.loaded.maps.pin(&dir).map_err(DatapathError::from);
        let loaded = pinned.and_then(|()| load(&dir));
        Pins::remove_unused(&dir)?;
        loaded
    }

    /// Puts a newly loaded program on these interfaces: first on the new ones, where an error changes nothing, then in
    /// place of the one that runs; off the others.
    fn move_to(
        &mut self,
        loaded: &mut Loaded,
        interfaces: &Numbered,
        pins: Option<&Pins>,
    ) -> Result<(), DatapathError> {
        let is_kept = |index: u32| interfaces.iter().any(|(_, kept)| kept.index == index);
        let has =
            |attachments: &[Attachment], index: u32| attachments.iter().any(|held| held.interface().index == index);
        add_ports(loaded, interfaces)?;
        let new = interfaces
            .iter()
            .filter(|(_, interface)| !has(&self.attachments, interface.index));
        let added = attach_to(loaded, new, self.wanted_mode, pins)?;
        let (mut kept, removed): (Vec<_>, Vec<_>) = std::mem::take(&mut self.attachments)
            .into_iter()
            .partition(|attachment| is_kept(attachment.interface().index));
        let program = loaded.program()?;
        let replaced = kept.iter_mut().try_for_each(|attachment| attachment.replace(program));
        self.attachments = kept;
        if let Err(error) = replaced {
            self.attachments.extend(removed);
            added.into_iter().for_each(Attachment::undo);
            return Err(error.into());
        }
        self.attachments.extend(added);
        removed.into_iter().try_for_each(Attachment::detach)?;
        Ok(())
    }

    /// Forgets whatever the maps say of interfaces that the relay has no more: that packets can be sent by them, that
    /// next hops or clients are behind them.
    fn retire_ports(&mut self) -> Result<(), DatapathError> {
        let maps = &mut self.loaded.maps;
        let ports = maps.ports()?;
        let numbers = (0..).zip(ports);
        let retired: Vec<u8> = numbers
            .filter(|(number, port)| *port != 0 && *port != self.interfaces.index(*number))
            .map(|(number, _)| number)
            .collect();
        if retired.is_empty() {
            return Ok(());
        }
        for entry in maps.destinations() {
            if entry
                .next_hop(&HostMemory)
                .is_some_and(|hop| retired.contains(&hop.interface))
            {
                entry.set_next_hop(&HostMemory, None);
            }
        }
        // A packet that came in by one of them may still be about to say that its client is there.
        publish::wait_for_packets_in_flight()?;
        for number in &retired {
            maps.slots()
                .iter()
                .for_each(|slot| Client::forget(&HostMemory, &slot.state, *number));
            maps.set_port(*number, 0)?;
        }
        Ok(())
    }
}

fn read_interfaces(config: &Config) -> Result<Vec<Interface>, InterfaceError> {
    config.interfaces.iter().map(|name| Interface::read(name)).collect()
}

/// Lets the program send by these interfaces.
fn add_ports(loaded: &mut Loaded, interfaces: &Numbered) -> Result<(), MapsError> {
    let mut all = interfaces.iter();
    all.try_for_each(|(number, interface)| loaded.maps.set_port(number, interface.index))
}

/// Attaches the program to all of these interfaces, or to none.
fn attach_to<'a>(
    loaded: &mut Loaded,
    interfaces: impl Iterator<Item = (u8, &'a Interface)>,
    mode: XdpMode,
    pins: Option<&Pins>,
) -> Result<Vec<Attachment>, DatapathError> {
    let program = loaded.program()?;
    let mut attached: Vec<Attachment> = Vec::new();
    for (_, interface) in interfaces {
        match Attachment::new(program, interface, mode, pins) {
            Ok(attachment) => attached.push(attachment),
            Err(error) => {
                attached.into_iter().for_each(Attachment::undo);
                return Err(error.into());
            }
        }
    }
    Ok(attached)
}

/// Detaches what a relay left attached and pinned in `dir`, without it. Returns whether there was anything.
///
/// # Errors
/// See [`AttachError`].
pub fn detach_pins(dir: &Path) -> Result<bool, AttachError> {
    Pins::remove_unused(dir)
}

fn egress_ports(config: &Config) -> u32 {
    u32::from(config.last_egress_port) - u32::from(config.first_egress_port) + 1
}

fn numbering(config: &Config, tick: Duration) -> Numbering {
    let v4_addresses = config.egress.iter().filter(|address| address.is_ipv4()).count() as u32;
    Numbering {
        first_port: config.first_egress_port,
        ports: egress_ports(config),
        v4_addresses,
        v6_addresses: config.egress.len() as u32 - v4_addresses,
        tick_ns: tick.as_nanos() as u64,
    }
}

fn settings(config: &Config, interfaces: &Numbered, header_key: Option<[u8; 16]>, tick: Duration) -> Settings {
    let numbering = numbering(config, tick);
    let (interfaces, interface_count) = interfaces.settings();
    let mut settings = Settings {
        tick_ns: numbering.tick_ns,
        relay_id: config.relay_id,
        max_users: config.max_users,
        max_destinations: config.max_users,
        listener_count: config.listen.len() as u32,
        egress_v4_count: numbering.v4_addresses,
        egress_v6_count: numbering.v6_addresses,
        first_egress_port: u32::from(config.first_egress_port),
        egress_ports: numbering.ports,
        drop_unmatched: u32::from(config.drop_unmatched),
        latency_sample: config.latency_sample,
        event_sample: config.drop_sample,
        option_carrier: match config.carriers[..] {
            [Carrier::IpOption] => option_carrier::ALONE,
            _ if config.carriers.contains(&Carrier::IpOption) => option_carrier::ALSO,
            _ => option_carrier::OFF,
        },
        interface_count,
        interfaces,
        ..Settings::default().with_icmp_limit(config.icmp_per_second)
    };
    for (listener, endpoint) in settings.listeners.iter_mut().zip(&config.listen) {
        *listener = Listener {
            header_key: header_key.map_or([0; 2], |key| token::key(&key)),
            address: endpoint.ip().into(),
            port: Be16::new(endpoint.port()),
            protected: u8::from(header_key.is_some()),
            ..Listener::default()
        };
    }
    let of_family = |v4: bool| config.egress.iter().filter(move |address| address.is_ipv4() == v4);
    for (slot, address) in settings.egress_v4.iter_mut().zip(of_family(true)) {
        *slot = Address::from(*address);
    }
    for (slot, address) in settings.egress_v6.iter_mut().zip(of_family(false)) {
        *slot = Address::from(*address);
    }
    settings
}
