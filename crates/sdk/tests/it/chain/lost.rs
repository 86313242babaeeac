//! Transactions that do not get into a block, or not the way they were meant to.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use casemate_chain::dev::ACCOUNTS;
use casemate_chain::faults::Lie;
use casemate_sdk::chain::Error;
use serde_json::json;

use super::{NEXT, OTHER_DEVICE, OWNER, World, on_chain, wallet};

#[tokio::test]
async fn a_transaction_in_no_block_is_told_apart_from_a_failed_one() {
    let world = World::start().await;
    let network = world.network();
    world.call("evm_setAutomine", json!([false])).await;
    let call = network.add_compose_hash(&wallet(OWNER), world.app, NEXT).timeout(Duration::from_millis(300));
    let error = on_chain(call.send().await);
    let Error::TimedOut { tx, why, .. } = &error else { panic!("{error:?}") };
    assert_eq!(why, "it is in no block");
    assert_eq!(world.waiting().await, format!("0x{tx}"));
    assert!(!error.is_transient(), "sent again, it would be sent twice");
    world.call("evm_mine", json!([])).await;
    assert!(
        network.check_compose_hash_allowed(world.app, NEXT).await.unwrap(),
        "it counts later all the same"
    );
}

#[tokio::test]
async fn a_dropped_transaction_ends_the_waiting() {
    let world = World::start().await;
    let (_proxy, network, shown) = world.watched().await;
    world.call("evm_setAutomine", json!([false])).await;
    let waiting = tokio::spawn(network.add_compose_hash(&wallet(OWNER), world.app, NEXT).send());
    let tx = world.waiting().await;
    // It has to have been seen before it can be missed.
    while shown.load(Ordering::SeqCst) < 2 {
        tokio::task::yield_now().await;
    }
    world.call("anvil_dropTransaction", json!([tx])).await;
    let error = on_chain(waiting.await.unwrap());
    assert!(matches!(error, Error::Dropped { .. }), "{error:?}");
    assert_eq!(error.transaction().map(|tx| format!("0x{tx}")), Some(tx));
}

#[tokio::test]
async fn a_replaced_transaction_ends_the_waiting() {
    let world = World::start().await;
    let (network, owner) = (world.network(), ACCOUNTS[OWNER].address);
    world.call("evm_setAutomine", json!([false])).await;
    let waiting = tokio::spawn(network.add_compose_hash(&wallet(OWNER), world.app, NEXT).send());
    let tx = world.waiting().await;
    let nonce = world.call("eth_getTransactionCount", json!([format!("0x{owner}"), "latest"])).await;
    let other = json!({
        "from": format!("0x{owner}"), "to": format!("0x{owner}"), "value": "0x1", "nonce": nonce,
        "maxFeePerGas": "0x174876e800", "maxPriorityFeePerGas": "0x174876e800",
    });
    world.call("eth_sendTransaction", json!([other])).await;
    world.call("evm_mine", json!([])).await;
    let error = on_chain(waiting.await.unwrap());
    assert!(matches!(error, Error::Replaced { nonce: 0, .. }), "{error:?}");
    assert_eq!(error.transaction().map(|tx| format!("0x{tx}")), Some(tx));
    assert!(!network.check_compose_hash_allowed(world.app, NEXT).await.unwrap());
}

#[tokio::test]
async fn a_transaction_that_fails_in_its_block_says_why() {
    let world = World::start().await;
    let (network, owner) = (world.network(), wallet(OWNER));
    world.call("evm_setAutomine", json!([false])).await;
    let waiting = tokio::spawn(network.add_compose_hash(&owner, world.app, NEXT).send());
    world.waiting().await;
    // Meanwhile the contract gets another owner: its first slot is who owns it.
    let slot = owner_slot(&world).await;
    let other = format!("0x{:0>64}", ACCOUNTS[0].address.to_string());
    world.call("anvil_setStorageAt", json!([format!("0x{}", world.app), slot, other])).await;
    world.call("evm_mine", json!([])).await;
    let error = on_chain(waiting.await.unwrap());
    let Error::Reverted { tx: Some(_), reason } = &error else { panic!("{error:?}") };
    assert!(reason.contains("does not own it"), "{reason}");
}

