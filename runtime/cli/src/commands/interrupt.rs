//! Ctrl-c and SIGTERM: the first one ends the demo in good order, the second one at once. Neither leaves anything.

use std::{
    fs, io,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread,
    time::Duration,
};

use tokio::signal::unix::{SignalKind, signal};

use crate::error::{CliError, Kind, Result};

/// Tells whether the demo was asked to stop, and knows what must not outlive it.
pub(super) struct Interrupt {
    shared: Arc<Shared>,
    receiver: Receiver<()>,
}

#[derive(Default)]
struct Shared(Mutex<State>);

#[derive(Default)]
struct State {
    asked: bool,
    /// The process group of the build that runs.
    build: Option<i32>,
    /// The process group of the server.
    server: Option<i32>,
    /// The temporary folder.
    folder: Option<PathBuf>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Interrupt {
    /// Watches for signals from now on.
    pub(super) fn watch() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime
            .map_err(|error| CliError::unexpected("signals cannot be watched").why(error))?;
        let shared = Arc::new(Shared::default());
        let (sender, receiver) = mpsc::channel();
        let theirs = Arc::clone(&shared);
        thread::spawn(move || runtime.block_on(wait_for_signals(&theirs, &sender)));
        Ok(Interrupt { shared, receiver })
    }

    /// Waits; true when the demo was asked to stop.
    pub(super) fn wait(&self, time: Duration) -> bool {
        match self.receiver.recv_timeout(time) {
            Err(RecvTimeoutError::Timeout) => self.shared.lock().asked,
            Ok(()) | Err(RecvTimeoutError::Disconnected) => true,
        }
    }

    /// The result of a stage, or the news that the demo was asked to stop meanwhile: a build that ctrl-c ended has
    /// not failed.
    pub(super) fn check<T>(&self, result: Result<T>) -> Result<T> {
        if self.shared.lock().asked {
            return Err(CliError::new(Kind::Interrupted, "stopped before the end"));
        }
        result
    }

    /// Starts a build in a process group of its own, so that a signal to us reaches all of it.
    pub(super) fn start_build(&self, command: &mut Command) -> io::Result<Child> {
        let mut state = self.shared.lock();
        let child = start(&state, command)?;
        state.build = Some(group(&child));
        Ok(child)
    }

    /// Forgets the build: its number may be another's from now on.
    pub(super) fn build_ended(&self) {
        self.shared.lock().build = None;
    }

    /// Starts the server, also in a group of its own: its owner stops it in good order, and no signal does.
    pub(super) fn start_server(
        &self,
        command: &mut Command,
        temporary: Option<&Path>,
    ) -> io::Result<Child> {
        let mut state = self.shared.lock();
        let child = start(&state, command)?;
        state.server = Some(group(&child));
        state.folder = temporary.map(Path::to_owned);
        Ok(child)
    }
}

fn start(state: &State, command: &mut Command) -> io::Result<Child> {
    if state.asked {
        return Err(io::ErrorKind::Interrupted.into());
    }
    command.process_group(0).spawn()
}

/// The group that a child of [`start`] leads.
fn group(child: &Child) -> i32 {
    child.id().cast_signed()
}

async fn wait_for_signals(shared: &Shared, sender: &Sender<()>) {
    let [interrupt, terminate, hangup] =
        [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(signal);
    let (Ok(mut interrupt), Ok(mut terminate), Ok(mut hangup)) = (interrupt, terminate, hangup)
    else {
        return;
    };
    loop {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
        let mut state = shared.lock();
        if state.asked {
            end_at_once(&state);
        }
        state.asked = true;
        if let Some(build) = state.build {
            // Not the signal that came: what a shell starts in the background inherits to ignore SIGINT.
            send(libc::SIGTERM, build);
        }
        drop(state);
        let _ = sender.send(());
    }
}

fn end_at_once(state: &State) -> ! {
    for group in [state.build, state.server].into_iter().flatten() {
        send(libc::SIGKILL, group);
    }
    if let Some(folder) = &state.folder {
        let _ = fs::remove_dir_all(folder);
    }
    std::process::exit(i32::from(Kind::Interrupted as u8))
}

/// Sends a signal to a process group.
fn send(signal: i32, group: i32) {
    // SAFETY: `killpg` takes and returns plain integers and touches no memory of ours.
    #[allow(unsafe_code)]
    unsafe {
        libc::killpg(group, signal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn idle() -> Interrupt {
        Interrupt { shared: Arc::default(), receiver: mpsc::channel().1 }
    }

    #[test]
    fn a_signal_ends_the_whole_build() {
        let interrupt = idle();
        let mut command = Command::new("sh");
        // The shell waits for a child of its own, as it does for cargo.
        command.args(["-c", "sleep 60 & wait"]).stdout(std::process::Stdio::piped());
        let mut child = interrupt.start_build(&mut command).unwrap();
        let group = interrupt.shared.lock().build.unwrap();
        send(libc::SIGTERM, group);
        // The pipe ends when the last process that holds it has.
        io::copy(&mut child.stdout.take().unwrap(), &mut io::sink()).unwrap();
        assert!(!child.wait().unwrap().success());
        interrupt.build_ended();
        assert_eq!(interrupt.shared.lock().build, None);
    }

    #[test]
    fn once_asked_nothing_is_started_and_no_stage_succeeds() {
        let interrupt = idle();
        assert!(interrupt.check(Ok(())).is_ok());
        interrupt.shared.lock().asked = true;
        assert!(interrupt.start_build(&mut Command::new("true")).is_err());
        assert!(interrupt.start_server(&mut Command::new("true"), None).is_err());
        assert_eq!(interrupt.check(Ok(())).unwrap_err().exit_code(), 130);
    }
}
