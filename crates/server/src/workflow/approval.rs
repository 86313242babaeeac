//! Approvals: an update that waits for somebody's yes. A record beside the operations; committing it makes one.
//!
//! What was asked for is kept as it was asked, sparse, and planned again on what is there when the yes comes: fields that it
//! does not name keep their values of then. Nothing is written before the proof holds, and a proof that does not hold uses
//! nothing up.

use casemate_chain::{Allowed, Evidence, Verdict};
use casemate_types::compose::ComposeDoc;
use casemate_types::error::{ApprovalNeeded, OnchainStatus};
use casemate_types::ids::{AppId, ComposeHash, DeviceId};
use casemate_types::patch::{CommitUpdate, CvmPatch, TxProof};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::commit_token::{self, Named};
use super::create::Created;
use super::operation::Kind;
use super::update::{self, ATTEMPTS, Accepted, Outcome, Request, busy};
use super::{onchain, replica};
use crate::app::App;
use crate::auth::Author;
use crate::cvm::plan::{self, Plan, Steps, Wish};
use crate::cvm::spec::sha256;
use crate::cvm::state::Cvm;
use crate::error::{Error, ProofCheck, Resource, Result};
use crate::kms;
use crate::store::{self, Approval, ApprovalState, AutoBy, Closing, NewApproval, Purpose, Receipt};

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

/// Can whoever has a token commit it?
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Token {
    /// No: only who may change the CVM.
    Without,
    /// Yes, once: on this route, as a path below the API's prefix.
    With { route: String },
}

/// Something that waits for a yes from now on.
pub(super) struct Opening<'a> {
    /// The CVM that it is about.
    pub cvm: &'a Cvm,
    /// What it leads to.
    pub purpose: Purpose,
    /// What has to be approved.
    pub compose_hash: ComposeHash,
    /// On which device.
    pub device_id: DeviceId,
    /// What was asked for, as JSON.
    pub content: String,
    /// Who asks.
    pub author: &'a Author,
    /// Is the server to commit it by itself?
    pub auto_commit: bool,
    /// How it can be committed.
    pub token: Token,
    /// What the contract says now, if it was asked.
    pub status: Option<OnchainStatus>,
    /// What whoever says yes may not expect.
    pub warnings: Vec<String>,
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
    /// Of the CVM when it was asked for.
    name: String,
    listed: bool,
}

/// What was there when an update was asked for.
#[derive(Clone, Debug)]
pub struct Base {
    /// The revision that was current.
    pub revision: u64,
    /// What the CVM was called.
    pub name: String,
    /// Was it listed?
    pub listed: bool,
}

impl Kept {
    fn of(kind: Kind, wish: &Wish, cvm: &Cvm) -> Self {
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
            name: cvm.name.clone(),
            listed: cvm.listed,
        }
    }

    fn read(app: &App, approval: &Approval) -> Result<(Kind, Wish, Base)> {
        let unreadable = Error::internal("read an approval");
        let kept: Self = match serde_json::from_str(&app.store.approval_content(approval.id)?) {
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
        let base = Base { revision: approval.base_revision, name: kept.name, listed: kept.listed };
        Ok((kept.kind, Wish { patch, document: kept.document, instance_seed, content_of }, base))
    }
}

/// Keeps what was asked for and says what has to be registered.
pub async fn ask(app: &App, cvm: &Cvm, steps: &Steps, request: &Request) -> Result<Box<Ask>> {
    opening_of(app, cvm, steps, request)?.store(app, asked(request)).await
}

/// As [`opening`], with what there is to say about these steps.
fn opening_of<'a>(app: &App, cvm: &'a Cvm, steps: &Steps, request: &'a Request) -> Result<Opening<'a>> {
    let opening = opening(app, cvm, steps.spec.compose.hash, request)?;
    Ok(Opening { warnings: steps.warnings.clone(), ..opening })
}

