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
            let config = put(json!({ "config": { "Cmd": [name] } }).to_string().as_bytes());
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
    let (store, folder) = store();
    fill(&store, &["web:1"]);
    let digest = store.resolve(&reference("web:1")).unwrap().unwrap();
    let image = [ImageRef { reference: "web:1".into(), digest: digest.clone() }];
    let layer = store.document(&digest).unwrap().layers[0].digest.clone();
    for blob in [&layer, &digest] {
        std::fs::write(store.path(blob), b"damaged").unwrap();
        fill(&store, &["web:1"]);
        store.archive(&image, &folder.path().join("archive")).unwrap();
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

#[test]
fn an_archive_has_what_its_images_need_and_is_always_the_same() {
    let (store, folder) = store();
    fill(&store, &["web:1", "web:2"]);
    let image = |text: &str| ImageRef {
        reference: text.to_owned(),
        digest: store.resolve(&reference(text)).unwrap().unwrap(),
    };
    let (one, two) = (image("web:1"), image("web:2"));
    let (a, b) = (folder.path().join("a"), folder.path().join("b"));
    store.archive(&[one.clone(), two.clone()], &a).unwrap();
    store.archive(&[two.clone(), one.clone()], &b).unwrap();
    assert_eq!(std::fs::read(&a).unwrap(), std::fs::read(&b).unwrap());
    assert_eq!(
        ImageStore::archive_name(&[one.clone(), two.clone()]),
        ImageStore::archive_name(&[two, one.clone()])
    );
    store.archive(std::slice::from_ref(&one), &b).unwrap();
    let bytes = std::fs::read(&b).unwrap();
    assert_eq!(bytes.len() % 512, 0);
    let mut names = Vec::new();
    for entry in tar::Archive::new(bytes.as_slice()).entries().unwrap() {
        names.push(entry.unwrap().path().unwrap().to_string_lossy().into_owned());
    }
    assert_eq!(names.len(), 4, "manifest, configuration, layer, and the layout's mark");
    assert!(names.contains(&format!("blobs/{}", one.digest.replace(':', "/"))));
    // A blob that the disk has damaged reaches no machine.
    let layer = store.document(&one.digest).unwrap().layers[0].digest.clone();
    std::fs::write(store.path(&layer), b"damaged").unwrap();
    let error = store.archive(&[one], &b).unwrap_err().to_string();
    assert!(error.contains(&layer) && error.contains("damaged"), "{error}");
}
