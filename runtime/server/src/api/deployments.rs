//! Deployments that were not waited for: where they stand, until the next one of the same name.

use std::sync::Arc;

use dashmap::DashMap;
use http::StatusCode;
use sandpiper_domain::TenantName;
use serde_json::{Value, json};

use super::Reply;
use crate::{app::App, respond::Problem};
use axum::response::IntoResponse;

/// A function or a model of a tenant.
pub(super) type Subject = (TenantName, &'static str, String);

#[derive(Debug, Clone)]
enum Stage {
    Preparing,
    Failed(Problem),
}

/// The deployments under way or failed.
#[derive(Debug, Default)]
pub(crate) struct Deployments(DashMap<Subject, Stage>);

impl Deployments {
    /// What to show beside the subject, if anything.
    pub(super) fn json(&self, subject: &Subject) -> Option<Value> {
        let stage = self.0.get(subject)?.clone();
        Some(match stage {
            Stage::Preparing => json!({ "state": "preparing" }),
            Stage::Failed(problem) => {
                let mut json = problem.to_json(None);
                json["state"] = "failed".into();
                json
            }
        })
    }
}

/// Does the work and answers with its result, or answers 202 and goes on in the background.
pub(super) async fn run(
    app: &Arc<App>,
    subject: Subject,
    wait: bool,
    work: impl Future<Output = Reply> + Send + 'static,
) -> Reply {
    if wait {
        app.deployments.0.remove(&subject);
        return work.await;
    }
    let body = json!({ "name": subject.2, "state": "preparing" });
    app.deployments.0.insert(subject.clone(), Stage::Preparing);
    let app = app.clone();
    tokio::spawn(async move {
        match work.await {
            Ok(_) => {
                app.deployments.0.remove(&subject);
            }
            Err(problem) => {
                app.deployments.0.insert(subject, Stage::Failed(problem));
            }
        }
    });
    Ok((StatusCode::ACCEPTED, axum::Json(body)).into_response())
}
