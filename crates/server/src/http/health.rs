//! For whoever keeps the server running: is it alive, and can it work?

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use crate::app::App;

/// The process answers.
pub async fn healthz() -> &'static str {
    "ok\n"
}

/// The store can be read and written, and there is a node to work on.
pub async fn readyz(State(app): State<App>) -> Response {
    let not_ready = |why: &'static str| (StatusCode::SERVICE_UNAVAILABLE, why).into_response();
    match app.store.nodes() {
        Ok(nodes) if nodes.iter().any(|node| app.node(node.id).is_some()) => {}
        Ok(_) => return not_ready("no node\n"),
        Err(error) => {
            tracing::error!(%error, "the store cannot be read");
            return not_ready("the store cannot be read\n");
        }
    }
    match app.store.can_write(app.clock.now()).await {
        Ok(()) => "ready\n".into_response(),
        Err(error) => {
            tracing::error!(%error, "the store cannot be written");
            not_ready("the store cannot be written\n")
        }
    }
}
