//! Images from a registry.

use std::future::Future;
use std::io::Write;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use oci_client::RegistryOperation;
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::errors::{DigestError, OciDistributionError, OciError, OciErrorCode};
use oci_client::secrets::RegistryAuth;

use super::manifest::{ACCEPTED, Descriptor, Document};
use super::reference::is_digest;
use super::store::{Blob, Giver, Origin, digest_of};
use super::{Error, Reference, Result, Using};
use crate::clock::Clock;

/// Who pulls, where a registry asks.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Login {
    /// Name of the account.
    pub username: String,
    /// Its password or token.
    pub password: String,
    /// The registry that it is for: docker.io if it is none.
    pub registry: Option<String>,
}

impl Login {
    fn for_registry(&self, registry: &str) -> RegistryAuth {
        let host = |text: &str| {
            let text = text.trim_start_matches("https://").trim_start_matches("http://");
            text.split('/').next().unwrap_or_default().replace("index.docker.io", "docker.io")
        };
        let mine =
            self.registry.as_deref().filter(|text| !text.is_empty()).map_or("docker.io".to_owned(), host);
        match mine == registry && !self.username.is_empty() {
            true => RegistryAuth::Basic(self.username.clone(), self.password.clone()),
            false => RegistryAuth::Anonymous,
        }
    }
}

impl Using {
    /// The manifest that `reference` means for the machines here, all of which is in the store afterwards. What was imported
    /// means what it meant then, for everybody. For anything else the registry is asked, each time, whether this login may read
    /// it and what it is now; what its repository gave before is not pulled again. If it does not answer, an image that it gave
    /// without a login is what it was last.
    ///
    /// # Errors
    /// `Refused` if there is no such image, or not for these machines, or not for this login; `Later` if the registry does not
    /// answer.
    pub async fn ensure(&mut self, reference: &Reference, login: Option<&Login>) -> Result<String> {
        let digest = self.find(reference, login).await?;
        self.store().touch(&digest);
        Ok(digest)
    }

    async fn find(&mut self, reference: &Reference, login: Option<&Login>) -> Result<String> {
        if let Some(digest) = self.imported(reference)? {
            return Ok(digest);
        }
        let turn = {
            let mut pulls = self.store().pulls.lock().expect("nothing panics while holding it");
            pulls.retain(|_, turn| Arc::strong_count(turn) > 1);
            Arc::clone(pulls.entry(reference.to_string()).or_default())
        };
        let _turn = turn.lock().await;
        let registry = Registry::new(reference, login, self.store().rules.clock.clone())?;
        let last = self.store().named(reference)?;
        match registry.digest().await {
            Ok(now) => self.ensure_digest(&registry, &now, last).await,
            Err(Error::Later(why)) => match last {
                Some((digest, Origin::Public)) if let Some(digest) = self.readable(reference, &digest)? => {
                    tracing::warn!(%reference, digest, why, "used as it was pulled last");
                    Ok(digest)
                }
                _ => Err(Error::Later(why)),
            },
            Err(error) => {
                if let Some((digest, Origin::Public)) = last
                    && registry.is_anonymous()
                {
                    self.store().name(reference, &digest, Origin::Login)?;
                }
                Err(error)
            }
        }
    }

    async fn ensure_digest(
        &mut self,
        registry: &Registry,
        now: &str,
        last: Option<(String, Origin)>,
    ) -> Result<String> {
        let reference = &registry.reference;
        let (digest, named) = match self.readable(reference, now)? {
            Some(digest) => (digest, now.to_owned()),
            None => self.pull(registry).await?,
        };
        let was_public = last.as_ref().is_some_and(|last| *last == (named.clone(), Origin::Public));
        let origin = match registry.is_anonymous() || was_public {
            true => Origin::Public,
            false => Origin::Login,
        };
        let meant = (named, origin);
        if last.as_ref() != Some(&meant) {
            self.store().name(reference, &meant.0, meant.1)?;
        }
        Ok(digest)
    }

    /// Of what was imported.
    fn imported(&mut self, reference: &Reference) -> Result<Option<String>> {
        let store = self.store().clone();
        let whole =
            |digest: &str| store.whole(reference, digest, |blob| store.given(blob, &[Giver::import()]));
        if let Some(digest) = &reference.digest {
            self.add(digest)?;
            // A damaged one is pulled, if its registry has it.
            return Ok(whole(digest).ok().flatten());
        }
        let named = store.named(reference)?;
        if let Some((digest, _)) = &named {
            self.add(digest)?;
        }
        match named {
            Some((digest, Origin::Imported)) => whole(&digest)?.map(Some).ok_or_else(|| {
                Error::Refused(format!("image `{reference}` is damaged on this node; import it again"))
            }),
            _ => Ok(None),
        }
    }

