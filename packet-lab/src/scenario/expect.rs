//! Whether what was seen is what a step expects.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
};

use super::{
    file::{Expect, Out, SumName},
    names::ReasonName,
    outcome::Difference,
    relay,
    run::Seen,
    value::Mac,
};
use crate::{
    Observation, Verdict,
    backend::UserState,
    inspect::{self, Dissection, Sum, UdpFrameView, mac},
    oracle::vlan,
};

/// Everything that is not as expected; `subject` is the user that the step is about, afterwards.
pub(super) fn unmet(expect: &Expect, seen: &Seen, subject: Option<UserState>) -> Vec<Difference> {
    let mut unmet = Unmet(Vec::new());
    let several = seen.observations.len() > 1;
    for (nth, observed) in seen.observations.iter().enumerate() {
        let of = if several {
            format!("packet {nth}: ")
        } else {
            String::new()
        };
        unmet.packet(&of, expect, observed);
    }
    if seen.observations.is_empty() {
        unmet.0.push(Difference {
            field: "packets".to_owned(),
            expected: "at least one".to_owned(),
            actual: "none".to_owned(),
        });
    }
    if let Some(reasons) = &expect.reasons {
        unmet.reasons(reasons, seen);
    }
    if expect.outputs.is_some() {
        unmet.captured(seen);
    }
    if let Some(client) = expect.client {
        let actual = subject
            .as_ref()
            .and_then(|user| user.client)
            .map(|client| client.address);
        unmet.compare("client", Some(client), actual);
    }
    if let Some(newest) = expect.newest {
        unmet.compare("newest", Some(newest.0), subject.map(|user| user.newest));
    }
    unmet.0
}

struct Unmet(Vec<Difference>);

/// Frames by the MAC address that they go to.
type ByReceiver = BTreeMap<[u8; 6], Vec<Vec<u8>>>;

fn by_receiver<'a>(frames: impl Iterator<Item = &'a Vec<u8>>) -> ByReceiver {
    let mut receivers = ByReceiver::new();
    for frame in frames {
        let to = frame.first_chunk().copied().unwrap_or_default();
        receivers.entry(to).or_default().push(frame.clone());
    }
    receivers
}

/// One packet in many that is not as expected says enough.
const MOST: usize = 12;

impl Unmet {
    fn compare<T: Display + PartialEq>(&mut self, field: impl Display, expected: Option<T>, actual: Option<T>) {
        let Some(expected) = expected else { return };
        if actual.as_ref() != Some(&expected) && self.0.len() < MOST {
            self.0.push(Difference {
                field: field.to_string(),
                expected: expected.to_string(),
                actual: actual.map_or_else(|| "none".to_owned(), |actual| actual.to_string()),
            });
        }
    }

    fn packet(&mut self, of: &str, expect: &Expect, observed: &Observation) {
        let counted = observed.reason();
        let verdict = expect.verdict.map(|verdict| verdict.0);
        self.compare(format!("{of}verdict"), verdict, Some(observed.verdict));
        let reason = counted.map(|(_, reason)| reason.name());
        self.compare(
            format!("{of}reason"),
            expect.reason.map(|reason| reason.0.name()),
            reason,
        );
        let direction = counted.map(|(direction, _)| direction.name());
        self.compare(
            format!("{of}direction"),
            expect.direction.map(|way| way.0.name()),
            direction,
        );
        let unchanged = observed.output == observed.input;
        self.compare(format!("{of}unchanged"), expect.unchanged, Some(unchanged));
        if expect.state.is_some() {
            let slots: Vec<String> = observed.users.iter().map(|(slot, _, _)| slot.to_string()).collect();
            let changed = if slots.is_empty() {
                "unchanged".to_owned()
            } else {
                format!("changed in slot {}", slots.join(", "))
            };
            self.compare(format!("{of}state"), Some("unchanged".to_owned()), Some(changed));
        }
        if let Some(out) = &expect.out {
            self.compare(format!("{of}out.interface"), out.interface, observed.egress);
            self.out(of, out, &observed.output);
        }
    }

