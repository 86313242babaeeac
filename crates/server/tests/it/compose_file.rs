//! A new compose document in two calls.

use std::time::Duration;

use casemate_testkit::compose;
use serde_json::{Value, json};

use crate::scene::Scene;

async fn provision(scene: &Scene, body: Value) -> Value {
    let before = scene.snapshot().await;
    let answer = scene.client.post(&scene.path("/compose_file/provision"), body).await.expect(200);
    scene.world.settle().await;
    assert_eq!(scene.snapshot().await, before, "nothing restarts");
    answer
}

#[tokio::test(start_paused = true)]
async fn provisioned_flat_or_wrapped_and_committed_by_either_route() {
    for (wrapped, patch) in [(false, false), (false, true), (true, false), (true, true)] {
        let scene = Scene::start().await;
        let sent = json!({ "docker_compose_file": compose("web:2"), "public_logs": false, "salt": null, "extra": {"a": 1} });
        let body = if wrapped { json!({ "app_compose": sent, "update_env_vars": null }) } else { sent };
        let answer = provision(&scene, body).await;
        assert_eq!(answer["app_id"], json!(scene.cvm.app_id));
        assert_eq!((&answer["kms_info"], &answer["compose_unchanged"]), (&Value::Null, &json!(false)));
        assert_eq!(answer["device_id"].as_str().map(str::len), Some(64));

        let mut expected = scene.snapshot().await;
        let hash = answer["compose_hash"].clone();
        let body =
            json!({ "compose_hash": hash, "encrypted_env": null, "env_keys": null, "transaction_hash": "" });
        let committed = match patch {
            true => scene.client.patch(&scene.path("/compose_file"), body).await,
            false => scene.client.post(&scene.path("/compose_file/commit"), body).await,
        };
        let committed = committed.expect(202);
        assert_eq!((&committed["status"], &committed["compose_hash"]), (&json!("in_progress"), &hash));
        assert!(committed["correlation_id"].is_string());
        scene.world.settle().await;
        expected.boots += 1;
        for (key, value) in [
            ("docker_compose_file", json!(compose("web:2"))),
            ("public_logs", json!(false)),
            ("extra", json!({"a": 1})),
        ] {
            expected.document.insert(key.into(), value);
        }
        assert_eq!(scene.snapshot().await, expected);
        assert_eq!(json!(scene.seen().await.compose_hash), hash);
    }
}

#[tokio::test(start_paused = true)]
async fn the_whole_document_round_trips() {
    let scene = Scene::start().await;
    let document = scene.client.json(&scene.path("/compose_file")).await;
    let answer = provision(&scene, json!({ "app_compose": document })).await;
    assert_eq!(
        (&answer["compose_unchanged"], &answer["compose_hash"]),
        (&json!(true), &json!(scene.spec().compose.hash))
    );
    // Running what runs is nothing to do.
    let body = json!({ "compose_hash": answer["compose_hash"] });
    let committed = scene.client.post(&scene.path("/compose_file/commit"), body).await.expect(202);
    assert!(committed["message"].as_str().expect("text").contains("Nothing changed"), "{committed}");
}

#[tokio::test(start_paused = true)]
async fn variables_come_along() {
    let scene = Scene::start().await;
    let sealed = scene.sealed(&[("TOKEN", "secret"), ("OTHER", "x")]);
    let answer =
        provision(&scene, json!({ "docker_compose_file": compose("web:2"), "allowed_envs": ["TOKEN"] }))
            .await;
    let mut body =
        json!({ "compose_hash": answer["compose_hash"], "encrypted_env": sealed, "env_keys": ["OTHER"] });
    let stray = scene.client.patch(&scene.path("/compose_file"), body.clone()).await.expect(422);
    assert_eq!(stray["detail"][0]["loc"], json!(["body", "env_keys"]), "{stray}");
    body["env_keys"] = json!(["TOKEN"]);
    scene.client.patch(&scene.path("/compose_file"), body.clone()).await.expect(202);
    scene.world.settle().await;
    assert_eq!(scene.seen().await.env_keys, ["TOKEN"]);
    // Replacing the names changes the document, and so the hash that the answer shows.
    body["env_keys"] = json!(["OTHER"]);
    body["update_env_vars"] = true.into();
    let committed = scene.client.patch(&scene.path("/compose_file"), body).await.expect(202);
    assert_ne!(committed["compose_hash"], answer["compose_hash"]);
    scene.world.settle().await;
    assert_eq!(scene.seen().await.env_keys, ["OTHER"]);
    assert_eq!(json!(scene.seen().await.compose_hash), committed["compose_hash"]);
}

