//! Apps: what their contracts allow, and more CVMs of them.

use casemate_sdk::{Ask, Error, PatchOutcome};
use serde_json::{Value, json};

use crate::support::{HASH, OP, Reply, Server, approval};

const APP: &str = "3f1c0a9b7d5e4c2a8b6d0e1f2a3b4c5d6e7f8091";
const NEW: &str = "0198c1d2-0000-4000-8000-00000000000a";

fn is_allowed(yes: bool) -> Value {
    json!({
        "cvm_id": null, "app_contract_address": format!("0x{APP}"), "compose_hash": HASH, "device_id": "5f".repeat(32),
        "compose_hash_allowed": yes, "allow_any_device": false, "device_id_allowed": true, "is_allowed": yes, "error": null,
    })
}

/// The record of a new CVM.
fn made() -> Reply {
    Reply::json(
        201,
        json!({
            "id": 7, "name": "web-2", "status": "creating", "teepod_id": 2, "app_id": APP, "vm_uuid": NEW,
            "vcpu": 1, "memory": 2048, "disk_size": 20, "correlation_id": OP,
        }),
    )
}

fn ask(outcome: PatchOutcome) -> Ask {
    match outcome {
        PatchOutcome::NeedsApproval(ask) => ask,
        PatchOutcome::Accepted(op) => panic!("accepted: {op:?}"),
    }
}

#[tokio::test]
async fn contracts_are_asked_about_a_cvm_an_app_and_all_its_cvms() {
    let all = json!({
        "is_onchain": true, "results": [is_allowed(true)], "total": 1, "allowed_count": 1, "denied_count": 0,
        "error_count": 0, "skipped_cvm_ids": [],
    });
    let replies = [is_allowed(true), is_allowed(false), all].map(|body| Reply::json(200, body));
    let server = Server::other(replies).await;
    let client = server.client();
    assert!(client.cvm("web-1").is_allowed().send().await.unwrap().is_allowed);
    let asked = client.app(format!("0x{APP}")).is_allowed(format!("0x{HASH}")).node(2).send().await.unwrap();
    assert!(!asked.is_allowed);
    assert_eq!(client.app(APP).cvms_allowed().await.unwrap().allowed_count, 1);
    let app = format!("POST /apps/0x{APP}/is-allowed");
    let cvms = format!("POST /apps/{APP}/cvms/is-allowed");
    assert_eq!(server.lines(), ["POST /cvms/web-1/is-allowed", &app, &cvms]);
    let bodies: Vec<_> = server.asked().iter().map(crate::support::Asked::json).collect();
    assert_eq!(bodies, [json!({}), json!({ "compose_hash": HASH, "node_id": 2 }), json!({})]);
}

#[tokio::test]
async fn what_cannot_be_asked_about_is_named_before_anything_is_sent() {
    let server = Server::casemate([]).await;
    let client = server.client();
    let wrong = [
        client.cvm("web-1").is_allowed().compose_hash("0x12").send().await.map(drop),
        client.app("..").is_allowed(HASH).device("x").send().await.map(drop),
        client.app("").allowed().await.map(drop),
        client.cvm("web-1").replicate().name("!").compose_hash("x").send().await.map(drop),
        client.cvm("web-1").commit_replica("", "x", "y").await.map(drop),
    ];
    let fields = wrong.map(|wrong| {
        let error = wrong.unwrap_err();
        error.fields().iter().flat_map(|field| field.loc.clone()).collect::<Vec<_>>().join(" ")
    });
    for (named, wanted) in fields.iter().zip([
        &["compose_hash"][..],
        &["app_id", "device_id"],
        &["app_id"],
        &["name", "compose_hash"],
        &["token", "compose_hash", "transaction_hash"],
    ]) {
        assert!(wanted.iter().all(|field| named.contains(field)), "{wanted:?}: {named}");
    }
    assert!(server.asked().is_empty());
}

