//! Updates that need a registration on a chain first.

use casemate_sdk::env::EnvVar;
use casemate_sdk::{Ask, Client, Error, PatchOutcome, seal};
use futures_util::TryStreamExt;
use serde_json::json;

use crate::support::{HASH, OP, Reply, Server, accepted, approval};

const TX: &str = "0x1111111111111111111111111111111111111111111111111111111111111111";

fn ask(outcome: PatchOutcome) -> Ask {
    match outcome {
        PatchOutcome::NeedsApproval(ask) => ask,
        PatchOutcome::Accepted(op) => panic!("accepted: {op:?}"),
    }
}

#[tokio::test]
async fn a_patch_is_confirmed_with_two_headers_and_nothing_else() {
    let server = Server::other([approval(None), accepted(), accepted()]).await;
    let web = server.client().cvm("web-1");
    let ask = ask(web.patch().compose("services: {}\n").send().await.unwrap());
    assert_eq!(ask.compose_hash.to_string(), HASH);
    assert_eq!(ask.app_id.to_string(), "3f1c0a9b7d5e4c2a8b6d0e1f2a3b4c5d6e7f8091");
    assert_eq!(ask.device_id, "5f0c");
    assert_eq!(ask.kms_info.chain_id, Some(8453));
    assert!(ask.commit_token.is_none() && ask.onchain_status.is_none());
    assert_eq!(ask.confirm(TX).await.unwrap().id().unwrap().to_string(), OP);
    web.confirm(HASH, "already-registered").send().await.unwrap();

    let asked = server.asked();
    for (asked, tx) in asked[1..].iter().zip([TX, "already-registered"]) {
        assert_eq!(asked.line(), "PATCH /cvms/web-1");
        assert_eq!(asked.json(), json!({}));
        assert_eq!(asked.header("x-compose-hash"), Some(HASH));
        assert_eq!(asked.header("x-transaction-hash"), Some(tx));
    }
}

#[tokio::test]
async fn a_text_is_confirmed_with_the_same_text() {
    let server = Server::other([approval(None), accepted()]).await;
    let ask = ask(server.client().cvm("web-1").pre_launch_script("#!/bin/sh\n").send().await.unwrap());
    ask.confirm(TX).await.unwrap();
    let confirm = &server.asked()[1];
    assert_eq!(confirm.line(), "PATCH /cvms/web-1/pre-launch-script");
    assert_eq!(confirm.text(), "#!/bin/sh\n");
    assert_eq!(confirm.header("x-compose-hash"), Some(HASH));
}

#[tokio::test]
async fn an_environment_is_confirmed_with_the_proof_in_its_body() {
    let server = Server::other([approval(None), accepted()]).await;
    let key = "07a37cbc142093c8b755dc1b10e86cb426374ad16aa853ed0bdfc0b2b86d1c7c";
    let sealed = seal(key, &[EnvVar::new("A", "1")]).unwrap();
    let ask = ask(server.client().cvm("web-1").envs(sealed.clone()).keys(["A"]).send().await.unwrap());
    ask.confirm(TX).await.unwrap();
    let body = json!({
        "encrypted_env": sealed.to_string(), "env_keys": ["A"], "compose_hash": HASH, "transaction_hash": TX,
    });
    assert_eq!(server.asked()[1].json(), body);
}

#[tokio::test]
async fn a_confirmation_does_not_carry_the_key_of_the_first_request() {
    let server = Server::casemate([approval(None), accepted()]).await;
    let first = server.client().cvm("web-1").docker_compose("services: {}\n").idempotency_key("k1");
    ask(first.send().await.unwrap()).confirm(TX).await.unwrap();
    let asked = server.asked();
    assert_eq!(asked[0].header("idempotency-key"), Some("k1"));
    assert_eq!(asked[1].header("idempotency-key"), None);
}

#[tokio::test]
async fn a_prepared_update_is_committed_by_anybody_with_its_token() {
    let server = Server::other([approval(Some("t0ken")), accepted(), accepted()]).await;
    let patch = server.client().cvm("web-1").patch().compose("services: {}\n").prepare_only();
    let ask = ask(patch.send().await.unwrap());
    assert_eq!(ask.commit_url.as_deref(), Some("https://cloud.example.org/approve/1#token"));
    assert!(!ask.onchain_status.unwrap().is_allowed);
    ask.commit(TX).await.unwrap();
    let anyone = Client::anonymous(server.url()).unwrap();
    anyone.cvm("web-1").commit_update("t0ken", HASH, "").send().await.unwrap();

    let asked = server.asked();
    assert_eq!(asked[1].line(), "POST /cvms/web-1/commit-update");
    assert_eq!(asked[1].json(), json!({ "token": "t0ken", "compose_hash": HASH, "transaction_hash": TX }));
    assert_eq!(asked[2].header("x-api-key"), None);
    let body = json!({ "token": "t0ken", "compose_hash": HASH, "transaction_hash": "already-registered" });
    assert_eq!(asked[2].json(), body);
}

#[tokio::test]
async fn a_proof_that_does_not_hold_can_be_sent_again() {
    let not_yet = || Reply::json(467, json!({ "error_code": "ERR-01-007", "message": "not found yet" }));
    let server = Server::other([not_yet(), accepted()]).await;
    let web = server.client().cvm("web-1");
    let error = web.confirm(HASH, TX).send().await.unwrap_err();
    assert!(matches!(error, Error::NotProven(_)) && error.is_transient());
    web.confirm(HASH, TX).send().await.unwrap();
}

