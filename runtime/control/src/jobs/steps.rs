//! What moves a job: each function is one command, done within the writer's transaction.

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, params};
use sandpiper_domain::{
    Again, Digest, End, Enqueued, JobError, JobId, JobResult, JobState, Lane, NewJob, TenantName,
};

use super::{
    expiry::entomb,
    failed,
    row::{self, Place, digest_of, id_of, key, lane_number, state_number},
    shards,
};

/// What remains of a job after its result is kept so long.
pub(super) const TOMBSTONE_MS: u64 = 7 * 24 * 3_600_000;
/// Rows that one command moves at most, so that no commit takes long.
pub(super) const MOVED_MAX: i64 = 1_000;
const WEBHOOK_DUE: i64 = 1;
/// What a request or a result counts beyond its own bytes, so that empty ones are bounded too.
const ROW_BYTES: i64 = 256;

/// Why a result was not kept.
pub(super) const RESULT_QUOTA: &str = "result_quota: the requests and results of the tenant take as many bytes as \
    they may; delete results, then send the job on its way again";

/// Bytes in the row, or the blob that holds them.
#[derive(Debug, Clone)]
pub(super) enum Kept {
    Inline(Bytes),
    Blob(Digest, u64),
}

impl Kept {
    pub(super) fn columns(&self) -> (Option<&[u8]>, Option<&[u8]>) {
        match self {
            Kept::Inline(bytes) => (Some(bytes), None),
            Kept::Blob(digest, _) => (None, Some(&digest.0)),
        }
    }

    pub(super) fn size(&self) -> u64 {
        match self {
            Kept::Inline(bytes) => bytes.len() as u64,
            Kept::Blob(_, size) => *size,
        }
    }
}

pub(super) type Done<T> = Result<T, JobError>;

/// Runs one statement that changes rows; gives how many.
pub(super) fn run(
    connection: &Connection,
    sql: &str,
    parameters: impl rusqlite::Params,
) -> Done<usize> {
    let changed = connection.prepare_cached(sql).and_then(|mut s| s.execute(parameters));
    Ok(changed.map_err(failed)?)
}

pub(super) fn ids(
    connection: &Connection,
    sql: &str,
    parameters: impl rusqlite::Params,
) -> Done<Vec<JobId>> {
    let mut statement = connection.prepare_cached(sql).map_err(failed)?;
    let mut rows = statement.query(parameters).map_err(failed)?;
    let mut ids = Vec::new();
    while let Some(row) = rows.next().map_err(failed)? {
        ids.push(id_of(row.get_ref(0).and_then(|id| Ok(id.as_blob()?)).map_err(failed)?)?);
    }
    Ok(ids)
}

pub(super) fn enqueue(
    connection: &Connection,
    job: &NewJob,
    body: &Kept,
    now_ms: u64,
) -> Done<Enqueued> {
    if let Some((name, fingerprint)) = &job.idempotency {
        let known: Option<(Vec<u8>, Vec<u8>)> = connection
            .prepare_cached(
                "SELECT id, fingerprint FROM idempotency WHERE tenant = ?1 AND function = ?2 AND key = ?3",
            )
            .and_then(|mut statement| {
                let key = (job.tenant.as_str(), job.function.as_str(), name);
                statement.query_row(key, |row| Ok((row.get(0)?, row.get(1)?))).optional()
            })
            .map_err(failed)?;
        if let Some((id, known)) = known {
            let same = digest_of(&known)? == *fingerprint;
            return if same {
                Ok(Enqueued::Known(id_of(&id)?))
            } else {
                Err(JobError::KeyConflict)
            };
        }
    }
    let (waiting, bytes) = held_by(connection, &job.tenant)?;
    if waiting >= u64::from(job.waiting_max) || bytes + body.size() > job.bytes_max {
        return Err(JobError::TenantFull);
    }
    insert(connection, job, body, now_ms)?;
    if let Some((name, fingerprint)) = &job.idempotency {
        let (tenant, function) = (job.tenant.as_str(), job.function.as_str());
        run(
            connection,
            "INSERT INTO idempotency VALUES (?1, ?2, ?3, ?4, ?5)",
            params![tenant, function, name, fingerprint.0, key(job.id)],
        )?;
    }
    Ok(Enqueued::New)
}

