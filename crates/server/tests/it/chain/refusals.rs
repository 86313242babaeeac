//! What does not prove an approval: each refusal says why, changes nothing, and uses nothing up.

use std::time::Duration;

use casemate_chain::dev::forge_calldata;
use casemate_chain::{Action, ChainConfig};
use casemate_server::workflow::operation::{FailCode, State};
use casemate_types::ids::{ComposeHash, DeviceId, TxHash};
use serde_json::{Value, json};

use super::site::{OWNER, STRANGER, Site, assert_467, assert_468, image};
use crate::approvals::{code, hash, text};

const NOT_THIS_HASH: &str = "does not register this compose hash on the app's contract";
const UNKNOWN: &str = "not known on the chain yet; try again";

#[tokio::test]
async fn only_a_transaction_that_registers_this_hash_on_this_app_counts() {
    let site = Site::start().await;
    let boots = site.boots().await;
    // Once with a token, once by its hash: two approvals of different hashes.
    let prepared = site.prepare(image(2)).await;
    let plain = site.ask(image(3)).await;
    for state_only in ["", "already-registered"] {
        assert_468(&site.commit(&prepared.token, state_only).await);
        assert_468(&site.confirm(&plain.to_string(), state_only).await);
    }
    // Both are allowed from here on, so that only the transaction is in question.
    let good = [site.register(prepared.asked).await, site.register(plain).await];
    let chain = site.chain();
    let other_app = site.another("web-two").await.app_id;
    let forger = chain.deploy_forger().await.expect("deployed");
    for (place, asked) in [prepared.asked, plain].into_iter().enumerate() {
        let data = Action::AddComposeHash(asked).calldata();
        let cases = [
            ("unknown", TxHash([9; 32]), UNKNOWN),
            (
                "reverted",
                site.send(STRANGER, site.app().into(), &data, json!({})).await,
                "failed on the chain",
            ),
            ("of another hash", good[1 - place], NOT_THIS_HASH),
            ("a device of these digits", site.act(Action::AddDevice(DeviceId(asked.0))).await, NOT_THIS_HASH),
            (
                "of another app",
                chain.act(OWNER, other_app, Action::AddComposeHash(asked)).await.expect("sent"),
                NOT_THIS_HASH,
            ),
            (
                "a forged report",
                chain.send(STRANGER, forger, &forge_calldata(asked)).await.expect("sent"),
                NOT_THIS_HASH,
            ),
            ("to nobody", chain.send(OWNER, STRANGER, &data).await.expect("sent"), NOT_THIS_HASH),
        ];
        for (what, tx, why) in cases {
            let tx = format!("0x{tx}");
            let answer = match place {
                0 => site.commit(&prepared.token, &tx).await,
                _ => site.confirm(&plain.to_string(), &tx).await,
            };
            assert_eq!(answer.status, 467, "{what}: {}", answer.text());
            assert_467(&answer, why);
            site.assert_untouched(boots).await;
        }
    }
    assert_eq!(site.state(&prepared.path).await, "open");
    site.commit(&prepared.token, &format!("0x{}", good[0])).await.expect(202);
    site.assert_becomes(prepared.asked, boots + 1).await;
}

#[tokio::test]
async fn a_hash_that_was_allowed_and_then_removed_is_refused_until_it_is_back() {
    let site = Site::start().await;
    let boots = site.boots().await;
    let prepared = site.prepare(image(2)).await;
    let first = format!("0x{}", site.register(prepared.asked).await);
    let removal = format!("0x{}", site.act(Action::RemoveComposeHash(prepared.asked)).await);
    for tx in [first.as_str(), "", "already-registered"] {
        assert_468(&site.commit(&prepared.token, tx).await);
        assert_468(&site.confirm(&prepared.asked.to_string(), tx).await);
    }
    assert_467(&site.commit(&prepared.token, &removal).await, NOT_THIS_HASH);
    site.assert_untouched(boots).await;
    site.register(prepared.asked).await;
    site.commit(&prepared.token, &first).await.expect(202);
    site.assert_becomes(prepared.asked, boots + 1).await;
}

