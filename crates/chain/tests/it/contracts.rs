//! What the contracts of key services and apps say.

use alloy_primitives::hex::{decode_to_array, encode_prefixed};
use alloy_sol_types::{SolCall, sol};
use casemate_chain::dev::{ACCOUNTS, MULTICALL};
use casemate_chain::{Action, Allowed, BootAnswer, BootInfo, Chain, ChainConfig, Standing, Subject};
use casemate_types::ids::{Address, AppId, ComposeHash, DeviceId, InstanceId};
use serde_json::json;

use crate::world::{
    DEVICE, FIRST, GATEWAY, NEXT, OS_IMAGE, OTHER_DEVICE, OWNER, STRANGER, World, bytes32, config, evm,
    number,
};

sol! {
    /// What the contracts have beside the functions that the client calls.
    interface App {
        struct Call3 {
            address target;
            bool allowFailure;
            bytes callData;
        }

        struct Result {
            bool success;
            bytes returnData;
        }

        function initialize(address owner, bool requireTcb, bool anyDevice, bytes32 deviceId, bytes32 composeHash);
        function setRequireTcbUpToDate(bool required);
        function requireTcbUpToDate() view returns (bool);
        function transferOwnership(address newOwner);
        function acceptOwnership();
        function pendingOwner() view returns (address);
        function supportsInterface(bytes4 interfaceId) view returns (bool);
        function version() view returns (uint256);
        function appImplementation() view returns (address);
        function kmsInfo() view returns (bytes, bytes, bytes, bytes);
        function deployAndRegisterApp(address owner, bool disableUpgrades, bool allowAnyDevice, bytes32 deviceId, bytes32 composeHash) returns (address);
        function deployAndRegisterApp(address owner, bool disableUpgrades, bool requireTcbUpToDate, bool allowAnyDevice, bytes32 deviceId, bytes32 composeHash) returns (address);
        function aggregate3(Call3[] calls) payable returns (Result[]);
    }
}

#[tokio::test]
async fn many_subjects_are_read_at_one_block() {
    let world = World::start().await;
    let anywhere = world.other_app().await;
    world.chain().act(OWNER, anywhere, Action::AddComposeHash(NEXT)).await.unwrap();
    let of = |app_id, compose_hash, device_id| Subject { app_id, compose_hash, device_id };
    let mut subjects = vec![
        of(world.app, FIRST, DEVICE),
        of(world.app, FIRST, OTHER_DEVICE),
        of(world.app, NEXT, DEVICE),
        of(anywhere, NEXT, OTHER_DEVICE),
        of(AppId([0x77; 20]), FIRST, DEVICE),
    ];
    // More than any node takes in one batch.
    let others = (0..=u8::MAX).map(|byte| of(world.app, ComposeHash([byte; 32]), DeviceId([byte; 32])));
    subjects.extend(others);
    let (proxy, _) = world.proxied().await;
    proxy.lie(|_, params, reply| {
        if reply["id"].as_u64() >= Some(10) {
            *reply =
                json!({ "id": reply["id"], "error": { "code": 1, "message": format!("over 10: {params}") } });
        }
    });
    let little = evm(ChainConfig { batch_calls: 10, ..config([proxy.url()]) });
    let state = little.state(&subjects).await.unwrap();
    assert_eq!(state, world.evm().state(&subjects).await.unwrap());
    let expected = [(true, true), (true, false), (false, true), (true, true), (false, false)];
    for (place, standing) in state.standings.iter().enumerate() {
        let subject = subjects[place];
        let (compose_hash, device) = expected
            .get(place)
            .copied()
            .unwrap_or((subject.compose_hash == FIRST, subject.device_id == DEVICE));
        let now = Allowed { compose_hash, device };
        assert_eq!(*standing, Standing { now, confirmed: now.both() }, "{place}");
    }
    assert_eq!(state.standings.len(), subjects.len());
    let head = world.call("eth_getBlockByNumber", json!(["latest", false])).await;
    assert_eq!((state.block.number, state.block.hash), (number(&head["number"]), bytes32(&head["hash"])));
    assert_eq!(world.evm().state(&[]).await.unwrap().standings, []);
}

#[tokio::test]
async fn registration_says_whose_app_it_is() {
    let world = World::start().await;
    let evm = world.evm();
    let kms = world.contracts.kms;
    let ours = evm.registration(kms, world.app).await.unwrap();
    assert_eq!((ours.registered, ours.owner, ours.allow_any_device), (true, Some(OWNER), false));
    let any = evm.registration(kms, world.other_app().await).await.unwrap();
    assert!(any.allow_any_device);

    let nowhere = evm.registration(kms, AppId([0x77; 20])).await.unwrap();
    assert_eq!((nowhere.registered, nowhere.owner, nowhere.allow_any_device), (false, None, false));
    let elsewhere = world.chain().deploy(&[], "").await.unwrap().kms;
    let elsewhere = evm.registration(elsewhere, world.app).await.unwrap();
    assert_eq!(
        (elsewhere.registered, elsewhere.owner),
        (false, Some(OWNER)),
        "registered with another key service"
    );
}

