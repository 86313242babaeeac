//! Each call, and each reason for not sending one.

use std::sync::atomic::Ordering;

use casemate_chain::Action;
use casemate_chain::dev::ACCOUNTS;
use casemate_sdk::chain::{Devices, Error, NewApp, Prerequisites, checksummed};
use casemate_sdk::ids::{Address, AppId, TxHash};
use serde_json::json;

use super::{CHAIN, DEVICE, FIRST, NEXT, OTHER_DEVICE, OWNER, STRANGER, World, at, on_chain, wallet};

const ETH: u64 = 1_000_000_000_000_000_000;

#[tokio::test]
async fn a_contract_is_made_and_allows_what_it_was_made_for() {
    let world = World::start().await;
    let (network, wallet) = (world.network(), wallet(STRANGER));
    let app = NewApp { compose_hash: Some(NEXT), devices: Devices::One(DEVICE), owner: None };
    let made = network.deploy_app_auth(&wallet, checksummed(world.contracts.kms), app).send().await.unwrap();
    assert_eq!(made.deployer, wallet.address());
    assert_eq!(made.app_auth_address, Address::from(made.app_id));
    assert!(made.gas_used > 100_000, "{made:?}");
    let receipt =
        world.call("eth_getTransactionReceipt", json!([format!("0x{}", made.transaction_hash)])).await;
    assert_eq!(receipt["blockNumber"], format!("{:#x}", made.block_number));
    assert_eq!(receipt["to"], format!("0x{}", world.contracts.kms));

    let devices = network.get_allowed_devices(made.app_id, [OTHER_DEVICE, DEVICE]).await.unwrap();
    assert_eq!(devices.owner, wallet.address());
    assert_eq!((devices.allow_any_device, devices.devices), (false, vec![DEVICE]));
    let holds = network.check_on_chain_prerequisites(made.app_id, DEVICE, NEXT).await.unwrap();
    let all = Prerequisites { allow_any_device: false, device_allowed: true, compose_hash_allowed: true };
    assert_eq!(holds, all);
    assert!(holds.all());

    let safe = Address([0x5a; 20]);
    let open = NewApp { compose_hash: None, devices: Devices::Any, owner: Some(safe) };
    let made = network.deploy_app_auth(&wallet, world.contracts.kms, open).send().await.unwrap();
    let devices = network.get_allowed_devices(made.app_id, [OTHER_DEVICE]).await.unwrap();
    assert_eq!((devices.allow_any_device, devices.devices), (true, vec![OTHER_DEVICE]));
    assert_eq!((devices.owner, made.deployer), (safe, wallet.address()));
    assert!(!network.check_compose_hash_allowed(made.app_id, NEXT).await.unwrap());
}

#[tokio::test]
async fn an_owner_changes_what_a_contract_allows() {
    let world = World::start().await;
    let (network, owner, app) = (world.network(), wallet(OWNER), world.app);
    assert!(!network.check_compose_hash_allowed(app, NEXT).await.unwrap());
    let added =
        network.add_compose_hash(&owner, format!("0x{app}"), format!("0x{NEXT}")).send().await.unwrap();
    assert_eq!((added.compose_hash, added.app_id, added.app_auth_address), (NEXT, app, app.into()));
    assert!(network.check_compose_hash_allowed(app, NEXT).await.unwrap());
    // Again is no mistake.
    let again = network.add_compose_hash(&owner, app, NEXT).send().await.unwrap();
    assert!(again.block_number > added.block_number);
    network.remove_compose_hash(&owner, app, NEXT).send().await.unwrap();
    assert!(!network.check_compose_hash_allowed(app, NEXT).await.unwrap());

    let added = network.add_device(&owner, app, OTHER_DEVICE).send().await.unwrap();
    assert_eq!((added.app_address, added.device_id), (app.into(), OTHER_DEVICE));
    assert!(network.check_device_allowed(app, OTHER_DEVICE).await.unwrap());
    network.remove_device(&owner, app, OTHER_DEVICE).send().await.unwrap();
    assert!(!network.check_device_allowed(app, OTHER_DEVICE).await.unwrap());

    assert!(network.set_allow_any_device(&owner, app, true).send().await.unwrap().allow);
    let holds = network.check_on_chain_prerequisites(app, OTHER_DEVICE, FIRST).await.unwrap();
    assert!(holds.allow_any_device && !holds.device_allowed && holds.all());
    network.set_allow_any_device(&owner, app, false).send().await.unwrap();
    assert!(!network.check_on_chain_prerequisites(app, OTHER_DEVICE, FIRST).await.unwrap().all());
}

