//! Container images in a data folder, without a server and beside one.

use serde_json::json;
use sha2::{Digest, Sha256};

use super::world::World;

/// An image layout with one image; its digest.
fn layout(world: &World, content: &str) -> String {
    let blobs = world.path().join("layout/blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let put = |text: String| {
        let digest = hex::encode(Sha256::digest(&text));
        std::fs::write(blobs.join(&digest), &text).unwrap();
        json!({ "mediaType": "", "digest": format!("sha256:{digest}"), "size": text.len() })
    };
    let config = put(json!({ "config": { "Cmd": [content] } }).to_string());
    let manifest = put(json!({ "schemaVersion": 2, "config": config, "layers": [] }).to_string());
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] }).to_string();
    std::fs::write(world.path().join("layout/index.json"), index).unwrap();
    manifest["digest"].as_str().unwrap().to_owned()
}

#[test]
fn container_images_come_and_go_and_say_how_much_room_that_makes() {
    let world = World::empty();
    let digest = layout(&world, "one");
    let data = "--data data";
    for command in ["list --container", "gc --dry-run", "gc", "rm web:1 --yes"] {
        let none = world.fails(&format!("images {command} {data}"), 1);
        assert!(none.contains("there are no container images in data/images"), "{none}");
        assert!(!world.path().join("data").exists(), "{command} makes no folder");
    }
    let imported = world.ok(&format!("images import layout --as web:1 {data}"));
    assert_eq!(imported, format!("docker.io/library/web:1  {digest}\n"));
    // The name means another image from now on; the one before may be wanted again for a week.
    let digest = layout(&world, "two");
    world.ok(&format!("images import layout --as web:1 {data}"));
    assert_eq!(world.ok(&format!("images gc {data}")), "0 bytes freed\n");
    let told = world.json(&format!("images gc --keep 0 --dry-run {data}"));
    let bytes = told["bytes"].as_u64().unwrap();
    assert!(bytes > 100 && told["names"] == json!([]), "{told}");
    let would = world.ok(&format!("images gc --keep 0 --dry-run {data}"));
    assert_eq!(would, format!("{bytes} bytes would be freed\n"));
    assert_eq!(world.ok(&format!("images gc --keep 0 {data}")), format!("{bytes} bytes freed\n"));
    assert_eq!(world.ok(&format!("images gc --keep 0 {data}")), "0 bytes freed\n");
    let listed = world.json(&format!("images list --container {data}"));
    assert_eq!(listed[0]["name"], "docker.io/library/web:1");
    assert_eq!((listed[0]["digest"].as_str(), listed[0]["bytes"].as_u64()), (Some(&*digest), Some(bytes)));
    // What was imported stays until somebody takes it away, who is asked first.
    let asked = world.fails(&format!("images rm web:1 {data}"), 2);
    assert!(asked.contains("--yes"), "{asked}");
    let removed = world.ok(&format!("images rm web:1 --yes {data}"));
    assert_eq!(removed, format!("removed: docker.io/library/web:1\n{bytes} bytes freed\n"));
    let gone = world.fails(&format!("images rm web:1 --yes {data}"), 1);
    assert!(gone.contains("no image is called `docker.io/library/web:1` here"), "{gone}");
}
