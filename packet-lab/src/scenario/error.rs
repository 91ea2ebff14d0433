//! What is wrong with a scenario's file, and where.

use std::{
    fmt, io,
    ops::Range,
    path::{Path, PathBuf},
};

use toml::de::{DeTable, DeValue};

use super::names::ALIKE;

/// Why a scenario cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ScenarioError {
    /// There is nothing.
    #[error("reading the scenario {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is none.
    #[error("there is no scenario in {}: a scenario is a folder with a scenario.toml in it", .0.display())]
    None(PathBuf),
    /// The file is faulty.
    #[error("{}", Faults(.0))]
    Faulty(Vec<Fault>),
}

/// Something wrong in a file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Fault {
    /// The file.
    pub path: PathBuf,
    /// Line, from 1.
    pub line: usize,
    /// Column, from 1, in characters.
    pub column: usize,
    /// The line.
    pub quoted: String,
    /// How many characters of it are meant.
    pub width: usize,
    /// What is wrong.
    pub message: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { line, column, .. } = self;
        writeln!(f, "{}:{line}:{column}: {}", self.path.display(), self.message)?;
        let margin = " ".repeat(line.to_string().len());
        writeln!(f, "{margin} |")?;
        writeln!(f, "{line} | {}", self.quoted)?;
        let carets = "^".repeat(self.width.max(1));
        write!(f, "{margin} | {}{carets}", " ".repeat(column - 1))
    }
}

struct Faults<'a>(&'a [Fault]);

impl fmt::Display for Faults<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (nth, fault) in self.0.iter().enumerate() {
            if nth > 0 {
                f.write_str("\n\n")?;
            }
            write!(f, "{fault}")?;
        }
        Ok(())
    }
}

/// One step into a document.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place<'a> {
    Key(&'a str),
    Item(usize),
}

impl<'a> From<&'a str> for Place<'a> {
    fn from(key: &'a str) -> Self {
        Self::Key(key)
    }
}

impl From<usize> for Place<'_> {
    fn from(item: usize) -> Self {
        Self::Item(item)
    }
}

/// The text of a scenario, and where things are in it.
pub(super) struct Source<'a> {
    path: &'a Path,
    text: &'a str,
}

impl<'a> Source<'a> {
    pub(super) const fn new(path: &'a Path, text: &'a str) -> Self {
        Self { path, text }
    }

    /// A fault at what the path leads to, or at the nearest thing around it that is written down.
    pub(super) fn fault(&self, within: &[Place<'_>], message: impl fmt::Display) -> Fault {
        let span = DeTable::parse(self.text).map_or(0..0, |table| {
            let whole = table.span();
            find(table.get_ref(), within).unwrap_or(whole.start..whole.start)
        });
        self.fault_at(span, message)
    }

    pub(super) fn fault_at(&self, span: Range<usize>, message: impl fmt::Display) -> Fault {
        let start = span.start.min(self.text.len());
        let before = self.text.get(..start).unwrap_or_default();
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let rest = self.text.get(line_start..).unwrap_or_default();
        let quoted = rest.lines().next().unwrap_or_default().trim_end();
        let column = before[line_start..].chars().count() + 1;
        let meant = self.text.get(start..span.end.min(self.text.len())).unwrap_or_default();
        let meant = meant.lines().next().unwrap_or_default().chars().count();
        let left = (quoted.chars().count() + 1).saturating_sub(column);
        Fault {
            path: self.path.to_owned(),
            line: before.matches('\n').count() + 1,
            column,
            quoted: quoted.to_owned(),
            width: meant.min(left),
            message: message.to_string(),
        }
    }
}

fn find(table: &DeTable<'_>, within: &[Place<'_>]) -> Option<Range<usize>> {
    let (first, rest) = within.split_first()?;
    let Place::Key(key) = first else { return None };
    let (name, value) = table.iter().find(|(name, _)| name.get_ref() == key)?;
    Some(find_in(value.get_ref(), rest).unwrap_or(if rest.is_empty() { value.span() } else { name.span() }))
}

fn find_in(value: &DeValue<'_>, within: &[Place<'_>]) -> Option<Range<usize>> {
    match (value, within.split_first()?) {
        (DeValue::Table(table), _) => find(table, within),
        (DeValue::Array(items), (Place::Item(item), rest)) => {
            let item = items.get(*item)?;
            Some(find_in(item.get_ref(), rest).unwrap_or(item.span()))
        }
        _ => None,
    }
}

/// A message of the parsers, with what to write instead where that can be told.
pub(super) fn helpful(message: &str) -> String {
    match message {
        "invalid socket address syntax" => {
            "not an address and port; write \"192.0.2.1:4500\" or \"[2001:db8::1]:4500\"".to_owned()
        }
        "invalid IP address syntax" => "not an address or prefix; write \"192.0.2.1\" or \"203.0.113.0/24\"".to_owned(),
        _ => match meant(message) {
            Some(meant) => format!("{message}; did you mean `{meant}`?"),
            None => message.to_owned(),
        },
    }
}

/// Of "unknown field `x`, expected one of `a`, `b`" the name that is most like the unknown one, if any is.
fn meant(message: &str) -> Option<&str> {
    if !message.starts_with("unknown ") {
        return None;
    }
    let mut names = message.split('`').skip(1).step_by(2);
    let unknown = names.next()?;
    let alike = names.map(|name| (name, strsim::jaro_winkler(unknown, name)));
    let (name, likeness) = alike.max_by(|a, b| a.1.total_cmp(&b.1))?;
    (likeness > ALIKE).then_some(name)
}
