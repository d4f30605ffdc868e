//! The life of one invocation: route, key, grant, gates, sandbox, response.
//!
//! Everything up to the sandbox reads memory alone. Whoever may not know of a function gets the same answer whether it
//! exists or not: 401 without a key, 404 with somebody else's.

use std::{
    pin::Pin,
    str::FromStr,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Request, Response, Uri, Version, header, uri::PathAndQuery,
};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use sandpiper_control::{FunctionVersion, KeyError, Principal, Tenant};
use sandpiper_domain::{Auth, Fault, Scope, Selector, TenantName, Usage};
use sandpiper_sandbox::{FunctionCode, Invocation, Observer, Outcome};
use time::OffsetDateTime;

use crate::{
    admission::Permit,
    app::App,
    edge::{self, EdgeBody, Peer},
    functions::FunctionRuntime,
    respond::{ERROR_HEADER, Problem, REQUEST_ID},
};

/// Where functions live.
pub(crate) const PREFIX: &str = "/fn/";

/// How long a request waits for code that has to be loaded or compiled first.
const CODE_WAIT_MAX: Duration = Duration::from_secs(30);

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Answers a request under [`PREFIX`].
pub(crate) async fn answer(
    app: &Arc<App>,
    peer: &Peer,
    request: Request<Incoming>,
) -> Response<EdgeBody> {
    let request_id = edge::request_id(&request);
    let header = HeaderValue::from_str(&request_id).unwrap_or(HeaderValue::from_static("none"));
    let mut response = match invoke(app, peer, request, &request_id, &header).await {
        Ok(response) => response,
        Err(problem) => problem.into_response(&request_id),
    };
    response.headers_mut().insert(REQUEST_ID, header);
    response
}

async fn invoke(
    app: &Arc<App>,
    peer: &Peer,
    request: Request<Incoming>,
    request_id: &Arc<str>,
    request_id_header: &HeaderValue,
) -> Result<Response<EdgeBody>, Problem> {
    let began = Instant::now();
    let target = find(app, &request)?;
    let permits = Arc::new(target.runtime.tenant.enter(&target.runtime.gate).await?);
    let (request, overflow) = for_guest(request, &target, peer, request_id_header)?;
    let Target { tenant, version, runtime, .. } = target;
    let code = code(app, &runtime, &version).await?;
    let access = app.settings.access_log.then(|| Access {
        tenant: tenant.name.clone(),
        version: version.clone(),
        request_id: request_id.clone(),
    });
    let invocation = Invocation {
        grant: version.grant.clone(),
        log: runtime.log.clone(),
        request_id: request_id.clone(),
        observer: Box::new(End {
            runtime: runtime.clone(),
            began,
            access,
            _permits: permits.clone(),
        }),
    };
    let response = app.sandboxes.invoke(code, request, invocation).await;
    if overflow.is_some_and(|overflow| overflow.load(Relaxed)) {
        return Err(Problem::too_large("request's body", version.grant.sandbox.request_body_mib));
    }
    let mut response = response?;
    if response.status().is_informational() {
        // Not the last word of any exchange, and no function may switch protocols.
        return Err(Fault::NoResponse.into());
    }
    // This header is ours to set.
    response.headers_mut().remove(ERROR_HEADER);
    // The places are kept until the client has the whole response, which is in memory until then.
    Ok(response.map(|body| EdgeBody::Guest { body, _places: permits }))
}

/// The function's code; it compiled when it was deployed, so that a failure is the node's.
async fn code<'a>(
    app: &Arc<App>,
    runtime: &'a FunctionRuntime,
    version: &FunctionVersion,
) -> Result<&'a FunctionCode, Problem> {
    let ready = runtime.code(version, &app.sandboxes, &app.catalog);
    let unavailable = |cause: &dyn std::fmt::Display| {
        tracing::error!(tenant = %version.grant.models.tenant, function = %version.manifest.name, %cause, "no code");
        Problem::busy("function_unavailable", "the function's code could not be made ready")
    };
    match tokio::time::timeout(CODE_WAIT_MAX, ready).await {
        Ok(code) => code.map_err(|error| unavailable(&error)),
        Err(late) => Err(unavailable(&late)),
    }
}

