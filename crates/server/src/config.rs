//! What the operator decides. One typed struct, read from a TOML file and the environment, checked once.
//!
//! A key `a.b` of the file is `CASEMATE_A_B` in the environment, lists being written as in the file; the environment wins. The file and the environment are read
//! here and nowhere else.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use casemate_chain::RpcUrl;
use casemate_types::ids::Address;
use ipnet::IpNet;
use jiff::SignedDuration;
use serde::Deserialize;

use crate::cvm::plan::Limits;
use crate::store::Keep;

/// Settings of one server.
#[derive(Clone, Debug)]
pub struct Config {
    /// URL under which clients reach the server, without a path. Signed log URLs and commit URLs begin with it.
    pub public_url: String,
    /// Bounds of single fields.
    pub limits: Limits,
    /// How long a provision, and an approval without token, is kept. Default 7 days.
    pub provision_life: Duration,
    /// How long a commit token is good for. Default 14 days.
    pub token_life: Duration,
    /// How long things are kept that nothing depends on. Default 30 days each.
    pub keep: Keep,
    /// Largest request body in bytes. Default 4 MiB: a sealed environment of 1 MiB is 2 MiB of hex.
    pub max_body: usize,
    /// May faults be planned through the API? Only in `dev`.
    pub dev: bool,
    /// Domain below which a gateway serves apps and instances, if there is a gateway.
    pub gateway_domain: Option<String>,
    /// The `dstack-kms` that stands in for the embedded key service, if one does.
    pub kms_service: Option<KmsService>,
    /// Key services that belong to a contract, beside the one that asks nobody.
    pub contract_kms: Vec<ContractKms>,
    /// The chains that these contracts are on, and who is asked about them.
    pub chains: Vec<ChainConfig>,
    /// Certificate and key of the listener; plain HTTP without.
    pub tls: Option<TlsFiles>,
    /// Proxies whose `X-Forwarded-For` and `X-Forwarded-Proto` are believed. Default none.
    pub trusted_proxies: Vec<IpNet>,
}

/// PEM files of the listener's TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate, and behind it those that lead to a root.
    pub cert: PathBuf,
    /// Its private key: PKCS#8, PKCS#1 or SEC1.
    pub key: PathBuf,
}

/// A key service whose apps are contracts on a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContractKms {
    /// `ethereum`, `base`, or another short name.
    pub slug: String,
    /// 1 Ethereum, 8453 Base, 31337 a local chain.
    pub chain_id: u64,
    /// Address of its contract: `0x` and 40 digits in lower case.
    pub contract: String,
    /// App id of its gateway, if it has one.
    pub gateway_app_id: Option<String>,
    /// Where its keys lie, if not with this server.
    pub service: Option<KmsService>,
}

/// A `dstack-kms`, and how it is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KmsService {
    /// Its address without a path: `https`, or `http` on this machine.
    pub url: String,
    /// The key that signs what it says about apps: a compressed secp256k1 point.
    pub k256_public_key: [u8; 33],
    /// PEM file with the certificate of the authority that its TLS certificate comes from.
    pub ca_certificate: Option<PathBuf>,
}

impl ContractKms {
    /// One without a gateway, whose keys lie with this server.
    ///
    /// # Errors
    /// `contract` is no address.
    pub fn new(slug: &str, chain_id: u64, contract: &str) -> Result<Self, String> {
        let address: Address = contract
            .parse()
            .map_err(|_| format!("`{contract}` is not the address of a contract: `0x` and 40 hex digits"))?;
        Ok(Self {
            slug: slug.to_owned(),
            chain_id,
            contract: format!("0x{address}"),
            gateway_app_id: None,
            service: None,
        })
    }

    /// The contract's address.
    pub fn address(&self) -> Address {
        self.contract.parse().expect("checked when it was made")
    }
}

/// A chain, and the endpoints that speak for it. Only the operator names them, never a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainConfig {
    /// Its id. An endpoint that speaks for another chain is not believed.
    pub chain_id: u64,
    /// Endpoints (JSON-RPC over HTTP), the preferred one first. They may hold a key of the operator's: never shown.
    pub rpc_urls: Vec<RpcUrl>,
    /// Blocks that a transaction has to be deep, itself included. Default 1.
    pub confirmations: u64,
    /// The block from which apps' logs are read: none is older than its key service's contract. Default 0.
    pub from_block: u64,
    /// An endpoint that clients may be told about.
    pub public_rpc_url: Option<String>,
    /// An endpoint whose newest block is older is not believed. None: it makes a block only when there is something to put in
    /// it, so an old head is no sign of a node that lags.
    pub max_head_age: Option<Duration>,
    /// Nor is one that is more blocks than this behind the others.
    pub max_lag_blocks: u64,
}

