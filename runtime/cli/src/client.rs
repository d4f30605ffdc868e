//! The one HTTP client: it knows the server, the key and the tenant, and turns answers into results or errors.

use std::{
    io::{self, BufReader, Read},
    time::Duration,
};

use sandpiper_domain::TenantName;
use serde_json::Value;
use ureq::{
    Agent, AsSendBody, Body, BodyReader, SendBody,
    http::{HeaderName, HeaderValue, Method, Request, Response, Uri, request::Builder},
};

use crate::{
    config::Settings,
    error::{CliError, Kind, Result},
    output::Task,
    upload::Upload,
};

const CONNECT: Duration = Duration::from_secs(5);
/// An ordinary call of the control plane.
const CALL: Duration = Duration::from_secs(30);
/// An upload: the server answers when the version is compiled and ready.
const UPLOAD: Duration = Duration::from_secs(20 * 60);
/// An invocation: a little more than the longest wall time of any tier.
const INVOKE: Duration = Duration::from_secs(310);
/// From this size on the server is asked before a body is sent: it may refuse a large one by its length alone.
const LARGE_BODY: usize = 512 * 1024;
/// Control answers are small; a list of everything still fits.
const ANSWER_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// What is wrong with the operator's key alone where a tenant's things are meant.
pub(crate) const OPERATOR_WITHOUT_TENANT: &str = "the operator's key belongs to no tenant";

/// A client of one server.
pub(crate) struct Client {
    agent: Agent,
    server: String,
    key: Option<String>,
    tenant: Option<TenantName>,
}

/// A request to a function.
pub(crate) struct Invocation<'a> {
    pub(crate) path: &'a str,
    pub(crate) method: Option<&'a str>,
    pub(crate) headers: &'a [String],
    pub(crate) body: Option<Vec<u8>>,
}

/// Who the key belongs to, by `GET /api/v1/whoami`.
#[derive(Debug, Clone, Default, serde::Deserialize)]
#[serde(default)]
pub(crate) struct Identity {
    pub(crate) tenant: Option<TenantName>,
    pub(crate) operator: bool,
    pub(crate) scopes: Vec<String>,
}

impl Client {
    /// A client by the settings in force.
    pub(crate) fn new(settings: &Settings) -> Result<Self> {
        let key = settings.key.as_ref().map(|key| key.value.clone());
        let tenant = settings.tenant.as_ref().map(|tenant| tenant.value.clone());
        Self::with(&settings.server.value, key, tenant)
    }

    /// A client of `server`, an address without a slash at its end.
    pub(crate) fn with(
        server: &str,
        key: Option<String>,
        tenant: Option<TenantName>,
    ) -> Result<Self> {
        if key.as_ref().is_some_and(|key| HeaderValue::from_str(key).is_err()) {
            return Err(CliError::usage("the key contains characters that no key has")
                .next("copy it again; `sandpiper config show` says where it comes from"));
        }
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .allow_non_standard_methods(true)
            .timeout_connect(Some(CONNECT))
            .user_agent(concat!("sandpiper/", env!("CARGO_PKG_VERSION")));
        if is_loopback(server) {
            config = config.proxy(None);
        }
        Ok(Client { agent: config.build().new_agent(), server: server.to_owned(), key, tenant })
    }

    /// The server's address.
    pub(crate) fn server(&self) -> &str {
        &self.server
    }

    pub(crate) fn get(&self, path: &str) -> Result<Value> {
        self.call(Method::GET, path, None)
    }

