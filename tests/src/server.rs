//! The real binary, started with a data folder of its own.

use std::{
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, RwLock},
    thread::JoinHandle,
};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{Client, Connection, GrpcClient, Metrics, Tenant, artefacts};

/// The operator's key of every server here.
pub const OPERATOR_KEY: &str = "operator-key-of-the-tests-0123456789";

/// How a server is started.
#[derive(Default)]
pub struct Start {
    /// The settings file.
    pub settings: String,
    /// A folder of policies in place of those compiled in.
    pub policies: Option<PathBuf>,
    /// More arguments of `serve`.
    pub arguments: Vec<String>,
    /// More of the environment.
    pub environment: Vec<(String, String)>,
    /// A link to the program, in its place.
    pub program: Option<PathBuf>,
    /// The operator's key comes from the data folder, not from the environment.
    pub own_operator_key: bool,
}

/// A server. Dropping it ends it; so does the end of the test's process, since the server watches its stdin.
pub struct Server {
    folder: TempDir,
    start: Start,
    process: Process,
    base: Arc<RwLock<String>>,
    /// The logs of the processes before this one.
    earlier_logs: String,
}

struct Process {
    child: Child,
    /// The process that has taken over, which is no child of ours.
    successor: Option<u32>,
    log: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts a server as it comes.
    pub fn start() -> Self {
        Self::start_with(Start::default())
    }

    /// Starts a server with these lines in its settings file.
    pub fn with_settings(settings: &str) -> Self {
        Self::start_with(Start { settings: settings.to_owned(), ..Start::default() })
    }

    /// Starts a server.
    pub fn start_with(start: Start) -> Self {
        let folder = tempfile::Builder::new().prefix("sandpiper-test-").tempdir().unwrap();
        let (process, url) = Process::start(&command(folder.path(), &start));
        let base = Arc::new(RwLock::new(url));
        let server = Server { folder, start, process, base, earlier_logs: String::new() };
        server.client().get("/readyz").expect(200);
        server
    }

    /// The data folder.
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// `host:port`.
    pub fn address(&self) -> String {
        self.url().trim_start_matches("http://").to_owned()
    }

    /// `http://host:port`.
    pub fn url(&self) -> String {
        self.base.read().unwrap().clone()
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.process.successor.unwrap_or(self.process.child.id())
    }

    /// Has a new process take over, waits until it has, and gives its number.
    pub fn is_taken_over(&mut self) -> u32 {
        let before = self.takeovers().len();
        self.signal(libc::SIGUSR2);
        let pid =
            crate::until("a new process has taken over", || self.takeovers().get(before).copied());
        self.process.successor = Some(pid);
        pid
    }

    /// The processes that have taken over so far, as the log names them.
    fn takeovers(&self) -> Vec<u32> {
        let log = self.log();
        let lines = log.lines().filter(|line| line.contains("a new process has taken over"));
        let pid = |line: &str| line.split("pid=").nth(1)?.trim().parse().ok();
        lines.filter_map(pid).collect()
    }

    /// The most memory that the process has held so far, in MiB.
    pub fn memory_peak_mib(&self) -> u64 {
        memory_of(self.pid(), "VmHWM:")
    }

    /// The memory that the process holds now, in MiB.
    pub fn memory_mib(&self) -> u64 {
        memory_mib(self.pid())
    }

    /// Fails unless the process is the one that was started.
    #[track_caller]
    pub fn still_runs(&mut self) {
        let ended = self.process.child.try_wait().unwrap();
        assert!(ended.is_none(), "the server ended: {ended:?}\n{}", self.log());
    }

    /// What the server has logged since it was started.
    pub fn log(&self) -> String {
        self.process.log.lock().unwrap().clone()
    }

    /// What the server has logged in all its lives.
    pub fn all_logs(&self) -> String {
        format!("{}{}", self.earlier_logs, self.log())
    }

    /// A client without a key.
    pub fn client(&self) -> Client {
        Client::new(self.base.clone())
    }

    /// A client with the operator's key.
    pub fn operator(&self) -> Client {
        self.client().with_key(OPERATOR_KEY)
    }

    /// A bare connection.
    pub fn connect(&self) -> Connection {
        Connection::open(&self.address())
    }

    /// A gRPC connection without a key.
    pub fn grpc(&self) -> GrpcClient {
        GrpcClient::connect(&self.address())
    }

    /// Makes a tenant with a key that may do everything.
    pub fn tenant(&self, name: &str, tier: &str) -> Tenant {
        let operator = self.operator();
        operator.post_json("/api/v1/tenants", &json!({ "name": name, "tier": tier })).expect(201);
        let path = format!("/api/v1/tenants/{name}/keys");
        let key = operator.post_json(&path, &json!({})).expect(201).json();
        let key = key["key"].as_str().unwrap().to_owned();
        Tenant { name: name.to_owned(), client: self.client().with_key(&key), key }
    }

    /// What the server measures now.
    pub fn metrics(&self) -> Metrics {
        Metrics(self.operator().get("/metrics").expect(200).text())
    }

    /// The names of the blobs in the data folder, in order.
    pub fn blobs(&self) -> Vec<String> {
        files(&self.data().join("blobs"))
    }

    /// Waits until the data folder holds so many blobs: what nothing needs is swept soon after a deletion.
    #[track_caller]
    pub fn sweeps_to(&self, blobs: usize) {
        crate::until("what is not needed is swept", || (self.blobs().len() == blobs).then_some(()));
    }

    /// The settings file from the next start on.
    pub fn settings(&mut self, settings: &str) {
        self.start.settings = settings.to_owned();
    }

