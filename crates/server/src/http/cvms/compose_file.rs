//! A new compose document in two calls, so that its hash is known, and can be registered, before it runs. Or in one, by whoever
//! knows the hash.

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use casemate_types::compose::ComposeDoc;
use casemate_types::error::codes;
use casemate_types::ids::CvmUid;
use casemate_types::patch::{ComposeCommit, ComposeProvision, CvmPatch};
use casemate_types::wire;
use serde_json::{Map, Value};

use super::update::{self, Intent, in_progress};
use crate::app::App;
use crate::cvm::plan::{Plan, Wish};
use crate::cvm::spec::Compose;
use crate::error::{Error, Resource, Result};
use crate::http::answer::json;
use crate::http::extract::{Body, On, Params};
use crate::http::view;
use crate::store::{self, Answer, Provision};
use crate::workflow::operation::Kind;
use crate::workflow::update::{check_env_keys, plan};
use crate::workflow::{approval, onchain};

/// Prepare a compose document
///
/// Checks the document and fixes its hash. Fields that it does not have stay as they are. Nothing restarts; committing the
/// hash, within seven days, runs it.
#[utoipa::path(post, path = "/cvms/{id}/compose_file/provision", tag = "updates", params(("id" = CvmUid, Path)),
    request_body = ComposeProvision,
    responses((status = 200, description = "The hash to commit", body = wire::ComposeProvisionAnswer)))]
pub async fn compose_file_provision(
    State(app): State<App>,
    on: On,
    params: Params,
    Body(body): Body,
) -> Result<Answer> {
    params.only(&[])?;
    on.caller.author()?;
    let asked = ComposeProvision::from_json(&body).map_err(Error::Invalid)?;
    let current = app.store.spec(on.cvm.id, on.cvm.revision)?;
    let document = merged(&current.compose, asked.app_compose)?;
    let wish = Wish { document: Some(document.clone()), ..Wish::default() };
    let (compose_hash, warnings) = match plan(&app, &on.cvm, on.cvm.revision, &wish)? {
        Plan::Steps(steps) => (steps.spec.compose.hash, steps.warnings),
        Plan::Nothing | Plan::Records { .. } => (current.compose.hash, Vec::new()),
    };
    let node = app.node(on.cvm.node_id).ok_or(Error::NotFound { what: Resource::Node })?;
    let contract_owned = onchain::contract(&app, &on.cvm.kms)?.is_some();
    let registered = match contract_owned {
        true => approval::onchain_status(&app, &on.cvm, compose_hash).await,
        false => None,
    };
    let answer = wire::ComposeProvisionAnswer {
        app_id: Some(on.cvm.app_id),
        device_id: Some(node.facts().device_id.clone()),
        compose_hash,
        kms_info: contract_owned.then(|| view::kms_info(&app, &on.cvm.kms)),
        compose_hash_registered: registered.is_some_and(|status| status.compose_hash_allowed),
        compose_unchanged: compose_hash == current.compose.hash,
        warnings,
    };
    let answer = json(StatusCode::OK, &answer);
    let provision = Provision {
        workspace_id: on.cvm.workspace_id,
        cvm_id: Some(on.cvm.id),
        app_id: on.cvm.app_id,
        compose_hash,
        content: document.to_json(),
        expires_at: app.clock.now() + app.config.provision_life,
    };
    let receipt = {
        let answer = answer.clone();
        on.caller.receipt(move |()| Ok(answer.clone()))
    };
    app.store.provision_put(provision, receipt).await?;
    Ok(answer)
}

/// Run a prepared compose document
///
/// Takes the hash that preparing it gave. `encrypted_env` replaces the environment; with `update_env_vars`, `env_keys` become
/// the variables that may reach the app, else they have to be among them.
#[utoipa::path(patch, path = "/cvms/{id}/compose_file", tag = "updates", params(("id" = CvmUid, Path)),
    request_body = ComposeCommit, responses((status = 200, description = "With `dry_run`: what would be done", body = wire::DryRun),
        (status = 202, description = "Accepted", body = wire::Accepted)))]
pub async fn compose_file_commit(
    State(app): State<App>,
    on: On,
    params: Params,
    headers: HeaderMap,
    Body(body): Body,
) -> Result<Answer> {
    let params = params.only(&["dry_run"])?;
    let asked = ComposeCommit::from_json(&body).map_err(Error::Invalid)?;
    let cvm = &on.cvm;
    let found =
        app.store.provision(cvm.workspace_id, Some(cvm.id), cvm.app_id, asked.compose_hash, app.clock.now());
    let content = match found {
        Err(store::Error::Missing) => {
            let hash = asked.compose_hash;
            let message =
                format!("no document of this CVM with compose_hash {hash} is prepared, or it has expired");
            return Err(Error::Rejected { code: None, field: None, message });
        }
        other => other?,
    };
    let document = ComposeDoc::parse(&content)
        .map_err(|error| Error::internal("read what was prepared")(error.into()))?;
    commit(app, on, params, headers, &body, asked, document).await
}

