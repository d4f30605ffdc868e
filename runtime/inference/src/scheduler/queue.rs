//! The calls that wait, and which of them run next. No threads, and the time comes from outside.

mod admit;
mod band;
mod expect;
mod fill;

use std::{
    collections::{BTreeSet, HashMap},
    time::{Duration, Instant},
};

use sandpiper_domain::{Band, Share, TenantName};

use super::fair::{ESTIMATE_NS_MAX, Fair, TenantId};
#[cfg(test)]
pub(super) use band::LOW_BAND_WAIT;
use band::is_low;

/// What the queue must know of a call.
pub(crate) trait Waiting {
    /// What `rows` rows like its own are expected to take together, in CPU nanoseconds.
    fn cost_ns(&self, rows: usize) -> u64;

    /// The batch sizes of its model, ascending. A batch has exactly one of these numbers of rows.
    fn sizes(&self) -> &[u32];
}

/// How many calls may wait.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// On the node.
    pub(crate) node: usize,
    /// Of one model.
    pub(crate) model: usize,
    /// Of one tenant.
    pub(crate) tenant: usize,
    /// Threads that serve the queue.
    pub(crate) threads: usize,
}

/// A call that asks for a place.
pub(crate) struct Ask<'a> {
    pub(crate) tenant: &'a TenantName,
    pub(crate) share: Share,
    pub(crate) model: u64,
    pub(crate) rows: usize,
    /// Calls of one model with the same number here may run together; `None` runs alone.
    pub(crate) group: Option<u64>,
    /// It may share a batch with calls of other tenants.
    pub(crate) with_others: bool,
    pub(crate) deadline: Option<Instant>,
    /// How long it waits for others to fill a batch.
    pub(crate) delay: Duration,
    /// The least that it can take, in CPU nanoseconds.
    pub(crate) floor_ns: u64,
}

/// Why a call gets no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The tenant has as many as it may.
    Tenant,
    /// The model or the node has as many as may be.
    Full,
    /// Its deadline has passed.
    Expired,
    /// It would end after its deadline.
    Late { retry_after: Duration },
}

/// Names a call that waits; they only grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Ticket(u64);

/// Calls that run together, and what their tenants were charged for it.
pub(crate) struct Picked<J> {
    pub(crate) jobs: Vec<J>,
    pub(crate) bill: Vec<Charge>,
    /// What the run is expected to take.
    pub(crate) estimate_ns: u64,
}

/// One call's part. An estimate of 0 is no charge at all.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Charge {
    tenant: TenantId,
    estimate_ns: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Lane {
    model: u64,
    group: u64,
    /// The tenant, where it keeps apart.
    apart: Option<TenantId>,
}

struct Entry<J> {
    job: J,
    tenant: TenantId,
    band: Band,
    model: u64,
    lane: Option<Lane>,
    rows: usize,
    /// What it adds to the backlog.
    cost_ns: u64,
    queued_at: Instant,
    deadline: Option<Instant>,
    is_held: bool,
}

/// Calls of one lane that wait for company.
struct Held {
    until: Instant,
    rows: usize,
    tickets: Vec<u64>,
}

pub(crate) struct Queue<J> {
    limits: Limits,
    fair: Fair,
    entries: HashMap<u64, Entry<J>>,
    /// The calls that may run, by tenant, band and age, and by lane as well. `true` is the low band.
    by_tenant: BTreeSet<(TenantId, bool, u64)>,
    by_lane: BTreeSet<(Lane, TenantId, bool, u64)>,
    by_deadline: BTreeSet<(Instant, u64)>,
    held: HashMap<Lane, Held>,
    of_model: HashMap<u64, usize>,
    of_tenant: HashMap<TenantId, Backlog>,
    /// Calls that wait, the normal ones and the low ones.
    of_band: [usize; 2],
    next: u64,
    backlog_ns: u64,
    /// When a tenant in the ring of the low band may first have waited long enough.
    ages_at: Option<Instant>,
}

#[derive(Default, Clone, Copy)]
struct Backlog {
    calls: usize,
    /// The work of its normal calls, and that of its low ones.
    ns: [u64; 2],
}

impl<J: Waiting> Queue<J> {
    pub(crate) fn new(limits: Limits) -> Self {
        Queue {
            limits,
            fair: Fair::default(),
            entries: HashMap::new(),
            by_tenant: BTreeSet::new(),
            by_lane: BTreeSet::new(),
            by_deadline: BTreeSet::new(),
            held: HashMap::new(),
            of_model: HashMap::new(),
            of_tenant: HashMap::new(),
            of_band: [0; 2],
            next: 0,
            backlog_ns: 0,
            ages_at: None,
        }
    }

    /// Calls that wait.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Calls of this band that wait.
    pub(crate) fn len_of(&self, band: Band) -> usize {
        self.of_band[usize::from(is_low(band))]
    }

