//! Next hops: where the kernel's routes and neighbours lead, followed as they change.
//!
//! A destination's route gives the address of its next hop, the next hop's neighbour entry its MAC address. A relay's
//! packets do not pass through the kernel's stack, so nothing there would keep these neighbours resolved: the relay
//! asks for each to be *managed* (NTF_EXT_MANAGED, Linux 5.16), which means just that; before 5.16 it touches them from
//! time to time. While the kernel checks whether a neighbour is still there, its last address is used; only when it has
//! failed is the destination unresolved.
//!
//! One route lookup for each destination address in use; neighbours are shared. When a route changes, all are looked up
//! again, since any may be concerned. A route by a VLAN device leads to the interface below it, and gives frames that
//! device's tag. Next hops that the operator gives go before all of this.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use futures::{StreamExt as _, TryStreamExt as _};
use nix::net::if_::if_indextoname;
use relay_ebpf::{layout::NextHop, wire::Mac};
use rtnetlink::{
    Handle, MulticastGroup, RouteMessageBuilder, new_multicast_connection,
    packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        neighbour::{
            NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourFlags, NeighbourMessage, NeighbourState,
        },
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteType},
    },
};
use tokio::{
    sync::Notify,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};

use super::{
    numbers::Numbered,
    vlans::{Link, Vlans},
};
use crate::config::{Config, GivenNextHop};

/// How often unresolved next hops are asked for again.
const RETRY: Duration = Duration::from_secs(1);
/// How often those in use are touched where the kernel cannot manage them: well within the time after which an idle
/// neighbour entry may be collected (gc_stale_time, 60 s).
const TOUCH: Duration = Duration::from_secs(20);
/// How long changes of routes are gathered before all are looked up again.
const SETTLE: Duration = Duration::from_millis(50);

/// Why next hops cannot be followed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NextHopError {
    /// The netlink socket could not be made.
    #[error("following routes and neighbours (netlink): {0}")]
    Connect(#[from] std::io::Error),
    /// The kernel closed the socket.
    #[error("the kernel ended the netlink subscription to routes and neighbours")]
    Closed,
}

/// What the configuration says of the way to next hops.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Links {
    /// Whether frames may have VLAN tags.
    vlan: bool,
    /// Next hops that go before the kernel's routes.
    given: Vec<GivenNextHop>,
}

impl Links {
    /// What this configuration says.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        Self {
            vlan: config.vlan,
            given: config.next_hops.clone(),
        }
    }

    /// The next hop that is given for a destination: that of the longest prefix with it. Nothing of the interface is known
    /// here but what `interfaces` says, so a link that carries less must be given an MTU.
    fn given(&self, destination: IpAddr, interfaces: &Numbered) -> Option<NextHop> {
        let matching = self.given.iter().filter(|given| given.to.contains(&destination));
        let given = matching.max_by_key(|given| given.to.prefix_len())?;
        let mut all = interfaces.iter();
        let (number, interface) = all.find(|(_, interface)| interface.name == given.interface)?;
        let mtu = given.mtu.map_or(interface.mtu, |mtu| interface.mtu.min(mtu.into()));
        Some(NextHop {
            mac: given.mac,
            mtu: u16::try_from(mtu).unwrap_or(u16::MAX),
            interface: number,
            tags: given.tags,
        })
    }
}

/// What the task needs of the datapath.
pub trait Targets {
    /// The destination addresses in use.
    fn addresses(&self) -> HashSet<IpAddr>;

    /// Sets or clears the next hop of every destination with this address.
    fn set_next_hop(&self, address: IpAddr, hop: Option<NextHop>);

    /// Notified when destinations were published.
    fn published(&self) -> &Notify;

    /// The interfaces that next hops may be behind.
    fn interfaces(&self) -> Numbered;

    /// What the configuration says of the way to them.
    fn links(&self) -> Links;

    /// Notified when these, or the interfaces, have changed.
    fn links_changed(&self) -> &Notify;
}

/// Where a route leads.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Route {
    via: Via,
    link: Link,
}

/// A neighbour: addresses mean something on their link only.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
struct Via {
    ifindex: u32,
    address: IpAddr,
}

/// Why there is no route.
enum Unrouted {
    /// The kernel has none, or none that can be used.
    Refused(String),
    /// The netlink socket was closed before there was an answer.
    Unanswered,
}

