//! The side effects of a step. Each states a target and can be repeated.

use std::future::Future;
use std::time::Duration;

use casemate_types::guest::ImageRef;
use jiff::Timestamp;

use crate::app::App;
use crate::app::Node;
use crate::cvm::spec::{Booking, Spec};
use crate::driver::{self, AfterTimeout, At, Driver, Guest, Machine, Observed, Stop, Stopped};
use crate::error::Error;
use crate::store::Work;
use crate::workflow::operation::{FailCode, FailReason, Kind, Operation, StepName};
use crate::workflow::sealed;
use crate::workflow::{approval, boot};

/// How long an unreachable node is asked again while the machine is still untouched.
pub const GIVE_UP_BEFORE_STOP: Duration = Duration::from_secs(300);

/// What a step that is done leaves to be recorded.
#[derive(Clone, Debug, Default)]
pub struct Done {
    /// What the node reports of the machine, if it was looked at.
    pub seen: Option<Observed>,
    /// Why the old spec could not come back if the new one failed, if that was found out.
    pub hold: Option<String>,
    /// What the images of the services mean, if they were staged and the node told.
    pub images: Vec<ImageRef>,
}

impl From<Option<Observed>> for Done {
    fn from(seen: Option<Observed>) -> Self {
        Self { seen, ..Self::default() }
    }
}

/// Why a step did not end.
#[derive(Debug)]
pub enum Trouble {
    /// It never will.
    Fail(FailReason),
    /// It may, later.
    Wait {
        /// What for, in words for the owner of the CVM.
        what: String,
        /// What exactly went wrong, for the log alone: it may tell how nodes are reached.
        detail: Option<String>,
    },
    /// Its node is at work on it.
    AtWork {
        /// Which, and on what, for the owner of the CVM.
        what: String,
    },
    /// The operation is in other hands.
    Lost,
}

/// Does what `step` of this work asks for.
pub async fn perform(app: &App, work: &Work, step: StepName) -> Result<Done, Trouble> {
    let node = app.node(work.cvm.node_id).ok_or_else(|| {
        let what = format!("node {} of this CVM, which the configuration does not name", work.cvm.node_id);
        Trouble::Wait { what, detail: None }
    })?;
    if !node.is_online() {
        // Whether it is back, one look at it tells, and not one for each of its CVMs.
        let error = driver::Error::Unreachable("it is known to be away".into());
        return Err(trouble(app, &work.operation, node, error));
    }
    let driver = node.driver.as_ref();
    let operation = &work.operation;
    let at = At { vm: work.cvm.vm_uuid, generation: operation.generation };
    let mut images = Vec::new();
    let outcome = match step {
        StepName::Stage => within(app, stage(app, driver, at, work)).await.map(|staged| {
            images = staged;
            None
        }),
        StepName::Stop => match stop(app, driver, at, operation).await {
            Ok(Stopped::Off) => Ok(None),
            Ok(Stopped::StillRunning) => return Err(Trouble::Fail(stop_timed_out(operation))),
            Ok(Stopped::Frozen { since }) => return Err(cannot_stop(operation, since)),
            Err(error) => Err(error),
        },
        StepName::Apply => within(app, driver.ensure_applied(at, &work.machine)).await.map(|()| None),
        StepName::Start => {
            boot::allowed(app, node, work).await?;
            within(app, driver.ensure_started(at)).await.map(|()| None)
        }
        StepName::Observe => observe(app, driver, work).await.map(Some),
        StepName::Remove => within(app, driver.ensure_absent(at)).await.map(|()| None),
    };
    let outcome = match outcome {
        Ok(None) if operation.step + 1 == operation.steps.len() => last_look(app, driver, work, step).await,
        other => other,
    };
    let seen = outcome.map_err(|error| trouble(app, operation, node, error))?;
    let hold = match step {
        StepName::Stage => before_the_stop(app, node, work).await?,
        _ => None,
    };
    Ok(Done { seen, hold, images })
}

