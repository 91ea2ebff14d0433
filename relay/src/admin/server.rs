//! The API's server.
//!
//! | method and path | body | answers |
//! |---|---|---|
//! | `GET /v1/status` | | [`Status`](super::api::Status) |
//! | `GET /v1/users` | | list of [`UserView`](super::api::UserView) |
//! | `POST /v1/users` | [`NewUser`] | [`Added`]; 201 for a new user |
//! | `POST /v1/users/import?renew=BOOL` | NDJSON of [`NewUser`] | list of grants |
//! | `GET /v1/users/{id}`, `DELETE` | | [`UserView`](super::api::UserView); nothing |
//! | `GET /v1/users/{id}/grant` | | grant |
//! | `GET /v1/blocks` | | list of [`Block`] |
//! | `POST /v1/blocks`, `DELETE` | [`Block`] | nothing |
//! | `POST /v1/blocks/import` | prefixes, one a line | how many were not blocked before |
//! | `POST /v1/reload` | | [`Reloaded`](super::api::Reloaded) |
//!
//! What fails answers with a [`Problem`] and has changed nothing.

use std::{
    fs::Permissions,
    io,
    os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Path as UrlPath, Query, State, rejection::JsonRejection},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::Serialize;
use tokio::net::{UnixListener, UnixStream};

use super::api::{Added, Block, ImportOptions, Problem, ProblemKind};
use crate::{
    datapath::DatapathError,
    relay::{Relay, RelayError},
    users::{NewUser, Refusal},
};

/// Bytes that a request may have: an import of a million users.
const BODY_BYTES: usize = 256 << 20;