/// Writes a job down, pending.
pub(super) fn insert(connection: &Connection, job: &NewJob, body: &Kept, now_ms: u64) -> Done<()> {
    let place = Place {
        id: job.id,
        tenant: job.tenant.clone(),
        state: JobState::Pending,
        lane: job.lane,
        priority: job.priority.into(),
        ready_ms: job.ready_ms,
        attempts: 0,
        attempts_max: job.attempts_max,
        crashes: 0,
        lease: 0,
        lease_until_ms: 0,
        webhook: job.webhook.is_some(),
    };
    run(
        connection,
        "INSERT INTO jobs (id, tenant, function, selector, state, lane, priority, created_ms, ready_ms, deadline_ms, \
         attempts, attempts_max, crashes, lease, lease_until_ms, timeout_ms, result_ttl_ms, webhook, webhook_state, \
         webhook_attempts, within_ms) \
         VALUES (?1, ?2, ?3, ?4, 0, ?5, ?6, ?7, ?8, ?9, 0, ?10, 0, 0, 0, ?11, ?12, ?13, 0, 0, ?14)",
        params![
            key(job.id),
            job.tenant.as_str(),
            job.function.as_str(),
            job.selector.to_string(),
            lane_number(job.lane),
            job.priority,
            job.created_ms.cast_signed(),
            job.ready_ms.cast_signed(),
            job.deadline_ms.cast_signed(),
            job.attempts_max,
            job.timeout_ms.cast_signed(),
            job.result_ttl_ms.cast_signed(),
            job.webhook,
            job.deadline_ms.saturating_sub(job.ready_ms).cast_signed(),
        ],
    )?;
    let (bytes, blob) = body.columns();
    let request = row::request_text(&job.request);
    let size = ROW_BYTES + request.len() as i64 + body.size().cast_signed();
    run(
        connection,
        "INSERT INTO payloads VALUES (?1, ?2, ?3, ?4, ?5)",
        params![key(job.id), request, bytes, blob, size],
    )?;
    into_list(connection, &place, now_ms)?;
    add_waiting(connection, &job.tenant, job.lane, 1)?;
    add_bytes(connection, &job.tenant, size)
}

/// How many jobs of a tenant wait, and the bytes of its requests and results.
pub(super) fn held_by(connection: &Connection, tenant: &TenantName) -> Done<(u64, u64)> {
    let held: Option<(i64, i64)> = connection
        .prepare_cached("SELECT jobs, bytes FROM waiting WHERE tenant = ?1")
        .and_then(|mut s| {
            s.query_row([tenant.as_str()], |row| Ok((row.get(0)?, row.get(1)?))).optional()
        })
        .map_err(failed)?;
    let (jobs, bytes) = held.unwrap_or_default();
    Ok((jobs.max(0).cast_unsigned(), bytes.max(0).cast_unsigned()))
}

/// Counts jobs of a lane that wait, or wait no more.
pub(super) fn add_waiting(
    connection: &Connection,
    tenant: &TenantName,
    lane: Lane,
    jobs: i64,
) -> Done<()> {
    let shards = if lane == Lane::Batch { jobs } else { 0 };
    add_held(connection, tenant, jobs, shards, 0)
}

/// Counts bytes that a tenant keeps, or keeps no more.
pub(super) fn add_bytes(connection: &Connection, tenant: &TenantName, bytes: i64) -> Done<()> {
    add_held(connection, tenant, 0, 0, bytes)
}

fn add_held(
    connection: &Connection,
    tenant: &TenantName,
    jobs: i64,
    shards: i64,
    bytes: i64,
) -> Done<()> {
    run(
        connection,
        "INSERT INTO waiting VALUES (?1, ?2, ?3, ?4) ON CONFLICT (tenant) \
         DO UPDATE SET jobs = jobs + excluded.jobs, shards = shards + excluded.shards, \
         bytes = bytes + excluded.bytes",
        params![tenant.as_str(), jobs, shards, bytes],
    )
    .map(drop)
}

/// What a job carries.
#[derive(Debug, Clone, Copy)]
pub(super) enum Carried {
    Payload,
    Result,
}

/// Drops what a job was asked or answered, and with it the tenant's bytes.
pub(super) fn drop_bytes(
    connection: &Connection,
    carried: Carried,
    tenant: &TenantName,
    id: JobId,
) -> Done<()> {
    match take_bytes(connection, carried, id)? {
        0 => Ok(()),
        size => add_bytes(connection, tenant, -size),
    }
}

/// Drops what a job was asked or answered; gives how many bytes that were.
fn take_bytes(connection: &Connection, carried: Carried, id: JobId) -> Done<i64> {
    let sql = match carried {
        Carried::Payload => "DELETE FROM payloads WHERE id = ?1 RETURNING size",
        Carried::Result => "DELETE FROM results WHERE id = ?1 RETURNING size",
    };
    let size: Option<i64> = connection
        .prepare_cached(sql)
        .and_then(|mut s| s.query_row(params![key(id)], |row| row.get(0)).optional())
        .map_err(failed)?;
    Ok(size.unwrap_or(0))
}

