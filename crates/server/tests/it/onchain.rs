//! Approvals as people see them, and what contracts allow.

use std::sync::Mutex;
use std::time::Duration;

use casemate_server::app::Guesses;
use casemate_server::driver::fault::{Fault, Planned};
use casemate_server::workflow::auto_commit::once;
use casemate_server::workflow::operation::{Kind, Operation, StepName};
use casemate_server::workflow::worker::{Moment, Probe};
use casemate_testkit::compose;
use casemate_types::ids::ComposeHash;
use casemate_types::version::ApiVersion;
use serde_json::{Value, json};

use crate::approvals::{KMS, OWNER, Stage, code, detail, hash, text};
use crate::client::Client;

fn bearer(stage: &Stage, token: &str) -> Client {
    stage.client.nobody().header("authorization", format!("Bearer {token}"))
}

async fn prepare(stage: &Stage, body: Value) -> (ComposeHash, String, String) {
    let answer = stage.client.header("x-prepare-only", "true").patch(&stage.path(""), body).await;
    let path = format!("/approvals/{}", text(&detail(&answer, "approval_id")));
    (hash(&answer), text(&detail(&answer, "commit_token")), path)
}

#[tokio::test(start_paused = true)]
async fn whoever_decides_sees_what_would_run() {
    let stage = Stage::start().await;
    let key = stage.world.app.kms.env_public_key(&stage.cvm.app_id).expect("a key");
    let sealed = hex::encode(casemate_types::env::seal(&key, &[], [3; 32], [3; 12]).expect("sealed"));
    let body = json!({
        "docker_compose_file": compose("web:2"), "encrypted_env": sealed, "allowed_envs": ["TOKEN"], "vcpu": 2,
    });
    let (asked, token, path) = prepare(&stage, body).await;
    for reader in [&stage.client, &bearer(&stage, &token)] {
        let approval = reader.json(&path).await;
        assert_eq!((&approval["state"], &approval["compose_hash"]), (&json!("open"), &json!(asked)));
        let change = |field: &str| {
            let all = approval["diff"].as_array().expect("a list");
            all.iter().find(|change| change["field"] == field).unwrap_or_else(|| panic!("{field} in {all:?}"))
        };
        assert_eq!(change("docker_compose_file")["to"], compose("web:2"));
        assert_eq!((&change("vcpu")["from"], &change("vcpu")["to"]), (&json!(1), &json!(2)));
        assert_eq!(change("encrypted_env")["to"], json!(["TOKEN"]), "names and nothing else");
        assert!(!approval.to_string().contains(&sealed));
        let text = approval["app_compose"].as_str().expect("the text");
        assert_eq!(ComposeHash(casemate_server::cvm::spec::sha256(text.as_bytes())), asked);
        assert_eq!(approval["chain_id"], 8453);
        assert_eq!(approval["kms"]["custody"], "operator");
        let calls = &approval["calls"];
        assert_eq!(calls[0]["data"], format!("0xdfc77223{asked}"));
        assert_eq!((&calls[0]["needed"], &calls[1]["needed"]), (&json!(true), &json!(false)));
        let batch = &approval["safe_batch"];
        assert_eq!(batch["transactions"].as_array().map(Vec::len), Some(1), "only what is missing: {batch}");
        assert_eq!(batch["chainId"], "8453");
    }
    // Somebody else changes the same field: what waits could not run any more, and says so.
    stage.client.patch(&stage.path(""), json!({ "vcpu": 3 })).await.expect(202);
    stage.world.settle().await;
    assert!(text(&stage.client.json(&path).await["problem"]).contains("vcpu"));
    let list = stage.client.json("/approvals?state=open").await;
    assert_eq!(list["items"][0]["cvm_name"], "web-one");
    assert!(!list.to_string().contains("ct_"), "{list}");
    let stranger = Client::stranger(&stage.world).await;
    stranger.get(&path).await.expect(404);
    assert_eq!(stranger.json("/approvals").await["items"], json!([]));
    stage.client.get("/approvals?state=new").await.expect(422);
}

