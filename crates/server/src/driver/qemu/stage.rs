//! Everything that a configuration needs on this node, found or fetched while the machine may still run the one before.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use casemate_types::compose::{ComposeDoc, ServiceSpec};
use casemate_types::guest::{self, ImageRef};
use tempfile::TempPath;

use super::command::ImageDisk;
use super::config::Accelerator;
use super::record::{Ready, image_file};
use super::slot::{Slot, lost, refuse};
use super::staging::Progress;
use super::{Host, accel, files};
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
    /// Until it is kept that the machine has them.
    using: Using,
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
    let (images, here) = images(host, slot, machine, &services, login.as_ref(), &mut using, progress).await?;
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
    let disks = missing(host, slot, &ready, &here, progress).await?;
    let prepared = Prepared { ready, disks, using };
    if accel::decide(host).await == Accelerator::Tcg {
        prepared.is_verified_in_time(slot, host.config.pace.emulated_images)?;
    }
    Ok(prepared)
}

/// What the images of the services mean; they are in the store afterwards, or in the machine's folder already. And the disks that
/// were found whole there.
async fn images(
    host: &Host,
    slot: &Slot,
    machine: &Machine,
    services: &[ServiceSpec],
    login: Option<&Login>,
    using: &mut Using,
    progress: &Progress,
) -> Result<(Vec<ImageRef>, BTreeSet<String>)> {
    let (mut images, mut here) = (Vec::<ImageRef>::new(), BTreeSet::new());
    for service in services {
        if images.iter().any(|known| known.reference == service.image) {
            continue;
        }
        let of_service = |why: String| format!("service `{}`: {why}", service.name);
        let reference: Reference = service.image.parse().map_err(|why| Error::Refused(of_service(why)))?;
        let settled = machine.images.iter().find(|settled| settled.reference == service.image);
        images.push(match settled {
            Some(settled) if is_here(host, slot, settled, &mut here).await => settled.clone(),
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
    Ok((images, here))
}

/// Was this machine given the image before, and can it have it now? That needs no registry, unless the disk is damaged and the
/// blobs as well.
async fn is_here(host: &Host, slot: &Slot, image: &ImageRef, here: &mut BTreeSet<String>) -> bool {
    let file = image_file(&image.digest);
    let place = slot.folder.join(&file);
    if !files::is_there(&place) {
        return false;
    }
    if images::is_whole(&place).await {
        here.insert(file);
        return true;
    }
    host.store.disk(image).await.is_ok()
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
    /// Puts the images in their place. In the machine's turn. The store keeps them as long as the second of these is there: until
    /// the machine's record names them.
    pub(super) async fn keep(self, slot: &Slot) -> Result<(Ready, Using)> {
        put(slot, self.disks).await?;
        Ok((self.ready, self.using))
    }

    /// A guest reads all of its images before it is up, which would be found out when the machine of before is gone.
    fn is_verified_in_time(&self, slot: &Slot, limit: u64) -> Result<()> {
        let fresh = |file: &String| self.disks.iter().find(|(name, _)| name == file).map(|(_, disk)| disk);
        let size = |ImageDisk { file, .. }: ImageDisk| {
            let meta =
                fresh(&file).map_or_else(|| slot.folder.join(&file).metadata(), |disk| disk.metadata());
            meta.map_or(0, |meta| meta.len())
        };
        let bytes: u64 = self.ready.disks().into_iter().map(size).sum();
        if bytes <= limit {
            return Ok(());
        }
        refuse(format!(
            "the disks of its images have {bytes} bytes, and without KVM a machine verifies no more than {limit} in the time that \
             it has to boot; use a host with KVM, or smaller images"
        ))
    }
}

/// Puts the disks of a configuration's images in their place again, if one is gone or damaged. In the machine's turn.
pub(super) async fn restore(host: &Host, slot: &Slot, ready: &Ready) -> Result<()> {
    put(slot, missing(host, slot, ready, &BTreeSet::new(), &Progress::default()).await?).await
}

/// Puts disks in their place, whatever is there. In the machine's turn.
pub(super) async fn put(slot: &Slot, disks: Vec<(String, TempPath)>) -> Result<()> {
    for (name, disk) in disks {
        let place = slot.folder.join(name);
        let shared = tokio::task::spawn_blocking(move || files::share(&disk, &place)).await;
        shared.map_err(|error| Error::Unreachable(error.to_string()))?.map_err(lost)?;
    }
    Ok(())
}

/// The disks that are not in the machine's folder yet, or not as they were made, but for those that are known to be `here`.
pub(super) async fn missing(
    host: &Host,
    slot: &Slot,
    ready: &Ready,
    here: &BTreeSet<String>,
    progress: &Progress,
) -> Result<Vec<(String, TempPath)>> {
    let mut disks = Vec::new();
    for ImageDisk { serial, file } in ready.disks() {
        let of_disk = |image: &&ImageRef| guest::image_serial(&image.digest) == serial;
        let Some(image) = ready.images.iter().find(of_disk) else { continue };
        let place = slot.folder.join(&file);
        if here.contains(&file) || (files::is_there(&place) && images::is_whole(&place).await) {
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