/// Follows routes, and the neighbours of the relay's interfaces.
pub struct NextHops<'a, T> {
    handle: Handle,
    interfaces: Numbered,
    links: Links,
    vlans: Vlans,
    targets: &'a T,
    routes: HashMap<IpAddr, Route>,
    neighbours: HashMap<Via, Mac>,
    /// Next hops that the kernel was asked for and did not manage.
    asked: HashSet<Via>,
    /// Destinations about which a warning was given.
    warned: HashSet<IpAddr>,
    kernel_manages: bool,
}

impl<'a, T: Targets> NextHops<'a, T> {
    /// Follows until the future is dropped.
    ///
    /// # Errors
    /// See [`NextHopError`].
    pub async fn follow(targets: &'a T) -> Result<(), NextHopError> {
        let groups = [
            MulticastGroup::Neigh,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
            MulticastGroup::Link,
        ];
        let (connection, handle, mut messages) = new_multicast_connection(&groups)?;
        let connection = tokio::spawn(connection);
        let _stop = AbortOnDrop(connection);
        let mut hops = Self {
            handle,
            interfaces: targets.interfaces(),
            links: targets.links(),
            vlans: Vlans::default(),
            targets,
            routes: HashMap::new(),
            neighbours: HashMap::new(),
            asked: HashSet::new(),
            warned: HashSet::new(),
            kernel_manages: true,
        };
        hops.read_vlans().await;
        hops.read_neighbours().await;
        hops.look_up_all().await;
        let mut retry = interval(RETRY);
        retry.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut touch = interval(TOUCH);
        touch.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut routes_changed: Option<Instant> = None;
        loop {
            let settled = routes_changed.unwrap_or_else(|| Instant::now() + TOUCH);
            tokio::select! {
                message = messages.next() => match message {
                    None => return Err(NextHopError::Closed),
                    Some((message, _)) => {
                        if hops.take(message) && routes_changed.is_none() {
                            routes_changed = Some(Instant::now() + SETTLE);
                        }
                    }
                },
                () = sleep_until(settled), if routes_changed.is_some() => {
                    routes_changed = None;
                    if hops.read_vlans().await {
                        hops.read_neighbours().await;
                    }
                    hops.look_up_all().await;
                }
                () = targets.published().notified() => hops.look_up_new().await,
                () = targets.links_changed().notified() => {
                    hops.interfaces = targets.interfaces();
                    hops.links = targets.links();
                    hops.neighbours.clear();
                    hops.asked.clear();
                    hops.read_neighbours().await;
                    hops.look_up_all().await;
                }
                _ = retry.tick() => hops.ask_unresolved().await,
                _ = touch.tick(), if !hops.kernel_manages => hops.touch_all().await,
            }
        }
    }

    /// Takes in what the kernel tells; whether routes may have changed.
    fn take(&mut self, message: NetlinkMessage<RouteNetlinkMessage>) -> bool {
        let NetlinkPayload::InnerMessage(message) = message.payload else {
            return false;
        };
        match message {
            RouteNetlinkMessage::NewNeighbour(neighbour) => self.take_neighbour(&neighbour, false),
            RouteNetlinkMessage::DelNeighbour(neighbour) => self.take_neighbour(&neighbour, true),
            RouteNetlinkMessage::NewRoute(_)
            | RouteNetlinkMessage::DelRoute(_)
            | RouteNetlinkMessage::NewLink(_)
            | RouteNetlinkMessage::DelLink(_) => return true,
            _ => {}
        }
        false
    }