impl ChainConfig {
    /// The usual bounds but for what is set here.
    pub fn how_asked(&self) -> casemate_chain::ChainConfig {
        casemate_chain::ChainConfig {
            confirmations: self.confirmations,
            max_head_age: self.max_head_age,
            max_lag_blocks: self.max_lag_blocks,
            ..casemate_chain::ChainConfig::new(self.chain_id, self.rpc_urls.clone())
        }
    }
}

/// Slug of the embedded key service.
pub const EMBEDDED_KMS: &str = "phala";

const DAY: Duration = Duration::from_secs(24 * 3600);

impl Default for Config {
    fn default() -> Self {
        Self {
            public_url: "http://127.0.0.1".into(),
            limits: Limits::default(),
            provision_life: 7 * DAY,
            token_life: 14 * DAY,
            keep: Keep::default(),
            max_body: 4 * 1024 * 1024,
            dev: false,
            gateway_domain: None,
            kms_service: None,
            contract_kms: Vec::new(),
            chains: Vec::new(),
            tls: None,
            trusted_proxies: Vec::new(),
        }
    }
}

impl Config {
    /// Do apps of this key service need a contract's yes to a new compose hash?
    pub fn kms_is_contract_owned(&self, slug: &str) -> bool {
        slug != EMBEDDED_KMS
    }

    /// The contract-owned key service with this slug.
    pub fn contract_kms(&self, slug: &str) -> Option<&ContractKms> {
        self.contract_kms.iter().find(|kms| kms.slug == slug)
    }

    /// Slugs of the contract-owned key services on this chain.
    pub fn kms_on(&self, chain_id: u64) -> Vec<&str> {
        let there = self.contract_kms.iter().filter(|kms| kms.chain_id == chain_id);
        there.map(|kms| kms.slug.as_str()).collect()
    }

    /// The chains that such key services are on.
    pub fn contract_chains(&self) -> BTreeSet<u64> {
        self.contract_kms.iter().map(|kms| kms.chain_id).collect()
    }

    /// What is set for the chain with this id.
    pub fn chain(&self, chain_id: u64) -> Option<&ChainConfig> {
        self.chains.iter().find(|chain| chain.chain_id == chain_id)
    }
}

/// The settings file of `casemate serve`. Every key can be left out but `public_url`; unknown keys are refused.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// URL under which clients reach the server, without a path: `https://cloud.example.org`. Needed.
    pub public_url: Option<String>,
    /// Address and port to listen on. Default `127.0.0.1:8440`.
    pub listen: Option<String>,
    /// Data folder. Default `/var/lib/casemate`.
    pub data: Option<PathBuf>,
    /// Where CVMs run. Default `sim:1`.
    pub nodes: Option<String>,
    /// Proxies in front of the server, as addresses or networks such as `10.0.0.0/8`; only what they say about a client's
    /// address and scheme is believed. In the environment with commas in between. Default none.
    pub trusted_proxies: Option<Words>,
    /// Certificate and key of the listener. Plain HTTP without.
    pub tls: TlsSettings,
    /// Bounds of single fields.
    pub limits: LimitSettings,
    /// How long things are kept.
    pub keep: KeepSettings,
    /// Key services.
    pub kms: KmsSettings,
    /// The chains of key services that belong to a contract: one `[[chains]]` for each.
    pub chains: Vec<ChainSettings>,
}

/// Key services. The first three name a `dstack-kms` that stands in for the one inside the server, for apps without a contract.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KmsSettings {
    /// Its address: `https://kms.example.org:8000`. Default: none, the key service inside the server.
    pub url: Option<String>,
    /// The key that signs what it says about apps: a compressed secp256k1 point, 66 hex digits. Needed with `url`.
    pub k256_public_key: Option<String>,
    /// PEM file with the certificate of its authority. Needed with `url`, unless that is `http://` on this machine.
    pub ca_certificate: Option<PathBuf>,
    /// The keys of contract-owned key services without a `url` lie with this server, and whoever runs it could take them: say
    /// `true` if that is known and wanted. Default `false`: then each of `kms.contracts` needs a `url`.
    pub allow_operator_custody: Option<bool>,
    /// Key services whose apps are contracts: one `[[kms.contracts]]` for each.
    pub contracts: Vec<KmsContractSettings>,
}

