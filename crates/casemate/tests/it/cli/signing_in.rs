//! Keys: how one is made, stored, used and given up.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use super::world::{World, address, texts};

#[test]
fn a_folder_with_a_cloud_needs_no_signing_in() {
    let world = World::start();
    let told = world.ok("whoami");
    assert!(told.contains("(from .casemate/dev.env)"), "{told}");
    let told = world.ok("doctor");
    assert!(told.lines().all(|line| line.starts_with("ok ")), "{told}");
    assert!(told.contains(&format!("server    Casemate {}\n", env!("CARGO_PKG_VERSION"))), "{told}");
}

#[test]
fn login_checks_a_key_keeps_it_and_logout_forgets_it() {
    let world = World::start();
    let key = world.key();
    let url = format!("http://{}", world.address);
    std::fs::remove_file(world.path().join(".casemate/dev.env")).unwrap();
    let login = |key: &str| {
        let mut login = world.command(&format!("login --api-url {url}"));
        let mut login =
            login.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        writeln!(login.stdin.take().unwrap(), "{key}").unwrap();
        login.wait_with_output().unwrap()
    };
    let refused = login("phak_wrong");
    assert_eq!(refused.status.code(), Some(1));
    assert!(texts(&refused).1.contains("does not accept this key"));
    let profile = world.path().join(".config/casemate/profile.json");
    assert!(!profile.exists());

    let signed_in = login(&key);
    let (out, err) = texts(&signed_in);
    assert_eq!(signed_in.status.code(), Some(0), "{err}");
    assert!(out.starts_with(&format!("Signed in to {url}/api/v1 as dev")), "{out}");
    assert!(!out.contains(&key) && !err.contains(&key));
    assert_eq!(std::fs::metadata(&profile).unwrap().permissions().mode() & 0o777, 0o600);
    let told = world.ok("whoami");
    assert!(told.contains(&profile.display().to_string()), "{told}");
    // The key stays with its server.
    world.ok(&format!("whoami --api-url {url}/"));
    let elsewhere = url.replace("127.0.0.1", "localhost");
    let err = world.fails(&format!("whoami --api-url {elsewhere}"), 1);
    assert!(err.contains(&format!("hint: the stored key is for {url}/api/v1")), "{err}");

    world.ok("logout");
    assert!(!profile.exists());
}

#[test]
fn the_first_key_is_made_without_a_server_and_more_with_one() {
    let mut world = World::empty();
    let key = world.ok("keys create --data .casemate --workspace main").trim().to_owned();
    assert!(key.starts_with("phak_"));
    let old_name = world.ok("setup --data .casemate --workspace main");
    assert!(old_name.starts_with("phak_"));
    let mut lines = world.serve(&[]);
    let url = format!("http://{}", address(&mut lines));
    let with = |key: &str| format!("--api-url {url} --api-key {key}");
    let told = world.ok(&format!("whoami {}", with(&key)));
    assert!(told.contains("workspace  main"), "{told}");
    // A running server is not disturbed.
    let err = world.fails("keys create --data .casemate --workspace main", 1);
    assert!(err.starts_with("error: "), "{err}");

    let ci = world.ok(&format!("keys create --name ci --scope read {}", with(&key))).trim().to_owned();
    world.ok(&format!("cvms list {}", with(&ci)));
    let err = world.fails(&format!("keys create --name more {}", with(&ci)), 1);
    assert!(err.starts_with("error: not allowed: "), "{err}");
    let keys = world.json(&format!("keys list {}", with(&key)));
    let id = keys.as_array().unwrap().iter().find(|key| key["name"] == "ci").unwrap()["id"].as_str().unwrap();
    world.ok(&format!("keys revoke {id} --yes {}", with(&key)));
    world.fails(&format!("cvms list {}", with(&ci)), 1);
}
