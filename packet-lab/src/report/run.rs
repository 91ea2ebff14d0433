//! The page of a run of scenarios.

use std::time::Duration;

use maud::{Markup, html};
use similar::{ChangeTag, TextDiff};

use super::{
    packet,
    page::{Page, Tone, badge},
};
use crate::simulate::number;

/// Most steps of a scenario that are shown, besides those with a problem.
const SHOWN_STEPS: usize = 200;

/// A run of scenarios, as its page shows it: plain data, which whatever ran them fills in.
#[derive(Clone, Debug, Default)]
pub struct Run {
    /// The scenarios, in the order of the page.
    pub scenarios: Vec<Scenario>,
    /// How long they took together.
    pub took: Duration,
}

/// How something ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Status {
    /// As it should.
    Passed,
    /// Otherwise.
    Failed,
    /// It was not run.
    Skipped,
}

impl Status {
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

/// One scenario.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Where it is: area and folder.
    pub path: String,
    /// What it says, a sentence.
    pub name: String,
    /// Its tags.
    pub tags: Vec<String>,
    /// How it ended, over all backends.
    pub status: Status,
    /// How it ended on each backend, and why if that needs saying.
    pub backends: Vec<(String, Status, Option<String>)>,
    /// What is wrong with all of it, rather than with a step.
    pub problems: Vec<Problem>,
    /// Its steps, as the first backend did them.
    pub steps: Vec<Step>,
}

/// One step of a scenario.
#[derive(Clone, Debug, Default)]
pub struct Step {
    /// Its number, from 0.
    pub number: usize,
    /// When, in nanoseconds since the scenario's start.
    pub at_ns: u64,
    /// What is done: `send`, `renew`.
    pub action: String,
    /// What the scenario says about it.
    pub note: Option<String>,
    /// What was observed, in a few words: verdict, direction and reason.
    pub observed: Option<String>,
    /// The frame that was sent and the frame afterwards; none for a step without frames.
    pub frames: Option<(Vec<u8>, Vec<u8>)>,
    /// What else changed: of users, of counters; one line each.
    pub changes: Vec<String>,
    /// What is wrong.
    pub problems: Vec<Problem>,
}

/// Something that is not as it should be.
#[derive(Clone, Debug, Default)]
pub struct Problem {
    /// What, in a sentence; with the backends that it is about.
    pub what: String,
    /// Texts to compare, under these headings.
    pub texts: Option<[(String, String); 2]>,
    /// Frames to compare, under these headings.
    pub frames: Option<[(String, Vec<u8>); 2]>,
}

/// The page of a run.
#[must_use]
pub fn run(run: &Run) -> String {
    let count = |status| {
        run.scenarios
            .iter()
            .filter(|scenario| scenario.status == status)
            .count()
    };
    let [passed, failed, skipped] = [Status::Passed, Status::Failed, Status::Skipped].map(count);
    let all = run.scenarios.len();
    let verdict = match (failed, passed) {
        (0, 0) => (Tone::Note, "nothing was run".to_owned()),
        (0, _) if skipped > 0 => (Tone::Pass, format!("{passed} passed, {skipped} skipped")),
        (0, _) => (Tone::Pass, format!("all {passed} passed")),
        _ => (Tone::Fail, format!("{failed} of {all} failed")),
    };
    let steps: usize = run.scenarios.iter().map(|scenario| scenario.steps.len()).sum();
    let title = match &run.scenarios[..] {
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
            ("Steps", number(steps as u64)),
            ("Backends", backends(run)),
            ("Took", format!("{:.1} s", run.took.as_secs_f64())),
        ],
        content: html! {
            (failures(run))
            section {
                h2 { "Scenarios" }
                (tools())
                @for (area, scenarios) in areas(run) {
                    h3 { (area) " " span.soft { (scenarios.len()) } }
                    @for (nth, scenario) in scenarios { (one(scenario, nth, all == 1)) }
                }
            }
        },
    };
    page.render()
}

/// Every backend that ran anything.
fn backends(run: &Run) -> String {
    let mut names: Vec<&str> = Vec::new();
    for (name, status, _) in run.scenarios.iter().flat_map(|scenario| &scenario.backends) {
        if *status != Status::Skipped && !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(", ")
    }
}

