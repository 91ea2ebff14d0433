//! `relay.toml`, the environment and the flags, validated as a whole.
//!
//! Every key can be given as a flag (`--xdp-mode`), in the environment (`RELAY_XDP_MODE`) and in the file
//! (`mode` in `[xdp]`), in this order of precedence; the rest have defaults. All faults are reported at once, each with
//! its place.

mod interfaces;
mod limits;
mod next_hop;
mod read;
mod userspace;

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use relay_ebpf::layout::{MAX_EGRESS, MAX_LISTENERS};

pub use self::next_hop::GivenNextHop;
use self::read::{Raw, Reader};
pub use self::{
    interfaces::ANY_INTERFACE,
    limits::{BURSTS, DESTINATION_RATES, ICMP_RATES, RATES},
};
use crate::datapath::RateLimit;

/// Where the configuration is looked for when nothing names it.
pub const DEFAULT_FILE: &str = "/etc/lumenlink/relay.toml";

/// Every key, `section.name`, and what it says.
pub const KEYS: [(&str, &str); 25] = [
    (
        "interface",
        "Where packets arrive and leave, NAME,… [default: eth0; in userspace mode any]",
    ),
    (
        "listen",
        "Where clients send to, ADDRESS:PORT,… [default: the interface's addresses, port 4500]",
    ),
    (
        "egress",
        "Where relayed packets come from, ADDRESS,… [default: the listeners' addresses]",
    ),
    (
        "egress_ports",
        "Ports of each egress address, one a user [default: 10000-59999]",
    ),
    ("relay_id", "The relay's id in tokens [default: 1]"),
    (
        "max_users",
        "Slots [default: 100000, or what the egress ports have room for]",
    ),
    ("http", "Where health and metrics are served [default: 127.0.0.1:9090]"),
    (
        "admin",
        "The admin API's Unix socket [default: /run/lumenlink/relay.sock]",
    ),
    (
        "state_dir",
        "Where users and the header key are kept [default: /var/lib/lumenlink]",
    ),
    (
        "unmatched",
        "Packets to an egress port that no user expects: pass or drop [default: pass]",
    ),
    ("header_protection", "Whether tokens are masked [default: true]"),
    ("carrier", "How tokens travel: udp, ip-option, or both [default: udp]"),
    ("vlan", "Whether frames may have VLAN tags [default: false]"),
    (
        "next_hop",
        "Next hops that the kernel's routes do not tell: tables, in the file alone",
    ),
    (
        "latency_sample",
        "One packet in so many is timed, a power of two or 0 [default: 1024]",
    ),
    (
        "drop_sample",
        "One drop in so many of each reason is reported, a power of two or 0 [default: 64]",
    ),
    (
        "limits.packets_per_second",
        "A user's rate where it has none of its own [default: 10000]",
    ),
    (
        "limits.burst",
        "A user's burst where it has none of its own [default: 1000]",
    ),
    (
        "limits.icmp_per_second",
        "ICMP messages that the relay sends, to all together; 0 for none [default: 1000]",
    ),
    (
        "limits.destination_packets_per_second",
        "Packets that all users of a destination may send to it per second; 0 for no limit [default: 0]",
    ),
    (
        "limits.destination_burst",
        "Packets that they may send at once, where that is limited [default: 1000]",
    ),
    (
        "xdp.mode",
        "auto, native, generic, or userspace: without XDP and root [default: auto]",
    ),
    ("xdp.persist", "Keep forwarding without the process [default: false]"),
    (
        "xdp.pin_dir",
        "Where maps and links are pinned then [default: /sys/fs/bpf/lumenlink/INTERFACE, the first one]",
    ),
    ("store.kind", "Where users are kept [default: redb]"),
];

const DEFAULT_MAX_USERS: u32 = 100_000;
/// Slots that the maps can be made for: 256 bytes each.
const MAX_USERS: u32 = 16_000_000;

