//! A node whose answers do not fit together.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use casemate_chain::{Action, Chain, Error, Verdict};
use serde_json::{Value, json};

use crate::world::{FIRST, NEXT, OTHER_DEVICE, World, confirmed, other_transaction};

fn other_hash() -> Value {
    json!(format!("0x{}", "11".repeat(32)))
}

type Change = fn(&mut Value);

/// Changes every receipt.
fn receipts(change: Change) -> impl Fn(&str, &Value, &mut Value) + Send + Sync + 'static {
    move |method, _, reply| {
        if method == "eth_getTransactionReceipt" {
            change(&mut reply["result"]);
        }
    }
}

#[tokio::test]
async fn a_receipt_that_cannot_be_true_is_no_answer() {
    let world = World::start().await;
    let tx = world.register(NEXT).await;
    let (proxy, evm) = world.proxied().await;
    let question = world.question(NEXT, Some(tx));
    confirmed(&evm.check(&question).await.unwrap());
    let cases: [(&str, Change); 9] = [
        ("of another transaction", |receipt| receipt["transactionHash"] = other_hash()),
        ("in a block that is not the chain's", |receipt| receipt["blockHash"] = other_hash()),
        ("in another block", |receipt| receipt["blockNumber"] = json!("0x1")),
        ("without a status", |receipt| receipt["status"] = Value::Null),
        ("a status in words", |receipt| receipt["status"] = json!("success")),
        ("without logs", |receipt| receipt["logs"] = Value::Null),
        ("a log of another form", |receipt| receipt["logs"][0] = json!({ "address": "0x" })),
        ("a number", |receipt| *receipt = json!(1)),
        ("a list", |receipt| *receipt = json!([[], []])),
    ];
    for (what, change) in cases {
        proxy.lie(receipts(change));
        let error = evm.check(&question).await.expect_err(what);
        assert!(matches!(error, Error::Nonsense(_)), "{what}: {error}");
    }
    proxy.lie(receipts(|receipt| receipt["blockNumber"] = json!("0xffff")));
    assert!(
        matches!(evm.check(&question).await.unwrap(), Verdict::NotYet(_)),
        "a block that is still to come"
    );
    proxy.lie(receipts(|receipt| receipt["blockHash"] = Value::Null));
    assert!(matches!(evm.check(&question).await.unwrap(), Verdict::NotYet(_)), "a transaction that waits");
    proxy.lie(receipts(|receipt| receipt["logs"][0]["removed"] = json!(true)));
    other_transaction(evm.check(&question).await.unwrap());
    proxy.lie(receipts(|receipt| {
        let topics = receipt["logs"][0]["topics"].as_array_mut().expect("topics");
        topics.push(other_hash());
    }));
    other_transaction(evm.check(&question).await.unwrap());
}

#[tokio::test]
async fn a_receipt_of_an_unknown_type_is_as_good_as_any() {
    let world = World::start().await;
    let tx = world.register(NEXT).await;
    let (proxy, evm) = world.proxied().await;
    proxy.lie(receipts(|receipt| {
        receipt["type"] = json!("0x7e");
        receipt["depositNonce"] = json!("0x1");
        receipt["effectiveGasPrice"] = Value::Null;
    }));
    confirmed(&evm.check(&world.question(NEXT, Some(tx))).await.unwrap());
}

#[tokio::test]
async fn a_head_that_is_replaced_meanwhile_is_read_again() {
    let world = World::start().await;
    let tx = world.register(NEXT).await;
    let (proxy, evm) = world.proxied().await;
    for question in [world.question(NEXT, None), world.question(NEXT, Some(tx))] {
        let seen = AtomicUsize::new(0);
        proxy.lie(move |method, params, reply| {
            let replaced = method == "eth_getBlockByNumber" && params[0] == "latest";
            if replaced && seen.fetch_add(1, Ordering::Relaxed) < 2 {
                reply["result"]["hash"] = other_hash();
            }
        });
        confirmed(&evm.check(&question).await.unwrap());
    }
    // A node that always names a block which it does not have then itself.
    proxy.lie(|method, params, reply| {
        if method == "eth_getBlockByNumber" && params[0] == "latest" {
            reply["result"]["hash"] = other_hash();
        }
    });
    evm.check(&world.question(NEXT, None)).await.unwrap_err();
}

