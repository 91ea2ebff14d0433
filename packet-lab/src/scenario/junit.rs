//! Outcomes as `JUnit` XML, for CI systems that show test results.

use std::time::Duration;

use anyhow::Context as _;
use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};

use super::outcome::{Kept, Outcome};

/// The XML: an area is a suite, a scenario a case.
///
/// # Errors
/// If it cannot be written, such as for characters that XML does not have.
pub fn junit(outcomes: &[Outcome], took: Duration) -> anyhow::Result<String> {
    let mut report = Report::new("packet-lab");
    report.set_time(took);
    let mut suites: Vec<TestSuite> = Vec::new();
    for outcome in outcomes {
        let area = outcome.id.split_once('/').map_or("", |(area, _)| area);
        if suites.last().is_none_or(|suite| suite.name.as_str() != area) {
            suites.push(TestSuite::new(area));
        }
        if let Some(suite) = suites.last_mut() {
            suite.add_test_case(case(outcome));
        }
    }
    report.add_test_suites(suites);
    report.to_string().context("writing JUnit XML")
}

fn case(outcome: &Outcome) -> TestCase {
    let skipped = outcome.backends.iter().filter_map(|backend| {
        let why = backend.skipped.as_ref()?;
        Some(format!("{}: {why}", backend.backend.name()))
    });
    let skipped: Vec<String> = skipped.collect();
    let status = if !outcome.passed() {
        let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
        status
            .set_message(reason(outcome))
            .set_description(description(outcome));
        status
    } else if outcome.skipped() {
        let mut status = TestCaseStatus::skipped();
        status.set_message(skipped.join("; "));
        status
    } else {
        TestCaseStatus::success()
    };
    let name = outcome.id.split_once('/').map_or(outcome.id.as_str(), |(_, name)| name);
    let mut case = TestCase::new(name, status);
    case.set_classname(outcome.id.clone());
    case.set_time(Duration::from_secs_f64(outcome.seconds));
    let mut notes = outcome.name.clone();
    for skipped in skipped {
        notes.push_str("\nskipped in ");
        notes.push_str(&skipped);
    }
    case.set_system_out(notes);
    case
}

fn reason(outcome: &Outcome) -> String {
    match (outcome.failures.first(), &outcome.kept) {
        (Some(failure), _) => failure.message.clone(),
        (None, Kept::Missing) => "there is no snapshot yet".to_owned(),
        (None, _) => "the snapshot differs".to_owned(),
    }
}

fn description(outcome: &Outcome) -> String {
    let mut text = outcome.failures_as_text();
    if let (Kept::Differs { expected }, Some(actual)) = (&outcome.kept, &outcome.snapshot) {
        let diff = similar::TextDiff::from_lines(expected.trim(), actual.trim());
        text += &diff.unified_diff().header("kept", "now").to_string();
    }
    text
}
