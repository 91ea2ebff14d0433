//! Reading single values, whatever they come from, and keeping the faults.

use std::{
    collections::BTreeMap,
    ops::{Range, RangeInclusive},
    path::{Path, PathBuf},
    str::FromStr,
};

use toml::de::{DeTable, DeValue};

use super::{Fault, KEYS, Place, Sources, flag, variable};

/// How alike two keys must be for one to be suggested for the other.
const ALIKE: f64 = 0.7;

/// Variables of this program that are no key's.
const OTHER_VARIABLES: [&str; 2] = ["RELAY_CONFIG", "RELAY_GRANT"];

/// A value as it was written.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Raw {
    /// From a flag or the environment: any kind, as text.
    Loose(String),
    /// A string of the file.
    Text(String),
    /// An integer of the file.
    Integer(i64),
    /// A boolean of the file.
    Boolean(bool),
    /// A list of the file.
    List(Vec<Raw>),
    /// A table in a list of the file.
    Table(Vec<(String, Raw)>),
    /// Something else, by its TOML name.
    Other(&'static str),
}

impl Raw {
    fn of(value: &DeValue<'_>) -> Self {
        match value {
            DeValue::String(text) => Self::Text(text.to_string()),
            DeValue::Integer(integer) => i64::from_str_radix(integer.as_str(), integer.radix())
                .map_or(Self::Other("large integer"), Self::Integer),
            DeValue::Boolean(boolean) => Self::Boolean(*boolean),
            DeValue::Array(items) => Self::List(items.iter().map(|item| Self::of(item.get_ref())).collect()),
            DeValue::Table(table) => Self::Table(
                table
                    .iter()
                    .map(|(name, value)| (name.get_ref().to_string(), Self::of(value.get_ref())))
                    .collect(),
            ),
            other => Self::Other(other.type_str()),
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::Loose(_) | Self::Text(_) => "a string",
            Self::Integer(_) => "an integer",
            Self::Boolean(_) => "a boolean",
            Self::List(_) => "a list",
            Self::Table(_) => "a table",
            Self::Other(kind) => kind,
        }
    }

    pub(super) fn text(&self) -> Result<String, String> {
        match self {
            Self::Loose(text) | Self::Text(text) if !text.is_empty() => Ok(text.clone()),
            Self::Loose(_) | Self::Text(_) => Err("is empty".to_owned()),
            other => Err(format!("is {}; expected a string", other.kind())),
        }
    }

    pub(super) fn path(&self) -> Result<PathBuf, String> {
        let path = PathBuf::from(self.text()?);
        if path.is_absolute() {
            return Ok(path);
        }
        Err(format!("is \"{}\"; expected an absolute path", path.display()))
    }

    pub(super) fn boolean(&self) -> Result<bool, String> {
        match self {
            Self::Boolean(boolean) => Ok(*boolean),
            Self::Loose(text) if text == "true" || text == "1" => Ok(true),
            Self::Loose(text) if text == "false" || text == "0" => Ok(false),
            Self::Loose(text) => Err(format!("is \"{text}\"; expected true or false")),
            other => Err(format!("is {}; expected true or false", other.kind())),
        }
    }

    pub(super) fn integer(&self, range: RangeInclusive<u32>) -> Result<u32, String> {
        let expected = || format!("expected an integer from {} to {}", range.start(), range.end());
        let number = match self {
            Self::Integer(number) => *number,
            Self::Loose(text) => text
                .replace('_', "")
                .parse()
                .map_err(|_| format!("is \"{text}\"; {}", expected()))?,
            other => return Err(format!("is {}; {}", other.kind(), expected())),
        };
        match u32::try_from(number) {
            Ok(fitting) if range.contains(&fitting) => Ok(fitting),
            _ => Err(format!("is {number}; {}", expected())),
        }
    }