/// The scenarios with their numbers on the page, by the first part of their paths, in order.
fn areas(run: &Run) -> Vec<(&str, Vec<(usize, &Scenario)>)> {
    let mut areas: Vec<(&str, Vec<(usize, &Scenario)>)> = Vec::new();
    for (nth, scenario) in run.scenarios.iter().enumerate() {
        let area = scenario.path.rsplit_once('/').map_or("", |(area, _)| area);
        match areas.iter_mut().find(|(known, _)| *known == area) {
            Some((_, scenarios)) => scenarios.push((nth, scenario)),
            None => areas.push((area, vec![(nth, scenario)])),
        }
    }
    areas
}

fn failures(run: &Run) -> Markup {
    let failed = run.scenarios.iter().enumerate();
    let failed: Vec<_> = failed
        .filter(|(_, scenario)| scenario.status == Status::Failed)
        .collect();
    if failed.is_empty() || run.scenarios.len() == 1 {
        return html! {};
    }
    html! {
        section {
            h2 { "What failed" }
            .card {
                ul.failures {
                    @for (nth, scenario) in failed {
                        li {
                            a href=(format!("#s{nth}")) { (scenario.path) } ": " (scenario.name)
                            @if let Some(problem) = first_problem(scenario) { div.soft { (first_line(problem)) } }
                        }
                    }
                }
            }
        }
    }
}

