//! Batches: many lines for one function, cut into shards that jobs of their own lane run.

use std::{
    io::{Read, Seek, SeekFrom},
    sync::Arc,
};

use bytes::Bytes;
use sandpiper_control::{BlobWriter, Shard};
use sandpiper_domain::{Digest, JobError, JobRequest, Lane, Lease, StoreError};
use serde_json::{Value, json, value::RawValue};

mod cut;

pub(crate) use cut::{Cut, Cutter, LINE_BYTES_MAX, LINES_MAX, cut};

use crate::{
    app::App,
    jobs::{Attempt, Call, now_ms},
};

/// The answer to one line.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// A shard's output is written in pieces of this size.
const PIECE_BYTES: usize = 256 * 1024;
/// How often a line is sent that the node or the tenant was too busy for.
const REFUSALS_MAX: u32 = 300;
const BLOBS: &str = "/api/v1/blobs/";

/// The blob that an address of ours names.
pub(crate) fn blob_of(url: &str) -> Option<Digest> {
    url.strip_prefix(BLOBS)?.parse().ok()
}

/// Runs a shard: its lines, one after the other. `None` where its end is written down already, with its output.
pub(crate) async fn run(app: &Arc<App>, lease: &Lease) -> Option<Attempt> {
    match run_lines(app, lease).await {
        Ok(()) | Err(JobError::LeaseLost) => None,
        Err(error) => {
            tracing::error!(job = %lease.job.id, %error, "a shard failed");
            let error = "the shard's lines could not be read, or its output not be written";
            Some(Attempt::Failed { error: error.to_owned(), retry_after_s: None })
        }
    }
}

async fn run_lines(app: &Arc<App>, lease: &Lease) -> Result<(), JobError> {
    let job = lease.job.id;
    let (shard, lines, mut writer) = blocking(app, move |app| {
        let shard = app.jobs.queue.shard(job)?;
        let lines = read_part(app, &shard)?;
        Ok((shard, lines, app.jobs.queue.blob_writer()?))
    })
    .await?;
    let kind = ("content-type".to_owned(), b"application/json".to_vec());
    let host = ("host".to_owned(), b"localhost".to_vec());
    let request = JobRequest {
        method: "POST".to_owned(),
        path_and_query: shard.path.clone(),
        headers: if shard.of_blobs { vec![host] } else { vec![host, kind] },
    };
    let mut piece = Vec::new();
    let (mut failed, mut version) = (0, 0);
    let lines = lines.split(|byte| *byte == b'\n').take(shard.part.lines as usize);
    for (number, line) in (shard.part.first_line..).zip(lines) {
        let out = run_line(app, lease, &shard, &request, number, line).await;
        failed += u64::from(out.is_err());
        let text = match out {
            Ok((text, by)) => {
                version = by;
                text
            }
            Err(error) => json!({ "line": number, "error": error }).to_string(),
        };
        piece.extend_from_slice(text.as_bytes());
        piece.push(b'\n');
        if piece.len() >= PIECE_BYTES {
            writer = write(app, writer, std::mem::take(&mut piece)).await?;
        }
    }
    let writer = write(app, writer, piece).await?;
    let output = blocking(app, move |_| writer.finish()).await?;
    app.jobs.queue.finish_shard(job, lease.token, output, failed, version, now_ms()).await
}

/// One line's line of output and the version that answered, or what is wrong with it.
async fn run_line(
    app: &Arc<App>,
    lease: &Lease,
    shard: &Shard,
    request: &JobRequest,
    number: u64,
    line: &[u8],
) -> Result<(String, u32), Value> {
    let not_json = |error: serde_json::Error| {
        let what = error.to_string();
        let what = what.split(" at line").next().unwrap_or_default().to_owned();
        let message = format!("line {number} is not JSON: {what} at column {}", error.column());
        json!({ "code": "not_json", "message": message })
    };
    let body = if shard.of_blobs {
        let url: String = serde_json::from_slice(line).map_err(not_json)?;
        blob(app, lease, &url).await.ok_or_else(|| {
            json!({ "code": "no_blob", "message": format!("line {number} names a blob that is not there") })
        })?
    } else {
        serde_json::from_slice::<&RawValue>(line).map_err(not_json)?;
        Bytes::copy_from_slice(line)
    };
    let call = Call {
        tenant: &lease.job.tenant,
        function: &lease.job.function,
        selector: &lease.job.selector,
        request,
        body,
        lane: Lane::Batch,
        id: lease.job.id,
        attempt: lease.attempt,
        created_ms: lease.job.created_ms,
        result_bytes_max: ANSWER_BYTES_MAX,
    };
    let mut refusals = 0;
    loop {
        let error = match call.make(app).await {
            Attempt::Answered(answer) => {
                return Ok((output(number, answer.status, &answer.body), answer.version));
            }
            // The batch has time: the line waits until there is room for it.
            Attempt::Refused { .. } if refusals < REFUSALS_MAX => {
                refusals += 1;
                tokio::time::sleep(std::time::Duration::from_millis(500)).await;
                continue;
            }
            Attempt::Refused { error, .. } | Attempt::Failed { error, .. } => error,
            Attempt::Hopeless(error) => error,
        };
        return Err(json!({ "code": "failed", "message": format!("line {number}: {error}") }));
    }
}

