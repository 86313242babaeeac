//! Durable accepts: version check, machine row, revision, operation with its steps, and event in one transaction, answered after
//! its commit with 202. Only the work that has to be durable, with the one index that keeps two operations apart: no key check,
//! no look at what was there before, nothing that would find the operations of a machine or its events again.

use std::sync::mpsc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, patch};
use rusqlite::Connection;
use serde::Deserialize;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::{Machine, Options};
use crate::Result;

/// How many accepts share a commit.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Commit {
    /// Whatever is waiting, at most 256. Nobody waits for company.
    Group,
    /// One.
    Each,
}

#[derive(Deserialize)]
struct Change {
    memory: u32,
}

struct Job {
    uid: String,
    change: Change,
    answer: oneshot::Sender<Option<Uuid>>,
}

/// Serves until it is killed.
pub(crate) async fn run(options: Options, commit: Commit) -> Result<()> {
    let connection = super::connect(&super::fill(&options)?)?;
    let (jobs, queue) = mpsc::channel();
    std::thread::spawn(move || write(&connection, &queue, commit));
    let router = Router::new()
        .route("/cvms/{id}", patch(accept))
        .route("/healthz", get(async || "ok"))
        .with_state(jobs);
    super::serve(&options, router).await
}

async fn accept(State(jobs): State<mpsc::Sender<Job>>, Path(uid): Path<String>, body: Bytes) -> Response {
    let Ok(change) = serde_json::from_slice(&body) else { return StatusCode::BAD_REQUEST.into_response() };
    let (answer, accepted) = oneshot::channel();
    if jobs.send(Job { uid, change, answer }).is_err() {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    match accepted.await {
        Ok(Some(op)) => {
            let body = format!("{{\"status\":\"in_progress\",\"correlation_id\":\"{op}\"}}");
            (StatusCode::ACCEPTED, [(header::CONTENT_TYPE, "application/json")], body).into_response()
        }
        Ok(None) => StatusCode::NOT_FOUND.into_response(),
        Err(_) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}

fn write(connection: &Connection, queue: &mpsc::Receiver<Job>, commit: Commit) {
    let most = match commit {
        Commit::Group => 256,
        Commit::Each => 1,
    };
    while let Ok(first) = queue.recv() {
        let mut group = vec![first];
        group.extend(queue.try_iter().take(most - 1));
        let Ok(accepted) = write_group(connection, &group) else { return };
        for (job, op) in group.into_iter().zip(accepted) {
            // Nobody may be waiting any more.
            let _ = job.answer.send(op);
        }
    }
}

fn write_group(connection: &Connection, group: &[Job]) -> Result<Vec<Option<Uuid>>> {
    connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
    let accepted = group.iter().map(|job| write_one(connection, job)).collect::<Result<_>>()?;
    connection.prepare_cached("COMMIT")?.execute([])?;
    Ok(accepted)
}

fn write_one(connection: &Connection, job: &Job) -> Result<Option<Uuid>> {
    let mut select = connection.prepare_cached("SELECT id, version, data FROM machine WHERE uid = ?")?;
    let mut rows = select.query([&job.uid])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    let (id, version): (i64, i64) = (row.get(0)?, row.get(1)?);
    let mut machine: Machine =
        serde_json::from_str(row.get_ref(2)?.as_str().map_err(rusqlite::Error::from)?)?;
    drop(rows);
    machine.memory_mb = job.change.memory;
    let op = Uuid::now_v7();
    let now = jiff::Timestamp::now().as_millisecond();
    let data = serde_json::to_string(&machine)?;
    let sql =
        "UPDATE machine SET version = version + 1, updated_at = ?, data = ? WHERE id = ? AND version = ?";
    connection.prepare_cached(sql)?.execute((now, data, id, version))?;
    let sql = "INSERT INTO revision (machine_id, version, data, created_at) VALUES (?, ?, ?, ?)";
    connection.prepare_cached(sql)?.execute((
        id,
        version + 1,
        serde_json::to_string(&machine.spec())?,
        now,
    ))?;
    let sql = "INSERT INTO operation (id, machine_id, version, status, steps, created_at)
      VALUES (?, ?, ?, 'open', ?, ?)";
    let steps = r#"["stage","stop","apply","start","observe"]"#;
    connection.prepare_cached(sql)?.execute((op, id, version + 1, steps, now))?;
    let sql = "INSERT INTO event (machine_id, op, kind, at) VALUES (?, ?, 'operation.accepted', ?)";
    connection.prepare_cached(sql)?.execute((id, op, now))?;
    Ok(Some(op))
}
