//! Who the caller is, and the caller's workspace.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use casemate_types::wire;
use serde::Serialize;

use super::error::answer;
use super::extract::Caller;
use crate::app::App;
use crate::error::{Error, Resource, Result};
use crate::store::Account;

/// What a workspace pays for: nothing is ever charged here.
pub const TIER: &str = "self-hosted";

#[derive(Serialize, utoipa::ToSchema)]
#[serde(untagged)]
enum MeAnswer {
    /// From 2026-01-21 on.
    Nested(wire::Me),
    /// Before.
    Flat(wire::MeFlat),
}

/// Get the caller
///
/// The user behind the key and the one workspace that the key is for.
#[utoipa::path(get, path = "/auth/me", tag = "account",
    responses((status = 200, description = "The caller", body = MeAnswer)))]
pub async fn me(State(app): State<App>, caller: Caller) -> Result<Response> {
    let account = app.store.account(caller.actor.workspace_id)?;
    let me = match caller.version.has_cvm_objects() {
        true => MeAnswer::Nested(nested(account)),
        false => MeAnswer::Flat(wire::MeFlat {
            username: account.username,
            email: account.email,
            credits: 0.0,
            granted_credits: 0.0,
            avatar: String::new(),
            team_name: account.workspace,
            team_tier: TIER.to_owned(),
        }),
    };
    Ok(answer(StatusCode::OK, &me))
}

/// Get the caller, by an older path
#[utoipa::path(get, path = "/users/me", tag = "account",
    responses((status = 200, description = "The caller", body = MeAnswer)))]
pub async fn users_me(app: State<App>, caller: Caller) -> Result<Response> {
    me(app, caller).await
}

fn nested(account: Account) -> wire::Me {
    wire::Me {
        user: wire::MeUser {
            username: account.username,
            email: account.email,
            role: "user".to_owned(),
            avatar: String::new(),
            email_verified: false,
            totp_enabled: false,
            has_backup_codes: false,
            flag_has_password: false,
        },
        workspace: wire::MeWorkspace {
            id: account.workspace_uid,
            name: account.workspace,
            slug: Some(account.slug),
            tier: TIER.to_owned(),
            role: "owner".to_owned(),
            avatar: None,
        },
        credits: wire::MeCredits {
            balance: "0".to_owned(),
            granted_balance: "0".to_owned(),
            is_post_paid: false,
            outstanding_amount: None,
        },
    }
}

fn workspace(account: Account) -> wire::Workspace {
    wire::Workspace {
        id: account.workspace_uid,
        name: account.workspace,
        slug: Some(account.slug),
        tier: TIER.to_owned(),
        role: "owner".to_owned(),
        is_default: true,
        created_at: account.created_at,
    }
}

/// The caller's workspace, if that is what `slug` names.
///
/// # Errors
/// `NotFound`.
pub fn workspace_of(app: &App, caller: &Caller, slug: &str) -> Result<Account> {
    let account = app.store.account(caller.actor.workspace_id)?;
    match account.slug == slug || account.workspace_uid == slug {
        true => Ok(account),
        false => Err(Error::NotFound { what: Resource::Workspace }),
    }
}

/// List workspaces
///
/// The one workspace that the key is for.
#[utoipa::path(get, path = "/workspaces", tag = "account",
    responses((status = 200, description = "The workspaces", body = wire::Workspaces)))]
pub async fn workspace_list(State(app): State<App>, caller: Caller) -> Result<Response> {
    let account = app.store.account(caller.actor.workspace_id)?;
    let pagination = wire::Pagination { has_more: false, next_cursor: None, total: Some(1) };
    Ok(answer(StatusCode::OK, &wire::Workspaces { data: vec![workspace(account)], pagination }))
}

/// Get a workspace
#[utoipa::path(get, path = "/workspaces/{slug}", tag = "account",
    params(("slug" = String, Path, description = "The workspace's name in addresses.")),
    responses((status = 200, description = "The workspace", body = wire::Workspace)))]
pub async fn workspace_get(
    State(app): State<App>,
    caller: Caller,
    Path(slug): Path<String>,
) -> Result<Response> {
    Ok(answer(StatusCode::OK, &workspace(workspace_of(&app, &caller, &slug)?)))
}
