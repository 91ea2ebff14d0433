//! The world of a capture: what its relay's configuration and grants say, and what the capture shows of the rest.

use std::{
    collections::{HashMap, HashSet},
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use lumenlink_relay::{config::Config, grant};

use super::{START_NS, Survey, select::addresses_of};
use crate::{
    craft::Grant,
    world::{Destination, Limit, NextHop, Tags, User, World, address},
};

/// The port that listeners have by default.
pub const DEFAULT_PORT: u16 = 4500;
/// The next hop of destinations that the capture does not show the relay sending to.
pub const NEXT_HOP: NextHop = NextHop {
    mac: [0x02, 0, 0, 0, 0, 0xd1],
    mtu: 1500,
    interface: 0,
    tags: Tags::NONE,
};
/// The header key of a relay whose own is not known.
pub const HEADER_KEY: [u8; 16] = [
    0xf0, 0xf1, 0xf2, 0xf3, 0xf4, 0xf5, 0xf6, 0xf7, 0xf8, 0xf9, 0xfa, 0xfb, 0xfc, 0xfd, 0xfe, 0xff,
];
/// As many users are made up at most.
const MOST_USERS: usize = 100_000;

/// Why there is no world.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CastError {
    /// Nothing says where clients send to.
    #[error(
        "nothing in the capture is sent to UDP port {DEFAULT_PORT}: say where the relay listens, with --listen \
         ADDRESS:PORT or --config relay.toml"
    )]
    NoListener,
    /// Grants cannot be read.
    #[error("reading {}: {error}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// A line is no grant.
    #[error("{}:{line}: {error}", path.display())]
    NoGrant {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// Why.
        error: grant::GrantError,
    },
    /// The grants cannot be of one relay.
    #[error("{0}")]
    Grants(String),
}

/// What is known of a capture's relay, apart from the capture.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// Its configuration.
    pub config: Option<Config>,
    /// Its grants.
    pub grants: Vec<grant::Grant>,
    /// Its listeners; if empty, those of the configuration, or what the capture sends to port 4500.
    pub listen: Vec<SocketAddr>,
    /// Destinations of users whose own the capture does not show: the first of the user's family.
    pub to: Vec<SocketAddr>,
    /// The MAC address of its interface in the capture; if unset, where most packets to it were sent.
    pub mac: Option<[u8; 6]>,
    /// Whether users are made up for the clients of the capture.
    pub make_up_users: bool,
}

/// A world, and what had to be assumed for it.
#[derive(Clone, Debug)]
pub struct Cast {
    /// The world.
    pub world: World,
    /// The MAC address of the relay's interface in the capture.
    pub captured_mac: [u8; 6],
    /// What nobody said and the capture does not show, for people.
    pub assumed: Vec<String>,
}

/// Reads grants: one JSON object or `lumen1:` line each, as `lumenlink-relay user import --grants` writes them.
///
/// # Errors
/// If the file cannot be read, or a line is no grant.
pub fn read_grants(path: &Path) -> Result<Vec<grant::Grant>, CastError> {
    let text = fs::read_to_string(path).map_err(|error| CastError::Unreadable {
        path: path.to_owned(),
        error,
    })?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let parse = |(number, line): (usize, &str)| {
        grant::Grant::parse(line.trim()).map_err(|error| CastError::NoGrant {
            path: path.to_owned(),
            line: number + 1,
            error,
        })
    };
    lines.map(parse).collect()
}

impl Known {
    /// Makes the world of a capture.
    ///
    /// # Errors
    /// If nothing says where the relay listens, or the grants contradict each other.
    pub fn cast(&self, survey: &Survey) -> Result<Cast, CastError> {
        let mut assumed = Vec::new();
        if survey.beyond > 0 {
            assumed.push(format!(
                "{} packets are of more flows than are told apart, and show neither clients nor destinations",
                survey.beyond
            ));
        }
        let mut world = self.relay(survey, &mut assumed)?;
        let captured_mac = self
            .mac
            .or_else(|| survey.mac_of(&addresses_of(&world.listeners, &world.egress)));
        let captured_mac = captured_mac.unwrap_or(world.mac);
        world.mac = captured_mac;
        let seen = destinations(&world, survey);
        let mut users = self.granted(&world, survey, &seen, &mut assumed)?;
        if self.make_up_users && users.is_empty() {
            users = self.made_up(&world, survey, &seen, &mut assumed);
        }
        world.max_users = world
            .max_users
            .max(users.iter().map(|user| user.slot + 1).max().unwrap_or(0));
        let distinct: HashSet<SocketAddr> = users.iter().map(|user| user.to).collect();
        let mut distinct: Vec<SocketAddr> = distinct.into_iter().collect();
        distinct.sort_unstable();
        world.destinations = distinct.into_iter().map(|to| resolved(&world, survey, to)).collect();
        world.users = users;
        Ok(Cast {
            world,
            captured_mac,
            assumed,
        })
    }

