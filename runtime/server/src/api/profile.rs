//! What a node knows of a model beside what the catalog has: its state and what was measured, while it is in memory.

use sandpiper_domain::ModelKey;
use serde_json::{Value, json};

use crate::app::App;

/// The fields that a loaded model adds to the JSON of its version; none where it is not in memory.
pub(super) fn of_loaded(app: &App, key: &ModelKey) -> Vec<(&'static str, Value)> {
    let Some(model) = app.inference.peek(key) else { return Vec::new() };
    let profile = model.profile();
    let mut fields = vec![
        ("operators", json!(profile.operators)),
        ("parameters", profile.parameters.into()),
        ("memory_bytes", profile.memory_bytes.into()),
        ("batching", json!(profile.batching)),
    ];
    if let Some(reason) = model.quarantine() {
        fields.extend([("state", "failed".into()), ("reason", reason.into())]);
    }
    fields
}