#[tokio::test(start_paused = true)]
async fn unknown_and_expired_hashes_are_refused() {
    let scene = Scene::start().await;
    let other = scene.world.deploy("web-other", "web:1").await;
    let hash =
        provision(&scene, json!({ "docker_compose_file": compose("web:2") })).await["compose_hash"].clone();
    let body = json!({ "compose_hash": hash });
    let foreign = format!("/cvms/{}/compose_file/commit", other.uid);
    for refused in [
        scene.client.post(&foreign, body.clone()).await,
        scene
            .client
            .post(&scene.path("/compose_file/commit"), json!({ "compose_hash": "00".repeat(32) }))
            .await,
    ] {
        let refused = refused.expect(400);
        assert!(refused["detail"].as_str().expect("text").contains("compose_hash"), "{refused}");
    }
    scene.client.post(&scene.path("/compose_file/commit"), json!({})).await.expect(422);
    scene.world.clock.sleep(Duration::from_secs(7 * 24 * 3600 - 60)).await;
    let dry = scene.client.patch(&scene.path("/compose_file?dry_run=true"), body.clone()).await.expect(200);
    assert_eq!((&dry["plan"]["kind"], &dry["plan"]["compose_hash"]), (&json!("restart"), &hash));
    scene.world.clock.sleep(Duration::from_secs(60)).await;
    scene.client.patch(&scene.path("/compose_file"), body).await.expect(400);
}

#[tokio::test(start_paused = true)]
async fn in_one_call_the_hash_is_compared() {
    let scene = Scene::start().await;
    let mut document = scene.client.json(&scene.path("/compose_file")).await;
    document["docker_compose_file"] = compose("web:3").into();
    let hash = provision(&scene, document.clone()).await["compose_hash"].clone();
    let path = scene.path("/compose_file");
    let wrong = json!({ "compose_file": document, "compose_hash": "00".repeat(32) });
    let refused = scene.client.post(&path, wrong).await.expect(400);
    assert!(refused["detail"].as_str().expect("text").contains("compose_hash"), "{refused}");
    scene.client.post(&path, json!({ "compose_hash": hash })).await.expect(422);
    scene.client.post(&path, json!({ "compose_file": document, "compose_hash": hash })).await.expect(202);
    scene.world.settle().await;
    assert_eq!(scene.seen().await.containers[0].image, "web:3");
}

#[tokio::test(start_paused = true)]
async fn documents_that_cannot_run_are_refused() {
    let scene = Scene::start().await;
    let deep = (0..40).fold(json!(1), |inner, _| json!({ "a": inner }));
    let bomb: String = (0..9).fold("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned(), |text, level| {
        let alias = vec![format!("*a{level}"); 10].join(", ");
        format!("{text}a{}: &a{} [{alias}]\n", level + 1, level + 1)
    });
    let cases = [
        (json!({}), 400, "app_compose"),
        (json!({ "docker_compose_file": "" }), 400, "docker_compose_file"),
        (json!({ "docker_compose_file": "services: [" }), 422, "docker_compose_file"),
        (json!({ "docker_compose_file": bomb }), 422, "docker_compose_file"),
        (json!({ "docker_compose_file": 5 }), 422, "docker_compose_file"),
        (json!({ "public_logs": "yes" }), 422, "public_logs"),
        (json!({ "allowed_envs": "A" }), 422, "allowed_envs"),
        (json!({ "storage_fs": "fat" }), 422, "storage_fs"),
        (json!({ "pre_launch_script": "x".repeat(204_801) }), 422, "docker_compose_file"),
        (json!({ "extra": deep }), 422, "extra"),
        (json!({ "app_compose": "text" }), 422, "app_compose"),
    ];
    for (body, status, field) in cases {
        let path = scene.path("/compose_file/provision");
        let refused = scene.client.post(&path, body.clone()).await.expect(status);
        assert!(refused.to_string().contains(field), "{refused}");
    }
}
