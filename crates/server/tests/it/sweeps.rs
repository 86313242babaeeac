//! Every workflow survives every interruption: at each step, before its call, between call and record, and after; as a crash
//! and as a worker that is only late. The places are found by running the workflow once, so a new step is covered the day it
//! is written.

use casemate_server::cvm::plan::Wish;
use casemate_server::cvm::state::{Cvm, Power, Status};
use casemate_server::driver::fault::{Fault, Planned};
use casemate_server::driver::{Driver, Guest};
use casemate_server::workflow::operation::{Kind, State, StepName};
use casemate_server::workflow::update::{Outcome, Request};
use casemate_server::workflow::worker::Moment;
use casemate_server::workflow::{power, update};
use casemate_testkit::{Interrupter, Interruption, Place, Recorder, World, compose};
use casemate_types::patch::{CvmPatch, Sparse};

/// Something that is asked of a deployed CVM, and what has to come of it.
struct Scenario {
    name: &'static str,
    /// What it was before.
    off: bool,
    faults: &'static [fn() -> Fault],
    ask: Ask,
    /// Steps that have to be among the places.
    kinds: &'static [Kind],
    effects: &'static [&'static str],
    status: Status,
    outcome: &'static str,
    /// Memory of the machine in the end; absent when it is gone.
    memory_mb: Option<u32>,
}

#[derive(Clone, Copy)]
enum Ask {
    Create,
    Update,
    Refresh,
    Rollback,
    Start,
    Stop,
    Shutdown,
    Restart,
    Delete,
}

fn scenarios() -> Vec<Scenario> {
    let plain = Scenario {
        name: "",
        off: false,
        faults: &[],
        ask: Ask::Update,
        kinds: &[],
        effects: &[],
        status: Status::Running,
        outcome: "succeeded",
        memory_mb: Some(2048),
    };
    vec![
        Scenario {
            name: "create",
            ask: Ask::Create,
            kinds: &[Kind::Create],
            effects: &["apply", "start"],
            ..plain
        },
        Scenario {
            name: "update",
            kinds: &[Kind::Update],
            effects: &["stop", "apply", "start"],
            memory_mb: Some(4096),
            ..plain
        },
        Scenario {
            name: "update of a machine that is off",
            off: true,
            kinds: &[Kind::Update],
            effects: &["apply"],
            status: Status::Stopped,
            memory_mb: Some(4096),
            ..plain
        },
        Scenario {
            name: "update that does not boot",
            faults: &[|| Fault::BootFail { image: None, env: None }],
            kinds: &[Kind::Update, Kind::PutBack],
            effects: &["stop", "apply", "start", "stop", "apply", "start"],
            outcome: "failed",
            ..plain
        },
        Scenario {
            name: "a new instance id",
            ask: Ask::Refresh,
            kinds: &[Kind::RefreshInstanceId],
            effects: &["stop", "apply", "start"],
            ..plain
        },
        Scenario {
            name: "rollback that does not boot",
            ask: Ask::Rollback,
            faults: &[|| Fault::BootFail { image: None, env: None }],
            kinds: &[Kind::Rollback, Kind::PutBack],
            effects: &["stop", "apply", "start", "stop", "apply", "start"],
            outcome: "failed",
            memory_mb: Some(4096),
            ..plain
        },
        Scenario {
            name: "rollback",
            ask: Ask::Rollback,
            kinds: &[Kind::Rollback],
            effects: &["stop", "apply", "start"],
            ..plain
        },
        Scenario {
            name: "restart",
            ask: Ask::Restart,
            kinds: &[Kind::Restart],
            effects: &["stop", "start"],
            ..plain
        },
        Scenario {
            name: "start",
            off: true,
            ask: Ask::Start,
            kinds: &[Kind::Start],
            effects: &["start"],
            ..plain
        },
        Scenario {
            name: "stop",
            ask: Ask::Stop,
            kinds: &[Kind::Stop],
            effects: &["stop"],
            status: Status::Stopped,
            ..plain
        },
        Scenario {
            name: "shutdown",
            ask: Ask::Shutdown,
            kinds: &[Kind::Shutdown],
            effects: &["stop"],
            status: Status::Stopped,
            ..plain
        },
        Scenario {
            name: "delete",
            ask: Ask::Delete,
            kinds: &[Kind::Delete],
            effects: &["remove"],
            memory_mb: None,
            ..plain
        },
    ]
}

