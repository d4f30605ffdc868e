//! How jobs are written down.

use bytes::Bytes;
use rusqlite::{Connection, Row, params};
use sandpiper_domain::{
    Digest, JobError, JobId, JobRequest, JobState, Lane, NewJob, StoreError, TenantName,
};

use super::failed;

/// Where a job that has brought the node down twice waits: it runs with no other beside it.
pub(super) const APART: i64 = 3;
/// So many ends of the node make a job a suspect.
pub const CRASHES_MAX: u32 = 2;

pub(super) fn key(id: JobId) -> [u8; 16] {
    id.0.to_be_bytes()
}

pub(super) fn id_of(bytes: &[u8]) -> Result<JobId, JobError> {
    let bytes = bytes.try_into().map_err(|_| damaged("an id"))?;
    Ok(JobId(u128::from_be_bytes(bytes)))
}

pub(super) fn digest_of(bytes: &[u8]) -> Result<Digest, JobError> {
    bytes.try_into().map(Digest).map_err(|_| damaged("a digest"))
}

pub(super) fn damaged(what: &str) -> JobError {
    StoreError::Failed(format!("the queue of jobs is damaged: {what} is unreadable")).into()
}

pub(super) const STATES: [JobState; 5] =
    [JobState::Pending, JobState::Running, JobState::Done, JobState::Dead, JobState::Cancelled];

pub(super) fn state_number(state: JobState) -> i64 {
    STATES.iter().position(|other| *other == state).unwrap_or(0) as i64
}

pub(super) fn state_of(number: i64) -> Result<JobState, JobError> {
    let state = usize::try_from(number).ok().and_then(|number| STATES.get(number));
    state.copied().ok_or_else(|| damaged("a state"))
}

pub(super) fn lane_number(lane: Lane) -> i64 {
    match lane {
        Lane::Interactive => 0,
        Lane::Job => 1,
        Lane::Batch => 2,
    }
}

pub(super) fn lane_of(number: i64) -> Lane {
    match number {
        0 => Lane::Interactive,
        2 => Lane::Batch,
        _ => Lane::Job,
    }
}

/// Headers as lines; a value holds any byte but those that end a line.
pub(super) fn headers_text(headers: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut text = Vec::new();
    for (name, value) in headers {
        text.extend_from_slice(name.as_bytes());
        text.push(b':');
        text.extend(value.iter().filter(|byte| **byte != b'\n'));
        text.push(b'\n');
    }
    text
}

pub(super) fn headers_of(text: &[u8]) -> Vec<(String, Vec<u8>)> {
    let lines = text.split(|byte| *byte == b'\n');
    let pairs = lines.filter_map(|line| {
        let colon = line.iter().position(|byte| *byte == b':')?;
        Some((String::from_utf8_lossy(&line[..colon]).into_owned(), line[colon + 1..].to_vec()))
    });
    pairs.collect()
}

pub(super) fn request_text(request: &JobRequest) -> Vec<u8> {
    let mut text = format!("{} {}\n", request.method, request.path_and_query).into_bytes();
    text.extend(headers_text(&request.headers));
    text
}

fn request_of(text: &[u8]) -> Result<JobRequest, JobError> {
    let end = text.iter().position(|byte| *byte == b'\n').ok_or_else(|| damaged("a request"))?;
    let line = std::str::from_utf8(&text[..end]).map_err(|_| damaged("a request"))?;
    let (method, path) = line.split_once(' ').ok_or_else(|| damaged("a request"))?;
    Ok(JobRequest {
        method: method.to_owned(),
        path_and_query: path.to_owned(),
        headers: headers_of(&text[end + 1..]),
    })
}

/// Where a job stands in the lists, which is all that moving it needs.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) id: JobId,
    pub(super) tenant: TenantName,
    pub(super) state: JobState,
    pub(super) lane: Lane,
    pub(super) priority: i64,
    pub(super) ready_ms: u64,
    pub(super) attempts: u32,
    pub(super) attempts_max: u32,
    pub(super) crashes: u32,
    pub(super) lease: u64,
    pub(super) lease_until_ms: u64,
    pub(super) webhook: bool,
}

