//! Everything that belongs on an image's disk, as one tar stream for the program that makes a file system of it.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::fs::File;
use std::io::{self, Write};

use tar::{EntryType, Header};

use crate::Tree;
use crate::skeleton::{self, InRoot, Piece};
use crate::tree::{Kind, Node, NodeId, ROOT};

const BLOCK: usize = 512;
/// Folder with what an image consists of beside its files.
pub(crate) const IMAGE: &str = "image";
/// Folder with the image's files.
pub const FILES: &str = "root";
/// The manifest, in [`IMAGE`].
pub(crate) const MANIFEST: &str = "manifest";
/// The configuration, in [`IMAGE`].
pub(crate) const CONFIG: &str = "config";

/// Name of the skeleton of a layer, in [`IMAGE`].
pub(crate) fn skeleton_name(layer: usize) -> String {
    format!("layer-{layer}")
}

/// What goes onto a disk.
pub struct Parts<'a> {
    /// The image's manifest.
    pub manifest: &'a [u8],
    /// Its configuration.
    pub config: &'a [u8],
    /// The tar streams of its layers, and the bytes of each.
    pub layers: &'a [(File, u64)],
    /// What they make.
    pub tree: &'a Tree,
}

/// Writes a tar archive with an image's disk. The same image gives the same bytes.
///
/// # Errors
/// A layer cannot be read, or nobody takes what is written.
pub fn write(parts: &Parts<'_>, out: impl Write) -> io::Result<()> {
    let mut out = Out(io::BufWriter::with_capacity(128 * 1024, out));
    out.folder(IMAGE)?;
    out.bytes(MANIFEST, parts.manifest)?;
    out.bytes(CONFIG, parts.config)?;
    for (number, pieces) in in_pieces(parts).iter().enumerate() {
        let size = pieces.iter().map(Piece::encoded).sum();
        out.header(&path_in(IMAGE, skeleton_name(number).as_bytes()), &plain(EntryType::Regular, size), b"")?;
        for piece in pieces {
            piece.write(&parts.layers[number].0, &mut out.0)?;
        }
        out.fill(size)?;
    }
    let root = parts.tree.node(ROOT);
    out.header(FILES.as_bytes(), &header(root, EntryType::Directory, 0), b"")?;
    let (mut nodes, mut links) = (HashMap::<NodeId, Vec<u8>>::new(), Vec::new());
    parts.tree.walk(|path, id| {
        let path = path_in(FILES, path);
        if let node @ Node { kind: Kind::Folder(_), .. } = parts.tree.node(id) {
            return out.node(&path, node, parts.layers);
        }
        match nodes.entry(id) {
            Entry::Occupied(_) => links.push((path, id)),
            Entry::Vacant(first) => drop(first.insert(path)),
        }
        Ok(())
    })?;
    // In the order of the layers, in which they are read to be verified: files that lie in one block are read one after the other.
    let mut in_order: Vec<NodeId> = nodes.keys().copied().collect();
    in_order.sort_unstable();
    for id in in_order {
        out.node(&nodes[&id], parts.tree.node(id), parts.layers)?;
    }
    for (path, id) in links {
        out.header(&path, &plain(EntryType::Link, 0), &nodes[&id])?;
    }
    out.0.write_all(&[0; 2 * BLOCK])?;
    out.0.flush()
}

/// The pieces of each layer.
fn in_pieces(parts: &Parts<'_>) -> Vec<Vec<Piece>> {
    let mut kept = vec![Vec::new(); parts.layers.len()];
    let mut seen = HashSet::<NodeId>::new();
    let Ok(()) = parts.tree.walk(|path, id| {
        if let Kind::File(content) = parts.tree.node(id).kind
            && content.size > 0
            && seen.insert(id)
            && let Some(kept) = kept.get_mut(content.layer)
        {
            kept.push(InRoot { path: path.to_vec(), at: content.at, size: content.size });
        }
        Ok::<_, Infallible>(())
    });
    let layers = parts.layers.iter().zip(kept);
    layers.map(|((_, length), kept)| skeleton::pieces(*length, kept)).collect()
}

fn path_in(folder: &str, path: &[u8]) -> Vec<u8> {
    [folder.as_bytes(), b"/", path].concat()
}

/// The header of what is the disk's own.
fn plain(kind: EntryType, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(if kind == EntryType::Directory { 0o755 } else { 0o644 });
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header
}

fn header(node: &Node, kind: EntryType, size: u64) -> Header {
    let mut header = plain(kind, size);
    header.set_mode(node.mode.into());
    header.set_uid(node.uid.into());
    header.set_gid(node.gid.into());
    header.set_mtime(node.mtime.into());
    header
}

struct Out<W: Write>(io::BufWriter<W>);

impl<W: Write> Out<W> {
    fn folder(&mut self, path: &str) -> io::Result<()> {
        self.header(path.as_bytes(), &plain(EntryType::Directory, 0), b"")
    }

    fn bytes(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let size = bytes.len() as u64;
        self.header(&path_in(IMAGE, name.as_bytes()), &plain(EntryType::Regular, size), b"")?;
        self.0.write_all(bytes)?;
        self.fill(size)
    }

    fn node(&mut self, path: &[u8], node: &Node, layers: &[(File, u64)]) -> io::Result<()> {
        let device = |kind, (major, minor): (u32, u32)| {
            let mut header = header(node, kind, 0);
            header.set_device_major(major)?;
            header.set_device_minor(minor)?;
            Ok::<_, io::Error>(header)
        };
        match &node.kind {
            Kind::Folder(_) => self.header(path, &header(node, EntryType::Directory, 0), b""),
            Kind::Symlink(target) => self.header(path, &header(node, EntryType::Symlink, 0), target),
            Kind::Character(major, minor) => {
                self.header(path, &device(EntryType::Char, (*major, *minor))?, b"")
            }
            Kind::Block(major, minor) => self.header(path, &device(EntryType::Block, (*major, *minor))?, b""),
            Kind::Fifo => self.header(path, &header(node, EntryType::Fifo, 0), b""),
            Kind::File(content) => {
                self.header(path, &header(node, EntryType::Regular, content.size), b"")?;
                skeleton::copy(&layers[content.layer].0, content.at, content.size, &mut self.0)?;
                self.fill(content.size)
            }
        }
    }

    /// A header with its path and link, which have entries of their own where they are long.
    fn header(&mut self, path: &[u8], header: &Header, link: &[u8]) -> io::Result<()> {
        let mut header = header.clone();
        self.name(EntryType::GNULongName, path, &mut header.as_old_mut().name)?;
        self.name(EntryType::GNULongLink, link, &mut header.as_old_mut().linkname)?;
        header.set_cksum();
        self.0.write_all(header.as_bytes())
    }

    fn name(&mut self, kind: EntryType, name: &[u8], field: &mut [u8; 100]) -> io::Result<()> {
        if let Some(short) = field.get_mut(..name.len()) {
            short.copy_from_slice(name);
            return Ok(());
        }
        let size = name.len() as u64 + 1;
        let mut long = plain(kind, size);
        let title = b"././@LongLink";
        long.as_old_mut().name[..title.len()].copy_from_slice(title);
        long.set_cksum();
        self.0.write_all(long.as_bytes())?;
        self.0.write_all(name)?;
        self.0.write_all(&[0])?;
        self.fill(size)
    }

    /// Fills the last block of a content.
    fn fill(&mut self, size: u64) -> io::Result<()> {
        let over = usize::try_from(size % BLOCK as u64).unwrap_or_default();
        if over > 0 { self.0.write_all(&[0; BLOCK][over..]) } else { Ok(()) }
    }
}