/// The environment variable of a key: `RELAY_XDP_MODE` for `xdp.mode`.
#[must_use]
pub fn variable(key: &str) -> String {
    format!("RELAY_{}", key.replace('.', "_").to_uppercase())
}

/// The flag of a key: `--xdp-mode` for `xdp.mode`.
#[must_use]
pub fn flag(key: &str) -> String {
    format!("--{}", key.replace(['.', '_'], "-"))
}

/// Where a value, or a fault, is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Place {
    /// In the file, with line and column from 1.
    File {
        /// The file.
        path: PathBuf,
        /// Line.
        line: usize,
        /// Column, in characters.
        column: usize,
    },
    /// An environment variable.
    Environment(String),
    /// A flag.
    Flag(String),
    /// Nowhere: a default.
    Default,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line, column } => write!(f, "{}:{line}:{column}", path.display()),
            Self::Environment(variable) => write!(f, "environment variable {variable}"),
            Self::Flag(flag) => write!(f, "flag {flag}"),
            Self::Default => write!(f, "default"),
        }
    }
}

/// One thing that is wrong, or worth a warning.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Fault {
    /// Where.
    pub place: Place,
    /// What, and what to write instead.
    pub message: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("reading {path}: {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Faults, all of them.
    #[error("the configuration has {}:\n{}", count(.0), list(.0))]
    Faults(Vec<Fault>),
    /// The interface whose addresses were to be the listeners does not exist or has none.
    #[error("{0}")]
    NoAddresses(String),
}

fn count(faults: &[Fault]) -> String {
    if faults.len() == 1 {
        "a fault".to_owned()
    } else {
        format!("{} faults", faults.len())
    }
}

fn list(faults: &[Fault]) -> String {
    faults
        .iter()
        .map(|fault| format!("  {fault}"))
        .collect::<Vec<_>>()
        .join("\n")
}

/// Where values come from.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// Values of flags, by key.
    pub flags: BTreeMap<&'static str, String>,
    /// The environment.
    pub environment: BTreeMap<String, String>,
    /// The file to read; unset, [`DEFAULT_FILE`] is read if it exists.
    pub file: Option<PathBuf>,
}

impl Sources {
    /// These flags, this process's environment, and this file or the one that `RELAY_CONFIG` names.
    #[must_use]
    pub fn of_process(flags: BTreeMap<&'static str, String>, file: Option<PathBuf>) -> Self {
        let environment: BTreeMap<_, _> = std::env::vars()
            .filter(|(name, _)| name.starts_with("RELAY_"))
            .collect();
        let file = file.or_else(|| environment.get("RELAY_CONFIG").map(PathBuf::from));
        Self {
            flags,
            environment,
            file,
        }
    }

    fn read_file(&self) -> Result<Option<(PathBuf, String)>, ConfigError> {
        let (path, required) = match &self.file {
            Some(path) => (path.clone(), true),
            None => (PathBuf::from(DEFAULT_FILE), false),
        };
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some((path, text))),
            Err(error) if error.kind() == io::ErrorKind::NotFound && !required => Ok(None),
            Err(source) => Err(ConfigError::Unreadable { path, source }),
        }
    }
}

/// A configuration, and what its owner should know of it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Checked {
    /// The configuration.
    pub config: Config,
    /// Not wrong, but worth knowing.
    pub warnings: Vec<Fault>,
}

/// How a token travels.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Carrier {
    /// At the front of the UDP payload.
    Udp,
    /// In an IPv4 option.
    IpOption,
}

/// How the program is attached.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum XdpMode {
    /// Native if the driver can, else generic.
    Auto,
    /// By the network driver.
    Native,
    /// By the kernel's network stack.
    Generic,
    /// Not at all: sockets and threads of the process relay.
    Userspace,
}

impl XdpMode {
    /// As it is written in `relay.toml`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Userspace => "userspace",
        }
    }
}

