//! Everything that a configuration needs on this node, found or fetched while the machine may still run the one before.

use std::sync::Arc;
use std::time::Duration;

use casemate_types::compose::{ComposeDoc, ServiceSpec};
use casemate_types::guest::{self, ImageRef};
use tempfile::TempPath;

use super::record::Ready;
use super::slot::{Slot, lost, refuse};
use super::{Host, files};
use crate::cvm::spec::sha256;
use crate::driver::images::{self, ImageStore, Login, Reference, Using};
use crate::driver::{Error, Machine, Result};

/// How often a registry that does not answer is asked again.
const REGISTRY_TRIES: u32 = 2;
/// How long it is left alone meanwhile.
const REGISTRY_PAUSE: Duration = Duration::from_secs(1);

/// A configuration and its images, which have no place yet.
pub(super) struct Prepared {
    ready: Ready,
    archive: Option<TempPath>,
    /// Until the machine has them.
    _using: Using,
}

/// Prepares a configuration. Changes nothing of the machine.
///
/// # Errors
/// What is missing or not understood, by name.
pub(super) async fn prepare(host: &Arc<Host>, slot: &Slot, machine: &Machine) -> Result<Prepared> {
    let spec = &machine.spec;
    let os_image = host.os_images.get(&spec.image).map_err(Error::Refused)?;
    if sha256(spec.compose.text.as_bytes()) != *spec.compose.hash.as_bytes() {
        return refuse("the compose text does not have the hash that came with it");
    }
    let document =
        ComposeDoc::parse(&spec.compose.text).map_err(|error| Error::Refused(error.to_string()))?;
    let services = document.runnable().map_err(|error| Error::Refused(error.to_string()))?;
    if let (Some(sealed), Some(keys)) = (&spec.sealed_env, &host.keys)
        // What does not open at all is told by whoever has the key.
        && let Ok(vars) = keys.unseal(&machine.app_id, sealed)
    {
        guest::check_env(&vars, &document.allowed_envs()).map_err(Error::Refused)?;
    }
    let mut using = host.store.using();
    let images = images(host, slot, machine, &services, login(&document).as_ref(), &mut using).await?;
    let archive = ImageStore::archive_name(&images);
    let ready = Ready {
        machine: machine.clone(),
        os_image_hash: os_image.facts.os_image_hash,
        ports: services.iter().flat_map(|service| &service.ports).map(|port| port.published).collect(),
        archive,
        images,
    };
    let archive = match files::is_there(&slot.folder.join(&ready.archive)) {
        true => None,
        false => Some(archived(host, slot, &ready).await?),
    };
    Ok(Prepared { ready, archive, _using: using })
}

/// What the images of the services mean; they are in the store afterwards, or in the machine's folder already.
async fn images(
    host: &Host,
    slot: &Slot,
    machine: &Machine,
    services: &[ServiceSpec],
    login: Option<&Login>,
    using: &mut Using,
) -> Result<Vec<ImageRef>> {
    let mut images = Vec::<ImageRef>::new();
    // What this machine was given before needs no registry.
    let are_here = files::is_there(&slot.folder.join(ImageStore::archive_name(&machine.images)));
    for service in services {
        if images.iter().any(|known| known.reference == service.image) {
            continue;
        }
        let of_service = |why: String| format!("service `{}`: {why}", service.name);
        let reference: Reference = service.image.parse().map_err(|why| Error::Refused(of_service(why)))?;
        let settled = machine.images.iter().find(|settled| settled.reference == service.image);
        images.push(match settled {
            Some(settled) if are_here => settled.clone(),
            _ => {
                let digest = settled.map(|settled| settled.digest.clone()).or(reference.digest.clone());
                let reference = Reference { digest, ..reference };
                let digest = fetch(host, using, &reference, login)
                    .await
                    .map_err(of_service)
                    .map_err(Error::Refused)?;
                ImageRef { reference: service.image.clone(), digest }
            }
        });
    }
    Ok(images)
}

/// The digest of an image that is in the store afterwards. A registry that does not answer is asked again, and then it is an
/// answer as well: who wants the update can see why and try again, and the machine runs on.
async fn fetch(
    host: &Host,
    using: &mut Using,
    reference: &Reference,
    login: Option<&Login>,
) -> std::result::Result<String, String> {
    let mut tries = 0;
    loop {
        match using.ensure(reference, login).await {
            Ok(digest) => return Ok(digest),
            Err(images::Error::Later(_)) if tries < REGISTRY_TRIES => tries += 1,
            Err(error) => return Err(error.to_string()),
        }
        host.clock.sleep(REGISTRY_PAUSE).await;
    }
}

impl Prepared {
    /// Puts the images in their place. In the machine's turn.
    pub(super) fn keep(self, slot: &Slot) -> Result<Ready> {
        let place = slot.folder.join(&self.ready.archive);
        if let Some(archive) = self.archive.filter(|_| !files::is_there(&place)) {
            files::put(&archive, &place).map_err(lost)?;
        }
        Ok(self.ready)
    }
}

/// Makes the archive of a configuration's images anew, if it is not there.
pub(super) async fn restore(host: &Arc<Host>, slot: &Slot, ready: &Ready) -> Result<()> {
    let place = slot.folder.join(&ready.archive);
    if files::is_there(&place) {
        return Ok(());
    }
    files::put(&archived(host, slot, ready).await?, &place).map_err(lost)
}

async fn archived(host: &Arc<Host>, slot: &Slot, ready: &Ready) -> Result<TempPath> {
    let (store, images, folder) = (host.store.clone(), ready.images.clone(), slot.folder.clone());
    let written = tokio::task::spawn_blocking(move || -> images::Result<TempPath> {
        files::gate(&folder)?;
        let half =
            tempfile::Builder::new().prefix("images-").suffix(".half").tempfile_in(folder)?.into_temp_path();
        store.archive(&images, &half)?;
        Ok(half)
    });
    match written.await.map_err(|error| Error::Unreachable(error.to_string()))? {
        Ok(half) => Ok(half),
        Err(images::Error::Refused(why)) => Err(Error::Refused(why)),
        Err(images::Error::Later(why)) => Err(Error::Unreachable(why)),
    }
}

/// Who pulls, if the document says.
fn login(document: &ComposeDoc) -> Option<Login> {
    let config = document.get("docker_config")?.as_object()?;
    let text = |key: &str| config.get(key).and_then(serde_json::Value::as_str).map(str::to_owned);
    Some(Login {
        username: text("username")?,
        password: text("password").unwrap_or_default(),
        registry: text("registry"),
    })
}
