//! A client of the relay that shares no code with it: written from the protocol's document and a grant's JSON.

use std::{
    hash::Hasher as _,
    io,
    net::{SocketAddr, UdpSocket},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use serde_json::Value;
use siphasher::{sip::SipHasher24, sip128};

use crate::net::{Family, Host};

/// Bytes of a token.
pub const TOKEN_BYTES: usize = 24;
/// How long an answer may take. Machines that test are slow; an answer that does come does not take this long.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// What a client needs.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Grant {
    /// The user.
    pub user: u64,
    /// The listener.
    pub relay: SocketAddr,
    /// The relay's id.
    pub relay_id: u32,
    /// The user's slot.
    pub slot: u32,
    /// The random part of the handle.
    pub salt: u32,
    /// The key of the tag.
    pub key: [u8; 16],
    /// The key of header protection, if it is on.
    pub header_key: Option<[u8; 16]>,
}

impl Grant {
    /// Reads the JSON object.
    ///
    /// # Panics
    /// If it is not a grant, with what is wrong.
    #[must_use]
    #[track_caller]
    pub fn from_json(json: &Value) -> Self {
        let number = |field: &str| {
            let value = json[field].as_u64();
            value.unwrap_or_else(|| panic!("a grant without the number `{field}`: {json}"))
        };
        let narrow = |field: &str| u32::try_from(number(field)).unwrap_or_else(|_| panic!("`{field}` in {json}"));
        let text = |field: &str| {
            let value = json[field].as_str();
            value.unwrap_or_else(|| panic!("a grant without the text `{field}`: {json}"))
        };
        let key = |field: &str| {
            let mut key = [0; 16];
            let decoded = hex::decode_to_slice(text(field), &mut key);
            decoded.unwrap_or_else(|error| panic!("the key `{field}` in {json}: {error}"));
            key
        };
        assert!(json.get("expires_at").is_some(), "a grant without `expires_at`: {json}");
        Self {
            user: number("user"),
            relay: text("relay")
                .parse()
                .unwrap_or_else(|error| panic!("`relay` in {json}: {error}")),
            relay_id: narrow("relay_id"),
            slot: narrow("slot"),
            salt: narrow("salt"),
            key: key("key"),
            header_key: match json.get("header_key") {
                Some(Value::Null) => None,
                Some(_) => Some(key("header_key")),
                None => panic!("a grant without `header_key`: {json}"),
            },
        }
    }

    /// The token of packet number `pn` with this many bytes of payload.
    #[must_use]
    pub fn token(&self, pn: u64, payload_bytes: usize) -> [u8; TOKEN_BYTES] {
        let mut token = [0; TOKEN_BYTES];
        token[0..4].copy_from_slice(&self.slot.to_be_bytes());
        token[4..8].copy_from_slice(&self.salt.to_be_bytes());
        token[8..16].copy_from_slice(&pn.to_be_bytes());
        let mut hasher = SipHasher24::new_with_key(&self.key);
        hasher.write(&token[..16]);
        // Version 1, direction 0.
        hasher.write(&[1, 0]);
        let payload_bytes = u16::try_from(payload_bytes).expect("a payload fits a packet");
        hasher.write(&payload_bytes.to_be_bytes());
        hasher.write(&self.relay_id.to_be_bytes());
        let tag = hasher.finish().to_le_bytes();
        token[16..].copy_from_slice(&tag);
        if let Some(header_key) = &self.header_key {
            let mask = sip128::SipHasher24::new_with_key(header_key).hash(&tag).as_bytes();
            for (byte, mask) in token.iter_mut().zip(mask) {
                *byte ^= mask;
            }
        }
        token
    }

    /// A whole UDP payload: the token, then `payload`.
    #[must_use]
    pub fn seal(&self, pn: u64, payload: &[u8]) -> Vec<u8> {
        [&self.token(pn, payload.len()), payload].concat()
    }
}

/// A client: a grant, a socket, and the number of its next packet.
#[derive(Debug)]
pub struct Client {
    /// The grant.
    pub grant: Grant,
    /// The socket, inside the client's namespace.
    pub socket: UdpSocket,
    /// Number of the next packet.
    pub pn: u64,
}

impl Client {
    /// On any port of the host's address in the family of the grant's listener.
    #[must_use]
    #[track_caller]
    pub fn new(host: &Host, grant: &Grant) -> Self {
        let family = match grant.relay {
            SocketAddr::V4(_) => Family::V4,
            SocketAddr::V6(_) => Family::V6,
        };
        Self::with_socket(grant, host.udp(family, 0))
    }

