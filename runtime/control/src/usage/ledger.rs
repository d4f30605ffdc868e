//! One tenant's sums in memory.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use sandpiper_domain::Budget;
use time::OffsetDateTime;

use super::{Amounts, Counted, Month, Row};

/// Functions that a tenant's ledger names before they are written; the rest share [`OTHERS`], or one who makes and
/// deletes functions all day could make it long.
const NAMES_MAX: usize = 1_000;
/// No function can have this name.
const OTHERS: &str = "(others)";

/// What a tenant has used, and what it may use.
pub struct Ledger {
    state: Mutex<State>,
}

struct State {
    month: Month,
    /// Of the month, in the database.
    stored: Amounts,
    /// Of the month, on its way there.
    in_flight: Amounts,
    /// Of the month, new.
    total: Amounts,
    fresh: HashMap<Arc<str>, Amounts>,
    /// Of the month before, new when it ended.
    late: Vec<Row>,
    own_budget: Option<Budget>,
}

/// Which part of a budget is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spent {
    /// The name of the limit.
    pub limit: &'static str,
    /// When there is a new one.
    pub renewed_at: OffsetDateTime,
}

impl Ledger {
    /// A ledger of a month of which so much is written already.
    pub fn new(month: Month, stored: Amounts) -> Self {
        let state = State {
            month,
            stored,
            in_flight: Amounts::default(),
            total: Amounts::default(),
            fresh: HashMap::new(),
            late: Vec::new(),
            own_budget: None,
        };
        Ledger { state: Mutex::new(state) }
    }

    fn lock(&self, now: OffsetDateTime) -> MutexGuard<'_, State> {
        let mut state = self.state();
        let month = Month::of(now);
        // A clock that was set back does not open the last month again.
        if month > state.month {
            state.turn(month);
        }
        state
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds to the account of a function, `""` for none.
    pub fn add(&self, function: &str, amounts: Amounts, now: OffsetDateTime) {
        let mut state = self.lock(now);
        state.total += amounts;
        if let Some(sum) = state.fresh.get_mut(function) {
            *sum += amounts;
            return;
        }
        let name = if state.fresh.len() < NAMES_MAX { function } else { OTHERS };
        *state.fresh.entry(name.into()).or_default() += amounts;
    }

    /// What the month's uses add up to.
    pub fn used(&self, now: OffsetDateTime) -> Amounts {
        self.lock(now).sum()
    }

    /// The budget in force: its own, or its tier's.
    pub fn budget(&self, of_tier: Budget) -> Budget {
        self.state().own_budget.unwrap_or(of_tier)
    }

    /// The budget that was given to this tenant alone.
    pub fn own_budget(&self) -> Option<Budget> {
        self.state().own_budget
    }

    pub(super) fn set_own_budget(&self, budget: Option<Budget>) {
        self.state().own_budget = budget;
    }

    /// Fails when a part of the budget is used up. What is under way is not counted yet, so that it may be passed by
    /// what runs at once.
    pub fn check(&self, of_tier: Budget, now: OffsetDateTime) -> Result<(), Spent> {
        let state = self.lock(now);
        let budget = state.own_budget.unwrap_or(of_tier);
        if budget == Budget::default() {
            return Ok(());
        }
        let used = state.sum();
        for (limit, most, used) in parts(&budget, &used) {
            if most.is_some_and(|most| used >= most) {
                return Err(Spent { limit, renewed_at: state.month.end() });
            }
        }
        Ok(())
    }

    /// Takes what is new, to be written.
    pub(super) fn take(&self, now: OffsetDateTime) -> Vec<Row> {
        let mut state = self.lock(now);
        let mut rows = std::mem::take(&mut state.late);
        rows.append(&mut state.drain());
        state.in_flight = std::mem::take(&mut state.total);
        rows
    }

    pub(super) fn put_back(&self, rows: Vec<Row>) {
        let mut state = self.state();
        state.in_flight = Amounts::default();
        for row in rows {
            if row.month == state.month {
                state.total += row.amounts;
                *state.fresh.entry(row.function).or_default() += row.amounts;
            } else {
                state.late(row);
            }
        }
    }

    pub(super) fn written(&self, month: Month, rows: &[Row], total: Option<Amounts>) {
        let mut state = self.state();
        let in_flight = std::mem::take(&mut state.in_flight);
        if state.month != month {
            return;
        }
        match total {
            Some(total) => state.stored = total,
            None if rows.iter().any(|row| row.month == month) => state.stored += in_flight,
            None => {}
        }
    }

    /// What is new of a month.
    pub(super) fn peek(&self, month: Month) -> Vec<Row> {
        let state = self.state();
        let late = state.late.iter().filter(|row| row.month == month).cloned();
        let fresh = state.fresh.iter().filter(|_| state.month == month);
        let fresh = fresh.map(|(function, amounts)| Row {
            month,
            function: function.clone(),
            amounts: *amounts,
        });
        late.chain(fresh).collect()
    }

    pub(super) fn is_clean(&self) -> bool {
        let state = self.state();
        state.fresh.is_empty() && state.late.is_empty() && state.in_flight.is_zero()
    }
}

impl State {
    fn sum(&self) -> Amounts {
        let mut sum = self.stored;
        sum += self.in_flight;
        sum += self.total;
        sum
    }

    fn drain(&mut self) -> Vec<Row> {
        let month = self.month;
        let row = |(function, amounts)| Row { month, function, amounts };
        self.fresh.drain().map(row).collect()
    }

    fn turn(&mut self, month: Month) {
        for row in self.drain() {
            self.late(row);
        }
        self.month = month;
        self.stored = Amounts::default();
        self.in_flight = Amounts::default();
        self.total = Amounts::default();
    }

    fn late(&mut self, row: Row) {
        let same = |old: &&mut Row| old.month == row.month && old.function == row.function;
        match self.late.iter_mut().find(same) {
            Some(old) => old.amounts += row.amounts,
            None => self.late.push(row),
        }
    }
}

/// Each part of a budget: its name, its limit and what is used of it, in its unit and rounded down.
pub(super) fn parts(budget: &Budget, used: &Amounts) -> [(&'static str, Option<u64>, u64); 4] {
    const S: u64 = 1_000_000;
    const GIB_S: u64 = 1024 * 1000;
    [
        ("requests", budget.requests, used[Counted::Requests]),
        (
            "cpu_s",
            budget.cpu_s,
            (used[Counted::GuestCpuUs].saturating_add(used[Counted::StartCpuUs])) / S,
        ),
        ("memory_gib_s", budget.memory_gib_s, used[Counted::MemoryMibMs] / GIB_S),
        ("inference_s", budget.inference_s, used[Counted::InferenceUs] / S),
    ]
}

impl Amounts {
    /// Each part of a budget that there is: its name, its limit and what is used of it.
    pub fn against(&self, budget: &Budget) -> impl Iterator<Item = (&'static str, u64, u64)> {
        let parts = parts(budget, self).into_iter();
        parts.filter_map(|(name, limit, used)| Some((name, limit?, used)))
    }
}
