//! The client's half of the protocol: sealing tokens, and a proxy that lets any program speak to its destination
//! through the relay.

mod batch;
#[cfg(test)]
mod tests;

use std::{
    collections::VecDeque,
    convert::Infallible,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use nix::{
    errno::Errno,
    sys::socket::{setsockopt, sockopt},
};
use relay_ebpf::token::{self, TOKEN_BYTES};
use rustix::net::sockopt::{Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, set_ip_mtu_discover, set_ipv6_mtu_discover};
use serde::Serialize;
use tokio::net::UdpSocket;

use self::batch::Batch;
pub(crate) use self::batch::socket_address;
use crate::grant::{Grant, Secret};

/// Bytes of the largest UDP payload.
const DATAGRAM_BYTES: usize = 65_507;
/// Bytes of socket buffers: some hundred full datagrams, for programs that send in bursts.
const SOCKET_BYTES: usize = 4 << 20;

/// Time that a socket gets to recover from an error.
const RECOVERY: Duration = Duration::from_millis(100);
/// Keepalives whose answers are waited for at the same time; older ones are lost.
const KEEPALIVES: usize = 8;
/// A client that was silent for so long takes its packet numbers from the clock again.
const SILENCE: Duration = Duration::from_secs(1);

/// Makes tokens for one grant, each with a packet number of its own: one more than the last, or the clock in
/// microseconds since the Unix epoch after a silence. So a client that was started again need not remember anything,
/// and one whose grant was used elsewhere for a while, to ping for example, is heard again when it goes on.
#[derive(Debug)]
pub struct Sealer {
    grant: Grant,
    next_pn: u64,
    last: Option<Instant>,
}

impl Sealer {
    /// Seals with this grant.
    #[must_use]
    pub const fn new(grant: Grant) -> Self {
        Self {
            grant,
            next_pn: 0,
            last: None,
        }
    }

    /// The next packet number, and the token to put in front of a payload of this length, which is sent `now`.
    pub fn seal(&mut self, payload_len: u16, now: Instant) -> (u64, [u8; TOKEN_BYTES]) {
        if self
            .last
            .is_none_or(|last| now.saturating_duration_since(last) >= SILENCE)
        {
            // Never back, even if the clock was set back.
            self.next_pn = self.next_pn.max(clock_us());
        }
        self.last = Some(now);
        let pn = self.next_pn;
        self.next_pn += 1;
        let grant = &self.grant;
        let header_key = grant.header_key.map(Secret::bytes);
        let token = token::seal(
            &grant.key.bytes(),
            header_key.as_ref(),
            grant.slot,
            grant.salt,
            pn,
            payload_len,
            grant.relay_id,
        );
        (pn, token)
    }
}

fn clock_us() -> u64 {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // Until the year 586000.
    u64::try_from(clock.as_micros()).unwrap_or(u64::MAX)
}

/// A socket towards a relay, which never sends fragments: the relay drops them.
///
/// It is not connected, so each packet leaves from the address that the routes say at that moment, unless there is a
/// `source`: a host that moves to another network needs no new socket, and what ICMP reports is no error.
///
/// # Errors
/// If `source` is not this host's or of the other family, or no socket can be made.
pub async fn relay_socket(relay: SocketAddr, source: Option<IpAddr>) -> Result<UdpSocket, ProxyError> {
    if let Some(from) = source.filter(|source| source.is_ipv4() != relay.is_ipv4()) {
        return Err(ProxyError::Family { relay, from });
    }
    let any = match relay {
        SocketAddr::V4(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::from(Ipv6Addr::UNSPECIFIED),
    };
    let from = source.unwrap_or(any);
    open_relay_socket(relay, from)
        .await
        .map_err(|source| ProxyError::Relay { relay, from, source })
}

async fn open_relay_socket(relay: SocketAddr, from: IpAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((from, 0)).await?;
    match relay {
        SocketAddr::V4(_) => set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::DO)?,
        SocketAddr::V6(_) => set_ipv6_mtu_discover(&socket, Ipv6PathMtuDiscovery::DO)?,
    }
    enlarge(&socket);
    Ok(socket)
}

/// Beyond the system's limit where this process may, else as much as that allows; less is slower, not wrong.
fn enlarge(socket: &UdpSocket) {
    let _ = setsockopt(socket, sockopt::RcvBufForce, &SOCKET_BYTES)
        .or_else(|_| setsockopt(socket, sockopt::RcvBuf, &SOCKET_BYTES));
    let _ = setsockopt(socket, sockopt::SndBufForce, &SOCKET_BYTES)
        .or_else(|_| setsockopt(socket, sockopt::SndBuf, &SOCKET_BYTES));
}

/// What a proxy has done, and not done.
#[derive(Debug, Default)]
pub struct Stats {
    uplink_packets: AtomicU64,
    uplink_bytes: AtomicU64,
    downlink_packets: AtomicU64,
    downlink_bytes: AtomicU64,
    too_long: AtomicU64,
    empty: AtomicU64,
    unsent: AtomicU64,
    unclaimed: AtomicU64,
    foreign: AtomicU64,
    failures: AtomicU64,
}

/// [`Stats`] at one moment.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
pub struct Totals {
    /// Datagrams sent to the relay.
    pub uplink_packets: u64,
    /// Bytes of their payloads.
    pub uplink_bytes: u64,
    /// Datagrams handed to the local program.
    pub downlink_packets: u64,
    /// Bytes of them.
    pub downlink_bytes: u64,
    /// Datagrams that do not fit into a packet on the way to the relay.
    pub too_long: u64,
    /// Datagrams without a byte, which would be pings.
    pub empty: u64,
    /// Datagrams that the system did not send, for want of a route for example.
    pub unsent: u64,
    /// Datagrams from the relay that came before any local program had sent one, so that nobody is known to want them.
    pub unclaimed: u64,
    /// Datagrams on the relay's side that did not come from the relay.
    pub foreign: u64,
}

fn add(counter: &AtomicU64, by: u64) -> u64 {
    counter.fetch_add(by, Ordering::Relaxed)
}

impl Stats {
    /// The sums so far.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Totals {
            uplink_packets: load(&self.uplink_packets),
            uplink_bytes: load(&self.uplink_bytes),
            downlink_packets: load(&self.downlink_packets),
            downlink_bytes: load(&self.downlink_bytes),
            too_long: load(&self.too_long),
            empty: load(&self.empty),
            unsent: load(&self.unsent),
            unclaimed: load(&self.unclaimed),
            foreign: load(&self.foreign),
        }
    }

    fn failed(&self, error: &io::Error, bytes: usize) {
        if error.raw_os_error() == Some(Errno::EMSGSIZE as i32) {
            if add(&self.too_long, 1) == 0 {
                tracing::warn!(
                    "a datagram of {bytes} bytes, token included, does not fit into a packet: dropped, and so are \
                     others of that size; have the program send smaller ones"
                );
            }
        } else if add(&self.unsent, 1) == 0 {
            tracing::warn!("a datagram was not sent: {error}; others may follow");
        }
    }

    fn receiving_failed(&self, error: &io::Error) {
        if add(&self.failures, 1) == 0 {
            tracing::warn!("receiving: {error}; trying again");
        }
    }
}