/// Why the socket cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SocketError {
    /// Another process serves it.
    #[error(
        "another relay answers on the admin socket {path}: stop it, or give this one its own (`admin` in relay.toml, \
         or RELAY_ADMIN)"
    )]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// There is something else in its place.
    #[error("{path} is there and is no socket: remove it, or set another `admin` in relay.toml")]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// It cannot be made.
    #[error("making the admin socket {path}: {source} (`admin` in relay.toml, or RELAY_ADMIN)")]
    Bind {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The listening socket, for its owner alone; removed when dropped.
#[derive(Debug)]
pub struct Socket {
    listener: Option<UnixListener>,
    path: PathBuf,
}

impl Socket {
    /// Makes it, and its folder; takes the place of one that nobody answers on.
    ///
    /// # Errors
    /// See [`SocketError`].
    pub async fn bind(path: &Path) -> Result<Self, SocketError> {
        let failed = |source| SocketError::Bind {
            path: path.to_owned(),
            source,
        };
        if let Some(folder) = path.parent() {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(folder)
                .map_err(failed)?;
        }
        match std::fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => {
                return Err(SocketError::NotASocket { path: path.to_owned() });
            }
            Ok(_) if UnixStream::connect(path).await.is_ok() => {
                return Err(SocketError::InUse { path: path.to_owned() });
            }
            Ok(_) => std::fs::remove_file(path).map_err(failed)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        let listener = bind_private(path).map_err(failed)?;
        Ok(Self {
            listener: Some(listener),
            path: path.to_owned(),
        })
    }

    /// Serves the API until `stop` completes; requests under way are finished.
    ///
    /// # Errors
    /// If the socket fails.
    pub async fn serve(mut self, relay: Arc<Relay>, stop: impl Future<Output = ()> + Send + 'static) -> io::Result<()> {
        let Some(listener) = self.listener.take() else {
            return Ok(());
        };
        axum::serve(listener, router(relay)).with_graceful_shutdown(stop).await
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Somebody may have removed it already.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Binds under another name and moves it into place, so that nobody else can connect before the permissions are set.
fn bind_private(path: &Path) -> io::Result<UnixListener> {
    let fresh = path.with_extension(format!("{}.new", std::process::id()));
    let listener = UnixListener::bind(&fresh)?;
    std::fs::set_permissions(&fresh, Permissions::from_mode(0o600))?;
    std::fs::rename(&fresh, path)?;
    Ok(listener)
}

fn router(relay: Arc<Relay>) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/users", get(users).post(add_user))
        .route("/v1/users/import", post(import))
        .route("/v1/users/{id}", get(user).delete(remove_user))
        .route("/v1/users/{id}/grant", get(grant))
        .route("/v1/blocks", get(blocks).post(block).delete(unblock))
        .route("/v1/blocks/import", post(import_blocks))
        .route("/v1/reload", post(reload))
        .fallback(|| async {
            problem(
                ProblemKind::NotFound,
                "there is no such path; all begin with /v1/".to_owned(),
            )
        })
        .method_not_allowed_fallback(|| async {
            problem(ProblemKind::Invalid, "this path does not take that method".to_owned())
        })
        .layer(DefaultBodyLimit::max(BODY_BYTES))
        .with_state(relay)
}

/// Runs `work` where it may wait for the disk, and answers with what it returns.
async fn answer<T: Serialize + Send + 'static>(
    relay: Arc<Relay>,
    work: impl FnOnce(&Relay) -> Result<T, RelayError> + Send + 'static,
) -> Response {
    match tokio::task::spawn_blocking(move || work(&relay)).await {
        Ok(Ok(value)) => Json(value).into_response(),
        Ok(Err(error)) => refused(&error),
        Err(error) => problem(ProblemKind::Internal, error.to_string()),
    }
}

fn refused(error: &RelayError) -> Response {
    let kind = match error {
        RelayError::Refused(Refusal::NoUser(_) | Refusal::NotBlocked(_)) => ProblemKind::NotFound,
        RelayError::Refused(Refusal::Full { .. } | Refusal::NoEgressPort { .. }) => ProblemKind::Full,
        RelayError::Refused(Refusal::Store(_)) | RelayError::Store(_) => ProblemKind::Store,
        RelayError::Refused(_) => ProblemKind::Invalid,
        RelayError::Config(_)
        | RelayError::Fixed { .. }
        | RelayError::Datapath(DatapathError::Interface(_) | DatapathError::Attach(_)) => ProblemKind::Configuration,
        RelayError::Datapath(_) => ProblemKind::Internal,
    };
    if matches!(kind, ProblemKind::Store | ProblemKind::Internal) {
        tracing::error!(%error, "a request failed");
    }
    problem(kind, error.to_string())
}

fn problem(kind: ProblemKind, error: String) -> Response {
    let status = match kind {
        ProblemKind::Invalid => StatusCode::BAD_REQUEST,
        ProblemKind::NotFound => StatusCode::NOT_FOUND,
        ProblemKind::Full => StatusCode::CONFLICT,
        ProblemKind::Configuration => StatusCode::UNPROCESSABLE_ENTITY,
        ProblemKind::Store | ProblemKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    };
    (status, Json(Problem { kind, error })).into_response()
}

type Body<T> = Result<Json<T>, JsonRejection>;

fn bad_body(rejection: &JsonRejection) -> Response {
    problem(ProblemKind::Invalid, rejection.body_text())
}

async fn status(State(relay): State<Arc<Relay>>) -> Response {
    answer(relay, Relay::status).await
}

async fn users(State(relay): State<Arc<Relay>>) -> Response {
    answer(relay, |relay| Ok(relay.users())).await
}

async fn user(State(relay): State<Arc<Relay>>, UrlPath(id): UrlPath<String>) -> Response {
    match parse_id(&id) {
        Ok(id) => answer(relay, move |relay| relay.user(id)).await,
        Err(response) => response,
    }
}

async fn grant(State(relay): State<Arc<Relay>>, UrlPath(id): UrlPath<String>) -> Response {
    match parse_id(&id) {
        Ok(id) => answer(relay, move |relay| relay.grant(id)).await,
        Err(response) => response,
    }
}

async fn remove_user(State(relay): State<Arc<Relay>>, UrlPath(id): UrlPath<String>) -> Response {
    match parse_id(&id) {
        Ok(id) => answer(relay, move |relay| relay.remove(id)).await,
        Err(response) => response,
    }
}

#[expect(clippy::result_large_err, reason = "the error is the response itself")]
fn parse_id(id: &str) -> Result<u64, Response> {
    id.parse().map_err(|_| {
        problem(
            ProblemKind::Invalid,
            format!("`{id}` is no user id: write a number from 0 to {}", u64::MAX),
        )
    })
}

async fn add_user(State(relay): State<Arc<Relay>>, body: Body<NewUser>) -> Response {
    let new = match body {
        Ok(Json(new)) => new,
        Err(rejection) => return bad_body(&rejection),
    };
    match tokio::task::spawn_blocking(move || relay.add(&new)).await {
        Ok(Ok((grant, renewed))) => {
            let status = if renewed { StatusCode::OK } else { StatusCode::CREATED };
            (status, Json(Added { grant, renewed })).into_response()
        }
        Ok(Err(error)) => refused(&error),
        Err(error) => problem(ProblemKind::Internal, error.to_string()),
    }
}

async fn import(State(relay): State<Arc<Relay>>, Query(options): Query<ImportOptions>, body: Bytes) -> Response {
    match import_text(body) {
        Ok(text) => answer(relay, move |relay| relay.import(&text, options.renew)).await,
        Err(refusal) => refusal,
    }
}

#[expect(clippy::result_large_err, reason = "it is sent as it is")]
fn import_text(body: Bytes) -> Result<String, Response> {
    String::from_utf8(body.into()).map_err(|_| {
        problem(
            ProblemKind::Invalid,
            "the import is not UTF-8; nothing was imported".to_owned(),
        )
    })
}

async fn blocks(State(relay): State<Arc<Relay>>) -> Response {
    answer(relay, |relay| {
        let prefixes = relay.blocked().into_iter();
        Ok(prefixes.map(|prefix| Block { prefix }).collect::<Vec<_>>())
    })
    .await
}

async fn block(State(relay): State<Arc<Relay>>, body: Body<Block>) -> Response {
    match body {
        Ok(Json(Block { prefix })) => answer(relay, move |relay| relay.block(prefix)).await,
        Err(rejection) => bad_body(&rejection),
    }
}

async fn import_blocks(State(relay): State<Arc<Relay>>, body: Bytes) -> Response {
    match import_text(body) {
        Ok(text) => answer(relay, move |relay| relay.block_all(&text)).await,
        Err(refusal) => refusal,
    }
}

async fn unblock(State(relay): State<Arc<Relay>>, body: Body<Block>) -> Response {
    match body {
        Ok(Json(Block { prefix })) => answer(relay, move |relay| relay.unblock(prefix)).await,
        Err(rejection) => bad_body(&rejection),
    }
}

async fn reload(State(relay): State<Arc<Relay>>) -> Response {
    answer(relay, Relay::reload).await
}
