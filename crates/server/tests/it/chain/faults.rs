//! A chain that does not answer, or answers nonsense: 503, never a yes; what waits goes on waiting, and so does nobody else.

use std::pin::pin;
use std::time::Duration;

use casemate_chain::faults::Fault;
use futures_util::future::{Either, select};
use serde_json::{Value, json};

use super::site::{Site, assert_503, image};
use crate::approvals::text;

fn lie(change: impl Fn(&str, &Value, &mut Value) + Send + Sync + 'static) -> Fault {
    Fault::Lie(std::sync::Arc::new(change))
}

fn refusal(reply: &Value, code: i64, message: &str) -> Value {
    json!({ "jsonrpc": "2.0", "id": reply["id"], "error": { "code": code, "message": message } })
}

/// What can be wrong with a node, and whether it takes its time over it.
fn faults() -> Vec<(&'static str, bool, Fault)> {
    let other = || json!(format!("0x{}", "11".repeat(32)));
    vec![
        ("down", false, Fault::Down),
        ("hanging", true, Fault::Hang),
        ("a slow drip", true, Fault::Drip),
        ("without end", false, Fault::Huge),
        ("rate-limited", false, Fault::Status(429)),
        ("broken", false, Fault::Status(502)),
        ("no JSON", false, Fault::Garbage("<html>busy</html>")),
        (
            "rate-limited half way",
            false,
            lie(|method, _, reply| {
                if method == "eth_call" {
                    *reply = refusal(reply, -32005, "daily request count exceeded");
                }
            }),
        ),
        (
            "on another chain",
            false,
            lie(|method, _, reply| {
                if method == "eth_chainId" {
                    reply["result"] = json!("0x1");
                }
            }),
        ),
        (
            "lying about the head",
            false,
            lie(move |method, params, reply| {
                if method == "eth_getBlockByNumber" && params[0] == "latest" {
                    reply["result"]["hash"] = other();
                }
            }),
        ),
        (
            "lying about the transaction's block",
            false,
            lie(move |method, _, reply| {
                if method == "eth_getTransactionReceipt" {
                    reply["result"]["blockHash"] = other();
                }
            }),
        ),
        (
            "lying about which transaction it is",
            false,
            lie(move |method, _, reply| {
                if method == "eth_getTransactionReceipt" {
                    reply["result"]["transactionHash"] = other();
                }
            }),
        ),
    ]
}

#[tokio::test]
async fn a_chain_in_trouble_is_a_503_and_the_approval_waits_for_it() {
    let site = Site::start().await;
    let plain = site.world.deploy("web-plain", "web:1").await;
    let plain = format!("/cvms/{}", plain.uid);
    let mut boots = site.boots().await;
    for (number, (what, slow, fault)) in (2..).zip(faults()) {
        let prepared = site.prepare(image(number)).await;
        let tx = format!("0x{}", site.register(prepared.asked).await);
        let hash = prepared.asked.to_string();
        site.proxy.set(fault);
        let before = site.proxy.requests();
        // Half of them by their token, half by their hash.
        let by_token = number % 2 == 0;
        let send = async || match by_token {
            true => site.commit(&prepared.token, &tx).await,
            false => site.confirm(&hash, &tx).await,
        };
        let others = async {
            if slow {
                site.until("the chain is asked", || site.proxy.requests() > before).await;
            }
            // Reading this CVM, reading all, changing another one.
            assert_eq!(site.client.json(&site.path("")).await["status"], "running", "{what}");
            let open = site.client.json("/approvals?state=open").await;
            assert!(prepared.path.ends_with(&text(&open["items"][0]["id"])), "{what}: {open}");
            site.client.patch(&plain, json!({ "user_config": what })).await.expect(202);
            site.world.settle().await;
            // A second proof for the same approval is not started beside the first.
            if slow {
                send().await.expect(409);
            }
        };
        let answer = match select(pin!(others), pin!(send())).await {
            Either::Left(((), first)) => first.await,
            Either::Right((answer, others)) => {
                assert!(!slow, "{what}: everybody else had to wait until the chain was given up");
                others.await;
                answer
            }
        };
        assert_503(what, &answer);
        assert_eq!(site.state(&prepared.path).await, "open", "{what}");
        site.assert_untouched(boots).await;

        site.proxy.set(Fault::None);
        let healed = send().await;
        assert_eq!(healed.status, 202, "{what}: {}", healed.text());
        boots += 1;
        site.assert_becomes(prepared.asked, boots).await;
    }
}

#[tokio::test]
async fn a_chain_that_goes_away_before_the_stop_keeps_the_machine_running() {
    let site = Site::start().await;
    let boots = site.boots().await;
    for (what, fault) in [("down", Fault::Down), ("rate-limited", Fault::Status(429))] {
        let number = if what == "down" { 2 } else { 3 };
        let prepared = site.prepare(image(number)).await;
        site.register(prepared.asked).await;
        let accepted = site.commit(&prepared.token, "").await.expect(202);
        let operation = format!("/operations/{}", text(&accepted["correlation_id"]));
        site.proxy.set(fault);
        let boots = boots + u64::from(number) - 2;
        let heals = async {
            let mut shown = json!({});
            let waits = async {
                while !shown["waiting_for"].is_string() {
                    site.world.clock.sleep(Duration::from_millis(2)).await;
                    shown = site.client.json(&operation).await;
                }
            };
            let waited = site.world.clock.within(Duration::from_secs(20), waits).await;
            assert!(waited.is_some(), "{what}: it says what it waits for");
            assert_eq!(
                (&shown["waiting_for"], &shown["step"]),
                (&json!("the chain, which does not answer"), &json!("stage"))
            );
            assert_eq!(site.boots().await, boots, "{what}: the machine runs");
            site.proxy.set(Fault::None);
        };
        tokio::join!(site.world.settle(), heals);
        site.assert_becomes(prepared.asked, boots + 1).await;
    }
}

#[tokio::test]
async fn asking_for_an_approval_needs_no_chain() {
    let site = Site::start().await;
    let boots = site.boots().await;
    for (number, fault) in (2..).zip([Fault::Down, Fault::Hang, Fault::Status(429)]) {
        site.proxy.set(fault);
        let prepared = site.prepare(image(number)).await;
        assert_eq!(site.client.json(&prepared.path).await["onchain_status"], Value::Null);
        assert_eq!(site.ask(image(number)).await, prepared.asked);
    }
    site.assert_untouched(boots).await;
}
