//! `casemate cvms revisions` and `rollback`.

use casemate_sdk::types::patch::OnFailure;
use casemate_sdk::wire::{Revision, RevisionPage};
use clap::Args;
use futures_util::TryStreamExt;

use crate::commands::approvals::Typed;
use crate::commands::changes::Stopping;
use crate::commands::outcome::{self, Approving, Change, Waiting};
use crate::commands::signing::Signing;
use crate::context::Context;
use crate::error::{AboutExt, Result};
use crate::human::{self, NOTHING};
use crate::output::{Col, table};

/// List the configurations that a CVM has had, newest first
#[derive(Args)]
pub(crate) struct Revisions {
    /// The CVM: its name, or any of its ids
    #[arg(value_name = "CVM")]
    cvm: String,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 20)]
    limit: u32,
    /// All of them
    #[arg(long, conflicts_with = "limit")]
    all: bool,
}

impl Revisions {
    pub(crate) async fn run(self, cx: &Context) -> Result<()> {
        let list = cx.client()?.cvm(&self.cvm).revisions();
        let page = if self.all {
            let items: Vec<Revision> = list.limit(100).stream().try_collect().await.about_cvm(&self.cvm)?;
            RevisionPage { items, next_cursor: None }
        } else {
            list.limit(self.limit).send().await.about_cvm(&self.cvm)?
        };
        cx.out.result(&page, |page| rows(&page.items))?;
        if page.next_cursor.is_some() && !cx.out.is_json() {
            cx.out.note("There are older ones. `--all` shows them.");
        }
        Ok(())
    }
}

fn rows(revisions: &[Revision]) -> String {
    let now = human::now();
    let columns = [
        Col::Right("REVISION"),
        Col::Left("MADE"),
        Col::Left("BY"),
        Col::Left("COMPOSE HASH"),
        Col::Left("OPERATION"),
        Col::Left("NOTE"),
    ];
    table(
        &columns,
        revisions.iter().map(|revision| {
            let of = revision.of.map(|of| format!("as revision {of}"));
            let current = revision.current.then(|| "current".to_owned());
            vec![
                revision.revision.to_string(),
                human::ago(now, revision.created_at),
                revision.author.clone().unwrap_or_else(|| NOTHING.into()),
                human::short(&revision.compose_hash.to_string()),
                revision.cause.map_or_else(|| NOTHING.into(), |id| id.to_string()),
                current.into_iter().chain(of).collect::<Vec<_>>().join(", "),
            ]
        }),
    )
}

/// Give a CVM an earlier configuration again, with one restart
///
/// The disk keeps its size. `casemate cvms revisions` lists the numbers.
#[derive(Args)]
pub(crate) struct Rollback {
    /// The CVM: its name, or any of its ids
    #[arg(value_name = "CVM")]
    cvm: String,
    /// The number of the earlier revision
    #[arg(value_name = "REVISION")]
    revision: u64,
    #[command(flatten)]
    stopping: Stopping,
    /// Leave the machine as it is if the rollback fails, instead of starting the configuration before it again
    #[arg(long)]
    hold: bool,
    /// Show what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    waiting: Waiting,
    #[command(flatten)]
    signing: Signing,
}

impl Rollback {
    pub(crate) async fn run(self, cx: &Context) -> Result<()> {
        self.signing.check(false)?;
        let mut rollback = cx.client()?.cvm(&self.cvm).rollback(self.revision);
        if let Some(seconds) = self.stopping.shutdown_timeout {
            rollback = rollback.shutdown_timeout_secs(seconds);
        }
        if self.stopping.allow_force_stop {
            rollback = rollback.allow_force_stop(true);
        }
        if self.hold {
            rollback = rollback.on_failure(OnFailure::Hold);
        }
        if self.dry_run {
            return outcome::plan(cx, &self.cvm, rollback.dry_run().send().await.about_cvm(&self.cvm)?);
        }
        let outcome = rollback.send().await.about_cvm(&self.cvm)?;
        let done = format!("back at revision {}", self.revision);
        let change = Change { cvm: &self.cvm, doing: "Rolling back", done: &done, waiting: self.waiting };
        change.outcome(cx, outcome, Approving::Here(&self.signing, Typed::Nothing)).await
    }
}
