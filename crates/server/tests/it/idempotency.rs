//! `Idempotency-Key`: the same request twice has one effect and one answer, also across a crash.

use std::sync::Arc;
use std::time::Duration;

use axum::http::Method;
use casemate_chain::Scripted;
use casemate_server::store::OperationFilter;
use casemate_testkit::{World, compose};
use futures_util::FutureExt;
use serde_json::{Value, json};

use crate::client::Client;
use crate::scene::Scene;

const DAY: Duration = Duration::from_secs(24 * 3600);

fn operations(world: &World) -> usize {
    let filter = OperationFilter { limit: 1000, ..OperationFilter::default() };
    world.app.store.operations(world.actor.workspace_id, &filter).expect("reads").len()
}

/// Sends a request twice, with everything settled in between, and gives the answer that both times was the same.
async fn twice(world: &World, client: &Client, key: &str, method: Method, path: &str, body: &Value) -> Value {
    let client = client.header("idempotency-key", key.to_owned());
    let first = client.call(method.clone(), path, Some(body)).await;
    assert!(first.status.is_success() || first.status == 465, "{path}: {}", first.text());
    world.settle().await;
    let before = operations(world);
    let second = client.call(method, path, Some(body)).await;
    assert_eq!((second.status, &second.body), (first.status, &first.body), "{path}");
    assert_eq!(second.headers.get("content-type"), first.headers.get("content-type"), "{path}");
    assert_eq!(operations(world), before, "{path}: one effect");
    if first.body.is_empty() { Value::Null } else { first.json() }
}

#[tokio::test(start_paused = true)]
async fn every_mutating_route_answers_twice_alike() {
    let scene = Scene::start().await;
    let (world, client) = (&scene.world, &scene.client);
    let patches = [
        ("", json!({ "vcpu": 2 })),
        ("/resources", json!({ "memory": 4096 })),
        ("/visibility", json!({ "public_logs": false })),
        ("/listed", json!({ "listed": true })),
        ("/name", json!({ "name": "web-two" })),
        ("/os-image", json!({ "image": "dstack-0.5.4" })),
        ("/envs", json!({ "encrypted_env": scene.sealed(&[]) })),
        ("/docker-compose", json!({ "docker_compose_file": compose("web:2") })),
        ("/pre-launch-script", json!({ "pre_launch_script": "echo" })),
        ("/instance-id", json!({})),
    ];
    for (rest, body) in patches {
        twice(world, client, "key-1", Method::PATCH, &scene.path(rest), &body).await;
    }
    let document = json!({ "docker_compose_file": compose("web:3") });
    let provisioned =
        twice(world, client, "key-1", Method::POST, &scene.path("/compose_file/provision"), &document).await;
    let commit = json!({ "compose_hash": provisioned["compose_hash"] });
    let posts = [
        ("/compose_file/commit", commit),
        ("/rollback", json!({ "revision": 1 })),
        ("/refresh-instance-id", json!({})),
        ("/restart", json!({ "force": true })),
        ("/shutdown", json!({})),
        ("/start", json!({})),
        ("/stop", json!({})),
    ];
    for (rest, body) in posts {
        twice(world, client, "key-1", Method::POST, &scene.path(rest), &body).await;
    }
    twice(world, client, "key-1", Method::POST, "/cvms/refresh-instance-ids", &json!({ "ids": ["web-two"] }))
        .await;
    twice(world, client, "key-1", Method::PATCH, "/cvms/instance-ids", &json!({})).await;
    let asked = json!({ "name": "web-new", "compose_file": { "docker_compose_file": compose("web:1") } });
    let provisioned = twice(world, client, "key-1", Method::POST, "/cvms/provision", &asked).await;
    let asked = json!({ "app_id": provisioned["app_id"], "compose_hash": provisioned["compose_hash"] });
    twice(world, client, "key-1", Method::POST, "/cvms", &asked).await;
    // Removed, and answered as if it were still there to be removed.
    twice(world, client, "key-1", Method::DELETE, &scene.path(""), &Value::Null).await;
    let key = client.post("/keys", json!({ "name": "a" })).await.expect(201);
    let path = format!("/keys/{}", key["id"].as_str().expect("an id"));
    twice(world, client, "key-1", Method::DELETE, &path, &Value::Null).await;
}

#[tokio::test(start_paused = true)]
async fn a_cancel_answers_twice_alike() {
    let scene = Scene::start().await;
    let accepted = scene.client.patch(&scene.path(""), json!({ "vcpu": 2 })).await.expect(202);
    let path = format!("/operations/{}/cancel", accepted["correlation_id"].as_str().expect("an id"));
    twice(&scene.world, &scene.client, "key-1", Method::POST, &path, &json!({})).await;
}

