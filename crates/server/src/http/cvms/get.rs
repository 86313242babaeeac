//! `GET /cvms/{id}`.

use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::app::App;
use crate::error::Result;
use crate::http::answer::json;
use crate::http::extract::On;
use crate::http::view::{self, DetailAnswer};
use crate::store::Answer;

/// Get a CVM
///
/// Shows the configuration in force. While an operation is at work `status` says so, `in_progress` is true and `progress`
/// names it. The `ETag` changes with every accepted change; `If-Match` on an update takes it.
#[utoipa::path(get, path = "/cvms/{id}", tag = "cvms",
    responses((status = 200, description = "The CVM", body = DetailAnswer,
        headers(("ETag" = String, description = "`\"<revision>.<generation>\"`")))))]
pub async fn cvm_get(State(app): State<App>, on: On) -> Result<Response> {
    let body = match view::detail(&app, &on.cvm, on.caller.version)? {
        DetailAnswer::Cvm(text) => Answer { status: StatusCode::OK.as_u16(), body: text.into() },
        DetailAnswer::Flat(flat) => json(StatusCode::OK, &flat),
    };
    let mut response = body.into_response();
    let tag = HeaderValue::from_str(&format!("\"{}\"", on.cvm.tag())).expect("digits, a dot and quotes");
    response.headers_mut().insert(header::ETAG, tag);
    Ok(response)
}
