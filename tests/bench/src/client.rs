//! The smallest HTTP/1.1 client that does: it checks answers and times single requests. Load comes from `wrk`.

use std::{
    io::{Read, Write, stdin},
    net::TcpStream,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};

const CONNECTIONS: usize = 64;
const TIMEOUT: Duration = Duration::from_secs(10);
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// One request, ready to be sent any number of times.
pub(crate) struct Call {
    address: String,
    bytes: Vec<u8>,
}

impl Call {
    /// `rest` is a key and a file with the body, both optional; an empty key is none.
    pub(crate) fn new(url: &str, rest: &[&str]) -> anyhow::Result<Self> {
        let (address, path) = url
            .strip_prefix("http://")
            .and_then(|url| url.split_once('/'))
            .context("the URL must look like http://127.0.0.1:8080/path")?;
        let key = rest.first().filter(|key| !key.is_empty());
        let key = key.map(|key| format!("authorization: Bearer {key}\r\n")).unwrap_or_default();
        let body = rest.get(1).map(std::fs::read).transpose().context("read the body's file")?;
        let (method, length) = match &body {
            Some(body) => ("POST", format!("content-length: {}\r\n", body.len())),
            None => ("GET", String::new()),
        };
        let head = format!("{method} /{path} HTTP/1.1\r\nhost: {address}\r\n{key}{length}\r\n");
        let bytes = [head.into_bytes(), body.unwrap_or_default()].concat();
        Ok(Call { address: address.to_owned(), bytes })
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn connect(&self) -> anyhow::Result<Connection> {
        Connection::open(&self.address, TIMEOUT)
    }
}

/// A keep-alive connection.
pub(crate) struct Connection {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Connection {
    pub(crate) fn open(address: &str, timeout: Duration) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(timeout))?;
        Ok(Connection { stream, read: Vec::new() })
    }

    /// Sends a request and gives back the body of its answer, which must be a 200 with a length.
    fn exchange(&mut self, request: &[u8]) -> anyhow::Result<Vec<u8>> {
        let (head, answer) = self.ask(request)?;
        if !head.starts_with("http/1.1 200 ") {
            bail!("{head}{}", String::from_utf8_lossy(&answer));
        }
        Ok(answer)
    }

    /// Sends a request and gives back the status of its answer, which must have a length.
    pub(crate) fn status(&mut self, request: &[u8]) -> anyhow::Result<u16> {
        let (head, _) = self.ask(request)?;
        let status = head.split(' ').nth(1).context("an answer without a status")?;
        Ok(status.parse()?)
    }

    /// The head of the answer in lower case, and its body.
    fn ask(&mut self, request: &[u8]) -> anyhow::Result<(String, Vec<u8>)> {
        self.stream.write_all(request)?;
        let head_end = loop {
            if let Some(at) = self.read.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                break at + 4;
            }
            ensure!(self.read.len() < HEAD_BYTES_MAX, "the answer's head does not end");
            self.read_more()?;
        };
        let head = String::from_utf8_lossy(&self.read[..head_end]).to_ascii_lowercase();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length:"))
            .with_context(|| format!("an answer without a length: {head}"))?;
        let end = head_end + length.trim().parse::<usize>()?;
        while self.read.len() < end {
            self.read_more()?;
        }
        let answer: Vec<u8> = self.read.drain(..end).skip(head_end).collect();
        Ok((head, answer))
    }

    fn read_more(&mut self) -> anyhow::Result<()> {
        let mut buffer = [0; 16 * 1024];
        let count = self.stream.read(&mut buffer)?;
        ensure!(count > 0, "the server hung up");
        self.read.extend_from_slice(&buffer[..count]);
        Ok(())
    }
}

/// Asks `count` times over many connections; prints the answer if it is one and the same.
pub(crate) fn verify(count: usize, call: &Call) -> anyhow::Result<()> {
    let expected = call.connect()?.exchange(&call.bytes)?;
    let ask = || -> anyhow::Result<()> {
        let mut connection = call.connect()?;
        for _ in 0..count.div_ceil(CONNECTIONS) {
            let answer = connection.exchange(&call.bytes)?;
            ensure!(
                answer == expected,
                "one answer was {:?}, another {:?}",
                String::from_utf8_lossy(&expected),
                String::from_utf8_lossy(&answer)
            );
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..CONNECTIONS).map(|_| scope.spawn(ask)).collect();
        threads.into_iter().try_for_each(|thread| match thread.join() {
            Ok(asked) => asked,
            Err(_) => bail!("a client panicked"),
        })
    })?;
    crate::say(String::from_utf8_lossy(&expected))?;
    Ok(())
}

/// Prints how many µs the request took on a connection that had carried others, to a node that was just started.
pub(crate) fn first(call: &Call) -> anyhow::Result<()> {
    let mut connection = call.connect()?;
    let live = format!("GET /livez HTTP/1.1\r\nhost: {}\r\n\r\n", call.address);
    for _ in 0..3 {
        connection.exchange(live.as_bytes())?;
    }
    let began = Instant::now();
    connection.exchange(&call.bytes)?;
    crate::say(began.elapsed().as_micros())?;
    Ok(())
}

/// Sends `count` requests up to their last byte, so that each holds a sandbox that waits for it, until stdin ends.
pub(crate) fn hold(count: usize, call: &Call) -> anyhow::Result<()> {
    let part = call.bytes.len() - 1;
    let mut connections = Vec::with_capacity(count);
    for _ in 0..count {
        let mut connection = call.connect()?;
        connection.stream.write_all(&call.bytes[..part])?;
        connections.push(connection);
    }
    crate::say("held")?;
    std::io::copy(&mut stdin().lock(), &mut std::io::sink())?;
    for connection in &mut connections {
        connection.exchange(&call.bytes[part..])?;
    }
    Ok(())
}
