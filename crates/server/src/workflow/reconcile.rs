//! Compares what runs with what should, and mends it with an operation. Acts only where no operation is open.

use std::collections::HashMap;
use std::time::Duration;

use casemate_types::ids::{OperationId, VmUuid};
use tokio_util::sync::CancellationToken;

use super::operation::{Kind, Options};
use crate::app::{App, Node};
use crate::auth::Author;
use crate::cvm::state::{Cvm, Power, Status};
use crate::driver::{Guest, Observed};
use crate::store::{self, NewOperation};

/// How often nodes are compared with the store.
pub const EVERY: Duration = Duration::from_secs(10);

/// How long a node may take to list its machines.
const ANSWER: Duration = Duration::from_secs(20);

/// Compares until `stop` is cancelled.
pub async fn run(app: App, stop: CancellationToken) {
    loop {
        if stop.run_until_cancelled(app.clock.sleep(EVERY)).await.is_none() {
            return;
        }
        once(&app).await;
    }
}

/// Compares every node once.
pub async fn once(app: &App) {
    for (&node_id, node) in &app.nodes {
        if let Err(error) = compare(app, node_id, node).await {
            tracing::warn!(node = %node.facts.name, %error, "node cannot be compared with the store");
        }
    }
}

async fn compare(
    app: &App,
    node_id: i64,
    node: &Node,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    // In this order: whatever moves a CVM after it was read here is noticed by its generation.
    let cvms = app.store.cvms_on_node(node_id)?;
    let inventory = app.clock.within(ANSWER, node.driver.inventory()).await.ok_or("no answer in time")??;
    let mut seen: HashMap<VmUuid, Observed> =
        inventory.into_iter().map(|machine| (machine.vm, machine)).collect();
    for cvm in cvms {
        let machine = seen.remove(&cvm.vm_uuid);
        if cvm.open.is_some() {
            continue;
        }
        if let Some(machine) = &machine
            && cvm.observed.as_ref() != Some(machine)
        {
            app.store.cvm_observed(cvm.id, cvm.generation, machine.clone()).await?;
        }
        if let Some(kind) = remedy(&cvm, machine.as_ref()) {
            match app.store.operation_accept(operation(app, &cvm, kind), cvm.generation, None).await {
                Ok(_) => {
                    tracing::warn!(cvm.id = cvm.id, kind = %kind, "the machine is not as it should be");
                    app.wake();
                }
                // Somebody else is at it.
                Err(store::Error::Changed | store::Error::OperationOpen | store::Error::Missing) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    for machine in seen.values() {
        tracing::debug!(vm = %machine.vm, node = %node.facts.name, "the node has a machine that nobody here knows");
    }
    Ok(())
}

/// What brings the machine to its desired power, if something should.
fn remedy(cvm: &Cvm, machine: Option<&Observed>) -> Option<Kind> {
    let up = machine.is_some_and(|machine| matches!(machine.guest, Guest::Booting { .. } | Guest::Done));
    match (cvm.status, cvm.power, up) {
        // It needs somebody; trying again and again would hide that.
        (Status::Error, _, _) => None,
        (_, Power::On, false) => Some(Kind::Recover),
        (_, Power::Off, true) => Some(Kind::Stop),
        (_, Power::On, true) | (_, Power::Off, false) => None,
    }
}

fn operation(app: &App, cvm: &Cvm, kind: Kind) -> NewOperation {
    NewOperation {
        id: OperationId(app.clock.new_id()),
        cvm_id: cvm.id,
        kind,
        steps: kind.steps(cvm.power).to_vec(),
        power: None,
        spec: None,
        options: Options::default(),
        diff: Vec::new(),
        closes: None,
        author: Author { user_id: cvm.user_id, key_id: None, request_id: None },
        at: app.clock.now(),
    }
}
