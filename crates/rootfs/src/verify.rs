//! Is what is mounted the image?
//!
//! Everything is read once, from the digest on: the manifest hashes to it, the configuration to what the manifest names, and each
//! layer, put together again from its skeleton and the files of the root, to what the configuration names. The layers are
//! applied to a tree, and the root has to be that tree: nothing more, nothing less and nothing else.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, openat, openat2};

use crate::disk::{CONFIG, FILES, IMAGE, MANIFEST, skeleton_name};
use crate::skeleton::{InRoot, Rebuilt};
use crate::tree::{Kind, Named, NodeId, ROOT};
use crate::{Error, Hashed, Image, MAX_DOCUMENT, MAX_ENTRIES, Result, Tree, show, wrong};

/// Verifies that the disk mounted at `disk` has the image `digest`, whole and unchanged.
///
/// # Errors
/// `Wrong` with the first difference, naming the path where there is one; `Io` if the disk cannot be read.
pub fn verify(disk: &Path, digest: &str) -> Result<Image> {
    let own = disk.join(IMAGE);
    let (image, _) = Image::read(digest, &document(&own.join(MANIFEST))?, |_| document(&own.join(CONFIG)))?;
    let root = disk.join(FILES);
    let folder = openat(CWD, &root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let folder = folder.map_err(|error| unreadable(FILES, error))?;
    let mut tree = Tree::default();
    let mut read = Vec::new();
    for (number, expected) in image.diff_ids.iter().enumerate() {
        let named = format!("layer {} of {}, {expected}", number + 1, image.diff_ids.len());
        let files = layer(&own.join(skeleton_name(number)), &folder, &mut tree, expected)
            .map_err(|error| Error::Wrong(format!("{named}: {error}")))?;
        read.extend(files.into_iter().map(|file| (number, file)));
        if read.len() > MAX_ENTRIES {
            return wrong(format!("{named}: its skeleton is broken: it has too many files"));
        }
    }
    let mut check = Check {
        tree: &tree,
        hashed: vec![false; tree.count()],
        nodes: HashMap::new(),
        files: HashMap::new(),
    };
    check.contents(&read);
    let mut path = root;
    check.one(ROOT, &mut path, &mut Vec::new())?;
    Ok(image)
}

fn unreadable(what: &str, error: impl Into<io::Error>) -> Error {
    Error::Wrong(format!("`{what}` of its disk cannot be read: {}", error.into()))
}

/// A document of the disk.
fn document(path: &Path) -> Result<Vec<u8>> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let mut text = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_DOCUMENT + 1).read_to_end(&mut text));
    read.map_err(|error| unreadable(&name, error))?;
    if text.len() as u64 > MAX_DOCUMENT {
        return wrong(format!("its {name} is larger than {MAX_DOCUMENT} bytes"));
    }
    Ok(text)
}

/// Applies a layer and hashes it. The files of the root that it was put together from.
fn layer(skeleton: &Path, root: &OwnedFd, tree: &mut Tree, expected: &str) -> Result<Vec<InRoot>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let inside = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let open = |path: &[u8]| Ok(File::from(openat2(root, path, flags, Mode::empty(), inside)?));
    let skeleton = io::BufReader::with_capacity(64 * 1024, File::open(skeleton)?);
    let mut stream = Hashed::new(Rebuilt::new(skeleton, open));
    let applied = match tree.apply(&mut stream) {
        Err(Error::Io(error)) => return Err(error.into()),
        applied => applied,
    };
    // A layer that was changed is told by its digest, whatever else may be wrong with it.
    io::copy(&mut stream, &mut io::sink())?;
    let (found, rebuilt) = stream.finish();
    if found != expected {
        return wrong(format!("it has another content, which hashes to {found}"));
    }
    applied?;
    Ok(rebuilt.files)
}

struct Check<'a> {
    tree: &'a Tree,
    /// By node: was its content part of a layer that is as it should be?
    hashed: Vec<bool>,
    /// The node of each file of the disk.
    nodes: HashMap<u64, NodeId>,
    /// The file of each node.
    files: HashMap<NodeId, u64>,
}

