//! Rows to values and back. Nothing here leaves the store.

use std::str::FromStr;
use std::sync::Arc;

use casemate_types::guest::ImageRef;
use casemate_types::ids::{AppId, ComposeHash, CvmUid, InstanceId, OperationId, VmUuid};
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use super::{Error, Result};
use crate::cvm::spec::{Booking, Compose, Long, Spec};
use crate::cvm::state::{Cvm, OpenOperation};
use crate::workflow::operation::{Operation, State};

pub(super) fn millis(at: Timestamp) -> i64 {
    at.as_millisecond()
}

pub(super) fn time(millis: i64) -> Result<Timestamp> {
    Timestamp::from_millisecond(millis).map_err(|source| unreadable("time", source))
}

pub(super) fn json<T: Serialize + ?Sized>(value: &T) -> String {
    serde_json::to_string(value).expect("stored values have string keys and finite numbers")
}

pub(super) fn from_json<T: DeserializeOwned>(what: &'static str, text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|source| unreadable(what, source))
}

pub(super) fn word<T: FromStr<Err = String>>(what: &'static str, text: &str) -> Result<T> {
    text.parse().map_err(|source: String| unreadable(what, source))
}

pub(super) fn unreadable(
    what: &'static str,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> Error {
    Error::Unreadable { what, source: source.into() }
}

/// Columns of `cvm c JOIN app a LEFT JOIN operation o`, in the order that [`cvm`] reads them.
pub(super) const CVM: &str = "SELECT c.id, c.uid, c.vm_uuid, c.workspace_id, c.user_id, c.app, a.app_id, a.kms, c.node_id, c.name,
  c.listed, c.instance_id, c.status, c.power, c.generation, c.revision, c.latest_revision, c.boot_error, c.open_op, o.kind,
  o.created_at, c.booked_vcpu, c.booked_memory_mb, c.booked_disk_gb, c.booked_gpus, c.created_at, c.updated_at
  FROM cvm c JOIN app a ON a.id = c.app LEFT JOIN operation o ON o.id = c.open_op ";

pub(super) fn cvm(row: &Row<'_>) -> Result<Cvm> {
    let open = match row.get::<_, Option<Uuid>>(18)? {
        None => None,
        Some(id) => Some(OpenOperation {
            id: OperationId(id),
            kind: word("kind", row.get_ref(19)?.as_str().map_err(rusqlite::Error::from)?)?,
            started_at: time(row.get(20)?)?,
        }),
    };
    let text =
        |index: usize| -> Result<&str> { Ok(row.get_ref(index)?.as_str().map_err(rusqlite::Error::from)?) };
    Ok(Cvm {
        id: row.get(0)?,
        uid: uid(text(1)?)?,
        vm_uuid: VmUuid(row.get(2)?),
        workspace_id: row.get(3)?,
        user_id: row.get(4)?,
        app: row.get(5)?,
        app_id: AppId(row.get(6)?),
        kms: row.get(7)?,
        node_id: row.get(8)?,
        name: row.get(9)?,
        listed: row.get(10)?,
        instance_id: row.get::<_, Option<[u8; 20]>>(11)?.map(InstanceId),
        status: word("status", text(12)?)?,
        power: word("power", text(13)?)?,
        generation: row.get(14)?,
        revision: row.get(15)?,
        latest_revision: row.get(16)?,
        boot_error: row.get(17)?,
        open,
        booked: Booking {
            vcpu: row.get(21)?,
            memory_mb: row.get(22)?,
            disk_gb: row.get(23)?,
            gpus: row.get(24)?,
        },
        created_at: time(row.get(25)?)?,
        updated_at: time(row.get(26)?)?,
    })
}

pub(super) fn uid(text: &str) -> Result<CvmUid> {
    text.parse().map_err(|source| unreadable("id", source))
}

/// A live CVM by its number.
pub(super) fn cvm_by_id(connection: &Connection, id: i64) -> Result<Cvm> {
    let sql = const_format(CVM, "WHERE c.id = ? AND c.deleted_at IS NULL");
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query([id])?;
    rows.next()?.map_or(Err(Error::Missing), cvm)
}

pub(super) fn const_format(head: &str, tail: &str) -> String {
    let mut sql = String::with_capacity(head.len() + tail.len());
    sql.push_str(head);
    sql.push_str(tail);
    sql
}

/// Columns of `operation`, in the order that [`operation`] reads them.
pub(super) const OPERATION: &str = "SELECT id, cvm_id, generation, kind, status, step, steps, attempt, not_before, lease_until,
  claim, waiting_for, target, previous, options, diff, reason, put_back, ended_by, downtime_ms, user_id, created_at, ended_at
  FROM operation ";

