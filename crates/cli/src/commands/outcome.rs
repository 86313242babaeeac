//! What follows a change that was sent: its plan, an operation, or an approval that it needs first.

use casemate_sdk::chain::{Network, Wallet, checksummed};
use casemate_sdk::types::error::ErrorBody;
use casemate_sdk::wire::{self, DryRun, PlanKind};
use casemate_sdk::{Ask, Operation, PatchOutcome};
use clap::Args;

use super::approvals::{Typed, before_signing, ways as approval_ways};
use super::cvms::get::addresses;
use super::signing::{Signing, chain_name, note_registered, note_signing};
use crate::context::Context;
use crate::error::{AboutExt, Failure, Result};
use crate::human;
use crate::output::fields;
use crate::progress::{self, diff_lines};

/// Whether to wait for what was started.
#[derive(Args, Clone, Copy, Debug, Default)]
pub(crate) struct Waiting {
    /// Wait until it is done and show each step; this is the default. With --json the answer is then the operation at its
    /// end
    #[arg(long, overrides_with = "no_wait")]
    wait: bool,
    /// Return as soon as the server has accepted it
    #[arg(long, overrides_with = "wait")]
    no_wait: bool,
}

impl Waiting {
    /// Not wanted.
    pub(crate) const NO: Self = Self { wait: false, no_wait: true };

    pub(crate) fn wanted(self) -> bool {
        !self.no_wait
    }
}

/// How an update goes on that a contract has to allow first.
#[derive(Clone, Copy)]
pub(crate) enum Approving<'a> {
    /// It was only to be prepared.
    ByOthers,
    /// The server was told to watch the contract.
    ByServer,
    /// Whoever typed the command may sign, for what was typed.
    Here(&'a Signing, Typed<'a>),
}

/// What a CVM is once another one like it was made.
pub(crate) const REPLICATED: &str = "replicated";

/// A change of a CVM, in the words of one command.
pub(crate) struct Change<'a> {
    /// The CVM, as the user named it.
    pub(crate) cvm: &'a str,
    /// `Updating`, `Stopping` …
    pub(crate) doing: &'a str,
    /// `updated`, `stopped` …
    pub(crate) done: &'a str,
    pub(crate) waiting: Waiting,
}

