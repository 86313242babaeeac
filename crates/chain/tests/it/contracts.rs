//! What the contracts of key services and apps say.

use casemate_chain::dev::ACCOUNTS;
use casemate_chain::{Action, Allowed, BootAnswer, BootInfo, Chain, Standing, Subject};
use casemate_types::ids::{Address, AppId, ComposeHash, DeviceId, InstanceId};
use serde_json::json;

use crate::world::{
    DEVICE, FIRST, GATEWAY, NEXT, OS_IMAGE, OTHER_DEVICE, OWNER, STRANGER, World, bytes32, number,
};

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
    let state = world.evm().state(&subjects).await.unwrap();
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
    let set_require_tcb_up_to_date = format!("0x6e4c7422{:064x}", 1);
    let transaction = json!({
        "from": format!("0x{OWNER}"), "to": format!("0x{}", world.app), "data": set_require_tcb_up_to_date,
    });
    world.call("eth_sendTransaction", json!([transaction])).await;
    world.mine(1).await;
    let old = BootInfo { tcb_status: "OutOfDate".into(), ..good.clone() };
    assert_eq!(evm.is_app_allowed(kms, &old).await.unwrap().reason, "TCB not up to date");
    assert_eq!(evm.is_app_allowed(kms, &good).await.unwrap(), yes);
}

#[tokio::test]
async fn ownership_moves_in_two_steps() {
    let world = World::start().await;
    let (chain, evm) = (world.chain(), world.evm());
    let to = format!("{:0>64}", STRANGER.to_string());
    let transfer = [vec![0xf2, 0xfd, 0xe3, 0x8b], bytes(&to)].concat();
    let accept = [0x79, 0xba, 0x50, 0x97];
    let owner = async || evm.registration(world.contracts.kms, world.app).await.unwrap().owner;
    chain.send(OWNER, world.app.into(), &transfer).await.unwrap();
    assert_eq!(owner().await, Some(OWNER));
    assert!(chain.send(ACCOUNTS[0].address, world.app.into(), &accept).await.is_err());
    chain.send(STRANGER, world.app.into(), &accept).await.unwrap();
    assert_eq!(owner().await, Some(STRANGER));
    assert!(chain.act(OWNER, world.app, Action::AddComposeHash(NEXT)).await.is_err());
    chain.act(STRANGER, world.app, Action::AddComposeHash(NEXT)).await.unwrap();
}

#[tokio::test]
async fn an_apps_contract_is_set_up_once() {
    let world = World::start().await;
    let initialize = format!("{:0>64}", STRANGER.to_string()) + &"0".repeat(64 * 4);
    let selector = [0x8e, 0x1f, 0x5d, 0x2b];
    for contract in [Address::from(world.app), world.contracts.kms] {
        let data = [selector.to_vec(), bytes(&initialize)].concat();
        assert!(world.chain().send(STRANGER, contract, &data).await.is_err());
    }
}

fn bytes(digits: &str) -> Vec<u8> {
    let byte = |at| u8::from_str_radix(&digits[at..at + 2], 16).expect("hex digits");
    (0..digits.len()).step_by(2).map(byte).collect()
}