pub(super) fn operation(row: &Row<'_>) -> Result<Operation> {
    let text =
        |index: usize| -> Result<&str> { Ok(row.get_ref(index)?.as_str().map_err(rusqlite::Error::from)?) };
    let ended = || -> Result<Timestamp> { time(row.get(22)?) };
    let state = match text(4)? {
        "queued" => State::Queued { not_before: time(row.get(8)?)? },
        "running" => State::Running { lease_until: time(row.get(9)?)? },
        "succeeded" => State::Succeeded { at: ended()? },
        "failed" => State::Failed {
            at: ended()?,
            reason: from_json("reason", text(16)?)?,
            put_back: row.get::<_, Option<Uuid>>(17)?.map(OperationId),
        },
        _ => State::Cancelled { at: ended()?, by: row.get::<_, Option<Uuid>>(18)?.map(OperationId) },
    };
    Ok(Operation {
        id: OperationId(row.get(0)?),
        cvm_id: row.get(1)?,
        generation: row.get(2)?,
        kind: word("kind", text(3)?)?,
        state,
        step: row.get(5)?,
        steps: from_json("steps", text(6)?)?,
        attempt: row.get(7)?,
        claim: row.get(10)?,
        waiting_for: row.get(11)?,
        target: row.get(12)?,
        previous: row.get(13)?,
        options: from_json("options", text(14)?)?,
        diff: from_json("diff", text(15)?)?,
        downtime_ms: row.get(19)?,
        user_id: row.get(20)?,
        created_at: time(row.get(21)?)?,
    })
}

/// An operation by its id.
pub(super) fn operation_by_id(connection: &Connection, id: OperationId) -> Result<Operation> {
    let mut statement = connection.prepare_cached(&const_format(OPERATION, "WHERE id = ?"))?;
    let mut rows = statement.query([id.0])?;
    rows.next()?.map_or(Err(Error::Missing), operation)
}

/// Keeps a long part of a CVM's spec, once.
fn keep(connection: &Connection, cvm_id: i64, sha256: &[u8; 32], bytes: Option<&[u8]>) -> Result<()> {
    let Some(bytes) = bytes else { return Ok(()) };
    let sql = "INSERT INTO body (cvm_id, sha256, bytes) VALUES (?, ?, ?) ON CONFLICT DO NOTHING";
    connection.prepare_cached(sql)?.execute(params![cvm_id, sha256, bytes])?;
    Ok(())
}

/// Where a revision comes from.
pub(super) struct Origin<'a> {
    pub cause: &'a str,
    pub content_of: Option<u64>,
    pub user_id: Option<i64>,
    pub op: OperationId,
    pub at: Timestamp,
}

/// Stores a spec as revision `number`. With the content of an earlier revision, or of the one in force, its images mean what they
/// mean there. Long parts that are not there are those of an earlier revision, and stored already.
pub(super) fn insert_revision(
    connection: &Connection,
    cvm_id: i64,
    number: u64,
    spec: &Spec,
    origin: &Origin<'_>,
) -> Result<()> {
    let (document, text) = (&spec.compose.document, &spec.compose.text);
    keep(connection, cvm_id, document.sha256(), document.here().map(str::as_bytes))?;
    keep(connection, cvm_id, text.sha256(), text.here().map(str::as_bytes))?;
    if let Some(sealed) = &spec.sealed_env {
        keep(connection, cvm_id, sealed.sha256(), sealed.here())?;
    }
    if let Some(config) = &spec.user_config {
        keep(connection, cvm_id, config.sha256(), config.here().map(str::as_bytes))?;
    }
    connection
        .prepare_cached(
            "INSERT INTO revision (cvm_id, number, compose_hash, document, sealed_env, user_config, vcpu, memory_mb, disk_gb,
               gpus, image, instance_seed, cause, content_of, user_id, op, created_at, images)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17,
               (SELECT images FROM revision WHERE cvm_id = ?1 AND compose_hash = ?3
                 AND number = coalesce(?14, (SELECT revision FROM cvm WHERE id = ?1))))",
        )?
        .execute(params![
            cvm_id,
            number,
            spec.compose.hash.0,
            document.sha256(),
            spec.sealed_env_sha256(),
            spec.user_config_sha256(),
            spec.vcpu,
            spec.memory_mb,
            spec.disk_gb,
            json(&spec.gpus),
            spec.image,
            spec.instance_seed,
            origin.cause,
            origin.content_of,
            origin.user_id,
            origin.op.0,
            millis(origin.at),
        ])?;
    Ok(())
}

