//! What follows from how an attempt went.

use http::StatusCode;

use crate::respond::Problem;

/// The longest pause between two attempts.
const PAUSE_MS_MAX: u64 = 300_000;

/// The pause before the next attempt: 2^n seconds, at most five minutes, of which a random part is taken so that jobs
/// that failed together do not come back together. `random` is from 0 to 1.
pub(super) fn pause_ms(attempt: u32, random: f64) -> u64 {
    let whole = 1_000_u64.checked_shl(attempt.min(20)).unwrap_or(u64::MAX).min(PAUSE_MS_MAX);
    let random = random.clamp(0.0, 1.0);
    (whole as f64 * (0.5 + random / 2.0)) as u64
}

/// Whether an answer of the function asks to be tried again. Any other 4xx is what the function has to say.
pub(super) fn is_failure(status: StatusCode) -> bool {
    status.is_server_error()
        || status == StatusCode::REQUEST_TIMEOUT
        || status == StatusCode::TOO_MANY_REQUESTS
}

/// Whether the request never reached the function: the node or the tenant was busy, which is no fault of the job's.
pub(super) fn is_refusal(problem: &Problem) -> bool {
    matches!(problem.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE)
}

/// Whether the next request of the tenant would be refused as well.
pub(super) fn is_of_tenant(problem: &Problem) -> bool {
    matches!(problem.code, "rate_limited" | "budget_exhausted")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_five_minutes_and_keep_half_of_themselves() {
        assert_eq!((pause_ms(1, 0.0), pause_ms(1, 1.0)), (1_000, 2_000));
        assert_eq!((pause_ms(3, 0.0), pause_ms(3, 1.0)), (4_000, 8_000));
        for attempt in [9, 20, 64, u32::MAX] {
            assert_eq!((pause_ms(attempt, 0.0), pause_ms(attempt, 1.0)), (150_000, 300_000));
        }
    }

    #[test]
    fn a_refusal_of_the_functions_own_is_a_result() {
        for (status, failure) in [
            (200, false),
            (404, false),
            (422, false),
            (408, true),
            (429, true),
            (500, true),
            (503, true),
        ] {
            assert_eq!(is_failure(StatusCode::from_u16(status).unwrap()), failure, "{status}");
        }
    }
}
