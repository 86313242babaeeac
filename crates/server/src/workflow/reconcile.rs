//! Compares what runs with what should, and mends it with an operation. Acts only where no operation is open.

use std::collections::HashMap;
use std::time::Duration;

use casemate_types::ids::{OperationId, VmUuid};
use futures_util::future::join_all;
use tokio_util::sync::CancellationToken;

use super::operation::{Kind, Options, StepName};
use super::step;
use crate::app::{App, Node};
use crate::cvm::state::{Cvm, Power, Status};
use crate::driver::{Guest, Machine, Observed, Report};
use crate::store::{self, NewOperation, OperationFilter};

/// How often nodes are compared with the store.
pub const EVERY: Duration = Duration::from_secs(10);

/// How often a node that is away is asked whether it is back.
const AGAIN: Duration = Duration::from_secs(2);

/// How many CVMs are compared at a time.
const PAGE: usize = 256;

/// How long a node may take to answer, also to report so many machines.
const ANSWER: Duration = Duration::from_secs(20);

/// Compares until `stop` is cancelled. Nodes do not wait for each other.
pub async fn run(app: App, stop: CancellationToken) {
    let each = app.nodes.iter().map(async |(&id, node)| {
        // One that did not answer in the time that a start has may only be slow.
        let mut rest = if node.is_online() { EVERY } else { Duration::ZERO };
        loop {
            if stop.run_until_cancelled(app.clock.sleep(rest)).await.is_none() {
                return;
            }
            compare_or_say(&app, id, node).await;
            rest = if node.is_online() { EVERY } else { AGAIN };
        }
    });
    join_all(each).await;
}

/// Compares every node once.
pub async fn once(app: &App) {
    for (&node_id, node) in &app.nodes {
        compare_or_say(app, node_id, node).await;
    }
}

async fn compare_or_say(app: &App, node_id: i64, node: &Node) {
    let was_online = node.is_online();
    if let Err(error) = compare(app, node_id, node).await
        && (was_online || node.is_online())
    {
        tracing::warn!(node = %node.facts().name, %error, "node cannot be compared with the store");
    }
}

/// Compares a node page by page: a node may have many machines.
async fn compare(
    app: &App,
    node_id: i64,
    node: &Node,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    node.look(node_id, ANSWER, &app.store, &app.clock).await?;
    let mut after = 0;
    loop {
        // In this order: whatever moves a CVM after it was read here is noticed by its generation.
        let cvms = app.store.cvms_on_node(node_id, after, PAGE)?;
        let Some(last) = cvms.last() else { return Ok(()) };
        after = last.id;
        let known = app.store.reports(cvms.first().map_or(0, |first| first.id), after)?;
        let machines: Vec<VmUuid> = cvms.iter().map(|cvm| cvm.vm_uuid).collect();
        let seen =
            app.clock.within(ANSWER, node.driver.observe(&machines)).await.ok_or("no answer in time")??;
        let seen: HashMap<VmUuid, Observed> = seen.into_iter().map(|machine| (machine.vm, machine)).collect();
        let mut news = Vec::new();
        let mut to_mend = Vec::new();
        // Whatever is at work on a CVM looks after it.
        for cvm in cvms.into_iter().filter(|cvm| cvm.open.is_none()) {
            let machine = seen.get(&cvm.vm_uuid);
            let report = machine.map(Report::of).filter(|report| known.get(&cvm.id) != Some(report));
            news.extend(report.map(|report| (cvm.id, cvm.generation, report)));
            let remedy = match (cvm.status, machine) {
                // It needs somebody; trying again and again would hide that. Unless it needs nobody any more.
                (Status::Error, Some(machine)) => {
                    let is_well = came_right(app, &cvm, machine, known.get(&cvm.id));
                    let is_well = is_well.unwrap_or_else(|error| {
                        tracing::error!(cvm.id = cvm.id, %error, "cannot be compared with its machine");
                        false
                    });
                    is_well.then_some((Kind::Recover, &[StepName::Observe][..]))
                }
                (Status::Error, None) => None,
                // Who stopped it may know why, so nobody cuts its power. People are told, until it goes on.
                (Status::Running, Some(machine)) if stands_still(machine, known.get(&cvm.id)) => {
                    Some((Kind::Recover, &[StepName::Observe][..]))
                }
                _ => remedy(&cvm, machine).map(|kind| (kind, kind.steps(cvm.power))),
            };
            to_mend.extend(remedy.map(|(kind, steps)| (cvm, kind, steps)));
        }
        if !news.is_empty() {
            app.store.cvms_observed(news).await?;
        }
        for (cvm, kind, steps) in to_mend {
            mend(app, cvm, kind, steps).await?;
        }
    }
}

