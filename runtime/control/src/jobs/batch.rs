//! Batches: their shards are jobs in a lane of their own, and a shard's output and its job's end are one transaction.

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, Row, params};
use sandpiper_domain::{
    BoxFuture, Digest, End, FunctionName, JobError, JobId, JobResult, JobState, Lane, NewJob,
    Selector, TenantName,
};

use super::{
    PinnedWork, SqliteJobs, failed, owner,
    row::{Place, damaged, digest_of, id_of, key, number, state_number, state_of},
    steps::{self, Kept, run},
};

const SHARD_PRIORITY: u8 = 5;
/// What is left of a batch after its end.
const KEPT_MS: u64 = 7 * 24 * 3_600_000;

type Answer<T> = BoxFuture<'static, Result<T, JobError>>;

/// A batch as it comes.
pub struct NewBatch {
    /// Its id.
    pub id: JobId,
    /// Whose it is.
    pub tenant: TenantName,
    /// The function that each line goes to.
    pub function: FunctionName,
    /// Which version, decided anew for each shard.
    pub selector: Selector,
    /// The function's own path.
    pub path: String,
    /// The lines.
    pub input: PinnedWork,
    /// Each line names a blob, which is what the function gets.
    pub of_blobs: bool,
    /// How many.
    pub lines: u64,
    /// Their parts, in order.
    pub shards: Vec<NewShard>,
    /// When it came.
    pub created_ms: u64,
    /// How often each shard is tried, and how long an attempt may take.
    pub attempts_max: u32,
    /// See `attempts_max`.
    pub timeout_ms: u64,
    /// When shards that have not run are given up.
    pub deadline_ms: u64,
    /// As many jobs and shards of the tenant may wait.
    pub waiting_max: u32,
}

/// A part of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewShard {
    /// The job that runs it.
    pub job: JobId,
    /// The number of its first line, from 1.
    pub first_line: u64,
    /// How many lines.
    pub lines: u64,
    /// Where it begins in the input.
    pub offset: u64,
    /// How long it is.
    pub bytes: u64,
}

/// A batch as its owner sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct BatchView {
    pub id: JobId,
    pub function: FunctionName,
    pub state: JobState,
    pub lines: u64,
    pub shards: u64,
    pub done_lines: u64,
    pub done_shards: u64,
    pub failed_lines: u64,
    pub created_ms: u64,
    pub finished_ms: Option<u64>,
}

/// A shard in a worker's hands.
#[derive(Debug, Clone)]
pub struct Shard {
    /// The batch that it is a part of.
    pub batch: JobId,
    /// The batch's lines.
    pub input: Digest,
    /// Each line names a blob, which is what the function gets.
    pub of_blobs: bool,
    /// The function's own path.
    pub path: String,
    /// The part.
    pub part: NewShard,
}

/// A shard as the batch's output shows it.
#[derive(Debug, Clone)]
pub struct ShardView {
    /// The number of its first line.
    pub first_line: u64,
    /// How many lines.
    pub lines: u64,
    /// Whether it has ended.
    pub done: bool,
    /// What came out; `None` where it was given up.
    pub output: Option<Digest>,
    /// Why it was given up.
    pub error: Option<String>,
}

const COLUMNS: &str = "id, function, state, lines, shards, done_lines, done_shards, failed_lines, created_ms, finished_ms";

fn view(row: &Row<'_>) -> Result<BatchView, JobError> {
    let count = |column| number(row, column).map_err(failed);
    let function: String = row.get(1).map_err(failed)?;
    Ok(BatchView {
        id: id_of(&row.get::<_, Vec<u8>>(0).map_err(failed)?)?,
        function: function.parse().map_err(|_| damaged("a name"))?,
        state: state_of(row.get(2).map_err(failed)?)?,
        lines: count(3)?,
        shards: count(4)?,
        done_lines: count(5)?,
        done_shards: count(6)?,
        failed_lines: count(7)?,
        created_ms: count(8)?,
        finished_ms: row.get::<_, Option<i64>>(9).map_err(failed)?.map(i64::cast_unsigned),
    })
}

fn create(connection: &Connection, batch: &NewBatch) -> Result<(), JobError> {
    let waiting = steps::count_waiting(connection, &batch.tenant)?;
    if waiting + batch.shards.len() as u64 > u64::from(batch.waiting_max) {
        return Err(JobError::TenantFull);
    }
    let created = batch.created_ms.cast_signed();
    // A batch without a line is done as soon as it is there.
    let ended = batch.shards.is_empty();
    run(
        connection,
        "INSERT INTO batches VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, 0, 0, 0, ?10, ?11, ?12, ?13)",
        params![
            key(batch.id),
            batch.tenant.as_str(),
            batch.function.as_str(),
            batch.selector.to_string(),
            batch.path,
            batch.input.digest().0,
            batch.of_blobs,
            batch.lines.cast_signed(),
            batch.shards.len() as i64,
            state_number(if ended { JobState::Done } else { JobState::Pending }),
            created,
            ended.then_some(created),
            ended.then_some(created + KEPT_MS.cast_signed()),
        ],
    )?;
    for shard in &batch.shards {
        run(
            connection,
            "INSERT INTO shards VALUES (?1, ?2, ?3, ?4, ?5, ?6, 0, 0, NULL)",
            params![
                key(batch.id),
                shard.first_line.cast_signed(),
                shard.lines.cast_signed(),
                shard.offset.cast_signed(),
                shard.bytes.cast_signed(),
                key(shard.job),
            ],
        )?;
        steps::insert(
            connection,
            &job_of(batch, shard),
            &Kept::Inline(Bytes::new()),
            batch.created_ms,
        )?;
    }
    Ok(())
}

