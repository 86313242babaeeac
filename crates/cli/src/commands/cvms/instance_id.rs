//! `casemate cvms refresh-instance-id`.

use casemate_sdk::wire::{InstanceIdResult, InstanceIdStatus};
use clap::Args;

use crate::commands::outcome::{Change, Waiting};
use crate::context::Context;
use crate::error::{AboutExt, Failure, Result};
use crate::human::NOTHING;
use crate::output::{Col, table};

/// Give CVMs new instance ids; each restarts once
///
/// The old id is void as soon as the restart has succeeded. The data stays.
#[derive(Args)]
pub(crate) struct RefreshInstanceId {
    /// The CVMs: names, or any of their ids
    #[arg(value_name = "CVM", required = true)]
    cvms: Vec<String>,
    #[command(flatten)]
    waiting: Waiting,
}

impl RefreshInstanceId {
    pub(crate) async fn run(self, cx: &Context) -> Result<()> {
        cx.out.confirm(&format!("Restart {} and make the old instance ids void?", self.cvms.join(", ")))?;
        match self.cvms.as_slice() {
            [one] => self.one(cx, one).await,
            _ => self.many(cx).await,
        }
    }

    async fn one(&self, cx: &Context, name: &str) -> Result<()> {
        let client = cx.client()?;
        let result = client.cvm(name).refresh_instance_id().send().await.about_cvm(name)?;
        let operation = result.correlation_id.map(|id| client.operation(id));
        match operation.filter(|_| self.waiting.wanted()) {
            None => cx.out.result(&result, |result| rows(std::slice::from_ref(result))),
            Some(operation) => {
                let new = result.instance_id.or(result.new_instance_id);
                let done =
                    format!("instance {} now", new.map_or_else(|| NOTHING.into(), |id| id.to_string()));
                let change = Change { cvm: name, doing: "Renewing", done: &done, waiting: self.waiting };
                change.accepted(cx, &operation).await
            }
        }
    }

    async fn many(&self, cx: &Context) -> Result<()> {
        let result = cx.client()?.refresh_instance_ids(&self.cvms).send().await?;
        cx.out.result(&result, |result| rows(&result.items))?;
        match result.conflicts + result.errors {
            0 => Ok(()),
            failed => {
                Err(Failure::failed(format!("{failed} of {} got no new instance id", result.items.len())))
            }
        }
    }
}

fn rows(results: &[InstanceIdResult]) -> String {
    let columns =
        [Col::Left("CVM"), Col::Left("RESULT"), Col::Left("NEW INSTANCE ID"), Col::Left("OPERATION")];
    table(
        &columns,
        results.iter().map(|result| {
            let told = match (&result.status, &result.reason) {
                (InstanceIdStatus::Updated, _) | (_, None) => result.status.to_string(),
                (status, Some(reason)) => format!("{status}: {reason}"),
            };
            vec![
                result.identifier.clone(),
                told,
                result
                    .instance_id
                    .or(result.new_instance_id)
                    .map_or_else(|| NOTHING.into(), |id| id.to_string()),
                result.correlation_id.map_or_else(|| NOTHING.into(), |id| id.to_string()),
            ]
        }),
    )
}
