//! Is what is mounted the image?
//!
//! Everything is read once, from the digest on: the manifest hashes to it, the configuration to what the manifest names, and each
//! layer, put together again from its skeleton and the files of the root, to what the configuration names. The layers are
//! applied to a tree, and the root has to be that tree: nothing more, nothing less and nothing else.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, llistxattr, llistxattr_query, openat, openat2};
use rustix::io::Errno;

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
    let mut check = Check::new(&tree);
    check.contents(&read);
    check.all(&root)?;
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
    /// By node: how many names has it?
    names: Vec<u64>,
    /// The node of each file and folder of the disk.
    nodes: HashMap<u64, NodeId>,
    /// The file of each node.
    files: HashMap<NodeId, u64>,
}

/// A place in the root.
struct Place {
    path: Vec<u8>,
    /// Bytes of the path up to the root.
    root: usize,
}

impl Place {
    fn enter(&mut self, name: &[u8]) {
        self.path.push(b'/');
        self.path.extend_from_slice(name);
    }

    /// Where it is mounted.
    fn mounted(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.path))
    }

    /// Its path in the image.
    fn inside(&self) -> &[u8] {
        self.path.get(self.root + 1..).unwrap_or_default()
    }

    fn show(&self) -> String {
        let inside = self.inside();
        if inside.is_empty() { "/".to_owned() } else { show(inside) }
    }

    fn show_below(&self, name: &[u8]) -> String {
        let inside = self.inside();
        if inside.is_empty() { show(name) } else { show(&[inside, b"/", name].concat()) }
    }
}

/// A folder whose names are known: those that were not compared yet, and the bytes of its path.
type Open<'a> = (Vec<(&'a [u8], NodeId)>, usize);

impl<'a> Check<'a> {
    fn new(tree: &'a Tree) -> Self {
        let mut names = vec![0; tree.count()];
        let Ok(()) = tree.walk(|_, id| {
            names[id] += 1;
            Ok::<_, Infallible>(())
        });
        let hashed = vec![false; tree.count()];
        Self { tree, hashed, names, nodes: HashMap::new(), files: HashMap::new() }
    }

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

    /// Compares the root and everything in it, with no folder open while another is read.
    fn all(&mut self, root: &Path) -> Result<()> {
        let path = root.as_os_str().as_bytes().to_vec();
        let mut place = Place { root: path.len(), path };
        let mut open: Vec<Open<'a>> = self.one(ROOT, &place)?.into_iter().collect();
        while let Some((names, length)) = open.last_mut() {
            place.path.truncate(*length);
            let Some((name, id)) = names.pop() else {
                open.pop();
                continue;
            };
            place.enter(name);
            open.extend(self.one(id, &place)?);
        }
        Ok(())
    }

