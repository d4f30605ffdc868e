//! One process takes over from another without a moment in which nobody listens.
//!
//! ```text
//! old                                     new
//! starts it, with the listening socket ─▶ reads its settings
//!                          ◀─ standing-by
//! begins no more jobs
//! accepts no more, closes the stores
//!                                   go ─▶ locks the data folder, opens the stores
//!                              ◀─ serving  accepts
//! drains, ends its jobs, and ends
//! ```
//!
//! The socket is open all the time, so that clients that come in between wait in the kernel's queue. A new process that
//! fails or falls silent is killed, and the old one goes on.

use std::{
    io::{BufRead, BufReader as StdBufReader, Read, Write},
    net::TcpListener as StdTcpListener,
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::{net::UnixStream as StdUnixStream, process::CommandExt},
    },
    process::{Child, Command},
    time::Duration,
};

use anyhow::Context;
use sandpiper_control::Policies;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, UnixStream},
};

use crate::config::{INHERIT_ARGUMENT, Inherited, OwnCommand, Settings};

const STANDING_BY: &str = "standing-by\n";
const GO: &str = "go\n";
const SERVING: &str = "serving\n";
const WORD_BYTES_MAX: u64 = 16;

/// How long a new process may take to read its settings.
const STANDING_BY_MAX: Duration = Duration::from_secs(30);
/// How long it may take to open the data folder, while new clients wait.
const SERVING_MAX: Duration = Duration::from_secs(20);
/// How long an old process may take to close its stores.
const GO_MAX: Duration = Duration::from_secs(60);

/// The process that is to take over, seen from the one that serves. Dropped before it has, it is killed.
pub(super) struct Successor {
    process: Process,
    control: BufReader<UnixStream>,
}

/// Ends its process unless that was let go.
pub(super) struct Process(Option<Child>);

