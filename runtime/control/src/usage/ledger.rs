//! One tenant's sums in memory.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicI64, Ordering::Relaxed},
    },
};

use sandpiper_domain::Budget;
use time::OffsetDateTime;

use super::{Amounts, Counted, Month, Row, amounts::Sums};

/// Functions that a tenant's ledger names before they are written; the rest share [`OTHERS`], or one who makes and
/// deletes functions all day could make it long.
const NAMES_MAX: usize = 1_000;
/// No function can have this name.
const OTHERS: &str = "(others)";

/// What a tenant has used, and what it may use.
///
/// What is billed for a request goes to its function's [`Tally`], without a lock. A tally is emptied under the lock,
/// each time that what is new is written and when a month ends.
pub struct Ledger {
    /// Of the month, new: what `fresh` and the tallies hold together. Added to before a tally and taken from after it,
    /// so that it is never short of them.
    total: Sums,
    /// When the month ends, in seconds since 1970.
    month_ends: AtomicI64,
    has_own_budget: AtomicBool,
    state: Mutex<State>,
}

struct State {
    month: Month,
    /// Of the month, in the database.
    stored: Amounts,
    /// Of the month, on its way there.
    in_flight: Amounts,
    /// Of the month, new, and in no tally.
    fresh: HashMap<Arc<str>, Amounts>,
    tallies: HashMap<Arc<str>, Arc<Tally>>,
    /// Of the month before, new when it ended.
    late: Vec<Row>,
    own_budget: Option<Budget>,
}

/// What one function has used and what is not written yet.
#[derive(Debug, Default)]
pub struct Tally(Sums);

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
            fresh: HashMap::new(),
            tallies: HashMap::new(),
            late: Vec::new(),
            own_budget: None,
        };
        Ledger {
            total: Sums::default(),
            month_ends: AtomicI64::new(month.end().unix_timestamp()),
            has_own_budget: AtomicBool::new(false),
            state: Mutex::new(state),
        }
    }

    fn lock(&self, now: OffsetDateTime) -> MutexGuard<'_, State> {
        let mut state = self.state();
        let month = Month::of(now);
        // A clock that was set back does not open the last month again.
        if month > state.month {
            self.turn(&mut state, month);
        }
        state
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The tally of a function, for whoever bills it often. It is kept as long as somebody holds it.
    pub fn tally(&self, function: &str) -> Arc<Tally> {
        let mut state = self.state();
        if let Some(tally) = state.tallies.get(function) {
            return tally.clone();
        }
        let tally = Arc::<Tally>::default();
        state.tallies.insert(function.into(), tally.clone());
        tally
    }

    /// Adds to a tally of this ledger. The time is in seconds since 1970. What is added while a month ends may count in
    /// either month, and counts once.
    pub fn add_to(&self, tally: &Tally, amounts: &Amounts, now_s: i64) {
        if now_s >= self.month_ends.load(Relaxed)
            && let Ok(now) = OffsetDateTime::from_unix_timestamp(now_s)
        {
            drop(self.lock(now));
        }
        self.total.add(amounts);
        tally.0.add(amounts);
    }

    /// Adds to the account of a function, `""` for none.
    pub fn add(&self, function: &str, amounts: Amounts, now: OffsetDateTime) {
        let mut state = self.lock(now);
        self.total.add(&amounts);
        state.add(function, amounts);
    }

    /// What the month's uses add up to.
    pub fn used(&self, now: OffsetDateTime) -> Amounts {
        let state = self.lock(now);
        self.sum(&state)
    }

    fn sum(&self, state: &State) -> Amounts {
        let mut sum = state.stored;
        sum += state.in_flight;
        sum += self.total.read();
        sum
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
        let mut state = self.state();
        state.own_budget = budget;
        self.has_own_budget.store(budget.is_some(), Relaxed);
    }

    /// Whether there may be a budget to check.
    pub fn is_limited(&self, of_tier: &Budget) -> bool {
        *of_tier != Budget::default() || self.has_own_budget.load(Relaxed)
    }

    /// Fails when a part of the budget is used up. What is under way is not counted yet, so that it may be passed by
    /// what runs at once.
    pub fn check(&self, of_tier: Budget, now: OffsetDateTime) -> Result<(), Spent> {
        if !self.is_limited(&of_tier) {
            return Ok(());
        }
        let state = self.lock(now);
        let budget = state.own_budget.unwrap_or(of_tier);
        let used = self.sum(&state);
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
        let fresh = self.drain(&mut state);
        state.in_flight = Amounts::default();
        for row in &fresh {
            state.in_flight += row.amounts;
        }
        rows.extend(fresh);
        rows
    }

    pub(super) fn put_back(&self, rows: Vec<Row>) {
        let mut state = self.state();
        state.in_flight = Amounts::default();
        for row in rows {
            if row.month == state.month {
                self.total.add(&row.amounts);
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

    /// What is new of a month; a function may have two rows.
    pub(super) fn peek(&self, month: Month) -> Vec<Row> {
        let state = self.state();
        let mut rows: Vec<Row> =
            state.late.iter().filter(|row| row.month == month).cloned().collect();
        if state.month == month {
            let fresh = state.fresh.iter().map(|(function, amounts)| (function, *amounts));
            let tallied = state.tallies.iter().map(|(function, tally)| (function, tally.0.read()));
            let new = fresh.chain(tallied).filter(|(_, amounts)| !amounts.is_zero());
            rows.extend(new.map(|(function, amounts)| {
                let function = function.clone();
                Row { month, function, amounts }
            }));
        }
        rows
    }

    pub(super) fn is_clean(&self) -> bool {
        let state = self.state();
        let is_written = state.tallies.values().all(|tally| tally.0.read().is_zero());
        is_written && state.fresh.is_empty() && state.late.is_empty() && state.in_flight.is_zero()
    }

    /// Takes all that is new of the month.
    fn drain(&self, state: &mut State) -> Vec<Row> {
        let mut tallied = Vec::new();
        state.tallies.retain(|function, tally| {
            let amounts = tally.0.take();
            if !amounts.is_zero() {
                tallied.push((function.clone(), amounts));
            }
            // What the last one to hold it has added must not go with it.
            Arc::get_mut(tally).is_none_or(|tally| !tally.0.read().is_zero())
        });
        for (function, amounts) in tallied {
            state.add(&function, amounts);
        }
        let month = state.month;
        let row = |(function, amounts)| Row { month, function, amounts };
        let rows: Vec<Row> = state.fresh.drain().map(row).collect();
        for row in &rows {
            self.total.subtract(&row.amounts);
        }
        rows
    }

    fn turn(&self, state: &mut State, month: Month) {
        for row in self.drain(state) {
            state.late(row);
        }
        state.month = month;
        state.stored = Amounts::default();
        state.in_flight = Amounts::default();
        self.month_ends.store(month.end().unix_timestamp(), Relaxed);
    }
}

impl State {
    fn add(&mut self, function: &str, amounts: Amounts) {
        if let Some(sum) = self.fresh.get_mut(function) {
            *sum += amounts;
            return;
        }
        let name = if self.fresh.len() < NAMES_MAX { function } else { OTHERS };
        *self.fresh.entry(name.into()).or_default() += amounts;
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
