//! What a transaction proves, and what it does not.

use std::time::Duration;

use casemate_chain::dev::{Batch, forge_calldata};
use casemate_chain::{Action, Allowed, Chain, ChainConfig, Subject, Verdict};
use casemate_types::ids::{AppId, TxHash};
use serde_json::json;

use crate::world::{
    CHAIN, DEVICE, FIRST, NEXT, OTHER, OTHER_DEVICE, OWNER, STRANGER, World, bytes32, confirmed, evm,
    not_yet, number, other_transaction,
};

const NOT_THIS_HASH: &str = "the transaction does not register this compose hash on the app's contract";

#[tokio::test]
async fn a_registration_is_confirmed_with_where_it_is() {
    let world = World::start().await;
    let tx = world.register(NEXT).await;
    world.mine(3).await;
    let evidence = confirmed(&world.check(NEXT, Some(tx)).await);
    let receipt = world.receipt(tx).await;
    assert_eq!(evidence.block, number(&receipt["blockNumber"]));
    assert_eq!(evidence.block_hash, bytes32(&receipt["blockHash"]));
    assert_eq!(evidence.log_index, Some(0));

    let now = confirmed(&world.check(NEXT, None).await);
    assert_eq!((now.block, now.log_index), (evidence.block + 3, None));
}

#[tokio::test]
async fn a_batch_through_a_wallet_of_several_people_counts() {
    let world = World::start().await;
    let wallet = world.contracts.wallet;
    let (app, _) =
        world.chain().deploy_app(world.contracts.kms, wallet, Some(OTHER_DEVICE), None).await.unwrap();
    let calls = [Action::AddComposeHash(OTHER), Action::AddDevice(DEVICE), Action::AddComposeHash(NEXT)];
    let calls = calls.map(|action| (app.into(), action.calldata())).to_vec();
    let batch = Batch { salt: 1, calls };
    let tx = world.chain().through_wallet(wallet, &batch, STRANGER).await.unwrap();
    for (hash, log_index) in [(OTHER, 0), (NEXT, 2)] {
        let question = casemate_chain::Question { app_id: app, ..world.question(hash, Some(tx)) };
        let evidence = confirmed(&world.evm().check(&question).await.unwrap());
        assert_eq!(evidence.log_index, Some(log_index));
    }
    assert!(world.chain().through_wallet(wallet, &batch, STRANGER).await.is_err(), "a batch is made once");
}

#[tokio::test]
async fn the_factory_registers_the_first_hash() {
    let world = World::start().await;
    let evidence = confirmed(&world.check(FIRST, Some(world.made)).await);
    assert!(evidence.log_index.is_some());
}

#[tokio::test]
async fn an_unknown_transaction_may_still_come() {
    let world = World::start().await;
    let why = not_yet(world.check(FIRST, Some(TxHash([9; 32]))).await);
    assert_eq!(why, "the transaction is not known on the chain yet");
}

#[tokio::test]
async fn a_pending_transaction_is_waited_for() {
    let world = World::start().await;
    world.call("evm_setAutomine", json!([false])).await;
    let data = Action::AddComposeHash(NEXT).calldata();
    let tx = world.chain().send_only(OWNER, world.app.into(), &data).await.unwrap();
    let why = not_yet(world.check(NEXT, Some(tx)).await);
    assert_eq!(why, "the transaction still waits to be put into a block");

    let patient = ChainConfig { receipt_wait: Duration::from_secs(60), ..world.config() };
    let patient = ChainConfig { deadline: Duration::from_secs(60), ..patient };
    let (patient, question) = (evm(patient), world.question(NEXT, Some(tx)));
    let mine = async {
        // Mined only after the client has looked at least once.
        tokio::task::yield_now().await;
        not_yet(world.check(NEXT, Some(tx)).await);
        world.call("evm_mine", json!([])).await;
    };
    let (verdict, ()) = tokio::join!(patient.check(&question), mine);
    confirmed(&verdict.unwrap());
}