/// A configuration in which every value is valid and fits the others.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Config {
    /// The interfaces that packets arrive and leave by; at least one.
    pub interfaces: Vec<String>,
    /// Where clients send to.
    pub listen: Vec<SocketAddr>,
    /// Where relayed packets come from.
    pub egress: Vec<IpAddr>,
    /// First egress port.
    pub first_egress_port: u16,
    /// Last egress port.
    pub last_egress_port: u16,
    /// The relay's id in tokens.
    pub relay_id: u32,
    /// Slots.
    pub max_users: u32,
    /// Where health and metrics are served.
    pub http: SocketAddr,
    /// The admin API's Unix socket.
    pub admin: PathBuf,
    /// Where the store and the header key are kept.
    pub state_dir: PathBuf,
    /// Drop packets to an egress port that no user expects, instead of passing them to the host.
    pub drop_unmatched: bool,
    /// Whether tokens are masked.
    pub header_protection: bool,
    /// How tokens travel.
    pub carriers: Vec<Carrier>,
    /// A user's rate when it has none of its own, packets per second.
    pub packets_per_second: u32,
    /// A user's burst when it has none of its own, packets.
    pub burst: u32,
    /// ICMP messages that the relay sends per second, to all together; 0 for none.
    pub icmp_per_second: u32,
    /// The limit of the packets of all users of a destination together; none for as many as they may send.
    pub destination_limit: Option<RateLimit>,
    /// How the program is attached.
    pub xdp_mode: XdpMode,
    /// Keep forwarding without the process.
    pub xdp_persist: bool,
    /// Where maps and links are pinned with `xdp_persist`; on a bpffs.
    pub xdp_pin_dir: PathBuf,
    /// Whether frames may have VLAN tags.
    pub vlan: bool,
    /// Next hops that go before the kernel's routes.
    pub next_hops: Vec<GivenNextHop>,
    /// One packet in this many is timed (a power of two), 0 for none.
    pub latency_sample: u32,
    /// One drop in this many of each reason is reported (a power of two), 0 for none.
    pub drop_sample: u32,
}

