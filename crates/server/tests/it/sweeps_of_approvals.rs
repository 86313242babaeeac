//! Whatever a yes on chain leads to survives every interruption, whoever commits it: at each step, as a crash, as a worker that
//! is only late, and when somebody ends it half way. One approval is one operation, and it is never lost.

use std::pin::pin;

use casemate_server::app::App;
use casemate_server::cvm::state::{Cvm, Power, Status};
use casemate_server::driver::Driver;
use casemate_server::driver::fault::{Fault, Planned};
use casemate_server::store::{ApprovalState, OperationFilter};
use casemate_server::workflow::auto_commit::once;
use casemate_server::workflow::operation::{FailCode, Kind, Operation, State};
use casemate_server::workflow::power;
use casemate_server::workflow::worker::Moment;
use casemate_testkit::{Interrupter, Interruption, Place, Recorder, compose};
use casemate_types::ids::ComposeHash;
use serde_json::{Value, json};

use crate::approvals::{Stage, TX, detail, hash, text};
use crate::client::{Answer, Client};

/// Who commits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    /// Its owner, by the hash.
    Hash,
    /// Whoever has the token.
    Token,
    /// The server.
    Itself,
}

/// What is committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Update,
    /// Of a machine that is off.
    UpdateOfOff,
    /// It does not boot, and is put back.
    NotBooting,
    /// It does not boot, and what ran before is no longer allowed.
    NotBootingAndNoWayBack,
    /// The contract has changed its mind before anybody began.
    Revoked,
    Rollback,
    Replica,
}

const ALL: [(What, &[By]); 7] = [
    (What::Update, &[By::Hash, By::Token, By::Itself]),
    (What::UpdateOfOff, &[By::Token]),
    (What::NotBooting, &[By::Itself]),
    (What::NotBootingAndNoWayBack, &[By::Token]),
    (What::Revoked, &[By::Itself]),
    (What::Rollback, &[By::Hash]),
    (What::Replica, &[By::Token, By::Itself]),
];

/// An approval that was just committed.
struct Case {
    what: What,
    stage: Stage,
    path: String,
    /// The CVM that the operation works on.
    cvm: Cvm,
    /// Effects on its machine before.
    before: usize,
    /// Operations before.
    operations: usize,
}

/// An approval that could be committed.
struct Open {
    stage: Stage,
    path: String,
    asked: ComposeHash,
    token: Option<String>,
}

impl Open {
    async fn of(what: What, by: By) -> Self {
        let stage = Stage::start().await;
        match what {
            What::UpdateOfOff => {
                stage.client.post(&stage.path("/stop"), json!({})).await.expect(200);
                stage.world.settle().await;
            }
            What::Rollback => {
                let asked = stage.ask(json!({ "public_logs": false })).await;
                stage.chain.allow_hash(stage.cvm.app_id, asked);
                stage.confirm(asked, "").await.expect(202);
                stage.world.settle().await;
            }
            What::Replica => stage.chain.forbid_device(stage.cvm.app_id, &stage.device()),
            What::Update | What::NotBooting | What::NotBootingAndNoWayBack | What::Revoked => {}
        }
        let client = match by {
            By::Hash => stage.client.header("x-other", "none"),
            By::Token => stage.client.header("x-prepare-only", "true"),
            By::Itself => stage.client.header("x-auto-commit", "true"),
        };
        let answer = ask(&stage, &client, what).await;
        let details = answer.json()["details"].to_string();
        let token = details.contains("commit_token").then(|| text(&detail(&answer, "commit_token")));
        let path = format!("/approvals/{}", text(&detail(&answer, "approval_id")));
        let asked = hash(&answer);
        stage.register(TX, asked);
        stage.chain.allow_device(stage.cvm.app_id, &stage.device());
        Self { stage, path, asked, token }
    }

    /// Commits it in this process of the server. What was answered, if anybody was.
    async fn commit(&self, by: By, what: What, app: &App) -> Option<Answer> {
        let client = self.stage.client.at(app.clone());
        match by {
            By::Hash => {
                let client = client.header("x-compose-hash", self.asked.to_string());
                let client = client.header("x-transaction-hash", TX.to_string());
                Some(client.patch(&self.stage.path(""), json!({})).await)
            }
            By::Token => {
                let body = json!({ "token": self.token, "transaction_hash": format!("0x{TX}") });
                Some(match what {
                    What::Replica => client.post(&self.stage.path("/commit-replica"), body).await,
                    _ => client.nobody().post(&self.stage.path("/commit-update"), body).await,
                })
            }
            By::Itself => {
                once(app).await;
                None
            }
        }
    }

