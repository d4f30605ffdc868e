//! The port of a durable queue of jobs, and what goes through it.

use std::{fmt, str::FromStr};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{BoxFuture, Digest, FunctionName, Lane, Selector, StoreError, TenantName};

/// Identifies a job or a batch: milliseconds since 1970 in the upper 48 bits, then 80 random ones. Written as 32
/// lower-case hexadecimal digits, so that ids sort by time as text too.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct JobId(pub u128);

const RANDOM_BITS: u32 = 80;

impl JobId {
    /// The id of what comes into being now.
    pub fn at(now_ms: u64, random: u128) -> Self {
        JobId(u128::from(now_ms) << RANDOM_BITS | random & ((1 << RANDOM_BITS) - 1))
    }
}

/// The text is not 32 lower-case hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the id of a job is 32 lower-case hexadecimal digits")]
pub struct ParseJobIdError;

impl FromStr for JobId {
    type Err = ParseJobIdError;
    fn from_str(text: &str) -> Result<Self, ParseJobIdError> {
        let is_digit = |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if text.len() != 32 || !text.bytes().all(is_digit) {
            return Err(ParseJobIdError);
        }
        u128::from_str_radix(text, 16).map(JobId).map_err(|_| ParseJobIdError)
    }
}

impl TryFrom<String> for JobId {
    type Error = ParseJobIdError;
    fn try_from(text: String) -> Result<Self, ParseJobIdError> {
        text.parse()
    }
}

impl From<JobId> for String {
    fn from(id: JobId) -> String {
        id.to_string()
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "job:{self}")
    }
}

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// It waits for its turn.
    Pending,
    /// A worker has it.
    Running,
    /// It has a result.
    Done,
    /// It was given up; it can be sent on its way again.
    Dead,
    /// Its owner took it back.
    Cancelled,
}

/// The request of a job as its function will see it, but for the body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobRequest {
    /// The method.
    pub method: String,
    /// The function's own path and query.
    pub path_and_query: String,
    /// The headers.
    pub headers: Vec<(String, Vec<u8>)>,
}

/// A job as it enters the queue.
#[derive(Debug, Clone)]
pub struct NewJob {
    /// Its id.
    pub id: JobId,
    /// Whose it is.
    pub tenant: TenantName,
    /// The function it is for.
    pub function: FunctionName,
    /// Which version, decided anew at each attempt.
    pub selector: Selector,
    /// The request.
    pub request: JobRequest,
    /// The request's body.
    pub body: Bytes,
    /// A job's or a shard's lane.
    pub lane: Lane,
    /// The highest goes first.
    pub priority: u8,
    /// When it came.
    pub created_ms: u64,
    /// When it may run at the earliest.
    pub ready_ms: u64,
    /// When it is given up if it has not run.
    pub deadline_ms: u64,
    /// How often it is tried.
    pub attempts_max: u32,
    /// The longest one attempt may take.
    pub timeout_ms: u64,
    /// How long its result is kept.
    pub result_ttl_ms: u64,
    /// Who is told of its end.
    pub webhook: Option<String>,
    /// The caller's key and a fingerprint of what it stands for.
    pub idempotency: Option<(String, Digest)>,
    /// As many of the tenant's may wait.
    pub waiting_max: u32,
    /// Its requests and results may take so many bytes together.
    pub bytes_max: u64,
}

/// What an id or a key led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Enqueued {
    /// The job is in the queue.
    New,
    /// The key has a job already: this one.
    Known(JobId),
}

/// A job in a worker's hands. `attempt` is on the disk already.
#[derive(Debug, Clone)]
pub struct Lease {
    /// The job, without its body where that lies in a blob.
    pub job: NewJob,
    /// That blob, and about how long it is: whoever runs the job reads it when there is room for it.
    pub blob: Option<(Digest, u64)>,
    /// The number of this attempt, from 1.
    pub attempt: u32,
    /// Attempts that ended with the node.
    pub crashes: u32,
    /// Proves that the lease is still this worker's.
    pub token: u64,
    /// When others may take the job.
    pub until_ms: u64,
}

