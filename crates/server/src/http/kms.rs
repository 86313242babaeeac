//! Key services: which there are, apps' public keys, ids for new apps.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use casemate_types::ids::AppId;
use casemate_types::version::ApiVersion;
use casemate_types::wire;
use serde::Serialize;

use super::error::answer;
use super::extract::{Caller, Params};
use super::page::{self, Wanted};
use super::view::{self, KmsKind};
use crate::app::App;
use crate::config::{ContractKms, EMBEDDED_KMS};
use crate::error::{Error, Resource, Result};
use crate::workflow::create::app_id_of;

#[derive(Serialize, utoipa::ToSchema)]
#[serde(untagged)]
enum KmsPage {
    /// From 2026-06-23 on.
    Contracts(wire::Page<wire::KmsContract>),
    /// Before.
    Services(wire::Page<wire::KmsInfo>),
}

#[derive(Serialize, utoipa::ToSchema)]
#[serde(untagged)]
enum KmsAnswer {
    /// From 2026-06-23 on.
    Contract(wire::KmsContract),
    /// Before.
    Service(wire::KmsInfo),
}

fn by_contract(caller: &Caller) -> bool {
    caller.version >= ApiVersion::V20260623
}

fn contract(app: &App, kms: &KmsKind<'_>) -> wire::KmsContract {
    let (slug, label, contract_address, chain_id) = match kms {
        KmsKind::Embedded => (EMBEDDED_KMS.to_owned(), "Embedded".to_owned(), EMBEDDED_KMS.to_owned(), 0),
        KmsKind::Contract(ContractKms { slug, chain_id, contract, .. }) => {
            (slug.clone(), format!("Contract on chain {chain_id}"), contract.clone(), *chain_id)
        }
    };
    wire::KmsContract {
        id: format!("kc_{slug}"),
        slug: Some(slug),
        label: Some(label),
        contract_address,
        chain_id,
        k256_pubkey: Some(hex::encode(app.kms.k256_public_key())),
        ca_pubkey: Some(hex::encode(app.kms.ca_public_key())),
        node_count: 1,
        custody: Some("operator".to_owned()),
    }
}

fn slug<'a>(kms: &KmsKind<'a>) -> &'a str {
    match kms {
        KmsKind::Embedded => EMBEDDED_KMS,
        KmsKind::Contract(kms) => &kms.slug,
    }
}

/// List key services
///
/// `custody` says who could change the code that gets the keys: here it is whoever runs this server.
#[utoipa::path(get, path = "/kms", tag = "kms",
    params(
        ("page" = Option<u64>, Query, description = "Which page, from 1.", minimum = 1),
        ("page_size" = Option<u64>, Query, description = "How many on a page; 30 unless given.", minimum = 1, maximum = 100),
        ("is_onchain" = Option<bool>, Query, description = "Only those that ask a contract, or only the others."),
    ),
    responses((status = 200, description = "The page", body = KmsPage)))]
pub async fn kms_list(State(app): State<App>, caller: Caller, params: Params) -> Result<Response> {
    let wanted = Wanted::read(&params, page::MOST)?;
    let is_onchain = params.flag("is_onchain")?;
    let contracts = app.config.contract_kms.iter().map(KmsKind::Contract);
    let all = std::iter::once(KmsKind::Embedded).chain(contracts);
    let fits =
        |kms: &KmsKind<'_>| is_onchain.is_none_or(|wanted| matches!(kms, KmsKind::Contract(_)) == wanted);
    let services: Vec<_> = all.filter(fits).collect();
    let total = services.len() as u64;
    let services = wanted.of(services);
    let page = if by_contract(&caller) {
        let items = services.iter().map(|kms| contract(&app, kms)).collect();
        KmsPage::Contracts(wire::Page::new(items, total, wanted.page, wanted.size))
    } else {
        let items = services.iter().map(|kms| view::kms_info(&app, slug(kms))).collect();
        KmsPage::Services(wire::Page::new(items, total, wanted.page, wanted.size))
    };
    Ok(answer(StatusCode::OK, &page))
}

/// Get a key service
#[utoipa::path(get, path = "/kms/{kms}", tag = "kms",
    params(("kms" = String, Path, description = "Its slug, its id or its contract's address.")),
    responses((status = 200, description = "The key service", body = KmsAnswer)))]
pub async fn kms_get(State(app): State<App>, caller: Caller, Path(named): Path<String>) -> Result<Response> {
    let kms = view::kms_kind(&app, &named)?;
    let shown = match by_contract(&caller) {
        true => KmsAnswer::Contract(contract(&app, &kms)),
        false => KmsAnswer::Service(view::kms_info(&app, slug(&kms))),
    };
    Ok(answer(StatusCode::OK, &shown))
}

/// List the machines of a key service
#[utoipa::path(get, path = "/kms/{kms}/nodes", tag = "kms",
    params(("kms" = String, Path, description = "Its slug, its id or its contract's address.")),
    responses((status = 200, description = "The machines", body = wire::KmsNodes)))]
