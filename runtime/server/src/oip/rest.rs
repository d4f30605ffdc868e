//! The protocol as REST: paths, headers and status.
//!
//! Success is always 200: some clients take nothing else. Errors are `{"error": "…"}` as `application/json`.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use http::{
    HeaderName, HeaderValue, Method, Request, Response, StatusCode, header, request::Parts,
};
use http_body::Body as _;
use hyper::body::Incoming;
use sandpiper_domain::Scope;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Caller, OipError,
    body::{self, BodyError},
    compress,
    compress::Encoding,
    describe, documents,
    place::{INLINE_BYTES_MAX, Place, apart_if},
    repository,
    repository::LoadParameters,
    request, response,
    response::{Format, Written},
    route::{Route, Verb},
    service::{self, InferAnswer, InferCall},
};
use crate::{
    api,
    app::App,
    dispatch::bearer,
    edge::{self, BodyWasRead, EdgeBody},
    respond::{ERROR_HEADER, Problem, REQUEST_ID},
    uploads,
};

/// The length of the JSON in a body that goes on with raw tensors.
const JSON_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");

/// Bodies of anything but inferences.
const CONTROL_BYTES_MAX: usize = 64 * 1024;

/// Whether a path belongs to this protocol.
pub(crate) fn is_path(path: &str) -> bool {
    path.strip_prefix("/v2").is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Answers a request under `/v2`.
pub(crate) async fn answer(app: &Arc<App>, request: Request<Incoming>) -> Response<EdgeBody> {
    let request_id = edge::request_id(&request);
    let header = HeaderValue::from_str(&request_id).unwrap_or(HeaderValue::from_static("none"));
    let mut exchange = Exchange { app, request_id, began: Instant::now(), body_was_read: false };
    let answered = exchange.answer(request).await;
    let mut response = answered.unwrap_or_else(Failure::into_response);
    if exchange.body_was_read {
        response.extensions_mut().insert(BodyWasRead);
    }
    response.headers_mut().insert(REQUEST_ID, header);
    response
}

/// An error with the status that tells it.
struct Failure {
    status: StatusCode,
    code: &'static str,
    message: String,
    retry_after_s: Option<u32>,
    allow: Option<&'static str>,
}

impl From<OipError> for Failure {
    fn from(error: OipError) -> Self {
        let status = match error {
            OipError::InvalidArgument(_) => StatusCode::BAD_REQUEST,
            OipError::NotFound(_) => StatusCode::NOT_FOUND,
            OipError::Unavailable { .. } => StatusCode::SERVICE_UNAVAILABLE,
            OipError::TooManyRequests { .. } => StatusCode::TOO_MANY_REQUESTS,
            OipError::Unauthenticated(_) => StatusCode::UNAUTHORIZED,
            OipError::PermissionDenied(_) => StatusCode::FORBIDDEN,
            OipError::Unsupported(_) => StatusCode::NOT_IMPLEMENTED,
            OipError::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            OipError::DeadlineExceeded(_) => StatusCode::GATEWAY_TIMEOUT,
            OipError::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let retry_after_s = match error {
            OipError::Unavailable { retry_after_s, .. } => Some(retry_after_s),
            OipError::TooManyRequests { retry_after_s, .. } => Some(retry_after_s),
            _ => None,
        };
        let (code, message) = (error.code(), error.to_string());
        Failure { status, code, message, retry_after_s, allow: None }
    }
}

impl From<BodyError> for Failure {
    fn from(error: BodyError) -> Self {
        let is_slow = matches!(error, BodyError::TooSlow);
        let failure = Failure::from(OipError::from(error));
        match is_slow {
            true => Failure { status: StatusCode::REQUEST_TIMEOUT, ..failure },
            false => failure,
        }
    }
}

impl Failure {
    fn not_found() -> Self {
        OipError::NotFound("the inference protocol has no such path".to_owned()).into()
    }

    fn method_not_allowed(allow: &'static str) -> Self {
        Failure {
            status: StatusCode::METHOD_NOT_ALLOWED,
            code: "method_not_allowed",
            message: format!("this path answers to {allow}"),
            retry_after_s: None,
            allow: Some(allow),
        }
    }

    fn into_response(self) -> Response<EdgeBody> {
        let mut response = document(&json!({ "error": self.message }));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(ERROR_HEADER, HeaderValue::from_static(self.code));
        if let Some(allow) = self.allow {
            headers.insert(header::ALLOW, HeaderValue::from_static(allow));
        }
        if let Some(seconds) = self.retry_after_s {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

fn document(json: &Value) -> Response<EdgeBody> {
    let mut response = Response::new(EdgeBody::full(json.to_string()));
    let kind = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

type Reply = Result<Response<EdgeBody>, Failure>;

/// One request and its answer.
struct Exchange<'a> {
    app: &'a Arc<App>,
    request_id: Arc<str>,
    began: Instant,
    body_was_read: bool,
}

impl Exchange<'_> {
    async fn answer(&mut self, request: Request<Incoming>) -> Reply {
        let (parts, body) = request.into_parts();
        let route = Route::parse(parts.uri.path()).ok_or_else(Failure::not_found)?;
        if !route.is_allowed(&parts.method) {
            return Err(Failure::method_not_allowed(route.allows()));
        }
        match &route {
            Route::Server => return Ok(document(&documents::server())),
            Route::Live => return Ok(document(&json!({ "live": true }))),
            Route::Ready => return Ok(self.ready()),
            _ => {}
        }
        let caller = self.caller(&parts)?;
        match route {
            Route::Model { name, version, verb: Verb::Infer } => {
                self.infer(&caller, &name, version, &parts, body).await
            }
            Route::AllStatistics => self.statistics(&caller, None, None).await,
            Route::Model { name, version, verb: Verb::Statistics } => {
                self.statistics(&caller, Some(&name), version).await
            }
            Route::Index => self.index(&caller, body).await,
            Route::Load(name) => self.load(&caller, &name, body).await,
            Route::Unload(name) => self.unload(&caller, &name, body).await,
            Route::Trace | Route::Logging if parts.method == Method::POST => {
                let text = "settings of traces and logs are the operator's, and fixed when the node starts";
                Err(OipError::unsupported(text).into())
            }
            Route::Trace => Ok(document(&documents::trace_settings())),
            Route::Logging => Ok(document(&documents::log_settings())),
            route => Ok(document(&self.describe(&caller, route).await?)),
        }
    }

    fn caller(&self, parts: &Parts) -> Result<Caller, OipError> {
        let key = bearer(&parts.headers).map_err(|problem| OipError::invalid(problem.message))?;
        let tenant = parts.headers.get(api::TENANT).and_then(|name| name.to_str().ok());
        Caller::find(self.app, key, tenant)
    }

    fn ready(&self) -> Response<EdgeBody> {
        let is_ready = self.app.is_ready();
        let mut response = document(&json!({ "ready": is_ready }));
        if !is_ready {
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        }
        response
    }

    /// The answers that only read.
    async fn describe(&self, caller: &Caller, route: Route<'_>) -> Result<Value, Failure> {
        let app = self.app;
        Ok(match route {
            Route::Models => documents::models(&service::model_names(app, caller)?),
            Route::Model { name, version, verb } => match verb {
                Verb::Metadata => {
                    documents::metadata(&service::model_metadata(app, caller, &name, version)?)
                }
                Verb::Ready => {
                    service::model_ready(app, caller, &name, version)?;
                    json!({ "name": name, "ready": true })
                }
                Verb::Config => {
                    let _place = caller.enter_reading(app).await?;
                    documents::config(&describe::model_config(app, caller, &name, version).await?)
                }
                Verb::Statistics | Verb::Infer => return Err(Failure::not_found()),
            },
            _ => return Err(Failure::not_found()),
        })
    }

    /// What calls have come to.
    async fn statistics(
        &self,
        caller: &Caller,
        name: Option<&str>,
        version: Option<&str>,
    ) -> Reply {
        let (name, version) = (name.map(str::to_owned), version.map(str::to_owned));
        let read = move |app: &App, caller: &Caller| {
            describe::statistics(app, caller, name.as_deref(), version.as_deref())
        };
        self.long(caller, move |app, caller| Ok(documents::statistics(&read(app, caller)?))).await
    }

    /// A document that may be long: one for each version that the tenant keeps. It is made on a thread that may take
    /// its time, within the limits of the tenant.
    async fn long(
        &self,
        caller: &Caller,
        make: impl FnOnce(&App, &Caller) -> Result<Value, OipError> + Send + 'static,
    ) -> Reply {
        let place = caller.enter_reading(self.app).await?;
        let deadline = caller.deadline(self.began, None);
        let (app, caller) = (self.app.clone(), caller.clone());
        let make = move |_: &mut Place| Ok(make(&app, &caller)?.to_string());
        let (text, place) = apart_if(self.app, place, deadline, true, make).await?;
        let kind = HeaderValue::from_static("application/json");
        let mut response = Response::new(EdgeBody::held(text.into(), place, None));
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        Ok(response)
    }

    async fn index(&mut self, caller: &Caller, body: Incoming) -> Reply {
        #[derive(Default, Deserialize)]
        struct Index {
            #[serde(default)]
            ready: bool,
        }
        caller.must_have(&[Scope::Models])?;
        let index: Index = self.control_body(body).await?;
        self.long(caller, move |app, caller| {
            Ok(documents::index(&repository::repository_index(app, caller, index.ready)?))
        })
        .await
    }

    async fn load(&mut self, caller: &Caller, name: &str, body: Incoming) -> Reply {
        repository::may_load(self.app, caller, name)?;
        // Nothing but a file makes a load so long.
        let is_long = body.size_hint().upper().is_none_or(|bytes| bytes > CONTROL_BYTES_MAX as u64);
        let places = is_long.then(|| uploads::enter(self.app, &caller.tenant)).transpose();
        let places = places.map_err(OipError::from)?;
        let limit_mib = caller.tenant.limits.model_mib;
        // Base64 takes a third more than the file, and escapes in it a little more.
        let bytes_max = CONTROL_BYTES_MAX + (limit_mib << 20) as usize / 2 * 3;
        let body = match body::read(body, bytes_max, None).await {
            Err(BodyError::TooLarge) => {
                return Err(OipError::from(Problem::too_large("model", limit_mib)).into());
            }
            body => body?,
        };
        self.body_was_read = true;
        let parameters = if body.len() > INLINE_BYTES_MAX {
            let read = move || LoadParameters::from_json(&body);
            tokio::task::spawn_blocking(read).await.map_err(OipError::internal)?
        } else {
            LoadParameters::from_json(&body)
        };
        let _place = caller.enter_reading(self.app).await?;
        repository::load(self.app, caller, name, parameters?, places).await?;
        Ok(document(&json!({})))
    }

    async fn unload(&mut self, caller: &Caller, name: &str, body: Incoming) -> Reply {
        caller.must_have(&[Scope::Models])?;
        let _: documents::Unload = self.control_body(body).await?;
        repository::unload(self.app, caller, name)?;
        Ok(document(&json!({})))
    }

    /// A short JSON body, where none is an empty object.
    async fn control_body<T>(&mut self, body: Incoming) -> Result<T, Failure>
    where
        T: for<'de> Deserialize<'de>,
    {
        let bytes = body::read(body, CONTROL_BYTES_MAX, None).await?;
        self.body_was_read = true;
        let text: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
        Ok(serde_json::from_slice(text).map_err(|error| request::unreadable(&error))?)
    }

    async fn infer(
        &mut self,
        caller: &Caller,
        name: &str,
        version: Option<&str>,
        parts: &Parts,
        body: Incoming,
    ) -> Reply {
        let mut place = caller.enter(self.app).await?;
        let encoding = Encoding::of_request(&parts.headers)?;
        let json_length = json_length(parts)?;
        // What names no model needs no body.
        let found = service::resolve(self.app, caller, name, version)?;
        let bytes_max = caller.body_bytes_max();
        let body = body::read(body, bytes_max, Some(&mut place.charge)).await?;
        self.body_was_read = true;
        let version = found.model.version.clone();
        let is_long = encoding.is_some() || body.len() > INLINE_BYTES_MAX;
        let read = move |place: &mut Place| {
            let charge = &mut place.charge;
            let packed = encoding.map_or(0, |_| body.len());
            let body = match encoding {
                Some(encoding) => {
                    let unpacked = encoding.unpack_charged(&body, bytes_max, charge)?;
                    unpacked.ok_or_else(|| {
                        let mib = bytes_max >> 20;
                        let text = format!("the body unpacks to more than the limit of {mib} MiB");
                        OipError::invalid(text)
                    })?
                }
                None => body,
            };
            let json = json_length.unwrap_or(body.len()).min(body.len()) as u64;
            charge.cover((packed + body.len()) as u64 + json * request::GROWTH_MAX)?;
            let request = match json_length {
                Some(0) => request::read_raw(&body, &version.signature)?,
                _ => request::read(&body, json_length, &version.signature)?,
            };
            let tensors: usize = request.inputs.iter().map(|input| input.tensor.data().len()).sum();
            charge.shrink((body.len() + tensors) as u64);
            Ok(request)
        };
        let deadline = caller.deadline(self.began, None);
        let (request, place) = apart_if(self.app, place, deadline, is_long, read).await?;
        let deadline = caller.deadline(self.began, request.timeout);
        let call = InferCall {
            request_id: self.request_id.clone(),
            began: self.began,
            inputs: request.inputs,
            outputs: request.outputs.iter().map(|output| output.name.clone()).collect(),
            timeout: request.timeout,
            priority: request.priority,
        };
        let answer = service::infer(self.app, caller, found, call).await?;
        let format = Format {
            id: request.id,
            outputs: request.outputs,
            binary_by_default: request.binary_by_default,
        };
        self.written(answer, format, Encoding::for_response(&parts.headers), deadline, place).await
    }

    async fn written(
        &self,
        answer: InferAnswer,
        format: Format,
        encoding: Option<Encoding>,
        deadline: Instant,
        place: Place,
    ) -> Reply {
        let bytes = answer.bytes();
        let is_long =
            bytes > INLINE_BYTES_MAX || (encoding.is_some() && bytes > compress::BYTES_MIN);
        let write = move |place: &mut Place| {
            place.charge.add(bytes as u64 + response::length_max(&answer, &format))?;
            let written = pack(response::write(&answer, &format)?, encoding)?;
            place.charge.shrink(written.0.body.len() as u64);
            Ok(written)
        };
        let ((written, encoding), place) =
            apart_if(self.app, place, deadline, is_long, write).await?;
        Ok(inference(written, encoding, place))
    }
}

/// What the header says of where the JSON ends; 0 says that there is none.
fn json_length(parts: &Parts) -> Result<Option<usize>, OipError> {
    let mut values = parts.headers.get_all(JSON_LENGTH).iter();
    let (first, second) = (values.next(), values.next());
    let Some(first) = first else { return Ok(None) };
    let length = first.to_str().ok().and_then(|text| text.trim().parse().ok());
    match (length, second) {
        (Some(length), None) => Ok(Some(length)),
        _ => Err(OipError::invalid("the header Inference-Header-Content-Length is no length")),
    }
}

fn pack(
    written: Written,
    encoding: Option<Encoding>,
) -> Result<(Written, Option<Encoding>), OipError> {
    match encoding {
        Some(encoding) if written.body.len() >= compress::BYTES_MIN => {
            let body = encoding.pack(&written.body).map_err(OipError::internal)?;
            Ok((Written { body: Bytes::from(body), ..written }, Some(encoding)))
        }
        _ => Ok((written, None)),
    }
}

fn inference(written: Written, encoding: Option<Encoding>, place: Place) -> Response<EdgeBody> {
    let Written { body, json_length } = written;
    let mut response = Response::new(EdgeBody::held(body, place, None));
    let headers = response.headers_mut();
    let kind = match json_length {
        Some(_) => "application/octet-stream",
        None => "application/json",
    };
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    if let Some(length) = json_length {
        headers.insert(JSON_LENGTH, length.into());
    }
    if let Some(encoding) = encoding {
        headers.insert(header::CONTENT_ENCODING, encoding.name());
    }
    response
}
