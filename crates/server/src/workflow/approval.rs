//! Approvals: an update that waits for somebody's yes. A record beside the operations; committing it makes one.
//!
//! What was asked for is kept as it was asked, sparse, and planned again on what is there when the yes comes: fields that it
//! does not name keep their values of then. Nothing is written before the proof holds, and a proof that does not hold uses
//! nothing up.

use std::time::Duration;

use casemate_chain::{Allowed, Evidence, Question, Verdict};
use casemate_types::compose::ComposeDoc;
use casemate_types::error::{ApprovalNeeded, OnchainStatus};
use casemate_types::ids::{ComposeHash, CvmRef, IdError};
use casemate_types::patch::{CommitUpdate, CvmPatch, TxProof};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use subtle::ConstantTimeEq;
use uuid::Uuid;

use super::operation::{Change, Kind};
use super::update::{self, ATTEMPTS, Accepted, Outcome, Request, busy};
use crate::app::App;
use crate::auth::Author;
use crate::cvm::plan::{self, Plan, Steps, Wish};
use crate::cvm::spec::sha256;
use crate::cvm::state::Cvm;
use crate::error::{Error, ProofCheck, Resource, Result};
use crate::kms;
use crate::mac;
use crate::store::{self, Approval, ApprovalState, Closing, Found, NewApproval, Receipt};

/// What has to be registered on chain, and how to go on then.
pub type Ask = ApprovalNeeded;

/// What shows that a compose hash was approved.
#[derive(Clone, Debug, PartialEq)]
pub struct Proof {
    /// The approved hash.
    pub compose_hash: ComposeHash,
    /// The transaction that registered it, or none: then only the contract's state counts.
    pub tx: TxProof,
}

/// How long the chain may take. Clients wait 30 s for the whole answer.
const CHAIN_DEADLINE: Duration = Duration::from_secs(20);

/// Can whoever has a token commit it?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    /// No: only who may change the CVM.
    Without,
    /// Yes, once.
    With,
}

/// What was asked for, as it is kept.
#[derive(Serialize, Deserialize)]
struct Kept {
    kind: Kind,
    patch: Map<String, Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    document: Option<ComposeDoc>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    instance_seed: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    content_of: Option<u64>,
}

impl Kept {
    fn of(kind: Kind, wish: &Wish) -> Self {
        let patch = match serde_json::to_value(&wish.patch) {
            Ok(Value::Object(patch)) => patch,
            Ok(_) | Err(_) => unreachable!("a patch is an object with string keys"),
        };
        Self {
            kind,
            patch,
            document: wish.document.clone(),
            instance_seed: wish.instance_seed.map(hex::encode),
            content_of: wish.content_of.as_ref().map(|(number, _)| *number),
        }
    }

    fn read(app: &App, approval: &Approval) -> Result<(Kind, Wish)> {
        let unreadable = Error::internal("read an approval");
        let kept: Self = match serde_json::from_str(&approval.content) {
            Ok(kept) => kept,
            Err(error) => return Err(unreadable(error.into())),
        };
        let instance_seed = match kept.instance_seed.as_deref().map(hex::decode) {
            None => None,
            Some(Ok(bytes)) => bytes.try_into().ok(),
            Some(Err(error)) => return Err(unreadable(error.into())),
        };
        let content_of = match kept.content_of {
            None => None,
            Some(number) => Some((number, app.store.spec(approval.cvm_id, number)?)),
        };
        let patch = CvmPatch::from_json(&kept.patch).map_err(Error::Invalid)?;
        Ok((kept.kind, Wish { patch, document: kept.document, instance_seed, content_of }))
    }
}

/// Keeps what was asked for and says what has to be registered.
pub async fn ask(app: &App, cvm: &Cvm, steps: &Steps, request: &Request) -> Result<Box<Ask>> {
    let (_, ask) = keep(app, cvm, steps, request, Token::Without, request.receipt.as_ref()).await?;
    Ok(ask)
}

