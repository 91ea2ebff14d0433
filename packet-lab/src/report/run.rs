//! The page of a run of scenarios.

use std::time::Duration;

use maud::{Markup, html};
use similar::{ChangeTag, TextDiff};

use super::{
    packet,
    page::{Page, Tone, badge},
};
use crate::{
    scenario::outcome::{Counted, Difference, Failure, Kept, Outcome, PacketOutcome, StepOutcome, Total, UserChange},
    simulate::number,
};

/// Most steps of a scenario that are shown, besides those with a failure.
const SHOWN_STEPS: usize = 200;

/// How something ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Status {
    Passed,
    Failed,
    Skipped,
}

impl Status {
    fn of(outcome: &Outcome) -> Self {
        if !outcome.passed() {
            Self::Failed
        } else if outcome.skipped() {
            Self::Skipped
        } else {
            Self::Passed
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
        }
    }

    const fn tone(self) -> Tone {
        match self {
            Self::Passed => Tone::Pass,
            Self::Failed => Tone::Fail,
            Self::Skipped => Tone::Note,
        }
    }
}

/// The page of a run that took so long.
#[must_use]
pub fn run(outcomes: &[Outcome], took: Duration) -> String {
    let count = |status| outcomes.iter().filter(|outcome| Status::of(outcome) == status).count();
    let [passed, failed, skipped] = [Status::Passed, Status::Failed, Status::Skipped].map(count);
    let all = outcomes.len();
    let verdict = match (failed, passed) {
        (0, 0) => (Tone::Note, "nothing was run".to_owned()),
        (0, _) if skipped > 0 => (Tone::Pass, format!("{passed} passed, {skipped} skipped")),
        (0, 1) => (Tone::Pass, "passed".to_owned()),
        (0, _) => (Tone::Pass, format!("all {passed} passed")),
        (_, 0) if all == 1 => (Tone::Fail, "failed".to_owned()),
        _ => (Tone::Fail, format!("{failed} of {all} failed")),
    };
    let packets = outcomes
        .iter()
        .flat_map(|outcome| &outcome.steps)
        .flat_map(|step| &step.totals);
    let title = match outcomes {
        [one] => one.name.clone(),
        many => format!("{} scenarios", number(many.len() as u64)),
    };
    let page = Page {
        kind: "run",
        title: &title,
        verdict,
        facts: vec![
            ("Passed", number(passed as u64)),
            ("Failed", number(failed as u64)),
            ("Skipped", number(skipped as u64)),
            ("Packets", number(packets.map(|total| total.packets).sum())),
            ("Backends", backends(outcomes)),
            ("Took", format!("{:.1} s", took.as_secs_f64())),
        ],
        content: html! {
            (failures(outcomes))
            section {
                h2 { "Scenarios" }
                @if all > 1 { (tools()) }
                @for (area, outcomes) in areas(outcomes) {
                    .area {
                        @if !area.is_empty() { h3 { (area) " " span.soft { (outcomes.len()) } } }
                        @for (nth, outcome) in outcomes { (one(outcome, nth, all == 1)) }
                    }
                }
            }
        },
    };
    page.render()
}

/// Every backend that ran anything.
fn backends(outcomes: &[Outcome]) -> String {
    let mut names: Vec<&str> = Vec::new();
    for backend in outcomes.iter().flat_map(|outcome| &outcome.backends) {
        let name = backend.backend.name();
        if backend.skipped.is_none() && !names.contains(&name) {
            names.push(name);
        }
    }
    if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(", ")
    }
}

/// The outcomes with their numbers on the page, by the first part of their ids, in order.
fn areas(outcomes: &[Outcome]) -> Vec<(&str, Vec<(usize, &Outcome)>)> {
    let mut areas: Vec<(&str, Vec<(usize, &Outcome)>)> = Vec::new();
    for (nth, outcome) in outcomes.iter().enumerate() {
        let area = outcome.id.rsplit_once('/').map_or("", |(area, _)| area);
        match areas.iter_mut().find(|(known, _)| *known == area) {
            Some((_, outcomes)) => outcomes.push((nth, outcome)),
            None => areas.push((area, vec![(nth, outcome)])),
        }
    }
    areas
}