    fn out(&mut self, of: &str, out: &Out, frame: &[u8]) {
        let (tags, untagged) = vlan::split(frame);
        let view = UdpFrameView::read(&untagged);
        let field = |name: &str| format!("{of}out.{name}");
        self.compare(field("bytes"), out.bytes, Some(frame.len()));
        let expected_tags = out.vlan.as_ref().map(|vlan| relay::tags(vlan));
        self.compare(field("vlan"), expected_tags, Some(tags));
        let hex = |bytes: &[u8]| hex::encode(bytes);
        let whole = out.frame.as_ref().map(|frame| hex(&frame.to_vec()));
        self.compare(field("frame"), whole, Some(hex(frame)));
        self.compare(field("mtu"), out.mtu.map(|mtu| mtu.to_string()), told_mtu(frame));
        let view = match view {
            Ok(view) => Some(view),
            Err(_)
                if *out
                    == (Out {
                        mtu: out.mtu,
                        bytes: out.bytes,
                        frame: out.frame.clone(),
                        interface: out.interface,
                        vlan: out.vlan.clone(),
                        ..Out::default()
                    }) =>
            {
                return;
            }
            Err(unreadable) => {
                self.compare(field("packet"), Some("UDP".to_owned()), Some(unreadable.to_string()));
                return;
            }
        };
        let view = view.as_ref();
        self.compare(field("from"), out.from, view.map(|view| view.from));
        self.compare(field("to"), out.to, view.map(|view| view.to));
        self.compare(field("from_mac"), out.from_mac, view.map(|view| Mac(view.from_mac)));
        self.compare(field("to_mac"), out.to_mac, view.map(|view| Mac(view.to_mac)));
        self.compare(field("ttl"), out.ttl, view.map(|view| view.hop_limit));
        self.compare(field("tos"), out.tos, view.map(|view| view.tos));
        let payload = out.payload.as_ref().map(|payload| hex(&payload.to_vec()));
        self.compare(field("payload"), payload, view.map(|view| hex(&view.payload)));
        let checksum = view.map(|view| sum_name(view.checksum));
        self.compare(field("checksum"), out.checksum.map(name), checksum.map(name));
    }

    /// Compares what came out with what the relay sent when the capture was taken. The order of packets to different
    /// receivers is that of different interfaces, and means nothing.
    fn captured(&mut self, seen: &Seen) {
        let sent = seen
            .observations
            .iter()
            .filter(|observed| matches!(observed.verdict, Verdict::Tx | Verdict::Redirect));
        let sent = by_receiver(sent.map(|observed| &observed.output));
        let captured = by_receiver(seen.captured_outputs.iter());
        // Nothing would be compared with nothing.
        if captured.is_empty() {
            let expected = "packets that the relay sent, in the capture".to_owned();
            self.compare("outputs", Some(expected), None);
        }
        for receiver in sent.keys().chain(captured.keys()).collect::<BTreeSet<_>>() {
            let of = |packets: &ByReceiver| packets.get(receiver).cloned().unwrap_or_default();
            let (sent, captured) = (of(&sent), of(&captured));
            let to = mac(*receiver);
            self.compare(format!("packets to {to}"), Some(captured.len()), Some(sent.len()));
            for (nth, (expected, actual)) in captured.iter().zip(&sent).enumerate() {
                for difference in inspect::compare(expected, actual) {
                    let field = format!("packet {nth} to {to}: {}", difference.what);
                    let value = |side: Option<String>| Some(side.unwrap_or_else(|| "none".to_owned()));
                    self.compare(field, value(difference.first), value(difference.second));
                }
            }
        }
    }

    fn reasons(&mut self, expected: &BTreeMap<ReasonName, u64>, seen: &Seen) {
        let mut actual: BTreeMap<String, u64> = BTreeMap::new();
        for observed in &seen.observations {
            let reason = match observed.reason() {
                Some((_, reason)) => reason.name().to_owned(),
                None if observed.counters.is_empty() => "nothing counted".to_owned(),
                None => "several counted".to_owned(),
            };
            *actual.entry(reason).or_default() += 1;
        }
        for (reason, packets) in expected {
            let found = actual.remove(reason.0.name()).unwrap_or(0);
            self.compare(format!("reasons.{reason}"), Some(*packets), Some(found));
        }
        for (reason, packets) in actual {
            self.compare(format!("reasons.{reason}"), Some(0), Some(packets));
        }
    }
}

/// The MTU that an ICMP message tells, if its checksum is right.
fn told_mtu(frame: &[u8]) -> Option<String> {
    let dissection = Dissection::of(frame);
    let icmp = dissection.layer("icmp").or_else(|| dissection.layer("icmp6"))?;
    let is_right = icmp.get("checksum")?.ends_with("right");
    icmp.get("mtu").filter(|_| is_right).map(str::to_owned)
}

fn sum_name(sum: Sum) -> SumName {
    match sum {
        Sum::Right(_) => SumName::Right,
        Sum::None => SumName::Zero,
        Sum::Wrong { .. } => SumName::Wrong,
    }
}

fn name(sum: SumName) -> &'static str {
    match sum {
        SumName::Right => "right",
        SumName::Zero => "zero",
        SumName::Wrong => "wrong",
    }
}