    /// Live operations and those that are over, the newest first.
    fn operations(&self) -> Vec<Operation> {
        operations(&self.stage)
    }
}

fn operations(stage: &Stage) -> Vec<Operation> {
    let filter = OperationFilter { limit: 100, ..Default::default() };
    stage.world.app.store.operations(stage.world.actor.workspace_id, &filter).expect("reads")
}

async fn ask(stage: &Stage, client: &Client, what: What) -> Answer {
    match what {
        What::Replica => client.post(&stage.path("/replicas"), json!({})).await,
        What::Rollback => client.post(&stage.path("/rollback"), json!({ "revision": 1 })).await,
        _ => {
            let body = json!({ "docker_compose_file": compose("web:2"), "memory": 4096 });
            client.patch(&stage.path(""), body).await
        }
    }
}

async fn forbid(stage: &Stage, revision: u64) {
    stage.chain.forbid_hash(stage.cvm.app_id, stage.hash_of(revision));
}

impl Case {
    async fn begin(what: What, by: By) -> Self {
        let open = Open::of(what, by).await;
        let world = &open.stage.world;
        let known = open.operations().len();
        let before = world.sim.effects(open.stage.cvm.vm_uuid).len();
        if let Some(answer) = open.commit(by, what, &world.app).await {
            assert!(answer.status.is_success(), "{what:?} by {by:?}: {}", answer.text());
        }
        let Open { stage, path, .. } = open;
        let made = operations(&stage);
        assert_eq!(made.len(), known + 1, "{what:?} by {by:?} is committed");
        let cvm = stage.world.app.store.cvm(made[0].cvm_id).expect("the CVM");
        match what {
            What::NotBooting | What::NotBootingAndNoWayBack => {
                let fault = Fault::BootFail { image: None, env: None };
                stage.world.sim.plan(Planned { fault, once: true, vm: None }).expect("planned");
            }
            What::Revoked => forbid(&stage, 2).await,
            What::Update | What::UpdateOfOff | What::Rollback | What::Replica => {}
        }
        if what == What::NotBootingAndNoWayBack {
            forbid(&stage, 1).await;
        }
        let before = if what == What::Replica { 0 } else { before };
        Self { what, stage, path, cvm, before, operations: known }
    }

    async fn places(what: What, by: By) -> Vec<Place> {
        let case = Self::begin(what, by).await;
        let recorder = Recorder::default();
        case.stage.world.settle_with(&recorder).await;
        let places = recorder.places();
        let (kinds, power): (&[Kind], _) = match what {
            What::Update | What::NotBootingAndNoWayBack => (&[Kind::Update], Power::On),
            What::UpdateOfOff => (&[Kind::Update], Power::Off),
            What::NotBooting => (&[Kind::Update, Kind::PutBack], Power::On),
            What::Rollback => (&[Kind::Rollback], Power::On),
            What::Replica => (&[Kind::Create], Power::On),
            What::Revoked => (&[], Power::On),
        };
        for &kind in kinds {
            for &step in kind.steps(power) {
                for moment in [Moment::Before, Moment::Between] {
                    let place = Place { kind, step, moment };
                    assert!(places.contains(&place), "{what:?} by {by:?}: {place:?} was not reached");
                }
            }
        }
        assert!(!places.is_empty(), "{what:?} by {by:?}");
        places
    }

    /// Another process looks again for what is to be committed; then everything is at rest.
    async fn look_again(&self) {
        let again = self.stage.world.restarted().await;
        once(&again).await;
        once(&self.stage.world.app).await;
        self.stage.world.settle().await;
    }

