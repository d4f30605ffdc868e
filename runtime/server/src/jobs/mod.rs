//! Jobs: requests that are [`accept`]ed now and run later by a [`worker`], and whose callers come back for the result
//! or are told by a [`webhook`].

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use dashmap::DashMap;
use http::StatusCode;
use metrics::{counter, gauge, histogram};
use sandpiper_control::{CommitObserver, DataFolder, OpenError, SqliteJobs};
use sandpiper_domain::{JobError, JobId, Lane, TenantName};
use tokio::sync::{Notify, Semaphore};

mod accept;
mod call;
mod options;
mod retry;
mod room;
mod webhook;
mod worker;

pub(crate) use accept::{Accepted, accept, prefers_async};
pub(crate) use call::Call;
pub(crate) use room::bytes_max;
use room::{Bodies, Pauses};
pub(crate) use webhook::Secrets;
pub(crate) use worker::{Attempt, insist};

use crate::{app::App, batches, config::FileSettings, respond::Problem};

/// How often is looked for what has had its time.
const EXPIRY_INTERVAL: Duration = Duration::from_millis(500);
/// How often files that nothing names are deleted, in units of the above.
const SWEEP_ROUNDS: u64 = 1_200;
/// Workers for each core, unless the settings say otherwise. Most of them wait: for models, or for the disk.
const WORKERS_PER_CORE: usize = 128;
/// Workers of shards for each core. They are apart from those of jobs: a shard has its worker for long.
const SHARD_WORKERS_PER_CORE: usize = 2;
/// Bodies that are being read may take so many of these together.
const BODY_UNIT_BYTES: u64 = 64 * 1024;
const BODY_UNITS: u32 = 4_096;

/// The node's jobs.
pub(crate) struct Jobs {
    pub(crate) queue: SqliteJobs,
    pub(crate) secrets: Secrets,
    /// Wakes the dispatcher: there is a new job, or a free worker.
    pub(crate) wake: Arc<Notify>,
    /// Wakes the one who calls webhooks.
    webhook_wake: Arc<Notify>,
    /// Those who call webhooks.
    callers: Arc<Semaphore>,
    /// Ends the run of a job. A job is here until its end is written down.
    running: DashMap<JobId, Arc<Notify>>,
    /// One of them has gone.
    ended: Notify,
    workers: Arc<Semaphore>,
    workers_max: u32,
    shard_workers: Arc<Semaphore>,
    shard_workers_max: u32,
    pub(crate) pauses: Pauses,
    /// Large bodies of jobs that run.
    pub(crate) running_bodies: Bodies,
    /// How many jobs, and how many shards, of each tenant run now.
    busy: Mutex<HashMap<(TenantName, Lane), u32>>,
    /// Bodies of new jobs that are being read.
    bodies: Arc<Semaphore>,
    /// Nothing is leased any more: the queue is another process's, or the node ends.
    stopped: AtomicBool,
    /// Held while jobs are leased.
    leasing: tokio::sync::Mutex<()>,
}

impl Jobs {
    pub(crate) fn open(folder: &DataFolder, settings: &FileSettings) -> Result<Self, OpenError> {
        let commit_seconds = histogram!("sandpiper_job_commit_seconds");
        let commit_size = histogram!("sandpiper_job_commit_size");
        let observer: CommitObserver = Box::new(move |commands, took| {
            commit_seconds.record(took.as_secs_f64());
            commit_size.record(commands as f64);
        });
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let workers_max = match settings.job_workers {
            0 => cores * WORKERS_PER_CORE,
            some => some,
        };
        let shard_workers_max = (cores * SHARD_WORKERS_PER_CORE).min(workers_max);
        Ok(Jobs {
            queue: SqliteJobs::open(folder, observer)?,
            secrets: Secrets::open(folder)?,
            wake: Arc::default(),
            webhook_wake: Arc::default(),
            callers: Arc::new(Semaphore::new(webhook::CALLERS)),
            running: DashMap::new(),
            ended: Notify::new(),
            workers: Arc::new(Semaphore::new(workers_max)),
            workers_max: workers_max as u32,
            shard_workers: Arc::new(Semaphore::new(shard_workers_max)),
            shard_workers_max: shard_workers_max as u32,
            pauses: Pauses::default(),
            running_bodies: Bodies::default(),
            busy: Mutex::default(),
            bodies: Arc::new(Semaphore::new(BODY_UNITS as usize)),
            stopped: AtomicBool::new(false),
            leasing: tokio::sync::Mutex::default(),
        })
    }

    /// Ends the run of a job that was taken back.
    pub(crate) fn abort(&self, job: JobId) {
        if let Some(running) = self.running.get(&job) {
            running.notify_one();
        }
    }

    /// Begins nothing more. What runs goes on, and new jobs are accepted still.
    pub(crate) async fn stop(&self) {
        self.stopped.store(true, Relaxed);
        // What is being leased now is among what runs after this.
        drop(self.leasing.lock().await);
    }

