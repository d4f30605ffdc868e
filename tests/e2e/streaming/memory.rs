//! Long bodies: memory stays flat, and whoever stops reading stops the writer.

use std::{
    future::poll_fn,
    io::{ErrorKind, Write},
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use bytes::Bytes;
use h2::SendStream;
use sandpiper_tests::{Connection, Server, Start, Tenant, repository};
use serde_json::Value;
use tempfile::TempDir;

use super::{MIB, PIECE, block_on, h2, h2_request, head, next_h2, tenant, text_h2};

/// Enough that what is kept of a body would show, and little beside a body.
const FLAT_MIB: u64 = 64;
/// Far more than the buffers of two sockets and the windows of HTTP/2.
const BUFFERED_MAX: u64 = 48 * MIB;

/// A function `m` that streams, on a server whose limits let a long body by.
fn streaming() -> (Server, Tenant, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let ours = repository().join("policies");
    std::fs::create_dir(folder.path().join("tiers")).unwrap();
    for file in ["platform.toml", "tiers/free.toml", "tiers/standard.toml", "tiers/dedicated.toml"]
    {
        let text = std::fs::read_to_string(ours.join(file)).unwrap();
        let text = text.replace("request_body_mib = 64", "request_body_mib = 2_048");
        let text = text.replace("cpu_ms = 10_000", "cpu_ms = 200_000");
        std::fs::write(folder.path().join(file), text).unwrap();
    }
    let policies = Some(folder.path().to_owned());
    let server = Server::start_with(Start { policies, ..Start::default() });
    let tenant = tenant(&server);
    (server, tenant, folder)
}

/// A long body that repeats only after a length that no buffer has.
struct Source(Vec<u8>);

impl Source {
    const PERIOD: usize = 1_000_008;

    fn new() -> Self {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        };
        let mut bytes: Vec<u8> = (0..Self::PERIOD / 8).flat_map(|_| random()).collect();
        bytes.extend_from_within(..Self::PERIOD / 2);
        Source(bytes)
    }

    /// The bytes from there on, as many as fit.
    fn at(&self, offset: u64, length: u64) -> &[u8] {
        let start = (offset % Self::PERIOD as u64) as usize;
        &self.0[start..start + length.min(PIECE as u64) as usize]
    }

    /// The guest's sum over so many bytes, which end with a whole word.
    fn sum(&self, length: u64) -> String {
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        let mut offset = 0;
        while offset < length {
            let piece = self.at(offset, length - offset);
            for word in piece.chunks_exact(8) {
                let word = u64::from_le_bytes(word.try_into().unwrap());
                hash = (hash ^ word).wrapping_mul(0x0100_0000_01b3);
            }
            offset += piece.len() as u64;
        }
        format!("{hash:016x}")
    }

    #[track_caller]
    fn check(&self, offset: u64, mut received: &[u8]) -> u64 {
        let mut at = offset;
        while !received.is_empty() {
            let expected = self.at(at, received.len() as u64);
            assert!(received.starts_with(expected), "other bytes came back after byte {at}");
            received = &received[expected.len()..];
            at += expected.len() as u64;
        }
        at
    }
}

/// Looks at the server's memory for as long as it lives.
struct Watch {
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<u64>,
    idle_mib: u64,
}

impl Watch {
    fn over(server: &Server) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let idle_mib = server.memory_mib();
        let (pid, is_over) = (server.pid(), stop.clone());
        let thread = thread::spawn(move || {
            let mut most = 0;
            while !is_over.load(Relaxed) {
                most = most.max(sandpiper_tests::memory_mib(pid));
                thread::sleep(Duration::from_millis(50));
            }
            most
        });
        Watch { stop, thread, idle_mib }
    }

    #[track_caller]
    fn was_flat(self) {
        self.stop.store(true, Relaxed);
        let most = self.thread.join().unwrap();
        let idle = self.idle_mib;
        assert!(most <= idle + FLAT_MIB, "the memory grew from {idle} MiB to {most} MiB");
    }
}

/// Sends a body over HTTP/1.1, in chunks if no head has told its length.
fn upload(mut stream: TcpStream, source: &Source, length: u64, in_chunks: bool) {
    let mut offset = 0;
    while offset < length {
        let piece = source.at(offset, length - offset);
        if in_chunks {
            write!(stream, "{:x}\r\n", piece.len()).unwrap();
        }
        stream.write_all(piece).unwrap();
        if in_chunks {
            stream.write_all(b"\r\n").unwrap();
        }
        offset += piece.len() as u64;
    }
    if in_chunks {
        stream.write_all(b"0\r\n\r\n").unwrap();
    }
}

/// Reads a chunked body that must be the source's; gives its length.
fn read_back(connection: &mut Connection, source: &Source) -> u64 {
    let mut offset = 0;
    while let Some(chunk) = connection.chunk() {
        offset = source.check(offset, &chunk);
    }
    offset
}

/// `/drain` and `/pipe` over HTTP/1.1.
fn pass_h1(server: &Server, tenant: &Tenant, source: &Source, path: &str, length: u64) {
    let in_chunks = path == "/pipe";
    let mut connection = server.connect();
    let framing = match in_chunks {
        true => "transfer-encoding: chunked".to_owned(),
        false => format!("content-length: {length}"),
    };
    connection.send(format!("{}{framing}\r\n\r\n", head(tenant, path)));
    let writer = connection.writer();
    thread::scope(|scope| {
        scope.spawn(|| upload(writer, source, length, in_chunks));
        if in_chunks {
            connection.head().expect(200);
            assert_eq!(read_back(&mut connection, source), length);
        } else {
            was_drained(&connection.answer().expect(200).json(), source, length);
        }
    });
}