/// The last questions while the machine still runs: is the new spec allowed, and could the old one come back?
///
/// `NotAllowed` ends the operation. The answer is why the old one could not.
async fn before_the_stop(app: &App, node: &Node, work: &Work) -> Result<Option<String>, Trouble> {
    let (operation, new) = (&work.operation, &work.machine.spec);
    let back = operation.kind.can_be_put_back();
    let takes_down = match operation.kind {
        Kind::Restart => true,
        // After a failure a machine may still run.
        Kind::Start => runs(app, node, work).await?,
        Kind::Create
        | Kind::Update
        | Kind::RefreshInstanceId
        | Kind::Rollback
        | Kind::PutBack
        | Kind::Stop
        | Kind::Shutdown
        | Kind::Recover
        | Kind::Delete => false,
    };
    if back || takes_down {
        allowed(app, node, work, new).await?.map_err(Trouble::Fail)?;
    }
    if !back || !operation.has(StepName::Start) {
        // What stays off boots neither.
        return Ok(None);
    }
    let old = match app.store.outline(work.cvm.id, operation.previous) {
        Ok(old) => old,
        Err(error) => return Err(away(app, operation, "the store", error.to_string())),
    };
    // The new one's image was found by staging it.
    if old.image != new.image {
        let facts = within(app, node.driver.describe()).await;
        let facts = facts.map_err(|error| trouble(app, operation, node, error))?;
        if !facts.images.iter().any(|image| image.name == old.image) {
            return Ok(Some(format!("its OS image {} is no longer on the node", old.image)));
        }
    }
    if old.compose.hash == new.compose.hash && old.image == new.image {
        return Ok(None);
    }
    Ok(allowed(app, node, work, &old).await?.err().map(|reason| reason.message))
}

/// Would somebody lose a machine that runs?
async fn runs(app: &App, node: &Node, work: &Work) -> Result<bool, Trouble> {
    let seen = within(app, node.driver.observe(&[work.cvm.vm_uuid])).await;
    let seen = seen.map_err(|error| trouble(app, &work.operation, node, error))?.pop();
    Ok(seen.is_some_and(|seen| seen.guest.is_on()))
}

/// Do the contracts, if they have a say, allow this spec now? What is going to be started has to be one that gets its keys.
async fn allowed(
    app: &App,
    node: &Node,
    work: &Work,
    spec: &Spec,
) -> Result<Result<(), FailReason>, Trouble> {
    if !app.config.kms_is_contract_owned(&work.cvm.kms) {
        return Ok(Ok(()));
    }
    let hash = spec.compose.hash;
    let message = match approval::allowed_now(app, &work.cvm, hash).await {
        // What stays off needs no keys.
        Ok(allowed) if allowed.both() && !work.operation.has(StepName::Start) => return Ok(Ok(())),
        Ok(allowed) if allowed.both() => match boot::refusal(app, node, work, spec).await {
            Ok(Some(reason)) => {
                format!("the key service would give it no keys; its contract says: {reason}")
            }
            Ok(None) => return Ok(Ok(())),
            Err(error) => return Err(unanswered(app, &work.operation, error)),
        },
        Ok(allowed) if allowed.compose_hash => {
            "the app's contract does not allow the node's device".to_owned()
        }
        Ok(_) => format!("the app's contract does not allow compose hash {hash}"),
        Err(error) => return Err(unanswered(app, &work.operation, error)),
    };
    Ok(Err(FailReason { code: FailCode::NotAllowed, message }))
}

/// An answer that takes longer than this is none. Shorter than a lease.
const ANSWER: Duration = Duration::from_secs(20);

/// The answer of a node, if it comes in time.
async fn within<T>(app: &App, call: impl Future<Output = driver::Result<T>>) -> driver::Result<T> {
    app.clock.within(ANSWER, call).await.unwrap_or_else(|| Err(no_answer()))
}

fn no_answer() -> driver::Error {
    driver::Error::Unreachable(format!("no answer within {} s", ANSWER.as_secs()))
}

async fn stage(app: &App, driver: &dyn Driver, at: At, work: &Work) -> driver::Result<Vec<ImageRef>> {
    // If the store does not tell, it had one: that is the side on which no data gets lost.
    let had_a_machine = || app.store.report(work.cvm.id).map_or(true, |report| report.is_some());
    if work.operation.kind == Kind::Recover && had_a_machine() && driver.observe(&[at.vm]).await?.is_empty() {
        // Making it again would bring it back without its data, and nobody asked for that.
        return Err(driver::Error::Refused(
            "the machine is gone from its node; `start` makes it again, with an empty disk".into(),
        ));
    }
    sealed::opens(app, driver, work)?;
    driver.ensure_staged(at, &work.machine).await
}

