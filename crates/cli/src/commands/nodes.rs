//! `casemate nodes`: the hosts that CVMs run on, and faults to rehearse with.

use casemate_sdk::{Error, Fault, wire};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::context::Context;
use crate::error::{About, AboutExt, Failure, Result};
use crate::explain::NO_ROUTE;
use crate::human::{self, NOTHING};
use crate::output::{Col, table};

/// List nodes, the hosts that CVMs run on
#[derive(Args)]
pub struct Nodes {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    #[command(visible_alias = "ls")]
    List(List),
    Fault(PlanFault),
}

impl Nodes {
    pub(crate) async fn run(self, cx: &Context) -> Result<()> {
        match self.command {
            Command::List(list) => list.run(cx).await,
            Command::Fault(fault) => fault.run(cx).await,
        }
    }
}

/// List nodes, with what of them is free
#[derive(Args)]
pub(crate) struct List {}

impl List {
    async fn run(self, cx: &Context) -> Result<()> {
        let client = cx.client()?;
        if client.is_casemate().await? {
            let nodes = client.nodes().await?;
            return cx.out.result(&json!({ "items": nodes }), |_| rows(&nodes));
        }
        // Elsewhere it is only told where there is room.
        let available = client.available_nodes().await?;
        cx.out.result(&available, |available| room(&available.nodes))
    }
}

fn rows(nodes: &[wire::Node]) -> String {
    let columns = [
        Col::Right("ID"),
        Col::Left("NAME"),
        Col::Left("DRIVER"),
        Col::Left("REGION"),
        Col::Left("STATUS"),
        Col::Right("VCPU FREE"),
        Col::Right("MEMORY FREE"),
        Col::Right("DISK FREE"),
        Col::Right("GPUS FREE"),
        Col::Left("FAULTS"),
    ];
    table(
        &columns,
        nodes.iter().map(|node| {
            let (free, all) = (node.free, node.capacity);
            vec![
                node.id.to_string(),
                node.name.clone(),
                node.driver.clone(),
                node.region.clone().unwrap_or_else(|| NOTHING.into()),
                node.status.to_string().to_ascii_lowercase(),
                format!("{}/{}", free.vcpu, all.vcpu),
                format!("{}/{}", human::megabytes(free.memory_mb), human::megabytes(all.memory_mb)),
                format!("{}/{} GB", free.disk_gb, all.disk_gb),
                if all.gpus == 0 { NOTHING.into() } else { format!("{}/{}", free.gpus, all.gpus) },
                if node.faults.is_empty() { NOTHING.into() } else { faults(&node.faults) },
            ]
        }),
    )
}

/// The number of a node that was named, by its name or number.
pub(crate) async fn number(cx: &Context, node: &str) -> Result<i64> {
    if let Ok(number) = node.parse() {
        return Ok(number);
    }
    let client = cx.client()?;
    // Only Casemate lists nodes that are full or away, too.
    let known: Vec<(i64, String)> = if client.is_casemate().await? {
        client.nodes().await?.into_iter().map(|node| (node.id, node.name)).collect()
    } else {
        let room = client.available_nodes().await?;
        room.nodes.into_iter().map(|node| (node.teepod_id, node.name)).collect()
    };
    match known.iter().find(|(_, name)| name.eq_ignore_ascii_case(node)) {
        Some((number, _)) => Ok(*number),
        None => {
            let names: Vec<_> = known.iter().map(|(_, name)| name.as_str()).collect();
            Err(Failure::failed(format!("--node: there is no node `{node}`"))
                .hint(format!("there are {}", names.join(", "))))
        }
    }
}

/// Faults as they can be typed: a server gives each as a small JSON text or as a word.
fn faults(faults: &[String]) -> String {
    let word = |text: &String| {
        let Ok(Value::Object(parts)) = serde_json::from_str(text) else { return text.clone() };
        let mut word = parts.get("fault").and_then(Value::as_str).unwrap_or(text).replace('_', "-");
        if let Some(seconds) = parts.get("seconds").and_then(Value::as_u64) {
            word.push_str(&format!("={seconds}"));
        }
        if parts.get("once").and_then(Value::as_bool) == Some(true) {
            word.push_str(" (once)");
        }
        word
    };
    faults.iter().map(word).collect::<Vec<_>>().join(", ")
}

