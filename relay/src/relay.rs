//! The running relay: its configuration, users and data plane, and what operators do with them. The admin API and the
//! metrics are views of it.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use ipnet::IpNet;
use relay_ebpf::verdict::Reason;

use crate::{
    admin::api::{CounterView, InterfaceView, Reloaded, Status, Traffic, UserView},
    config::{Checked, Config, ConfigError, Sources, XdpMode},
    datapath::{Datapath, DatapathError, InterfaceStatus, PublishedUser},
    grant::{Grant, Secret},
    users::{
        NewUser, Refusal, User, Users,
        store::{self, Store, StoreError},
    },
};

/// How long a start waits for neighbours to answer: the kernel asks three times, a second apart.
const NEIGHBOURS: Duration = Duration::from_secs(3);

/// Why the relay could not start, or not do what it was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RelayError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The data plane.
    #[error(transparent)]
    Datapath(#[from] DatapathError),
    /// The configuration that was to be read again.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// What was asked for.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A key that only a restart can change.
    #[error("`{key}` cannot change while the relay runs: restart it")]
    Fixed {
        /// The key.
        key: &'static str,
    },
}

/// A relay whose program is attached.
pub struct Relay {
    sources: Sources,
    started: Instant,
    stopping: AtomicBool,
    datapath: Datapath,
    state: Mutex<State>,
}

struct State {
    config: Config,
    header_key: Option<Secret>,
    users: Users,
}

impl State {
    fn published(&self) -> Vec<PublishedUser> {
        self.users.iter().map(|user| user.published(&self.config)).collect()
    }

    fn grant(&self, user: &User) -> Result<Grant, Refusal> {
        user.grant(&self.config, self.header_key)
    }
}

fn header_key(config: &Config) -> Result<Option<Secret>, StoreError> {
    config
        .header_protection
        .then(|| store::header_key(&config.state_dir))
        .transpose()
}

