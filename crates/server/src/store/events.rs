//! Events: written by the transactions that make them happen, numbered in commit order.

use casemate_types::ids::{CvmUid, OperationId};
use jiff::Timestamp;
use rusqlite::types::Value;
use rusqlite::{Connection, params};
use uuid::Uuid;

use super::rows::{self, millis};
use super::{Error, Result, Store};
use crate::auth::Author;
use crate::cvm::state::Cvm;
use crate::workflow::operation::{Change, Operation, StepName};

/// Something that happened.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Its number. Numbers grow in commit order and may have gaps.
    pub seq: i64,
    /// The CVM it is about.
    pub cvm: Option<CvmUid>,
    /// The operation it belongs to.
    pub op: Option<OperationId>,
    /// For example `operation.accepted`.
    pub kind: String,
    /// Name of the user who acted; nobody for what happens by itself.
    pub username: Option<String>,
    /// `key_…`: with which key.
    pub key: Option<String>,
    /// In which request.
    pub request_id: Option<String>,
    /// Current revision before.
    pub before_rev: Option<u64>,
    /// Revision it leads to.
    pub after_rev: Option<u64>,
    /// What was asked for, if this is the event that somebody asked: kind and changes of the operation.
    pub asked: Option<(String, Vec<Change>)>,
    /// When.
    pub at: Timestamp,
    /// Step or note, as JSON.
    pub data: Option<String>,
}

/// An event to be appended.
#[derive(Clone, Debug)]
pub struct NewEvent<'a> {
    /// See [`Event`].
    pub kind: &'a str,
    /// The tenant that may read it; filled in for events of a CVM.
    pub workspace_id: i64,
    /// See [`Event`].
    pub cvm_id: Option<i64>,
    /// See [`Event`].
    pub op: Option<OperationId>,
    /// Who asked for it.
    pub author: Option<&'a Author>,
    /// See [`Event`].
    pub before_rev: Option<u64>,
    /// See [`Event`].
    pub after_rev: Option<u64>,
    /// The step it is about.
    pub step: Option<StepName>,
    /// A sentence for people.
    pub note: Option<String>,
    /// See [`Event`].
    pub at: Timestamp,
}

impl<'a> NewEvent<'a> {
    /// About a workspace.
    pub fn of_workspace(kind: &'a str, workspace_id: i64, at: Timestamp) -> Self {
        Self {
            kind,
            workspace_id,
            cvm_id: None,
            op: None,
            author: None,
            before_rev: None,
            after_rev: None,
            step: None,
            note: None,
            at,
        }
    }

    /// About an operation of a CVM.
    pub fn of_operation(kind: &'a str, cvm: &Cvm, operation: &Operation, at: Timestamp) -> Self {
        Self { workspace_id: cvm.workspace_id, ..Self::of_record(kind, operation, at) }
    }

    /// About an operation, the workspace to be looked up.
    pub fn of_record(kind: &'a str, operation: &Operation, at: Timestamp) -> Self {
        Self { cvm_id: Some(operation.cvm_id), op: Some(operation.id), ..Self::of_workspace(kind, 0, at) }
    }
}

