//! The relay's users: who they are, which slots they have, and the store that keeps them across restarts.

pub mod store;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;
use jiff::{RoundMode, Timestamp, TimestampRound, Unit};
use serde::{Deserialize, Serialize};

use self::store::{Store, StoreError};
use crate::{
    config::{BURSTS, Config, RATES, XdpMode},
    datapath::{PublishedUser, RateLimit, blocklist},
    grant::{Grant, Secret},
};

/// A user, as the store keeps it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct User {
    /// The operator's name for it.
    #[serde(skip)]
    pub id: u64,
    /// Index of its entry in the maps, which also fixes its egress address and port. Kept when the grant is renewed.
    pub slot: u32,
    /// The random part of the handle, fresh for each grant.
    pub salt: u32,
    /// SipHash key of the tag, fresh for each grant.
    pub key: Secret,
    /// Where its packets go.
    pub to: SocketAddr,
    /// Packets per second; none for the configured default.
    pub rate: Option<u32>,
    /// Packets that may come at once; none for the configured default.
    pub burst: Option<u32>,
    /// Packets per second from the destination; none for as many as come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub down_rate: Option<u32>,
    /// Packets that may come from there at once; none for the configured default of the other direction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub down_burst: Option<u32>,
    /// End of the grant.
    pub expires_at: Option<Timestamp>,
}

impl User {
    /// What the program has to know of it.
    #[must_use]
    pub fn published(&self, config: &Config) -> PublishedUser {
        PublishedUser {
            slot: self.slot,
            salt: self.salt,
            key: self.key.bytes(),
            to: self.to,
            rate: self.rate.unwrap_or(config.packets_per_second),
            burst: self.burst.unwrap_or(config.burst),
            down_limit: self.down_rate.map(|rate| RateLimit {
                rate,
                burst: self.down_burst.unwrap_or(config.burst),
            }),
            expires_at: self.expires_at,
        }
    }

    /// What its client has to know: a listener, of the destination's family if there is one, and the secrets.
    ///
    /// # Errors
    /// [`Refusal::Invalid`] if there is no listener.
    pub fn grant(&self, config: &Config, header_key: Option<Secret>) -> Result<Grant, Refusal> {
        Ok(Grant {
            user: self.id,
            relay: listener_for(config, self.to)?,
            relay_id: config.relay_id,
            slot: self.slot,
            salt: self.salt,
            key: self.key,
            header_key,
            expires_at: self.expires_at,
        })
    }
}

/// What an operator says of a user: a new one, or one whose grant is renewed.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct NewUser {
    /// The operator's name for it.
    #[serde(alias = "user")]
    pub id: u64,
    /// Where its packets go, `ADDRESS:PORT`.
    pub to: SocketAddr,
    /// Packets per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<u32>,
    /// Packets that may come at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<u32>,
    /// Packets per second from the destination; none for as many as come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub down_rate: Option<u32>,
    /// Packets that may come from there at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub down_burst: Option<u32>,
    /// End of the grant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// End of the grant from now on, like `1h 30m`; instead of `expires_at`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_in: Option<String>,
}

impl NewUser {
    /// Checks it against the configuration; returns the end of the grant.
    fn check(&self, config: &Config, now: Timestamp) -> Result<Option<Timestamp>, Refusal> {
        let invalid = |message: String| Err(Refusal::Invalid(message));
        let limits = [
            ("rate", self.rate, "packets/s", RATES),
            ("burst", self.burst, "packets", BURSTS),
            ("down_rate", self.down_rate, "packets/s", RATES),
            ("down_burst", self.down_burst, "packets", BURSTS),
        ];
        for (name, value, unit, range) in limits {
            if let Some(value) = value.filter(|value| !range.contains(value)) {
                return invalid(format!(
                    "a {name} of {value} {unit}: write {} to {}",
                    range.start(),
                    range.end()
                ));
            }
        }
        if self.down_burst.is_some() && self.down_rate.is_none() {
            return invalid("a down_burst without a down_rate limits nothing: write both, or neither".to_owned());
        }
        if self.to.port() == 0 {
            return invalid(format!("{} has no port: write one from 1 to 65535", self.to));
        }
        if !is_destination(self.to.ip(), config.xdp_mode) {
            return invalid(format!("{} is not the address of a host", self.to.ip()));
        }
        if !config.egress.iter().any(|egress| egress.is_ipv4() == self.to.is_ipv4()) {
            return invalid(format!(
                "{} cannot be reached: the relay has no {} egress address (`egress` in relay.toml)",
                self.to,
                family(self.to)
            ));
        }
        let expires_at = match (&self.expires_in, self.expires_at) {
            (Some(_), Some(_)) => return invalid("both expires_in and expires_at: write one of them".to_owned()),
            (Some(text), None) => Some(expiry(text, now).map_err(Refusal::Invalid)?),
            (None, at) => at,
        };
        match expires_at {
            Some(at) if at <= now => invalid(format!("the grant would have expired already, at {at}")),
            _ => Ok(expires_at),
        }
    }
}

