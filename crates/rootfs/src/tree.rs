//! The files that layers make, one upon the other.
//!
//! Paths are resolved as if the tree's root were `/`: a link that an earlier entry left behind is followed, and leads nowhere
//! else. A layer hides what older layers have (`.wh.NAME`) or empties a folder of it (`.wh..wh..opq`), whatever the order of its
//! own entries. A folder that is there stays with what it has and gets the newer rights; anything else is replaced.

use std::collections::BTreeMap;
use std::io::Read;

use rustix::fs::FileType;
use tar::EntryType;

use crate::archive::{Archive, Entry, names};
use crate::{Error, MAX_ENTRIES, MAX_NAMES, MAX_PATH, Result, show, wrong};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// What else begins so belongs to the file system that wrote the layer.
const OF_WRITER: &[u8] = b".wh..wh.";
/// As many links are followed in one path.
const MAX_LINKS: usize = 40;
/// As often is a folder looked into. An image that means well needs about ten looks for an entry.
const MAX_STEPS: u64 = 50_000_000;

/// Number of a node in its tree.
pub type NodeId = usize;
/// The root.
pub const ROOT: NodeId = 0;

/// What the layers of an image make.
#[derive(Debug)]
pub struct Tree {
    nodes: Vec<Node>,
    /// Number of the layer at work.
    layer: usize,
    entries: usize,
    /// Bytes of names and link targets.
    bytes: usize,
    steps: u64,
}

/// A file, a folder or whatever else has one or more names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Rights, 12 bits.
    pub mode: u16,
    /// Number of its owner.
    pub uid: u32,
    /// Number of its group.
    pub gid: u32,
    /// Seconds since 1970.
    pub mtime: u32,
    /// What it is.
    pub kind: Kind,
}

/// What a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A folder, by name.
    Folder(BTreeMap<Vec<u8>, Named>),
    /// A file.
    File(Content),
    /// A symbolic link, and where it leads.
    Symlink(Vec<u8>),
    /// A character device: major and minor number.
    Character(u32, u32),
    /// A block device: major and minor number.
    Block(u32, u32),
    /// A named pipe.
    Fifo,
}

impl Kind {
    /// What the kernel says that it is.
    pub fn file_type(&self) -> FileType {
        match self {
            Self::Folder(_) => FileType::Directory,
            Self::File(_) => FileType::RegularFile,
            Self::Symlink(_) => FileType::Symlink,
            Self::Character(..) => FileType::CharacterDevice,
            Self::Block(..) => FileType::BlockDevice,
            Self::Fifo => FileType::Fifo,
        }
    }
}

/// Where the content of a file lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Content {
    /// Number of the layer, from 0.
    pub layer: usize,
    /// Where it begins in the layer's tar stream.
    pub at: u64,
    /// Bytes.
    pub size: u64,
}

/// What a name in a folder stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Named {
    /// The node.
    pub node: NodeId,
    /// The layer that gave it this name.
    layer: usize,
}

impl Default for Tree {
    fn default() -> Self {
        let root = Node { mode: 0o755, uid: 0, gid: 0, mtime: 0, kind: Kind::Folder(BTreeMap::new()) };
        Self { nodes: vec![root], layer: 0, entries: 0, bytes: 0, steps: 0 }
    }
}

impl Tree {
    /// Applies the next layer to what the layers before it made, and reads its tar stream to the end. Bytes of that stream.
    ///
    /// # Errors
    /// `Wrong` if the stream is no layer, naming the path; `Io` if it cannot be read.
    pub fn apply(&mut self, from: impl Read) -> Result<u64> {
        let mut archive = Archive::new(from);
        while let Some(entry) = archive.next()? {
            self.one(&entry).map_err(|error| match error {
                Error::Wrong(why) => Error::Wrong(format!("`{}` {why}", show(&entry.path.join(&b'/')))),
                other => other,
            })?;
        }
        self.layer += 1;
        archive.finish()
    }