    /// The image `digest`, if all of it is here and for whoever may read its repository. A damaged one is pulled again.
    fn readable(&mut self, reference: &Reference, digest: &str) -> Result<Option<String>> {
        self.add(digest)?;
        let (store, givers) = (self.store(), [Giver::repository(reference), Giver::import()]);
        Ok(store.whole(reference, digest, |blob| store.given(blob, &givers)).ok().flatten())
    }

    /// The digest of the machines' manifest, and that of what the reference means.
    async fn pull(&mut self, registry: &Registry) -> Result<(String, String)> {
        let reference = &registry.reference;
        let (named, mut document) = self.pull_manifest(registry, reference).await?;
        let mut digest = named.clone();
        if document.manifests.is_some() {
            let ours = Reference {
                digest: Some(self.store().machines_digest(reference, &document)?),
                tag: None,
                ..reference.clone()
            };
            (digest, document) = self.pull_manifest(registry, &ours).await?;
        }
        let givers = [Giver::repository(reference), Giver::import()];
        // What is there by now must not go before the rest has come.
        self.add_all(document.parts().map(|part| part.digest.as_str()))?;
        let (store, what) = (self.store().clone(), format!("image `{reference}`"));
        let missing: Vec<_> = document.parts().filter(|part| !store.given(&part.digest, &givers)).collect();
        let room = missing.iter().fold(0_u64, |sum, part| sum.saturating_add(part.size));
        let made = tokio::task::spawn_blocking(move || store.make_room(room, &what)).await;
        made.map_err(|error| Error::Later(error.to_string()))??;
        for part in missing {
            self.pull_blob(registry, part).await?;
        }
        Ok((digest, named))
    }

    async fn pull_manifest(
        &mut self,
        registry: &Registry,
        reference: &Reference,
    ) -> Result<(String, Document)> {
        let image = registry.image(reference)?;
        let pull = || registry.client.pull_manifest_raw(&image, &registry.auth, &ACCEPTED);
        let (bytes, _) = registry.ask(pull).await?;
        let digest = digest_of(&bytes);
        if let Some(wanted) = reference.digest.as_ref().filter(|wanted| **wanted != digest) {
            return Err(Error::Refused(format!("{} gave {digest} for {wanted}", reference.registry)));
        }
        let document = Document::read(&bytes).map_err(Error::Refused)?;
        self.add(&digest)?;
        self.store().put(&Giver::repository(reference), bytes.as_ref(), None)?;
        Ok((digest, document))
    }

    async fn pull_blob(&self, registry: &Registry, part: &Descriptor) -> Result<()> {
        if !is_digest(&part.digest) {
            return Err(Error::Refused(format!("`{}` is no SHA-256 digest", part.digest)));
        }
        let image = registry.image(&registry.reference)?;
        let pull = || registry.client.pull_blob_stream(&image, part.digest.as_str());
        let mut stream = registry.ask(pull).await?;
        let (mut blob, mut size) = (Blob::begin(self.store())?, 0);
        while let Some(bytes) = stream.next().await {
            let bytes = bytes.map_err(|error| {
                let (image, blob, wanted) = (&registry.reference, &part.digest, part.size);
                match error.get_ref().is_some_and(|error| error.is::<DigestError>()) {
                    true if size == part.size => {
                        Error::Refused(format!("{} gave something else for blob {blob}", image.registry))
                    }
                    _ => Error::Later(format!(
                        "image `{image}`: blob {blob} ended after {size} of {wanted} bytes: {error}"
                    )),
                }
            })?;
            size += bytes.len() as u64;
            if size > part.size {
                return Err(Error::Refused(format!("blob {} has more bytes than it should", part.digest)));
            }
            blob.write_all(&bytes)?;
        }
        blob.finish(&Giver::repository(&registry.reference), Some(&part.digest)).map(drop)
    }
}

/// An answer to a small question takes no longer than this; of a large one, its beginning.
const ANSWER: Duration = Duration::from_secs(30);
/// How long a registry that has too many requests is left alone, if it does not say.
const PAUSE: Duration = Duration::from_secs(5);
/// It is waited for no longer than this.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the client of registries makes of an answer.
type Asked<T> = std::result::Result<T, OciDistributionError>;