    pub(super) fn one_of<T: Clone>(&self, choices: &[(&str, T)]) -> Result<T, String> {
        let text = self.text()?;
        if let Some((_, value)) = choices.iter().find(|(name, _)| *name == text) {
            return Ok(value.clone());
        }
        let names: Vec<String> = choices.iter().map(|(name, _)| format!("\"{name}\"")).collect();
        Err(format!("is \"{text}\"; expected {}", names.join(" or ")))
    }

    /// The values of a table that has no other keys than these.
    pub(super) fn table(&self, keys: &[&str]) -> Result<BTreeMap<&str, &Self>, String> {
        let Self::Table(entries) = self else {
            return Err(format!("is {}; expected a table, `[[…]]`", self.kind()));
        };
        if let Some((unknown, _)) = entries.iter().find(|(name, _)| !keys.contains(&name.as_str())) {
            return Err(format!(
                "has an unknown key `{unknown}`; there are: {}",
                keys.join(", ")
            ));
        }
        Ok(entries.iter().map(|(name, value)| (name.as_str(), value)).collect())
    }

    fn items(&self) -> Result<Vec<Self>, String> {
        match self {
            Self::List(items) => Ok(items.clone()),
            Self::Loose(text) => Ok(text
                .split(',')
                .map(str::trim)
                .filter(|item| !item.is_empty())
                .map(|item| Self::Loose(item.into()))
                .collect()),
            other => Err(format!("is {}; expected a list", other.kind())),
        }
    }
}

/// Reads a value that parses from text; `expected` says what that looks like.
pub(super) fn parsed<T: FromStr>(expected: &'static str) -> impl Fn(&Raw) -> Result<T, String> {
    move |raw| {
        let text = raw.text()?;
        text.parse().map_err(|_| format!("is \"{text}\"; expected {expected}"))
    }
}

