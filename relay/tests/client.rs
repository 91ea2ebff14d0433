//! `connect` and `ping` as their user has them: the real binary on the loopback, where the test plays the relay. Needs
//! no privileges.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, UdpSocket},
    process::{Child, ChildStdout, Command, Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use lumenlink_relay::grant::{Grant, Secret};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use relay_ebpf::token::{self, TOKEN_BYTES, Token};
use rstest::rstest;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(10);
/// Time in which a socket that is read in a loop looks whether the loop is to end.
const BLINK: Duration = Duration::from_millis(50);

fn grant(relay: SocketAddr) -> Grant {
    Grant {
        user: 42,
        relay,
        relay_id: 7,
        slot: 3,
        salt: 0xdead_beef,
        key: Secret::new([1; 16]),
        header_key: Some(Secret::new([2; 16])),
        expires_at: None,
    }
}

/// Reflects pings, and sends every payload back to where it came from, reversed.
struct PlayedRelay {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    /// Returns the packet numbers that came.
    thread: JoinHandle<Vec<u64>>,
}

impl PlayedRelay {
    fn new() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(BLINK)).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        Self {
            address: socket.local_addr().unwrap(),
            stop: stop.clone(),
            thread: thread::spawn(move || serve(&socket, &stop)),
        }
    }

    fn end(self) -> Vec<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

fn serve(socket: &UdpSocket, stop: &AtomicBool) -> Vec<u64> {
    let mut buffer = [0; 65_536];
    let mut numbers = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let Ok((len, from)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        numbers.push(packet_number(&buffer[..len]));
        if len > TOKEN_BYTES {
            buffer[TOKEN_BYTES..len].reverse();
            socket.send_to(&buffer[TOKEN_BYTES..len], from).unwrap();
        } else {
            socket.send_to(&buffer[..len], from).unwrap();
        }
    }
    numbers
}

