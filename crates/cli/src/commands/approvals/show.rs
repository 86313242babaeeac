//! `casemate approvals show`.

use casemate_sdk::wire::{ApprovalDetail, Diff};
use clap::Args;
use serde_json::Value;

use super::named::Which;
use super::verify::shown;
use crate::commands::cvms::line_diff;
use crate::commands::signing::chain_name;
use crate::context::Context;
use crate::error::{About, AboutExt, Result};
use crate::human;
use crate::output::fields;
use crate::progress::diff_lines;

/// Show an approval: what would change, what has to be allowed, and what the contract says now
#[derive(Args)]
#[command(after_help = "Examples:
  casemate approvals show 0198c1d2-…
  casemate approvals show 0198c1d2-… --app-compose > app-compose.json && sha256sum app-compose.json
  casemate approvals show - < link.txt     a link is enough, without an account")]
pub(crate) struct Show {
    #[command(flatten)]
    which: Which,
    /// Print the exact text whose SHA-256 is the compose hash, and nothing else
    #[arg(long, conflicts_with = "json")]
    app_compose: bool,
}

impl Show {
    pub(crate) async fn run(self, cx: &Context) -> Result<()> {
        let detail = self.which.find(cx)?.approval.get().await.about(About::Approval)?;
        if self.app_compose {
            // Byte for byte: a line break at its end would be hashed, too.
            return cx.out.bytes(detail.app_compose.as_deref().unwrap_or_default().as_bytes());
        }
        cx.out.result(&detail, text)?;
        for warning in &detail.warnings {
            cx.out.warning(warning);
        }
        if detail.app_compose.is_some() && shown(&detail).is_none() {
            cx.out.warning(
                "the text that the server shows does not have this compose hash: do not sign for it",
            );
        }
        if !cx.out.is_json() && detail.approval.state.is_open() {
            cx.out.note(&format!("\n{}", next(&detail)));
        }
        Ok(())
    }
}

fn text(detail: &ApprovalDetail) -> String {
    let one = &detail.approval;
    let allowed = |is: bool| if is { "allowed" } else { "not allowed yet" };
    let status = detail.onchain_status.as_ref().map_or_else(
        || "not known: the chain does not answer the server".to_owned(),
        |status| {
            let [hash, device] = [status.compose_hash_allowed, status.device_id_allowed].map(allowed);
            format!("compose hash {hash}, device {device}")
        },
    );
    let custody = detail.kms.custody.as_deref() == Some("operator");
    let mut text = fields([
        ("approval", Some(one.id.clone())),
        ("cvm", Some(format!("{} ({})", one.cvm_name, one.cvm_id))),
        ("for", Some(one.purpose.clone())),
        ("asked by", Some(format!("{}, {}", one.author, human::time(one.created_at)))),
        ("state", Some(one.state.to_string())),
        ("until", Some(human::time(one.expires_at))),
        ("superseded by", one.superseded_by.clone()),
        ("operation", one.correlation_id.map(|id| id.to_string())),
        ("auto-commit", one.auto_commit.then(|| "the server commits it once it is allowed".to_owned())),
        ("attention", one.needs_attention.clone()),
        ("problem", detail.problem.clone()),
        ("compose hash", Some(format!("0x{}", one.compose_hash))),
        ("device", Some(format!("0x{}", detail.device_id))),
        ("contract", Some(format!("{} on {}", detail.contract, chain_name(detail.chain_id)))),
        ("on chain", Some(status)),
        (
            "custody",
            custody.then(|| "operator: whoever runs the server could change what it enforces".to_owned()),
        ),
    ]);
    text.push_str("\n\nWould change:\n");
    text.push_str(&changes(&detail.diff));
    text
}

/// Texts line by line, everything else as one line.
pub(super) fn changes(diff: &[Diff]) -> String {
    let is_text = |change: &&Diff| {
        let lines = |value: &Value| value.as_str().is_some_and(|text| text.contains('\n'));
        lines(&change.from) || lines(&change.to)
    };
    let (texts, short): (Vec<_>, Vec<_>) = diff.iter().partition(is_text);
    let short: Vec<_> = short.into_iter().cloned().collect();
    let mut lines: Vec<_> = diff_lines(&short).into_iter().map(|line| format!("  {line}")).collect();
    for change in texts {
        lines.push(format!("  {}", change.field));
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        lines.extend(
            line_diff(&text(&change.from), &text(&change.to)).iter().map(|line| format!("    {line}")),
        );
    }
    if lines.is_empty() {
        lines.push("  nothing".to_owned());
    }
    lines.join("\n")
}

/// How it goes on.
fn next(detail: &ApprovalDetail) -> String {
    let id = &detail.approval.id;
    if detail.onchain_status.is_some_and(|status| status.is_allowed) {
        return format!("It is allowed. Run it: casemate approvals commit {id}");
    }
    let by_itself = detail.approval.auto_commit && detail.approval.needs_attention.is_none();
    ways(id, by_itself.then(|| "nothing: the server does it once it is allowed".to_owned()))
}

/// How an approval is given. `waits` is said in place of the last two, if nobody has to do anything then.
pub(crate) fn ways(id: &str, waits: Option<String>) -> String {
    let by_hand = waits.is_none();
    fields([
        ("sign it here", by_hand.then(|| format!("casemate approvals commit {id} --private-key-file FILE"))),
        ("in a Safe", Some(format!("casemate approvals safe-batch {id} -o batch.json"))),
        ("elsewhere", Some(format!("casemate approvals calldata {id}"))),
        ("run it then", Some(waits.unwrap_or_else(|| format!("casemate approvals commit {id}")))),
        ("or have it run", by_hand.then(|| format!("casemate approvals auto-commit {id}"))),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn texts_are_compared_line_by_line_and_the_rest_is_a_line() {
        let diff: Vec<Diff> = serde_json::from_value(json!([
            { "field": "docker_compose_file", "from": "services:\n  web:\n    image: web:1\n", "to": "services:\n  web:\n    image: web:2\n" },
            { "field": "memory", "from": 2048, "to": 4096 },
        ]))
        .unwrap();
        assert_eq!(
            changes(&diff),
            "  memory  2 GB → 4 GB\n  docker_compose_file\n      services:\n        web:\n    -     image: web:1\n    +     image: web:2"
        );
        assert_eq!(changes(&[]), "  nothing");
    }
}
