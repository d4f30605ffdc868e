//! The protocol over gRPC: the same port, the same calls of [`super::service`], other frames.
//!
//! 1. The edge brings what is gRPC here, whatever its path: an unknown method must be told in gRPC's way.
//! 2. For an inference the key is checked and the tenant's gate passed before a byte of the message is read, in a
//!    stream for each of its messages anew. A load is read like an upload. Other calls have short messages, and
//!    those without a key very short ones.
//! 3. [`frames`] reads the message with the tenant's limit of size, and charges its bytes; [`codec`] counts what an
//!    inference becomes, which is charged too, before it is decoded; and a long one is compared with its model by its
//!    [`outline`] first.
//! 4. The call runs on the connection's task. A client that leaves drops it, and its place in the queue with it.

use std::{
    future::{Future, ready},
    sync::Arc,
    time::Instant,
};

use bytes::Bytes;
use futures::StreamExt;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version, header};
use http_body::Frame as BodyFrame;
use http_body_util::StreamBody;
use hyper::body::Incoming;
use prost::Message;
use sandpiper_domain::Scope;
use tonic::{Code, Status, body::Body};

mod admin;
mod codec;
mod frames;
mod health;
mod infer;
mod message;
#[cfg(test)]
mod message_tests;
mod outline;
mod status;
mod stream;
mod tensors;

use frames::Frames;
use infer::{Clock, Unary};
use message::{
    ServerLiveRequest, ServerLiveResponse, ServerMetadataRequest, ServerReadyRequest,
    ServerReadyResponse, health::HealthCheckRequest,
};
use stream::InferStream;

use super::{Caller, OipError, Place, place::INLINE_BYTES_MAX};
use crate::{
    app::App,
    budget::Charge,
    dispatch::bearer,
    edge::{EdgeBody, request_id},
    respond::{Problem, REQUEST_ID},
    uploads,
};

const INFERENCE: &str = "/inference.GRPCInferenceService/";
const HEALTH: &str = "/grpc.health.v1.Health/";
/// The longest message that is no inference.
const CALL_BYTES_MAX: usize = 64 << 10;
/// The longest message of a call that needs no key: nobody is charged for it.
const OPEN_BYTES_MAX: usize = 1 << 10;
/// What a load may have beside a model's file.
const LOAD_BYTES_BESIDE: usize = 1 << 20;

/// Whether a request is for [`answer`].
pub(crate) fn is_grpc(request: &Request<Incoming>) -> bool {
    let path = request.uri().path();
    let kind = request.headers().get(header::CONTENT_TYPE);
    kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
        || path.starts_with(INFERENCE)
        || path.starts_with(HEALTH)
}