#[tokio::test]
async fn the_key_services_contract_is_asked_for_images_and_its_gateway() {
    let world = World::start().await;
    let (evm, kms, nowhere) = (world.evm(), world.contracts.kms, Address([0x77; 20]));
    assert!(evm.os_image_allowed(kms, OS_IMAGE).await.unwrap());
    assert!(!evm.os_image_allowed(kms, [6; 32]).await.unwrap());
    assert!(!evm.os_image_allowed(nowhere, OS_IMAGE).await.unwrap());
    assert_eq!(evm.gateway_app_id(kms).await.unwrap().as_deref(), Some(GATEWAY));
    assert_eq!(evm.gateway_app_id(nowhere).await.unwrap(), None);
    assert_eq!(evm.gateway_app_id(world.app.into()).await.unwrap(), None, "a contract of another kind");
    let silent = world.chain().deploy(&[], "").await.unwrap().kms;
    assert_eq!(evm.gateway_app_id(silent).await.unwrap(), None);
    assert!(!evm.allow_any_device(world.app).await.unwrap());
    assert!(evm.allow_any_device(world.other_app().await).await.unwrap());
    assert!(!evm.allow_any_device(AppId(nowhere.0)).await.unwrap());
}

#[tokio::test]
async fn a_machine_boots_if_both_contracts_agree() {
    let world = World::start().await;
    let (evm, kms) = (world.evm(), world.contracts.kms);
    let good = BootInfo {
        app_id: world.app,
        compose_hash: FIRST,
        instance_id: InstanceId([1; 20]),
        device_id: DEVICE,
        mr_aggregated: [2; 32],
        mr_system: [3; 32],
        os_image_hash: OS_IMAGE,
        tcb_status: "UpToDate".into(),
        advisory_ids: vec!["INTEL-SA-1".into(), "INTEL-SA-2".into()],
    };
    let yes = BootAnswer { allowed: true, reason: String::new() };
    assert_eq!(evm.is_app_allowed(kms, &good).await.unwrap(), yes);
    let nowhere = Address([0x77; 20]);
    for (kms, boot, reason) in [
        (kms, BootInfo { app_id: AppId([0x77; 20]), ..good.clone() }, "app not registered"),
        (kms, BootInfo { os_image_hash: [9; 32], ..good.clone() }, "OS image not allowed"),
        (kms, BootInfo { compose_hash: NEXT, ..good.clone() }, "compose hash not allowed"),
        (kms, BootInfo { device_id: OTHER_DEVICE, ..good.clone() }, "device not allowed"),
        (nowhere, good.clone(), "the key service's contract gives no answer"),
        (world.app.into(), BootInfo { app_id: AppId(kms.0), ..good.clone() }, "another app"),
    ] {
        let no = BootAnswer { allowed: false, reason: reason.into() };
        assert_eq!(evm.is_app_allowed(kms, &boot).await.unwrap(), no, "{reason}");
    }

    // An app may insist on a processor without known flaws.
    let required = App::setRequireTcbUpToDateCall { required: true }.abi_encode();
    world.chain().send(OWNER, world.app.into(), &required).await.unwrap();
    let old = BootInfo { tcb_status: "OutOfDate".into(), ..good.clone() };
    assert_eq!(evm.is_app_allowed(kms, &old).await.unwrap().reason, "TCB not up to date");
    assert_eq!(evm.is_app_allowed(kms, &good).await.unwrap(), yes);
}

#[tokio::test]
async fn ownership_moves_in_two_steps() {
    let world = World::start().await;
    let (chain, evm) = (world.chain(), world.evm());
    let transfer = App::transferOwnershipCall { newOwner: STRANGER.0.into() }.abi_encode();
    let accept = App::acceptOwnershipCall {}.abi_encode();
    let owner = async || evm.registration(world.contracts.kms, world.app).await.unwrap().owner;
    chain.send(OWNER, world.app.into(), &transfer).await.unwrap();
    // Until it is accepted nothing has changed, so a mistyped address takes nothing.
    assert_eq!(owner().await, Some(OWNER));
    chain.act(OWNER, world.app, Action::AddDevice(OTHER_DEVICE)).await.unwrap();
    assert!(chain.act(STRANGER, world.app, Action::AddComposeHash(NEXT)).await.is_err());
    let theft = App::transferOwnershipCall { newOwner: ACCOUNTS[0].address.0.into() }.abi_encode();
    assert!(chain.send(STRANGER, world.app.into(), &theft).await.is_err());
    assert!(chain.send(ACCOUNTS[0].address, world.app.into(), &accept).await.is_err());
    chain.send(STRANGER, world.app.into(), &accept).await.unwrap();
    assert_eq!(owner().await, Some(STRANGER));
    assert!(chain.act(OWNER, world.app, Action::AddComposeHash(NEXT)).await.is_err());
    assert!(chain.send(STRANGER, world.app.into(), &accept).await.is_err(), "it is accepted once");
    chain.act(STRANGER, world.app, Action::AddComposeHash(NEXT)).await.unwrap();
}

