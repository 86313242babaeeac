//! Nodes that do not answer: when the server starts, while it runs, and when they come back.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use casemate_server::app::{App, NewNode};
use casemate_server::driver::fault::{Fault, Planned};
use casemate_server::driver::remote::{self, RemoteSim};
use casemate_server::driver::sim::{Sim, SimConfig};
use casemate_server::driver::{DynDriver, Image};
use casemate_server::store::{Durability, Store, WriterMode};
use casemate_server::workflow::reconcile;
use casemate_testkit::World;
use casemate_types::patch::{CvmPatch, Sparse};
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::client::Client;

fn set_away(sim: &Sim, away: bool) {
    match away {
        true => sim.plan(Planned { fault: Fault::Unreachable, once: false, vm: None }).expect("planned"),
        false => sim.clear().expect("cleared"),
    }
}

/// A node of a server that is about to start.
fn node(address: &str, driver: DynDriver) -> NewNode {
    NewNode { address: address.into(), driver, faults: None }
}

/// The world's server started anew on `file`, with the world's node at `address`.
async fn start(world: &World, file: &str, address: &str) -> App {
    start_with(world, file, vec![node(address, Arc::new(world.sim.clone()))]).await
}

/// As [`start`], with these nodes.
async fn start_with(world: &World, file: &str, nodes: Vec<NewNode>) -> App {
    let store =
        Store::open(&world.folder().join(file), Durability::None, WriterMode::Inline).expect("a store");
    let (clock, kms, config) = (world.clock.clone(), Arc::clone(&world.app.kms), world.app.config.clone());
    App::start(store, clock, kms, nodes, config).await.expect("it starts")
}

/// Serves a node at this socket until the task is aborted.
fn serve(sim: &Sim, path: &Path) -> JoinHandle<std::io::Result<()>> {
    let _ = std::fs::remove_file(path);
    tokio::spawn(remote::serve(sim.clone(), UnixListener::bind(path).expect("a socket")))
}

async fn nodes(client: &Client) -> Vec<Value> {
    client.json("/nodes").await["items"].as_array().expect("a list").clone()
}