    /// The operation of the approval, which is the only one beside a put-back.
    fn operation(&self, about: &str) -> Operation {
        let id = self.path.rsplit('/').next().and_then(|id| id.parse().ok()).expect("an id");
        let approval = self.stage.world.app.store.approval(id).expect("reads").expect("it is kept");
        let ApprovalState::Committed(id) = approval.state else { panic!("{about}: {:?}", approval.state) };
        let mut made = operations(&self.stage);
        made.truncate(made.len() - self.operations);
        made.retain(|operation| ![Kind::PutBack, Kind::Stop, Kind::Delete].contains(&operation.kind));
        let ids: Vec<_> = made.iter().map(|operation| operation.id).collect();
        assert_eq!(ids, [id], "{about}: one operation for one approval");
        assert!(operations(&self.stage).iter().all(|operation| !operation.state.is_open()), "{about}");
        made.remove(0)
    }

    async fn check(&self, about: &str) {
        let (world, what) = (&self.stage.world, self.what);
        let operation = self.operation(about);
        let effects = world.sim.effects(self.cvm.vm_uuid);
        let restart = ["stop", "apply", "start"];
        let wanted: &[&str] = match what {
            What::Update | What::NotBootingAndNoWayBack | What::Rollback => &restart,
            What::UpdateOfOff => &["apply"],
            What::NotBooting => &["stop", "apply", "start", "stop", "apply", "start"],
            What::Revoked => &[],
            What::Replica => &["apply", "start"],
        };
        assert_eq!(effects[self.before..], *wanted, "{about}");
        let failed = match &operation.state {
            State::Failed { reason, put_back, .. } => Some((reason.code, put_back.is_some())),
            _ => None,
        };
        let (status, wanted) = match what {
            What::Update | What::Rollback | What::Replica => (Status::Running, None),
            What::UpdateOfOff => (Status::Stopped, None),
            What::NotBooting => (Status::Running, Some((FailCode::BootFailed, true))),
            What::NotBootingAndNoWayBack => (Status::Error, Some((FailCode::BootFailed, false))),
            What::Revoked => (Status::Running, Some((FailCode::NotAllowed, false))),
        };
        assert_eq!((world.cvm(&self.cvm).status, failed), (status, wanted), "{about}");
        world.assert_accounts().await;
        world.assert_events(operation.id);
    }
}

