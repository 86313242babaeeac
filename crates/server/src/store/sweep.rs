//! What is no longer kept goes in small transactions, so that nobody waits for it.
//!
//! Every revision of a live CVM stays, and so do the events that say who did what to it.

use jiff::{SignedDuration, Timestamp};
use rusqlite::{Connection, OptionalExtension, params};

use super::rows::millis;
use super::{Result, Store};

/// How many rows of a kind go in one transaction.
const AT_ONCE: usize = 500;

/// How long things are kept that nothing depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    /// Events of single steps. The reader of a stream that has passed them by gets `Swept`.
    pub step_events: SignedDuration,
    /// Provisions and approvals, after their time is over.
    pub expired: SignedDuration,
    /// CVMs, after they were deleted.
    pub deleted: SignedDuration,
}

impl Default for Keep {
    /// Thirty days each.
    fn default() -> Self {
        let month = SignedDuration::from_hours(30 * 24);
        Self { step_events: month, expired: month, deleted: month }
    }
}

impl Store {
    /// Removes some of what is no longer kept, and says how many rows. Zero: there is nothing left to remove.
    pub async fn sweep(&self, keep: Keep, now: Timestamp) -> Result<usize> {
        self.write(move |tx| {
            let before = |age: SignedDuration| millis(now - age);
            Ok(expired(tx, before(keep.expired))?
                + step_events(tx, before(keep.step_events))?
                + deleted(tx, before(keep.deleted))?)
        })
        .await
    }
}

fn expired(tx: &Connection, before: i64) -> Result<usize> {
    let provisions =
        "DELETE FROM provision WHERE id IN (SELECT id FROM provision WHERE expires_at < ? LIMIT ?)";
    let approvals = "DELETE FROM approval WHERE id IN (SELECT id FROM approval WHERE expires_at < ? AND state <> 'committed' LIMIT ?)";
    let mut gone = 0;
    for sql in [provisions, approvals] {
        gone += tx.prepare_cached(sql)?.execute(params![before, AT_ONCE])?;
    }
    Ok(gone)
}

/// Goes through the events in order, once: where it stands is kept, so that it never looks at one again.
fn step_events(tx: &Connection, before: i64) -> Result<usize> {
    let from: i64 = tx
        .prepare_cached("SELECT ifnull(max(value), 0) FROM setting WHERE name = 'events_swept_to'")?
        .query_row([], |row| row.get(0))?;
    let to: Option<i64> = tx
        .prepare_cached(
            "SELECT max(seq) FROM (SELECT seq, at FROM event WHERE seq > ? ORDER BY seq LIMIT ?) WHERE at < ?",
        )?
        .query_row(params![from, AT_ONCE, before], |row| row.get(0))?;
    let Some(to) = to else { return Ok(0) };
    tx.prepare_cached(
        "DELETE FROM event WHERE seq > ? AND seq <= ? AND kind IN ('step.finished', 'operation.waiting')",
    )?
    .execute(params![from, to])?;
    tx.prepare_cached("INSERT OR REPLACE INTO setting (name, value) VALUES ('events_swept_to', ?)")?
        .execute([to])?;
    // Kept events that were passed count as well: there may be more behind them.
    Ok(usize::try_from(to - from).unwrap_or(usize::MAX))
}

/// One table of one CVM after the other, the CVM itself last: what is left of it is found again by it.
fn deleted(tx: &Connection, before: i64) -> Result<usize> {
    let sql = "SELECT id FROM cvm WHERE deleted_at < ? LIMIT 1";
    let found = tx.prepare_cached(sql)?.query_row([before], |row| row.get(0));
    let Some(id): Option<i64> = found.optional()? else { return Ok(0) };
    let mut gone = 0;
    for (table, key, of_it, most) in OF_A_CVM {
        let most = (*most).min(AT_ONCE - gone);
        let sql =
            format!("DELETE FROM {table} WHERE {key} IN (SELECT {key} FROM {table} WHERE {of_it} LIMIT ?2)");
        let rows = tx.prepare_cached(&sql)?.execute(params![id, most])?;
        gone += rows;
        if rows == most {
            // There may be more: the next transaction looks.
            return Ok(gone);
        }
    }
    gone += tx.prepare_cached("DELETE FROM cvm WHERE id = ?")?.execute([id])?;
    Ok(gone)
}

/// What a deleted CVM leaves: table, key, which rows are its own, and how many of them go at once. Bodies are long.
const OF_A_CVM: &[(&str, &str, &str, usize)] = &[
    ("event", "seq", "op IN (SELECT id FROM operation WHERE cvm_id = ?1)", AT_ONCE),
    ("event", "seq", "op IS NULL AND cvm_id = ?1", AT_ONCE),
    ("approval", "id", "cvm_id = ?1", AT_ONCE),
    (
        "provision",
        "id",
        "ifnull(cvm_id, 0) = ?1 AND workspace_id = (SELECT workspace_id FROM cvm WHERE id = ?1)",
        AT_ONCE,
    ),
    ("operation", "id", "cvm_id = ?1", AT_ONCE),
    ("revision", "rowid", "cvm_id = ?1", AT_ONCE),
    ("body", "rowid", "cvm_id = ?1", 20),
    ("observation", "cvm_id", "cvm_id = ?1", AT_ONCE),
];
