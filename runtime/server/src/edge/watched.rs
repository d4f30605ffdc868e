//! What is on its way to a client, and is taken away where the client reads no further.
//!
//! A client of HTTP/2 can leave its window shut, and then nothing asks a body for more, or complains.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError},
    time::Duration,
};

use tokio::{task::AbortHandle, time::Instant};

/// What can be left unread.
pub(crate) trait Unread {
    /// Since when the client has had something of it and not asked for more; `None` while it is the client that waits.
    fn unread_since(&self) -> Option<Instant>;
}

/// Something that lives until it is dropped, or has been unread for the stall time-out.
pub(crate) struct Watched<T> {
    content: Arc<Mutex<Option<T>>>,
    watch: AbortHandle,
}

impl<T: Unread + Send + 'static> Watched<T> {
    pub(crate) fn new(content: T, stall: Duration) -> Self {
        let content = Arc::new(Mutex::new(Some(content)));
        let watch = tokio::spawn(watch(content.clone(), stall)).abort_handle();
        Watched { content, watch }
    }

    /// What `work` makes of it; `None` where it was taken away.
    pub(crate) fn with<R>(&self, work: impl FnOnce(&mut T) -> R) -> Option<R> {
        lock(&self.content).as_mut().map(work)
    }
}

impl<T> Drop for Watched<T> {
    fn drop(&mut self) {
        self.watch.abort();
        let content = lock(&self.content).take();
        drop(content);
    }
}

fn lock<T>(content: &Mutex<Option<T>>) -> MutexGuard<'_, Option<T>> {
    content.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn watch<T: Unread>(content: Arc<Mutex<Option<T>>>, stall: Duration) {
    loop {
        tokio::time::sleep(stall / 4).await;
        let stalled = match content.try_lock() {
            // It is being read.
            Err(TryLockError::WouldBlock) => None,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner().take(),
            Ok(mut content) => {
                let since = content.as_ref().and_then(Unread::unread_since);
                since.filter(|since| since.elapsed() >= stall).and_then(|_| content.take())
            }
        };
        if stalled.is_some() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Content(Option<Instant>);

    impl Unread for Content {
        fn unread_since(&self) -> Option<Instant> {
            self.0
        }
    }

    const STALL: Duration = Duration::from_millis(20);

    #[tokio::test]
    async fn what_is_left_unread_goes_and_what_waits_itself_stays() {
        let (unread, waits) = (
            Watched::new(Content(Some(Instant::now())), STALL),
            Watched::new(Content(None), STALL),
        );
        while unread.with(|_| ()).is_some() {
            tokio::time::sleep(STALL).await;
        }
        for _ in 0..5 {
            tokio::time::sleep(STALL).await;
            assert!(waits.with(|_| ()).is_some());
        }
    }

    #[tokio::test]
    async fn what_is_read_on_stays() {
        let watched = Watched::new(Content(Some(Instant::now())), Duration::from_secs(600));
        tokio::time::sleep(STALL).await;
        assert!(watched.with(|content| content.0 = Some(Instant::now())).is_some());
        let content = watched.content.clone();
        drop(watched);
        assert!(lock(&content).is_none(), "nothing waits for the watch to end");
    }
}
