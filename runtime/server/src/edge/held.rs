//! Long answers, handed on piece by piece and kept no longer than they are read.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use tokio::time::Instant;

use super::STALL_TIMEOUT;
use crate::oip::Place;

/// What is handed to the connection at once. What waits there is beyond recall.
const CHUNK_BYTES: usize = 64 * 1024;

/// An answer that gives up its bytes and its place where nobody reads on: a client of HTTP/2 can leave its window shut,
/// and then nothing below this asks for more, or complains.
pub(crate) struct Held {
    content: Arc<Mutex<Option<Content>>>,
    left: u64,
    trailers: Option<HeaderMap>,
}

struct Content {
    bytes: Bytes,
    moved: Instant,
    _place: Place,
}

/// The client left the answer unread for too long.
#[derive(Debug, thiserror::Error)]
#[error("the answer was left unread")]
struct Unread;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl Held {
    pub(super) fn new(bytes: Bytes, place: Place, trailers: Option<HeaderMap>) -> Self {
        let left = bytes.len() as u64;
        let content = Content { bytes, moved: Instant::now(), _place: place };
        let content = Arc::new(Mutex::new(Some(content)));
        tokio::spawn(watch(content.clone(), STALL_TIMEOUT));
        Held { content, left, trailers }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        *self.content.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Ends when the content is gone, and takes it away where it does not move.
async fn watch(content: Arc<Mutex<Option<Content>>>, stall: Duration) {
    loop {
        tokio::time::sleep(stall / 4).await;
        let mut content = content.lock().unwrap_or_else(PoisonError::into_inner);
        match &*content {
            None => return,
            Some(held) if held.moved.elapsed() < stall => {}
            Some(_) => *content = None,
        }
    }
}

impl Body for Held {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.left == 0 {
            return Poll::Ready(self.trailers.take().map(|map| Ok(Frame::trailers(map))));
        }
        let chunk = {
            let mut content = self.content.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(held) = &mut *content else { return Poll::Ready(Some(Err(Unread.into()))) };
            held.moved = Instant::now();
            held.bytes.split_to(held.bytes.len().min(CHUNK_BYTES))
        };
        self.left -= chunk.len() as u64;
        Poll::Ready(Some(Ok(Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0 && self.trailers.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        match self.trailers {
            None => SizeHint::with_exact(self.left),
            // gRPC's servers tell no length.
            Some(_) => SizeHint::default(),
        }
    }
}
