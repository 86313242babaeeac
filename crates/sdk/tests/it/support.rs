//! A server that answers as a test tells it, and remembers what it was asked.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Method, Response, Uri};
use casemate_sdk::{Builder, Client};
use serde_json::{Value, json};

/// What was asked.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Asked {
    /// `PATCH /cvms/web-1?dry_run=true`, without the prefix.
    pub(crate) fn line(&self) -> String {
        let target = self.uri.path_and_query().unwrap().as_str();
        format!("{} {}", self.method, target.strip_prefix("/api/v1").unwrap_or(target))
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

/// How to answer.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: String,
}

impl Reply {
    pub(crate) fn json(status: u16, body: Value) -> Self {
        Self { status, headers: vec![("content-type", "application/json".into())], body: body.to_string() }
    }

    pub(crate) fn events(text: &str) -> Self {
        Self { status: 200, headers: vec![("content-type", "text/event-stream".into())], body: text.into() }
    }

    pub(crate) fn text(body: &str) -> Self {
        Self {
            status: 200,
            headers: vec![("content-type", "text/plain; charset=utf-8".into())],
            body: body.into(),
        }
    }

    pub(crate) fn status(mut self, status: u16) -> Self {
        self.status = status;
        self
    }

    pub(crate) fn with(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

#[derive(Default)]
struct Script {
    replies: VecDeque<Reply>,
    asked: Vec<Asked>,
    casemate: bool,
}

/// The server.
pub(crate) struct Server {
    url: String,
    script: Arc<Mutex<Script>>,
}

impl Server {
    /// A Casemate that gives these answers, one after the other.
    pub(crate) async fn casemate(replies: impl IntoIterator<Item = Reply>) -> Self {
        Self::start(replies, true).await
    }

    /// Another server with the same API.
    pub(crate) async fn other(replies: impl IntoIterator<Item = Reply>) -> Self {
        Self::start(replies, false).await
    }

    async fn start(replies: impl IntoIterator<Item = Reply>, casemate: bool) -> Self {
        let script = Script { replies: replies.into_iter().collect(), asked: Vec::new(), casemate };
        let script = Arc::new(Mutex::new(script));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/api/v1", listener.local_addr().unwrap());
        let router = Router::new().fallback(answer).with_state(Arc::clone(&script));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { url, script }
    }

    /// More answers, where they need to know the server's address.
    pub(crate) fn then(self, replies: impl IntoIterator<Item = Reply>) -> Self {
        self.script.lock().unwrap().replies.extend(replies);
        self
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    pub(crate) fn builder(&self) -> Builder {
        let pause = Duration::from_millis(1);
        Client::builder().base_url(&self.url).api_key("phak_test").poll_every(pause).retry_pause(pause)
    }

    pub(crate) fn client(&self) -> Client {
        self.builder().build().unwrap()
    }

    /// Everything it was asked, the question what it is left out.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        let asked = self.script.lock().unwrap().asked.clone();
        asked.into_iter().filter(|asked| asked.line() != "GET /auth/me").collect()
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        self.asked().iter().map(Asked::line).collect()
    }

    /// The only request.
    pub(crate) fn only(&self) -> Asked {
        let mut asked = self.asked();
        assert_eq!(asked.len(), 1, "{asked:?}");
        asked.remove(0)
    }
}

async fn answer(
    State(script): State<Arc<Mutex<Script>>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response<Body> {
    let mut script = script.lock().unwrap();
    let asked = Asked { method, uri, headers, body };
    let reply = if asked.line() == "GET /auth/me" {
        Reply::json(401, json!({ "detail": "no" }))
    } else {
        let unscripted = || Reply::json(418, json!({ "detail": "not in the script" }));
        script.replies.pop_front().unwrap_or_else(unscripted)
    };
    script.asked.push(asked);
    let mut response = Response::builder().status(reply.status);
    for (name, value) in reply.headers {
        response = response.header(name, value);
    }
    if script.casemate {
        response = response.header("x-casemate", "0.1.0");
    }
    response.body(Body::from(reply.body)).unwrap()
}

pub(crate) const OP: &str = "0198c1d2-0000-7000-8000-000000000001";
pub(crate) const PUT_BACK: &str = "0198c1d2-0000-7000-8000-000000000002";
pub(crate) const HASH: &str = "aa8150fb698fa81201284b1e3bf1cc63fa2149ae6bc64f670489a3dfa694e682";

/// A 202.
pub(crate) fn accepted() -> Reply {
    Reply::json(202, json!({ "status": "in_progress", "message": "Update accepted", "correlation_id": OP }))
}

/// An operation as `GET /operations/{id}` shows it.
pub(crate) fn operation(id: &str, status: &str) -> Value {
    json!({
        "correlation_id": id, "cvm_id": "cvm_x8Kq2Lm9", "kind": "update", "status": status, "step": "stage", "attempt": 1,
        "steps": [], "diff": [], "created_at": "2026-02-03T10:00:00.000000Z", "ended_at": null,
    })
}

/// The same as an event.
pub(crate) fn event(seq: u64, operation: &Value) -> String {
    let event = json!({
        "seq": seq, "at": "2026-02-03T10:00:00.000000Z", "kind": "step.finished", "cvm_id": null, "correlation_id": null,
        "actor": null, "key_id": null, "request_id": null, "revision_before": null, "revision_after": null, "details": {},
    });
    format!(
        "id: {seq}\nevent: step.finished\ndata: {}\n\n",
        json!({ "event": event, "operation": operation })
    )
}

/// A CVM as `GET /cvms/{id}` shows it.
pub(crate) fn cvm(status: &str, in_progress: bool) -> Value {
    json!({
        "id": "cvm_x8Kq2Lm9", "name": "web-1", "resource": {}, "status": status, "in_progress": in_progress,
        "gateway": {}, "app_id": "3f1c0a9b7d5e4c2a8b6d0e1f2a3b4c5d6e7f8091",
    })
}

/// The body of a 465.
pub(crate) fn approval(token: Option<&str>) -> Reply {
    let kms = json!({
        "id": "kms_1", "slug": null, "url": "https://kms.example.org", "version": "v0.5.3", "chain_id": 8453,
        "kms_contract_address": "0x1111111111111111111111111111111111111111", "gateway_app_id": null,
    });
    let mut details = vec![
        json!({ "field": "compose_hash", "value": HASH }),
        json!({ "field": "app_id", "value": "3f1c0a9b7d5e4c2a8b6d0e1f2a3b4c5d6e7f8091" }),
        json!({ "field": "device_id", "value": "5f0c" }),
        json!({ "field": "kms_info", "value": kms }),
    ];
    if let Some(token) = token {
        details.push(json!({ "field": "commit_token", "value": token }));
        details.push(json!({ "field": "commit_url", "value": "https://cloud.example.org/approve/1#token" }));
        let status = json!({ "compose_hash_allowed": false, "device_id_allowed": true, "is_allowed": false });
        details.push(json!({ "field": "onchain_status", "value": status }));
    }
    Reply::json(465, json!({ "error_code": "ERR-01-005", "message": "Register first", "details": details }))
}
