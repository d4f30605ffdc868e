//! What runs while the server ends or another process takes over: jobs, uploads, webhooks; and signals in between.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
    os::unix::{fs::PermissionsExt, net::UnixDatagram},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use sandpiper_tests::{Connection, Server, Start, Tenant, binary, guest, model, until};
use serde_json::{Value, json};

const FUNCTION: &str = "misbehave";
const ONCE: (&str, &str) = ("x-sandpiper-attempts", "1");

fn started(settings: &str) -> (Server, Tenant) {
    started_with(Start { settings: settings.to_owned(), ..Start::default() })
}

fn started_with(start: Start) -> (Server, Tenant) {
    let server = Server::start_with(start);
    let tenant = server.tenant("acme", "dedicated");
    tenant.put_function(FUNCTION, &guest(FUNCTION), "auth = \"public\"").expect(201);
    (server, tenant)
}

/// A job with one attempt.
fn enqueue(tenant: &Tenant, path: &str) -> String {
    let call = tenant.call("POST", FUNCTION, path).header("prefer", "respond-async");
    // A connection that is kept may end just as it is used again.
    let call = call.header("connection", "close").header(ONCE.0, ONCE.1);
    let accepted = call.body("x").send().expect(202).json();
    accepted["id"].as_str().unwrap().to_owned()
}

fn show(tenant: &Tenant, id: &str) -> Value {
    tenant.client.get(&format!("/api/v1/jobs/{id}")).expect(200).json()
}

fn is(tenant: &Tenant, id: &str, state: &str) -> Value {
    until(&format!("the job is {state}"), || {
        let job = show(tenant, id);
        assert!(job["state"] != "dead", "{job}");
        (job["state"] == state).then_some(job)
    })
}

#[track_caller]
fn was_done_once(server: &Server, tenant: &Tenant, id: &str) {
    let done = is(tenant, id, "done");
    assert_eq!(done["attempts"], 1, "{done}");
    let begins = format!("job begins job={id}");
    assert_eq!(server.all_logs().matches(&begins).count(), 1, "{}", server.all_logs());
}

/// A request that runs: its head is here, its body comes in so many pieces.
fn begun(server: &Server, chunks: u32, ms: u32) -> Connection {
    let mut connection = server.connect();
    let path = format!("/fn/acme/{FUNCTION}/stream?chunks={chunks}&ms={ms}");
    connection.send(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n"));
    connection.head().expect(200);
    connection
}

#[test]
fn jobs_end_in_the_process_that_began_them() {
    let (mut server, tenant) = started("access_log = true");
    let old: Vec<String> = (0..4).map(|_| enqueue(&tenant, "/job?ms=2000")).collect();
    old.iter().for_each(|id| _ = is(&tenant, id, "running"));
    let request = begun(&server, 50, 100);
    // Short ones come all the time.
    let stop = AtomicBool::new(false);
    let short = thread::scope(|scope| {
        let short = scope.spawn(|| {
            let mut ids = Vec::new();
            while !stop.load(Relaxed) {
                ids.push(enqueue(&tenant, "/job?ms=20"));
            }
            ids
        });
        server.is_taken_over();
        stop.store(true, Relaxed);
        short.join().unwrap()
    });
    // The old process drains for longer than this one needs to begin, and for less than it takes.
    let new = enqueue(&tenant, "/job?ms=8000");
    is(&tenant, &new, "running");
    drop(request);
    let ended = server.ends();
    assert!(ended.success(), "{ended}\n{}", server.log());
    assert_eq!(show(&tenant, &new)["state"], "running");
    for id in old.iter().chain(&short).chain([&new]) {
        was_done_once(&server, &tenant, id);
    }
}

#[test]
fn sigterm_waits_for_a_running_job() {
    let (mut server, tenant) = started("access_log = true");
    let id = enqueue(&tenant, "/job?ms=2000");
    is(&tenant, &id, "running");
    server.signal(libc::SIGTERM);
    let ended = server.ends();
    assert!(ended.success(), "{ended}\n{}", server.log());
    server.start_again();
    was_done_once(&server, &tenant, &id);
}

#[test]
fn a_job_that_outlasts_the_drain_has_lost_nothing() {
    let (mut server, tenant) = started("drain_ms = 300");
    let id = enqueue(&tenant, "/job?ms=4000");
    for _ in 0..2 {
        is(&tenant, &id, "running");
        let ended = server.stop();
        assert!(ended.success(), "{ended}\n{}", server.log());
        server.start_again();
    }
    assert_eq!(is(&tenant, &id, "done")["attempts"], 1);
}

#[test]
fn jobs_that_have_just_begun_are_not_left_behind() {
    let (mut server, tenant) = started("drain_ms = 1");
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.extend((0..40).map(|number| enqueue(&tenant, &format!("/job?ms={number}"))));
        let ended = server.stop();
        assert!(ended.success(), "{ended}\n{}", server.log());
        let log = server.log();
        assert!(!log.contains("drain what=\"jobs left\""), "{log}");
        server.start_again();
        let taken_back = server.log().contains("were running when the server ended");
        assert!(!taken_back, "{}", server.all_logs());
    }
    for id in &ids {
        assert_eq!(is(&tenant, id, "done")["attempts"], 1);
    }
}

