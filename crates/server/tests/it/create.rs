//! Creation in two calls, and removal.

use axum::http::Method;
use casemate_server::cvm::state::Status;
use casemate_server::driver::Guest;
use casemate_testkit::{World, compose};
use casemate_types::version::ApiVersion;
use serde_json::{Value, json};

use crate::client::Client;
use crate::scene::Scene;

fn asked(name: &str) -> Value {
    json!({ "name": name, "compose_file": { "docker_compose_file": compose("web:1") } })
}

async fn provisioned(client: &Client, body: Value) -> Value {
    let answer = client.post("/cvms/provision", body).await.expect(200);
    json!({ "app_id": answer["app_id"], "compose_hash": answer["compose_hash"] })
}

#[tokio::test(start_paused = true)]
async fn provision_then_create_then_it_runs() {
    let world = World::start().await;
    let client = Client::of(&world).await;
    let mut body = asked("web-one");
    body["vcpu"] = 2.0.into();
    body["memory"] = 4096.into();
    body["disk_size"] = 30.into();
    body["image"] = "dstack-0.5.4".into();
    let answer = client.post("/cvms/provision", body).await.expect(200);
    assert_eq!(answer["teepod_id"], answer["node_id"]);
    for key in ["compose_hash", "device_id", "os_image_hash", "app_env_encrypt_pubkey"] {
        assert_eq!(answer[key].as_str().map(str::len), Some(64), "{key} in {answer}");
    }
    let asked = json!({ "app_id": answer["app_id"], "compose_hash": answer["compose_hash"] });
    let made = client.post("/cvms", asked.clone()).await.expect(200);
    assert_eq!(
        (&made["status"], &made["vcpu"], &made["disk_size"]),
        (&json!("creating"), &json!(2), &json!(30))
    );
    assert!(made["vm_uuid"].is_string() && made["teepod"].is_object() && made["id"].is_string(), "{made}");
    // Asked again it is the same CVM, also after it has started.
    assert_eq!(client.post("/cvms", asked.clone()).await.expect(200)["id"], made["id"]);
    world.settle().await;
    let again = client.post("/cvms", asked).await.expect(200);
    assert_eq!((&again["id"], &again["status"]), (&made["id"], &json!("running")));
    let old = client
        .version(ApiVersion::V20260121)
        .post("/cvms", json!({ "app_id": answer["app_id"], "compose_hash": answer["compose_hash"] }))
        .await
        .expect(200);
    assert!(old["id"].is_number() && old["user_id"].is_number(), "{old}");
    world.assert_accounts().await;
}

#[tokio::test(start_paused = true)]
async fn a_size_that_is_not_named_is_the_smallest() {
    let world = World::start().await;
    let client = Client::of(&world).await;
    let answer = client.post("/cvms/provision", asked("web-one")).await.expect(200);
    assert_eq!(answer["instance_type"], "tdx.small");
}

