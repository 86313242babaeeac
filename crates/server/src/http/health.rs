//! For whoever keeps the server running: is it alive, and can it work?

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use crate::app::App;

/// The process answers.
pub async fn healthz() -> &'static str {
    "ok\n"
}

/// The store can be read and there is a node to work on.
pub async fn readyz(State(app): State<App>) -> Response {
    match app.store.nodes() {
        Ok(nodes) if nodes.iter().any(|node| app.node(node.id).is_some()) => "ready\n".into_response(),
        Ok(_) => (StatusCode::SERVICE_UNAVAILABLE, "no node\n").into_response(),
        Err(error) => {
            tracing::error!(%error, "the store cannot be read");
            (StatusCode::SERVICE_UNAVAILABLE, "the store cannot be read\n").into_response()
        }
    }
}
