//! Reads: one machine, or a page of 50. Each checks the key first.

use axum::Router;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use rusqlite::{Connection, OptionalExtension};
use serde::{Deserialize, Serialize};

use super::{Machine, Options, Readers};
use crate::Result;

#[derive(Serialize)]
struct Shown<'a> {
    id: &'a str,
    #[serde(flatten)]
    machine: Machine,
}

#[derive(Serialize)]
struct Page<'a> {
    items: Vec<Shown<'a>>,
}

#[derive(Deserialize)]
struct After {
    after: i64,
}

/// Serves until it is killed.
pub(crate) async fn run(options: Options) -> Result<()> {
    let readers = Readers::new(super::fill(&options)?);
    let router = Router::new()
        .route("/cvms/{id}", get(one))
        .route("/cvms", get(page))
        .route("/healthz", get(async || "ok"))
        .with_state(readers);
    super::serve(&options, router).await
}

async fn one(State(readers): State<Readers>, Path(id): Path<String>, headers: HeaderMap) -> Response {
    let body = readers.read(|connection| {
        let Some(workspace) = workspace(connection, &headers)? else { return Ok(None) };
        let row = connection
            .prepare_cached("SELECT data FROM machine WHERE uid = ? AND workspace_id = ?")?
            .query_row((&id, workspace), |row| Ok(serde_json::from_str::<Machine>(row.get_ref(0)?.as_str()?)))
            .optional()?;
        let Some(machine) = row else { return Ok(None) };
        Ok(Some(serde_json::to_vec(&Shown { id: &id, machine: machine? })?))
    });
    answer(body)
}

async fn page(State(readers): State<Readers>, Query(query): Query<After>, headers: HeaderMap) -> Response {
    let body = readers.read(|connection| {
        let Some(workspace) = workspace(connection, &headers)? else { return Ok(None) };
        let sql = "SELECT uid, data FROM machine WHERE workspace_id = ? AND id > ? ORDER BY id LIMIT 50";
        let mut statement = connection.prepare_cached(sql)?;
        let rows = statement.query_map((workspace, query.after), |row| {
            Ok((row.get::<_, String>(0)?, serde_json::from_str::<Machine>(row.get_ref(1)?.as_str()?)))
        })?;
        let rows = rows.collect::<rusqlite::Result<Vec<_>>>()?;
        let mut items = Vec::with_capacity(rows.len());
        for (id, machine) in &rows {
            items.push(Shown { id, machine: machine.as_ref().map_err(ToString::to_string)?.clone() });
        }
        Ok(Some(serde_json::to_vec(&Page { items })?))
    });
    answer(body)
}

fn workspace(connection: &Connection, headers: &HeaderMap) -> Result<Option<i64>> {
    let Some(key) = headers.get("x-api-key") else { return Ok(None) };
    let sql = "SELECT workspace_id FROM api_key WHERE hash = ?";
    let found = connection.prepare_cached(sql)?.query_row([super::sha256(key.as_bytes())], |row| row.get(0));
    Ok(found.optional()?)
}

fn answer(body: Result<Option<Vec<u8>>>) -> Response {
    match body {
        Ok(Some(body)) => ([(header::CONTENT_TYPE, "application/json")], body).into_response(),
        Ok(None) => StatusCode::NOT_FOUND.into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
