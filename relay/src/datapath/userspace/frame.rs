//! A datagram as the frame that it came in: headers made from what the socket tells, in front of a payload that stays
//! where it was received.

use std::net::SocketAddr;

use relay_ebpf::{
    layout::EVENT_BYTES,
    translate::Packet,
    wire::{
        Address, Be16, Frame, Word,
        ethernet::{self, HEADER_BYTES},
        ip::Ip,
        ipv4::Ipv4,
        ipv6::Ipv6,
        udp,
    },
};

use super::MAC;

/// Bytes in front of the payload: the longest headers, and room for longer ones than they were.
const HEAD_BYTES: usize = 128;
/// IPv4 with the usual header length; DF, since whatever is too big is not to be fragmented.
const IPV4_VERSION: u8 = 0x45;
const DONT_FRAGMENT: [u8; 2] = [0x40, 0];
const IPV6_VERSION: u32 = 6;
/// Any but 0, which would be no checksum at all: the kernel has checked the one that was there, and makes another one
/// for what is sent.
const CHECKSUM: [u8; 2] = [0xff, 0xff];

/// Where a datagram comes from and goes to, as the kernel tells it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arrival {
    /// The sender.
    pub(super) from: SocketAddr,
    /// The socket's own address.
    pub(super) to: SocketAddr,
    /// TTL or hop limit.
    pub(super) hop_limit: u8,
    /// Type of service or traffic class.
    pub(super) class: u8,
}

/// What a frame became that is to be sent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Departure {
    /// Address and port that it must come from.
    pub(super) from: (Address, Be16),
    /// Where it goes to.
    pub(super) to: SocketAddr,
    /// TTL or hop limit.
    pub(super) hop_limit: u8,
    /// Where its payload starts in what was received, in bytes.
    pub(super) payload: usize,
}

/// The headers, and the payload behind them.
pub(super) struct DatagramFrame<'a> {
    head: [u8; HEAD_BYTES],
    /// Where the frame starts, counted through `head` and on into `payload`.
    start: usize,
    payload: &'a mut [u8],
}

impl<'a> DatagramFrame<'a> {
    /// The frame that this payload came in.
    pub(super) fn new(arrival: &Arrival, payload: &'a mut [u8]) -> Self {
        let mut frame = Self {
            head: [0; HEAD_BYTES],
            start: HEAD_BYTES,
            payload,
        };
        let length = ((frame.payload.len() + udp::HEADER_BYTES) as u16).to_be_bytes();
        let ports = [arrival.from.port(), arrival.to.port()].map(u16::to_be_bytes);
        frame.put(&CHECKSUM);
        frame.put(&length);
        frame.put(ports.as_flattened());
        let ethertype = match (arrival.from, arrival.to) {
            (SocketAddr::V4(from), SocketAddr::V4(to)) => {
                let total = (frame.bytes() + Ipv4::HEADER_BYTES) as u16;
                frame.put(&to.ip().octets());
                frame.put(&from.ip().octets());
                frame.put(&[arrival.hop_limit, udp::PROTOCOL, 0, 0]);
                frame.put(&DONT_FRAGMENT);
                frame.put(&[0, 0]);
                frame.put(&total.to_be_bytes());
                frame.put(&[IPV4_VERSION, arrival.class]);
                Ipv4::ETHERTYPE
            }
            (from, to) => {
                frame.put(&octets(to));
                frame.put(&octets(from));
                frame.put(&[udp::PROTOCOL, arrival.hop_limit]);
                frame.put(&length);
                frame.put(&(IPV6_VERSION << 28 | u32::from(arrival.class) << 20).to_be_bytes());
                Ipv6::ETHERTYPE
            }
        };
        frame.put(&ethertype.raw().to_ne_bytes());
        frame.put(&MAC.bytes());
        frame.put(&MAC.bytes());
        frame
    }

    /// Puts bytes in front of what is there.
    fn put(&mut self, bytes: &[u8]) {
        self.start -= bytes.len();
        self.head[self.start..self.start + bytes.len()].copy_from_slice(bytes);
    }

    /// What is to be sent, once the frame was rewritten.
    pub(super) fn departure(&self) -> Option<Departure> {
        if ethernet::ethertype(self)? == Ipv4::ETHERTYPE {
            self.departure_of::<Ipv4>()
        } else {
            self.departure_of::<Ipv6>()
        }
    }

    fn departure_of<I: Ip>(&self) -> Option<Departure> {
        let packet = Packet::<I>::parse(self, HEADER_BYTES)?;
        Some(Departure {
            from: (packet.ip.source(), packet.udp.source),
            to: SocketAddr::new(packet.ip.destination().into(), packet.udp.destination.get()),
            hop_limit: packet.ip.hop_limit(),
            payload: (self.start + packet.payload_offset()).checked_sub(HEAD_BYTES)?,
        })
    }

    /// The start of the frame, as much as an event carries, and how many bytes that is.
    pub(super) fn excerpt(&self) -> ([u8; EVENT_BYTES], usize) {
        let mut excerpt = [0; EVENT_BYTES];
        let bytes = self.bytes().min(EVENT_BYTES);
        self.copy(0, &mut excerpt[..bytes]);
        (excerpt, bytes)
    }