#[tokio::test]
async fn a_dropped_and_a_replaced_transaction_prove_nothing() {
    let world = World::start().await;
    world.call("evm_setAutomine", json!([false])).await;
    let data = Action::AddComposeHash(NEXT).calldata();
    let dropped = world.chain().send_only(OWNER, world.app.into(), &data).await.unwrap();
    world.call("anvil_dropTransaction", json!([format!("0x{dropped}")])).await;
    not_yet(world.check(NEXT, Some(dropped)).await);

    let send = async |price: u64, action: Action| -> TxHash {
        let nonce = world.call("eth_getTransactionCount", json!([format!("0x{OWNER}"), "latest"])).await;
        let transaction = json!({
            "from": format!("0x{OWNER}"), "to": format!("0x{}", world.app), "nonce": nonce, "gas": "0x30d40",
            "data": format!("0x{}", hex(&action.calldata())), "gasPrice": format!("0x{:x}", price * 1_000_000_000),
        });
        let hash = world.call("eth_sendTransaction", json!([transaction])).await;
        TxHash(bytes32(&hash))
    };
    let replaced = send(10, Action::AddComposeHash(NEXT)).await;
    let instead = send(100, Action::AddComposeHash(OTHER)).await;
    world.call("evm_mine", json!([])).await;
    not_yet(world.check(NEXT, Some(replaced)).await);
    assert_eq!(other_transaction(world.check(NEXT, Some(instead)).await), NOT_THIS_HASH);
    confirmed(&world.check(OTHER, Some(instead)).await);
}

#[tokio::test]
async fn a_reorganisation_takes_the_proof_away() {
    let world = World::start().await;
    let tx = world.register(NEXT).await;
    confirmed(&world.check(NEXT, Some(tx)).await);
    world.call("anvil_reorg", json!([1, []])).await;
    assert_eq!(not_yet(world.check(NEXT, Some(tx)).await), "the transaction is not known on the chain yet");
    let nothing = Allowed { compose_hash: false, device: true };
    assert_eq!(world.check(NEXT, None).await, Verdict::NotAllowed(nothing));

    let again = world.register(NEXT).await;
    confirmed(&world.check(NEXT, Some(again)).await);
}

#[tokio::test]
async fn a_failed_transaction_is_refused() {
    let world = World::start().await;
    world.register(NEXT).await;
    let transaction = json!({
        "from": format!("0x{STRANGER}"), "to": format!("0x{}", world.app), "gas": "0x30d40",
        "data": format!("0x{}", hex(&Action::AddComposeHash(NEXT).calldata())),
    });
    let tx = TxHash(bytes32(&world.call("eth_sendTransaction", json!([transaction])).await));
    let patient = ChainConfig { receipt_wait: Duration::from_secs(15), ..world.config() };
    let verdict = evm(patient).check(&world.question(NEXT, Some(tx))).await.unwrap();
    assert_eq!(other_transaction(verdict), "the transaction failed on the chain");
}

#[tokio::test]
async fn only_the_apps_own_report_of_this_hash_counts() {
    let world = World::start().await;
    // Allowed all along, so that only the transaction is in question.
    world.register(NEXT).await;
    let chain = world.chain();
    let other_app = world.other_app().await;
    let forger = chain.deploy_forger().await.unwrap();
    let data = Action::AddComposeHash(NEXT).calldata();
    for (what, tx) in [
        ("another hash", world.register(OTHER).await),
        (
            "a device of these digits",
            world.act(Action::AddDevice(casemate_types::ids::DeviceId(NEXT.0))).await,
        ),
        ("its removal and return", world.act(Action::RemoveComposeHash(OTHER)).await),
        ("another app", chain.act(OWNER, other_app, Action::AddComposeHash(NEXT)).await.unwrap()),
        ("a forged report", chain.send(STRANGER, forger, &forge_calldata(NEXT)).await.unwrap()),
        ("an address without code", chain.send(OWNER, STRANGER, &data).await.unwrap()),
    ] {
        let verdict = world.check(NEXT, Some(tx)).await;
        assert_eq!(verdict, Verdict::OtherTransaction(NOT_THIS_HASH.into()), "{what}");
    }
}

