//! `/health`, `/ready` and `/metrics`.

use std::{
    io,
    net::{SocketAddr, TcpListener as StdListener},
    sync::Arc,
};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};
use prometheus::{
    Encoder as _, GaugeVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder,
    proto::{Bucket, Histogram, Metric, MetricFamily, MetricType},
};
use relay_ebpf::{
    layout::Latency,
    verdict::{Direction, Reason},
};
use tokio::net::TcpListener;

use crate::{
    config::XdpMode,
    relay::{Relay, RelayError},
};

const PREFIX: &str = "lumenlink_relay";

/// The address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error(
    "serving health and metrics on {address}: {source} (`http` in relay.toml, or RELAY_HTTP){}",
    if source.kind() == io::ErrorKind::AddrInUse { ": another process has that port" } else { "" }
)]
pub struct HttpError {
    address: SocketAddr,
    source: io::Error,
}

/// Listens; nothing is answered until [`serve`].
///
/// # Errors
/// If the address is in use, is not this host's, or needs a privilege.
pub fn bind(address: SocketAddr) -> Result<TcpListener, HttpError> {
    let listen = || {
        let listener = StdListener::bind(address)?;
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener)
    };
    listen().map_err(|source| HttpError { address, source })
}

/// Answers until `stop` completes.
///
/// # Errors
/// If the listener fails.
pub async fn serve(
    listener: TcpListener,
    relay: Arc<Relay>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let router = Router::new()
        .route("/", get(|| async { "LumenLink relay: /health, /ready, /metrics\n" }))
        .route("/health", get(|| async { "ok\n" }))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .with_state(relay);
    axum::serve(listener, router).with_graceful_shutdown(stop).await
}

async fn ready(State(relay): State<Arc<Relay>>) -> Response {
    match relay.not_ready() {
        None => "ready\n".into_response(),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {reason}\n")).into_response(),
    }
}

async fn metrics(State(relay): State<Arc<Relay>>) -> Response {
    let text = tokio::task::spawn_blocking(move || render(&relay)).await;
    match text {
        Ok(Ok(text)) => ([(CONTENT_TYPE, TextEncoder::new().format_type().to_owned())], text).into_response(),
        Ok(Err(error)) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

/// Why the metrics cannot be told.
#[derive(Debug, thiserror::Error)]
enum MetricsError {
    #[error(transparent)]
    Relay(#[from] RelayError),
    #[error(transparent)]
    Prometheus(#[from] prometheus::Error),
}

/// What counts lives in the maps, so each scrape makes its metrics anew.
fn render(relay: &Relay) -> Result<Vec<u8>, MetricsError> {
    let registry = Registry::new_custom(Some(PREFIX.to_owned()), None)?;
    register_packets(&registry, relay)?;
    register_gauges(&registry, relay)?;
    let mut families = registry.gather();
    if relay.config().latency_sample > 0 {
        families.push(latency(&relay.datapath().latency().map_err(RelayError::from)?));
    }
    let mut text = Vec::new();
    TextEncoder::new().encode(&families, &mut text)?;
    Ok(text)
}

fn register_packets(registry: &Registry, relay: &Relay) -> Result<(), MetricsError> {
    let labels = ["direction", "reason"];
    let packets = IntCounterVec::new(Opts::new("packets_total", "Packets by direction and reason."), &labels)?;
    let bytes = IntCounterVec::new(
        Opts::new("bytes_total", "Bytes of frames by direction and reason."),
        &labels,
    )?;
    let unrelated = IntCounter::new(
        "unrelated_packets_total",
        "Packets that were neither for a listener nor for an egress port, left to the host.",
    )?;
    for counter in relay.datapath().counters().map_err(RelayError::from)? {
        if counter.reason == Reason::Unrelated {
            unrelated.inc_by(counter.packets);
            continue;
        }
        let values = [counter.direction.name(), counter.reason.name()];
        packets.with_label_values(&values).inc_by(counter.packets);
        bytes.with_label_values(&values).inc_by(counter.bytes);
    }
    let answers = IntCounterVec::new(
        Opts::new(
            "icmp_messages_total",
            "ICMP messages to the senders of packets, by direction of the packets: the relay's own, and those passed on.",
        ),
        &["direction"],
    )?;
    for direction in Direction::ALL {
        let messages = relay.datapath().answers(direction).map_err(RelayError::from)?;
        answers.with_label_values(&[direction.name()]).inc_by(messages);
    }
    registry.register(Box::new(answers))?;
    registry.register(Box::new(packets))?;
    registry.register(Box::new(bytes))?;
    Ok(registry.register(Box::new(unrelated))?)
}

fn register_gauges(registry: &Registry, relay: &Relay) -> Result<(), MetricsError> {
    let (destinations, unresolved) = relay.datapath().destinations();
    let gauges = [
        ("users", "Users that there are.", relay.user_count() as i64),
        (
            "max_users",
            "Users that there can be.",
            i64::from(relay.config().max_users),
        ),
        ("destinations", "Destinations of all users.", destinations as i64),
        (
            "unresolved_destinations",
            "Destinations whose next hop is not known.",
            unresolved as i64,
        ),
        (
            "ready",
            "1 when the relay serves, else 0.",
            i64::from(relay.not_ready().is_none()),
        ),
    ];
    for (name, help, value) in gauges {
        let gauge = IntGauge::new(name, help)?;
        gauge.set(value);
        registry.register(Box::new(gauge))?;
    }
    let build = GaugeVec::new(
        Opts::new("build_info", "1; the labels say what runs."),
        &["version", "interface", "mode"],
    )?;
    let mode = relay.datapath().mode().map_or("none", XdpMode::name);
    build
        .with_label_values(&[
            env!("CARGO_PKG_VERSION"),
            relay.config().interfaces.join(",").as_str(),
            mode,
        ])
        .set(1.0);
    Ok(registry.register(Box::new(build))?)
}

/// The program's histogram, whose bucket `i` holds times below 2^i ns.
fn latency(latency: &Latency) -> MetricFamily {
    let mut count = 0;
    let last = latency.buckets.len() - 1;
    let buckets = latency.buckets.iter().enumerate().filter_map(|(i, samples)| {
        count += samples;
        let mut bucket = Bucket::default();
        bucket.set_cumulative_count(count);
        bucket.set_upper_bound((1_u64 << i) as f64 / 1e9);
        // The last bucket has no upper bound; the encoder adds it.
        (i < last).then_some(bucket)
    });
    let mut histogram = Histogram::default();
    histogram.set_bucket(buckets.collect());
    histogram.set_sample_count(count);
    histogram.set_sample_sum(latency.sum_ns as f64 / 1e9);
    let mut metric = Metric::default();
    metric.set_histogram(histogram);
    let mut family = MetricFamily::default();
    family.set_name(format!("{PREFIX}_latency_seconds"));
    family.set_help(
        "Time that the XDP program, or in userspace mode the decision, takes for a packet, sampled.".to_owned(),
    );
    family.set_field_type(MetricType::HISTOGRAM);
    family.set_metric(vec![metric]);
    family
}
