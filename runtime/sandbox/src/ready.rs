//! Sandboxes that are made before they are needed.
//!
//! 1. [`Sandboxes::prepare`] instantiates a version's code on its own account: the time of its start is no request's.
//! 2. A request takes it over: everything that belongs to a request is put in place anew, and its limits count from 0.
//! 3. One that may serve again goes back to whoever keeps it, if its guest left nothing of the request behind.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use sandpiper_domain::{Fault, Grant, Usage};
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
        ReadySandbox { store, proxy, served, took: Duration::ZERO, slot }
    }

    /// Requests it has served.
    pub fn served(&self) -> u32 {
        self.served
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
    /// grant may load are each request's own: no start and no request leaves one behind.
    pub fn fits(&self, grant: &Grant) -> bool {
        is_fit(&self.store.data().grant, grant)
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

fn is_fit(own: &Grant, grant: &Grant) -> bool {
    own.models.tenant == grant.models.tenant
        && own.sandbox == grant.sandbox
        && (Arc::ptr_eq(&own.env, &grant.env) || own.env == grant.env)
}

/// What became of a start, and what it has cost, however it ended.
#[derive(Debug)]
pub struct Started {
    /// The sandbox, or why there is none.
    pub sandbox: Result<Box<ReadySandbox>, Fault>,
    /// What the start took; nothing where it did not begin.
    pub usage: Usage,
}

impl Sandboxes {
    /// Makes a sandbox that no request has asked for yet. It never waits for a slot, and leaves some to requests:
    /// `Saturated` where there are no more. Why a start failed is told in the function's log.
    pub async fn prepare(
        self: &Arc<Self>,
        code: &FunctionCode,
        grant: &Arc<Grant>,
        log: &Arc<FunctionLog>,
    ) -> Started {
        let Some(slot) = self.spare_slot() else {
            return Started { sandbox: Err(Fault::Saturated), usage: Usage::default() };
        };
        let began = Instant::now();
        let shared = Arc::new(Shared::default());
        let wall_ms = grant.sandbox.wall_ms.min(START_WALL_MS_MAX);
        let deadline = began + Duration::from_millis(wall_ms);
        let mut store = new_store(self, self.state_of_start(grant, log, &shared, deadline));
        // In a box: the future of an instantiation is large.
        let mut start = Box::pin(async {
            let _running = Running::new(self);
            let made = code.pre.instantiate_async(&mut store).await;
            // The poll that ends it is charged nowhere else.
            Ok((made, shared.cpu.used()))
        });
        let ended = within(&shared, deadline, wall_ms, start.as_mut()).await;
        drop(start);
        let (made, cpu) = match ended {
            Ok((Ok(proxy), cpu)) => (Ok(proxy), cpu),
            Ok((Err(error), cpu)) => {
                let trapped = Fault::Trap { cause: "it ended before it was asked anything" };
                (Err(fault_of(&error, store.data_mut(), &shared).unwrap_or(trapped)), cpu)
            }
            Err(fault) => (Err(fault), shared.cpu.used()),
        };
        store.data_mut().rest();
        let made = match made {
            Ok(_) if store.data_mut().holds_model() => Err(Fault::KeptModel),
            made => made,
        };
        let took = began.elapsed();
        let usage = Usage { cpu, lifetime: took, ..store.data_mut().settle() };
        if let Err(fault) = &made {
            log.note(START_REQUEST_ID, format!("no sandbox was made ready: {fault}"));
        }
        let ready = |proxy| Box::new(ReadySandbox { store, proxy, served: 0, took, slot });
        Started { sandbox: made.map(ready), usage }
    }

    /// What the store of a start holds: the terms of a request that is none.
    fn state_of_start(
        &self,
        grant: &Arc<Grant>,
        log: &Arc<FunctionLog>,
        shared: &Arc<Shared>,
        deadline: Instant,
    ) -> State {
        let budget = grant.sandbox.log_kib as usize * 1024;
        let log = Arc::new(InvocationLog::new(log.clone(), START_REQUEST_ID.into(), budget));
        let (share, activity) = (grant.tenant.share(), self.unmetered.clone());
        let (grant, payer) = (grant.clone(), self.unmetered.clone());
        let terms = Terms { grant, share, activity, payer, deadline };
        State::new(terms, self.models.clone(), shared.clone(), log)
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use sandpiper_domain::{Band, Budget, ModelScope, SandboxLimits, TenantLimits};

    use super::*;

    fn grant(tenant: &str, memory_mib: u64, env: &[(&str, &str)]) -> Grant {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Grant {
            sandbox: SandboxLimits {
                memory_mib,
                cpu_ms: 1,
                wall_ms: 1,
                tensor_mib: 1,
                request_body_mib: 1,
                log_kib: 1,
            },
            tenant: TenantLimits {
                concurrency: 1,
                sandboxes: 1,
                jobs: 1,
                batch_mib: 1,
                budget: Budget::default(),
                queue: 1,
                rate: None,
                functions: 1,
                models: 1,
                versions: 1,
                component_mib: 1,
                model_mib: 1,
                pinned_mib: 1,
                weight: 1,
                band: Band::Normal,
            },
            models: Arc::new(ModelScope {
                tenant: tenant.parse().unwrap(),
                bindings: None,
                pins: Arc::default(),
            }),
            env: Arc::new(env.iter().map(own).collect()),
        }
    }

    #[test]
    fn a_sandbox_fits_its_own_tenant_limits_and_environment_alone() {
        let own = grant("acme", 64, &[("A", "1")]);
        assert!(is_fit(&own, &own.clone()));
        assert!(is_fit(&own, &grant("acme", 64, &[("A", "1")])));
        assert!(!is_fit(&own, &grant("beta", 64, &[("A", "1")])));
        assert!(!is_fit(&own, &grant("acme", 65, &[("A", "1")])));
        assert!(!is_fit(&own, &grant("acme", 64, &[("A", "2")])));
        assert!(!is_fit(&own, &grant("acme", 64, &[])));
        // The models come with each request, whichever it may open.
        let pins = Arc::new(BTreeMap::from([("digits".to_owned(), 2)]));
        let models = ModelScope { pins, ..(*own.models).clone() };
        assert!(is_fit(&own, &Grant { models: Arc::new(models), ..own.clone() }));
    }
}
