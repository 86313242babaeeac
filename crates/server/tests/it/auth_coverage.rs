//! Every endpoint against no key, a wrong one, a revoked one, one that may only read, and another workspace's. An endpoint that
//! is not in the list fails the test.

use std::collections::BTreeMap;

use axum::http::Method;
use casemate_server::http::openapi;
use serde_json::json;

use crate::client::Client;
use crate::scene::Scene;

/// What an endpoint is about, and so what a stranger may see of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum About {
    /// One thing of a workspace: to a stranger it is as if it did not exist.
    Thing,
    /// What a workspace has: a stranger sees their own.
    Workspace,
    /// The cloud itself: the same for everybody who has a key.
    Cloud,
    /// Its own permission: a token or a signature.
    Ticket,
}

use About::{Cloud, Thing, Ticket, Workspace};

const METHODS: [&str; 5] = ["get", "put", "post", "patch", "delete"];

const ENDPOINTS: &[(&str, About)] = &[
    ("DELETE /cvms/{id}", Thing),
    ("DELETE /dev/nodes/{node}/faults", Cloud),
    ("DELETE /keys/{key_id}", Thing),
    ("GET /apps", Workspace),
    ("GET /apps/filter-options", Workspace),
    ("GET /apps/{app_id}", Thing),
    ("GET /apps/{app_id}/allowed", Thing),
    ("GET /apps/{app_id}/cvms", Thing),
    ("GET /apps/{app_id}/device-allowlist", Thing),
    ("GET /apps/{app_id}/revisions", Thing),
    ("GET /apps/{app_id}/revisions/{revision_id}", Thing),
    ("GET /approvals", Workspace),
    ("GET /approvals/{approval_id}", Thing),
    ("GET /audit", Workspace),
    ("GET /auth/me", Workspace),
    ("GET /cvms", Workspace),
    ("GET /cvms/paginated", Workspace),
    ("GET /cvms/{id}", Thing),
    ("GET /cvms/{id}/attestation", Thing),
    ("GET /cvms/{id}/available-os-images", Thing),
    ("GET /cvms/{id}/compose_file", Thing),
    ("GET /cvms/{id}/composition", Thing),
    ("GET /cvms/{id}/docker-compose.yml", Thing),
    ("GET /cvms/{id}/network", Thing),
    ("GET /cvms/{id}/observed", Thing),
    ("GET /cvms/{id}/pre-launch-script", Thing),
    ("GET /cvms/{id}/revisions", Thing),
    ("GET /cvms/{id}/state", Thing),
    ("GET /cvms/{id}/stats", Thing),
    ("GET /cvms/{id}/user_config", Thing),
    ("GET /dev/nodes/{node}/faults", Cloud),
    ("GET /fields", Cloud),
    ("GET /instance-types", Cloud),
    ("GET /instance-types/{family}", Cloud),
    ("GET /keys", Workspace),
    ("GET /kms", Cloud),
    ("GET /kms/on-chain/{chain}", Cloud),
    ("GET /kms/phala/next_app_id", Workspace),
    ("GET /kms/{kms}", Cloud),
    ("GET /kms/{kms}/nodes", Cloud),
    ("GET /kms/{kms}/pubkey/{app_id}", Cloud),
    ("GET /logs/{vm_uuid}", Ticket),
    ("GET /logs/{vm_uuid}/container", Ticket),
    ("GET /nodes", Cloud),
    ("GET /operations", Workspace),
    ("GET /operations/{correlation_id}", Thing),
    ("GET /os-images", Cloud),
    ("GET /teepods/available", Cloud),
    ("GET /teepods/cvm-create-resources", Cloud),
    ("GET /users/me", Workspace),
    ("GET /workspaces", Workspace),
    ("GET /workspaces/{slug}", Thing),
    ("GET /workspaces/{slug}/nodes", Thing),
    ("GET /workspaces/{slug}/quotas", Thing),
    ("PATCH /cvms/instance-ids", Workspace),
    ("PATCH /cvms/{id}", Thing),
    ("PATCH /cvms/{id}/compose_file", Thing),
    ("PATCH /cvms/{id}/docker-compose", Thing),
    ("PATCH /cvms/{id}/envs", Thing),
    ("PATCH /cvms/{id}/instance-id", Thing),
    ("PATCH /cvms/{id}/listed", Thing),
    ("PATCH /cvms/{id}/name", Thing),
    ("PATCH /cvms/{id}/os-image", Thing),
    ("PATCH /cvms/{id}/pre-launch-script", Thing),
    ("PATCH /cvms/{id}/resources", Thing),
    ("PATCH /cvms/{id}/visibility", Thing),
    ("POST /approvals/{approval_id}/auto-commit", Thing),
    ("POST /approvals/{approval_id}/cancel", Thing),
    ("POST /approvals/{approval_id}/commit", Thing),
    ("POST /apps/{app_id}/cvms/is-allowed", Thing),
    ("POST /apps/{app_id}/cvms/{vm_uuid}/replicas", Thing),
    ("POST /apps/{app_id}/instances", Thing),
    ("POST /apps/{app_id}/is-allowed", Thing),
    ("POST /cvms", Workspace),
    ("POST /cvms/provision", Workspace),
    ("POST /cvms/refresh-instance-ids", Workspace),
    ("POST /cvms/{id}/commit-replica", Thing),
    ("POST /cvms/{id}/commit-update", Ticket),
    ("POST /cvms/{id}/compose_file", Thing),
    ("POST /cvms/{id}/compose_file/commit", Thing),
    ("POST /cvms/{id}/compose_file/provision", Thing),
    ("POST /cvms/{id}/is-allowed", Thing),
    ("POST /cvms/{id}/refresh-instance-id", Thing),
    ("POST /cvms/{id}/replicas", Thing),
    ("POST /cvms/{id}/restart", Thing),
    ("POST /cvms/{id}/rollback", Thing),
    ("POST /cvms/{id}/shutdown", Thing),
    ("POST /cvms/{id}/start", Thing),
    ("POST /cvms/{id}/stop", Thing),
    ("POST /dev/nodes/{node}/faults", Cloud),
    ("POST /keys", Workspace),
    ("POST /operations/{correlation_id}/cancel", Thing),
    ("POST /status/batch", Workspace),
];