impl Change<'_> {
    /// What follows the answer to an update.
    pub(crate) async fn outcome(
        &self,
        cx: &Context,
        outcome: PatchOutcome,
        approving: Approving<'_>,
    ) -> Result<()> {
        let ask = match outcome {
            PatchOutcome::Accepted(operation) => {
                if matches!(approving, Approving::ByOthers) {
                    cx.out.warning("no approval is needed here, so it is done at once");
                }
                return self.accepted(cx, &operation).await;
            }
            PatchOutcome::NeedsApproval(ask) => ask,
        };
        for warning in &ask.warnings {
            cx.out.warning(warning);
        }
        if let Approving::Here(signing, typed) = approving {
            let contract = checksummed(ask.app_id);
            let what =
                format!("The contract {contract} has to allow the new compose hash 0x{}.", ask.compose_hash);
            if let Some(wallet) = signing.wallet(cx, &what)? {
                let network = signing.network(cx, &ask.kms_info)?;
                before_signing(cx, self.cvm, &ask, &network, typed).await?;
                return self.signed(cx, &ask, &wallet, network).await;
            }
        }
        self.needs_approval(cx, &ask, approving)
    }

    /// Registers what is needed, and runs the update.
    async fn signed(&self, cx: &Context, ask: &Ask, wallet: &Wallet, network: Network) -> Result<()> {
        let (contract, hash) = (checksummed(ask.app_id), ask.compose_hash);
        note_signing(cx, wallet, &network, &format!("Registering 0x{hash} with {contract}"));
        let register = ask.register_with(wallet).network(network);
        let registered = register.register().await?;
        note_registered(cx, &registered);
        let confirmed = register.confirm(&registered).await.about_cvm(self.cvm);
        let operation = confirmed.map_err(|failure| {
            let proof = registered.proof();
            let goes_on = match &ask.approval_id {
                Some(id) => format!("approvals commit {id} {proof}"),
                None if self.is_replica() => format!("cvms commit-replica {} TOKEN {hash} {proof}", self.cvm),
                None => format!("cvms confirm {} {hash} {proof}", self.cvm),
            };
            failure.hint(format!("it is registered: `casemate {goes_on}` goes on"))
        })?;
        self.accepted(cx, &operation).await
    }

    /// Shows what has to be registered, and how it goes on then.
    fn needs_approval(&self, cx: &Context, ask: &Ask, approving: Approving<'_>) -> Result<()> {
        const MESSAGE: &str = "the app's contract has to allow it first";
        cx.out.result(&ErrorBody::approval_needed(MESSAGE, ask), |_| needed_text(ask))?;
        let ways = self.ways(ask);
        if matches!(approving, Approving::ByOthers) || ask.auto_commit {
            cx.out.note(&format!("\n{ways}"));
            return Ok(());
        }
        if !cx.out.is_json() {
            cx.out.note("");
        }
        let failure = Failure::failed(format!("{} is not {} yet: {MESSAGE}", self.cvm, self.done));
        Err(failure.hint(format!("how it goes on:\n{ways}")))
    }

    /// How it goes on, in commands.
    fn ways(&self, ask: &Ask) -> String {
        let (cvm, app, hash) = (self.cvm, ask.app_id, ask.compose_hash);
        let waits = "nothing: the server does it once it is allowed".to_owned();
        let known = match &ask.approval_id {
            Some(id) => approval_ways(id, ask.auto_commit.then_some(waits)),
            // Another server: what it does not know is made here.
            None => {
                let chain = ask.kms_info.chain_id.unwrap_or_default();
                let device = if ask.device_id.is_empty() {
                    String::new()
                } else {
                    format!(" --device-id {}", ask.device_id)
                };
                let run = match ask.commit_token {
                    Some(_) if self.is_replica() => {
                        format!("casemate cvms commit-replica {cvm} TOKEN {hash}")
                    }
                    Some(_) => format!("casemate cvms commit {cvm} TOKEN {hash}"),
                    None => format!("casemate cvms confirm {cvm} {hash}"),
                };
                fields([
                    ("sign it here", Some("the same command with --private-key-file FILE".to_owned())),
                    (
                        "in a Safe",
                        Some(format!(
                            "casemate approvals safe-batch --app-id {app} --compose-hash {hash}{device} --chain-id {chain}"
                        )),
                    ),
                    ("run it then", Some(run)),
                ])
            }
        };
        known.lines().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
    }

    fn is_replica(&self) -> bool {
        self.done == REPLICATED
    }

    /// What follows an accepted request.
    pub(crate) async fn accepted(&self, cx: &Context, operation: &Operation) -> Result<()> {
        for warning in operation.warnings() {
            cx.out.warning(warning);
        }
        if !self.waiting.wanted() {
            return self.under_way(cx, operation);
        }
        let title = match operation.id() {
            Some(id) => format!("{} {} ({id})", self.doing, self.cvm),
            None => format!("{} {}", self.doing, self.cvm),
        };
        let ended = progress::follow(cx, operation, &title).await.about_cvm(self.cvm)?;
        let new = if self.is_replica() { self.new_name(cx, operation, ended.as_ref()).await } else { None };
        match ended {
            Some(ended) => {
                cx.out.result(&ended, |ended| match &new {
                    Some(new) => format!("{} is {}: {new} is up.", self.cvm, self.done),
                    None => self.sentence(ended),
                })?;
                if let Some(new) = &new {
                    cx.out.note(&format!(
                        "`casemate cvms get {new}` shows it, `casemate cvms update {new}` changes it: updates of {} do not.",
                        self.cvm
                    ));
                }
                if let Some(text) = ended.revocation.as_ref().and_then(superseded) {
                    cx.out.note(&text);
                }
                if matches!(ended.kind.as_str(), "create" | "update") {
                    note_addresses(cx, &ended).await;
                }
                Ok(())
            }
            None if cx.out.is_json() => match operation.cvm() {
                // Gone, if it was deleted.
                Some(cvm) => match cvm.get().await {
                    Ok(cvm) => cx.out.json(&cvm),
                    Err(_) => Ok(()),
                },
                None => Ok(()),
            },
            None => cx.out.print(&format!("{} is {}.", self.cvm, self.done)),
        }
    }

    /// What the CVM is called that was made; nothing if no server says so.
    async fn new_name(
        &self,
        cx: &Context,
        operation: &Operation,
        ended: Option<&wire::Operation>,
    ) -> Option<String> {
        match (operation.vm(), ended) {
            (Some(vm), _) => Some(vm.name.to_string()),
            (None, Some(ended)) => {
                Some(cx.client().ok()?.cvm(&ended.cvm_id).get().await.ok()?.name.to_string())
            }
            (None, None) => None,
        }
    }

    /// It was accepted, and that is all that was wanted.
    fn under_way(&self, cx: &Context, operation: &Operation) -> Result<()> {
        if cx.out.is_json() {
            return operation.answer().map_or(Ok(()), |answer| cx.out.json(answer));
        }
        let new = operation.vm().filter(|_| self.is_replica()).map(|vm| vm.name.to_string());
        let what = match &new {
            Some(new) => format!("{} {}, {new}", self.doing, self.cvm),
            None => format!("{} {}", self.doing, self.cvm),
        };
        cx.out.print(&match operation.id() {
            Some(id) => format!("{what}: follow it with `casemate ops watch {id}`"),
            None => {
                format!("{what}: follow it with `casemate cvms watch {}`", new.as_deref().unwrap_or(self.cvm))
            }
        })
    }

    /// What has happened, in one sentence.
    fn sentence(&self, ended: &wire::Operation) -> String {
        let is_update = ended.kind == "update";
        match ended.downtime_ms.filter(|&downtime| downtime > 0) {
            Some(downtime) => {
                format!("{} is {}. It was down for {}.", self.cvm, self.done, human::millis(downtime))
            }
            None if is_update && ended.steps.is_empty() && ended.diff.is_empty() => {
                format!(
                    "{} is like this already: nothing changed. --force-restart restarts it all the same.",
                    self.cvm
                )
            }
            None if is_update && ended.steps.is_empty() => {
                format!("{} is {}, without a restart.", self.cvm, self.done)
            }
            None => format!("{} is {}.", self.cvm, self.done),
        }
    }
}

