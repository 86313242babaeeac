//! Auto-commit with a real contract: only what is allowed deep enough, and never what a reorganisation took away.

use casemate_chain::faults::Fault;
use casemate_chain::{Action, ChainConfig};
use casemate_server::workflow::auto_commit::once;
use serde_json::json;

use super::site::{OWNER, Prepared, Site, image};
use crate::approvals::{detail, hash, text};

/// Asks for an update that is to be committed by itself.
async fn ask(site: &Site, number: u32) -> Prepared {
    site.prepare_with(&site.client.header("x-auto-commit", "true"), image(number)).await
}

#[tokio::test]
async fn a_registration_that_is_reorganised_away_commits_nothing() {
    let site = Site::with(|how: &mut ChainConfig| how.confirmations = 3, |_| OWNER).await;
    let boots = site.boots().await;
    let prepared = ask(&site, 2).await;
    once(&site.world.app).await;
    site.register(prepared.asked).await;
    for _ in 0..2 {
        once(&site.world.app).await;
        assert_eq!(site.state(&prepared.path).await, "open");
        let status = &site.client.json(&prepared.path).await["onchain_status"];
        assert_eq!(status["compose_hash_allowed"], true, "allowed, but not deep enough: {status}");
        site.mine(1).await;
    }
    // The third confirmation is there; before anybody looks, all three blocks are replaced.
    site.reorganise(3).await;
    site.mine(10).await;
    once(&site.world.app).await;
    let approval = site.client.json(&prepared.path).await;
    assert_eq!((&approval["state"], &approval["auto_commit"]), (&json!("open"), &json!(true)));
    assert_eq!(approval["onchain_status"]["compose_hash_allowed"], false);
    site.assert_untouched(boots).await;

    site.register(prepared.asked).await;
    site.mine(2).await;
    once(&site.world.app).await;
    assert_eq!(site.state(&prepared.path).await, "committed");
    once(&site.world.app).await;
    site.assert_becomes(prepared.asked, boots + 1).await;
}

#[tokio::test]
async fn what_is_removed_before_it_is_deep_enough_is_not_committed() {
    let site = Site::with(|how: &mut ChainConfig| how.confirmations = 3, |_| OWNER).await;
    let boots = site.boots().await;
    let prepared = ask(&site, 2).await;
    site.register(prepared.asked).await;
    site.mine(1).await;
    site.act(Action::RemoveComposeHash(prepared.asked)).await;
    once(&site.world.app).await;
    assert_eq!(site.state(&prepared.path).await, "open");
    site.mine(2).await;
    // Back, but only since one block.
    site.register(prepared.asked).await;
    once(&site.world.app).await;
    assert_eq!(site.state(&prepared.path).await, "open");
    site.assert_untouched(boots).await;
    site.mine(2).await;
    once(&site.world.app).await;
    assert_eq!(site.state(&prepared.path).await, "committed");
    site.assert_becomes(prepared.asked, boots + 1).await;
}

#[tokio::test]
async fn a_chain_in_trouble_is_asked_again_the_next_time() {
    let site = Site::start().await;
    let boots = site.boots().await;
    let prepared = ask(&site, 2).await;
    site.register(prepared.asked).await;
    let lie = |reply: &mut serde_json::Value| reply["result"] = json!("0x1");
    for fault in [
        Fault::Down,
        Fault::Hang,
        Fault::Status(429),
        Fault::Garbage("no"),
        Fault::Lie(std::sync::Arc::new(move |method, _, reply| {
            if method == "eth_chainId" {
                lie(reply);
            }
        })),
    ] {
        site.proxy.set(fault);
        once(&site.world.app).await;
        let approval = site.client.json(&prepared.path).await;
        assert_eq!((&approval["state"], &approval["auto_commit"]), (&json!("open"), &json!(true)));
        assert_eq!(approval["needs_attention"], json!(null));
        site.assert_untouched(boots).await;
    }
    site.proxy.set(Fault::None);
    once(&site.world.app).await;
    assert_eq!(site.state(&prepared.path).await, "committed");
    site.assert_becomes(prepared.asked, boots + 1).await;
}

#[tokio::test]
async fn a_token_a_hash_and_auto_commit_make_one_operation() {
    let site = Site::start().await;
    let mut boots = site.boots().await;
    for number in 2..7 {
        let prepared = ask(&site, number).await;
        let tx = format!("0x{}", site.register(prepared.asked).await);
        let asked = prepared.asked.to_string();
        let (by_hash, by_token, ()) =
            tokio::join!(site.confirm(&asked, &tx), site.commit(&prepared.token, &tx), once(&site.world.app));
        for answer in [&by_hash, &by_token] {
            assert!([202, 400, 409, 466].contains(&answer.status.as_u16()), "{}", answer.text());
        }
        // One of the three may have been called busy by another; whoever comes next finds one operation.
        once(&site.world.app).await;
        assert_eq!(site.state(&prepared.path).await, "committed");
        boots += 1;
        site.assert_becomes(prepared.asked, boots).await;
    }
}

#[tokio::test]
async fn a_plain_update_commits_itself_as_well() {
    let site = Site::start().await;
    let boots = site.boots().await;
    let answer = site.client.header("x-auto-commit", "true").patch(&site.path(""), image(2)).await;
    let path = format!("/approvals/{}", text(&detail(&answer, "approval_id")));
    site.register(hash(&answer)).await;
    once(&site.world.app).await;
    assert_eq!(site.state(&path).await, "committed");
    site.assert_becomes(hash(&answer), boots + 1).await;
}
