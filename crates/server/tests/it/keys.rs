//! API keys.

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
