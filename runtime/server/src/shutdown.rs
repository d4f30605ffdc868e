//! What ends with a node, and in which order.

use std::{sync::Arc, time::Duration};

use futures::future::{BoxFuture, FutureExt, join_all};

use crate::app::App;

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
    // These go on beside each other: none waits for another.
    let work = [Step::new("requests", requests)];
    join_all(work.map(|step| step.within(limit))).await;
    release(app).await;
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
    let jobs = app.clone();
    let jobs = async move { jobs.jobs.stop().await };
    let usage = app.clone();
    let usage = async move {
        let flush = |app: &App| app.usage.flush(time::OffsetDateTime::now_utc());
        match usage.blocking(flush).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(?error, "the last usage could not be written"),
            Err(error) => tracing::error!(?error, "the last usage could not be written"),
        }
    };
    vec![Step::new("jobs", jobs), Step::new("usage", usage), Step::new("catalog", catalog)]
}

/// Takes back what was released, in the opposite order.
pub(crate) async fn reclaim(app: &Arc<App>) -> anyhow::Result<()> {
    app.blocking(|app| app.catalog.reopen()).await??;
    app.jobs.resume();
    Ok(())
}
