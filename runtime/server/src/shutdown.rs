//! What ends with a node, and in which order.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures::future::{BoxFuture, FutureExt, join_all};

use crate::app::App;

/// How often the end looks whether guests are still at work.
const GUESTS_PAUSE: Duration = Duration::from_millis(10);
/// How long closing one store may take.
const RELEASE_MAX: Duration = Duration::from_secs(10);
/// For so long, and so often, it is tried to take the data folder back.
const RECLAIM_MAX: Duration = Duration::from_secs(10);
const RECLAIM_PAUSE: Duration = Duration::from_millis(100);

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

/// Ends what the node does; what is not done within `limit` is left where it is, and jobs go back to the queue.
/// `requests` resolves when the last one has ended.
pub(crate) async fn stop(
    app: &Arc<App>,
    requests: impl Future<Output = ()> + Send + 'static,
    limit: Duration,
) {
    let began = Instant::now();
    let jobs = app.clone();
    let jobs = async move {
        jobs.jobs.stop().await;
        jobs.jobs.idle().await;
    };
    // These go on beside each other: none waits for another.
    let work = [Step::new("requests", requests), Step::new("jobs", jobs)];
    join_all(work.map(|step| step.within(limit))).await;
    let jobs = app.clone();
    Step::new("jobs left", async move { jobs.jobs.give_back().await }).within(RELEASE_MAX).await;
    // A guest may work on when its answer is out, and is billed when it has ended: before the last of the usage is
    // written.
    app.scaling.retire();
    let guests = Step::new("guests", guests(app.clone()));
    guests.within(limit.saturating_sub(began.elapsed())).await;
    settle(app).await;
    release(app).await;
}

/// Resolves when no guest is at work any more. Those that are ready have been let go of.
async fn guests(app: Arc<App>) {
    while app.sandboxes.alive() > 0 {
        tokio::time::sleep(GUESTS_PAUSE).await;
    }
}

/// Begins no more jobs, and calls no more webhooks: the process that is about to take over will. What runs goes on.
pub(crate) async fn pause(app: &Arc<App>) {
    app.jobs.stop().await;
    settle(app).await;
}

/// A webhook that is called right now would be called again by whoever comes next.
async fn settle(app: &Arc<App>) {
    let app = app.clone();
    Step::new("webhooks", async move { app.jobs.settle().await }).within(RELEASE_MAX).await;
}

/// Gives up what one process alone may hold, so that another can take it. Functions are served on from memory, and jobs
/// that have begun are ended here. What was given up before stays so.
pub(crate) async fn release(app: &Arc<App>) {
    for step in holdings(app) {
        step.within(RELEASE_MAX).await;
    }
}

/// What is released, in this order: what writes comes before what it writes to.
fn holdings(app: &Arc<App>) -> [Step; 2] {
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
    [Step::new("usage", usage), Step::new("catalog", catalog)]
}

/// Takes back what was released, and goes on. Fails when that was tried for some seconds in vain: the folder may be
/// another's by now.
pub(crate) async fn reclaim(app: &Arc<App>) -> anyhow::Result<()> {
    let began = tokio::time::Instant::now();
    while app.catalog.is_closed() {
        let reopened = match app.blocking(|app| app.catalog.reopen()).await {
            Ok(reopened) => reopened.map_err(anyhow::Error::from),
            Err(error) => Err(error),
        };
        match reopened {
            Ok(()) => break,
            Err(error) if began.elapsed() >= RECLAIM_MAX => return Err(error),
            Err(error) => tracing::warn!(%error, "the data folder cannot be taken back yet"),
        }
        tokio::time::sleep(RECLAIM_PAUSE).await;
    }
    app.jobs.resume();
    Ok(())
}