async fn accept(world: &World, cvm: Cvm, kind: Kind, wish: Wish) {
    let request =
        Request { wish, kind, if_match: None, author: world.author(), receipt: None, auto_commit: false };
    let outcome = update::accept(&world.app, cvm, request).await.expect("accepted");
    assert!(matches!(outcome, Outcome::Accepted(_)), "{outcome:?}");
}

impl Scenario {
    /// A world in which the request was just accepted.
    async fn begin(&self) -> (World, Cvm, usize) {
        let world = World::start().await;
        let cvm = match self.ask {
            Ask::Create => world.create("web-one", "web:1").await,
            _ => world.deploy("web-one", "web:1").await,
        };
        if self.off {
            power::stop(&world.app, world.cvm(&cvm), world.author()).await.expect("accepted");
            world.settle().await;
        }
        let patch = || CvmPatch {
            memory: Sparse::Value(4096),
            docker_compose_file: Sparse::Value(compose("web:2")),
            ..CvmPatch::default()
        };
        if matches!(self.ask, Ask::Rollback) {
            world.accept_update(&cvm, patch()).await;
            world.settle().await;
        }
        for fault in self.faults {
            world.sim.plan(Planned { fault: fault(), once: true, vm: None }).expect("planned");
        }
        let before = world.sim.effects(cvm.vm_uuid).len();
        let (app, now, author) = (&world.app, world.cvm(&cvm), world.author());
        match self.ask {
            Ask::Create => {}
            Ask::Update => drop(world.accept_update(&cvm, patch()).await),
            Ask::Refresh => {
                let wish = Wish { instance_seed: Some([9; 20]), ..Wish::default() };
                accept(&world, now, Kind::RefreshInstanceId, wish).await;
            }
            Ask::Rollback => {
                let first = app.store.spec(cvm.id, 1).expect("the first spec");
                let wish = Wish { content_of: Some((1, first)), ..Wish::default() };
                accept(&world, now, Kind::Rollback, wish).await;
            }
            Ask::Start => drop(power::start(app, now, author).await.expect("accepted")),
            Ask::Stop => drop(power::stop(app, now, author).await.expect("accepted")),
            Ask::Shutdown => drop(power::shutdown(app, now, author).await.expect("accepted")),
            Ask::Restart => drop(power::restart(app, now, false, author).await.expect("accepted")),
            Ask::Delete => power::delete(app, now, author).await.expect("accepted"),
        }
        (world, cvm, before)
    }

    async fn places(&self) -> Vec<Place> {
        let (world, ..) = self.begin().await;
        let recorder = Recorder::default();
        world.settle_with(&recorder).await;
        let places = recorder.places();
        for kind in self.kinds {
            let power = if self.off && *kind == Kind::Update { Power::Off } else { Power::On };
            for &step in kind.steps(power) {
                for moment in [Moment::Before, Moment::Between] {
                    let place = Place { kind: *kind, step, moment };
                    assert!(places.contains(&place), "{}: {place:?} was not reached", self.name);
                }
            }
        }
        places
    }

    async fn check(&self, world: &World, cvm: &Cvm, before: usize, what: &str) {
        let effects = world.sim.effects(cvm.vm_uuid);
        assert_eq!(effects[before..], *self.effects, "{what}");
        world.assert_accounts().await;
        let operations = world
            .app
            .store
            .operations(
                world.actor.workspace_id,
                &casemate_server::store::OperationFilter {
                    cvm_id: Some(cvm.id),
                    limit: 100,
                    ..Default::default()
                },
            )
            .expect("reads");
        for operation in &operations {
            assert!(!operation.state.is_open(), "{what}: {operation:?}");
            world.assert_events(operation.id);
        }
        let asked =
            operations.iter().find(|operation| operation.kind != Kind::PutBack).expect("there is one");
        assert_eq!(asked.state.name(), self.outcome, "{what}");
        let seen = world.sim.observe(&[cvm.vm_uuid]).await.expect("the node answers").pop();
        let Some(memory_mb) = self.memory_mb else {
            assert!(seen.is_none(), "{what}: {seen:?}");
            assert!(world.app.store.cvm(cvm.id).is_err(), "{what}");
            return;
        };
        let (seen, now) = (seen.expect("the machine is there"), world.cvm(cvm));
        assert_eq!(seen.size.memory_mb, memory_mb, "{what}");
        assert_eq!(now.status, self.status, "{what}");
        assert_eq!(seen.guest == Guest::Done, self.status == Status::Running, "{what}");
        let spec = world.app.store.spec(cvm.id, now.revision).expect("the current spec");
        assert_eq!(seen.compose_hash, spec.compose.hash, "{what}");
        assert_eq!(seen.revision, now.revision, "{what}");
        assert_eq!(Some(seen.instance_id), now.instance_id, "{what}");
        if let State::Failed { put_back, reason, .. } = &asked.state {
            assert!(put_back.is_some(), "{what}");
            let text = now.boot_error.expect("says what went wrong");
            assert!(text.contains(&asked.id.to_string()) && text.contains(&reason.message), "{what}: {text}");
        }
    }
}