/// An update that needs a yes, to be committed by who may change the CVM.
fn opening<'a>(
    app: &App,
    cvm: &'a Cvm,
    compose_hash: ComposeHash,
    request: &'a Request,
) -> Result<Opening<'a>> {
    Ok(Opening {
        cvm,
        purpose: Purpose::Update,
        compose_hash,
        device_id: onchain::device(app, cvm.node_id)?,
        content: serde_json::to_string(&Kept::of(request.kind, &request.wish, cvm))
            .expect("string keys only"),
        author: &request.author,
        auto_commit: request.auto_commit,
        token: Token::Without,
        status: None,
        warnings: Vec::new(),
    })
}

/// Keeps the answer to a request that has to be approved.
fn asked(request: &Request) -> Option<Receipt<Ask>> {
    let needed = |ask: &Ask| Outcome::NeedsApproval(Box::new(ask.clone()));
    request.receipt.as_ref().map(|receipt| receipt.of(needed))
}

impl Opening<'_> {
    /// Stores it, and says what has to be registered.
    pub(super) async fn store(self, app: &App, receipt: Option<Receipt<Ask>>) -> Result<Box<Ask>> {
        let (new, ask) = self.record(app);
        store(app, new, ask, receipt).await
    }

    /// As it will be stored, and what has to be registered.
    fn record(self, app: &App) -> (NewApproval, Ask) {
        let (id, at) = (app.clock.new_id(), app.clock.now());
        let auto = self.author.key_id.filter(|_| self.auto_commit);
        let auto = auto.map(|key_id| AutoBy { user_id: self.author.user_id, key_id });
        let mut ask = Ask {
            compose_hash: self.compose_hash,
            app_id: self.cvm.app_id,
            device_id: self.device_id.to_string(),
            kms_info: kms::kms_info(app, &self.cvm.kms),
            commit_token: None,
            commit_url: None,
            api_commit_url: None,
            onchain_status: self.status,
            approval_id: Some(id.to_string()),
            auto_commit: auto.is_some(),
            warnings: self.warnings,
        };
        let life = match self.token {
            Token::Without => app.config.provision_life,
            Token::With { route } => {
                let (url, token) = (&app.config.public_url, commit_token::token_of(app, id));
                ask.commit_url = Some(format!("{url}/approve/{id}#{token}"));
                ask.api_commit_url = Some(format!("{url}/api/v1{route}"));
                ask.commit_token = Some(token);
                app.config.token_life
            }
        };
        let new = NewApproval {
            id,
            cvm_id: self.cvm.id,
            purpose: self.purpose,
            compose_hash: self.compose_hash,
            content: self.content,
            base_revision: self.cvm.revision,
            token_hash: ask.commit_token.as_ref().map(|token| sha256(token.as_bytes())),
            author: self.author.clone(),
            auto,
            at,
            expires_at: at + life,
        };
        (new, ask)
    }
}

async fn store(app: &App, new: NewApproval, ask: Ask, receipt: Option<Receipt<Ask>>) -> Result<Box<Ask>> {
    let receipt = receipt.map(|receipt| {
        let ask = ask.clone();
        receipt.of(move |auto: &Option<AutoBy>| Ask { auto_commit: auto.is_some(), ..ask.clone() })
    });
    let auto = app.store.approval_open(new, receipt).await?;
    Ok(Box::new(Ask { auto_commit: auto.is_some(), ..ask }))
}

