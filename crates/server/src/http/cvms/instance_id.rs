//! Instance ids: read again from the node (`PATCH …/instance-id`, `…/instance-ids`, nothing restarts), or issued anew
//! (`POST …/refresh-instance-id`, `…/refresh-instance-ids`, an operation with a restart).

use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use casemate_types::error::codes;
use casemate_types::ids::{CvmUid, InstanceId, OperationId, VmUuid};
use casemate_types::patch::{CvmPatch, InstanceIdLookup, InstanceIdsLookup, InstanceIdsRefresh};
use casemate_types::version::ApiVersion;
use casemate_types::wire::{
    DryRun, InstanceIdResult, InstanceIdSource, InstanceIdStatus, InstanceIdsResult, NumberOrString,
};

use super::update::{self, Intent};
use crate::app::App;
use crate::auth::Author;
use crate::cvm::plan::{Plan, Wish};
use crate::cvm::state::{Cvm, Status};
use crate::driver;
use crate::error::{Error, Result};
use crate::http::answer::json;
use crate::http::extract::{Body, Caller, On, Params, TheCvm};
use crate::store::{self, Accepted, Answer, CvmFilter};
use crate::workflow::operation::Kind;
use crate::workflow::update as workflow;

/// Read the instance id again
///
/// Asks the node, and stores what it says where nothing is known yet; with `overwrite` in any case. Nothing restarts.
#[utoipa::path(patch, path = "/cvms/{id}/instance-id", tag = "updates", params(("id" = CvmUid, Path)),
    request_body = InstanceIdLookup, responses((status = 200, description = "What was found", body = InstanceIdResult)))]
pub async fn instance_id_look_up(
    State(app): State<App>,
    on: On,
    params: Params,
    Body(body): Body,
) -> Result<Answer> {
    let params = params.only(&["dry_run"])?;
    let author = on.caller.author()?;
    let mut asked = InstanceIdLookup::from_json(&body).map_err(Error::Invalid)?;
    asked.dry_run |= params.flag("dry_run")?.unwrap_or(false);
    let blank = blank(on.caller.version, &on.cvm, &on.named);
    let mut seen = seen(&app, [&on.cvm]).await;
    let seen = seen.remove(&on.cvm.vm_uuid).unwrap_or_else(|| Err(GONE.to_owned()));
    Ok(json(StatusCode::OK, &look_up(&app, &on.cvm, blank, seen, asked, author).await?))
}

/// Read several instance ids again
///
/// As for one, for the CVMs that are named, or for all of the workspace.
#[utoipa::path(patch, path = "/cvms/instance-ids", tag = "updates", request_body = InstanceIdsLookup,
    responses((status = 200, description = "What was found", body = InstanceIdsResult)))]
pub async fn instance_ids_look_up(
    State(app): State<App>,
    caller: Caller,
    params: Params,
    Body(body): Body,
) -> Result<Answer> {
    let params = params.only(&["dry_run"])?;
    let author = caller.author()?;
    let mut asked = InstanceIdsLookup::from_json(&body).map_err(Error::Invalid)?;
    asked.dry_run |= params.flag("dry_run")?.unwrap_or(false);
    let (mut items, cvms, total) = candidates(&app, &caller, &asked)?;
    let mut worth_a_look = Vec::new();
    for (named, cvm) in cvms {
        let skip = if asked.running_only && cvm.status != Status::Running {
            Some("it is not running")
        } else if asked.missing_only && cvm.instance_id.is_some() {
            Some("its instance id is known")
        } else {
            None
        };
        let blank = blank(caller.version, &cvm, &named);
        match skip {
            None => worth_a_look.push((cvm, blank)),
            Some(why) => items.push(InstanceIdResult { reason: Some(why.to_owned()), ..blank }),
        }
    }
    let mut seen = seen(&app, worth_a_look.iter().map(|(cvm, _)| cvm)).await;
    let how = InstanceIdLookup { overwrite: asked.overwrite, dry_run: asked.dry_run };
    for (cvm, blank) in worth_a_look {
        let seen = seen.remove(&cvm.vm_uuid).unwrap_or_else(|| Err(GONE.to_owned()));
        items.push(look_up(&app, &cvm, blank, seen, how, author.clone()).await?);
    }
    Ok(json(StatusCode::OK, &InstanceIdsResult::of(items, total)))
}