#[test]
fn an_upload_under_way_is_taken_by_the_process_it_came_to() {
    let (mut server, tenant) = started("");
    let lines: String = (0..20_000).map(|n| format!("{{\"n\": {n}}}\n")).collect();
    let mut connection = server.connect();
    connection.send(format!(
        "POST /api/v1/functions/{FUNCTION}/batches?path=/ok HTTP/1.1\r\nhost: x\r\n\
         authorization: Bearer {}\r\ncontent-type: application/x-ndjson\r\ncontent-length: {}\r\n\r\n",
        tenant.key,
        lines.len()
    ));
    let (first, second) = lines.as_bytes().split_at(lines.len() / 2);
    connection.send(first);
    let work = server.data().join("work");
    let is_written = || fs::read_dir(&work).unwrap().count() > 0;
    until("it is being written", || is_written().then_some(()));
    server.is_taken_over();
    let batch = connection.send(second).answer().expect(202).json();
    drop(connection);
    assert_eq!(batch["lines"], 20_000);
    let path = format!("/api/v1/batches/{}", batch["id"].as_str().unwrap());
    let begins = || {
        let batch = tenant.client.get(&path).expect(200).json();
        batch["done_lines"].as_u64().is_some_and(|lines| lines > 0).then_some(batch)
    };
    assert_eq!(until("its lines are run", begins)["failed_lines"], 0);
}

/// Takes one call of a webhook and gives what is left of it to do.
fn called(listener: &TcpListener) -> impl FnOnce() {
    let (stream, _) = listener.accept().unwrap();
    let mut stream = BufReader::new(stream);
    let (mut line, mut length) = (String::new(), 0);
    while line != "\r\n" {
        line.clear();
        stream.read_line(&mut line).unwrap();
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length: ") {
            length = value.trim().parse().unwrap();
        }
    }
    stream.read_exact(&mut vec![0; length]).unwrap();
    move || {
        let answer = "HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n";
        stream.get_mut().write_all(answer.as_bytes()).unwrap();
    }
}

#[test]
fn a_webhook_that_is_being_called_is_not_called_again() {
    let (mut server, tenant) = started("webhook_private = [\"127.0.0.1\"]");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let call = tenant.call("POST", FUNCTION, "/job").header("prefer", "respond-async");
    let accepted = call.header("x-sandpiper-webhook", &url).body("x").send().expect(202).json();
    let id = accepted["id"].as_str().unwrap();
    let answer = called(&listener);
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_secs(1));
            answer();
        });
        server.is_taken_over();
    });
    assert_eq!(show(&tenant, id)["webhook"]["state"], "delivered");
    listener.set_nonblocking(true).unwrap();
    thread::sleep(Duration::from_secs(2));
    assert!(listener.accept().is_err(), "it was called twice");
}

