//! What a request holds from when it is let in until its answer is gone, and where the long work on its bytes is done.

use std::{sync::Arc, time::Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::OipError;
use crate::{
    admission::{Entry, TenantAdmission},
    app::App,
    budget::{Charge, FLOOR_BYTES, NoRoom},
};

/// Bodies and answers up to here are read and written where they are; longer ones on a thread that may take its time.
pub(crate) const INLINE_BYTES_MAX: usize = 128 * 1024;

/// A place in the tenant's gate, if the request needs one, and the bytes that it and its answer take.
pub(crate) struct Place {
    _entry: Option<Entry>,
    pub(super) charge: Charge,
    admission: Arc<TenantAdmission>,
}

impl Place {
    pub(super) fn take(
        entry: Option<Entry>,
        admission: Arc<TenantAdmission>,
    ) -> Result<Self, NoRoom> {
        let charge = admission.bytes.charge(FLOOR_BYTES)?;
        Ok(Place { _entry: entry, charge, admission })
    }

    /// Lets the next one in, while the answer still takes its bytes.
    pub(super) fn leave(self) -> Charge {
        self.charge
    }
}

impl From<NoRoom> for OipError {
    fn from(no_room: NoRoom) -> Self {
        match no_room {
            NoRoom::Ever => OipError::TooLarge(
                "the request with its answer takes more memory than a tenant may have on this node; send less at once, \
                 or ask for outputs as binary data"
                    .to_owned(),
            ),
            NoRoom::Tenant => OipError::too_many(
                "the tenant's requests and answers take all of its memory; try again when some are done",
            ),
            NoRoom::Node => OipError::unavailable(
                "requests and answers take all of the node's memory for them; try again shortly",
            ),
        }
    }
}

/// Work on the bytes of a request. Where it takes long it goes to a thread that may, and of those there are as many at
/// once as the node has cores, half of them at most for one tenant. Nobody waits for one beyond the deadline. The place
/// goes along: what a client that leaves has begun still takes its memory until it is done.
pub(super) async fn apart_if<T: Send + 'static>(
    app: &App,
    mut place: Place,
    deadline: Instant,
    is_long: bool,
    work: impl FnOnce(&mut Place) -> Result<T, OipError> + Send + 'static,
) -> Result<(T, Place), OipError> {
    if !is_long {
        return Ok((work(&mut place)?, place));
    }
    let turn = turn([&place.admission.parsers, &app.parsers], deadline).await?;
    let work = move || {
        let _turn = turn;
        Ok((work(&mut place)?, place))
    };
    tokio::task::spawn_blocking(work).await.map_err(OipError::internal)?
}

/// A permit of each, in this order.
async fn turn(
    of: [&Arc<Semaphore>; 2],
    deadline: Instant,
) -> Result<[OwnedSemaphorePermit; 2], OipError> {
    let permits = async {
        let [own, whole] = of.map(Arc::clone);
        let own = own.acquire_owned().await.map_err(OipError::internal)?;
        Ok([own, whole.acquire_owned().await.map_err(OipError::internal)?])
    };
    // Permits that are free are had at the first poll, before the clock is asked.
    tokio::time::timeout_at(deadline.into(), permits).await.map_err(|_| {
        let text = "the deadline passed while the request waited for its turn to be read or its answer to be written; \
                    send less at once, or with more time";
        OipError::DeadlineExceeded(text.to_owned())
    })?
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn nobody_waits_for_a_turn_beyond_the_deadline() {
        let [own, whole] = [1, 1].map(|permits| Arc::new(Semaphore::new(permits)));
        let passed = Instant::now();
        let soon = || Instant::now() + Duration::from_millis(5);
        let late = Instant::now() + Duration::from_secs(600);
        let first = turn([&own, &whole], passed).await.unwrap();
        let refused = turn([&own, &whole], soon()).await.map(drop);
        assert!(matches!(refused, Err(OipError::DeadlineExceeded(_))), "{refused:?}");
        // One that waits for the node's has its tenant's, and gives it back.
        let other = Arc::new(Semaphore::new(1));
        let refused = turn([&other, &whole], soon()).await.map(drop);
        assert!(matches!(refused, Err(OipError::DeadlineExceeded(_))), "{refused:?}");
        assert_eq!(other.available_permits(), 1);
        let waiting = tokio::spawn(async move { turn([&own, &whole], late).await.map(drop) });
        drop(first);
        assert_eq!(waiting.await.unwrap(), Ok(()));
    }
}
