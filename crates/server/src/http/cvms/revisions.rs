//! `GET /cvms/{id}/revisions`.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use casemate_types::wire;

use crate::app::App;
use crate::error::Result;
use crate::http::error::answer;
use crate::http::extract::{On, Params};

/// List revisions
///
/// Every configuration that the CVM has had, newest first. A rollback takes the number of one of them.
#[utoipa::path(get, path = "/cvms/{id}/revisions", tag = "operations",
    params(
        ("limit" = Option<u64>, Query, description = "At most so many; 50 unless given.", minimum = 1, maximum = 500),
        ("cursor" = Option<u64>, Query, description = "`next_cursor` of the page before."),
    ),
    responses((status = 200, description = "The revisions", body = wire::RevisionPage)))]
pub async fn cvm_revisions(State(app): State<App>, on: On, params: Params) -> Result<Response> {
    let limit = params.number("limit", 1, 500)?.unwrap_or(50);
    let before = params.number("cursor", 1, i64::MAX as u64)?;
    let limit = usize::try_from(limit).expect("bounded above");
    let mut revisions = app.store.revisions(on.cvm.id, before, limit + 1)?;
    let more = revisions.len() > limit;
    revisions.truncate(limit);
    let next_cursor = revisions.last().filter(|_| more).map(|revision| revision.number.to_string());
    let shown = |revision: crate::store::RevisionInfo| wire::Revision {
        revision: revision.number,
        compose_hash: revision.compose_hash,
        author: revision.username,
        cause: Some(revision.op),
        created_at: revision.created_at,
        of: revision.content_of,
        current: revision.number == on.cvm.revision,
        images: revision
            .images
            .into_iter()
            .map(|image| wire::ImageDigest { reference: image.reference, digest: image.digest })
            .collect(),
    };
    let items = revisions.into_iter().map(shown).collect();
    Ok(answer(StatusCode::OK, &wire::RevisionPage { items, next_cursor }))
}
