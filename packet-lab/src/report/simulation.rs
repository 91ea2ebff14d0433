//! The page of a simulation.

use maud::{Markup, html};
use relay_ebpf::verdict::{Direction, Reason};

use super::{
    chart::{Series, Stack},
    packet,
    page::{Page, Tone, badge},
};
use crate::simulate::{Flow, Report, Row, SLICE_MS, Tally, Violation, number};

/// The page of a simulation.
#[must_use]
pub fn simulation(report: &Report) -> String {
    let profile = &report.profile;
    let verdict = match report.violation_count {
        0 => (Tone::Pass, "all invariants hold".to_owned()),
        1 => (Tone::Fail, "1 violation of an invariant".to_owned()),
        count => (Tone::Fail, format!("{} violations of invariants", number(count))),
    };
    let title = format!(
        "{} users over {} s of virtual time",
        number(profile.users.into()),
        profile.seconds
    );
    let attacked: u64 = report.rows.iter().filter(|row| row.attack).map(offered).sum();
    let page = Page {
        kind: "simulation",
        title: &title,
        verdict,
        facts: vec![
            ("Packets", number(report.packets)),
            ("Relayed uplink", number(relayed(report, Direction::Uplink))),
            ("Relayed downlink", number(relayed(report, Direction::Downlink))),
            ("Sent by attackers", number(attacked)),
            ("Backend", report.backend.clone()),
            ("Seed", profile.seed.to_string()),
        ],
        content: html! {
            (violations(report))
            (over_time(report))
            (classes(report))
            (conditions(report))
        },
    };
    page.render()
}

fn offered(row: &Row) -> u64 {
    row.uplink.offered + row.downlink.offered
}

fn relayed(report: &Report, direction: Direction) -> u64 {
    report.total(direction).relay.of(Reason::Relayed)
}

fn violations(report: &Report) -> Markup {
    let profile = &report.profile;
    html! {
        @if report.passed() {
            section {
                h2 { "What held" }
                p {
                    "No packet number was sent on twice. Nobody got more than their burst and rate in any window of \
                     time, and nobody was refused within it. Nothing was sent on for a grant that had ended. The \
                     downlink went to where the newest authentic packet came from. Every packet was treated as the \
                     protocol says, came out right, and was counted once."
                }
                @if profile.has_attack() {
                    p {
                        "The run was made twice, with the attack and without it: "
                        strong { (number(report.compared)) " packets" }
                        " of users, all of them, met exactly the same both times."
                    }
                }
            }
        } @else {
            section {
                h2 { "What did not hold" }
                p {
                    (number(report.violation_count)) " times something did not hold; "
                    "the first " (report.violations.len()) " are shown."
                    @if report.stopped_before_attack { " That was without the attack: with it nothing was run." }
                }
                @for (nth, violation) in report.violations.iter().enumerate() { (one(violation, nth == 0)) }
            }
        }
    }
}

fn one(violation: &Violation, open: bool) -> Markup {
    html! {
        details.item.fail open[open] {
            summary {
                (badge(Tone::Fail, violation.invariant.name()))
                span.name { (violation.what.lines().next().unwrap_or_default()) }
                span.right { (violation.class.unwrap_or("all")) ", at " (ms(violation.at_ns)) " ms" }
            }
            .inside {
                @if violation.what.lines().count() > 1 { pre { (violation.what) } }
                @if violation.input.is_empty() {
                    p.soft { "This is not about one packet." }
                } @else {
                    (packet::pair(["Input", "Output"], &violation.input, &violation.output))
                }
            }
        }
    }
}

/// Milliseconds on the lab's clock, exactly.
fn ms(at_ns: u64) -> String {
    format!("{}.{:06}", number(at_ns / 1_000_000), at_ns % 1_000_000)
}

/// The series of one tally over time.
fn series<'a>(report: &Report, reason: Reason, tally: impl Fn(&crate::simulate::Slice) -> Tally) -> Series<'a> {
    Series {
        name: reason.name(),
        colour: colour(reason),
        values: report.timeline.iter().map(|slice| tally(slice).of(reason)).collect(),
    }
}

/// The same for a reason in every plot, and different for those that users' packets meet, and for those that attackers'
/// do.
const fn colour(reason: Reason) -> usize {
    match reason {
        Reason::Unrelated | Reason::Relayed | Reason::BlockedSource => 0,
        Reason::Fragment | Reason::DestinationUnresolved => 1,
        Reason::Truncated | Reason::Ping | Reason::RateLimited | Reason::DestinationLimited => 2,
        Reason::UnknownSession => 3,
        Reason::BadToken | Reason::TtlExpired => 4,
        Reason::Expired | Reason::TooBig | Reason::NoHeadroom => 5,
        Reason::Replayed => 6,
        Reason::Unsolicited | Reason::IcmpError => 7,
    }
}

