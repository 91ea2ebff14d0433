//! Typed handles on the program's maps.

use std::{collections::HashMap, io, path::Path, sync::atomic::AtomicU64};

use aya::{
    Ebpf,
    maps::{Array, DevMap, LpmTrie, Map, MapData, MapError, PerCpuArray, RingBuf, lpm_trie::Key, xdp::XdpMapError},
};
use relay_ebpf::{
    layout::{
        Control, DestinationEntry, DestinationLimitEntry, DownLimitEntry, LATENCY_BUCKETS, LAYOUT_VERSION, Latency,
        MAX_INTERFACES, SaltEntry, SlotEntry, map,
    },
    verdict::{Direction, Reason},
    wire::Address,
};

use super::{
    Counter,
    mmap::{Entry, Mapped},
    program::PINNED_MAPS,
};

/// Why a map could not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MapsError {
    /// The object has no such map, or one of another kind.
    #[error("the program has no usable map {name}: it was not built from this version's sources")]
    Missing {
        /// The map.
        name: &'static str,
    },
    /// `mmap` failed.
    #[error("mapping {name} into memory: {source}")]
    Mmap {
        /// The map.
        name: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// A map operation failed.
    #[error("{action} {name}: {source}")]
    Operation {
        /// What was tried.
        action: &'static str,
        /// The map.
        name: &'static str,
        /// What the kernel said.
        source: MapError,
    },
    /// An interface could not be put into the map of those to send by.
    #[error("putting an interface into {name}: {source}", name = map::TX_PORTS)]
    Port {
        /// What the kernel said.
        source: XdpMapError,
    },
}

/// The kernel's indices of the interfaces to send by, by number; 0 for none.
pub type Ports = [u32; MAX_INTERFACES];

/// Latency in words, as the per-CPU array holds it.
type LatencyWords = [u64; 2 + LATENCY_BUCKETS];

/// The maps of one loaded program. Entries of users, states and destinations are plain memory shared with it.
pub struct Maps {
    slots: Mapped<SlotEntry>,
    salts: Mapped<SaltEntry>,
    client_tags: Mapped<AtomicU64>,
    destinations: Mapped<DestinationEntry>,
    down_limits: Mapped<DownLimitEntry>,
    destination_limits: Mapped<DestinationLimitEntry>,
    control: Mapped<Control>,
    counters: PerCpuArray<MapData, [u64; 2]>,
    latency: PerCpuArray<MapData, LatencyWords>,
    blocklist: LpmTrie<MapData, [u32; 4], u32>,
    ports: DevMap<MapData>,
    events: Option<RingBuf<MapData>>,
    /// Kept because the program does not use it: the kernel would drop it.
    _layout: Array<MapData, u32>,
    /// The kernel's ids of all these maps, by name.
    ids: Vec<(&'static str, u32)>,
}

impl Maps {
    /// Takes the maps out of a loaded object.
    pub(super) fn take(ebpf: &mut Ebpf, max_users: u32, max_destinations: u32) -> Result<Self, MapsError> {
        let ids = PINNED_MAPS
            .iter()
            .map(|name| Ok((*name, id(ebpf, name)?)))
            .collect::<Result<_, MapsError>>()?;
        let mut layout: Array<MapData, u32> = typed(ebpf, map::LAYOUT)?;
        layout
            .set(0, LAYOUT_VERSION, 0)
            .map_err(|source| MapsError::Operation {
                action: "writing",
                name: map::LAYOUT,
                source,
            })?;
        Ok(Self {
            ids,
            _layout: layout,
            slots: mapped(ebpf, map::USERS, max_users)?,
            salts: mapped(ebpf, map::SALTS, SaltEntry::count(max_users))?,
            client_tags: mapped(ebpf, map::CLIENT_TAGS, max_users)?,
            destinations: mapped(ebpf, map::DESTINATIONS, max_destinations)?,
            down_limits: mapped(ebpf, map::DOWN_LIMITS, max_users)?,
            destination_limits: mapped(ebpf, map::DESTINATION_LIMITS, max_destinations)?,
            control: mapped(ebpf, map::CONTROL, 1)?,
            counters: typed(ebpf, map::COUNTERS)?,
            latency: typed(ebpf, map::LATENCY)?,
            blocklist: typed(ebpf, map::BLOCKLIST)?,
            ports: typed(ebpf, map::TX_PORTS)?,
            events: Some(typed(ebpf, map::EVENTS)?),
        })
    }