#[tokio::test]
async fn who_expects_no_approval_hears_of_it_as_an_error() {
    let server =
        Server::other([approval(None), Reply::json(465, json!({ "detail": "register first" }))]).await;
    let web = server.client().cvm("web-1");
    let error = web.patch().compose("services: {}\n").send().await.unwrap().accepted().unwrap_err();
    assert!(matches!(&error, Error::NeedsApproval(ask) if ask.compose_hash.to_string() == HASH));
    // Without the hash there is nothing to act on.
    let error = web.patch().compose("services: {}\n").send().await.unwrap_err();
    assert!(matches!(error, Error::Api(failure) if failure.status == 465));
}

#[tokio::test]
async fn both_steps_of_a_compose_file_have_their_routes() {
    let provision = json!({ "app_id": null, "device_id": null, "compose_hash": HASH });
    let server = Server::other([Reply::json(200, provision), accepted()]).await;
    let web = server.client().cvm("web-1");
    let mut doc = casemate_sdk::types::compose::ComposeDoc::default();
    doc.set_docker_compose_file("services: {}\n");
    let hash = web.compose().provision(doc).update_env_vars(true).send().await.unwrap().compose_hash;
    let commit = web.compose().commit(hash).env_keys(["A"]).transaction_hash(TX);
    commit.send().await.unwrap().accepted().unwrap();
    let asked = server.asked();
    assert_eq!(asked[0].line(), "POST /cvms/web-1/compose_file/provision");
    assert_eq!(asked[0].json(), json!({ "docker_compose_file": "services: {}\n", "update_env_vars": true }));
    assert_eq!(asked[1].line(), "PATCH /cvms/web-1/compose_file");
    assert_eq!(asked[1].json(), json!({ "compose_hash": HASH, "env_keys": ["A"], "transaction_hash": TX }));
}

fn waiting(id: &str) -> serde_json::Value {
    json!({
        "id": id, "cvm_id": "cvm_x8Kq2Lm9", "cvm_name": "web-1", "purpose": "update", "state": "open",
        "compose_hash": HASH, "app_id": "3f1c0a9b7d5e4c2a8b6d0e1f2a3b4c5d6e7f8091", "author": "me", "auto_commit": false,
        "created_at": "2026-02-03T10:00:00.000000Z", "expires_at": "2026-02-10T10:00:00.000000Z",
    })
}

#[tokio::test]
async fn what_waits_is_listed_page_by_page() {
    let page =
        |id, next: Option<&str>| Reply::json(200, json!({ "items": [waiting(id)], "next_cursor": next }));
    let server = Server::casemate([page("a", Some("c1")), page("b", None)]).await;
    let list = server.client().approvals().cvm("web-1").state("open").state("needs_attention").limit(1);
    let all: Vec<_> = list.stream().try_collect().await.unwrap();
    assert_eq!(all.iter().map(|one| one.id.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(
        server.lines(),
        [
            "GET /approvals?cvm=web-1&state=open&state=needs_attention&limit=1",
            "GET /approvals?cvm=web-1&state=open&state=needs_attention&limit=1&cursor=c1"
        ]
    );
}

#[tokio::test]
async fn an_approval_is_decided_by_its_id_or_its_token() {
    let server = Server::casemate([
        Reply::json(200, waiting("a")),
        Reply::json(200, waiting("a")),
        accepted(),
        accepted(),
    ])
    .await;
    let approval = server.client().approval("a");
    approval.cancel().await.unwrap();
    approval.auto_commit(false).await.unwrap();
    assert_eq!(approval.commit(TX).await.unwrap().id().unwrap().to_string(), OP);
    let anyone = Client::anonymous(server.url()).unwrap().approval("a").token("ct_secret");
    anyone.commit("").await.unwrap();
    assert!(!format!("{anyone:?}").contains("secret"));
    assert_eq!(
        server.lines(),
        [
            "POST /approvals/a/cancel",
            "POST /approvals/a/auto-commit",
            "POST /approvals/a/commit",
            "POST /approvals/a/commit"
        ]
    );
    let asked = server.asked();
    assert_eq!(asked[1].json(), json!({ "enabled": false }));
    assert_eq!(asked[2].json(), json!({ "transaction_hash": TX }));
    assert_eq!(asked[2].header("authorization"), None);
    assert_eq!(
        (asked[3].header("authorization"), asked[3].header("x-api-key")),
        (Some("Bearer ct_secret"), None)
    );

    let error = server.client().approval("a").commit("0x12").await.unwrap_err();
    assert_eq!(error.fields()[0].field(), "transaction_hash");
    let other = Server::other([]).await;
    let error = other.client().approval("a").cancel().await.unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error:?}");
    let error = other.client().cvm("web-1").patch().vcpu(2).auto_commit().send().await.unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error:?}");
    assert!(other.asked().is_empty(), "it would have run the update at once");
}

#[tokio::test]
async fn a_patch_asks_the_server_to_commit_by_itself() {
    let server = Server::casemate([accepted()]).await;
    let _ = server.client().cvm("web-1").patch().vcpu(2).auto_commit().send().await.unwrap();
    assert_eq!(server.only().header("x-auto-commit"), Some("true"));
}