/// `{"line":7,"status":200,"output":…}`: JSON as JSON, anything else as text.
fn output(number: u64, status: u16, body: &[u8]) -> String {
    let is_one_line = !body.contains(&b'\n');
    match serde_json::from_slice::<&RawValue>(body) {
        Ok(json) if is_one_line => {
            format!("{{\"line\":{number},\"status\":{status},\"output\":{}}}", json.get())
        }
        Ok(_) => {
            let value: Value = serde_json::from_slice(body).unwrap_or_default();
            json!({ "line": number, "status": status, "output": value }).to_string()
        }
        Err(_) => {
            let text = String::from_utf8_lossy(body);
            json!({ "line": number, "status": status, "output": text }).to_string()
        }
    }
}

async fn blob(app: &Arc<App>, lease: &Lease, url: &str) -> Option<Bytes> {
    let digest = blob_of(url)?;
    let tenant = lease.job.tenant.clone();
    let read = move |app: &App| {
        let size = app.jobs.queue.blob_size(&tenant, &digest, now_ms())?;
        size.map(|_| app.jobs.queue.work(&digest)).transpose()
    };
    blocking(app, read).await.ok().flatten()
}

/// The lines of a shard.
fn read_part(app: &App, shard: &Shard) -> Result<Vec<u8>, JobError> {
    let mut file = app.jobs.queue.work_file(&shard.input)?;
    let read = |error: std::io::Error| StoreError::Failed(format!("cannot read a batch: {error}"));
    file.seek(SeekFrom::Start(shard.part.offset)).map_err(read)?;
    let mut lines = vec![0; usize::try_from(shard.part.bytes).unwrap_or(0)];
    file.read_exact(&mut lines).map_err(read)?;
    Ok(lines)
}

pub(crate) async fn write(
    app: &Arc<App>,
    mut writer: BlobWriter,
    piece: Vec<u8>,
) -> Result<BlobWriter, JobError> {
    blocking(app, move |_| {
        writer.write(&piece)?;
        Ok(writer)
    })
    .await
}

/// Work with files, on a thread that may wait.
pub(crate) async fn blocking<T: Send + 'static>(
    app: &Arc<App>,
    work: impl FnOnce(&App) -> Result<T, JobError> + Send + 'static,
) -> Result<T, JobError> {
    let done = app.blocking(work).await;
    done.unwrap_or_else(|error| Err(StoreError::Failed(error.to_string()).into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_answer_is_one_line() {
        assert_eq!(
            output(7, 200, b"{\"a\":1.50}"),
            "{\"line\":7,\"status\":200,\"output\":{\"a\":1.50}}"
        );
        assert_eq!(output(1, 404, b"no"), "{\"line\":1,\"output\":\"no\",\"status\":404}");
        assert_eq!(output(1, 200, b"[1,\n2]"), "{\"line\":1,\"output\":[1,2],\"status\":200}");
        assert_eq!(
            output(1, 200, b"\"\xff\n"),
            "{\"line\":1,\"output\":\"\\\"\u{fffd}\\n\",\"status\":200}"
        );
    }

    #[test]
    fn a_blob_is_named_by_its_address() {
        let digest = "00ff".repeat(16);
        assert!(blob_of(&format!("/api/v1/blobs/{digest}")).is_some());
        for url in ["", "/api/v1/blobs/", "/api/v1/blobs/../x", "http://x/api/v1/blobs/00"] {
            assert_eq!(blob_of(url), None, "{url}");
        }
    }
}