    /// Pins every map under its name in `dir`, for another load of the program to find.
    ///
    /// # Errors
    /// If the kernel refuses: `dir` is not on a bpffs, or the names are taken.
    pub(super) fn pin(&self, dir: &Path) -> Result<(), MapsError> {
        for (name, id) in &self.ids {
            let operation = |source| MapsError::Operation {
                action: "pinning",
                name,
                source,
            };
            let data = MapData::from_id(*id).map_err(operation)?;
            data.pin(dir.join(name)).map_err(|error| {
                operation(MapError::PinError {
                    name: Some((*name).to_owned()),
                    error,
                })
            })?;
        }
        Ok(())
    }

    /// Users and their states, by slot.
    #[must_use]
    pub fn slots(&self) -> &[SlotEntry] {
        &self.slots
    }

    /// Salts of users, by slot / [`SaltEntry::SLOTS`].
    #[must_use]
    pub fn salts(&self) -> &[SaltEntry] {
        &self.salts
    }

    /// The VLAN tags of clients that have any, by slot.
    #[must_use]
    pub fn client_tags(&self) -> &[AtomicU64] {
        &self.client_tags
    }

    /// Destinations, by index.
    #[must_use]
    pub fn destinations(&self) -> &[DestinationEntry] {
        &self.destinations
    }

    /// Limits of users' downlinks, by slot.
    #[must_use]
    pub fn down_limits(&self) -> &[DownLimitEntry] {
        &self.down_limits
    }

    /// What is spent of destinations' limits, by the destination's index.
    #[must_use]
    pub fn destination_limits(&self) -> &[DestinationLimitEntry] {
        &self.destination_limits
    }

    /// What changes while the program runs.
    #[must_use]
    pub fn control(&self) -> &Control {
        &self.control[0]
    }

    /// All counters, summed over CPUs, in the order of directions and reasons.
    ///
    /// # Errors
    /// If the kernel refuses to read the map.
    pub fn counters(&self) -> Result<Vec<Counter>, MapsError> {
        let mut counters = Vec::with_capacity(Direction::ALL.len() * Reason::ALL.len());
        for direction in Direction::ALL {
            for reason in Reason::ALL {
                counters.push(self.counter(direction, reason)?);
            }
        }
        Ok(counters)
    }

    /// One counter, summed over CPUs.
    ///
    /// # Errors
    /// If the kernel refuses to read the map.
    pub fn counter(&self, direction: Direction, reason: Reason) -> Result<Counter, MapsError> {
        let [packets, bytes] = self.counted(reason.counter(direction))?;
        Ok(Counter {
            direction,
            reason,
            packets,
            bytes,
        })
    }

    /// ICMP messages to the senders of packets of this direction, summed over CPUs.
    ///
    /// # Errors
    /// If the kernel refuses to read the map.
    pub fn answers(&self, direction: Direction) -> Result<u64, MapsError> {
        self.counted(direction.answers()).map(|[messages, _]| messages)
    }

    fn counted(&self, index: u32) -> Result<[u64; 2], MapsError> {
        let values = self.counters.get(&index, 0).map_err(reading(map::COUNTERS))?;
        let sum = |i: usize| values.iter().map(|value| value[i]).sum();
        Ok([sum(0), sum(1)])
    }

    /// The latency histogram, summed over CPUs.
    ///
    /// # Errors
    /// If the kernel refuses to read the map.
    pub fn latency(&self) -> Result<Latency, MapsError> {
        let values = self.latency.get(&0, 0).map_err(reading(map::LATENCY))?;
        let mut sum = Latency::default();
        for [packets, sum_ns, buckets @ ..] in values.iter() {
            sum.packets += packets;
            sum.sum_ns += sum_ns;
            for (total, samples) in sum.buckets.iter_mut().zip(buckets) {
                *total += samples;
            }
        }
        Ok(sum)
    }

    /// Adds a prefix of an address to the blocklist, or changes what it says. `length` counts as in
    /// [`PrefixKey`](relay_ebpf::layout::PrefixKey), `value` is [`BLOCKED`](relay_ebpf::layout::BLOCKED) or
    /// [`SPARED`](relay_ebpf::layout::SPARED). The program takes notice when [`Control::block_generation`] changes.
    ///
    /// # Errors
    /// If the list is full.
    pub fn block(&mut self, address: Address, length: u32, value: u32) -> Result<(), MapsError> {
        let key = Key::new(length, address.0);
        self.blocklist
            .insert(&key, value, 0)
            .map_err(|source| MapsError::Operation {
                action: "adding a prefix to",
                name: map::BLOCKLIST,
                source,
            })
    }

