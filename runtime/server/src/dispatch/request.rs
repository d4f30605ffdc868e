//! A client's request as the guest sees it.

use std::{
    pin::Pin,
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Uri, Version, header, uri::PathAndQuery};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use sandpiper_control::Counted;

use super::route::Target;
use crate::{
    admission::Transferred,
    edge::Peer,
    respond::{Problem, REQUEST_ID},
};

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

pub(super) type GuestRequest = Request<RequestBody>;

/// The request as the guest sees it: its own path, without our key, with headers it can rely on. Also says whether the
/// body turned out too large, where that is not known yet.
pub(super) fn for_guest(
    request: Request<Incoming>,
    target: &Target,
    peer: &Peer,
    request_id: &HeaderValue,
) -> Result<(GuestRequest, Option<Arc<AtomicBool>>), Problem> {
    let limit_mib = target.grant.sandbox.request_body_mib;
    let limit = limit_mib << 20;
    let (mut parts, body) = request.into_parts();
    if body.size_hint().lower() > limit {
        return Err(Problem::too_large("request's body", limit_mib));
    }
    settle_host(&mut parts)?;
    parts.uri = own_uri(&parts.uri, target.rest)?;
    if target.strip_key {
        parts.headers.remove(header::AUTHORIZATION);
    }
    set_forwarded(&mut parts.headers, peer);
    parts.headers.insert(REQUEST_ID, request_id.clone());
    // A body whose length is known is not read further than that by hyper.
    let overflow = body.size_hint().exact().is_none().then(Arc::<AtomicBool>::default);
    let left = overflow.clone().map(|overflow| (limit, overflow));
    let taken = Transferred::new(target.runtime.meter.clone(), Counted::BytesIn);
    let body = RequestBody { body, left, taken, unread: peer.unread.clone() };
    Ok((Request::from_parts(parts, body), overflow))
}

/// Sees to it that there is one `host` header, whatever the protocol calls it: HTTP/2 puts it in the URI, HTTP/1.0 may
/// leave it out.
fn settle_host(parts: &mut http::request::Parts) -> Result<(), Problem> {
    let bad = |what| Problem::bad_request(format!("the Host header is {what}"));
    if let Some(authority) = parts.uri.authority() {
        let host = HeaderValue::from_str(authority.as_str()).map_err(|_| bad("malformed"))?;
        parts.headers.insert(header::HOST, host);
        return Ok(());
    }
    let mut hosts = parts.headers.get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(host), None) if host.to_str().is_ok() => {}
        (Some(_), None) => return Err(bad("malformed")),
        (Some(_), Some(_)) => return Err(bad("there twice")),
        (None, _) if parts.version == Version::HTTP_10 => {
            parts.headers.insert(header::HOST, HeaderValue::from_static("localhost"));
        }
        (None, _) => return Err(bad("missing")),
    }
    Ok(())
}

/// `/fn/acme/hello/a?b` is `/a?b` to the function, and `/fn/acme/hello` is `/`.
pub(super) fn own_uri(uri: &Uri, rest: usize) -> Result<Uri, Problem> {
    let whole = uri.path_and_query().map_or("/", PathAndQuery::as_str);
    let own = whole.get(rest..).unwrap_or_default();
    let own = match own.starts_with('/') {
        true => PathAndQuery::from_str(own),
        false => PathAndQuery::from_str(&format!("/{own}")),
    };
    own.map(Uri::from).map_err(|_| Problem::bad_request("the request's path is malformed"))
}

/// Only a configured proxy may say whom it speaks for.
fn set_forwarded(headers: &mut HeaderMap, peer: &Peer) {
    if peer.is_trusted {
        headers.append(FORWARDED_FOR, peer.address.clone());
        return;
    }
    let is_claim = |name: &HeaderName| {
        let name = name.as_str();
        name.starts_with("x-forwarded-") || name == "forwarded" || name == "x-real-ip"
    };
    if headers.keys().any(is_claim) {
        let claims: Vec<_> = headers.keys().filter(|name| is_claim(name)).cloned().collect();
        for name in claims {
            headers.remove(name);
        }
    }
    headers.insert(FORWARDED_FOR, peer.address.clone());
}

/// A request's body, cut off with an error where it goes beyond its limit.
pub(super) struct RequestBody {
    body: Incoming,
    left: Option<(u64, Arc<AtomicBool>)>,
    taken: Transferred,
    /// No longer so when it has been read to its end.
    unread: Arc<AtomicBool>,
}

/// Why a guest could not read on.
#[derive(Debug, thiserror::Error)]
pub(super) enum RequestBodyError {
    #[error("the body is larger than the limit")]
    TooLarge,
    #[error(transparent)]
    Client(#[from] hyper::Error),
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = RequestBodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RequestBodyError>>> {
        let frame = match Pin::new(&mut self.body).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => frame,
            Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error.into()))),
            Poll::Ready(None) => {
                self.unread.store(false, Relaxed);
                return Poll::Ready(None);
            }
            Poll::Pending => return Poll::Pending,
        };
        if let (Some((left, overflow)), Some(data)) = (&mut self.left, frame.data_ref()) {
            match left.checked_sub(data.len() as u64) {
                Some(rest) => *left = rest,
                None => {
                    overflow.store(true, Relaxed);
                    return Poll::Ready(Some(Err(RequestBodyError::TooLarge)));
                }
            }
        }
        let bytes = frame.data_ref().map_or(0, Bytes::len);
        self.taken.add(bytes);
        if self.body.is_end_stream() {
            self.unread.store(false, Relaxed);
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
