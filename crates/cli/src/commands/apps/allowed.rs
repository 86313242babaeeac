//! `casemate apps allowed`, `is-allowed` and `devices`: what an app's contract lets boot, and where.

use casemate_sdk::chain::checksummed;
use casemate_sdk::wire::{self, AllowedHashes, CvmsAllowed, DeviceAllowlist};
use clap::Args;

use super::Which;
use crate::commands::signing::chain_name;
use crate::context::Context;
use crate::error::{Failure, Result};
use crate::human::NOTHING;
use crate::output::{Col, fields, table};

/// List the compose hashes that can still boot
///
/// Those that the app's contract allows: of revisions that the server knows, and others found in the contract's log. Nothing is
/// taken back by itself.
#[derive(Args)]
pub(crate) struct Allowed {
    #[command(flatten)]
    which: Which,
}

impl Allowed {
    pub(super) async fn run(self, cx: &Context) -> Result<()> {
        let found = self.which.app(cx).await?.allowed().await?;
        cx.out.result(&found, hashes)?;
        if cx.out.is_json() {
            return Ok(());
        }
        if found.items.is_empty() {
            cx.out.note("The contract allows none that is known.");
        }
        if !found.complete {
            cx.out.note("The contract's log is still being read: there may be more. Ask again.");
        }
        if let Some(old) = found.items.iter().find(|hash| !hash.in_use) {
            cx.out.note(&format!(
                "\nTo take one back that is no longer used:\n  casemate approvals calldata --remove --app-id {} --compose-hash {}",
                checksummed(found.app_id),
                old.compose_hash
            ));
        }
        Ok(())
    }
}

fn hashes(found: &AllowedHashes) -> String {
    if found.items.is_empty() {
        return String::new();
    }
    let columns = [Col::Left("COMPOSE HASH"), Col::Left("IN USE"), Col::Left("REVISIONS")];
    table(
        &columns,
        found.items.iter().map(|hash| {
            let revisions: Vec<_> = hash
                .revisions
                .iter()
                .map(|revision| format!("{} of {}", revision.revision, revision.cvm_id))
                .collect();
            vec![
                hash.compose_hash.to_string(),
                yes(hash.in_use).to_owned(),
                if revisions.is_empty() { NOTHING.to_owned() } else { revisions.join(", ") },
            ]
        }),
    )
}

fn yes(is: bool) -> &'static str {
    if is { "yes" } else { "no" }
}

/// Ask the app's contract whether its CVMs may boot, or a compose hash
///
/// Exit code 1 if it says no.
#[derive(Args)]
#[command(after_help = "Examples:
  casemate apps is-allowed web-1                  every CVM of the app, as it is
  casemate apps is-allowed web-1 0xaa… --node 2   a compose hash, on the device of a node")]
pub(crate) struct IsAllowed {
    #[command(flatten)]
    which: Which,
    /// The compose hash; without one, what each CVM of the app has
    #[arg(value_name = "COMPOSE HASH")]
    compose_hash: Option<String>,
    /// On the device of this node, by its number
    #[arg(long, value_name = "N", requires = "compose_hash")]
    node: Option<i64>,
    /// On this device
    #[arg(long, value_name = "ID", requires = "compose_hash", conflicts_with = "node")]
    device_id: Option<String>,
}

impl IsAllowed {
    pub(super) async fn run(self, cx: &Context) -> Result<()> {
        let app = self.which.app(cx).await?;
        let Some(hash) = &self.compose_hash else {
            let all = app.cvms_allowed().await?;
            cx.out.result(&all, cvms)?;
            return match all.denied_count + all.error_count {
                0 => Ok(()),
                no => Err(Failure::failed(format!("{no} of {} could not boot", all.total))),
            };
        };
        let mut question = app.is_allowed(hash);
        if let Some(node) = self.node {
            question = question.node(node);
        }
        if let Some(device) = &self.device_id {
            question = question.device(device);
        }
        let answer = question.send().await?;
        cx.out.result(&answer, is_allowed_text)?;
        if answer.is_allowed { Ok(()) } else { Err(Failure::failed("the contract does not allow this")) }
    }
}

fn cvms(all: &CvmsAllowed) -> String {
    if !all.is_onchain {
        return "No contract governs this app's keys.".to_owned();
    }
    let columns = [Col::Left("CVM"), Col::Left("MAY BOOT"), Col::Left("COMPOSE HASH"), Col::Left("DEVICE")];
    table(
        &columns,
        all.results.iter().map(|one| {
            vec![
                one.cvm_id.as_ref().map_or_else(|| NOTHING.to_owned(), ToString::to_string),
                yes(one.is_allowed).to_owned(),
                allowed(one.compose_hash_allowed).to_owned(),
                device(one),
            ]
        }),
    )
}

fn allowed(is: bool) -> &'static str {
    if is { "allowed" } else { "not allowed" }
}

fn device(one: &wire::IsAllowed) -> String {
    one.device_id_allowed.map_or("any is allowed", allowed).to_owned()
}

/// What a contract said to a hash and a device.
pub(crate) fn is_allowed_text(one: &wire::IsAllowed) -> String {
    fields([
        ("may boot", Some(yes(one.is_allowed).to_owned())),
        ("compose hash", Some(format!("0x{} {}", one.compose_hash, allowed(one.compose_hash_allowed)))),
        ("device", Some(format!("0x{} {}", one.device_id, device(one)))),
        ("contract", Some(one.app_contract_address.clone())),
    ])
}

/// List the devices of all nodes, and whether the app's contract allows them
#[derive(Args)]
pub(crate) struct Devices {
    #[command(flatten)]
    which: Which,
}

impl Devices {
    pub(super) async fn run(self, cx: &Context) -> Result<()> {
        cx.out.result(&self.which.app(cx).await?.device_allowlist().await?, devices)
    }
}

fn devices(list: &DeviceAllowlist) -> String {
    if !list.is_onchain_kms {
        return "No contract governs this app's keys.".to_owned();
    }
    let contract = list.app_contract_address.clone().unwrap_or_default();
    let chain = list.chain_id.map_or_else(|| "its chain".to_owned(), chain_name);
    let any = if list.allow_any_device == Some(true) { " allows any device" } else { "" };
    let columns = [Col::Left("DEVICE"), Col::Left("NODE"), Col::Left("ALLOWED"), Col::Left("CVMS")];
    let rows = table(
        &columns,
        list.devices.iter().map(|one| {
            let cvms: Vec<_> = one.cvm_ids.iter().map(ToString::to_string).collect();
            vec![
                one.device_id.clone(),
                one.node_name.clone().unwrap_or_else(|| NOTHING.to_owned()),
                yes(one.allowed_onchain).to_owned(),
                if cvms.is_empty() { NOTHING.to_owned() } else { cvms.join(", ") },
            ]
        }),
    );
    format!("contract {contract} on {chain}{any}\n\n{rows}")
}
