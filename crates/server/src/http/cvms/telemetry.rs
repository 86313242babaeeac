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
use crate::error::{Error, Resource, Result};
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

/// What the system inside a machine says, or why there is nothing to tell.
async fn sysinfo(app: &App, cvm: &Cvm) -> Result<std::result::Result<wire::Sysinfo, String>> {
    let node = app.node(cvm.node_id).ok_or(Error::NotFound { what: Resource::Node })?;
    Ok(match node.driver.sysinfo(cvm.vm_uuid).await {
        Ok(Some(sysinfo)) => Ok(sysinfo),
        Ok(None) => Err("the node does not tell about the guest's system".to_owned()),
        Err(_) => Err("the node does not answer".to_owned()),
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
    let is_online = seen.is_ok();
    let told = match seen {
        Ok(_) => sysinfo(&app, &on.cvm).await?,
        Err(why) => Err(why),
    };
    let (sysinfo, error) = told.map_or_else(|why| (None, Some(why)), |sysinfo| (Some(sysinfo), None));
    let stats = wire::CvmStats {
        is_online,
        is_public: shown.flag(Flag::PublicSysinfo),
        sysinfo,
        error,
        status: Some(on.cvm.status.as_str().into()),
        in_progress: on.cvm.open.is_some(),
        boot_progress: guest.boot_progress,
        boot_error: guest.boot_error,
    };
    Ok(answer(StatusCode::OK, &stats))
}

/// Get network information
///
/// How the CVM is reached: through the gateway, if there is one, and on its node's loopback address, if the node publishes
/// ports there.
#[utoipa::path(get, path = "/cvms/{id}/network", tag = "telemetry",
    responses((status = 200, description = "The information", body = wire::CvmNetwork)))]
pub async fn cvm_network(State(app): State<App>, on: On) -> Result<Response> {
    let shown = Shown::of(&app.store.spec(on.cvm.id, on.cvm.revision)?);
    let seen = up(&app, &on.cvm).await?;
    let mut public_urls = view::endpoints(&app, &on.cvm.app_id, on.cvm.instance_id.as_ref());
    public_urls.extend(seen.iter().flat_map(|seen| view::local_endpoints(&seen.ports)));
    let network = wire::CvmNetwork {
        is_online: seen.is_ok(),
        is_public: shown.flag(Flag::PublicSysinfo),
        error: seen.err(),
        internal_ip: None,
        latest_handshake: None,
        public_urls: Some(public_urls),
    };
    Ok(answer(StatusCode::OK, &network))
}
