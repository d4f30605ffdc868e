//! Thousands of functions on one node: what they take while nobody asks for them, and how long the first request to one
//! takes whose code has left memory.
//!
//! Every function is the same component with a custom section of its own, so that each has a digest, a cache entry and
//! code of its own. The server must run with a short `code_idle_ms`, such as 1000.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::client::Connection;

const BOUNDARY: &str = "sandpiper-bench-boundary-7d1f";
/// Compiling one function takes far less.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Requests that are timed.
const ASKED: usize = 2_000;
/// Code has to leave memory, and memory has to go back.
const SETTLE: Duration = Duration::from_secs(10);

/// Deploys `count` functions with `key` (a tenant's, with all scopes) to the server at `address`, whose process is
/// `pid`; then asks for some of them in random order. Prints memory and latencies.
pub(crate) fn measure(
    count: usize,
    address: &str,
    tenant: &str,
    key: &str,
    component: &str,
    pid: u32,
) -> anyhow::Result<()> {
    let component = std::fs::read(component).context("read the component")?;
    let before = resident_kib(pid)?;
    let began = Instant::now();
    let mut connection = Connection::open(address, TIMEOUT)?;
    for number in 0..count {
        let put = upload(address, key, &name(number), &distinct(&component, number)?);
        let status = connection.status(&put)?;
        ensure!((200..300).contains(&status), "the upload of function {number} answered {status}");
    }
    let deployed = began.elapsed();
    std::thread::sleep(SETTLE);
    let idle = resident_kib(pid)?;
    crate::say(format!(
        "{count} functions deployed in {:.0} s; resident {:.1} MiB before, {:.1} MiB with all of them idle",
        deployed.as_secs_f64(),
        before as f64 / 1024.0,
        idle as f64 / 1024.0,
    ))?;
    // The server has closed the one that said nothing meanwhile.
    let mut connection = Connection::open(address, TIMEOUT)?;
    let mut order = Order(0x9e37_79b9_7f4a_7c15);
    let mut cold = Vec::with_capacity(ASKED);
    let mut warm = Vec::with_capacity(ASKED);
    for _ in 0..ASKED.min(count) {
        let ask = call(address, tenant, key, &name(order.below(count)));
        cold.push(timed(&mut connection, &ask)?);
        warm.push(timed(&mut connection, &ask)?);
    }
    say_percentiles("from disk", &mut cold)?;
    say_percentiles("again", &mut warm)?;
    std::thread::sleep(SETTLE);
    let after = resident_kib(pid)?;
    crate::say(format!("resident {:.1} MiB when all are idle again", after as f64 / 1024.0))?;
    Ok(())
}

fn name(number: usize) -> String {
    format!("f{number}")
}

/// The component with one more custom section, which changes nothing but its digest.
fn distinct(component: &[u8], number: usize) -> anyhow::Result<Vec<u8>> {
    let text = format!("{number:08}");
    let section_name = b"bench";
    let length = 1 + section_name.len() + text.len();
    let mut bytes = component.to_vec();
    bytes.push(0);
    bytes.push(u8::try_from(length)?);
    bytes.push(u8::try_from(section_name.len())?);
    bytes.extend_from_slice(section_name);
    bytes.extend_from_slice(text.as_bytes());
    Ok(bytes)
}

fn upload(address: &str, key: &str, name: &str, component: &[u8]) -> Vec<u8> {
    let part = |part: &str| {
        format!(
            "--{BOUNDARY}\r\ncontent-disposition: form-data; name=\"{part}\"; filename=\"{part}\"\r\n\r\n"
        )
    };
    let mut body = part("component").into_bytes();
    body.extend_from_slice(component);
    body.extend_from_slice(
        format!("\r\n{}name = \"{name}\"\r\n--{BOUNDARY}--\r\n", part("manifest")).as_bytes(),
    );
    let head = format!(
        "PUT /api/v1/functions/{name} HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {key}\r\n\
         content-type: multipart/form-data; boundary={BOUNDARY}\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    [head.into_bytes(), body].concat()
}

fn call(address: &str, tenant: &str, key: &str, name: &str) -> Vec<u8> {
    format!("GET /fn/{tenant}/{name}/ HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {key}\r\n\r\n").into_bytes()
}

fn timed(connection: &mut Connection, request: &[u8]) -> anyhow::Result<Duration> {
    let began = Instant::now();
    let status = connection.status(request)?;
    ensure!(status == 200, "a function answered {status}");
    Ok(began.elapsed())
}

fn say_percentiles(what: &str, samples: &mut [Duration]) -> anyhow::Result<()> {
    samples.sort_unstable();
    ensure!(!samples.is_empty(), "nothing was asked");
    let at = |part: usize| {
        samples[(samples.len() * part / 1_000).min(samples.len() - 1)].as_secs_f64() * 1e3
    };
    crate::say(format!(
        "{what}: p50 {:.2} ms, p99 {:.2} ms, p99.9 {:.2} ms over {} requests",
        at(500),
        at(990),
        at(999),
        samples.len()
    ))?;
    Ok(())
}

/// `VmRSS` of a process.
fn resident_kib(pid: u32) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    line.trim().trim_end_matches(" kB").parse().context("VmRSS is no number")
}

/// xorshift64*: the same order in every run.
struct Order(u64);

impl Order {
    fn below(&mut self, count: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % count as u64) as usize
    }
}
