//! `casemate ops`: the work on CVMs.

use casemate_sdk::wire::{Operation, OperationPage, OperationStatus};
use clap::{Args, Subcommand};
use futures_util::{StreamExt, TryStreamExt};
use jiff::Timestamp;

use crate::context::Context;
use crate::error::{About, AboutExt, Failure, Result};
use crate::human::{self, NOTHING};
use crate::output::{Col, fields, table};
use crate::progress::{self, diff_lines};

/// List and follow operations, the work on CVMs
#[derive(Args)]
pub struct Ops {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    #[command(visible_alias = "ls")]
    List(List),
    Show(Show),
    Watch(Watch),
    Cancel(Cancel),
}

impl Ops {
    pub(crate) async fn run(self, cx: &Context) -> Result<()> {
        match self.command {
            Command::List(list) => list.run(cx).await,
            Command::Show(show) => show.run(cx).await,
            Command::Watch(watch) => watch.run(cx).await,
            Command::Cancel(cancel) => cancel.run(cx).await,
        }
    }
}

/// List operations, newest first
#[derive(Args)]
pub(crate) struct List {
    /// Only those on this CVM
    #[arg(long, value_name = "CVM")]
    cvm: Option<String>,
    /// Only those that stand there: queued, running, succeeded, failed, cancelled
    #[arg(long, value_name = "STATUS", conflicts_with = "stuck")]
    status: Option<String>,
    /// Only those that wait for something and cannot go on by themselves
    #[arg(long)]
    stuck: bool,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 20)]
    limit: u32,
    /// All of them
    #[arg(long, conflicts_with = "limit")]
    all: bool,
}

impl List {
    async fn run(self, cx: &Context) -> Result<()> {
        let mut list = cx.client()?.operations();
        if let Some(cvm) = &self.cvm {
            list = list.cvm(cvm);
        }
        if self.stuck {
            list = list.stuck();
        }
        if let Some(status) = self.status.as_deref() {
            if !OperationStatus::WORDS.contains(&status) {
                let text = format!("--status: `{status}` is none of {}", OperationStatus::WORDS.join(", "));
                return Err(Failure::usage(text));
            }
            list = list.status(status);
        }
        let page = if self.all {
            let items: Vec<Operation> = list.limit(100).stream().try_collect().await?;
            OperationPage { items, next_cursor: None }
        } else {
            list.limit(self.limit).send().await?
        };
        cx.out.result(&page, |page| rows(&page.items, human::now()))?;
        if !cx.out.is_json() {
            if page.items.is_empty() {
                cx.out.note(if self.stuck { "Nothing is stuck." } else { "No operations." });
            } else if page.next_cursor.is_some() {
                cx.out.note("There are older ones. `--all` shows them.");
            }
        }
        Ok(())
    }
}

fn rows(operations: &[Operation], now: Timestamp) -> String {
    if operations.is_empty() {
        return String::new();
    }
    let columns = [
        Col::Left("OPERATION"),
        Col::Left("KIND"),
        Col::Left("CVM"),
        Col::Left("STATUS"),
        Col::Left("ACCEPTED"),
        Col::Right("DOWN FOR"),
        Col::Left("NOTE"),
    ];
    table(
        &columns,
        operations.iter().map(|operation| {
            let note = match (&operation.waiting_for, &operation.reason) {
                (Some(what), _) => format!("waits for {what}"),
                (None, Some(reason)) => reason.message.clone(),
                (None, None) => String::new(),
            };
            vec![
                operation.correlation_id.to_string(),
                operation.kind.clone(),
                operation.cvm_id.to_string(),
                status(operation),
                human::ago(now, operation.created_at),
                operation.downtime_ms.map_or_else(|| NOTHING.into(), human::millis),
                note,
            ]
        }),
    )
}

/// Where an operation stands, with its step while it is at work.
fn status(operation: &Operation) -> String {
    match (&operation.status, &operation.step) {
        (OperationStatus::Running, Some(step)) => format!("running: {step}"),
        (status, _) => status.to_string(),
    }
}

/// Show an operation
#[derive(Args)]
pub(crate) struct Show {
    /// The operation's id
    #[arg(value_name = "OPERATION")]
    operation: String,
}

impl Show {
    async fn run(self, cx: &Context) -> Result<()> {
        let operation = cx.client()?.operation(&self.operation).get().await.about(About::Operation)?;
        cx.out.result(&operation, |operation| shown(operation, human::now()))
    }
}

