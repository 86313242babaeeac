//! Images from a registry.

use std::io::Write;
use std::sync::Arc;

use super::manifest::{Descriptor, Document};
use super::reference::is_digest;
use super::registry::Registry;
use super::store::{Blob, Giver, Origin, digest_of};
use super::{Error, Reference, Result, Using};

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
    /// Is it for the registry on this host?
    pub(super) fn is_for(&self, registry: &str) -> bool {
        let host = |text: &str| {
            let text = text.trim_start_matches("https://").trim_start_matches("http://");
            text.split('/').next().unwrap_or_default().replace("index.docker.io", "docker.io")
        };
        let mine =
            self.registry.as_deref().filter(|text| !text.is_empty()).map_or("docker.io".to_owned(), host);
        mine == registry && !self.username.is_empty()
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
        let bytes = registry.manifest(reference).await?;
        let digest = digest_of(&bytes);
        let document = Document::read(&bytes).map_err(Error::Refused)?;
        self.add(&digest)?;
        self.store().put(&Giver::repository(reference), bytes.as_slice(), None)?;
        Ok((digest, document))
    }

    async fn pull_blob(&self, registry: &Registry, part: &Descriptor) -> Result<()> {
        if !is_digest(&part.digest) {
            return Err(Error::Refused(format!("`{}` is no SHA-256 digest", part.digest)));
        }
        let (image, wanted) = (&registry.reference, part.size);
        let mut answer = registry.blob(&part.digest).await?;
        let (mut blob, mut size) = (Blob::begin(self.store())?, 0);
        let ended = |size: u64, why: &str| {
            Error::Later(format!(
                "image `{image}`: blob {} ended after {size} of {wanted} bytes{why}",
                part.digest
            ))
        };
        while let Some(bytes) = answer.chunk().await.map_err(|error| ended(size, &format!(": {error}")))? {
            size += bytes.len() as u64;
            if size > wanted {
                return Err(Error::Refused(format!("blob {} has more bytes than it should", part.digest)));
            }
            blob.write_all(&bytes)?;
        }
        if size < wanted {
            return Err(ended(size, ""));
        }
        if blob.digest() != part.digest {
            return Err(Error::Refused(format!(
                "{} gave something else for blob {}",
                image.registry, part.digest
            )));
        }
        blob.finish(&Giver::repository(image), Some(&part.digest)).map(drop)
    }
}