/// Reads keys from all sources and gathers the faults.
pub(super) struct Reader<'a> {
    sources: &'a Sources,
    file: Option<(&'a Path, &'a str)>,
    /// Keys of the file: where each is, and its value.
    found: Vec<(String, Range<usize>, Raw)>,
    pub(super) faults: Vec<Fault>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(sources: &'a Sources, file: Option<(&'a Path, &'a str)>) -> Self {
        let mut reader = Self {
            sources,
            file,
            found: Vec::new(),
            faults: Vec::new(),
        };
        if let Some((_, text)) = file {
            let (table, errors) = DeTable::parse_recoverable(text);
            for error in errors {
                let place = reader.place_at(error.span().unwrap_or(0..0));
                reader.faults.push(Fault {
                    place,
                    message: error.message().to_owned(),
                });
            }
            reader.walk("", table.get_ref());
        }
        reader.check_names();
        reader
    }

    fn walk(&mut self, prefix: &str, table: &DeTable<'_>) {
        for (name, value) in table {
            let key = format!("{prefix}{}", name.get_ref());
            match value.get_ref() {
                DeValue::Table(inner) if prefix.is_empty() && is_section(&key) => self.walk(&format!("{key}."), inner),
                other => self.found.push((key, name.span(), Raw::of(other))),
            }
        }
    }

    /// Variables that look like this program's but are not. Not faults: surroundings add such by themselves, as
    /// Kubernetes does for a service named `relay`.
    pub(super) fn unknown_variables(&self) -> Vec<Fault> {
        let known: Vec<_> = KEYS.iter().map(|(key, _)| variable(key)).collect();
        let unknown = self.sources.environment.keys().filter(|name| {
            name.starts_with("RELAY_") && !OTHER_VARIABLES.contains(&name.as_str()) && !known.contains(name)
        });
        unknown
            .map(|name| Fault {
                place: Place::Environment(name.clone()),
                message: format!(
                    "not used{}",
                    alike(name, known.iter().map(String::as_str))
                        .map_or_else(String::new, |known| format!("; did you mean {known}?"))
                ),
            })
            .collect()
    }

    /// Unknown keys, with the known ones that they look like.
    fn check_names(&mut self) {
        for (key, span, _) in self.found.clone() {
            if !KEYS.iter().any(|(known, _)| *known == key) {
                let place = self.place_at(span);
                self.faults.push(Fault {
                    place,
                    message: format!("unknown key `{key}`{}", suggestion(&key)),
                });
            }
        }
    }

    pub(super) fn is_given(&self, key: &str) -> bool {
        self.place(key) != Place::Default
    }

    /// Where the value of a key comes from.
    pub(super) fn place(&self, key: &str) -> Place {
        if self.sources.flags.contains_key(key) {
            return Place::Flag(flag(key));
        }
        if self.sources.environment.contains_key(&variable(key)) {
            return Place::Environment(variable(key));
        }
        let found = self.found.iter().find(|(found, _, _)| found == key);
        found.map_or(Place::Default, |(_, span, _)| self.place_at(span.clone()))
    }

    fn place_at(&self, span: Range<usize>) -> Place {
        let Some((path, text)) = self.file else {
            return Place::Default;
        };
        let before = text.get(..span.start).unwrap_or(text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Place::File {
            path: path.to_owned(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        }
    }

    fn raw(&self, key: &str) -> Option<Raw> {
        if let Some(text) = self.sources.flags.get(key) {
            return Some(Raw::Loose(text.clone()));
        }
        if let Some(text) = self.sources.environment.get(&variable(key)) {
            return Some(Raw::Loose(text.clone()));
        }
        self.found
            .iter()
            .find(|(found, _, _)| found == key)
            .map(|(_, _, raw)| raw.clone())
    }

    /// The value of a key: `None` if it is not given, or wrong, which is a fault then.
    pub(super) fn take<T>(&mut self, key: &str, parse: impl Fn(&Raw) -> Result<T, String>) -> Option<T> {
        match parse(&self.raw(key)?) {
            Ok(value) => Some(value),
            Err(message) => {
                self.fault(key, format!("`{key}` {message}"));
                None
            }
        }
    }

    /// The values of a key that is a list; each wrong item is a fault.
    pub(super) fn take_list<T>(&mut self, key: &str, parse: impl Fn(&Raw) -> Result<T, String>) -> Option<Vec<T>> {
        let items = self.take(key, Raw::items)?;
        let mut values = Vec::with_capacity(items.len());
        for item in items {
            match parse(&item) {
                Ok(value) => values.push(value),
                Err(message) => self.fault(key, format!("an item of `{key}` {message}")),
            }
        }
        Some(values)
    }

    /// The values of a key that is a list, or one value alone.
    pub(super) fn take_list_or_one<T>(
        &mut self,
        key: &str,
        parse: impl Fn(&Raw) -> Result<T, String>,
    ) -> Option<Vec<T>> {
        match self.raw(key) {
            Some(Raw::List(_) | Raw::Loose(_)) => self.take_list(key, parse),
            _ => self.take(key, parse).map(|one| vec![one]),
        }
    }

    /// Whether something is wrong with the value of this key.
    pub(super) fn has_fault(&self, key: &str) -> bool {
        let place = self.place(key);
        self.faults.iter().any(|fault| fault.place == place)
    }

    /// Adds a fault at the place of a key.
    pub(super) fn fault(&mut self, key: &str, message: String) {
        self.faults.push(Fault {
            place: self.place(key),
            message,
        });
    }
}

fn is_section(name: &str) -> bool {
    KEYS.iter()
        .any(|(key, _)| key.split_once('.').is_some_and(|(section, _)| section == name))
}

fn suggestion(key: &str) -> String {
    match alike(key, KEYS.iter().map(|(known, _)| *known)) {
        Some(known) => format!("; did you mean `{known}`?"),
        None => format!("; there are: {}", KEYS.map(|(key, _)| key).join(", ")),
    }
}

/// The known name that this one was probably meant to be.
fn alike<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let likeness = known.map(|known| (strsim::jaro_winkler(name, known), known));
    let best = likeness.max_by(|(a, _), (b, _)| a.total_cmp(b));
    best.filter(|(likeness, _)| *likeness > ALIKE).map(|(_, known)| known)
}
