//! What can be seen of jobs.

use bytes::Bytes;
use rusqlite::{OptionalExtension, Row, params};
use sandpiper_domain::{Digest, FunctionName, JobError, JobId, JobState, Lane, TenantName};

use super::{
    SqliteJobs, failed,
    row::{
        damaged, digest_of, headers_of, id_of, key, lane_number, number, state_number, state_of,
    },
    steps,
};

/// A job as its owner sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobView {
    /// Its id.
    pub id: JobId,
    /// The function it is for.
    pub function: FunctionName,
    /// Where it stands.
    pub state: JobState,
    /// Attempts so far.
    pub attempts: u32,
    /// Attempts it has.
    pub attempts_max: u32,
    /// The version that answered.
    pub version: Option<u32>,
    /// What went wrong last.
    pub error: Option<String>,
    /// When it came.
    pub created_ms: u64,
    /// When it may run.
    pub ready_ms: u64,
    /// When it ended.
    pub finished_ms: Option<u64>,
    /// When its result goes.
    pub expires_ms: Option<u64>,
    /// Who is told of its end.
    pub webhook: Option<String>,
    /// 0: not yet; 1: due; 2: told; 3: given up.
    pub webhook_state: u8,
}

/// Which jobs are listed.
#[derive(Debug, Clone, Default)]
pub struct JobFilter {
    /// Those in this state.
    pub state: Option<JobState>,
    /// Those of this function.
    pub function: Option<FunctionName>,
    /// Those that came before this one: the list begins with the newest.
    pub before: Option<JobId>,
    /// So many at most.
    pub limit: u32,
}

/// The answer of a function to a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResultView {
    /// The status.
    pub status: u16,
    /// The headers.
    pub headers: Vec<(String, Vec<u8>)>,
    /// The body, where it is short.
    pub body: Bytes,
    /// Where a long one is.
    pub blob: Option<Digest>,
}

const COLUMNS: &str = "id, function, state, attempts, attempts_max, version, error, created_ms, ready_ms, finished_ms, \
    expires_ms, webhook, webhook_state";

fn view(row: &Row<'_>) -> Result<JobView, JobError> {
    let function: String = row.get(1).map_err(failed)?;
    let when = |column| {
        let at = row.get::<_, Option<i64>>(column).map_err(failed)?;
        Ok::<_, JobError>(at.map(i64::cast_unsigned))
    };
    Ok(JobView {
        id: id_of(&row.get::<_, Vec<u8>>(0).map_err(failed)?)?,
        function: function.parse().map_err(|_| damaged("a name"))?,
        state: state_of(row.get(2).map_err(failed)?)?,
        attempts: row.get(3).map_err(failed)?,
        attempts_max: row.get(4).map_err(failed)?,
        version: row.get(5).map_err(failed)?,
        error: row.get(6).map_err(failed)?,
        created_ms: number(row, 7).map_err(failed)?,
        ready_ms: number(row, 8).map_err(failed)?,
        finished_ms: when(9)?,
        expires_ms: when(10)?,
        webhook: row.get(11).map_err(failed)?,
        webhook_state: row.get(12).map_err(failed)?,
    })
}

impl SqliteJobs {
    /// One job of a tenant. Blocks.
    pub fn get(&self, tenant: &TenantName, id: JobId) -> Result<Option<JobView>, JobError> {
        self.read(|connection| {
            let sql =
                format!("SELECT {COLUMNS} FROM jobs WHERE id = ?1 AND tenant = ?2 AND lane = 1");
            let mut statement = connection.prepare_cached(&sql).map_err(failed)?;
            let mut rows = statement.query(params![key(id), tenant.as_str()]).map_err(failed)?;
            rows.next().map_err(failed)?.map(view).transpose()
        })
    }

    /// Jobs of a tenant, the newest first. Blocks.
    pub fn list(&self, tenant: &TenantName, filter: &JobFilter) -> Result<Vec<JobView>, JobError> {
        self.read(|connection| {
            // Dead letters have an index of their own, which is found by the number in the text.
            let state = match filter.state {
                Some(JobState::Dead) => "state = 3 AND ?4 = 3",
                _ => "(?4 IS NULL OR state = ?4)",
            };
            let sql = format!(
                "SELECT {COLUMNS} FROM jobs WHERE tenant = ?1 AND id < ?2 AND lane = ?3 AND {state} \
                 AND (?5 IS NULL OR function = ?5) ORDER BY id DESC LIMIT ?6"
            );
            let mut statement = connection.prepare_cached(&sql).map_err(failed)?;
            let before = key(filter.before.unwrap_or(JobId(u128::MAX)));
            let parameters = params![
                tenant.as_str(),
                before,
                lane_number(Lane::Job),
                filter.state.map(state_number),
                filter.function.as_ref().map(FunctionName::as_str),
                filter.limit,
            ];
            let mut rows = statement.query(parameters).map_err(failed)?;
            let mut jobs = Vec::new();
            while let Some(row) = rows.next().map_err(failed)? {
                jobs.push(view(row)?);
            }
            Ok(jobs)
        })
    }

    /// What a job was answered, if that is still kept. Blocks.
    pub fn result(&self, id: JobId) -> Result<Option<ResultView>, JobError> {
        type Found = (u16, Vec<u8>, Option<Vec<u8>>, Option<Vec<u8>>);
        let found: Option<Found> = self.read(|connection| {
            let sql = "SELECT status, headers, body, body_blob FROM results WHERE id = ?1";
            let found = connection.prepare_cached(sql).and_then(|mut statement| {
                let read = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?));
                statement.query_row(params![key(id)], read).optional()
            });
            Ok(found.map_err(failed)?)
        })?;
        let Some((status, headers, body, blob)) = found else { return Ok(None) };
        let blob = blob.map(|digest| digest_of(&digest)).transpose()?;
        let (headers, body) = (headers_of(&headers), body.unwrap_or_default().into());
        Ok(Some(ResultView { status, headers, body, blob }))
    }

    /// Jobs and shards that wait, of all tenants: those ready and those delayed. Blocks.
    pub fn count_waiting(&self) -> Result<(u64, u64), JobError> {
        self.read(|connection| {
            let sql =
                "SELECT coalesce(sum(jobs - shards), 0), coalesce(sum(shards), 0) FROM waiting";
            let read = |row: &Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?));
            let (jobs, shards) = connection.query_row(sql, [], read).map_err(failed)?;
            Ok((jobs.max(0).cast_unsigned(), shards.max(0).cast_unsigned()))
        })
    }

    /// How many jobs of a tenant wait, and the bytes of all that is kept of it. Blocks.
    pub fn held_by(&self, tenant: &TenantName) -> Result<(u64, u64), JobError> {
        self.read(|connection| steps::held_by(connection, tenant))
    }
}
