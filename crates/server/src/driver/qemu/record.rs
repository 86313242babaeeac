//! What the node keeps of a machine: one JSON document in the machine's folder, replaced as a whole. It is the point at which
//! an update takes effect; every other file in the folder is named by it, or made from it at each start.

use std::collections::BTreeSet;
use std::io::{Error, ErrorKind, Read, Result};
use std::path::Path;

use casemate_types::guest::{ImageRef, image_serial};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::command::ImageDisk;
use super::process::Process;
use super::{disk, files, reserve};
use crate::driver::fence::Fence;
use crate::driver::{LastStop, Machine, Port};

/// Name of the file.
const FILE: &str = "machine.json";

/// A machine as the node keeps it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) fence: Fence,
    /// Put in place by the operation at work, not in force yet.
    pub(super) staged: Option<Ready>,
    /// The machine itself, once there is one.
    pub(super) held: Option<Held>,
}

/// A configuration with all that it needs on this node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Ready {
    pub(super) machine: Machine,
    /// SHA-256 of the OS image's digest list, in hex.
    pub(super) os_image_hash: String,
    /// Container images and what they were resolved to.
    pub(super) images: Vec<ImageRef>,
    /// Ports that its services publish inside.
    pub(super) ports: Vec<u16>,
}

impl Ready {
    /// The disk of each different image.
    pub(super) fn disks(&self) -> Vec<ImageDisk> {
        let disk = |image: &ImageRef| ImageDisk {
            serial: image_serial(&image.digest).to_owned(),
            file: image_file(&image.digest),
        };
        let mut disks: Vec<ImageDisk> = self.images.iter().map(disk).collect();
        disks.sort();
        disks.dedup();
        disks
    }
}

/// Name of the file with the image of this digest, in the folder of a machine that has it.
pub(super) fn image_file(digest: &str) -> String {
    format!("image-{}.squashfs", image_serial(digest))
}

/// Would a file of this name be a disk with an image?
pub(super) fn is_image_file(name: &str) -> bool {
    name.strip_prefix("image-").is_some_and(|rest| rest.ends_with(".squashfs"))
}

/// A machine that the node holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Held {
    /// What is in force.
    pub(super) now: Ready,
    /// What was before. Putting it back needs nothing from outside.
    pub(super) before: Option<Ready>,
    /// Where its ports are reached on this host. They stay the same as long as they can.
    pub(super) ports: Vec<Port>,
    /// Size of the file system on its data disk, in GB. Never shrinks.
    pub(super) disk_gb: u32,
    /// Should it be on, as far as the node knows? One that should and is not went down by itself.
    pub(super) meant_on: bool,
    /// How often it was turned on.
    pub(super) boot_count: u64,
    /// How often it was turned on again because it went down by itself, since it last stayed up.
    pub(super) restarts: u32,
    /// It is on, as far as was seen.
    pub(super) on: Option<On>,
    /// Since when its process is stopped by a signal, as far as was seen.
    #[serde(default)]
    pub(super) frozen_since: Option<Timestamp>,
    pub(super) started_at: Option<Timestamp>,
    /// When the guest of the last boot was up.
    pub(super) done_at: Option<Timestamp>,
    pub(super) stopped_at: Option<Timestamp>,
    pub(super) last_stop: Option<LastStop>,
    pub(super) last_downtime_ms: Option<u64>,
    /// What the guest last reported of its environment.
    pub(super) env_keys: Vec<String>,
}

/// A machine that is on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct On {
    /// None while the process is being made: who reads that after a crash looks for the process in the folder.
    pub(super) process: Option<Process>,
    /// How it is being brought down, if it is.
    pub(super) going_down: Option<LastStop>,
}

