//! Approvals: kept until somebody says yes, or their time is over.

use casemate_types::ids::{AppId, ComposeHash, CvmUid, OperationId};
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde_json::json;
use uuid::Uuid;

use super::answers::Receipt;
use super::events::{self, NewEvent};
use super::rows::{self, millis, time, word};
use super::{Error, Result, Store};
use crate::auth::Author;
use crate::cvm::state::words;

words! {
    /// What an approval leads to.
    pub enum Purpose {
        /// An update of its CVM.
        Update = "update",
        /// Another CVM of the same app.
        Replica = "replica",
    }
}

/// Something that waits for somebody's yes. What was asked for is long, and read by itself: [`Store::approval_content`].
#[derive(Clone, Debug, PartialEq)]
pub struct Approval {
    /// Its id.
    pub id: Uuid,
    /// The CVM; for a replica the one that it is made after.
    pub cvm_id: i64,
    /// Its `cvm_…`.
    pub cvm: CvmUid,
    /// Its name.
    pub cvm_name: String,
    /// The app whose contract is asked.
    pub app_id: AppId,
    /// What it leads to.
    pub purpose: Purpose,
    /// The hash that has to be approved.
    pub compose_hash: ComposeHash,
    /// The revision that was current then.
    pub base_revision: u64,
    /// SHA-256 of the commit token, if there is one.
    pub token_hash: Option<[u8; 32]>,
    /// Where it stands.
    pub state: ApprovalState,
    /// Who asked.
    pub user_id: i64,
    /// Name of the user who asked.
    pub username: String,
    /// Who switched auto-commit on, if it is.
    pub auto: Option<AutoBy>,
    /// Why auto-commit cannot go on without somebody.
    pub attention: Option<String>,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// Until when it can be committed.
    pub expires_at: Timestamp,
}

/// The person in whose name the server commits by itself, and the key that they did it with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AutoBy {
    /// The user.
    pub user_id: i64,
    /// The key.
    pub key_id: i64,
}

/// Where an approval stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApprovalState {
    /// It waits.
    Open,
    /// This operation carried it out.
    Committed(OperationId),
    /// A newer one, this, took its place.
    Superseded(Uuid),
    /// Its time was over.
    Expired,
    /// Somebody called it off, or its CVM was deleted.
    Cancelled,
}

impl ApprovalState {
    /// The words for all of them, as they are shown and asked for.
    pub const WORDS: [&str; 6] =
        ["open", "needs_attention", "committed", "superseded", "expired", "cancelled"];

    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Committed(_) => "committed",
            Self::Superseded(_) => "superseded",
            Self::Expired => "expired",
            Self::Cancelled => "cancelled",
        }
    }
}

impl Approval {
    /// The word for where it stands, as it is shown: one that waits for somebody to look at it, or whose time is over although
    /// nobody has swept it, has a word of its own.
    pub fn state_at(&self, now: Timestamp) -> &'static str {
        match self.state {
            ApprovalState::Open if self.expires_at <= now => "expired",
            ApprovalState::Open if self.attention.is_some() => "needs_attention",
            state => state.as_str(),
        }
    }
}

/// The same in SQL, where `?1` is the time.
const STATE_AT: &str = "CASE WHEN a.state <> 'open' THEN a.state WHEN a.expires_at <= ?1 THEN 'expired'
  WHEN a.attention IS NOT NULL THEN 'needs_attention' ELSE 'open' END";

/// An approval to be stored.
#[derive(Clone, Debug)]
pub struct NewApproval {
    /// See [`Approval`].
    pub id: Uuid,
    /// See [`Approval`].
    pub cvm_id: i64,
    /// See [`Approval`].
    pub purpose: Purpose,
    /// See [`Approval`].
    pub compose_hash: ComposeHash,
    /// What was asked for, as JSON.
    pub content: String,
    /// See [`Approval`].
    pub base_revision: u64,
    /// See [`Approval`].
    pub token_hash: Option<[u8; 32]>,
    /// Who asks.
    pub author: Author,
    /// See [`Approval`].
    pub auto: Option<AutoBy>,
    /// Now.
    pub at: Timestamp,
    /// See [`Approval`].
    pub expires_at: Timestamp,
}