impl Relay {
    /// Opens the store, loads the program, publishes the users and attaches: packets are relayed from here on.
    /// `sources` are where a reload reads the configuration again.
    ///
    /// # Errors
    /// See [`RelayError`]; nothing is attached then.
    pub fn start(sources: Sources, config: Config) -> Result<Self, RelayError> {
        let users = Users::load(Store::open(&config.state_dir)?, config.max_users)?;
        users.check(&config)?;
        let header_key = header_key(&config)?;
        let datapath = Datapath::load(&config, header_key.map(Secret::bytes))?;
        let state = State {
            config,
            header_key,
            users,
        };
        let report = datapath.publish_all(&state.published())?;
        datapath.set_blocklist(&state.users.blocked())?;
        tracing::info!(
            users = report.users,
            kept = report.kept,
            took = ?report.took,
            "users published"
        );
        datapath.attach()?;
        let is_slow = |interface: &InterfaceStatus| interface.mode == Some(XdpMode::Generic);
        let is_auto = state.config.xdp_mode == XdpMode::Auto;
        for interface in datapath.interfaces().iter().filter(|found| is_auto && is_slow(found)) {
            tracing::warn!(
                interface = interface.name,
                "the driver cannot run XDP natively: relaying in generic mode, several times slower \
                 (`lumenlink-relay check` says more)"
            );
        }
        Ok(Self {
            sources,
            started: Instant::now(),
            stopping: AtomicBool::new(false),
            datapath,
            state: Mutex::new(state),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Whatever panicked had either not begun to change the users or was done with it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The data plane.
    #[must_use]
    pub fn datapath(&self) -> &Datapath {
        &self.datapath
    }

    /// The configuration in force.
    #[must_use]
    pub fn config(&self) -> Config {
        self.state().config.clone()
    }

    /// How many users there are.
    #[must_use]
    pub fn user_count(&self) -> usize {
        self.state().users.len()
    }

    /// Why the relay does not serve; none when it does.
    #[must_use]
    pub fn not_ready(&self) -> Option<&'static str> {
        if self.stopping.load(Ordering::Relaxed) {
            Some("stopping")
        } else if let Some(reason) = self.datapath.not_running() {
            Some(reason)
        } else if self.started.elapsed() < NEIGHBOURS && self.datapath.destinations().1 > 0 {
            Some("next hops of destinations are being looked for")
        } else {
            None
        }
    }

    /// From now on it is not ready, so that nobody sends it new clients.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Adds a user or renews its grant; the second value says which.
    ///
    /// # Errors
    /// See [`RelayError`]; unless the kernel failed, nothing has changed.
    pub fn add(&self, new: &NewUser) -> Result<(Grant, bool), RelayError> {
        let State {
            config,
            header_key,
            users,
        } = &mut *self.state();
        let (user, renewed) = users.put(new, config)?;
        self.datapath.publish(&[user.published(config)])?;
        tracing::info!(user = user.id, slot = user.slot, to = %user.to, renewed, "user added");
        Ok((user.grant(config, *header_key)?, renewed))
    }

    /// Adds all users of an NDJSON text, or none; see [`Users::import`].
    ///
    /// # Errors
    /// See [`RelayError`]; unless the kernel failed, nothing has changed.
    pub fn import(&self, text: &str, renew: bool) -> Result<Vec<Grant>, RelayError> {
        let State {
            config,
            header_key,
            users,
        } = &mut *self.state();
        let added = users.import(text, renew, config)?;
        let published: Vec<_> = added.iter().map(|user| user.published(config)).collect();
        self.datapath.publish(&published)?;
        tracing::info!(users = added.len(), "users imported");
        let grants: Result<_, _> = added.iter().map(|user| user.grant(config, *header_key)).collect();
        Ok(grants?)
    }

    /// Removes a user: its grant stops at once.
    ///
    /// # Errors
    /// See [`RelayError`].
    pub fn remove(&self, id: u64) -> Result<(), RelayError> {
        // Held until the program forgets the user too: another one may get the slot at once.
        let mut state = self.state();
        let user = state.users.remove(id)?;
        self.datapath.remove(user.slot)?;
        tracing::info!(user = id, slot = user.slot, "user removed");
        Ok(())
    }

    /// A user's grant, as it was given when it was added or renewed.
    ///
    /// # Errors
    /// See [`RelayError`].
    pub fn grant(&self, id: u64) -> Result<Grant, RelayError> {
        let state = self.state();
        Ok(state.grant(state.users.get(id)?)?)
    }

    /// One user.
    ///
    /// # Errors
    /// See [`RelayError`].
    pub fn user(&self, id: u64) -> Result<UserView, RelayError> {
        let state = self.state();
        Ok(self.view(&state, state.users.get(id)?))
    }

    /// All users, by id.
    #[must_use]
    pub fn users(&self) -> Vec<UserView> {
        let state = self.state();
        state.users.iter().map(|user| self.view(&state, user)).collect()
    }

    fn view(&self, state: &State, user: &User) -> UserView {
        let published = user.published(&state.config);
        let seen = self.datapath.user_state(user.slot);
        UserView {
            id: user.id,
            to: user.to,
            rate: published.rate,
            burst: published.burst,
            down_rate: published.down_limit.map(|limit| limit.rate),
            down_burst: published.down_limit.map(|limit| limit.burst),
            expires_at: user.expires_at,
            expired: user.expires_at.is_some_and(|at| at < jiff::Timestamp::now()),
            slot: user.slot,
            egress: state.config.egress_of(user.slot, user.to.is_ipv4()),
            client: seen.client,
            resolved: self.datapath.is_resolved(user.slot, user.to),
            newest: seen.newest,
            uplink: Traffic {
                packets: seen.uplink_packets,
                bytes: seen.uplink_bytes,
            },
            downlink: Traffic {
                packets: seen.downlink_packets,
                bytes: seen.downlink_bytes,
            },
        }
    }

    /// The blocked prefixes.
    #[must_use]
    pub fn blocked(&self) -> Vec<IpNet> {
        self.state().users.blocked()
    }

    /// Blocks a prefix. Returns whether it was not blocked before.
    ///
    /// # Errors
    /// See [`RelayError`].
    pub fn block(&self, prefix: IpNet) -> Result<bool, RelayError> {
        let mut state = self.state();
        let new = state.users.block(prefix)?;
        self.datapath.set_blocklist(&state.users.blocked())?;
        Ok(new)
    }

    /// Blocks all prefixes of a text, one a line, or none. Returns how many were not blocked before.
    ///
    /// # Errors
    /// See [`RelayError`].
    pub fn block_all(&self, text: &str) -> Result<usize, RelayError> {
        let mut state = self.state();
        let new = state.users.block_all(text)?;
        self.datapath.set_blocklist(&state.users.blocked())?;
        tracing::info!(prefixes = new, "prefixes blocked");
        Ok(new)
    }

    /// Takes a prefix off the blocklist.
    ///
    /// # Errors
    /// See [`RelayError`].
    pub fn unblock(&self, prefix: IpNet) -> Result<(), RelayError> {
        let mut state = self.state();
        state.users.unblock(prefix)?;
        Ok(self.datapath.set_blocklist(&state.users.blocked())?)
    }

    /// Reads the configuration again and puts it in force as a whole.
    ///
    /// # Errors
    /// See [`RelayError`]; then the relay goes on as it was.
    pub fn reload(&self) -> Result<Reloaded, RelayError> {
        let Checked { config, warnings } = Config::load(&self.sources)?;
        let mut state = self.state();
        check_fixed(&state.config, &config)?;
        state.users.check(&config)?;
        let header_key = header_key(&config)?;
        self.datapath.reload(&config, header_key.map(Secret::bytes))?;
        let changed = state.config != config;
        state.config = config;
        state.header_key = header_key;
        self.datapath.publish_all(&state.published())?;
        tracing::info!(changed, "configuration reloaded");
        Ok(Reloaded {
            changed,
            warnings: warnings.iter().map(ToString::to_string).collect(),
        })
    }

    /// What there is to say of the relay as a whole.
    ///
    /// # Errors
    /// If the kernel does not give the counters.
    pub fn status(&self) -> Result<Status, RelayError> {
        let (destinations, unresolved_destinations) = self.datapath.destinations();
        let counters = self
            .datapath
            .counters()?
            .into_iter()
            .filter(|counter| counter.reason != Reason::Unrelated)
            .map(CounterView::from)
            .collect();
        let state = self.state();
        let config = &state.config;
        let reason = self.not_ready();
        Ok(Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            relay_id: config.relay_id,
            interface: config.interfaces.join(","),
            interfaces: self
                .datapath
                .interfaces()
                .into_iter()
                .map(InterfaceView::from)
                .collect(),
            mode: self.datapath.mode().map(|mode| mode.name().to_owned()),
            persist: config.xdp_persist,
            listen: config.listen.clone(),
            egress: config.egress.clone(),
            egress_ports: format!("{}-{}", config.first_egress_port, config.last_egress_port),
            users: state.users.len(),
            max_users: config.max_users,
            destinations,
            unresolved_destinations,
            blocked: state.users.blocked().len(),
            uptime_seconds: self.started.elapsed().as_secs(),
            ready: reason.is_none(),
            reason: reason.map(str::to_owned),
            counters,
        })
    }
}

/// What the maps, the link, the sockets and the store were made with.
fn check_fixed(old: &Config, new: &Config) -> Result<(), RelayError> {
    let fixed = [
        ("max_users", old.max_users == new.max_users),
        ("http", old.http == new.http),
        ("admin", old.admin == new.admin),
        ("state_dir", old.state_dir == new.state_dir),
        ("xdp.mode", old.xdp_mode == new.xdp_mode),
        ("xdp.persist", old.xdp_persist == new.xdp_persist),
        // Its default follows the first interface; without persist, nothing is there.
        ("xdp.pin_dir", !old.xdp_persist || old.xdp_pin_dir == new.xdp_pin_dir),
    ];
    match fixed.into_iter().find(|(_, same)| !same) {
        Some((key, _)) => Err(RelayError::Fixed { key }),
        None => Ok(()),
    }
}
