//! Makes what a machine boots, and container images to try it with.
//!
//! Everything is a function of its inputs: names are sorted, times are zero, owners are root. The same packages and the same
//! agent give the same bytes, and so the same hash, on every machine.
//!
//! | module | holds |
//! | --- | --- |
//! | [`os`] | an operating system image: kernel, initramfs, metadata, and the hash that identifies it |
//! | [`cpio`] | the archive that the kernel unpacks as its first root |
//! | [`elf`] | which libraries a program needs |
//! | [`modules`] | kernel modules in the order in which they can be loaded |
//! | [`web`] | a small HTTP server as a container image, in the OCI image layout |

pub mod cpio;
pub mod elf;
pub mod modules;
pub mod os;
pub mod web;

use std::path::Path;

/// What went wrong, for the person who builds.
pub type Result<T, E = String> = std::result::Result<T, E>;

pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
}

pub(crate) fn write(path: &Path, content: &[u8]) -> Result<()> {
    std::fs::write(path, content).map_err(|error| format!("cannot write {}: {error}", path.display()))
}

pub(crate) fn make_folder(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path).map_err(|error| format!("cannot make {}: {error}", path.display()))
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest;
    hex::encode(sha2::Sha256::digest(bytes))
}
