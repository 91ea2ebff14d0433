//! Datagrams on their way through one thread: as many as a system call moves, received into buffers and sent from
//! there.
//!
//! Where the kernel can, several datagrams of one sender arrive in one buffer (UDP_GRO), and several of one length to
//! one receiver leave as one message (UDP_SEGMENT).

use std::{
    io::{IoSlice, IoSliceMut},
    net::SocketAddr,
    ops::Range,
    os::fd::{AsFd as _, AsRawFd as _},
};

use nix::{
    cmsg_space,
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, sendmmsg},
};
use relay_ebpf::Outcome;

use super::socket::Socket;
use crate::client::socket_address;

/// Messages that are received before what became of them is sent.
const MESSAGES: usize = 32;
/// Bytes of the largest message.
const MESSAGE_BYTES: usize = 1 << 16;
/// Datagrams that the kernel takes in one message (UDP_MAX_SEGMENTS), and that one system call sends at most.
const SEGMENTS: usize = 64;
/// Bytes of payload that go into one message: an IP packet's, less its headers.
const SEGMENTED_BYTES: usize = u16::MAX as usize - 48;
/// How long a full socket is waited for before the datagram is given up, in milliseconds.
const PATIENCE_MS: u8 = 10;

/// A message that was received: one or more datagrams.
#[derive(Clone, Copy, Debug)]
pub(super) struct Message {
    /// The sender; none if the kernel tells something that is no IP address.
    pub(super) from: Option<SocketAddr>,
    /// TTL or hop limit.
    pub(super) hop_limit: u8,
    /// Type of service or traffic class.
    pub(super) class: u8,
    /// Bytes of all its datagrams.
    pub(super) bytes: usize,
    /// Bytes of each of its datagrams but the last, which may have less; not 0 unless there are none.
    pub(super) segment: usize,
}

/// Which socket a datagram leaves by.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Exit {
    /// The listener with this index.
    Listener(u32),
    /// The egress socket of this slot.
    Egress(u32),
}

/// A datagram that is to be sent.
#[derive(Clone, Debug)]
pub(super) struct Departing {
    pub(super) exit: Exit,
    pub(super) to: SocketAddr,
    pub(super) hop_limit: u8,
    pub(super) class: u8,
    /// Where its payload is in the buffers.
    pub(super) payload: Range<usize>,
    /// Why it is sent, whose it is, and in a frame of how many bytes it came.
    pub(super) outcome: Outcome,
    pub(super) slot: Option<u32>,
    pub(super) frame_bytes: usize,
}

impl Departing {
    /// What datagrams of one system call have in common.
    fn route(&self) -> (Exit, u8, u8) {
        (self.exit, self.hop_limit, self.class)
    }
}

/// Buffers, and what is in them.
pub(super) struct Batch {
    buffers: Box<[u8]>,
    received: Vec<Message>,
    departing: Vec<Departing>,
    sender: Sender,
}

impl Batch {
    /// No datagrams yet. `segmentation` is whether several may leave as one message.
    pub(super) fn new(segmentation: bool) -> Self {
        Self {
            buffers: vec![0; MESSAGES * MESSAGE_BYTES].into(),
            received: Vec::with_capacity(MESSAGES),
            departing: Vec::with_capacity(MESSAGES * SEGMENTS),
            sender: Sender::new(segmentation),
        }
    }

    /// Whether what is in it must be sent before more can be received.
    pub(super) fn is_full(&self) -> bool {
        self.received.len() == MESSAGES
    }

    /// Takes as many messages as the socket has and there is room for. Returns the numbers of the new ones.
    pub(super) fn receive(&mut self, socket: &Socket) -> Result<Range<usize>, Errno> {
        let first = self.received.len();
        let room = MESSAGES - first;
        // Anew each time: the kernel writes the lengths of addresses and control messages into it, and nix leaves them.
        let control = cmsg_space!(i32, i32, i32);
        let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(room, Some(control));
        let mut buffers = self.buffers[first * MESSAGE_BYTES..].chunks_mut(MESSAGE_BYTES);
        let mut slices: [_; MESSAGES] = std::array::from_fn(|_| [IoSliceMut::new(buffers.next().unwrap_or_default())]);
        let into = slices.iter_mut().take(room);
        let received = recvmmsg(socket.as_raw_fd(), &mut headers, into, MsgFlags::MSG_DONTWAIT, None)?;
        for message in received {
            let mut new = Message {
                from: message.address.as_ref().and_then(socket_address),
                hop_limit: 0,
                class: 0,
                bytes: message.bytes,
                segment: message.bytes,
            };
            for told in message.cmsgs()? {
                match told {
                    ControlMessageOwned::Ipv4Ttl(ttl) => new.hop_limit = ttl as u8,
                    ControlMessageOwned::Ipv6HopLimit(limit) => new.hop_limit = limit as u8,
                    ControlMessageOwned::Ipv4Tos(tos) => new.class = tos,
                    ControlMessageOwned::Ipv6TClass(class) => new.class = class as u8,
                    ControlMessageOwned::UdpGroSegments(bytes @ 1..) => new.segment = bytes as usize,
                    _ => {}
                }
            }
            self.received.push(new);
        }
        Ok(first..self.received.len())
    }

