//! The rewriting that both paths share: new addresses and ports, perhaps of the other family, without the token, out of
//! the same interface.

use crate::{
    verdict::{Decision, Reason},
    wire::{
        Be16, Frame, Mac,
        checksum::{self, Change},
        ethernet,
        ip::{Ip, Rewrite, Translated},
        ipv4::Ipv4,
        ipv6::Ipv6,
        udp::{self, Udp},
        vlan::Tags,
    },
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
    /// VLAN tags.
    pub tags: Tags,
    /// Bytes to remove from the front of the UDP payload, and what that does to the checksum.
    pub strip: usize,
    /// What removing these bytes does to the UDP checksum.
    pub stripped: Change,
}

impl Envelope {
    /// What becomes of a packet of family `I` if it does not fit a link that takes IP packets of `mtu` bytes. What its
    /// sender sends may be larger by what is taken off, and by as much as its header is longer.
    #[inline(always)]
    pub fn check_size<I: Ip>(&self, mtu: usize) -> Option<Decision> {
        let header = if self.ip.destination.is_v4() {
            Ipv4::HEADER_BYTES
        } else {
            Ipv6::HEADER_BYTES
        };
        let bytes = header + self.ip.transport_bytes as usize;
        (bytes > mtu).then_some(Decision::too_big(
            (mtu + self.strip + I::HEADER_BYTES).saturating_sub(header),
        ))
    }

    /// Puts `packet` into this envelope, of the destination's family.
    ///
    /// # Errors
    /// Why the packet must be dropped: part of it may have been rewritten.
    #[inline(always)]
    pub fn apply<F: Frame, I: Ip>(&self, frame: &mut F, packet: &Packet<I>) -> Result<(), Reason> {
        if self.ip.destination.is_v4() == I::IS_V4 {
            self.apply_as::<F, I, I>(frame, packet)
        } else {
            self.apply_as::<F, I, I::Other>(frame, packet)
        }
    }

    /// The same, of family `O`, which must be the destination's.
    ///
    /// # Errors
    /// As above.
    #[inline(always)]
    pub fn apply_as<F: Frame, I: Ip, O: Translated<I>>(&self, frame: &mut F, packet: &Packet<I>) -> Result<(), Reason> {
        let mut udp = self.udp::<I, O>(packet);
        if udp.checksum == 0 && I::IS_V4 && !O::IS_V4 {
            udp = self.summed::<F, I, O>(frame, packet, udp)?;
        }
        let ip = O::translated(&packet.ip, &self.ip, &udp);
        let ip_offset = ethernet::HEADER_BYTES + self.tags.bytes();
        let headers = ip_offset + O::HEADER_BYTES + udp::HEADER_BYTES;
        let surplus = (packet.payload_offset() + self.strip) as isize - headers as isize;
        if surplus != 0 {
            let refusal = if surplus < 0 {
                Reason::NoHeadroom
            } else {
                Reason::Truncated
            };
            frame.move_start(surplus).ok_or(refusal)?;
        }
        self.emit(frame, ip_offset, &ip, &udp).ok_or(Reason::Truncated)
    }

    /// Puts `packet` into this envelope and leaves its length, its options and its tags as they came. `None` if part of it may not
    /// have been rewritten.
    #[inline(always)]
    pub fn readdress<F: Frame, I: Ip>(&self, frame: &mut F, packet: &Packet<I>) -> Option<()> {
        let udp = self.udp::<I, I>(packet);
        udp.emit(frame, packet.ip_offset + packet.ip.transport_offset())?;
        packet.ip.readdress(frame, packet.ip_offset, &self.ip)?;
        ethernet::readdress(frame, self.next_hop, self.mac)
    }

    #[inline(always)]
    fn emit<F: Frame, O: Ip>(&self, frame: &mut F, ip_offset: usize, ip: &O, udp: &Udp) -> Option<()> {
        udp.emit(frame, ip_offset + O::HEADER_BYTES)?;
        ip.emit(frame, ip_offset, &self.ip)?;
        ethernet::emit(frame, self.next_hop, self.mac, self.tags, O::ETHERTYPE)
    }

    #[inline(always)]
    fn udp<I: Ip, O: Ip>(&self, packet: &Packet<I>) -> Udp {
        let change = self.stripped.and(self.ip.addresses::<I, O>(&packet.ip));
        packet
            .udp
            .rewritten(self.source_port, self.destination_port, self.ip.transport_bytes, change)
    }

    /// IPv6 has no UDP without a checksum (RFC 8200, section 8.1): one that IPv4 did without is computed.
    #[inline(always)]
    fn summed<F: Frame, I: Ip, O: Ip>(&self, frame: &F, packet: &Packet<I>, udp: Udp) -> Result<Udp, Reason> {
        let bytes = self.ip.transport_bytes as usize - udp::HEADER_BYTES;
        if bytes > checksum::MAX_ADDED_BYTES {
            return Err(Reason::TooBig);
        }
        let payload = packet.payload_offset() + self.strip;
        let change = frame
            .add_to(self.ip.added::<O>(), payload, bytes)
            .ok_or(Reason::Truncated)?;
        Ok(udp.summed(change))
    }
}