/// `/fn/{tenant}/{function}[@{alias|version}]/{path…}`, taken apart.
///
/// The names are looked up as they are: what is no valid name is in no catalog.
struct Route<'a> {
    tenant: &'a str,
    function: &'a str,
    /// `None` is `live`.
    selector: Option<Selector>,
    /// Where the guest's own path begins in the path and query.
    rest: usize,
}

impl<'a> Route<'a> {
    fn parse(uri: &'a Uri) -> Option<Self> {
        let path = uri.path();
        let (tenant, after) = path.strip_prefix(PREFIX)?.split_once('/')?;
        let name_end = after.find('/').unwrap_or(after.len());
        let (function, selector) = match after[..name_end].split_once('@') {
            Some((name, selector)) => (name, Some(selector.parse().ok()?)),
            None => (&after[..name_end], None),
        };
        let rest = path.len() - after.len() + name_end;
        Some(Route { tenant, function, selector, rest })
    }
}

struct Target {
    tenant: Arc<Tenant>,
    version: Arc<FunctionVersion>,
    runtime: Arc<FunctionRuntime>,
    rest: usize,
    /// The caller's `Authorization` is ours and not for the function to see.
    strip_key: bool,
}

/// Finds the function and checks that the caller may invoke it.
fn find(app: &App, request: &Request<Incoming>) -> Result<Target, Problem> {
    let route = Route::parse(request.uri());
    let bearer = bearer(request.headers())?;
    let now = OffsetDateTime::now_utc;
    let snapshot = app.catalog.snapshot();
    let found = route.as_ref().and_then(|route| {
        static LIVE: LazyLock<Selector> = LazyLock::new(Selector::default);
        let selector = route.selector.as_ref().unwrap_or(&LIVE);
        let (tenant, version) =
            snapshot.find_function(route.tenant, route.function, selector, rand::random())?;
        Some((tenant, version, route.rest))
    });
    let is_public = found.is_some_and(|(_, version, _)| version.manifest.auth == Auth::Public);
    let strip_key = if is_public {
        bearer.is_some_and(|key| app.catalog.find_key(key, now()) != Err(KeyError::Malformed))
    } else {
        let key = bearer.ok_or_else(Problem::no_key)?;
        check_caller(app.catalog.find_key(key, now())?, route.as_ref())?;
        true
    };
    let (tenant, version, rest) = found.ok_or_else(Problem::not_found)?;
    let runtime =
        app.functions.get(&tenant.name, &version.manifest.name, version, || app.admission(tenant));
    Ok(Target { tenant: tenant.clone(), version: version.clone(), runtime, rest, strip_key })
}

fn check_caller(principal: Principal, route: Option<&Route<'_>>) -> Result<(), Problem> {
    let Principal::Tenant { tenant, scopes, .. } = principal else { return Ok(()) };
    if route.is_none_or(|route| route.tenant != tenant.as_str()) {
        return Err(Problem::not_found());
    }
    if !scopes.contains(Scope::Invoke) {
        return Err(Problem::missing_scope(Scope::Invoke));
    }
    Ok(())
}

/// The token of `Authorization: Bearer …`. Several such headers are refused: two readers could pick different ones.
pub(crate) fn bearer(headers: &HeaderMap) -> Result<Option<&str>, Problem> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (first, second) = (values.next(), values.next());
    if second.is_some() {
        return Err(Problem::bad_request("there is more than one Authorization header"));
    }
    let token = first.and_then(|value| value.to_str().ok()).and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    });
    Ok(token)
}

type GuestRequest = Request<RequestBody>;