/// Where the contract keeps its owner.
async fn owner_slot(world: &World) -> String {
    for slot in 0..16 {
        let slot = format!("0x{slot:064x}");
        let word = world.call("eth_getStorageAt", json!([format!("0x{}", world.app), slot, "latest"])).await;
        if word.as_str().unwrap().ends_with(&ACCOUNTS[OWNER].address.to_string()) {
            return slot;
        }
    }
    panic!("the owner is in none of the first slots");
}

#[tokio::test]
async fn a_reorganisation_does_not_confirm_what_it_undid() {
    let world = World::start().await;
    let (network, owner) = (world.network(), wallet(OWNER));
    let call = network.add_device(&owner, world.app, OTHER_DEVICE).confirmations(3);
    let waiting = tokio::spawn(call.timeout(Duration::from_secs(20)).send());
    while !network.check_device_allowed(world.app, OTHER_DEVICE).await.unwrap() {
        tokio::task::yield_now().await;
    }
    world.call("anvil_reorg", json!([1, []])).await;
    world.call("anvil_mine", json!(["0x5"])).await;
    let error = on_chain(waiting.await.unwrap());
    assert!(matches!(error, Error::Dropped { .. } | Error::TimedOut { .. }), "{error:?}");
    assert!(!network.check_device_allowed(world.app, OTHER_DEVICE).await.unwrap());
}

#[tokio::test]
async fn two_at_once_of_one_account_both_get_through() {
    let world = World::start().await;
    let (network, owner) = (world.network(), wallet(OWNER));
    let hash = network.add_compose_hash(&owner, world.app, NEXT).send();
    let device = network.add_device(&owner, world.app, OTHER_DEVICE).send();
    let (hash, device) = tokio::join!(hash, device);
    hash.unwrap();
    device.unwrap();
    assert!(network.check_compose_hash_allowed(world.app, NEXT).await.unwrap());
    assert!(network.check_device_allowed(world.app, OTHER_DEVICE).await.unwrap());
}

#[tokio::test]
async fn a_lost_answer_does_not_lose_or_repeat_the_transaction() {
    let world = World::start().await;
    let sent = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&sent);
    let lie: Lie = Arc::new(move |method, _, reply| {
        if method == "eth_sendRawTransaction" && count.fetch_add(1, Ordering::SeqCst) == 0 {
            reply["id"] = json!(99);
        }
    });
    let (_proxy, network) = world.lying(lie).await;
    let before = world.sent(ACCOUNTS[OWNER].address).await;
    network.add_compose_hash(&wallet(OWNER), world.app, NEXT).send().await.unwrap();
    assert_eq!(sent.load(Ordering::SeqCst), 2, "it is sent again");
    assert_eq!(world.sent(ACCOUNTS[OWNER].address).await, before + 1, "and is one transaction");
}

#[tokio::test]
async fn a_node_that_names_absurd_fees_gets_nothing() {
    let world = World::start().await;
    for method in ["eth_maxPriorityFeePerGas", "eth_estimateGas"] {
        let lie: Lie = Arc::new(move |asked, _, reply| {
            if asked == method {
                reply["result"] = json!("0xffffffffffffff");
            }
        });
        let (_proxy, network) = world.lying(lie).await;
        let error = on_chain(network.add_compose_hash(&wallet(OWNER), world.app, NEXT).send().await);
        assert!(matches!(error, Error::TooExpensive { .. }), "{method}: {error:?}");
    }
    assert_eq!(world.sent(ACCOUNTS[OWNER].address).await, 0);
}

#[tokio::test]
async fn nonsense_is_an_error_and_never_an_answer() {
    let world = World::start().await;
    for answer in [json!(null), json!(7), json!("0x"), json!("0x2"), json!({ "a": [] }), json!("0xzz")] {
        let told = answer.clone();
        let lie: Lie = Arc::new(move |asked, _, reply| {
            if asked != "eth_chainId" {
                reply["result"] = told.clone();
            }
        });
        let (_proxy, network) = world.lying(lie).await;
        let error = on_chain(network.check_compose_hash_allowed(world.app, NEXT).await);
        assert!(matches!(error, Error::Node(_) | Error::NoContract { .. }), "{answer}: {error:?}");
        let error = on_chain(network.add_compose_hash(&wallet(OWNER), world.app, NEXT).send().await);
        assert!(matches!(error, Error::Node(_) | Error::NoContract { .. }), "{answer}: {error:?}");
    }
    assert_eq!(world.sent(ACCOUNTS[OWNER].address).await, 0);
}