#[tokio::test(start_paused = true)]
async fn the_token_alone_commits_on_the_page() {
    let stage = Stage::start().await;
    let (asked, token, path) = prepare(&stage, json!({ "public_logs": false })).await;
    let (_, other, _) = prepare(&stage, json!({ "public_sysinfo": false })).await;
    let signer = bearer(&stage, &token);
    bearer(&stage, &other).get(&path).await.expect(400);
    let commit = format!("{path}/commit");
    signer.post(&format!("{commit}?now=1"), json!({})).await.expect(422);
    assert_eq!(code(&signer.post(&commit, json!({})).await, 468), "ERR-01-008");
    for denied in ["cancel", "auto-commit"] {
        signer.post(&format!("{path}/{denied}"), json!({})).await.expect(401);
    }
    stage.chain.allow_hash(stage.cvm.app_id, asked);
    let done = signer.post(&commit, json!({})).await.expect(202);
    assert_eq!(done["status"], "in_progress");
    let used = signer.post(&commit, json!({})).await.expect(400);
    assert!(text(&used["message"]).starts_with("Invalid commit token"), "{used}");
    stage.world.settle().await;
    let approval = signer.json(&path).await;
    assert_eq!(
        (&approval["state"], &approval["correlation_id"]),
        (&json!("committed"), &done["correlation_id"])
    );
}

#[tokio::test(start_paused = true)]
async fn sixty_four_clients_with_one_token_restart_once() {
    let stage = Stage::start().await;
    let (asked, token) = stage.prepare(json!({ "public_logs": false })).await;
    stage.chain.allow_hash(stage.cvm.app_id, asked);
    let boots = stage.boots().await;
    stage.chain.hold();
    let all = futures_util::future::join_all((0..64).map(|_| stage.commit(&token, "", "")));
    let go = async {
        tokio::task::yield_now().await;
        stage.chain.let_go();
    };
    let (answers, ()) = tokio::join!(all, go);
    let accepted = answers.iter().filter(|answer| answer.status == 202).count();
    assert_eq!(accepted, 1, "{:?}", answers.iter().map(|answer| answer.status).collect::<Vec<_>>());
    assert!(answers.iter().all(|answer| [202, 400, 409].contains(&answer.status.as_u16())));
    stage.world.settle().await;
    assert_eq!(stage.boots().await, boots + 1);
}

#[tokio::test(start_paused = true)]
async fn who_guesses_tokens_is_not_answered_for_long() {
    let stage = Stage::start().await;
    let (_, token, path) = prepare(&stage, json!({ "public_logs": false })).await;
    let guesser = bearer(&stage, &format!("ct_{}", "0".repeat(96)));
    for _ in 0..Guesses::IN_A_MINUTE / 2 {
        guesser.get(&path).await.expect(400);
        stage.commit("ct_00", "", "").await.expect(400);
    }
    let limited = guesser.get(&path).await;
    assert!(limited.headers.contains_key("retry-after"));
    limited.expect(429);
    stage.commit("nonsense", "", "").await.expect(429);
    bearer(&stage, &token).get(&path).await.expect(200);
    stage.world.clock.sleep(std::time::Duration::from_secs(60)).await;
    guesser.get(&path).await.expect(400);
}

