//! The sandboxes of one function version on this node: those that are ready, those at work, and what they have done.
//!
//! 1. A request takes the sandbox that was used last, if one is ready, and is at work from then on; see [`Running`].
//! 2. A sandbox that may serve again comes back; all others end with their request.
//! 3. The scale loop reads what happened since it last looked, and says how many are wanted.
//!
//! No sandbox is dropped under the lock: that takes the kernel's time.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use sandpiper_control::{Autoscaler, Decision, Observation};
use sandpiper_domain::{Fault, Mode, Scale};
use sandpiper_sandbox::ReadySandbox;

mod events;
mod running;
mod shown;

pub(crate) use events::{Events, Told};
pub(crate) use running::Running;
use running::Waiting;
pub(crate) use shown::{Count, Glance, Instance};

use crate::admission::{Held, Meter};

/// How long a sandbox that came back waits for more work beyond what is wanted.
const RETURNED_IDLE: Duration = Duration::from_secs(1);
/// Sandboxes dropped at once.
const DROPPED_MAX: usize = 32;
/// Starts that may fail before every sandbox is made for its request again, which then tells why.
const FAILURES_MAX: u32 = 3;

/// The sandboxes of one version.
pub(crate) struct Fleet {
    version: u32,
    pub(crate) scale: Scale,
    pub(crate) mode: Mode,
    state: Mutex<State>,
    /// Requests in front of the gates.
    waiting: AtomicU32,
    failures: AtomicU32,
    events: Arc<Events>,
    meter: Arc<Meter>,
}

struct State {
    /// Oldest use first. They come and go by [`State::park`] and [`State::unpark`].
    ready: Vec<Parked>,
    /// What they hold, to be billed.
    held: Held,
    preparing: u32,
    live: BTreeMap<u64, Live>,
    suspended: u32,
    arrivals: u64,
    completed: u64,
    in_guest: Duration,
    in_model: Duration,
    /// Up to when the two sums above count.
    counted_to: Instant,
    decision: Decision,
    start: Duration,
    /// Why the last start failed, until one succeeds.
    start_fault: Option<Fault>,
    is_watched: bool,
    is_queued: bool,
    /// Nothing is kept any more: the version is gone or the node ends.
    is_retired: bool,
    autoscaler: Option<Box<Autoscaler>>,
}

struct Parked {
    id: u64,
    made: Instant,
    since: Instant,
    sandbox: Box<ReadySandbox>,
}

struct Live {
    made: Instant,
    served: u32,
    is_suspended: bool,
}

/// Numbers of sandboxes are unique on a node as long as it runs.
fn next_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Relaxed)
}

impl State {
    /// Adds up the time of those at work; called before their number changes.
    fn advance(&mut self, now: Instant) {
        let span = now.saturating_duration_since(self.counted_to);
        self.counted_to = self.counted_to.max(now);
        let suspended = self.suspended;
        let running = (self.live.len() as u32).saturating_sub(suspended);
        self.in_guest += span.saturating_mul(running);
        self.in_model += span.saturating_mul(suspended);
        self.held.advance(span);
    }

    fn park(&mut self, parked: Parked, now: Instant) {
        self.advance(now);
        self.held.add(parked.sandbox.memory_bytes());
        self.ready.push(parked);
    }

    /// Takes those out that were used longest ago.
    fn unpark(&mut self, count: usize, now: Instant) -> Vec<Parked> {
        self.advance(now);
        let taken: Vec<Parked> = self.ready.drain(..count).collect();
        for parked in &taken {
            self.held.remove(parked.sandbox.memory_bytes());
        }
        taken
    }

    /// Takes the one out that was used last.
    fn unpark_last(&mut self, now: Instant) -> Option<Parked> {
        self.advance(now);
        let parked = self.ready.pop()?;
        self.held.remove(parked.sandbox.memory_bytes());
        Some(parked)
    }

    fn leave(&mut self, id: u64, now: Instant) -> Option<Live> {
        self.advance(now);
        let live = self.live.remove(&id)?;
        self.suspended -= u32::from(live.is_suspended);
        self.completed += 1;
        Some(live)
    }
}

