//! The queue of jobs in SQLite. Changes go through one [`writer`] that syncs once for all that have come meanwhile;
//! those who only look use a connection of their own. Large bodies lie in blobs beside the database.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicUsize, Ordering::Relaxed},
    mpsc::{SyncSender, TrySendError, sync_channel},
};

use bytes::Bytes;
use futures::channel::oneshot;
use rusqlite::Connection;
use sandpiper_domain::{
    Again, BoxFuture, End, Enqueued, FunctionName, JobError, JobId, JobQueue, JobState, Lane,
    Lease, NewJob, StoreError, TenantName,
};

mod batch;
mod blobs;
mod expiry;
mod leasing;
mod owner;
mod read;
mod row;
mod schema;
mod shards;
mod steps;
#[cfg(test)]
mod tests;
mod webhook;
mod writer;

pub use batch::{BatchView, Before, NewBatch, NewShard, Shard, ShardOutput, ShardView};
use blobs::Work;
pub use blobs::{BlobWriter, PinnedWork};
pub use leasing::{Leased, Turn};
pub use read::{JobFilter, JobView, ResultView};
pub use row::CRASHES_MAX;
use row::Loaded;
use steps::Kept;
pub use webhook::{Calls, DueWebhook};
pub use writer::CommitObserver;
use writer::{Command, Ran, in_savepoint, stopped};

use crate::{DataFolder, OpenError};

/// Bodies up to here lie in the database.
const INLINE_BYTES_MAX: usize = 64 * 1024;
/// New jobs in front of the writer. What is less than the queue's length is left to those that end jobs.
const ENTERING_MAX: usize = 6_000;
/// Large bodies that wait for the disk.
const WRITES_MAX: usize = 256;

type Answer<T> = BoxFuture<'static, Result<T, JobError>>;
type Errand = Box<dyn FnOnce() + Send>;
/// What the writer answers, and what was pinned for it.
type Sent<T> = oneshot::Receiver<(Result<T, JobError>, Option<PinnedWork>)>;

/// The queue, and everything that goes with it on the disk.
pub struct SqliteJobs {
    inner: Arc<Inner>,
}

struct Inner {
    commands: SyncSender<Command>,
    errands: SyncSender<Errand>,
    reader: Arc<Mutex<Connection>>,
    work: Arc<Work>,
    entering: AtomicUsize,
}

impl SqliteJobs {
    /// Opens the queue of a data folder. `observer` hears of each commit.
    pub fn open(folder: &DataFolder, observer: CommitObserver) -> Result<Self, OpenError> {
        let path = folder.database("jobs.db")?;
        let work = Arc::new(Work::new(folder.work_blobs()?, path.clone()));
        let connection = schema::open(&path)?;
        let reader = Arc::new(Mutex::new(schema::open_reader(&path)?));
        let commands = writer::start(connection, observer);
        let commands = commands.map_err(OpenError::io("start the queue's writer"))?;
        let errands = start_errands().map_err(OpenError::io("start the queue's second thread"))?;
        let entering = AtomicUsize::new(0);
        Ok(SqliteJobs { inner: Arc::new(Inner { commands, errands, reader, work, entering }) })
    }

    /// Moves what is due, looks whose turn it is behind `after`, and leases of each list as many as `plan` says.
    pub fn lease_next(
        &self,
        after: Option<Turn>,
        plan: impl FnOnce(&[(TenantName, Lane)]) -> Vec<usize> + Send + 'static,
        now_ms: u64,
        until_ms: u64,
    ) -> Answer<Leased> {
        let inner = self.inner.clone();
        Box::pin(async move {
            let found = inner.submit(move |connection| {
                leasing::next(connection, after.as_ref(), Box::new(plan), now_ms, until_ms)
            });
            let leasing::Found { mut leased, jobs } = found.await?;
            leased.leases = leases_of(jobs, until_ms);
            Ok(leased)
        })
    }

    /// The next job of `tenant` that must run with no other beside it.
    pub fn lease_apart(
        &self,
        tenant: TenantName,
        now_ms: u64,
        until_ms: u64,
    ) -> Answer<Vec<Lease>> {
        self.inner.clone().lease(tenant, row::APART, 1, now_ms, until_ms)
    }

    /// Drops some of what has had its time; says whether there may be more.
    pub fn expire(&self, now_ms: u64) -> Answer<bool> {
        self.inner.submit(move |connection| {
            let jobs = expiry::expire(connection, now_ms)? as i64;
            Ok(shards::expire(connection, now_ms)? || jobs == steps::MOVED_MAX)
        })
    }

    /// Forgets the oldest jobs of the tenant that comes after this one, where there are too many that have no result
    /// any more; gives who that was, and whether there may be more.
    pub fn trim(&self, after: Option<TenantName>) -> Answer<Option<(TenantName, bool)>> {
        self.inner.submit(move |connection| {
            let trimmed = expiry::trim_next(connection, after.as_ref())?;
            Ok(trimmed.map(|(tenant, count)| (tenant, count as i64 == steps::MOVED_MAX)))
        })
    }