/// What the images of revision `number` were settled to mean.
pub(super) fn images(connection: &Connection, cvm_id: i64, number: u64) -> Result<Vec<ImageRef>> {
    let sql = "SELECT images FROM revision WHERE cvm_id = ? AND number = ?";
    let text = connection.prepare_cached(sql)?.query_row(params![cvm_id, number], |row| row.get(0))?;
    images_of(text)
}

/// Those in a column.
pub(super) fn images_of(column: Option<String>) -> Result<Vec<ImageRef>> {
    column.map_or_else(|| Ok(Vec::new()), |text| from_json("image digests", &text))
}

/// Is a spec read with its long parts?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Parts {
    /// Yes.
    All,
    /// No: only their hashes.
    Short,
}

/// The spec of revision `number`.
pub(super) fn spec(connection: &Connection, cvm_id: i64, number: u64, parts: Parts) -> Result<Spec> {
    let sql = "SELECT document, compose_hash, sealed_env, user_config, vcpu, memory_mb, disk_gb, gpus, image, instance_seed
      FROM revision WHERE cvm_id = ? AND number = ?";
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query(params![cvm_id, number])?;
    let row = rows.next()?.ok_or(Error::Missing)?;
    let hash = ComposeHash(row.get(1)?);
    Ok(Spec {
        compose: Compose {
            document: long_text(connection, cvm_id, row.get(0)?, parts)?,
            text: long_text(connection, cvm_id, hash.0, parts)?,
            hash,
        },
        sealed_env: row
            .get::<_, Option<_>>(2)?
            .map(|sealed| long(connection, cvm_id, sealed, parts, |bytes| Ok(bytes.into())))
            .transpose()?,
        user_config: row
            .get::<_, Option<_>>(3)?
            .map(|config| long_text(connection, cvm_id, config, parts))
            .transpose()?,
        vcpu: row.get(4)?,
        memory_mb: row.get(5)?,
        disk_gb: row.get(6)?,
        gpus: from_json("gpus", row.get_ref(7)?.as_str().map_err(rusqlite::Error::from)?)?,
        image: row.get(8)?,
        instance_seed: row.get(9)?,
    })
}

fn long_text(connection: &Connection, cvm_id: i64, sha256: [u8; 32], parts: Parts) -> Result<Long<str>> {
    long(connection, cvm_id, sha256, parts, |bytes| {
        std::str::from_utf8(bytes).map(Into::into).map_err(|source| unreadable("text", source))
    })
}

fn long<T: ?Sized>(
    connection: &Connection,
    cvm_id: i64,
    sha256: [u8; 32],
    parts: Parts,
    read: impl FnOnce(&[u8]) -> Result<Arc<T>>,
) -> Result<Long<T>> {
    if parts == Parts::Short {
        return Ok(Long::elsewhere(sha256));
    }
    let mut statement =
        connection.prepare_cached("SELECT bytes FROM body WHERE cvm_id = ? AND sha256 = ?")?;
    let mut rows = statement.query(params![cvm_id, sha256])?;
    let row = rows.next()?.ok_or(Error::Missing)?;
    let bytes = row.get_ref(0)?.as_blob().map_err(rusqlite::Error::from)?;
    Ok(Long::stored(sha256, read(bytes)?))
}

/// The resources of revision `number`, without its texts.
pub(super) fn booking(connection: &Connection, cvm_id: i64, number: u64) -> Result<Booking> {
    let sql = "SELECT vcpu, memory_mb, disk_gb, gpus FROM revision WHERE cvm_id = ? AND number = ?";
    let found = connection
        .prepare_cached(sql)?
        .query_row(params![cvm_id, number], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get::<_, String>(3)?))
        })
        .optional()?;
    let (vcpu, memory_mb, disk_gb, gpus) = found.ok_or(Error::Missing)?;
    let gpus: crate::cvm::spec::Gpus = from_json("gpus", &gpus)?;
    Ok(Booking { vcpu, memory_mb, disk_gb, gpus: gpus.count })
}

/// Gives a violated constraint the name that it has in the schema.
pub(super) fn named(error: rusqlite::Error) -> Error {
    use super::constraint;
    let rusqlite::Error::SqliteFailure(code, Some(message)) = &error else { return error.into() };
    if code.code != rusqlite::ErrorCode::ConstraintViolation {
        return error.into();
    }
    for name in [constraint::VCPU, constraint::MEMORY, constraint::DISK, constraint::GPUS] {
        if message.ends_with(name) {
            return Error::Constraint(name);
        }
    }
    if message.contains("operation_one_at_a_time") {
        Error::OperationOpen
    } else if message.contains("cvm.workspace_id, cvm.name") {
        Error::Constraint(constraint::CVM_NAME)
    } else if message.contains("app.app_id") {
        Error::Constraint(constraint::APP_ID)
    } else {
        Error::Broken(error)
    }
}
