//! Threads that make a plan for input shapes that a model has not met, so that no compute thread does it, which could
//! not be stopped, while others wait. Tenants take turns on them.

use std::io;

use sandpiper_domain::{InferenceError, TenantName};
use tokio::sync::oneshot;

use crate::pool::{Owned, Pool};

/// Builds that may wait. Each is as long as the call that it is for.
const WAITING_MAX: usize = 1024;
/// The part of them that one tenant may have.
const SHARE: usize = 4;

/// Makes one plan.
pub(crate) type Work = Box<dyn FnOnce() + Send>;

struct Build {
    tenant: TenantName,
    work: Work,
    /// `None` where nobody waits for it.
    done: Option<oneshot::Sender<()>>,
}

impl Owned for Build {
    fn owner(&self) -> Option<&TenantName> {
        Some(&self.tenant)
    }
}

/// The threads. They end when this is dropped.
pub(crate) struct Builders(Pool<Build>);

impl Builders {
    pub(crate) fn start(threads: usize) -> io::Result<Self> {
        let run = |Build { work, done, .. }: Build| {
            // Nobody waits for the plan any more.
            if done.as_ref().is_some_and(oneshot::Sender::is_closed) {
                return None;
            }
            work();
            if let Some(done) = done {
                let _ = done.send(());
            }
            None
        };
        Ok(Builders(Pool::start("sandpiper-plan", threads, WAITING_MAX, WAITING_MAX / SHARE, run)?))
    }

    /// Does the work in the tenant's turn, and waits for it. What came of it shows when the plan is used.
    pub(crate) async fn run(&self, tenant: &TenantName, work: Work) -> Result<(), InferenceError> {
        let (done, is_done) = oneshot::channel();
        let build = Build { tenant: tenant.clone(), work, done: Some(done) };
        self.0.push(build).map_err(|_| InferenceError::Saturated)?;
        // Without an answer the work has panicked, and the run will say why it has no plan.
        let _ = is_done.await;
        Ok(())
    }

    /// Does the work when the tenant's turn comes. Nobody waits for it, so that it is left out where too much waits.
    pub(crate) fn offer(&self, tenant: &TenantName, work: Work) {
        drop(self.0.push(Build { tenant: tenant.clone(), work, done: None }));
    }
}
