//! The data plane in the kernel: the XDP program, its maps, and where it is attached.

use std::{collections::HashMap, time::Duration};

use relay_ebpf::{
    admission::Client,
    host::HostMemory,
    layout::{
        Control, DestinationEntry, DestinationLimitEntry, DownLimitEntry, Latency, NextHop, SaltEntry, Settings,
        SlotEntry,
    },
    platform::Memory as _,
    verdict::Direction,
    wire::Address,
};
use rustix::{
    io::Errno,
    thread::{MembarrierCommand, membarrier},
};

use super::{
    Counter, DatapathError, InterfaceStatus, PublishedUser,
    attach::{self, Attachment, Pins},
    blocklist,
    clock::Clock,
    events::Drops,
    interface::{Interface, InterfaceError},
    maps::{self, MapsError, Ports},
    numbers::Numbered,
    plane::{Plane, Tables},
    program::{self, LoadOptions, Loaded},
    publish::{Numbering, PublishError},
};
use crate::config::{Config, XdpMode};

/// A loaded program.
pub(super) struct XdpPlane {
    pins: Option<Pins>,
    loaded: Loaded,
    interfaces: Numbered,
    /// One for each interface, once attached.
    attachments: Vec<Attachment>,
    wanted_mode: XdpMode,
}

impl XdpPlane {
    /// Loads the program for the interfaces of this configuration, and adopts pinned maps or makes new ones.
    pub(super) fn load(config: &Config, settings: Settings) -> Result<Self, DatapathError> {
        program::require_capabilities()?;
        let interfaces = read_interfaces(config)?;
        let pins = match config.xdp_persist {
            true => Some(Pins::open(&config.xdp_pin_dir, config.max_users, &interfaces)?),
            false => None,
        };
        let ports = match &pins {
            Some(pins) => maps::pinned_ports(pins.dir())?,
            None => Ports::default(),
        };
        let interfaces = Numbered::new(interfaces, &ports);
        let mut loaded = Loaded::new(&LoadOptions {
            settings: with_interfaces(settings, &interfaces),
            pins: pins.as_ref().map(Pins::dir),
        })?;
        add_ports(&mut loaded, &interfaces)?;
        Ok(Self {
            pins,
            loaded,
            interfaces,
            attachments: Vec::new(),
            wanted_mode: config.xdp_mode,
        })
    }

    /// Loads the program with other settings on the maps of the running one.
    fn load_again(&self, settings: Settings) -> Result<Loaded, DatapathError> {
        let load = |dir| {
            Loaded::new(&LoadOptions {
                settings,
                pins: Some(dir),
            })
            .map_err(DatapathError::from)
        };
        if let Some(pins) = &self.pins {
            return load(pins.dir());
        }
        let dir = attach::passing_folder()?;
        let pinned = self.loaded.maps.pin(&dir).map_err(DatapathError::from);
        let loaded = pinned.and_then(|()| load(&dir));
        Pins::remove_unused(&dir)?;
        loaded
    }

    /// Puts a newly loaded program on these interfaces: first on the new ones, where an error changes nothing, then in
    /// place of the one that runs; off the others.
    fn move_to(&mut self, loaded: &mut Loaded, interfaces: &Numbered) -> Result<(), DatapathError> {
        let is_kept = |index: u32| interfaces.iter().any(|(_, kept)| kept.index == index);
        let has =
            |attachments: &[Attachment], index: u32| attachments.iter().any(|held| held.interface().index == index);
        add_ports(loaded, interfaces)?;
        let new = interfaces
            .iter()
            .filter(|(_, interface)| !has(&self.attachments, interface.index));
        let added = attach_to(loaded, new, self.wanted_mode, self.pins.as_ref())?;
        let (mut kept, removed): (Vec<_>, Vec<_>) = std::mem::take(&mut self.attachments)
            .into_iter()
            .partition(|attachment| is_kept(attachment.interface().index));
        let program = loaded.program()?;
        let replaced = kept.iter_mut().try_for_each(|attachment| attachment.replace(program));
        self.attachments = kept;
        if let Err(error) = replaced {
            self.attachments.extend(removed);
            added.into_iter().for_each(Attachment::undo);
            return Err(error.into());
        }
        self.attachments.extend(added);
        removed.into_iter().try_for_each(Attachment::detach)?;
        Ok(())
    }
}

