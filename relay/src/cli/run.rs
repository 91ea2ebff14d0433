//! `run`: the relay itself.

use std::{process::ExitCode, sync::Arc, time::Duration};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
    task::{JoinHandle, JoinSet},
};
use tracing_subscriber::EnvFilter;

use super::{CliError, options::Options};
use crate::{
    admin::server::Socket,
    config::{Checked, Config, XdpMode},
    http,
    relay::{Relay, RelayError},
};

/// How long requests under way may take when the relay ends.
const GRACE: Duration = Duration::from_secs(2);
/// How long to wait before following the kernel again when that has failed.
const RETRY: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Signals: HUP reads the configuration again; TERM and INT end the relay, and take its program \
                        off unless xdp.persist is true. RUST_LOG says how much is logged [default: info]."
)]
pub struct Args {
    #[command(flatten)]
    pub options: Options,
}

pub async fn execute(args: Args) -> Result<ExitCode, CliError> {
    init_tracing();
    let sources = args.options.sources();
    let Checked { config, warnings } = Config::load(&sources)?;
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    // First what can be refused without having touched the kernel.
    let http = http::bind(config.http)?;
    let socket = Socket::bind(&config.admin).await?;
    let relay = Arc::new(Relay::start(sources, config.clone())?);
    tracing::info!(
        interface = config.interfaces.join(","),
        mode = relay.datapath().mode().map(XdpMode::name),
        listen = ?config.listen,
        http = %config.http,
        admin = %config.admin.display(),
        "relaying"
    );
    // Before anybody can be told that it is ready, and ends it.
    let signals = Signals::listen().map_err(CliError::other)?;
    let (stopping, stopped) = watch::channel(());
    let mut servers = JoinSet::new();
    servers.spawn(http::serve(http, relay.clone(), ended(stopped.clone())));
    servers.spawn(socket.serve(relay.clone(), ended(stopped)));
    let followers = follow(&relay);
    let served = serve(&relay, &mut servers, signals).await;
    relay.stop();
    drop(stopping);
    let finished = async { while servers.join_next().await.is_some() {} };
    if tokio::time::timeout(GRACE, finished).await.is_err() {
        tracing::warn!("requests under way were cut off");
    }
    for follower in followers {
        follower.abort();
    }
    end(&relay, &config)?;
    served.map(|()| ExitCode::SUCCESS)
}

/// Logs to standard error, as much as RUST_LOG says.
pub fn init_tracing() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .init();
}

async fn ended(mut stopped: watch::Receiver<()>) {
    // An error says that the sender is gone, which is the signal.
    while stopped.changed().await.is_ok() {}
}

/// The signals that the relay heeds, from when they are listened for.
struct Signals {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }
}

/// Serves until a signal ends it, or a server fails.
async fn serve(
    relay: &Arc<Relay>,
    servers: &mut JoinSet<std::io::Result<()>>,
    mut signals: Signals,
) -> Result<(), CliError> {
    loop {
        tokio::select! {
            _ = signals.hangup.recv() => reload(relay).await,
            _ = signals.terminate.recv() => return Ok(()),
            _ = signals.interrupt.recv() => return Ok(()),
            Some(result) = servers.join_next() => {
                return match result {
                    Ok(Err(error)) => Err(CliError::other(format!("a server ended: {error}"))),
                    Err(error) => Err(CliError::other(format!("a server ended: {error}"))),
                    Ok(Ok(())) => Err(CliError::other("a server ended")),
                };
            }
        }
    }
}

async fn reload(relay: &Arc<Relay>) {
    let relay = relay.clone();
    match tokio::task::spawn_blocking(move || relay.reload()).await {
        Ok(Ok(reloaded)) => {
            for warning in reloaded.warnings {
                tracing::warn!("{warning}");
            }
        }
        Ok(Err(error)) => tracing::error!("the configuration stays as it was: {error}"),
        Err(error) => tracing::error!("the configuration stays as it was: {error}"),
    }
}

/// What goes on beside the servers: next hops, the wall clock, and sampled drops.
fn follow(relay: &Arc<Relay>) -> Vec<JoinHandle<()>> {
    let next_hops = relay.clone();
    let wall_clock = relay.clone();
    let drops = relay.clone();
    vec![
        tokio::spawn(async move {
            while let Err(error) = next_hops.datapath().follow_next_hops().await {
                tracing::error!("{error}; trying again");
                tokio::time::sleep(RETRY).await;
            }
        }),
        tokio::spawn(async move {
            while let Err(error) = wall_clock.datapath().follow_wall_clock().await {
                tracing::error!("{error}; trying again");
                tokio::time::sleep(RETRY).await;
            }
        }),
        tokio::spawn(log_drops(drops)),
    ]
}

async fn log_drops(relay: Arc<Relay>) {
    let Some(mut drops) = relay.datapath().drops() else {
        return;
    };
    loop {
        match drops.next().await {
            Ok(drop) => tracing::debug!(target: "drops", "{drop}"),
            Err(error) => {
                tracing::warn!(%error, "sampled drops cannot be read any more");
                return;
            }
        }
    }
}

fn end(relay: &Relay, config: &Config) -> Result<(), CliError> {
    if config.xdp_persist {
        tracing::info!(
            pins = %config.xdp_pin_dir.display(),
            "ended; the program goes on forwarding (xdp.persist), until `lumenlink-relay detach`"
        );
        return Ok(());
    }
    relay.datapath().detach().map_err(RelayError::from)?;
    tracing::info!("ended; nothing is relayed any more");
    Ok(())
}
