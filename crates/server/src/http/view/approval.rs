//! Approvals as the wire shows them, and the calls that contracts' owners make.

use casemate_chain::{Action, checksummed, safe_batch};
use casemate_types::error::OnchainStatus;
use casemate_types::ids::AppId;
use casemate_types::wire;
use serde_json::{Value, json};

use crate::app::App;
use crate::cvm::plan::{self, Plan};
use crate::cvm::spec::Spec;
use crate::error::{Error, Resource, Result};
use crate::kms;
use crate::store::{Approval, ApprovalState, Purpose};
use crate::workflow::operation::{Operation, Options};
use crate::workflow::{allowance, approval as workflow, onchain, replica};

/// One approval.
pub fn approval(app: &App, approval: &Approval) -> wire::Approval {
    wire::Approval {
        id: approval.id.to_string(),
        cvm_id: approval.cvm.clone(),
        cvm_name: approval.cvm_name.clone(),
        purpose: approval.purpose.as_str().to_owned(),
        state: approval.state_at(app.clock.now()).into(),
        compose_hash: approval.compose_hash,
        app_id: approval.app_id,
        author: approval.username.clone(),
        auto_commit: approval.auto.is_some(),
        needs_attention: approval.attention.clone(),
        correlation_id: match approval.state {
            ApprovalState::Committed(op) => Some(op),
            _ => None,
        },
        superseded_by: match approval.state {
            ApprovalState::Superseded(by) => Some(by.to_string()),
            _ => None,
        },
        created_at: approval.created_at,
        expires_at: approval.expires_at,
    }
}

/// One approval, with what is needed to decide about it. Asks the chain.
///
/// # Errors
/// Those of the store; the key service is no longer configured.
pub async fn approval_detail(app: &App, found: &Approval) -> Result<wire::ApprovalDetail> {
    let cvm = workflow::cvm_of(app, found)?;
    let kms = onchain::settings(app, &cvm.kms)?.ok_or(Error::NotFound { what: Resource::Kms })?;
    let base = app.store.spec(cvm.id, found.base_revision)?;
    let (mut beside, mut problem, mut node_id) = (Vec::new(), None, cvm.node_id);
    let target = match found.purpose {
        Purpose::Replica => {
            let (spec, node) = replica::waiting(app, found)?;
            node_id = node;
            Some(spec)
        }
        Purpose::Update => match workflow::planned(app, &cvm, found) {
            Ok(planned) => {
                problem = workflow::obstacle(app, &cvm, found)?;
                match planned {
                    Some((Plan::Steps(steps), was)) => {
                        beside = beside_the_spec(&steps.options, &was);
                        Some(steps.spec)
                    }
                    Some((Plan::Records { records, .. }, was)) => {
                        beside = beside_the_spec(&Options { records, ..Options::default() }, &was);
                        Some(base.clone())
                    }
                    Some((Plan::Nothing, _)) | None => Some(base.clone()),
                }
            }
            Err(error) => {
                problem = Some(error.to_string());
                None
            }
        },
    };
    let device_id = onchain::device(app, node_id)?;
    let subject = casemate_chain::Subject { app_id: cvm.app_id, compose_hash: found.compose_hash, device_id };
    let onchain_status = onchain::known_status(app, &cvm.kms, subject).await;
    let actions = [Action::AddComposeHash(found.compose_hash), Action::AddDevice(device_id)];
    let calls = needed(cvm.app_id, actions, onchain_status);
    let missing: Vec<_> = actions
        .into_iter()
        .zip(&calls)
        .filter(|(_, call)| call.needed != Some(false))
        .map(|(action, _)| action)
        .collect();
    Ok(wire::ApprovalDetail {
        approval: approval(app, found),
        diff: target.iter().flat_map(|target| diff(cvm.app_id, &base, target)).chain(beside).collect(),
        problem,
        warnings: target.as_ref().map(|target| plan::warnings(target, true)).unwrap_or_default(),
        app_compose: target.as_ref().map(|target| target.compose.text.to_string()),
        kms: kms::kms_info(app, &cvm.kms),
        chain_id: kms.chain_id,
        contract: checksummed(cvm.app_id),
        device_id,
        onchain_status,
        calls,
        safe_batch: batch(app, kms.chain_id, &format!("{}: allow an update", cvm.name), cvm.app_id, &missing),
    })
}

