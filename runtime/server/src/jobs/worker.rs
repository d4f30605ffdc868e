//! Running jobs. One dispatcher leases what is ready, tenant by tenant in turn, as far as there are free workers; each
//! job runs in a task of its own. An attempt is on the disk before its job begins.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use metrics::histogram;
use sandpiper_control::Turn;
use sandpiper_domain::{Again, End, JobError, JobId, JobQueue, JobResult, Lane, Lease, TenantName};
use tokio::sync::{Notify, OwnedSemaphorePermit};

use super::{Jobs, bytes_max, call::Call, now_ms, retry};
use crate::{app::App, batches};

/// How long a lease lasts, and how often it is made longer.
const LEASE_MS: u64 = 30_000;
const EXTEND_INTERVAL: Duration = Duration::from_secs(10);
/// Leases of one tenant in one go.
const LEASES_MAX: u32 = 128;
/// The dispatcher looks again after so long, whatever it is told.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// For so long a better filled transaction is waited for where some jobs run already.
const GATHER: Duration = Duration::from_millis(2);
/// How long a suspect waits for the others to end before they have their turn again.
const APART_WAIT: Duration = Duration::from_secs(5);
const RESULT_BYTES_MAX: usize = 16 << 20;
const REFUSED_MS: u64 = 1_000;

/// How an attempt went.
pub(crate) enum Attempt {
    Answered(JobResult),
    /// The function failed, and may do better next time.
    Failed {
        error: String,
        retry_after_s: Option<u64>,
    },
    /// The function was never reached.
    Refused {
        error: String,
        retry_after_s: Option<u64>,
    },
    /// No further attempt can do better.
    Hopeless(String),
}

/// Whose turn it is.
#[derive(Default)]
struct Turns {
    after: Option<Turn>,
    count: usize,
    apart: usize,
}

/// Leases and runs jobs as long as the node is there. The leases that are there at the start are those of the process
/// that this one follows, which ends its jobs itself; without one, nobody holds them.
pub(super) async fn work(app: Weak<App>, follows: bool) {
    let Some(first) = app.upgrade() else { return };
    if !follows {
        take_back_all(&first.jobs).await;
    }
    let wake = first.jobs.wake.clone();
    drop(first);
    let mut turns = Turns::default();
    loop {
        let pause = match app.upgrade() {
            Some(app) => dispatch(&app, &mut turns).await,
            None => return,
        };
        let pause = pause.unwrap_or_else(|error| {
            tracing::error!(%error, "no jobs could be leased");
            LOOK_INTERVAL
        });
        let _ = tokio::time::timeout(pause, wake.notified()).await;
    }
}

async fn take_back_all(jobs: &Jobs) {
    match jobs.queue.reclaim(now_ms(), true).await {
        Ok(0) => {}
        Ok(jobs) => tracing::warn!(jobs, "jobs were running when the server ended; they run again"),
        Err(error) => tracing::error!(%error, "the jobs that were running could not be reclaimed"),
    }
}

/// Whether nothing may be leased any more.
fn is_over(app: &App) -> bool {
    app.is_draining() || app.jobs.is_stopped()
}

