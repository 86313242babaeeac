//! Guests that take their time hold nobody else up.

use std::sync::Arc;
use std::time::Duration;

use casemate_server::config::Config;
use casemate_server::cvm::spec::Booking;
use casemate_server::cvm::state::{Cvm, Status};
use casemate_server::driver::fault::{Fault, Planned};
use casemate_server::driver::sim::SimConfig;
use casemate_server::workflow::power;
use casemate_server::workflow::worker::{self, Hands, NoProbe};
use casemate_testkit::World;
use casemate_types::patch::{CvmPatch, Sparse};
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
    let stop = work(&world, Hands { talking: 2, in_hand: 8 });
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
