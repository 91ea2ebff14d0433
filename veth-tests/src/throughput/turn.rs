//! The little of TURN (RFC 8656) that it takes to have one allocation with one channel, at a server that asks for no
//! password.

use std::{
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};

const PATIENCE: Duration = Duration::from_secs(5);

const MAGIC: u32 = 0x2112_a442;
const HEADER_BYTES: usize = 20;

const ALLOCATE: u16 = 0x0003;
const CHANNEL_BIND: u16 = 0x0009;
/// Of a message's type: what makes it the successful answer to a request.
const SUCCESS: u16 = 0x0100;

const CHANNEL_NUMBER: u16 = 0x000c;
const LIFETIME: u16 = 0x000d;
const XOR_PEER_ADDRESS: u16 = 0x0012;
const XOR_RELAYED_ADDRESS: u16 = 0x0016;
const REQUESTED_TRANSPORT: u16 = 0x0019;

/// The first of the channel numbers that there are.
const CHANNEL: u16 = 0x4000;

/// An allocation, and the socket that it belongs to.
#[derive(Debug)]
pub struct Allocation {
    socket: UdpSocket,
    /// Where the server sends from to peers.
    pub relayed: SocketAddrV4,
}

/// Asks a server for an allocation for an hour, from inside the client's namespace.
///
/// # Errors
/// If the server does not answer, or refuses.
pub fn allocate(client: SocketAddrV4, server: SocketAddrV4) -> Result<Allocation> {
    let socket = UdpSocket::bind(client)?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let udp = [17, 0, 0, 0];
    let answer = request(
        &socket,
        ALLOCATE,
        &[(REQUESTED_TRANSPORT, &udp), (LIFETIME, &3_600_u32.to_be_bytes())],
    )?;
    let relayed = attribute(&answer, XOR_RELAYED_ADDRESS).and_then(address);
    Ok(Allocation {
        relayed: relayed.context("coturn's answer has no relayed address")?,
        socket,
    })
}

impl Allocation {
    /// Binds the channel to a peer, or keeps it bound.
    ///
    /// # Errors
    /// If the server does not answer, or refuses.
    pub fn bind_channel(&self, peer: SocketAddrV4) -> Result<()> {
        let [high, low] = CHANNEL.to_be_bytes();
        let attributes: [(u16, &[u8]); 2] = [
            (CHANNEL_NUMBER, &[high, low, 0, 0]),
            (XOR_PEER_ADDRESS, &xor_address(peer)),
        ];
        request(&self.socket, CHANNEL_BIND, &attributes).map(drop)
    }
}

/// A ChannelData message.
#[must_use]
pub fn channel_data(payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).expect("a payload fits a packet");
    [&CHANNEL.to_be_bytes()[..], &length.to_be_bytes(), payload].concat()
}

/// Sends a request and returns the attributes of the answer.
fn request(socket: &UdpSocket, kind: u16, attributes: &[(u16, &[u8])]) -> Result<Vec<u8>> {
    let body: Vec<u8> = attributes
        .iter()
        .flat_map(|(kind, value)| {
            let length = u16::try_from(value.len()).expect("attributes are short");
            [&kind.to_be_bytes()[..], &length.to_be_bytes(), value].concat()
        })
        .collect();
    let length = u16::try_from(body.len()).expect("messages are short");
    let transaction = [0x42; 12];
    let message = [
        &kind.to_be_bytes()[..],
        &length.to_be_bytes(),
        &MAGIC.to_be_bytes(),
        &transaction,
        &body,
    ]
    .concat();
    // UDP may lose either.
    for _ in 0..3 {
        socket.send(&message)?;
        let mut answer = [0; 1_500];
        let Ok(bytes) = socket.recv(&mut answer) else { continue };
        ensure!(bytes >= HEADER_BYTES, "coturn answered with {bytes} bytes");
        let answered = u16::from_be_bytes([answer[0], answer[1]]);
        ensure!(answered == kind | SUCCESS, "coturn refused: {:02x?}", &answer[..bytes]);
        return Ok(answer[HEADER_BYTES..bytes].to_vec());
    }
    bail!("coturn does not answer")
}

fn attribute(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    while let Some(([a, b, c, d], rest)) = attributes.split_first_chunk() {
        let length = usize::from(u16::from_be_bytes([*c, *d]));
        let value = rest.get(..length)?;
        if u16::from_be_bytes([*a, *b]) == wanted {
            return Some(value);
        }
        attributes = rest.get(length.next_multiple_of(4)..)?;
    }
    None
}

/// An IPv4 address and port, XORed with the magic number.
fn xor_address(address: SocketAddrV4) -> [u8; 8] {
    let [a, b] = (address.port() ^ (MAGIC >> 16) as u16).to_be_bytes();
    let [c, d, e, f] = (address.ip().to_bits() ^ MAGIC).to_be_bytes();
    [0, 1, a, b, c, d, e, f]
}

fn address(value: &[u8]) -> Option<SocketAddrV4> {
    let [_, 1, a, b, c, d, e, f] = *value else { return None };
    let port = u16::from_be_bytes([a, b]) ^ (MAGIC >> 16) as u16;
    let ip = u32::from_be_bytes([c, d, e, f]) ^ MAGIC;
    Some(SocketAddrV4::new(Ipv4Addr::from_bits(ip), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 5769, 2.2.
    const XORED: [u8; 8] = [0, 1, 0xa1, 0x47, 0xe1, 0x12, 0xa6, 0x43];

    #[test]
    fn an_address_is_xored_as_in_the_test_vector() {
        let plain = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 32_853);
        assert_eq!(xor_address(plain), XORED);
        assert_eq!(address(&XORED), Some(plain));
        assert_eq!(address(&XORED[..7]), None);
    }

    #[test]
    fn an_attribute_is_found_behind_a_padded_one_and_not_in_a_message_that_is_cut() {
        let message = [
            &[0x80, 0x22, 0, 5, b'c', b'o', b't', b'u', b'r', 0, 0, 0],
            &[0, 0x16, 0, 8][..],
            &XORED,
        ]
        .concat();
        assert_eq!(attribute(&message, XOR_RELAYED_ADDRESS), Some(&XORED[..]));
        for cut in 0..message.len() {
            assert_eq!(attribute(&message[..cut], XOR_RELAYED_ADDRESS), None, "{cut}");
        }
    }

    #[test]
    fn channel_data_has_the_channel_and_the_length_before_it() {
        assert_eq!(channel_data(&[7, 8, 9]), [0x40, 0, 0, 3, 7, 8, 9]);
    }
}