/// Answers that change nothing although their method could, so a key that may only read gets them.
const ONLY_READS: &[&str] = &[
    "POST /apps/{app_id}/cvms/is-allowed",
    "POST /apps/{app_id}/is-allowed",
    "POST /cvms/{id}/is-allowed",
    "POST /status/batch",
];

/// The ids of a scene, and ones of the same shape that nobody has.
fn fill(path: &str, ids: &BTreeMap<&str, String>) -> String {
    ids.iter().fold(path.to_owned(), |path, (name, id)| path.replace(&format!("{{{name}}}"), id))
}

async fn ids(scene: &Scene) -> BTreeMap<&'static str, String> {
    let operation = scene.client.json("/operations").await["items"][0]["correlation_id"].clone();
    let key = scene.client.json("/keys").await[0]["id"].clone();
    let slug = scene.client.json("/auth/me").await["workspace"]["slug"].clone();
    let text = |value: serde_json::Value| value.as_str().expect("a string").to_owned();
    BTreeMap::from([
        ("id", scene.cvm.uid.to_string()),
        ("app_id", scene.cvm.app_id.to_string()),
        ("vm_uuid", scene.cvm.vm_uuid.to_string()),
        ("correlation_id", text(operation)),
        ("key_id", text(key)),
        ("slug", text(slug)),
        ("node", "sim-1".to_owned()),
        ("kms", "phala".to_owned()),
        ("chain", "base".to_owned()),
        ("family", "cpu".to_owned()),
        ("revision_id", "1".to_owned()),
        ("approval_id", "0198c1d2-0000-7000-8000-000000000000".to_owned()),
    ])
}

