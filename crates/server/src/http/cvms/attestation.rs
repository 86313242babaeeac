//! `GET /cvms/{id}/attestation`.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use casemate_types::compose::Flag;
use casemate_types::wire;

use super::telemetry::up;
use crate::app::App;
use crate::error::Result;
use crate::http::error::answer;
use crate::http::extract::On;
use crate::http::view::Shown;

/// Get evidence
///
/// What the CVM can show to prove what it is. The nodes here give none yet; `error` says so.
#[utoipa::path(get, path = "/cvms/{id}/attestation", tag = "telemetry",
    responses((status = 200, description = "The evidence", body = wire::CvmAttestation)))]
pub async fn cvm_attestation(State(app): State<App>, on: On) -> Result<Response> {
    let spec = app.store.spec(on.cvm.id, on.cvm.revision)?;
    let seen = up(&app, &on.cvm).await?;
    let attestation = wire::CvmAttestation {
        name: Some(on.cvm.name.clone()),
        is_online: seen.is_ok(),
        is_public: Shown::of(&spec).flag(Flag::PublicTcbinfo),
        error: Some(seen.err().unwrap_or_else(|| "the node gives no evidence of its machines".to_owned())),
        app_certificates: None,
        tcb_info: None,
        compose_file: Some(spec.compose.text.to_string()),
    };
    Ok(answer(StatusCode::OK, &attestation))
}
