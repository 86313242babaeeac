//! Switching on and off.

use axum::extract::State;
use axum::http::StatusCode;
use casemate_types::ids::CvmUid;
use casemate_types::patch::Restart;
use casemate_types::version::ApiVersion;
use casemate_types::wire;

use crate::app::App;
use crate::cvm::state::Status;
use crate::error::{Error, Result};
use crate::http::answer::{json, nothing};
use crate::http::extract::{Body, On, Params};
use crate::http::view;
use crate::store::{Accepted, Answer};
use crate::workflow::power::{self, Order};

/// Start a CVM
///
/// Switches the machine on. One that is on already stays on.
#[utoipa::path(post, path = "/cvms/{id}/start", tag = "power", params(("id" = CvmUid, Path)),
    responses((status = 200, description = "The CVM, `starting`", body = wire::Vm)))]
pub async fn cvm_start(State(app): State<App>, on: On, params: Params, Body(_): Body) -> Result<Answer> {
    let order = order(&app, &on, params, Status::Starting)?;
    answer(&app, on.caller.version, Status::Starting, &power::start(&app, on.cvm, order).await?)
}

/// Stop a CVM
///
/// Cuts the power at once. Ends whatever is at work on the CVM, and never waits.
#[utoipa::path(post, path = "/cvms/{id}/stop", tag = "power", params(("id" = CvmUid, Path)),
    responses((status = 200, description = "The CVM, `stopping`", body = wire::Vm)))]
pub async fn cvm_stop(State(app): State<App>, on: On, params: Params, Body(_): Body) -> Result<Answer> {
    let order = order(&app, &on, params, Status::Stopping)?;
    answer(&app, on.caller.version, Status::Stopping, &power::stop(&app, on.cvm, order).await?)
}

/// Shut a CVM down
///
/// Asks the guest to go down. If it does not, the operation fails and the machine goes on.
#[utoipa::path(post, path = "/cvms/{id}/shutdown", tag = "power", params(("id" = CvmUid, Path)),
    responses((status = 200, description = "The CVM, `shutting_down`", body = wire::Vm)))]
pub async fn cvm_shutdown(State(app): State<App>, on: On, params: Params, Body(_): Body) -> Result<Answer> {
    let order = order(&app, &on, params, Status::ShuttingDown)?;
    answer(&app, on.caller.version, Status::ShuttingDown, &power::shutdown(&app, on.cvm, order).await?)
}

/// Restart a CVM
///
/// Off and on again, with the configuration that it has. `force` skips asking the guest.
#[utoipa::path(post, path = "/cvms/{id}/restart", tag = "power", params(("id" = CvmUid, Path)), request_body = Restart,
    responses((status = 200, description = "The CVM, `restarting`", body = wire::Vm)))]
pub async fn cvm_restart(State(app): State<App>, on: On, params: Params, Body(body): Body) -> Result<Answer> {
    let order = order(&app, &on, params, Status::Restarting)?;
    let Restart { force } = Restart::from_json(&body).map_err(Error::Invalid)?;
    answer(&app, on.caller.version, Status::Restarting, &power::restart(&app, on.cvm, force, order).await?)
}

/// Delete a CVM
///
/// Removes the machine with its disk, for good. Ends whatever is at work on the CVM, and never waits.
#[utoipa::path(delete, path = "/cvms/{id}", tag = "cvms", params(("id" = CvmUid, Path)),
    responses((status = 204, description = "Accepted: the CVM is being removed")))]
pub async fn cvm_delete(State(app): State<App>, on: On, params: Params) -> Result<Answer> {
    // `polling` chose between two ways to wait, of which there is only one here.
    params.only(&["polling"])?;
    let receipt = on.caller.receipt(|_| Ok(nothing()));
    let order = Order { author: on.caller.author()?, if_match: on.if_match, receipt };
    power::delete(&app, on.cvm, order).await?;
    Ok(nothing())
}

fn order(app: &App, on: &On, params: Params, status: Status) -> Result<Order> {
    params.only(&[])?;
    let (app, version) = (app.clone(), on.caller.version);
    let receipt = on.caller.receipt(move |accepted| answer(&app, version, status, accepted));
    Ok(Order { author: on.caller.author()?, if_match: on.if_match.clone(), receipt })
}

/// The CVM, with the status that goes with what was asked for. Clients take any other for a refusal, also where a restart
/// found the machine off and so only starts it, or a start found it running and there is nothing to do.
fn answer(app: &App, version: ApiVersion, status: Status, accepted: &Accepted) -> Result<Answer> {
    let spec = app.store.spec(accepted.cvm.id, accepted.cvm.revision)?;
    let mut vm = view::vm(app, &accepted.cvm, &spec, version)?;
    vm.status = status.as_str().into();
    Ok(json(StatusCode::OK, &vm))
}
