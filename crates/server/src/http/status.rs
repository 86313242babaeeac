//! `POST /status/batch`: the states of many CVMs in one request.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use casemate_types::error::FieldError;
use casemate_types::ids::VmUuid;
use casemate_types::wire;
use serde_json::{Map, Value};

use super::error::answer;
use super::extract::{Body, Caller};
use super::view;
use crate::app::App;
use crate::cvm::state::Cvm;
use crate::error::{Error, Result};

/// Most machines in a request.
const MOST: usize = 500;

/// Which machines are asked about.
#[derive(utoipa::ToSchema)]
#[expect(dead_code, reason = "describes the body, which is read by hand")]
struct StatusRequest {
    /// UUIDs of machines, with or without dashes.
    #[schema(max_items = 500)]
    vm_uuids: Vec<String>,
}

/// Get many states
///
/// By the texts of the request. Machines that do not exist or belong to somebody else are left out.
#[utoipa::path(post, path = "/status/batch", tag = "cvms", request_body = StatusRequest,
    responses((status = 200, description = "The states", body = inline(wire::StatusMap))))]
pub async fn status_batch(State(app): State<App>, caller: Caller, Body(body): Body) -> Result<Response> {
    let asked = asked(&body)?;
    let machines: Vec<VmUuid> = asked.iter().filter_map(|text| text.parse().ok()).collect();
    let cvms = app.store.cvms_by_uuid(caller.actor.workspace_id, &machines)?;
    let mut states = wire::StatusMap::new();
    for text in asked {
        let Ok(machine) = text.parse::<VmUuid>() else { continue };
        if let Some(cvm) = cvms.iter().find(|cvm| cvm.vm_uuid == machine) {
            states.insert(text.to_owned(), entry(&app, cvm, text)?);
        }
    }
    Ok(answer(StatusCode::OK, &states))
}

fn asked(body: &Map<String, Value>) -> Result<Vec<&str>> {
    let wrong = |kind: &str, message: &str| Error::Invalid(vec![FieldError::body("vm_uuids", kind, message)]);
    let list = body.get("vm_uuids").ok_or_else(|| wrong("missing", "is needed: a list of machine UUIDs"))?;
    let list = list.as_array().ok_or_else(|| wrong("list_type", "should be a list of machine UUIDs"))?;
    if list.len() > MOST {
        return Err(wrong("too_long", &format!("has {} entries, at most {MOST} are allowed", list.len())));
    }
    let texts = list.iter().map(|value| value.as_str());
    texts.collect::<Option<_>>().ok_or_else(|| wrong("string_type", "should hold strings only"))
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
