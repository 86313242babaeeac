//! A layer of an image, made into files.
//!
//! Every path is resolved by the kernel as if the root were `/` (`RESOLVE_IN_ROOT`), so neither `..` nor a symbolic link
//! that an earlier layer left behind leads out of it; names are then used in the folder that was found, without following.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, chmodat,
    chownat, linkat, makedev, mkdirat, mknodat, openat, openat2, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;
use tar::EntryType;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Applies one layer to what the layers before it made.
pub(crate) fn layer<R: Read>(from: &mut R, root: &Path) -> io::Result<()> {
    let root = openat(CWD, root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut archive = tar::Archive::new(from);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = inside(&entry.path()?)?;
        let place = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        one(&root, &path, &mut entry).map_err(place)?;
    }
    // What follows the archive's end belongs to the layer, and to its digest.
    io::copy(archive.into_inner(), &mut io::sink())?;
    Ok(())
}

/// Opens a file of an unpacked image to read it.
pub(crate) fn open(root: &Path, path: &str) -> io::Result<File> {
    let root = openat(CWD, root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)?.into())
}

/// Makes a folder of an unpacked image, and those above it, where they are missing.
pub(crate) fn make_folder(root: &Path, path: &Path) -> io::Result<()> {
    let root = openat(CWD, root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    folder(&root, &inside(path)?).map(drop)
}

/// A path relative to the root, or nothing for the root itself.
fn inside(path: &Path) -> io::Result<PathBuf> {
    let mut inside = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => inside.push(name),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(io::Error::other(format!("{} leads upwards", path.display())));
            }
        }
    }
    Ok(inside)
}

fn one<R: Read>(root: &OwnedFd, path: &Path, entry: &mut tar::Entry<'_, R>) -> io::Result<()> {
    let header = entry.header();
    let kind = header.entry_type();
    let mode = Mode::from_raw_mode(header.mode()? & 0o7777);
    let owner = (Uid::from_raw(id(header.uid()?)?), Gid::from_raw(id(header.gid()?)?));
    let modified = header.mtime().unwrap_or_default();
    // Tools leave empty what a kind has no use for.
    let number = |field: io::Result<Option<u32>>| field.ok().flatten().unwrap_or_default();
    let device = (number(header.device_major()), number(header.device_minor()));
    if kind == EntryType::XGlobalHeader {
        return Ok(());
    }
    let Some(name) = path.file_name() else {
        // The root itself.
        chmodat(root, ".", mode, AtFlags::empty())?;
        return Ok(chownat(root, ".", Some(owner.0), Some(owner.1), AtFlags::empty())?);
    };
    let folder = folder(root, path.parent().unwrap_or(Path::new("")))?;
    if name.as_bytes() == OPAQUE {
        return empty(&folder);
    }
    if let Some(hidden) = name.as_bytes().strip_prefix(WHITEOUT) {
        return match hidden {
            b"" | b"." | b".." => Err(io::Error::other("hides nothing that can be there")),
            hidden => remove(&folder, OsStr::from_bytes(hidden)),
        };
    }
    let is_folder = |folder: &OwnedFd| {
        statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
    };
    if kind.is_dir() && is_folder(&folder) {
        // It stays, with what it has, and gets the newer layer's rights.
    } else {
        remove(&folder, name)?;
        match kind {
            EntryType::Directory => mkdirat(&folder, name, mode)?,
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let flags =
                    OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let mut file = File::from(openat(&folder, name, flags, Mode::RUSR | Mode::WUSR)?);
                io::copy(entry, &mut file)?;
            }
            EntryType::Symlink => {
                let target = entry.link_name()?.ok_or_else(|| io::Error::other("a link to nothing"))?;
                symlinkat(&*target, &folder, name)?;
            }
            EntryType::Link => {
                let target = entry.link_name()?.ok_or_else(|| io::Error::other("a link to nothing"))?;
                let target = inside(&target)?;
                let Some(target_name) = target.file_name() else {
                    return Err(io::Error::other("a link to the root"));
                };
                let beside = self::folder(root, target.parent().unwrap_or(Path::new("")))?;
                // Owner and rights are those of what it links to.
                return Ok(linkat(&beside, target_name, &folder, name, AtFlags::empty())?);
            }
            EntryType::Char => {
                mknodat(&folder, name, FileType::CharacterDevice, mode, makedev(device.0, device.1))?
            }
            EntryType::Block => {
                mknodat(&folder, name, FileType::BlockDevice, mode, makedev(device.0, device.1))?
            }
            EntryType::Fifo => mknodat(&folder, name, FileType::Fifo, mode, 0)?,
            other => return Err(io::Error::other(format!("is of a kind that is not supported: {other:?}"))),
        }
    }
    chownat(&folder, name, Some(owner.0), Some(owner.1), AtFlags::SYMLINK_NOFOLLOW)?;
    if kind != EntryType::Symlink {
        // After the owner, whose change takes the set-user-id bit away. What is there is no link: it was just made.
        chmodat(&folder, name, mode, AtFlags::empty())?;
    }
    if !kind.is_dir() {
        let time = Timespec { tv_sec: i64::try_from(modified).unwrap_or_default(), tv_nsec: 0 };
        let times = Timestamps { last_access: time, last_modification: time };
        utimensat(&folder, name, &times, AtFlags::SYMLINK_NOFOLLOW)?;
    }
    Ok(())
}

fn id(id: u64) -> io::Result<u32> {
    // The highest number means "nobody in particular" to the kernel.
    u32::try_from(id)
        .ok()
        .filter(|id| *id != u32::MAX)
        .ok_or_else(|| io::Error::other("an owner's number is too high"))
}

