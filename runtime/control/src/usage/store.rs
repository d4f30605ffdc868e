//! The database of usage and budgets. A lost second is bearable, so that its commits need not wait for the disk.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use rusqlite::{
    Connection, OpenFlags, OptionalExtension, TransactionBehavior, params, params_from_iter,
    types::Value,
};
use sandpiper_domain::{Budget, TenantName};
use time::OffsetDateTime;

use super::{Amounts, Counted, Month, Owner, UsageError};
use crate::OpenError;

const SCHEMA: u32 = 1;
const CREATE: &str = "
    CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
    CREATE TABLE usage (
        tenant TEXT NOT NULL, born INTEGER NOT NULL, month INTEGER NOT NULL, function TEXT NOT NULL,
        requests INTEGER NOT NULL, faults INTEGER NOT NULL, guest_cpu_us INTEGER NOT NULL,
        start_cpu_us INTEGER NOT NULL, memory_mib_ms INTEGER NOT NULL, inference_us INTEGER NOT NULL,
        inference_queued_us INTEGER NOT NULL, jobs INTEGER NOT NULL, bytes_in INTEGER NOT NULL,
        bytes_out INTEGER NOT NULL, PRIMARY KEY (tenant, born, month, function)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE budgets (
        tenant TEXT NOT NULL, born INTEGER NOT NULL, budget TEXT NOT NULL, PRIMARY KEY (tenant, born)
    ) STRICT, WITHOUT ROWID;
    INSERT INTO meta VALUES ('schema', 1);
";
/// Months that are kept besides the present one.
const MONTHS_KEPT: i32 = 24;

/// What one function has used in a month, or a part of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) month: Month,
    pub(super) function: Arc<str>,
    pub(super) amounts: Amounts,
}

pub(super) struct UsageStore {
    connection: Connection,
    add: String,
    month: String,
    total: String,
    totals: String,
}

impl UsageStore {
    pub(super) fn open(path: &Path) -> Result<Self, OpenError> {
        let failed =
            |error: rusqlite::Error| OpenError::Damaged(UsageError::from(error).to_string());
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = Connection::open_with_flags(path, flags).map_err(failed)?;
        configure(&connection).map_err(failed)?;
        let found = prepare(&mut connection).map_err(failed)?;
        if found > SCHEMA {
            return Err(OpenError::Newer { found, known: SCHEMA });
        }
        let names: Vec<&str> = Counted::ALL.iter().map(|item| item.name()).collect();
        let values: Vec<String> = (0..names.len()).map(|n| format!("?{}", n + 5)).collect();
        let sums: Vec<String> =
            names.iter().map(|name| format!("{name} = {name} + excluded.{name}")).collect();
        let totals: Vec<String> =
            names.iter().map(|name| format!("coalesce(sum({name}), 0)")).collect();
        let (columns, totals) = (names.join(", "), totals.join(", "));
        Ok(UsageStore {
            connection,
            add: format!(
                "INSERT INTO usage (tenant, born, month, function, {columns}) VALUES (?1, ?2, ?3, ?4, {}) \
                 ON CONFLICT DO UPDATE SET {}",
                values.join(", "),
                sums.join(", ")
            ),
            month: format!(
                "SELECT function, {columns} FROM usage WHERE tenant = ?1 AND born = ?2 AND month = ?3"
            ),
            total: format!(
                "SELECT {totals} FROM usage WHERE tenant = ?1 AND born = ?2 AND month = ?3"
            ),
            totals: format!(
                "SELECT tenant, born, {totals} FROM usage WHERE month = ?1 GROUP BY tenant, born"
            ),
        })
    }

    pub(super) fn forget_before(&mut self, now: OffsetDateTime) -> Result<(), UsageError> {
        let oldest = Month::of(now).0 - MONTHS_KEPT;
        self.connection.execute("DELETE FROM usage WHERE month < ?1", [oldest])?;
        Ok(())
    }

