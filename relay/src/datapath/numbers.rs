//! The numbers that the program knows interfaces by.
//!
//! They are in what it remembers of clients and next hops, so an interface keeps its number as long as the maps live,
//! whatever the configuration becomes; the map of interfaces to send by says which one it has.

use relay_ebpf::layout::{self, MAX_INTERFACES};

use super::{interface::Interface, maps::Ports};

/// The interfaces of a relay, by number.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Numbered([Option<Interface>; MAX_INTERFACES]);

impl Numbered {
    /// Numbers at most [`MAX_INTERFACES`] interfaces: those in `ports` keep theirs, the others get the first that are
    /// free, if possible of those that no interface had before.
    #[must_use]
    pub fn new(interfaces: Vec<Interface>, ports: &Ports) -> Self {
        let mut numbered = Self::default();
        let had = |interface: &Interface| ports.iter().position(|port| *port == interface.index);
        let (known, new): (Vec<_>, Vec<_>) = interfaces.into_iter().partition(|interface| had(interface).is_some());
        for interface in known {
            if let Some(number) = had(&interface) {
                numbered.0[number] = Some(interface);
            }
        }
        for interface in new {
            let is_free = |number: &usize| numbered.0[*number].is_none();
            let unused = (0..MAX_INTERFACES).filter(is_free).find(|number| ports[*number] == 0);
            if let Some(number) = unused.or_else(|| (0..MAX_INTERFACES).find(is_free)) {
                numbered.0[number] = Some(interface);
            }
        }
        numbered
    }

    /// The interfaces and their numbers.
    pub fn iter(&self) -> impl Iterator<Item = (u8, &Interface)> {
        let all = self.0.iter().enumerate();
        all.filter_map(|(number, interface)| Some((number as u8, interface.as_ref()?)))
    }

    /// The kernel's index of the interface with this number; 0 if there is none.
    #[must_use]
    pub fn index(&self, number: u8) -> u32 {
        self.0[usize::from(number)]
            .as_ref()
            .map_or(0, |interface| interface.index)
    }

    /// Their names, for a message.
    #[must_use]
    pub fn names(&self) -> String {
        let names: Vec<_> = self.iter().map(|(_, interface)| interface.name.as_str()).collect();
        names.join(", ")
    }

    /// As the program has them, and how many numbers it has to look at.
    #[must_use]
    pub fn settings(&self) -> ([layout::Interface; MAX_INTERFACES], u32) {
        let mut settings = [layout::Interface::default(); MAX_INTERFACES];
        let mut count = 0;
        for (number, interface) in self.iter() {
            settings[usize::from(number)] = layout::Interface {
                mac: interface.mac,
                index: interface.index,
                mtu: interface.mtu,
            };
            count = u32::from(number) + 1;
        }
        (settings, count)
    }
}

#[cfg(test)]
mod tests {
    use relay_ebpf::wire::Mac;

    use super::*;

    fn interface(index: u32) -> Interface {
        Interface {
            name: format!("eth{index}"),
            index,
            mac: Mac::new([2, 0, 0, 0, 0, index as u8]),
            mtu: 1500,
            up: true,
            program: None,
            driver: None,
            rx_queues: 1,
            tx_queues: 1,
        }
    }

    fn numbers(indices: &[u32], ports: &[u32]) -> Vec<(u8, u32)> {
        let mut all = Ports::default();
        all[..ports.len()].copy_from_slice(ports);
        let interfaces = indices.iter().map(|index| interface(*index)).collect();
        let numbered = Numbered::new(interfaces, &all);
        numbered
            .iter()
            .map(|(number, interface)| (number, interface.index))
            .collect()
    }

    #[test]
    fn an_interface_keeps_its_number_and_a_new_one_gets_one_that_nobody_had() {
        assert_eq!(numbers(&[7, 5], &[]), [(0, 7), (1, 5)]);
        assert_eq!(numbers(&[5, 7], &[7, 5]), [(0, 7), (1, 5)]);
        assert_eq!(numbers(&[5], &[7, 5]), [(1, 5)]);
        assert_eq!(numbers(&[5, 9], &[7, 5]), [(1, 5), (2, 9)]);
        assert_eq!(numbers(&[9], &[1, 2, 3, 4, 5, 6, 7, 8]), [(0, 9)]);
        assert_eq!(numbers(&[8, 9], &[1, 2, 3, 4, 5, 6, 7, 8]), [(0, 9), (7, 8)]);
    }

    #[test]
    fn the_program_looks_at_numbers_up_to_the_largest() {
        let numbered = Numbered::new(vec![interface(5)], &[7, 5, 0, 0, 0, 0, 0, 0]);
        let (settings, count) = numbered.settings();
        assert_eq!((count, settings[0].index, settings[1].index), (2, 0, 5));
        assert_eq!((numbered.index(0), numbered.index(1)), (0, 5));
    }
}
