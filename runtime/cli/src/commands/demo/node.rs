//! The demo's server: a child process of the same program, tied to its parent by its stdin.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom},
    net::TcpListener,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::{
    client::Client,
    commands::interrupt::Interrupt,
    error::{CliError, Kind, Result},
    output::clean,
};

const PORT: u16 = 8080;
const START: Duration = Duration::from_secs(60);
const STOP: Duration = Duration::from_secs(10);
const LOG: &str = "demo.log";
const TAIL_BYTES: u64 = 4 * 1024;
const TAIL_LINES: usize = 20;

/// A running server. Dropping it stops it, and removes its data unless they were to be kept.
pub(super) struct Node {
    child: Child,
    url: String,
    operator_key: String,
    log: PathBuf,
    /// Removed after the server has ended; declared here so that it lives as long.
    _temporary: Option<TempDir>,
}

impl Node {
    /// Starts it; it need not be ready yet.
    pub(super) fn start(data: Option<&Path>, interrupt: &Interrupt) -> Result<Self> {
        let failed = |error: io::Error| {
            CliError::unexpected("the demo's server cannot be started").why(error)
        };
        let (folder, temporary) = match data {
            Some(folder) => {
                fs::create_dir_all(folder).map_err(failed)?;
                (folder.to_owned(), None)
            }
            None => {
                let made = tempfile::Builder::new().prefix("sandpiper-demo-").tempdir();
                let made = made.map_err(failed)?;
                (made.path().to_owned(), Some(made))
            }
        };
        let log = folder.join(LOG);
        let mut options = OpenOptions::new();
        // It is readable for its owner alone, like everything else in that folder.
        let file = options.create(true).write(true).truncate(true).mode(0o600).open(&log);
        let file = file.map_err(failed)?;
        let port = free_port().map_err(failed)?;
        let operator_key: String =
            rand::random::<[u8; 24]>().iter().map(|byte| format!("{byte:02x}")).collect();
        let mut command = Command::new(std::env::current_exe().map_err(failed)?);
        command
            .args(["serve", "--until-stdin-ends", "--listen", &format!("127.0.0.1:{port}")])
            .arg("--data")
            .arg(&folder)
            .env("SANDPIPER_OPERATOR_KEY", &operator_key)
            .stdin(Stdio::piped())
            .stdout(file.try_clone().map_err(failed)?)
            .stderr(file);
        let removed = temporary.as_ref().map(TempDir::path);
        let child = interrupt.start_server(&mut command, removed).map_err(failed)?;
        let url = format!("http://127.0.0.1:{port}");
        Ok(Node { child, url, operator_key, log, _temporary: temporary })
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    pub(super) fn operator_key(&self) -> &str {
        &self.operator_key
    }

    /// Returns when `/readyz` answers 200.
    pub(super) fn wait_until_ready(
        &mut self,
        client: &Client,
        interrupt: &Interrupt,
    ) -> Result<()> {
        let started = Instant::now();
        while started.elapsed() < START {
            if let Some(status) = self.ended()? {
                return Err(CliError::unexpected(format!("the server did not start ({status})")));
            }
            if matches!(client.probe("/readyz", Duration::from_secs(1)), Ok(200)) {
                return Ok(());
            }
            if interrupt.wait(Duration::from_millis(20)) {
                return interrupt.check(Ok(()));
            }
        }
        Err(CliError::new(Kind::Unreachable, "the server was not ready in time"))
    }

    /// How it ended, if it has.
    pub(super) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        let ended = self.child.try_wait();
        ended.map_err(|error| CliError::unexpected("the server cannot be watched").why(error))
    }

    /// Adds the end of the server's log to an error: with the temporary folder the log goes too.
    pub(super) fn explain(&self, mut error: CliError) -> CliError {
        let tail = tail(&self.log).unwrap_or_default();
        if !tail.is_empty() && error.kind != Kind::Interrupted {
            let why = error.why.take().map(|why| format!("{why}\n")).unwrap_or_default();
            return error.why(format!("{why}the server's log ends with\n{tail}"));
        }
        error
    }

    fn stop(&mut self) {
        // The end of its stdin asks the server to stop; only one that does not is killed.
        drop(self.child.stdin.take());
        let started = Instant::now();
        while started.elapsed() < STOP {
            match self.child.try_wait() {
                Ok(None) => thread::sleep(Duration::from_millis(10)),
                _ => return,
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The usual port, or any free one where that is taken.
fn free_port() -> io::Result<u16> {
    let listener =
        TcpListener::bind(("127.0.0.1", PORT)).or_else(|_| TcpListener::bind(("127.0.0.1", 0)))?;
    Ok(listener.local_addr()?.port())
}

/// The last lines of a file.
fn tail(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<_> = text.lines().map(clean).collect();
    Ok(lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_is_the_end_of_the_log() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let text: String = (0..5_000).map(|n| format!("line {n}\n")).collect();
        fs::write(&path, text).unwrap();
        let tail = tail(&path).unwrap();
        assert_eq!(tail.lines().count(), TAIL_LINES);
        assert!(tail.ends_with("line 4999"));
    }

    #[test]
    fn there_is_always_a_free_port() {
        let _usual = TcpListener::bind(("127.0.0.1", PORT));
        assert_ne!(free_port().unwrap(), 0);
    }
}
