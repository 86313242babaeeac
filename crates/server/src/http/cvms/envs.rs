//! `PATCH /cvms/{id}/envs`: a new sealed environment.

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use casemate_types::ids::CvmUid;
use casemate_types::patch::EnvsUpdate;
use casemate_types::wire;

use super::update::{self, Intent, in_progress};
use crate::app::App;
use crate::cvm::plan::Wish;
use crate::error::{Error, Result};
use crate::http::answer::json;
use crate::http::extract::{Body, On, Params};
use crate::store::Answer;
use crate::workflow::operation::Kind;

/// Replace the environment
///
/// Takes ciphertext that only the guest can open; it replaces the old one completely. `env_keys` that differ from the
/// variables that may reach the app change the compose hash.
#[utoipa::path(patch, path = "/cvms/{id}/envs", tag = "updates", params(("id" = CvmUid, Path)), request_body = EnvsUpdate,
    responses((status = 200, description = "With `dry_run`: what would be done", body = wire::DryRun),
        (status = 202, description = "Accepted", body = wire::Accepted)))]
pub async fn cvm_envs(
    State(app): State<App>,
    on: On,
    params: Params,
    headers: HeaderMap,
    Body(body): Body,
) -> Result<Answer> {
    let intent = Intent::read(params, &headers, &body)?;
    let asked = EnvsUpdate::from_json(&body).map_err(Error::Invalid)?;
    let wish = Wish { patch: asked.into(), ..Wish::default() };
    update::carry_out(&app, on, &headers, Kind::Update, wish, intent, |_, _, accepted| {
        let changed = accepted.operation.diff.iter().any(|change| change.field == "allowed_envs");
        let body = wire::Accepted {
            allowed_envs_changed: Some(changed),
            ..in_progress("Environment update", accepted)
        };
        Ok(json(StatusCode::ACCEPTED, &body))
    })
    .await
}
