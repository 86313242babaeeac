//! `PATCH /cvms/{id}/visibility`, `/listed` and `/name`: who may see what, and what the CVM is called.

use axum::extract::State;
use axum::http::HeaderMap;
use casemate_types::error::codes;
use casemate_types::ids::CvmUid;
use casemate_types::patch::{CvmPatch, ListedUpdate, NameUpdate, VisibilityUpdate};
use casemate_types::wire;

use super::update::{self, Intent, VmOrPlan, target_cvm};
use crate::app::App;
use crate::cvm::plan::Wish;
use crate::error::{Error, Result};
use crate::http::answer::nothing;
use crate::http::extract::{Body, On, Params};
use crate::store::Answer;
use crate::workflow::operation::Kind;

/// Change who may see what
///
/// Absent fields stay as they are. `listed` alone changes without a restart; the others are part of what is measured and
/// restart the machine.
#[utoipa::path(patch, path = "/cvms/{id}/visibility", tag = "updates", params(("id" = CvmUid, Path)),
    request_body = VisibilityUpdate, responses((status = 200, description = "The CVM as it will be", body = VmOrPlan)))]
pub async fn cvm_visibility(
    State(app): State<App>,
    on: On,
    params: Params,
    headers: HeaderMap,
    Body(body): Body,
) -> Result<Answer> {
    let intent = Intent::read(params, &headers, &body)?;
    let asked = VisibilityUpdate::from_json(&body).map_err(Error::Invalid)?;
    let wish = Wish { patch: asked.into(), ..Wish::default() };
    update::carry_out(&app, on, &headers, Kind::Update, wish, intent, target_cvm).await
}

/// List a CVM in the public directory, or not
///
/// Changes a record only; the machine goes on.
#[utoipa::path(patch, path = "/cvms/{id}/listed", tag = "updates", params(("id" = CvmUid, Path)),
    request_body = ListedUpdate, responses((status = 200, description = "The CVM", body = VmOrPlan)))]
pub async fn cvm_listed(
    State(app): State<App>,
    on: On,
    params: Params,
    headers: HeaderMap,
    Body(body): Body,
) -> Result<Answer> {
    let intent = Intent::read(params, &headers, &body)?;
    let asked = ListedUpdate::from_json(&body).map_err(Error::Invalid)?;
    let patch = CvmPatch { listed: asked.listed.into(), ..update::options(&body)? };
    let wish = Wish { patch, ..Wish::default() };
    update::carry_out(&app, on, &headers, Kind::Update, wish, intent, target_cvm).await
}

/// Rename a CVM
///
/// Changes a record only; the machine goes on. Names are unique in a workspace.
#[utoipa::path(patch, path = "/cvms/{id}/name", tag = "updates", params(("id" = CvmUid, Path)),
    request_body = NameUpdate, responses((status = 200, description = "With `dry_run`: what would be done", body = wire::DryRun),
        (status = 204, description = "Renamed")))]
pub async fn cvm_name(
    State(app): State<App>,
    on: On,
    params: Params,
    headers: HeaderMap,
    Body(body): Body,
) -> Result<Answer> {
    let intent = Intent::read(params, &headers, &body)?;
    let NameUpdate { name } = NameUpdate::from_json(&body).map_err(Error::Invalid)?;
    let patch = CvmPatch { name: name.clone().into(), ..update::options(&body)? };
    let wish = Wish { patch, ..Wish::default() };
    let outcome =
        update::carry_out(&app, on, &headers, Kind::Update, wish, intent, |_, _, _| Ok(nothing())).await;
    outcome.map_err(|error| match error {
        // Clients of this route look for these words, in this form.
        Error::Conflict { code: Some(codes::DUPLICATE_CVM_NAME), .. } => {
            let message = format!("CVM name \"{name}\" is already in use in this workspace");
            Error::Rejected { code: None, field: None, message }
        }
        other => other,
    })
}