impl Fleet {
    pub(crate) fn new(version: u32, scale: Scale, events: Arc<Events>, meter: Arc<Meter>) -> Self {
        let state = State {
            ready: Vec::new(),
            held: Held::default(),
            preparing: 0,
            live: BTreeMap::new(),
            suspended: 0,
            arrivals: 0,
            completed: 0,
            in_guest: Duration::ZERO,
            in_model: Duration::ZERO,
            counted_to: Instant::now(),
            decision: Decision { ready: 0, keep_code: true, panicking: false },
            start: Duration::ZERO,
            start_fault: None,
            is_watched: false,
            is_queued: false,
            is_retired: false,
            autoscaler: None,
        };
        Fleet {
            version,
            scale,
            mode: scale.mode(),
            state: Mutex::new(state),
            waiting: AtomicU32::new(0),
            failures: AtomicU32::new(0),
            events,
            meter,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, id: u64, change: &'static str, reason: Option<&'static str>) {
        let version = self.version;
        self.events.tell(|| Told::Instance { id, version, change, reason });
    }

    /// Counts one who waits, until the guard goes.
    pub(crate) fn wait(&self) -> impl Drop + use<'_> {
        self.waiting.fetch_add(1, Relaxed);
        Waiting(&self.waiting)
    }

    /// Has the scale loop look at this version from now on; `true` when it did not before.
    pub(crate) fn watch(&self) -> bool {
        !std::mem::replace(&mut self.state().is_watched, true)
    }

    /// Ends that where there is nothing left to look at. `has_code` is asked last.
    pub(crate) fn unwatch(&self, has_code: impl FnOnce() -> bool) -> bool {
        let mut state = self.state();
        let is_empty = state.ready.is_empty() && state.preparing == 0 && state.live.is_empty();
        let is_quiet = is_empty && state.arrivals == 0 && !state.is_queued;
        if !is_quiet || (state.decision.ready > 0 && !state.is_retired) || has_code() {
            return false;
        }
        state.is_watched = false;
        state.autoscaler = None;
        self.failures.store(0, Relaxed);
        true
    }

    /// Bills what was kept ready up to now.
    pub(crate) fn bill(&self) {
        let mut state = self.state();
        state.advance(Instant::now());
        self.meter.kept(&mut state.held);
    }

    /// Reads what happened since the last time, bills what was kept, and decides what should be.
    pub(crate) fn decide(
        &self,
        at: Duration,
        scaler: impl FnOnce() -> Autoscaler,
        min: u32,
    ) -> Glance {
        let mut state = self.state();
        state.advance(Instant::now());
        self.meter.kept(&mut state.held);
        let seen = Observation {
            at,
            arrivals: std::mem::take(&mut state.arrivals),
            completed: std::mem::take(&mut state.completed),
            in_guest: std::mem::take(&mut state.in_guest),
            suspended: std::mem::take(&mut state.in_model),
            running: state.live.len() as u32,
            waiting: self.waiting.load(Relaxed),
            ready: state.ready.len() as u32,
        };
        let terms = sandpiper_control::Terms {
            min,
            max: self.scale.max,
            concurrency: self.scale.concurrency,
            mode: self.mode,
            start: state.start,
        };
        let autoscaler = state.autoscaler.get_or_insert_with(|| Box::new(scaler()));
        let mut decision = autoscaler.decide(&seen, &terms);
        if state.is_retired || self.failures.load(Relaxed) >= FAILURES_MAX {
            decision.ready = 0;
        }
        let before = std::mem::replace(&mut state.decision, decision);
        let is_idle = seen.running == 0 && seen.ready == 0 && state.preparing == 0;
        let ready = seen.ready;
        drop(state);
        if (before.ready, before.panicking) != (decision.ready, decision.panicking) {
            let (version, Decision { ready: wanted, panicking, .. }) = (self.version, decision);
            self.events.tell(|| Told::Scale { version, wanted, ready, panicking });
        }
        let has_moved = seen.arrivals > 0 || seen.running > 0 || ready != decision.ready;
        Glance { has_moved, drop_code: is_idle && !decision.keep_code }
    }

    /// Marks the version as queued where some are to be made; tells how many, or 0 when it is queued already.
    pub(crate) fn queue(&self) -> u32 {
        let mut state = self.state();
        let missing = self.missing(&state);
        if missing == 0 || std::mem::replace(&mut state.is_queued, true) {
            return 0;
        }
        missing
    }

    fn missing(&self, state: &State) -> u32 {
        let (ready, live) = (state.ready.len() as u32 + state.preparing, state.live.len() as u32);
        let counted = if self.mode == Mode::Reused { ready + live } else { ready };
        let room = self.scale.max.saturating_sub(ready + live);
        if state.is_retired { 0 } else { state.decision.ready.saturating_sub(counted).min(room) }
    }