    pub(crate) fn delete(&self, path: &str) -> Result<Value> {
        self.call(Method::DELETE, path, None)
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Result<Value> {
        self.call(Method::POST, path, Some(body))
    }

    pub(crate) fn put(&self, path: &str, body: &Value) -> Result<Value> {
        self.call(Method::PUT, path, Some(body))
    }

    fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value> {
        let request = self.request(method, path);
        let response = match body {
            Some(body) => {
                let request = request.header("content-type", "application/json");
                self.send(request, body.to_string(), Some(CALL))
            }
            None => self.send(request, (), Some(CALL)),
        };
        answer(response?)
    }

    /// Sends a file; `task` shows how far it is.
    pub(crate) fn upload(&self, path: &str, upload: Upload, task: &Task) -> Result<Value> {
        self.send_file(Method::PUT, path, upload, task)
    }

    /// The same with `POST`.
    pub(crate) fn post_file(&self, path: &str, upload: Upload, task: &Task) -> Result<Value> {
        self.send_file(Method::POST, path, upload, task)
    }

    fn send_file(&self, method: Method, path: &str, upload: Upload, task: &Task) -> Result<Value> {
        // A server that refuses says so before the body is sent.
        let request = self
            .request(method, path)
            .header("content-type", &upload.content_type)
            .header("content-length", upload.length)
            .header("expect", "100-continue");
        let mut reader = upload.counted(task);
        answer(self.send(request, SendBody::from_reader(&mut reader), Some(UPLOAD))?)
    }

    /// Opens an endless answer.
    pub(crate) fn stream(&self, path: &str) -> Result<BufReader<BodyReader<'static>>> {
        let request = self.request(Method::GET, path).header("accept", "text/event-stream");
        let mut response = self.send(request, (), None)?;
        if !response.status().is_success() {
            return Err(refusal(&mut response, Kind::of_status));
        }
        Ok(BufReader::new(response.into_body().into_reader()))
    }

    /// An answer of a function's own that the server kept, whatever its status.
    pub(crate) fn kept(&self, path: &str) -> Result<(u16, BufReader<BodyReader<'static>>)> {
        let mut response = self.send(self.request(Method::GET, path), (), None)?;
        if response.headers().contains_key("x-sandpiper-error") {
            return Err(refusal(&mut response, Kind::of_status));
        }
        let status = response.status().as_u16();
        Ok((status, BufReader::new(response.into_body().into_reader())))
    }

    /// The status that an open path such as `/readyz` answers with.
    pub(crate) fn probe(&self, path: &str, within: Duration) -> Result<u16> {
        let request = Request::builder().method(Method::GET).uri(format!("{}{path}", self.server));
        Ok(self.send(request, (), Some(within))?.status().as_u16())
    }

    /// Who the key belongs to.
    pub(crate) fn whoami(&self) -> Result<Identity> {
        serde_json::from_value(self.get("/api/v1/whoami")?)
            .map_err(|error| not_understood(&self.server).why(error))
    }

    /// The tenant to act for: the one that was named, or the key's own.
    pub(crate) fn tenant(&self) -> Result<TenantName> {
        if let Some(tenant) = &self.tenant {
            return Ok(tenant.clone());
        }
        let advice =
            "name it with --tenant, SANDPIPER_TENANT or `sandpiper config set tenant NAME`";
        let unknown = |what: &str| CliError::usage(what).next(advice);
        if self.key.is_none() {
            return Err(unknown("there is neither a key nor a tenant's name"));
        }
        self.whoami()?.tenant.ok_or_else(|| unknown(OPERATOR_WITHOUT_TENANT))
    }

    /// Sends a request to a function. An answer of the function's own is a success, whatever its status.
    pub(crate) fn invoke(
        &self,
        target: &str,
        invocation: Invocation<'_>,
    ) -> Result<Response<Body>> {
        let Invocation { path, method, headers, body } = invocation;
        let default = if body.is_some() { "POST" } else { "GET" };
        let mut request =
            self.request_to(&format!("/fn/{target}"), path, method.unwrap_or(default), headers)?;
        if body.as_ref().is_some_and(|body| body.len() > LARGE_BODY) {
            request = request.header("expect", "100-continue");
        }
        let mut response = match body {
            Some(body) => self.send(request, body, Some(INVOKE))?,
            None => self.send(request, (), Some(INVOKE))?,
        };
        // Only our own refusals carry this header; a function's 502 is told from ours by it.
        if response.headers().contains_key("x-sandpiper-error") {
            return Err(refusal(&mut response, Kind::of_invocation));
        }
        Ok(response)
    }

