//! The outcomes of scenarios, as the page of a run shows them.

use std::time::Duration;

use super::run::{Problem, Run, Scenario, Status, Step};
use crate::scenario::{
    Kept, Outcome,
    outcome::{Failure, PacketOutcome, StepOutcome},
};

impl Run {
    /// The page's data, from outcomes.
    #[must_use]
    pub fn of(outcomes: &[Outcome], took: Duration) -> Self {
        Self {
            scenarios: outcomes.iter().map(scenario).collect(),
            took,
        }
    }
}

fn scenario(outcome: &Outcome) -> Scenario {
    let status = if !outcome.passed() {
        Status::Failed
    } else if outcome.skipped() {
        Status::Skipped
    } else {
        Status::Passed
    };
    let backends = outcome.backends.iter().map(|backend| {
        let status = if backend.skipped.is_some() {
            Status::Skipped
        } else {
            status
        };
        (backend.backend.name().to_owned(), status, backend.skipped.clone())
    });
    let mut steps: Vec<Step> = outcome.steps.iter().flat_map(step).collect();
    let mut problems = snapshot(outcome);
    for failure in &outcome.failures {
        let found = problem(failure);
        match steps.iter_mut().find(|step| Some(step.number) == failure.step) {
            Some(step) => step.problems.extend(found),
            None => problems.extend(found),
        }
    }
    Scenario {
        path: outcome.id.clone(),
        name: outcome.name.clone(),
        tags: outcome.tags.clone(),
        status,
        backends: backends.collect(),
        problems,
        steps,
    }
}

fn snapshot(outcome: &Outcome) -> Vec<Problem> {
    let problem = match (&outcome.kept, &outcome.snapshot) {
        (Kept::Differs { expected }, Some(actual)) => Problem {
            what: "the snapshot differs".to_owned(),
            texts: Some([
                ("kept".to_owned(), expected.trim().to_owned()),
                ("now".to_owned(), actual.trim().to_owned()),
            ]),
            frames: None,
        },
        (Kept::Missing, _) => Problem {
            what: "there is no snapshot yet".to_owned(),
            ..Problem::default()
        },
        _ => return Vec::new(),
    };
    vec![problem]
}

/// A step of the page for each packet that is listed, the first with all that the step changed.
fn step(outcome: &StepOutcome) -> Vec<Step> {
    let mut changes: Vec<String> = outcome.remarks.clone();
    for user in &outcome.users {
        let whose = user
            .user
            .map_or_else(|| format!("slot {}", user.slot), |id| format!("user {id}"));
        for (field, before, after) in &user.fields {
            changes.push(format!("{whose} {field}: {before} → {after}"));
        }
    }
    for counted in &outcome.counters {
        let (counter, packets, bytes) = (&counted.counter, counted.packets, counted.bytes);
        changes.push(format!("counted {counter}: {packets} packets, {bytes} bytes"));
    }
    let base = Step {
        number: outcome.number,
        at_ns: outcome.at_ns,
        action: outcome.heading.clone(),
        note: outcome.note.clone(),
        ..Step::default()
    };
    if outcome.packets.is_empty() {
        let totals = outcome.totals.iter().map(|total| {
            let reason = total.reason.as_deref().unwrap_or("nothing counted");
            format!("{} × {} {reason}", total.packets, total.verdict)
        });
        let totals: Vec<String> = totals.collect();
        return vec![Step {
            observed: (!totals.is_empty()).then(|| totals.join(", ")),
            changes,
            ..base
        }];
    }
    let packets = outcome.packets.iter().enumerate();
    packets
        .map(|(nth, packet)| Step {
            observed: Some(observed(packet)),
            frames: Some(frames(packet)),
            changes: if nth == 0 {
                std::mem::take(&mut changes)
            } else {
                Vec::new()
            },
            ..base.clone()
        })
        .collect()
}

fn observed(packet: &PacketOutcome) -> String {
    let reason = packet.reason.as_deref().unwrap_or_default();
    format!("{} {reason}", packet.verdict).trim_end().to_owned()
}

fn frames(packet: &PacketOutcome) -> (Vec<u8>, Vec<u8>) {
    let bytes = |text: &str| hex::decode(text).unwrap_or_default();
    let output = packet.output.as_ref().unwrap_or(&packet.input);
    (bytes(&packet.input.hex), bytes(&output.hex))
}

fn problem(failure: &Failure) -> Vec<Problem> {
    let side = |of: fn(&crate::scenario::outcome::Difference) -> &String| {
        let lines = failure
            .differences
            .iter()
            .map(|difference| format!("{}: {}", difference.field, of(difference)));
        lines.collect::<Vec<_>>().join("\n")
    };
    let texts = (!failure.differences.is_empty()).then(|| {
        [
            ("expected".to_owned(), side(|difference| &difference.expected)),
            ("actual".to_owned(), side(|difference| &difference.actual)),
        ]
    });
    let mut what = failure.message.clone();
    if let Some(details) = &failure.details {
        what += &format!("\n{}", details.trim_end());
    }
    vec![Problem {
        what,
        texts,
        frames: None,
    }]
}