    /// The relay, without users.
    fn relay(&self, survey: &Survey, assumed: &mut Vec<String>) -> Result<World, CastError> {
        let mut world = World::new();
        world.header_key = Some(HEADER_KEY);
        if let Some(config) = &self.config {
            world.listeners.clone_from(&config.listen);
            world.egress.clone_from(&config.egress);
            world.first_egress_port = config.first_egress_port;
            world.egress_ports = config.last_egress_port - config.first_egress_port + 1;
            world.relay_id = config.relay_id;
            world.max_users = config.max_users;
            world.drop_unmatched = config.drop_unmatched;
            world.icmp_per_second = config.icmp_per_second;
            world.destination_limit = config.destination_limit.map(|limit| Limit {
                rate: limit.rate,
                burst: limit.burst,
            });
            world.header_key = config.header_protection.then_some(HEADER_KEY);
            world.carriers = config.carriers.iter().map(|&carrier| carrier.into()).collect();
        }
        if !self.listen.is_empty() {
            world.listeners.clone_from(&self.listen);
        } else if self.config.is_none() {
            world.listeners = survey.receivers_on(DEFAULT_PORT);
            if world.listeners.is_empty() {
                return Err(CastError::NoListener);
            }
            assumed.push(format!(
                "it listens on {}: where the capture sends to port {DEFAULT_PORT}",
                list(&world.listeners)
            ));
        }
        if self.config.is_none() {
            let (first, ports) = (10_000, 50_000);
            (world.first_egress_port, world.egress_ports) = (first, ports);
            world.egress = distinct_ips(&world.listeners);
        }
        if let Some(grant) = self.grants.first() {
            world.relay_id = grant.relay_id;
            world.header_key = grant.header_key.map(grant::Secret::bytes);
        }
        Ok(world)
    }

    fn granted(
        &self,
        world: &World,
        survey: &Survey,
        seen: &HashMap<u32, SocketAddr>,
        assumed: &mut Vec<String>,
    ) -> Result<Vec<User>, CastError> {
        let mut users = Vec::with_capacity(self.grants.len());
        let mut made_up = 0;
        let mut slots = HashSet::new();
        for grant in &self.grants {
            if grant.relay_id != world.relay_id || grant.header_key.map(grant::Secret::bytes) != world.header_key {
                let (user, id) = (grant.user, world.relay_id);
                return Err(CastError::Grants(format!(
                    "the grant of user {user} is for another relay or listener than the first, whose relay_id is {id}"
                )));
            }
            if !slots.insert(grant.slot) {
                let (user, slot) = (grant.user, grant.slot);
                return Err(CastError::Grants(format!(
                    "the grant of user {user} has slot {slot}, as one before it"
                )));
            }
            let to = seen.get(&grant.slot).copied().unwrap_or_else(|| {
                made_up += 1;
                self.destination_for(grant.relay.is_ipv4())
            });
            let expires_ns = grant.expires_at.map(|at| {
                let since_first = at.as_nanosecond() - i128::from(survey.first_ns) + i128::from(START_NS);
                u64::try_from(since_first.max(0)).unwrap_or(u64::MAX)
            });
            users.push(User {
                expires_ns,
                ..self.user(grant.slot, grant.salt, grant.key.bytes(), to)
            });
        }
        if made_up > 0 {
            assumed.push(format!(
                "{made_up} users whose destination the capture does not show send to {}",
                self.destinations()
            ));
        }
        Ok(users)
    }

    /// A user for each client: in the slots that the capture's downlink shows, then in the others.
    fn made_up(
        &self,
        world: &World,
        survey: &Survey,
        seen: &HashMap<u32, SocketAddr>,
        assumed: &mut Vec<String>,
    ) -> Vec<User> {
        let clients = survey.senders_to(&world.listeners);
        let mut shown: Vec<(u32, SocketAddr)> = slots_in_order(world, survey)
            .into_iter()
            .filter_map(|slot| Some((slot, *seen.get(&slot)?)))
            .collect();
        shown.reverse();
        let mut free = (0..).filter(|slot| !seen.contains_key(slot));
        let mut made_up = 0;
        let users: Vec<User> = clients
            .iter()
            .take(MOST_USERS)
            .filter_map(|client| {
                let same_family = shown.iter().rposition(|(_, to)| to.is_ipv4() == client.is_ipv4());
                let (slot, to) = if let Some(place) = same_family {
                    shown.remove(place)
                } else {
                    made_up += 1;
                    (free.next()?, self.destination_for(client.is_ipv4()))
                };
                Some(self.user(slot, made_up_salt(slot), made_up_key(slot), to))
            })
            .collect();
        if clients.len() > users.len() {
            assumed.push(format!(
                "only the first {MOST_USERS} of {} clients are users",
                clients.len()
            ));
        }
        if made_up > 0 {
            assumed.push(format!(
                "{made_up} of {} users, whose destination the capture does not show, send to {}",
                users.len(),
                self.destinations()
            ));
        }
        users
    }

