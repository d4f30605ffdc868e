//! Running a shard. A worker has it for a while, and gives it back with what came out so far: when the tenant or the
//! node has no room for its next line, or when others should have their turn.

use std::{
    io::Read,
    sync::Arc,
    time::{Duration, Instant},
};

use sandpiper_control::{Before, BlobWriter, CRASHES_MAX, Shard, ShardOutput};
use sandpiper_domain::{Again, JobError, JobId, Lease, StoreError};
use serde_json::json;

use super::{
    blocking,
    line::{Answer, Lines},
    read_part, write,
};
use crate::{
    app::App,
    jobs::{Attempt, bytes_max, now_ms},
};

/// A shard's output is written in pieces of this size.
const PIECE_BYTES: usize = 256 * 1024;
/// How long a worker keeps a shard.
const TURN_MAX: Duration = Duration::from_secs(30);
/// When a line is tried again that was refused, unless the refusal says so.
const REFUSED_MS: u64 = 1_000;
const REFUSED_MS_MAX: u64 = 3_600_000;

/// Runs a shard: its lines, one after the other. `None` where its end is written down already, with its output.
pub(crate) async fn run(app: &Arc<App>, lease: &Lease) -> Option<Attempt> {
    match run_lines(app, lease).await {
        Ok(attempt) => attempt,
        Err(JobError::LeaseLost) => None,
        Err(error) => {
            tracing::error!(job = %lease.job.id, %error, "a shard failed");
            let error = "the shard's lines could not be read, or its output not be written";
            Some(Attempt::Failed { error: error.to_owned(), retry_after_s: None })
        }
    }
}

/// What comes out of a shard.
struct Out {
    writer: BlobWriter,
    /// What is not written yet.
    piece: Vec<u8>,
    answered: u64,
    failed: u64,
    version: u32,
}

async fn run_lines(app: &Arc<App>, lease: &Lease) -> Result<Option<Attempt>, JobError> {
    let began = Instant::now();
    let job = lease.job.id;
    let (shard, lines, writer) = blocking(app, move |app| {
        let shard = app.jobs.queue.shard(job)?;
        let lines = read_part(app, &shard)?;
        let writer = go_on(app, shard.before)?;
        Ok((shard, lines, writer))
    })
    .await?;
    if lease.crashes >= CRASHES_MAX && shard.part.lines > 1 {
        return split(app, lease, &shard, &lines).await.map(|()| None);
    }
    let (answered, failed) = shard.before.map_or((0, 0), |before| (before.answered, before.failed));
    let mut out = Out { writer, piece: Vec::new(), answered, failed, version: 0 };
    let mut each = Lines::new(app, lease, &shard);
    let lines = lines.split(|byte| *byte == b'\n').take(shard.part.lines as usize);
    for (number, line) in (shard.part.first_line..).zip(lines).skip(answered as usize) {
        let text = match each.run(number, line).await {
            Answer::Good(text, version) => {
                out.version = version;
                text
            }
            Answer::Bad(error) => {
                out.failed += 1;
                json!({ "line": number, "error": error }).to_string()
            }
            Answer::Refused { error, retry_after_s } if out.answered == answered => {
                return Ok(Some(Attempt::Refused { error, retry_after_s }));
            }
            Answer::Refused { error, retry_after_s } => {
                let pause_ms = retry_after_s.map_or(REFUSED_MS, |seconds| seconds * 1_000);
                return pause(app, lease, out, pause_ms, error).await.map(|()| None);
            }
        };
        out.answered += 1;
        out.piece.extend_from_slice(text.as_bytes());
        out.piece.push(b'\n');
        if out.piece.len() >= PIECE_BYTES {
            out.writer = write(app, out.writer, std::mem::take(&mut out.piece)).await?;
        }
        if out.answered < shard.part.lines && began.elapsed() >= TURN_MAX {
            let why = "others have their turn".to_owned();
            return pause(app, lease, out, 0, why).await.map(|()| None);
        }
    }
    let version = out.version;
    let output = out.finish(app).await?;
    let queue = &app.jobs.queue;
    queue.finish_shard((job, lease.token), output, version, most(app, lease), now_ms()).await?;
    Ok(None)
}

impl Out {
    async fn finish(self, app: &Arc<App>) -> Result<ShardOutput, JobError> {
        let Out { writer, piece, answered, failed, .. } = self;
        let writer = write(app, writer, piece).await?;
        let bytes = writer.size();
        let blob = blocking(app, move |_| writer.finish()).await?;
        Ok(ShardOutput { blob, bytes, answered, failed })
    }
}

/// The bytes that may be kept of the tenant.
fn most(app: &App, lease: &Lease) -> u64 {
    let snapshot = app.catalog.snapshot();
    snapshot.tenant(&lease.job.tenant).map_or(0, |tenant| bytes_max(&tenant.limits))
}

/// The output as it was when the shard was given back. Blocks.
fn go_on(app: &App, before: Option<Before>) -> Result<BlobWriter, JobError> {
    let mut writer = app.jobs.queue.blob_writer()?;
    let Some(before) = before else { return Ok(writer) };
    let mut file = app.jobs.queue.work_file(&before.output)?;
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let count = file.read(&mut piece).map_err(|error| {
            StoreError::Failed(format!("cannot read a shard's output: {error}"))
        })?;
        match count {
            0 => return Ok(writer),
            count => writer.write(&piece[..count])?,
        }
    }
}

async fn pause(
    app: &Arc<App>,
    lease: &Lease,
    out: Out,
    pause_ms: u64,
    error: String,
) -> Result<(), JobError> {
    let output = out.finish(app).await?;
    let now = now_ms();
    // One that must wait beyond its deadline is given up then, with what it has.
    let not_before_ms = (now + pause_ms.min(REFUSED_MS_MAX)).min(lease.job.deadline_ms);
    let again = Again { not_before_ms, error, counts: false };
    let held = (lease.job.id, lease.token);
    app.jobs.queue.pause_shard(held, output, again, most(app, lease), now).await
}

/// Cuts a shard into its lines: it was there when the node went down, more than once, and one of them may be to blame.
async fn split(app: &Arc<App>, lease: &Lease, shard: &Shard, lines: &[u8]) -> Result<(), JobError> {
    let now = now_ms();
    let mut at = shard.part.offset;
    let parts = lines.split_inclusive(|byte| *byte == b'\n').map(|line| {
        let (from, bytes) = (at, line.len() as u64);
        at += bytes;
        (JobId::at(now, rand::random()), from, bytes)
    });
    let held = (lease.job.id, lease.token);
    tracing::warn!(batch = %shard.batch, "a shard that ended the node more than once is cut into its lines");
    app.jobs.queue.split_shard(held, parts.collect(), now).await
}