/// The time so far from `now`, as a person writes it: `1h`, `90s`, `7d`, `1h 30m`; to the millisecond.
///
/// # Errors
/// A sentence for that person.
pub fn expiry(text: &str, now: Timestamp) -> Result<Timestamp, String> {
    let expected = || format!("`{text}` is no duration: write one like 90s, 1h, 1h 30m or 7d");
    let span: jiff::Span = text.trim().parse().map_err(|_| expected())?;
    let at = now
        .to_zoned(jiff::tz::TimeZone::UTC)
        .checked_add(span)
        .and_then(|at| {
            at.timestamp()
                .round(TimestampRound::new().smallest(Unit::Millisecond).mode(RoundMode::Ceil))
        })
        .map_err(|_| expected())?;
    if at <= now { Err(expected()) } else { Ok(at) }
}

fn family(address: SocketAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// The prefix without the bits of a host, if it can be blocked.
fn blockable(prefix: IpNet) -> Result<IpNet, String> {
    let prefix = prefix.trunc();
    if blocklist::is_mapped(&prefix) {
        return Err(format!(
            "{prefix} has IPv4-mapped addresses, which no packet has: block the IPv4 prefix"
        ));
    }
    Ok(prefix)
}

fn listener_for(config: &Config, to: SocketAddr) -> Result<SocketAddr, Refusal> {
    let of_its_family = config.listen.iter().find(|listener| listener.is_ipv4() == to.is_ipv4());
    of_its_family.or(config.listen.first()).copied().ok_or_else(|| {
        Refusal::Invalid("the relay has no listener for clients to send to (`listen` in relay.toml)".to_owned())
    })
}

/// Whether packets can be sent to this address. Only sockets reach the host itself.
fn is_destination(address: IpAddr, mode: XdpMode) -> bool {
    let is_host = match address {
        IpAddr::V4(v4) => !(v4.is_unspecified() || v4.is_multicast() || v4.is_broadcast()),
        IpAddr::V6(v6) => !(v6.is_unspecified() || v6.is_multicast() || v6.to_ipv4_mapped().is_some()),
    };
    is_host && (mode == XdpMode::Userspace || !address.is_loopback())
}

/// Why users stay as they are.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// What was asked for makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// One line of an import makes no sense; nothing of the import is done.
    #[error("line {line}: {message}; nothing was imported")]
    Line {
        /// From 1.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// A user that there is could not be served with this configuration.
    #[error("user {user} could not be served: {why}")]
    Unserved {
        /// Its number.
        user: u64,
        /// What is missing.
        why: Box<Refusal>,
    },
    /// There is no such user.
    #[error("there is no user {0}")]
    NoUser(u64),
    /// The prefix is not on the blocklist.
    #[error("{0} is not on the blocklist")]
    NotBlocked(IpNet),
    /// No slot is left.
    #[error(
        "the user table is full: all {max_users} slots are in use (max_users); {wanted} more were asked for. Remove \
         users, or raise max_users and restart"
    )]
    Full {
        /// Slots.
        max_users: u32,
        /// Slots asked for.
        wanted: usize,
    },
    /// No slot is left that has an egress port of the destination's family.
    #[error(
        "no slot is left that has an egress port towards {family} destinations; {room} have: add {family} addresses \
         to `egress`, or remove users"
    )]
    NoEgressPort {
        /// `IPv4` or `IPv6`.
        family: &'static str,
        /// Egress ports of that family.
        room: u32,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// All users and blocked prefixes, in memory, and the store behind them. What changes is on disk before it is here.
#[derive(Debug)]
pub struct Users {
    store: Store,
    users: BTreeMap<u64, User>,
    free: FreeSlots,
    blocked: BTreeSet<IpNet>,
    max_users: u32,
}

impl Users {
    /// Reads what the store holds.
    ///
    /// # Errors
    /// See [`StoreError`]; also if a user's slot is not below `max_users`, or two users have one slot.
    pub fn load(store: Store, max_users: u32) -> Result<Self, StoreError> {
        let (users, blocked) = store.read()?;
        let mut free = FreeSlots::default();
        for user in &users {
            if user.slot >= max_users {
                return Err(StoreError::SlotBeyond {
                    path: store.path().to_owned(),
                    user: user.id,
                    slot: user.slot,
                    max_users,
                });
            }
            if !free.take(user.slot) {
                return Err(StoreError::Corrupt {
                    path: store.path().to_owned(),
                    what: format!("user {} has the slot of another one, {}", user.id, user.slot),
                });
            }
        }
        Ok(Self {
            store,
            users: users.into_iter().map(|user| (user.id, user)).collect(),
            free,
            blocked,
            max_users,
        })
    }

    /// Whether every user can be served with this configuration.
    ///
    /// # Errors
    /// [`Refusal::Unserved`] for the first that cannot.
    pub fn check(&self, config: &Config) -> Result<(), Refusal> {
        for user in self.users.values() {
            check_egress(config, user.slot, user.to).map_err(|why| Refusal::Unserved {
                user: user.id,
                why: Box::new(why),
            })?;
        }
        Ok(())
    }

    /// How many users there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.users.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.users.is_empty()
    }

    /// All users, by id.
    pub fn iter(&self) -> impl Iterator<Item = &User> {
        self.users.values()
    }

    /// One user.
    ///
    /// # Errors
    /// [`Refusal::NoUser`].
    pub fn get(&self, id: u64) -> Result<&User, Refusal> {
        self.users.get(&id).ok_or(Refusal::NoUser(id))
    }

    /// Adds a user in the lowest free slot, or renews the grant of the one that has this id, in its slot. The second
    /// value says whether it was there.
    ///
    /// # Errors
    /// See [`Refusal`]; then nothing has changed.
    pub fn put(&mut self, new: &NewUser, config: &Config) -> Result<(User, bool), Refusal> {
        let expires_at = new.check(config, Timestamp::now())?;
        let renewed = self.users.get(&new.id).map(|user| user.slot);
        let slot = match renewed {
            Some(slot) => slot,
            None => self.free_slots(1)?[0],
        };
        check_egress(config, slot, new.to)?;
        let user = granted(new, slot, expires_at);
        self.store.put(std::slice::from_ref(&user))?;
        self.insert(user.clone());
        Ok((user, renewed.is_some()))
    }

    /// Adds all users of an import, one JSON object a line ([`NewUser`]), or none of them. An id that there is already
    /// is a fault, unless `renew` says to renew its grant.
    ///
    /// # Errors
    /// See [`Refusal`], which names the first line that is wrong; then nothing has changed.
    pub fn import(&mut self, text: &str, renew: bool, config: &Config) -> Result<Vec<User>, Refusal> {
        let now = Timestamp::now();
        let mut seen = BTreeMap::new();
        let mut wanted = Vec::new();
        for (index, json) in text.lines().enumerate() {
            if json.trim().is_empty() {
                continue;
            }
            let line = index + 1;
            let refuse = |message: String| Refusal::Line { line, message };
            let new: NewUser = serde_json::from_str(json).map_err(|error| refuse(explain(&error)))?;
            let expires_at = new.check(config, now).map_err(|error| refuse(error.to_string()))?;
            if let Some(first) = seen.insert(new.id, line) {
                return Err(refuse(format!("user {} is in line {first} already", new.id)));
            }
            if !renew && self.users.contains_key(&new.id) {
                return Err(refuse(format!(
                    "there is a user {} already: remove it first, or import with --renew to renew grants",
                    new.id
                )));
            }
            wanted.push((new, expires_at));
        }
        let added = wanted
            .iter()
            .filter(|(new, _)| !self.users.contains_key(&new.id))
            .count();
        let mut slots = self.free_slots(added)?.into_iter();
        let users: Vec<_> = wanted
            .iter()
            .filter_map(|(new, expires_at)| {
                let slot = self.users.get(&new.id).map(|user| user.slot).or_else(|| slots.next())?;
                Some(granted(new, slot, *expires_at))
            })
            .collect();
        self.store.put(&users)?;
        for user in &users {
            self.insert(user.clone());
        }
        Ok(users)
    }

    /// Removes a user; its slot is free again.
    ///
    /// # Errors
    /// See [`Refusal`]; then nothing has changed.
    pub fn remove(&mut self, id: u64) -> Result<User, Refusal> {
        self.get(id)?;
        self.store.remove(id)?;
        let user = self.users.remove(&id).ok_or(Refusal::NoUser(id))?;
        self.free.give_back(user.slot);
        Ok(user)
    }

    /// The blocked prefixes.
    #[must_use]
    pub fn blocked(&self) -> Vec<IpNet> {
        self.blocked.iter().copied().collect()
    }

    /// Blocks a prefix. Returns whether it was not blocked before.
    ///
    /// # Errors
    /// See [`Refusal`]; then nothing has changed.
    pub fn block(&mut self, prefix: IpNet) -> Result<bool, Refusal> {
        let prefix = blockable(prefix).map_err(Refusal::Invalid)?;
        self.store.block(&[prefix])?;
        Ok(self.blocked.insert(prefix))
    }

    /// Blocks all prefixes of a text, one a line, or none; `#` begins a comment. Returns how many were not blocked before.
    ///
    /// # Errors
    /// [`Refusal::Line`] for the first line that cannot be, or see [`Refusal`]; then nothing has changed.
    pub fn block_all(&mut self, text: &str) -> Result<usize, Refusal> {
        let mut prefixes = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let written = line.split('#').next().unwrap_or_default().trim();
            if written.is_empty() {
                continue;
            }
            let prefix = blocklist::parse(written).and_then(blockable);
            prefixes.push(prefix.map_err(|message| Refusal::Line {
                line: index + 1,
                message,
            })?);
        }
        self.store.block(&prefixes)?;
        let before = self.blocked.len();
        self.blocked.extend(prefixes);
        Ok(self.blocked.len() - before)
    }

    /// Takes a prefix off the blocklist.
    ///
    /// # Errors
    /// See [`Refusal`]; then nothing has changed.
    pub fn unblock(&mut self, prefix: IpNet) -> Result<(), Refusal> {
        let prefix = prefix.trunc();
        if !self.blocked.contains(&prefix) {
            return Err(Refusal::NotBlocked(prefix));
        }
        self.store.unblock(prefix)?;
        self.blocked.remove(&prefix);
        Ok(())
    }

    fn free_slots(&self, wanted: usize) -> Result<Vec<u32>, Refusal> {
        let slots: Vec<_> = self.free.lowest(self.max_users).take(wanted).collect();
        if slots.len() < wanted {
            return Err(Refusal::Full {
                max_users: self.max_users,
                wanted,
            });
        }
        Ok(slots)
    }

    fn insert(&mut self, user: User) {
        self.free.take(user.slot);
        self.users.insert(user.id, user);
    }
}

