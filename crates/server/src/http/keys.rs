//! API keys: made, listed, revoked.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use casemate_types::error::{ErrorBody, FieldError, codes};
use casemate_types::version::ApiVersion;
use casemate_types::wire;
use jiff::Timestamp;
use serde_json::{Map, Value};

use crate::app::App;
use crate::auth::{Actor, Author, Scopes};
use crate::cvm::spec::sha256;
use crate::error::{Error, Resource, Result};
use crate::http::answer::{json, nothing};
use crate::http::extract::{Body, Caller, Params};
use crate::http::idempotency::ShownOnce;
use crate::store::{self, Answer, ApiKey, NewKey};

/// How every key begins, so that one that leaked is recognised.
const KEY: &str = "phak_";

/// Letters and digits after that: 256 bits.
const KEY_LENGTH: usize = 43;

/// How much of a key is kept, to recognise it by.
const PREFIX_LENGTH: usize = 10;

/// Longest name of a key, in characters.
const MAX_NAME: usize = 100;

/// List API keys
///
/// Shows all keys of the workspace, revoked ones too, newest first. The keys themselves are never shown again.
#[utoipa::path(get, path = "/keys", tag = "account",
    responses((status = 200, description = "The keys", body = Vec<wire::ApiKeyInfo>)))]
pub async fn key_list(State(app): State<App>, caller: Caller) -> Result<Answer> {
    let keys = app.store.keys(caller.actor.workspace_id)?;
    Ok(json(StatusCode::OK, &keys.into_iter().map(info).collect::<Vec<_>>()))
}

/// Make an API key
///
/// This answer is the only one that shows the key. A key has no more rights than the one that makes it.
#[utoipa::path(post, path = "/keys", tag = "account", request_body = KeyCreate,
    responses((status = 201, description = "The key", body = wire::NewApiKey)))]
pub async fn key_create(
    State(app): State<App>,
    caller: Caller,
    params: Params,
    Body(body): Body,
) -> Result<Response> {
    params.only(&[])?;
    let author = author(&caller)?;
    let asked = KeyCreate::from_json(&body, &caller.actor)?;
    let KeyCreate { name, scopes, default_version, .. } = asked;
    let expires_at = expiry(&app, &caller.actor, asked.expires_at)?;
    let key = format!("{KEY}{}", app.clock.random_text(KEY_LENGTH));
    let new = NewKey {
        uid: format!("key_{}", app.clock.random_text(10)),
        hash: sha256(key.as_bytes()),
        prefix: key[..PREFIX_LENGTH].to_owned(),
        name,
        scopes,
        default_version,
        expires_at,
        at: app.clock.now(),
    };
    let info = info(ApiKey {
        uid: new.uid.clone(),
        prefix: new.prefix.clone(),
        name: new.name.clone(),
        scopes,
        default_version,
        created_at: new.at,
        expires_at,
        revoked_at: None,
        last_used_at: None,
    });
    let uid = new.uid.clone();
    let receipt = caller.receipt(move |()| Ok(made_before(&uid)));
    let Actor { workspace_id, user_id, .. } = caller.actor;
    app.store.key_create(workspace_id, user_id, new, Some(author), receipt).await?;
    let mut response = json(StatusCode::CREATED, &wire::NewApiKey { key, info }).into_response();
    response.extensions_mut().insert(ShownOnce);
    Ok(response)
}

/// When a new key ends: as asked, and not after the key that makes it.
fn expiry(app: &App, actor: &Actor, asked: Option<Timestamp>) -> Result<Option<Timestamp>> {
    let wrong = |message: String| Err(Error::invalid("expires_at", message));
    let own = app.store.key_expiry(actor.key_id)?;
    match (asked, own) {
        (Some(asked), _) if asked <= app.clock.now() => {
            wrong("should be a time to come, such as 2030-12-31T00:00:00Z".to_owned())
        }
        (Some(asked), Some(own)) if asked > own => {
            wrong(format!("should be no later than the end of the key that makes it, {own:.0}"))
        }
        (Some(asked), _) => Ok(Some(asked)),
        (None, own) => Ok(own),
    }
}

/// What a request gets that comes again: the key is not kept, so it cannot be shown again.
fn made_before(uid: &str) -> Answer {
    let message =
        "this request made its key before, and a key is shown only once; revoke it and make another";
    json(StatusCode::CONFLICT, &ErrorBody::structured(codes::INVALID_REQUEST, message).with("id", uid))
}