/// The guest gets its whole time whenever it is asked: how long a node was away, or we were, is not its fault.
async fn stop(app: &App, driver: &dyn Driver, at: At, operation: &Operation) -> driver::Result<Stopped> {
    if operation.options.hard || operation.kind.stops_hard() {
        return within(app, driver.ensure_stopped(at, Stop::Force)).await;
    }
    let timeout = operation.options.shutdown_timeout();
    let then = if operation.options.allow_force_stop { AfterTimeout::Force } else { AfterTimeout::GiveUp };
    let call = driver.ensure_stopped(at, Stop::Graceful { timeout, then });
    app.clock.within(timeout + ANSWER, call).await.unwrap_or_else(|| Err(no_answer()))
}

/// A machine that stays off is looked at once more: for what clients see of it, and because "applied" has to be true.
async fn last_look(
    app: &App,
    driver: &dyn Driver,
    work: &Work,
    step: StepName,
) -> driver::Result<Option<Observed>> {
    if step == StepName::Remove {
        return Ok(None);
    }
    let seen = within(app, driver.observe(&[work.cvm.vm_uuid])).await?.pop();
    match seen.as_ref().and_then(|seen| difference(&work.machine, seen)) {
        Some(what) if step == StepName::Apply => Err(driver::Error::BootFailed(what)),
        _ => Ok(seen),
    }
}

fn stop_timed_out(operation: &Operation) -> FailReason {
    let seconds = operation.options.shutdown_timeout().as_secs();
    let message = match operation.kind {
        Kind::PutBack => {
            format!("the guest did not go down within {seconds} s; call `stop`, which cuts its power")
        }
        _ => format!(
            "the guest did not go down within {seconds} s; raise `shutdown_timeout` or set `allow_force_stop`"
        ),
    };
    FailReason { code: FailCode::StopTimedOut, message }
}

/// A machine that stands still cannot be asked to go down, and was not touched.
fn cannot_stop(operation: &Operation, since: Timestamp) -> Trouble {
    let why = driver::stands_still(since);
    match operation.kind {
        // Its guest is on its way down, and goes on with that.
        Kind::PutBack => Trouble::Wait { what: format!("the machine: {why}"), detail: None },
        _ => Trouble::Fail(FailReason {
            code: FailCode::StandsStill,
            message: format!(
                "the guest cannot be asked to go down: {why}; `allow_force_stop` cuts its power"
            ),
        }),
    }
}

/// Waits until the guest reports that it runs exactly what was asked for. A running process is not success.
async fn observe(app: &App, driver: &dyn Driver, work: &Work) -> driver::Result<Observed> {
    // Counted from the first answer: a machine is not slow because its node was away.
    let mut deadline = None;
    let begun = work.operation.current_step().and_then(|step| step.started_at);
    loop {
        let seen = within(app, driver.observe(&[work.cvm.vm_uuid])).await?.pop();
        let deadline = *deadline.get_or_insert_with(|| app.clock.now() + driver.boot_deadline());
        let Some(seen) = seen else {
            return Err(driver::Error::BootFailed("the machine is not on its node".into()));
        };
        match &seen.guest {
            Guest::Done => {
                return match difference(&work.machine, &seen) {
                    None => Ok(seen),
                    Some(what) => Err(driver::Error::BootFailed(what)),
                };
            }
            Guest::Failed { error } => return Err(driver::Error::BootFailed(error.clone())),
            Guest::Exited => {
                return Err(driver::Error::BootFailed("the machine went down while it booted".into()));
            }
            Guest::Off => return Err(driver::Error::BootFailed("the machine is off".into())),
            // That it stands still was known before. Another one is given its time to go on.
            Guest::Frozen { since } if begun.is_none_or(|begun| *since < begun) => {
                return Err(driver::Error::BootFailed(driver::stands_still(*since)));
            }
            Guest::Booting { .. } | Guest::Frozen { .. } if app.clock.now() >= deadline => {
                let seconds = driver.boot_deadline().as_secs();
                let last = match &seen.guest {
                    Guest::Booting { progress } => progress.clone(),
                    Guest::Frozen { since } => driver::stands_still(*since),
                    Guest::Off | Guest::Done | Guest::Failed { .. } | Guest::Exited => String::new(),
                };
                let what = format!("the guest did not report \"done\" within {seconds} s; last: {last}");
                return Err(driver::Error::BootFailed(what));
            }
            Guest::Booting { .. } | Guest::Frozen { .. } => app.clock.sleep(driver.poll_interval()).await,
        }
    }
}