#[track_caller]
fn was_drained(said: &Value, source: &Source, length: u64) {
    assert_eq!(said["bytes"], length, "{said}");
    assert_eq!(said["sum"], source.sum(length), "{said}");
}

/// Sends up to so much, and says how much was taken before `patience` with a full window ended.
async fn send_h2(
    send: &mut SendStream<Bytes>,
    source: &Source,
    length: u64,
    patience: Duration,
) -> u64 {
    let mut offset = 0;
    while offset < length {
        send.reserve_capacity(PIECE);
        let capacity = poll_fn(|context| send.poll_capacity(context));
        let Ok(capacity) = tokio::time::timeout(patience, capacity).await else { break };
        let Some(Ok(capacity)) = capacity else { break };
        let piece = source.at(offset, (length - offset).min(capacity as u64));
        send.send_data(Bytes::copy_from_slice(piece), false).unwrap();
        offset += piece.len() as u64;
    }
    offset
}

const LONG: Duration = Duration::from_secs(120);

/// `/drain` and `/pipe` over HTTP/2.
async fn pass_h2(server: &Server, tenant: &Tenant, source: &Source, path: &str, length: u64) {
    let mut requests = h2(server).await;
    let (response, mut send) = requests.send_request(h2_request(tenant, path), false).unwrap();
    let write = async {
        assert_eq!(send_h2(&mut send, source, length, LONG).await, length);
        send.send_data(Bytes::new(), true).unwrap();
    };
    let read = async {
        let response = response.await.unwrap();
        assert_eq!(response.status(), 200);
        if path == "/drain" {
            let (text, _) = text_h2(response).await;
            return was_drained(&serde_json::from_slice(&text).unwrap(), source, length);
        }
        let mut body = response.into_body();
        let mut offset = 0;
        while let Some(data) = next_h2(&mut body).await {
            offset = source.check(offset, &data);
        }
        assert_eq!(offset, length);
    };
    tokio::join!(write, read);
}

#[test]
fn a_gigabyte_passes_with_flat_memory() {
    let (server, tenant, _policies) = streaming();
    let source = Source::new();
    // What the first request leaves behind for those that follow is no growth.
    pass_h1(&server, &tenant, &source, "/pipe", 8 * MIB);
    let watch = Watch::over(&server);
    pass_h1(&server, &tenant, &source, "/drain", 1024 * MIB);
    pass_h1(&server, &tenant, &source, "/pipe", 256 * MIB);
    watch.was_flat();
}

#[test]
fn a_long_body_passes_over_http_2_with_flat_memory() {
    let (server, tenant, _policies) = streaming();
    let source = Source::new();
    block_on(async {
        pass_h2(&server, &tenant, &source, "/pipe", 8 * MIB).await;
        let watch = Watch::over(&server);
        pass_h2(&server, &tenant, &source, "/drain", 256 * MIB).await;
        pass_h2(&server, &tenant, &source, "/pipe", 256 * MIB).await;
        watch.was_flat();
    });
}

/// Writes until nothing is taken for a second, and says how much was.
fn write_until_full(stream: &mut TcpStream, source: &Source, length: u64) -> u64 {
    stream.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
    let mut offset = 0;
    while offset < length {
        match stream.write(source.at(offset, length - offset)) {
            Ok(taken) => offset += taken as u64,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                break;
            }
            Err(error) => panic!("the server ended the connection: {error}"),
        }
    }
    offset
}

#[test]
fn a_reader_that_stops_stops_the_writer() {
    let (server, tenant, _policies) = streaming();
    let source = Source::new();
    let length = 256 * MIB;
    let framing = format!("content-length: {length}\r\n\r\n");
    // A function that takes one piece and sleeps.
    let mut connection = server.connect();
    connection.send(head(&tenant, "/slow-read?ms=200000") + &framing);
    let taken = write_until_full(&mut connection.writer(), &source, length);
    assert!((1..=BUFFERED_MAX).contains(&taken), "{taken}");
    // A client that does not read: the function can no longer write, so it no longer reads either.
    let watch = Watch::over(&server);
    let mut connection = server.connect();
    connection.send(head(&tenant, "/pipe") + &framing);
    connection.head().expect(200);
    let mut writer = connection.writer();
    let taken = write_until_full(&mut writer, &source, length);
    assert!((1..=BUFFERED_MAX).contains(&taken), "{taken}");
    watch.was_flat();
    // Nothing is lost by the pause.
    thread::scope(|scope| {
        scope.spawn(|| {
            writer.set_write_timeout(None).unwrap();
            let mut offset = taken;
            while offset < length {
                offset += writer.write(source.at(offset, length - offset)).unwrap() as u64;
            }
        });
        assert_eq!(read_back(&mut connection, &source), length);
    });
}

#[test]
fn a_reader_that_stops_stops_the_writer_over_http_2() {
    let (server, tenant, _policies) = streaming();
    let source = Source::new();
    block_on(async {
        let mut requests = h2(&server).await;
        let mut stalled = Vec::new();
        for _ in 0..8 {
            let request = h2_request(&tenant, "/slow-read?ms=200000");
            let (response, mut send) = requests.send_request(request, false).unwrap();
            let taken = send_h2(&mut send, &source, 64 * MIB, Duration::from_secs(1)).await;
            assert!((1..=MIB).contains(&taken), "{taken}");
            stalled.push((response, send));
        }
        // Another stream of the same connection goes on, and its body comes.
        let (response, mut send) =
            requests.send_request(h2_request(&tenant, "/drain"), false).unwrap();
        let length = 8 * MIB;
        assert_eq!(send_h2(&mut send, &source, length, LONG).await, length);
        send.send_data(Bytes::new(), true).unwrap();
        let (text, _) = text_h2(response.await.unwrap()).await;
        was_drained(&serde_json::from_slice(&text).unwrap(), &source, length);
    });
}
