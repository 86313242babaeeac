//! The store itself.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::manifest::{Descriptor, Document, MANIFEST, MAX_DOCUMENT, REF_NAME};
use super::reference::{Reference, is_digest};
use super::{Error, Result};
use crate::clock::Clock;

/// Key of how a name came into the list: see [`Origin`].
const ORIGIN: &str = "dev.casemate.origin";

/// How a name came to mean what it means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// The operator brought it: it is for everybody, and no registry is asked.
    Imported,
    /// Its registry said so to anybody.
    Public,
    /// Its registry said so to a login.
    Login,
}

impl Origin {
    fn key(self) -> &'static str {
        match self {
            Self::Imported => "imported",
            Self::Public => "public",
            Self::Login => "login",
        }
    }

    pub(super) fn of(named: &Descriptor) -> Self {
        let origin = named.annotations.get(ORIGIN).map(String::as_str);
        [Self::Imported, Self::Public]
            .into_iter()
            .find(|one| origin == Some(one.key()))
            .unwrap_or(Self::Login)
    }
}

/// Who gave a blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Giver(String);

impl Giver {
    /// The operator.
    pub(super) fn import() -> Self {
        Self("import".to_owned())
    }

    /// A repository of a registry: whoever may read one of its manifests may read what that names, and no other repository's
    /// blobs, however well their digests are known.
    pub(super) fn repository(of: &Reference) -> Self {
        Self(digest_of(format!("{}/{}", of.registry, of.repository).as_bytes()).replacen(':', "-", 1))
    }
}

/// What is kept, besides what was imported.
#[derive(Clone)]
pub struct Rules {
    /// By which time goes.
    pub clock: Clock,
    /// An image that was not used for so long is kept no longer.
    pub keep: Duration,
    /// The manifests of images that machines have staged or run.
    pub held: Held,
    #[cfg(test)]
    pub(super) deletions: Arc<Mutex<usize>>,
    /// How large the disk of the blobs is.
    #[cfg(test)]
    pub(super) size: Arc<Mutex<Option<u64>>>,
}

/// Tells which manifests machines need.
pub type Held = Arc<dyn Fn() -> std::io::Result<BTreeSet<String>> + Send + Sync>;

/// How long an image is kept that nobody uses, unless somebody says.
pub const KEEP: Duration = Duration::from_hours(7 * 24);

impl Rules {
    /// With these.
    pub fn new(clock: Clock, keep: Duration, held: Held) -> Self {
        Self {
            clock,
            keep,
            held,
            #[cfg(test)]
            deletions: Arc::new(Mutex::new(usize::MAX)),
            #[cfg(test)]
            size: Arc::default(),
        }
    }
}

/// A store of container images in a folder. Clones share it; so may other processes.
#[derive(Clone)]
pub struct ImageStore {
    pub(super) folder: PathBuf,
    pub(super) rules: Rules,
    /// Held, shared, as long as somebody may have half a blob.
    _in_use: Arc<File>,
    /// One pull of a reference at a time: whoever waits finds it there.
    pub(super) pulls: Arc<Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>>,
    /// One image at a time is unpacked: that takes memory, and up to half of the room that there is.
    pub(super) unpacking: Arc<tokio::sync::Mutex<()>>,
}

impl ImageStore {
    /// Opens the store in `folder`, and makes it if there is none. If nobody else has it open, half blobs that are left of an
    /// interruption go.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn open(folder: PathBuf) -> std::io::Result<Self> {
        make_folder(&folder.join("blobs/sha256"))?;
        make_folder(&folder.join("tmp"))?;
        let in_use = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(folder.join("in-use"))?;
        if fs4::FileExt::try_lock(&in_use).is_ok() {
            sweep(&folder.join("tmp"))?;
            fs4::FileExt::unlock(&in_use)?;
        }
        fs4::FileExt::lock_shared(&in_use)?;
        let layout = folder.join("oci-layout");
        if !layout.exists() {
            let mut out =
                OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(layout)?;
            out.write_all(br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        }
        let rules = Rules::new(Clock::system(), KEEP, Arc::new(|| Ok(BTreeSet::new())));
        Ok(Self {
            folder,
            rules,
            _in_use: Arc::new(in_use),
            pulls: Arc::default(),
            unpacking: Arc::default(),
        })
    }

