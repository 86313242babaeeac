//! OS images: folders with a kernel, an initial file system and `metadata.json`, whose files a digest list names.
//!
//! `sha256sum.txt` has a line for each file, as `sha256sum` writes it; its own SHA-256 is the image's hash. What a machine boots
//! (kernel, initial file system, the kernel's command line in `cmdline` or `metadata.json`) is in that list, and a file that
//! does not have the digest there is never booted.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use jiff::Timestamp;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::cvm::spec::sha256;
use crate::driver::Image;

/// An OS image that can be booted.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct OsImage {
    pub(super) facts: Image,
    pub(super) kernel: PathBuf,
    pub(super) initrd: PathBuf,
    pub(super) kernel_line: String,
}

#[derive(Deserialize)]
struct Metadata {
    kernel: String,
    initrd: String,
    #[serde(default)]
    cmdline: String,
    version: String,
    #[serde(default)]
    is_dev: bool,
}

/// The OS images of some folders.
#[derive(Default)]
pub(super) struct OsImages {
    folders: Vec<PathBuf>,
}

/// What files were found to hash to, for as long as they do not change. Whoever asks: they are large.
static HASHED: Mutex<BTreeMap<PathBuf, (Stamp, [u8; 32])>> = Mutex::new(BTreeMap::new());

/// By which a changed file is known.
type Stamp = (u64, u64, Option<Timestamp>);

impl OsImages {
    /// Machines work in folders of their own, so those of the images are named from the root.
    pub(super) fn new(folders: Vec<PathBuf>) -> Self {
        let folders =
            folders.into_iter().map(|folder| std::path::absolute(&folder).unwrap_or(folder)).collect();
        Self { folders }
    }

    /// Those that can be booted, by name. Folders that are none are named in the log.
    pub(super) fn list(&self) -> Vec<OsImage> {
        let mut found = BTreeMap::new();
        for folder in &self.folders {
            let Ok(entries) = std::fs::read_dir(folder) else { continue };
            for name in entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
                if !is_name(&name)
                    || found.contains_key(&name)
                    || !folder.join(&name).join("metadata.json").is_file()
                {
                    continue;
                }
                match open(&folder.join(&name), &name) {
                    Ok(image) => drop(found.insert(name, image)),
                    Err(error) => tracing::warn!(image = name, error, "an OS image cannot be used"),
                }
            }
        }
        found.into_values().collect()
    }

    /// The one with this name.
    ///
    /// # Errors
    /// It is not there, or is not what its digest list says.
    pub(super) fn get(&self, name: &str) -> Result<OsImage, String> {
        let folder = self.folders.iter().map(|folder| folder.join(name));
        let folder =
            folder.into_iter().find(|folder| is_name(name) && folder.join("metadata.json").is_file());
        let Some(folder) = folder else {
            let all: Vec<_> = self.list().into_iter().map(|image| image.facts.name).collect();
            let all = if all.is_empty() {
                "it has none; `make guest` builds some".to_owned()
            } else {
                all.join(", ")
            };
            return Err(format!("image `{name}` is not on this node: {all}"));
        };
        open(&folder, name).map_err(|error| format!("image `{name}` cannot be used: {error}"))
    }
}

fn open(folder: &Path, name: &str) -> Result<OsImage, String> {
    let read = |file: &str| {
        std::fs::read(folder.join(file)).map_err(|error| format!("{file} cannot be read: {error}"))
    };
    let list = read("sha256sum.txt")?;
    let text = std::str::from_utf8(&list).map_err(|_| "sha256sum.txt is no text")?;
    let mut listed = BTreeMap::new();
    for line in text.lines() {
        let (digest, file) =
            line.split_once(' ').ok_or_else(|| format!("sha256sum.txt has the line `{line}`"))?;
        let file = file.trim_start_matches([' ', '*']).trim_start_matches("./");
        if !is_name(file) {
            return Err(format!("sha256sum.txt names `{file}`, which is no file of the image"));
        }
        if hex::encode(hash(&folder.join(file))?) != digest {
            return Err(format!("{file} does not have the digest that sha256sum.txt has"));
        }
        listed.insert(file.to_owned(), folder.join(file));
    }
    let path =
        |file: &str| listed.get(file).cloned().ok_or_else(|| format!("{file} is not in sha256sum.txt"));
    let metadata: Metadata = serde_json::from_slice(&read("metadata.json")?)
        .map_err(|error| format!("metadata.json is not understood: {error}"))?;
    let kernel_line = match (listed.contains_key("cmdline"), listed.contains_key("metadata.json")) {
        (true, _) => String::from_utf8_lossy(&read("cmdline")?).trim().to_owned(),
        (false, true) => metadata.cmdline,
        (false, false) => return Err("the kernel's command line is not in sha256sum.txt".to_owned()),
    };
    let version: Option<Vec<u32>> = metadata.version.split('.').map(|part| part.parse().ok()).collect();
    let version = version.ok_or_else(|| format!("version `{}` is not made of numbers", metadata.version))?;
    Ok(OsImage {
        kernel: path(&metadata.kernel)?,
        initrd: path(&metadata.initrd)?,
        kernel_line,
        facts: Image {
            name: name.to_owned(),
            version,
            is_dev: metadata.is_dev,
            os_image_hash: hex::encode(sha256(&list)),
            requires_gpu: false,
        },
    })
}