    fn read<T>(
        &self,
        look: impl FnOnce(&Connection) -> Result<T, JobError>,
    ) -> Result<T, JobError> {
        look(&self.inner.reader.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Inner {
    /// Has the writer do `work`, whole or not at all; resolves when it is on the disk.
    fn submit<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, JobError> + Send + 'static,
    ) -> Answer<T> {
        self.submit_pinned(None, work)
    }

    /// As [`Inner::submit`]; `pin` is held until what names it is on the disk.
    fn submit_pinned<T: Send + 'static>(
        &self,
        pin: Option<PinnedWork>,
        work: impl FnOnce(&Connection) -> Result<T, JobError> + Send + 'static,
    ) -> Answer<T> {
        let errands = pin.is_some().then(|| self.errands.clone());
        let sent = self.send(pin, move |connection| (in_savepoint(connection, work), None));
        Box::pin(async move {
            let (outcome, pin) = sent?.await.unwrap_or_else(|_| (Err(stopped()), None));
            if let (Err(JobError::TenantFull), Some(errands)) = (&outcome, errands) {
                discard(&errands, pin);
            }
            outcome
        })
    }

    /// As [`Inner::submit`], for `work` that finds out whether it may be done before it changes anything. It needs no
    /// savepoint, which costs a copy of each page, and where SQLite fails, the others of its transaction fail too.
    async fn submit_checked<T: Send + 'static>(
        &self,
        pin: Option<PinnedWork>,
        work: impl FnOnce(&Connection) -> Result<T, JobError> + Send + 'static,
    ) -> (Result<T, JobError>, Option<PinnedWork>) {
        let sent = self.send(pin, move |connection| {
            let outcome = work(connection);
            let spoiled = match &outcome {
                Err(JobError::Store(error)) => Some(error.to_string()),
                _ => None,
            };
            (outcome, spoiled)
        });
        match sent {
            Ok(receiver) => receiver.await.unwrap_or_else(|_| (Err(stopped()), None)),
            Err(error) => (Err(error), None),
        }
    }

    fn send<T: Send + 'static>(
        &self,
        pin: Option<PinnedWork>,
        work: impl FnOnce(&Connection) -> (Result<T, JobError>, Option<String>) + Send + 'static,
    ) -> Result<Sent<T>, JobError> {
        let (sender, receiver) = oneshot::channel();
        let command: Command = Box::new(move |connection| {
            let (outcome, spoiled) = work(connection);
            let reply = Box::new(move |failure: Option<&str>| {
                let failure = failure.map(|text| StoreError::Failed(text.to_owned()).into());
                let _ = sender.send((failure.map_or(outcome, Err), pin));
            });
            Ran { reply, spoiled }
        });
        match self.commands.try_send(command) {
            Ok(()) => Ok(receiver),
            Err(TrySendError::Full(_)) => Err(JobError::Saturated),
            Err(TrySendError::Disconnected(_)) => Err(stopped()),
        }
    }

    /// Has the second thread do `work`, which reads or writes files.
    fn send_off<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, JobError> + Send + 'static,
    ) -> Answer<T> {
        let (sender, receiver) = oneshot::channel();
        let errand: Errand = Box::new(move || drop(sender.send(work())));
        match self.errands.try_send(errand) {
            Ok(()) => Box::pin(async { receiver.await.unwrap_or_else(|_| Err(stopped())) }),
            Err(_) => Box::pin(async { Err(JobError::Saturated) }),
        }
    }

    /// A body where it belongs, safe from the sweep as long as the second value lives. A large one is written where
    /// there is `room` for it.
    async fn keep(
        &self,
        bytes: Bytes,
        room: impl FnOnce(&Mutex<Connection>) -> Result<(), JobError> + Send + 'static,
    ) -> Result<(Kept, Option<PinnedWork>), JobError> {
        let size = bytes.len() as u64;
        if bytes.len() <= INLINE_BYTES_MAX {
            return Ok((Kept::Inline(bytes), None));
        }
        let (work, reader) = (self.work.clone(), self.reader.clone());
        let write = move || {
            room(&reader)?;
            Ok(work.put(&bytes)?)
        };
        let pinned = self.send_off(write).await?;
        Ok((Kept::Blob(pinned.digest(), size), Some(pinned)))
    }

    fn lease(
        self: Arc<Self>,
        tenant: TenantName,
        list: i64,
        count: usize,
        now_ms: u64,
        until_ms: u64,
    ) -> Answer<Vec<Lease>> {
        Box::pin(async move {
            let leased = self.submit(move |connection| {
                leasing::lease(connection, &tenant, list, count, now_ms, until_ms)
            });
            Ok(leases_of(leased.await?, until_ms))
        })
    }
}

/// Deletes what was written for nothing. Where the second thread has too much to do, the sweep does it.
fn discard(errands: &SyncSender<Errand>, pinned: Option<PinnedWork>) {
    if let Some(pinned) = pinned {
        let _ = errands.try_send(Box::new(move || pinned.discard()));
    }
}