    fn user(&self, slot: u32, salt: u32, key: [u8; 16], to: SocketAddr) -> User {
        let limits = self
            .config
            .as_ref()
            .map(|config| (config.packets_per_second, config.burst));
        let (rate, burst) = limits.unwrap_or((10_000, 1_000));
        User {
            slot,
            salt,
            key,
            to,
            rate,
            burst,
            down_limit: None,
            expires_ns: None,
        }
    }

    fn destination_for(&self, v4: bool) -> SocketAddr {
        let given = self.to.iter().find(|to| to.is_ipv4() == v4);
        given.copied().unwrap_or_else(|| {
            if v4 {
                address("198.51.100.7:5000")
            } else {
                address("[2001:db8:d::7]:5000")
            }
        })
    }

    fn destinations(&self) -> String {
        format!(
            "{} or {} (change it with --to)",
            self.destination_for(true),
            self.destination_for(false)
        )
    }
}

/// Grants as the lab has them.
#[must_use]
pub fn lab_grants(grants: &[grant::Grant]) -> Vec<Grant> {
    let grants = grants.iter().map(|grant| Grant {
        slot: grant.slot,
        salt: grant.salt,
        key: grant.key.bytes(),
        header_key: grant.header_key.map(grant::Secret::bytes),
        relay_id: grant.relay_id,
    });
    grants.collect()
}

/// The salt of a user who was made up.
pub(super) fn made_up_salt(slot: u32) -> u32 {
    0x5a17_0000 ^ slot
}

/// The key of a user who was made up.
pub(super) fn made_up_key(slot: u32) -> [u8; 16] {
    let mut key = *b"packet-lab key \0";
    key[12..].copy_from_slice(&slot.to_be_bytes());
    key
}

/// The destination of each slot whose egress address and port the capture shows talking with somebody.
fn destinations(world: &World, survey: &Survey) -> HashMap<u32, SocketAddr> {
    let mut destinations: HashMap<u32, (SocketAddr, u64)> = HashMap::new();
    for flow in &survey.flows {
        let (slot, other) = match (slot_of(world, flow.to), slot_of(world, flow.from)) {
            (Some(slot), None) => (slot, flow.from),
            (None, Some(slot)) => (slot, flow.to),
            _ => continue,
        };
        let most = destinations.entry(slot).or_insert((other, 0));
        if flow.packets > most.1 {
            *most = (other, flow.packets);
        }
    }
    destinations.into_iter().map(|(slot, (to, _))| (slot, to)).collect()
}

/// A destination with its next hop: where the capture shows the relay sending to it, the MAC address there.
fn resolved(world: &World, survey: &Survey, to: SocketAddr) -> Destination {
    let sent = survey
        .flows
        .iter()
        .find(|flow| flow.to == to && slot_of(world, flow.from).is_some());
    let mac = sent.map_or(NEXT_HOP.mac, |flow| flow.to_mac);
    Destination {
        to,
        next_hop: Some(NextHop { mac, ..NEXT_HOP }),
    }
}

fn slots_in_order(world: &World, survey: &Survey) -> Vec<u32> {
    let mut seen = HashSet::new();
    let slots = survey
        .flows
        .iter()
        .filter_map(|flow| slot_of(world, flow.to).or_else(|| slot_of(world, flow.from)));
    slots.filter(|slot| seen.insert(*slot)).collect()
}

/// The slot that has an egress address and port.
fn slot_of(world: &World, at: SocketAddr) -> Option<u32> {
    if world.listeners.contains(&at) {
        return None;
    }
    let place = world
        .egress_of(at.is_ipv4())
        .iter()
        .position(|egress| *egress == at.ip())?;
    let port = at.port().checked_sub(world.first_egress_port)?;
    (port < world.egress_ports).then(|| place as u32 * u32::from(world.egress_ports) + u32::from(port))
}

fn distinct_ips(addresses: &[SocketAddr]) -> Vec<IpAddr> {
    let mut seen = HashSet::new();
    addresses
        .iter()
        .map(SocketAddr::ip)
        .filter(|ip| seen.insert(*ip))
        .collect()
}

fn list(addresses: &[SocketAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