/// Keeps an update for somebody else to commit, if its app's contract has a say. Otherwise it is applied.
pub async fn open(app: &App, cvm: Cvm, request: Request) -> Result<Outcome> {
    if !app.config.kms_is_contract_owned(&cvm.kms) {
        return update::accept(app, cvm, request).await;
    }
    request.check_match(&cvm)?;
    match update::plan_checked(app, &cvm, &request.wish).await? {
        Plan::Nothing => update::accept(app, cvm, request).await,
        Plan::Steps(_) if cvm.open.is_some() => Err(busy()),
        // Somebody else is to say yes, also to what needs no restart.
        plan @ (Plan::Steps(_) | Plan::Records { .. }) => {
            let hash = update::outline(app, &plan, cvm.id, cvm.revision)?.compose.hash;
            let opening = match &plan {
                Plan::Steps(steps) => opening_of(app, &cvm, steps, &request)?,
                Plan::Records { .. } | Plan::Nothing => opening(app, &cvm, hash, &request)?,
            };
            let opening = Opening {
                token: Token::With { route: format!("/cvms/{}/commit-update", cvm.vm_uuid.0.simple()) },
                status: onchain_status(app, &cvm, hash).await,
                ..opening
            };
            Ok(Outcome::NeedsApproval(opening.store(app, asked(&request)).await?))
        }
    }
}

/// Commits what was approved. A wish that is not empty repeats what was asked for: it has to lead to the approved hash, and
/// it is what runs.
pub async fn confirm(app: &App, cvm: Cvm, request: Request, proof: Proof) -> Result<Outcome> {
    if !app.config.kms_is_contract_owned(&cvm.kms) {
        return confirm_without_contract(app, cvm, request, &proof).await;
    }
    match app.store.approval_for(cvm.id, proof.compose_hash, app.clock.now())? {
        Some(approval) => commit(app, cvm, request, &approval, Named::Hash, proof.tx).await,
        None => Err(nothing_waits(app, &cvm, proof.compose_hash)?),
    }
}

/// Why nothing waits for this hash, as far as that is known.
fn nothing_waits(app: &App, cvm: &Cvm, hash: ComposeHash) -> Result<Error> {
    let Some(last) = app.store.approval_last(cvm.id, hash)? else {
        return Ok(hash_refused("no update of this CVM waits for this compose hash; send the update again"));
    };
    let name = match app.store.approval_before(&last)? {
        Some(before) => format!("approval {before} was superseded by approval {}, and that one", last.id),
        None => format!("approval {}", last.id),
    };
    let what = match last.state {
        ApprovalState::Open | ApprovalState::Expired => "has expired".to_owned(),
        ApprovalState::Cancelled => "was cancelled".to_owned(),
        ApprovalState::Committed(by) => format!("was carried out by operation {by}"),
        ApprovalState::Superseded(by) => format!("was superseded by approval {by}"),
    };
    Ok(hash_refused(format!("{name} {what}; send the update again")))
}

/// What a committed approval led to.
#[derive(Clone, Debug)]
pub enum Committed {
    /// An update of its CVM.
    Update(Box<Accepted>),
    /// Another CVM.
    Replica(Box<Created>),
}

/// Commits an approval as it was asked for, whatever it leads to, in this person's name.
pub async fn commit_as_asked(
    app: &App,
    approval: &Approval,
    named: Named,
    tx: TxProof,
    author: Author,
    receipt: Option<Receipt<Committed>>,
) -> Result<Committed> {
    let cvm = cvm_of(app, approval)?;
    match approval.purpose {
        Purpose::Replica => {
            let receipt = receipt
                .map(|receipt| receipt.of(|created: &Created| Committed::Replica(Box::new(created.clone()))));
            let created = replica::commit(app, &cvm, approval, named, tx, author, receipt).await?;
            Ok(Committed::Replica(Box::new(created)))
        }
        Purpose::Update => {
            let updated = |outcome: &Outcome| match outcome {
                Outcome::Accepted(accepted) => Committed::Update(accepted.clone()),
                Outcome::NeedsApproval(_) => unreachable!("a commit asks for no other approval"),
            };
            let request = Request {
                wish: Wish::default(),
                kind: Kind::Update,
                if_match: None,
                author,
                receipt: receipt.map(|receipt| receipt.of(updated)),
                auto_commit: false,
            };
            commit(app, cvm, request, approval, named, tx).await.map(|outcome| updated(&outcome))
        }
    }
}

