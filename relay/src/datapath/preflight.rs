//! Whether a relay can run here: what the kernel, this process and the interface offer, looked at one by one without
//! loading or attaching anything, and for each thing that is amiss what to do about it.

use std::{
    fs, io,
    net::SocketAddr,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    thread,
};

use aya::{programs::loaded_programs, util::KernelVersion};
use nix::{ifaddrs::getifaddrs, sys::utsname::uname};
use serde::Serialize;

use super::{
    attach::{is_bpffs, pinned_program},
    ethtool,
    interface::{AttachedProgram, Interface},
    netdev, userspace,
};
use crate::config::{Config, XdpMode};

/// Since when the kernel has all that the program uses: frames in several buffers (`BPF_F_XDP_HAS_FRAGS`,
/// `bpf_xdp_load_bytes`); on arm64 also atomic compare-and-swap in BPF programs.
const OLDEST_KERNEL: (u8, u8) = (5, 18);
/// Most bytes of an IP packet that drivers with one page for each packet take with native XDP, about: a page less
/// headroom, Ethernet header and the kernel's bookkeeping.
const NATIVE_MTU: u32 = 3498;
/// Receive offloads that put packets together, and what `ethtool -K` calls them.
const MERGING: [(&str, &str); 2] = [("rx-lro", "lro"), ("rx-gro-hw", "rx-gro-hw")];
/// Receive offloads that take VLAN tags off, or drop frames of VLANs that have no device, and what `ethtool -K` calls them.
const UNTAGGING: [(&str, &str); 4] = [
    ("rx-vlan-hw-parse", "rxvlan"),
    ("rx-vlan-stag-hw-parse", "rx-vlan-stag-hw-parse"),
    ("rx-vlan-filter", "rx-vlan-filter"),
    ("rx-vlan-stag-filter", "rx-vlan-stag-filter"),
];
/// `CAP_SYS_ADMIN`, which stands for the BPF capabilities too (include/uapi/linux/capability.h).
const SYS_ADMIN: u32 = 21;
/// Name, number, and what a relay needs it for.
type Capability = (&'static str, u32, &'static str);
/// The capabilities that a relay needs.
const CAPABILITIES: [Capability; 3] = [
    ("CAP_NET_ADMIN", 12, "to attach to an interface"),
    ("CAP_PERFMON", 38, "to have the program verified"),
    ("CAP_BPF", 39, "to load programs and make maps"),
];

/// How something was found.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// A relay runs, but not as well as it could.
    Warning,
    /// A relay does not start.
    Failure,
}

/// One thing that was looked at.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Item {
    /// What was looked at.
    pub name: &'static str,
    /// Whether it will do.
    pub status: Status,
    /// What was found.
    pub found: String,
    /// What to do about it; none if it will do.
    pub fix: Option<String>,
}

impl Item {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self {
            name,
            status: Status::Ok,
            found: found.into(),
            fix: None,
        }
    }

    fn amiss(name: &'static str, status: Status, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            name,
            status,
            found: found.into(),
            fix: Some(fix.into()),
        }
    }
}

/// Looks at everything that a relay with this configuration needs.
#[must_use]
pub fn check(config: &Config) -> Vec<Item> {
    if config.xdp_mode == XdpMode::Userspace {
        return vec![sockets(config), addresses(config), egress_ports(config), buffers()];
    }
    let mut items = vec![kernel(), btf(), jit(), capabilities()];
    if config.xdp_persist {
        items.push(bpffs(&config.xdp_pin_dir));
    }
    let several = config.interfaces.len() > 1;
    for name in &config.interfaces {
        let mut about = of_interface(name, config);
        if several {
            about
                .iter_mut()
                .for_each(|item| item.found = format!("{name}: {}", item.found));
        }
        items.append(&mut about);
    }
    // Of no use for an interface that is not there.
    if items.iter().any(|item| item.name == "driver") {
        items.push(addresses(config));
    }
    items
}

/// What there is to say of one interface.
fn of_interface(name: &str, config: &Config) -> Vec<Item> {
    match Interface::read(name) {
        Ok(interface) => {
            let mut items = vec![
                link(&interface),
                driver(&interface),
                native_xdp(&interface, config.xdp_mode),
                mtu(&interface, config.xdp_mode),
                queues(&interface),
                program(&interface, config),
            ];
            if config.vlan {
                items.push(tags(&interface));
            }
            if config.xdp_mode != XdpMode::Generic {
                items.push(headroom(&interface));
                items.push(offloads(&interface));
                items.extend(driver_limits(&interface));
            }
            if config.interfaces.len() > 1 && config.xdp_mode != XdpMode::Generic {
                items.extend(redirects(&interface));
            }
            items
        }
        Err(error) => vec![Item::amiss(
            "interface",
            Status::Failure,
            error.to_string(),
            "name an Ethernet interface: `interface` in relay.toml, or RELAY_INTERFACE",
        )],
    }
}

