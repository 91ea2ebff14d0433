//! The least HTTP client: one GET, whole.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use crate::namespace::Namespace;

const PATIENCE: Duration = Duration::from_secs(10);

/// Status code and body of `GET path` from inside a namespace; `None` if nobody answers there.
#[must_use]
pub fn get(namespace: &Namespace, server: SocketAddr, path: &str) -> Option<(u16, String)> {
    let mut stream = namespace.run(|| TcpStream::connect_timeout(&server, PATIENCE)).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\r\n"
    )
    .ok()?;
    let mut response = String::new();
    stream.read_to_string(&mut response).ok()?;
    let (head, body) = response.split_once("\r\n\r\n")?;
    let status = head.split_whitespace().nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}
