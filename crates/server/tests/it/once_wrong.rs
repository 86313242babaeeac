//! What was wrong once and must not be again.

use std::time::Duration;

use casemate_server::cvm::spec::Booking;
use casemate_server::cvm::state::Status;
use casemate_server::driver::fault::{Fault, Planned};
use casemate_server::driver::{Driver, Guest, LastStop};
use casemate_server::workflow::operation::{FailCode, State};
use casemate_server::workflow::worker::carry;
use casemate_server::workflow::{power, reconcile};
use casemate_testkit::World;
use casemate_types::ids::OperationId;
use casemate_types::patch::{CvmPatch, Sparse};

fn plan(world: &World, fault: Fault, once: bool) {
    world.sim.plan(Planned { fault, once, vm: None }).expect("planned");
}

fn memory(mb: u32) -> CvmPatch {
    CvmPatch { memory: Sparse::Value(mb), ..CvmPatch::default() }
}

fn code(world: &World, id: OperationId) -> FailCode {
    match world.operation(id).state {
        State::Failed { reason, .. } => reason.code,
        other => panic!("not failed: {other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_cannot_be_called_off_after_it_ended_something() {
    let world = World::start().await;
    let cvm = world.deploy("web-one", "web:1").await;
    world.accept_update(&cvm, memory(4096)).await;
    let stop = power::stop(&world.app, world.cvm(&cvm), world.author()).await.expect("accepted");
    power::cancel(&world.app, stop.operation.id, world.author()).await.expect_err("it settles what it ended");
    world.settle().await;
    assert_eq!(world.cvm(&cvm).status, Status::Stopped);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_never_answers_is_one_that_is_away() {
    let world = World::start().await;
    let cvm = world.deploy("web-one", "web:1").await;
    plan(&world, Fault::Slow { seconds: 86_400 }, false);
    let id = world.accept_update(&cvm, memory(4096)).await;
    let begun = world.clock.now();
    reconcile::once(&world.app).await;
    assert!(world.clock.now().as_second() - begun.as_second() < 60, "one node does not hold up the others");
    world.settle().await;
    assert_eq!(code(&world, id), FailCode::Unreachable);
}

#[tokio::test(start_paused = true)]
async fn a_guest_gets_its_whole_time_although_the_node_was_away() {
    let world = World::start().await;
    let cvm = world.deploy("web-one", "web:1").await;
    let patch = CvmPatch { allow_force_stop: Sparse::Value(true), ..memory(4096) };
    let id = world.accept_update(&cvm, patch).await;
    // The step begins, and nobody is there for longer than the guest may take.
    for work in world.claim(1).await {
        struct UntilStop;
        #[async_trait::async_trait]
        impl casemate_server::workflow::worker::Probe for UntilStop {
            async fn reached(
                &self,
                _: &casemate_server::workflow::operation::Operation,
                step: casemate_server::workflow::operation::StepName,
                _: casemate_server::workflow::worker::Moment,
            ) -> bool {
                step != casemate_server::workflow::operation::StepName::Stop
            }
        }
        carry(&world.app, work, &UntilStop).await;
    }
    world.clock.sleep(Duration::from_secs(100)).await;
    world.settle().await;
    assert_eq!(world.operation(id).state.name(), "succeeded");
    let seen = world.sim.observe(&[cvm.vm_uuid]).await.expect("answers").pop().expect("is there");
    assert_eq!(seen.last_stop, Some(LastStop::Graceful));
}

#[tokio::test(start_paused = true)]
async fn a_repair_that_is_refused_is_tried_once_and_says_so() {
    let world = World::start().await;
    let cvm = world.deploy("web-one", "web:1").await;
    let mut facts = world.sim.describe().await.expect("answers");
    facts.images.retain(|image| image.name != "dstack-0.5.5");
    world.sim.set_facts(facts);
    plan(&world, Fault::Crash, true);
    for _ in 0..3 {
        reconcile::once(&world.app).await;
        world.settle().await;
    }
    let now = world.cvm(&cvm);
    assert_eq!((now.status, now.generation), (Status::Error, 2));
    assert!(now.boot_error.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_is_gone_is_not_made_again_without_its_data() {
    let world = World::start().await;
    let cvm = world.deploy("web-one", "web:1").await;
    plan(&world, Fault::Vanish, true);
    reconcile::once(&world.app).await;
    world.settle().await;
    let now = world.cvm(&cvm);
    assert_eq!(now.status, Status::Error);
    assert!(now.boot_error.expect("says why").contains("gone from its node"));
    assert_eq!(world.sim.inventory().await.expect("answers"), []);
    power::start(&world.app, world.cvm(&cvm), world.author()).await.expect("accepted");
    world.settle().await;
    assert_eq!(world.cvm(&cvm).status, Status::Running, "whoever asks for it gets it");
}

#[tokio::test(start_paused = true)]
async fn applied_to_a_machine_that_is_off_means_applied() {
    let world = World::start().await;
    let cvm = world.deploy("web-one", "web:1").await;
    power::stop(&world.app, world.cvm(&cvm), world.author()).await.expect("accepted");
    world.settle().await;
    plan(&world, Fault::Lie, true);
    let id = world.accept_update(&cvm, memory(4096)).await;
    world.settle().await;
    assert_eq!(world.operation(id).state.name(), "failed");
    let now = world.cvm(&cvm);
    assert_eq!(now.status, Status::Stopped, "and was put back");
    let seen = world.sim.observe(&[cvm.vm_uuid]).await.expect("answers").pop().expect("is there");
    assert_eq!((seen.revision, seen.size.memory_mb, seen.guest), (now.revision, 2048, Guest::Off));
}

#[tokio::test(start_paused = true)]
async fn a_larger_disk_that_was_refused_does_not_keep_the_old_machine_down() {
    let world = World::start().await;
    let cvm = world.deploy("web-one", "web:1").await;
    struct Shrink<'a>(&'a World);
    #[async_trait::async_trait]
    impl casemate_server::workflow::worker::Probe for Shrink<'_> {
        async fn reached(
            &self,
            _: &casemate_server::workflow::operation::Operation,
            step: casemate_server::workflow::operation::StepName,
            moment: casemate_server::workflow::worker::Moment,
        ) -> bool {
            use casemate_server::workflow::operation::StepName;
            use casemate_server::workflow::worker::Moment;
            if (step, moment) == (StepName::Stop, Moment::After) {
                let mut facts = self.0.sim.describe().await.expect("answers");
                facts.capacity = Booking { disk_gb: 30, ..facts.capacity };
                self.0.sim.set_facts(facts);
            }
            true
        }
    }
    let id =
        world.accept_update(&cvm, CvmPatch { disk_size: Sparse::Value(40), ..CvmPatch::default() }).await;
    world.settle_with(&Shrink(&world)).await;
    assert_eq!(code(&world, id), FailCode::Refused);
    assert_eq!(world.cvm(&cvm).status, Status::Running);
    world.assert_accounts().await;
}

#[tokio::test(start_paused = true)]
async fn a_new_name_is_a_new_state() {
    let world = World::start().await;
    let cvm = world.deploy("web-one", "web:1").await;
    let before = world.cvm(&cvm).tag();
    let patch = CvmPatch { name: Sparse::Value("web-two".parse().expect("a name")), ..CvmPatch::default() };
    world.accept_update(&cvm, patch).await;
    assert_ne!(world.cvm(&cvm).tag(), before);
    let same = world.cvm(&cvm).tag();
    world.accept_update(&cvm, memory(2048)).await;
    assert_eq!(world.cvm(&cvm).tag(), same, "nothing changed");
}
