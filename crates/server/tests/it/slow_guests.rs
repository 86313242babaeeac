//! Guests that take their time hold nobody else up, and neither do nodes that do not answer.

use std::sync::Arc;
use std::time::Duration;

use casemate_server::app::{App, NewNode};
use casemate_server::config::Config;
use casemate_server::cvm::spec::Booking;
use casemate_server::cvm::state::{Cvm, Status};
use casemate_server::driver::fault::{Fault, Planned};
use casemate_server::driver::sim::{Sim, SimConfig};
use casemate_server::store::{Durability, Store, WriterMode};
use casemate_server::workflow::worker::{self, Hands, NoProbe};
use casemate_server::workflow::{create, power};
use casemate_testkit::{World, compose};
use casemate_types::compose::ComposeDoc;
use casemate_types::patch::{CvmCreate, CvmPatch, CvmProvision, Sparse};
use serde_json::json;
use tokio_util::sync::CancellationToken;

async fn world() -> World {
    let mut node = SimConfig::node(1);
    node.facts.capacity = Booking { vcpu: 10_000, memory_mb: 100_000_000, disk_gb: 1_000_000, gpus: 0 };
    World::with(node, Config { dev: true, ..Config::default() }).await
}

/// CVMs whose guests take twenty minutes to go down, each with an update that waits for that.
async fn slow(world: &World, count: usize) -> Vec<Cvm> {
    let mut cvms = Vec::new();
    for number in 0..count {
        cvms.push(world.create(&format!("slow-{number}"), "web:1").await);
    }
    world.settle().await;
    world
        .sim
        .plan(Planned { fault: Fault::SlowStop { seconds: 1000 }, once: false, vm: None })
        .expect("planned");
    for cvm in &cvms {
        let patch = CvmPatch {
            memory: Sparse::Value(4096),
            shutdown_timeout: Sparse::Value(1200),
            ..CvmPatch::default()
        };
        world.accept_update(cvm, patch).await;
    }
    cvms
}

fn work(world: &World, hands: Hands) -> CancellationToken {
    let stop = CancellationToken::new();
    tokio::spawn(worker::run_with(world.app.clone(), Arc::new(NoProbe), stop.clone(), hands));
    stop
}

#[tokio::test(start_paused = true)]
async fn guests_that_take_their_time_hold_up_no_other_update() {
    let world = world().await;
    let quick = world.deploy("quick", "web:1").await;
    let waiting = slow(&world, 4).await;
    let stop = work(&world, Hands { talking: 2, in_hand: 16 });
    world.clock.sleep(Duration::from_secs(10)).await;
    world.sim.clear().expect("cleared");
    let id =
        world.accept_update(&quick, CvmPatch { memory: Sparse::Value(4096), ..CvmPatch::default() }).await;
    world.clock.sleep(Duration::from_secs(30)).await;
    assert_eq!(world.operation(id).state.name(), "succeeded");
    assert!(waiting.iter().all(|cvm| world.cvm(cvm).open.is_some()), "they still wait");
    world.clock.sleep(Duration::from_secs(1200)).await;
    assert!(waiting.iter().all(|cvm| world.cvm(cvm).status == Status::Running), "and go on in the end");
    stop.cancel();
}

#[tokio::test(start_paused = true)]
async fn a_stop_and_a_deletion_wait_for_no_guest() {
    let world = world().await;
    let (stopped, deleted) = (world.deploy("stopped", "web:1").await, world.deploy("deleted", "web:1").await);
    let waiting = slow(&world, 4).await;
    let stop = work(&world, Hands { talking: 2, in_hand: 2 });
    // Between two renewals of the claims: those that are cancelled do not hear of it before the next.
    world.clock.sleep(Duration::from_secs(11)).await;
    power::stop(&world.app, world.cvm(&stopped), world.author()).await.expect("accepted");
    power::delete(&world.app, world.cvm(&deleted), world.author()).await.expect("accepted");
    // One of those that wait, and one for which nobody has a hand free.
    power::stop(&world.app, world.cvm(&waiting[0]), world.author()).await.expect("accepted");
    power::stop(&world.app, world.cvm(&waiting[3]), world.author()).await.expect("accepted");
    world.clock.sleep(Duration::from_secs(5)).await;
    for cvm in [&stopped, &waiting[0], &waiting[3]] {
        assert_eq!(world.cvm(cvm).status, Status::Stopped, "{}", cvm.name);
    }
    assert!(world.app.store.cvm(deleted.id).is_err(), "it is gone");
    stop.cancel();
}

