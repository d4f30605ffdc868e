//! What a caller may say about a job, in headers.

use http::{HeaderMap, StatusCode};

use super::webhook;
use crate::{config::FileSettings, respond::Problem};

const DELAY: &str = "x-sandpiper-delay";
const PRIORITY: &str = "x-sandpiper-priority";
const ATTEMPTS: &str = "x-sandpiper-attempts";
const TIMEOUT: &str = "x-sandpiper-timeout";
const RESULT_TTL: &str = "x-sandpiper-result-ttl";
const DEADLINE: &str = "x-sandpiper-deadline";
const WEBHOOK: &str = "x-sandpiper-webhook";
const KEY: &str = "idempotency-key";
/// Headers that are for us and not for the function.
pub(super) const OURS: [&str; 9] =
    [DELAY, PRIORITY, ATTEMPTS, TIMEOUT, RESULT_TTL, DEADLINE, WEBHOOK, KEY, "prefer"];

const HOUR_MS: u64 = 3_600_000;
/// As Lambda has it: an event is given up after six hours.
pub(super) const DEADLINE_MS: u64 = 6 * HOUR_MS;
const DAY_MS: u64 = 24 * HOUR_MS;
const WEEK_MS: u64 = 7 * DAY_MS;
const KEY_BYTES_MAX: usize = 255;
const URL_BYTES_MAX: usize = 2_048;

/// All of it, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Options {
    pub(super) delay_ms: u64,
    pub(super) priority: u8,
    pub(super) attempts: u32,
    pub(super) timeout_ms: Option<u64>,
    pub(super) result_ttl_ms: u64,
    pub(super) deadline_ms: u64,
    pub(super) webhook: Option<String>,
    pub(super) key: Option<String>,
}

impl Options {
    pub(super) fn read(headers: &HeaderMap, settings: &FileSettings) -> Result<Self, Problem> {
        let options = Options {
            delay_ms: duration(headers, DELAY, 0..=WEEK_MS)?.unwrap_or(0),
            priority: number(headers, PRIORITY, 0, 9)?.unwrap_or(5) as u8,
            attempts: number(headers, ATTEMPTS, 1, 10)?.unwrap_or(3),
            timeout_ms: duration(headers, TIMEOUT, 1..=DAY_MS)?,
            result_ttl_ms: duration(headers, RESULT_TTL, 0..=WEEK_MS)?.unwrap_or(DAY_MS),
            deadline_ms: duration(headers, DEADLINE, 1..=WEEK_MS)?.unwrap_or(DEADLINE_MS),
            webhook: text(headers, WEBHOOK, URL_BYTES_MAX)?,
            key: text(headers, KEY, KEY_BYTES_MAX)?,
        };
        if let Some(url) = &options.webhook {
            webhook::check(url, &settings.webhook_private).map_err(|why| {
                let message = format!("the header `{WEBHOOK}` is refused: {why}");
                Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "webhook_forbidden", message)
                    .hint("name an address that anybody on the internet could call")
            })?;
        }
        Ok(options)
    }
}

fn refuse(name: &str, rule: impl std::fmt::Display) -> Problem {
    Problem::bad_request(format!("the header `{name}` {rule}"))
}

fn text(headers: &HeaderMap, name: &str, bytes_max: usize) -> Result<Option<String>, Problem> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(refuse(name, "is there more than once"));
    }
    let value = value.to_str().map_err(|_| refuse(name, "must be printable ASCII"))?.trim();
    if value.is_empty() || value.len() > bytes_max {
        return Err(refuse(name, format_args!("must be 1 to {bytes_max} bytes long")));
    }
    Ok(Some(value.to_owned()))
}

fn number(headers: &HeaderMap, name: &str, least: u32, most: u32) -> Result<Option<u32>, Problem> {
    let Some(value) = text(headers, name, 16)? else { return Ok(None) };
    let number = value.parse().ok().filter(|number| (least..=most).contains(number));
    number
        .map(Some)
        .ok_or_else(|| refuse(name, format_args!("must be a number from {least} to {most}")))
}

fn duration(
    headers: &HeaderMap,
    name: &str,
    range: std::ops::RangeInclusive<u64>,
) -> Result<Option<u64>, Problem> {
    let Some(value) = text(headers, name, 16)? else { return Ok(None) };
    let ms = milliseconds(&value).filter(|ms| range.contains(ms));
    let most_s = range.end() / 1_000;
    let rule = format!("must be a time such as 500ms, 30s, 5m, 2h or 1d, no longer than {most_s}s");
    ms.map(Some).ok_or_else(|| refuse(name, rule))
}

/// `30s`, `500ms`, `5m`, `2h`, `1d`; a bare number is seconds.
fn milliseconds(text: &str) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let unit = match &text[end..] {
        "ms" => 1,
        "s" | "" => 1_000,
        "m" => 60_000,
        "h" => HOUR_MS,
        "d" => DAY_MS,
        _ => return None,
    };
    text[..end].parse::<u64>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn read(pairs: &[(&'static str, &'static str)]) -> Result<Options, Problem> {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        Options::read(&headers, &FileSettings::default())
    }

    #[test]
    fn what_is_said_is_read() {
        let options = read(&[
            (DELAY, "500ms"),
            (PRIORITY, "9"),
            (ATTEMPTS, "1"),
            (TIMEOUT, "2m"),
            (RESULT_TTL, "0"),
            (DEADLINE, "1h"),
            (KEY, "a b"),
        ])
        .unwrap();
        let expected = Options {
            delay_ms: 500,
            priority: 9,
            attempts: 1,
            timeout_ms: Some(120_000),
            result_ttl_ms: 0,
            deadline_ms: HOUR_MS,
            webhook: None,
            key: Some("a b".to_owned()),
        };
        assert_eq!(options, expected);
        assert_eq!(read(&[]).unwrap().attempts, 3);
    }

    #[test]
    fn nonsense_is_refused_by_the_headers_name() {
        for (name, value) in [
            (DELAY, "soon"),
            (DELAY, "8d"),
            (DELAY, "99999999999999d"),
            (DELAY, ""),
            (PRIORITY, "10"),
            (PRIORITY, "-1"),
            (ATTEMPTS, "0"),
            (ATTEMPTS, "11"),
            (TIMEOUT, "0"),
            (RESULT_TTL, "8d"),
            (DEADLINE, "1w"),
        ] {
            let problem = read(&[(name, value)]).unwrap_err();
            assert_eq!(problem.status, StatusCode::BAD_REQUEST);
            assert!(problem.message.contains(name), "{}", problem.message);
        }
        assert!(read(&[(PRIORITY, "1"), (PRIORITY, "2")]).is_err());
    }
}
