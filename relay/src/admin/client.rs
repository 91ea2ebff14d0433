//! The API's client, which the commands use.

use std::{
    io,
    path::{Path, PathBuf},
};

use http_body_util::{BodyExt as _, Full};
use hyper::{Method, Request, StatusCode, body::Bytes};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::UnixStream;

use super::api::Problem;

/// Why there is no answer, or not the wanted one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// Nobody listens.
    #[error(
        "no relay answers on {path} ({source}): is it running, with this `admin` socket? (--admin, or `admin` in \
         relay.toml)"
    )]
    NoRelay {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The socket is for its owner alone.
    #[error("the admin socket {path} is for its owner alone: run this as the user that the relay runs as, or as root")]
    Denied {
        /// The socket.
        path: PathBuf,
    },
    /// The connection failed under way.
    #[error("talking to the relay on {path}: {message}")]
    Broken {
        /// The socket.
        path: PathBuf,
        /// What happened.
        message: String,
    },
    /// The relay refused.
    #[error("{}", .0.error)]
    Refused(Problem),
}

/// A relay's admin socket.
#[derive(Clone, Debug)]
pub struct Client {
    path: PathBuf,
}

impl Client {
    /// The relay that serves this socket.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// Asks for something.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.request(Method::GET, path, Vec::new()).await
    }

    /// Sends something, as JSON.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ClientError> {
        self.request(Method::POST, path, self.json(body)?).await
    }

    /// Sends a text as it is.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn post_text<T: DeserializeOwned>(&self, path: &str, body: String) -> Result<T, ClientError> {
        self.request(Method::POST, path, body.into_bytes()).await
    }

    /// Removes something; `body` says more where the path does not say all.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn delete<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ClientError> {
        self.request(Method::DELETE, path, self.json(body)?).await
    }

    fn json(&self, body: &impl Serialize) -> Result<Vec<u8>, ClientError> {
        serde_json::to_vec(body).map_err(|error| self.broken(&error))
    }

    fn broken(&self, error: &dyn ToString) -> ClientError {
        ClientError::Broken {
            path: self.path.clone(),
            message: error.to_string(),
        }
    }

    async fn request<T: DeserializeOwned>(&self, method: Method, path: &str, body: Vec<u8>) -> Result<T, ClientError> {
        let stream = UnixStream::connect(&self.path)
            .await
            .map_err(|source| match source.kind() {
                io::ErrorKind::PermissionDenied => ClientError::Denied {
                    path: self.path.clone(),
                },
                _ => ClientError::NoRelay {
                    path: self.path.clone(),
                    source,
                },
            })?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.broken(&error))?;
        let exchange = async {
            let request = Request::builder()
                .method(method)
                .uri(path)
                .header("host", "lumenlink-relay")
                .header("content-type", "application/json")
                .body(Full::new(Bytes::from(body)))
                .map_err(|error| self.broken(&error))?;
            let response = sender
                .send_request(request)
                .await
                .map_err(|error| self.broken(&error))?;
            let status = response.status();
            let body = response
                .into_body()
                .collect()
                .await
                .map_err(|error| self.broken(&error))?;
            Ok((status, body.to_bytes()))
        };
        // The connection is driven only while the exchange needs it.
        let (status, body): (StatusCode, Bytes) = tokio::select! {
            result = exchange => result?,
            Err(error) = connection => return Err(self.broken(&error)),
        };
        if !status.is_success() {
            return Err(match serde_json::from_slice(&body) {
                Ok(problem) => ClientError::Refused(problem),
                Err(_) => self.broken(&format!("{status}: {}", String::from_utf8_lossy(&body))),
            });
        }
        serde_json::from_slice(&body).map_err(|error| self.broken(&error))
    }
}
