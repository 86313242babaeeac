//! Following operations to their end.

use casemate_sdk::{Error, PutBack};
use futures_util::TryStreamExt;
use serde_json::{Value, json};

use crate::support::{OP, PUT_BACK, Reply, Server, accepted, cvm, event, operation};

fn failed(put_back: Option<&str>) -> Value {
    let mut failed = operation(OP, "failed");
    failed["reason"] = json!({ "code": "boot_failed", "message": "the guest did not boot" });
    if let Some(id) = put_back {
        failed["put_back"] = json!(id);
    }
    failed
}

fn ended(operation: &Value) -> Reply {
    Reply::events(&event(9, operation))
}

#[tokio::test]
async fn waiting_ends_with_success() {
    let events = [event(1, &operation(OP, "running")), event(2, &operation(OP, "succeeded"))].concat();
    let server = Server::casemate([accepted(), Reply::events(&events)]).await;
    let op = server.client().cvm("web-1").resources().vcpu(2).send().await.unwrap();
    assert_eq!(op.wait().await.unwrap().unwrap().status, "succeeded");
    let asked = server.asked();
    assert_eq!(asked[1].line(), format!("GET /operations/{OP}"));
    assert_eq!(asked[1].header("accept"), Some("text/event-stream"));
}

#[tokio::test]
async fn a_failed_update_tells_what_became_of_the_old_configuration() {
    async fn outcome(replies: Vec<Reply>) -> (String, PutBack) {
        let server = Server::casemate(replies).await;
        match server.client().operation(OP).wait().await.unwrap_err() {
            Error::UpdateFailed { reason, put_back, operation } => {
                assert_eq!(operation.unwrap().correlation_id.to_string(), OP);
                (reason.code, put_back)
            }
            other => panic!("{other:?}"),
        }
    }
    let (code, put_back) =
        outcome(vec![ended(&failed(Some(PUT_BACK))), ended(&operation(PUT_BACK, "succeeded"))]).await;
    assert_eq!(code, "boot_failed");
    assert!(matches!(put_back, PutBack::Done(op) if op.correlation_id.to_string() == PUT_BACK));
    let (_, put_back) =
        outcome(vec![ended(&failed(Some(PUT_BACK))), ended(&operation(PUT_BACK, "failed"))]).await;
    assert!(matches!(put_back, PutBack::Failed(_)));
    let (_, put_back) = outcome(vec![ended(&failed(None))]).await;
    assert_eq!(put_back, PutBack::None);
}

#[tokio::test]
async fn a_cancelled_operation_is_an_error_of_its_own() {
    let server = Server::casemate([ended(&operation(OP, "cancelled"))]).await;
    assert!(matches!(server.client().operation(OP).wait().await, Err(Error::Cancelled(_))));
}

#[tokio::test]
async fn a_broken_stream_goes_on_where_it_ended() {
    let mut running = operation(OP, "running");
    running["step"] = json!("stop");
    let server = Server::casemate([
        Reply::events(&event(4, &operation(OP, "queued"))),
        Reply::json(200, operation(OP, "queued")),
        Reply::json(503, json!({ "detail": "starting" })),
        Reply::events(&[event(5, &running), event(6, &running)].concat()),
        Reply::json(200, running.clone()),
        Reply::json(410, json!({ "detail": "swept" })),
        Reply::events(&event(7, &operation(OP, "succeeded"))),
    ])
    .await;
    let seen: Vec<_> = server.client().operation(OP).watch().try_collect().await.unwrap();
    let seen: Vec<_> = seen.iter().map(|op| op.status.as_str()).collect();
    assert_eq!(seen, ["queued", "running", "succeeded"]);
    let numbers: Vec<_> =
        server.asked().iter().map(|asked| asked.header("last-event-id").unwrap_or("-").to_owned()).collect();
    assert_eq!(numbers, ["-", "-", "4", "4", "-", "6", "-"]);
}

#[tokio::test]
async fn a_server_without_a_stream_is_asked_again_and_again() {
    let server = Server::casemate([
        Reply::json(200, operation(OP, "queued")),
        Reply::json(200, operation(OP, "running")),
        Reply::json(200, operation(OP, "succeeded")),
    ])
    .await;
    server.client().operation(OP).wait().await.unwrap();
    assert_eq!(server.lines().len(), 3);
}

#[tokio::test]
async fn an_operation_that_does_not_exist_is_not_waited_for() {
    let server = Server::casemate([Reply::json(404, json!({ "detail": "Operation not found" }))]).await;
    assert!(matches!(server.client().operation(OP).wait().await, Err(Error::NotFound(_))));
}

#[tokio::test]
async fn an_operation_that_the_answer_does_not_name_is_found_on_the_cvm() {
    let vm = json!({
        "id": "cvm_x8Kq2Lm9", "name": "web-1", "status": "stopping", "vcpu": 1, "memory": 2048, "disk_size": 20,
        "created_at": "2026-02-03T10:00:00Z",
    });
    let mut busy = cvm("stopping", true);
    busy["progress"] = json!({ "target": "stopped", "started_at": null, "correlation_id": OP });
    let server =
        Server::casemate([Reply::json(200, vm), Reply::json(200, busy), ended(&operation(OP, "succeeded"))])
            .await;
    let op = server.client().cvm("web-1").stop().send().await.unwrap();
    assert!(op.wait().await.unwrap().is_some());
    let asked =
        ["POST /cvms/web-1/stop".to_owned(), "GET /cvms/web-1".to_owned(), format!("GET /operations/{OP}")];
    assert_eq!(server.lines(), asked);
}

#[tokio::test]
async fn a_removed_cvm_is_gone_when_it_is_not_found() {
    let busy = Reply::json(200, cvm("deleting", true));
    let gone = || Reply::json(404, json!({ "detail": "CVM not found" }));
    for server in [
        Server::other([Reply::text("").status(204), busy, gone()]).await,
        Server::casemate([Reply::text("").status(204), gone(), gone()]).await,
    ] {
        let op = server.client().cvm("web-1").delete().send().await.unwrap();
        assert!(op.wait().await.unwrap().is_none());
    }
}

#[tokio::test]
async fn without_operations_the_cvm_itself_is_looked_at() {
    let state = |status: &str, error: &str| {
        Reply::json(200, json!({ "name": "web-1", "status": status, "boot_error": error }))
    };
    let server = Server::other([
        accepted(),
        Reply::json(200, cvm("updating", true)),
        Reply::json(200, cvm("starting", false)),
        Reply::json(200, cvm("running", false)),
        state("running", ""),
    ])
    .await;
    let op = server.client().cvm("web-1").resources().vcpu(2).send().await.unwrap();
    assert!(op.wait().await.unwrap().is_none());

    let server =
        Server::other([accepted(), Reply::json(200, cvm("error", false)), state("error", "no disk")]).await;
    let op = server.client().cvm("web-1").resources().vcpu(2).send().await.unwrap();
    match op.wait().await.unwrap_err() {
        Error::UpdateFailed { reason, put_back, operation: None } => {
            assert_eq!((reason.code.as_str(), reason.message.as_str()), ("error", "no disk"));
            assert_eq!(put_back, PutBack::Unknown);
        }
        other => panic!("{other:?}"),
    }
}