fn shown(operation: &Operation, now: Timestamp) -> String {
    let time = |at| format!("{} ({})", human::time(at), human::ago(now, at));
    let mut text = fields([
        ("operation", Some(operation.correlation_id.to_string())),
        ("kind", Some(operation.kind.clone())),
        ("cvm", Some(operation.cvm_id.to_string())),
        ("status", Some(status(operation))),
        ("waits for", operation.waiting_for.clone()),
        ("reason", operation.reason.as_ref().map(|reason| format!("{} ({})", reason.message, reason.code))),
        ("put back by", operation.put_back.map(|id| id.to_string())),
        ("attempts", (operation.attempt > 1).then(|| operation.attempt.to_string())),
        ("down for", operation.downtime_ms.map(human::millis)),
        ("accepted", Some(time(operation.created_at))),
        ("ended", operation.ended_at.map(time)),
    ]);
    for line in diff_lines(&operation.diff) {
        text.push_str(&format!("\nchange  {line}"));
    }
    for step in &operation.steps {
        let took = match (step.started_at, step.ended_at) {
            (None, _) if operation.ended_at.is_some() => "not done".to_owned(),
            (None, _) => "to be done".to_owned(),
            (Some(from), None) if operation.ended_at.is_some() => {
                format!("broken off, {}", human::ago(now, from))
            }
            (Some(_), None) => "at work".to_owned(),
            (Some(from), Some(to)) => human::millis(human::between(from, to)),
        };
        text.push_str(&format!("\nstep    {:8} {took}", step.name));
    }
    text
}

/// Follow an operation to its end, and a failed one until it was put back
///
/// With --json, each line is a state of the operation as the API gives it.
#[derive(Args)]
pub(crate) struct Watch {
    /// The operation's id
    #[arg(value_name = "OPERATION")]
    operation: String,
}

impl Watch {
    async fn run(self, cx: &Context) -> Result<()> {
        let operation = cx.client()?.operation(&self.operation);
        if cx.out.is_json() {
            let mut states = operation.watch();
            let mut last = None;
            while let Some(state) = states.next().await {
                let state = state.about(About::Operation)?;
                cx.out.json(&state)?;
                last = Some(state);
            }
            return match last {
                Some(last) if last.status != OperationStatus::Succeeded => {
                    Err(Failure::failed(format!("the operation {}", last.status)))
                }
                _ => Ok(()),
            };
        }
        let ended = progress::follow(cx, &operation, "").await.about(About::Operation)?;
        cx.out.print(&match ended.and_then(|ended| ended.downtime_ms).filter(|&downtime| downtime > 0) {
            Some(downtime) => format!("Done. It was down for {}.", human::millis(downtime)),
            None => "Done.".to_owned(),
        })
    }
}

/// Cancel an operation that has not stopped its machine yet
#[derive(Args)]
pub(crate) struct Cancel {
    /// The operation's id
    #[arg(value_name = "OPERATION")]
    operation: String,
}

impl Cancel {
    async fn run(self, cx: &Context) -> Result<()> {
        let operation = cx.client()?.operation(&self.operation);
        operation.cancel().await.about(About::Operation)?;
        if cx.out.is_json() {
            return cx.out.json(&operation.get().await.about(About::Operation)?);
        }
        cx.out.print("Cancelled. The machine was not touched.")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn failed() -> Operation {
        let step = |name: &str, from: &str, to: Option<&str>| {
            let time = |text: &str| format!("2026-03-01T11:59:{text}Z");
            json!({ "name": name, "started_at": time(from), "ended_at": to.map(time) })
        };
        serde_json::from_value(json!({
            "correlation_id": "0198c1d2-0000-7000-8000-000000000000",
            "cvm_id": "cvm_AR0ShvD7NR",
            "kind": "update",
            "status": "failed",
            "step": "observe",
            "attempt": 2,
            "steps": [step("stop", "10", Some("10.5")), step("observe", "11", None)],
            "diff": [{ "field": "memory", "from": 2048, "to": 4096 }],
            "reason": { "code": "boot_failed", "message": "kernel panic" },
            "put_back": "0198c1d3-0000-7000-8000-000000000000",
            "downtime_ms": 1500,
            "created_at": "2026-03-01T11:59:00Z",
            "ended_at": "2026-03-01T11:59:12Z",
        }))
        .unwrap()
    }

    fn noon() -> Timestamp {
        "2026-03-01T12:00:00Z".parse().unwrap()
    }

    #[test]
    fn operations_are_a_table() {
        let mut running = failed();
        running.status = OperationStatus::Running;
        running.waiting_for = Some("the node to answer".into());
        running.downtime_ms = None;
        assert_eq!(
            rows(&[failed(), running], noon()),
            "\
OPERATION                             KIND    CVM             STATUS            ACCEPTED   DOWN FOR  NOTE
0198c1d2-0000-7000-8000-000000000000  update  cvm_AR0ShvD7NR  failed            1 min ago     1.5 s  kernel panic
0198c1d2-0000-7000-8000-000000000000  update  cvm_AR0ShvD7NR  running: observe  1 min ago         -  waits for the node to answer"
        );
    }

    #[test]
    fn a_failed_operation_says_why_and_what_put_it_back() {
        assert_eq!(
            shown(&failed(), noon()),
            "\
operation    0198c1d2-0000-7000-8000-000000000000
kind         update
cvm          cvm_AR0ShvD7NR
status       failed
reason       kernel panic (boot_failed)
put back by  0198c1d3-0000-7000-8000-000000000000
attempts     2
down for     1.5 s
accepted     2026-03-01 11:59:00 UTC (1 min ago)
ended        2026-03-01 11:59:12 UTC (48 s ago)
change  memory  2 GB → 4 GB
step    stop     500 ms
step    observe  broken off, 49 s ago"
        );
    }
}