pub(super) fn into_list(connection: &Connection, place: &Place, now_ms: u64) -> Done<()> {
    let (ready, id) = (place.ready_ms.cast_signed(), key(place.id));
    match place.ready_ms > now_ms {
        true => run(connection, "INSERT INTO delayed VALUES (?1, ?2)", params![ready, id]),
        false => run(
            connection,
            "INSERT INTO ready VALUES (?1, ?2, ?3, ?4, ?5)",
            params![place.tenant.as_str(), place.list(), -place.priority, ready, id],
        ),
    }
    .map(drop)
}

pub(super) fn out_of_list(connection: &Connection, place: &Place) -> Done<()> {
    let (ready, id) = (place.ready_ms.cast_signed(), key(place.id));
    let sql = "DELETE FROM ready WHERE tenant = ?1 AND lane = ?2 AND rank = ?3 AND ready_ms = ?4 AND id = ?5";
    let tenant = place.tenant.as_str();
    if run(connection, sql, params![tenant, place.list(), -place.priority, ready, id])? == 0 {
        run(connection, "DELETE FROM delayed WHERE ready_ms = ?1 AND id = ?2", params![ready, id])?;
    }
    Ok(())
}

/// Takes the lease of a job away and lets it run again, unless it has had all its attempts.
pub(super) fn give_back(
    connection: &Connection,
    id: JobId,
    now_ms: u64,
    crashed: bool,
    why: &str,
) -> Done<()> {
    let Some(mut place) = Place::load(connection, id)? else { return Ok(()) };
    unlease(connection, &place)?;
    if crashed {
        place.crashes += 1;
    }
    if place.attempts >= place.attempts_max {
        return finish(connection, &place, JobState::Dead, Some(why), now_ms);
    }
    place.ready_ms = now_ms;
    again(connection, &place, Some(why), now_ms)
}

pub(super) fn unlease(connection: &Connection, place: &Place) -> Done<()> {
    let until = place.lease_until_ms.cast_signed();
    let sql = "DELETE FROM leased WHERE lease_until_ms = ?1 AND id = ?2";
    run(connection, sql, params![until, key(place.id)]).map(drop)
}

/// Pending again, as `place` says.
pub(super) fn again(
    connection: &Connection,
    place: &Place,
    error: Option<&str>,
    now_ms: u64,
) -> Done<()> {
    run(
        connection,
        "UPDATE jobs SET state = 0, attempts = ?2, crashes = ?3, ready_ms = ?4, lease = 0, lease_until_ms = 0, \
         error = ?5 WHERE id = ?1",
        params![key(place.id), place.attempts, place.crashes, place.ready_ms.cast_signed(), error],
    )?;
    into_list(connection, place, now_ms)?;
    add_waiting(connection, &place.tenant, place.lane, 1)
}

/// The end without a result of a job that is in no list any more.
pub(super) fn finish(
    connection: &Connection,
    place: &Place,
    state: JobState,
    error: Option<&str>,
    now_ms: u64,
) -> Done<()> {
    let kept = match (state, place.lane) {
        (JobState::Cancelled, Lane::Batch) => 0,
        _ => TOMBSTONE_MS,
    };
    let expires = now_ms.saturating_add(kept).cast_signed();
    let told = place.webhook && state != JobState::Cancelled;
    run(
        connection,
        "UPDATE jobs SET state = ?2, crashes = ?3, error = ?4, finished_ms = ?5, expires_ms = ?6, webhook_state = ?7, \
         lease = 0, lease_until_ms = 0 WHERE id = ?1",
        params![
            key(place.id),
            state_number(state),
            place.crashes,
            error,
            now_ms.cast_signed(),
            expires,
            if told { WEBHOOK_DUE } else { 0 },
        ],
    )?;
    run(
        connection,
        "INSERT OR REPLACE INTO expiring VALUES (?1, ?2)",
        params![expires, key(place.id)],
    )?;
    if told {
        let due = params![place.tenant.as_str(), now_ms.cast_signed(), key(place.id)];
        run(connection, "INSERT OR REPLACE INTO webhooks VALUES (?1, ?2, ?3)", due)?;
    }
    if state == JobState::Cancelled && place.lane != Lane::Batch {
        entomb(connection, &place.tenant, place.id)?;
    }
    // A dead job may be sent on its way again, and needs its request for that.
    match state {
        JobState::Dead => shards::given_up(connection, place, now_ms),
        _ => drop_bytes(connection, Carried::Payload, &place.tenant, place.id),
    }
}

/// The job, if the lease is still this one.
pub(super) fn held(connection: &Connection, id: JobId, token: u64) -> Done<Place> {
    let place = Place::load(connection, id)?.ok_or(JobError::LeaseLost)?;
    let is_held = place.state == JobState::Running && place.lease == token;
    is_held.then_some(place).ok_or(JobError::LeaseLost)
}