fn failures(outcomes: &[Outcome]) -> Markup {
    let failed = outcomes.iter().enumerate();
    let failed: Vec<_> = failed.filter(|(_, outcome)| !outcome.passed()).collect();
    if failed.is_empty() || outcomes.len() == 1 {
        return html! {};
    }
    html! {
        section {
            h2 { "What failed" }
            .card {
                ul.failures {
                    @for (nth, outcome) in failed {
                        li {
                            a href=(format!("#s{nth}")) { (outcome.id) } ": " (outcome.name)
                            div.soft { (in_short(outcome)) }
                        }
                    }
                }
            }
        }
    }
}

/// What is wrong, in a line.
fn in_short(outcome: &Outcome) -> &str {
    match (&outcome.failures[..], &outcome.kept) {
        ([first, ..], _) => first.message.lines().next().unwrap_or_default(),
        ([], Kept::Missing) => "there is no snapshot to compare with",
        ([], _) => "the snapshot is another",
    }
}

/// For those with scripts; others see no controls that do nothing.
fn tools() -> Markup {
    html! {
        #tools.tools hidden {
            input #search type="search" placeholder="Search names, paths, tags, reasons" aria-label="Search scenarios";
            label { input #only-failed type="checkbox"; "Only failed" }
            button #open-all type="button" { "Open all" }
            button #close-all type="button" { "Close all" }
            span #shown .soft role="status" {}
        }
    }
}

fn one(outcome: &Outcome, nth: usize, open: bool) -> Markup {
    let status = Status::of(outcome);
    let of_all = outcome.failures.iter().filter(|failure| failure.step.is_none());
    html! {
        details.item.fail[status == Status::Failed] id=(format!("s{nth}")) open[open] data-words=(words(outcome)) {
            summary {
                (badge(status.tone(), status.name()))
                span.name { (outcome.name) }
                span.right.mono { (outcome.id) }
            }
            .inside {
                (conditions(outcome))
                @for failure in of_all { (wrong(failure)) }
                // The snapshot of what went wrong says less than what went wrong.
                @if outcome.failures.is_empty() { (kept(outcome)) (steps(outcome)) }
                @else { (steps(outcome)) (kept(outcome)) }
            }
        }
    }
}

/// What the search finds a scenario by.
fn words(outcome: &Outcome) -> String {
    let mut words = vec![outcome.id.as_str(), &outcome.name, Status::of(outcome).name()];
    words.extend(outcome.tags.iter().map(String::as_str));
    let totals = outcome.steps.iter().flat_map(|step| &step.totals);
    for total in totals {
        for word in [Some(total.verdict.as_str()), total.reason.as_deref()]
            .into_iter()
            .flatten()
        {
            if !words.contains(&word) {
                words.push(word);
            }
        }
    }
    words.join(" ")
}

fn conditions(outcome: &Outcome) -> Markup {
    let status = |skipped: bool| if skipped { Status::Skipped } else { Status::Passed };
    html! {
        p.chips {
            @for backend in &outcome.backends {
                @let name = backend.backend.name();
                @match status(backend.skipped.is_some()) {
                    Status::Skipped => (badge(Tone::Note, &format!("{name} skipped"))),
                    _ => span.chip { (name) },
                }
            }
            @for tag in &outcome.tags { span.chip.tag { "#" (tag) } }
        }
        @for backend in &outcome.backends {
            @if let Some(why) = &backend.skipped { p.soft { (backend.backend.name()) ": " (why) } }
        }
        p.soft { code { (outcome.path) } }
    }
}

/// The snapshots, if they are not the same.
fn kept(outcome: &Outcome) -> Markup {
    let taken = outcome.snapshot.as_deref().unwrap_or_default();
    html! {
        @match &outcome.kept {
            Kept::Differs { expected } => {
                .card.problem {
                    p { (badge(Tone::Fail, "wrong")) " The snapshot is another." }
                    (compared(("kept", expected), ("now", taken)))
                }
            },
            Kept::Missing => {
                .card.problem {
                    p {
                        (badge(Tone::Fail, "wrong")) " There is no snapshot to compare with: look at what it does, then "
                        "accept it with " code { "packet-lab run --update" } "."
                    }
                }
            },
            Kept::Same | Kept::Written | Kept::NotCompared => {},
        }
    }
}

fn steps(outcome: &Outcome) -> Markup {
    let failures = |number| {
        outcome
            .failures
            .iter()
            .filter(move |failure| failure.step == Some(number))
    };
    let is_shown = |step: &&StepOutcome| step.number < SHOWN_STEPS || failures(step.number).next().is_some();
    let shown: Vec<&StepOutcome> = outcome.steps.iter().filter(is_shown).collect();
    let left_out = outcome.steps.len() - shown.len();
    // A backend may have failed before the step was done.
    let undone = outcome.failures.iter().filter(|failure| {
        failure
            .step
            .is_some_and(|number| outcome.steps.iter().all(|step| step.number != number))
    });
    html! {
        @for step in shown { (step_of(step, &failures(step.number).collect::<Vec<_>>())) }
        @if left_out > 0 { p.soft { (number(left_out as u64)) " more steps are as they should be." } }
        @for failure in undone { (wrong(failure)) }
    }
}

