//! The page of a bench.

use maud::{Markup, html};

use super::{
    chart::{Bar, Bars, Columns},
    page::{Page, Tone},
};
use crate::{
    bench::{Latency, Report, Worse},
    simulate::number,
};

/// What a bench was compared with, and what came of it.
#[derive(Clone, Copy, Debug)]
pub struct Compared<'a> {
    /// The figures from before.
    pub base: &'a Report,
    /// What is above them by more than the limit.
    pub worse: &'a [Worse],
    /// The limit, in percent.
    pub percent: f64,
}

/// The page of a bench.
#[must_use]
pub fn bench(report: &Report, compared: Option<Compared<'_>>) -> String {
    let title = format!(
        "{} users, {} bytes of payload, IPv{}",
        number(report.users.into()),
        report.payload_bytes,
        if report.ipv6 { 6 } else { 4 }
    );
    let page = Page {
        kind: "bench",
        title: &title,
        verdict: verdict(compared),
        facts: facts(report),
        content: html! {
            @if let Some(compared) = compared.filter(|compared| !compared.worse.is_empty()) { (worse(compared)) }
            (ratios(report, compared.map(|compared| compared.base)))
            @if let Some(latency) = &report.latency { (histogram(latency)) }
            (table(report, compared.map(|compared| compared.base)))
            (sizes(report, compared.map(|compared| compared.base)))
        },
    };
    page.render()
}

fn verdict(compared: Option<Compared<'_>>) -> (Tone, String) {
    match compared {
        None => (Tone::Note, "measured; not compared with anything".to_owned()),
        Some(Compared { worse: [], percent, .. }) => {
            (Tone::Pass, format!("nothing is above the base by more than {percent}%"))
        }
        Some(Compared {
            worse: [one], percent, ..
        }) => (
            Tone::Fail,
            format!("{} is above the base by more than {percent}%", one.what),
        ),
        Some(Compared { worse, percent, .. }) => {
            let count = worse.len();
            (
                Tone::Fail,
                format!("{count} figures are above the base by more than {percent}%"),
            )
        }
    }
}

