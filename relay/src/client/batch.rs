//! Datagrams, as many as a system call moves.

use std::{
    io::{self, IoSlice, IoSliceMut},
    net::{SocketAddr, SocketAddrV6},
    os::fd::AsRawFd as _,
};

use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, sendmmsg};
use tokio::{io::Interest, net::UdpSocket};

use super::{DATAGRAM_BYTES, Stats};

/// Datagrams that one system call moves at most.
pub(super) const BATCH: usize = 32;

/// Datagrams that one system call received, or is to send.
pub(super) struct Batch {
    pub(super) buffers: Vec<Box<[u8]>>,
    headroom: usize,
    pub(super) messages: Vec<Message>,
    headers: MultiHeaders<SockaddrStorage>,
}

/// Where a datagram is.
pub(super) struct Message {
    pub(super) buffer: usize,
    pub(super) start: usize,
    pub(super) len: usize,
    pub(super) from: Option<SocketAddr>,
}

impl Batch {
    /// Datagrams are received with `headroom` bytes free in front of them.
    pub(super) fn new(headroom: usize) -> Self {
        Self {
            buffers: (0..BATCH)
                .map(|_| vec![0; headroom + DATAGRAM_BYTES].into_boxed_slice())
                .collect(),
            headroom,
            messages: Vec::with_capacity(BATCH),
            headers: MultiHeaders::preallocate(BATCH, None),
        }
    }

    /// Waits for datagrams and takes as many as there are.
    pub(super) async fn receive(&mut self, socket: &UdpSocket) -> io::Result<()> {
        let Self {
            buffers,
            headroom,
            messages,
            headers,
        } = self;
        socket
            .async_io(Interest::READABLE, || {
                messages.clear();
                let mut slices: Vec<_> = buffers
                    .iter_mut()
                    .map(|buffer| [IoSliceMut::new(&mut buffer[*headroom..])])
                    .collect();
                let received = recvmmsg(
                    socket.as_raw_fd(),
                    headers,
                    slices.iter_mut(),
                    MsgFlags::MSG_DONTWAIT,
                    None,
                )?;
                messages.extend(received.enumerate().map(|(buffer, message)| Message {
                    buffer,
                    start: *headroom,
                    len: message.bytes,
                    from: message.address.as_ref().and_then(socket_address),
                }));
                Ok(())
            })
            .await
    }

    /// Sends all of them; returns how many datagrams and bytes went. Those that the system refuses are counted.
    pub(super) async fn send(&self, socket: &UdpSocket, to: SocketAddr, stats: &Stats) -> (u64, u64) {
        let to = vec![Some(SockaddrStorage::from(to)); self.messages.len()];
        let (mut packets, mut bytes) = (0, 0);
        let mut rest = self.messages.as_slice();
        while !rest.is_empty() {
            let sent = socket
                .async_io(Interest::WRITABLE, || Ok(self.send_now(socket, rest, &to)?))
                .await;
            let done = match sent {
                Ok(sent) => {
                    packets += sent as u64;
                    bytes += rest[..sent].iter().map(|message| message.len as u64).sum::<u64>();
                    sent
                }
                // It is about the first of them alone.
                Err(error) => {
                    stats.failed(&error, rest[0].len);
                    1
                }
            };
            rest = &rest[done..];
        }
        (packets, bytes)
    }

    /// Sends as many as go at once; returns how many.
    fn send_now(&self, socket: &UdpSocket, messages: &[Message], to: &[Option<SockaddrStorage>]) -> nix::Result<usize> {
        let slices: Vec<_> = messages
            .iter()
            .map(|message| {
                let end = message.start + message.len;
                [IoSlice::new(&self.buffers[message.buffer][message.start..end])]
            })
            .collect();
        let mut headers = MultiHeaders::preallocate(messages.len(), None);
        let sent = sendmmsg(
            socket.as_raw_fd(),
            &mut headers,
            &slices,
            to,
            [],
            MsgFlags::MSG_DONTWAIT,
        )?;
        Ok(sent.count())
    }
}

/// A local or remote address of a datagram. The zone of a link-local one is kept: without it there is no way back.
pub(crate) fn socket_address(storage: &SockaddrStorage) -> Option<SocketAddr> {
    if let Some(v4) = storage.as_sockaddr_in() {
        return Some(SocketAddr::new(v4.ip().into(), v4.port()));
    }
    let v6 = storage.as_sockaddr_in6()?;
    Some(SocketAddrV6::new(v6.ip(), v6.port(), 0, v6.scope_id()).into())
}
