//! Plots, as SVG drawn by hand: few shapes, no dependencies, colours from the page's style in light and dark. Each is
//! drawn twice, for wide and for narrow screens, so that its text is as large as the page's on both; the style shows
//! one of them.

use std::fmt::Write as _;

use maud::{Markup, PreEscaped, html};

use crate::simulate::number;

/// Colours that the style has for series.
const COLOURS: usize = 8;

/// How a plot is drawn.
#[derive(Clone, Copy)]
struct Size {
    width: f64,
    height: f64,
    /// Columns that have room.
    columns: usize,
    /// Marks on the horizontal axis that have room.
    marks: usize,
    class: &'static str,
}

const WIDE: Size = Size {
    width: 1_060.0,
    height: 270.0,
    columns: 160,
    marks: 10,
    class: "wide-only",
};
const NARROW: Size = Size {
    width: 360.0,
    height: 230.0,
    columns: 60,
    marks: 5,
    class: "narrow-only",
};

/// As an image of its own.
const IMAGE: Size = Size {
    width: 820.0,
    height: 270.0,
    columns: 160,
    marks: 8,
    class: "",
};

/// The style of plots alone.
const PLOT_STYLE: &str = include_str!("plot.css");

/// One of the things that are stacked.
pub(super) struct Series<'a> {
    pub(super) name: &'a str,
    /// Which of the style's colours.
    pub(super) colour: usize,
    /// One value for each slice.
    pub(super) values: Vec<u64>,
}

/// Columns over time, stacked by series; series that are all zero are left out.
pub(super) struct Stack<'a> {
    pub(super) title: &'a str,
    pub(super) note: &'a str,
    /// How long a slice is, in milliseconds.
    pub(super) slice_ms: u64,
    pub(super) series: Vec<Series<'a>>,
}

impl Stack<'_> {
    pub(super) fn render(&self) -> Markup {
        let series: Vec<&Series<'_>> = self
            .series
            .iter()
            .filter(|series| series.values.iter().any(|&value| value != 0))
            .collect();
        html! {
            figure.card {
                figcaption { strong { (self.title) } span.soft { (self.note) } }
                @if series.is_empty() {
                    p.soft { "None." }
                } @else {
                    @for size in [WIDE, NARROW] { (self.svg(&series, size)) }
                    ul.legend {
                        @for series in &series {
                            li {
                                (swatch(series.colour)) (series.name) " "
                                b { (number(series.values.iter().sum())) }
                            }
                        }
                    }
                }
            }
        }
    }

    fn svg(&self, series: &[&Series<'_>], size: Size) -> Markup {
        let slices = series.iter().map(|series| series.values.len()).max().unwrap_or(0);
        let together = slices.div_ceil(size.columns).max(1);
        let columns = slices.div_ceil(together);
        let sum = |values: &[u64], column: usize| -> u64 { values.iter().skip(column * together).take(together).sum() };
        // A second's worth, whatever a column spans: the axis means the same in both drawings.
        let column_ms = self.slice_ms * together as u64;
        let rate = |packets: u64| packets as f64 * 1_000.0 / column_ms as f64;
        let totals = (0..columns).map(|column| series.iter().map(|series| sum(&series.values, column)).sum::<u64>());
        let most = totals.map(rate).fold(0.0, f64::max);
        let axis = Axis::new(most, 4);
        let plot = Plot::new(size, Scale::Linear(axis).label_width(), 26.0);
        let step = plot.width / columns as f64;
        let label = format!("{}. {} a second over {} slices.", self.title, self.note, columns);
        html! {
            svg.(size.class) viewBox=(format!("0 0 {} {}", size.width, size.height)) role="img" aria-label=(label) {
                (Scale::Linear(axis).horizontal_lines(plot))
                @for column in 0..columns {
                    @let heights: Vec<f64> = series.iter().map(|series| rate(sum(&series.values, column))).collect();
                    g {
                        title { (self.tooltip(series, column, together, column_ms)) }
                        @for (nth, height) in heights.iter().enumerate() {
                            @let below: f64 = heights[..nth].iter().sum();
                            @if *height > 0.0 {
                                rect.(colour(series[nth].colour)) x=(px(plot.left + step * column as f64)) width=(px(gapped(step)))
                                    y=(px(plot.y(axis, below + height)))
                                    height=(px(plot.y(axis, below) - plot.y(axis, below + height))) {}
                            }
                        }
                    }
                }
                (time_axis(plot, column_ms * columns as u64, size.marks))
            }
        }
    }

    fn tooltip(&self, series: &[&Series<'_>], column: usize, together: usize, column_ms: u64) -> String {
        let from = column as u64 * column_ms;
        let mut text = format!(
            "{} to {}",
            seconds(from),
            seconds(from + self.slice_ms * together as u64)
        );
        for series in series.iter().rev() {
            let packets: u64 = series.values.iter().skip(column * together).take(together).sum();
            if packets != 0 {
                let _ = write!(text, "\n{}: {}", series.name, number(packets));
            }
        }
        text
    }
}

/// A horizontal bar with what it ranged over.
pub(super) struct Bar {
    pub(super) name: String,
    pub(super) value: f64,
    pub(super) range: Option<[f64; 2]>,
    /// What it is compared with.
    pub(super) base: Option<f64>,
    pub(super) text: String,
    pub(super) colour: usize,
}

/// Horizontal bars.
pub(super) struct Bars<'a> {
    pub(super) title: &'a str,
    pub(super) note: &'a str,
    pub(super) rows: Vec<Bar>,
}