/// Which approvals a list shows.
#[derive(Clone, Debug, Default)]
pub struct ApprovalFilter {
    /// Only of this CVM.
    pub cvm_id: Option<i64>,
    /// Only in one of these states, of [`ApprovalState::WORDS`]; in any if there is none.
    pub states: Vec<&'static str>,
    /// Only older than this one.
    pub before: Option<Uuid>,
    /// At most so many.
    pub limit: usize,
}

/// What an operation does with the approval that it carries out.
#[derive(Clone, Debug)]
pub struct Closing {
    /// The approval.
    pub id: Uuid,
    /// The approval itself, if it is not kept yet: it is opened and closed in one.
    pub opens: Option<NewApproval>,
    /// What the chain said, as JSON.
    pub evidence: String,
    /// The key in whose name the server does it by itself.
    pub auto_key: Option<i64>,
    /// Now.
    pub at: Timestamp,
}

impl Closing {
    /// By this author: who sends no request is the server itself.
    pub fn of(
        id: Uuid,
        opens: Option<NewApproval>,
        author: &Author,
        evidence: String,
        at: Timestamp,
    ) -> Self {
        let auto_key = author.key_id.filter(|_| author.request_id.is_none());
        Self { id, opens, evidence, auto_key, at }
    }

    /// `ApprovalClosed` if it cannot be committed any more: also where auto-commit was switched off meanwhile, or the key in whose
    /// name it is was revoked.
    pub(super) fn close(&self, tx: &Connection, op: OperationId) -> Result<()> {
        if let Some(new) = &self.opens {
            open(tx, new)?;
        }
        let sql =
            "UPDATE approval SET state = 'committed', op = ?, evidence = ? WHERE id = ? AND state = 'open'
          AND expires_at > ?4 AND (?5 IS NULL OR auto_key = ?5 AND attention IS NULL
            AND EXISTS (SELECT 1 FROM api_key WHERE id = ?5 AND revoked_at IS NULL))";
        let closed = params![op.0, self.evidence, self.id, millis(self.at), self.auto_key];
        match tx.prepare_cached(sql)?.execute(closed)? {
            0 => Err(Error::ApprovalClosed),
            _ => Ok(()),
        }
    }
}

/// What becomes of auto-commit.
#[derive(Clone, Debug)]
pub enum Auto {
    /// It is on, in this person's name.
    On(AutoBy),
    /// Somebody switched it off.
    Off,
    /// It is off: who switched it on may no longer do that. Why.
    Refused(String),
    /// It waits for somebody. Why.
    NeedsAttention(String),
}

impl Store {
    /// Keeps an approval, and says in whose name it is committed by itself. One of an update takes the place of the earlier open
    /// one of its CVM with the same hash and, as it has or has not, with or without a token. If the same person asks, auto-commit
    /// goes on as it was; else it ends with the earlier one, and an event says so.
    pub async fn approval_open(
        &self,
        new: NewApproval,
        receipt: Option<Receipt<Option<AutoBy>>>,
    ) -> Result<Option<AutoBy>> {
        self.change_and_keep(receipt, move |tx| open(tx, &new)).await
    }

    /// The newest approval of an update of this CVM to this hash that none took the place of, whatever became of it.
    pub fn approval_last(&self, cvm_id: i64, hash: ComposeHash) -> Result<Option<Approval>> {
        self.read(|connection| {
            let sql = format!(
                "{APPROVAL} WHERE a.cvm_id = ? AND a.compose_hash = ? AND a.purpose = 'update' AND a.state <> 'superseded'
                 ORDER BY a.id DESC LIMIT 1"
            );
            let mut statement = connection.prepare_cached(&sql)?;
            let mut found = statement.query(params![cvm_id, hash.0])?;
            found.next()?.map(approval).transpose()
        })
    }

    /// The approval that this one took the place of, if it did.
    pub fn approval_before(&self, of: &Approval) -> Result<Option<Uuid>> {
        self.read(|connection| {
            let sql = "SELECT id FROM approval WHERE cvm_id = ? AND compose_hash = ? AND superseded_by = ?";
            let asked = params![of.cvm_id, of.compose_hash.0, of.id];
            Ok(connection.prepare_cached(sql)?.query_row(asked, |row| row.get(0)).optional()?)
        })
    }