fn step_of(step: &StepOutcome, failures: &[&Failure]) -> Markup {
    html! {
        details.step open[!failures.is_empty()] {
            summary {
                span.at.mono { (step.number) " · " (time(step.at_ns)) }
                code { (step.heading) }
                @if let Some(observed) = observed(step) { strong { (observed) } }
                @if !failures.is_empty() { (badge(Tone::Fail, "not as expected")) }
                @if let Some(note) = &step.note { span.soft { (note) } }
            }
            @for failure in failures { (wrong(failure)) }
            @for remark in &step.remarks { p.soft { (remark) } }
            @match &step.packets[..] {
                [one] => (packet_of(one)),
                many => @for (nth, packet) in many.iter().enumerate() {
                    details.step {
                        summary {
                            span.at.mono { "packet " (nth + 1) }
                            strong { (treatment(&packet.verdict, packet.reason.as_deref())) }
                        }
                        (packet_of(packet))
                    }
                },
            }
            @if step.packets.is_empty() && !step.totals.is_empty() { (totals(step)) }
            (changes(step))
        }
    }
}

/// What became of a step's packets, in a few words.
fn observed(step: &StepOutcome) -> Option<String> {
    match &step.totals[..] {
        [] => None,
        [one] if one.packets == 1 => Some(treatment(&one.verdict, one.reason.as_deref())),
        many => {
            let each = many.iter().map(|total| {
                format!(
                    "{} {}",
                    number(total.packets),
                    treatment(&total.verdict, total.reason.as_deref())
                )
            });
            Some(each.collect::<Vec<_>>().join(", "))
        }
    }
}

fn treatment(verdict: &str, reason: Option<&str>) -> String {
    reason.map_or_else(|| verdict.to_owned(), |reason| format!("{verdict} {reason}"))
}

fn packet_of(packet: &PacketOutcome) -> Markup {
    let bytes = |hex: &str| hex::decode(hex).unwrap_or_default();
    let input = bytes(&packet.input.hex);
    match &packet.output {
        Some(output) => packet::pair(["Input", "Output"], &input, &bytes(&output.hex)),
        None => packet::pair(["Input, not changed", ""], &input, &input),
    }
}

fn totals(step: &StepOutcome) -> Markup {
    html! {
        .wide tabindex="0" {
            table.fields {
                thead { tr { th scope="col" { "Reason" } th scope="col" { "Verdict" } th.num scope="col" { "Packets" } } }
                tbody {
                    @for Total { reason, verdict, packets } in &step.totals {
                        tr {
                            th scope="row" { (reason.as_deref().unwrap_or("not counted")) }
                            td { (verdict) }
                            td.num { (number(*packets)) }
                        }
                    }
                }
            }
        }
        @if let Some(digest) = &step.digest { p.soft { "SHA-256 of all verdicts and outputs: " code { (digest) } } }
    }
}

/// What else a step changed.
fn changes(step: &StepOutcome) -> Markup {
    let name = |change: &UserChange| match change.user {
        Some(user) => format!("user {user}, slot {}", change.slot),
        None => format!("slot {}", change.slot),
    };
    html! {
        @if !step.users.is_empty() {
            .wide tabindex="0" {
                table.fields {
                    thead {
                        tr {
                            th scope="col" { "What is kept" } th scope="col" { "Before" } th scope="col" { "After" }
                        }
                    }
                    tbody {
                        @for change in &step.users {
                            @for (field, before, after) in &change.fields {
                                tr {
                                    th scope="row" { (name(change)) ": " (field) }
                                    td.mono { (before) }
                                    td.mono { mark { (after) } }
                                }
                            }
                        }
                    }
                }
            }
        }
        @for change in &step.destinations {
            p.soft { "Limit of destination " strong { (change.to) } ": tat_ns " (change.tat_ns.0) " to " (change.tat_ns.1) }
        }
        @for Counted { counter, packets, bytes } in &step.counters {
            p.soft { "Counted " strong { (counter) } ": packets " (number(*packets)) ", bytes " (number(*bytes)) }
        }
        @if step.answers > 0 {
            p.soft { "ICMP messages: " (number(step.answers)) }
        }
    }
}

