//! `PATCH /cvms/{id}`: any fields, all in one.

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use casemate_types::patch::CvmPatch;
use casemate_types::wire;

use super::update::{self, Intent};
use crate::app::App;
use crate::cvm::plan::Wish;
use crate::error::{Error, Result};
use crate::http::answer::json;
use crate::http::extract::{Body, On, Params};
use crate::store::Answer;
use crate::workflow::operation::Kind;

/// Update a CVM
///
/// Changes the fields that are there, all together, with one restart; absent fields stay as they are. Answers as soon as the
/// update is stored; an operation, named by `correlation_id`, carries it out. `listed` alone changes without a restart.
#[utoipa::path(patch, path = "/cvms/{id}", tag = "updates", request_body = CvmPatch,
    responses((status = 200, description = "With `dry_run`: what would be done", body = wire::DryRun),
        (status = 202, description = "Accepted", body = wire::Accepted)))]
pub async fn cvm_patch(
    State(app): State<App>,
    on: On,
    params: Params,
    headers: HeaderMap,
    Body(body): Body,
) -> Result<Answer> {
    let intent = Intent::read(params, &headers, &body)?;
    let patch = CvmPatch::from_json(&body).map_err(Error::Invalid)?;
    if patch == CvmPatch::default() && matches!(intent, Intent::Apply | Intent::DryRun) {
        let message = "nothing to update: the body names no field that can be changed";
        return Err(Error::Rejected { code: None, field: None, message: message.into() });
    }
    let wish = Wish { patch, ..Wish::default() };
    update::carry_out(&app, on, &headers, Kind::Update, wish, intent, |_, _, accepted| {
        let body =
            wire::Accepted { requires_on_chain_hash: Some(false), ..update::in_progress("Update", accepted) };
        Ok(json(StatusCode::ACCEPTED, &body))
    })
    .await
}
