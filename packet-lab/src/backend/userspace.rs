//! The relay's userspace mode: its own threads' work on real sockets, in a host of the lab's whose kernel receives the
//! scenario's frames and sends what the relay sends; on the lab's clock.
//!
//! A socket does not tell everything of a frame, nor say everything of what is sent. What it cannot (MAC addresses,
//! IPv4's identification and DF, the flow label, whether there was a checksum) is put back as the protocol has it;
//! addresses, ports, TTL, class and payload are what the kernel sent. Frames that are not one datagram for one of the
//! relay's sockets, or that the kernel treats by itself, are [not for it](Fit::misfit).

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use ipnet::IpNet;
use lumenlink_relay::datapath::{
    Counter, PublishedUser, blocklist,
    plane::{Plane as _, Tables as _},
    publish::Numbering,
    userspace::{UserspacePlane, Worker},
};
use relay_ebpf::{
    layout::{Control, DestinationEntry, DestinationLimitEntry, DownLimitEntry, SaltEntry, SlotEntry},
    verdict::{Direction, Reason},
};

use super::{
    Backend, BackendError, Counters, Processed, Traffic, UserState, counter,
    fit::{Fit, own_addresses},
    kernel::{self, CAP_NET_ADMIN, CAP_NET_RAW, CAP_SYS_ADMIN},
    tables::{self, Tables},
};
use crate::{
    craft::{Checksum, UdpFrame},
    inspect::{IpHeader, Sum, UdpFrameView},
    observe::Verdict,
    veth::Host,
    world::{NextHop, User, World},
};

/// Far longer than any datagram takes on a machine that is not overloaded, in milliseconds.
const PATIENCE_MS: u16 = 5_000;

const IPV4_BYTES: usize = 20;
const UDP_BYTES: usize = 8;
/// IPv4 packets made of IPv6 ones may be fragmented up to this length (RFC 7915, section 5.1).
const FRAGMENTABLE_BYTES: usize = 1260;

/// The relay's userspace mode in a host of its own.
pub struct UserspaceBackend {
    fit: Fit,
    plane: UserspacePlane,
    worker: Worker,
    host: Host,
    block_generation: u16,
}

impl UserspaceBackend {
    /// Makes a host with the relay's addresses, and a relay in it.
    ///
    /// # Errors
    /// If the process may not make network namespaces, or the world is larger than a relay.
    pub fn new(world: &World) -> Result<Self, BackendError> {
        let addresses: BTreeSet<IpAddr> = own_addresses(world).collect();
        let host = Host::new(world.mac, &Vec::from_iter(addresses))?;
        let mut plane = UserspacePlane::new(tables::settings(world, 1, &[0])?, 1)?;
        let worker = plane.stations().remove(0).begin();
        let made = host.inside(|| plane.listen());
        made??;
        let mut backend = Self {
            fit: Fit::new(world),
            plane,
            worker,
            host,
            block_generation: 0,
        };
        tables::populate(&backend, world)?;
        for user in &world.users {
            backend.open(user)?;
        }
        Ok(backend)
    }

    /// Has the socket for a user's egress port opened.
    fn open(&mut self, user: &User) -> Result<(), BackendError> {
        let world = self.fit.world();
        let published = PublishedUser {
            slot: user.slot,
            salt: user.salt,
            key: user.key,
            to: user.to,
            rate: user.rate,
            burst: user.burst,
            down_limit: None,
            expires_at: None,
        };
        let numbering = Numbering {
            first_port: world.first_egress_port,
            ports: world.egress_ports.into(),
            v4_addresses: world.egress_of(true).len() as u32,
            v6_addresses: world.egress_of(false).len() as u32,
            tick_ns: 1,
        };
        let plane = &mut self.plane;
        self.host.inside(|| plane.open(&[published], &numbering))?;
        self.fit.open(user);
        Ok(())
    }

    /// The counter that moved by one packet: what became of it.
    fn moved(before: &[Counter], after: &[Counter]) -> Option<(Direction, Reason)> {
        let mut pairs = before.iter().zip(after);
        let (_, moved) = pairs.find(|(before, after)| before.packets != after.packets)?;
        Some((moved.direction, moved.reason))
    }

    /// The frame that an XDP program would have sent, with what the kernel sent in it.
    fn restored(&self, input: &UdpFrameView, output: &UdpFrameView) -> Vec<u8> {
        let mut frame = UdpFrame::new(output.from, output.to, output.payload.clone());
        frame.from_mac = self.fit.world().mac;
        frame.to_mac = self.fit.mac_of(output.to).unwrap_or_default();
        frame.hop_limit = output.hop_limit;
        frame.tos = output.tos;
        if output.from.is_ipv4() == input.from.is_ipv4() && input.checksum == Sum::None {
            frame.checksum = Checksum::None;
        }
        match (input.ip, output.from.is_ipv4()) {
            (
                IpHeader::V4 {
                    identification,
                    dont_fragment,
                    ..
                },
                true,
            ) => {
                frame.identification = identification;
                frame.dont_fragment = dont_fragment;
            }
            (IpHeader::V6 { flow_label }, false) => frame.flow_label = flow_label,
            (IpHeader::V6 { .. }, true) => {
                frame.dont_fragment = IPV4_BYTES + UDP_BYTES + output.payload.len() > FRAGMENTABLE_BYTES;
                frame.identification = udp_checksum(&frame.build()).unwrap_or_default();
            }
            (IpHeader::V4 { .. }, false) => {}
        }
        frame.build()
    }
}

