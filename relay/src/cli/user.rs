//! `user`: the users of the running relay.

use std::{
    fs::{self, OpenOptions},
    io::{self, Read as _, Write as _},
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use jiff::Timestamp;
use serde_json::Value;

use super::{CliError, options::Remote, output};
use crate::{
    admin::api::{Added, ImportOptions, UserView},
    grant::Grant,
    users::NewUser,
};

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Add a user, or renew its grant; prints the grant
    #[command(
        after_help = "Example:\n  lumenlink-relay user add 42 --to 198.51.100.7:5000 --rate 5000 --expires-in 7d\n\n\
                            The grant is one line, a secret: give it to the client, for `lumenlink-relay connect`. A \
                            user that is there already gets a new grant in its slot, and the old grant stops at once."
    )]
    Add(AddArgs),
    /// List all users
    List(ListArgs),
    /// Show one user
    Show(ShowArgs),
    /// Remove a user; its grant stops at once
    Remove(RemoveArgs),
    /// Add users from a file, one JSON object a line: all of them, or none
    #[command(
        after_help = "Each line is like\n  {\"id\": 42, \"to\": \"198.51.100.7:5000\", \"rate\": 5000, \"burst\": 500, \
                            \"down_rate\": 2000, \"down_burst\": 200, \"expires_in\": \"7d\"}\nwith `id` and `to` required; instead of `expires_in` there can \
                            be `expires_at`, like \"2027-01-01T00:00:00Z\"."
    )]
    Import(ImportArgs),
}

#[derive(Debug, clap::Args)]
pub struct AddArgs {
    /// The user's number, 0 to 2^64 − 1; yours to choose
    id: u64,
    /// Where its packets go
    #[arg(long, value_name = "ADDRESS:PORT")]
    to: SocketAddr,
    /// Packets per second [default: the relay's limits.packets_per_second]
    #[arg(long, value_name = "PPS")]
    rate: Option<u32>,
    /// Packets that may come at once [default: the relay's limits.burst]
    #[arg(long, value_name = "N")]
    burst: Option<u32>,
    /// Packets per second from its destination [default: as many as come]
    #[arg(long, value_name = "PPS")]
    down_rate: Option<u32>,
    /// Packets that may come from there at once [default: the relay's limits.burst]
    #[arg(long, value_name = "N", requires = "down_rate")]
    down_burst: Option<u32>,
    /// End the grant after so long, like 90s, 1h or 7d [default: never]
    #[arg(long, value_name = "DURATION")]
    expires_in: Option<String>,
    /// End the grant then, like 2027-01-01T00:00:00Z
    #[arg(long, value_name = "TIME", conflicts_with = "expires_in")]
    expires_at: Option<Timestamp>,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, clap::Args)]
pub struct ListArgs {
    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, clap::Args)]
pub struct ShowArgs {
    /// The user's number
    id: u64,
    /// Print its grant again, instead
    #[arg(long)]
    grant: bool,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, clap::Args)]
pub struct RemoveArgs {
    /// The user's number
    id: u64,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, clap::Args)]
pub struct ImportArgs {
    /// The file, or `-` for standard input
    file: PathBuf,
    /// Renew the grants of users that are there already, instead of refusing the import
    #[arg(long)]
    renew: bool,
    /// Write the grants to this file, one JSON object a line, readable by you alone [default: none; with --json, to
    /// standard output]
    #[arg(long, value_name = "FILE")]
    grants: Option<PathBuf>,
    #[command(flatten)]
    remote: Remote,
}

