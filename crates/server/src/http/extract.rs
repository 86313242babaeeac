//! From a request to values that can be trusted.

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use casemate_types::error::FieldError;
use casemate_types::ids::CvmRef;
use casemate_types::version::ApiVersion;
use serde_json::{Map, Value};

use crate::app::App;
use crate::auth::{self, Actor, Author};
use crate::cvm::state::{Cvm, IfMatch};
use crate::error::{Error, Resource, Result};
use crate::store::{Answer, Found, Receipt, RequestKey};

/// Names one request, in answers, logs and the audit trail.
#[derive(Clone, Debug)]
pub struct RequestId(pub String);

/// Who asks, in which request, in which version of the API.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Who.
    pub actor: Actor,
    /// Which API date the answer follows.
    pub version: ApiVersion,
    /// Which request.
    pub request_id: String,
    /// The name under which the answer is to be kept, if it is.
    pub key: Option<RequestKey>,
}

impl Caller {
    /// Keeps what `render` makes of an outcome together with the outcome, if the caller asked for that.
    pub fn receipt<T: 'static>(
        &self,
        render: impl Fn(&T) -> Result<Answer> + Send + Sync + 'static,
    ) -> Option<Receipt<T>> {
        self.key.map(|key| Receipt::new(key, render))
    }

    /// As the author of a change. `Forbidden` if the key may only read.
    pub fn author(&self) -> Result<Author> {
        if self.actor.scopes.write {
            Ok(self.actor.author(&self.request_id))
        } else {
            Err(Error::Forbidden { scope: "write" })
        }
    }
}

/// Routes whose method could change something and that only read.
const READS_BY_POST: [&str; 2] = ["/status/batch", "/is-allowed"];

impl FromRequestParts<App> for Caller {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self> {
        let token =
            token(&parts.headers).ok_or(Error::Unauthenticated("an API key is needed in X-API-Key"))?;
        let actor = auth::actor(app, token)?;
        // Decided before anything about the request is looked at, so that a refusal tells nothing.
        let reads = parts.method.is_safe() || READS_BY_POST.iter().any(|end| parts.uri.path().ends_with(end));
        if !reads && !actor.scopes.write && !actor.scopes.keys {
            return Err(Error::Forbidden { scope: "write" });
        }
        let version = version(&parts.headers)?.unwrap_or(actor.default_version);
        let key = parts.extensions.get().copied();
        Ok(Self { actor, version, request_id: request_id(parts), key })
    }
}

/// The id that the outer layer gave the request.
pub fn request_id(parts: &Parts) -> String {
    parts.extensions.get::<RequestId>().map_or_else(String::new, |id| id.0.clone())
}

pub(super) fn token(headers: &HeaderMap) -> Option<&str> {
    let key = headers.get("x-api-key").and_then(|value| value.to_str().ok());
    let bearer = || headers.get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ");
    key.or_else(bearer).map(str::trim).filter(|token| !token.is_empty())
}

/// The API date that a request names.
pub fn version(headers: &HeaderMap) -> Result<Option<ApiVersion>> {
    let Some(value) = headers.get("x-phala-version") else { return Ok(None) };
    let text = value.to_str().unwrap_or("?");
    text.parse().map(Some).map_err(|_| {
        let known: Vec<_> = ApiVersion::ALL.iter().map(|version| version.as_str()).collect();
        let message =
            format!("X-Phala-Version `{text}` is not known; supported are {} and LATEST", known.join(", "));
        Error::Rejected { code: None, field: None, message }
    })
}

/// The CVM that the path names, if the caller may see it.
#[derive(Clone, Debug)]
pub struct TheCvm {
    /// The CVM.
    pub cvm: Cvm,
    /// The name that the path used for it.
    pub named: String,
}

impl TheCvm {
    /// The CVM that `named` means to the caller.
    pub fn find(app: &App, actor: &Actor, named: &str) -> Result<Self> {
        let reference: CvmRef = named.parse().map_err(|error| Error::Rejected {
            code: None,
            field: None,
            message: format!("`{named}` names no CVM: {error}"),
        })?;
        match app.store.cvm_find(actor.workspace_id, &reference)? {
            Found::One(cvm) => Ok(Self { cvm: *cvm, named: named.to_owned() }),
            Found::None => Err(Error::NotFound { what: Resource::Cvm }),
            Found::SeveralOfApp => Err(Error::Conflict {
                code: Some(casemate_types::error::codes::MULTIPLE_CVMS_OF_APP),
                message: "the app has several CVMs; name one of them by its id".into(),
            }),
        }
    }
}