/// A key service whose apps are contracts on a chain.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KmsContractSettings {
    /// Its name in addresses and requests: lower-case letters, digits and hyphens.
    pub slug: String,
    /// The chain: 1 Ethereum, 8453 Base, or any other that `chains` has.
    pub chain_id: u64,
    /// Address of its contract.
    pub contract: String,
    /// App id of its gateway.
    pub gateway_app_id: Option<String>,
    /// Address of the `dstack-kms` that has its keys. Default: none, they lie with this server.
    pub url: Option<String>,
    /// As `kms.k256_public_key`.
    pub k256_public_key: Option<String>,
    /// As `kms.ca_certificate`.
    pub ca_certificate: Option<PathBuf>,
}

/// Reads how a `dstack-kms` is reached and known; `key` gives the whole name of a setting.
fn kms_service(
    key: impl Fn(&str) -> String,
    url: Option<&str>,
    k256_public_key: Option<&str>,
    ca_certificate: Option<&PathBuf>,
) -> Result<Option<KmsService>, String> {
    let Some(given) = url else {
        let needs = |other: &str| Err(format!("{} is missing; {} needs it", key("url"), key(other)));
        return match (k256_public_key, ca_certificate) {
            (None, None) => Ok(None),
            (Some(_), _) => needs("k256_public_key"),
            (None, Some(_)) => needs("ca_certificate"),
        };
    };
    let wrong = || {
        format!(
            "{}: should be the address of a dstack-kms without a path, such as https://kms.example.org:8000; http:// only on \
             this machine",
            key("url")
        )
    };
    let url: reqwest::Url = given.parse().map_err(|_| wrong())?;
    let local = casemate_chain::is_local(&url);
    let bare = url.username().is_empty() && url.password().is_none() && url.query().is_none();
    if !bare || url.path() != "/" || url.fragment().is_some() {
        return Err(wrong());
    }
    match (url.scheme(), ca_certificate) {
        ("http", _) if local => {}
        ("https", Some(_)) => {}
        ("https", None) => {
            return Err(format!(
                "{} is missing: the certificate of the authority that the TLS certificate of {} comes from, as a PEM file",
                key("ca_certificate"),
                key("url")
            ));
        }
        _ => return Err(wrong()),
    }
    let mut k256 = [0; 33];
    let named = k256_public_key.unwrap_or_default();
    let decoded = hex::decode_to_slice(named.trim_start_matches("0x"), &mut k256);
    if decoded.is_err() || !matches!(k256[0], 2 | 3) {
        return Err(format!(
            "{} is `{named}`; should be the secp256k1 key that signs what the key service says, compressed: 66 hex digits that \
             begin with 02 or 03",
            key("k256_public_key")
        ));
    }
    Ok(Some(KmsService {
        url: url.as_str().trim_end_matches('/').to_owned(),
        k256_public_key: k256,
        ca_certificate: ca_certificate.cloned(),
    }))
}

/// A chain.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChainSettings {
    /// Its id.
    pub chain_id: u64,
    /// Endpoints that speak for it (JSON-RPC over HTTP), the preferred one first.
    pub rpc_urls: Vec<String>,
    /// Blocks that a transaction has to be deep, itself included: 1 to 10,000. Default 1.
    pub confirmations: Option<u64>,
    /// The block from which apps' logs are read: that of the key service's contract. Default 0.
    pub from_block: Option<u64>,
    /// An endpoint that clients are told about, for chains that they do not know. Not one that holds a key.
    pub public_rpc_url: Option<String>,
    /// It makes a block only when there is something to put in it, as local chains do: a newest block of any age is believed.
    /// Default `false`.
    pub blocks_on_demand: Option<bool>,
    /// An endpoint whose newest block is older, or as far in the future, is not believed: 10 to 86,400. Default 120, ten blocks
    /// of Ethereum or sixty of Base; more for a chain whose blocks take longer than 12 s.
    pub max_head_age_seconds: Option<u64>,
    /// Nor is one that is more blocks than this behind the one that most endpoints have reached: 1 to 10,000. Default 20.
    pub max_lag_blocks: Option<u64>,
}

impl std::fmt::Debug for ChainSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChainSettings").field("chain_id", &self.chain_id).finish_non_exhaustive()
    }
}

/// Several words, or one text with commas in between.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Words {
    /// With commas.
    Text(String),
    /// One by one.
    List(Vec<String>),
}

