//! `casemate login` and `logout`.

use casemate_sdk::wire::Me;
use clap::Args;

use crate::context::{self, Context};
use crate::error::{Failure, Result};
use crate::profile::{self, Profile};
use crate::settings::Origin;

/// Remember a server and a key for it
///
/// The server is that of --api-url, of PHALA_CLOUD_API_PREFIX, of an earlier login, or Phala Cloud. The key is that of --api-key
/// or PHALA_CLOUD_API_KEY; otherwise it is asked for, or read from a line of standard input. Both are checked first, and kept in
/// a file that only you can read.
#[derive(Args)]
#[command(after_help = "Examples:
  casemate login --api-url https://cloud.example.org
  casemate login < key.txt")]
pub struct Login {}

/// Forget the server and its key
#[derive(Args)]
pub struct Logout {}

impl Login {
    pub(crate) async fn run(self, cx: &Context) -> Result<()> {
        let settings = cx.settings()?;
        let path = profile::path(&cx.environment)
            .ok_or_else(|| Failure::failed("there is no place to keep a key: HOME is not set"))?;
        let key = match &settings.key {
            // A key that is stored already is no reason to log in.
            Some(key) if !matches!(key.from, Origin::Profile(_)) => key.secret.clone(),
            _ => ask_for_key(cx, &settings.url)?,
        };
        let me = context::client(&settings.url, Some(&key))?.me().await.map_err(|error| match error {
            casemate_sdk::Error::Unauthorized(_) => {
                Failure::failed(format!("{} does not accept this key", settings.url))
            }
            error => error.into(),
        })?;
        profile::write(&path, &Profile { api_url: settings.url.clone(), api_key: key })?;
        cx.out.result(&me, |me| welcome(me, &settings.url))?;
        cx.out.note(&format!("The key is in {}.", path.display()));
        Ok(())
    }
}

fn welcome(me: &Me, url: &str) -> String {
    format!("Signed in to {url} as {}, workspace {}.", me.user.username, me.workspace.name)
}

/// Asks without showing what is typed; without a terminal, the key is a line of standard input.
fn ask_for_key(cx: &Context, url: &str) -> Result<String> {
    let unreadable = |error: std::io::Error| Failure::usage(format!("cannot read the key: {error}"));
    let key = if cx.environment.can_ask {
        let term = console::Term::stderr();
        term.write_str(&format!("API key for {url}: ")).map_err(unreadable)?;
        term.read_secure_line().map_err(unreadable)?
    } else {
        let mut line = String::new();
        std::io::stdin().read_line(&mut line).map_err(unreadable)?;
        line
    };
    match key.trim() {
        "" => Err(Failure::usage("no key was given").hint("`casemate login < key.txt` reads it from a file")),
        key => Ok(key.to_owned()),
    }
}

impl Logout {
    pub(crate) fn run(self, cx: &Context) -> Result<()> {
        let removed = match profile::path(&cx.environment) {
            Some(path) => profile::remove(&path)?,
            None => false,
        };
        cx.out.note(if removed {
            "The key is forgotten here. It is still valid until it is revoked."
        } else {
            "There was none."
        });
        Ok(())
    }
}
