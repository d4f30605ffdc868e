//! The load: connections that each carry one request at a time, on threads of their own.
//!
//! Closed loop: a connection sends again as soon as it has its answer. Open loop: requests fall due at a constant
//! rate whatever the answers do, and latency counts from then, so that a server that stalls cannot hide it by being
//! asked less (no coordinated omission).

use std::{
    collections::BTreeMap,
    fmt, mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use bytes::Bytes;
use hdrhistogram::Histogram;
use http_body_util::{BodyExt, Full};
use hyper::{
    Request, Response,
    body::Incoming,
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, sync::Semaphore, task::JoinSet};

use crate::error::{CliError, Result};

/// A server that is away is not asked in a hot loop.
const PAUSE: Duration = Duration::from_millis(10);
/// What falls due so shortly before the end need not have been sent.
const GRACE: Duration = Duration::from_millis(100);
/// The longest time that an answer may take, an hour.
const LATENCY_NS_MAX: u64 = 3_600_000_000_000;
/// Different failures that are told apart; codes may come from a server that is none of ours.
const FAILURES_MAX: usize = 32;

/// What is sent, again and again, and where to.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) host: String,
    pub(super) port: u16,
    /// With the path alone as its URI, and with a `host` header.
    pub(super) request: Request<Full<Bytes>>,
}

/// How hard the target is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Level {
    /// Requests in flight; with a rate, at most so many.
    pub(super) concurrency: u32,
    /// Requests that fall due in a second.
    pub(super) rate: Option<u32>,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.rate {
            Some(rate) => write!(f, "rate {rate}/s"),
            None => write!(f, "concurrency {}", self.concurrency),
        }
    }
}

/// Why a request did not succeed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Failure {
    /// A status of 400 or more, with the server's code where it is the server's own.
    Status(u16, Option<String>),
    /// No connection could be made.
    NoConnection,
    /// The connection ended before the answer did.
    Broken,
    /// No answer in time.
    TimedOut,
    /// It was due, but every connection was waiting for an answer.
    NotSent,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Status(status, None) => write!(f, "{status}"),
            Failure::Status(status, Some(code)) => write!(f, "{status} {code}"),
            Failure::NoConnection => f.write_str("no connection"),
            Failure::Broken => f.write_str("connection broken"),
            Failure::TimedOut => f.write_str("timed out"),
            Failure::NotSent => f.write_str("due but not sent"),
        }
    }
}

/// What happened within some time. Latencies are those of successes, in nanoseconds.
#[derive(Debug)]
pub(super) struct Tally {
    pub(super) latencies: Histogram<u64>,
    pub(super) failures: BTreeMap<Failure, u64>,
}

impl Tally {
    pub(super) fn new() -> Result<Self> {
        let latencies = Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3)
            .map_err(|error| CliError::unexpected("no histogram can be made").why(error))?;
        Ok(Tally { latencies, failures: BTreeMap::new() })
    }

    fn record(&mut self, outcome: std::result::Result<Duration, Failure>) {
        match outcome {
            Ok(latency) => {
                let nanoseconds = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
                self.latencies.saturating_record(nanoseconds);
            }
            Err(failure) => self.fail(failure, 1),
        }
    }

    pub(super) fn fail(&mut self, failure: Failure, count: u64) {
        let known = self.failures.len() < FAILURES_MAX || self.failures.contains_key(&failure);
        let failure = match failure {
            Failure::Status(status, Some(_)) if !known => Failure::Status(status, None),
            failure => failure,
        };
        *self.failures.entry(failure).or_default() += count;
    }

    pub(super) fn merge(&mut self, other: &Tally) {
        // All have the same bounds, so that nothing is lost here.
        let _ = self.latencies.add(&other.latencies);
        for (failure, count) in &other.failures {
            self.fail(failure.clone(), *count);
        }
    }
}

/// A level under way.
pub(super) struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    call: Arc<Call>,
    timeout: Duration,
    stop: AtomicBool,
    sent: AtomicU64,
    schedule: Option<Schedule>,
    /// One for each thread, so that they do not wait for each other.
    tallies: Vec<Mutex<Tally>>,
}

/// When requests fall due.
struct Schedule {
    started: Instant,
    interval_seconds: f64,
    next: AtomicU64,
    /// A permit for each request that is due and not yet taken.
    due: Semaphore,
}

impl Load {
    /// Starts `level` on so many threads.
    pub(super) fn start(
        call: Arc<Call>,
        level: Level,
        threads: usize,
        timeout: Duration,
    ) -> Result<Self> {
        let connections = level.concurrency as usize;
        let threads = threads.min(connections);
        let schedule = level.rate.map(|rate| Schedule {
            started: Instant::now(),
            interval_seconds: 1.0 / f64::from(rate),
            next: AtomicU64::new(0),
            due: Semaphore::new(0),
        });
        let tallies = (0..threads).map(|_| Tally::new().map(Mutex::new));
        let shared = Arc::new(Shared {
            call,
            timeout,
            stop: AtomicBool::new(false),
            sent: AtomicU64::new(0),
            schedule,
            tallies: tallies.collect::<Result<_>>()?,
        });
        let mut load = Load { shared: Arc::clone(&shared), threads: Vec::new() };
        for index in 0..threads {
            let share = connections / threads + usize::from(index < connections % threads);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime =
                runtime.map_err(|error| CliError::unexpected("no load can be made").why(error))?;
            let shared = Arc::clone(&shared);
            load.threads.push(thread::spawn(move || {
                runtime.block_on(async {
                    let mut tasks = JoinSet::new();
                    for _ in 0..share {
                        tasks.spawn(connection(Arc::clone(&shared), index));
                    }
                    tasks.join_all().await;
                });
            }));
        }
        if level.rate.is_some() {
            load.threads.push(thread::spawn(move || shared.dispatch()));
        }
        Ok(load)
    }