/// The caller together with the CVM in the path: what nearly every route needs.
#[derive(Clone, Debug)]
pub struct On {
    /// Who asks.
    pub caller: Caller,
    /// The CVM.
    pub cvm: Cvm,
    /// The name that the path used for it.
    pub named: String,
    /// The states of it that the caller has seen, if it wants no other to be changed.
    pub if_match: Option<IfMatch>,
}

/// The states that `If-Match` lists; several headers are one list.
pub fn if_match(headers: &HeaderMap) -> Option<IfMatch> {
    let given: Vec<_> =
        headers.get_all(header::IF_MATCH).iter().map(|value| value.to_str().unwrap_or("?")).collect();
    if given.is_empty() { None } else { IfMatch::read(&given.join(",")) }
}

impl FromRequestParts<App> for On {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self> {
        let caller = Caller::from_request_parts(parts, app).await?;
        let Path(segments) = Path::<Vec<(String, String)>>::from_request_parts(parts, app)
            .await
            .map_err(|_| Error::NotFound { what: Resource::Route })?;
        let named = segments.into_iter().find(|(name, _)| name == "id").map(|(_, value)| value);
        let named = named.ok_or(Error::NotFound { what: Resource::Route })?;
        let TheCvm { cvm, named } = TheCvm::find(app, &caller.actor, &named)?;
        // Looked at here so that no route forgets it. What is accepted is compared again where it is stored.
        let if_match = if parts.method.is_safe() { None } else { if_match(&parts.headers) };
        if let Some(seen) = &if_match {
            seen.check(&cvm)?;
        }
        Ok(Self { caller, cvm, named, if_match })
    }
}

/// A JSON object, whatever the content type says. An empty body and `null` are an empty object.
#[derive(Clone, Debug, Default)]
pub struct Body(pub Map<String, Value>);

impl FromRequest<App> for Body {
    type Rejection = Error;

    async fn from_request(request: Request, app: &App) -> Result<Self> {
        let form = content_type(request.headers()).starts_with("application/x-www-form-urlencoded");
        let bytes = raw(request, app).await?;
        match object(&bytes) {
            Err(_) if form => Ok(Self(from_form(&bytes))),
            other => other.map(Self),
        }
    }
}

/// The bytes of a body, at most as many as the configuration allows.
pub struct Raw {
    /// What was sent.
    pub bytes: Bytes,
    /// What it is said to be, in lower case.
    pub content_type: String,
}

impl FromRequest<App> for Raw {
    type Rejection = Error;

    async fn from_request(request: Request, app: &App) -> Result<Self> {
        let content_type = content_type(request.headers());
        Ok(Self { bytes: raw(request, app).await?, content_type })
    }
}

fn content_type(headers: &HeaderMap) -> String {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    value.unwrap_or_default().to_ascii_lowercase()
}

pub(super) async fn raw(request: Request, app: &App) -> Result<Bytes> {
    let limit = app.config.max_body;
    axum::body::to_bytes(request.into_body(), limit).await.map_err(|_| {
        Error::invalid("", format!("the body is larger than {limit} bytes, or did not arrive whole"))
    })
}

/// Reads a JSON object; nothing and `null` are an empty one.
pub fn object(bytes: &[u8]) -> Result<Map<String, Value>> {
    if bytes.trim_ascii().is_empty() {
        return Ok(Map::new());
    }
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(Value::Null) => Ok(Map::new()),
        Ok(_) => Err(Error::invalid("", "the body should be a JSON object")),
        Err(error) => Err(Error::invalid("", format!("the body is not valid JSON: {error}"))),
    }
}

pub(super) fn from_form(bytes: &[u8]) -> Map<String, Value> {
    let text = String::from_utf8_lossy(bytes);
    pairs(&text).map(|(name, value)| (name, Value::String(value))).collect()
}

fn pairs(text: &str) -> impl Iterator<Item = (String, String)> + '_ {
    text.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (unescape(name), unescape(value))
    })
}

fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes().iter().copied();
    while let Some(byte) = rest.next() {
        let escaped = match byte {
            b'+' => Some(b' '),
            b'%' => {
                let digits: Vec<u8> = rest.clone().take(2).collect();
                let value =
                    std::str::from_utf8(&digits).ok().and_then(|hex| u8::from_str_radix(hex, 16).ok());
                if value.is_some() {
                    rest.nth(1);
                }
                value
            }
            _ => None,
        };
        bytes.push(escaped.unwrap_or(byte));
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Query parameters that may be given several times, each with a value of its own.
const LISTS: [&str; 3] = ["instance_types", "state", "status"];

/// A parameter that says two things: whichever were taken, somebody meant the other.
fn repeated(name: &str) -> Error {
    let message = format!("`{name}` is given more than once; send it once");
    Error::Invalid(vec![FieldError::query(name, "value_error", message)])
}

/// The query of a request. No parameter says two things.
#[derive(Clone, Debug, Default)]
pub struct Params(Vec<(String, String)>);

impl FromRequestParts<App> for Params {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &App) -> Result<Self> {
        let params = Self(pairs(parts.uri.query().unwrap_or_default()).collect());
        let is_list = |name: &str| LISTS.contains(&name);
        match params.repeated(|one, other| one.0 == other.0 && one.1 != other.1 && !is_list(&one.0)) {
            None => Ok(params),
            Some(name) => Err(repeated(name)),
        }
    }
}

impl Params {
    /// The name of the first parameter that `clashes` with a later one.
    fn repeated(&self, clashes: impl Fn(&(String, String), &(String, String)) -> bool) -> Option<&str> {
        let later = |index: usize| &self.0[index + 1..];
        let clash = self
            .0
            .iter()
            .enumerate()
            .find(|(index, one)| later(*index).iter().any(|other| clashes(one, other)));
        clash.map(|(_, (name, _))| name.as_str())
    }

    /// Refuses names that are not in `known`, and those that come twice. On a route that changes something a typing error must
    /// not be ignored.
    pub fn only(self, known: &[&str]) -> Result<Self> {
        if let Some(name) = self.repeated(|one, other| one.0 == other.0) {
            return Err(repeated(name));
        }
        let unknown = self.0.iter().find(|(name, _)| !known.contains(&name.as_str()));
        match unknown {
            None => Ok(self),
            Some((name, _)) => {
                let message = match known {
                    [] => format!("`{name}` is not known; this route takes no query parameter"),
                    _ => format!("`{name}` is not known; this route takes {}", known.join(", ")),
                };
                Err(Error::Invalid(vec![FieldError::query(name, "extra_forbidden", message)]))
            }
        }
    }

    /// Was it given, with or without a value?
    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(given, _)| given == name)
    }

    /// The last value given.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().rev().find(|(given, _)| given == name).map(|(_, value)| value.as_str())
    }

    /// The value given, where one that is a list elsewhere is none.
    pub fn one(&self, name: &str) -> Result<Option<&str>> {
        match self.all(name).as_slice() {
            [] => Ok(None),
            [one, rest @ ..] if rest.iter().all(|other| other == one) => Ok(Some(one)),
            _ => Err(repeated(name)),
        }
    }

    /// Every value given.
    pub fn all(&self, name: &str) -> Vec<&str> {
        self.0.iter().filter(|(given, _)| given == name).map(|(_, value)| value.as_str()).collect()
    }

    /// A whole number from `least` to `most`.
    pub fn number(&self, name: &str, least: u64, most: u64) -> Result<Option<u64>> {
        let Some(text) = self.get(name) else { return Ok(None) };
        match text.parse() {
            Ok(value) if (least..=most).contains(&value) => Ok(Some(value)),
            _ => {
                let message = match most {
                    u64::MAX => format!("should be a whole number, at least {least}"),
                    _ => format!("should be a whole number from {least} to {most}"),
                };
                Err(Error::Invalid(vec![FieldError::query(name, "int_parsing", message)]))
            }
        }
    }

    /// `true` or `false`; a name without a value is `true`.
    pub fn flag(&self, name: &str) -> Result<Option<bool>> {
        match self.get(name) {
            None => Ok(None),
            Some("true" | "1" | "") => Ok(Some(true)),
            Some("false" | "0") => Ok(Some(false)),
            Some(_) => Err(Error::Invalid(vec![FieldError::query(
                name,
                "bool_parsing",
                "should be `true` or `false`",
            )])),
        }
    }
}
