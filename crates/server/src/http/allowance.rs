//! What contracts allow: of one CVM, of an app, of everything an app has; devices; and what can still boot.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use casemate_chain::{Action, Subject, checksummed};
use casemate_types::error::FieldError;
use casemate_types::ids::{ComposeHash, CvmUid, DeviceId};
use casemate_types::patch::AskAllowed;
use casemate_types::version::ApiVersion;
use casemate_types::wire::{self, NumberOrString};

use super::apps;
use super::error::answer;
use super::extract::{Body, Caller, On};
use super::view;
use crate::app::App;
use crate::cvm::state::Cvm;
use crate::error::{Error, Resource, Result};
use crate::store::{AppRow, KnownRevision};
use crate::workflow::allowance::{self, IsAllowed};
use crate::workflow::onchain;

fn id(cvm: &Cvm, version: ApiVersion) -> NumberOrString {
    if version.has_string_ids() { cvm.uid.to_string().into() } else { cvm.id.into() }
}

fn shown(asked: &IsAllowed, cvm_id: Option<NumberOrString>) -> wire::IsAllowed {
    wire::IsAllowed {
        cvm_id,
        app_contract_address: format!("0x{}", asked.subject.app_id),
        compose_hash: asked.subject.compose_hash,
        device_id: asked.subject.device_id,
        compose_hash_allowed: asked.compose_hash,
        allow_any_device: asked.any_device,
        device_id_allowed: (!asked.any_device).then_some(asked.device),
        is_allowed: asked.compose_hash && asked.device,
        error: None,
    }
}

fn device(app: &App, asked: &AskAllowed, usual: i64) -> Result<DeviceId> {
    match (asked.device_id, asked.node_id) {
        (Some(device), _) => Ok(device),
        (None, node_id) => onchain::device(app, node_id.unwrap_or(usual)),
    }
}

/// Ask whether a CVM may boot
///
/// The app's contract is asked about the hash in force and the CVM's device, or about those in the request.
#[utoipa::path(post, path = "/cvms/{id}/is-allowed", tag = "approvals", params(("id" = CvmUid, Path)),
    request_body = AskAllowed, responses((status = 200, description = "What the contract says", body = wire::IsAllowed)))]
pub async fn cvm_is_allowed(State(app): State<App>, on: On, Body(body): Body) -> Result<Response> {
    let asked = AskAllowed::from_json(&body).map_err(Error::Invalid)?;
    let contract = allowance::contract_of(&app, &on.cvm.kms)?;
    let compose_hash = match asked.compose_hash {
        Some(hash) => hash,
        None => app.store.outline(on.cvm.id, on.cvm.revision)?.compose.hash,
    };
    let device_id = device(&app, &asked, on.cvm.node_id)?;
    let subject = Subject { app_id: on.cvm.app_id, compose_hash, device_id };
    let found = allowance::are_allowed(&contract, &[subject]).await?;
    Ok(answer(StatusCode::OK, &shown(&found[0], Some(id(&on.cvm, on.caller.version)))))
}

/// Ask whether an app may boot a hash
#[utoipa::path(post, path = "/apps/{app_id}/is-allowed", tag = "approvals",
    params(("app_id" = String, Path, description = "The app id, bare or after `app_` or `0x`.")),
    request_body = AskAllowed, responses((status = 200, description = "What the contract says", body = wire::IsAllowed)))]
pub async fn app_is_allowed(
    State(app): State<App>,
    caller: Caller,
    Path(named): Path<String>,
    Body(body): Body,
) -> Result<Response> {
    let row = apps::find(&app, &caller, &named)?;
    let asked = AskAllowed::from_json(&body).map_err(Error::Invalid)?;
    let contract = allowance::contract_of(&app, &row.kms)?;
    let Some(compose_hash) = asked.compose_hash else {
        let issue = FieldError::body("compose_hash", "missing", "required: the compose hash to ask about");
        return Err(Error::Invalid(vec![issue]));
    };
    if asked.chain_id.is_some_and(|chain_id| chain_id != contract.kms.chain_id) {
        return Err(Error::invalid("chain_id", format!("the app is on chain {}", contract.kms.chain_id)));
    }
    let first = apps::cvms(&app, &row)?.into_iter().next();
    let usual = first.map(|cvm| cvm.node_id).or_else(|| app.nodes.keys().next().copied());
    let device_id = device(&app, &asked, usual.ok_or(Error::NotFound { what: Resource::Node })?)?;
    let subject = Subject { app_id: row.app_id, compose_hash, device_id };
    let found = allowance::are_allowed(&contract, &[subject]).await?;
    Ok(answer(StatusCode::OK, &shown(&found[0], None)))
}

/// Ask whether the CVMs of an app may boot
///
/// Each with the hash that it has in force, on its device.
#[utoipa::path(post, path = "/apps/{app_id}/cvms/is-allowed", tag = "approvals",
    params(("app_id" = String, Path, description = "The app id, bare or after `app_` or `0x`.")),
    responses((status = 200, description = "What the contract says", body = wire::CvmsAllowed)))]
