//! Approvals: what waits for a yes, seen and decided on with an API key, or with the commit token alone.

use std::net::{IpAddr, Ipv4Addr};

use axum::extract::{FromRequestParts, Path, State};
use axum::http::request::Parts;
use axum::http::{Extensions, StatusCode, header};
use axum::response::Response;
use casemate_types::error::FieldError;
use casemate_types::patch::{ApprovalCommit, AutoCommit};
use casemate_types::wire;
use uuid::Uuid;

use super::answer::json;
use super::error::answer;
use super::extract::{self, Body, Caller, Params, TheCvm};
use super::origin::Origin;
use super::view;
use crate::app::App;
use crate::auth::Author;
use crate::error::{Error, Resource, Result};
use crate::store::{
    self, Answer, Approval, ApprovalFilter, ApprovalState, Auto, AutoBy, Receipt, RequestKey,
};
use crate::workflow::approval::{self, Committed};
use crate::workflow::commit_token::{self, Named};

/// Who looks at one approval: somebody of its workspace, or whoever has its token.
pub struct Reader {
    /// The approval.
    approval: Approval,
    /// Who may change the CVM; none for a token.
    caller: Option<Caller>,
    request_id: String,
    key: Option<RequestKey>,
}

impl FromRequestParts<App> for Reader {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self> {
        let Path(named) = Path::<String>::from_request_parts(parts, app)
            .await
            .map_err(|_| Error::NotFound { what: Resource::Approval })?;
        let (request_id, key) = (extract::request_id(parts), parts.extensions.get().copied());
        // A token is enough, whatever key is sent beside it.
        let bearer = parts.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let bearer = bearer.and_then(|value| value.strip_prefix("Bearer ")).map(str::trim);
        if let Some(token) = bearer.filter(|token| commit_token::looks_like(token)) {
            let approval = of_token(app, &Peer::of(&parts.extensions), token)?;
            if named.parse() != Ok(approval.id) {
                return Err(commit_token::refused("it belongs to another approval"));
            }
            return Ok(Self { approval, caller: None, request_id, key });
        }
        let caller = Caller::from_request_parts(parts, app).await?;
        let approval = find(app, &caller, &named)?;
        Ok(Self { approval, caller: Some(caller), request_id, key })
    }
}

/// The approval of a token. Who guesses is counted, and not answered any more after a while; a good token is always let in, so
/// that nobody behind the same address is kept from using one.
///
/// # Errors
/// `Rejected`; `Busy` after too many.
pub fn of_token(app: &App, peer: &Peer, token: &str) -> Result<Approval> {
    match commit_token::approval_of(app, token) {
        Err(error @ Error::Rejected { .. }) => match app.guesses.again(peer.0, app.clock.now()) {
            true => Err(error),
            false => Err(Error::Busy("too many wrong commit tokens; wait a minute".into())),
        },
        other => other,
    }
}

/// The address that a request came from, as far as it is known.
pub struct Peer(IpAddr);

impl Peer {
    fn of(extensions: &Extensions) -> Self {
        let origin = extensions.get::<Origin>();
        Self(origin.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |origin| origin.address))
    }
}

impl FromRequestParts<App> for Peer {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &App) -> Result<Self> {
        Ok(Self::of(&parts.extensions))
    }
}

fn find(app: &App, caller: &Caller, named: &str) -> Result<Approval> {
    let absent = || Error::NotFound { what: Resource::Approval };
    let id: Uuid = named.parse().map_err(|_| absent())?;
    let found = app.store.approval(id)?.ok_or_else(absent)?;
    match app.store.cvm(found.cvm_id) {
        Ok(cvm) if cvm.workspace_id == caller.actor.workspace_id => Ok(found),
        Ok(_) | Err(store::Error::Missing) => Err(absent()),
        Err(error) => Err(error.into()),
    }
}

/// List approvals
///
/// What waits for a yes on chain, and what became of what waited. Newest first.
#[utoipa::path(get, path = "/approvals", tag = "approvals",
    params(
        ("cvm" = Option<String>, Query, description = "Only of this CVM: its id, UUID, app id, instance id or name."),
        ("state" = Option<wire::ApprovalState>, Query,
            description = "Only in this state; given more than once, in any of these."),
        ("limit" = Option<u64>, Query, description = "At most so many; 50 unless given.", minimum = 1, maximum = 500),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before."),
    ),
    responses((status = 200, description = "The page", body = wire::ApprovalPage)))]
pub async fn approval_list(State(app): State<App>, caller: Caller, params: Params) -> Result<Response> {
    let wrong =
        |name: &str, message: String| Error::Invalid(vec![FieldError::query(name, "value_error", message)]);
    let limit = usize::try_from(params.number("limit", 1, 500)?.unwrap_or(50)).expect("bounded above");
    let cvm = params.get("cvm").map(|named| TheCvm::find(&app, &caller.actor, named)).transpose()?;
    let state = |text: &str| {
        let known = ApprovalState::WORDS.into_iter().find(|word| *word == text);
        known.ok_or_else(|| wrong("state", format!("should be one of {}", ApprovalState::WORDS.join(", "))))
    };
    let states = params.all("state").into_iter().map(state).collect::<Result<_>>()?;
    let before = params.get("cursor").map(str::parse).transpose();
    let before = before.map_err(|_| wrong("cursor", "should be `next_cursor` of an earlier page".into()))?;
    let filter = ApprovalFilter { cvm_id: cvm.map(|found| found.cvm.id), states, before, limit: limit + 1 };
    let mut found = app.store.approvals(caller.actor.workspace_id, &filter, app.clock.now())?;
    let more = found.len() > limit;
    found.truncate(limit);
    let next_cursor = found.last().filter(|_| more).map(|approval| approval.id.to_string());
    let items = found.iter().map(|approval| view::approval(&app, approval)).collect();
    Ok(answer(StatusCode::OK, &wire::ApprovalPage { items, next_cursor }))
}

