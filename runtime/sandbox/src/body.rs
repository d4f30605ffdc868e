//! The body of a guest's response, and the rest of the guest that still writes it.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{StatusCode, header};
use http_body::{Body, Frame, SizeHint};
use sandpiper_domain::Fault;
use tokio::task::JoinHandle;
use wasmtime_wasi_http::p2::body::HyperOutgoingBody;

use crate::invoke::{GuestFuture, Shared};

/// Why a body broke off.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The guest ended badly after it had begun its response.
    #[error(transparent)]
    Fault(Fault),
    /// The guest gave the body up or wrote another length than it had announced.
    #[error("the function broke its response off")]
    Broken,
}

/// Streams a response out of a sandbox. Dropped before its end, it ends the sandbox too; read to its end, it leaves
/// the guest to finish what it does after its response.
pub struct GuestBody {
    inner: HyperOutgoingBody,
    rest: Option<JoinHandle<()>>,
    shared: Arc<Shared>,
    /// What is still to come of the length that the head announces; 0 where no body may follow.
    bytes_left: Option<u64>,
    /// Whatever the guest writes, the client must not get it: an answer to HEAD, or a status without a body.
    is_bodiless: bool,
}

impl GuestBody {
    pub(crate) fn new(
        inner: HyperOutgoingBody,
        head: &http::response::Parts,
        is_head: bool,
        rest: Option<GuestFuture>,
        shared: Arc<Shared>,
    ) -> Self {
        let is_bodiless =
            is_head || matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let announced = head.headers.get(header::CONTENT_LENGTH);
        let announced = announced.and_then(|length| length.to_str().ok()?.parse().ok());
        let bytes_left = if is_bodiless { Some(0) } else { announced };
        let rest = rest.map(|rest| {
            tokio::spawn(async move {
                // How it ended is in `shared` by now.
                let _ = rest.await;
            })
        });
        GuestBody { inner, rest, shared, bytes_left, is_bodiless }
    }
}

impl Body for GuestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.is_bodiless {
            return Poll::Ready(None);
        }
        loop {
            return match Pin::new(&mut self.inner).poll_frame(context) {
                Poll::Pending => Poll::Pending,
                // An empty frame means nothing to the client and costs HTTP/2 a frame (GHSA-f8mm).
                Poll::Ready(Some(Ok(frame))) if frame.data_ref().is_some_and(Bytes::is_empty) => {
                    continue;
                }
                Poll::Ready(Some(Ok(frame))) => {
                    if let (Some(left), Some(data)) = (&mut self.bytes_left, frame.data_ref()) {
                        *left = left.saturating_sub(data.len() as u64);
                    }
                    Poll::Ready(Some(Ok(frame)))
                }
                Poll::Ready(Some(Err(_))) => {
                    Poll::Ready(Some(Err(match self.shared.fault.get() {
                        Some(fault) => BodyError::Fault(*fault),
                        None => BodyError::Broken,
                    })))
                }
                // A trap closes the guest's stream just as `finish` does; only the fault tells them apart.
                Poll::Ready(None) => match self.shared.fault.get() {
                    Some(fault) => Poll::Ready(Some(Err(BodyError::Fault(*fault)))),
                    None => {
                        self.bytes_left = Some(0);
                        Poll::Ready(None)
                    }
                },
            };
        }
    }

    fn is_end_stream(&self) -> bool {
        self.is_bodiless || self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for GuestBody {
    fn drop(&mut self) {
        if let Some(rest) = self.rest.take()
            && self.bytes_left != Some(0)
        {
            rest.abort();
        }
    }
}