/// Leases what there is room for; says when to look again at the latest.
async fn dispatch(app: &Arc<App>, turns: &mut Turns) -> Result<Duration, JobError> {
    let jobs = &app.jobs;
    let leasing = jobs.leasing.lock().await;
    if is_over(app) {
        return Ok(LOOK_INTERVAL);
    }
    let running = jobs.workers_max - jobs.workers.available_permits() as u32;
    if running > 0 && jobs.workers.available_permits() < jobs.workers_max as usize / 4 {
        tokio::time::sleep(GATHER).await;
    }
    let free = jobs.workers.available_permits() as u32;
    let Ok(mut permits) = jobs.workers.clone().try_acquire_many_owned(free) else {
        return Ok(LOOK_INTERVAL);
    };
    let free_of_shards = jobs.shard_workers.available_permits() as u32;
    let shard_permits = jobs.shard_workers.clone().try_acquire_many_owned(free_of_shards);
    let Ok(mut shard_permits) = shard_permits else { return Ok(LOOK_INTERVAL) };
    let plan = {
        let app = app.clone();
        move |lanes: &[(TenantName, Lane)]| shares(&app, lanes, free, free_of_shards)
    };
    let now = now_ms();
    let look = jobs.queue.lease_next(turns.after.take(), plan, now, now + LEASE_MS).await?;
    turns.after = look.after;
    turns.count = turns.count.wrapping_add(1);
    let leased = look.leases.len();
    for lease in look.leases {
        let permits = match lease.job.lane {
            Lane::Batch => &mut shard_permits,
            Lane::Interactive | Lane::Job => &mut permits,
        };
        let Some(permit) = permits.split(1) else { continue };
        tokio::spawn(run(Running::new(app, &lease), lease, Some(permit)));
    }
    drop((permits, shard_permits));
    drop(leasing);
    if !look.apart.is_empty() && (!look.has_others || turns.count.is_multiple_of(8)) {
        turns.apart = turns.apart.wrapping_add(1);
        run_apart(app, &look.apart[turns.apart % look.apart.len()]).await?;
        jobs.wake.notify_one();
    } else if leased > 0 && jobs.workers.available_permits() > 0 {
        // Those that got everything they could have are asked again at once.
        jobs.wake.notify_one();
    }
    let due = look.next_ms.map(|next| Duration::from_millis(next.saturating_sub(now_ms()).max(1)));
    Ok(due.unwrap_or(LOOK_INTERVAL).min(LOOK_INTERVAL))
}

/// How the free workers are shared out, those of jobs and those of shards.
fn shares(app: &App, lanes: &[(TenantName, Lane)], free: u32, free_of_shards: u32) -> Vec<usize> {
    let mut counts = vec![0; lanes.len()];
    for (is_shards, mut left) in [(false, free), (true, free_of_shards)] {
        let is_of_kind = |lane: &Lane| (*lane == Lane::Batch) == is_shards;
        let among = lanes.iter().filter(|(_, lane)| is_of_kind(lane)).count();
        let share = left.div_ceil(among.max(1) as u32).min(LEASES_MAX);
        let of_kind = lanes.iter().zip(&mut counts);
        for ((tenant, lane), count) in of_kind.filter(|((_, lane), _)| is_of_kind(lane)) {
            let room = room_of(app, tenant, *lane).min(share).min(left);
            left -= room;
            *count = room as usize;
        }
    }
    counts
}

/// How many more jobs of a tenant may run: as many as it may have invocations. Of shards half, and half of the node's
/// at most, which is as many as may run at once: the other half is for whoever comes next.
fn room_of(app: &App, tenant: &TenantName, lane: Lane) -> u32 {
    if app.jobs.pauses.has(tenant, lane) {
        return 0;
    }
    let concurrency =
        app.catalog.snapshot().tenant(tenant).map_or(1, |tenant| tenant.limits.concurrency);
    let most = match lane {
        Lane::Batch => (concurrency / 2).min(app.jobs.shard_workers_max.div_ceil(2)).max(1),
        Lane::Interactive | Lane::Job => concurrency,
    };
    most.saturating_sub(app.jobs.busy(tenant, lane))
}

