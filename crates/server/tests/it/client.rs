//! Requests to a world, and their answers.

use axum::body::Body;
use axum::http::{HeaderMap, Method, Request, StatusCode};
use casemate_server::app::App;
use casemate_server::auth::{Actor, Scopes};
use casemate_server::cvm::spec::sha256;
use casemate_server::http::{ApiService, service};
use casemate_server::store::NewKey;
use casemate_testkit::World;
use casemate_types::version::ApiVersion;
use http_body_util::BodyExt;
use serde_json::Value;
use tower::ServiceExt;

/// Sends requests with one API key.
pub(crate) struct Client {
    service: ApiService,
    key: String,
    version: Option<ApiVersion>,
    headers: Vec<(&'static str, String)>,
}

/// What came back.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Client {
    /// As the one who acts in the world.
    pub(crate) async fn of(world: &World) -> Self {
        Self::with(&world.app, &world.actor).await
    }

    /// As somebody in another workspace.
    pub(crate) async fn stranger(world: &World) -> Self {
        Self::with(&world.app, &world.stranger().await).await
    }

    /// As `actor`.
    pub(crate) async fn with(app: &App, actor: &Actor) -> Self {
        let key = format!("phak_{}", app.clock.random_text(32));
        let new = NewKey {
            uid: format!("key_{}", app.clock.random_text(10)),
            hash: sha256(key.as_bytes()),
            prefix: key[..9].into(),
            name: "test".into(),
            scopes: Scopes::ALL,
            default_version: ApiVersion::LATEST,
            expires_at: None,
            at: app.clock.now(),
        };
        app.store.key_create(actor.workspace_id, actor.user_id, new, None, None).await.expect("a key");
        Self { service: service(app.clone()), key, version: None, headers: Vec::new() }
    }

    /// The same client, of another process of the server.
    pub(crate) fn at(&self, app: App) -> Self {
        Self {
            service: service(app),
            key: self.key.clone(),
            version: self.version,
            headers: self.headers.clone(),
        }
    }

    /// The same client, naming an API date.
    pub(crate) fn version(&self, version: ApiVersion) -> Self {
        Self {
            service: self.service.clone(),
            key: self.key.clone(),
            version: Some(version),
            headers: self.headers.clone(),
        }
    }

    /// The same client, sending one header more.
    pub(crate) fn header(&self, name: &'static str, value: impl Into<String>) -> Self {
        let mut headers = self.headers.clone();
        headers.push((name, value.into()));
        Self { service: self.service.clone(), key: self.key.clone(), version: self.version, headers }
    }

    /// The same client with another key.
    pub(crate) fn with_key(&self, key: &str) -> Self {
        Self { key: key.into(), ..self.nobody() }
    }

    /// The same client without its key.
    pub(crate) fn nobody(&self) -> Self {
        Self { service: self.service.clone(), key: String::new(), version: None, headers: Vec::new() }
    }

    /// Sends a request and returns while its body may still be coming.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> axum::http::Response<Body> {
        let in_api = ["/api/", "/v1/"].iter().any(|start| path.starts_with(start));
        let path = if in_api { path.to_owned() } else { format!("/api/v1{path}") };
        self.send_to(method, &path, body).await
    }

    async fn send_to(&self, method: Method, path: &str, body: Option<&Value>) -> axum::http::Response<Body> {
        let mut request =
            Request::builder().method(method).uri(path).header("content-type", "application/json");
        if !self.key.is_empty() {
            request = request.header("x-api-key", &self.key);
        }
        if let Some(version) = self.version {
            request = request.header("x-phala-version", version.as_str());
        }
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        let body = body.map_or_else(Body::empty, |body| Body::from(body.to_string()));
        let request = request.body(body).expect("a valid request");
        self.service.clone().oneshot(request).await.expect("infallible")
    }

    /// Sends a request.
    pub(crate) async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Answer {
        Answer::whole(self.send(method, path, body).await).await
    }

    /// Sends bytes as they are, said to be `content_type`.
    pub(crate) async fn raw(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        bytes: impl Into<Body>,
    ) -> Answer {
        let mut request = Request::builder().method(method).uri(format!("/api/v1{path}"));
        if !content_type.is_empty() {
            request = request.header("content-type", content_type);
        }
        request = request.header("x-api-key", &self.key);
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        let request = request.body(bytes.into()).expect("a valid request");
        Answer::whole(self.service.clone().oneshot(request).await.expect("infallible")).await
    }

    /// POST.
    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        self.call(Method::POST, path, Some(&body)).await
    }

    /// PATCH.
    pub(crate) async fn patch(&self, path: &str, body: Value) -> Answer {
        self.call(Method::PATCH, path, Some(&body)).await
    }

    /// DELETE.
    pub(crate) async fn delete(&self, path: &str) -> Answer {
        self.call(Method::DELETE, path, None).await
    }

    /// GET outside the API.
    pub(crate) async fn root(&self, path: &str) -> Answer {
        Answer::whole(self.send_to(Method::GET, path, None).await).await
    }

    /// GET.
    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.call(Method::GET, path, None).await
    }

    /// The JSON of a GET that is answered with 200.
    pub(crate) async fn json(&self, path: &str) -> Value {
        let answer = self.get(path).await;
        assert_eq!(answer.status, 200, "GET {path}: {}", answer.text());
        answer.json()
    }
}

impl Answer {
    /// The JSON of an answer with this status.
    #[track_caller]
    pub(crate) fn expect(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text());
        if self.body.is_empty() { Value::Null } else { self.json() }
    }

    async fn whole(response: axum::http::Response<Body>) -> Self {
        let (parts, body) = response.into_parts();
        let body = body.collect().await.expect("a whole body").to_bytes().to_vec();
        Self { status: parts.status, headers: parts.headers, body }
    }

    /// The body as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.clone()).expect("UTF-8")
    }

    /// The body as JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// The events of a stream: name and data of each, comments left out.
    pub(crate) fn events(&self) -> Vec<(String, Value)> {
        let text = self.text();
        let mut events = Vec::new();
        for block in text.split("\n\n").filter(|block| !block.trim().is_empty()) {
            let line = |name: &str| {
                let found: Vec<_> = block.lines().filter_map(|line| line.strip_prefix(name)).collect();
                assert!(found.len() <= 1, "one line of each kind: {block}");
                found.first().map(|text| (*text).to_owned())
            };
            if let Some(data) = line("data: ") {
                let name = line("event: ").expect("an event has a name");
                events.push((name, serde_json::from_str(&data).expect("JSON")));
            }
        }
        events
    }
}
