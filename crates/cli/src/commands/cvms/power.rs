//! `casemate cvms start`, `stop`, `shutdown`, `restart`, `delete`.

use clap::Args;

use crate::commands::outcome::{Change, Waiting};
use crate::context::Context;
use crate::error::{AboutExt, Result};

/// Start a CVM
#[derive(Args)]
pub(crate) struct Start {
    /// The CVM: its name, or any of its ids
    #[arg(value_name = "CVM")]
    cvm: String,
    #[command(flatten)]
    waiting: Waiting,
}

/// Switch a CVM off at once, whatever is at work on it
#[derive(Args)]
pub(crate) struct Stop {
    /// The CVM: its name, or any of its ids
    #[arg(value_name = "CVM")]
    cvm: String,
    #[command(flatten)]
    waiting: Waiting,
}

/// Ask the guest of a CVM to shut down
#[derive(Args)]
pub(crate) struct Shutdown {
    /// The CVM: its name, or any of its ids
    #[arg(value_name = "CVM")]
    cvm: String,
    #[command(flatten)]
    waiting: Waiting,
}

/// Restart a CVM
#[derive(Args)]
pub(crate) struct Restart {
    /// The CVM: its name, or any of its ids
    #[arg(value_name = "CVM")]
    cvm: String,
    /// Switch it off without asking its guest
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    waiting: Waiting,
}

/// Delete a CVM and its disk, whatever is at work on it
#[derive(Args)]
pub(crate) struct Delete {
    /// The CVM: its name, or any of its ids
    #[arg(value_name = "CVM")]
    cvm: String,
    #[command(flatten)]
    waiting: Waiting,
}

impl Start {
    pub(crate) async fn run(self, cx: &Context) -> Result<()> {
        let operation = cx.client()?.cvm(&self.cvm).start().send().await.about_cvm(&self.cvm)?;
        let change = Change { cvm: &self.cvm, doing: "Starting", done: "up", waiting: self.waiting };
        change.accepted(cx, &operation).await
    }
}

impl Stop {
    pub(crate) async fn run(self, cx: &Context) -> Result<()> {
        let operation = cx.client()?.cvm(&self.cvm).stop().send().await.about_cvm(&self.cvm)?;
        let change = Change { cvm: &self.cvm, doing: "Stopping", done: "off", waiting: self.waiting };
        change.accepted(cx, &operation).await
    }
}

impl Shutdown {
    pub(crate) async fn run(self, cx: &Context) -> Result<()> {
        let operation = cx.client()?.cvm(&self.cvm).shutdown().send().await.about_cvm(&self.cvm)?;
        let change = Change { cvm: &self.cvm, doing: "Shutting down", done: "off", waiting: self.waiting };
        change.accepted(cx, &operation).await
    }
}

impl Restart {
    pub(crate) async fn run(self, cx: &Context) -> Result<()> {
        let mut restart = cx.client()?.cvm(&self.cvm).restart();
        if self.force {
            restart = restart.force();
        }
        let operation = restart.send().await.about_cvm(&self.cvm)?;
        let change = Change { cvm: &self.cvm, doing: "Restarting", done: "up again", waiting: self.waiting };
        change.accepted(cx, &operation).await
    }
}

impl Delete {
    pub(crate) async fn run(self, cx: &Context) -> Result<()> {
        cx.out.confirm(&format!("Delete {} and its disk for good?", self.cvm))?;
        let operation = cx.client()?.cvm(&self.cvm).delete().send().await.about_cvm(&self.cvm)?;
        let change = Change { cvm: &self.cvm, doing: "Deleting", done: "deleted", waiting: self.waiting };
        change.accepted(cx, &operation).await
    }
}