/// The end of a leased job. `result` is the one of `End::Done`, kept, unless the tenant would then keep more than
/// `bytes_max`.
pub(super) fn ack(
    connection: &Connection,
    id: JobId,
    token: u64,
    end: &End,
    result: Option<&Kept>,
    bytes_max: u64,
    now_ms: u64,
) -> Done<()> {
    match (end, result) {
        (End::Done(answer), kept) => {
            answered(connection, id, token, (answer, kept), bytes_max, now_ms)
        }
        (End::Dead { error }, _) => {
            let place = held(connection, id, token)?;
            unlease(connection, &place)?;
            finish(connection, &place, JobState::Dead, Some(error), now_ms)
        }
    }
}

/// What [`held`], [`unlease`] and [`finish`] do, in half as many statements: it is the end of most jobs.
fn answered(
    connection: &Connection,
    id: JobId,
    token: u64,
    (answer, kept): (&JobResult, Option<&Kept>),
    bytes_max: u64,
    now_ms: u64,
) -> Done<()> {
    let JobResult { status, headers, version, .. } = answer;
    let ended = params![key(id), token.cast_signed(), version, now_ms.cast_signed(), WEBHOOK_DUE];
    let ended: Option<(String, i64, i64, bool)> = connection
        .prepare_cached(
            "UPDATE jobs SET state = 2, error = NULL, version = ?3, finished_ms = ?4, expires_ms = ?4 + result_ttl_ms, \
             webhook_state = CASE WHEN webhook IS NULL THEN 0 ELSE ?5 END, lease = 0 \
             WHERE id = ?1 AND state = 1 AND lease = ?2 \
             RETURNING tenant, lease_until_ms, expires_ms, webhook IS NOT NULL",
        )
        .and_then(|mut statement| {
            let read = |row: &rusqlite::Row<'_>| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
            };
            statement.query_row(ended, read).optional()
        })
        .map_err(failed)?;
    let (tenant, until, expires, is_told) = ended.ok_or(JobError::LeaseLost)?;
    let tenant: TenantName = tenant.parse().map_err(|_| row::damaged("a name"))?;
    let leased = "DELETE FROM leased WHERE lease_until_ms = ?1 AND id = ?2";
    run(connection, leased, params![until, key(id)])?;
    let mut added = 0;
    if let Some(kept) = kept {
        let (bytes, blob) = kept.columns();
        let headers = row::headers_text(headers);
        added = ROW_BYTES + headers.len() as i64 + kept.size().cast_signed();
        if held_by(connection, &tenant)?.1 + added.cast_unsigned() > bytes_max {
            let place = Place::load(connection, id)?.ok_or(JobError::LeaseLost)?;
            return finish(connection, &place, JobState::Dead, Some(RESULT_QUOTA), now_ms);
        }
        run(
            connection,
            "INSERT INTO results VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![key(id), status, headers, bytes, blob, added],
        )?;
    }
    let expiring = "INSERT OR REPLACE INTO expiring VALUES (?1, ?2)";
    run(connection, expiring, params![expires, key(id)])?;
    if is_told {
        let due = params![tenant.as_str(), now_ms.cast_signed(), key(id)];
        run(connection, "INSERT OR REPLACE INTO webhooks VALUES (?1, ?2, ?3)", due)?;
    }
    let taken = take_bytes(connection, Carried::Payload, id)?;
    add_bytes(connection, &tenant, added - taken)
}

pub(super) fn nack(
    connection: &Connection,
    id: JobId,
    token: u64,
    back: &Again,
    now_ms: u64,
) -> Done<()> {
    let mut place = held(connection, id, token)?;
    unlease(connection, &place)?;
    if !back.counts {
        place.attempts = place.attempts.saturating_sub(1);
    }
    if place.attempts >= place.attempts_max {
        return finish(connection, &place, JobState::Dead, Some(&back.error), now_ms);
    }
    place.ready_ms = back.not_before_ms;
    again(connection, &place, Some(&back.error), now_ms)
}

pub(super) fn extend(connection: &Connection, id: JobId, token: u64, until_ms: u64) -> Done<()> {
    let place = held(connection, id, token)?;
    unlease(connection, &place)?;
    let until = until_ms.cast_signed();
    run(connection, "UPDATE jobs SET lease_until_ms = ?2 WHERE id = ?1", params![key(id), until])?;
    run(connection, "INSERT INTO leased VALUES (?1, ?2)", params![until, key(id)]).map(drop)
}

pub(super) fn reclaim(connection: &Connection, now_ms: u64, crashed: bool) -> Done<usize> {
    if crashed {
        shards::drop_unfinished(connection, now_ms)?;
    }
    let all = ids(connection, "SELECT id FROM leased", [])?;
    let why = "the server ended while it ran";
    all.iter().try_for_each(|id| give_back(connection, *id, now_ms, crashed, why))?;
    Ok(all.len())
}