    /// The same store, with these rules of what is kept.
    #[must_use]
    pub fn with_rules(self, rules: Rules) -> Self {
        Self { rules, ..self }
    }

    /// What is in the store under a name, in the one spelling that names have here, with the digests.
    ///
    /// # Errors
    /// The list cannot be read.
    pub fn list(&self) -> Result<Vec<(String, String)>> {
        let named = |one: Descriptor| Some((one.annotations.get(REF_NAME)?.clone(), one.digest));
        Ok(self.index()?.into_iter().filter_map(named).collect())
    }

    /// Digest of the manifest that `reference` means for the machines here, if all of the image is in the store, whoever it is
    /// for.
    ///
    /// # Errors
    /// The store cannot be read, or the image is not for these machines.
    #[cfg(test)]
    pub(super) fn resolve(&self, reference: &Reference) -> Result<Option<String>> {
        let digest = match &reference.digest {
            Some(digest) => Some(digest.clone()),
            None => self.named(reference)?.map(|(digest, _)| digest),
        };
        digest.map_or(Ok(None), |digest| self.whole(reference, &digest, |blob| self.has(blob)))
    }

    /// Digest of the manifest for the machines here that is `digest` or in the list `digest`, if it and all that it names
    /// `may` be used.
    pub(super) fn whole(
        &self,
        reference: &Reference,
        digest: &str,
        may: impl Fn(&str) -> bool,
    ) -> Result<Option<String>> {
        let mut digest = digest.to_owned();
        if !may(&digest) {
            return Ok(None);
        }
        let mut document = self.document(&digest)?;
        if document.manifests.is_some() {
            digest = self.machines_digest(reference, &document)?;
            if !may(&digest) {
                return Ok(None);
            }
            document = self.document(&digest)?;
        }
        Ok(document.parts().all(|part| may(&part.digest)).then_some(digest))
    }

    /// What a reference meant last, and how it came to.
    pub(super) fn named(&self, reference: &Reference) -> Result<Option<(String, Origin)>> {
        let name = reference.to_string();
        let named = self.index()?.into_iter().find(|one| one.annotations.get(REF_NAME) == Some(&name));
        Ok(named.map(|one| (one.digest.clone(), Origin::of(&one))))
    }

    /// Out of a list of manifests, that for the machines here.
    pub(super) fn machines_digest(&self, reference: &Reference, index: &Document) -> Result<String> {
        let ours = index.for_machines().map(|one| one.digest.clone()).filter(|digest| is_digest(digest));
        ours.ok_or_else(|| Error::Refused(format!("image `{reference}` has no version for linux/amd64")))
    }

    /// From now on, `reference` means this manifest; but what was imported stays until the next import.
    pub(super) fn name(&self, reference: &Reference, digest: &str, origin: Origin) -> Result<()> {
        let _lock = self.lock()?;
        let name = reference.to_string();
        let mut index = self.index()?;
        let old = index.iter().position(|one| one.annotations.get(REF_NAME) == Some(&name));
        if let Some(old) = old.map(|at| index.remove(at))
            && Origin::of(&old) == Origin::Imported
            && origin != Origin::Imported
        {
            return Ok(());
        }
        index.push(Descriptor {
            media_type: MANIFEST.to_owned(),
            digest: digest.to_owned(),
            size: std::fs::metadata(self.path(digest))?.len(),
            platform: None,
            annotations: BTreeMap::from([
                (REF_NAME.to_owned(), name),
                (ORIGIN.to_owned(), origin.key().to_owned()),
            ]),
        });
        self.put_index(index)
    }