impl Bars<'_> {
    pub(super) fn render(&self) -> Markup {
        html! {
            figure.card {
                figcaption { strong { (self.title) } span.soft { (self.note) } }
                @for size in [WIDE, NARROW] { (self.svg(size)) }
            }
        }
    }

    fn svg(&self, size: Size) -> Markup {
        let (height, drawing) = self.drawing(size);
        let label = format!("{} {}", self.title, self.note);
        html! {
            svg.(size.class) viewBox=(format!("0 0 {} {}", size.width, height)) role="img" aria-label=(label) { (drawing) }
        }
    }

    /// The bars, and how high they are together.
    fn drawing(&self, size: Size) -> (f64, Markup) {
        let ends = self
            .rows
            .iter()
            .flat_map(|bar| [Some(bar.value), bar.base, bar.range.map(|range| range[1])]);
        let most = ends.flatten().fold(0.0, f64::max);
        let axis = Axis::new(most, size.marks);
        let stacked = size.width < 600.0;
        let names = if stacked { 5.0 } else { 190.0 };
        let values = 74.0;
        let row = if stacked { 44.0 } else { 32.0 };
        let height = row * self.rows.len() as f64 + 26.0;
        let width = size.width - names - values - 8.0;
        let x = |value: f64| names + width * value / axis.top;
        let drawing = html! {
                @for mark in axis.marks() {
                    line.axis x1=(px(x(mark))) x2=(px(x(mark))) y1="0" y2=(px(height - 22.0)) {}
                    text x=(px(x(mark))) y=(px(height - 6.0)) text-anchor="middle" { (axis.text(mark)) }
                }
                @for (nth, bar) in self.rows.iter().enumerate() {
                    @let top = row * nth as f64;
                    @let middle = if stacked { top + 29.0 } else { top + 14.0 };
                    g {
                        title { (bar.name) ": " (bar.text) }
                        @if stacked {
                            text.ink x="0" y=(px(top + 14.0)) { (bar.name) }
                        } @else {
                            text.ink x=(px(names - 10.0)) y=(px(middle + 4.5)) text-anchor="end" { (bar.name) }
                        }
                        rect.(colour(bar.colour)) x=(px(names)) y=(px(middle - 9.0)) height="18" rx="3"
                            width=(px((x(bar.value) - names).max(1.0))) {}
                        @if let Some([least, most]) = bar.range {
                            path.whisker d=(format!("M{} {}V{}M{0} {}H{}M{4} {1}V{2}", px(x(least)), px(middle - 5.0),
                                px(middle + 5.0), px(middle), px(x(most)))) {}
                        }
                        @if let Some(base) = bar.base {
                            path.base d=(format!("M{} {}V{}", px(x(base)), px(middle - 13.0), px(middle + 13.0))) {}
                        }
                        text.strong x=(px(size.width)) y=(px(middle + 4.5)) text-anchor="end" { (bar.text) }
                    }
                }
        };
        (height, drawing)
    }
}

/// A part of an image.
pub(super) struct Panel<'a> {
    title: &'a str,
    note: &'a str,
    height: f64,
    drawing: Markup,
}

impl<'a> From<Bars<'a>> for Panel<'a> {
    fn from(bars: Bars<'a>) -> Self {
        let (height, drawing) = bars.drawing(IMAGE);
        let Bars { title, note, .. } = bars;
        Self {
            title,
            note,
            height,
            drawing,
        }
    }
}