/// The CVM that an approval is about, if it still exists.
pub fn cvm_of(app: &App, approval: &Approval) -> Result<Cvm> {
    match app.store.cvm(approval.cvm_id) {
        Err(store::Error::Missing) => Err(Error::NotFound { what: Resource::Cvm }),
        other => Ok(other?),
    }
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
    let hash = update::outline(app, &plan, cvm.id, cvm.revision)?.compose.hash;
    if hash != proof.compose_hash {
        return Err(hash_refused(format!("the update has compose hash {hash}, not {}", proof.compose_hash)));
    }
    update::accept(app, cvm, request).await
}

/// Runs a document that was provisioned and, where a contract has a say, registered meanwhile.
///
/// Without a transaction to check, the contract's state counts; if it does not allow the hash, that is what is asked for. The
/// approval is written by the transaction that carries it out, or if it has to be asked for.
pub async fn commit_registered(
    app: &App,
    cvm: Cvm,
    request: Request,
    tx: Option<TxProof>,
) -> Result<Outcome> {
    let steps = match update::plan_checked(app, &cvm, &request.wish).await? {
        Plan::Steps(steps) if steps.approval == plan::Approval::Needed && cvm.open.is_none() => steps,
        Plan::Steps(_) | Plan::Nothing | Plan::Records { .. } => {
            return update::accept(app, cvm, request).await;
        }
    };
    request.check_match(&cvm)?;
    let (new, ask) = opening_of(app, &cvm, &steps, &request)?.record(app);
    let (state_only, receipt) = (!matches!(tx, Some(TxProof::Tx(_))), asked(&request));
    let closes = Closes { id: new.id, compose_hash: new.compose_hash, base: None, opens: Some(new.clone()) };
    match carry_out(app, cvm, request, closes, tx.unwrap_or_default()).await {
        Err(Error::Proof { check: ProofCheck::Contract, .. }) if state_only => {
            Ok(Outcome::NeedsApproval(store(app, new, ask, receipt).await?))
        }
        outcome => outcome,
    }
}

/// Commits what a token stands for. The token is all the permission that it needs.
pub async fn commit_with_token(
    app: &App,
    named: &str,
    approval: Approval,
    asked: CommitUpdate,
    request_id: String,
    receipt: Option<Receipt<Outcome>>,
) -> Result<Outcome> {
    let cvm = cvm_of(app, &approval)?;
    commit_token::belongs_to(app, &approval, cvm.workspace_id, named)?;
    if approval.purpose != Purpose::Update {
        return Err(commit_token::refused("it makes another CVM; send it to commit-replica"));
    }
    if asked.compose_hash.is_some_and(|hash| hash != approval.compose_hash) {
        return Err(commit_token::refused("it belongs to another compose hash"));
    }
    let request = Request {
        wish: Wish::default(),
        kind: Kind::Update,
        if_match: None,
        author: token_author(&approval, request_id),
        receipt,
        auto_commit: false,
    };
    commit(app, cvm, request, &approval, Named::Token, asked.transaction_hash).await
}

/// Who has the token acts in the name of who asked, without a key.
pub fn token_author(approval: &Approval, request_id: String) -> Author {
    Author { user_id: approval.user_id, key_id: None, request_id: Some(request_id) }
}

/// Commits an approval that was found open a moment ago: whoever had the turn before may have done so.
async fn commit(
    app: &App,
    cvm: Cvm,
    mut request: Request,
    approval: &Approval,
    named: Named,
    tx: TxProof,
) -> Result<Outcome> {
    let _turn = app.turns.take(approval.id.as_bytes()).ok_or_else(busy)?;
    let cvm = app.store.cvm(cvm.id)?;
    let approval = match still_open(app, approval.id, named) {
        Err(Error::Committed { by, .. }) if named == Named::Hash => return committed_before(app, cvm, by),
        other => other?,
    };
    request.check_match(&cvm)?;
    let mut base = None;
    if request.wish.is_empty() {
        let kept = Kept::read(app, &approval)?;
        (request.kind, request.wish, base) = (kept.0, kept.1, Some(kept.2));
    }
    let closes = Closes { id: approval.id, compose_hash: approval.compose_hash, base, opens: None };
    match carry_out(app, cvm, request, closes, tx).await {
        // Somebody closed it while the contract was asked.
        Err(error @ Error::Proof { check: ProofCheck::Hash, .. }) => {
            still_open(app, approval.id, named)?;
            Err(error)
        }
        other => other,
    }
}