async fn keep(
    app: &App,
    cvm: &Cvm,
    steps: &Steps,
    request: &Request,
    token: Token,
    receipt: Option<&Receipt<Outcome>>,
) -> Result<(Uuid, Box<Ask>)> {
    let (id, at, compose_hash) = (app.clock.new_id(), app.clock.now(), steps.spec.compose.hash);
    let mut ask = Ask {
        compose_hash,
        app_id: cvm.app_id,
        device_id: device_of(app, cvm)?,
        kms_info: kms::kms_info(app, &cvm.kms),
        commit_token: None,
        commit_url: None,
        api_commit_url: None,
        onchain_status: None,
    };
    let life = match token {
        Token::Without => app.config.provision_life,
        Token::With => {
            let (url, token) = (&app.config.public_url, token_of(app, id));
            ask.commit_url = Some(format!("{url}/approve/{id}#{token}"));
            ask.api_commit_url = Some(format!("{url}/api/v1/cvms/{}/commit-update", cvm.vm_uuid.0.simple()));
            ask.commit_token = Some(token);
            ask.onchain_status = onchain_status(app, cvm, compose_hash).await;
            app.config.token_life
        }
    };
    let new = NewApproval {
        id,
        cvm_id: cvm.id,
        compose_hash,
        content: serde_json::to_string(&Kept::of(request.kind, &request.wish)).expect("string keys only"),
        base_revision: cvm.revision,
        token_hash: ask.commit_token.as_ref().map(|token| sha256(token.as_bytes())),
        author: request.author.clone(),
        at,
        expires_at: at + life,
    };
    let ask = Box::new(ask);
    let receipt = receipt.map(|receipt| {
        let ask = ask.clone();
        receipt.of(move |()| Outcome::NeedsApproval(ask.clone()))
    });
    app.store.approval_open(new, receipt).await?;
    Ok((id, ask))
}

/// Keeps an update for somebody else to commit, if its app's contract has a say. Otherwise it is applied.
pub async fn open(app: &App, cvm: Cvm, request: Request) -> Result<Outcome> {
    if !app.config.kms_is_contract_owned(&cvm.kms) {
        return update::accept(app, cvm, request).await;
    }
    request.check_match(&cvm)?;
    match update::plan(app, &cvm, cvm.revision, &request.wish)? {
        Plan::Nothing | Plan::Records { .. } => update::accept(app, cvm, request).await,
        Plan::Steps(_) if cvm.open.is_some() => Err(busy()),
        Plan::Steps(steps) => {
            let (_, ask) = keep(app, &cvm, &steps, &request, Token::With, request.receipt.as_ref()).await?;
            Ok(Outcome::NeedsApproval(ask))
        }
    }
}

/// Commits what was approved. A wish that is not empty repeats what was asked for: it has to lead to the approved hash, and
/// it is what runs.
pub async fn confirm(app: &App, cvm: Cvm, request: Request, proof: Proof) -> Result<Outcome> {
    if !app.config.kms_is_contract_owned(&cvm.kms) {
        return confirm_without_contract(app, cvm, request, &proof).await;
    }
    let found = app.store.approval_for(cvm.id, proof.compose_hash, app.clock.now())?;
    let approval = found.ok_or_else(|| {
        hash_refused("no update of this CVM waits for this compose hash; send the update again")
    })?;
    commit(app, cvm, request, &approval, proof.tx).await
}

/// Nobody has to approve anything here. Some clients repeat the hash all the same; then it has to be the right one.
async fn confirm_without_contract(app: &App, cvm: Cvm, request: Request, proof: &Proof) -> Result<Outcome> {
    let plan = match request.wish.is_empty() {
        true => {
            return Err(hash_refused(
                "no update of this CVM waits for an approval: its key service asks no contract",
            ));
        }
        false => update::plan(app, &cvm, cvm.revision, &request.wish)?,
    };
    let hash = match &plan {
        Plan::Steps(steps) => steps.spec.compose.hash,
        Plan::Nothing | Plan::Records { .. } => app.store.spec(cvm.id, cvm.revision)?.compose.hash,
    };
    if hash != proof.compose_hash {
        return Err(hash_refused(format!("the update has compose hash {hash}, not {}", proof.compose_hash)));
    }
    update::accept(app, cvm, request).await
}

