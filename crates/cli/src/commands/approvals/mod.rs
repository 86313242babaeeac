//! `casemate approvals`: what waits for a yes on chain.

mod calls;
mod decide;
mod list;
mod named;
mod show;
mod verify;

pub(crate) use show::ways;
pub(crate) use verify::{Typed, before_signing};

use clap::{Args, Subcommand};

use crate::context::Context;
use crate::error::Result;

/// List, sign and commit what waits for a yes on chain
#[derive(Args)]
pub struct Approvals {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    #[command(visible_alias = "ls")]
    List(list::List),
    Show(show::Show),
    Commit(Box<decide::Commit>),
    Cancel(decide::Cancel),
    AutoCommit(decide::AutoCommit),
    Calldata(calls::Calldata),
    SafeBatch(calls::SafeBatch),
}

impl Approvals {
    pub(crate) async fn run(self, cx: &Context) -> Result<()> {
        match self.command {
            Command::List(list) => list.run(cx).await,
            Command::Show(show) => show.run(cx).await,
            Command::Commit(commit) => commit.run(cx).await,
            Command::Cancel(cancel) => cancel.run(cx).await,
            Command::AutoCommit(auto) => auto.run(cx).await,
            Command::Calldata(calldata) => calldata.run(cx).await,
            Command::SafeBatch(batch) => batch.run(cx).await,
        }
    }
}