/// Issue a new instance id
///
/// The machine restarts with it. The old one is valid until the operation has succeeded, and is not found after that.
#[utoipa::path(post, path = "/cvms/{id}/refresh-instance-id", tag = "updates", params(("id" = CvmUid, Path),
    ("dry_run" = Option<bool>, Query, description = "Only say what would be done."),
    ("If-Match" = Option<String>, Header, description = "Only if the CVM has this `ETag`.")),
    responses((status = 200, description = "The new id, and the operation that brings it", body = IssuedOrPlan)))]
pub async fn instance_id_refresh(
    State(app): State<App>,
    on: On,
    params: Params,
    headers: HeaderMap,
    Body(body): Body,
) -> Result<Answer> {
    let intent = Intent::read(params, &headers, &body)?;
    can_issue(&app, &on.cvm)?;
    let wish = Wish { patch: update::options(&body)?, ..fresh(&app) };
    update::carry_out(&app, on, &headers, Kind::RefreshInstanceId, wish, intent, |app, on, accepted| {
        let blank = blank(on.caller.version, &accepted.cvm, &on.named);
        let new = accepted.outline(app)?.instance_id(&accepted.cvm.app_id);
        Ok(json(StatusCode::OK, &issued(blank, new, accepted.operation.id)))
    })
    .await
}

/// Issue several new instance ids
///
/// One operation for each CVM. One that is unknown or busy is an item that says so, and leaves the others.
#[utoipa::path(post, path = "/cvms/refresh-instance-ids", tag = "updates",
    params(("dry_run" = Option<bool>, Query, description = "Only say what would be done.")), request_body = InstanceIdsRefresh,
    responses((status = 200, description = "The new ids", body = InstanceIdsResult)))]
pub async fn instance_ids_refresh(
    State(app): State<App>,
    caller: Caller,
    params: Params,
    Body(body): Body,
) -> Result<Answer> {
    let params = params.only(&["dry_run"])?;
    let author = caller.author()?;
    let asked = InstanceIdsRefresh::from_json(&body).map_err(Error::Invalid)?;
    let options = update::options(&body)?;
    let mut items = Vec::new();
    let mut planned = Vec::new();
    for named in asked.ids {
        let item = match refresh_plan(&app, &caller, &named, &options) {
            Ok((cvm, plan)) => {
                let new = match &plan {
                    Plan::Steps(steps) => Some(steps.spec.instance_id(&cvm.app_id)),
                    Plan::Nothing | Plan::Records { .. } => None,
                };
                let blank = blank(caller.version, &cvm, &named);
                planned.push((cvm, plan));
                (blank, new)
            }
            Err(error) => (failed(caller.version, &named, error)?, None),
        };
        items.push(item);
    }
    if params.flag("dry_run")?.unwrap_or(false) {
        let items = items.into_iter().map(|(blank, new)| match new {
            Some(_) => {
                InstanceIdResult { reason: Some("it would get a new instance id".to_owned()), ..blank }
            }
            None => blank,
        });
        let items: Vec<_> = items.collect();
        let total = items.len() as u64;
        return Ok(json(StatusCode::OK, &InstanceIdsResult::of(items, total)));
    }
    let render = move |accepted: &Vec<Option<Accepted>>| {
        let mut accepted = accepted.iter();
        let items = items.clone().into_iter().map(|(blank, new)| {
            let Some(new) = new else { return blank };
            match accepted.next() {
                Some(Some(accepted)) => issued(blank, new, accepted.operation.id),
                Some(None) | None => conflict(blank, BUSY),
            }
        });
        let items: Vec<_> = items.collect();
        let total = items.len() as u64;
        Ok(json(StatusCode::OK, &InstanceIdsResult::of(items, total)))
    };
    let receipt = caller.receipt(render.clone());
    let accepted = workflow::accept_each(&app, planned, Kind::RefreshInstanceId, &author, receipt).await?;
    render(&accepted)
}

