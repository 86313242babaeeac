//! An operation: one accepted piece of work on a CVM, made of steps. Pure rules, no IO.

use std::time::Duration;

use casemate_types::ids::OperationId;
use casemate_types::patch::OnFailure;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cvm::state::{Power, Status, words};

words! {
    /// What an operation does.
    pub enum Kind {
        /// Makes the machine.
        Create = "create",
        /// Gives it a new spec.
        Update = "update",
        /// Gives it a new instance id.
        RefreshInstanceId = "refresh_instance_id",
        /// Gives it the content of an earlier revision.
        Rollback = "rollback",
        /// Undoes a failed update.
        PutBack = "put_back",
        /// Switches it on.
        Start = "start",
        /// Cuts its power.
        Stop = "stop",
        /// Asks it to go down.
        Shutdown = "shutdown",
        /// Off and on.
        Restart = "restart",
        /// Brings a machine that went down by itself back to its desired power.
        Recover = "recover",
        /// Removes it.
        Delete = "delete",
    }
}

/// Operations that are worked on beside each other, without waiting for those of the other lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// What may have to wait for guests.
    Ordinary,
    /// What waits for nobody: it cuts the power or removes.
    Urgent,
}

words! {
    /// A durable, repeatable part of an operation.
    pub enum StepName {
        /// Everything that can fail without touching the machine.
        Stage = "stage",
        /// The machine goes down.
        Stop = "stop",
        /// It gets its new spec; this makes the revision current.
        Apply = "apply",
        /// It goes up.
        Start = "start",
        /// The guest reports the expected compose hash and "done".
        Observe = "observe",
        /// It and its disk are removed from the node.
        Remove = "remove",
    }
}

impl Kind {
    /// The status while such an operation is open.
    pub fn status(self) -> Status {
        match self {
            Self::Create => Status::Creating,
            Self::Update | Self::RefreshInstanceId | Self::Rollback | Self::PutBack => Status::Updating,
            Self::Start | Self::Recover => Status::Starting,
            Self::Stop => Status::Stopping,
            Self::Shutdown => Status::ShuttingDown,
            Self::Restart => Status::Restarting,
            Self::Delete => Status::Deleting,
        }
    }

    /// The steps of such an operation on a machine whose desired power is `power`.
    ///
    /// Stop and delete get theirs from [`steps_after_interrupting`].
    pub fn steps(self, power: Power) -> &'static [StepName] {
        use StepName::{Apply, Observe, Remove, Stage, Start, Stop};
        match (self, power) {
            (Self::Create, _) => &[Stage, Apply, Start, Observe],
            (Self::Update | Self::RefreshInstanceId | Self::Rollback, Power::On) => {
                &[Stage, Stop, Apply, Start, Observe]
            }
            (Self::Update | Self::RefreshInstanceId | Self::Rollback, Power::Off) => &[Stage, Apply],
            (Self::PutBack, Power::On) => &[Stop, Apply, Start, Observe],
            (Self::PutBack, Power::Off) => &[Stop, Apply],
            // Its spec may never have reached the node, and what is left of a failed boot has to go first.
            (Self::Start | Self::Recover, _) => &[Stage, Stop, Apply, Start, Observe],
            (Self::Stop | Self::Shutdown, _) => &[Stop],
            (Self::Restart, _) => &[Stage, Stop, Start, Observe],
            (Self::Delete, _) => &[Remove],
        }
    }

    /// Does a failure after the machine was stopped bring the old spec back?
    pub fn can_be_put_back(self) -> bool {
        matches!(self, Self::Update | Self::RefreshInstanceId | Self::Rollback)
    }

    /// Beside which others such an operation is worked on.
    pub fn lane(self) -> Lane {
        match self {
            Self::Stop | Self::Delete => Lane::Urgent,
            Self::Create
            | Self::Update
            | Self::RefreshInstanceId
            | Self::Rollback
            | Self::PutBack
            | Self::Start
            | Self::Shutdown
            | Self::Restart
            | Self::Recover => Lane::Ordinary,
        }
    }

    /// Is the power simply cut where a machine has to be off first?
    pub fn stops_hard(self) -> bool {
        matches!(self, Self::Stop | Self::Start | Self::Recover)
    }
}

