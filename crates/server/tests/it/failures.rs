//! What a failing operation leads to: the old machine untouched, put back, or somebody called for.

use casemate_server::cvm::state::{Cvm, Power, Status};
use casemate_server::driver::fault::{Fault, Planned};
use casemate_server::driver::{At, Driver, Guest, LastStop, Machine, Observed, Stop};
use casemate_server::store::Of;
use casemate_server::workflow::operation::{FailCode, Kind, Operation, State};
use casemate_server::workflow::worker::{NoProbe, carry};
use casemate_server::workflow::{power, reconcile};
use casemate_testkit::{World, compose};
use casemate_types::ids::OperationId;
use casemate_types::patch::{CvmPatch, OnFailure, Sparse};

fn new_image() -> CvmPatch {
    CvmPatch {
        docker_compose_file: Sparse::Value(compose("web:2")),
        memory: Sparse::Value(4096),
        disk_size: Sparse::Value(40),
        ..CvmPatch::default()
    }
}

fn plan(world: &World, fault: Fault, once: bool) {
    world.sim.plan(Planned { fault, once, vm: None }).expect("planned");
}

async fn seen(world: &World, cvm: &Cvm) -> Observed {
    world.sim.observe(&[cvm.vm_uuid]).await.expect("the node answers").pop().expect("the machine is there")
}

fn failed(operation: &Operation) -> (FailCode, String, Option<OperationId>) {
    match &operation.state {
        State::Failed { reason, put_back, .. } => (reason.code, reason.message.clone(), *put_back),
        other => panic!("not failed: {other:?}"),
    }
}

