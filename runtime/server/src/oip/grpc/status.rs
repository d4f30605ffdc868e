//! Errors and times in gRPC's words.

use std::time::Duration;

use http::HeaderMap;
use prost::Message;
use tonic::{Code, Status};

use crate::oip::OipError;

/// `google.rpc.Status`, which travels in `grpc-status-details-bin`.
#[derive(Clone, PartialEq, prost::Message)]
struct Details {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<Any>,
}

/// `google.protobuf.Any`.
#[derive(Clone, PartialEq, prost::Message)]
struct Any {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// `google.rpc.RetryInfo`.
#[derive(Clone, PartialEq, prost::Message)]
struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    retry_delay: Option<Delay>,
}

/// `google.protobuf.Duration`.
#[derive(Clone, PartialEq, prost::Message)]
struct Delay {
    #[prost(int64, tag = "1")]
    seconds: i64,
}

impl From<OipError> for Status {
    fn from(error: OipError) -> Self {
        let text = error.to_string();
        match error {
            OipError::InvalidArgument(_) => Status::invalid_argument(text),
            OipError::NotFound(_) => Status::not_found(text),
            OipError::Unavailable { retry_after_s, .. } => {
                retryable(Code::Unavailable, text, retry_after_s)
            }
            OipError::TooManyRequests { retry_after_s, .. } => {
                retryable(Code::ResourceExhausted, text, retry_after_s)
            }
            OipError::Unauthenticated(_) => Status::unauthenticated(text),
            OipError::PermissionDenied(_) => Status::permission_denied(text),
            OipError::Unsupported(_) => Status::unimplemented(text),
            OipError::TooLarge(_) => Status::resource_exhausted(text),
            OipError::DeadlineExceeded(_) => Status::deadline_exceeded(text),
            OipError::Internal(_) => Status::internal(text),
        }
    }
}

/// A status that says when to ask again.
fn retryable(code: Code, message: String, seconds: u32) -> Status {
    let retry = RetryInfo { retry_delay: Some(Delay { seconds: seconds.into() }) };
    let details = Details {
        code: code as i32,
        message: message.clone(),
        details: vec![Any {
            type_url: "type.googleapis.com/google.rpc.RetryInfo".to_owned(),
            value: retry.encode_to_vec(),
        }],
    };
    Status::with_details(code, message, details.encode_to_vec().into())
}

/// The code that gRPC's other servers have where tonic refuses a message by itself.
pub(super) fn of_others(code: Code) -> Option<Code> {
    match code {
        // A message beyond the limit.
        Code::OutOfRange => Some(Code::ResourceExhausted),
        // The body broke off, or came too slowly.
        Code::Unknown => Some(Code::DeadlineExceeded),
        _ => None,
    }
}

/// How long the caller waits: the header `grpc-timeout`, of at most eight digits and a unit.
pub(super) fn timeout(headers: &HeaderMap) -> Result<Option<Duration>, OipError> {
    let Some(value) = headers.get("grpc-timeout") else { return Ok(None) };
    let parsed = value.to_str().ok().and_then(parse_timeout);
    match parsed {
        Some(timeout) => Ok(Some(timeout)),
        None => Err(OipError::invalid("the header grpc-timeout is malformed")),
    }
}

fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_in_every_unit() {
        let read = |text| parse_timeout(text).map(|timeout| timeout.as_nanos());
        assert_eq!(read("1H"), Some(3_600_000_000_000));
        assert_eq!(read("2M"), Some(120_000_000_000));
        assert_eq!(read("99999999S"), Some(99_999_999_000_000_000));
        assert_eq!(read("7m"), Some(7_000_000));
        assert_eq!(read("7u"), Some(7_000));
        assert_eq!(read("07n"), Some(7));
        for text in ["", "S", "1", "123456789S", "-1S", "1.5S", "+1S", "1s", "1é", "é"] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    #[test]
    fn a_retry_is_told_as_google_rpc_says() {
        let error = OipError::Unavailable { message: "x".to_owned(), retry_after_s: 3 };
        let status = Status::from(error);
        assert_eq!(status.code(), Code::Unavailable);
        // Written by hand from the field numbers of google.rpc: code 14, "x", and an Any whose RetryInfo says 3 s.
        let url = b"type.googleapis.com/google.rpc.RetryInfo";
        let mut expected =
            vec![8, 14, 18, 1, b'x', 26, (2 + url.len() + 6) as u8, 10, url.len() as u8];
        expected.extend_from_slice(url);
        expected.extend_from_slice(&[18, 4, 10, 2, 8, 3]);
        assert_eq!(status.details(), expected);
    }
}
