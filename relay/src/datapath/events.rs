//! Sampled drops, as the XDP program reports them through its ring buffer, and threads of this process through a channel.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
};

use aya::maps::{MapData, RingBuf};
use relay_ebpf::{
    host::HostFrame,
    layout::DropEvent,
    translate::Packet,
    verdict::{Direction, Reason},
    wire::{ethernet, ip::Ip, ipv4::Ipv4, ipv6::Ipv6},
};
use tokio::{io::unix::AsyncFd, sync::mpsc};
use zerocopy::FromBytes as _;

/// A dropped packet.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Drop {
    /// Why.
    pub reason: Reason,
    /// Which way it was going.
    pub direction: Direction,
    /// Length of the frame in bytes.
    pub length: u32,
    /// The start of the frame.
    pub bytes: Vec<u8>,
}

impl Drop {
    fn read(event: &DropEvent) -> Option<Self> {
        Some(Self {
            reason: *Reason::ALL.get(usize::from(event.reason))?,
            direction: *Direction::ALL.get(usize::from(event.direction))?,
            length: event.length,
            bytes: event.bytes.get(..usize::from(event.captured))?.to_vec(),
        })
    }

    /// Source and destination, if the headers are all there.
    #[must_use]
    pub fn endpoints(&self) -> Option<(SocketAddr, SocketAddr)> {
        let frame = HostFrame::new(self.bytes.clone());
        if ethernet::ethertype(&frame)? == Ipv4::ETHERTYPE {
            endpoints_of::<Ipv4>(&frame)
        } else {
            endpoints_of::<Ipv6>(&frame)
        }
    }
}

fn endpoints_of<I: Ip>(frame: &HostFrame) -> Option<(SocketAddr, SocketAddr)> {
    let packet = Packet::<I>::parse(frame, ethernet::HEADER_BYTES)?;
    let endpoint = |address, port: relay_ebpf::wire::Be16| SocketAddr::new(IpAddr::from(address), port.get());
    Some((
        endpoint(packet.ip.source(), packet.udp.source),
        endpoint(packet.ip.destination(), packet.udp.destination),
    ))
}

impl fmt::Display for Drop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {}, {} bytes",
            self.direction.name(),
            self.reason.name(),
            self.length
        )?;
        match self.endpoints() {
            Some((source, destination)) => write!(f, ", {source} → {destination}"),
            None => Ok(()),
        }
    }
}

/// The stream of sampled drops.
pub struct Drops(Source);

enum Source {
    Ring(Box<AsyncFd<RingBuf<MapData>>>),
    Channel(mpsc::Receiver<DropEvent>),
}

impl Drops {
    /// Reads this ring.
    ///
    /// # Errors
    /// If the runtime cannot watch it.
    #[expect(
        deprecated,
        reason = "its replacement is unsafe; the ring keeps its descriptor open as long as it lives"
    )]
    pub fn of_ring(ring: RingBuf<MapData>) -> io::Result<Self> {
        AsyncFd::new(ring).map(|ring| Self(Source::Ring(Box::new(ring))))
    }

    /// Reads this channel.
    pub(super) fn of_channel(channel: mpsc::Receiver<DropEvent>) -> Self {
        Self(Source::Channel(channel))
    }

    /// Waits for the next drop.
    ///
    /// # Errors
    /// If there will be none any more.
    pub async fn next(&mut self) -> io::Result<Drop> {
        match &mut self.0 {
            Source::Ring(ring) => next_of_ring(ring).await,
            Source::Channel(channel) => loop {
                let event = channel.recv().await.ok_or(io::ErrorKind::BrokenPipe)?;
                if let Some(drop) = Drop::read(&event) {
                    return Ok(drop);
                }
            },
        }
    }
}

async fn next_of_ring(drops: &mut AsyncFd<RingBuf<MapData>>) -> io::Result<Drop> {
    loop {
        let mut ready = drops.readable_mut().await?;
        let ring = ready.get_inner_mut();
        while let Some(item) = ring.next() {
            // What is too short is not this build's event; a newer program may be on the ring during an upgrade.
            if let Ok((event, _)) = DropEvent::read_from_prefix(&item)
                && let Some(drop) = Drop::read(&event)
            {
                return Ok(drop);
            }
        }
        ready.clear_ready();
    }
}