/// Runs a job that was there when the node went down, twice or more, with no other job beside it: if it is to blame,
/// the next time it convicts itself alone. Where others take long, it gets its chance later: they would all wait with
/// it.
async fn run_apart(app: &Arc<App>, tenant: &TenantName) -> Result<(), JobError> {
    let jobs = &app.jobs;
    let all = jobs.workers.clone().acquire_many_owned(jobs.workers_max);
    let Ok(Ok(_all)) = tokio::time::timeout(APART_WAIT, all).await else { return Ok(()) };
    let shards = jobs.shard_workers.clone().acquire_many_owned(jobs.shard_workers_max);
    let Ok(Ok(_shards)) = tokio::time::timeout(APART_WAIT, shards).await else { return Ok(()) };
    let leasing = jobs.leasing.lock().await;
    if is_over(app) {
        return Ok(());
    }
    let now = now_ms();
    let leases = jobs.queue.lease_apart(tenant.clone(), now, now + LEASE_MS).await?;
    let lease = leases.into_iter().next().map(|lease| (Running::new(app, &lease), lease));
    drop(leasing);
    if let Some((running, lease)) = lease {
        run(running, lease, None).await;
    }
    Ok(())
}

/// A job that this process has leased, until its end is written down. It is there from the lease on, so that whoever
/// ends all jobs misses none.
struct Running {
    app: Arc<App>,
    id: JobId,
    aborted: Arc<Notify>,
    /// There while it really runs.
    busy: Option<Busy>,
}

impl Running {
    fn new(app: &Arc<App>, lease: &Lease) -> Self {
        let (id, aborted) = (lease.job.id, Arc::<Notify>::default());
        app.jobs.running.insert(id, aborted.clone());
        let busy = Some(Busy::new(app, &lease.job.tenant, lease.job.lane));
        Running { app: app.clone(), id, aborted, busy }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Given back and leased again, the job may have another handle by now.
        let is_own = |_: &JobId, other: &Arc<Notify>| Arc::ptr_eq(other, &self.aborted);
        self.app.jobs.running.remove_if(&self.id, is_own);
        self.app.jobs.ended.notify_waiters();
    }
}

/// One of the jobs that a tenant has running.
struct Busy {
    app: Arc<App>,
    tenant: TenantName,
    lane: Lane,
}

impl Busy {
    fn new(app: &Arc<App>, tenant: &TenantName, lane: Lane) -> Self {
        app.jobs.change_busy(tenant, lane, 1);
        Busy { app: app.clone(), tenant: tenant.clone(), lane }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.app.jobs.change_busy(&self.tenant, self.lane, -1);
    }
}

async fn run(mut running: Running, lease: Lease, permit: Option<OwnedSemaphorePermit>) {
    let app = running.app.clone();
    let waited_ms = now_ms().saturating_sub(lease.job.ready_ms);
    histogram!("sandpiper_job_wait_seconds").record(waited_ms as f64 / 1e3);
    if app.settings.access_log {
        let job = &lease.job;
        tracing::info!(job = %job.id, attempt = lease.attempt, tenant = %job.tenant, "job begins");
    }
    let end = tokio::select! {
        biased;
        attempt = attempt(&app, &lease) => attempt.map(|attempt| end(&lease, attempt)),
        // Where its owner has taken it back, the lease is no more, and nothing is given back.
        () = running.aborted.notified() => Some(Err(given_back())),
        () = keep(&app, &lease) => None,
    };
    running.busy = None;
    // The next job need not wait for the disk.
    drop(permit);
    app.jobs.wake.notify_one();
    let Some(end) = end else { return };
    let (id, token) = (lease.job.id, lease.token);
    let (outcome, ended) = match end {
        Ok(end) => {
            let outcome = if matches!(end, End::Done(_)) { "done" } else { "dead" };
            let most = app.catalog.snapshot().tenant(&lease.job.tenant).map(|t| t.limits);
            let most = most.map_or(0, |limits| bytes_max(&limits));
            let ack = || app.jobs.queue.ack(id, token, end.clone(), most, now_ms());
            (outcome, insist(ack).await)
        }
        Err(again) => {
            let outcome = if again.counts { "failed" } else { "refused" };
            (outcome, insist(|| app.jobs.queue.nack(id, token, again.clone())).await)
        }
    };
    match ended {
        Ok(()) => Jobs::ended(outcome),
        Err(JobError::LeaseLost) => {}
        Err(error) => tracing::error!(job = %id, %error, "the end of a job could not be written"),
    }
    app.jobs.webhook_wake.notify_one();
    app.jobs.wake.notify_one();
}

