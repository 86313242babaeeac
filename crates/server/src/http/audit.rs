//! `GET /audit`: what happened in a workspace, and who did it.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use casemate_types::error::FieldError;
use casemate_types::ids::CvmRef;
use casemate_types::wire;
use serde_json::Value;

use super::error::answer;
use super::extract::{Caller, Params};
use crate::app::App;
use crate::error::{Error, Resource, Result};
use crate::store::{Event, Found, Of};
use crate::workflow::operation::Change;

/// Read the audit trail
///
/// Everything that happened in the workspace, oldest first. A reader that comes back with the number of the last event it
/// read misses nothing. 410 if events after that number are no longer kept.
#[utoipa::path(get, path = "/audit", tag = "operations",
    params(
        ("after" = Option<u64>, Query, description = "Only events with a higher number."),
        ("cursor" = Option<u64>, Query, description = "`next_cursor` of the page before; another name of `after`."),
        ("cvm" = Option<String>, Query, description = "Only of this CVM, named in any way; of one that is gone, by its id."),
        ("limit" = Option<u64>, Query, description = "At most so many; 100 unless given.", minimum = 1, maximum = 1000),
    ),
    responses((status = 200, description = "The events", body = wire::AuditPage)))]
pub async fn audit_list(State(app): State<App>, caller: Caller, params: Params) -> Result<Response> {
    const LAST: u64 = i64::MAX as u64;
    let after = match (params.number("after", 0, LAST)?, params.number("cursor", 0, LAST)?) {
        (Some(after), Some(cursor)) if after != cursor => {
            let message = "`after` and `cursor` are two names of one parameter and say different things";
            return Err(Error::Invalid(vec![FieldError::query("cursor", "value_error", message)]));
        }
        (after, cursor) => i64::try_from(after.or(cursor).unwrap_or(0)).expect("bounded above"),
    };
    let of = match params.get("cvm") {
        None => Of::Workspace,
        Some(named) => Of::Cvm(cvm(&app, caller.actor.workspace_id, named)?),
    };
    let limit = usize::try_from(params.number("limit", 1, 1000)?.unwrap_or(100)).expect("bounded above");
    let mut events = app.store.events(caller.actor.workspace_id, of, after, limit + 1)?;
    let more = events.len() > limit;
    events.truncate(limit);
    let next_cursor = events.last().filter(|_| more).map(|event| event.seq.to_string());
    let items = events.iter().map(event).collect();
    Ok(answer(StatusCode::OK, &wire::AuditPage { items, next_cursor }))
}

/// The number of a CVM, also of one that is gone.
fn cvm(app: &App, workspace_id: i64, named: &str) -> Result<i64> {
    let absent = || Error::NotFound { what: Resource::Cvm };
    let reference: CvmRef = named.parse().map_err(|_| absent())?;
    if let Found::One(cvm) = app.store.cvm_find(workspace_id, &reference)? {
        return Ok(cvm.id);
    }
    match reference {
        CvmRef::Uid(uid) => app.store.cvm_number(workspace_id, &uid)?.ok_or_else(absent),
        _ => Err(absent()),
    }
}

/// Fields of which the trail says that they were changed, and no more: a hash of a secret that is short can be guessed.
const SECRETS: [&str; 3] = ["encrypted_env", "user_config", "docker_config"];

fn change(Change { field, from, to }: &Change) -> wire::AuditChange {
    let shown = |value: &Value| (!SECRETS.contains(&field.as_str())).then(|| value.clone());
    wire::AuditChange { field: field.clone(), from: shown(from), to: shown(to) }
}

/// An event as the wire shows it.
pub fn event(event: &Event) -> wire::AuditEvent {
    let details = event.data.as_deref().and_then(|text| serde_json::from_str(text).ok());
    wire::AuditEvent {
        seq: event.seq.unsigned_abs(),
        at: event.at,
        kind: event.kind.clone(),
        cvm_id: event.cvm.clone(),
        correlation_id: event.op,
        actor: event.username.clone(),
        key_id: event.key.clone(),
        request_id: event.request_id.clone(),
        revision_before: event.before_rev,
        revision_after: event.after_rev,
        operation: event.asked.as_ref().map(|(kind, _)| kind.clone()),
        changes: event.asked.iter().flat_map(|(_, changes)| changes).map(change).collect(),
        details: details.unwrap_or_default(),
    }
}