/// Works on whatever is due now, once.
async fn one_round(world: &World) {
    for work in world.claim(64).await {
        carry(&world.app, work, &NoProbe).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_stage_refuses_leaves_the_machine_running() {
    let world = World::start().await;
    let cvm = world.deploy("web-one", "web:1").await;
    let before = seen(&world, &cvm).await;
    plan(&world, Fault::Refuse, false);
    let id = world.accept_update(&cvm, new_image()).await;
    assert_eq!(world.cvm(&cvm).status, Status::Updating);
    assert_eq!(world.cvm(&cvm).booked.memory_mb, 4096, "the larger of old and new is booked until it ends");
    world.settle().await;
    let (code, _, put_back) = failed(&world.operation(id));
    assert_eq!((code, put_back), (FailCode::Refused, None));
    let after = seen(&world, &cvm).await;
    assert_eq!((after.boot_count, after.guest), (before.boot_count, Guest::Done));
    let now = world.cvm(&cvm);
    assert_eq!((now.status, now.revision, now.boot_error), (Status::Running, 1, None));
    world.assert_accounts().await;
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_away_before_the_stop_is_given_up_after_five_minutes() {
    let world = World::start().await;
    let cvm = world.deploy("web-one", "web:1").await;
    plan(&world, Fault::Unreachable, false);
    let begun = world.clock.now();
    let id = world.accept_update(&cvm, new_image()).await;
    one_round(&world).await;
    let waiting_for = world.operation(id).waiting_for;
    assert_eq!(
        waiting_for.as_deref(),
        Some("node sim-1, which does not answer"),
        "and nothing of how it is reached"
    );
    world.settle().await;
    let (code, _, put_back) = failed(&world.operation(id));
    assert_eq!((code, put_back), (FailCode::Unreachable, None));
    let seconds = world.clock.now().as_second() - begun.as_second();
    assert!((300..400).contains(&seconds), "gave up after {seconds} s");
    world.sim.clear().expect("cleared");
    assert_eq!(world.cvm(&cvm).status, Status::Running);
    assert_eq!(seen(&world, &cvm).await.boot_count, 1);
    world.assert_accounts().await;
}

#[tokio::test(start_paused = true)]
async fn a_node_that_goes_away_after_the_stop_is_waited_for() {
    let world = World::start().await;
    let cvm = world.deploy("web-one", "web:1").await;
    let id = world.accept_update(&cvm, new_image()).await;
    plan(&world, Fault::SlowStop { seconds: 5 }, false);
    let app = world.app.clone();
    let work = world.claim(1).await.pop().expect("is due");
    let worker = tokio::spawn(async move { carry(&app, work, &NoProbe).await });
    world.clock.sleep(std::time::Duration::from_secs(1)).await;
    plan(&world, Fault::Unreachable, false);
    worker.await.expect("the worker does not panic");
    for _ in 0..200 {
        one_round(&world).await;
        world.clock.sleep(std::time::Duration::from_secs(10)).await;
    }
    let operation = world.operation(id);
    assert!(operation.state.is_open(), "{operation:?}");
    assert!(operation.waiting_for.is_some());
    world.sim.clear().expect("cleared");
    world.settle().await;
    assert_eq!(world.operation(id).state.name(), "succeeded");
    assert_eq!(seen(&world, &cvm).await.size.memory_mb, 4096);
}

#[tokio::test(start_paused = true)]
async fn a_node_without_room_says_so_before_the_stop_and_is_waited_for_after_it() {
    let world = World::start().await;
    let cvm = world.deploy("web-one", "web:1").await;
    plan(&world, Fault::DiskFull, false);
    let id = world.accept_update(&cvm, new_image()).await;
    world.settle().await;
    let (code, message, put_back) = failed(&world.operation(id));
    assert_eq!((code, put_back, message.as_str()), (FailCode::Refused, None, "it was told to have none"));
    assert_eq!((world.cvm(&cvm).status, seen(&world, &cvm).await.boot_count), (Status::Running, 1));
    // From the stop on, it goes on by itself, and somebody can end it.
    for stopped in [false, true] {
        world.sim.clear().expect("cleared");
        let id = world
            .accept_update(
                &cvm,
                CvmPatch { memory: Sparse::Value(if stopped { 8192 } else { 4096 }), ..CvmPatch::default() },
            )
            .await;
        plan(&world, Fault::SlowStop { seconds: 5 }, true);
        let app = world.app.clone();
        let work = world.claim(1).await.pop().expect("is due");
        let worker = tokio::spawn(async move { carry(&app, work, &NoProbe).await });
        world.clock.sleep(std::time::Duration::from_secs(1)).await;
        plan(&world, Fault::DiskFull, false);
        worker.await.expect("the worker does not panic");
        for _ in 0..200 {
            one_round(&world).await;
            world.clock.sleep(std::time::Duration::from_secs(10)).await;
        }
        let waiting_for = world.operation(id).waiting_for;
        assert_eq!(waiting_for.as_deref(), Some("room on node sim-1: it was told to have none"));
        if stopped {
            power::stop(&world.app, world.cvm(&cvm), world.author()).await.expect("accepted");
        }
        world.sim.clear().expect("cleared");
        world.settle().await;
        let ended = if stopped { ("cancelled", Status::Stopped) } else { ("succeeded", Status::Running) };
        assert_eq!((world.operation(id).state.name(), world.cvm(&cvm).status), ended);
    }
    world.assert_accounts().await;
}

#[tokio::test(start_paused = true)]
async fn an_update_that_does_not_boot_is_put_back_and_says_why() {
    let world = World::start().await;
    let cvm = world.deploy("web-one", "web:1").await;
    let old = world.app.store.spec(cvm.id, 1).expect("the spec");
    plan(&world, Fault::BootFail { image: None, env: None }, true);
    let id = world.accept_update(&cvm, CvmPatch { listed: Sparse::Value(true), ..new_image() }).await;
    world.settle().await;
    let (code, message, put_back) = failed(&world.operation(id));
    assert_eq!(code, FailCode::BootFailed);
    let put_back = world.operation(put_back.expect("names its put-back"));
    assert_eq!((put_back.kind, put_back.state.name()), (Kind::PutBack, "succeeded"));
    let events = world.app.store.events(world.actor.workspace_id, Of::Operation(put_back.id), 0, 100);
    let accepted = events.expect("reads").remove(0);
    assert_eq!((accepted.kind.as_str(), accepted.username), ("operation.accepted", None));
    assert_eq!((accepted.before_rev, accepted.after_rev), (Some(2), Some(3)));
    world.assert_events(put_back.id);
    let revisions = world.app.store.revisions(cvm.id, None, 100).expect("reads");
    let authors: Vec<_> = revisions.into_iter().map(|revision| revision.username).collect();
    assert_eq!(authors, [None, Some("demo".into()), Some("demo".into())], "nobody asked for the newest");
    let now = world.cvm(&cvm);
    let text = format!("update {id} failed and was put back: {message}");
    assert_eq!((now.status, now.boot_error), (Status::Running, Some(text)));
    assert!(!now.listed, "records of a mixed patch are written when it succeeds");
    assert_eq!((now.revision, now.latest_revision), (3, 3), "a put-back is a new revision");
    let spec = world.app.store.spec(cvm.id, now.revision).expect("the spec");
    assert_eq!(spec.compose, old.compose);
    assert_eq!((spec.memory_mb, spec.disk_gb), (2048, 40), "the disk keeps its grown size");
    assert_eq!(seen(&world, &cvm).await.compose_hash, old.compose.hash);
    world.assert_accounts().await;

    let id = world.accept_update(&cvm, new_image()).await;
    world.settle().await;
    assert_eq!(world.operation(id).state.name(), "succeeded");
    assert_eq!(world.cvm(&cvm).boot_error, None, "a success clears it");
}

#[tokio::test(start_paused = true)]
async fn hold_leaves_the_machine_as_the_failure_left_it() {
    let world = World::start().await;
    let cvm = world.deploy("web-one", "web:1").await;
    plan(&world, Fault::BootFail { image: None, env: None }, true);
    let patch = CvmPatch { on_failure: Sparse::Value(OnFailure::Hold), ..new_image() };
    let id = world.accept_update(&cvm, patch).await;
    world.settle().await;
    let (_, message, put_back) = failed(&world.operation(id));
    assert_eq!(put_back, None);
    let now = world.cvm(&cvm);
    assert_eq!((now.status, now.boot_error, now.revision), (Status::Error, Some(message), 2));
    reconcile::once(&world.app).await;
    assert_eq!(world.cvm(&cvm).open, None, "nobody mends what was to be held");
    power::restart(&world.app, world.cvm(&cvm), false, world.author()).await.expect("accepted");
    world.settle().await;
    assert_eq!(world.cvm(&cvm).status, Status::Running);
    world.assert_accounts().await;
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_goes_down_late_gets_its_old_spec_back() {
    let world = World::start().await;
    let cvm = world.deploy("web-one", "web:1").await;
    plan(&world, Fault::SlowStop { seconds: 120 }, true);
    let id = world.accept_update(&cvm, new_image()).await;
    world.settle().await;
    let (code, _, put_back) = failed(&world.operation(id));
    assert_eq!(code, FailCode::StopTimedOut);
    assert_eq!(world.operation(put_back.expect("names its put-back")).state.name(), "succeeded");
    let now = world.cvm(&cvm);
    assert_eq!((now.status, now.revision), (Status::Running, 1), "nothing was applied");
    let seen = seen(&world, &cvm).await;
    assert_eq!((seen.guest, seen.size.memory_mb), (Guest::Done, 2048));
    world.assert_accounts().await;
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_never_goes_down_needs_somebody_to_stop_it() {
    let world = World::start().await;
    let cvm = world.deploy("web-one", "web:1").await;
    plan(&world, Fault::StopHangs, false);
    let id = world.accept_update(&cvm, new_image()).await;
    world.settle().await;
    assert_eq!(failed(&world.operation(id)).0, FailCode::StopTimedOut);
    let now = world.cvm(&cvm);
    assert_eq!(now.status, Status::Error);
    assert!(now.boot_error.expect("says what to do").contains("`stop`"));
    assert_eq!(seen(&world, &cvm).await.guest, Guest::Done, "it still runs its old spec");
    power::stop(&world.app, world.cvm(&cvm), world.author()).await.expect("accepted");
    world.settle().await;
    assert_eq!(world.cvm(&cvm).status, Status::Stopped);
    assert_eq!(seen(&world, &cvm).await.last_stop, Some(LastStop::Forced));
    world.assert_accounts().await;
}

#[tokio::test(start_paused = true)]
async fn force_is_used_only_where_it_is_allowed() {
    let world = World::start().await;
    let cvm = world.deploy("web-one", "web:1").await;
    plan(&world, Fault::StopHangs, false);
    let patch = CvmPatch {
        allow_force_stop: Sparse::Value(true),
        shutdown_timeout: Sparse::Value(10),
        ..new_image()
    };
    let begun = world.clock.now();
    let id = world.accept_update(&cvm, patch).await;
    world.settle().await;
    assert_eq!(world.operation(id).state.name(), "succeeded");
    let seconds = world.clock.now().as_second() - begun.as_second();
    assert!((10..20).contains(&seconds), "took {seconds} s");
    assert_eq!(seen(&world, &cvm).await.last_stop, Some(LastStop::Forced));
}

#[tokio::test(start_paused = true)]
async fn a_node_that_lies_does_not_make_an_update_succeed() {
    let world = World::start().await;
    let cvm = world.deploy("web-one", "web:1").await;
    plan(&world, Fault::Lie, true);
    let id = world.accept_update(&cvm, new_image()).await;
    world.settle().await;
    assert_eq!(failed(&world.operation(id)).0, FailCode::BootFailed);
    assert_eq!(world.cvm(&cvm).status, Status::Running);
    assert_eq!(seen(&world, &cvm).await.size.memory_mb, 2048);
}

#[tokio::test(start_paused = true)]
async fn a_flipped_byte_on_the_node_does_not_make_an_update_succeed() {
    let world = World::start().await;
    let cvm = world.deploy("web-one", "web:1").await;
    let id = world.accept_update(&cvm, CvmPatch { memory: Sparse::Value(4096), ..CvmPatch::default() }).await;
    world.sim.corrupt_compose(cvm.vm_uuid).expect("corrupted");
    // Every copy that the node holds is damaged, staged ones too, until it gets the text again.
    let probe = CorruptAfterStage(&world);
    world.settle_with(&probe).await;
    assert_eq!(failed(&world.operation(id)).0, FailCode::BootFailed);
    let spec = world.app.store.spec(cvm.id, world.cvm(&cvm).revision).expect("the spec");
    assert_eq!(seen(&world, &cvm).await.compose_hash, spec.compose.hash, "the put-back mends it");
}

struct CorruptAfterStage<'a>(&'a World);

#[async_trait::async_trait]
impl casemate_server::workflow::worker::Probe for CorruptAfterStage<'_> {
    async fn reached(
        &self,
        operation: &Operation,
        step: casemate_server::workflow::operation::StepName,
        moment: casemate_server::workflow::worker::Moment,
    ) -> bool {
        use casemate_server::workflow::operation::StepName;
        use casemate_server::workflow::worker::Moment;
        if (operation.kind, step, moment) == (Kind::Update, StepName::Apply, Moment::Between) {
            let cvm = self.0.app.store.cvm(operation.cvm_id).expect("the CVM is there");
            self.0.sim.corrupt_compose(cvm.vm_uuid).expect("corrupted");
        }
        true
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_has_one_effect() {
    let world = World::start().await;
    let cvm = world.deploy("web-one", "web:1").await;
    plan(&world, Fault::AnswerLost, false);
    let id = world.accept_update(&cvm, new_image()).await;
    world.settle().await;
    assert_eq!(world.operation(id).state.name(), "succeeded");
    assert_eq!(world.sim.effects(cvm.vm_uuid)[2..], ["stop", "apply", "start"]);
    assert_eq!(seen(&world, &cvm).await.boot_count, 2);
}

#[tokio::test(start_paused = true)]
async fn a_put_back_is_never_put_back() {
    let world = World::start().await;
    let cvm = world.deploy("web-one", "web:1").await;
    plan(&world, Fault::BootFail { image: None, env: None }, false);
    let id = world.accept_update(&cvm, new_image()).await;
    world.settle().await;
    let put_back = failed(&world.operation(id)).2.expect("names its put-back");
    let (_, _, next) = failed(&world.operation(put_back));
    assert_eq!(next, None);
    let now = world.cvm(&cvm);
    assert_eq!(now.status, Status::Error);
    assert!(now.boot_error.is_some());
    world.assert_accounts().await;
}

#[tokio::test(start_paused = true)]
async fn a_start_that_fails_is_not_put_back() {
    let world = World::start().await;
    let cvm = world.deploy("web-one", "web:1").await;
    power::stop(&world.app, world.cvm(&cvm), world.author()).await.expect("accepted");
    world.settle().await;
    let update = world.accept_update(&cvm, new_image()).await;
    world.settle().await;
    assert_eq!(
        world.operation(update).state.name(),
        "succeeded",
        "for a machine that is off, applied is enough"
    );
    assert_eq!(world.cvm(&cvm).status, Status::Stopped);
    plan(&world, Fault::BootFail { image: None, env: None }, true);
    let start = power::start(&world.app, world.cvm(&cvm), world.author()).await.expect("accepted");
    world.settle().await;
    assert_eq!(failed(&world.operation(start.operation.id)).2, None);
    assert_eq!(world.cvm(&cvm).status, Status::Error);
    world.assert_accounts().await;
}

/// The node starts the machine once more, with what `change` makes of its current spec. Nobody asked it to.
async fn start_by_itself(world: &World, cvm: &Cvm, generation: u64, change: impl FnOnce(&mut Machine)) {
    let now = world.cvm(cvm);
    let spec = world.app.store.spec(cvm.id, now.revision).expect("the spec");
    let instance_id = spec.instance_id(&now.app_id);
    let mut machine = Machine {
        name: now.name,
        app_id: now.app_id,
        instance_id,
        revision: now.revision,
        spec,
        images: vec![],
    };
    change(&mut machine);
    let at = At { vm: cvm.vm_uuid, generation };
    world.sim.ensure_staged(at, &machine).await.expect("staged");
    world.sim.ensure_stopped(at, Stop::Force).await.expect("off");
    world.sim.ensure_applied(at, &machine).await.expect("applied");
    world.sim.ensure_started(at).await.expect("started");
    world.clock.sleep(std::time::Duration::from_secs(60)).await;
    assert_eq!(seen(world, cvm).await.guest, Guest::Done);
}

/// Compares the node with the store several times, and works on what follows.
async fn look_again_and_again(world: &World) {
    for _ in 0..3 {
        reconcile::once(&world.app).await;
        world.settle().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_comes_up_after_all_needs_nobody_any_more() {
    let world = World::start().await;
    let cvm = world.deploy("web-one", "web:1").await;
    plan(&world, Fault::BootFail { image: None, env: None }, true);
    let restart = power::restart(&world.app, world.cvm(&cvm), false, world.author()).await.expect("accepted");
    world.settle().await;
    assert_eq!(failed(&world.operation(restart.operation.id)).0, FailCode::BootFailed);
    look_again_and_again(&world).await;
    let error = world.cvm(&cvm);
    assert_eq!((error.status, error.generation), (Status::Error, 2), "it is not up");

    start_by_itself(&world, &cvm, 10, |machine| machine.spec.memory_mb += 1024).await;
    look_again_and_again(&world).await;
    assert_eq!(world.cvm(&cvm), error, "it is not what was wanted");

    start_by_itself(&world, &cvm, 11, |_| ()).await;
    let boots = seen(&world, &cvm).await.boot_count;
    reconcile::once(&world.app).await;
    assert_eq!(world.cvm(&cvm), error, "it may go down at once");
    reconcile::once(&world.app).await;
    let recover = world.cvm(&cvm).open.expect("always by an operation");
    assert_eq!(recover.kind, Kind::Recover);
    world.settle().await;
    let now = world.cvm(&cvm);
    assert_eq!((now.status, now.boot_error), (Status::Running, None));
    assert_eq!(seen(&world, &cvm).await.boot_count, boots, "it was only looked at");
    world.assert_events(recover.id);
    world.assert_accounts().await;
    look_again_and_again(&world).await;
    assert_eq!(world.cvm(&cvm).generation, 3, "as it should be: nothing to mend");
}

#[tokio::test(start_paused = true)]
async fn what_is_held_on_purpose_stays_held_when_it_comes_up() {
    let world = World::start().await;
    let cvm = world.deploy("web-one", "web:1").await;
    plan(&world, Fault::BootFail { image: None, env: None }, true);
    let patch = CvmPatch { on_failure: Sparse::Value(OnFailure::Hold), ..new_image() };
    world.accept_update(&cvm, patch).await;
    world.settle().await;
    let error = world.cvm(&cvm);
    assert_eq!(error.status, Status::Error);
    start_by_itself(&world, &cvm, 10, |_| ()).await;
    look_again_and_again(&world).await;
    assert_eq!(world.cvm(&cvm), error);
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_crashed_is_started_again_and_one_that_is_off_stays_off() {
    let world = World::start().await;
    let on = world.deploy("web-one", "web:1").await;
    let off = world.deploy("web-two", "web:1").await;
    power::stop(&world.app, world.cvm(&off), world.author()).await.expect("accepted");
    world.settle().await;
    plan(&world, Fault::Crash, true);
    reconcile::once(&world.app).await;
    world.settle().await;
    let (on_now, off_now) = (world.cvm(&on), world.cvm(&off));
    assert_eq!((on_now.status, on_now.power), (Status::Running, Power::On));
    assert_eq!((off_now.status, off_now.power), (Status::Stopped, Power::Off));
    assert_eq!(seen(&world, &on).await.boot_count, 2);
    reconcile::once(&world.app).await;
    assert_eq!(world.cvm(&on).open, None, "as it should be: nothing to mend");
}

#[tokio::test(start_paused = true)]
async fn an_update_of_a_crashed_machine_ends_with_a_started_one() {
    let world = World::start().await;
    let cvm = world.deploy("web-one", "web:1").await;
    plan(&world, Fault::Crash, true);
    let id = world.accept_update(&cvm, new_image()).await;
    world.settle().await;
    assert_eq!(world.operation(id).state.name(), "succeeded");
    assert_eq!(seen(&world, &cvm).await.guest, Guest::Done);
}

#[tokio::test(start_paused = true)]
async fn cancel_works_until_the_stop_began() {
    let world = World::start().await;
    let cvm = world.deploy("web-one", "web:1").await;
    let id = world.accept_update(&cvm, new_image()).await;
    power::cancel(&world.app, id, world.author()).await.expect("nothing was touched");
    let now = world.cvm(&cvm);
    assert_eq!((now.status, now.open, now.booked.memory_mb), (Status::Running, None, 2048));
    plan(&world, Fault::SlowStop { seconds: 30 }, true);
    let id = world.accept_update(&cvm, new_image()).await;
    let app = world.app.clone();
    let work = world.claim(1).await.pop().expect("is due");
    let worker = tokio::spawn(async move { carry(&app, work, &NoProbe).await });
    world.clock.sleep(std::time::Duration::from_secs(5)).await;
    let refused =
        power::cancel(&world.app, id, world.author()).await.expect_err("the guest was asked to go down");
    assert!(refused.to_string().contains("stop"), "{refused}");
    worker.await.expect("the worker does not panic");
    world.settle().await;
    assert_eq!(world.operation(id).state.name(), "succeeded");
}

#[tokio::test(start_paused = true)]
async fn many_updates_keep_the_accounts() {
    let world = World::start().await;
    let cvm = world.deploy("web-one", "web:1").await;
    for round in 0..250_u32 {
        if round % 5 == 0 {
            plan(&world, Fault::BootFail { image: None, env: None }, true);
        }
        let patch = CvmPatch {
            memory: Sparse::Value(1024 + 512 * (round % 7)),
            vcpu: Sparse::Value(1 + round % 4),
            force_restart: Sparse::Value(true),
            ..CvmPatch::default()
        };
        world.accept_update(&cvm, patch).await;
        world.settle().await;
        world.assert_accounts().await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_old_image_that_is_gone_from_the_node_does_not_come_back() {
    let world = World::start().await;
    let cvm = world.deploy("web-one", "web:1").await;
    let facts = world.app.node(cvm.node_id).expect("a node").facts();
    let old = world.app.store.spec(cvm.id, 1).expect("the spec").image;
    let other = facts.images.iter().find(|image| image.name != old && !image.is_dev && !image.requires_gpu);
    let other = other.expect("another image").name.clone();
    let mut left = (*facts).clone();
    left.images.retain(|image| image.name != old);
    world.sim.set_facts(left);
    plan(&world, Fault::BootFail { image: Some(other.clone()), env: None }, false);
    let patch = CvmPatch { image: Sparse::Value(other), ..CvmPatch::default() };
    let id = world.accept_update(&cvm, patch).await;
    world.settle().await;
    let (code, message, put_back) = failed(&world.operation(id));
    assert_eq!((code, put_back), (FailCode::BootFailed, None), "{message}");
    assert!(message.contains(&old), "says why it was not put back: {message}");
    assert_eq!((world.cvm(&cvm).status, world.cvm(&cvm).open), (Status::Error, None));
    world.assert_events(id);
}

#[tokio::test(start_paused = true)]
async fn what_the_server_mends_by_itself_has_no_author() {
    let world = World::start().await;
    let cvm = world.deploy("web-one", "web:1").await;
    plan(&world, Fault::Crash, true);
    reconcile::once(&world.app).await;
    let open = world.cvm(&cvm).open.expect("it is being recovered");
    let events = world.app.store.events(world.actor.workspace_id, Of::Operation(open.id), 0, 100);
    let accepted = events.expect("reads").remove(0);
    assert_eq!((accepted.kind.as_str(), accepted.username), ("operation.accepted", None));
    assert_eq!(world.operation(open.id).user_id, None);
    world.settle().await;
    assert_eq!(world.cvm(&cvm).status, Status::Running);
}

#[tokio::test(start_paused = true)]
async fn an_operation_that_does_not_read_back_keeps_nobody_waiting() {
    let world = World::start().await;
    let (broken, sound) = (world.deploy("web-one", "web:1").await, world.deploy("web-two", "web:1").await);
    let lost = world.accept_update(&broken, new_image()).await;
    let kept = world.accept_update(&sound, new_image()).await;
    let store = rusqlite::Connection::open(world.folder().join("casemate.db")).expect("the store");
    let damaged =
        store.execute("UPDATE operation SET steps = 'nonsense' WHERE id = ?", [lost.0]).expect("written");
    assert_eq!(damaged, 1);
    world.settle().await;
    assert_eq!(world.operation(kept).state.name(), "succeeded");
    let (code, _, put_back) = failed(&world.operation(lost));
    assert_eq!((code, put_back), (FailCode::Unreadable, None));
    assert_eq!((world.cvm(&broken).status, world.cvm(&broken).open), (Status::Error, None));
    world.assert_events(lost);
    power::delete(&world.app, world.cvm(&broken), world.author()).await.expect("its owner can go on");
    world.settle().await;
    world.assert_accounts().await;
}
