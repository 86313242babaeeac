//! One request: put together, checked, sent, repeated where that is safe.

use std::fmt::Display;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use casemate_types::error::FieldError;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::client::Client;
use crate::error::{Error, Failure, Result};
use crate::retry;
use crate::sse::Events;

pub(crate) const VERSION: HeaderName = HeaderName::from_static("x-phala-version");
const CASEMATE: HeaderName = HeaderName::from_static("x-casemate");
const API_KEY: HeaderName = HeaderName::from_static("x-api-key");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// A request that is not sent yet.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    client: Client,
    method: Method,
    path: Vec<String>,
    query: Vec<(String, String)>,
    headers: HeaderMap,
    body: Option<Bytes>,
    /// What of this request only Casemate knows.
    only_casemate: Option<&'static str>,
    /// It changes nothing and can be repeated, or has an idempotency key and can be repeated on Casemate.
    repeatable: bool,
    problems: Vec<FieldError>,
}

/// An answer of 2xx.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) url: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn json<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_slice(&self.body)
            .map_err(|error| Error::Decode { url: self.url.clone(), source: error.into() })
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

impl Call {
    pub(crate) fn new(client: Client, method: Method, path: Vec<String>) -> Self {
        let repeatable = method == Method::GET;
        Self {
            client,
            method,
            path,
            query: Vec::new(),
            headers: HeaderMap::new(),
            body: None,
            only_casemate: None,
            repeatable,
            problems: Vec::new(),
        }
    }

    /// Says that this can be repeated although it is no GET.
    pub(crate) fn read_only(mut self) -> Self {
        self.repeatable = true;
        self
    }

    /// Says that only Casemate knows this.
    pub(crate) fn only_casemate(mut self, what: &'static str) -> Self {
        self.only_casemate.get_or_insert(what);
        self
    }

    /// The same, under a condition.
    pub(crate) fn only_casemate_if(self, condition: bool, what: &'static str) -> Self {
        if condition { self.only_casemate(what) } else { self }
    }

    pub(crate) fn query(mut self, name: &str, value: impl Display) -> Self {
        self.query.push((name.to_owned(), value.to_string()));
        self
    }

    /// In place of an earlier one.
    pub(crate) fn set_query(mut self, name: &str, value: impl Display) -> Self {
        self.query.retain(|(known, _)| known != name);
        self.query(name, value)
    }

    pub(crate) fn query_opt(self, name: &str, value: Option<impl Display>) -> Self {
        match value {
            Some(value) => self.query(name, value),
            None => self,
        }
    }

    pub(crate) fn header(mut self, name: &'static str, value: impl Display) -> Self {
        match HeaderValue::from_str(&value.to_string()) {
            Ok(value) => {
                self.headers.insert(HeaderName::from_static(name), value);
                self
            }
            Err(_) => {
                self.problem(FieldError::header(name, "value_error", "must be printable ASCII characters"))
            }
        }
    }

    /// Shows a token. Like the key, it is not shown to anybody else.
    pub(crate) fn bearer(mut self, token: &str) -> Self {
        match HeaderValue::from_str(&format!("Bearer {token}")) {
            Ok(mut value) => {
                value.set_sensitive(true);
                self.headers.insert(AUTHORIZATION, value);
                self
            }
            Err(_) => {
                self.problem(FieldError::body("token", "value_error", "must be printable ASCII characters"))
            }
        }
    }

    pub(crate) fn idempotency_key(mut self, key: Option<&str>) -> Self {
        let Some(key) = key else { return self };
        self.repeatable = true;
        self.header("idempotency-key", key).only_casemate("an idempotency key")
    }

    pub(crate) fn json(mut self, body: &(impl Serialize + ?Sized)) -> Self {
        self.body = Some(serde_json::to_vec(body).expect("request bodies have string keys").into());
        self.headers.insert(CONTENT_TYPE, JSON);
        self
    }

    pub(crate) fn text(mut self, content_type: &'static str, body: impl Into<Bytes>) -> Self {
        self.body = Some(body.into());
        self.headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        self
    }

    /// Notes something that is wrong: the request will not be sent.
    pub(crate) fn problem(mut self, problem: FieldError) -> Self {
        self.problems.push(problem);
        self
    }

    pub(crate) fn problems(mut self, problems: impl IntoIterator<Item = FieldError>) -> Self {
        self.problems.extend(problems);
        self
    }

    /// Sends it and waits for the answer.
    ///
    /// # Errors
    /// Every kind that an answer outside 2xx has, and [`Error::Unsupported`], [`Error::Transport`].
    pub(crate) async fn answer(self) -> Result<Answer> {
        self.ready().await?;
        self.deliver().await
    }

    /// Sends it and reads the answer as JSON.
    pub(crate) async fn fetch<T: DeserializeOwned>(self) -> Result<T> {
        self.answer().await?.json()
    }

    /// Sends it and reads the answer as text. A JSON string is one, too.
    pub(crate) async fn fetch_text(self) -> Result<String> {
        let answer = self.answer().await?;
        if answer.header("content-type").is_some_and(|kind| kind.starts_with("application/json")) {
            return answer.json();
        }
        String::from_utf8(answer.body.to_vec())
            .map_err(|error| Error::Decode { url: answer.url, source: error.into() })
    }