fn absent(ids: &BTreeMap<&'static str, String>) -> BTreeMap<&'static str, String> {
    let mut absent = ids.clone();
    absent.insert("id", "cvm_nobodyhas1".into());
    absent.insert("app_id", "ab".repeat(20));
    absent.insert("correlation_id", "0198c1d2-0000-7000-8000-000000000000".into());
    absent.insert("key_id", "key_nobodyhas1".into());
    absent.insert("slug", "nobody-has".into());
    absent
}

#[tokio::test(start_paused = true)]
async fn every_endpoint_against_every_kind_of_key() {
    let scene = Scene::start().await;
    let owner = &scene.client;
    let made = |scopes: &'static str| owner.post("/keys", json!({ "name": scopes, "scopes": scopes }));
    let (reading, revoked) = (made("read").await.expect(201), made("read,write,keys").await.expect(201));
    owner.delete(&format!("/keys/{}", revoked["id"].as_str().expect("an id"))).await.expect(204);
    let key = |made: &serde_json::Value| made["key"].as_str().expect("a key").to_owned();
    let without = [
        ("no key", owner.nobody()),
        ("a wrong key", owner.with_key("phak_wrong")),
        ("a revoked key", owner.with_key(&key(&revoked))),
    ];
    let (reader, stranger) = (owner.with_key(&key(&reading)), Client::stranger(&scene.world).await);
    let ids = ids(&scene).await;
    let secrets = ["id", "app_id", "vm_uuid", "correlation_id", "key_id"].map(|name| ids[name].clone());
    let absent = absent(&ids);

    let document = serde_json::to_value(openapi::build()).expect("a document");
    let (mut listed, mut lax) = (Vec::new(), Vec::new());
    for (path, methods) in document["paths"].as_object().expect("paths") {
        for method in METHODS.iter().filter(|method| methods.get(**method).is_some()) {
            let endpoint = format!("{} {path}", method.to_uppercase());
            let Some((name, about)) = ENDPOINTS.iter().find(|(name, _)| *name == endpoint) else {
                panic!("{endpoint} is not in the list: say what it is about");
            };
            listed.push(*name);
            let method: Method = method.to_uppercase().parse().expect("a method");
            let (here, nowhere) = (fill(path, &ids), fill(path, &absent));
            for (what, client) in &without {
                let answer = client.call(method.clone(), &here, None).await;
                match about {
                    Ticket => {
                        assert!(answer.status.is_client_error(), "{name} with {what}: {}", answer.text())
                    }
                    _ => assert_eq!(answer.status, 401, "{name} with {what}: {}", answer.text()),
                }
                assert!(!secrets.iter().any(|secret| answer.text().contains(secret)), "{name} with {what}");
            }
            let answer = stranger.call(method.clone(), &here, None).await;
            match about {
                Thing => {
                    let absent = stranger.call(method.clone(), &nowhere, None).await;
                    assert_eq!(answer.status, 404, "{name}: {}", answer.text());
                    assert_eq!((answer.status, answer.text()), (absent.status, absent.text()), "{name}");
                }
                Workspace => {
                    let text = answer.text();
                    assert!(
                        !secrets.iter().any(|secret| text.contains(secret)),
                        "{name} to a stranger: {text}"
                    );
                }
                Cloud | Ticket => {}
            }
            if method != Method::GET && !ONLY_READS.contains(name) && *about != Ticket {
                let answer = reader.call(method, &here, None).await;
                if answer.status != 403 {
                    lax.push(format!("{name}: {} {}", answer.status, answer.text()));
                }
            }
        }
    }
    assert!(lax.is_empty(), "with a key that may only read:\n{}", lax.join("\n"));
    for (name, _) in ENDPOINTS {
        assert!(listed.contains(name), "{name} is in the list and not in the API");
    }
    assert_eq!(scene.seen().await.boot_count, 1, "and nothing happened to the machine");
    assert_eq!(scene.now().generation, 1);
}
