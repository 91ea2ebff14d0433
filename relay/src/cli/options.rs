//! Options that several commands have.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, error::Error};

use super::CliError;
use crate::{
    admin::client::Client,
    config::{Config, KEYS, Sources, flag, variable},
};

/// The configuration: its file, and a flag for every key of it.
#[derive(Clone, Debug, Default)]
pub struct Options {
    file: Option<PathBuf>,
    flags: BTreeMap<&'static str, String>,
}

impl Options {
    /// These flags, the environment and the file.
    pub fn sources(&self) -> Sources {
        Sources::of_process(self.flags.clone(), self.file.clone())
    }
}

impl FromArgMatches for Options {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let mut options = Self::default();
        options.update_from_arg_matches(matches)?;
        Ok(options)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        self.file = matches.get_one::<PathBuf>("config").cloned();
        for (key, _) in KEYS {
            if let Some(value) = matches.get_one::<String>(key) {
                self.flags.insert(key, value.clone());
            }
        }
        Ok(())
    }
}

impl Args for Options {
    fn augment_args(command: Command) -> Command {
        let file = Arg::new("config")
            .long("config")
            .value_name("FILE")
            .value_parser(clap::value_parser!(PathBuf))
            .help(
                "Read relay.toml from FILE [default: /etc/lumenlink/relay.toml, if it is there] [env: RELAY_CONFIG=]",
            );
        KEYS.iter().fold(command.arg(file), |command, (key, help)| {
            command.arg(
                Arg::new(*key)
                    .long(flag(key).trim_start_matches('-').to_owned())
                    .value_name("VALUE")
                    .action(ArgAction::Set)
                    .allow_hyphen_values(false)
                    .help_heading("Configuration, before the environment and the file")
                    .help(format!("{help} [env: {}=]", variable(key))),
            )
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

/// Which running relay to talk to, and how to print what it says.
#[derive(Clone, Debug, Args)]
pub struct Remote {
    /// The relay's admin socket [default: the configuration's `admin`] [env: RELAY_ADMIN=]
    #[arg(long, value_name = "SOCKET")]
    admin: Option<PathBuf>,
    /// Read the socket's path from this relay.toml [default: /etc/lumenlink/relay.toml, if it is there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

impl Remote {
    /// The relay.
    pub fn client(&self) -> Result<Client, CliError> {
        if let Some(path) = &self.admin {
            return Ok(Client::new(path));
        }
        let sources = Sources::of_process(BTreeMap::new(), self.config.clone());
        Ok(Client::new(&Config::admin(&sources)?))
    }
}

/// A duration as people write it, at least a millisecond.
pub fn duration(text: &str) -> Result<Duration, String> {
    let parsed = text.parse::<jiff::SignedDuration>().ok();
    parsed
        .and_then(|duration| Duration::try_from(duration).ok())
        .filter(|duration| *duration >= Duration::from_millis(1))
        .ok_or_else(|| "write a duration like 1s or 200ms, at least 1ms".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_as_people_do() {
        assert_eq!(duration("200ms").unwrap(), Duration::from_millis(200));
        assert_eq!(duration("1s").unwrap(), Duration::from_secs(1));
        assert!(duration("0s").is_err() && duration("-1s").is_err() && duration("soon").is_err());
    }
}
