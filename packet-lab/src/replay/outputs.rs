//! What the relay of a capture sent, against what the lab's sends for the same input.

use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
};

use super::{Replayed, Watcher};
use crate::{
    capture::{LinkType, Packet},
    inspect::{self, Outline},
    observe::Verdict,
};

const ETHERNET_HEADER_BYTES: usize = 14;

/// Why what was sent is not what had been sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OutputsError {
    /// A frame differs.
    #[error("the relay sent, as the capture has it,\n{frame}\nand now sends it with other fields:\n{differences}")]
    Differs {
        /// The captured frame, for people.
        frame: String,
        /// What differs, a line each.
        differences: String,
    },
    /// Frames that the capture has were not sent.
    #[error(
        "{count} frames that the relay had sent, as the capture has it, were not sent now; the first of them\n{first}"
    )]
    Missing {
        /// How many.
        count: usize,
        /// The first, for people.
        first: String,
    },
    /// Frames were sent that the capture does not have.
    #[error("{count} frames were sent now that the capture does not have; the first of them\n{first}")]
    New {
        /// How many.
        count: usize,
        /// The first, for people.
        first: String,
    },
    /// The capture shows nothing that the relay sent.
    #[error(
        "the capture has no packet that the relay sent: take it where both of the relay's sides are seen, or do not \
         expect its outputs"
    )]
    Nothing,
}

/// Compares, in order and byte for byte, the UDP packets that a capture's relay sent with those that a backend sends.
/// Where a capture came without Ethernet headers, these are not compared. Takes memory for what is not matched yet.
#[derive(Clone, Debug, Default)]
pub struct Outputs {
    /// By addresses of source and destination: packets between the same two come in the same order.
    flows: BTreeMap<(IpAddr, IpAddr), Flow>,
    matched: u64,
}

#[derive(Clone, Debug, Default)]
struct Flow {
    captured: VecDeque<Packet>,
    sent: VecDeque<Vec<u8>>,
}

impl Outputs {
    /// How many packets were the same.
    #[must_use]
    pub fn matched(&self) -> u64 {
        self.matched
    }

    /// A frame of the capture that its relay, or the relay's host, had sent.
    ///
    /// # Errors
    /// If something else was sent now.
    pub fn captured(&mut self, packet: &Packet) -> Result<(), OutputsError> {
        let Some(flow) = flow(&packet.data) else { return Ok(()) };
        self.flows.entry(flow).or_default().captured.push_back(packet.clone());
        self.settle(flow)
    }

    /// A frame that was sent now.
    ///
    /// # Errors
    /// If it is not what the capture has.
    pub fn sent(&mut self, frame: &[u8]) -> Result<(), OutputsError> {
        let Some(flow) = flow(frame) else { return Ok(()) };
        self.flows.entry(flow).or_default().sent.push_back(frame.to_vec());
        self.settle(flow)
    }

    /// That was all.
    ///
    /// # Errors
    /// If something is left of either, or there was nothing to compare.
    pub fn finish(&self) -> Result<(), OutputsError> {
        let captured: Vec<&Packet> = self.flows.values().flat_map(|flow| &flow.captured).collect();
        if let Some(first) = captured.first() {
            return Err(OutputsError::Missing {
                count: captured.len(),
                first: outline(&first.data),
            });
        }
        if self.matched == 0 {
            return Err(OutputsError::Nothing);
        }
        let sent: Vec<&Vec<u8>> = self.flows.values().flat_map(|flow| &flow.sent).collect();
        match sent.first() {
            None => Ok(()),
            Some(first) => Err(OutputsError::New {
                count: sent.len(),
                first: outline(first),
            }),
        }
    }

    fn settle(&mut self, flow: (IpAddr, IpAddr)) -> Result<(), OutputsError> {
        let flow = self.flows.entry(flow).or_default();
        while !flow.captured.is_empty() && !flow.sent.is_empty() {
            let (Some(captured), Some(sent)) = (flow.captured.pop_front(), flow.sent.pop_front()) else {
                break;
            };
            compare(&captured, &sent)?;
            self.matched += 1;
        }
        Ok(())
    }
}

impl Watcher for Outputs {
    fn replayed(&mut self, packet: &Replayed<'_>) -> anyhow::Result<()> {
        if packet.processed.verdict == Verdict::Tx {
            self.sent(&packet.processed.frame)?;
        }
        Ok(())
    }

    fn relay_sent(&mut self, packet: &Packet) -> anyhow::Result<()> {
        Ok(self.captured(packet)?)
    }
}

/// The addresses of a UDP packet; `None` for what the relay does not relay.
fn flow(frame: &[u8]) -> Option<(IpAddr, IpAddr)> {
    let outline = Outline::of(frame);
    outline.addresses.filter(|_| outline.is_udp())
}

fn compare(captured: &Packet, sent: &[u8]) -> Result<(), OutputsError> {
    let from = match captured.link {
        LinkType::Ethernet => 0,
        _ => ETHERNET_HEADER_BYTES,
    };
    let (was, is) = (&captured.data[from..], &sent[from..]);
    // A capture may have cut the packet.
    let whole = captured.original_length as usize == captured.data.len();
    let same = if whole { was == is } else { is.starts_with(was) };
    if same {
        return Ok(());
    }
    let differences = inspect::compare(&captured.data, sent);
    let side = |side: &Option<String>| side.clone().unwrap_or_else(|| "none".to_owned());
    let lines: Vec<String> = differences
        .iter()
        .map(|found| format!("  {}: {}, not {}", found.what, side(&found.second), side(&found.first)))
        .collect();
    Err(OutputsError::Differs {
        frame: outline(&captured.data),
        differences: lines.join("\n"),
    })
}

/// A frame's headers, a line each.
fn outline(frame: &[u8]) -> String {
    let lines: Vec<String> = inspect::headers(frame).iter().map(|line| format!("  {line}")).collect();
    lines.join("\n")
}
