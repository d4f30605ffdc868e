//! Runs calls that were taken together, and answers them.
//!
//! 1. Who has left or is too late does not run.
//! 2. Several calls run as one batch. Where a batch fails, its halves run apart, down to single calls: a row that makes
//!    the model fail takes none of its neighbours with it.
//! 3. Each call pays its part of the runs it was in by its rows. What batches cost in vain, those pay whose calls
//!    failed.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use rustix::time::{ClockId, clock_gettime};
use sandpiper_domain::{
    InferenceBill, InferenceCost, InferenceError, InferenceOutput, NamedTensor, TenantName, Tensor,
};
use tokio::sync::oneshot;

use super::queue::{Charge, Waiting};
use crate::{
    ModelStats,
    backend::{Failed, Held, Planned},
    batch,
    model::Core,
};

pub(crate) type Answer = Result<InferenceOutput, InferenceError>;

/// One call on its way to a compute thread.
pub(crate) struct Job {
    pub(crate) core: Arc<Core>,
    pub(crate) tenant: TenantName,
    pub(crate) inputs: Vec<Tensor>,
    pub(crate) rows: usize,
    /// Of each row, as its cost counts it.
    pub(crate) width: usize,
    pub(crate) deadline: Option<Instant>,
    pub(crate) queued_at: Instant,
    pub(crate) reply: oneshot::Sender<Answer>,
    pub(crate) pending: Pending,
    /// Keeps the plan that it runs with.
    pub(crate) plan: Option<Held>,
    /// Where its cost is added.
    pub(crate) bill: Option<Arc<InferenceBill>>,
}

/// Counts a call as waiting for as long as it lives.
pub(crate) struct Pending(Arc<ModelStats>);

/// What a thread has run since it last asked for work.
#[derive(Default)]
pub(super) struct Done {
    pub(super) bill: Vec<Charge>,
    pub(super) measured_ns: Vec<u64>,
}

impl Waiting for Job {
    fn cost_ns(&self, rows: usize) -> u64 {
        self.core.costs.estimate_ns(rows, self.width)
    }

    fn sizes(&self) -> &[u32] {
        &self.core.sizes
    }
}

impl Pending {
    pub(crate) fn new(stats: Arc<ModelStats>) -> Self {
        stats.pending.fetch_add(1, Relaxed);
        Pending(stats)
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.0.pending.fetch_sub(1, Relaxed);
    }
}

impl Job {
    /// Answers a call whose deadline passed while it waited.
    pub(super) fn expire(self) {
        self.core.stats.fail.add(1, self.queued_at.elapsed());
        self.charge(self.queued_at.elapsed(), Duration::ZERO);
        let Job { core, reply, pending, plan, bill, .. } = self;
        drop((core, pending, plan, bill));
        let _ = reply.send(Err(InferenceError::Timeout));
    }

    /// Ends a call that was given up while it waited.
    pub(crate) fn withdraw(self) {
        self.charge(self.queued_at.elapsed(), Duration::ZERO);
    }

    /// Its caller pays, whether the answer is of use to it or not.
    fn charge(&self, queued: Duration, computed: Duration) {
        if let Some(bill) = &self.bill {
            bill.add(InferenceCost { queued, computed });
        }
    }

    fn is_late(&self, now: Instant) -> bool {
        self.deadline.is_some_and(|deadline| now >= deadline)
    }
}

/// A call that runs, and what has come of it.
struct Call {
    job: Job,
    queued: Duration,
    /// Its part of the time of the runs it was in.
    computed: Duration,
    cpu_ns: u64,
    /// It was neither late nor given up nor refused when its turn came.
    is_live: bool,
    answer: Option<Answer>,
}

/// The calls of one model that were taken together.
struct Batch {
    core: Arc<Core>,
    calls: Vec<Call>,
    /// The CPU time of batches that failed, and how long they took.
    wasted_ns: u64,
    wasted: Duration,
    /// The calls that panicked alone, and how.
    panics: Vec<(usize, String)>,
}

/// The CPU time that this thread has used.
pub(crate) fn thread_cpu_ns() -> u64 {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    (now.tv_sec as u64).saturating_mul(1_000_000_000).saturating_add(now.tv_nsec as u64)
}

/// Runs the calls, answers them, and says what each cost, in CPU nanoseconds.
pub(super) fn run(jobs: Vec<Job>) -> Vec<u64> {
    let now = Instant::now();
    let Some(core) = jobs.first().map(|job| job.core.clone()) else { return Vec::new() };
    let call = |job: Job| {
        let queued = now.saturating_duration_since(job.queued_at);
        core.stats.queue.add(1, queued);
        Call { job, queued, computed: Duration::ZERO, cpu_ns: 0, is_live: false, answer: None }
    };
    let calls: Vec<Call> = jobs.into_iter().map(call).collect();
    let mut batch = Batch { core, calls, wasted_ns: 0, wasted: Duration::ZERO, panics: Vec::new() };
    let mut live = Vec::with_capacity(batch.calls.len());
    for (place, call) in batch.calls.iter_mut().enumerate() {
        call.answer = if call.job.is_late(now) {
            Some(Err(InferenceError::Timeout))
        } else {
            batch.core.health.refusal(&call.job.tenant).map(Err)
        };
        if call.answer.is_none() && !call.job.reply.is_closed() {
            call.is_live = true;
            live.push(place);
        }
    }
    batch.pieces(&live);
    batch.judge();
    batch.answer()
}

