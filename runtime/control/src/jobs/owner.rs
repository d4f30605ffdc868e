//! What the owner of a job may do with it: take it back, and send it on its way again.

use rusqlite::{Connection, params};
use sandpiper_domain::{FunctionName, JobError, JobId, JobState, Lane, TenantName};

use super::{
    expiry::entomb,
    row::{Place, key},
    steps::{
        Carried, Done, MOVED_MAX, add_waiting, again, drop_bytes, finish, held_by, ids,
        out_of_list, run, unlease,
    },
};

pub(super) fn cancel(
    connection: &Connection,
    tenant: &TenantName,
    id: JobId,
    now_ms: u64,
) -> Done<JobState> {
    let place = Place::load(connection, id)?.filter(|place| place.tenant == *tenant);
    let place = place.ok_or(JobError::NotFound)?;
    match place.state {
        JobState::Pending => {
            out_of_list(connection, &place)?;
            add_waiting(connection, tenant, place.lane, -1)?;
        }
        JobState::Running => unlease(connection, &place)?,
        // Its result goes; that it was done remains to be seen.
        JobState::Done => {
            drop_bytes(connection, Carried::Result, tenant, id)?;
            let at = now_ms.cast_signed();
            run(connection, "UPDATE jobs SET expires_ms = ?2 WHERE id = ?1", params![key(id), at])?;
            entomb(connection, tenant, id)?;
            return Ok(JobState::Done);
        }
        JobState::Cancelled => return Ok(JobState::Cancelled),
        JobState::Dead => {}
    }
    finish(connection, &place, JobState::Cancelled, None, now_ms)?;
    Ok(JobState::Cancelled)
}

/// Sends dead jobs on their way again, as many as one command may and as there is room for; gives how many.
pub(super) fn redrive(
    connection: &Connection,
    tenant: &TenantName,
    job: Option<JobId>,
    function: Option<&FunctionName>,
    waiting_max: u32,
    now_ms: u64,
) -> Done<u64> {
    let dead = match job {
        Some(id) => vec![id],
        None => ids(
            connection,
            "SELECT id FROM jobs WHERE tenant = ?1 AND state = 3 AND lane = 1 AND (?2 IS NULL OR function = ?2) LIMIT ?3",
            params![tenant.as_str(), function.map(FunctionName::as_str), MOVED_MAX],
        )?,
    };
    let (waiting, _) = held_by(connection, tenant)?;
    let room = u64::from(waiting_max).saturating_sub(waiting);
    let mut count = 0;
    for id in dead {
        let place = Place::load(connection, id)?.filter(|place| place.tenant == *tenant);
        let mut place = place.ok_or(JobError::NotFound)?;
        if place.state != JobState::Dead || place.lane != Lane::Job {
            continue;
        }
        if count >= room {
            return if count > 0 { Ok(count) } else { Err(JobError::TenantFull) };
        }
        (place.attempts, place.crashes, place.ready_ms) = (0, 0, now_ms);
        // The time it has is what it had at first.
        run(
            connection,
            "UPDATE jobs SET deadline_ms = ?2 + within_ms, finished_ms = NULL, expires_ms = NULL, \
             webhook_state = 0, webhook_attempts = 0 WHERE id = ?1",
            params![key(id), now_ms.cast_signed()],
        )?;
        // What was still to be told is no longer so, and what was about to be forgotten is needed.
        run(connection, "DELETE FROM webhooks WHERE id = ?1", params![key(id)])?;
        let grave = params![tenant.as_str(), key(id)];
        run(connection, "DELETE FROM tombstones WHERE tenant = ?1 AND id = ?2", grave)?;
        again(connection, &place, None, now_ms)?;
        count += 1;
    }
    Ok(count)
}
