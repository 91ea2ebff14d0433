//! The client's half of the protocol: sealing tokens, and a proxy that lets any program speak to its destination
//! through the relay.

use std::{
    collections::VecDeque,
    convert::Infallible,
    io::{self, IoSlice, IoSliceMut},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6},
    os::fd::AsRawFd as _,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, sendmmsg, setsockopt, sockopt},
};
use relay_ebpf::token::{self, TOKEN_BYTES};
use rustix::net::sockopt::{Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, set_ip_mtu_discover, set_ipv6_mtu_discover};
use serde::Serialize;
use tokio::{io::Interest, net::UdpSocket};

use crate::grant::{Grant, Secret};

/// Datagrams that one system call moves at most.
const BATCH: usize = 32;
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

/// Datagrams that one system call received, or is to send.
struct Batch {
    buffers: Vec<Box<[u8]>>,
    headroom: usize,
    messages: Vec<Message>,
    headers: MultiHeaders<SockaddrStorage>,
}

/// Where a datagram is.
struct Message {
    buffer: usize,
    start: usize,
    len: usize,
    from: Option<SocketAddr>,
}

impl Batch {
    /// Datagrams are received with `headroom` bytes free in front of them.
    fn new(headroom: usize) -> Self {
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
    async fn receive(&mut self, socket: &UdpSocket) -> io::Result<()> {
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
    async fn send(&self, socket: &UdpSocket, to: SocketAddr, stats: &Stats) -> (u64, u64) {
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
fn socket_address(storage: &SockaddrStorage) -> Option<SocketAddr> {
    if let Some(v4) = storage.as_sockaddr_in() {
        return Some(SocketAddr::new(v4.ip().into(), v4.port()));
    }
    let v6 = storage.as_sockaddr_in6()?;
    Some(SocketAddrV6::new(v6.ip(), v6.port(), 0, v6.scope_id()).into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn grant(relay: SocketAddr) -> Grant {
        Grant {
            user: 42,
            relay,
            relay_id: 7,
            slot: 3,
            salt: 0xdead_beef,
            key: Secret::new([1; 16]),
            header_key: None,
            expires_at: None,
        }
    }

    async fn receive(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
        let mut buffer = vec![0; DATAGRAM_BYTES];
        let (len, from) = tokio::time::timeout(Duration::from_secs(5), socket.recv_from(&mut buffer))
            .await
            .expect("nothing came within 5 s")
            .unwrap();
        buffer.truncate(len);
        (buffer, from)
    }

    #[test]
    fn packet_numbers_begin_at_the_clock_rise_by_one_and_return_to_the_clock_after_a_silence() {
        let mut sealer = Sealer::new(grant("192.0.2.1:4500".parse().unwrap()));
        let before = clock_us();
        let now = Instant::now();
        let (first, token) = sealer.seal(5, now);
        assert!((before..=clock_us()).contains(&first), "{first} is not the clock");
        assert_eq!(token, token::seal(&[1; 16], None, 3, 0xdead_beef, first, 5, 7));
        assert_eq!(sealer.seal(5, now + Duration::from_millis(999)).0, first + 1);
        let before = clock_us();
        let (later, _) = sealer.seal(5, now + Duration::from_secs(2));
        assert!((before..=clock_us()).contains(&later), "{later} is not the clock");
        sealer.next_pn = u64::MAX - 5;
        assert_eq!(
            sealer.seal(5, now + Duration::from_secs(9)).0,
            u64::MAX - 5,
            "went back to the clock"
        );
    }

    proptest! {
        #[test]
        fn packet_numbers_rise_whatever_the_pauses(pauses_ms in prop::collection::vec(0_u64..3000, 1..50)) {
            let mut sealer = Sealer::new(grant("192.0.2.1:4500".parse().unwrap()));
            let mut now = Instant::now();
            let mut last_pn = 0;
            for pause in pauses_ms {
                now += Duration::from_millis(pause);
                let (pn, token) = sealer.seal(9, now);
                prop_assert!(pn > last_pn);
                prop_assert_eq!(token, token::seal(&[1; 16], None, 3, 0xdead_beef, pn, 9, 7));
                last_pn = pn;
            }
        }
    }

    /// A relay that the test plays, a proxy towards it, and a program that uses the proxy.
    struct Setting {
        relay: UdpSocket,
        proxy: Proxy,
        local: SocketAddr,
        program: UdpSocket,
    }

    impl Setting {
        async fn on(ip: &str) -> Self {
            let any_port = SocketAddr::new(ip.parse().unwrap(), 0);
            let relay = UdpSocket::bind(any_port).await.unwrap();
            let proxy = Proxy::bind(any_port, None, grant(relay.local_addr().unwrap()))
                .await
                .unwrap();
            let program = UdpSocket::bind(any_port).await.unwrap();
            Self {
                relay,
                local: proxy.local_address().unwrap(),
                proxy,
                program,
            }
        }

        async fn during(&self, talk: impl Future<Output = ()>) -> Totals {
            tokio::select! {
                () = talk => {}
                never = self.proxy.run() => match never {},
            }
            self.proxy.stats().totals()
        }
    }

    /// The packet number and the payload of a datagram, if its token is right.
    #[track_caller]
    fn open(datagram: &[u8]) -> (u64, &[u8]) {
        let (token, payload) = datagram.split_at(TOKEN_BYTES);
        let pn = u64::from_be_bytes(token[8..16].try_into().unwrap());
        let expected = token::seal(&[1; 16], None, 3, 0xdead_beef, pn, payload.len() as u16, 7);
        assert_eq!(token, expected);
        (pn, payload)
    }

    #[rstest]
    #[case::v4("127.0.0.1", 65_483)]
    // The loopback's MTU is 65,536.
    #[case::v6("::1", 65_536 - 40 - 8 - 24)]
    #[tokio::test]
    async fn a_program_speaks_through_the_proxy_and_answers_come_back_to_it(#[case] ip: &str, #[case] most: usize) {
        let on = Setting::on(ip).await;
        let talk = async {
            let mut last_pn = 0;
            for len in [1, 24, 1400, 60_000, most] {
                on.program.send_to(&vec![0x5a; len], on.local).await.unwrap();
                let (sealed, client) = receive(&on.relay).await;
                let (pn, payload) = open(&sealed);
                assert_eq!(payload, vec![0x5a; len]);
                assert!(pn > last_pn);
                last_pn = pn;
                on.relay.send_to(&vec![0xa5; len], client).await.unwrap();
                assert_eq!(receive(&on.program).await.0, vec![0xa5; len]);
            }
        };
        let totals = on.during(talk).await;
        let bytes = 1 + 24 + 1400 + 60_000 + most as u64;
        assert_eq!((totals.uplink_packets, totals.uplink_bytes), (5, bytes));
        assert_eq!((totals.downlink_packets, totals.downlink_bytes), (5, bytes));
    }

    #[tokio::test]
    async fn answers_go_to_the_program_that_sent_last() {
        let on = Setting::on("127.0.0.1").await;
        let other = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let talk = async {
            for program in [&on.program, &other, &on.program] {
                program.send_to(b"me now", on.local).await.unwrap();
                let (_, client) = receive(&on.relay).await;
                on.relay.send_to(b"you then", client).await.unwrap();
                assert_eq!(receive(program).await.0, b"you then");
            }
        };
        on.during(talk).await;
    }

    #[tokio::test]
    async fn what_comes_from_elsewhere_or_before_anybody_spoke_is_counted_and_not_handed_on() {
        let on = Setting::on("127.0.0.1").await;
        let relay_side = on.proxy.relay.local_addr().unwrap().port();
        let relay_side = SocketAddr::from(([127, 0, 0, 1], relay_side));
        let talk = async {
            on.relay.send_to(b"for nobody", relay_side).await.unwrap();
            on.program.send_to(b"from elsewhere", relay_side).await.unwrap();
            poll(|| on.proxy.stats().totals().foreign == 1).await;
            on.program.send_to(b"hello", on.local).await.unwrap();
            receive(&on.relay).await;
            on.program.send_to(b"from elsewhere", relay_side).await.unwrap();
            on.relay.send_to(b"answer", relay_side).await.unwrap();
            assert_eq!(receive(&on.program).await.0, b"answer");
        };
        let totals = on.during(talk).await;
        assert_eq!((totals.unclaimed, totals.foreign, totals.downlink_packets), (1, 2, 1));
    }

    /// Until it holds.
    async fn poll(mut holds: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(5);
        while !holds() {
            assert!(Instant::now() < deadline, "it did not hold within 5 s");
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_burst_keeps_its_order_and_has_consecutive_packet_numbers() {
        let on = Setting::on("127.0.0.1").await;
        enlarge(&on.relay);
        const BURST: u32 = 10 * BATCH as u32 + 1;
        for number in 0..BURST {
            on.program.send_to(&number.to_be_bytes(), on.local).await.unwrap();
        }
        let talk = async {
            let mut first_pn = None;
            for number in 0..BURST {
                let (sealed, _) = receive(&on.relay).await;
                let (pn, payload) = open(&sealed);
                assert_eq!(payload, number.to_be_bytes());
                assert_eq!(pn, *first_pn.get_or_insert(pn) + u64::from(number));
            }
        };
        let totals = on.during(talk).await;
        assert_eq!(totals.uplink_packets, u64::from(BURST));
    }

    #[tokio::test]
    async fn what_cannot_be_a_packet_is_counted_and_the_rest_goes_on() {
        let on = Setting::on("127.0.0.1").await;
        let talk = async {
            on.program.send_to(&[], on.local).await.unwrap();
            for len in [DATAGRAM_BYTES, DATAGRAM_BYTES - TOKEN_BYTES + 1] {
                on.program.send_to(&vec![0; len], on.local).await.unwrap();
            }
            on.program.send_to(b"fits", on.local).await.unwrap();
            assert_eq!(open(&receive(&on.relay).await.0).1, b"fits");
        };
        let totals = on.during(talk).await;
        assert_eq!((totals.empty, totals.too_long, totals.unsent), (1, 2, 0));
        assert_eq!(totals.uplink_packets, 1);
    }

    #[tokio::test]
    async fn what_the_path_does_not_take_is_counted_and_not_fragmented() {
        let on = Setting::on("::1").await;
        let talk = async {
            // One byte more than the loopback's MTU of 65,536 has room for.
            on.program
                .send_to(&[0; 65_536 - 40 - 8 - 24 + 1], on.local)
                .await
                .unwrap();
            on.program.send_to(b"fits", on.local).await.unwrap();
            assert_eq!(open(&receive(&on.relay).await.0).1, b"fits");
        };
        let totals = on.during(talk).await;
        assert_eq!((totals.too_long, totals.unsent, totals.uplink_packets), (1, 0, 1));
    }

    #[tokio::test]
    async fn a_relay_that_is_away_for_a_while_does_not_end_the_proxy() {
        let Setting {
            relay,
            proxy,
            local,
            program,
        } = Setting::on("127.0.0.1").await;
        // Now the socket reports what ICMP says, which is the worst that a host can be set to.
        setsockopt(&proxy.relay, sockopt::Ipv4RecvErr, &true).unwrap();
        program.writable().await.unwrap();
        let relay_address = relay.local_addr().unwrap();
        drop(relay);
        let talk = async {
            poll(|| {
                program.try_send_to(b"anybody?", local).unwrap();
                let totals = proxy.stats().totals();
                totals.unsent + proxy.stats.failures.load(Ordering::Relaxed) >= 3
            })
            .await;
            let relay = UdpSocket::bind(relay_address).await.unwrap();
            let mut sealed = [0; TOKEN_BYTES + 8];
            let mut came = false;
            poll(|| {
                program.try_send_to(b"anybody?", local).unwrap();
                came |= relay.try_recv(&mut sealed).is_ok_and(|len| len == sealed.len());
                came
            })
            .await;
            assert_eq!(open(&sealed).1, b"anybody?");
        };
        tokio::select! {
            () = talk => {}
            never = proxy.run() => match never {},
        }
    }

    #[test]
    fn the_zone_of_a_link_local_address_is_kept() {
        for text in ["[fe80::1%3]:7", "[2001:db8::1]:7", "192.0.2.1:7"] {
            let address: SocketAddr = text.parse().unwrap();
            assert_eq!(socket_address(&SockaddrStorage::from(address)), Some(address));
        }
    }

    #[rstest]
    #[case::other_family("::1", "IPv6")]
    #[case::not_this_hosts("192.0.2.77", "192.0.2.77 towards the relay 127.0.0.1:4500")]
    #[tokio::test]
    async fn an_address_that_cannot_be_sent_from_is_named(#[case] source: &str, #[case] says: &str) {
        let grant = grant("127.0.0.1:4500".parse().unwrap());
        let source = source.parse().unwrap();
        let bound = Proxy::bind("127.0.0.1:0".parse().unwrap(), Some(source), grant).await;
        let error = bound.unwrap_err().to_string();
        assert!(error.contains(says) && error.contains("127.0.0.1:4500"), "{error}");
    }

    #[tokio::test]
    async fn a_silent_program_is_kept_alive_by_pings_whose_answers_it_does_not_see() {
        let relay = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let any_port = "127.0.0.1:0".parse().unwrap();
        let proxy = Proxy::bind(any_port, None, grant(relay.local_addr().unwrap())).await;
        let proxy = proxy.unwrap().with_keepalive(Duration::from_millis(20));
        let program = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let local = proxy.local_address().unwrap();
        let talk = async {
            program.send_to(b"hello", local).await.unwrap();
            let (hello, client) = receive(&relay).await;
            assert_eq!(hello[TOKEN_BYTES..], *b"hello");
            for _ in 0..3 {
                let (ping, _) = receive(&relay).await;
                let pn = u64::from_be_bytes(ping[8..16].try_into().unwrap());
                assert_eq!(ping, token::seal(&[1; 16], None, 3, 0xdead_beef, pn, 0, 7));
                relay.send_to(&ping, client).await.unwrap();
            }
            let payload = [0x5a; TOKEN_BYTES];
            relay.send_to(&payload, client).await.unwrap();
            assert_eq!(
                receive(&program).await.0,
                payload,
                "a payload as long as a token is no ping"
            );
        };
        tokio::select! {
            () = talk => {}
            never = proxy.run() => match never {},
        }
        assert_eq!(proxy.stats().totals().downlink_packets, 1);
    }

    #[tokio::test]
    async fn a_busy_port_is_named() {
        let taken = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = taken.local_addr().unwrap();
        let error = Proxy::bind(address, None, grant(address))
            .await
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(&address.to_string()) && error.contains("in use"),
            "{error}"
        );
    }
}
