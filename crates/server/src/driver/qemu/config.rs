//! What is decided about a node that runs QEMU.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Clock;
use crate::cvm::spec::{Booking, sha256};
use crate::driver::images::{self, ImageStore, Rules, UNPACKER};

/// A node that runs QEMU on this host.
#[derive(Clone, Debug)]
pub struct QemuConfig {
    /// Its unique name.
    pub name: String,
    /// Where its machines are kept; everything in it belongs to the node.
    pub folder: PathBuf,
    /// Container images, shared by the nodes of this host.
    pub images: PathBuf,
    /// OS images, a folder each. The first folder that has a name wins.
    pub os_images: Vec<PathBuf>,
    /// The hypervisor: a path, or a name to be found in `PATH`.
    pub program: PathBuf,
    /// How instructions are carried out.
    pub accel: Accel,
    /// Everything that can be booked; by default what the host has.
    pub capacity: Option<Booking>,
    /// Ports of the host that stand in for those that are taken. Below those that Linux gives to outgoing connections.
    pub ports: Range<u16>,
    /// How many machines may boot at once.
    pub boots_at_once: usize,
    /// A container image that no machine has, and that was not imported, is kept for so long after its last use.
    pub image_keep: Duration,
    /// Pauses of the node.
    pub pace: Pace,
}

/// How often the node looks, and how long it waits.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// A stage that takes longer goes on by itself, and whoever asks again hears how far it is.
    pub stage: Duration,
    /// Between two looks at a booting guest.
    pub booting: Duration,
    /// Between two looks at a guest that is up.
    pub up: Duration,
    /// A guest that did not answer for so long is said not to.
    pub silent: Duration,
    /// How long the hypervisor may take to answer after it was started.
    pub answers: Duration,
    /// How long a boot keeps others from beginning, at most.
    pub boot_turn: Duration,
    /// Before a machine that went down by itself is turned on again; each time twice as long.
    pub back_off: Duration,
    /// At most so long.
    pub back_off_max: Duration,
    /// A machine that was up for so long begins with the first pause again.
    pub steady: Duration,
    /// So many bytes of image disks an emulated machine has read and checked well before its boot counts as failed: on a busy
    /// host, about 30 MB in a second.
    pub emulated_images: u64,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            // Less than callers wait for an answer.
            stage: Duration::from_secs(10),
            booting: Duration::from_millis(200),
            up: Duration::from_secs(2),
            silent: Duration::from_secs(30),
            answers: Duration::from_secs(15),
            boot_turn: Duration::from_secs(60),
            back_off: Duration::from_secs(1),
            back_off_max: Duration::from_secs(60),
            steady: Duration::from_secs(600),
            emulated_images: 2 << 30,
        }
    }
}

/// Which accelerator is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Accel {
    /// KVM if a machine boots with it, else TCG.
    #[default]
    Auto,
    /// KVM, also if no machine boots with it.
    Kvm,
    /// TCG.
    Tcg,
}

/// Which accelerator is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    /// The processor's own virtualisation.
    Kvm,
    /// Emulation in software.
    Tcg,
}

impl Accelerator {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

impl FromStr for Accel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "kvm" => Ok(Self::Kvm),
            "tcg" => Ok(Self::Tcg),
            other => Err(format!("`{other}` is none of auto, kvm, tcg")),
        }
    }
}

impl QemuConfig {
    /// The node `qemu-1` of a data folder.
    pub fn in_data(data: &Path) -> Self {
        let name = "qemu-1";
        Self {
            folder: data.join("nodes").join(name),
            name: name.into(),
            images: data.join("images"),
            os_images: vec![data.join("os-images"), ".casemate-guest/images".into()],
            program: "qemu-system-x86_64".into(),
            accel: Accel::Auto,
            capacity: None,
            ports: 20_000..30_000,
            boots_at_once: cores(),
            image_keep: images::KEEP,
            pace: Pace::default(),
        }
    }

    /// The store of the container images of its machines.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn image_store(&self, clock: Clock) -> std::io::Result<ImageStore> {
        let node = self.folder.clone();
        let held = Arc::new(move || super::record::images_below(&node));
        Ok(ImageStore::open(self.images.clone())?.with_rules(Rules::new(clock, self.image_keep, held)))
    }

    /// Why no machine can run here; nothing if one can, as far as can be seen without trying.
    pub fn missing(&self) -> Option<String> {
        for program in [&self.program, Path::new(UNPACKER)] {
            if super::find(program).is_none() {
                return Some(format!("there is no {} on this host", program.display()));
            }
        }
        let none = super::OsImages::new(self.os_images.clone()).list().is_empty();
        none.then(|| "there is no OS image for real ones (`make guest` makes some)".to_owned())
    }

    /// Everything that can be booked on this host: eight virtual processors for each core, since most do nothing most of the
    /// time; the memory but 1 GB; and the whole file system of the node's folder, since disks take only what is written.
    pub(super) fn host_capacity(&self) -> std::io::Result<Booking> {
        let memory = std::fs::read_to_string("/proc/meminfo")?;
        let total_kb =
            memory.lines().find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next());
        let total_kb: u64 = total_kb.and_then(|number| number.parse().ok()).unwrap_or_default();
        let disk = rustix::fs::statvfs(&self.folder)?;
        let small = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        Ok(Booking {
            vcpu: small(cores() as u64 * 8),
            memory_mb: small((total_kb / 1024).saturating_sub(1024)),
            disk_gb: small(disk.f_blocks.saturating_mul(disk.f_frsize) >> 30),
            gpus: 0,
        })
    }

    /// What stands for the platform's id: the host's own, and the node's name.
    pub(super) fn device_id(&self) -> String {
        let host = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
        hex::encode(sha256(format!("{}/{}", host.trim(), self.name).as_bytes()))
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
