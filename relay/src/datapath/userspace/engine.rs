//! What the threads share: the entries of users and destinations, and what changes between two packets.

use std::{
    net::SocketAddr,
    sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, atomic::AtomicU64},
};

use nix::{
    errno::Errno,
    time::{ClockId, clock_gettime},
};
use relay_ebpf::{
    host::{HostAtomics, HostMemory, entries},
    layout::{
        BLOCKED, Control, DestinationEntry, DestinationLimitEntry, DownLimitEntry, SaltEntry, Settings, SlotEntry,
    },
    platform::{Memory as _, Platform},
    wire::{Address, Be16},
};

use super::{prefixes::Prefixes, socket::Socket};

/// The entries, which are what the maps are to the XDP program, and what goes with them.
pub(super) struct Engine {
    pub(super) slots: Box<[SlotEntry]>,
    pub(super) salts: Box<[SaltEntry]>,
    pub(super) destinations: Box<[DestinationEntry]>,
    pub(super) down_limits: Box<[DownLimitEntry]>,
    pub(super) destination_limits: Box<[DestinationLimitEntry]>,
    pub(super) control: Control,
    live: RwLock<Live>,
}

/// What changes between two packets. A thread holds it from when it receives until all it received is sent, so
/// whoever changes it knows that no packet is in flight.
pub(super) struct Live {
    pub(super) settings: Settings,
    pub(super) blocklist: Prefixes,
    /// By thread, then as in the settings.
    pub(super) listeners: Vec<Vec<Socket>>,
    /// By slot; none where there is no user, or the port could not be had.
    pub(super) egress: Vec<Option<Socket>>,
}

impl Engine {
    /// Empty entries, as many as `settings` says.
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            slots: entries(settings.max_users),
            salts: entries(SaltEntry::count(settings.max_users)),
            destinations: entries(settings.max_destinations),
            down_limits: entries(settings.max_users),
            destination_limits: entries(settings.max_destinations),
            control: Control::default(),
            live: RwLock::new(Live {
                settings,
                blocklist: Prefixes::default(),
                listeners: Vec::new(),
                egress: Vec::new(),
            }),
        }
    }

    /// To relay packets.
    pub(super) fn live(&self) -> RwLockReadGuard<'_, Live> {
        self.live.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// To change something while no packet is in flight.
    pub(super) fn change(&self) -> RwLockWriteGuard<'_, Live> {
        self.live.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Live {
    /// The egress socket of a slot.
    pub(super) fn egress(&self, slot: u32) -> Option<&Socket> {
        self.egress.get(slot as usize)?.as_ref()
    }

    /// The egress address and port of the user in a slot, who has this egress address of a family's and this port.
    pub(super) fn egress_address(&self, v4: bool, index: u16, port: u16) -> Option<SocketAddr> {
        let settings = &self.settings;
        let (addresses, count) = match v4 {
            true => (&settings.egress_v4, settings.egress_v4_count),
            false => (&settings.egress_v6, settings.egress_v6_count),
        };
        let address = addresses[..count as usize].get(usize::from(index))?;
        Some(SocketAddr::new((*address).into(), port))
    }

    /// The index of the listener with this address and port.
    pub(super) fn listener(&self, at: (Address, Be16)) -> Option<u32> {
        let settings = &self.settings;
        let listeners = &settings.listeners[..settings.listener_count as usize];
        let index = listeners
            .iter()
            .position(|listener| (listener.address, listener.port) == at)?;
        Some(index as u32)
    }
}

/// The engine during one turn of a thread: what the decisions see. Time stands still meanwhile.
pub(super) struct View<'a> {
    engine: &'a Engine,
    pub(super) live: &'a Live,
    now_ns: u64,
}

impl<'a> View<'a> {
    pub(super) fn now(engine: &'a Engine, live: &'a Live) -> Result<Self, Errno> {
        let now_ns = if live.settings.lab_clock != 0 {
            HostMemory.load(&engine.control.lab_now_ns)
        } else {
            // The tick's clock: exact enough, and read without a system call.
            let now = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE)?;
            now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
        };
        Ok(Self { engine, live, now_ns })
    }
}

impl HostAtomics for View<'_> {}

impl Platform for View<'_> {
    fn settings(&self) -> &Settings {
        &self.live.settings
    }

    fn now_ns(&self) -> u64 {
        self.now_ns
    }

    fn slot(&self, slot: u32) -> Option<&SlotEntry> {
        self.engine.slots.get(slot as usize)
    }

    fn salts(&self, index: u32) -> Option<&SaltEntry> {
        self.engine.salts.get(index as usize)
    }

    fn client_tags(&self, _slot: u32) -> Option<&AtomicU64> {
        None
    }

    fn destination(&self, index: u32) -> Option<&DestinationEntry> {
        self.engine.destinations.get(index as usize)
    }

    fn down_limit(&self, slot: u32) -> Option<&DownLimitEntry> {
        self.engine.down_limits.get(slot as usize)
    }

    fn destination_limit(&self, index: u32) -> Option<&DestinationLimitEntry> {
        self.engine.destination_limits.get(index as usize)
    }

    fn icmp_tat(&self) -> Option<&AtomicU64> {
        Some(&self.engine.control.icmp_tat_ns)
    }

    fn block_generation(&self) -> u16 {
        HostMemory.load(&self.engine.control.block_generation) as u16
    }

    fn is_blocked(&self, address: Address) -> bool {
        self.live.blocklist.get(address) == Some(BLOCKED)
    }
}