    /// A request to `path` under `prefix` with this client's key, unless the headers bring one.
    pub(crate) fn request_to(
        &self,
        prefix: &str,
        path: &str,
        method: &str,
        headers: &[String],
    ) -> Result<Builder> {
        if !path.starts_with('/') {
            return Err(CliError::usage("the path must begin with `/`"));
        }
        let method = Method::from_bytes(method.as_bytes())
            .map_err(|_| CliError::usage("the method is no HTTP method"))?;
        let uri = format!("{}{prefix}{path}", self.server);
        let uri: Uri = uri.parse().map_err(|error| {
            CliError::usage("the path is not usable in a URL")
                .why(error)
                .next("percent-encode spaces and other special characters")
        })?;
        let mut request = Request::builder().method(method).uri(uri);
        let mut own_key = false;
        for header in headers {
            let (name, value) = parse_header(header)?;
            own_key |= name == "authorization";
            request = request.header(name, value);
        }
        if let Some(key) = self.key.as_ref().filter(|_| !own_key) {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        Ok(request)
    }

    /// The tenant that was named, which the operator's key needs.
    pub(crate) fn named_tenant(&self) -> Option<&TenantName> {
        self.tenant.as_ref()
    }

    /// Sends a request that was made with [`Client::request_to`]; gives the status, or the server's own refusal.
    pub(crate) fn try_once(
        &self,
        request: &Request<Vec<u8>>,
        timeout: Duration,
    ) -> Result<Vec<u8>> {
        let mut builder = Request::builder().method(request.method()).uri(request.uri());
        for (name, value) in request.headers() {
            builder = builder.header(name, value);
        }
        let mut response = match request.body().as_slice() {
            [] => self.send(builder, (), Some(timeout))?,
            body => self.send(builder, body, Some(timeout))?,
        };
        let protocol = request.uri().path().starts_with("/v2/") && !response.status().is_success();
        if protocol || response.headers().contains_key("x-sandpiper-error") {
            return Err(refusal(&mut response, Kind::of_invocation));
        }
        body(&mut response)
    }

    fn request(&self, method: Method, path: &str) -> Builder {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.server));
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        if let Some(tenant) = &self.tenant {
            request = request.header("x-sandpiper-tenant", tenant.as_str());
        }
        request
    }

    fn send(
        &self,
        request: Builder,
        body: impl AsSendBody,
        timeout: Option<Duration>,
    ) -> Result<Response<Body>> {
        let request = request
            .body(body)
            .map_err(|error| CliError::usage("the request cannot be built").why(error))?;
        let request = self.agent.configure_request(request).timeout_global(timeout).build();
        self.agent.run(request).map_err(|error| transport(&self.server, error))
    }
}

/// The tenant-free part of a loopback address needs no proxy.
fn is_loopback(server: &str) -> bool {
    let host = server.parse::<Uri>().ok().and_then(|uri| uri.host().map(str::to_owned));
    let Some(host) = host else { return false };
    let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

fn parse_header(header: &str) -> Result<(HeaderName, HeaderValue)> {
    let refused = || CliError::usage("a header is given as `name: value`");
    let (name, value) = header.split_once(':').ok_or_else(refused)?;
    let name = HeaderName::from_bytes(name.trim().as_bytes()).map_err(|_| refused())?;
    let value = HeaderValue::from_str(value.trim()).map_err(|_| refused())?;
    Ok((name, value))
}

/// An answer of the control plane.
fn answer(mut response: Response<Body>) -> Result<Value> {
    if !response.status().is_success() {
        return Err(refusal(&mut response, Kind::of_status));
    }
    let bytes = body(&mut response)?;
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(Value::Null);
    }
    serde_json::from_slice(&bytes).map_err(|error| not_understood("the server").why(error))
}

/// The whole body, within reason.
fn body(response: &mut Response<Body>) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut reader = response.body_mut().as_reader().take(ANSWER_BYTES_MAX);
    reader.read_to_end(&mut bytes).map_err(interrupted)?;
    Ok(bytes)
}

