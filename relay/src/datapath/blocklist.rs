//! The operator's prefixes as the blocklist map holds them: IPv4 addresses are IPv4-mapped there.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use relay_ebpf::{
    host::HostMemory,
    layout::{BLOCKED, Control, SPARED},
    platform::Memory as _,
    wire::Address,
};

/// Bits in front of an IPv4 address.
const MAPPED_BITS: u32 = 96;

/// What the map must hold, by address and length in bits, for exactly these prefixes to be blocked. IPv6 prefixes of
/// IPv4-mapped addresses are left out: no packet that the program looks at has one.
#[must_use]
pub fn entries(prefixes: &[IpNet]) -> HashMap<(Address, u32), u32> {
    let mut entries = HashMap::new();
    for prefix in prefixes {
        let length = u32::from(prefix.prefix_len());
        let key = match prefix {
            IpNet::V4(_) => (Address::from(prefix.network()), MAPPED_BITS + length),
            IpNet::V6(_) if is_mapped(prefix) => continue,
            IpNet::V6(v6) => {
                if v6.contains(&all_of_ipv4()) {
                    // Less than any IPv4 prefix that is blocked, more than the IPv6 prefix around it.
                    let key = (Address::from(IpAddr::V6(all_of_ipv4())), MAPPED_BITS);
                    entries.entry(key).or_insert(SPARED);
                }
                (Address::from(prefix.network()), length)
            }
        };
        entries.insert(key, BLOCKED);
    }
    entries
}

/// Reads a prefix in CIDR notation; an address alone is a prefix of its whole length.
///
/// # Errors
/// What to write, for people.
pub fn parse(text: &str) -> Result<IpNet, String> {
    let parsed = text
        .parse::<IpNet>()
        .or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    parsed.map_err(|_| format!("`{text}`: write a prefix like 203.0.113.0/24 or 2001:db8::/32, or an address"))
}

/// Tells the data plane that the blocklist changed: another generation, 0 while it is empty.
pub fn renew_generation(control: &Control, is_empty: bool) {
    let generation = &control.block_generation;
    let next = match is_empty {
        true => 0,
        false => HostMemory.load(generation) % u64::from(u16::MAX) + 1,
    };
    HostMemory.store(generation, next);
}

/// Whether an IPv6 prefix has IPv4-mapped addresses only.
#[must_use]
pub fn is_mapped(prefix: &IpNet) -> bool {
    match prefix {
        IpNet::V4(_) => false,
        IpNet::V6(v6) => v6.network().to_ipv4_mapped().is_some() && u32::from(v6.prefix_len()) >= MAPPED_BITS,
    }
}

const fn all_of_ipv4() -> Ipv6Addr {
    Ipv4Addr::UNSPECIFIED.to_ipv6_mapped()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[test]
    fn an_address_is_a_prefix_of_its_whole_length() {
        assert_eq!(parse("192.0.2.1").unwrap().to_string(), "192.0.2.1/32");
        assert_eq!(parse("2001:db8::/32").unwrap().to_string(), "2001:db8::/32");
        assert!(parse("192.0.2.1/33").is_err());
    }

    #[rstest]
    #[case::ipv4(&["203.0.113.0/24"], &[("::ffff:203.0.113.0", 120, BLOCKED)])]
    #[case::ipv6(&["2001:db8::/32"], &[("2001:db8::", 32, BLOCKED)])]
    #[case::all_of_ipv6_spares_ipv4(&["::/0"], &[("::", 0, BLOCKED), ("::ffff:0:0", 96, SPARED)])]
    #[case::all_of_both(&["::/0", "0.0.0.0/0"], &[("::", 0, BLOCKED), ("::ffff:0:0", 96, BLOCKED)])]
    #[case::all_of_both_the_other_way_round(&["0.0.0.0/0", "::/0"], &[("::", 0, BLOCKED), ("::ffff:0:0", 96, BLOCKED)])]
    #[case::mapped_addresses_are_on_no_wire(&["::ffff:0:0/96", "::ffff:203.0.113.0/120"], &[])]
    fn prefixes_become_entries(#[case] prefixes: &[&str], #[case] expected: &[(&str, u32, u32)]) {
        let prefixes: Vec<IpNet> = prefixes.iter().map(|prefix| prefix.parse().unwrap()).collect();
        let expected = expected.iter().map(|&(address, length, value)| {
            let address: Ipv6Addr = address.parse().unwrap();
            ((Address::from(IpAddr::V6(address)), length), value)
        });
        assert_eq!(entries(&prefixes), expected.collect());
    }
}
