//! More CVMs of an app: `POST /cvms/{id}/replicas`, its commit, and `POST /apps/{app_id}/instances`, which is both.

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use casemate_types::ids::CvmUid;
use casemate_types::patch::{CommitUpdate, CvmReplicate};
use casemate_types::version::ApiVersion;
use casemate_types::wire;
use serde_json::{Map, Value};

use super::update::{approval_needed, kept, said};
use crate::app::App;
use crate::cvm::state::Cvm;
use crate::error::{Error, Resource, Result};
use crate::http::answer::json;
use crate::http::approvals::{Peer, of_token};
use crate::http::extract::{Body, Caller, On, Params};
use crate::http::{apps, view};
use crate::store::{Answer, Purpose, Receipt};
use crate::workflow::approval;
use crate::workflow::commit_token::{self, Named};
use crate::workflow::create::Created;
use crate::workflow::replica::{self, Outcome, Replicate};

/// How a route answers.
#[derive(Clone, Copy, Debug)]
enum Form {
    /// 200 with the record of creations, in every version.
    Vm,
    /// 201 with that, and from 2026-01-21 on with what a CVM is shown as: clients of this route differ in what they read.
    Both,
}

/// Make a replica
///
/// Another CVM of the app, like this one. Where a contract does not allow its hash or its device yet, the answer is 465 with a
/// commit token; with `X-Prepare-Only: true` always.
#[utoipa::path(post, path = "/cvms/{id}/replicas", tag = "cvms", params(("id" = CvmUid, Path)),
    request_body = CvmReplicate, responses((status = 200, description = "The CVM, `creating`", body = wire::Vm)))]
pub async fn cvm_replicate(
    State(app): State<App>,
    on: On,
    params: Params,
    headers: HeaderMap,
    Body(body): Body,
) -> Result<Answer> {
    params.only(&[])?;
    let route = format!("/cvms/{}/commit-replica", on.cvm.vm_uuid.0.simple());
    replicate(&app, &on.caller, &on.cvm, route, &headers, &body, Form::Vm).await
}

/// Make a replica
///
/// As `POST /cvms/{id}/replicas`.
#[utoipa::path(post, path = "/apps/{app_id}/cvms/{vm_uuid}/replicas", tag = "cvms",
    params(("app_id" = String, Path, description = "The app id, bare or after `app_` or `0x`."),
        ("vm_uuid" = String, Path, description = "The machine that it is like.")),
    request_body = CvmReplicate, responses((status = 200, description = "The CVM, `creating`", body = wire::Vm)))]
pub async fn app_cvm_replicate(
    State(app): State<App>,
    caller: Caller,
    Path((named, machine)): Path<(String, String)>,
    params: Params,
    headers: HeaderMap,
    Body(body): Body,
) -> Result<Answer> {
    params.only(&[])?;
    caller.author()?;
    let row = apps::find(&app, &caller, &named)?;
    let cvms = apps::cvms(&app, &row)?;
    let source = machine.parse().ok().and_then(|uuid| cvms.into_iter().find(|cvm| cvm.vm_uuid == uuid));
    let source = source.ok_or(Error::NotFound { what: Resource::Cvm })?;
    let route = format!("/cvms/{}/commit-replica", source.vm_uuid.0.simple());
    replicate(&app, &caller, &source, route, &headers, &body, Form::Vm).await
}

async fn replicate(
    app: &App,
    caller: &Caller,
    source: &Cvm,
    commit_route: String,
    headers: &HeaderMap,
    body: &Map<String, Value>,
    form: Form,
) -> Result<Answer> {
    let how = Replicate {
        asked: CvmReplicate::from_json(body).map_err(Error::Invalid)?,
        prepare_only: said(headers, "x-prepare-only"),
        auto_commit: said(headers, "x-auto-commit"),
        commit_route,
        author: caller.author()?,
    };
    let render = {
        let (app, version) = (app.clone(), caller.version);
        move |outcome: &Outcome| match outcome {
            Outcome::Created(created) => record(&app, version, form, created),
            Outcome::NeedsApproval(ask) => Ok(approval_needed(ask)),
        }
    };
    let receipt = {
        let render = render.clone();
        caller.receipt(move |outcome| render(outcome).map(kept))
    };
    render(&replica::replicate(app, source, how, receipt).await?)
}