#[tokio::test(start_paused = true)]
async fn what_is_called_off_cannot_be_committed() {
    let stage = Stage::start().await;
    let (asked, token, path) = prepare(&stage, json!({ "public_logs": false })).await;
    stage.chain.allow_hash(stage.cvm.app_id, asked);
    let cancelled = stage.client.post(&format!("{path}/cancel"), json!({})).await.expect(200);
    assert_eq!(cancelled["state"], "cancelled");
    let again = stage.client.post(&format!("{path}/cancel"), json!({})).await;
    assert_eq!(again.expect(409)["error_code"], "ERR-02-008");
    let refused = stage.commit(&token, "", "").await.expect(400);
    assert!(text(&refused["detail"]).starts_with("Invalid commit token"), "{refused}");
    assert_eq!(code(&stage.confirm(asked, "").await, 466), "ERR-01-006");

    // A CVM that goes takes everything along that waits for it.
    let (_, _, second) = prepare(&stage, json!({ "public_sysinfo": false })).await;
    stage.client.delete(&stage.path("")).await.expect(204);
    let audit = stage.client.json("/audit?limit=500").await;
    let of = |kind: &str| {
        let items = audit["items"].as_array().expect("a list");
        items.iter().filter(|event| event["kind"] == kind).count()
    };
    assert_eq!(of("approval.cancelled"), 2);
    assert_eq!(stage.client.json(&second).await["state"], "cancelled");
    once(&stage.world.app).await;
    stage.world.settle().await;
    stage.client.get(&second).await.expect(404);
}

#[tokio::test(start_paused = true)]
async fn an_image_that_the_contract_does_not_allow_is_refused_at_once() {
    let stage = Stage::start().await;
    let facts = stage.world.app.node(1).expect("a node").facts();
    let now = stage.world.app.store.spec(stage.cvm.id, 1).expect("the spec").image;
    let other =
        facts.images.iter().find(|image| image.name != now && !image.requires_gpu).expect("another image");
    let mut bytes = [0; 32];
    hex::decode_to_slice(&other.os_image_hash, &mut bytes).expect("a hash");
    stage.chain.forbid_os_image(KMS, bytes);
    for (path, body) in [
        ("", json!({ "image": other.name, "public_logs": false })),
        ("?dry_run=true", json!({ "image": other.name })),
        ("/os-image", json!({ "os_image_name": other.name })),
    ] {
        let refused = stage.client.patch(&stage.path(path), body).await;
        assert_eq!(code(&refused, 400), "ERR-02-013");
        assert_eq!(refused.json()["details"][0]["field"], "image");
    }
    assert_eq!(stage.now().open, None);
    stage.chain.set_down(true);
    stage.client.patch(&stage.path("/os-image"), json!({ "os_image_name": other.name })).await.expect(503);
    stage.chain.set_down(false);
    stage.chain.allow_os_image(KMS, bytes);
    stage.client.patch(&stage.path("/os-image"), json!({ "os_image_name": other.name })).await.expect(202);
}

