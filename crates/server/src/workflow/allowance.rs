//! What an app's contract allows, and what would take it back.
//!
//! A contract's list cannot be read from it: it only answers whether one hash is allowed. So hashes are collected, from what is
//! known here and from the contract's log, and then asked about. The log is read in pieces; how far is kept.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use casemate_chain::{Subject, What};
use casemate_types::ids::{AppId, ComposeHash, DeviceId};
use futures_util::future::join_all;
use tokio_util::sync::CancellationToken;

use super::auto_commit;
use super::onchain::{self, Contract};
use super::operation::{Operation, State};
use crate::app::App;
use crate::cvm::state::Cvm;
use crate::error::{Error, Result};
use crate::store::{AppLog, AppRow, KnownRevision};

/// How long one request reads in a contract's log.
const READ_FOR: Duration = Duration::from_secs(5);

/// So many blocks are read again: a reorganisation may have put other changes there.
const AGAIN: u64 = 64;

/// Pieces that one round of the background work reads of one log.
const PIECES: usize = 8;

/// What can still boot.
#[derive(Clone, Debug)]
pub struct AllowedHashes {
    /// Was the whole log read?
    pub complete: bool,
    /// Up to which block.
    pub read_to: Option<u64>,
    /// The hashes that the contract allows, and where they were used.
    pub hashes: Vec<(ComposeHash, Vec<KnownRevision>)>,
}

/// The hashes that an app's contract allows, as far as they can be known.
///
/// # Errors
/// `Rejected` for an app without a contract; `Unavailable`.
pub async fn allowed_hashes(app: &App, row: &AppRow) -> Result<AllowedHashes> {
    let contract = contract_of(app, &row.kms)?;
    let (log, read_to) = read(app, &contract, row.id, row.app_id, None).await?;
    let mut known: BTreeMap<ComposeHash, Vec<KnownRevision>> = BTreeMap::new();
    for hash in app.store.app_hashes(row.id)? {
        known.entry(hash).or_default();
    }
    for revision in app.store.known_revisions(row.id)? {
        known.entry(revision.compose_hash).or_default().push(revision);
    }
    // Whatever the device: a node may be added.
    let subject = |compose_hash| Subject { app_id: row.app_id, compose_hash, device_id: DeviceId([0; 32]) };
    let subjects: Vec<_> = known.keys().map(|hash| subject(*hash)).collect();
    let standings = contract.standings(&subjects).await?;
    let hashes = known.into_iter().zip(standings).filter(|(_, standing)| standing.now.compose_hash);
    Ok(AllowedHashes { complete: log.complete, read_to, hashes: hashes.map(|(known, _)| known).collect() })
}

/// The contract of an app's key service.
///
/// # Errors
/// `Rejected` for one that asks no contract.
pub fn contract_of<'a>(app: &'a App, kms: &str) -> Result<Contract<'a>> {
    onchain::contract(app, kms)?.ok_or_else(|| Error::Rejected {
        code: None,
        field: None,
        message: format!("the keys of this app are not governed by a contract: its key service is `{kms}`"),
    })
}

/// Reads on in an app's log, for a while or so many pieces.
async fn read(
    app: &App,
    contract: &Contract<'_>,
    row: i64,
    app_id: AppId,
    pieces: Option<usize>,
) -> Result<(AppLog, Option<u64>)> {
    let first = app.config.chain(contract.kms.chain_id).map_or(0, |chain| chain.from_block);
    let mut log = app.store.app_log(row)?.unwrap_or(AppLog { next: first, complete: false });
    let (until, mut read_to) = (app.clock.now() + READ_FOR, None);
    for piece in 0.. {
        let changes = match contract.changes(app_id, log.next).await {
            Ok(changes) => changes,
            // What was read so far is worth something.
            Err(error) if piece > 0 => {
                tracing::debug!(%error, "a contract's log is read on later");
                break;
            }
            Err(error) => return Err(error),
        };
        let added = changes.changes.iter().filter_map(|change| match change.what {
            What::HashAdded(hash) => Some(hash),
            What::HashRemoved(_) | What::DeviceAdded(_) | What::DeviceRemoved(_) | What::AnyDevice(_) => None,
        });
        let complete = changes.read_to.number >= changes.head.number;
        let next = if complete {
            log.next.max(changes.read_to.number.saturating_sub(AGAIN)).max(first)
        } else {
            changes.read_to.number + 1
        };
        let added: BTreeSet<_> = added.collect();
        let stuck = next <= log.next && !complete;
        log = AppLog { next, complete };
        read_to = Some(changes.read_to.number);
        app.store.app_log_put(row, log, added.into_iter().collect()).await?;
        let enough = pieces.is_some_and(|pieces| piece + 1 >= pieces);
        if complete || stuck || enough || app.clock.now() >= until {
            break;
        }
    }
    Ok((log, read_to))
}

