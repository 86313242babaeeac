//! Workers: claim an operation with a lease, run a step, record it together with the beginning of the next.
//!
//! A signal wakes a worker sooner; the store says what to do; a lost signal is found when the next lease or wait ends. A worker
//! that dies or oversleeps is replaced when its lease ends, and what it still does then is refused by the store and the node.
//!
//! What waits for a guest holds nobody up: it gives its turn to talk back meanwhile, and a stop or a deletion, which wait for
//! nobody, are worked on in a lane of their own. Nor does a workspace with many guests that take their time, or a node that does
//! not answer: neither gets more than its share ([`super::shares`]) of what one process does at a time.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use casemate_types::ids::OperationId;
use tokio_util::sync::CancellationToken;

use super::operation::{Lane, Operation, StepName, aftermath};
use super::shares::{Place, Places};
use super::step::{self, Done, Trouble};
use crate::app::App;
use crate::store::{self, Claimed, Heard, Room, Work};

/// How long a claim holds without a sign of life.
pub const LEASE: Duration = Duration::from_secs(30);

/// How much one process does at a time, in each lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hands {
    /// Operations that talk to nodes. Shared by the nodes.
    pub talking: usize,
    /// These and the operations that wait for their guests. Bounds the memory they take. Shared by the workspaces.
    pub in_hand: usize,
}

impl Default for Hands {
    fn default() -> Self {
        Self { talking: 128, in_hand: 512 }
    }
}

/// How long a worker rests at most: bounds what a lost signal can cost.
const REST: Duration = Duration::from_secs(5);

/// The same while something is due that has no share free: something else may become due before anybody gives one back.
const REST_IN_A_CROWD: Duration = Duration::from_millis(500);

/// How long what wakes a worker in a crowd is gathered: with every accept it looks again whether there is room now.
const GATHER_IN_A_CROWD: Duration = Duration::from_millis(5);

/// A place in the life of a step where something can go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Moment {
    /// Nothing of the step has been done.
    Before,
    /// The node was called, and that was not recorded.
    Between,
    /// It was recorded, and the next step has not begun.
    After,
}

/// Lets a test stop a worker at an exact place.
#[async_trait]
pub trait Probe: Send + Sync {
    /// Called at every moment of every step. False: the worker dies here.
    async fn reached(&self, operation: &Operation, step: StepName, moment: Moment) -> bool;
}

/// Stops nobody.
pub struct NoProbe;

#[async_trait]
impl Probe for NoProbe {
    async fn reached(&self, _: &Operation, _: StepName, _: Moment) -> bool {
        true
    }
}

/// Works until `stop` is cancelled. A step in flight is left where it is: the next process goes on with it.
pub async fn run(app: App, probe: Arc<dyn Probe>, stop: CancellationToken) {
    run_with(app, probe, stop, Hands::default()).await;
}

/// As [`run`], with other bounds.
pub async fn run_with(app: App, probe: Arc<dyn Probe>, stop: CancellationToken, hands: Hands) {
    let lane = |lane| run_lane(app.clone(), lane, hands, Arc::clone(&probe), stop.clone());
    tokio::join!(lane(Lane::Urgent), lane(Lane::Ordinary));
}

async fn run_lane(app: App, lane: Lane, hands: Hands, probe: Arc<dyn Probe>, stop: CancellationToken) {
    let (in_hand, talking) = (Places::new(hands.in_hand), Places::new(hands.talking));
    let mut from = (0, 0);
    while !stop.is_cancelled() {
        let woken = app.woken(lane);
        let (workspaces, nodes) = (in_hand.shares(), talking.shares());
        let limit = workspaces.free().min(nodes.free());
        let rest = match claim(&app, lane, Room { limit, workspaces, nodes, from }).await {
            Ok(Claimed { work, next, crowded }) if work.is_empty() => {
                // Whoever is done next says so.
                let most = if crowded { REST_IN_A_CROWD } else { REST };
                let wait =
                    next.and_then(|next| Duration::try_from(next.duration_since(app.clock.now())).ok());
                Some((wait.unwrap_or(most).clamp(Duration::from_millis(1), most), crowded))
            }
            Ok(Claimed { work, .. }) => {
                for work in work {
                    from = (work.cvm.node_id, work.cvm.workspace_id + 1);
                    let place = in_hand.take(work.cvm.workspace_id).await;
                    let (app, probe, stop) = (app.clone(), Arc::clone(&probe), stop.clone());
                    // Now, so that the next claim knows of it.
                    let place_to_talk = talking.try_take(work.cvm.node_id);
                    let turn =
                        Turn { app: app.clone(), lane, talking: Arc::clone(&talking), place: place_to_talk };
                    tokio::spawn(async move {
                        stop.run_until_cancelled(carry_with(&app, work, probe.as_ref(), turn)).await;
                        drop(place);
                        app.wake(lane);
                    });
                }
                None
            }
            Err(error) => {
                tracing::error!(%error, "operations cannot be claimed");
                Some((REST, false))
            }
        };
        if let Some((rest, crowded)) = rest {
            tokio::select! {
                () = stop.cancelled() => {}
                () = woken => if crowded {
                    app.clock.sleep(GATHER_IN_A_CROWD).await;
                },
                () = app.clock.sleep(rest) => {}
            }
        }
    }
}

/// The right of one operation to talk to its node. It is given back while a guest takes its time.
struct Turn {
    app: App,
    lane: Lane,
    talking: Arc<Places>,
    place: Option<Place>,
}

