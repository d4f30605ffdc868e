//! Handing jobs out: what has become due, whose turn it is, and the leases themselves, in one transaction.

use rusqlite::{Connection, OptionalExtension, params};
use sandpiper_domain::{JobId, JobState, Lane, Lease, TenantName};

use super::{
    failed,
    row::{self, Loaded, Place, damaged, key},
    steps::{Done, MOVED_MAX, add_waiting, finish, give_back, ids, run},
    writer::in_savepoint,
};

/// Lists of ready jobs that one look finds. Those behind them have their turn at the next.
const LISTS_MAX: usize = 64;

/// What was handed out, and what is left to do.
#[derive(Debug, Default)]
pub struct Leased {
    /// The jobs.
    pub leases: Vec<Lease>,
    /// Tenants with jobs that must run with no other beside them.
    pub apart: Vec<TenantName>,
    /// Whether other jobs were ready.
    pub has_others: bool,
    /// When the next delayed job is due.
    pub next_ms: Option<u64>,
    /// Where the next look begins.
    pub after: Option<Turn>,
}

/// The last list of a look: the tenants after it have their turn next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn(TenantName, i64);

/// Jobs as the writer found them.
pub(super) struct Found {
    pub(super) leased: Leased,
    pub(super) jobs: Vec<(Loaded, u64)>,
}

/// How many of each list are wanted.
pub(super) type Plan = Box<dyn FnOnce(&[(TenantName, Lane)]) -> Vec<usize> + Send>;

/// One look at everything: moves what is due, finds whose turn it is after `after`, and leases as `plan` says.
pub(super) fn next(
    connection: &Connection,
    after: Option<&Turn>,
    plan: Plan,
    now_ms: u64,
    until_ms: u64,
) -> Done<Found> {
    promote(connection, now_ms)?;
    let mut found = Found { leased: Leased::default(), jobs: Vec::new() };
    let lists = lists_after(connection, after)?;
    let last = lists.last().map(|(tenant, list)| Turn(tenant.clone(), *list));
    let mut lanes = Vec::new();
    for (tenant, list) in lists {
        match list {
            row::APART => found.leased.apart.push(tenant),
            lane => lanes.push((tenant, row::lane_of(lane))),
        }
    }
    found.leased.has_others = !lanes.is_empty();
    let counts = plan(&lanes);
    let mut served = None;
    for ((tenant, lane), count) in lanes.iter().zip(counts).filter(|(_, count)| *count > 0) {
        let list = row::lane_number(*lane);
        served = Some(Turn(tenant.clone(), list));
        // A row that cannot be read is its tenant's misfortune alone.
        let jobs = in_savepoint(connection, |connection| {
            lease(connection, tenant, list, count, now_ms, until_ms)
        });
        match jobs {
            Ok(jobs) => found.jobs.extend(jobs),
            Err(error) => tracing::error!(%tenant, %error, "jobs could not be leased"),
        }
    }
    // Whoever got nothing for want of room is the first of the next look.
    found.leased.after = served.or(last);
    let due: Option<i64> = connection
        .prepare_cached("SELECT min(ready_ms) FROM delayed")
        .and_then(|mut statement| statement.query_row([], |row| row.get(0)))
        .map_err(failed)?;
    found.leased.next_ms = due.map(i64::cast_unsigned);
    Ok(found)
}

/// Lists of ready jobs that are not empty, those behind `after` first, each once.
fn lists_after(connection: &Connection, after: Option<&Turn>) -> Done<Vec<(TenantName, i64)>> {
    let start = after.map(|Turn(tenant, list)| (tenant.as_str().to_owned(), *list));
    let mut lists = Vec::new();
    let mut last = start.clone().unwrap_or_default();
    let mut wrapped = start.is_none();
    while lists.len() < LISTS_MAX {
        match list_behind(connection, &last.0, last.1)? {
            Some(list) => {
                if wrapped && start.as_ref().is_some_and(|start| list > *start) {
                    break;
                }
                let tenant = list.0.parse().map_err(|_| damaged("a name"))?;
                lists.push((tenant, list.1));
                last = list;
            }
            None if wrapped => break,
            None => (wrapped, last) = (true, <_>::default()),
        }
    }
    Ok(lists)
}