/// Answers a call.
pub(crate) async fn answer(app: &Arc<App>, request: Request<Incoming>) -> Response<EdgeBody> {
    let request_id = request_id(&request);
    let mut response = match refuse(&request) {
        Some(problem) => problem.into_response(&request_id),
        None => {
            let call = Call { app, request_id: request_id.clone(), began: Instant::now() };
            let answered = call.route(request).await;
            answered.unwrap_or_else(|status| status.into_http::<Body>().map(EdgeBody::Grpc))
        }
    };
    if let Some(code) = response.headers_mut().get_mut(Status::GRPC_STATUS)
        && let Some(other) = status::of_others(Code::from_bytes(code.as_bytes()))
    {
        *code = HeaderValue::from(other as i32);
    }
    if let Ok(id) = HeaderValue::from_str(&request_id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}

/// What is no gRPC at all is told in HTTP.
fn refuse(request: &Request<Incoming>) -> Option<Problem> {
    if request.version() < Version::HTTP_2 {
        let text = "gRPC needs HTTP/2";
        return Some(Problem::new(StatusCode::HTTP_VERSION_NOT_SUPPORTED, "http_version", text));
    }
    if request.method() != Method::POST {
        let text = "gRPC's calls are POST";
        return Some(Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", text));
    }
    let kind = request.headers().get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    match kind {
        Some(b"application/grpc" | b"application/grpc+proto") => None,
        _ => {
            let text = "the content type must be application/grpc";
            Some(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", text))
        }
    }
}

/// The key, and the tenant that the operator names; kept where a caller must be found again.
struct Credentials {
    key: Option<String>,
    tenant: Option<String>,
}

impl Credentials {
    fn of(headers: &HeaderMap) -> Result<Self, OipError> {
        let key = bearer(headers).map_err(|problem| OipError::invalid(problem.message))?;
        let tenant = headers.get("x-sandpiper-tenant").and_then(|name| name.to_str().ok());
        Ok(Credentials { key: key.map(str::to_owned), tenant: tenant.map(str::to_owned) })
    }

    fn caller(&self, app: &App) -> Result<Caller, OipError> {
        Caller::find(app, self.key.as_deref(), self.tenant.as_deref())
    }
}

type Answered = Result<Response<EdgeBody>, Status>;

struct Call<'a> {
    app: &'a Arc<App>,
    request_id: Arc<str>,
    began: Instant,
}

impl Call<'_> {
    async fn route(&self, request: Request<Incoming>) -> Answered {
        let path = request.uri().path().to_owned();
        if let Some(method) = path.strip_prefix(HEALTH) {
            return self.health(method, request).await;
        }
        match path.strip_prefix(INFERENCE) {
            Some("ServerLive") => {
                self.open(request, |_: ServerLiveRequest| Ok(ServerLiveResponse { live: true }))
                    .await
            }
            Some("ServerReady") => {
                let response = ServerReadyResponse { ready: self.app.is_ready() };
                self.open(request, |_: ServerReadyRequest| Ok(response)).await
            }
            Some("ServerMetadata") => {
                self.open(request, |_: ServerMetadataRequest| Ok(admin::server_metadata())).await
            }
            Some("ModelInfer") => self.infer(request).await,
            Some("ModelStreamInfer") => self.stream(request),
            Some("RepositoryModelLoad") => self.load(request).await,
            Some(method) => self.administer(method, request).await,
            None => Err(Status::unimplemented("there is no such service")),
        }
    }

    fn clock(&self, headers: &HeaderMap) -> Result<Clock, Status> {
        Ok(Clock { began: self.began, timeout: status::timeout(headers)? })
    }

    async fn health(&self, method: &str, request: Request<Incoming>) -> Answered {
        let app = self.app;
        match method {
            "Check" => self.open(request, |q: HealthCheckRequest| health::check(app, &q)).await,
            "Watch" => {
                let question = self.question(request, OPEN_BYTES_MAX, None).await?;
                let changes = health::watch(app, &question)
                    .map(|change| frames::write(&change, false).map(BodyFrame::data));
                let end = futures::stream::iter([Ok(BodyFrame::trailers(success()?))]);
                let body = Body::new(StreamBody::new(changes.chain(end)));
                let mut response = Response::new(EdgeBody::Grpc(body));
                head_of_answer(response.headers_mut());
                Ok(response)
            }
            _ => Err(Status::unimplemented("there is no such method")),
        }
    }

    /// A call that needs no key, with one very short message each way.
    async fn open<Q: Message + Default, A: Message>(
        &self,
        request: Request<Incoming>,
        answer: impl FnOnce(Q) -> Result<A, OipError>,
    ) -> Answered {
        let question = self.question(request, OPEN_BYTES_MAX, None).await?;
        answered(frames::write(&answer(question)?, false)?, None)
    }

    /// The one message of a call that is no inference.
    async fn question<Q: Message + Default>(
        &self,
        request: Request<Incoming>,
        bytes_max: usize,
        mut charge: Option<&mut Charge>,
    ) -> Result<Q, Status> {
        let clock = self.clock(request.headers())?;
        let (parts, body) = request.into_parts();
        let mut frames = Frames::new(&parts.headers, body, bytes_max)?;
        let head = clock.limit(frames.first()).await??;
        let frame = frames.message(head, charge.as_deref_mut()).await?;
        Ok(codec::decode(frame.unpack(charge)?)?)
    }

    async fn infer(&self, request: Request<Incoming>) -> Answered {
        let clock = self.clock(request.headers())?;
        let caller = Credentials::of(request.headers())?.caller(self.app)?;
        let mut place = clock.limit(caller.enter(self.app)).await??;
        let wants_gzip = sends_gzip(request.headers());
        let (parts, body) = request.into_parts();
        let mut frames = Frames::new(&parts.headers, body, caller.body_bytes_max())?;
        let head = clock.limit(frames.first()).await??;
        let frame = frames.message(head, Some(&mut place.charge)).await?;
        let call = Unary { app: self.app, caller: &caller, request_id: &self.request_id, clock };
        let (message, place) = call.answer(frame, wants_gzip, place).await?;
        answered(message, Some(place))
    }

    /// A load, which may bring a model: it is read as uploads are, and not charged to the memory of inferences.
    async fn load(&self, request: Request<Incoming>) -> Answered {
        let clock = self.clock(request.headers())?;
        let caller = Credentials::of(request.headers())?.caller(self.app)?;
        caller.must_have(&[Scope::Models])?;
        let place = clock.limit(caller.enter_reading(self.app)).await??;
        let (parts, body) = request.into_parts();
        let limit_mib = caller.tenant.limits.model_mib;
        let bytes_max = LOAD_BYTES_BESIDE + ((limit_mib as usize) << 20);
        let mut frames = Frames::new(&parts.headers, body, bytes_max)?;
        let head = clock.limit(frames.first()).await??;
        // Nothing but a file makes a load so long.
        let is_long = head.may_exceed(INLINE_BYTES_MAX);
        let places = is_long.then(|| uploads::enter(self.app, &caller.tenant)).transpose();
        let places = places.map_err(OipError::from)?;
        let frame = frames.message(head, None).await?;
        let read = move || {
            let message = frame.unpack(None)?;
            codec::check_load(&message)?;
            codec::decode(message)
        };
        let question = match is_long {
            true => tokio::task::spawn_blocking(read).await.map_err(OipError::internal)??,
            false => read()?,
        };
        let answer = admin::load(self.app, &caller, question, places).await?;
        answered(frames::write(&answer, false)?, Some(place))
    }

    fn stream(&self, request: Request<Incoming>) -> Answered {
        let clock = self.clock(request.headers())?;
        let credentials = Credentials::of(request.headers())?;
        let caller = credentials.caller(self.app)?;
        let streams = self.app.admission(&caller.tenant).streams.clone();
        let place = streams.try_acquire_owned().map_err(|_| {
            let text = "as many streams of this tenant are open as its concurrency allows";
            OipError::too_many(text)
        })?;
        let (app, request_id) = (self.app.clone(), self.request_id.clone());
        let (parts, body) = request.into_parts();
        let frames = Frames::new(&parts.headers, body, caller.body_bytes_max())?;
        let stream = InferStream { app, credentials, request_id, clock, _place: place };
        let body = Body::new(StreamBody::new(stream.answer(frames)));
        let mut response = Response::new(EdgeBody::Grpc(body));
        head_of_answer(response.headers_mut());
        Ok(response)
    }

    async fn administer(&self, method: &str, request: Request<Incoming>) -> Answered {
        if method.contains("SharedMemory") {
            let text = "this server shares no memory with its clients: send tensors in the request";
            return Err(Status::unimplemented(text));
        }
        let caller = &Credentials::of(request.headers())?.caller(self.app)?;
        let app: &App = self.app;
        let place = match method {
            "ModelConfig" | "ModelStatistics" | "RepositoryIndex" => {
                self.clock(request.headers())?.limit(caller.enter_reading(app)).await??
            }
            _ => caller.enter_free(app)?,
        };
        let call = Keyed { call: self, caller, place, request };
        match method {
            "ModelReady" => call.answer(|q| ready(admin::model_ready(app, caller, &q))).await,
            "ModelMetadata" => call.answer(|q| ready(admin::model_metadata(app, caller, &q))).await,
            "ModelConfig" => call.answer(|q| admin::model_config(app, caller, q)).await,
            "ModelStatistics" => {
                call.answer(|q| self.apart(caller, q, admin::model_statistics)).await
            }
            "RepositoryIndex" => call.answer(|q| self.apart(caller, q, admin::index)).await,
            "RepositoryModelUnload" => call.answer(|q| ready(admin::unload(app, caller, q))).await,
            "TraceSetting" => call.answer(|q| ready(admin::trace_setting(&q))).await,
            "LogSettings" => call.answer(|q| ready(admin::log_settings(&q))).await,
            _ => Err(Status::unimplemented("there is no such method")),
        }
    }

    /// Answers that may be long are put together on a thread that may take its time.
    async fn apart<Q: Send + 'static, A: Send + 'static>(
        &self,
        caller: &Caller,
        question: Q,
        answer: fn(&App, &Caller, &Q) -> Result<A, OipError>,
    ) -> Result<A, OipError> {
        let (app, caller) = (self.app.clone(), caller.clone());
        let work = move || answer(&app, &caller, &question);
        tokio::task::spawn_blocking(work).await.map_err(OipError::internal)?
    }
}

/// A call of a tenant's with one short message in, and one out that may be long.
struct Keyed<'a> {
    call: &'a Call<'a>,
    caller: &'a Caller,
    place: Place,
    request: Request<Incoming>,
}

