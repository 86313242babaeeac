//! Key services: which there are, where their keys lie, and what callers are told of them.

use std::sync::Arc;
use std::time::Duration;

use casemate_kms::RootKeys;
use casemate_types::ids::AppId;
use casemate_types::wire;
use serde_json::{Value, json};

use crate::app::App;
use crate::config::{ContractKms, EMBEDDED_KMS};
use crate::error::{Error, Resource, Result};

mod dstack;

pub use dstack::Dstack;

/// A key service: the one that asks nobody, or one with a contract in front of it.
pub enum KmsKind<'a> {
    /// Nobody has to be asked.
    OffChain,
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
        return Ok(KmsKind::OffChain);
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
    let keys = keys(app, slug);
    let (url, version) = match keys {
        Keys::Embedded(_) => (app.config.public_url.clone(), env!("CARGO_PKG_VERSION").to_owned()),
        Keys::Dstack(kms) => (kms.url(), kms.version().unwrap_or_else(|| "unknown".to_owned())),
    };
    wire::KmsInfo {
        id: format!("kms_{slug}"),
        slug: Some(slug.to_owned()),
        url,
        version,
        chain_id: contract.map(|kms| kms.chain_id),
        kms_contract_address: contract.map(|kms| kms.contract.clone()),
        gateway_app_id: contract.and_then(|kms| kms.gateway_app_id.clone()),
        chain: contract.and_then(|kms| chain_description(app, kms.chain_id)),
        custody: Some(keys.custody().to_owned()),
        problem: None,
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

/// How long a `dstack-kms` may take, all exchanges together. All questions of one request have a deadline beside it.
const DEADLINE: Duration = Duration::from_secs(20);

fn late(kms: &Dstack) -> String {
    format!("the key service at {} took too long to answer", kms.url())
}

/// Where the keys of a key service lie.
#[derive(Clone, Copy, Debug)]
pub enum Keys<'a> {
    /// With this server.
    Embedded(&'a RootKeys),
    /// With a `dstack-kms`, which hands them to machines in a TEE and to nobody else.
    Dstack(&'a Dstack),
}

/// An app's public key, and the root key's signature over it, without a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EnvKey {
    /// The X25519 key that an environment is sealed for.
    pub public_key: [u8; 32],
    /// r, s, recovery id.
    pub signature: [u8; 65],
}

/// Where the keys of the key service with this slug lie.
pub fn keys<'a>(app: &'a App, slug: &str) -> Keys<'a> {
    app.dstack_kms.get(slug).map_or(Keys::Embedded(&app.kms), Keys::Dstack)
}

impl Keys<'_> {
    /// The key that signs what is said about apps, in hex.
    pub fn k256_public_key(&self) -> String {
        match self {
            Self::Embedded(root) => hex::encode(root.k256_public_key()),
            Self::Dstack(kms) => hex::encode(kms.k256_public_key()),
        }
    }

    /// The key of the certificate authority, in hex.
    pub fn ca_public_key(&self) -> Option<String> {
        match self {
            Self::Embedded(root) => Some(hex::encode(root.ca_public_key())),
            Self::Dstack(kms) => kms.ca_public_key().map(hex::encode),
        }
    }

    /// Who could change the code that gets the keys.
    pub fn custody(&self) -> &'static str {
        match self {
            Self::Embedded(_) => "operator",
            Self::Dstack(_) => "tee",
        }
    }

    /// Why it gives no keys at the moment, if it does not.
    pub async fn problem(&self, app: &App) -> Option<String> {
        match self {
            Self::Embedded(_) => None,
            Self::Dstack(kms) => match app.clock.in_time(DEADLINE, kms.look(&app.clock)).await {
                Some(found) => found.err(),
                None => Some(late(kms)),
            },
        }
    }
}

/// The key to seal an app's environment with, and its signature. The app need not exist yet.
///
/// # Errors
/// `Unavailable` if the key service does not answer, is not what it is configured to be, or lies.
pub async fn env_key(app: &App, slug: &str, app_id: &AppId) -> Result<EnvKey> {
    match keys(app, slug) {
        Keys::Embedded(root) => {
            let public_key =
                root.env_public_key(app_id).map_err(|error| Error::internal("derive a key")(error.into()))?;
            Ok(EnvKey { public_key, signature: root.sign_env_public_key(app_id, &public_key, None) })
        }
        Keys::Dstack(kms) => {
            let asked = app.clock.in_time(DEADLINE, kms.key(&app.clock, &app.store, app_id)).await;
            let key = asked
                .unwrap_or_else(|| Err(late(kms)))
                .map_err(|why| Error::Unavailable { service: "the key service", source: why.into() })?;
            keep(app, slug, app_id, key).await;
            Ok(key)
        }
    }
}

/// Keeps the key with its app. If the store cannot, the key service is asked once more some day.
async fn keep(app: &App, slug: &str, app_id: &AppId, key: EnvKey) {
    let kept = match app.store.env_key_is_wanted(slug, app_id, &key) {
        Ok(false) => return,
        Ok(true) => app.store.env_key_put(slug, *app_id, key).await,
        Err(error) => Err(error),
    };
    if let Err(error) = kept {
        tracing::warn!(app.id = %app_id, %error, "the public key of an app is not kept");
    }
}

/// Has the key of an app ready, for answers that show it.
///
/// # Errors
/// See [`env_key`].
pub async fn env_key_ensure(app: &App, slug: &str, app_id: &AppId) -> Result<()> {
    match keys(app, slug) {
        Keys::Embedded(_) => Ok(()),
        Keys::Dstack(_) => env_key(app, slug, app_id).await.map(|_| ()),
    }
}

/// The key and signature of an app, as far as there is something about it to be kept.
pub fn env_key_to_keep(app: &App, slug: &str, app_id: &AppId) -> Option<EnvKey> {
    match keys(app, slug) {
        Keys::Embedded(_) => None,
        Keys::Dstack(kms) => kms.known_key(&app.store, app_id),
    }
}

/// The key to seal an app's environment with, 64 hex digits, as far as it is known without asking anybody; the embedded key
/// service has none for one app id in four billion.
pub fn env_public_key(app: &App, slug: &str, app_id: &AppId) -> Option<String> {
    // With what a map adds to it.
    const WEIGHT: usize = 128;
    match keys(app, slug) {
        Keys::Dstack(kms) => kms.known_key(&app.store, app_id).map(|key| hex::encode(key.public_key)),
        // Where its keys lay is not known any more.
        Keys::Embedded(_) if slug != EMBEDDED_KMS && app.config.contract_kms(slug).is_none() => None,
        Keys::Embedded(root) => {
            if let Some(known) = app.env_keys.get(app_id) {
                return Some(hex::encode(*known));
            }
            let key = root.env_public_key(app_id).ok()?;
            app.env_keys.put(*app_id, Arc::new(key), WEIGHT);
            Some(hex::encode(key))
        }
    }
}
