//! What outlives the process: users and blocked prefixes in redb (`users.redb`), and the header key (`header.key`),
//! in `state_dir`, readable by their owner alone.

use std::{
    cell::Cell,
    collections::BTreeSet,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    panic::{self, UnwindSafe},
    path::{Path, PathBuf},
    sync::Once,
    thread,
};

use ipnet::IpNet;
use redb::{Database, DatabaseError, ReadableDatabase as _, ReadableTable as _, TableDefinition};

use super::User;
use crate::grant::Secret;

/// Users by id, as JSON.
const USERS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("users");
/// Blocked prefixes, in CIDR notation.
const BLOCKED: TableDefinition<'_, &str, ()> = TableDefinition::new("blocked");
/// What the file itself is.
const FORMAT: TableDefinition<'_, &str, u64> = TableDefinition::new("format");
const VERSION_KEY: &str = "version";
/// The version of what the tables hold; raised when an older build would misread them.
const VERSION: u64 = 1;

const DATABASE: &str = "users.redb";
const HEADER_KEY: &str = "header.key";

/// Why the store cannot be used, or not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A file cannot be read or made.
    #[error("{action} {path}: {source}: `state_dir` must be a folder that the relay may write to")]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another process has it open.
    #[error("{path} is in use by another process: is a relay running with this state_dir already?")]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// It is not what this program wrote.
    #[error(
        "{path} is corrupt ({what}): restore it from a backup, or move it away to start without users (their grants \
         stop working)"
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A later version wrote it.
    #[error(
        "{path} was written by a newer lumenlink-relay (store version {found}; this one knows {VERSION}): run that \
         version, or set another state_dir"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u64,
    },
    /// There are fewer slots than users need.
    #[error("user {user} in {path} has slot {slot}, but max_users is {max_users}: raise it to at least {}", slot + 1)]
    SlotBeyond {
        /// The file.
        path: PathBuf,
        /// Whose.
        user: u64,
        /// Its slot.
        slot: u32,
        /// Slots.
        max_users: u32,
    },
    /// A transaction failed; nothing of it was done.
    #[error("writing {path}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What redb said.
        source: Box<redb::Error>,
    },
}

/// The users' file, open and locked.
#[derive(Debug)]
pub struct Store {
    /// None after a failed write: redb wants the file to be opened again then, which the next write does.
    database: Option<Database>,
    path: PathBuf,
}

impl Store {
    /// Opens the store in `state_dir`, making folder and file if they are not there.
    ///
    /// # Errors
    /// See [`StoreError`]; a file that cannot be used is left as it is.
    pub fn open(state_dir: &Path) -> Result<Self, StoreError> {
        make_folder(state_dir)?;
        Self::open_file(state_dir.join(DATABASE))
    }

    fn open_file(path: PathBuf) -> Result<Self, StoreError> {
        private_file(&path).map_err(file_error("opening", &path))?;
        // redb panics over some pages that it did not write itself; to the operator that is one more kind of corruption.
        let opened = catch_panic(|| Self::open_checked(&path));
        opened.unwrap_or_else(|_| {
            Err(StoreError::Corrupt {
                path,
                what: "its pages make no sense".to_owned(),
            })
        })
    }

