//! What the layers of a container image mean, for the node that unpacks them and for the guest that checks what it was given.
//!
//! A node reads an image's layers once into a [`Tree`] and [writes](disk::write) a disk from it; the guest mounts that disk and
//! [verifies](verify::verify) it before anything on it runs. Both apply layers with the same code, so they can only agree or
//! find a difference.
//!
//! The disk has the image's files, unpacked, in `root/`, and in `image/` what ties them to the image's digest: its manifest, its
//! configuration, and for each layer a [skeleton], which is the layer without the contents that are in `root/` anyway. Put
//! together again, a layer hashes to what the configuration names, the configuration to what the manifest names, and the manifest
//! to the digest.
//!
//! | module | holds |
//! | --- | --- |
//! | [`archive`] | the entries of a tar stream |
//! | [`tree`] | the files that layers make, one upon the other |
//! | [`document`] | manifest and configuration |
//! | [`skeleton`] | a layer without the contents that are elsewhere |
//! | [`disk`] | everything that belongs on a disk, as one tar stream |
//! | [`verify`] | is what is mounted the image? |

pub mod archive;
pub mod disk;
pub mod document;
pub mod skeleton;
pub mod tree;
pub mod verify;

#[cfg(test)]
mod tests;

pub use self::document::{Descriptor, Image, Process};
pub use self::tree::Tree;

/// Files, folders and links that an image may have, counted in all of its layers.
pub const MAX_ENTRIES: usize = 500_000;
/// Bytes of a path. Less than the kernel's 4096, so that it can still be named below where a disk is mounted.
pub const MAX_PATH: usize = 3_900;
/// Bytes of a name.
pub const MAX_NAME: usize = 255;
/// Bytes of all names and link targets of an image, counted in all of its layers.
pub const MAX_NAMES: usize = 64 * 1024 * 1024;
/// Layers of an image.
pub const MAX_LAYERS: usize = 512;
/// Bytes of a manifest or a configuration.
pub const MAX_DOCUMENT: u64 = 4 * 1024 * 1024;

/// Why an image, or a disk, is of no use.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not what it should be, and will not become so.
    #[error("{0}")]
    Wrong(String),
    /// It cannot be read.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// Outcome of looking at an image.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// It is not what it should be.
fn wrong<T>(why: impl Into<String>) -> Result<T> {
    Err(Error::Wrong(why.into()))
}

/// A path or a name, for people: of one that is long, the first and the last bytes.
fn show(path: &[u8]) -> String {
    const END: usize = 200;
    let text = |part: &[u8]| String::from_utf8_lossy(part).escape_debug().to_string();
    match (path.get(..END), path.len().checked_sub(END)) {
        (Some(first), Some(last)) if last > END => format!("{}…{}", text(first), text(&path[last..])),
        _ => text(path),
    }
}

/// Digest of these bytes, as images name it.
pub fn digest_of(bytes: &[u8]) -> String {
    use sha2::Digest;
    format!("sha256:{}", hex::encode(sha2::Sha256::digest(bytes)))
}

/// Hashes what is read through it.
pub struct Hashed<R> {
    from: R,
    hash: sha2::Sha256,
}

impl<R: std::io::Read> Hashed<R> {
    /// Hashes what is read from here on.
    pub fn new(from: R) -> Self {
        Self { from, hash: sha2::Digest::new() }
    }

    /// Digest of what was read, as images name it; and where it came from.
    pub fn finish(self) -> (String, R) {
        (format!("sha256:{}", hex::encode(sha2::Digest::finalize(self.hash))), self.from)
    }
}

impl<R: std::io::Read> std::io::Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.from.read(buffer)?;
        sha2::Digest::update(&mut self.hash, buffer.get(..read).unwrap_or_default());
        Ok(read)
    }
}
