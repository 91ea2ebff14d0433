//! Frames that no client sends. After them the relay runs, its host answers, and its users are served.

use veth_tests::{
    client::{Client, TOKEN_BYTES},
    echo::EchoServer,
    namespace::can_run,
    net::{Family, Host, Trio},
    raw::{self, FrameSocket},
    relay::Relay,
};

use crate::exchange::wait_until_resolved;

/// Longest frame that is tried in all its truncations.
const LONGEST: usize = 120;

#[test]
fn frames_cut_off_anywhere_and_noise_of_every_length_harm_nobody() {
    if !can_run("sending frames") {
        return;
    }
    let net = Trio::new();
    let mut relay = Relay::started(&net.relay);
    let servers = Family::ALL.map(|family| EchoServer::new(&net.server, family, 0));
    let mut clients: Vec<_> = (0..2)
        .map(|id| Client::new(&net.client, &relay.add_user(id, servers[id as usize].address, &[])))
        .collect();
    clients.iter_mut().for_each(wait_until_resolved);
    let at_servers = servers.each_ref().map(EchoServer::count);
    let before = relay.packets("uplink", "relayed");

    let socket = FrameSocket::new(&net.client, "eth0");
    for (client, family) in clients.iter_mut().zip(Family::ALL) {
        let token = client.seal(&[0x55; 60]);
        let whole = frame(&net.client, &net.relay, family, &token);
        for length in 14..=LONGEST {
            // Cut off, whatever its headers say of its length.
            socket.send(&whole[..length]);
        }
        // Any byte of it another, and so that no change makes a packet of the user's: the end of the tag as well.
        for changed in 0..token_end(family) - 1 {
            let mut frame = whole.clone();
            frame[token_end(family) - 1] ^= 1;
            frame[changed] ^= 0xff;
            socket.send(&frame);
        }
        for length in 14..=1514 {
            let noise = noise(length as u64, length, &whole);
            socket.send(&noise);
        }
    }

    assert!(relay.is_running(), "the relay ended");
    // Forgotten, the host's MAC addresses have to be asked for again.
    net.client.ip("neighbour flush dev eth0");
    for family in Family::ALL {
        raw::ping(&net.client, net.relay.address(family));
    }
    // None of them was relayed: every one lacked a valid token, or the end of its packet.
    assert_eq!(relay.packets("uplink", "relayed"), before);
    assert_eq!(servers.each_ref().map(EchoServer::count), at_servers);
    for client in &mut clients {
        client.pn += 10;
        client.exchange(b"as before");
    }
}

/// Where the token of such a frame ends.
fn token_end(family: Family) -> usize {
    14 + family.header_bytes() + TOKEN_BYTES
}

/// A frame from one host to the other's listener, with everything right but the UDP checksum, which is not there.
fn frame(from: &Host, to: &Host, family: Family, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    frame.extend(to.mac());
    frame.extend(from.mac());
    let udp_bytes = u16::try_from(8 + payload.len()).unwrap();
    match (from.address(family), to.address(family)) {
        (std::net::IpAddr::V4(from), std::net::IpAddr::V4(to)) => {
            frame.extend([0x08, 0x00]);
            let mut header = [0; 20];
            header[0] = 0x45;
            header[2..4].copy_from_slice(&(20 + udp_bytes).to_be_bytes());
            header[8..10].copy_from_slice(&[64, 17]);
            header[12..16].copy_from_slice(&from.octets());
            header[16..20].copy_from_slice(&to.octets());
            let sum: u32 = header
                .chunks(2)
                .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
                .sum();
            let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            frame.extend(header);
        }
        (std::net::IpAddr::V6(from), std::net::IpAddr::V6(to)) => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend(udp_bytes.to_be_bytes());
            frame.extend([17, 64]);
            frame.extend(from.octets());
            frame.extend(to.octets());
        }
        _ => unreachable!("both addresses are of one family"),
    }
    frame.extend(40_000_u16.to_be_bytes());
    frame.extend(4500_u16.to_be_bytes());
    frame.extend(udp_bytes.to_be_bytes());
    frame.extend([0, 0]);
    frame.extend(payload);
    frame
}

/// `length` bytes, the same for the same seed: sometimes all noise, sometimes after some of the headers of `like`.
fn noise(seed: u64, length: usize, like: &[u8]) -> Vec<u8> {
    let keep = [0, 12, 14, 34, 42, 54, 62][seed as usize % 7].min(length);
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let noise = std::iter::repeat_with(|| {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    });
    like[..keep].iter().copied().chain(noise).take(length).collect()
}