#[tokio::test(start_paused = true)]
async fn contracts_are_asked_what_they_allow() {
    let stage = Stage::start().await;
    let (app, device, first) = (stage.cvm.app_id, stage.device(), stage.hash_of(1));
    let asked = stage.client.post(&stage.path("/is-allowed"), json!({})).await.expect(200);
    assert_eq!(
        asked,
        json!({
            "cvm_id": stage.cvm.uid, "app_contract_address": format!("0x{app}"), "compose_hash": first,
            "device_id": device, "compose_hash_allowed": true, "allow_any_device": false,
            "device_id_allowed": true, "is_allowed": true, "error": null,
        })
    );
    let older = stage.client.version(ApiVersion::V20260121);
    assert!(older.post(&stage.path("/is-allowed"), json!({})).await.expect(200)["cvm_id"].is_number());
    let other = json!({ "compose_hash": format!("0x{}", "AB".repeat(32)), "device_id": "cd".repeat(32) });
    let asked = stage.client.post(&format!("/apps/0x{app}/is-allowed"), other).await.expect(200);
    assert_eq!((&asked["is_allowed"], &asked["device_id_allowed"]), (&json!(false), &json!(false)));
    stage.client.post(&format!("/apps/{app}/is-allowed"), json!({})).await.expect(422);
    let all = stage.client.post(&format!("/apps/{app}/cvms/is-allowed"), json!({})).await.expect(200);
    assert_eq!(
        (&all["is_onchain"], &all["total"], &all["allowed_count"]),
        (&json!(true), &json!(1), &json!(1))
    );
    let list = stage.client.json(&format!("/apps/{app}/device-allowlist")).await;
    assert_eq!((&list["chain_id"], &list["allow_any_device"]), (&json!(8453), &json!(false)));
    assert_eq!(
        (&list["devices"][0]["status"], &list["devices"][0]["cvm_ids"]),
        (&json!("allowed"), &json!([stage.cvm.uid]))
    );
    stage.chain.set_allow_any_device(app, true);
    let asked = stage.client.post(&stage.path("/is-allowed"), json!({ "device_id": "cd".repeat(32) })).await;
    let asked = asked.expect(200);
    assert_eq!((&asked["is_allowed"], &asked["device_id_allowed"]), (&json!(true), &Value::Null));

    let plain = stage.world.deploy("web-plain", "web:1").await;
    stage.client.post(&format!("/cvms/{}/is-allowed", plain.uid), json!({})).await.expect(400);
    let all =
        stage.client.post(&format!("/apps/{}/cvms/is-allowed", plain.app_id), json!({})).await.expect(200);
    assert_eq!((&all["is_onchain"], &all["results"]), (&json!(false), &json!([])));
    let list = stage.client.json(&format!("/apps/{}/device-allowlist", plain.app_id)).await;
    assert_eq!(list["is_onchain_kms"], false);
    stage.client.get(&format!("/apps/{}/allowed", plain.app_id)).await.expect(400);
}

#[tokio::test(start_paused = true)]
async fn what_can_still_boot_is_listed_and_what_cannot_is_not_gone_back_to() {
    let stage = Stage::start().await;
    let (app, first) = (stage.cvm.app_id, stage.hash_of(1));
    let unknown = ComposeHash([0xee; 32]);
    stage.chain.allow_hash(app, unknown);
    stage.chain.allow_hash(app, ComposeHash([0xdd; 32]));
    stage.chain.forbid_hash(app, ComposeHash([0xdd; 32]));
    let asked = stage.ask(json!({ "public_logs": false })).await;
    stage.chain.allow_hash(app, asked);
    stage.confirm(asked, "").await.expect(202);
    stage.world.settle().await;
    let path = format!("/apps/{app}/allowed");
    let list = stage.client.json(&path).await;
    assert_eq!(list["complete"], true);
    let find = |list: &Value, hash: ComposeHash| {
        let items = list["items"].as_array().expect("a list");
        items.iter().find(|item| item["compose_hash"] == json!(hash)).cloned()
    };
    assert_eq!(list["items"].as_array().map(Vec::len), Some(3), "{list}");
    let old = find(&list, first).expect("it can still boot");
    assert_eq!((&old["in_use"], &old["revisions"][0]["revision"]), (&json!(false), &json!(1)));
    assert_eq!(old["removal"]["data"], format!("0x67b3f22c{first}"));
    assert_eq!(find(&list, asked).expect("it runs")["in_use"], true);
    assert_eq!(find(&list, unknown).expect("found in the log")["revisions"], json!([]));

    stage.chain.forbid_hash(app, first);
    let list = stage.client.json(&path).await;
    assert!(find(&list, first).is_none(), "{list}");
    let boots = stage.boots().await;
    let back = stage.client.post(&stage.path("/rollback"), json!({ "revision": 1 })).await;
    assert_eq!(hash(&back), first);
    assert_eq!(code(&stage.confirm(first, "").await, 468), "ERR-01-008");
    // The same hash as now needs no approval: there it is the contract that says no.
    stage.client.patch(&stage.path(""), json!({ "vcpu": 2 })).await.expect(202);
    stage.world.settle().await;
    stage.chain.forbid_hash(app, asked);
    let boots = boots + 1;
    let back = stage.client.post(&stage.path("/rollback"), json!({ "revision": 2 })).await;
    assert_eq!(code(&back, 468), "ERR-01-008");
    stage.world.settle().await;
    assert_eq!((stage.boots().await, stage.now().open), (boots, None));
    stage.chain.set_down(true);
    stage.client.get(&path).await.expect(503);
}

