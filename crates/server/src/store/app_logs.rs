//! Hashes that an app's contract may allow: those that its CVMs have had, and those found in the contract's log.

use casemate_types::ids::{AppId, ComposeHash, CvmUid};
use jiff::Timestamp;
use rusqlite::{OptionalExtension, params};
use serde_json::json;

use super::rows::{self, time};
use super::{Result, Store};

/// How far a contract's log was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AppLog {
    /// The block from which reading goes on.
    pub next: u64,
    /// The head was reached when it was last read.
    pub complete: bool,
}

/// A revision with its hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownRevision {
    /// The hash.
    pub compose_hash: ComposeHash,
    /// The CVM.
    pub cvm: CvmUid,
    /// Its number.
    pub number: u64,
    /// A live CVM has it now, or will when its operation ends, one way or the other.
    pub current: bool,
    /// When it was made.
    pub created_at: Timestamp,
}

impl Store {
    /// How far the log of this app's contract was read; nothing if nobody began.
    pub fn app_log(&self, app: i64) -> Result<Option<AppLog>> {
        self.read(|connection| {
            let sql = "SELECT next, complete FROM app_log WHERE app = ?";
            let found = connection
                .prepare_cached(sql)?
                .query_row([app], |row| Ok(AppLog { next: row.get(0)?, complete: row.get(1)? }));
            Ok(found.optional()?)
        })
    }

    /// Keeps what was found in the log of an app's contract, and how far it was read.
    pub async fn app_log_put(&self, app: i64, log: AppLog, hashes: Vec<ComposeHash>) -> Result<()> {
        self.write(move |tx| {
            tx.prepare_cached("INSERT OR REPLACE INTO app_log (app, next, complete) VALUES (?, ?, ?)")?
                .execute(params![app, log.next, log.complete])?;
            for hash in &hashes {
                tx.prepare_cached(
                    "INSERT INTO app_hash (app, compose_hash) VALUES (?, ?) ON CONFLICT DO NOTHING",
                )?
                .execute(params![app, hash.0])?;
            }
            Ok(())
        })
        .await
    }

    /// Logs that somebody began to read and that have more, of apps of these key services: the app's number, its id, its key
    /// service.
    pub fn app_logs_unfinished(&self, kms: &[&str]) -> Result<Vec<(i64, AppId, String)>> {
        self.read(|connection| {
            let sql = "SELECT a.id, a.app_id, a.kms FROM app_log l JOIN app a ON a.id = l.app
              WHERE NOT l.complete AND a.kms IN (SELECT value FROM json_each(?))";
            let mut statement = connection.prepare_cached(sql)?;
            let found = statement.query_map([json!(kms).to_string()], |row| {
                Ok((row.get(0)?, AppId(row.get(1)?), row.get(2)?))
            })?;
            Ok(found.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// Hashes that an app's contract may allow although no revision has them: from its log, from what is provisioned, and from
    /// approvals.
    pub fn app_hashes(&self, app: i64) -> Result<Vec<ComposeHash>> {
        self.read(|connection| {
            let sql = "SELECT compose_hash FROM app_hash WHERE app = ?1
              UNION SELECT p.compose_hash FROM provision p JOIN app a ON a.app_id = p.app_id AND a.workspace_id = p.workspace_id
                WHERE a.id = ?1
              UNION SELECT v.compose_hash FROM approval v JOIN cvm c ON c.id = v.cvm_id WHERE c.app = ?1";
            let mut statement = connection.prepare_cached(sql)?;
            let found = statement.query_map([app], |row| row.get(0).map(ComposeHash))?;
            Ok(found.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// Does a live CVM of the app have this hash now, or may it have it when its operation has ended? A put-back needs the hash
    /// from before, and so does whatever may still lead to one.
    pub fn app_needs_hash(&self, app: i64, hash: ComposeHash) -> Result<bool> {
        self.read(|connection| {
            let sql = "SELECT 1 FROM cvm c LEFT JOIN operation o ON o.id = c.open_op
              JOIN revision r ON r.cvm_id = c.id AND r.number IN (c.revision, o.target, o.previous)
              WHERE c.app = ? AND c.deleted_at IS NULL AND r.compose_hash = ?";
            Ok(connection.prepare_cached(sql)?.exists(params![app, hash.0])?)
        })
    }

    /// Every revision of an app's CVMs that is kept, newest first.
    pub fn known_revisions(&self, app: i64) -> Result<Vec<KnownRevision>> {
        self.read(|connection| {
            let sql = "SELECT r.compose_hash, c.uid, r.number, r.created_at,
                c.deleted_at IS NULL AND r.number IN (c.revision, o.target, o.previous)
              FROM revision r JOIN cvm c ON c.id = r.cvm_id LEFT JOIN operation o ON o.id = c.open_op
              WHERE c.app = ? ORDER BY r.created_at DESC, r.number DESC";
            let mut statement = connection.prepare_cached(sql)?;
            let mut found = statement.query([app])?;
            let mut revisions = Vec::new();
            while let Some(row) = found.next()? {
                revisions.push(KnownRevision {
                    compose_hash: ComposeHash(row.get(0)?),
                    cvm: rows::uid(&row.get::<_, String>(1)?)?,
                    number: row.get(2)?,
                    created_at: time(row.get(3)?)?,
                    current: row.get::<_, Option<bool>>(4)?.unwrap_or_default(),
                });
            }
            Ok(revisions)
        })
    }
}
