//! What happens to every request before and after its handler.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, Uri};
use axum::middleware::Next;
use axum::response::Response;

use super::error::Failure;
use super::extract::RequestId;
use super::origin::Origin;
use crate::app::App;

/// Version of this program, in every answer: clients that find it know what they may use.
pub const CASEMATE: HeaderName = HeaderName::from_static("x-casemate");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// How long all that a request asks of chains and key services may take together. Clients wait 30 s.
pub const DEADLINE: Duration = Duration::from_secs(25);

/// Names the request, gives it a deadline, logs it, and signs the answer.
pub async fn around(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let id = format!("req_{}", app.clock.random_text(16));
    request.extensions_mut().insert(RequestId(id.clone()));
    let begun = app.clock.now();
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let origin = request.extensions().get::<Origin>().copied();
    let mut response = app.clock.with_deadline(DEADLINE, next.run(request)).await;
    let took_ms = app.clock.now().as_millisecond() - begun.as_millisecond();
    let (status, path) = (response.status().as_u16(), uri.path());
    let client = origin.map(|origin| tracing::field::display(origin.address));
    let scheme = origin.map(|origin| origin.scheme.as_str());
    // One event and no span: a span would cost every request more than this line does.
    match response.extensions_mut().remove::<Failure>() {
        None => tracing::info!(id, client, scheme, %method, path, status, took_ms, "answered"),
        Some(Failure(why)) => {
            tracing::error!(id, client, scheme, %method, path, status, took_ms, "request failed: {why}");
        }
    }
    let headers = response.headers_mut();
    headers.insert(CASEMATE, HeaderValue::from_static(env!("CARGO_PKG_VERSION")));
    if let Ok(id) = HeaderValue::try_from(id) {
        headers.insert(REQUEST_ID, id);
    }
    response
}

/// Duplicate slashes count as one: some clients build paths by concatenation.
pub fn collapse_slashes(mut request: axum::http::Request<Body>) -> axum::http::Request<Body> {
    if request.uri().path().contains("//") {
        let mut path = String::with_capacity(request.uri().path().len());
        for letter in request.uri().path().chars() {
            if letter != '/' || !path.ends_with('/') {
                path.push(letter);
            }
        }
        if let Some(query) = request.uri().query() {
            path.push('?');
            path.push_str(query);
        }
        if let Ok(uri) = path.parse::<Uri>() {
            *request.uri_mut() = uri;
        }
    }
    request
}