#[tokio::test(start_paused = true)]
async fn key_services_are_listed_with_their_chains() {
    let stage = Stage::start().await;
    let list = stage.client.version(ApiVersion::V20251028).json("/kms?is_onchain=true&page_size=100").await;
    assert_eq!(list["items"].as_array().map(Vec::len), Some(1));
    let kms = &list["items"][0];
    assert_eq!((&kms["chain_id"], &kms["custody"]), (&json!(8453), &json!("operator")));
    let one = stage.client.version(ApiVersion::V20260623).json("/kms/base").await;
    assert_eq!(one["contract_address"], format!("0x{KMS}"));
    for chain in ["base", "8453"] {
        let on = stage.client.json(&format!("/kms/on-chain/{chain}")).await;
        assert_eq!((&on["chain_name"], &on["chain_id"]), (&json!("base"), &json!(8453)));
        assert_eq!(on["contracts"][0]["os_images"][0]["on_chain_allowed"], true);
    }
    assert_eq!(stage.client.json("/kms/on-chain/ethereum").await["contracts"], json!([]));
    stage.client.get("/kms/on-chain/solana").await.expect(404);
    stage.chain.set_down(true);
    let on = stage.client.json("/kms/on-chain/base").await;
    assert_eq!(on["contracts"][0]["os_images"][0]["on_chain_allowed"], Value::Null);
    assert_ne!(OWNER, KMS);
}

#[tokio::test(start_paused = true)]
async fn the_page_is_one_file_that_trusts_nobody() {
    let stage = Stage::start().await;
    let nobody = stage.client.nobody();
    for (path, kind) in [
        ("/approve/0198c1d2-0000-7000-8000-000000000000", "text/html; charset=utf-8"),
        ("/approve/page.js", "text/javascript; charset=utf-8"),
        ("/approve/page.css", "text/css; charset=utf-8"),
        ("/approve/icon.svg", "image/svg+xml"),
    ] {
        let answer = nobody.root(path).await;
        assert_eq!(answer.status, 200);
        let header = |name: &str| answer.headers[name].to_str().expect("text").to_owned();
        assert_eq!(header("content-type"), kind);
        assert!(header("content-security-policy").starts_with("default-src 'self'"));
        assert_eq!(
            (header("referrer-policy"), header("cache-control")),
            ("no-referrer".into(), "no-store".into())
        );
        // The name of a language, which nobody looks up.
        let text = answer.text().replace("http://www.w3.org/2000/svg", "");
        assert!(
            !text.contains("https://") && !text.contains("http://"),
            "{path} has something from elsewhere"
        );
        assert!(
            !text.contains("innerHTML") && !text.contains(" style=") && !text.contains("onclick"),
            "{path}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn lists_read_no_long_texts() {
    let stage = Stage::start().await;
    let (_, _, path) = prepare(&stage, json!({ "docker_compose_file": compose("web:2") })).await;
    let asked = stage.ask(json!({ "public_logs": false })).await;
    stage.chain.allow_hash(stage.cvm.app_id, asked);
    stage.confirm(asked, "").await.expect(202);
    stage.world.settle().await;
    let ended = |list: Value| {
        let items = list["items"].as_array().expect("a list").clone();
        items.into_iter().find(|item| item["kind"] == "update").expect("the update")
    };
    let update = text(&ended(stage.client.json("/operations").await)["correlation_id"]);
    assert!(stage.client.json(&format!("/operations/{update}")).await["revocation"].is_object());
    // Whoever read what follows would stumble.
    let store = rusqlite::Connection::open(stage.world.folder().join("casemate.db")).expect("the store");
    store.execute("UPDATE approval SET patch = CAST(x'ff' AS TEXT)", []).expect("written");
    store.execute("UPDATE revision SET gpus = 'broken'", []).expect("written");
    let list = stage.client.json("/approvals").await;
    assert_eq!(list["items"].as_array().map(Vec::len), Some(2), "{list}");
    stage.client.get(&path).await.expect(500);
    let update = ended(stage.client.json("/operations").await);
    assert_eq!(update.get("revocation"), None, "one by one: {update}");
}

/// What `GET /apps/{id}/allowed` says of a hash: is it in use, and how could it be taken back?
async fn standing(stage: &Stage, hash: ComposeHash) -> (bool, bool) {
    let list = stage.client.json(&format!("/apps/{}/allowed", stage.cvm.app_id)).await;
    let items = list["items"].as_array().expect("a list");
    let item = items.iter().find(|item| item["compose_hash"] == json!(hash)).expect("it is allowed");
    (item["in_use"].as_bool().expect("a flag"), item.get("removal").is_some())
}

/// Is a hash in use before this step, and could it be taken back?
type Look = (Kind, StepName, (bool, bool));

/// Looks at how the first hash stands before each step that begins after the machine went down.
struct LookAtFirst<'a> {
    stage: &'a Stage,
    seen: Mutex<Vec<Look>>,
}

#[async_trait::async_trait]
impl Probe for LookAtFirst<'_> {
    async fn reached(&self, operation: &Operation, step: StepName, moment: Moment) -> bool {
        if moment == Moment::Before && step != StepName::Stage {
            let seen = standing(self.stage, self.stage.hash_of(1)).await;
            self.seen.lock().expect("no panic").push((operation.kind, step, seen));
        }
        true
    }
}