#[tokio::test(start_paused = true)]
async fn another_body_is_refused_and_errors_are_not_kept() {
    let scene = Scene::start().await;
    let client = scene.client.header("idempotency-key", "once");
    client.patch(&scene.path("/resources"), json!({ "vcpu": 0 })).await.expect(422);
    client.patch(&scene.path("/resources"), json!({ "vcpu": 2 })).await.expect(202);
    scene.world.settle().await;
    let other = client.patch(&scene.path("/resources"), json!({ "vcpu": 3 })).await.expect(422);
    assert_eq!(other["detail"][0]["loc"], json!(["header", "Idempotency-Key"]), "{other}");
    let dry = format!("{}?dry_run=true", scene.path("/resources"));
    client.patch(&dry, json!({ "vcpu": 2 })).await.expect(422);
    // Another path, another caller: another request.
    client.patch(&scene.path(""), json!({ "vcpu": 3 })).await.expect(202);
    let stranger = Client::stranger(&scene.world).await.header("idempotency-key", "once");
    stranger.patch(&scene.path("/resources"), json!({ "vcpu": 2 })).await.expect(404);
    scene
        .client
        .header("idempotency-key", "x".repeat(256))
        .post(&scene.path("/start"), json!({}))
        .await
        .expect(422);
    // A request that joins what is at work changes nothing itself; its answer is kept all the same.
    let same = json!({ "image": "dstack-0.5.5" });
    let joined = client.patch(&scene.path("/os-image"), same.clone()).await;
    scene.world.settle().await;
    assert_eq!(client.patch(&scene.path("/os-image"), same).await.expect(202), joined.expect(202));
}

#[tokio::test(start_paused = true)]
async fn answers_are_kept_for_a_day() {
    let scene = Scene::start().await;
    let client = scene.client.header("idempotency-key", "once");
    let body = json!({ "force": true });
    let path = scene.path("/restart");
    let first = client.post(&path, body.clone()).await;
    scene.world.settle().await;
    let boots = scene.seen().await.boot_count;
    scene.world.clock.sleep(DAY - Duration::from_secs(60)).await;
    assert_eq!(client.post(&path, body.clone()).await.body, first.body);
    scene.world.clock.sleep(Duration::from_secs(60)).await;
    client.post(&path, body).await.expect(200);
    scene.world.settle().await;
    assert_eq!(scene.seen().await.boot_count, boots + 1);
}

#[tokio::test(start_paused = true)]
async fn a_key_is_not_shown_twice() {
    let scene = Scene::start().await;
    let client = scene.client.header("idempotency-key", "once");
    let made = client.post("/keys", json!({ "name": "ci" })).await.expect(201);
    let again = client.post("/keys", json!({ "name": "ci" })).await.expect(409);
    assert!(again["error_code"].is_string() && !again.to_string().contains("phak_"), "{again}");
    assert_eq!(again["details"][0]["value"], made["id"]);
    client.post("/keys", json!({ "name": "other" })).await.expect(422);
    let names: Vec<_> = scene.client.json("/keys").await.as_array().expect("a list").clone();
    assert_eq!(names.iter().filter(|key| key["name"] == "ci").count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_token_is_made_again_and_never_kept() {
    let chain = Arc::new(Scripted::default());
    let world = World::with_chain(chain.clone()).await;
    let client = Client::of(&world).await;
    let cvm = crate::approvals::deploy(&world, &chain, &client).await;
    let client = client.header("x-prepare-only", "true");
    let body = json!({ "docker_compose_file": compose("web:2") });
    let answer = twice(&world, &client, "once", Method::PATCH, &format!("/cvms/{}", cvm.uid), &body).await;
    let details = answer["details"].as_array().expect("a list");
    let token = details.iter().find(|detail| detail["field"] == "commit_token").expect("a token");
    let secret = &token["value"].as_str().expect("text")[3 + 32..];
    for file in std::fs::read_dir(world.folder()).expect("a folder") {
        let bytes = std::fs::read(file.expect("a file").path()).expect("readable");
        let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
        assert!(!found, "the secret part of a token is in the store");
    }
}

/// The process dies after the commit and before the answer: the first request's future is dropped while the store is at it.
#[tokio::test]
async fn an_answer_that_was_not_sent_is_there_after_all() {
    let world = World::grouped().await;
    let client = Client::of(&world).await;
    let cvm = world.create("web-one", "web:1").await;
    let keyed = client.header("idempotency-key", "once");
    let path = format!("/cvms/{}/stop", cvm.uid);
    let before = operations(&world);
    let elsewhere = rusqlite::Connection::open(world.folder().join("casemate.db")).expect("the store");
    elsewhere.execute_batch("BEGIN IMMEDIATE").expect("nobody else can write");
    assert!(keyed.post(&path, json!({})).now_or_never().is_none(), "it waits for the commit");
    elsewhere.execute_batch("ROLLBACK").expect("now it goes on");
    while operations(&world) == before {
        tokio::task::yield_now().await;
    }
    let kept = keyed.post(&path, json!({})).await;
    assert_eq!(kept.expect(200)["status"], "stopping");
    assert_eq!(operations(&world), before + 1);
    assert_eq!(keyed.post(&path, json!({})).await.body, kept.body);
}

#[tokio::test]
async fn many_at_once_with_one_key_have_one_effect() {
    let world = World::grouped().await;
    let client = Client::of(&world).await;
    let cvm = world.create("web-one", "web:1").await;
    let before = operations(&world);
    let keyed = client.header("idempotency-key", "once");
    let path = format!("/cvms/{}/stop", cvm.uid);
    let all = futures_util::future::join_all((0..64).map(|_| keyed.post(&path, json!({})))).await;
    let (done, early): (Vec<_>, Vec<_>) = all.iter().partition(|answer| answer.status == 200);
    assert!(!done.is_empty() && done.iter().all(|answer| answer.body == done[0].body));
    for answer in early {
        let early = answer.expect(409);
        assert!(early.get("error_code").is_none(), "{early}");
    }
    assert_eq!(operations(&world), before + 1);
    assert_eq!(keyed.post(&path, json!({})).await.body, done[0].body);
}
