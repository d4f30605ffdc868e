//! A client that takes every answer as it comes: an error status is an answer, not an error.

use std::{
    io::{Cursor, Read},
    sync::{Arc, RwLock},
    time::Duration,
};

use serde_json::Value;
use ureq::{
    Agent, SendBody,
    http::{HeaderMap, Request},
};

/// Longer than anything takes on a loaded machine; a test that hangs should say where.
const PATIENCE: Duration = Duration::from_secs(120);

/// Talks to one server, with one key or none.
#[derive(Clone)]
pub struct Client {
    base: Arc<RwLock<String>>,
    agent: Agent,
    headers: Vec<(String, String)>,
}

impl Client {
    pub(crate) fn new(base: Arc<RwLock<String>>) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .allow_non_standard_methods(true)
            .max_redirects(0)
            .proxy(None)
            .timeout_global(Some(PATIENCE));
        Client { base, agent: config.build().new_agent(), headers: Vec::new() }
    }

    /// The same client with this key.
    pub fn with_key(&self, key: &str) -> Self {
        self.without_key().with_header("authorization", &format!("Bearer {key}"))
    }

    /// The same client without its key.
    pub fn without_key(&self) -> Self {
        let mut client = self.clone();
        client.headers.retain(|(name, _)| name != "authorization");
        client
    }

    /// The same client with one more header in every request.
    pub fn with_header(&self, name: &str, value: &str) -> Self {
        let mut client = self.clone();
        client.headers.push((name.to_owned(), value.to_owned()));
        client
    }

    /// A request; `path` begins with a slash.
    pub fn call(&self, method: &str, path: &str) -> Call {
        let url = format!("{}{path}", self.base.read().unwrap());
        Call {
            agent: self.agent.clone(),
            method: method.to_owned(),
            url,
            headers: self.headers.clone(),
            body: Body::None,
        }
    }

    /// `GET`, sent.
    pub fn get(&self, path: &str) -> Answer {
        self.call("GET", path).send()
    }

    /// `DELETE`, sent.
    pub fn delete(&self, path: &str) -> Answer {
        self.call("DELETE", path).send()
    }

    /// `POST` without a body, sent.
    pub fn post(&self, path: &str) -> Answer {
        self.call("POST", path).body(b"").send()
    }

    /// `PUT` of these bytes, sent.
    pub fn put(&self, path: &str, body: impl AsRef<[u8]>) -> Answer {
        self.call("PUT", path).body(body).send()
    }

    /// `PUT` of this JSON, sent.
    pub fn put_json(&self, path: &str, body: &Value) -> Answer {
        self.call("PUT", path).json(body).send()
    }

    /// `POST` of this JSON, sent.
    pub fn post_json(&self, path: &str, body: &Value) -> Answer {
        self.call("POST", path).json(body).send()
    }
}

enum Body {
    None,
    Sized(Vec<u8>),
    Chunked(Vec<u8>),
}

/// A request in the making.
pub struct Call {
    agent: Agent,
    method: String,
    url: String,
    headers: Vec<(String, String)>,
    body: Body,
}

impl Call {
    /// Adds a header.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// A header that is set already.
    #[track_caller]
    pub fn header_of(&self, name: &str) -> String {
        let found = self.headers.iter().find(|(other, _)| other == name);
        found.unwrap_or_else(|| panic!("no header {name}")).1.clone()
    }

    /// Sets a body, whose length is told.
    pub fn body(mut self, body: impl AsRef<[u8]>) -> Self {
        self.body = Body::Sized(body.as_ref().to_vec());
        self
    }

    /// Sets a body in chunks, whose length nobody tells.
    pub fn chunked(mut self, body: impl AsRef<[u8]>) -> Self {
        self.body = Body::Chunked(body.as_ref().to_vec());
        self
    }

    /// Sets a JSON body.
    pub fn json(self, body: &Value) -> Self {
        self.header("content-type", "application/json").body(body.to_string())
    }

    /// Sends it. Panics only when there is no answer at all.
    pub fn send(self) -> Answer {
        let what = format!("{} {}", self.method, self.url);
        self.try_send().unwrap_or_else(|error| panic!("{what}: no answer: {error}"))
    }

    /// Sends it, where having no answer is one of the possibilities.
    pub fn try_send(self) -> Result<Answer, ureq::Error> {
        let what = format!("{} {}", self.method, self.url);
        let mut request = Request::builder().method(self.method.as_str()).uri(&self.url);
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        let answered = match self.body {
            Body::None => self.agent.run(request.body(())?),
            Body::Sized(bytes) => self.agent.run(request.body(bytes)?),
            Body::Chunked(bytes) => {
                let mut reader = Cursor::new(bytes);
                self.agent.run(request.body(SendBody::from_reader(&mut reader))?)
            }
        };
        let (parts, body) = answered?.into_parts();
        let mut bytes = Vec::new();
        body.into_reader().read_to_end(&mut bytes)?;
        Ok(Answer { what, status: parts.status.as_u16(), headers: parts.headers, body: bytes })
    }
}

/// A whole response.
#[derive(Clone)]
pub struct Answer {
    pub(crate) what: String,
    /// The status code.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Vec<u8>,
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text: String = self.text().chars().take(1000).collect();
        write!(f, "{}\n  answered {} {:?}\n  {text}", self.what, self.status, self.headers)
    }
}

impl Answer {
    /// Fails unless the status is this one.
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{self:?}");
        self
    }

    /// Fails unless this is one of our errors with this status and code, in the shape that all of them share.
    #[track_caller]
    pub fn refused(self, status: u16, code: &str) -> Self {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.header("x-sandpiper-error"), Some(code), "{self:?}");
        assert_eq!(self.header("content-type"), Some("application/json"), "{self:?}");
        let json = self.json();
        let error = json["error"].as_object().unwrap_or_else(|| panic!("{self:?}"));
        assert_eq!(error["code"], code, "{self:?}");
        assert!(error["message"].as_str().is_some_and(|text| !text.is_empty()), "{self:?}");
        assert_eq!(error["request_id"].as_str(), self.header("x-request-id"), "{self:?}");
        for key in error.keys() {
            let known = ["code", "message", "hint", "request_id"];
            assert!(known.contains(&key.as_str()), "{key} in {self:?}");
        }
        self
    }

    /// The message of one of our errors.
    #[track_caller]
    pub fn message(&self) -> String {
        let json = self.json();
        json["error"]["message"].as_str().unwrap_or_else(|| panic!("{self:?}")).to_owned()
    }

    /// The body as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// A header that must be text if it is there.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap_or("(no text)"))
    }
}

/// A multipart body of these parts, and its content type.
pub fn multipart(parts: &[(&str, &[u8])]) -> (String, Vec<u8>) {
    const BOUNDARY: &str = "sandpiper-tests-boundary-7d1f";
    let mut body = Vec::new();
    for (name, bytes) in parts {
        let head = format!(
            "--{BOUNDARY}\r\ncontent-disposition: form-data; name=\"{name}\"; filename=\"{name}\"\r\n\r\n"
        );
        body.extend_from_slice(head.as_bytes());
        body.extend_from_slice(bytes);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(format!("--{BOUNDARY}--\r\n").as_bytes());
    (format!("multipart/form-data; boundary={BOUNDARY}"), body)
}
