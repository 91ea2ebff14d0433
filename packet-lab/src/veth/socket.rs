//! A packet socket on one interface: frames as they are on the wire, in and out.

use std::{
    io::IoSliceMut,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
};

use nix::{
    cmsg_space,
    errno::Errno,
    ifaddrs::getifaddrs,
    setsockopt_impl, sockopt_impl,
    sys::socket::{
        AddressFamily, ControlMessageOwned, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, bind, recvmsg, send,
        setsockopt, socket,
    },
};

/// More than any frame of an interface that runs XDP.
const RECEIVE_BYTES: usize = 16_384;
/// Bytes of `struct tpacket_auxdata` of `linux/if_packet.h`: three words, four half-words.
const AUXDATA_BYTES: usize = 20;
/// Where a VLAN tag is in a frame: after the two MAC addresses.
const TAG_OFFSET: usize = 12;
/// The type of a customer's VLAN tag, for kernels that do not say which it was.
const TPID_8021Q: u16 = 0x8100;

sockopt_impl!(
    /// What the kernel took out of a frame comes with it.
    Auxdata, SetOnly, libc::SOL_PACKET, libc::PACKET_AUXDATA, bool
);
sockopt_impl!(
    /// Frames go to the driver at once, also while the link's queue is not in use yet.
    QdiscBypass, SetOnly, libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, bool
);
sockopt_impl!(
    /// Only what the interface receives is received.
    IgnoreOutgoing, SetOnly, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, bool
);

/// A packet socket, bound to an interface.
#[derive(Debug)]
pub struct PacketSocket {
    socket: OwnedFd,
    buffer: Vec<u8>,
}

impl PacketSocket {
    /// On this interface of the thread's network namespace. Reading waits for nothing.
    ///
    /// # Errors
    /// What the system answers; `ENODEV` if there is no such interface.
    pub fn new(interface: &str) -> Result<Self, Errno> {
        let address = getifaddrs()?
            .filter(|entry| entry.interface_name == interface)
            .find_map(|entry| entry.address?.as_link_addr().copied())
            .ok_or(Errno::ENODEV)?;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll)?;
        setsockopt(&socket, Auxdata, &true)?;
        setsockopt(&socket, QdiscBypass, &true)?;
        setsockopt(&socket, IgnoreOutgoing, &true)?;
        let address: LinkAddr = address;
        bind(socket.as_raw_fd(), &address)?;
        Ok(Self {
            socket,
            buffer: vec![0; RECEIVE_BYTES],
        })
    }

    /// Sends a frame, from its Ethernet header.
    ///
    /// # Errors
    /// What the system answers.
    pub fn send(&self, frame: &[u8]) -> Result<(), Errno> {
        send(self.socket.as_raw_fd(), frame, MsgFlags::empty()).map(drop)
    }

    /// The next frame that was received, if there is one, with the VLAN tag that the kernel took out of it.
    ///
    /// # Errors
    /// What the system answers.
    pub fn receive(&mut self) -> Result<Option<Vec<u8>>, Errno> {
        let mut control = cmsg_space!([u8; AUXDATA_BYTES]);
        let mut parts = [IoSliceMut::new(&mut self.buffer)];
        let received = recvmsg::<LinkAddr>(
            self.socket.as_raw_fd(),
            &mut parts,
            Some(&mut control),
            MsgFlags::empty(),
        );
        let (bytes, tag) = match received {
            Ok(message) => (
                message.bytes,
                message.cmsgs()?.find_map(|message| stripped_tag(&message)),
            ),
            Err(Errno::EAGAIN) => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut frame = self.buffer[..bytes].to_vec();
        if let Some(tag) = tag {
            frame.splice(TAG_OFFSET..TAG_OFFSET, tag);
        }
        Ok(Some(frame))
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The four bytes of a VLAN tag that the kernel keeps beside the frame.
fn stripped_tag(message: &ControlMessageOwned) -> Option<[u8; 4]> {
    let ControlMessageOwned::Unknown(message) = message else {
        return None;
    };
    let header = &message.cmsg_header;
    if (header.cmsg_level, header.cmsg_type) != (libc::SOL_PACKET, libc::PACKET_AUXDATA) {
        return None;
    }
    let auxdata: &[u8; AUXDATA_BYTES] = message.data_bytes.first_chunk()?;
    let status = u32::from_ne_bytes([auxdata[0], auxdata[1], auxdata[2], auxdata[3]]);
    if status & libc::TP_STATUS_VLAN_VALID == 0 {
        return None;
    }
    let tci = u16::from_ne_bytes([auxdata[16], auxdata[17]]).to_be_bytes();
    let tpid = if status & libc::TP_STATUS_VLAN_TPID_VALID == 0 {
        TPID_8021Q
    } else {
        u16::from_ne_bytes([auxdata[18], auxdata[19]])
    };
    let tpid = tpid.to_be_bytes();
    Some([tpid[0], tpid[1], tci[0], tci[1]])
}