pub async fn kms_nodes(State(app): State<App>, _: Caller, Path(named): Path<String>) -> Result<Response> {
    let kms = view::kms_kind(&app, &named)?;
    let info = view::kms_info(&app, slug(&kms));
    let node = wire::KmsNode {
        id: info.id,
        slug: info.slug,
        url: info.url,
        version: info.version,
        kms_type: view::kms_type(&app, slug(&kms)).to_string(),
    };
    Ok(answer(StatusCode::OK, &wire::KmsNodes { items: vec![node], total: 1 }))
}

/// Get an app's public key
///
/// The key to seal an environment with, signed by the key service. The app need not exist yet.
#[utoipa::path(get, path = "/kms/{kms}/pubkey/{app_id}", tag = "kms",
    params(
        ("kms" = String, Path, description = "Slug, id or kind of the key service."),
        ("app_id" = String, Path, description = "The app id, bare or after `0x`."),
    ),
    responses((status = 200, description = "The key", body = wire::PubKey)))]
pub async fn kms_pubkey(
    State(app): State<App>,
    _: Caller,
    Path((named, app_id)): Path<(String, String)>,
) -> Result<Response> {
    view::kms_kind(&app, &named)?;
    let app_id: AppId = app_id.parse().map_err(|error| Error::Rejected {
        code: None,
        field: None,
        message: format!("`{app_id}` names no app: {error}"),
    })?;
    let key =
        app.kms.env_public_key(&app_id).map_err(|error| Error::internal("derive a key")(error.into()))?;
    // Strict clients accept exactly these two fields, so the signature is the one without a time.
    let signature = app.kms.sign_env_public_key(&app_id, &key, None);
    let answered =
        wire::PubKey { public_key: hex::encode(key), signature: hex::encode(signature), timestamp: None };
    Ok(answer(StatusCode::OK, &answered))
}

/// Get ids for new apps
///
/// Each with the number that it was made from; a provision request takes both. Asking uses none of them up.
#[utoipa::path(get, path = "/kms/phala/next_app_id", tag = "kms",
    params(("counts" = Option<u64>, Query, description = "How many; 1 unless given.", minimum = 1, maximum = 20)),
    responses((status = 200, description = "The ids", body = wire::NextAppIds)))]
pub async fn kms_next_app_id(State(app): State<App>, caller: Caller, params: Params) -> Result<Response> {
    let count = params.number("counts", 1, 20)?.unwrap_or(1);
    let workspace = app.store.account(caller.actor.workspace_id)?.workspace_uid;
    let nonces = app.store.nonces(caller.actor.workspace_id, count, false).await?;
    let id = |nonce| wire::NextAppId { app_id: app_id_of(&workspace, nonce), nonce };
    Ok(answer(StatusCode::OK, &wire::NextAppIds { app_ids: nonces.into_iter().map(id).collect() }))
}

/// Get the key services on a chain
///
/// With the devices and OS images that could be used there. Whether a contract allows them is not looked up.
#[utoipa::path(get, path = "/kms/on-chain/{chain}", tag = "kms",
    params(("chain" = String, Path, description = "`ethereum` or `base`.")),
    responses((status = 200, description = "The key services", body = wire::KmsOnChain)))]
pub async fn kms_on_chain(State(app): State<App>, _: Caller, Path(chain): Path<String>) -> Result<Response> {
    let chain = chain.to_lowercase();
    let on_it = |kms: &&ContractKms| view::kms_type(&app, &kms.slug).as_str() == chain;
    let all = &app.config.contract_kms;
    let chain_id = match (all.iter().find(on_it), chain.as_str()) {
        (Some(kms), _) => kms.chain_id,
        (None, "ethereum") => 1,
        (None, "base") => 8453,
        (None, _) => return Err(Error::NotFound { what: Resource::Chain }),
    };
    let contracts = all.iter().filter(on_it).map(|kms| wire::KmsOnChainContract {
        contract_address: kms.contract.clone(),
        chain_id: kms.chain_id,
        chain_name: chain.clone(),
        k256_pubkey: Some(hex::encode(app.kms.k256_public_key())),
        ca_pubkey: Some(hex::encode(app.kms.ca_public_key())),
        gateway_contract_address: None,
        devices: app.nodes.values().map(|node| on_chain_device(&node.facts())).collect(),
        os_images: super::images::all(&app).into_iter().map(on_chain_image).collect(),
    });
    let contracts = contracts.collect();
    Ok(answer(StatusCode::OK, &wire::KmsOnChain { chain_name: chain.clone(), chain_id, contracts }))
}

fn on_chain_device(facts: &crate::driver::NodeFacts) -> wire::KmsOnChainDevice {
    wire::KmsOnChainDevice {
        device_id: facts.device_id.clone(),
        node_name: Some(facts.name.clone()),
        on_chain_allowed: None,
    }
}

fn on_chain_image(image: wire::OsImage) -> wire::KmsOnChainImage {
    wire::KmsOnChainImage {
        name: image.name,
        version: image.version,
        os_image_hash: image.os_image_hash,
        on_chain_allowed: None,
    }
}
