//! One line of a batch: its call, again where that may help, and what is written of it.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use sandpiper_control::Shard;
use sandpiper_domain::{JobRequest, Lane, Lease};
use serde_json::{Value, json, value::RawValue};
use tokio::sync::OwnedSemaphorePermit;

use super::{blob_of, blocking, output};
use crate::{
    app::App,
    jobs::{Attempt, Call, now_ms},
};

/// The answer to one line.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// How often lines of a shard are tried again in one turn: one that fails with every line should not take five times as
/// long as others.
const RETRIES_MAX: u32 = 50;
/// The pause before a line's second attempt; each further one is twice as long. The worker waits meanwhile.
const PAUSE: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// What became of a line.
pub(super) enum Answer {
    /// Its line of output, and the version that answered.
    Good(String, u32),
    /// What is wrong with it.
    Bad(Value),
    /// There was no room for it.
    Refused { error: String, retry_after_s: Option<u64> },
}

/// The lines of a shard, as they are run.
pub(super) struct Lines<'a> {
    app: &'a Arc<App>,
    lease: &'a Lease,
    of_blobs: bool,
    request: JobRequest,
    retries: u32,
}

impl<'a> Lines<'a> {
    pub(super) fn new(app: &'a Arc<App>, lease: &'a Lease, shard: &Shard) -> Self {
        let kind = ("content-type".to_owned(), b"application/json".to_vec());
        let host = ("host".to_owned(), b"localhost".to_vec());
        let request = JobRequest {
            method: "POST".to_owned(),
            path_and_query: shard.path.clone(),
            headers: if shard.of_blobs { vec![host] } else { vec![host, kind] },
        };
        Lines { app, lease, of_blobs: shard.of_blobs, request, retries: RETRIES_MAX }
    }

    pub(super) async fn run(&mut self, number: u64, line: &[u8]) -> Answer {
        let (body, _room) = match self.body(number, line).await {
            Ok(body) => body,
            Err(error) => return Answer::Bad(error),
        };
        let job = &self.lease.job;
        for attempt in 1.. {
            let call = Call {
                tenant: &job.tenant,
                function: &job.function,
                selector: &job.selector,
                request: &self.request,
                body: body.clone(),
                lane: Lane::Batch,
                id: job.id,
                attempt,
                created_ms: job.created_ms,
                result_bytes_max: ANSWER_BYTES_MAX,
            };
            let error = match call.make(self.app).await {
                Attempt::Answered(answer) => {
                    let text = output(number, answer.status, &answer.body);
                    return Answer::Good(text, answer.version);
                }
                Attempt::Refused { error, retry_after_s } => {
                    return Answer::Refused { error, retry_after_s };
                }
                Attempt::Failed { retry_after_s, .. }
                    if attempt < job.attempts_max && self.retries > 0 =>
                {
                    self.retries -= 1;
                    let asked = Duration::from_secs(retry_after_s.unwrap_or(0));
                    let pause = PAUSE.saturating_mul(1 << (attempt - 1).min(16)).max(asked);
                    tokio::time::sleep(pause.min(PAUSE_MAX)).await;
                    continue;
                }
                Attempt::Failed { error, .. } | Attempt::Hopeless(error) => error,
            };
            return failed(number, &error);
        }
        failed(number, "it was tried too often")
    }

    /// What the function gets, and the room that this takes where it is large.
    async fn body(
        &self,
        number: u64,
        line: &[u8],
    ) -> Result<(Bytes, Option<OwnedSemaphorePermit>), Value> {
        let not_json = |error: serde_json::Error| {
            let what = error.to_string();
            let what = what.split(" at line").next().unwrap_or_default().to_owned();
            let message = format!("line {number} is not JSON: {what} at column {}", error.column());
            json!({ "code": "not_json", "message": message })
        };
        if self.of_blobs {
            let url: String = serde_json::from_slice(line).map_err(not_json)?;
            return self.blob(&url).await.ok_or_else(|| {
                let message = format!("line {number} names a blob that is not there");
                json!({ "code": "no_blob", "message": message })
            });
        }
        serde_json::from_slice::<&RawValue>(line).map_err(not_json)?;
        Ok((Bytes::copy_from_slice(line), None))
    }

    async fn blob(&self, url: &str) -> Option<(Bytes, Option<OwnedSemaphorePermit>)> {
        let digest = blob_of(url)?;
        let tenant = self.lease.job.tenant.clone();
        let size = move |app: &App| app.jobs.queue.blob_size(&tenant, &digest, now_ms());
        let size = blocking(self.app, size).await.ok().flatten()?;
        let room = self.app.jobs.running_bodies.room(size).await;
        let bytes = blocking(self.app, move |app| app.jobs.queue.work(&digest)).await.ok()?;
        Some((bytes, room))
    }
}

fn failed(number: u64, error: &str) -> Answer {
    Answer::Bad(json!({ "code": "failed", "message": format!("line {number}: {error}") }))
}
