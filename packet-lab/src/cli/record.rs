//! `record`: a scenario from a capture.

use std::{collections::BTreeMap, path::PathBuf};

use packet_lab::{
    replay::record::{Order, RecordError, record},
    simulate::number,
};

use super::{Ended, Exit, line, progress::Progress, relay::RelayArgs};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Kept is what the capture shows being sent to the relay's addresses by UDP, and parts of it; nothing \
                  else on the host's wire gets into the scenario. Without --grants the tokens stay as they are and are \
                  sealed anew at each replay, each client being a user; with --grants they are sealed anew now, with \
                  keys of the scenario's own, keeping packet numbers and wrong tags: no key of a relay gets into it. Of a \
                  capture that is cut short or corrupt, what comes before is recorded, and it is said.\n\n\
                  Without --expect, what the comments say is expected if each packet has one of `packet-lab replay \
                  --write-inputs`. There is no snapshot yet, so the scenario fails until one was reviewed.\n\n\
                  From a report to a failing test:\n  \
                  packet-lab record incident.pcap --name incidents/lost-burst --expect relayed=990,bad_token=10\n  \
                  packet-lab run scenarios/incidents/lost-burst\n\n\
                  More examples:\n  \
                  packet-lab record incident.pcap --name incidents/quic --config relay.toml --grants grants.ndjson\n  \
                  packet-lab record incident.pcap --name incidents/dns --listen 192.0.2.1:4500 --to 198.51.100.53:53"
)]
pub struct Args {
    /// A pcap or pcapng file
    file: PathBuf,
    /// The scenario's name: a folder of that name is made
    #[arg(long, value_name = "AREA/CASE")]
    name: String,
    /// The folder of all scenarios
    #[arg(long, value_name = "DIR", default_value = "scenarios")]
    scenarios: PathBuf,
    /// How many packets should become what
    #[arg(long, value_name = "REASON=N,…", value_parser = expectation, value_delimiter = ',')]
    expect: Vec<(String, u64)>,
    /// Keep so many packets
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    #[command(flatten)]
    relay: RelayArgs,
}

fn expectation(text: &str) -> Result<(String, u64), String> {
    let wrong = || "write a reason and a number, like relayed=990".to_owned();
    let (reason, packets) = text.split_once('=').ok_or_else(wrong)?;
    let packets = packets.trim().parse().map_err(|_| wrong())?;
    Ok((reason.trim().to_owned(), packets))
}

pub fn execute(args: &Args) -> Ended {
    let known = args.relay.known(true)?;
    super::relay::refuse_stdin(&args.file)?;
    let order = Order {
        file: args.file.clone(),
        scenarios: args.scenarios.clone(),
        name: args.name.clone(),
        expect: args.expect.iter().cloned().collect::<BTreeMap<_, _>>(),
        limit: args.limit,
    };
    let mut progress = Progress::new("recording");
    let recorded = record(&order, &known, &mut |bytes, of_bytes| progress.at(bytes, of_bytes, ""));
    progress.finish();
    let recorded = recorded.map_err(|error| (exit(&error), error.into()))?;
    for assumed in &recorded.assumed {
        eprintln!("note: {assumed}");
    }
    if let Some(why) = &recorded.ended_by {
        eprintln!("note: recorded up to there: {why}");
    }
    if recorded.cut > 0 {
        eprintln!(
            "note: {} packets are cut by the capture's snapshot length; the relay drops them as truncated",
            number(recorded.cut)
        );
    }
    if recorded.expect.is_empty() {
        eprintln!(
            "note: nothing is expected yet: say with --expect what should become of the packets, or edit the file"
        );
    }
    let folder = recorded.folder.display();
    line(&format!(
        "{folder}: {} of {} packets\nnext: fill in {folder}/README.md, then `packet-lab run {folder}`",
        number(recorded.kept),
        number(recorded.of),
    ));
    Ok(Exit::Pass)
}

fn exit(error: &RecordError) -> Exit {
    match error {
        RecordError::Write { .. } => Exit::Environment,
        _ => Exit::Usage,
    }
}
