//! Auto-commit: the server looks at contracts itself and commits what they have come to allow, in the name of the person who
//! asked for that.
//!
//! What is to be committed is in the store, so a new process goes on where the last one was. One question per chain and round
//! asks about everything; what is allowed and confirmed then takes the same road as any other commit, proof included, so a
//! token and this cannot both carry one approval out.

use std::future::Future;
use std::time::Duration;

use casemate_chain::Subject;
use casemate_types::patch::TxProof;
use futures_util::future::join_all;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::approval::{self, Committed};
use super::commit_token::Named;
use super::onchain;
use crate::app::App;
use crate::auth::Author;
use crate::error::{Error, ProofCheck, Result};
use crate::store::{Approval, ApprovalState, Auto, AutoBy, Purpose};

/// How often contracts are looked at.
pub const EVERY: Duration = Duration::from_secs(15);

/// Most approvals that are read from the store at a time.
const AT_ONCE: usize = 500;

/// Looks until `stop` is cancelled. Each chain has rounds of its own, so that one which is slow holds up no other.
pub async fn run(app: App, stop: CancellationToken) {
    let chains = app.config.contract_chains();
    let commits = chains
        .into_iter()
        .map(|chain_id| every(&app, &stop, move |app| async move { commit(&app, chain_id).await }));
    tokio::join!(every(&app, &stop, |app| async move { expire(&app).await }), join_all(commits));
}

/// Does this now and every [`EVERY`] until `stop` is cancelled.
pub(super) fn every<F: Future<Output = ()>>(
    app: &App,
    stop: &CancellationToken,
    round: impl Fn(App) -> F,
) -> impl Future<Output = ()> {
    let (app, stop) = (app.clone(), stop.clone());
    async move {
        while stop.run_until_cancelled(round(app.clone())).await.is_some() {
            if stop.run_until_cancelled(app.clock.sleep(EVERY)).await.is_none() {
                return;
            }
        }
    }
}

/// One round: ends what has expired, commits what is allowed.
pub async fn once(app: &App) {
    expire(app).await;
    join_all(app.config.contract_chains().into_iter().map(|chain_id| commit(app, chain_id))).await;
}

async fn expire(app: &App) {
    loop {
        match app.store.approvals_expire(app.clock.now()).await {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) => return tracing::warn!(%error, "approvals whose time is over are still open"),
        }
    }
}

/// Commits what is allowed on this chain.
async fn commit(app: &App, chain_id: u64) {
    let committed = async {
        let waiting = all_waiting(app, chain_id)?;
        commit_allowed(app, &waiting).await
    };
    if let Err(error) = committed.await {
        tracing::warn!(chain.id = chain_id, error = %error.with_causes(), "a chain could not be asked what it allows");
    }
}

/// An approval that is to be committed once its subject is allowed.
struct Waiting {
    approval: Approval,
    by: AutoBy,
    kms: String,
    subject: Subject,
}

/// Those that this chain has a say about. Key services on one chain share a question.
fn all_waiting(app: &App, chain_id: u64) -> Result<Vec<Waiting>> {
    let mut all = Vec::new();
    let (mut after, kms) = (Uuid::nil(), app.config.kms_on(chain_id));
    loop {
        let found = app.store.approvals_to_commit(&kms, after, app.clock.now(), AT_ONCE)?;
        let Some(last) = found.last() else { return Ok(all) };
        after = last.id;
        for approval in found {
            let id = approval.id;
            match waiting(app, approval) {
                Ok(one) => all.push(one),
                Err(error) => tracing::debug!(approval.id = %id, %error, "not looked at"),
            }
        }
    }
}

fn waiting(app: &App, approval: Approval) -> Result<Waiting> {
    let by =
        approval.auto.ok_or_else(|| Error::internal("read who switched auto-commit on")("nobody".into()))?;
    let cvm = approval::cvm_of(app, &approval)?;
    let node_id = match approval.purpose {
        Purpose::Update => cvm.node_id,
        Purpose::Replica => super::replica::waiting(app, &approval)?.1,
    };
    let device_id = onchain::device(app, node_id)?;
    let subject = Subject { app_id: cvm.app_id, compose_hash: approval.compose_hash, device_id };
    Ok(Waiting { approval, by, kms: cvm.kms, subject })
}

