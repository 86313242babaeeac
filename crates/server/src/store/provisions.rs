//! What a first call prepared for a second one.

use casemate_types::ids::{AppId, ComposeHash};
use jiff::Timestamp;
use rusqlite::{OptionalExtension, params};

use super::answers::{self, Receipt};
use super::rows::millis;
use super::{Error, Result, Store};

/// Something prepared, found again by CVM (or none), app and compose hash.
#[derive(Clone, Debug, PartialEq)]
pub struct Provision {
    /// The tenant.
    pub workspace_id: i64,
    /// The CVM whose compose file it will replace; none for a CVM to be made.
    pub cvm_id: Option<i64>,
    /// The app.
    pub app_id: AppId,
    /// Hash of the prepared compose text.
    pub compose_hash: ComposeHash,
    /// What was prepared, as JSON.
    pub content: String,
    /// After this it is as if it had never been.
    pub expires_at: Timestamp,
}

impl Store {
    /// Keeps something prepared; what was prepared under the same names before is replaced.
    pub async fn provision_put(&self, provision: Provision, receipt: Option<Receipt<()>>) -> Result<()> {
        self.write(move |tx| {
            tx.prepare_cached(
                "INSERT INTO provision (workspace_id, cvm_id, app_id, compose_hash, content, expires_at)
                 VALUES (?, ?, ?, ?, ?, ?)
                 ON CONFLICT (workspace_id, ifnull(cvm_id, 0), app_id, compose_hash)
                 DO UPDATE SET content = excluded.content, expires_at = excluded.expires_at",
            )?
            .execute(params![
                provision.workspace_id,
                provision.cvm_id,
                provision.app_id.0,
                provision.compose_hash.0,
                provision.content,
                millis(provision.expires_at),
            ])?;
            answers::keep(tx, receipt.as_ref(), &())
        })
        .await
    }

    /// What was prepared under these names and has not expired.
    pub fn provision(
        &self,
        workspace_id: i64,
        cvm_id: Option<i64>,
        app_id: AppId,
        compose_hash: ComposeHash,
        now: Timestamp,
    ) -> Result<String> {
        self.read(|connection| {
            let sql =
                "SELECT content FROM provision WHERE workspace_id = ? AND ifnull(cvm_id, 0) = ifnull(?, 0)
              AND app_id = ? AND compose_hash = ? AND expires_at > ?";
            let found = connection
                .prepare_cached(sql)?
                .query_row(params![workspace_id, cvm_id, app_id.0, compose_hash.0, millis(now)], |row| {
                    row.get(0)
                })
                .optional()?;
            found.ok_or(Error::Missing)
        })
    }

    /// The next `count` numbers for app ids. Only `take` uses them up.
    pub async fn nonces(&self, workspace_id: i64, count: u64, take: bool) -> Result<Vec<u64>> {
        let next = move |tx: &rusqlite::Connection| -> Result<u64> {
            let sql = "SELECT next_nonce FROM workspace WHERE id = ?";
            Ok(tx.prepare_cached(sql)?.query_row([workspace_id], |row| row.get(0))?)
        };
        let first = match take {
            false => self.read(next)?,
            true => {
                self.write(move |tx| {
                    let first = next(tx)?;
                    tx.prepare_cached("UPDATE workspace SET next_nonce = next_nonce + ? WHERE id = ?")?
                        .execute(params![count, workspace_id])?;
                    Ok(first)
                })
                .await?
            }
        };
        Ok((first..first + count).collect())
    }
}