impl Process {
    /// Has it end in good order, as soon as it can.
    pub(super) fn terminate(&self) {
        let number = self.0.as_ref().and_then(|child| libc::pid_t::try_from(child.id()).ok());
        let Some(number) = number else { return };
        // SAFETY: the call takes two numbers and touches no memory. The process is our child and not waited for yet,
        // so that the number is its own.
        #[allow(unsafe_code)]
        unsafe {
            libc::kill(number, libc::SIGTERM);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Successor {
    /// Starts it, and waits until only the data folder is missing.
    pub(super) async fn start(
        command: &OwnCommand,
        listener: &TcpListener,
        metrics: Option<&TcpListener>,
    ) -> anyhow::Result<Self> {
        let (ours, theirs) = StdUnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let mut passed = vec![OwnedFd::from(theirs), listener.as_fd().try_clone_to_owned()?];
        if let Some(metrics) = metrics {
            passed.push(metrics.as_fd().try_clone_to_owned()?);
        }
        let command = command.clone();
        // A fork copies the page tables, which takes its time.
        let process = tokio::task::spawn_blocking(move || spawn(&command, &passed)).await?;
        let process = process.context("the new process could not be started")?;
        let mut control = BufReader::new(UnixStream::from_std(ours)?);
        let stood_by = hear(&mut control, STANDING_BY, STANDING_BY_MAX).await;
        stood_by.context("the new process did not get ready; its log says why")?;
        Ok(Successor { process, control })
    }

    /// Has it open the data folder, which must be free by now. The future resolves when it serves.
    pub(super) fn take_over(&mut self) -> (&Process, impl Future<Output = anyhow::Result<()>>) {
        let Successor { process, control } = self;
        let serves = async move {
            control.write_all(GO.as_bytes()).await?;
            hear(control, SERVING, SERVING_MAX).await
        };
        (process, serves)
    }

    /// Leaves it alone; gives its number.
    pub(super) fn let_go(mut self) -> u32 {
        self.process.0.take().map_or(0, |child| child.id())
    }
}

async fn hear(
    control: &mut BufReader<UnixStream>,
    word: &str,
    limit: Duration,
) -> anyhow::Result<()> {
    let mut heard = String::new();
    let mut control = control.take(WORD_BYTES_MAX);
    let read = tokio::time::timeout(limit, control.read_line(&mut heard));
    read.await.context("it fell silent")??;
    anyhow::ensure!(heard == word, "it ended");
    Ok(())
}

fn spawn(command: &OwnCommand, passed: &[OwnedFd]) -> std::io::Result<Process> {
    let numbers: Vec<RawFd> = passed.iter().map(AsRawFd::as_raw_fd).collect();
    let texts: Vec<String> = numbers.iter().map(ToString::to_string).collect();
    let mut process = Command::new(&command.program);
    process.args(&command.arguments).arg(INHERIT_ARGUMENT).arg(texts.join(","));
    // SAFETY: the closure runs between fork and exec, where it calls `fcntl` alone, which is async-signal-safe and
    // touches no memory; it allocates nothing.
    #[allow(unsafe_code)]
    unsafe {
        process.pre_exec(move || numbers.iter().try_for_each(|number| set_flags(*number, 0)));
    }
    Ok(Process(Some(process.spawn()?)))
}

/// Whether a file descriptor ends with the next program, as its flags say.
fn set_flags(number: RawFd, flags: libc::c_int) -> std::io::Result<()> {
    // SAFETY: the call takes numbers, touches no memory, and fails on a descriptor that is not open.
    #[allow(unsafe_code)]
    match unsafe { libc::fcntl(number, libc::F_SETFD, flags) } {
        -1 => Err(std::io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// The process that served before this one, and still does.
pub(super) struct Predecessor(StdUnixStream);

/// What it has passed on.
pub(super) struct Passed {
    pub(super) predecessor: Predecessor,
    pub(super) listener: TcpListener,
    pub(super) metrics: Option<TcpListener>,
}

impl Predecessor {
    /// Says that all is ready and waits for the word. Blocks: there is nothing else to do yet.
    pub(super) fn meet(inherited: Inherited, settings: &Settings) -> anyhow::Result<Passed> {
        // What can be wrong is found while the other process still serves.
        if let Some(folder) = &settings.policies {
            Policies::load(folder)?;
        }
        let mut control = StdUnixStream::from(adopt(inherited.control)?);
        let listener = adopt_listener(inherited.listener)?;
        let metrics = inherited.metrics.map(adopt_listener).transpose()?;
        control.set_nonblocking(false)?;
        control.set_read_timeout(Some(GO_MAX))?;
        control.write_all(STANDING_BY.as_bytes())?;
        let mut heard = String::new();
        let mut words = StdBufReader::new((&control).take(WORD_BYTES_MAX));
        words.read_line(&mut heard).context("wait for the process that serves")?;
        anyhow::ensure!(heard == GO, "the process that was to hand over is gone");
        Ok(Passed { predecessor: Predecessor(control), listener, metrics })
    }

    /// Tells it that this process serves now. It may be gone: then all the more.
    pub(super) fn relieve(mut self) {
        let _ = self.0.write_all(SERVING.as_bytes());
    }
}

fn adopt_listener(number: RawFd) -> anyhow::Result<TcpListener> {
    let listener = StdTcpListener::from(adopt(number)?);
    listener.local_addr().context("what was inherited is no socket that listens")?;
    listener.set_nonblocking(true)?;
    Ok(TcpListener::from_std(listener)?)
}

/// Takes a descriptor that the process was started with, and keeps it from those that it starts itself.
fn adopt(number: RawFd) -> anyhow::Result<OwnedFd> {
    anyhow::ensure!(number > 2, "the standard streams are not to inherit");
    set_flags(number, libc::FD_CLOEXEC).context("what was to be inherited is not open")?;
    // SAFETY: it is open, as the call above has shown, and the process that started this one has left it for this
    // purpose: nothing in this process has opened or owns it.
    #[allow(unsafe_code)]
    let owned = unsafe { OwnedFd::from_raw_fd(number) };
    Ok(owned)
}
