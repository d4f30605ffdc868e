//! Sockets and connections: accept, guard, speak HTTP/1.1 or HTTP/2. [`lifetime`] says when, and [`successor`] who is
//! next.

use std::{
    convert::Infallible,
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version, header};
use http_body::Body as _;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit, TryAcquireError},
};

mod body;
mod flow;
mod guard;
mod lifetime;
mod pace;
mod successor;
mod supervisor;
mod watched;
mod whole;

pub(crate) use body::EdgeBody;
pub use lifetime::Ended;
pub(crate) use lifetime::{Phase, serve};
pub(crate) use pace::{Paced, TooSlow};
pub(crate) use watched::{Unread, Watched};
pub(crate) use whole::Whole;

use crate::{
    api,
    app::App,
    dispatch, oip,
    respond::{ERROR_HEADER, Problem, REQUEST_ID},
};

/// How long a client may take for its request's head, and for the first bytes that tell its protocol.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may leave a response unread. What it does not read stays in memory.
pub(crate) const STALL_TIMEOUT: Duration = Duration::from_secs(60);
/// The head of an HTTP/1.1 request, and what hyper buffers of a body beyond it.
const BUFFER_BYTES_MAX: usize = 64 * 1024;
const H2_HEADER_BYTES_MAX: u32 = 16 * 1024;
const H2_STREAMS_MAX: u32 = 128;
/// How much of a body that nobody reads a client may send over HTTP/2.
const H2_STREAM_WINDOW_BYTES: u32 = 128 * 1024;
/// Every stream of a connection may be left unread, and the next one still be read.
const H2_CONNECTION_WINDOW_BYTES: u32 = H2_STREAMS_MAX * H2_STREAM_WINDOW_BYTES;
/// Bodies that come over HTTP/2 and are not answered yet, over all connections: 2 GiB if nobody reads them. Those who
/// read on in an answer that has begun are no more than there are sandboxes.
const H2_BODIES_MAX: usize = 16 * 1024;

/// Who is at the other end of a connection.
pub(crate) struct Peer {
    /// Its `x-forwarded-*` headers are believed.
    pub(crate) is_trusted: bool,
    /// Its address, for `x-forwarded-for`.
    pub(crate) address: HeaderValue,
    /// Over HTTP/1.1: something of the latest request's body may be unread.
    pub(crate) unread: Arc<AtomicBool>,
    /// Places for bodies that come over HTTP/2, those of the node.
    bodies: Arc<Semaphore>,
}

impl Peer {
    fn new(address: IpAddr, app: &App, bodies: Arc<Semaphore>) -> Self {
        let address = address.to_canonical();
        Peer {
            is_trusted: app.settings.trusted_proxies.contains(&address),
            address: HeaderValue::from_str(&address.to_string())
                .unwrap_or(HeaderValue::from_static("unknown")),
            unread: Arc::default(),
            bodies,
        }
    }
}

struct Server {
    app: Arc<App>,
    routes: axum::Router,
    http: auto::Builder<TokioExecutor>,
    connections: Arc<Semaphore>,
    bodies: Arc<Semaphore>,
}

impl Server {
    fn new(app: Arc<App>) -> Self {
        let mut http = auto::Builder::new(TokioExecutor::new());
        http.http1()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(BUFFER_BYTES_MAX);
        http.http2()
            .timer(TokioTimer::new())
            .max_header_list_size(H2_HEADER_BYTES_MAX)
            .max_concurrent_streams(H2_STREAMS_MAX)
            .initial_stream_window_size(H2_STREAM_WINDOW_BYTES)
            .initial_connection_window_size(H2_CONNECTION_WINDOW_BYTES)
            .keep_alive_interval(Duration::from_secs(30))
            .keep_alive_timeout(Duration::from_secs(20));
        let routes = api::routes(app.clone());
        let connections = Arc::new(Semaphore::new(app.settings.connections_max));
        let bodies = Arc::new(Semaphore::new(H2_BODIES_MAX));
        Server { app, routes, http, connections, bodies }
    }

    /// Accepts connections for as long as it is polled.
    async fn accept(&self, listener: &TcpListener, graceful: &GracefulShutdown) -> Infallible {
        loop {
            // The place comes before the accept: at the limit, new clients wait in the kernel's queue.
            let permit = self.connections.clone().acquire_owned().await;
            let accepted = listener.accept().await;
            match permit.map_err(io::Error::other).and_then(|permit| Ok((permit, accepted?))) {
                Ok((permit, (stream, peer))) => self.connect(stream, peer, permit, graceful),
                // Out of file descriptors, or a client that left already: others must still be served.
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
    }

    fn connect(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
        permit: OwnedSemaphorePermit,
        graceful: &GracefulShutdown,
    ) {
        let _ = stream.set_nodelay(true);
        let (app, routes) = (self.app.clone(), self.routes.clone());
        let peer = Arc::new(Peer::new(peer.ip(), &app, self.bodies.clone()));
        let unread = peer.unread.clone();
        let io = guard::Guarded::new(stream, HEAD_TIMEOUT, STALL_TIMEOUT, unread);
        let service =
            service_fn(move |request| answer(app.clone(), routes.clone(), peer.clone(), request));
        let io = TokioIo::new(io);
        let connection = self.http.serve_connection(io, service).into_owned();
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended early");
            }
            drop(permit);
        });
    }
}

