//! Auto-commit: the server looks at the contract itself, and acts as the person who asked for that.

use std::sync::Arc;
use std::time::Duration;

use casemate_chain::{Chain, Scripted};
use casemate_server::cvm::state::{Cvm, Status};
use casemate_server::driver::Driver;
use casemate_server::store::AppLog;
use casemate_server::workflow::auto_commit::{EVERY, once};
use casemate_server::workflow::{allowance, auto_commit};
use casemate_testkit::{World, compose};
use casemate_types::ids::ComposeHash;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::approvals::{DAY, Stage, deploy_as, deploy_at, detail, hash, text};
use crate::client::Client;

/// Asks for an update that is to be committed by itself: its hash, and the approval's path.
async fn ask(stage: &Stage, client: &Client, body: Value) -> (ComposeHash, String) {
    let answer = client.header("x-auto-commit", "true").patch(&stage.path(""), body).await;
    assert_eq!(detail(&answer, "auto_commit"), true);
    (hash(&answer), format!("/approvals/{}", text(&detail(&answer, "approval_id"))))
}

async fn kinds(stage: &Stage) -> Vec<String> {
    let audit = stage.client.json("/audit?limit=500").await;
    audit["items"].as_array().expect("a list").iter().map(|event| text(&event["kind"])).collect()
}

#[tokio::test(start_paused = true)]
async fn what_is_allowed_is_committed_by_itself() {
    let stage = Stage::start().await;
    let (asked, path) = ask(&stage, &stage.client, json!({ "docker_compose_file": compose("web:2") })).await;
    let boots = stage.boots().await;
    once(&stage.world.app).await;
    assert_eq!((stage.now().status, stage.boots().await), (Status::Running, boots));
    stage.chain.set_down(true);
    once(&stage.world.app).await;
    assert_eq!(stage.client.json(&path).await["onchain_status"], Value::Null);
    stage.chain.set_down(false);
    stage.chain.allow_hash(stage.cvm.app_id, asked);
    stage.chain.forbid_device(stage.cvm.app_id, &stage.device());
    once(&stage.world.app).await;
    assert_eq!(stage.now().open, None, "the device is not allowed");
    stage.chain.allow_device(stage.cvm.app_id, &stage.device());
    once(&stage.world.app).await;
    let approval = stage.client.json(&path).await;
    assert_eq!(approval["state"], "committed");
    once(&stage.world.app).await;
    stage.world.settle().await;
    assert_eq!((stage.hash_of(stage.now().revision), stage.boots().await), (asked, boots + 1));
    let operation = stage.client.json(&format!("/operations/{}", text(&approval["correlation_id"]))).await;
    assert_eq!(operation["status"], "succeeded");
    // And how to take back what it no longer runs.
    let before = stage.hash_of(1);
    assert_eq!(operation["revocation"]["compose_hashes"], json!([before]));
    assert_eq!(operation["revocation"]["calls"][0]["data"], format!("0x67b3f22c{before}"));
}

#[tokio::test(start_paused = true)]
async fn what_has_too_few_confirmations_waits() {
    let stage = Stage::start().await;
    let (asked, path) = ask(&stage, &stage.client, json!({ "public_logs": false })).await;
    stage.chain.allow_hash(stage.cvm.app_id, asked);
    stage.chain.set_shallow(stage.cvm.app_id, true);
    let questions = stage.chain.questions().len();
    once(&stage.world.app).await;
    assert_eq!(stage.client.json(&path).await["state"], "open");
    assert_eq!(stage.chain.questions().len(), questions, "nothing is to be proven yet");
    stage.chain.set_shallow(stage.cvm.app_id, false);
    once(&stage.world.app).await;
    assert_eq!(stage.client.json(&path).await["state"], "committed");
}

