//! The SQLite file: connections, the writer, migrations.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, mpsc};

use jiff::{SignedDuration, Timestamp};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode};
use tokio::sync::{oneshot, watch};

use super::accounts::KnownKeys;
use super::recent::Recent;
use super::{Error, Result};

/// Every schema version, in order. Files are added and never edited.
const MIGRATIONS: &[&str] = &[include_str!("migrations/0001_start.sql")];

/// Most transactions that share one commit: bounds how long the first of them waits.
const GROUP: usize = 256;

/// What a commit promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// On the disk before the answer, through a loss of power.
    Full,
    /// On the disk at the next checkpoint: a loss of power takes answered changes with it. For the test that has to see it.
    Checkpoint,
    /// For tests that do not ask about power: no flush at all.
    None,
}

impl FromStr for Durability {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "full" => Ok(Self::Full),
            "checkpoint" => Ok(Self::Checkpoint),
            "none" => Ok(Self::None),
            _ => Err("should be full, checkpoint or none".into()),
        }
    }
}

/// Where transactions run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriterMode {
    /// On a thread that commits in groups.
    Grouped,
    /// On the caller, at once: with virtual time nothing may happen elsewhere.
    Inline,
}

/// The store. Cheap to clone.
#[derive(Clone)]
pub struct Store(pub(super) Arc<Inner>);

pub(super) struct Inner {
    path: PathBuf,
    durability: Durability,
    readers: Mutex<Vec<Connection>>,
    writer: Writer,
    /// Number of the last event: a watcher wakes when it grows.
    last_event: watch::Sender<i64>,
    /// When it was last tried whether something can be stored, and it could.
    written_at: Mutex<Option<Timestamp>>,
    /// API keys that were looked up.
    pub(super) keys: KnownKeys,
    /// CVMs that were read.
    pub(super) recent: Arc<Recent>,
}

enum Writer {
    Grouped { jobs: mpsc::Sender<Box<dyn Job>>, thread: std::thread::JoinHandle<()> },
    Inline(Mutex<Connection>),
    Closed,
}

impl Drop for Inner {
    /// Everything that was handed in is committed, and the last connection tidies the file up.
    fn drop(&mut self) {
        self.readers.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner).clear();
        if let Writer::Grouped { jobs, thread } = std::mem::replace(&mut self.writer, Writer::Closed) {
            drop(jobs);
            // The last owner may have been a transaction.
            if thread.thread().id() != std::thread::current().id() {
                let _ = thread.join();
            }
        }
    }
}

/// One transaction waiting for the writer.
trait Job: Send {
    /// Does the work. False: whatever it wrote has to be undone. May be called again after that.
    fn run(&mut self, connection: &Connection) -> bool;
    /// Answers, after the group was committed or not.
    fn finish(self: Box<Self>, committed: std::result::Result<(), Arc<rusqlite::Error>>);
}

struct Transaction<T, F, N> {
    work: F,
    /// What follows the commit, before the answer.
    then: N,
    outcome: Option<Result<T>>,
    answer: oneshot::Sender<Result<T>>,
}

impl<T, F, N> Job for Transaction<T, F, N>
where
    T: Send,
    F: Fn(&Connection) -> Result<T> + Send,
    N: FnOnce(&T) + Send,
{
    fn run(&mut self, connection: &Connection) -> bool {
        // One that panics has no outcome, also if it had one before.
        self.outcome = None;
        let outcome = (self.work)(connection);
        let keep = outcome.is_ok();
        self.outcome = Some(outcome);
        keep
    }

    fn finish(self: Box<Self>, committed: std::result::Result<(), Arc<rusqlite::Error>>) {
        let outcome = match (self.outcome, committed) {
            // Also of one that was refused: what it was refused for may be gone with the others.
            (_, Err(error)) => Err(Error::Unavailable(error)),
            (Some(outcome), Ok(())) => outcome,
            // It panicked, and was undone.
            (None, Ok(())) => Err(closed()),
        };
        if let Ok(value) = &outcome {
            (self.then)(value);
        }
        // Nobody may be waiting any more; the work is done all the same.
        let _ = self.answer.send(outcome);
    }
}

