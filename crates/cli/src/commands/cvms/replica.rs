//! `casemate cvms replicate` and `commit-replica`: more CVMs of an app.

use casemate_sdk::PatchOutcome;
use clap::Args;

use super::approval::Prepared;
use crate::commands::approvals::Typed;
use crate::commands::outcome::{Approving, Change, REPLICATED, Waiting};
use crate::commands::signing::Signing;
use crate::context::Context;
use crate::error::{AboutExt, Result};

/// Make another CVM of the same app, like this one
///
/// Where a contract governs the app's keys, it has to allow the new CVM's compose hash and device.
#[derive(Args)]
#[command(after_help = "Examples:
  casemate cvms replicate web-1 --node 2
  casemate cvms replicate web-1 --node 2 --private-key-file owner.key
                                                       sign for its device, if that is not allowed yet
  casemate cvms replicate web-1 --node 2 --prepare-only   print a link for those who sign")]
pub(crate) struct Replicate {
    /// The CVM that it is like: its name, or any of its ids
    #[arg(value_name = "CVM")]
    cvm: String,
    /// Its name; else that of the CVM it is like, and a number
    #[arg(long, short, value_name = "NAME")]
    name: Option<String>,
    /// The node, by its number; else that of the CVM it is like
    #[arg(long, value_name = "N")]
    node: Option<i64>,
    /// The revision of the app with this compose hash; else what the CVM it is like runs
    #[arg(long, value_name = "HASH")]
    compose_hash: Option<String>,
    #[command(flatten)]
    waiting: Waiting,
    /// Have the server keep the request until somebody commits it with the link that is printed
    #[arg(long, help_heading = "Approval on chain", conflicts_with = "private_key_file")]
    prepare_only: bool,
    /// If a contract has to allow it: the server makes it by itself once that is so, in your name
    #[arg(long, help_heading = "Approval on chain", conflicts_with_all = ["private_key_file", "prepare_only"])]
    auto_commit: bool,
    #[command(flatten)]
    signing: Signing,
}

impl Replicate {
    pub(crate) async fn run(self, cx: &Context) -> Result<()> {
        self.signing.check(false)?;
        let mut replicate = cx.client()?.cvm(&self.cvm).replicate();
        if let Some(name) = &self.name {
            replicate = replicate.name(name);
        }
        if let Some(node) = self.node {
            replicate = replicate.node(node);
        }
        if let Some(hash) = &self.compose_hash {
            replicate = replicate.compose_hash(hash);
        }
        let approving = match (self.prepare_only, self.auto_commit) {
            (true, _) => Approving::ByOthers,
            (_, true) => Approving::ByServer,
            _ => Approving::Here(
                &self.signing,
                self.compose_hash.as_deref().map_or(Typed::Nothing, Typed::Hash),
            ),
        };
        if self.prepare_only {
            replicate = replicate.prepare_only();
        }
        if self.auto_commit {
            replicate = replicate.auto_commit();
        }
        let outcome: PatchOutcome = replicate.send().await.about_cvm(&self.cvm)?;
        made(&self.cvm, self.waiting).outcome(cx, outcome, approving).await
    }
}

fn made(cvm: &str, waiting: Waiting) -> Change<'_> {
    Change { cvm, doing: "Making a replica of", done: REPLICATED, waiting }
}

/// Make a replica that somebody prepared, with its one-time token
#[derive(Args)]
pub(crate) struct CommitReplica {
    /// The CVM that it is like: its name, or any of its ids
    #[arg(value_name = "CVM")]
    cvm: String,
    #[command(flatten)]
    prepared: Prepared,
    #[command(flatten)]
    waiting: Waiting,
}

impl CommitReplica {
    pub(crate) async fn run(self, cx: &Context) -> Result<()> {
        let cvm = cx.client()?.cvm(&self.cvm);
        let Prepared { compose_hash, transaction, .. } = &self.prepared;
        let operation = cvm.commit_replica(self.prepared.token()?, compose_hash, transaction).await;
        made(&self.cvm, self.waiting).accepted(cx, &operation.about_cvm(&self.cvm)?).await
    }
}