/// Something wrong: what, and the two sides of it.
fn wrong(failure: &Failure) -> Markup {
    html! {
        .card.problem {
            p { (badge(Tone::Fail, "wrong")) " " (failure.message) }
            @if !failure.differences.is_empty() {
                .wide tabindex="0" {
                    table.fields {
                        thead {
                            tr { th scope="col" { "Field" } th scope="col" { "Expected" } th scope="col" { "Actual" } }
                        }
                        tbody {
                            @for Difference { field, expected, actual } in &failure.differences {
                                tr {
                                    th scope="row" { (field) }
                                    @let (left, right) = marked(expected, actual);
                                    td.mono { (left) }
                                    td.mono { (right) }
                                }
                            }
                        }
                    }
                }
            }
            @if let Some(details) = &failure.details { pre tabindex="0" { (details) } }
        }
    }
}

/// Two values, with what only one of them has marked.
fn marked(expected: &str, actual: &str) -> (Markup, Markup) {
    let diff = TextDiff::from_chars(expected, actual);
    let side = |only: ChangeTag| {
        let mut runs: Vec<(bool, String)> = Vec::new();
        for change in diff.iter_all_changes() {
            let (tag, text) = (change.tag(), change.value());
            match runs.last_mut() {
                _ if tag != only && tag != ChangeTag::Equal => {}
                Some((is_marked, run)) if *is_marked == (tag == only) => run.push_str(text),
                _ => runs.push((tag == only, text.to_owned())),
            }
        }
        html! { @for (is_marked, run) in runs { @if is_marked { mark { (run) } } @else { (run) } } }
    };
    (side(ChangeTag::Delete), side(ChangeTag::Insert))
}

/// Two texts side by side, the lines that only one has marked.
fn compared((left, expected): (&str, &str), (right, actual): (&str, &str)) -> Markup {
    let diff = TextDiff::from_lines(expected, actual);
    let side = |not: ChangeTag, only: ChangeTag| -> Vec<(bool, &str)> {
        let changes = diff.iter_all_changes().filter(|change| change.tag() != not);
        changes
            .map(|change| (change.tag() == only, change.value().trim_end_matches('\n')))
            .collect()
    };
    let column = |heading: &str, lines: Vec<(bool, &str)>| {
        html! {
            div {
                h4 { (heading) }
                pre.hex tabindex="0" {
                    @for (only_here, line) in lines {
                        @if only_here { mark { (line) } } @else { (line) }
                        "\n"
                    }
                }
            }
        }
    };
    html! {
        .pair {
            (column(left, side(ChangeTag::Insert, ChangeTag::Delete)))
            (column(right, side(ChangeTag::Delete, ChangeTag::Insert)))
        }
    }
}

