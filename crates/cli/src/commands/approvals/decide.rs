//! `casemate approvals commit`, `cancel` and `auto-commit`.

use casemate_sdk::Error;
use casemate_sdk::chain::Registered;
use clap::Args;

use super::named::{Named, Which};
use super::verify::is_readable;
use crate::commands::outcome::{Change, REPLICATED, Waiting};
use crate::commands::signing::{Signing, note_registered, note_signing};
use crate::context::Context;
use crate::error::{About, AboutExt, Failure, Result};

/// Run what waits: once the contract allows it, or by signing for it here
///
/// With a private key, what the contract does not allow yet is registered first, as its owner. Without one, and with everything
/// allowed by now, nobody signs anything.
#[derive(Args)]
#[command(after_help = "Examples:
  casemate approvals commit 0198c1d2-…                               it is allowed by now
  casemate approvals commit 0198c1d2-… --private-key-file owner.key  sign for it, then run it
  casemate approvals commit - < link.txt                             with a link, without an account")]
pub(crate) struct Commit {
    #[command(flatten)]
    which: Which,
    /// The transaction that registered it; without one, what the contract says now counts
    #[arg(value_name = "TRANSACTION", conflicts_with = "private_key_file")]
    transaction: Option<String>,
    #[command(flatten)]
    waiting: Waiting,
    #[command(flatten)]
    signing: Signing,
}

impl Commit {
    pub(crate) async fn run(self, cx: &Context) -> Result<()> {
        self.signing.check(self.which.approval == "-")?;
        let Named { approval, by_link } = self.which.find(cx)?;
        let detail = approval.get().await.about(About::Approval)?;
        let name = detail.approval.cvm_name.clone();
        let missing = !detail.onchain_status.is_some_and(|status| status.is_allowed);
        let wallet = if missing && self.transaction.is_none() {
            let what = format!("The contract {} does not allow this yet.", detail.contract);
            self.signing.wallet(cx, &what)?
        } else {
            None
        };
        let committed = match (wallet, &self.transaction) {
            (Some(wallet), _) => {
                is_readable(&detail)?;
                for warning in &detail.warnings {
                    cx.out.warning(warning);
                }
                let network = self.signing.network(cx, &detail.kms)?;
                note_signing(cx, &wallet, &network, &format!("Registering it with {}", detail.contract));
                let (app, hash) = (detail.approval.app_id, detail.approval.compose_hash);
                let registered = network.register(&wallet, app, detail.device_id, hash).await?;
                note_registered(cx, &registered);
                let committed = approval.commit_registered(&registered).await;
                committed
                    .map_err(|error| registered_all_the_same(error.into(), &registered, &detail.approval.id))
            }
            (None, Some(tx)) => approval.commit(tx).await.map_err(Failure::from),
            (None, None) => approval.commit("already-registered").await.map_err(|error| {
                let unsigned = matches!(error, Error::NotProven(_));
                let failure = Failure::from(error);
                if unsigned { failure.hint("`--private-key-file FILE` signs for it") } else { failure }
            }),
        };
        let operation = committed.about(About::Approval)?;
        let change = match detail.approval.purpose.as_str() {
            "replica" => ("Creating a replica of", REPLICATED),
            _ => ("Updating", "updated"),
        };
        // Following it takes a key, which somebody with a link may not have, or have for another server.
        let waiting = if by_link { Waiting::NO } else { self.waiting };
        Change { cvm: &name, doing: change.0, done: change.1, waiting }.accepted(cx, &operation).await
    }
}

/// What was paid for is not lost.
fn registered_all_the_same(failure: Failure, registered: &Registered, id: &str) -> Failure {
    if registered.compose_hash.is_none() && registered.device.is_none() {
        return failure;
    }
    let proof = registered.proof();
    failure.hint(format!("it is registered all the same: `casemate approvals commit {id} {proof}` goes on"))
}

/// Call an approval off
///
/// Its link is void then. What the contract allows already, it goes on allowing.
#[derive(Args)]
pub(crate) struct Cancel {
    /// Its id
    #[arg(value_name = "APPROVAL")]
    approval: String,
}

impl Cancel {
    pub(crate) async fn run(self, cx: &Context) -> Result<()> {
        cx.out.confirm(&format!("Call approval {} off?", self.approval))?;
        let cancelled = cx.client()?.approval(&self.approval).cancel().await.about(About::Approval)?;
        cx.out.result(&cancelled, |one| format!("{} is {}. Nothing of it runs.", one.id, one.state))
    }
}

/// Have the server run it by itself once the contract allows it
///
/// The server looks at the contract every few seconds, and commits in your name as long as your key may.
#[derive(Args)]
pub(crate) struct AutoCommit {
    /// Its id
    #[arg(value_name = "APPROVAL")]
    approval: String,
    /// No longer
    #[arg(long)]
    off: bool,
}

impl AutoCommit {
    pub(crate) async fn run(self, cx: &Context) -> Result<()> {
        let approval = cx.client()?.approval(&self.approval);
        let changed = approval.auto_commit(!self.off).await.about(About::Approval)?;
        cx.out.result(&changed, |one| match one.auto_commit {
            true => format!("{} is updated by the server once its contract allows it.", one.cvm_name),
            false => format!("{} waits until somebody commits it.", one.cvm_name),
        })
    }
}
