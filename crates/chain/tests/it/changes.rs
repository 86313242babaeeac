//! The reports of an app's contract, read in parts.

use casemate_chain::{Action, Chain, ChainConfig, Changes, Evm, What};
use casemate_types::ids::AppId;
use serde_json::{Value, json};

use crate::world::{DEVICE, FIRST, NEXT, OTHER, OTHER_DEVICE, OWNER, World, evm, number};

type Change = fn(&mut Value);

/// Everything from a block on, as many calls as it takes.
async fn all(evm: &Evm, app: AppId) -> (Vec<Changes>, Vec<What>) {
    let (mut parts, mut from) = (Vec::new(), 0);
    loop {
        let part = evm.changes(app, from, u64::MAX).await.expect("an answer");
        from = part.read_to.number + 1;
        let done = part.read_to == part.head;
        parts.push(part);
        if done {
            let whats = parts.iter().flat_map(|part| &part.changes).map(|change| change.what).collect();
            return (parts, whats);
        }
    }
}

#[tokio::test]
async fn changes_come_in_order_and_with_where_they_are() {
    let world = World::start().await;
    let other = world.other_app().await;
    let added = world.register(NEXT).await;
    world.mine(50).await;
    world.chain().act(OWNER, other, Action::AddComposeHash(OTHER)).await.unwrap();
    world.act(Action::RemoveComposeHash(FIRST)).await;
    world.act(Action::AddDevice(OTHER_DEVICE)).await;
    world.act(Action::RemoveDevice(DEVICE)).await;
    let expected = [
        What::DeviceAdded(DEVICE),
        What::HashAdded(FIRST),
        What::HashAdded(NEXT),
        What::HashRemoved(FIRST),
        What::DeviceAdded(OTHER_DEVICE),
        What::DeviceRemoved(DEVICE),
    ];
    // In one query, in several, and in several calls.
    for (log_blocks, calls) in [(2000, 1), (7, 1), (1, 4)] {
        let evm = evm(ChainConfig { log_blocks, ..world.config() });
        let (parts, whats) = all(&evm, world.app).await;
        assert_eq!(whats, expected, "{log_blocks}");
        assert_eq!(parts.len(), calls, "{log_blocks}");
        assert!(parts.iter().rev().skip(1).all(|part| part.read_to.number < part.head.number));
    }
    let (parts, _) = all(&world.evm(), world.app).await;
    let change = parts[0].changes[2];
    assert_eq!(change.tx, added);
    assert_eq!(change.block.number, number(&world.receipt(added).await["blockNumber"]));

    let evm = world.evm();
    let head = evm.head().await.unwrap().block;
    let past = evm.changes(world.app, head.number + 1, u64::MAX).await.unwrap();
    assert_eq!((past.changes.len(), past.read_to, past.head), (0, head, head));
    let one = evm.changes(world.app, change.block.number, change.block.number).await.unwrap();
    assert_eq!((one.changes, one.read_to), (vec![change], change.block));
}

#[tokio::test]
async fn a_node_that_gives_little_at_once_is_asked_for_less() {
    let world = World::start().await;
    world.mine(40).await;
    world.register(NEXT).await;
    let (proxy, evm) = world.proxied().await;
    proxy.lie(|method, params, reply| {
        if method == "eth_getLogs" && number(&params[0]["toBlock"]) - number(&params[0]["fromBlock"]) >= 5 {
            *reply = json!({
                "jsonrpc": "2.0", "id": reply["id"],
                "error": { "code": -32005, "message": "query exceeds max block range 5" },
            });
        }
    });
    let (_, whats) = all(&evm, world.app).await;
    assert_eq!(whats, [What::DeviceAdded(DEVICE), What::HashAdded(FIRST), What::HashAdded(NEXT)]);

    proxy.lie(|method, _, reply| {
        if method == "eth_getLogs" {
            *reply = json!({ "id": reply["id"], "error": { "code": -32005, "message": "never" } });
        }
    });
    let error = evm.changes(world.app, 0, u64::MAX).await.unwrap_err();
    assert!(error.to_string().contains("refuses"), "{error}");
}

#[tokio::test]
async fn reports_that_cannot_be_the_apps_are_not_believed() {
    let world = World::start().await;
    let (proxy, evm) = world.proxied().await;
    let cases: [(&str, Change); 6] = [
        ("address", |log| log["address"] = json!(format!("0x{}", "11".repeat(20)))),
        ("block", |log| log["blockNumber"] = json!("0xffff")),
        ("data", |log| log["data"] = json!("0x")),
        ("topic", |log| log["topics"][0] = json!(format!("0x{}", "11".repeat(32)))),
        ("topics", |log| log["topics"] = json!([])),
        ("no log", |log| *log = json!("0x")),
    ];
    for (what, change) in cases {
        proxy.lie(move |method, _, reply| {
            if method == "eth_getLogs" {
                reply["result"].as_array_mut().into_iter().flatten().for_each(change);
            }
        });
        let error = evm.changes(world.app, 0, u64::MAX).await.expect_err(what);
        assert!(matches!(error, casemate_chain::Error::Nonsense(_)), "{what}: {error}");
    }
    proxy.lie(|method, _, reply| {
        if method == "eth_getLogs" {
            reply["result"].as_array_mut().into_iter().flatten().for_each(|log| log["removed"] = json!(true));
        }
    });
    assert_eq!(evm.changes(world.app, 0, u64::MAX).await.unwrap().changes, []);
}
