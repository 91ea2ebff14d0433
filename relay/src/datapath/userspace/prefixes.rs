//! The blocklist in this process: the longest prefix of an address, as the kernel's LPM_TRIE finds it.

use std::{collections::HashMap, net::IpAddr};

use relay_ebpf::wire::Address;

const ADDRESS_BITS: u32 = 128;

/// Prefixes and what they say, by length: one look-up for each length in use, the longest first.
#[derive(Debug, Default)]
pub(super) struct Prefixes {
    by_length: Vec<(u32, HashMap<u128, u32>)>,
}

impl Prefixes {
    /// Exactly these, by address and length in bits.
    pub(super) fn new(entries: &HashMap<(Address, u32), u32>) -> Self {
        let mut by_length: Vec<(u32, HashMap<u128, u32>)> = Vec::new();
        for (&(address, length), &value) in entries {
            let key = masked(address, length);
            match by_length.iter_mut().find(|(known, _)| *known == length) {
                Some((_, prefixes)) => prefixes.insert(key, value),
                None => {
                    by_length.push((length, HashMap::from([(key, value)])));
                    None
                }
            };
        }
        by_length.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
        Self { by_length }
    }

    /// What the longest prefix of this address says.
    pub(super) fn get(&self, address: Address) -> Option<u32> {
        let mut lengths = self.by_length.iter();
        lengths.find_map(|(length, prefixes)| prefixes.get(&masked(address, *length)).copied())
    }
}

fn masked(address: Address, length: u32) -> u128 {
    let bits = match IpAddr::from(address) {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    };
    match ADDRESS_BITS.saturating_sub(length) {
        ADDRESS_BITS => 0,
        free => bits >> free << free,
    }
}

#[cfg(test)]
mod tests {
    use relay_ebpf::layout::{BLOCKED, SPARED};
    use rstest::rstest;

    use super::*;
    use crate::datapath::blocklist;

    #[rstest]
    #[case::inside("203.0.113.9", Some(BLOCKED))]
    #[case::beside("203.0.114.1", Some(SPARED))]
    #[case::the_longest_counts("2001:db8:1::1", Some(BLOCKED))]
    #[case::all_of_ipv6("2001:db8::1", Some(BLOCKED))]
    fn the_longest_prefix_says_what_becomes_of_an_address(#[case] address: IpAddr, #[case] expected: Option<u32>) {
        let prefixes = ["203.0.113.0/24", "::/0", "2001:db8:1::/48"].map(|prefix| prefix.parse().unwrap());
        let prefixes = Prefixes::new(&blocklist::entries(&prefixes));
        assert_eq!(prefixes.get(address.into()), expected);
        assert_eq!(Prefixes::default().get(address.into()), None);
    }
}
