//! An archive in the "newc" form of cpio, as the kernel unpacks it.

use std::collections::BTreeMap;

/// What stands at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Entry {
    Folder,
    File { content: Vec<u8>, executable: bool },
    Link(String),
    Character { major: u32, minor: u32 },
}

/// Files by path, which is how they are sorted in the archive: a folder stands before what is in it.
#[derive(Debug, Clone, Default)]
pub struct Tree(BTreeMap<String, Entry>);

impl Tree {
    /// An empty tree.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a folder and those above it.
    pub fn folder(&mut self, path: &str) -> &mut Self {
        for (at, _) in path.match_indices('/').chain([(path.len(), "")]) {
            self.0.entry(path[..at].to_owned()).or_insert(Entry::Folder);
        }
        self
    }

    /// Adds a file that is not to be run.
    pub fn file(&mut self, path: &str, content: impl Into<Vec<u8>>) -> &mut Self {
        self.add(path, Entry::File { content: content.into(), executable: false })
    }

    /// Adds a program.
    pub fn program(&mut self, path: &str, content: impl Into<Vec<u8>>) -> &mut Self {
        self.add(path, Entry::File { content: content.into(), executable: true })
    }

    /// Adds a symbolic link, unless something is there already.
    pub fn link(&mut self, path: &str, target: &str) -> &mut Self {
        if self.0.contains_key(path) { self } else { self.add(path, Entry::Link(target.to_owned())) }
    }

    /// Adds a character device.
    pub fn character(&mut self, path: &str, major: u32, minor: u32) -> &mut Self {
        self.add(path, Entry::Character { major, minor })
    }

    /// Whether something is at this path.
    pub fn has(&self, path: &str) -> bool {
        self.0.contains_key(path)
    }

    fn add(&mut self, path: &str, entry: Entry) -> &mut Self {
        if let Some((folder, _)) = path.rsplit_once('/') {
            self.folder(folder);
        }
        self.0.insert(path.to_owned(), entry);
        self
    }

    /// The archive.
    pub fn archive(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for (number, (path, entry)) in self.0.iter().enumerate() {
            let (mode, content, device): (u32, &[u8], _) = match entry {
                Entry::Folder => (0o040_755, &[], (0, 0)),
                Entry::File { content, executable: false } => (0o100_644, content, (0, 0)),
                Entry::File { content, executable: true } => (0o100_755, content, (0, 0)),
                Entry::Link(target) => (0o120_777, target.as_bytes(), (0, 0)),
                Entry::Character { major, minor } => (0o020_600, &[], (*major, *minor)),
            };
            append(&mut out, number as u32 + 1, path, mode, content, device);
        }
        append(&mut out, 0, "TRAILER!!!", 0, &[], (0, 0));
        out.resize(out.len().next_multiple_of(512), 0);
        out
    }
}

fn append(out: &mut Vec<u8>, number: u32, path: &str, mode: u32, content: &[u8], device: (u32, u32)) {
    out.extend_from_slice(b"070701");
    let links = if mode & 0o170_000 == 0o040_000 { 2 } else { 1 };
    // Number, mode, owner, group, links, time, size, device of the file system, device, length of the name, checksum.
    let fields = [
        number,
        mode,
        0,
        0,
        links,
        0,
        content.len() as u32,
        0,
        0,
        device.0,
        device.1,
        path.len() as u32 + 1,
        0,
    ];
    for field in fields {
        out.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    out.extend_from_slice(path.as_bytes());
    out.push(0);
    out.resize(out.len().next_multiple_of(4), 0);
    out.extend_from_slice(content);
    out.resize(out.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_sorted_and_aligned() {
        let mut tree = Tree::new();
        tree.program("usr/bin/b", "bb").file("a", "x").link("usr/lib", "lib64").character(
            "dev/console",
            5,
            1,
        );
        let archive = tree.archive();
        let text = String::from_utf8_lossy(&archive);
        let at: Vec<usize> = [
            "a\0",
            "dev\0",
            "dev/console\0",
            "usr\0",
            "usr/bin\0",
            "usr/bin/b\0",
            "usr/lib\0",
            "TRAILER!!!\0",
        ]
        .map(|name| text.find(&format!("0{name}")).expect(name))
        .to_vec();
        assert!(at.is_sorted(), "{at:?}");
        assert_eq!(archive.len() % 512, 0);
        let first = "070701000000010000\
81a400000000000000000000000100000000000000010000000000000000000000000000000000000002\
00000000a\0\0\0\0\0x\0\0\0";
        assert_eq!(&text[..first.len()].len(), &first.len());
        assert_eq!(&archive[..110], &first.replace(' ', "").as_bytes()[..110]);
    }
}