async fn mend(app: &App, cvm: Cvm, kind: Kind, steps: &[StepName]) -> store::Result<()> {
    let (id, status) = (cvm.id, cvm.status);
    match app.store.operation_accept(operation(app, &cvm, kind, steps), cvm, None).await {
        Ok(_) => {
            tracing::warn!(cvm.id = id, kind = %kind, %status, "the machine is not as its CVM says");
            app.wake(kind.lane());
        }
        // Somebody else is at it.
        Err(store::Error::Changed | store::Error::OperationOpen | store::Error::Missing) => {}
        Err(error) => return Err(error),
    }
    Ok(())
}

/// What brings the machine to its desired power, if something should.
fn remedy(cvm: &Cvm, machine: Option<&Observed>) -> Option<Kind> {
    // One that its node starts again is left to it: it knows how often that was of no use, and waits longer and longer.
    let up = machine.is_some_and(|machine| machine.comes_back || machine.guest.is_on());
    match (cvm.power, up) {
        (Power::On, false) => Some(Kind::Recover),
        (Power::Off, true) => Some(Kind::Stop),
        (Power::On, true) | (Power::Off, false) => None,
    }
}

/// Does it stand still for more than a moment?
fn stands_still(machine: &Observed, before: Option<&Report>) -> bool {
    let is_frozen = |seen: &Observed| matches!(seen.guest, Guest::Frozen { .. });
    is_frozen(machine) && before.and_then(Report::read).as_ref().is_some_and(is_frozen)
}

/// How many operations that changed nothing are looked past.
const UNTOUCHED: usize = 20;

/// Does a machine that did not come up run now, for more than a moment, exactly as the last operation wanted that touched it?
fn came_right(app: &App, cvm: &Cvm, machine: &Observed, before: Option<&Report>) -> store::Result<bool> {
    let is_up = |seen: &Observed| seen.guest == Guest::Done && seen.boot_count == machine.boot_count;
    let stays_up = is_up(machine) && before.and_then(Report::read).as_ref().is_some_and(is_up);
    if cvm.power != Power::On || !stays_up {
        return Ok(false);
    }
    let newest = OperationFilter { cvm_id: Some(cvm.id), limit: UNTOUCHED, ..OperationFilter::default() };
    let newest = app.store.operations(cvm.workspace_id, &newest)?;
    let is_newest = newest.first().is_some_and(|last| last.generation == cvm.generation);
    let last = newest.iter().find(|operation| !operation.left_untouched());
    let wanted_this =
        is_newest && last.is_some_and(|last| last.target == cvm.revision && last.may_come_right());
    if !wanted_this {
        return Ok(false);
    }
    let spec = app.store.outline(cvm.id, cvm.revision)?;
    let wanted = Machine::of(cvm, cvm.revision, spec);
    Ok(step::difference(&wanted, machine).is_none())
}

fn operation(app: &App, cvm: &Cvm, kind: Kind, steps: &[StepName]) -> NewOperation {
    NewOperation {
        id: OperationId(app.clock.new_id()),
        cvm_id: cvm.id,
        kind,
        steps: steps.to_vec(),
        power: None,
        spec: None,
        options: Options::default(),
        diff: Vec::new(),
        closes: None,
        author: None,
        at: app.clock.now(),
    }
}
