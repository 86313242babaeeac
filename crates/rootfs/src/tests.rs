//! Layers, the files that they make, and disks that are not what they should be.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};

use proptest::prelude::*;
use serde_json::json;
use tar::{EntryType, Header};

use crate::disk::{self, Parts};
use crate::tree::{Content, Kind};
use crate::verify::verify;
use crate::{Error, Tree, digest_of};

/// An entry as it is written; names that no program would write among them.
pub(crate) fn entry(kind: EntryType, path: &str, link: &str, content: &[u8]) -> Vec<u8> {
    with_mode(kind, path, link, content, if kind == EntryType::Directory { 0o755 } else { 0o640 })
}

fn with_mode(kind: EntryType, path: &str, link: &str, content: &[u8], mode: u32) -> Vec<u8> {
    let mut header = Header::new_ustar();
    header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(rustix::process::getuid().as_raw().into());
    header.set_gid(rustix::process::getgid().as_raw().into());
    header.set_mtime(1_000_000_000);
    header.set_size(content.len() as u64);
    header.set_cksum();
    filled([header.as_bytes().as_slice(), content].concat())
}

fn filled(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn file(path: &str, content: &str) -> Vec<u8> {
    entry(EntryType::Regular, path, "", content.as_bytes())
}

fn dir(path: &str) -> Vec<u8> {
    entry(EntryType::Directory, path, "", b"")
}

fn symlink(path: &str, to: &str) -> Vec<u8> {
    entry(EntryType::Symlink, path, to, b"")
}

fn hard(path: &str, to: &str) -> Vec<u8> {
    entry(EntryType::Link, path, to, b"")
}

fn layer(entries: &[Vec<u8>]) -> Vec<u8> {
    [entries.concat(), vec![0; 1024]].concat()
}

pub(crate) fn try_tree(layers: &[Vec<u8>]) -> Result<Tree, String> {
    let mut tree = Tree::default();
    for layer in layers {
        tree.apply(&layer[..]).map_err(|error| error.to_string())?;
    }
    Ok(tree)
}

/// Every path with what is there: a folder as `/`, a link as `-> TARGET`, a file as its content.
fn listed(tree: &Tree, layers: &[Vec<u8>]) -> Vec<(String, String)> {
    let mut list = Vec::new();
    tree.walk(|path, id| {
        let what = match &tree.node(id).kind {
            Kind::Folder(_) => "/".to_owned(),
            Kind::Symlink(target) => format!("-> {}", String::from_utf8_lossy(target)),
            Kind::File(content) => {
                let layer = &layers[content.layer];
                let at = content.at as usize;
                String::from_utf8_lossy(&layer[at..at + content.size as usize]).into_owned()
            }
            other => format!("{other:?}"),
        };
        list.push((String::from_utf8_lossy(path).into_owned(), what));
        Ok::<_, ()>(())
    })
    .unwrap();
    list
}

/// What it is about, the entries of each layer, and what they make.
type Case<'a> = (&'a str, &'a [&'a [Vec<u8>]], &'a [(&'a str, &'a str)]);