fn job_of(batch: &NewBatch, shard: &NewShard) -> NewJob {
    NewJob {
        id: shard.job,
        tenant: batch.tenant.clone(),
        function: batch.function.clone(),
        selector: batch.selector.clone(),
        request: sandpiper_domain::JobRequest {
            method: "POST".to_owned(),
            path_and_query: batch.path.clone(),
            headers: Vec::new(),
        },
        body: Bytes::new(),
        lane: Lane::Batch,
        priority: SHARD_PRIORITY,
        created_ms: batch.created_ms,
        ready_ms: batch.created_ms,
        deadline_ms: batch.deadline_ms,
        attempts_max: batch.attempts_max,
        timeout_ms: batch.timeout_ms,
        result_ttl_ms: KEPT_MS,
        webhook: None,
        idempotency: None,
        waiting_max: batch.waiting_max,
    }
}

/// Notes the end of a shard, once, and of its batch with the last one.
pub(super) fn shard_ended(
    connection: &Connection,
    job: JobId,
    output: Option<Digest>,
    failed_lines: Option<u64>,
    now_ms: u64,
) -> Result<(), JobError> {
    type Found = (Vec<u8>, i64, i64);
    let found: Option<Found> = connection
        .prepare_cached("SELECT batch, first_line, lines FROM shards WHERE job = ?1 AND done = 0")
        .and_then(|mut statement| {
            let read = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
            statement.query_row(params![key(job)], read).optional()
        })
        .map_err(failed)?;
    let Some((batch, first_line, lines)) = found else { return Ok(()) };
    let lost = failed_lines.map_or(lines, u64::cast_signed);
    run(
        connection,
        "UPDATE shards SET done = 1, failed = ?3, output = ?4 WHERE batch = ?1 AND first_line = ?2",
        params![batch, first_line, lost, output.map(|digest| digest.0)],
    )?;
    run(
        connection,
        "UPDATE batches SET done_lines = done_lines + ?2, done_shards = done_shards + 1, \
         failed_lines = failed_lines + ?3 WHERE id = ?1",
        params![batch, lines, lost],
    )?;
    run(
        connection,
        "UPDATE batches SET state = 2, finished_ms = ?2, expires_ms = ?3 \
         WHERE id = ?1 AND done_shards = shards AND state < 2",
        params![batch, now_ms.cast_signed(), (now_ms + KEPT_MS).cast_signed()],
    )
    .map(drop)
}

/// Drops what has had its time.
pub(super) fn expire(connection: &Connection, now_ms: u64) -> Result<(), JobError> {
    let now = params![now_ms.cast_signed()];
    let old = "SELECT id FROM batches WHERE expires_ms <= ?1";
    run(connection, &format!("DELETE FROM shards WHERE batch IN ({old})"), now)?;
    run(connection, "DELETE FROM batches WHERE expires_ms <= ?1", now)?;
    run(connection, "DELETE FROM blobs WHERE expires_ms <= ?1", now).map(drop)
}

fn cancel(
    connection: &Connection,
    tenant: &TenantName,
    id: JobId,
    now_ms: u64,
) -> Result<Vec<JobId>, JobError> {
    let state: Option<i64> = connection
        .query_row(
            "SELECT state FROM batches WHERE id = ?1 AND tenant = ?2",
            params![key(id), tenant.as_str()],
            |row| row.get(0),
        )
        .optional()
        .map_err(failed)?;
    let state = state_of(state.ok_or(JobError::NotFound)?)?;
    if !matches!(state, JobState::Pending | JobState::Running) {
        return Ok(Vec::new());
    }
    let mut statement = connection
        .prepare_cached("SELECT job FROM shards WHERE batch = ?1 AND done = 0")
        .map_err(failed)?;
    let jobs = statement.query_map(params![key(id)], |row| row.get::<_, Vec<u8>>(0));
    let jobs: Result<Vec<_>, _> = jobs.and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let mut cancelled = Vec::new();
    for job in jobs.map_err(failed)? {
        let job = id_of(&job)?;
        owner::cancel(connection, tenant, job, now_ms)?;
        cancelled.push(job);
    }
    run(
        connection,
        "UPDATE batches SET state = 4, finished_ms = ?2, expires_ms = ?3 WHERE id = ?1",
        params![key(id), now_ms.cast_signed(), (now_ms + KEPT_MS).cast_signed()],
    )?;
    Ok(cancelled)
}