/// The slot's port must exist on an egress address of the destination's family.
fn check_egress(config: &Config, slot: u32, to: SocketAddr) -> Result<(), Refusal> {
    match config.egress_of(slot, to.is_ipv4()) {
        Some(_) => Ok(()),
        None => Err(Refusal::NoEgressPort {
            family: family(to),
            room: config.room(to.is_ipv4()),
        }),
    }
}

fn granted(new: &NewUser, slot: u32, expires_at: Option<Timestamp>) -> User {
    User {
        id: new.id,
        slot,
        salt: rand::random(),
        key: Secret::random(),
        to: new.to,
        rate: new.rate,
        burst: new.burst,
        down_rate: new.down_rate,
        down_burst: new.down_burst,
        expires_at,
    }
}

/// What serde has to say, without its position: a line is short, and its number is told.
fn explain(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let message = text.split(" at line ").next().unwrap_or(&text);
    format!("{message} (one JSON object a line, like {{\"id\": 42, \"to\": \"198.51.100.7:5000\"}})")
}

/// The slots that nobody has: those from `unused` on, and those below it that were given back.
#[derive(Debug, Default)]
struct FreeSlots {
    returned: BTreeSet<u32>,
    unused: u32,
}

impl FreeSlots {
    fn lowest(&self, max_users: u32) -> impl Iterator<Item = u32> {
        self.returned.iter().copied().chain(self.unused..max_users)
    }

    /// Returns whether it was free.
    fn take(&mut self, slot: u32) -> bool {
        if slot < self.unused {
            return self.returned.remove(&slot);
        }
        self.returned.extend(self.unused..slot);
        self.unused = slot + 1;
        true
    }

    fn give_back(&mut self, slot: u32) {
        self.returned.insert(slot);
    }
}

#[cfg(test)]
mod tests;