/// Says that a response was made with the whole of the request's body read, so that the next request can follow it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BodyWasRead;

/// Functions, inferences and gRPC are answered without a router in between; everything else goes to the control plane's
/// routes.
async fn answer(
    app: Arc<App>,
    routes: axum::Router,
    peer: Arc<Peer>,
    request: Request<Incoming>,
) -> Result<Response<EdgeBody>, Infallible> {
    let may_leave_body = request.version() < Version::HTTP_2 && !request.body().is_end_stream();
    peer.unread.store(may_leave_body, Relaxed);
    let Ok(_place) = place_of_body(&peer.bodies, request.version(), request.body()) else {
        let problem = Problem::busy("node_saturated", "the node reads as many bodies as it can");
        return Ok(problem.into_response(&request_id(&request)));
    };
    let path = request.uri().path();
    let is_function = path.starts_with(dispatch::PREFIX);
    let mut response = if !is_expectation_met(request.headers()) {
        refuse_expectation(&request)
    } else if is_function {
        dispatch::answer(&app, &peer, request).await
    } else if oip::grpc::is_grpc(&request) {
        oip::grpc::answer(&app, request).await
    } else if oip::rest::is_path(path) {
        oip::rest::answer(&app, request).await
    } else {
        api::answer(routes, request).await
    };
    let was_read = response.extensions_mut().remove::<BodyWasRead>().is_some();
    let is_refusal = response.headers().contains_key(ERROR_HEADER);
    if was_read || !(is_function || is_refusal) {
        peer.unread.store(false, Relaxed);
    }
    // A refusal may come before the body is read, and then hyper ends the connection. A client that is not told would
    // send its next request into the void. A function may still read, once it has begun its answer.
    if is_refusal && peer.unread.load(Relaxed) {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response)
}

/// A place for a body that may be left unread with much of it in memory, which over HTTP/1.1 no body is.
fn place_of_body<'a>(
    bodies: &'a Semaphore,
    version: Version,
    body: &impl http_body::Body,
) -> Result<Option<SemaphorePermit<'a>>, TryAcquireError> {
    match version == Version::HTTP_2 && !body.is_end_stream() {
        true => bodies.try_acquire().map(Some),
        false => Ok(None),
    }
}

/// `100-continue` is the only expectation there is (RFC 9110, section 10.1.1); hyper meets it when the body
/// is read.
fn is_expectation_met(headers: &HeaderMap) -> bool {
    let mut expected = headers.get_all(header::EXPECT).iter();
    expected.all(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

fn refuse_expectation(request: &Request<Incoming>) -> Response<EdgeBody> {
    let problem = Problem::new(
        StatusCode::EXPECTATION_FAILED,
        "expectation_failed",
        "the request expects something else than `100-continue`",
    );
    let id = request_id(request);
    let mut response = problem.hint("leave the header Expect out").into_response(&id);
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}

/// The id that the client gave, if it can be a header and a log field without harm, or a new one.
pub(crate) fn request_id(request: &Request<Incoming>) -> Arc<str> {
    let given = request.headers().get(REQUEST_ID).and_then(|id| id.to_str().ok());
    let is_fit = |id: &&str| {
        (1..=64).contains(&id.len())
            && id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
    };
    match given.filter(is_fit) {
        Some(id) => id.into(),
        None => format!("{:032x}", rand::random::<u128>()).into(),
    }
}

/// Metrics for a scraper inside the operator's network, without a key.
async fn serve_metrics(listener: Arc<TcpListener>, app: Arc<App>) {
    let scrapes = Arc::new(Semaphore::new(16));
    loop {
        let Ok(permit) = scrapes.clone().acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let app = app.clone();
        tokio::spawn(async move {
            let _permit = permit;
            let service = service_fn(move |request: Request<Incoming>| {
                let app = app.clone();
                async move {
                    let response = match request.uri().path() {
                        "/metrics" => api::metrics_response(&app),
                        _ => Problem::not_found().into_response(&request_id(&request)),
                    };
                    Ok::<_, Infallible>(response)
                }
            });
            let io = TokioIo::new(guard::Guarded::new(
                stream,
                HEAD_TIMEOUT,
                STALL_TIMEOUT,
                Arc::default(),
            ));
            let mut http = hyper::server::conn::http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
            let _ = http.serve_connection(io, service).await;
        });
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http_body_util::{Empty, Full};

    use super::*;

    #[test]
    fn only_so_many_bodies_come_over_http_2() {
        let (bodies, body) = (Semaphore::new(2), Full::<Bytes>::from("x"));
        let first = place_of_body(&bodies, Version::HTTP_2, &body).unwrap();
        let _second = place_of_body(&bodies, Version::HTTP_2, &body).unwrap();
        assert!(place_of_body(&bodies, Version::HTTP_2, &body).is_err());
        assert!(place_of_body(&bodies, Version::HTTP_11, &body).is_ok());
        assert!(place_of_body(&bodies, Version::HTTP_2, &Empty::<Bytes>::new()).is_ok());
        drop(first);
        assert!(place_of_body(&bodies, Version::HTTP_2, &body).is_ok());
    }
}
