//! What the operator decides. One typed struct, read from a TOML file and the environment, checked once.
//!
//! A key `a.b` of the file is `CASEMATE_A_B` in the environment; the environment wins. The file and the environment are read
//! here and nowhere else.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

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
    /// Key services that belong to a contract, beside the embedded one.
    pub contract_kms: Vec<ContractKms>,
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
    /// Address of its contract, `0x…`.
    pub contract: String,
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
            contract_kms: Vec::new(),
            tls: None,
            trusted_proxies: Vec::new(),
        }
    }
}

impl Config {
    /// Do apps of this key service need a contract's yes to a new compose hash?
    pub fn kms_is_contract_owned(&self, slug: &str) -> bool {
        self.contract_kms(slug).is_some()
    }

    /// The contract-owned key service with this slug.
    pub fn contract_kms(&self, slug: &str) -> Option<&ContractKms> {
        self.contract_kms.iter().find(|kms| kms.slug == slug)
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
];

fn variable(key: &str) -> String {
    format!("CASEMATE_{}", key.replace('.', "_").to_uppercase())
}

fn set(table: &mut toml::Table, key: &str, value: &str) {
    let value = value.parse().map_or_else(|_| toml::Value::String(value.to_owned()), toml::Value::Integer);
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
            let value =
                if key.starts_with("limits.") || key.starts_with("keep.") { "5" } else { "b.example" };
            let environment = [(variable(key), value.to_owned())];
            Settings::read(None, environment).unwrap_or_else(|error| panic!("{key}: {error}"));
        }
    }
}
