//! What ends with a node, and in which order.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures::future::{BoxFuture, FutureExt};

use crate::app::App;

/// How often the end looks whether guests are still at work.
const GUESTS_PAUSE: Duration = Duration::from_millis(10);
/// How long closing one store may take.
const RELEASE_MAX: Duration = Duration::from_secs(10);

/// Something that ends in good order, and its name in the log.
struct Step {
    what: &'static str,
    work: BoxFuture<'static, ()>,
}

impl Step {
    fn new(what: &'static str, work: impl Future<Output = ()> + Send + 'static) -> Self {
        Step { what, work: work.boxed() }
    }

    async fn within(self, limit: Duration) {
        let what = self.what;
        match tokio::time::timeout(limit, self.work).await {
            Ok(()) => tracing::info!(what, "ended"),
            Err(_) => tracing::warn!(what, "still running at the end of the drain"),
        }
    }
}

/// Ends what the node does; what is not done within `limit` is left where it is. `requests` resolves when the last one
/// has ended.
pub(crate) async fn stop(
    app: &Arc<App>,
    requests: impl Future<Output = ()> + Send + 'static,
    limit: Duration,
) {
    let began = Instant::now();
    Step::new("requests", requests).within(limit).await;
    // A guest may work on when its answer is out, and is billed when it has ended: before the last of the usage is
    // written. Those of jobs end with what waits for them.
    jobs(app).within(RELEASE_MAX).await;
    app.scaling.retire();
    let guests = Step::new("guests", guests(app.clone()));
    guests.within(limit.saturating_sub(began.elapsed())).await;
    release(app).await;
}

/// Resolves when no guest is at work any more. Those that are ready have been let go of.
async fn guests(app: Arc<App>) {
    while app.sandboxes.alive() > 0 {
        tokio::time::sleep(GUESTS_PAUSE).await;
    }
}

/// Gives up what one process alone may hold, so that another can take it. Functions are served on from memory.
pub(crate) async fn release(app: &Arc<App>) {
    for step in holdings(app) {
        step.within(RELEASE_MAX).await;
    }
}

/// What is released, in this order: what writes comes before what it writes to.
fn holdings(app: &Arc<App>) -> Vec<Step> {
    let catalog = app.clone();
    let catalog = async move {
        let _ = catalog.blocking(|app| app.catalog.close()).await;
    };
    let usage = app.clone();
    let usage = async move {
        let flush = |app: &App| app.usage.flush(time::OffsetDateTime::now_utc());
        match usage.blocking(flush).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(?error, "the last usage could not be written"),
            Err(error) => tracing::error!(?error, "the last usage could not be written"),
        }
    };
    vec![jobs(app), Step::new("usage", usage), Step::new("catalog", catalog)]
}

fn jobs(app: &Arc<App>) -> Step {
    let app = app.clone();
    Step::new("jobs", async move { app.jobs.stop().await })
}

/// Takes back what was released, in the opposite order.
pub(crate) async fn reclaim(app: &Arc<App>) -> anyhow::Result<()> {
    app.blocking(|app| app.catalog.reopen()).await??;
    app.jobs.resume();
    Ok(())
}
