//! Captures of real programs: for what the relay received then, it sends now what it sent then, in every backend.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use packet_lab::{
    Backend, World,
    backend::{
        host::HostBackend,
        kernel::{self, KernelBackend},
        oracle::OracleBackend,
        veth::{self, VethBackend},
    },
    capture::{Capture, Packet},
    replay::{
        self, Options, ReplayError, Selector, Summary,
        outputs::{Outputs, OutputsError},
    },
    world::{Destination, NextHop, User},
};
use rstest::rstest;
use toml::Value;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../scenarios/captures")
        .join(name)
}

fn capture(name: &str) -> PathBuf {
    folder(name).join(format!("{name}.pcapng"))
}

/// The world that the scenario of a capture describes.
fn world(name: &str) -> World {
    let text = fs::read_to_string(folder(name).join("scenario.toml")).unwrap();
    let scenario: Value = toml::from_str(&text).unwrap();
    let (relay, user) = (&scenario["relay"], &scenario["user"][0]);
    let hex = |value: &Value| <[u8; 16]>::try_from(hex::decode(value.as_str().unwrap()).unwrap()).unwrap();
    let number = |value: &Value| u32::try_from(value.as_integer().unwrap()).unwrap();
    let to: SocketAddr = user["to"].as_str().unwrap().parse().unwrap();
    let listen = relay["listen"].as_array().unwrap();
    let mut world = World::new()
        .with_destination(Destination {
            to,
            next_hop: Some(NextHop {
                mac: [2, 0, 0, 0, 0, 3],
                mtu: 1500,
            }),
        })
        .with_user(User {
            slot: number(&user["slot"]),
            salt: number(&user["salt"]),
            key: hex(&user["key"]),
            to,
            rate: 10_000,
            burst: 1_000,
            expires_ns: None,
        });
    world.mac = [2, 0, 0, 0, 0, 1];
    world.relay_id = number(&relay["relay_id"]);
    world.header_key = Some(hex(&relay["header_key"]));
    world.listeners = listen.iter().map(|at| at.as_str().unwrap().parse().unwrap()).collect();
    world.egress = world.listeners.iter().map(SocketAddr::ip).collect();
    world
}

fn backends(world: &World) -> Vec<Box<dyn Backend>> {
    let mut backends: Vec<Box<dyn Backend>> = vec![
        Box::new(HostBackend::new(world).unwrap()),
        Box::new(OracleBackend::new(world).unwrap()),
    ];
    if kernel::missing_capabilities().is_empty() {
        backends.push(Box::new(KernelBackend::new(world).unwrap()));
    }
    if veth::missing_capabilities().is_empty() {
        backends.push(Box::new(VethBackend::new(world).unwrap()));
    }
    backends
}

fn replay(name: &str, backend: &mut dyn Backend, outputs: &mut Outputs) -> Result<Summary, ReplayError> {
    let world = world(name);
    let selector = Selector::new(&world, world.mac);
    replay::replay(&capture(name), &selector, None, backend, &Options::default(), outputs)
}

/// The packets of a capture, in numbers: all, and those that the relay sent.
fn counted(name: &str) -> (u64, u64) {
    let packets: Vec<Packet> = Capture::open(capture(name)).unwrap().map(Result::unwrap).collect();
    let from_relay = packets.iter().filter(|packet| packet.data[6..12] == [2, 0, 0, 0, 0, 1]);
    (packets.len() as u64, from_relay.count() as u64)
}

#[rstest]
fn what_the_relay_sent_then_it_sends_now(#[values("dns", "iperf3", "quic", "wireguard")] name: &str) {
    let (all, from_relay) = counted(name);
    for mut backend in backends(&world(name)) {
        let mut outputs = Outputs::default();
        let summary = replay(name, backend.as_mut(), &mut outputs).unwrap_or_else(|error| panic!("{error:#}"));
        outputs
            .finish()
            .unwrap_or_else(|error| panic!("{}: {error}", backend.name()));
        assert_eq!(outputs.matched(), from_relay, "{}", backend.name());
        assert_eq!(summary.by_reason()["relayed"], all - from_relay, "{}", backend.name());
    }
}

#[test]
fn an_output_that_differs_is_told_with_the_place() {
    let mut world = world("dns");
    // The next hop's MAC address is the first thing in a frame.
    world.destinations[0].next_hop = Some(NextHop {
        mac: [2, 0, 0, 0, 0, 4],
        mtu: 1500,
    });
    let mut host = HostBackend::new(&world).unwrap();
    let error = replay("dns", &mut host, &mut Outputs::default())
        .unwrap_err()
        .to_string();
    assert!(error.contains("and now sends instead, from byte 5 on"), "{error}");
}

#[test]
fn an_output_that_is_missing_is_told() {
    let mut world = world("dns");
    world.users.clear();
    let mut host = HostBackend::new(&world).unwrap();
    let mut outputs = Outputs::default();
    replay("dns", &mut host, &mut outputs).unwrap();
    let error = outputs.finish().unwrap_err();
    assert!(matches!(error, OutputsError::Missing { count: 14, .. }), "{error}");
}

#[test]
fn a_capture_without_outputs_proves_nothing() {
    let error = Outputs::default().finish().unwrap_err();
    assert!(matches!(error, OutputsError::Nothing), "{error}");
}