#[test]
fn layers_make_these_files() {
    let cases: &[Case<'_>] = &[
        (
            "later layers replace, hide and empty",
            &[
                &[
                    dir("a/"),
                    file("a/one", "1"),
                    file("a/two", "2"),
                    dir("b/"),
                    file("b/three", "3"),
                    file("c", "4"),
                ],
                &[
                    file("a/.wh.one", ""),
                    file("b/.wh..wh..opq", ""),
                    file("b/four", "4"),
                    file("a/two", "22"),
                ],
            ],
            &[("a", "/"), ("a/two", "22"), ("b", "/"), ("b/four", "4"), ("c", "4")],
        ),
        (
            "what hides does so to older layers alone, wherever it stands",
            &[
                &[
                    dir("a/"),
                    file("a/old", "1"),
                    dir("a/kept/"),
                    file("a/kept/old", "1"),
                    file("b", "1"),
                    dir("c"),
                    file("c/old", "1"),
                ],
                &[
                    file("a/new", "2"),
                    file("a/kept/new", "2"),
                    file("a/.wh..wh..opq", ""),
                    file("b", "2"),
                    file(".wh.b", ""),
                    hard("c/link", "b"),
                    file(".wh.c", ""),
                ],
            ],
            &[
                ("a", "/"),
                ("a/kept", "/"),
                ("a/kept/new", "2"),
                ("a/new", "2"),
                ("b", "2"),
                ("c", "/"),
                ("c/link", "2"),
            ],
        ),
        (
            "a folder gives way to a file, and a file or a link to a folder",
            &[
                &[dir("a"), file("a/b", "1"), file("c", "1"), dir("d"), file("d/x", "1"), symlink("e", "d")],
                &[file("a", "2"), dir("c/"), file("c/d", "2"), dir("e"), file("e/y", "2")],
            ],
            &[("a", "2"), ("c", "/"), ("c/d", "2"), ("d", "/"), ("d/x", "1"), ("e", "/"), ("e/y", "2")],
        ),
        (
            "folders above are made, and links on the way followed as if the root were /",
            &[&[
                file("x/y/z", "1"),
                symlink("rel", "x/../x"),
                symlink("abs", "/x/y"),
                symlink("up", "../../../x"),
                file("rel/one", "2"),
                file("abs/two", "3"),
                file("up/new/three", "4"),
                file("/absolute", "5"),
                file("./dot//slash", "6"),
            ]],
            &[
                ("abs", "-> /x/y"),
                ("absolute", "5"),
                ("dot", "/"),
                ("dot/slash", "6"),
                ("rel", "-> x/../x"),
                ("up", "-> ../../../x"),
                ("x", "/"),
                ("x/new", "/"),
                ("x/new/three", "4"),
                ("x/one", "2"),
                ("x/y", "/"),
                ("x/y/two", "3"),
                ("x/y/z", "1"),
            ],
        ),
        (
            "a hard link is the same file also when the other name has another",
            &[
                &[file("a", "1"), hard("b", "a")],
                &[file("a", "2"), hard("c", "/b"), file("d", "3"), hard("d", "a")],
            ],
            &[("a", "2"), ("b", "1"), ("c", "1"), ("d", "2")],
        ),
        (
            "what the writer of a layer left for itself is left out",
            &[&[
                file("a", "1"),
                file(".wh..wh.plnk", "x"),
                entry(EntryType::XGlobalHeader, "pax_global_header", "", b"52 x=y\n"),
            ]],
            &[("a", "1")],
        ),
    ];
    for (what, layers, expected) in cases {
        let layers: Vec<Vec<u8>> = layers.iter().map(|entries| layer(entries)).collect();
        let tree = try_tree(&layers).unwrap_or_else(|error| panic!("{what}: {error}"));
        let list = listed(&tree, &layers);
        let list: Vec<(&str, &str)> =
            list.iter().map(|(path, what)| (path.as_str(), what.as_str())).collect();
        assert_eq!(list, *expected, "{what}");
    }
}

#[test]
fn what_is_no_layer_is_refused_with_its_path() {
    let deep = symlink("l", &format!("/{}", "x".repeat(90)));
    let sized = entry(EntryType::Symlink, "a", "b", b"content");
    let mut damaged = file("a", "1");
    damaged[0] ^= 1;
    let bad = |kind: u8| entry(EntryType::new(kind), "a", "", b"");
    let cases: Vec<(Vec<Vec<u8>>, &str)> = vec![
        (vec![file("../out/file", "x")], "`../out/file` leads upwards"),
        (vec![file("a/../../out", "x")], "`a/../../out` leads upwards"),
        (vec![hard("steal", "../secret")], "`../secret` leads upwards"),
        (vec![symlink("s", "../secret"), hard("steal", "s/x")], "`steal` links to `s/x`, which is not there"),
        (
            vec![symlink("away", "/nowhere"), file("away/file", "x")],
            "`away/file` is below `nowhere`, which is not there",
        ),
        (vec![symlink("a", "b"), symlink("b", "a"), file("a/x", "x")], "`a/x` is below too many links"),
        (
            vec![file("c", "1"), file("c/now/a/folder", "5")],
            "`c/now/a/folder` is below `c`, which is no folder",
        ),
        (vec![file("a/.wh...", "x")], "`a/.wh...` hides nothing that can be there"),
        (vec![file(".wh.", "x")], "`.wh.` hides nothing"),
        (vec![hard("a", "b")], "`a` links to `b`, which is not there"),
        (vec![file("a", "1"), hard("a", "a")], "`a` links to `a`, which is not there"),
        (vec![dir("d"), hard("a", "d")], "`a` links to `d`, which is a folder"),
        (vec![hard("a", "/")], "`a` links to the root"),
        (vec![symlink("a", "")], "`a` is a link to nothing"),
        (vec![file("./", "")], "is the root, and no folder"),
        (vec![sized], "`a` has a content, and is no file"),
        (vec![damaged], "the checksum of a header is wrong"),
        (vec![bad(b'S')], "`a` is of a kind that is not supported"),
        (vec![bad(b'V')], "`a` is of a kind that is not supported"),
        (vec![deep, file("l/x", "x")], "which is not there"),
    ];
    for (entries, expected) in cases {
        let error = try_tree(&[layer(&entries)]).unwrap_err();
        assert!(error.contains(expected), "{expected}: {error}");
    }
    for (cut, expected) in [(100, "in the middle of a header"), (600, "in the middle of a file")] {
        let error = try_tree(&[layer(&[file("a", "content")])[..cut].to_vec()]).unwrap_err();
        assert!(error.contains(expected), "{expected}: {error}");
    }
    let half = [vec![0; 512], file("a", "1")].concat();
    assert!(try_tree(&[half]).unwrap_err().contains("half of its end"));
    assert!(try_tree(&[vec![]]).is_ok() && try_tree(&[vec![0; 512]]).is_ok(), "nothing at all is nothing");
}