    /// Queues a call, or gives it back. `free_in` is how long every thread still works on what it has begun.
    pub(crate) fn push(
        &mut self,
        ask: &Ask<'_>,
        job: J,
        free_in: Duration,
        now: Instant,
    ) -> Result<Ticket, (J, Refusal)> {
        if let Some(refusal) = self.refuse(ask, &job, free_in, now) {
            return Err((job, refusal));
        }
        let tenant = self.fair.tenant(ask.tenant, ask.share.weight);
        self.fair.claim(tenant);
        let ticket = self.next;
        self.next += 1;
        let cost_ns = admit::backlog_cost(&job, ask, now);
        let apart = (!ask.with_others).then_some(tenant);
        let largest = job.sizes().last().map_or(1, |size| *size as usize);
        let group = ask.group.filter(|_| ask.rows <= largest);
        let lane = group.map(|group| Lane { model: ask.model, group, apart });
        let band = ask.share.band;
        let entry = Entry {
            job,
            tenant,
            band,
            model: ask.model,
            lane,
            rows: ask.rows,
            cost_ns,
            queued_at: now,
            deadline: ask.deadline,
            is_held: false,
        };
        *self.of_model.entry(ask.model).or_default() += 1;
        let backlog = self.of_tenant.entry(tenant).or_default();
        backlog.calls += 1;
        backlog.ns[usize::from(is_low(band))] += cost_ns;
        self.of_band[usize::from(is_low(band))] += 1;
        self.backlog_ns += cost_ns;
        if let Some(deadline) = ask.deadline {
            self.by_deadline.insert((deadline, ticket));
        }
        self.entries.insert(ticket, entry);
        match lane {
            Some(lane) if !ask.delay.is_zero() && ask.rows < largest => {
                self.hold(lane, ticket, ask, largest, now);
            }
            _ => self.release(ticket),
        }
        Ok(Ticket(ticket))
    }

    /// Begins a brief call where it was made, so that it takes no place. The tenant has no call that waits, and where
    /// others wait it stands in the normal band and takes no more than its next turn will give: it need not wait for a
    /// run to end before that turn comes. It is charged only where others wait, as a tenant alone is never in debt.
    pub(crate) fn begin_here(&mut self, ask: &Ask<'_>, estimate_ns: u64) -> Option<Charge> {
        let tenant = self.fair.tenant(ask.tenant, ask.share.weight);
        let others_wait = !self.entries.is_empty();
        let must_wait = others_wait
            && (ask.share.band == Band::Low || self.fair.owes_a_turn(tenant, Band::Normal));
        if must_wait || self.of_tenant.contains_key(&tenant) {
            return None;
        }
        let estimate_ns = if others_wait { estimate_ns.max(1) } else { 0 };
        self.fair.claim(tenant);
        self.fair.begin(tenant, estimate_ns);
        Some(Charge { tenant, estimate_ns })
    }

    /// Takes back a call that has not begun; its place is free at once.
    pub(crate) fn cancel(&mut self, ticket: Ticket) -> Option<J> {
        Some(self.remove(ticket.0)?.job)
    }

    /// Calls whose deadline has passed. They are done.
    pub(crate) fn expire(&mut self, now: Instant, expired: &mut Vec<J>) {
        while let Some(&(deadline, ticket)) = self.by_deadline.first() {
            if deadline > now {
                return;
            }
            self.by_deadline.pop_first();
            expired.extend(self.remove(ticket).map(|entry| entry.job));
        }
    }

    /// The next call with those that run together with it.
    pub(crate) fn take(&mut self, now: Instant) -> Option<Picked<J>> {
        self.release_due(now);
        self.age(now);
        let (_, first) = self.first(now)?;
        let tickets = self.batch(first);
        let calls = || tickets.iter().filter_map(|ticket| self.entries.get(ticket));
        let total = calls().fold(0usize, |total, call| total.saturating_add(call.rows));
        let mut estimate_ns = self.entries.get(&first)?.job.cost_ns(total);
        // A run ends with the last deadline of its calls.
        let last = calls().try_fold(now, |last, call| Some(last.max(call.deadline?)));
        if let Some(last) = last {
            estimate_ns = estimate_ns.min(whole_ns(last.saturating_duration_since(now)));
        }
        let mut picked = Picked {
            jobs: Vec::with_capacity(tickets.len()),
            bill: Vec::with_capacity(tickets.len()),
            estimate_ns,
        };
        for ticket in tickets {
            let Some(entry) = self.entries.get(&ticket) else { continue };
            let part = estimate_ns as u128 * entry.rows as u128 / total.max(1) as u128;
            let part = u64::try_from(part).unwrap_or(u64::MAX).clamp(1, ESTIMATE_NS_MAX);
            let charge = Charge { tenant: entry.tenant, estimate_ns: part };
            // Before the call waits no more: a tenant without a call loses what is left of its turn.
            self.fair.claim(charge.tenant);
            let Some(entry) = self.remove(ticket) else { continue };
            self.fair.begin(charge.tenant, charge.estimate_ns);
            picked.bill.push(charge);
            picked.jobs.push(entry.job);
        }
        Some(picked)
    }

