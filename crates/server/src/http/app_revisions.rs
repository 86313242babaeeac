//! Revisions of an app's CVMs.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use casemate_types::wire;
use serde_json::Value;

use super::apps;
use super::error::answer;
use super::extract::{Caller, Params};
use super::page::Wanted;
use super::view::{self, Shown};
use crate::app::App;
use crate::error::{Error, Resource, Result};
use crate::store::{Account, AppRevisionInfo, AppRow};

/// Most revisions on a page.
const MOST: u64 = 1000;

fn id(cvm_id: i64, number: u64) -> String {
    format!("rev_{cvm_id}_{number}")
}

fn read_id(text: &str) -> Option<(i64, u64)> {
    let (cvm_id, number) = text.strip_prefix("rev_")?.split_once('_')?;
    Some((cvm_id.parse().ok()?, number.parse().ok()?))
}

fn shown(of: &AppRow, account: &Account, info: AppRevisionInfo) -> wire::AppRevision {
    let user = view::user_ref(account);
    let AppRevisionInfo { cvm_id, cvm, vm_uuid, name, revision } = info;
    wire::AppRevision {
        revision_id: id(cvm_id, revision.number),
        app_id: of.app_id,
        vm_uuid,
        compose_hash: revision.compose_hash,
        created_at: revision.created_at,
        operation_type: revision.cause,
        trace_id: Some(revision.op.to_string()),
        triggered_by: revision.username.map(|name| wire::UserRef { username: Some(name), ..user }),
        cvm: Some(wire::CvmMention {
            object_type: wire::CvmType::It,
            id: Some(cvm),
            name: Some(name),
            app_id: Some(of.app_id),
            vm_uuid: Some(vm_uuid),
        }),
        workspace: Some(view::workspace_ref(account)),
    }
}

/// List revisions of an app
///
/// Every configuration that the app's CVMs have had, newest first, one page.
#[utoipa::path(get, path = "/apps/{app_id}/revisions", tag = "apps",
    params(
        ("app_id" = String, Path, description = "The app id, bare or after `app_` or `0x`."),
        ("page" = Option<u64>, Query, description = "Which page, from 1.", minimum = 1),
        ("page_size" = Option<u64>, Query, description = "How many on a page; 30 unless given.", minimum = 1, maximum = 1000),
    ),
    responses((status = 200, description = "The page", body = wire::AppRevisionPage)))]
pub async fn app_revisions(
    State(app): State<App>,
    caller: Caller,
    Path(named): Path<String>,
    params: Params,
) -> Result<Response> {
    let of = apps::find(&app, &caller, &named)?;
    let wanted = Wanted::read(&params, MOST)?;
    let account = app.store.account(caller.actor.workspace_id)?;
    let (revisions, total) = app.store.app_revisions(of.id, None, wanted.offset(), wanted.size)?;
    let page = wire::AppRevisionPage {
        revisions: revisions.into_iter().map(|info| shown(&of, &account, info)).collect(),
        total,
        page: wanted.page,
        page_size: wanted.size,
        total_pages: total.div_ceil(wanted.size),
    };
    Ok(answer(StatusCode::OK, &page))
}

/// Get a revision of an app
///
/// With the document, the sealed environment and the user config that belong to it.
#[utoipa::path(get, path = "/apps/{app_id}/revisions/{revision_id}", tag = "apps",
    params(
        ("app_id" = String, Path, description = "The app id, bare or after `app_` or `0x`."),
        ("revision_id" = String, Path, description = "The revision's id."),
        ("raw_compose_file" = Option<bool>, Query, description = "The text that is hashed, instead of the document."),
    ),
    responses((status = 200, description = "The revision", body = wire::AppRevisionDetail)))]
pub async fn app_revision_get(
    State(app): State<App>,
    caller: Caller,
    Path((named, revision)): Path<(String, String)>,
    params: Params,
) -> Result<Response> {
    const MISSING: Error = Error::NotFound { what: Resource::Revision };
    let of = apps::find(&app, &caller, &named)?;
    let raw = params.flag("raw_compose_file")?.unwrap_or(false);
    let (cvm_id, number) = read_id(&revision).ok_or(MISSING)?;
    let (mut found, _) = app.store.app_revisions(of.id, Some((cvm_id, number)), 0, 1)?;
    let info = found.pop().ok_or(MISSING)?;
    let spec = app.store.spec(cvm_id, number)?;
    let detail = wire::AppRevisionDetail {
        revision: shown(&of, &app.store.account(caller.actor.workspace_id)?, info),
        compose_file: match raw {
            true => Value::String(spec.compose.text.to_string()),
            false => Shown::of(&spec).without_nulls(),
        },
        encrypted_env: spec.sealed_env.as_deref().map(hex::encode).unwrap_or_default(),
        user_config: spec.user_config.as_deref().unwrap_or_default().to_owned(),
    };
    Ok(answer(StatusCode::OK, &detail))
}
