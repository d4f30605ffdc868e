//! Sandboxes that are made before they are needed.
//!
//! 1. [`Sandboxes::prepare`] instantiates a version's code on its own account: the time of its start is no request's.
//! 2. A request takes it over: everything that belongs to a request is put in place anew, and its limits count from 0.
//! 3. One that may serve again goes back to whoever keeps it, if its guest left nothing of the request behind.

use std::{
    pin::pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use sandpiper_domain::{Fault, Grant};
use tokio::sync::OwnedSemaphorePermit;
use wasmtime::Store;
use wasmtime_wasi_http::p2::bindings::Proxy;

use crate::{
    code::FunctionCode,
    engine::Sandboxes,
    guest::{Report, Sandbox, fault_of, new_store},
    invoke::{Shared, within},
    log::{FunctionLog, InvocationLog},
    state::{State, Terms},
};

/// How long a guest's start may take beside a request's own limit.
const START_WALL_MS_MAX: u64 = 10_000;
/// What marks the log lines of a start, which belong to no request.
const START_REQUEST_ID: &str = "start";
/// Of the pool's slots, this part is never taken for what nobody has asked for yet.
const SPARED_SLOTS_DIVISOR: usize = 8;

/// A sandbox that waits for a request of its version.
pub struct ReadySandbox {
    store: Store<State>,
    proxy: Proxy,
    served: u32,
    started: Duration,
    took: Duration,
    /// Behind the store, which must be gone when another takes its place.
    slot: OwnedSemaphorePermit,
}

impl std::fmt::Debug for ReadySandbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReadySandbox").field("served", &self.served).finish_non_exhaustive()
    }
}

impl ReadySandbox {
    pub(crate) fn new(
        store: Store<State>,
        proxy: Proxy,
        slot: OwnedSemaphorePermit,
        served: u32,
    ) -> Self {
        let (started, took) = (Duration::ZERO, Duration::ZERO);
        ReadySandbox { store, proxy, served, started, took, slot }
    }

    /// Requests it has served.
    pub fn served(&self) -> u32 {
        self.served
    }

    /// The CPU time that its start took.
    pub fn start_cpu(&self) -> Duration {
        self.started
    }

    /// The time that its start took.
    pub fn start_wall(&self) -> Duration {
        self.took
    }

    /// The linear memory that it holds.
    pub fn memory_bytes(&self) -> u64 {
        self.store.data().limiter.memory_bytes()
    }

    /// Whether it was made under these terms: of this tenant, with these limits and this environment. The models that a
    /// grant may load are each request's own.
    pub fn fits(&self, grant: &Grant) -> bool {
        let own = &self.store.data().grant;
        own.models.tenant == grant.models.tenant
            && own.sandbox == grant.sandbox
            && (Arc::ptr_eq(&own.env, &grant.env) || own.env == grant.env)
    }

    /// Puts a request's terms in place of the last one's.
    pub(crate) fn begin<'a>(
        self,
        plane: &'a Sandboxes,
        terms: Terms,
        request_id: &Arc<str>,
        report: Report,
    ) -> (Sandbox<'a>, Proxy) {
        let ReadySandbox { mut store, proxy, served, slot, .. } = self;
        store.data_mut().begin(terms, report.shared(), request_id);
        // The one it had is long past.
        store.set_epoch_deadline(1);
        (Sandbox::of(plane, store, Some(slot), served, report), proxy)
    }
}

impl Sandboxes {
    /// Makes a sandbox that no request has asked for yet. It never waits for a slot, and leaves some to requests:
    /// `Saturated` where there are no more.
    pub async fn prepare(
        self: &Arc<Self>,
        code: &FunctionCode,
        grant: &Arc<Grant>,
        log: &Arc<FunctionLog>,
    ) -> Result<Box<ReadySandbox>, Fault> {
        let slot = self.spare_slot().ok_or(Fault::Saturated)?;
        let began = Instant::now();
        let shared = Arc::new(Shared::default());
        let limits = grant.sandbox;
        let wall_ms = limits.wall_ms.min(START_WALL_MS_MAX);
        let deadline = began + Duration::from_millis(wall_ms);
        let budget = limits.log_kib as usize * 1024;
        let log = Arc::new(InvocationLog::new(log.clone(), START_REQUEST_ID.into(), budget));
        let (share, activity) = (grant.tenant.share(), self.unmetered.clone());
        let (grant, payer) = (grant.clone(), self.unmetered.clone());
        let terms = Terms { grant, share, activity, payer, deadline };
        let state = State::new(terms, self.models.clone(), shared.clone(), log);
        // In a box: the future of an instantiation is large.
        let start = Box::pin(async {
            let _running = Running::new(self);
            let mut store = new_store(self, state);
            match code.pre.instantiate_async(&mut store).await {
                Ok(proxy) => Ok((store, proxy)),
                Err(error) => {
                    let trapped = Fault::Trap { cause: "it ended before it was asked anything" };
                    Err(fault_of(&error, store.data_mut(), &shared).unwrap_or(trapped))
                }
            }
        });
        let (mut store, proxy) = within(&shared, deadline, wall_ms, pin!(start)).await?;
        store.data_mut().rest();
        let (started, took) = (shared.cpu.used(), began.elapsed());
        Ok(Box::new(ReadySandbox { store, proxy, served: 0, started, took, slot }))
    }

    fn spare_slot(&self) -> Option<OwnedSemaphorePermit> {
        let spared = self.slots_max() / SPARED_SLOTS_DIVISOR;
        if self.is_wanted() || self.slots.available_permits() <= spared {
            return None;
        }
        self.slots.clone().try_acquire_owned().ok()
    }
}

/// A guest that runs without a request, counted for the ticker.
struct Running<'a>(&'a Sandboxes);

impl<'a> Running<'a> {
    fn new(plane: &'a Sandboxes) -> Self {
        plane.running.fetch_add(1, Relaxed);
        Running(plane)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Relaxed);
    }
}
