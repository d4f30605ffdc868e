//! What a run gave, for people and for programs.

use serde_json::{Map, Value, json};

use super::{
    Row,
    load::Level,
    measure::Measured,
    target::{Kind, Target},
};
use crate::output::{clean, table};

/// A client that uses so much of its threads is what is measured.
const CLIENT_CPU_MAX: f64 = 0.85;
const BAR_CELLS: usize = 40;

const PERCENTILES: [(&str, f64); 4] = [("p50", 50.0), ("p90", 90.0), ("p95", 95.0), ("p99", 99.0)];

/// One level on one line, as soon as it is known.
pub(super) fn line(level: Level, measured: &Measured) -> String {
    let p99 = latency(measured.latencies.value_at_quantile(0.99) as f64 / 1e3);
    format!("{level}: {:.0} requests/s, p99 {p99}, {} failed", measured.rate(), measured.failed())
}

/// The whole run for programs. Latencies are those of successes.
pub(super) fn json(target: &Target, rows: &[Row], sent: u64) -> Value {
    let levels: Vec<Value> = rows.iter().map(level_json).collect();
    json!({
        "kind": target.kind.to_string(),
        "name": target.name,
        "requests_sent": sent,
        "levels": levels,
    })
}

fn level_json((level, measured, server): &Row) -> Value {
    let latencies = &measured.latencies;
    let us = |nanoseconds: u64| nanoseconds as f64 / 1e3;
    let mut latency = Map::new();
    if !latencies.is_empty() {
        latency.insert("mean".into(), json!(latencies.mean() / 1e3));
        for (name, percentile) in PERCENTILES {
            latency.insert(name.into(), json!(us(latencies.value_at_percentile(percentile))));
        }
        latency.insert("max".into(), json!(us(latencies.max())));
    }
    let errors = measured.failures.iter();
    let errors: Map<String, Value> =
        errors.map(|(failure, count)| (failure.to_string(), json!(count))).collect();
    let mut row = json!({
        "concurrency": level.concurrency,
        "seconds": measured.time.as_secs_f64(),
        "requests": measured.succeeded(),
        "requests_per_second": measured.rate(),
        "latency_us": latency,
        "errors": errors,
        "stable": measured.stable,
        "client_cpu": measured.client_cpu,
        "requests_sent": measured.sent,
        "requests_late": measured.late,
    });
    if let Some(rate) = level.rate {
        row["rate"] = rate.into();
    }
    if let Some(server) = server {
        row["server"] = server.clone();
    }
    row
}

/// The whole run for people: a table, the errors, the curve, and what to think of it.
pub(super) fn text(target: &Target, rows: &[Row]) -> String {
    let cells: Vec<Value> = rows.iter().map(cells).collect();
    let mut columns =
        vec![("CONCURRENCY", "/concurrency"), ("RATE", "/rate"), ("REQ/S", "/throughput")];
    columns.extend([("P50", "/p50"), ("P90", "/p90"), ("P95", "/p95"), ("P99", "/p99")]);
    columns.extend([("MAX", "/max"), ("ERRORS", "/errors"), ("CLIENT CPU", "/cpu")]);
    columns.extend([("QUEUE", "/queue"), ("COMPUTE", "/compute"), ("BATCH", "/batch")]);
    columns.push(("CACHE HITS", "/hits"));
    let mut text = format!("{} {}\n\n{}\n", target.kind, target.name, table(&cells, &columns));
    for (level, measured, _) in rows {
        for (failure, count) in &measured.failures {
            text.push_str(&format!("\n{level}: {count} x {}", clean(&failure.to_string())));
        }
    }
    if rows.len() > 1 {
        text.push_str(&format!("\n{}", curve(rows)));
    }
    for remark in remarks(target, rows) {
        text.push_str(&format!("\n{remark}"));
    }
    text
}