/// The first list that is not empty behind this one. SQLite would read the whole of a list for a comparison of both
/// columns at once.
fn list_behind(connection: &Connection, tenant: &str, list: i64) -> Done<Option<(String, i64)>> {
    let same =
        "SELECT tenant, lane FROM ready WHERE tenant = ?1 AND lane > ?2 ORDER BY lane LIMIT 1";
    let next = "SELECT tenant, lane FROM ready WHERE tenant > ?1 ORDER BY tenant, lane LIMIT 1";
    let ask = |sql, parameters: &[&dyn rusqlite::ToSql]| {
        let mut statement = connection.prepare_cached(sql)?;
        statement.query_row(parameters, |row| Ok((row.get(0)?, row.get(1)?))).optional()
    };
    let found = match ask(same, &[&tenant, &list]).map_err(failed)? {
        None => ask(next, &[&tenant]).map_err(failed)?,
        found => found,
    };
    Ok(found)
}

/// Moves what has become due to the ready ones, and takes back the leases that ran out.
pub(super) fn promote(connection: &Connection, now_ms: u64) -> Done<()> {
    let due = params![now_ms.cast_signed(), MOVED_MAX, row::CRASHES_MAX, row::APART];
    run(
        connection,
        "INSERT OR IGNORE INTO ready SELECT j.tenant, CASE WHEN j.crashes >= ?3 THEN ?4 ELSE j.lane END, -j.priority, \
         j.ready_ms, j.id FROM (SELECT id FROM delayed WHERE ready_ms <= ?1 ORDER BY ready_ms, id LIMIT ?2) d \
         CROSS JOIN jobs j ON j.id = d.id",
        due,
    )?;
    run(
        connection,
        "DELETE FROM delayed WHERE (ready_ms, id) IN \
         (SELECT ready_ms, id FROM delayed WHERE ready_ms <= ?1 ORDER BY ready_ms, id LIMIT ?2)",
        params![now_ms.cast_signed(), MOVED_MAX],
    )?;
    let late = "SELECT id FROM leased WHERE lease_until_ms <= ?1 ORDER BY lease_until_ms LIMIT ?2";
    for id in ids(connection, late, params![now_ms.cast_signed(), MOVED_MAX])? {
        give_back(connection, id, now_ms, false, "the attempt did not end in time")?;
    }
    Ok(())
}

/// The next ready jobs of one list, their attempts counted.
pub(super) fn lease(
    connection: &Connection,
    tenant: &TenantName,
    list: i64,
    count: usize,
    now_ms: u64,
    until_ms: u64,
) -> Done<Vec<(Loaded, u64)>> {
    let heads = heads(connection, tenant, list, count)?;
    if heads.is_empty() {
        return Ok(Vec::new());
    }
    for lane in [Lane::Job, Lane::Batch] {
        match heads.iter().filter(|head| head.job.lane == lane).count() {
            0 => {}
            count => add_waiting(connection, tenant, lane, -(count as i64))?,
        }
    }
    let mut leases = Vec::with_capacity(heads.len());
    for mut loaded in heads {
        let id = loaded.job.id;
        let place =
            params![tenant.as_str(), list, loaded.rank, loaded.job.ready_ms.cast_signed(), key(id)];
        let sql = "DELETE FROM ready WHERE tenant = ?1 AND lane = ?2 AND rank = ?3 AND ready_ms = ?4 AND id = ?5";
        run(connection, sql, place)?;
        if loaded.job.deadline_ms <= now_ms {
            missed(connection, id, now_ms)?;
            continue;
        }
        loaded.attempts += 1;
        let token = rand::random::<u64>() >> 1;
        run(
            connection,
            "UPDATE jobs SET state = 1, attempts = ?2, lease = ?3, lease_until_ms = ?4 WHERE id = ?1",
            params![key(id), loaded.attempts, token.cast_signed(), until_ms.cast_signed()],
        )?;
        let leased = params![until_ms.cast_signed(), key(id)];
        run(connection, "INSERT INTO leased VALUES (?1, ?2)", leased)?;
        leases.push((loaded, token));
    }
    Ok(leases)
}

fn heads(
    connection: &Connection,
    tenant: &TenantName,
    list: i64,
    count: usize,
) -> Done<Vec<Loaded>> {
    let mut statement = connection.prepare_cached(row::HEADS).map_err(failed)?;
    let count = (count as i64).min(MOVED_MAX);
    let mut rows = statement.query(params![tenant.as_str(), list, count]).map_err(failed)?;
    let mut heads = Vec::new();
    while let Some(row) = rows.next().map_err(failed)? {
        heads.push(row::read(row)?);
    }
    Ok(heads)
}

fn missed(connection: &Connection, id: JobId, now_ms: u64) -> Done<()> {
    let Some(place) = Place::load(connection, id)? else { return Ok(()) };
    let why = "it could not be run before its deadline";
    finish(connection, &place, JobState::Dead, Some(why), now_ms)
}