#[tokio::test]
async fn what_can_still_boot_and_where_is_listed() {
    let allowed = json!({
        "app_id": APP, "chain_id": 8453, "contract": format!("0x{APP}"), "complete": false, "read_to_block": 7,
        "items": [{
            "compose_hash": HASH, "in_use": false,
            "revisions": [{ "cvm_id": "cvm_x8Kq2Lm9", "revision": 1, "current": false, "created_at": "2026-02-03T10:00:00Z" }],
            "removal": { "function": "removeComposeHash", "argument": format!("0x{HASH}"), "to": format!("0x{APP}"), "data": "0x67b3f22c", "needed": null },
        }],
    });
    let devices = json!({
        "is_onchain_kms": true, "allow_any_device": false, "chain_id": 8453, "app_contract_address": format!("0x{APP}"),
        "devices": [{ "device_id": "5f".repeat(32), "node_name": "sim-1", "cvm_ids": [7, "cvm_x8Kq2Lm9"], "allowed_onchain": true, "status": "allowed" }],
    });
    let server = Server::casemate([allowed, devices].map(|body| Reply::json(200, body))).await;
    let app = server.client().app(APP);
    let found = app.allowed().await.unwrap();
    assert_eq!((found.complete, found.items[0].revisions[0].revision), (false, 1));
    assert!(app.device_allowlist().await.unwrap().devices[0].allowed_onchain);
    assert_eq!(
        server.lines(),
        [format!("GET /apps/{APP}/allowed"), format!("GET /apps/{APP}/device-allowlist")]
    );
    let elsewhere = Server::other([]).await;
    assert!(matches!(elsewhere.client().app(APP).allowed().await, Err(Error::Unsupported { .. })));
}

#[tokio::test]
async fn a_replica_is_a_cvm_of_its_own() {
    let server = Server::other([made(), made()]).await;
    let client = server.client();
    let op = client.cvm("web-1").replicate().node(2).send().await.unwrap().accepted().unwrap();
    assert_eq!(op.id().unwrap().to_string(), OP);
    let again = client.app(APP).new_instance().compose_hash(HASH).docker_compose("services: {}\n");
    again.send().await.unwrap().accepted().unwrap();
    let app = format!("POST /apps/{APP}/instances");
    assert_eq!(server.lines(), ["POST /cvms/web-1/replicas", &app]);
    let bodies: Vec<_> = server.asked().iter().map(crate::support::Asked::json).collect();
    assert_eq!(
        bodies,
        [json!({ "node_id": 2 }), json!({ "compose_hash": HASH, "docker_compose_file": "services: {}\n" })]
    );
}

#[tokio::test]
async fn a_replica_that_a_contract_has_to_allow_is_committed_with_its_token() {
    let server =
        Server::other([approval(Some("ct_1")), made(), made(), approval(Some("ct_2")), made()]).await;
    let client = server.client();
    let web = client.cvm("web-1");
    let asked = ask(web.replicate().prepare_only().send().await.unwrap());
    assert_eq!(asked.confirm("already-registered").await.unwrap().id().unwrap().to_string(), OP);
    web.commit_replica("ct_1", format!("0x{HASH}"), "").await.unwrap();
    let instance = ask(client.app(APP).new_instance().send().await.unwrap());
    instance.commit(format!("0x{}", "11".repeat(32))).await.unwrap();

    let all = server.asked();
    assert_eq!(all[0].header("x-prepare-only"), Some("true"));
    let app = format!("POST /apps/{APP}/instances");
    assert_eq!(
        server.lines(),
        [
            "POST /cvms/web-1/replicas",
            "POST /cvms/web-1/commit-replica",
            "POST /cvms/web-1/commit-replica",
            &app,
            &app
        ]
    );
    for (commit, token, tx) in [
        (&all[1], "ct_1", "already-registered".to_owned()),
        (&all[2], "ct_1", "already-registered".to_owned()),
        (&all[4], "ct_2", format!("0x{}", "11".repeat(32))),
    ] {
        assert_eq!(commit.json(), json!({ "token": token, "compose_hash": HASH, "transaction_hash": tx }));
    }
}
