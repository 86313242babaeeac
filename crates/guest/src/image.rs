//! Container images: each is a read-only disk, and nothing on it is used before all of it was verified.

use std::fs;
use std::path::{Path, PathBuf};

use casemate_rootfs::disk::FILES;
use casemate_rootfs::{Process, verify};
use casemate_types::guest::{ImageRef, image_serial};
use rustix::mount::{MountFlags, mount};

use crate::{Doing, Result, disk};

/// Where the disks are mounted.
const PLACE: &str = "/run/images";

/// An image that is what its digest says.
pub(crate) struct Image {
    pub(crate) process: Process,
    /// Where its files are.
    pub(crate) root: PathBuf,
}

impl Image {
    /// Mounts the disk of an image, and verifies it.
    ///
    /// # Errors
    /// There is no such disk, or it is not the image: says what differs.
    pub(crate) fn open(image: &ImageRef) -> Result<Self> {
        let ImageRef { reference, digest } = image;
        let opened = Self::mount(digest);
        opened.doing(format_args!("image `{reference}`, {digest}"))
    }

    fn mount(digest: &str) -> Result<Self> {
        let serial = image_serial(digest);
        if serial.is_empty() || !serial.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err("this is no digest".to_owned());
        }
        let device = disk::by_serial(serial)?;
        let place = Path::new(PLACE).join(serial);
        fs::create_dir_all(&place).doing(format_args!("cannot make {}", place.display()))?;
        // Containers see it through a mount of their own, in which programs run; here none does, and no device is opened.
        let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount(&device, &place, "squashfs", flags, c"")
            .doing(format_args!("cannot mount its disk {}", device.display()))?;
        let verified = verify::verify(&place, digest).map_err(|error| error.to_string())?;
        Ok(Self { process: verified.process, root: place.join(FILES) })
    }
}
