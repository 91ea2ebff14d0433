//! What userspace mode takes for a packet, in one thread, on the loopback interface. Needs no privileges.
//!
//! The thread that sends waits while the relay works: only that is timed, the kernel's part of receiving and sending
//! included, down to the receiver's queue.

use std::{
    io::IoSlice,
    net::{SocketAddr, UdpSocket},
    os::fd::AsRawFd as _,
    time::{Duration, Instant},
};

use lumenlink_relay::datapath::{
    PublishedUser,
    clock::Clock,
    plane::Plane as _,
    publish::{Numbering, Publisher},
    userspace::{UserspacePlane, Worker, of_host},
};
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg};
use relay_ebpf::{
    layout::{Listener, Settings},
    token,
    verdict::{Direction, Reason},
    wire::Be16,
};
use rstest::rstest;

const KEY: [u8; 16] = [7; 16];
const HEADER_KEY: [u8; 16] = [9; 16];
const SALT: u32 = 0x5a5a;
/// Datagrams that are under way at once: they fit any socket's buffer.
const TOGETHER: usize = 32;
const ROUNDS: usize = match cfg!(debug_assertions) {
    true => 50,
    false => 4000,
};

/// A relay in this process with one user, whose client and destination are here too.
struct Scene {
    plane: UserspacePlane,
    worker: Worker,
    client: UdpSocket,
    listener: SocketAddr,
    destination: UdpSocket,
    next_pn: u64,
}

fn free_port() -> u16 {
    let free = UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr());
    free.expect("the loopback interface has free ports").port()
}

fn socket() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    socket.set_nonblocking(true).expect("it need not block");
    socket
}

impl Scene {
    fn new(segmentation: bool) -> Self {
        let (client, destination) = (socket(), socket());
        let listener = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let egress_port = free_port();
        let mut settings = Settings {
            tick_ns: 1,
            relay_id: 1,
            max_users: 1,
            max_destinations: 1,
            listener_count: 1,
            egress_v4_count: 1,
            first_egress_port: egress_port.into(),
            egress_ports: 1,
            ..of_host(Settings::default())
        };
        settings.egress_v4[0] = listener.ip().into();
        settings.listeners[0] = Listener {
            header_key: token::key(&HEADER_KEY),
            address: listener.ip().into(),
            port: Be16::new(listener.port()),
            protected: 1,
            ..Listener::default()
        };
        let mut plane = UserspacePlane::new(settings, 1).expect("there are files enough for a user");
        if !segmentation {
            plane = plane.without_segmentation();
        }
        plane.listen().expect("the port is free");
        let numbering = Numbering {
            first_port: egress_port,
            ports: 1,
            v4_addresses: 1,
            v6_addresses: 0,
            tick_ns: 1,
        };
        let user = PublishedUser {
            slot: 0,
            salt: SALT,
            key: KEY,
            to: destination.local_addr().expect("it is bound"),
            rate: 10_000_000,
            burst: 1_000_000,
            down_limit: None,
            expires_at: None,
        };
        plane.open(std::slice::from_ref(&user), &numbering);
        let mut publisher = Publisher::adopt(&plane, numbering, Clock::monotonic());
        publisher.publish(&plane, &[user]).expect("there is a slot");
        Self {
            worker: plane.stations().remove(0).begin(),
            plane,
            client,
            listener,
            destination,
            next_pn: 1,
        }
    }

    /// Sealed packets with this many bytes of payload.
    fn seal(&mut self, payload_bytes: usize) -> Vec<Vec<u8>> {
        let packet = |pn| {
            let token = token::seal(&KEY, Some(&HEADER_KEY), 0, SALT, pn, payload_bytes as u16, 1);
            [token.as_slice(), &vec![0x5a; payload_bytes]].concat()
        };
        let first = self.next_pn;
        self.next_pn += TOGETHER as u64;
        (first..self.next_pn).map(packet).collect()
    }

    /// Relays until this many datagrams have come out; returns how long the relay worked.
    fn relay(&mut self, to: fn(&Self) -> &UdpSocket, mut missing: usize) -> Duration {
        let mut worked = Duration::ZERO;
        let deadline = Instant::now() + Duration::from_secs(5);
        while missing > 0 {
            let began = Instant::now();
            self.worker.turn(10_u8.into()).expect("it can wait");
            worked += began.elapsed();
            while to(self).recv(&mut [0; 2048]).is_ok() {
                missing -= 1;
            }
            assert!(Instant::now() < deadline, "{missing} datagrams are missing");
        }
        worked
    }

    fn relayed(&self, direction: Direction) -> u64 {
        let counters = self.plane.counters().expect("they are in memory");
        let relayed = counters
            .iter()
            .find(|c| (c.direction, c.reason) == (direction, Reason::Relayed));
        relayed.map_or(0, |counter| counter.packets)
    }
}

/// All of them by one system call, as one message if the kernel is to segment it.
fn send(socket: &UdpSocket, to: SocketAddr, packets: &[Vec<u8>], segmented: bool) {
    if !segmented {
        packets.iter().for_each(|packet| {
            socket.send_to(packet, to).expect("the kernel takes it");
        });
        return;
    }
    let size = packets[0].len() as u16;
    let slices: Vec<_> = packets.iter().map(|packet| IoSlice::new(packet)).collect();
    let (control, to) = ([ControlMessage::UdpGsoSegments(&size)], SockaddrStorage::from(to));
    let sent = sendmsg(socket.as_raw_fd(), &slices, &control, MsgFlags::empty(), Some(&to));
    sent.expect("the kernel takes it");
}

#[rstest]
fn nothing_is_lost_or_miscounted_with_and_without_segmentation(
    #[values(64, 512, 1200)] payload_bytes: usize,
    #[values(true, false)] segmentation: bool,
) {
    let mut scene = Scene::new(segmentation);
    let (mut uplink, mut downlink) = (Duration::ZERO, Duration::ZERO);
    for _ in 0..ROUNDS {
        let packets = scene.seal(payload_bytes);
        send(&scene.client, scene.listener, &packets, segmentation);
        uplink += scene.relay(|scene| &scene.destination, TOGETHER);
        let answers: Vec<_> = packets
            .iter()
            .map(|packet| packet[token::TOKEN_BYTES..].to_vec())
            .collect();
        let egress = scene.plane.egress_address(0).expect("it is open");
        send(&scene.destination, egress, &answers, segmentation);
        downlink += scene.relay(|scene| &scene.client, TOGETHER);
    }
    let packets = (ROUNDS * TOGETHER) as u64;
    assert_eq!(scene.relayed(Direction::Uplink), packets);
    assert_eq!(scene.relayed(Direction::Downlink), packets);
    let ns = |took: Duration| took.as_nanos() / u128::from(packets);
    eprintln!(
        "{payload_bytes} bytes, segmentation {}: {} ns a packet uplink, {} ns downlink",
        if segmentation { "on" } else { "off" },
        ns(uplink),
        ns(downlink)
    );
}
