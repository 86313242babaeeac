//! Whatever is sent: a clear refusal that names what is wrong, and the machine untouched.

use axum::http::Method;
use casemate_server::config::Config;
use casemate_server::driver::sim::SimConfig;
use casemate_testkit::World;
use serde_json::{Value, json};

use crate::client::Client;
use crate::scene::Scene;

/// Every operation of the API, as method, path with placeholders filled in, and path with them.
fn routes(cvm: &str) -> Vec<(Method, String, String)> {
    let document =
        serde_json::to_value(casemate_server::http::api().split_for_parts().1).expect("a document");
    let mut routes = Vec::new();
    for (path, methods) in document["paths"].as_object().expect("paths") {
        for method in methods.as_object().expect("methods").keys() {
            let Ok(method) = method.to_uppercase().parse::<Method>() else { continue };
            let filled = path.replace("{id}", cvm);
            let filled = ["{node}", "{key_id}", "{correlation_id}"]
                .iter()
                .fold(filled, |path, name| path.replace(name, "1"));
            routes.push((method, filled, path.clone()));
        }
    }
    assert!(routes.len() > 40, "{routes:?}");
    routes
}

fn changes(method: &Method, path: &str) -> bool {
    // Reads with a body, and what is not looked at before its token is.
    let reads = path == "/status/batch" || path.ends_with("/is-allowed");
    *method != Method::GET && !reads && !(path.starts_with("/approvals/") && path.ends_with("/commit"))
}

#[tokio::test(start_paused = true)]
async fn mutating_routes_refuse_unknown_query_parameters() {
    let scene = Scene::start().await;
    let (before, tag) = (scene.snapshot().await, scene.now().tag());
    for (method, path, _) in routes(scene.cvm.uid.as_str()) {
        if !changes(&method, &path) {
            continue;
        }
        let answer =
            scene.client.call(method.clone(), &format!("{path}?dryrun=true"), Some(&json!({}))).await;
        let refused = answer.expect(422);
        assert_eq!(refused["detail"][0]["loc"], json!(["query", "dryrun"]), "{method} {path}: {refused}");
    }
    assert_eq!((scene.now().tag(), scene.now().open), (tag, None));
    scene.world.settle().await;
    assert_eq!(scene.snapshot().await, before);
}

#[tokio::test(start_paused = true)]
async fn mutating_routes_refuse_a_parameter_that_comes_twice() {
    let scene = Scene::start().await;
    let tag = scene.now().tag();
    for (method, path, _) in routes(scene.cvm.uid.as_str()) {
        if !changes(&method, &path) {
            continue;
        }
        for twice in ["dry_run=true&dry_run=false", "dry_run=true&dry_run=true"] {
            let answer =
                scene.client.call(method.clone(), &format!("{path}?{twice}"), Some(&json!({}))).await;
            let refused = answer.expect(422);
            assert_eq!(
                refused["detail"][0]["loc"],
                json!(["query", "dry_run"]),
                "{method} {path}: {refused}"
            );
        }
    }
    assert_eq!(scene.now().tag(), tag);
    // A read may be asked the same thing twice, and lists have several values.
    let client = &scene.client;
    client.get("/cvms/paginated?page=1&page=1").await.expect(200);
    client.get("/cvms/paginated?instance_types=tdx.small&instance_types=tdx.large").await.expect(200);
    let refused = client.get("/cvms/paginated?page=1&page=2").await.expect(422);
    assert_eq!(refused["detail"][0]["loc"], json!(["query", "page"]));
    let refused = client.get("/cvms?node_id=1&teepod_id=2").await.expect(422);
    assert!(refused.to_string().contains("teepod_id"), "{refused}");
    client.get("/cvms?node_id=1&teepod_id=1").await.expect(200);
}

#[tokio::test(start_paused = true)]
async fn every_route_that_changes_a_cvm_honours_if_match() {
    let scene = Scene::start().await;
    let tag = scene.now().tag();
    let stale = scene.client.header("if-match", "\"9.9\", \"8.8\"");
    let mut tried = 0;
    for (method, path, named) in routes(scene.cvm.uid.as_str()) {
        let settled = path.ends_with("/commit-update");
        if !changes(&method, &path) || !named.starts_with("/cvms/{id}") || settled {
            continue;
        }
        stale.call(method.clone(), &path, Some(&json!({}))).await.expect(412);
        tried += 1;
    }
    assert!(tried > 20, "{tried}");
    assert_eq!((scene.now().tag(), scene.now().open), (tag, None));
}

