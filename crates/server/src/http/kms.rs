//! Key services: which there are, apps' public keys, ids for new apps.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use casemate_types::ids::AppId;
use casemate_types::version::ApiVersion;
use casemate_types::wire;
use futures_util::future::join_all;
use serde::Serialize;

use super::error::answer;
use super::extract::{Caller, Params};
use super::page::{self, Wanted};
use super::view::{self, KmsKind};
use crate::app::App;
use crate::config::{ContractKms, EMBEDDED_KMS};
use crate::error::{Error, Resource, Result};
use crate::kms::{EnvKey, Keys, chain_name, env_key, keys};
use crate::workflow::create::app_id_of;
use crate::workflow::onchain;

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

fn contract(app: &App, kms: &KmsKind<'_>, problem: Option<String>) -> wire::KmsContract {
    let keys = keys(app, slug(kms));
    let off_chain = match keys {
        Keys::Embedded(_) => "Embedded",
        Keys::Dstack(_) => "dstack-kms",
    };
    let (slug, label, contract_address, chain_id) = match kms {
        KmsKind::OffChain => (EMBEDDED_KMS.to_owned(), off_chain.to_owned(), EMBEDDED_KMS.to_owned(), 0),
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
        k256_pubkey: Some(keys.k256_public_key()),
        ca_pubkey: keys.ca_public_key(),
        node_count: 1,
        custody: Some(keys.custody().to_owned()),
        problem,
    }
}

fn info(app: &App, kms: &KmsKind<'_>, problem: Option<String>) -> wire::KmsInfo {
    wire::KmsInfo { problem, ..view::kms_info(app, slug(kms)) }
}

async fn problem(app: &App, kms: &KmsKind<'_>) -> Option<String> {
    keys(app, slug(kms)).problem(app).await
}

fn slug<'a>(kms: &KmsKind<'a>) -> &'a str {
    match kms {
        KmsKind::OffChain => EMBEDDED_KMS,
        KmsKind::Contract(kms) => &kms.slug,
    }
}

/// List key services
///
/// `custody` says who could change the code that gets the keys: whoever runs this server, or, with a `dstack-kms` in a TEE,
/// nobody. `problem` says why a `dstack-kms` cannot be used at the moment.
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
    let all = std::iter::once(KmsKind::OffChain).chain(contracts);
    let fits =
        |kms: &KmsKind<'_>| is_onchain.is_none_or(|wanted| matches!(kms, KmsKind::Contract(_)) == wanted);
    let services: Vec<_> = all.filter(fits).collect();
    let total = services.len() as u64;
    let services = wanted.of(services);
    // All at once: several that do not answer are waited for only once.
    let problems = join_all(services.iter().map(|kms| problem(&app, kms))).await;
    let services = services.iter().zip(problems);
    let page = if by_contract(&caller) {
        let items = services.map(|(kms, problem)| contract(&app, kms, problem)).collect();
        KmsPage::Contracts(wire::Page::new(items, total, wanted.page, wanted.size))
    } else {
        let items = services.map(|(kms, problem)| info(&app, kms, problem)).collect();
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
    let problem = problem(&app, &kms).await;
    let shown = match by_contract(&caller) {
        true => KmsAnswer::Contract(contract(&app, &kms, problem)),
        false => KmsAnswer::Service(info(&app, &kms, problem)),
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
/// The key to seal an environment with, signed by the key service. The app need not exist yet. 503 if it lies with a
/// `dstack-kms` that cannot be asked, unless it is known already: it never changes.
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
    let kms = view::kms_kind(&app, &named)?;
    let app_id: AppId = app_id.parse().map_err(|error| Error::Rejected {
        code: None,
        field: None,
        message: format!("`{app_id}` names no app: {error}"),
    })?;
    let EnvKey { public_key, signature } = env_key(&app, slug(&kms), &app_id).await?;
    // Strict clients accept exactly these two fields, so the signature is the one without a time.
    let (public_key, signature) = (hex::encode(public_key), hex::encode(signature));
    let answered = wire::PubKey { public_key, signature, timestamp: None };
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
/// With the devices that there are, and the OS images, and whether the contract allows these: `null` if the chain does not
/// answer.
#[utoipa::path(get, path = "/kms/on-chain/{chain}", tag = "kms",
    params(("chain" = String, Path, description = "`ethereum`, `base`, `anvil`, or a chain's id.")),
    responses((status = 200, description = "The key services", body = wire::KmsOnChain)))]
pub async fn kms_on_chain(State(app): State<App>, _: Caller, Path(chain): Path<String>) -> Result<Response> {
    let chain = chain.to_lowercase();
    let all = &app.config.contract_kms;
    let is_it = |id: &u64| chain_name(*id) == chain || id.to_string() == chain;
    let chain_id = all.iter().map(|kms| kms.chain_id).chain([1, 8453]).find(is_it);
    let chain_id = chain_id.ok_or(Error::NotFound { what: Resource::Chain })?;
    let mut contracts = Vec::new();
    for kms in all.iter().filter(|kms| kms.chain_id == chain_id) {
        let keys = keys(&app, &kms.slug);
        contracts.push(wire::KmsOnChainContract {
            contract_address: kms.contract.clone(),
            chain_id,
            chain_name: chain_name(chain_id),
            k256_pubkey: Some(keys.k256_public_key()),
            ca_pubkey: keys.ca_public_key(),
            gateway_contract_address: kms.gateway_app_id.clone(),
            devices: app.nodes.values().map(|node| on_chain_device(&node.facts())).collect(),
            os_images: on_chain_images(&app, &kms.slug).await,
        });
    }
    Ok(answer(StatusCode::OK, &wire::KmsOnChain { chain_name: chain_name(chain_id), chain_id, contracts }))
}

fn on_chain_device(facts: &crate::driver::NodeFacts) -> wire::KmsOnChainDevice {
    wire::KmsOnChainDevice {
        device_id: facts.device_id.clone(),
        node_name: Some(facts.name.clone()),
        // Contracts of key services say which devices key services run on; those of apps are asked app by app.
        on_chain_allowed: None,
    }
}

async fn on_chain_images(app: &App, slug: &str) -> Vec<wire::KmsOnChainImage> {
    let contract = onchain::contract(app, slug).ok().flatten();
    let images = super::images::all(app).into_iter().map(async |image| {
        let allowed = match (&contract, &image.os_image_hash) {
            (Some(contract), Some(hash)) => contract.image_hash_allowed(hash).await.ok(),
            (_, _) => None,
        };
        wire::KmsOnChainImage {
            name: image.name,
            version: image.version,
            os_image_hash: image.os_image_hash,
            on_chain_allowed: allowed,
        }
    });
    // All at once: a chain that does not answer is waited for only once.
    join_all(images).await
}
