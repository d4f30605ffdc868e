//! Long answers, handed on piece by piece and kept no longer than they are read.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use tokio::time::Instant;

use super::{STALL_TIMEOUT, Unread, Watched};
use crate::oip::Place;

/// What is handed to the connection at once. What waits there is beyond recall.
const CHUNK_BYTES: usize = 64 * 1024;

/// An answer that gives up its bytes and its place where nobody reads on.
pub(crate) struct Held {
    content: Watched<Content>,
    left: u64,
    trailers: Option<HeaderMap>,
}

struct Content {
    bytes: Bytes,
    moved: Instant,
    _place: Place,
}

impl Unread for Content {
    fn unread_since(&self) -> Option<Instant> {
        Some(self.moved)
    }
}

/// The client left the answer unread for too long.
#[derive(Debug, thiserror::Error)]
#[error("the answer was left unread")]
struct LeftUnread;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl Held {
    pub(super) fn new(bytes: Bytes, place: Place, trailers: Option<HeaderMap>) -> Self {
        let left = bytes.len() as u64;
        let content = Content { bytes, moved: Instant::now(), _place: place };
        Held { content: Watched::new(content, STALL_TIMEOUT), left, trailers }
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
        let chunk = self.content.with(|content| {
            content.moved = Instant::now();
            content.bytes.split_to(content.bytes.len().min(CHUNK_BYTES))
        });
        let Some(chunk) = chunk else { return Poll::Ready(Some(Err(LeftUnread.into()))) };
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