impl<'a> From<Lines<'a>> for Panel<'a> {
    fn from(lines: Lines<'a>) -> Self {
        let (height, drawing) = (IMAGE.height, lines.drawing(IMAGE));
        let Lines { title, note, .. } = lines;
        Self {
            title,
            note,
            height,
            drawing,
        }
    }
}

/// Plots as an image file: one below the other, with the style that they need and a background of their own.
pub(super) fn image<'a>(label: &str, panels: impl IntoIterator<Item = impl Into<Panel<'a>>>) -> Markup {
    let size = IMAGE;
    let (margin, heading) = (20.0, 44.0);
    let mut bottom = margin;
    let placed: Vec<(f64, Panel<'_>)> = panels
        .into_iter()
        .map(|panel| {
            let panel = panel.into();
            let top = bottom;
            bottom += heading + panel.height + margin;
            (top, panel)
        })
        .collect();
    let width = size.width + 2.0 * margin;
    html! {
        svg xmlns="http://www.w3.org/2000/svg" viewBox=(format!("0 0 {width} {bottom}")) width=(width) height=(px(bottom))
            role="img" aria-label=(label) font-family="system-ui, sans-serif" {
            style { (PreEscaped(PLOT_STYLE)) }
            rect width=(width) height=(px(bottom)) rx="10" style="fill: var(--card)" {}
            @for (top, panel) in &placed {
                text.strong x=(margin) y=(px(top + 16.0)) { (panel.title) }
                text x=(margin) y=(px(top + 34.0)) { (panel.note) }
                svg x=(margin) y=(px(top + heading)) width=(size.width) height=(px(panel.height)) { (panel.drawing) }
            }
        }
    }
}

/// A point of a line.
pub(super) struct Point {
    /// At least 1.
    pub(super) x: u64,
    pub(super) y: f64,
    pub(super) range: Option<[f64; 2]>,
    /// What it is, for people.
    pub(super) text: String,
}

/// A line from point to point.
pub(super) struct Line<'a> {
    pub(super) name: &'a str,
    pub(super) colour: usize,
    /// From left to right.
    pub(super) points: Vec<Point>,
}

/// Lines over something that grows by powers of ten.
pub(super) struct Lines<'a> {
    pub(super) title: &'a str,
    pub(super) note: &'a str,
    pub(super) series: Vec<Line<'a>>,
    /// Whether what they show grows by powers of ten too. Then the text of each point is beside it.
    pub(super) decades: bool,
}

impl Lines<'_> {
    fn drawing(&self, size: Size) -> Markup {
        let points = || self.series.iter().flat_map(|line| &line.points);
        let across = Decades::new(points().map(|point| point.x as f64));
        let heights = || points().flat_map(|point| [point.y, point.range.map_or(point.y, |range| range[1])]);
        let up = if self.decades {
            Scale::Decades(Decades::new(heights()))
        } else {
            Scale::Linear(Axis::new(heights().fold(0.0, f64::max), 5))
        };
        let names = 150.0;
        let mut plot = Plot::new(size, up.label_width(), 26.0);
        plot.width -= names;
        let x = |value: f64| plot.left + plot.width * across.share(value);
        let y = |value: f64| plot.bottom() - plot.height * up.share(value);
        html! {
            (up.horizontal_lines(plot))
            @for (mark, text) in across.marks() {
                text x=(px(x(mark))) y=(px(size.height - 6.0)) text-anchor="middle" { (text) }
            }
            @for line in &self.series {
                @let corners: Vec<String> =
                    line.points.iter().map(|point| format!("{},{}", px(x(point.x as f64)), px(y(point.y)))).collect();
                polyline.line points=(corners.join(" ")) style=(format!("stroke: var(--c{})", line.colour % COLOURS)) {}
                @for point in &line.points {
                    g {
                        title { (line.name) ", " (number(point.x)) ": " (point.text) }
                        @if let Some([least, most]) = point.range {
                            path.whisker d=(format!("M{} {}V{}", px(x(point.x as f64)), px(y(least)), px(y(most)))) {}
                        }
                        circle.(colour(line.colour)) cx=(px(x(point.x as f64))) cy=(px(y(point.y))) r="4" {}
                        @if self.decades {
                            text.ink x=(px(x(point.x as f64))) y=(px(y(point.y) - 11.0)) text-anchor="middle" { (point.text) }
                        }
                    }
                }
            }
            @for (line, height) in self.names(y) {
                text.ink x=(px(plot.left + plot.width + 14.0)) y=(px(height + 4.5)) { (line.name) }
            }
        }
    }

    /// Where the name of each line is: at its end, but below the name above it.
    fn names(&self, y: impl Fn(f64) -> f64) -> Vec<(&Line<'_>, f64)> {
        let ends = self
            .series
            .iter()
            .filter_map(|line| Some((line, y(line.points.last()?.y))));
        let mut named: Vec<(&Line<'_>, f64)> = ends.collect();
        named.sort_by(|(_, one), (_, other)| one.total_cmp(other));
        let mut lowest = f64::NEG_INFINITY;
        for (_, height) in &mut named {
            *height = height.max(lowest + 17.0);
            lowest = *height;
        }
        named
    }
}

