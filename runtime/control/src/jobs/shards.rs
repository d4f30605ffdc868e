//! What moves batches and their shards: each function is one command of the writer, and none touches more than
//! [`MOVED_MAX`] rows of a table, however large a batch is.

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, Row, params};
use sandpiper_domain::{
    Again, Digest, End, JobError, JobId, JobResult, JobState, Lane, NewJob, TenantName,
};

use super::{
    batch::{NewBatch, NewShard, SHARD_PRIORITY},
    failed, owner,
    row::{Place, damaged, digest_of, id_of, key, state_number, state_of},
    steps::{self, Done, Kept, MOVED_MAX, RESULT_QUOTA, add_bytes, again, run, unlease},
};

/// What is left of a batch after its end.
const KEPT_MS: u64 = 7 * 24 * 3_600_000;
/// A batch whose shards are still being written down; its owner does not see it yet.
const CREATING: i64 = -1;
/// A blob counts as much at least: so much of the disk its file takes.
const BLOB_BYTES_MIN: u64 = 4_096;
/// How often a line is tried that is alone because its shard was there when the node went down, twice.
const SUSPECT_ATTEMPTS: u32 = 2;

/// What `done` says of a shard that is not open any more.
const ENDED: i64 = 1;
const CANCELLED: i64 = 2;

/// What a blob of this length counts.
pub(super) fn charge_of(size: u64) -> i64 {
    size.max(BLOB_BYTES_MIN).cast_signed()
}

/// Writes a batch down, or the next of its shards; says whether all are there.
pub(super) fn create(connection: &Connection, batch: &NewBatch, part: usize) -> Done<bool> {
    if part == 0 {
        begin(connection, batch)?;
    } else if state(connection, &batch.tenant, batch.id)? != CREATING {
        return Err(JobError::NotFound);
    }
    let from = part * MOVED_MAX as usize;
    let shards = batch.shards.iter().skip(from).take(MOVED_MAX as usize);
    for shard in shards {
        add(connection, batch, shard)?;
    }
    let is_whole = from + MOVED_MAX as usize >= batch.shards.len();
    if is_whole {
        let sql = "UPDATE batches SET state = ?2 WHERE id = ?1 AND state = ?3";
        let pending = state_number(JobState::Pending);
        run(connection, sql, params![key(batch.id), pending, CREATING])?;
    }
    Ok(is_whole)
}

fn begin(connection: &Connection, batch: &NewBatch) -> Done<()> {
    let (waiting, bytes) = steps::held_by(connection, &batch.tenant)?;
    let input = charge_of(batch.input_bytes);
    if waiting + batch.shards.len() as u64 > u64::from(batch.waiting_max)
        || bytes + input.cast_unsigned() > batch.bytes_max
    {
        return Err(JobError::TenantFull);
    }
    let created = batch.created_ms.cast_signed();
    // A batch without a line is done as soon as it is there.
    let ended = batch.shards.is_empty();
    run(
        connection,
        "INSERT INTO batches (id, tenant, function, selector, path, input, of_blobs, lines, shards, done_lines, \
         done_shards, failed_lines, state, created_ms, finished_ms, expires_ms, bytes, cancelling) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, 0, 0, 0, ?10, ?11, ?12, ?13, ?14, 0)",
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
            if ended { state_number(JobState::Done) } else { CREATING },
            created,
            ended.then_some(created),
            ended.then_some(created + KEPT_MS.cast_signed()),
            input,
        ],
    )?;
    add_bytes(connection, &batch.tenant, input)
}

fn add(connection: &Connection, batch: &NewBatch, shard: &NewShard) -> Done<()> {
    insert(connection, key(batch.id), shard)?;
    let body = Kept::Inline(Bytes::new());
    steps::insert(connection, &job_of(batch, shard), &body, batch.created_ms)
}