/// What was asked of a registry that has too much to do.
fn too_many_requests(error: &OciDistributionError) -> Option<&str> {
    let too_many = |one: &OciError| matches!(one.code, OciErrorCode::Toomanyrequests);
    match error {
        OciDistributionError::RegistryError { envelope, url } if envelope.errors.iter().any(too_many) => {
            Some(url)
        }
        OciDistributionError::ServerError { code: 429, url, .. } => Some(url),
        _ => None,
    }
}

struct Registry {
    client: oci_client::Client,
    auth: RegistryAuth,
    reference: Reference,
    clock: Clock,
}

impl Registry {
    fn new(reference: &Reference, login: Option<&Login>, clock: Clock) -> Result<Self> {
        let host = &reference.registry;
        let name = host.rsplit_once(':').map_or(host.as_str(), |(name, _)| name);
        let local = name == "localhost"
            || name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
        let config = ClientConfig {
            // Nobody listens on the way to this host itself; docker does the same.
            protocol: if local { ClientProtocol::Http } else { ClientProtocol::Https },
            connect_timeout: Some(Duration::from_secs(10)),
            read_timeout: Some(Duration::from_secs(60)),
            user_agent: concat!("casemate/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        };
        let client = oci_client::Client::try_from(config).map_err(|error| Error::Later(error.to_string()))?;
        let auth = login.map_or(RegistryAuth::Anonymous, |login| login.for_registry(host));
        Ok(Self { client, auth, reference: reference.clone(), clock })
    }

    fn is_anonymous(&self) -> bool {
        matches!(self.auth, RegistryAuth::Anonymous)
    }

    /// What the reference means now, if this login may read it. Asks without fetching: that is free where pulls are counted.
    async fn digest(&self) -> Result<String> {
        let image = self.image(&self.reference)?;
        self.ask(|| async {
            match self.client.auth(&image, &self.auth, RegistryOperation::Pull).await {
                // Without the login it may be had as well, or is refused below.
                Ok(_) | Err(OciDistributionError::AuthenticationFailure(_)) => {}
                Err(error) => return Err(error),
            }
            self.client.fetch_manifest_digest(&image, &self.auth).await
        })
        .await
    }

    /// Asks, and asks again where the registry has too much to do.
    async fn ask<T, F: Future<Output = Asked<T>>>(&self, ask: impl Fn() -> F) -> Result<T> {
        let mut waited = Duration::ZERO;
        loop {
            let answer = self.clock.within(ANSWER, ask()).await;
            let answer = answer.ok_or_else(|| {
                let (image, seconds) = (&self.reference, ANSWER.as_secs());
                let registry = &image.registry;
                Error::Later(format!("image `{image}`: {registry} does not answer within {seconds} s"))
            })?;
            let error = match answer {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            let Some(url) = too_many_requests(&error) else { return Err(self.failed(&error)) };
            let pause = self.retry_after(url).await.unwrap_or(PAUSE);
            waited += pause.max(Duration::from_millis(100));
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

    /// How long the registry wants to be left alone, if it says so. The client keeps no header of an error, so it is asked for.
    async fn retry_after(&self, url: &str) -> Option<Duration> {
        let http = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().ok()?;
        let answer = self.clock.within(ANSWER, http.head(url).send()).await?.ok()?;
        let seconds = answer.headers().get(reqwest::header::RETRY_AFTER)?.to_str().ok()?;
        (answer.status() == 429).then_some(Duration::from_secs(seconds.trim().parse().ok()?))
    }

    fn image(&self, reference: &Reference) -> Result<oci_client::Reference> {
        reference.to_string().parse().map_err(|error| Error::Refused(format!("`{reference}`: {error}")))
    }

    fn failed(&self, error: &OciDistributionError) -> Error {
        let image = &self.reference;
        let missing = || {
            Error::Refused(format!(
                "image `{image}` is not imported on this node, and {} does not have it or does not give it to this login",
                image.registry
            ))
        };
        let later = || {
            Error::Later(format!(
                "image `{image}` is not imported on this node, and {} does not answer: {error}",
                image.registry
            ))
        };
        match error {
            OciDistributionError::DigestError(error) => {
                Error::Refused(format!("{} gave something else for image `{image}`: {error}", image.registry))
            }
            OciDistributionError::ImageManifestNotFoundError(_)
            | OciDistributionError::UnauthorizedError { .. }
            | OciDistributionError::AuthenticationFailure(_)
            | OciDistributionError::RegistryError { .. } => missing(),
            OciDistributionError::ServerError { code: 400..=499, .. } => missing(),
            OciDistributionError::RequestError(error)
                if error.status().is_some_and(|status| status.is_client_error()) =>
            {
                missing()
            }
            _ => later(),
        }
    }
}