    /// Has `decide` look at every datagram of these messages: who sent it, its payload, and where in the buffers that
    /// starts. What it returns is among those to be sent.
    pub(super) fn decide(
        &mut self,
        numbers: Range<usize>,
        mut decide: impl FnMut(&Message, &mut [u8], usize) -> Option<Departing>,
    ) {
        for number in numbers {
            let message = self.received[number];
            let (mut start, end) = (number * MESSAGE_BYTES, number * MESSAGE_BYTES + message.bytes);
            // One without payload is one too.
            loop {
                let next = (start + message.segment).min(end);
                self.departing
                    .extend(decide(&message, &mut self.buffers[start..next], start));
                start = next;
                if start >= end {
                    break;
                }
            }
        }
    }

    /// Sends all that are to be sent, by the sockets that `by` finds, and tells `done` what became of each. There is
    /// room for others then.
    pub(super) fn send<'a>(
        &mut self,
        by: impl Fn(Exit) -> Option<&'a Socket>,
        mut done: impl FnMut(&Departing, Result<(), Errno>),
    ) {
        let Self {
            buffers,
            departing,
            sender,
            ..
        } = self;
        // In the order of arrival within each of these: a user's packets are not reordered.
        departing.sort_unstable_by_key(|datagram| (datagram.route(), datagram.to, datagram.payload.start));
        for datagrams in departing.chunk_by(|a, b| a.route() == b.route()) {
            match by(datagrams[0].exit) {
                Some(socket) => sender.send(socket, buffers, datagrams, &mut done),
                None => datagrams
                    .iter()
                    .for_each(|datagram| done(datagram, Err(Errno::EADDRNOTAVAIL))),
            }
        }
        departing.clear();
        self.received.clear();
    }
}

/// Sends datagrams, several in a system call and, if that is possible, several in a message.
struct Sender {
    segmentation: bool,
    plain: Headers,
    segmented: Headers,
}

/// Headers of messages that carry the control messages of one family.
struct Headers {
    ipv4: MultiHeaders<SockaddrStorage>,
    ipv6: MultiHeaders<SockaddrStorage>,
}

impl Headers {
    fn of(&mut self, address: SocketAddr) -> &mut MultiHeaders<SockaddrStorage> {
        match address {
            SocketAddr::V4(_) => &mut self.ipv4,
            SocketAddr::V6(_) => &mut self.ipv6,
        }
    }
}

impl Sender {
    fn new(segmentation: bool) -> Self {
        let headers = |space| MultiHeaders::preallocate(SEGMENTS, Some(space));
        Self {
            segmentation,
            // Exactly what is sent with each: the kernel refuses what is left over.
            plain: Headers {
                ipv4: headers(cmsg_space!(i32, u8)),
                ipv6: headers(cmsg_space!(i32, i32)),
            },
            segmented: Headers {
                ipv4: headers(cmsg_space!(i32, u8, u16)),
                ipv6: headers(cmsg_space!(i32, i32, u16)),
            },
        }
    }

    /// Sends datagrams that leave by one socket with one hop limit and class.
    fn send(
        &mut self,
        socket: &Socket,
        buffers: &[u8],
        datagrams: &[Departing],
        done: &mut impl FnMut(&Departing, Result<(), Errno>),
    ) {
        let mut rest = datagrams;
        let mut together = self.segmentation;
        while let [first, ..] = rest {
            let (segment, lengths, count) = group(rest, together);
            match self.send_group(socket, buffers, rest, segment, &lengths[..count]) {
                Ok(sent) => {
                    let (sent, others) = rest.split_at(sent);
                    sent.iter().for_each(|datagram| done(datagram, Ok(())));
                    rest = others;
                    together = self.segmentation;
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) if wait_until_writable(socket) => {}
                // Which of them it is about shows when they are sent one by one.
                Err(error) if segment.is_some() => {
                    // The device cannot do checksums, without which it takes no segments.
                    self.segmentation &= error != Errno::EIO;
                    together = false;
                }
                // It is about the first alone.
                Err(error) => {
                    done(first, Err(error));
                    rest = &rest[1..];
                }
            }
        }
    }

