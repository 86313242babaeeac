//! `casemate audit`: who changed what.

use std::time::Duration;

use casemate_sdk::ids::CvmUid;
use casemate_sdk::wire::{AuditEvent, AuditPage};
use casemate_sdk::{ByCursor, Error};
use clap::Args;
use futures_util::TryStreamExt;
use serde_json::Value;

use crate::context::Context;
use crate::error::{AboutExt, Result};
use crate::human::{self, NOTHING};
use crate::output::{Col, table};

/// Show who changed what, and when; oldest first
#[derive(Args)]
pub struct Audit {
    /// Only what concerns this CVM
    #[arg(long, value_name = "CVM")]
    cvm: Option<String>,
    /// Only what came after the event of this number
    #[arg(long, value_name = "NUMBER")]
    after: Option<u64>,
    /// At most so many
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Go on as things happen, one line each
    #[arg(long, short, conflicts_with = "limit")]
    follow: bool,
}

/// How many events are asked for at once.
const PAGE: u32 = 500;

/// How often a follower looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);

impl Audit {
    pub(crate) async fn run(self, cx: &Context) -> Result<()> {
        let only = match &self.cvm {
            Some(name) => Some(uid(cx, name).await?),
            None => None,
        };
        // A server that is older sends everything.
        let wanted = |event: &AuditEvent| only.is_none() || event.cvm_id == only;
        let mut trail = cx.client()?.audit();
        if let Some(cvm) = &only {
            trail = trail.cvm(cvm);
        }
        if self.follow {
            return follow(cx, trail, self.after.unwrap_or(0), wanted).await;
        }
        let limit = self.limit.unwrap_or(usize::MAX);
        let page = u32::try_from(limit).unwrap_or(PAGE).clamp(1, PAGE);
        let mut events = trail.after(self.after.unwrap_or(0)).limit(page).stream();
        let mut items: Vec<AuditEvent> = Vec::new();
        while items.len() < limit
            && let Some(event) = events.try_next().await?
        {
            if wanted(&event) {
                items.push(event);
            }
        }
        let next_cursor = items.last().filter(|_| items.len() == limit).map(|last| last.seq.to_string());
        let page = AuditPage { items, next_cursor };
        cx.out.result(&page, |page| rows(&page.items))?;
        if page.items.is_empty() && !cx.out.is_json() {
            cx.out.note("Nothing happened.");
        }
        Ok(())
    }
}

async fn follow(
    cx: &Context,
    trail: ByCursor<AuditPage>,
    after: u64,
    wanted: impl Fn(&AuditEvent) -> bool,
) -> Result<()> {
    let mut after = after;
    loop {
        let page = trail.clone().after(after).limit(PAGE).send().await?;
        for event in page.items {
            after = event.seq;
            if wanted(&event) {
                cx.out.result(&event, |event| cells(event).join("  "))?;
            }
        }
        if page.next_cursor.is_none() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

/// The id of a CVM. One that is gone still has events, under its id.
async fn uid(cx: &Context, name: &str) -> Result<CvmUid> {
    match (cx.client()?.cvm(name).get().await, name.parse::<CvmUid>()) {
        (Ok(cvm), _) => Ok(cvm.id),
        (Err(Error::NotFound(_)), Ok(id)) => Ok(id),
        (Err(error), _) => Err(error).about_cvm(name),
    }
}

fn rows(events: &[AuditEvent]) -> String {
    if events.is_empty() {
        return String::new();
    }
    let columns = [
        Col::Right("NUMBER"),
        Col::Left("TIME"),
        Col::Left("BY"),
        Col::Left("WHAT"),
        Col::Left("CVM"),
        Col::Left("REVISION"),
    ];
    table(&columns, events.iter().map(cells))
}

fn cells(event: &AuditEvent) -> Vec<String> {
    let revision = match (event.revision_before, event.revision_after) {
        (Some(before), Some(after)) if before != after => format!("{before} → {after}"),
        (None, Some(after)) => after.to_string(),
        (Some(before), _) => before.to_string(),
        (None, None) => NOTHING.into(),
    };
    vec![
        event.seq.to_string(),
        human::time(event.at),
        event.actor.clone().unwrap_or_else(|| "the server".into()),
        what(event),
        event.cvm_id.as_ref().map_or_else(|| NOTHING.into(), ToString::to_string),
        revision,
    ]
}

/// What happened, with the step that it happened in and what the server notes.
fn what(event: &AuditEvent) -> String {
    let detail = |name| event.details.get(name).and_then(Value::as_str);
    let step = detail("step").map(|step| format!(" ({step})")).unwrap_or_default();
    let note = detail("note").map(|note| format!(": {note}")).unwrap_or_default();
    let changed = match event.changes.as_slice() {
        [] => String::new(),
        changes => {
            let fields: Vec<_> = changes.iter().map(|change| change.field.as_str()).collect();
            format!(" ({})", fields.join(", "))
        }
    };
    format!("{}{step}{changed}{note}", event.kind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_event_names_its_step_and_what_is_noted() {
        let told = |details: Value| {
            let event = json!({ "seq": 1, "at": "2026-03-01T12:00:00Z", "kind": "step.finished", "details": details });
            what(&serde_json::from_value(event).unwrap())
        };
        assert_eq!(told(json!({ "step": "stop", "note": null })), "step.finished (stop)");
        assert_eq!(told(json!({ "step": null, "note": "key_a" })), "step.finished: key_a");
        assert_eq!(told(Value::Null), "step.finished");
    }
}