impl Config {
    /// Reads and validates everything.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn load(sources: &Sources) -> Result<Checked, ConfigError> {
        let file = sources.read_file()?;
        let mut reader = Reader::new(
            sources,
            file.as_ref().map(|(path, text)| (path.as_path(), text.as_str())),
        );
        let config = Self::read(&mut reader)?;
        let warnings = if reader.faults.is_empty() {
            config.warnings(&reader)
        } else {
            Vec::new()
        };
        if reader.faults.is_empty() {
            Ok(Checked { config, warnings })
        } else {
            Err(ConfigError::Faults(reader.faults))
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, ConfigError> {
        let xdp_mode = xdp_mode(reader);
        let interfaces = interfaces::read(reader, xdp_mode);
        let listen_given = reader.is_given("listen");
        let listen = reader.take_list("listen", read::parsed("an address and port, like \"192.0.2.1:4500\""));
        let listen = match listen {
            Some(listen) => listen,
            None if listen_given => Vec::new(),
            None => interfaces::default_listeners(&interfaces).map_err(|error| with_faults(reader, error))?,
        };
        let egress_given = reader.is_given("egress");
        let egress = reader.take_list("egress", read::parsed("an IP address, like \"192.0.2.1\""));
        let egress = match egress {
            Some(egress) => egress,
            None if egress_given => Vec::new(),
            None => distinct(listen.iter().map(SocketAddr::ip)),
        };
        let (first_egress_port, last_egress_port) = reader.take("egress_ports", port_range).unwrap_or((10_000, 59_999));
        let mut config = Self {
            relay_id: reader.take("relay_id", |raw| raw.integer(0..=u32::MAX)).unwrap_or(1),
            max_users: 0,
            http: reader
                .take("http", read::parsed("an address and port, like \"127.0.0.1:9090\""))
                .unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 9090))),
            admin: admin(reader),
            state_dir: reader
                .take("state_dir", Raw::path)
                .unwrap_or_else(|| "/var/lib/lumenlink".into()),
            drop_unmatched: reader
                .take("unmatched", |raw| raw.one_of(&[("pass", false), ("drop", true)]))
                .unwrap_or(false),
            header_protection: reader.take("header_protection", Raw::boolean).unwrap_or(true),
            carriers: carriers(reader),
            packets_per_second: limits::packets_per_second(reader),
            burst: limits::burst(reader),
            icmp_per_second: limits::icmp_per_second(reader),
            destination_limit: limits::destination(reader),
            xdp_mode,
            xdp_persist: reader.take("xdp.persist", Raw::boolean).unwrap_or(false),
            xdp_pin_dir: pin_dir(reader, &interfaces),
            vlan: reader.take("vlan", Raw::boolean).unwrap_or(false),
            next_hops: reader
                .take_list("next_hop", |raw| GivenNextHop::read(raw, &interfaces))
                .unwrap_or_default(),
            latency_sample: reader.take("latency_sample", sample).unwrap_or(1024),
            drop_sample: reader.take("drop_sample", sample).unwrap_or(64),
            interfaces,
            listen,
            egress,
            first_egress_port,
            last_egress_port,
        };
        reader.take("store.kind", |raw| {
            raw.one_of(&[
                ("redb", Ok(())),
                ("etcd", Err("this build keeps users in redb only: write \"redb\"")),
            ])?
            .map_err(str::to_owned)
        });
        let max_users = reader.take("max_users", |raw| raw.integer(1..=MAX_USERS));
        if config.xdp_mode == XdpMode::Userspace {
            userspace::check(&config, reader);
        }
        config.check_next_hops(reader);
        config.check_addresses(reader);
        config.check_capacity(reader, max_users);
        Ok(config)
    }

    /// Reads the admin socket's path alone, for a command that talks to a running relay: the rest of the configuration
    /// need not be valid where the command runs.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn admin(sources: &Sources) -> Result<PathBuf, ConfigError> {
        Self::one(sources, admin)
    }

    /// Reads where the pins are, alone.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn pin_dir(sources: &Sources) -> Result<PathBuf, ConfigError> {
        Self::one(sources, |reader| {
            let interfaces = interfaces::read(reader, XdpMode::Auto);
            pin_dir(reader, &interfaces)
        })
    }

    fn one<T>(sources: &Sources, read: impl FnOnce(&mut Reader<'_>) -> T) -> Result<T, ConfigError> {
        let file = sources.read_file()?;
        let file = file.as_ref().map(|(path, text)| (path.as_path(), text.as_str()));
        let mut reader = Reader::new(sources, file);
        let value = read(&mut reader);
        if reader.faults.is_empty() {
            Ok(value)
        } else {
            Err(ConfigError::Faults(reader.faults))
        }
    }

    /// The egress address and port of a slot, towards a destination of this family; none if there is no egress address
    /// of that family with so many ports.
    #[must_use]
    pub fn egress_of(&self, slot: u32, v4: bool) -> Option<SocketAddr> {
        let ports = self.ports();
        let mut addresses = self.egress.iter().filter(|address| address.is_ipv4() == v4);
        let address = addresses.nth((slot / ports) as usize)?;
        let port = u32::from(self.first_egress_port) + slot % ports;
        Some(SocketAddr::new(*address, u16::try_from(port).ok()?))
    }

    fn ports(&self) -> u32 {
        u32::from(self.last_egress_port.saturating_sub(self.first_egress_port)) + 1
    }

    /// How many egress ports towards destinations of this family there are, and so how many such users can be.
    #[must_use]
    pub fn room(&self, v4: bool) -> u32 {
        let addresses = self.egress.iter().filter(|address| address.is_ipv4() == v4).count();
        (addresses as u32).saturating_mul(self.ports())
    }

    /// How many users the egress addresses and ports have room for.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        self.room(true).saturating_add(self.room(false))
    }

    /// The smallest room of a family that has any.
    fn least_room(&self) -> u32 {
        let rooms = [self.room(true), self.room(false)];
        rooms.into_iter().filter(|room| *room > 0).min().unwrap_or(0)
    }

    fn check_capacity(&mut self, reader: &mut Reader<'_>, max_users: Option<u32>) {
        let (capacity, ports) = (self.capacity(), self.ports());
        let sockets = match self.xdp_mode {
            XdpMode::Userspace => userspace::room(),
            _ => u32::MAX,
        };
        match max_users {
            Some(max_users) if max_users > capacity && capacity > 0 => {
                reader.fault(
                    "max_users",
                    format!(
                        "max_users is {max_users}, but the egress addresses and ports have room for {capacity} \
                         ({} × {ports} ports): add addresses to `egress`, widen `egress_ports`, or write at most \
                         {capacity}",
                        self.egress.len()
                    ),
                );
            }
            Some(max_users) => self.max_users = max_users,
            None => self.max_users = DEFAULT_MAX_USERS.min(self.least_room()).min(sockets),
        }
    }

    fn check_next_hops(&self, reader: &mut Reader<'_>) {
        for (i, hop) in self.next_hops.iter().enumerate() {
            let to = hop.to;
            if self.next_hops[..i].iter().any(|other| other.to == to) {
                reader.fault("next_hop", format!("a next hop to {to} is there twice"));
            }
            if !hop.tags.is_none() && !self.vlan {
                let message = format!("the next hop to {to} has VLAN tags: write `vlan = true` too");
                reader.fault("next_hop", message);
            }
        }
    }

    fn check_addresses(&self, reader: &mut Reader<'_>) {
        let limits = [
            ("listen", self.listen.len(), MAX_LISTENERS, "listeners"),
            (
                "egress",
                self.egress.iter().filter(|a| a.is_ipv4()).count(),
                MAX_EGRESS,
                "IPv4 egress addresses",
            ),
            (
                "egress",
                self.egress.iter().filter(|a| a.is_ipv6()).count(),
                MAX_EGRESS,
                "IPv6 egress addresses",
            ),
        ];
        for (key, found, most, what) in limits {
            if found > most {
                reader.fault(key, format!("{found} {what}; a relay has at most {most}"));
            }
        }
        for (key, addresses) in [
            ("listen", self.listen.iter().map(SocketAddr::ip).collect::<Vec<_>>()),
            ("egress", self.egress.clone()),
        ] {
            for address in distinct(addresses.into_iter())
                .into_iter()
                .filter(|address| !interfaces::is_host(*address))
            {
                reader.fault(
                    key,
                    format!("{address} is not the address of a host: write one of the interface's own"),
                );
            }
        }
        let is_v6 = self.listen.iter().find(|listener| listener.is_ipv6());
        if let Some(listener) = is_v6.filter(|_| self.carriers == [Carrier::IpOption]) {
            reader.fault(
                "carrier",
                format!("no token reaches {listener}: IPv6 has no options, so add \"udp\", or leave the listener out"),
            );
        }
        for (i, listener) in self.listen.iter().enumerate() {
            if self.listen[..i].contains(listener) {
                reader.fault("listen", format!("{listener} is there twice"));
            }
            let in_range = (self.first_egress_port..=self.last_egress_port).contains(&listener.port());
            if in_range && self.egress.contains(&listener.ip()) {
                reader.fault(
                    "egress_ports",
                    format!(
                        "the listener {listener} is inside {}-{} on an egress address: move one of them",
                        self.first_egress_port, self.last_egress_port
                    ),
                );
            }
            if listener.port() == 0 {
                reader.fault("listen", format!("{listener} has no port: write one from 1 to 65535"));
            }
        }
        for (i, address) in self.egress.iter().enumerate() {
            if self.egress[..i].contains(address) {
                reader.fault("egress", format!("{address} is there twice"));
            }
        }
        // Not where items were no addresses: an empty list is then but a consequence.
        if reader.is_given("listen") && self.listen.is_empty() && !reader.has_fault("listen") {
            reader.fault("listen", "no listener: write at least one address and port".to_owned());
        }
        if reader.is_given("egress") && self.egress.is_empty() && !reader.has_fault("egress") {
            reader.fault(
                "egress",
                "no egress address: write at least one, or leave the key out".to_owned(),
            );
        }
    }

    fn warnings(&self, reader: &Reader<'_>) -> Vec<Fault> {
        let mut warnings = reader.unknown_variables();
        for (v4, family) in [(true, "IPv4"), (false, "IPv6")] {
            let room = self.room(v4);
            if room > 0 && room < self.max_users {
                warnings.push(Fault {
                    place: reader.place("max_users"),
                    message: format!(
                        "a user has the same port on an egress address of each family, so there is room for {room} \
                         users with {family} destinations, not {}",
                        self.max_users
                    ),
                });
            }
        }
        warnings.extend(limits::warnings(self, reader));
        warnings
    }
}