impl Keyed<'_> {
    async fn answer<Q, A, F>(self, handle: impl FnOnce(Q) -> F) -> Answered
    where
        Q: Message + Default,
        A: Message + 'static,
        F: Future<Output = Result<A, OipError>>,
    {
        let Keyed { call, caller, mut place, request } = self;
        let clock = call.clock(request.headers())?;
        let wants_gzip = sends_gzip(request.headers());
        let charge = Some(&mut place.charge);
        let answer = handle(call.question(request, CALL_BYTES_MAX, charge).await?).await?;
        let writer = Unary { app: call.app, caller, request_id: &call.request_id, clock };
        let (message, place) = writer.write(answer, wants_gzip, place).await?;
        answered(message, Some(place))
    }
}

/// The one message of an answer, with the place that lasts until it is gone.
fn answered(message: Bytes, place: Option<Place>) -> Answered {
    let is_packed = message.first() == Some(&1);
    let mut response = Response::new(EdgeBody::held(message, place, Some(success()?)));
    head_of_answer(response.headers_mut());
    if is_packed {
        let gzip = HeaderValue::from_static("gzip");
        response.headers_mut().insert("grpc-encoding", gzip);
    }
    Ok(response)
}

/// The trailers of a call that went well.
fn success() -> Result<HeaderMap, Status> {
    let mut trailers = HeaderMap::new();
    Status::ok("").add_header(&mut trailers)?;
    Ok(trailers)
}

fn head_of_answer(headers: &mut HeaderMap) {
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
}

/// Every client says that it can read gzip; one that also writes it wants it.
fn sends_gzip(headers: &HeaderMap) -> bool {
    headers.get("grpc-encoding").is_some_and(|encoding| encoding == "gzip")
}