/// A local UDP port behind which the user's destination seems to be. Answers go to the local program that has sent
/// last.
#[derive(Debug)]
pub struct Proxy {
    local: UdpSocket,
    relay: UdpSocket,
    relay_address: SocketAddr,
    sealer: Mutex<Sealer>,
    peer: Mutex<Option<SocketAddr>>,
    keepalive: Option<Duration>,
    /// Tokens of keepalives that the relay has not reflected yet.
    pings: Mutex<VecDeque<[u8; TOKEN_BYTES]>>,
    stats: Stats,
}

/// Why there is no proxy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProxyError {
    /// The local address.
    #[error("listening on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The socket towards the relay.
    #[error("making a socket on {from} towards the relay {relay}: {source}")]
    Relay {
        /// The listener.
        relay: SocketAddr,
        /// This host's address.
        from: IpAddr,
        /// What the system said.
        source: io::Error,
    },
    /// An address to send from that cannot reach the relay.
    #[error("sending from {from} to the relay {relay}: one is IPv4, the other IPv6")]
    Family {
        /// The listener.
        relay: SocketAddr,
        /// The address to send from.
        from: IpAddr,
    },
}

impl Proxy {
    /// Listens on `listen`; nothing moves until [`run`](Self::run).
    ///
    /// # Errors
    /// See [`ProxyError`].
    pub async fn bind(listen: SocketAddr, source: Option<IpAddr>, grant: Grant) -> Result<Self, ProxyError> {
        let relay_address = grant.relay;
        let local = UdpSocket::bind(listen).await.map_err(|source| ProxyError::Listen {
            address: listen,
            source,
        })?;
        enlarge(&local);
        let relay = relay_socket(relay_address, source).await?;
        Ok(Self {
            local,
            relay,
            relay_address,
            sealer: Mutex::new(Sealer::new(grant)),
            peer: Mutex::new(None),
            keepalive: None,
            pings: Mutex::new(VecDeque::with_capacity(KEEPALIVES)),
            stats: Stats::default(),
        })
    }