/// The packet number of a datagram whose token is right.
#[track_caller]
fn packet_number(datagram: &[u8]) -> u64 {
    let mut words = datagram[..TOKEN_BYTES].chunks_exact(8);
    let mut word = || u64::from_le_bytes(words.next().unwrap().try_into().unwrap());
    let token = Token {
        handle: word(),
        number: word(),
        tag: word(),
    };
    let token = token.masked(token::key(&[2; 16]));
    assert_eq!((token.slot(), token.salt()), (3, 0xdead_beef));
    let payload_len = (datagram.len() - TOKEN_BYTES) as u16;
    assert!(token.is_authentic(token::key(&[1; 16]), token::context(payload_len, 7)));
    token.pn()
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lumenlink-relay"));
    command
        .args(arguments)
        .env_remove("RELAY_GRANT")
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// A `connect` that serves. Ended when dropped.
struct Connect {
    process: Child,
    output: BufReader<ChildStdout>,
    ready: String,
}

impl Connect {
    fn start(arguments: &[&str], grant: &str) -> Self {
        let mut command = command(&["connect", "--listen", "127.0.0.1:0"]);
        let mut process = command.args(arguments).env("RELAY_GRANT", grant).spawn().unwrap();
        let mut output = BufReader::new(process.stdout.take().unwrap());
        let mut ready = String::new();
        output.read_line(&mut ready).unwrap();
        Self { process, output, ready }
    }

    /// Ends it by a signal; returns what it said last, and whether it was a success.
    fn end(mut self, signal: Signal) -> (String, bool) {
        kill(Pid::from_raw(self.process.id() as i32), signal).unwrap();
        let mut rest = String::new();
        self.output.read_to_string(&mut rest).unwrap();
        (rest, self.process.wait().unwrap().success())
    }
}

impl Drop for Connect {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn exchange(program: &UdpSocket, listen: SocketAddr, payload: &[u8]) {
    program.set_read_timeout(Some(PATIENCE)).unwrap();
    program.send_to(payload, listen).unwrap();
    let mut answer = vec![0; 65_536];
    let (len, from) = program.recv_from(&mut answer).unwrap();
    let reversed: Vec<u8> = payload.iter().rev().copied().collect();
    assert_eq!((&answer[..len], from), (&reversed[..], listen));
}

fn says(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[rstest]
#[case::int(Signal::SIGINT)]
#[case::term(Signal::SIGTERM)]
fn connect_serves_a_program_until_a_signal_and_then_says_what_it_moved(#[case] signal: Signal) {
    let relay = PlayedRelay::new();
    let connect = Connect::start(&["--json"], &grant(relay.address).to_line());
    let ready: Value = serde_json::from_str(&connect.ready).unwrap();
    assert_eq!(
        (&ready["event"], &ready["user"], &ready["relay"]),
        (&"ready".into(), &42.into(), &relay.address.to_string().into())
    );
    let listen = ready["listen"].as_str().unwrap().parse().unwrap();
    let program = UdpSocket::bind("127.0.0.1:0").unwrap();
    for payload in [&b"1"[..], b"twenty-four bytes of it.", &[7; 60_000]] {
        exchange(&program, listen, payload);
    }
    let (ended, success) = connect.end(signal);
    assert!(success);
    let ended: Value = serde_json::from_str(&ended).unwrap();
    let totals = &ended["totals"];
    assert_eq!(ended["event"], "ended");
    for way in ["uplink", "downlink"] {
        assert_eq!(totals[format!("{way}_packets")], 3, "{totals}");
        assert_eq!(totals[format!("{way}_bytes")], 60_025, "{totals}");
    }
    let numbers = relay.end();
    assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
}

#[test]
fn connect_speaks_plainly_where_json_is_not_asked_for() {
    let relay = PlayedRelay::new();
    let connect = Connect::start(&[], &grant(relay.address).to_line());
    let ready = connect.ready.clone();
    let listen = ready.strip_prefix("listening on ").expect(&ready);
    let (listen, rest) = listen.split_once(',').expect(&ready);
    assert!(
        rest.contains(&relay.address.to_string()) && rest.contains("user 42"),
        "{ready}"
    );
    exchange(
        &UdpSocket::bind("127.0.0.1:0").unwrap(),
        listen.parse().unwrap(),
        b"hello",
    );
    let (ended, success) = connect.end(Signal::SIGTERM);
    assert!(success && ended.contains("uplink 1 packets, 5 bytes"), "{ended}");
}

#[test]
fn connect_warns_when_the_grant_expires_and_goes_on() {
    let relay = PlayedRelay::new();
    let end = Timestamp::now() + Duration::from_secs(2);
    let grant = Grant {
        expires_at: Some(end),
        ..grant(relay.address)
    };
    let mut connect = Connect::start(&["--json"], &grant.to_line());
    let mut warning = String::new();
    BufReader::new(connect.process.stderr.take().unwrap())
        .read_line(&mut warning)
        .unwrap();
    assert!(warning.contains("WARN") && warning.contains("expired at"), "{warning}");
    assert!(Timestamp::now() >= end, "too early");
    let ready: Value = serde_json::from_str(&connect.ready).unwrap();
    let listen = ready["listen"].as_str().unwrap().parse().unwrap();
    exchange(&UdpSocket::bind("127.0.0.1:0").unwrap(), listen, b"still there");
    assert!(connect.end(Signal::SIGTERM).1);
}

#[test]
fn connect_names_a_port_that_is_in_use() {
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let grant = grant("127.0.0.1:4500".parse().unwrap()).to_line();
    let output = command(&["connect", "--grant", &grant, "--listen", &address])
        .output()
        .unwrap();
    let (code, _, complaint) = says(&output);
    assert_eq!(code, Some(8), "{complaint}");
    assert!(
        complaint.contains(&address) && complaint.contains("in use"),
        "{complaint}"
    );
}

#[rstest]
#[case::connect(&["connect", "--listen", "127.0.0.1:0"])]
#[case::ping(&["ping"])]
fn an_expired_grant_is_refused_at_once(#[case] arguments: &[&str]) {
    let grant = Grant {
        expires_at: Some("2020-01-01T00:00:00Z".parse().unwrap()),
        ..grant("127.0.0.1:4500".parse().unwrap())
    };
    let output = command(arguments).args(["--grant", &grant.to_line()]).output().unwrap();
    let (code, printed, complaint) = says(&output);
    assert_eq!((code, printed.as_str()), (Some(11), ""), "{complaint}");
    assert!(complaint.contains("expired at 2020-01-01T00:00:00Z"), "{complaint}");
}

#[test]
fn ping_prints_each_answer_and_a_summary() {
    let relay = PlayedRelay::new();
    let grant = grant(relay.address).to_line();
    let output = command(&["ping", "-c", "3", "-i", "1ms", "--grant", &grant])
        .output()
        .unwrap();
    let (code, printed, complaint) = says(&output);
    assert_eq!(code, Some(0), "{complaint}");
    let lines: Vec<_> = printed.lines().collect();
    assert_eq!(lines.len(), 4, "{printed}");
    for (line, pn) in lines.iter().zip(relay.end()) {
        assert!(line.starts_with("24 bytes from 127.0.0.1:"), "{line}");
        assert!(line.contains(&format!(" pn={pn} time=")), "{line}");
    }
    assert!(
        lines[3].contains("3 sent, 3 received, 0 % loss, min/avg/max "),
        "{printed}"
    );
}

#[test]
fn ping_takes_its_grant_from_standard_input_and_prints_json() {
    let relay = PlayedRelay::new();
    let mut process = command(&["ping", "-c", "2", "-i", "1ms", "--json", "--grant", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let json = serde_json::to_string_pretty(&grant(relay.address)).unwrap();
    process.stdin.take().unwrap().write_all(json.as_bytes()).unwrap();
    let (code, printed, complaint) = says(&process.wait_with_output().unwrap());
    assert_eq!(code, Some(0), "{complaint}");
    let events: Vec<Value> = printed
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let numbers: Vec<_> = events[..2].iter().map(|event| event["pn"].as_u64().unwrap()).collect();
    assert_eq!(numbers, relay.end());
    let ended = &events[2];
    assert_eq!((&ended["sent"], &ended["received"]), (&2.into(), &2.into()), "{ended}");
    assert!(ended["min_ms"].as_f64() <= ended["max_ms"].as_f64(), "{ended}");
}

#[test]
fn ping_that_nobody_answers_ends_after_its_timeout_with_1() {
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let grant = grant(silent.local_addr().unwrap()).to_line();
    let started = Instant::now();
    let output = command(&["ping", "-c", "2", "-i", "1ms", "-W", "300ms", "--grant", &grant])
        .output()
        .unwrap();
    let (code, printed, _) = says(&output);
    assert!(started.elapsed() >= Duration::from_millis(300));
    assert_eq!(code, Some(1), "{printed}");
    assert!(printed.contains("2 sent, 0 received, 100 % loss"), "{printed}");
}

#[test]
fn ping_stops_at_a_signal_and_sums_up() {
    let relay = PlayedRelay::new();
    let grant = grant(relay.address).to_line();
    let mut process = command(&["ping", "-c", "10000", "-i", "1ms", "--json", "--grant", &grant])
        .spawn()
        .unwrap();
    let mut output = BufReader::new(process.stdout.take().unwrap());
    for _ in 0..5 {
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        assert!(line.contains("\"answer\""), "{line}");
    }
    kill(Pid::from_raw(process.id() as i32), Signal::SIGINT).unwrap();
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    assert!(process.wait().unwrap().success());
    let ended: Value = serde_json::from_str(rest.lines().last().unwrap()).unwrap();
    assert!(ended["received"].as_u64() >= Some(5), "{ended}");
}
