//! Draining, signals and the replacement of a running server.

use std::{
    io::{Read, Write},
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use sandpiper_tests::{Connection, Server, Start, Tenant, guest, until};

fn misbehave(server: &Server) -> Tenant {
    let tenant = server.tenant("acme", "dedicated");
    tenant.put_function("m", &guest("misbehave"), "auth = \"public\"").expect(201);
    tenant
}

/// A request that runs: its head is here, its body comes in so many pieces.
fn begun(server: &Server, chunks: u32, ms: u32) -> Connection {
    let mut connection = server.connect();
    let path = format!("/fn/acme/m/stream?chunks={chunks}&ms={ms}");
    connection.send(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n"));
    connection.head().expect(200);
    connection
}

#[track_caller]
fn comes_to_its_end(mut connection: Connection, chunks: u32) {
    let mut body = Vec::new();
    while let Some(chunk) = connection.chunk() {
        body.extend_from_slice(&chunk);
    }
    let text = String::from_utf8(body).unwrap();
    assert!(text.ends_with(&format!("chunk {}\n", chunks - 1)), "{text:?}");
}

fn ready_status(server: &Server) -> Option<u16> {
    Some(server.client().call("GET", "/readyz").try_send().ok()?.status)
}

#[test]
fn sigterm_makes_it_not_ready_then_drains() {
    let mut server = Server::with_settings("drain_delay_ms = 3000");
    let tenant = misbehave(&server);
    let running = begun(&server, 30, 200);
    server.signal(libc::SIGTERM);
    until("it is not ready", || (ready_status(&server) == Some(503)).then_some(()));
    // Whoever has not noticed yet is served, over a new connection too.
    assert_eq!(
        Connection::answer(server.connect().send("GET /fn/acme/m/ok HTTP/1.1\r\nhost: x\r\n\r\n"))
            .status,
        200
    );
    tenant
        .client
        .put_json("/api/v1/functions/m/aliases/next", &serde_json::json!({ "version": 1 }))
        .expect(200);
    server.client().get("/v2/health/ready").expect(503);
    until("it listens no more", || TcpStream::connect(server.address()).err());
    comes_to_its_end(running, 30);
    let ended = server.ends();
    assert!(ended.success(), "{ended}\n{}", server.log());
    assert!(!server.log().contains("still running"), "{}", server.log());
}

#[test]
fn idle_connections_do_not_hold_the_end_up() {
    let mut server = Server::start();
    misbehave(&server);
    let mut idle = server.connect();
    idle.send("GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").answer().expect(200);
    let mut silent = server.connect();
    let grpc = server.grpc();
    let began = Instant::now();
    server.signal(libc::SIGINT);
    let ended = server.ends();
    assert!(ended.success(), "{ended}\n{}", server.log());
    // The drain's limit is 30 s.
    assert!(began.elapsed() < Duration::from_secs(25), "{}", server.log());
    assert!(idle.rest().is_empty() && silent.rest().is_empty());
    drop(grpc);
}

#[test]
fn what_a_guest_does_after_its_answer_is_billed_in_the_end() {
    let mut server = Server::start();
    let tenant = misbehave(&server);
    assert_eq!(tenant.invoke("m", "/work-on?ms=1500").expect(200).text(), "done");
    server.signal(libc::SIGTERM);
    let ended = server.ends();
    assert!(ended.success(), "{ended}\n{}", server.log());
    assert!(!server.log().contains("still running"), "{}", server.log());
    server.start_again();
    let used = tenant.client.get("/api/v1/usage").expect(200).json();
    assert_eq!(used["total"]["requests"], 1, "{used}");
    assert!(used["total"]["memory_mib_ms"].as_u64().unwrap() >= 1_000, "{used}");
}

#[test]
fn the_drain_has_a_limit() {
    let mut server = Server::with_settings("drain_ms = 300");
    misbehave(&server);
    let mut running = begun(&server, 1000, 200);
    server.signal(libc::SIGTERM);
    let ended = server.ends();
    assert!(ended.success(), "{ended}\n{}", server.log());
    let log = server.log();
    assert!(log.contains("still running at the end of the drain"), "{log}");
    assert!(!String::from_utf8_lossy(&running.rest()).contains("chunk 999"));
    // The data is in good order.
    server.start_again();
    server.client().get("/fn/acme/m/ok").expect(200);
}

#[test]
fn a_second_signal_ends_it_at_once() {
    for settings in ["drain_ms = 600000", "drain_delay_ms = 600000"] {
        let mut server = Server::with_settings(settings);
        misbehave(&server);
        let running = begun(&server, 1000, 200);
        server.signal(libc::SIGTERM);
        until("it is leaving", || server.log().contains("leaving").then_some(()));
        server.signal(libc::SIGINT);
        assert_eq!(server.ends().code(), Some(130), "{}", server.log());
        drop(running);
        server.start_again();
        server.client().get("/fn/acme/m/ok").expect(200);
    }
}

/// One request over a connection of its own; gives the status, or how it failed.
fn once(address: &str) -> Result<u16, String> {
    let say = |what: &'static str| move |error: std::io::Error| format!("{what}: {error}");
    let mut stream = TcpStream::connect(address).map_err(say("connect"))?;
    stream.set_read_timeout(Some(Duration::from_secs(120))).map_err(say("set up"))?;
    let request = b"GET /fn/acme/m/ok HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    stream.write_all(request).map_err(say("write"))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(say("read"))?;
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    match answer.ends_with("ok") {
        true => status.ok_or(answer),
        false => Err(format!("cut off: {answer:?}")),
    }
}

/// Asks over and over with a new connection each time, from several threads.
struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU32>,
    threads: Vec<thread::JoinHandle<Vec<String>>>,
}

impl Load {
    fn on(server: &Server) -> Self {
        let (stop, answered) = (Arc::<AtomicBool>::default(), Arc::<AtomicU32>::default());
        let client = |_| {
            let (address, stop, answered) = (server.address(), stop.clone(), answered.clone());
            thread::spawn(move || {
                let mut failures = Vec::new();
                while !stop.load(Relaxed) {
                    match once(&address) {
                        Ok(200) => _ = answered.fetch_add(1, Relaxed),
                        other => failures.push(format!("{other:?}")),
                    }
                }
                failures
            })
        };
        let threads = (0..8).map(client).collect();
        Load { stop, answered, threads }
    }

    /// Waits until so many more were answered.
    fn goes_on(&self, more: u32) {
        let before = self.answered.load(Relaxed);
        until("more is answered", || (self.answered.load(Relaxed) > before + more).then_some(()));
    }

    #[track_caller]
    fn lost_nothing(self, log: &str) {
        self.stop.store(true, Relaxed);
        let failures = self.threads.into_iter().flat_map(|thread| thread.join().unwrap());
        let failures: Vec<String> = failures.collect();
        assert!(failures.is_empty(), "{failures:#?}\n{log}");
    }
}

#[test]
fn a_new_process_takes_over_without_a_refused_connection() {
    let mut server = Server::start_with(Start {
        arguments: vec!["--metrics-listen".to_owned(), "127.0.0.1:0".to_owned()],
        ..Start::default()
    });
    let tenant = misbehave(&server);
    let load = Load::on(&server);
    let first = server.pid();
    let mut pids = vec![first];
    for round in 0..5 {
        load.goes_on(20);
        let running = begun(&server, 10, 100);
        let pid = server.is_taken_over();
        assert!(!pids.contains(&pid), "{pid} in {pids:?}");
        pids.push(pid);
        load.goes_on(20);
        // What had begun in the old process ends there.
        comes_to_its_end(running, 10);
        // The new one takes changes, and has those of before.
        let path = format!("/api/v1/functions/m/aliases/round{round}");
        let fresh = server.client().with_key(&tenant.key);
        fresh.put_json(&path, &serde_json::json!({ "version": 1 })).expect(200);
        let shown = fresh.get("/api/v1/functions/m").expect(200).text();
        assert!((0..=round).all(|n| shown.contains(&format!("round{n}"))), "{shown}");
    }
    load.lost_nothing(&server.all_logs());
    // The first process is done once its requests are.
    let ended = server.ends();
    assert!(ended.success(), "{ended}\n{}", server.log());
    assert_ne!(first, server.pid());
}

#[test]
fn a_successor_that_cannot_start_changes_nothing() {
    let mut server = Server::with_settings("access_log = false");
    let tenant = misbehave(&server);
    let load = Load::on(&server);
    let settings = server.data().with_file_name("settings.toml");
    let good = std::fs::read_to_string(&settings).unwrap();
    std::fs::write(&settings, "no_such_setting = 1").unwrap();
    let (pid, before) = (server.pid(), server.log().matches("this one goes on").count());
    server.signal(libc::SIGUSR2);
    until("it is told", || {
        (server.log().matches("this one goes on").count() > before).then_some(())
    });
    load.goes_on(20);
    // It takes changes as before.
    let alias = serde_json::json!({ "version": 1 });
    tenant.client.put_json("/api/v1/functions/m/aliases/next", &alias).expect(200);
    server.still_runs();
    // When the file is right again, so is the next one.
    std::fs::write(&settings, good).unwrap();
    assert_ne!(server.is_taken_over(), pid);
    load.goes_on(20);
    load.lost_nothing(&server.all_logs());
}

#[test]
fn a_successor_that_fails_with_the_data_gives_it_back() {
    let mut server = Server::start();
    let tenant = misbehave(&server);
    let load = Load::on(&server);
    // The secret is read when the folder is opened, which is the last thing that a new process does.
    let secret = server.data().join("cache.key");
    let good = std::fs::read(&secret).unwrap();
    std::fs::write(&secret, "short").unwrap();
    server.signal(libc::SIGUSR2);
    until("it is told", || server.log().contains("this one goes on").then_some(()));
    load.goes_on(20);
    let alias = serde_json::json!({ "version": 1 });
    tenant.client.put_json("/api/v1/functions/m/aliases/next", &alias).expect(200);
    // Nobody else can have the folder.
    let (_, said) = server.second_start();
    assert!(said.contains("another sandpiper uses this data folder"), "{said}");
    std::fs::write(&secret, good).unwrap();
    server.is_taken_over();
    load.goes_on(20);
    let shown = server.client().with_key(&tenant.key).get("/api/v1/functions/m").expect(200);
    assert!(shown.text().contains("next"), "{shown:?}");
    load.lost_nothing(&server.all_logs());
}