/// Vertical columns side by side.
pub(super) struct Columns<'a> {
    pub(super) title: &'a str,
    pub(super) note: &'a str,
    /// What each is labelled with, and how high it is.
    pub(super) values: Vec<(String, u64)>,
}

impl Columns<'_> {
    pub(super) fn render(&self) -> Markup {
        html! {
            figure.card {
                figcaption { strong { (self.title) } span.soft { (self.note) } }
                @for size in [WIDE, NARROW] { (self.svg(size)) }
            }
        }
    }

    fn svg(&self, size: Size) -> Markup {
        let all: u64 = self.values.iter().map(|(_, value)| value).sum();
        let share = |value: u64| 100.0 * value as f64 / all.max(1) as f64;
        let most = self.values.iter().map(|(_, value)| share(*value)).fold(0.0, f64::max);
        let axis = Axis::new(most, 4);
        let plot = Plot::new(size, Scale::Linear(axis).label_width() + 8.0, 26.0);
        let step = plot.width / self.values.len().max(1) as f64;
        let skip = self.values.len().div_ceil(size.marks + 1).max(1);
        let label = format!("{} {}", self.title, self.note);
        html! {
            svg.(size.class) viewBox=(format!("0 0 {} {}", size.width, size.height)) role="img" aria-label=(label) {
                (Scale::Linear(axis).horizontal_lines(plot))
                @for (nth, (name, value)) in self.values.iter().enumerate() {
                    @let left = plot.left + step * nth as f64;
                    g {
                        title { (name) ": " (number(*value)) ", " (format!("{:.1}%", share(*value))) }
                        rect.f0 x=(px(left + step * 0.06)) width=(px(step * 0.88)) y=(px(plot.y(axis, share(*value))))
                            height=(px(plot.bottom() - plot.y(axis, share(*value)))) rx="2" {}
                        @if nth.is_multiple_of(skip) {
                            text x=(px(left + step / 2.0)) y=(px(size.height - 7.0)) text-anchor="middle" { (name) }
                        }
                    }
                }
            }
        }
    }
}

/// Where the columns of a plot are.
#[derive(Clone, Copy)]
struct Plot {
    left: f64,
    top: f64,
    width: f64,
    height: f64,
}

impl Plot {
    fn new(size: Size, left: f64, below: f64) -> Self {
        let (top, right) = (10.0, 14.0);
        Self {
            left,
            top,
            width: size.width - left - right,
            height: size.height - top - below,
        }
    }

    fn bottom(self) -> f64 {
        self.top + self.height
    }

    fn y(self, axis: Axis, value: f64) -> f64 {
        self.bottom() - self.height * value / axis.top
    }
}

/// An axis from 0 with round marks.
#[derive(Clone, Copy)]
struct Axis {
    step: f64,
    /// Marks above 0.
    count: u32,
    top: f64,
}

impl Axis {
    fn new(most: f64, marks: usize) -> Self {
        let rough = (most / marks as f64).max(f64::MIN_POSITIVE);
        let magnitude = 10_f64.powf(rough.log10().floor());
        let factors = [1.0, 2.0, 2.5, 5.0, 10.0];
        let factor = factors.into_iter().find(|factor| factor * magnitude >= rough);
        let step = if most > 0.0 {
            factor.unwrap_or(10.0) * magnitude
        } else {
            1.0
        };
        let covers = |count: &u32| f64::from(*count) * step >= most;
        let count = (1..100).find(covers).unwrap_or(100);
        let top = f64::from(count) * step;
        Self { step, count, top }
    }

    fn marks(self) -> impl Iterator<Item = f64> {
        (0..=self.count).map(move |nth| f64::from(nth) * self.step)
    }