/// The worst status of all, `Ok` for none.
#[must_use]
pub fn worst(items: &[Item]) -> Status {
    items.iter().map(|item| item.status).max().unwrap_or(Status::Ok)
}

fn kernel() -> Item {
    let release = uname().map_or_else(
        |_| "unknown".to_owned(),
        |name| name.release().to_string_lossy().into_owned(),
    );
    let (major, minor) = OLDEST_KERNEL;
    let fix = format!(
        "a kernel of at least {major}.{minor}: with it came frames in several buffers, which the program takes"
    );
    let found = format!("Linux {release}");
    match KernelVersion::current() {
        Ok(version) if version < KernelVersion::new(major, minor, 0) => {
            Item::amiss("kernel", Status::Failure, found, fix)
        }
        Ok(_) => Item::ok("kernel", found),
        Err(_) => Item::amiss(
            "kernel",
            Status::Warning,
            format!("{found}, a version not understood"),
            fix,
        ),
    }
}

fn btf() -> Item {
    let path = "/sys/kernel/btf/vmlinux";
    if Path::new(path).exists() {
        return Item::ok("btf", path);
    }
    Item::amiss(
        "btf",
        Status::Warning,
        format!("no {path}"),
        "nothing is needed to relay; for bpftool to show maps with their fields, a kernel with CONFIG_DEBUG_INFO_BTF",
    )
}

fn jit() -> Item {
    let path = "/proc/sys/net/core/bpf_jit_enable";
    match fs::read_to_string(path).as_deref().map(str::trim) {
        Ok("0") => Item::amiss(
            "bpf_jit",
            Status::Warning,
            "off: programs are interpreted, several times slower",
            "sysctl net.core.bpf_jit_enable=1",
        ),
        Ok(_) => Item::ok("bpf_jit", "on"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Item::ok("bpf_jit", "not shown in this network namespace")
        }
        Err(error) => Item::amiss(
            "bpf_jit",
            Status::Warning,
            format!("{path}: {error}"),
            "check as root that it is 1",
        ),
    }
}

fn capabilities() -> Item {
    let name = "capabilities";
    let Some(missing) = own_missing_capabilities() else {
        return Item::amiss(
            name,
            Status::Warning,
            "/proc/self/status does not tell",
            "mount /proc, and run as root",
        );
    };
    if !missing.is_empty() {
        return Item::amiss(
            name,
            Status::Failure,
            format!("missing: {}", list(&missing)),
            "run as root, or grant them: AmbientCapabilities= of a systemd unit, `--cap-add` of a container, or \
             `setcap cap_bpf,cap_net_admin,cap_perfmon+ep` on the binary",
        );
    }
    // Capabilities in a user namespace of one's own do not count for BPF, which asks for them in the first one.
    match fs::read_to_string("/proc/self/uid_map") {
        Ok(map) if map.split_whitespace().ne(["0", "0", "4294967295"]) => Item::amiss(
            name,
            Status::Warning,
            "this process is in a user namespace, where capabilities do not allow to load programs",
            "run it outside, or in a container without a user namespace of its own",
        ),
        _ => Item::ok(name, CAPABILITIES.map(|(name, ..)| name).join(", ")),
    }
}

/// The capabilities that a relay needs and this process lacks, and what for; `None` if it lacks none, or that cannot be
/// told.
pub(super) fn missing_capabilities() -> Option<String> {
    let missing = own_missing_capabilities()?;
    (!missing.is_empty()).then(|| list(&missing))
}

fn list(missing: &[Capability]) -> String {
    let list: Vec<_> = missing.iter().map(|(name, _, use_)| format!("{name} {use_}")).collect();
    list.join(", ")
}

fn own_missing_capabilities() -> Option<Vec<Capability>> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    effective_capabilities(&status).map(missing_from)
}

/// The effective set in the text of `/proc/<pid>/status`.
fn effective_capabilities(status: &str) -> Option<u64> {
    let field = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(field.trim(), 16).ok()
}

