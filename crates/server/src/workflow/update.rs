//! Updates: plan, accept, and hear about it when the CVM moved meanwhile.

use casemate_types::compose::ComposeDoc;
use casemate_types::error::codes;
use casemate_types::ids::OperationId;

use super::approval::{self, Ask};
use super::operation::{Kind, Lane, Operation, Options};
use super::{allowance, onchain};
use crate::app::App;
use crate::auth::Author;
use crate::cvm::plan::{Approval, Current, INSTANCE_TYPES, Plan, Rules, Steps, Wish, plan_update};
use crate::cvm::spec::Spec;
use crate::cvm::state::{Cvm, IfMatch};
use crate::driver::NodeFacts;
use crate::error::{Error, ProofCheck, Resource, Result};
use crate::store::{self, Closing, NewOperation, NewSpec, Receipt, constraint};

/// How often a plan is made again because the CVM moved.
pub(super) const ATTEMPTS: usize = 3;

/// A request to change a CVM.
#[derive(Clone, Debug)]
pub struct Request {
    /// What it asks for.
    pub wish: Wish,
    /// What the operation is called.
    pub kind: Kind,
    /// The states that the caller has seen.
    pub if_match: Option<IfMatch>,
    /// Who asks.
    pub author: Author,
    /// Keeps the answer together with what it answers.
    pub receipt: Option<Receipt<Outcome>>,
    /// If it needs an approval: is the server to commit it by itself, in the author's name, once it is approved?
    pub auto_commit: bool,
}

impl Request {
    /// `Changed` if the caller has seen another state than this.
    pub fn check_match(&self, cvm: &Cvm) -> Result<()> {
        self.if_match.as_ref().map_or(Ok(()), |seen| seen.check(cvm))
    }
}

/// What became of a request.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// It is stored and will be carried out.
    Accepted(Box<Accepted>),
    /// Somebody has to say yes first.
    NeedsApproval(Box<Ask>),
}

/// An accepted request.
#[derive(Clone, Debug)]
pub struct Accepted {
    /// The operation; without steps when there was nothing to do on the node.
    pub operation: Operation,
    /// The CVM as clients see it from now on.
    pub cvm: Cvm,
    /// The plan it was made from.
    pub plan: Plan,
}

/// What a plan leads to, without the long parts; `otherwise` is the revision if it changes none.
pub fn outline(app: &App, plan: &Plan, cvm_id: i64, otherwise: u64) -> Result<Spec> {
    match plan {
        Plan::Steps(steps) => Ok(steps.spec.outline()),
        Plan::Nothing | Plan::Records { .. } => Ok(app.store.outline(cvm_id, otherwise)?),
    }
}

impl Accepted {
    /// The spec that it leads to, without its long parts.
    pub fn outline(&self, app: &App) -> Result<Spec> {
        outline(app, &self.plan, self.cvm.id, self.operation.target)
    }

    /// The spec that it leads to.
    pub fn target(&self, app: &App) -> Result<Spec> {
        match &self.plan {
            // It may not be committed yet. Its long parts are there, or those of the revision that is current now.
            Plan::Steps(steps) if steps.spec.compose.document.here().is_some() => Ok(steps.spec.clone()),
            Plan::Steps(steps) => {
                let now = app.store.spec(self.cvm.id, self.operation.previous)?;
                Ok(steps.spec.clone().with_parts_of(&now))
            }
            Plan::Nothing | Plan::Records { .. } => Ok(app.store.spec(self.cvm.id, self.operation.target)?),
        }
    }

    /// What the caller should know.
    pub fn warnings(&self) -> &[String] {
        match &self.plan {
            Plan::Steps(steps) => &steps.warnings,
            Plan::Nothing | Plan::Records { .. } => &[],
        }
    }
}

/// Accepts an update of `cvm`, or says what it needs first.
///
/// A request that the operation in flight already fulfils gets that operation. Any other on a busy CVM is a conflict without
/// code: it may work later.
pub async fn accept(app: &App, mut cvm: Cvm, request: Request) -> Result<Outcome> {
    for _ in 0..ATTEMPTS {
        request.check_match(&cvm)?;
        if cvm.open.is_some() {
            if let Some(joined) = join(app, &cvm, &request)? {
                return Ok(joined);
            }
            cvm = app.store.cvm(cvm.id)?;
            continue;
        }
        let plan = plan_checked(app, &cvm, &request.wish).await?;
        if let Plan::Steps(steps) = &plan
            && steps.approval == Approval::Needed
        {
            return approval::ask(app, &cvm, steps, &request).await.map(Outcome::NeedsApproval);
        }
        match store_plan(app, &cvm, plan, &request, None).await {
            Ok(accepted) => return Ok(Outcome::Accepted(Box::new(accepted))),
            Err(store::Error::Changed | store::Error::OperationOpen) => cvm = app.store.cvm(cvm.id)?,
            Err(error) => return Err(error.into()),
        }
    }
    Err(busy())
}