#[tokio::test(start_paused = true)]
async fn an_odd_contract_keeps_nobody_else_waiting() {
    let stage = Stage::start().await;
    let others = ["web-two", "web-three", "web-four"];
    let mut cvms = vec![stage.cvm.clone()];
    for name in others {
        cvms.push(deploy_as(&stage.world, &stage.chain, &stage.client, name).await);
    }
    let client = stage.client.header("x-auto-commit", "true");
    let mut paths = Vec::new();
    for cvm in &cvms {
        let answer = client.patch(&format!("/cvms/{}", cvm.uid), json!({ "public_logs": false })).await;
        stage.chain.allow_hash(cvm.app_id, hash(&answer));
        paths.push(format!("/approvals/{}", text(&detail(&answer, "approval_id"))));
    }
    stage.chain.set_odd(cvms[1].app_id, true);
    once(&stage.world.app).await;
    let mut states = Vec::new();
    for path in &paths {
        states.push(text(&stage.client.json(path).await["state"]));
    }
    assert_eq!(states, ["committed", "open", "committed", "committed"]);
    stage.chain.set_odd(cvms[1].app_id, false);
    once(&stage.world.app).await;
    assert_eq!(stage.client.json(&paths[1]).await["state"], "committed");
}

#[tokio::test(start_paused = true)]
async fn logs_are_read_on_whatever_is_wrong_with_one_of_them() {
    let stage = Stage::start().await;
    let second = deploy_as(&stage.world, &stage.chain, &stage.client, "web-two").await;
    let store = &stage.world.app.store;
    let begun = AppLog { next: 0, complete: false };
    for app in [stage.cvm.app, second.app] {
        store.app_log_put(app, begun, Vec::new()).await.expect("stored");
    }
    stage.chain.set_odd(stage.cvm.app_id, true);
    allowance::read_on(&stage.world.app).await;
    assert_eq!(store.app_log(stage.cvm.app).expect("reads"), Some(begun));
    assert!(store.app_log(second.app).expect("reads").expect("begun").complete);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_committed_keeps_nobody_else_waiting() {
    let stage = Stage::start().await;
    let second = deploy_as(&stage.world, &stage.chain, &stage.client, "web-two").await;
    let client = stage.client.header("x-auto-commit", "true");
    let mut paths = Vec::new();
    for cvm in [&stage.cvm, &second] {
        let answer = client.patch(&format!("/cvms/{}", cvm.uid), json!({ "public_logs": false })).await;
        stage.chain.allow_hash(cvm.app_id, hash(&answer));
        paths.push(format!("/approvals/{}", text(&detail(&answer, "approval_id"))));
    }
    // The first one cannot be carried out, and that cannot be noted.
    let store = rusqlite::Connection::open(stage.world.folder().join("casemate.db")).expect("the store");
    let spoil = "UPDATE approval SET patch = '[' WHERE cvm_id = ?";
    assert_eq!(store.execute(spoil, [stage.cvm.id]).expect("writes"), 1);
    let refuse =
        "CREATE TRIGGER refuse BEFORE UPDATE OF attention ON approval BEGIN SELECT RAISE(ABORT, 'full'); END";
    store.execute_batch(refuse).expect("writes");
    once(&stage.world.app).await;
    assert_eq!(stage.client.json(&paths[1]).await["state"], "committed");
    assert_eq!(stage.now().open, None);
}

/// A CVM on a chain that answers, beside another chain that does so no more.
async fn beside_a_silent_chain() -> (World, Arc<Scripted>, Client, Cvm) {
    let (chain, silent) = (Arc::new(Scripted::default()), Arc::new(Scripted::default()));
    let services = [("base", 8453, silent.clone() as Arc<dyn Chain>), ("ethereum", 1, chain.clone())];
    let world = World::with_key_services(services, |_| ()).await;
    let client = Client::of(&world).await;
    let other = deploy_as(&world, &silent, &client, "web-two").await;
    let cvm = deploy_at(&world, &chain, &client, "web-one", ("ETHEREUM", 1)).await;
    let path = format!("/cvms/{}", other.uid);
    hash(&client.header("x-auto-commit", "true").patch(&path, json!({ "public_logs": false })).await);
    let begun = AppLog { next: 0, complete: false };
    world.app.store.app_log_put(other.app, begun, Vec::new()).await.expect("stored");
    silent.set_silent(true);
    (world, chain, client, cvm)
}

#[tokio::test(start_paused = true)]
async fn a_chain_that_does_not_answer_holds_up_no_commits_of_another_one() {
    let (world, chain, client, cvm) = beside_a_silent_chain().await;
    let stop = CancellationToken::new();
    let running = tokio::spawn(auto_commit::run(world.app.clone(), stop.clone()));
    // The other chain has been asked, and is waited for.
    world.clock.sleep(EVERY + Duration::from_secs(1)).await;
    let path = format!("/cvms/{}", cvm.uid);
    let answer = client.header("x-auto-commit", "true").patch(&path, json!({ "public_logs": false })).await;
    chain.allow_hash(cvm.app_id, hash(&answer));
    world.clock.sleep(EVERY).await;
    let approval = client.json(&format!("/approvals/{}", text(&detail(&answer, "approval_id")))).await;
    assert_eq!(approval["state"], "committed");
    stop.cancel();
    running.await.expect("ends");
}

#[tokio::test(start_paused = true)]
async fn a_chain_that_does_not_answer_holds_up_no_logs_of_another_one() {
    let (world, _, _, cvm) = beside_a_silent_chain().await;
    let stop = CancellationToken::new();
    let running = tokio::spawn(allowance::run(world.app.clone(), stop.clone()));
    world.clock.sleep(EVERY + Duration::from_secs(1)).await;
    let begun = AppLog { next: 0, complete: false };
    world.app.store.app_log_put(cvm.app, begun, Vec::new()).await.expect("stored");
    world.clock.sleep(EVERY).await;
    assert!(world.app.store.app_log(cvm.app).expect("reads").expect("begun").complete);
    stop.cancel();
    running.await.expect("ends");
}

#[tokio::test(start_paused = true)]
async fn what_is_switched_off_while_the_contract_is_asked_is_not_committed() {
    let stage = Stage::start().await;
    let second = stage.client.post("/keys", json!({ "name": "second", "scopes": "read,write" })).await;
    let second = second.expect(201);
    for revoked in [false, true] {
        let client = stage.client.with_key(&text(&second["key"]));
        let (asked, path) = ask(&stage, &client, json!({ "public_logs": false })).await;
        stage.chain.allow_hash(stage.cvm.app_id, asked);
        stage.chain.hold();
        let meanwhile = async {
            let questions = stage.chain.questions().len();
            tokio::task::yield_now().await;
            if revoked {
                stage.client.delete(&format!("/keys/{}", text(&second["id"]))).await.expect(204);
            } else {
                let off = json!({ "enabled": false });
                stage.client.post(&format!("{path}/auto-commit"), off).await.expect(200);
            }
            assert_eq!(stage.chain.questions().len(), questions, "it still waits");
            stage.chain.let_go();
        };
        tokio::join!(once(&stage.world.app), meanwhile);
        let approval = stage.client.json(&path).await;
        assert_eq!(
            (&approval["state"], &approval["auto_commit"]),
            (&json!(if revoked { "needs_attention" } else { "open" }), &json!(false)),
            "{approval}"
        );
        assert_eq!(stage.now().open, None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_busy_cvm_is_tried_again_and_one_that_is_off_stays_off() {
    let stage = Stage::start().await;
    let (asked, path) = ask(&stage, &stage.client, json!({ "public_logs": false })).await;
    stage.chain.allow_hash(stage.cvm.app_id, asked);
    stage.client.post(&stage.path("/stop"), json!({})).await.expect(200);
    once(&stage.world.app).await;
    let approval = stage.client.json(&path).await;
    assert_eq!((&approval["state"], approval.get("needs_attention")), (&json!("open"), None));
    stage.world.settle().await;
    let boots = stage.boots().await;
    once(&stage.world.app).await;
    stage.world.settle().await;
    assert_eq!(stage.client.json(&path).await["state"], "committed");
    assert_eq!((stage.now().status, stage.boots().await), (Status::Stopped, boots));
    assert_eq!(stage.hash_of(stage.now().revision), asked);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_committed_in_the_name_of_who_may_no_longer_do_it() {
    let stage = Stage::start().await;
    let made =
        stage.client.post("/keys", json!({ "name": "other", "scopes": "read,write" })).await.expect(201);
    let other = stage.client.with_key(&text(&made["key"]));
    let (asked, path) = ask(&stage, &other, json!({ "public_logs": false })).await;
    stage.chain.allow_hash(stage.cvm.app_id, asked);
    stage.client.delete(&format!("/keys/{}", text(&made["id"]))).await.expect(204);
    once(&stage.world.app).await;
    let approval = stage.client.json(&path).await;
    assert_eq!((&approval["state"], &approval["auto_commit"]), (&json!("needs_attention"), &json!(false)));
    assert!(text(&approval["needs_attention"]).contains("revoked"), "{approval}");
    assert!(kinds(&stage).await.contains(&"approval.auto_commit_refused".to_owned()));
    assert_eq!(stage.now().open, None);
    // Somebody who may can switch it on again, in their own name.
    let on = stage.client.post(&format!("{path}/auto-commit"), json!({})).await.expect(200);
    assert_eq!(
        (&on["state"], &on["auto_commit"], on.get("needs_attention")),
        (&json!("open"), &json!(true), None)
    );
    once(&stage.world.app).await;
    assert_eq!(stage.client.json(&path).await["state"], "committed");
}

#[tokio::test(start_paused = true)]
async fn a_base_that_changed_needs_somebody_and_restarts_nothing() {
    let stage = Stage::start().await;
    let (asked, path) = ask(&stage, &stage.client, json!({ "public_logs": false, "vcpu": 2 })).await;
    stage.client.patch(&stage.path(""), json!({ "vcpu": 3 })).await.expect(202);
    stage.world.settle().await;
    stage.chain.allow_hash(stage.cvm.app_id, asked);
    let boots = stage.boots().await;
    once(&stage.world.app).await;
    once(&stage.world.app).await;
    stage.world.settle().await;
    let approval = stage.client.json(&path).await;
    assert_eq!(approval["state"], "needs_attention");
    assert!(text(&approval["needs_attention"]).contains("vcpu"), "{approval}");
    assert_eq!(stage.boots().await, boots);
    let seen = kinds(&stage).await;
    assert_eq!(seen.iter().filter(|kind| *kind == "approval.needs_attention").count(), 1, "said once");
}

#[tokio::test(start_paused = true)]
async fn asking_again_without_it_keeps_auto_commit() {
    for prepare_only in ["false", "true"] {
        let stage = Stage::start().await;
        let client = stage.client.header("x-prepare-only", prepare_only);
        let change = json!({ "public_logs": false });
        let (asked, first) = ask(&stage, &client, change.clone()).await;
        let repeated = client.header("idempotency-key", "again");
        let again = repeated.patch(&stage.path(""), change.clone()).await;
        assert_eq!((hash(&again), detail(&again, "auto_commit")), (asked, json!(true)));
        assert_eq!(repeated.patch(&stage.path(""), change).await.json(), again.json(), "also as it is kept");
        let superseded = stage.client.json(&first).await;
        assert_eq!(superseded["superseded_by"], detail(&again, "approval_id"));
        let seen = kinds(&stage).await;
        assert!(seen.contains(&"approval.superseded".to_owned()), "{seen:?}");
        assert!(!seen.contains(&"approval.auto_commit_off".to_owned()), "{seen:?}");
        stage.chain.allow_hash(stage.cvm.app_id, asked);
        once(&stage.world.app).await;
        let second = format!("/approvals/{}", text(&detail(&again, "approval_id")));
        assert_eq!(stage.client.json(&second).await["state"], "committed");
    }
}

#[tokio::test(start_paused = true)]
async fn who_asks_again_does_not_act_for_somebody_else() {
    let stage = Stage::start().await;
    let change = json!({ "public_logs": false });
    let (asked, _) = ask(&stage, &stage.client, change.clone()).await;
    let store = rusqlite::Connection::open(stage.world.folder().join("casemate.db")).expect("the store");
    let theirs = "UPDATE approval SET auto_user = auto_user + 1000";
    assert_eq!(store.execute(theirs, []).expect("writes"), 1);
    let again = stage.client.patch(&stage.path(""), change).await;
    let path = format!("/approvals/{}", text(&detail(&again, "approval_id")));
    assert_eq!(stage.client.json(&path).await["auto_commit"], false);
    assert!(kinds(&stage).await.contains(&"approval.auto_commit_off".to_owned()), "and it is told");
    stage.chain.allow_hash(stage.cvm.app_id, asked);
    once(&stage.world.app).await;
    assert_eq!(stage.client.json(&path).await["state"], "open");
}

#[tokio::test(start_paused = true)]
async fn a_round_reads_what_its_own_chain_has_a_say_about() {
    let (world, _, client, cvm) = beside_a_silent_chain().await;
    let ours = client.header("x-auto-commit", "true");
    hash(&ours.patch(&format!("/cvms/{}", cvm.uid), json!({ "public_logs": false })).await);
    let begun = AppLog { next: 0, complete: false };
    world.app.store.app_log_put(cvm.app, begun, Vec::new()).await.expect("stored");
    let (store, config) = (&world.app.store, &world.app.config);
    for (chain_id, cvms, logs) in [(1, 1, vec![cvm.app_id]), (5, 0, vec![])] {
        let kms = config.kms_on(chain_id);
        let found = store.approvals_to_commit(&kms, uuid::Uuid::nil(), world.clock.now(), 10).expect("reads");
        assert_eq!(found.iter().filter(|one| one.cvm == cvm.uid).count(), cvms);
        assert_eq!(found.len(), cvms, "nothing of the other chain");
        let found = store.app_logs_unfinished(&kms).expect("reads");
        assert_eq!(found.into_iter().map(|(_, app_id, _)| app_id).collect::<Vec<_>>(), logs);
    }
}

/// An approval that needs somebody's attention, because a field that it changes was changed meanwhile: its hash, its path and
/// its token.
async fn needs_attention(stage: &Stage) -> (ComposeHash, String, String) {
    let client = stage.client.header("x-prepare-only", "true").header("x-auto-commit", "true");
    let answer =
        client.patch(&stage.path(""), json!({ "docker_compose_file": compose("web:2"), "vcpu": 2 })).await;
    stage.client.patch(&stage.path(""), json!({ "vcpu": 3 })).await.expect(202);
    stage.world.settle().await;
    stage.chain.allow_hash(stage.cvm.app_id, hash(&answer));
    once(&stage.world.app).await;
    let path = format!("/approvals/{}", text(&detail(&answer, "approval_id")));
    (hash(&answer), path, text(&detail(&answer, "commit_token")))
}

#[tokio::test(start_paused = true)]
async fn what_needs_attention_is_a_state_of_its_own_and_found_by_it() {
    let stage = Stage::start().await;
    let (_, path, _) = needs_attention(&stage).await;
    let (_, plain) = ask(&stage, &stage.client, json!({ "public_sysinfo": false })).await;
    let listed = async |query: &str| {
        let page = stage.client.json(&format!("/approvals{query}")).await;
        let items = page["items"].as_array().expect("a list");
        items.iter().map(|one| (format!("/approvals/{}", text(&one["id"])), text(&one["state"]))).collect()
    };
    let (attention, open) = ((path.clone(), "needs_attention".into()), (plain.clone(), "open".into()));
    let all: Vec<(String, String)> = listed("").await;
    assert_eq!(all, [open.clone(), attention.clone()]);
    assert_eq!(listed("?state=needs_attention").await, [attention]);
    assert_eq!(listed("?state=open").await, [open]);
    assert_eq!(listed("?state=open&state=needs_attention").await, all);
    let wrong = stage.client.get("/approvals?state=attention").await.expect(422).to_string();
    assert!(wrong.contains("needs_attention"), "{wrong}");
    // Its time runs on.
    stage.world.clock.sleep(14 * DAY).await;
    let over = (path.clone(), "expired".to_owned());
    assert!(listed("?state=expired").await.contains(&over), "also before anybody has swept");
    assert_eq!(listed("?state=open&state=needs_attention").await, []);
    once(&stage.world.app).await;
    assert!(listed("?state=expired").await.contains(&over));
}

#[tokio::test(start_paused = true)]
async fn what_needs_attention_can_be_committed_cancelled_and_superseded() {
    // The field goes back to what it was, and the token is as good as before.
    let stage = Stage::start().await;
    let (asked, path, token) = needs_attention(&stage).await;
    assert!(stage.commit(&token, "", "").await.expect(466).to_string().contains("was changed since"));
    let before = stage.world.app.store.spec(stage.cvm.id, 1).expect("the spec").vcpu;
    stage.client.patch(&stage.path(""), json!({ "vcpu": before })).await.expect(202);
    stage.world.settle().await;
    stage.commit(&token, "", "").await.expect(202);
    stage.world.settle().await;
    assert_eq!(
        (stage.client.json(&path).await["state"].clone(), stage.hash_of(stage.now().revision)),
        (json!("committed"), asked)
    );

    let stage = Stage::start().await;
    let (_, path, token) = needs_attention(&stage).await;
    let cancelled = stage.client.post(&format!("{path}/cancel"), json!({})).await.expect(200);
    assert_eq!(cancelled["state"], "cancelled");
    stage.commit(&token, "", "").await.expect(400);

    let stage = Stage::start().await;
    let (asked, path, _) = needs_attention(&stage).await;
    let (again, token) = stage.prepare(json!({ "docker_compose_file": compose("web:2"), "vcpu": 2 })).await;
    assert_eq!((again, stage.client.json(&path).await["state"].clone()), (asked, json!("superseded")));
    stage.commit(&token, "", "").await.expect(202);
}

#[tokio::test(start_paused = true)]
async fn a_token_and_auto_commit_make_one_operation() {
    let stage = Stage::start().await;
    let client = stage.client.header("x-prepare-only", "true").header("x-auto-commit", "true");
    let answer = client.patch(&stage.path(""), json!({ "public_logs": false })).await;
    let (asked, token) = (hash(&answer), text(&detail(&answer, "commit_token")));
    stage.chain.allow_hash(stage.cvm.app_id, asked);
    let boots = stage.boots().await;
    let (committed, ()) = tokio::join!(stage.commit(&token, "", ""), once(&stage.world.app));
    stage.world.settle().await;
    let known = stage.client.json("/operations").await["items"].as_array().expect("a list").len();
    assert_eq!(known, 2, "the creation and one update");
    assert_eq!(stage.boots().await, boots + 1);
    assert!([202, 400, 409].contains(&committed.status.as_u16()), "{}", committed.text());
}

#[tokio::test(start_paused = true)]
async fn it_survives_a_restart_and_ends_at_expiry() {
    let stage = Stage::start().await;
    let (_, path) = ask(&stage, &stage.client, json!({ "public_logs": false })).await;
    let (later, second) = ask(&stage, &stage.client, json!({ "public_sysinfo": false })).await;
    stage.world.clock.sleep(7 * DAY - Duration::from_secs(60)).await;
    stage.chain.allow_hash(stage.cvm.app_id, later);
    // A process that knows nothing but the store.
    let again = stage.world.restarted().await;
    once(&again).await;
    stage.world.settle().await;
    assert_eq!(stage.client.json(&second).await["state"], "committed");
    stage.world.clock.sleep(Duration::from_secs(61)).await;
    assert_eq!(stage.client.json(&path).await["state"], "expired", "also before anybody has swept");
    once(&stage.world.app).await;
    assert_eq!(stage.client.json("/approvals?state=expired").await["items"][0]["state"], "expired");
    assert!(kinds(&stage).await.contains(&"approval.expired".to_owned()));
    let on = stage.client.post(&format!("{path}/auto-commit"), json!({})).await;
    assert_eq!(on.expect(409)["error_code"], "ERR-02-008");
}

#[tokio::test(start_paused = true)]
async fn a_replica_is_made_by_itself() {
    let stage = Stage::start().await;
    stage.chain.forbid_device(stage.cvm.app_id, &stage.device());
    let client = stage.client.header("x-auto-commit", "true");
    let answer = client.post(&stage.path("/replicas"), json!({})).await;
    let path = format!("/approvals/{}", text(&detail(&answer, "approval_id")));
    once(&stage.world.app).await;
    assert_eq!(stage.client.json(&path).await["state"], "open");
    stage.chain.allow_device(stage.cvm.app_id, &stage.device());
    once(&stage.world.app).await;
    stage.world.settle().await;
    assert_eq!(stage.client.json(&path).await["state"], "committed");
    let machines = stage.world.sim.inventory().await.expect("the node answers");
    assert_eq!(machines.len(), 2);
}