#[tokio::test]
async fn visibility_is_updated_once_its_hash_is_registered() {
    let site = Site::start().await;
    let boots = site.boots().await;
    let path = site.path("/visibility");
    let (change, other) = (json!({ "public_logs": false }), json!({ "public_sysinfo": false }));
    let asked = hash(&site.client.patch(&path, change.clone()).await);
    let confirm = async |tx: &str, body: &Value| {
        let client = site.client.header("x-compose-hash", asked.to_string());
        client.header("x-transaction-hash", tx).patch(&path, body.clone()).await
    };
    assert_468(&confirm("already-registered", &change).await);
    let tx = format!("0x{}", site.register(asked).await);
    assert_eq!(code(&confirm(&tx, &other).await, 466), "ERR-01-006", "this leads to another hash");
    site.assert_untouched(boots).await;
    assert_eq!(confirm(&tx, &change).await.expect(200)["public_logs"], false);
    site.assert_becomes(asked, boots + 1).await;
    let now = site.client.json(&site.path("")).await;
    assert_eq!((&now["public_logs"], &now["public_sysinfo"]), (&json!(false), &json!(true)), "{now}");
}

#[tokio::test]
async fn pending_dropped_and_replaced_transactions_prove_nothing() {
    let site = Site::start().await;
    let boots = site.boots().await;
    let prepared = site.prepare(image(2)).await;
    let contract = site.app().into();
    let data = |hash| Action::AddComposeHash(hash).calldata();
    site.call("evm_setAutomine", json!([false])).await;
    let pending = site.send(OWNER, contract, &data(prepared.asked), json!({})).await;
    let waits = site.commit(&prepared.token, &format!("0x{pending}")).await;
    assert_467(&waits, "still waits to be put into a block; try again");
    assert_468(&site.commit(&prepared.token, "").await);
    site.call("anvil_dropTransaction", json!([format!("0x{pending}")])).await;
    assert_467(&site.commit(&prepared.token, &format!("0x{pending}")).await, UNKNOWN);

    let nonce = site.call("eth_getTransactionCount", json!([format!("0x{OWNER}"), "latest"])).await;
    let priced = |gwei: u64| json!({ "nonce": nonce, "gasPrice": format!("0x{:x}", gwei * 1_000_000_000) });
    let replaced = site.send(OWNER, contract, &data(prepared.asked), priced(10)).await;
    let instead = site.send(OWNER, contract, &data(ComposeHash([0xee; 32])), priced(100)).await;
    site.call("evm_mine", json!([])).await;
    assert_467(&site.commit(&prepared.token, &format!("0x{replaced}")).await, UNKNOWN);
    assert_467(&site.commit(&prepared.token, &format!("0x{instead}")).await, NOT_THIS_HASH);
    site.assert_untouched(boots).await;

    site.call("evm_setAutomine", json!([true])).await;
    let tx = site.register(prepared.asked).await;
    site.commit(&prepared.token, &format!("0x{tx}")).await.expect(202);
    site.assert_becomes(prepared.asked, boots + 1).await;
}

#[tokio::test]
async fn a_transaction_that_is_mined_while_it_is_looked_for_is_found() {
    let patient = |how: &mut ChainConfig| {
        (how.receipt_wait, how.deadline) = (Duration::from_secs(15), Duration::from_secs(18));
    };
    let site = Site::with(patient, |_| OWNER).await;
    let boots = site.boots().await;
    let prepared = site.prepare(image(2)).await;
    site.call("evm_setAutomine", json!([false])).await;
    let data = Action::AddComposeHash(prepared.asked).calldata();
    let tx = format!("0x{}", site.send(OWNER, site.app().into(), &data, json!({})).await);
    let before = site.proxy.requests();
    let mine = async {
        site.until("it was looked for more than once", || site.proxy.requests() > before + 6).await;
        site.assert_untouched(boots).await;
        site.call("evm_mine", json!([])).await;
    };
    let (committed, ()) = tokio::join!(site.commit(&prepared.token, &tx), mine);
    committed.expect(202);
    site.assert_becomes(prepared.asked, boots + 1).await;
}

