//! The one road of every update route: a wish and an intent in, an answer out.

use std::sync::Arc;

use axum::http::{HeaderMap, StatusCode};
use casemate_types::error::ErrorBody;
use casemate_types::patch::{CvmPatch, PatchControl, TxProof};
use casemate_types::wire;
use serde_json::{Map, Value};

use crate::app::App;
use crate::cvm::plan::{Approval, Plan, Wish};
use crate::error::{Error, Result};
use crate::http::answer::json;
use crate::http::extract::{On, Params};
use crate::http::view;
use crate::store::Answer;
use crate::workflow::approval::{self, Proof};
use crate::workflow::commit_token;
use crate::workflow::operation::Kind;
use crate::workflow::update::{self, Accepted, Outcome, Request};

/// What a request on an update route wants done with its wish.
#[derive(Clone, Debug, PartialEq)]
pub enum Intent {
    /// Do it; or say what is needed first.
    Apply,
    /// Only say what would be done.
    DryRun,
    /// Keep it for somebody else to commit.
    PrepareOnly,
    /// It was approved: here is the proof.
    Confirm(Proof),
    /// It was provisioned and, where a contract has a say, registered: by this transaction, if one is named.
    CommitRegistered(Option<TxProof>),
}

/// What routes answer with that show the CVM as it will be.
#[derive(utoipa::ToSchema)]
#[serde(untagged)]
pub enum VmOrPlan {
    /// The CVM.
    Vm(Box<wire::Vm>),
    /// With `dry_run`: what would be done.
    DryRun(wire::DryRun),
}

/// The fields of a body that say how an update is done, not what it changes. Every update route takes them.
pub fn options(body: &Map<String, Value>) -> Result<CvmPatch> {
    let all = CvmPatch::from_json(body).map_err(Error::Invalid)?;
    Ok(CvmPatch {
        shutdown_timeout: all.shutdown_timeout,
        allow_force_stop: all.allow_force_stop,
        on_failure: all.on_failure,
        force_restart: all.force_restart,
        ..CvmPatch::default()
    })
}

impl Intent {
    /// From the query, the headers, and the spellings that a body may use.
    pub fn read(params: Params, headers: &HeaderMap, body: &Map<String, Value>) -> Result<Self> {
        let params = params.only(&["dry_run"])?;
        let control = PatchControl::from_json(body).map_err(Error::Invalid)?;
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
        let hash = match text("x-compose-hash") {
            None => control.compose_hash,
            Some(hash) => Some(hash.parse().map_err(|error| header_error("X-Compose-Hash", &error))?),
        };
        let tx = match text("x-transaction-hash") {
            None => control.transaction_hash,
            Some(tx) => Some(tx.parse().map_err(|error| header_error("X-Transaction-Hash", &error))?),
        };
        let prepare = said(headers, "x-prepare-only");
        if params.flag("dry_run")?.unwrap_or(false) {
            return Ok(Self::DryRun);
        }
        match (hash, tx) {
            (Some(compose_hash), tx) => Ok(Self::Confirm(Proof { compose_hash, tx: tx.unwrap_or_default() })),
            (None, Some(_)) => {
                Err(Error::invalid("compose_hash", "is needed together with `transaction_hash`"))
            }
            (None, None) if prepare || control.prepare_only => Ok(Self::PrepareOnly),
            (None, None) => Ok(Self::Apply),
        }
    }
}

/// Does this header say `true`?
pub fn said(headers: &HeaderMap, name: &str) -> bool {
    let value = headers.get(name).and_then(|value| value.to_str().ok());
    value.is_some_and(|value| value.trim().eq_ignore_ascii_case("true"))
}

fn header_error(name: &str, error: &dyn std::fmt::Display) -> Error {
    let issue = casemate_types::error::FieldError::header(name, "value_error", error.to_string());
    Error::Invalid(vec![issue])
}

