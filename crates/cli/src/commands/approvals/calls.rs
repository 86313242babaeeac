//! `casemate approvals calldata` and `safe-batch`: what owners sign elsewhere.

use std::path::PathBuf;

use casemate_sdk::chain::{Action, checksummed, safe_batch};
use casemate_sdk::ids::{AppId, ComposeHash, DeviceId};
use casemate_sdk::wire::{ApprovalDetail, ContractCall};
use clap::Args;
use serde_json::Value;

use super::named;
use crate::context::Context;
use crate::error::{About, AboutExt, Failure, Result};
use crate::human;
use crate::output::fields;

/// An approval that the server knows, or what it is about.
#[derive(Args)]
struct Subject {
    /// Its id or link, or - for a line of standard input with one of them
    #[arg(value_name = "APPROVAL", required_unless_present = "app_id", conflicts_with = "app_id")]
    approval: Option<String>,
    /// Ask no server: the app, whose contract has this address
    #[arg(long, value_name = "ADDRESS", help_heading = "Without a server", requires = "compose_hash")]
    app_id: Option<AppId>,
    /// The compose hash to allow
    #[arg(long, value_name = "HASH", help_heading = "Without a server", requires = "app_id")]
    compose_hash: Option<ComposeHash>,
    /// A device to allow as well
    #[arg(long, value_name = "ID", help_heading = "Without a server", requires = "app_id")]
    device_id: Option<DeviceId>,
    /// Allow them no longer, instead
    #[arg(long, help_heading = "Without a server", requires = "app_id")]
    remove: bool,
}

impl Subject {
    /// The calls, if no server is to be asked.
    fn offline(&self) -> Option<(AppId, Vec<Action>)> {
        let (app, hash) = (self.app_id?, self.compose_hash?);
        let mut actions =
            vec![if self.remove { Action::RemoveComposeHash(hash) } else { Action::AddComposeHash(hash) }];
        actions.extend(self.device_id.map(|device| {
            if self.remove { Action::RemoveDevice(device) } else { Action::AddDevice(device) }
        }));
        Some((app, actions))
    }

    async fn detail(&self, cx: &Context) -> Result<ApprovalDetail> {
        let named = named::find(cx, self.approval.as_deref().unwrap_or_default())?;
        named.approval.get().await.about(About::Approval)
    }
}

/// Print the calls that an owner of the app's contract has to send
///
/// Those that the contract allows already are left out.
#[derive(Args)]
#[command(after_help = "Examples:
  casemate approvals calldata 0198c1d2-…
  casemate approvals calldata --app-id 0x… --compose-hash 0x…   without asking a server")]
pub(crate) struct Calldata {
    #[command(flatten)]
    about: Subject,
}

impl Calldata {
    pub(crate) async fn run(self, cx: &Context) -> Result<()> {
        let calls = match self.about.offline() {
            Some((app, actions)) => actions.into_iter().map(|action| call(app, action)).collect(),
            None => {
                let mut calls = self.about.detail(cx).await?.calls;
                calls.retain(|call| call.needed != Some(false));
                calls
            }
        };
        if calls.is_empty() {
            cx.out.note("Everything is allowed already: there is nothing to send.");
        }
        cx.out.result(&calls, |calls| text(calls))
    }
}

/// Print a batch for the Transaction Builder of a Safe wallet that allows what is missing
#[derive(Args)]
#[command(after_help = "Examples:
  casemate approvals safe-batch 0198c1d2-… > batch.json
  casemate approvals safe-batch --app-id 0x… --compose-hash 0x… --chain-id 8453 -o batch.json")]
pub(crate) struct SafeBatch {
    #[command(flatten)]
    about: Subject,
    /// The chain: 1 Ethereum, 8453 Base
    #[arg(long, value_name = "ID", help_heading = "Without a server", requires = "app_id")]
    chain_id: Option<u64>,
    /// Write it to this file
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

impl SafeBatch {
    pub(crate) async fn run(self, cx: &Context) -> Result<()> {
        let batch = match (self.about.offline(), self.chain_id) {
            (Some((app, actions)), Some(chain_id)) => {
                let calls: Vec<_> = actions.into_iter().map(|action| (app, action)).collect();
                let now = u64::try_from(human::now().as_millisecond()).unwrap_or_default();
                safe_batch(chain_id, now, &format!("Casemate: {}", checksummed(app)), &calls)
            }
            (Some(_), None) => {
                return Err(Failure::usage("--chain-id: which chain is the contract on?")
                    .hint("1 is Ethereum, 8453 Base"));
            }
            (None, _) => self.about.detail(cx).await?.safe_batch,
        };
        if is_empty(&batch) {
            return Err(Failure::failed("everything is allowed already: there is nothing to sign")
                .hint("`casemate approvals commit` runs it"));
        }
        let Some(path) = self.output else { return cx.out.json(&batch) };
        let text = serde_json::to_string_pretty(&batch).expect("text has string keys");
        std::fs::write(&path, text + "\n")
            .map_err(|error| Failure::failed(format!("cannot write {}: {error}", path.display())))?;
        cx.out.note(&format!("Import {} in the Transaction Builder of the Safe.", path.display()));
        Ok(())
    }
}

fn is_empty(batch: &Value) -> bool {
    batch["transactions"].as_array().is_none_or(Vec::is_empty)
}

fn call(app: AppId, action: Action) -> ContractCall {
    let (function, _, argument) = action.spelled();
    let data: String = action.calldata().iter().map(|byte| format!("{byte:02x}")).collect();
    ContractCall {
        function: function.to_owned(),
        argument,
        to: checksummed(app),
        data: format!("0x{data}"),
        needed: None,
    }
}

fn text(calls: &[ContractCall]) -> String {
    let one = |call: &ContractCall| {
        fields([
            ("call", Some(format!("{}({})", call.function, call.argument))),
            ("to", Some(call.to.clone())),
            ("value", Some("0".to_owned())),
            ("data", Some(call.data.clone())),
        ])
    };
    calls.iter().map(one).collect::<Vec<_>>().join("\n\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        about: Subject,
    }

    #[test]
    fn calls_can_be_made_without_a_server() {
        let (app, hash, device) = (format!("0x{}", "5a".repeat(20)), "ab".repeat(32), "cd".repeat(32));
        let line = ["x", "--app-id", &app, "--compose-hash", &hash, "--device-id", &device];
        let (app, actions) = Line::try_parse_from(line).ok().unwrap().about.offline().unwrap();
        let calls: Vec<_> = actions.into_iter().map(|action| call(app, action)).collect();
        assert_eq!(
            text(&calls),
            format!(
                "call   addComposeHash(0x{hash})\nto     {to}\nvalue  0\ndata   0xdfc77223{hash}\n\n\
                 call   addDevice(0x{device})\nto     {to}\nvalue  0\ndata   0x2a819728{device}",
                to = checksummed(app)
            )
        );
        let line = ["x", "--app-id", &app.to_string(), "--compose-hash", &hash, "--remove"];
        let (_, actions) = Line::try_parse_from(line).ok().unwrap().about.offline().unwrap();
        assert_eq!(actions, [Action::RemoveComposeHash(ComposeHash([0xab; 32]))]);
        for wrong in
            [&["x"][..], &["x", "--app-id", &app.to_string()], &["x", "id", "--app-id", &app.to_string()]]
        {
            assert!(Line::try_parse_from(wrong).is_err(), "{wrong:?}");
        }
    }
}