    fn take_neighbour(&mut self, neighbour: &NeighbourMessage, deleted: bool) {
        let ifindex = neighbour.header.ifindex;
        if self.vlans.link(ifindex, &self.interfaces).is_none() {
            return;
        }
        let (mut address, mut mac) = (None, None);
        for attribute in &neighbour.attributes {
            match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => address = Some(IpAddr::V4(*v4)),
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => address = Some(IpAddr::V6(*v6)),
                NeighbourAttribute::LinkLayerAddress(bytes) => mac = <[u8; 6]>::try_from(bytes.as_slice()).ok(),
                _ => {}
            }
        }
        let Some(address) = address else {
            return;
        };
        let via = Via { ifindex, address };
        let usable = match neighbour.header.state {
            NeighbourState::Reachable
            | NeighbourState::Stale
            | NeighbourState::Delay
            | NeighbourState::Probe
            | NeighbourState::Permanent
            | NeighbourState::Noarp => true,
            // Being asked for: what was known stays in use.
            NeighbourState::Incomplete => return,
            _ => false,
        };
        let before = if let Some(mac) = mac.filter(|_| usable && !deleted) {
            self.neighbours.insert(via, Mac::new(mac))
        } else {
            self.asked.remove(&via);
            self.neighbours.remove(&via)
        };
        if self.neighbours.get(&via) != before.as_ref() {
            self.write_via(via);
        }
    }

    /// Writes the next hop of every destination that is reached by way of `via`.
    fn write_via(&self, via: Via) {
        for (destination, route) in self.routes.iter().filter(|(_, route)| route.via == via) {
            self.write(*destination, *route);
        }
    }

    fn write(&self, destination: IpAddr, route: Route) {
        let mac = self.neighbours.get(&route.via);
        tracing::debug!(%destination, via = %route.via.address, interface = route.link.interface, resolved = mac.is_some(), "next hop");
        self.targets.set_next_hop(
            destination,
            mac.map(|mac| NextHop {
                mac: *mac,
                mtu: u16::try_from(route.link.mtu).unwrap_or(u16::MAX),
                interface: route.link.interface,
                tags: route.link.tags,
            }),
        );
    }

    /// Reads which VLAN devices there are; whether they are others than before.
    async fn read_vlans(&mut self) -> bool {
        let mut vlans = Vlans::default();
        let mut links = self.handle.link().get().execute();
        loop {
            match links.try_next().await {
                Ok(Some(link)) => vlans.take(&link),
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!(%error, "reading the kernel's VLAN devices");
                    return false;
                }
            }
        }
        let changed = vlans != self.vlans;
        self.vlans = vlans;
        changed
    }

    async fn read_neighbours(&mut self) {
        let mut neighbours = self.handle.neighbours().get().execute();
        loop {
            match neighbours.try_next().await {
                Ok(Some(neighbour)) => self.take_neighbour(&neighbour, false),
                Ok(None) => return,
                Err(error) => {
                    tracing::warn!(%error, "reading the kernel's neighbours");
                    return;
                }
            }
        }
    }

    async fn look_up_all(&mut self) {
        let addresses = self.targets.addresses();
        self.routes.retain(|address, _| addresses.contains(address));
        for address in addresses {
            self.look_up(address).await;
        }
        self.ask_unresolved().await;
    }

    async fn look_up_new(&mut self) {
        let addresses = self.targets.addresses();
        self.routes.retain(|address, _| addresses.contains(address));
        for address in addresses {
            match self.routes.get(&address) {
                // Its entry may be new even so: another port of the same address.
                Some(route) => self.write(address, *route),
                None => self.look_up(address).await,
            }
        }
        self.ask_unresolved().await;
    }

    async fn look_up(&mut self, destination: IpAddr) {
        if let Some(hop) = self.links.given(destination, &self.interfaces) {
            self.warned.remove(&destination);
            self.routes.remove(&destination);
            self.targets.set_next_hop(destination, Some(hop));
            return;
        }
        match self.route(destination).await {
            Ok(route) => {
                self.warned.remove(&destination);
                self.routes.insert(destination, route);
                self.write(destination, route);
            }
            // Such as when the relay ends meanwhile: what was known stays in use.
            Err(Unrouted::Unanswered) => tracing::debug!(%destination, "the kernel was not asked for the route"),
            Err(Unrouted::Refused(why)) => {
                if self.warned.insert(destination) {
                    tracing::warn!(%destination, "{why}; its users' packets are dropped as destination_unresolved");
                }
                self.routes.remove(&destination);
                self.targets.set_next_hop(destination, None);
            }
        }
    }

    async fn route(&self, destination: IpAddr) -> Result<Route, Unrouted> {
        let message = match destination {
            IpAddr::V4(v4) => RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(v4, 32)
                .build(),
            IpAddr::V6(v6) => RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(v6, 128)
                .build(),
        };
        let found = self.handle.route().get(message).execute().try_next().await;
        let found = match found {
            Ok(Some(found)) => found,
            Err(error @ rtnetlink::Error::NetlinkError(_)) => {
                return Err(Unrouted::Refused(format!(
                    "the kernel has no route to the destination ({error})"
                )));
            }
            // The kernel answers with a route or an error: anything else means that it was not asked.
            Ok(None) | Err(_) => return Err(Unrouted::Unanswered),
        };
        self.read_route(destination, &found).map_err(Unrouted::Refused)
    }

    fn read_route(&self, destination: IpAddr, message: &RouteMessage) -> Result<Route, String> {
        let (mut via, mut out, mut mtu) = (destination, None, u32::MAX);
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Gateway(RouteAddress::Inet(v4)) => via = IpAddr::V4(*v4),
                RouteAttribute::Gateway(RouteAddress::Inet6(v6)) => via = IpAddr::V6(*v6),
                RouteAttribute::Oif(index) => out = Some(*index),
                RouteAttribute::Metrics(metrics) => {
                    for metric in metrics {
                        if let RouteMetric::Mtu(bytes) = metric {
                            mtu = mtu.min(*bytes);
                        }
                    }
                }
                _ => {}
            }
        }
        if message.header.kind != RouteType::Unicast {
            return Err(format!(
                "the kernel's route to the destination is {:?}, not unicast",
                message.header.kind
            ));
        }
        let link = out.and_then(|index| Some((index, self.vlans.link(index, &self.interfaces)?)));
        let Some((ifindex, mut link)) = link else {
            return Err(format!(
                "the kernel's route to the destination leaves {}, not by {}: add the interface to `interface` in \
                 relay.toml, or route the destination otherwise",
                by(out),
                self.interfaces.names()
            ));
        };
        if !link.tags.is_none() && !self.links.vlan {
            return Err(format!(
                "the kernel's route to the destination leaves {}, a VLAN device: write `vlan = true` in relay.toml",
                by(out)
            ));
        }
        if via.is_ipv4() != destination.is_ipv4() {
            return Err("the next hop is of the other address family, which is not supported".to_owned());
        }
        link.mtu = link.mtu.min(mtu);
        Ok(Route {
            via: Via { ifindex, address: via },
            link,
        })
    }

    /// Asks the kernel for every next hop that it has not been asked for, or that it does not know.
    async fn ask_unresolved(&mut self) {
        let vias: HashSet<Via> = self.routes.values().map(|route| route.via).collect();
        for via in vias {
            if !self.asked.contains(&via) || !self.neighbours.contains_key(&via) {
                self.ask(via).await;
            }
        }
    }

    async fn touch_all(&mut self) {
        let vias: HashSet<Via> = self.routes.values().map(|route| route.via).collect();
        for via in vias {
            self.ask(via).await;
        }
    }

    async fn ask(&mut self, via: Via) {
        if self.kernel_manages && self.request(via, true).await.is_err() {
            self.kernel_manages = false;
        }
        if !self.kernel_manages
            && let Err(error) = self.request(via, false).await
        {
            tracing::debug!(via = %via.address, %error, "asking the kernel for a neighbour");
            return;
        }
        self.asked.insert(via);
    }

    /// Has the kernel resolve a neighbour as if a packet were waiting for it, and keep it so if `manage`.
    async fn request(&mut self, via: Via, manage: bool) -> Result<(), rtnetlink::Error> {
        let mut neighbour = NeighbourMessage::default();
        let (family, address) = match via.address {
            IpAddr::V4(v4) => (AddressFamily::Inet, NeighbourAddress::Inet(v4)),
            IpAddr::V6(v6) => (AddressFamily::Inet6, NeighbourAddress::Inet6(v6)),
        };
        neighbour.header.family = family;
        neighbour.header.ifindex = via.ifindex;
        neighbour.header.state = NeighbourState::None;
        neighbour.header.flags = NeighbourFlags::Use;
        neighbour.header.kind = RouteType::Unspec;
        neighbour.attributes.push(NeighbourAttribute::Destination(address));
        if manage {
            neighbour
                .attributes
                .push(NeighbourAttribute::ExtFlags(NeighbourExtFlags::Managed));
        }
        let mut message = NetlinkMessage::from(RouteNetlinkMessage::NewNeighbour(neighbour));
        message.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
        let mut answers = self.handle.request(message)?;
        while let Some(answer) = answers.next().await {
            if let NetlinkPayload::Error(error) = answer.payload
                && error.code.is_some()
            {
                return Err(rtnetlink::Error::NetlinkError(error));
            }
        }
        Ok(())
    }
}

/// An interface by its index, for a message.
fn by(index: Option<u32>) -> String {
    let name = index.and_then(|index| if_indextoname(index).ok());
    name.map_or_else(|| "nowhere".to_owned(), |name| format!("by {}", name.to_string_lossy()))
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
