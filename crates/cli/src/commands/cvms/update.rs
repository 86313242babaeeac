//! `casemate cvms update`: any fields, all together and with one restart.

use casemate_sdk::env::SealedEnv;
use clap::Args;

use crate::commands::changes::{App, How, Machine, Visibility};
use crate::commands::outcome::{self, Change, Waiting};
use crate::commands::signing::Signing;
use crate::context::Context;
use crate::error::{AboutExt, Result};

/// Change a CVM: any number of things at once, with one restart
///
/// Only what is named changes. The machine is stopped, gets the new configuration and is started again; --listed and --rename
/// alone need no restart. An update that does not boot is put back.
#[derive(Args)]
#[command(after_help = "Examples:
  casemate cvms update web-1 --memory 4G -c app.yml   both, with one restart
  casemate cvms update web-1 -e .env                  replace the whole environment
  casemate cvms update web-1 --vcpu 4 --dry-run       what would be done
  casemate cvms update web-1 -c app.yml --private-key-file owner.key
                                                      sign for it where a contract has to allow it")]
pub(crate) struct Update {
    /// The CVM: its name, or any of its ids
    #[arg(value_name = "CVM")]
    cvm: String,
    #[command(flatten)]
    app: App,
    #[command(flatten)]
    document: Document,
    #[command(flatten)]
    machine: Machine,
    #[command(flatten)]
    visibility: Visibility,
    #[command(flatten)]
    signing: Signing,
    #[command(flatten)]
    how: How,
    #[command(flatten)]
    waiting: Waiting,
}

/// What is rarely changed by hand.
#[derive(Args)]
#[command(next_help_heading = "App")]
struct Document {
    /// Name of a variable that may reach the app; can be repeated, and replaces all of them. With --env it is all variables
    /// unless given
    #[arg(long, value_name = "KEY")]
    allowed_env: Vec<String>,
    /// Environment that is sealed already, in hex
    #[arg(long, value_name = "HEX", conflicts_with = "env")]
    encrypted_env: Option<SealedEnv>,
    /// The gateway forwards requests to the app
    #[arg(long, value_name = "true|false", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true)]
    gateway_enabled: Option<bool>,
    /// The guest waits for a verified clock before it starts
    #[arg(long, value_name = "true|false", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true)]
    secure_time: Option<bool>,
    /// Another name. No restart
    #[arg(long, value_name = "NAME")]
    rename: Option<String>,
}

impl Update {
    pub(crate) async fn run(self, cx: &Context) -> Result<()> {
        let name = self.cvm.as_str();
        self.signing.check(self.app.reads_stdin())?;
        let texts = self.app.read()?;
        let cvm = cx.client()?.cvm(name);
        let mut patch = texts.patch(cvm.patch());
        patch = self.visibility.patch(self.machine.patch(patch));
        if let Some(vars) = &texts.env {
            patch = patch.envs(cvm.seal(vars).await.about_cvm(name)?);
        }
        if let Some(sealed) = &self.document.encrypted_env {
            patch = patch.envs(sealed.clone());
        }
        let allowed = match self.document.allowed_env.as_slice() {
            [] => texts.env_names(),
            names => Some(names.to_vec()),
        };
        if let Some(names) = allowed {
            patch = patch.allowed_envs(names);
        }
        if let Some(enabled) = self.document.gateway_enabled {
            patch = patch.gateway_enabled(enabled);
        }
        if let Some(secure) = self.document.secure_time {
            patch = patch.secure_time(secure);
        }
        if let Some(new) = &self.document.rename {
            patch = patch.rename(new);
        }
        patch = self.how.patch(patch);
        if self.how.dry_run {
            outcome::plan(cx, name, patch.dry_run().send().await.about_cvm(name)?)?;
            texts.note_on_env(cx);
            return Ok(());
        }
        let outcome = patch.clone().send().await.about_cvm(name)?;
        let change = Change { cvm: name, doing: "Updating", done: "updated", waiting: self.waiting };
        change.outcome(cx, outcome, self.how.approving(&self.signing, &patch)).await
    }
}