/// What an operation does beside its steps, as the request asked. Belongs to the operation, not to a spec.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Options {
    /// Seconds that the guest gets to go down, 10…1200.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shutdown_timeout: Option<u32>,
    /// Cut the power after that.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allow_force_stop: bool,
    /// Cut the power at once.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hard: bool,
    /// Give a guest that did not go down in time much longer.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub await_stop: bool,
    /// What a failure leads to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_failure: Option<OnFailure>,
    /// Written to the CVM's record when the operation succeeds.
    #[serde(default, skip_serializing_if = "Records::is_empty")]
    pub records: Records,
    /// The operation that a put-back undoes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undoes: Option<OperationId>,
    /// Why the old spec could not come back, found out before the machine was touched: a failure is then not put back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold_because: Option<String>,
    /// Why it undoes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undoes_because: Option<String>,
    /// What the machine was before this was accepted: it is that again if nothing was touched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<(Status, Power)>,
}

/// How long a guest gets to go down unless the request says otherwise, in seconds.
pub const DEFAULT_SHUTDOWN_TIMEOUT: u32 = 60;

/// How long a put-back waits for a guest that did not go down in time.
pub const LATE_STOP: Duration = Duration::from_secs(600);

impl Options {
    /// How long the guest may take to go down.
    pub fn shutdown_timeout(&self) -> Duration {
        if self.await_stop {
            return LATE_STOP;
        }
        Duration::from_secs(u64::from(self.shutdown_timeout.unwrap_or(DEFAULT_SHUTDOWN_TIMEOUT)))
    }
}

/// Fields of the record that are not part of a spec.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Records {
    /// New value of `listed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listed: Option<bool>,
    /// New name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

impl Records {
    /// Nothing to write?
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A step and when it was worked on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Which.
    pub name: StepName,
    /// When work on it began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// When its node last said that it is at work on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heard_at: Option<Timestamp>,
    /// When it was recorded as done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
}

/// One field that an operation changes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// Name of the field on the wire.
    pub field: String,
    /// Value before; a hash where the value is long or secret.
    pub from: Value,
    /// Value after.
    pub to: Value,
}

impl From<Change> for casemate_types::wire::Diff {
    fn from(Change { field, from, to }: Change) -> Self {
        Self { field, from, to }
    }
}

/// Why an operation failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailReason {
    /// For programs.
    pub code: FailCode,
    /// For people.
    pub message: String,
}

words! {
    /// Kinds of failure of an operation.
    pub enum FailCode {
        /// The node said no.
        Refused = "refused",
        /// The guest did not come up.
        BootFailed = "boot_failed",
        /// The guest did not go down in time and force was not allowed.
        StopTimedOut = "stop_timed_out",
        /// The machine's process stands still, so that its guest cannot be asked to go down, and force was not allowed.
        StandsStill = "stands_still",
        /// The node did not answer for too long while the machine was still untouched.
        Unreachable = "unreachable",
        /// The app's contract said no right before the stop.
        NotAllowed = "not_allowed",
        /// What is stored of it does not read back.
        Unreadable = "unreadable",
    }
}

/// Where an operation stands. A variant carries only what that stage knows.
#[derive(Clone, Debug, PartialEq)]
pub enum State {
    /// Any worker may take it, from `not_before` on.
    Queued {
        /// Not earlier.
        not_before: Timestamp,
    },
    /// One worker holds it.
    Running {
        /// Then it is anybody's.
        lease_until: Timestamp,
    },
    /// Done.
    Succeeded {
        /// When.
        at: Timestamp,
    },
    /// It did not work.
    Failed {
        /// When.
        at: Timestamp,
        /// Why.
        reason: FailReason,
        /// The operation that restores what was there before.
        put_back: Option<OperationId>,
    },
    /// Ended by a stop, a delete or a cancel.
    Cancelled {
        /// When.
        at: Timestamp,
        /// The operation that took over, if one did.
        by: Option<OperationId>,
    },
}