    /// Compares what is at a place. If it is a folder: what is in it.
    fn one(&mut self, id: NodeId, place: &Place) -> Result<Option<Open<'a>>> {
        let path = place.mounted();
        let is = fs::symlink_metadata(path).map_err(|error| unreadable(&place.show(), error))?;
        let node = self.tree.node(id);
        let differs = |what: &str, is: &dyn fmt::Display, expected: &dyn fmt::Display| {
            let place = place.show();
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
        if let Some(name) = attribute(path).map_err(|error| unreadable(&place.show(), error))? {
            return wrong(format!(
                "`{}` of its disk has the extended attribute {}",
                place.show(),
                show(&name)
            ));
        }
        let (of_file, of_node) = (self.nodes.insert(is.ino(), id), self.files.insert(id, is.ino()));
        if of_file.is_some_and(|node| node != id) || of_node.is_some_and(|file| file != is.ino()) {
            return differs("other hard links,", &is.nlink(), &"as its layers say");
        }
        match &node.kind {
            Kind::Folder(names) => return self.folder(names, place).map(Some),
            Kind::File(content) if is.size() != content.size => {
                return differs("a size of", &is.size(), &content.size);
            }
            Kind::File(_) if is.nlink() != self.names[id] => {
                return differs("other hard links,", &is.nlink(), &self.names[id]);
            }
            Kind::File(content) if content.size > 0 && !self.hashed[id] => {
                return wrong(format!(
                    "`{}` of its disk was not read as what it is in the image",
                    place.show()
                ));
            }
            Kind::Symlink(target) => {
                let leads = fs::read_link(path).map_err(|error| unreadable(&place.show(), error))?;
                let leads = leads.as_os_str().as_bytes();
                if leads != target {
                    return differs("a link to", &show(leads), &show(target));
                }
            }
            Kind::Character(..) | Kind::Block(..) => {
                let device = (rustix::fs::major(is.rdev()), rustix::fs::minor(is.rdev()));
                let (Kind::Character(major, minor) | Kind::Block(major, minor)) = node.kind else {
                    return Ok(None);
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
        Ok(None)
    }

    /// Reads the names in a folder, which have to be those of the image, each once.
    fn folder(&self, names: &'a BTreeMap<Vec<u8>, Named>, place: &Place) -> Result<Open<'a>> {
        let path = place.mounted();
        let entries = fs::read_dir(path).map_err(|error| unreadable(&place.show(), error))?;
        let entries = entries
            .map(|entry| Ok(entry.map_err(|error| unreadable(&place.show(), error))?.file_name().into_vec()));
        Ok((same_names(names, entries, place)?, place.path.len()))
    }
}

/// The names that were read, if they are those of the image.
fn same_names<'a>(
    names: &'a BTreeMap<Vec<u8>, Named>,
    read: impl Iterator<Item = Result<Vec<u8>>>,
    place: &Place,
) -> Result<Vec<(&'a [u8], NodeId)>> {
    let mut seen = BTreeMap::new();
    for name in read {
        let name = name?;
        let Some((name, named)) = names.get_key_value(&name) else {
            return wrong(format!("`{}` is on its disk and not in the image", place.show_below(&name)));
        };
        if seen.insert(name.as_slice(), named.node).is_some() {
            return wrong(format!("`{}` is on its disk more than once", place.show_below(name)));
        }
    }
    if let Some(missing) = names.keys().find(|name| !seen.contains_key(name.as_slice())) {
        return wrong(format!("`{}` is in the image and not on its disk", place.show_below(missing)));
    }
    Ok(seen.into_iter().collect())
}

/// The name of an extended attribute, of which a disk has none: they can give a program rights, and files other contents.
fn attribute(path: &Path) -> io::Result<Option<Vec<u8>>> {
    // Only a kernel with SELinux has this one, and has it for every file; a machine's kernel does not use it.
    const MADE_UP: &[u8] = b"security.selinux";
    match llistxattr_query(path) {
        Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(None),
        size => size?,
    };
    // As long as the kernel lets it be.
    let mut list = vec![0; 64 * 1024];
    let length = llistxattr(path, &mut list[..])?;
    let mut names = list[..length].split(|byte| *byte == 0);
    Ok(names.find(|name| !name.is_empty() && *name != MADE_UP).map(<[u8]>::to_vec))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{entry, try_tree};

    /// No file system that can be made here has a name twice.
    #[test]
    fn a_folder_has_each_name_once() {
        let tree = try_tree(&[[
            entry(tar::EntryType::Regular, "a", "", b""),
            entry(tar::EntryType::Regular, "b", "", b""),
        ]
        .concat()])
        .unwrap();
        let Kind::Folder(names) = &tree.node(ROOT).kind else { panic!() };
        let place = Place { path: b"/disk/root".to_vec(), root: 10 };
        let same = |read: &[&str]| {
            let read = read.iter().map(|name| Ok(name.as_bytes().to_vec()));
            same_names(names, read, &place).map(|names| names.len()).map_err(|error| error.to_string())
        };
        assert_eq!(same(&["b", "a"]), Ok(2));
        assert_eq!(same(&["a", "a"]), Err("`a` is on its disk more than once".to_owned()));
        assert_eq!(same(&["b"]), Err("`a` is in the image and not on its disk".to_owned()));
        assert_eq!(same(&["a", "b", "c"]), Err("`c` is on its disk and not in the image".to_owned()));
    }
}