/// Where the CVM is reached now, for people. Whoever cannot be asked now is not asked again.
async fn note_addresses(cx: &Context, ended: &wire::Operation) {
    if cx.out.is_json() {
        return;
    }
    let Ok(client) = cx.client() else { return };
    if let Ok(cvm) = client.cvm(&ended.cvm_id).get().await
        && let Some(addresses) = addresses(&cvm)
    {
        cx.out.note(&format!("It is reached at {addresses}"));
    }
}

/// What an update took out of use and a contract still allows.
fn superseded(revocation: &wire::Revocation) -> Option<String> {
    let (call, hash) = (revocation.calls.first()?, revocation.compose_hashes.first()?);
    Some(format!(
        "The contract still lets the old compose hash boot. To take it back:\n  \
         casemate approvals calldata --remove --app-id {} --compose-hash {hash}",
        call.to
    ))
}

/// Shows what would be done.
pub(crate) fn plan(cx: &Context, cvm: &str, plan: wire::Plan) -> Result<()> {
    cx.out.result(&DryRun { plan }, |DryRun { plan }| plan_text(cvm, plan))
}

fn plan_text(cvm: &str, plan: &wire::Plan) -> String {
    let mut lines = vec![match plan.kind {
        PlanKind::Nothing => format!("{cvm} is like this already: nothing would change."),
        PlanKind::Records => format!("{cvm} would change without a restart:"),
        PlanKind::Restart => format!("{cvm} would restart once with:"),
        PlanKind::Other(ref other) => format!("{cvm}: {other}"),
    }];
    lines.extend(diff_lines(&plan.diff).into_iter().map(|line| format!("  {line}")));
    if let Some(hash) = plan.compose_hash.filter(|_| plan.needs_approval) {
        lines.push(format!("The compose hash {hash} would have to be registered on chain first."));
    }
    lines.extend(plan.warnings.iter().map(|warning| format!("warning: {warning}")));
    lines.join("\n")
}