#[tokio::test]
async fn who_does_not_own_the_contract_sends_nothing() {
    let world = World::start().await;
    let (network, stranger) = (world.network(), wallet(STRANGER));
    let error = on_chain(network.add_compose_hash(&stranger, world.app, NEXT).send().await);
    let Error::NotOwner { sender, owner, contract } = &error else { panic!("{error:?}") };
    assert_eq!((*sender, *owner), (ACCOUNTS[STRANGER].address, ACCOUNTS[OWNER].address));
    assert_eq!(*contract, world.app.into());
    for error in [
        on_chain(network.add_device(&stranger, world.app, OTHER_DEVICE).send().await),
        on_chain(network.set_allow_any_device(&stranger, world.app, true).send().await),
    ] {
        assert!(matches!(error, Error::NotOwner { .. }), "{error:?}");
    }
    // Unchecked, the contract says it.
    let call = network.add_compose_hash(&stranger, world.app, NEXT).skip_prerequisite_checks();
    let error = on_chain(call.send().await);
    let Error::Reverted { tx: None, reason } = &error else { panic!("{error:?}") };
    let expected = format!("{} does not own it", checksummed(ACCOUNTS[STRANGER].address));
    assert!(reason.contains(&expected), "{reason}");
    assert_eq!(world.sent(stranger.address()).await, 0);
}

#[tokio::test]
async fn the_wrong_network_is_named_and_nothing_is_signed_for_it() {
    let world = World::start().await;
    let ethereum = at(1, &world.chain().url());
    for error in [
        on_chain(ethereum.add_compose_hash(&wallet(OWNER), world.app, NEXT).send().await),
        on_chain(ethereum.check_compose_hash_allowed(world.app, NEXT).await),
        on_chain(ethereum.check_on_chain_prerequisites(world.app, DEVICE, NEXT).await),
    ] {
        assert!(matches!(error, Error::WrongNetwork { wanted: 1, found: CHAIN, .. }), "{error:?}");
    }
    assert_eq!(world.sent(ACCOUNTS[OWNER].address).await, 0);
    assert!(matches!(on_chain(casemate_sdk::chain::Network::new(2035)), Error::UnknownChain(2035)));
}

#[tokio::test]
async fn too_little_money_is_found_before_anything_is_sent() {
    let world = World::start().await;
    let (network, owner) = (world.network(), wallet(OWNER));
    world.balance(owner.address(), ETH / 2000).await;
    let error = on_chain(network.add_compose_hash(&owner, world.app, NEXT).send().await);
    let text = error.to_string();
    assert!(text.contains("has 0.0005 ETH") && text.contains("0.001 ETH are needed"), "{text}");
    // Enough in general, but not for this.
    world.balance(owner.address(), 1000).await;
    let call = network.add_compose_hash(&owner, world.app, NEXT).min_balance_wei(0);
    let error = on_chain(call.send().await);
    assert!(matches!(error, Error::TooLittleMoney { balance_wei: 1000, .. }), "{error:?}");
    world.balance(owner.address(), ETH).await;
    let call = network.add_compose_hash(&owner, world.app, NEXT).max_cost_wei(1000);
    let error = on_chain(call.send().await);
    assert!(matches!(error, Error::TooExpensive { limit_wei: 1000, .. }), "{error:?}");
    assert_eq!(world.sent(owner.address()).await, 0);
    network.add_compose_hash(&owner, world.app, NEXT).min_balance_wei(u128::from(ETH)).send().await.unwrap();
}

