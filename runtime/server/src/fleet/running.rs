//! A request's sandbox at work.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
    time::Instant,
};

use sandpiper_domain::{Activity, BoxFuture, Grant, Mode};
use sandpiper_sandbox::ReadySandbox;

use super::{Live, Parked, next_id};
use crate::functions::FunctionRuntime;

pub(super) struct Waiting<'a>(pub(super) &'a AtomicU32);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// A request's sandbox at work. The last one to let go of it ends it, if nobody has said before how it ended.
pub(crate) struct Running {
    runtime: Arc<FunctionRuntime>,
    id: u64,
    is_over: AtomicBool,
    /// Who else hears when it waits.
    activity: Arc<dyn Activity>,
}

impl Running {
    /// One more is at work from `now` on, which is just past: in a sandbox that was ready, or in none yet.
    pub(crate) fn begin(
        runtime: &Arc<FunctionRuntime>,
        grant: &Grant,
        activity: Arc<dyn Activity>,
        now: Instant,
    ) -> (Arc<Self>, Option<Box<ReadySandbox>>) {
        let fleet = &runtime.fleet;
        let mut misfits = Vec::new();
        let mut state = fleet.state();
        state.advance(now);
        state.arrivals += 1;
        let parked = loop {
            match state.unpark_last(now) {
                Some(parked) if !parked.sandbox.fits(grant) => misfits.push(parked),
                parked => break parked,
            }
        };
        let (id, made) = parked.as_ref().map_or_else(|| (next_id(), now), |p| (p.id, p.made));
        let served = parked.as_ref().map_or(0, |parked| parked.sandbox.served());
        state.live.insert(id, Live { made, served, is_suspended: false });
        let is_new = !std::mem::replace(&mut state.is_watched, true);
        let is_missing = fleet.mode != Mode::Fresh && fleet.missing(&state) > 0;
        drop(state);
        if is_new {
            runtime.scaling.add(runtime.clone());
        }
        let taken = misfits.len() + usize::from(parked.is_some());
        runtime.scaling.released(&runtime.tenant, taken);
        if is_missing {
            runtime.scaling.refill(runtime);
        }
        fleet.tell(id, "running", None);
        let runtime = runtime.clone();
        let running = Running { runtime, id, is_over: AtomicBool::new(false), activity };
        (Arc::new(running), parked.map(|parked| parked.sandbox))
    }

    /// Takes the sandbox back if it may serve again.
    pub(crate) fn keep(&self, sandbox: Box<ReadySandbox>) {
        let fleet = &self.runtime.fleet;
        if sandbox.served() >= fleet.scale.reuse {
            drop(sandbox);
            return self.end("served_out", Instant::now());
        }
        if !self.runtime.scaling.reserve(&self.runtime.tenant) {
            drop(sandbox);
            return self.end("reclaimed", Instant::now());
        }
        let mut state = fleet.state();
        let now = Instant::now();
        let live = if state.is_retired { None } else { state.leave(self.id, now) };
        let Some(live) = live else {
            drop(state);
            drop(sandbox);
            self.runtime.scaling.released(&self.runtime.tenant, 1);
            return self.end("drained", now);
        };
        state.park(Parked { id: self.id, made: live.made, since: now, sandbox }, now);
        drop(state);
        self.is_over.store(true, Relaxed);
        fleet.tell(self.id, "ready", None);
    }

    /// It is at work no longer. Only the first call counts.
    pub(crate) fn end(&self, reason: &'static str, now: Instant) {
        if self.is_over.swap(true, Relaxed) {
            return;
        }
        let fleet = &self.runtime.fleet;
        fleet.state().leave(self.id, now);
        fleet.tell(self.id, "ended", Some(reason));
    }

    pub(crate) fn runtime(&self) -> &FunctionRuntime {
        &self.runtime
    }

    fn set_suspended(&self, is_suspended: bool) {
        let fleet = &self.runtime.fleet;
        let mut state = fleet.state();
        state.advance(Instant::now());
        let Some(live) = state.live.get_mut(&self.id) else { return };
        if std::mem::replace(&mut live.is_suspended, is_suspended) == is_suspended {
            return;
        }
        match is_suspended {
            true => state.suspended += 1,
            false => state.suspended -= 1,
        }
        drop(state);
        fleet.tell(self.id, if is_suspended { "suspended" } else { "resumed" }, None);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end("cancelled", Instant::now());
    }
}

impl Activity for Running {
    fn suspend(&self) {
        self.activity.suspend();
        self.set_suspended(true);
    }

    fn try_resume(&self) -> bool {
        let may_run = self.activity.try_resume();
        if may_run {
            self.set_suspended(false);
        }
        may_run
    }

    fn resume(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            self.activity.resume().await;
            self.set_suspended(false);
        })
    }
}
