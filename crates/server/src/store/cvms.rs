//! CVMs: made, found, observed.

use std::collections::HashMap;
use std::sync::Arc;

use casemate_types::guest::ImageRef;
use casemate_types::ids::{AppId, ComposeHash, CvmRef, CvmUid, InstanceId, OperationId, VmUuid};
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, params, params_from_iter};
use uuid::Uuid;

use super::answers::Receipt;
use super::approvals::Closing;
use super::events::{self, NewEvent};
use super::operations::{Accepted, Inserted};
use super::rows::{self, CVM, Origin, Parts, const_format, insert_revision, millis, named, time};
use super::{Error, Result, Store, env_keys, nodes};
use crate::auth::Author;
use crate::cvm::spec::{Booking, Spec};
use crate::cvm::state::{Cvm, Power};
use crate::driver::Report;
use crate::kms::EnvKey;
use crate::workflow::operation::{Kind, Options};

/// A CVM to be made, and its app if that is new.
#[derive(Clone, Debug)]
pub struct NewCvm {
    /// `cvm_…`.
    pub uid: CvmUid,
    /// Name of the machine on its node.
    pub vm_uuid: VmUuid,
    /// The tenant.
    pub workspace_id: i64,
    /// Identity of the app.
    pub app_id: AppId,
    /// `dapp_…`, used if the app is new.
    pub app_uid: String,
    /// Slug of the key service, used if the app is new.
    pub kms: String,
    /// The app's public key, if its key service is not the embedded one; used if the app is new.
    pub env_key: Option<EnvKey>,
    /// The node that it goes to.
    pub node_id: i64,
    /// Unique in the workspace.
    pub name: String,
    /// Shown in the public directory.
    pub listed: bool,
    /// Its first spec.
    pub spec: Spec,
    /// Who deployed the app's contract, used if the app is new.
    pub deployer: Option<String>,
    /// The approval that it carries out; closed by the same transaction.
    pub closes: Option<Closing>,
    /// The number that its app id was made from: later ones are handed out after it.
    pub nonce: Option<u64>,
    /// The operation that makes it.
    pub op: OperationId,
    /// Who asks.
    pub author: Author,
    /// When.
    pub at: Timestamp,
}

/// What a [`CvmRef`] leads to.
#[derive(Clone, Debug)]
pub enum Found {
    /// Nothing that the workspace may know about.
    None,
    /// Exactly one.
    One(Box<Cvm>),
    /// Several CVMs of one app.
    SeveralOfApp,
}

/// What is shown of a revision in a list.
#[derive(Clone, Debug, PartialEq)]
pub struct RevisionInfo {
    /// Its number.
    pub number: u64,
    /// Hash of its compose text.
    pub compose_hash: ComposeHash,
    /// Kind of the operation that made it.
    pub cause: String,
    /// The revision whose content it brings back.
    pub content_of: Option<u64>,
    /// The operation that made it.
    pub op: OperationId,
    /// Name of the user who made it; nobody for what the server did by itself.
    pub username: Option<String>,
    /// When.
    pub created_at: Timestamp,
    /// What the images of its services were resolved to, settled when it was staged, if its node tells.
    pub images: Vec<ImageRef>,
}

/// A revision of one of an app's CVMs.
#[derive(Clone, Debug, PartialEq)]
pub struct AppRevisionInfo {
    /// Number of the CVM inside the store.
    pub cvm_id: i64,
    /// `cvm_…`.
    pub cvm: CvmUid,
    /// The machine.
    pub vm_uuid: VmUuid,
    /// Name of the CVM.
    pub name: String,
    /// The revision.
    pub revision: RevisionInfo,
}

/// An app of a workspace.
#[derive(Clone, Debug, PartialEq)]
pub struct AppRow {
    /// Number inside the store.
    pub id: i64,
    /// `dapp_…`.
    pub uid: String,
    /// Its identity.
    pub app_id: AppId,
    /// Its name.
    pub name: String,
    /// Slug of its key service.
    pub kms: String,
    /// Who deployed its contract, as the client said.
    pub deployer: Option<String>,
    /// Live CVMs.
    pub cvm_count: u32,
    /// When it was made.
    pub created_at: Timestamp,
}