fn udp_checksum(frame: &[u8]) -> Option<u16> {
    match UdpFrameView::read(frame).ok()?.checksum {
        Sum::Right(checksum) => Some(checksum),
        _ => None,
    }
}

/// The capabilities that this process lacks for this backend, by name; none if it has all.
#[must_use]
pub fn missing_capabilities() -> Vec<&'static str> {
    kernel::missing(&[
        ("CAP_NET_ADMIN", CAP_NET_ADMIN),
        ("CAP_NET_RAW", CAP_NET_RAW),
        ("CAP_SYS_ADMIN", CAP_SYS_ADMIN),
    ])
}

impl Tables for UserspaceBackend {
    fn client_tags(&self) -> &[AtomicU64] {
        &[]
    }

    fn slots(&self) -> &[SlotEntry] {
        self.plane.slots()
    }

    fn salts(&self) -> &[SaltEntry] {
        self.plane.salts()
    }

    fn destinations(&self) -> &[DestinationEntry] {
        self.plane.destinations()
    }

    fn down_limits(&self) -> &[DownLimitEntry] {
        self.plane.down_limits()
    }

    fn destination_limits(&self) -> &[DestinationLimitEntry] {
        self.plane.destination_limits()
    }

    fn control(&self) -> &Control {
        self.plane.control()
    }
}

impl Backend for UserspaceBackend {
    fn name(&self) -> &'static str {
        "userspace"
    }

    fn takes(&self, frame: &[u8]) -> bool {
        self.fit.misfit(frame).is_none()
    }

    fn process_on(&mut self, now_ns: u64, interface: u8, frame: &[u8]) -> Result<Processed, BackendError> {
        let unseen = |what| BackendError::World(format!("userspace: {what}"));
        let input = UdpFrameView::read(frame).map_err(|error| unseen(error.to_string()))?;
        self.fit.see(&input);
        self.control().lab_now_ns.store(now_ns, Ordering::Release);
        let before = self.counters_of_plane()?;
        self.host.send(frame)?;
        let turned = self.worker.turn(PATIENCE_MS.into());
        turned.map_err(|error| unseen(format!("waiting for the kernel: {error}")))?;
        let Some((_, reason)) = Self::moved(&before, &self.counters_of_plane()?) else {
            let what = format!("the kernel gave the relay nothing of\n{input}");
            return Err(unseen(what));
        };
        let verdict = Verdict::from(reason.verdict(self.fit.world().drop_unmatched, false));
        let patience = match verdict {
            Verdict::Tx => Duration::from_millis(PATIENCE_MS.into()),
            _ => Duration::ZERO,
        };
        let output = self.host.receive(patience)?;
        let output = output.map(|output| UdpFrameView::read(&output)).transpose();
        match (verdict, output.map_err(|error| unseen(error.to_string()))?) {
            (Verdict::Tx, Some(output)) => Ok(Processed {
                verdict,
                egress: Some(interface),
                frame: self.restored(&input, &output),
            }),
            (Verdict::Tx, None) => Err(unseen(format!("counted as {}, but nothing was sent", reason.name()))),
            (_, Some(output)) => Err(unseen(format!("counted as {}, but sent\n{output}", reason.name()))),
            (_, None) => Ok(Processed {
                verdict,
                egress: None,
                frame: frame.to_vec(),
            }),
        }
    }

    fn counters(&self) -> Result<Counters, BackendError> {
        let all = self.counters_of_plane()?;
        let nonzero = all.iter().filter(|found| found.packets != 0 || found.bytes != 0);
        let traffic = nonzero.map(|found| {
            let (packets, bytes) = (found.packets, found.bytes);
            (counter(found.direction, found.reason), Traffic { packets, bytes })
        });
        Ok(traffic.collect())
    }

    /// Sockets send no ICMP.
    fn answers(&self) -> Result<u64, BackendError> {
        Ok(0)
    }

    fn destination_tat(&self, to: SocketAddr) -> u64 {
        tables::destination_tat(self, self.fit.world(), to)
    }

    fn forget_shared_limits(&mut self) {
        tables::forget_shared_limits(self);
    }

    fn user(&self, slot: u32) -> UserState {
        let mut state = tables::user_state(self, self.fit.world(), slot);
        if let Some(client) = &mut state.client {
            client.mac = self.fit.mac_of(client.address).unwrap_or_default();
        }
        state
    }

    fn publish(&mut self, user: &User) -> Result<(), BackendError> {
        tables::publish(self, self.fit.world(), user)?;
        self.open(user)
    }

    fn remove(&mut self, slot: u32) {
        tables::remove(self, slot);
        self.plane.close(slot);
        self.fit.close(slot);
    }

    fn set_next_hop(&mut self, to: SocketAddr, next_hop: Option<NextHop>) -> Result<(), BackendError> {
        tables::set_next_hop(self, self.fit.world(), to, next_hop)?;
        self.fit.set_next_hop(to, next_hop);
        Ok(())
    }

    fn set_blocklist(&mut self, prefixes: &[IpNet]) -> Result<(), BackendError> {
        self.plane.set_blocklist(&blocklist::entries(prefixes))?;
        tables::renew_block_generation(self.plane.control(), prefixes.is_empty(), &mut self.block_generation);
        Ok(())
    }
}

impl UserspaceBackend {
    fn counters_of_plane(&self) -> Result<Vec<Counter>, BackendError> {
        Ok(self.plane.counters()?)
    }
}