async fn sweep(how: Interruption) {
    for scenario in scenarios() {
        let (world, cvm, before) = scenario.begin().await;
        world.settle().await;
        scenario.check(&world, &cvm, before, scenario.name).await;
        for place in scenario.places().await {
            let what = format!("{} with {how:?} at {place:?}", scenario.name);
            let (world, cvm, before) = scenario.begin().await;
            let interrupter = Interrupter::new(&world, place, how);
            world.settle_with(&interrupter).await;
            world.settle().await;
            assert!(interrupter.has_struck(), "{what}");
            scenario.check(&world, &cvm, before, &what).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn every_workflow_survives_a_crash_anywhere() {
    sweep(Interruption::Crash).await;
}

#[tokio::test(start_paused = true)]
async fn every_workflow_survives_a_late_worker_anywhere() {
    sweep(Interruption::Late).await;
}

#[tokio::test(start_paused = true)]
async fn every_workflow_survives_being_overtaken_anywhere() {
    sweep(Interruption::Overtaken).await;
}

/// Whoever ends an operation half way gets a machine that is entirely old or entirely new, and the store knows which.
#[tokio::test(start_paused = true)]
async fn a_stop_anywhere_settles_what_was_going_on() {
    for scenario in scenarios().into_iter().filter(|scenario| !matches!(scenario.ask, Ask::Delete)) {
        for place in scenario.places().await {
            let what = format!("{} stopped at {place:?}", scenario.name);
            let (world, cvm, _) = scenario.begin().await;
            world.settle_with(&Interrupter::new(&world, place, Interruption::Stop)).await;
            world.settle().await;
            let now = world.cvm(&cvm);
            assert_eq!((now.status, now.power, &now.open), (Status::Stopped, Power::Off, &None), "{what}");
            world.assert_accounts().await;
            let spec = world.app.store.spec(cvm.id, now.revision).expect("the current spec");
            match world.sim.observe(&[cvm.vm_uuid]).await.expect("the node answers").pop() {
                None => assert!(matches!(scenario.ask, Ask::Create), "{what}: the machine is gone"),
                Some(seen) => {
                    assert!(matches!(seen.guest, Guest::Off | Guest::Exited), "{what}: {:?}", seen.guest);
                    assert_eq!((seen.compose_hash, seen.size), (spec.compose.hash, spec.booking()), "{what}");
                    if now.instance_id.is_some() {
                        assert_eq!(now.instance_id, Some(seen.instance_id), "{what}");
                    }
                }
            }
            // It can be started again, whatever was interrupted.
            world.sim.clear().expect("cleared");
            power::start(&world.app, now, world.author()).await.expect("accepted");
            world.settle().await;
            assert_eq!(world.cvm(&cvm).status, Status::Running, "{what}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_delete_anywhere_leaves_nothing_behind() {
    for scenario in scenarios() {
        for place in scenario.places().await {
            let what = format!("{} deleted at {place:?}", scenario.name);
            let (world, cvm, _) = scenario.begin().await;
            world.settle_with(&Interrupter::new(&world, place, Interruption::Delete)).await;
            world.settle().await;
            assert!(world.app.store.cvm(cvm.id).is_err(), "{what}");
            assert_eq!(world.sim.inventory().await.expect("the node answers"), [], "{what}");
            world.assert_accounts().await;
        }
    }
}

#[test]
fn every_step_is_in_a_scenario() {
    let swept: Vec<StepName> = scenarios()
        .iter()
        .flat_map(|scenario| scenario.kinds.iter())
        .flat_map(|kind| [kind.steps(Power::On), kind.steps(Power::Off)].concat())
        .collect();
    for step in StepName::ALL {
        assert!(swept.contains(step), "no scenario has the step {step}");
    }
}
