//! What a node knows of a model version beside what the catalog has: its state, and what was measured while it is in
//! memory.

use sandpiper_domain::ModelKey;
use sandpiper_inference::LoadError;
use serde_json::{Value, json};

use crate::app::App;

/// The fields that the node adds to the JSON of a version.
pub(super) fn of_version(app: &App, key: &ModelKey) -> Vec<(&'static str, Value)> {
    let failed = |reason: String| vec![("state", "failed".into()), ("reason", reason.into())];
    let Some(model) = app.inference.peek(key) else {
        return match app.inference.failure(key) {
            _ if app.inference.is_loading(key) => vec![("state", "loading".into())],
            Some(LoadError::Bytes(_)) => failed("the node could not read the model".to_owned()),
            Some(error) => failed(error.to_string()),
            None => vec![("state", "unloaded".into())],
        };
    };
    let profile = model.profile();
    let mut fields = match model.quarantine() {
        Some(reason) => failed(reason),
        None => vec![("state", "ready".into())],
    };
    fields.extend([
        ("operators", json!(profile.operators)),
        ("parameters", profile.parameters.into()),
        ("memory_bytes", model.memory_bytes().into()),
        ("batching", json!(profile.batching)),
    ]);
    fields
}
