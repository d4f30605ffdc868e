//! The bodies of responses, whoever writes them.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use sandpiper_sandbox::GuestBody;

use super::held::Held;
use crate::{
    admission::{Entry, Transferred},
    oip::Place,
    respond::ERROR_HEADER,
};

/// Answers up to here are handed to the connection at once: it takes them within its window of flow control.
const HELD_WHOLE_BYTES_MAX: usize = 60 * 1024;

/// A response's body: a few bytes of our own, a function's stream, the control plane's, or gRPC's.
pub(crate) enum EdgeBody {
    Full(Bytes),
    /// Keeps the request's places in the gates until it is read or dropped.
    Guest {
        body: GuestBody,
        sent: Transferred,
        _places: Arc<Entry>,
    },
    /// An inference's answer, which keeps its place in the tenant's gate in the same way.
    Held {
        bytes: Bytes,
        trailers: Option<HeaderMap>,
        _place: Place,
    },
    /// The same for a long one.
    Long(Held),
    Api(axum::body::Body),
    Grpc(tonic::body::Body),
}

impl EdgeBody {
    pub(crate) fn full(bytes: impl Into<Bytes>) -> Self {
        EdgeBody::Full(bytes.into())
    }

    /// An inference's answer, with the place that lasts until it is gone.
    pub(crate) fn held(bytes: Bytes, place: Place, trailers: Option<HeaderMap>) -> Self {
        match bytes.len() > HELD_WHOLE_BYTES_MAX {
            true => EdgeBody::Long(Held::new(bytes, place, trailers)),
            false => EdgeBody::Held { bytes, trailers, _place: place },
        }
    }
}

impl Body for EdgeBody {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match &mut *self {
            EdgeBody::Full(bytes) if bytes.is_empty() => Poll::Ready(None),
            EdgeBody::Held { bytes, trailers, .. } if bytes.is_empty() => {
                Poll::Ready(trailers.take().map(|map| Ok(Frame::trailers(map))))
            }
            EdgeBody::Long(body) => Pin::new(body).poll_frame(context),
            EdgeBody::Full(bytes) | EdgeBody::Held { bytes, .. } => {
                Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes)))))
            }
            EdgeBody::Guest { body, sent, .. } => {
                let mut frame = Pin::new(body).poll_frame(context);
                if let Poll::Ready(Some(Ok(frame))) = &mut frame {
                    sent.add(frame.data_ref().map_or(0, Bytes::len));
                    if let Some(trailers) = frame.trailers_mut() {
                        // This header is ours to set.
                        trailers.remove(ERROR_HEADER);
                    }
                }
                frame.map(|frame| frame.map(|f| f.map_err(Into::into)))
            }
            EdgeBody::Api(body) => {
                Pin::new(body).poll_frame(context).map(|frame| frame.map(|f| f.map_err(Into::into)))
            }
            EdgeBody::Grpc(body) => {
                Pin::new(body).poll_frame(context).map(|frame| frame.map(|f| f.map_err(Into::into)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            EdgeBody::Full(bytes) => bytes.is_empty(),
            EdgeBody::Held { bytes, trailers, .. } => bytes.is_empty() && trailers.is_none(),
            EdgeBody::Long(body) => body.is_end_stream(),
            EdgeBody::Guest { body, .. } => body.is_end_stream(),
            EdgeBody::Api(body) => body.is_end_stream(),
            EdgeBody::Grpc(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            EdgeBody::Held { trailers: Some(_), .. } => SizeHint::default(),
            EdgeBody::Full(bytes) | EdgeBody::Held { bytes, .. } => {
                SizeHint::with_exact(bytes.len() as u64)
            }
            EdgeBody::Long(body) => body.size_hint(),
            EdgeBody::Guest { body, .. } => body.size_hint(),
            EdgeBody::Api(body) => body.size_hint(),
            EdgeBody::Grpc(body) => body.size_hint(),
        }
    }
}
