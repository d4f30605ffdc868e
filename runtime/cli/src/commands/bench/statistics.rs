//! The server's part of a model's time, from the statistics extension of the Open Inference Protocol.

use serde_json::{Value, json};

use super::target::{Kind, Target, model_path};
use crate::client::Client;

/// A model's counters at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Statistics {
    requests: u64,
    inferences: u64,
    executions: u64,
    queue: (u64, u64),
    compute: (u64, u64),
    cache_hits: u64,
}

impl Statistics {
    /// Reads those of one version; none for a function, or where the server shows none.
    pub(super) fn read(client: &Client, target: &Target, version: Option<&str>) -> Option<Self> {
        if target.kind == Kind::Function {
            return None;
        }
        let answer = client.get(&format!("{}/stats", model_path(&target.name))).ok()?;
        Self::of(&answer, version?)
    }

    fn of(answer: &Value, version: &str) -> Option<Self> {
        let mut models = answer.get("model_stats")?.as_array()?.iter();
        let model = models.find(|model| model.get("version") == Some(&version.into()))?;
        let number = |pointer: &str| model.pointer(pointer).and_then(Value::as_u64).unwrap_or(0);
        let span = |name: &str| {
            let field = |field: &str| number(&format!("/inference_stats/{name}/{field}"));
            (field("count"), field("ns"))
        };
        Some(Statistics {
            requests: span("success").0,
            inferences: number("/inference_count"),
            executions: number("/execution_count"),
            queue: span("queue"),
            compute: span("compute_infer"),
            cache_hits: span("cache_hit").0,
        })
    }

    /// What happened between `before` and this, as it is reported; none where nothing did.
    pub(super) fn since(&self, before: &Statistics) -> Option<Value> {
        let more = |now: u64, then: u64| now.saturating_sub(then);
        let mean_us = |now: (u64, u64), then: (u64, u64)| {
            let count = more(now.0, then.0);
            (count > 0).then(|| more(now.1, then.1) as f64 / count as f64 / 1e3)
        };
        let requests = more(self.requests, before.requests);
        let executions = more(self.executions, before.executions);
        let inferences = more(self.inferences, before.inferences);
        let batch = (executions > 0).then(|| inferences as f64 / executions as f64);
        (requests > 0).then(|| {
            json!({
                "requests": requests,
                "queue_us_mean": mean_us(self.queue, before.queue),
                "compute_us_mean": mean_us(self.compute, before.compute),
                "batch_size_mean": batch,
                "cache_hits": more(self.cache_hits, before.cache_hits),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(requests: u64, executions: u64, ns: u64) -> Value {
        let span = json!({"count": requests, "ns": ns});
        let older = json!({"name": "iris", "version": "1", "inference_count": 7});
        json!({"model_stats": [older, {
            "name": "iris", "version": "2",
            "inference_count": requests, "execution_count": executions,
            "inference_stats": {"success": span, "queue": span, "compute_infer": span,
                "cache_hit": {"count": 0, "ns": 0}},
        }]})
    }

    #[test]
    fn the_difference_is_reported() {
        let before = Statistics::of(&answer(10, 10, 1_000_000), "2").unwrap();
        let after = Statistics::of(&answer(50, 20, 3_000_000), "2").unwrap();
        let expected = json!({"requests": 40, "queue_us_mean": 50.0, "compute_us_mean": 50.0,
            "batch_size_mean": 4.0, "cache_hits": 0});
        assert_eq!(after.since(&before), Some(expected));
        assert_eq!(after.since(&after), None);
    }

    #[test]
    fn another_answer_is_no_statistics() {
        assert_eq!(Statistics::of(&json!({"error": "none"}), "1"), None);
        assert_eq!(Statistics::of(&json!({"model_stats": []}), "1"), None);
        assert_eq!(Statistics::of(&answer(1, 1, 1), "3"), None);
    }
}
