//! Files and folders of a container's root.
//!
//! Every path is resolved by the kernel as if the root were `/` (`RESOLVE_IN_ROOT`), so neither `..` nor a symbolic link that the
//! image has leads out of it.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, openat, openat2};
use rustix::io::Errno;

/// Bytes of a text.
const MAX_TEXT: u64 = 1024 * 1024;

/// Opens what is at a path, to read it.
pub(crate) fn open(root: &Path, path: &str) -> io::Result<File> {
    let root = openat(CWD, root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)?.into())
}

/// The text of a file; none where there is nothing.
///
/// # Errors
/// It is no regular file, is longer than 1 MiB, or cannot be read.
pub(crate) fn text(root: &Path, path: &str) -> io::Result<String> {
    let root = openat(CWD, root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    // Looked at before it is opened, since some devices act when they are.
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let there = match openat2(
        root,
        path,
        flags,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    ) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(String::new()),
        there => there?,
    };
    if FileType::from_raw_mode(fstat(&there)?.st_mode) != FileType::RegularFile {
        return Err(io::Error::other("it is no regular file"));
    }
    let file = File::open(format!("/proc/self/fd/{}", there.as_raw_fd()))?;
    let mut text = Vec::new();
    file.take(MAX_TEXT + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_TEXT {
        return Err(io::Error::other("it is longer than 1 MiB"));
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// Makes a folder, and those above it, where they are missing.
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

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::mknodat;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn no_path_leaves_the_root() {
        let around = tempfile::tempdir().unwrap();
        let root = around.path().join("root");
        fs::create_dir_all(root.join("etc")).unwrap();
        fs::create_dir(around.path().join("out")).unwrap();
        fs::write(around.path().join("secret"), "of the machine").unwrap();
        fs::write(root.join("secret"), "of the container").unwrap();
        symlink("../../secret", root.join("etc/up")).unwrap();
        symlink("/secret", root.join("etc/absolute")).unwrap();
        symlink("../out", root.join("away")).unwrap();
        for path in ["etc/up", "etc/absolute", "../secret"] {
            let mut text = String::new();
            open(&root, path).unwrap().read_to_string(&mut text).unwrap();
            assert_eq!(text, "of the container", "{path}");
        }
        make_folder(&root, Path::new("/new/here")).unwrap();
        assert!(root.join("new/here").is_dir());
        assert!(make_folder(&root, Path::new("../out/made")).is_err());
        assert!(make_folder(&root, Path::new("away/made")).is_err(), "a link that leads nowhere in there");
        assert_eq!(fs::read_dir(around.path().join("out")).unwrap().count(), 0);
    }

    #[test]
    fn only_a_file_that_is_not_too_long_is_a_text() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        let mut long = vec![b'x'; MAX_TEXT as usize];
        fs::write(path("file"), &long).unwrap();
        long.push(b'x');
        fs::write(path("long"), &long).unwrap();
        fs::create_dir(path("folder")).unwrap();
        mknodat(CWD, path("pipe"), FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        symlink("/pipe", path("link")).unwrap();
        assert_eq!(text(root.path(), "file").unwrap().len() as u64, MAX_TEXT);
        assert_eq!(text(root.path(), "none").unwrap(), "");
        assert_eq!(text(root.path(), "file/none").unwrap(), "");
        for (name, expected) in [
            ("long", "it is longer than 1 MiB"),
            ("folder", "it is no regular file"),
            ("pipe", "it is no regular file"),
            ("link", "it is no regular file"),
        ] {
            assert_eq!(text(root.path(), name).unwrap_err().to_string(), expected, "{name}");
        }
    }
}
