//! Reports for people: one page of HTML each, complete in itself. It loads nothing, says so in its content security
//! policy, and works without scripts; what a script adds is searching. Everything that comes from packets, files or
//! names is escaped by the templates.

#![expect(
    clippy::cast_precision_loss,
    reason = "what is drawn or rounded for people needs no 53 bits"
)]

mod bench;
mod chart;
mod growth;
mod packet;
mod page;
mod run;
mod simulation;
mod throughput;

use std::{fs, io, path::Path};

pub use self::{
    bench::{Compared, bench},
    growth::growth,
    run::run,
    simulation::simulation,
    throughput::throughput,
};

/// A report that could not be written.
#[derive(Debug, thiserror::Error)]
#[error("writing the report {path}: {source}")]
pub struct WriteError {
    path: String,
    source: io::Error,
}

/// Writes a page to a file.
///
/// # Errors
/// If the file cannot be written.
pub fn write(path: &Path, page: &str) -> Result<(), WriteError> {
    fs::write(path, page).map_err(|source| WriteError {
        path: path.display().to_string(),
        source,
    })
}