impl Check<'_> {
    /// Notes the files that were read as the very contents that they have to have.
    fn contents(&mut self, read: &[(usize, InRoot)]) {
        for (layer, file) in read {
            if let Some(id) = self.tree.find(&file.path)
                && let Kind::File(content) = self.tree.node(id).kind
                && (content.layer, content.at, content.size) == (*layer, file.at, file.size)
            {
                self.hashed[id] = true;
            }
        }
    }

    /// Compares what is at a place, and everything in it. `path` is where it is mounted, `inside` its path in the image.
    fn one(&mut self, id: NodeId, path: &mut PathBuf, inside: &mut Vec<u8>) -> Result<()> {
        let is = fs::symlink_metadata(&path).map_err(|error| unreadable(&show(inside), error))?;
        let node = self.tree.node(id);
        let differs = |what: &str, is: &dyn fmt::Display, expected: &dyn fmt::Display| {
            let place = if inside.is_empty() { "/".to_owned() } else { show(inside) };
            wrong(format!("`{place}` of its disk has {what} {is}, and in the image it is {expected}"))
        };
        let (kind, expected) = (FileType::from_raw_mode(is.mode()), node.kind.file_type());
        if kind != expected {
            return differs("the kind", &format_args!("{kind:?}"), &format_args!("{expected:?}"));
        }
        let mode = is.mode() & 0o7777;
        if mode != u32::from(node.mode) {
            return differs("mode", &format_args!("{mode:04o}"), &format_args!("{:04o}", node.mode));
        }
        for (what, is, expected) in [("owner", is.uid(), node.uid), ("group", is.gid(), node.gid)] {
            if is != expected {
                return differs(what, &is, &expected);
            }
        }
        if is.mtime() != i64::from(node.mtime) {
            return differs("the time", &is.mtime(), &node.mtime);
        }
        if !matches!(node.kind, Kind::Folder(_)) {
            let (of_file, of_node) = (self.nodes.insert(is.ino(), id), self.files.insert(id, is.ino()));
            if of_file.is_some_and(|node| node != id) || of_node.is_some_and(|file| file != is.ino()) {
                return differs("other hard links,", &is.nlink(), &"as its layers say");
            }
        }
        match &node.kind {
            Kind::Folder(names) => return self.folder(names, path, inside),
            Kind::File(content) if is.size() != content.size => {
                return differs("a size of", &is.size(), &content.size);
            }
            Kind::File(content) if content.size > 0 && !self.hashed[id] => {
                return wrong(format!(
                    "`{}` of its disk was not read as what it is in the image",
                    show(inside)
                ));
            }
            Kind::Symlink(target) => {
                let leads = fs::read_link(&path).map_err(|error| unreadable(&show(inside), error))?;
                if leads.as_os_str().as_bytes() != target {
                    return differs("a link to", &leads.display(), &show(target));
                }
            }
            Kind::Character(..) | Kind::Block(..) => {
                let device = (rustix::fs::major(is.rdev()), rustix::fs::minor(is.rdev()));
                let (Kind::Character(major, minor) | Kind::Block(major, minor)) = node.kind else {
                    return Ok(());
                };
                if device != (major, minor) {
                    return differs(
                        "the number",
                        &format_args!("{device:?}"),
                        &format_args!("{:?}", (major, minor)),
                    );
                }
            }
            Kind::File(_) | Kind::Fifo => {}
        }
        Ok(())
    }

    fn folder(
        &mut self,
        names: &BTreeMap<Vec<u8>, Named>,
        path: &mut PathBuf,
        inside: &mut Vec<u8>,
    ) -> Result<()> {
        let length = inside.len();
        let below = |inside: &[u8], name: &[u8]| match inside.is_empty() {
            true => show(name),
            false => show(&[inside, b"/", name].concat()),
        };
        let mut there = 0;
        for entry in fs::read_dir(&path).map_err(|error| unreadable(&show(inside), error))? {
            let name = entry?.file_name();
            let Some(named) = names.get(name.as_bytes()) else {
                let path = below(inside, name.as_bytes());
                return wrong(format!("`{path}` is on its disk and not in the image"));
            };
            there += 1;
            if length > 0 {
                inside.push(b'/');
            }
            inside.extend_from_slice(name.as_bytes());
            path.push(&name);
            self.one(named.node, path, inside)?;
            path.pop();
            inside.truncate(length);
        }
        if there < names.len() {
            let is_there = |name: &[u8]| fs::symlink_metadata(path.join(OsStr::from_bytes(name))).is_ok();
            let missing = names.keys().find(|name| !is_there(name)).map_or(&b"?"[..], |name| name);
            return wrong(format!("`{}` is in the image and not on its disk", below(inside, missing)));
        }
        Ok(())
    }
}