/// What a broken answer means.
pub(crate) fn interrupted(error: io::Error) -> CliError {
    CliError::new(Kind::Unreachable, "the server's answer broke off")
        .why(error)
        .next("try again; the server's log may say more")
}

fn not_understood(server: &str) -> CliError {
    CliError::unexpected(format!("the answer of {server} is not understood"))
        .next("check that --server is a Sandpiper server of this version")
}

/// An error of the server's own, in its words.
fn refusal(response: &mut Response<Body>, kind_of: fn(u16) -> Kind) -> CliError {
    let status = response.status().as_u16();
    let header = |name: &str| {
        response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
    };
    let (code, request_id) = (header("x-sandpiper-error"), header("x-request-id"));
    let retry_after = header("retry-after");
    let body = body(response).ok().and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
    let field = |name: &str| {
        let error = body.as_ref()?.get("error")?;
        // The Open Inference Protocol has a text where the other surfaces have an object.
        let value = error.get(name).or((name == "message").then_some(error))?.as_str()?;
        Some(value.to_owned()).filter(|value| !value.is_empty())
    };
    let kind = kind_of(status);
    let what = field("message").unwrap_or_else(|| format!("the server answered {status}"));
    let mut error = CliError::new(kind, crate::output::clean(&what));
    error.code = field("code").or(code).map(String::into_boxed_str);
    error.request_id = field("request_id").or(request_id).map(String::into_boxed_str);
    error.next =
        field("hint").or_else(|| advice(kind, status, retry_after)).map(String::into_boxed_str);
    error
}

/// The next step, where the server suggests none.
fn advice(kind: Kind, status: u16, retry_after: Option<String>) -> Option<String> {
    let advice = match (kind, status) {
        (Kind::Auth, 401) => {
            "give a key with --key or SANDPIPER_KEY, or store it: sandpiper config set key -"
        }
        (Kind::Auth, _) => {
            "use a key that may do this: sandpiper key create --scopes …, or the operator's"
        }
        (Kind::NotFound, _) => {
            "check the name and the tenant: sandpiper functions list, sandpiper models list"
        }
        (Kind::Busy, _) => {
            return Some(match retry_after {
                Some(seconds) => format!("try again in {seconds} s"),
                None => "try again shortly".to_owned(),
            });
        }
        (Kind::Unreachable, _) => "try again; `sandpiper doctor` checks the way to the server",
        (Kind::Function, _) => "see what it printed: sandpiper logs FUNCTION",
        (_, 413) => "send less, or ask the operator for a higher limit",
        (_, 500..) => "the server's log, under this request id, says more",
        _ => return None,
    };
    Some(advice.to_owned())
}

/// No answer at all.
fn transport(server: &str, error: ureq::Error) -> CliError {
    use ureq::Error::{BadUri, BodyExceedsLimit, Http, Io, Timeout};
    let down = format!(
        "start one with `sandpiper serve`, or name another with --server; \
         `sandpiper doctor` checks the way to {server}"
    );
    match &error {
        Http(_) | BadUri(_) => CliError::usage("the request cannot be built").why(error),
        BodyExceedsLimit(_) => CliError::usage("the file changed while it was sent").why(error),
        Io(cause) if cause.kind() == io::ErrorKind::ConnectionRefused => {
            CliError::new(Kind::Unreachable, format!("no server listens at {server}")).next(down)
        }
        Io(cause)
            if matches!(
                cause.kind(),
                io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
            ) =>
        {
            CliError::new(Kind::Unreachable, format!("{server} closed the connection"))
                .why(cause)
                .next("an upload may be larger than the server allows; its log says more")
        }
        Timeout(_) => CliError::new(Kind::Unreachable, format!("{server} did not answer in time"))
            .why(error)
            .next("try again; `sandpiper doctor` checks the server"),
        _ => CliError::new(Kind::Unreachable, format!("{server} cannot be reached"))
            .why(error)
            .next(down),
    }
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
