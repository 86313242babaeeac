//! Power and removal: start, stop, shutdown, restart, delete, cancel.

use casemate_types::error::codes;
use casemate_types::ids::OperationId;

use super::onchain;
use super::operation::{Kind, Lane, Options, StepName};
use super::update::{ATTEMPTS, busy};
use crate::app::App;
use crate::auth::Author;
use crate::cvm::state::{Cvm, IfMatch, Power, Status};
use crate::error::{Error, Result};
use crate::store::{self, Accepted, NewOperation, Receipt};

/// Who asks, and where the answer is kept.
#[derive(Clone, Debug)]
pub struct Order {
    /// Who asks.
    pub author: Author,
    /// The states that they have seen, if they want no other to be changed.
    pub if_match: Option<IfMatch>,
    /// Keeps the answer together with what it answers.
    pub receipt: Option<Receipt<Accepted>>,
}

impl From<Author> for Order {
    fn from(author: Author) -> Self {
        Self { author, if_match: None, receipt: None }
    }
}

/// Switches a CVM on. For one that runs there is nothing to do.
pub async fn start(app: &App, cvm: Cvm, order: impl Into<Order>) -> Result<Accepted> {
    wait_for_turn(app, cvm, Kind::Start, Options::default(), order.into()).await
}

/// Asks a CVM to go down.
pub async fn shutdown(app: &App, cvm: Cvm, order: impl Into<Order>) -> Result<Accepted> {
    wait_for_turn(app, cvm, Kind::Shutdown, Options::default(), order.into()).await
}

/// Off and on again; `hard` skips asking the guest.
pub async fn restart(app: &App, cvm: Cvm, hard: bool, order: impl Into<Order>) -> Result<Accepted> {
    wait_for_turn(app, cvm, Kind::Restart, Options { hard, ..Options::default() }, order.into()).await
}

/// Cuts the power, whatever else is going on.
pub async fn stop(app: &App, cvm: Cvm, order: impl Into<Order>) -> Result<Accepted> {
    let order = order.into();
    let seen = order.if_match.clone();
    interrupt(app, &cvm, Kind::Stop, order).await.map_err(|error| passed(error, seen))
}

/// Removes a CVM, whatever else is going on.
pub async fn delete(app: &App, cvm: Cvm, order: impl Into<Order>) -> Result<()> {
    let order = order.into();
    let seen = order.if_match.clone();
    match interrupt(app, &cvm, Kind::Delete, order).await {
        Ok(_) => Ok(()),
        // It is being removed already.
        Err(store::Error::OperationOpen) => Ok(()),
        Err(error) => Err(passed(error, seen)),
    }
}

/// Calls an operation off, as long as it has not touched the machine.
pub async fn cancel(app: &App, id: OperationId, order: impl Into<Order>) -> Result<Accepted> {
    let Order { author, if_match, receipt } = order.into();
    let seen = if_match.clone();
    match app.store.operation_cancel(id, if_match, author, app.clock.now(), receipt).await {
        Err(store::Error::ClaimLost) => {
            let message = "the machine is already being changed; `stop` ends an operation at any time";
            Err(Error::Conflict { code: Some(codes::INVALID_REQUEST), message: message.into() })
        }
        other => other.map_err(|error| passed(error, seen)),
    }
}

/// Decides on what is there now: while nothing is at work, a status changes only together with the generation.
async fn wait_for_turn(
    app: &App,
    mut cvm: Cvm,
    kind: Kind,
    options: Options,
    order: Order,
) -> Result<Accepted> {
    for _ in 0..ATTEMPTS {
        if let Some(seen) = &order.if_match {
            seen.check(&cvm)?;
        }
        if cvm.open.is_some() {
            return Err(busy());
        }
        let kind = match (kind, cvm.status) {
            // A machine that is off has nothing to go down, and may never have had its spec.
            (Kind::Restart, status) if status != Status::Running => Kind::Start,
            (kind, _) => kind,
        };
        let mut new = new_operation(app, &cvm, kind, options.clone(), order.author.clone());
        if kind == Kind::Start && cvm.status == Status::Running {
            new.steps.clear();
        }
        if new.steps.contains(&StepName::Start) {
            // It would wait for its keys for ever, and not run meanwhile.
            onchain::contract(app, &cvm.kms)?;
        }
        match app.store.operation_accept(new, cvm.clone(), order.receipt.clone()).await {
            Ok(accepted) => {
                app.wake(Lane::Ordinary);
                return Ok(accepted);
            }
            Err(store::Error::Changed) => cvm = app.store.cvm(cvm.id)?,
            Err(error) => return Err(error.into()),
        }
    }
    Err(busy())
}

/// A CVM that has changed is told to those who named the state that they had seen.
fn passed(error: store::Error, seen: Option<IfMatch>) -> Error {
    match (error, seen) {
        (store::Error::Changed, Some(seen)) => seen.changed(),
        (error, _) => error.into(),
    }
}

async fn interrupt(app: &App, cvm: &Cvm, kind: Kind, order: Order) -> store::Result<Accepted> {
    let new = new_operation(app, cvm, kind, Options::default(), order.author);
    let accepted = app.store.operation_interrupt(new, order.if_match, order.receipt).await?;
    app.wake(Lane::Urgent);
    Ok(accepted)
}

fn new_operation(app: &App, cvm: &Cvm, kind: Kind, options: Options, author: Author) -> NewOperation {
    let power = match kind {
        Kind::Start | Kind::Restart => Some(Power::On),
        Kind::Stop | Kind::Shutdown => Some(Power::Off),
        _ => None,
    };
    NewOperation {
        id: OperationId(app.clock.new_id()),
        cvm_id: cvm.id,
        kind,
        steps: kind.steps(power.unwrap_or(cvm.power)).to_vec(),
        power,
        spec: None,
        options,
        diff: Vec::new(),
        closes: None,
        author: Some(author),
        at: app.clock.now(),
    }
}
