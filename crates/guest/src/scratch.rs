//! What lasts no longer than a boot.
//!
//! The disk that it lies on belongs to the host, which can leave anything there. So nothing that was there before is used: a boot
//! has a folder of its own, which it has to make itself. What is old is only removed, and that with neither a descriptor nor a
//! level of the stack for each level of folders, of which there can be any number.

use std::ffi::CStr;
use std::fs;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, RenameFlags, openat, renameat_with, unlinkat};
use rustix::io::Errno;

use crate::{Doing, Result, say};

/// Makes the folder `own`, right in `run`, and removes everything else from `run`.
///
/// # Errors
/// `own` is there and cannot be removed, or cannot be made.
pub(crate) fn begin(run: &Path, own: &Path) -> Result<()> {
    folder(run)?;
    // What stays takes room and does no other harm.
    if let Err(error) = empty(run) {
        say!("{error}");
    }
    fs::create_dir(own).doing(format_args!("cannot make {}", own.display()))
}

/// Makes a folder if it is not there.
///
/// # Errors
/// Something else is there, a link to a folder for example.
pub(crate) fn folder(path: &Path) -> Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        made => return made.doing(format_args!("cannot make {}", path.display())),
    }
    let there = fs::symlink_metadata(path).doing(format_args!("cannot look at {}", path.display()))?;
    if there.is_dir() { Ok(()) } else { Err(format!("{} is no folder", path.display())) }
}

/// Removes whatever is there, if anything is.
pub(crate) fn remove(path: &Path) -> Result<()> {
    let removed = match unlinkat(CWD, path, AtFlags::empty()) {
        Err(Errno::ISDIR | Errno::PERM) => {
            empty(path)?;
            unlinkat(CWD, path, AtFlags::REMOVEDIR)
        }
        Err(Errno::NOENT) => Ok(()),
        removed => removed,
    };
    removed.doing(format_args!("cannot remove {}", path.display()))
}

/// Removes everything from a folder.
fn empty(path: &Path) -> Result<()> {
    let cannot = |error: Errno| format!("cannot remove what is in {}: {error}", path.display());
    let top = open(CWD, path).map_err(cannot)?;
    let mut moved = 0;
    // What is moved to the top may be read in this pass or in the next one.
    loop {
        let (mut has_done, mut failed) = (false, None);
        each(&top, |name| match remove_one(&top, name, &mut moved) {
            Ok(()) => has_done = true,
            Err((error, is_nearer)) => {
                has_done |= is_nearer;
                failed = Some(error);
            }
        })
        .map_err(cannot)?;
        match failed {
            _ if has_done => {}
            Some(error) => return Err(cannot(error)),
            None => return Ok(()),
        }
    }
}

/// Removes what is right in the folder, and moves the folders in it to the top. If it fails: was something done all the same?
fn remove_one(top: &OwnedFd, name: &CStr, moved: &mut u64) -> Result<(), (Errno, bool)> {
    let mut has_done = false;
    match unlinkat(top, name, AtFlags::empty()) {
        Err(Errno::ISDIR | Errno::PERM) => {}
        removed => return removed.map_err(|error| (error, false)),
    }
    let folder = open(top, name).map_err(|error| (error, false))?;
    let mut failed = None;
    let read = each(&folder, |name| {
        let removed = match unlinkat(&folder, name, AtFlags::empty()) {
            Err(Errno::ISDIR | Errno::PERM) => move_up(&folder, name, top, moved),
            removed => removed,
        };
        match removed {
            Ok(()) => has_done = true,
            Err(error) => failed = Some(error),
        }
    });
    let removed = read.and_then(|()| unlinkat(top, name, AtFlags::REMOVEDIR));
    removed.map_err(|error| (failed.unwrap_or(error), has_done))
}

/// Moves a folder to the top, under a name that nothing has there.
fn move_up(from: &OwnedFd, name: &CStr, top: &OwnedFd, moved: &mut u64) -> Result<(), Errno> {
    loop {
        *moved += 1;
        match renameat_with(from, name, top, format!("old-{moved}"), RenameFlags::NOREPLACE) {
            Err(Errno::EXIST) => {}
            renamed => return renamed,
        }
    }
}

fn open(at: impl std::os::fd::AsFd, path: impl rustix::path::Arg) -> Result<OwnedFd, Errno> {
    openat(at, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

/// Does something with every name in a folder.
fn each(folder: &OwnedFd, mut act: impl FnMut(&CStr)) -> Result<(), Errno> {
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            act(entry.file_name());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// Folders in folders, with a file in the last one.
    fn plant(at: &Path, levels: usize) {
        fs::create_dir(at).unwrap();
        let mut folder = open(CWD, at).unwrap();
        for _ in 0..levels {
            rustix::fs::mkdirat(&folder, "old-1", Mode::from_raw_mode(0o755)).unwrap();
            folder = open(&folder, "old-1").unwrap();
        }
        let flags = OFlags::CREATE | OFlags::WRONLY;
        openat(&folder, "planted", flags, Mode::from_raw_mode(0o644)).unwrap();
    }

    #[test]
    fn a_boot_begins_with_nothing_however_deep_it_lies() {
        let around = tempfile::tempdir().unwrap();
        let (run, outside) = (around.path().join("run"), around.path().join("outside"));
        fs::create_dir(&run).unwrap();
        fs::write(&outside, "stays").unwrap();
        let own = run.join("boot-7");
        plant(&own, 5000);
        plant(&run.join("services"), 3000);
        fs::write(run.join("old-2"), "a file").unwrap();
        symlink(&outside, run.join("link")).unwrap();
        symlink(around.path(), run.join("services/link")).unwrap();
        begin(&run, &own).unwrap();
        assert_eq!(fs::read_dir(&run).unwrap().count(), 1);
        assert_eq!(fs::read_dir(&own).unwrap().count(), 0);
        assert_eq!(fs::read_to_string(&outside).unwrap(), "stays");

        plant(&run.join("volume"), 5000);
        remove(&run.join("volume")).unwrap();
        remove(&run.join("link")).unwrap();
        assert!(!run.join("volume").exists());
    }

    #[test]
    fn only_a_folder_is_a_folder() {
        let around = tempfile::tempdir().unwrap();
        let (run, link) = (around.path().join("run"), around.path().join("link"));
        folder(&run).unwrap();
        folder(&run).unwrap();
        symlink(&run, &link).unwrap();
        assert_eq!(
            begin(&link, &link.join("boot-1")).unwrap_err(),
            format!("{} is no folder", link.display())
        );
        fs::write(around.path().join("file"), "").unwrap();
        assert!(folder(&around.path().join("file")).is_err());
    }
}