fn read_interfaces(config: &Config) -> Result<Vec<Interface>, InterfaceError> {
    config.interfaces.iter().map(|name| Interface::read(name)).collect()
}

fn with_interfaces(mut settings: Settings, interfaces: &Numbered) -> Settings {
    (settings.interfaces, settings.interface_count) = interfaces.settings();
    settings
}

/// Lets the program send by these interfaces.
fn add_ports(loaded: &mut Loaded, interfaces: &Numbered) -> Result<(), MapsError> {
    let mut all = interfaces.iter();
    all.try_for_each(|(number, interface)| loaded.maps.set_port(number, interface.index))
}

/// Attaches the program to all of these interfaces, or to none.
fn attach_to<'a>(
    loaded: &mut Loaded,
    interfaces: impl Iterator<Item = (u8, &'a Interface)>,
    mode: XdpMode,
    pins: Option<&Pins>,
) -> Result<Vec<Attachment>, DatapathError> {
    let program = loaded.program()?;
    let mut attached: Vec<Attachment> = Vec::new();
    for (_, interface) in interfaces {
        match Attachment::new(program, interface, mode, pins) {
            Ok(attachment) => attached.push(attachment),
            Err(error) => {
                attached.into_iter().for_each(Attachment::undo);
                return Err(error.into());
            }
        }
    }
    Ok(attached)
}

impl Tables for XdpPlane {
    fn slots(&self) -> &[SlotEntry] {
        self.loaded.maps.slots()
    }

    fn salts(&self) -> &[SaltEntry] {
        self.loaded.maps.salts()
    }

    fn destinations(&self) -> &[DestinationEntry] {
        self.loaded.maps.destinations()
    }

    fn down_limits(&self) -> &[DownLimitEntry] {
        self.loaded.maps.down_limits()
    }

    fn destination_limits(&self) -> &[DestinationLimitEntry] {
        self.loaded.maps.destination_limits()
    }

    fn control(&self) -> &Control {
        self.loaded.maps.control()
    }

    fn known_next_hop(&self) -> Option<NextHop> {
        None
    }

    /// The global barrier is synchronize_rcu() (kernel/sched/membarrier.c), and XDP runs in an RCU section.
    fn wait_for_packets_in_flight(&self) -> Result<(), Errno> {
        membarrier(MembarrierCommand::Global)
    }
}

impl Plane for XdpPlane {
    fn clock(&mut self, tick: Duration) -> Result<Clock, DatapathError> {
        Ok(Clock::read(self.loaded.clock()?, tick)?)
    }

    /// Attaches the program to every interface, or replaces the one on the pinned link.
    fn start(&mut self) -> Result<(), DatapathError> {
        let (interfaces, pins) = (self.interfaces.iter(), self.pins.as_ref());
        self.attachments = attach_to(&mut self.loaded, interfaces, self.wanted_mode, pins)?;
        if let Some(pins) = &self.pins {
            let indices: Vec<_> = self.interfaces.iter().map(|(_, interface)| interface.index).collect();
            pins.keep_links(&indices)?;
        }
        self.retire_interfaces()
    }

