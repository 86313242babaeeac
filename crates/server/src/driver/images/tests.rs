use std::io::Write;
use std::path::Path;

use super::store::digest_of;
use super::*;
use casemate_types::guest::ImageRef;
use serde_json::json;

/// Writes an image layout with images of these names, each of one small layer.
pub(in crate::driver) fn layout(folder: &Path, names: &[&str]) {
    std::fs::create_dir_all(folder.join("blobs/sha256")).unwrap();
    let put = |bytes: &[u8]| {
        let digest = digest_of(bytes);
        std::fs::write(folder.join("blobs").join(digest.replace(':', "/")), bytes).unwrap();
        json!({ "mediaType": "", "digest": digest, "size": bytes.len() })
    };
    let manifests: Vec<_> = names
        .iter()
        .map(|name| {
            let mut tar = tar::Builder::new(Vec::new());
            let mut header = tar::Header::new_ustar();
            header.set_size(name.len() as u64);
            tar.append_data(&mut header, "name", name.as_bytes()).unwrap();
            let mut layer = put(&tar.into_inner().unwrap());
            layer["mediaType"] = "application/vnd.oci.image.layer.v1.tar".into();
            let rootfs = json!({ "type": "layers", "diff_ids": [layer["digest"]] });
            let config = put(json!({ "config": { "Cmd": [name] }, "rootfs": rootfs }).to_string().as_bytes());
            let manifest = json!({ "schemaVersion": 2, "config": config, "layers": [layer] });
            let mut manifest = put(manifest.to_string().as_bytes());
            manifest["mediaType"] = manifest::MANIFEST.into();
            manifest["annotations"] = json!({ manifest::REF_NAME: name });
            manifest
        })
        .collect();
    let index = json!({ "schemaVersion": 2, "manifests": manifests });
    std::fs::write(folder.join("index.json"), index.to_string()).unwrap();
}

/// Puts images of these names into a store.
pub(in crate::driver) fn fill(store: &ImageStore, names: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    layout(folder.path(), names);
    store.import(folder.path(), None).unwrap();
}

impl ImageStore {
    /// For somebody who does nothing else.
    pub(in crate::driver) async fn ensure(
        &self,
        reference: &Reference,
        login: Option<&Login>,
    ) -> Result<String> {
        self.using().ensure(reference, login).await
    }
}

impl ImageStore {
    /// From now on there is room for an image of so many bytes.
    pub(in crate::driver) fn leave_room(&self, bytes: u64) {
        let blobs = std::fs::read_dir(self.folder.join("blobs/sha256")).unwrap().flatten();
        let used: u64 = blobs.map(|blob| blob.metadata().unwrap().len()).sum();
        *self.rules.size.lock().unwrap() = Some(used + 2 * bytes);
    }
}

#[test]
fn an_image_takes_the_room_of_those_that_nobody_uses_and_no_more() {
    let (store, _folder) = store();
    let large = tar_of("one", &[7; 3000]);
    let image = made(&store, &[("x.tar", &large, &large)]);
    store.leave_room(3000);
    assert_eq!(
        store.linked(&image).unwrap_err().to_string(),
        "image `made:1`: unpacked it has more than the 3000 bytes that this node has room for"
    );
    // Nobody has a name for these any more.
    for number in 0..3 {
        made(&store, &[("x.tar", &tar_of("unused", &[number; 4000]), b"")]);
    }
    let image = made(&store, &[("x.tar", &large, &large)]);
    let blobs = || std::fs::read_dir(store.folder.join("blobs/sha256")).unwrap().count();
    let before = blobs();
    store.leave_room(3000);
    store.linked(&image).unwrap();
    assert!(blobs() < before);
}

fn store() -> (ImageStore, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    (ImageStore::open(folder.path().join("store")).unwrap(), folder)
}

fn reference(text: &str) -> Reference {
    text.parse().unwrap()
}

