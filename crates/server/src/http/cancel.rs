//! `POST /operations/{correlation_id}/cancel`.

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use casemate_types::error::codes;
use casemate_types::ids::OperationId;
use casemate_types::wire;

use crate::app::App;
use crate::error::{Error, Resource, Result};
use crate::http::answer::json;
use crate::http::extract::{Body, Caller, Params, if_match};
use crate::http::view;
use crate::store::{self, Accepted, Answer};
use crate::workflow::operation::{Kind, Operation, State as Stands};
use crate::workflow::power::{self, Order};

/// Call an operation off
///
/// Works until the machine is touched; after that `stop` ends an operation at any time.
#[utoipa::path(post, path = "/operations/{correlation_id}/cancel", tag = "operations",
    params(("correlation_id" = OperationId, Path, description = "The id that the accepted request was answered with.")),
    responses((status = 200, description = "The operation, `cancelled`", body = wire::Operation)))]
pub async fn operation_cancel(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<String>,
    params: Params,
    headers: HeaderMap,
    Body(_): Body,
) -> Result<Answer> {
    params.only(&[])?;
    let author = caller.author()?;
    let absent = || Error::NotFound { what: Resource::Operation };
    let id: OperationId = id.parse().map_err(|_| absent())?;
    let workspace_id = caller.actor.workspace_id;
    match app.store.operation(workspace_id, id) {
        Err(store::Error::Missing) => return Err(absent()),
        other => other?,
    };
    let receipt = {
        let app = app.clone();
        caller.receipt(move |accepted| answer(&app, accepted))
    };
    let order = Order { author, if_match: if_match(&headers), receipt };
    match power::cancel(&app, id, order).await {
        Ok(accepted) => answer(&app, &accepted),
        Err(refused @ Error::Conflict { .. }) => {
            Err(why_not(&app.store.operation(workspace_id, id)?).unwrap_or(refused))
        }
        Err(other) => Err(other),
    }
}

/// What keeps an operation from being called off, unless it is that the machine was touched.
fn why_not(operation: &Operation) -> Option<Error> {
    let at = operation.state.ended_at().map(|at| format!("{at:.0}")).unwrap_or_default();
    let message = match &operation.state {
        Stands::Succeeded { .. } => format!("the operation has ended: it succeeded at {at}"),
        Stands::Failed { reason, .. } => {
            format!("the operation has ended: it failed at {at}: {}", reason.message)
        }
        Stands::Cancelled { by: None, .. } => format!("the operation has ended: it was called off at {at}"),
        Stands::Cancelled { by: Some(by), .. } => {
            format!("the operation has ended: operation {by} took over at {at}")
        }
        Stands::Queued { .. } | Stands::Running { .. } => match operation.kind {
            Kind::Create => "the making of a CVM is not called off; delete the CVM".to_owned(),
            Kind::Stop => "a stop is not called off; start the CVM once it is off".to_owned(),
            Kind::Delete => "a deletion is not called off".to_owned(),
            Kind::PutBack => "a put-back is not called off; `stop` ends it".to_owned(),
            Kind::Update
            | Kind::RefreshInstanceId
            | Kind::Rollback
            | Kind::Start
            | Kind::Shutdown
            | Kind::Restart
            | Kind::Recover => return None,
        },
    };
    Some(Error::Conflict { code: Some(codes::INVALID_REQUEST), message })
}

fn answer(app: &App, accepted: &Accepted) -> Result<Answer> {
    Ok(json(StatusCode::OK, &view::operation(app, &accepted.operation)?))
}
