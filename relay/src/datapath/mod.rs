//! The data plane and all that the relay does to it: publishing users, counting, reloading. It is either the XDP program
//! in the kernel (loading, attaching, pinning and upgrading it, typed handles on its maps, next hops of the
//! destinations), or sockets and threads of this process ([`userspace`]).

pub mod attach;
pub mod blocklist;
pub mod clock;
mod ethtool;
pub mod events;
pub mod interface;
pub mod maps;
pub mod mmap;
mod netdev;
mod netlink;
pub mod next_hops;
pub mod numbers;
pub mod plane;
pub mod preflight;
pub mod program;
pub mod publish;
pub mod userspace;
pub mod verifier;
mod vlans;
mod xdp;

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
use tokio::{sync::Notify, time::timeout};

use self::{
    attach::{AttachError, Pins},
    clock::ClockError,
    events::Drops,
    interface::InterfaceError,
    maps::MapsError,
    next_hops::{Links, NextHopError, NextHops, Targets},
    numbers::Numbered,
    plane::Plane,
    program::LoadError,
    publish::{Numbering, PublishError, Publisher},
    userspace::{UserspaceError, UserspacePlane},
    xdp::XdpPlane,
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
    /// Sockets and threads of this process.
    #[error(transparent)]
    Userspace(#[from] UserspaceError),
}

/// So many packets a second, and so many at once.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RateLimit {
    /// Packets per second.
    pub rate: u32,
    /// Packets that may come at once.
    pub burst: u32,
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
    /// The limit of its downlink; none for as many packets as come.
    pub down_limit: Option<RateLimit>,
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

/// How often is tried again what could not be got ready for a user.
const RETRY: Duration = Duration::from_secs(1);

/// The data plane of one relay. All methods take `&self`: it is shared by the admin API, the metrics and the tasks that
/// follow the kernel.
pub struct Datapath {
    published: Notify,
    links_changed: Notify,
    inner: Mutex<Inner>,
}

struct Inner {
    plane: Box<dyn Plane>,
    publisher: Publisher,
    /// What the configuration says of the way to destinations.
    links: Links,
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
    /// Makes the data plane that this configuration asks for: loads the program, and adopts pinned maps or makes new
    /// ones; or makes entries in this process. Nothing is relayed yet: publish the users first, then
    /// [`attach`](Self::attach).
    ///
    /// # Errors
    /// See [`DatapathError`]; what another process attached or pinned is as it was.
    pub fn load(config: &Config, header_key: Option<[u8; 16]>) -> Result<Self, DatapathError> {
        let tick = clock::tick()?;
        let settings = settings(config, header_key, tick);
        let mut plane: Box<dyn Plane> = match config.xdp_mode {
            XdpMode::Userspace => Box::new(UserspacePlane::new(userspace::of_host(settings), userspace::threads())?),
            _ => Box::new(XdpPlane::load(config, settings)?),
        };
        let clock = plane.clock(tick)?;
        let publisher = Publisher::adopt(&*plane, numbering(config, tick), clock);
        Ok(Self {
            published: Notify::new(),
            links_changed: Notify::new(),
            inner: Mutex::new(Inner {
                plane,
                publisher,
                links: Links::of(config),
            }),
        })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // A panic elsewhere leaves the entries as they are, which every method copes with.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Attaches the program to every interface, or replaces the one on the pinned link; or opens the listeners. Packets
    /// are relayed from here on.
    ///
    /// # Errors
    /// See [`AttachError`] and [`UserspaceError`]; then the program is on no interface that it was not on before.
    pub fn attach(&self) -> Result<(), DatapathError> {
        self.inner().plane.start()
    }

    /// The interfaces, in the order of their numbers, and whether the program that was attached to each still is: an
    /// interface may be gone, or somebody else have taken it off.
    #[must_use]
    pub fn interfaces(&self) -> Vec<InterfaceStatus> {
        self.inner().plane.interface_status()
    }

    /// Why no packets are relayed; none while they are.
    #[must_use]
    pub fn not_running(&self) -> Option<&'static str> {
        self.inner().plane.not_running()
    }

    /// The mode in force, once attached; generic if it is on any of the interfaces.
    #[must_use]
    pub fn mode(&self) -> Option<XdpMode> {
        self.inner().plane.mode()
    }

    /// Puts another configuration in place of the running one, between two packets, with the same users; attaches the
    /// program to interfaces that are new, and takes it off those that the configuration has no more. `max_users` and
    /// `xdp` stay as they were at [`load`](Self::load). Publish all users afterwards.
    ///
    /// # Errors
    /// See [`DatapathError`]; then what runs goes on as it was.
    pub fn reload(&self, config: &Config, header_key: Option<[u8; 16]>) -> Result<(), DatapathError> {
        let tick = clock::tick()?;
        let Inner {
            plane,
            publisher,
            links,
        } = &mut *self.inner();
        let former = (plane.interfaces().settings(), links.clone());
        plane.reload(config, settings(config, header_key, tick))?;
        publisher.renumber(numbering(config, tick));
        *links = Links::of(config);
        if (plane.interfaces().settings(), &*links) != (former.0, &former.1) {
            self.links_changed.notify_one();
        }
        plane.retire_interfaces()
    }

    /// Makes exactly `users` the published ones. State of users whose salt and key are unchanged is kept.
    ///
    /// # Errors
    /// See [`PublishError`].
    pub fn publish_all(&self, users: &[PublishedUser]) -> Result<PublishReport, DatapathError> {
        let Inner { plane, publisher, .. } = &mut *self.inner();
        plane.open(users, publisher.numbering());
        let report = publisher.publish_all(&**plane, users)?;
        plane.close_others(users);
        self.published.notify_one();
        Ok(report)
    }

    /// Publishes these users, replacing whoever had their slots.
    ///
    /// # Errors
    /// See [`PublishError`].
    pub fn publish(&self, users: &[PublishedUser]) -> Result<(), DatapathError> {
        let Inner { plane, publisher, .. } = &mut *self.inner();
        plane.open(users, publisher.numbering());
        publisher.publish(&**plane, users)?;
        self.published.notify_one();
        Ok(())
    }

    /// Takes a user out: no packet finds it from now on.
    ///
    /// # Errors
    /// See [`PublishError`].
    pub fn remove(&self, slot: u32) -> Result<(), DatapathError> {
        let Inner { plane, publisher, .. } = &mut *self.inner();
        publisher.remove(&**plane, slot)?;
        plane.close(slot);
        Ok(())
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
                let Inner { plane, publisher, .. } = &mut *self.inner();
                publisher.republish_expiries(&**plane)?;
                ahead_ns = now_ahead_ns;
            }
        }
    }

    /// The recorded state of a slot; all zero for one that does not exist.
    #[must_use]
    pub fn user_state(&self, slot: u32) -> UserState {
        let inner = self.inner();
        let Some(SlotEntry { state, .. }) = inner.plane.slots().get(slot as usize) else {
            return UserState::default();
        };
        let client = Client::load(&HostMemory, state, None);
        UserState {
            client: client.map(|client| SocketAddr::new(client.address.into(), client.port.get())),
            newest: HostMemory.load(&state.newest),
            uplink_packets: HostMemory.load(&state.uplink_packets),
            uplink_bytes: HostMemory.load(&state.uplink_bytes),
            downlink_packets: HostMemory.load(&state.downlink_packets),
            downlink_bytes: HostMemory.load(&state.downlink_bytes),
        }
    }

    /// Whether packets of the user in `slot` can leave for its `destination`: the next hop is known.
    #[must_use]
    pub fn is_resolved(&self, slot: u32, destination: SocketAddr) -> bool {
        let inner = self.inner();
        let index = inner.publisher.destination(destination);
        let entry = index.and_then(|index| inner.plane.destinations().get(index as usize));
        entry.is_some_and(|entry| entry.next_hop(&HostMemory).is_some()) && inner.plane.is_open(slot)
    }

    /// Destinations in use: how many there are, and how many of them are unresolved.
    #[must_use]
    pub fn destinations(&self) -> (usize, usize) {
        let inner = self.inner();
        let entries = inner.plane.destinations();
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
        self.inner().plane.set_blocklist(&blocklist::entries(prefixes))
    }

    /// All counters, every direction and reason.
    ///
    /// # Errors
    /// If the kernel refuses to read the map.
    pub fn counters(&self) -> Result<Vec<Counter>, DatapathError> {
        self.inner().plane.counters()
    }

    /// ICMP messages to the senders of packets of this direction.
    ///
    /// # Errors
    /// If the kernel refuses to read the map.
    pub fn answers(&self, direction: Direction) -> Result<u64, DatapathError> {
        self.inner().plane.answers(direction)
    }

    /// The latency histogram.
    ///
    /// # Errors
    /// If the kernel refuses to read the map.
    pub fn latency(&self) -> Result<Latency, DatapathError> {
        self.inner().plane.latency()
    }

    /// The stream of sampled drops, once.
    #[must_use]
    pub fn drops(&self) -> Option<Drops> {
        self.inner().plane.take_drops()
    }

    /// Follows routes and neighbours until the future is dropped: resolves the destinations of published users, asks
    /// for unresolved ones, writes moved next hops. Where the kernel routes, tries again what could not be got ready.
    ///
    /// # Errors
    /// If the kernel ends the subscription.
    pub async fn follow_next_hops(&self) -> Result<(), DatapathError> {
        if self.inner().plane.known_next_hop().is_none() {
            return Ok(NextHops::follow(self).await?);
        }
        loop {
            // Either way it is time to look.
            let _ = timeout(RETRY, self.published.notified()).await;
            self.inner().plane.retry();
        }
    }

    /// Stops relaying: detaches the program and removes the pins, or closes all sockets.
    ///
    /// # Errors
    /// If a pin cannot be removed.
    pub fn detach(&self) -> Result<(), DatapathError> {
        self.inner().plane.stop()
    }
}

impl Targets for Datapath {
    fn addresses(&self) -> HashSet<IpAddr> {
        self.inner().publisher.destinations().map(|(to, _)| to.ip()).collect()
    }

    fn set_next_hop(&self, address: IpAddr, hop: Option<NextHop>) {
        let inner = self.inner();
        let entries = inner.plane.destinations();
        for index in inner.publisher.entries(address) {
            entries[*index as usize].set_next_hop(&HostMemory, hop);
        }
    }

    fn published(&self) -> &Notify {
        &self.published
    }

    fn interfaces(&self) -> Numbered {
        self.inner().plane.interfaces().clone()
    }

    fn links(&self) -> Links {
        self.inner().links.clone()
    }

    fn links_changed(&self) -> &Notify {
        &self.links_changed
    }
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

/// What the program is told, but for its interfaces.
fn settings(config: &Config, header_key: Option<[u8; 16]>, tick: Duration) -> Settings {
    let numbering = numbering(config, tick);
    let of_destination = config.destination_limit;
    let (destination_interval_ns, destination_burst) =
        of_destination.map_or((0, 0), |RateLimit { rate, burst }| numbering.limit(rate, burst));
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
        destination_interval_ns,
        destination_burst,
        vlan: u32::from(config.vlan),
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
