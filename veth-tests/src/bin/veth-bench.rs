//! Measures what relaying costs: the relay, the lab's reference and what people would run instead. `ci/bench` runs it.

use std::{
    fs,
    path::PathBuf,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use anyhow::{Context as _, Result};
use clap::{Parser, value_parser};
use packet_lab::{live::MOST_FRAMES, report};
use tokio::signal::unix::{SignalKind, signal};
use veth_tests::{
    namespace,
    throughput::{Options, SYSTEMS, run},
};

/// What relaying a packet costs on one core, by relay.
#[derive(Debug, Parser)]
#[command(name = "veth-bench")]
struct Arguments {
    /// What to measure, of those that there are
    #[arg(long, value_name = "NAME", value_delimiter = ',', default_values = SYSTEMS, value_parser = SYSTEMS)]
    systems: Vec<String>,
    /// Bytes of payload, 54 to 1,400
    #[arg(long, value_name = "BYTES", value_delimiter = ',', default_values = ["64", "512", "1400"], value_parser = value_parser!(u16).range(54..=1_400))]
    sizes: Vec<u16>,
    /// Packets of each measurement
    #[arg(long, value_name = "N", default_value_t = MOST_FRAMES, value_parser = value_parser!(u32).range(1..=i64::from(MOST_FRAMES)))]
    packets: u32,
    /// Interleaved rounds; the figures are their medians
    #[arg(long, value_name = "N", default_value_t = 12, value_parser = value_parser!(u32).range(1..=1_000))]
    rounds: u32,
    /// The CPU that everything happens on
    #[arg(long, value_name = "N", default_value_t = 1)]
    cpu: usize,
    /// Another CPU, to relay on while the first does nothing but send: the table of two cores
    #[arg(long, value_name = "N", default_value_t = 0, conflicts_with = "one_core")]
    overload_cpu: usize,
    /// Leave out the table of two cores
    #[arg(long)]
    one_core: bool,
    /// Write the figures as JSON
    #[arg(long, value_name = "FILE.json")]
    json: Option<PathBuf>,
    /// Write the plot
    #[arg(long, value_name = "FILE.svg")]
    svg: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if !namespace::can_run("the bench") {
        return ExitCode::from(3);
    }
    match execute(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn execute(arguments: &Arguments) -> Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    {
        let _inside = runtime.enter();
        for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
            let (mut received, stop) = (signal(kind)?, stop.clone());
            runtime.spawn(async move {
                received.recv().await;
                stop.store(true, Ordering::Relaxed);
            });
        }
    }
    let options = Options {
        systems: arguments.systems.clone(),
        payload_bytes: arguments.sizes.iter().copied().map(usize::from).collect(),
        packets: arguments.packets,
        rounds: arguments.rounds as usize,
        cpu: arguments.cpu,
        overload_cpu: (!arguments.one_core).then_some(arguments.overload_cpu),
        realtime: true,
    };
    let began = Instant::now();
    let report = run(&options, &stop, &mut |what| {
        eprintln!("{:4} s  {what}", began.elapsed().as_secs());
    })?;
    println!("{}", report.text());
    if let Some(path) = &arguments.json {
        let json = serde_json::to_string_pretty(&report)? + "\n";
        fs::write(path, json).with_context(|| format!("writing {}", path.display()))?;
    }
    if let Some(path) = &arguments.svg {
        report::write(path, &report::throughput(&report))?;
    }
    Ok(())
}
