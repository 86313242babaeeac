//! The store itself.

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use sha2::{Digest, Sha256};

use super::manifest::{Descriptor, Document, MANIFEST, MAX_DOCUMENT, REF_NAME};
use super::reference::{Reference, is_digest};
use super::{Error, Result};

/// A store of container images in a folder. Clones share it; so may other processes.
#[derive(Clone)]
pub struct ImageStore {
    pub(super) folder: PathBuf,
    /// One pull of a reference at a time: whoever waits finds it there.
    pub(super) pulls: Arc<Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>>,
}

impl ImageStore {
    /// Opens the store in `folder`, and makes it if there is none.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn open(folder: PathBuf) -> std::io::Result<Self> {
        let mut make = std::fs::DirBuilder::new();
        make.recursive(true).mode(0o700);
        make.create(folder.join("blobs/sha256"))?;
        make.create(folder.join("tmp"))?;
        let layout = folder.join("oci-layout");
        if !layout.exists() {
            let mut out =
                OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(layout)?;
            out.write_all(br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        }
        Ok(Self { folder, pulls: Arc::default() })
    }

    /// What is in the store under a name, in the one spelling that names have here, with the digests.
    ///
    /// # Errors
    /// The list cannot be read.
    pub fn list(&self) -> Result<Vec<(String, String)>> {
        let named = |one: Descriptor| Some((one.annotations.get(REF_NAME)?.clone(), one.digest));
        Ok(self.index()?.into_iter().filter_map(named).collect())
    }

    /// Digest of the manifest that `reference` means for the machines here, if all of the image is in the store.
    ///
    /// # Errors
    /// The store cannot be read, or the image is not for these machines.
    pub fn resolve(&self, reference: &Reference) -> Result<Option<String>> {
        let digest = match &reference.digest {
            Some(digest) => Some(digest.clone()),
            None => {
                let name = reference.to_string();
                self.list()?.into_iter().find(|(known, _)| *known == name).map(|(_, digest)| digest)
            }
        };
        let Some(mut digest) = digest.filter(|digest| self.has(digest)) else { return Ok(None) };
        let mut document = self.document(&digest)?;
        if document.manifests.is_some() {
            digest = self.machines_digest(reference, &document)?;
            if !self.has(&digest) {
                return Ok(None);
            }
            document = self.document(&digest)?;
        }
        Ok(document.parts().all(|part| self.has(&part.digest)).then_some(digest))
    }

    /// Out of a list of manifests, that for the machines here.
    pub(super) fn machines_digest(&self, reference: &Reference, index: &Document) -> Result<String> {
        let ours = index.for_machines().map(|one| one.digest.clone()).filter(|digest| is_digest(digest));
        ours.ok_or_else(|| Error::Refused(format!("image `{reference}` has no version for linux/amd64")))
    }

    /// From now on, `reference` means this manifest.
    pub(super) fn name(&self, reference: &Reference, digest: &str) -> Result<()> {
        let mut lock = OpenOptions::new();
        let lock =
            lock.create(true).truncate(false).write(true).mode(0o600).open(self.folder.join("lock"))?;
        fs4::FileExt::lock(&lock)?;
        let name = Reference { digest: None, ..reference.clone() }.to_string();
        let mut index = self.index()?;
        index.retain(|one| one.annotations.get(REF_NAME) != Some(&name));
        index.push(Descriptor {
            media_type: MANIFEST.to_owned(),
            digest: digest.to_owned(),
            size: std::fs::metadata(self.path(digest))?.len(),
            platform: None,
            annotations: BTreeMap::from([(REF_NAME.to_owned(), name)]),
        });
        let document = Document {
            schema_version: 2,
            media_type: None,
            config: None,
            layers: vec![],
            manifests: Some(index),
        };
        let text = serde_json::to_vec(&document).expect("text as keys, and nothing that can fail");
        let mut half = Blob::begin(self)?;
        half.write_all(&text)?;
        half.finish_as(&self.folder.join("index.json"))?;
        Ok(())
    }

    fn index(&self) -> Result<Vec<Descriptor>> {
        match std::fs::read(self.folder.join("index.json")) {
            Ok(bytes) => Ok(Document::read(&bytes).map_err(Error::Refused)?.manifests.unwrap_or_default()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        }
    }

    /// Is this blob here?
    pub(super) fn has(&self, digest: &str) -> bool {
        is_digest(digest) && self.path(digest).is_file()
    }

    /// Where a blob lies or would lie. Only for digests that are some.
    pub(super) fn path(&self, digest: &str) -> PathBuf {
        self.folder.join("blobs").join(digest.replacen(':', "/", 1))
    }

    /// A document in the store.
    pub(super) fn document(&self, digest: &str) -> Result<Document> {
        let mut bytes = Vec::new();
        File::open(self.path(digest))?.take(MAX_DOCUMENT).read_to_end(&mut bytes)?;
        if digest_of(&bytes) != digest {
            return Err(damaged(digest));
        }
        Document::read(&bytes).map_err(Error::Refused)
    }

    /// Puts bytes into the store; their digest.
    pub(super) fn put(&self, bytes: &[u8]) -> Result<String> {
        let mut blob = Blob::begin(self)?;
        blob.write_all(bytes)?;
        blob.finish(None)
    }

    /// Puts what a file has into the store, if it hashes to `expected` when that is given; its digest and size.
    pub(super) fn put_file(&self, mut from: impl Read, expected: Option<&str>) -> Result<(String, u64)> {
        let mut blob = Blob::begin(self)?;
        let size = std::io::copy(&mut from, &mut blob)?;
        Ok((blob.finish(expected)?, size))
    }
}

pub(super) fn digest_of(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

pub(super) fn damaged(digest: &str) -> Error {
    Error::Refused(format!("blob {digest} of the image store is damaged; import or pull the image again"))
}

/// A blob on its way into the store. Dropped before it is finished, it leaves nothing.
pub(super) struct Blob {
    store: ImageStore,
    file: File,
    half: tempfile::TempPath,
    digest: Sha256,
}

impl Blob {
    pub(super) fn begin(store: &ImageStore) -> Result<Self> {
        let half = tempfile::NamedTempFile::new_in(store.folder.join("tmp"))?;
        let (file, half) = half.into_parts();
        Ok(Self { store: store.clone(), file, half, digest: Sha256::new() })
    }

    /// Gives it its name, which is `expected` if that is given.
    pub(super) fn finish(self, expected: Option<&str>) -> Result<String> {
        let digest = format!("sha256:{}", hex::encode(self.digest.clone().finalize()));
        if let Some(expected) = expected.filter(|expected| *expected != digest) {
            return Err(Error::Refused(format!("a blob hashes to {digest}, and {expected} was expected")));
        }
        let place = self.store.path(&digest);
        self.finish_as(&place)?;
        Ok(digest)
    }

    fn finish_as(self, place: &Path) -> Result<()> {
        self.file.sync_all()?;
        self.half.persist(place).map_err(|error| error.error)?;
        if let Some(folder) = place.parent() {
            File::open(folder)?.sync_all()?;
        }
        Ok(())
    }
}

impl Write for Blob {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.digest.update(bytes.get(..written).unwrap_or_default());
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}
