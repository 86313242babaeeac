//! `POST /cvms/{id}/commit-update`: runs an update that was prepared for somebody else to approve.

use axum::Extension;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use casemate_types::ids::CvmUid;
use casemate_types::patch::CommitUpdate;
use casemate_types::wire;

use super::update::{approval_needed, in_progress};
use crate::app::App;
use crate::error::{Error, Result};
use crate::http::answer::json;
use crate::http::approvals::{Peer, of_token};
use crate::http::extract::{Body, Params, RequestId};
use crate::store::{Answer, Receipt, RequestKey};
use crate::workflow::approval;
use crate::workflow::update::Outcome;

/// Commit a prepared update
///
/// The one-time token is all the permission that this needs; an API key is not looked at. A proof that does not hold does not
/// use the token up.
#[utoipa::path(post, path = "/cvms/{id}/commit-update", tag = "approvals", params(("id" = CvmUid, Path)),
    request_body = CommitUpdate, security(()),
    responses((status = 202, description = "Accepted", body = wire::Accepted)))]
pub async fn cvm_commit_update(
    State(app): State<App>,
    Path(named): Path<String>,
    params: Params,
    Extension(RequestId(request_id)): Extension<RequestId>,
    key: Option<Extension<RequestKey>>,
    peer: Peer,
    Body(body): Body,
) -> Result<Answer> {
    params.only(&[])?;
    let asked = CommitUpdate::from_json(&body).map_err(Error::Invalid)?;
    let receipt = key.map(|Extension(key)| Receipt::new(key, answer));
    let found = of_token(&app, &peer, &asked.token)?;
    let outcome = approval::commit_with_token(&app, &named, found, asked, request_id, receipt).await?;
    answer(&outcome)
}

fn answer(outcome: &Outcome) -> Result<Answer> {
    match outcome {
        Outcome::Accepted(accepted) => Ok(json(StatusCode::ACCEPTED, &in_progress("Update", accepted))),
        Outcome::NeedsApproval(ask) => Ok(approval_needed(ask)),
    }
}
