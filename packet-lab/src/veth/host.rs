//! A host at one end of a wire: addresses, routes and the kernel's own network stack, in a network namespace without a
//! name. What is sent to it and what comes from it are frames.

use std::{
    fs,
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsFd as _,
    time::{Duration, Instant},
};

use nix::sched::{CloneFlags, setns, unshare};
use rtnetlink::{LinkUnspec, LinkVeth, RouteMessageBuilder, packet_route::route::RouteScope};

use super::{
    VethError,
    link::{NAMESPACE, in_a_thread, link_error, netlink, open},
    socket::PacketSocket,
    socket_error, wait_for_frame,
};
use crate::inspect::UdpFrameView;

/// The end that frames are sent from.
const OUTSIDE: &str = "outside";
/// The host's interface.
const INSIDE: &str = "inside";
/// The most that a veth interface takes.
const MTU: u32 = 65_535;
/// What would keep the host from taking packets of anybody, or make it speak unasked.
const SYSTEM: [(&str, &str); 2] = [
    ("/proc/sys/net/ipv4/conf/all/rp_filter", "0"),
    ("/proc/sys/net/ipv4/conf/default/rp_filter", "0"),
];
const NO_IPV6_OUTSIDE: &str = "/proc/sys/net/ipv6/conf/outside/disable_ipv6";

/// A host, and the socket on the other end of its wire.
#[derive(Debug)]
pub struct Host {
    outside: PacketSocket,
    namespace: File,
}

impl Host {
    /// A host with this MAC address and these addresses, for which everything else is behind the wire.
    ///
    /// # Errors
    /// If the process may not, or the kernel cannot; nothing is left behind.
    pub fn new(mac: [u8; 6], addresses: &[IpAddr]) -> Result<Self, VethError> {
        in_a_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).map_err(VethError::Namespace)?;
            for (file, value) in SYSTEM {
                write(file, value)?;
            }
            let pair = LinkVeth::new(OUTSIDE, INSIDE).build();
            netlink(async |handle| {
                let made = handle.link().add(pair).execute().await;
                made.map_err(link_error("making a veth pair"))
            })?;
            write(NO_IPV6_OUTSIDE, "1")?;
            let index =
                |name| nix::net::if_::if_nametoindex(name).map_err(socket_error("looking for a veth interface"));
            let (outside, inside) = (index(OUTSIDE)?, index(INSIDE)?);
            netlink(async |handle| {
                // Nobody has to be asked for: whatever the addresses, there is one other end.
                let link = |index| LinkUnspec::new_with_index(index).mtu(MTU).arp(false);
                for message in [link(outside), link(inside).address(mac.to_vec())] {
                    let done = handle.link().set(message.up().build()).execute().await;
                    done.map_err(link_error("setting up a veth interface"))?;
                }
                for &address in addresses {
                    let bits = if address.is_ipv4() { 32 } else { 128 };
                    let done = handle.address().add(inside, address, bits).execute().await;
                    done.map_err(link_error("adding an address"))?;
                }
                let routes = [
                    RouteMessageBuilder::<Ipv4Addr>::new()
                        .scope(RouteScope::Link)
                        .output_interface(inside)
                        .build(),
                    RouteMessageBuilder::<Ipv6Addr>::new().output_interface(inside).build(),
                ];
                for route in routes {
                    let done = handle.route().add(route).execute().await;
                    done.map_err(link_error("adding a route"))?;
                }
                Ok(())
            })?;
            Ok(Self {
                outside: PacketSocket::new(OUTSIDE).map_err(socket_error("making a packet socket"))?,
                namespace: open(NAMESPACE)?,
            })
        })
    }

    /// Does something in the host's namespace: sockets that are made there stay there.
    ///
    /// # Errors
    /// If it cannot be entered.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, VethError> {
        in_a_thread(|| {
            setns(&self.namespace, CloneFlags::CLONE_NEWNET).map_err(VethError::Namespace)?;
            Ok(work())
        })
    }

    /// Sends it a frame.
    ///
    /// # Errors
    /// If the kernel does not take it.
    pub fn send(&self, frame: &[u8]) -> Result<(), VethError> {
        let sent = self.outside.send(frame);
        sent.map_err(socket_error("sending a frame into a veth interface"))
    }

    /// The next UDP packet that it sent, if there is one within this time. What else it has to say does not count.
    ///
    /// # Errors
    /// If the socket fails.
    pub fn receive(&mut self, patience: Duration) -> Result<Option<Vec<u8>>, VethError> {
        let deadline = Instant::now() + patience;
        loop {
            match self.outside.receive().map_err(socket_error(super::RECEIVING))? {
                Some(frame) if UdpFrameView::read(&frame).is_ok() => return Ok(Some(frame)),
                Some(_) => {}
                None if Instant::now() >= deadline => return Ok(None),
                None => match wait_for_frame(self.outside.as_fd(), deadline) {
                    Err(VethError::Patience { .. }) => return Ok(None),
                    waited => waited?,
                },
            }
        }
    }
}

/// Sets a value of the kernel's; what it does not have need not be set.
fn write(file: &'static str, value: &str) -> Result<(), VethError> {
    match fs::write(file, value) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(VethError::File {
            action: "writing",
            file,
            source,
        }),
        _ => Ok(()),
    }
}