/// The request as the guest sees it: its own path, without our key, with headers it can rely on. Also says whether the
/// body turned out too large, where that is not known yet.
fn for_guest(
    request: Request<Incoming>,
    target: &Target,
    peer: &Peer,
    request_id: &HeaderValue,
) -> Result<(GuestRequest, Option<Arc<AtomicBool>>), Problem> {
    let limit_mib = target.version.grant.sandbox.request_body_mib;
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
    Ok((Request::from_parts(parts, RequestBody { body, left }), overflow))
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
fn own_uri(uri: &Uri, rest: usize) -> Result<Uri, Problem> {
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
struct RequestBody {
    body: Incoming,
    left: Option<(u64, Arc<AtomicBool>)>,
}

/// Why a guest could not read on.
#[derive(Debug, thiserror::Error)]
enum RequestBodyError {
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
            Poll::Ready(None) => return Poll::Ready(None),
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
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// What is left to do when the sandbox is gone: measure, and let the next request in.
struct End {
    runtime: Arc<FunctionRuntime>,
    began: Instant,
    access: Option<Access>,
    _permits: Arc<[Permit; 2]>,
}

/// What an access line tells besides the outcome.
struct Access {
    tenant: TenantName,
    version: Arc<FunctionVersion>,
    request_id: Arc<str>,
}

impl Observer for End {
    fn ended(self: Box<Self>, outcome: Outcome, usage: Usage) {
        let took = self.began.elapsed();
        self.runtime.metrics.record(outcome, &usage, took);
        let Some(access) = &self.access else { return };
        let outcome = match outcome {
            Outcome::Completed => "completed",
            Outcome::Cancelled => "cancelled",
            Outcome::Faulted(fault) => fault.code(),
        };
        tracing::info!(
            tenant = %access.tenant,
            function = %access.version.manifest.name,
            version = access.version.version,
            request_id = %access.request_id,
            outcome,
            took_us = took.as_micros() as u64,
            cpu_us = usage.cpu.as_micros() as u64,
            memory_bytes_max = usage.memory_bytes_max,
            inference_queued_us = usage.inference_queued.as_micros() as u64,
            inference_us = usage.inference.as_micros() as u64,
            "invocation"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(path: &str) -> Option<String> {
        let uri: Uri = path.parse().ok()?;
        let route = Route::parse(&uri)?;
        own_uri(&uri, route.rest).ok().map(|uri| uri.to_string())
    }

    #[test]
    fn the_function_sees_what_comes_after_its_name() {
        assert_eq!(own("/fn/acme/tj/echo?x").as_deref(), Some("/echo?x"));
        assert_eq!(own("/fn/acme/tj").as_deref(), Some("/"));
        assert_eq!(own("/fn/acme/tj/").as_deref(), Some("/"));
        assert_eq!(own("/fn/acme/tj?x=/y@z").as_deref(), Some("/?x=/y@z"));
        assert_eq!(own("/fn/acme/tj@3//a/../b%2f").as_deref(), Some("//a/../b%2f"));
        assert_eq!(own("http://host/fn/acme/tj@canary/e").as_deref(), Some("/e"));
    }

    #[test]
    fn what_names_no_version_is_no_route() {
        for path in ["/fn/", "/fn/acme", "/fn/acme/tj@0", "/fn/acme/tj@", "/fn/acme/tj@X"] {
            assert!(Route::parse(&path.parse().unwrap()).is_none(), "{path}");
        }
    }

    #[test]
    fn versions_and_aliases_are_told_apart() {
        let route = |path: &str| Route::parse(&path.parse().unwrap()).unwrap().selector;
        assert_eq!(route("/fn/acme/tj@3"), Some(Selector::Version(3)));
        assert_eq!(route("/fn/acme/tj@canary/x"), Some("canary".parse().unwrap()));
        assert_eq!(route("/fn/acme/tj/x@3"), None);
    }

    #[test]
    fn two_authorizations_are_one_too_many() {
        let mut headers = HeaderMap::new();
        headers.append(header::AUTHORIZATION, HeaderValue::from_static("bearer  abc "));
        assert_eq!(bearer(&headers).unwrap(), Some("abc"));
        headers.append(header::AUTHORIZATION, HeaderValue::from_static("Bearer def"));
        assert!(bearer(&headers).is_err());
    }
}