    /// What happened since the last call.
    pub(super) fn take(&self) -> Result<Tally> {
        let mut whole = Tally::new()?;
        for tally in &self.shared.tallies {
            let fresh = Tally::new()?;
            let taken = mem::replace(&mut *lock(tally), fresh);
            whole.merge(&taken);
        }
        Ok(whole)
    }

    /// Requests that are due and wait for a connection, but for those of the last moment.
    pub(super) fn overdue(&self) -> u64 {
        let Some(schedule) = &self.shared.schedule else { return 0 };
        let until = schedule.started.elapsed().saturating_sub(GRACE).as_secs_f64();
        let due = (until / schedule.interval_seconds) as u64;
        due.saturating_sub(schedule.next.load(Ordering::Relaxed))
    }

    /// Waits for the answers to what is in flight; gives how many requests were sent in all.
    /// How they ended is there to be taken.
    pub(super) fn finish(&mut self) -> u64 {
        self.stop();
        self.shared.sent.load(Ordering::Relaxed)
    }

    fn stop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(schedule) = &self.shared.schedule {
            schedule.due.close();
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Lets requests fall due. A thread's sleep is finer than the runtime's timer, which counts milliseconds.
    fn dispatch(&self) {
        let Some(schedule) = &self.schedule else { return };
        let mut given: u64 = 0;
        while !self.stopped() {
            let now = schedule.started.elapsed().as_secs_f64();
            let due = (now / schedule.interval_seconds) as u64 + 1;
            schedule.due.add_permits((due - given) as usize);
            given = due;
            let next = Duration::from_secs_f64(given as f64 * schedule.interval_seconds);
            thread::sleep(next.saturating_sub(schedule.started.elapsed()).min(PAUSE));
        }
    }

    /// The moment from which the next request counts; none when it is over.
    async fn next(&self) -> Option<Instant> {
        match &self.schedule {
            None => Some(Instant::now()),
            Some(schedule) => {
                schedule.due.acquire().await.ok()?.forget();
                let index = schedule.next.fetch_add(1, Ordering::Relaxed);
                let after = Duration::from_secs_f64(index as f64 * schedule.interval_seconds);
                Some(schedule.started + after)
            }
        }
        .filter(|_| !self.stopped())
    }
}

/// A tally is whole after every line that changes it, even if one of them should panic.
fn lock(tally: &Mutex<Tally>) -> MutexGuard<'_, Tally> {
    tally.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One connection, until the load ends.
async fn connection(shared: Arc<Shared>, thread: usize) {
    let mut sender = None;
    while let Some(from) = shared.next().await {
        let exchange = exchange(&shared, &mut sender);
        let outcome = match tokio::time::timeout(shared.timeout, exchange).await {
            Ok(outcome) => outcome.map(|()| from.elapsed()),
            Err(_) => Err(Failure::TimedOut),
        };
        let away = outcome == Err(Failure::NoConnection);
        if matches!(outcome, Err(Failure::TimedOut | Failure::Broken)) {
            sender = None;
        }
        if let Some(tally) = shared.tallies.get(thread) {
            lock(tally).record(outcome);
        }
        if away {
            tokio::time::sleep(PAUSE).await;
        }
    }
}

async fn exchange(
    shared: &Shared,
    slot: &mut Option<SendRequest<Full<Bytes>>>,
) -> std::result::Result<(), Failure> {
    // A server may close a connection between two requests; that is no failure.
    let open = match slot {
        Some(sender) => sender.ready().await.is_ok(),
        None => false,
    };
    if !open {
        *slot = Some(connect(&shared.call).await?);
    }
    let Some(sender) = slot else { return Err(Failure::NoConnection) };
    shared.sent.fetch_add(1, Ordering::Relaxed);
    let answer = sender.send_request(shared.call.request.clone()).await;
    let mut answer = answer.map_err(|_| Failure::Broken)?;
    let failure = failure(&answer);
    while let Some(frame) = answer.body_mut().frame().await {
        frame.map_err(|_| Failure::Broken)?;
    }
    failure.map_or(Ok(()), Err)
}

async fn connect(call: &Call) -> std::result::Result<SendRequest<Full<Bytes>>, Failure> {
    let stream = TcpStream::connect((call.host.as_str(), call.port)).await;
    let stream = stream.map_err(|_| Failure::NoConnection)?;
    let _ = stream.set_nodelay(true);
    let shaken = http1::handshake(TokioIo::new(stream)).await;
    let (sender, connection) = shaken.map_err(|_| Failure::NoConnection)?;
    tokio::spawn(connection);
    Ok(sender)
}

fn failure(answer: &Response<Incoming>) -> Option<Failure> {
    let status = answer.status().as_u16();
    let code = || {
        let code = answer.headers().get("x-sandpiper-error")?.to_str().ok()?;
        Some(code.chars().take(64).collect())
    };
    (status >= 400).then(|| Failure::Status(status, code()))
}

#[cfg(test)]
#[path = "load_tests.rs"]
mod tests;
