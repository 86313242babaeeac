//! A registry and what it answers: the protocol of the OCI distribution specification, as far as pulls need it.
//!
//! Who chooses an image chooses its registry, so nothing that one says is taken without a bound: documents by their size, blobs
//! by what the manifest says of them, and what comes with an error is not read at all.

use std::net::IpAddr;
use std::time::Duration;

use reqwest::header::{ACCEPT, HeaderMap, RETRY_AFTER, WWW_AUTHENTICATE};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode};
use serde::Deserialize;
use tokio::sync::Mutex;

use super::manifest::{ACCEPTED, MAX_DOCUMENT};
use super::reference::is_digest;
use super::store::digest_of;
use super::{Error, Login, Reference, Result};
use crate::clock::Clock;

/// An answer to a small question takes no longer than this; of a large one, its beginning.
const ANSWER: Duration = Duration::from_secs(30);
/// How long a registry that has too many requests is left alone, if it does not say.
const PAUSE: Duration = Duration::from_secs(5);
/// It is waited for no longer than this.
const PATIENCE: Duration = Duration::from_secs(60);
/// A token is no larger.
const MAX_TOKEN: u64 = 64 << 10;
/// The header that names a manifest.
const DIGEST: &str = "docker-content-digest";

/// The registry of an image.
pub(super) struct Registry {
    pub(super) reference: Reference,
    http: Client,
    login: Option<Login>,
    clock: Clock,
    /// Nobody listens on the way to this host itself.
    is_local: bool,
    /// How it is told who asks, once that is known.
    pass: Mutex<Option<Pass>>,
}

/// What is sent along.
#[derive(Clone)]
enum Pass {
    Nothing,
    Password(Login),
    Token(String),
}

impl Pass {
    fn with(&self, request: RequestBuilder) -> RequestBuilder {
        match self {
            Self::Nothing => request,
            Self::Password(login) => request.basic_auth(&login.username, Some(&login.password)),
            Self::Token(token) => request.bearer_auth(token),
        }
    }
}

/// What a server of tokens answers. Some give it one name, some the other, and some both.
#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

impl Registry {
    pub(super) fn new(reference: &Reference, login: Option<&Login>, clock: Clock) -> Result<Self> {
        let host = &reference.registry;
        let name = host.rsplit_once(':').map_or(host.as_str(), |(name, _)| name);
        let is_local = name == "localhost"
            || name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
        let http = Client::builder()
            .connect_timeout(Duration::from_secs(10))
            .read_timeout(Duration::from_secs(60))
            .user_agent(concat!("casemate/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| Error::Later(error.to_string()))?;
        let login = login.filter(|login| login.is_for(host)).cloned();
        Ok(Self { reference: reference.clone(), http, login, clock, is_local, pass: Mutex::default() })
    }

    pub(super) fn is_anonymous(&self) -> bool {
        self.login.is_none()
    }

    /// What the reference means now, if this login may read it. Asks without fetching, which is free where pulls are counted,
    /// unless the registry does not say it that way.
    pub(super) async fn digest(&self) -> Result<String> {
        let answer = self.get(Method::HEAD, &manifest(&self.reference)).await?;
        let Some(digest) = named(answer.headers()) else {
            return self.manifest(&self.reference).await.map(|bytes| digest_of(&bytes));
        };
        self.expect(&self.reference, digest).map(str::to_owned)
    }

    /// A manifest, or a list of them.
    pub(super) async fn manifest(&self, reference: &Reference) -> Result<Vec<u8>> {
        let answer = self.get(Method::GET, &manifest(reference)).await?;
        let said = named(answer.headers()).map(str::to_owned);
        let bytes = self.read(answer, MAX_DOCUMENT).await?;
        let digest = digest_of(&bytes);
        self.expect(reference, &digest)?;
        if let Some(said) = said.filter(|said| *said != digest) {
            let registry = &reference.registry;
            return Err(Error::Refused(format!("{registry} gave {digest} and calls it {said}")));
        }
        Ok(bytes)
    }

    /// The beginning of a blob.
    pub(super) async fn blob(&self, digest: &str) -> Result<Response> {
        self.get(Method::GET, &format!("blobs/{digest}")).await
    }

    /// Is it the manifest that was asked for?
    fn expect<'a>(&self, reference: &Reference, digest: &'a str) -> Result<&'a str> {
        match &reference.digest {
            Some(wanted) if wanted != digest => {
                Err(Error::Refused(format!("{} gave {digest} for {wanted}", self.reference.registry)))
            }
            _ => Ok(digest),
        }
    }

    /// Something of the repository.
    async fn get(&self, method: Method, what: &str) -> Result<Response> {
        let url = format!("{}/{}/{what}", self.base(), self.reference.repository);
        let accepted = ACCEPTED.join(", ");
        let request = || self.http.request(method.clone(), &url).header(ACCEPT, &accepted);
        let mut pass = self.pass(false).await?;
        let mut answer = self.ask(|| pass.with(request())).await?;
        if answer.status() == StatusCode::UNAUTHORIZED && matches!(pass, Pass::Token(_)) {
            // A token is good for some minutes, and a large image takes longer.
            pass = self.pass(true).await?;
            answer = self.ask(|| pass.with(request())).await?;
        }
        match answer.status() {
            status if status.is_success() => Ok(answer),
            status if status.is_client_error() => Err(Error::Refused(format!(
                "image `{}` is not imported on this node, and {} does not have it or does not give it to this login",
                self.reference, self.reference.registry
            ))),
            status => Err(self.silent(&status)),
        }
    }

