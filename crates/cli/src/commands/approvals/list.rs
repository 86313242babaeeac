//! `casemate approvals list`.

use casemate_sdk::wire::{Approval, ApprovalPage, ApprovalState};
use clap::Args;
use futures_util::TryStreamExt;
use jiff::Timestamp;

use crate::context::Context;
use crate::error::{Failure, Result};
use crate::human;
use crate::output::{Col, table};

/// The states of those that wait.
const WAITING: &str = "open,needs_attention";
/// Stands for every state.
const ANY: &str = "any";

/// List approvals, newest first: those that wait, unless other states are named
#[derive(Args)]
pub(crate) struct List {
    /// Only those of this CVM
    #[arg(long, value_name = "CVM")]
    cvm: Option<String>,
    /// Only those in these states: open, needs_attention, committed, superseded, expired, cancelled; or any
    #[arg(long, value_name = "STATE", value_delimiter = ',', default_value = WAITING)]
    state: Vec<String>,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 20)]
    limit: u32,
    /// All of them
    #[arg(long, conflicts_with = "limit")]
    all: bool,
}

impl List {
    pub(crate) async fn run(self, cx: &Context) -> Result<()> {
        let mut list = cx.client()?.approvals();
        if let Some(cvm) = &self.cvm {
            list = list.cvm(cvm);
        }
        if let Some(other) =
            self.state.iter().find(|state| *state != ANY && !ApprovalState::WORDS.contains(&state.as_str()))
        {
            let known = ApprovalState::WORDS.join(", ");
            return Err(Failure::usage(format!("--state: `{other}` is none of {known}, {ANY}")));
        }
        if !self.state.iter().any(|state| state == ANY) {
            list = self.state.iter().fold(list, |list, state| list.state(state.as_str()));
        }
        let page = if self.all {
            let items: Vec<Approval> = list.limit(100).stream().try_collect().await?;
            ApprovalPage { items, next_cursor: None }
        } else {
            list.limit(self.limit).send().await?
        };
        cx.out.result(&page, |page| rows(&page.items, human::now()))?;
        if page.items.is_empty() {
            cx.out.note(if self.state.join(",") == WAITING {
                "Nothing waits for a yes."
            } else {
                "No approvals."
            });
        } else if page.next_cursor.is_some() {
            cx.out.note("There are older ones. `--all` shows them.");
        }
        Ok(())
    }
}

fn rows(approvals: &[Approval], now: Timestamp) -> String {
    if approvals.is_empty() {
        return String::new();
    }
    let columns = [
        Col::Left("APPROVAL"),
        Col::Left("CVM"),
        Col::Left("FOR"),
        Col::Left("COMPOSE HASH"),
        Col::Left("STATE"),
        Col::Left("BY"),
        Col::Left("SINCE"),
        Col::Left("UNTIL"),
        Col::Left("NOTE"),
    ];
    table(
        &columns,
        approvals.iter().map(|one| {
            let note = match (&one.needs_attention, &one.correlation_id, &one.superseded_by) {
                (_, _, Some(newer)) => format!("by {newer}"),
                (Some(why), _, _) => why.clone(),
                (None, Some(operation), _) => format!("operation {operation}"),
                (None, None, None) if one.auto_commit => {
                    "committed by the server once it is allowed".to_owned()
                }
                (None, None, None) => String::new(),
            };
            vec![
                one.id.clone(),
                one.cvm_name.clone(),
                one.purpose.clone(),
                human::short(&one.compose_hash.to_string()),
                one.state.to_string(),
                one.author.clone(),
                human::ago(now, one.created_at),
                human::time(one.expires_at),
                note,
            ]
        }),
    )
}
