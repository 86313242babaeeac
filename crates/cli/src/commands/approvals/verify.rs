//! What is looked at before somebody signs: a hash cannot be read, and a server could ask for another one than it says.

use casemate_sdk::types::compose::ComposeDoc;
use casemate_sdk::types::error::ApprovalNeeded;
use casemate_sdk::wire::ApprovalDetail;

use crate::commands::changes::Texts;
use crate::error::{Failure, Result};

/// The approval is still open; the text that the server shows has the hash that it asks to allow; and it is what was typed, as
/// far as something was.
pub(crate) fn before_signing(detail: &ApprovalDetail, typed: Option<&Texts>) -> Result<()> {
    let refused = |what: &str| {
        let hint = format!("`casemate approvals show {}` shows what it is about", detail.approval.id);
        Err(Failure::failed(format!("nothing was signed: {what}")).hint(hint))
    };
    if !detail.approval.state.is_open() {
        // Signing costs something, and could not be committed.
        return refused(&format!("the approval is {}", detail.approval.state));
    }
    if let Some(problem) = &detail.problem {
        return refused(problem);
    }
    let Some(document) = shown(detail) else {
        return refused(
            "the text that the server shows does not have the compose hash that it asks to allow",
        );
    };
    let Some(typed) = typed else { return Ok(()) };
    let mut wanted = document;
    if let Some(text) = &typed.compose {
        wanted.set_docker_compose_file(text);
    }
    if let Some(text) = &typed.pre_launch_script {
        wanted.set_pre_launch_script(text);
    }
    // By its hash: the text that is hashed differs from what is typed in ways that mean nothing.
    if wanted.normalise().hash != detail.approval.compose_hash {
        return refused("the compose hash that the server asks to allow is not that of what you gave");
    }
    Ok(())
}

/// What is asked for is what the approval is about.
pub(crate) fn is_of(detail: &ApprovalDetail, ask: &ApprovalNeeded) -> Result<()> {
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

    fn typed(compose: &str) -> Texts {
        Texts { compose: Some(compose.into()), env: None, pre_launch_script: None, user_config: None }
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
        before_signing(&good, None).unwrap();
        before_signing(&good, Some(&typed(COMPOSE))).unwrap();

        let other = document("services:\n  web:\n    image: evil:1\n");
        // A good text with another hash, and another text with its own.
        for detail in [detail(&text, &other), detail("", &wanted), detail("{}", &wanted)] {
            assert!(before_signing(&detail, None).is_err());
        }
        let swapped = detail(&other.normalise().text, &other);
        before_signing(&swapped, None).unwrap();
        let refused = format!("{:?}", before_signing(&swapped, Some(&typed(COMPOSE))).unwrap_err());
        assert!(refused.contains("is not that of what you gave"), "{refused}");
        let mut ended = good.clone();
        ended.approval.state = casemate_sdk::wire::ApprovalState::Superseded;
        let refused = format!("{:?}", before_signing(&ended, None).unwrap_err());
        assert!(refused.contains("the approval is superseded"), "{refused}");
        let outdated = ApprovalDetail { problem: Some("changed since".into()), ..good };
        assert!(before_signing(&outdated, None).is_err());
    }
}
