//! Users in the maps: what the program finds by a token's slot.
//!
//! A slot changes hands in this order: its handle is cleared; packets in flight are waited out; the limits and fields are
//! written and the state is zeroed; the handle is written. So a packet finds the old user, none, or the new one. What
//! changes of a user that keeps its grant is written under way, a limit before the field that says that there is one; what
//! the user has spent stays spent.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    time::Instant,
};

use relay_ebpf::{
    host::HostMemory,
    layout::{SaltEntry, SlotEntry, User},
    platform::Memory as _,
    token,
    wire::{Address, Be16},
};
use rustix::io::Errno;

use super::{
    PublishReport, PublishedUser, RateLimit,
    clock::{Clock, ClockError},
    plane::Tables,
};

/// Why users could not be published.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// A slot past the end of the map.
    #[error("slot {slot} does not exist: the maps have {max_users} slots (max_users)")]
    NoSlot {
        /// The slot.
        slot: u32,
        /// How many there are.
        max_users: usize,
    },
    /// No entry is free in `dest_map`.
    #[error("no room for destination {0}: every entry of dest_map is in use")]
    NoDestination(SocketAddr),
    /// A destination of a family without an egress address.
    #[error("{0} cannot be reached: the relay has no egress address of its family (`egress` in relay.toml)")]
    NoEgress(SocketAddr),
    /// The clock cannot be read.
    #[error(transparent)]
    Clock(#[from] ClockError),
    /// Packets in flight cannot be waited out.
    #[error("waiting for packets in flight (membarrier): {0}")]
    Barrier(#[from] Errno),
}

/// How slots map to egress addresses and ports, and what a user may not fall below.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Numbering {
    /// First egress port.
    pub first_port: u16,
    /// Egress ports of each address.
    pub ports: u32,
    /// IPv4 egress addresses.
    pub v4_addresses: u32,
    /// IPv6 egress addresses.
    pub v6_addresses: u32,
    /// Length of the clock's tick.
    pub tick_ns: u64,
}

impl Numbering {
    /// Index of the egress address in its family's list, and egress port, of a slot.
    #[must_use]
    pub fn egress(&self, slot: u32) -> (u16, u16) {
        ((slot / self.ports) as u16, self.first_port + (slot % self.ports) as u16)
    }

    /// The rate limit in the program's terms: nanoseconds a packet, and packets that may be sent at once. The
    /// clock stands still for one tick, so at least one tick's worth of packets may come at once.
    #[must_use]
    pub fn limit(&self, rate: u32, burst: u32) -> (u32, u32) {
        let rate = u64::from(rate.max(1));
        let interval_ns = ((1_000_000_000 + rate / 2) / rate).max(1);
        let burst = u64::from(burst).max(self.tick_ns.div_ceil(interval_ns));
        let clamped = |value| u32::try_from(value).unwrap_or(u32::MAX);
        (clamped(interval_ns), clamped(burst))
    }
}

/// Which entry of `dest_map` each destination has, and how many users it has.
#[derive(Debug, Default)]
struct Destinations {
    index: HashMap<SocketAddr, (u32, u32)>,
    by_index: HashMap<u32, SocketAddr>,
    /// All entries of one address, whatever the port: they share a next hop.
    by_address: HashMap<IpAddr, Vec<u32>>,
    /// Where to look for the next free entry.
    next: u32,
}

impl Destinations {
    fn insert(&mut self, to: SocketAddr, index: u32, users: u32) {
        if let Some(former) = self.by_index.insert(index, to) {
            self.index.remove(&former);
            if let Some(entries) = self.by_address.get_mut(&former.ip()) {
                entries.retain(|entry| *entry != index);
            }
        }
        self.index.insert(to, (index, users));
        self.by_address.entry(to.ip()).or_default().push(index);
    }
}

/// The writer's side of the maps.
#[derive(Debug)]
pub struct Publisher {
    numbering: Numbering,
    clock: Clock,
    destinations: Destinations,
    /// Who has each slot, for the destinations they hold.
    users: HashMap<u32, PublishedUser>,
}

