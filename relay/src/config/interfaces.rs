//! Where packets arrive and leave, and whose addresses are listened on where nothing else is said.

use std::net::{IpAddr, SocketAddr};

use nix::{ifaddrs::getifaddrs, sys::socket::SockaddrLike as _};
use relay_ebpf::layout::{MAX_INTERFACES, MAX_LISTENERS};

use super::{
    XdpMode,
    read::{Raw, Reader},
};

/// What `interface` is in userspace mode unless it is given: packets come and go by whichever the kernel routes by.
pub const ANY_INTERFACE: &str = "any";

const DEFAULT_PORT: u16 = 4500;

/// The interfaces, of which there is one at least even where they have faults.
pub(super) fn read(reader: &mut Reader<'_>, mode: XdpMode) -> Vec<String> {
    const KEY: &str = "interface";
    let given = reader.is_given(KEY);
    if mode == XdpMode::Userspace && !given {
        return vec![ANY_INTERFACE.to_owned()];
    }
    let mut interfaces = reader.take_list_or_one(KEY, Raw::text).unwrap_or_default();
    for (i, name) in interfaces.iter().enumerate() {
        if interfaces[..i].contains(name) {
            reader.fault(KEY, format!("{name} is there twice"));
        }
    }
    if interfaces.len() > MAX_INTERFACES {
        let found = interfaces.len();
        reader.fault(KEY, format!("{found} interfaces; a relay has at most {MAX_INTERFACES}"));
    }
    // Not where items were no names: an empty list is then but a consequence.
    if given && interfaces.is_empty() && !reader.has_fault(KEY) {
        reader.fault(KEY, "no interface: write at least one, or leave the key out".to_owned());
    }
    if interfaces.is_empty() {
        interfaces.push("eth0".to_owned());
    }
    interfaces
}

/// All addresses of the interfaces that others can reach, with the default port.
pub(super) fn default_listeners(interfaces: &[String]) -> Result<Vec<SocketAddr>, String> {
    if interfaces == [ANY_INTERFACE] {
        return Err(
            "where to listen is not known: set `listen` in relay.toml (RELAY_LISTEN), or `interface` to those whose \
             addresses it is"
                .to_owned(),
        );
    }
    let names = interfaces.join(", ");
    let all = getifaddrs().map_err(|error| format!("listing the addresses of {names}: {error}"))?;
    let all: Vec<_> = all.collect();
    for interface in interfaces {
        if !all.iter().any(|entry| entry.interface_name == *interface) {
            return Err(format!(
                "there is no interface `{interface}` here; set `interface` in relay.toml, or RELAY_INTERFACE"
            ));
        }
    }
    let mut addresses = Vec::new();
    for entry in all.iter().filter(|entry| interfaces.contains(&entry.interface_name)) {
        let Some(address) = entry.address else { continue };
        debug_assert!(address.len() > 0);
        if let Some(v4) = address.as_sockaddr_in() {
            addresses.push(IpAddr::V4(v4.ip()));
        } else if let Some(v6) = address.as_sockaddr_in6() {
            addresses.push(IpAddr::V6(v6.ip()));
        }
    }
    addresses.retain(|address| is_host(*address));
    addresses.sort();
    addresses.truncate(MAX_LISTENERS);
    if addresses.is_empty() {
        return Err(format!(
            "{names} has no address that others can reach: give it one, or set `listen` in relay.toml"
        ));
    }
    Ok(addresses
        .into_iter()
        .map(|address| SocketAddr::new(address, DEFAULT_PORT))
        .collect())
}

/// Whether packets can go to and come from this address across links.
pub(super) fn is_host(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !(v4.is_unspecified() || v4.is_multicast() || v4.is_broadcast() || v4.is_link_local()),
        IpAddr::V6(v6) => {
            !(v6.is_unspecified() || v6.is_multicast() || v6.is_unicast_link_local() || v6.to_ipv4_mapped().is_some())
        }
    }
}