fn insert(connection: &Connection, batch: [u8; 16], shard: &NewShard) -> Done<()> {
    run(
        connection,
        "INSERT INTO shards (batch, first_line, lines, offset, bytes, job, done, answered, failed, output, \
         output_bytes) VALUES (?1, ?2, ?3, ?4, ?5, ?6, 0, 0, 0, NULL, 0)",
        params![
            batch,
            shard.first_line.cast_signed(),
            shard.lines.cast_signed(),
            shard.offset.cast_signed(),
            shard.bytes.cast_signed(),
            key(shard.job),
        ],
    )
    .map(drop)
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
        // Its output is the batch's.
        result_ttl_ms: 0,
        webhook: None,
        idempotency: None,
        waiting_max: batch.waiting_max,
        bytes_max: u64::MAX,
    }
}

/// The shard of a job, as long as it has not ended.
struct Open {
    batch: Vec<u8>,
    first_line: i64,
    lines: i64,
    answered: i64,
    failed: i64,
    output_bytes: i64,
}

fn open_shard(connection: &Connection, job: JobId) -> Done<Option<Open>> {
    let found = connection
        .prepare_cached(
            "SELECT batch, first_line, lines, answered, failed, output_bytes FROM shards \
             WHERE job = ?1 AND done = 0",
        )
        .and_then(|mut statement| {
            let read = |row: &Row<'_>| {
                Ok(Open {
                    batch: row.get(0)?,
                    first_line: row.get(1)?,
                    lines: row.get(2)?,
                    answered: row.get(3)?,
                    failed: row.get(4)?,
                    output_bytes: row.get(5)?,
                })
            };
            statement.query_row(params![key(job)], read).optional()
        });
    Ok(found.map_err(failed)?)
}

/// What came out of a shard so far.
#[derive(Debug, Clone, Copy)]
pub(super) struct Output {
    pub(super) digest: Digest,
    pub(super) bytes: u64,
    /// Lines that it answers, from the first one on, and how many of these failed.
    pub(super) answered: u64,
    pub(super) failed: u64,
}

/// Keeps what came out of a shard, and counts it; false where the tenant would keep too much.
fn keep(
    connection: &Connection,
    tenant: &TenantName,
    shard: &mut Open,
    output: Output,
    bytes_max: u64,
) -> Done<bool> {
    let more = charge_of(output.bytes) - shard.output_bytes;
    let (_, held) = steps::held_by(connection, tenant)?;
    if more > 0 && held + more.cast_unsigned() > bytes_max {
        return Ok(false);
    }
    (shard.answered, shard.failed) = (output.answered.cast_signed(), output.failed.cast_signed());
    shard.output_bytes += more;
    run(
        connection,
        "UPDATE shards SET answered = ?3, failed = ?4, output = ?5, output_bytes = ?6 \
         WHERE batch = ?1 AND first_line = ?2",
        params![
            shard.batch,
            shard.first_line,
            shard.answered,
            shard.failed,
            output.digest.0,
            shard.output_bytes
        ],
    )?;
    count(connection, tenant, &shard.batch, more)?;
    Ok(true)
}

fn count(connection: &Connection, tenant: &TenantName, batch: &[u8], bytes: i64) -> Done<()> {
    let sql = "UPDATE batches SET bytes = bytes + ?2 WHERE id = ?1";
    run(connection, sql, params![batch, bytes])?;
    add_bytes(connection, tenant, bytes)
}

/// The end of a leased shard.
pub(super) fn finish(
    connection: &Connection,
    job: JobId,
    token: u64,
    output: Output,
    version: u32,
    bytes_max: u64,
    now_ms: u64,
) -> Done<()> {
    let place = steps::held(connection, job, token)?;
    let Some(mut shard) = open_shard(connection, job)? else { return Err(JobError::LeaseLost) };
    if !keep(connection, &place.tenant, &mut shard, output, bytes_max)? {
        let end = End::Dead { error: RESULT_QUOTA.to_owned() };
        return steps::ack(connection, job, token, &end, None, bytes_max, now_ms);
    }
    let result = JobResult { status: 200, headers: Vec::new(), body: Bytes::new(), version };
    steps::ack(connection, job, token, &End::Done(result), None, bytes_max, now_ms)?;
    ended(connection, &shard, now_ms)
}