    /// What was charged is set right: `measured_ns` has the calls of `bill` in their order.
    pub(crate) fn settle(&mut self, bill: &[Charge], measured_ns: &[u64]) {
        for (place, charge) in bill.iter().enumerate() {
            let measured_ns = match charge.estimate_ns {
                0 => 0,
                _ => measured_ns.get(place).copied().unwrap_or(0),
            };
            self.fair.end(charge.tenant, charge.estimate_ns, measured_ns);
            self.fair.unclaim(charge.tenant);
        }
    }

    /// Takes out every call.
    pub(crate) fn clear(&mut self) -> Vec<J> {
        let tickets: Vec<u64> = self.entries.keys().copied().collect();
        tickets.into_iter().filter_map(|ticket| Some(self.remove(ticket)?.job)).collect()
    }

    /// When calls that wait for company will wait no more.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.held.values().map(|held| held.until).min()
    }

    fn hold(&mut self, lane: Lane, ticket: u64, ask: &Ask<'_>, largest: usize, now: Instant) {
        // Nobody is made to wait into a deadline that could be met.
        let latest =
            ask.deadline.and_then(|by| by.checked_sub(nanos(ask.floor_ns.saturating_mul(2))));
        let until = (now + ask.delay).min(latest.unwrap_or(now + ask.delay));
        let held = self.held.entry(lane);
        let held = held.or_insert_with(|| Held { until, rows: 0, tickets: Vec::new() });
        held.until = held.until.min(until);
        held.rows = held.rows.saturating_add(ask.rows);
        held.tickets.push(ticket);
        let is_full = held.rows >= largest;
        if let Some(entry) = self.entries.get_mut(&ticket) {
            entry.is_held = true;
        }
        if is_full {
            self.release_lane(lane);
        }
    }

    fn release_due(&mut self, now: Instant) {
        if self.held.is_empty() {
            return;
        }
        let due = self.held.iter().filter(|(_, held)| held.until <= now);
        let due: Vec<Lane> = due.map(|(lane, _)| *lane).collect();
        for lane in due {
            self.release_lane(lane);
        }
    }

    fn release_lane(&mut self, lane: Lane) {
        for ticket in self.held.remove(&lane).map(|held| held.tickets).unwrap_or_default() {
            self.release(ticket);
        }
    }

    fn remove(&mut self, ticket: u64) -> Option<Entry<J>> {
        let entry = self.entries.remove(&ticket)?;
        if let Some(deadline) = entry.deadline {
            self.by_deadline.remove(&(deadline, ticket));
        }
        if let Some(count) = self.of_model.get_mut(&entry.model) {
            *count -= 1;
            if *count == 0 {
                self.of_model.remove(&entry.model);
            }
        }
        self.backlog_ns = self.backlog_ns.saturating_sub(entry.cost_ns);
        if let Some(backlog) = self.of_tenant.get_mut(&entry.tenant) {
            backlog.calls -= 1;
            let of_band = &mut backlog.ns[usize::from(is_low(entry.band))];
            *of_band = of_band.saturating_sub(entry.cost_ns);
            if backlog.calls == 0 {
                self.of_tenant.remove(&entry.tenant);
            }
        }
        self.of_band[usize::from(is_low(entry.band))] -= 1;
        self.fair.unclaim(entry.tenant);
        if entry.is_held {
            self.unhold(&entry, ticket);
            return Some(entry);
        }
        let low = is_low(entry.band);
        self.by_tenant.remove(&(entry.tenant, low, ticket));
        if let Some(lane) = entry.lane {
            self.by_lane.remove(&(lane, entry.tenant, low, ticket));
        }
        let own = (entry.tenant, false, 0)..=(entry.tenant, true, u64::MAX);
        if self.by_tenant.range(own).next().is_none() {
            self.fair.leave(entry.tenant);
        }
        Some(entry)
    }

    fn unhold(&mut self, entry: &Entry<J>, ticket: u64) {
        let Some(lane) = entry.lane else { return };
        let Some(held) = self.held.get_mut(&lane) else { return };
        held.tickets.retain(|other| *other != ticket);
        held.rows = held.rows.saturating_sub(entry.rows);
        if held.tickets.is_empty() {
            self.held.remove(&lane);
        }
    }
}

fn nanos(ns: u64) -> Duration {
    Duration::from_nanos(ns)
}

fn whole_ns(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