fn first_problem(scenario: &Scenario) -> Option<&str> {
    let of_steps = scenario.steps.iter().flat_map(|step| &step.problems);
    scenario
        .problems
        .iter()
        .chain(of_steps)
        .map(|problem| problem.what.as_str())
        .next()
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
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

fn one(scenario: &Scenario, nth: usize, open: bool) -> Markup {
    let failed = scenario.status == Status::Failed;
    html! {
        details.item.fail[failed] id=(format!("s{nth}")) open[open] data-words=(words(scenario)) {
            summary {
                (badge(scenario.status.tone(), scenario.status.name()))
                span.name { (scenario.name) }
                span.right.mono { (scenario.path) }
            }
            .inside {
                (of_backends(scenario))
                @for problem in &scenario.problems { (problem_of(problem)) }
                (steps(scenario))
            }
        }
    }
}

/// What the search finds a scenario by.
fn words(scenario: &Scenario) -> String {
    let mut words = vec![scenario.path.as_str(), &scenario.name, scenario.status.name()];
    words.extend(scenario.tags.iter().map(String::as_str));
    for observed in scenario.steps.iter().filter_map(|step| step.observed.as_deref()) {
        if !words.contains(&observed) {
            words.push(observed);
        }
    }
    words.join(" ")
}

fn of_backends(scenario: &Scenario) -> Markup {
    html! {
        p.chips {
            @for (name, status, _) in &scenario.backends { (badge(status.tone(), &format!("{name} {}", status.name()))) }
            @for tag in &scenario.tags { span.chip { (tag) } }
        }
        @for (name, _, why) in &scenario.backends {
            @if let Some(why) = why { p.soft { (name) ": " (why) } }
        }
    }
}

fn steps(scenario: &Scenario) -> Markup {
    let is_shown = |(nth, step): &(usize, &Step)| *nth < SHOWN_STEPS || !step.problems.is_empty();
    let shown: Vec<(usize, &Step)> = scenario.steps.iter().enumerate().filter(is_shown).collect();
    let left_out = scenario.steps.len() - shown.len();
    html! {
        @for (_, step) in shown { (step_of(step)) }
        @if left_out > 0 { p.soft { (number(left_out as u64)) " more steps are as they should be." } }
    }
}

fn step_of(step: &Step) -> Markup {
    let wrong = !step.problems.is_empty();
    html! {
        details.step open[wrong] {
            summary {
                span.at.mono { (step.number) " · " (time(step.at_ns)) }
                code { (step.action) }
                @if let Some(observed) = &step.observed { strong { (observed) } }
                @if wrong { (badge(Tone::Fail, "not as expected")) }
                @if let Some(note) = &step.note { span.soft { (note) } }
            }
            @for problem in &step.problems { (problem_of(problem)) }
            @if let Some((input, output)) = &step.frames { (packet::pair(["Input", "Output"], input, output)) }
            @if !step.changes.is_empty() {
                h4 { "What changed" }
                pre { @for change in &step.changes { (change) "\n" } }
            }
        }
    }
}

fn problem_of(problem: &Problem) -> Markup {
    html! {
        .card.problem {
            p { (badge(Tone::Fail, "wrong")) " " (problem.what) }
            @if let Some(texts) = &problem.texts { (compared(texts)) }
            @if let Some([(left, expected), (right, actual)]) = &problem.frames {
                (packet::pair([left, right], expected, actual))
            }
        }
    }
}

/// Two texts side by side, the lines that only one has marked.
fn compared([(left, expected), (right, actual)]: &[(String, String); 2]) -> Markup {
    let diff = TextDiff::from_lines(expected.as_str(), actual.as_str());
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
        0 => return "0".to_owned(),
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
    use crate::craft::UdpFrame;

    const HOSTILE: &str = "</style></script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&";

    fn scenario(path: &str, text: &str, status: Status) -> Scenario {
        let frame = |to: &str| UdpFrame::new("203.0.113.9:1".parse().unwrap(), to.parse().unwrap(), text).build();
        let problem = Problem {
            what: text.to_owned(),
            texts: Some(
                [("expected", "same\nfirst\n"), ("actual", "same\nsecond\n")]
                    .map(|(a, b)| (a.to_owned(), b.to_owned() + text)),
            ),
            frames: Some(
                [("expected", "192.0.2.1:1"), ("actual", "192.0.2.2:1")].map(|(a, to)| (a.to_owned(), frame(to))),
            ),
        };
        let failed = status == Status::Failed;
        Scenario {
            path: path.to_owned(),
            name: text.to_owned(),
            tags: vec![text.to_owned()],
            status,
            backends: vec![(text.to_owned(), status, Some(text.to_owned()))],
            problems: Vec::new(),
            steps: vec![Step {
                action: text.to_owned(),
                note: Some(text.to_owned()),
                observed: Some(text.to_owned()),
                frames: Some((frame("192.0.2.1:1"), frame("192.0.2.2:1"))),
                changes: vec![text.to_owned()],
                problems: if failed { vec![problem] } else { Vec::new() },
                ..Step::default()
            }],
        }
    }

    fn page(scenarios: Vec<Scenario>) -> String {
        run(&Run {
            scenarios,
            took: Duration::from_millis(1_500),
        })
    }

    #[test]
    fn nothing_that_a_scenario_says_becomes_markup() {
        let page = page(vec![scenario(HOSTILE, HOSTILE, Status::Failed)]);
        assert!(!page.contains("<img"), "an element got through");
        assert!(!page.contains("<script>alert"), "a script got through");
        assert_eq!(page.matches("<script>").count(), 1, "the page's own");
        assert_eq!(page.matches("</script>").count(), 1);
        assert_eq!(page.matches("</style>").count(), 1);
        assert!(page.contains("&lt;img src=x onerror=alert(2)&gt;&quot;"));
    }

    #[test]
    fn a_page_loads_nothing() {
        let page = page(vec![scenario("uplink/one", "one", Status::Passed)]);
        for loading in [
            "http://", "https://", "src=", "@import", "url(", "<link", "<iframe", " style=",
        ] {
            assert!(!page.contains(loading), "{loading}");
        }
        assert!(page.contains("default-src 'none'"));
    }

    #[test]
    fn lines_that_only_one_side_has_are_marked_on_it() {
        let page = page(vec![scenario("uplink/one", "", Status::Failed)]);
        assert!(page.contains("same\n<mark>first</mark>\n"), "{page}");
        assert!(page.contains("same\n<mark>second</mark>\n"));
    }

    #[test]
    fn failures_come_first_and_lead_to_their_scenario() {
        let page = page(vec![
            scenario("uplink/good", "good", Status::Passed),
            scenario("uplink/bad", "bad", Status::Failed),
        ]);
        assert!(page.contains("1 of 2 failed"));
        assert!(page.contains("<a href=\"#s1\">uplink/bad</a>") && page.contains("id=\"s1\""));
        let (list, details) = (page.find("What failed").unwrap(), page.find("<details").unwrap());
        assert!(list < details);
    }

    #[test]
    fn eighty_scenarios_of_many_steps_stay_a_small_page() {
        let mut many = scenario("captures/long", "a step", Status::Passed);
        let step = many.steps[0].clone();
        many.steps = (0..1_000).map(|number| Step { number, ..step.clone() }).collect();
        let mut scenarios = vec![many];
        for nth in 0..80 {
            let mut one = scenario(&format!("uplink/case-{nth}"), "a case", Status::Passed);
            one.steps = vec![one.steps[0].clone(); 6];
            scenarios.push(one);
        }
        let page = page(scenarios);
        assert!(page.len() < 4_000_000, "{} bytes", page.len());
        assert!(page.contains("800 more steps are as they should be"));
    }

    #[test]
    fn times_are_exact() {
        assert_eq!(
            [0, 1, 1_500, 2_000_000, 3_000_000_000].map(time),
            ["0", "1 ns", "1,500 ns", "2 ms", "3 s"]
        );
    }
}
