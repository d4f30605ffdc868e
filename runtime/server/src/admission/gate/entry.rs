//! A place that somebody has: given up while its guest waits for a model, and given back in the end.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Instant,
};

use sandpiper_domain::{Activity, BoxFuture, Lane};
use tokio::sync::oneshot;

use super::{FunctionPlaces, Places, Resumer, SERVICE_MEMORY, State};

/// A place among those alive, and most of the time among those that run. Dropping it lets the next one in.
pub(crate) struct Entry {
    pub(super) places: Arc<Places>,
    pub(super) function: Option<Arc<FunctionPlaces>>,
    pub(super) lane: Lane,
    /// Changed under the lock alone.
    pub(super) runs: AtomicBool,
    pub(super) began: Instant,
}

impl Entry {
    /// When it came in.
    pub(crate) fn began(&self) -> Instant {
        self.began
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let took = self.began.elapsed().as_nanos().min(u128::from(u64::MAX)) as u64;
        let mut state = self.places.lock();
        let mean = state.service_ns;
        state.service_ns = match mean {
            0 => took,
            _ => mean - mean / SERVICE_MEMORY + took / SERVICE_MEMORY,
        };
        let runs = self.runs.load(Relaxed);
        self.places.leave(&mut state, self.function.as_deref(), self.lane, runs);
    }
}

impl Activity for Entry {
    fn suspend(&self) {
        let mut state = self.places.lock();
        if self.runs.swap(false, Relaxed) {
            self.places.stop(&mut state, self.lane);
            self.places.admit(&mut state);
        }
    }

    fn try_resume(&self) -> bool {
        self.try_resume_in(&mut self.places.lock())
    }

    fn resume(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let (mut wait, woken) = {
                let mut state = self.places.lock();
                if self.try_resume_in(&mut state) {
                    return;
                }
                let number = state.draw();
                let (wake, woken) = oneshot::channel();
                state.resuming.insert(number, Resumer { wake, lane: self.lane });
                (Resumption { entry: self, number, is_over: false }, woken)
            };
            let _ = woken.await;
            wait.is_over = true;
            self.runs.store(true, Relaxed);
        })
    }
}

impl Entry {
    fn try_resume_in(&self, state: &mut State) -> bool {
        if self.runs.load(Relaxed) {
            return true;
        }
        let may = state.resuming.is_empty() && state.runs() < self.places.bounds.running;
        if may {
            self.places.run(state, self.lane);
            self.runs.store(true, Relaxed);
        }
        may
    }
}

/// A place in front of the lanes. If it has got what it waited for and nobody is there to use it, it gives it back.
struct Resumption<'a> {
    entry: &'a Entry,
    number: u64,
    is_over: bool,
}

impl Drop for Resumption<'_> {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        let places = &self.entry.places;
        let mut state = places.lock();
        if state.resuming.remove(&self.number).is_none() {
            places.stop(&mut state, self.entry.lane);
        }
        places.admit(&mut state);
    }
}