/// The manifests of the images that the machines of a node have staged or run, or ran before.
///
/// # Errors
/// The node's folder cannot be read. A machine whose record cannot is left out: the disks that it boots from are its own.
pub(super) fn images_below(node: &Path) -> Result<BTreeSet<String>> {
    let mut images = BTreeSet::new();
    let entries = match std::fs::read_dir(node) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(images),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_name().to_str().is_none_or(|name| name.parse::<uuid::Uuid>().is_err()) {
            continue;
        }
        match Record::read(&entry.path()) {
            Ok(Some(record)) => images.extend(record.images().map(|image| image.digest.clone())),
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(%error, folder = %entry.path().display(), "a machine's images are not known")
            }
        }
    }
    Ok(images)
}

impl Ready {
    /// Is it what is wanted? Who does not say what the images mean takes them as they are here.
    pub(super) fn meets(&self, wanted: &Machine) -> bool {
        let same_images = wanted.images.is_empty() || wanted.images == self.images;
        same_images && self.machine == Machine { images: self.machine.images.clone(), ..wanted.clone() }
    }
}

impl Held {
    /// A machine that was never on.
    pub(super) fn new(now: Ready) -> Self {
        Self {
            disk_gb: 0,
            now,
            before: None,
            ports: Vec::new(),
            meant_on: false,
            boot_count: 0,
            restarts: 0,
            on: None,
            frozen_since: None,
            started_at: None,
            done_at: None,
            stopped_at: None,
            last_stop: None,
            last_downtime_ms: None,
            env_keys: Vec::new(),
        }
    }

    /// It has gone down.
    pub(super) fn went_down(&mut self, now: Timestamp) {
        let Some(on) = self.on.take() else { return };
        let how = on.going_down.unwrap_or(LastStop::Crashed);
        self.stopped_at = Some(now);
        self.last_stop = Some(how);
        self.frozen_since = None;
        self.meant_on &= how == LastStop::Crashed;
    }

    /// The guest of this boot is up.
    pub(super) fn came_up(&mut self, now: Timestamp) {
        if self.done_at.is_none() {
            self.done_at = Some(now);
            let down = self.stopped_at.map(|down| now.as_millisecond() - down.as_millisecond());
            self.last_downtime_ms = down.and_then(|millis| u64::try_from(millis).ok());
        }
    }
}

impl Record {
    /// What is in this folder; nothing if nobody was there.
    ///
    /// # Errors
    /// Somebody was, and what is left does not say what it is.
    pub(super) fn read(folder: &Path) -> Result<Option<Self>> {
        match std::fs::symlink_metadata(folder) {
            Ok(meta) if meta.is_dir() => {}
            Ok(_) => return Err(Error::new(ErrorKind::NotADirectory, "its place is no folder")),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        }
        let mut bytes = Vec::new();
        match files::read(&folder.join(FILE)) {
            Ok(mut file) => file.read_to_end(&mut bytes)?,
            // It is the first file that is made here.
            Err(error) if error.kind() == ErrorKind::NotFound && !disk::is_there(folder) => return Ok(None),
            Err(error) => return Err(error),
        };
        serde_json::from_slice(&bytes).map(Some).map_err(|error| Error::new(ErrorKind::InvalidData, error))
    }

    /// Puts it into this folder.
    pub(super) fn save(&self, folder: &Path) -> Result<()> {
        files::make_private(folder)?;
        let bytes = serde_json::to_vec(self)?;
        match files::replace(folder, FILE, &bytes) {
            Err(error) if error.kind() == ErrorKind::StorageFull => reserve::spend(folder, FILE, &bytes),
            Ok(()) => {
                reserve::keep(folder, bytes.len());
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// The files of the folder that hold container images and are of use.
    pub(super) fn image_files(&self) -> BTreeSet<String> {
        self.all().flat_map(Ready::disks).map(|disk| disk.file).collect()
    }

    /// The images of all that is of use.
    fn images(&self) -> impl Iterator<Item = &ImageRef> {
        self.all().flat_map(|ready| &ready.images)
    }

    fn all(&self) -> impl Iterator<Item = &Ready> {
        let held = self.held.iter().flat_map(|held| std::iter::once(&held.now).chain(&held.before));
        held.chain(&self.staged)
    }
}
