//! The compute threads, and which call each of them runs next.
//!
//! 1. A call is queued with its tenant, its model and its rows, or refused at once ([`queue`]): too many wait, or it
//!    would end after its deadline.
//! 2. A thread that comes free takes the oldest call of the tenant whose turn it is ([`fair`]), and with it the calls
//!    of the same model that wait and make up a batch.
//! 3. It runs them ([`run`]), answers, and takes the next ones; the tenants pay for the CPU time that was measured.
//!
//! One mutex guards all of the state. It is held for the bookkeeping of one call, and never while a model runs.

mod fair;
mod queue;
mod run;
#[cfg(test)]
mod tests;

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

pub(crate) use queue::{Ask, Refusal, Ticket};
use queue::{Charge, Limits, Picked, Queue};
pub(crate) use run::{Answer, Job, Pending, thread_cpu_ns};

/// Running deep graphs recurses. The memory is reserved, not used, until a model needs it.
const STACK_BYTES: usize = 64 << 20;
/// After a panic of the queue itself, so that one that stays does not keep the thread busy.
const PAUSE: Duration = Duration::from_millis(10);
/// How far compute threads stand behind the threads that answer, in steps of nice(2).
const COMPUTE_NICE: i32 = 5;
/// A tenant may fill this part of the queue, so that none can keep the others out.
const TENANT_PART: usize = 2;
/// A model may fill so many quarters of the queue: more than one tenant can, and not all.
const MODEL_QUARTERS: usize = 3;

/// The threads end when the scheduler is dropped; calls that still wait are dropped with it.
pub(crate) struct Scheduler {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// Calls that wait and threads that run something, as they were when the lock was last let go of.
    crowd: AtomicUsize,
    threads: usize,
    ready: Condvar,
}

struct State {
    queue: Queue<Job>,
    /// When each thread that runs something is expected to be done with it.
    busy_until: Vec<Option<Instant>>,
    sleepers: Sleepers,
    closed: bool,
}

/// Threads that wait for a call. Waking is a system call, so nobody is woken in vain.
#[derive(Debug, Default)]
struct Sleepers {
    /// Those that wait, the woken ones until they are awake.
    waiting: usize,
    /// Those that were woken.
    woken: usize,
}

impl Sleepers {
    /// Whether a thread must be woken for `calls` calls that wait; it counts as woken then.
    fn wake_for(&mut self, calls: usize) -> bool {
        let is_needed = calls > self.woken && self.waiting > self.woken;
        self.woken += usize::from(is_needed);
        is_needed
    }

    fn sleep(&mut self) {
        self.waiting += 1;
    }

    fn awake(&mut self) {
        self.waiting -= 1;
        self.woken = self.woken.saturating_sub(1);
    }
}

/// Lowers the calling thread's priority, so that a core that computes is taken at once by a thread that answers: those
/// need it for microseconds, a run keeps it for milliseconds. On Linux `nice` is a thread's own.
fn give_way() {
    if let Err(error) = rustix::process::nice(COMPUTE_NICE) {
        tracing::debug!(%error, "a compute thread keeps its priority");
    }
}

impl Scheduler {
    /// Starts `threads` threads in front of which `capacity` calls may wait.
    pub(crate) fn start(threads: usize, capacity: usize) -> io::Result<Self> {
        let threads = threads.max(1);
        let limits = Limits {
            node: capacity,
            model: (capacity * MODEL_QUARTERS).div_ceil(4).max(1),
            tenant: (capacity / TENANT_PART).max(1),
            threads,
        };
        let queue = Queue::new(limits);
        let state = State {
            queue,
            busy_until: vec![None; threads],
            sleepers: Sleepers::default(),
            closed: false,
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            crowd: AtomicUsize::new(0),
            threads,
            ready: Condvar::new(),
        });
        let scheduler = Scheduler { shared };
        for number in 0..threads {
            let shared = scheduler.shared.clone();
            thread::Builder::new()
                .name(format!("sandpiper-infer-{number}"))
                .stack_size(STACK_BYTES)
                .spawn(move || {
                    give_way();
                    shared.serve(number);
                })?;
        }
        Ok(scheduler)
    }

    /// Queues a call, or says why not.
    pub(crate) fn push(&self, ask: &Ask<'_>, job: Job) -> Result<Ticket, Refusal> {
        let now = Instant::now();
        let mut expired = Vec::new();
        let mut state = self.shared.lock();
        if state.closed {
            return Err(Refusal::Full);
        }
        state.queue.expire(now, &mut expired);
        let free_in = state.free_in(now);
        let outcome = state.queue.push(ask, job, free_in, now);
        let is_awaited = outcome.is_ok() && state.wakes();
        self.shared.note(&state);
        drop(state);
        if is_awaited {
            self.shared.ready.notify_one();
        }
        expired.into_iter().for_each(Job::expire);
        // A refused call is dropped here, where no lock is held.
        outcome.map_err(|(_, refusal)| refusal)
    }

    /// Lets a brief call run where it was made, if its tenant is due.
    pub(crate) fn claim(&self, ask: &Ask<'_>, estimate_ns: u64) -> Option<Claim> {
        let mut state = self.shared.lock();
        if state.closed {
            return None;
        }
        let charge = state.queue.begin_here(ask, estimate_ns)?;
        drop(state);
        Some(Claim { shared: self.shared.clone(), charge, measured_ns: 0 })
    }

    /// Takes back a call that no thread has begun; its place is free at once.
    pub(crate) fn cancel(&self, ticket: Ticket) -> Option<Job> {
        let mut state = self.shared.lock();
        let job = state.queue.cancel(ticket);
        self.shared.note(&state);
        job
    }

    /// How long a call of this tenant would wait if it came now; `None` where it would get no place.
    pub(crate) fn expected_wait(
        &self,
        tenant: &sandpiper_domain::TenantName,
        share: sandpiper_domain::Share,
    ) -> Option<std::time::Duration> {
        // Asked for every request of a function that uses models, and mostly a thread is free.
        if self.shared.crowd.load(Relaxed) < self.shared.threads {
            return Some(Duration::ZERO);
        }
        let state = self.shared.lock();
        state.queue.expected_wait(tenant, share, state.free_in(Instant::now()))
    }

    /// Calls that wait.
    pub(crate) fn depth(&self) -> usize {
        self.shared.lock().queue.len()
    }

    /// Calls of tenants of this band that wait.
    pub(crate) fn depth_of(&self, band: sandpiper_domain::Band) -> usize {
        self.shared.lock().queue.len_of(band)
    }
}