#[tokio::test(start_paused = true)]
async fn a_hash_that_a_put_back_needs_is_not_offered_for_removal() {
    let stage = Stage::start().await;
    let asked = stage.ask(json!({ "docker_compose_file": compose("web:2") })).await;
    stage.chain.allow_hash(stage.cvm.app_id, asked);
    stage.confirm(asked, "").await.expect(202);
    let fault = Fault::BootFail { image: None, env: None };
    stage.world.sim.plan(Planned { fault, once: true, vm: None }).expect("planned");
    let look = LookAtFirst { stage: &stage, seen: Mutex::default() };
    stage.world.settle_with(&look).await;
    let seen = look.seen.into_inner().expect("no panic");
    for needed in [(Kind::Update, StepName::Observe), (Kind::PutBack, StepName::Start)] {
        assert!(seen.iter().any(|(kind, step, _)| (*kind, *step) == needed), "{needed:?} in {seen:?}");
    }
    for (kind, step, standing) in seen {
        assert_eq!(standing, (true, false), "before {step} of {kind}");
    }
    assert_eq!(standing(&stage, asked).await, (false, true), "nobody runs it");
}

#[tokio::test(start_paused = true)]
async fn a_hash_that_another_cvm_of_the_app_runs_is_not_offered_for_removal() {
    let stage = Stage::start().await;
    let first = stage.hash_of(1);
    stage.client.post(&stage.path("/replicas"), json!({})).await.expect(200);
    stage.world.settle().await;
    let update = async |path: &str, body: Value| {
        let asked = hash(&stage.client.patch(path, body).await);
        stage.chain.allow_hash(stage.cvm.app_id, asked);
        let proof = json!({ "compose_hash": asked, "transaction_hash": "" });
        let id = text(&stage.client.patch(path, proof).await.expect(202)["correlation_id"]);
        stage.world.settle().await;
        stage.client.json(&format!("/operations/{id}")).await
    };
    let body = json!({ "docker_compose_file": compose("web:2") });
    let updated = update(&stage.path(""), body.clone()).await;
    assert_eq!((&updated["status"], updated.get("revocation")), (&json!("succeeded"), None));
    assert_eq!(standing(&stage, first).await, (true, false));
    let last = update("/cvms/web-one-2", body).await;
    assert_eq!(last["revocation"]["compose_hashes"], json!([first]));
    assert_eq!(standing(&stage, first).await, (false, true));
}

