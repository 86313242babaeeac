//! API keys.

use std::time::Duration;

use serde_json::{Value, json};

use crate::client::Client;
use crate::scene::Scene;

#[tokio::test(start_paused = true)]
async fn a_key_is_shown_once_works_and_can_be_revoked() {
    let scene = Scene::start().await;
    let made = scene.client.post("/keys", json!({ "name": "ci", "scopes": ["read"] })).await.expect(201);
    let key = made["key"].as_str().expect("a key");
    assert!(key.starts_with("phak_") && key.len() == 48, "{key}");
    assert!(key.starts_with(made["prefix"].as_str().expect("a prefix")));
    let listed = scene.client.json("/keys").await;
    assert!(!listed.to_string().contains(key), "{listed}");
    assert_eq!((&listed[0]["id"], &listed[0]["scopes"]), (&made["id"], &json!(["read"])));

    let with_it = scene.client.with_key(key);
    with_it.get(&scene.path("")).await.expect(200);
    for (path, body) in [("/start", json!({})), ("/refresh-instance-id", json!({}))] {
        with_it.post(&scene.path(path), body).await.expect(403);
    }
    with_it.patch(&scene.path(""), json!({ "vcpu": 2 })).await.expect(403);
    with_it.post("/keys", json!({ "name": "more" })).await.expect(403);

    let id = made["id"].as_str().expect("an id");
    Client::stranger(&scene.world).await.delete(&format!("/keys/{id}")).await.expect(404);
    scene.client.delete(&format!("/keys/{id}")).await.expect(204);
    with_it.get(&scene.path("")).await.expect(401);
    scene.client.delete(&format!("/keys/{id}")).await.expect(404);
    assert!(scene.client.json("/keys").await[0]["revoked_at"].is_string());
}

#[tokio::test(start_paused = true)]
async fn a_key_shows_when_it_was_last_used() {
    let scene = Scene::start().await;
    let made = scene.client.post("/keys", json!({ "name": "ci" })).await.expect(201);
    let used = async || scene.client.json("/keys").await[0]["last_used_at"].clone();
    assert_eq!(used().await, Value::Null);
    let with_it = scene.client.with_key(made["key"].as_str().expect("a key"));
    with_it.get(&scene.path("")).await.expect(200);
    let first = used().await;
    assert!(first.is_string(), "{first}");
    // Not every use is a write.
    scene.world.clock.sleep(Duration::from_secs(59)).await;
    with_it.get(&scene.path("")).await.expect(200);
    assert_eq!(used().await, first);
    scene.world.clock.sleep(Duration::from_secs(1)).await;
    with_it.get(&scene.path("")).await.expect(200);
    assert!(used().await.as_str() > first.as_str(), "later than {first}");
    scene.client.delete(&format!("/keys/{}", made["id"].as_str().expect("an id"))).await.expect(204);
    let before = used().await;
    scene.world.clock.sleep(Duration::from_secs(61)).await;
    with_it.get(&scene.path("")).await.expect(401);
    assert_eq!(used().await, before, "a key that is refused is not used");
}

#[tokio::test]
async fn with_a_writer_of_its_own_a_use_is_stored_as_well() {
    let world = casemate_testkit::World::grouped().await;
    let client = Client::of(&world).await;
    // The answer waits for nothing; the request after the next write sees it.
    client.get("/cvms").await.expect(200);
    client.post("/keys", json!({ "name": "later" })).await.expect(201);
    let keys = client.json("/keys").await;
    assert!(keys[1]["last_used_at"].is_string(), "{keys}");
}

#[tokio::test(start_paused = true)]
async fn a_key_can_end_by_itself() {
    let scene = Scene::start().await;
    let at = |seconds: u64| (scene.world.clock.now() + Duration::from_secs(seconds)).to_string();
    for wrong in [json!("soon"), json!(5), json!(at(0)), json!("2001-01-01T00:00:00Z")] {
        let body = json!({ "name": "ci", "expires_at": wrong });
        let refused = scene.client.post("/keys", body).await.expect(422);
        assert_eq!(refused["detail"][0]["loc"], json!(["body", "expires_at"]), "{refused}");
    }
    let end = at(3600);
    let made = scene.client.post("/keys", json!({ "name": "ci", "expires_at": end })).await.expect(201);
    assert!(made["expires_at"].is_string(), "{made}");
    assert_eq!(scene.client.json("/keys").await[0]["expires_at"], made["expires_at"]);
    let with_it = scene.client.with_key(made["key"].as_str().expect("a key"));
    // What it makes ends with it.
    let child = with_it.post("/keys", json!({ "name": "child" })).await.expect(201);
    assert_eq!(child["expires_at"], made["expires_at"]);
    let refused = with_it.post("/keys", json!({ "name": "later", "expires_at": at(7200) })).await.expect(422);
    assert_eq!(refused["detail"][0]["loc"], json!(["body", "expires_at"]));
    with_it.post("/keys", json!({ "name": "sooner", "expires_at": at(60) })).await.expect(201);
    scene.world.clock.sleep(Duration::from_secs(3599)).await;
    with_it.get(&scene.path("")).await.expect(200);
    scene.world.clock.sleep(Duration::from_secs(1)).await;
    let refused = with_it.get(&scene.path("")).await.expect(401);
    assert!(refused["detail"].as_str().is_some_and(|text| text.contains("expired")), "{refused}");
    scene.client.get(&scene.path("")).await.expect(200);
}

#[tokio::test(start_paused = true)]
async fn a_key_grants_no_more_than_it_has() {
    let scene = Scene::start().await;
    let made =
        scene.client.post("/keys", json!({ "name": "keys only", "scopes": "read,keys" })).await.expect(201);
    let with_it = scene.client.with_key(made["key"].as_str().expect("a key"));
    let refused = with_it.post("/keys", json!({ "name": "more", "scopes": ["write"] })).await.expect(422);
    assert_eq!(refused["detail"][0]["loc"], json!(["body", "scopes"]));
    let same = with_it.post("/keys", json!({ "name": "same" })).await.expect(201);
    assert_eq!(same["scopes"], json!(["read", "keys"]));
    let cases = [
        (json!({}), "name"),
        (json!({ "name": "  " }), "name"),
        (json!({ "name": "x".repeat(101) }), "name"),
        (json!({ "name": "a", "scopes": ["root"] }), "scopes"),
        (json!({ "name": "a", "scopes": 5 }), "scopes"),
        (json!({ "name": "a", "default_version": "1999-01-01" }), "default_version"),
    ];
    for (body, field) in cases {
        let refused: Value = scene.client.post("/keys", body).await.expect(422);
        assert_eq!(refused["detail"][0]["loc"], json!(["body", field]), "{refused}");
    }
}
