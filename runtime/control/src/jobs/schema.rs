//! The tables of the queue, in a file of their own: it is written far more often than the catalog.

use std::{path::Path, time::Duration};

use rusqlite::{Connection, OpenFlags, TransactionBehavior};

use super::failed;
use crate::OpenError;

const SCHEMA: u32 = 1;
/// `ready` holds what may run now, so that a lease reads the head of a list; `delayed` what may run later. What a job
/// carries is apart from where it stands: a row that changes at each step should be short. `waiting` sums what each
/// tenant has, so that its limits cost one look.
const CREATE: &str = "
    CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
    CREATE TABLE jobs (
        id BLOB PRIMARY KEY, tenant TEXT NOT NULL, function TEXT NOT NULL, selector TEXT NOT NULL,
        batch BLOB, shard INTEGER, state INTEGER NOT NULL, lane INTEGER NOT NULL, priority INTEGER NOT NULL,
        created_ms INTEGER NOT NULL, ready_ms INTEGER NOT NULL, deadline_ms INTEGER NOT NULL,
        attempts INTEGER NOT NULL, attempts_max INTEGER NOT NULL, crashes INTEGER NOT NULL,
        lease INTEGER NOT NULL, lease_until_ms INTEGER NOT NULL, timeout_ms INTEGER NOT NULL,
        result_ttl_ms INTEGER NOT NULL, error TEXT, version INTEGER, finished_ms INTEGER, expires_ms INTEGER,
        webhook TEXT, webhook_state INTEGER NOT NULL, webhook_attempts INTEGER NOT NULL, within_ms INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX jobs_of_tenant ON jobs (tenant, id);
    CREATE INDEX jobs_dead ON jobs (tenant, id) WHERE state = 3;
    CREATE TABLE payloads (
        id BLOB PRIMARY KEY, request BLOB NOT NULL, body BLOB, body_blob BLOB, size INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE ready (
        tenant TEXT NOT NULL, lane INTEGER NOT NULL, rank INTEGER NOT NULL, ready_ms INTEGER NOT NULL, id BLOB NOT NULL,
        PRIMARY KEY (tenant, lane, rank, ready_ms, id)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE delayed (ready_ms INTEGER, id BLOB, PRIMARY KEY (ready_ms, id)) STRICT, WITHOUT ROWID;
    CREATE TABLE leased (lease_until_ms INTEGER, id BLOB, PRIMARY KEY (lease_until_ms, id)) STRICT, WITHOUT ROWID;
    CREATE TABLE expiring (at_ms INTEGER, id BLOB, PRIMARY KEY (at_ms, id)) STRICT, WITHOUT ROWID;
    CREATE TABLE tombstones (tenant TEXT, id BLOB, PRIMARY KEY (tenant, id)) STRICT, WITHOUT ROWID;
    CREATE TABLE webhooks (
        tenant TEXT, at_ms INTEGER, id BLOB, PRIMARY KEY (tenant, at_ms, id)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX webhooks_of_job ON webhooks (id);
    CREATE TABLE waiting (
        tenant TEXT PRIMARY KEY, jobs INTEGER NOT NULL, shards INTEGER NOT NULL, bytes INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE results (
        id BLOB PRIMARY KEY, status INTEGER NOT NULL, headers BLOB NOT NULL, body BLOB, body_blob BLOB,
        size INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE idempotency (
        tenant TEXT, function TEXT, key TEXT, fingerprint BLOB NOT NULL, id BLOB NOT NULL,
        PRIMARY KEY (tenant, function, key)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX idempotency_of_job ON idempotency (id);
    CREATE TABLE batches (
        id BLOB PRIMARY KEY, tenant TEXT NOT NULL, function TEXT NOT NULL, selector TEXT NOT NULL, path TEXT NOT NULL,
        input BLOB NOT NULL, of_blobs INTEGER NOT NULL, lines INTEGER NOT NULL, shards INTEGER NOT NULL,
        done_lines INTEGER NOT NULL,
        done_shards INTEGER NOT NULL, failed_lines INTEGER NOT NULL, state INTEGER NOT NULL,
        created_ms INTEGER NOT NULL, finished_ms INTEGER, expires_ms INTEGER,
        bytes INTEGER NOT NULL, cancelling INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX batches_of_tenant ON batches (tenant, id);
    CREATE INDEX batches_expiring ON batches (expires_ms) WHERE expires_ms IS NOT NULL;
    CREATE INDEX batches_cancelling ON batches (id) WHERE cancelling = 1;
    CREATE TABLE shards (
        batch BLOB, first_line INTEGER, lines INTEGER NOT NULL, offset INTEGER NOT NULL, bytes INTEGER NOT NULL,
        job BLOB NOT NULL, done INTEGER NOT NULL, answered INTEGER NOT NULL, failed INTEGER NOT NULL, output BLOB,
        output_bytes INTEGER NOT NULL, PRIMARY KEY (batch, first_line)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX shards_of_job ON shards (job);
    CREATE INDEX shards_open ON shards (batch, first_line) WHERE done = 0;
    CREATE TABLE blobs (
        tenant TEXT, digest BLOB, size INTEGER NOT NULL, expires_ms INTEGER NOT NULL, PRIMARY KEY (tenant, digest)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX blobs_expiring ON blobs (expires_ms);
    INSERT INTO meta VALUES ('schema', 1);
";

/// How long a writer waits for someone with `sqlite3` at hand.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
const STATEMENTS_CACHED: usize = 128;

/// The writer's connection. Tables are made at the first start.
pub(super) fn open(path: &Path) -> Result<Connection, OpenError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags).map_err(failed)?;
    configure(&connection).map_err(failed)?;
    let transaction =
        connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
    let count = "SELECT count(*) FROM sqlite_schema";
    let tables: u32 = transaction.query_row(count, [], |row| row.get(0)).map_err(failed)?;
    if tables == 0 {
        transaction.execute_batch(CREATE).map_err(failed)?;
    }
    let schema = "SELECT value FROM meta WHERE name = 'schema'";
    let found: u32 = transaction.query_row(schema, [], |row| row.get(0)).map_err(failed)?;
    if found > SCHEMA {
        return Err(OpenError::Newer { found, known: SCHEMA });
    }
    transaction.commit().map_err(failed)?;
    Ok(connection)
}

/// A second connection, for those who only look.
pub(super) fn open_reader(path: &Path) -> Result<Connection, OpenError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(failed)?;
    connection.busy_timeout(BUSY_TIMEOUT).map_err(failed)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_CACHED);
    Ok(connection)
}

fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_CACHED);
    connection.pragma_update(None, "page_size", 8192)?;
    connection
        .pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get::<_, String>(0))?;
    // NORMAL may lose the last commits at a power loss, and every commit here has been acknowledged.
    connection.pragma_update(None, "synchronous", "FULL")?;
    // The writer chooses when: a checkpoint within a commit would have everyone in it wait.
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    connection.pragma_update(None, "cache_size", -32_768)?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.pragma_update(None, "trusted_schema", false)?;
    connection.pragma_update(None, "cell_size_check", true)
}
