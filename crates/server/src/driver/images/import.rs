//! Images out of files: an OCI image layout, as a folder or a tar archive, or what `docker save` writes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use super::manifest::{Descriptor, Document, FULL_NAME, MANIFEST, MAX_DOCUMENT, REF_NAME};
use super::reference::is_digest;
use super::store::{Giver, Origin};
use super::{Error, ImageStore, Reference, Result};

/// An entry of `manifest.json` in an archive of `docker save`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

impl ImageStore {
    /// Brings the images of `path` into the store. With `name` its one image gets that name, else each has the name that comes
    /// with it. The names and what they mean now.
    ///
    /// # Errors
    /// What is at `path` is neither, or not whole, or has no name.
    pub fn import(&self, path: &Path, name: Option<&Reference>) -> Result<Vec<(Reference, String)>> {
        let named =
            |error: std::io::Error| Error::Refused(format!("{} cannot be read: {error}", path.display()));
        // Until it has a name, nothing shows that it is of use.
        let mut using = self.using();
        using.everything()?;
        if path.is_dir() {
            return self.import_folder(path, name);
        }
        let mut archive = File::open(path).map_err(named)?;
        let mut magic = [0; 4];
        let read = archive.read(&mut magic).map_err(named)?;
        if magic.get(..read.min(2)) == Some(&[0x1f, 0x8b]) || magic == [0x28, 0xb5, 0x2f, 0xfd] {
            return Err(Error::Refused(format!("{} is compressed; uncompress it first", path.display())));
        }
        archive.rewind().map_err(named)?;
        let folder = tempfile::tempdir_in(self.folder.join("tmp"))?;
        unpack(archive, folder.path()).map_err(named)?;
        self.import_folder(folder.path(), name)
    }

    fn import_folder(&self, folder: &Path, name: Option<&Reference>) -> Result<Vec<(Reference, String)>> {
        let found = if folder.join("index.json").is_file() {
            self.import_layout(folder)?
        } else if folder.join("manifest.json").is_file() {
            self.import_saved(folder)?
        } else {
            return Err(refused(
                "there is neither index.json (an OCI image layout) nor manifest.json (docker save)",
            ));
        };
        let named = match (name, found.as_slice()) {
            (Some(name), [(_, digest)]) => vec![(name.clone(), digest.clone())],
            (Some(_), all) => {
                return Err(refused(format!("there are {} images, and one can have the name", all.len())));
            }
            (None, _) => {
                let named = |(names, digest): (Vec<String>, String)| {
                    names.into_iter().map(move |name| Ok((name.parse().map_err(refused)?, digest.clone())))
                };
                found.into_iter().flat_map(named).collect::<Result<Vec<(Reference, String)>>>()?
            }
        };
        if named.is_empty() {
            return Err(refused("its images have no names; give one with --as NAME:TAG"));
        }
        for (reference, digest) in &named {
            let image = self.whole(reference, digest, |blob| self.given(blob, &[Giver::import()]))?;
            let image = image.ok_or_else(|| refused(format!("image `{reference}` is not whole")))?;
            self.name(&Reference { digest: None, ..reference.clone() }, digest, Origin::Imported)?;
            self.touch(&image);
        }
        Ok(named)
    }

    /// Each image with its names.
    fn import_layout(&self, folder: &Path) -> Result<Vec<(Vec<String>, String)>> {
        let index = Document::read(&small(folder, "index.json")?).map_err(refused)?;
        let mut found = BTreeMap::<String, Vec<String>>::new();
        for one in index.manifests.unwrap_or_default() {
            self.import_manifest(folder, &one)?;
            let whole = one.annotations.get(FULL_NAME).or_else(|| one.annotations.get(REF_NAME));
            found.entry(one.digest).or_default().extend(whole.cloned());
        }
        Ok(found.into_iter().map(|(digest, names)| (names, digest)).collect())
    }

    fn import_manifest(&self, folder: &Path, descriptor: &Descriptor) -> Result<()> {
        self.import_blob(folder, descriptor)?;
        let document = self.document(&descriptor.digest)?;
        for part in document.parts() {
            self.import_blob(folder, part)?;
        }
        // Of an index, only what runs here.
        match document.for_machines() {
            Some(ours) => self.import_manifest(folder, ours),
            None => Ok(()),
        }
    }

