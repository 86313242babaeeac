//! Updates that cannot work: refused while the machine runs on, or put back.

use casemate_sdk::env::EnvVar;
use casemate_sdk::{Error, PatchOutcome, PutBack};

use super::world::{NAME, World, compose, done};

/// How an update that was accepted failed.
async fn failure(outcome: Result<PatchOutcome, Error>) -> (String, PutBack) {
    match outcome.unwrap().accepted().unwrap().wait().await.unwrap_err() {
        Error::UpdateFailed { reason, put_back, .. } => (reason.message, put_back),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn vm_what_cannot_work_is_refused_first_or_put_back() {
    let world = World::new();
    done(world.client.deploy(NAME, &compose("web:1", "")).memory_mb(512).disk_gb(1).send().await).await;
    let cvm = world.cvm();
    assert_eq!(world.ask("/count").await, "1");
    let process = world.machines();

    // Found out while the old version runs: it goes on, and is the same process.
    let missing = cvm.patch().compose(compose("127.0.0.1:1/web:3", "")).send().await;
    let (why, put_back) = failure(missing).await;
    assert!(why.contains("service `web`") && why.contains("127.0.0.1:1/web:3"), "{why}");
    assert!(matches!(put_back, PutBack::None), "{put_back:?}");
    let sealed = cvm.seal(&[EnvVar::new("OTHER", "1")]).await.unwrap();
    let wrong_key = cvm.patch().envs(sealed).allowed_envs(["TOKEN"]).send().await;
    let (why, put_back) = failure(wrong_key).await;
    assert!(why.contains("has `OTHER`, which `allowed_envs` does not name"), "{why}");
    assert!(matches!(put_back, PutBack::None), "{put_back:?}");
    let unsupported = cvm.patch().compose(compose("web:2", "    privileged: true\n")).send().await;
    let why = unsupported.expect_err("no machine here can do that").to_string();
    assert!(why.contains("`web`: `privileged` is not supported"), "{why}");
    assert_eq!(world.machines(), process);
    assert_eq!(world.observed().await.boot_count, 1);
    assert_eq!(world.ask("/").await, "web 1");

    // Found out by the guest: the old version is put back, and serves again.
    let broken = compose("web:2", "    entrypoint: [/no/such/program]\n");
    let (why, put_back) = failure(cvm.patch().compose(broken).memory_mb(700).send().await).await;
    assert!(why.contains("service `web`") && why.contains("/no/such/program"), "{why}");
    assert!(matches!(put_back, PutBack::Done(_)), "{put_back:?}");
    let seen = world.observed().await;
    assert_eq!((seen.boot_count, seen.memory_mb), (3, 512));
    assert_eq!(world.ask("/").await, "web 1");
    assert_eq!(world.ask("/data").await, "1");
    let script = cvm.pre_launch_script("exit 7\n").send().await;
    let (why, put_back) = failure(script).await;
    assert!(why.contains("pre_launch_script") || why.contains("pre-launch"), "{why}");
    assert!(matches!(put_back, PutBack::Done(_)), "{put_back:?}");
    assert_eq!(world.ask("/").await, "web 1");
}
