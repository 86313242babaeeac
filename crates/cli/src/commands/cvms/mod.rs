//! `casemate cvms`.

mod approval;
mod diff;
pub(super) mod get;
mod instance_id;
mod list;
mod logs;
mod power;
mod replica;
mod revisions;
mod update;
mod watch;

pub(crate) use diff::line_diff;
pub(crate) use list::rows;

use clap::{Args, Subcommand};

use crate::context::Context;
use crate::error::Result;

/// List, change and follow CVMs
#[derive(Args)]
pub struct Cvms {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    #[command(visible_alias = "ls")]
    List(list::List),
    Get(get::Get),
    Observed(get::Observed),
    Update(Box<update::Update>),
    Start(power::Start),
    Stop(power::Stop),
    Shutdown(power::Shutdown),
    Restart(power::Restart),
    #[command(visible_alias = "rm")]
    Delete(power::Delete),
    Logs(logs::Logs),
    Watch(watch::Watch),
    Revisions(revisions::Revisions),
    Diff(diff::Diff),
    Rollback(revisions::Rollback),
    Confirm(approval::Confirm),
    Commit(approval::Commit),
    IsAllowed(approval::IsAllowed),
    Replicate(replica::Replicate),
    CommitReplica(replica::CommitReplica),
    RefreshInstanceId(instance_id::RefreshInstanceId),
}

impl Cvms {
    pub(crate) async fn run(self, cx: &Context) -> Result<()> {
        match self.command {
            Command::List(list) => list.run(cx).await,
            Command::Get(get) => get.run(cx).await,
            Command::Observed(observed) => observed.run(cx).await,
            Command::Update(update) => update.run(cx).await,
            Command::Start(start) => start.run(cx).await,
            Command::Stop(stop) => stop.run(cx).await,
            Command::Shutdown(shutdown) => shutdown.run(cx).await,
            Command::Restart(restart) => restart.run(cx).await,
            Command::Delete(delete) => delete.run(cx).await,
            Command::Logs(logs) => logs.run(cx).await,
            Command::Watch(watch) => watch.run(cx).await,
            Command::Revisions(revisions) => revisions.run(cx).await,
            Command::Diff(diff) => diff.run(cx).await,
            Command::Rollback(rollback) => rollback.run(cx).await,
            Command::Confirm(confirm) => confirm.run(cx).await,
            Command::Commit(commit) => commit.run(cx).await,
            Command::IsAllowed(is_allowed) => is_allowed.run(cx).await,
            Command::Replicate(replicate) => replicate.run(cx).await,
            Command::CommitReplica(commit) => commit.run(cx).await,
            Command::RefreshInstanceId(refresh) => refresh.run(cx).await,
        }
    }
}
