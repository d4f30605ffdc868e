//! gRPC's own health service. It is open: those who ask have no key.

use std::{pin::Pin, sync::Arc};

use futures::{FutureExt, Stream, StreamExt, stream};

use super::message::health::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus,
};
use crate::{app::App, edge::Phase, oip::OipError};

/// The services that there are; the empty name is the node.
const SERVICES: [&str; 3] = ["", "inference.GRPCInferenceService", "grpc.health.v1.Health"];

pub(super) type Changes = Pin<Box<dyn Stream<Item = HealthCheckResponse> + Send>>;

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status as i32 }
}

fn now(app: &App) -> HealthCheckResponse {
    response(if app.is_ready() { ServingStatus::Serving } else { ServingStatus::NotServing })
}

pub(super) fn check(
    app: &App,
    request: &HealthCheckRequest,
) -> Result<HealthCheckResponse, OipError> {
    match SERVICES.contains(&request.service.as_str()) {
        true => Ok(now(app)),
        false => Err(OipError::NotFound("there is no such service".to_owned())),
    }
}

/// The state now, and once more when the node leaves; then the stream ends, so that the connection can.
pub(super) fn watch(app: &Arc<App>, request: &HealthCheckRequest) -> Changes {
    if !SERVICES.contains(&request.service.as_str()) {
        // The service may come, says the protocol; here it never does.
        let unknown = stream::once(std::future::ready(response(ServingStatus::ServiceUnknown)));
        return Box::pin(unknown.chain(end(app).filter_map(|_| std::future::ready(None))));
    }
    let first = stream::once(std::future::ready(now(app)));
    match app.is_ready() {
        true => Box::pin(first.chain(end(app))),
        false => Box::pin(first),
    }
}

fn end(app: &Arc<App>) -> impl Stream<Item = HealthCheckResponse> + Send + use<> {
    let leaves = app.reaches(Phase::Leaving);
    leaves.map(|()| response(ServingStatus::NotServing)).into_stream()
}