impl State {
    /// The word for it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Queued { .. } => "queued",
            Self::Running { .. } => "running",
            Self::Succeeded { .. } => "succeeded",
            Self::Failed { .. } => "failed",
            Self::Cancelled { .. } => "cancelled",
        }
    }

    /// Is there still something to do?
    pub fn is_open(&self) -> bool {
        matches!(self, Self::Queued { .. } | Self::Running { .. })
    }

    /// When it ended.
    pub fn ended_at(&self) -> Option<Timestamp> {
        match self {
            Self::Queued { .. } | Self::Running { .. } => None,
            Self::Succeeded { at } | Self::Failed { at, .. } | Self::Cancelled { at, .. } => Some(*at),
        }
    }
}

/// One accepted piece of work. Its id is the `correlation_id` of the wire.
#[derive(Clone, Debug, PartialEq)]
pub struct Operation {
    /// Its id.
    pub id: OperationId,
    /// The CVM's number inside the store.
    pub cvm_id: i64,
    /// Its number on the CVM.
    pub generation: u64,
    /// What it does.
    pub kind: Kind,
    /// Where it stands.
    pub state: State,
    /// Its steps.
    pub steps: Vec<Step>,
    /// Index of the present step.
    pub step: usize,
    /// How often the present step was tried.
    pub attempt: u32,
    /// Which claim holds it.
    pub claim: u64,
    /// What keeps it from going on.
    pub waiting_for: Option<String>,
    /// The revision that it brings about.
    pub target: u64,
    /// The revision that was current when it was accepted.
    pub previous: u64,
    /// What it does beside its steps.
    pub options: Options,
    /// What it changes.
    pub diff: Vec<Change>,
    /// Milliseconds from the stop to the guest's "done".
    pub downtime_ms: Option<u64>,
    /// Who asked; nobody for what the server does by itself.
    pub user_id: Option<i64>,
    /// When it was accepted.
    pub created_at: Timestamp,
}

/// A claim on the present step of an operation: what lets its holder record something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// The operation.
    pub id: OperationId,
    /// Which claim.
    pub claim: u64,
    /// Index of the step.
    pub step: usize,
}

impl Operation {
    /// The claim by which this copy of the operation was got.
    pub fn held(&self) -> Held {
        Held { id: self.id, claim: self.claim, step: self.step }
    }

    /// The present step; none once all are done, or if there never were any.
    pub fn current_step(&self) -> Option<&Step> {
        self.steps.get(self.step)
    }

    /// Is `name` one of its steps?
    pub fn has(&self, name: StepName) -> bool {
        self.steps.iter().any(|step| step.name == name)
    }

    /// Has work on `name` begun? From then on its call may have been sent.
    pub fn has_begun(&self, name: StepName) -> bool {
        self.steps.iter().any(|step| step.name == name && step.started_at.is_some())
    }

    /// Was `name` recorded as done?
    pub fn has_done(&self, name: StepName) -> bool {
        self.steps.iter().any(|step| step.name == name && step.ended_at.is_some())
    }

    /// May `step` of it take as long as a guest likes?
    pub fn waits_for_guest(&self, step: StepName) -> bool {
        match step {
            StepName::Stop => !(self.options.hard || self.kind.stops_hard()),
            StepName::Observe => true,
            StepName::Stage | StepName::Apply | StepName::Start | StepName::Remove => false,
        }
    }

    /// Did it fail and leave everything as it was before?
    pub fn left_untouched(&self) -> bool {
        match &self.state {
            State::Failed { reason, .. } => aftermath(self, reason) == Aftermath::Untouched,
            State::Queued { .. }
            | State::Running { .. }
            | State::Succeeded { .. }
            | State::Cancelled { .. } => false,
        }
    }