/// What issuing a new id answers with.
#[derive(utoipa::ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "only its shape is used, in the OpenAPI document")]
enum IssuedOrPlan {
    /// The new id.
    Issued(InstanceIdResult),
    /// With `dry_run`: what would be done.
    DryRun(DryRun),
}

const GONE: &str = "the machine is not on its node";
const BUSY: &str = "another operation is already running for this CVM";

/// A wish for a new instance id, drawn now: the answer knows it, and a repeated step makes no second one.
fn fresh(app: &App) -> Wish {
    Wish { instance_seed: Some(app.clock.random()), ..Wish::default() }
}

fn refresh_plan(app: &App, caller: &Caller, named: &str, options: &CvmPatch) -> Result<(Cvm, Plan)> {
    let TheCvm { cvm, .. } = TheCvm::find(app, &caller.actor, named)?;
    can_issue(app, &cvm)?;
    let plan = workflow::plan(app, &cvm, cvm.revision, &Wish { patch: options.clone(), ..fresh(app) })?;
    Ok((cvm, plan))
}

/// Not every kind of node can: where the disk's key hangs on the id, a new one would lose the data.
fn can_issue(app: &App, cvm: &Cvm) -> Result<()> {
    match app.node(cvm.node_id) {
        Some(node) if !node.driver.abilities().new_instance_id => Err(Error::Conflict {
            code: Some(codes::INCOMPATIBLE_CONFIG),
            message: format!(
                "node {} cannot give a machine a new instance id and keep its data",
                node.facts().name
            ),
        }),
        Some(_) | None => Ok(()),
    }
}

/// What a request about this CVM answers with as long as nothing else is known.
fn blank(version: ApiVersion, cvm: &Cvm, named: &str) -> InstanceIdResult {
    InstanceIdResult {
        cvm_id: match version.has_string_ids() {
            true => cvm.uid.to_string().into(),
            false => cvm.id.into(),
        },
        identifier: named.to_owned(),
        status: InstanceIdStatus::Skipped,
        old_instance_id: cvm.instance_id,
        new_instance_id: cvm.instance_id,
        instance_id: None,
        source: InstanceIdSource::None,
        verified_with_gateway: false,
        reason: None,
        correlation_id: None,
    }
}

fn issued(blank: InstanceIdResult, new: InstanceId, by: OperationId) -> InstanceIdResult {
    InstanceIdResult {
        status: InstanceIdStatus::Updated,
        new_instance_id: Some(new),
        instance_id: Some(new),
        correlation_id: Some(by),
        ..blank
    }
}

fn conflict(blank: InstanceIdResult, reason: &str) -> InstanceIdResult {
    InstanceIdResult { status: InstanceIdStatus::Conflict, reason: Some(reason.to_owned()), ..blank }
}

/// An item for a CVM that cannot be told, or that refuses. What is no fault of the item fails the request.
fn failed(version: ApiVersion, named: &str, error: Error) -> Result<InstanceIdResult> {
    let status = match &error {
        Error::Conflict { .. } => InstanceIdStatus::Conflict,
        Error::NotFound { .. } | Error::Rejected { .. } | Error::Invalid(_) => InstanceIdStatus::Error,
        _ => return Err(error),
    };
    let cvm_id: NumberOrString = match version.has_string_ids() {
        true => named.to_owned().into(),
        false => 0_i64.into(),
    };
    Ok(InstanceIdResult {
        cvm_id,
        identifier: named.to_owned(),
        status,
        old_instance_id: None,
        new_instance_id: None,
        instance_id: None,
        source: InstanceIdSource::None,
        verified_with_gateway: false,
        reason: Some(error.to_string()),
        correlation_id: None,
    })
}