fn xdp_mode(reader: &mut Reader<'_>) -> XdpMode {
    let mode = reader.take("xdp.mode", |raw| {
        raw.one_of(&[
            ("auto", XdpMode::Auto),
            ("native", XdpMode::Native),
            ("generic", XdpMode::Generic),
            ("userspace", XdpMode::Userspace),
        ])
    });
    mode.unwrap_or(XdpMode::Auto)
}

fn admin(reader: &mut Reader<'_>) -> PathBuf {
    reader
        .take("admin", Raw::path)
        .unwrap_or_else(|| "/run/lumenlink/relay.sock".into())
}

fn pin_dir(reader: &mut Reader<'_>, interfaces: &[String]) -> PathBuf {
    reader
        .take("xdp.pin_dir", Raw::path)
        .unwrap_or_else(|| Path::new("/sys/fs/bpf/lumenlink").join(&interfaces[0]))
}

/// The faults found so far rather than a consequence of them.
fn with_faults(reader: &mut Reader<'_>, error: String) -> ConfigError {
    if reader.faults.is_empty() {
        return ConfigError::NoAddresses(error);
    }
    reader.fault("interface", error);
    ConfigError::Faults(std::mem::take(&mut reader.faults))
}

fn distinct(addresses: impl Iterator<Item = IpAddr>) -> Vec<IpAddr> {
    let mut distinct = Vec::new();
    for address in addresses {
        if !distinct.contains(&address) {
            distinct.push(address);
        }
    }
    distinct
}

