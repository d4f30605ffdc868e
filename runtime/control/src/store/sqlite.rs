//! Metadata in SQLite: one table of records, each change of the store with a revision of its own.

use std::{
    path::Path,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use rusqlite::{
    Connection, ErrorCode, OpenFlags, OptionalExtension, Row, Transaction, TransactionBehavior,
};
use sandpiper_domain::{Expect, MetadataStore, Operation, Record, StoreError};

use crate::OpenError;

#[cfg(test)]
mod tests;

const SCHEMA: u32 = 1;
const CREATE: &str = "
    CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
    CREATE TABLE records (
        key TEXT PRIMARY KEY, value BLOB NOT NULL, revision INTEGER NOT NULL
    ) STRICT;
    INSERT INTO meta VALUES ('schema', 1), ('revision', 0);
";

/// How long a writer waits for someone with `sqlite3` at hand.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// A database of records.
#[derive(Debug)]
pub struct SqliteStore {
    connection: Mutex<Connection>,
    /// Set by a failed write that may or may not have reached the disk: read-only until a restart finds out.
    broken: AtomicBool,
}

impl SqliteStore {
    /// Opens the database and makes its tables at the first start.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = Connection::open_with_flags(path, flags).map_err(failed)?;
        configure(&connection).map_err(failed)?;
        prepare(&mut connection)?;
        Ok(SqliteStore { connection: Mutex::new(connection), broken: AtomicBool::new(false) })
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        // A transaction that a panic unwound was rolled back when it was dropped: the connection is as good as new.
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection
        .pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get::<_, String>(0))?;
    // NORMAL may lose the last commits at a power loss, and every commit here has been acknowledged.
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "trusted_schema", false)?;
    connection.pragma_update(None, "cell_size_check", true)
}

fn prepare(connection: &mut Connection) -> Result<(), OpenError> {
    let transaction =
        connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
    let tables: u32 = transaction
        .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
        .map_err(failed)?;
    if tables == 0 {
        transaction.execute_batch(CREATE).map_err(failed)?;
    }
    let found: u32 = transaction
        .query_row("SELECT value FROM meta WHERE name = 'schema'", [], |row| row.get(0))
        .map_err(failed)?;
    if found > SCHEMA {
        return Err(OpenError::Newer { found, known: SCHEMA });
    }
    transaction.commit().map_err(failed)?;
    Ok(())
}

impl MetadataStore for SqliteStore {
    fn get(&self, key: &str) -> Result<Option<Record>, StoreError> {
        self.lock()
            .prepare_cached("SELECT key, value, revision FROM records WHERE key = ?1")
            .and_then(|mut statement| statement.query_row([key], record).optional())
            .map_err(failed)
    }

    fn list(&self, prefix: &str) -> Result<Vec<Record>, StoreError> {
        const FROM: &str = "SELECT key, value, revision FROM records WHERE key >= ?1 ORDER BY key";
        const BETWEEN: &str =
            "SELECT key, value, revision FROM records WHERE key >= ?1 AND key < ?2 ORDER BY key";
        let connection = self.lock();
        let rows = match successor(prefix) {
            Some(end) => connection.prepare_cached(BETWEEN).and_then(|mut statement| {
                statement.query_map([prefix, &end], record)?.collect::<rusqlite::Result<_>>()
            }),
            None => connection.prepare_cached(FROM).and_then(|mut statement| {
                statement.query_map([prefix], record)?.collect::<rusqlite::Result<_>>()
            }),
        };
        rows.map_err(failed)
    }

    fn transact(&self, operations: &[Operation]) -> Result<u64, StoreError> {
        if self.broken.load(Ordering::Acquire) {
            let text = "an earlier write failed; read-only until a restart";
            return Err(StoreError::Failed(text.to_owned()));
        }
        let mut connection = self.lock();
        let outcome = apply(&mut connection, operations);
        outcome.map_err(|error| match error {
            ApplyError::Conflict(key) => StoreError::Conflict { key },
            ApplyError::Sqlite(error) => {
                // A full disk or a busy database is rolled back and harmless; anything else is not trusted again.
                if !matches!(
                    error.sqlite_error_code(),
                    Some(ErrorCode::DiskFull | ErrorCode::DatabaseBusy | ErrorCode::TooBig)
                ) {
                    self.broken.store(true, Ordering::Release);
                }
                failed(error)
            }
        })
    }
}

enum ApplyError {
    Conflict(String),
    Sqlite(rusqlite::Error),
}

impl From<rusqlite::Error> for ApplyError {
    fn from(error: rusqlite::Error) -> Self {
        ApplyError::Sqlite(error)
    }
}

fn apply(connection: &mut Connection, operations: &[Operation]) -> Result<u64, ApplyError> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // Kept apart from the records: it must grow also when the newest record has been deleted.
    let revision: i64 = transaction.query_row(
        "UPDATE meta SET value = value + 1 WHERE name = 'revision' RETURNING value",
        [],
        |row| row.get(0),
    )?;
    for operation in operations {
        match operation {
            Operation::Put { key, value, expect } => {
                check(&transaction, key, *expect)?;
                transaction
                    .prepare_cached(
                        "INSERT INTO records VALUES (?1, ?2, ?3) ON CONFLICT (key) \
                         DO UPDATE SET value = excluded.value, revision = excluded.revision",
                    )?
                    .execute((key, &value[..], revision))?;
            }
            Operation::Delete { key, expect } => {
                check(&transaction, key, *expect)?;
                transaction.prepare_cached("DELETE FROM records WHERE key = ?1")?.execute([key])?;
            }
        }
    }
    transaction.commit()?;
    Ok(revision.cast_unsigned())
}

fn check(transaction: &Transaction<'_>, key: &str, expect: Expect) -> Result<(), ApplyError> {
    let expected = match expect {
        Expect::Any => return Ok(()),
        Expect::Absent => None,
        Expect::Revision(revision) => Some(revision.cast_signed()),
    };
    let found: Option<i64> = transaction
        .prepare_cached("SELECT revision FROM records WHERE key = ?1")?
        .query_row([key], |row| row.get(0))
        .optional()?;
    if found == expected { Ok(()) } else { Err(ApplyError::Conflict(key.to_owned())) }
}

fn record(row: &Row<'_>) -> rusqlite::Result<Record> {
    Ok(Record {
        key: row.get(0)?,
        value: Bytes::from(row.get::<_, Vec<u8>>(1)?),
        revision: row.get::<_, i64>(2)?.cast_unsigned(),
    })
}

/// The least text that is greater than every text with this prefix; there is none for the empty prefix.
fn successor(prefix: &str) -> Option<String> {
    let mut text = prefix.to_owned();
    while let Some(last) = text.pop() {
        // The step over the surrogates is where code points, and UTF-8 with them, have a gap.
        let next =
            if last == '\u{d7ff}' { Some('\u{e000}') } else { char::from_u32(last as u32 + 1) };
        if let Some(next) = next {
            text.push(next);
            return Some(text);
        }
    }
    None
}

fn failed(error: rusqlite::Error) -> StoreError {
    StoreError::Failed(format!("sqlite: {error}"))
}
