//! The root keys on disk: two lines of hex that only their owner may read.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::{Error, Result, RootKeys};

const HEADER: &str = "casemate root keys v1";
const MODE: u32 = 0o600;

/// Reads the keys; `None` if there is no file.
pub(crate) fn load(path: &Path) -> Result<Option<RootKeys>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(failed("open", path, source)),
    };
    let mode = file.metadata().map_err(|source| failed("open", path, source))?.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(Error::LaxMode { path: path.to_owned(), mode });
    }
    let mut text = Zeroizing::new(String::new());
    file.read_to_string(&mut text).map_err(|source| failed("read", path, source))?;
    parse(&text, path).map(Some)
}

/// Writes new keys. Never replaces a file, and never leaves a part of one under this name.
pub(crate) fn create(path: &Path, keys: &RootKeys) -> Result<()> {
    let part = beside(path);
    let result = write_and_link(&part, path, keys);
    // The keys are under their own name now, or must not stay anywhere.
    let removed = fs::remove_file(&part);
    result?;
    removed.map_err(|source| failed("write", &part, source))
}

fn write_and_link(part: &Path, path: &Path, keys: &RootKeys) -> Result<()> {
    let write = |source| failed("write", path, source);
    match fs::remove_file(part) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(write(error)),
        Ok(()) | Err(_) => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(MODE).open(part).map_err(write)?;
    let (ca, k256) = keys.secrets();
    let [ca, k256] = [ca, k256].map(|secret| Zeroizing::new(hex::encode(*secret)));
    let text = Zeroizing::new(format!("{HEADER}\nca {}\nk256 {}\n", *ca, *k256));
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(write)?;
    // A link, unlike a rename, does not replace what is there.
    fs::hard_link(part, path).map_err(write)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(write)
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    path.with_file_name(name)
}

fn parse(text: &str, path: &Path) -> Result<RootKeys> {
    let bad = |what| Error::Format { path: path.to_owned(), what };
    let mut lines = text.lines();
    if lines.next() != Some(HEADER) {
        return Err(bad("the first line is not that of a root key file"));
    }
    let ca =
        secret(lines.next(), "ca").ok_or_else(|| bad("the second line must be `ca` and 64 hex digits"))?;
    let k256 =
        secret(lines.next(), "k256").ok_or_else(|| bad("the third line must be `k256` and 64 hex digits"))?;
    if lines.next().is_some() {
        return Err(bad("there is more than three lines"));
    }
    RootKeys::from_secrets(&ca, &k256).map_err(|_| bad("a key is not one of its curve"))
}

fn secret(line: Option<&str>, name: &str) -> Option<Zeroizing<[u8; 32]>> {
    let digits = line?.strip_prefix(name)?.strip_prefix(' ')?;
    let mut bytes = Zeroizing::new([0; 32]);
    hex::decode_to_slice(digits, bytes.as_mut_slice()).ok()?;
    Some(bytes)
}

fn failed(doing: &'static str, path: &Path, source: io::Error) -> Error {
    Error::Io { doing, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn folder() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("root.key");
        (folder, path)
    }

    #[test]
    fn keys_are_made_once_and_read_ever_after() {
        let (folder, path) = folder();
        let made = RootKeys::load_or_create(&path, || [7; 64]).unwrap();
        let asked = Cell::new(false);
        let read = RootKeys::load_or_create(&path, || {
            asked.set(true);
            [8; 64]
        })
        .unwrap();
        assert_eq!(read.k256_public_key(), made.k256_public_key());
        assert_eq!(read.ca_public_key(), made.ca_public_key());
        assert!(!asked.get(), "randomness is drawn only if it is needed");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else stays");
    }

    #[test]
    fn a_file_that_others_may_use_is_refused() {
        let (_folder, path) = folder();
        RootKeys::load_or_create(&path, || [7; 64]).unwrap();
        for mode in [0o640, 0o604, 0o620, 0o601] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            let error = RootKeys::load_or_create(&path, || [7; 64]).unwrap_err();
            assert!(matches!(error, Error::LaxMode { mode: found, .. } if found == mode), "{error}");
        }
        fs::set_permissions(&path, Permissions::from_mode(0o400)).unwrap();
        RootKeys::load_or_create(&path, || [7; 64]).unwrap();
    }

    #[test]
    fn a_damaged_file_is_refused_and_left_alone() {
        let (_folder, path) = folder();
        RootKeys::load_or_create(&path, || [7; 64]).unwrap();
        let good = fs::read_to_string(&path).unwrap();
        for bad in [
            "",
            "other\n",
            &good[..good.len() - 5],
            &good.replace("ca ", "cb "),
            &format!("{good}more\n"),
            &format!("{HEADER}\nca {}\nk256 {}\n", "00".repeat(32), "11".repeat(32)),
            &format!("{HEADER}\nca {}\nk256 {}\n", "11".repeat(32), "ff".repeat(32)),
        ] {
            fs::write(&path, bad).unwrap();
            let error = RootKeys::load_or_create(&path, || [7; 64]).unwrap_err();
            assert!(matches!(error, Error::Format { .. }), "{error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), bad);
        }
    }

    #[test]
    fn a_half_written_file_of_an_earlier_start_does_not_matter() {
        let (_folder, path) = folder();
        fs::write(beside(&path), "half").unwrap();
        RootKeys::load_or_create(&path, || [7; 64]).unwrap();
        assert!(!beside(&path).exists());
    }

    #[test]
    fn creating_never_replaces_keys() {
        let (_folder, path) = folder();
        let first = RootKeys::load_or_create(&path, || [7; 64]).unwrap();
        assert!(matches!(create(&path, &RootKeys::generate(&[8; 64])), Err(Error::Io { .. })));
        let read = load(&path).unwrap().unwrap();
        assert_eq!(read.k256_public_key(), first.k256_public_key());
        assert!(!beside(&path).exists());
    }

    #[test]
    fn a_missing_folder_is_an_error_that_names_the_file() {
        let (_folder, path) = folder();
        let path = path.join("deeper/root.key");
        let error = RootKeys::load_or_create(&path, || [7; 64]).unwrap_err().to_string();
        assert!(error.contains("deeper/root.key"), "{error}");
    }
}
