//! Bad proofs, bad tokens and too many of them: nothing is used up by one that does not hold, and nothing happens twice.

use std::collections::BTreeSet;

use casemate_server::cvm::state::Status;
use casemate_server::workflow::auto_commit;
use casemate_testkit::compose;
use casemate_types::ids::{ComposeHash, TxHash};
use futures_util::future::join_all;
use futures_util::poll;
use serde_json::{Value, json};

use crate::approvals::{Stage, TX, code, deploy_as, detail, hash, text};
use crate::client::Answer;

/// As clients write 32 bytes.
fn spellings(bytes: impl ToString) -> [String; 4] {
    let digits = bytes.to_string();
    let upper = digits.to_uppercase();
    [format!("0x{digits}"), format!("0x{upper}"), upper, digits]
}

#[tokio::test(start_paused = true)]
async fn hashes_are_taken_in_every_spelling() {
    for (n, tx) in spellings(TX).into_iter().enumerate() {
        let stage = Stage::start().await;
        let spelled = |hash: ComposeHash| spellings(hash)[n].clone();
        let ran = async |answer: Answer, asked: ComposeHash| {
            answer.expect(202);
            stage.world.settle().await;
            assert_eq!(stage.hash_of(stage.now().revision), asked, "{tx}");
        };
        // In headers, in a body, with a token, and of a document that was prepared.
        let asked = stage.ask(json!({ "public_logs": false })).await;
        stage.register(TX, asked);
        let headers = stage.client.header("x-compose-hash", spelled(asked)).header("x-transaction-hash", &tx);
        ran(headers.patch(&stage.path(""), json!({})).await, asked).await;

        let script = json!({ "pre_launch_script": "echo" });
        let asked = hash(&stage.client.patch(&stage.path("/pre-launch-script"), script).await);
        stage.register(TX, asked);
        let body = json!({
            "pre_launch_script": "echo", "compose_hash": spelled(asked), "transaction_hash": tx,
        });
        ran(stage.client.patch(&stage.path("/pre-launch-script"), body).await, asked).await;

        let (asked, token) = stage.prepare(json!({ "public_sysinfo": false })).await;
        stage.register(TX, asked);
        ran(stage.commit(&token, &spelled(asked), &tx).await, asked).await;

        let document = json!({ "docker_compose_file": compose("web:2") });
        let path = stage.path("/compose_file/provision");
        let prepared = stage.client.post(&path, document).await.expect(200);
        let asked: ComposeHash = text(&prepared["compose_hash"]).parse().expect("a hash");
        stage.register(TX, asked);
        let body = json!({ "compose_hash": spelled(asked), "transaction_hash": tx });
        ran(stage.client.patch(&stage.path("/compose_file"), body).await, asked).await;

        let told =
            stage.client.post(&stage.path("/is-allowed"), json!({ "compose_hash": spelled(asked) })).await;
        let told = told.expect(200);
        assert_eq!((&told["compose_hash"], &told["is_allowed"]), (&json!(asked), &json!(true)));
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_no_hash_is_named() {
    let stage = Stage::start().await;
    let (asked, token) = stage.prepare(json!({ "public_logs": false })).await;
    stage.register(TX, asked);
    let questions = stage.chain.questions();
    let hash = asked.to_string();
    let long = [format!("{hash}0"), format!("0x0x{hash}"), hash.replace(&hash[..1], "g")];
    for wrong in [&hash[..63], "0x", "0", &long[0], &long[1], &long[2]] {
        let in_headers = stage.confirm(asked, wrong).await;
        assert_eq!(in_headers.expect(422)["detail"][0]["loc"], json!(["header", "X-Transaction-Hash"]));
        let tx = stage.commit(&token, "", wrong).await;
        assert_eq!(tx.expect(422)["detail"][0]["loc"], json!(["body", "transaction_hash"]), "{wrong}");
        let compose = stage.commit(&token, wrong, "").await;
        assert_eq!(compose.expect(422)["detail"][0]["loc"], json!(["body", "compose_hash"]), "{wrong}");
    }
    assert_eq!(stage.chain.questions(), questions, "nobody is asked about what is no hash");
    stage.commit(&token, "", "").await.expect(202);
}

#[tokio::test(start_paused = true)]
async fn no_proof_that_does_not_hold_uses_a_token_up() {
    let stage = Stage::start().await;
    let (asked, token) = stage.prepare(json!({ "public_logs": false })).await;
    let other = deploy_as(&stage.world, &stage.chain, &stage.client, "web-two").await;
    let (foreign, unknown, wrong) = (TxHash([1; 32]), TxHash([2; 32]), TxHash([3; 32]));
    stage.chain.register(foreign, other.app_id, asked);
    stage.register(wrong, ComposeHash([9; 32]));
    let (boots, tag) = (stage.boots().await, stage.now().tag());
    let audit = stage.client.json("/audit?limit=500").await;
    let refused = async |tx: String, status: u16| {
        let answer = stage.commit(&token, "", &tx).await;
        assert_eq!(answer.status, status, "{tx}: {}", answer.text());
        answer
    };
    // A registration with another app is none with this one, though the hash is the same.
    for tx in [foreign, unknown, wrong] {
        assert_eq!(code(&refused(tx.to_string(), 467).await, 467), "ERR-01-007");
    }
    assert_eq!(code(&refused(String::new(), 468).await, 468), "ERR-01-008");
    // Allowed, and taken back again.
    stage.register(TX, asked);
    stage.chain.forbid_hash(stage.cvm.app_id, asked);
    for tx in [TX.to_string(), "already-registered".into()] {
        assert_eq!(code(&refused(tx, 468).await, 468), "ERR-01-008");
    }
    stage.chain.allow_hash(stage.cvm.app_id, asked);
    stage.chain.forbid_device(stage.cvm.app_id, &stage.device());
    assert!(refused(TX.to_string(), 468).await.text().contains(&stage.device()));
    stage.chain.allow_device(stage.cvm.app_id, &stage.device());
    stage.chain.set_down(true);
    assert!(refused(TX.to_string(), 503).await.text().contains("chain"));
    stage.chain.set_down(false);
    stage.chain.hold();
    let begun = stage.world.clock.now();
    refused(TX.to_string(), 503).await;
    assert!(stage.world.clock.now().duration_since(begun).as_secs() < 30);
    stage.chain.let_go();
    assert_eq!((stage.boots().await, stage.now().tag(), stage.now().status), (boots, tag, Status::Running));
    assert_eq!(stage.client.json("/audit?limit=500").await, audit, "nothing was written");
    stage.commit(&token, "", &TX.to_string()).await.expect(202);
    stage.world.settle().await;
    assert_eq!((stage.hash_of(stage.now().revision), stage.boots().await), (asked, boots + 1));
}

#[tokio::test(start_paused = true)]
async fn others_are_served_while_the_chain_is_asked() {
    let stage = Stage::start().await;
    let other = deploy_as(&stage.world, &stage.chain, &stage.client, "web-two").await;
    let (asked, token) = stage.prepare(json!({ "public_logs": false })).await;
    stage.chain.allow_hash(stage.cvm.app_id, asked);
    stage.chain.hold();
    let mut waiting = std::pin::pin!(stage.commit(&token, "", ""));
    assert!(poll!(&mut waiting).is_pending());
    let begun = stage.world.clock.now();
    assert_eq!(stage.client.json(&stage.path("")).await["status"], "running");
    assert_eq!(stage.client.json("/approvals").await["items"][0]["state"], "open");
    stage.client.patch(&format!("/cvms/{}/resources", other.uid), json!({ "vcpu": 2 })).await.expect(202);
    assert_eq!(stage.world.clock.now(), begun, "nobody waited");
    stage.chain.let_go();
    waiting.await.expect(202);
    stage.world.settle().await;
    assert_eq!(stage.hash_of(stage.now().revision), asked);
}

#[tokio::test(start_paused = true)]
async fn sixty_four_clients_on_every_way_there_is_restart_once() {
    let stage = Stage::start().await;
    let client = stage.client.header("x-prepare-only", "true").header("x-auto-commit", "true");
    let answer = client.patch(&stage.path(""), json!({ "public_logs": false })).await;
    let (asked, token) = (hash(&answer), text(&detail(&answer, "commit_token")));
    let page = format!("/approvals/{}/commit", text(&detail(&answer, "approval_id")));
    stage.chain.allow_hash(stage.cvm.app_id, asked);
    let boots = stage.boots().await;
    let bearer = stage.client.nobody().header("authorization", format!("Bearer {token}"));
    stage.chain.hold();
    let clients = join_all((0..64).map(async |n| match n % 4 {
        0 => stage.commit(&token, "", "").await,
        1 => bearer.post(&page, json!({})).await,
        2 => stage.client.post(&page, json!({})).await,
        _ => stage.confirm(asked, "already-registered").await,
    }));
    let by_itself = auto_commit::once(&stage.world.app);
    let go = async {
        tokio::task::yield_now().await;
        stage.chain.let_go();
    };
    let (answers, (), ()) = tokio::join!(clients, by_itself, go);
    let ids: BTreeSet<_> = answers
        .iter()
        .filter(|answer| answer.status == 202)
        .map(|answer| text(&answer.json()["correlation_id"]))
        .collect();
    assert!(ids.len() <= 1, "{ids:?}");
    assert!(answers.iter().all(|answer| [202, 400, 409, 466].contains(&answer.status.as_u16())));
    stage.world.settle().await;
    auto_commit::once(&stage.world.app).await;
    stage.world.settle().await;
    let operations = stage.client.json(&format!("/operations?cvm={}", stage.cvm.uid)).await;
    let is_update = |operation: &&Value| operation["kind"] == "update";
    let updates = operations["items"].as_array().expect("a list").iter().filter(is_update).count();
    assert_eq!((updates, stage.boots().await), (1, boots + 1));
}

#[tokio::test(start_paused = true)]
async fn sixty_four_clients_with_one_token_make_one_replica() {
    let stage = Stage::start().await;
    let client = stage.client.header("x-prepare-only", "true");
    let answer = client.post(&stage.path("/replicas"), json!({})).await;
    let body =
        json!({ "token": detail(&answer, "commit_token"), "compose_hash": "", "transaction_hash": "" });
    stage.chain.hold();
    let path = stage.path("/commit-replica");
    let clients = join_all((0..64).map(|_| stage.client.post(&path, body.clone())));
    let go = async {
        tokio::task::yield_now().await;
        stage.chain.let_go();
    };
    let (answers, ()) = tokio::join!(clients, go);
    let with = |status: u16| answers.iter().filter(|answer| answer.status == status).count();
    assert_eq!((with(200), with(400) + with(409)), (1, 63));
    stage.world.settle().await;
    assert_eq!(stage.client.json("/cvms").await.as_array().map(Vec::len), Some(2));
    stage.world.assert_accounts().await;
}