#[tokio::test(start_paused = true)]
async fn a_known_node_that_is_away_keeps_no_server_from_starting() {
    let mut world = World::start().await;
    let cvm = world.deploy("web-one", "web:1").await;
    let known = world.app.node(cvm.node_id).expect("a node").facts();
    set_away(&world.sim, true);
    world.app = start(&world, "casemate.db", "sim:1").await;
    let client = Client::of(&world).await;
    let shown = nodes(&client).await.remove(0);
    assert_eq!((&shown["status"], &shown["name"]), (&json!("OFFLINE"), &json!("sim-1")));
    assert!(shown["seen_at"].is_string(), "{shown}");
    assert_eq!(shown["images"].as_array().map(Vec::len), Some(known.images.len()), "as it was last seen");
    assert_eq!(client.json("/teepods/available").await["nodes"], json!([]), "it takes nothing new");
    assert_eq!(client.json(&format!("/cvms/{}", cvm.uid)).await["node_info"]["status"], "OFFLINE");

    // What is asked for is accepted, and waits without asking the node again and again.
    let patch = CvmPatch { memory: Sparse::Value(4096), ..CvmPatch::default() };
    let id = world.accept_update(&cvm, patch).await;
    let stop = CancellationToken::new();
    let reconciling = tokio::spawn(reconcile::run(world.app.clone(), stop.clone()));
    let back = async {
        world.clock.sleep(Duration::from_secs(100)).await;
        set_away(&world.sim, false);
    };
    tokio::join!(world.settle(), back);
    assert_eq!(world.operation(id).state.name(), "succeeded");
    assert_eq!(nodes(&client).await[0]["status"], "ONLINE");
    stop.cancel();
    reconciling.await.expect("it ends");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_nobody_has_seen_has_no_room_until_it_answers() {
    let mut world = World::start().await;
    set_away(&world.sim, true);
    world.app = start(&world, "other.db", "sim=unix:/run/secret.sock").await;
    let account = world.app.store.workspace_ensure(
        "demo".into(),
        "demo".into(),
        ["wks_demo".into(), "usr_demo".into()],
        world.clock.now(),
    );
    account.await.expect("a workspace");
    let client = Client::of(&world).await;
    let shown = nodes(&client).await.remove(0);
    assert_eq!((&shown["status"], &shown["seen_at"]), (&json!("OFFLINE"), &Value::Null));
    assert_eq!(shown["capacity"]["vcpu"], 0);
    assert!(!shown.to_string().contains("secret"), "{shown}");
    let id = shown["id"].clone();

    set_away(&world.sim, false);
    reconcile::once(&world.app).await;
    let shown = nodes(&client).await;
    assert_eq!(shown.len(), 1);
    assert_eq!(
        (&shown[0]["status"], &shown[0]["name"], &shown[0]["id"]),
        (&json!("ONLINE"), &json!("sim-1"), &id)
    );
    assert_ne!(shown[0]["capacity"]["vcpu"], 0);
    world.deploy("web-one", "web:1").await;
}

#[tokio::test(start_paused = true)]
async fn a_node_counts_as_away_after_half_a_minute_and_its_facts_are_kept_up_to_date() {
    let world = World::start().await;
    let client = Client::of(&world).await;
    let mut facts = (*world.app.node(1).expect("a node").facts()).clone();
    facts.version = "9.9.9".into();
    world.sim.set_facts(facts);
    reconcile::once(&world.app).await;
    let shown = nodes(&client).await.remove(0);
    assert_eq!((&shown["status"], &shown["version"]), (&json!("ONLINE"), &json!("9.9.9")));
    assert_eq!(
        world.app.store.nodes().expect("reads")[0].facts.version,
        "9.9.9",
        "after the next start as well"
    );
    let seen_at = shown["seen_at"].clone();

    set_away(&world.sim, true);
    world.clock.sleep(Duration::from_secs(10)).await;
    reconcile::once(&world.app).await;
    assert_eq!(nodes(&client).await[0]["status"], "ONLINE", "one lost answer is nothing");
    world.clock.sleep(Duration::from_secs(25)).await;
    reconcile::once(&world.app).await;
    let shown = nodes(&client).await.remove(0);
    assert_eq!((&shown["status"], &shown["seen_at"]), (&json!("OFFLINE"), &seen_at));
    set_away(&world.sim, false);
    reconcile::once(&world.app).await;
    assert_eq!(nodes(&client).await[0]["status"], "ONLINE");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_moved_while_it_was_away_is_itself_again_after_a_start() {
    let world = World::start().await;
    let cvm = world.deploy("web-one", "web:1").await;
    set_away(&world.sim, true);
    let app = start(&world, "casemate.db", "elsewhere").await;
    assert_eq!(app.store.nodes().expect("reads").len(), 2, "nobody can know that it is the same");
    set_away(&world.sim, false);
    reconcile::once(&app).await;
    let app = start(&world, "casemate.db", "elsewhere").await;
    assert_eq!(app.store.nodes().expect("reads").len(), 1);
    assert!(app.node(cvm.node_id).expect("it has its number again").is_online());
}

#[tokio::test(start_paused = true)]
async fn another_node_at_a_known_address_is_told_nothing() {
    let mut world = World::start().await;
    let socket = world.folder().join("node.sock");
    let mut served = serve(&world.sim, &socket);
    let remote = RemoteSim::connect(&socket);
    world.app = start_with(&world, "casemate.db", vec![node("sim:1", Arc::new(remote))]).await;
    let cvm = world.deploy("web-one", "web:1").await;
    let client = Client::of(&world).await;

    let stranger = Sim::new(SimConfig::node(2), world.clock.clone(), None, None).expect("a node");
    served.abort();
    (&mut served).await.expect_err("aborted");
    served = serve(&stranger, &socket);
    let patch = CvmPatch { memory: Sparse::Value(4096), ..CvmPatch::default() };
    let id = world.accept_update(&cvm, patch).await;
    let right = async {
        // Nobody has compared the node yet: it counts as one that answers.
        world.clock.sleep(Duration::from_secs(8)).await;
        assert_eq!(nodes(&client).await[0]["status"], "ONLINE");
        reconcile::once(&world.app).await;
        assert_eq!(nodes(&client).await[0]["status"], "OFFLINE", "at once");
        assert_eq!(nodes(&client).await[0]["name"], "sim-1");
        assert!(world.operation(id).state.is_open());
        let told: Vec<_> = stranger.calls().into_iter().map(|call| call.call).collect();
        assert_eq!(told, ["describe"], "it was asked who it is, and nothing else");

        served.abort();
        (&mut served).await.expect_err("aborted");
        served = serve(&world.sim, &socket);
        // The first look finds that the connection broke.
        reconcile::once(&world.app).await;
        reconcile::once(&world.app).await;
    };
    tokio::join!(world.settle(), right);
    assert_eq!(world.operation(id).state.name(), "succeeded");
    served.abort();
}

#[tokio::test(start_paused = true)]
async fn what_is_shown_of_a_cvm_follows_its_node() {
    let world = World::start().await;
    let client = Client::of(&world).await;
    let cvm = world.deploy("web-one", "web:1").await;
    let shown = async |field: &str| {
        let whole = client.json(&format!("/cvms/{}", cvm.uid)).await[field].clone();
        let item = client.json("/cvms/paginated").await["items"][0][field].clone();
        assert_eq!(whole, item, "{field}");
        whole
    };
    assert_eq!(shown("node_info").await["status"], "ONLINE");
    set_away(&world.sim, true);
    world.clock.sleep(Duration::from_secs(30)).await;
    reconcile::once(&world.app).await;
    assert_eq!(shown("node_info").await["status"], "OFFLINE");
    set_away(&world.sim, false);
    reconcile::once(&world.app).await;
    assert_eq!(shown("node_info").await["status"], "ONLINE");

    let mut facts = (*world.app.node(cvm.node_id).expect("a node").facts()).clone();
    facts.region = "elsewhere".into();
    facts.images.iter_mut().for_each(|image: &mut Image| image.version = vec![9, 9, 9]);
    world.sim.set_facts(facts);
    reconcile::once(&world.app).await;
    assert_eq!(shown("node_info").await["region"], "elsewhere");
    assert_eq!(shown("os").await["version"], "9.9.9");
}

/// A node whose calls take this long.
fn slow(world: &World, number: u32, seconds: u64) -> (Sim, NewNode) {
    let sim = Sim::new(SimConfig::node(number), world.clock.clone(), None, None).expect("a node");
    sim.plan(Planned { fault: Fault::Slow { seconds }, once: false, vm: None }).expect("planned");
    (sim.clone(), node(&format!("sim:{number}"), Arc::new(sim)))
}

#[tokio::test(start_paused = true)]
async fn nodes_that_do_not_answer_delay_the_start_by_a_second_at_most() {
    let mut world = World::start().await;
    let cvm = world.deploy("web-one", "web:1").await;
    world.sim.plan(Planned { fault: Fault::Slow { seconds: 3600 }, once: false, vm: None }).expect("planned");
    let before = world.clock.now();
    let known = node("sim:1", Arc::new(world.sim.clone()));
    let nodes = vec![known, slow(&world, 2, 3600).1, slow(&world, 3, 4).1];
    world.app = start_with(&world, "casemate.db", nodes).await;
    let took = world.clock.now().duration_since(before);
    assert!(took.as_millis() <= 1000, "{took:?}");

    let client = Client::of(&world).await;
    let shown = client.json(&format!("/cvms/{}", cvm.uid)).await;
    assert_eq!((&shown["status"], &shown["node_info"]["name"]), (&json!("running"), &json!("sim-1")));
    assert_eq!(shown["os"]["version"], "0.5.5", "as it was last seen");

    // One that is only slow need not wait for long.
    let stop = CancellationToken::new();
    tokio::spawn(reconcile::run(world.app.clone(), stop.clone()));
    world.clock.sleep(Duration::from_secs(5)).await;
    assert!(world.app.nodes[&3].is_online());
    stop.cancel();
}

#[tokio::test(start_paused = true)]
async fn nodes_are_numbered_as_the_configuration_names_them() {
    let world = World::start().await;
    let numbered =
        |app: &App| app.nodes.iter().map(|(id, node)| (*id, node.address.clone())).collect::<Vec<_>>();
    // The first answers last, and the second not in time.
    let late = Sim::new(SimConfig { call_ms: 800, ..SimConfig::node(1) }, world.clock.clone(), None, None);
    let late = node("sim:1", Arc::new(late.expect("a node")));
    let quick = Sim::new(SimConfig::node(3), world.clock.clone(), None, None).expect("a node");
    let (away, second) = slow(&world, 2, 60);
    let nodes = vec![late, second, node("sim:3", Arc::new(quick.clone()))];
    let app = start_with(&world, "other.db", nodes).await;
    let all = [(1, "sim:1".to_owned()), (2, "sim:2".to_owned()), (3, "sim:3".to_owned())];
    assert_eq!(numbered(&app), all);
    set_away(&away, false);
    reconcile::once(&app).await;
    assert_eq!(*app.nodes[&2].facts().name, *"sim-2");

    // They keep their numbers, however they are named later.
    let nodes = vec![node("sim:3", Arc::new(quick)), node("sim:2", Arc::new(away))];
    let app = start_with(&world, "other.db", nodes).await;
    assert_eq!(numbered(&app), all[1..]);
}