fn room(nodes: &[wire::Teepod]) -> String {
    let columns = [
        Col::Right("ID"),
        Col::Left("NAME"),
        Col::Left("REGION"),
        Col::Right("VCPU LEFT"),
        Col::Right("MEMORY LEFT"),
        Col::Right("CVMS LEFT"),
    ];
    table(
        &columns,
        nodes.iter().map(|node| {
            vec![
                node.teepod_id.to_string(),
                node.name.clone(),
                node.region_identifier.clone().unwrap_or_else(|| NOTHING.into()),
                node.remaining_vcpu.to_string(),
                human::megabytes(node.remaining_memory),
                node.remaining_cvm_slots.to_string(),
            ]
        }),
    )
}

/// Set a fault on a simulated node, to rehearse what then happens
///
/// boot-fail: guests do not boot. refuse: the node refuses calls. disk-full: it has no room. unreachable: it does not answer. slow=SECONDS: calls take that
/// long. slow-stop=SECONDS: guests take that long to shut down. stop-hangs: they never do when asked. crash: machines end by
/// themselves. vanish: machines are gone. lie: the node claims to have done what it has not. answer-lost: it does what it is
/// told, and its answer is lost. Only a development server has such nodes.
#[derive(Args)]
#[command(after_help = "Examples:
  casemate nodes fault sim-1 boot-fail --once   the next update on sim-1 fails, and is put back
  casemate nodes fault sim-1 --clear            everything works again")]
pub(crate) struct PlanFault {
    /// The node, by name or number
    #[arg(value_name = "NODE")]
    node: String,
    /// boot-fail, refuse, disk-full, unreachable, slow=SECONDS, slow-stop=SECONDS, stop-hangs, crash, vanish, lie or answer-lost
    #[arg(value_name = "FAULT", required_unless_present = "clear")]
    fault: Option<Fault>,
    /// Only the next time
    #[arg(long)]
    once: bool,
    /// Only for this CVM
    #[arg(long, value_name = "CVM")]
    cvm: Option<String>,
    /// Only for machines with this OS image; for boot-fail
    #[arg(long, value_name = "NAME")]
    image: Option<String>,
    /// Only for machines with an environment variable of this name; for boot-fail
    #[arg(long, value_name = "KEY")]
    env: Option<String>,
    /// Remove all faults of the node
    #[arg(long, conflicts_with_all = ["fault", "once", "cvm", "image", "env"])]
    clear: bool,
}

impl PlanFault {
    async fn run(self, cx: &Context) -> Result<()> {
        let node = cx.client()?.node(&self.node);
        match self.fault {
            None => {
                node.clear_faults().await.map_err(development_only).about(About::Node)?;
                cx.out.note(&format!("{} works again.", self.node));
            }
            Some(fault) => {
                let text =
                    format!("{}: {fault}{}", self.node, if self.once { ", the next time" } else { "" });
                let mut plan = node.plan_fault(fault);
                if self.once {
                    plan = plan.once();
                }
                if let Some(cvm) = &self.cvm {
                    plan = plan.cvm(cvm);
                }
                if let Some(image) = self.image {
                    plan = plan.image(image);
                }
                if let Some(env) = self.env {
                    plan = plan.env(env);
                }
                plan.send().await.map_err(development_only).about(About::Node)?;
                cx.out.note(&format!("{text}. `casemate nodes fault {} --clear` ends it.", self.node));
            }
        }
        Ok(())
    }
}

/// A production server does not have the route.
fn development_only(error: Error) -> Failure {
    match error {
        Error::NotFound(answer) if answer.body.message() == NO_ROUTE => {
            Failure::failed("the nodes of this server cannot be given faults")
                .hint("those of `casemate dev` can")
        }
        error => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_shown_as_they_are_typed() {
        let planned = [r#"{"fault":"slow-stop","seconds":30,"once":true}"#, r#"{"fault":"lie"}"#, "refuse"];
        assert_eq!(faults(&planned.map(str::to_owned)), "slow-stop=30 (once), lie, refuse");
    }
}