#[test]
fn nothing_of_a_stranger_grows_without_a_limit() {
    // Deeper and deeper, by a link to where it is deep already.
    let name = "d".repeat(80);
    let mut entries = vec![dir("a"), symlink("l", "a")];
    let mut refused = None;
    for _ in 0..100 {
        entries.push(entry(EntryType::Directory, &format!("l/{name}"), "", b""));
        entries.push(hard("unused", "l"));
        entries.pop();
        let target = entries.iter().filter(|entry| entry[156] == b'5').count() - 1;
        let path = std::iter::once("/a")
            .chain(std::iter::repeat_n(name.as_str(), target))
            .collect::<Vec<_>>()
            .join("/");
        entries.push(long(EntryType::GNULongLink, &path));
        entries.push(symlink("l", "x"));
        if let Err(error) = try_tree(&[layer(&entries)]) {
            refused = Some(error);
            break;
        }
    }
    let refused = refused.expect("there is an end");
    assert!(refused.contains("too long"), "{refused}");
    for (extension, expected) in [
        (pax(&[("path", &"x".repeat(5000))]), "longer than 3900 bytes"),
        (pax(&[("path", &"x".repeat(300))]), "a name that is too long"),
        (pax(&[("size", "99999999999999999999")]), "`size` in a header is no number"),
        (pax(&[("size", "18446744073709551000")]), "larger than any file"),
        (pax(&[("uid", "4294967295")]), "owner whose number is too high"),
        (pax(&[("GNU.sparse.major", "1")]), "sparse files are not supported"),
        (pax(&[("comment", &"x".repeat(1 << 20))]), "longer than 1 MiB"),
        ((0..9).flat_map(|_| pax(&[("comment", "x")])).collect(), "more extensions than anybody needs"),
    ] {
        let error = try_tree(&[layer(&[extension, file("a", "1")])]).unwrap_err();
        assert!(error.contains(expected), "{expected}: {error}");
    }
    assert!(try_tree(&[pax(&[("path", "x")])]).unwrap_err().contains("where an entry should be"));
}

fn long(kind: EntryType, text: &str) -> Vec<u8> {
    entry(kind, "././@LongLink", "", format!("{text}\0").as_bytes())
}

fn pax(pairs: &[(&str, &str)]) -> Vec<u8> {
    let mut text = Vec::new();
    for (key, value) in pairs {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        text.extend_from_slice(format!("{length} {key}={value}\n").as_bytes());
    }
    entry(EntryType::XHeader, "pax", "", &text)
}

#[test]
fn what_extends_a_header_counts() {
    let path = format!("{}/{}", "p".repeat(200), "n".repeat(200));
    let target = format!("/{}", "t".repeat(300));
    let layers = vec![layer(&[
        pax(&[("path", &path), ("size", "3"), ("uid", "7"), ("mtime", "1.5")]),
        filled([file("short", "").as_slice(), b"abc"].concat()),
        long(EntryType::GNULongName, "long"),
        long(EntryType::GNULongLink, &target),
        symlink("short", "x"),
        // The oldest kind of a folder.
        {
            let mut old = entry(EntryType::Regular, "old/", "", b"");
            old[156] = 0;
            let mut header = Header::from_byte_slice(&old[..512]).clone();
            header.set_cksum();
            header.as_bytes().to_vec()
        },
    ])];
    let tree = try_tree(&layers).unwrap();
    let (folder, _) = path.split_once('/').unwrap();
    assert_eq!(
        listed(&tree, &layers),
        [
            ("long".to_owned(), format!("-> {target}")),
            ("old".to_owned(), "/".to_owned()),
            (folder.to_owned(), "/".to_owned()),
            (path.clone(), "abc".to_owned())
        ]
    );
    let file = tree.node(tree.find(path.as_bytes()).unwrap());
    assert_eq!((file.uid, file.mode, file.mtime), (7, 0o640, 1_000_000_000));
}