/// What is refused for want of room is tried again: the work is done, and would be lost.
pub(crate) async fn insist<F, T>(mut ask: impl FnMut() -> F) -> Result<T, JobError>
where
    F: Future<Output = Result<T, JobError>>,
{
    const TIMES: u32 = 100;
    for _ in 0..TIMES {
        match ask().await {
            Err(JobError::Saturated) => tokio::time::sleep(Duration::from_millis(50)).await,
            ended => return ended,
        }
    }
    Err(JobError::Saturated)
}

/// Makes the lease longer as long as it can be; comes back when it is lost.
async fn keep(app: &App, lease: &Lease) {
    loop {
        tokio::time::sleep(EXTEND_INTERVAL).await;
        let until = now_ms() + LEASE_MS;
        match app.jobs.queue.extend(lease.job.id, lease.token, until).await {
            Ok(()) | Err(JobError::Saturated) => {}
            Err(error) => {
                tracing::warn!(job = %lease.job.id, %error, "a job's lease was lost");
                return;
            }
        }
    }
}

/// One attempt; `None` where its end is written down already.
async fn attempt(app: &Arc<App>, lease: &Lease) -> Option<Attempt> {
    if lease.job.lane == Lane::Batch {
        return batches::run(app, lease).await;
    }
    let job = &lease.job;
    let (mut body, mut _room) = (job.body.clone(), None);
    if let Some((digest, size)) = lease.blob {
        _room = app.jobs.running_bodies.room(size).await;
        match batches::blocking(app, move |app| app.jobs.queue.work(&digest)).await {
            Ok(bytes) => body = bytes,
            Err(error) => {
                tracing::error!(job = %job.id, %error, "a job's body cannot be read");
                let error = "the request's body cannot be read".to_owned();
                return Some(Attempt::Failed { error, retry_after_s: None });
            }
        }
    }
    let call = Call {
        tenant: &job.tenant,
        function: &job.function,
        selector: &job.selector,
        request: &job.request,
        body,
        lane: job.lane,
        id: job.id,
        attempt: lease.attempt,
        created_ms: job.created_ms,
        result_bytes_max: RESULT_BYTES_MAX,
    };
    let limit = Duration::from_millis(job.timeout_ms);
    Some(tokio::time::timeout(limit, call.make(app)).await.unwrap_or_else(|_| Attempt::Failed {
        error: format!("the attempt took longer than {} ms", job.timeout_ms),
        retry_after_s: None,
    }))
}

/// How the job ends, or goes on.
fn end(lease: &Lease, attempt: Attempt) -> Result<End, Again> {
    let (error, retry_after_s, counts) = match attempt {
        Attempt::Answered(result) => return Ok(End::Done(result)),
        Attempt::Hopeless(error) => return Ok(End::Dead { error }),
        Attempt::Failed { error, retry_after_s } => (error, retry_after_s, true),
        Attempt::Refused { error, retry_after_s } => (error, retry_after_s, false),
    };
    if counts && lease.attempt >= lease.job.attempts_max {
        return Ok(End::Dead { error });
    }
    let pause_ms = match (retry_after_s, counts) {
        (Some(seconds), _) => seconds.min(3_600) * 1_000,
        (None, true) => retry::pause_ms(lease.attempt, rand::random()),
        (None, false) => REFUSED_MS,
    };
    let not_before_ms = now_ms() + pause_ms;
    if not_before_ms > lease.job.deadline_ms {
        return Ok(End::Dead {
            error: format!("{error}; its deadline comes before the next attempt"),
        });
    }
    Err(Again { not_before_ms, error, counts })
}

/// What becomes of a job that is ended in the middle through no fault of its own.
fn given_back() -> Again {
    let error = "the server ended while it ran".to_owned();
    Again { not_before_ms: now_ms(), error, counts: false }
}
