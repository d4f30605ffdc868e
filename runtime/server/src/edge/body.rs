//! The bodies of responses, whoever writes them.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use sandpiper_sandbox::GuestBody;

use crate::admission::Permit;

/// A response's body: a few bytes of our own, a function's stream, the control plane's, or gRPC's.
pub(crate) enum EdgeBody {
    Full(Bytes),
    /// Keeps the request's places in the gates until it is read or dropped.
    Guest {
        body: GuestBody,
        _places: Arc<[Permit; 2]>,
    },
    /// An inference's answer, which keeps its place in the tenant's gate in the same way.
    Held {
        bytes: Bytes,
        _place: Permit,
    },
    Api(axum::body::Body),
    /// Keeps the request's place in the tenant's gate until it is read or dropped.
    Grpc {
        body: tonic::body::Body,
        _place: Option<Permit>,
    },
}

impl EdgeBody {
    pub(crate) fn full(bytes: impl Into<Bytes>) -> Self {
        EdgeBody::Full(bytes.into())
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
            EdgeBody::Full(bytes) | EdgeBody::Held { bytes, .. } if bytes.is_empty() => {
                Poll::Ready(None)
            }
            EdgeBody::Full(bytes) | EdgeBody::Held { bytes, .. } => {
                Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes)))))
            }
            EdgeBody::Guest { body, .. } => {
                Pin::new(body).poll_frame(context).map(|frame| frame.map(|f| f.map_err(Into::into)))
            }
            EdgeBody::Api(body) => {
                Pin::new(body).poll_frame(context).map(|frame| frame.map(|f| f.map_err(Into::into)))
            }
            EdgeBody::Grpc { body, .. } => {
                Pin::new(body).poll_frame(context).map(|frame| frame.map(|f| f.map_err(Into::into)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            EdgeBody::Full(bytes) | EdgeBody::Held { bytes, .. } => bytes.is_empty(),
            EdgeBody::Guest { body, .. } => body.is_end_stream(),
            EdgeBody::Api(body) => body.is_end_stream(),
            EdgeBody::Grpc { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            EdgeBody::Full(bytes) | EdgeBody::Held { bytes, .. } => {
                SizeHint::with_exact(bytes.len() as u64)
            }
            EdgeBody::Guest { body, .. } => body.size_hint(),
            EdgeBody::Api(body) => body.size_hint(),
            EdgeBody::Grpc { body, .. } => body.size_hint(),
        }
    }
}