fn missing_from(effective: u64) -> Vec<Capability> {
    let has = |bit: u32| effective & (1 << bit) != 0;
    let stood_for = |bit: u32| bit > SYS_ADMIN && has(SYS_ADMIN);
    let missing = CAPABILITIES.iter().filter(|(_, bit, _)| !has(*bit) && !stood_for(*bit));
    missing.copied().collect()
}

fn bpffs(pin_dir: &Path) -> Item {
    let name = "bpffs";
    let existing: Option<PathBuf> = pin_dir.ancestors().find(|folder| folder.exists()).map(Path::to_owned);
    match existing {
        Some(folder) if is_bpffs(&folder) => Item::ok(name, format!("{} is on one", pin_dir.display())),
        _ if pin_dir.starts_with("/sys/fs/bpf") => Item::ok(name, "none on /sys/fs/bpf yet: the relay mounts it"),
        _ => Item::amiss(
            name,
            Status::Failure,
            format!("{} is not on a BPF file system", pin_dir.display()),
            "mount one there (`mount -t bpf bpf FOLDER`), or set xdp.pin_dir to a folder under /sys/fs/bpf",
        ),
    }
}

fn link(interface: &Interface) -> Item {
    let found = format!("{}, index {}", interface.name, interface.index);
    if interface.up {
        return Item::ok("interface", format!("{found}, up"));
    }
    Item::amiss(
        "interface",
        Status::Warning,
        format!("{found}, down or without carrier"),
        format!(
            "`ip link set {} up`, and check the cable or the virtual link",
            interface.name
        ),
    )
}

fn driver(interface: &Interface) -> Item {
    let Some(driver) = interface.driver.as_deref() else {
        return Item::ok("driver", "not known");
    };
    // Drivers that come with the kernel have its version, and no other.
    let version = fs::read_to_string(format!("/sys/module/{driver}/version"));
    Item::ok(
        "driver",
        match version {
            Ok(version) => format!("{driver}, version {}", version.trim()),
            Err(_) => driver.to_owned(),
        },
    )
}

/// What room a driver leaves in front of frames shows only in frames.
fn headroom(interface: &Interface) -> Item {
    let found = match interface.driver.as_deref() {
        // XDP_PACKET_HEADROOM: drivers/net/veth.c, VETH_XDP_HEADROOM; drivers/net/virtio_net.c, VIRTIO_XDP_HEADROOM;
        // drivers/net/ethernet/amazon/ena/ena_xdp.h, ENA_XDP_MAX_MTU.
        Some("veth" | "virtio_net" | "ena") => "256 bytes",
        _ => "shows only in packets: `no_headroom` counts those that there was no room for",
    };
    Item::ok("headroom", found)
}

/// Whether the network card puts packets together, which XDP programs cannot take.
fn offloads(interface: &Interface) -> Item {
    without(
        interface,
        ("receive_offloads", &MERGING),
        "none that puts packets together",
        "packets are put together before a program sees them, or it is refused natively",
    )
}

/// Whether the network card leaves VLAN tags in frames, where the program reads them.
fn tags(interface: &Interface) -> Item {
    without(
        interface,
        ("vlan", &UNTAGGING),
        "tags stay in frames",
        "tags are taken off before a program sees them, or frames of VLANs without a device are dropped; behind a virtual link, \
         `txvlan off` at its other end too",
    )
}