#[tokio::test]
async fn an_apps_contract_is_set_up_once() {
    let world = World::start().await;
    let initialize = App::initializeCall {
        owner: STRANGER.0.into(),
        requireTcb: false,
        anyDevice: true,
        deviceId: [0; 32].into(),
        composeHash: [0; 32].into(),
    };
    let kms = world.contracts.kms;
    let implementation = world.ask(kms, &App::appImplementationCall {}).await;
    let implementation = Address(implementation[12..].try_into().unwrap());
    for contract in [Address::from(world.app), implementation] {
        let call = json!([{ "to": format!("0x{contract}"), "data": encode_prefixed(initialize.abi_encode()) }, "latest"]);
        let error = world.chain().call("eth_call", call).await.unwrap_err().to_string();
        // `InvalidInitialization()`
        assert!(error.contains("0xf92ee8a9"), "{error}");
    }
}

/// Clients look at these before they send anything.
#[tokio::test]
async fn contracts_say_what_they_are() {
    let world = World::start().await;
    let (kms, app) = (world.contracts.kms, Address::from(world.app));
    for (contract, interface, has) in [
        (app, "01ffc9a7", true),
        (app, "1e079198", true),
        (app, "8fd37527", true),
        (app, "ffffffff", false),
        (kms, "01ffc9a7", true),
        (kms, "1e079198", true),
        (kms, "8fd37527", false),
    ] {
        let id: [u8; 4] = decode_to_array(interface).unwrap();
        let answer = world.ask(contract, &App::supportsInterfaceCall { interfaceId: id.into() }).await;
        assert_eq!(answer[31], u8::from(has), "{contract} {interface}");
    }
    for contract in [kms, app] {
        assert_eq!(world.ask(contract, &App::versionCall {}).await[31], 2);
        assert_eq!(world.ask(contract, &App::pendingOwnerCall {}).await, [0; 32]);
    }
    // Both forms of the factory's function, told apart by one more flag.
    assert_eq!(App::deployAndRegisterApp_0Call::SELECTOR, [0x86, 0x18, 0x16, 0x9d]);
    assert_eq!(App::deployAndRegisterApp_1Call::SELECTOR, [0x9c, 0xb9, 0xc3, 0x1f]);
    let strict = App::deployAndRegisterApp_1Call {
        owner: OWNER.0.into(),
        disableUpgrades: true,
        requireTcbUpToDate: true,
        allowAnyDevice: false,
        deviceId: DEVICE.0.into(),
        composeHash: FIRST.0.into(),
    };
    let made = world.ask(kms, &strict).await;
    world.chain().send(STRANGER, kms, &strict.abi_encode()).await.unwrap();
    let made = Address(made[12..].try_into().unwrap());
    assert_eq!(world.ask(made, &App::requireTcbUpToDateCall {}).await[31], 1);
    let of = Subject { app_id: AppId(made.0), compose_hash: FIRST, device_id: DEVICE };
    assert!(world.evm().state(&[of]).await.unwrap().standings[0].now.both());
    // ABI-encoded: four empty byte strings.
    assert_eq!(world.ask(kms, &App::kmsInfoCall {}).await.len(), 32 * 8);
}

/// Many calls in one, where clients expect it.
#[tokio::test]
async fn multicall_is_at_its_usual_address() {
    let world = World::start().await;
    let call =
        |data: Vec<u8>| App::Call3 { target: world.app.0.into(), allowFailure: true, callData: data.into() };
    let calls = vec![call(App::versionCall {}.abi_encode()), call(vec![1, 2, 3, 4])];
    let answer = world.ask(MULTICALL, &App::aggregate3Call { calls: calls.clone() }).await;
    let results = App::aggregate3Call::abi_decode_returns(&answer).unwrap();
    assert_eq!(
        (results[0].success, results[0].returnData.last(), results[1].success),
        (true, Some(&2), false)
    );
    let strict = calls.into_iter().map(|call| App::Call3 { allowFailure: false, ..call }).collect();
    let data = encode_prefixed(App::aggregate3Call { calls: strict }.abi_encode());
    let call = json!([{ "to": format!("0x{MULTICALL}"), "data": data }, "latest"]);
    assert!(world.chain().call("eth_call", call).await.is_err());
}
