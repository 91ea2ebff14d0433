//! The sockets: what they tell of each datagram, and what they must not do.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
};

use nix::sys::socket::{
    AddressFamily, SetSockOpt, SockFlag, SockType, SockaddrStorage, bind, setsockopt, socket,
    sockopt::{
        IpRecvTos, Ipv4RecvTtl, Ipv6RecvHopLimit, Ipv6RecvTClass, Ipv6V6Only, RcvBuf, ReusePort, SndBuf, UdpGroSegment,
    },
};
use rustix::net::sockopt::{Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, set_ip_mtu_discover, set_ipv6_mtu_discover};

use super::LISTENER_BYTES;

/// Whether several sockets share an address, for a thread each.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Sharing {
    Alone,
    Shared,
}

/// A UDP socket at an address and port of the relay's.
#[derive(Debug)]
pub(super) struct Socket {
    descriptor: OwnedFd,
    pub(super) address: SocketAddr,
}

impl Socket {
    /// A socket for a user's egress port.
    pub(super) fn egress(address: SocketAddr) -> io::Result<Self> {
        Self::bound(address, Sharing::Alone)
    }

    /// Sockets for `count` threads at a listener's address. The kernel spreads clients over them.
    pub(super) fn listeners(address: SocketAddr, count: usize) -> io::Result<Vec<Self>> {
        // Sharing would let another relay of the same user in, which then gets some of the clients.
        drop(Self::bound(address, Sharing::Alone)?);
        let listener = |_| {
            let socket = Self::bound(address, Sharing::Shared)?;
            // As much as the system allows.
            setsockopt(&socket, RcvBuf, &LISTENER_BYTES)?;
            setsockopt(&socket, SndBuf, &LISTENER_BYTES)?;
            Ok(socket)
        };
        (0..count).map(listener).collect()
    }

    fn bound(address: SocketAddr, sharing: Sharing) -> io::Result<Self> {
        let family = match address {
            SocketAddr::V4(_) => AddressFamily::Inet,
            SocketAddr::V6(_) => AddressFamily::Inet6,
        };
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let descriptor = socket(family, SockType::Datagram, flags, None)?;
        let socket = Self { descriptor, address };
        // What does not fit is too big, for whoever sent it to find out: nothing is fragmented on the way out.
        if address.is_ipv4() {
            set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::DO)?;
            turn_on(&socket, Ipv4RecvTtl)?;
            turn_on(&socket, IpRecvTos)?;
        } else {
            set_ipv6_mtu_discover(&socket, Ipv6PathMtuDiscovery::DO)?;
            turn_on(&socket, Ipv6V6Only)?;
            turn_on(&socket, Ipv6RecvHopLimit)?;
            turn_on(&socket, Ipv6RecvTClass)?;
        }
        // Since Linux 5.0; without it datagrams come one by one.
        let _ = turn_on(&socket, UdpGroSegment);
        if sharing == Sharing::Shared {
            turn_on(&socket, ReusePort)?;
        }
        bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
        Ok(socket)
    }
}

fn turn_on(socket: &Socket, option: impl SetSockOpt<Val = bool>) -> nix::Result<()> {
    setsockopt(socket, option, &true)
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.descriptor.as_raw_fd()
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}
