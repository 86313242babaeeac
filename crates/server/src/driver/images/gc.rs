//! What is of no use any more goes.
//!
//! An image stays that has a name by an import, that a machine has staged or runs, that somebody is at work with, or that was
//! used lately. Where room is wanted at once, the last of these counts for nothing but the order: the oldest use goes first.
//!
//! An interruption leaves the store in order wherever it strikes: a name whose blobs are gone is pulled again, and blobs that
//! nothing names go the next time. Whoever is at work says so before he looks what is there ([`Using`]), and both that and a
//! collection take the store's lock: what is named by then stays, in whichever process.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::manifest::REF_NAME;
use super::reference::is_digest;
use super::store::{Origin, make_folder};
use super::{Error, ImageStore, Reference, Result};

/// So many bytes are to stay free on the store's disk.
pub(super) const SPARE: u64 = 64 << 20;
/// What somebody is at work with who cannot say with what.
const EVERYTHING: &str = "everything";

/// What a collection removed, or would.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Freed {
    /// How much room there is more.
    pub bytes: u64,
    /// Names that mean nothing any more until they are pulled again.
    pub names: Vec<String>,
}

/// An image that has a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// In the one spelling that names have here.
    pub name: String,
    /// Of its manifest, or of the list that has it.
    pub digest: String,
    /// How large its blobs are that are here. Some may belong to others as well.
    pub bytes: u64,
}

/// Is it to be done, or only told?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Done.
    Do,
    /// Told.
    DryRun,
}

/// Somebody at work with images: what he names stays until he is done.
pub struct Using {
    store: ImageStore,
    file: Option<(File, PathBuf)>,
}

impl Using {
    /// The store.
    pub(super) fn store(&self) -> &ImageStore {
        &self.store
    }

    /// This blob stays from now on, if it is there; and if it is a manifest, what it names.
    pub(super) fn add(&mut self, digest: &str) -> Result<()> {
        self.add_all([digest])
    }

    /// The same of several. A manifest that is not there yet names nothing, so what is in it has to be named as well.
    pub(super) fn add_all<'a>(&mut self, digests: impl IntoIterator<Item = &'a str>) -> Result<()> {
        let _lock = self.store.lock()?;
        if self.file.is_none() {
            let folder = self.store.folder.join("at-work");
            make_folder(&folder)?;
            let (file, path) =
                tempfile::NamedTempFile::new_in(folder)?.keep().map_err(|error| error.error)?;
            // Held as long as it is open: who finds it free knows that nobody is left.
            fs4::FileExt::lock(&file)?;
            self.file = Some((file, path));
        }
        if let Some((file, _)) = &mut self.file {
            let lines: String = digests.into_iter().map(|digest| format!("{digest}\n")).collect();
            file.write_all(lines.as_bytes())?;
        }
        Ok(())
    }

    /// Nothing goes from now on.
    pub(super) fn everything(&mut self) -> Result<()> {
        self.add(EVERYTHING)
    }
}