pub(super) fn append(tx: &Connection, event: &NewEvent<'_>) -> Result<i64> {
    let data = match (event.step, &event.note) {
        (None, None) => None,
        (step, note) => Some(serde_json::json!({ "step": step, "note": note }).to_string()),
    };
    tx.prepare_cached(
        "INSERT INTO event (workspace_id, cvm_id, op, kind, user_id, key_id, request_id, before_rev, after_rev, at, data)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )?
    .execute(params![
        event.workspace_id,
        event.cvm_id,
        event.op.map(|op| op.0),
        event.kind,
        event.author.map(|author| author.user_id),
        event.author.and_then(|author| author.key_id),
        event.author.and_then(|author| author.request_id.as_deref()),
        event.before_rev,
        event.after_rev,
        millis(event.at),
        data,
    ])?;
    Ok(tx.last_insert_rowid())
}

/// Appends an event about a CVM whose workspace is not at hand.
pub(super) fn append_for(tx: &Connection, cvm_id: i64, event: NewEvent<'_>) -> Result<i64> {
    let workspace_id = tx
        .prepare_cached("SELECT workspace_id FROM cvm WHERE id = ?")?
        .query_row([cvm_id], |row| row.get(0))?;
    append(tx, &NewEvent { workspace_id, ..event })
}

/// Which events a reader wants.
#[derive(Clone, Copy, Debug)]
pub enum Of {
    /// Of one operation.
    Operation(OperationId),
    /// Of one CVM.
    Cvm(i64),
    /// Of everything in the workspace.
    Workspace,
}

impl Store {
    /// `Swept` if events of single steps after number `after` are no longer kept: who comes back with it has missed some.
    pub fn events_since(&self, after: i64) -> Result<()> {
        self.read(|connection| {
            let swept: Option<i64> = connection
                .prepare_cached("SELECT value FROM setting WHERE name = 'events_swept_to'")?
                .query_row([], |row| row.get(0))
                .or_else(none_if_absent)?;
            match swept {
                Some(swept) if after < swept => Err(Error::Swept(swept + 1)),
                _ => Ok(()),
            }
        })
    }

    /// Events of a workspace after number `after` that are still kept, oldest first, at most `limit`.
    pub fn events(&self, workspace_id: i64, of: Of, after: i64, limit: usize) -> Result<Vec<Event>> {
        self.read(|connection| {
            let subject = match of {
                Of::Operation(op) => Value::Blob(op.0.as_bytes().to_vec()),
                Of::Cvm(id) => Value::Integer(id),
                Of::Workspace => Value::Null,
            };
            let condition = match of {
                Of::Operation(_) => "e.op = ?4 AND e.workspace_id = ?1 AND e.seq > ?2",
                // By its operations, and by the index that has the events without one: none is needed for all events.
                Of::Cvm(_) => {
                    "e.workspace_id = ?1 AND e.seq IN (
                       SELECT seq FROM event WHERE op IN (SELECT id FROM operation WHERE cvm_id = ?4) AND seq > ?2
                       UNION ALL SELECT seq FROM event WHERE op IS NULL AND cvm_id = ?4 AND seq > ?2)"
                }
                Of::Workspace => "e.workspace_id = ?1 AND e.seq > ?2 AND ?4 IS NULL",
            };
            let sql = format!(
                "SELECT e.seq, c.uid, e.op, e.kind, u.username, k.uid, e.request_id, e.before_rev, e.after_rev, e.at, e.data,
                   o.kind, o.diff
                 FROM event e LEFT JOIN operation o ON o.id = e.op AND e.after_rev IS NOT NULL
                   LEFT JOIN cvm c ON c.id = e.cvm_id LEFT JOIN user u ON u.id = e.user_id LEFT JOIN api_key k ON k.id = e.key_id
                 WHERE {condition} ORDER BY e.seq LIMIT ?3"
            );
            let mut statement = connection.prepare_cached(&sql)?;
            let mut found = statement.query(params![workspace_id, after, limit, subject])?;
            let mut events = Vec::new();
            while let Some(row) = found.next()? {
                // An operation stays as long as its events: what it was asked to do is written once.
                let asked = match row.get::<_, Option<String>>(11)? {
                    None => None,
                    Some(kind) => {
                        let diff = row.get_ref(12)?.as_str().map_err(rusqlite::Error::from)?;
                        Some((kind, rows::from_json("diff", diff)?))
                    }
                };
                events.push(Event {
                    seq: row.get(0)?,
                    cvm: row.get::<_, Option<String>>(1)?.map(|uid| rows::uid(&uid)).transpose()?,
                    op: row.get::<_, Option<Uuid>>(2)?.map(OperationId),
                    kind: row.get(3)?,
                    username: row.get(4)?,
                    key: row.get(5)?,
                    request_id: row.get(6)?,
                    before_rev: row.get(7)?,
                    after_rev: row.get(8)?,
                    asked,
                    at: rows::time(row.get(9)?)?,
                    data: row.get(10)?,
                });
            }
            Ok(events)
        })
    }
}

fn none_if_absent<T>(error: rusqlite::Error) -> rusqlite::Result<Option<T>> {
    match error {
        rusqlite::Error::QueryReturnedNoRows => Ok(None),
        other => Err(other),
    }
}