    /// Copies what is at `offset`, which is all there.
    fn copy(&self, offset: usize, target: &mut [u8]) {
        let (from, to) = (self.start + offset, self.start + offset + target.len());
        let split = HEAD_BYTES.clamp(from, to) - from;
        let (of_head, of_payload) = target.split_at_mut(split);
        of_head.copy_from_slice(&self.head[from.min(HEAD_BYTES)..][..split]);
        of_payload.copy_from_slice(&self.payload[from.max(HEAD_BYTES) - HEAD_BYTES..][..to - from - split]);
    }

    fn is_inside(&self, offset: usize, bytes: usize) -> bool {
        offset.checked_add(bytes).is_some_and(|end| end <= self.bytes())
    }
}

fn octets(address: SocketAddr) -> [u8; 16] {
    match address {
        SocketAddr::V4(v4) => v4.ip().to_ipv6_mapped().octets(),
        SocketAddr::V6(v6) => v6.ip().octets(),
    }
}

impl Frame for DatagramFrame<'_> {
    fn bytes(&self) -> usize {
        HEAD_BYTES + self.payload.len() - self.start
    }

    /// A datagram is in one buffer.
    fn measure(&mut self, _claimed: usize) {}

    /// Sockets do not tell, and nobody asks where there is one.
    fn interface_index(&self) -> u32 {
        0
    }

    fn read<W: Word>(&self, offset: usize) -> Option<W> {
        if !self.is_inside(offset, size_of::<W>()) {
            return None;
        }
        let mut words = W::new_zeroed();
        self.copy(offset, words.as_mut_bytes());
        Some(words)
    }

    fn write<W: Word>(&mut self, offset: usize, words: W) -> Option<()> {
        if !self.is_inside(offset, size_of::<W>()) {
            return None;
        }
        let source = words.as_bytes();
        let (from, to) = (self.start + offset, self.start + offset + source.len());
        let split = HEAD_BYTES.clamp(from, to) - from;
        let (to_head, to_payload) = source.split_at(split);
        self.head[from.min(HEAD_BYTES)..][..split].copy_from_slice(to_head);
        self.payload[from.max(HEAD_BYTES) - HEAD_BYTES..][..to_payload.len()].copy_from_slice(to_payload);
        Some(())
    }

    fn truncate(&mut self, bytes: usize) -> Option<()> {
        if bytes > self.bytes() {
            return None;
        }
        let kept = (self.start + bytes).checked_sub(HEAD_BYTES)?;
        self.payload = &mut std::mem::take(&mut self.payload)[..kept];
        Some(())
    }

    fn move_start(&mut self, bytes: isize) -> Option<()> {
        let start = self.start.checked_add_signed(bytes)?;
        if start + HEADER_BYTES > HEAD_BYTES + self.payload.len() {
            return None;
        }
        self.start = start;
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use relay_ebpf::host::HostFrame;

    use super::*;

    fn arrival(v4: bool) -> Arrival {
        let (from, to) = match v4 {
            true => ("203.0.113.9:40000", "192.0.2.1:4500"),
            false => ("[2001:db8:c::9]:40000", "[2001:db8::1]:4500"),
        };
        Arrival {
            from: from.parse().unwrap(),
            to: to.parse().unwrap(),
            hop_limit: 61,
            class: 0xb8,
        }
    }

    fn whole(frame: &DatagramFrame<'_>) -> Vec<u8> {
        let mut bytes = vec![0; frame.bytes()];
        frame.copy(0, &mut bytes);
        bytes
    }

    #[test]
    fn a_datagram_departs_as_it_arrived_if_nothing_was_changed() {
        for v4 in [true, false] {
            let (arrival, mut payload) = (arrival(v4), [1, 2, 3]);
            let frame = DatagramFrame::new(&arrival, &mut payload);
            let expected = Departure {
                from: (arrival.from.ip().into(), Be16::new(arrival.from.port())),
                to: arrival.to,
                hop_limit: arrival.hop_limit,
                payload: 0,
            };
            assert_eq!(frame.departure(), Some(expected));
        }
    }

    proptest! {
        /// Headers and payload are in two places, which nobody who reads and writes notices.
        #[test]
        fn it_is_a_frame_like_any_other(
            v4: bool,
            mut payload in prop::collection::vec(any::<u8>(), 0..80),
            steps in prop::collection::vec((0_usize..160, any::<u64>(), 0_u8..4), 0..20),
        ) {
            let mut frame = DatagramFrame::new(&arrival(v4), &mut payload);
            let mut model = HostFrame::new(whole(&frame));
            for (offset, word, kind) in steps {
                match kind {
                    0 => prop_assert_eq!(frame.read::<[u32; 5]>(offset), model.read(offset)),
                    1 => prop_assert_eq!(frame.read::<u16>(offset), model.read(offset)),
                    2 => prop_assert_eq!(frame.write(offset, word), model.write(offset, word)),
                    _ => {
                        let bytes = offset as isize / 2 - 20;
                        let room = frame.start as isize >= -bytes;
                        if room {
                            prop_assert_eq!(frame.move_start(bytes), model.move_start(bytes));
                        } else {
                            prop_assert_eq!(frame.move_start(bytes), None);
                        }
                        // What is new in front is whatever it is, until it is written.
                        for offset in 0..bytes.min(0).unsigned_abs() * usize::from(room) {
                            let _ = (frame.write(offset, 0_u8), model.write(offset, 0_u8));
                        }
                    }
                }
                prop_assert_eq!(frame.bytes(), model.bytes.len());
                prop_assert_eq!(whole(&frame), model.bytes.clone());
            }
        }
    }
}