fn facts(report: &Report) -> Vec<(&'static str, String)> {
    let floor = report.rows.first().map_or(0.0, |row| row.ns);
    vec![
        ("Floor", format!("{floor:.0} ns")),
        (
            "Verified instructions",
            number(report.size.verified_instructions.into()),
        ),
        (
            "Machine code",
            format!("{} bytes", number(report.size.jited_bytes.into())),
        ),
        ("Maps", mib(report.size.map_bytes)),
        ("Rounds", report.rounds.to_string()),
        ("Linux", report.kernel.clone()),
    ]
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

fn worse(compared: Compared<'_>) -> Markup {
    html! {
        section {
            h2 { "What is worse" }
            .wide tabindex="0" {
                table {
                    thead {
                        tr {
                            th scope="col" { "Figure" }
                            th.num scope="col" { "Base" } th.num scope="col" { "Now" } th.num scope="col" { "More by" }
                        }
                    }
                    tbody {
                        @for Worse { what, base, now } in compared.worse {
                            tr.wrong {
                                th scope="row" { (what) }
                                td.num { (format!("{base:.2}")) }
                                td.num { (format!("{now:.2}")) }
                                td.num { (format!("{:.1}%", 100.0 * (now / base - 1.0))) }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Relayed packets, dropped and passed ones in a colour each.
fn colour(path: &str) -> usize {
    match path {
        "floor" => 7,
        path if path.starts_with("relayed") => 0,
        "unrelated" => 2,
        _ => 3,
    }
}

fn ratios(report: &Report, base: Option<&Report>) -> Markup {
    let bars = report.rows.iter().map(|row| {
        let before = base.and_then(|base| base.row(&row.path));
        Bar {
            name: row.path.clone(),
            value: row.ratio,
            range: (row.ratio_range[1] > row.ratio_range[0]).then_some(row.ratio_range),
            base: before.map(|row| row.ratio),
            text: format!("{:.2} ×", row.ratio),
            colour: colour(&row.path),
        }
    });
    let note = if base.is_some() {
        "Bars: the median of all rounds. Thin lines: from the least to the most. Upright lines: the base."
    } else {
        "Bars: the median of all rounds. Thin lines: from the least to the most."
    };
    let bars = Bars {
        title: "How many times the floor a packet takes",
        note,
        rows: bars.collect(),
    };
    html! {
        section {
            h2 { "Ratios to the floor" }
            p.soft {
                "The floor is the least that an XDP program can do to send a packet on: swap the MAC addresses and \
                 return XDP_TX. It is measured in the same rounds, so that the ratio depends little on the machine."
            }
            (bars.render())
        }
    }
}

fn histogram(latency: &Latency) -> Markup {
    let used = latency.buckets.iter().position(|&samples| samples > 0);
    let last = latency.buckets.iter().rposition(|&samples| samples > 0);
    let (Some(first), Some(last)) = (used, last) else {
        return html! {};
    };
    let shown = (first.saturating_sub(1)..=(last + 1).min(latency.buckets.len() - 1)).map(|bucket| {
        let from = if bucket == 0 { 0 } else { 1_u64 << (bucket - 1) };
        (time(from), latency.buckets[bucket])
    });
    let samples: u64 = latency.buckets.iter().sum();
    let note = format!(
        "Percent of {} packets of {}, in buckets that begin at the time below them and end at twice that. By the \
         program's own clock, whose readings are part of it; the mean is {:.0} ns.",
        number(samples),
        latency.path,
        latency.mean_ns
    );
    let columns = Columns {
        title: "How long single packets take",
        note: &note,
        values: shown.collect(),
    };
    html! { section { h2 { "Latency" } (columns.render()) } }
}

fn time(ns: u64) -> String {
    match ns {
        0..1_024 => format!("{ns} ns"),
        1_024..1_048_576 => format!("{} µs", ns >> 10),
        _ => format!("{} ms", ns >> 20),
    }
}

fn table(report: &Report, base: Option<&Report>) -> Markup {
    html! {
        section {
            h2 { "All figures" }
            .wide tabindex="0" {
                table {
                    thead {
                        tr {
                            th scope="col" { "Path" } th.wide-only scope="col" { "What happens" }
                            th.num scope="col" { "ns a packet" } th.num scope="col" { "From – to" }
                            th.num scope="col" { "× floor" } th.num scope="col" { "From – to" }
                            th.num scope="col" { "Gbit/s a core" }
                            @if base.is_some() { th.num scope="col" { "Base" } th.num scope="col" { "Change" } }
                        }
                    }
                    tbody {
                        @for row in &report.rows {
                            tr {
                                th scope="row" { (row.path) }
                                td.wide-only { (row.description) }
                                td.num { (format!("{:.0}", row.ns)) }
                                td.num { (format!("{:.0} – {:.0}", row.range_ns[0], row.range_ns[1])) }
                                td.num { strong { (format!("{:.2}", row.ratio)) } }
                                td.num { (format!("{:.2} – {:.2}", row.ratio_range[0], row.ratio_range[1])) }
                                td.num { @if let Some(gbit) = row.gbit_per_second { (format!("{gbit:.1}")) } }
                                @if let Some(base) = base {
                                    @match base.row(&row.path) {
                                        Some(before) => {
                                            td.num { (format!("{:.2}", before.ratio)) }
                                            td.num { (format!("{:+.1}%", 100.0 * (row.ratio / before.ratio - 1.0))) }
                                        },
                                        None => { td.num { "none" } td.num {} },
                                    }
                                }
                            }
                        }
                    }
                }
            }
            p.soft {
                (report.rounds) " interleaved rounds of " (number(report.packets.into())) " packets a path, distinct and "
                "valid; the counters showed that every packet took the path that its row is named for."
            }
        }
    }
}

fn sizes(report: &Report, base: Option<&Report>) -> Markup {
    let size = |report: &Report| {
        let size = report.size;
        [
            (
                "Instructions that the verifier walked",
                number(size.verified_instructions.into()),
            ),
            ("Bytes of machine code", number(size.jited_bytes.into())),
            ("Bytes of kernel memory in maps", number(size.map_bytes)),
        ]
    };
    let before = base.map(size);
    html! {
        section {
            h2 { "What does not vary" }
            .wide tabindex="0" {
                table {
                    thead {
                        tr {
                            th scope="col" { "Quantity" } th.num scope="col" { "Now" }
                            @if base.is_some() { th.num scope="col" { "Base" } }
                        }
                    }
                    tbody {
                        @for (nth, (what, value)) in size(report).into_iter().enumerate() {
                            tr {
                                th scope="row" { (what) }
                                td.num { (value) }
                                @if let Some(before) = &before { td.num { (before[nth].1) } }
                            }
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{Row, Size};

    fn report(ratio: f64) -> Report {
        Report {
            kernel: "6.1-<b>custom</b>".to_owned(),
            users: 1_000,
            payload_bytes: 64,
            ipv6: false,
            header_protection: true,
            rounds: 8,
            packets: 512,
            size: Size {
                verified_instructions: 40_000,
                jited_bytes: 20_000,
                map_bytes: 1 << 20,
            },
            latency: Some(Latency {
                path: "relayed_uplink".to_owned(),
                mean_ns: 100.0,
                buckets: vec![0, 0, 0, 0, 0, 0, 0, 500, 10, 0, 2, 0],
            }),
            rows: vec![Row {
                path: "relayed_hot".to_owned(),
                description: "relayed uplink, one user".to_owned(),
                ns: 28.0 * ratio,
                range_ns: [100.0, 120.0],
                ratio,
                ratio_range: [ratio - 0.5, ratio + 0.5],
                gbit_per_second: Some(18.3),
            }],
        }
    }

    #[test]
    fn a_figure_that_is_worse_than_the_base_is_shown_with_both() {
        let (base, now) = (report(4.0), report(5.0));
        let worse = now.worse_than(&base, 10.0).unwrap();
        let compared = Compared {
            base: &base,
            worse: &worse,
            percent: 10.0,
        };
        let page = bench(&now, Some(compared));
        assert!(page.contains("relayed_hot, × floor is above the base by more than 10%"));
        assert!(
            page.contains("4.00") && page.contains("5.00") && page.contains("25.0%"),
            "{page}"
        );
    }

    #[test]
    fn a_bench_without_a_base_shows_its_ratios_and_its_histogram() {
        let page = bench(&report(4.0), None);
        assert!(page.contains("not compared with anything"));
        assert!(page.contains("4.00 ×") && page.contains("64 ns: 500, 97.7%"), "{page}");
        assert!(
            page.contains("6.1-&lt;b&gt;custom"),
            "what the kernel calls itself is escaped"
        );
    }
}