/// Carries a wish out as `intent` says. `accepted` makes the answer to an accepted one.
pub async fn carry_out(
    app: &App,
    on: On,
    headers: &HeaderMap,
    kind: Kind,
    wish: Wish,
    intent: Intent,
    accepted: impl Fn(&App, &On, &Accepted) -> Result<Answer> + Send + Sync + 'static,
) -> Result<Answer> {
    let author = on.caller.author()?;
    let on = Arc::new(on);
    let render = {
        let (app, on) = (app.clone(), Arc::clone(&on));
        Arc::new(move |outcome: &Outcome| match outcome {
            Outcome::Accepted(done) => accepted(&app, &on, done),
            Outcome::NeedsApproval(ask) => Ok(approval_needed(ask)),
        })
    };
    let receipt = {
        let render = Arc::clone(&render);
        on.caller.receipt(move |outcome| render(outcome).map(kept))
    };
    let auto_commit = said(headers, "x-auto-commit");
    let request = Request { wish, kind, if_match: on.if_match.clone(), author, receipt, auto_commit };
    let cvm = on.cvm.clone();
    let outcome = match intent {
        Intent::DryRun => return dry_run(app, &on, &request).await,
        Intent::Apply => update::accept(app, cvm, request).await?,
        Intent::PrepareOnly => approval::open(app, cvm, request).await?,
        Intent::Confirm(proof) => approval::confirm(app, cvm, request, proof).await?,
        Intent::CommitRegistered(tx) => approval::commit_registered(app, cvm, request, tx).await?,
    };
    render(&outcome)
}

/// 465: what has to be registered, and how to go on.
pub fn approval_needed(ask: &approval::Ask) -> Answer {
    let status = StatusCode::from_u16(465).expect("three digits");
    json(status, &ErrorBody::approval_needed("The compose hash has to be registered on chain first", ask))
}

/// An answer as it is kept: without secrets.
pub fn kept(answer: Answer) -> Answer {
    Answer { body: commit_token::without_tokens(&answer.body), ..answer }
}

/// The usual answer to an accepted update.
pub fn in_progress(what: &str, accepted: &Accepted) -> wire::Accepted {
    let message = match &accepted.plan {
        Plan::Nothing if accepted.operation.state.is_open() => {
            format!("{what} is what the running operation already does")
        }
        Plan::Nothing => "Nothing changed; send \"force_restart\": true to restart all the same".to_owned(),
        Plan::Records { .. } => format!("{what} done; no restart needed"),
        Plan::Steps(_) => format!("{what} accepted"),
    };
    wire::Accepted {
        warnings: accepted.warnings().to_vec(),
        ..wire::Accepted::new(accepted.operation.id, message)
    }
}

/// 202 with the usual answer.
pub fn accepted_as(what: &'static str) -> impl Fn(&App, &On, &Accepted) -> Result<Answer> {
    move |_, _, accepted| Ok(json(StatusCode::ACCEPTED, &in_progress(what, accepted)))
}

/// 202 with the usual answer and the CVM as it will be.
pub fn accepted_with_cvm(what: &'static str) -> impl Fn(&App, &On, &Accepted) -> Result<Answer> {
    move |app, on, accepted| {
        let cvm = view::vm(app, &accepted.cvm, &accepted.target(app)?, on.caller.version)?;
        let accepted = in_progress(what, accepted);
        Ok(json(StatusCode::ACCEPTED, &wire::AcceptedCvm { accepted, cvm }))
    }
}

/// 200 with the CVM as it will be.
pub fn target_cvm(app: &App, on: &On, accepted: &Accepted) -> Result<Answer> {
    let mut vm = view::vm(app, &accepted.cvm, &accepted.target(app)?, on.caller.version)?;
    vm.listed = accepted.operation.options.records.listed.or(vm.listed);
    Ok(json(StatusCode::OK, &vm))
}

async fn dry_run(app: &App, on: &On, request: &Request) -> Result<Answer> {
    request.check_match(&on.cvm)?;
    let plan = update::plan_checked(app, &on.cvm, &request.wish).await?;
    let compose_hash = Some(update::outline(app, &plan, on.cvm.id, on.cvm.revision)?.compose.hash);
    let (kind, diff, needs_approval, warnings) = match plan {
        Plan::Nothing => (wire::PlanKind::Nothing, Vec::new(), false, Vec::new()),
        Plan::Records { diff, .. } => (wire::PlanKind::Records, diff, false, Vec::new()),
        Plan::Steps(steps) => {
            let needs_approval = steps.approval == Approval::Needed;
            (wire::PlanKind::Restart, steps.diff, needs_approval, steps.warnings)
        }
    };
    let diff = diff.into_iter().map(Into::into).collect();
    let plan = wire::Plan { kind, diff, compose_hash, needs_approval, warnings };
    Ok(json(StatusCode::OK, &wire::DryRun { plan }))
}