/// Revoke an API key
///
/// From the answer on, nothing is done with it any more.
#[utoipa::path(delete, path = "/keys/{key_id}", tag = "account",
    params(("key_id" = String, Path, description = "The key's id, `key_…`.")),
    responses((status = 204, description = "Revoked")))]
pub async fn key_revoke(
    State(app): State<App>,
    caller: Caller,
    Path(uid): Path<String>,
    params: Params,
) -> Result<Answer> {
    params.only(&[])?;
    let author = author(&caller)?;
    let receipt = caller.receipt(|()| Ok(nothing()));
    let revoked =
        app.store.key_revoke(caller.actor.workspace_id, uid, Some(author), app.clock.now(), receipt).await;
    match revoked {
        Err(store::Error::Missing) => Err(Error::NotFound { what: Resource::Key }),
        other => Ok(other.map(|()| nothing())?),
    }
}

fn author(caller: &Caller) -> Result<Author> {
    match caller.actor.scopes.keys {
        true => Ok(caller.actor.author(&caller.request_id)),
        false => Err(Error::Forbidden { scope: "keys" }),
    }
}

fn info(key: ApiKey) -> wire::ApiKeyInfo {
    wire::ApiKeyInfo {
        id: key.uid,
        name: key.name,
        prefix: key.prefix,
        scopes: key.scopes.text().split(' ').map(str::to_owned).collect(),
        default_version: key.default_version,
        created_at: key.created_at,
        last_used_at: key.last_used_at,
        expires_at: key.expires_at,
        revoked_at: key.revoked_at,
    }
}

/// `POST /keys`: what a new key shall be.
#[derive(Clone, Debug, PartialEq, utoipa::ToSchema)]
pub struct KeyCreate {
    /// What its owner calls it.
    pub name: String,
    /// What it may do: `read`, `write`, `keys`. By default what the key may that makes it.
    #[schema(value_type = Option<Vec<String>>)]
    pub scopes: Scopes,
    /// The API version of requests that name none. By default that of the key that makes it.
    #[schema(value_type = Option<String>)]
    pub default_version: ApiVersion,
    /// When it stops working, as an RFC 3339 time. By default when the key that makes it does, if it does.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub expires_at: Option<Timestamp>,
}

impl KeyCreate {
    fn from_json(body: &Map<String, Value>, actor: &Actor) -> Result<Self> {
        let mut wrong = Vec::new();
        let mut note =
            |field: &str, message: String| wrong.push(FieldError::body(field, "value_error", message));
        let name = match body.get("name") {
            Some(Value::String(name)) if (1..=MAX_NAME).contains(&name.trim().chars().count()) => name.trim(),
            _ => {
                note("name", format!("required: 1 to {MAX_NAME} characters, to tell the key from others"));
                ""
            }
        };
        let words = match body.get("scopes") {
            None | Some(Value::Null) => Some(actor.scopes.text()),
            Some(Value::String(words)) => Some(words.replace(',', " ")),
            Some(Value::Array(words)) => {
                let words: Option<Vec<_>> = words.iter().map(Value::as_str).collect();
                words.map(|words| words.join(" "))
            }
            Some(_) => None,
        };
        let scopes = match words.as_deref().map(Scopes::parse) {
            Some(Ok(scopes)) => scopes,
            Some(Err(message)) => {
                note("scopes", message);
                actor.scopes
            }
            None => {
                note("scopes", "should be a list of `read`, `write` and `keys`".to_owned());
                actor.scopes
            }
        };
        if (scopes.write && !actor.scopes.write) || (scopes.keys && !actor.scopes.keys) {
            note("scopes", format!("should be no more than this key has: {}", actor.scopes.text()));
        }
        let default_version = match body.get("default_version") {
            None | Some(Value::Null) => Some(actor.default_version),
            Some(version) => version.as_str().and_then(|text| text.parse().ok()),
        };
        let default_version = default_version.unwrap_or_else(|| {
            let known: Vec<_> = ApiVersion::ALL.iter().map(|version| version.as_str()).collect();
            note("default_version", format!("should be one of {}", known.join(", ")));
            actor.default_version
        });
        let expires_at = match body.get("expires_at") {
            None | Some(Value::Null) => None,
            Some(time) => {
                let time = time.as_str().and_then(|text| text.parse().ok());
                if time.is_none() {
                    note("expires_at", "should be a time such as 2030-12-31T00:00:00Z".to_owned());
                }
                time
            }
        };
        match wrong.is_empty() {
            true => Ok(Self { name: name.to_owned(), scopes, default_version, expires_at }),
            false => Err(Error::Invalid(wrong)),
        }
    }
}