impl Store {
    /// Opens the file, brings its schema up to date and starts the writer.
    pub fn open(path: &Path, durability: Durability, mode: WriterMode) -> Result<Self> {
        let mut connection = connect(path, durability)?;
        migrate(&connection)?;
        let recent = Arc::new(Recent::new());
        recent.follow(&mut connection)?;
        let last: i64 =
            connection.query_row("SELECT ifnull(max(seq), 0) FROM event", [], |row| row.get(0))?;
        let (last_event, _) = watch::channel(last);
        let writer = match mode {
            WriterMode::Inline => Writer::Inline(Mutex::new(connection)),
            WriterMode::Grouped => {
                let (jobs, queue) = mpsc::channel();
                let recent = Arc::clone(&recent);
                let thread = std::thread::Builder::new()
                    .name("store-writer".into())
                    .spawn(move || write_groups(&connection, &queue, &recent))
                    .map_err(|error| Error::Unreadable { what: "thread", source: error.into() })?;
                Writer::Grouped { jobs, thread }
            }
        };
        let (readers, keys) = (Mutex::default(), KnownKeys::default());
        let written_at = Mutex::default();
        let path = path.to_owned();
        let inner = Inner { path, durability, readers, writer, last_event, written_at, keys, recent };
        Ok(Self(Arc::new(inner)))
    }

    /// Runs `work` as one transaction and answers after its commit.
    pub(super) async fn write<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: Fn(&Connection) -> Result<T> + Send + 'static,
    {
        self.write_then(work, |_| ()).await
    }

    /// As [`Store::write`], with something to be done between the commit and the answer. It is done even if nobody is waiting
    /// for the answer any more.
    pub(super) async fn write_then<T, F, N>(&self, work: F, then: N) -> Result<T>
    where
        T: Send + 'static,
        F: Fn(&Connection) -> Result<T> + Send + 'static,
        N: FnOnce(&T) + Send + 'static,
    {
        match &self.0.writer {
            Writer::Grouped { jobs, .. } => {
                let (answer, outcome) = oneshot::channel();
                let job = Box::new(Transaction { work, then, outcome: None, answer });
                jobs.send(job).map_err(|_| closed())?;
                outcome.await.map_err(|_| closed())?
            }
            Writer::Closed => Err(closed()),
            Writer::Inline(connection) => {
                let connection = connection.lock().expect("a transaction does not panic");
                connection.execute_batch("BEGIN IMMEDIATE")?;
                match work(&connection) {
                    Ok(value) => {
                        connection.execute_batch("COMMIT")?;
                        self.0.recent.forget_touched();
                        then(&value);
                        Ok(value)
                    }
                    Err(error) => {
                        connection.execute_batch("ROLLBACK")?;
                        Err(error)
                    }
                }
            }
        }
    }

    /// Can something be stored? Tried at most every ten seconds as long as the answer is yes: nobody should be able to keep the
    /// disk busy by asking.
    ///
    /// # Errors
    /// Why not.
    pub async fn can_write(&self, now: Timestamp) -> Result<()> {
        const TRUSTED: SignedDuration = SignedDuration::from_secs(10);
        let written = self.0.written_at.lock().expect("nothing panics while holding it").is_some_and(|at| {
            let age = now.duration_since(at);
            age >= SignedDuration::ZERO && age < TRUSTED
        });
        if written {
            return Ok(());
        }
        let sql = "INSERT OR REPLACE INTO setting (name, value) VALUES ('written_at', ?)";
        self.write(move |tx| Ok(tx.prepare_cached(sql)?.execute([now.as_millisecond()])?)).await?;
        *self.0.written_at.lock().expect("nothing panics while holding it") = Some(now);
        Ok(())
    }

    /// Reads on this thread, on a connection that nobody else is using.
    pub(super) fn read<T>(&self, work: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
        let idle = self.0.readers.lock().expect("nothing panics while holding it").pop();
        let connection = match idle {
            Some(connection) => connection,
            None => connect(&self.0.path, self.0.durability)?,
        };
        let outcome = work(&connection);
        self.0.readers.lock().expect("nothing panics while holding it").push(connection);
        outcome
    }

    /// Wakes whoever follows the events. Called after a commit.
    pub(super) fn announce(&self, seq: i64) {
        self.0.last_event.send_if_modified(|last| {
            let newer = seq > *last;
            *last = seq.max(*last);
            newer
        });
    }

    /// Changes whenever events were committed.
    pub fn last_event(&self) -> watch::Receiver<i64> {
        self.0.last_event.subscribe()
    }
}