pub async fn app_cvms_allowed(
    State(app): State<App>,
    caller: Caller,
    Path(named): Path<String>,
    Body(_): Body,
) -> Result<Response> {
    let row = apps::find(&app, &caller, &named)?;
    let Some(contract) = onchain::contract(&app, &row.kms)? else {
        return Ok(answer(StatusCode::OK, &wire::CvmsAllowed::default()));
    };
    let (mut ids, mut subjects, mut skipped) = (Vec::new(), Vec::new(), Vec::new());
    for cvm in apps::cvms(&app, &row)? {
        let hash = app.store.outline(cvm.id, cvm.revision)?.compose.hash;
        match onchain::subject(&app, &cvm, hash) {
            Ok(subject) => {
                ids.push(id(&cvm, caller.version));
                subjects.push(subject);
            }
            // Its node is not configured any more: there is no device to ask about.
            Err(_) => skipped.push(id(&cvm, caller.version)),
        }
    }
    let found = allowance::are_allowed(&contract, &subjects).await?;
    let results: Vec<_> = found.iter().zip(ids).map(|(allowed, id)| shown(allowed, Some(id))).collect();
    let allowed = results.iter().filter(|result| result.is_allowed).count() as u64;
    let total = results.len() as u64;
    let all = wire::CvmsAllowed {
        is_onchain: true,
        results,
        total,
        allowed_count: allowed,
        denied_count: total - allowed,
        error_count: 0,
        skipped_cvm_ids: skipped,
    };
    Ok(answer(StatusCode::OK, &all))
}

/// List devices of an app
///
/// Every node's device, and whether the app's contract allows it.
#[utoipa::path(get, path = "/apps/{app_id}/device-allowlist", tag = "approvals",
    params(("app_id" = String, Path, description = "The app id, bare or after `app_` or `0x`.")),
    responses((status = 200, description = "The devices", body = wire::DeviceAllowlist)))]
pub async fn app_device_allowlist(
    State(app): State<App>,
    caller: Caller,
    Path(named): Path<String>,
) -> Result<Response> {
    let row = apps::find(&app, &caller, &named)?;
    let Some(contract) = onchain::contract(&app, &row.kms)? else {
        let none = wire::DeviceAllowlist {
            is_onchain_kms: false,
            allow_any_device: None,
            chain_id: None,
            app_contract_address: None,
            devices: Vec::new(),
        };
        return Ok(answer(StatusCode::OK, &none));
    };
    let cvms = apps::cvms(&app, &row)?;
    let nodes: Vec<_> = app
        .nodes
        .keys()
        .filter_map(|node_id| Some((*node_id, onchain::device(&app, *node_id).ok()?)))
        .collect();
    let nothing = ComposeHash([0; 32]);
    let subject = |device_id| Subject { app_id: row.app_id, compose_hash: nothing, device_id };
    let subjects: Vec<_> = nodes.iter().map(|(_, device)| subject(*device)).collect();
    let found = allowance::are_allowed(&contract, &subjects).await?;
    let devices = nodes.iter().zip(&found).map(|((node_id, device), allowed)| wire::ListedDevice {
        device_id: device.to_string(),
        node_name: app.node(*node_id).map(|node| node.facts().name.clone()),
        cvm_ids: cvms
            .iter()
            .filter(|cvm| cvm.node_id == *node_id)
            .map(|cvm| id(cvm, caller.version))
            .collect(),
        allowed_onchain: allowed.device,
        status: if allowed.device { "allowed" } else { "not_allowed" }.to_owned(),
    });
    let list = wire::DeviceAllowlist {
        is_onchain_kms: true,
        allow_any_device: Some(found.first().is_some_and(|allowed| allowed.any_device)),
        chain_id: Some(contract.kms.chain_id),
        app_contract_address: Some(format!("0x{}", row.app_id)),
        devices: devices.collect(),
    };
    Ok(answer(StatusCode::OK, &list))
}

/// List what can still boot
///
/// The hashes that the app's contract allows: those known here, and those found in the contract's log. The log is read in
/// pieces; `complete` says whether all of it was.
#[utoipa::path(get, path = "/apps/{app_id}/allowed", tag = "approvals",
    params(("app_id" = String, Path, description = "The app id, bare or after `app_` or `0x`.")),
    responses((status = 200, description = "The hashes", body = wire::AllowedHashes)))]
pub async fn app_allowed(
    State(app): State<App>,
    caller: Caller,
    Path(named): Path<String>,
) -> Result<Response> {
    let row: AppRow = apps::find(&app, &caller, &named)?;
    let contract = allowance::contract_of(&app, &row.kms)?;
    let found = allowance::allowed_hashes(&app, &row).await?;
    let shown = |revision: KnownRevision| wire::HashRevision {
        cvm_id: revision.cvm,
        revision: revision.number,
        current: revision.current,
        created_at: revision.created_at,
    };
    let items = found.hashes.into_iter().map(|(compose_hash, revisions)| {
        let in_use = revisions.iter().any(|revision| revision.current);
        let removal =
            (!in_use).then(|| view::contract_call(row.app_id, Action::RemoveComposeHash(compose_hash)));
        let revisions = revisions.into_iter().map(shown).collect();
        wire::AllowedHash { compose_hash, in_use, revisions, removal }
    });
    let list = wire::AllowedHashes {
        app_id: row.app_id,
        chain_id: contract.kms.chain_id,
        contract: checksummed(row.app_id),
        complete: found.complete,
        read_to_block: found.read_to,
        items: items.collect(),
    };
    Ok(answer(StatusCode::OK, &list))
}
