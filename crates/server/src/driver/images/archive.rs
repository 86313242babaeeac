//! The disk that brings a machine its images.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use casemate_types::guest::ImageRef;
use sha2::{Digest, Sha256};

use super::store::{damaged, digest_of};
use super::{ImageStore, Result};

impl ImageStore {
    /// Name of the archive of these images: the same images have the same.
    pub fn archive_name(images: &[ImageRef]) -> String {
        let digests: BTreeSet<&str> = images.iter().map(|image| image.digest.as_str()).collect();
        let text: Vec<&str> = digests.into_iter().collect();
        let digest = digest_of(text.join("\n").as_bytes());
        format!("images-{}.tar", &digest["sha256:".len()..][..16])
    }

    /// Writes an image layout with these images to `path`, as a tar archive. The same images give the same bytes.
    ///
    /// # Errors
    /// A blob is gone or damaged, or the archive cannot be written.
    pub fn archive(&self, images: &[ImageRef], path: &Path) -> Result<()> {
        let mut digests = BTreeSet::new();
        for image in images {
            digests.insert(image.digest.clone());
            digests.extend(self.document(&image.digest)?.parts().map(|part| part.digest.clone()));
        }
        let out = File::options().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        let mut tar = tar::Builder::new(out);
        let header = |size| {
            let mut header = tar::Header::new_ustar();
            header.set_size(size);
            header.set_mode(0o644);
            header
        };
        for digest in digests {
            let blob = self.open_blob(&digest)?;
            let size = blob.metadata()?.len();
            let mut checked = Checked { inner: blob, digest: Sha256::new() };
            tar.append_data(
                &mut header(size),
                format!("blobs/{}", digest.replacen(':', "/", 1)),
                &mut checked,
            )?;
            if format!("sha256:{}", hex::encode(checked.digest.finalize())) != digest {
                // It is of no use, and what is not there is brought anew.
                std::fs::remove_file(self.path(&digest)).ok();
                return Err(damaged(&digest));
            }
        }
        let layout = br#"{"imageLayoutVersion":"1.0.0"}"#;
        tar.append_data(&mut header(layout.len() as u64), "oci-layout", layout.as_slice())?;
        let mut out = tar.into_inner()?;
        out.flush()?;
        out.sync_all()?;
        Ok(())
    }
}

/// Hashes what is read.
struct Checked<R> {
    inner: R,
    digest: Sha256,
}

impl<R: Read> Read for Checked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.digest.update(buffer.get(..read).unwrap_or_default());
        Ok(read)
    }
}
