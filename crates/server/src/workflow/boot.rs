//! May this machine get its keys? The embedded key service asks the contract, as one in a TEE would, before anything boots.
//! A `dstack-kms` asks by itself, when the machine comes to it.

use super::onchain;
use super::operation::{FailCode, FailReason};
use super::step::{self, Trouble};
use crate::app::{App, Node};
use crate::cvm::spec::Spec;
use crate::error::Error;
use crate::kms::{Keys, keys};
use crate::store::Work;

/// Ends in trouble if the contract of the machine's key service does not let it boot.
///
/// A chain that does not answer is waited for: the machine is down by now, and a yes that nobody gave is none.
pub async fn allowed(app: &App, node: &Node, work: &Work) -> Result<(), Trouble> {
    if let Keys::Dstack(_) = keys(app, &work.cvm.kms) {
        return Ok(());
    }
    match refusal(app, node, work, &work.machine.spec).await {
        Ok(None) => Ok(()),
        Ok(Some(reason)) => {
            let message = format!("the key service gives it no keys; its contract says: {reason}");
            Err(Trouble::Fail(FailReason { code: FailCode::BootFailed, message }))
        }
        Err(error) => Err(step::unanswered(app, &work.operation, error)),
    }
}

/// The reason, if the contract of the machine's key service would not let it boot with this spec.
pub async fn refusal(app: &App, node: &Node, work: &Work, spec: &Spec) -> Result<Option<String>, Error> {
    match onchain::contract(app, &work.cvm.kms)? {
        None => Ok(None),
        Some(contract) => contract.boot_refusal(&node.facts(), work, spec).await,
    }
}
