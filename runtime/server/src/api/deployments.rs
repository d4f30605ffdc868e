//! Deployments that were not waited for: where they stand, until the next one of the same name.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use dashmap::DashMap;
use http::StatusCode;
use sandpiper_control::ModelEntry;
use sandpiper_domain::{ModelName, TenantName};
use serde_json::{Value, json};
use tokio::sync::OwnedSemaphorePermit;

use super::{Reply, resource::subject};
use crate::{app::App, respond::Problem};
use axum::response::IntoResponse;

/// A function or a model of a tenant.
pub(super) type Subject = (TenantName, &'static str, String);

#[derive(Debug, Clone)]
enum Stage {
    Preparing,
    Failed(Problem),
}

/// Failed deployments that one tenant is told of; earlier ones are forgotten.
const FAILED_MAX: usize = 32;

/// The deployments under way or failed. Each has a number of its own, so that a later one of the same name is not
/// taken for an earlier one.
#[derive(Debug, Default)]
pub(crate) struct Deployments {
    stages: DashMap<Subject, (u64, Stage)>,
    next: AtomicU64,
}

impl Deployments {
    /// What to show beside the subject, if anything.
    pub(super) fn json(&self, subject: &Subject) -> Option<Value> {
        let (_, stage) = self.stages.get(subject)?.clone();
        Some(match stage {
            Stage::Preparing => json!({ "state": "preparing" }),
            Stage::Failed(problem) => {
                let mut json = problem.to_json(None);
                json["state"] = "failed".into();
                json
            }
        })
    }

    /// Forgets those of tenants that `keep` refuses.
    pub(crate) fn retain(&self, keep: impl Fn(&TenantName) -> bool) {
        self.stages.retain(|(tenant, ..), _| keep(tenant));
    }

    /// Forgets how an earlier deployment of this model ended, as every next one does.
    pub(crate) fn forget_model(&self, tenant: &TenantName, model: &ModelName) {
        self.stages.remove(&subject::<ModelEntry>(tenant, model));
    }

    fn begin(&self, subject: &Subject) -> u64 {
        let is_own_failure =
            |key: &Subject, stage: &Stage| key.0 == subject.0 && matches!(stage, Stage::Failed(_));
        let failed =
            self.stages.iter().filter(|entry| is_own_failure(entry.key(), &entry.1)).count();
        if failed >= FAILED_MAX {
            self.stages.retain(|key, (_, stage)| !is_own_failure(key, stage));
        }
        let number = self.next.fetch_add(1, Relaxed);
        self.stages.insert(subject.clone(), (number, Stage::Preparing));
        number
    }

    fn end(&self, subject: &Subject, number: u64, failure: Option<Problem>) {
        match failure {
            None => drop(self.stages.remove_if(subject, |_, (current, _)| *current == number)),
            Some(problem) => {
                if let Some(mut entry) = self.stages.get_mut(subject)
                    && entry.0 == number
                {
                    entry.1 = Stage::Failed(problem);
                }
            }
        }
    }
}

/// Does the work and answers with its result, or answers 202 and goes on in the background. `permits` are held until
/// the work has ended, and the upload's bytes are gone with it.
pub(super) async fn run(
    app: &Arc<App>,
    subject: Subject,
    wait: bool,
    permits: [OwnedSemaphorePermit; 2],
    work: impl Future<Output = Reply> + Send + 'static,
) -> Reply {
    let work = async move {
        let _permits = permits;
        work.await
    };
    if wait {
        app.deployments.stages.remove(&subject);
        return work.await;
    }
    let body = json!({ "name": subject.2, "state": "preparing" });
    let number = app.deployments.begin(&subject);
    let app = app.clone();
    tokio::spawn(async move {
        // In a task of its own, so that even a panic ends as a failure that can be seen.
        let failure = match tokio::spawn(work).await {
            Ok(reply) => reply.err(),
            Err(error) => Some(Problem::internal(error)),
        };
        app.deployments.end(&subject, number, failure);
    });
    Ok((StatusCode::ACCEPTED, axum::Json(body)).into_response())
}
