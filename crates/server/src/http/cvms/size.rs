//! `PATCH /cvms/{id}/resources` and `/os-image`: a new size, another OS image.

use axum::extract::State;
use axum::http::HeaderMap;
use casemate_types::ids::CvmUid;
use casemate_types::patch::{OsImageUpdate, ResourcesUpdate};
use casemate_types::wire;

use super::update::{self, Intent, accepted_with_cvm};
use crate::app::App;
use crate::cvm::plan::Wish;
use crate::error::{Error, Result};
use crate::http::extract::{Body, On, Params};
use crate::store::Answer;
use crate::workflow::operation::Kind;

/// Resize a CVM
///
/// Changes the fields that are there and restarts the machine once. Memory is in MB, the disk in GB; a disk only grows.
#[utoipa::path(patch, path = "/cvms/{id}/resources", tag = "updates", params(("id" = CvmUid, Path)),
    request_body = ResourcesUpdate,
    responses((status = 200, description = "With `dry_run`: what would be done", body = wire::DryRun),
        (status = 202, description = "Accepted, with the CVM as it will be", body = wire::AcceptedCvm)))]
pub async fn cvm_resources(
    State(app): State<App>,
    on: On,
    params: Params,
    headers: HeaderMap,
    Body(body): Body,
) -> Result<Answer> {
    let intent = Intent::read(params, &headers, &body)?;
    let asked = ResourcesUpdate::from_json(&body).map_err(Error::Invalid)?;
    let wish = Wish { patch: asked.into(), ..Wish::default() };
    update::carry_out(&app, on, &headers, Kind::Update, wish, intent, accepted_with_cvm("Resize")).await
}

/// Change the OS image
///
/// Takes a name or a slug and restarts the machine with that image.
#[utoipa::path(patch, path = "/cvms/{id}/os-image", tag = "updates", params(("id" = CvmUid, Path)),
    request_body = OsImageUpdate,
    responses((status = 200, description = "With `dry_run`: what would be done", body = wire::DryRun),
        (status = 202, description = "Accepted, with the CVM as it will be", body = wire::AcceptedCvm)))]
pub async fn cvm_os_image(
    State(app): State<App>,
    on: On,
    params: Params,
    headers: HeaderMap,
    Body(body): Body,
) -> Result<Answer> {
    let intent = Intent::read(params, &headers, &body)?;
    let asked = OsImageUpdate::from_json(&body).map_err(Error::Invalid)?;
    let wish = Wish { patch: asked.into(), ..Wish::default() };
    update::carry_out(&app, on, &headers, Kind::Update, wish, intent, accepted_with_cvm("OS image update"))
        .await
}