    /// Sends it and ignores what a success says.
    pub(crate) async fn done(self) -> Result<()> {
        self.answer().await.map(|_| ())
    }

    /// Opens a stream of events. Not repeated: who watches decides that.
    pub(crate) async fn events(self) -> Result<Opened> {
        self.ready().await?;
        let call = self.header("accept", "text/event-stream").header("cache-control", "no-cache");
        let url = call.url()?;
        let response = call.send_once(&url, None).await?;
        let json = response
            .headers()
            .get(CONTENT_TYPE)
            .and_then(|kind| kind.to_str().ok())
            .is_some_and(|kind| kind.starts_with("application/json"));
        if response.status().is_success() && !json {
            return Ok(Opened::Events(Events::new(response)));
        }
        read_answer(shown(&url), response).await.map(Opened::Answer)
    }

    /// Everything that can be wrong before anything is sent.
    async fn ready(&self) -> Result<()> {
        if !self.problems.is_empty() {
            return Err(Error::invalid(self.problems.clone()));
        }
        if let Some(what) = self.only_casemate
            && !self.client.is_casemate().await?
        {
            return Err(Error::Unsupported { what, base_url: self.client.base_url().to_owned() });
        }
        Ok(())
    }

    /// Sends it, again and again if it is safe to, without asking first what the server is.
    pub(crate) async fn deliver(&self) -> Result<Answer> {
        let url = self.url()?;
        let retries = if self.repeatable { self.client.inner.retries } else { 0 };
        let mut pauses = retry::pauses(retries, self.client.inner.retry_pause);
        let mut again = false;
        loop {
            let error = match self.deliver_once(&url).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let passing = match &error {
                // The first copy of this very request may still be at work.
                Error::Busy(_) => again && self.method != Method::GET,
                error => error.is_transient(),
            };
            let wanted = error.failure().and_then(|failure| failure.retry_after);
            let Some(pause) = passing.then(|| pauses.next(wanted)).flatten() else { return Err(error) };
            again = true;
            tokio::time::sleep(pause).await;
        }
    }

    async fn deliver_once(&self, url: &Url) -> Result<Answer> {
        let response = self.send_once(url, self.client.inner.timeout).await?;
        read_answer(shown(url), response).await
    }

    async fn send_once(&self, url: &Url, timeout: Option<Duration>) -> Result<reqwest::Response> {
        let inner = &self.client.inner;
        let mut request = reqwest::Request::new(self.method.clone(), url.clone());
        *request.timeout_mut() = timeout;
        let headers = request.headers_mut();
        for (name, value) in inner.headers.iter().chain(&self.headers) {
            headers.insert(name.clone(), value.clone());
        }
        if let Some(key) = &inner.key {
            headers.insert(API_KEY, key.clone());
        }
        *request.body_mut() = self.body.clone().map(Into::into);
        let sent = self.client.transport(url)?.execute(request).await;
        let response = sent.map_err(|error| transport(shown(url), error))?;
        if let Some(signature) = response.headers().get(CASEMATE) {
            self.client.saw_casemate(signature);
        }
        Ok(response)
    }

    fn url(&self) -> Result<Url> {
        let mut url = self.client.inner.base.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            // A base URL may end in slashes.
            path.pop_if_empty().pop_if_empty().extend(&self.path);
        }
        if !self.query.is_empty() {
            url.query_pairs_mut().extend_pairs(&self.query);
        }
        Ok(url)
    }
}

/// What came instead of a stream of events, or the stream.
pub(crate) enum Opened {
    Events(Events),
    Answer(Answer),
}

async fn read_answer(url: String, response: reqwest::Response) -> Result<Answer> {
    let status = response.status();
    let headers = response.headers().clone();
    let body = response.bytes().await.map_err(|error| transport(url.clone(), error))?;
    if status.is_success() {
        return Ok(Answer { url, headers, body });
    }
    Err(Error::from_failure(Failure::read(status, &headers, &body)))
}

pub(crate) fn transport(url: String, error: reqwest::Error) -> Error {
    // The URL is in our message already, and a query may hold a signature.
    Error::Transport { url, source: error.without_url().into() }
}

/// A URL as errors show it.
pub(crate) fn shown(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.into()
}

/// A value that a caller gave as text, or what is wrong with it. The request that needs it is not sent then.
pub(crate) type Parsed<T> = Result<T, Box<FieldError>>;

/// Parses a value that a caller gave as text.
pub(crate) fn parsed<T: FromStr<Err: Display>>(field: &str, text: impl Display) -> Parsed<T> {
    let text = text.to_string();
    text.parse().map_err(|error| Box::new(FieldError::body(field, "value_error", format!("{error}"))))
}

/// What is wrong with it.
pub(crate) fn problem_of<T>(parsed: &Parsed<T>) -> Option<FieldError> {
    parsed.as_ref().err().map(|problem| (**problem).clone())
}

/// A path segment that a caller gave: anything but what would make another path of it.
pub(crate) fn segment(field: &str, text: impl Display) -> Parsed<String> {
    let text = text.to_string();
    match text.as_str() {
        "" | "." | ".." => {
            Err(Box::new(FieldError::body(field, "value_error", format!("`{text}` is not an identifier"))))
        }
        _ => Ok(text),
    }
}