/// Get an approval
///
/// What would change, the exact text that is hashed, and the calls that allow it. The commit token, as a bearer, is
/// permission enough.
#[utoipa::path(get, path = "/approvals/{approval_id}", tag = "approvals",
    params(("approval_id" = String, Path, description = "Its id.")),
    responses((status = 200, description = "The approval", body = wire::ApprovalDetail)))]
pub async fn approval_get(State(app): State<App>, reader: Reader) -> Result<Response> {
    Ok(answer(StatusCode::OK, &view::approval_detail(&app, &reader.approval).await?))
}

/// Commit an approval
///
/// Carries out what waits, once the contract allows it. The commit token, as a bearer, is permission enough, and used up by
/// success alone.
#[utoipa::path(post, path = "/approvals/{approval_id}/commit", tag = "approvals",
    params(("approval_id" = String, Path, description = "Its id.")), request_body = ApprovalCommit,
    responses((status = 202, description = "Accepted", body = wire::Accepted)))]
pub async fn approval_commit(
    State(app): State<App>,
    reader: Reader,
    params: Params,
    Body(body): Body,
) -> Result<Answer> {
    params.only(&[])?;
    let asked = ApprovalCommit::from_json(&body).map_err(Error::Invalid)?;
    let approval = &reader.approval;
    let (author, named) = match &reader.caller {
        Some(caller) => (caller.author()?, Named::Id),
        None => (approval::token_author(approval, reader.request_id), Named::Token),
    };
    let receipt = reader.key.map(|key| Receipt::new(key, |done: &Committed| Ok(accepted(done))));
    let done =
        approval::commit_as_asked(&app, approval, named, asked.transaction_hash, author, receipt).await?;
    Ok(accepted(&done))
}

fn accepted(done: &Committed) -> Answer {
    let body = match done {
        Committed::Update(accepted) => super::cvms::update::in_progress("Update", accepted),
        Committed::Replica(created) => wire::Accepted::new(
            created.op.expect("a replica is new"),
            format!("Replica {} accepted", created.cvm.name),
        ),
    };
    json(StatusCode::ACCEPTED, &body)
}

/// Call an approval off
///
/// Its token is void from then on. Nothing is asked of the contract.
#[utoipa::path(post, path = "/approvals/{approval_id}/cancel", tag = "approvals",
    params(("approval_id" = String, Path, description = "Its id.")),
    responses((status = 200, description = "The approval, `cancelled`", body = wire::Approval)))]
pub async fn approval_cancel(
    State(app): State<App>,
    caller: Caller,
    Path(named): Path<String>,
    params: Params,
    Body(_): Body,
) -> Result<Answer> {
    params.only(&[])?;
    let author = caller.author()?;
    let found = find(&app, &caller, &named)?;
    let receipt = shown(&app, &caller);
    let changed = app.store.approval_cancel(found.id, author, app.clock.now(), receipt).await;
    show(&app, &changed.map_err(closed)?)
}

/// Switch auto-commit on or off
///
/// With it the server looks at the contract itself, and commits once hash and device are allowed: in the name of the key that
/// switched it on, as long as that key may change the CVM.
#[utoipa::path(post, path = "/approvals/{approval_id}/auto-commit", tag = "approvals",
    params(("approval_id" = String, Path, description = "Its id.")), request_body = AutoCommit,
    responses((status = 200, description = "The approval", body = wire::Approval)))]
pub async fn approval_auto_commit(
    State(app): State<App>,
    caller: Caller,
    Path(named): Path<String>,
    params: Params,
    Body(body): Body,
) -> Result<Answer> {
    params.only(&[])?;
    let author: Author = caller.author()?;
    let AutoCommit { enabled } = AutoCommit::from_json(&body).map_err(Error::Invalid)?;
    let found = find(&app, &caller, &named)?;
    let by = AutoBy { user_id: caller.actor.user_id, key_id: caller.actor.key_id };
    let auto = if enabled { Auto::On(by) } else { Auto::Off };
    let receipt = shown(&app, &caller);
    let changed = app.store.approval_auto(found.id, auto, Some(author), app.clock.now(), receipt).await;
    show(&app, &changed.map_err(closed)?)
}

fn shown(app: &App, caller: &Caller) -> Option<Receipt<Approval>> {
    let app = app.clone();
    caller.receipt(move |approval| show(&app, approval))
}

fn show(app: &App, approval: &Approval) -> Result<Answer> {
    Ok(json(StatusCode::OK, &view::approval(app, approval)))
}

fn closed(error: store::Error) -> Error {
    match error {
        store::Error::ApprovalClosed => Error::Conflict {
            code: Some(casemate_types::error::codes::INVALID_REQUEST),
            message: "the approval is no longer open".into(),
        },
        other => other.into(),
    }
}