/// A leased shard goes back into the queue with what it has so far.
pub(super) fn pause(
    connection: &Connection,
    job: JobId,
    token: u64,
    output: Output,
    back: &Again,
    bytes_max: u64,
    now_ms: u64,
) -> Done<()> {
    let place = steps::held(connection, job, token)?;
    let Some(mut shard) = open_shard(connection, job)? else { return Err(JobError::LeaseLost) };
    if !keep(connection, &place.tenant, &mut shard, output, bytes_max)? {
        let end = End::Dead { error: RESULT_QUOTA.to_owned() };
        return steps::ack(connection, job, token, &end, None, bytes_max, now_ms);
    }
    steps::nack(connection, job, token, back, 0)
}

/// Notes the end of a shard, once, and of its batch with the last one. What it has not answered has failed.
fn ended(connection: &Connection, shard: &Open, now_ms: u64) -> Done<()> {
    let lost = shard.failed + shard.lines - shard.answered;
    run(
        connection,
        "UPDATE shards SET done = ?3, failed = ?4 WHERE batch = ?1 AND first_line = ?2",
        params![shard.batch, shard.first_line, ENDED, lost],
    )?;
    run(
        connection,
        "UPDATE batches SET done_lines = done_lines + ?2, done_shards = done_shards + 1, \
         failed_lines = failed_lines + ?3 WHERE id = ?1",
        params![shard.batch, shard.lines, lost],
    )?;
    run(
        connection,
        "UPDATE batches SET state = 2, finished_ms = ?2, expires_ms = ?3 \
         WHERE id = ?1 AND done_shards = shards AND state < 2",
        params![shard.batch, now_ms.cast_signed(), (now_ms + KEPT_MS).cast_signed()],
    )
    .map(drop)
}

/// A job that was given up may be a shard.
pub(super) fn given_up(connection: &Connection, place: &Place, now_ms: u64) -> Done<()> {
    if place.lane != Lane::Batch {
        return Ok(());
    }
    match open_shard(connection, place.id)? {
        Some(shard) => ended(connection, &shard, now_ms),
        None => Ok(()),
    }
}

/// Cuts a leased shard that is a suspect into its lines, of which `parts` are the places in the input, each with an id
/// for its job. Each runs with no other job beside it, so that the one to blame convicts itself alone.
pub(super) fn split(
    connection: &Connection,
    job: JobId,
    token: u64,
    parts: &[(JobId, u64, u64)],
    now_ms: u64,
) -> Done<()> {
    let mut place = steps::held(connection, job, token)?;
    let Some(shard) = open_shard(connection, job)? else { return Err(JobError::LeaseLost) };
    let Some(((_, _, first_bytes), rest)) = parts.split_first() else { return Ok(()) };
    unlease(connection, &place)?;
    count(connection, &place.tenant, &shard.batch, -shard.output_bytes)?;
    run(
        connection,
        "UPDATE shards SET lines = 1, bytes = ?3, answered = 0, failed = 0, output = NULL, output_bytes = 0 \
         WHERE batch = ?1 AND first_line = ?2",
        params![shard.batch, shard.first_line, first_bytes.cast_signed()],
    )?;
    let sql = "UPDATE batches SET shards = shards + ?2 WHERE id = ?1";
    run(connection, sql, params![shard.batch, rest.len() as i64])?;
    let sql = "UPDATE jobs SET attempts_max = ?2 WHERE id = ?1";
    run(connection, sql, params![key(job), SUSPECT_ATTEMPTS])?;
    (place.attempts, place.attempts_max, place.ready_ms) = (0, SUSPECT_ATTEMPTS, now_ms);
    let batch = key(id_of(&shard.batch)?);
    for (line, (id, offset, bytes)) in (shard.first_line.cast_unsigned() + 1..).zip(rest) {
        let part =
            NewShard { job: *id, first_line: line, lines: 1, offset: *offset, bytes: *bytes };
        insert(connection, batch, &part)?;
        let place = Place { id: *id, ..place.clone() };
        like(connection, job, &place, now_ms)?;
    }
    again(connection, &place, None, now_ms)
}

