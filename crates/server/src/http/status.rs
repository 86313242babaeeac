//! `POST /status/batch`: the states of many CVMs in one request.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use casemate_types::ids::VmUuid;
use casemate_types::patch::StatusBatch;
use casemate_types::wire;

use super::error::answer;
use super::extract::{Body, Caller};
use super::view;
use crate::app::App;
use crate::cvm::state::Cvm;
use crate::error::{Error, Result};

/// Get many states
///
/// By the texts of the request. Machines that do not exist or belong to somebody else are left out.
#[utoipa::path(post, path = "/status/batch", tag = "cvms", request_body = StatusBatch,
    responses((status = 200, description = "The states", body = inline(wire::StatusMap))))]
pub async fn status_batch(State(app): State<App>, caller: Caller, Body(body): Body) -> Result<Response> {
    let asked = StatusBatch::from_json(&body).map_err(Error::Invalid)?.vm_uuids;
    let machines: Vec<VmUuid> = asked.iter().filter_map(|text| text.parse().ok()).collect();
    let cvms = app.store.cvms_by_uuid(caller.actor.workspace_id, &machines)?;
    let mut states = wire::StatusMap::new();
    for text in asked {
        let Ok(machine) = text.parse::<VmUuid>() else { continue };
        if let Some(cvm) = cvms.iter().find(|cvm| cvm.vm_uuid == machine) {
            let entry = entry(&app, cvm, &text)?;
            states.insert(text, entry);
        }
    }
    Ok(answer(StatusCode::OK, &states))
}

fn entry(app: &App, cvm: &Cvm, text: &str) -> Result<wire::StatusEntry> {
    let guest = view::guest(app, cvm)?;
    let open = cvm.open.as_ref();
    let operation = match open {
        None => None,
        Some(open) => {
            let step = app.store.operation_open(cvm.id)?;
            let phase = step.as_ref().and_then(|operation| operation.current_step());
            Some(wire::StatusOperation {
                kind: Some(open.kind.as_str().to_owned()),
                phase: phase.map(|step| step.name.as_str().to_owned()),
                started_at: Some(open.started_at),
                correlation_id: Some(open.id.to_string()),
            })
        }
    };
    Ok(wire::StatusEntry {
        vm_uuid: text.to_owned(),
        status: cvm.status.as_str().into(),
        in_progress: open.is_some(),
        uptime: guest.uptime,
        boot_progress: guest.boot_progress,
        boot_error: guest.boot_error,
        shutdown_progress: guest.shutdown_progress,
        operation_type: open.map(|open| open.kind.as_str().to_owned()),
        operation_started_at: open.map(|open| open.started_at),
        correlation_id: open.map(|open| open.id.to_string()),
        events: Vec::new(),
        operation,
        resource_usage: None,
    })
}
