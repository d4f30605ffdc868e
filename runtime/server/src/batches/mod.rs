//! Batches: many lines for one function, cut into shards that jobs of their own lane run.

use std::{
    io::{Read, Seek, SeekFrom},
    sync::Arc,
};

use sandpiper_control::{BlobWriter, NewBatch, Shard};
use sandpiper_domain::{Digest, JobError, StoreError};
use serde_json::{json, value::RawValue};

mod cut;
mod line;
mod run;

pub(crate) use cut::{Cut, Cutter, LINE_BYTES_MAX, LINES_MAX, cut};
pub(crate) use run::run;

use crate::{
    app::App,
    jobs::{insist, now_ms},
};

const BLOBS: &str = "/api/v1/blobs/";

/// The blob that an address of ours names.
pub(crate) fn blob_of(url: &str) -> Option<Digest> {
    url.strip_prefix(BLOBS)?.parse().ok()
}

/// Writes a batch down. A large one takes several commands, between which others have their turn; the caller sees to it
/// that nothing ends this in the middle.
pub(crate) async fn create(app: &Arc<App>, batch: NewBatch) -> Result<(), JobError> {
    let batch = Arc::new(batch);
    let queue = &app.jobs.queue;
    for part in 0.. {
        let created = match part {
            0 => queue.create_batch(batch.clone(), part).await,
            _ => insist(|| queue.create_batch(batch.clone(), part)).await,
        };
        match created {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            Err(error) => {
                if part > 0 {
                    let cancel = || queue.cancel_batch(batch.tenant.clone(), batch.id, now_ms());
                    insist(cancel).await?;
                } else if let (JobError::TenantFull, Some(batch)) = (&error, Arc::into_inner(batch))
                {
                    let discard = move |_: &App| {
                        batch.input.discard();
                        Ok(())
                    };
                    blocking(app, discard).await?;
                }
                return Err(error);
            }
        }
    }
    Ok(())
}

/// Ends some shards of batches that were taken back; says whether that were all.
pub(crate) async fn end_cancelled(app: &App) -> Result<bool, JobError> {
    let (jobs, is_all) = app.jobs.queue.end_cancelled(now_ms()).await?;
    jobs.into_iter().for_each(|job| app.jobs.abort(job));
    Ok(is_all)
}

/// `{"line":7,"status":200,"output":…}`: JSON as JSON, anything else as text.
fn output(number: u64, status: u16, body: &[u8]) -> String {
    match serde_json::from_slice::<&RawValue>(body) {
        Ok(json) => {
            // A line feed within JSON is never part of a value.
            let json = json.get().replace('\n', " ");
            format!("{{\"line\":{number},\"status\":{status},\"output\":{json}}}")
        }
        Err(_) => {
            let text = String::from_utf8_lossy(body);
            json!({ "line": number, "status": status, "output": text }).to_string()
        }
    }
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
        // What a reader of values would round, or refuse.
        let large = b"{\"a\":12345678901234567890123,\n\"b\":1e999}";
        assert_eq!(
            output(1, 200, large),
            "{\"line\":1,\"status\":200,\"output\":{\"a\":12345678901234567890123, \"b\":1e999}}"
        );
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