    /// The newest open approval of an update of this CVM to this hash; the newest committed one if none is open.
    pub fn approval_for(&self, cvm_id: i64, hash: ComposeHash, now: Timestamp) -> Result<Option<Approval>> {
        self.read(|connection| {
            let sql = format!(
                "{APPROVAL} WHERE a.cvm_id = ? AND a.compose_hash = ? AND a.purpose = 'update'
                 AND (a.state = 'committed' OR a.state = 'open' AND a.expires_at > ?)
                 ORDER BY a.state = 'open' DESC, a.id DESC LIMIT 1"
            );
            let mut statement = connection.prepare_cached(&sql)?;
            let mut found = statement.query(params![cvm_id, hash.0, millis(now)])?;
            found.next()?.map(approval).transpose()
        })
    }

    /// An approval, whatever became of it.
    pub fn approval(&self, id: Uuid) -> Result<Option<Approval>> {
        self.read(|connection| by_id(connection, id))
    }

    /// What was asked for, as JSON. `Missing` if there is no such approval.
    pub fn approval_content(&self, id: Uuid) -> Result<String> {
        self.read(|connection| {
            let sql = "SELECT patch FROM approval WHERE id = ?";
            let found = connection.prepare_cached(sql)?.query_row([id], |row| row.get(0)).optional()?;
            found.ok_or(Error::Missing)
        })
    }

    /// Approvals of a workspace, newest first. Those of CVMs that are gone are left out.
    pub fn approvals(
        &self,
        workspace_id: i64,
        filter: &ApprovalFilter,
        now: Timestamp,
    ) -> Result<Vec<Approval>> {
        self.read(|connection| {
            let sql = format!(
                "{APPROVAL} WHERE c.workspace_id = ?2 AND c.deleted_at IS NULL AND (?3 IS NULL OR a.cvm_id = ?3)
                 AND (?4 = '[]' OR {STATE_AT} IN (SELECT value FROM json_each(?4))) AND a.id < ?5
                 ORDER BY a.id DESC LIMIT ?6"
            );
            let mut statement = connection.prepare_cached(&sql)?;
            let (before, states) = (filter.before.unwrap_or(Uuid::max()), json!(filter.states).to_string());
            let asked = params![millis(now), workspace_id, filter.cvm_id, states, before, filter.limit];
            all(&mut statement.query(asked)?)
        })
    }

    /// Open approvals that the server is to commit by itself and about which these key services have a say, oldest first, after
    /// the one named, at most `limit`.
    pub fn approvals_to_commit(
        &self,
        kms: &[&str],
        after: Uuid,
        now: Timestamp,
        limit: usize,
    ) -> Result<Vec<Approval>> {
        self.read(|connection| {
            let sql = format!(
                "{APPROVAL} WHERE a.state = 'open' AND a.auto_key IS NOT NULL AND a.attention IS NULL AND a.id > ?
                 AND a.expires_at > ? AND p.kms IN (SELECT value FROM json_each(?)) ORDER BY a.id LIMIT ?"
            );
            let mut statement = connection.prepare_cached(&sql)?;
            all(&mut statement.query(params![after, millis(now), json!(kms).to_string(), limit])?)
        })
    }

    /// Ends some approvals whose time is over, and says how many.
    pub async fn approvals_expire(&self, now: Timestamp) -> Result<usize> {
        const AT_ONCE: usize = 500;
        let due = move |tx: &Connection| -> Result<Vec<(Uuid, i64, ComposeHash)>> {
            let sql = "SELECT id, cvm_id, compose_hash FROM approval WHERE state = 'open' AND expires_at <= ? LIMIT ?";
            let mut statement = tx.prepare_cached(sql)?;
            let found = statement.query_map(params![millis(now), AT_ONCE], |row| {
                Ok((row.get(0)?, row.get(1)?, ComposeHash(row.get(2)?)))
            })?;
            Ok(found.collect::<rusqlite::Result<_>>()?)
        };
        if self.read(due)?.is_empty() {
            return Ok(0);
        }
        self.change(move |tx| {
            let due = due(tx)?;
            let mut last = 0;
            for (id, cvm_id, hash) in &due {
                tx.prepare_cached("UPDATE approval SET state = 'expired' WHERE id = ?")?.execute([id])?;
                last = note(tx, *cvm_id, "approval.expired", None, hash.to_string(), now)?;
            }
            Ok((due.len(), last))
        })
        .await
    }

