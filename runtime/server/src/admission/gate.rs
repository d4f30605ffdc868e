//! The places of one tenant: how many of its invocations run, how many are alive, and who waits for either.
//!
//! An invocation that waits for a model is alive, since it holds memory, but does not run, since it needs no processor.
//! 1. Who resumes comes before all who are new: what it holds is held until it ends.
//! 2. Then come the lanes in their order, and in each lane who came first.
//! 3. A function that is full holds nobody up but its own: they wait in its line, and move to the tenant's when it has
//!    a place again.
//!
//! Everything is decided under one lock that is held for a few instructions. A function's own lock is taken only with
//! the tenant's in hand.

use std::{
    collections::BTreeMap,
    ops::Add,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicBool},
    time::{Duration, Instant},
};

use sandpiper_domain::{Lane, TenantLimits};
use tokio::sync::oneshot;

use super::{Cause, Pressure, Refusal};

mod entry;

pub(crate) use entry::Entry;

/// The longest a request waits for its place. A client that gets its 429 sooner can do something about it.
const WAIT_MAX: Duration = Duration::from_secs(10);
/// How often one of the lowest lane looks whether the node has calmed down: nobody tells it.
const BATCH_PAUSE: Duration = Duration::from_millis(20);
/// The bounds of what is advised to one who was turned away.
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);
/// The parts of the mean service time that the newest one does not make up.
const SERVICE_MEMORY: u64 = 16;

const LANES: [Lane; 3] = [Lane::Interactive, Lane::Job, Lane::Batch];

/// Those who wait, first come first served. The number is drawn when they come.
type Line = BTreeMap<u64, Waiter>;

struct Waiter {
    wake: oneshot::Sender<()>,
    function: Option<Arc<FunctionPlaces>>,
}

struct Resumer {
    wake: oneshot::Sender<()>,
    lane: Lane,
}

/// The places of one function version.
pub(crate) struct FunctionPlaces {
    alive_max: u32,
    state: Mutex<FunctionState>,
}

#[derive(Default)]
struct FunctionState {
    alive: u32,
    /// Those who wait while the function is full.
    lines: [Line; 3],
    /// How many of its wait in the tenant's lines.
    ready: [u32; 3],
}

impl FunctionPlaces {
    pub(super) fn new(alive_max: u32) -> Self {
        FunctionPlaces { alive_max, state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, FunctionState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_full(&self) -> bool {
        self.lock().alive >= self.alive_max
    }

    fn has_waiting(&self, lane: Lane) -> bool {
        !self.lock().lines[lane as usize].is_empty()
    }
}

/// How many of each there may be.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    running: u32,
    /// Running ones beside which a job or a shard may start; the rest is kept for those who wait for an answer.
    running_beside: u32,
    running_batch: u32,
    alive: u32,
    /// In each lane.
    waiting: u32,
}

/// The places of one tenant.
pub(crate) struct Places {
    bounds: Bounds,
    pressure: Arc<Pressure>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    running: [u32; 3],
    alive: u32,
    resuming: BTreeMap<u64, Resumer>,
    /// Those whose function had a place when they came here.
    lines: [Line; 3],
    /// Those in these lines and in the functions'.
    waiting: [u32; 3],
    next: u64,
    service_ns: u64,
}

impl State {
    fn runs(&self) -> u32 {
        self.running.iter().sum()
    }

    /// Whether anybody waits, here or in a function's lines.
    fn has_waiting(&self) -> bool {
        self.waiting != [0; 3] || !self.resuming.is_empty()
    }