impl Words {
    fn iter(&self) -> impl Iterator<Item = &str> {
        let (text, list) = match self {
            Self::Text(text) => (text.as_str(), [].as_slice()),
            Self::List(list) => ("", list.as_slice()),
        };
        let words = text.split(',').chain(list.iter().map(String::as_str));
        words.map(str::trim).filter(|word| !word.is_empty())
    }
}

/// Certificate and key of the listener, both as PEM. They belong together.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TlsSettings {
    /// File with the certificate, and behind it those that lead to a root.
    pub cert: Option<PathBuf>,
    /// File with the private key.
    pub key: Option<PathBuf>,
}

impl TlsSettings {
    fn files(&self) -> Result<Option<TlsFiles>, String> {
        match (&self.cert, &self.key) {
            (None, None) => Ok(None),
            (Some(cert), Some(key)) => Ok(Some(TlsFiles { cert: cert.clone(), key: key.clone() })),
            (Some(_), None) => Err("tls.key is missing; tls.cert needs it".into()),
            (None, Some(_)) => Err("tls.cert is missing; tls.key needs it".into()),
        }
    }
}

/// A network, or a single address as one.
fn network(text: &str) -> Result<IpNet, String> {
    let single = |_| text.parse::<IpAddr>().map(IpNet::from);
    text.parse().or_else(single).map_err(|_| {
        format!("trusted_proxies has `{text}`; should be an address or a network such as 10.0.0.0/8")
    })
}

/// Bounds of single fields.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitSettings {
    /// Virtual CPUs of one machine. Default 256.
    pub max_vcpu: Option<u32>,
    /// Memory of one machine, in MB. Default 1,048,576.
    pub max_memory_mb: Option<u32>,
    /// Disk of one machine, in GB. Default 16,384.
    pub max_disk_gb: Option<u32>,
    /// Largest request body, in bytes. Default 4,194,304.
    pub max_body_bytes: Option<usize>,
}

/// How long things are kept, in days.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KeepSettings {
    /// What was provisioned and not created. Default 7.
    pub provision_days: Option<u32>,
    /// Commit tokens. Default 14.
    pub token_days: Option<u32>,
    /// Events of single steps. Who did what to a live CVM is kept for ever. Default 30.
    pub step_event_days: Option<u32>,
    /// Provisions and approvals whose time is over. Default 30.
    pub expired_days: Option<u32>,
    /// Deleted CVMs. Default 30.
    pub deleted_cvm_days: Option<u32>,
}

