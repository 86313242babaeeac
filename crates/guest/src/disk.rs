//! Disks, found by their serial number.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::mount::{MountFlags, mount};

use crate::{Doing, Result, clock};

/// Where the machine's own disk appears.
pub(crate) const DATA: &str = "/data";

/// The device of the disk with this serial number.
pub(crate) fn by_serial(serial: &str) -> Result<PathBuf> {
    let look = || {
        fs::read_dir("/sys/block").ok()?.flatten().find_map(|entry| {
            let found = fs::read_to_string(entry.path().join("serial")).ok()?;
            let device = Path::new("/dev").join(entry.file_name());
            (found.trim() == serial && device.exists()).then_some(device)
        })
    };
    clock::wait_for(Duration::from_millis(20), Duration::from_secs(5), look)
        .ok_or_else(|| format!("the machine has no disk with serial number `{serial}`"))
}

/// Mounts the machine's own disk, which has a file system already.
pub(crate) fn mount_data(device: &Path) -> Result<()> {
    fs::create_dir_all(DATA).doing(format_args!("cannot make {DATA}"))?;
    mount(device, DATA, "ext4", MountFlags::NOATIME | MountFlags::NODEV, c"")
        .doing(format_args!("cannot mount the data disk {}", device.display()))
}
