//! What is sent again, and what never is.

use casemate_sdk::Error;
use serde_json::{Value, json};

use crate::support::{Reply, Server, accepted};

fn broken(status: u16) -> Reply {
    Reply::json(status, json!({ "detail": "not now" }))
}

fn state() -> Value {
    json!({ "name": "web-1", "status": "running" })
}

#[tokio::test]
async fn a_read_is_repeated_until_it_is_answered() {
    for status in [408, 425, 429, 500, 502, 503, 504] {
        let server = Server::other([broken(status), broken(status), Reply::json(200, state())]).await;
        server.client().cvm("web-1").state().await.unwrap();
        assert_eq!(server.lines().len(), 3, "{status}");
    }
}

#[tokio::test]
async fn a_read_that_will_not_be_answered_is_not_repeated() {
    for status in [400, 401, 403, 404, 409, 410, 422] {
        let server = Server::other([broken(status)]).await;
        assert_eq!(server.client().cvm("web-1").state().await.unwrap_err().status(), Some(status));
        assert_eq!(server.lines().len(), 1, "{status}");
    }
}

#[tokio::test]
async fn patience_ends() {
    let server = Server::other([broken(503), broken(503), broken(503)]).await;
    let client = server.builder().retries(1).build().unwrap();
    assert_eq!(client.cvm("web-1").state().await.unwrap_err().status(), Some(503));
    assert_eq!(server.lines().len(), 2);

    let server = Server::other([broken(503).with("retry-after", "3600")]).await;
    let error = server.client().cvm("web-1").state().await.unwrap_err();
    assert_eq!(error.failure().unwrap().retry_after.unwrap().as_secs(), 3600);
    assert_eq!(server.lines().len(), 1);
}

#[tokio::test]
async fn a_write_is_never_repeated_by_itself() {
    for server in [Server::other([broken(503)]).await, Server::casemate([broken(503)]).await] {
        let client = server.client();
        assert!(client.cvm("web-1").restart().send().await.is_err());
        assert_eq!(server.lines(), ["POST /cvms/web-1/restart"]);
    }
}

#[tokio::test]
async fn a_write_with_a_key_is_repeated_with_the_same_key() {
    let server = Server::casemate([broken(503), broken(409), accepted()]).await;
    server.client().cvm("web-1").resources().vcpu(2).idempotency_key("k1").send().await.unwrap();
    let asked = server.asked();
    assert_eq!(asked.len(), 3);
    assert!(asked.iter().all(|asked| asked.header("idempotency-key") == Some("k1")));
}

#[tokio::test]
async fn a_busy_cvm_is_not_asked_again_by_a_first_request() {
    let server = Server::casemate([broken(409)]).await;
    let error =
        server.client().cvm("web-1").resources().vcpu(2).idempotency_key("k1").send().await.unwrap_err();
    assert!(matches!(error, Error::Busy(_)));
    assert_eq!(server.lines().len(), 1);
}

#[tokio::test]
async fn nobody_there_is_an_error_of_its_own() {
    let client =
        casemate_sdk::Client::builder().base_url("http://127.0.0.1:1/api/v1").retries(0).build().unwrap();
    let error = client.cvm("web-1").state().await.unwrap_err();
    assert!(
        matches!(&error, Error::Transport { url, .. } if url == "http://127.0.0.1:1/api/v1/cvms/web-1/state")
    );
    assert!(error.is_transient());
}

#[tokio::test]
async fn an_answer_of_another_form_is_an_error_of_its_own() {
    let server = Server::other([Reply::text("<html>")]).await;
    assert!(matches!(server.client().cvm("web-1").state().await, Err(Error::Decode { .. })));
}