impl Drop for Using {
    fn drop(&mut self) {
        if let Some((_, path)) = &self.file {
            // One that stays is found free, and goes with the next collection.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// An image that may go.
struct Spare {
    used_at: Timestamp,
    digest: String,
}

impl ImageStore {
    /// For somebody who begins to work with images.
    pub fn using(&self) -> Using {
        Using { store: self.clone(), file: None }
    }

    /// Removes what nobody has used for as long as images are kept.
    ///
    /// # Errors
    /// The store cannot be read or changed. What is gone by then is gone.
    pub fn collect(&self, mode: Mode) -> Result<Freed> {
        let _lock = self.lock()?;
        self.sweep(self.needed()?.as_ref(), self.used_before(self.rules.keep), mode)
    }

    /// Takes a name away, however it came, and removes what that leaves without use; how much room that made.
    ///
    /// # Errors
    /// There is no such name, or the store cannot be changed.
    pub fn remove(&self, reference: &Reference) -> Result<Freed> {
        let _lock = self.lock()?;
        let name = reference.to_string();
        let mut index = self.index()?;
        let Some(at) = index.iter().position(|one| one.annotations.get(REF_NAME) == Some(&name)) else {
            return Err(Error::Refused(format!("no image is called `{name}` here")));
        };
        let removed = index.remove(at);
        let mut parts = BTreeSet::new();
        self.reach(&removed.digest, &mut parts);
        self.put_index(index.clone())?;
        let image = self.of_machines(&removed.digest);
        if !index.iter().any(|one| self.of_machines(&one.digest) == image) {
            self.delete(&self.used(&image))?;
        }
        let unused_since = self.used_before(self.rules.keep);
        let freed = self.sweep_of(Some(&parts), self.needed()?.as_ref(), unused_since, Mode::Do)?;
        Ok(Freed { names: [vec![name], freed.names].concat(), ..freed })
    }

    /// Sees to it that so many bytes fit in, and says what is in the way if they do not. Nothing is removed if that would not be
    /// enough.
    pub(in crate::driver) fn make_room(&self, wanted: u64, what_for: &str) -> Result<()> {
        let free = self.free()?;
        let needed = wanted.saturating_add(SPARE);
        if free >= needed {
            return Ok(());
        }
        let _lock = self.lock()?;
        // Who wants more than that has to wait for the lock.
        let needed_images = self.needed()?;
        let spare = self.spare(needed_images.as_ref())?;
        let everything = spare.last().map_or(Timestamp::MIN, |last| last.used_at);
        let most = self.sweep(needed_images.as_ref(), everything, Mode::DryRun)?.bytes;
        if free.saturating_add(most) < needed {
            return Err(Error::Refused(format!(
                "{what_for} takes {wanted} bytes, and {} has room for {}; make room there, or remove images: \
                 casemate images rm NAME",
                self.folder.display(),
                free.saturating_add(most).saturating_sub(SPARE),
            )));
        }
        let sweep = |unused_since| self.sweep(needed_images.as_ref(), unused_since, Mode::Do);
        let mut freed = sweep(self.used_before(self.rules.keep))?.bytes;
        for one in spare {
            if free.saturating_add(freed) >= needed {
                break;
            }
            freed += sweep(one.used_at)?.bytes;
        }
        tracing::info!(freed, what_for, "container images were removed to make room");
        Ok(())
    }

    /// This image is used, now.
    pub(super) fn touch(&self, digest: &str) {
        let file = self.used(digest);
        let now = std::time::SystemTime::UNIX_EPOCH
            + self.rules.clock.now().duration_since(Timestamp::UNIX_EPOCH).unsigned_abs();
        let touched = make_folder(&self.folder.join("used"))
            .and_then(|()| File::options().create(true).truncate(false).write(true).mode(0o600).open(&file))
            .and_then(|file| file.set_modified(now));
        if let Err(error) = touched {
            // It may go too early, and then is pulled again.
            tracing::warn!(%error, digest, "the use of an image cannot be kept");
        }
    }

    /// Whose last change is the last use of an image.
    fn used(&self, digest: &str) -> PathBuf {
        self.folder.join("used").join(digest.replacen(':', "-", 1))
    }

    fn used_before(&self, keep: std::time::Duration) -> Timestamp {
        self.rules.clock.now().checked_sub(keep).unwrap_or(Timestamp::MIN)
    }

    /// Bytes that are free.
    pub(super) fn free(&self) -> Result<u64> {
        #[cfg(test)]
        if let Some(size) = *self.rules.size.lock().expect("nobody panics while holding it") {
            let blobs = std::fs::read_dir(self.folder.join("blobs/sha256"))?.flatten();
            let used: u64 = blobs.filter_map(|blob| Some(blob.metadata().ok()?.len())).sum();
            return Ok((size + SPARE).saturating_sub(used));
        }
        let disk = rustix::fs::statvfs(&self.folder).map_err(std::io::Error::from)?;
        Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
    }

    /// The manifest for machines that is this one, or in this list; this one if that is not known.
    fn of_machines(&self, digest: &str) -> String {
        let document = self.document(digest).ok();
        let ours = document.as_ref().and_then(|document| document.for_machines());
        ours.map_or_else(|| digest.to_owned(), |ours| ours.digest.clone())
    }

    /// A manifest or list, and all that it names, as far as it is here.
    fn reach(&self, digest: &str, reached: &mut BTreeSet<String>) {
        if !is_digest(digest) || !reached.insert(digest.to_owned()) {
            return;
        }
        let Ok(document) = self.document(digest) else { return };
        reached.extend(document.parts().map(|part| part.digest.clone()));
        if let Some(ours) = document.for_machines() {
            self.reach(&ours.digest, reached);
        }
    }

    /// Those that stay however long they were not used; nothing if all do.
    fn needed(&self) -> Result<Option<BTreeSet<String>>> {
        let mut needed = (self.rules.held)()?;
        let imported = self.index()?.into_iter().filter(|one| Origin::of(one) == Origin::Imported);
        needed.extend(imported.map(|one| one.digest));
        for path in files(&self.folder.join("at-work"))? {
            let mut file = match File::open(&path) {
                Ok(file) => file,
                // Who had it is done.
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(error.into()),
            };
            if fs4::FileExt::try_lock(&file).is_ok() {
                self.delete(&path)?;
                continue;
            }
            let mut text = String::new();
            file.read_to_string(&mut text)?;
            if text.lines().any(|line| line == EVERYTHING) {
                return Ok(None);
            }
            needed.extend(text.lines().map(str::to_owned));
        }
        Ok(Some(needed))
    }

    /// When images were last used.
    fn uses(&self) -> Result<BTreeMap<String, Timestamp>> {
        let mut uses = BTreeMap::new();
        for path in files(&self.folder.join("used"))? {
            let at = Timestamp::try_from(path.metadata()?.modified()?).unwrap_or(Timestamp::MIN);
            uses.insert(named(&path), at);
        }
        Ok(uses)
    }

    /// Images that go where room is wanted, the oldest use first.
    fn spare(&self, needed: Option<&BTreeSet<String>>) -> Result<Vec<Spare>> {
        let Some(needed) = needed else { return Ok(Vec::new()) };
        let of_use = needed.iter().map(|digest| self.of_machines(digest)).collect::<BTreeSet<_>>();
        let spare = self.uses()?.into_iter().filter(|(digest, _)| !of_use.contains(digest));
        let mut spare: Vec<_> = spare.map(|(digest, used_at)| Spare { used_at, digest }).collect();
        spare.sort_by(|a, b| (a.used_at, &a.digest).cmp(&(b.used_at, &b.digest)));
        Ok(spare)
    }

    /// The images that have a name here, in the order of their names.
    ///
    /// # Errors
    /// The list cannot be read.
    pub fn shown(&self) -> Result<Vec<Shown>> {
        let shown = |(name, digest): (String, String)| {
            let mut parts = BTreeSet::new();
            self.reach(&digest, &mut parts);
            let bytes = parts.iter().filter_map(|part| Some(self.path(part).metadata().ok()?.len())).sum();
            Shown { name, digest, bytes }
        };
        let mut all: Vec<_> = self.list()?.into_iter().map(shown).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }

    /// Removes what is not `needed` and nobody has used since. With the lock.
    fn sweep(&self, needed: Option<&BTreeSet<String>>, unused_since: Timestamp, mode: Mode) -> Result<Freed> {
        self.sweep_of(None, needed, unused_since, mode)
    }

    /// As [`ImageStore::sweep`], and nothing that is none of `parts`, if there are any, or that belongs to another image.
    fn sweep_of(
        &self,
        parts: Option<&BTreeSet<String>>,
        needed: Option<&BTreeSet<String>>,
        unused_since: Timestamp,
        mode: Mode,
    ) -> Result<Freed> {
        let Some(mut roots) = needed.cloned() else { return Ok(Freed::default()) };
        let is_other = |digest: &str| parts.is_some_and(|parts| !parts.contains(digest));
        let uses = self.uses()?;
        let used = uses.iter().filter(|(digest, at)| **at > unused_since || is_other(digest));
        roots.extend(used.map(|(digest, _)| digest.clone()));
        let mut stays = BTreeSet::new();
        roots.iter().for_each(|root| self.reach(root, &mut stays));
        let (mut index, mut names) = (self.index()?, Vec::new());
        let before = index.len();
        index.retain(|one| {
            let is_root = roots.contains(&one.digest)
                || roots.contains(&self.of_machines(&one.digest))
                || is_other(&one.digest);
            match is_root {
                true => self.reach(&one.digest, &mut stays),
                false => names.extend(one.annotations.get(REF_NAME).cloned()),
            }
            is_root
        });
        if mode == Mode::Do && index.len() != before {
            self.put_index(index)?;
        }
        let mut freed = Freed { bytes: 0, names };
        let stays = |digest: &str| stays.contains(digest) || is_other(digest);
        for giver in files(&self.folder.join("from"))? {
            for mark in files(&giver)? {
                self.sweep_one(&mark, stays, mode, &mut freed)?;
            }
        }
        for folder in ["used", "roots", "blobs/sha256"] {
            for file in files(&self.folder.join(folder))? {
                self.sweep_one(&file, stays, mode, &mut freed)?;
            }
        }
        Ok(freed)
    }

    /// Removes a file if its name has a digest that does not stay.
    fn sweep_one(
        &self,
        file: &Path,
        stays: impl Fn(&str) -> bool,
        mode: Mode,
        freed: &mut Freed,
    ) -> Result<()> {
        let digest = named(file);
        if !is_digest(&digest) || stays(&digest) {
            return Ok(());
        }
        let meta = std::fs::symlink_metadata(file)?;
        if mode == Mode::Do {
            self.delete(file)?;
        }
        if meta.nlink() == 1 {
            // Else a machine has it as well.
            freed.bytes += meta.len();
        }
        Ok(())
    }

    fn delete(&self, file: &Path) -> Result<()> {
        #[cfg(test)]
        {
            let mut left = self.rules.deletions.lock().expect("nobody panics while holding it");
            *left = left.checked_sub(1).ok_or(Error::Later("the power went".into()))?;
        }
        match std::fs::remove_file(file) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error.into()),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

/// The digest that a file is named after: `sha256-…`, with or without an ending, or its hex digits alone.
fn named(file: &Path) -> String {
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    format!("sha256:{}", stem.strip_prefix("sha256-").unwrap_or(&stem))
}

/// What is in a folder, which need not be there.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    Ok(entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?)
}