/// Commit a prepared replica
///
/// With the token that preparing it gave.
#[utoipa::path(post, path = "/cvms/{id}/commit-replica", tag = "approvals", params(("id" = CvmUid, Path)),
    request_body = CommitUpdate, responses((status = 200, description = "The CVM, `creating`", body = wire::Vm)))]
pub async fn cvm_commit_replica(
    State(app): State<App>,
    on: On,
    params: Params,
    peer: Peer,
    Body(body): Body,
) -> Result<Answer> {
    params.only(&[])?;
    let asked = CommitUpdate::from_json(&body).map_err(Error::Invalid)?;
    commit(&app, &on.caller, &peer, asked, |source| source.id == on.cvm.id, Form::Vm).await
}

/// Make an instance of an app
///
/// Another CVM of the app, like its newest one. With a `token` it commits one that was prepared.
#[utoipa::path(post, path = "/apps/{app_id}/instances", tag = "apps",
    params(("app_id" = String, Path, description = "The app id, bare or after `app_` or `0x`.")),
    request_body = CvmReplicate, responses((status = 201, description = "The CVM, `creating`", body = wire::Vm)))]
pub async fn app_instance_create(
    State(app): State<App>,
    caller: Caller,
    Path(named): Path<String>,
    params: Params,
    headers: HeaderMap,
    peer: Peer,
    Body(body): Body,
) -> Result<Answer> {
    params.only(&[])?;
    caller.author()?;
    let row = apps::find(&app, &caller, &named)?;
    if body.get("token").is_some_and(|token| !token.is_null() && token != "") {
        let asked = CommitUpdate::from_json(&body).map_err(Error::Invalid)?;
        let of_app = |source: &Cvm| source.app == row.id;
        return commit(&app, &caller, &peer, asked, of_app, Form::Both).await;
    }
    let source = apps::cvms(&app, &row)?.into_iter().next();
    let source = source.ok_or(Error::NotFound { what: Resource::App })?;
    let route = format!("/apps/{}/instances", row.app_id);
    replicate(&app, &caller, &source, route, &headers, &body, Form::Both).await
}

async fn commit(
    app: &App,
    caller: &Caller,
    peer: &Peer,
    asked: CommitUpdate,
    is_meant: impl Fn(&Cvm) -> bool,
    form: Form,
) -> Result<Answer> {
    let author = caller.author()?;
    let found = of_token(app, peer, &asked.token)?;
    let source = approval::cvm_of(app, &found)?;
    if found.purpose != Purpose::Replica
        || source.workspace_id != caller.actor.workspace_id
        || !is_meant(&source)
    {
        return Err(commit_token::refused("it makes no replica of this"));
    }
    if asked.compose_hash.is_some_and(|hash| hash != found.compose_hash) {
        return Err(commit_token::refused("it belongs to another compose hash"));
    }
    let render = {
        let (app, version) = (app.clone(), caller.version);
        move |created: &Created| record(&app, version, form, created)
    };
    let receipt: Option<Receipt<Created>> = caller.receipt(render.clone());
    let created =
        replica::commit(app, &source, &found, Named::Token, asked.transaction_hash, author, receipt).await?;
    render(&created)
}

fn record(app: &App, version: ApiVersion, form: Form, created: &Created) -> Result<Answer> {
    let vm = view::vm_created(app, created, version)?;
    let status = match form {
        Form::Vm => StatusCode::OK,
        Form::Both => StatusCode::CREATED,
    };
    if matches!(form, Form::Vm) || version < ApiVersion::V20260121 {
        return Ok(json(status, &vm));
    }
    let fields = |value: Value| match value {
        Value::Object(map) => map,
        _ => Map::new(),
    };
    let value = |value: serde_json::Result<Value>| fields(value.expect("wire types have string keys"));
    let mut all =
        value(serde_json::to_value(view::cvm(app, &created.cvm, &created.spec, view::Detail::Item)?));
    // What both have is as the older form has it: an id that is a number, where versions have numbers.
    all.extend(value(serde_json::to_value(&vm)));
    Ok(json(status, &all))
}
