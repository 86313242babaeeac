//! Answers kept for requests that may come again.
//!
//! An answer is written by the transaction that makes it true, so that the two cannot part: after a crash a request that
//! comes again either gets its answer or has never happened.

use std::fmt;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use rusqlite::{Connection, OptionalExtension, params};

use super::rows::millis;
use super::{Error, Result, Store};

/// How long an answer is kept.
const LIFE: SignedDuration = SignedDuration::from_hours(24);

/// How many old answers go with each new one. More than one, so that they do not pile up.
const SWEEP: usize = 4;

/// Names one request of one caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestKey {
    /// SHA-256 over who asks, what for, and the key that they chose.
    pub scope: [u8; 32],
    /// SHA-256 of the request itself.
    pub request: [u8; 32],
    /// When it came.
    pub at: Timestamp,
}

/// A status and a body, as they go out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// JSON, or nothing.
    pub body: String,
}

/// How the answer is made from what a transaction did.
type Render<T> = Arc<dyn Fn(&T) -> crate::error::Result<Answer> + Send + Sync>;

/// Asks a transaction to keep its answer. `T` is what the transaction gives.
pub struct Receipt<T> {
    key: RequestKey,
    render: Render<T>,
}

impl<T: 'static> Receipt<T> {
    /// Keeps what `render` makes of the transaction's outcome under `key`.
    pub fn new(
        key: RequestKey,
        render: impl Fn(&T) -> crate::error::Result<Answer> + Send + Sync + 'static,
    ) -> Self {
        Self { key, render: Arc::new(render) }
    }

    /// The same for a transaction that gives an `S`.
    pub fn of<S>(&self, from: impl Fn(&S) -> T + Send + Sync + 'static) -> Receipt<S> {
        let render = Arc::clone(&self.render);
        Receipt { key: self.key, render: Arc::new(move |outcome: &S| render(&from(outcome))) }
    }
}

impl<T> Clone for Receipt<T> {
    fn clone(&self) -> Self {
        Self { key: self.key, render: Arc::clone(&self.render) }
    }
}

impl<T> fmt::Debug for Receipt<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receipt").field("key", &self.key).finish_non_exhaustive()
    }
}

impl Store {
    /// The answer kept under this key, with the hash of the request that it answered.
    pub fn answer(&self, key: &RequestKey) -> Result<Option<([u8; 32], Answer)>> {
        self.read(|connection| {
            let sql = "SELECT request, status, answer FROM idempotency WHERE scope = ? AND at > ?";
            let found =
                connection.prepare_cached(sql)?.query_row(params![key.scope, millis(key.at - LIFE)], |row| {
                    Ok((row.get(0)?, Answer { status: row.get(1)?, body: row.get(2)? }))
                });
            Ok(found.optional()?)
        })
    }

    /// Keeps the answer to a request that changed nothing. One that is there already stays.
    pub async fn answer_keep(&self, key: RequestKey, answer: Answer) -> Result<()> {
        self.write(move |tx| match insert(tx, &key, &answer) {
            Err(Error::Answered) => Ok(()),
            other => other,
        })
        .await
    }

    /// As [`Store::change`], keeping the answer in the same transaction.
    pub(super) async fn change_and_keep<T, F>(&self, receipt: Option<Receipt<T>>, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: Fn(&Connection) -> Result<(T, i64)> + Send + 'static,
    {
        self.change(move |tx| {
            let (value, seq) = work(tx)?;
            keep(tx, receipt.as_ref(), &value)?;
            Ok((value, seq))
        })
        .await
    }
}

/// Keeps the answer that belongs to `value`, if it is to be kept.
pub(super) fn keep<T>(tx: &Connection, receipt: Option<&Receipt<T>>, value: &T) -> Result<()> {
    let Some(Receipt { key, render }) = receipt else { return Ok(()) };
    let answer =
        render(value).map_err(|source| Error::Unreadable { what: "answer", source: source.into() })?;
    insert(tx, key, &answer)
}

fn insert(tx: &Connection, key: &RequestKey, answer: &Answer) -> Result<()> {
    let old = millis(key.at - LIFE);
    let sweep = "DELETE FROM idempotency WHERE scope = ?1 AND at <= ?2
      OR scope IN (SELECT scope FROM idempotency WHERE at <= ?2 ORDER BY at LIMIT ?3)";
    tx.prepare_cached(sweep)?.execute(params![key.scope, old, SWEEP])?;
    let sql = "INSERT INTO idempotency (scope, request, status, answer, at) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING";
    let row = params![key.scope, key.request, answer.status, answer.body, millis(key.at)];
    match tx.prepare_cached(sql)?.execute(row)? {
        0 => Err(Error::Answered),
        _ => Ok(()),
    }
}