#[test]
fn a_second_signal_ends_a_long_inference_at_once() {
    let (mut server, tenant) = started("inference_threads = 1\ndrain_ms = 600000");
    tenant.put_model("slow", &model("slow.onnx")).expect(201);
    let mut connection = server.connect();
    let path = format!("/fn/acme/{FUNCTION}/slow-infer?model=slow&input=x&shape=1,1&times=1000");
    connection.send(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n"));
    let busy = || server.metrics().sum("sandpiper_sandboxes", &[]) >= 1.0;
    until("it runs", || busy().then_some(()));
    server.signal(libc::SIGTERM);
    until("it is leaving", || server.log().contains("leaving").then_some(()));
    server.signal(libc::SIGTERM);
    let began = Instant::now();
    assert_eq!(server.ends().code(), Some(130), "{}", server.log());
    assert!(began.elapsed() < Duration::from_secs(30));
}

/// A handover that is held up: the new process waits for its secret, which comes through a pipe.
struct HeldUp {
    secret: PathBuf,
    bytes: Vec<u8>,
}

impl HeldUp {
    /// Begins it.
    fn handover(server: &Server) -> Self {
        let secret = server.data().join("cache.key");
        let bytes = fs::read(&secret).unwrap();
        fs::remove_file(&secret).unwrap();
        let path = std::ffi::CString::new(secret.to_str().unwrap()).unwrap();
        // SAFETY: the path is a string that ends with a zero, and outlives the call.
        #[allow(unsafe_code)]
        let made = unsafe { libc::mkfifo(path.as_ptr(), 0o600) };
        assert_eq!(made, 0, "{}", std::io::Error::last_os_error());
        server.signal(libc::SIGUSR2);
        until("the folder is given away", || {
            server.log().contains("ended what=\"catalog\"").then_some(())
        });
        HeldUp { secret, bytes }
    }

    fn goes_on(&self) {
        fs::write(&self.secret, &self.bytes).unwrap();
    }

    /// The secret is a file again.
    fn ends(self) {
        fs::remove_file(&self.secret).unwrap();
        fs::write(&self.secret, &self.bytes).unwrap();
        fs::set_permissions(&self.secret, fs::Permissions::from_mode(0o600)).unwrap();
    }
}

/// The process that this one has started.
fn child_of(pid: u32) -> u32 {
    let parent = format!("PPid:\t{pid}\n");
    let status = |pid: &str| fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    until("there is a child", || {
        let processes = fs::read_dir("/proc").unwrap().flatten();
        let mut pids = processes.filter_map(|entry| entry.file_name().into_string().ok());
        pids.find(|pid| status(pid).contains(&parent)).and_then(|pid| pid.parse().ok())
    })
}

fn is_gone(pid: u32) {
    let status = || fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    until("the process is gone", || {
        let status = status();
        (status.is_empty() || status.contains("State:\tZ")).then_some(())
    });
}

#[test]
fn told_to_end_within_a_handover_both_processes_end() {
    let (mut server, tenant) = started("");
    let handover = HeldUp::handover(&server);
    let successor = child_of(server.pid());
    server.signal(libc::SIGTERM);
    handover.goes_on();
    let ended = server.ends();
    assert!(ended.success(), "{ended}\n{}", server.log());
    is_gone(successor);
    handover.ends();
    server.start_again();
    tenant.invoke(FUNCTION, "/ok").expect(200);
}

#[test]
fn told_twice_within_a_handover_both_end_at_once() {
    let (mut server, tenant) = started("drain_ms = 600000");
    let _request = begun(&server, 1000, 200);
    let handover = HeldUp::handover(&server);
    let successor = child_of(server.pid());
    server.signal(libc::SIGTERM);
    // Signals of one kind that come together may be one.
    thread::sleep(Duration::from_millis(500));
    server.signal(libc::SIGINT);
    assert_eq!(server.ends().code(), Some(130), "{}", server.log());
    is_gone(successor);
    handover.ends();
    server.start_again();
    tenant.invoke(FUNCTION, "/ok").expect(200);
}

/// Has somebody else lock the data folder in the moment in which the new process dies, for as long as the value lives.
fn lost(server: &Server) -> fs::File {
    let handover = HeldUp::handover(server);
    let successor = child_of(server.pid());
    // It opens this when it has locked the folder.
    let has_opened = |name: &str| {
        let files = fs::read_dir(format!("/proc/{successor}/fd")).unwrap().flatten();
        let mut links = files.filter_map(|file| fs::read_link(file.path()).ok());
        links.any(|link| link.ends_with(name))
    };
    until("the new process has the folder", || has_opened("jobs.db").then_some(()));
    // The old process must not be faster than this one.
    server.signal(libc::SIGSTOP);
    // SAFETY: the call takes two numbers and touches no memory of ours.
    #[allow(unsafe_code)]
    unsafe {
        libc::kill(i32::try_from(successor).unwrap(), libc::SIGKILL);
    }
    let lock = fs::File::open(server.data().join("lock")).unwrap();
    until("the folder is free", || lock.try_lock().ok());
    server.signal(libc::SIGCONT);
    handover.ends();
    until("the folder is missed", || {
        server.log().contains("cannot be taken back yet").then_some(())
    });
    lock
}

#[test]
fn a_folder_that_is_not_free_at_once_is_taken_back_later() {
    let (mut server, tenant) = started("");
    drop(lost(&server));
    let id = enqueue(&tenant, "/job");
    is(&tenant, &id, "done");
    let alias = json!({ "version": 1 });
    let path = format!("/api/v1/functions/{FUNCTION}/aliases/next");
    tenant.client.put_json(&path, &alias).expect(200);
    server.still_runs();
}

#[test]
fn a_node_whose_folder_another_has_ends_with_a_failure() {
    let (mut server, _tenant) = started("");
    let other = lost(&server);
    let ended = server.ends();
    drop(other);
    assert_eq!(ended.code(), Some(1), "{}", server.log());
    assert!(server.log().contains("could not be taken back"), "{}", server.log());
}

#[test]
fn a_supervisor_hears_who_serves() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("notify");
    let supervisor = UnixDatagram::bind(&path).unwrap();
    supervisor.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let heard = || {
        let mut words = [0; 256];
        let length = supervisor.recv(&mut words).expect("the server tells it");
        String::from_utf8_lossy(&words[..length]).into_owned()
    };
    let environment = vec![("NOTIFY_SOCKET".to_owned(), path.display().to_string())];
    let mut server = Server::start_with(Start { environment, ..Start::default() });
    assert_eq!(heard(), "READY=1");
    let pid = server.is_taken_over();
    let mut both = [heard(), heard()];
    both.sort();
    assert_eq!(both, [format!("MAINPID={pid}\nREADY=1"), "READY=1".to_owned()]);
    server.signal(libc::SIGTERM);
    assert_eq!(heard(), "STOPPING=1");
}

#[test]
fn a_link_leads_to_the_version_that_takes_over() {
    let home = tempfile::tempdir().unwrap();
    let current = home.path().join("current");
    let lead_to = |program: &Path| {
        let _ = fs::remove_file(&current);
        std::os::unix::fs::symlink(program, &current).unwrap();
    };
    lead_to(&binary());
    let program = Some(current.clone());
    let mut server = Server::start_with(Start { program, ..Start::default() });
    // The next version cannot start, and that is how it is known that it was tried.
    let next = home.path().join("next");
    fs::write(&next, "#!/bin/sh\necho the next version is broken >&2\nexit 1\n").unwrap();
    fs::set_permissions(&next, fs::Permissions::from_mode(0o700)).unwrap();
    lead_to(&next);
    server.signal(libc::SIGUSR2);
    until("it is told", || server.log().contains("this one goes on").then_some(()));
    assert!(server.log().contains("the next version is broken"), "{}", server.log());
    lead_to(&binary());
    server.is_taken_over();
    server.client().get("/readyz").expect(200);
}
