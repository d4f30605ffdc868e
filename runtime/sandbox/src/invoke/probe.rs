//! What a sandbox costs besides its guest's own work, for the benchmark.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use sandpiper_domain::{Fault, Grant, Usage};

use super::{Observer, Outcome, Sandbox};
use crate::{
    code::FunctionCode,
    cpu::CpuMeter,
    engine::Sandboxes,
    log::{FunctionLog, InvocationLog},
    state::State,
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
        let cpu = Arc::new(CpuMeter::default());
        let log_bytes = grant.sandbox.log_kib as usize * 1024;
        let log = Arc::new(InvocationLog::new(log.clone(), request_id.clone(), log_bytes));
        let deadline = began + Duration::from_millis(grant.sandbox.wall_ms);
        let state = State::new(grant.clone(), self.models.clone(), cpu.clone(), log, deadline);
        let mut sandbox = Sandbox::new(self, state, Box::new(Unheard), cpu, Arc::default());
        let made = match &mut sandbox.store {
            Some(store) => code.pre.instantiate_async(store).await.map(drop),
            None => Ok(()),
        };
        sandbox.finish(made)?;
        Ok(began.elapsed())
    }
}