    /// The node of this number.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id]
    }

    /// As many nodes have been made; numbers are lower.
    pub fn count(&self) -> usize {
        self.nodes.len()
    }

    /// What is at this path, in which no link is followed.
    pub fn find(&self, path: &[u8]) -> Option<NodeId> {
        let path = names(path).ok()?;
        path.iter().try_fold(ROOT, |at, name| Some(self.folder(at)?.get(name)?.node))
    }

    /// Visits every name with its path relative to the root, a folder before what is in it.
    ///
    /// # Errors
    /// Those of `visit`, at once.
    pub fn walk<E>(&self, mut visit: impl FnMut(&[u8], NodeId) -> Result<(), E>) -> Result<(), E> {
        let mut path = Vec::new();
        self.walk_in(ROOT, &mut path, &mut visit)
    }

    fn walk_in<E>(
        &self,
        folder: NodeId,
        path: &mut Vec<u8>,
        visit: &mut impl FnMut(&[u8], NodeId) -> Result<(), E>,
    ) -> Result<(), E> {
        for (name, named) in self.folder(folder).into_iter().flatten() {
            let length = path.len();
            if length > 0 {
                path.push(b'/');
            }
            path.extend_from_slice(name);
            visit(path, named.node)?;
            self.walk_in(named.node, path, visit)?;
            path.truncate(length);
        }
        Ok(())
    }

    fn folder(&self, id: NodeId) -> Option<&BTreeMap<Vec<u8>, Named>> {
        match &self.nodes[id].kind {
            Kind::Folder(names) => Some(names),
            _ => None,
        }
    }

    fn folder_mut(&mut self, id: NodeId) -> Result<&mut BTreeMap<Vec<u8>, Named>> {
        match &mut self.nodes[id].kind {
            Kind::Folder(names) => Ok(names),
            _ => wrong("is no folder"),
        }
    }

    fn add(&mut self, node: Node) -> NodeId {
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    fn step(&mut self) -> Result<()> {
        self.steps += 1;
        if self.steps > MAX_STEPS { wrong("is one entry too many: the image is too tangled") } else { Ok(()) }
    }

    /// Counts an entry that has so many bytes of text.
    fn count_entry(&mut self, bytes: usize) -> Result<()> {
        self.entries += 1;
        self.bytes += bytes;
        if self.bytes > MAX_NAMES {
            return wrong(format!(
                "is one entry too many: all names and link targets of an image may have {} MiB",
                MAX_NAMES >> 20
            ));
        }
        if self.entries > MAX_ENTRIES {
            return wrong(format!("is one entry too many: an image may have {MAX_ENTRIES}"));
        }
        Ok(())
    }

    fn one(&mut self, entry: &Entry) -> Result<()> {
        self.count_entry(entry.path.last().map_or(0, Vec::len) + entry.link.len())?;
        let Some((name, above)) = entry.path.split_last() else {
            if entry.kind != EntryType::Directory {
                return wrong("is the root, and no folder");
            }
            self.rights(ROOT, entry);
            return Ok(());
        };
        if name.starts_with(OF_WRITER) && name != OPAQUE {
            return Ok(());
        }
        let folder = self.resolve(above, Missing::Made)?;
        if name == OPAQUE {
            return self.hide_all(folder).map(drop);
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            return match hidden {
                b"" | b"." | b".." => wrong("hides nothing that can be there"),
                hidden => self.hide(folder, hidden).map(drop),
            };
        }
        let there = self.folder_mut(folder)?.get(name).copied();
        let layer = self.layer;
        if entry.kind == EntryType::Directory
            && let Some(there) = there
            && self.folder(there.node).is_some()
        {
            self.rights(there.node, entry);
            self.folder_mut(folder)?.insert(name.clone(), Named { layer, ..there });
            return Ok(());
        }
        self.folder_mut(folder)?.remove(name);
        let kind = match entry.kind {
            EntryType::Directory => Kind::Folder(BTreeMap::new()),
            EntryType::Regular => Kind::File(Content { layer, at: entry.at, size: entry.size }),
            EntryType::Symlink if entry.link.is_empty() => return wrong("is a link to nothing"),
            EntryType::Symlink => Kind::Symlink(entry.link.clone()),
            EntryType::Char => Kind::Character(entry.device.0, entry.device.1),
            EntryType::Block => Kind::Block(entry.device.0, entry.device.1),
            EntryType::Fifo => Kind::Fifo,
            EntryType::Link => {
                // Owner and rights are those of what it links to.
                let node = self.linked(&entry.link)?;
                self.folder_mut(folder)?.insert(name.clone(), Named { node, layer });
                return Ok(());
            }
            other => return wrong(format!("is of a kind that is not supported: {other:?}")),
        };
        let node = self.add(Node { mode: 0, uid: 0, gid: 0, mtime: 0, kind });
        self.rights(node, entry);
        self.folder_mut(folder)?.insert(name.clone(), Named { node, layer });
        Ok(())
    }

    fn rights(&mut self, id: NodeId, entry: &Entry) {
        let node = &mut self.nodes[id];
        // Those of a symbolic link mean nothing, and are always these.
        node.mode = if matches!(node.kind, Kind::Symlink(_)) { 0o777 } else { entry.mode };
        (node.uid, node.gid, node.mtime) = (entry.uid, entry.gid, entry.mtime);
    }

    /// What a hard link leads to.
    fn linked(&mut self, target: &[u8]) -> Result<NodeId> {
        let path = names(target)?;
        let Some((name, above)) = path.split_last() else { return wrong("links to the root") };
        let to = format!("links to `{}`, which", show(target));
        let folder = self.resolve(above, Missing::Refused);
        let folder = folder.map_err(|_| Error::Wrong(format!("{to} is not there")))?;
        match self.folder_mut(folder)?.get(name).copied() {
            Some(there) if self.folder(there.node).is_some() => wrong(format!("{to} is a folder")),
            Some(there) => Ok(there.node),
            None => wrong(format!("{to} is not there")),
        }
    }

    /// The folder at a path, every link in it followed.
    fn resolve(&mut self, path: &[Vec<u8>], missing: Missing) -> Result<NodeId> {
        // What is still to be entered, the next one last, and whether the path itself names it or a link in it does.
        let mut ahead: Vec<(Vec<u8>, bool)> = path.iter().rev().map(|name| (name.clone(), true)).collect();
        // The folders entered, with the length of each path.
        let mut entered = vec![(ROOT, 0)];
        let mut links = 0;
        while let Some((name, is_own)) = ahead.pop() {
            self.step()?;
            let (at, length) = entered.last().copied().unwrap_or((ROOT, 0));
            if name == b".." {
                if entered.len() > 1 {
                    entered.pop();
                }
                continue;
            }
            let next = match self.folder_mut(at)?.get(&name) {
                Some(there) => there.node,
                None if is_own && missing == Missing::Made => {
                    self.count_entry(name.len())?;
                    let empty = Kind::Folder(BTreeMap::new());
                    let node = self.add(Node { mode: 0o755, uid: 0, gid: 0, mtime: 0, kind: empty });
                    let layer = self.layer;
                    self.folder_mut(at)?.insert(name.clone(), Named { node, layer });
                    node
                }
                None => return wrong(format!("is below `{}`, which is not there", show(&name))),
            };
            match &self.nodes[next].kind {
                Kind::Folder(_) => {
                    let length = length + name.len() + 1;
                    // So that whatever is in it has a path that can be used.
                    if length > MAX_PATH - crate::MAX_NAME {
                        return wrong("is in a folder whose path is too long");
                    }
                    entered.push((next, length));
                }
                Kind::Symlink(target) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return wrong("is below too many links");
                    }
                    if target.starts_with(b"/") {
                        entered.truncate(1);
                    }
                    let parts = target.split(|byte| *byte == b'/').rev();
                    let parts = parts.filter(|part| !part.is_empty() && *part != b".");
                    ahead.extend(parts.map(|part| (part.to_vec(), false)));
                }
                _ => return wrong(format!("is below `{}`, which is no folder", show(&name))),
            }
        }
        Ok(entered.last().map_or(ROOT, |(node, _)| *node))
    }

    /// Hides what older layers have under this name. Is something left, that this layer has?
    fn hide(&mut self, folder: NodeId, name: &[u8]) -> Result<bool> {
        let Some(there) = self.folder_mut(folder)?.get(name).copied() else { return Ok(false) };
        let has_own = self.folder(there.node).is_some() && self.hide_all(there.node)?;
        let stays = has_own || there.layer == self.layer;
        if !stays {
            self.folder_mut(folder)?.remove(name);
        }
        Ok(stays)
    }

    /// Hides everything that older layers have in a folder. Is something left?
    fn hide_all(&mut self, folder: NodeId) -> Result<bool> {
        let inside: Vec<Vec<u8>> = self.folder_mut(folder)?.keys().cloned().collect();
        let mut is_left = false;
        for name in inside {
            self.step()?;
            is_left |= self.hide(folder, &name)?;
        }
        Ok(is_left)
    }
}

/// What becomes of a folder that is not there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    Made,
    Refused,
}