/// What has to be registered.
fn needed_text(ask: &Ask) -> String {
    let yes = |allowed: bool| if allowed { "allowed" } else { "not allowed yet" };
    let status = ask.onchain_status.as_ref().map(|status| {
        let [hash, device] = [status.compose_hash_allowed, status.device_id_allowed].map(yes);
        format!("compose hash {hash}, device {device}")
    });
    let chain = ask.kms_info.chain_id.map_or_else(|| "its chain".to_owned(), chain_name);
    fields([
        ("compose hash", Some(format!("0x{}", ask.compose_hash))),
        ("device", Some(format!("0x{}", ask.device_id)).filter(|_| !ask.device_id.is_empty())),
        ("contract", Some(format!("{} on {chain}", checksummed(ask.app_id)))),
        ("on chain", status),
        ("approval", ask.approval_id.clone()),
        ("link to share", ask.commit_url.clone()),
        // The link holds it.
        ("token", ask.commit_token.clone().filter(|_| ask.commit_url.is_none())),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn plan(plan: serde_json::Value) -> String {
        plan_text("web-1", &serde_json::from_value(plan).unwrap())
    }

    #[test]
    fn a_plan_says_whether_the_machine_restarts_and_what_stands_in_the_way() {
        let hash = "a".repeat(64);
        assert_eq!(
            plan(json!({ "kind": "nothing", "diff": [], "compose_hash": hash, "needs_approval": false })),
            "web-1 is like this already: nothing would change."
        );
        assert_eq!(
            plan(json!({
                "kind": "restart",
                "diff": [{ "field": "vcpu", "from": 1, "to": 2 }],
                "compose_hash": hash,
                "needs_approval": true,
                "warnings": ["line 3 is hashed without a space"],
            })),
            format!(
                "web-1 would restart once with:\n  vcpu  1 → 2\nThe compose hash {hash} would have to be registered on chain \
                 first.\nwarning: line 3 is hashed without a space"
            )
        );
    }

    #[test]
    fn the_last_sentence_names_the_downtime_only_if_there_was_one() {
        let change = Change { cvm: "web-1", doing: "", done: "updated", waiting: Waiting::default() };
        let ended = |steps, diff, downtime_ms: Option<u64>| {
            let ended = json!({
                "correlation_id": "0198c1d2-0000-7000-8000-000000000000", "cvm_id": "cvm_AR0ShvD7NR", "kind": "update",
                "status": "succeeded", "step": null, "attempt": 1, "steps": steps, "diff": diff,
                "downtime_ms": downtime_ms, "created_at": "2026-03-01T12:00:00Z", "ended_at": null,
            });
            change.sentence(&serde_json::from_value(ended).unwrap())
        };
        let steps = json!([{ "name": "stop", "started_at": null, "ended_at": null }]);
        let diff = json!([{ "field": "listed", "from": false, "to": true }]);
        assert_eq!(ended(steps, diff.clone(), Some(1500)), "web-1 is updated. It was down for 1.5 s.");
        assert_eq!(ended(json!([]), diff, None), "web-1 is updated, without a restart.");
        assert!(ended(json!([]), json!([]), None).contains("nothing changed"));
    }
}
