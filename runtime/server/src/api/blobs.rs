//! The blobs that jobs and batches take and give.

use std::sync::Arc;

use axum::Router;

use crate::app::App;

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
}