/// The answer while an operation is at work: that operation, if it leads exactly where the request wants to go. None if it
/// has ended meanwhile.
fn join(app: &App, cvm: &Cvm, request: &Request) -> Result<Option<Outcome>> {
    let Some(open) = app.store.operation_open(cvm.id)? else { return Ok(None) };
    if open.kind != request.kind {
        return Err(busy());
    }
    let mut target = cvm.clone();
    target.listed = open.options.records.listed.unwrap_or(target.listed);
    target.name = open.options.records.name.clone().unwrap_or(target.name);
    match plan(app, &target, open.target, &request.wish)? {
        Plan::Nothing => {
            let accepted = Accepted { operation: open, cvm: cvm.clone(), plan: Plan::Nothing };
            Ok(Some(Outcome::Accepted(Box::new(accepted))))
        }
        Plan::Records { .. } | Plan::Steps(_) => Err(busy()),
    }
}

/// What `wish` would mean for `cvm` if revision `base` were its current one.
pub fn plan(app: &App, cvm: &Cvm, base: u64, wish: &Wish) -> Result<Plan> {
    let spec = match wish.touches_document() {
        true => app.store.spec(cvm.id, base)?,
        false => app.store.outline(cvm.id, base)?,
    };
    let facts = app.node(cvm.node_id).ok_or(Error::NotFound { what: Resource::Node })?.facts();
    plan_update(&Current { cvm, spec: &spec }, wish, &rules(app, &facts, &cvm.kms))
}

/// As [`plan`] on what is current, after asking the contract of the CVM's key service about a new OS image.
pub async fn plan_checked(app: &App, cvm: &Cvm, wish: &Wish) -> Result<Plan> {
    let plan = plan(app, cvm, cvm.revision, wish)?;
    if let Plan::Steps(_) = &plan {
        // Nobody has to be registered with a key service that is not there to be asked.
        onchain::contract(app, &cvm.kms)?;
    }
    check_image(app, cvm, &plan).await?;
    if let (Some(_), Plan::Steps(steps)) = (&wish.content_of, &plan)
        && steps.approval == Approval::NotNeeded
    {
        // Nobody is asked for an approval, so nobody would say that the contract changed its mind.
        allowance::check_unchanged_hash(app, cvm, steps.spec.compose.hash).await?;
    }
    Ok(plan)
}

/// Refuses a plan that brings an OS image which the contract of the CVM's key service does not allow.
pub(super) async fn check_image(app: &App, cvm: &Cvm, plan: &Plan) -> Result<()> {
    match plan {
        Plan::Steps(steps) if steps.diff.iter().any(|change| change.field == "image") => {
            onchain::check_image(app, &cvm.kms, cvm.node_id, &steps.spec.image).await
        }
        Plan::Steps(_) | Plan::Nothing | Plan::Records { .. } => Ok(()),
    }
}

/// What a node and the operator allow to a CVM with this key service.
pub fn rules<'a>(app: &App, node: &'a NodeFacts, kms: &str) -> Rules<'a> {
    Rules {
        limits: app.config.limits,
        images: &node.images,
        node_gpus: node.capacity.gpus,
        gpu_product: node.gpu_product.as_deref(),
        instance_types: INSTANCE_TYPES,
        own_guests: node.own_guests,
        contract_owned: app.config.kms_is_contract_owned(kms),
    }
}

/// Stores a plan that was made for `cvm` as it is. `Changed` or `OperationOpen` if it no longer is.
pub(super) async fn store_plan(
    app: &App,
    cvm: &Cvm,
    plan: Plan,
    request: &Request,
    closes: Option<Closing>,
) -> store::Result<Accepted> {
    let new = NewOperation { closes, ..new_operation(app, cvm, &plan, request) };
    let of_plan = |accepted: &store::Accepted, plan: &Plan| {
        let (operation, cvm) = (accepted.operation.clone(), accepted.cvm.clone());
        Accepted { operation, cvm, plan: plan.clone() }
    };
    let receipt = request.receipt.as_ref().map(|receipt| {
        let plan = plan.clone();
        receipt.of(move |accepted| Outcome::Accepted(Box::new(of_plan(accepted, &plan))))
    });
    let accepted = app.store.operation_accept(new, cvm.clone(), receipt).await?;
    app.wake(Lane::Ordinary);
    Ok(Accepted { operation: accepted.operation, cvm: accepted.cvm, plan })
}