/// Runs a document that was provisioned and, where a contract has a say, registered meanwhile.
///
/// Without a transaction to check, the contract's state counts; if it does not allow the hash, that is what is asked for.
pub async fn commit_registered(
    app: &App,
    cvm: Cvm,
    request: Request,
    tx: Option<TxProof>,
) -> Result<Outcome> {
    let steps = match update::plan(app, &cvm, cvm.revision, &request.wish)? {
        Plan::Steps(steps) if steps.approval == plan::Approval::Needed && cvm.open.is_none() => steps,
        Plan::Steps(_) | Plan::Nothing | Plan::Records { .. } => {
            return update::accept(app, cvm, request).await;
        }
    };
    request.check_match(&cvm)?;
    let (id, ask) = keep(app, &cvm, &steps, &request, Token::Without, None).await?;
    let approval = app.store.approval(id)?.ok_or_else(|| hash_refused("the approval is gone"))?;
    let state_only = !matches!(tx, Some(TxProof::Tx(_)));
    match commit(app, cvm, request, &approval, tx.unwrap_or_default()).await {
        Err(Error::Proof { check: ProofCheck::Contract, .. }) if state_only => {
            Ok(Outcome::NeedsApproval(ask))
        }
        outcome => outcome,
    }
}

/// Commits what a token stands for. The token is all the permission that it needs.
pub async fn commit_with_token(
    app: &App,
    named: &str,
    asked: CommitUpdate,
    request_id: String,
    receipt: Option<Receipt<Outcome>>,
) -> Result<Outcome> {
    let approval = approval_of_token(app, &asked.token)?;
    let cvm = match app.store.cvm(approval.cvm_id) {
        Err(store::Error::Missing) => return Err(Error::NotFound { what: Resource::Cvm }),
        other => other?,
    };
    let means_it = named.parse::<CvmRef>().is_ok_and(|reference| {
        matches!(app.store.cvm_find(cvm.workspace_id, &reference), Ok(Found::One(found)) if found.id == cvm.id)
    });
    if !means_it {
        return Err(token_refused("it belongs to another CVM"));
    }
    if asked.compose_hash.is_some_and(|hash| hash != approval.compose_hash) {
        return Err(token_refused("it belongs to another compose hash"));
    }
    match approval.state {
        ApprovalState::Open if approval.expires_at > app.clock.now() => {}
        ApprovalState::Open => return Err(token_refused("it has expired; prepare the update again")),
        ApprovalState::Committed(by) => return Err(Error::TokenUsed { by }),
        ApprovalState::Superseded => return Err(token_refused("a newer one has taken its place")),
    }
    let author = Author { user_id: approval.user_id, key_id: None, request_id: Some(request_id) };
    let request = Request { wish: Wish::default(), kind: Kind::Update, if_match: None, author, receipt };
    commit(app, cvm, request, &approval, asked.transaction_hash).await
}

