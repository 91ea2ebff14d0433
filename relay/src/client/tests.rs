use nix::sys::socket::SockaddrStorage;
use proptest::prelude::*;
use rstest::rstest;

use super::{
    batch::{BATCH, socket_address},
    *,
};

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
