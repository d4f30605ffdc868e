//! What is on its way to a client, and is taken away where the client reads no further.
//!
//! A client of HTTP/2 can leave its window shut, and then nothing asks a body for more, or complains. Most answers are
//! gone at once, and cost a timer that never fires; what lives on is given a task that looks at it.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError},
    task::{Context, Wake, Waker},
    time::Duration,
};

use tokio::{
    runtime::Handle,
    time::{Instant, Sleep},
};

/// What can be left unread.
pub(crate) trait Unread {
    /// Since when the client has had something of it and not asked for more; `None` while it is the client that waits.
    fn unread_since(&self) -> Option<Instant>;
}

/// Something that lives until it is dropped, or has been unread for the stall time-out.
pub(crate) struct Watched<T> {
    watch: Arc<Watch<T>>,
    /// Begins the watch if this is still there then.
    _alarm: Pin<Box<Sleep>>,
}

struct Watch<T> {
    content: Mutex<Option<T>>,
    stall: Duration,
    runtime: Handle,
}

/// What a look at the content has found.
#[derive(Debug, PartialEq, Eq)]
enum Look {
    Gone,
    Lives,
}

impl<T: Unread + Send + 'static> Watched<T> {
    pub(crate) fn new(content: T, stall: Duration) -> Self {
        let (content, runtime) = (Mutex::new(Some(content)), Handle::current());
        let watch = Arc::new(Watch { content, stall, runtime });
        let waker = Waker::from(watch.clone());
        let mut alarm = Box::pin(tokio::time::sleep(stall / 4));
        if alarm.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
            waker.wake();
        }
        Watched { watch, _alarm: alarm }
    }

    /// What `work` makes of it; `None` where it was taken away.
    pub(crate) fn with<R>(&self, work: impl FnOnce(&mut T) -> R) -> Option<R> {
        self.watch.lock().as_mut().map(work)
    }
}

impl<T> Drop for Watched<T> {
    fn drop(&mut self) {
        let content = self.watch.lock().take();
        drop(content);
    }
}

impl<T> Watch<T> {
    fn lock(&self) -> MutexGuard<'_, Option<T>> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Unread> Watch<T> {
    /// Takes away what has been unread for too long.
    fn look(&self) -> Look {
        let mut content = match self.content.try_lock() {
            Ok(content) => content,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            // It is being read.
            Err(TryLockError::WouldBlock) => return Look::Lives,
        };
        let Some(unread) = &*content else { return Look::Gone };
        if unread.unread_since().is_none_or(|since| since.elapsed() < self.stall) {
            return Look::Lives;
        }
        let stalled = content.take();
        drop(content);
        drop(stalled);
        Look::Gone
    }
}

/// The alarm goes off, which wakes no task: it makes one.
impl<T: Unread + Send + 'static> Wake for Watch<T> {
    fn wake(self: Arc<Self>) {
        let runtime = self.runtime.clone();
        runtime.spawn(async move {
            while self.look() == Look::Lives {
                tokio::time::sleep(self.stall / 4).await;
            }
        });
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
    async fn what_was_read_a_moment_ago_stays_however_old_it_is() {
        let stall = Duration::from_secs(600);
        let old = Instant::now() - 2 * stall;
        let watched = Watched::new(Content(Some(old)), stall);
        watched.with(|content| content.0 = Some(Instant::now()));
        assert_eq!(watched.watch.look(), Look::Lives);
        watched.with(|content| content.0 = None);
        assert_eq!(watched.watch.look(), Look::Lives);
        watched.with(|content| content.0 = Some(old));
        assert_eq!(watched.watch.look(), Look::Gone);
        assert!(watched.with(|_| ()).is_none());
    }

    #[tokio::test]
    async fn what_is_dropped_leaves_nothing_behind() {
        let soon = Watched::new(Content(None), Duration::from_secs(600));
        let watch = Arc::downgrade(&soon.watch);
        drop(soon);
        assert!(watch.upgrade().is_none(), "the timer went too");
        let late = Watched::new(Content(None), STALL);
        let watch = Arc::downgrade(&late.watch);
        // The watch has begun once there are more of it than the content and its alarm.
        while watch.strong_count() < 2 {
            tokio::time::sleep(STALL).await;
        }
        drop(late);
        while watch.strong_count() > 0 {
            tokio::time::sleep(STALL).await;
        }
    }
}
