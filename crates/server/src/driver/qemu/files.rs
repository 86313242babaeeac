//! Files that are whole or not there, also after the power went. No symbolic link is followed: what is ours lies in our folders.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{Error, ErrorKind, Result, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use rustix::event::{Timespec, poll};
use rustix::fs::{FlockOperation, OFlags, flock};

/// How long a folder's lock is waited for.
const LOCKED: Duration = Duration::from_secs(2);

/// Replaces the file `name` of `folder`, readable by the owner alone.
pub(super) fn replace(folder: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let half = folder.join(format!("{name}.new"));
    let written = create(&half).and_then(|mut out| {
        out.write_all(bytes)?;
        out.sync_all()
    });
    written.and_then(|()| put(&half, &folder.join(name))).inspect_err(|_| {
        // On a full disk, it takes room.
        let _ = std::fs::remove_file(&half);
    })
}

/// Moves a finished file into its place.
pub(super) fn put(half: &Path, whole: &Path) -> Result<()> {
    gate(whole)?;
    std::fs::rename(half, whole)?;
    gate(whole)?;
    match whole.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

/// Gives a finished file, which nobody changes, a name in another place as well; a copy of it, where that is another file system.
pub(super) fn share(whole: &Path, place: &Path) -> Result<()> {
    let name = place.file_name().unwrap_or_default().to_string_lossy();
    let half = place.with_file_name(format!("{name}.new"));
    gate(&half)?;
    match std::fs::remove_file(&half) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let copy = || {
        let mut out = create(&half)?;
        std::io::copy(&mut read(whole)?, &mut out)?;
        out.sync_all()
    };
    let shared = std::fs::hard_link(whole, &half).or_else(|_| copy());
    let shared = shared.and_then(|()| put(&half, place));
    // It stays also where the two were names of the same file already.
    let _ = std::fs::remove_file(&half);
    shared
}

/// An empty file for the owner alone, whatever was there before.
pub(super) fn create(path: &Path) -> Result<File> {
    write(path, OpenOptions::new().write(true).create(true).truncate(true))
}

/// A file to write at the end of, made for the owner alone if it is not there.
pub(super) fn append(path: &Path) -> Result<File> {
    write(path, OpenOptions::new().append(true).create(true))
}

/// A file that is there, to be changed.
pub(super) fn change(path: &Path) -> Result<File> {
    write(path, OpenOptions::new().write(true))
}

/// A file that is there, to be read.
pub(super) fn read(path: &Path) -> Result<File> {
    open(path, OpenOptions::new().read(true))
}

/// Is a file there? A link to one is none.
pub(super) fn is_there(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file())
}

fn write(path: &Path, how: &mut OpenOptions) -> Result<File> {
    gate(path)?;
    open(path, how.mode(0o600))
}

fn open(path: &Path, how: &mut OpenOptions) -> Result<File> {
    how.custom_flags(OFlags::NOFOLLOW.bits().cast_signed()).open(path).map_err(|error| {
        if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) {
            return Error::new(ErrorKind::InvalidInput, format!("{} is a symbolic link", path.display()));
        }
        error
    })
}

/// Makes a folder for the owner alone, with those above it.
pub(super) fn make_private(folder: &Path) -> Result<()> {
    gate(folder)?;
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let meta = std::fs::symlink_metadata(folder)?;
    if !meta.is_dir() {
        return Err(Error::new(ErrorKind::NotADirectory, "it is a symbolic link"));
    }
    if meta.permissions().mode() & 0o077 != 0 {
        std::fs::set_permissions(folder, Permissions::from_mode(0o700))?;
    }
    Ok(())
}

/// Takes a folder for this process, as long as the file is open.
///
/// # Errors
/// Another process has it.
pub(super) fn lock(folder: &Path) -> Result<File> {
    let file = append(&folder.join("lock"))?;
    for _ in 0..LOCKED.as_millis() / 20 {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            // It may be on its way out.
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let _ = poll(&mut [], Some(&Timespec { tv_sec: 0, tv_nsec: 20_000_000 }));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Err(Error::new(ErrorKind::ResourceBusy, "another casemate uses it"))
}

/// Bytes that are free where a folder lies.
pub(super) fn free(folder: &Path) -> Result<u64> {
    let disk = rustix::fs::statvfs(folder)?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// Every change of a file passes here, so that tests can let the disk be full or the power go, at any of them.
#[cfg(not(test))]
#[expect(clippy::unnecessary_wraps, reason = "in tests it fails")]
pub(super) fn gate(_: &Path) -> Result<()> {
    Ok(())
}

#[cfg(test)]
pub(super) use faults::gate;

#[cfg(test)]
pub(super) mod faults {
    use std::collections::BTreeMap;
    use std::path::PathBuf;
    use std::sync::Mutex;

    use super::*;

    /// What happens to changes below a folder.
    struct Planned {
        /// So many go well yet.
        left: usize,
        /// Did one not?
        struck: bool,
    }

    static PLANNED: Mutex<BTreeMap<PathBuf, Planned>> = Mutex::new(BTreeMap::new());

    /// After `left` more changes below `folder`, no further one takes place.
    pub(in crate::driver::qemu) fn after(folder: &Path, left: usize) {
        PLANNED.lock().unwrap().insert(folder.into(), Planned { left, struck: false });
    }

    /// All is well again. Was there a change that did not take place?
    pub(in crate::driver::qemu) fn clear(folder: &Path) -> bool {
        PLANNED.lock().unwrap().remove(folder).is_some_and(|planned| planned.struck)
    }

    pub(in crate::driver::qemu) fn gate(path: &Path) -> Result<()> {
        let mut planned = PLANNED.lock().unwrap();
        let Some((_, planned)) = planned.iter_mut().find(|(folder, _)| path.starts_with(folder)) else {
            return Ok(());
        };
        match planned.left.checked_sub(1) {
            Some(left) => planned.left = left,
            None => {
                planned.struck = true;
                return Err(rustix::io::Errno::NOSPC.into());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_not_followed_and_strangers_kept_out() {
        let folder = tempfile::tempdir().unwrap();
        let (outside, inside) = (folder.path().join("outside"), folder.path().join("inside"));
        std::fs::write(&outside, "untouched").unwrap();
        std::fs::create_dir(&inside).unwrap();
        std::fs::set_permissions(&inside, Permissions::from_mode(0o755)).unwrap();
        make_private(&inside).unwrap();
        assert_eq!(std::fs::metadata(&inside).unwrap().permissions().mode() & 0o777, 0o700);
        for name in ["a", "a.new"] {
            std::os::unix::fs::symlink(&outside, inside.join(name)).unwrap();
        }
        assert!(replace(&inside, "a", b"text").unwrap_err().to_string().contains("symbolic link"));
        for open in [create, append, change, read] {
            assert!(open(&inside.join("a")).unwrap_err().to_string().contains("symbolic link"));
        }
        assert!(!is_there(&inside.join("a")));
        // What is replaced is the link, and not what it points at.
        replace(&inside, "a", b"text").unwrap();
        assert_eq!(std::fs::read(inside.join("a")).unwrap(), b"text");
        assert_eq!(std::fs::read(&outside).unwrap(), b"untouched");
        assert_eq!(std::fs::metadata(inside.join("a")).unwrap().permissions().mode() & 0o777, 0o600);
        std::os::unix::fs::symlink(&inside, folder.path().join("link")).unwrap();
        assert!(make_private(&folder.path().join("link")).is_err());
    }
}