impl Settings {
    /// Reads the file, if there is one, and what the environment changes about it.
    ///
    /// # Errors
    /// The file cannot be read, or a key is unknown or has a wrong value: the message names it.
    pub fn read(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, String> {
        let mut table = match file {
            None => toml::Table::new(),
            Some(file) => {
                let text =
                    std::fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
                text.parse().map_err(|error| format!("{}: {error}", file.display()))?
            }
        };
        let given: BTreeMap<String, String> = environment.into_iter().collect();
        for key in KEYS {
            let Some(value) = given.get(&variable(key)) else { continue };
            set(&mut table, key, value);
        }
        table.try_into().map_err(|error: toml::de::Error| error.to_string().trim().to_owned())
    }

    /// The settings of the server itself.
    ///
    /// # Errors
    /// A value that is out of bounds; the message names its key.
    pub fn config(&self) -> Result<Config, String> {
        let default = Config::default();
        let Some(public_url) = self.public_url.as_deref() else {
            return Err("public_url is not set; give the URL under which clients reach the server, such as \
                        https://cloud.example.org, as --public-url, as CASEMATE_PUBLIC_URL or in the settings file"
                .into());
        };
        let public_url = public_url.trim_end_matches('/');
        let host = public_url.strip_prefix("https://").or_else(|| public_url.strip_prefix("http://"));
        if host.is_none_or(|host| host.is_empty() || host.contains('/')) {
            return Err(format!(
                "public_url is `{public_url}`; should be the URL of the server without a path, such as https://cloud.example.org"
            ));
        }
        let days = |key: &str, given: Option<u32>, default: Duration| match given {
            None => Ok(default),
            Some(days @ 1..=3650) => Ok(DAY * days),
            Some(days) => Err(format!("{key} is {days}; should be from 1 to 3650")),
        };
        let span = |key: &str, given: Option<u32>, default: SignedDuration| {
            days(key, given, default.unsigned_abs())
                .map(|kept| SignedDuration::from_secs(kept.as_secs().cast_signed()))
        };
        let limits = &self.limits;
        Ok(Config {
            public_url: public_url.to_owned(),
            limits: Limits {
                max_vcpu: limits.max_vcpu.unwrap_or(default.limits.max_vcpu),
                max_memory_mb: limits.max_memory_mb.unwrap_or(default.limits.max_memory_mb),
                max_disk_gb: limits.max_disk_gb.unwrap_or(default.limits.max_disk_gb),
            },
            provision_life: days("keep.provision_days", self.keep.provision_days, default.provision_life)?,
            token_life: days("keep.token_days", self.keep.token_days, default.token_life)?,
            keep: Keep {
                step_events: span(
                    "keep.step_event_days",
                    self.keep.step_event_days,
                    default.keep.step_events,
                )?,
                expired: span("keep.expired_days", self.keep.expired_days, default.keep.expired)?,
                deleted: span("keep.deleted_cvm_days", self.keep.deleted_cvm_days, default.keep.deleted)?,
            },
            max_body: limits.max_body_bytes.unwrap_or(default.max_body),
            kms_service: kms_service(
                |name| format!("kms.{name}"),
                self.kms.url.as_deref(),
                self.kms.k256_public_key.as_deref(),
                self.kms.ca_certificate.as_ref(),
            )?,
            contract_kms: self.contract_kms()?,
            chains: self.chains()?,
            tls: self.tls.files()?,
            trusted_proxies: self
                .trusted_proxies
                .iter()
                .flat_map(Words::iter)
                .map(network)
                .collect::<Result<_, _>>()?,
            ..default
        })
    }

    fn contract_kms(&self) -> Result<Vec<ContractKms>, String> {
        let mut all: Vec<ContractKms> = Vec::new();
        let with_us = self.kms.contracts.iter().position(|asked| asked.url.is_none());
        if let Some(index) = with_us
            && !self.kms.allow_operator_custody.unwrap_or(false)
        {
            return Err(format!(
                "kms.contracts[{index}]: the keys of this key service would lie with this server, and whoever runs it could \
                 take them whatever the contract says; name a dstack-kms as its url, or set kms.allow_operator_custody = true \
                 if that is wanted"
            ));
        }
        for (index, asked) in self.kms.contracts.iter().enumerate() {
            let key = |name: &str| format!("kms.contracts[{index}].{name}");
            let slug = &asked.slug;
            let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
            let kind_of_other = match slug.as_str() {
                "ethereum" => asked.chain_id != 1,
                "base" => asked.chain_id != 8453,
                _ => false,
            };
            if slug.is_empty() || slug == EMBEDDED_KMS || kind_of_other || !slug.bytes().all(plain) {
                return Err(format!(
                    "{} is `{slug}`; should be lower-case letters, digits and hyphens, and neither `{EMBEDDED_KMS}` nor the \
                     name of another chain",
                    key("slug")
                ));
            }
            if all.iter().any(|other| other.slug == *slug) {
                return Err(format!("{} is `{slug}`, which another one has; should be unique", key("slug")));
            }
            if !self.chains.iter().any(|chain| chain.chain_id == asked.chain_id) {
                return Err(format!("{} is {}; `chains` has no such chain", key("chain_id"), asked.chain_id));
            }
            let mut kms = ContractKms::new(slug, asked.chain_id, &asked.contract)
                .map_err(|error| format!("{}: {error}", key("contract")))?;
            kms.gateway_app_id.clone_from(&asked.gateway_app_id);
            kms.service = kms_service(
                key,
                asked.url.as_deref(),
                asked.k256_public_key.as_deref(),
                asked.ca_certificate.as_ref(),
            )?;
            all.push(kms);
        }
        Ok(all)
    }

    fn chains(&self) -> Result<Vec<ChainConfig>, String> {
        let mut all: Vec<ChainConfig> = Vec::new();
        for (index, asked) in self.chains.iter().enumerate() {
            let key = |name: &str| format!("chains[{index}].{name}");
            let parsed =
                |url: &String| url.parse::<RpcUrl>().map_err(|error| format!("{}: {error}", key("rpc_urls")));
            let rpc_urls = asked.rpc_urls.iter().map(parsed).collect::<Result<Vec<_>, _>>()?;
            asked.public_rpc_url.as_ref().map(parsed).transpose()?;
            if rpc_urls.is_empty() {
                return Err(format!("{}: should be at least one URL", key("rpc_urls")));
            }
            let confirmations = asked.confirmations.unwrap_or(1);
            if !(1..=10_000).contains(&confirmations) {
                return Err(format!(
                    "{} is {confirmations}; should be from 1 to 10000",
                    key("confirmations")
                ));
            }
            if all.iter().any(|other| other.chain_id == asked.chain_id) {
                return Err(format!("{} is {}, which another one has", key("chain_id"), asked.chain_id));
            }
            let max_head_age = match (asked.blocks_on_demand, asked.max_head_age_seconds) {
                (Some(true), None) => None,
                (Some(true), Some(_)) => {
                    return Err(format!(
                        "{} is set, and with blocks_on_demand blocks of any age are believed; should be one of the two",
                        key("max_head_age_seconds")
                    ));
                }
                (_, None) => Some(casemate_chain::MAX_HEAD_AGE),
                (_, Some(seconds @ 10..=86_400)) => Some(Duration::from_secs(seconds)),
                (_, Some(seconds)) => {
                    return Err(format!(
                        "{} is {seconds}; should be from 10 to 86400",
                        key("max_head_age_seconds")
                    ));
                }
            };
            let max_lag_blocks = asked.max_lag_blocks.unwrap_or(casemate_chain::MAX_LAG_BLOCKS);
            if !(1..=10_000).contains(&max_lag_blocks) {
                return Err(format!(
                    "{} is {max_lag_blocks}; should be from 1 to 10000",
                    key("max_lag_blocks")
                ));
            }
            all.push(ChainConfig {
                chain_id: asked.chain_id,
                rpc_urls,
                confirmations,
                from_block: asked.from_block.unwrap_or(0),
                public_rpc_url: asked.public_rpc_url.clone(),
                max_head_age,
                max_lag_blocks,
            });
        }
        Ok(all)
    }
}

/// Every key that the environment can set.
const KEYS: &[&str] = &[
    "public_url",
    "listen",
    "data",
    "nodes",
    "trusted_proxies",
    "tls.cert",
    "tls.key",
    "limits.max_vcpu",
    "limits.max_memory_mb",
    "limits.max_disk_gb",
    "limits.max_body_bytes",
    "keep.provision_days",
    "keep.token_days",
    "keep.step_event_days",
    "keep.expired_days",
    "keep.deleted_cvm_days",
    "kms.url",
    "kms.k256_public_key",
    "kms.ca_certificate",
    "kms.allow_operator_custody",
    "kms.contracts",
    "chains",
];

fn variable(key: &str) -> String {
    format!("CASEMATE_{}", key.replace('.', "_").to_uppercase())
}

/// Numbers, `true`, `false` and lists are written as in the file; everything else is a text.
fn set(table: &mut toml::Table, key: &str, value: &str) {
    let written =
        format!("value = {value}").parse::<toml::Table>().ok().and_then(|mut line| line.remove("value"));
    let value = match written {
        Some(value @ (toml::Value::Integer(_) | toml::Value::Boolean(_) | toml::Value::Array(_))) => value,
        Some(_) | None => toml::Value::String(value.to_owned()),
    };
    match key.split_once('.') {
        None => drop(table.insert(key.to_owned(), value)),
        Some((group, key)) => {
            let group = table.entry(group).or_insert_with(|| toml::Value::Table(toml::Table::new()));
            if let toml::Value::Table(group) = group {
                group.insert(key.to_owned(), value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(file: &str, environment: &[(&str, &str)]) -> Result<Config, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("casemate.toml");
        std::fs::write(&path, file).unwrap();
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Settings::read(Some(&path), environment)?.config()
    }

    #[test]
    fn the_environment_wins_over_the_file() {
        let file = "public_url = \"https://a.example\"\n[limits]\nmax_vcpu = 8\n";
        let config =
            read(file, &[("CASEMATE_LIMITS_MAX_VCPU", "4"), ("CASEMATE_KEEP_TOKEN_DAYS", "3")]).unwrap();
        assert_eq!((config.public_url.as_str(), config.limits.max_vcpu), ("https://a.example", 4));
        assert_eq!(config.token_life, 3 * DAY);
        assert_eq!(config.provision_life, 7 * DAY);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let missing = read("", &[]).unwrap_err();
        for way in ["public_url is not set", "--public-url", "CASEMATE_PUBLIC_URL"] {
            assert!(missing.contains(way), "{missing}");
        }
        assert!(read("public_url = \"https://a.example/path\"", &[]).unwrap_err().contains("without a path"));
        assert!(read("publik_url = \"x\"", &[]).unwrap_err().contains("publik_url"));
        let url = "public_url = \"https://a.example\"\n";
        assert!(read(&format!("{url}[keep]\ntoken_days = 0"), &[]).unwrap_err().contains("keep.token_days"));
        assert!(read(&format!("{url}[limits]\nmax_vcpu = \"many\""), &[]).unwrap_err().contains("max_vcpu"));
    }

    #[test]
    fn proxies_are_addresses_and_networks() {
        let url = "public_url = \"https://a.example\"\n";
        let networks = |text: &str, environment: &[(&str, &str)]| {
            read(&format!("{url}{text}"), environment)
                .map(|config| config.trusted_proxies.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        let both = ["127.0.0.1/32", "fd00::/8"];
        assert_eq!(networks("", &[]).unwrap(), Vec::<String>::new());
        assert_eq!(networks("trusted_proxies = [\"127.0.0.1\", \"fd00::/8\"]", &[]).unwrap(), both);
        assert_eq!(networks("", &[("CASEMATE_TRUSTED_PROXIES", "127.0.0.1, fd00::/8")]).unwrap(), both);
        let wrong = networks("trusted_proxies = \"proxy.example\"", &[]).unwrap_err();
        assert!(wrong.contains("`proxy.example`; should be an address or a network"), "{wrong}");
    }

    #[test]
    fn a_certificate_and_its_key_come_together() {
        let url = "public_url = \"https://a.example\"\n";
        let cert = format!("{url}[tls]\ncert = \"c.pem\"\n");
        assert!(read(&cert, &[]).unwrap_err().contains("tls.key is missing"));
        let key = [("CASEMATE_TLS_KEY", "k.pem")];
        assert!(read(url, &key).unwrap_err().contains("tls.cert is missing"));
        let files = read(&cert, &key).unwrap().tls.unwrap();
        assert_eq!((files.cert, files.key), ("c.pem".into(), "k.pem".into()));
    }

    #[test]
    fn every_key_can_come_from_the_environment() {
        for key in KEYS {
            let value = match *key {
                "kms.allow_operator_custody" => "true",
                "kms.contracts" => "[{ slug = \"a\", chain_id = 1, contract = \"0x11\" }]",
                "chains" => "[{ chain_id = 1, rpc_urls = [\"http://a.example\"] }]",
                key if key.starts_with("limits.") || key.starts_with("keep.") => "5",
                _ => "b.example",
            };
            let environment = [(variable(key), value.to_owned())];
            Settings::read(None, environment).unwrap_or_else(|error| panic!("{key}: {error}"));
        }
    }

    const CHAIN: &str = "[[chains]]\nchain_id = 8453\nrpc_urls = [\"https://rpc.example/secret\"]\n";

    fn kms(settings: &str) -> Result<Config, String> {
        read(&format!("public_url = \"https://a.example\"\n{CHAIN}{settings}"), &[])
    }

    #[test]
    fn keys_of_contracts_lie_with_the_operator_only_if_that_is_said() {
        let contract = format!(
            "[[kms.contracts]]\nslug = \"base\"\nchain_id = 8453\ncontract = \"0x{}\"\n",
            "Ab".repeat(20)
        );
        let refused = kms(&contract).unwrap_err();
        assert!(refused.contains("kms.allow_operator_custody = true"), "{refused}");
        let config = kms(&format!("[kms]\nallow_operator_custody = true\n{contract}")).unwrap();
        assert_eq!(config.contract_kms("base").unwrap().contract, format!("0x{}", "ab".repeat(20)));
        assert_eq!(config.chain(8453).unwrap().confirmations, 1);
        assert!(!format!("{config:?}").contains("secret"), "an endpoint may hold a key");
    }

    #[test]
    fn keys_that_lie_with_a_dstack_kms_need_no_leave() {
        let key = format!("02{}", "ab".repeat(32));
        let service = format!(
            "url = \"https://kms.example:8000/\"\nk256_public_key = \"{key}\"\nca_certificate = \"ca.pem\"\n"
        );
        let contract = |slug: &str, service: &str| {
            format!(
                "[[kms.contracts]]\nslug = \"{slug}\"\nchain_id = 8453\ncontract = \"{}\"\n{service}",
                "11".repeat(20)
            )
        };
        let config = kms(&format!("[kms]\n{service}{}", contract("base", &service))).unwrap();
        let service_of = config.contract_kms("base").unwrap().service.clone().unwrap();
        assert_eq!(
            (service_of.url.as_str(), service_of.k256_public_key[1]),
            ("https://kms.example:8000", 0xab)
        );
        assert_eq!(config.kms_service, Some(service_of));
        // One beside it without a `url` needs it.
        let both = format!("{}{}", contract("base", &service), contract("other", ""));
        assert!(kms(&both).unwrap_err().contains("kms.contracts[1]: the keys of this key service would lie"));
        for (from, to, named) in [
            ("https://kms.example:8000/", "http://kms.example", ".url: should be"),
            ("https://kms.example:8000/", "https://kms.example/path", ".url: should be"),
            ("https://kms.example:8000/", "https://me:secret@kms.example", ".url: should be"),
            ("https://kms.example:8000/", "kms.example", ".url: should be"),
            ("url =", "#", "url is missing; "),
            ("ca_certificate =", "#", "ca_certificate is missing: the certificate"),
            ("k256_public_key =", "#", "k256_public_key is ``; should be"),
            ("\"02", "\"04", "k256_public_key is `04ab"),
            ("\"02ab", "\"02", "k256_public_key is `02ab"),
        ] {
            let wrong = service.replace(from, to);
            for (settings, place) in
                [(format!("[kms]\n{wrong}"), "kms."), (contract("base", &wrong), "kms.contracts[0]")]
            {
                let settings = settings.replace("[kms]\n", "[kms]\nallow_operator_custody = true\n");
                let settings = settings.replace("[[kms.c", "[kms]\nallow_operator_custody = true\n[[kms.c");
                let error = kms(&settings).unwrap_err();
                assert!(error.contains(named) && error.starts_with(place), "{settings}: {error}");
                assert!(!error.contains("secret"), "{error}");
            }
        }
        let local = service
            .replace("https://kms.example:8000/", "http://127.0.0.1:8000")
            .replace("ca_certificate =", "#");
        assert_eq!(kms(&format!("[kms]\n{local}")).unwrap().kms_service.unwrap().ca_certificate, None);
    }

    #[test]
    fn how_old_a_newest_block_may_be_is_set_for_each_chain() {
        for (settings, age, lag) in [
            ("", Some(120), 20),
            ("blocks_on_demand = false\n", Some(120), 20),
            ("blocks_on_demand = true\n", None, 20),
            ("max_head_age_seconds = 600\nmax_lag_blocks = 3\n", Some(600), 3),
        ] {
            let chain = kms(settings).unwrap().chain(8453).unwrap().how_asked();
            assert_eq!(chain.max_head_age.map(|age| age.as_secs()), age, "{settings}");
            assert_eq!(chain.max_lag_blocks, lag, "{settings}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_chain_is_named() {
        let contract = |slug: &str, chain_id: u64, contract: &str| {
            format!(
                "[kms]\nallow_operator_custody = true\n[[kms.contracts]]\nslug = \"{slug}\"\nchain_id = {chain_id}\n\
                 contract = \"{contract}\"\n"
            )
        };
        let good = format!("0x{}", "11".repeat(20));
        for (settings, named) in [
            (contract("phala", 8453, &good), "kms.contracts[0].slug"),
            (contract("ethereum", 8453, &good), "kms.contracts[0].slug"),
            (contract("Mine", 8453, &good), "kms.contracts[0].slug"),
            (contract("mine", 1, &good), "kms.contracts[0].chain_id"),
            (contract("mine", 8453, "0x11"), "kms.contracts[0].contract"),
            ("[[chains]]\nchain_id = 1\nrpc_urls = []\n".into(), "chains[1].rpc_urls"),
            ("[[chains]]\nchain_id = 1\nrpc_urls = [\"ftp://a\"]\n".into(), "chains[1].rpc_urls"),
            (CHAIN.into(), "chains[1].chain_id"),
            (format!("{}confirmations = 0\n", CHAIN.replace("8453", "1")), "chains[1].confirmations"),
            (
                format!("{}max_head_age_seconds = 9\n", CHAIN.replace("8453", "1")),
                "chains[1].max_head_age_seconds",
            ),
            (
                format!("{}blocks_on_demand = true\nmax_head_age_seconds = 60\n", CHAIN.replace("8453", "1")),
                "chains[1].max_head_age_seconds",
            ),
            (format!("{}max_lag_blocks = 0\n", CHAIN.replace("8453", "1")), "chains[1].max_lag_blocks"),
        ] {
            let error = kms(&settings).unwrap_err();
            assert!(error.contains(named), "{settings}: {error}");
        }
        assert!(kms(&contract("mine", 8453, &good)).is_ok());
    }
}
