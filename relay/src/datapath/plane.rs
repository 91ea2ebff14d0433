//! What a data plane is to the rest of the relay, be it the XDP program or this process itself.

use std::{collections::HashMap, time::Duration};

use relay_ebpf::{
    layout::{
        Control, DestinationEntry, DestinationLimitEntry, DownLimitEntry, Latency, NextHop, SaltEntry, Settings,
        SlotEntry,
    },
    verdict::Direction,
    wire::Address,
};
use rustix::io::Errno;

use super::{
    Counter, DatapathError, InterfaceStatus, PublishedUser, clock::Clock, events::Drops, numbers::Numbered,
    publish::Numbering,
};
use crate::config::{Config, XdpMode};

/// The entries that a data plane reads and writes while it decides about packets. They are memory that it shares with
/// whoever publishes users.
pub trait Tables {
    /// Users and their states, by slot.
    fn slots(&self) -> &[SlotEntry];

    /// Salts of users, by slot / [`SaltEntry::SLOTS`].
    fn salts(&self) -> &[SaltEntry];

    /// Destinations, by index.
    fn destinations(&self) -> &[DestinationEntry];

    /// Limits of users' downlinks, by slot.
    fn down_limits(&self) -> &[DownLimitEntry];

    /// What is spent of destinations' limits, by the destination's index.
    fn destination_limits(&self) -> &[DestinationLimitEntry];

    /// What changes while packets are relayed.
    fn control(&self) -> &Control;

    /// What is known of any destination's next hop beforehand: all that there is to know, where the kernel routes.
    fn known_next_hop(&self) -> Option<NextHop>;

    /// Returns when every packet that was being decided about when this was called is done with.
    ///
    /// # Errors
    /// If that cannot be told.
    fn wait_for_packets_in_flight(&self) -> Result<(), Errno>;
}

/// A data plane.
pub trait Plane: Tables + Send {
    /// The clock that it decides by, which goes on by `tick`.
    ///
    /// # Errors
    /// If it cannot be read.
    fn clock(&mut self, tick: Duration) -> Result<Clock, DatapathError>;

    /// Starts to relay.
    ///
    /// # Errors
    /// See [`DatapathError`]; nothing is relayed then that was not before.
    fn start(&mut self) -> Result<(), DatapathError>;

    /// Why nothing is relayed; none while it is, or should be.
    fn not_running(&mut self) -> Option<&'static str>;

    /// The mode in force, once started; generic if any interface's is.
    fn mode(&self) -> Option<XdpMode>;

    /// The interfaces that it sends by itself; none where the kernel routes.
    fn interfaces(&self) -> &Numbered;

    /// What to say of the interfaces.
    fn interface_status(&mut self) -> Vec<InterfaceStatus>;

    /// Takes on another configuration and its settings (but for the interfaces) between two packets, with the same
    /// entries.
    ///
    /// # Errors
    /// See [`DatapathError`]; then it goes on as it was.
    fn reload(&mut self, config: &Config, settings: Settings) -> Result<(), DatapathError>;

    /// Forgets whatever the entries say of interfaces that it had before it was reloaded, and has no more.
    ///
    /// # Errors
    /// If part of it could not be forgotten.
    fn retire_interfaces(&mut self) -> Result<(), DatapathError>;

    /// Makes exactly these, by address and length in bits, the entries of the blocklist.
    ///
    /// # Errors
    /// If it is full; then part of the new prefixes are on it.
    fn set_blocklist(&mut self, wanted: &HashMap<(Address, u32), u32>) -> Result<(), DatapathError>;

    /// Gets ready for packets of these users, which are about to be published.
    fn open(&mut self, users: &[PublishedUser], numbering: &Numbering);

    /// Lets go of what it had ready for the users of all slots but those of `users`.
    fn close_others(&mut self, users: &[PublishedUser]);

    /// Lets go of what it had ready for the user of a slot, who was taken out.
    fn close(&mut self, slot: u32);

    /// Tries again to get ready for those users for whom it could not.
    fn retry(&mut self);

    /// Whether it is ready for packets of the user in this slot.
    fn is_open(&self, slot: u32) -> bool;

    /// All counters, every direction and reason.
    ///
    /// # Errors
    /// If they cannot be read.
    fn counters(&self) -> Result<Vec<Counter>, DatapathError>;

    /// ICMP messages to the senders of packets of this direction.
    ///
    /// # Errors
    /// If it cannot be read.
    fn answers(&self, direction: Direction) -> Result<u64, DatapathError>;

    /// The latency histogram.
    ///
    /// # Errors
    /// If it cannot be read.
    fn latency(&self) -> Result<Latency, DatapathError>;

    /// The stream of sampled drops, once.
    fn take_drops(&mut self) -> Option<Drops>;

    /// Stops relaying, and leaves nothing behind.
    ///
    /// # Errors
    /// If a pin cannot be removed.
    fn stop(&mut self) -> Result<(), DatapathError>;
}