pub(super) fn pack(folder: &Path, archive: &Path) {
    let mut tar = tar::Builder::new(std::fs::File::create(archive).unwrap());
    tar.append_dir_all(".", folder).unwrap();
    tar.finish().unwrap();
}

#[test]
fn a_layout_is_imported_as_a_folder_and_as_an_archive() {
    let (store, folder) = store();
    let (from, archive) = (folder.path().join("layout"), folder.path().join("layout.tar"));
    layout(&from, &["web:1", "web:2"]);
    pack(&from, &archive);
    let names: Vec<_> =
        store.import(&from, None).unwrap().into_iter().map(|(name, _)| name.to_string()).collect();
    assert_eq!(names.len(), 2);
    assert!(names.contains(&"docker.io/library/web:1".to_owned()));
    let one = store.resolve(&reference("web:1")).unwrap().unwrap();
    assert_ne!(Some(&one), store.resolve(&reference("web:2")).unwrap().as_ref());
    assert_eq!(store.resolve(&reference(&format!("me/other@{one}"))).unwrap(), Some(one.clone()));
    assert_eq!(store.resolve(&reference("web:3")).unwrap(), None);
    let (second, _folder) = self::store();
    second.import(&archive, None).unwrap();
    assert_eq!(second.resolve(&reference("web:1")).unwrap(), Some(one));
    let error = second.import(&archive, Some(&reference("new:1"))).unwrap_err().to_string();
    assert_eq!(error, "there are 2 images, and one can have the name");
    // A name can come to mean another image.
    let single = folder.path().join("single");
    layout(&single, &["web:2"]);
    second.import(&single, Some(&reference("web:1"))).unwrap();
    assert_eq!(second.resolve(&reference("web:1")).unwrap(), store.resolve(&reference("web:2")).unwrap());
    assert_eq!(second.list().unwrap().len(), 2);
}