    fn open_checked(path: &Path) -> Result<Self, StoreError> {
        let explain = |error| explain_open(error, path);
        let mut database = Database::create(path).map_err(explain)?;
        // Compares every page with its checksum: a damaged key would else be a user that nothing can be heard of.
        let intact = database.check_integrity().map_err(explain)?;
        let store = Self {
            database: Some(database),
            path: path.to_owned(),
        };
        if !intact {
            tracing::warn!(path = %path.display(), "the store was damaged; redb went back to its last intact commit");
        }
        store.check_version()?;
        Ok(store)
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All users, by id, and all blocked prefixes.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`].
    pub fn read(&self) -> Result<(Vec<User>, BTreeSet<IpNet>), StoreError> {
        self.read_tables().map_err(|error| self.corrupt(&error))
    }

    fn read_tables(&self) -> Result<(Vec<User>, BTreeSet<IpNet>), redb::Error> {
        let transaction = self.database()?.begin_read()?;
        let mut users = Vec::new();
        for entry in transaction.open_table(USERS)?.iter()? {
            let (id, json) = entry?;
            let user = serde_json::from_slice::<User>(json.value())
                .map_err(|error| redb::Error::Corrupted(format!("user {}: {error}", id.value())))?;
            users.push(User { id: id.value(), ..user });
        }
        let mut blocked = BTreeSet::new();
        for entry in transaction.open_table(BLOCKED)?.iter()? {
            let (prefix, _) = entry?;
            let parsed = prefix.value().parse();
            blocked.insert(parsed.map_err(|_| redb::Error::Corrupted(format!("blocked prefix `{}`", prefix.value())))?);
        }
        Ok((users, blocked))
    }

    /// Writes users, all or none.
    ///
    /// # Errors
    /// [`StoreError::Write`].
    pub fn put(&mut self, users: &[User]) -> Result<(), StoreError> {
        self.write(|transaction| {
            let mut table = transaction.open_table(USERS)?;
            for user in users {
                // Nothing in a user can fail to be JSON: no maps with other keys than text, no floats.
                let json = serde_json::to_vec(user).unwrap_or_default();
                table.insert(user.id, json.as_slice())?;
            }
            Ok(())
        })
    }

    /// Removes a user.
    ///
    /// # Errors
    /// [`StoreError::Write`].
    pub fn remove(&mut self, id: u64) -> Result<(), StoreError> {
        self.write(|transaction| transaction.open_table(USERS)?.remove(id).map(drop).map_err(Into::into))
    }

    /// Adds prefixes to the blocklist, all or none.
    ///
    /// # Errors
    /// [`StoreError::Write`].
    pub fn block(&mut self, prefixes: &[IpNet]) -> Result<(), StoreError> {
        self.write(|transaction| {
            let mut table = transaction.open_table(BLOCKED)?;
            for prefix in prefixes {
                table.insert(prefix.to_string().as_str(), ())?;
            }
            Ok(())
        })
    }

    /// Takes a prefix off the blocklist.
    ///
    /// # Errors
    /// [`StoreError::Write`].
    pub fn unblock(&mut self, prefix: IpNet) -> Result<(), StoreError> {
        let text = prefix.to_string();
        self.write(|transaction| {
            transaction
                .open_table(BLOCKED)?
                .remove(text.as_str())
                .map(drop)
                .map_err(Into::into)
        })
    }

    fn write(
        &mut self,
        work: impl FnOnce(&redb::WriteTransaction) -> Result<(), redb::Error>,
    ) -> Result<(), StoreError> {
        if self.database.is_none() {
            self.database = Self::open_file(self.path.clone())?.database;
        }
        self.transact(work).map_err(|source| {
            self.database = None;
            StoreError::Write {
                path: self.path.clone(),
                source: Box::new(source),
            }
        })
    }

    fn transact(
        &self,
        work: impl FnOnce(&redb::WriteTransaction) -> Result<(), redb::Error>,
    ) -> Result<(), redb::Error> {
        let transaction = self.database()?.begin_write()?;
        work(&transaction)?;
        Ok(transaction.commit()?)
    }

    fn database(&self) -> Result<&Database, redb::Error> {
        self.database.as_ref().ok_or(redb::Error::PreviousIo)
    }

    /// Reads the version, or writes it and empty tables into a new file.
    fn check_version(&self) -> Result<(), StoreError> {
        let mut found = VERSION;
        self.transact(|transaction| {
            let mut format = transaction.open_table(FORMAT)?;
            let stored = format.get(VERSION_KEY)?.map(|version| version.value());
            match stored {
                Some(version) => found = version,
                None => drop(format.insert(VERSION_KEY, VERSION)?),
            }
            if found == VERSION {
                transaction.open_table(USERS)?;
                transaction.open_table(BLOCKED)?;
            }
            Ok(())
        })
        .map_err(|error| self.corrupt(&error))?;
        if found > VERSION {
            return Err(StoreError::Newer {
                path: self.path.clone(),
                found,
            });
        }
        Ok(())
    }

    fn corrupt(&self, what: &dyn ToString) -> StoreError {
        StoreError::Corrupt {
            path: self.path.clone(),
            what: what.to_string(),
        }
    }
}

/// Runs `work`; a panic in it is an error like others, of which nothing is printed.
fn catch_panic<T>(work: impl FnOnce() -> T + UnwindSafe) -> thread::Result<T> {
    static HOOK: Once = Once::new();
    thread_local!(static CATCHING: Cell<bool> = const { Cell::new(false) });
    HOOK.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            if !CATCHING.get() {
                usual(panic);
            }
        }));
    });
    CATCHING.set(true);
    let result = panic::catch_unwind(work);
    CATCHING.set(false);
    result
}

fn explain_open(error: DatabaseError, path: &Path) -> StoreError {
    let path = path.to_owned();
    match error {
        DatabaseError::DatabaseAlreadyOpen => StoreError::InUse { path },
        DatabaseError::Storage(redb::StorageError::Io(source))
            if !matches!(source.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) =>
        {
            StoreError::File {
                action: "opening",
                path,
                source,
            }
        }
        other => StoreError::Corrupt {
            path,
            what: other.to_string(),
        },
    }
}

/// The relay's header key, made when there is none yet.
///
/// # Errors
/// See [`StoreError`]; a file that does not hold a key is left as it is.
pub fn header_key(state_dir: &Path) -> Result<Secret, StoreError> {
    make_folder(state_dir)?;
    let path = state_dir.join(HEADER_KEY);
    match fs::read_to_string(&path) {
        Ok(text) => text.trim().parse().map_err(|_| StoreError::Corrupt {
            path,
            what: "it must hold 32 hexadecimal digits".to_owned(),
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => make_header_key(&path),
        Err(source) => Err(file_error("reading", &path)(source)),
    }
}

/// Writes it beside its place first, so that a power failure leaves no half of a key.
fn make_header_key(path: &Path) -> Result<Secret, StoreError> {
    let key = Secret::random();
    let fresh = path.with_extension("key.new");
    let write = || {
        let mut file = private_file(&fresh)?;
        file.set_len(0)?;
        writeln!(file, "{}", key.to_hex())?;
        file.sync_all()?;
        fs::rename(&fresh, path)
    };
    write().map_err(file_error("writing", path))?;
    Ok(key)
}

fn make_folder(dir: &Path) -> Result<(), StoreError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(file_error("making", dir))
}

/// Opens a file for its owner alone, making it if it is not there.
fn private_file(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
}

fn file_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::File { action, path, source }
}
