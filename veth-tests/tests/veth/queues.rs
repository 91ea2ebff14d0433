//! One user's packets on several queues, and so on several CPUs at once.

use std::{
    collections::BTreeMap,
    net::UdpSocket,
    num::NonZero,
    path::Path,
    sync::{
        Arc, Barrier,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use aya::maps::{Map, MapData, PerCpuArray};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use relay_ebpf::verdict::{Direction, Reason};
use veth_tests::{
    client::{Client, Grant, PATIENCE, receive},
    namespace::can_run,
    net::{Family, Host, Net},
    relay::Relay,
    wait,
};

const QUEUES: usize = 2;
/// Packets under way at once: far fewer than the replay window has.
const CHUNK: u64 = 64;
const PACKETS: u64 = 200 * CHUNK;
/// Packets per second.
const RATE: u32 = 5_000;
/// How long the rate is measured.
const WINDOW: Duration = Duration::from_secs(4);
/// Packets that tell which queue a socket's packets come by.
const PROBES: u64 = 50;

/// A relay whose interface has two queues, a client that has a socket for each, and a destination.
struct Scene {
    _net: Net,
    relay: Host,
    client: Host,
    server: Host,
}

impl Scene {
    fn new() -> Self {
        let mut net = Net::new();
        let relay = net.host_with_queues("relay", 1, QUEUES as u32);
        let [client, server] = [("client", 2), ("server", 3)].map(|(name, n)| net.host(name, n));
        [&relay, &client, &server].into_iter().for_each(Host::wait_until_up);
        Self {
            _net: net,
            relay,
            client,
            server,
        }
    }

    /// Packets that the relay's interface received by each queue.
    fn received(&self) -> [u64; QUEUES] {
        let statistics = self.relay.command("ethtool -S eth0");
        std::array::from_fn(|queue| {
            let name = format!("rx_queue_{queue}_xdp_packets: ");
            let value = statistics.lines().find_map(|line| line.trim().strip_prefix(&name));
            value.unwrap_or_else(|| panic!("{statistics}")).parse().unwrap()
        })
    }

    /// A socket of the client's whose packets come by this queue: the switch chooses by addresses and ports.
    fn socket(&self, queue: usize, grant: &Grant) -> UdpSocket {
        for _ in 0..64 {
            let socket = self.client.udp(Family::V4, 0);
            let before = self.received()[queue];
            // No token: these are dropped, and change nothing.
            (0..PROBES).for_each(|_| drop(socket.send_to(b"which queue?", grant.relay)));
            let found = wait::within(Duration::from_millis(200), || {
                (self.received()[queue] >= before + PROBES).then_some(())
            });
            if found.is_some() {
                return socket;
            }
        }
        panic!("no socket's packets come by queue {queue}");
    }
}

/// How often each CPU of the relay's host ran the program for a packet that was treated so, uplink.
fn by_cpu(relay: &Relay<'_>, reason: Reason) -> Vec<u64> {
    let data = MapData::from_pin(Path::new(&relay.path("bpf/pins/counters"))).unwrap();
    let counters: PerCpuArray<_, [u64; 2]> = Map::PerCpuArray(data).try_into().unwrap();
    let values = counters.get(&reason.counter(Direction::Uplink), 0).unwrap();
    values.iter().map(|[packets, _]| *packets).collect()
}

/// Whether there is a CPU for each queue, and the privileges.
fn can_run_on_several_cpus() -> bool {
    let cpus = thread::available_parallelism().map_or(1, NonZero::get);
    if cpus < QUEUES {
        eprintln!("skipped: relaying by several queues needs {QUEUES} CPUs, here is {cpus}");
    }
    cpus >= QUEUES && can_run("relaying by several queues")
}

/// What each of `QUEUES` threads does, each on a CPU of its own, at once.
fn on_each_cpu(work: impl Fn(usize) + Sync) {
    thread::scope(|scope| {
        for cpu in 0..QUEUES {
            let work = &work;
            scope.spawn(move || {
                let mut cpus = CpuSet::new();
                cpus.set(cpu).unwrap();
                sched_setaffinity(Pid::from_raw(0), &cpus).unwrap();
                work(cpu);
            });
        }
    });
}

/// A destination that only listens: how often each payload came, as a number.
struct Listener {
    socket: UdpSocket,
    seen: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Listener {
    fn run(&self) -> BTreeMap<u64, u64> {
        let mut counts = BTreeMap::new();
        while !self.stop.load(Ordering::Relaxed) {
            if let Some((payload, _)) = receive(&self.socket, Duration::from_millis(20))
                && let Ok(number) = payload.try_into()
            {
                *counts.entry(u64::from_be_bytes(number)).or_default() += 1;
                self.seen.fetch_add(1, Ordering::Relaxed);
            }
        }
        counts
    }
}

#[test]
fn a_packet_that_comes_by_two_queues_at_once_is_relayed_once() {
    if !can_run_on_several_cpus() {
        return;
    }
    let scene = Scene::new();
    let mut relay = Relay::new(&scene.relay);
    relay.persist();
    relay.start();
    let listener = Listener {
        socket: scene.server.udp(Family::V4, 0),
        seen: Arc::default(),
        stop: Arc::default(),
    };
    let to = listener.socket.local_addr().unwrap();
    let grant = relay.add_user(1, to, &["--rate", "1000000", "--burst", "100000"]);
    let mut client = Client::new(&scene.client, &grant);
    wait::until("the destination to be resolved", PATIENCE, || {
        client.send(b"anybody?");
        receive(&listener.socket, Duration::from_millis(50))
    });
    let sockets: Vec<_> = (0..QUEUES).map(|queue| scene.socket(queue, &grant)).collect();
    let first = client.pn;
    while receive(&listener.socket, Duration::from_millis(50)).is_some() {}
    let before = [Reason::Relayed, Reason::Replayed].map(|reason| by_cpu(&relay, reason));

    let barrier = Barrier::new(QUEUES);
    let counts = thread::scope(|scope| {
        let listening = scope.spawn(|| listener.run());
        on_each_cpu(|cpu| {
            for chunk in 0..PACKETS / CHUNK {
                let numbers = chunk * CHUNK..(chunk + 1) * CHUNK;
                let packets: Vec<_> = numbers.map(|n| grant.seal(first + n, &n.to_be_bytes())).collect();
                barrier.wait();
                for packet in &packets {
                    sockets[cpu].send_to(packet, grant.relay).unwrap();
                }
                wait::until("a chunk to arrive", PATIENCE, || {
                    (listener.seen.load(Ordering::Relaxed) >= (chunk + 1) * CHUNK).then_some(())
                });
            }
        });
        wait::until("every copy to be treated", PATIENCE, || {
            let replayed = by_cpu(&relay, Reason::Replayed).iter().sum::<u64>() - before[1].iter().sum::<u64>();
            (replayed >= PACKETS).then_some(())
        });
        listener.stop.store(true, Ordering::Relaxed);
        listening.join().unwrap()
    });

    let wrong: Vec<_> = counts.iter().filter(|(_, count)| **count != 1).collect();
    assert!(wrong.is_empty(), "relayed more than once: {wrong:?}");
    assert_eq!(counts.len() as u64, PACKETS);
    for (reason, before) in [Reason::Relayed, Reason::Replayed].into_iter().zip(&before) {
        let after = by_cpu(&relay, reason);
        let ran: Vec<_> = after.iter().zip(before).map(|(after, before)| after - before).collect();
        eprintln!("{}: by CPU {ran:?}", reason.name());
        assert_eq!(ran.iter().sum::<u64>(), PACKETS, "{}: by CPU {ran:?}", reason.name());
    }
    let treated: Vec<u64> = [Reason::Relayed, Reason::Replayed]
        .map(|reason| by_cpu(&relay, reason))
        .into_iter()
        .reduce(|sums, more| sums.iter().zip(more).map(|(a, b)| a + b).collect())
        .unwrap();
    let busy = treated.iter().filter(|packets| **packets > PACKETS / 10).count();
    assert_eq!(busy, QUEUES, "by CPU: {treated:?}");
}

#[test]
fn a_users_rate_holds_over_all_queues_together() {
    if !can_run_on_several_cpus() {
        return;
    }
    let scene = Scene::new();
    let mut relay = Relay::new(&scene.relay);
    relay.persist();
    relay.start();
    let to = scene.server.udp(Family::V4, 0);
    let grant = relay.add_user(1, to.local_addr().unwrap(), &["--rate", "5000", "--burst", "1000"]);
    let mut client = Client::new(&scene.client, &grant);
    wait::until("the destination to be resolved", PATIENCE, || {
        client.send(b"anybody?");
        receive(&to, Duration::from_millis(50))
    });
    let sockets: Vec<_> = (0..QUEUES).map(|queue| scene.socket(queue, &grant)).collect();
    let next = AtomicU64::new(client.pn);
    let stop = AtomicBool::new(false);
    let relayed = || by_cpu(&relay, Reason::Relayed);
    let limited = || by_cpu(&relay, Reason::RateLimited).iter().sum::<u64>();

    let (accepted, elapsed) = thread::scope(|scope| {
        scope.spawn(|| {
            on_each_cpu(|cpu| {
                while !stop.load(Ordering::Relaxed) {
                    for _ in 0..100 {
                        let pn = next.fetch_add(1, Ordering::Relaxed);
                        let packet = grant.seal(pn, b"x");
                        sockets[cpu].send_to(&packet, grant.relay).unwrap();
                    }
                    thread::sleep(Duration::from_millis(4));
                }
            });
        });
        // The burst is spent once packets are refused.
        wait::until("the rate to be reached", 2 * PATIENCE, || {
            (limited() > 1_000).then_some(())
        });
        let (began, before) = (Instant::now(), relayed());
        thread::sleep(WINDOW);
        let (elapsed, after) = (began.elapsed(), relayed());
        stop.store(true, Ordering::Relaxed);
        let accepted: Vec<_> = after
            .iter()
            .zip(&before)
            .map(|(after, before)| after - before)
            .collect();
        (accepted, elapsed)
    });

    let sum = u32::try_from(accepted.iter().sum::<u64>()).unwrap();
    let rate = f64::from(sum) / elapsed.as_secs_f64();
    eprintln!("{rate:.1} packets/s, by CPU {accepted:?} in {elapsed:?}");
    assert!(
        (rate / f64::from(RATE) - 1.0).abs() < 0.01,
        "{rate:.1} packets/s of {RATE}, by CPU {accepted:?}"
    );
    let share = accepted.iter().sum::<u64>() / 20;
    assert!(
        accepted.iter().filter(|packets| **packets > share).count() >= QUEUES,
        "by CPU {accepted:?}"
    );
}