/// Jobs as their workers get them.
fn leases_of(jobs: Vec<(Loaded, u64)>, until_ms: u64) -> Vec<Lease> {
    let lease = |(loaded, token): (Loaded, u64)| {
        let Loaded { job, attempts: attempt, crashes, blob, .. } = loaded;
        Lease { job, blob, attempt, crashes, token, until_ms }
    };
    jobs.into_iter().map(lease).collect()
}

impl JobQueue for SqliteJobs {
    fn enqueue(&self, mut job: NewJob) -> Answer<Enqueued> {
        let inner = self.inner.clone();
        Box::pin(async move {
            let _entering = Entering::new(&inner)?;
            let (tenant, most, size) = (job.tenant.clone(), job.bytes_max, job.body.len() as u64);
            // One that is known already needs no room.
            let is_new = job.idempotency.is_none();
            let room = move |reader: &Mutex<Connection>| {
                let reader = reader.lock().unwrap_or_else(PoisonError::into_inner);
                match is_new && steps::held_by(&reader, &tenant)?.1 + size > most {
                    true => Err(JobError::TenantFull),
                    false => Ok(()),
                }
            };
            let (body, pinned) = inner.keep(std::mem::take(&mut job.body), room).await?;
            let work = move |connection: &Connection| {
                steps::enqueue(connection, &job, &body, job.created_ms)
            };
            let (enqueued, pinned) = inner.submit_checked(pinned, work).await;
            let is_refused = matches!(enqueued, Err(JobError::TenantFull | JobError::KeyConflict));
            if is_refused || matches!(enqueued, Ok(Enqueued::Known(_))) {
                discard(&inner.errands, pinned);
            }
            enqueued
        })
    }

    fn lease(
        &self,
        tenant: TenantName,
        lane: Lane,
        count: usize,
        now_ms: u64,
        until_ms: u64,
    ) -> Answer<Vec<Lease>> {
        self.inner.clone().lease(tenant, row::lane_number(lane), count, now_ms, until_ms)
    }

    fn ack(&self, job: JobId, token: u64, mut end: End, bytes_max: u64, now_ms: u64) -> Answer<()> {
        let inner = self.inner.clone();
        Box::pin(async move {
            let (kept, pinned) = match &mut end {
                End::Done(result) => {
                    let (kept, pinned) =
                        inner.keep(std::mem::take(&mut result.body), |_| Ok(())).await?;
                    (Some(kept), pinned)
                }
                End::Dead { .. } => (None, None),
            };
            let is_done = kept.is_some();
            let work = move |connection: &Connection| {
                steps::ack(connection, job, token, &end, kept.as_ref(), bytes_max, now_ms)
            };
            match is_done {
                true => inner.submit_checked(pinned, work).await.0,
                // The end of a shard goes further, and may find rows that it cannot read.
                false => inner.submit(work).await,
            }
        })
    }

    fn nack(&self, job: JobId, token: u64, again: Again) -> Answer<()> {
        // What is not due yet waits among the delayed; the next look moves what has become due.
        self.inner.submit(move |connection| steps::nack(connection, job, token, &again, 0))
    }

    fn extend(&self, job: JobId, token: u64, until_ms: u64) -> Answer<()> {
        self.inner.submit(move |connection| steps::extend(connection, job, token, until_ms))
    }

    fn reclaim(&self, now_ms: u64, crashed: bool) -> Answer<usize> {
        self.inner.submit(move |connection| steps::reclaim(connection, now_ms, crashed))
    }

    fn cancel(&self, tenant: TenantName, job: JobId, now_ms: u64) -> Answer<JobState> {
        self.inner.submit(move |connection| owner::cancel(connection, &tenant, job, now_ms))
    }

    fn redrive(
        &self,
        tenant: TenantName,
        job: Option<JobId>,
        function: Option<FunctionName>,
        waiting_max: u32,
        now_ms: u64,
    ) -> Answer<u64> {
        self.inner.submit(move |connection| {
            owner::redrive(connection, &tenant, job, function.as_ref(), waiting_max, now_ms)
        })
    }
}

/// One of the new jobs in front of the writer.
struct Entering<'a>(&'a AtomicUsize);

impl<'a> Entering<'a> {
    fn new(inner: &'a Inner) -> Result<Self, JobError> {
        let entering = Entering(&inner.entering);
        let before = inner.entering.fetch_add(1, Relaxed);
        (before < ENTERING_MAX).then_some(entering).ok_or(JobError::Saturated)
    }
}

impl Drop for Entering<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

fn start_errands() -> std::io::Result<SyncSender<Errand>> {
    let (sender, receiver) = sync_channel::<Errand>(WRITES_MAX);
    let run = move || receiver.iter().for_each(|errand| errand());
    std::thread::Builder::new().name("job blobs".to_owned()).spawn(run)?;
    Ok(sender)
}

fn failed(error: rusqlite::Error) -> StoreError {
    StoreError::Failed(format!("sqlite: {error}"))
}
