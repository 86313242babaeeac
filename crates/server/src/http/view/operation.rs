//! Operations as the wire shows them.

use casemate_types::wire;

use crate::app::App;
use crate::error::Result;
use crate::workflow::operation::{Operation, State};

/// One operation, by itself: with how to take back what it left allowed.
///
/// # Errors
/// Those of the store.
pub fn operation_detail(app: &App, of: &Operation) -> Result<wire::Operation> {
    Ok(wire::Operation { revocation: super::revocation(app, of)?, ..operation(app, of)? })
}

/// One operation of many.
///
/// # Errors
/// Those of the store.
pub fn operation(app: &App, operation: &Operation) -> Result<wire::Operation> {
    let (reason, put_back) = match &operation.state {
        State::Failed { reason, put_back, .. } => {
            let code = reason.code.as_str().to_owned();
            (Some(wire::Reason { code, message: reason.message.clone() }), *put_back)
        }
        State::Queued { .. } | State::Running { .. } | State::Succeeded { .. } | State::Cancelled { .. } => {
            (None, None)
        }
    };
    let step = operation.current_step().or(operation.steps.last());
    Ok(wire::Operation {
        correlation_id: operation.id,
        cvm_id: app.store.cvm_uid(operation.cvm_id)?,
        kind: operation.kind.as_str().to_owned(),
        status: operation.state.name().into(),
        step: step.map(|step| step.name.as_str().to_owned()),
        attempt: operation.attempt.into(),
        waiting_for: operation.waiting_for.clone(),
        steps: operation
            .steps
            .iter()
            .map(|step| wire::OperationStep {
                name: step.name.as_str().to_owned(),
                started_at: step.started_at,
                ended_at: step.ended_at,
            })
            .collect(),
        diff: operation.diff.iter().cloned().map(Into::into).collect(),
        reason,
        put_back,
        revocation: None,
        downtime_ms: operation.downtime_ms,
        created_at: operation.created_at,
        ended_at: operation.state.ended_at(),
    })
}