#[test]
fn the_root_and_folders_get_the_newer_rights() {
    let root = |mode| with_mode(EntryType::Directory, "./", "", b"", mode);
    let tree = try_tree(&[
        layer(&[root(0o700), file("made/x", "1"), with_mode(EntryType::Regular, "su", "", b"1", 0o4755)]),
        layer(&[root(0o1777), with_mode(EntryType::Directory, "made", "", b"", 0o2750), symlink("l", "x")]),
    ])
    .unwrap();
    let mode = |path: &str| tree.node(tree.find(path.as_bytes()).unwrap()).mode;
    assert_eq!(
        [mode(""), mode("made"), mode("made/x"), mode("su"), mode("l")],
        [0o1777, 0o2750, 0o640, 0o4755, 0o777]
    );
}

/// An image with these layers, on a disk that is a folder.
pub(crate) struct Made {
    pub(crate) digest: String,
    pub(crate) disk: tempfile::TempDir,
}

pub(crate) fn make(layers: &[Vec<u8>]) -> Made {
    let diff_ids: Vec<String> = layers.iter().map(|layer| digest_of(layer)).collect();
    let config = json!({"config": {"Cmd": ["x"], "Entrypoint": null}, "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    let config = config.to_string();
    let named: Vec<_> = diff_ids.iter().map(|digest| json!({"digest": digest})).collect();
    let manifest = json!({"config": {"digest": digest_of(config.as_bytes())}, "layers": named}).to_string();
    let tree = try_tree(layers).unwrap();
    let files: Vec<(File, u64)> = layers
        .iter()
        .map(|layer| {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(layer).unwrap();
            (file, layer.len() as u64)
        })
        .collect();
    let mut tar = Vec::new();
    let parts =
        Parts { manifest: manifest.as_bytes(), config: config.as_bytes(), layers: &files, tree: &tree };
    disk::write(&parts, &mut tar).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut program = Command::new("tar");
    let mut program = program
        .args([
            "--extract",
            "--preserve-permissions",
            "--numeric-owner",
            "--delay-directory-restore",
            "--directory",
        ])
        .arg(folder.path())
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    program.stdin.take().unwrap().write_all(&tar).unwrap();
    assert!(program.wait().unwrap().success());
    Made { digest: digest_of(manifest.as_bytes()), disk: folder }
}

fn layers() -> Vec<Vec<u8>> {
    vec![
        layer(&[
            dir("./"),
            dir("bin/"),
            with_mode(EntryType::Regular, "bin/su", "", b"su", 0o4755),
            file("bin/old", "old"),
            symlink("sbin", "bin"),
            dir("etc/"),
            file("etc/passwd", "root"),
            file("etc/empty", ""),
            file("empty", ""),
            entry(EntryType::Fifo, "pipe", "", b""),
        ]),
        layer(&[
            file("bin/.wh.old", ""),
            file("sbin/new", "new"),
            hard("bin/again", "sbin/new"),
            file("etc/passwd", "root web"),
        ]),
    ]
}

#[test]
fn a_disk_is_the_image_that_it_was_made_of() {
    let made = make(&layers());
    let image = verify(made.disk.path(), &made.digest).unwrap();
    assert_eq!((image.process.cmd, image.process.entrypoint.len()), (vec!["x".to_owned()], 0));
    let root = made.disk.path().join("root");
    assert_eq!(fs::read_to_string(root.join("etc/passwd")).unwrap(), "root web");
    assert_eq!(fs::metadata(root.join("bin/again")).unwrap().nlink(), 2);
    // Without layers as well.
    if is_root() {
        let none = make(&[]);
        verify(none.disk.path(), &none.digest).unwrap();
    }
    // What a layer has and the image does not is in its skeleton.
    let skeleton = fs::read(made.disk.path().join("image/layer-0")).unwrap();
    assert!(
        skeleton.windows(3).any(|bytes| bytes == b"old")
            && !skeleton.windows(9).any(|bytes| bytes == b"\x02su\x00\x00")
    );
}

/// Gives it the time that everything has here.
fn set_time(path: &Path) {
    use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
    let time = Timespec { tv_sec: 1_000_000_000, tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// Only root can make files of others; folders that no layer has belong to root.
fn is_root() -> bool {
    rustix::process::getuid().is_root()
}

#[test]
fn whatever_was_changed_on_a_disk_is_found() {
    type Change = fn(&Path);
    fn again(path: &Path, content: &str) {
        let mode = fs::metadata(path).unwrap().permissions();
        fs::write(path, content).unwrap();
        fs::set_permissions(path, mode).unwrap();
        set_time(path);
    }
    let cases: &[(&str, Change, &str)] = &[
        ("a byte", |disk| again(&disk.join("root/etc/passwd"), "root wEb"), "layer 2 of 2, sha256:"),
        (
            "a shorter file",
            |disk| again(&disk.join("root/etc/passwd"), "root"),
            "`etc/passwd` of the root is too short",
        ),
        (
            "a longer file",
            |disk| again(&disk.join("root/etc/passwd"), "root web x"),
            "`etc/passwd` of its disk has a size of 10",
        ),
        (
            "an empty file",
            |disk| again(&disk.join("root/etc/empty"), "x"),
            "`etc/empty` of its disk has a size of 1",
        ),
        (
            "a mode",
            |disk| fs::set_permissions(disk.join("root/bin/su"), fs::Permissions::from_mode(0o755)).unwrap(),
            "`bin/su` of its disk has mode 0755, and in the image it is 4755",
        ),
        (
            "the root's mode",
            |disk| fs::set_permissions(disk.join("root"), fs::Permissions::from_mode(0o777)).unwrap(),
            "`/` of its disk has mode 0777",
        ),
        (
            "a time",
            |disk| {
                File::options()
                    .append(true)
                    .open(disk.join("root/etc/empty"))
                    .unwrap()
                    .set_modified(std::time::UNIX_EPOCH)
                    .unwrap()
            },
            "`etc/empty` of its disk has the time 0",
        ),
        (
            "one file more",
            |disk| {
                fs::write(disk.join("root/etc/more"), "").unwrap();
            },
            "`etc/more` is on its disk and not in the image",
        ),
        (
            "one file less",
            |disk| {
                fs::remove_file(disk.join("root/etc/empty")).unwrap();
            },
            "`etc/empty` is in the image and not on its disk",
        ),
        (
            "one file that is read less",
            |disk| {
                fs::remove_file(disk.join("root/bin/su")).unwrap();
            },
            "`bin/su` of the root",
        ),
        (
            "another kind",
            |disk| {
                fs::remove_file(disk.join("root/pipe")).unwrap();
                fs::write(disk.join("root/pipe"), "").unwrap();
            },
            "`pipe` of its disk has the kind RegularFile",
        ),
        (
            "a link's target",
            |disk| {
                fs::remove_file(disk.join("root/sbin")).unwrap();
                std::os::unix::fs::symlink("etc", disk.join("root/sbin")).unwrap();
                set_time(&disk.join("root/sbin"));
            },
            "`sbin` of its disk has a link to etc, and in the image it is bin",
        ),
        (
            "a file for a link to it",
            |disk| {
                let (file, away) = (disk.join("root/etc/passwd"), disk.join("passwd"));
                fs::rename(&file, &away).unwrap();
                std::os::unix::fs::symlink(away, file).unwrap();
            },
            "`etc/passwd` of the root",
        ),
        (
            "a file for another name of it",
            |disk| {
                fs::remove_file(disk.join("root/etc/empty")).unwrap();
                fs::hard_link(disk.join("root/empty"), disk.join("root/etc/empty")).unwrap();
            },
            "other hard links",
        ),
        (
            "a hard link from elsewhere",
            |disk| fs::hard_link(disk.join("root/etc/empty"), disk.join("image/more")).unwrap(),
            "`etc/empty` of its disk has other hard links, 2, and in the image it is 1",
        ),
        (
            "a hard link for a copy",
            |disk| {
                let again = disk.join("root/bin/again");
                fs::remove_file(&again).unwrap();
                fs::copy(disk.join("root/bin/new"), &again).unwrap();
                set_time(&again);
            },
            "other hard links",
        ),
        (
            "a skeleton",
            |disk| {
                let path = disk.join("image/layer-0");
                let mut bytes = fs::read(&path).unwrap();
                bytes[20] ^= 1;
                fs::write(path, bytes).unwrap();
            },
            "layer 1 of 2, sha256:",
        ),
        (
            "half a skeleton",
            |disk| {
                File::options().write(true).open(disk.join("image/layer-1")).unwrap().set_len(100).unwrap()
            },
            "layer 2 of 2, sha256:",
        ),
        ("no skeleton", |disk| fs::remove_file(disk.join("image/layer-1")).unwrap(), "layer 2 of 2, sha256:"),
        (
            "a configuration",
            |disk| fs::write(disk.join("image/config"), "{}").unwrap(),
            "has another content",
        ),
        ("a manifest", |disk| fs::write(disk.join("image/manifest"), "{}").unwrap(), "has another content"),
    ];
    fn attribute(path: &Path, name: &str) {
        rustix::fs::lsetxattr(path, name, b"x", rustix::fs::XattrFlags::empty()).unwrap();
    }
    // With security.capability any program has the rights of root.
    const CAPABILITY: [u8; 20] = [0, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let by_root: &[(&str, Change, &str)] = &[
        (
            "an owner",
            |disk| std::os::unix::fs::lchown(disk.join("root/sbin"), Some(7), None).unwrap(),
            "`sbin` of its disk has owner 7, and in the image it is 0",
        ),
        (
            "a capability",
            |disk| {
                let (path, flags) = (disk.join("root/etc/passwd"), rustix::fs::XattrFlags::empty());
                rustix::fs::lsetxattr(path, "security.capability", &CAPABILITY, flags).unwrap();
            },
            "`etc/passwd` of its disk has the extended attribute security.capability",
        ),
        (
            "an attribute of the root",
            |disk| attribute(&disk.join("root"), "trusted.test"),
            "`/` of its disk has the extended attribute trusted.test",
        ),
        (
            "an attribute of a link",
            |disk| attribute(&disk.join("root/sbin"), "trusted.test"),
            "`sbin` of its disk has the extended attribute trusted.test",
        ),
    ];
    for (what, change, expected) in cases.iter().chain(if is_root() { by_root } else { &[] }) {
        let made = make(&layers());
        change(made.disk.path());
        for folder in ["root", "root/etc", "root/bin"] {
            set_time(&made.disk.path().join(folder));
        }
        match verify(made.disk.path(), &made.digest) {
            Err(Error::Wrong(why)) => assert!(why.contains(expected), "{what}: {why}"),
            other => panic!("{what}: {other:?}"),
        }
    }
}

#[test]
fn a_skeleton_has_no_record_of_nothing() {
    let made = make(&layers());
    let path = made.disk.path().join("image/layer-0");
    let skeleton = fs::read(&path).unwrap();
    for nothing in [vec![0; 9], [&[1, 0, 0, 0, 5][..], b"empty", &[0; 8]].concat()] {
        fs::write(&path, [nothing, skeleton.clone()].concat()).unwrap();
        let error = verify(made.disk.path(), &made.digest).unwrap_err().to_string();
        assert!(error.contains("its skeleton is broken: there is a record of nothing"), "{error}");
    }
}

#[test]
fn names_and_targets_have_a_limit_together() {
    let target = "t".repeat(3900);
    let one = [pax(&[("linkpath", &target)]), symlink("l", "x")].concat();
    let most = crate::MAX_NAMES / (target.len() + 1);
    let mut tree = Tree::default();
    // One after the other, in the same place: what is replaced counts too.
    tree.apply(&one.repeat(most)[..]).unwrap();
    let error = tree.apply(&one[..]).unwrap_err().to_string();
    let expected = "`l` is one entry too many: all names and link targets of an image may have 64 MiB";
    assert_eq!(error, expected);
}

#[test]
fn folders_may_be_as_deep_as_a_path_is_long() {
    if !is_root() {
        return;
    }
    let path = "d/".repeat(1800) + "file";
    let layers = [layer(&[pax(&[("path", &path)]), file("x", "deep")])];
    let made = make(&layers);
    verify(made.disk.path(), &made.digest).unwrap();
    set_mode(made.disk.path(), &path);
    let error = verify(made.disk.path(), &made.digest).unwrap_err().to_string();
    assert!(error.contains("d/file` of its disk has mode 0777") && error.len() < 600, "{error}");
}

fn set_mode(disk: &Path, path: &str) {
    fs::set_permissions(disk.join("root").join(path), fs::Permissions::from_mode(0o777)).unwrap();
}

#[test]
fn a_skeleton_that_takes_a_content_from_elsewhere_proves_nothing() {
    // Two files that hash alike: a host that swaps them in the skeleton has a layer that is whole, and has shown nothing of one.
    let made = make(&[layer(&[dir("./"), file("a", "same"), file("b", "same")])]);
    let path = made.disk.path().join("image/layer-0");
    let skeleton = fs::read(&path).unwrap();
    let at = skeleton.windows(6).position(|bytes| bytes == [1, 0, 0, 0, 1, b'b']).unwrap();
    let mut changed = skeleton;
    changed[at + 5] = b'a';
    fs::write(path, changed).unwrap();
    fs::write(made.disk.path().join("root/b"), "evil").unwrap();
    set_time(&made.disk.path().join("root/b"));
    let error = verify(made.disk.path(), &made.digest).unwrap_err().to_string();
    assert!(error.contains("`b` of its disk was not read as what it is"), "{error}");
}

#[test]
fn another_image_is_not_the_one() {
    let (one, other) = (make(&layers()), make(&[]));
    let error = verify(one.disk.path(), &other.digest).unwrap_err().to_string();
    assert!(error.starts_with(&format!("{} has another content", other.digest)), "{error}");
    // A configuration that does not name every layer would leave one unproved.
    let config = "{}";
    let manifest =
        json!({"config": {"digest": digest_of(config.as_bytes())}, "layers": [{"digest": "x"}]}).to_string();
    fs::write(one.disk.path().join("image/config"), config).unwrap();
    fs::write(one.disk.path().join("image/manifest"), &manifest).unwrap();
    let error = verify(one.disk.path(), &digest_of(manifest.as_bytes())).unwrap_err().to_string();
    assert!(
        error.contains("the manifest names 1 layers, and `rootfs.diff_ids` of the configuration 0"),
        "{error}"
    );
}

/// An entry of a layer that is made up.
#[derive(Clone, Debug)]
struct Wild(u8, Vec<u8>, Vec<u8>, u8);

fn wild() -> impl Strategy<Value = Wild> {
    let path = || proptest::collection::vec(0..4_u8, 1..4);
    (0..7_u8, path(), path(), any::<u8>()).prop_map(|(kind, path, link, size)| Wild(kind, path, link, size))
}

fn wild_layer(entries: &[Wild]) -> Vec<Vec<u8>> {
    let path = |parts: &[u8]| {
        parts.iter().map(|part| ["a", "b", "c", "d"][usize::from(*part)]).collect::<Vec<_>>().join("/")
    };
    entries
        .iter()
        .map(|Wild(kind, at, to, size)| {
            let (at, to) = (path(at), path(to));
            match kind {
                0 | 1 => file(&at, &"x".repeat(usize::from(*size))),
                2 => dir(&at),
                3 => symlink(&at, &to),
                4 => hard(&at, &to),
                5 => {
                    let (above, name) = at.rsplit_once('/').unwrap_or(("", &at));
                    file(&format!("{above}/.wh.{name}"), "")
                }
                _ => file(&format!("{at}/.wh..wh..opq"), ""),
            }
        })
        .collect()
}

/// What the kernel makes of a layer's entries: a plain and slow way to apply them, by which the tree is judged.
fn applied_by_kernel(root: &Path, entries: &[Wild]) -> Result<(), ()> {
    use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, linkat, openat, openat2, symlinkat};
    let root = openat(CWD, root, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
    let name = |part: u8| ["a", "b", "c", "d"][usize::from(part)];
    let open = |path: &[u8]| {
        let path: Vec<&str> = path.iter().map(|part| name(*part)).collect();
        let path = if path.is_empty() { ".".to_owned() } else { path.join("/") };
        openat2(&root, path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty(), ResolveFlags::IN_ROOT)
    };
    let make = |path: &[u8]| {
        for length in 1..=path.len() {
            if open(&path[..length]).is_err() {
                let above = open(&path[..length - 1]).map_err(drop)?;
                rustix::fs::mkdirat(&above, name(path[length - 1]), Mode::from_raw_mode(0o755))
                    .map_err(drop)?;
            }
        }
        open(path).map_err(drop)
    };
    let place = |fd: &std::os::fd::OwnedFd, name: &str| {
        use std::os::fd::AsRawFd;
        Path::new(&format!("/proc/self/fd/{}", fd.as_raw_fd())).join(name)
    };
    let remove = |path: &Path| match fs::symlink_metadata(path) {
        Ok(there) if there.is_dir() => fs::remove_dir_all(path).unwrap(),
        Ok(_) => fs::remove_file(path).unwrap(),
        Err(_) => {}
    };
    for Wild(kind, at, to, size) in entries {
        let (last, above) = at.split_last().unwrap();
        if *kind == 6 {
            let folder = make(at)?;
            for entry in fs::read_dir(place(&folder, ".")).unwrap() {
                remove(&entry.unwrap().path());
            }
            continue;
        }
        let folder = make(above)?;
        let path = place(&folder, name(*last));
        if *kind == 2 && fs::symlink_metadata(&path).is_ok_and(|there| there.is_dir()) {
            continue;
        }
        remove(&path);
        match kind {
            0 | 1 => fs::write(&path, "x".repeat(usize::from(*size))).unwrap(),
            2 => fs::create_dir(&path).unwrap(),
            3 => {
                let to: Vec<&str> = to.iter().map(|part| name(*part)).collect();
                symlinkat(to.join("/"), &folder, name(*last)).unwrap();
            }
            4 => {
                let (last_to, above_to) = to.split_last().unwrap();
                let beside = open(above_to).map_err(drop)?;
                linkat(&beside, name(*last_to), &folder, name(*last), AtFlags::empty()).map_err(drop)?;
            }
            _ => {}
        }
    }
    Ok(())
}

fn listed_on_disk(root: &Path) -> Vec<(String, String)> {
    fn list(root: &Path, at: &Path, into: &mut BTreeMap<Vec<String>, String>) {
        for entry in fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            let what = if meta.is_dir() {
                list(root, &path, into);
                "/".to_owned()
            } else if meta.is_symlink() {
                format!("-> {}", fs::read_link(&path).unwrap().display())
            } else {
                fs::read_to_string(&path).unwrap()
            };
            let parts = path.strip_prefix(root).unwrap().iter();
            into.insert(parts.map(|part| part.to_str().unwrap().to_owned()).collect(), what);
        }
    }
    let mut found = BTreeMap::new();
    list(root, root, &mut found);
    found.into_iter().map(|(path, what)| (path.join("/"), what)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    /// Layers whose entries hide nothing that the same layer has, since of that the kernel knows nothing.
    #[test]
    fn the_tree_is_what_the_kernel_makes_and_its_disk_is_verified(
        entries in proptest::collection::vec(wild(), 1..25)
    ) {
        // Each entry a layer of its own.
        let layers: Vec<Vec<u8>> = entries.iter().map(|one| layer(&wild_layer(std::slice::from_ref(one)))).collect();
        let root = tempfile::tempdir().unwrap();
        let by_kernel = applied_by_kernel(root.path(), &entries);
        match try_tree(&layers) {
            Ok(tree) => {
                prop_assert!(by_kernel.is_ok());
                prop_assert_eq!(listed(&tree, &layers), listed_on_disk(root.path()));
                let made = make(&layers);
                let verified = verify(made.disk.path(), &made.digest);
                prop_assert!(verified.is_ok() || !is_root(), "{:?}", verified);
                prop_assert_eq!(listed_on_disk(&made.disk.path().join("root")), listed_on_disk(root.path()));
            }
            Err(error) => prop_assert!(by_kernel.is_err(), "{}", error),
        }
    }

    #[test]
    fn no_bytes_at_all_make_it_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..2048), at in 0..3_usize) {
        let _ = try_tree(&[bytes.clone()]);
        let mut good = layer(&[file("a/b", "content"), pax(&[("path", "x")]), file("c", "1")]);
        for (number, byte) in bytes.drain(..).enumerate().take(20) {
            let place = (number * 97 + at * 512 + usize::from(byte)) % good.len();
            good[place] = byte;
        }
        let _ = try_tree(&[good]);
    }
}

#[test]
fn the_same_content_is_where_it_was_last_written() {
    let layers = vec![layer(&[file("a", "1")]), layer(&[file("a", "22")])];
    let tree = try_tree(&layers).unwrap();
    let Kind::File(content) = tree.node(tree.find(b"a").unwrap()).kind else { panic!() };
    assert_eq!(content, Content { layer: 1, at: 512, size: 2 });
}