    /// Sends the process a signal, such as `libc::SIGTERM`.
    #[track_caller]
    pub fn signal(&self, number: i32) {
        let pid = i32::try_from(self.pid()).unwrap();
        // SAFETY: the call takes two numbers and touches no memory of ours.
        #[allow(unsafe_code)]
        let sent = unsafe { libc::kill(pid, number) };
        assert_eq!(sent, 0, "{}", std::io::Error::last_os_error());
    }

    /// SIGKILL.
    pub fn kill9(&mut self) {
        self.process.kill();
    }

    /// Waits for the end of the process that was started.
    pub fn ends(&mut self) -> ExitStatus {
        // Waiting closes stdin, which would be one more signal.
        let stdin = self.process.child.stdin.take();
        let ended = self.process.child.wait().unwrap();
        self.process.child.stdin = stdin;
        ended
    }

    /// Ends the server in good order.
    pub fn stop(&mut self) -> ExitStatus {
        drop(self.process.child.stdin.take());
        self.process.child.wait().unwrap()
    }

    /// Starts the server again on the same data; clients made before find it.
    pub fn start_again(&mut self) {
        self.process.kill();
        self.earlier_logs.push_str(&self.process.log.lock().unwrap());
        let (process, url) = Process::start(&command(self.folder.path(), &self.start));
        self.process = process;
        *self.base.write().unwrap() = url;
        self.client().get("/readyz").expect(200);
    }

    /// SIGKILL, and a new start on the same data.
    pub fn crash(&mut self) {
        self.kill9();
        self.start_again();
    }

    /// A good end, and a new start on the same data.
    pub fn restart(&mut self) {
        let ended = self.stop();
        assert!(ended.success(), "{ended}\n{}", self.log());
        self.start_again();
    }

    /// Tries to start one more server on the same data, which must fail; gives its exit code and its words.
    pub fn second_start(&self) -> (Option<i32>, String) {
        let mut arguments = command(self.folder.path(), &self.start);
        arguments.arguments.retain(|argument| argument != "--until-stdin-ends");
        let output = Command::from(arguments).stdin(Stdio::null()).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// The memory that a process holds now, in MiB.
pub fn memory_mib(pid: u32) -> u64 {
    memory_of(pid, "VmRSS:")
}

fn memory_of(pid: u32, line: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let size = status.lines().find_map(|known| known.strip_prefix(line));
    let kib = size.and_then(|size| size.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.expect("the kernel tells the size") / 1024
}

/// The names in a folder, in order.
fn files(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

struct Arguments {
    program: PathBuf,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    operator_key: Option<&'static str>,
}

fn command(folder: &Path, start: &Start) -> Arguments {
    let mut arguments: Vec<String> =
        ["--json", "serve", "--listen", "127.0.0.1:0", "--until-stdin-ends", "--data"]
            .map(str::to_owned)
            .into();
    arguments.push(folder.join("data").display().to_string());
    if !start.settings.is_empty() {
        let file = folder.join("settings.toml");
        std::fs::write(&file, &start.settings).unwrap();
        arguments.extend(["--config".to_owned(), file.display().to_string()]);
    }
    if let Some(policies) = &start.policies {
        arguments.extend(["--policies".to_owned(), policies.display().to_string()]);
    }
    arguments.extend(start.arguments.iter().cloned());
    let operator_key = (!start.own_operator_key).then_some(OPERATOR_KEY);
    let program = start.program.clone().unwrap_or_else(artefacts::binary);
    Arguments { program, arguments, environment: start.environment.clone(), operator_key }
}

impl From<Arguments> for Command {
    fn from(arguments: Arguments) -> Command {
        (&arguments).into()
    }
}

impl From<&Arguments> for Command {
    fn from(arguments: &Arguments) -> Command {
        let mut command = Command::new(&arguments.program);
        command.args(&arguments.arguments).env_remove("SANDPIPER_OPERATOR_KEY");
        command.env_remove("NOTIFY_SOCKET").envs(arguments.environment.iter().cloned());
        if let Some(key) = arguments.operator_key {
            command.env("SANDPIPER_OPERATOR_KEY", key);
        }
        command
    }
}

impl Process {
    /// Starts the server and waits for its address.
    fn start(arguments: &Arguments) -> (Self, String) {
        let mut command = Command::from(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the server can be started");
        let log = Arc::new(Mutex::new(String::new()));
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let reader = std::thread::spawn({
            let log = log.clone();
            move || {
                for line in stderr.split(b'\n').map_while(Result::ok) {
                    let mut log = log.lock().unwrap();
                    log.push_str(&String::from_utf8_lossy(&line));
                    log.push('\n');
                }
            }
        });
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut process = Process { child, successor: None, log, reader: Some(reader) };
        // The announcement is one JSON value over several lines.
        let mut said = String::new();
        let url = loop {
            if stdout.read_line(&mut said).unwrap_or(0) == 0 {
                process.kill();
                panic!("the server did not start: {said}\n{}", process.log.lock().unwrap());
            }
            if let Ok(value) = serde_json::from_str::<Value>(&said) {
                break value["listening"].as_str().expect("an address").to_owned();
            }
        };
        std::thread::spawn(move || stdout.read_to_end(&mut Vec::new()));
        (process, url)
    }

    fn kill(&mut self) {
        if let Some(pid) = self.successor.and_then(|pid| i32::try_from(pid).ok()) {
            // SAFETY: the call takes two numbers and touches no memory of ours.
            #[allow(unsafe_code)]
            unsafe {
                libc::kill(pid, libc::SIGKILL);
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        // Processes that were replaced may still drain, and would keep the log open: this ends them.
        drop(self.child.stdin.take());
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("--- the server's log ---\n{}---", self.log.lock().unwrap());
        }
    }
}