fn hash(path: &Path) -> Result<[u8; 32], String> {
    use std::os::unix::fs::MetadataExt;
    let failed = |error| format!("{} cannot be read: {error}", path.display());
    let mut file = File::open(path).map_err(failed)?;
    let meta = file.metadata().map_err(failed)?;
    let changed = Timestamp::new(meta.ctime(), i32::try_from(meta.ctime_nsec()).unwrap_or_default()).ok();
    let stamp = (meta.ino(), meta.len(), changed);
    if let Some((known, hash)) = hashed().get(path)
        && *known == stamp
    {
        return Ok(*hash);
    }
    let (mut digest, mut buffer) = (Sha256::new(), vec![0; 1 << 16]);
    loop {
        match file.read(&mut buffer).map_err(failed)? {
            0 => break,
            read => digest.update(&buffer[..read]),
        }
    }
    let hash = digest.finalize().into();
    hashed().insert(path.to_owned(), (stamp, hash));
    Ok(hash)
}

fn hashed() -> MutexGuard<'static, BTreeMap<PathBuf, (Stamp, [u8; 32])>> {
    HASHED.lock().expect("nothing panics while holding it")
}

/// A name that is one part of a path and nothing else.
fn is_name(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && !text.starts_with('.')
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

#[cfg(test)]
pub(in crate::driver) mod tests {
    use super::*;

    /// Makes an OS image of these files.
    pub(in crate::driver) fn make(folder: &Path, name: &str, version: &str) {
        let image = folder.join(name);
        std::fs::create_dir_all(&image).unwrap();
        let metadata = serde_json::json!({
            "kernel": "bzImage", "initrd": "initramfs.cpio", "version": version,
            "is_dev": name.contains("dev"),
        });
        std::fs::write(image.join("metadata.json"), metadata.to_string()).unwrap();
        let mut list = String::new();
        for (file, text) in [("bzImage", "kernel"), ("initramfs.cpio", name), ("cmdline", "console=ttyS0\n")]
        {
            std::fs::write(image.join(file), text).unwrap();
            list += &format!("{}  {file}\n", hex::encode(sha256(text.as_bytes())));
        }
        std::fs::write(image.join("sha256sum.txt"), list).unwrap();
    }

    #[test]
    fn an_image_is_what_its_digest_list_says() {
        let folder = tempfile::tempdir().unwrap();
        make(folder.path(), "one-0.1.0", "0.1.0");
        make(folder.path(), "dev-0.2.0", "0.2.0");
        let images = OsImages::new(vec![folder.path().into()]);
        let names: Vec<_> =
            images.list().into_iter().map(|image| (image.facts.name, image.facts.is_dev)).collect();
        assert_eq!(names, [("dev-0.2.0".to_owned(), true), ("one-0.1.0".to_owned(), false)]);
        let image = images.get("one-0.1.0").unwrap();
        let list = std::fs::read(folder.path().join("one-0.1.0/sha256sum.txt")).unwrap();
        assert_eq!(image.facts.os_image_hash, hex::encode(sha256(&list)));
        assert_eq!(image.kernel_line, "console=ttyS0");
        // Another look, by whoever, hashes nothing again.
        let kernel = hashed().get(&image.kernel).unwrap().0;
        hashed().insert(image.kernel.clone(), (kernel, [0; 32]));
        let again = OsImages::new(vec![folder.path().into()]);
        assert!(again.get("one-0.1.0").unwrap_err().contains("bzImage does not have the digest"));
        hashed().remove(&image.kernel);
        std::fs::write(image.initrd, "another").unwrap();
        let error = images.get("one-0.1.0").unwrap_err();
        assert!(error.contains("initramfs.cpio does not have the digest"), "{error}");
        assert!(image.kernel.is_absolute());
        let here = OsImages::new(vec!["somewhere".into()]);
        assert!(here.folders[0].is_absolute());
        for name in ["two", "../one-0.1.0", "", "."] {
            let error = images.get(name).unwrap_err();
            assert!(error.contains("is not on this node: dev-0.2.0"), "{error}");
        }
    }
}