    /// Calls an open approval off. `ApprovalClosed` if it is not open.
    pub async fn approval_cancel(
        &self,
        id: Uuid,
        author: Author,
        at: Timestamp,
        receipt: Option<Receipt<Approval>>,
    ) -> Result<Approval> {
        self.change_and_keep(receipt, move |tx| {
            let found = by_id(tx, id)?.ok_or(Error::Missing)?;
            if found.state != ApprovalState::Open {
                return Err(Error::ApprovalClosed);
            }
            tx.prepare_cached("UPDATE approval SET state = 'cancelled' WHERE id = ?")?.execute([id])?;
            let hash = found.compose_hash.to_string();
            let seq = note(tx, found.cvm_id, "approval.cancelled", Some(&author), hash, at)?;
            Ok((Approval { state: ApprovalState::Cancelled, ..found }, seq))
        })
        .await
    }

    /// Says what becomes of the auto-commit of an open approval. `ApprovalClosed` if it is not open.
    pub async fn approval_auto(
        &self,
        id: Uuid,
        auto: Auto,
        author: Option<Author>,
        at: Timestamp,
        receipt: Option<Receipt<Approval>>,
    ) -> Result<Approval> {
        self.change_and_keep(receipt, move |tx| {
            let mut found = by_id(tx, id)?.ok_or(Error::Missing)?;
            if found.state != ApprovalState::Open {
                return Err(Error::ApprovalClosed);
            }
            let hash = found.compose_hash;
            let (kind, told) = match auto.clone() {
                Auto::On(by) => {
                    (found.auto, found.attention) = (Some(by), None);
                    ("approval.auto_commit_on", hash.to_string())
                }
                Auto::Off => {
                    (found.auto, found.attention) = (None, None);
                    ("approval.auto_commit_off", hash.to_string())
                }
                Auto::Refused(why) => {
                    (found.auto, found.attention) = (None, Some(why.clone()));
                    ("approval.auto_commit_refused", format!("{hash}: {why}"))
                }
                Auto::NeedsAttention(why) => {
                    found.attention = Some(why.clone());
                    ("approval.needs_attention", format!("{hash}: {why}"))
                }
            };
            tx.prepare_cached("UPDATE approval SET auto_user = ?, auto_key = ?, attention = ? WHERE id = ?")?
                .execute(params![
                    found.auto.map(|by| by.user_id),
                    found.auto.map(|by| by.key_id),
                    found.attention,
                    id
                ])?;
            let seq = note(tx, found.cvm_id, kind, author.as_ref(), told, at)?;
            Ok((found, seq))
        })
        .await
    }
}

/// Keeps an approval, in the place of what it supersedes. Gives who is to commit it, if the server is.
fn open(tx: &Connection, new: &NewApproval) -> Result<(Option<AutoBy>, i64)> {
    let (hash, mut auto) = (new.compose_hash, new.auto);
    if new.purpose == Purpose::Update {
        let mut superseded = tx.prepare_cached(
            "UPDATE approval SET state = 'superseded', superseded_by = ?1 WHERE cvm_id = ?2 AND compose_hash = ?3
             AND state = 'open' AND expires_at > ?4 AND purpose = 'update' AND (token_hash IS NULL) = ?5
             RETURNING id, auto_user, auto_key",
        )?;
        let asked = params![new.id, new.cvm_id, hash.0, millis(new.at), new.token_hash.is_none()];
        let found = superseded.query_map(asked, |row| Ok((row.get(0)?, auto_by(row, 1)?)))?;
        let found: Vec<(Uuid, Option<AutoBy>)> = found.collect::<rusqlite::Result<_>>()?;
        for (old, by) in found {
            let told = format!("{hash}: {old} by {}", new.id);
            note(tx, new.cvm_id, "approval.superseded", Some(&new.author), told, new.at)?;
            match by {
                Some(by) if by.user_id == new.author.user_id => auto = auto.or(Some(by)),
                Some(_) if auto.is_none() => {
                    let told = format!("{hash}: somebody else asked again without it");
                    note(tx, new.cvm_id, "approval.auto_commit_off", Some(&new.author), told, new.at)?;
                }
                Some(_) | None => {}
            }
        }
    }
    tx.prepare_cached(
        "INSERT INTO approval (id, cvm_id, purpose, compose_hash, patch, base_revision, state, token_hash, user_id,
           auto_user, auto_key, created_at, expires_at) VALUES (?, ?, ?, ?, ?, ?, 'open', ?, ?, ?, ?, ?, ?)",
    )?
    .execute(params![
        new.id,
        new.cvm_id,
        new.purpose.as_str(),
        hash.0,
        new.content,
        new.base_revision,
        new.token_hash,
        new.author.user_id,
        auto.map(|by| by.user_id),
        auto.map(|by| by.key_id),
        millis(new.at),
        millis(new.expires_at),
    ])?;
    let event = NewEvent {
        cvm_id: Some(new.cvm_id),
        author: Some(&new.author),
        before_rev: Some(new.base_revision),
        note: Some(hash.to_string()),
        ..NewEvent::of_workspace("approval.opened", 0, new.at)
    };
    Ok((auto, events::append_for(tx, new.cvm_id, event)?))
}

