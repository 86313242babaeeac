//! Key services: which there are, and what callers are told of them.

use std::sync::Arc;

use casemate_types::ids::AppId;
use casemate_types::wire;
use serde_json::{Value, json};

use crate::app::App;
use crate::config::{ContractKms, EMBEDDED_KMS};
use crate::error::{Error, Resource, Result};

/// A key service: the embedded one alone, or a contract in front of it.
pub enum KmsKind<'a> {
    /// Nobody has to be asked.
    Embedded,
    /// A contract decides who gets keys.
    Contract(&'a ContractKms),
}

/// The key service that `named` means: a slug, an id, a contract's address, or a kind.
///
/// # Errors
/// `NotFound`.
pub fn kms_kind<'a>(app: &'a App, named: &str) -> Result<KmsKind<'a>> {
    let named = named.strip_prefix("kms_").or_else(|| named.strip_prefix("kc_")).unwrap_or(named);
    if named.eq_ignore_ascii_case(EMBEDDED_KMS) {
        return Ok(KmsKind::Embedded);
    }
    let all = &app.config.contract_kms;
    let is_it =
        |kms: &&ContractKms| kms.slug.eq_ignore_ascii_case(named) || kms.contract.eq_ignore_ascii_case(named);
    let is_its_kind = |kms: &&ContractKms| kind_of_chain(kms.chain_id).as_str().eq_ignore_ascii_case(named);
    let found = all.iter().find(is_it).or_else(|| all.iter().find(is_its_kind));
    found.map(KmsKind::Contract).ok_or(Error::NotFound { what: Resource::Kms })
}

/// The kind of the key service with this slug. Clients know four words and no others, so a local chain counts as Ethereum.
pub fn kms_type(app: &App, slug: &str) -> wire::KmsType {
    match app.config.contract_kms(slug) {
        Some(kms) => kind_of_chain(kms.chain_id),
        None if app.config.kms_is_contract_owned(slug) => wire::KmsType::Ethereum,
        None => wire::KmsType::Phala,
    }
}

fn kind_of_chain(chain_id: u64) -> wire::KmsType {
    const BASE: u64 = 8453;
    match chain_id {
        BASE => wire::KmsType::Base,
        _ => wire::KmsType::Ethereum,
    }
}

/// The key service with this slug.
pub fn kms_info(app: &App, slug: &str) -> wire::KmsInfo {
    let contract = app.config.contract_kms(slug);
    wire::KmsInfo {
        id: format!("kms_{slug}"),
        slug: Some(slug.to_owned()),
        url: app.config.public_url.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        chain_id: contract.map(|kms| kms.chain_id),
        kms_contract_address: contract.map(|kms| kms.contract.clone()),
        gateway_app_id: contract.and_then(|kms| kms.gateway_app_id.clone()),
        chain: contract.and_then(|kms| chain_description(app, kms.chain_id)),
        custody: Some("operator".to_owned()),
    }
}

/// Word for a chain in addresses, or its number.
pub fn chain_name(chain_id: u64) -> String {
    match chain_id {
        1 => "ethereum".to_owned(),
        8453 => "base".to_owned(),
        31337 => "anvil".to_owned(),
        other => other.to_string(),
    }
}

/// The chain as wallets' libraries describe one, for clients that do not know it: only with an endpoint meant for them.
fn chain_description(app: &App, chain_id: u64) -> Option<Value> {
    // The usual address of Multicall3; on local chains there is one of our own.
    const MULTICALL: &str = "0xca11bde05977b3631167028862be2a173976ca11";
    let url = app.config.chain(chain_id)?.public_rpc_url.as_ref()?;
    Some(json!({
        "id": chain_id,
        "name": chain_name(chain_id),
        "nativeCurrency": { "name": "Ether", "symbol": "ETH", "decimals": 18 },
        "rpcUrls": { "default": { "http": [url] } },
        "contracts": { "multicall3": { "address": MULTICALL } },
    }))
}

/// The key to seal an app's environment with, 64 hex digits; none for the rare app id that has no key.
pub fn env_public_key(app: &App, app_id: &AppId) -> Option<String> {
    // With what a map adds to it.
    const WEIGHT: usize = 128;
    if let Some(known) = app.env_keys.get(app_id) {
        return Some(hex::encode(*known));
    }
    let key = app.kms.env_public_key(app_id).ok()?;
    app.env_keys.put(*app_id, Arc::new(key), WEIGHT);
    Some(hex::encode(key))
}
