//! Approvals: kept until somebody says yes, or their time is over.

use casemate_types::ids::{ComposeHash, OperationId};
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, params};
use uuid::Uuid;

use super::answers::Receipt;
use super::events::{self, NewEvent};
use super::rows::millis;
use super::{Error, Result, Store};
use crate::auth::Author;

/// An update that waits for somebody's yes.
#[derive(Clone, Debug, PartialEq)]
pub struct Approval {
    /// Its id.
    pub id: Uuid,
    /// The CVM.
    pub cvm_id: i64,
    /// The hash that has to be approved.
    pub compose_hash: ComposeHash,
    /// What was asked for, as JSON.
    pub content: String,
    /// The revision that was current then.
    pub base_revision: u64,
    /// SHA-256 of the commit token, if there is one.
    pub token_hash: Option<[u8; 32]>,
    /// Where it stands.
    pub state: ApprovalState,
    /// Who asked.
    pub user_id: i64,
    /// Until when it can be committed.
    pub expires_at: Timestamp,
}

/// Where an approval stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApprovalState {
    /// It waits.
    Open,
    /// This operation carried it out.
    Committed(OperationId),
    /// A newer one took its place.
    Superseded,
}

/// An approval to be stored.
#[derive(Clone, Debug)]
pub struct NewApproval {
    /// See [`Approval`].
    pub id: Uuid,
    /// See [`Approval`].
    pub cvm_id: i64,
    /// See [`Approval`].
    pub compose_hash: ComposeHash,
    /// See [`Approval`].
    pub content: String,
    /// See [`Approval`].
    pub base_revision: u64,
    /// See [`Approval`].
    pub token_hash: Option<[u8; 32]>,
    /// Who asks.
    pub author: Author,
    /// Now.
    pub at: Timestamp,
    /// See [`Approval`].
    pub expires_at: Timestamp,
}

/// What an operation does with the approval that it carries out.
#[derive(Clone, Debug)]
pub struct Closing {
    /// The approval.
    pub id: Uuid,
    /// What the chain said, as JSON.
    pub evidence: String,
    /// Now.
    pub at: Timestamp,
}

impl Closing {
    /// `ApprovalClosed` if it cannot be committed any more.
    pub(super) fn close(&self, tx: &Connection, op: OperationId) -> Result<()> {
        let sql =
            "UPDATE approval SET state = 'committed', op = ?, evidence = ? WHERE id = ? AND state = 'open'
          AND expires_at > ?";
        match tx.prepare_cached(sql)?.execute(params![op.0, self.evidence, self.id, millis(self.at)])? {
            0 => Err(Error::ApprovalClosed),
            _ => Ok(()),
        }
    }
}

impl Store {
    /// Keeps an approval. It takes the place of the earlier open one of its CVM with the same hash and, as it has or has not,
    /// with or without a token.
    pub async fn approval_open(&self, new: NewApproval, receipt: Option<Receipt<()>>) -> Result<()> {
        self.change_and_keep(receipt, move |tx| {
            tx.prepare_cached(
                "UPDATE approval SET state = 'superseded' WHERE cvm_id = ? AND compose_hash = ? AND state = 'open'
                 AND (token_hash IS NULL) = ?",
            )?
            .execute(params![new.cvm_id, new.compose_hash.0, new.token_hash.is_none()])?;
            tx.prepare_cached(
                "INSERT INTO approval (id, cvm_id, compose_hash, patch, base_revision, state, token_hash, user_id, created_at,
                   expires_at) VALUES (?, ?, ?, ?, ?, 'open', ?, ?, ?, ?)",
            )?
            .execute(params![
                new.id,
                new.cvm_id,
                new.compose_hash.0,
                new.content,
                new.base_revision,
                new.token_hash,
                new.author.user_id,
                millis(new.at),
                millis(new.expires_at),
            ])?;
            let event = NewEvent {
                cvm_id: Some(new.cvm_id),
                author: Some(&new.author),
                before_rev: Some(new.base_revision),
                note: Some(new.compose_hash.to_string()),
                ..NewEvent::of_workspace("approval.opened", 0, new.at)
            };
            Ok(((), events::append_for(tx, new.cvm_id, event)?))
        })
        .await
    }

    /// The newest open approval of a CVM for this hash; the newest committed one if none is open.
    pub fn approval_for(&self, cvm_id: i64, hash: ComposeHash, now: Timestamp) -> Result<Option<Approval>> {
        self.read(|connection| {
            let sql = format!(
                "{APPROVAL} WHERE cvm_id = ? AND compose_hash = ? AND (state = 'committed' OR state = 'open' AND expires_at > ?)
                 ORDER BY state = 'open' DESC, id DESC LIMIT 1"
            );
            let row = params![cvm_id, hash.0, millis(now)];
            Ok(connection.prepare_cached(&sql)?.query_row(row, approval).optional()?)
        })
    }

    /// An approval, whatever became of it.
    pub fn approval(&self, id: Uuid) -> Result<Option<Approval>> {
        self.read(|connection| {
            let sql = format!("{APPROVAL} WHERE id = ?");
            Ok(connection.prepare_cached(&sql)?.query_row([id], approval).optional()?)
        })
    }
}

const APPROVAL: &str =
    "SELECT id, cvm_id, compose_hash, patch, base_revision, token_hash, state, op, user_id, expires_at
  FROM approval";

fn approval(row: &Row<'_>) -> rusqlite::Result<Approval> {
    let state = match row.get::<_, Option<Uuid>>(7)? {
        Some(op) => ApprovalState::Committed(OperationId(op)),
        None if row.get_ref(6)?.as_str()? == "open" => ApprovalState::Open,
        None => ApprovalState::Superseded,
    };
    let expires_at = Timestamp::from_millisecond(row.get(9)?).map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(9, rusqlite::types::Type::Integer, error.into())
    })?;
    Ok(Approval {
        id: row.get(0)?,
        cvm_id: row.get(1)?,
        compose_hash: ComposeHash(row.get(2)?),
        content: row.get(3)?,
        base_revision: row.get(4)?,
        token_hash: row.get(5)?,
        state,
        user_id: row.get(8)?,
        expires_at,
    })
}