/// A pending job like the one with the id `model`, at another place.
fn like(connection: &Connection, model: JobId, place: &Place, now_ms: u64) -> Done<()> {
    run(
        connection,
        "INSERT INTO jobs (id, tenant, function, selector, state, lane, priority, created_ms, ready_ms, deadline_ms, \
         attempts, attempts_max, crashes, lease, lease_until_ms, timeout_ms, result_ttl_ms, webhook_state, \
         webhook_attempts, within_ms) SELECT ?2, tenant, function, selector, 0, lane, priority, created_ms, ?3, \
         deadline_ms, 0, ?4, ?5, 0, 0, timeout_ms, result_ttl_ms, 0, 0, within_ms FROM jobs WHERE id = ?1",
        params![
            key(model),
            key(place.id),
            place.ready_ms.cast_signed(),
            place.attempts_max,
            place.crashes
        ],
    )?;
    let size: Option<i64> = connection
        .prepare_cached(
            "INSERT INTO payloads SELECT ?2, request, body, body_blob, size FROM payloads WHERE id = ?1 RETURNING size",
        )
        .and_then(|mut statement| {
            let ids = params![key(model), key(place.id)];
            statement.query_row(ids, |row| row.get(0)).optional()
        })
        .map_err(failed)?;
    steps::into_list(connection, place, now_ms)?;
    steps::add_waiting(connection, &place.tenant, place.lane, 1)?;
    add_bytes(connection, &place.tenant, size.unwrap_or(0))
}

fn state(connection: &Connection, tenant: &TenantName, id: JobId) -> Done<i64> {
    let found: Option<i64> = connection
        .prepare_cached("SELECT state FROM batches WHERE id = ?1 AND tenant = ?2")
        .and_then(|mut statement| {
            let of = params![key(id), tenant.as_str()];
            statement.query_row(of, |row| row.get(0)).optional()
        })
        .map_err(failed)?;
    found.ok_or(JobError::NotFound)
}

/// Takes a batch back. Its shards end by and by, see [`end_cancelled`]. Of one that has ended, what came out goes.
pub(super) fn cancel(
    connection: &Connection,
    tenant: &TenantName,
    id: JobId,
    now_ms: u64,
) -> Done<()> {
    let state = state(connection, tenant, id)?;
    let runs =
        state == CREATING || matches!(state_of(state)?, JobState::Pending | JobState::Running);
    let now = now_ms.cast_signed();
    if !runs {
        let sql = "UPDATE batches SET expires_ms = ?2 WHERE id = ?1";
        return run(connection, sql, params![key(id), now]).map(drop);
    }
    let kept_ms = if state == CREATING { 0 } else { KEPT_MS.cast_signed() };
    run(
        connection,
        "UPDATE batches SET state = 4, cancelling = 1, finished_ms = ?2, expires_ms = ?3 WHERE id = ?1",
        params![key(id), now, now + kept_ms],
    )
    .map(drop)
}

/// Batches that were not written down whole when the node went down.
pub(super) fn drop_unfinished(connection: &Connection, now_ms: u64) -> Done<()> {
    let sql = "UPDATE batches SET state = 4, cancelling = 1, finished_ms = ?2, expires_ms = ?2 WHERE state = ?1";
    run(connection, sql, params![CREATING, now_ms.cast_signed()]).map(drop)
}

