//! `casemate keys`: API keys, through the API or in the data folder of a server that is not running.

use std::path::PathBuf;

use casemate_sdk::wire::ApiKeyInfo;
use clap::{Args, Subcommand};
use serde_json::json;

use crate::FolderKey;
use crate::context::Context;
use crate::error::{About, AboutExt, Failure, Result};
use crate::human;
use crate::output::{Col, table};
use crate::value::Lifetime;

/// List, create and revoke API keys
#[derive(Args)]
pub struct Keys {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    #[command(visible_alias = "ls")]
    List(List),
    Create(Create),
    Revoke(Revoke),
}

/// List the API keys of the workspace
#[derive(Args)]
pub(crate) struct List {}

/// Make an API key; it is shown once
///
/// With --data, the key is made in the data folder of a server on this machine that is not running, without asking anybody:
/// that is how a new server gets its first one.
#[derive(Args)]
#[command(after_help = "Examples:
  casemate keys create --name ci --scope read --expires-in 30d
  casemate keys create --data /var/lib/casemate --workspace main")]
pub(crate) struct Create {
    /// What to call the key [default: the name of the user, or `first` with --data]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// What it may do; can be repeated. Everything unless given
    #[arg(long, value_name = "SCOPE", conflicts_with = "data")]
    scope: Vec<String>,
    /// How long it works: 12h, 30d, 8w. Until it is revoked unless given
    #[arg(long, value_name = "TIME", conflicts_with = "data")]
    expires_in: Option<Lifetime>,
    /// Data folder of a server that is not running
    #[arg(long, value_name = "DIR", requires = "workspace")]
    data: Option<PathBuf>,
    /// Workspace that the key is for; made if it does not exist
    #[arg(long, value_name = "NAME", requires = "data")]
    workspace: Option<String>,
}

/// Make an API key void
#[derive(Args)]
pub(crate) struct Revoke {
    /// The key's id, as `casemate keys list` shows it
    #[arg(value_name = "ID")]
    id: String,
}

impl Keys {
    pub(crate) async fn run(self, cx: &Context) -> Result<()> {
        match self.command {
            Command::List(List {}) => {
                let keys = cx.client()?.keys().list().await?;
                cx.out.result(&keys, |keys| rows(keys))
            }
            Command::Create(create) => match (create.data, create.workspace) {
                (Some(data), Some(workspace)) => {
                    let name = create.name.unwrap_or_else(|| "first".to_owned());
                    in_folder(cx, FolderKey { data, workspace, name }).await
                }
                _ => online(cx, create.name, create.scope, create.expires_in).await,
            },
            Command::Revoke(revoke) => {
                cx.out.confirm(&format!("Make the key {} void for good?", revoke.id))?;
                cx.client()?.keys().revoke(&revoke.id).await.about(About::Key)?;
                cx.out.note("Revoked.");
                Ok(())
            }
        }
    }
}

async fn in_folder(cx: &Context, wanted: FolderKey) -> Result<()> {
    let Some(make) = cx.program.key_in_folder else {
        let text = "--data: this program is only a client";
        return Err(Failure::usage(text).hint("use the `casemate` that serves the folder"));
    };
    let name = wanted.name.clone();
    let key = make(wanted).await.map_err(Failure::failed)?;
    cx.out.result(&json!({ "name": name, "key": key }), |_| key.clone())?;
    cx.out.note("This is shown once: only its hash is stored.");
    Ok(())
}

async fn online(
    cx: &Context,
    name: Option<String>,
    scopes: Vec<String>,
    lifetime: Option<Lifetime>,
) -> Result<()> {
    let client = cx.client()?;
    let name = match name {
        Some(name) => name,
        None => client.me().await?.user.username,
    };
    let mut create = client.keys().create(name);
    if !scopes.is_empty() {
        create = create.scopes(scopes);
    }
    if let Some(Lifetime(lifetime)) = lifetime {
        create = create.expires_at(human::now() + lifetime);
    }
    let new = create.send().await?;
    cx.out.result(&new, |new| new.key.clone())?;
    cx.out.note(&format!("Its id is {}. The key is shown once: only its hash is stored.", new.info.id));
    Ok(())
}

fn rows(keys: &[ApiKeyInfo]) -> String {
    let now = human::now();
    let columns = [
        Col::Left("ID"),
        Col::Left("NAME"),
        Col::Left("KEY"),
        Col::Left("SCOPES"),
        Col::Left("CREATED"),
        Col::Left("LAST USED"),
        Col::Left("STATUS"),
    ];
    table(
        &columns,
        keys.iter().map(|key| {
            vec![
                key.id.clone(),
                key.name.clone(),
                format!("{}…", key.prefix),
                key.scopes.join(", "),
                human::ago(now, key.created_at),
                key.last_used_at.map_or_else(|| "never".into(), |at| human::ago(now, at)),
                match (key.revoked_at, key.expires_at) {
                    (Some(at), _) => format!("revoked {}", human::ago(now, at)),
                    (None, Some(at)) if at <= now => format!("expired {}", human::ago(now, at)),
                    (None, Some(at)) => format!("valid until {}", human::time(at)),
                    (None, None) => "valid".into(),
                },
            ]
        }),
    )
}