    /// Waits for the webhooks that are being called. After [`Jobs::stop`], no further one is.
    pub(crate) async fn settle(&self) {
        let _ = self.callers.acquire_many(webhook::CALLERS as u32).await;
    }

    /// Waits until nothing runs any more, and all of it is written down.
    pub(crate) async fn idle(&self) {
        loop {
            let mut ended = std::pin::pin!(self.ended.notified());
            ended.as_mut().enable();
            if self.running.is_empty() {
                return;
            }
            ended.await;
        }
    }

    /// Ends what runs in this process, for whoever comes next. A job that had ended by itself stays ended; the others
    /// go back to the queue, and this attempt does not count.
    pub(crate) async fn give_back(&self) {
        let jobs = self.running.len();
        if jobs > 0 {
            tracing::info!(jobs, "jobs that run go back to the queue");
        }
        for running in &self.running {
            running.value().notify_one();
        }
        self.idle().await;
    }

    /// Goes on after [`Jobs::stop`].
    pub(crate) fn resume(&self) {
        self.stopped.store(false, Relaxed);
        self.wake.notify_one();
    }

    fn is_stopped(&self) -> bool {
        self.stopped.load(Relaxed)
    }

    fn busy(&self, tenant: &TenantName, lane: Lane) -> u32 {
        let busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        busy.get(&(tenant.clone(), lane)).copied().unwrap_or(0)
    }

    fn change_busy(&self, tenant: &TenantName, lane: Lane, change: i32) {
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        let count = busy.entry((tenant.clone(), lane)).or_default();
        *count = count.saturating_add_signed(change);
        if *count == 0 {
            busy.remove(&(tenant.clone(), lane));
        }
    }

    fn ended(state: &'static str) {
        counter!("sandpiper_jobs_total", "state" => state).increment(1);
    }
}

/// Milliseconds since 1970. Times of jobs outlast the process, so that no other clock will do.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Starts what goes on beside the requests: running jobs, calling webhooks, forgetting. `follows` says that another
/// process still ends the jobs that it has begun.
pub(crate) fn start(app: &Arc<App>, follows: bool) {
    tokio::spawn(worker::work(Arc::downgrade(app), follows));
    tokio::spawn(webhook::tell(Arc::downgrade(app)));
    tokio::spawn(expire(Arc::downgrade(app)));
}

/// Drops what has had its time, and measures what waits.
async fn expire(app: Weak<App>) {
    let mut trimmed = None;
    for round in 1_u64.. {
        tokio::time::sleep(EXPIRY_INTERVAL).await;
        let Some(app) = app.upgrade() else { return };
        if app.jobs.is_stopped() {
            // What another process is about to name would be swept.
            continue;
        }
        if let Err(error) = forget(&app, &mut trimmed).await {
            tracing::warn!(%error, "old jobs could not be dropped");
        }
        if round.is_multiple_of(SWEEP_ROUNDS) {
            match app.blocking(|app| app.jobs.queue.sweep()).await {
                Ok(Ok(blobs)) => tracing::debug!(blobs, "blobs of jobs were swept"),
                Ok(Err(error)) => tracing::warn!(%error, "blobs of jobs could not be swept"),
                Err(error) => tracing::warn!(%error, "blobs of jobs could not be swept"),
            }
        }
        if let Ok(Ok((jobs, shards))) = app.blocking(|app| app.jobs.queue.count_waiting()).await {
            gauge!("sandpiper_jobs_waiting", "lane" => "job").set(jobs as f64);
            gauge!("sandpiper_jobs_waiting", "lane" => "batch").set(shards as f64);
        }
    }
}

/// Drops all that is due. `trimmed` is the tenant whose list was made shorter last.
async fn forget(app: &Arc<App>, trimmed: &mut Option<TenantName>) -> Result<(), JobError> {
    let queue = &app.jobs.queue;
    while !app.jobs.is_stopped() && queue.expire(now_ms()).await? {}
    while !app.jobs.is_stopped() && !batches::end_cancelled(app).await? {}
    // One tenant in each round: most have nothing to lose.
    loop {
        match queue.trim(trimmed.clone()).await? {
            Some((_, true)) if !app.jobs.is_stopped() => {}
            next => {
                *trimmed = next.map(|(tenant, _)| tenant);
                return Ok(());
            }
        }
    }
}

impl From<JobError> for Problem {
    fn from(error: JobError) -> Self {
        let message = error.to_string();
        match error {
            JobError::KeyConflict => {
                Problem::new(StatusCode::CONFLICT, "idempotency_conflict", message)
                    .hint("send the same request as before, or another Idempotency-Key")
            }
            JobError::TenantFull => Problem::too_many("queue_full", &message)
                .hint("wait until some are done, delete some, or ask for a higher tier"),
            JobError::Saturated => Problem::busy("queue_saturated", &message),
            JobError::NotFound => Problem::not_found(),
            JobError::LeaseLost => Problem::internal(error),
            JobError::Store(_) => {
                tracing::error!(?error, "the queue of jobs failed");
                Problem::busy("queue_unavailable", "the queue of jobs cannot be used now")
            }
        }
    }
}