impl Place {
    pub(super) fn load(connection: &Connection, id: JobId) -> Result<Option<Place>, JobError> {
        let mut statement = connection
            .prepare_cached(
                "SELECT tenant, state, lane, priority, ready_ms, attempts, attempts_max, crashes, lease, \
                 lease_until_ms, webhook IS NOT NULL FROM jobs WHERE id = ?1",
            )
            .map_err(failed)?;
        let mut rows = statement.query(params![key(id)]).map_err(failed)?;
        let Some(row) = rows.next().map_err(failed)? else { return Ok(None) };
        let count = |column| number(row, column).map_err(failed);
        let tenant: String = row.get(0).map_err(failed)?;
        Ok(Some(Place {
            id,
            tenant: tenant.parse().map_err(|_| damaged("a name"))?,
            state: state_of(row.get(1).map_err(failed)?)?,
            lane: lane_of(row.get(2).map_err(failed)?),
            priority: row.get(3).map_err(failed)?,
            ready_ms: count(4)?,
            attempts: row.get(5).map_err(failed)?,
            attempts_max: row.get(6).map_err(failed)?,
            crashes: row.get(7).map_err(failed)?,
            lease: count(8)?,
            lease_until_ms: count(9)?,
            webhook: row.get(10).map_err(failed)?,
        }))
    }

    /// The list of ready jobs that it belongs in.
    pub(super) fn list(&self) -> i64 {
        if self.crashes >= CRASHES_MAX { APART } else { lane_number(self.lane) }
    }
}

pub(super) fn number(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    Ok(row.get::<_, i64>(column)?.cast_unsigned())
}

/// A job as a worker gets it; its body too, unless that lies in a blob.
pub(super) struct Loaded {
    /// Where it stood in its list.
    pub(super) rank: i64,
    pub(super) job: NewJob,
    pub(super) attempts: u32,
    pub(super) crashes: u32,
    /// And how long it is about.
    pub(super) blob: Option<(Digest, u64)>,
}

/// The best ready jobs of one list, with all that [`Loaded`] has.
pub(super) const HEADS: &str = "SELECT j.tenant, j.function, j.selector, j.lane, j.priority, j.created_ms, j.ready_ms, \
    j.deadline_ms, j.attempts, j.attempts_max, j.crashes, j.timeout_ms, j.result_ttl_ms, j.webhook, \
    p.request, p.body, p.body_blob, j.id, r.rank, p.size FROM ready r CROSS JOIN jobs j ON j.id = r.id \
    LEFT JOIN payloads p ON p.id = j.id WHERE r.tenant = ?1 AND r.lane = ?2 \
    ORDER BY r.rank, r.ready_ms, r.id LIMIT ?3";

/// Reads a row of [`HEADS`].
pub(super) fn read(row: &Row<'_>) -> Result<Loaded, JobError> {
    let id = id_of(row.get_ref(17).and_then(|id| Ok(id.as_blob()?)).map_err(failed)?)?;
    let text = |column| row.get::<_, String>(column).map_err(failed);
    let count = |column| number(row, column).map_err(failed);
    let bytes = |column| row.get::<_, Option<Vec<u8>>>(column).map_err(failed);
    let name = |_| damaged("a name");
    let request = request_of(&bytes(14)?.unwrap_or_default())?;
    let job = NewJob {
        id,
        tenant: text(0)?.parse().map_err(name)?,
        function: text(1)?.parse().map_err(name)?,
        selector: text(2)?.parse().map_err(|_| damaged("a selector"))?,
        request,
        body: Bytes::from(bytes(15)?.unwrap_or_default()),
        lane: lane_of(row.get(3).map_err(failed)?),
        priority: row.get(4).map_err(failed)?,
        created_ms: count(5)?,
        ready_ms: count(6)?,
        deadline_ms: count(7)?,
        attempts_max: row.get(9).map_err(failed)?,
        timeout_ms: count(11)?,
        result_ttl_ms: count(12)?,
        webhook: row.get(13).map_err(failed)?,
        idempotency: None,
        waiting_max: u32::MAX,
        bytes_max: u64::MAX,
    };
    let blob = match bytes(16)? {
        Some(digest) => Some((digest_of(&digest)?, count(19)?)),
        None => None,
    };
    let attempts = row.get(8).map_err(failed)?;
    let crashes = row.get(10).map_err(failed)?;
    let rank = row.get(18).map_err(failed)?;
    Ok(Loaded { rank, job, attempts, crashes, blob })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_read_as_it_was_written() {
        let request = JobRequest {
            method: "POST".to_owned(),
            path_and_query: "/a?b=c d:e".to_owned(),
            headers: vec![
                ("host".to_owned(), b"a:80".to_vec()),
                ("x-odd".to_owned(), vec![0xff, b':', b' ']),
                ("empty".to_owned(), Vec::new()),
            ],
        };
        assert_eq!(request_of(&request_text(&request)).unwrap(), request);
        assert!(request_of(b"").is_err());
    }
}
