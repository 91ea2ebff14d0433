//! What a capture is about, from a first look through all of it: who sends UDP to whom, over what time.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    path::Path,
};

use crate::{
    capture::{Capture, CaptureError, Packet},
    inspect::Outline,
};

/// Flows beyond these are counted, not told apart, so that memory stays bounded.
const MOST_FLOWS: usize = 200_000;

/// One direction of a conversation.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Flow {
    /// Sender.
    pub from: SocketAddr,
    /// Receiver.
    pub to: SocketAddr,
    /// The MAC address that its first packet was sent to.
    pub to_mac: [u8; 6],
    /// Packets.
    pub packets: u64,
}

/// What a capture holds.
#[derive(Clone, Debug, Default)]
pub struct Survey {
    /// Packets.
    pub packets: u64,
    /// Bytes of captured frames.
    pub bytes: u64,
    /// The earliest stamp, in nanoseconds since 1970.
    pub first_ns: u64,
    /// The latest stamp.
    pub last_ns: u64,
    /// Packets of which the capture holds only the beginning.
    pub cut: u64,
    /// UDP flows in order of appearance.
    pub flows: Vec<Flow>,
    /// Packets of further flows than could be told apart.
    pub beyond: u64,
}

impl Survey {
    /// Looks through a capture. `progress` is told how many bytes of how many have been read, now and then.
    ///
    /// # Errors
    /// If it cannot be opened, and the error that reading ended with, with the survey up to there.
    pub fn of(
        path: &Path,
        progress: &mut dyn FnMut(u64, Option<u64>),
    ) -> Result<(Self, Option<CaptureError>), CaptureError> {
        let mut capture = Capture::open(path)?;
        let mut survey = Self::default();
        let mut places = HashMap::new();
        while let Some(packet) = capture.next() {
            match packet {
                Ok(packet) => survey.add(&packet, &mut places),
                Err(error) => return Ok((survey, Some(error))),
            }
            if survey.packets.is_multiple_of(1 << 14) {
                progress(capture.position(), capture.size());
            }
        }
        Ok((survey, None))
    }

    fn add(&mut self, packet: &Packet, places: &mut HashMap<(SocketAddr, SocketAddr), usize>) {
        self.first_ns = if self.packets == 0 {
            packet.at_ns
        } else {
            self.first_ns.min(packet.at_ns)
        };
        self.last_ns = self.last_ns.max(packet.at_ns);
        self.packets += 1;
        self.bytes += packet.data.len() as u64;
        self.cut += u64::from(packet.is_cut());
        let Some((from, to)) = Outline::of(&packet.data).udp_endpoints() else {
            return;
        };
        if let Some(&place) = places.get(&(from, to)) {
            self.flows[place].packets += 1;
        } else if self.flows.len() < MOST_FLOWS {
            places.insert((from, to), self.flows.len());
            let to_mac = packet.data.first_chunk().copied().unwrap_or_default();
            self.flows.push(Flow {
                from,
                to,
                to_mac,
                packets: 1,
            });
        } else {
            self.beyond += 1;
        }
    }

    /// The addresses and ports with this port that something was sent to, in order of appearance.
    #[must_use]
    pub fn receivers_on(&self, port: u16) -> Vec<SocketAddr> {
        distinct(self.flows.iter().map(|flow| flow.to).filter(|to| to.port() == port))
    }

    /// Who sends to these, in order of appearance.
    #[must_use]
    pub fn senders_to(&self, listeners: &[SocketAddr]) -> Vec<SocketAddr> {
        distinct(
            self.flows
                .iter()
                .filter(|flow| listeners.contains(&flow.to))
                .map(|flow| flow.from),
        )
    }

    /// The MAC address that most packets to these addresses were sent to.
    #[must_use]
    pub fn mac_of(&self, addresses: &[IpAddr]) -> Option<[u8; 6]> {
        let mut packets: HashMap<[u8; 6], u64> = HashMap::new();
        for flow in self.flows.iter().filter(|flow| addresses.contains(&flow.to.ip())) {
            *packets.entry(flow.to_mac).or_default() += flow.packets;
        }
        // The smaller address where two have as many, so that it does not depend on the order of a hash map.
        packets
            .into_iter()
            .max_by_key(|&(mac, packets)| (packets, std::cmp::Reverse(mac)))
            .map(|(mac, _)| mac)
    }
}

fn distinct(addresses: impl Iterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    let mut seen = std::collections::HashSet::new();
    addresses.filter(|address| seen.insert(*address)).collect()
}
