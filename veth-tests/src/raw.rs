//! Frames as they are, past every protocol of the host; and ICMP.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::{AsRawFd as _, OwnedFd},
    time::Duration,
};

use nix::{
    ifaddrs::getifaddrs,
    sys::socket::{
        AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrLike as _, sendto, socket,
    },
};

use crate::{
    client::{PATIENCE, receive},
    namespace::Namespace,
    wait,
};

/// A packet socket that sends on one interface.
#[derive(Debug)]
pub struct FrameSocket {
    socket: OwnedFd,
    interface: LinkAddr,
}

impl FrameSocket {
    /// On this interface of the namespace.
    #[must_use]
    #[track_caller]
    pub fn new(namespace: &Namespace, interface: &str) -> Self {
        namespace.run(|| {
            let address = getifaddrs()
                .expect("the kernel lists interfaces")
                .filter(|entry| entry.interface_name == interface)
                .find_map(|entry| entry.address?.as_link_addr().copied());
            let interface = address.unwrap_or_else(|| panic!("no interface {interface} in {}", namespace.name));
            let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)
                .expect("root may open a packet socket");
            Self { socket, interface }
        })
    }

    /// Sends the frame, from its Ethernet header.
    #[track_caller]
    pub fn send(&self, frame: &[u8]) {
        debug_assert!(self.interface.len() > 0);
        let sent = sendto(self.socket.as_raw_fd(), frame, &self.interface, MsgFlags::empty());
        assert_eq!(sent, Ok(frame.len()), "sending a frame of {} bytes", frame.len());
    }
}

/// Sends ICMP echo requests to `host` until it answers.
///
/// # Panics
/// If none comes.
#[track_caller]
pub fn ping(namespace: &Namespace, host: IpAddr) {
    // Type, code, checksum, identifier, sequence number. Of ICMPv6 the kernel computes the checksum.
    let (family, protocol, request, answer_type, ip_header) = match host {
        IpAddr::V4(_) => (
            AddressFamily::Inet,
            SockProtocol::Icmp,
            [8, 0, 0xf7, 0xfe, 0, 0, 0, 1],
            0,
            20,
        ),
        IpAddr::V6(_) => (
            AddressFamily::Inet6,
            SockProtocol::IcmpV6,
            [128, 0, 0, 0, 0, 0, 0, 1],
            129,
            0,
        ),
    };
    let socket = namespace.run(|| socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol));
    // A raw socket of one protocol is used as a UDP socket is.
    let socket = UdpSocket::from(socket.expect("root may open a raw socket"));
    wait::until(&format!("{host} to answer to ping"), 2 * PATIENCE, || {
        // May be refused while the host's MAC address is not known.
        let _ = socket.send_to(&request, SocketAddr::new(host, 0));
        let (packet, from) = receive(&socket, Duration::from_millis(200))?;
        (from.ip() == host && packet.get(ip_header) == Some(&answer_type)).then_some(())
    });
}