/// Opens a folder below the root, and makes what is missing of it.
fn folder(root: &OwnedFd, path: &Path) -> io::Result<OwnedFd> {
    let open = |path: &Path| {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
    };
    match open(path) {
        Err(Errno::NOENT) => {
            let name = path.file_name().ok_or_else(|| io::Error::other("no such folder"))?;
            let parent = folder(root, path.parent().unwrap_or(Path::new("")))?;
            mkdirat(&parent, name, Mode::from_raw_mode(0o755))?;
            Ok(open(path)?)
        }
        found => Ok(found?),
    }
}

/// Removes whatever has this name in the folder, if anything does.
fn remove(folder: &OwnedFd, name: &OsStr) -> io::Result<()> {
    match unlinkat(folder, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            empty(&openat(folder, name, flags, Mode::empty())?)?;
            Ok(unlinkat(folder, name, AtFlags::REMOVEDIR)?)
        }
        Err(error) => Err(error.into()),
    }
}

/// Removes everything in the folder.
fn empty(folder: &OwnedFd) -> io::Result<()> {
    for entry in Dir::read_from(folder.as_fd())? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            remove(folder, OsStr::from_bytes(name))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn entry(kind: EntryType, path: &str, link: &str, content: &[u8]) -> Vec<u8> {
        let mut header = tar::Header::new_ustar();
        // The crate's own functions refuse such names as the tests are about.
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(if kind == EntryType::Directory { 0o755 } else { 0o640 });
        header.set_uid(rustix::process::getuid().as_raw().into());
        header.set_gid(rustix::process::getgid().as_raw().into());
        header.set_mtime(1_000_000_000);
        header.set_size(content.len() as u64);
        header.set_cksum();
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend_from_slice(content);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes
    }

    fn file(path: &str, content: &str) -> Vec<u8> {
        entry(EntryType::Regular, path, "", content.as_bytes())
    }

    fn apply(root: &Path, entries: &[Vec<u8>]) -> io::Result<()> {
        let mut bytes = entries.concat();
        bytes.extend_from_slice(&[0; 1024]);
        layer(&mut &bytes[..], root)
    }

    fn names(root: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(root)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn later_layers_replace_hide_and_empty() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let dir = |path| entry(EntryType::Directory, path, "", b"");
        apply(
            root,
            &[
                dir("a/"),
                file("a/one", "1"),
                file("a/two", "2"),
                dir("b/"),
                file("b/three", "3"),
                file("c", "4"),
            ],
        )
        .unwrap();
        apply(
            root,
            &[
                file("a/.wh.one", ""),
                file("b/.wh..wh..opq", ""),
                file("b/four", "4"),
                file("c/now/a/folder", "5"),
            ],
        )
        .unwrap_err();
        apply(
            root,
            &[file(".wh.c", ""), file("c/now/a/folder", "5"), entry(EntryType::Link, "hard", "a/two", b"")],
        )
        .unwrap();
        assert_eq!(
            (names(root), names(&root.join("a")), names(&root.join("b"))),
            (
                vec!["a".to_owned(), "b".to_owned(), "c".to_owned(), "hard".to_owned()],
                vec!["two".to_owned()],
                vec!["four".to_owned()],
            )
        );
        assert_eq!(fs::read_to_string(root.join("c/now/a/folder")).unwrap(), "5");
        assert_eq!(fs::read_to_string(root.join("hard")).unwrap(), "2");
        use std::os::unix::fs::MetadataExt;
        let two = fs::metadata(root.join("a/two")).unwrap();
        assert_eq!((two.mode() & 0o7777, two.mtime(), two.nlink()), (0o640, 1_000_000_000, 2));
        // A folder gives way to a file.
        apply(root, &[file("a", "6")]).unwrap();
        assert_eq!(fs::read_to_string(root.join("a")).unwrap(), "6");
    }

    #[test]
    fn no_path_leaves_the_root() {
        let around = tempfile::tempdir().unwrap();
        let root = around.path().join("root");
        fs::create_dir(&root).unwrap();
        fs::create_dir(around.path().join("out")).unwrap();
        fs::write(around.path().join("secret"), "secret").unwrap();
        let out = around.path().join("out").to_str().unwrap().to_owned();
        let link = |path: &str, to: &str| entry(EntryType::Symlink, path, to, b"");

        assert!(apply(&root, &[file("../out/file", "x")]).is_err());
        assert!(apply(&root, &[file("a/../../out/file", "x")]).is_err());
        assert!(apply(&root, &[file("a/.wh...", "x")]).is_err());
        // Links are followed as if the root were `/`; one that leads nowhere there leads nowhere.
        let out_inside = entry(EntryType::Directory, "out/", "", b"");
        apply(
            &root,
            &[
                out_inside,
                link("rel", "../out"),
                file("rel/file", "x"),
                link("abs", "/out"),
                file("abs/two", "x"),
            ],
        )
        .unwrap();
        assert!(apply(&root, &[link("away", &out), file("away/file", "x")]).is_err());
        apply(&root, &[file("/absolute", "x"), link("file", "/secret"), file("file", "x")]).unwrap();
        assert!(apply(&root, &[entry(EntryType::Link, "steal", "../secret", b"")]).is_err());
        assert!(
            apply(&root, &[link("s", "../secret"), entry(EntryType::Link, "steal", "s/x", b"")]).is_err()
        );
        apply(&root, &[link("gone", "../secret"), file(".wh.gone", "")]).unwrap();

        assert_eq!(names(&around.path().join("out")), [""; 0], "nothing was written outside");
        assert_eq!(fs::read_to_string(around.path().join("secret")).unwrap(), "secret");
        assert_eq!(fs::read_to_string(root.join("out/file")).unwrap(), "x", "but in the root");
        assert!(root.join("out/two").exists() && root.join("absolute").exists());
    }
}