impl SqliteJobs {
    /// Takes a batch in, with all its shards.
    pub fn create_batch(&self, batch: NewBatch) -> Answer<()> {
        self.inner.submit(move |connection| create(connection, &batch))
    }

    /// Takes a batch back; gives the jobs of its shards that had not ended.
    pub fn cancel_batch(&self, tenant: TenantName, id: JobId, now_ms: u64) -> Answer<Vec<JobId>> {
        self.inner.submit(move |connection| cancel(connection, &tenant, id, now_ms))
    }

    /// The end of a shard: what came out, and of how many lines nothing did.
    pub fn finish_shard(
        &self,
        job: JobId,
        token: u64,
        output: PinnedWork,
        failed_lines: u64,
        version: u32,
        now_ms: u64,
    ) -> Answer<()> {
        self.inner.submit(move |connection| {
            let result =
                JobResult { status: 200, headers: Vec::new(), body: Bytes::new(), version };
            steps::ack(connection, job, token, &End::Done(result), None, now_ms)?;
            shard_ended(connection, job, Some(output.digest()), Some(failed_lines), now_ms)
        })
    }

    /// The shard that a job is for. Blocks.
    pub fn shard(&self, job: JobId) -> Result<Shard, JobError> {
        self.read(|connection| {
            let sql = "SELECT s.batch, b.input, b.path, s.first_line, s.lines, s.offset, s.bytes, \
                b.of_blobs FROM shards s JOIN batches b ON b.id = s.batch WHERE s.job = ?1";
            let mut statement = connection.prepare_cached(sql).map_err(failed)?;
            let mut rows = statement.query(params![key(job)]).map_err(failed)?;
            let row = rows.next().map_err(failed)?.ok_or(JobError::NotFound)?;
            let count = |column| number(row, column).map_err(failed);
            Ok(Shard {
                batch: id_of(&row.get::<_, Vec<u8>>(0).map_err(failed)?)?,
                input: digest_of(&row.get::<_, Vec<u8>>(1).map_err(failed)?)?,
                path: row.get(2).map_err(failed)?,
                of_blobs: row.get(7).map_err(failed)?,
                part: NewShard {
                    job,
                    first_line: count(3)?,
                    lines: count(4)?,
                    offset: count(5)?,
                    bytes: count(6)?,
                },
            })
        })
    }

    /// One batch of a tenant. Blocks.
    pub fn batch(&self, tenant: &TenantName, id: JobId) -> Result<Option<BatchView>, JobError> {
        self.read(|connection| {
            let sql = format!("SELECT {COLUMNS} FROM batches WHERE id = ?1 AND tenant = ?2");
            let mut statement = connection.prepare_cached(&sql).map_err(failed)?;
            let mut rows = statement.query(params![key(id), tenant.as_str()]).map_err(failed)?;
            rows.next().map_err(failed)?.map(view).transpose()
        })
    }

    /// Batches of a tenant, the newest first. Blocks.
    pub fn batches(&self, tenant: &TenantName, limit: u32) -> Result<Vec<BatchView>, JobError> {
        self.read(|connection| {
            let sql = format!(
                "SELECT {COLUMNS} FROM batches WHERE tenant = ?1 ORDER BY id DESC LIMIT ?2"
            );
            let mut statement = connection.prepare_cached(&sql).map_err(failed)?;
            let mut rows = statement.query(params![tenant.as_str(), limit]).map_err(failed)?;
            let mut batches = Vec::new();
            while let Some(row) = rows.next().map_err(failed)? {
                batches.push(view(row)?);
            }
            Ok(batches)
        })
    }

    /// The shard of a batch that begins at `first_line` or after. Blocks.
    pub fn shard_from(&self, batch: JobId, first_line: u64) -> Result<Option<ShardView>, JobError> {
        self.read(|connection| {
            let sql = "SELECT s.first_line, s.lines, s.done, s.output, j.error FROM shards s \
                LEFT JOIN jobs j ON j.id = s.job WHERE s.batch = ?1 AND s.first_line >= ?2 \
                ORDER BY s.first_line LIMIT 1";
            let mut statement = connection.prepare_cached(sql).map_err(failed)?;
            let from = params![key(batch), first_line.cast_signed()];
            let mut rows = statement.query(from).map_err(failed)?;
            let Some(row) = rows.next().map_err(failed)? else { return Ok(None) };
            let output = row.get::<_, Option<Vec<u8>>>(3).map_err(failed)?;
            Ok(Some(ShardView {
                first_line: number(row, 0).map_err(failed)?,
                lines: number(row, 1).map_err(failed)?,
                done: row.get(2).map_err(failed)?,
                output: output.map(|digest| digest_of(&digest)).transpose()?,
                error: row.get(4).map_err(failed)?,
            }))
        })
    }
}

/// A job that was given up may be a shard.
pub(super) fn given_up(
    connection: &Connection,
    place: &Place,
    now_ms: u64,
) -> Result<(), JobError> {
    match place.lane {
        Lane::Batch => shard_ended(connection, place.id, None, None, now_ms),
        Lane::Interactive | Lane::Job => Ok(()),
    }
}
