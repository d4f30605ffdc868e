//! Whom to tell of a job's end, and when.

use rusqlite::{Connection, OptionalExtension, params};
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
    /// When the job came.
    pub created_ms: u64,
}

/// The calls that are being made now, as those who look for more see them.
pub trait Calls {
    /// How many more of a tenant may be made.
    fn room(&self, tenant: &TenantName) -> usize;
    /// Whether this one is.
    fn has(&self, job: JobId) -> bool;
}

impl SqliteJobs {
    /// Calls that are due, of each tenant behind `after` as many as there is room for, `count` in all. Blocks.
    pub fn due_webhooks(
        &self,
        now_ms: u64,
        after: Option<&TenantName>,
        calls: &impl Calls,
        count: usize,
    ) -> Result<Vec<DueWebhook>, JobError> {
        self.read(|connection| {
            let start = after.map_or("", TenantName::as_str).to_owned();
            let (mut last, mut has_wrapped, mut due) = (start.clone(), false, Vec::new());
            while due.len() < count {
                match tenant_behind(connection, &last)? {
                    Some(name) if has_wrapped && name > start => break,
                    Some(name) => {
                        let left = count - due.len();
                        due.extend(of_tenant(connection, &name, now_ms, calls, left)?);
                        last = name;
                    }
                    None if has_wrapped || start.is_empty() => break,
                    None => (has_wrapped, last) = (true, String::new()),
                }
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
        let (tenant, id, at_ms) = (call.tenant.clone(), call.id, call.at_ms);
        self.inner.submit(move |connection| {
            let due = params![tenant.as_str(), at_ms.cast_signed(), key(id)];
            let sql = "DELETE FROM webhooks WHERE tenant = ?1 AND at_ms = ?2 AND id = ?3";
            // The job was sent on its way again meanwhile, or forgotten.
            if run(connection, sql, due)? == 0 {
                return Ok(());
            }
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
                let due = params![tenant.as_str(), again.cast_signed(), key(id)];
                run(connection, "INSERT OR REPLACE INTO webhooks VALUES (?1, ?2, ?3)", due)?;
            }
            Ok(())
        })
    }
}

fn tenant_behind(connection: &Connection, name: &str) -> Result<Option<String>, JobError> {
    let sql = "SELECT tenant FROM webhooks WHERE tenant > ?1 ORDER BY tenant LIMIT 1";
    let mut statement = connection.prepare_cached(sql).map_err(failed)?;
    Ok(statement.query_row([name], |row| row.get(0)).optional().map_err(failed)?)
}

fn of_tenant(
    connection: &Connection,
    name: &str,
    now_ms: u64,
    calls: &impl Calls,
    count: usize,
) -> Result<Vec<DueWebhook>, JobError> {
    let tenant: TenantName = name.parse().map_err(|_| damaged("a name"))?;
    let room = calls.room(&tenant).min(count);
    let mut due = Vec::new();
    if room == 0 {
        return Ok(due);
    }
    let sql = "SELECT j.id, j.function, j.state, r.status, j.attempts, j.webhook, j.webhook_attempts, w.at_ms, \
        j.created_ms FROM webhooks w CROSS JOIN jobs j ON j.id = w.id LEFT JOIN results r ON r.id = w.id \
        WHERE w.tenant = ?1 AND w.at_ms <= ?2 ORDER BY w.at_ms";
    let mut statement = connection.prepare_cached(sql).map_err(failed)?;
    let mut rows = statement.query(params![name, now_ms.cast_signed()]).map_err(failed)?;
    while let Some(row) = rows.next().map_err(failed)?
        && due.len() < room
    {
        let text = |column| row.get::<_, String>(column).map_err(failed);
        let id = id_of(&row.get::<_, Vec<u8>>(0).map_err(failed)?)?;
        if calls.has(id) {
            continue;
        }
        due.push(DueWebhook {
            id,
            tenant: tenant.clone(),
            function: text(1)?.parse().map_err(|_| damaged("a name"))?,
            state: state_of(row.get(2).map_err(failed)?)?,
            status: row.get(3).map_err(failed)?,
            attempts: row.get(4).map_err(failed)?,
            url: text(5)?,
            calls: row.get(6).map_err(failed)?,
            at_ms: number(row, 7).map_err(failed)?,
            created_ms: number(row, 8).map_err(failed)?,
        });
    }
    Ok(due)
}