    /// Whoever changes the list, or what is there, has it for that moment.
    pub(super) fn lock(&self) -> Result<File> {
        let mut lock = OpenOptions::new();
        let lock =
            lock.create(true).truncate(false).write(true).mode(0o600).open(self.folder.join("lock"))?;
        fs4::FileExt::lock(&lock)?;
        Ok(lock)
    }

    /// Replaces the list.
    pub(super) fn put_index(&self, index: Vec<Descriptor>) -> Result<()> {
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

    pub(super) fn index(&self) -> Result<Vec<Descriptor>> {
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

    /// Is this blob here, and did one of these give it?
    pub(super) fn given(&self, digest: &str, givers: &[Giver]) -> bool {
        self.has(digest) && givers.iter().any(|giver| self.mark(giver, digest).is_file())
    }

    /// What says that a blob was given.
    fn mark(&self, giver: &Giver, digest: &str) -> PathBuf {
        self.folder.join("from").join(&giver.0).join(digest.replacen(':', "-", 1))
    }

    fn remember(&self, giver: &Giver, digest: &str) -> Result<()> {
        let mark = self.mark(giver, digest);
        if mark.is_file() {
            return Ok(());
        }
        let from = self.folder.join("from");
        make_folder(&from.join(&giver.0))?;
        OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(mark)?;
        File::open(from.join(&giver.0))?.sync_all()?;
        File::open(from)?.sync_all()?;
        Ok(())
    }

    /// Where a blob lies or would lie. Only for digests that are some.
    pub(super) fn path(&self, digest: &str) -> PathBuf {
        self.folder.join("blobs").join(digest.replacen(':', "/", 1))
    }

    /// A document in the store.
    pub(super) fn document(&self, digest: &str) -> Result<Document> {
        let mut bytes = Vec::new();
        self.open_blob(digest)?.take(MAX_DOCUMENT).read_to_end(&mut bytes)?;
        if digest_of(&bytes) != digest {
            return Err(damaged(digest));
        }
        Document::read(&bytes).map_err(Error::Refused)
    }

    /// A blob, to be read.
    pub(super) fn open_blob(&self, digest: &str) -> Result<File> {
        File::open(self.path(digest)).map_err(|error| match error.kind() {
            ErrorKind::NotFound => damaged(digest),
            _ => error.into(),
        })
    }

    /// Puts what `giver` gave into the store, in the place of what may be there, if it hashes to `expected` when that is
    /// given; its digest and size.
    pub(super) fn put(
        &self,
        giver: &Giver,
        mut from: impl Read,
        expected: Option<&str>,
    ) -> Result<(String, u64)> {
        let mut blob = Blob::begin(self)?;
        let size = std::io::copy(&mut from, &mut blob)?;
        Ok((blob.finish(giver, expected)?, size))
    }
}

/// Makes a folder for the owner alone, with those above it, if it is not there.
pub(super) fn make_folder(folder: &Path) -> std::io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

fn sweep(folder: &Path) -> std::io::Result<()> {
    for left in std::fs::read_dir(folder)? {
        let left = left?;
        match left.file_type()?.is_dir() {
            true => std::fs::remove_dir_all(left.path())?,
            false => std::fs::remove_file(left.path())?,
        }
    }
    Ok(())
}

pub(super) fn digest_of(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

pub(super) fn damaged(digest: &str) -> Error {
    Error::Refused(format!(
        "blob {digest} of the image store is damaged or gone; import or pull the image again"
    ))
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

    /// Of what is there by now.
    pub(super) fn digest(&self) -> String {
        format!("sha256:{}", hex::encode(self.digest.clone().finalize()))
    }

    /// Gives it its name, which is `expected` if that is given, and notes who gave it.
    pub(super) fn finish(self, giver: &Giver, expected: Option<&str>) -> Result<String> {
        let digest = self.digest();
        if let Some(expected) = expected.filter(|expected| *expected != digest) {
            return Err(Error::Refused(format!("a blob hashes to {digest}, and {expected} was expected")));
        }
        let store = self.store.clone();
        self.finish_as(&store.path(&digest))?;
        store.remember(giver, &digest)?;
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
