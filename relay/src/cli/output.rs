//! What commands print.

use std::io::{self, Write as _};

use comfy_table::{Table, presets::NOTHING};
use serde::Serialize;

use super::CliError;

/// Prints a line on standard output. A reader that has gone away, such as `head`, is no error.
pub fn line(text: &str) -> Result<(), CliError> {
    match writeln!(io::stdout(), "{text}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(CliError::other(error)),
        _ => Ok(()),
    }
}

/// Prints one JSON value, for people and programs.
pub fn json(value: &impl Serialize) -> Result<(), CliError> {
    line(&serde_json::to_string_pretty(value).map_err(CliError::other)?)
}

/// Prints JSON values, one a line.
pub fn json_lines(values: &[impl Serialize]) -> Result<(), CliError> {
    for value in values {
        line(&serde_json::to_string(value).map_err(CliError::other)?)?;
    }
    Ok(())
}

/// A table of columns, without lines.
pub fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(header).add_rows(rows);
    let text = table.to_string();
    text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}