#[tokio::test]
async fn what_was_allowed_and_then_removed_is_not_allowed() {
    let world = World::start().await;
    let tx = world.register(NEXT).await;
    world.act(Action::RemoveComposeHash(NEXT)).await;
    let gone = Verdict::NotAllowed(Allowed { compose_hash: false, device: true });
    assert_eq!(world.check(NEXT, Some(tx)).await, gone);
    assert_eq!(world.check(NEXT, None).await, gone);

    world.register(NEXT).await;
    confirmed(&world.check(NEXT, Some(tx)).await);
    world.act(Action::RemoveDevice(DEVICE)).await;
    let elsewhere = Verdict::NotAllowed(Allowed { compose_hash: true, device: false });
    assert_eq!(world.check(NEXT, Some(tx)).await, elsewhere);
}

#[tokio::test]
async fn an_address_without_a_contract_allows_nothing() {
    let world = World::start().await;
    let nowhere = AppId([0x77; 20]);
    let question = casemate_chain::Question { app_id: nowhere, ..world.question(NEXT, None) };
    let verdict = world.evm().check(&question).await.unwrap();
    assert_eq!(verdict, Verdict::NotAllowed(Allowed::default()));
    // A contract, but of another kind: it has no such functions.
    let question = casemate_chain::Question { app_id: AppId(world.contracts.kms.0), ..question };
    let verdict = world.evm().check(&question).await.unwrap();
    assert_eq!(verdict, Verdict::NotAllowed(Allowed::default()));
}

#[tokio::test]
async fn confirmations_are_counted_from_the_transactions_own_block() {
    let world = World::start().await;
    let three = || evm(ChainConfig { confirmations: 3, ..world.config() });
    let subject = Subject { app_id: world.app, compose_hash: NEXT, device_id: DEVICE };
    let tx = world.register(NEXT).await;
    for depth in 1..=3 {
        let by_tx = three().check(&world.question(NEXT, Some(tx))).await.unwrap();
        let by_state = three().check(&world.question(NEXT, None)).await.unwrap();
        let [standing] = three().state(&[subject]).await.unwrap().standings.try_into().unwrap();
        assert!(standing.now.both());
        assert_eq!(standing.confirmed, depth == 3, "{depth}");
        if depth < 3 {
            assert_eq!(not_yet(by_tx), format!("the transaction has {depth} of 3 confirmations"));
            assert_eq!(not_yet(by_state), "the contract allows it only since fewer than 3 blocks");
            world.mine(1).await;
        } else {
            confirmed(&by_tx);
            confirmed(&by_state);
        }
    }
}

#[tokio::test]
async fn a_hash_that_is_not_deep_enough_is_waited_for() {
    let world = World::start().await;
    world.register(NEXT).await;
    let minute = Duration::from_secs(60);
    let patient = ChainConfig { confirmations: 3, receipt_wait: minute, deadline: minute, ..world.config() };
    let (patient, question) = (evm(patient), world.question(NEXT, None));
    let mine = async {
        // Mined only after the client has looked at least once.
        let three = evm(ChainConfig { confirmations: 3, ..world.config() });
        not_yet(three.check(&question).await.unwrap());
        world.mine(2).await;
    };
    let (verdict, ()) = tokio::join!(patient.check(&question), mine);
    confirmed(&verdict.unwrap());
}

#[tokio::test]
async fn a_question_about_another_chain_is_a_mistake() {
    let world = World::start().await;
    let question = casemate_chain::Question { chain_id: 1, ..world.question(FIRST, None) };
    let error = world.evm().check(&question).await.unwrap_err();
    assert!(
        error.to_string().ends_with(&format!("asked about chain 1, but it speaks for chain {CHAIN}")),
        "{error}"
    );
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