fn needed(app_id: AppId, actions: [Action; 2], status: Option<OnchainStatus>) -> Vec<wire::ContractCall> {
    let [hash, device] = actions.map(|action| contract_call(app_id, action));
    vec![
        wire::ContractCall { needed: status.map(|status| !status.compose_hash_allowed), ..hash },
        wire::ContractCall { needed: status.map(|status| !status.device_id_allowed), ..device },
    ]
}

fn batch(app: &App, chain_id: u64, name: &str, app_id: AppId, actions: &[Action]) -> Value {
    let calls: Vec<_> = actions.iter().map(|action| (app_id, *action)).collect();
    let now = u64::try_from(app.clock.now().as_millisecond()).unwrap_or_default();
    safe_batch(chain_id, now, name, &calls)
}

/// What is done beside a new spec, and how: what the CVM is called, who sees it, and what may happen to its machine on the way.
fn beside_the_spec(options: &Options, was: &workflow::Base) -> Vec<wire::Diff> {
    let Options { records, shutdown_timeout, allow_force_stop, on_failure, .. } = options;
    let rows = [
        ("name", json!(was.name), records.name.as_ref().map(|name| json!(name))),
        ("listed", json!(was.listed), records.listed.map(|listed| json!(listed))),
        ("shutdown_timeout", Value::Null, shutdown_timeout.map(|seconds| json!(seconds))),
        ("allow_force_stop", json!(false), allow_force_stop.then(|| json!(true))),
        ("on_failure", Value::Null, on_failure.map(|what| json!(what))),
    ];
    let row = |(field, from, to): (&str, Value, Option<Value>)| {
        to.map(|to| wire::Diff { field: field.to_owned(), from, to })
    };
    rows.into_iter().filter_map(row).collect()
}

/// What changes, for people: texts as they are, of the environment the names.
fn diff(app_id: AppId, base: &Spec, target: &Spec) -> Vec<wire::Diff> {
    let (old, new) = (base.compose.parsed(), target.compose.parsed());
    let text = |field: &str, before: Value, after: Value| match field {
        "encrypted_env" => (json!(old.allowed_envs()), json!(new.allowed_envs())),
        _ => match (old.as_map().get(field), new.as_map().get(field)) {
            (None, None) => (before, after),
            (before, after) => (before.cloned().unwrap_or_default(), after.cloned().unwrap_or_default()),
        },
    };
    plan::diff(&app_id, base, target)
        .into_iter()
        .filter(|change| change.field != "instance_id")
        .map(|change| {
            let (from, to) = text(&change.field, change.from, change.to);
            wire::Diff { field: change.field, from, to }
        })
        .collect()
}

/// A call of an app's contract.
pub fn contract_call(app_id: AppId, action: Action) -> wire::ContractCall {
    let (function, _, argument) = action.spelled();
    wire::ContractCall {
        function: function.to_owned(),
        argument,
        to: checksummed(app_id),
        data: format!("0x{}", hex::encode(action.calldata())),
        needed: None,
    }
}

/// Calls of an app's contract.
pub fn calls(app_id: AppId, actions: &[Action]) -> Vec<wire::ContractCall> {
    actions.iter().map(|action| contract_call(app_id, *action)).collect()
}

/// How to take the hash back that an operation took out of use, if it did.
///
/// # Errors
/// Those of the store.
pub fn revocation(app: &App, operation: &Operation) -> Result<Option<wire::Revocation>> {
    let Some((cvm, hash)) = allowance::superseded(app, operation)? else { return Ok(None) };
    let Some(kms) = app.config.contract_kms(&cvm.kms) else { return Ok(None) };
    let actions = [Action::RemoveComposeHash(hash)];
    Ok(Some(wire::Revocation {
        chain_id: kms.chain_id,
        compose_hashes: vec![hash],
        calls: calls(cvm.app_id, &actions),
        safe_batch: batch(
            app,
            kms.chain_id,
            &format!("{}: forbid what it no longer runs", cvm.name),
            cvm.app_id,
            &actions,
        ),
    }))
}
