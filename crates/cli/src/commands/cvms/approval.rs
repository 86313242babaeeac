//! `casemate cvms is-allowed`, `confirm` and `commit`: what a contract says, and what follows the registration of a compose hash.

use clap::Args;

use crate::commands::apps::is_allowed_text;
use crate::commands::outcome::{Change, Waiting};
use crate::context::{self, Context};
use crate::error::{AboutExt, Failure, Result};

/// Run an update whose compose hash is registered on chain by now
#[derive(Args)]
pub(crate) struct Confirm {
    /// The CVM: its name, or any of its ids
    #[arg(value_name = "CVM")]
    cvm: String,
    /// The compose hash that the update asked to register
    #[arg(value_name = "COMPOSE HASH")]
    compose_hash: String,
    /// The transaction that registered it; without one, what the contract says now counts
    #[arg(value_name = "TRANSACTION", default_value = "already-registered")]
    transaction: String,
    #[command(flatten)]
    waiting: Waiting,
}

impl Confirm {
    pub(crate) async fn run(self, cx: &Context) -> Result<()> {
        let confirm = cx.client()?.cvm(&self.cvm).confirm(&self.compose_hash, &self.transaction);
        let operation = confirm.send().await.about_cvm(&self.cvm)?;
        let change = Change { cvm: &self.cvm, doing: "Updating", done: "updated", waiting: self.waiting };
        change.accepted(cx, &operation).await
    }
}

/// Run an update that somebody prepared, with its one-time token
///
/// The token is all the permission that it takes: an API key is neither needed nor sent.
#[derive(Args)]
pub(crate) struct Commit {
    /// The CVM: its name, or any of its ids
    #[arg(value_name = "CVM")]
    cvm: String,
    #[command(flatten)]
    prepared: Prepared,
    #[command(flatten)]
    waiting: Waiting,
}

impl Commit {
    pub(crate) async fn run(self, cx: &Context) -> Result<()> {
        let token = self.prepared.token()?;
        let Prepared { compose_hash, transaction, .. } = &self.prepared;
        let settings = cx.settings()?;
        let anyone = context::client(&settings.url, None)?.cvm(&self.cvm);
        let operation = anyone.commit_update(token, compose_hash, transaction).send().await;
        let operation = operation.about_cvm(&self.cvm)?;
        // Following it takes a key: that of the workspace, if the user has one.
        let waiting = if settings.key.is_some() { self.waiting } else { Waiting::NO };
        let change = Change { cvm: &self.cvm, doing: "Updating", done: "updated", waiting };
        match operation.id().filter(|_| waiting.wanted()) {
            Some(id) => change.accepted(cx, &cx.client()?.operation(id)).await,
            None => change.accepted(cx, &operation).await,
        }
    }
}

/// Something that somebody prepared, and what it takes to commit it.
#[derive(Args)]
pub(super) struct Prepared {
    /// The token, or - for a line of standard input, where other users of this machine cannot see it
    #[arg(value_name = "TOKEN")]
    token: String,
    /// The compose hash that was prepared
    #[arg(value_name = "COMPOSE HASH")]
    pub(super) compose_hash: String,
    /// The transaction that registered it; without one, what the contract says now counts
    #[arg(value_name = "TRANSACTION", default_value = "already-registered")]
    pub(super) transaction: String,
}

impl Prepared {
    /// The token, as it was given or from standard input.
    pub(super) fn token(&self) -> Result<String> {
        if self.token != "-" {
            return Ok(self.token.clone());
        }
        let mut line = String::new();
        std::io::stdin()
            .read_line(&mut line)
            .map_err(|error| Failure::usage(format!("cannot read standard input: {error}")))?;
        Ok(line.trim().to_owned())
    }
}

/// Ask the app's contract whether a CVM may boot
///
/// The hash that it has, on its device, unless others are named. Exit code 1 if the contract says no.
#[derive(Args)]
pub(crate) struct IsAllowed {
    /// The CVM: its name, or any of its ids
    #[arg(value_name = "CVM")]
    cvm: String,
    /// Another compose hash
    #[arg(long, value_name = "HASH")]
    compose_hash: Option<String>,
    /// On the device of another node, by its number
    #[arg(long, value_name = "N")]
    node: Option<i64>,
    /// On another device
    #[arg(long, value_name = "ID", conflicts_with = "node")]
    device_id: Option<String>,
}

impl IsAllowed {
    pub(crate) async fn run(self, cx: &Context) -> Result<()> {
        let mut question = cx.client()?.cvm(&self.cvm).is_allowed();
        if let Some(hash) = &self.compose_hash {
            question = question.compose_hash(hash);
        }
        if let Some(node) = self.node {
            question = question.node(node);
        }
        if let Some(device) = &self.device_id {
            question = question.device(device);
        }
        let answer = question.send().await.about_cvm(&self.cvm)?;
        cx.out.result(&answer, is_allowed_text)?;
        if answer.is_allowed { Ok(()) } else { Err(Failure::failed("the contract does not allow this")) }
    }
}
