//! `wasi:http`: one request in, one response out, in as few calls to the host as the interface
//! allows.

use std::borrow::Cow;

use wasip2::{
    http::types::{
        ErrorCode, Fields, IncomingRequest, Method, OutgoingBody, OutgoingResponse,
        ResponseOutparam,
    },
    io::streams::{OutputStream, StreamError},
};

use crate::{Error, IntoResponse, Request, Response, request::Unreadable, serve::answer};

/// What is asked of the host at once. The host gives what has arrived, so a large value costs
/// nothing and saves calls.
const READ_BYTES: u64 = 1 << 20;

/// Runs the handler for one request. Called by what `#[handler]` expands to.
pub fn serve<R: IntoResponse>(
    handler: fn(Request) -> R,
    request: IncomingRequest,
    out: ResponseOutparam,
) {
    send(answer(handler, Request::new(RawRequest(request))), out);
}

/// A request whose parts are still the host's.
pub(crate) struct RawRequest(IncomingRequest);

impl RawRequest {
    pub(crate) fn method(&self) -> Cow<'static, str> {
        Cow::Borrowed(match self.0.method() {
            Method::Get => "GET",
            Method::Head => "HEAD",
            Method::Post => "POST",
            Method::Put => "PUT",
            Method::Delete => "DELETE",
            Method::Connect => "CONNECT",
            Method::Options => "OPTIONS",
            Method::Trace => "TRACE",
            Method::Patch => "PATCH",
            Method::Other(name) => return Cow::Owned(name),
        })
    }

    pub(crate) fn path_with_query(&self) -> String {
        self.0.path_with_query().unwrap_or_default()
    }

    pub(crate) fn headers(&self) -> Vec<(String, Vec<u8>)> {
        self.0.headers().entries()
    }

    pub(crate) fn read_body(&self, bytes_max: usize) -> Result<Vec<u8>, Unreadable> {
        let body = self.0.consume().map_err(|()| Unreadable::Interrupted)?;
        let stream = body.stream().map_err(|()| Unreadable::Interrupted)?;
        let mut read = Vec::new();
        loop {
            match stream.blocking_read(READ_BYTES) {
                // The common body comes in one piece and is not copied again.
                Ok(chunk) if read.is_empty() => read = chunk,
                Ok(chunk) => read.extend_from_slice(&chunk),
                Err(StreamError::Closed) => return Ok(read),
                Err(StreamError::LastOperationFailed(_)) => return Err(Unreadable::Interrupted),
            }
            if read.len() > bytes_max {
                return Err(Unreadable::TooLarge);
            }
        }
    }
}

fn send(response: Response, out: ResponseOutparam) {
    let (head, content) = match head(response) {
        Ok(made) => made,
        Err(refused) => match head(refused.into_response()) {
            Ok(made) => made,
            Err(_) => return refuse(out, "no response could be made"),
        },
    };
    let Ok(body) = head.body() else { return refuse(out, "the response has no body") };
    let Ok(stream) = body.write() else { return refuse(out, "the body has no stream") };

    // What fits into the host's buffer is written before the head is handed over: the host then
    // has the whole response at once, and sends it in one go.
    let fits = stream.check_write().is_ok_and(|permit| permit >= content.len() as u64);
    if fits {
        let written = content.is_empty() || stream.write(&content).is_ok();
        drop(stream);
        if written {
            // Fails where the body is not as long as announced; the host has cut it off then.
            let _ = OutgoingBody::finish(body, None);
        }
        ResponseOutparam::set(out, Ok(head));
        return;
    }
    ResponseOutparam::set(out, Ok(head));
    // A caller who hung up needs no rest. Dropping the body unfinished marks it as cut off.
    if pump(&stream, &content).is_ok() {
        drop(stream);
        let _ = OutgoingBody::finish(body, None);
    }
}

/// Everything before the body. Fails where the host refuses a header or the status.
fn head(response: Response) -> Result<(OutgoingResponse, Cow<'static, [u8]>), Error> {
    let Response { status, mut headers, body: content } = response;
    let bodiless = matches!(status, 100..=199 | 204 | 304) && content.is_empty();
    if !bodiless && !headers.iter().any(|(name, _)| name == "content-length") {
        headers.push(("content-length".to_owned(), content.len().to_string().into_bytes()));
    }
    let fields = if headers.is_empty() { Ok(Fields::new()) } else { Fields::from_list(&headers) };
    let fields = fields.map_err(|error| {
        eprintln!("error: the host refuses a header of the response: {error}");
        Error::internal("the function made a response with a header that is not allowed")
    })?;
    let head = OutgoingResponse::new(fields);
    if status != 200 && head.set_status_code(status).is_err() {
        eprintln!("error: {status} is no status");
        return Err(Error::internal("the function made a response with a status that is none"));
    }
    Ok((head, content))
}

fn pump(stream: &OutputStream, mut content: &[u8]) -> Result<(), StreamError> {
    while !content.is_empty() {
        let permit = usize::try_from(stream.check_write()?).unwrap_or(usize::MAX);
        if permit == 0 {
            stream.subscribe().block();
            continue;
        }
        let (now, later) = content.split_at(permit.min(content.len()));
        stream.write(now)?;
        content = later;
    }
    stream.blocking_flush()
}

fn refuse(out: ResponseOutparam, why: &str) {
    eprintln!("error: {why}");
    ResponseOutparam::set(out, Err(ErrorCode::InternalError(Some(why.to_owned()))));
}