    fn not_running(&mut self) -> Option<&'static str> {
        let mut all = self.interface_status().into_iter();
        let is_attached = all.all(|interface| interface.mode.is_some());
        (!is_attached).then_some("the XDP program is not attached")
    }

    fn mode(&self) -> Option<XdpMode> {
        let mut modes = self.attachments.iter().map(Attachment::mode);
        let first = modes.next()?;
        Some(modes.find(|mode| *mode == XdpMode::Generic).unwrap_or(first))
    }

    fn interfaces(&self) -> &Numbered {
        &self.interfaces
    }

    /// An interface may be gone, or somebody else have taken the program off.
    fn interface_status(&mut self) -> Vec<InterfaceStatus> {
        let program = self.loaded.program().ok().and_then(|program| program.info().ok());
        let id = program.map(|program| program.id());
        let status = |interface: &Interface| {
            let found = Interface::read(&interface.name).ok().and_then(|found| found.program);
            let is_own = found.is_some_and(|attached| Some(attached.id) == id);
            let mut attachments = self.attachments.iter();
            let attachment = attachments.find(|attachment| attachment.interface().index == interface.index);
            InterfaceStatus {
                name: interface.name.clone(),
                mode: attachment.filter(|_| is_own).map(Attachment::mode),
            }
        };
        let interfaces = self.interfaces.iter();
        interfaces.map(|(_, interface)| status(interface)).collect()
    }

    /// Puts the program with other settings in place of the running one, on the same maps.
    fn reload(&mut self, config: &Config, settings: Settings) -> Result<(), DatapathError> {
        let found = read_interfaces(config)?;
        let interfaces = Numbered::new(found, &self.loaded.maps.ports()?);
        let mut loaded = self.load_again(with_interfaces(settings, &interfaces))?;
        if !self.attachments.is_empty() {
            self.move_to(&mut loaded, &interfaces)?;
        }
        self.loaded = loaded;
        self.interfaces = interfaces;
        Ok(())
    }

    /// Forgets whatever the maps say of interfaces that the relay has no more: that packets can be sent by them, that
    /// next hops or clients are behind them.
    fn retire_interfaces(&mut self) -> Result<(), DatapathError> {
        let ports = self.loaded.maps.ports()?;
        let numbers = (0..).zip(ports);
        let retired: Vec<u8> = numbers
            .filter(|(number, port)| *port != 0 && *port != self.interfaces.index(*number))
            .map(|(number, _)| number)
            .collect();
        if retired.is_empty() {
            return Ok(());
        }
        for entry in self.destinations() {
            if entry
                .next_hop(&HostMemory)
                .is_some_and(|hop| retired.contains(&hop.interface))
            {
                entry.set_next_hop(&HostMemory, None);
            }
        }
        // A packet that came in by one of them may still be about to say that its client is there.
        self.wait_for_packets_in_flight().map_err(PublishError::from)?;
        for number in &retired {
            self.slots()
                .iter()
                .for_each(|slot| Client::forget(&HostMemory, &slot.state, *number));
            self.loaded.maps.set_port(*number, 0)?;
        }
        Ok(())
    }

    fn set_blocklist(&mut self, wanted: &HashMap<(Address, u32), u32>) -> Result<(), DatapathError> {
        let maps = &mut self.loaded.maps;
        let found = maps.blocked()?;
        if *wanted == found && (wanted.is_empty() == (HostMemory.load(&maps.control().block_generation) == 0)) {
            return Ok(());
        }
        // What is spared first: an IPv6 prefix around it must not be there without it.
        let mut changed: Vec<_> = wanted
            .iter()
            .filter(|(key, value)| found.get(key) != Some(value))
            .collect();
        changed.sort_by_key(|(_, value)| **value);
        for ((address, length), value) in changed {
            maps.block(*address, *length, *value)?;
        }
        for (address, length) in found.keys().filter(|key| !wanted.contains_key(key)) {
            maps.unblock(*address, *length)?;
        }
        blocklist::renew_generation(maps.control(), wanted.is_empty());
        Ok(())
    }

    fn open(&mut self, _users: &[PublishedUser], _numbering: &Numbering) {}

    fn close_others(&mut self, _users: &[PublishedUser]) {}

    fn close(&mut self, _slot: u32) {}

    fn retry(&mut self) {}

    fn is_open(&self, _slot: u32) -> bool {
        true
    }

    fn counters(&self) -> Result<Vec<Counter>, DatapathError> {
        Ok(self.loaded.maps.counters()?)
    }

    fn answers(&self, direction: Direction) -> Result<u64, DatapathError> {
        Ok(self.loaded.maps.answers(direction)?)
    }

    fn latency(&self) -> Result<Latency, DatapathError> {
        Ok(self.loaded.maps.latency()?)
    }

    fn take_drops(&mut self) -> Option<Drops> {
        let ring = self.loaded.maps.take_events()?;
        Drops::of_ring(ring)
            .inspect_err(|error| tracing::warn!(%error, "sampled drops cannot be read"))
            .ok()
    }

    /// Detaches the program and removes the pins.
    fn stop(&mut self) -> Result<(), DatapathError> {
        self.attachments.clear();
        if let Some(pins) = &self.pins {
            pins.remove()?;
        }
        Ok(())
    }
}
