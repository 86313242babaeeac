//! `POST /operations/{correlation_id}/cancel`.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use casemate_types::ids::OperationId;
use casemate_types::wire;

use crate::app::App;
use crate::error::{Error, Resource, Result};
use crate::http::answer::json;
use crate::http::extract::{Body, Caller, Params};
use crate::http::view;
use crate::store::{self, Accepted, Answer};
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
    Body(_): Body,
) -> Result<Answer> {
    params.only(&[])?;
    let author = caller.author()?;
    let absent = || Error::NotFound { what: Resource::Operation };
    let id: OperationId = id.parse().map_err(|_| absent())?;
    match app.store.operation(caller.actor.workspace_id, id) {
        Err(store::Error::Missing) => return Err(absent()),
        other => other?,
    };
    let receipt = {
        let app = app.clone();
        caller.receipt(move |accepted| answer(&app, accepted))
    };
    let order = Order { author, receipt, if_match: None };
    match power::cancel(&app, id, order).await {
        Err(Error::Conflict { code, message }) => {
            let now = app.store.operation(caller.actor.workspace_id, id)?.state;
            let message = if now.is_open() { message } else { format!("the operation has {}", now.name()) };
            Err(Error::Conflict { code, message })
        }
        other => answer(&app, &other?),
    }
}

fn answer(app: &App, accepted: &Accepted) -> Result<Answer> {
    Ok(json(StatusCode::OK, &view::operation(app, &accepted.operation)?))
}
