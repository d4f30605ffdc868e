//! The protocol over gRPC: the same port, the same calls of [`super::service`], other frames.
//!
//! 1. The edge brings what is gRPC here, whatever its path: an unknown method must be told in gRPC's way.
//! 2. The key is checked, and for an inference the tenant's gate passed, before a byte of the message is read.
//! 3. tonic reads the message with the tenant's limit of size; [`codec`] looks at it before it is decoded.
//! 4. The call runs on the connection's task. A client that leaves drops it, and its place in the queue with it.

use std::{
    future::{Future, ready},
    sync::Arc,
    time::Instant,
};

use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version, header};
use hyper::body::Incoming;
use prost::Message;
use tonic::{Code, Status, body::Body, codec::CompressionEncoding, server};
use tower::service_fn;

mod admin;
mod codec;
mod health;
mod infer;
mod message;
#[cfg(test)]
mod message_tests;
mod status;
mod tensors;

use codec::{Check, CheckedCodec, Decoded};
use infer::{Clock, InferStream};
use message::{
    ModelInferRequest, ServerLiveRequest, ServerLiveResponse, ServerMetadataRequest,
    ServerReadyRequest, ServerReadyResponse, health::HealthCheckRequest,
};

use super::{Caller, OipError};
use crate::{
    admission::Permit,
    app::App,
    dispatch::bearer,
    edge::{EdgeBody, Paced, request_id},
    respond::{Problem, REQUEST_ID},
};

const INFERENCE: &str = "/inference.GRPCInferenceService/";
const HEALTH: &str = "/grpc.health.v1.Health/";
/// The longest message that is no inference.
const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// Longer answers are not compressed: that would hold up everything else on the thread.
const COMPRESSED_BYTES_MAX: usize = 1 << 20;

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
            let (response, place) = match call.route(request).await {
                Ok(answered) => answered,
                Err(status) => (status.into_http(), None),
            };
            response.map(|body| EdgeBody::Grpc { body, _place: place })
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

/// A response, and the place in the tenant's gate that lasts as long.
type Answered = Result<(Response<Body>, Option<Permit>), Status>;

struct Call<'a> {
    app: &'a Arc<App>,
    request_id: Arc<str>,
    began: Instant,
}