    /// Sends messages of so many datagrams each, in one system call. Returns how many datagrams went.
    fn send_group(
        &mut self,
        socket: &Socket,
        buffers: &[u8],
        datagrams: &[Departing],
        segment: Option<u16>,
        lengths: &[u8],
    ) -> Result<usize, Errno> {
        let first = &datagrams[0];
        let mut slices = [IoSlice::new(&[]); SEGMENTS];
        let mut messages: [&[IoSlice<'_>]; SEGMENTS] = [&[]; SEGMENTS];
        let mut to = [const { None }; SEGMENTS];
        let count: usize = lengths.iter().map(|&length| usize::from(length)).sum();
        for (slice, datagram) in slices.iter_mut().zip(&datagrams[..count]) {
            *slice = IoSlice::new(&buffers[datagram.payload.clone()]);
        }
        let mut start = 0;
        for (i, &length) in lengths.iter().enumerate() {
            messages[i] = &slices[start..start + usize::from(length)];
            to[i] = Some(SockaddrStorage::from(datagrams[start].to));
            start += usize::from(length);
        }
        let hop_limit = i32::from(first.hop_limit);
        let class = i32::from(first.class);
        let of_family = match first.to {
            SocketAddr::V4(_) => [
                ControlMessage::Ipv4Ttl(&hop_limit),
                ControlMessage::Ipv4Tos(&first.class),
            ],
            SocketAddr::V6(_) => [
                ControlMessage::Ipv6HopLimit(&hop_limit),
                ControlMessage::Ipv6TClass(&class),
            ],
        };
        let (messages, to) = (&messages[..lengths.len()], &to[..lengths.len()]);
        let (descriptor, flags) = (socket.as_raw_fd(), MsgFlags::MSG_DONTWAIT);
        let sent = match &segment {
            None => sendmmsg(descriptor, self.plain.of(first.to), messages, to, of_family, flags)?.count(),
            Some(bytes) => {
                let [hop_limit, class] = of_family;
                let control = [hop_limit, class, ControlMessage::UdpGsoSegments(bytes)];
                sendmmsg(descriptor, self.segmented.of(first.to), messages, to, control, flags)?.count()
            }
        };
        Ok(lengths[..sent].iter().map(|&length| usize::from(length)).sum())
    }
}

/// The datagrams that go with one system call: the length that their segments have, if they are segments, and how many
/// datagrams each message has.
fn group(datagrams: &[Departing], together: bool) -> (Option<u16>, [u8; SEGMENTS], usize) {
    let mut lengths = [0; SEGMENTS];
    let (mut messages, mut taken) = (0, 0);
    let mut segment = None;
    while let [first, ..] = &datagrams[taken..] {
        let length = if together { run(&datagrams[taken..]) } else { 1 };
        let of_this = (length > 1).then_some(first.payload.len() as u16);
        if messages == 0 {
            segment = of_this;
        }
        if of_this != segment || taken + length > SEGMENTS {
            break;
        }
        lengths[messages] = length as u8;
        messages += 1;
        taken += length;
    }
    (segment, lengths, messages)
}

/// How many of these datagrams, from the first on, can be the segments of one message: all to one receiver and of one
/// length, but the last may be shorter.
fn run(datagrams: &[Departing]) -> usize {
    let first = &datagrams[0];
    let bytes = first.payload.len();
    if bytes == 0 {
        return 1;
    }
    let most = SEGMENTS.min(SEGMENTED_BYTES / bytes).max(1);
    let mut length = 1;
    for next in datagrams.iter().take(most).skip(1) {
        if next.to != first.to || next.payload.is_empty() || next.payload.len() > bytes {
            break;
        }
        length += 1;
        if next.payload.len() < bytes {
            break;
        }
    }
    length
}

/// Waits a moment for room in a socket; false if there is none.
fn wait_until_writable(socket: &Socket) -> bool {
    let mut wanted = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
    matches!(poll(&mut wanted, PollTimeout::from(PATIENCE_MS)), Ok(1..))
}

#[cfg(test)]
mod tests {
    use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
    use relay_ebpf::verdict::{Direction, Reason};
    use rstest::rstest;

    use super::*;

    const RELAYED: Outcome = Outcome {
        direction: Direction::Uplink,
        reason: Reason::Relayed,
        answered: false,
        redirect: None,
    };

    fn departing(to: SocketAddr, payload: Range<usize>) -> Departing {
        Departing {
            exit: Exit::Egress(0),
            to,
            hop_limit: 63,
            class: 0,
            payload,
            outcome: RELAYED,
            slot: Some(0),
            frame_bytes: 0,
        }
    }

    /// Datagrams of these lengths to this receiver, one behind the other.
    fn all(to: SocketAddr, lengths: &[usize]) -> Vec<Departing> {
        let mut start = 0;
        let datagram = |&length| {
            start += length;
            departing(to, start - length..start)
        };
        lengths.iter().map(datagram).collect()
    }

    #[rstest]
    #[case::of_one_length(&[9, 9, 9], Some(9), &[3])]
    #[case::the_last_is_shorter(&[9, 9, 3, 9], Some(9), &[3])]
    #[case::the_second_is_longer(&[3, 9, 9], None, &[1])]
    #[case::none_alike(&[3, 4, 5], None, &[1, 1, 1])]
    #[case::empty(&[0, 0], None, &[1, 1])]
    #[case::larger_than_a_packet_together(&[40_000, 40_000], None, &[1, 1])]
    fn datagrams_of_one_length_to_one_receiver_are_segments(
        #[case] lengths: &[usize],
        #[case] segment: Option<u16>,
        #[case] messages: &[u8],
    ) {
        let datagrams = all("127.0.0.1:9".parse().unwrap(), lengths);
        let (found, lengths, count) = group(&datagrams, true);
        assert_eq!((found, &lengths[..count]), (segment, messages));
        let (apart, _, _) = group(&datagrams, false);
        assert_eq!(apart, None);
    }

    #[rstest]
    fn what_is_sent_together_arrives_one_by_one(
        #[values("127.0.0.1:0", "[::1]:0")] local: &str,
        #[values(true, false)] segmentation: bool,
    ) {
        let local: SocketAddr = local.parse().unwrap();
        let [sender, receiver] = [(); 2].map(|()| bound(local));
        let mut out = Batch::new(segmentation);
        let lengths = [100, 100, 100, 40, 7, 8, 0, 100];
        for (i, byte) in out.buffers.iter_mut().enumerate().take(1000) {
            *byte = i as u8;
        }
        let expected: Vec<Vec<u8>> = all(receiver.address, &lengths)
            .into_iter()
            .map(|mut datagram| {
                datagram.class = 0x2e << 2;
                let payload = out.buffers[datagram.payload.clone()].to_vec();
                out.departing.push(datagram);
                payload
            })
            .collect();
        let mut sent = 0;
        out.send(
            |_| Some(&sender),
            |_, result| {
                result.unwrap();
                sent += 1;
            },
        );
        assert_eq!(sent, lengths.len());

        let mut batch = Batch::new(true);
        let mut received = Vec::new();
        while received.len() < lengths.len() {
            wait(&receiver);
            let numbers = batch.receive(&receiver).unwrap();
            batch.decide(numbers, |message, payload, _| {
                assert_eq!(
                    (message.from, message.hop_limit, message.class),
                    (Some(sender.address), 63, 0x2e << 2)
                );
                received.push(payload.to_vec());
                None
            });
            batch.send(|_| None, |_, _| {});
        }
        // An empty datagram starts where the next one does, and may come before or behind it.
        let sorted = |mut all: Vec<Vec<u8>>| {
            all.retain(|payload| !payload.is_empty());
            all
        };
        assert_eq!(sorted(received), sorted(expected));
    }

    #[test]
    fn what_does_not_fit_is_told_and_the_rest_goes() {
        let [sender, receiver] = [(); 2].map(|()| bound("127.0.0.1:0".parse().unwrap()));
        let mut out = Batch::new(true);
        for datagram in all(receiver.address, &[10, 10, 65_508, 10]) {
            out.departing.push(datagram);
        }
        let mut results = Vec::new();
        out.send(|_| Some(&sender), |_, result| results.push(result));
        assert_eq!(results, [Ok(()), Ok(()), Err(Errno::EMSGSIZE), Ok(())]);
        let mut results = Vec::new();
        out.departing.push(departing(receiver.address, 0..5));
        out.send(|_| None, |_, result| results.push(result));
        assert_eq!(results, [Err(Errno::EADDRNOTAVAIL)]);
    }

    fn bound(local: SocketAddr) -> Socket {
        let free = std::net::UdpSocket::bind(local).unwrap().local_addr().unwrap();
        Socket::egress(free).unwrap()
    }

    fn wait(socket: &Socket) {
        let epoll = Epoll::new(EpollCreateFlags::empty()).unwrap();
        epoll
            .add(socket.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, 0))
            .unwrap();
        let count = epoll.wait(&mut [EpollEvent::empty()], 5000_u16).unwrap();
        assert_eq!(count, 1, "nothing arrived in 5 s");
    }
}
