//! Watching the status of a CVM.

use std::time::Duration;

use casemate_sdk::{Error, Watch, WatchEvent};
use futures_util::TryStreamExt;
use serde_json::json;

use crate::support::{Reply, Server};

const RUNNING: &str = "event: state\ndata: {\"name\":\"web-1\",\"status\":\"running\"}\n\n";
const STARTING: &str = "event: state\ndata: {\"name\":\"web-1\",\"status\":\"starting\"}\n\n: ping\n\n";
const COMPLETE: &str =
    "event: complete\ndata: {\"status\":\"running\",\"elapsed\":1.5,\"target\":\"running\"}\n\n";
const TIMEOUT: &str =
    "event: timeout\ndata: {\"error\":\"too long\",\"elapsed\":10,\"target\":\"running\"}\n\n";
const ERROR: &str = "event: error\ndata: {\"error\":\"the node is away\"}\n\n";

fn stream(parts: &[&str]) -> Reply {
    Reply::events(&parts.concat())
}

fn watch(server: &Server) -> Watch {
    server.client().cvm("web-1").watch("running").retry_delay(Duration::ZERO).max_attempts(3)
}

#[tokio::test]
async fn a_watch_ends_with_the_last_state() {
    let server = Server::other([stream(&[STARTING, RUNNING, COMPLETE])]).await;
    assert_eq!(watch(&server).send().await.unwrap().status, "running");
    let asked = server.only();
    assert_eq!(asked.line(), "GET /cvms/web-1/state?target=running&interval=5&timeout=300");
    assert_eq!(asked.header("accept"), Some("text/event-stream"));
    assert_eq!(asked.header("cache-control"), Some("no-cache"));
    assert_eq!(asked.header("x-phala-version"), Some("2026-06-23"));
}

#[tokio::test]
async fn a_plain_end_is_good_only_where_the_cvm_is_there() {
    let server = Server::other([stream(&[STARTING]), stream(&[RUNNING])]).await;
    assert_eq!(watch(&server).send().await.unwrap().status, "running");
    assert_eq!(server.lines().len(), 2);
}

#[tokio::test]
async fn what_was_seen_before_a_timeout_does_not_count() {
    let server =
        Server::other([stream(&[RUNNING, TIMEOUT]), stream(&[COMPLETE]), stream(&[RUNNING, COMPLETE])]).await;
    assert_eq!(watch(&server).send().await.unwrap().status, "running");
    assert_eq!(server.lines().len(), 3);
}

#[tokio::test]
async fn a_watch_gives_up_after_its_attempts() {
    let server = Server::other([stream(&[STARTING, TIMEOUT]), stream(&[STARTING, ERROR]), stream(&[])]).await;
    assert!(matches!(watch(&server).send().await, Err(Error::WatchEnded { attempts: 3 })));
    assert_eq!(server.lines().len(), 3);

    let server = Server::other([]).await;
    let error = watch(&server).max_attempts(0).send().await.unwrap_err();
    assert!(matches!(error, Error::WatchEnded { attempts: 0 }));
    assert_eq!(server.lines().len(), 0);
}

#[tokio::test]
async fn the_last_failure_is_what_the_caller_hears() {
    let broken = || Reply::json(503, json!({ "detail": "maintenance" }));
    let server = Server::other([broken(), broken(), broken()]).await;
    assert_eq!(watch(&server).send().await.unwrap_err().status(), Some(503));
    assert_eq!(server.lines().len(), 3);
}

#[tokio::test]
async fn what_another_attempt_would_not_change_ends_a_watch() {
    let server = Server::other([Reply::json(404, json!({ "detail": "CVM not found" }))]).await;
    assert!(matches!(watch(&server).send().await, Err(Error::NotFound(_))));
    assert_eq!(server.lines().len(), 1);
}

#[tokio::test]
async fn a_stream_shows_everything() {
    let server = Server::other([
        Reply::json(502, json!({ "detail": "bad gateway" })),
        stream(&[STARTING, ERROR, "event: state\ndata: nonsense\n\n", "event: news\ndata: {}\n\n", TIMEOUT]),
        stream(&[RUNNING, COMPLETE, RUNNING]),
    ])
    .await;
    let seen: Vec<_> = watch(&server).stream().try_collect().await.unwrap();
    let words: Vec<_> = seen
        .iter()
        .map(|event| match event {
            WatchEvent::State(state) => state.status.to_string(),
            WatchEvent::Complete(complete) => format!("complete after {}", complete.elapsed),
            WatchEvent::Timeout(timeout) => timeout.error.clone(),
            WatchEvent::Error(text) if text.starts_with("expected") => "unreadable".into(),
            WatchEvent::Error(text) => text.clone(),
            WatchEvent::Retrying { attempts, error } => {
                format!("again after {attempts}, {}", error.is_some())
            }
            other => format!("{other:?}"),
        })
        .collect();
    let expected = [
        "again after 1, true",
        "starting",
        "the node is away",
        "unreadable",
        "too long",
        "again after 2, false",
        "running",
        "complete after 1.5",
    ];
    assert_eq!(words, expected);
}