impl Store {
    /// Stores a new CVM with its app, first revision, operation, booking and event, or none of them.
    ///
    /// `Constraint` with the name of what does not hold: a name in use, an app of somebody else, no room on the node.
    pub async fn cvm_create(&self, new: NewCvm, receipt: Option<Receipt<Accepted>>) -> Result<Accepted> {
        self.change_and_keep(receipt, move |tx| {
            let app = ensure_app(tx, &new)?;
            if let Some(nonce) = new.nonce {
                let sql = "UPDATE workspace SET next_nonce = max(next_nonce, ? + 1) WHERE id = ?";
                tx.prepare_cached(sql)?.execute(params![nonce, new.workspace_id])?;
            }
            let booked = new.spec.booking();
            tx.prepare_cached(
                "INSERT INTO cvm (uid, vm_uuid, workspace_id, user_id, app, node_id, name, listed, status, power, generation,
                   revision, latest_revision, open_op, booked_vcpu, booked_memory_mb, booked_disk_gb, booked_gpus, created_at,
                   updated_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 1, 1, 1, ?, ?, ?, ?, ?, ?, ?)",
            )?
            .execute(params![
                new.uid.as_str(),
                new.vm_uuid.0,
                new.workspace_id,
                new.author.user_id,
                app,
                new.node_id,
                new.name,
                new.listed,
                Kind::Create.status().as_str(),
                Power::On.as_str(),
                new.op.0,
                booked.vcpu,
                booked.memory_mb,
                booked.disk_gb,
                booked.gpus,
                millis(new.at),
                millis(new.at),
            ])
            .map_err(|error| nodes::no_room(tx, new.node_id, booked, Booking::default(), error))?;
            let cvm_id = tx.last_insert_rowid();
            let origin = Origin {
                cause: Kind::Create.as_str(),
                content_of: None,
                user_id: Some(new.author.user_id),
                op: new.op,
                at: new.at,
            };
            insert_revision(tx, cvm_id, 1, &new.spec, &origin)?;
            let operation = Inserted {
                id: new.op,
                cvm_id,
                workspace_id: new.workspace_id,
                node_id: new.node_id,
                generation: 1,
                kind: Kind::Create,
                steps: Kind::Create.steps(Power::On),
                target: 1,
                previous: 1,
                options: &Options::default(),
                diff: &[],
                user_id: Some(new.author.user_id),
                at: new.at,
            };
            let operation = operation.insert(tx)?;
            if let Some(closing) = &new.closes {
                closing.close(tx, new.op)?;
            }
            let cvm = rows::cvm_by_id(tx, cvm_id)?;
            let event = NewEvent {
                author: Some(&new.author),
                after_rev: Some(1),
                ..NewEvent::of_operation("operation.accepted", &cvm, &operation, new.at)
            };
            let seq = events::append(tx, &event)?;
            Ok((Accepted { operation, cvm }, seq))
        })
        .await
    }

    /// The CVM that `reference` means to a workspace.
    pub fn cvm_find(&self, workspace_id: i64, reference: &CvmRef) -> Result<Found> {
        let recent = &self.0.recent;
        if let Some(cvm) = recent.get(reference).filter(|cvm| cvm.workspace_id == workspace_id) {
            return Ok(Found::One(Box::new((*cvm).clone())));
        }
        let before = recent.before();
        let found = self.cvm_look_up(workspace_id, reference)?;
        if let Found::One(cvm) = &found {
            recent.keep(reference, &Arc::new(Cvm::clone(cvm)), before);
        }
        Ok(found)
    }

    fn cvm_look_up(&self, workspace_id: i64, reference: &CvmRef) -> Result<Found> {
        self.read(|connection| {
            let one = |condition: &str, value: &dyn rusqlite::ToSql| -> Result<Found> {
                let tail =
                    format!("WHERE {condition} AND c.workspace_id = ? AND c.deleted_at IS NULL LIMIT 2");
                let mut statement = connection.prepare_cached(&const_format(CVM, &tail))?;
                let mut found = statement.query(params![value, workspace_id])?;
                let Some(row) = found.next()? else { return Ok(Found::None) };
                let cvm = rows::cvm(row)?;
                match found.next()? {
                    None => Ok(Found::One(Box::new(cvm))),
                    Some(_) => Ok(Found::SeveralOfApp),
                }
            };
            let by_app = |id: &[u8; 20]| one("c.app = (SELECT id FROM app WHERE app_id = ?)", id);
            match reference {
                CvmRef::Uuid(id) => one("c.vm_uuid = ?", &id.0),
                CvmRef::Uid(uid) => one("c.uid = ?", &uid.as_str()),
                CvmRef::Number(number) => one("c.id = ?", number),
                CvmRef::Name(name) => one("c.name = ?", name),
                CvmRef::Instance(id) => one("c.instance_id = ?", &id.0),
                CvmRef::App(id) => by_app(&id.0),
                CvmRef::AppOrInstance(id) => match by_app(id)? {
                    Found::None => one("c.instance_id = ?", id),
                    found => Ok(found),
                },
            }
        })
    }

    /// A live CVM by its number.
    pub fn cvm(&self, id: i64) -> Result<Cvm> {
        self.read(|connection| rows::cvm_by_id(connection, id))
    }

    /// `cvm_…` of a CVM, also of a deleted one.
    pub fn cvm_uid(&self, id: i64) -> Result<CvmUid> {
        self.read(|connection| {
            let sql = "SELECT uid FROM cvm WHERE id = ?";
            let found =
                connection.prepare_cached(sql)?.query_row([id], |row| row.get::<_, String>(0)).optional()?;
            rows::uid(&found.ok_or(Error::Missing)?)
        })
    }

    /// The number of a CVM of a workspace, also of one that is gone and still kept.
    pub fn cvm_number(&self, workspace_id: i64, uid: &CvmUid) -> Result<Option<i64>> {
        self.read(|connection| {
            let sql = "SELECT id FROM cvm WHERE uid = ? AND workspace_id = ?";
            let mut statement = connection.prepare_cached(sql)?;
            Ok(statement.query_row(params![uid.as_str(), workspace_id], |row| row.get(0)).optional()?)
        })
    }

    /// The spec of one revision of a CVM.
    pub fn spec(&self, cvm_id: i64, revision: u64) -> Result<Spec> {
        let spec = self.read(|connection| rows::spec(connection, cvm_id, revision, Parts::All))?;
        self.0.recent.keep_outline(cvm_id, revision, spec.outline());
        Ok(spec)
    }

    /// As [`Store::spec`], with no more than the hashes of its long parts.
    pub fn outline(&self, cvm_id: i64, revision: u64) -> Result<Spec> {
        if let Some(known) = self.0.recent.outline(cvm_id, revision) {
            return Ok((*known).clone());
        }
        let outline = self.read(|connection| rows::spec(connection, cvm_id, revision, Parts::Short))?;
        self.0.recent.keep_outline(cvm_id, revision, outline.clone());
        Ok(outline)
    }

    /// The CVMs of a workspace among these machines.
    pub fn cvms_by_uuid(&self, workspace_id: i64, machines: &[VmUuid]) -> Result<Vec<Cvm>> {
        self.read(|connection| {
            let marks = vec!["?"; machines.len()].join(",");
            let tail =
                format!("WHERE c.vm_uuid IN ({marks}) AND c.workspace_id = ? AND c.deleted_at IS NULL");
            let mut statement = connection.prepare(&const_format(CVM, &tail))?;
            let mut values: Vec<rusqlite::types::Value> =
                machines.iter().map(|id| rusqlite::types::Value::Blob(id.0.as_bytes().to_vec())).collect();
            values.push(workspace_id.into());
            let mut found = statement.query(params_from_iter(values))?;
            collect(&mut found)
        })
    }

    /// Live CVMs on a node by their number, at most `limit` of those after number `after`.
    pub fn cvms_on_node(&self, node_id: i64, after: i64, limit: usize) -> Result<Vec<Cvm>> {
        self.read(|connection| {
            let tail = "WHERE c.node_id = ? AND c.id > ? AND c.deleted_at IS NULL ORDER BY c.id LIMIT ?";
            let mut statement = connection.prepare_cached(&const_format(CVM, tail))?;
            let mut found = statement.query(params![node_id, after, limit])?;
            collect(&mut found)
        })
    }

    /// What was last reported of a CVM's machine.
    pub fn report(&self, cvm_id: i64) -> Result<Option<Report>> {
        Ok(self.reports(cvm_id, cvm_id)?.remove(&cvm_id))
    }

    /// What was last reported of the machines of CVMs with these numbers.
    pub fn reports(&self, first: i64, last: i64) -> Result<HashMap<i64, Report>> {
        self.read(|connection| {
            let sql = "SELECT cvm_id, report FROM observation WHERE cvm_id BETWEEN ? AND ?";
            let mut statement = connection.prepare_cached(sql)?;
            let found = statement.query_map([first, last], |row| {
                Ok((row.get(0)?, Report::stored(row.get_ref(1)?.as_str()?)))
            })?;
            Ok(found.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// The app with this identity in a workspace.
    pub fn app(&self, workspace_id: i64, app_id: &AppId) -> Result<AppRow> {
        self.read(|connection| {
            let sql = format!("{APP} WHERE app_id = ? AND workspace_id = ?");
            let mut statement = connection.prepare_cached(&sql)?;
            let mut found = statement.query(params![app_id.0, workspace_id])?;
            found.next()?.map_or(Err(Error::Missing), app)
        })
    }

    /// The live CVM of a machine, whoever asks.
    pub fn cvm_of_machine(&self, machine: VmUuid) -> Result<Cvm> {
        self.read(|connection| {
            let sql = const_format(CVM, "WHERE c.vm_uuid = ? AND c.deleted_at IS NULL");
            let mut statement = connection.prepare_cached(&sql)?;
            let mut found = statement.query([machine.0])?;
            found.next()?.map_or(Err(Error::Missing), rows::cvm)
        })
    }

    /// Revisions of a CVM, newest first: those with a number below `before`, at most `limit`.
    pub fn revisions(&self, cvm_id: i64, before: Option<u64>, limit: usize) -> Result<Vec<RevisionInfo>> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached(
                "SELECT r.number, r.compose_hash, r.cause, r.content_of, r.op, u.username, r.created_at, r.images
                 FROM revision r LEFT JOIN user u ON u.id = r.user_id WHERE r.cvm_id = ? AND r.number < ?
                 ORDER BY r.number DESC LIMIT ?",
            )?;
            let before = before.unwrap_or(i64::MAX as u64);
            let mut found = statement.query(params![cvm_id, before, limit])?;
            let mut revisions = Vec::new();
            while let Some(row) = found.next()? {
                revisions.push(revision_info(row, 0)?);
            }
            Ok(revisions)
        })
    }

    /// Stores the instance id that the node reports of a machine. `Changed` if the record moved since it had `expected`,
    /// `OperationOpen` while an operation is at work.
    pub async fn cvm_instance_id(
        &self,
        cvm_id: i64,
        expected: u64,
        id: InstanceId,
        author: Author,
        at: Timestamp,
    ) -> Result<()> {
        self.change(move |tx| {
            let cvm = rows::cvm_by_id(tx, cvm_id)?;
            if cvm.open.is_some() {
                return Err(Error::OperationOpen);
            }
            if cvm.generation != expected {
                return Err(Error::Changed);
            }
            tx.prepare_cached("UPDATE cvm SET instance_id = ?, updated_at = ? WHERE id = ?")?
                .execute(params![id.0, millis(at), cvm_id])
                .map_err(named)?;
            let event = NewEvent {
                cvm_id: Some(cvm_id),
                author: Some(&author),
                note: Some(id.to_string()),
                ..NewEvent::of_workspace("cvm.instance_id", cvm.workspace_id, at)
            };
            Ok(((), events::append(tx, &event)?))
        })
        .await
    }

    /// Revisions of an app's live CVMs, newest first, and how many there are in all; only `one` of a CVM if that is given.
    pub fn app_revisions(
        &self,
        app: i64,
        one: Option<(i64, u64)>,
        offset: u64,
        limit: u64,
    ) -> Result<(Vec<AppRevisionInfo>, u64)> {
        self.read(|connection| {
            let (cvm_id, number) = one.unzip();
            let from = "FROM revision r JOIN cvm c ON c.id = r.cvm_id LEFT JOIN user u ON u.id = r.user_id
              WHERE c.app = ?1 AND c.deleted_at IS NULL AND (?2 IS NULL OR (c.id = ?2 AND r.number = ?3))";
            let total = connection
                .prepare_cached(&format!("SELECT count(*) {from}"))?
                .query_row(params![app, cvm_id, number], |row| row.get(0))?;
            let sql = format!(
                "SELECT c.id, c.uid, c.vm_uuid, c.name, r.number, r.compose_hash, r.cause, r.content_of, r.op, u.username,
                   r.created_at, r.images {from} ORDER BY r.created_at DESC, c.id DESC, r.number DESC LIMIT ?4 OFFSET ?5"
            );
            let mut statement = connection.prepare_cached(&sql)?;
            let mut found = statement.query(params![app, cvm_id, number, limit, offset])?;
            let mut revisions = Vec::new();
            while let Some(row) = found.next()? {
                revisions.push(AppRevisionInfo {
                    cvm_id: row.get(0)?,
                    cvm: rows::uid(&row.get::<_, String>(1)?)?,
                    vm_uuid: VmUuid(row.get(2)?),
                    name: row.get(3)?,
                    revision: revision_info(row, 4)?,
                });
            }
            Ok((revisions, total))
        })
    }

    /// Stores what a node reported of machines: number and generation of the CVM, and the report. One for which something was
    /// accepted since is left out. It changes nothing that is desired.
    pub async fn cvms_observed(&self, seen: Vec<(i64, u64, Report)>) -> Result<()> {
        self.write(move |tx| {
            let sql = "INSERT OR REPLACE INTO observation (cvm_id, report)
              SELECT id, ?3 FROM cvm WHERE id = ?1 AND generation = ?2 AND deleted_at IS NULL";
            let mut update = tx.prepare_cached(sql)?;
            for (cvm_id, generation, report) in &seen {
                update.execute(params![cvm_id, generation, report.as_str()])?;
            }
            Ok(())
        })
        .await
    }
}

