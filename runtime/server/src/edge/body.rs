//! The bodies of responses, whoever writes them.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use sandpiper_sandbox::{BodyError, GuestBody};

use super::flow::{BoxError, Flow, Whole};
use crate::{
    admission::{Entry, Transferred},
    oip::Place,
    respond::ERROR_HEADER,
};

/// A response's body: a few bytes of our own, a function's stream, an inference's answer, the control plane's, or
/// gRPC's. What a client may leave unread is watched.
pub(crate) enum EdgeBody {
    Full(Bytes),
    /// Keeps the request's places in the gates until it is read or given up.
    Guest(Flow<OfGuest, Arc<Entry>>),
    /// Keeps its place in the tenant's gate in the same way.
    Held(Flow<Whole, Option<Place>>),
    Api(Flow<axum::body::Body, ()>),
    Grpc(tonic::body::Body),
}

impl EdgeBody {
    pub(crate) fn full(bytes: impl Into<Bytes>) -> Self {
        EdgeBody::Full(bytes.into())
    }

    /// A function's answer, with the places that last until it is gone.
    pub(crate) fn guest(body: GuestBody, sent: Transferred, places: Arc<Entry>) -> Self {
        EdgeBody::Guest(Flow::new(OfGuest { body, sent }, places))
    }

    /// An inference's answer, or whatever else has a place, which lasts until the answer is gone.
    pub(crate) fn held(
        bytes: Bytes,
        place: impl Into<Option<Place>>,
        trailers: Option<HeaderMap>,
    ) -> Self {
        EdgeBody::Held(Flow::new(Whole::new(bytes, trailers), place.into()))
    }

    /// An answer of the control plane.
    pub(crate) fn api(body: axum::body::Body) -> Self {
        EdgeBody::Api(Flow::new(body, ()))
    }
}

impl Body for EdgeBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut *self {
            EdgeBody::Full(bytes) if bytes.is_empty() => Poll::Ready(None),
            EdgeBody::Full(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            EdgeBody::Guest(body) => Pin::new(body).poll_frame(context),
            EdgeBody::Held(body) => Pin::new(body).poll_frame(context),
            EdgeBody::Api(body) => Pin::new(body).poll_frame(context),
            EdgeBody::Grpc(body) => {
                Pin::new(body).poll_frame(context).map(|frame| frame.map(|f| f.map_err(Into::into)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            EdgeBody::Full(bytes) => bytes.is_empty(),
            EdgeBody::Guest(body) => body.is_end_stream(),
            EdgeBody::Held(body) => body.is_end_stream(),
            EdgeBody::Api(body) => body.is_end_stream(),
            EdgeBody::Grpc(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            EdgeBody::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            EdgeBody::Guest(body) => body.size_hint(),
            EdgeBody::Held(body) => body.size_hint(),
            EdgeBody::Api(body) => body.size_hint(),
            EdgeBody::Grpc(body) => body.size_hint(),
        }
    }
}

/// A function's answer, whose bytes are billed.
pub(crate) struct OfGuest {
    body: GuestBody,
    sent: Transferred,
}

impl Body for OfGuest {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut frame = Pin::new(&mut self.body).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &mut frame {
            self.sent.add(frame.data_ref().map_or(0, Bytes::len));
            if let Some(trailers) = frame.trailers_mut() {
                // This header is ours to set.
                trailers.remove(ERROR_HEADER);
            }
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
