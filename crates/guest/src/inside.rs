//! Files and folders of a container's root.
//!
//! Every path is resolved by the kernel as if the root were `/` (`RESOLVE_IN_ROOT`), so neither `..` nor a symbolic link that the
//! image has leads out of it.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, mkdirat, openat, openat2};
use rustix::io::Errno;

/// Opens what is at a path, to read it.
pub(crate) fn open(root: &Path, path: &str) -> io::Result<File> {
    let root = openat(CWD, root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)?.into())
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
    use std::fs;
    use std::io::Read;
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
        make_folder(&root, Path::new("/work/here")).unwrap();
        assert!(root.join("work/here").is_dir());
        assert!(make_folder(&root, Path::new("../out/made")).is_err());
        assert!(make_folder(&root, Path::new("away/made")).is_err(), "a link that leads nowhere in there");
        assert_eq!(fs::read_dir(around.path().join("out")).unwrap().count(), 0);
    }
}