impl Turn {
    async fn for_step(&mut self, work: &Work, step: StepName) {
        if work.operation.waits_for_guest(step) {
            if self.place.take().is_some() {
                self.app.wake(self.lane);
            }
        } else if self.place.is_none() {
            self.place = Some(self.talking.take(work.cvm.node_id).await);
        }
    }
}

async fn claim(app: &App, lane: Lane, room: Room) -> store::Result<Claimed> {
    if room.limit == 0 {
        return Ok(Claimed { crowded: true, ..Claimed::default() });
    }
    let now = app.clock.now();
    app.store.operation_claim(Some(lane), now, now + LEASE, room).await
}

/// Carries one claimed operation on until it ends, has to wait, or is in other hands.
pub async fn carry(app: &App, work: Work, probe: &dyn Probe) {
    let (lane, talking) = (work.operation.kind.lane(), Places::new(1));
    carry_with(app, work, probe, Turn { app: app.clone(), lane, talking, place: None }).await;
}

async fn carry_with(app: &App, mut work: Work, probe: &dyn Probe, mut turn: Turn) {
    while let Some(name) = work.operation.current_step().map(|step| step.name) {
        let operation = &work.operation;
        if !probe.reached(operation, name, Moment::Before).await {
            return;
        }
        let performed = async {
            turn.for_step(&work, name).await;
            step::perform(app, &work, name).await
        };
        let outcome = tokio::select! {
            outcome = performed => outcome,
            () = keep_claim(app, operation) => Err(Trouble::Lost),
        };
        let images = outcome.as_ref().map(|done| done.images.clone()).unwrap_or_default();
        if !probe.reached(operation, name, Moment::Between).await {
            return;
        }
        match record(app, operation, name, outcome).await {
            Ok(Some(next)) => {
                work.operation = next;
                if work.machine.images.is_empty() {
                    work.machine.images = images;
                }
            }
            Ok(None) => return,
            Err(store::Error::ClaimLost) => {
                tracing::info!(op.id = %operation.id, step = %name, "another worker has this operation now");
                return;
            }
            Err(error) => {
                // The lease ends, and the step is done again.
                tracing::error!(op.id = %operation.id, step = %name, %error, "a step was not recorded");
                return;
            }
        }
        if !probe.reached(&work.operation, name, Moment::After).await {
            return;
        }
    }
}

/// Records how a step ended. The operation, if its next step is now to be done.
async fn record(
    app: &App,
    operation: &Operation,
    name: StepName,
    outcome: Result<Done, Trouble>,
) -> store::Result<Option<Operation>> {
    let (id, held, now) = (operation.id, operation.held(), app.clock.now());
    match outcome {
        Ok(done) => {
            if let Some(why) = &done.hold {
                tracing::warn!(cvm.id = operation.cvm_id, op.id = %id, why, "the old spec could not come back");
            }
            let next = app.store.step_done(held, done, now).await?;
            tracing::info!(cvm.id = operation.cvm_id, op.id = %id, step = %name, attempt = operation.attempt,
                "step {name} of {id} finished");
            Ok(next.state.is_open().then_some(next))
        }
        Err(Trouble::Wait { what, detail }) => {
            let not_before = now + back_off(operation.attempt);
            tracing::warn!(cvm.id = operation.cvm_id, op.id = %id, step = %name, attempt = operation.attempt, detail,
                "step {name} of {id} waits for {what}");
            app.store.step_postpone(held, what, not_before, Heard::Nothing, now).await?;
            Ok(None)
        }
        Err(Trouble::AtWork { what }) => {
            tracing::info!(cvm.id = operation.cvm_id, op.id = %id, step = %name, "step {name} of {id} waits for {what}");
            app.store.step_postpone(held, what, now + AT_WORK_PAUSE, Heard::FromNode, now).await?;
            Ok(None)
        }
        Err(Trouble::Fail(mut reason)) => {
            if let Some(why) = &operation.options.hold_because {
                reason.message = format!("{}; what ran before was not put back: {why}", reason.message);
            }
            tracing::warn!(cvm.id = operation.cvm_id, op.id = %id, step = %name, attempt = operation.attempt,
                "step {name} of {id} failed: {}", reason.message);
            let aftermath = aftermath(operation, &reason);
            let put_back = OperationId(app.clock.new_id());
            app.store.operation_fail(held, reason, aftermath, put_back, now).await?;
            Ok(None)
        }
        Err(Trouble::Lost) => Err(store::Error::ClaimLost),
    }
}

/// How long a node that is at work is left alone. It has been waited for already.
const AT_WORK_PAUSE: Duration = Duration::from_secs(1);

/// Half a second, doubled with every attempt, at most half a minute.
fn back_off(attempt: u32) -> Duration {
    Duration::from_millis(500 << attempt.saturating_sub(1).min(6)).min(Duration::from_secs(30))
}

/// Renews the claim while a step takes its time. Returns when it is lost.
async fn keep_claim(app: &App, operation: &Operation) {
    loop {
        app.clock.sleep(LEASE / 3).await;
        let lease_until = app.clock.now() + LEASE;
        match app.store.operation_renew(operation.held(), lease_until).await {
            Ok(()) => {}
            Err(store::Error::ClaimLost) => return,
            Err(error) => tracing::warn!(op.id = %operation.id, %error, "a claim was not renewed"),
        }
    }
}
