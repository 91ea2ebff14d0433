//! Frames as they are, past every protocol of the host.

use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::{
    ifaddrs::getifaddrs,
    sys::socket::{AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, SockaddrLike as _, sendto, socket},
};

use crate::namespace::Namespace;

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
