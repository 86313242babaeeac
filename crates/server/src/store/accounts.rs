//! Workspaces, users, API keys, and single settings of the store.

use std::collections::HashMap;
use std::str::FromStr;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use casemate_types::version::ApiVersion;
use futures_util::FutureExt;
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};

use super::answers::{self, Receipt};
use super::events::{self, NewEvent};
use super::rows::{millis, time, unreadable};
use super::{Error, Result, Store};
use crate::auth::{Actor, Author, Scopes};

/// What is shown of a key. The key itself is shown once, when it is made.
#[derive(Clone, Debug, PartialEq)]
pub struct ApiKey {
    /// `key_…`.
    pub uid: String,
    /// The first characters of the key.
    pub prefix: String,
    /// What its owner calls it.
    pub name: String,
    /// What it may do.
    pub scopes: Scopes,
    /// API date of requests that name none.
    pub default_version: ApiVersion,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it stops working.
    pub expires_at: Option<Timestamp>,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
    /// When it was last used, to within a minute or so.
    pub last_used_at: Option<Timestamp>,
}

/// A key to be stored.
#[derive(Clone, Debug)]
pub struct NewKey {
    /// `key_…`.
    pub uid: String,
    /// SHA-256 of the key.
    pub hash: [u8; 32],
    /// The first characters of the key.
    pub prefix: String,
    /// What its owner calls it.
    pub name: String,
    /// What it may do.
    pub scopes: Scopes,
    /// API date of requests that name none.
    pub default_version: ApiVersion,
    /// When it stops working.
    pub expires_at: Option<Timestamp>,
    /// Now.
    pub at: Timestamp,
}

/// The actor behind a key, if the key is valid.
pub type KeyCheck = Option<Actor>;

/// Keys that were found in the store since one was last revoked there.
///
/// They are forgotten between the commit of a revocation and its answer, so nobody who heard of it is let in by what was known
/// before. A read that began earlier and ends later brings its epoch along, and is not kept.
#[derive(Default)]
pub(super) struct KnownKeys(Mutex<Known>);

#[derive(Default)]
struct Known {
    keys: HashMap<[u8; 32], Arc<KnownKey>>,
    /// Counts revocations.
    epoch: u64,
}

struct KnownKey {
    actor: Actor,
    expires_at: Option<Timestamp>,
    /// The last use that was stored or is about to be, in milliseconds.
    used: AtomicI64,
}

impl KnownKey {
    /// Is this use worth storing? Yes for one of all that come within a minute.
    fn is_news(&self, now: Timestamp) -> bool {
        const STORED_EVERY: i64 = 60_000;
        let (now, used) = (millis(now), self.used.load(Relaxed));
        now.saturating_sub(used) >= STORED_EVERY
            && self.used.compare_exchange(used, now, Relaxed, Relaxed).is_ok()
    }
}

impl KnownKeys {
    /// Most keys that are remembered.
    const MOST: usize = 10_000;

    fn get(&self, hash: &[u8; 32]) -> (Option<Arc<KnownKey>>, u64) {
        let known = self.0.lock().expect("nothing panics while holding it");
        (known.keys.get(hash).cloned(), known.epoch)
    }

    fn keep(&self, hash: [u8; 32], key: KnownKey, epoch: u64) -> Arc<KnownKey> {
        let key = Arc::new(key);
        let mut known = self.0.lock().expect("nothing panics while holding it");
        if known.epoch == epoch {
            if known.keys.len() >= Self::MOST {
                known.keys.clear();
            }
            known.keys.insert(hash, Arc::clone(&key));
        }
        key
    }

    fn forget(&self) {
        let mut known = self.0.lock().expect("nothing panics while holding it");
        known.keys.clear();
        known.epoch += 1;
    }
}

/// A tenant with its user.
#[derive(Clone, Debug, PartialEq)]
pub struct Account {
    /// Number of the workspace.
    pub workspace_id: i64,
    /// `wks_…`.
    pub workspace_uid: String,
    /// Name of the workspace.
    pub workspace: String,
    /// Its name in URLs.
    pub slug: String,
    /// Number of the user.
    pub user_id: i64,
    /// `usr_…`.
    pub user_uid: String,
    /// Name of the user.
    pub username: String,
    /// Mail address of the user.
    pub email: String,
    /// When the workspace was made.
    pub created_at: Timestamp,
}

impl Store {
    /// The actor behind the key with this hash.
    pub fn key_check(&self, hash: &[u8; 32], now: Timestamp) -> Result<KeyCheck> {
        let (known, epoch) = self.0.keys.get(hash);
        let key = match known {
            Some(key) => key,
            None => match self.key_read(hash)? {
                Some(key) => self.0.keys.keep(*hash, key, epoch),
                None => return Ok(None),
            },
        };
        if key.expires_at.is_some_and(|end| end <= now) {
            return Ok(None);
        }
        if key.is_news(now) {
            self.key_used(key.actor.key_id, now);
        }
        Ok(Some(key.actor.clone()))
    }