/// Columns of `app`, in the order that [`app`] reads them.
pub(super) const APP: &str = "SELECT id, uid, app_id, name, kms, cvm_count, created_at, deployer FROM app";

pub(super) fn app(row: &Row<'_>) -> Result<AppRow> {
    Ok(AppRow {
        id: row.get(0)?,
        uid: row.get(1)?,
        app_id: AppId(row.get(2)?),
        name: row.get(3)?,
        kms: row.get(4)?,
        cvm_count: row.get(5)?,
        created_at: time(row.get(6)?)?,
        deployer: row.get(7)?,
    })
}

/// A revision in the columns from `first` on.
fn revision_info(row: &Row<'_>, first: usize) -> Result<RevisionInfo> {
    Ok(RevisionInfo {
        number: row.get(first)?,
        compose_hash: ComposeHash(row.get(first + 1)?),
        cause: row.get(first + 2)?,
        content_of: row.get(first + 3)?,
        op: OperationId(row.get::<_, Uuid>(first + 4)?),
        username: row.get(first + 5)?,
        created_at: time(row.get(first + 6)?)?,
        images: rows::images_of(row.get(first + 7)?)?,
    })
}

fn collect(found: &mut rusqlite::Rows<'_>) -> Result<Vec<Cvm>> {
    let mut cvms = Vec::new();
    while let Some(row) = found.next()? {
        cvms.push(rows::cvm(row)?);
    }
    Ok(cvms)
}

/// The app's number; an app id that another workspace has is refused like one that cannot be had.
fn ensure_app(tx: &Connection, new: &NewCvm) -> Result<i64> {
    let known = tx
        .prepare_cached("SELECT id, workspace_id FROM app WHERE app_id = ?")?
        .query_row([new.app_id.0], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)))
        .optional()?;
    match known {
        Some((id, workspace_id)) if workspace_id == new.workspace_id => Ok(id),
        Some(_) => Err(Error::Constraint(super::constraint::APP_ID)),
        None => {
            tx.prepare_cached(
                "INSERT INTO app (app_id, uid, workspace_id, name, kms, env_key, deployer, created_at)
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            )?
            .execute(params![
                new.app_id.0,
                new.app_uid,
                new.workspace_id,
                new.name,
                new.kms,
                new.env_key.map(env_keys::bytes),
                new.deployer,
                millis(new.at)
            ])
            .map_err(named)?;
            Ok(tx.last_insert_rowid())
        }
    }
}