#[tokio::test(start_paused = true)]
async fn absent_and_foreign_cvms_cannot_be_told_apart() {
    let scene = Scene::start().await;
    let stranger = Client::stranger(&scene.world).await;
    let cvm = &scene.cvm;
    let instance = cvm.instance_id.expect("it has booted");
    let forms = [
        cvm.uid.to_string(),
        cvm.vm_uuid.to_string(),
        cvm.vm_uuid.0.simple().to_string(),
        cvm.id.to_string(),
        cvm.name.clone(),
        format!("app_{}", cvm.app_id),
        format!("0x{}", cvm.app_id),
        cvm.app_id.to_string(),
        format!("instance_{instance}"),
    ];
    for (method, _, path) in routes("") {
        if !path.starts_with("/cvms/{id}") || path.ends_with("/commit-update") {
            continue;
        }
        let absent =
            stranger.call(method.clone(), &path.replace("{id}", "web-nobody"), Some(&json!({}))).await;
        let absent = absent.expect(404);
        for form in &forms {
            let foreign = stranger.call(method.clone(), &path.replace("{id}", form), Some(&json!({}))).await;
            assert_eq!(foreign.expect(404), absent, "{method} {path} {form}");
        }
        for malformed in ["web--nobody", "cvm_", "instance_00", "0x00", "a.b", "-1", "%F0%9F%92%A5"] {
            let refused =
                stranger.call(method.clone(), &path.replace("{id}", malformed), Some(&json!({}))).await;
            let refused = refused.expect(400);
            assert!(refused["detail"].is_string(), "{method} {path} {malformed}: {refused}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn updates_that_cannot_be_are_refused_and_change_nothing() {
    let scene = Scene::start().await;
    let (before, tag) = (scene.snapshot().await, scene.now().tag());
    let deep: String = "[".repeat(200) + &"]".repeat(200);
    let bomb: String = (0..9).fold("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned(), |text, level| {
        let alias = vec![format!("*a{level}"); 10].join(", ");
        format!("{text}a{}: &a{} [{alias}]\n", level + 1, level + 1)
    }) + "services: {web: {image: x}}\n";
    let long = "x".repeat(204_801);
    let cases: Vec<(&str, Value, &[u16], &str)> = vec![
        ("", json!({ "vcpu": 0 }), &[422], "vcpu"),
        ("", json!({ "vcpu": -1 }), &[422], "vcpu"),
        ("", json!({ "vcpu": 1.5 }), &[422], "vcpu"),
        ("", json!({ "vcpu": "2" }), &[422], "vcpu"),
        ("", json!({ "vcpu": true }), &[422], "vcpu"),
        ("", json!({ "vcpu": [2] }), &[422], "vcpu"),
        ("", json!({ "vcpu": 1e300 }), &[422], "vcpu"),
        ("", json!({ "vcpu": 100_000 }), &[422], "vcpu"),
        ("", json!({ "vcpu": 200 }), &[409], "CPU"),
        ("", json!({ "memory": 511 }), &[422], "memory"),
        ("", json!({ "memory": 4_294_967_296_u64 }), &[422], "memory"),
        ("", json!({ "memory": 512 * 1024 }), &[409], "memory"),
        ("", json!({ "disk_size": 0 }), &[422], "disk_size"),
        ("", json!({ "disk_size": before.size.disk_gb - 1 }), &[400], "disk_size"),
        ("", json!({ "disk_size": 10_000 }), &[409], "disk"),
        ("", json!({ "gpus": { "count": 9 } }), &[409], "GPU"),
        ("", json!({ "gpus": { "count": 1, "product_name": "RTX" } }), &[409], "RTX"),
        ("", json!({ "gpus": { "count": -1 } }), &[422], "count"),
        ("", json!({ "gpus": 1 }), &[422], "gpus"),
        ("", json!({ "gpus": { "gpus": [1] } }), &[422], "gpus"),
        ("", json!({ "gpus": { "gpus": [], "attach_mode": "some" } }), &[422], "attach_mode"),
        ("", json!({ "instance_type": "tdx.huge" }), &[400], "instance_type"),
        ("", json!({ "image": "no-such-image" }), &[400], "image"),
        ("", json!({ "image": "" }), &[422], "image"),
        ("", json!({ "shutdown_timeout": 9 }), &[422], "shutdown_timeout"),
        ("", json!({ "shutdown_timeout": 1201 }), &[422], "shutdown_timeout"),
        ("", json!({ "allow_force_stop": "no" }), &[422], "allow_force_stop"),
        ("", json!({ "public_logs": "true" }), &[422], "public_logs"),
        ("", json!({ "listed": 2 }), &[422], "listed"),
        ("", json!({ "name": "x" }), &[422], "name"),
        ("", json!({ "on_failure": "explode" }), &[422], "on_failure"),
        ("", json!({ "user_config": 5 }), &[422], "user_config"),
        ("", json!({ "user_config": "x".repeat(64 * 1024 + 1) }), &[422], "user_config"),
        ("", json!({ "allowed_envs": [1] }), &[422], "allowed_envs"),
        ("", json!({ "allowed_envs": ["A=B"] }), &[422], "allowed_envs"),
        ("", json!({ "encrypted_env": "zz" }), &[422], "encrypted_env"),
        ("", json!({ "encrypted_env": "abc" }), &[422], "encrypted_env"),
        ("", json!({ "encrypted_env": "00".repeat(8) }), &[422], "encrypted_env"),
        ("", json!({ "encrypted_env": "00".repeat(1024 * 1024 + 5000) }), &[422], "encrypted_env"),
        ("", json!({ "docker_compose_file": "services: [" }), &[422], "docker_compose_file"),
        ("", json!({ "docker_compose_file": "just text" }), &[422], "docker_compose_file"),
        ("", json!({ "docker_compose_file": "services: {}" }), &[422], "docker_compose_file"),
        ("", json!({ "docker_compose_file": "services: 5" }), &[422], "docker_compose_file"),
        ("", json!({ "docker_compose_file": "" }), &[400], "docker_compose_file"),
        ("", json!({ "docker_compose_file": deep }), &[422], "docker_compose_file"),
        ("", json!({ "docker_compose_file": bomb }), &[422], "docker_compose_file"),
        ("", json!({ "docker_compose_file": ["a"] }), &[422], "docker_compose_file"),
        ("", json!({ "pre_launch_script": long }), &[422], "docker_compose_file"),
        ("", json!({ "compose_hash": "00", "transaction_hash": "" }), &[422], "compose_hash"),
        ("", json!({ "prepareOnly": "maybe", "vcpu": 2 }), &[422], "prepareOnly"),
        ("/resources", json!({}), &[422], "vcpu"),
        ("/resources", json!({ "vcpu": 0, "memory": 1, "disk_size": 0 }), &[422], "disk_size"),
        ("/resources", json!({ "memory": "4096" }), &[422], "memory"),
        ("/resources", json!({ "allow_restart": 5 }), &[422], "allow_restart"),
        ("/resources", json!({ "instance_type": "" }), &[422], "instance_type"),
        ("/visibility", json!({ "public_tcbinfo": "no" }), &[422], "public_tcbinfo"),
        ("/listed", json!({}), &[422], "listed"),
        ("/name", json!({ "name": 5 }), &[422], "name"),
        ("/os-image", json!({}), &[422], "image"),
        ("/os-image", json!({ "os_image_name": 5 }), &[422], "os_image_name"),
        ("/envs", json!({ "encrypted_env": "00".repeat(100), "env_keys": "A" }), &[422], "env_keys"),
        ("/docker-compose", json!({ "docker_compose_file": long }), &[422], "docker_compose_file"),
        ("/pre-launch-script", json!({ "pre_launch_script": long }), &[422], "docker_compose_file"),
        ("/pre-launch-script", json!({ "pre_launch_script": 5 }), &[422], "pre_launch_script"),
    ];
    for (rest, body, statuses, named) in cases {
        let answer = scene.client.patch(&scene.path(rest), body.clone()).await;
        let what: String = format!("{rest} {body}").chars().take(200).collect();
        assert!(statuses.contains(&answer.status.as_u16()), "{what}: {} {}", answer.status, answer.text());
        assert!(answer.text().contains(named), "{what}: {}", answer.text());
    }
    assert_eq!((scene.now().tag(), scene.now().open), (tag, None));
    scene.world.settle().await;
    assert_eq!(scene.snapshot().await, before);
    scene.world.assert_accounts().await;
}

#[tokio::test(start_paused = true)]
async fn several_wrong_fields_are_named_in_one_answer() {
    let scene = Scene::start().await;
    let body = json!({ "vcpu": "a", "memory": -1, "listed": "b", "name": "c" });
    let refused = scene.client.patch(&scene.path(""), body).await.expect(422);
    let fields: Vec<_> =
        refused["detail"].as_array().expect("a list").iter().map(|issue| &issue["loc"][1]).collect();
    assert_eq!(fields, ["vcpu", "memory", "listed", "name"]);
}

#[tokio::test(start_paused = true)]
async fn bodies_that_are_no_object_are_refused() {
    let scene = Scene::start().await;
    let path = scene.path("");
    let deep = format!("{}1{}", "{\"a\":".repeat(10_000), "}".repeat(10_000));
    for bytes in ["{", "[]", "5", "\"text\"", "{\"a\": 1} x", "\u{0}", deep.as_str()] {
        let refused =
            scene.client.raw(Method::PATCH, &path, "application/json", bytes.to_owned()).await.expect(422);
        assert_eq!(refused["detail"][0]["loc"][0], "body", "{refused}");
    }
    let invalid = b"{\"user_config\": \"\xff\"}".to_vec();
    scene.client.raw(Method::PATCH, &path, "application/json", invalid).await.expect(422);
}

#[tokio::test(start_paused = true)]
async fn bodies_over_the_limit_are_refused() {
    let world = World::with(SimConfig::node(1), Config { max_body: 1000, ..Config::default() }).await;
    let client = Client::of(&world).await;
    let cvm = world.deploy("web-one", "web:1").await;
    let body = json!({ "user_config": "x".repeat(1000) });
    for client in [&client, &client.header("idempotency-key", "once")] {
        for path in [format!("/cvms/{}", cvm.uid), format!("/cvms/{}/docker-compose", cvm.uid)] {
            let refused = client.patch(&path, body.clone()).await;
            assert!(refused.status.is_client_error(), "{}", refused.status);
            assert!(refused.text().contains("1000 bytes"), "{}", refused.text());
        }
    }
    assert_eq!(world.cvm(&cvm).revision, 1);
}