impl Call<'_> {
    async fn route(&self, request: Request<Incoming>) -> Answered {
        let path = request.uri().path().to_owned();
        if let Some(method) = path.strip_prefix(HEALTH) {
            return Ok((self.health(method, request).await?, None));
        }
        match path.strip_prefix(INFERENCE) {
            Some("ServerLive") => {
                let live = |_: ServerLiveRequest| ready(Ok(ServerLiveResponse { live: true }));
                Ok((unary(request, live).await, None))
            }
            Some("ServerReady") => {
                let response = ServerReadyResponse { ready: !self.app.is_draining() };
                Ok((unary(request, |_: ServerReadyRequest| ready(Ok(response))).await, None))
            }
            Some("ModelInfer") => self.infer(request).await,
            Some("ModelStreamInfer") => Ok((self.stream(request).await?, None)),
            Some(method) => self.administer(method, request).await,
            None => Err(Status::unimplemented("there is no such service")),
        }
    }

    async fn health(
        &self,
        method: &str,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, Status> {
        let app = self.app;
        match method {
            "Check" => {
                Ok(unary(request, |q: HealthCheckRequest| ready(health::check(app, &q))).await)
            }
            "Watch" => {
                let service =
                    service_fn(|question: tonic::Request<Decoded<HealthCheckRequest>>| async {
                        let changes = health::watch(app, &question.into_inner()?);
                        Ok::<_, Status>(tonic::Response::new(changes))
                    });
                let mut grpc = grpc(&request, MESSAGE_BYTES_MAX, codec::unchecked);
                Ok(grpc.server_streaming(service, request).await)
            }
            _ => Err(Status::unimplemented("there is no such method")),
        }
    }

    async fn infer(&self, request: Request<Incoming>) -> Answered {
        let timeout = status::timeout(request.headers())?;
        let clock = Clock { began: self.began, timeout };
        let caller = Credentials::of(request.headers())?.caller(self.app)?;
        let place = clock.limit(caller.enter(self.app)).await??;
        let limit = caller.body_bytes_max();
        let service = service_fn(|request: tonic::Request<Decoded<ModelInferRequest>>| async {
            let request = request.into_inner()?;
            let answer = infer::infer(self.app, &caller, &self.request_id, clock, request).await?;
            let is_long = answer.encoded_len() > COMPRESSED_BYTES_MAX;
            let mut response = tonic::Response::new(answer);
            if is_long {
                response.disable_compression();
            }
            Ok::<_, Status>(response)
        });
        let mut grpc = grpc(&request, limit, codec::inference);
        Ok((grpc.unary(service, request.map(Paced::new)).await, Some(place)))
    }

    async fn stream(&self, request: Request<Incoming>) -> Result<Response<Body>, Status> {
        let clock = Clock { began: self.began, timeout: status::timeout(request.headers())? };
        let credentials = Credentials::of(request.headers())?;
        let caller = credentials.caller(self.app)?;
        let streams = self.app.admission(&caller.tenant).streams.clone();
        let place = streams.try_acquire_owned().map_err(|_| {
            let text = "as many streams of this tenant are open as its concurrency allows";
            OipError::TooManyRequests(text.to_owned())
        })?;
        let limit = caller.body_bytes_max();
        let (app, request_id) = (self.app.clone(), self.request_id.clone());
        let mut stream = Some(InferStream { app, credentials, request_id, clock, _place: place });
        let service = service_fn(|requests: tonic::Request<_>| {
            let answers = stream.take().map(|stream| stream.answer(requests.into_inner()));
            let answers = answers.ok_or_else(|| Status::internal("a call was taken twice"));
            std::future::ready(answers.map(tonic::Response::new))
        });
        // Answers of a stream are not compressed: one by one they could not be told not to be.
        let mut grpc = server::Grpc::new(CheckedCodec::new(codec::inference))
            .accept_compressed(CompressionEncoding::Gzip)
            .max_decoding_message_size(limit);
        Ok(grpc.streaming(service, request).await)
    }

    async fn administer(&self, method: &str, request: Request<Incoming>) -> Answered {
        if method.contains("SharedMemory") {
            let text = "this server shares no memory with its clients: send tensors in the request";
            return Err(Status::unimplemented(text));
        }
        let caller = &Credentials::of(request.headers())?.caller(self.app)?;
        let app: &App = self.app;
        let place = match method {
            "ModelConfig" | "ModelStatistics" | "RepositoryIndex" | "RepositoryModelLoad" => {
                let timeout = status::timeout(request.headers())?;
                let clock = Clock { began: self.began, timeout };
                Some(clock.limit(caller.enter_reading(app)).await??)
            }
            _ => None,
        };
        let response = match method {
            "ServerMetadata" => {
                unary(request, |_: ServerMetadataRequest| ready(Ok(admin::server_metadata()))).await
            }
            "ModelReady" => unary(request, |q| ready(admin::model_ready(app, caller, &q))).await,
            "ModelMetadata" => {
                unary(request, |q| ready(admin::model_metadata(app, caller, &q))).await
            }
            "ModelConfig" => unary(request, |q| admin::model_config(app, caller, q)).await,
            "ModelStatistics" => {
                unary(request, |q| self.apart(caller, q, admin::model_statistics)).await
            }
            "RepositoryIndex" => unary(request, |q| self.apart(caller, q, admin::index)).await,
            "RepositoryModelLoad" => unary(request, |q| admin::load(app, caller, q)).await,
            "RepositoryModelUnload" => {
                unary(request, |q| ready(admin::unload(app, caller, q))).await
            }
            "TraceSetting" => unary(request, |q| ready(admin::trace_setting(&q))).await,
            "LogSettings" => unary(request, |q| ready(admin::log_settings(&q))).await,
            _ => return Err(Status::unimplemented("there is no such method")),
        };
        Ok((response, place))
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

/// A call with one short message each way.
async fn unary<A, Q, F>(
    request: Request<Incoming>,
    mut handle: impl FnMut(Q) -> F + Send,
) -> Response<Body>
where
    A: Message + Send + 'static,
    Q: Message + Default + Send + 'static,
    F: Future<Output = Result<A, OipError>> + Send,
{
    let service = service_fn(|question: tonic::Request<Decoded<Q>>| {
        let answer = question.into_inner().map(&mut handle);
        async { Ok(tonic::Response::new(answer?.await?)) }
    });
    let mut grpc = grpc(&request, MESSAGE_BYTES_MAX, codec::unchecked);
    grpc.unary(service, request).await
}

/// Every client says that it can read gzip; one that also writes it wants it.
fn grpc<A, Q>(
    request: &Request<Incoming>,
    message_bytes_max: usize,
    check: Check,
) -> server::Grpc<CheckedCodec<A, Q>>
where
    A: Message + Send + 'static,
    Q: Message + Default + Send + 'static,
{
    let grpc = server::Grpc::new(CheckedCodec::new(check))
        .accept_compressed(CompressionEncoding::Gzip)
        .max_decoding_message_size(message_bytes_max);
    match request.headers().get("grpc-encoding").is_some_and(|encoding| encoding == "gzip") {
        true => grpc.send_compressed(CompressionEncoding::Gzip),
        false => grpc,
    }
}
