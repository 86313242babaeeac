//! Where requests go, and as whom.

use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use casemate_types::error::FieldError;
use casemate_types::version::ApiVersion;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, Url};

use crate::call::Call;
use crate::error::{Error, Result};

/// The base URL where none is given: Phala Cloud.
pub const DEFAULT_BASE_URL: &str = "https://cloud-api.phala.com/api/v1";

/// The variable with the API key.
pub const API_KEY_VAR: &str = "PHALA_CLOUD_API_KEY";

/// The variable with the base URL, `/api/v1` included.
pub const BASE_URL_VAR: &str = "PHALA_CLOUD_API_PREFIX";

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
const DEFAULT_RETRIES: u32 = 3;
const DEFAULT_POLL: Duration = Duration::from_secs(3);

/// A client of one server. Cheap to clone; clones share their connections.
///
/// Making one does nothing yet: connections and certificates are looked at when the first request is sent.
///
/// ```no_run
/// # async fn example() -> casemate_sdk::Result<()> {
/// use casemate_sdk::Client;
///
/// let client = Client::from_env()?;
/// println!("{}", client.me().await?.user.username);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Client {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) base: Url,
    pub(crate) key: Option<HeaderValue>,
    pub(crate) headers: HeaderMap,
    pub(crate) timeout: Option<Duration>,
    pub(crate) retries: u32,
    pub(crate) retry_pause: Duration,
    pub(crate) poll_every: Duration,
    http: OnceLock<Result<reqwest::Client, String>>,
    https: OnceLock<Result<reqwest::Client, String>>,
    /// What answers at `base`: one of the constants below.
    server: AtomicU8,
    /// How a Casemate server has signed.
    version: OnceLock<String>,
}

const UNASKED: u8 = 0;
const CASEMATE: u8 = 1;
const OTHER: u8 = 2;