async fn commit(
    app: &App,
    mut cvm: Cvm,
    mut request: Request,
    approval: &Approval,
    tx: TxProof,
) -> Result<Outcome> {
    if let ApprovalState::Committed(by) = approval.state {
        return committed_before(app, cvm, by);
    }
    request.check_match(&cvm)?;
    let _turn = app.turns.take(approval.id.as_bytes()).ok_or_else(busy)?;
    let repeated = !request.wish.is_empty();
    if !repeated {
        (request.kind, request.wish) = Kept::read(app, approval)?;
    }
    if cvm.open.is_some() {
        return Err(busy());
    }
    // What cannot run is refused before anybody is asked.
    approved_plan(app, &cvm, &request.wish, approval, repeated)?;
    let evidence = prove(app, &cvm, approval.compose_hash, tx).await?;
    let evidence = json!({
        "block": evidence.block,
        "block_hash": hex::encode(evidence.block_hash),
        "log_index": evidence.log_index,
        "transaction": tx,
    });
    for _ in 0..ATTEMPTS {
        cvm = app.store.cvm(cvm.id)?;
        request.check_match(&cvm)?;
        let plan = approved_plan(app, &cvm, &request.wish, approval, repeated)?;
        let closing = Closing { id: approval.id, evidence: evidence.to_string(), at: app.clock.now() };
        match update::store_plan(app, &cvm, plan, &request, Some(closing)).await {
            Ok(accepted) => return Ok(Outcome::Accepted(Box::new(accepted))),
            Err(store::Error::Changed) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(busy())
}

/// A confirmation that comes again while its operation is at work gets that operation.
fn committed_before(app: &App, cvm: Cvm, by: casemate_types::ids::OperationId) -> Result<Outcome> {
    match app.store.operation_open(cvm.id)? {
        Some(operation) if operation.id == by => {
            Ok(Outcome::Accepted(Box::new(Accepted { operation, cvm, plan: Plan::Nothing })))
        }
        Some(_) | None => Err(hash_refused(format!(
            "operation {by} has carried this update out already; send the update again"
        ))),
    }
}

/// What an approved wish means now. It has to lead to the approved hash, and where it was kept, nobody else may have changed
/// a field that it changes.
fn approved_plan(app: &App, cvm: &Cvm, wish: &Wish, approval: &Approval, repeated: bool) -> Result<Plan> {
    if !repeated && cvm.revision != approval.base_revision {
        let base = app.store.spec(cvm.id, approval.base_revision)?;
        let since = plan::diff(&cvm.app_id, &base, &app.store.spec(cvm.id, cvm.revision)?);
        if let Ok(Plan::Steps(steps)) = update::plan(app, cvm, approval.base_revision, wish) {
            let both = |change: &&Change| {
                change.field != "compose_hash" && since.iter().any(|other| other.field == change.field)
            };
            if let Some(change) = steps.diff.iter().find(both) {
                let field = &change.field;
                return Err(hash_refused(format!(
                    "{field} was changed since the update was asked for; send it again"
                )));
            }
        }
    }
    let plan = update::plan(app, cvm, cvm.revision, wish)?;
    let hash = match &plan {
        Plan::Steps(steps) => steps.spec.compose.hash,
        Plan::Nothing | Plan::Records { .. } => app.store.spec(cvm.id, cvm.revision)?.compose.hash,
    };
    if hash != approval.compose_hash {
        let approved = approval.compose_hash;
        let message =
            format!("the update now has compose hash {hash}, not the approved {approved}; send it again");
        return Err(hash_refused(message));
    }
    Ok(plan)
}

fn device_of(app: &App, cvm: &Cvm) -> Result<String> {
    let node = app.node(cvm.node_id).ok_or(Error::NotFound { what: Resource::Node })?;
    Ok(node.facts().device_id.clone())
}

async fn look(app: &App, cvm: &Cvm, compose_hash: ComposeHash, tx: TxProof) -> Result<Verdict> {
    const SERVICE: &str = "the chain";
    let kms = app.config.contract_kms(&cvm.kms);
    let (Some(kms), Some(chain)) = (kms, kms.and_then(|kms| app.chains.get(kms.chain_id))) else {
        return Err(Error::Unavailable { service: SERVICE, source: "no chain is configured".into() });
    };
    let question = Question {
        chain_id: kms.chain_id,
        app_id: cvm.app_id,
        compose_hash,
        device_id: device_of(app, cvm)?
            .parse()
            .map_err(|error: IdError| Error::Unavailable { service: "the node", source: error.into() })?,
        tx: match tx {
            TxProof::StateOnly => None,
            TxProof::Tx(tx) => Some(tx),
        },
    };
    match tokio::time::timeout(CHAIN_DEADLINE, chain.check(&question)).await {
        Ok(Ok(verdict)) => Ok(verdict),
        Ok(Err(error)) => Err(Error::Unavailable { service: SERVICE, source: error.into() }),
        Err(_) => Err(Error::Unavailable { service: SERVICE, source: "it took too long to answer".into() }),
    }
}

async fn prove(app: &App, cvm: &Cvm, compose_hash: ComposeHash, tx: TxProof) -> Result<Evidence> {
    let (check, message) = match look(app, cvm, compose_hash, tx).await? {
        Verdict::Confirmed(evidence) => return Ok(evidence),
        Verdict::NotYet(message) => (ProofCheck::Transaction, format!("{message}; try again")),
        Verdict::OtherTransaction(message) => (ProofCheck::Transaction, message),
        Verdict::NotAllowed(Allowed { compose_hash: false, .. }) => {
            (ProofCheck::Contract, format!("the app's contract does not allow compose hash {compose_hash}"))
        }
        Verdict::NotAllowed(_) => (
            ProofCheck::Contract,
            format!("the app's contract does not allow device {}", device_of(app, cvm)?),
        ),
    };
    Err(Error::Proof { check, message })
}

/// What the contract allows now.
///
/// # Errors
/// Why that cannot be found out, for the log.
pub(super) async fn allowed_now(
    app: &App,
    cvm: &Cvm,
    compose_hash: ComposeHash,
) -> std::result::Result<Allowed, String> {
    match look(app, cvm, compose_hash, TxProof::StateOnly).await {
        Ok(Verdict::Confirmed(_)) => Ok(Allowed { compose_hash: true, device: true }),
        Ok(Verdict::NotAllowed(allowed)) => Ok(allowed),
        Ok(Verdict::NotYet(why) | Verdict::OtherTransaction(why)) => Err(why),
        Err(error) => {
            let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            Err(format!("{error}: {source}"))
        }
    }
}

/// What the contract allows now; nothing if that cannot be found out.
pub async fn onchain_status(app: &App, cvm: &Cvm, compose_hash: ComposeHash) -> Option<OnchainStatus> {
    let allowed = match allowed_now(app, cvm, compose_hash).await {
        Ok(allowed) => allowed,
        Err(why) => {
            tracing::warn!(cvm.id = cvm.id, why, "the contract's state is not known");
            return None;
        }
    };
    Some(OnchainStatus {
        compose_hash_allowed: allowed.compose_hash,
        device_id_allowed: allowed.device,
        is_allowed: allowed.both(),
    })
}

const TOKEN: &str = "ct_";
const ID_DIGITS: usize = 32;

/// The commit token of an approval. Never stored: whoever needs it again makes it again.
pub fn token_of(app: &App, approval: Uuid) -> String {
    let code = mac::of(&app.secret, "commit token", approval.as_bytes());
    format!("{TOKEN}{}{}", approval.simple(), hex::encode(code))
}

/// The approval that a token belongs to.
fn approval_of_token(app: &App, token: &str) -> Result<Approval> {
    let unknown = || token_refused("there is no such token");
    let digits =
        token.trim().strip_prefix(TOKEN).and_then(|rest| rest.get(..ID_DIGITS)).ok_or_else(unknown)?;
    let id = Uuid::try_parse(digits).map_err(|_| unknown())?;
    if !bool::from(token_of(app, id).as_bytes().ct_eq(token.trim().as_bytes())) {
        return Err(unknown());
    }
    let approval = app.store.approval(id)?.ok_or_else(unknown)?;
    let known =
        approval.token_hash.is_some_and(|hash| bool::from(hash.ct_eq(&sha256(token.trim().as_bytes()))));
    known.then_some(approval).ok_or_else(unknown)
}

/// A text whose tokens end behind their public part, fit to be stored.
pub fn without_tokens(text: &str) -> String {
    let secret = 64;
    let mut cut = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, id, behind)) = next_token(rest) {
        let (kept, behind) = match behind.get(..secret) {
            Some(code) if code.bytes().all(|byte| byte.is_ascii_hexdigit()) => ("*", &behind[secret..]),
            Some(_) | None => ("", behind),
        };
        cut.extend([before, id, kept]);
        rest = behind;
    }
    cut.push_str(rest);
    cut
}

