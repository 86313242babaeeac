//! Images from a registry.

use std::io::Write;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::errors::OciDistributionError;
use oci_client::secrets::RegistryAuth;

use super::manifest::{ACCEPTED, Descriptor, Document};
use super::reference::is_digest;
use super::store::{Blob, digest_of};
use super::{Error, ImageStore, Reference, Result};

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

impl ImageStore {
    /// The manifest that `reference` means for the machines here: out of the store if the image is there, else from its
    /// registry. What was pulled before an interruption need not be pulled again.
    ///
    /// # Errors
    /// `Refused` if there is no such image, or not for these machines, or not for this login; `Later` if the registry does not
    /// answer.
    pub async fn ensure(&self, reference: &Reference, login: Option<&Login>) -> Result<String> {
        if let Some(digest) = self.resolve(reference)? {
            return Ok(digest);
        }
        let turn = {
            let mut pulls = self.pulls.lock().expect("nothing panics while holding it");
            pulls.retain(|_, turn| Arc::strong_count(turn) > 1);
            Arc::clone(pulls.entry(reference.to_string()).or_default())
        };
        let _turn = turn.lock().await;
        match self.resolve(reference)? {
            Some(digest) => Ok(digest),
            None => self.pull(reference, login).await,
        }
    }

    async fn pull(&self, reference: &Reference, login: Option<&Login>) -> Result<String> {
        let registry = Registry::new(reference, login)?;
        let (mut digest, mut document) = self.pull_manifest(&registry, reference).await?;
        if document.manifests.is_some() {
            let ours = Reference {
                digest: Some(self.machines_digest(reference, &document)?),
                tag: None,
                ..reference.clone()
            };
            (digest, document) = self.pull_manifest(&registry, &ours).await?;
        }
        for part in document.parts() {
            if !self.has(&part.digest) {
                self.pull_blob(&registry, part).await?;
            }
        }
        if reference.tag.is_some() {
            self.name(reference, &digest)?;
        }
        Ok(digest)
    }

    async fn pull_manifest(&self, registry: &Registry, reference: &Reference) -> Result<(String, Document)> {
        let image = registry.image(reference)?;
        let pulled = registry.client.pull_manifest_raw(&image, &registry.auth, &ACCEPTED).await;
        let (bytes, _) = pulled.map_err(|error| registry.failed(&error))?;
        let digest = digest_of(&bytes);
        if let Some(wanted) = reference.digest.as_ref().filter(|wanted| **wanted != digest) {
            return Err(Error::Refused(format!("{} gave {digest} for {wanted}", reference.registry)));
        }
        let document = Document::read(&bytes).map_err(Error::Refused)?;
        self.put(&bytes)?;
        Ok((digest, document))
    }

    async fn pull_blob(&self, registry: &Registry, part: &Descriptor) -> Result<()> {
        if !is_digest(&part.digest) {
            return Err(Error::Refused(format!("`{}` is no SHA-256 digest", part.digest)));
        }
        let image = registry.image(&registry.reference)?;
        let stream = registry.client.pull_blob_stream(&image, part.digest.as_str()).await;
        let mut stream = stream.map_err(|error| registry.failed(&error))?;
        let (mut blob, mut size) = (Blob::begin(self)?, 0);
        while let Some(bytes) = stream.next().await {
            let bytes = bytes.map_err(|error| Error::Later(format!("{}: {error}", registry.reference)))?;
            size += bytes.len() as u64;
            if size > part.size {
                return Err(Error::Refused(format!("blob {} has more bytes than it should", part.digest)));
            }
            blob.write_all(&bytes)?;
        }
        blob.finish(Some(&part.digest)).map(drop)
    }
}

struct Registry {
    client: oci_client::Client,
    auth: RegistryAuth,
    reference: Reference,
}

impl Registry {
    fn new(reference: &Reference, login: Option<&Login>) -> Result<Self> {
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
        Ok(Self { client, auth, reference: reference.clone() })
    }

    fn image(&self, reference: &Reference) -> Result<oci_client::Reference> {
        reference.to_string().parse().map_err(|error| Error::Refused(format!("`{reference}`: {error}")))
    }

    fn failed(&self, error: &OciDistributionError) -> Error {
        let image = &self.reference;
        let missing = || {
            Error::Refused(format!(
                "image `{image}` is not on this node, and {} does not have it or does not give it to this login",
                image.registry
            ))
        };
        match error {
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
            other => Error::Later(format!(
                "image `{image}` is not on this node, and {} does not answer: {other}",
                image.registry
            )),
        }
    }
}