    /// With a socket of the caller's.
    #[must_use]
    pub fn with_socket(grant: &Grant, socket: UdpSocket) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is past 1970");
        Self {
            grant: grant.clone(),
            socket,
            pn: u64::try_from(now.as_micros()).expect("it is before the year 586,000"),
        }
    }

    /// Seals the next packet, without sending it.
    pub fn seal(&mut self, payload: &[u8]) -> Vec<u8> {
        let packet = self.grant.seal(self.pn, payload);
        self.pn += 1;
        packet
    }

    /// Sends the next packet; returns what was sent, as an observer on the way could have kept it.
    #[track_caller]
    pub fn send(&mut self, payload: &[u8]) -> Vec<u8> {
        let packet = self.seal(payload);
        self.send_raw(&packet);
        packet
    }

    /// Sends these bytes to the listener.
    #[track_caller]
    pub fn send_raw(&self, packet: &[u8]) {
        let sent = self.socket.send_to(packet, self.grant.relay);
        let sent = sent.unwrap_or_else(|error| panic!("sending {} bytes: {error}", packet.len()));
        assert_eq!(sent, packet.len());
    }

    /// Waits up to `patience` for a packet from the listener.
    ///
    /// # Panics
    /// If a packet comes from anybody else.
    #[must_use]
    #[track_caller]
    pub fn receive_within(&self, patience: Duration) -> Option<Vec<u8>> {
        let (packet, from) = receive(&self.socket, patience)?;
        assert_eq!(from, self.grant.relay, "the answer comes from somewhere else");
        Some(packet)
    }

    /// Waits for a packet from the listener.
    ///
    /// # Panics
    /// If none comes.
    #[must_use]
    #[track_caller]
    pub fn receive(&self) -> Vec<u8> {
        self.receive_within(PATIENCE)
            .unwrap_or_else(|| panic!("no answer from {} in {PATIENCE:?}", self.grant.relay))
    }

    /// Sends `payload` and expects it back from an echo server. Nothing may be on the way from before.
    #[track_caller]
    pub fn exchange(&mut self, payload: &[u8]) {
        self.send(payload);
        let answer = self.receive();
        assert!(
            answer == payload,
            "sent {} bytes, and {} others came back",
            payload.len(),
            answer.len()
        );
    }
}

/// Waits up to `patience` for a packet to a socket, and says who sent it.
#[must_use]
#[track_caller]
pub fn receive(socket: &UdpSocket, patience: Duration) -> Option<(Vec<u8>, SocketAddr)> {
    let end = Instant::now() + patience;
    let mut buffer = vec![0; 65536];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        socket
            .set_read_timeout(Some(left.max(Duration::from_micros(1))))
            .expect("a time-out above zero is valid");
        match socket.recv_from(&mut buffer) {
            Ok((length, from)) => {
                buffer.truncate(length);
                return Some((buffer, from));
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => return None,
            // A process that was stopped and goes on finds its waiting interrupted (signal(7)).
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => panic!("receiving: {error}"),
        }
    }
}

/// Whether the host that a connected socket has sent to says, in time, that nobody is there.
///
/// # Panics
/// If somebody is.
#[must_use]
#[track_caller]
pub fn is_refused(socket: &UdpSocket, patience: Duration) -> bool {
    let end = Instant::now() + patience;
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        socket
            .set_read_timeout(Some(left.max(Duration::from_micros(1))))
            .expect("a time-out above zero is valid");
        match socket.recv(&mut [0; 64]) {
            Ok(length) => panic!("an answer of {length} bytes"),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return true,
            Err(_) => {}
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_those_of_the_protocols_test_vectors() {
        let key = std::array::from_fn(|i| i as u8);
        let header_key: [u8; 16] = std::array::from_fn(|i| 0xf0 + i as u8);
        let vectors = [
            (
                (0, 0, 0, 0, 0),
                "00000000000000000000000000000000e45a5b387f442465",
                "4d28b447b96668bb3f1afcf0c383903ee45a5b387f442465",
            ),
            (
                (1, 0xdead_beef, 1, 5, 7),
                "00000001deadbeef0000000000000001f0af76d80cf137f6",
                "e8a24627893ac2e836420b0f14fcba3ff0af76d80cf137f6",
            ),
            (
                (99_999, 0x0102_0304, 0x0006_4000_0000_0001, 1400, 0xffff_ffff),
                "0001869f010203040006400000000001ffc27433786c7a5a",
                "90479fc10b0ae06cfa3ea2326bdcc17cffc27433786c7a5a",
            ),
        ];
        for ((slot, salt, pn, payload_bytes, relay_id), plain, protected) in vectors {
            let grant = Grant {
                user: 1,
                relay: "192.0.2.1:4500".parse().unwrap(),
                relay_id,
                slot,
                salt,
                key,
                header_key: None,
            };
            assert_eq!(hex::encode(grant.token(pn, payload_bytes)), plain);
            let grant = Grant {
                header_key: Some(header_key),
                ..grant
            };
            assert_eq!(hex::encode(grant.token(pn, payload_bytes)), protected);
        }
    }
}
