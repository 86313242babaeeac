//! Power and removal: start, stop, shutdown, restart, delete, cancel.

use casemate_types::error::codes;
use casemate_types::ids::OperationId;

use super::operation::{Kind, Lane, Options};
use super::update::{ATTEMPTS, IfMatch, busy};
use crate::app::App;
use crate::auth::Author;
use crate::cvm::state::{Cvm, Power, Status};
use crate::error::{Error, Result};
use crate::store::{self, Accepted, NewOperation, Receipt};

/// Who asks, and where the answer is kept.
#[derive(Clone, Debug)]
pub struct Order {
    /// Who asks.
    pub author: Author,
    /// Keeps the answer together with what it answers.
    pub receipt: Option<Receipt<Accepted>>,
    /// The states that the caller would have changed, if not any.
    pub if_match: Option<IfMatch>,
}

impl From<Author> for Order {
    fn from(author: Author) -> Self {
        Self { author, receipt: None, if_match: None }
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
    let missed = order.if_match.as_ref().map(IfMatch::missed);
    interrupt(app, &cvm, Kind::Stop, order).await.map_err(|error| refused(error, missed))
}

/// Removes a CVM, whatever else is going on.
pub async fn delete(app: &App, cvm: Cvm, order: impl Into<Order>) -> Result<()> {
    let order = order.into();
    let missed = order.if_match.as_ref().map(IfMatch::missed);
    match interrupt(app, &cvm, Kind::Delete, order).await {
        Ok(_) => Ok(()),
        // It is being removed already.
        Err(store::Error::OperationOpen) => Ok(()),
        Err(error) => Err(refused(error, missed)),
    }
}

fn refused(error: store::Error, missed: Option<Error>) -> Error {
    match (error, missed) {
        (store::Error::Changed, Some(missed)) => missed,
        (error, _) => error.into(),
    }
}

/// Calls an operation off, as long as it has not touched the machine.
pub async fn cancel(app: &App, id: OperationId, order: impl Into<Order>) -> Result<Accepted> {
    let Order { author, receipt, .. } = order.into();
    match app.store.operation_cancel(id, author, app.clock.now(), receipt).await {
        Err(store::Error::ClaimLost) => {
            let message = "the machine is already being changed; `stop` ends an operation at any time";
            Err(Error::Conflict { code: Some(codes::INVALID_REQUEST), message: message.into() })
        }
        other => Ok(other?),
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
        order.if_match.as_ref().map_or(Ok(()), |wanted| wanted.check(&cvm))?;
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
