//! `GET /cvms/{id}/observed`: the node itself is asked.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use casemate_types::wire;

use crate::app::App;
use crate::cvm::state::Cvm;
use crate::driver::{self, Observed};
use crate::error::{Error, Resource, Result};
use crate::http::error::answer;
use crate::http::extract::On;
use crate::http::view;

/// Ask the node about a CVM
///
/// What the node itself reports, computed from what it holds: nothing in it comes from the records of this server. 404 if
/// the node has no such machine.
#[utoipa::path(get, path = "/cvms/{id}/observed", tag = "telemetry",
    responses((status = 200, description = "The node's report", body = wire::Observed)))]
pub async fn cvm_observed(State(app): State<App>, on: On) -> Result<Response> {
    let seen = ask(&app, &on.cvm).await?.ok_or(Error::NotFound { what: Resource::Machine })?;
    Ok(answer(StatusCode::OK, &view::observed(&seen)))
}

/// What the node reports of a CVM now; none if it has no such machine.
///
/// # Errors
/// `Unavailable` if the node does not answer.
pub async fn ask(app: &App, cvm: &Cvm) -> Result<Option<Observed>> {
    let node = app.node(cvm.node_id).ok_or(Error::NotFound { what: Resource::Node })?;
    Ok(node.driver.observe(&[cvm.vm_uuid]).await.map_err(no_answer)?.pop())
}

/// A read that the node did not answer.
pub fn no_answer(error: driver::Error) -> Error {
    Error::Unavailable { service: "the node", source: error.into() }
}
