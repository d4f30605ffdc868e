//! Forgetting: results whose time is over, then the jobs themselves.

use std::collections::BTreeSet;

use rusqlite::{Connection, OptionalExtension, params};
use sandpiper_domain::{JobId, Lane, TenantName};

use super::{
    failed,
    row::{damaged, key, lane_of},
    steps::{Carried, Done, MOVED_MAX, TOMBSTONE_MS, drop_bytes, ids, run},
};

/// Jobs without a result that a tenant's list still shows. The oldest go first.
pub(super) const TOMBSTONES_MAX: u32 = 100_000;

/// Drops results and jobs whose time is over; gives how many rows were looked at.
pub(super) fn expire(connection: &Connection, now_ms: u64) -> Done<usize> {
    let now = params![now_ms.cast_signed(), MOVED_MAX];
    let due = "SELECT id FROM expiring WHERE at_ms <= ?1 ORDER BY at_ms, id LIMIT ?2";
    let due = ids(connection, due, now)?;
    run(
        connection,
        "DELETE FROM expiring WHERE (at_ms, id) IN \
         (SELECT at_ms, id FROM expiring WHERE at_ms <= ?1 ORDER BY at_ms, id LIMIT ?2)",
        now,
    )?;
    let mut tenants = BTreeSet::new();
    for id in &due {
        tenants.extend(one(connection, *id, now_ms)?);
    }
    for tenant in tenants {
        trim(connection, &tenant, TOMBSTONES_MAX)?;
    }
    Ok(due.len())
}

/// One job whose time has come; gives the tenant where something is left of it.
fn one(connection: &Connection, id: JobId, now_ms: u64) -> Done<Option<TenantName>> {
    let now = now_ms.cast_signed();
    let found: Option<(String, i64, Option<i64>)> = connection
        .prepare_cached("SELECT tenant, lane, expires_ms FROM jobs WHERE id = ?1")
        .and_then(|mut statement| {
            let read = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
            statement.query_row(params![key(id)], read).optional()
        })
        .map_err(failed)?;
    // A job that was sent on its way again has another time, or none yet.
    let Some((tenant, lane, Some(expires))) = found.filter(|found| found.2 <= Some(now)) else {
        return Ok(None);
    };
    let tenant: TenantName = tenant.parse().map_err(|_| damaged("a name"))?;
    let gone = expires.saturating_add(TOMBSTONE_MS.cast_signed());
    // Nobody asks for the job of a shard.
    if gone <= now || lane_of(lane) == Lane::Batch {
        forget(connection, &tenant, id)?;
        return Ok(None);
    }
    drop_bytes(connection, Carried::Result, &tenant, id)?;
    run(connection, "INSERT OR REPLACE INTO expiring VALUES (?1, ?2)", params![gone, key(id)])?;
    entomb(connection, &tenant, id)?;
    Ok(Some(tenant))
}

/// Counts a job among those of which only the fact remains.
pub(super) fn entomb(connection: &Connection, tenant: &TenantName, id: JobId) -> Done<()> {
    let grave = params![tenant.as_str(), key(id)];
    run(connection, "INSERT OR IGNORE INTO tombstones VALUES (?1, ?2)", grave).map(drop)
}

/// Forgets the oldest jobs beyond `most` of those that have no result any more; gives how many.
pub(super) fn trim(connection: &Connection, tenant: &TenantName, most: u32) -> Done<usize> {
    let newest = "SELECT id FROM tombstones WHERE tenant = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2";
    let newest = ids(connection, newest, params![tenant.as_str(), most])?;
    let Some(newest) = newest.first() else { return Ok(0) };
    let old = "SELECT id FROM tombstones WHERE tenant = ?1 AND id <= ?2 ORDER BY id LIMIT ?3";
    let old = ids(connection, old, params![tenant.as_str(), key(*newest), MOVED_MAX])?;
    old.iter().try_for_each(|id| forget(connection, tenant, *id))?;
    Ok(old.len())
}

/// Trims the tenant that comes after this one; gives who that was, and how many jobs it lost.
pub(super) fn trim_next(
    connection: &Connection,
    after: Option<&TenantName>,
) -> Done<Option<(TenantName, usize)>> {
    let sql = "SELECT tenant FROM tombstones WHERE tenant > ?1 ORDER BY tenant LIMIT 1";
    let next: Option<String> = connection
        .prepare_cached(sql)
        .and_then(|mut statement| {
            let after = after.map_or("", TenantName::as_str);
            statement.query_row([after], |row| row.get(0)).optional()
        })
        .map_err(failed)?;
    let Some(next) = next else { return Ok(None) };
    let next = next.parse().map_err(|_| damaged("a name"))?;
    let count = trim(connection, &next, TOMBSTONES_MAX)?;
    Ok(Some((next, count)))
}

fn forget(connection: &Connection, tenant: &TenantName, id: JobId) -> Done<()> {
    drop_bytes(connection, Carried::Result, tenant, id)?;
    drop_bytes(connection, Carried::Payload, tenant, id)?;
    for sql in [
        "DELETE FROM webhooks WHERE id = ?1",
        "DELETE FROM idempotency WHERE id = ?1",
        "DELETE FROM jobs WHERE id = ?1",
    ] {
        run(connection, sql, params![key(id)])?;
    }
    let grave = params![tenant.as_str(), key(id)];
    run(connection, "DELETE FROM tombstones WHERE tenant = ?1 AND id = ?2", grave).map(drop)
}