    /// Begins to make one, unless there are enough by now.
    pub(crate) fn begin_start(&self) -> bool {
        let mut state = self.state();
        let is_missing = self.missing(&state) > 0;
        state.preparing += u32::from(is_missing);
        state.is_queued = is_missing;
        is_missing
    }

    /// Takes a sandbox that was made, or hears that there is none; gives it back where it is not wanted any more.
    pub(crate) fn end_start(&self, made: Option<Box<ReadySandbox>>) -> Option<Box<ReadySandbox>> {
        let mut state = self.state();
        state.preparing -= 1;
        let sandbox = made?;
        self.failures.store(0, Relaxed);
        state.start_fault = None;
        state.start = sandbox.start_wall();
        if state.is_retired {
            return Some(sandbox);
        }
        let (id, now) = (next_id(), Instant::now());
        state.park(Parked { id, made: now, since: now, sandbox }, now);
        drop(state);
        self.tell(id, "ready", None);
        None
    }

    /// A version that is queued is so no longer.
    pub(crate) fn unqueue(&self) {
        self.state().is_queued = false;
    }

    /// Hears why a start failed; `true` when it was one too many.
    pub(crate) fn start_failed(&self, fault: Fault) -> bool {
        self.state().start_fault = Some(fault);
        self.events.tell(|| Told::StartFailed { version: self.version, fault });
        self.failures.fetch_add(1, Relaxed) + 1 == FAILURES_MAX
    }

    /// Takes those out that are not wanted, oldest first and some at a time.
    #[allow(clippy::vec_box, reason = "they come and go in boxes")]
    pub(crate) fn take_idle(&self) -> Vec<Box<ReadySandbox>> {
        let mut state = self.state();
        let (ready, live) = (state.ready.len(), state.live.len());
        let wanted = state.decision.ready as usize;
        let count = match self.mode {
            _ if state.is_retired => ready,
            Mode::Reused => {
                let old = state.ready.iter().filter(|one| one.since.elapsed() >= RETURNED_IDLE);
                (ready + live).saturating_sub(wanted).min(old.count())
            }
            Mode::Fresh | Mode::Prepared => ready.saturating_sub(wanted),
        };
        let reason = if state.is_retired { "drained" } else { "idle" };
        let taken = state.unpark(count.min(DROPPED_MAX), Instant::now());
        drop(state);
        let end = |parked: Parked| {
            self.tell(parked.id, "ended", Some(reason));
            parked.sandbox
        };
        taken.into_iter().map(end).collect()
    }

    /// Gives one up to somebody who needs its slot; of those that are to be kept, only where `even_kept`.
    pub(crate) fn reclaim(&self, even_kept: bool) -> Option<Box<ReadySandbox>> {
        let mut state = self.state();
        if state.ready.is_empty() || (!even_kept && state.ready.len() <= self.scale.min as usize) {
            return None;
        }
        let parked = state.unpark(1, Instant::now()).pop()?;
        drop(state);
        self.tell(parked.id, "ended", Some("reclaimed"));
        Some(parked.sandbox)
    }

    /// Keeps nothing any more, or may keep some again; [`Self::take_idle`] gives what there is.
    pub(crate) fn retire(&self, is_retired: bool) {
        self.state().is_retired = is_retired;
    }

    /// The numbers now.
    pub(crate) fn count(&self) -> Count {
        let state = self.state();
        Count {
            wanted: state.decision.ready,
            ready: state.ready.len() as u32,
            running: state.live.len() as u32 - state.suspended,
            suspended: state.suspended,
            waiting: self.waiting.load(Relaxed),
            start_fault: state.start_fault,
        }
    }

    /// The sandboxes now, at most so many.
    pub(crate) fn instances(&self, max: usize) -> Vec<Instance> {
        let state = self.state();
        let ready = state.ready.iter().map(|parked| Instance {
            id: parked.id,
            state: "ready",
            age: parked.made.elapsed(),
            served: parked.sandbox.served(),
            memory_bytes: Some(parked.sandbox.memory_bytes()),
        });
        let live = state.live.iter().map(|(id, live)| Instance {
            id: *id,
            state: if live.is_suspended { "suspended" } else { "running" },
            age: live.made.elapsed(),
            served: live.served,
            memory_bytes: None,
        });
        live.chain(ready).take(max).collect()
    }
}