    fn base(&self) -> String {
        let host = match self.reference.registry.as_str() {
            "docker.io" => "index.docker.io",
            host => host,
        };
        format!("{}://{host}/v2", if self.is_local { "http" } else { "https" })
    }

    /// How it wants to be told who asks.
    async fn pass(&self, anew: bool) -> Result<Pass> {
        let mut pass = self.pass.lock().await;
        if let Some(known) = pass.as_ref().filter(|_| !anew) {
            return Ok(known.clone());
        }
        let answer = self.once(self.http.get(format!("{}/", self.base()))).await?;
        let challenges = answer.headers().get_all(WWW_AUTHENTICATE).iter();
        let challenges: Vec<&str> = challenges.filter_map(|one| one.to_str().ok()).collect();
        let found = match (challenges.iter().find_map(|one| bearer(one)), &self.login) {
            (Some(challenge), _) => self.token(challenge).await?.map_or(Pass::Nothing, Pass::Token),
            (None, Some(login)) if !challenges.is_empty() => Pass::Password(login.clone()),
            (None, _) => Pass::Nothing,
        };
        Ok(pass.insert(found).clone())
    }

    /// A token, if it is given: without one the image may be had as well, or is refused when it is asked for.
    async fn token(&self, challenge: &str) -> Result<Option<String>> {
        let Some(realm) = parameter(challenge, "realm") else { return Ok(None) };
        if !self.is_local && !realm.starts_with("https://") {
            let registry = &self.reference.registry;
            return Err(Error::Refused(format!("{registry} wants its login sent unencrypted, to {realm}")));
        }
        let mut query = vec![("scope", format!("repository:{}:pull", self.reference.repository))];
        query.extend(parameter(challenge, "service").map(|service| ("service", service.to_owned())));
        let mut url = reqwest::Url::parse(realm).map_err(|error| self.silent(&error))?;
        url.query_pairs_mut().extend_pairs(query);
        let pass = self.login.clone().map_or(Pass::Nothing, Pass::Password);
        let answer = self.ask(|| pass.with(self.http.get(url.clone()))).await?;
        match answer.status() {
            status if status.is_success() => {}
            status if status.is_client_error() => return Ok(None),
            status => return Err(self.silent(&status)),
        }
        let token: Token = serde_json::from_slice(&self.read(answer, MAX_TOKEN).await?)
            .map_err(|error| self.silent(&format_args!("its token is not understood: {error}")))?;
        Ok(token.token.or(token.access_token))
    }

    /// Asks, and asks again where there is too much to do.
    async fn ask(&self, request: impl Fn() -> RequestBuilder) -> Result<Response> {
        let mut waited = Duration::ZERO;
        loop {
            let answer = self.once(request()).await?;
            if answer.status() != StatusCode::TOO_MANY_REQUESTS {
                return Ok(answer);
            }
            let seconds = answer.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
            let pause = seconds.and_then(|text| text.trim().parse().ok()).map_or(PAUSE, Duration::from_secs);
            waited = waited.saturating_add(pause.max(Duration::from_millis(100)));
            if waited > PATIENCE {
                return Err(Error::Later(format!(
                    "image `{}`: {} has too many requests, and asks to come back in {} s",
                    self.reference,
                    self.reference.registry,
                    pause.as_secs()
                )));
            }
            self.clock.sleep(pause).await;
        }
    }

    async fn once(&self, request: RequestBuilder) -> Result<Response> {
        let answer = self.clock.within(ANSWER, request.send()).await.ok_or_else(|| self.late())?;
        answer.map_err(|error| self.silent(&error))
    }

    /// A document, all of it.
    async fn read(&self, mut from: Response, limit: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let read = async {
            while let Some(more) = from.chunk().await.map_err(|error| self.silent(&error))? {
                if (bytes.len() + more.len()) as u64 > limit {
                    return Err(Error::Refused(format!(
                        "image `{}`: {} answers with a document of more than {limit} bytes",
                        self.reference, self.reference.registry
                    )));
                }
                bytes.extend_from_slice(&more);
            }
            Ok(())
        };
        self.clock.within(ANSWER, read).await.ok_or_else(|| self.late())??;
        Ok(bytes)
    }

    fn late(&self) -> Error {
        let (image, seconds) = (&self.reference, ANSWER.as_secs());
        Error::Later(format!("image `{image}`: {} does not answer within {seconds} s", image.registry))
    }

    fn silent(&self, why: &dyn std::fmt::Display) -> Error {
        let image = &self.reference;
        Error::Later(format!(
            "image `{image}` is not imported on this node, and {} does not answer: {why}",
            image.registry
        ))
    }
}

/// Where a manifest is, in its repository.
fn manifest(reference: &Reference) -> String {
    let name = reference.digest.as_deref().or(reference.tag.as_deref());
    format!("manifests/{}", name.unwrap_or("latest"))
}

/// What the registry calls what it gives.
fn named(headers: &HeaderMap) -> Option<&str> {
    headers.get(DIGEST)?.to_str().ok().filter(|digest| is_digest(digest))
}

/// The part of a challenge that asks for a token: RFC 6750, section 3.
fn bearer(challenge: &str) -> Option<&str> {
    let at = challenge.to_ascii_lowercase().find("bearer ")?;
    challenge.get(at..)
}

/// What a challenge says under this name.
fn parameter<'a>(challenge: &'a str, name: &str) -> Option<&'a str> {
    let at = challenge.to_ascii_lowercase().find(&format!("{name}=\""))?;
    challenge.get(at + name.len() + 2..)?.split('"').next()
}
