//! Everything that a configuration needs on this node, found or fetched while the machine may still run the one before.

use std::sync::Arc;
use std::time::Duration;

use casemate_types::compose::{ComposeDoc, ServiceSpec};
use casemate_types::guest::{self, ImageRef};
use tempfile::TempPath;

use super::command::ImageDisk;
use super::record::{Ready, image_file};
use super::slot::{Slot, lost, refuse};
use super::staging::Progress;
use super::{Host, files};
use crate::cvm::spec::sha256;
use crate::driver::images::{self, Login, Reference, Using};
use crate::driver::{Error, Machine, Result};

/// How often a registry that does not answer is asked again.
const REGISTRY_TRIES: u32 = 2;
/// How long it is left alone meanwhile.
const REGISTRY_PAUSE: Duration = Duration::from_secs(1);

/// A configuration and its images, which have no place yet.
pub(super) struct Prepared {
    ready: Ready,
    /// The disks that the machine does not have yet, and the name that each is to have.
    disks: Vec<(String, TempPath)>,
    /// Until the machine has them.
    _using: Using,
}

/// Prepares a configuration. Changes nothing of the machine.
///
/// # Errors
/// What is missing or not understood, by name.
pub(super) async fn prepare(
    host: &Arc<Host>,
    slot: &Slot,
    machine: &Machine,
    progress: &Progress,
) -> Result<Prepared> {
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
    let login = login(&document);
    let images = images(host, slot, machine, &services, login.as_ref(), &mut using, progress).await?;
    let ready = Ready {
        machine: machine.clone(),
        os_image_hash: os_image.facts.os_image_hash,
        ports: services.iter().flat_map(|service| &service.ports).map(|port| port.published).collect(),
        images,
    };
    let count = ready.disks().len();
    if count > guest::MAX_IMAGES {
        return refuse(format!(
            "its services have {count} different images, and a machine has room for {}",
            guest::MAX_IMAGES
        ));
    }
    let disks = disks(host, slot, &ready, progress).await?;
    Ok(Prepared { ready, disks, _using: using })
}

/// What the images of the services mean; they are in the store afterwards, or in the machine's folder already.
async fn images(
    host: &Host,
    slot: &Slot,
    machine: &Machine,
    services: &[ServiceSpec],
    login: Option<&Login>,
    using: &mut Using,
    progress: &Progress,
) -> Result<Vec<ImageRef>> {
    let mut images = Vec::<ImageRef>::new();
    // What this machine was given before needs no registry.
    let is_here = |image: &ImageRef| files::is_there(&slot.folder.join(image_file(&image.digest)));
    for service in services {
        if images.iter().any(|known| known.reference == service.image) {
            continue;
        }
        let of_service = |why: String| format!("service `{}`: {why}", service.name);
        let reference: Reference = service.image.parse().map_err(|why| Error::Refused(of_service(why)))?;
        let settled = machine.images.iter().find(|settled| settled.reference == service.image);
        images.push(match settled {
            Some(settled) if is_here(settled) => settled.clone(),
            _ => {
                let digest = settled.map(|settled| settled.digest.clone()).or(reference.digest.clone());
                let reference = Reference { digest, ..reference };
                progress.is(format!("pulls image `{}`", service.image));
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
    pub(super) async fn keep(self, slot: &Slot) -> Result<Ready> {
        put(slot, self.disks).await?;
        Ok(self.ready)
    }
}

/// Puts the disks of a configuration's images in their place again, if one is gone.
pub(super) async fn restore(host: &Arc<Host>, slot: &Slot, ready: &Ready) -> Result<()> {
    put(slot, disks(host, slot, ready, &Progress::default()).await?).await
}

async fn put(slot: &Slot, disks: Vec<(String, TempPath)>) -> Result<()> {
    for (name, disk) in disks {
        let place = slot.folder.join(name);
        if !files::is_there(&place) {
            let shared = tokio::task::spawn_blocking(move || files::share(&disk, &place)).await;
            shared.map_err(|error| Error::Unreachable(error.to_string()))?.map_err(lost)?;
        }
    }
    Ok(())
}

/// The disks that are not in the machine's folder yet.
async fn disks(
    host: &Arc<Host>,
    slot: &Slot,
    ready: &Ready,
    progress: &Progress,
) -> Result<Vec<(String, TempPath)>> {
    let mut disks = Vec::new();
    for ImageDisk { serial, file } in ready.disks() {
        let of_disk = |image: &&ImageRef| guest::image_serial(&image.digest) == serial;
        let Some(image) = ready.images.iter().find(of_disk) else { continue };
        if files::is_there(&slot.folder.join(&file)) {
            continue;
        }
        progress.is(format!("unpacks image `{}`", image.reference));
        match host.store.disk(image).await {
            Ok(disk) => disks.push((file, disk)),
            Err(images::Error::Refused(why)) => return Err(Error::Refused(why)),
            Err(images::Error::Later(why)) => return Err(Error::Unreachable(why)),
        }
    }
    Ok(disks)
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
