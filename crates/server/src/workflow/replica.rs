//! Another CVM of an app that has one: made at once, or, where a contract has to allow its hash or its device first, when that
//! is so.

use casemate_types::error::codes;
use casemate_types::ids::{CvmName, CvmRef};
use casemate_types::patch::{CvmPatch, CvmReplicate, TxProof};
use serde::{Deserialize, Serialize};

use super::approval::{self, Ask, Opening, Token};
use super::commit_token::Named;
use super::create::{self, Created};
use super::onchain;
use super::update::{self, busy};
use crate::app::App;
use crate::auth::Author;
use crate::cvm::plan::{self, Current, Plan, Wish, plan_update};
use crate::cvm::spec::Spec;
use crate::cvm::state::Cvm;
use crate::error::{Error, ProofCheck, Resource, Result};
use crate::store::{Approval, Closing, Found, NewCvm, Purpose, Receipt};

/// How a replica is asked for.
#[derive(Clone, Debug)]
pub struct Replicate {
    /// What it should be.
    pub asked: CvmReplicate,
    /// Keep it for somebody else to commit, also if everything is allowed.
    pub prepare_only: bool,
    /// Commit it as soon as everything is allowed.
    pub auto_commit: bool,
    /// Where its token is to be sent.
    pub commit_route: String,
    /// Who asks.
    pub author: Author,
}

/// What became of a request for a replica.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// It is being made.
    Created(Box<Created>),
    /// Something has to be allowed first.
    NeedsApproval(Box<Ask>),
}

/// A replica as it is kept while it waits.
#[derive(Serialize, Deserialize)]
struct Kept {
    /// As asked for; else one is made up when it is made.
    name: Option<String>,
    listed: bool,
    node_id: i64,
    spec: Spec,
}

/// Makes another CVM like `source`, or says what has to be allowed first.
pub async fn replicate(
    app: &App,
    source: &Cvm,
    how: Replicate,
    receipt: Option<Receipt<Outcome>>,
) -> Result<Outcome> {
    let kept = plan(app, source, &how.asked)?;
    let hash = kept.spec.compose.hash;
    let device = onchain::device(app, kept.node_id);
    let Some(contract) = onchain::contract(app, &source.kms)? else {
        return make_now(app, source, kept, how.author, receipt).await;
    };
    let device = device?;
    onchain::check_image(app, &source.kms, kept.node_id, &kept.spec.image).await?;
    let subject = casemate_chain::Subject { app_id: source.app_id, compose_hash: hash, device_id: device };
    // A chain that does not answer keeps nobody from asking for an approval.
    let allowed = contract.allowed(subject).await;
    if let Ok(allowed) = &allowed
        && allowed.both()
        && !how.prepare_only
    {
        return make_now(app, source, kept, how.author, receipt).await;
    }
    let opening = Opening {
        cvm: source,
        purpose: Purpose::Replica,
        compose_hash: hash,
        device_id: device,
        content: serde_json::to_string(&kept).expect("a spec has string keys"),
        author: &how.author,
        auto_commit: how.auto_commit,
        token: Token::With { route: how.commit_route },
        status: allowed.ok().map(onchain::status),
        warnings: plan::warnings(&kept.spec, true),
    };
    let receipt =
        receipt.map(|receipt| receipt.of(|ask: &Ask| Outcome::NeedsApproval(Box::new(ask.clone()))));
    let ask = opening.store(app, receipt).await?;
    Ok(Outcome::NeedsApproval(ask))
}

/// Makes a replica that needs nobody's yes.
async fn make_now(
    app: &App,
    source: &Cvm,
    kept: Kept,
    author: Author,
    receipt: Option<Receipt<Outcome>>,
) -> Result<Outcome> {
    let outcome = |created: &Created| Outcome::Created(Box::new(created.clone()));
    let receipt = receipt.map(|receipt| receipt.of(outcome));
    Ok(outcome(&make(app, source, kept, author, None, receipt).await?))
}

/// Makes a replica that was approved.
pub async fn commit(
    app: &App,
    source: &Cvm,
    approval: &Approval,
    named: Named,
    tx: TxProof,
    author: Author,
    receipt: Option<Receipt<Created>>,
) -> Result<Created> {
    let _turn = app.turns.take(approval.id.as_bytes()).ok_or_else(busy)?;
    let approval = &approval::still_open(app, approval.id, named)?;
    let kept = read(app, approval)?;
    let device = onchain::device(app, kept.node_id)?;
    onchain::check_image(app, &source.kms, kept.node_id, &kept.spec.image).await?;
    let evidence =
        approval::prove(app, &source.kms, source.app_id, approval.compose_hash, device, tx).await?;
    let closing = Closing::of(approval.id, None, &author, evidence, app.clock.now());
    match make(app, source, kept, author, Some(closing), receipt).await {
        // Somebody was quicker while the contract was asked.
        Err(error @ Error::Proof { check: ProofCheck::Hash, .. }) => {
            approval::still_open(app, approval.id, named)?;
            Err(error)
        }
        other => other,
    }
}

