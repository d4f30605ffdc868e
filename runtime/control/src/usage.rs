//! What tenants have used, month by month.
//!
//! A [`Ledger`] for each tenant adds up in memory; [`Ledgers`] writes what is new to a database of its own, as sums
//! that are added to what is there, so that two processes may write at once while one takes over from the other.

use std::{
    collections::HashMap,
    fmt,
    str::FromStr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use sandpiper_domain::{Budget, TenantName};
use time::{Date, OffsetDateTime, Time};

use crate::OpenError;

mod amounts;
mod ledger;
mod store;
#[cfg(test)]
mod tests;

pub use amounts::{Amounts, Counted};
pub use ledger::{Ledger, Spent, Tally};
use store::{Row, UsageStore};

/// A calendar month, UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Month(i32);

/// There is no such month.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a month is written like `2026-11`")]
pub struct ParseMonthError;

impl Month {
    /// The month of a moment.
    pub fn of(now: OffsetDateTime) -> Self {
        Month(now.year() * 12 + i32::from(u8::from(now.month())) - 1)
    }

    /// When the next one begins; the end of time is not the place to fail.
    pub fn end(self) -> OffsetDateTime {
        let next = self.0 + 1;
        let month = u8::try_from(next.rem_euclid(12) + 1).ok().and_then(|m| m.try_into().ok());
        let first = month.and_then(|m| Date::from_calendar_date(next.div_euclid(12), m, 1).ok());
        first.unwrap_or(Date::MAX).with_time(Time::MIDNIGHT).assume_utc()
    }
}

impl fmt::Display for Month {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{:02}", self.0.div_euclid(12), self.0.rem_euclid(12) + 1)
    }
}

impl FromStr for Month {
    type Err = ParseMonthError;
    fn from_str(text: &str) -> Result<Self, ParseMonthError> {
        let (year, month) = text.split_once('-').ok_or(ParseMonthError)?;
        let is_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if year.len() != 4 || month.len() != 2 || !is_digits(year) || !is_digits(month) {
            return Err(ParseMonthError);
        }
        let year: i32 = year.parse().map_err(|_| ParseMonthError)?;
        let month: i32 = month.parse().map_err(|_| ParseMonthError)?;
        match month {
            1..=12 => Ok(Month(year * 12 + month - 1)),
            _ => Err(ParseMonthError),
        }
    }
}

/// Tells a tenant from one of the same name before it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Owner {
    /// Its name.
    pub tenant: TenantName,
    /// When it was made, in microseconds since 1970.
    pub born: i64,
}

impl Owner {
    /// The tenant of this name that was made then.
    pub fn new(tenant: TenantName, created_at: OffsetDateTime) -> Self {
        let born = created_at.unix_timestamp_nanos() / 1_000;
        Owner { tenant, born: i64::try_from(born).unwrap_or_default() }
    }
}

/// Why usage could not be read or written. For the operator's log.
#[derive(Debug, thiserror::Error)]
#[error("the database of usage: {0}")]
pub struct UsageError(#[from] rusqlite::Error);

/// The ledgers of all tenants, and where they are kept.
pub struct Ledgers {
    ledgers: Mutex<HashMap<Owner, Arc<Ledger>>>,
    /// Whoever holds it knows that nothing is on its way from a ledger to the disk.
    store: Mutex<UsageStore>,
}

impl Ledgers {
    /// Opens the database at `path` and reads what it holds of this month.
    pub fn open(path: &std::path::Path, now: OffsetDateTime) -> Result<Self, OpenError> {
        let mut store = UsageStore::open(path)?;
        let damaged = |error: UsageError| OpenError::Damaged(error.to_string());
        store.forget_before(now).map_err(damaged)?;
        let month = Month::of(now);
        let mut ledgers = HashMap::new();
        for (owner, stored) in store.totals(month).map_err(damaged)? {
            ledgers.insert(owner, Ledger::new(month, stored));
        }
        for (owner, budget) in store.budgets().map_err(damaged)? {
            let ledger =
                ledgers.entry(owner).or_insert_with(|| Ledger::new(month, Amounts::default()));
            ledger.set_own_budget(Some(budget));
        }
        let ledgers = ledgers.into_iter().map(|(owner, ledger)| (owner, Arc::new(ledger)));
        Ok(Ledgers { ledgers: Mutex::new(ledgers.collect()), store: Mutex::new(store) })
    }

    /// A tenant's ledger.
    pub fn of(&self, owner: &Owner, now: OffsetDateTime) -> Arc<Ledger> {
        let mut ledgers = lock(&self.ledgers);
        if let Some(ledger) = ledgers.get(owner) {
            return ledger.clone();
        }
        let ledger = Arc::new(Ledger::new(Month::of(now), Amounts::default()));
        ledgers.insert(owner.clone(), ledger.clone());
        ledger
    }

    /// Writes what is new. What could not be written stays new. Blocks.
    pub fn flush(&self, now: OffsetDateTime) -> Result<(), UsageError> {
        let mut store = lock(&self.store);
        let ledgers: Vec<_> =
            lock(&self.ledgers).iter().map(|(o, ledger)| (o.clone(), ledger.clone())).collect();
        let mut taken = Vec::new();
        for (owner, ledger) in ledgers {
            let rows = ledger.take(now);
            if !rows.is_empty() {
                taken.push((owner, ledger, rows));
            }
        }
        if taken.is_empty() {
            return Ok(());
        }
        let written = store.add(taken.iter().map(|(owner, _, rows)| (owner, rows.as_slice())));
        match written {
            Ok(()) => {
                for (owner, ledger, rows) in taken {
                    // What another process has written counts against the budget too.
                    let month = Month::of(now);
                    let total = store.total(&owner, month).ok();
                    ledger.written(month, &rows, total);
                }
                Ok(())
            }
            Err(error) => {
                for (_, ledger, rows) in taken {
                    ledger.put_back(rows);
                }
                Err(error)
            }
        }
    }

    /// What a tenant's functions have used in a month, up to this moment; `""` stands for inference without a
    /// function. In the order of their names. Blocks.
    pub fn month(
        &self,
        owner: &Owner,
        month: Month,
        now: OffsetDateTime,
    ) -> Result<Vec<(String, Amounts)>, UsageError> {
        let store = lock(&self.store);
        let mut used = store.month(owner, month)?;
        for row in self.of(owner, now).peek(month) {
            *used.entry(row.function.to_string()).or_default() += row.amounts;
        }
        Ok(used.into_iter().collect())
    }

    /// Gives a tenant a budget of its own in place of its tier's, or takes it away. Blocks.
    pub fn set_budget(
        &self,
        owner: &Owner,
        budget: Option<Budget>,
        now: OffsetDateTime,
    ) -> Result<(), UsageError> {
        let mut store = lock(&self.store);
        store.set_budget(owner, budget)?;
        self.of(owner, now).set_own_budget(budget);
        Ok(())
    }

    /// Drops from memory the ledgers of tenants that are no more, once all is written and nobody is left who could add
    /// to them: requests may outlive their tenant.
    pub fn retain(&self, mut is_there: impl FnMut(&Owner) -> bool) {
        lock(&self.ledgers).retain(|owner, ledger| {
            // Asked in this order: the last one to let go may have added something just before.
            is_there(owner) || Arc::get_mut(ledger).is_none() || !ledger.is_clean()
        });
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