#[tokio::test(start_paused = true)]
async fn guests_of_one_workspace_hold_up_no_other_workspace() {
    let mut world = world().await;
    let (one, other) = (world.actor.clone(), world.stranger().await);
    world.actor = other.clone();
    let quick = world.deploy("quick", "web:1").await;
    world.actor = one;
    let waiting = slow(&world, 12).await;
    let stop = work(&world, Hands { talking: 4, in_hand: 8 });
    world.clock.sleep(Duration::from_secs(10)).await;
    world.sim.clear().expect("cleared");
    world.actor = other;
    let id =
        world.accept_update(&quick, CvmPatch { memory: Sparse::Value(4096), ..CvmPatch::default() }).await;
    world.clock.sleep(Duration::from_secs(30)).await;
    assert_eq!(world.operation(id).state.name(), "succeeded");
    assert!(waiting.iter().all(|cvm| world.cvm(cvm).open.is_some()), "they still wait");
    world.clock.sleep(Duration::from_secs(1200)).await;
    assert!(waiting.iter().all(|cvm| world.cvm(cvm).status == Status::Running), "and go on in the end");
    stop.cancel();
}

/// The world with a second node.
async fn two_nodes() -> (World, Sim) {
    let mut world = world().await;
    let second = Sim::new(SimConfig::node(2), world.clock.clone(), None, None).expect("a node");
    let node = |address: &str, sim: &Sim| NewNode {
        address: address.into(),
        driver: Arc::new(sim.clone()),
        faults: None,
    };
    let nodes = vec![node("sim:1", &world.sim), node("sim:2", &second)];
    let file = world.folder().join("casemate.db");
    let store = Store::open(&file, Durability::None, WriterMode::Inline).expect("the store opens again");
    let (clock, kms, config) = (world.clock.clone(), Arc::clone(&world.app.kms), world.app.config.clone());
    world.app = App::start(store, clock, kms, nodes, config).await.expect("it starts");
    (world, second)
}

async fn create_on(world: &World, node_id: i64, name: &str) -> Cvm {
    let document = json!({ "docker_compose_file": compose("web:1") });
    let document = ComposeDoc::from_value(document).expect("an object");
    let asked = CvmProvision {
        node_id: Some(node_id),
        ..CvmProvision::new(name.parse().expect("a valid name"), document)
    };
    let prepared = create::provision(&world.app, &world.actor, asked, None).await.expect("provisioned");
    let asked = json!({ "app_id": prepared.app_id, "compose_hash": prepared.spec.compose.hash });
    let asked = CvmCreate::from_json(asked.as_object().expect("an object")).expect("valid");
    create::create(&world.app, &world.actor, world.author(), asked, None).await.expect("created").cvm
}

#[tokio::test(start_paused = true)]
async fn a_node_that_hangs_holds_up_no_other_node() {
    let (world, _second) = two_nodes().await;
    let mut hanging = Vec::new();
    for number in 0..24 {
        hanging.push(create_on(&world, 1, &format!("hanging-{number}")).await);
    }
    let (stopped, updated) = (create_on(&world, 2, "stopped").await, create_on(&world, 2, "updated").await);
    world.settle().await;
    assert_eq!(world.cvm(&stopped).node_id, 2);
    world.sim.plan(Planned { fault: Fault::Slow { seconds: 3600 }, once: false, vm: None }).expect("planned");
    let more = || CvmPatch { memory: Sparse::Value(4096), ..CvmPatch::default() };
    let (stops, updates) = hanging.split_at(12);
    for cvm in stops {
        power::stop(&world.app, world.cvm(cvm), world.author()).await.expect("accepted");
    }
    for cvm in updates {
        world.accept_update(cvm, more()).await;
    }
    let stop = work(&world, Hands { talking: 4, in_hand: 8 });
    world.clock.sleep(Duration::from_secs(1)).await;
    power::stop(&world.app, world.cvm(&stopped), world.author()).await.expect("accepted");
    let id = world.accept_update(&updated, more()).await;
    world.clock.sleep(Duration::from_secs(8)).await;
    assert_eq!(world.cvm(&stopped).status, Status::Stopped);
    assert_eq!(world.operation(id).state.name(), "succeeded");

    world.sim.clear().expect("cleared");
    world.clock.sleep(Duration::from_secs(300)).await;
    assert!(stops.iter().all(|cvm| world.cvm(cvm).status == Status::Stopped), "they go on in the end");
    assert!(updates.iter().all(|cvm| world.cvm(cvm).status == Status::Running));
    stop.cancel();
}