impl Client {
    /// A client with everything at its default.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// A client for the server and with the key that the environment names: `PHALA_CLOUD_API_PREFIX`, by default
    /// [`DEFAULT_BASE_URL`], and `PHALA_CLOUD_API_KEY`, by default none. A variable that is empty counts as unset.
    ///
    /// # Errors
    /// [`Error::Invalid`] if a variable cannot be used.
    pub fn from_env() -> Result<Self> {
        #[expect(
            clippy::disallowed_methods,
            reason = "this is the one place where the SDK reads the environment"
        )]
        let var = |name| std::env::var(name).ok().filter(|text| !text.is_empty());
        let mut builder = Self::builder();
        if let Some(url) = var(BASE_URL_VAR) {
            builder = builder.base_url(url);
        }
        if let Some(key) = var(API_KEY_VAR) {
            builder = builder.api_key(key);
        }
        builder.build()
    }

    /// A client without a key. It can commit an update that somebody else prepared:
    /// [`Cvm::commit_update`](crate::Cvm::commit_update).
    ///
    /// # Errors
    /// [`Error::Invalid`] if `base_url` cannot be used.
    pub fn anonymous(base_url: impl Into<String>) -> Result<Self> {
        Self::builder().base_url(base_url).build()
    }

    /// Where requests go, without a slash at its end.
    pub fn base_url(&self) -> &str {
        self.inner.base.as_str().trim_end_matches('/')
    }

    /// Whether a Casemate server answers at the base URL. It is asked once, and never where an earlier answer has told.
    ///
    /// # Errors
    /// [`Error::Transport`] or [`Error::Api`] if the server cannot tell at the moment.
    pub async fn is_casemate(&self) -> Result<bool> {
        match self.inner.server.load(Ordering::Relaxed) {
            CASEMATE => return Ok(true),
            OTHER => return Ok(false),
            _ => {}
        }
        // Every answer is signed, also one that refuses; but what a broken proxy says is nobody's signature.
        match self.call(Method::GET, ["auth", "me"]).deliver().await {
            Ok(_) => {}
            Err(error @ Error::Transport { .. }) => return Err(error),
            Err(error) if error.is_transient() => return Err(error),
            Err(_) => {}
        }
        let _ = self.inner.server.compare_exchange(UNASKED, OTHER, Ordering::Relaxed, Ordering::Relaxed);
        Ok(self.inner.server.load(Ordering::Relaxed) == CASEMATE)
    }

    /// The version of the Casemate server at the base URL; `None` if another server answers there. Asked for as by
    /// [`is_casemate`](Self::is_casemate).
    ///
    /// # Errors
    /// See there.
    pub async fn casemate_version(&self) -> Result<Option<String>> {
        Ok(if self.is_casemate().await? { self.inner.version.get().cloned() } else { None })
    }

    /// An answer was signed by a Casemate server, with its version.
    pub(crate) fn saw_casemate(&self, signature: &HeaderValue) {
        self.inner.version.get_or_init(|| String::from_utf8_lossy(signature.as_bytes()).into_owned());
        self.inner.server.store(CASEMATE, Ordering::Relaxed);
    }

    pub(crate) fn call<const N: usize>(&self, method: Method, path: [&str; N]) -> Call {
        Call::new(self.clone(), method, path.iter().map(ToString::to_string).collect())
    }

    /// What sends requests to a URL. Certificates are only loaded for one that needs them, since that takes longer than
    /// everything else.
    pub(crate) fn transport(&self, url: &Url) -> Result<&reqwest::Client> {
        let secure = url.scheme() == "https";
        let slot = if secure { &self.inner.https } else { &self.inner.http };
        let built = slot.get_or_init(|| {
            let mut builder = reqwest::Client::builder()
                .user_agent(concat!("casemate-sdk/", env!("CARGO_PKG_VERSION")))
                .connect_timeout(DEFAULT_TIMEOUT)
                // The key must not follow to wherever an answer points.
                .redirect(reqwest::redirect::Policy::none())
                .tcp_nodelay(true);
            if !secure {
                builder = builder.tls_certs_only([]);
            }
            builder.build().map_err(|error| error.to_string())
        });
        built.as_ref().map_err(|error| Error::Transport {
            url: self.base_url().to_owned(),
            source: error.as_str().into(),
        })
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("base_url", &self.base_url())
            .field("has_key", &self.inner.key.is_some())
            .finish_non_exhaustive()
    }
}

/// Settings of a [`Client`].
///
/// ```
/// use std::time::Duration;
///
/// let client = casemate_sdk::Client::builder()
///     .base_url("http://127.0.0.1:8080/api/v1")
///     .api_key("phak_example")
///     .timeout(Duration::from_secs(10))
///     .build()?;
/// assert_eq!(client.base_url(), "http://127.0.0.1:8080/api/v1");
/// # Ok::<(), casemate_sdk::Error>(())
/// ```
#[derive(Clone)]
pub struct Builder {
    base_url: String,
    api_key: Option<String>,
    version: ApiVersion,
    timeout: Option<Duration>,
    retries: u32,
    retry_pause: Duration,
    poll_every: Duration,
    headers: Vec<(String, String)>,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            base_url: DEFAULT_BASE_URL.to_owned(),
            api_key: None,
            version: ApiVersion::LATEST,
            timeout: Some(DEFAULT_TIMEOUT),
            retries: DEFAULT_RETRIES,
            retry_pause: crate::retry::FIRST,
            poll_every: DEFAULT_POLL,
            headers: Vec::new(),
        }
    }
}

impl Builder {
    /// Where requests go, `/api/v1` included.
    #[must_use]
    pub fn base_url(mut self, url: impl Into<String>) -> Self {
        self.base_url = url.into();
        self
    }

    /// The API key.
    #[must_use]
    pub fn api_key(mut self, key: impl Into<String>) -> Self {
        self.api_key = Some(key.into());
        self
    }

    /// The dated version of the API. The newest is the default; the oldest whose answers this crate reads is 2026-01-21.
    #[must_use]
    pub fn version(mut self, version: ApiVersion) -> Self {
        self.version = version;
        self
    }

