//! What is loaded: which thing a name means, and the one request that is sent to it.

use std::{fmt, fs, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, Uri, header::HOST};
use serde_json::{Deserializer, Value};

use super::{load::Call, tensors};
use crate::{
    args::{Bench, FunctionRef},
    client::Client,
    commands::invoke,
    error::{self, CliError, Result},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Model,
    Function,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Model => "model",
            Kind::Function => "function",
        })
    }
}

/// A model or a function, and how it is called.
pub(super) struct Target {
    pub(super) kind: Kind,
    /// As it was given.
    pub(super) name: String,
    pub(super) call: Arc<Call>,
    request: Request<Vec<u8>>,
}

impl Target {
    /// Finds what the arguments name.
    pub(super) fn find(client: &Client, arguments: &Bench) -> Result<Self> {
        let (kind, name) = match arguments.target.as_slice() {
            [name] => (resolve(client, name)?, name),
            [kind, name] if kind == "model" => (Kind::Model, name),
            [kind, name] if kind == "function" => (Kind::Function, name),
            _ => {
                return Err(CliError::usage("a target is `model NAME`, `function NAME` or a name")
                    .next("write sandpiper bench model NAME, or sandpiper bench function NAME"));
            }
        };
        check_options(kind, arguments)?;
        let request = match kind {
            Kind::Model => model(client, name, arguments)?,
            Kind::Function => function(client, name, arguments)?,
        };
        let call = Arc::new(call(&request)?);
        Ok(Target { kind, name: name.clone(), call, request })
    }

    /// Sends the request once: what cannot succeed is not worth a run. Gives the version of the model that answered.
    pub(super) fn try_once(&self, client: &Client, timeout: Duration) -> Result<Option<String>> {
        let answer = client.try_once(&self.request, timeout)?;
        Ok(if self.kind == Kind::Model { version_in(&answer) } else { None })
    }
}

/// The version that an inference's answer names. Raw tensors may follow the JSON.
fn version_in(answer: &[u8]) -> Option<String> {
    let head = Deserializer::from_slice(answer).into_iter::<Value>().next()?.ok()?;
    Some(head.get("model_version")?.as_str()?.to_owned())
}

/// Which of the two a bare name means.
fn resolve(client: &Client, name: &str) -> Result<Kind> {
    let say_which =
        format!("write sandpiper bench model {name}, or sandpiper bench function {name}");
    if name.contains(['/', '@']) {
        return Err(CliError::usage(format!("{name} may be a model or a function")).next(say_which));
    }
    let exists = |collection: &str, valid: bool| {
        if !valid {
            return Ok(false);
        }
        match client.get(&format!("/api/v1/{collection}/{name}")) {
            Ok(_) => Ok(true),
            Err(error) if error.kind == error::Kind::NotFound => Ok(false),
            Err(error) => Err(error.or_next(say_which.clone())),
        }
    };
    let model = exists("models", name.parse::<sandpiper_domain::ModelName>().is_ok())?;
    let function = exists("functions", name.parse::<sandpiper_domain::FunctionName>().is_ok())?;
    match (model, function) {
        (true, false) => Ok(Kind::Model),
        (false, true) => Ok(Kind::Function),
        (true, true) => {
            Err(CliError::usage(format!("there is a model and a function of the name {name}"))
                .next(say_which))
        }
        (false, false) => Err(CliError::new(
            error::Kind::NotFound,
            format!("there is neither a model nor a function of the name {name}"),
        )
        .next("see what there is: sandpiper models list, sandpiper functions list")),
    }
}

/// An option of the other kind would be ignored, and its user misled.
fn check_options(kind: Kind, arguments: &Bench) -> Result<()> {
    let Bench { input, shape, binary, path, body, method, .. } = arguments;
    let foreign: &[(&str, bool)] = match kind {
        Kind::Model => {
            &[("--path", path != "/"), ("--body", body.is_some()), ("--method", method.is_some())]
        }
        Kind::Function => {
            &[("--input", input.is_some()), ("--shape", !shape.is_empty()), ("--binary", *binary)]
        }
    };
    match foreign.iter().find(|(_, given)| *given) {
        None => Ok(()),
        Some((option, _)) => Err(CliError::usage(format!("{option} is not for a {kind}"))
            .next("see sandpiper bench --help")),
    }
}