    fn text(self, value: f64) -> String {
        if value >= 1e6 && self.step >= 1e4 {
            format!("{} M", trimmed(value / 1e6))
        } else if value >= 1e4 && self.step >= 1e2 {
            format!("{} k", trimmed(value / 1e3))
        } else {
            let text = trimmed(value);
            match text.split_at_checked(1) {
                Some((thousands, rest)) if rest.len() == 3 && value >= 1e3 => format!("{thousands},{rest}"),
                _ => text,
            }
        }
    }
}

/// An axis of powers of ten.
#[derive(Clone, Copy)]
struct Decades {
    first: i32,
    last: i32,
}

impl Decades {
    /// For values above 0.
    fn new(values: impl Iterator<Item = f64> + Clone) -> Self {
        let powers = values.map(f64::log10);
        let least = powers.clone().fold(f64::INFINITY, f64::min);
        let most = powers.fold(f64::NEG_INFINITY, f64::max);
        let first = least.floor() as i32;
        Self {
            first,
            last: (most.ceil() as i32).max(first + 1),
        }
    }

    /// Its marks, and their texts.
    fn marks(self) -> impl Iterator<Item = (f64, String)> {
        (self.first..=self.last).map(|power| {
            let mark = 10_f64.powi(power);
            let text = u32::try_from(power).map_or_else(|_| trimmed(mark), |power| number(10_u64.pow(power)));
            (mark, text)
        })
    }

    /// How far along the axis.
    fn share(self, value: f64) -> f64 {
        (value.log10() - f64::from(self.first)) / f64::from(self.last - self.first)
    }
}

/// An axis of either kind.
#[derive(Clone, Copy)]
enum Scale {
    Linear(Axis),
    Decades(Decades),
}

impl Scale {
    /// Its marks, and their texts.
    fn marks(self) -> Vec<(f64, String)> {
        match self {
            Self::Linear(axis) => axis.marks().map(|mark| (mark, axis.text(mark))).collect(),
            Self::Decades(axis) => axis.marks().collect(),
        }
    }

    fn share(self, value: f64) -> f64 {
        match self {
            Self::Linear(axis) => value / axis.top,
            Self::Decades(axis) => axis.share(value),
        }
    }

    fn label_width(self) -> f64 {
        let marks = self.marks();
        let longest = marks.iter().map(|(_, text)| text.chars().count()).max();
        longest.unwrap_or(1) as f64 * 7.8 + 12.0
    }

    fn horizontal_lines(self, plot: Plot) -> Markup {
        html! {
            @for (mark, text) in self.marks() {
                @let y = plot.bottom() - plot.height * self.share(mark);
                line.axis x1=(px(plot.left)) x2=(px(plot.left + plot.width)) y1=(px(y)) y2=(px(y)) {}
                text x=(px(plot.left - 8.0)) y=(px(y + 4.5)) text-anchor="end" { (text) }
            }
        }
    }
}

fn time_axis(plot: Plot, end_ms: u64, marks: usize) -> Markup {
    let axis = Axis::new(end_ms as f64 / 1_000.0, marks);
    let x = |second: f64| plot.left + plot.width * second * 1_000.0 / end_ms.max(1) as f64;
    html! {
        @for mark in axis.marks().filter(|mark| *mark * 1_000.0 <= end_ms as f64) {
            text x=(px(x(mark))) y=(px(plot.bottom() + 19.0)) text-anchor="middle" { (axis.text(mark)) " s" }
        }
    }
}

fn swatch(nth: usize) -> Markup {
    html! { svg viewBox="0 0 10 10" aria-hidden="true" { rect.(colour(nth)) width="10" height="10" rx="2" {} } }
}

fn colour(nth: usize) -> String {
    format!("f{}", nth % COLOURS)
}

/// Columns that are wide enough have a gap between them.
fn gapped(step: f64) -> f64 {
    if step > 4.0 { step - 1.0 } else { step }
}

/// A coordinate: a tenth of a unit is as fine as it shows.
fn px(value: f64) -> String {
    trimmed((value * 10.0).round() / 10.0)
}