fn over_time(report: &Report) -> Markup {
    let sent = [
        ("relayed uplink", 0, Reason::Relayed, true),
        ("relayed downlink", 1, Reason::Relayed, false),
        ("ping", 2, Reason::Ping, true),
    ];
    let sent = sent.map(|(name, colour, reason, uplink)| Series {
        name,
        colour,
        ..series(
            report,
            reason,
            |slice| if uplink { slice.uplink } else { slice.downlink },
        )
    });
    let is_sent = |reason: &Reason| matches!(reason, Reason::Relayed | Reason::Ping | Reason::IcmpError);
    let refused = Reason::ALL.into_iter().filter(|reason| !is_sent(reason));
    let refused = refused.map(|reason| {
        let (up, down) = (
            series(report, reason, |slice| slice.uplink),
            series(report, reason, |slice| slice.downlink),
        );
        let values = up.values.iter().zip(&down.values).map(|(up, down)| up + down);
        Series {
            values: values.collect(),
            ..up
        }
    });
    let attack = Reason::ALL.map(|reason| series(report, reason, |slice| slice.attack));
    let stack = |title, note, series| {
        let stack = Stack {
            title,
            note,
            slice_ms: SLICE_MS,
            series,
        };
        stack.render()
    };
    html! {
        section {
            h2 { "Over time" }
            (stack("Users: sent on", "Packets a second, by what they are.", sent.into()))
            (stack("Users: not sent on", "Packets a second, by reason.", refused.collect()))
            @if report.profile.has_attack() {
                (stack("Attackers", "Packets a second, by what the relay made of them.", attack.into()))
            }
        }
    }
}

fn classes(report: &Report) -> Markup {
    let rows = |wanted: fn(&Row) -> bool| report.rows.iter().filter(move |row| wanted(row));
    html! {
        section {
            h2 { "By class" }
            p.soft { "Lost and doubled are the path's doing, before the relay uplink and behind it downlink." }
            .wide tabindex="0" {
                table {
                    caption { "Uplink: from clients" }
                    thead {
                        tr {
                            th scope="col" { "Class" }
                            @for name in ["Users", "Offered", "Lost", "Doubled", "Relayed", "Ping"] {
                                th.num scope="col" { (name) }
                            }
                            th scope="col" { "Dropped or passed, by reason" }
                        }
                    }
                    tbody {
                        @for row in rows(|row| row.uplink.offered != 0) {
                            tr {
                                (class(row))
                                @let flow = row.uplink;
                                @let (relayed, ping) = (flow.relay.of(Reason::Relayed), flow.relay.of(Reason::Ping));
                                @for value in [flow.offered, flow.lost, flow.duplicated, relayed, ping] { (cell(value)) }
                                (reasons(&flow))
                            }
                        }
                    }
                }
            }
            .wide tabindex="0" {
                table {
                    caption { "Downlink: from destinations" }
                    thead {
                        tr {
                            th scope="col" { "Class" }
                            @for name in ["Users", "Offered", "Relayed", "Lost", "Reached the client", "Client had moved"] {
                                th.num scope="col" { (name) }
                            }
                            th scope="col" { "Dropped or passed, by reason" }
                        }
                    }
                    tbody {
                        @for row in rows(|row| row.downlink.offered != 0) {
                            tr {
                                (class(row))
                                @let flow = row.downlink;
                                @let relayed = flow.relay.of(Reason::Relayed);
                                @for value in [flow.offered, relayed, flow.lost, row.reached, row.missed] { (cell(value)) }
                                (reasons(&flow))
                            }
                        }
                    }
                }
            }
            .card {
                h3 { "What the classes are" }
                dl.words {
                    @for row in &report.rows {
                        dt { strong { (row.class.name()) } @if row.attack { " " (badge(Tone::Note, "attack")) } }
                        dd { (row.class.description()) }
                    }
                }
            }
        }
    }
}

fn class(row: &Row) -> Markup {
    html! {
        th scope="row" { (row.class.name()) }
        td.num { @if row.attack { span.zero { "attack" } } @else { (number(row.users.into())) } }
    }
}

fn cell(value: u64) -> Markup {
    html! { td.num { @if value == 0 { span.zero { "0" } } @else { (number(value)) } } }
}

fn reasons(flow: &Flow) -> Markup {
    let others = flow
        .relay
        .iter()
        .filter(|(reason, _)| !matches!(reason, Reason::Relayed | Reason::Ping));
    html! {
        td.many { @for (reason, packets) in others { span { (reason.name()) " " strong { (number(packets)) } } " " } }
    }
}

fn conditions(report: &Report) -> Markup {
    let profile = toml::to_string(&report.profile).unwrap_or_default();
    html! {
        section {
            h2 { "The same run again" }
            p {
                "This profile gives the same run, packet by packet, on every machine and backend: "
                code { "packet-lab simulate --profile FILE.toml" } "."
            }
            details.item {
                summary { span.name { "Profile" } span.right { "TOML" } }
                .inside { pre { (profile) } }
            }
        }
    }
}