fn closed() -> Error {
    Error::Unavailable(Arc::new(rusqlite::Error::InvalidQuery))
}

fn connect(path: &Path, durability: Durability) -> Result<Connection> {
    let connection = Connection::open(path)?;
    connection.set_prepared_statement_cache_capacity(256);
    // Without it, SQLite plans a cached statement again whenever a value is bound that a partial index might care about.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    let synchronous = match durability {
        Durability::Full => "FULL",
        Durability::Checkpoint => "NORMAL",
        Durability::None => "OFF",
    };
    connection.execute_batch(&format!(
        "PRAGMA journal_mode=WAL; PRAGMA synchronous={synchronous}; PRAGMA foreign_keys=ON; PRAGMA busy_timeout=5000;
         PRAGMA cache_size=-4096; PRAGMA temp_store=MEMORY; PRAGMA mmap_size=1073741824;
         PRAGMA wal_autocheckpoint=8000;"
    ))?;
    Ok(connection)
}

fn migrate(connection: &Connection) -> Result<()> {
    let version: usize = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    if version > MIGRATIONS.len() {
        let known = MIGRATIONS.len();
        let why = format!("its schema is version {version}, and this program knows versions up to {known}");
        return Err(Error::Unreadable { what: "store of a newer casemate", source: why.into() });
    }
    for (number, script) in MIGRATIONS.iter().enumerate().skip(version) {
        connection.execute_batch(&format!("BEGIN; {script}; PRAGMA user_version={}; COMMIT;", number + 1))?;
    }
    Ok(())
}

/// Commits whatever is waiting, together, until nobody can send any more. There is no timer: one client alone waits for
/// nobody.
fn write_groups(connection: &Connection, queue: &mpsc::Receiver<Box<dyn Job>>, recent: &Recent) {
    while let Ok(first) = queue.recv() {
        let mut group = vec![first];
        group.extend(queue.try_iter().take(GROUP - 1));
        let committed = write_group(connection, &mut group).map_err(Arc::new);
        if let Err(error) = &committed {
            tracing::error!(%error, jobs = group.len(), "the store could not commit");
            // Leaves the connection usable: after a full disk it works again as soon as there is room.
            if !connection.is_autocommit() {
                let _ = connection.execute_batch("ROLLBACK");
            }
        }
        recent.forget_touched();
        for job in group {
            job.finish(committed.clone());
        }
        // Those who were answered may have more to ask: then that shares the next commit.
        std::thread::yield_now();
    }
}

/// How far the transactions of a group are kept apart.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Apart {
    /// Not at all: one that fails after it has written takes the others with it.
    No,
    /// Each in a savepoint, which costs a copy of every page that it touches.
    Savepoints,
}

fn write_group(connection: &Connection, group: &mut [Box<dyn Job>]) -> rusqlite::Result<()> {
    // Hardly any transaction fails after it has written something; if one does, all of them run again.
    if !try_group(connection, group, Apart::No)? {
        connection.prepare_cached("ROLLBACK")?.execute([])?;
        try_group(connection, group, Apart::Savepoints)?;
    }
    connection.prepare_cached("COMMIT")?.execute([])?;
    Ok(())
}

/// Runs a group up to its commit. False: one has failed, and what it has written cannot be told from what others have.
fn try_group(connection: &Connection, group: &mut [Box<dyn Job>], apart: Apart) -> rusqlite::Result<bool> {
    connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
    for job in group {
        let before = connection.total_changes();
        if apart == Apart::Savepoints {
            connection.prepare_cached("SAVEPOINT one")?.execute([])?;
        }
        // A bug in one transaction must not end the writer for everybody.
        let kept = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| job.run(connection)));
        let kept = kept.unwrap_or(false);
        // A full disk may have ended the whole transaction already.
        if !kept && connection.is_autocommit() {
            return Err(full());
        }
        match apart {
            Apart::No if kept || connection.total_changes() == before => {}
            Apart::No => return Ok(false),
            Apart::Savepoints => {
                if !kept {
                    connection.prepare_cached("ROLLBACK TO one")?.execute([])?;
                }
                connection.prepare_cached("RELEASE one")?.execute([])?;
            }
        }
    }
    Ok(true)
}

fn full() -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(
        rusqlite::ffi::Error { code: ErrorCode::DiskFull, extended_code: 13 },
        Some("the transaction was ended by the database".into()),
    )
}
