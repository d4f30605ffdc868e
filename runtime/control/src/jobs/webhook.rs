//! Whom to tell of a job's end, and when.

use rusqlite::params;
use sandpiper_domain::{BoxFuture, FunctionName, JobError, JobId, JobState, TenantName};

use super::{
    SqliteJobs, failed,
    row::{damaged, id_of, key, number, state_of},
    steps::run,
};

/// One call to make.
#[derive(Debug, Clone)]
pub struct DueWebhook {
    /// The job that ended.
    pub id: JobId,
    /// Whose it is.
    pub tenant: TenantName,
    /// The function.
    pub function: FunctionName,
    /// How it ended.
    pub state: JobState,
    /// The status of its result.
    pub status: Option<u16>,
    /// Attempts it took.
    pub attempts: u32,
    /// Where to.
    pub url: String,
    /// Calls so far.
    pub calls: u32,
    /// When it became due.
    pub at_ms: u64,
}

impl SqliteJobs {
    /// Calls that are due. Blocks.
    pub fn due_webhooks(&self, now_ms: u64, count: u32) -> Result<Vec<DueWebhook>, JobError> {
        self.read(|connection| {
            let sql = "SELECT j.id, j.tenant, j.function, j.state, r.status, j.attempts, j.webhook, \
                j.webhook_attempts, w.at_ms FROM webhooks w JOIN jobs j ON j.id = w.id \
                LEFT JOIN results r ON r.id = w.id WHERE w.at_ms <= ?1 ORDER BY w.at_ms LIMIT ?2";
            let mut statement = connection.prepare_cached(sql).map_err(failed)?;
            let mut rows = statement.query(params![now_ms.cast_signed(), count]).map_err(failed)?;
            let mut due = Vec::new();
            while let Some(row) = rows.next().map_err(failed)? {
                let text = |column| row.get::<_, String>(column).map_err(failed);
                due.push(DueWebhook {
                    id: id_of(&row.get::<_, Vec<u8>>(0).map_err(failed)?)?,
                    tenant: text(1)?.parse().map_err(|_| damaged("a name"))?,
                    function: text(2)?.parse().map_err(|_| damaged("a name"))?,
                    state: state_of(row.get(3).map_err(failed)?)?,
                    status: row.get(4).map_err(failed)?,
                    attempts: row.get(5).map_err(failed)?,
                    url: text(6)?,
                    calls: row.get(7).map_err(failed)?,
                    at_ms: number(row, 8).map_err(failed)?,
                });
            }
            Ok(due)
        })
    }

    /// Notes how a call went: delivered, to be made again, or given up.
    pub fn webhook_called(
        &self,
        call: &DueWebhook,
        delivered: bool,
        again_ms: Option<u64>,
    ) -> BoxFuture<'static, Result<(), JobError>> {
        let (id, at_ms) = (call.id, call.at_ms);
        self.inner.submit(move |connection| {
            let due = params![at_ms.cast_signed(), key(id)];
            run(connection, "DELETE FROM webhooks WHERE at_ms = ?1 AND id = ?2", due)?;
            let state = match (delivered, again_ms) {
                (true, _) => 2,
                (false, Some(_)) => 1,
                (false, None) => 3,
            };
            run(
                connection,
                "UPDATE jobs SET webhook_state = ?2, webhook_attempts = webhook_attempts + 1 WHERE id = ?1",
                params![key(id), state],
            )?;
            if let Some(again) = again_ms.filter(|_| !delivered) {
                let due = params![again.cast_signed(), key(id)];
                run(connection, "INSERT OR REPLACE INTO webhooks VALUES (?1, ?2)", due)?;
            }
            Ok(())
        })
    }
}
