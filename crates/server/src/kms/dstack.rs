//! A `dstack-kms`, asked over its RPC.
//!
//! It is known by two keys that the operator names, and by nothing else: the certificate authority that its TLS certificate
//! comes from, and the secp256k1 key that signs what it says about apps. What runs there, in which TEE, is not looked into:
//! whoever names the keys has seen to that.
//!
//! Everything is bounded: time, bytes, one look at a time. Trouble is a reason in words and never an answer.

use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use casemate_kms::verify_env_public_key;
use casemate_types::ids::{Address, AppId};
use jiff::Timestamp;
use reqwest::header::CONTENT_TYPE;
use reqwest::{Certificate, Url};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio_rustls::rustls::RootCertStore;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;

use super::EnvKey;
use crate::cache::Cache;
use crate::clock::Clock;
use crate::config::KmsService;
use crate::store::Store;
use crate::tls;

/// How long one exchange may take, connection and whole answer included. A request may need two of them, and its client waits
/// 30 s.
const EXCHANGE: Duration = Duration::from_secs(5);

/// Longer answers are not read. What it tells of itself holds a quote and an event log, tens of kilobytes.
const MAX_ANSWER: usize = 1 << 20;

/// How long it is believed to be what it was.
const GOOD_FOR: Duration = Duration::from_secs(60);

/// How long somebody who asks is told of the last trouble, instead of waiting for the next.
const BAD_FOR: Duration = Duration::from_secs(5);

/// Bytes of keys of apps that are remembered for certain: those of 8,000.
const KEYS: usize = 2 * 1024 * 1024;

/// Bytes of an uncompressed P-256 key.
const CA_KEY: usize = 65;

/// A key service of its own, somewhere else.
pub struct Dstack {
    url: Url,
    k256_public_key: [u8; 33],
    ca_public_key: Option<[u8; CA_KEY]>,
    contract: Option<(u64, Address)>,
    http: reqwest::Client,
    keys: Cache<AppId, EnvKey>,
    last: Mutex<Option<Look>>,
    looking: tokio::sync::Mutex<()>,
}

/// What came of asking it what it is.
struct Look {
    at: Timestamp,
    /// The version of its software; or why it is of no use.
    found: Result<String, String>,
}

/// Its answer to `GetMeta`, as far as it matters here.
#[derive(Deserialize)]
struct Meta {
    ca_cert: String,
    k256_pubkey: String,
    #[serde(default)]
    is_dev: bool,
    #[serde(default)]
    allow_any_upgrade: bool,
    kms_contract_address: Option<String>,
    chain_id: Option<u64>,
}

/// Its answer to `GetAppEnvEncryptPubKey`. Software older than 0.5.8 gives no dated signature.
#[derive(Deserialize)]
struct SignedKey {
    public_key: String,
    signature: String,
    #[serde(default)]
    timestamp: u64,
    #[serde(default)]
    signature_v1: String,
}

#[derive(Deserialize)]
struct Refusal {
    error: String,
}

impl Dstack {
    /// Prepares to ask. Connects to nothing yet. `contract` is the chain and the contract that it has to serve; none off chain.
    ///
    /// # Errors
    /// The certificate cannot be read; the message names its file.
    pub fn open(service: &KmsService, contract: Option<(u64, Address)>) -> Result<Self, String> {
        let url: Url =
            service.url.parse().map_err(|_| format!("`{}` is not the URL of a key service", service.url))?;
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("casemate/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            // Shorter than any server's, so that no question meets a connection that is just being closed.
            .pool_idle_timeout(Duration::from_secs(20))
            .tcp_nodelay(true);
        let mut ca_public_key = None;
        let mut trusted = Vec::new();
        if let Some(file) = &service.ca_certificate {
            let wrong = |why: String| format!("ca_certificate: {}: {why}", file.display());
            let certificates = tls::certificates(file).map_err(wrong)?;
            let [certificate] = certificates.as_slice() else {
                return Err(wrong("should be one certificate, that of the key service's authority".into()));
            };
            let key = public_key(certificate.clone());
            ca_public_key = Some(key.ok_or_else(|| wrong("should be a certificate of a P-256 key".into()))?);
            let certificate = Certificate::from_der(certificate);
            trusted.push(certificate.map_err(|error| wrong(cause(&error)))?);
        }
        builder = builder.tls_certs_only(trusted);
        if casemate_chain::is_local(&url) {
            builder = builder.no_proxy();
        }
        Ok(Self {
            url,
            k256_public_key: service.k256_public_key,
            ca_public_key,
            contract,
            http: builder.build().map_err(|error| cause(&error))?,
            keys: Cache::new(KEYS),
            last: Mutex::new(None),
            looking: tokio::sync::Mutex::new(()),
        })
    }

    /// Where it answers.
    pub fn url(&self) -> String {
        self.url.as_str().trim_end_matches('/').to_owned()
    }

    /// The key that signs what it says about apps: a compressed point.
    pub fn k256_public_key(&self) -> [u8; 33] {
        self.k256_public_key
    }

    /// The key of its certificate authority, if one is named: an uncompressed point.
    pub fn ca_public_key(&self) -> Option<[u8; CA_KEY]> {
        self.ca_public_key
    }

    /// The version of its software, if it was reached lately.
    pub fn version(&self) -> Option<String> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.as_ref().and_then(|look| look.found.as_ref().ok().cloned())
    }

