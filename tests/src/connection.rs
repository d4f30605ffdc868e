//! A bare connection, for requests that no client would send, and for clients that leave.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    time::Duration,
};

use ureq::http::{HeaderMap, HeaderName, HeaderValue};

use crate::Answer;

/// One TCP connection to a server. Dropping it closes it.
pub struct Connection {
    stream: BufReader<TcpStream>,
    trailers: HeaderMap,
}

impl Connection {
    pub(crate) fn open(address: &str) -> Self {
        let stream = TcpStream::connect(address).expect("the server accepts connections");
        stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
        stream.set_nodelay(true).unwrap();
        Connection { stream: BufReader::new(stream), trailers: HeaderMap::new() }
    }

    /// The same connection for a thread that writes while this one reads.
    pub fn writer(&self) -> TcpStream {
        self.stream.get_ref().try_clone().unwrap()
    }

    /// What came behind the last chunked body.
    pub fn trailers(&self) -> &HeaderMap {
        &self.trailers
    }

    /// Sends bytes as they are. That the other side no longer listens is no failure: it may have answered already.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        let _ = self.stream.get_mut().write_all(bytes.as_ref());
        self
    }

    /// Reads one response, and leaves what comes after it.
    pub fn answer(&mut self) -> Answer {
        let mut answer = self.head();
        if matches!(answer.status, 204 | 304) {
            return answer;
        }
        let body = &mut answer.body;
        let number = |name| answer.headers.get(name).and_then(|v| v.to_str().ok()?.parse().ok());
        let is_chunked =
            answer.headers.get("transfer-encoding").is_some_and(|value| value == "chunked");
        if is_chunked {
            while let Some(chunk) = self.chunk() {
                body.extend_from_slice(&chunk);
            }
        } else if let Some(length) = number("content-length") {
            body.resize(length, 0);
            self.stream.read_exact(body).expect("the body is as long as it says");
        } else {
            let _ = self.stream.read_to_end(body);
        }
        answer
    }

    /// Reads a response's head alone.
    pub fn head(&mut self) -> Answer {
        let status_line = self.line();
        let status = status_line.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.unwrap_or_else(|| panic!("no status in {status_line:?}"));
        let headers = self.fields();
        Answer { what: "a bare request".to_owned(), status, headers, body: Vec::new() }
    }

    fn fields(&mut self) -> HeaderMap {
        let mut fields = HeaderMap::new();
        loop {
            let line = self.line();
            let Some((name, value)) = line.split_once(':') else { return fields };
            fields.append(
                name.parse::<HeaderName>().expect("a header's name"),
                HeaderValue::from_str(value.trim()).expect("a header's value"),
            );
        }
    }

    /// The next chunk of a chunked body; `None` at its end.
    pub fn chunk(&mut self) -> Option<Vec<u8>> {
        let size = self.line();
        let size = usize::from_str_radix(size.trim(), 16)
            .unwrap_or_else(|_| panic!("no size of a chunk: {size:?}"));
        if size == 0 {
            self.trailers = self.fields();
            return None;
        }
        let mut chunk = vec![0; size + 2];
        self.stream.read_exact(&mut chunk).expect("a chunk is as long as it says");
        chunk.truncate(size);
        Some(chunk)
    }

    /// A line without its end; empty when the connection has ended.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.stream.read_line(&mut line).expect("the server answers in time");
        line.trim_end_matches(['\r', '\n']).to_owned()
    }

    /// A line without its end; empty when the connection has ended, however it did.
    pub fn try_line(&mut self) -> String {
        let mut line = String::new();
        let _ = self.stream.read_line(&mut line);
        line.trim_end_matches(['\r', '\n']).to_owned()
    }

    /// Everything until the other side closes.
    pub fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        let _ = self.stream.read_to_end(&mut rest);
        rest
    }
}