#[tokio::test]
async fn a_reorganisation_takes_the_proof_away_and_nothing_else() {
    let site = Site::start().await;
    let boots = site.boots().await;
    let prepared = site.prepare(image(2)).await;
    let tx = format!("0x{}", site.register(prepared.asked).await);
    site.reorganise(1).await;
    assert_467(&site.commit(&prepared.token, &tx).await, UNKNOWN);
    assert_468(&site.commit(&prepared.token, "").await);
    site.assert_untouched(boots).await;
    let again = format!("0x{}", site.register(prepared.asked).await);
    site.commit(&prepared.token, &again).await.expect(202);
    site.assert_becomes(prepared.asked, boots + 1).await;

    // Accepted, and the approval is gone before the machine was stopped: it goes on running what it runs.
    let next = site.prepare(image(3)).await;
    let tx = format!("0x{}", site.register(next.asked).await);
    let accepted = site.commit(&next.token, &tx).await.expect(202);
    site.reorganise(1).await;
    site.assert_becomes(prepared.asked, boots + 1).await;
    let id = text(&accepted["correlation_id"]).parse().expect("an id");
    match site.world.operation(id).state {
        State::Failed { reason, put_back, .. } => {
            assert_eq!((reason.code, put_back), (FailCode::NotAllowed, None), "{}", reason.message);
        }
        other => panic!("not failed: {other:?}"),
    }
}

#[tokio::test]
async fn hashes_are_read_in_any_spelling() {
    let site = Site::start().await;
    let boots = site.boots().await;
    let spellings: [fn(&str) -> String; 4] = [
        |digits| digits.to_lowercase(),
        |digits| digits.to_uppercase(),
        |digits| format!("0x{}", digits.to_lowercase()),
        |digits| format!("0x{}", digits.to_uppercase()),
    ];
    let mut round = 0;
    for spell in spellings {
        for by in ["headers", "body", "token"] {
            round += 1;
            let prepared = site.prepare(image(round + 1)).await;
            let tx = spell(&site.register(prepared.asked).await.to_string());
            let hash = spell(&prepared.asked.to_string());
            let answer = match by {
                "headers" => site.confirm(&hash, &tx).await,
                "body" => {
                    let body = json!({ "compose_hash": hash, "transaction_hash": tx });
                    site.client.patch(&site.path(""), body).await
                }
                _ => {
                    let body =
                        json!({ "token": prepared.token, "compose_hash": hash, "transaction_hash": tx });
                    site.client.nobody().post(&site.path("/commit-update"), body).await
                }
            };
            assert_eq!(answer.status, 202, "{hash} {tx} by {by}: {}", answer.text());
            site.assert_becomes(prepared.asked, boots + u64::from(round)).await;
        }
    }
}

#[tokio::test]
async fn malformed_hashes_ask_nobody_and_use_nothing_up() {
    let site = Site::start().await;
    let boots = site.boots().await;
    let prepared = site.prepare(image(2)).await;
    let hash = prepared.asked.to_string();
    let good = format!("0x{}", site.register(prepared.asked).await);
    let asked = site.proxy.requests();
    let digits = &good[2..];
    for bad in [
        "nonsense",
        "0x",
        "0x12",
        "-1",
        &digits[1..],
        &format!("{digits}0"),
        &format!("0x0x{digits}"),
        &format!("0x{}g", &digits[1..]),
        &format!("{good},{good}"),
        "already registered",
    ] {
        for answer in [site.commit(&prepared.token, bad).await, site.confirm(&hash, bad).await] {
            answer.expect(422);
            assert!(answer.text().contains("transaction"), "{bad} names its field: {}", answer.text());
        }
    }
    for bad in ["nonsense", "0x12", &hash[1..], &format!("{hash}0")] {
        let answer = site.confirm(bad, &good).await;
        answer.expect(422);
        assert!(answer.text().contains("compose"), "{bad} names its field: {}", answer.text());
        let body = json!({ "token": prepared.token, "compose_hash": bad, "transaction_hash": good });
        site.client.nobody().post(&site.path("/commit-update"), body).await.expect(422);
    }
    assert_eq!(site.proxy.requests(), asked, "nobody was asked");
    site.assert_untouched(boots).await;
    site.commit(&prepared.token, &good).await.expect(202);
    site.assert_becomes(prepared.asked, boots + 1).await;
}
