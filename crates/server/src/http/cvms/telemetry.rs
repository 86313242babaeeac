//! `GET /cvms/{id}/stats` and `GET /cvms/{id}/network`.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use casemate_types::compose::Flag;
use casemate_types::wire;

use super::observed::ask;
use crate::app::App;
use crate::cvm::state::Cvm;
use crate::driver::{Guest, Observed};
use crate::error::{Error, Result};
use crate::http::error::answer;
use crate::http::extract::On;
use crate::http::view::{self, Shown};

/// What the node reports now of a machine that is up, or why there is nothing to tell.
///
/// # Errors
/// Never for a node that does not answer: that is an answer as well.
pub async fn up(app: &App, cvm: &Cvm) -> Result<std::result::Result<Observed, String>> {
    Ok(match ask(app, cvm).await {
        Ok(Some(seen)) if seen.guest == Guest::Done => Ok(seen),
        Ok(_) => Err(format!("the CVM is not up: its status is {}", cvm.status)),
        Err(Error::Unavailable { .. }) => Err("the node does not answer".to_owned()),
        Err(error) => return Err(error),
    })
}

/// Get system information
///
/// What the guest's system says of itself, where a node tells; `error` says why not. A CVM that is off is a 200 as well, with
/// `is_online` false.
#[utoipa::path(get, path = "/cvms/{id}/stats", tag = "telemetry",
    responses((status = 200, description = "The information", body = wire::CvmStats)))]
pub async fn cvm_stats(State(app): State<App>, on: On) -> Result<Response> {
    let shown = Shown::of(&app.store.spec(on.cvm.id, on.cvm.revision)?);
    let guest = view::guest(&app, &on.cvm)?;
    let seen = up(&app, &on.cvm).await?;
    let stats = wire::CvmStats {
        is_online: seen.is_ok(),
        is_public: shown.flag(Flag::PublicSysinfo),
        // No kind of node tells, so far. A simulated machine has a size and a time of start, and no system, no kernel and no load:
        // most of what clients want here would be made up. They take nothing rather than a system with blanks.
        sysinfo: None,
        error: Some(
            seen.err().unwrap_or_else(|| "the node does not tell about the guest's system".to_owned()),
        ),
        status: Some(on.cvm.status.as_str().into()),
        in_progress: on.cvm.open.is_some(),
        boot_progress: guest.boot_progress,
        boot_error: guest.boot_error,
    };
    Ok(answer(StatusCode::OK, &stats))
}

/// Get network information
///
/// How the CVM is reached through the gateway, if there is one.
#[utoipa::path(get, path = "/cvms/{id}/network", tag = "telemetry",
    responses((status = 200, description = "The information", body = wire::CvmNetwork)))]
pub async fn cvm_network(State(app): State<App>, on: On) -> Result<Response> {
    let shown = Shown::of(&app.store.spec(on.cvm.id, on.cvm.revision)?);
    let seen = up(&app, &on.cvm).await?;
    let network = wire::CvmNetwork {
        is_online: seen.is_ok(),
        is_public: shown.flag(Flag::PublicSysinfo),
        error: seen.err(),
        internal_ip: None,
        latest_handshake: None,
        public_urls: Some(view::endpoints(&app, &on.cvm.app_id, on.cvm.instance_id.as_ref())),
    };
    Ok(answer(StatusCode::OK, &network))
}
