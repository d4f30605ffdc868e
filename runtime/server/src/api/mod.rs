//! The control plane's REST under `/api/v1`, and the node's health and metrics. One file for each resource; every
//! handler turns a request into one call of the catalog and the answer into JSON.

use std::sync::Arc;

use axum::{
    Router,
    extract::{DefaultBodyLimit, State},
    response::{IntoResponse, Response},
    routing::{MethodRouter, get, post, put},
};
use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, header};
use hyper::body::Incoming;
use sandpiper_control::{Function, ModelEntry};

mod auth;
mod batches;
mod blobs;
mod deployments;
mod disk;
mod functions;
mod instances;
mod jobs;
mod keys;
mod logs;
mod model_upload;
mod models;
mod profile;
mod resource;
mod tenants;
mod traffic;
mod upload;
mod usage;
mod versions;

pub(crate) use auth::TENANT;
pub(crate) use deployments::Deployments;

use crate::{
    app::App,
    edge::{EdgeBody, request_id},
    respond::{Problem, REQUEST_ID},
};
use auth::Caller;
use resource::Resource;

/// Marks an answer of a function, which is no error of ours whatever its status.
#[derive(Debug, Clone, Copy)]
struct TheirAnswer;

type Reply = Result<Response, Problem>;

/// Every route but those under `/fn/`.
pub(crate) fn routes(app: Arc<App>) -> Router {
    let tenants = Router::new()
        .route("/tenants", get(tenants::list).post(tenants::create))
        .route("/tenants/{tenant}", get(tenants::show).delete(tenants::delete))
        .route("/tenants/{tenant}/keys", get(keys::list).post(keys::create))
        .route("/tenants/{tenant}/keys/{id}", get(keys::show).delete(keys::delete))
        .route("/whoami", get(keys::whoami));
    let functions = resource_routes::<Function>(put(functions::put))
        .route("/functions/{name}/logs", get(logs::show));
    let models = resource_routes::<ModelEntry>(put(models::put))
        .route("/models/{name}/grants", put(models::grant))
        .route("/models/{name}/retention", put(models::retain));
    let elastic = traffic::routes()
        .merge(instances::routes())
        .merge(usage::routes())
        .merge(jobs::routes())
        .merge(batches::routes())
        .merge(blobs::routes());
    Router::new()
        .nest("/api/v1", tenants.merge(functions).merge(models).merge(elastic))
        .route("/livez", get(async || axum::Json(serde_json::json!({ "status": "live" }))))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .fallback(async || Problem::not_found())
        .method_not_allowed_fallback(async || {
            Problem::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "method_not_allowed",
                "this address does not answer to that method",
            )
        })
        // Every handler that reads a body sets a limit of its own.
        .layer(DefaultBodyLimit::disable())
        .with_state(app)
}

/// The routes that functions and models have alike.
fn resource_routes<R: Resource>(upload: MethodRouter<Arc<App>>) -> Router<Arc<App>> {
    let all = format!("/{}", R::NOUNS.1);
    let one = format!("{all}/{{name}}");
    let alias = format!("{one}/aliases/{{alias}}");
    Router::new()
        .route(&all, get(resource::list::<R>))
        .route(&one, upload.get(resource::show::<R>).delete(resource::delete::<R>))
        .route(&format!("{one}/versions"), get(resource::versions::<R>))
        .route(
            &format!("{one}/versions/{{version}}"),
            get(resource::version::<R>).delete(resource::delete_version::<R>),
        )
        .route(&alias, put(resource::set_alias::<R>).delete(resource::delete_alias::<R>))
        .route(&format!("{alias}/rollback"), post(resource::roll_back::<R>))
}

/// Answers a request that is for no function.
pub(crate) async fn answer(
    mut routes: Router,
    request: Request<Incoming>,
) -> http::Response<EdgeBody> {
    let id = request_id(&request);
    let response = match tower::Service::call(&mut routes, request).await {
        Ok(response) => response,
        Err(never) => match never {},
    };
    let mut response = match problem_of(&response) {
        Some(problem) => {
            // The router alone knows which methods an address answers to; RFC 9110 wants them told.
            let allow = response.headers().get(header::ALLOW).cloned();
            let mut response = problem.into_response(&id);
            if let Some(allow) = allow {
                response.headers_mut().insert(header::ALLOW, allow);
            }
            response
        }
        None => response.map(EdgeBody::api),
    };
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}

/// Handlers answer with a problem; what axum itself refuses becomes one too, so that all errors look alike.
fn problem_of(response: &Response) -> Option<Problem> {
    if let Some(problem) = response.extensions().get::<Problem>() {
        return Some(problem.clone());
    }
    if response.extensions().get::<TheirAnswer>().is_some() {
        return None;
    }
    let status = response.status();
    if !status.is_client_error() && !status.is_server_error() {
        return None;
    }
    // The only answers with an error status that are no problems are our own JSON ones.
    let is_json =
        response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/json");
    if is_json {
        return None;
    }
    if status.is_server_error() {
        return Some(Problem::internal(status));
    }
    Some(Problem::new(status, "bad_request", "the request could not be understood"))
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

async fn ready(State(app): State<Arc<App>>) -> Response {
    let (status, text) = match app.is_ready() {
        true => (StatusCode::OK, "ready"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "draining"),
    };
    (status, axum::Json(serde_json::json!({ "status": text }))).into_response()
}

async fn metrics(State(app): State<Arc<App>>, caller: Caller) -> Reply {
    caller.must_be_operator()?;
    Ok(metrics_response(&app).map(axum::body::Body::new))
}

/// The metrics in Prometheus' text format, version 0.0.4.
pub(crate) fn metrics_response(app: &App) -> http::Response<EdgeBody> {
    metrics::gauge!("sandpiper_sandboxes").set(app.sandboxes.alive() as f64);
    metrics::gauge!("sandpiper_sandboxes_ready").set(app.scaling.ready() as f64);
    metrics::gauge!("sandpiper_code_resident").set(app.scaling.codes.resident() as f64);
    metrics::gauge!("sandpiper_inference_queue_depth").set(app.inference.queue_depth() as f64);
    metrics::gauge!("sandpiper_models_loaded").set(app.inference.model_count() as f64);
    metrics::gauge!("sandpiper_models_bytes").set(app.inference.models_bytes() as f64);
    metrics::gauge!("sandpiper_response_cache_bytes").set(app.inference.responses_bytes() as f64);
    let crowd = app.crowd();
    metrics::gauge!("sandpiper_running").set(f64::from(crowd.running));
    metrics::gauge!("sandpiper_suspended").set(f64::from(crowd.suspended));
    for (lane, waiting) in ["interactive", "job", "batch"].into_iter().zip(crowd.waiting) {
        metrics::gauge!("sandpiper_admission_waiting", "lane" => lane).set(f64::from(waiting));
    }
    let text = app.metrics.render() + &app.model_metrics.render(app);
    let mut response = http::Response::new(EdgeBody::full(Bytes::from(text)));
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