fn port_range(raw: &Raw) -> Result<(u16, u16), String> {
    let text = raw.text()?;
    let expected = || format!("is \"{text}\"; expected a range of ports, like \"10000-59999\"");
    let (first, last) = text.split_once('-').ok_or_else(expected)?;
    let first: u16 = first.trim().parse().map_err(|_| expected())?;
    let last: u16 = last.trim().parse().map_err(|_| expected())?;
    if first == 0 || first > last {
        return Err(expected());
    }
    Ok((first, last))
}

/// At least one, each once.
fn carriers(reader: &mut Reader<'_>) -> Vec<Carrier> {
    let choices = [("udp", Carrier::Udp), ("ip-option", Carrier::IpOption)];
    let Some(mut carriers) = reader.take_list("carrier", |raw| raw.one_of(&choices)) else {
        return vec![Carrier::Udp];
    };
    if carriers.is_empty() && !reader.has_fault("carrier") {
        reader.fault(
            "carrier",
            "`carrier` is empty: write \"udp\", \"ip-option\" or both".to_owned(),
        );
    }
    carriers.sort_unstable();
    carriers.dedup();
    carriers
}

fn sample(raw: &Raw) -> Result<u32, String> {
    let sample = raw.integer(0..=1 << 30)?;
    if sample == 0 || sample.is_power_of_two() {
        return Ok(sample);
    }
    Err(format!("is {sample}; expected a power of two, or 0 for never"))
}

#[cfg(test)]
mod tests;
