//! The rewriting that both paths share: new addresses and ports, without the token, out of the same interface.

use crate::wire::{
    Be16, Frame, Mac,
    checksum::Change,
    ethernet,
    ip::{Ip, Rewrite},
    udp::{self, Udp},
};

/// A packet that was found to carry UDP.
#[derive(Clone, Copy, Debug)]
pub struct Packet<I> {
    /// Where the IP header starts, in bytes from the start of the frame.
    pub ip_offset: usize,
    /// The IP header.
    pub ip: I,
    /// The UDP header.
    pub udp: Udp,
}

impl<I: Ip> Packet<I> {
    /// Reads the headers at `ip_offset`.
    #[inline(always)]
    pub fn parse<F: Frame>(frame: &F, ip_offset: usize) -> Option<Self> {
        let ip = I::parse(frame, ip_offset)?;
        let udp = Udp::parse(frame, ip_offset + ip.transport_offset())?;
        Some(Self { ip_offset, ip, udp })
    }

    /// Where the UDP payload starts, in bytes from the start of the frame.
    #[inline(always)]
    pub fn payload_offset(&self) -> usize {
        self.ip_offset + self.ip.transport_offset() + udp::HEADER_BYTES
    }

    /// Bytes of the UDP payload; `None` if the headers contradict each other or claim more than the frame holds.
    #[inline(always)]
    pub fn payload_bytes<F: Frame>(&self, frame: &F) -> Option<u16> {
        let transport = self.udp.length as usize;
        let within_packet = self.ip.transport_offset() + transport <= self.ip.total_bytes();
        let within_frame = self.ip_offset + self.ip.total_bytes() <= frame.bytes();
        if !within_packet || !within_frame {
            return None;
        }
        self.udp.length.checked_sub(udp::HEADER_BYTES as u16)
    }
}

/// The new outside of a packet.
#[derive(Clone, Copy, Debug)]
pub struct Envelope {
    /// IP header.
    pub ip: Rewrite,
    /// Source port.
    pub source_port: Be16,
    /// Destination port.
    pub destination_port: Be16,
    /// Next hop.
    pub next_hop: Mac,
    /// The relay's own MAC address.
    pub mac: Mac,
    /// Bytes to remove from the front of the UDP payload, and what that does to the checksum.
    pub strip: usize,
    /// What removing these bytes does to the UDP checksum.
    pub stripped: Change,
}

impl Envelope {
    /// Bytes of the IP packet in this envelope.
    #[inline(always)]
    pub fn total_bytes<I: Ip>(&self) -> usize {
        I::HEADER_BYTES + self.ip.transport_bytes as usize
    }

    /// Puts `packet` into this envelope. `None` if the frame could not be rewritten: then it must be dropped, since
    /// part of it may be.
    #[inline(always)]
    pub fn apply<F: Frame, I: Ip>(&self, frame: &mut F, packet: &Packet<I>) -> Option<()> {
        let change = self.stripped.and(self.ip.addresses(&packet.ip));
        let udp = packet
            .udp
            .rewritten(self.source_port, self.destination_port, self.ip.transport_bytes, change);
        let headers = ethernet::HEADER_BYTES + I::HEADER_BYTES + udp::HEADER_BYTES;
        let surplus = packet.payload_offset() + self.strip - headers;
        if surplus != 0 {
            frame.strip(surplus)?;
        }
        udp.emit(frame, ethernet::HEADER_BYTES + I::HEADER_BYTES)?;
        packet.ip.emit(frame, ethernet::HEADER_BYTES, &self.ip)?;
        ethernet::emit(frame, self.next_hop, self.mac, I::ETHERTYPE)
    }
}
