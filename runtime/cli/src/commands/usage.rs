//! `sandpiper usage`: what the tenant's functions have used in a month.

use serde_json::Value;

use super::{Context, number, rows, text};
use crate::{
    error::Result,
    output::{clean, table},
};

pub(super) fn run(context: &Context, month: Option<&str>) -> Result<()> {
    let path = match month {
        None => "/api/v1/usage".to_owned(),
        Some(month) => format!("/api/v1/usage?month={}", encoded(month)),
    };
    let answer = context.client()?.get(&path)?;
    context.ui.result(&answer, shown)
}

/// Whatever is no digit or dash is refused by the server, so that its form does not matter.
fn encoded(month: &str) -> String {
    month.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect()
}

fn shown(answer: &Value) -> String {
    let columns = [
        ("FUNCTION", "/function"),
        ("REQUESTS", "/requests"),
        ("FAULTS", "/faults"),
        ("CPU µs", "/guest_cpu_us"),
        ("MEMORY MiB·ms", "/memory_mib_ms"),
        ("INFERENCE µs", "/inference_us"),
        ("JOBS", "/jobs"),
        ("BYTES IN", "/bytes_in"),
        ("BYTES OUT", "/bytes_out"),
    ];
    let mut lines = vec![
        format!(
            "{}: {} requests",
            clean(text(answer, "month")),
            number(&answer["total"], "requests")
        ),
        table(rows(answer, "functions"), &columns),
    ];
    for (name, part) in answer.get("budget").and_then(Value::as_object).into_iter().flatten() {
        let (used, limit) = (number(part, "used"), number(part, "limit"));
        let renewed = clean(text(answer, "renewed_at"));
        lines.push(format!("budget {}: {used} of {limit}, renewed at {renewed}", clean(name)));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn functions_and_budget_are_shown() {
        let answer = json!({
            "month": "2026-11",
            "functions": [{ "function": "hello", "requests": 12, "faults": 1, "guest_cpu_us": 345,
                "memory_mib_ms": 6, "inference_us": 7, "jobs": 0, "bytes_in": 8, "bytes_out": 9 }],
            "total": { "requests": 12 },
            "budget": { "requests": { "limit": 100, "used": 12 } },
            "renewed_at": "2026-12-01T00:00:00Z",
        });
        let text = shown(&answer);
        assert!(text.starts_with("2026-11: 12 requests\n"), "{text}");
        assert!(text.contains("hello"), "{text}");
        assert!(
            text.ends_with("budget requests: 12 of 100, renewed at 2026-12-01T00:00:00Z"),
            "{text}"
        );
    }

    #[test]
    fn a_month_stays_in_its_place_in_the_url() {
        assert_eq!(encoded("2026-11"), "2026-11");
        assert_eq!(encoded("1&month=2"), "1_month_2");
    }
}