    /// Adds all rows or none.
    pub(super) fn add<'a>(
        &mut self,
        rows: impl Iterator<Item = (&'a Owner, &'a [Row])>,
    ) -> Result<(), UsageError> {
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        {
            let mut statement = transaction.prepare_cached(&self.add)?;
            for (owner, rows) in rows {
                for row in rows {
                    let key = [
                        Value::Text(owner.tenant.to_string()),
                        Value::Integer(owner.born),
                        Value::Integer(row.month.0.into()),
                        Value::Text(row.function.to_string()),
                    ];
                    let amounts = Counted::ALL.map(|item| {
                        Value::Integer(i64::try_from(row.amounts[item]).unwrap_or(i64::MAX))
                    });
                    statement.execute(params_from_iter(key.into_iter().chain(amounts)))?;
                }
            }
        }
        Ok(transaction.commit()?)
    }

    pub(super) fn month(
        &self,
        owner: &Owner,
        month: Month,
    ) -> Result<BTreeMap<String, Amounts>, UsageError> {
        let mut statement = self.connection.prepare_cached(&self.month)?;
        let key = params![owner.tenant.to_string(), owner.born, month.0];
        let rows = statement.query_map(key, |row| Ok((row.get(0)?, amounts(row, 1)?)))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    pub(super) fn total(&self, owner: &Owner, month: Month) -> Result<Amounts, UsageError> {
        let mut statement = self.connection.prepare_cached(&self.total)?;
        let key = params![owner.tenant.to_string(), owner.born, month.0];
        let total = statement.query_row(key, |row| amounts(row, 0)).optional()?;
        Ok(total.unwrap_or_default())
    }

    pub(super) fn totals(&self, month: Month) -> Result<Vec<(Owner, Amounts)>, UsageError> {
        let mut statement = self.connection.prepare(&self.totals)?;
        let rows = statement.query_map([month.0], |row| Ok((owner(row)?, amounts(row, 2)?)))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    pub(super) fn budgets(&self) -> Result<Vec<(Owner, Budget)>, UsageError> {
        let mut statement = self.connection.prepare("SELECT tenant, born, budget FROM budgets")?;
        let rows = statement.query_map([], |row| {
            let text: String = row.get(2)?;
            Ok((owner(row)?, serde_json::from_str(&text).map_err(|error| bad(2, error))?))
        })?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    pub(super) fn set_budget(
        &mut self,
        owner: &Owner,
        budget: Option<Budget>,
    ) -> Result<(), UsageError> {
        let (tenant, born) = (owner.tenant.to_string(), owner.born);
        match budget {
            Some(budget) => {
                let text = serde_json::to_string(&budget)
                    .map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))?;
                const PUT: &str = "INSERT OR REPLACE INTO budgets VALUES (?1, ?2, ?3)";
                self.connection.execute(PUT, params![tenant, born, text])?
            }
            None => {
                const DELETE: &str = "DELETE FROM budgets WHERE tenant = ?1 AND born = ?2";
                self.connection.execute(DELETE, params![tenant, born])?
            }
        };
        Ok(())
    }
}

fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(std::time::Duration::from_secs(5))?;
    connection
        .pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get::<_, String>(0))?;
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.pragma_update(None, "trusted_schema", false)
}

/// Makes the tables at the first start; gives the schema found.
fn prepare(connection: &mut Connection) -> rusqlite::Result<u32> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let tables: u32 =
        transaction.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if tables == 0 {
        transaction.execute_batch(CREATE)?;
    }
    const FOUND: &str = "SELECT value FROM meta WHERE name = 'schema'";
    let found = transaction.query_row(FOUND, [], |row| row.get(0))?;
    transaction.commit()?;
    Ok(found)
}

fn bad(column: usize, error: impl std::error::Error + Send + Sync + 'static) -> rusqlite::Error {
    let kind = rusqlite::types::Type::Text;
    rusqlite::Error::FromSqlConversionFailure(column, kind, Box::new(error))
}

fn owner(row: &rusqlite::Row<'_>) -> rusqlite::Result<Owner> {
    let tenant: String = row.get(0)?;
    let tenant: TenantName = tenant.parse().map_err(|error| bad(0, error))?;
    Ok(Owner { tenant, born: row.get(1)? })
}

fn amounts(row: &rusqlite::Row<'_>, from: usize) -> rusqlite::Result<Amounts> {
    let mut amounts = Amounts::default();
    for (column, item) in Counted::ALL.into_iter().enumerate() {
        let amount: i64 = row.get(from + column)?;
        amounts[item] = u64::try_from(amount).unwrap_or_default();
    }
    Ok(amounts)
}
