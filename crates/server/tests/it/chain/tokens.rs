//! Commit tokens, for hashes that the contract allows: only the token is in question.

use std::time::Duration;

use serde_json::json;

use super::site::{Prepared, Site, assert_468, image};
use crate::approvals::{DAY, text};
use crate::client::Answer;

#[track_caller]
fn assert_refused(answer: &Answer, why: &str) {
    let body = answer.expect(400);
    let said = answer.text();
    let message = if body["message"].is_string() { &body["message"] } else { &body["detail"] };
    assert!(text(message).starts_with("Invalid commit token"), "{said}");
    assert!(said.contains(why), "{said}");
}

/// Prepares an update that the contract allows.
async fn approved(site: &Site, number: u32) -> Prepared {
    let prepared = site.prepare(image(number)).await;
    site.register(prepared.asked).await;
    prepared
}

#[tokio::test]
async fn a_token_is_good_for_its_own_update_once() {
    let site = Site::start().await;
    let boots = site.boots().await;
    let other = site.another("web-two").await;
    let first = approved(&site, 2).await;
    // The same hash again: only the newer token counts.
    let second = site.prepare(image(2)).await;
    assert_eq!(first.asked, second.asked);
    let later = approved(&site, 3).await;
    let asked = site.proxy.requests();

    assert_refused(&site.commit(&first.token, "").await, "superseded");
    let mut wrong = second.token.clone();
    let last = wrong.pop().expect("a digit");
    wrong.push(if last == '0' { '1' } else { '0' });
    for bad in [wrong.as_str(), "", "ct_", "0x00", &second.token[3..], &second.token[..60]] {
        let answer = site.commit(bad, "").await;
        if bad.is_empty() {
            assert!([400, 422].contains(&answer.status.as_u16()), "{}", answer.text());
        } else {
            assert_refused(&answer, "no such token");
        }
    }
    let body = json!({ "token": second.token, "transaction_hash": "" });
    let foreign = site.client.nobody().post(&format!("/cvms/{}/commit-update", other.uid), body).await;
    assert_refused(&foreign, "another CVM");
    let body = json!({ "token": second.token, "compose_hash": later.asked, "transaction_hash": "" });
    let foreign = site.client.nobody().post(&site.path("/commit-update"), body).await;
    assert_refused(&foreign, "another compose hash");
    assert_eq!(site.proxy.requests(), asked, "the chain is asked about good tokens only");
    site.assert_untouched(boots).await;

    let done = site.commit(&second.token, "").await.expect(202);
    site.assert_becomes(second.asked, boots + 1).await;
    let asked = site.proxy.requests();
    let used = site.commit(&second.token, "").await;
    assert_refused(&used, &text(&done["correlation_id"]));
    assert_eq!(site.proxy.requests(), asked);

    // What was asked for beside it changes the same field, and is not carried out over it.
    let stale = site.commit(&later.token, "").await;
    stale.expect(466);
    site.assert_becomes(second.asked, boots + 1).await;
}

#[tokio::test]
async fn a_token_ends_after_two_weeks() {
    let site = Site::start().await;
    let boots = site.boots().await;
    let kept = approved(&site, 2).await;
    // Nothing else waits for time here, and real nodes do not notice.
    let wait = async |time: Duration| {
        tokio::time::pause();
        tokio::time::advance(time).await;
        tokio::time::resume();
    };
    wait(14 * DAY - Duration::from_secs(60)).await;
    let late = approved(&site, 3).await;
    site.commit(&kept.token, "").await.expect(202);
    site.assert_becomes(kept.asked, boots + 1).await;
    wait(14 * DAY).await;
    let asked = site.proxy.requests();
    assert_refused(&site.commit(&late.token, "").await, "expired");
    assert_eq!(site.proxy.requests(), asked);
    assert_eq!(site.state(&late.path).await, "expired");
    site.assert_becomes(kept.asked, boots + 1).await;
}

#[tokio::test]
async fn sixty_four_clients_with_one_token_restart_once() {
    let site = Site::start().await;
    let mut boots = site.boots().await;
    for round in 0..5 {
        let prepared = site.prepare(image(round + 2)).await;
        assert_468(&site.commit(&prepared.token, "").await);
        let tx = format!("0x{}", site.register(prepared.asked).await);
        let proofs = [tx.as_str(), "", "already-registered"];
        let all = (0..64).map(|client| site.commit(&prepared.token, proofs[client % 3]));
        let answers = futures_util::future::join_all(all).await;
        let statuses: Vec<_> = answers.iter().map(|answer| answer.status.as_u16()).collect();
        assert_eq!(statuses.iter().filter(|status| **status == 202).count(), 1, "{statuses:?}");
        assert!(statuses.iter().all(|status| [202, 400, 409].contains(status)), "{statuses:?}");
        boots += 1;
        site.assert_becomes(prepared.asked, boots).await;
    }
}