fn trimmed(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn seconds(ms: u64) -> String {
    format!("{} s", trimmed(ms as f64 / 1_000.0))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(0.0, 4, &["0", "1"])]
    #[case(3.7, 4, &["0", "1", "2", "3", "4"])]
    #[case(0.9, 4, &["0", "0.25", "0.5", "0.75", "1"])]
    #[case(97_000.0, 4, &["0", "25 k", "50 k", "75 k", "100 k"])]
    #[case(1_900_000.0, 4, &["0", "500 k", "1 M", "1.5 M", "2 M"])]
    fn an_axis_has_round_marks_and_covers_everything(
        #[case] most: f64,
        #[case] marks: usize,
        #[case] expected: &[&str],
    ) {
        let axis = Axis::new(most, marks);
        let texts: Vec<String> = axis.marks().map(|mark| axis.text(mark)).collect();
        assert_eq!(texts, expected);
        assert!(axis.top >= most);
    }

    #[test]
    fn however_long_a_run_its_plot_stays_small_and_shows_every_packet() {
        let values: Vec<u64> = (0..36_000).map(|nth| nth % 7).collect();
        let all = number(values.iter().sum());
        let stack = Stack {
            title: "long",
            note: "packets",
            slice_ms: 100,
            series: vec![Series {
                name: "one",
                colour: 0,
                values,
            }],
        };
        let page = stack.render().into_string();
        assert!(page.len() < 100_000, "{} bytes", page.len());
        assert!(page.contains(&all), "the legend has no {all}");
    }

    /// A line with points over 1, 10, 100 and so on.
    fn line<'a>(name: &'a str, values: &[f64]) -> Line<'a> {
        let points = values.iter().zip(0..).map(|(&y, power)| Point {
            x: 10_u64.pow(power),
            y,
            range: Some([y, y * 2.0]),
            text: y.to_string(),
        });
        Line {
            name,
            colour: 1,
            points: points.collect(),
        }
    }

    #[rstest]
    #[case(&[1.0], &["1", "10"])]
    #[case(&[0.3, 244.5], &["0.1", "1", "10", "100", "1,000"])]
    #[case(&[10.0, 1_000.0], &["10", "100", "1,000"])]
    fn an_axis_of_powers_of_ten_covers_everything(#[case] values: &[f64], #[case] expected: &[&str]) {
        let axis = Decades::new(values.iter().copied());
        let texts: Vec<String> = axis.marks().map(|(_, text)| text).collect();
        assert_eq!(texts, expected);
        assert!(values.iter().all(|&value| (0.0..=1.0).contains(&axis.share(value))));
    }

    #[test]
    fn lines_that_end_beside_each_other_have_their_names_apart_and_in_order() {
        let lines = Lines {
            title: "",
            note: "",
            series: vec![
                line("lower", &[1.0, 5.0]),
                line("upper", &[1.0, 5.1]),
                line("far", &[1.0, 50.0]),
            ],
            decades: false,
        };
        let named = lines.names(|value| 200.0 - value);
        let order: Vec<&str> = named.iter().map(|(line, _)| line.name).collect();
        assert_eq!(order, ["far", "upper", "lower"]);
        assert!(named.windows(2).all(|pair| pair[1].1 - pair[0].1 >= 17.0));
    }

    /// HTML's parser closes none of SVG's elements by itself: one that is left open swallows those after it.
    #[test]
    fn every_element_of_a_plot_is_closed() {
        let bar = |value| Bar {
            name: "a bar".to_owned(),
            value,
            range: Some([value, value * 2.0]),
            base: Some(value),
            text: "1 ×".to_owned(),
            colour: 1,
        };
        let bars = Bars {
            title: "bars",
            note: "",
            rows: vec![bar(1.0), bar(0.0)],
        };
        let columns = Columns {
            title: "columns",
            note: "",
            values: vec![("1 ns".to_owned(), 3), ("2 ns".to_owned(), 0)],
        };
        let stack = Stack {
            title: "stack",
            note: "",
            slice_ms: 100,
            series: vec![Series {
                name: "one",
                colour: 0,
                values: vec![1, 2],
            }],
        };
        let rendered = bars.render();
        let lines = Lines {
            title: "lines",
            note: "",
            series: vec![line("a line", &[1.0, 5.0])],
            decades: true,
        };
        let image = image("all", [Panel::from(bars), Panel::from(lines)]);
        let page = [rendered, columns.render(), stack.render(), image]
            .map(PreEscaped::into_string)
            .concat();
        for element in [
            "svg", "g", "rect", "path", "line", "polyline", "circle", "text", "title",
        ] {
            let opened = page.matches(&format!("<{element} ")).count() + page.matches(&format!("<{element}>")).count();
            assert_eq!(
                opened,
                page.matches(&format!("</{element}>")).count(),
                "{element}: {page}"
            );
            assert!(opened > 0, "{element}");
        }
    }
}
