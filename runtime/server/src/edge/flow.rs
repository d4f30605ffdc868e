//! Bodies that are handed on piece by piece, and kept no longer than they are read.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use tokio::time::Instant;

use super::{STALL_TIMEOUT, Unread, Watched};

/// What is handed to the connection at once. What waits there is beyond recall.
const PIECE_BYTES: usize = 64 * 1024;

pub(super) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A body, and what is kept for as long as it is there. Both are given up where the client reads no further.
pub(crate) struct Flow<B, K> {
    content: Watched<Content<B, K>>,
    is_over: bool,
}

struct Content<B, K> {
    body: B,
    unsent: Bytes,
    /// When something was handed on last, unless more was asked for since.
    handed: Option<Instant>,
    _kept: K,
}

impl<B, K> Unread for Content<B, K> {
    fn unread_since(&self) -> Option<Instant> {
        self.handed
    }
}

/// The client left the answer unread for too long.
#[derive(Debug, thiserror::Error)]
#[error("the answer was left unread")]
struct LeftUnread;

impl<B, K> Flow<B, K>
where
    B: Body<Data = Bytes> + Unpin + Send + 'static,
    B::Error: Into<BoxError>,
    K: Send + 'static,
{
    pub(super) fn new(body: B, kept: K) -> Self {
        Self::with_timeout(body, kept, STALL_TIMEOUT)
    }

    fn with_timeout(body: B, kept: K, stall: Duration) -> Self {
        let is_over = body.is_end_stream();
        let handed = Some(Instant::now());
        let content = Content { body, unsent: Bytes::new(), handed, _kept: kept };
        Flow { content: Watched::new(content, stall), is_over }
    }
}

type Next = Option<Result<Frame<Bytes>, BoxError>>;

impl<B, K> Content<B, K>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Next> {
        self.handed = None;
        let mut next = None;
        if self.unsent.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(bytes) => self.unsent = bytes,
                    Err(other) => next = Some(Ok(other)),
                },
                Some(Err(error)) => next = Some(Err(error.into())),
                None => return Poll::Ready(None),
            }
        }
        self.handed = Some(Instant::now());
        let piece = self.unsent.len().min(PIECE_BYTES);
        Poll::Ready(next.or_else(|| Some(Ok(Frame::data(self.unsent.split_to(piece))))))
    }

    fn is_over(&self, next: &Poll<Next>) -> bool {
        match next {
            Poll::Ready(Some(Ok(_))) => self.unsent.is_empty() && self.body.is_end_stream(),
            Poll::Ready(_) => true,
            Poll::Pending => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        let (mut hint, unsent) = (self.body.size_hint(), self.unsent.len() as u64);
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + unsent);
        }
        hint.set_lower(hint.lower() + unsent);
        hint
    }
}

impl<B, K> Body for Flow<B, K>
where
    B: Body<Data = Bytes> + Unpin + Send + 'static,
    B::Error: Into<BoxError>,
    K: Send + 'static,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Next> {
        if self.is_over {
            return Poll::Ready(None);
        }
        let polled = self.content.with(|content| {
            let next = content.poll(context);
            let is_over = content.is_over(&next);
            (next, is_over)
        });
        let (next, is_over) =
            polled.unwrap_or_else(|| (Poll::Ready(Some(Err(LeftUnread.into()))), true));
        self.is_over = is_over;
        next
    }

    fn is_end_stream(&self) -> bool {
        self.is_over
    }

    fn size_hint(&self) -> SizeHint {
        self.content.with(|content| content.size_hint()).unwrap_or_default()
    }
}

/// An answer that is there as a whole, and what follows it.
pub(crate) struct Whole {
    bytes: Bytes,
    trailers: Option<HeaderMap>,
}

impl Whole {
    pub(super) fn new(bytes: Bytes, trailers: Option<HeaderMap>) -> Self {
        Whole { bytes, trailers }
    }
}

impl Body for Whole {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let frame = match self.bytes.is_empty() {
            true => self.trailers.take().map(Frame::trailers),
            false => Some(Frame::data(std::mem::take(&mut self.bytes))),
        };
        Poll::Ready(frame.map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.bytes.is_empty() && self.trailers.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        match self.trailers {
            None => SizeHint::with_exact(self.bytes.len() as u64),
            // gRPC's servers tell no length.
            Some(_) => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt, stream};
    use http_body_util::{BodyExt, StreamBody};
    use tokio::sync::oneshot;

    use super::*;

    const STALL: Duration = Duration::from_millis(20);

    fn whole(bytes: usize, trailers: Option<HeaderMap>) -> Flow<Whole, ()> {
        Flow::new(Whole::new(vec![7; bytes].into(), trailers), ())
    }

    #[tokio::test]
    async fn a_long_answer_comes_in_pieces_and_tells_its_length() {
        let mut flow = whole(PIECE_BYTES + 1, None);
        assert_eq!(flow.size_hint().exact(), Some(PIECE_BYTES as u64 + 1));
        let piece = flow.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!((piece.len(), flow.is_end_stream()), (PIECE_BYTES, false));
        assert_eq!(flow.size_hint().exact(), Some(1));
        let piece = flow.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!((piece.len(), flow.is_end_stream()), (1, true));
        assert!(flow.frame().await.is_none());
        assert!(whole(0, None).is_end_stream());
    }

    #[tokio::test]
    async fn trailers_follow_what_there_is() {
        for bytes in [0, 3] {
            let trailers = HeaderMap::from_iter([(http::header::ETAG, "x".parse().unwrap())]);
            let flow = whole(bytes, Some(trailers));
            assert!(!flow.is_end_stream());
            let all = flow.collect().await.unwrap();
            assert_eq!(all.trailers().unwrap()[http::header::ETAG], "x");
            assert_eq!(all.to_bytes().len(), bytes);
        }
    }

    /// Waits until what was kept beside a body is gone.
    async fn goes(mut kept: oneshot::Receiver<()>) {
        while kept.try_recv() == Err(oneshot::error::TryRecvError::Empty) {
            tokio::time::sleep(STALL).await;
        }
    }

    #[tokio::test]
    async fn what_nobody_reads_is_given_up_with_what_is_kept_for_it() {
        // Not one byte is asked for; all is handed on, and the connection keeps it; some is.
        for (bytes, polls) in [(1, 0), (1, 1), (PIECE_BYTES + 1, 1)] {
            let (keep, kept) = oneshot::channel::<()>();
            let body = Whole::new(vec![7; bytes].into(), None);
            let mut flow = Flow::with_timeout(body, keep, STALL);
            for _ in 0..polls {
                flow.frame().await.unwrap().unwrap();
            }
            goes(kept).await;
            match flow.is_end_stream() {
                true => assert!(flow.frame().await.is_none()),
                false => assert!(flow.frame().await.unwrap().is_err(), "it must not look whole"),
            }
        }
    }

    #[tokio::test]
    async fn a_body_that_is_slow_itself_is_waited_for() {
        let (send, receive) = oneshot::channel::<()>();
        let last = stream::once(async move {
            receive.await.unwrap();
            Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"last")))
        });
        let (keep, kept) = oneshot::channel::<()>();
        let mut flow = Flow::with_timeout(StreamBody::new(Box::pin(last)), keep, STALL);
        for _ in 0..5 {
            assert!(flow.frame().now_or_never().is_none());
            tokio::time::sleep(STALL).await;
        }
        send.send(()).unwrap();
        let piece = flow.frame().await.unwrap().unwrap();
        assert_eq!(piece.into_data().unwrap(), "last");
        // It may have more to say, and nobody asks.
        goes(kept).await;
    }
}
