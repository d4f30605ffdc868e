//! What followers of a function hear of its sandboxes. Nothing is made for a function that nobody follows.

use std::sync::OnceLock;

use sandpiper_domain::Fault;
use tokio::sync::broadcast;

/// Events that may wait for a slow follower; what is beyond that is dropped, and it is told how many.
const WAITING_MAX: usize = 256;

/// One change.
#[derive(Debug, Clone)]
pub(crate) enum Told {
    /// A sandbox changed.
    Instance { id: u64, version: u32, change: &'static str, reason: Option<&'static str> },
    /// A sandbox could not be made ready.
    StartFailed { version: u32, fault: Fault },
    /// The number that is wanted changed.
    Scale { version: u32, wanted: u32, ready: u32, panicking: bool },
}

/// The followers of a function, all its versions together.
#[derive(Debug, Default)]
pub(crate) struct Events(OnceLock<broadcast::Sender<Told>>);

impl Events {
    /// Hears all that changes from now on.
    pub(crate) fn follow(&self) -> broadcast::Receiver<Told> {
        self.0.get_or_init(|| broadcast::Sender::new(WAITING_MAX)).subscribe()
    }

    /// Tells whoever follows; asked for the event only then.
    pub(crate) fn tell(&self, event: impl FnOnce() -> Told) {
        if let Some(sender) = self.0.get().filter(|sender| sender.receiver_count() > 0) {
            // Nobody may be left by now.
            let _ = sender.send(event());
        }
    }
}