/// Interrupts every case at every place.
async fn sweep(how: Interruption) {
    for (what, bys) in ALL {
        for by in bys {
            let case = Case::begin(what, *by).await;
            case.stage.world.settle().await;
            case.check(&format!("{what:?} by {by:?}")).await;
            for place in Case::places(what, *by).await {
                let about = format!("{what:?} by {by:?} with {how:?} at {place:?}");
                let case = Case::begin(what, *by).await;
                let interrupter = Interrupter::new(&case.stage.world, place, how);
                case.stage.world.settle_with(&interrupter).await;
                case.look_again().await;
                assert!(interrupter.has_struck(), "{about}");
                case.check(&about).await;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn whatever_was_approved_survives_a_crash_anywhere() {
    sweep(Interruption::Crash).await;
}

#[tokio::test(start_paused = true)]
async fn whatever_was_approved_survives_a_late_worker_anywhere() {
    sweep(Interruption::Late).await;
}

#[tokio::test(start_paused = true)]
async fn whatever_was_approved_survives_being_overtaken_anywhere() {
    sweep(Interruption::Overtaken).await;
}

/// What was stopped or deleted half way is not committed a second time, by whomever.
#[tokio::test(start_paused = true)]
async fn what_was_ended_half_way_is_not_committed_again() {
    for how in [Interruption::Stop, Interruption::Delete] {
        for (what, bys) in ALL {
            for by in bys {
                for place in Case::places(what, *by).await {
                    let about = format!("{what:?} by {by:?} with {how:?} at {place:?}");
                    let case = Case::begin(what, *by).await;
                    let world = &case.stage.world;
                    world.settle_with(&Interrupter::new(world, place, how)).await;
                    case.look_again().await;
                    case.operation(&about);
                    let machines = world.sim.observe(&[case.cvm.vm_uuid]).await.expect("the node answers");
                    match how {
                        Interruption::Delete => {
                            assert!(world.app.store.cvm(case.cvm.id).is_err(), "{about}");
                            assert!(machines.is_empty(), "{about}");
                        }
                        _ => {
                            let now = world.cvm(&case.cvm);
                            assert_eq!((now.status, now.power), (Status::Stopped, Power::Off), "{about}");
                            // It can be started again with what is in force.
                            if what != What::NotBootingAndNoWayBack {
                                world.sim.clear().expect("cleared");
                                power::start(&world.app, now, world.author()).await.expect("accepted");
                                world.settle().await;
                                assert_ne!(world.cvm(&case.cvm).status, Status::Starting, "{about}");
                            }
                        }
                    }
                    world.assert_accounts().await;
                }
            }
        }
    }
}

/// Two processes, one of them late, both with a proof that holds: one operation.
#[tokio::test(start_paused = true)]
async fn of_two_that_commit_at_once_one_does() {
    let cases = [What::Update, What::UpdateOfOff, What::Rollback, What::Replica];
    for what in cases {
        for (one, other) in [
            (By::Token, By::Token),
            (By::Token, By::Itself),
            (By::Itself, By::Token),
            (By::Itself, By::Itself),
            (By::Hash, By::Itself),
            (By::Token, By::Hash),
        ] {
            let of_replica = what == What::Replica;
            // A replica has no confirmation by its hash, a rollback no token.
            if (of_replica && [one, other].contains(&By::Hash))
                || (what == What::Rollback && [one, other].contains(&By::Token))
            {
                continue;
            }
            let about = format!("{what:?} by {one:?} and {other:?}");
            let open = both(what).await;
            let world = &open.stage.world;
            let (known, before) = (open.operations().len(), world.sim.effects(open.stage.cvm.vm_uuid).len());
            let late = world.restarted().await;
            open.stage.chain.hold();
            let mut first = pin!(open.commit(one, what, &late));
            let mut second = pin!(open.commit(other, what, &world.app));
            assert!(futures_util::poll!(&mut first).is_pending(), "{about}: it asks the chain");
            assert!(futures_util::poll!(&mut second).is_pending(), "{about}: it asks the chain");
            open.stage.chain.let_go();
            let (first, second) = tokio::join!(first, second);
            let answers: Vec<_> = first.iter().chain(&second).collect();
            let accepted = answers.iter().filter(|answer| answer.status.is_success()).count();
            assert!(accepted <= 1, "{about}");
            for refused in answers.iter().filter(|answer| !answer.status.is_success()) {
                assert!([400, 409, 466].contains(&refused.status.as_u16()), "{about}: {}", refused.text());
            }
            once(&world.app).await;
            world.settle().await;
            once(&late).await;
            world.settle().await;
            assert_eq!(open.operations().len(), known + 1, "{about}");
            assert_eq!(open.stage.client.json(&open.path).await["state"], "committed", "{about}");
            let effects = world.sim.effects(open.stage.cvm.vm_uuid).len() - before;
            let restart = if what == What::UpdateOfOff { 1 } else { 3 };
            assert_eq!(effects, if of_replica { 0 } else { restart }, "{about}");
            world.assert_accounts().await;
        }
    }
}

/// An approval with a token that also commits itself.
async fn both(what: What) -> Open {
    let mut open = Open::of(what, if what == What::Rollback { By::Itself } else { By::Token }).await;
    let on = open.stage.client.post(&format!("{}/auto-commit", open.path), json!({})).await.expect(200);
    assert_eq!(on["auto_commit"], true);
    if what == What::Rollback {
        open.token = None;
    }
    open
}

/// The process dies while the chain is asked: nothing is used up, and whoever commits next does.
#[tokio::test(start_paused = true)]
async fn a_crash_while_the_chain_is_asked_uses_nothing_up() {
    for (what, bys) in ALL {
        for by in bys {
            let about = format!("{what:?} by {by:?}");
            let open = Open::of(what, *by).await;
            let world = &open.stage.world;
            let known = open.operations().len();
            open.stage.chain.hold();
            {
                let mut dies = pin!(open.commit(*by, what, &world.app));
                assert!(futures_util::poll!(&mut dies).is_pending(), "{about}: it asks the chain");
            }
            open.stage.chain.let_go();
            assert_eq!(open.stage.client.json(&open.path).await["state"], "open", "{about}");
            assert_eq!(open.operations().len(), known, "{about}");
            let again = world.restarted().await;
            if let Some(answer) = open.commit(*by, what, &again).await {
                assert!(answer.status.is_success(), "{about}: {}", answer.text());
            }
            world.settle().await;
            assert_eq!(open.operations().len(), known + 1, "{about}");
            let approval: Value = open.stage.client.json(&open.path).await;
            assert_eq!(approval["state"], "committed", "{about}");
        }
    }
}