/// The CVM goes, and with it everything that waits for it.
pub(super) fn cancel_all(tx: &Connection, cvm_id: i64, author: Option<&Author>, at: Timestamp) -> Result<()> {
    let sql =
        "UPDATE approval SET state = 'cancelled' WHERE cvm_id = ? AND state = 'open' RETURNING compose_hash";
    let mut statement = tx.prepare_cached(sql)?;
    let hashes: Vec<ComposeHash> =
        statement.query_map([cvm_id], |row| row.get(0).map(ComposeHash))?.collect::<rusqlite::Result<_>>()?;
    for hash in hashes {
        note(tx, cvm_id, "approval.cancelled", author, hash.to_string(), at)?;
    }
    Ok(())
}

fn note(
    tx: &Connection,
    cvm_id: i64,
    kind: &str,
    author: Option<&Author>,
    told: String,
    at: Timestamp,
) -> Result<i64> {
    let event =
        NewEvent { cvm_id: Some(cvm_id), author, note: Some(told), ..NewEvent::of_workspace(kind, 0, at) };
    events::append_for(tx, cvm_id, event)
}

const APPROVAL: &str =
    "SELECT a.id, a.cvm_id, a.compose_hash, p.app_id, a.base_revision, a.token_hash, a.state, a.op, a.user_id,
  a.expires_at, a.purpose, a.auto_user, a.auto_key, a.attention, a.created_at, c.uid,
  (SELECT username FROM user WHERE id = a.user_id), c.name, a.superseded_by
  FROM approval a JOIN cvm c ON c.id = a.cvm_id JOIN app p ON p.id = c.app";

fn by_id(connection: &Connection, id: Uuid) -> Result<Option<Approval>> {
    let mut statement = connection.prepare_cached(&format!("{APPROVAL} WHERE a.id = ?"))?;
    let mut found = statement.query([id])?;
    found.next()?.map(approval).transpose()
}

fn all(found: &mut rusqlite::Rows<'_>) -> Result<Vec<Approval>> {
    let mut approvals = Vec::new();
    while let Some(row) = found.next()? {
        approvals.push(approval(row)?);
    }
    Ok(approvals)
}

/// Who switched auto-commit on, from this column and the next.
fn auto_by(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<AutoBy>> {
    let both = (row.get(column)?, row.get(column + 1)?);
    Ok(match both {
        (Some(user_id), Some(key_id)) => Some(AutoBy { user_id, key_id }),
        (_, _) => None,
    })
}

fn approval(row: &Row<'_>) -> Result<Approval> {
    let state = match (row.get::<_, Option<Uuid>>(7)?, row.get_ref(6)?.as_str().unwrap_or_default()) {
        (Some(op), _) => ApprovalState::Committed(OperationId(op)),
        (None, "open") => ApprovalState::Open,
        (None, "expired") => ApprovalState::Expired,
        (None, "cancelled") => ApprovalState::Cancelled,
        (None, _) => ApprovalState::Superseded(row.get(18)?),
    };
    Ok(Approval {
        id: row.get(0)?,
        cvm_id: row.get(1)?,
        cvm: rows::uid(&row.get::<_, String>(15)?)?,
        cvm_name: row.get(17)?,
        app_id: AppId(row.get(3)?),
        purpose: word("purpose", &row.get::<_, String>(10)?)?,
        compose_hash: ComposeHash(row.get(2)?),
        base_revision: row.get(4)?,
        token_hash: row.get(5)?,
        state,
        user_id: row.get(8)?,
        username: row.get::<_, Option<String>>(16)?.unwrap_or_default(),
        auto: auto_by(row, 11)?,
        attention: row.get(13)?,
        created_at: time(row.get(14)?)?,
        expires_at: time(row.get(9)?)?,
    })
}