impl Batch {
    /// Runs these calls, as many together as make a batch that was tried when the model was loaded.
    fn pieces(&mut self, mut calls: &[usize]) {
        while !calls.is_empty() {
            let (mut rows, mut best) = (0usize, 1);
            for (count, &place) in (1..).zip(calls) {
                rows = self.calls[place].job.rows.saturating_add(rows);
                if self.core.sizes.iter().any(|size| *size as usize == rows) {
                    best = count;
                }
            }
            let (piece, rest) = calls.split_at(best);
            self.run(piece);
            calls = rest;
        }
    }

    fn run(&mut self, calls: &[usize]) {
        match calls {
            [] => {}
            [place] => self.alone(*place),
            _ => {
                if !self.together(calls) {
                    let (left, right) = calls.split_at(calls.len() / 2);
                    self.pieces(left);
                    self.pieces(right);
                }
            }
        }
    }

    /// Runs one call by itself, and says so where it panicked.
    fn alone(&mut self, place: usize) {
        let (began, cpu) = (Instant::now(), thread_cpu_ns());
        let call = &mut self.calls[place];
        let inputs = std::mem::take(&mut call.job.inputs);
        let job = &call.job;
        let stop = || job.reply.is_closed() || job.is_late(Instant::now());
        let outcome = self.core.program.run_planned(inputs, &stop);
        call.cpu_ns += thread_cpu_ns().saturating_sub(cpu);
        call.computed = began.elapsed();
        call.answer = Some(match outcome {
            Ok(ran) => {
                self.core.stats.ran(call.job.rows, ran.input, ran.infer, ran.output);
                self.core.costs.observe(call.job.rows, call.job.width, call.cpu_ns);
                let (queued, computed) = (call.queued, call.computed);
                Ok(InferenceOutput { outputs: ran.outputs, queued, computed, batch_size: 1 })
            }
            Err(Failed { error, panicked }) => {
                if panicked {
                    self.panics.push((place, error.to_string()));
                }
                Err(error)
            }
        });
    }

    /// Runs calls as one batch. False where the batch failed and each must be tried apart.
    fn together(&mut self, calls: &[usize]) -> bool {
        let (began, cpu) = (Instant::now(), thread_cpu_ns());
        let jobs = || calls.iter().map(|&place| &self.calls[place].job);
        let rows: Vec<usize> = jobs().map(|job| job.rows).collect();
        let Some(total) = rows.iter().try_fold(0usize, |total, rows| total.checked_add(*rows))
        else {
            return false;
        };
        if !self.is_planned(calls, total) {
            return false;
        }
        // What runs together has one shape but for its rows.
        let width = jobs().next().map_or(1, |job| job.width);
        let Some(inputs) = batch::join(jobs().map(|job| job.inputs.as_slice())) else {
            return false;
        };
        let joined = began.elapsed();
        let stop = || {
            let now = Instant::now();
            jobs().all(|job| job.reply.is_closed() || job.is_late(now))
        };
        let outcome = self.core.program.run_planned(inputs, &stop);
        let ran = match outcome {
            Ok(ran) => ran,
            Err(failed) => {
                self.waste(began, cpu);
                if failed.error != InferenceError::Timeout {
                    return false;
                }
                for &place in calls {
                    self.calls[place].answer = Some(Err(InferenceError::Timeout));
                }
                return true;
            }
        };
        let parting = Instant::now();
        let Some(parts) = batch::split(ran.outputs, &rows) else {
            self.waste(began, cpu);
            return false;
        };
        let output = ran.output + parting.elapsed();
        self.core.stats.ran(total, joined + ran.input, ran.infer, output);
        let (took, cpu_ns) = (began.elapsed(), thread_cpu_ns().saturating_sub(cpu));
        self.core.costs.observe(total, width, cpu_ns);
        for ((&place, rows), outputs) in calls.iter().zip(rows).zip(parts) {
            let part = rows as f64 / total as f64;
            let call = &mut self.calls[place];
            call.cpu_ns += (cpu_ns as f64 * part) as u64;
            call.computed = took.mul_f64(part);
            call.answer = Some(Ok(self::output(call, outputs, calls.len())));
        }
        true
    }

