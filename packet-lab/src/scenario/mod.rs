//! Scenarios: files that say who is there, what is sent and what must become of it.
//!
//! [`Scenario::load`] reads one and finds all that is wrong with it; [`run()`] runs it in [backends](BackendKind), in
//! step where there are several, and tells what came of it as an [`Outcome`]. What every packet did is kept in a
//! [`snapshot`] beside the file, one for all backends.

mod describe;
mod error;
mod expect;
mod file;
mod junit;
mod load;
mod names;
pub mod outcome;
mod relay;
mod run;
mod send;
pub mod snapshot;
mod value;
mod words;

pub use error::{Fault, ScenarioError};
pub use file::*;
pub use junit::junit;
pub use load::{FILE_NAME, LoadedScenarios, Scenario, discover};
pub use names::{DirectionName, ReasonName, UnknownName, VerdictName, find as find_name};
pub use outcome::{Kept, Outcome};
pub(crate) use run::rehearse;
pub use run::{LISTED_PACKETS, Options, backend, misfit, missing, run};
pub use value::{Bytes, Key, Mac, Number, Ports, Time, ValueError};

/// The JSON schema of the format, from its types.
#[must_use]
pub fn schema() -> serde_json::Value {
    schemars::schema_for!(File).to_value()
}

/// A scenario's file as TOML, with the line that names its schema to editors.
///
/// # Errors
/// If a value has no place in TOML, such as a number beyond 2^63 - 1.
pub fn to_toml(file: &File) -> Result<String, toml::ser::Error> {
    Ok(format!("#:schema ../../schema.json\n{}", toml::to_string(file)?))
}
