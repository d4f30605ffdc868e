//! How slowly a client may send a body.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A client gets this much time for nothing, and then a second for each [`RATE_BYTES`] that it has sent: whoever sends
/// more slowly keeps a place from others.
const TIME_FREE: Duration = Duration::from_secs(20);
const RATE_BYTES: u64 = 16 * 1024;

/// A body whose sender must keep a pace.
pub(crate) struct Paced<B> {
    body: B,
    began: Instant,
    received: u64,
    deadline: Pin<Box<Sleep>>,
}

/// The sender was slower than it may be.
#[derive(Debug, thiserror::Error)]
#[error("the body came too slowly")]
pub(crate) struct TooSlow;

impl<B> Paced<B> {
    pub(crate) fn new(body: B) -> Self {
        let began = Instant::now();
        let deadline = Box::pin(sleep_until(began + TIME_FREE));
        Paced { body, began, received: 0, deadline }
    }
}

impl<B> Body for Paced<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match Pin::new(&mut self.body).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => {
                self.received += frame.data_ref().map_or(0, |data| data.len() as u64);
                let earned = Duration::from_secs(self.received / RATE_BYTES);
                let until = self.began + TIME_FREE + earned;
                self.deadline.as_mut().reset(until);
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(error.into()))),
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => match self.deadline.as_mut().poll(context) {
                Poll::Ready(()) => Poll::Ready(Some(Err(TooSlow.into()))),
                Poll::Pending => Poll::Pending,
            },
        }
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
