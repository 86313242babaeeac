//! Lists, texts and logs.

use casemate_sdk::LogSource;
use futures_util::TryStreamExt;
use serde_json::{Value, json};

use crate::support::{OP, Reply, Server, cvm, operation};

fn page(items: &[Value], page: u64, pages: u64) -> Reply {
    Reply::json(200, json!({ "items": items, "total": 3, "page": page, "page_size": 2, "pages": pages }))
}

#[tokio::test]
async fn a_stream_reads_page_after_page() {
    let one = cvm("running", false);
    let server = Server::other([page(&[one.clone(), one.clone()], 1, 2), page(&[one], 2, 2)]).await;
    let all: Vec<_> = server.client().cvms().page_size(2).stream().try_collect().await.unwrap();
    assert_eq!(all.len(), 3);
    let asked = ["GET /cvms/paginated?page=1&page_size=2", "GET /cvms/paginated?page=2&page_size=2"];
    assert_eq!(server.lines(), asked);
}

#[tokio::test]
async fn a_stream_by_cursor_follows_it_and_keeps_the_filter() {
    let cursor = |next: Option<&str>| {
        Reply::json(200, json!({ "items": [operation(OP, "running")], "next_cursor": next }))
    };
    let server = Server::casemate([cursor(Some("c1")), cursor(Some("c2")), cursor(None)]).await;
    let all: Vec<_> = server.client().operations().cvm("web-1").stream().try_collect().await.unwrap();
    assert_eq!(all.len(), 3);
    let asked = [
        "GET /operations?cvm=web-1",
        "GET /operations?cvm=web-1&cursor=c1",
        "GET /operations?cvm=web-1&cursor=c2",
    ];
    assert_eq!(server.lines(), asked);
}

#[tokio::test]
async fn the_audit_trail_is_filtered_by_the_server() {
    let page = |next: Option<&str>| Reply::json(200, json!({ "items": [], "next_cursor": next }));
    let server = Server::casemate([page(Some("7")), page(None)]).await;
    let trail = server.client().audit().cvm("cvm_AR0ShvD7NR").after(3).limit(4);
    let _: Vec<_> = trail.stream().try_collect().await.unwrap();
    let asked =
        ["GET /audit?cvm=cvm_AR0ShvD7NR&after=3&limit=4", "GET /audit?cvm=cvm_AR0ShvD7NR&limit=4&after=7"];
    assert_eq!(server.lines(), asked);
}

#[tokio::test]
async fn an_error_ends_a_stream() {
    let server = Server::other([Reply::json(403, json!({ "detail": "no" }))]).await;
    let mut list = server.client().cvms().stream();
    assert!(list.try_next().await.is_err());
    assert!(list.try_next().await.unwrap().is_none());
}

#[tokio::test]
async fn many_states_are_asked_for_in_several_requests() {
    let empty = || Reply::json(200, json!({}));
    let server = Server::other([empty(), empty(), empty()]).await;
    let uuids = (0..250).map(|n| format!("1b9d6bcd-bbfd-4b2d-9b5d-{n:012}").parse().unwrap());
    server.client().status_batch(uuids).await.unwrap();
    let counts: Vec<_> =
        server.asked().iter().map(|asked| asked.json()["vm_uuids"].as_array().unwrap().len()).collect();
    assert_eq!(counts, [100, 100, 50]);
}

#[tokio::test]
async fn texts_come_back_byte_for_byte() {
    let script = "#!/bin/sh\necho \"ü\"\n\n";
    let server = Server::other([Reply::text(script), Reply::json(200, json!(script)), Reply::text("")]).await;
    let web = server.client().cvm("web-1");
    assert_eq!(web.pre_launch_script_text().await.unwrap(), script);
    assert_eq!(web.docker_compose_yml().await.unwrap(), script);
    assert_eq!(web.pre_launch_script_text().await.unwrap(), "");
}

#[tokio::test]
async fn a_word_that_is_not_known_is_kept() {
    let server = Server::other([Reply::json(200, json!({ "name": "web-1", "status": "hibernating" }))]).await;
    let state = server.client().cvm("web-1").state().await.unwrap();
    assert_eq!(state.status, "hibernating");
    assert!(state.status.is_transitional());
}

#[tokio::test]
async fn logs_are_read_without_the_key() {
    let server = Server::other([]).await;
    let logs = format!("{}/logs/1?sig=abc", server.url());
    let mut detail = cvm("running", false);
    detail["logs"] = json!({ "serial": logs, "stdout": null, "stderr": null, "container_log_base": null });
    let container = json!({
        "id": "1", "names": ["/web"], "image": "nginx", "image_id": "", "created": 0, "state": "running", "status": "Up",
        "log_endpoint": format!("{}/logs/1/container?sig=abc&name=web", server.url()),
    });
    let composition = json!({ "is_online": true, "containers": [container] });
    let server = server.then([
        Reply::json(200, detail),
        Reply::text("one\ntwo\n"),
        Reply::json(200, composition.clone()),
        Reply::text("three\n"),
        Reply::json(200, composition),
    ]);
    let web = server.client().cvm("web-1");
    assert_eq!(
        web.logs(LogSource::Serial).tail(2).since("42m").timestamps().send().await.unwrap(),
        "one\ntwo\n"
    );
    let chunks: Vec<_> = web.logs(LogSource::Container("web".into())).follow().try_collect().await.unwrap();
    assert_eq!(chunks.concat(), b"three\n");
    let missing = web.logs(LogSource::Container("db".into())).send().await.unwrap_err();
    assert_eq!(missing.to_string(), "the CVM has no container `db`");

    let asked = server.asked();
    assert_eq!(asked[1].line(), "GET /logs/1?sig=abc&tail=2&lines=2&since=42m&timestamps");
    assert_eq!(asked[1].header("x-api-key"), None);
    assert_eq!(asked[3].line(), "GET /logs/1/container?sig=abc&name=web&text&bare&follow");
}