/// A call that runs where it was made. Its tenant pays for what it took, which is nothing if it never ran.
pub(crate) struct Claim {
    shared: Arc<Shared>,
    charge: Charge,
    measured_ns: u64,
}

impl Claim {
    /// Runs the call on this thread and answers it.
    pub(crate) fn run(mut self, job: Job) {
        let began = thread_cpu_ns();
        if catch_unwind(AssertUnwindSafe(|| run::run(vec![job]))).is_err() {
            tracing::error!("a call of the inference plane panicked; its thread goes on");
        }
        self.measured_ns = thread_cpu_ns().saturating_sub(began);
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.shared.lock().queue.settle(&[self.charge], &[self.measured_ns]);
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.closed = true;
        let waiting = state.queue.clear();
        drop(state);
        self.shared.ready.notify_all();
        drop(waiting);
    }
}

impl State {
    /// Whether a thread must be woken for what waits.
    fn wakes(&mut self) -> bool {
        self.sleepers.wake_for(self.queue.len())
    }

    /// How long until the first thread is done with what it runs.
    fn free_in(&self, now: Instant) -> Duration {
        let mut soonest = Duration::MAX;
        for until in &self.busy_until {
            let Some(until) = until else { return Duration::ZERO };
            soonest = soonest.min(until.saturating_duration_since(now));
        }
        soonest
    }
}

impl Shared {
    /// A panic never happens while the state is half changed, so that a poisoned lock is as good as any.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves a word for who asks without the lock.
    fn note(&self, state: &State) {
        let busy = state.busy_until.iter().flatten().count();
        self.crowd.store(state.queue.len() + busy, Relaxed);
    }

    /// Waits for the next calls. Those whose deadline has passed are told so on the way.
    fn take(&self, number: usize, done: run::Done) -> Option<Picked<Job>> {
        let mut state = self.lock();
        state.queue.settle(&done.bill, &done.measured_ns);
        loop {
            if let Some(busy) = state.busy_until.get_mut(number) {
                *busy = None;
            }
            if state.closed {
                return None;
            }
            let now = Instant::now();
            let mut expired = Vec::new();
            state.queue.expire(now, &mut expired);
            if !expired.is_empty() {
                drop(state);
                expired.into_iter().for_each(Job::expire);
                state = self.lock();
                continue;
            }
            if let Some(picked) = state.queue.take(now) {
                if let Some(busy) = state.busy_until.get_mut(number) {
                    *busy = Some(now + Duration::from_nanos(picked.estimate_ns));
                }
                // What waits on, and calls that are held until they are due, need a thread that looks after them.
                let wakes = state.wakes();
                self.note(&state);
                drop(state);
                if wakes {
                    self.ready.notify_one();
                }
                return Some(picked);
            }
            let due = state.queue.due();
            self.note(&state);
            state.sleepers.sleep();
            state = match due {
                None => self.ready.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(due) => {
                    let wait = due.saturating_duration_since(now);
                    self.ready.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0
                }
            };
            state.sleepers.awake();
        }
    }

    /// What is expected to panic is contained where it runs; the catches here keep the thread alive through the rest.
    fn serve(&self, number: usize) {
        let mut done = run::Done::default();
        loop {
            let last = std::mem::take(&mut done);
            let Picked { jobs, bill, .. } =
                match catch_unwind(AssertUnwindSafe(|| self.take(number, last))) {
                    Ok(Some(picked)) => picked,
                    Ok(None) => return,
                    Err(_) => {
                        tracing::error!(
                            "the queue of the inference plane panicked; its thread goes on"
                        );
                        thread::sleep(PAUSE);
                        continue;
                    }
                };
            let cpu_ns = thread_cpu_ns();
            let outcome = catch_unwind(AssertUnwindSafe(|| run::run(jobs)));
            if outcome.is_err() {
                tracing::error!("a call of the inference plane panicked; its thread goes on");
            }
            let calls = bill.len();
            let cpu_ns = if outcome.is_err() { thread_cpu_ns().saturating_sub(cpu_ns) } else { 0 };
            done = run::Done { measured_ns: run::costs_of(outcome, calls, cpu_ns), bill };
        }
    }
}