    /// How long a request may take, its answer included; `None` for as long as it takes. 30 seconds by default. Streams have
    /// no such limit.
    #[must_use]
    pub fn timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.timeout = timeout.into();
        self
    }

    /// How often a read, or a write with an idempotency key, is repeated when it failed for a reason that may pass. 3 by
    /// default.
    #[must_use]
    pub fn retries(mut self, retries: u32) -> Self {
        self.retries = retries;
        self
    }

    /// How long to wait before the first repetition, at most; later ones wait longer and longer. 200 ms by default.
    #[must_use]
    pub fn retry_pause(mut self, pause: Duration) -> Self {
        self.retry_pause = pause;
        self
    }

    /// How often a server that has no stream to follow is asked how far something is. 3 seconds by default.
    #[must_use]
    pub fn poll_every(mut self, pause: Duration) -> Self {
        self.poll_every = pause;
        self
    }

    /// A header for every request. It replaces one of the SDK's own, except the key.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// The client.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a base URL, a key or a header that cannot be used.
    pub fn build(self) -> Result<Client> {
        let wrong =
            |field: &str, what: String| Error::invalid(vec![FieldError::body(field, "value_error", what)]);
        let base = base_url(&self.base_url).map_err(|what| wrong("base_url", what))?;
        if !self.version.has_cvm_objects() {
            let what = format!("must be {} or later, not {}", ApiVersion::V20260121, self.version);
            return Err(wrong("version", what));
        }
        let key = match self.api_key.filter(|key| !key.is_empty()) {
            None => None,
            Some(key) => {
                let mut value = HeaderValue::from_str(&key)
                    .map_err(|_| wrong("api_key", "must be printable ASCII characters".to_owned()))?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        let mut headers = HeaderMap::new();
        headers.insert(crate::call::VERSION, HeaderValue::from_static(self.version.as_str()));
        headers.insert(reqwest::header::ACCEPT, HeaderValue::from_static("application/json"));
        for (name, value) in &self.headers {
            let name = HeaderName::from_bytes(name.as_bytes())
                .map_err(|_| wrong("headers", format!("`{name}` cannot be the name of a header")))?;
            let value = HeaderValue::from_str(value)
                .map_err(|_| wrong("headers", format!("the value of `{name}` cannot be sent in a header")))?;
            headers.insert(name, value);
        }
        Ok(Client {
            inner: Arc::new(Inner {
                base,
                key,
                headers,
                timeout: self.timeout,
                retries: self.retries,
                retry_pause: self.retry_pause,
                poll_every: self.poll_every,
                http: OnceLock::new(),
                https: OnceLock::new(),
                server: AtomicU8::new(UNASKED),
                version: OnceLock::new(),
            }),
        })
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("base_url", &self.base_url)
            .field("has_key", &self.api_key.is_some())
            .field("version", &self.version)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

fn base_url(text: &str) -> Result<Url, String> {
    let url: Url = text.trim().parse().map_err(|error| format!("`{text}` is not a URL: {error}"))?;
    if !matches!(url.scheme(), "http" | "https") || url.query().is_some() || url.fragment().is_some() {
        return Err(format!(
            "`{text}` must be an http or https URL without query, such as {DEFAULT_BASE_URL}"
        ));
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_needs_a_usable_url_and_key() {
        for (builder, field) in [
            (Client::builder().base_url("cloud"), "base_url"),
            (Client::builder().base_url("ftp://x/api"), "base_url"),
            (Client::builder().api_key("line\nbreak"), "api_key"),
            (Client::builder().header("a b", "c"), "headers"),
            (Client::builder().version(ApiVersion::V20251028), "version"),
        ] {
            assert_eq!(builder.build().unwrap_err().fields()[0].field(), field);
        }
    }

    #[test]
    fn slashes_at_the_end_do_not_matter_and_the_key_is_never_shown() {
        let client = Client::builder().base_url("http://h/api/v1//").api_key("phak_secret").build().unwrap();
        assert_eq!(client.base_url(), "http://h/api/v1");
        assert!(!format!("{client:?}").contains("secret"));
    }
}