    /// Whether these calls can run as one batch. Their plan is made elsewhere where it is asked for more than once.
    fn is_planned(&self, calls: &[usize], rows: usize) -> bool {
        let Some(job) = calls.first().map(|&place| &self.calls[place].job) else { return false };
        match self.core.program.is_planned(&job.inputs, rows) {
            Planned::Yes => true,
            Planned::No => false,
            Planned::After(work) => {
                self.core.builders.offer(&job.tenant, work);
                false
            }
        }
    }

    /// Notes a batch that failed.
    fn waste(&mut self, began: Instant, cpu: u64) {
        self.wasted_ns += thread_cpu_ns().saturating_sub(cpu);
        self.wasted += began.elapsed();
    }

    /// Divides what was in vain, and tells the model's health how it went.
    fn judge(&mut self) {
        let ends = self
            .calls
            .iter()
            .map(|call| call.is_live.then_some(matches!(call.answer, Some(Ok(_)))));
        let (payers, part_ns) = payers(self.wasted_ns, ends);
        let part = self.wasted / payers.len().max(1) as u32;
        for place in payers {
            let call = &mut self.calls[place];
            call.cpu_ns += part_ns;
            // Who has an answer is told what that took.
            if !matches!(call.answer, Some(Ok(_))) {
                call.computed += part;
            }
        }
        let health = &self.core.health;
        let well = || {
            let ended_well = self.calls.iter().filter(|call| matches!(call.answer, Some(Ok(_))));
            ended_well.map(|call| &call.job.tenant)
        };
        well().for_each(|tenant| health.succeeded(tenant));
        for (place, text) in &self.panics {
            let tenant = &self.calls[*place].job.tenant;
            // Where others in the same batch ended well, what panicked were rows, and not the model; but they may be
            // all that a guest sends.
            if !well().any(|other| other == tenant || health.is_owner(tenant)) {
                health.panicked(tenant, text);
            }
        }
    }

    fn answer(self) -> Vec<u64> {
        let Batch { core, calls, .. } = self;
        let mut answers = Vec::with_capacity(calls.len());
        let mut costs = Vec::with_capacity(calls.len());
        for Call { job, queued, computed, cpu_ns, answer, .. } in calls {
            costs.push(cpu_ns);
            job.charge(queued, computed);
            let Some(answer) = answer else { continue };
            match &answer {
                Ok(_) => core.stats.succeeded(job.queued_at.elapsed()),
                Err(_) => core.stats.fail.add(1, job.queued_at.elapsed()),
            }
            answers.push((job.reply, answer));
        }
        // The model goes first, so that a caller who has the answer holds the last reference.
        drop(core);
        for (reply, answer) in answers {
            let _ = reply.send(answer);
        }
        costs
    }
}

/// Who pays for batches that failed, and how much each: the calls that ran and failed or, where none did, all that ran.
/// Each call is `None` where it did not run, else whether it ended well.
fn payers(wasted_ns: u64, ends: impl Iterator<Item = Option<bool>>) -> (Vec<usize>, u64) {
    if wasted_ns == 0 {
        return (Vec::new(), 0);
    }
    let ran: Vec<(usize, bool)> =
        ends.enumerate().filter_map(|(place, end)| Some((place, end?))).collect();
    let any_failed = ran.iter().any(|(_, ended_well)| !ended_well);
    let pays = ran.iter().filter(|(_, ended_well)| !(any_failed && *ended_well));
    let payers: Vec<usize> = pays.map(|(place, _)| *place).collect();
    let part_ns = wasted_ns.checked_div(payers.len() as u64).unwrap_or(0);
    (payers, part_ns)
}

/// What each of the calls cost. Where their run panicked and does not say so, all of the time is divided among them.
pub(super) fn costs_of<E>(outcome: Result<Vec<u64>, E>, calls: usize, cpu_ns: u64) -> Vec<u64> {
    outcome.unwrap_or_else(|_| vec![cpu_ns / calls.max(1) as u64; calls])
}

fn output(call: &Call, outputs: Vec<NamedTensor>, batch_size: usize) -> InferenceOutput {
    let (queued, computed) = (call.queued, call.computed);
    InferenceOutput { outputs, queued, computed, batch_size }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    #[test]
    fn who_did_not_run_pays_nothing() {
        let (late, failed, well) = (None, Some(false), Some(true));
        let payers = |ends: &[Option<bool>]| payers(600, ends.iter().copied());
        assert_eq!(payers(&[late, failed, well, failed]), (vec![1, 3], 300));
        // The batch failed, and each by itself did not.
        assert_eq!(payers(&[late, well, well, late]), (vec![1, 2], 300));
        assert_eq!(payers(&[late]), (vec![], 0));
    }

    #[test]
    fn a_run_that_panics_is_paid_for() {
        let panicked = catch_unwind(AssertUnwindSafe(|| -> Vec<u64> { panic!("in the test") }));
        assert_eq!(costs_of(panicked, 4, 1000), [250; 4]);
        assert_eq!(costs_of(catch_unwind(|| vec![7, 8]), 2, 1000), [7, 8]);
    }
}