#[tokio::test(start_paused = true)]
async fn an_environment_comes_with_creation() {
    let scene = Scene::start().await;
    let next = scene.client.json("/kms/phala/next_app_id").await;
    let next = next["app_ids"][0].clone();
    let mut body = asked("web-two");
    body["env_keys"] = json!(["TOKEN"]);
    body["app_id"] = next["app_id"].clone();
    body["nonce"] = next["nonce"].clone();
    let mut body = provisioned(&scene.client, body).await;
    assert_eq!(body["app_id"], next["app_id"]);
    let app_id = body["app_id"].as_str().expect("an id").parse().expect("an app id");
    let key = scene.world.app.kms.env_public_key(&app_id).expect("a key");
    let vars = [casemate_types::env::EnvVar::new("TOKEN", "secret")];
    let sealed = casemate_types::env::seal(&key, &vars, [9; 32], [9; 12]).expect("sealed");
    body["encrypted_env"] = hex::encode(sealed).into();
    body["env_keys"] = json!(["OTHER"]);
    let stray = scene.client.post("/cvms", body.clone()).await.expect(422);
    assert_eq!(stray["detail"][0]["loc"], json!(["body", "env_keys"]));
    body["env_keys"] = json!(["TOKEN"]);
    let made = scene.client.post("/cvms", body).await.expect(200);
    scene.world.settle().await;
    let seen = scene.client.json(&format!("/cvms/{}/observed", made["id"].as_str().expect("an id"))).await;
    assert_eq!(seen["env_keys"], json!(["TOKEN"]));
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_made_says_why() {
    let scene = Scene::start().await;
    let with = |field: &str, value: Value| {
        let mut body = asked("web-two");
        body[field] = value;
        body
    };
    let cases = [
        (with("name", "abc".into()), 422, "name"),
        (with("name", Value::Null), 422, "name"),
        (with("compose_file", Value::Null), 422, "compose_file"),
        (with("compose_file", json!("text")), 422, "compose_file"),
        (with("compose_file", json!({})), 400, "docker_compose_file"),
        (with("compose_file", json!({ "docker_compose_file": "a: [" })), 422, "docker_compose_file"),
        (with("compose_file", json!({ "docker_compose_file": "" })), 400, "docker_compose_file"),
        (with("vcpu", 0.into()), 422, "vcpu"),
        (with("vcpu", 100_000.into()), 422, "vcpu"),
        (with("vcpu", "four".into()), 422, "vcpu"),
        (with("vcpu", 1.5.into()), 422, "vcpu"),
        (with("memory", 1.into()), 422, "memory"),
        (with("disk_size", 0.into()), 422, "disk_size"),
        (with("disk_size", (-1).into()), 422, "disk_size"),
        (with("image", "no-such".into()), 400, "image"),
        (with("instance_type", "no-such".into()), 400, "instance_type"),
        (with("kms", "nobody".into()), 422, "kms"),
        (with("kms_id", "nobody".into()), 400, "kms"),
        (with("region", "mars".into()), 400, "region"),
        (with("app_id", "00".into()), 422, "app_id"),
        (with("nonce", 5.into()), 422, "app_id"),
        (with("encrypted_env", "xyz".into()), 422, "encrypted_env"),
        (with("gpus", json!({ "count": "all" })), 422, "gpus"),
    ];
    for (body, status, field) in cases {
        let refused = scene.client.post("/cvms/provision", body.clone()).await.expect(status);
        assert!(refused.to_string().contains(&format!("\"{field}\"")), "{body}: {refused}");
    }
    let conflicts = [
        (with("gpus", json!({ "count": 9 })), "ERR-02-007"),
        (with("vcpu", 200.into()), "ERR-02-003"),
        (with("memory", (512 * 1024).into()), "ERR-02-004"),
        (with("name", "web-one".into()), "ERR-01-004"),
    ];
    for (body, code) in conflicts {
        let refused = scene.client.post("/cvms/provision", body.clone()).await.expect(409);
        assert_eq!(refused["error_code"], code, "{body}: {refused}");
    }
    scene.client.post("/cvms/provision", with("teepod_id", 99.into())).await.expect(404);
    let unknown = json!({ "app_id": "00".repeat(20), "compose_hash": "00".repeat(32) });
    scene.client.post("/cvms", unknown).await.expect(400);
    scene.client.post("/cvms", json!({ "compose_hash": "00" })).await.expect(422);
    scene.client.post("/cvms?dryrun=true", json!({})).await.expect(422);
    scene.world.assert_accounts().await;
}

#[tokio::test(start_paused = true)]
async fn an_app_has_one_first_document() {
    let world = World::start().await;
    let client = Client::of(&world).await;
    let first = provisioned(&client, asked("web-one")).await;
    client.post("/cvms", first.clone()).await.expect(200);
    let other = json!({ "app_id": first["app_id"], "compose_hash": "11".repeat(32) });
    assert_eq!(client.post("/cvms", other).await.expect(409)["error_code"], "ERR-03-007");
}

#[tokio::test(start_paused = true)]
async fn two_of_one_name_become_one() {
    let world = World::start().await;
    let client = Client::of(&world).await;
    let (first, second) =
        (provisioned(&client, asked("web-one")).await, provisioned(&client, asked("web-one")).await);
    client.post("/cvms", first).await.expect(200);
    assert_eq!(client.post("/cvms", second).await.expect(409)["error_code"], "ERR-01-004");
}

#[tokio::test(start_paused = true)]
async fn what_was_prepared_expires() {
    let world = World::start().await;
    let client = Client::of(&world).await;
    let first = provisioned(&client, asked("web-one")).await;
    world.clock.sleep(std::time::Duration::from_secs(7 * 24 * 3600)).await;
    let expired = client.post("/cvms", first).await.expect(400);
    assert!(expired["detail"].as_str().expect("a sentence").contains("expired"), "{expired}");
}

#[tokio::test(start_paused = true)]
async fn a_deleted_cvm_is_gone_and_its_name_is_free() {
    let scene = Scene::start().await;
    let answer = scene.client.delete(&format!("{}?polling=v1", scene.path(""))).await;
    assert_eq!((answer.status.as_u16(), answer.body.len()), (204, 0));
    assert_eq!(scene.now().status, Status::Deleting);
    // Asked again while it goes, it goes.
    scene.client.delete(&scene.path("")).await.expect(204);
    scene.world.settle().await;
    for (method, rest) in [(Method::DELETE, ""), (Method::POST, "/start"), (Method::PATCH, "/resources")] {
        let gone =
            scene.client.call(method, &scene.path(rest), Some(&json!({ "vcpu": 1 }))).await.expect(404);
        assert_eq!(gone["error_code"], "ERR-03-001");
    }
    scene.world.deploy("web-one", "web:1").await;
    scene.world.assert_accounts().await;
}

#[tokio::test(start_paused = true)]
async fn power_answers_with_the_status_that_begins() {
    let scene = Scene::start().await;
    let cases = [
        ("/restart", json!({ "force": false }), "restarting", Status::Running, 1),
        ("/restart", json!({ "force": true }), "restarting", Status::Running, 1),
        ("/stop", json!({}), "stopping", Status::Stopped, 0),
        ("/start", json!({}), "starting", Status::Running, 1),
        ("/shutdown", json!({}), "shutting_down", Status::Stopped, 0),
        ("/start", json!(null), "starting", Status::Running, 1),
    ];
    for (rest, body, begins, ends, boots) in cases {
        let before = scene.seen().await.boot_count;
        let answer = scene.client.post(&scene.path(rest), body).await.expect(200);
        assert_eq!(answer["status"], begins, "{rest}");
        assert_eq!(answer["in_progress"], true, "{rest}");
        scene.world.settle().await;
        let seen = scene.seen().await;
        assert_eq!((scene.now().status, seen.boot_count), (ends, before + boots), "{rest}");
        assert_eq!(seen.guest == Guest::Done, ends == Status::Running, "{rest}");
    }
    // No body at all, whatever the content type says.
    scene.client.call(Method::POST, &scene.path("/stop"), None).await.expect(200);
    scene.client.post(&scene.path("/restart"), json!({ "force": "yes" })).await.expect(422);
    scene.client.post(&scene.path("/start?dry_run=true"), json!({})).await.expect(422);
}

#[tokio::test(start_paused = true)]
async fn stop_and_delete_never_wait() {
    let scene = Scene::start().await;
    scene.client.patch(&scene.path("/resources"), json!({ "vcpu": 2 })).await.expect(202);
    assert_eq!(scene.client.post(&scene.path("/stop"), json!({})).await.expect(200)["status"], "stopping");
    scene.client.delete(&scene.path("")).await.expect(204);
    // Nothing turns a deletion around.
    scene.client.post(&scene.path("/stop"), json!({})).await.expect(409);
    scene.world.settle().await;
    scene.client.get(&scene.path("")).await.expect(404);
}
