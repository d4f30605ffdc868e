//! Batches: their shards are jobs in a lane of their own, and a shard's output and its job's end are one transaction.

use std::sync::Arc;

use rusqlite::{Row, params};
use sandpiper_domain::{
    Again, BoxFuture, Digest, FunctionName, JobError, JobId, JobState, Selector, TenantName,
};

use super::{
    PinnedWork, SqliteJobs, failed,
    row::{damaged, digest_of, id_of, key, number, state_number, state_of},
    shards::{self, Output},
};

pub(super) const SHARD_PRIORITY: u8 = 5;

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
    /// How long they are together.
    pub input_bytes: u64,
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
    /// So much may be kept of the tenant.
    pub bytes_max: u64,
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
    /// What came out before it was given back.
    pub before: Option<Before>,
}

/// What came out of a shard before it was given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Before {
    /// The output so far.
    pub output: Digest,
    /// The lines that it answers, from the first one on.
    pub answered: u64,
    /// How many of these failed.
    pub failed: u64,
}

/// What came out of a shard.
pub struct ShardOutput {
    /// The output, a line for each that it answers.
    pub blob: PinnedWork,
    /// How long it is.
    pub bytes: u64,
    /// The lines that it answers, from the first one on.
    pub answered: u64,
    /// How many of these failed.
    pub failed: u64,
}

impl ShardOutput {
    fn kept(self) -> (Output, PinnedWork) {
        let ShardOutput { blob, bytes, answered, failed } = self;
        (Output { digest: blob.digest(), bytes, answered, failed }, blob)
    }
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
    /// What came out, and how many of its lines that answers: not all where it was given up.
    pub output: Option<Digest>,
    /// See `output`.
    pub answered: u64,
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

impl SqliteJobs {
    /// Takes a batch in: with `part` 0 the batch and its first shards, then the others part by part. Says whether that
    /// were all. A batch that is never finished goes with the next start of the node.
    pub fn create_batch(&self, batch: Arc<NewBatch>, part: usize) -> Answer<bool> {
        self.inner.submit(move |connection| shards::create(connection, &batch, part))
    }

    /// Takes a batch back. [`SqliteJobs::end_cancelled`] ends its shards. What came out of one that has ended goes.
    pub fn cancel_batch(&self, tenant: TenantName, id: JobId, now_ms: u64) -> Answer<()> {
        self.inner.submit(move |connection| shards::cancel(connection, &tenant, id, now_ms))
    }

    /// Ends some shards of batches that were taken back; gives their jobs, and whether that were all.
    pub fn end_cancelled(&self, now_ms: u64) -> Answer<(Vec<JobId>, bool)> {
        self.inner.submit(move |connection| shards::end_cancelled(connection, now_ms))
    }

    /// The end of a shard: what came out. The tenant may keep `bytes_max` in all.
    pub fn finish_shard(
        &self,
        lease: (JobId, u64),
        output: ShardOutput,
        version: u32,
        bytes_max: u64,
        now_ms: u64,
    ) -> Answer<()> {
        let (kept, pinned) = output.kept();
        self.inner.submit_pinned(Some(pinned), move |connection| {
            shards::finish(connection, lease.0, lease.1, kept, version, bytes_max, now_ms)
        })
    }

    /// Gives a shard back with what came out so far; the next attempt goes on behind it.
    pub fn pause_shard(
        &self,
        lease: (JobId, u64),
        output: ShardOutput,
        again: Again,
        bytes_max: u64,
        now_ms: u64,
    ) -> Answer<()> {
        let (kept, pinned) = output.kept();
        self.inner.submit_pinned(Some(pinned), move |connection| {
            shards::pause(connection, lease.0, lease.1, kept, &again, bytes_max, now_ms)
        })
    }

    /// Cuts a shard that is under suspicion into its lines: for each the id of its job, where it begins in the input
    /// and its length.
    pub fn split_shard(
        &self,
        lease: (JobId, u64),
        lines: Vec<(JobId, u64, u64)>,
        now_ms: u64,
    ) -> Answer<()> {
        self.inner
            .submit(move |connection| shards::split(connection, lease.0, lease.1, &lines, now_ms))
    }

    /// The shard that a job is for. Blocks.
    pub fn shard(&self, job: JobId) -> Result<Shard, JobError> {
        self.read(|connection| {
            let sql = "SELECT s.batch, b.input, b.path, s.first_line, s.lines, s.offset, s.bytes, \
                b.of_blobs, b.state, s.output, s.answered, s.failed FROM shards s \
                JOIN batches b ON b.id = s.batch WHERE s.job = ?1";
            let mut statement = connection.prepare_cached(sql).map_err(failed)?;
            let mut rows = statement.query(params![key(job)]).map_err(failed)?;
            let row = rows.next().map_err(failed)?.ok_or(JobError::NotFound)?;
            let count = |column| number(row, column).map_err(failed);
            if row.get::<_, i64>(8).map_err(failed)? == state_number(JobState::Cancelled) {
                return Err(JobError::LeaseLost);
            }
            let output = row.get::<_, Option<Vec<u8>>>(9).map_err(failed)?;
            let output = output.map(|digest| digest_of(&digest)).transpose()?;
            let (answered, failures) = (count(10)?, count(11)?);
            let before = output.map(|output| Before { output, answered, failed: failures });
            Ok(Shard {
                before,
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
            let sql = format!(
                "SELECT {COLUMNS} FROM batches WHERE id = ?1 AND tenant = ?2 AND state >= 0"
            );
            let mut statement = connection.prepare_cached(&sql).map_err(failed)?;
            let mut rows = statement.query(params![key(id), tenant.as_str()]).map_err(failed)?;
            rows.next().map_err(failed)?.map(view).transpose()
        })
    }

    /// Batches of a tenant, the newest first. Blocks.
    pub fn batches(&self, tenant: &TenantName, limit: u32) -> Result<Vec<BatchView>, JobError> {
        self.read(|connection| {
            let sql = format!(
                "SELECT {COLUMNS} FROM batches WHERE tenant = ?1 AND state >= 0 ORDER BY id DESC LIMIT ?2"
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
            let sql = "SELECT s.first_line, s.lines, s.done = 1, s.output, j.error, s.answered FROM shards s \
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
                answered: number(row, 5).map_err(failed)?,
                error: row.get(4).map_err(failed)?,
            }))
        })
    }
}
