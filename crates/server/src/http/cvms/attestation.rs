//! `GET /cvms/{id}/attestation`.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use casemate_types::compose::Flag;
use casemate_types::guest::Evidence;
use casemate_types::wire;

use super::telemetry::up;
use crate::app::App;
use crate::cvm::state::Cvm;
use crate::error::{Error, Resource, Result};
use crate::http::error::answer;
use crate::http::extract::On;
use crate::http::view::Shown;

/// What evidence without a TEE is worth.
const NOTE: &str = "development evidence: measured by the guest's own agent, without TEE hardware behind it; whoever runs the \
                    host could make it up";

/// Get evidence
///
/// What the CVM can show to prove what it is, measured by the CVM itself: the events of its boot and the register that stands
/// for them. The nodes here have no TEE hardware: `note` says so, `tcb_info.tee` is `none`, and there are no certificates.
/// Where there is no evidence, `error` says why.
#[utoipa::path(get, path = "/cvms/{id}/attestation", tag = "telemetry",
    responses((status = 200, description = "The evidence", body = wire::CvmAttestation)))]
pub async fn cvm_attestation(State(app): State<App>, on: On) -> Result<Response> {
    let spec = app.store.spec(on.cvm.id, on.cvm.revision)?;
    let seen = up(&app, &on.cvm).await?;
    let is_online = seen.is_ok();
    let told = match seen {
        Ok(_) => evidence(&app, &on.cvm).await?,
        Err(why) => Err(why),
    };
    let (tcb_info, error) = match told {
        Ok(evidence) => (Some(tcb_info(evidence)), None),
        Err(why) => (None, Some(why)),
    };
    let attestation = wire::CvmAttestation {
        name: Some(on.cvm.name.clone()),
        is_online,
        is_public: Shown::of(&spec).flag(Flag::PublicTcbinfo),
        error,
        app_certificates: tcb_info.as_ref().map(|_| Vec::new()),
        note: tcb_info.as_ref().map(|_| NOTE.to_owned()),
        // What the guest measured, where it tells.
        compose_file: Some(match &tcb_info {
            Some(measured) => measured.app_compose.clone(),
            None => spec.compose.text.to_string(),
        }),
        tcb_info,
    };
    Ok(answer(StatusCode::OK, &attestation))
}

/// What a machine measured, or why there is nothing to show.
async fn evidence(app: &App, cvm: &Cvm) -> Result<std::result::Result<Evidence, String>> {
    let node = app.node(cvm.node_id).ok_or(Error::NotFound { what: Resource::Node })?;
    Ok(match node.driver.evidence(cvm.vm_uuid).await {
        Ok(Some(evidence)) => Ok(evidence),
        Ok(None) => Err("the node gives no evidence of this machine".to_owned()),
        Err(_) => Err("the node does not answer".to_owned()),
    })
}

/// The register that running guests extend.
const REGISTER: u32 = 3;
/// The kind of every event in it.
const RUNTIME_EVENT: u32 = 0x0800_0001;

fn tcb_info(evidence: Evidence) -> wire::TcbInfo {
    let Evidence { events, rtmr3, app_compose } = evidence;
    let none = || "00".repeat(48);
    let event = |event: casemate_types::guest::Event| wire::MeasuredEvent {
        imr: REGISTER,
        event_type: RUNTIME_EVENT,
        digest: event.digest,
        event: event.name,
        event_payload: event.payload,
    };
    wire::TcbInfo {
        tee: Some("none".to_owned()),
        mrtd: none(),
        rootfs_hash: None,
        rtmr0: none(),
        rtmr1: none(),
        rtmr2: none(),
        rtmr3,
        event_log: events.into_iter().map(event).collect(),
        app_compose,
    }
}