    /// Takes a prefix off the blocklist.
    ///
    /// # Errors
    /// If it is not on it.
    pub fn unblock(&mut self, address: Address, length: u32) -> Result<(), MapsError> {
        let key = Key::new(length, address.0);
        self.blocklist.remove(&key).map_err(|source| MapsError::Operation {
            action: "removing a prefix from",
            name: map::BLOCKLIST,
            source,
        })
    }

    /// The prefixes on the blocklist, addresses and lengths, and what they say.
    ///
    /// # Errors
    /// If the kernel refuses to read the map.
    pub fn blocked(&self) -> Result<HashMap<(Address, u32), u32>, MapsError> {
        let entry = |(key, value): (Key<[u32; 4]>, u32)| ((Address(key.data()), key.prefix_len()), value);
        let entries: Result<HashMap<_, _>, _> = self.blocklist.iter().map(|found| found.map(entry)).collect();
        entries.map_err(reading(map::BLOCKLIST))
    }

    /// The interfaces that the program can send by.
    ///
    /// # Errors
    /// If the kernel refuses to read the map.
    pub fn ports(&self) -> Result<Ports, MapsError> {
        read_ports(&self.ports)
    }

    /// Lets the program send by the interface with this index under this number; by none with index 0.
    ///
    /// # Errors
    /// If the kernel refuses, as it does an index that no interface of this network namespace has.
    pub fn set_port(&mut self, number: u8, index: u32) -> Result<(), MapsError> {
        self.ports
            .set(number.into(), index, None, 0)
            .map_err(|source| MapsError::Port { source })
    }

    /// The ring of drop events, once: whoever takes it reads it.
    pub fn take_events(&mut self) -> Option<RingBuf<MapData>> {
        self.events.take()
    }
}

/// The interfaces in the pinned map of those to send by; none if there is no such pin.
///
/// # Errors
/// If it cannot be read.
pub(super) fn pinned_ports(dir: &Path) -> Result<Ports, MapsError> {
    let path = dir.join(map::TX_PORTS);
    if !path.exists() {
        return Ok(Ports::default());
    }
    let data = MapData::from_pin(path).map_err(reading(map::TX_PORTS))?;
    let ports = DevMap::try_from(Map::DevMap(data)).map_err(reading(map::TX_PORTS))?;
    read_ports(&ports)
}

fn read_ports(found: &DevMap<MapData>) -> Result<Ports, MapsError> {
    let mut ports = Ports::default();
    for (number, port) in ports.iter_mut().enumerate() {
        *port = match found.get(number as u32, 0) {
            Ok(value) => value.if_index,
            Err(MapError::KeyNotFound) => 0,
            Err(source) => return Err(reading(map::TX_PORTS)(source)),
        };
    }
    Ok(ports)
}

fn id(ebpf: &Ebpf, name: &'static str) -> Result<u32, MapsError> {
    let Some(Map::Array(data) | Map::PerCpuArray(data) | Map::LpmTrie(data) | Map::RingBuf(data) | Map::DevMap(data)) =
        ebpf.map(name)
    else {
        return Err(MapsError::Missing { name });
    };
    data.info().map(|info| info.id()).map_err(reading(name))
}

fn reading(name: &'static str) -> impl FnOnce(MapError) -> MapsError {
    move |source| MapsError::Operation {
        action: "reading",
        name,
        source,
    }
}

fn typed<T: TryFrom<Map, Error = MapError>>(ebpf: &mut Ebpf, name: &'static str) -> Result<T, MapsError> {
    let map = ebpf.take_map(name).ok_or(MapsError::Missing { name })?;
    T::try_from(map).map_err(|_| MapsError::Missing { name })
}

fn mapped<E: Entry>(ebpf: &mut Ebpf, name: &'static str, entries: u32) -> Result<Mapped<E>, MapsError> {
    match ebpf.take_map(name) {
        Some(Map::Array(data)) => Mapped::new(data.fd(), entries).map_err(|source| MapsError::Mmap { name, source }),
        _ => Err(MapsError::Missing { name }),
    }
}