/// Run a prepared compose document
///
/// As `PATCH /cvms/{id}/compose_file`.
#[utoipa::path(post, path = "/cvms/{id}/compose_file/commit", tag = "updates", params(("id" = CvmUid, Path),
    ("dry_run" = Option<bool>, Query, description = "Only say what would be done."),
    ("If-Match" = Option<String>, Header, description = "Only if the CVM has this `ETag`.")),
    request_body = ComposeCommit, responses((status = 200, description = "With `dry_run`: what would be done", body = wire::DryRun),
        (status = 202, description = "Accepted", body = wire::Accepted)))]
pub async fn compose_file_commit_post(
    state: State<App>,
    on: On,
    params: Params,
    headers: HeaderMap,
    body: Body,
) -> Result<Answer> {
    compose_file_commit(state, on, params, headers, body).await
}

/// Replace the compose document
///
/// In one call: the document in `compose_file`, and its hash in `compose_hash`, which is compared.
#[utoipa::path(post, path = "/cvms/{id}/compose_file", tag = "updates", params(("id" = CvmUid, Path),
    ("dry_run" = Option<bool>, Query, description = "Only say what would be done."),
    ("If-Match" = Option<String>, Header, description = "Only if the CVM has this `ETag`.")),
    request_body = ComposeCommit, responses((status = 200, description = "With `dry_run`: what would be done", body = wire::DryRun),
        (status = 202, description = "Accepted", body = wire::Accepted)))]
pub async fn compose_file_replace(
    State(app): State<App>,
    on: On,
    params: Params,
    headers: HeaderMap,
    Body(body): Body,
) -> Result<Answer> {
    let params = params.only(&["dry_run"])?;
    let asked = ComposeCommit::from_json(&body).map_err(Error::Invalid)?;
    let Some(sent @ Value::Object(_)) = body.get("compose_file").cloned() else {
        return Err(Error::invalid("compose_file", "required: the app-compose document, a JSON object"));
    };
    let sent = ComposeProvision::from_json(&Map::from_iter([("app_compose".to_owned(), sent)]));
    let current = app.store.spec(on.cvm.id, on.cvm.revision)?;
    let document = merged(&current.compose, sent.map_err(Error::Invalid)?.app_compose)?;
    let hash = Compose::new(&document).hash;
    if hash != asked.compose_hash {
        let message = format!("the document has hash {hash}, and compose_hash is {}", asked.compose_hash);
        return Err(Error::Rejected { code: None, field: None, message });
    }
    commit(app, on, params, headers, &body, asked, document).await
}

async fn commit(
    app: App,
    on: On,
    params: Params,
    headers: HeaderMap,
    body: &Map<String, Value>,
    asked: ComposeCommit,
    document: ComposeDoc,
) -> Result<Answer> {
    let intent = match params.flag("dry_run")?.unwrap_or(false) {
        true => Intent::DryRun,
        false => Intent::CommitRegistered(asked.transaction_hash),
    };
    let mut patch = CvmPatch { encrypted_env: asked.encrypted_env.into(), ..update::options(body)? };
    match asked.update_env_vars {
        Some(true) => patch.allowed_envs = asked.env_keys.into(),
        Some(false) | None => check_env_keys(&document, asked.env_keys.as_deref())?,
    }
    let wish = Wish { patch, document: Some(document), ..Wish::default() };
    update::carry_out(&app, on, &headers, Kind::Update, wish, intent, |app, _, accepted| {
        let body = wire::Accepted {
            compose_hash: Some(accepted.outline(app)?.compose.hash),
            ..in_progress("Compose update", accepted)
        };
        Ok(json(StatusCode::ACCEPTED, &body))
    })
    .await
}

/// The current document with the fields that were sent. A field that is `null` was not sent.
fn merged(current: &Compose, mut sent: ComposeDoc) -> Result<ComposeDoc> {
    let mut document = current.parsed();
    // The old name counts where the new one is not used.
    sent.rename_tproxy();
    let mut fields = sent.into_map();
    fields.retain(|_, value| !value.is_null());
    if fields.is_empty() {
        let message = "nothing was sent; the document needs at least one field";
        return Err(Error::rejected(codes::COMPOSE_FILE_REQUIRED, "app_compose", message));
    }
    for (key, value) in fields {
        document.set(&key, value);
    }
    Ok(document)
}
