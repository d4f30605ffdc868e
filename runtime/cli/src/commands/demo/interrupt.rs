//! Ctrl-c and SIGTERM: the first one ends the demo in good order, the second one at once.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread,
    time::Duration,
};

use tokio::signal::unix::{SignalKind, signal};

use crate::error::{CliError, Result};

/// Tells whether the demo was asked to stop.
pub(super) struct Interrupt {
    asked: Arc<AtomicBool>,
    receiver: Receiver<()>,
}

impl Interrupt {
    /// Watches for signals from now on.
    pub(super) fn watch() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime
            .map_err(|error| CliError::unexpected("signals cannot be watched").why(error))?;
        let asked = Arc::new(AtomicBool::new(false));
        let (sender, receiver) = mpsc::channel();
        let flag = Arc::clone(&asked);
        thread::spawn(move || runtime.block_on(wait_for_signals(&flag, &sender)));
        Ok(Interrupt { asked, receiver })
    }

    /// Waits; true when the demo was asked to stop.
    pub(super) fn wait(&self, time: Duration) -> bool {
        match self.receiver.recv_timeout(time) {
            Err(RecvTimeoutError::Timeout) => self.asked.load(Ordering::Acquire),
            Ok(()) | Err(RecvTimeoutError::Disconnected) => true,
        }
    }

    /// The result of a stage, or the news that the demo was asked to stop meanwhile: a build that ctrl-c ended has
    /// not failed.
    pub(super) fn check<T>(&self, result: Result<T>) -> Result<T> {
        if self.asked.load(Ordering::Acquire) {
            return Err(CliError::unexpected("stopped before the end"));
        }
        result
    }
}

async fn wait_for_signals(asked: &AtomicBool, sender: &Sender<()>) {
    let signals = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()));
    let (Ok(mut interrupt), Ok(mut terminate)) = signals else { return };
    loop {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        if asked.swap(true, Ordering::AcqRel) {
            // The server sees its stdin end and stops too.
            std::process::exit(130);
        }
        let _ = sender.send(());
    }
}
