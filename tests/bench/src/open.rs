//! Requests that come when they come, whether or not earlier ones are answered: many at one moment, or so many a
//! second. What is timed begins when a request was due, so that a server that falls behind is not spared.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
    task::JoinHandle,
};

use crate::client::Call;

const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// Sends `count` requests at one moment, each on a connection of its own that is open already. Prints percentiles.
pub(crate) fn spike(count: usize, call: &Call) -> anyhow::Result<()> {
    block_on(async {
        let mut streams = Vec::with_capacity(count);
        for _ in 0..count {
            streams.push(open(call).await?);
        }
        let due = Instant::now();
        let asked = streams.into_iter().map(|mut stream| {
            let bytes = call.bytes().to_vec();
            tokio::spawn(async move {
                let status = ask(&mut stream, &bytes).await;
                (status, due.elapsed())
            })
        });
        told(asked.collect()).await
    })
}

/// Sends `rate` requests a second for `seconds` over `connections` kept connections. Prints percentiles.
pub(crate) fn steady(
    rate: u32,
    seconds: u32,
    connections: usize,
    call: &Call,
) -> anyhow::Result<()> {
    ensure!(rate > 0, "the rate is 0");
    block_on(async {
        // Who is free takes the next that is due.
        let (free, mut idle) = mpsc::channel(connections);
        for _ in 0..connections {
            free.send(open(call).await?).await.ok().context("a channel")?;
        }
        let (count, began) = (rate * seconds, Instant::now());
        let mut asked = Vec::with_capacity(count as usize);
        for number in 0..count {
            let due = began + Duration::from_secs(1) * number / rate;
            tokio::time::sleep_until(due.into()).await;
            let mut stream = idle.recv().await.context("a connection")?;
            let (bytes, free) = (call.bytes().to_vec(), free.clone());
            asked.push(tokio::spawn(async move {
                let status = ask(&mut stream, &bytes).await;
                let took = due.elapsed();
                let _ = free.send(stream).await;
                (status, took)
            }));
        }
        told(asked).await
    })
}

fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

async fn open(call: &Call) -> anyhow::Result<TcpStream> {
    let stream = TcpStream::connect(call.address()).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// The status of an answer, which must have a length.
async fn ask(stream: &mut TcpStream, request: &[u8]) -> anyhow::Result<u16> {
    stream.write_all(request).await?;
    let mut answer = Vec::with_capacity(1024);
    loop {
        ensure!(answer.len() < ANSWER_BYTES_MAX, "the answer does not end");
        ensure!(stream.read_buf(&mut answer).await? > 0, "the server hung up");
        let Some(head_end) = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n") else {
            continue;
        };
        let head = String::from_utf8_lossy(&answer[..head_end]).to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
        let length: usize = length.context("an answer without a length")?.trim().parse()?;
        if answer.len() >= head_end + 4 + length {
            return Ok(head.split(' ').nth(1).context("an answer without a status")?.parse()?);
        }
    }
}

/// Failed requests, and p50, p99 and the longest in µs, once all have been answered.
async fn told(asked: Vec<JoinHandle<(anyhow::Result<u16>, Duration)>>) -> anyhow::Result<()> {
    let mut samples = Vec::with_capacity(asked.len());
    let mut failed = 0usize;
    for one in asked {
        let (status, took) = one.await?;
        failed += usize::from(!matches!(status, Ok(200)));
        samples.push(took);
    }
    samples.sort_unstable();
    let at = |part: usize| {
        let index = (samples.len() * part / 100).min(samples.len().saturating_sub(1));
        samples.get(index).map_or(0, Duration::as_micros)
    };
    crate::say(format!("{failed} {} {} {}", at(50), at(99), at(100)))?;
    Ok(())
}