    /// Stores when a key was used. Nobody waits for it; if it is lost, the next use within a minute or so makes up for it.
    fn key_used(&self, key_id: i64, now: Timestamp) {
        let sql = "UPDATE api_key SET last_used_at = ? WHERE id = ?";
        let stored = self.write(move |tx| {
            tx.prepare_cached(sql)?.execute(params![millis(now), key_id])?;
            Ok(())
        });
        // The first look at it hands it to the writer, which does not ask whether somebody waits.
        drop(stored.now_or_never());
    }

    /// When a key stops working by itself.
    pub fn key_expiry(&self, key_id: i64) -> Result<Option<Timestamp>> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached("SELECT expires_at FROM api_key WHERE id = ?")?;
            let expiry = statement.query_row([key_id], |row| row.get::<_, Option<i64>>(0)).optional()?;
            expiry.flatten().map(time).transpose()
        })
    }

    /// The key with this hash, if it was not revoked.
    fn key_read(&self, hash: &[u8; 32]) -> Result<Option<KnownKey>> {
        self.read(|connection| {
            let sql = "SELECT id, workspace_id, user_id, scopes, default_version, expires_at, last_used_at FROM api_key
              WHERE hash = ? AND revoked_at IS NULL";
            let mut statement = connection.prepare_cached(sql)?;
            let mut found = statement.query([hash])?;
            let Some(row) = found.next()? else { return Ok(None) };
            let actor = Actor {
                key_id: row.get(0)?,
                workspace_id: row.get(1)?,
                user_id: row.get(2)?,
                scopes: scopes(row.get_ref(3)?.as_str().map_err(rusqlite::Error::from)?)?,
                default_version: version(row.get_ref(4)?.as_str().map_err(rusqlite::Error::from)?)?,
            };
            let used = AtomicI64::new(row.get::<_, Option<i64>>(6)?.unwrap_or(i64::MIN));
            let expires_at = row.get::<_, Option<i64>>(5)?.map(time).transpose()?;
            Ok(Some(KnownKey { actor, expires_at, used }))
        })
    }

    /// The actor behind the key with this number; none if it was revoked or has expired.
    pub fn key_actor(&self, key_id: i64, now: Timestamp) -> Result<KeyCheck> {
        let hash: Option<[u8; 32]> = self.read(|connection| {
            let mut statement = connection.prepare_cached("SELECT hash FROM api_key WHERE id = ?")?;
            Ok(statement.query_row([key_id], |row| row.get(0)).optional()?)
        })?;
        hash.map_or(Ok(None), |hash| self.key_check(&hash, now))
    }

    /// The workspace with this slug, made with one user if it does not exist.
    pub async fn workspace_ensure(
        &self,
        name: String,
        slug: String,
        uids: [String; 2],
        at: Timestamp,
    ) -> Result<Account> {
        let [workspace_uid, user_uid] = uids;
        let looked_up = slug.clone();
        self.write(move |tx| {
            let found = tx
                .prepare_cached("SELECT id FROM workspace WHERE slug = ?")?
                .query_row([&slug], |row| row.get::<_, i64>(0))
                .optional()?;
            if found.is_some() {
                return Ok(());
            }
            tx.execute(
                "INSERT INTO workspace (uid, name, slug, created_at) VALUES (?, ?, ?, ?)",
                params![workspace_uid, name, slug, millis(at)],
            )?;
            let workspace_id = tx.last_insert_rowid();
            tx.execute(
                "INSERT INTO user (uid, workspace_id, username, email, created_at) VALUES (?, ?, ?, ?, ?)",
                params![user_uid, workspace_id, slug, format!("{slug}@localhost"), millis(at)],
            )?;
            Ok(())
        })
        .await?;
        self.account_by("w.slug = ?", looked_up)
    }

    /// The workspace with this number and its user.
    pub fn account(&self, workspace_id: i64) -> Result<Account> {
        self.account_by("w.id = ?", workspace_id)
    }

    /// The workspace with this slug and its user.
    pub fn account_by_slug(&self, slug: &str) -> Result<Account> {
        self.account_by("w.slug = ?", slug)
    }

    fn account_by(&self, condition: &str, value: impl rusqlite::ToSql) -> Result<Account> {
        self.read(|connection| {
            let sql = format!(
                "SELECT w.id, w.uid, w.name, w.slug, u.id, u.uid, u.username, u.email, w.created_at
                 FROM workspace w JOIN user u ON u.workspace_id = w.id WHERE {condition} ORDER BY u.id LIMIT 1"
            );
            let mut statement = connection.prepare_cached(&sql)?;
            let mut found = statement.query([value])?;
            let row = found.next()?.ok_or(Error::Missing)?;
            Ok(Account {
                workspace_id: row.get(0)?,
                workspace_uid: row.get(1)?,
                workspace: row.get(2)?,
                slug: row.get(3)?,
                user_id: row.get(4)?,
                user_uid: row.get(5)?,
                username: row.get(6)?,
                email: row.get(7)?,
                created_at: time(row.get(8)?)?,
            })
        })
    }

    /// Stores a new key.
    pub async fn key_create(
        &self,
        workspace_id: i64,
        user_id: i64,
        key: NewKey,
        author: Option<Author>,
        receipt: Option<Receipt<()>>,
    ) -> Result<()> {
        self.change_and_keep(receipt, move |tx| {
            tx.execute(
                "INSERT INTO api_key (uid, hash, prefix, workspace_id, user_id, name, scopes, default_version, created_at,
                   expires_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                params![
                    key.uid,
                    key.hash,
                    key.prefix,
                    workspace_id,
                    user_id,
                    key.name,
                    key.scopes.text(),
                    key.default_version.as_str(),
                    millis(key.at),
                    key.expires_at.map(millis),
                ],
            )?;
            let event = NewEvent {
                author: author.as_ref(),
                note: Some(key.uid.clone()),
                ..NewEvent::of_workspace("key.created", workspace_id, key.at)
            };
            Ok(((), events::append(tx, &event)?))
        })
        .await
    }

    /// Revokes a key. `Missing` if the workspace has no such key that still works.
    pub async fn key_revoke(
        &self,
        workspace_id: i64,
        uid: String,
        author: Option<Author>,
        at: Timestamp,
        receipt: Option<Receipt<()>>,
    ) -> Result<()> {
        let revoke = move |tx: &Connection| {
            let sql =
                "UPDATE api_key SET revoked_at = ? WHERE uid = ? AND workspace_id = ? AND revoked_at IS NULL";
            if tx.execute(sql, params![millis(at), uid, workspace_id])? == 0 {
                return Err(Error::Missing);
            }
            let event = NewEvent {
                author: author.as_ref(),
                note: Some(uid.clone()),
                ..NewEvent::of_workspace("key.revoked", workspace_id, at)
            };
            let seq = events::append(tx, &event)?;
            answers::keep(tx, receipt.as_ref(), &())?;
            Ok(seq)
        };
        let store = self.clone();
        let forget = move |seq: &i64| {
            store.0.keys.forget();
            store.announce(*seq);
        };
        self.write_then(revoke, forget).await.map(|_| ())
    }

    /// The keys of a workspace, newest first.
    pub fn keys(&self, workspace_id: i64) -> Result<Vec<ApiKey>> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached(
                "SELECT uid, prefix, name, scopes, default_version, created_at, expires_at, revoked_at,
                   last_used_at FROM api_key
                 WHERE workspace_id = ? ORDER BY id DESC",
            )?;
            let mut found = statement.query([workspace_id])?;
            let mut keys = Vec::new();
            while let Some(row) = found.next()? {
                keys.push(ApiKey {
                    uid: row.get(0)?,
                    prefix: row.get(1)?,
                    name: row.get(2)?,
                    scopes: scopes(row.get_ref(3)?.as_str().map_err(rusqlite::Error::from)?)?,
                    default_version: version(row.get_ref(4)?.as_str().map_err(rusqlite::Error::from)?)?,
                    created_at: time(row.get(5)?)?,
                    expires_at: row.get::<_, Option<i64>>(6)?.map(time).transpose()?,
                    revoked_at: row.get::<_, Option<i64>>(7)?.map(time).transpose()?,
                    last_used_at: row.get::<_, Option<i64>>(8)?.map(time).transpose()?,
                });
            }
            Ok(keys)
        })
    }

    /// A value that belongs to the store, drawn on first use.
    pub async fn setting_ensure(&self, name: &'static str, fresh: Vec<u8>) -> Result<Vec<u8>> {
        self.write(move |tx| {
            tx.execute(
                "INSERT INTO setting (name, value) VALUES (?, ?) ON CONFLICT DO NOTHING",
                params![name, fresh],
            )?;
            Ok(tx.query_row("SELECT value FROM setting WHERE name = ?", [name], |row| row.get(0))?)
        })
        .await
    }
}

fn scopes(text: &str) -> Result<Scopes> {
    Scopes::parse(text).map_err(|source| unreadable("scope", source))
}

fn version(text: &str) -> Result<ApiVersion> {
    ApiVersion::from_str(text).map_err(|source| unreadable("API date", source.to_string()))
}
