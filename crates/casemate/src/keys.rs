//! Workspaces and keys made on the data folder itself, without a running server.

use std::path::{Path, PathBuf};

use casemate_server::auth::Scopes;
use casemate_server::clock::Clock;
use casemate_server::cvm::spec::sha256;
use casemate_server::error::Source;
use casemate_server::serve;
use casemate_server::store::{Account, NewKey, Store};
use casemate_types::version::ApiVersion;
use clap::Args;

/// Options of `casemate setup`.
#[derive(Args)]
pub(crate) struct Setup {
    /// Data folder of the server, which must not be running
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Workspace that the key is for; made if it does not exist
    #[arg(long, value_name = "NAME")]
    workspace: String,
    /// What to call the key
    #[arg(long, default_value = "first")]
    name: String,
}

impl Setup {
    /// Makes the key and prints it, once.
    pub(crate) async fn run(self) -> Result<(), Source> {
        let key = first_key(&self.data, &self.workspace, &self.name).await?;
        println!("{key}");
        eprintln!("This is shown once: only its hash is stored.");
        Ok(())
    }
}

/// Makes a key for `keys create --data`.
#[cfg(feature = "client")]
pub(crate) fn in_folder(wanted: casemate_cli::FolderKey) -> casemate_cli::MadeKey {
    Box::pin(async move {
        first_key(&wanted.data, &wanted.workspace, &wanted.name).await.map_err(|error| error.to_string())
    })
}

async fn first_key(data: &Path, workspace: &str, name: &str) -> Result<String, Source> {
    let is_new = !serve::has_store(data);
    let _lock = serve::lock(data)?;
    let clock = Clock::system();
    let store = serve::open_store(data)?;
    if is_new {
        // Somebody who mistyped the folder should notice.
        eprintln!("Made a new store in {}.", data.display());
    }
    let account = workspace_ensure(&store, &clock, workspace).await?;
    make(&store, &clock, &account, name).await
}

/// The workspace with this name, made if it does not exist.
pub(crate) async fn workspace_ensure(store: &Store, clock: &Clock, name: &str) -> Result<Account, Source> {
    let slug: String = name
        .to_lowercase()
        .chars()
        .map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '-' })
        .collect();
    let uids = [format!("wks_{}", clock.random_text(10)), format!("usr_{}", clock.random_text(10))];
    Ok(store.workspace_ensure(name.to_owned(), slug, uids, clock.now()).await?)
}

/// A new key with every scope.
pub(crate) async fn make(
    store: &Store,
    clock: &Clock,
    account: &Account,
    name: &str,
) -> Result<String, Source> {
    let key = format!("phak_{}", clock.random_text(43));
    let new = NewKey {
        uid: format!("key_{}", clock.random_text(10)),
        hash: sha256(key.as_bytes()),
        prefix: key[..10].to_owned(),
        name: name.to_owned(),
        scopes: Scopes::ALL,
        default_version: ApiVersion::LATEST,
        expires_at: None,
        at: clock.now(),
    };
    store.key_create(account.workspace_id, account.user_id, new, None, None).await?;
    Ok(key)
}