fn model(client: &Client, name: &str, arguments: &Bench) -> Result<Request<Vec<u8>>> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_.-/@".contains(c);
    if name.is_empty() || !name.chars().all(plain) {
        return Err(CliError::usage("that is no model's name")
            .next("write [OWNER/]NAME, with @VERSION or @ALIAS after it if need be"));
    }
    let path = model_path(name);
    let body = match &arguments.input {
        Some(file) => tensors::Body { bytes: read(file)?, json_length: None },
        None => tensors::request(&client.get(&path)?, &arguments.shape, arguments.binary)?,
    };
    let path = format!("{path}/infer");
    let mut request = client.request_to("", &path, "POST", &arguments.headers)?;
    if let Some(tenant) = client.named_tenant() {
        request = request.header("x-sandpiper-tenant", tenant.as_str());
    }
    request = match body.json_length {
        None => request.header("content-type", "application/json"),
        Some(length) => request
            .header("content-type", "application/octet-stream")
            .header("inference-header-content-length", length),
    };
    request.body(body.bytes).map_err(unusable)
}

/// Where a model answers. Its owner, where it is another tenant, is one segment with it.
pub(super) fn model_path(name: &str) -> String {
    format!("/v2/models/{}", name.replace('/', "%2F"))
}

fn function(client: &Client, name: &str, arguments: &Bench) -> Result<Request<Vec<u8>>> {
    let function: FunctionRef = name.parse().map_err(CliError::usage)?;
    let prefix = format!("/fn/{}", invoke::target(client, &function)?);
    let body = arguments.body.as_deref().map(read).transpose()?;
    let default = if body.is_some() { "POST" } else { "GET" };
    let method = arguments.method.as_deref().unwrap_or(default);
    let request = client.request_to(&prefix, &arguments.path, method, &arguments.headers)?;
    request.body(body.unwrap_or_default()).map_err(unusable)
}

fn read(file: &Path) -> Result<Vec<u8>> {
    fs::read(file)
        .map_err(|error| CliError::usage(format!("{} cannot be read", file.display())).why(error))
}

/// The request as it goes over a connection of our own.
fn call(request: &Request<Vec<u8>>) -> Result<Call> {
    let uri = request.uri();
    if uri.scheme_str() != Some("http") {
        return Err(CliError::usage("the load generator speaks plain HTTP alone")
            .next("run it on the server's own machine, with --server http://…"));
    }
    let authority = uri.authority().ok_or_else(|| CliError::usage("the server has no address"))?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let path: Uri = path.parse().map_err(unusable)?;
    let mut bare = Request::builder().method(request.method()).uri(path);
    for (name, value) in request.headers() {
        bare = bare.header(name, value);
    }
    if !request.headers().contains_key(HOST) {
        bare = bare.header(HOST, authority.as_str());
    }
    let body = Full::new(Bytes::from(request.body().clone()));
    Ok(Call {
        host: authority.host().trim_matches(['[', ']']).to_owned(),
        port: authority.port_u16().unwrap_or(80),
        request: bare.body(body).map_err(unusable)?,
    })
}

fn unusable(error: impl ToString) -> CliError {
    CliError::usage("the request cannot be built").why(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read_with_and_without_raw_tensors() {
        let json = br#"{"model_name":"m","model_version":"12","outputs":[]}"#;
        assert_eq!(version_in(json).as_deref(), Some("12"));
        assert_eq!(version_in(&[&json[..], b"\x00{\xff"].concat()).as_deref(), Some("12"));
        assert_eq!(version_in(b"{}"), None);
        assert_eq!(version_in(b""), None);
    }
}