/// A time since the start, as short as it is exact.
fn time(at_ns: u64) -> String {
    let (value, unit) = match at_ns {
        0 => return "at 0".to_owned(),
        ns if ns.is_multiple_of(1_000_000_000) => (ns / 1_000_000_000, "s"),
        ns if ns.is_multiple_of(1_000_000) => (ns / 1_000_000, "ms"),
        ns if ns.is_multiple_of(1_000) => (ns / 1_000, "µs"),
        ns => (ns, "ns"),
    };
    format!("{} {unit}", number(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        craft::UdpFrame,
        scenario::{
            BackendKind,
            outcome::{BackendOutcome, Frame},
        },
    };

    const HOSTILE: &str = "</style></script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&";

    fn frame(to: &str) -> Frame {
        let bytes = UdpFrame::new("203.0.113.9:1".parse().unwrap(), to.parse().unwrap(), *b"payload").build();
        Frame {
            decoded: vec![HOSTILE.to_owned()],
            hex: hex::encode(bytes),
        }
    }

    fn step(text: &str) -> StepOutcome {
        StepOutcome {
            number: 0,
            line: 1,
            at_ns: 0,
            heading: text.to_owned(),
            note: Some(text.to_owned()),
            packets: vec![PacketOutcome {
                input: frame("192.0.2.1:1"),
                verdict: text.to_owned(),
                reason: Some(text.to_owned()),
                output: Some(frame("192.0.2.2:1")),
            }],
            totals: vec![Total {
                reason: Some(text.to_owned()),
                verdict: text.to_owned(),
                packets: 1,
            }],
            digest: Some(text.to_owned()),
            users: vec![UserChange {
                user: Some(1),
                slot: 1,
                fields: vec![(text.to_owned(), text.to_owned(), text.to_owned())],
            }],
            answers: 0,
            destinations: Vec::new(),
            counters: vec![Counted {
                counter: text.to_owned(),
                packets: 1,
                bytes: 1,
            }],
            remarks: vec![text.to_owned()],
        }
    }

    fn failure(text: &str, step: Option<usize>) -> Failure {
        Failure {
            step,
            line: None,
            message: text.to_owned(),
            differences: vec![Difference {
                field: text.to_owned(),
                expected: format!("same 1{text}"),
                actual: format!("same 2{text}"),
            }],
            details: Some(text.to_owned()),
        }
    }

    fn outcome(id: &str, text: &str, failed: bool) -> Outcome {
        Outcome {
            id: id.to_owned(),
            path: text.to_owned(),
            name: text.to_owned(),
            tags: vec![text.to_owned()],
            backends: vec![
                BackendOutcome {
                    backend: BackendKind::Host,
                    skipped: None,
                },
                BackendOutcome {
                    backend: BackendKind::Kernel,
                    skipped: Some(text.to_owned()),
                },
            ],
            steps: vec![step(text)],
            snapshot: Some(format!("same\nsecond\n{text}")),
            kept: if failed {
                Kept::Differs {
                    expected: format!("same\nfirst\n{text}"),
                }
            } else {
                Kept::Same
            },
            failures: if failed {
                vec![failure(text, Some(0)), failure(text, Some(7)), failure(text, None)]
            } else {
                Vec::new()
            },
            seconds: 0.1,
        }
    }

    fn page(outcomes: &[Outcome]) -> String {
        run(outcomes, Duration::from_millis(1_500))
    }

    #[test]
    fn nothing_that_a_scenario_says_becomes_markup() {
        let page = page(&[outcome(HOSTILE, HOSTILE, true)]);
        assert!(!page.contains("<img"), "an element got through");
        assert!(!page.contains("<script>alert"), "a script got through");
        assert_eq!(page.matches("<script>").count(), 1, "the page's own");
        assert_eq!(page.matches("</script>").count(), 1);
        assert_eq!(page.matches("</style>").count(), 1);
        assert!(page.contains("&lt;img src=x onerror=alert(2)&gt;&quot;"));
    }

    #[test]
    fn a_page_loads_nothing() {
        let page = page(&[outcome("uplink/one", "one", false)]);
        for loading in [
            "http://", "https://", "src=", "@import", "url(", "<link", "<iframe", " style=",
        ] {
            assert!(!page.contains(loading), "{loading}");
        }
        assert!(page.contains("default-src 'none'"));
    }

    #[test]
    fn what_only_one_side_has_is_marked_on_it() {
        let page = page(&[outcome("uplink/one", "", true)]);
        assert!(page.contains("same\n<mark>first</mark>\n"), "{page}");
        assert!(page.contains("same\n<mark>second</mark>\n"));
        assert!(page.contains("same <mark>1</mark>") && page.contains("same <mark>2</mark>"));
    }

    #[test]
    fn failures_come_first_and_lead_to_their_scenario() {
        let page = page(&[
            outcome("uplink/good", "good", false),
            outcome("uplink/bad", "bad", true),
        ]);
        assert!(page.contains("1 of 2 failed"));
        assert!(page.contains("<a href=\"#s1\">uplink/bad</a>") && page.contains("id=\"s1\""));
        let (list, details) = (page.find("What failed").unwrap(), page.find("<details").unwrap());
        assert!(list < details);
    }

    #[test]
    fn eighty_scenarios_of_many_steps_stay_a_small_page() {
        let mut many = outcome("captures/long", "a step", false);
        many.steps = (0..1_000)
            .map(|number| StepOutcome {
                number,
                ..step("a step")
            })
            .collect();
        let mut outcomes = vec![many];
        for nth in 0..80 {
            let mut one = outcome(&format!("uplink/case-{nth}"), "a case", false);
            one.steps = vec![step("a step"); 6];
            outcomes.push(one);
        }
        let page = page(&outcomes);
        assert!(page.len() < 4_000_000, "{} bytes", page.len());
        assert!(page.contains("800 more steps are as they should be"));
    }

    #[test]
    fn times_are_exact() {
        assert_eq!(
            [0, 1, 1_500, 2_000_000, 3_000_000_000].map(time),
            ["at 0", "1 ns", "1,500 ns", "2 ms", "3 s"]
        );
    }
}