    /// Did it fail because the machine did not come up as it should, so that all is well if it does so later? Not if it was to be
    /// left as the failure left it.
    pub fn may_come_right(&self) -> bool {
        let did_not_come_up = match &self.state {
            State::Failed { reason, .. } => matches!(reason.code, FailCode::BootFailed | FailCode::Refused),
            State::Queued { .. }
            | State::Running { .. }
            | State::Succeeded { .. }
            | State::Cancelled { .. } => false,
        };
        did_not_come_up && self.options.on_failure.unwrap_or_default() == OnFailure::PutBack
    }

    /// Can it still be called off? Yes until the machine may have been touched.
    pub fn can_be_cancelled(&self) -> bool {
        let touching = |step: &&Step| step.name != StepName::Stage;
        let first = self.steps.iter().find(touching);
        self.state.is_open()
            && !matches!(self.kind, Kind::PutBack | Kind::Create | Kind::Stop | Kind::Delete)
            && first.is_some_and(|step| step.started_at.is_none())
    }
}

/// The steps of a stop or delete that ends `open`, if something is open.
///
/// The spec is settled first. No apply sent: the old one stays. Apply possibly sent and not recorded: it is repeated to its
/// end, so that the node and the store agree on the new one. Then the machine stays off, or goes.
pub fn steps_after_interrupting(kind: Kind, open: Option<&Operation>) -> Vec<StepName> {
    // An operation that settles or undoes another one inherits its doubt.
    let inherits =
        |open: &Operation| matches!(open.kind, Kind::Stop | Kind::PutBack) && open.has(StepName::Apply);
    let unsettled = open.is_some_and(|open| {
        (open.has_begun(StepName::Apply) || inherits(open)) && !open.has_done(StepName::Apply)
    });
    match (kind, unsettled) {
        (Kind::Delete, _) => vec![StepName::Remove],
        (_, true) => vec![StepName::Stop, StepName::Apply],
        (_, false) => vec![StepName::Stop],
    }
}

/// What comes after a failure.
#[derive(Clone, Debug, PartialEq)]
pub enum Aftermath {
    /// The machine was not touched and goes on as before.
    Untouched,
    /// The old spec comes back, with these options.
    PutBack(Options),
    /// The machine is left as it is and needs somebody.
    Error,
}

/// What a failed operation leads to.
pub fn aftermath(operation: &Operation, reason: &FailReason) -> Aftermath {
    let touched =
        operation.steps.iter().any(|step| step.name != StepName::Stage && step.started_at.is_some());
    let wants_back = operation.options.on_failure.unwrap_or_default() == OnFailure::PutBack
        && operation.options.hold_because.is_none();
    let needs_somebody = match operation.kind {
        Kind::Create => true,
        // It was asked for a machine that runs, and there is none. A node that is away may be back later.
        Kind::Start | Kind::Recover => reason.code != FailCode::Unreachable,
        _ => false,
    };
    if !touched && !needs_somebody {
        return Aftermath::Untouched;
    }
    if reason.code == FailCode::StopTimedOut && matches!(operation.kind, Kind::Shutdown | Kind::Restart) {
        return Aftermath::Untouched;
    }
    if reason.code == FailCode::StandsStill {
        // If its guest was on its way down, its node turns it on again with what it has.
        return Aftermath::Untouched;
    }
    if operation.kind.can_be_put_back() && wants_back {
        // A guest that would not go down in time is waited for; one that is half way through an update is not asked.
        let await_stop = reason.code == FailCode::StopTimedOut;
        return Aftermath::PutBack(Options {
            hard: !await_stop,
            await_stop,
            undoes: Some(operation.id),
            undoes_because: Some(reason.message.clone()),
            ..Options::default()
        });
    }
    Aftermath::Error
}