#[test]
fn what_docker_save_writes_is_imported() {
    let (store, folder) = store();
    let from = folder.path().join("saved");
    std::fs::create_dir_all(from.join("abc")).unwrap();
    std::fs::write(from.join("config.json"), r#"{"config":{"Cmd":["web"]}}"#).unwrap();
    std::fs::write(from.join("abc/layer.tar"), [0; 1024]).unwrap();
    let manifest = json!([{ "Config": "config.json", "RepoTags": ["web:9"], "Layers": ["abc/layer.tar"] }]);
    std::fs::write(from.join("manifest.json"), manifest.to_string()).unwrap();
    let archive = folder.path().join("saved.tar");
    pack(&from, &archive);
    store.import(&archive, None).unwrap();
    assert!(store.resolve(&reference("web:9")).unwrap().is_some());
}

#[test]
fn a_saved_layer_may_be_a_link_to_another_inside_the_archive_only() {
    let (store, folder) = store();
    let (archive, outside) = (folder.path().join("saved.tar"), folder.path().join("secret"));
    std::fs::write(&outside, "secret").unwrap();
    let outside = outside.to_str().unwrap().to_owned();
    let up = format!("{}{}", "../".repeat(40), outside.trim_start_matches('/'));
    let import = |target: &str, kind: tar::EntryType| {
        let mut tar = tar::Builder::new(std::fs::File::create(&archive).unwrap());
        let layers = ["b/layer.tar", "a/layer.tar"];
        let manifest = json!([{ "Config": "config.json", "RepoTags": ["web:9"], "Layers": layers }]);
        for (name, bytes) in [
            ("config.json", r#"{"config":{}}"#.to_owned()),
            ("manifest.json", manifest.to_string()),
            ("a/layer.tar", "a layer".to_owned()),
        ] {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            tar.append_data(&mut header, name, bytes.as_bytes()).unwrap();
        }
        for (name, target, kind) in
            [("b/layer.tar", "../c/layer.tar", tar::EntryType::Symlink), ("c/layer.tar", target, kind)]
        {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_size(0);
            tar.append_link(&mut header, name, target).unwrap();
        }
        tar.finish().unwrap();
        store.import(&archive, None)
    };
    use tar::EntryType::{Link, Symlink};
    for (target, kind) in [("../a/layer.tar", Symlink), ("a/layer.tar", Link)] {
        let digest = import(target, kind).unwrap()[0].1.clone();
        let layers = store.document(&digest).unwrap().layers;
        assert_eq!((layers.len(), &layers[0]), (2, &layers[1]));
    }
    for target in [outside.as_str(), &up, "../b/layer.tar", "../nothing"] {
        let error = import(target, Symlink).unwrap_err().to_string();
        assert!(error.contains("`b/layer.tar` cannot be read"), "{target}: {error}");
    }
}

#[test]
fn an_import_mends_what_is_damaged() {
    let (store, _folder) = store();
    fill(&store, &["web:1"]);
    let image = image(&store, "web:1");
    let layer = store.document(&image.digest).unwrap().layers[0].digest.clone();
    for blob in [&layer, &image.digest] {
        std::fs::write(store.path(blob), b"damaged").unwrap();
        fill(&store, &["web:1"]);
        store.linked(&image).unwrap();
        std::fs::remove_dir_all(store.folder.join("roots")).unwrap();
    }
}

#[test]
fn halves_go_when_nobody_else_has_the_store() {
    let (store, folder) = store();
    let folder = folder.path().join("store");
    std::fs::write(folder.join("tmp/half"), b"half").unwrap();
    std::fs::create_dir_all(folder.join("tmp/unpacked/blobs")).unwrap();
    let left = || std::fs::read_dir(folder.join("tmp")).unwrap().count();
    let clone = store.clone();
    drop(store);
    ImageStore::open(folder.clone()).unwrap();
    assert_eq!(left(), 2, "somebody may be at work on them");
    drop(clone);
    ImageStore::open(folder.clone()).unwrap();
    assert_eq!(left(), 0);
}

#[test]
fn what_is_no_image_is_refused() {
    let (store, folder) = store();
    let path = folder.path().join("from");
    let refused = |path: &Path| store.import(path, None).unwrap_err().to_string();
    std::fs::create_dir(&path).unwrap();
    assert!(refused(&path).contains("neither index.json"));
    layout(&path, &["web:1"]);
    let blob = std::fs::read_dir(path.join("blobs/sha256")).unwrap().next().unwrap().unwrap().path();
    let whole = std::fs::read(&blob).unwrap();
    std::fs::write(&blob, b"another").unwrap();
    assert!(refused(&path).contains("was expected"), "{}", refused(&path));
    std::fs::remove_file(&blob).unwrap();
    let outside = folder.path().join("outside");
    std::fs::write(&outside, &whole).unwrap();
    std::os::unix::fs::symlink(&outside, &blob).unwrap();
    assert!(refused(&path).contains("leads out of the image"), "{}", refused(&path));
    let packed = folder.path().join("image.tar.gz");
    std::fs::File::create(&packed).unwrap().write_all(&[0x1f, 0x8b, 8, 0, 0]).unwrap();
    assert!(refused(&packed).contains("is compressed"));
    assert!(refused(&folder.path().join("nothing")).contains("cannot be read"));
    assert_eq!(store.list().unwrap(), []);
    assert_eq!(std::fs::read_dir(store.folder.join("tmp")).unwrap().count(), 0);
}

fn image(store: &ImageStore, text: &str) -> ImageRef {
    ImageRef { reference: text.to_owned(), digest: store.resolve(&reference(text)).unwrap().unwrap() }
}

/// Writes a layout with an image of these layers under the name `made:1`, and imports it. Layers are named by media type.
fn made(store: &ImageStore, layers: &[(&str, &[u8], &[u8])]) -> ImageRef {
    let folder = tempfile::tempdir().unwrap();
    layout(folder.path(), &["made:1"]);
    let put = |bytes: &[u8]| {
        let digest = digest_of(bytes);
        std::fs::write(folder.path().join("blobs").join(digest.replace(':', "/")), bytes).unwrap();
        json!({ "mediaType": "", "digest": digest, "size": bytes.len() })
    };
    let diff_ids: Vec<_> = layers.iter().map(|(_, _, plain)| digest_of(plain)).collect();
    let config = put(json!({ "rootfs": { "diff_ids": diff_ids } }).to_string().as_bytes());
    let put_layer = |(kind, packed, _): &(&str, &[u8], &[u8])| {
        let mut layer = put(packed);
        layer["mediaType"] = (*kind).into();
        layer
    };
    let layers: Vec<_> = layers.iter().map(put_layer).collect();
    let mut manifest =
        put(json!({ "schemaVersion": 2, "config": config, "layers": layers }).to_string().as_bytes());
    manifest["mediaType"] = manifest::MANIFEST.into();
    manifest["annotations"] = json!({ manifest::REF_NAME: "made:1" });
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
    std::fs::write(folder.path().join("index.json"), index.to_string()).unwrap();
    store.import(folder.path(), None).unwrap();
    image(store, "made:1")
}

fn tar_of(name: &str, content: &[u8]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    header.set_uid(rustix::process::getuid().as_raw().into());
    header.set_gid(rustix::process::getgid().as_raw().into());
    tar.append_data(&mut header, name, content).unwrap();
    tar.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(bytes).unwrap();
    packed.finish().unwrap()
}

#[test]
fn a_disk_has_its_image_and_is_made_once() {
    use std::os::unix::fs::MetadataExt;
    let (store, folder) = store();
    let (one, two, three) = (tar_of("one", b"1"), tar_of("two", b"2"), tar_of("three", b"3"));
    let packed = gzip(&two);
    let zstd =
        ruzstd::encoding::compress_to_vec(three.as_slice(), ruzstd::encoding::CompressionLevel::Fastest);
    // As several programs write it: of more than one frame, with something to be skipped before, between and after them.
    let four = tar_of("four", &[4; 300_000]);
    let frame =
        |bytes: &[u8]| ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest);
    let (begin, end) = four.split_at(100_000);
    let skip = [b"\x5a\x2a\x4d\x18\x03\0\0\0abc".as_slice(), b"\x50\x2a\x4d\x18\0\0\0\0"].concat();
    let frames = [&skip[..], &frame(begin), &skip, &frame(b""), &frame(end), &skip].concat();
    let layers: [(&str, &[u8], &[u8]); 4] = [
        ("x.tar", &one, &one),
        ("x.tar+gzip", &packed, &two),
        ("x.tar.zstd", &zstd, &three),
        ("x.tar+zstd", &frames, &four),
    ];
    let image = made(&store, &layers);
    let (first, second) = (store.linked(&image).unwrap(), store.linked(&image).unwrap());
    let inode = |path: &Path| std::fs::metadata(path).unwrap().ino();
    assert_eq!(inode(&first), inode(&second));
    assert_eq!(std::fs::metadata(&first).unwrap().mode() & 0o777, 0o600);
    let unpacked = folder.path().join("unpacked");
    let unsquashed = std::process::Command::new("unsquashfs")
        .arg("-q")
        .arg("-n")
        .arg("-d")
        .arg(&unpacked)
        .arg(&*first)
        .status();
    assert!(unsquashed.expect("unsquashfs, of squashfs-tools").success());
    for (file, content) in [("one", "1"), ("two", "2"), ("three", "3")] {
        assert_eq!(std::fs::read_to_string(unpacked.join("root").join(file)).unwrap(), content);
    }
    if rustix::process::getuid().is_root() {
        casemate_rootfs::verify::verify(&unpacked, &image.digest).unwrap();
    }
    // One that is damaged, or not whole, is made again; what a machine has of the old one stays.
    let bytes = std::fs::read(&first).unwrap();
    let root = std::fs::read_dir(store.folder.join("roots")).unwrap().next().unwrap().unwrap().path();
    let mut damaged = bytes.clone();
    damaged[200] ^= 1;
    for damaged in [damaged.as_slice(), &bytes[..bytes.len() - 1], b""] {
        std::fs::remove_file(&root).unwrap();
        std::fs::write(&root, damaged).unwrap();
        assert_eq!(std::fs::read(store.linked(&image).unwrap()).unwrap(), bytes, "always the same");
    }
    drop((first, second));
    assert_eq!(std::fs::metadata(root).unwrap().nlink(), 1);
    assert_eq!(std::fs::read_dir(store.folder.join("tmp")).unwrap().count(), 0);
}

#[test]
fn what_cannot_be_unpacked_is_refused_by_name() {
    let (store, _folder) = store();
    let (good, other) = (tar_of("one", &[7; 3000]), tar_of("one", b"2"));
    let packed = gzip(&good);
    let half = gzip(&good)[..20].to_vec();
    let refused = |image: &ImageRef| match store.linked(image) {
        Err(Error::Refused(why)) => why,
        other => panic!("{other:?}"),
    };
    for (layer, expected) in [
        (("x.tar", good.as_slice(), other.as_slice()), "unpacked it hashes to sha256:"),
        (("x.tar+gzip", &half, &good), "image `made:1`: layer sha256:"),
        (("x.tar+zstd", &packed, &good), "image `made:1`: layer sha256:"),
        (("x.tar+zstd", b"\x50\x2a\x4d\x18\xff\xff\xff\xff", &good), "image `made:1`: layer sha256:"),
        (("x.tar", &packed, &packed), "it ends in the middle of a header"),
        (("x.rar", &packed, &good), "it is of a kind that is not supported: `x.rar`"),
    ] {
        let why = refused(&made(&store, &[layer]));
        assert!(why.contains(expected), "{expected}: {why}");
    }
    let image = made(&store, &[("x.tar+gzip", &packed, &good)]);
    drop(store.linked(&image).unwrap());
    // A blob that the disk has damaged reaches no machine, and is brought anew.
    for blob in [&store.document(&image.digest).unwrap().layers[0].digest, &image.digest] {
        std::fs::remove_dir_all(store.folder.join("roots")).unwrap();
        std::fs::create_dir(store.folder.join("roots")).unwrap();
        std::fs::write(store.path(blob), b"damaged").unwrap();
        let why = refused(&image);
        assert!(why.contains(blob.as_str()) && why.contains("damaged") && !store.has(blob), "{why}");
        made(&store, &[("x.tar+gzip", &packed, &good)]);
    }
    assert_eq!(std::fs::read_dir(store.folder.join("tmp")).unwrap().count(), 0);
}

#[tokio::test]
async fn one_image_at_a_time_is_unpacked_and_what_is_there_waits_for_none() {
    let (store, folder) = store();
    fill(&store, &["web:1", "web:2"]);
    let (one, two) = (image(&store, "web:1"), image(&store, "web:2"));
    drop(store.disk(&one).await.unwrap());
    let elsewhere = store.unpacking.lock().await;
    let mut waits = Box::pin(store.disk(&two));
    let others = std::sync::Arc::strong_count(&store.unpacking);
    while std::sync::Arc::strong_count(&store.unpacking) == others {
        assert!(futures_util::poll!(&mut waits).is_pending(), "it has not waited for its turn");
        tokio::task::yield_now().await;
    }
    drop(store.disk(&one).await.unwrap());
    assert!(futures_util::poll!(&mut waits).is_pending());
    assert_eq!(std::fs::read_dir(folder.path().join("store/roots")).unwrap().count(), 1);
    drop(elsewhere);
    assert!(store.unpacking.try_lock().is_err(), "it is the turn of who has waited");
    drop(waits.await.unwrap());
}