/// Reads on, until `stop` is cancelled, in the logs that somebody began to read. Each chain has rounds of its own, so that one
/// which is slow holds up no other.
pub async fn run(app: App, stop: CancellationToken) {
    let chains = app.config.contract_chains();
    let reads = chains.into_iter().map(|chain_id| {
        auto_commit::every(&app, &stop, move |app| async move { read_chain(&app, chain_id).await })
    });
    join_all(reads).await;
}

/// One round of that.
pub async fn read_on(app: &App) {
    join_all(app.config.contract_chains().into_iter().map(|chain_id| read_chain(app, chain_id))).await;
}

/// Reads so many pieces of each log on this chain, unless it does not answer at all.
async fn read_chain(app: &App, chain_id: u64) {
    let unfinished = match app.store.app_logs_unfinished(&app.config.kms_on(chain_id)) {
        Ok(unfinished) => unfinished,
        Err(error) => return tracing::warn!(%error, "which contracts' logs to read is not known"),
    };
    for (row, app_id, kms) in unfinished {
        let Ok(Some(contract)) = onchain::contract(app, &kms) else { continue };
        let Err(error) = read(app, &contract, row, app_id, Some(PIECES)).await else { continue };
        tracing::warn!(app.id = %app_id, error = %error.with_causes(), "a contract's log could not be read");
        if contract.head().await.is_err() {
            return;
        }
    }
}

/// Is this hash allowed on this device, and may any device?
#[derive(Clone, Copy, Debug)]
pub struct IsAllowed {
    /// What was asked about.
    pub subject: Subject,
    /// The hash.
    pub compose_hash: bool,
    /// Any device.
    pub any_device: bool,
    /// The device, or any.
    pub device: bool,
}

/// What an app's contract says to these.
///
/// # Errors
/// `Unavailable`.
pub async fn are_allowed(contract: &Contract<'_>, subjects: &[Subject]) -> Result<Vec<IsAllowed>> {
    let Some(first) = subjects.first() else { return Ok(Vec::new()) };
    let any_device = contract.allow_any_device(first.app_id).await?;
    let standings = contract.standings(subjects).await?;
    let answer = |(subject, standing): (&Subject, casemate_chain::Standing)| IsAllowed {
        subject: *subject,
        compose_hash: standing.now.compose_hash,
        any_device,
        device: standing.now.device,
    };
    Ok(subjects.iter().zip(standings).map(answer).collect())
}

/// The hash that an operation has taken out of use: its machine ran it before, and no CVM of the app has it or needs it now.
///
/// # Errors
/// Those of the store.
pub fn superseded(app: &App, operation: &Operation) -> Result<Option<(Cvm, ComposeHash)>> {
    if !matches!(operation.state, State::Succeeded { .. }) || operation.previous == operation.target {
        return Ok(None);
    }
    let cvm = match app.store.cvm(operation.cvm_id) {
        Ok(cvm) => cvm,
        Err(crate::store::Error::Missing) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    if !app.config.kms_is_contract_owned(&cvm.kms) {
        return Ok(None);
    }
    let before = app.store.outline(cvm.id, operation.previous)?.compose.hash;
    let needed = app.store.app_needs_hash(cvm.app, before)?;
    Ok((!needed).then_some((cvm, before)))
}

/// Refuses to go back to a hash that the contract no longer allows, where going back needs no approval and so nobody else asks.
///
/// # Errors
/// `Proof` with the contract's no; `Unavailable`.
pub async fn check_unchanged_hash(app: &App, cvm: &Cvm, hash: ComposeHash) -> Result<()> {
    let Some(contract) = onchain::contract(app, &cvm.kms)? else { return Ok(()) };
    let subject = onchain::subject(app, cvm, hash)?;
    let allowed = contract.allowed(subject).await?;
    match allowed.both() {
        true => Ok(()),
        false => Err(onchain::not_allowed(allowed, hash, subject.device_id)),
    }
}