fn cells((level, measured, server): &Row) -> Value {
    let mut cells = json!({
        "concurrency": level.concurrency,
        "rate": level.rate,
        "throughput": format!("{:.0}", measured.rate()),
        "errors": measured.failed(),
        "cpu": format!("{:.0} %", measured.client_cpu * 100.0),
    });
    let latencies = &measured.latencies;
    if !latencies.is_empty() {
        for (name, percentile) in PERCENTILES {
            let value = latencies.value_at_percentile(percentile) as f64 / 1e3;
            cells[name] = latency(value).into();
        }
        cells["max"] = latency(latencies.max() as f64 / 1e3).into();
    }
    if let Some(server) = server {
        for (cell, field) in [("queue", "queue_us_mean"), ("compute", "compute_us_mean")] {
            cells[cell] = server.get(field).and_then(Value::as_f64).map(latency).into();
        }
        let batch = server.get("batch_size_mean").and_then(Value::as_f64);
        cells["batch"] = batch.map(|size| format!("{size:.2}")).into();
        let hits = server.get("cache_hits").and_then(Value::as_u64).filter(|hits| *hits > 0);
        cells["hits"] = hits.into();
    }
    cells
}

/// Microseconds in the unit that reads best.
fn latency(us: f64) -> String {
    match us {
        us if us < 1_000.0 => format!("{us:.0} µs"),
        us if us < 10_000.0 => format!("{:.2} ms", us / 1e3),
        us if us < 1_000_000.0 => format!("{:.0} ms", us / 1e3),
        us => format!("{:.1} s", us / 1e6),
    }
}

/// Throughput by level, as bars.
fn curve(rows: &[Row]) -> String {
    let most = rows.iter().map(|(_, measured, _)| measured.rate()).fold(0.0, f64::max);
    let mut curve = "requests per second\n".to_owned();
    for (level, measured, _) in rows {
        let at = level.rate.unwrap_or(level.concurrency);
        let bar = bar(measured.rate(), most);
        curve.push_str(&format!("{at:>7}  {bar:<BAR_CELLS$}  {:.0}\n", measured.rate()));
    }
    curve
}

/// A bar as long as `value` is of `most`, in eighths of a cell.
fn bar(value: f64, most: f64) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    if most <= 0.0 {
        return String::new();
    }
    let eighths = (value / most * (BAR_CELLS * 8) as f64).round() as usize;
    let rest = EIGHTHS.get(eighths % 8).copied().unwrap_or_default();
    "█".repeat(eighths / 8) + rest
}

/// What a reader should know before they believe a figure.
fn remarks(target: &Target, rows: &[Row]) -> Vec<String> {
    let levels = |wanted: &dyn Fn(&Row) -> bool| {
        let levels = rows.iter().filter(|row| wanted(row)).map(|(level, _, _)| level.to_string());
        let levels: Vec<String> = levels.collect();
        (!levels.is_empty()).then(|| levels.join(", "))
    };
    let mut remarks = Vec::new();
    if let Some(levels) = levels(&|(_, measured, _)| measured.client_cpu > CLIENT_CPU_MAX) {
        remarks.push(format!(
            "the load generator is the bottleneck at {levels}: give it more --threads, or a machine of its own"
        ));
    }
    if let Some(levels) = levels(&|(_, measured, _)| !measured.stable) {
        remarks.push(format!("the last three windows differ by more than 10 % at {levels}"));
    }
    let cached = |(_, _, server): &Row| {
        server
            .as_ref()
            .and_then(|server| server["cache_hits"].as_u64())
            .is_some_and(|hits| hits > 0)
    };
    if target.kind == Kind::Model && rows.iter().any(cached) {
        remarks.push(
            "answers came from the response cache: every request of a run is the same".to_owned(),
        );
    }
    remarks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_have_the_length_of_their_share() {
        assert_eq!(bar(100.0, 100.0), "█".repeat(BAR_CELLS));
        assert_eq!(bar(50.0, 100.0), "█".repeat(BAR_CELLS / 2));
        assert_eq!(bar(100.0 / 320.0, 100.0), "▏");
        assert_eq!(bar(0.0, 100.0), "");
        assert_eq!(bar(0.0, 0.0), "");
    }

    #[test]
    fn latencies_choose_their_unit() {
        let shown = [12.4, 1_234.0, 12_345.0, 1_234_567.0].map(latency);
        assert_eq!(shown, ["12 µs", "1.23 ms", "12 ms", "1.2 s"]);
    }
}