type Named = (String, Cvm);

/// The CVMs that a look-up is about, items for those that cannot be told, and how many fit the request.
fn candidates(
    app: &App,
    caller: &Caller,
    asked: &InstanceIdsLookup,
) -> Result<(Vec<InstanceIdResult>, Vec<Named>, u64)> {
    let limit = asked.limit as usize;
    let Some(ids) = &asked.cvm_ids else {
        let filter = CvmFilter { limit: limit as u64, ..CvmFilter::default() };
        let (cvms, total) = app.store.cvms(caller.actor.workspace_id, &filter)?;
        return Ok((
            Vec::new(),
            cvms.into_iter().map(|cvm| (cvm.name.clone(), Arc::unwrap_or_clone(cvm))).collect(),
            total,
        ));
    };
    let (mut items, mut cvms) = (Vec::new(), Vec::new());
    for named in ids.iter().take(limit) {
        match TheCvm::find(app, &caller.actor, named) {
            Ok(TheCvm { cvm, named }) => cvms.push((named, cvm)),
            Err(error) => items.push(failed(caller.version, named, error)?),
        }
    }
    Ok((items, cvms, ids.len() as u64))
}

/// What the nodes report of these machines: one call for each node.
async fn seen(
    app: &App,
    cvms: impl IntoIterator<Item = &Cvm>,
) -> HashMap<VmUuid, std::result::Result<InstanceId, String>> {
    let mut by_node: HashMap<i64, Vec<VmUuid>> = HashMap::new();
    for cvm in cvms {
        by_node.entry(cvm.node_id).or_default().push(cvm.vm_uuid);
    }
    let mut all = HashMap::new();
    for (node_id, machines) in by_node {
        let answer = match app.node(node_id) {
            Some(node) => node.driver.observe(&machines).await,
            None => Err(driver::Error::Unreachable("the configuration does not name it".into())),
        };
        match answer {
            Ok(seen) => all.extend(seen.into_iter().map(|seen| (seen.vm, Ok(seen.instance_id)))),
            Err(error) => all.extend(machines.into_iter().map(|vm| (vm, Err(error.to_string())))),
        }
    }
    all
}

async fn look_up(
    app: &App,
    cvm: &Cvm,
    blank: InstanceIdResult,
    seen: std::result::Result<InstanceId, String>,
    how: InstanceIdLookup,
    author: Author,
) -> Result<InstanceIdResult> {
    if cvm.open.is_some() {
        return Ok(conflict(blank, BUSY));
    }
    let found = match seen {
        Ok(found) => found,
        Err(reason) => {
            return Ok(InstanceIdResult { status: InstanceIdStatus::Error, reason: Some(reason), ..blank });
        }
    };
    if cvm.instance_id == Some(found) {
        return Ok(InstanceIdResult { status: InstanceIdStatus::Unchanged, ..blank });
    }
    let item = InstanceIdResult {
        status: InstanceIdStatus::Updated,
        new_instance_id: Some(found),
        source: InstanceIdSource::NodeInfo,
        ..blank
    };
    if cvm.instance_id.is_some() && !how.overwrite {
        return Ok(conflict(item, "the node reports another instance id; `overwrite` takes it over"));
    }
    if how.dry_run {
        return Ok(item);
    }
    match app.store.cvm_instance_id(cvm.id, cvm.generation, found, author, app.clock.now()).await {
        Ok(()) => Ok(item),
        Err(store::Error::OperationOpen | store::Error::Changed) => Ok(conflict(item, BUSY)),
        Err(error) => Err(error.into()),
    }
}
