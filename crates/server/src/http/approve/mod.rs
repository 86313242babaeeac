//! The page behind a commit link: what would change, how to allow it, and one action, Commit.
//!
//! It is a file like any other and knows nothing: what it shows it gets from the API, with the token from the link's fragment,
//! which browsers keep to themselves.

use axum::Router;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use axum::response::IntoResponse;
use axum::routing::get;

use crate::app::App;

/// Nothing from elsewhere, nothing inline, nobody around it.
const POLICY: &str =
    "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'";

/// The page and its parts.
pub fn routes() -> Router<App> {
    Router::new()
        .route("/approve/{id}", get(async || file("text/html; charset=utf-8", include_str!("page.html"))))
        .route("/approve/icon.svg", get(async || file("image/svg+xml", include_str!("icon.svg"))))
        .route("/approve/page.css", get(async || file("text/css; charset=utf-8", include_str!("page.css"))))
        .route(
            "/approve/page.js",
            get(async || file("text/javascript; charset=utf-8", include_str!("page.js"))),
        )
}

fn file(kind: &'static str, text: &'static str) -> impl IntoResponse {
    let headers: [(HeaderName, &'static str); 6] = [
        (CONTENT_TYPE, kind),
        (CONTENT_SECURITY_POLICY, POLICY),
        (REFERRER_POLICY, "no-referrer"),
        (CACHE_CONTROL, "no-store"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
    ];
    (headers, text)
}