#[tokio::test(start_paused = true)]
async fn whoever_is_too_late_hears_what_became_of_the_approval() {
    let stage = Stage::start().await;
    let (asked, superseded, old) = prepare(&stage, json!({ "public_logs": false })).await;
    let (_, committed, new) = prepare(&stage, json!({ "public_logs": false })).await;
    let (_, cancelled, third) = prepare(&stage, json!({ "public_sysinfo": false })).await;
    stage.client.post(&format!("{third}/cancel"), json!({})).await.expect(200);
    let (_, expired, fourth) = prepare(&stage, json!({ "public_tcbinfo": false })).await;
    stage.chain.allow_hash(stage.cvm.app_id, asked);
    let id = stage.commit(&committed, "", "").await.expect(202)["correlation_id"].clone();
    stage.world.settle().await;
    stage.world.clock.sleep(Duration::from_secs(15 * 24 * 3600)).await;
    for (token, path, what) in [
        (superseded, old, "superseded"),
        (committed, new, "committed"),
        (cancelled, third, "cancelled"),
        (expired, fourth, "expired"),
    ] {
        let commit = format!("{path}/commit");
        let told = [
            stage.commit(&token, "", "").await.expect(400),
            bearer(&stage, &token).post(&commit, json!({})).await.expect(400),
            stage.client.post(&commit, json!({})).await.expect(400),
        ];
        let message = |body: &Value| text(body.get("message").unwrap_or(&body["detail"]));
        for body in &told[..2] {
            assert!(
                message(body).starts_with("Invalid commit token") && message(body).contains(what),
                "{body}"
            );
        }
        assert!(
            message(&told[2]).starts_with("The approval") && message(&told[2]).contains(what),
            "{}",
            told[2]
        );
        if what == "committed" {
            for body in told {
                assert_eq!(body["details"][0], json!({ "field": "correlation_id", "value": id }));
            }
        }
    }
    // Somebody without the token learns nothing of all that.
    let guess = stage.commit(&format!("ct_{}", "0".repeat(96)), "", "").await.expect(400);
    assert_eq!(guess["detail"], "Invalid commit token: there is no such token");
}

#[tokio::test(start_paused = true)]
async fn an_approval_that_is_called_off_while_the_chain_is_asked_says_so() {
    let stage = Stage::start().await;
    let (asked, token, path) = prepare(&stage, json!({ "public_logs": false })).await;
    stage.chain.allow_hash(stage.cvm.app_id, asked);
    stage.chain.hold();
    let mut commit = std::pin::pin!(stage.commit(&token, "", ""));
    assert!(futures_util::poll!(&mut commit).is_pending());
    stage.client.post(&format!("{path}/cancel"), json!({})).await.expect(200);
    stage.chain.let_go();
    let refused = text(&commit.await.expect(400)["detail"]);
    assert!(refused.starts_with("Invalid commit token") && refused.contains("cancelled"), "{refused}");
    assert_eq!(stage.now().open, None);
}

#[tokio::test(start_paused = true)]
async fn a_slow_chain_holds_up_no_preparation() {
    let stage = Stage::start().await;
    stage.chain.set_silent(true);
    let begun = stage.world.clock.now();
    let (_, token, _) = prepare(&stage, json!({ "public_logs": false })).await;
    let waited = stage.world.clock.now().duration_since(begun).as_secs();
    assert!(waited <= 5, "{waited} s");
    stage.chain.set_silent(false);
    assert_eq!(code(&stage.commit(&token, "", "").await, 468), "ERR-01-008");
}