/// An approval as it is now, if it can still be committed.
///
/// # Errors
/// Says what became of it: `Committed` or `Rejected`; `Proof` to who named it by its hash.
pub(super) fn still_open(app: &App, id: Uuid, named: Named) -> Result<Approval> {
    let approval = app.store.approval(id)?.ok_or_else(|| hash_refused("the approval is gone"))?;
    match commit_token::still_good(app, &approval, named) {
        Ok(()) => Ok(approval),
        Err(Error::Rejected { message, .. }) if named == Named::Hash => Err(hash_refused(message)),
        Err(error) => Err(error),
    }
}

/// An approval that is about to be carried out.
struct Closes {
    id: Uuid,
    compose_hash: ComposeHash,
    /// What it says, nobody else may have changed since. None where the request says all of it again.
    base: Option<Base>,
    /// The approval itself, where none was open before.
    opens: Option<NewApproval>,
}

/// Carries an approved request out once its proof holds.
async fn carry_out(
    app: &App,
    mut cvm: Cvm,
    request: Request,
    closes: Closes,
    tx: TxProof,
) -> Result<Outcome> {
    let Closes { id, compose_hash, base, opens } = closes;
    if cvm.open.is_some() {
        return Err(busy());
    }
    // What cannot run is refused before anybody is asked.
    let plan = approved_plan(app, &cvm, &request.wish, compose_hash, base.as_ref())?;
    update::check_image(app, &cvm, &plan).await?;
    let device = onchain::device(app, cvm.node_id)?;
    let evidence = prove(app, &cvm.kms, cvm.app_id, compose_hash, device, tx).await?;
    for _ in 0..ATTEMPTS {
        cvm = app.store.cvm(cvm.id)?;
        request.check_match(&cvm)?;
        let plan = approved_plan(app, &cvm, &request.wish, compose_hash, base.as_ref())?;
        let closing = Closing::of(id, opens.clone(), &request.author, evidence.clone(), app.clock.now());
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

/// What an approved wish means now. It has to lead to the approved hash, and where it was kept on a base, nobody else may have
/// changed since what it names: that would be undone without a word.
fn approved_plan(
    app: &App,
    cvm: &Cvm,
    wish: &Wish,
    approved: ComposeHash,
    base: Option<&Base>,
) -> Result<Plan> {
    if let Some(base) = base
        && let Some(field) = changed_since(app, cvm, base)?.into_iter().find(|field| wish.names(field))
    {
        return Err(hash_refused(format!(
            "{field} was changed since the update was asked for; send it again"
        )));
    }
    let plan = update::plan(app, cvm, cvm.revision, wish)?;
    let hash = update::outline(app, &plan, cvm.id, cvm.revision)?.compose.hash;
    if hash != approved {
        let message =
            format!("the update now has compose hash {hash}, not the approved {approved}; send it again");
        return Err(hash_refused(message));
    }
    Ok(plan)
}

/// Fields of a CVM that are not what they were.
fn changed_since(app: &App, cvm: &Cvm, base: &Base) -> Result<Vec<String>> {
    let mut fields = Vec::new();
    if base.revision != cvm.revision {
        let before = app.store.spec(cvm.id, base.revision)?;
        let changes = plan::diff(&cvm.app_id, &before, &app.store.spec(cvm.id, cvm.revision)?);
        // The hash follows from the document.
        fields.extend(changes.into_iter().map(|change| change.field).filter(|field| field != "compose_hash"));
    }
    fields.extend((base.name != cvm.name).then(|| "name".to_owned()));
    fields.extend((base.listed != cvm.listed).then(|| "listed".to_owned()));
    Ok(fields)
}

/// Asks the contract, and gives its yes as it is kept.
pub(super) async fn prove(
    app: &App,
    kms: &str,
    app_id: AppId,
    compose_hash: ComposeHash,
    device: DeviceId,
    tx: TxProof,
) -> Result<String> {
    let contract = onchain::contract(app, kms)?.ok_or(Error::NotFound { what: Resource::Kms })?;
    match contract.check(app_id, compose_hash, device, tx).await? {
        Verdict::Confirmed(Evidence { block, block_hash, log_index }) => {
            let evidence = json!({
                "block": block,
                "block_hash": hex::encode(block_hash),
                "log_index": log_index,
                "transaction": tx,
            });
            Ok(evidence.to_string())
        }
        Verdict::NotYet(message) => {
            let message = format!("{message}; try again");
            Err(Error::Proof { check: ProofCheck::Transaction, message })
        }
        Verdict::OtherTransaction(message) => Err(Error::Proof { check: ProofCheck::Transaction, message }),
        Verdict::NotAllowed(allowed) => Err(onchain::not_allowed(allowed, compose_hash, device)),
    }
}

/// What the contract allows now.
///
/// # Errors
/// `Unavailable` or `NotConfigured`.
pub(super) async fn allowed_now(app: &App, cvm: &Cvm, compose_hash: ComposeHash) -> Result<Allowed> {
    let contract = onchain::contract(app, &cvm.kms)?.ok_or(Error::NotFound { what: Resource::Kms })?;
    contract.allowed(onchain::subject(app, cvm, compose_hash)?).await
}

/// What the contract allows now; nothing if that cannot be found out.
pub async fn onchain_status(app: &App, cvm: &Cvm, compose_hash: ComposeHash) -> Option<OnchainStatus> {
    let subject = onchain::subject(app, cvm, compose_hash).ok()?;
    onchain::known_status(app, &cvm.kms, subject).await
}

/// Why an open approval could not be committed now, whatever the contract says.
///
/// # Errors
/// Those of the store.
pub fn obstacle(app: &App, cvm: &Cvm, approval: &Approval) -> Result<Option<String>> {
    if approval.state != ApprovalState::Open || approval.purpose != Purpose::Update {
        return Ok(None);
    }
    let (_, wish, base) = Kept::read(app, approval)?;
    match approved_plan(app, cvm, &wish, approval.compose_hash, Some(&base)) {
        Ok(_) => Ok(None),
        Err(
            error @ (Error::Proof { .. }
            | Error::Rejected { .. }
            | Error::Conflict { .. }
            | Error::Invalid(_)),
        ) => Ok(Some(error.to_string())),
        Err(error) => Err(error),
    }
}

/// The plan of an open approval on what it was asked for on, and that; none for one that was not asked for as an update.
pub fn planned(app: &App, cvm: &Cvm, approval: &Approval) -> Result<Option<(Plan, Base)>> {
    if approval.purpose != Purpose::Update {
        return Ok(None);
    }
    let (_, wish, base) = Kept::read(app, approval)?;
    let then = Cvm { name: base.name.clone(), listed: base.listed, ..cvm.clone() };
    let mut plan = update::plan(app, &then, base.revision, &wish)?;
    if let Plan::Steps(steps) = &mut plan
        && !wish.touches_document()
    {
        // It was planned without the long texts.
        steps.spec.compose = app.store.spec(cvm.id, base.revision)?.compose;
    }
    Ok(Some((plan, base)))
}

fn hash_refused(message: impl Into<String>) -> Error {
    Error::Proof { check: ProofCheck::Hash, message: message.into() }
}