#[tokio::test]
async fn a_proof_that_a_reorganisation_takes_away_while_it_is_read_is_none() {
    let world = World::start().await;
    let tx = world.register(NEXT).await;
    let (receipt, head) =
        (world.receipt(tx).await, world.call("eth_getBlockByNumber", json!(["latest", false])).await);
    world.call("anvil_reorg", json!([1, []])).await;
    // The same hash, allowed by another transaction.
    world.act(Action::AddDevice(OTHER_DEVICE)).await;
    world.register(NEXT).await;
    let (proxy, evm) = world.proxied().await;
    // What was, as long as only the head and the receipt are looked at; from the first call of a contract on, what is.
    let over = AtomicBool::new(false);
    proxy.lie(move |method, _, reply| match method {
        "eth_call" => over.store(true, Ordering::Relaxed),
        "eth_getTransactionReceipt" if !over.load(Ordering::Relaxed) => reply["result"] = receipt.clone(),
        "eth_getBlockByNumber" if !over.load(Ordering::Relaxed) => reply["result"] = head.clone(),
        _ => {}
    });
    let verdict = evm.check(&world.question(NEXT, Some(tx))).await.unwrap();
    assert!(matches!(verdict, Verdict::NotYet(_)), "{verdict:?}");
}

#[tokio::test]
async fn what_a_contract_returns_is_a_yes_only_in_one_form() {
    let world = World::start().await;
    let (proxy, evm) = world.proxied().await;
    let words = |words: &[&str]| json!(format!("0x{}", words.concat()));
    let (one, two) = ("0".repeat(63) + "1", "0".repeat(63) + "2");
    let returned = [
        json!("0x"),
        json!("0x01"),
        words(&[&"f".repeat(64)]),
        words(&[&two]),
        words(&[&one, &one]),
        words(&[&one, &"f".repeat(64)]),
    ];
    for word in returned {
        let shown = word.to_string();
        proxy.lie(move |method, _, reply| {
            if method == "eth_call" {
                reply["result"] = word.clone();
            }
        });
        let verdict = evm.check(&world.question(FIRST, None)).await.unwrap();
        assert!(matches!(verdict, Verdict::NotAllowed(_)), "{shown}: {verdict:?}");
        assert!(!evm.registration(world.contracts.kms, world.app).await.unwrap().registered, "{shown}");
        assert!(!evm.os_image_allowed(world.contracts.kms, [5; 32]).await.unwrap(), "{shown}");
        evm.gateway_app_id(world.contracts.kms).await.unwrap();
    }
    // Trouble of the node is not the contract's no.
    for (code, message, of_the_contract) in [
        (3, "execution reverted", true),
        (-32000, "execution reverted", true),
        (-32000, "invalid opcode: INVALID", true),
        (-32000, "header not found", false),
        (-32005, "daily request count exceeded", false),
        (-32603, "internal error", false),
    ] {
        proxy.lie(move |method, _, reply| {
            if method == "eth_call" {
                *reply = json!({ "id": reply["id"], "error": { "code": code, "message": message } });
            }
        });
        let answer = evm.check(&world.question(FIRST, None)).await;
        match answer {
            Ok(Verdict::NotAllowed(_)) => assert!(of_the_contract, "{message}"),
            Err(Error::Unreachable(why)) => {
                assert!(!of_the_contract && why.contains(message), "{message}: {why}")
            }
            other => panic!("{message}: {other:?}"),
        }
    }
}
