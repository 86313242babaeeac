//! Servers that do one thing and nothing else: what the approach costs at least.
//!
//! They use what the product uses (axum on tokio, SQLite in WAL mode with `synchronous=FULL`, cached statements, reads on the
//! thread that asks) and leave out everything that makes a cloud of it: rights, validation, request ids, logs, events that
//! somebody can follow, steps, put-backs.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use axum::Router;
use clap::Args;
use rusqlite::Connection;
use serde::{Deserialize, Serialize};

use crate::Result;

pub(crate) mod accept;
pub(crate) mod get;

/// Options of a limit server.
#[derive(Args)]
pub(crate) struct Options {
    /// Where to listen
    #[arg(long)]
    listen: SocketAddr,
    /// Folder for its database
    #[arg(long)]
    folder: PathBuf,
    /// The API key that it knows
    #[arg(long, default_value = "")]
    key: String,
    /// File with the ids of its machines, a line each
    #[arg(long)]
    ids: PathBuf,
}

/// What is kept of a machine, as one JSON column of 2 KB.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Machine {
    name: String,
    app_id: String,
    vm_uuid: String,
    instance_id: String,
    status: String,
    listed: bool,
    vcpu: u32,
    memory_mb: u32,
    disk_gb: u32,
    image: String,
    os_image_hash: String,
    node: Node,
    compose_hash: String,
    encrypted_env_pubkey: String,
    created_at: String,
    updated_at: String,
    compose_file: Compose,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Node {
    id: i64,
    name: String,
    region: String,
    device_id: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Compose {
    name: String,
    runner: String,
    manifest_version: u32,
    docker_compose_file: String,
    allowed_envs: Vec<String>,
    features: Vec<String>,
    public_logs: bool,
    public_sysinfo: bool,
}

/// What a revision fixes, without the texts, which stay where they are.
#[derive(Debug, Serialize)]
struct Spec<'a> {
    vcpu: u32,
    memory_mb: u32,
    disk_gb: u32,
    image: &'a str,
    compose_hash: &'a str,
    instance_id: &'a str,
}

impl Machine {
    fn spec(&self) -> Spec<'_> {
        Spec {
            vcpu: self.vcpu,
            memory_mb: self.memory_mb,
            disk_gb: self.disk_gb,
            image: &self.image,
            compose_hash: &self.compose_hash,
            instance_id: &self.instance_id,
        }
    }

    fn new(number: usize) -> Self {
        let digits = |length: usize| format!("{number:0>length$x}");
        let service = "    image: registry.example.com/team/web:1\n    ports:\n      - \"80:8080\"\n    restart: always\n";
        Self {
            name: format!("web-{number:06}"),
            app_id: digits(40),
            vm_uuid: uuid::Uuid::from_u128(number as u128).to_string(),
            instance_id: digits(40),
            status: "running".into(),
            listed: false,
            vcpu: 1,
            memory_mb: 2048,
            disk_gb: 20,
            image: "dstack-0.5.5".into(),
            os_image_hash: digits(64),
            node: Node { id: 1, name: "sim-1".into(), region: "local".into(), device_id: digits(64) },
            compose_hash: digits(64),
            encrypted_env_pubkey: digits(64),
            created_at: "2026-01-01T00:00:00.000Z".into(),
            updated_at: "2026-01-01T00:00:00.000Z".into(),
            compose_file: Compose {
                name: format!("web-{number:06}"),
                runner: "docker-compose".into(),
                manifest_version: 2,
                docker_compose_file: format!(
                    "services:\n  web:\n{service}  api:\n{service}  db:\n{service}{}",
                    "#".repeat(520)
                ),
                allowed_envs: vec!["DATABASE_URL".into()],
                features: vec!["kms".into(), "tproxy-net".into()],
                public_logs: true,
                public_sysinfo: true,
            },
        }
    }
}

/// A fresh database with the machines that `ids` names.
fn fill(options: &Options) -> Result<PathBuf> {
    std::fs::create_dir_all(&options.folder)?;
    let path = options.folder.join("limit.db");
    let mut connection = connect(&path)?;
    connection.execute_batch(
        "CREATE TABLE api_key (id INTEGER PRIMARY KEY, hash BLOB NOT NULL UNIQUE, workspace_id INTEGER NOT NULL) STRICT;
         CREATE TABLE machine (id INTEGER PRIMARY KEY, uid TEXT NOT NULL UNIQUE, workspace_id INTEGER NOT NULL,
           version INTEGER NOT NULL, updated_at INTEGER NOT NULL, data TEXT NOT NULL) STRICT;
         CREATE INDEX machine_of_workspace ON machine (workspace_id, id);
         CREATE TABLE revision (machine_id INTEGER NOT NULL, version INTEGER NOT NULL, data TEXT NOT NULL,
           created_at INTEGER NOT NULL, PRIMARY KEY (machine_id, version)) STRICT;
         CREATE TABLE operation (id BLOB PRIMARY KEY, machine_id INTEGER NOT NULL, version INTEGER NOT NULL,
           status TEXT NOT NULL, steps TEXT NOT NULL, created_at INTEGER NOT NULL) STRICT, WITHOUT ROWID;
         CREATE UNIQUE INDEX operation_open ON operation (machine_id) WHERE status = 'open';
         CREATE TABLE event (seq INTEGER PRIMARY KEY, machine_id INTEGER NOT NULL, op BLOB NOT NULL, kind TEXT NOT NULL,
           at INTEGER NOT NULL) STRICT;",
    )?;
    let filling = connection.transaction()?;
    filling.execute(
        "INSERT INTO api_key (hash, workspace_id) VALUES (?, 1)",
        [sha256(options.key.as_bytes())],
    )?;
    for (number, id) in std::fs::read_to_string(&options.ids)?.lines().enumerate() {
        filling
            .prepare_cached(
                "INSERT INTO machine (uid, workspace_id, version, updated_at, data) VALUES (?, 1, 1, 0, ?)",
            )?
            .execute((id, serde_json::to_string(&Machine::new(number))?))?;
    }
    filling.commit()?;
    Ok(path)
}

fn connect(path: &Path) -> Result<Connection> {
    let connection = Connection::open(path)?;
    connection.set_prepared_statement_cache_capacity(64);
    connection.set_db_config(rusqlite::config::DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    connection.execute_batch("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA cache_size=-4096;")?;
    Ok(connection)
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    use sha2::Digest;
    sha2::Sha256::digest(bytes).into()
}

/// Connections that nobody is using, as many as were ever needed at once.
#[derive(Clone)]
struct Readers(Arc<(PathBuf, Mutex<Vec<Connection>>)>);

impl Readers {
    fn new(path: PathBuf) -> Self {
        Self(Arc::new((path, Mutex::default())))
    }

    fn read<T>(&self, work: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
        let (path, idle) = &*self.0;
        let taken = idle.lock().expect("nothing panics while holding it").pop();
        let connection = taken.map_or_else(|| connect(path), Ok)?;
        let outcome = work(&connection);
        idle.lock().expect("nothing panics while holding it").push(connection);
        outcome
    }
}

async fn serve(options: &Options, router: Router) -> Result<()> {
    let listener = tokio::net::TcpListener::bind(options.listen).await?;
    axum::serve(listener, router).await?;
    Ok(())
}