    fn draw(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

/// What the gate looks like now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Crowd {
    pub(crate) running: u32,
    pub(crate) suspended: u32,
    pub(crate) waiting: [u32; 3],
}

impl Add for Crowd {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        let waiting = std::array::from_fn(|lane| self.waiting[lane] + other.waiting[lane]);
        Crowd {
            running: self.running + other.running,
            suspended: self.suspended + other.suspended,
            waiting,
        }
    }
}

impl Places {
    pub(super) fn new(limits: &TenantLimits, pressure: Arc<Pressure>) -> Self {
        let running = limits.concurrency;
        let bounds = Bounds {
            running,
            running_beside: running.saturating_sub(running.div_ceil(8)).max(1),
            running_batch: (running / 2).max(1),
            alive: limits.sandboxes,
            waiting: limits.queue,
        };
        Places { bounds, pressure, state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn crowd(&self) -> Crowd {
        let state = self.lock();
        let running = state.runs();
        let suspended = state.alive.saturating_sub(running);
        Crowd { running, suspended, waiting: state.waiting }
    }

    /// A place, after a wait if need be.
    pub(super) async fn enter(
        self: &Arc<Self>,
        function: Option<&Arc<FunctionPlaces>>,
        lane: Lane,
        now: Instant,
    ) -> Result<Entry, Refusal> {
        match self.ask(function, lane, now)? {
            Asked::Entered(entry) => Ok(entry),
            Asked::Waits(ticket) => ticket.wait().await,
        }
    }

    fn ask(
        self: &Arc<Self>,
        function: Option<&Arc<FunctionPlaces>>,
        lane: Lane,
        now: Instant,
    ) -> Result<Asked, Refusal> {
        let mut state = self.lock();
        let is_full = function.is_some_and(|function| function.is_full());
        // Where nobody tells those who wait that there is room, one who is new must not overtake them.
        let is_first = state.lines[lane as usize].is_empty();
        if !is_full && is_first && self.may_start(&state, lane) {
            self.start(&mut state, function.map(|function| &**function), lane);
            return Ok(Asked::Entered(self.entry(function.cloned(), lane, now)));
        }
        if state.waiting[lane as usize] >= self.bounds.waiting {
            return Err(self.refusal(&state, Cause::QueueFull, function, lane));
        }
        let number = state.draw();
        let (wake, woken) = oneshot::channel();
        let waiter = Waiter { wake, function: function.cloned() };
        state.waiting[lane as usize] += 1;
        match function {
            Some(function) if is_full || function.has_waiting(lane) => {
                function.lock().lines[lane as usize].insert(number, waiter);
            }
            _ => self.line_up(&mut state, lane, number, waiter),
        }
        let (places, function) = (self.clone(), function.cloned());
        let place = Queued { places, function, lane, number, has_entered: false };
        Ok(Asked::Waits(Ticket { place, woken }))
    }

    fn entry(
        self: &Arc<Self>,
        function: Option<Arc<FunctionPlaces>>,
        lane: Lane,
        began: Instant,
    ) -> Entry {
        Entry { places: self.clone(), function, lane, runs: AtomicBool::new(true), began }
    }

    /// Turns one away, with how long those in front of it take by what the last ones took.
    fn refusal(
        &self,
        state: &State,
        cause: Cause,
        function: Option<&Arc<FunctionPlaces>>,
        lane: Lane,
    ) -> Refusal {
        let in_front: u32 = state.waiting[..=lane as usize].iter().sum();
        let of_function = function.map_or(u32::MAX, |function| function.alive_max);
        let at_once = self.bounds.running.min(of_function).max(1);
        let service = Duration::from_nanos(state.service_ns);
        let wait = service.saturating_mul(in_front.saturating_add(1)) / at_once;
        Refusal { cause, retry_after: wait.clamp(RETRY_MIN, RETRY_MAX) }
    }

    /// Whether one of this lane may start, its function aside.
    fn may_start(&self, state: &State, lane: Lane) -> bool {
        let runs = state.runs();
        if runs >= self.bounds.running
            || state.alive >= self.bounds.alive
            || !state.resuming.is_empty()
        {
            return false;
        }
        let in_front = &state.lines[..lane as usize];
        match lane {
            Lane::Interactive => true,
            _ if runs >= self.bounds.running_beside => false,
            _ if in_front.iter().any(|line| !line.is_empty()) => false,
            Lane::Job => true,
            Lane::Batch => {
                state.running[lane as usize] < self.bounds.running_batch
                    && self.pressure.has_room_for_batch()
            }
        }
    }

    fn start(&self, state: &mut State, function: Option<&FunctionPlaces>, lane: Lane) {
        state.alive += 1;
        if let Some(function) = function {
            function.lock().alive += 1;
        }
        self.run(state, lane);
    }

    fn run(&self, state: &mut State, lane: Lane) {
        state.running[lane as usize] += 1;
        self.pressure.add(lane);
    }

    fn stop(&self, state: &mut State, lane: Lane) {
        state.running[lane as usize] -= 1;
        self.pressure.remove(lane);
    }

    fn leave(&self, state: &mut State, function: Option<&FunctionPlaces>, lane: Lane, runs: bool) {
        state.alive -= 1;
        if runs {
            self.stop(state, lane);
        }
        if let Some(function) = function {
            function.lock().alive -= 1;
            if state.has_waiting() {
                self.promote(state, function);
            }
        }
        self.admit(state);
    }

    fn line_up(&self, state: &mut State, lane: Lane, number: u64, waiter: Waiter) {
        if let Some(function) = &waiter.function {
            function.lock().ready[lane as usize] += 1;
        }
        state.lines[lane as usize].insert(number, waiter);
    }

    /// Moves as many from a function's lines to the tenant's as the function could take. Each lane is filled for
    /// itself, so that those of a low one never stand in for those of a high one; and the first one always moves, since
    /// those who are there already may have come after it.
    fn promote(&self, state: &mut State, function: &FunctionPlaces) {
        let mut of_function = function.lock();
        for lane in LANES {
            let lane = lane as usize;
            let mut moves = of_function.alive < function.alive_max;
            while moves {
                let Some((number, waiter)) = of_function.lines[lane].pop_first() else { break };
                of_function.ready[lane] += 1;
                state.lines[lane].insert(number, waiter);
                moves = of_function.alive + of_function.ready[lane] < function.alive_max;
            }
        }
    }

    /// Lets in whoever may come in now.
    fn admit(&self, state: &mut State) {
        if !state.has_waiting() {
            return;
        }
        while state.runs() < self.bounds.running {
            let Some((_, resumer)) = state.resuming.pop_first() else { break };
            self.run(state, resumer.lane);
            let _ = resumer.wake.send(());
        }
        for lane in LANES {
            while self.may_start(state, lane) {
                let Some((number, waiter)) = state.lines[lane as usize].pop_first() else { break };
                if let Some(function) = &waiter.function {
                    let mut of_function = function.lock();
                    of_function.ready[lane as usize] -= 1;
                    if of_function.alive >= function.alive_max {
                        drop(of_function);
                        let function = function.clone();
                        function.lock().lines[lane as usize].insert(number, waiter);
                        continue;
                    }
                }
                state.waiting[lane as usize] -= 1;
                self.start(state, waiter.function.as_deref(), lane);
                // One that has just given up finds in its guard that it has a place, and gives it back.
                let _ = waiter.wake.send(());
            }
        }
    }
}

enum Asked {
    Entered(Entry),
    Waits(Ticket),
}

/// A place in a line, given back however the wait ends. If the line has moved on without it, it had got its place.
struct Queued {
    places: Arc<Places>,
    function: Option<Arc<FunctionPlaces>>,
    lane: Lane,
    number: u64,
    has_entered: bool,
}

impl Drop for Queued {
    fn drop(&mut self) {
        if self.has_entered {
            return;
        }
        let (places, function) = (&self.places, self.function.as_deref());
        let lane = self.lane as usize;
        let mut state = places.lock();
        if state.lines[lane].remove(&self.number).is_some() {
            state.waiting[lane] -= 1;
            if let Some(function) = function {
                function.lock().ready[lane] -= 1;
                places.promote(&mut state, function);
            }
            // Those of lower lanes may have waited for this one.
            return places.admit(&mut state);
        }
        if function.is_some_and(|f| f.lock().lines[lane].remove(&self.number).is_some()) {
            state.waiting[lane] -= 1;
            return;
        }
        places.leave(&mut state, function, self.lane, true);
    }
}

/// A wait for a place.
struct Ticket {
    place: Queued,
    woken: oneshot::Receiver<()>,
}

impl Ticket {
    async fn wait(mut self) -> Result<Entry, Refusal> {
        let ends = Instant::now() + WAIT_MAX;
        loop {
            let until = match self.place.lane {
                Lane::Batch => ends.min(Instant::now() + BATCH_PAUSE),
                Lane::Interactive | Lane::Job => ends,
            };
            if tokio::time::timeout_at(until.into(), &mut self.woken).await.is_ok() {
                return Ok(self.enter());
            }
            let places = self.place.places.clone();
            let mut state = places.lock();
            if Instant::now() >= ends {
                let function = self.place.function.as_ref();
                return Err(places.refusal(&state, Cause::Waited, function, self.place.lane));
            }
            places.admit(&mut state);
        }
    }

    /// Makes the place that it has got an entry.
    fn enter(mut self) -> Entry {
        self.place.has_entered = true;
        let function = self.place.function.clone();
        self.place.places.entry(function, self.place.lane, Instant::now())
    }
}

#[cfg(test)]
mod tests;