/// What a function answered to a job.
#[derive(Debug, Clone)]
pub struct JobResult {
    /// The status.
    pub status: u16,
    /// The headers.
    pub headers: Vec<(String, Vec<u8>)>,
    /// The body.
    pub body: Bytes,
    /// The version that answered.
    pub version: u32,
}

/// How a job ends.
#[derive(Debug, Clone)]
pub enum End {
    /// With a result.
    Done(JobResult),
    /// Given up.
    Dead {
        /// The last error, in words for its owner.
        error: String,
    },
}

/// How a job goes back into the queue.
#[derive(Debug, Clone)]
pub struct Again {
    /// When it may run again.
    pub not_before_ms: u64,
    /// What went wrong, in words for its owner.
    pub error: String,
    /// Whether the attempt counts.
    pub counts: bool,
}

/// Why the queue refused.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// The key came with another request before.
    #[error("the idempotency key stands for another request")]
    KeyConflict,
    /// The tenant's limit is reached.
    #[error("as many jobs of the tenant wait, or as much is kept of them, as may be")]
    TenantFull,
    /// The node's own limit is reached.
    #[error("the job queue is saturated")]
    Saturated,
    /// It ran out and somebody else has the job, or it has ended.
    #[error("the lease is another's by now")]
    LeaseLost,
    /// Missing and foreign look alike.
    #[error("there is no such job")]
    NotFound,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

type Answer<T> = BoxFuture<'static, Result<T, JobError>>;

/// A durable queue. What resolved to `Ok` survives kill -9. Nothing here blocks its caller.
pub trait JobQueue: Send + Sync {
    /// Takes a job in.
    fn enqueue(&self, job: NewJob) -> Answer<Enqueued>;
    /// Up to `count` ready jobs of `tenant`, best first, each with its attempt counted.
    fn lease(
        &self,
        tenant: TenantName,
        lane: Lane,
        count: usize,
        now_ms: u64,
        until_ms: u64,
    ) -> Answer<Vec<Lease>>;
    /// The job has ended: dead where its result would not fit in the `bytes_max` that may be kept of its tenant.
    fn ack(&self, job: JobId, token: u64, end: End, bytes_max: u64, now_ms: u64) -> Answer<()>;
    /// The attempt has failed or was not made.
    fn nack(&self, job: JobId, token: u64, again: Again) -> Answer<()>;
    /// The worker needs longer.
    fn extend(&self, job: JobId, token: u64, until_ms: u64) -> Answer<()>;
    /// Gives every lease back: at the start, when all leases are those of a node that is no more.
    fn reclaim(&self, now_ms: u64, crashed: bool) -> Answer<usize>;
    /// Takes a job back; says where it stands now.
    fn cancel(&self, tenant: TenantName, job: JobId, now_ms: u64) -> Answer<JobState>;
    /// Sends dead jobs on their way again: one, or some of a function's or of all of a tenant, as long as no more than
    /// `waiting_max` wait. Says how many; 0 where there are none left.
    fn redrive(
        &self,
        tenant: TenantName,
        job: Option<JobId>,
        function: Option<FunctionName>,
        waiting_max: u32,
        now_ms: u64,
    ) -> Answer<u64>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_as_it_is_written_and_sorts_by_time() {
        let id = JobId::at(0x0190_0000_0001, u128::MAX);
        assert_eq!(id.to_string(), "019000000001ffffffffffffffffffff");
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!(id < JobId::at(0x0190_0000_0002, 0));
        for text in
            ["", "1", "+19000000001ffffffffffffffffffff", "019000000001FFFFFFFFFFFFFFFFFFFF"]
        {
            assert_eq!(text.parse::<JobId>(), Err(ParseJobIdError), "{text:?}");
        }
    }
}