    /// Also when there is such a blob: that one may be damaged, or not be for everybody.
    fn import_blob(&self, folder: &Path, descriptor: &Descriptor) -> Result<()> {
        let digest = &descriptor.digest;
        if !is_digest(digest) {
            return Err(refused(format!("`{digest}` is no SHA-256 digest")));
        }
        let blob = open(folder, &format!("blobs/{}", digest.replacen(':', "/", 1)))?;
        self.put(&Giver::import(), blob, Some(digest)).map(drop)
    }

    fn import_saved(&self, folder: &Path) -> Result<Vec<(Vec<String>, String)>> {
        let saved: Vec<Saved> = serde_json::from_slice(&small(folder, "manifest.json")?)
            .map_err(|error| refused(format!("manifest.json is not understood: {error}")))?;
        let part = |name: &str, media_type: &str| -> Result<Descriptor> {
            let (digest, size) = self.put(&Giver::import(), open(folder, name)?, None)?;
            Ok(Descriptor {
                media_type: format!("application/vnd.oci.image.{media_type}"),
                digest,
                size,
                platform: None,
                annotations: BTreeMap::new(),
            })
        };
        let image = |saved: Saved| -> Result<(Vec<String>, String)> {
            let layers = saved.layers.iter().map(|layer| part(layer, "layer.v1.tar"));
            let document = Document {
                schema_version: 2,
                media_type: Some(MANIFEST.to_owned()),
                config: Some(part(&saved.config, "config.v1+json")?),
                layers: layers.collect::<Result<_>>()?,
                manifests: None,
            };
            let text = serde_json::to_vec(&document).expect("text as keys, and nothing that can fail");
            let (digest, _) = self.put(&Giver::import(), text.as_slice(), None)?;
            Ok((saved.repo_tags.unwrap_or_default(), digest))
        };
        saved.into_iter().map(image).collect()
    }
}

fn refused(why: impl Into<String>) -> Error {
    Error::Refused(why.into())
}

/// A file of the folder. One that is reached through a link is none: it could be any file of the host.
fn open(folder: &Path, name: &str) -> Result<File> {
    let plain = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
    let mut path = folder.to_owned();
    for part in Path::new(name).components() {
        path.push(part);
        if !plain || std::fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_symlink()) {
            return Err(refused(format!("`{name}` leads out of the image")));
        }
    }
    File::open(path).map_err(|error| refused(format!("`{name}` cannot be read: {error}")))
}

fn small(folder: &Path, name: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(folder, name)?.take(MAX_DOCUMENT).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Links that lead to links are followed this far.
const MAX_LINKS: usize = 40;

/// Unpacks the files of an archive, and what in it is a link to another of them (a layer that is there twice, for older versions
/// of docker); nothing else that may be in it.
fn unpack(archive: File, folder: &Path) -> std::io::Result<()> {
    let mut archive = tar::Archive::new(archive);
    let mut links = BTreeMap::new();
    for entry in archive.entries()? {
        let mut entry = entry?;
        let Some(path) = inside(&entry.path()?) else { continue };
        let kind = entry.header().entry_type();
        if kind.is_symlink() || kind.is_hard_link() {
            let above = path.parent().filter(|_| kind.is_symlink()).unwrap_or(Path::new(""));
            let target = entry.link_name()?.and_then(|target| inside(&above.join(target)));
            links.extend(target.map(|target| (path.clone(), target)));
        } else if kind.is_file() {
            let place = folder.join(path);
            make_above(&place)?;
            std::io::copy(&mut entry, &mut File::create(place)?)?;
        }
    }
    for (path, target) in &links {
        let end = std::iter::successors(Some(target), |path| links.get(*path)).take(MAX_LINKS).last();
        let (place, file) = (folder.join(path), folder.join(end.unwrap_or(target)));
        // What is unpacked has no symbolic links: no path there leads out of it.
        if file.is_file() && !place.exists() {
            make_above(&place)?;
            std::fs::hard_link(file, place)?;
        }
    }
    Ok(())
}

fn make_above(place: &Path) -> std::io::Result<()> {
    place.parent().map_or(Ok(()), std::fs::create_dir_all)
}

/// A path of an archive without `.` and `..`, if it does not lead out of the archive.
fn inside(path: &Path) -> Option<PathBuf> {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(part) => plain.push(part),
            Component::CurDir => {}
            Component::ParentDir if plain.pop() => {}
            _ => return None,
        }
    }
    Some(plain)
}
