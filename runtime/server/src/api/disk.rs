//! Bodies that are read from the disk as the client takes them, so that what it leaves unread takes no memory.

use std::{
    io::{Read, Seek, SeekFrom},
    sync::Arc,
};

use axum::{body::Body, response::Response};
use bytes::Bytes;
use futures::stream;
use http::header;
use sandpiper_control::{ShardView, Tenant};
use sandpiper_domain::{Digest, JobError, JobId, StoreError};
use serde_json::json;
use tokio::sync::OwnedSemaphorePermit;

use crate::{
    app::App,
    batches::blocking,
    budget::{FLOOR_BYTES, NoRoom},
    respond::Problem,
};

/// What is read at once.
const PIECE_BYTES: usize = 64 * 1024;
/// How many shards of a batch are looked at before the reader may leave.
const SHARDS_MAX: usize = 256;

impl From<NoRoom> for Problem {
    fn from(no_room: NoRoom) -> Self {
        match no_room {
            NoRoom::Ever | NoRoom::Tenant => Problem::too_many(
                "memory_limit",
                "the tenant's requests and answers take all of its memory",
            ),
            NoRoom::Node => Problem::busy(
                "node_saturated",
                "requests and answers take all of the node's memory for them",
            ),
        }
    }
}

/// A piece of a file; empty at its end. Blocks.
fn piece(app: &App, digest: &Digest, offset: u64) -> Result<Bytes, JobError> {
    let failed = |error: std::io::Error| StoreError::Failed(format!("cannot read a blob: {error}"));
    // Opened for each piece: a client may take its time, and there may be many.
    let mut file = app.jobs.queue.work_file(digest)?;
    file.seek(SeekFrom::Start(offset)).map_err(failed)?;
    let mut bytes = Vec::with_capacity(PIECE_BYTES);
    file.take(PIECE_BYTES as u64).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes.into())
}

/// An answer with a blob in its body. The tenant is charged for a piece of it until it is gone.
pub(super) async fn blob(
    app: &Arc<App>,
    tenant: &Tenant,
    digest: Digest,
) -> Result<Response, Problem> {
    let charge = app.admission(tenant).bytes.charge(FLOOR_BYTES)?;
    let length = blocking(app, move |app| {
        let metadata = app.jobs.queue.work_file(&digest)?.metadata();
        let failed = |error| StoreError::Failed(format!("cannot read a blob: {error}"));
        Ok(metadata.map_err(failed)?.len())
    });
    let length = length.await?;
    let state = (app.clone(), charge, 0);
    let pieces = stream::try_unfold(state, move |(app, charge, offset)| async move {
        if offset == length {
            return Ok::<_, JobError>(None);
        }
        let piece = blocking(&app, move |app| piece(app, &digest, offset)).await?;
        let next = offset + piece.len() as u64;
        match piece.is_empty() {
            true => Err(StoreError::Failed(format!("the blob {digest} is cut off")).into()),
            false => Ok(Some((piece, (app, charge, next)))),
        }
    });
    let mut response = Response::new(Body::from_stream(pieces));
    response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
    Ok(response)
}

/// The output of every shard of a batch that has ended, in the order of the input.
pub(super) fn output(app: Arc<App>, batch: JobId, follower: OwnedSemaphorePermit) -> Body {
    let output =
        Output { batch, line: 1, reading: None, broken: None, is_over: false, _follower: follower };
    let pieces = stream::try_unfold((app, output), move |(app, mut output)| async move {
        loop {
            let (back, filled) = blocking(&app, move |app| {
                let filled = output.fill(app);
                Ok((output, filled))
            })
            .await?;
            let piece = filled.inspect_err(|error| {
                tracing::error!(%batch, %error, "a batch's output cannot be read");
            })?;
            if !piece.is_empty() {
                return Ok::<_, JobError>(Some((piece, (app, back))));
            }
            if back.is_over {
                return Ok(None);
            }
            output = back;
        }
    });
    Body::from_stream(pieces)
}

/// How far a batch's output has been read.
struct Output {
    batch: JobId,
    /// The shard that comes next begins at this line or after it.
    line: u64,
    /// The output of a shard, and where the next piece of it begins.
    reading: Option<(Digest, u64)>,
    /// A shard that was given up, whose output has the lines before that.
    broken: Option<ShardView>,
    is_over: bool,
    _follower: OwnedSemaphorePermit,
}

impl Output {
    /// About a piece more. It may be empty where shards have not ended. Blocks.
    fn fill(&mut self, app: &App) -> Result<Bytes, JobError> {
        let mut filled = Vec::new();
        let mut shards = 0;
        while filled.len() < PIECE_BYTES && shards < SHARDS_MAX && !self.is_over {
            if let Some((digest, offset)) = self.reading.take() {
                let piece = piece(app, &digest, offset)?;
                filled.extend_from_slice(&piece);
                if piece.len() == PIECE_BYTES {
                    self.reading = Some((digest, offset + PIECE_BYTES as u64));
                }
                continue;
            }
            if let Some(shard) = self.broken.take() {
                filled.extend_from_slice(&given_up(&shard));
            }
            shards += 1;
            let Some(shard) = app.jobs.queue.shard_from(self.batch, self.line)? else {
                self.is_over = true;
                break;
            };
            self.line = shard.first_line + shard.lines;
            match shard.output {
                Some(output) if shard.done => {
                    self.reading = Some((output, 0));
                    self.broken = (shard.answered < shard.lines).then_some(shard);
                }
                _ if shard.done => filled.extend_from_slice(&given_up(&shard)),
                _ => {}
            }
        }
        Ok(filled.into())
    }
}

/// What stands for the lines of a shard that was given up before it answered them.
fn given_up(shard: &ShardView) -> Bytes {
    let why = shard.error.as_deref().unwrap_or("its shard was given up");
    let lines = shard.first_line + shard.answered..shard.first_line + shard.lines;
    let lines = lines.map(|line| {
        let message = format!("line {line}: {why}");
        json!({ "line": line, "error": { "code": "failed", "message": message } }).to_string()
            + "\n"
    });
    lines.collect::<String>().into()
}