fn read(app: &App, approval: &Approval) -> Result<Kept> {
    serde_json::from_str(&app.store.approval_content(approval.id)?)
        .map_err(|source| Error::internal("read an approval")(source.into()))
}

/// The spec that a waiting replica would have, and the node that it goes to.
///
/// # Errors
/// What was kept does not read back.
pub fn waiting(app: &App, approval: &Approval) -> Result<(Spec, i64)> {
    read(app, approval).map(|kept| (kept.spec, kept.node_id))
}

async fn make(
    app: &App,
    source: &Cvm,
    kept: Kept,
    author: Author,
    closes: Option<Closing>,
    receipt: Option<Receipt<Created>>,
) -> Result<Created> {
    let name = match kept.name {
        Some(name) => name,
        None => free_name(app, source)?,
    };
    let new = create::new_cvm(
        app,
        source.workspace_id,
        source.app_id,
        source.kms.clone(),
        kept.node_id,
        name,
        kept.spec,
        author,
    );
    create::store_new(app, NewCvm { listed: kept.listed, closes, ..new }, receipt).await
}

/// The name of the source with the lowest number behind it that nobody has.
fn free_name(app: &App, source: &Cvm) -> Result<String> {
    for number in 2_u32.. {
        let end = format!("-{number}");
        let start: String = source.name.chars().take(CvmName::MAX - end.len()).collect();
        let name = format!("{}{end}", start.trim_end_matches('-'));
        if matches!(app.store.cvm_find(source.workspace_id, &CvmRef::Name(name.clone()))?, Found::None) {
            return Ok(name);
        }
    }
    Err(busy())
}

fn plan(app: &App, source: &Cvm, asked: &CvmReplicate) -> Result<Kept> {
    let node_id = asked.node_id.unwrap_or(source.node_id);
    let node = app.store.nodes()?.into_iter().find(|node| node.id == node_id && app.node(node_id).is_some());
    let node = node.ok_or(Error::NotFound { what: Resource::Node })?;
    let mut spec = base(app, source, asked)?;
    let rules = update::rules(app, &node.facts, &source.kms);
    let image = asked.os_image.as_ref().unwrap_or(&spec.image);
    let Some(image) = rules.images.iter().find(|known| known.is_meant_by(image)) else {
        let message = format!("node {} does not have OS image `{image}`", node.facts.name);
        return Err(Error::rejected(codes::REPLICA_IMAGE_NOT_AVAILABLE, "os_image", message));
    };
    spec.image.clone_from(&image.name);
    let patch = CvmPatch {
        docker_compose_file: asked.docker_compose_file.clone().into(),
        pre_launch_script: asked.pre_launch_script.clone().into(),
        encrypted_env: asked.encrypted_env.clone().into(),
        ..CvmPatch::default()
    };
    let wish = Wish { patch, ..Wish::default() };
    if let Plan::Steps(steps) = plan_update(&Current { cvm: source, spec: &spec }, &wish, &rules)? {
        spec = steps.spec;
    }
    spec.instance_seed = app.clock.random();
    create::fits(&node, &spec)?;
    let name = asked.name.as_ref().map(ToString::to_string);
    if let Some(name) = &name
        && !matches!(app.store.cvm_find(source.workspace_id, &CvmRef::Name(name.clone()))?, Found::None)
    {
        return Err(crate::store::Error::Constraint(crate::store::constraint::CVM_NAME).into());
    }
    Ok(Kept { name, listed: source.listed, node_id, spec })
}

/// The spec that a replica starts from: the source's, or the newest of the app with the hash that was asked for.
fn base(app: &App, source: &Cvm, asked: &CvmReplicate) -> Result<Spec> {
    let current = app.store.spec(source.id, source.revision)?;
    let Some(hash) = asked.compose_hash.filter(|hash| *hash != current.compose.hash) else {
        return Ok(current);
    };
    for cvm in app.store.cvms_of_app(source.app, 1000)? {
        // All of them: the one that is meant may be the oldest.
        let known = app.store.revisions(cvm.id, None, u32::MAX as usize)?;
        if let Some(revision) =
            known.iter().filter(|revision| revision.compose_hash == hash).max_by_key(|r| r.number)
        {
            let spec = app.store.spec(cvm.id, revision.number)?;
            // The machine is like the source; what it runs is of that revision.
            return Ok(Spec { compose: spec.compose, sealed_env: spec.sealed_env, ..current });
        }
    }
    let message = format!("no revision of the app has compose hash {hash}");
    Err(Error::rejected(codes::INVALID_REQUEST, "compose_hash", message))
}
