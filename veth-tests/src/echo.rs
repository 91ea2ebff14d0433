//! A destination: a UDP server that sends back what it gets, and remembers it.

use std::{
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use crate::{
    client::{PATIENCE, receive},
    namespace::Namespace,
    net::{Family, Host},
    wait,
};

/// A packet that the server got.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Received {
    /// Who sent it, as the server sees it.
    pub from: SocketAddr,
    /// What was in it.
    pub payload: Vec<u8>,
}

/// A running server, stopped when dropped.
#[derive(Debug)]
pub struct EchoServer {
    /// Where it listens.
    pub address: SocketAddr,
    socket: UdpSocket,
    received: Arc<Mutex<Vec<Received>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl EchoServer {
    /// On this port of the host's address in the family, 0 for any.
    #[must_use]
    #[track_caller]
    pub fn new(host: &Host, family: Family, port: u16) -> Self {
        Self::inside(host, SocketAddr::new(host.address(family), port))
    }

    /// On this address, inside the namespace.
    #[must_use]
    #[track_caller]
    pub fn inside(namespace: &Namespace, address: SocketAddr) -> Self {
        let socket = namespace.run(|| UdpSocket::bind(address));
        let socket = socket.unwrap_or_else(|error| panic!("a server on {address}: {error}"));
        let address = socket.local_addr().expect("a bound socket has an address");
        let received = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let (received, stop) = (received.clone(), stop.clone());
            let socket = socket.try_clone().expect("a socket can be shared");
            move || {
                while !stop.load(Ordering::Relaxed) {
                    if let Some((payload, from)) = receive(&socket, Duration::from_millis(20)) {
                        // Before the client hears of it, so that it may look it up.
                        received.lock().unwrap().push(Received {
                            from,
                            payload: payload.clone(),
                        });
                        // The client may be gone; that is for its test to notice.
                        let _ = socket.send_to(&payload, from);
                    }
                }
            }
        });
        Self {
            address,
            socket,
            received,
            stop,
            thread: Some(thread),
        }
    }

    /// Sends something that nobody asked for.
    #[track_caller]
    pub fn send(&self, to: SocketAddr, payload: &[u8]) {
        let sent = self.socket.send_to(payload, to);
        assert_eq!(sent.ok(), Some(payload.len()), "sending to {to}");
    }

    /// Everything that it got so far.
    #[must_use]
    pub fn received(&self) -> Vec<Received> {
        self.received.lock().unwrap().clone()
    }

    /// How many packets it got so far.
    #[must_use]
    pub fn count(&self) -> usize {
        self.received.lock().unwrap().len()
    }

    /// Waits until it got this many packets.
    #[track_caller]
    pub fn wait_for(&self, count: usize) {
        wait::until(&format!("{count} packets at the server"), PATIENCE, || {
            (self.count() >= count).then_some(())
        });
    }
}

impl Drop for EchoServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