/// Stores plans for several CVMs at once. One that is busy or has moved is left out, and the others are not.
pub async fn accept_each(
    app: &App,
    planned: Vec<(Cvm, Plan)>,
    kind: Kind,
    author: &Author,
    receipt: Option<Receipt<Vec<Option<store::Accepted>>>>,
) -> Result<Vec<Option<store::Accepted>>> {
    let request = Request {
        wish: Wish::default(),
        kind,
        if_match: None,
        author: author.clone(),
        receipt: None,
        auto_commit: false,
    };
    let new =
        planned.into_iter().map(|(cvm, plan)| (new_operation(app, &cvm, &plan, &request), cvm)).collect();
    let accepted = app.store.operations_accept(new, receipt).await?;
    app.wake(Lane::Ordinary);
    Ok(accepted)
}

fn new_operation(app: &App, cvm: &Cvm, plan: &Plan, request: &Request) -> NewOperation {
    let (spec, options, diff) = match plan.clone() {
        Plan::Nothing => (None, Options::default(), Vec::new()),
        Plan::Records { records, diff } => (None, Options { records, ..Options::default() }, diff),
        Plan::Steps(steps) => {
            let Steps { spec, content_of, diff, options, .. } = *steps;
            (Some(NewSpec { spec, content_of }), options, diff)
        }
    };
    NewOperation {
        id: OperationId(app.clock.new_id()),
        cvm_id: cvm.id,
        kind: request.kind,
        steps: plan.steps(request.kind, cvm.power).to_vec(),
        power: None,
        spec,
        options,
        diff,
        closes: None,
        author: Some(request.author.clone()),
        at: app.clock.now(),
    }
}

/// Refuses names of variables that the compose file does not let in: the guest would drop them.
pub fn check_env_keys(document: &ComposeDoc, keys: Option<&[String]>) -> Result<()> {
    let allowed = document.allowed_envs();
    let stray: Vec<_> = keys
        .unwrap_or_default()
        .iter()
        .filter(|key| !allowed.contains(&key.as_str()))
        .map(String::as_str)
        .collect();
    if stray.is_empty() {
        return Ok(());
    }
    let message =
        format!("{} not in `allowed_envs` of the compose file ({})", stray.join(", "), allowed.join(", "));
    Err(Error::invalid("env_keys", message))
}

/// Another operation is at work. No code: the same request may work later.
pub fn busy() -> Error {
    Error::Conflict { code: None, message: "another operation is already running for this CVM".into() }
}

impl From<store::Error> for Error {
    fn from(error: store::Error) -> Self {
        let conflict = |code, message: &str| Self::Conflict { code: Some(code), message: message.into() };
        match error {
            store::Error::Missing => Self::NotFound { what: Resource::Cvm },
            store::Error::OperationOpen | store::Error::Changed => busy(),
            store::Error::ClaimLost => {
                conflict(codes::INVALID_REQUEST, "the operation can no longer be changed")
            }
            store::Error::Constraint(constraint::CVM_NAME) => {
                conflict(codes::DUPLICATE_CVM_NAME, "the name is already in use in this workspace")
            }
            store::Error::Constraint(constraint::APP_ID) => {
                conflict(codes::CVM_APP_ID_CONFLICT, "this app id is already in use")
            }
            store::Error::Constraint(_) => {
                conflict(codes::RESOURCE_NOT_AVAILABLE, "the node has not enough room left")
            }
            store::Error::NoRoom(room) => Self::NoRoom(room),
            store::Error::Answered => Self::Conflict {
                code: None,
                message: "the first request with this Idempotency-Key is still being answered".into(),
            },
            store::Error::ApprovalClosed => Self::Proof {
                check: ProofCheck::Hash,
                message: "the approval was used, replaced, or has expired".into(),
            },
            store::Error::Swept(oldest) => Self::Gone { oldest },
            store::Error::Unavailable(source) => {
                Self::Unavailable { service: "the store", source: source.into() }
            }
            store::Error::Broken(source) => Self::Internal { doing: "use the store", source: source.into() },
            store::Error::Unreadable { what, source } => Self::Internal { doing: what, source },
        }
    }
}
