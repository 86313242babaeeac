//! Requests that may come twice and count once: those with an `Idempotency-Key`.
//!
//! What a keyed request changes and what it is answered with are stored by one transaction, and the answer goes out as it was
//! stored. So the same request gets the same answer for a day, also after a crash between the two. Errors are not kept: a
//! request that failed may be tried again under its key.

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use casemate_types::error::FieldError;
use sha2::{Digest, Sha256};

use super::extract::{raw, token};
use crate::app::App;
use crate::auth;
use crate::error::{Error, Result};
use crate::store::{self, Answer, RequestKey};
use crate::workflow::commit_token;

/// The header that names a request.
pub const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// Longest key.
const MAX_KEY: usize = 255;

/// The status that asks for an approval; it is kept as a success is.
const APPROVAL_NEEDED: u16 = 465;

/// Headers that change what a request means.
const MEANINGFUL: [&str; 4] = ["x-compose-hash", "x-transaction-hash", "x-prepare-only", "x-auto-commit"];

/// Marks a response that holds a secret. What was kept for it is something else, and is not sent in its place.
#[derive(Clone, Copy, Debug)]
pub struct ShownOnce;

/// Answers a keyed request from what is kept, or lets it through once.
pub async fn once(State(app): State<App>, request: Request, next: Next) -> Response {
    let changes = !matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    match request.headers().get(IDEMPOTENCY_KEY).cloned() {
        Some(key) if changes => {
            keyed(&app, key.as_bytes(), request, next).await.unwrap_or_else(Error::into_response)
        }
        Some(_) | None => next.run(request).await,
    }
}

async fn keyed(app: &App, key: &[u8], request: Request, next: Next) -> Result<Response> {
    if key.is_empty() || key.len() > MAX_KEY || !key.iter().all(|byte| (b' '..=b'~').contains(byte)) {
        return Err(header_error(format!("should have 1 to {MAX_KEY} visible ASCII characters")));
    }
    // Who may not ask at all hears so from the route.
    let Some(caller) = caller(app, &request) else { return Ok(next.run(request).await) };
    let (mut parts, body) = request.into_parts();
    let bytes = raw(Request::new(body), app).await?;
    let scope = digest(&[&caller, parts.method.as_str().as_bytes(), parts.uri.path().as_bytes(), key]);
    let query = parts.uri.query().unwrap_or_default().as_bytes();
    let [hash, tx, prepare, auto] = MEANINGFUL.map(|name| header(&parts.headers, name));
    let key =
        RequestKey { scope, request: digest(&[query, hash, tx, prepare, auto, &bytes]), at: app.clock.now() };

    let _turn = app.turns.take(&scope).ok_or(store::Error::Answered)?;
    if let Some((request, kept)) = app.store.answer(&key)? {
        return match request == key.request {
            true => Ok(send(app, kept)),
            false => {
                Err(header_error("was used for another request within the last 24 hours; choose a new key"))
            }
        };
    }
    parts.extensions.insert(key);
    let response = next.run(Request::from_parts(parts, Body::from(bytes))).await;
    if response.extensions().get::<ShownOnce>().is_some() {
        return Ok(response);
    }
    match app.store.answer(&key)? {
        Some((_, kept)) => Ok(send(app, kept)),
        None => keep(app, key, response).await,
    }
}

/// Keeps the answer to a request that changed nothing by itself, such as one that joined an operation.
async fn keep(app: &App, key: RequestKey, response: Response) -> Result<Response> {
    let status = response.status();
    if !status.is_success() && status.as_u16() != APPROVAL_NEEDED {
        return Ok(response);
    }
    let (parts, body) = response.into_parts();
    let bytes = axum::body::to_bytes(body, usize::MAX)
        .await
        .map_err(|error| Error::internal("read an answer")(error.into()))?;
    if let Ok(body) = String::from_utf8(bytes.to_vec()) {
        let body =
            if status.as_u16() == APPROVAL_NEEDED { commit_token::without_tokens(&body) } else { body };
        app.store.answer_keep(key, Answer { status: status.as_u16(), body }).await?;
    }
    Ok(Response::from_parts(parts, Body::from(bytes)))
}

/// A kept answer as it was sent first.
fn send(app: &App, mut kept: Answer) -> Response {
    if kept.status == APPROVAL_NEEDED {
        kept.body = commit_token::with_tokens(app, &kept.body);
    }
    kept.into_response()
}

/// Who asks; nobody may ask for the one route that is authorised by what is in its body.
fn caller(app: &App, request: &Request) -> Option<Vec<u8>> {
    if request.uri().path().trim_end_matches('/').ends_with("/commit-update") {
        return Some(Vec::new());
    }
    let actor = auth::actor(app, token(request.headers())?).ok()?;
    Some([actor.workspace_id.to_be_bytes(), actor.user_id.to_be_bytes()].concat())
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> &'a [u8] {
    headers.get(name).map_or(&[], |value| value.as_bytes())
}

fn digest(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.len().to_be_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

fn header_error(message: impl Into<String>) -> Error {
    Error::Invalid(vec![FieldError::header("Idempotency-Key", "value_error", message)])
}
