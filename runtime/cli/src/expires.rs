//! When a key ends: `30d`, `12h`, or a moment in RFC 3339.

use time::{Duration, OffsetDateTime, format_description::well_known::Rfc3339};

/// Reads `text` and gives the moment as the server wants it, in UTC.
pub(crate) fn parse(text: &str, now: OffsetDateTime) -> Result<String, &'static str> {
    const RULE: &str =
        "give a span such as 12h, 30d or 8w, or a moment such as 2030-01-31T00:00:00Z";
    let moment = match OffsetDateTime::parse(text, &Rfc3339) {
        Ok(moment) => moment,
        Err(_) => now.checked_add(span(text).ok_or(RULE)?).ok_or(RULE)?,
    };
    if moment <= now {
        return Err("the key would have expired already");
    }
    let utc = moment.checked_to_offset(time::UtcOffset::UTC).ok_or(RULE)?;
    utc.replace_nanosecond(0).unwrap_or(utc).format(&Rfc3339).map_err(|_| RULE)
}

fn span(text: &str) -> Option<Duration> {
    let unit = text.chars().next_back()?;
    let seconds: i64 = match unit {
        's' => 1,
        'm' => 60,
        'h' => 60 * 60,
        'd' => 24 * 60 * 60,
        'w' => 7 * 24 * 60 * 60,
        _ => return None,
    };
    let count = text.strip_suffix(unit)?;
    if !count.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    count.parse::<i64>().ok()?.checked_mul(seconds).map(Duration::seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Result<String, &'static str> {
        parse(text, OffsetDateTime::from_unix_timestamp(1_700_000_000).unwrap())
    }

    #[test]
    fn spans_count_from_now() {
        assert_eq!(at("1s").unwrap(), "2023-11-14T22:13:21Z");
        assert_eq!(at("30d").unwrap(), "2023-12-14T22:13:20Z");
        assert_eq!(at("2w").unwrap(), "2023-11-28T22:13:20Z");
        assert_eq!(at("90m").unwrap(), "2023-11-14T23:43:20Z");
    }

    #[test]
    fn a_moment_is_taken_in_utc() {
        assert_eq!(at("2030-01-31T02:00:00.5+02:00").unwrap(), "2030-01-31T00:00:00Z");
    }

    #[test]
    fn the_past_and_nonsense_are_refused() {
        assert!(at("2020-01-01T00:00:00Z").unwrap_err().contains("already"));
        for text in [
            "",
            "d",
            "0d",
            "-1d",
            "+1d",
            "1.5h",
            "30",
            "30 d",
            "9223372036854775807w",
            "1é",
            "300000000000d",
        ] {
            assert!(at(text).is_err(), "{text:?}");
        }
    }
}