/// Whether none of these offloads is on, by the names of features and switches of `ethtool`.
fn without(interface: &Interface, (name, offloads): (&'static str, &[(&str, &str)]), fine: &str, why: &str) -> Item {
    match ethtool::active_features(interface.index) {
        Ok(Some(active)) => {
            let is_on = |(feature, _): &&(&str, &str)| active.iter().any(|name| name == feature);
            let on: Vec<_> = offloads.iter().filter(is_on).collect();
            if on.is_empty() {
                return Item::ok(name, fine);
            }
            let names: Vec<_> = on.iter().map(|(feature, _)| *feature).collect();
            let switches: Vec<_> = on.iter().map(|(_, switch)| format!("{switch} off")).collect();
            Item::amiss(
                name,
                Status::Warning,
                format!("{}: {why}", names.join(", ")),
                format!("`ethtool -K {} {}`", interface.name, switches.join(" ")),
            )
        }
        Ok(None) => Item::ok(name, "not known: the kernel has no ethtool netlink"),
        Err(error) => Item::ok(name, format!("not known: {error}")),
    }
}

/// What is known of drivers that refuse native XDP although they have it, from their sources.
fn driver_limits(interface: &Interface) -> Option<Item> {
    let name = "driver_limits";
    match interface.driver.as_deref()? {
        // drivers/net/ethernet/amazon/ena/ena_xdp.h, ena_xdp_allowed(): ENA_XDP_MAX_MTU with pages of 4 KiB, and
        // ena_xdp_legal_queue_count().
        "ena" => Some(Item::amiss(
            name,
            Status::Warning,
            format!("ena takes native XDP with at most half of its queues in use, and an MTU of at most {NATIVE_MTU}"),
            format!(
                "`ethtool -l {0}` tells how many queues there can be: `ethtool -L {0} combined HALF`; `ip link set {0} mtu \
                 {NATIVE_MTU}`",
                interface.name
            ),
        )),
        // drivers/net/virtio_net.c, virtnet_xdp_set().
        "virtio_net" => {
            let cpus = cpus();
            Some(Item::amiss(
                name,
                Status::Warning,
                format!(
                    "virtio_net sends more slowly where the host gives fewer queues than those in use and one for each of {cpus} \
                     CPUs more, and refuses native XDP where the host merges packets (GRO_HW) and does not let that be turned off"
                ),
                "give the guest more queues (`queues=` of its network device), and turn off the guest offloads of that device \
                 (`guest_tso4=off,guest_tso6=off,guest_ecn=off,guest_ufo=off,guest_csum=off` in QEMU)",
            ))
        }
        _ => None,
    }
}

fn cpus() -> u32 {
    thread::available_parallelism().map_or(1, |cpus| cpus.get() as u32)
}

fn native_xdp(interface: &Interface, mode: XdpMode) -> Item {
    let name = "native_xdp";
    let fix = "use an interface whose driver has native XDP; xdp.mode = \"generic\" works with any, but is slower";
    let status = match mode {
        XdpMode::Native => Status::Failure,
        XdpMode::Auto => Status::Warning,
        XdpMode::Generic | XdpMode::Userspace => Status::Ok,
    };
    let features = netdev::features(interface.index);
    match features.map(|features| features.map(|features| (features.runs_xdp(), features))) {
        Ok(Some((true, features))) => Item::ok(name, format!("yes ({})", features.names().join(", "))),
        Ok(Some((false, _))) if status == Status::Ok => Item::ok(name, "no, and xdp.mode = \"generic\" needs none"),
        Ok(Some((false, _))) => Item::amiss(name, status, "the driver has none", fix),
        Ok(None) => Item::ok(
            name,
            "not known: kernels before 6.3 do not tell; attaching falls back to generic mode",
        ),
        Err(error) => Item::amiss(
            name,
            Status::Warning,
            format!("asking the kernel (netlink): {error}"),
            fix,
        ),
    }
}

/// Whether the driver sends what came in by another interface; nothing to say where the kernel cannot tell.
fn redirects(interface: &Interface) -> Option<Item> {
    let name = "redirects";
    match netdev::features(interface.index) {
        Ok(Some(features)) if features.takes_redirects() && is_jumbo(interface) => {
            Some(match features.takes_redirected_buffers() {
                true => Item::ok(name, "sends what comes in by another interface, jumbo frames too"),
                false => Item::amiss(
                    name,
                    Status::Warning,
                    "the driver does not say that it sends jumbo frames that come in natively by another interface: they are \
                     in several buffers",
                    format!(
                        "`ip link set {} mtu {NATIVE_MTU}`, or use a driver with NETDEV_XDP_ACT_NDO_XMIT_SG",
                        interface.name
                    ),
                ),
            })
        }
        Ok(Some(features)) if features.takes_redirects() => {
            Some(Item::ok(name, "sends what comes in by another interface"))
        }
        Ok(Some(_)) => Some(Item::amiss(
            name,
            Status::Warning,
            "the driver does not say that it sends what comes in natively by another interface",
            "on a virtual link, the other end needs an XDP program too; else use a driver with ndo_xdp_xmit, or \
             xdp.mode = \"generic\"",
        )),
        _ => None,
    }
}

fn is_jumbo(interface: &Interface) -> bool {
    interface.mtu > NATIVE_MTU
}

fn mtu(interface: &Interface, mode: XdpMode) -> Item {
    let found = format!("{} bytes", interface.mtu);
    if !is_jumbo(interface) || mode == XdpMode::Generic {
        return Item::ok("mtu", found);
    }
    if let Ok(Some(features)) = netdev::features(interface.index)
        && features.takes_buffers()
    {
        return Item::ok("mtu", format!("{found}, in several buffers"));
    }
    Item::amiss(
        "mtu",
        Status::Warning,
        format!(
            "{found}: the driver does not say that it takes frames in several buffers, and refuses native XDP above about {NATIVE_MTU}"
        ),
        format!(
            "if attaching natively fails: `ip link set {} mtu 1500`, on both ends of a virtual link",
            interface.name
        ),
    )
}

fn queues(interface: &Interface) -> Item {
    let cpus = cpus();
    let found = format!(
        "{} to receive, {} to send, {cpus} CPUs",
        interface.rx_queues, interface.tx_queues
    );
    if cpus > 1 && interface.rx_queues == 1 {
        return Item::amiss(
            "queues",
            Status::Warning,
            format!("{found}: one CPU does all the work"),
            format!("`ethtool -L {} combined {cpus}`, if the driver can", interface.name),
        );
    }
    Item::ok("queues", found)
}

/// Whether somebody else's program is in the way.
fn program(interface: &Interface, config: &Config) -> Item {
    let name = "attached_program";
    let Some(AttachedProgram { id, .. }) = interface.program else {
        return Item::ok(name, "none");
    };
    if config.xdp_persist && pinned_program(&config.xdp_pin_dir, interface.index) == Some(id) {
        return Item::ok(
            name,
            format!("this relay's own, number {id}: a start takes over from it"),
        );
    }
    let called = program_name(id).map_or_else(String::new, |called| format!(" `{called}`"));
    let interface = &interface.name;
    Item::amiss(
        name,
        Status::Failure,
        format!("program{called}, number {id}, is on {interface}, and there is room for one"),
        format!(
            "`bpftool net show dev {interface}` and `bpftool prog show id {id}` tell whose it is; stop what holds it \
             (a relay that runs already: `lumenlink-relay detach`), or `ip link set {interface} xdp off`"
        ),
    )
}

/// What a loaded program is called, if this process may ask.
fn program_name(id: u32) -> Option<String> {
    let found = loaded_programs().flatten().find(|program| program.id() == id)?;
    found.name_as_str().map(str::to_owned)
}

/// Whether the host answers for the relay's addresses: nobody finds those that it has not.
fn addresses(config: &Config) -> Item {
    let name = "addresses";
    let (place, status) = match config.xdp_mode {
        XdpMode::Userspace => ("this host".to_owned(), Status::Failure),
        _ => (config.interfaces.join(", "), Status::Warning),
    };
    let counts = |name: &String| config.xdp_mode == XdpMode::Userspace || config.interfaces.contains(name);
    let held: Vec<_> = match getifaddrs() {
        Ok(found) => found
            .filter(|entry| counts(&entry.interface_name))
            .filter_map(|entry| {
                let address = entry.address?;
                let v4 = address.as_sockaddr_in().map(|v4| v4.ip().into());
                v4.or_else(|| address.as_sockaddr_in6().map(|v6| v6.ip().into()))
            })
            .collect(),
        Err(error) => {
            let found = format!("asking the kernel: {error}");
            return Item::amiss(name, Status::Warning, found, "check that /proc and netlink can be used");
        }
    };
    let listeners = config.listen.iter().map(SocketAddr::ip);
    let mut missing: Vec<_> = listeners
        .chain(config.egress.iter().copied())
        .filter(|ip| !(held.contains(ip) || ip.is_loopback() && ip.is_ipv4()))
        .collect();
    missing.sort();
    missing.dedup();
    if missing.is_empty() {
        return Item::ok(name, format!("all on {place}"));
    }
    let list = missing.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let fix = match config.xdp_mode {
        XdpMode::Userspace => "give the host these addresses, or name its own in `listen` and `egress`".to_owned(),
        _ => format!(
            "`ip address add ADDRESS dev {}`, unless a router sends their packets here",
            config.interfaces[0]
        ),
    };
    Item::amiss(name, status, format!("{list} not on {place}"), fix)
}

/// Whether every user can have a socket.
fn sockets(config: &Config) -> Item {
    let (name, room) = ("sockets", userspace::room());
    let found = format!("one for each user: {} of at most {room}", config.max_users);
    if config.max_users <= room {
        return Item::ok(name, found);
    }
    Item::amiss(
        name,
        Status::Failure,
        found,
        "set max_users lower, or raise the limit of open files (RLIMIT_NOFILE): LimitNOFILE= of a systemd unit, \
         `--ulimit nofile=` of a container, `ulimit -Hn`",
    )
}

/// Whether the kernel may give egress ports to other sockets before the relay has them.
fn egress_ports(config: &Config) -> Item {
    let name = "egress_ports";
    let (first, last) = (config.first_egress_port, config.last_egress_port);
    let found = format!("{first}-{last}");
    let Some(ephemeral) = read_range("/proc/sys/net/ipv4/ip_local_port_range") else {
        return Item::ok(name, found);
    };
    let reserved = fs::read_to_string("/proc/sys/net/ipv4/ip_local_reserved_ports").unwrap_or_default();
    let is_reserved = |port: u16| {
        let mut ranges = reserved.trim().split(',').filter_map(|range| parse_range(range, '-'));
        ranges.any(|range| range.contains(&port))
    };
    let (low, high) = (first.max(*ephemeral.start()), last.min(*ephemeral.end()));
    if low > high || (low..=high).all(is_reserved) {
        return Item::ok(name, found);
    }
    Item::amiss(
        name,
        Status::Warning,
        format!("{found}: the kernel gives {low}-{high} to any program that asks for a port"),
        format!(
            "`sysctl net.ipv4.ip_local_reserved_ports={low}-{high}`, or choose egress_ports below {}; users whose port \
             is taken wait until it is free",
            ephemeral.start()
        ),
    )
}

/// Whether listeners may queue what arrives at once.
fn buffers() -> Item {
    let (name, path) = ("buffers", "/proc/sys/net/core/rmem_max");
    let wanted = userspace::LISTENER_BYTES;
    match fs::read_to_string(path)
        .ok()
        .and_then(|text| text.trim().parse::<usize>().ok())
    {
        Some(most) if most < wanted => Item::amiss(
            name,
            Status::Warning,
            format!("a listener may queue {most} bytes; what arrives in a burst beyond that is lost, uncounted"),
            format!("`sysctl net.core.rmem_max={wanted} net.core.wmem_max={wanted}`"),
        ),
        Some(_) => Item::ok(name, format!("a listener may queue {wanted} bytes")),
        None => Item::ok(name, format!("{path} is not shown here")),
    }
}

fn read_range(path: &str) -> Option<RangeInclusive<u16>> {
    parse_range(fs::read_to_string(path).ok()?.trim(), '\t')
}

/// A range of ports, or a single one.
fn parse_range(text: &str, between: char) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once(between).unwrap_or((text, text));
    Some(first.trim().parse().ok()?..=last.trim().parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_capability_is_named_and_cap_sys_admin_stands_for_those_of_bpf() {
        let names = |effective| {
            missing_from(effective)
                .iter()
                .map(|(name, ..)| *name)
                .collect::<Vec<_>>()
        };
        assert_eq!(names(0), ["CAP_NET_ADMIN", "CAP_PERFMON", "CAP_BPF"]);
        assert_eq!(names(1 << 12 | 1 << 39), ["CAP_PERFMON"]);
        assert_eq!(names(1 << SYS_ADMIN), ["CAP_NET_ADMIN"]);
        assert!(names(1 << 12 | 1 << SYS_ADMIN).is_empty());
    }

    #[test]
    fn ranges_of_ports_are_read_with_either_separator() {
        assert_eq!(parse_range("32768\t60999", '\t'), Some(32768..=60999));
        assert_eq!(parse_range("10000-10999", '-'), Some(10000..=10999));
        assert_eq!(parse_range("8080", '-'), Some(8080..=8080));
        assert_eq!(parse_range("", '-'), None);
    }

    #[test]
    fn the_effective_set_is_read_from_proc() {
        let status = "Name:\tx\nCapPrm:\t000001ffffffffff\nCapEff:\t0000000000001000\n";
        assert_eq!(effective_capabilities(status), Some(1 << 12));
        assert_eq!(effective_capabilities("Name:\tx\n"), None);
        assert!(effective_capabilities(&fs::read_to_string("/proc/self/status").unwrap()).is_some());
    }

    #[test]
    fn the_worst_status_is_a_failures() {
        let items = [
            Item::ok("a", "x"),
            Item::amiss("b", Status::Failure, "x", "y"),
            Item::amiss("c", Status::Warning, "x", "y"),
        ];
        assert_eq!(worst(&items), Status::Failure);
        assert_eq!(worst(&[]), Status::Ok);
    }
}