impl Publisher {
    /// A publisher for maps in which others may have published before: their destinations keep their entries.
    #[must_use]
    pub fn adopt(tables: &dyn Tables, numbering: Numbering, clock: Clock) -> Self {
        let mut destinations = Destinations::default();
        for (index, entry) in tables.destinations().iter().enumerate() {
            let (address, port) = entry.endpoint(&HostMemory);
            if address != Address::default() {
                let endpoint = SocketAddr::new(address.into(), port.get());
                destinations.insert(endpoint, index as u32, 0);
            }
        }
        Self {
            numbering,
            clock,
            destinations,
            users: HashMap::new(),
        }
    }

    /// Takes over other settings; users must be published again.
    pub fn renumber(&mut self, numbering: Numbering) {
        self.numbering = numbering;
    }

    /// How slots map to egress addresses and ports.
    #[must_use]
    pub fn numbering(&self) -> &Numbering {
        &self.numbering
    }

    /// Destinations in use, and their entries.
    pub fn destinations(&self) -> impl Iterator<Item = (SocketAddr, u32)> + '_ {
        self.destinations
            .index
            .iter()
            .filter(|(_, (_, users))| *users > 0)
            .map(|(to, (index, _))| (*to, *index))
    }

    /// The entries of an address, whatever the port.
    #[must_use]
    pub fn entries(&self, address: IpAddr) -> &[u32] {
        self.destinations.by_address.get(&address).map_or(&[], Vec::as_slice)
    }

    /// The entry of a destination in use.
    #[must_use]
    pub fn destination(&self, to: SocketAddr) -> Option<u32> {
        self.destinations.index.get(&to).map(|(index, _)| *index)
    }

    /// Makes exactly `users` the published ones.
    ///
    /// # Errors
    /// Before anything is changed: a slot or destination that cannot be. See [`PublishError`].
    pub fn publish_all(&mut self, tables: &dyn Tables, users: &[PublishedUser]) -> Result<PublishReport, PublishError> {
        let start = Instant::now();
        for user in users {
            self.check(tables, user)?;
        }
        let mut wanted = vec![false; tables.slots().len()];
        for user in users {
            wanted[user.slot as usize] = true;
        }
        let mut report = PublishReport {
            users: users.len(),
            ..PublishReport::default()
        };
        for (slot, SlotEntry { user, .. }) in tables.slots().iter().enumerate() {
            if !wanted[slot] && user.get(&HostMemory).is_some() {
                user.clear(&HostMemory);
                self.release(slot as u32);
                report.removed += 1;
            }
        }
        (report.written, report.kept) = self.publish(tables, users)?;
        report.took = start.elapsed();
        Ok(report)
    }

    /// Publishes these users, replacing whoever has their slots; returns how many were written anew, and how many
    /// kept their state because salt and key are theirs already.
    ///
    /// # Errors
    /// See [`PublishError`]; the users before the one at fault are published.
    pub fn publish(&mut self, tables: &dyn Tables, users: &[PublishedUser]) -> Result<(usize, usize), PublishError> {
        let mut changing = Vec::with_capacity(users.len());
        let mut in_flight = false;
        let mut kept = 0;
        for user in users {
            self.check(tables, user)?;
            let fields = self.fields(tables, user)?;
            let entry = &tables.slots()[user.slot as usize].user;
            match entry.get(&HostMemory) {
                Some(old) if old.salt == fields.salt && old.key == fields.key => {
                    self.set_down_limit(tables, user);
                    entry.write_fields(&HostMemory, &fields);
                    note_salt(tables, user.slot, fields.salt);
                    kept += 1;
                }
                Some(_) => {
                    entry.clear(&HostMemory);
                    in_flight = true;
                    changing.push((user, fields));
                }
                None => changing.push((user, fields)),
            }
        }
        if in_flight {
            tables.wait_for_packets_in_flight()?;
        }
        for (user, fields) in &changing {
            tables.down_limits()[user.slot as usize].clear(&HostMemory);
            self.set_down_limit(tables, user);
            write(&tables.slots()[user.slot as usize], fields);
            note_salt(tables, user.slot, fields.salt);
        }
        Ok((changing.len(), kept))
    }

    /// Takes the user out of a slot, if there is one.
    ///
    /// # Errors
    /// [`PublishError::NoSlot`].
    pub fn remove(&mut self, tables: &dyn Tables, slot: u32) -> Result<(), PublishError> {
        let max_users = tables.slots().len();
        let SlotEntry { user: entry, .. } = tables
            .slots()
            .get(slot as usize)
            .ok_or(PublishError::NoSlot { slot, max_users })?;
        entry.clear(&HostMemory);
        // Its next user must not meet what this one's packets in flight still write.
        tables.wait_for_packets_in_flight()?;
        self.release(slot);
        Ok(())
    }

    /// Publishes all expiries again, after the wall clock was set.
    ///
    /// # Errors
    /// If the clocks cannot be read.
    pub fn republish_expiries(&mut self, tables: &dyn Tables) -> Result<(), PublishError> {
        let expiring: Vec<PublishedUser> = self
            .users
            .values()
            .filter(|user| user.expires_at.is_some())
            .cloned()
            .collect();
        self.publish(tables, &expiring).map(|_| ())
    }

    fn check(&self, tables: &dyn Tables, user: &PublishedUser) -> Result<(), PublishError> {
        let max_users = tables.slots().len();
        if user.slot as usize >= max_users {
            return Err(PublishError::NoSlot {
                slot: user.slot,
                max_users,
            });
        }
        let addresses = if user.to.is_ipv4() {
            self.numbering.v4_addresses
        } else {
            self.numbering.v6_addresses
        };
        if u32::from(self.numbering.egress(user.slot).0) >= addresses {
            return Err(PublishError::NoEgress(user.to));
        }
        Ok(())
    }

    fn fields(&mut self, tables: &dyn Tables, user: &PublishedUser) -> Result<User, PublishError> {
        let (interval_ns, burst) = self.numbering.limit(user.rate, user.burst);
        let (egress, egress_port) = self.numbering.egress(user.slot);
        let expires_ns = self.clock.expiry_ns(user.expires_at)?;
        let destination = self.hold(tables, user)?;
        Ok(User {
            salt: user.salt,
            key: token::key(&user.key),
            expires_ns,
            interval_ns,
            burst,
            destination,
            has_down_limit: user.down_limit.is_some(),
            egress,
            egress_port: Be16::new(egress_port),
        })
    }

    /// Writes the limit of the user's downlink, if it has one.
    fn set_down_limit(&self, tables: &dyn Tables, user: &PublishedUser) {
        if let Some(RateLimit { rate, burst }) = user.down_limit {
            let (interval_ns, burst) = self.numbering.limit(rate, burst);
            tables.down_limits()[user.slot as usize].set_limit(&HostMemory, interval_ns, burst);
        }
    }

    /// Finds or makes the entry of the user's destination, and lets go of the one that its slot held before.
    fn hold(&mut self, tables: &dyn Tables, user: &PublishedUser) -> Result<u32, PublishError> {
        let index = match self.destinations.index.get_mut(&user.to) {
            Some((index, users)) => {
                *users += 1;
                *index
            }
            None => self.new_destination(tables, user.to)?,
        };
        self.release(user.slot);
        self.users.insert(user.slot, user.clone());
        Ok(index)
    }

    fn new_destination(&mut self, tables: &dyn Tables, to: SocketAddr) -> Result<u32, PublishError> {
        let entries = tables.destinations().len() as u32;
        for tried in 0..entries {
            let index = (self.destinations.next + tried) % entries;
            let holder = self.destinations.by_index.get(&index);
            let in_use = holder
                .and_then(|to| self.destinations.index.get(to))
                .is_some_and(|(_, users)| *users > 0);
            if in_use {
                continue;
            }
            let entry = &tables.destinations()[index as usize];
            entry.set_next_hop(&HostMemory, tables.known_next_hop());
            entry.set_endpoint(&HostMemory, Address::from(to.ip()), Be16::new(to.port()));
            HostMemory.store(&tables.destination_limits()[index as usize].tat_ns, 0);
            self.destinations.insert(to, index, 1);
            self.destinations.next = (index + 1) % entries;
            return Ok(index);
        }
        Err(PublishError::NoDestination(to))
    }

    /// Lets go of the destination that a slot held.
    fn release(&mut self, slot: u32) {
        if let Some(user) = self.users.remove(&slot)
            && let Some((_, users)) = self.destinations.index.get_mut(&user.to)
        {
            *users -= 1;
        }
    }
}

fn note_salt(tables: &dyn Tables, slot: u32, salt: u32) {
    tables.salts()[(slot / SaltEntry::SLOTS) as usize].note(&HostMemory, slot, salt);
}

fn write(SlotEntry { user, state }: &SlotEntry, fields: &User) {
    user.write_fields(&HostMemory, fields);
    state.clear(&HostMemory);
    user.publish(&HostMemory, fields.salt);
}
