//! What the commands for captures have in common: which relay a capture is of.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use lumenlink_relay::{
    config::{Config, Sources},
    grant::Grant,
};
use packet_lab::{
    World,
    capture::CaptureError,
    replay::{Cast, CastError, Known, Survey, cast::read_grants, select::addresses_of},
};

use super::{Exit, progress::Progress};

#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "The relay of the capture")]
pub struct RelayArgs {
    /// The relay's configuration: listeners, egress, limits
    #[arg(long, value_name = "relay.toml")]
    config: Option<PathBuf>,
    #[command(flatten)]
    keys: KeyArgs,
    /// Destination of users whose own the capture does not show, one of each family [default: 198.51.100.7:5000,
    /// [2001:db8:d::7]:5000]
    #[arg(long, value_name = "ADDRESS:PORT", value_delimiter = ',')]
    to: Vec<SocketAddr>,
    /// MAC address of its interface in the capture [default: where most packets to its addresses were sent]
    #[arg(long, value_name = "MAC", value_parser = mac)]
    mac: Option<[u8; 6]>,
}

/// What it takes to read a capture's tokens.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "The relay of the capture")]
pub struct KeyArgs {
    /// Its grants, a JSON object or `lumen1:` line each, as `lumenlink-relay user import --grants` writes them
    #[arg(long, value_name = "FILE")]
    grants: Option<PathBuf>,
    /// Where it listens [default: as --config says, or wherever the capture sends to port 4500]
    #[arg(long, value_name = "ADDRESS:PORT", value_delimiter = ',')]
    pub listen: Vec<SocketAddr>,
}

impl KeyArgs {
    pub fn grants(&self) -> Result<Vec<Grant>, (Exit, anyhow::Error)> {
        let grants = self.grants.as_deref().map(read_grants).transpose();
        Ok(grants.map_err(|error| (Exit::Usage, error.into()))?.unwrap_or_default())
    }
}

pub fn mac(text: &str) -> Result<[u8; 6], String> {
    let wrong = || "write 6 bytes in hex, like 02:00:00:00:00:01".to_owned();
    let bytes: Option<Vec<u8>> = text
        .split([':', '-'])
        .map(|byte| (byte.len() == 2).then(|| u8::from_str_radix(byte, 16).ok()).flatten())
        .collect();
    bytes.and_then(|bytes| bytes.try_into().ok()).ok_or_else(wrong)
}

impl RelayArgs {
    /// Everything that was said of the relay.
    pub fn known(&self, make_up_users: bool) -> Result<Known, (Exit, anyhow::Error)> {
        let usage = |error| (Exit::Usage, error);
        Ok(Known {
            config: self
                .config
                .as_deref()
                .map(|path| self.load(path))
                .transpose()
                .map_err(usage)?,
            grants: self.keys.grants()?,
            listen: self.keys.listen.clone(),
            to: self.to.clone(),
            mac: self.mac,
            make_up_users,
        })
    }

    /// The relay's own flags and environment are not this process's; only where it listens may be said here too, for
    /// a configuration that leaves it to the interface.
    fn load(&self, path: &Path) -> anyhow::Result<Config> {
        let listen: Vec<String> = self.keys.listen.iter().map(ToString::to_string).collect();
        let mut flags = BTreeMap::new();
        if !listen.is_empty() {
            flags.insert("listen", listen.join(","));
        }
        let sources = Sources {
            flags,
            file: Some(path.to_owned()),
            ..Sources::default()
        };
        let checked = Config::load(&sources).with_context(|| {
            format!(
                "{} (where it leaves the listeners to the interface, add --listen)",
                path.display()
            )
        })?;
        Ok(checked.config)
    }

    /// A world that is known, for a capture of a relay whose MAC address may be another.
    pub fn in_world(&self, mut world: World, survey: &Survey) -> Cast {
        let shown = survey.mac_of(&addresses_of(&world.listeners, &world.egress));
        world.mac = self.mac.or(shown).unwrap_or(world.mac);
        Cast {
            captured_mac: world.mac,
            world,
            assumed: Vec::new(),
        }
    }

    /// Looks through the capture and makes its world.
    pub fn cast(&self, path: &Path, make_up_users: bool) -> Result<(Survey, Cast, Known), (Exit, anyhow::Error)> {
        let known = self.known(make_up_users)?;
        let (survey, ended_by) = survey(path)?;
        let cast = known.cast(&survey).map_err(|error| {
            let error = match (error, ended_by) {
                (error @ CastError::NoListener, Some(ended_by)) => anyhow::anyhow!("{ended_by}; up to there {error}"),
                (error, _) => error.into(),
            };
            (Exit::Usage, error)
        })?;
        Ok((survey, cast, known))
    }
}

/// Fails for `-`.
pub fn refuse_stdin(path: &Path) -> Result<(), (Exit, anyhow::Error)> {
    if path != Path::new("-") {
        return Ok(());
    }
    let why = anyhow::anyhow!("the capture is read twice, which standard input cannot be: write it to a file");
    Err((Exit::Usage, why))
}

/// Looks through a capture. How it ends is left to whoever reads it again.
pub fn survey(path: &Path) -> Result<(Survey, Option<CaptureError>), (Exit, anyhow::Error)> {
    refuse_stdin(path)?;
    let mut progress = Progress::new("looking through the capture");
    let survey = Survey::of(path, &mut |bytes, of_bytes| progress.at(bytes, of_bytes, ""));
    progress.finish();
    survey.map_err(|error| (Exit::Usage, error.into()))
}

/// Says on standard error what had to be assumed.
pub fn say_assumed(cast: &Cast) {
    for assumed in &cast.assumed {
        eprintln!("note: {assumed}");
    }
}
