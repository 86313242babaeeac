//! Creation in two calls.

use axum::extract::State;
use axum::http::StatusCode;
use casemate_types::patch::{CvmCreate, CvmProvision};
use casemate_types::version::ApiVersion;
use casemate_types::wire;

use crate::app::App;
use crate::cvm::plan;
use crate::error::{Error, Resource, Result};
use crate::http::answer::json;
use crate::http::extract::{Body, Caller, Params};
use crate::http::view;
use crate::store::Answer;
use crate::workflow::create::{self, Created, Prepared};

/// Prepare a CVM
///
/// Checks everything that can be checked, finds a node with room, and fixes the compose hash. Nothing runs yet; `POST /cvms`
/// with the app id and the hash makes it so, within seven days. Where a contract governs the keys, `app_id` is null: deploy the
/// app's contract with `compose_hash` and `device_id` on chain `kms_info.chain_id`; its address is the app id.
#[utoipa::path(post, path = "/cvms/provision", tag = "cvms", request_body = CvmProvision,
    responses((status = 200, description = "What the second call needs", body = wire::ProvisionAnswer)))]
pub async fn cvm_provision(
    State(app): State<App>,
    caller: Caller,
    params: Params,
    Body(body): Body,
) -> Result<Answer> {
    params.only(&[])?;
    caller.author()?;
    let asked = CvmProvision::from_json(&body).map_err(Error::Invalid)?;
    let receipt = {
        let app = app.clone();
        caller.receipt(move |prepared| provisioned(&app, prepared))
    };
    let prepared = create::provision(&app, &caller.actor, asked, receipt).await?;
    provisioned(&app, &prepared)
}

fn provisioned(app: &App, prepared: &Prepared) -> Result<Answer> {
    let Prepared { app_id, kms, node_id, spec, .. } = prepared;
    let facts = app.node(*node_id).ok_or(Error::NotFound { what: Resource::Node })?.facts();
    let image = facts.images.iter().find(|image| image.name == spec.image);
    let kms_info = view::kms_info(app, kms);
    let answer = wire::ProvisionAnswer {
        app_id: *app_id,
        app_env_encrypt_pubkey: app_id.as_ref().and_then(|app_id| view::env_public_key(app, kms, app_id)),
        compose_hash: spec.compose.hash,
        kms_id: Some(kms_info.id.clone()),
        kms_info: Some(kms_info),
        fmspc: None,
        device_id: Some(facts.device_id.clone()),
        os_image_hash: image.map(|image| image.os_image_hash.clone()),
        instance_type: view::instance_type(spec).map(str::to_owned),
        teepod_id: Some(*node_id),
        node_id: Some(*node_id),
        warnings: plan::warnings(spec, app.config.kms_is_contract_owned(kms)),
    };
    Ok(json(StatusCode::OK, &answer))
}

/// Create a CVM
///
/// Makes the CVM that was prepared. Asked again for the same app id and hash, it answers with the CVM that there is. Where a
/// contract governs the keys, the app has to be registered with the key service's contract, and its own contract has to allow
/// the hash and the node's device.
#[utoipa::path(post, path = "/cvms", tag = "cvms", request_body = CvmCreate,
    responses((status = 200, description = "The CVM, `creating`", body = wire::Vm)))]
pub async fn cvm_create(
    State(app): State<App>,
    caller: Caller,
    params: Params,
    Body(body): Body,
) -> Result<Answer> {
    params.only(&[])?;
    let asked = CvmCreate::from_json(&body).map_err(Error::Invalid)?;
    let version = caller.version;
    let receipt = {
        let app = app.clone();
        caller.receipt(move |created| record(&app, version, created))
    };
    let created = create::create(&app, &caller.actor, caller.author()?, asked, receipt).await?;
    record(&app, version, &created)
}

fn record(app: &App, version: ApiVersion, created: &Created) -> Result<Answer> {
    Ok(json(StatusCode::OK, &view::vm_created(app, created, version)?))
}