#[tokio::test]
async fn where_there_is_no_such_contract_there_is_no_answer() {
    let world = World::start().await;
    let (network, owner) = (world.network(), wallet(OWNER));
    let nobody = AppId([0x77; 20]);
    let kms = AppId(world.contracts.kms.0);
    for app in [nobody, kms] {
        for error in [
            on_chain(network.check_compose_hash_allowed(app, NEXT).await),
            on_chain(network.check_device_allowed(app, DEVICE).await),
            on_chain(network.check_on_chain_prerequisites(app, DEVICE, NEXT).await),
            on_chain(network.get_allowed_devices(app, [DEVICE]).await),
        ] {
            assert!(matches!(error, Error::NoContract { .. }), "{app}: {error:?}");
        }
    }
    let error = on_chain(network.add_compose_hash(&owner, nobody, NEXT).send().await);
    assert!(error.to_string().starts_with("there is no app contract at 0x7777"), "{error}");
    let error = on_chain(network.deploy_app_auth(&owner, nobody, NewApp::default()).send().await);
    assert!(error.to_string().starts_with("there is no contract of a key service at 0x7777"), "{error}");
    // The wallet contract has code, and no such function.
    let error =
        on_chain(network.deploy_app_auth(&owner, world.contracts.wallet, NewApp::default()).send().await);
    assert!(matches!(error, Error::Reverted { tx: None, .. }), "{error:?}");
    let error = network.add_compose_hash(&owner, "0x1", "0x2").send().await.unwrap_err();
    let fields: Vec<_> = error.fields().iter().map(|field| field.field()).collect();
    assert_eq!(fields, ["app_id", "compose_hash"]);
    assert_eq!(world.sent(owner.address()).await, 0);
}

#[tokio::test]
async fn a_node_that_is_gone_is_never_a_no() {
    let world = World::start().await;
    let closed = at(CHAIN, "http://127.0.0.1:1");
    for error in [
        on_chain(closed.check_compose_hash_allowed(world.app, FIRST).await),
        on_chain(closed.check_on_chain_prerequisites(world.app, DEVICE, FIRST).await),
        on_chain(closed.add_compose_hash(&wallet(OWNER), world.app, NEXT).send().await),
    ] {
        assert!(matches!(error, Error::Node(_)) && error.is_transient(), "{error:?}");
    }
}

#[tokio::test]
async fn what_the_node_named_with_a_key_in_its_address_is_told_without_it() {
    let secret = "0123456789abcdef";
    let network = at(CHAIN, &format!("http://127.0.0.1:1/v2/{secret}"));
    let error = on_chain(network.check_compose_hash_allowed(AppId([1; 20]), FIRST).await);
    assert!(!format!("{network:?} {error} {error:?}").contains(secret), "{error:?}");
    let error = casemate_sdk::chain::Network::at(CHAIN, &format!("wss://h/{secret}")).unwrap_err();
    assert!(!format!("{error} {error:?}").contains(secret), "{error:?}");
}

#[tokio::test]
async fn a_transaction_waits_for_the_blocks_on_top_of_it() {
    let world = World::start().await;
    let (_proxy, network, shown) = world.watched().await;
    let call = network.add_compose_hash(&wallet(OWNER), world.app, NEXT).confirmations(3);
    let waiting = tokio::spawn(call.send());
    while !network.check_compose_hash_allowed(world.app, NEXT).await.unwrap() {
        tokio::task::yield_now().await;
    }
    world.call("anvil_mine", json!(["0x1"])).await;
    let looked = shown.load(Ordering::SeqCst);
    while shown.load(Ordering::SeqCst) < looked + 2 {
        assert!(!waiting.is_finished(), "two blocks are not three");
        tokio::task::yield_now().await;
    }
    world.call("anvil_mine", json!(["0x1"])).await;
    let added = waiting.await.unwrap().unwrap();
    assert_ne!(added.transaction_hash, TxHash([0; 32]));
}

#[tokio::test]
async fn the_sdk_agrees_with_the_calldata_that_others_sign() {
    let world = World::start().await;
    let network = world.network();
    world.act(Action::AddComposeHash(NEXT)).await;
    assert!(network.check_compose_hash_allowed(world.app, NEXT).await.unwrap());
    world.act(Action::RemoveDevice(DEVICE)).await;
    assert!(!network.check_device_allowed(world.app, DEVICE).await.unwrap());
}
