//! A client that keeps apart what it knows about a request and what it does not.

use std::time::Duration;

use casemate_types::ids::VmUuid;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::cloud::{Cloud, Life, until};

/// Long enough that only a request that hangs runs into it.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Sends requests to whichever server is alive. Clones share their connections.
#[derive(Clone)]
pub(crate) struct Api {
    http: reqwest::Client,
    key: String,
    lives: watch::Receiver<Life>,
}

/// What became of a request.
#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    /// 2xx.
    Ok(Answer),
    /// Any other status: nothing was changed.
    Refused(Answer),
    /// Sent, and the connection ended without a whole answer. It may have changed something.
    Unknown(#[expect(dead_code, reason = "seen when a test fails")] String),
    /// Nobody listened.
    NotSent,
}

/// An answer that arrived whole.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    /// The status.
    pub(crate) status: StatusCode,
    /// The body; null if there was none, or none that is JSON.
    pub(crate) body: Value,
    /// The server's name for the request.
    pub(crate) request_id: String,
}

impl Answer {
    /// A text in the body.
    pub(crate) fn text(&self, field: &str) -> Option<&str> {
        self.body.get(field)?.as_str()
    }
}

impl Api {
    /// A client of `cloud`, with connections of its own.
    pub(crate) fn new(cloud: &Cloud) -> Self {
        let http = reqwest::Client::builder()
            .no_proxy()
            .retry(reqwest::retry::never())
            .timeout(TIMEOUT)
            .build()
            .expect("valid settings");
        Self { http, key: cloud.key.clone(), lives: cloud.lives() }
    }

    /// The number of the present run of the server.
    pub(crate) fn life(&self) -> u32 {
        self.lives.borrow().number
    }

    /// Waits for a run after number `life`.
    pub(crate) async fn next_life(&mut self, life: u32) {
        self.lives.wait_for(|now| now.number > life).await.expect("the cloud outlives its clients");
    }

    /// Sends one request, once.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        key: Option<&str>,
    ) -> Outcome {
        let headers: Vec<_> = key.map(|key| ("idempotency-key", key)).into_iter().collect();
        self.send_with(method, path, body, &headers).await
    }

    /// The same with these headers.
    pub(crate) async fn send_with(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        headers: &[(&str, &str)],
    ) -> Outcome {
        let url = format!("{}{path}", self.lives.borrow().url);
        let mut request = self.http.request(method, url).bearer_auth(&self.key);
        if let Some(body) = body {
            request = request.json(body);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = match request.send().await {
            Ok(response) => response,
            Err(error) if error.is_connect() => return Outcome::NotSent,
            Err(error) if error.is_timeout() => panic!("no answer within {TIMEOUT:?}: {error:?}"),
            Err(error) => return Outcome::Unknown(format!("{error:?}")),
        };
        let status = response.status();
        let request_id = response.headers().get("x-request-id").and_then(|id| id.to_str().ok());
        let request_id = request_id.unwrap_or_default().to_owned();
        match response.bytes().await {
            Err(error) => Outcome::Unknown(format!("{error:?}")),
            Ok(bytes) => {
                let body = serde_json::from_slice(&bytes).unwrap_or_default();
                let answer = Answer { status, body, request_id };
                if status.is_success() { Outcome::Ok(answer) } else { Outcome::Refused(answer) }
            }
        }
    }

    /// Sends a request that has to succeed.
    pub(crate) async fn expect(&self, method: Method, path: &str, body: Option<&Value>) -> Answer {
        match self.send(method.clone(), path, body, None).await {
            Outcome::Ok(answer) => answer,
            other => panic!("{method} {path}: {other:?}"),
        }
    }

    /// Creates a CVM and waits until it runs. Its id, and the machine's on its node.
    pub(crate) async fn deploy(&self, name: &str) -> (String, VmUuid) {
        let document = json!({ "docker_compose_file": "services:\n  web:\n    image: web:1\n" });
        let body =
            json!({ "name": name, "compose_file": document, "vcpu": 1, "memory": 1024, "disk_size": 10 });
        let Answer { body, .. } = self.expect(Method::POST, "/cvms/provision", Some(&body)).await;
        let body = json!({ "app_id": body["app_id"], "compose_hash": body["compose_hash"] });
        let answer = self.expect(Method::POST, "/cvms", Some(&body)).await;
        let id = answer.text("id").expect("an id").to_owned();
        let vm = answer.text("vm_uuid").and_then(|vm| vm.parse().ok()).expect("a UUID");
        self.rest().await;
        (id, vm)
    }

    /// Asks for an update and waits for its end. The operation.
    pub(crate) async fn update(&self, cvm: &str, patch: &Value) -> Value {
        let answer = self.expect(Method::PATCH, &format!("/cvms/{cvm}"), Some(patch)).await;
        self.rest().await;
        self.get(&format!("/operations/{}", answer.text("correlation_id").expect("an id"))).await
    }

    /// Waits until no operation is open any more. One look tells: a put-back is open before its update has ended.
    pub(crate) async fn rest(&self) {
        until("no operation is open", async || {
            let cvms = self.get("/cvms").await;
            cvms.as_array().is_some_and(|cvms| cvms.iter().all(|cvm| cvm["in_progress"] == false))
        })
        .await;
    }

    /// Reads something that has to be there.
    pub(crate) async fn get(&self, path: &str) -> Value {
        self.expect(Method::GET, path, None).await.body
    }
}