    /// Pings the relay whenever so long nothing was sent to it, once a local program has sent something: for NATs on
    /// the way, which forget who is silent.
    #[must_use]
    pub const fn with_keepalive(mut self, every: Duration) -> Self {
        self.keepalive = Some(every);
        self
    }

    /// Where it listens.
    ///
    /// # Errors
    /// If the system does not tell.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.local.local_addr()
    }

    /// What it has done.
    #[must_use]
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Moves datagrams both ways until the future is dropped. No error of the network ends it.
    pub async fn run(&self) -> Infallible {
        tokio::select! {
            never = self.uplink() => never,
            never = self.downlink() => never,
        }
    }

    fn peer(&self) -> MutexGuard<'_, Option<SocketAddr>> {
        self.peer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for datagrams.
    async fn receive(&self, batch: &mut Batch, socket: &UdpSocket) {
        while let Err(error) = batch.receive(socket).await {
            self.stats.receiving_failed(&error);
            tokio::time::sleep(RECOVERY).await;
        }
    }

    async fn uplink(&self) -> Infallible {
        let mut batch = Batch::new(TOKEN_BYTES);
        loop {
            tokio::select! {
                () = self.receive(&mut batch, &self.local) => {}
                () = self.silence() => {
                    self.ping().await;
                    continue;
                }
            }
            if let Some(from) = batch.messages.last().and_then(|message| message.from) {
                *self.peer() = Some(from);
            }
            self.seal(&mut batch);
            let (packets, bytes) = batch.send(&self.relay, self.relay_address, &self.stats).await;
            add(&self.stats.uplink_packets, packets);
            add(&self.stats.uplink_bytes, bytes - packets * TOKEN_BYTES as u64);
        }
    }

    /// Waits until it is time for a keepalive.
    async fn silence(&self) {
        match self.keepalive {
            Some(every) if self.peer().is_some() => tokio::time::sleep(every).await,
            _ => std::future::pending().await,
        }
    }

    async fn ping(&self) {
        let (_, token) = self.sealer().seal(0, Instant::now());
        {
            let mut pings = self.pings();
            if pings.len() == KEEPALIVES {
                pings.pop_front();
            }
            pings.push_back(token);
        }
        if let Err(error) = self.relay.send_to(&token, self.relay_address).await {
            self.stats.failed(&error, TOKEN_BYTES);
        }
    }

    /// Whether this datagram is a keepalive come back; forgets it then.
    fn is_reflected(&self, datagram: &[u8]) -> bool {
        let mut pings = self.pings();
        let found = pings.iter().position(|token| token == datagram);
        found.and_then(|index| pings.remove(index)).is_some()
    }

    fn pings(&self) -> MutexGuard<'_, VecDeque<[u8; TOKEN_BYTES]>> {
        self.pings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sealer(&self) -> MutexGuard<'_, Sealer> {
        self.sealer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a token in front of each payload; those that cannot have one are left out.
    fn seal(&self, batch: &mut Batch) {
        let now = Instant::now();
        let mut sealer = self.sealer();
        let Batch { messages, buffers, .. } = batch;
        messages.retain_mut(|message| {
            let Some(payload_len) = u16::try_from(message.len).ok().filter(|len| *len > 0) else {
                add(&self.stats.empty, 1);
                return false;
            };
            if message.len + TOKEN_BYTES > DATAGRAM_BYTES {
                self.stats.failed(&Errno::EMSGSIZE.into(), message.len + TOKEN_BYTES);
                return false;
            }
            let (_, token) = sealer.seal(payload_len, now);
            buffers[message.buffer][..TOKEN_BYTES].copy_from_slice(&token);
            message.start = 0;
            message.len += TOKEN_BYTES;
            true
        });
    }

    async fn downlink(&self) -> Infallible {
        let mut batch = Batch::new(0);
        loop {
            self.receive(&mut batch, &self.relay).await;
            let received = batch.messages.len();
            batch
                .messages
                .retain(|message| message.from == Some(self.relay_address));
            add(&self.stats.foreign, (received - batch.messages.len()) as u64);
            let Batch { messages, buffers, .. } = &mut batch;
            messages.retain(|message| {
                message.len != TOKEN_BYTES || !self.is_reflected(&buffers[message.buffer][..TOKEN_BYTES])
            });
            let peer = *self.peer();
            let Some(peer) = peer else {
                add(&self.stats.unclaimed, batch.messages.len() as u64);
                continue;
            };
            let (packets, bytes) = batch.send(&self.local, peer, &self.stats).await;
            add(&self.stats.downlink_packets, packets);
            add(&self.stats.downlink_bytes, bytes);
        }
    }
}
