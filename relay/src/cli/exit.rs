//! Exit codes, and which error has which.

use std::{fmt::Write as _, io, process::ExitCode};

use crate::{
    admin::{api::ProblemKind, client::ClientError, server::SocketError},
    client::ProxyError,
    config::ConfigError,
    datapath::{
        DatapathError, attach::AttachError, interface::InterfaceError, program::LoadError, userspace::UserspaceError,
    },
    grant::GrantError,
    http::HttpError,
    relay::RelayError,
    users::Refusal,
};

macro_rules! exits {
    ($($(#[doc = $doc:literal])+ $variant:ident = $code:literal,)+) => {
        /// How a command ended.
        #[derive(Clone, Copy, Debug, Eq, PartialEq)]
        #[repr(u8)]
        pub enum Exit {
            $($(#[doc = $doc])+ $variant = $code,)+
        }

        const EXITS: &[(u8, &str)] = &[$(($code, concat!($($doc),+)),)+];
    };
}

exits! {
    /// Done.
    Success = 0,
    /// It did not work, for a reason that none of the others is; of `ping`, no answer.
    Failure = 1,
    /// The command line makes no sense.
    Usage = 2,
    /// The configuration has faults.
    Configuration = 3,
    /// A capability is missing: run as root, or grant it.
    Permission = 4,
    /// The interface is missing, is no Ethernet, has no addresses, or has another XDP program.
    Interface = 5,
    /// The driver cannot run XDP natively, which xdp.mode asks for.
    NotNative = 6,
    /// The pin directory is stale, foreign or on no bpffs.
    Pins = 7,
    /// An address, port or socket is in use, or cannot be listened on.
    InUse = 8,
    /// The store is corrupt, from a newer version, in use, or cannot be written.
    Store = 9,
    /// The user table is full.
    Full = 10,
    /// The relay refused what was asked for: no such user, or bad input.
    Refused = 11,
    /// No relay answers on the admin socket.
    NoRelay = 12,
    /// The kernel refused the XDP program or its maps.
    Kernel = 13,
}

impl Exit {
    /// The list, for `--help` and the manual.
    pub fn help() -> String {
        let mut text = "Exit codes:\n".to_owned();
        for (code, meaning) in EXITS {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "  {code:>2} {meaning}");
        }
        text
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command did not do what it was told.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Starting the relay.
    #[error(transparent)]
    Relay(#[from] RelayError),
    /// The admin socket's server.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The HTTP server.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// The admin socket's client.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Pins.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// A file named on the command line.
    #[error("{action} {path}: {source}")]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// A grant.
    #[error(transparent)]
    Grant(#[from] GrantError),
    /// A local address of `connect`.
    #[error(transparent)]
    Listen(ProxyError),
    /// What was asked for cannot be.
    #[error("{0}")]
    Refused(String),
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

impl CliError {
    /// An error that has no class of its own.
    #[expect(clippy::needless_pass_by_value, reason = "for `map_err`")]
    pub fn other(error: impl ToString) -> Self {
        Self::Other(error.to_string())
    }

    /// The exit code of this error's class.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Config(ConfigError::NoAddresses(_)) => Exit::Interface,
            Self::Config(_) => Exit::Configuration,
            Self::Relay(error) => of_relay(error),
            Self::Socket(_) | Self::Http(_) => Exit::InUse,
            Self::Client(ClientError::Refused(problem)) => of_problem(problem.kind),
            Self::Client(ClientError::Denied { .. }) => Exit::Permission,
            Self::Client(ClientError::NoRelay { .. }) => Exit::NoRelay,
            Self::Attach(error) => of_attach(error),
            Self::Listen(_) => Exit::InUse,
            Self::Grant(_) | Self::Refused(_) => Exit::Refused,
            Self::Client(_) | Self::File { .. } | Self::Other(_) => Exit::Failure,
        }
    }
}

fn of_relay(error: &RelayError) -> Exit {
    match error {
        RelayError::Store(_) | RelayError::Refused(Refusal::Store(_)) => Exit::Store,
        RelayError::Config(_) | RelayError::Fixed { .. } => Exit::Configuration,
        RelayError::Refused(Refusal::Full { .. } | Refusal::NoEgressPort { .. }) => Exit::Full,
        RelayError::Refused(_) => Exit::Refused,
        RelayError::Datapath(error) => of_datapath(error),
    }
}

fn of_datapath(error: &DatapathError) -> Exit {
    match error {
        DatapathError::Load(LoadError::Capabilities { .. } | LoadError::Permission) => Exit::Permission,
        DatapathError::Interface(InterfaceError::Missing { .. } | InterfaceError::NotEthernet { .. }) => {
            Exit::Interface
        }
        DatapathError::Attach(error) => of_attach(error),
        DatapathError::Userspace(UserspaceError::Listen { source, .. })
            if source.kind() == io::ErrorKind::PermissionDenied =>
        {
            Exit::Permission
        }
        DatapathError::Userspace(UserspaceError::Listen { .. }) => Exit::InUse,
        DatapathError::Userspace(UserspaceError::Files { .. }) => Exit::Configuration,
        DatapathError::Load(_) | DatapathError::Maps(_) | DatapathError::Clock(_) => Exit::Kernel,
        _ => Exit::Failure,
    }
}

fn of_attach(error: &AttachError) -> Exit {
    match error {
        AttachError::Busy { .. } => Exit::Interface,
        AttachError::NotNative { .. } => Exit::NotNative,
        AttachError::PinsInUse { .. } => Exit::InUse,
        AttachError::NotBpffs { .. } | AttachError::StalePins { .. } | AttachError::ForeignPins { .. } => Exit::Pins,
        AttachError::Pins { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => Exit::Permission,
        AttachError::Pins { .. } => Exit::Pins,
        AttachError::Failed { .. } => Exit::Failure,
    }
}

fn of_problem(kind: ProblemKind) -> Exit {
    match kind {
        ProblemKind::Invalid | ProblemKind::NotFound => Exit::Refused,
        ProblemKind::Full => Exit::Full,
        ProblemKind::Configuration => Exit::Configuration,
        ProblemKind::Store => Exit::Store,
        ProblemKind::Internal => Exit::Failure,
    }
}
