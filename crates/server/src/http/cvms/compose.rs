//! The configuration in force: the compose document and the two texts inside it.

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use casemate_types::compose::ComposeDoc;

use crate::app::App;
use crate::error::Result;
use crate::http::error::answer;
use crate::http::extract::{On, Params};
use crate::http::view::Shown;

fn text(text: String) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response()
}

fn shown(app: &App, on: &On) -> Result<ComposeDoc> {
    Ok(Shown::of(&app.store.spec(on.cvm.id, on.cvm.revision)?).document)
}

/// Get the docker-compose file
///
/// Byte for byte as it was received; empty for an app that another runner starts.
#[utoipa::path(get, path = "/cvms/{id}/docker-compose.yml", tag = "configuration",
    responses((status = 200, description = "The file", body = String, content_type = "text/plain")))]
pub async fn cvm_docker_compose(State(app): State<App>, on: On) -> Result<Response> {
    Ok(text(shown(&app, &on)?.docker_compose_file().unwrap_or_default().to_owned()))
}

/// Get the pre-launch script
///
/// Byte for byte as it was received; empty if there is none.
#[utoipa::path(get, path = "/cvms/{id}/pre-launch-script", tag = "configuration",
    responses((status = 200, description = "The script", body = String, content_type = "text/plain")))]
pub async fn cvm_pre_launch_script(State(app): State<App>, on: On) -> Result<Response> {
    Ok(text(shown(&app, &on)?.pre_launch_script().unwrap_or_default().to_owned()))
}

/// Get the app-compose document
///
/// The document whose hash is `compose_hash`. With `raw`, the exact text that is hashed: SHA-256 of the body is the hash.
#[utoipa::path(get, path = "/cvms/{id}/compose_file", tag = "configuration",
    params(("raw" = Option<bool>, Query, description = "The text that is hashed, instead of the document.")),
    responses((status = 200, description = "The document", content(
        (serde_json::Map<String, serde_json::Value> = "application/json"),
        (String = "text/plain"),
    ))))]
pub async fn cvm_compose_file(State(app): State<App>, on: On, params: Params) -> Result<Response> {
    let spec = app.store.spec(on.cvm.id, on.cvm.revision)?;
    if params.has("raw") && params.get("raw") != Some("false") {
        return Ok(text(spec.compose.text.to_string()));
    }
    Ok(answer(StatusCode::OK, &Shown::of(&spec).without_nulls()))
}
