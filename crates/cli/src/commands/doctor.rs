//! `casemate doctor`: what keeps commands from working.

use casemate_sdk::Error;
use clap::Args;
use serde::Serialize;

use crate::context::{self, Context};
use crate::error::{Failure, Result};
use crate::output::Colour;
use crate::profile;

/// Look for what keeps commands from working
#[derive(Args)]
pub struct Doctor {}

/// What was looked at, and what was found.
#[derive(Serialize)]
struct Check {
    what: &'static str,
    ok: bool,
    found: String,
}

impl Doctor {
    pub(crate) async fn run(self, cx: &Context) -> Result<()> {
        let checks = checks(cx).await?;
        cx.out.result(&checks, |checks| {
            let line = |check: &Check| {
                let (colour, mark) = if check.ok { (Colour::Green, "ok  ") } else { (Colour::Red, "FAIL") };
                format!("{} {:9} {}", cx.out.paint(colour, mark), check.what, check.found)
            };
            checks.iter().map(line).collect::<Vec<_>>().join("\n")
        })?;
        if checks.iter().all(|check| check.ok) { Ok(()) } else { Err(Failure::failed("something is wrong")) }
    }
}

async fn checks(cx: &Context) -> Result<Vec<Check>> {
    let settings = cx.settings()?;
    let client = context::client(&settings.url, settings.key.as_ref().map(|key| key.secret.as_str()))?;
    let mut checks = Vec::new();
    let mut check = |what, ok, found| checks.push(Check { what, ok, found });
    check("program", true, format!("casemate {}", env!("CARGO_PKG_VERSION")));
    check("address", true, format!("{}, from {}", settings.url, settings.url_from));
    match (&settings.key, &settings.other) {
        (Some(key), _) => check("key", true, format!("from {}", key.from)),
        (None, Some(other)) => {
            check("key", false, format!("none for this server; the stored one is for {other}"))
        }
        (None, None) => {
            check(
                "key",
                false,
                format!("none; `casemate login` stores one, or set {}", casemate_sdk::API_KEY_VAR),
            );
        }
    }
    if let Some(path) = profile::path(&cx.environment).filter(|path| path.exists()) {
        let (ok, found) = secrecy(&path);
        check("profile", ok, found);
    }
    match client.casemate_version().await {
        Err(error) => {
            let cause =
                std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
            check("server", false, format!("{error}{cause}"));
            return Ok(checks);
        }
        Ok(Some(version)) => check("server", true, format!("Casemate {version}")),
        Ok(None) => check(
            "server",
            true,
            "it answers, and is not Casemate: dry runs, operations and revisions need one".into(),
        ),
    }
    match client.me().await {
        Ok(me) => check("account", true, format!("{}, workspace {}", me.user.username, me.workspace.name)),
        Err(Error::Unauthorized(_)) if settings.key.is_none() => {
            check("account", false, "the server wants a key".into())
        }
        Err(Error::Unauthorized(_)) => check("account", false, "the key is not valid (any more)".into()),
        Err(error) => check("account", false, error.to_string()),
    }
    Ok(checks)
}

/// Whether a file is its owner's alone.
fn secrecy(path: &std::path::Path) -> (bool, String) {
    use std::os::unix::fs::PermissionsExt;
    match std::fs::metadata(path) {
        Ok(file) if file.permissions().mode().trailing_zeros() >= 6 => (true, path.display().to_string()),
        Ok(_) => (false, format!("{} can be read by others; `chmod 600` ends that", path.display())),
        Err(error) => (false, format!("{}: {error}", path.display())),
    }
}