    /// Is it there, and what it is configured to be?
    ///
    /// # Errors
    /// Why not.
    pub async fn look(&self, clock: &Clock) -> Result<(), String> {
        if let Some(known) = self.fresh(clock.now()) {
            return known;
        }
        let _turn = self.looking.lock().await;
        // Who waited for the turn finds what the one before has found.
        if let Some(known) = self.fresh(clock.now()) {
            return known;
        }
        let found = self.within(clock, self.meta()).await;
        let answer = found.as_ref().map(|_| ()).map_err(Clone::clone);
        self.note(Look { at: clock.now(), found });
        answer
    }

    fn fresh(&self, now: Timestamp) -> Option<Result<(), String>> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let look = last.as_ref()?;
        let good_for = if look.found.is_ok() { GOOD_FOR } else { BAD_FOR };
        let age = Duration::try_from(now.duration_since(look.at)).ok()?;
        (age < good_for).then(|| look.found.as_ref().map(|_| ()).map_err(Clone::clone))
    }

    /// Logs when trouble begins and when it is over, not each time in between.
    fn note(&self, look: Look) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let before = last.as_ref().map(|look| look.found.as_ref().err());
        match (&look.found, before) {
            (Err(why), before) if before != Some(Some(why)) => {
                tracing::error!(why, "the key service cannot be used");
            }
            (Ok(version), None | Some(Some(_))) => {
                tracing::info!(kms.url = %self.url, version, "the key service is there");
            }
            (Err(_) | Ok(_), _) => {}
        }
        *last = Some(look);
    }

    /// An app's key that was learned before, by this process or an earlier one.
    pub fn known_key(&self, store: &Store, app_id: &AppId) -> Option<EnvKey> {
        if let Some(known) = self.keys.get(app_id) {
            return Some(*known);
        }
        // It proves itself: one that another key service gave is of no use.
        let stored = store.env_key(app_id).ok().flatten()?;
        self.is_signed(app_id, &stored).then(|| self.remember(*app_id, stored))
    }

    /// An app's key. Those that are known are not asked for again: they follow from the root key and never change.
    ///
    /// # Errors
    /// Why there is none, or why it is not believed.
    pub async fn key(&self, clock: &Clock, store: &Store, app_id: &AppId) -> Result<EnvKey, String> {
        if let Some(known) = self.known_key(store, app_id) {
            return Ok(known);
        }
        self.look(clock).await?;
        let asked = self.call("GetAppEnvEncryptPubKey", json!({ "app_id": app_id }));
        let (answer, _) = self.within(clock, asked).await?;
        let key = self.checked(app_id, &answer, clock.now())?;
        Ok(self.remember(*app_id, key))
    }

    fn remember(&self, app_id: AppId, key: EnvKey) -> EnvKey {
        // With what a map adds to it.
        const WEIGHT: usize = 256;
        self.keys.put(app_id, Arc::new(key), WEIGHT);
        key
    }

    fn is_signed(&self, app_id: &AppId, key: &EnvKey) -> bool {
        let signer = verify_env_public_key(app_id, &key.public_key, &key.signature, None, 0);
        signer == Ok(self.k256_public_key)
    }

    /// The key of an answer, if the root key signed it, and lately.
    fn checked(&self, app_id: &AppId, answer: &SignedKey, now: Timestamp) -> Result<EnvKey, String> {
        let lie = |what: &str| {
            Err(format!("{} gives a key for app {app_id} that is not believed: {what}", self.shown()))
        };
        let (Some(public_key), Some(signature)) = (bytes(&answer.public_key), bytes(&answer.signature))
        else {
            return lie("the key has not 32 bytes, or its signature not 65");
        };
        let key = EnvKey { public_key, signature };
        if !self.is_signed(app_id, &key) {
            return lie("its signature is not of the configured k256_public_key");
        }
        if answer.signature_v1.is_empty() {
            tracing::warn!(kms.url = %self.url, "the key service does not date its signatures; dstack-kms 0.5.8 does");
            return Ok(key);
        }
        let (Some(dated), now) =
            (bytes::<65>(&answer.signature_v1), u64::try_from(now.as_second()).unwrap_or_default())
        else {
            return lie("its dated signature has not 65 bytes");
        };
        match verify_env_public_key(app_id, &public_key, &dated, Some(answer.timestamp), now) {
            Ok(signer) if signer == self.k256_public_key => Ok(key),
            Ok(_) => lie("its dated signature is not of the configured k256_public_key"),
            Err(error) => lie(&error.to_string()),
        }
    }

    /// The version of its software, if it is what it is configured to be.
    async fn meta(&self) -> Result<String, String> {
        let (meta, version) = self.call::<Meta>("GetMeta", json!({})).await?;
        let it = self.shown();
        if bytes::<33>(&meta.k256_pubkey) != Some(self.k256_public_key) {
            let (theirs, ours) = (short(&meta.k256_pubkey), hex::encode(self.k256_public_key));
            return Err(format!("{it} signs with key {theirs}, and k256_public_key is {ours}"));
        }
        // Certificates are made anew with the same key.
        let theirs = CertificateDer::from_pem_slice(meta.ca_cert.as_bytes()).ok().and_then(public_key);
        if self.ca_public_key.is_some() && theirs != self.ca_public_key {
            return Err(format!("{it} has another certificate authority than ca_certificate"));
        }
        if meta.is_dev || meta.allow_any_upgrade {
            return Err(format!("{it} is set up for development (auth_api.type) and gives keys to anybody"));
        }
        self.serves(&meta).map_err(|why| format!("{it} {why}")).map(|()| version)
    }

    /// Is it there for the contract that it should be there for?
    fn serves(&self, meta: &Meta) -> Result<(), String> {
        let named = meta.kms_contract_address.as_deref().unwrap_or_default();
        // Those that ask no contract leave it out, or say nothing, or zero.
        let theirs = match named.parse() {
            Ok(Address(zeros)) if zeros == [0; 20] => None,
            Ok(address) => Some((meta.chain_id.unwrap_or_default(), address)),
            Err(_) if named.is_empty() => None,
            Err(_) => return Err(format!("serves the contract `{}`, which is no address", short(named))),
        };
        let shown = |contract: Option<(u64, Address)>| match contract {
            None => "no contract".to_owned(),
            Some((chain, address)) => format!("contract 0x{address} on chain {chain}"),
        };
        match theirs == self.contract {
            true => Ok(()),
            false => Err(format!("serves {}; configured is {}", shown(theirs), shown(self.contract))),
        }
    }

    async fn within<T>(
        &self,
        clock: &Clock,
        exchange: impl Future<Output = Result<T, String>>,
    ) -> Result<T, String> {
        let late = || Err(format!("{} gave no whole answer within {} s", self.shown(), EXCHANGE.as_secs()));
        clock.within(EXCHANGE, exchange).await.unwrap_or_else(late)
    }

    /// What `method` answers, and the version of the software that does.
    async fn call<T: DeserializeOwned>(&self, method: &str, body: Value) -> Result<(T, String), String> {
        let it = self.shown();
        let broken = |error: reqwest::Error| format!("{it} cannot be asked: {}", cause(&error));
        // Older software knows methods by this prefix only.
        let url = self.url.join(&format!("prpc/KMS.{method}")).map_err(|error| error.to_string())?;
        let request = self.http.post(url).header(CONTENT_TYPE, "application/json").body(body.to_string());
        let mut response = request.send().await.map_err(broken)?;
        let (status, version) = (response.status(), version(&response));
        let mut answer = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(broken)? {
            if chunk.len() > MAX_ANSWER - answer.len() {
                return Err(format!("{it} answers with more than {MAX_ANSWER} bytes"));
            }
            answer.extend_from_slice(&chunk);
        }
        if !status.is_success() {
            // Its own words are for the log: they may tell how it reaches others.
            let said = serde_json::from_slice::<Refusal>(&answer).map(|refusal| short(&refusal.error));
            tracing::warn!(kms.url = %self.url, method, said = said.ok(), "the key service refuses");
            return Err(format!("{it} answers {method} with HTTP status {}", status.as_u16()));
        }
        let parsed = serde_json::from_slice(&answer);
        parsed.map(|parsed| (parsed, version)).map_err(|error| {
            format!("{it} answers {method} with something else: {}", short(&error.to_string()))
        })
    }

    fn shown(&self) -> String {
        format!("the key service at {}", self.url())
    }
}