/// What the node runs instead of what was asked for.
pub(super) fn difference(wanted: &Machine, seen: &Observed) -> Option<String> {
    let differs = |what: &str, wanted: &dyn std::fmt::Display, seen: &dyn std::fmt::Display| {
        Some(format!("the machine runs with {what} {seen}, not {wanted}"))
    };
    let size = |size: &Booking| {
        format!("{} vCPU, {} MB, {} GB disk, {} GPUs", size.vcpu, size.memory_mb, size.disk_gb, size.gpus)
    };
    if seen.compose_hash != wanted.spec.compose.hash {
        differs("compose hash", &wanted.spec.compose.hash, &seen.compose_hash)
    } else if seen.revision != wanted.revision {
        differs("revision", &wanted.revision, &seen.revision)
    } else if seen.size != wanted.spec.booking() {
        differs("size", &size(&wanted.spec.booking()), &size(&seen.size))
    } else if seen.image != wanted.spec.image {
        differs("OS image", &wanted.spec.image, &seen.image)
    } else if seen.instance_id != wanted.instance_id {
        differs("instance id", &wanted.instance_id, &seen.instance_id)
    } else if seen.encrypted_env_sha256 != wanted.spec.sealed_env_sha256() {
        Some("the machine runs with another sealed environment".to_owned())
    } else if seen.user_config_sha256 != wanted.spec.user_config_sha256() {
        Some("the machine runs with another user config".to_owned())
    } else if !wanted.images.is_empty() && !seen.images.is_empty() && seen.images != wanted.images {
        differs("images", &digests(&wanted.images), &digests(&seen.images))
    } else {
        None
    }
}

fn digests(images: &[ImageRef]) -> String {
    let one = |image: &ImageRef| format!("{} ({})", image.reference, image.digest);
    images.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn trouble(app: &App, operation: &Operation, node: &Node, error: driver::Error) -> Trouble {
    match error {
        driver::Error::Refused(message) => Trouble::Fail(FailReason { code: FailCode::Refused, message }),
        driver::Error::BootFailed(message) => {
            Trouble::Fail(FailReason { code: FailCode::BootFailed, message })
        }
        driver::Error::Stale { .. } => Trouble::Lost,
        // Said before anything is touched; later it is waited for.
        driver::Error::NoRoom(message) if is_untouched(operation) => {
            Trouble::Fail(FailReason { code: FailCode::Refused, message })
        }
        driver::Error::NoRoom(why) => {
            Trouble::Wait { what: format!("room on node {}: {why}", node.facts().name), detail: None }
        }
        driver::Error::AtWork(what) => {
            Trouble::AtWork { what: format!("node {}, which {what}", node.facts().name) }
        }
        driver::Error::Unreachable(why) => away(app, operation, &format!("node {}", node.facts().name), why),
    }
}

/// The chain did not say whether something is allowed.
pub(super) fn unanswered(app: &App, operation: &Operation, error: Error) -> Trouble {
    match error {
        // Only a process with other settings can ask.
        Error::NotConfigured(message) if is_untouched(operation) => {
            Trouble::Fail(FailReason { code: FailCode::Unreachable, message })
        }
        Error::NotConfigured(what) => Trouble::Wait { what, detail: None },
        error => away(app, operation, "the chain", error.with_causes()),
    }
}

/// Is the machine still as it was before the operation?
fn is_untouched(operation: &Operation) -> bool {
    operation.current_step().is_some_and(|step| step.name == StepName::Stage)
}

/// `who` does not answer. Before the machine is touched, that is waited for only so long.
pub(super) fn away(app: &App, operation: &Operation, who: &str, why: String) -> Trouble {
    let step = operation.current_step();
    let begun = step.and_then(|step| step.heard_at.or(step.started_at)).unwrap_or(operation.created_at);
    let waited = Duration::try_from(app.clock.now().duration_since(begun)).unwrap_or_default();
    if is_untouched(operation) && waited >= GIVE_UP_BEFORE_STOP {
        tracing::warn!(op.id = %operation.id, why, "{who} did not answer");
        let message = format!("{who} did not answer for {} s", waited.as_secs());
        Trouble::Fail(FailReason { code: FailCode::Unreachable, message })
    } else {
        Trouble::Wait { what: format!("{who}, which does not answer"), detail: Some(why) }
    }
}