/// Ends shards of batches that were taken back; gives their jobs, and whether that were all.
pub(super) fn end_cancelled(connection: &Connection, now_ms: u64) -> Done<(Vec<JobId>, bool)> {
    let batch: Option<(Vec<u8>, String)> = connection
        .prepare_cached("SELECT id, tenant FROM batches WHERE cancelling = 1 LIMIT 1")
        .and_then(|mut statement| {
            statement.query_row([], |row| Ok((row.get(0)?, row.get(1)?))).optional()
        })
        .map_err(failed)?;
    let Some((batch, tenant)) = batch else { return Ok((Vec::new(), true)) };
    let tenant = tenant.parse().map_err(|_| damaged("a name"))?;
    let open = "SELECT job FROM shards WHERE batch = ?1 AND done = 0 ORDER BY first_line LIMIT ?2";
    let jobs = steps::ids(connection, open, params![batch, MOVED_MAX])?;
    for job in &jobs {
        match owner::cancel(connection, &tenant, *job, now_ms) {
            Ok(_) | Err(JobError::NotFound) => {}
            Err(error) => return Err(error),
        }
    }
    run(
        connection,
        "UPDATE shards SET done = ?2 WHERE (batch, first_line) IN \
         (SELECT batch, first_line FROM shards WHERE batch = ?1 AND done = 0 ORDER BY first_line LIMIT ?3)",
        params![batch, CANCELLED, MOVED_MAX],
    )?;
    if (jobs.len() as i64) < MOVED_MAX {
        run(connection, "UPDATE batches SET cancelling = 0 WHERE id = ?1", params![batch])?;
    }
    Ok((jobs, false))
}

/// Drops batches and blobs that have had their time; says whether there may be more.
pub(super) fn expire(connection: &Connection, now_ms: u64) -> Done<bool> {
    let now = now_ms.cast_signed();
    let old: Option<(Vec<u8>, String, i64)> = connection
        .prepare_cached(
            "SELECT id, tenant, bytes FROM batches WHERE expires_ms <= ?1 AND cancelling = 0 \
             ORDER BY expires_ms LIMIT 1",
        )
        .and_then(|mut statement| {
            let read = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
            statement.query_row([now], read).optional()
        })
        .map_err(failed)?;
    let mut more = false;
    if let Some((batch, tenant, bytes)) = old {
        more = true;
        let sql = "DELETE FROM shards WHERE (batch, first_line) IN \
            (SELECT batch, first_line FROM shards WHERE batch = ?1 LIMIT ?2)";
        if (run(connection, sql, params![batch, MOVED_MAX])? as i64) < MOVED_MAX {
            run(connection, "DELETE FROM batches WHERE id = ?1", params![batch])?;
            let tenant = tenant.parse().map_err(|_| damaged("a name"))?;
            add_bytes(connection, &tenant, -bytes)?;
        }
    }
    Ok(expire_blobs(connection, now)? as i64 == MOVED_MAX || more)
}

fn expire_blobs(connection: &Connection, now: i64) -> Done<usize> {
    let mut statement = connection
        .prepare_cached("SELECT tenant, digest FROM blobs WHERE expires_ms <= ?1 LIMIT ?2")
        .map_err(failed)?;
    let mut rows = statement.query(params![now, MOVED_MAX]).map_err(failed)?;
    let mut old = Vec::new();
    while let Some(row) = rows.next().map_err(failed)? {
        let tenant: String = row.get(0).map_err(failed)?;
        let digest = digest_of(&row.get::<_, Vec<u8>>(1).map_err(failed)?)?;
        old.push((tenant.parse().map_err(|_| damaged("a name"))?, digest));
    }
    for (tenant, digest) in &old {
        disown(connection, tenant, digest)?;
    }
    Ok(old.len())
}

/// Takes a tenant's blob away; false where it had none such.
pub(super) fn disown(connection: &Connection, tenant: &TenantName, digest: &Digest) -> Done<bool> {
    let size: Option<i64> = connection
        .prepare_cached("DELETE FROM blobs WHERE tenant = ?1 AND digest = ?2 RETURNING size")
        .and_then(|mut statement| {
            let blob = params![tenant.as_str(), digest.0];
            statement.query_row(blob, |row| row.get(0)).optional()
        })
        .map_err(failed)?;
    let Some(size) = size else { return Ok(false) };
    add_bytes(connection, tenant, -charge_of(size.cast_unsigned()))?;
    Ok(true)
}