/// All are asked about in one go; if that fails, in halves, so that a contract with which something is wrong keeps nobody else
/// waiting: where it stands is not known.
///
/// # Errors
/// `Unavailable` if it is the chain that does not answer.
async fn commit_allowed(app: &App, waiting: &[Waiting]) -> Result<()> {
    let Some(first) = waiting.first() else { return Ok(()) };
    let Some(contract) = onchain::contract(app, &first.kms)? else { return Ok(()) };
    let mut parts = vec![waiting];
    while let Some(part) = parts.pop() {
        let subjects: Vec<_> = part.iter().map(|one| one.subject).collect();
        match contract.standings(&subjects).await {
            Ok(standings) => {
                let confirmed = part.iter().zip(standings).filter(|(_, standing)| standing.confirmed);
                for (Waiting { approval, by, .. }, _) in confirmed {
                    if let Err(error) = commit_one(app, approval, *by).await {
                        tracing::warn!(approval.id = %approval.id, error = %error.with_causes(), "not committed by itself");
                    }
                }
            }
            Err(error) => {
                contract.head().await?;
                if let [one] = part {
                    let app_id = one.subject.app_id;
                    tracing::warn!(app.id = %app_id, error = %error.with_causes(), "what a contract allows is not known");
                } else {
                    let (left, right) = part.split_at(part.len() / 2);
                    parts.extend([right, left]);
                }
            }
        }
    }
    Ok(())
}

/// Commits one approval, or notes why that needs somebody.
async fn commit_one(app: &App, approval: &Approval, by: AutoBy) -> Result<()> {
    if let Some(why) = no_longer_may(app, approval, by)? {
        return set(app, approval, Auto::Refused(why)).await;
    }
    let author = Author { user_id: by.user_id, key_id: Some(by.key_id), request_id: None };
    match approval::commit_as_asked(app, approval, Named::Id, TxProof::StateOnly, author, None).await {
        Ok(Committed::Update(accepted)) => {
            let op = accepted.operation.id;
            tracing::info!(cvm.id = approval.cvm_id, op.id = %op, approval.id = %approval.id, "committed by itself");
            Ok(())
        }
        Ok(Committed::Replica(created)) => {
            tracing::info!(cvm.id = created.cvm.id, approval.id = %approval.id, "replica made by itself");
            Ok(())
        }
        // The CVM is busy, or something does not answer: the next round tries again.
        Err(error) if error.is_transient() => Ok(()),
        // It was allowed a moment ago; the next round looks again.
        Err(Error::Proof { check: ProofCheck::Contract | ProofCheck::Transaction, .. }) => Ok(()),
        Err(error) => {
            let now = app.store.approval(approval.id)?;
            if now.is_none_or(|now| now.state != ApprovalState::Open || now.auto != Some(by)) {
                // Somebody else was quicker, or has switched it off.
                return Ok(());
            }
            let why = no_longer_may(app, approval, by)?;
            set(app, approval, why.map_or_else(|| Auto::NeedsAttention(error.to_string()), Auto::Refused))
                .await
        }
    }
}

/// Why the person who switched it on may not do it any more.
fn no_longer_may(app: &App, approval: &Approval, by: AutoBy) -> Result<Option<String>> {
    let Some(key) = app.store.key_actor(by.key_id, app.clock.now())? else {
        return Ok(Some("the API key that switched auto-commit on was revoked or has expired".into()));
    };
    let cvm = approval::cvm_of(app, approval)?;
    Ok(match key.workspace_id == cvm.workspace_id && key.scopes.write {
        true => None,
        false => Some("the API key that switched auto-commit on may no longer change this CVM".into()),
    })
}

async fn set(app: &App, approval: &Approval, auto: Auto) -> Result<()> {
    match app.store.approval_auto(approval.id, auto, None, app.clock.now(), None).await {
        Ok(_) | Err(crate::store::Error::ApprovalClosed) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