pub async fn execute(command: Command) -> Result<ExitCode, CliError> {
    match command {
        Command::Add(args) => add(args).await?,
        Command::List(args) => list(&args).await?,
        Command::Show(args) => show(&args).await?,
        Command::Remove(args) => remove(&args).await?,
        Command::Import(args) => import(&args).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn add(args: AddArgs) -> Result<(), CliError> {
    let new = NewUser {
        id: args.id,
        to: args.to,
        rate: args.rate,
        burst: args.burst,
        down_rate: args.down_rate,
        down_burst: args.down_burst,
        expires_at: args.expires_at,
        expires_in: args.expires_in,
    };
    let added: Added = args.remote.client()?.post("/v1/users", &new).await?;
    if added.renewed {
        eprintln!(
            "user {} was there: its grant is renewed, and the old one has stopped",
            args.id
        );
    }
    print_grant(&added.grant, args.remote.json)
}

fn print_grant(grant: &Grant, json: bool) -> Result<(), CliError> {
    if json {
        output::json_lines(std::slice::from_ref(grant))
    } else {
        output::line(&grant.to_line())
    }
}

async fn list(args: &ListArgs) -> Result<(), CliError> {
    let users: Vec<UserView> = args.remote.client()?.get("/v1/users").await?;
    if args.remote.json {
        return output::json(&users);
    }
    let header = [
        "USER",
        "TO",
        "RATE",
        "BURST",
        "DOWN RATE",
        "EXPIRES",
        "CLIENT",
        "UPLINK",
        "DOWNLINK",
    ];
    let rows = users.iter().map(|user| {
        vec![
            user.id.to_string(),
            format!("{}{}", user.to, if user.resolved { "" } else { " (unresolved)" }),
            user.rate.to_string(),
            user.burst.to_string(),
            or_none(user.down_rate),
            expiry(user),
            or_none(user.client),
            user.uplink.packets.to_string(),
            user.downlink.packets.to_string(),
        ]
    });
    output::line(&output::table(&header, rows))
}

fn or_none(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "–".to_owned(), |value| value.to_string())
}

fn down_limit(user: &UserView) -> String {
    match (user.down_rate, user.down_burst) {
        (Some(rate), Some(burst)) => format!("{rate} packets/s, burst {burst}"),
        _ => "not limited".to_owned(),
    }
}

fn expiry(user: &UserView) -> String {
    match user.expires_at {
        None => "never".to_owned(),
        Some(at) if user.expired => format!("{at:.0} (past)"),
        Some(at) => format!("{at:.0}"),
    }
}

async fn show(args: &ShowArgs) -> Result<(), CliError> {
    let client = args.remote.client()?;
    if args.grant {
        let grant: Grant = client.get(&format!("/v1/users/{}/grant", args.id)).await?;
        return print_grant(&grant, args.remote.json);
    }
    let user: UserView = client.get(&format!("/v1/users/{}", args.id)).await?;
    if args.remote.json {
        return output::json(&user);
    }
    let lines = [
        ("user", user.id.to_string()),
        ("to", user.to.to_string()),
        (
            "next hop",
            if user.resolved {
                "known"
            } else {
                "not known: packets are dropped"
            }
            .to_owned(),
        ),
        ("from", or_none(user.egress)),
        ("client", or_none(user.client)),
        ("rate", format!("{} packets/s, burst {}", user.rate, user.burst)),
        ("down rate", down_limit(&user)),
        ("expires", expiry(&user)),
        ("slot", user.slot.to_string()),
        ("newest pn", user.newest.to_string()),
        (
            "uplink",
            format!("{} packets, {} bytes", user.uplink.packets, user.uplink.bytes),
        ),
        (
            "downlink",
            format!("{} packets, {} bytes", user.downlink.packets, user.downlink.bytes),
        ),
    ];
    for (name, value) in lines {
        output::line(&format!("{name:<10} {value}"))?;
    }
    Ok(())
}

async fn remove(args: &RemoveArgs) -> Result<(), CliError> {
    let _: Value = args
        .remote
        .client()?
        .delete(&format!("/v1/users/{}", args.id), &())
        .await?;
    eprintln!("user {} is removed", args.id);
    Ok(())
}

async fn import(args: &ImportArgs) -> Result<(), CliError> {
    let client = args.remote.client()?;
    let text = read(&args.file)?;
    // Before anything is imported: grants that cannot be written would be lost.
    let mut grants_file = args.grants.as_deref().map(private_file).transpose()?;
    let ImportOptions { renew } = ImportOptions { renew: args.renew };
    let grants: Vec<Grant> = client
        .post_text(&format!("/v1/users/import?renew={renew}"), text)
        .await?;
    if let (Some(file), Some(path)) = (&mut grants_file, &args.grants) {
        for grant in &grants {
            let json = serde_json::to_string(grant).map_err(CliError::other)?;
            writeln!(file, "{json}").map_err(file_error("writing", path))?;
        }
        file.flush().map_err(file_error("writing", path))?;
    } else if args.remote.json {
        output::json_lines(&grants)?;
    }
    eprintln!("{} users imported", grants.len());
    Ok(())
}

/// What is in a file, `-` for standard input.
pub(super) fn read(path: &Path) -> Result<String, CliError> {
    if path == Path::new("-") {
        let mut text = String::new();
        io::stdin()
            .read_to_string(&mut text)
            .map_err(file_error("reading", path))?;
        return Ok(text);
    }
    fs::read_to_string(path).map_err(file_error("reading", path))
}

fn private_file(path: &Path) -> Result<io::BufWriter<fs::File>, CliError> {
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(file_error("making", path))?;
    Ok(io::BufWriter::new(file))
}

fn file_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CliError {
    let path = path.display().to_string();
    move |source| CliError::File { action, path, source }
}