/// The text that [`without_tokens`] was given.
pub fn with_tokens(app: &App, text: &str) -> String {
    let mut whole = String::with_capacity(text.len() + 160);
    let mut rest = text;
    while let Some((before, id, behind)) = next_token(rest) {
        whole.push_str(before);
        rest = match (Uuid::try_parse(&id[TOKEN.len()..]), behind.strip_prefix('*')) {
            (Ok(approval), Some(behind)) => {
                whole.push_str(&token_of(app, approval));
                behind
            }
            (Ok(_) | Err(_), _) => {
                whole.push_str(id);
                behind
            }
        };
    }
    whole.push_str(rest);
    whole
}

/// What is before the public part of the next token, that part, and what is behind it.
fn next_token(text: &str) -> Option<(&str, &str, &str)> {
    let mut from = 0;
    while let Some(at) = text[from..].find(TOKEN).map(|at| at + from) {
        let end = at + TOKEN.len() + ID_DIGITS;
        match text.get(at + TOKEN.len()..end) {
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
                return Some((&text[..at], &text[at..end], &text[end..]));
            }
            Some(_) | None => from = at + TOKEN.len(),
        }
    }
    None
}

fn hash_refused(message: impl Into<String>) -> Error {
    Error::Proof { check: ProofCheck::Hash, message: message.into() }
}

fn token_refused(why: &str) -> Error {
    Error::Rejected { code: None, field: None, message: format!("invalid commit token: {why}") }
}
