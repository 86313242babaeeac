//! `POST /cvms/{id}/rollback`: an earlier configuration again.

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use casemate_types::ids::CvmUid;
use casemate_types::patch::Rollback;
use casemate_types::wire;

use super::update::{self, Intent, in_progress};
use crate::app::App;
use crate::cvm::plan::Wish;
use crate::error::{Error, Resource, Result};
use crate::http::answer::json;
use crate::http::extract::{Body, On, Params};
use crate::store::{self, Answer};
use crate::workflow::operation::Kind;

/// Roll a CVM back
///
/// Runs the content of an earlier revision again, as a new revision. The disk keeps its size and the machine its identity.
#[utoipa::path(post, path = "/cvms/{id}/rollback", tag = "updates", params(("id" = CvmUid, Path),
    ("dry_run" = Option<bool>, Query, description = "Only say what would be done."),
    ("If-Match" = Option<String>, Header, description = "Only if the CVM has this `ETag`.")), request_body = Rollback,
    responses((status = 200, description = "With `dry_run`: what would be done", body = wire::DryRun),
        (status = 202, description = "Accepted", body = wire::Accepted)))]
pub async fn cvm_rollback(
    State(app): State<App>,
    on: On,
    params: Params,
    headers: HeaderMap,
    Body(body): Body,
) -> Result<Answer> {
    let intent = Intent::read(params, &headers, &body)?;
    let Rollback { revision, .. } = Rollback::from_json(&body).map_err(Error::Invalid)?;
    let spec = match app.store.spec(on.cvm.id, revision) {
        Err(store::Error::Missing) => return Err(Error::NotFound { what: Resource::Revision }),
        other => other?,
    };
    let wish = Wish { patch: update::options(&body)?, content_of: Some((revision, spec)), ..Wish::default() };
    update::carry_out(&app, on, &headers, Kind::Rollback, wish, intent, |app, _, accepted| {
        let body = wire::Accepted {
            compose_hash: Some(accepted.outline(app)?.compose.hash),
            ..in_progress("Rollback", accepted)
        };
        Ok(json(StatusCode::ACCEPTED, &body))
    })
    .await
}
