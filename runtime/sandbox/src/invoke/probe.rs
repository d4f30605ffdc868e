//! What a sandbox costs besides its guest's own work, for the benchmark.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use sandpiper_domain::{Fault, Grant, Unmetered, Usage};

use super::{Observer, Outcome, Report, Sandbox, Shared};
use crate::{
    code::FunctionCode,
    engine::Sandboxes,
    log::{FunctionLog, InvocationLog},
    state::{State, Terms},
};

struct Unheard;

impl Observer for Unheard {
    fn ended(self: Box<Self>, _outcome: Outcome, _usage: Usage) {}
}

impl Sandboxes {
    /// Makes a sandbox just as a request would, drops it unused, and tells how long both took together.
    #[doc(hidden)]
    pub async fn probe_instantiation(
        &self,
        code: &FunctionCode,
        grant: &Arc<Grant>,
        log: &Arc<FunctionLog>,
        request_id: &Arc<str>,
    ) -> Result<Duration, Fault> {
        let began = Instant::now();
        let shared = Arc::new(Shared::default());
        let log_bytes = grant.sandbox.log_kib as usize * 1024;
        let log = Arc::new(InvocationLog::new(log.clone(), request_id.clone(), log_bytes));
        let deadline = began + Duration::from_millis(grant.sandbox.wall_ms);
        let (share, activity) = (grant.tenant.share(), Arc::new(Unmetered));
        let (grant, payer) = (grant.clone(), activity.clone());
        let terms = Terms { grant, share, activity, payer, deadline };
        let state = State::new(terms, self.models.clone(), shared.clone(), log);
        let report = Report::new(Box::new(Unheard), shared);
        let mut sandbox = Sandbox::new(self, state, None, report);
        let Some(store) = sandbox.store() else { return Err(Fault::Saturated) };
        let made = code.pre.instantiate_async(store).await.is_ok();
        drop(sandbox);
        if made { Ok(began.elapsed()) } else { Err(Fault::Saturated) }
    }
}
