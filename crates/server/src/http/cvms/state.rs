//! `GET /cvms/{id}/state`: once, or watched until a status is reached.

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use casemate_types::version::ApiVersion;
use casemate_types::wire;

use super::watch::{self, Watch};
use crate::app::App;
use crate::cvm::state::Cvm;
use crate::error::Result;
use crate::http::error::answer;
use crate::http::extract::{On, Params};
use crate::http::streams::StreamedEvent;
use crate::http::view;

/// Get or watch the state of a CVM
///
/// Without `target`: the state now, as JSON. With it: a stream of server-sent events. `state` comes at once, whenever the
/// status changes, and every `interval` seconds; `complete` when the status is `target`; `timeout` after `timeout` seconds;
/// `error` if the CVM is gone. A user may have five such streams at a time.
#[utoipa::path(get, path = "/cvms/{id}/state", tag = "cvms",
    params(
        ("target" = Option<String>, Query, description = "The status to wait for."),
        ("interval" = Option<u64>, Query, description = "Seconds between two states; 5 unless given.", minimum = 5, maximum = 30),
        ("timeout" = Option<u64>, Query, description = "Seconds to wait at most; 300 unless given.", minimum = 10, maximum = 600),
    ),
    responses((status = 200, description = "The state", content(
        (wire::CvmState = "application/json"),
        (StreamedEvent = "text/event-stream"),
    ))))]
pub async fn cvm_state(
    State(app): State<App>,
    on: On,
    params: Params,
    headers: HeaderMap,
) -> Result<Response> {
    let wants_events = headers
        .get(header::ACCEPT)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.contains("text/event-stream"));
    let target = params.get("target").filter(|target| !target.is_empty());
    if target.is_none() && !wants_events {
        return Ok(answer(StatusCode::OK, &state(&app, &on.cvm, on.caller.version)?));
    }
    Ok(watch::events(Watch::start(app, on, &params)?).into_response())
}

/// The state of a CVM now.
///
/// # Errors
/// Those of the store.
pub fn state(app: &App, cvm: &Cvm, version: ApiVersion) -> Result<wire::CvmState> {
    let guest = view::guest(app, cvm)?;
    Ok(wire::CvmState {
        // Clients of that version disagree whether it is a number.
        id: (version != ApiVersion::V20260121).then(|| cvm.uid.to_string()),
        vm_uuid: Some(cvm.vm_uuid),
        instance_id: cvm.instance_id,
        name: cvm.name.clone(),
        status: cvm.status.as_str().into(),
        uptime: guest.uptime,
        exited_at: guest.exited_at,
        boot_progress: guest.boot_progress,
        boot_error: guest.boot_error,
        shutdown_progress: guest.shutdown_progress,
    })
}