impl fmt::Debug for Dstack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dstack").field("url", &self.url()).finish_non_exhaustive()
    }
}

/// The public key in a certificate, if it is one of P-256: an uncompressed point.
fn public_key(certificate: CertificateDer<'_>) -> Option<[u8; CA_KEY]> {
    let mut store = RootCertStore::empty();
    store.add(certificate).ok()?;
    let info = store.roots.first()?.subject_public_key_info.as_ref();
    // What stands before the point says that it is one of P-256, in 26 bytes, or 24 without the outermost header.
    let point: [u8; CA_KEY] = info.last_chunk().copied()?;
    (point[0] == 4 && matches!(info.len() - CA_KEY, 24 | 26)).then_some(point)
}

fn version(response: &reqwest::Response) -> String {
    // `v0.6.0 (<revision>)`
    let header = response.headers().get("x-app-version").and_then(|value| value.to_str().ok());
    let word = header.and_then(|text| text.split_whitespace().next()).unwrap_or("unknown");
    short(word.trim_start_matches('v'))
}

fn bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    hex::decode_to_slice(text.trim_start_matches("0x"), &mut bytes).ok()?;
    Some(bytes)
}

/// What somebody else said, fit to be shown: on one line, and not for ever.
fn short(said: &str) -> String {
    said.chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect()
}

/// The innermost reason. The outer ones name the address once more.
fn cause(error: &reqwest::Error) -> String {
    let mut inner: &dyn std::error::Error = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    short(&inner.to_string())
}
